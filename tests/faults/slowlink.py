"""A large contribution over a link that is slow, long and loses packets, and whose connections are cut in the middle of it.

The one idea: processes see a real link (netem.py), with keys and a gateway as between machines. The case reads what the
coordinator says of its actor, as a user would, and counts on the link what crosses twice.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from shoal.benchmarks.case import Finding
from shoal.faults.netem import Network, Weather, missing, network
from shoal.faults.uploading import FLOATS
from shoal.protocol.fetching import LEAST
from shoal.protocol.keys import KeyFolder

LINK = Weather(delay=0.15, loss=0.05, rate=125_000)  # each way: 300 ms there and back, 1 Mbit/s
STARTING = 20.0  # seconds that an actor may take to join
PATIENCE = 10  # multiple of the least time, after which a crossing is given up
CONTROLS = ("cubic", "bbr")  # TCP's congestion control: Linux's default, and one that does not take loss for a jam
WRAPPING = 0.005  # largest share of the bytes for headers and encryption around pieces
LOST = re.compile(r"^.*(?:silent for|lost its connection|came back over|go to others).*$", re.MULTILINE)
ASKED = "20 MB over 1 Mbit/s, 5 % loss, 300 ms: arrives, no false disconnect, a cut re-sends at most one chunk"


@dataclass(slots=True)
class Crossing:
    """Observations of one crossing. seconds: None if it did not end in time. before, after: the coordinator's output until the
    connections were cut, and from then on. crossed: bytes that arrived on the connections for arrays.
    """

    seconds: float | None = None
    before: str = ""
    after: str = ""
    cut_at: int = 0
    crossed: int = 0


def slowlink(quick: bool) -> Finding:
    """Measures from the actor's start to the end of the run, with each of CONTROLS; the figure is the first one's."""
    if why := missing():
        return Finding(None, "s", asked=ASKED, details={"skipped": why})
    name = "small" if quick else "large"
    nbytes = 4 * FLOATS[name]
    least = nbytes / LINK.rate
    had = Path("/proc/sys/net/ipv4/tcp_available_congestion_control").read_text().split()
    seen = {control: crossed(name, nbytes, STARTING + PATIENCE * least, control) for control in CONTROLS if control in had}
    told = {control: _told(one, nbytes) for control, one in seen.items()}
    seconds = next(iter(seen.values())).seconds
    return Finding(
        figure=seconds,
        unit=f"s for {nbytes / 1e6:g} MB",
        floor=least,
        ratio=None if seconds is None else seconds / least,
        holds=not quick and all(_holds(one) for one in told.values()),
        asked=ASKED,
        details=told,
    )


def _told(seen: Crossing, nbytes: int) -> dict[str, Any]:
    return {
        "seconds": seen.seconds,
        "arrived": seen.seconds is not None and seen.crossed >= nbytes,
        "false_disconnects": len(LOST.findall(seen.before)) + len(re.findall("go to others", seen.after)),
        "cut_at_bytes": seen.cut_at,
        "came_back": "is back over another connection" in seen.after,
        "bytes_again": max(0, seen.crossed - int((1 + WRAPPING) * nbytes)),
        "chunk": LEAST,
    }


def _holds(told: Mapping[str, Any]) -> bool:
    came = told["arrived"] and told["came_back"] and told["cut_at_bytes"] > 0
    return bool(came and not told["false_disconnects"] and told["bytes_again"] <= told["chunk"])


def crossed(name: str, nbytes: int, limit: float, control: str) -> Crossing:
    """Sends one contribution of `nbytes` and cuts the connections when 0.4 of it have arrived. control: of the actor's TCP."""
    place = f"{Path(__file__).with_name('uploading.py')}:{name}"
    with tempfile.TemporaryDirectory(prefix="shoal-bench-") as folder, ExitStack() as stack:
        keys = KeyFolder(Path(folder) / "keys")
        hub, far = keys.new("hub"), keys.new("far")
        keys.allow(far.public)
        link = stack.enter_context(network(LINK, seed=0))
        link.control(control)
        log, environment = Path(folder) / "log", {**os.environ, "SHOAL_KEYS": str(keys.path)}

        def start(into: Sequence[str], words: Sequence[str]) -> subprocess.Popen[bytes]:
            with log.open("ab") as said:
                command = [*into, sys.executable, "-m", "shoal", *words]
                child = subprocess.Popen(command, cwd=folder, env=environment, stdout=said, stderr=said)
            stack.callback(child.wait)
            stack.callback(child.kill)
            return child

        run = start([], ["coordinator", place, "--bind", f"tcp://{link.near}:*", "--key", "hub", "--run-dir", "run"])
        address = _listening(run, log)
        began = time.monotonic()
        start(link.into, ["actor", address, "--key", "far", "--server", hub.public, "--job", place])
        seen = Crossing()
        while seen.seconds is None and time.monotonic() - began < limit:
            try:
                code = run.wait(0.5)
            except subprocess.TimeoutExpired:
                if not seen.cut_at and (arrived := _of_arrays(link)) > 0.4 * nbytes:
                    seen.cut_at, seen.before = arrived, log.read_text(errors="replace")
                    link.cut()
                continue
            if code:
                break
            seen.seconds = time.monotonic() - began
        seen.crossed = _of_arrays(link)
        seen.after = log.read_text(errors="replace")[len(seen.before) :]
        return seen


def _of_arrays(link: Network) -> int:
    """Returns bytes that arrived on the connections for arrays: between two cuts, the connection with the most bytes."""
    most: dict[int, int] = {}
    for cuts, nbytes in link.arrived():
        most[cuts] = max(nbytes, most.get(cuts, 0))
    return sum(most.values())


def _listening(run: subprocess.Popen[bytes], log: Path) -> str:
    ends_at = time.monotonic() + 60
    while time.monotonic() < ends_at:
        if found := re.search(r"listening on (\S+);", log.read_text(errors="replace")):
            return found[1]
        try:
            run.wait(0.05)
        except subprocess.TimeoutExpired:
            continue
        break
    raise RuntimeError(f"the coordinator did not start:\n{log.read_text(errors='replace')}")
