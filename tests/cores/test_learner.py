"""Facts about the order in which the learner's thread tells what it did."""

from __future__ import annotations

import contextlib
import time
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from shoal.aggregators.fedavg import FedAvgServer
from shoal.coordinator.checks import Inspector
from shoal.coordinator.deciding.events import Fold, Folded, Kept, Step, Stepped
from shoal.coordinator.learner import Intake, Learner, Make
from shoal.coordinator.sharing import Sharing
from shoal.protocol.board import Board, BoardReader
from shoal.protocol.errors import UserError
from shoal.protocol.layout import Bundle, Layout
from shoal.protocol.messages import Contribute
from shoal.protocol.work import Contribution, Moved, Task

START = Bundle.pack({"w": np.zeros(5, np.float32)})


def intake(index: int, onto: int = 0) -> Intake:
    message = Contribute((0, index), 0, 0, 1.0, START.layout.digest, False, {}, {}, 0.0, 0.0)
    return Intake(Fold(Task(0, index, (index,)), (index,), message, onto), START)


class Book:
    """A recording that notes what the learner had told when it was asked for a snapshot, and how many folds it then covered."""

    def __init__(self) -> None:
        self.learner: Learner | None = None
        self.accepted = 0
        self.asked: list[tuple[int, list[object], int]] = []

    def accept(self, fold: Fold, bundle: Bundle) -> None:
        self.accepted += 1

    def commit(self, step: Step, weights: Bundle, figures: object) -> None:
        return

    def sync(self) -> None:
        return

    def keep(self, step: Step, weights: Bundle, aggregator: object) -> bool:
        assert self.learner is not None
        self.asked.append((step.version, [type(one) for one in self.learner.outcomes], self.accepted))
        return True


def test_a_version_is_told_before_its_snapshot_is_written_and_the_last_one_after_it() -> None:
    book: Any = Book()
    learner = book.learner = Learner(FedAvgServer(START), Inspector(), time.monotonic, recording=book)
    learner.put([intake(1, onto=1), intake(0), Make(Step(1, 0, 0))])
    assert [type(one) for one in learner.outcomes] == [Folded, Stepped, Kept, Folded]
    learner.put([Make(Step(2, 0, 0, last=True))])
    assert [type(one) for one in learner.outcomes][4:] == [Kept, Stepped]
    assert book.asked == [(1, [Folded, Stepped], 1), (2, [Folded, Stepped, Kept, Folded], 2)]


class Diverging:
    """An aggregator of a user's own, whose second step makes weights that are not finite."""

    linear = False

    def __init__(self, dtype: str, odd: float) -> None:
        layout = Layout.of({"fine": ("f4", (3,)), "burst": (dtype, (4,)), "count": ("i8", ())})
        self.now, self.odd, self.steps = Bundle.zeros(layout), odd, 0

    def weights(self) -> Bundle:
        return self.now.copy()

    def fold(self, contribution: Contribution) -> None:
        return

    def step(self) -> Moved:
        self.steps += 1
        if self.steps == 2:
            burst = np.asarray([0.0, 0.0, self.odd, 0.0], np.float32)
            self.now["burst"][...] = burst.view(np.uint32) >> 16 if self.now["burst"].dtype == np.uint16 else burst
        return Moved({"grad_norm": 7.5, "entropy": 1.0})


@pytest.mark.parametrize("dtype", ["f4", "f8", "f2", "bf16"])
@pytest.mark.parametrize("odd", [float("nan"), float("inf"), float("-inf")])
def test_a_version_that_is_not_finite_is_neither_told_nor_kept_by_any_rule(dtype: str, odd: float) -> None:
    book: Any = Book()
    aggregator: Any = Diverging(dtype, odd)
    learner = book.learner = Learner(aggregator, Inspector(), time.monotonic, recording=book)
    learner.put([intake(0), Make(Step(1, 0, 0))])
    assert (learner.newest[0], len(book.asked)) == (1, 1)
    fold = intake(1).fold
    lossy = Intake(replace(fold, message=replace(fold.message, totals={"loss": (9.0, 4.0)})), START)
    with pytest.raises(UserError) as wrong:
        learner.put([lossy, Make(Step(2, 0, 0))])
    assert str(wrong.value).startswith(
        "version 2 is not finite: 'burst' holds NaN or an infinity (loss 2.25, grad_norm 7.5). It is neither published nor kept"
    )
    assert (learner.newest[0], len(book.asked)) == (1, 1)
    assert not any(isinstance(one, Stepped) and one.version == 2 for one in learner.outcomes)


