"""Environments of reinforcement learning, and federated populations with their data."""
