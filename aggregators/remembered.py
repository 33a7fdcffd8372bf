"""The memory that an aggregator has of each client: a row of float32 numbers by client, which changes only when a step is made.

The one idea: a row is kept with the client's number, not with the actor that played the client, and rows that came since the
last step are put aside until the next. So a client finds the same row on any actor, and after a crash. Rows beyond a number of
bytes lie in files of the run's folder. A snapshot holds the rows in memory, and says where the others lie.
"""

from __future__ import annotations

import os
import re
import zlib
from collections import Counter, OrderedDict
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from shoal.aggregators import State
from shoal.protocol.durable import sync_folder
from shoal.protocol.errors import UserError

Floats = npt.NDArray[np.float32]
HELD = 64 << 20  # bytes of rows that stay in memory, and in each snapshot
FILE = 64 << 20  # bytes from which on a new file is begun
NAME = re.compile(r"(\d{8})\.rows")
IDS, ROWS, FILED = "clients/ids", "clients/rows", "clients/filed"


class Filed(NamedTuple):
    """The place of a row in a file, and the checksum of its bytes."""

    file: int
    at: int
    crc: int


class Remembered:
    """Rows of `entries` float32 numbers by client. came: the rows that came since the last step.

    held: bytes of rows in memory, at least one row's, once `settle` has named a folder; until then all rows are in memory.
    Files are only appended to. A file in which no row is in use is unlinked when no snapshot that is kept can need it.
    """

    def __init__(self, entries: int, held: int = HELD) -> None:
        self.entries = entries
        self.nbytes = 4 * entries
        self.most = max(1, held // max(1, self.nbytes))
        self.came: dict[int, Floats] = {}
        self._rows: OrderedDict[int, Floats] = OrderedDict()  # those that changed longest ago first
        self._filed: dict[int, Filed] = {}
        self._folder: Path | None = None
        self._fd, self._file, self._count = -1, 0, 0  # the file that is written, its number and its number of rows
        self._live: Counter[int] = Counter()  # file -> rows in use
        self._whole: Counter[int] = Counter()  # file -> rows
        self._empty: dict[int, int] = {}  # file without rows in use -> the step since which it has none

    def settle(self, folder: Path) -> None:
        """Keep rows beyond `held` bytes in this folder from now on, which is made when a row needs it."""
        self._folder = folder

    def __len__(self) -> int:
        """The number of clients that have a row."""
        return len(self._rows) + len(self._filed)

    def of(self, client: int) -> Floats | None:
        """The client's row, as of the last step, not to be changed; None if the client has none. Raises UserError if its bytes
        in a file are damaged."""
        if (row := self._rows.get(client)) is not None:
            return row
        return self._read(client, place) if (place := self._filed.get(client)) is not None else None

    def put(self, client: int, row: Floats) -> None:
        """Take a client's next row, to be used from the next step on. The row must not change any more."""
        self.came[client] = row

    def step(self, version: int) -> None:
        """Make the rows that came the clients' rows. version: number of the step."""
        for client in sorted(self.came):
            self._drop(client, version)
            self._rows[client] = self.came[client]
        self.came = {}
        try:
            self._spill(version)
        except OSError:  # a full disk: rows stay in memory, and the next snapshot tells of it
            return

    def forget(self, version: int) -> None:
        """Unlink the files that no snapshot from `version` on can need."""
        for file in [file for file, since in self._empty.items() if since <= version and file != self._file]:
            del self._empty[file]
            self._whole.pop(file, None)
            self._path(file).unlink(missing_ok=True)

    def state(self) -> dict[str, npt.NDArray[np.int64] | Floats]:
        """The arrays for a snapshot. Rows in files are on the disk once this returns. Raises OSError."""
        self._sync()
        ids = sorted(self._rows)
        rows = np.empty((len(ids), self.entries), np.float32)
        for at, client in enumerate(ids):
            rows[at] = self._rows[client]
        filed = [(client, *self._filed[client]) for client in sorted(self._filed)]
        return {IDS: np.array(ids, np.int64), ROWS: rows, FILED: np.array(filed, np.int64).reshape(len(filed), 4)}

    def load(self, state: State, version: int) -> None:
        """Go on from a snapshot's arrays. Raises ValueError if they do not fit, UserError if the files are not there."""
        ids, rows, filed = (state.get(name) for name in (IDS, ROWS, FILED))
        if ids is None or rows is None or filed is None or rows.shape != (len(ids), self.entries) or filed.shape[1:] != (4,):
            raise ValueError(f"saved state: {ROWS!r} must have shape [clients, {self.entries}], beside {IDS!r} and {FILED!r}")
        self._rows = OrderedDict((int(client), row.astype(np.float32)) for client, row in zip(ids, rows, strict=True))
        self._filed = {int(client): Filed(int(file), int(at), int(crc)) for client, file, at, crc in filed}
        self.came, self._live = {}, Counter(place.file for place in self._filed.values())
        self._close()
        self._whole, self._empty, there = Counter(), {}, dict(self._there())
        for file, size in there.items():
            self._whole[file] = size // max(1, self.nbytes)
            if file not in self._live:
                self._empty[file] = version
        if lost := sorted(self._live.keys() - there.keys()):
            where = self._folder or "the run's folder clients/"
            raise UserError(f"{where}: {lost[0]:08d}.rows with states of clients is not there: copy clients/ with checkpoints/")
        self._file = max(there, default=0)

    # Files

    def _there(self) -> Iterator[tuple[int, int]]:
        """The files in the folder, each with its size."""
        if self._folder is not None and self._folder.is_dir():
            for path in sorted(self._folder.iterdir()):
                if match := NAME.fullmatch(path.name):
                    yield int(match[1]), path.stat().st_size

    def _path(self, file: int) -> Path:
        assert self._folder is not None
        return self._folder / f"{file:08d}.rows"

    def _drop(self, client: int, version: int) -> None:
        self._rows.pop(client, None)
        if (place := self._filed.pop(client, None)) is not None:
            self._live[place.file] -= 1
            if not self._live[place.file]:
                del self._live[place.file]
                self._empty[place.file] = version

    def _spill(self, version: int) -> None:
        """Write the rows beyond `most` to files. If most rows of files are out of use, write those of the oldest file anew."""
        if self._folder is None:
            return
        while len(self._rows) > self.most:
            client = next(iter(self._rows))
            place = self._write(self._rows[client])
            del self._rows[client]
            self._filed[client] = place
            self._live[place.file] += 1
        each = max(1, FILE // self.nbytes)
        if sum(self._whole.values()) > 2 * (sum(self._live.values()) + each):
            oldest = min(self._live, default=self._file)
            if oldest == self._file:
                return
            for client, place in [(client, place) for client, place in self._filed.items() if place.file == oldest]:
                moved = self._write(self._read(client, place))
                self._drop(client, version)
                self._filed[client] = moved
                self._live[moved.file] += 1

    def _write(self, row: Floats) -> Filed:
        if self._fd < 0 or self._count * self.nbytes >= FILE:
            self._begin()
        data = np.ascontiguousarray(row).view(np.uint8).data
        at, done = self._count, 0
        while done < len(data):
            done += os.pwrite(self._fd, data[done:], at * self.nbytes + done)
        self._count += 1
        self._whole[self._file] += 1
        self._empty.pop(self._file, None)
        return Filed(self._file, at, zlib.crc32(data))

    def _begin(self) -> None:
        assert self._folder is not None
        self._sync()
        self._close()
        self._folder.mkdir(exist_ok=True)
        fd = os.open(self._path(self._file + 1), os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        self._fd, self._file, self._count = fd, self._file + 1, 0

    def _read(self, client: int, place: Filed) -> Floats:
        row = np.empty(self.entries, np.float32)
        path = self._path(place.file)
        try:
            with path.open("rb") as file:
                file.seek(place.at * self.nbytes)
                whole = file.readinto(row.view(np.uint8).data) == self.nbytes
        except OSError as error:
            raise UserError(f"{path}: the state of client {client} cannot be read: {error.strerror}") from None
        if not whole or zlib.crc32(row.view(np.uint8).data) != place.crc:
            raise UserError(
                f"{path}: the state of client {client} is damaged: move the newest file of checkpoints/ away, and shoal resume "
                "goes back to the snapshot before"
            )
        return row

    def _sync(self) -> None:
        if self._fd >= 0 and self._folder is not None:
            os.fsync(self._fd)
            sync_folder(self._folder)

    def _close(self) -> None:
        if self._fd >= 0:
            os.close(self._fd)
        self._fd = -1

    def __del__(self) -> None:
        self._close()
