"""Facts about arrays that come and go in pieces: whose turn it is, what stays, where it waits. No sockets, and a clock wound by
hand."""

from __future__ import annotations

import itertools
import os
from dataclasses import replace
from pathlib import Path

import numpy as np
import psutil
import pytest

from shoal.coordinator.arrays import Arrays, Frames, Gathered, Spool
from shoal.coordinator.deciding.deeds import Ship, Store, Stored
from shoal.coordinator.deciding.receiving import LARGE, Delivery, Receiving
from shoal.coordinator.deciding.serving import KEPT, Serving
from shoal.coordinator.keeping.disk import DiskTrouble
from shoal.coordinator.lately import Lately
from shoal.coordinator.sharing import Sharing
from shoal.protocol.fetching import LEAST, MOST, PROBE, UNKNOWN, Fetch, Way
from shoal.protocol.layout import ALIGNMENT, Bundle, Layout
from shoal.protocol.link import Part
from shoal.protocol.messages import Chunk, Contribute, Envelope, TaskName, Want, Weights

ROOM = 4 * LEAST


def made(task: TaskName, nbytes: int, attempt: int = 1) -> Contribute:
    return Contribute(task, attempt, task[0], 1.0, "layout", False, {}, {}, 0.0, 0.0, (), nbytes)


class Story:
    """A Receiving, a clock, and what was asked for last, and in vain."""

    def __init__(self, room: int = ROOM) -> None:
        self.now, self.receiving = 100.0, Receiving(room)
        self.deliveries: dict[TaskName, Delivery] = {}
        self.wants: list[tuple[bytes, Want]] = []
        self.in_vain: list[bytes] = []

    def pull(self, session: str, task: TaskName, nbytes: int, attempt: int = 1) -> Story:
        self.deliveries[task] = Delivery(session.encode(), made(task, nbytes, attempt))
        self.receiving.pull(self.deliveries[task])
        return self

    def drop(self, task: TaskName) -> Story:
        self.receiving.drop(self.deliveries[task])
        return self

    def ask(self, after: float = 0.0, starved: bool = False) -> Story:
        self.now += after
        self.wants, self.in_vain = self.receiving.ask(self.now, starved)
        return self

    def come(self, session: str, want: Want) -> bool:
        """What was wanted comes. Is it whole?"""
        delivery = self.receiving.came(session.encode(), Chunk(want.what, want.first, want.last), self.now)
        assert delivery is not None
        return delivery.state == "here"

    def all(self, session: str) -> int:
        """Everything that this session is asked for comes. How many bytes that was."""
        nbytes, whole = 0, False
        while not whole:
            [want] = [want for one, want in self.ask(0.01).wants if one == session.encode()]
            nbytes += want.last - want.first
            whole = self.come(session, want)
        return nbytes

    def asked(self) -> list[tuple[str, tuple[int, ...]]]:
        return [(session.decode(), want.what) for session, want in self.wants]


def test_what_is_pulled_is_asked_for_until_it_is_whole() -> None:
    story = Story().pull("a", (0, 0), 2 * LEAST + 1)
    assert story.all("a") == 2 * LEAST + 1
    assert story.ask(1.0).wants == []


def test_the_way_of_a_session_is_tried_once() -> None:
    story = Story().pull("a", (0, 0), 10).ask()
    assert [(want.first, want.last) for _, want in story.wants] == [PROBE]
    story.come("a", story.wants[0][1])
    story.ask()
    story.come("a", story.wants[0][1])
    story.drop((0, 0))
    story.pull("a", (0, 1), 10).ask()
    assert [(want.first, want.last) for _, want in story.wants] == [(0, 10)]


def test_a_session_sends_one_at_a_time_and_others_do_not_wait_for_it() -> None:
    story = Story().pull("a", (0, 0), 10).pull("a", (0, 1), 10).pull("b", (0, 2), 10).ask()
    assert story.asked() == [("a", (0, 0, 1)), ("b", (0, 2, 1))]
    story.come("a", story.wants[0][1])
    assert story.all("a") == 10
    assert ("a", (0, 1, 1)) in story.ask().asked()


