"""Shared memory: segments, the board of weights, the ring of contributions."""

from __future__ import annotations

import contextlib
import fcntl
import os
import signal
import subprocess
import sys
import threading
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from shoal.actors import sharing
from shoal.actors.labour import Product
from shoal.protocol import memory, shared
from shoal.protocol.board import Board, BoardReader
from shoal.protocol.errors import ProtocolError, UserError
from shoal.protocol.layout import Bundle, Bytes, Layout
from shoal.protocol.link import ZERO_COPY
from shoal.protocol.memory import Room, room
from shoal.protocol.messages import Contribute
from shoal.protocol.ring import Ring, RingReader
from shoal.protocol.shared import Segment, StaleError, available

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="memfd is of Linux")


def filled(value: int, nbytes: int = 5000) -> Bytes:
    return np.full(nbytes, value, dtype=np.uint8)


@pytest.fixture
def board() -> Iterator[Board]:
    with contextlib.closing(Board(5000)) as board:
        yield board


@pytest.fixture
def reader(board: Board) -> Iterator[BoardReader]:
    with contextlib.closing(BoardReader(board.offer)) as reader:
        yield reader


@pytest.fixture
def ring() -> Iterator[Ring]:
    with contextlib.closing(Ring(2, 1000)) as ring:
        yield ring


@pytest.fixture
def coordinator(ring: Ring) -> Iterator[RingReader]:
    with contextlib.closing(RingReader(ring.offer)) as reader:
        yield reader


def publish(board: Board, version: int, data: Bytes) -> tuple[int, int] | None:
    """Copy weights into a slot that nobody holds, and commit it; None if every slot is held."""
    drafted = board.draft()
    if drafted is None:
        return None
    slot, memory = drafted
    np.copyto(memory, data)
    return board.commit(slot, version)


def held(board: Board, version: int, nbytes: int = 5000) -> tuple[int, int]:
    token = publish(board, version, filled(version, nbytes))
    assert token is not None
    board.hold(token)
    return token


def contribute(ring: Ring, value: int, nbytes: int = 1000) -> tuple[int, int, int]:
    acquired = ring.acquire()
    assert acquired is not None
    slot, data = acquired
    data[:nbytes] = value
    return ring.lend(slot, nbytes)


@contextlib.contextmanager
def process(program: str) -> Iterator[subprocess.Popen[str]]:
    """Another python, which says something in a line and then waits for its stdin to end."""
    command = [sys.executable, "-c", f"import sys\n{program}\nprint(*said, flush=True)\nsys.stdin.read()"]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as child:
        try:
            yield child
        finally:
            child.kill()


def said(child: subprocess.Popen[str]) -> tuple[int, ...]:
    assert child.stdout is not None
    return tuple(int(word) for word in child.stdout.readline().split())


OTHER_BOARD = """
import numpy as np
from shoal.protocol.board import Board
board = Board(5000)
slot, memory = board.draft()
memory[:] = np.full(5000, 9, np.uint8)
said = (*board.offer, *board.commit(slot, 7))
"""
OTHER_SEGMENT = """
from shoal.protocol.shared import Segment
segment = Segment.create(100)
said = segment.handle
"""


# Segments


def test_it_works_here() -> None:
    assert available() is None


def test_another_process_reads_what_was_written_and_still_does_when_its_writer_was_killed() -> None:
    with process(OTHER_BOARD) as child:
        words = said(child)
        reader = BoardReader(words[:6])
        before = reader.view(words[6:], 7).copy()
        child.send_signal(signal.SIGKILL)
        child.wait()
        np.testing.assert_array_equal(before, filled(9))
        np.testing.assert_array_equal(reader.view(words[6:], 7), filled(9))  # every page, also those not seen before
        reader.close()
        with pytest.raises(ProtocolError, match="cannot be opened here"):
            BoardReader(words[:6])


def test_a_segment_has_no_name_anywhere() -> None:
    before = set(os.listdir("/dev/shm"))
    with contextlib.closing(Segment.create(100)) as segment:
        assert set(os.listdir("/dev/shm")) == before
        assert os.fstat(segment.handle[1]).st_nlink == 0


