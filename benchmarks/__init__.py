"""Cases of `shoal bench`: each claim of speed has a case here."""