def test_what_is_here_and_not_folded_in_has_a_bound() -> None:
    story = Story(room=2 * LEAST)
    for at, session in enumerate("abc"):
        story.pull(session, (0, at), LEAST)
    assert [session for session, _ in story.ask().asked()] == ["a", "b"]
    for session, want in story.wants:
        story.come(session.decode(), want)
    story.all("a")
    assert "c" not in [session for session, _ in story.ask().asked()]  # it is here, and waits for the learner
    story.drop((0, 0))
    assert story.receiving.held == LEAST
    assert "c" in [session for session, _ in story.ask().asked()]


def test_one_more_is_fetched_where_nothing_that_is_here_can_be_folded_in() -> None:
    # all of it is meant for later versions, and what the next one waits for has no room: nothing would ever move
    story = Story(room=LEAST).pull("a", (0, 0), LEAST)
    story.all("a")
    story.pull("b", (0, 1), LEAST).pull("c", (0, 2), LEAST)
    assert story.ask(starved=False).wants == []
    assert [session for session, _ in story.ask(starved=True).asked()] == ["b"]
    assert [session for session, _ in story.ask(1.0, starved=True).asked()] == []


def test_of_what_is_larger_than_the_room_no_more_is_under_way_than_fits_in_it() -> None:
    story = Story()
    for at in range(4):
        story.pull(f"actor {at}", (0, at), 100 * ROOM)
    for one, want in story.ask().wants:
        story.now += 0.25  # a long way
        story.come(one.decode(), want)
    for way in story.receiving._ways.values():
        way.rate, way.rtt = 1e9, 1.0
    assert sum(want.last - want.first for _, want in story.ask().wants) == ROOM


def test_what_is_larger_than_the_room_goes_elsewhere_and_does_not_count() -> None:
    story = Story(room=LEAST)
    for at in range(LARGE + 1):
        story.pull(f"actor {at}", (0, at), 2 * LEAST)
    assert len(story.ask().wants) == LARGE
    assert (story.receiving.held, story.receiving.large) == (0, LARGE)
    story.drop((0, 0))
    assert len(story.ask().wants) == 1


def test_another_attempt_takes_the_place_of_the_last() -> None:
    story = Story().pull("a", (0, 0), 10).ask().drop((0, 0))
    story.pull("b", (0, 0), 10, attempt=2).ask()
    assert story.asked() == [("b", (0, 0, 2))]
    assert story.receiving.held == 10
    assert story.receiving.came(b"a", Chunk((0, 0, 1), *PROBE), story.now) is None


@pytest.mark.parametrize(
    ("session", "what", "piece"),
    [
        (b"b", (0, 0, 1), (0, 10)),
        (b"a", (0, 0, 2), (0, 10)),
        (b"a", (0, 1, 1), (0, 10)),
        (b"a", (0,), (0, 10)),
        (b"a", (), (0, 10)),
        (b"a", (0, 0, 1), (0, 9)),
        (b"a", (0, 0, 1), (10, 0)),
    ],
)
def test_what_was_not_asked_for_is_not_taken(session: bytes, what: tuple[int, ...], piece: tuple[int, int]) -> None:
    story = Story().pull("a", (0, 0), 10).ask()
    story.come("a", story.wants[0][1])
    story.ask()
    assert story.receiving.came(session, Chunk(what, *piece), story.now) is None
    assert story.receiving.came(b"a", Chunk((0, 0, 1), 0, 10), story.now) is not None


def test_after_a_cut_what_was_under_way_is_asked_for_again() -> None:
    story = Story().pull("a", (0, 0), 2 * LEAST).ask()
    story.come("a", story.wants[0][1])
    before = story.ask(0.01).wants
    story.receiving.cut(b"a")
    assert story.ask(0.01).wants == before
    story.receiving.cut(b"nobody")


def test_it_is_told_when_pieces_were_waited_for_in_vain() -> None:
    story = Story().pull("a", (0, 0), LEAST).ask()
    assert (story.ask(UNKNOWN - 1.0).wants, story.in_vain) == ([], [])
    assert [(want.first, want.last) for _, want in story.ask(2.0).wants] == [PROBE]
    assert story.in_vain == [b"a"]


def test_what_does_not_move_is_told() -> None:
    story = Story(room=LEAST).pull("a", (0, 0), LEAST).pull("b", (0, 1), LEAST).ask()
    story.now += 5.0
    assert story.receiving.stalled(story.now - 4.0) == [(0, 0)]  # the other waits for its turn, which is no fault of its own
    story.come("a", story.wants[0][1])
    assert story.receiving.stalled(story.now - 4.0) == []