def test_a_segment_may_begin_with_parts_and_is_read_as_if_they_were_copied_there(monkeypatch: pytest.MonkeyPatch) -> None:
    numbers, ints, write = np.arange(5000.0), np.arange(7, dtype=np.int32), os.pwrite
    monkeypatch.setattr(os, "pwrite", lambda descriptor, part, at: write(descriptor, part[:999], at))  # as for 2 GiB and more
    parts = [(64, memoryview(numbers)), (50_000, memoryview(ints)), (60_000, memoryview(np.zeros(0)))]
    with contextlib.closing(Segment.create(60_000, parts=parts)) as segment:
        read = Segment.open(segment.handle)
        assert (read.data[64:40_064].view(np.float64) == numbers).all()
        assert read.data[50_000:50_028].view(np.int32).tolist() == [0, 1, 2, 3, 4, 5, 6]
        assert int(np.count_nonzero(read.data[40_064:50_000])) == int(np.count_nonzero(read.data[:64])) == 0
        segment.data[0] = 3  # its creator may write on
        assert read.data[0] == 3
        read.close()


def test_nobody_can_change_the_size_of_a_segment() -> None:
    with contextlib.closing(Segment.create(100)) as segment:
        for nbytes in (0, 99, 101):
            with pytest.raises(PermissionError):
                os.ftruncate(segment.handle[1], nbytes)


def test_a_reader_cannot_write() -> None:
    with process(OTHER_SEGMENT) as child, contextlib.closing(Segment.open(said(child))) as segment:
        assert not segment.data.flags.writeable
        with pytest.raises(ValueError, match="WRITEABLE"):
            segment.data.flags.writeable = True


def test_nobody_but_the_creator_writes_even_with_a_descriptor_to_write() -> None:
    with contextlib.closing(Segment.create(100)) as segment:
        descriptor = os.open(f"/proc/self/fd/{segment.handle[1]}", os.O_RDWR)
        try:
            with pytest.raises(PermissionError):
                os.pwrite(descriptor, b"x", 0)
        finally:
            os.close(descriptor)
        segment.data[0] = 1


@pytest.mark.parametrize(
    ("place", "value"),
    [(0, 2**22 + 1), (1, 10**6), (2, 99), (2, 101), (2, 8192), (3, 1)],
    ids=["process", "descriptor", "smaller", "larger", "a page more", "inode"],
)
def test_a_handle_that_is_not_wholly_right_is_refused(place: int, value: int) -> None:
    with contextlib.closing(Segment.create(100)) as segment:
        handle = list(segment.handle)
        handle[place] = value
        with pytest.raises(ProtocolError):
            Segment.open(tuple(handle))


@pytest.mark.parametrize(
    "handle",
    [
        (),
        (1, 2, 3),
        (1, 2, 3, 4, 5),
        (1, 2, -3, 4),
        (1, 2, 0, 4),
        (-1, 2, 3, 4),
        (1, 2, 2**63, 4),
        (1, True, 3, 4),
        ("1", 2, 3, 4),
    ],
)
def test_what_is_not_a_handle_is_refused(handle: tuple[int, ...]) -> None:
    with pytest.raises(ProtocolError):
        Segment.open(handle)


def test_a_descriptor_used_again_for_another_segment_is_refused() -> None:
    first = Segment.create(100)
    handle = first.handle
    first.close()
    with contextlib.closing(Segment.create(100)) as second:
        assert second.handle[1] == handle[1]  # the number came back
        with pytest.raises(ProtocolError, match="is not the shared memory"):
            Segment.open(handle)


def test_a_file_is_not_a_segment(tmp_path: Path) -> None:
    with (tmp_path / "weights").open("wb+") as file:
        file.truncate(100)
        with pytest.raises(ProtocolError):
            Segment.open((os.getpid(), file.fileno(), 100, os.fstat(file.fileno()).st_ino))


def test_a_pipe_in_place_of_a_segment_does_not_block_whoever_opens_it() -> None:
    ends = os.pipe()
    try:
        with pytest.raises(ProtocolError, match="is not the shared memory"):
            Segment.open((os.getpid(), ends[0], 100, os.fstat(ends[0]).st_ino))
    finally:
        for end in ends:
            os.close(end)


