"""`python scripts/export.py ...` is `shoal export ...`."""

if __name__ != "__main__":
    raise ImportError("shoal.export is a function, from shoal.runs.evaluate; this file is a script")

from shoal.commands.cli import script

script(__file__)
