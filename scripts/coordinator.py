"""`python scripts/coordinator.py ...` is `shoal coordinator ...`."""

if __name__ == "__main__":
    from shoal.commands.cli import script

    script(__file__)
