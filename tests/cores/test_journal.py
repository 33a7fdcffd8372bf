"""Facts about the journal: what is committed is read again, and nothing else ever is."""

from __future__ import annotations

import contextlib
import errno
import os
import threading
from collections.abc import Callable
from pathlib import Path
from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shoal.coordinator.keeping.disk import Disk, DiskTrouble, SyncFailed
from shoal.coordinator.keeping.journal import Journal
from shoal.coordinator.keeping.replay import FRAME, HEADER, Replay
from shoal.faults.ramdisk import File, RamDisk
from shoal.protocol.errors import UserError

FOLDER = Path("run/journal")
RECORDS = [b"first", b"", b"third " * 50, b"\0" * 40, b"last"]


class Run:
    """A run directory on a disk, the lines reported about it, and the journal's next life."""

    def __init__(self, disk: Disk | None = None, folder: Path = FOLDER, extent: int = 4096) -> None:
        self.disk = disk or RamDisk()
        self.folder = folder
        self.extent = extent
        self.lines: list[str] = []

    def replay(self, after: int = 0, run: str = "run") -> Replay:
        return Replay(self.folder, run, after, report=self.lines.append, disk=self.disk)

    def open(self, after: int = 0) -> Journal:
        replay = self.replay(after)
        return Journal(replay, replay.epoch + 1, self.extent)

    def written(self, *records: bytes) -> Journal:
        journal = self.open()
        for record in records:
            journal.append(record)
        journal.commit()
        return journal

    def read(self, after: int = 0) -> list[bytes]:
        return list(self.replay(after))


def disk_of(run: Run) -> RamDisk:
    assert isinstance(run.disk, RamDisk)
    return run.disk


def file_of(run: Run, index: int = 1) -> File:
    return disk_of(run).seen[FOLDER / f"{index:08d}.journal"]


def test_what_was_committed_is_read_again_in_order() -> None:
    run = Run()
    assert run.written(*RECORDS).durable == 5
    assert run.read() == RECORDS
    assert run.lines == []


def test_what_was_only_appended_is_not_durable() -> None:
    run = Run()
    journal = run.written(b"one")
    assert journal.append(b"two") == 2
    assert journal.durable == 1
    assert run.read() == [b"one"]


def test_everything_since_the_last_commit_takes_one_sync() -> None:
    run = Run()
    journal = run.open()
    calls: list[str] = []
    disk_of(run).fault = lambda call, path: calls.append(call) or 0  # type: ignore[func-returns-value]
    for k in range(100):
        journal.append(b"%d" % k)
    assert journal.commit() == 100
    assert calls == ["write", "sync"]
    assert journal.commit() == 100
    assert calls == ["write", "sync"]  # nothing new: nothing done


def test_parts_of_a_record_are_read_as_one() -> None:
    run = Run()
    journal = run.open()
    journal.append(b"header", memoryview(bytearray(b"payload")), b"")
    journal.commit()
    assert run.read() == [b"headerpayload"]


def test_a_record_larger_than_the_window_and_the_extent_fits(tmp_path: Path) -> None:
    run = Run(Disk(), tmp_path / "journal")
    large = Random(0).randbytes(3_000_001)
    with contextlib.closing(run.written(b"before", large, b"after")):
        assert run.read() == [b"before", large, b"after"]


def test_a_record_above_the_limit_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("shoal.coordinator.keeping.journal.LARGEST", 10)
    journal = Run().open()
    with pytest.raises(ValueError, match="11 bytes is above the 10"):
        journal.append(b"12345", b"678901")
    assert journal.append(b"1234567890") == 1


def test_a_restart_goes_on_with_the_next_number_in_a_higher_epoch() -> None:
    run = Run()
    run.written(b"one", b"two")
    journal = run.open()
    assert journal.epoch == 2
    assert journal.append(b"three") == 3
    journal.commit()
    assert run.read() == [b"one", b"two", b"three"]
    assert run.read(after=2) == [b"three"]
    with pytest.raises(ValueError, match="epoch 2 is not above 2"):
        Journal(run.replay(), 2)


def test_restarts_that_write_nothing_leave_no_segments_behind() -> None:
    run = Run()
    run.written(b"one")
    for _ in range(5):
        journal = run.open()
    assert disk_of(run).names(FOLDER) == ["00000001.journal", "00000006.journal"]
    assert (journal.epoch, journal.durable) == (6, 1)


def test_another_runs_journal_is_refused() -> None:
    run = Run()
    run.written(b"one")
    with pytest.raises(UserError, match="is of run 'run', not 'other'"):
        run.replay(run="other")


