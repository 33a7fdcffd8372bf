"""`python scripts/compare.py ...` is `shoal compare ...`."""

if __name__ != "__main__":
    raise ImportError("shoal.compare is a function, from shoal.runs.compare; this file is a script")

from shoal.commands.cli import script

script(__file__)
