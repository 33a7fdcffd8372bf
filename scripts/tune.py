"""`python scripts/tune.py ...` is `shoal tune ...`."""

if __name__ == "__main__":
    from shoal.commands.cli import script

    script(__file__)
