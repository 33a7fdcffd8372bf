"""`python scripts/keys.py ...` is `shoal keys ...`."""

if __name__ == "__main__":
    from shoal.commands.cli import script

    script(__file__)
