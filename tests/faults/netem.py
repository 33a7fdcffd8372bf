"""A bad network in user space: two TUN devices and a heap, the far end in its own network namespace.

The one idea: every packet passes through one process, which drops, delays and paces it by a seed. So a schedule of losses
repeats, and the kernel provides only two devices. Linux, root and `ip` are needed: see `missing`.

The network can also forget its connections, like a router that was switched off and on: it answers the next packet on one of
them with a reset. And it counts the bytes that arrived on each connection, without TCP's retransmissions.
"""

from __future__ import annotations

import contextlib
import fcntl
import heapq
import json
import os
import select
import shutil
import socket
import struct
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from random import Random

from shoal.actors.pool import die_with_parent

TUNSETIFF, IFF_TUN, IFF_NO_PI = 0x400454CA, 0x0001, 0x1000
MTU = 1_500
TCP, SYN, RST, ACK = 6, 0x02, 0x04, 0x10
CUT, COUNT = b"c", b"n"  # commands to a carrier
QUEUE = 0.5  # seconds' worth of bytes that wait for their turn; further packets are dropped, as routers do


@dataclass(frozen=True, slots=True)
class Weather:
    """One direction of the link. delay: seconds. loss: share of packets lost. rate: bytes a second (0: any)."""

    delay: float = 0.0
    loss: float = 0.0
    rate: float = 0.0


@dataclass(frozen=True, slots=True)
class Network:
    """Two addresses that reach each other through it. namespace: that of `far`. into: words that run a command there."""

    near: str
    far: str
    namespace: str
    line: socket.socket  # to its carrier

    @property
    def into(self) -> list[str]:
        return ["ip", "netns", "exec", self.namespace]

    def control(self, name: str) -> None:
        """Sets TCP's congestion control at the far end, such as "cubic". Raises CalledProcessError if the kernel lacks it."""
        to = [f"{self.near}/32", "dev", self.namespace.replace("-", "f"), "src", self.far]
        _ip("-n", self.namespace, "route", "replace", *to, "congctl", name)

    def cut(self) -> None:
        """Drops all packets on their way, and forgets every connection."""
        self.line.sendall(CUT)

    def arrived(self) -> list[tuple[int, int]]:
        """Returns for each connection from the far end: the number of cuts before it was made, and bytes that arrived on it."""
        self.line.sendall(COUNT)
        return [(cuts, nbytes) for cuts, nbytes in json.loads(self.line.recv(1 << 20))]


def missing() -> str:
    """Returns why such a network cannot be made here; "" if it can."""
    if sys.platform != "linux" or not os.path.exists("/dev/net/tun"):
        return "no TUN devices on this system"
    if os.geteuid() != 0:
        return "making network devices takes root"
    return "" if shutil.which("ip") else "no `ip` command: install iproute2"


@contextlib.contextmanager
def network(weather: Weather, seed: int) -> Iterator[Network]:
    """Yields a network. Raises CalledProcessError or OSError if the system refuses."""
    number = os.getpid() % 60_000
    subnet = f"10.{200 + number // 16_384}.{number // 64 % 256}"
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    made = Network(f"{subnet}.{number % 64 * 4 + 1}", f"{subnet}.{number % 64 * 4 + 2}", f"shoal-{number}", ours)
    with contextlib.ExitStack() as stack:
        stack.enter_context(ours)
        stack.enter_context(theirs)
        _ip("netns", "add", made.namespace)
        stack.callback(_ip, "netns", "del", made.namespace)
        ends = [_tun(f"shoal{side}{number}") for side in "nf"]
        for end in ends:
            stack.callback(os.close, end)
        _ip("addr", "add", f"{made.near}/30", "dev", f"shoaln{number}")
        _ip("link", "set", f"shoaln{number}", "mtu", str(MTU), "up")
        _ip("link", "set", f"shoalf{number}", "netns", made.namespace)
        _ip("-n", made.namespace, "addr", "add", f"{made.far}/30", "dev", f"shoalf{number}")
        _ip("-n", made.namespace, "link", "set", f"shoalf{number}", "mtu", str(MTU), "up")
        parent = os.getpid()
        if (child := os.fork()) == 0:
            try:
                die_with_parent(parent)
                ours.close()
                Carrier(ends, weather, Random(seed), theirs).carry()
            finally:
                os._exit(1)
        stack.callback(os.waitpid, child, 0)
        stack.callback(os.kill, child, 9)
        yield made


def _ip(*words: str) -> None:
    subprocess.run(["ip", *words], check=True, capture_output=True)


def _tun(name: str) -> int:
    descriptor = os.open("/dev/net/tun", os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC)
    fcntl.ioctl(descriptor, TUNSETIFF, struct.pack("16sH22x", name.encode(), IFF_TUN | IFF_NO_PI))
    return descriptor


