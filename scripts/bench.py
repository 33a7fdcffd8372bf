"""`python scripts/bench.py ...` is `shoal bench ...`."""

if __name__ == "__main__":
    from shoal.commands.cli import script

    script(__file__)
