"""A million malformed frames for everything that reads bytes of other processes.

The one idea: a mutation of an honest frame goes deeper than noise. A reader must return a value or raise the one error that
it documents, within a bound on time and memory; anything else ends the case.
"""

from __future__ import annotations

import contextlib
import gc
import itertools
import os
import socket
import time
import tracemalloc
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from random import Random
from types import MappingProxyType
from typing import Any

import numpy as np

from shoal.benchmarks.case import Finding
from shoal.benchmarks.machine import resident
from shoal.coordinator.keeping.journal import Journal
from shoal.coordinator.keeping.replay import Replay
from shoal.faults.bombs import HEADERS, ROWS, honest, payloads
from shoal.faults.ramdisk import RamDisk
from shoal.protocol import values
from shoal.protocol.codec import decode, unpack_welcome
from shoal.protocol.errors import ProtocolError, UserError
from shoal.protocol.layout import Layout
from shoal.protocol.link import read
from shoal.protocol.pipe import Pipe
from shoal.protocol.ring import RingReader

INTERESTING = (
    *(bytes([one]) for one in (0x00, 0x01, 0x7F, 0x80, 0x8F, 0x90, 0x9F, 0xA0, 0xBF, 0xC0, 0xC1, 0xC3, 0xD4, 0xE0, 0xFF)),
    *(head + b"\xff" * width for head, width in ((b"\xc6", 4), (b"\xdd", 4), (b"\xdf", 4), (b"\xdb", 4), (b"\xcf", 8))),
    *(b"\xcb\x7f\xf0" + bytes(6), b"\xcb\x7f\xf8" + bytes(6), b"\xd3\x80" + bytes(7), b"\xc7\x0c\xff" + bytes(12)),
)
JOURNAL = Path("run/journal")
VALUES = (None, [1, "a", (2.5, b"b")], {"x": 2**70, ("a", 1): [0.5] * 70}, [np.arange(6.0).reshape(2, 3), np.float32(3.0)])
MILLISECONDS, MEGABYTES, DRIFT = 20.0, 8.0, 1.0


def fuzz(quick: bool) -> Finding:
    """Measures worst times in CPU time of this process, and memory as what Python and msgpack allocate for one frame."""
    frames = 1_000_000
    rng, readers, honestly = Random(0), targets(), seeds()
    for name in readers:  # first uses fill tables, caches and code
        run(readers[name], honestly[name], 500, rng)
    gc.collect()
    before = resident()
    found = {name: run(readers[name], honestly[name], int(frames * share), rng) for name, share in SHARES.items()}
    gc.collect()
    drift = (resident() - before) / 1e6
    costs = {name: cost(readers["frames"], bomb()) for name, bomb in HEADERS.items()}
    costs |= {f"layout: {name}": cost(_rows, rows()) for name, rows in ROWS.items()}
    sampled = [cost(readers["frames"], mutated(honestly["frames"], rng))[1] for _ in range(2_000)]
    slowest = max(*(one["worst_ms"] for one in found.values()), *(ms for ms, _ in costs.values()))
    largest = max(*sampled, *(mb for _, mb in costs.values()))
    return Finding(
        figure=float(sum(one["frames"] for one in found.values())),
        unit="frames without a crash",
        goal=1e6,
        holds=drift < DRIFT and slowest <= MILLISECONDS and largest <= MEGABYTES,
        asked="1,000,000 frames, 0 crashes; memory drifts by less than 1 MB; the worst frame takes 20 ms and 8 MB at most",
        details={
            "drift_mb": drift,
            "worst_ms": slowest,
            "worst_mb": largest,
            "readers": found,
            "bombs_ms_mb": {name: list(pair) for name, pair in costs.items()},
        },
    )


SHARES: Mapping[str, float] = MappingProxyType(
    {"frames": 0.55, "header": 0.2, "welcome": 0.1, "layout": 0.07, "pipe": 0.01, "ring": 0.01, "journal": 0.01, "values": 0.05}
)


def _journal() -> bytes:
    """Returns a segment of a journal with a few records, as bytes."""
    disk = RamDisk()
    with contextlib.closing(Journal(Replay(JOURNAL, "run", report=_quiet, disk=disk), 1, extent=512)) as journal:
        for number in range(6):
            journal.append(b"record %d" % number * 3)
            journal.commit()
    return bytes(disk.seen[JOURNAL / "00000001.journal"].seen)


def _pipe() -> bytes:
    """Returns the bytes that a pipe writes for three messages."""
    ours, theirs = socket.socketpair()
    with ours, theirs:
        pipe = Pipe(ours, 1 << 16)
        for frames in ([b"a"], [b"peer", b"header", b"payload" * 20], [b"", b"x" * 300]):
            pipe.put(frames)
        pipe.flush()
        return theirs.recv(1 << 16)


