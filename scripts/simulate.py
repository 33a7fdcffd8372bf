"""`python scripts/simulate.py ...` is `shoal simulate ...`."""

if __name__ == "__main__":
    from shoal.commands.cli import script

    script(__file__)
