"""Messages, layouts and bundles between coordinator and actors, and how these cross a process or a network.

The one idea: weights have a version, work is done against a version, and a contribution names that version. This room
knows msgpack, ZeroMQ and shared memory, and nothing of machine learning.
"""
