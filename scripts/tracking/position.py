"""The position of a follower in a history, and the rows of the history that are new.

The one idea: a position is checked before it is used. A resumed run takes rows out of metrics.jsonl, and a stopped run writes
its last row again with its evaluation, so a follower compares the line that it told last with the bytes that stand there now.
If they differ, it finds the newest row that it has told and that is still there. This module is pure.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

KEPT = 512  # newest rows told whose digests a position keeps
CHUNK = 1 << 22  # bytes read at a time

Read = Callable[[int, int], bytes]
"""(offset, most bytes) -> the bytes of metrics.jsonl from there, at most so many."""


@dataclass(frozen=True, slots=True)
class Line:
    """A whole line of metrics.jsonl. begin, end: its place in the file, in bytes. digest: of its bytes."""

    begin: int
    end: int
    digest: str
    row: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Position:
    """A position in a history: its rows up to there were told. begin, end: place of the last line told, in bytes; 0, 0 before
    the first. told: (version, digest) of the newest KEPT rows told, oldest first."""

    begin: int = 0
    end: int = 0
    told: tuple[tuple[int, str], ...] = ()

    def after(self, lines: Iterable[Line]) -> Position:
        """The position after these lines have been told, too."""
        found = list(lines)
        if not found:
            return self
        told = (*self.told, *((line.row["version"], line.digest) for line in found))[-KEPT:]
        return Position(found[-1].begin, found[-1].end, told)

    def plain(self) -> dict[str, Any]:
        return {"begin": self.begin, "end": self.end, "told": [list(pair) for pair in self.told]}

    @classmethod
    def of(cls, plain: Mapping[str, Any]) -> Position:
        """The position that `plain` gave. Raises KeyError, TypeError or ValueError for anything else."""
        told = tuple((int(version), str(digest)) for version, digest in plain["told"])
        begin, end = int(plain["begin"]), int(plain["end"])
        if not 0 <= begin <= end or (end > 0) != bool(told):
            raise ValueError(f"begin {begin}, end {end}")
        return cls(begin, end, told)


@dataclass(frozen=True, slots=True)
class News:
    """position: where the follower stands: where it stood, or before rows that were made again. lines: those after it. note:
    one line for the user, "" if the history only grew. more: True if more lines may be read at once."""

    position: Position
    lines: Sequence[Line]
    note: str = ""
    more: bool = False


def news(read: Read, position: Position, chunk: int = CHUNK) -> News:
    """The rows of a history after a position. A last line without its end is left for later; a line in the middle that is no
    row (the half of one, from a run that was killed) is left out."""
    last = position.end - position.begin
    data = read(position.begin, last + chunk)
    if position.told and _digest(data[:last]) != position.told[-1][1]:
        return _again(read, position)
    while len(data) == last + chunk and b"\n" not in data[last:]:  # a row longer than a chunk
        chunk *= 2
        data = read(position.begin, last + chunk)
    return News(position, _lines(data[last:], position.end), more=len(data) == last + chunk)


def _again(read: Read, position: Position) -> News:
    """The news of a history whose told part is not what it was."""
    whole, size = b"", CHUNK
    while len(whole := read(0, size)) == size:
        size *= 2
    lines, place = _lines(whole, 0), {pair: at for at, pair in enumerate(position.told)}
    for at in range(len(lines) - 1, -1, -1):
        known = place.get((lines[at].row["version"], lines[at].digest))
        if known is not None:
            line = lines[at]
            kept = Position(line.begin, line.end, position.told[: known + 1])
            note = f"rows after version {line.row['version']} were written anew, and are told again"
            return News(kept, lines[at + 1 :], "" if known == len(position.told) - 1 else note)
    return News(Position(), lines, "metrics.jsonl was replaced, and is told from its beginning")


def _lines(data: bytes, at: int) -> list[Line]:
    found = []
    for text in data[: data.rfind(b"\n") + 1].splitlines(keepends=True):
        if (row := _row(text)) is not None:
            found.append(Line(at, at + len(text), _digest(text), row))
        at += len(text)
    return found


def _row(text: bytes) -> Mapping[str, Any] | None:
    with suppress(ValueError):
        row = json.loads(text)
        if isinstance(row, dict) and isinstance(row.get("version"), int) and isinstance(row.get("metrics"), dict):
            return row
    return None


def _digest(line: bytes) -> str:
    return hashlib.blake2b(line, digest_size=8).hexdigest()