@pytest.mark.parametrize("seals", [0, fcntl.F_SEAL_SHRINK, fcntl.F_SEAL_GROW])
def test_memory_that_could_change_its_size_is_refused(seals: int) -> None:
    descriptor = os.memfd_create("unsealed", os.MFD_ALLOW_SEALING)
    try:
        os.ftruncate(descriptor, 100)
        fcntl.fcntl(descriptor, fcntl.F_ADD_SEALS, seals)
        with pytest.raises(ProtocolError, match="not sealed"):
            Segment.open((os.getpid(), descriptor, 100, os.fstat(descriptor).st_ino))
    finally:
        os.close(descriptor)


def test_a_view_outlives_the_segment_it_is_of() -> None:
    segment = Segment.create(100)
    view = segment.data[10:20]
    segment.close()
    segment.close()
    view[:] = 7
    assert view.tolist() == [7] * 10


def descriptors() -> list[str]:
    return sorted(
        os.readlink(f"/proc/self/fd/{n}") for n in os.listdir("/proc/self/fd") if os.path.exists(f"/proc/self/fd/{n}")
    )


def test_descriptors_come_back_after_closing_and_after_the_last_view() -> None:
    before = descriptors()
    board, ring = Board(5000), Ring(2, 1000)
    readers = BoardReader(board.offer), RingReader(ring.offer)
    token = publish(board, 1, filled(1))
    assert token is not None
    view = BoardReader(board.offer).view(token, 1)
    with pytest.raises(ProtocolError):
        BoardReader((*board.offer[:3], 1, *board.offer[4:]))
    for close in (board.close, ring.close, readers[0].close, readers[1].close):
        close()
    assert len(descriptors()) == len(before) + 1  # the view's
    assert view[0] == 1
    del view
    assert descriptors() == before


def test_where_the_system_has_no_memfd_the_reason_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(*_: object) -> int:
        raise OSError(38, "Function not implemented")

    monkeypatch.setattr(os, "memfd_create", refused)
    assert available() == "memfd_create: Function not implemented; choose --transport ipc"


def test_where_proc_is_closed_the_reason_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(path: str, *_: object) -> os.stat_result:
        raise PermissionError(13, "Permission denied", path)

    monkeypatch.setattr(os, "stat", refused)
    assert str(available()).endswith("cannot be opened here: Permission denied")


# How much there is


def test_more_than_there_is_names_what_is_needed_what_is_left_and_what_to_change(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shared, "room", lambda: Room(1_500, "container"))
    with pytest.raises(UserError, match=r"2,000 bytes .* needed, 1,500 left by the container: .*--transport ipc"):
        Board(1000)


def test_room_is_what_the_machine_has_where_no_container_bounds_it(tmp_path: Path) -> None:
    (tmp_path / "meminfo").write_text("MemTotal: 100 kB\nMemAvailable: 60 kB\n")
    assert room(tmp_path, tmp_path) == Room(60 * 1024, "machine")


@pytest.mark.parametrize("version", [1, 2])
def test_room_is_what_the_narrowest_container_leaves_counting_cached_files_as_free(tmp_path: Path, version: int) -> None:
    (tmp_path / "self").mkdir()
    (tmp_path / "meminfo").write_text("MemAvailable: 60 kB\n")
    (tmp_path / "self" / "cgroup").write_text(["4:cpu,memory:/a/b\n", "0::/a/b\n"][version - 1])
    folder = tmp_path / "memory" if version == 1 else tmp_path
    names = [("memory.limit_in_bytes", "memory.usage_in_bytes", "total_"), ("memory.max", "memory.current", "")][version - 1]
    (folder / "a" / "b").mkdir(parents=True)
    for where, limit, used in ((folder / "a" / "b", "max", 9000), (folder / "a", "10000", 9500)):
        (where / names[0]).write_text(f"{limit}\n")
        (where / names[1]).write_text(f"{used}\n")
        (where / "memory.stat").write_text(f"anon 1\n{names[2]}inactive_file 700\n")
    assert room(tmp_path, tmp_path) == Room(10_000 - 9500 + 700, "container")


def test_room_is_unbounded_where_nothing_says(tmp_path: Path) -> None:
    assert room(tmp_path, tmp_path) == memory.UNBOUNDED


# The board


def test_weights_are_read_where_they_were_written(board: Board, reader: BoardReader) -> None:
    token = publish(board, 3, filled(1))
    assert token is not None
    view = reader.view(token, 3)
    np.testing.assert_array_equal(view, filled(1))
    assert not view.flags.writeable
    assert board.newest == (3, token)


