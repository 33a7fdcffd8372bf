"""Files of a ring's rows, for a ring that is too large to lie in every snapshot.

The one idea: rows do not change once they are written, so each snapshot adds one file with the rows that came since the last,
and names all files that it needs, with their digests. A file goes when no snapshot that is kept needs a row in it.
"""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from shoal.aggregators import State
from shoal.protocol.durable import sync_folder
from shoal.protocol.errors import UserError

NAME = re.compile(r"(\d{12,})-(\d{12,})\.rows")
SPANS, DIGESTS = "replay/files", "replay/digests"
WIDTH = 16  # bytes of a digest


class Kept(NamedTuple):
    """A file with the rows `first` to before `last`, counted from the run's beginning; digest: blake2b of its bytes."""

    first: int
    last: int
    digest: bytes

    @property
    def name(self) -> str:
        return f"{self.first:012d}-{self.last:012d}.rows"


class KeptRows:
    """The files of rows in one folder. end: the row up to which rows lie in files."""

    def __init__(self) -> None:
        self._folder: Path | None = None
        self._files: list[Kept] = []  # oldest first, one after the other

    def settle(self, folder: Path) -> None:
        """Keep rows in this folder, which is made when a file is written."""
        self._folder = folder

    @property
    def settled(self) -> bool:
        return self._folder is not None

    @property
    def end(self) -> int:
        return self._files[-1].last if self._files else 0

    def save(self, first: int, last: int, arrays: Iterable[npt.NDArray[Any]]) -> None:
        """Write the rows `first` to before `last`, durably. Raises OSError, with nothing changed."""
        assert self._folder is not None
        self._folder.mkdir(exist_ok=True)
        self._sweep()
        summed = hashlib.blake2b(digest_size=WIDTH)
        aside = self._folder / "next.tmp"
        with aside.open("wb") as file:
            for array in arrays:
                data = np.ascontiguousarray(array).reshape(-1).view(np.uint8).data
                summed.update(data)
                file.write(data)
            file.flush()
            os.fsync(file.fileno())
        kept = Kept(first, last, summed.digest())
        aside.replace(self._folder / kept.name)
        self._sync()
        self._files.append(kept)

    def forget(self, first: int) -> None:
        """Unlink the files without a row from `first` on, which no snapshot that is kept needs."""
        for kept in [kept for kept in self._files if kept.last <= first]:
            self._files.remove(kept)
        if self._folder is not None and self._folder.is_dir():
            for path, its in self._there():
                if its[1] <= first:
                    path.unlink(missing_ok=True)

    def state(self, first: int) -> State:
        """The arrays for a snapshot that needs the rows from `first` on."""
        needed = [kept for kept in self._files if kept.last > first]
        spans = np.array([(kept.first, kept.last) for kept in needed], np.int64).reshape(len(needed), 2)
        digests = np.frombuffer(b"".join(kept.digest for kept in needed), np.uint8).reshape(len(needed), WIDTH)
        return {SPANS: spans, DIGESTS: digests}

    @staticmethod
    def told(state: State) -> bool:
        """True if a snapshot's rows lie in files."""
        return SPANS in state

    def load(self, state: State) -> None:
        """Go on with the files that a snapshot names."""
        spans, digests = state[SPANS], state[DIGESTS]
        self._files = [Kept(int(a), int(b), d.tobytes()) for (a, b), d in zip(spans, digests, strict=True)]

    def pieces(self, first: int) -> Iterator[tuple[int, int, memoryview]]:
        """Yield (first, last, bytes) of each file with a row from `first` on, oldest first. Raises UserError for a file that is
        not there or damaged."""
        for kept in self._files:
            if kept.last <= first:
                continue
            path = (self._folder or Path("replay")) / kept.name
            try:
                data = path.read_bytes()
            except OSError as error:
                raise UserError(
                    f"{path}: rows of the replay cannot be read ({error.strerror}): copy replay/ with checkpoints/"
                ) from None
            if hashlib.blake2b(data, digest_size=WIDTH).digest() != kept.digest:
                raise UserError(
                    f"{path}: rows of the replay are damaged: move the newest file of checkpoints/ away, and shoal resume goes "
                    "back to the snapshot before"
                )
            yield kept.first, kept.last, memoryview(data)

    def _sweep(self) -> None:
        """Unlink the files of versions that a crash took back: their rows come again."""
        for path, (first, _) in self._there():
            if first >= self.end:
                path.unlink(missing_ok=True)

    def _there(self) -> Iterator[tuple[Path, tuple[int, int]]]:
        assert self._folder is not None
        for path in sorted(self._folder.iterdir()):
            if match := NAME.fullmatch(path.name):
                yield path, (int(match[1]), int(match[2]))

    def _sync(self) -> None:
        assert self._folder is not None
        sync_folder(self._folder)
