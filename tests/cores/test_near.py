"""The actors of a pool's own machine, as facts about what is decided: no processes and no sockets."""

from __future__ import annotations

from shoal.coordinator.deciding.near import SETTLE, SLOW, Cut, Effect, Give, Near, Rob, Stop
from shoal.coordinator.deciding.plans.tickets import Ticket, Tickets


class Pool:
    """A plan of calls of one function, and its actors by number. pace: seconds that calls of it are known to take."""

    def __init__(self, actors: int, calls: int, pace: float = 1e-4, retries: int = 2, ahead: bool = False) -> None:
        self.plan = Tickets(lambda ticket: True, actors, ahead=ahead)
        self.plan.pace["f"] = pace
        self.near = Near(self.plan)
        for pid in range(actors):
            self.near.came(pid)
        self.plan.offer([Ticket(number, "f", retries=retries) for number in range(calls)])

    def turn(self, now: float = 0.0) -> list[Effect]:
        return list(self.near.turn(now))

    def at(self, pid: int) -> list[list[int]]:
        return [out.numbers for out in self.near.actors[pid].tasks]

    def answer(self, pid: int, numbers: list[int], now: float = 0.0) -> list[int]:
        """Answer the first task of an actor, but for calls that it had no leave to begin. Returns the accepted numbers."""
        index = self.near.actors[pid].tasks[0].task.index
        assert self.near.answered(pid, index, now)
        return [ticket.number for ticket in self.plan.answered(index, [(number, 1e-4) for number in numbers])]


def test_calls_that_nobody_knows_go_one_to_an_actor() -> None:
    pool = Pool(2, 5, pace=1.0)
    assert [(one.pid, one.certain) for one in pool.turn() if isinstance(one, Give)] == [(0, 1), (1, 1)]
    assert (pool.at(0), pool.at(1), len(pool.plan.waiting)) == ([[0]], [[1]], 3)
    assert pool.turn() == []
    assert pool.answer(0, [0]) == [0]
    assert len(pool.turn()) == 1
    assert pool.at(0) == [[2]]


def test_an_actor_holds_one_task_of_short_calls_beside_the_one_that_it_is_at() -> None:
    pool = Pool(1, 100)
    gave = pool.turn()
    assert [one.certain for one in gave if isinstance(one, Give)] == [1, 0]
    assert len(pool.at(0)) == 2
    assert sum(map(len, pool.at(0))) + len(pool.plan.waiting) == 100


def test_calls_behind_a_slow_one_wait_again_and_its_actor_gets_no_other() -> None:
    pool = Pool(1, 100)
    pool.turn()
    first, second = pool.at(0)
    begun = first[:3]  # two tokens are used beside the call that needs none
    assert pool.turn(SLOW) == []
    assert pool.turn(2 * SLOW) == [Rob(0)]
    pool.near.robbed(0, len(first) + len(second) - 3)
    assert pool.at(0) == [begun, []]
    assert len(pool.plan.waiting) == 97
    assert pool.turn(3 * SLOW) == []
    pool.near.came(1)
    assert {one.pid for one in pool.turn(3 * SLOW) if isinstance(one, Give)} == {1}
    assert pool.answer(0, begun) == begun
    assert all(one.pid == 1 for one in pool.turn(3 * SLOW) if isinstance(one, Give))  # one task of it has no answer yet
    assert pool.answer(0, [], 3 * SLOW) == []
    assert {one.pid for one in pool.turn(3 * SLOW) if isinstance(one, Give)} == {0}


def test_a_plan_that_gives_ahead_keeps_a_long_call_behind_the_one_that_its_actor_is_at() -> None:
    pool = Pool(2, 6, pace=1.0, ahead=True)
    pool.turn()
    assert (sorted(pool.at(0) + pool.at(1)), len(pool.plan.waiting)) == ([[0], [1], [2], [3]], 2)
    assert (pool.turn(100 * SLOW), pool.near.due(0.0)) == ([], None)  # nothing is taken back
    [first, second] = pool.at(0)
    assert pool.answer(0, first, 100 * SLOW) == first
    pool.turn(200 * SLOW)
    assert pool.at(0) == [second, [4]]
    pool.near.ended(0, (pool.near.actors[0].tasks[0].task.index, second[0]), "killed")
    assert sorted((ticket.number, ticket.faults) for _, ticket in pool.plan.waiting) == sorted([(second[0], 1), (4, 0), (5, 0)])


def test_only_the_call_that_ran_is_blamed_for_a_death() -> None:
    pool = Pool(1, 40, retries=0)
    pool.turn()
    first = pool.at(0)[0]
    task = pool.near.actors[0].tasks[0].task
    pool.near.ended(0, (task.index, first[1]), "killed")
    assert [ticket.number for ticket, _ in pool.plan.lost] == [first[1]]
    assert sorted(ticket.number for _, ticket in pool.plan.waiting) == sorted({*range(40)} - {first[1]})
    assert (pool.near.deaths, pool.near.why) == (1, {task.index: "killed"})
    assert all(ticket.faults == 0 for _, ticket in pool.plan.waiting)


def test_nobody_is_blamed_for_the_death_of_an_actor_that_had_answered() -> None:
    pool = Pool(1, 40, retries=0)
    pool.turn()
    first = pool.at(0)[0]
    task = pool.near.actors[0].tasks[0].task
    pool.answer(0, first)
    pool.near.ended(0, (task.index, first[-1]), "killed")
    assert (pool.near.deaths, pool.plan.lost) == (0, [])
    assert sorted(ticket.number for _, ticket in pool.plan.waiting) == sorted({*range(40)} - {*first})


def test_answers_of_a_task_that_nobody_wants_are_stale() -> None:
    pool = Pool(1, 1, pace=1.0)
    pool.turn()
    index = pool.near.actors[0].tasks[0].task.index
    pool.plan.take_back(index)
    assert pool.near.withdraw(index) == 0
    assert not pool.near.answered(0, index, 0.0)
    assert (pool.near.heard, pool.near.accepted, pool.near.stale) == (1, 0, 1)


def test_what_a_slow_call_holds_up_of_its_piece_is_taken_back_once_and_not_before_that_is_seen() -> None:
    pool = Pool(1, 0)
    pool.plan.offer([Ticket(0, "f", calls=500)])
    pool.turn()
    [index] = pool.plan.given
    assert pool.near.due(0.0) == SLOW
    assert pool.turn(SLOW) == []
    assert pool.turn(2 * SLOW) == [Stop(0)]
    assert pool.turn(2 * SLOW) == []
    assert 0 < (pool.near.due(2 * SLOW) or 0.0) <= SETTLE
    at = 2 * SLOW + SETTLE + 1e-6
    assert pool.turn(at) == [Cut(0, index)]
    assert pool.turn(at) == []  # its actor had not come to the piece: it is asked again
    at += SETTLE + 1e-6
    assert pool.turn(at) == [Cut(0, index)]
    pool.near.cut(0)
    assert pool.turn(9.0) == []
    assert pool.near.due(9.0) is None
    pool.plan.offer([Ticket(1, "f", calls=500)])
    assert pool.turn(9.0) == []
    assert pool.answer(0, [0], 9.0) == [0]
    assert [type(one) for one in pool.turn(9.0)] == [Give]
    assert pool.turn(9.0 + 2 * SLOW) == [Stop(0)]


def test_a_call_for_itself_has_nothing_that_could_be_taken_back() -> None:
    pool = Pool(1, 1)
    pool.turn()
    assert pool.near.due(0.0) is None
    assert pool.turn(9.0) == []