def test_large_weights_are_finite() -> None:
    learner = Learner(FedAvgServer(START, lr=3e38), Inspector(), time.monotonic)
    one = Bundle.pack({"w": np.ones(5, np.float32)})
    learner.put([replace(intake(0), bundle=one), Make(Step(1, 0, 0))])
    assert learner.newest[0] == 1
    with pytest.raises(UserError, match="version 2 is not finite: 'w' holds NaN or an infinity"):
        learner.put([replace(intake(1, onto=1), bundle=one), Make(Step(2, 0, 0))])


def test_the_learner_writes_the_next_weights_where_actors_of_this_machine_read_them() -> None:
    with contextlib.closing(Sharing(Board(START.layout.nbytes))) as shared:
        learner = Learner(FedAvgServer(START), Inspector(), time.monotonic)
        room = shared.draft()
        assert room is not None
        learner.put([intake(0), Make(Step(1, 0, 0), room)])
        assert shared.lend(b"a", 1) == ()  # not before it is published
        shared.publish(1)
        *token, written = shared.lend(b"a", 1)
        reader = BoardReader(shared.offer)
        assert (reader.view(tuple(token), written) == learner.newest[1].data).all()


def test_where_no_slot_is_free_a_version_goes_by_the_socket() -> None:
    with contextlib.closing(Sharing(Board(START.layout.nbytes, slots=2))) as shared:
        for version in (1, 2):
            assert shared.draft() is not None
            shared.publish(version)
            assert shared.lend(b"a", version) != ()
        assert shared.draft() is None
        assert shared.lend(b"b", 2) != ()  # it is out still
        shared.publish(3)
        assert shared.lend(b"a", 3) == ()


def test_a_version_is_not_lent_whose_slot_the_next_is_written_to() -> None:
    with contextlib.closing(Sharing(Board(START.layout.nbytes, slots=2))) as shared:
        for version in (1, 2):
            shared.draft()
            shared.publish(version)
            assert version == 2 or shared.lend(b"a", version) != ()
        assert shared.draft() is not None  # that of version 2, which nobody reads
        assert shared.lend(b"b", 2) == ()


def test_a_slot_is_free_again_when_its_reader_is_gone() -> None:
    with contextlib.closing(Sharing(Board(START.layout.nbytes, slots=2))) as shared:
        for version in (1, 2):
            shared.draft()
            shared.publish(version)
            assert shared.lend(b"%d" % version, version) != ()
        assert shared.draft() is None
        shared.moved_on(b"1", None)
        shared.moved_on(b"1", None)
        assert shared.draft() is not None


class Resting(FedAvgServer):
    """Every second step leaves the weights as they are."""

    turns = 0

    def step(self) -> Moved:
        self.turns += 1
        return super().step() if self.turns % 2 else Moved({"rested": 1.0}, weights=False)


def test_weights_that_a_step_leaves_as_they_were_are_copied_nowhere() -> None:
    learner = Learner(Resting(START), Inspector(), time.monotonic)
    room = np.zeros(START.layout.nbytes, np.uint8)
    learner.put([intake(0), Make(Step(1, 0, 0))])
    before = learner.newest[1]
    learner.put([intake(1, onto=1), Make(Step(2, 0, 0), room)])
    assert (learner.newest[0], learner.newest[1] is before) == (2, True)
    assert not room.any()
    assert [(one.version, one.moved) for one in learner.outcomes if isinstance(one, Stepped)] == [(1, True), (2, False)]


def test_the_slot_of_weights_that_rest_is_lent_on_and_stays_while_it_is_looked_at() -> None:
    with contextlib.closing(Sharing(Board(START.layout.nbytes, slots=2))) as shared:
        assert shared.draft() is not None
        shared.publish(1)
        token = shared.lend(b"a", 1)
        assert shared.draft() is not None
        shared.publish(2, moved=False)
        assert (shared.lend(b"a", 1), shared.lend(b"b", 2)) == ((), token)
        assert BoardReader(shared.offer).view(token[:-1], token[-1]) is not None
        shared.keep(b"a", 2)
        shared.moved_on(b"a", 2)  # it calls them so now, and looks at them
        shared.moved_on(b"b", None)
        shared.draft()
        shared.publish(3)
        assert shared.lend(b"b", 3)[0] != token[0]
        assert shared.draft() is None
        shared.moved_on(b"a", 3)
        assert shared.draft() is not None
