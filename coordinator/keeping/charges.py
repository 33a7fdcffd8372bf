"""The charges of a run's noised versions against its privacy budget, and the secret that the noise follows from.

The one idea: a charge is on the disk before the version that it is for leaves the aggregator. So a version that anybody has
seen never lacks its charge, whenever the process is killed; at worst a charge is for a version that nobody saw.

On disk, in the run's folder: `privacy.jsonl`, a first line with the terms and a line for each charge; `privacy.secret`, 32
bytes that only the owner can read.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from itertools import takewhile
from pathlib import Path
from typing import Any

from shoal.coordinator.keeping import disk as disks
from shoal.coordinator.keeping.disk import Disk, trouble
from shoal.protocol.errors import UserError
from shoal.protocol.private import SECRET

FILE, KEY = "privacy.jsonl", "privacy.secret"


class Charges:
    """The charges in a run's folder, whose lock the caller holds.

    terms: values that JSON can hold and on which the cost of a charge depends (noise multiplier, sampling, delta). They are
    written when the file is made, and are read from it afterwards.
    tags: (version, tag) of each charge, in order. A charge of the same version and tag is made once.
    """

    def __init__(self, folder: Path, disk: Disk = disks.REAL) -> None:
        """Read the file, if there is one. Lines at the end that are not whole were never durable, so nothing was released for
        them. Raises UserError if a whole line follows one that is not."""
        self.path, self.disk = folder / FILE, disk
        self.terms: Mapping[str, Any] = {}
        self.tags: dict[tuple[int, str], int] = {}
        self._end = 0
        self._there = FILE in disk.names(folder)
        if self._there:
            self._read()

    def begin(self, terms: Mapping[str, Any]) -> None:
        """Write the terms, durably, if the file has none yet."""
        if not self.terms:
            self._write(terms)
            self.terms = terms

    def charge(self, version: int, tag: str, **told: Any) -> None:
        """Write a charge, durably. Raises DiskTrouble if the disk does not take it, with nothing charged."""
        if (version, tag) not in self.tags:
            self._write({"version": version, "tag": tag, **told})
            self.tags[version, tag] = len(self.tags) + 1

    def _read(self) -> None:
        with trouble(f"read {self.path}"):
            fd = self.disk.open(self.path)
            try:
                disks.settle(self.disk, fd, str(self.path))  # a line that a killed process wrote must be durable to count
                raw = disks.read_all(self.disk, fd, self.disk.size(fd), 0)
            finally:
                self.disk.close(fd)
        lines = raw.split(b"\n")[:-1]
        found = [_row(line) for line in lines]
        rows = list(takewhile(bool, found))
        if any(found[len(rows) :]):
            raise UserError(
                f"{self.path} is damaged, so what the run has spent is not known: put the file back, or begin a new run"
            )
        self.terms = rows[0] if rows else {}
        self.tags = {(row["version"], row["tag"]): at for at, row in enumerate(rows[1:], 1)}
        self._end = sum(len(line) + 1 for line in lines[: len(rows)])

    def _write(self, row: Mapping[str, Any]) -> None:
        line = json.dumps(row, allow_nan=False).encode() + b"\n"
        with trouble(f"write {self.path}"):
            fd = self.disk.open(self.path, write=True) if self._there else self.disk.create(self.path)
            try:
                self.disk.truncate(fd, self._end)
                disks.write_all(self.disk, fd, [line], self._end)
                disks.sync(self.disk, fd, str(self.path))
            finally:
                self.disk.close(fd)
            if not self._there:
                disks.sync_folder(self.disk, self.path.parent)
                self._there = True
        self._end += len(line)


def _row(line: bytes) -> dict[str, Any]:
    """The terms or the charge in a line; empty if the line is neither."""
    try:
        row = json.loads(line)
    except ValueError:
        return {}
    fits = isinstance(row, dict) and ("delta" in row or (type(row.get("version")) is int and type(row.get("tag")) is str))
    return row if fits else {}


def secret_of(folder: Path) -> bytes:
    """The secret of the run in `folder`, 32 bytes, drawn from the system when it is first asked for. Only the owner can read
    its file. Raises UserError for a file of another length."""
    path = folder / KEY
    if not path.exists():
        part = path.with_suffix(".part")
        part.unlink(missing_ok=True)
        with trouble(f"write {path}"):
            fd = os.open(part, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
            try:
                os.write(fd, os.urandom(SECRET))
                os.fsync(fd)
            finally:
                os.close(fd)
            part.replace(path)
            disks.REAL.sync_folder(folder)
    secret = path.read_bytes()
    if len(secret) != SECRET:
        raise UserError(f"{path} has {len(secret)} bytes, expected {SECRET}: put the file back, or begin a new run")
    return secret
