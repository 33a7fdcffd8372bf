"""Kills and stops processes of a run at random, its coordinator among them, and looks for contributions lost or counted twice.

The one idea: an unbroken run of the same seed in a plain loop judges the weights, the actors' notes judge which contributions
were acknowledged, and the journal must agree with both.
"""

from __future__ import annotations

import tempfile
import time
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from typing import Any

from shoal.aggregators import Aggregator
from shoal.aggregators.around import Around
from shoal.benchmarks.case import Finding
from shoal.benchmarks.play import shoal
from shoal.coordinator.keeping.recording import recover
from shoal.coordinator.keeping.store import Store
from shoal.faults.booked import Book, read, records
from shoal.faults.family import Family, Trouble
from shoal.jobs.catalog import find
from shoal.jobs.job import Job
from shoal.protocol.work import Moved

ACTORS = 6
WHOLE = "1e12"  # seconds between snapshots, more than a run takes: the journal keeps everything


@dataclass(frozen=True)
class Storm:
    """Trouble for one case. every: seconds between two blows. seconds: of blows in all. rounds: versions of each run. journal:
    the setting of that name.
    """

    every: float
    seconds: float
    rounds: int
    journal: str


@dataclass
class Damage:
    """Sums over all runs of a case. Every field but the first six must be 0."""

    runs: int = 0
    kills: Counter[str] = field(default_factory=Counter)
    halts: int = 0
    lives: int = 0
    acknowledged: int = 0
    again: int = 0
    lost: int = 0  # contributions acknowledged and not in the journal
    miscounted: int = 0  # versions not made of exactly their clients, or contributions accepted twice
    forked: int = 0  # versions with two digests, or with another digest than the unbroken run's
    wrong: int = 0  # runs whose final weights are not the unbroken run's

    @property
    def nothing_lost(self) -> bool:
        return self.runs > 0 and not (self.lost or self.miscounted or self.forked or self.wrong)

    def plain(self) -> dict[str, Any]:
        return {**vars(self), "kills": dict(self.kills)}


def chaos(quick: bool) -> Finding:
    """Measures rounds of digits, with the journals `ids` and `payload`."""
    storms = (
        [Storm(0.5, 8, 250, "ids"), Storm(0.5, 8, 250, "payload")]
        if quick
        else [Storm(2.0, 600, 2_500, "ids"), Storm(0.5, 120, 400, "payload")]
    )
    damage = Damage()
    began = time.monotonic()
    for number, storm in enumerate(storms):
        raged = 0.0
        while raged < storm.seconds:
            raged += weather(storm, 1_000 * number + damage.runs, storm.seconds - raged, damage)
    return _finding(damage, storms, time.monotonic() - began)


def weather(storm: Storm, seed: int, most: float, damage: Damage) -> float:
    """Makes one run to its goal, with at most `most` seconds of blows, then the audit. Returns the seconds of blows."""
    words = [f"rounds={storm.rounds}", "local_epochs=1", "eval_every=0"]
    job = _digits(seed, words)
    with tempfile.TemporaryDirectory(prefix="shoal-bench-") as folder:
        here, plain = Path(folder), Path(folder) / "plain"
        more = [f"journal={storm.journal}", "snapshot_every=0.5"]
        with Family(job, [*words, *more], here / "family", ACTORS) as family:
            trouble = Trouble(family, Random(seed))
            raged = trouble.rage(storm.every, most)
            result = family.finish()
            acknowledged = {(one.task, one.attempt) for one in family.heard() if one.verdict == "accepted"}
            book = read(records(family.kept), storm.journal == "payload")
        whole = ["--actors", "0", "--quiet", "--json", "--seed", str(seed), "--run-dir", str(plain)]
        unbroken = shoal("simulate", "digits", *words, "journal=ids", f"snapshot_every={WHOLE}", *whole)
        _note(damage, trouble, book, acknowledged)
        _compare(damage, book, read(records(plain / "journal"), False), storm.rounds)
        damage.wrong += result["weights_sha256"] != unbroken["weights_sha256"] or result["version"] != storm.rounds
    return raged


