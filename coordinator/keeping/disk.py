"""The file system, in the few calls that durability needs.

The one idea: every byte that must outlive a power cut passes through one small object, `Disk`, so that a test can put in
its place a disk that is full, that fails, or whose power is cut between any two calls (tests/faults/ramdisk.py).
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from shoal.protocol.errors import UserError

Buffer = bytes | bytearray | memoryview
BATCH = 512  # buffers a call: half of Linux's IOV_MAX
TEMPORARY = ".tmp"
PIECE = 1 << 30  # bytes a read: Linux moves at most 2 GiB a call


class DiskTrouble(OSError):  # noqa: N818
    """A write failed (full, failing or read-only disk, no descriptor left). What was durable before still is, nothing new
    counts as written, and the same call may be made again once there is room."""


class SyncFailed(DiskTrouble):
    """fsync itself failed: the kernel may have dropped what it held and will not say so twice. Never call it again: end
    this process, and start anew from what is on the disk."""


@contextlib.contextmanager
def trouble(what: str) -> Iterator[None]:
    """Any OSError inside is a DiskTrouble that says what could not be done."""
    try:
        yield
    except DiskTrouble:
        raise
    except OSError as error:
        raise DiskTrouble(error.errno, f"cannot {what}: {error.strerror or error}") from error


class Disk:
    """One system call a method; whoever calls loops, checks and decides. Descriptors are plain integers."""

    def create(self, path: Path) -> int:
        """For writing, empty, replacing what lies there; not inherited by programs started later."""
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
        """Bytes written, which on a disk that fills up are fewer than given, *without* an exception."""
        return os.pwritev(fd, buffers, offset)

    def allocate(self, fd: int, start: int, length: int) -> None:
        """Reserve room, read as zeros, so that later writes neither fail for want of it nor change the file's size."""
        if hasattr(os, "posix_fallocate"):  # macOS has none, nor have some network disks: a full one shows at the write instead
            try:
                os.posix_fallocate(fd, start, length)
            except OSError as error:
                if error.errno not in (errno.EOPNOTSUPP, errno.EINVAL):
                    raise

    def truncate(self, fd: int, length: int) -> None:
        os.ftruncate(fd, length)

    def sync(self, fd: int) -> None:
        """The file's bytes and size, down to the device."""
        full = getattr(fcntl, "F_FULLFSYNC", None)  # macOS: its fsync stops at the drive's cache
        if full is not None:
            fcntl.fcntl(fd, full)
        else:
            os.fdatasync(fd)

    def sync_folder(self, folder: Path) -> None:
        """The names in it. Without this a renamed file may be gone after a power cut."""
        fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            os.fsync(fd)
        finally:
            os.close(fd)

    def settle(self, fd: int) -> None:
        """From here on, reads see what the device holds: what a dead process left in the page cache is written down, and
        pages that once failed to be written, which look clean, are dropped."""
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
        """With its parents, durably."""
        if not folder.is_dir():
            self.make_folder(folder.parent)
            folder.mkdir(exist_ok=True)
            self.sync_folder(folder.parent)


REAL = Disk()


def sync(disk: Disk, fd: int, what: str) -> None:
    """Raises SyncFailed."""
    try:
        disk.sync(fd)
    except OSError as error:
        raise SyncFailed(error.errno, f"cannot sync {what}: {error.strerror or error}; end and start anew") from error


def settle(disk: Disk, fd: int, what: str) -> None:
    """Raises SyncFailed."""
    try:
        disk.settle(fd)
    except OSError as error:
        raise SyncFailed(error.errno, f"cannot sync {what}: {error.strerror or error}; end and start anew") from error


def sync_folder(disk: Disk, folder: Path) -> None:
    """Raises SyncFailed; or DiskTrouble where there was no descriptor to try it with."""
    try:
        disk.sync_folder(folder)
    except OSError as error:
        if error.errno in (errno.EMFILE, errno.ENFILE):
            raise DiskTrouble(error.errno, f"cannot open {folder}: {error.strerror or error}") from error
        raise SyncFailed(error.errno, f"cannot sync {folder}: {error.strerror or error}; end and start anew") from error


def read_all(disk: Disk, fd: int, length: int, offset: int) -> bytes:
    """`length` bytes from `offset` on; fewer only where the file ends."""
    parts = [disk.read(fd, min(length, PIECE), offset)]
    done = len(parts[0])
    while done < length and parts[-1]:
        parts.append(disk.read(fd, min(length - done, PIECE), offset + done))
        done += len(parts[-1])
    return parts[0] if len(parts) == 1 else b"".join(parts)  # one part, the usual case, is handed on uncopied


def fill(disk: Disk, fd: int, into: memoryview, offset: int) -> int:
    """Read until `into` is full or the file ends; how many bytes that were."""
    done = 0
    while done < into.nbytes:
        got = disk.read_into(fd, into[done : done + PIECE], offset + done)
        if not got:
            break
        done += got
    return done


def write_all(disk: Disk, fd: int, buffers: Iterable[Buffer], offset: int) -> int:
    """Every byte of every buffer from `offset` on, without copying; the offset after the last. A short write is continued:
    on a full disk the next call raises."""
    left = [view for view in (memoryview(b).cast("B") for b in buffers) if view.nbytes]
    left.reverse()  # the next one is the last: taking it away is cheap
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
    """The whole file or, after any crash, what was there before: a temporary file beside it, synced, renamed over it, the
    folder synced. Raises DiskTrouble, and then leaves no temporary file; or SyncFailed."""
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
            with contextlib.suppress(OSError):  # a disk that cannot even forget: swept when next opened
                disk.unlink(beside)
            raise
        sync_folder(disk, path.parent)


def sweep(disk: Disk, folder: Path) -> None:
    """Away with what a crash left half written. For the holder of the run's lock."""
    with trouble(f"clean {folder}"):
        for name in disk.names(folder):
            if name.endswith(TEMPORARY):
                disk.unlink(folder / name)


class Lock:
    """One coordinator a run directory. Held until `close` or the end of the process, however it ends; the file stays."""

    def __init__(self, folder: Path) -> None:
        """Raises UserError when another process holds it."""
        self.path = folder / "lock"
        with trouble(f"lock {folder}"):
            self.fd = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        try:
            fcntl.flock(self.fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            holder = os.pread(self.fd, 32, 0).decode("ascii", "replace").strip()
            os.close(self.fd)
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

    def __enter__(self) -> Lock:
        return self

    def __exit__(self, *_: Any) -> None:
        self.close()
