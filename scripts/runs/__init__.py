"""Runs: how a job is started, watched, stopped, resumed, and what it leaves in its folder."""