@dataclass(slots=True)
class Connection:
    """A TCP connection from the far end to the near one. begins: number of its first byte. cuts: before it was made."""

    begins: int
    cuts: int
    arrived: int = 0
    known: bool = True


@dataclass(slots=True)
class Carrier:
    """Takes packets in at one end and writes them out at the other, later or never. ends: near and far. line: of commands."""

    ends: list[int]
    weather: Weather
    rng: Random
    line: socket.socket
    cuts: int = 0
    connections: dict[bytes, Connection] = field(default_factory=dict)  # by the far end's ports
    _flying: list[tuple[float, int, int, bytes]] = field(default_factory=list)
    _free_at: dict[int, float] = field(default_factory=dict)  # time at which this end will have sent all that waits for it
    _number: int = 0

    def carry(self) -> None:
        """Carries packets until the process is ended."""
        while True:
            wait = max(0.0, self._flying[0][0] - time.monotonic()) if self._flying else None
            ready, _, _ = select.select([*self.ends, self.line.fileno()], [], [], wait)
            if self.line.fileno() in ready:
                self._obey(self.line.recv(1))
            for end in self.ends:
                if end in ready:
                    with contextlib.suppress(BlockingIOError):
                        self._take(end, os.read(end, 2 * MTU))
            self._deliver()

    def _obey(self, told: bytes) -> None:
        if told == CUT:
            self._flying.clear()
            self.cuts += 1
            for connection in self.connections.values():
                connection.known = False
        elif told == COUNT:
            self.line.sendall(json.dumps([(one.cuts, one.arrived) for one in self.connections.values()]).encode())

    def _take(self, end: int, packet: bytes) -> None:
        if not self._look(end, packet):
            self._write(end, reset(packet))
            return
        now, rate = time.monotonic(), self.weather.rate
        free_at = self._free_at.get(end, 0.0)
        if self.rng.random() < self.weather.loss or free_at - now > QUEUE:
            return
        free_at = self._free_at[end] = max(now, free_at) + (len(packet) / rate if rate else 0.0)
        self._number += 1
        over = self.ends[1] if end == self.ends[0] else self.ends[0]
        heapq.heappush(self._flying, (free_at + self.weather.delay, self._number, over, packet))

    def _look(self, end: int, packet: bytes) -> bool:
        """Counts what the packet acknowledges. Returns False for TCP of an unknown connection, unless it is a reset."""
        if len(packet) < 40 or packet[0] != 0x45 or packet[9] != TCP:
            return True
        ports, number, acknowledged, flags = packet[20:24], *struct.unpack_from("!IIxB", packet, 24)
        from_far = end == self.ends[1]
        name = ports if from_far else ports[2:] + ports[:2]
        if from_far and flags & SYN:
            known = self.connections.get(name)
            if known is None or not known.known:
                self.connections[name] = Connection(number + 1, self.cuts)
        connection = self.connections.get(name)
        if connection is None or not connection.known:
            return bool(flags & RST)
        if not from_far and flags & ACK:
            arrived = (acknowledged - connection.begins) % (1 << 32)
            if arrived < 1 << 31:
                connection.arrived = max(connection.arrived, arrived)
        return True

    def _deliver(self) -> None:
        now = time.monotonic()
        while self._flying and self._flying[0][0] <= now:
            _, _, end, packet = heapq.heappop(self._flying)
            self._write(end, packet)

    def _write(self, end: int, packet: bytes) -> None:
        with contextlib.suppress(OSError):  # a device that is full or gone loses packets, as networks do
            os.write(end, packet)


def reset(packet: bytes) -> bytes:
    """Returns a router's answer to a TCP packet over IPv4 whose connection it does not know."""
    source, target, ports = packet[12:16], packet[16:20], packet[20:24]
    acknowledged = packet[28:32]
    segment = ports[2:] + ports[:2] + acknowledged + struct.pack("!IBBHHH", 0, 5 << 4, RST, 0, 0, 0)
    pseudo = target + source + struct.pack("!HH", TCP, len(segment))
    segment = segment[:16] + _checksum(pseudo + segment) + segment[18:]
    header = struct.pack("!BBHHHBBH", 0x45, 0, 20 + len(segment), 0, 0, 64, TCP, 0) + target + source
    return header[:10] + _checksum(header) + header[12:] + segment


def _checksum(data: bytes) -> bytes:
    """Returns the checksum of RFC 1071: the complement of the ones' complement sum."""
    total = sum(struct.unpack(f"!{len(data) // 2}H", data))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return struct.pack("!H", ~total & 0xFFFF)
