"""Memory that processes of one machine share: one process writes it, the others read it in place.

The one idea: a memfd has no name. A process that is told its handle (four ints in a control message) opens it through
/proc/PID/fd, and it is gone with the last process that maps it, however that process ends: nothing can leak.

Its size is sealed and only its creator can write, so that a reader never meets a missing page (SIGBUS), also if the creator
is killed. A first touch costs eleven times a copy (measured, 100 MB: 58 against 5 ms), so memory is touched before it is
needed and used again; huge pages, populated mappings and a second copying thread gained nothing on top of that.

Order: a writer finishes a slot's header and only then sends a token through a socket, which is a fence on every processor.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import io
import mmap
import os
import stat
import sys
import tempfile
from collections.abc import Iterable
from contextlib import ExitStack
from typing import TYPE_CHECKING, TypeAlias

from shoal.protocol.errors import ProtocolError, UserError
from shoal.protocol.memory import room

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    from shoal.protocol.layout import Bytes

Handle: TypeAlias = tuple[int, int, int, int]
"""(process id, descriptor, bytes, inode): by these another process finds a segment, and knows that it is the right one."""
Offer: TypeAlias = tuple[int, int, int, int, int, int]
"""A Handle, then the number of slots and the bytes of each."""

PAGE = 4096  # bytes from one first touch to the next; where pages are larger, more touches do no harm
WORDS = 8  # int64 of a slot's header: a cache line
MAX_SLOTS = 64
MAX_BYTES = 2**46
INSTEAD = "use a smaller model or fewer actors, free memory or raise the limit, or choose --transport ipc"


SHORT = "this program holds all descriptors that it may have: close files, or raise the limit (ulimit -n)"


class ShortError(ProtocolError):
    """No descriptor is left, so shared memory that is there cannot be opened."""


class StaleError(ProtocolError):
    """The slot was written again since its token was made: ask for the newest."""


def available() -> str | None:
    """Return None if segments work; else the reason in a line, to follow "falling back to ipc because ..."."""
    if sys.platform != "linux":
        return f"shared memory without a name (memfd) exists on Linux only, and this is {sys.platform}"
    try:
        segment = Segment.create(1)
    except UserError as why:
        return str(why)
    with contextlib.closing(segment):
        try:
            Segment.open(segment.handle).close()
        except ProtocolError as why:
            return str(why)
    return None


class Segment:
    """A piece of shared memory, which its creator alone can write; a common one can be written by all who open it. data: uint8
    [nbytes].

    Close the segment after use; arrays over it may live on, and keep the memory.
    """

    __slots__ = ("_data", "_file", "_memory", "handle")

    def __init__(self, memory: mmap.mmap | None, handle: Handle, file: io.FileIO | None) -> None:
        self._data: Bytes | None = None
        self.handle = handle
        self._memory = memory
        self._file = file

    @property
    def data(self) -> Bytes:
        """The memory, uint8 [nbytes]; empty if it is closed, or not mapped."""
        if self._data is None:
            import numpy as np

            self._data = np.empty(0, np.uint8) if self._memory is None else np.frombuffer(self._memory, dtype=np.uint8)
        return self._data

    def write(self, data: bytes) -> None:
        """Write the first bytes."""
        assert self._memory is not None
        self._memory[: len(data)] = data

    def view(self) -> memoryview:
        """The memory as bytes, for one who needs no array; the segment is closed when nobody holds it."""
        assert self._memory is not None
        return memoryview(self._memory)

    @classmethod
    def create(
        cls, nbytes: int, common: bool = False, parts: Iterable[tuple[int, memoryview]] = (), folder: str = ""
    ) -> Segment:
        """A segment of zeros, which takes no memory until it is written. Raises UserError if the system gives none. parts:
        (offset, bytes) that it begins with: the system writes them into new pages at half of what a copy there costs. folder:
        it is a file without a name there, which the system writes to disk when memory is short, and cannot be sealed."""
        if sys.platform != "linux":
            raise UserError(f"there is no shared memory without a name on {sys.platform}: choose --transport ipc")
        try:
            file = _nameless(folder) if folder else _memory(common)
        except OSError as why:
            where = f"a file in {folder}" if folder else "memfd_create"
            raise UserError(f"{where}: {why.strerror}; choose --transport ipc") from why
        try:
            os.ftruncate(file.fileno(), nbytes)
            for at, part in parts:
                _write(file.fileno(), at, part)
            memory = mmap.mmap(file.fileno(), nbytes)
            if not folder:
                _seal(file.fileno(), common)
        except OSError as why:
            file.close()
            raise UserError(f"{nbytes:,} bytes of shared memory: {why.strerror}; {INSTEAD}") from why
        return cls(memory, (os.getpid(), file.fileno(), nbytes, os.fstat(file.fileno()).st_ino), file)

    @classmethod
    def open(
        cls,
        handle: tuple[int, ...],
        private: bool = False,
        common: bool = False,
        hold: bool = False,
        filed: bool = False,
    ) -> Segment:
        """Open the segment of another process, to read only; or to write too, if `private`, where what is written stays in this
        process, or if `common`, where all see it. hold: the segment is not mapped, and has a handle of this process, by which
        it is opened also when its creator has ended. filed: it was created in a folder, by a process of this program: it has no
        seals. Raises ProtocolError if the handle leads to anything but its segment, or if that is to be written and is no
        common one; ShortError if this process has no descriptor left."""
        pid, descriptor, nbytes, inode = checked = _checked(handle)
        path = f"/proc/{pid}/fd/{descriptor}"
        try:
            _recognise(os.stat(path), nbytes, inode, path)  # before the opening: a pipe or a device could block, or act
            with ExitStack() as stack:
                flags = (os.O_RDWR if common else os.O_RDONLY) | os.O_CLOEXEC | os.O_NONBLOCK
                file = stack.enter_context(_File(os.open(path, flags), "r+" if common else "r"))
                if not filed:
                    _demand_seals(file.fileno(), path)
                _recognise(os.fstat(file.fileno()), nbytes, inode, path)
                if hold:
                    stack.pop_all()
                    return cls(None, (os.getpid(), file.fileno(), nbytes, inode), file)
                access = mmap.ACCESS_WRITE if common else mmap.ACCESS_COPY if private else mmap.ACCESS_READ
                return cls(mmap.mmap(file.fileno(), nbytes, access=access), checked, None)
        except OSError as why:
            if why.errno in (errno.EMFILE, errno.ENFILE):
                raise ShortError(SHORT) from why
            raise ProtocolError(f"shared memory at {path} cannot be opened here: {why.strerror}") from why

    def mapped(self, private: bool) -> Bytes:
        """The memory of a segment that was opened with `hold`, as in `open`, for as long as somebody has it: it takes a
        descriptor."""
        assert self._file is not None
        import numpy as np

        access = mmap.ACCESS_COPY if private else mmap.ACCESS_READ
        return np.frombuffer(mmap.mmap(self._file.fileno(), self.handle[2], access=access), np.uint8)

    def close(self) -> None:
        """Close this process's hold; the memory stays as long as an array over it lives. A second call changes nothing."""
        memory, self._memory = self._memory, None
        self._data = None
        if self._file is not None:
            self._file.close()
        if memory is not None:
            with contextlib.suppress(BufferError):  # arrays still read the memory: the last of them unmaps it
                memory.close()


