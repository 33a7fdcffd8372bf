"""Batches made ahead: `shoal.Loader` beside torch's DataLoader, and what both do when a worker is killed.

The one idea: a turn begins with all batches that were made while others had theirs, which are not counted; from then on a batch
is taken when it is made.
"""

from __future__ import annotations

import hashlib
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, suppress
from functools import partial
from typing import Any

import numpy as np
import psutil

from shoal.benchmarks.case import Finding
from shoal.benchmarks.timing import interleaved
from shoal.tasks.loader import Loader

GOAL = 0.95  # least rate, of DataLoader's
WORKERS, BATCH, EXAMPLES = 2, 32, 1_797  # as many examples as the digits, of as many numbers
TAKES = 0.002  # seconds of CPU of a transform
FACTORS = (2, 4)  # DataLoader's prefetch_factor, of which the best counts
SETTLED, LOOK = 0.02, 0.4  # a loader has made its batches ahead when all processes used less CPU, in seconds, between two looks
KILLED_AT, KILLS_OF = (5, 15, 25), 40  # batches after which a worker is killed; batches


def loader(quick: bool) -> Finding:
    """Measures batches/s of examples that take 2 ms each; and the batches that come when workers are killed."""
    repeats, many = (3, 8) if quick else (15, 16)
    rates = _rates(_spin, repeats, many)
    bare = _rates(None, 3 if quick else 7, 200)
    theirs, plain = (max(found[f"torch_{factor}"] for factor in FACTORS) for found in (rates, bare))
    lost, torchs = _lost(_ours(_spin)), _lost(_torchs(_spin, FACTORS[0]))
    ratio = rates["shoal"] / theirs
    return Finding(
        figure=rates["shoal"],
        unit=f"batches/s of {BATCH} digits with a transform of {TAKES * 1000:g} ms, {WORKERS} workers",
        goal=GOAL * theirs,
        peer=theirs,
        ratio=ratio,
        holds=ratio >= GOAL and lost == 0,
        asked=f"at least {GOAL:g} of torch's DataLoader(num_workers={WORKERS}) at its best prefetch_factor; no batch lost when "
        "workers are killed",
        details={
            **{f"{name}_batches_s": rate for name, rate in rates.items()},
            "no_transform_shoal_batches_s": bare["shoal"],
            "no_transform_torch_batches_s": plain,
            "cpu_ms_a_batch": _cpu(_ours(_spin), many * 3),
            "cpu_ms_a_batch_torch": _cpu(_torchs(_spin, FACTORS[-1]), many * 3),
            "kills": len(KILLED_AT),
            "batches_lost": lost,
            "batches_lost_torch": torchs,
        },
    )


def _spin(example: Any, rng: object = None) -> Any:
    began = time.thread_time()
    while time.thread_time() - began < TAKES:
        pass
    return example


def _arrays() -> tuple[Any, Any]:
    return np.random.default_rng(0).normal(size=(EXAMPLES, 64)).astype(np.float32), np.arange(EXAMPLES)


def _with_rng(transform: Callable[..., Any], example: Any, rng: object) -> Any:
    return transform(example, rng)


def _ours(transform: Callable[..., Any] | None) -> Iterator[Any]:
    given = None if transform is None else partial(_with_rng, transform)
    yield from (
        batch for _, batch in Loader(_arrays(), given, batch_size=BATCH, actors=WORKERS, epochs=1_000_000, drop_last=True)
    )


def _torchs(transform: Callable[..., Any] | None, factor: int) -> Iterator[Any]:
    from torch.utils.data import DataLoader, Dataset

    class Digits(Dataset[Any]):
        def __init__(self) -> None:
            self.rows, self.labels = _arrays()

        def __len__(self) -> int:
            return EXAMPLES

        def __getitem__(self, number: int) -> Any:
            example = self.rows[number], self.labels[number]
            return transform(example) if transform else example

    made: Any = DataLoader(
        Digits(),
        batch_size=BATCH,
        shuffle=True,
        drop_last=True,
        num_workers=WORKERS,
        persistent_workers=True,
        prefetch_factor=factor,
    )
    while True:
        yield from made


def _rates(transform: Callable[..., Any] | None, repeats: int, many: int) -> dict[str, float]:
    """Batches/s of each loader, by turns."""
    with ExitStack() as stack:
        loaders = {"shoal": _ours(transform), **{f"torch_{factor}": _torchs(transform, factor) for factor in FACTORS}}
        for its in loaders.values():
            stack.callback(its.close)  # type: ignore[attr-defined]
        found = interleaved(repeats, *(partial(_rate, its, many) for its in loaders.values()))
    return dict(zip(loaders, found, strict=True))


def _rate(its: Iterator[Any], many: int) -> float:
    for _ in range(2 * WORKERS * max(FACTORS)):
        next(its)
    began = time.perf_counter()
    for _ in range(many):
        next(its)
    rate = many / (time.perf_counter() - began)
    used = -1.0
    while (now := _used()) - used > SETTLED:
        used = now
        threading.Event().wait(LOOK)
    return rate


def _cpu(its: Iterator[Any], many: int) -> float:
    """Milliseconds of CPU of all processes together for a batch."""
    for _ in range(2 * WORKERS * max(FACTORS)):
        next(its)
    before = _used()
    for _ in range(many):
        next(its)
    used = _used() - before
    its.close()  # type: ignore[attr-defined]
    return 1_000 * used / many


def _used() -> float:
    own = psutil.Process()
    return sum(sum(one.cpu_times()[:2]) for one in [own, *own.children(recursive=True)])


def _lost(its: Iterator[Any]) -> int:
    """Batches of KILLS_OF that do not come, or come twice, when a worker is killed after each of KILLED_AT."""
    seen: set[str] = set()
    with suppress(RuntimeError):  # DataLoader's
        for number in range(KILLS_OF):
            seen.add(hashlib.sha256(np.asarray(next(its)[1]).tobytes()).hexdigest())
            if number in KILLED_AT:
                own = psutil.Process()
                workers = [one for one in own.children(recursive=True) if not one.children()]
                os.kill(max(workers, key=lambda one: one.cpu_times()[0]).pid, signal.SIGKILL)
    with suppress(RuntimeError):
        its.close()  # type: ignore[attr-defined]
    return KILLS_OF - len(seen)
