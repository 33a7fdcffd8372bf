"""Programs written for other frameworks, run as jobs."""
