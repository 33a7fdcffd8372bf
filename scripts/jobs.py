"""`python scripts/jobs.py ...` is `shoal jobs ...`."""

if __name__ == "__main__":
    from shoal.commands.cli import script

    script(__file__)