def test_what_leaves_the_queue_lets_those_behind_it_go_on() -> None:
    story = Story(room=2 * LEAST).pull("a", (0, 0), LEAST).pull("b", (0, 1), 2 * LEAST).pull("c", (0, 2), LEAST).ask()
    assert [session for session, _ in story.asked()] == ["a"]
    assert [session for session, _ in story.drop((0, 1)).ask().asked()] == ["c"]
    assert not story.drop((0, 0)).drop((0, 2)).receiving.held
    assert story.receiving.idle


# Weights


def weights(number: int) -> Bundle:
    return Bundle.pack({"w": np.full(100, number, np.float32)})


def test_weights_are_had_by_those_who_were_told_of_them() -> None:
    serving = Serving()
    serving.publish(1)
    assert serving.wanted(b"a", (1,), 0, 400) is None
    serving.begin(b"a", (1,), weights(1).data)
    assert serving.wanted(b"a", (1,), 40, 80) is not None
    for first, last in ((-1, 10), (0, 401), (50, 40), (0, MOST + 1)):
        assert serving.wanted(b"a", (1,), first, last) is None
    assert serving.wanted(b"a", (1, 0), 0, 4) is None


def test_a_version_stays_while_somebody_fetches_it_and_no_longer() -> None:
    serving = Serving()
    serving.publish(1)
    serving.begin(b"a", (1,), weights(1).data)
    for version in (2, 3, 4):
        serving.publish(version)
    assert serving.wanted(b"a", (1,), 0, 4) is not None
    serving.end(b"a", 2)  # an old word of another version
    assert serving.wanted(b"a", (1,), 0, 4) is not None
    serving.end(b"a", 1)
    assert serving.wanted(b"a", (1,), 0, 4) is None
    assert not serving._kept


def test_a_version_goes_with_the_last_who_fetched_it() -> None:
    serving = Serving()
    serving.publish(1)
    serving.begin(b"a", (1,), weights(1).data)
    serving.publish(2)
    serving.end(b"b", None)
    assert serving._kept
    serving.end(b"a", None)
    assert not serving._kept


def test_of_many_versions_those_go_first_that_nobody_asks_for_any_more() -> None:
    serving = Serving()
    for version in range(9):
        serving.publish(version)
        serving.begin(b"%d" % version, (version,), weights(version).data)
        assert serving.wanted(b"0", (0,), 0, 4) is not None  # slow, but it goes on
    assert len(serving._kept) == KEPT + 1
    assert serving.wanted(b"1", (1,), 0, 4) is None
    assert serving.wanted(b"8", (8,), 0, 4) is not None


# What changed


def change(number: int) -> Bundle:
    return Bundle.pack({"w": np.full(3, number, np.float32)})


def told(lately: Lately, version: int) -> list[float]:
    """The first number of each change since then."""
    since = lately.since(version)
    return [] if since is None else [float(since[at : at + 4].view(np.float32)[0]) for at in range(0, since.nbytes, ALIGNMENT)]


def after(lately: Lately, *versions: int, room: int = 400) -> Lately:
    for version in versions:
        lately = lately.then(version, change(version), room)
    return lately


def test_what_changed_is_told_from_any_version_of_late() -> None:
    lately = Lately(7)
    assert [told(lately, version) for version in (-1, 6, 7, 8)] == [[], [], [], []]
    lately = after(lately, 8, 9, 10)
    assert [told(lately, version) for version in (6, 7, 8, 9, 10, 11)] == [[], [8, 9, 10], [9, 10], [10], [], []]


def test_what_changed_is_kept_while_it_is_less_than_the_whole() -> None:
    lately = after(Lately(-1), *range(9), room=37)  # 12 bytes each
    assert [told(lately, version) for version in (4, 5, 6, 7)] == [[], [6, 7, 8], [7, 8], [8]]
    assert told(after(lately, 9, room=12), 8) == []  # as many as the whole


def test_nothing_is_told_across_a_version_that_does_not_say_what_changed() -> None:
    lately = after(after(Lately(0), 1).then(2, None, 400), 3)
    assert [told(lately, version) for version in (0, 1, 2)] == [[], [], [3]]


