"""`python scripts/sweep.py ...` is `shoal sweep ...`."""

if __name__ != "__main__":
    raise ImportError("shoal.sweep is a function, from shoal.sweeps.sweep; this file is a script")

from shoal.commands.cli import script

script(__file__)
