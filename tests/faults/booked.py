"""Reads a run's journal after the run, record by record, and says which contributions the run counted.

The one idea: a version is made of the contributions accepted onto the version before, since the last life that had to begin
that round anew. So the journal alone tells whether each contribution was counted exactly once.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import msgpack

from shoal.coordinator.keeping.recording import ACCEPTED
from shoal.coordinator.keeping.replay import Replay
from shoal.protocol.messages import TaskName


@dataclass(frozen=True, slots=True)
class Accepted:
    """A contribution that was accepted. epoch: the life of the coordinator that wrote the record. session: of the actor."""

    epoch: int
    task: TaskName
    attempt: int
    onto: int
    clients: tuple[int, ...]
    session: bytes = b""


@dataclass(frozen=True, slots=True)
class Committed:
    epoch: int
    version: int
    digest: str


def records(folder: Path, after: int = 0) -> Iterator[Accepted | Committed]:
    """Yields the records of the journal in `folder` behind number `after`. Raises RuntimeError if a record is damaged."""

    def damaged(text: str) -> None:
        raise RuntimeError(text)

    replay = Replay(folder, after=after, report=damaged)
    for raw in replay:
        assert replay.tail is not None
        epoch = replay.tail[0].epoch
        kind, *rest = msgpack.unpackb(raw[4 : 4 + int.from_bytes(raw[:4], "little")])
        if kind == ACCEPTED:
            (version, index, attempt, onto, _), clients, _, _, _, _, session, *_ = rest
            yield Accepted(epoch, (version, index), attempt, onto, tuple(clients), session)
        else:
            yield Committed(epoch, rest[0], rest[3])


@dataclass
class Book:
    """Counts of a journal. made: version -> the clients that it is made of, sorted. digests: version -> every digest it was
    committed with. answered: attempts that were accepted. twice: attempts accepted again while the first acceptance still
    counted. lives: epochs that wrote a record.
    """

    made: dict[int, list[int]] = field(default_factory=dict)
    digests: dict[int, set[str]] = field(default_factory=dict)
    answered: set[tuple[TaskName, int]] = field(default_factory=set)
    twice: int = 0
    again: int = 0  # contributions accepted again, because a life without payloads lost those that it had folded
    lives: set[int] = field(default_factory=set)


def read(found: Iterable[Accepted | Committed], payload: bool) -> Book:
    """Returns the book of the records. payload: the journal has payloads, so a new life keeps what the last one had folded."""
    book, epoch = Book(), 0
    pending: dict[int, list[int]] = {}
    counted: set[tuple[TaskName, int]] = set()
    for record in found:
        if record.epoch != epoch and not payload:
            pending.clear()
            counted.clear()
        epoch = record.epoch
        book.lives.add(epoch)
        match record:
            case Accepted(_, task, attempt, onto, clients):
                book.again += len(clients)
                book.twice += (task, attempt) in counted
                counted.add((task, attempt))
                book.answered.add((task, attempt))
                pending.setdefault(onto, []).extend(clients)
            case Committed(_, version, digest):
                book.made[version] = sorted(pending.pop(version - 1, []))
                book.digests.setdefault(version, set()).add(digest)
    book.again -= sum(map(len, (*book.made.values(), *pending.values())))
    return book
