"""What plans see and hear: seats, what became of tasks, and selections that follow it."""

from __future__ import annotations

import math
import re
from collections import Counter, deque
from collections.abc import Sequence
from itertools import permutations
from typing import Any

import pytest
from test_core import Run

from shoal.coordinator.deciding.bounds import Bounds
from shoal.coordinator.deciding.events import Fold, Folded, Nudge, Step, Unfit
from shoal.coordinator.deciding.plans import NEWS, Outcome, Seat, Seats
from shoal.coordinator.deciding.plans.rounds import Rounds
from shoal.coordinator.deciding.plans.selection import power_of_choice, uniform
from shoal.coordinator.deciding.plans.stream import Stream
from shoal.protocol.draws import draw, key
from shoal.protocol.errors import UserError
from shoal.protocol.messages import Assign, Failed
from shoal.protocol.work import Task


class Listening(Rounds):
    """Rounds that write down what they see and hear."""

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self.heard: list[Outcome] = []
        self.seen: list[list[Seat]] = []

    def assign(self, seats: Seats, news: Sequence[Outcome], version: int, now: float) -> Sequence[Task]:
        self.heard += news
        self.seen.append(list(seats))
        assert seats.room == sum(seat.free for seat in self.seen[-1])
        return super().assign(seats, news, version, now)

    def words(self) -> list[tuple[int, str]]:
        """What was heard since the last call, by the task's index."""
        heard, self.heard = self.heard, []
        return [(one.task.index, one.word) for one in heard]


def test_a_plan_sees_who_has_room_the_least_busy_first() -> None:
    plan = Listening(9)
    run = Run(plan, Bounds(ahead=2)).join("a")
    assert plan.seen[0] == [Seat(0, 2)]
    run.join("b").contribute("a")
    assert plan.seen[-1] == [Seat(0, 1, held=1)]


def test_a_plan_hears_once_what_was_accepted_when_and_with_which_totals() -> None:
    plan = Listening(9)
    run = Run(plan, Bounds(ahead=1)).join("a").tick(after=1.5)
    run.contribute("a", totals={"loss": (6.0, 3.0)})
    [one] = plan.heard
    assert (one.task, one.word, one.totals) == (Task(0, 0, (0,)), "accepted", {"loss": (6.0, 3.0)})
    assert 1.5 <= one.seconds < 2.5
    run.tick(after=1.0).contribute("a")
    assert plan.words() == [(0, "accepted"), (1, "accepted")]


def test_a_plan_hears_of_each_attempt_that_was_no_good_and_of_what_is_set_aside() -> None:
    plan = Listening(2)
    run = Run(plan, Bounds(ahead=3, attempts=2, strikes=0)).join("a")
    first = run.said("a", Assign)[0]
    run.hear("a", Failed(first.task, first.attempt, 0, "training", "no", ""))
    assert plan.words() == [(0, "failed")]
    run.send("a", (0, 0), weight=-1.0)
    assert plan.words() == [(0, "refused"), (0, "aside")]
    run.send("a", (0, 1)).event(Unfit((0, 1), "not finite"))
    assert plan.words() == [(1, "refused")]


def test_a_plan_hears_that_a_closed_rounds_tasks_are_over_wherever_they_are() -> None:
    plan = Listening(4, quorum=1, deadline=5.0)
    run = Run(plan, Bounds(ahead=1, patience=60.0)).join("a", "b", "c").contribute("a")
    assert plan.words() == [(0, "accepted")]
    run.tasks["c"].clear()
    run.tick(after=6.0).step()
    assert sorted(plan.words()) == [(1, "stale"), (2, "stale"), (3, "stale")]


def test_a_plan_hears_of_what_came_too_late_and_its_totals() -> None:
    heard: list[Outcome] = []

    class Hearing(Stream):
        def assign(self, seats: Seats, news: Sequence[Outcome], version: int, now: float) -> Sequence[Task]:
            heard.extend(news)
            return super().assign(seats, news, version, now)

    run = Run(Hearing(1, 1), Bounds(ahead=2)).join("a", "b")
    run.slow.add("b")
    for _ in range(3):
        run.contribute("a").step()
    heard.clear()
    assert run.send("b", (0, 2), totals={"loss": (1.0, 1.0)}).verdicts("b") == ["stale"]
    assert [(one.task.index, one.word, one.totals) for one in heard] == [(2, "stale", {"loss": (1.0, 1.0)})]


def test_what_a_plan_has_not_heard_has_a_bound() -> None:
    run = Run(Rounds(1)).join("a")
    assert run.core.facts.ledger.news.maxlen == NEWS


