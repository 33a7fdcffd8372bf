"""Sweeps: many trials of a job, or of a user's own objective, judged by arms (`shoal sweep`, `shoal.sweep`)."""
