"""The new lines of a file that grows, from the byte at which a reader was.

The one idea: an offset is good for as long as the file is the same file and a line ends before it. In any other case the reader
begins again and says so, and a curve is drawn anew instead of being continued wrongly.
"""

from __future__ import annotations

import os
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

FIRST = 64  # bytes at a file's start by which it is known beside its inode; a row is longer
AT_ONCE = 1 << 22  # bytes that are read at a time, and of which a whole file is read
SAMPLES = 3_000  # lines of the older part of a larger file


class Mark(NamedTuple):
    """A place in a file. file: number by which the file is known again. offset: in bytes."""

    file: int
    offset: int

    def __str__(self) -> str:
        return f"{self.file:x}.{self.offset}"

    @classmethod
    def read(cls, text: str) -> Mark | None:
        """The mark that a text says; None for any other text."""
        file, dot, offset = text.partition(".")
        if not dot or not (offset.isascii() and offset.isdigit()) or len(text) > 64:
            return None
        try:
            return cls(int(file, 16), int(offset))
        except ValueError:
            return None


@dataclass(frozen=True)
class Piece:
    """Whole lines, without their ends. fresh: True if they stand in the place of all lines that came before. thinned: True if
    lines between them were left out."""

    lines: list[bytes]
    fresh: bool = False
    thinned: bool = False


class Tail:
    """A reader of one file. mark: where an earlier reader was; None: at the start."""

    def __init__(self, path: Path, mark: Mark | None = None, at_once: int = AT_ONCE) -> None:
        self.path, self.mark, self.at_once = path, mark, at_once
        self._seen: tuple[int, int, int] | None = None

    def new(self) -> Piece | None:
        """The lines since the last call; None if there are none. A line without its end waits for it."""
        try:
            with self.path.open("rb") as file:
                return self._new(file.fileno())
        except OSError:  # not there yet, or gone with its folder
            fresh, self.mark, self._seen = self.mark is not None, None, None
            return Piece([], fresh=True) if fresh else None

    def _new(self, file: int) -> Piece | None:
        found = os.fstat(file)
        seen = (found.st_ino, found.st_size, found.st_mtime_ns)
        if seen == self._seen:
            return None
        known, mark = found.st_ino << 32 | zlib.crc32(os.pread(file, FIRST, 0)), self.mark
        same = mark is not None and mark.file == known and _ends_a_line(file, mark.offset, found.st_size)
        start = mark.offset if mark is not None and same else 0
        if not same and found.st_size > self.at_once:
            lines, end = _thinned(file, found.st_size, self.at_once // 4)
        else:
            read = os.pread(file, self.at_once, start)
            end = start + read.rfind(b"\n") + 1
            lines = read[: end - start].splitlines()
        self.mark = Mark(known, end)
        thinned = not same and found.st_size > self.at_once
        self._seen = seen if thinned or start + self.at_once >= found.st_size else None  # else there is more to read
        return Piece(lines, not same, thinned) if lines or (mark is not None and not same) else None


def _ends_a_line(file: int, offset: int, size: int) -> bool:
    return offset <= size and (offset == 0 or os.pread(file, 1, offset - 1) == b"\n")


def _thinned(file: int, size: int, newest: int) -> tuple[list[bytes], int]:
    """SAMPLES lines evenly over a large file, and all lines of its `newest` last bytes; and the offset after the last."""
    lines, wide, at = [], 1 << 14, 0
    step = max((size - newest) // SAMPLES, 1)
    for place in range(0, size - newest, step):
        if place < at:
            continue  # this line was taken
        read = os.pread(file, wide, place)
        start = 0 if place == 0 else read.find(b"\n") + 1
        end = read.find(b"\n", start)
        if end >= 0 and (start or place == 0):
            lines.append(read[start:end])
            at = place + end
    read = os.pread(file, size - max(at, size - newest), max(at, size - newest))
    start = read.find(b"\n") + 1
    end = read.rfind(b"\n") + 1
    return [*lines, *read[start:end].splitlines()], max(at, size - newest) + end


def last_lines(path: Path, many: int, wide: int = 1 << 15) -> list[bytes]:
    """The last whole lines of a file, at most `many`; none if it is not there."""
    try:
        with path.open("rb") as file:
            size = file.seek(0, os.SEEK_END)
            file.seek(max(0, size - wide))
            read = file.read(wide)
    except OSError:
        return []
    begin = 0 if size <= wide else read.find(b"\n") + 1
    return read[begin : read.rfind(b"\n") + 1].splitlines()[-many:]
