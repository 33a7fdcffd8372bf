"""Facts about the bad network, packet by packet: no device, no root."""

from __future__ import annotations

import os
import socket
import struct
from collections.abc import Iterator
from random import Random

import pytest

from shoal.faults.netem import ACK, CUT, RST, SYN, Carrier, Weather, reset

NEAR, FAR = bytes((10, 0, 0, 1)), bytes((10, 0, 0, 2))


def packet(source: bytes, target: bytes, ports: tuple[int, int], number: int, acknowledged: int, flags: int) -> bytes:
    header = struct.pack("!BBHHHBBH", 0x45, 0, 40, 0, 0, 64, 6, 0) + source + target
    return header + struct.pack("!HHIIBBHHH", *ports, number, acknowledged, 5 << 4, flags, 100, 0, 0)


def up(number: int, flags: int = ACK, port: int = 4_000) -> bytes:
    return packet(FAR, NEAR, (port, 5_555), number, 77, flags)


def down(acknowledged: int, flags: int = ACK, port: int = 4_000) -> bytes:
    return packet(NEAR, FAR, (5_555, port), 500, acknowledged, flags)


def ones(data: bytes) -> int:
    """RFC 1071: all ones where a checksum fits what it is of."""
    total = sum(struct.unpack(f"!{len(data) // 2}H", data))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return total


class Link:
    """A carrier between two sockets that stand for devices."""

    def __init__(self) -> None:
        self.near, near = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self.far, far = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self.line, line = socket.socketpair()
        self.held = (near, far, line, self.near, self.far, self.line)
        for end in (self.near, self.far):
            end.setblocking(False)
        self.carrier = Carrier([near.fileno(), far.fileno()], Weather(), Random(0), line)

    def say(self, *packets: bytes) -> Link:
        for one in packets:
            self.carrier._take(self.carrier.ends[one[12:16] == FAR], one)
        self.carrier._deliver()
        return self

    def heard(self, end: socket.socket) -> bytes:
        try:
            return os.read(end.fileno(), 2_000)
        except BlockingIOError:
            return b""


@pytest.fixture
def link() -> Iterator[Link]:
    made = Link()
    yield made
    for one in made.held:
        one.close()


def test_what_has_arrived_is_what_the_near_end_has_acknowledged(link: Link) -> None:
    link.say(up(99, SYN), down(100, SYN | ACK), up(100), up(100), down(1_100), down(600))
    assert [(one.cuts, one.arrived) for one in link.carrier.connections.values()] == [(0, 1_000)]
    link.say(up(2**32 - 1, SYN, port=4_001), down(50, port=4_001))  # numbers go round
    assert [one.arrived for one in link.carrier.connections.values()] == [1_000, 50]


def test_after_a_cut_both_ends_hear_that_there_is_no_connection_and_another_can_be_made(link: Link) -> None:
    link.say(up(99, SYN), down(100, SYN | ACK))
    assert link.heard(link.near) == up(99, SYN)
    assert link.heard(link.far)
    link.carrier._obey(CUT)
    link.say(up(100))
    assert link.heard(link.near) == b""
    answer = link.heard(link.far)
    assert (answer[33], answer[24:28]) == (RST, struct.pack("!I", 77))  # with the number that the far end waits for
    link.say(down(100))
    assert link.heard(link.near)[33] == RST
    link.say(up(5_000, SYN), down(5_001, SYN | ACK), down(5_011))
    assert link.heard(link.near) == up(5_000, SYN)
    assert [(one.cuts, one.arrived) for one in link.carrier.connections.values()] == [(1, 10)]


def test_what_a_router_answers_is_a_packet_that_is_taken() -> None:
    answer = reset(up(100))
    assert (answer[12:16], answer[16:20], answer[20:24]) == (NEAR, FAR, struct.pack("!HH", 5_555, 4_000))
    assert ones(answer[:20]) == 0xFFFF
    assert ones(answer[12:20] + struct.pack("!HH", 6, 20) + answer[20:]) == 0xFFFF