def test_a_slot_that_is_held_is_not_written(board: Board, reader: BoardReader) -> None:
    first = held(board, 1)
    for version in range(2, 20):
        assert publish(board, version, filled(version)) is not None
    np.testing.assert_array_equal(reader.view(first, 1), filled(1))
    board.release(first)
    assert (0, 2) in {publish(board, 20, filled(20)), publish(board, 21, filled(21))}


def test_a_run_without_stragglers_uses_two_slots(board: Board) -> None:
    used = set()
    previous = None
    for version in range(50):
        token = held(board, version)
        if previous is not None:
            board.release(previous)
        previous = token
        used.add(token[0])
    assert used == {0, 1}


def test_when_slow_readers_hold_every_slot_publishing_waits_for_the_first_of_them() -> None:
    with contextlib.closing(Board(100, slots=3)) as board:
        tokens = [held(board, version, 100) for version in range(3)]
        assert publish(board, 3, filled(3, 100)) is None
        assert board.newest == (2, tokens[2])
        board.release(tokens[1])
        assert publish(board, 4, filled(4, 100)) == (1, 2)


def test_the_newest_is_overwritten_only_when_all_else_is_held(board: Board, reader: BoardReader) -> None:
    for version in range(3):
        held(board, version)
    assert publish(board, 3, filled(3)) == (3, 1)
    assert publish(board, 4, filled(4)) == (3, 2)
    with pytest.raises(StaleError, match="holds generation 2 of version 4, no longer generation 1 of version 3"):
        reader.view((3, 1), 3)


def test_a_third_slot_is_taken_only_where_there_is_memory_for_it(board: Board, monkeypatch: pytest.MonkeyPatch) -> None:
    for version in range(2):
        held(board, version)
    monkeypatch.setattr("shoal.protocol.board.room", lambda: Room(4999, "machine"))
    assert publish(board, 2, filled(2)) is None
    monkeypatch.setattr("shoal.protocol.board.room", lambda: Room(10_000, "machine"))
    assert publish(board, 3, filled(3)) == (2, 1)


def test_a_slot_is_stale_from_the_moment_it_is_written_again(board: Board, reader: BoardReader) -> None:
    token = publish(board, 1, filled(1))
    assert token is not None
    assert publish(board, 2, filled(2)) is not None
    view = reader.view(token, 1)
    drafted = board.draft()
    assert drafted is not None
    slot, data = drafted
    assert slot == token[0]
    data[:10] = 3  # torn: the reader's view holds some of either
    assert set(view.tolist()) == {1, 3}
    with pytest.raises(StaleError, match="is being written"):
        reader.view(token, 1)
    board.commit(slot, 3)
    with pytest.raises(StaleError):
        reader.view(token, 1)
    reader.view((slot, token[1] + 1), 3)


def test_a_version_and_a_generation_that_do_not_belong_together_are_stale(board: Board, reader: BoardReader) -> None:
    token = publish(board, 1, filled(1))
    assert token is not None
    for wrong, version in ((token, 2), ((0, 2), 1), ((0, 0), 1), ((1, 1), 1), ((3, 0), 0)):
        with pytest.raises(StaleError):
            reader.view(wrong, version)


@pytest.mark.parametrize("token", [(), (0,), (0, 1, 2), (-1, 1), (4, 1)])
def test_a_token_outside_the_board_is_refused(board: Board, reader: BoardReader, token: tuple[int, ...]) -> None:
    assert publish(board, 1, filled(1)) == (0, 1)
    with pytest.raises(ProtocolError):
        reader.view(token, 1)


def test_our_own_mistakes_with_the_board_are_not_passed_over(board: Board) -> None:
    token = publish(board, 1, filled(1))
    assert token is not None
    with pytest.raises(ValueError, match="released more often than held"):
        board.release(token)
    with pytest.raises(ValueError, match="no longer there"):
        board.hold((0, 2))
    with pytest.raises(ValueError, match="is not drafted"):
        board.commit(0, 2)
    with pytest.raises(ValueError, match="versions only rise"):
        publish(board, 1, filled(1))
    with pytest.raises(ValueError, match="at least 2"):
        Board(100, slots=1)


@pytest.mark.parametrize("change", [(4, 5), (4, 0), (4, 65), (5, 9000), (5, -1), (2, 4096)])
def test_an_offer_whose_numbers_do_not_fit_is_refused(board: Board, change: tuple[int, int]) -> None:
    offer = list(board.offer)
    offer[change[0]] = change[1]
    with pytest.raises(ProtocolError):
        BoardReader(tuple(offer))


