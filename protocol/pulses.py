"""The seconds since anything came over each TCP connection of a socket, ZeroMQ's own pings included.

The one idea: ZeroMQ tells of a connection only that it was given up, which is late where the way may be slow. The kernel counts
when bytes came last over each connection, so a silent connection is known to be silent long before it is given up.
"""

from __future__ import annotations

import os
import socket
import struct
import sys

LAST_CAME = struct.Struct("=I")  # milliseconds since data came, of Linux's struct tcp_info
LAST_CAME_AT = 52  # bytes before it there
ENOUGH = LAST_CAME_AT + LAST_CAME.size  # bytes of the struct that are asked for


class Pulses:
    """The descriptors of a socket's connections by routing id, in the order of ZeroMQ's own events. A descriptor may be used
    again after its end, so it is believed only while its connection is known to be open."""

    def __init__(self) -> None:
        self._open: set[int] = set()
        self._descriptors: dict[bytes, int] = {}
        self._peers: dict[int, bytes] = {}

    def __contains__(self, peer: bytes) -> bool:
        return peer in self._descriptors

    def began(self, descriptor: int) -> None:
        self.ended(descriptor)
        self._open.add(descriptor)

    def ended(self, descriptor: int) -> None:
        self._open.discard(descriptor)
        if (peer := self._peers.pop(descriptor, None)) is not None:
            del self._descriptors[peer]

    def spoke(self, peer: bytes, descriptor: int) -> None:
        """Take a message of a connection whose descriptor is not known, and whose end may be known already."""
        if descriptor in self._open and peer not in self._descriptors:
            if (before := self._peers.get(descriptor)) is not None:
                del self._descriptors[before]
            self._peers[descriptor], self._descriptors[peer] = peer, descriptor

    def silent(self, peer: bytes) -> float | None:
        """Return the seconds since anything came over the peer's connection; None if that is not known."""
        descriptor = self._descriptors.get(peer)
        return None if descriptor is None else since_data(descriptor)


def since_data(descriptor: int) -> float | None:
    """Return the seconds since data came over a TCP connection; None if it is closed, or if this system does not count them.
    The descriptor stays its owner's."""
    if sys.platform != "linux":
        return None
    try:
        with socket.socket(socket.AF_INET, socket.SOCK_STREAM, 0, os.dup(descriptor)) as connection:
            info = connection.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, ENOUGH)
    except OSError:  # it was closed meanwhile, and the number may be another file's
        return None
    milliseconds: int = LAST_CAME.unpack_from(info, LAST_CAME_AT)[0] if len(info) >= ENOUGH else -1
    return milliseconds / 1_000 if milliseconds >= 0 else None
