"""Peers: the same work by Flower, pfl-research and Ray, each in its own venv with pinned versions.

The one idea: Shoal imports nothing of a peer, and a script that runs a peer imports nothing of Shoal. They exchange one JSON
line.
"""
