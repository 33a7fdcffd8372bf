"""The file system, in the few calls that durability needs.

The one idea: every byte that must outlive a power cut passes through one small object, `Disk`. So a test can put in its place
a disk that is full, that fails, or whose power is cut between any two calls (tests/faults/ramdisk.py).
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import re
import threading
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import TypeVar

from shoal.protocol.durable import sync_folder as synced
from shoal.protocol.errors import UserError

Buffer = bytes | bytearray | memoryview
BATCH = 512  # buffers a call: half of Linux's IOV_MAX
TEMPORARY = ".tmp"
PIECE = 1 << 30  # bytes a read: Linux moves at most 2 GiB a call
AGAIN = 0.5  # seconds until a disk that was full is tried again
SELDOM = 20  # attempts from one report of a full disk to the next
Done = TypeVar("Done")


class DiskTrouble(OSError):  # noqa: N818
    """A write failed: the disk is full, failing or read-only, or no descriptor is left. Data that was durable before still is,
    nothing new counts as written, and the same call may be made again once there is room."""


class SyncFailed(DiskTrouble):
    """fsync itself failed: the kernel may have dropped data, and will not report that twice. Never call fsync again: end this
    process, and start again from the files on the disk."""


@contextlib.contextmanager
def trouble(what: str, kind: type[DiskTrouble] = DiskTrouble, remedy: str = "") -> Iterator[None]:
    """Turn an OSError inside into a DiskTrouble of this kind that says what could not be done."""
    try:
        yield
    except DiskTrouble:
        raise
    except OSError as error:
        raise kind(error.errno, f"cannot {what}: {error.strerror or error}{remedy}") from error


def lasting(
    act: Callable[[], Done],
    given_up: Callable[[], object],
    complain: Callable[[DiskTrouble], object],
    wait: Callable[[float], object] | None = None,
) -> Done:
    """Act, and try again every AGAIN seconds while the disk gives trouble; every SELDOM-th trouble is told. Raises SyncFailed;
    or DiskTrouble once `given_up` is true. wait: sleeps for a number of seconds."""
    attempt = 0
    while True:
        try:
            return act()
        except SyncFailed:
            raise
        except DiskTrouble as trouble:
            if given_up():
                raise
            if attempt % SELDOM == 0:
                complain(trouble)
            attempt += 1
        wait = wait or threading.Event().wait  # the event is never set: a wait always lasts its whole time
        wait(AGAIN)


class Disk:
    """A file system, one system call a method: the caller loops, checks and decides. Descriptors are plain integers."""

    def create(self, path: Path) -> int:
        """Open an empty file for writing, in place of any file there. Programs started later do not inherit the descriptor."""
        return os.open(path, os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o644)

    def open(self, path: Path, write: bool = False) -> int:
        return os.open(path, (os.O_RDWR if write else os.O_RDONLY) | os.O_CLOEXEC)

    def close(self, fd: int) -> None:
        os.close(fd)

    def size(self, fd: int) -> int:
        return os.fstat(fd).st_size

    def read(self, fd: int, length: int, offset: int) -> bytes:
        return os.pread(fd, length, offset)

    def read_into(self, fd: int, into: memoryview, offset: int) -> int:
        return os.preadv(fd, [into], offset)

    def write(self, fd: int, buffers: list[memoryview], offset: int) -> int:
        """Returns the number of bytes written. On a disk that fills up these are fewer than given, *without* an exception."""
        return os.pwritev(fd, buffers, offset)

    def allocate(self, fd: int, start: int, length: int) -> None:
        """Reserve room, which reads as zeros, so that later writes neither run out of room nor change the file's size."""
        if hasattr(os, "posix_fallocate"):  # not on macOS, nor on some network disks: there the write fails on a full disk
            try:
                os.posix_fallocate(fd, start, length)
            except OSError as error:
                if error.errno not in (errno.EOPNOTSUPP, errno.EINVAL):
                    raise

    def truncate(self, fd: int, length: int) -> None:
        os.ftruncate(fd, length)

    def sync(self, fd: int) -> None:
        """Bring the file's bytes and size down to the device."""
        full = getattr(fcntl, "F_FULLFSYNC", None)  # macOS: fsync stops at the drive's cache
        if full is not None:
            fcntl.fcntl(fd, full)
        else:
            os.fdatasync(fd)

    def sync_folder(self, folder: Path) -> None:
        """Bring the folder's names down to the device. Without this a renamed file may be gone after a power cut."""
        synced(folder)

    def settle(self, fd: int) -> None:
        """Make later reads see what the device holds. Pages that a dead process left in the cache are written to the device.
        Pages that once failed to be written, which look clean, are dropped."""
        self.sync(fd)
        if hasattr(os, "posix_fadvise"):
            os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)

    def rename(self, old: Path, new: Path) -> None:
        os.replace(old, new)

    def unlink(self, path: Path) -> None:
        os.unlink(path)

    def names(self, folder: Path) -> list[str]:
        return sorted(os.listdir(folder))

    def make_folder(self, folder: Path) -> None:
        """Make a folder and its parents, durably."""
        if not folder.is_dir():
            self.make_folder(folder.parent)
            folder.mkdir(exist_ok=True)
            self.sync_folder(folder.parent)


REAL = Disk()


