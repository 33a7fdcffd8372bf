"""`python scripts/actor.py ...` is `shoal actor ...`."""

if __name__ == "__main__":
    from shoal.commands.cli import script

    script(__file__)
