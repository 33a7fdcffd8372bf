"""`python scripts/watch.py ...` is `shoal watch ...`."""

if __name__ == "__main__":
    from shoal.commands.cli import script

    script(__file__)
