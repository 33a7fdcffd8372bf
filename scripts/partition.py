"""`python scripts/partition.py ...` is `shoal partition ...`."""

if __name__ == "__main__":
    from shoal.commands.cli import script

    script(__file__)
