"""Moving weights and contributions: how close Shoal comes to what memory and sockets allow.

The one idea: the cases watch whole runs at the coordinator's socket: from the moment that weights are made to the last word
that they arrived, and from one folded contribution to the next.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from typing import Any

from shoal.benchmarks.case import Finding
from shoal.benchmarks.floors import memcpy, received, spread, weighted_sum
from shoal.benchmarks.jobs import SMALL, broadcast, noop
from shoal.benchmarks.peers import questions
from shoal.benchmarks.peers.beside import Beside
from shoal.benchmarks.play import Trace, played, traced
from shoal.benchmarks.timing import interleaved, quantile
from shoal.protocol.messages import Have

MB = 1_000_000
CONTRIBUTION = 4 * MB


def weights_tcp(quick: bool) -> Finding:
    """Measures weights of 100 MB to 4 actors over loopback TCP, from the step that made them to the last Have."""
    size, times = 100 * MB, 4 if quick else 12
    ours, bare = interleaved(2 if quick else 5, lambda: _brought(size, 4, times, "tcp"), lambda: spread(size, 4, times))
    return Finding(
        figure=ours * 1e3,
        unit="ms for 100 MB to 4 actors over TCP",
        goal=bare / 0.8 * 1e3,
        floor=bare * 1e3,
        ratio=bare / ours,
        holds=bare / ours >= 0.8,
        asked="at least 80 % of the rate of raw TCP",
        details={"floor": "raw TCP sockets, one thread", "gigabytes_per_second": 4 * size / ours / 1e9},
    )


def weights_local(quick: bool) -> Finding:
    """Measures weights of 100 MB to 8 local actors through shared memory, and to 32."""
    size, times = 100 * MB, 6 if quick else 15
    ways: dict[str, Callable[[], float]] = {
        "8_actors_ms": lambda: 1e3 * _brought(size, 8, times, "shm"),
        "memcpy_ms": lambda: 1e3 * min(memcpy(size) for _ in range(5)),
        "32_actors_ms": lambda: 1e3 * _brought(size, 32, times, "shm"),
    }
    found = dict(zip(ways, interleaved(2 if quick else 5, *ways.values()), strict=True))
    goal = 1.5 * found["memcpy_ms"] + 10
    return Finding(
        figure=found["8_actors_ms"],
        unit="ms for 100 MB to 8 actors of one machine",
        goal=goal,
        floor=found["memcpy_ms"],
        ratio=found["8_actors_ms"] / found["memcpy_ms"],
        holds=found["8_actors_ms"] <= goal and found["32_actors_ms"] <= goal,
        asked="at most 1.5 copies in memory and 10 ms, to 8 and to 32 actors",
        details=found,
    )


def _brought(nbytes: int, actors: int, times: int, transport: str) -> float:
    """Returns median seconds over versions, from the moment that the aggregator has made a version to the last actor's Have."""
    job, still = broadcast(nbytes // 4, actors, times + 2)
    with traced() as trace, played(job, actors=actors, transport=transport):
        return statistics.median(journeys(trace, still.made, actors)[-times:])


def journeys(trace: Trace, made: Sequence[float], actors: int) -> list[float]:
    """Returns seconds that each version took to reach all actors, without versions that an actor skipped."""
    arrived: dict[int, list[float]] = {}
    for at, message in trace.came(Have):
        arrived.setdefault(message.version, []).append(at)
    return [max(moments) - made[version] for version, moments in arrived.items() if version and len(moments) == actors]


def contributions_4mb(quick: bool) -> Finding:
    """Measures seconds for each contribution of 4 MB from 4 actors, delivered and added, by every transport."""
    rounds, each = (4, 50) if quick else (12, 200)
    ways: dict[str, Callable[[], float]] = {
        "shm": lambda: _folded("shm", rounds),
        "ipc": lambda: _folded("ipc", rounds),
        "tcp": lambda: _folded("tcp", rounds),
        "add": lambda: weighted_sum(CONTRIBUTION // 4, 200),
        "raw_unix": lambda: 1 / received("unix", CONTRIBUTION, 4, each, add=False),
        "raw_tcp_add": lambda: 1 / received("tcp", CONTRIBUTION, 4, each, add=True),
    }
    found = dict(zip(ways, interleaved(2 if quick else 5, *ways.values()), strict=True))
    ratios = {
        "shm_to_add": found["shm"] / found["add"],
        "ipc_rate_to_raw_unix": found["raw_unix"] / found["ipc"],
        "tcp_rate_to_raw_tcp_add": found["raw_tcp_add"] / found["tcp"],
    }
    return Finding(
        figure=found["shm"] * 1e3,
        unit="ms for 4 MB delivered and accumulated (shared memory)",
        goal=1.25 * found["add"] * 1e3,
        floor=found["add"] * 1e3,
        ratio=ratios["shm_to_add"],
        holds=ratios["shm_to_add"] <= 1.25
        and ratios["ipc_rate_to_raw_unix"] >= 0.9
        and ratios["tcp_rate_to_raw_tcp_add"] >= 0.85,
        asked="shm within 1.25 of the same sum from local memory; ipc 90 % of raw unix; tcp 85 % of raw TCP with the sum",
        details={**ratios, **{f"{name}_ms": 1e3 * value for name, value in found.items()}},
    )


def _folded(transport: str, rounds: int) -> float:
    with played(noop(CONTRIBUTION // 4, 64, rounds, sums=False), actors=4, transport=transport) as run:
        return 1 / run.pace(skip=2)


def round_tcp(quick: bool) -> Finding:
    """Measures a synchronous round of two clients that do nothing over TCP: with keys, without, and through a gateway."""
    rounds = 200 if quick else 2_000
    beside = Beside(questions.rounds(), quick, min)
    keys, clear, gateway, _ = interleaved(
        2 if quick else 5,
        lambda: _round(rounds, keys=True),
        lambda: _round(rounds, transport="tcp"),
        lambda: _round(rounds, keys=True, gateway=True),
        beside.turn,
    )
    flower = beside.best("flower")
    return Finding(
        figure=keys * 1e3,
        unit="ms a round, p50, with keys",
        goal=5.0,
        peer=flower,
        ratio=None if flower is None else keys * 1e3 / flower,
        holds=keys <= 5e-3,
        asked="at most 5 ms (peer: Flower's deployment; its older gRPC server is in the details)",
        details={"without_keys_ms": clear * 1e3, "keys_and_gateway_ms": gateway * 1e3, **beside.details()},
    )


def _round(rounds: int, **way: Any) -> float:
    with played(noop(SMALL, 2, rounds, sums=True), actors=2, **way) as run:
        return quantile(run.rounds(skip=10), 0.5)
