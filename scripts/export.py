"""`python scripts/export.py ...` is `shoal export ...`."""

if __name__ == "__main__":
    from shoal.commands.cli import script

    script(__file__)
