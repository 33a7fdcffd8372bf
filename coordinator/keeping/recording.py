"""The records of a run on disk: accepted contributions and committed versions, in the order in which they happened.

The one idea: an acknowledgement leaves only after its record is durable, and a restart is a replay of the records. With
payloads in the journal the replay makes the same bits again, synchronous or not. Without payloads, a contribution accepted
since the last snapshot is a promise that its actor still has it, and a version that is made again must have the digest that
was recorded for it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import msgpack
import numpy as np

from shoal.aggregators import Aggregator
from shoal.coordinator.deciding.events import Fold, Step
from shoal.coordinator.deciding.promises import Promise, Promises
from shoal.coordinator.deciding.recovered import Recovered
from shoal.coordinator.keeping.disk import DiskTrouble, SyncFailed, trouble
from shoal.coordinator.keeping.journal import Journal
from shoal.coordinator.keeping.replay import Replay
from shoal.coordinator.keeping.store import Snapshot, Store
from shoal.protocol.layout import Bundle, Layout
from shoal.protocol.work import Contribution, Task, Work

ACCEPTED, COMMITTED = "accepted", "committed"
SHARE = 0.02  # part of the time that may go to snapshots beside those that are due


class Recording:
    """The learner's book: `accept` and `sync` before a fold is acknowledged, `commit` and `sync` before a version is published.

    journal: None writes snapshots only. payload: True records the arrays of contributions too. every: seconds between
    snapshots, at most. retain: bytes that an actor keeps for the coordinator; 0: none. If retain is not 0, a snapshot is also
    made when the last snapshot took less than `share` of the time since, and when half of these bytes may be in use.
    versions: before the run's end, only versions that are a multiple of this have snapshots.

    promises: promises of earlier lives that stand. kept: version of the newest snapshot, -1 if there is none. stepped: the step
    that made the current version. record: number of the last record that this version covers: that of its commit, or `past`
    (the last of an earlier life) if this life has made it without a journal.
    """

    def __init__(
        self,
        store: Store,
        journal: Journal | None,
        found: Recovered,
        *,
        payload: bool,
        every: float,
        clock: Callable[[], float],
        report: Callable[[str], None],
        retain: int = 0,
        share: float = SHARE,
        versions: int = 1,
    ) -> None:
        self.store, self.journal, self.payload = store, journal, payload
        self.every, self.clock, self.report = every, clock, report
        self.retain, self.share, self.versions = retain, share, versions
        self.epoch, self.made, self.promises = found.epoch + 1, found.made, Promises(found.promises)
        self.stepped, self.record, self.past = found.stepped, found.record, found.past
        self.figures = found.figures
        self.kept, self.kept_at = found.kept, clock() if found.kept >= 0 else -1e9
        self._cost = 0.0  # seconds that the last snapshot took
        self._with_actors = 0  # bytes accepted since the last snapshot

    def accept(self, fold: Fold, bundle: Bundle) -> None:
        """Record an accepted contribution. The next `sync` makes the record durable; the bundle must not change until then."""
        if self.journal is None:
            return
        message = fold.message
        name = [fold.task.version, fold.task.index, message.attempt, fold.onto, message.made_from]
        about = [ACCEPTED, name, list(fold.clients), message.weight, message.summed, bundle.layout.digest]
        whose = [fold.session, message.digest, bundle.layout.nbytes, bool(fold.task.clients)]
        head = msgpack.packb([*about, message.steps, *whose, fold.task.kind, fold.task.words])
        self._with_actors += bundle.layout.nbytes
        if self.promises.by_name:
            self.promises.drop(fold.task.name, len(fold.clients))
        frame = len(head).to_bytes(4, "little") + head
        if self.payload:
            self.journal.append(frame, bundle.data.data)
        else:
            self.journal.append(frame)

    def commit(self, step: Step, weights: Bundle, figures: Mapping[str, Any] | None = None) -> None:
        """Record that everything accepted so far made this version. The next `sync` makes the record durable. figures: of
        episodes, for a snapshot of this version."""
        self.stepped, self.record, self.figures = step, self.past, figures or {}
        if self.journal is None:
            return
        digest = weights.sha256()
        if self.made.get(step.version, digest) != digest:
            self.report(f"version {step.version}, made again, differs from the published version: its digest is {digest[:16]}")
        head = msgpack.packb([COMMITTED, step.version, step.steps, step.drawn, digest])
        self.record = self.journal.append(len(head).to_bytes(4, "little") + head)

    def keep(self, step: Step, weights: Bundle, aggregator: Aggregator) -> bool:
        """Make a snapshot, if one is due. Returns whether a snapshot of this version exists now.

        Raises DiskTrouble if the run must not go on without it: after it actors leave, or would drop what they keep. The caller
        tries again.
        """
        since = self.clock() - self.kept_at
        cheap = self.retain and (self._cost < self.share * since or 2 * self._with_actors >= self.retain)
        if step.last or (step.version % self.versions == 0 and (since >= self.every or cheap)):
            self.snapshot(weights, aggregator, needed=step.last or 0 < self.retain <= self._with_actors)
        return self.kept == step.version

    def sync(self) -> None:
        """Make everything recorded durable. Raises DiskTrouble, after which the caller tries again, or SyncFailed."""
        if self.journal is not None:
            self.journal.commit()

    def snapshot(self, weights: Bundle, aggregator: Aggregator, needed: bool = False) -> None:
        """Make a snapshot of the current version. If the disk does not take the snapshot, DiskTrouble is raised if the snapshot
        is needed; else that is reported, and the run goes on. Contributions folded in since `commit` are in no weights yet: the
        snapshot does not cover their records."""
        step = self.stepped
        with trouble("keep the clients' states"):
            state = aggregator.state()
        counters: dict[str, Any] = {"steps": step.steps, "drawn": step.drawn, "epoch": self.epoch, "record": self.record}
        if self.figures:
            counters["figures"] = self.figures
        if self.promises.by_name:  # this snapshot covers the records of these promises
            made = {str(version): digest for version, digest in self.made.items() if version > step.version}
            counters |= {"made": made, "promises": [promise.plain() for promise in self.promises.by_name.values()]}
        own = {name: np.asarray(value) for name, value in state.items()}
        began, saved = self.clock(), False
        try:
            self.store.save(Snapshot(step.version, weights, own, counters))
            self.kept, self._with_actors, saved = step.version, 0, True
            self._forget(aggregator)
            self._cost = self.clock() - began
        except SyncFailed:
            raise
        except DiskTrouble as full:  # tried again when the next snapshot is due
            if needed and not saved:
                raise
            what = "the snapshot is made, but the journal before it stays" if saved else "no snapshot is made"
            self.report(f"version {step.version}: {what}: {full}")
        self.kept_at = self.clock()

    def _forget(self, aggregator: Aggregator) -> None:
        """Drop journal segments that every kept snapshot covers, and files of the aggregator's that none of them needs."""
        if hasattr(aggregator, "forget") and self.store.oldest() is not None:
            aggregator.forget(min(sorted(self.store.kept)[-self.store.keep :]))
        if self.journal is not None:
            self.journal.rotate()
            if (oldest := self.store.oldest()) is not None:
                self.journal.forget(int(oldest["record"]))

    def close(self) -> None:
        if self.journal is not None:
            self.journal.close()


