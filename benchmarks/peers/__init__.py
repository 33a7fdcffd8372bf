"""Peers: the same work by Flower, pfl-research and Ray, each in a venv of its own with pinned versions.

The one idea: nothing of a peer is imported by Shoal, nor of Shoal by a script that runs a peer: they meet in one JSON line.
"""