def test_bytes_that_go_by_the_socket_are_counted_where_they_have_far_to_go() -> None:
    near, far = (Arrays([], Sharing(), None, near) for near in (True, False))
    data, envelope = weights(1).data, Envelope(b"a", 1, Weights(1))
    for arrays in (near, far):
        part = arrays.cut(Ship(b"a", envelope, data, 40, 80))
        assert isinstance(part, Part)
        assert part.whole[part.first : part.last].view(np.float32).tolist() == [1.0] * 10
        assert arrays.cut(Ship(b"a", envelope, data, 0, 400)) is data
        assert arrays.cut(Ship(b"a", envelope, data, 0, 0)) is None
        arrays.came(memoryview(b"1234567"))
    assert near.flush() == {"down_bytes": 0.0, "up_bytes": 0.0}
    assert far.flush() == {"down_bytes": 440.0, "up_bytes": 7.0}
    assert far.flush() == {"down_bytes": 0.0, "up_bytes": 0.0}


# Where pieces wait


@pytest.mark.parametrize("kind", ["memory", "file"])
def test_pieces_in_any_order_are_the_bundle_again(kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    layout = Layout.of({"w": ("f4", (3 * LEAST // 4 + 5,)), "n": ("i8", (3,))})
    whole = Bundle.zeros(layout)
    whole["w"][...] = np.arange(whole["w"].size)
    whole["n"][...] = (1, 2, 3)
    monkeypatch.setattr("shoal.coordinator.arrays.READ", LEAST + ALIGNMENT)  # so that a file is read in several turns
    store: Gathered = Frames() if kind == "memory" else Spool(tmp_path)
    cuts = [0, LEAST, 2 * LEAST, 3 * LEAST, layout.nbytes]
    for first, last in sorted(itertools.pairwise(cuts), reverse=True):
        store.put(first, memoryview(whole.data[first:last]))
    found = store.bundle(layout)
    assert found.sha256() == whole.sha256()
    assert sum(float(x.sum()) for _, x in found.blocks("f4")) == pytest.approx(
        float(whole["w"].sum(dtype=np.float64)), rel=1e-6
    )
    assert list(tmp_path.iterdir()) == []  # a file without a name
    store.close()
    store.close()


def test_a_file_that_lost_its_end_is_no_contribution(tmp_path: Path) -> None:
    store, layout = Spool(tmp_path), Layout.of({"w": ("f4", (32,))})
    store.put(0, memoryview(bytes(128)))
    os.truncate(store._fd, 64)
    with pytest.raises(OSError, match="64 bytes of a spooled contribution where 128 were written"):
        store.bundle(layout).sha256()
    store.close()


def test_a_folder_that_takes_no_file_is_trouble_to_be_tried_again(tmp_path: Path) -> None:
    with pytest.raises(DiskTrouble, match="cannot make a file for what comes in pieces"):
        Spool(tmp_path / "missing")


@pytest.mark.parametrize("large", [False, True])
def test_a_delivery_is_gathered_where_there_is_room_for_it_and_leaves_nothing_behind(large: bool, tmp_path: Path) -> None:
    layout = Layout.of({"w": ("f4", (100,))})
    arrays = Arrays([layout], Sharing(), tmp_path, False)
    delivery = Delivery(b"a", replace(made((0, 0), 400), layout=layout.digest), large=large, fetch=Fetch(400, Way()))
    data = np.arange(100, dtype=np.float32).view(np.uint8)
    for first in (128, 0):
        assert arrays.store(Store(delivery, first, data[first : first + (128 if first == 0 else 272)])) == Stored(delivery)
    assert isinstance(delivery.arrays, Spool if large else Frames)
    bundle = arrays.bundle(delivery)
    assert bundle is not None
    assert bundle["w"].tolist() == list(range(100))
    files = psutil.Process().num_fds()
    arrays.let_go(delivery)
    assert (delivery.arrays, list(tmp_path.iterdir())) == (None, [])
    assert psutil.Process().num_fds() == files - large


def test_a_disk_that_takes_no_piece_is_told_and_not_raised(tmp_path: Path) -> None:
    arrays = Arrays([], Sharing(), tmp_path / "missing", False)
    delivery = Delivery(b"a", made((0, 0), 400), large=True, fetch=Fetch(400, Way()))
    stored = arrays.store(Store(delivery, 0, np.zeros(4, np.uint8)))
    assert (stored.delivery, "cannot make a file" in stored.trouble, delivery.arrays) == (delivery, True, None)
