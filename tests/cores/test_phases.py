"""The schedule of rounds of several phases whose clients have owners: who is asked, who is waited for, who is left out."""

from __future__ import annotations

from collections.abc import Sequence

from shoal.coordinator.deciding.plans import Outcome, Seat, Seats
from shoal.coordinator.deciding.plans.phases import Phases
from shoal.protocol.work import Task

NORTH, SOUTH = "aa" * 32, "bb" * 32
OWNERS = {0: NORTH, 1: SOUTH, 2: NORTH, 3: SOUTH}


def seats(*each: Seat) -> Seats:
    return Seats(sum(seat.free for seat in each), lambda: each)


def where(tasks: Sequence[Task]) -> dict[int, int]:
    return {task.clients[0]: task.where for task in tasks}


def accepted(tasks: Sequence[Task]) -> list[Outcome]:
    return [Outcome(task, "accepted", 0.0, {}) for task in tasks]


def test_a_client_is_played_by_its_owner_s_actors_alone() -> None:
    plan = Phases(4, 4, ("one", "two"), 2, owners=OWNERS)
    here = seats(Seat(7, 2, user=NORTH), Seat(9, 2, user=SOUTH), Seat(8, 2, user="cc" * 32))
    assert where(plan.assign(here, (), 0, 0.0)) == {0: 7, 2: 7, 1: 9, 3: 9}


def test_a_round_waits_for_owners_until_enough_of_its_clients_can_be_played() -> None:
    plan = Phases(4, 4, ("one", "two"), 3, owners=OWNERS)
    assert not plan.assign(seats(Seat(7, 4, user=NORTH)), (), 0, 0.0)
    assert not plan.enough(0, 0, 0, 0.0)
    assert where(plan.assign(seats(Seat(7, 4, user=NORTH), Seat(9, 4, user=SOUTH)), (), 0, 0.0)) == {0: 7, 2: 7, 1: 9, 3: 9}


def test_a_round_of_enough_clients_goes_without_those_whose_owner_is_away() -> None:
    plan = Phases(4, 4, ("one", "two"), 2, owners=OWNERS)
    tasks = plan.assign(seats(Seat(7, 4, user=NORTH)), (), 0, 0.0)
    assert where(tasks) == {0: 7, 2: 7}
    assert not plan.enough(1, 1, 0, 0.0)
    later = plan.assign(seats(Seat(7, 4, user=NORTH), Seat(9, 4, user=SOUTH)), accepted(tasks), 0, 0.0)
    assert where(later) == {0: 7, 2: 7}  # whoever comes now has no session
    assert plan.enough(4, 0, 0, 0.0) or not plan.assign(seats(Seat(7, 4, user=NORTH)), accepted(later), 0, 0.0)
    assert plan.enough(4, 0, 0, 0.0)


def test_clients_of_an_owner_who_leaves_drop_out_and_nobody_else_is_asked_for_them() -> None:
    plan = Phases(4, 4, ("one", "two", "three"), 2, owners=OWNERS)
    both = seats(Seat(7, 2, user=NORTH), Seat(9, 2, user=SOUTH))
    first = plan.assign(both, (), 0, 0.0)
    left = seats(Seat(7, 4, user=NORTH))
    second = plan.assign(left, accepted(first), 0, 0.0)
    assert where(second) == {0: 7, 2: 7}
    assert {task.words["phase"] for task in second} == {"two"}
    assert {task.words["phase"] for task in plan.assign(left, accepted(second), 0, 0.0)} == {"three"}


def test_a_round_that_all_owners_left_is_stepped_without_a_sum() -> None:
    plan = Phases(4, 4, ("one", "two"), 2, owners=OWNERS)
    first = plan.assign(seats(Seat(7, 2, user=NORTH), Seat(9, 2, user=SOUTH)), (), 0, 0.0)
    assert not plan.assign(seats(Seat(8, 2, user="cc" * 32)), accepted(first), 0, 0.0)
    assert plan.enough(4, 0, 0, 0.0)


def test_an_owner_s_second_actor_begins_no_session_of_a_client_that_the_first_plays() -> None:
    plan = Phases(2, 2, ("one", "two"), 2, owners={0: NORTH, 1: NORTH})
    tasks = plan.assign(seats(Seat(7, 1, user=NORTH), Seat(8, 1, user=NORTH)), (), 0, 0.0)
    assert where(tasks) == {0: 7, 1: 8}
    more = plan.assign(seats(Seat(8, 2, user=NORTH), Seat(7, 2, user=NORTH)), accepted(tasks), 0, 0.0)
    assert where(more) == {0: 7, 1: 8}
