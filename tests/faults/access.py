"""Ways in for strangers, which must let nothing in and nothing out, and the cost of keys for actors that are let in.

The one idea: round trips in clear, with keys, and with keys through a gateway process are measured in turns in one run.
A busy machine slows all three alike, and only their ratios are kept.
"""

from __future__ import annotations

import statistics
import tempfile
import time
from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path
from types import MappingProxyType

from shoal.benchmarks.case import Finding
from shoal.faults.strangers import CASES, PING, Attempt, Site, attempt
from shoal.protocol.link import Line

WAYS: Mapping[str, tuple[bool, bool]] = MappingProxyType(
    {"clear": (False, False), "keys": (True, False), "keys and gateway": (True, True)}
)
SIZES = (100, 90_000)  # bytes


def access(quick: bool) -> Finding:
    """Tries every case of `strangers.CASES`, on the coordinator's own socket and on a gateway's."""
    found: dict[str, Attempt] = {}
    for gateway in (False, True):
        for name in CASES:
            with tempfile.TemporaryDirectory() as folder:
                found[f"{name}{', gateway' * gateway}"] = attempt(name, Path(folder), gateway=gateway)
    crossed = sum(one.came_in + one.went_out for one in found.values())
    trips = round_trips(10 if quick else 100)
    return Finding(
        figure=float(crossed),
        unit="bytes",
        goal=0.0,
        holds=crossed == 0 and all(one.honest for one in found.values()),
        asked="0 bytes of application data either way, in every case; an honest actor is served before and after",
        details={
            "cases": len(found),
            "open": [name for name, one in found.items() if one.came_in or one.went_out or not one.honest],
            "round_trip_microseconds": trips,
            "ratios": {size: {way: us / trips[size]["clear"] for way, us in ways.items()} for size, ways in trips.items()},
        },
    )


def round_trips(turns: int) -> dict[str, dict[str, float]]:
    """Returns median microseconds of a round trip, by payload and by way. Each turn goes through all ways."""
    with ExitStack() as stack:
        sites: dict[str, tuple[Site, Line]] = {}
        for way, (keys, gateway) in WAYS.items():
            folder = stack.enter_context(tempfile.TemporaryDirectory())
            site = Site(Path(folder), gateway=gateway, keys=keys)
            stack.callback(site.close)
            line = site.line("alice")
            if not site.exchange(line):
                raise AssertionError(f"no way through: {way}")
            site.hears = lambda arrival: None
            sites[way] = (site, line)
        taken: dict[str, dict[str, list[float]]] = {str(size): {way: [] for way in sites} for size in SIZES}
        for _ in range(turns):
            for size in SIZES:
                for way, (site, line) in sites.items():
                    taken[str(size)][way] += [_trip(site, line, bytes(size)) for _ in range(20)]
    return {size: {way: statistics.median(us) for way, us in ways.items()} for size, ways in taken.items()}


def _trip(site: Site, line: Line, payload: bytes) -> float:
    """Returns microseconds of a round trip with the payload in both directions."""
    began = time.perf_counter()
    line.send(PING, payload)
    peer = b""
    while not peer:
        site.wire.wait(1.0)
        for arrival in site.wire.drain():
            peer = arrival.peer
    site.wire.send(peer, PING, payload)
    site.wire.wait(0.0)
    while not any(arrival.envelope for arrival in line.drain()):
        line.wait(0.0 if site.gateway else 1.0)
        site.wire.wait(0.0)
    return (time.perf_counter() - began) * 1e6
