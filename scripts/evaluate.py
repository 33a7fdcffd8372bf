"""`python scripts/evaluate.py ...` is `shoal evaluate ...`."""

if __name__ == "__main__":
    from shoal.commands.cli import script

    script(__file__)