def test_an_abandoned_draft_frees_its_slot_and_leaves_the_newest(board: Board, reader: BoardReader) -> None:
    token = publish(board, 1, filled(1))
    assert token is not None
    drafted = board.draft()
    assert drafted is not None
    board.abandon(drafted[0])
    assert board.newest == (1, token)
    assert reader.view(token, 1)[0] == 1
    assert publish(board, 2, filled(2)) == (1, 2)


class AnyOrder(RuleBasedStateMachine):
    """Publishing, holding and releasing in any order, against a reader that maps the same memory."""

    def __init__(self) -> None:
        super().__init__()
        self.board = Board(64, slots=3)
        self.reader = BoardReader(self.board.offer)
        self.version = 0
        self.held: Counter[tuple[int, tuple[int, int]]] = Counter()
        self.drafted: dict[int, Bytes] = {}

    def free(self) -> int:
        return 3 - len({token[0] for _, token in self.held} | set(self.drafted))

    @rule()
    def publish(self) -> None:
        free = self.free()
        token = publish(self.board, self.version, filled(self.version % 251, 64))
        assert (token is None) == (free == 0)  # it waits when it must, and only then
        if token is not None:
            assert self.board.newest == (self.version, token)
        self.version += 1

    @rule()
    def draft(self) -> None:
        drafted = self.board.draft()
        if drafted is not None:
            drafted[1][:32] = 255
            self.drafted[drafted[0]] = drafted[1]

    @precondition(lambda self: self.drafted)
    @rule(whole=st.booleans())
    def finish(self, whole: bool) -> None:
        slot, data = self.drafted.popitem()
        if not whole:
            return self.board.abandon(slot)
        data[:] = self.version % 251
        token = self.board.commit(slot, self.version)
        assert self.board.newest == (self.version, token)
        self.version += 1

    @precondition(lambda self: self.board.newest)
    @rule()
    def hold(self) -> None:
        assert self.board.newest is not None
        self.board.hold(self.board.newest[1])
        self.held[self.board.newest] += 1

    @precondition(lambda self: self.held)
    @rule(data=st.data())
    def release(self, data: st.DataObject) -> None:
        version, token = data.draw(st.sampled_from(sorted(self.held)))
        self.board.release(token)
        self.held -= Counter([(version, token)])

    @invariant()
    def what_is_held_and_what_is_newest_is_whole(self) -> None:
        newest = [self.board.newest] if self.board.newest else []
        for version, token in [*self.held, *newest]:
            assert set(self.reader.view(token, version).tolist()) == {version % 251}

    @invariant()
    def the_newest_is_the_newest(self) -> None:
        if self.board.newest is not None:
            assert all(version <= self.board.newest[0] for version, _ in self.held)

    def teardown(self) -> None:
        self.reader.close()
        self.board.close()


AnyOrder.TestCase.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)
TestBoardInAnyOrder = AnyOrder.TestCase


# The ring


def test_a_contribution_is_read_where_the_worker_wrote_it(ring: Ring, coordinator: RingReader) -> None:
    layout = Layout.of({"w": ("f4", (3, 5)), "count": ("i8", ())})
    acquired = ring.acquire()
    assert acquired is not None
    slot, data = acquired
    made = Bundle.of_buffer(layout, data[: layout.nbytes])
    made["w"][...] = np.arange(15).reshape(3, 5)
    made["count"][...] = 4
    taken = Bundle.of_buffer(layout, coordinator.view(ring.lend(slot, layout.nbytes)))
    np.testing.assert_array_equal(taken.vector(), np.arange(15, dtype=np.float32))
    assert taken["count"] == 4
    assert taken.data.ctypes.data % 64 == 0
    assert not taken.data.flags.writeable


def test_a_slot_is_acquired_again_only_when_given_back(ring: Ring) -> None:
    first, second = contribute(ring, 1), contribute(ring, 2)
    assert ring.acquire() is None
    ring.give_back(second)
    assert contribute(ring, 3) == (second[0], second[1] + 1, 1000)
    assert first[0] != second[0]


