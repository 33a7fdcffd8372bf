"""`python scripts/plot.py ...` is `shoal plot ...`."""

if __name__ == "__main__":
    from shoal.commands.cli import script

    script(__file__)
