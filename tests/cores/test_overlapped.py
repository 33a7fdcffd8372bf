"""Rounds of which the next begins while the learner learns from the last."""

from __future__ import annotations

from test_core import Run

from shoal.coordinator.deciding.bounds import Bounds
from shoal.coordinator.deciding.events import Step, Stepped
from shoal.coordinator.deciding.plans import AFRESH, Outcome, Seats
from shoal.coordinator.deciding.plans.overlapped import Overlapped
from shoal.coordinator.deciding.plans.rounds import Rounds
from shoal.protocol.work import Task


def accepted(*tasks: Task) -> list[Outcome]:
    return [Outcome(task, "accepted", 1.0, {}) for task in tasks]


def test_the_next_round_goes_out_while_the_learner_steps_and_not_before() -> None:
    plan = Overlapped(2)
    first = plan.assign(Seats(9), [], 0, 0.0)
    assert [task.clients for task in first] == [(0,), (1,)]
    assert plan.assign(Seats(9), accepted(first[0]), 0, 0.0) == []  # one is not in yet
    second = plan.assign(Seats(9), accepted(first[1]), 0, 0.0)  # the learner steps: version 1 is not there
    assert [(task.version, task.clients) for task in second] == [(0, (0,)), (0, (1,))]
    assert plan.assign(Seats(9), accepted(*second), 0, 0.0) == []  # never two rounds ahead
    third = plan.assign(Seats(9), [], 1, 0.0)
    assert [(task.version, task.clients) for task in third] == [(1, (0,)), (1, (1,))]
    assert len({task.index for task in (*first, *second, *third)}) == 6


def test_a_round_is_complete_with_one_contribution_of_each_client_at_most_one_version_old() -> None:
    plan = Overlapped(3)
    assert not plan.enough(2, 0, 4, 0.0)
    assert plan.enough(3, 3, 4, 0.0)
    assert [plan.admits(made_from, 5) for made_from in (3, 4, 5)] == [False, True, True]


def test_a_task_that_came_too_late_or_was_set_aside_is_given_out_again() -> None:
    for word in ("stale", "aside"):
        plan = Overlapped(2)
        a, b = plan.assign(Seats(2), [], 0, 0.0)
        [again] = plan.assign(Seats(2), [*accepted(a), Outcome(b, word, 1.0, {})], 0, 0.0)
        assert (again.clients, again.index != b.index) == ((1,), True)


def test_a_run_that_goes_on_asks_every_client_for_its_version() -> None:
    plan = Overlapped(2, asked=AFRESH)
    assert [(task.version, task.clients) for task in plan.assign(Seats(9), [], 7, 0.0)] == [(6, (0,)), (6, (1,))]


def test_an_evaluation_every_so_many_versions_counts_for_no_round() -> None:
    plan = Overlapped(1, evaluate_every=2)
    kinds = [[task.kind for task in plan.assign(Seats(9), [], version, 0.0)] for version in (0, 1, 2, 3, 4)]
    assert [kind.count("evaluate") for kind in kinds] == [0, 0, 1, 0, 1]


def test_an_actor_has_work_while_the_learner_learns_where_a_synchronous_round_leaves_it_idle() -> None:
    for plan, busy in ((Overlapped(2), True), (Rounds(2), False)):
        run = Run(plan, Bounds(sticky=True)).join("a")
        run.contribute("a").contribute("a")
        assert len(run.all(Step)) == 1  # it is under way
        assert bool(run.core.facts.ledger.leases) is busy
        run.event(Stepped(1, {}))
        assert run.core.facts.ledger.leases
