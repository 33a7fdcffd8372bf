"""Runs: how a job is started, watched, stopped and resumed, and the files that a run leaves in its folder."""
