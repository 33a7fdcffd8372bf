"""`python scripts/track.py ...` is `shoal track ...`."""

if __name__ != "__main__":
    raise ImportError("shoal.track is a function, from shoal.tracking.track; this file is a script")

from shoal.commands.cli import script

script(__file__)