def test_a_journal_is_forgotten_only_up_to_what_a_snapshot_covers() -> None:
    run = Run()
    journal = run.written(b"1", b"2")
    journal.rotate()
    journal.append(b"3")
    journal.commit()
    journal.rotate()
    assert journal.forget(1) == 0  # record 2 is still needed
    assert journal.forget(2) == 1
    assert run.read(after=2) == [b"3"]
    assert journal.forget(3) == 1
    assert run.read(after=3) == []
    assert journal.forget(99) == 0  # never the segment being written


def test_a_start_from_an_older_snapshot_than_the_journal_reaches_back_to_is_refused() -> None:
    run = Run()
    journal = run.written(b"1", b"2")
    journal.rotate()
    journal.append(b"3")
    journal.commit()
    journal.forget(2)
    with pytest.raises(UserError, match="begins at record 3, but the newest whole snapshot ends at 1"):
        run.replay(after=1)


def test_damage_before_the_snapshot_does_not_matter() -> None:
    run = Run()
    journal = run.written(b"1", b"2")
    journal.rotate()
    journal.append(b"3")
    journal.commit()
    file_of(run).seen[HEADER.size + FRAME.size] ^= 1
    file_of(run).durable = bytes(file_of(run).seen)
    assert run.read(after=2) == [b"3"]
    assert run.lines == []


def test_rotation_keeps_what_waits_for_the_next_commit() -> None:
    run = Run()
    journal = run.written(b"1")
    journal.append(b"2")
    journal.rotate()
    assert journal.commit() == 2
    assert run.read() == [b"1", b"2"]


def test_a_torn_tail_is_reported_and_cut_and_the_journal_goes_on() -> None:
    run = Run()
    run.written(b"one", b"two")
    file = file_of(run)
    file.durable = file.durable[: HEADER.size + 2 * FRAME.size + 3 + 1]  # within "two"
    journal = run.open()
    assert journal.durable == 1
    assert "record 2, at byte 135, is torn or damaged; cut there" in run.lines[0]
    journal.append(b"two again")
    journal.commit()
    run.lines.clear()
    assert run.read() == [b"one", b"two again"]
    assert run.lines == []
    assert len(file_of(run).seen) == HEADER.size + FRAME.size + 3


def test_damage_in_an_older_segment_ends_everything_after_it_and_says_so() -> None:
    run = Run()
    run.written(b"one", b"two")
    run.open().close()
    journal = run.open(after=0)
    journal.append(b"three")
    journal.commit()
    file_of(run).durable = file_of(run).durable.replace(b"two", b"twO")
    assert run.read() == [b"one"]
    assert any("records after 1 are not used: 00000003.journal" in line for line in run.lines)
    journal = run.open()
    journal.append(b"two again")
    journal.commit()
    assert run.read() == [b"one", b"two again"]


def test_a_record_left_over_from_another_segment_is_not_read() -> None:
    """Whole, at the right place, with the right number, but under another segment's header."""
    run, other = Run(), Run()
    run.written(b"honest")
    other.open()
    other.written(b"formed")
    theirs = file_of(other, 2).durable[HEADER.size : HEADER.size + 26]
    mine = file_of(run)
    mine.durable = mine.durable[: HEADER.size] + theirs + mine.durable[HEADER.size + 26 :]
    assert run.read() == []
    assert len(run.lines) == 1


def wounded(change: Callable[[bytearray], None]) -> tuple[Run, list[bytes]]:
    run = Run()
    run.written(*RECORDS)
    journal = run.open()
    journal.append(b"second life")
    journal.commit()
    content = bytearray(file_of(run).durable)
    change(content)
    file_of(run).durable = bytes(content)
    return run, [*RECORDS, b"second life"]


@given(st.integers(0, 4095), st.integers(0, 7))
def test_any_flipped_bit_leaves_a_prefix(byte: int, bit: int) -> None:
    def flip(content: bytearray) -> None:
        content[byte % len(content)] ^= 1 << bit

    run, written = wounded(flip)
    try:
        found = run.read()
    except UserError:
        return  # the first header is gone: nothing is loaded, nothing destroyed
    assert found == written[: len(found)]
    assert found == written or run.lines


@given(st.integers(0, 4095))
def test_any_truncation_leaves_a_prefix(length: int) -> None:
    def cut(content: bytearray) -> None:
        del content[length % len(content) :]

    run, written = wounded(cut)
    try:
        found = run.read()
    except UserError:
        return
    assert found == written[: len(found)]


