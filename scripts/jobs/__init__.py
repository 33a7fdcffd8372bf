"""Jobs: what a run is made of, its settings, and the jobs that are built in."""
