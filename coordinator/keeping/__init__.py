"""A coordinator's files: snapshots, the journal, and how a run is found again after a crash."""
