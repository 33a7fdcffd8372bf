"""`python scripts/evaluate.py ...` is `shoal evaluate ...`."""

if __name__ != "__main__":
    raise ImportError("shoal.evaluate is a function, from shoal.runs.evaluate; this file is a script")

from shoal.commands.cli import script

script(__file__)
