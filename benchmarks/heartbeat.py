"""Round trip of a word while the link is saturated: control messages never wait behind a model.

The one idea: some readers fetch weights over TCP without end, as fast as the coordinator gives them, while one caller says a
word and waits for the answer. A heartbeat takes at most that time, because it has no answer.
"""

from __future__ import annotations

import json
import os
import time
from dataclasses import asdict, dataclass
from typing import Any
from unittest import mock

from shoal.benchmarks.case import Finding
from shoal.benchmarks.control import Caller, Desk
from shoal.benchmarks.floors import others
from shoal.benchmarks.timing import interleaved, quantile
from shoal.protocol.fetching import MOST
from shoal.protocol.link import Line
from shoal.protocol.messages import Bye, Chunk, Contribute, Envelope, Verdict, Want

FLOATS = 25_000_000  # 100 MB
READERS = 4
AHEAD = 2  # chunks that a reader asks for ahead, so that the link is never free


@dataclass(frozen=True)
class Trips:
    """Round trips. p50, p99: seconds. rate: bytes a second that the readers received at the same time."""

    p50: float
    p99: float
    rate: float


def heartbeat(quick: bool) -> Finding:
    """Measures round trips while 4 actors fetch 100 MB over and over, and while nobody fetches."""
    seconds, found = 3.0 if quick else 10.0, []

    def busy() -> float:
        found.append(trips(seconds, READERS))
        return found[-1].p99

    p99, idle = interleaved(3 if quick else 5, busy, lambda: trips(seconds / 3, 0).p99)
    return Finding(
        figure=p99 * 1e3,
        unit="ms for a word and its answer, p99, while 4 actors fetch 100 MB over TCP",
        goal=50.0,
        holds=p99 <= 50e-3,
        asked="at most 50 ms",
        details={
            "p99_of_an_idle_link_ms": idle * 1e3,
            "p50_ms": quantile([one.p50 for one in found], 0.5) * 1e3,
            "fetched_gigabytes_per_second": quantile([one.rate for one in found], 0.5) / 1e9,
        },
    )


def trips(seconds: float, readers: int, floats: int = FLOATS) -> Trips:
    """Returns the round trips of one caller, back to back for `seconds`, while `readers` readers fetch."""
    desk, found = Desk(floats), os.memfd_create("trips")

    def live(number: int) -> None:
        reader = Reader(desk.hub.address)
        if number:
            reader.read_on(4 * floats)
        os.write(found, json.dumps(asdict(speak(reader, seconds))).encode())
        reader.say(Bye("done"))
        reader.stay()

    given = 0
    serve = desk.server.arrays.cut

    def counted(*asked: Any) -> Any:
        nonlocal given
        part = serve(*asked)
        given += 0 if part is None else len(part)
        return part

    with mock.patch.object(desk.server.arrays, "cut", counted), others(1 + readers, live):
        desk.turns(lambda here: here == 1 + readers)
        began, given = time.monotonic(), 0
        desk.turns(lambda here: here == readers)
        rate = given / (time.monotonic() - began)
    desk.hub.close()
    told = json.loads(os.pread(found, 1_000, 0))
    os.close(found)
    return Trips(told["p50"], told["p99"], rate)


def speak(caller: Caller, seconds: float) -> Trips:
    """Measures round trips for `seconds`: a contribution to a task that nobody has, whose only answer is a verdict."""
    took: list[float] = []
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        began = time.monotonic()
        caller.say(Contribute((0, 99), 1, 0, 1.0, "", False, {}, {}, 0.0, 0.0))
        caller.until(Verdict)
        took.append(time.monotonic() - began)
    return Trips(quantile(took, 0.5), quantile(took, 0.99), 0.0)


class Reader(Caller):
    """An actor's end of a line that fetches the weights again and again and never says that it has them."""

    def read_on(self, nbytes: int) -> None:
        """Reads until this process is ended."""
        lane, first, free = Line(self.line.address, beside=self.line), 0, 0
        while True:
            for _ in range(free):
                last = min(nbytes, first + MOST)
                lane.send(Envelope(self.session, self.epoch, Want((0,), first, last)))
                first = last % nbytes
            self.hear()
            free = 0
            for one in lane.drain():
                free += AHEAD if one.kind == "opened" else isinstance(one.envelope and one.envelope.message, Chunk)
