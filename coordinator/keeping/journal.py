"""The journal: records of everything acknowledged since a snapshot, each durable before its acknowledgement.

The one idea: `append` costs nothing, and `commit` makes everything since the last commit durable with a single sync. A failed
commit leaves the end of the journal where it was, so the next commit writes the same bytes to the same place.
"""

from __future__ import annotations

import contextlib
import math

from shoal.coordinator.keeping import disk as disks
from shoal.coordinator.keeping.disk import Buffer, SyncFailed, trouble
from shoal.coordinator.keeping.replay import FRAME, HEADER, LARGEST, JournalSegment, Replay, name_of, segment_at

EXTENT = 1 << 20  # bytes reserved at a time


class Journal:
    """A file of records that are appended singly and made durable in groups. One thread may append while another commits."""

    def __init__(self, replay: Replay, epoch: int, extent: int = EXTENT) -> None:
        """Go on where `replay` ends, in a new segment. Records of `replay` that were not read yet are read here. The caller
        holds the run's lock.

        epoch: must be above replay.epoch, else ValueError. The run's name has at most 64 bytes, else ValueError. Raises
        DiskTrouble or SyncFailed.
        """
        if epoch <= replay.epoch:
            raise ValueError(f"epoch {epoch} is not above {replay.epoch}, the highest in this journal")
        if len(replay.run.encode()) > 64:
            raise ValueError(f"run {replay.run!a} is longer than 64 bytes")
        for _ in replay:
            pass
        self.folder = replay.folder
        self.run = replay.run
        self.epoch = epoch
        self.extent = extent
        self.disk = replay.disk
        self.durable = max(replay.last, replay.after)
        self.last = self.durable
        self._waiting: list[tuple[int, tuple[Buffer, ...]]] = []
        self._failed: SyncFailed | None = None
        self._segment: JournalSegment  # the segment written to, its descriptor, the end of its durable bytes, and its size
        self._fd: int
        self._end: int
        self._reserved: int
        with trouble(f"open the journal in {self.folder}"):
            self.disk.make_folder(self.folder)
            self._cut(replay)
        read = replay.segments.index(replay.tail[0]) + 1 if replay.tail else 0
        self._older = [*replay.covered, *replay.segments[:read]]
        self._begin(max(replay.indices, default=0) + 1)
        self._drop(replay)

    def append(self, record: Buffer, *more: Buffer) -> int:
        """Append one record, made of these buffers one after the other. Returns the record's number; the record is durable
        once `commit` returns that number or a higher one.

        The buffers are not copied: do not change them until then. Raises ValueError for more than 1 GiB.
        """
        length = sum(memoryview(buffer).nbytes for buffer in (record, *more))
        if length > LARGEST:
            raise ValueError(f"a record of {length} bytes is above the {LARGEST} that a journal takes")
        self.last += 1
        self._waiting.append((self.last, (record, *more)))
        return self.last

    def commit(self) -> int:
        """Make everything appended so far durable, with one sync. Returns the number of the last durable record.

        Raises DiskTrouble: nothing new is durable, and a later commit writes the same records to the same place. Raises
        SyncFailed; from then on every call does.
        """
        if self._failed is not None:
            raise self._failed
        batch = list(self._waiting)
        if batch:
            buffers = [part for number, record in batch for part in (self._frame(number, record), *record)]
            with trouble(f"write {self._segment.path}"):
                self._reserve(self._end + sum(memoryview(buffer).nbytes for buffer in buffers))
                end = disks.write_all(self.disk, self._fd, buffers, self._end)
                self._sync()
            self._end = end
            self.durable = batch[-1][0]
            del self._waiting[: len(batch)]
        return self.durable

    def rotate(self) -> None:
        """Begin a new segment, after a snapshot, so that `forget` can drop the old one. Raises DiskTrouble or SyncFailed."""
        if self._failed is not None:
            raise self._failed
        if self._end == HEADER.size:
            return
        old, fd, end = self._segment, self._fd, self._end
        self._begin(old.index + 1)
        self._older.append(old)
        with contextlib.suppress(OSError):  # frees reserved room; bytes beyond the end are never read
            self.disk.truncate(fd, end)
        self.disk.close(fd)

    def forget(self, upto: int) -> int:
        """Unlink segments without records after `upto`, the last that the oldest kept snapshot covers. Returns their number."""
        chain = [*self._older, self._segment]
        done = 0
        while len(chain) > done + 1 and chain[done + 1].first <= upto + 1:
            with trouble(f"unlink {chain[done].path}"), contextlib.suppress(FileNotFoundError):
                self.disk.unlink(chain[done].path)
            done += 1
            del self._older[0]
        return done

    def close(self) -> None:
        """Close the segment. Records that were not committed are lost."""
        if self._fd >= 0:
            self.disk.close(self._fd)
            self._fd = -1

    def _frame(self, number: int, record: tuple[Buffer, ...]) -> bytes:
        length = sum(memoryview(buffer).nbytes for buffer in record)
        return FRAME.pack(self._segment.digest(number, record), number, length)

    def _reserve(self, end: int) -> None:
        """Reserve whole extents up to `end`. A full disk refuses here, before a byte of the record is written."""
        if end > self._reserved:
            more = math.ceil((end - self._reserved) / self.extent) * self.extent
            self.disk.allocate(self._fd, self._reserved, more)
            self._reserved += more

    def _sync(self) -> None:
        try:
            disks.sync(self.disk, self._fd, str(self._segment.path))
        except SyncFailed as error:
            self._failed = error
            raise

    def _begin(self, index: int) -> None:
        """Make a new segment, durable with its name, the one written to. If that fails, nothing has changed."""
        path = self.folder / name_of(index)
        segment = segment_at(path, index, self.durable + 1, self.epoch, self.run)
        with trouble(f"make {path}"):
            fd = self.disk.create(path)
            try:
                self.disk.allocate(fd, 0, self.extent)
                disks.write_all(self.disk, fd, [segment.header], 0)
                disks.sync(self.disk, fd, str(path))
                disks.sync_folder(self.disk, self.folder)
            except OSError as error:
                self._failed = error if isinstance(error, SyncFailed) else None
                self.disk.close(fd)
                with contextlib.suppress(OSError):  # an empty segment left behind does no harm
                    self.disk.unlink(path)
                raise
        self._segment, self._fd = segment, fd
        self._end, self._reserved = HEADER.size, self.extent

    def _cut(self, replay: Replay) -> None:
        """Cut the last segment after its last whole record, because a new segment goes on from there."""
        if replay.tail is None:
            return
        segment, end = replay.tail
        fd = self.disk.open(segment.path, write=True)
        try:
            if self.disk.size(fd) > end:
                self.disk.truncate(fd, end)
                disks.sync(self.disk, fd, str(segment.path))
        finally:
            self.disk.close(fd)

    def _drop(self, replay: Replay) -> None:
        """Unlink segments without readable records. Last of all: until now they were the only trace of their epochs."""
        if self._older and self._older[-1].first > replay.last:
            del self._older[-1]
        kept = {segment.index for segment in self._older}
        with trouble(f"clean {self.folder}"):
            for index in replay.indices:
                if index not in kept:
                    self.disk.unlink(self.folder / name_of(index))
