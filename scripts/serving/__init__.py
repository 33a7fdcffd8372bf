"""`shoal serve` and `shoal.Client`: predictions of a run's model, also while the run still trains."""
