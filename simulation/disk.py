"""The records from which a simulated coordinator starts again: the production's own recording over a pretended disk.

The one idea: the weights are the list of everything that was folded into them. So a restart shows what it has kept, and two
models are the same if, and only if, the same work was counted.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from random import Random
from typing import Any, ClassVar

import msgpack
import numpy as np

from shoal.coordinator.deciding.recovered import Recovered
from shoal.coordinator.keeping.recording import ACCEPTED, Rebuilding, Recording
from shoal.coordinator.keeping.store import Snapshot
from shoal.protocol.layout import Bundle, Bytes, Layout
from shoal.protocol.work import Contribution, Moved, Task
from shoal.simulation.setting import Setting

LAYOUT = Layout.of({"number": ("i8", (1,))})
KEPT = 3  # snapshots that the shelf keeps
RECENT = 4  # versions back to which changes are kept: an actor that holds one of them may be sent changes


@dataclass(frozen=True, slots=True)
class Model:
    """Weights: the weights before, and the clients and products folded in since. digest: of all that makes two models the same.
    layout: of no floats. data: as many bytes as RECENT changes have."""

    digest: int
    before: Model | None = field(default=None, repr=False, compare=False)  # not compared: the digest covers it
    folded: tuple[tuple[tuple[int, ...], int], ...] = ()
    layout: ClassVar[Layout] = LAYOUT
    data: ClassVar[Bytes] = Bundle.zeros(Layout.of({"whole": ("i8", (RECENT * LAYOUT.nbytes // 8,))})).data

    def sha256(self) -> str:
        return f"{self.digest & (2**64 - 1):016x}"

    def chain(self) -> Iterator[Model]:
        """This version and all before it."""
        model: Model | None = self
        while model is not None:
            yield model
            model = model.before

    def products(self) -> Iterator[int]:
        """Numbers of all products that were ever folded in."""
        return (number for model in self.chain() for _, number in model.folded)


@dataclass(frozen=True, slots=True)
class Memory:
    """A task's brief: the products that its clients sent last, in the form of a bundle, of which only the size counts."""

    task: tuple[int, int]
    numbers: tuple[int, ...]
    nbytes: int

    @property
    def layout(self) -> Layout:
        return LAYOUT

    @property
    def data(self) -> Memory:
        return self


@dataclass(frozen=True, slots=True)
class Handout:
    """A brief on its way to the actor that has the task."""

    attempt: int
    memory: Memory


@dataclass(frozen=True, slots=True)
class Delta:
    """The changes from the weights `since` to the weights `model`."""

    since: Model
    model: Model


class Adder:
    """The aggregator. exact: True if models are the same when they are made of the same clients' work, whichever products."""

    linear: ClassVar[bool] = True

    def __init__(self, setting: Setting) -> None:
        self.exact, self.changes, self.rests, self.briefs = setting.exact, setting.changes, setting.rests, setting.brief_nbytes
        self.memory: dict[int, int] = {}  # client -> number of its product that was folded in last
        self.makes = 0  # the version that the next step makes
        self.model = self.shown = Model(1)  # the model of all work that counts, and the model that actors see
        self.folded: list[tuple[tuple[int, ...], int]] = []

    def weights(self) -> Any:
        return self.shown

    def load(self, weights: Any, state: Any) -> None:
        self.model, self.shown = state["model"].item(), weights
        for model in reversed([*self.model.chain()]):
            self.memory.update({client: number for clients, number in model.folded for client in clients})

    def brief(self, task: Task) -> Any:
        if not self.briefs or task.index % 4 == 3:
            return None
        return Memory((task.version, task.index), tuple(self.memory.get(client, 0) for client in task.clients), self.briefs)

    def fold(self, contribution: Contribution) -> None:
        bundle = contribution.work.bundle
        assert bundle is not None
        number = int.from_bytes(bundle.data.data, "little")
        self.folded.append((contribution.task.clients, number))
        self.memory.update(dict.fromkeys(contribution.task.clients, number))

    def step(self) -> Moved:
        told = [client for clients, _ in self.folded for client in clients] if self.exact else [n for _, n in self.folded]
        self.model = Model(hash((self.model.digest, *sorted(told))), self.model, tuple(self.folded))
        self.folded.clear()
        moved = not self.rests or self.model.digest % 3 > 0
        self.shown = self.model if moved else self.shown
        return Moved(weights=moved)

    def change(self) -> Bundle | None:
        """The version's number, which stands for the changes in it; None if this setting has no changes."""
        return Bundle.pack({"number": np.array([self.makes])}, LAYOUT) if self.changes else None

    def state(self) -> dict[str, Any]:
        return {"model": self.model}


