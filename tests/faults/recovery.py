"""Time that a run stands still when its coordinator is killed.

The one idea: the clock runs from the kill until an actor hears that the next life has accepted something. So every part
counts: noticing, forking, reading the journal, binding, reconnecting, working, the sync.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from random import Random

from shoal.benchmarks.case import Finding
from shoal.benchmarks.timing import quantile
from shoal.faults.family import LOOK, Family, Heard
from shoal.jobs.catalog import find

ACTORS = 8
CODE = (
    "import shoal.runs.launch; from shoal.jobs.catalog import find; "
    "j = find('digits'); j.prepare(); j.aggregator('cpu'); j.central()"
)


def recovery(quick: bool) -> Finding:
    """Measures rounds of digits whose coordinator is killed again and again."""
    kills = 15 if quick else 100
    loaded = os.getloadavg()[0]
    found = [after for after in recoveries(kills) if after is not None]
    p50, p99 = quantile(found, 0.5), quantile(found, 0.99)
    imports = _imports()
    return Finding(
        figure=p50,
        unit="s from the kill to the first accepted contribution (p50)",
        goal=0.5,
        holds=len(found) == kills and p50 <= 0.5 and p99 <= 2.0 + imports,
        asked="p50 at most 0.5 s, p99 at most 2 s plus the import time, with 8 actors",
        details={
            "kills": kills,
            "came_back": len(found),
            "p99_s": p99,
            "max_s": max(found),
            "import_s": imports,
            "load": loaded,
        },
    )


def recoveries(kills: int, seed: int = 0) -> list[float | None]:
    """Returns seconds for each kill; None if nothing was accepted after the kill."""
    rng = Random(seed)
    words = ["rounds=1000000", "local_epochs=1", "eval_every=0", "snapshot_every=0.5"]
    struck: list[tuple[float, int]] = []
    with tempfile.TemporaryDirectory(prefix="shoal-bench-") as folder:
        job = find("digits").configured(dict(word.split("=") for word in words), seed)
        with Family(job, words, Path(folder) / "family", ACTORS) as family:
            for _ in range(kills):
                epoch = _moving(family, struck[-1][1] if struck else 0)
                family.running(rng.uniform(0.2, 1.0))
                if (coordinator := family.coordinator()) is not None:
                    struck.append((time.monotonic(), epoch))
                    coordinator.kill()
            _moving(family, struck[-1][1])
            heard = list(family.heard())
    return [_after(heard, *one) for one in struck]


def _moving(family: Family, epoch: int) -> int:
    """Returns the epoch of the first life after `epoch` that accepts something. Raises RuntimeError after 60 s."""
    ends_at = time.monotonic() + 60
    while family.running(LOOK) and time.monotonic() < ends_at:
        family.actors()
        newest = max((one.epoch for one in family.newest() if one.verdict == "accepted"), default=0)
        if newest > epoch:
            return newest
    raise RuntimeError(f"nothing is accepted after epoch {epoch}:\n{family.said()[-2_000:]}")


def _after(heard: list[Heard], killed_at: float, epoch: int) -> float | None:
    times = [one.at for one in heard if one.verdict == "accepted" and one.epoch > epoch]
    return min(times) - killed_at if times else None


def _imports() -> float:
    """Returns seconds in which a fresh interpreter imports what a coordinator needs. A restart forks and needs none of them."""
    began = time.perf_counter()
    subprocess.run([sys.executable, "-c", CODE], check=True)
    whole = time.perf_counter()
    subprocess.run([sys.executable, "-c", ""], check=True)
    return (whole - began) - (time.perf_counter() - whole)
