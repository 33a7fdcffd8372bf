"""`python scripts/status.py ...` is `shoal status ...`."""

if __name__ == "__main__":
    from shoal.commands.cli import script

    script(__file__)
