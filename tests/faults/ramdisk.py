"""A disk in memory that fills up, fails, and loses its power.

The one idea: it keeps what a program sees apart from what is durable, with the changes between the two as a list. A power
cut is any choice of those changes, each whole, absent, torn or garbage (Pillai et al. 2014, "All File Systems Are Not
Created Equal": only fsync orders anything). It is stricter than a real file system: a new name is not durable before
its folder is synced, and a failed fsync drops what it should have written while reads still show it.
"""

from __future__ import annotations

import errno
import itertools
import math
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from random import Random

from shoal.coordinator.keeping.disk import Disk

SECTOR = 512  # bytes that a device writes whole or not at all
WRITE_FATES = 5  # absent, whole, a prefix, some sectors, garbage
OTHER_FATES = 2  # absent, whole


@dataclass(frozen=True, slots=True)
class Change:
    """A change of a file's bytes. data: None: only the size changes, to `size`. grow: the size never shrinks."""

    offset: int = 0
    data: bytes | None = None
    size: int = 0
    grow: bool = False

    def apply(self, content: bytearray) -> None:
        if self.data is not None:
            content.extend(bytes(max(0, self.offset + len(self.data) - len(content))))
            content[self.offset : self.offset + len(self.data)] = self.data
        elif len(content) < self.size:
            content.extend(bytes(self.size - len(content)))
        elif not self.grow:
            del content[self.size :]


@dataclass(eq=False, slots=True)
class File:
    """A file. seen: bytes that reads return. durable: bytes after a power cut. changes: those not yet durable, in order."""

    seen: bytearray = field(default_factory=bytearray)
    durable: bytes = b""
    changes: list[Change] = field(default_factory=list)

    def change(self, change: Change) -> None:
        change.apply(self.seen)
        self.changes.append(change)

    def sync(self) -> None:
        content = bytearray(self.durable)
        for change in self.changes:
            change.apply(content)
        self.durable = bytes(content)
        self.changes.clear()


@dataclass(frozen=True, slots=True)
class Naming:
    """A change of names in a folder: `new` now names the file, and `old` names nothing."""

    old: Path | None
    new: Path | None
    file: File

    @property
    def folder(self) -> Path | None:
        path = self.new or self.old
        return path and path.parent

    def apply(self, names: dict[Path, File]) -> None:
        if self.old is not None:
            names.pop(self.old, None)
        if self.new is not None:
            names[self.new] = self.file