def recover(
    folder: Path, run: str, store: Store, aggregator: Aggregator, layouts: Mapping[str, Layout], report: Callable[[str], None]
) -> tuple[Recovered, Replay]:
    """Load the newest whole snapshot and replay the journal after it. Raises UserError if snapshot and journal do not fit."""
    found = Recovered()
    if (snapshot := store.newest(report)) is not None:
        aggregator.load(snapshot.weights, snapshot.state)
        found.begin(snapshot.version, snapshot.counters)
    replay = Replay(folder / "journal", run, found.record, report=report)
    Rebuilding(found, aggregator, layouts).follow(replay)
    found.epoch, found.past = max(found.epoch, replay.epoch), max(replay.last, replay.after)
    return found, replay


class Rebuilding:
    """A replay into the aggregator: folds and steps again as far as records hold payloads. Later records are only noted."""

    def __init__(self, found: Recovered, aggregator: Aggregator, layouts: Mapping[str, Layout]) -> None:
        self.found, self.aggregator, self.layouts = found, aggregator, layouts
        self.promises = Promises(found.promises)
        self.whole = True

    def follow(self, records: Iterable[bytes]) -> None:
        for number, raw in enumerate(records, self.found.record + 1):
            length = int.from_bytes(raw[:4], "little")
            match msgpack.unpackb(raw[4 : 4 + length]):
                case [kind, *rest] if kind == ACCEPTED:
                    self._accepted(rest, raw[4 + length :])
                case [kind, version, steps, drawn, digest] if kind == COMMITTED:
                    self._committed(Step(version, steps, drawn), digest, number)
        self.found.promises, self.found.first = list(self.promises.by_name.values()), self.promises.first

    def _accepted(self, row: list[Any], payload: bytes) -> None:
        name, clients, weight, summed, digest, steps, session, seal, _, named, *told = row
        version, index, attempt, onto, made_from = name
        kind, words = told or ("train", {})  # version 0.1 had no other tasks that count
        task = Task(version, index, tuple(clients), kind, True, words)
        if not payload or onto != self.found.version or digest not in self.layouts:
            self.whole = False
        if not self.whole and not payload and seal:
            promised = task if named else replace(task, clients=())
            self.promises.add(Promise(promised, task.clients, attempt, session, made_from, onto, seal))
            self.found.drawn = max(self.found.drawn, index + 1)
        if not self.whole:
            return
        work = Work(Bundle.of_buffer(self.layouts[digest], payload), weight, steps=steps)
        self.aggregator.fold(Contribution(task, made_from, onto - made_from, work, summed))
        self.found.done.setdefault(onto, set()).update(clients)
        self.found.folded += len(clients)
        self.found.steps += steps
        self.found.drawn = max(self.found.drawn, index + 1)  # a stream must not draw it again
        self.found.counted += 1

    def _committed(self, step: Step, digest: str, number: int) -> None:
        found, version = self.found, step.version
        found.made[version], found.newest = digest, max(found.newest, version)
        if not self.whole or version != found.version + 1 or not found.folded:
            self.whole = False
            return
        self.aggregator.step()
        found.version, found.steps, found.drawn = version, step.steps, step.drawn
        found.stepped, found.record = step, number
        found.done.clear()
        found.folded = 0