def seeds() -> Mapping[str, Sequence[bytes]]:
    """Returns honest bytes for each reader."""
    return {
        "frames": [*honest(), *(a + b for a, b in itertools.pairwise(honest()))],
        "header": honest(),
        "welcome": list(payloads()),
        "layout": list(payloads()),
        "pipe": [_pipe()],
        "ring": [b"".join(n.to_bytes(8, "little") for n in (1, 3, 4096, 77, 2, 512, 0, 1, 100))],
        "journal": [_journal()],
        "values": [values.pack(one) for one in VALUES],
    }


def targets() -> Mapping[str, Callable[[bytes], object]]:
    """Returns the readers: each reads bytes, and errors that it documents are caught here."""

    def frames(data: bytes) -> object:
        cut = len(data) // 2
        return [*read(b"", "", [data]), *read(b"", "", [data[:cut], data[cut:]])]

    return {
        "frames": frames,
        "header": _kept(decode, ProtocolError),
        "welcome": _kept(unpack_welcome, ProtocolError),
        "layout": _rows_of,
        "pipe": _kept(_through_pipe, ProtocolError, EOFError),
        "ring": _kept(_ring, ProtocolError),
        "journal": _kept(_replayed, UserError),
        "values": _kept(values.read, ProtocolError),
    }


def _kept(reader: Callable[[bytes], object], *errors: type[Exception]) -> Callable[[bytes], object]:
    def kept(data: bytes) -> object:
        with suppress(*errors):
            return reader(data)
        return None

    return kept


def _rows_of(data: bytes) -> object:
    """Makes a layout from the Python values in these bytes."""
    values = [list(data[at : at + 3]) for at in range(0, len(data), 3)]
    return _rows([[str(value), ["f4", "b1", "O", 7][value[0] % 4], value] for value in values])


def _rows(rows: Any) -> object:
    with suppress(ProtocolError):
        return Layout.from_rows(rows)
    return None


def _through_pipe(data: bytes) -> object:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        ours.sendall(data)
        ours.shutdown(socket.SHUT_WR)
        pipe = Pipe(theirs, 1 << 16)
        while pipe.take() is not None:
            pass
    return None


def _ring(data: bytes) -> object:
    """Opens shared memory by a handle that may point anywhere, also at this process's own descriptors."""
    numbers = [int.from_bytes(data[at : at + 8], "little", signed=True) for at in range(0, min(len(data), 72), 8)]
    if numbers and numbers[0] % 3 == 0:
        numbers[0] = os.getpid()
    RingReader(tuple(numbers[:6])).close()
    return None


def _replayed(data: bytes) -> object:
    disk = RamDisk()
    disk.make_folder(JOURNAL)
    fd = disk.create(JOURNAL / "00000001.journal")
    disk.write(fd, [memoryview(data)], 0)
    disk.sync(fd)
    return list(Replay(JOURNAL, "run", report=_quiet, disk=disk))


def mutated(seeds: Sequence[bytes], rng: Random) -> bytes:
    """Returns one of the seeds, changed in a few places; in 2 % of the calls noise."""
    if rng.random() < 0.02:
        return rng.randbytes(rng.randrange(200))
    data = bytearray(rng.choice(seeds))
    for _ in range(rng.choice((1, 1, 1, 2, 3, 8))):
        at = rng.randrange(len(data) + 1)
        match rng.randrange(7):
            case 0 if data:
                data[at % len(data)] ^= 1 << rng.randrange(8)
            case 1 if data:
                data[at % len(data)] = rng.randrange(256)
            case 2:
                data[at:at] = rng.choice(INTERESTING)
            case 3:
                one = rng.choice(INTERESTING)
                data[at : at + len(one)] = one
            case 4:
                del data[at : at + rng.randrange(1, 9)]
            case 5:
                data[at:at] = data[rng.randrange(len(data) + 1) :][: rng.randrange(1, 40)]
            case 6:
                other = rng.choice(seeds)
                data[at:] = other[rng.randrange(len(other) + 1) :]
    return bytes(data)


def run(reader: Callable[[bytes], object], seeds: Sequence[bytes], frames: int, rng: Random) -> dict[str, float]:
    """Reads `frames` frames; returns their number, the worst in milliseconds of CPU and the mean in microseconds."""
    worst, clock = 0, time.thread_time_ns
    began = clock()
    for _ in range(frames):
        data = mutated(seeds, rng)
        before = clock()
        reader(data)
        worst = max(worst, clock() - before)
    return {"frames": frames, "worst_ms": worst / 1e6, "mean_us": (clock() - began) / max(1, frames) / 1e3}


def cost(reader: Callable[[Any], object], data: Any) -> tuple[float, float]:
    """Returns the cost of reading `data` once: milliseconds of CPU, the better of two, and the peak of megabytes allocated."""
    times = []
    for _ in range(2):
        before = time.thread_time_ns()
        reader(data)
        times.append((time.thread_time_ns() - before) / 1e6)
    tracemalloc.start()
    try:
        reader(data)
        return min(times), tracemalloc.get_traced_memory()[1] / 1e6
    finally:
        tracemalloc.stop()


def _quiet(text: str) -> None:
    pass