class Fed(Rounds):
    """A plan of tasks that somebody hands in."""

    def __init__(self) -> None:
        super().__init__(1)
        self.wanted: deque[Task] = deque()

    def assign(self, seats: Seats, news: Sequence[Outcome], version: int, now: float) -> Sequence[Task]:
        return [self.wanted.popleft() for _ in range(min(seats.room, len(self.wanted)))]


def test_a_plan_that_is_fed_is_asked_at_once_and_not_at_the_next_look_at_the_clock() -> None:
    plan = Fed()
    run = Run(plan).join("a").tick()
    plan.wanted.append(Task(0, 0, (5,)))
    assert run.tick().said("a", Assign) == []
    assert [one.clients for one in run.event(Nudge()).said("a", Assign)] == [(5,)]


# Selections


def test_a_uniform_selection_is_a_draw_from_seed_and_version_and_all_come_in_order() -> None:
    select = uniform(50, 3)
    assert list(select(7, 5, ())) == draw(3, "cohort", 7).sample(range(50), 5)
    assert list(select(7, 50, ())) == list(range(50))
    assert list(uniform(50, 3, "evaluate")(7, 5, ())) == draw(3, "evaluate", 7).sample(range(50), 5)


def test_rounds_ask_whom_the_selection_names_and_tell_it_what_became_of_the_round_before() -> None:
    heard: list[list[tuple[int, str]]] = []

    def select(version: int, how_many: int, news: Sequence[Outcome]) -> Sequence[int]:
        heard.append([(one.task.clients[0], one.word) for one in news])
        return [version, version + 3]

    run = Run(Rounds(8, 2, select=select), Bounds(ahead=1, strikes=0)).join("a")
    run.send("a", weight=-1.0).contribute("a", "a")
    assert len(run.all(Step)) == 1
    assert [one.clients for one in run.step().said("a", Assign)] == [(1,)]
    assert heard == [[], [(0, "refused"), (0, "accepted"), (3, "accepted")]]


@pytest.mark.parametrize(
    ("chosen", "gave"),
    [([], "[]"), ([1, 1], "[1, 1]"), ([-1], "[-1]"), ([8], "[8]"), ([1, 2, 3], "[1, 2, 3]"), ([1, 2.5], "[1, 2.5]"), (3, "3")],
)
def test_a_selection_of_nobody_or_of_who_is_not_there_ends_the_run_in_one_line(chosen: Any, gave: str) -> None:
    plan = Rounds(8, 2, select=lambda version, how_many, news: chosen)
    asked = "for the round of version 0; asked were 2 different clients from 0 to 7"
    with pytest.raises(UserError, match=rf"^a selection gave {re.escape(gave)} {asked}$"):
        Run(plan).join("a")


def accepted(*clients: int, loss: float, word: str = "accepted", count: float = 4.0) -> Outcome:
    return Outcome(Task(0, 0, clients), word, 1.0, {"loss": (loss * count, count)})


def test_power_of_choice_takes_the_largest_losses_of_those_that_are_drawn() -> None:
    select = power_of_choice(10, 1, candidates=6)
    losses = {client: 1.0 + client * 7 % 10 for client in range(10)}
    select(0, 2, [accepted(client, loss=loss) for client, loss in losses.items()])
    for version in range(1, 40):
        among = draw(1, "candidates", version).sample(range(10), 6)
        assert list(select(version, 2, ())) == sorted(among, key=losses.__getitem__, reverse=True)[:2]


def test_power_of_choice_of_all_is_greedy_and_a_new_loss_takes_the_old_ones_place() -> None:
    select = power_of_choice(4, 0, candidates=4)
    select(0, 1, [accepted(0, loss=1.0), accepted(1, 2, loss=3.0), accepted(3, loss=2.0)])
    assert set(select(1, 2, ())) == {1, 2}
    assert set(select(2, 2, [accepted(1, loss=0.5)])) == {2, 3}
    worthless = [accepted(0, loss=9.0, word="stale"), accepted(0, loss=math.nan), accepted(0, loss=9.0, count=0.0)]
    assert set(select(3, 2, worthless)) == {2, 3}


def test_power_of_choice_prefers_who_never_contributed_and_breaks_ties_at_random() -> None:
    select = power_of_choice(6, 0, candidates=6)
    select(0, 1, [accepted(client, loss=5.0) for client in range(4)])
    assert all(set(select(version, 2, ())) == {4, 5} for version in range(1, 9))
    third = Counter(client for version in range(9, 1_000) for client in select(version, 3, ()) if client < 4)
    assert min(third.values()) > 0.8 * max(third.values())


