"""`python scripts/resume.py ...` is `shoal resume ...`."""

if __name__ == "__main__":
    from shoal.commands.cli import script

    script(__file__)
