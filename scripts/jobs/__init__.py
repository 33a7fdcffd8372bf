"""Jobs: the parts of a run, their settings, and the built-in jobs."""