def test_power_of_choice_draws_by_share_one_after_the_other() -> None:
    """Without replacement: P(i, then j) = p_i * p_j / (1 - p_i)."""
    shares, runs = (0.5, 0.3, 0.15, 0.05), 20_000
    select = power_of_choice(4, 5, candidates=2, shares=shares)
    seen = Counter(frozenset(select(version, 2, ())) for version in range(runs))
    chance: Counter[frozenset[int]] = Counter()
    for i, j in permutations(range(4), 2):
        chance[frozenset((i, j))] += shares[i] * shares[j] / (1 - shares[i])  # type: ignore[assignment]
    for pair, p in chance.items():
        assert abs(seen[pair] - runs * p) < 5 * math.sqrt(runs * p * (1 - p))


@pytest.mark.parametrize(
    ("wrong", "line"),
    [
        ({"candidates": 0}, "candidates=0: allowed is from 1 to clients=4"),
        ({"candidates": 5}, "candidates=5"),
        ({"candidates": 2, "shares": [1.0]}, "shares: expected one number above 0 for each of 4 clients"),
        ({"candidates": 2, "shares": [1, 1, 1, 0]}, "shares: "),
    ],
)
def test_power_of_choice_of_what_cannot_be_drawn_is_refused(wrong: dict[str, Any], line: str) -> None:
    with pytest.raises(UserError, match=line):
        power_of_choice(4, 0, **wrong)


def test_the_plan_of_a_run_folds_what_a_selection_chose() -> None:
    run = Run(Rounds(6, 2, select=power_of_choice(6, 0, candidates=6))).join("a")
    seen: list[tuple[int, ...]] = []
    for _ in range(3):
        for _ in range(2):
            run.send("a", totals={"loss": (1.0, 1.0)})
            [fold] = run.all(Fold)
            seen.append(fold.clients)
            run.event(Folded((fold.task.version, fold.task.index)))
        run.step()
    assert len(set(seen)) == 6  # whoever never contributed comes first


def test_purposes_that_agree_in_sixteen_bytes_are_refused_and_not_taken_for_one() -> None:
    assert key(5, "a" * 15, 1) != key(5, "a" * 16, 1)
    with pytest.raises(ValueError, match="16"):
        key(5, "a" * 17, 1)


def summed_round(plan: Rounds, version: int, held: tuple[int, ...], *news: Outcome) -> list[int]:
    """The numbers of clients of the tasks that a plan gives to actors with room for two tasks each, less those they hold."""
    seats = [Seat(actor, 2 - many, held=many) for actor, many in enumerate(held)]
    given = plan.assign(Seats(sum(seat.free for seat in seats), lambda: seats), news, version, 0.0)
    return [len(task.clients) for task in given if task.kind == "train"]


def came(clients: int, seconds: float) -> Outcome:
    return Outcome(Task(0, 0, tuple(range(clients))), "accepted", seconds, {})


def test_quick_clients_whose_sums_travel_are_one_task_for_each_actor() -> None:
    plan = Rounds(20, 10, summed=True)
    assert summed_round(plan, 0, (0, 0)) == [3, 3, 2, 2]  # nothing is known of their times
    assert summed_round(plan, 1, (0, 0), came(3, 0.03)) == [5, 5]
    assert summed_round(plan, 2, (0, 0, 0)) == [4, 3, 3]
    assert summed_round(plan, 3, (0,)) == [10]


def test_slow_clients_are_two_tasks_for_each_actor_until_quick_ones_have_come_often() -> None:
    plan = Rounds(20, 10, summed=True)
    assert summed_round(plan, 0, (0, 0), came(3, 0.03), came(3, 3.0)) == [3, 3, 2, 2]
    assert summed_round(plan, 1, (0, 0), *[came(3, 0.03)] * 10) == [3, 3, 2, 2]
    assert summed_round(plan, 2, (0, 0), *[came(3, 0.03)] * 20) == [5, 5]


def test_the_time_of_a_client_is_not_that_of_a_failed_task_or_an_evaluation() -> None:
    plan = Rounds(20, 10, summed=True)
    failed, scored = came(3, 0.03)._replace(word="failed"), came(1, 0.001)._replace(task=Task(0, 0, (1,), counts=False))
    assert summed_round(plan, 0, (0, 0), failed, scored) == [3, 3, 2, 2]


def test_evaluations_have_the_room_that_one_task_an_actor_leaves() -> None:
    plan = Rounds(20, 10, summed=True, evaluate_every=1, evaluate_cohort=4)
    seats = [Seat(0, 2), Seat(1, 2)]
    plan.assign(Seats(4, lambda: seats), [came(3, 0.03)], 0, 0.0)
    given = plan.assign(Seats(4, lambda: seats), [], 1, 0.0)
    assert [(task.kind, len(task.clients)) for task in given] == [("train", 5), ("train", 5), ("evaluate", 1), ("evaluate", 1)]


def test_clients_that_are_not_summed_are_a_task_each_however_quick_they_are() -> None:
    plan = Rounds(20, 3)
    assert summed_round(plan, 0, (0, 0), came(1, 0.001)) == [1, 1, 1]