def test_a_worker_can_wait_for_a_slot_that_another_thread_gives_back(ring: Ring) -> None:
    first = contribute(ring, 1)
    contribute(ring, 2)
    acquired: list[int] = []
    worker = threading.Thread(target=lambda: acquired.extend(slot for slot, _ in [ring.acquire(wait=60) or (-1, 0)]))
    worker.start()
    ring.give_back(first)
    worker.join()
    assert acquired == [first[0]]


def test_giving_back_what_is_not_lent_changes_nothing(ring: Ring) -> None:
    first = contribute(ring, 1)
    ring.give_back(first)
    second = contribute(ring, 2)
    for token in (first, (second[0], second[1], 999), (9, 1, 1000), ()):
        with pytest.raises(ProtocolError, match="not lent"):
            ring.give_back(token)
    assert contribute(ring, 3)[0] != second[0]
    assert ring.acquire() is None


def test_more_than_a_slot_holds_cannot_be_lent(ring: Ring) -> None:
    acquired = ring.acquire()
    assert acquired is not None
    with pytest.raises(ValueError, match="1,001 bytes do not fit a slot of 1,000"):
        ring.lend(acquired[0], 1001)


@pytest.mark.parametrize(
    "token", [(), (0, 1), (2, 1, 1000), (-1, 1, 1000), (0, 1, 1001), (0, 1, -1), (0, 1, 999), (0, 2, 1000)]
)
def test_a_token_that_was_not_lent_is_refused(ring: Ring, coordinator: RingReader, token: tuple[int, ...]) -> None:
    assert contribute(ring, 1) == (0, 1, 1000)
    with pytest.raises(ProtocolError):
        coordinator.view(token)


def test_the_same_token_again_is_the_same_contribution_until_it_is_done(ring: Ring, coordinator: RingReader) -> None:
    token = contribute(ring, 5)
    assert coordinator.view(token)[0] == coordinator.view(token)[0] == 5
    coordinator.done(token)
    coordinator.done(token)
    with pytest.raises(ProtocolError, match="was given back at generation 1"):
        coordinator.view(token)


def test_a_slot_lent_anew_while_the_coordinator_has_it_is_refused(ring: Ring, coordinator: RingReader) -> None:
    token = contribute(ring, 5)
    coordinator.view(token)
    ring.give_back(token)  # an actor that breaks the rule
    again = contribute(ring, 6)
    assert again[0] == token[0]
    with pytest.raises(ProtocolError, match="was not given back"):
        coordinator.view(again)
    with pytest.raises(StaleError):
        coordinator.view(token)
    coordinator.done(token)
    assert coordinator.view(again)[0] == 6


def test_many_contributions_go_through_two_slots(ring: Ring, coordinator: RingReader) -> None:
    total = np.zeros(1000)
    for value in range(100):
        token = contribute(ring, value)
        total += coordinator.view(token)
        coordinator.done(token)
        ring.give_back(token)
    assert set(total) == {float(sum(range(100)))}


def product(index: int) -> Product:
    bundle = Bundle.zeros(Layout.of({"w": ("f4", (ZERO_COPY,))}))
    return Product(Contribute((0, index), 1, 0, 1.0, bundle.layout.digest, False, {}, {}, 0.0, 0.0), bundle, 1)


def slot_of(placed: Product) -> tuple[int, ...]:
    assert isinstance(placed.message, Contribute)
    return placed.message.slot


@pytest.mark.parametrize(("large", "many"), [(4 * ZERO_COPY, sharing.SLOTS), (4 * ZERO_COPY - 1, sharing.FEW)])
def test_a_contribution_waits_for_a_slot_and_goes_by_the_socket_where_none_comes_back(
    large: int, many: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sharing, "LARGE", large)
    here, theirs = sharing.Shared(), Board(1_000)
    here.join(theirs.offer)
    slots = [slot_of(here.place(product(index), False)) for index in range(many)]
    assert all(slots)
    threading.Timer(0.02, here.give_back, [slots[1]]).start()
    monkeypatch.setattr(sharing, "WAIT", 60.0)
    waited = here.place(product(8), False)
    assert slot_of(waited)[:-2] == slots[1][:-2]
    assert waited.bundle is None
    monkeypatch.setattr(sharing, "WAIT", 0.01)
    other = here.place(product(9), False)
    assert (slot_of(other), other.bundle is None) == ((), False)
    here.close()
    theirs.close()