SIZE_SEALS = 0x2 | 0x4  # F_SEAL_SHRINK, F_SEAL_GROW
OTHERS_WRITE_SEAL = 0x10  # F_SEAL_FUTURE_WRITE: only the mapping that exists already may write


def copied(handle: tuple[int, ...]) -> Bytes:
    """A copy of the memory of a segment that this process holds, which takes no descriptor."""
    import numpy as np

    data, at = np.empty(handle[2], np.uint8), 0
    while at < data.nbytes and (many := os.preadv(handle[1], [data[at:].data], at)):
        at += many
    return data


class _File(io.FileIO):
    """A file that closes without a warning when the last holder of it is gone: of a cycle it may be the first to go."""

    def __del__(self) -> None:
        self.close()


def _memory(common: bool) -> io.FileIO:
    return _File(os.memfd_create("shoal-common" if common else "shoal", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING), "r+")


def _nameless(folder: str) -> io.FileIO:
    with tempfile.TemporaryFile(buffering=0, dir=folder) as file:
        return _File(os.dup(file.fileno()), "r+")


def _write(descriptor: int, at: int, part: memoryview) -> None:
    left = part.cast("B") if part.nbytes else part
    while left.nbytes:  # one call writes 2 GiB at most
        written = os.pwrite(descriptor, left, at)
        at, left = at + written, left[written:]


def _seal(descriptor: int, common: bool) -> None:
    if sys.platform == "linux":
        fcntl.fcntl(descriptor, fcntl.F_ADD_SEALS, SIZE_SEALS)
        if common:
            return
        with contextlib.suppress(OSError):  # before Linux 5.1, and in sandboxes, readers are only trusted to read
            fcntl.fcntl(descriptor, fcntl.F_ADD_SEALS, OTHERS_WRITE_SEAL)


def _demand_seals(descriptor: int, path: str) -> None:
    """Refuse a file whose size could change: a file that shrinks under a mapping ends the process that reads it."""
    if sys.platform == "linux" and fcntl.fcntl(descriptor, fcntl.F_GET_SEALS) & SIZE_SEALS != SIZE_SEALS:
        raise ProtocolError(f"shared memory at {path} could change its size: it is not sealed")


