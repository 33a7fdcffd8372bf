"""The command line of `shoal`."""