class RamDisk(Disk):
    """A disk in memory. fault: asked before every call; returns an errno, or 0 if the call works. watch: called after every
    call that changes something. capacity: bytes in all files together. longest: most bytes that one write takes.
    """

    def __init__(self) -> None:
        self.seen: dict[Path, File] = {}
        self.durable: dict[Path, File] = {}
        self.namings: list[Naming] = []
        self.folders: set[Path] = set()
        self.descriptors: dict[int, tuple[Path, File]] = {}
        self.numbers = itertools.count(3)
        self.capacity = 1 << 62
        self.longest = 1 << 62
        self.fault: Callable[[str, Path], int] = lambda call, path: 0
        self.watch: Callable[[], None] = lambda: None

    def create(self, path: Path) -> int:
        self._call("create", path)
        if path.parent not in self.folders:
            raise FileNotFoundError(errno.ENOENT, "no such folder")
        if path in self.seen:
            self.seen[path].change(Change(size=0))
        else:
            self._name(Naming(None, path, File()))
        self.watch()
        return self._descriptor(path)

    def open(self, path: Path, write: bool = False) -> int:
        self._call("open", path)
        if path not in self.seen:
            raise FileNotFoundError(errno.ENOENT, "no such file")
        return self._descriptor(path)

    def close(self, fd: int) -> None:
        del self.descriptors[fd]

    def size(self, fd: int) -> int:
        return len(self.descriptors[fd][1].seen)

    def read(self, fd: int, length: int, offset: int) -> bytes:
        path, file = self.descriptors[fd]
        self._call("read", path)
        return bytes(file.seen[offset : offset + length])

    def read_into(self, fd: int, into: memoryview, offset: int) -> int:
        data = self.read(fd, into.nbytes, offset)
        into[: len(data)] = data
        return len(data)

    def write(self, fd: int, buffers: list[memoryview], offset: int) -> int:
        path, file = self.descriptors[fd]
        self._call("write", path)
        data = b"".join(buffers)[: self.longest]
        room = max(0, len(file.seen) - offset) + self._room()
        if data and room <= 0:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        file.change(Change(offset, data[:room]))  # a short write without an error, as on Linux
        self.watch()
        return min(len(data), room)

    def allocate(self, fd: int, start: int, length: int) -> None:
        path, file = self.descriptors[fd]
        self._call("allocate", path)
        if start + length - len(file.seen) > self._room():
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        file.change(Change(size=start + length, grow=True))
        self.watch()

    def truncate(self, fd: int, length: int) -> None:
        path, file = self.descriptors[fd]
        self._call("truncate", path)
        file.change(Change(size=length))
        self.watch()

    def sync(self, fd: int) -> None:
        path, file = self.descriptors[fd]
        try:
            self._call("sync", path)
        except OSError:
            file.changes.clear()  # reads still show them, and no later sync will write them
            raise
        file.sync()
        self.watch()

    def settle(self, fd: int) -> None:
        self.sync(fd)
        file = self.descriptors[fd][1]
        file.seen = bytearray(file.durable)

    def sync_folder(self, folder: Path) -> None:
        self._call("sync_folder", folder)
        for naming in self.namings:
            if naming.folder == folder:
                naming.apply(self.durable)
        self.namings = [naming for naming in self.namings if naming.folder != folder]
        self.watch()

    def rename(self, old: Path, new: Path) -> None:
        self._call("rename", new)
        self._name(Naming(old, new, self.seen[old]))
        self.watch()

    def unlink(self, path: Path) -> None:
        self._call("unlink", path)
        if path not in self.seen:
            raise FileNotFoundError(errno.ENOENT, "no such file")
        self._name(Naming(path, None, self.seen[path]))
        self.watch()

    def names(self, folder: Path) -> list[str]:
        self._call("names", folder)
        if folder not in self.folders:
            raise FileNotFoundError(errno.ENOENT, "no such folder")
        return sorted(path.name for path in self.seen if path.parent == folder)

    def make_folder(self, folder: Path) -> None:
        if folder not in self.folders:
            self._call("make_folder", folder)
            self.folders.add(folder)

    def killed(self) -> RamDisk:
        """Returns the disk as the next process finds it after this one was killed: all is seen, and no more is durable."""
        return self._twin({file: File(bytearray(file.seen), file.durable, list(file.changes)) for file in self._files()})

    def cut(self, fates: Sequence[int], rng: Random) -> RamDisk:
        """Returns the disk after a power cut, with nothing on its way. fates: one for each change of `fates_of_changes`."""
        left = iter(fates)
        twins = {file: _after_cut(file, left, rng) for file in self._files()}
        disk = self._twin(twins)
        disk.seen = {path: twins[file] for path, file in self.durable.items()}
        for naming, fate in zip(self.namings, left, strict=True):
            if fate:
                Naming(naming.old, naming.new, twins[naming.file]).apply(disk.seen)
        disk.durable, disk.namings = dict(disk.seen), []
        return disk

    def fates_of_changes(self) -> list[int]:
        """Returns the number of fates of each change that is not yet durable."""
        changes = [change for file in self._files() for change in file.changes]
        return [WRITE_FATES if change.data else OTHER_FATES for change in changes] + [OTHER_FATES] * len(self.namings)

    def _files(self) -> list[File]:
        named = [*self.durable.values(), *self.seen.values(), *(naming.file for naming in self.namings)]
        return list(dict.fromkeys(named))

    def _twin(self, twins: dict[File, File]) -> RamDisk:
        disk = type(self)()
        disk.folders = set(self.folders)
        disk.seen = {path: twins[file] for path, file in self.seen.items()}
        disk.durable = {path: twins[file] for path, file in self.durable.items()}
        disk.namings = [Naming(naming.old, naming.new, twins[naming.file]) for naming in self.namings]
        return disk

    def _call(self, call: str, path: Path) -> None:
        code = self.fault(call, path)
        if code:
            raise OSError(code, os.strerror(code))

    def _name(self, naming: Naming) -> None:
        naming.apply(self.seen)
        self.namings.append(naming)

    def _descriptor(self, path: Path) -> int:
        fd = next(self.numbers)
        self.descriptors[fd] = (path, self.seen[path])
        return fd

    def _room(self) -> int:
        return self.capacity - sum(len(file.seen) for file in self.seen.values())


def power_cuts(disk: RamDisk, limit: int, rng: Random) -> Iterator[RamDisk]:
    """Yields all states that a power cut can leave now, if at most `limit`; else nothing lost, all lost, and a sample."""
    fates = disk.fates_of_changes()
    if math.prod(fates) <= limit:
        ways: list[Sequence[int]] = list(itertools.product(*(range(n) for n in fates)))
    else:
        ways = [[0] * len(fates), [1] * len(fates)]
        ways += [[rng.randrange(n) for n in fates] for _ in range(limit - 2)]
    for way in ways:
        yield disk.cut(way, rng)


def _after_cut(file: File, fates: Iterator[int], rng: Random) -> File:
    content = bytearray(file.durable)
    for change in file.changes:
        for piece in _survives(change, next(fates), rng):
            piece.apply(content)
    return File(content, bytes(content))


def _survives(change: Change, fate: int, rng: Random) -> list[Change]:
    if fate == 0:
        return []
    if fate == 1 or not change.data:
        return [change]
    if fate == 2:
        return [Change(change.offset, change.data[: rng.randrange(len(change.data))])]
    if fate == 3:
        return [piece for piece in _sectors(change.offset, change.data) if rng.random() < 0.5]
    return [Change(change.offset, rng.randbytes(len(change.data)))]


def _sectors(offset: int, data: bytes) -> Iterator[Change]:
    """Yields pieces of the data between the device's sector borders; each may reach the disk without the others."""
    at = 0
    while at < len(data):
        end = at + SECTOR - (offset + at) % SECTOR
        yield Change(offset + at, data[at:end])
        at = end