class Log:
    """A journal: appended records are durable after `commit`; a crash keeps some first part of the other records."""

    def __init__(self) -> None:
        self.records: list[bytes] = []
        self.before = 0  # records forgotten
        self.durable = 0
        self.epoch = 0

    def append(self, record: Any, *more: Any) -> int:
        self.records.append(b"".join((record, *more)))
        return self.before + len(self.records)

    def commit(self) -> int:
        self.durable = self.before + len(self.records)
        return self.durable

    def rotate(self) -> None:
        return

    def forget(self, upto: int) -> int:
        del self.records[: max(0, upto - self.before)]
        self.before = max(self.before, upto)
        return 0

    def crash(self, rng: Random) -> None:
        unsynced = self.before + len(self.records) - self.durable
        del self.records[self.durable - self.before + rng.randint(0, unsynced) :]
        self.commit()

    def after(self, record: int) -> list[bytes]:
        return self.records[record - self.before :]

    def accepted(self) -> set[tuple[int, int, int]]:
        """The task and attempt of every acceptance in the records that are there."""
        rows = (msgpack.unpackb(raw[4 : 4 + int.from_bytes(raw[:4], "little")]) for raw in self.records)
        return {tuple(row[1][:3]) for row in rows if row[0] == ACCEPTED}


class Shelf:
    """Snapshots, each durable as soon as it is saved."""

    def __init__(self) -> None:
        self.kept: list[Snapshot] = []

    def save(self, snapshot: Snapshot) -> None:
        self.kept = [*self.kept, snapshot][-KEPT:]

    def oldest(self) -> Any:
        return self.kept[0].counters if len(self.kept) == KEPT else None


@dataclass(slots=True)
class Disk:
    """The records that outlive a coordinator. The seam for further durable parts."""

    setting: Setting
    log: Log = field(default_factory=Log)
    shelf: Shelf = field(default_factory=Shelf)

    def recover(self) -> tuple[Recovered, Adder]:
        """The state and aggregator after a restart, as the command line does it: newest snapshot, then the journal after it."""
        found, adder, record = (
            Recovered(),
            Adder(self.setting),
            0,
        )
        if self.shelf.kept:
            snapshot = self.shelf.kept[-1]
            adder.load(snapshot.weights, snapshot.state)
            record = found.begin(snapshot.version, snapshot.counters)
        if self.setting.journal != "off":
            Rebuilding(found, adder, {LAYOUT.digest: LAYOUT}).follow(self.log.after(record))
            found.epoch = max(found.epoch, self.log.epoch)
        found.settle(self.setting.schedule.streams)
        return found, adder

    def recording(self, found: Recovered, adder: Adder, clock: Callable[[], float], report: Callable[[str], None]) -> Recording:
        self.log.epoch = found.epoch + 1
        journal: Any = None if self.setting.journal == "off" else self.log
        shelf: Any = self.shelf
        recording = Recording(
            shelf,
            journal,
            found,
            payload=self.setting.journal == "payload",
            every=self.setting.snapshot_every,
            clock=clock,
            report=report,
            retain=self.setting.bounds.retain,
            share=self.setting.share,
        )
        if journal is None:
            aggregator: Any = adder
            recording.snapshot(adder.weights(), aggregator)
        return recording