def _syncing(what: str) -> contextlib.AbstractContextManager[None]:
    return trouble(f"sync {what}", SyncFailed, "; end, then run shoal resume")


def sync(disk: Disk, fd: int, what: str) -> None:
    """Disk.sync, whose failure is SyncFailed."""
    with _syncing(what):
        disk.sync(fd)


def settle(disk: Disk, fd: int, what: str) -> None:
    """Disk.settle, whose failure is SyncFailed."""
    with _syncing(what):
        disk.settle(fd)


def sync_folder(disk: Disk, folder: Path) -> None:
    """Disk.sync_folder, whose failure is SyncFailed; or DiskTrouble if no descriptor was left to open the folder."""
    with _syncing(str(folder)):
        try:
            disk.sync_folder(folder)
        except OSError as error:
            if error.errno in (errno.EMFILE, errno.ENFILE):
                raise DiskTrouble(error.errno, f"cannot open {folder}: {error.strerror or error}") from error
            raise


def numbered(disk: Disk, folder: Path, name: re.Pattern[str]) -> list[tuple[int, Path]]:
    """The pairs (number, file) of the files with such a name, whose first group is the number, in order; the folder may be
    missing."""
    try:
        names = disk.names(folder)
    except FileNotFoundError:
        return []
    return sorted((int(match[1]), folder / one) for one in names if (match := name.fullmatch(one)))


def read_all(disk: Disk, fd: int, length: int, offset: int) -> bytes:
    """The `length` bytes from `offset` on; fewer only if the file ends before."""
    parts = [disk.read(fd, min(length, PIECE), offset)]
    done = len(parts[0])
    while done < length and parts[-1]:
        parts.append(disk.read(fd, min(length - done, PIECE), offset + done))
        done += len(parts[-1])
    return parts[0] if len(parts) == 1 else b"".join(parts)  # one part, the usual case, is returned uncopied


def fill(disk: Disk, fd: int, into: memoryview, offset: int) -> int:
    """Read until `into` is full or the file ends. Returns the number of bytes read."""
    done = 0
    while done < into.nbytes:
        got = disk.read_into(fd, into[done : done + PIECE], offset + done)
        if not got:
            break
        done += got
    return done


def write_all(disk: Disk, fd: int, buffers: Iterable[Buffer], offset: int) -> int:
    """Write every byte of every buffer from `offset` on, without copying. Returns the offset after the last byte. A short
    write is continued: on a full disk the next call raises."""
    left = [view for view in (memoryview(b).cast("B") for b in buffers) if view.nbytes]
    left.reverse()  # the next buffer stands last, where removing it is cheap
    while left:
        wrote = disk.write(fd, left[: -BATCH - 1 : -1], offset)
        if wrote <= 0:
            raise OSError(errno.EIO, "nothing was written")
        offset += wrote
        while wrote:
            view = left.pop()
            if wrote < view.nbytes:
                left.append(view[wrote:])
            wrote -= min(wrote, view.nbytes)
    return offset


def write_file(disk: Disk, path: Path, buffers: Iterable[Buffer]) -> None:
    """Write a file so that after any crash either the whole file or the former file is there: a temporary file beside it is
    synced and renamed over it, then the folder is synced. Raises DiskTrouble, leaving no temporary file; or SyncFailed."""
    beside = path.with_name(path.name + TEMPORARY)
    with trouble(f"write {path}"):
        try:
            fd = disk.create(beside)
            try:
                write_all(disk, fd, buffers, 0)
                sync(disk, fd, str(beside))
            finally:
                disk.close(fd)
            disk.rename(beside, path)
        except OSError:
            with contextlib.suppress(OSError):  # a file that cannot be unlinked now is swept at the next start
                disk.unlink(beside)
            raise
        sync_folder(disk, path.parent)


def sweep(disk: Disk, folder: Path) -> None:
    """Unlink the temporary files that a crash left. The caller holds the run's lock."""
    with trouble(f"clean {folder}"):
        for name in disk.names(folder):
            if name.endswith(TEMPORARY):
                disk.unlink(folder / name)


class Lock:
    """The lock that keeps a second coordinator out of a run directory. Held until `close` or any end of the process. The file
    `lock` stays."""

    def __init__(self, folder: Path) -> None:
        """Raises UserError if another process holds the lock; DiskTrouble, holding nothing, if the file system fails."""
        self.path = folder / "lock"
        with trouble(f"lock {folder}"):
            self.fd = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
            try:
                self._take(folder)
            except (OSError, UserError):
                os.close(self.fd)
                raise

    def _take(self, folder: Path) -> None:
        try:
            fcntl.flock(self.fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            holder = os.pread(self.fd, 32, 0).decode("ascii", "replace").strip()
            pid = holder if holder.isdigit() else "unknown"
            raise UserError(
                f"run directory {folder} is in use by the coordinator with pid {pid}: stop that one, or name another directory"
            ) from None
        os.ftruncate(self.fd, 0)
        os.pwrite(self.fd, f"{os.getpid()}\n".encode(), 0)

    def close(self) -> None:
        if self.fd >= 0:
            fcntl.flock(self.fd, fcntl.LOCK_UN)  # not only closed: a process forked meanwhile may hold a copy
            os.close(self.fd)
            self.fd = -1
