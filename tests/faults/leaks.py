"""Kills processes of every kind again and again, then counts what is left on the machine.

The one idea: the machine counts processes, names of shared memory, descriptors and temporary files. The case compares
these before and after and excuses none.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from random import Random

import psutil

from shoal.benchmarks.case import Finding
from shoal.faults.family import LOOK, Family, Trouble, lives, shared_names
from shoal.jobs.catalog import find

OURS = ("shoal-ipc-*", "shoal-????????")  # temporary folders of runs, now and formerly; those of benchmarks have other names
SHARE = 0.1  # share of kills that hit the coordinator; with more, no life has the 2 s to have dead actors' promises redone
GRACE = 10.0  # seconds that the system has to end a killed process's children


@dataclass
class Leaks:
    """Counts of a case. Every field but `kills` must be 0 at the end."""

    kills: Counter[str] = field(default_factory=Counter)
    orphans: int = 0
    names: int = 0
    descriptors: int = 0
    files: int = 0


def leaks(quick: bool) -> Finding:
    """Kills actors, coordinators, pools, supervisors, the parents of `shoal simulate`, and whole process groups."""
    leaked = Leaks()
    names, files = shared_names(), temporary_files()
    with tempfile.TemporaryDirectory(prefix="shoal-bench-") as folder:
        actors_and_coordinators(Path(folder) / "0", 30 if quick else 950, leaked)
        for number in range(1, 2 if quick else 11):
            whole_families(Path(folder) / str(number), leaked)
            simulations(Path(folder), number, leaked)
        simulate(Path(folder), "last", "rounds=2").wait()  # a start sweeps what a killed run could not
        leaked.names = len(shared_names() - names)
        leaked.files = len(temporary_files() - files)
    left = leaked.orphans + leaked.names + leaked.descriptors + leaked.files
    return Finding(
        figure=float(left),
        unit="orphans, names, descriptors and files left",
        goal=0.0,
        holds=left == 0,
        asked="0 orphans, 0 shared-memory names, 0 leaked descriptors, 0 temporary files after 1,000 kills of every kind",
        details={**vars(leaked), "kills": dict(leaked.kills)},
    )


def actors_and_coordinators(folder: Path, kills: int, leaked: Leaks) -> None:
    """Kills actors and coordinators of one family; its supervisor must end with the descriptors that it began with."""
    words = ["rounds=1000000", "local_epochs=1", "eval_every=0", "snapshot_every=0.5"]
    with Family(find("digits").configured(dict(word.split("=") for word in words)), words, folder, 4) as family:
        trouble = Trouble(family, Random(0), share=SHARE, stops=0.0)
        before, own = family.supervisor.num_fds(), psutil.Process().num_fds()
        while sum(trouble.kills.values()) < kills and family.running(0.15):
            trouble.strike()
        leaked.kills.update(trouble.kills)
        leaked.descriptors += max(0, family.supervisor.num_fds() - before)
        leaked.descriptors += max(0, psutil.Process().num_fds() - own)
    leaked.orphans += orphans(family.seen)


def whole_families(folder: Path, leaked: Leaks) -> None:
    """Kills a supervisor, which must take its coordinator along, and a pool, which must take its actors along."""
    words = ["rounds=1000000", "local_epochs=1", "eval_every=0"]
    with Family(find("digits").configured(dict(word.split("=") for word in words)), words, folder, 2) as family:
        _until(lambda: any(one.verdict == "accepted" for one in family.newest()))
        family.actors()
        family.coordinator()
        for process in (family.supervisor, psutil.Process(family.pool.pid)):
            process.kill()
        family.child.wait()
        leaked.kills.update(("supervisor", "pool"))
        leaked.orphans += orphans(family.seen - {psutil.Process(family.pool.pid)})
    leaked.orphans += orphans(family.seen)


def simulations(folder: Path, number: int, leaked: Leaks) -> None:
    """Kills `shoal simulate`, its parent alone and its whole group, over ipc and with shared memory."""
    for kind in ("parent", "group"):
        for transport in ("ipc", "shm"):
            log = folder / f"{kind}-{transport}-{number}.log"
            child = simulate(folder, f"{kind}-{transport}-{number}", "rounds=1000000", "--transport", transport, log=log)
            _until(lambda log=log: b"joined as actor 1" in log.read_bytes())  # type: ignore[misc]
            parent = psutil.Process(child.pid)
            family = {parent, *parent.children(recursive=True)}
            if kind == "group":
                os.killpg(child.pid, signal.SIGKILL)
            else:
                child.kill()
            child.wait()
            leaked.kills[kind] += 1
            leaked.orphans += orphans(family)


def simulate(folder: Path, name: str, *words: str, log: Path | None = None) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-m", "shoal", "simulate", "digits", "local_epochs=1", "eval_every=0", "--actors", "2"]
    with (log or Path(os.devnull)).open("wb") as said:
        return subprocess.Popen(
            [*command, *words, "--run-dir", str(folder / name)], stdout=said, stderr=said, start_new_session=True
        )


def orphans(family: set[psutil.Process]) -> int:
    """Returns how many of these processes still live after GRACE seconds, and ends those."""
    _, alive = psutil.wait_procs(family, GRACE)
    living = list(filter(lives, alive))
    for one in living:
        with suppress(psutil.NoSuchProcess):
            one.kill()
    return len(living)


def temporary_files() -> set[str]:
    here = Path(tempfile.gettempdir())
    return {str(path) for pattern in OURS for path in here.glob(pattern)}


def _until(holds: Callable[[], bool], limit: float = 60.0) -> None:
    ends_at = time.monotonic() + limit
    wait = threading.Event().wait
    while not holds():
        if time.monotonic() > ends_at:
            raise RuntimeError("a run did not come up in a minute")
        wait(LOOK)
