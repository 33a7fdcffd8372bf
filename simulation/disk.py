"""What a simulated coordinator writes down and starts again from: the production's own recording over a pretended disk.

The one idea: the weights are the list of everything that was folded into them. So a restart can be asked what it has kept,
and two models are the same if, and only if, the same work was counted.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from random import Random
from typing import Any, ClassVar

import msgpack
import numpy as np

from shoal.coordinator.keeping.recording import ACCEPTED, Rebuilding, Recording, Recovered
from shoal.coordinator.keeping.store import Snapshot
from shoal.protocol.layout import Bundle, Bytes, Layout
from shoal.protocol.work import Contribution, Moved, Task
from shoal.simulation.setting import Setting

LAYOUT = Layout.of({"number": ("i8", (1,))})
KEPT = 3  # snapshots
RECENT = 4  # versions that an actor may hold and be told what changed since


@dataclass(frozen=True, slots=True)
class Model:
    """Weights: those before, and the clients and products folded in since. digest: of all that makes two models the same.
    data: as many bytes as RECENT changes have."""

    digest: int
    before: Model | None = field(default=None, repr=False, compare=False)  # the digest tells of it
    folded: tuple[tuple[tuple[int, ...], int], ...] = ()
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
        """Numbers of all that was ever folded in."""
        return (number for model in self.chain() for _, number in model.folded)


@dataclass(frozen=True, slots=True)
class Memory:
    """A task's own arrays: what its clients sent last. It looks like a bundle, of which only the size counts."""

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
    """A brief on its way to who has the task."""

    attempt: int
    memory: Memory


@dataclass(frozen=True, slots=True)
class Delta:
    """What changed since other weights."""

    since: Model
    model: Model


class Adder:
    """The aggregator. exact: what is equal in every life of a coordinator is whose work it was, not which product."""

    linear: ClassVar[bool] = True

    def __init__(self, setting: Setting) -> None:
        self.exact, self.changes, self.rests, self.briefs = setting.exact, setting.changes, setting.rests, setting.brief_nbytes
        self.memory: dict[int, int] = {}  # client -> the product that was folded in of it last
        self.makes = 0  # the version that the next step makes
        self.model = self.shown = Model(1)  # what is counted, and what actors see of it
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
        """Stands for what changed in a version by its number."""
        return Bundle.pack({"number": np.array([self.makes])}, LAYOUT) if self.changes else None

    def state(self) -> dict[str, Any]:
        return {"model": self.model}


class Log:
    """A journal: what is appended is durable after `commit`; a crash keeps some first part of the rest."""

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
        """Task and attempt of every acceptance that can be read."""
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
    """What outlives a coordinator. The seam for whatever else will."""

    setting: Setting
    log: Log = field(default_factory=Log)
    shelf: Shelf = field(default_factory=Shelf)

    def recover(self) -> tuple[Recovered, Adder]:
        """As the command line does it: the newest snapshot, then what the journal says came after it."""
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
        self.log.epoch = epoch = found.epoch + 1
        journal: Any = None if self.setting.journal == "off" else self.log
        shelf: Any = self.shelf
        recording = Recording(
            shelf,
            journal,
            payload=self.setting.journal == "payload",
            every=self.setting.snapshot_every,
            clock=clock,
            report=report,
            epoch=epoch,
            made=found.made,
            retain=self.setting.rules.retain,
            share=self.setting.share,
            promises=found.promises,
            kept=found.kept,
            stepped=found.stepped,
            record=found.record,
        )
        if journal is None:
            aggregator: Any = adder
            recording.snapshot(adder.weights(), aggregator)
        return recording
