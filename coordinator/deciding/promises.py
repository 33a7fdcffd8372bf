"""What an earlier life of the coordinator acknowledged and no snapshot holds: whose it is, and where it was to go.

The one idea: a promise is a lease whose work is done. Its actor kept what it made and offers it again; until then it counts as
work that is out, so that nobody else is asked for it, and what was acknowledged is counted once more and once only.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from shoal.protocol.messages import TaskName
from shoal.protocol.work import Task

ANY = -1  # onto: whichever version is not full


@dataclass(frozen=True, slots=True)
class Promise:
    """One acceptance, as the journal has it. onto: the version that it was accepted for, or ANY. digest: of its arrays."""

    task: Task
    clients: tuple[int, ...]
    attempt: int
    session: bytes
    made_from: int
    onto: int
    digest: str

    @property
    def name(self) -> TaskName:
        return (self.task.version, self.task.index)

    def plain(self) -> list[Any]:
        """For JSON."""
        task = [self.task.version, self.task.index, list(self.task.clients)]
        whose = [list(self.clients), self.attempt, self.session.hex(), self.made_from, self.onto, self.digest]
        return [*task, *whose, self.task.kind, self.task.words]

    @staticmethod
    def of_plain(row: Sequence[Any]) -> Promise:
        version, index, named, clients, attempt, session, made_from, onto, digest, *told = row
        kind, words = told or ("train", {})  # version 0.1 knew nothing else that counts
        task = Task(version, index, tuple(named), kind, True, words)
        return Promise(task, tuple(clients), attempt, bytes.fromhex(session), made_from, onto, digest)


@dataclass(slots=True)
class Promises:
    """Those that stand, of acceptances in the order they were recorded.

    Where one was not kept, its task was done again: under its own name, or in parts, whose indices count its clients. What
    came later stands. first: version -> the lowest index that no task of it has had, so that new ones get names of their own.
    """

    by_name: dict[TaskName, Promise] = field(default_factory=dict)
    first: dict[int, int] = field(default_factory=dict)
    _covered: dict[TaskName, Promise] = field(default_factory=dict)  # by each name that a part of its task may have

    @staticmethod
    def of(promises: Iterable[Promise]) -> Promises:
        stand = Promises()
        for promise in promises:
            stand.add(promise)
        return stand

    def add(self, promise: Promise) -> None:
        version, index = promise.name
        self.drop(promise.name, len(promise.clients))
        self.by_name[promise.name] = promise
        self._covered.update(dict.fromkeys(_names(promise.name, len(promise.clients)), promise))
        self.first[version] = max(self.first.get(version, 0), index + len(promise.clients))

    def drop(self, task: TaskName, clients: int) -> None:
        """A task of so many clients was done: none that it is of, or is part of, stands any more."""
        for name in _names(task, clients):
            if promise := self._covered.get(name):
                del self.by_name[promise.name]
                for each in _names(promise.name, len(promise.clients)):
                    del self._covered[each]


def _names(task: TaskName, clients: int) -> Iterator[TaskName]:
    return ((task[0], task[1] + at) for at in range(clients))
