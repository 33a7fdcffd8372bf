"""Facts about the plan of a pool, alone and in a core: what is given out together, and who is blamed for a death."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Iterable
from typing import Any

import pytest
from test_core import Run, names

from shoal.coordinator.deciding.bounds import Bounds
from shoal.coordinator.deciding.events import Evict, Finish, Flag, Lost, Nudge, Withdraw
from shoal.coordinator.deciding.plans import Outcome, Seat, Seats
from shoal.coordinator.deciding.plans.tickets import AGE, CHUNK, MOST, TOGETHER, Batch, Ticket, Tickets
from shoal.coordinator.deciding.resources import Machine, Need
from shoal.protocol.errors import UserError
from shoal.protocol.messages import Assign, Cancel, GiveUp
from shoal.protocol.work import Task

POOL = Bounds(ahead=1, most=2, attempts=1, strikes=0, watched=True, endless=True)


def plan(width: int = 2, tickets: Iterable[Ticket] = (), pace: float | None = None) -> Tickets:
    made = Tickets(lambda ticket: True, width)
    if pace is not None:
        made.pace["f"] = pace
    made.offer(tickets)
    return made


def many(count: int, **how: object) -> list[Ticket]:
    return [Ticket(number, "f", **how) for number in range(count)]  # type: ignore[arg-type]


def room(*held: int, free: int = 1) -> Seats:
    """Actors that have room for `free` tasks each, and hold so many."""
    each = [Seat(at, free, held=has) for at, has in enumerate(held)]
    return Seats(free * len(each), lambda: each)


def inside(made: Tickets, tasks: Iterable[Task]) -> list[list[int]]:
    """The tickets of tasks, by number."""
    return [list(made.given[task.index].tickets) for task in tasks]


def test_a_call_of_which_nobody_knows_how_long_it_takes_has_an_actor_for_itself() -> None:
    made = plan(tickets=many(5))
    tasks = made.assign(room(0, 0, free=2), (), 0, 0.0)
    assert (inside(made, tasks), [task.alone for task in tasks]) == ([[0], [1]], [True, True])
    assert not made.assign(room(1, 1), (), 0, 0.0)


def test_a_plan_that_gives_ahead_gives_long_calls_to_busy_actors_but_not_those_that_may_end_them() -> None:
    made = plan(tickets=many(5))
    made.ahead = True
    tasks = made.assign(room(0, 0, free=2), (), 0, 0.0)
    assert (inside(made, tasks), [task.alone for task in tasks]) == ([[0], [1], [2], [3]], [False] * 4)
    assert inside(made, made.assign(room(1), (), 0, 0.0)) == [[4]]
    for odd in ({"once": True}, {"faults": 1}, {"timed": True}):
        one = plan(tickets=many(1, **odd))
        one.ahead = True
        assert not one.assign(room(1, 1), (), 0, 0.0)
        assert [task.alone for task in one.assign(room(0, 1), (), 0, 0.0)] == [True]


def test_short_calls_go_several_at_once_and_leave_a_share_for_every_actor() -> None:
    made = plan(2, many(1_000), pace=CHUNK / 50)
    [first] = inside(made, made.assign(room(0), (), 0, 0.0))
    assert first == list(range(50))
    few = plan(2, many(8), pace=CHUNK / 50)
    assert inside(few, few.assign(room(0), (), 0, 0.0)) == [[0]]
    tiny = plan(1, many(10_000), pace=1e-9)
    assert len(inside(tiny, tiny.assign(room(0), (), 0, 0.0))[0]) == MOST


def test_calls_of_another_function_and_long_calls_are_not_put_behind_short_ones() -> None:
    made = plan(1, [*many(2), Ticket(2, "g"), *[Ticket(number, "f") for number in range(3, 40)]], pace=CHUNK / 50)
    assert inside(made, made.assign(room(0, free=2), (), 0, 0.0))[0] == [0, 1]
    once = plan(1, many(40, once=True), pace=CHUNK / 50)
    assert inside(once, once.assign(room(0), (), 0, 0.0)) == [[0]]


def test_a_pace_follows_what_calls_take() -> None:
    made = plan(1, many(30))
    [task] = made.assign(room(0), (), 0, 0.0)
    assert [one.number for one in made.answered(task.index, [(0, 1e-5)])] == [0]
    assert len(inside(made, made.assign(room(0), (), 0, 0.0))[0]) > 1
    slow = plan(1, many(30), pace=1e-5)
    [task] = slow.assign(room(0), (), 0, 0.0)
    assert len(list(slow.answered(task.index, [(0, 60.0)]))) == 1
    assert [task.alone for task in slow.assign(room(0), (), 0, 0.0)] == [True]


def test_calls_that_an_actor_did_not_get_to_wait_again_in_their_old_place() -> None:
    made = plan(1, many(40), pace=CHUNK / 10)
    [task] = made.assign(room(0), (), 0, 0.0)
    assert [one.number for one in made.answered(task.index, [(0, CHUNK / 10), (1, CHUNK / 10)])] == [0, 1]
    assert inside(made, made.assign(room(0), (), 0, 0.0))[0][0] == 2
    assert not any(ticket.faults for _, ticket in made.waiting)


def test_higher_priorities_go_first_and_a_minute_of_waiting_counts_as_one() -> None:
    old, new, urgent = (
        Ticket(0, "f", since=0.0),
        Ticket(1, "f", since=AGE * 0.9, priority=1),
        Ticket(2, "f", since=AGE * 1.1, priority=1),
    )
    made = plan(1, [old, new, urgent])
    order = [number for _ in range(3) for [number] in inside(made, made.assign(room(0), (), 0, 0.0))]
    assert order == [1, 0, 2]


def test_of_calls_of_one_time_the_longest_goes_first_by_word_or_by_what_such_calls_took() -> None:
    made = plan(
        1, [Ticket(0, "f"), Ticket(1, "g"), Ticket(2, "f", cost=9.0), Ticket(3, "f", cost=0.5), Ticket(4, "h", priority=1)]
    )
    order = []
    for _ in range(5):
        [task] = made.assign(room(0), (), 0, 0.0)
        [number] = inside(made, [task])[0]
        order.append(number)
        assert len(list(made.answered(task.index, [(number, 1.0)]))) == 1
    assert order == [4, 2, 0, 3, 1]  # when 2 came back, calls of f were known to take 1 s; nothing is known of g
    late = plan(1, [Ticket(0, "f", cost=1.0, since=TOGETHER - 1), Ticket(1, "f", cost=9.0, since=TOGETHER + 1)])
    assert inside(late, late.assign(room(0), (), 0, 0.0)) == [[0]]


def test_calls_of_one_function_keep_their_order_however_its_pace_changes() -> None:
    rng, made, order = random.Random(3), plan(1), list[int]()
    for number in range(0, 200, 2):
        made.offer([Ticket(number, "f", timed=True), Ticket(number + 1, "f", timed=True)])
        [task] = made.assign(room(0), (), 0, 0.0)
        order += [
            one.number for one in made.answered(task.index, [(*made.given[task.index].tickets, 10 ** rng.uniform(-4, 2))])
        ]
    assert order == list(range(100))


def test_a_call_that_was_cancelled_is_not_given_out() -> None:
    made = Tickets(lambda ticket: ticket.number != 0, 1)
    made.offer(many(2))
    assert inside(made, made.assign(room(0), (), 0, 0.0)) == [[1]]


def test_a_map_whose_results_nobody_takes_gets_no_further_calls_and_holds_up_no_other() -> None:
    batch = Batch(room=100)
    made = plan(1, [*many(3, batch=batch), Ticket(3, "g")])
    batch.came = 100
    assert inside(made, made.assign(room(0), (), 0, 0.0)) == [[3]]
    made.release()
    assert len(made.full) == 3
    batch.taken = 1
    made.release()
    assert (made.full, inside(made, made.assign(room(0), (), 0, 0.0))) == ([], [[0]])
    batch.taken, made.bounded = 0, False
    assert inside(made, made.assign(room(0), (), 0, 0.0)) == [[1]]


def test_of_several_calls_only_the_one_that_ran_is_blamed_and_it_is_tried_alone() -> None:
    made = plan(1, many(40, retries=1), pace=CHUNK / 4)
    [task] = made.assign(room(0), (), 0, 0.0)
    made.given[task.index].blamed = 2
    again = made.assign(room(0), [Outcome(task, "aside", 0.1, {})], 0, 0.0)
    assert [ticket.number for ticket in (made.given[again[0].index].tickets.values())] == [0, 1]
    assert [(ticket.number, ticket.faults) for _, ticket in made.waiting if ticket.faults] == [(2, 1)]
    [alone] = made.assign(room(0), (), 0, 0.0)
    assert (inside(made, [alone]), alone.alone) == ([[2]], True)
    made.assign(room(), [Outcome(alone, "aside", 0.1, {})], 0, 0.0)
    assert [(ticket.number, ticket.faults, index) for ticket, index in made.lost] == [(2, 2, alone.index)]


def test_a_call_that_may_begin_once_is_given_up_at_its_first_death() -> None:
    made = plan(1, many(1, once=True))
    [task] = made.assign(room(0), (), 0, 0.0)
    made.assign(room(0), [Outcome(task, "aside", 0.1, {})], 0, 0.0)
    assert ([ticket.number for ticket, _ in made.lost], made.waiting) == ([0], [])


@pytest.mark.parametrize("seed", range(20))
def test_whatever_dies_every_call_is_answered_once_or_given_up(seed: int) -> None:
    draws = random.Random(seed)
    made = plan(3, many(200, retries=1), pace=CHUNK / draws.choice([1, 5, 300]))
    done: list[int] = []
    news: list[Outcome] = []
    out: list[Task] = []
    for _ in range(2_000):
        out += made.assign(room(*[0] * max(0, 3 - len(out))), news, 0, 0.0)
        news = []
        if not out:
            break
        task = out.pop(draws.randrange(len(out)))
        tickets = list(made.given[task.index].tickets)
        if draws.random() < 0.3:
            made.given[task.index].blamed = draws.choice(tickets)
            news.append(Outcome(task, "aside", 0.1, {}))
        else:
            answered = tickets[: draws.randint(1, len(tickets))]
            done += [one.number for one in made.answered(task.index, [(number, 1e-4) for number in answered])]
    lost = [ticket.number for ticket, _ in made.lost]
    assert sorted([*done, *lost]) == list(range(200))


# Needs


@pytest.mark.parametrize("seed", range(10))
def test_the_sum_of_needs_is_never_more_than_the_machine_has(seed: int) -> None:
    draws = random.Random(seed)
    machine = Machine(4, 10**9, [1.0, 1.0, 1.0], ["0", "1", "2"])
    needs = [
        Need(draws.choice([0, 0.5, 1, 2, 4]), draws.choice([0, 1, 10**8, 10**9]), draws.choice([0, 0, 0.25, 0.5, 1, 2, 3]))
        for _ in range(1_000)
    ]
    made = Tickets(lambda ticket: True, 8, machine)
    made.offer(Ticket(number, "f", need=need) for number, need in enumerate(needs))
    out: list[Task] = []
    done: set[int] = set()
    while len(done) < len(needs):
        out += made.assign(room(*[0] * (8 - len(out))), (), 0, 0.0)
        held = [(made.given[task.index], next(iter(made.given[task.index].tickets))) for task in out]
        assert sum(needs[number].cores for _, number in held) <= 4
        assert sum(needs[number].nbytes for _, number in held) <= 10**9
        shares = Counter[int]()
        for given, number in held:
            assert len(given.gpus) == -(-needs[number].gpus // 1)
            for gpu in given.gpus:
                shares[gpu] += min(1.0, needs[number].gpus)  # type: ignore[assignment]
        assert all(share <= 1 for share in shares.values())
        task = out.pop(draws.randrange(len(out)))
        done.update(
            one.number for one in made.answered(task.index, [(number, 1.0) for number in made.given[task.index].tickets])
        )
    assert (machine.used_cores, machine.used_nbytes, machine.gpus) == (0.0, 0, [1.0, 1.0, 1.0])


def test_a_call_that_waits_for_a_gpu_holds_up_no_call_without_one_and_a_call_that_waits_for_cores_all() -> None:
    made = Tickets(lambda ticket: True, 4, Machine(2, 0, [1.0], ["0"]))
    gpu, plain, wide = Need(gpus=1), Need(cores=0.5), Need(cores=2)
    made.offer([Ticket(0, "g", need=gpu), Ticket(1, "g", need=gpu), Ticket(2, "f", need=plain), Ticket(3, "w", need=wide)])
    made.offer([Ticket(4, "f", need=plain)])
    assert inside(made, made.assign(room(0, 0, 0, 0), (), 0, 0.0)) == [[0], [2]]
    assert [ticket.number for _, ticket in sorted(made.waiting)] == [1, 3, 4]
    list(made.answered(0, [(0, 1.0)]))
    assert inside(made, made.assign(room(0, 0, 0), (), 0, 0.0)) == [[1]]


def test_short_calls_behind_one_another_take_one_core() -> None:
    made = Tickets(lambda ticket: True, 1, Machine(1, 0))
    made.pace["f"] = CHUNK / 2
    made.offer(many(10))
    assert inside(made, made.assign(room(0, free=2), (), 0, 0.0)) == [[0, 1], [2, 3]]
    assert made.machine is not None
    assert made.machine.used_cores == 1


@pytest.mark.parametrize(
    ("how", "says"),
    [
        ({"cores": -1}, r"Need\(cores=-1\): must be a number from 0"),
        ({"cores": float("nan")}, "must be a number from 0"),
        ({"gpus": 1.5}, r"Need\(gpus=1.5\): must be a whole number, or a fraction below 1"),
        ({"memory": "lots"}, r"Need\(memory='lots'\): must be bytes from 0"),
        ({"memory": -1}, "must be bytes from 0"),
        ({"memory": None}, "must be bytes from 0"),
    ],
)
def test_a_need_that_is_none_is_said_so(how: dict[str, Any], says: str) -> None:
    with pytest.raises(UserError, match=says):
        Need(**how)


def test_memory_may_be_said_in_words() -> None:
    assert [Need(memory=said).nbytes for said in ("1G", "1.5 gb", "200M", "12", 7, "3KB")] == [
        10**9, 15 * 10**8, 2 * 10**8, 12, 7, 3_000
    ]  # fmt: skip
    machine = Machine(2, 10**9)
    assert machine.never(Need(2, "1G")) == ""
    assert machine.never(Need(4)) == "this call needs 4 cores, and the machine has 2 cores and 1 GB of memory"
    assert "needs 1 cores and 1 GPUs" in machine.never(Need(gpus=1))


# In a core


def test_the_task_that_a_record_names_is_blamed_and_no_other_is_tried_alone() -> None:
    made = plan(1, many(4), pace=CHUNK)
    made.pace["f"] = CHUNK / 2
    run = Run(made, POOL).join("a").contribute("a", trained=0.001)
    assert len(run.tasks["a"]) == 2
    second = list(run.tasks["a"])[1]
    run.event(Lost(b"a", "died", dead=True, ran=(*second, run.tasks["a"][second].attempt)))
    assert run.told("lost") == [f"a died in task {second}; 2 of its tasks go to others"]
    assert [text.partition(" (")[0] for text in run.told("aside")] == [f"task {second}".partition(" (")[0]]
    assert [(one.faults, one.alone) for one in run.core.facts.ledger.returned] == [(0, False)]
    assert run.core.facts.ledger.counts.deaths == 1


def test_a_record_is_believed_of_a_process_that_died_before_it_said_a_word() -> None:
    made = plan(1, many(1, once=True))
    run = Run(made, POOL).join("a")  # not even that weights came
    run.event(Lost(b"a", "died", dead=True, ran=(0, 0, run.tasks["a"][0, 0].attempt)))
    assert run.core.facts.ledger.counts.deaths == 1
    assert run.join("b").said("b", Assign) == []
    assert [ticket.number for ticket, _ in made.lost] == [0]


def test_a_process_that_by_its_record_began_nothing_is_blamed_on_no_task() -> None:
    run = Run(plan(1, many(1)), POOL).join("a")
    run.arrive("a")
    run.event(Lost(b"a", "died", dead=True, ran=()))
    assert (run.told("aside"), run.core.facts.ledger.counts.deaths) == ([], 0)
    assert names(run.join("b").said("b", Assign)) == [(0, 0)]


def test_a_pool_goes_on_after_a_task_that_is_set_aside() -> None:
    made = plan(1, many(2, retries=0))
    run = Run(made, POOL).join("a", "b")
    run.arrive("a")
    run.event(Lost(b"a", "died", dead=True, ran=(0, 0, run.tasks["a"][0, 0].attempt)))
    assert run.all(Finish) == []
    run.contribute("b").event(Nudge())
    assert [ticket.number for ticket, _ in made.lost] == [0]


def test_a_task_that_may_take_long_has_its_actor_for_itself() -> None:
    made = plan(2, [Ticket(0, "g")], pace=CHUNK / 2)
    run = Run(made, POOL).join("a")
    made.offer([Ticket(number, "f") for number in range(1, 4)])
    run.event(Nudge())
    assert len(run.tasks["a"]) == 1
    assert len(run.join("b").tasks["b"]) == 1


def test_a_task_that_nobody_wants_any_more_ends_its_actor_and_is_given_to_no_other() -> None:
    run = Run(plan(1, many(1)), POOL).join("a")
    run.arrive("a")
    run.event(Withdraw((0, 0)))
    assert run.said("a", Cancel) == [Cancel((0, 0))]
    assert run.all(Evict) == [Evict(b"a")]
    run.event(Lost(b"a", "ended", dead=True, ran=(0, 0, 65_537)))
    assert run.told("lost") == ["a ended; 0 of its tasks go to others"]
    assert run.join("b").said("b", Assign) == []


def test_a_task_that_is_withdrawn_while_it_waits_is_forgotten() -> None:
    run = Run(plan(1, many(1)), POOL).join("a")
    run.arrive("a")
    run.event(Lost(b"a", "died", dead=True, ran=()))
    assert len(run.core.facts.ledger.returned) == 1
    assert run.event(Withdraw((0, 0))).all(Evict) == []
    assert run.join("b").said("b", Assign) == []


def test_no_call_begins_on_a_machine_whose_memory_is_nearly_used_up() -> None:
    machines = {0: Machine(4, 1_000), 1: Machine(4, 1_000)}
    plan = Tickets(lambda ticket: True, 2, machine_of=machines.__getitem__)
    plan.offer([Ticket(number, "f") for number in range(2)])
    machines[0].closed = "no memory"
    assert [task.where for task in plan.assign(room(0, 0), (), 0, 0.0)] == [1]
    assert list(plan.assign(room(0), (), 0, 0.0)) == []
    machines[0].closed = ""
    assert [task.where for task in plan.assign(room(0), (), 0, 0.0)] == [0]


def test_who_gives_a_call_up_is_heard_by_the_actor_that_has_its_task() -> None:
    run = Run(plan(1, many(1)), POOL).join("a")
    run.arrive("a")
    assert run.event(Flag((0, 0), (0,))).said("a", GiveUp) == [GiveUp((0, 0), (0,))]
    assert run.all(Evict) == []
    assert run.event(Flag((0, 9), (0,))).effects == []