def _recognise(found: os.stat_result, nbytes: int, inode: int, path: str) -> None:
    """Refuse any file but the segment: the number of a closed descriptor is used again, and another container has other
    processes of the same number."""
    ours = stat.S_ISREG(found.st_mode) and found.st_uid == os.geteuid()
    if not ours or found.st_ino != inode or found.st_size != nbytes:
        raise ProtocolError(f"{path} is not the shared memory of {nbytes:,} bytes that its handle names (any more)")


def _checked(handle: tuple[int, ...]) -> Handle:
    if len(handle) != 4 or not all(type(n) is int and 0 <= n < 2**63 for n in handle):
        raise ProtocolError("a handle of shared memory is (process, descriptor, bytes, inode)")
    if not 0 < handle[2] <= MAX_BYTES:
        raise ProtocolError(f"shared memory has from 1 to {MAX_BYTES:,} bytes, not {handle[2]:,}")
    return handle[0], handle[1], handle[2], handle[3]


class Slots:
    """A segment cut into `count` slots of `nbytes`, each with a header that describes its contents, if it has any.

    A header is int64 [8]: twice the generation (odd while it is being written), version, bytes.
    """

    __slots__ = ("count", "nbytes", "segment")

    def __init__(self, segment: Segment, count: int, nbytes: int) -> None:
        self.segment = segment
        self.count = count
        self.nbytes = nbytes

    @classmethod
    def create(cls, count: int, nbytes: int, touched: int) -> Slots:
        """Slots in a new segment, the first `touched` of them in memory from the start. Raises UserError if they do not fit."""
        if not 0 < count <= MAX_SLOTS or not 0 <= nbytes <= MAX_BYTES // MAX_SLOTS:
            raise ValueError(f"{count} slots of {nbytes} bytes: from 1 to {MAX_SLOTS}, of at most {MAX_BYTES // MAX_SLOTS}")
        needed = touched * nbytes
        left, bound = room()
        if needed > left:
            raise UserError(f"{needed:,} bytes of shared memory needed, {left:,} left by the {bound}: {INSTEAD}")
        slots = cls(Segment.create(_size(count, nbytes)), count, nbytes)
        for slot in range(touched):
            slots.data(slot)[::PAGE] = 0  # takes the memory now rather than at the first copy
        return slots

    @classmethod
    def open(cls, offer: tuple[int, ...]) -> Slots:
        """Open the slots of another process, to read. Raises ProtocolError."""
        if len(offer) != 6 or not all(type(n) is int for n in offer):
            raise ProtocolError("an offer of shared memory is (process, descriptor, bytes, inode, slots, bytes of a slot)")
        count, nbytes = offer[4:]
        if not 0 < count <= MAX_SLOTS or nbytes < 0 or offer[2] != _size(count, nbytes):
            raise ProtocolError(f"{count} slots of {nbytes:,} bytes do not make a segment of {offer[2]:,}")
        return cls(Segment.open(offer[:4]), count, nbytes)

    @property
    def offer(self) -> Offer:
        return (*self.segment.handle, self.count, self.nbytes)

    def data(self, slot: int) -> Bytes:
        start = _round(self.count * WORDS * 8) + slot * _round(self.nbytes)
        return self.segment.data[start : start + self.nbytes]

    def begin(self, slot: int, generation: int) -> None:
        """Begin to write a slot: every older token of it is stale from now on."""
        self._header(slot)[0] = 2 * generation - 1

    def finish(self, slot: int, generation: int, version: int, nbytes: int) -> None:
        header = self._header(slot)
        header[1], header[2] = version, nbytes
        header[0] = 2 * generation

    def holds(self, slot: int, generation: int, version: int) -> Bytes:
        """The bytes of a slot that holds this generation and version: read-only for a reader. Raises StaleError."""
        written, found, nbytes = self._header(slot)[:3].tolist()
        if generation < 1 or written != 2 * generation or found != version or not 0 <= nbytes <= self.nbytes:
            state = "is being written" if written % 2 else f"holds generation {written // 2} of version {found}"
            raise StaleError(f"slot {slot} {state}, no longer generation {generation} of version {version}")
        return self.data(slot)[:nbytes]

    def close(self) -> None:
        self.segment.close()

    def _header(self, slot: int) -> npt.NDArray[np.int64]:
        return self.segment.data[slot * WORDS * 8 :][: WORDS * 8].view("int64")


def _round(nbytes: int) -> int:
    return -(-nbytes // PAGE) * PAGE


def _size(count: int, nbytes: int) -> int:
    return _round(count * WORDS * 8) + count * _round(nbytes)
