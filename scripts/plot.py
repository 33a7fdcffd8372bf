"""`python scripts/plot.py ...` is `shoal plot ...`."""

if __name__ != "__main__":
    raise ImportError("shoal.plot is a function, from shoal.runs.run; this file is a script")

from shoal.commands.cli import script

script(__file__)