def chaos_async(quick: bool) -> Finding:
    """Measures FedBuff with journal=payload: the recorded order of arrival, folded again, must make the same weights."""
    storms = [Storm(0.5, 15, 400, "payload")] if quick else [Storm(2.0, 600, 2_000, "payload"), Storm(0.5, 120, 400, "payload")]
    damage = Damage()
    began = time.monotonic()
    for number, storm in enumerate(storms):
        raged = 0.0
        while raged < storm.seconds:
            raged += stream(storm, 1_000 * number + damage.runs, storm.seconds - raged, damage)
    return _finding(damage, storms, time.monotonic() - began)


def stream(storm: Storm, seed: int, most: float, damage: Damage) -> float:
    """Makes one run as `weather` does, then folds its journal from the first record into a fresh aggregator."""
    words = [f"rounds={storm.rounds}", "local_epochs=1", "eval_every=0", "method=fedbuff"]
    job = _digits(seed, words)
    with tempfile.TemporaryDirectory(prefix="shoal-bench-") as folder:
        here = Path(folder)
        with Family(job, [*words, "journal=payload", f"snapshot_every={WHOLE}"], here / "family", ACTORS) as family:
            trouble = Trouble(family, Random(seed))
            raged = trouble.rage(storm.every, most)
            result = family.finish()
            acknowledged = {(one.task, one.attempt) for one in family.heard() if one.verdict == "accepted"}
            book = read(records(family.kept), payload=True)
        _note(damage, trouble, book, acknowledged)
        damage.miscounted += len(book.answered) - len({task for task, _ in book.answered})  # a draw counted twice
        replayed(job, here / "family", result, book, damage)
    return raged


def replayed(job: Job, family: Path, result: Mapping[str, Any], book: Book, damage: Damage) -> None:
    """Makes every version again from the journal and compares its digest, and the final weights' with the run's own."""
    noting = Noting(job.aggregator("cpu"))
    layouts = {one.digest: one for one in job.layouts(noting.weights().layout)}
    (family / "replayed").mkdir()
    (family / "replayed" / "journal").symlink_to(family / "kept")
    found, replay = recover(family / "replayed", "", Store(family / "replayed"), noting, layouts, _quiet)
    digests = {version: {digest} for version, digest in enumerate(noting.digests, 1)}
    committed = {version: book.digests[version] for version in sorted(book.digests)}
    damage.forked += sum(digests.get(version) != told for version, told in committed.items())
    damage.miscounted += found.counted != len(book.answered) or not replay.last
    last = noting.digests[-1] if noting.digests else ""
    damage.wrong += (last, found.version) != (result["weights_sha256"], result["version"])


class Noting(Around):
    """An aggregator that notes the digest of every version it makes."""

    def __init__(self, inner: Aggregator) -> None:
        super().__init__(inner)
        self.digests: list[str] = []

    def step(self) -> Moved:
        moved = super().step()
        self.digests.append(self.weights().sha256())
        return moved


def _note(damage: Damage, trouble: Trouble, book: Book, acknowledged: set[Any]) -> None:
    damage.runs += 1
    damage.kills.update(trouble.kills)
    damage.halts += trouble.halts
    damage.lives += len(book.lives)
    damage.acknowledged += len(acknowledged)
    damage.again += book.again
    damage.lost += len(acknowledged - book.answered)
    damage.miscounted += book.twice


def _compare(damage: Damage, book: Book, plain: Book, rounds: int) -> None:
    """Compares each version with the unbroken run's."""
    for version in range(1, rounds + 1):
        damage.miscounted += book.made.get(version) != plain.made[version]
        damage.forked += book.digests.get(version) != plain.digests[version]


def _digits(seed: int, words: list[str]) -> Job:
    return find("digits").configured(dict(word.split("=") for word in words), seed)


def _finding(damage: Damage, storms: list[Storm], seconds: float) -> Finding:
    return Finding(
        figure=float(damage.lost + damage.miscounted + damage.forked + damage.wrong),
        unit="things lost, counted twice or different",
        goal=0.0,
        holds=damage.nothing_lost,
        asked="0 acknowledged contributions lost, each counted once, weights and every version's digest as without trouble",
        details={**damage.plain(), "actors": ACTORS, "storms": [vars(one) for one in storms], "wall_s": seconds},
    )


def _quiet(text: str) -> None:
    pass
