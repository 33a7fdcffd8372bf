"""`python scripts/serve.py ...` is `shoal serve ...`."""

if __name__ == "__main__":
    from shoal.commands.cli import script

    script(__file__)