@given(st.binary(max_size=2000))
def test_a_file_of_anything_is_no_journal(content: bytes) -> None:
    run = Run()
    disk_of(run).make_folder(FOLDER)
    file = File(bytearray(content), content)
    disk_of(run).seen[FOLDER / "00000001.journal"] = file
    assert run.read() == []
    assert run.open().commit() == 0


@given(st.lists(st.lists(st.binary(max_size=300), max_size=6), max_size=5), st.integers(1, 64))
def test_round_trip_over_any_lives_and_short_writes(lives: list[list[bytes]], longest: int) -> None:
    run = Run()
    disk_of(run).longest = longest
    for records in lives:
        journal = run.open()
        for record in records:
            journal.append(record)
        journal.commit()
    assert run.read() == [record for records in lives for record in records]
    assert run.lines == []


def test_one_thread_may_append_while_another_commits() -> None:
    run = Run()
    journal = run.open()
    records = [b"%d" % k for k in range(3000)]
    writer = threading.Thread(target=lambda: [journal.append(record) for record in records])
    writer.start()
    while journal.commit() < len(records):
        pass
    writer.join()
    assert run.read() == records


def test_a_full_disk_acknowledges_nothing_and_the_journal_recovers_by_itself() -> None:
    run = Run()
    journal = run.written(b"before")
    disk_of(run).capacity = len(file_of(run).seen)
    assert journal.append(b"fits" * 100) == 2
    assert journal.commit() == 2  # what was reserved is still there
    journal.append(b"x" * 5000)
    for _ in range(3):
        with pytest.raises(DiskTrouble) as failure:
            journal.commit()
        assert failure.value.errno == errno.ENOSPC
        assert journal.durable == 2
    assert run.read() == [b"before", b"fits" * 100]
    journal.append(b"later")
    disk_of(run).capacity = 1 << 30
    assert journal.commit() == 4
    assert run.read() == [b"before", b"fits" * 100, b"x" * 5000, b"later"]


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EIO, errno.EROFS])
@pytest.mark.parametrize("call", ["write", "allocate", "create"])
def test_a_failing_call_is_trouble_that_passes(call: str, code: int) -> None:
    run = Run()
    journal = run.written(b"1")
    disk_of(run).fault = lambda its, path: code if its == call else 0
    journal.append(b"x" * 9000)
    with pytest.raises(DiskTrouble):
        journal.rotate() if call == "create" else journal.commit()
    disk_of(run).fault = lambda its, path: 0
    assert journal.commit() == 2
    assert run.read() == [b"1", b"x" * 9000]


def test_a_failed_sync_is_final_and_what_it_dropped_is_not_believed() -> None:
    run = Run()
    journal = run.written(b"1")
    disk_of(run).fault = lambda call, path: errno.EIO if call == "sync" else 0
    journal.append(b"2")
    with pytest.raises(SyncFailed):
        journal.commit()
    disk_of(run).fault = lambda call, path: 0
    with pytest.raises(SyncFailed):  # though it would succeed now
        journal.commit()
    with pytest.raises(SyncFailed):
        journal.rotate()
    assert bytes(file_of(run).seen).count(b"2") == 1  # the page cache still shows it
    run.disk = disk_of(run).killed()
    assert run.read() == [b"1"]


def test_a_sector_that_cannot_be_read_ends_the_journal_there() -> None:
    class Bad(RamDisk):
        def read(self, fd: int, length: int, offset: int) -> bytes:
            if offset + length > bad:
                raise OSError(errno.EIO, "bad sector")
            return super().read(fd, length, offset)

    bad = 1 << 62
    run = Run(Bad())
    run.written(b"one", b"two")
    bad = HEADER.size + FRAME.size + 3 + 5
    assert run.read() == [b"one"]
    assert "torn or damaged" in run.lines[0]


def test_a_real_disk_that_refuses_to_grow_writes_short_and_recovers(tmp_path: Path) -> None:
    """The limit on a file's size stands in for a full disk: the kernel itself writes short, then refuses."""
    resource = pytest.importorskip("resource")

    class Sparse(Disk):
        def allocate(self, fd: int, start: int, length: int) -> None:
            os.ftruncate(fd, 0) if start == 0 else None

    run = Run(Sparse(), tmp_path / "journal")
    with contextlib.closing(run.written(b"before")) as journal:
        journal.append(b"x" * 50_000)
        before = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, before[1]))
        try:
            with pytest.raises(DiskTrouble):
                journal.commit()
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, before)
        assert (tmp_path / "journal/00000001.journal").stat().st_size == 20_000
        assert run.read() == [b"before"]
        assert journal.commit() == 2
    assert run.read() == [b"before", b"x" * 50_000]
