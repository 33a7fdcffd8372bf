"""Promises: contributions that an earlier life of the coordinator acknowledged and no snapshot holds.

The one idea: a promise is a lease whose work is done. Its actor kept the contribution and offers it again; until then the task
counts as outstanding, so that no other actor gets it, and each acknowledged contribution is counted once more and once only.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from shoal.protocol.messages import TaskName
from shoal.protocol.value import value
from shoal.protocol.work import Task

ANY = -1  # as `onto`: the first version that is not full


@value
class Promise:
    """A contribution that the journal says was accepted. onto: version that it was accepted for, or ANY. digest: SHA-256 of its
    arrays."""

    task: Task
    clients: tuple[int, ...]
    attempt: int
    session: bytes
    made_from: int
    onto: int
    digest: str

    def plain(self) -> list[Any]:
        """Return the promise as plain data for JSON; `of_plain` reads it."""
        task = [self.task.version, self.task.index, list(self.task.clients)]
        whose = [list(self.clients), self.attempt, self.session.hex(), self.made_from, self.onto, self.digest]
        return [*task, *whose, self.task.kind, self.task.words]

    @staticmethod
    def of_plain(row: Sequence[Any]) -> Promise:
        version, index, named, clients, attempt, session, made_from, onto, digest, *told = row
        kind, words = told or ("train", {})  # in version 0.1 only "train" tasks counted
        task = Task(version, index, tuple(named), kind, True, words)
        return Promise(task, tuple(clients), attempt, bytes.fromhex(session), made_from, onto, digest)


class Promises:
    """The promises that stand, of acceptances added in the order they were recorded.

    If a promise was not kept, its task was done again: under its own name, or in parts, whose indices count its clients. The
    later acceptance stands. first: version -> lowest index that none of its tasks has had, so that new tasks get new names.
    """

    def __init__(self, promises: Iterable[Promise] = ()) -> None:
        self.by_name: dict[TaskName, Promise] = {}
        self.first: dict[int, int] = {}
        self._covered: dict[TaskName, Promise] = {}  # by each name that a part of the promise's task may have
        for promise in promises:
            self.add(promise)

    def add(self, promise: Promise) -> None:
        version, index = promise.task.name
        self.drop(promise.task.name, len(promise.clients))
        self.by_name[promise.task.name] = promise
        self._covered.update(dict.fromkeys(_names(promise.task.name, len(promise.clients)), promise))
        self.first[version] = max(self.first.get(version, 0), index + len(promise.clients))

    def drop(self, task: TaskName, clients: int) -> None:
        """Drop every promise that overlaps this task of `clients` clients: the task was done."""
        for name in _names(task, clients):
            if promise := self._covered.get(name):
                del self.by_name[promise.task.name]
                for each in _names(promise.task.name, len(promise.clients)):
                    del self._covered[each]


def _names(task: TaskName, clients: int) -> Iterator[TaskName]:
    return ((task[0], task[1] + at) for at in range(clients))
