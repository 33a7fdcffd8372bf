"""Selections by examples, in turns and by Oort's utility, against their definitions; and rounds that ask for more."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from itertools import pairwise, permutations

import pytest
from test_core import Run

from shoal.coordinator.deciding.bounds import Bounds
from shoal.coordinator.deciding.events import Step
from shoal.coordinator.deciding.plans import Outcome, Seats
from shoal.coordinator.deciding.plans.attendance import Attendance, merged
from shoal.coordinator.deciding.plans.periods import Periods
from shoal.coordinator.deciding.plans.rounds import Rounds
from shoal.coordinator.deciding.plans.selection import (
    Oort,
    Select,
    checked,
    minimize_reuse,
    percentile,
    power_of_choice,
    statistical,
    uniform,
    weighted,
)
from shoal.coordinator.deciding.plans.stream import Stream
from shoal.coordinator.reports import Report
from shoal.protocol.errors import UserError
from shoal.protocol.messages import Assign
from shoal.protocol.work import Task


def told(
    client: int, *, version: int = 0, losses: Sequence[float] = (1.0,), seconds: float = 1.0, word: str = "accepted"
) -> Outcome:
    totals = {"loss_squared": (sum(loss * loss for loss in losses), float(len(losses)))}
    return Outcome(Task(version, client, (client,)), word, seconds, totals)


# By examples


def test_weighted_draws_by_examples_one_after_the_other() -> None:
    """Without replacement: P(i, then j) = p_i * p_j / (1 - p_i)."""
    sizes, runs = (50, 30, 15, 5), 20_000
    select = weighted(sizes, 3)
    seen = Counter(frozenset(select(version, 2, ())) for version in range(runs))
    for pair in map(frozenset, permutations(range(4), 2)):
        i, j = pair
        p = sum(sizes[a] / 100 * sizes[b] / (100 - sizes[a]) for a, b in ((i, j), (j, i)))
        assert abs(seen[pair] - runs * p) < 5 * math.sqrt(runs * p * (1 - p))


def test_weighted_is_a_draw_from_seed_and_version_and_chooses_among_those_that_are_here() -> None:
    assert weighted([1, 2, 3, 4], 7)(5, 2, ()) == weighted([1, 2, 3, 4], 7)(5, 2, ())
    assert all(set(weighted([1, 1000, 1, 1000], 7)(v, 2, (), [0, 2])) == {0, 2} for v in range(20))


def test_weighted_with_a_client_without_examples_is_refused() -> None:
    with pytest.raises(UserError, match="share above 0"):
        weighted([3, 0], 0)


# In turns


def test_minimize_reuse_brings_a_client_back_only_after_all_others() -> None:
    select = minimize_reuse(10, 4)
    turns = [client for version in range(60) for client in select(version, 3, ())]
    assert Counter(turns) == dict.fromkeys(range(10), 18)
    for client in range(10):
        places = [at for at, one in enumerate(turns) if one == client]
        assert {b - a for a, b in pairwise(places)} == {10}
    assert select(17, 3, ()) == minimize_reuse(10, 4)(17, 3, ())  # of (seed, version) alone, as after a crash


def test_minimize_reuse_takes_who_has_waited_longest_of_those_that_are_here() -> None:
    select = minimize_reuse(6, 0)
    first = set(select(0, 2, (), [0, 1, 2, 3]))
    second = set(select(1, 2, (), [0, 1, 2, 3]))
    assert first | second == {0, 1, 2, 3}
    assert set(select(2, 2, (), [0, 1, 2, 3, 4, 5])) == {4, 5}
    assert set(select(3, 2, (), range(6))) == first


# Oort


def test_the_statistical_utility_is_the_size_times_the_root_of_the_mean_square_loss() -> None:
    assert statistical(told(0, losses=[1.0, 2.0, 2.0, 4.0])) == pytest.approx(4 * math.sqrt(25 / 4))
    without = Outcome(Task(0, 0, (0,)), "accepted", 1.0, {"loss": (6.0, 3.0)})
    assert statistical(without) == 6.0  # |B| times the mean loss
    assert statistical(Outcome(Task(0, 0, (0,)), "accepted", 1.0, {"loss_squared": (math.nan, 3.0)})) == 0.0


def test_the_utility_is_equation_2_term_by_term() -> None:
    oort = Oort(4, 0)
    news = [told(c, losses=[float(c + 1)] * 10, seconds=s) for c, s in enumerate((2.0, 4.0, 8.0, 16.0))]
    oort(3, 2, news)
    found = oort.utilities([0, 1, 2, 3])
    uncertain = math.sqrt(0.1 * math.log(4) / 1)  # round 4, contributed in round 1
    clip = 40.0  # the 95th percentile of 10, 20, 30, 40
    preferred = 4.0  # the 30th percentile of 2, 4, 8, 16
    for client, (utility, seconds) in enumerate(((10, 2), (20, 4), (30, 8), (40, 16))):
        factor = (preferred / seconds) ** 2 if seconds > preferred else 1.0
        assert found[client] == pytest.approx((min(utility, clip) + uncertain) * factor)


def test_a_client_that_was_not_asked_for_long_gains() -> None:
    oort = Oort(2, 0)
    oort(0, 1, [told(0, version=0), told(1, version=80)])
    oort.round = 100
    found = oort.utilities([0, 1])
    assert found[0] - found[1] == pytest.approx(math.sqrt(0.1 * math.log(100)) * (1 - 1 / math.sqrt(81)))


def test_a_share_of_a_round_explores_and_falls_to_a_fifth() -> None:
    oort = Oort(5_000, 0)
    shares = {}
    for version in range(100):
        known = set(oort.utility)
        chosen = oort(version, 100, ())
        assert len(set(chosen)) == 100
        shares[version] = sum(client not in known for client in chosen) / 100
        oort._hear([told(client, version=version) for client in chosen], version)
    assert shares[0] == 1.0  # nobody is known
    assert shares[1] == pytest.approx(0.9 * 0.98, abs=0.01)
    assert shares[40] == pytest.approx(0.9 * 0.98**40, abs=0.01)
    assert {shares[version] for version in range(80, 100)} == {0.2}


def test_what_is_exploited_has_nearly_the_highest_utility() -> None:
    oort = Oort(100, 0)
    news = [told(client, losses=[10.0 if client < 20 else 1.0] * 5) for client in range(100)]
    chosen = oort(1, 10, news)
    assert set(chosen) <= set(range(20))  # none is unexplored


def test_slow_clients_are_chosen_less_until_the_pacer_lets_rounds_be_longer() -> None:
    oort = Oort(20, 0)
    oort(0, 5, [told(client, seconds=1.0 if client < 10 else 50.0) for client in range(20)])
    assert all(client < 10 for client in oort(1, 5, ()))
    oort.gains = [10.0] * 20 + [1.0] * 19
    oort.exploited = []
    oort._pace()
    assert oort.percentile == 30.0
    oort.exploited = [0]  # the fortieth round: the exploited clients' utility has fallen
    oort._pace()
    assert oort.percentile == 35.0


def test_who_failed_or_came_too_late_is_explored_with_the_time_that_it_took() -> None:
    oort = Oort(3, 0)
    oort._hear([told(0, word="stale", seconds=9.0), told(1, word="aside"), told(2, word="failed")], 1)
    assert oort.utility == {0: 0.0, 1: 0.0}
    assert oort.took[0] == 9.0


def test_a_client_that_was_chosen_often_enough_is_left_out() -> None:
    oort = Oort(6, 0, most=2)
    seen = Counter(client for version in range(6) for client in oort(version, 2, [told(c) for c in range(6)]))
    assert seen == dict.fromkeys(range(6), 2)


def test_a_percentile_is_the_nearest_rank() -> None:
    assert [percentile([4.0, 1.0, 3.0, 2.0], share) for share in (0, 25, 26, 95, 100)] == [1.0, 1.0, 2.0, 4.0, 4.0]
    assert percentile([], 50) == 0.0


@pytest.mark.parametrize(
    "select",
    [uniform(9, 1), weighted(range(1, 10), 1), minimize_reuse(9, 1), power_of_choice(9, 1, 5), Oort(9, 1)],
    ids=["uniform", "weighted", "minimize_reuse", "power_of_choice", "oort"],
)
def test_every_selection_chooses_among_those_that_can_be_asked(select: Select) -> None:
    safe = checked(select, 9)
    for version in range(30):
        among = [client for client in range(9) if (client + version) % 3]
        news = [told(client, version=version) for client in among]
        assert len(set(safe(version, 4, news, among))) == 4


def test_a_selection_of_who_cannot_be_asked_is_refused() -> None:
    with pytest.raises(UserError, match="client 2 is not among the 2 clients"):
        checked(lambda version, how_many, news, among: [2], 9)(0, 1, (), [1, 3])


# Over-selection


def test_a_round_that_asks_more_ends_when_its_cohort_is_in_and_tells_who_was_late() -> None:
    run = Run(Rounds(5, 3, spare=2), Bounds(ahead=1)).join("a", "b", "c", "d", "e")
    assert sum(len(run.tasks[name]) for name in "abcde") == 5
    run.contribute("a", "b")
    assert run.all(Step) == []
    run.contribute("c")
    assert len(run.all(Step)) == 1
    late = sorted(assign.clients[0] for name in "de" for assign in run.tasks[name].values())
    run.step()
    [report] = [one for one in run.all(Report) if one.kind == "dropped"]
    assert report.text == f"version 1 is made without 2 clients that came too late: {late[0]}, {late[1]}"
    assert sum(len(run.tasks[name]) for name in "abcde") == 5  # of the next round


def test_a_round_that_has_its_cohort_asks_no_more() -> None:
    run = Run(Rounds(5, 3, spare=2), Bounds(ahead=1)).join("a").contribute("a", "a", "a")
    assert len(run.all(Step)) == 1
    assert run.core.facts.drawn == 3


def test_a_round_that_may_end_early_evaluates_first() -> None:
    plan = Rounds(5, 2, spare=1, evaluate_every=1, evaluate_cohort=2)
    tasks = plan.assign(Seats(9), (), 0, 0.0)
    assert [task.kind for task in tasks] == ["evaluate", "evaluate", "train", "train", "train"]
    assert [task.index for task in tasks] == [0, 1, 2, 3, 4]
    assert plan.enough(2, 3, 0, 0.0)


def test_a_contribution_beyond_the_cohort_is_stale_also_before_the_step() -> None:
    run = Run(Rounds(4, 2, spare=1), Bounds(ahead=1)).join("a", "b", "c")
    for name in "ab":
        run.send(name)
    assert run.send("c").verdicts("c") == ["stale"]


def test_a_round_whose_spare_clients_fail_steps_with_those_that_came() -> None:
    run = Run(Rounds(3, 2, spare=1), Bounds(ahead=1, attempts=1, strikes=0)).join("a", "b", "c")
    run.contribute("a").send("b", weight=-1.0)
    assert run.all(Step) == []
    assert len(run.contribute("c").all(Step)) == 1


# Attendance


def test_a_trace_says_who_can_be_asked_and_when_that_changes() -> None:
    one = Attendance(3, [[(0.0, 10.0)], [(5.0, 20.0), (30.0, 40.0)], []])
    assert [one.among(1_000.0 + at) for at in (0, 5, 10, 20, 30, 40)] == [[0], [0, 1], [1], [], [1], []]
    assert [one.change(1_000.0 + at) - 1_000.0 for at in (0, 5, 12, 39, 40)] == [5, 10, 20, 40, math.inf]
    assert [one.comes(1, 1_000.0 + at) - 1_000.0 for at in (0, 7, 20, 41)] == [5, 7, 30, math.inf]
    assert one.goes(1, 1_007.0) == 1_020.0
    assert one.most() == 2
    assert one.comes(2, 1_000.0) == math.inf


def test_a_trace_with_a_period_begins_again() -> None:
    one = Attendance(2, [[(0.0, 10.0), (90.0, 100.0)], [(20.0, 50.0)]], period=100.0)
    one.can(0, 0.0)
    assert [one.can(0, at) for at in (95, 105, 115, 195)] == [True, True, False, True]
    assert one.goes(0, 95.0) == 110.0  # over the end of the trace
    assert one.goes(0, 105.0) == 110.0
    assert (one.comes(1, 60.0), one.comes(0, 60.0), one.change(97.0)) == (120.0, 90.0, 100.0)
    assert Attendance(1, [[(0.0, 100.0)]], period=100.0).goes(0, 30.0) == math.inf


def test_a_resumed_run_goes_on_in_its_traces() -> None:
    one = Attendance(1, [[(50.0, 60.0)]], seconds=50.0)
    assert (one.can(0, 7.0), one.can(0, 17.0)) == (True, False)


def test_rows_that_touch_are_one_interval() -> None:
    assert merged({1: [(5.0, 7.0), (1.0, 3.0), (3.0, 4.0), (6.0, 6.5)]}, 2) == [[], [(1.0, 4.0), (5.0, 7.0)]]


def test_a_round_begins_when_as_many_as_its_cohort_are_here() -> None:
    traces = [[(0.0, 100.0)], [(10.0, 100.0)], [(0.0, 5.0)]]
    plan = Rounds(3, 2, attendance=Attendance(3, traces))
    assert plan.assign(Seats(9), (), 0, 0.0) != []  # clients 0 and 2
    assert plan.assign(Seats(9), (), 1, 6.0) == []
    assert plan.wakes(1, 6.0) == 10.0
    assert [task.clients for task in plan.assign(Seats(9), (), 1, 10.0)] == [(0,), (1,)]
    assert plan.wakes(1, 10.0) == math.inf


def test_a_run_that_waits_for_clients_is_not_given_up() -> None:
    traces = [[(0.0, 1.0), (50.0, 60.0)]]
    run = Run(Rounds(1, 1, attendance=Attendance(1, traces)), Bounds(ahead=1, attempts=1, strikes=0, patience=90.0)).join("a")
    run.tick(after=2.0).contribute("a").step()
    run.core.facts.ledger.counts.aside = 1  # another client's
    assert run.tick(after=5.0).said("a", Assign) == []
    assert not run.core.facts.ended
    assert len(run.tick(after=45.0).said("a", Assign)) == 1


def test_a_stream_asks_a_client_once_at_a_time_and_only_while_it_is_here() -> None:
    traces = [[(0.0, 10.0)], [(0.0, 10.0)], [(0.0, 10.0)], [(20.0, 30.0)]]
    plan = Stream(1, 5, clients=4, attendance=Attendance(4, traces))
    first = plan.assign(Seats(9), (), 0, 0.0)
    assert sorted(task.clients[0] for task in first) == [0, 1, 2]
    assert plan.assign(Seats(9), [Outcome(first[0], "failed", 1.0, {})], 0, 1.0) == []  # it is tried again
    again = plan.assign(Seats(9), [Outcome(first[0], "accepted", 1.0, {})], 0, 2.0)
    assert [task.clients for task in again] == [first[0].clients]
    assert plan.assign(Seats(9), [Outcome(one, "stale", 1.0, {}) for one in first], 0, 12.0) == []
    assert plan.wakes(0, 12.0) == 20.0


def test_the_first_draw_of_an_attended_stream_is_that_of_any_stream() -> None:
    free = Attendance(1_000)
    plain, attended = Stream(1, 5, clients=1_000, seed=3), Stream(1, 5, clients=1_000, seed=3, attendance=free)
    assert plain.assign(Seats(1), (), 0, 0.0) == attended.assign(Seats(1), (), 0, 0.0)


# Steps by the clock


def test_a_step_follows_every_deadline_of_what_has_come() -> None:
    run = Run(Periods(10.0, 5, clients=50), Bounds(ahead=1, patience=90.0)).join("a", "b")
    run.contribute("a", "b", "a")
    assert run.all(Step) == []
    assert run.tick(after=9.0).all(Step) == []
    assert len(run.tick(after=3.0).all(Step)) == 1
    run.step().contribute("b")
    assert run.all(Step) == []
    assert len(run.tick(after=11.0).all(Step)) == 1


def test_a_period_without_a_contribution_ends_with_the_first() -> None:
    run = Run(Periods(10.0, 5, clients=50), Bounds(ahead=1, patience=90.0)).join("a")
    assert run.tick(after=25.0).all(Step) == []
    assert len(run.contribute("a").all(Step)) == 1


def test_a_period_knows_when_to_be_looked_at() -> None:
    plan = Periods(10.0, 5, clients=9)
    plan.assign(Seats(1), (), 0, 100.0)
    assert (plan.wakes(0, 103.0), plan.wakes(0, 110.0)) == (110.0, math.inf)
    assert not plan.enough(1, 0, 0, 109.9)
    assert plan.enough(1, 0, 0, 110.0)
    assert not plan.enough(0, 0, 0, 110.0)
    assert not plan.enough(1, 0, 1, 111.0)  # the next period has just begun
    assert plan.enough(1, 0, 0, 112.0)
