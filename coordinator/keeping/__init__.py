"""What a coordinator keeps on disk: snapshots, the journal, and how a run is found again after a crash."""
