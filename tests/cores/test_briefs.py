"""A task's own arrays: made when it is given out, told with it, fetched piece by piece, and used by its own attempt alone."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import pytest
from test_core import Run

from shoal.actors.coming import Fetching
from shoal.actors.effects import Drop, Note, Say, Stow
from shoal.actors.effects import Run as Order
from shoal.actors.events import Heard, Opened, Tick
from shoal.actors.session import Session, hello
from shoal.coordinator.deciding.bounds import Bounds
from shoal.coordinator.deciding.events import (
    Brief,
    Briefed,
    Carried,
    Evict,
    Fold,
    Lost,
    SendTask,
    Stepped,
)
from shoal.coordinator.deciding.patience import waiting_for
from shoal.coordinator.deciding.plans.rounds import Rounds
from shoal.coordinator.deciding.plans.stream import Stream
from shoal.coordinator.learner import Learner
from shoal.protocol.errors import UserError
from shoal.protocol.fetching import LEAST
from shoal.protocol.layout import Bundle, Layout
from shoal.protocol.messages import (
    Assign,
    Beat,
    Cancel,
    Chunk,
    Contribute,
    Envelope,
    Failed,
    Message,
    Stop,
    TaskName,
    Want,
    Weights,
    Welcome,
)
from shoal.protocol.work import Task


@dataclass(frozen=True)
class Bytes:
    nbytes: int


BRIEFS = Bounds(briefs=True, ahead=1, patience=60.0)
ATTEMPT = 65_537


# At the coordinator


def tasks(run: Run) -> list[Assign]:
    """Assigns whose brief the shell adds."""
    said = [effect.envelope.message for effect in run.all(SendTask)]
    return [one for one in said if isinstance(one, Assign)]


def kept(run: Run) -> list[tuple[TaskName, int]]:
    """Task and attempt of the briefs that are kept."""
    return [(one.name, one.attempt) for one in run.core.facts.ledger.leases.values() if one.brief]


def brief(run: Run, task: TaskName = (0, 0), attempt: int = ATTEMPT, nbytes: int = 400) -> Run:
    run.event(Briefed(task, attempt, "layout of briefs", Bytes(nbytes)))
    for assign in tasks(run):
        name = next(name for name, session in run.sessions.items() if session == run.all(SendTask)[0].envelope.session)
        run.tasks[name][assign.task] = assign
    return run


def test_a_task_is_told_when_its_brief_is_made_and_not_before() -> None:
    run = Run(Rounds(2), BRIEFS).join("a")
    assert run.all(Brief) == [Brief(Task(0, 0, (0,)), ATTEMPT)]
    assert run.said("a", Assign) == []
    [assign] = tasks(brief(run))
    assert (assign.task, assign.attempt, assign.brief, assign.nbytes) == ((0, 0), ATTEMPT, "layout of briefs", 400)


def test_a_task_for_nobody_in_particular_is_briefed_for_who_does_it() -> None:
    run = Run(Stream(1, 1), BRIEFS).join("a", "b")
    assert run.all(Brief) == [Brief(Task(0, 1, (1,)), ATTEMPT)]


ONCE = replace(BRIEFS, brief_once=True)


def test_who_has_had_a_client_s_brief_waits_for_no_other() -> None:
    run = brief(Run(Stream(1, 1), ONCE).join("a"))
    assert len(run.contribute("a").said("a", Assign)) == 1
    assert run.all(Brief) == []
    assert run.join("b").all(Brief) == [Brief(Task(0, 2, (1,)), ATTEMPT)]  # its own environments


def test_a_brief_for_each_task_knows_whether_the_actor_has_had_one_for_the_client() -> None:
    run = brief(Run(Stream(1, 9, evaluate_every=1), BRIEFS).join("a")).contribute("a")
    assert run.all(Brief) == [Brief(Task(0, 1, (0,), briefed=True), ATTEMPT)]
    assert run.join("b").all(Brief) == [Brief(Task(0, 2, (1,)), ATTEMPT)]
    run.event(Lost(b"a", "ended", dead=True)).join("c")
    assert run.all(Brief) == [Brief(Task(0, 1, (0,)), ATTEMPT + 1)]  # it has the client of the first, and has had no brief


def test_an_evaluation_is_not_the_first_task_of_its_client() -> None:
    run = Run(Rounds(1, evaluate_every=1, evaluate_cohort=1), replace(BRIEFS, ahead=2)).join("a")
    run.event(Briefed((0, 1), ATTEMPT))
    [evaluation] = [one for one in run.core.facts.ledger.leases.values() if not one.counts]
    assert (evaluation.clients, run.core.facts.roster.actors[run.sessions["a"]].briefed) == ((0,), set())


def test_two_tasks_that_go_out_together_are_both_briefed() -> None:
    """The second would else be begun while the first waits for the learner."""
    run = Run(Stream(1, 1), replace(ONCE, ahead=2)).join("a")
    assert [one.task.index for one in run.all(Brief)] == [0, 1]
    assert run.said("a", Assign) == []


def test_who_takes_the_number_of_one_who_died_is_briefed() -> None:
    run = brief(Run(Stream(1, 1), ONCE).join("a")).event(Lost(b"a", "ended", dead=True)).join("c")
    assert [one.task.clients for one in run.all(Brief)] == [(0,)]


def test_an_evaluation_waits_for_no_brief_where_briefs_are_for_first_tasks() -> None:
    run = brief(Run(Stream(1, 9, evaluate_every=1), ONCE).join("a")).contribute("a").step()
    assert [one.kind for one in run.contribute("a").said("a", Assign)] == ["evaluate"]
    assert run.all(Brief) == []


def test_a_task_for_which_there_is_no_brief_is_told_without_one() -> None:
    run = Run(Rounds(1), BRIEFS).join("a").event(Briefed((0, 0), ATTEMPT))
    [assign] = run.said("a", Assign)
    assert (assign.brief, assign.nbytes) == ("", 0)
    assert kept(run) == []


def test_a_brief_is_kept_until_its_task_is_done() -> None:
    run = brief(Run(Rounds(2), BRIEFS).join("a"))
    assert kept(run) == [((0, 0), ATTEMPT)]
    run.send("a")
    assert (kept(run), len(run.all(Fold))) == ([], 1)


def test_a_brief_that_comes_when_its_task_is_anothers_is_let_go_of() -> None:
    run = Run(Rounds(1), BRIEFS).join("a", "b")
    assert run.event(Lost(b"a", "ended", dead=True)).all(Brief) == [Brief(Task(0, 0, (0,)), ATTEMPT + 1)]
    assert (tasks(brief(run)), kept(run)) == ([], [])
    assert [one.attempt for one in tasks(brief(run, attempt=ATTEMPT + 1))] == [ATTEMPT + 1]
    assert kept(run) == [((0, 0), ATTEMPT + 1)]
    assert kept(run.event(Lost(b"b", "ended", dead=True))) == []


@pytest.mark.parametrize("said", ["work", "failure"])
def test_nobody_can_have_done_what_nobody_was_told_of(said: str) -> None:
    run = Run(Rounds(1), BRIEFS).join("a")
    work = Contribute((0, 0), ATTEMPT, 0, 1.0, "layout", False, {}, {}, 0.0, 1.0)
    run.arrive("a")
    run.hear("a", work if said == "work" else Failed((0, 0), ATTEMPT, 0, "training", "no", ""))
    assert run.verdicts("a") == ["stale"]
    assert len(tasks(brief(run))) == 1


def test_the_lease_of_a_task_begins_when_its_brief_is_there() -> None:
    run = Run(Rounds(1), Bounds(briefs=True, ahead=1, patience=60.0, lease=10.0)).join("a", "b")
    run.arrive("a")
    run.tick(after=11.0)
    assert run.told("late") == []  # the learner is slow
    assert waiting_for(run.core.facts) == ["a, on task (0, 0), for 11 s: the learner, which makes its brief"]
    brief(run, nbytes=1_000_000).tick(after=9.0)
    run.event(Carried(b"session of a", (0, 0), 600_000), after=0.5)
    assert waiting_for(run.core.facts)[0].endswith("its brief, 0.6 of 1.0 MB still to come")
    assert run.tick(after=9.0).told("late") == []
    run.tick(after=2.0)
    assert len(run.told("late")) == 1
    assert run.all(Evict) == []  # it has not begun
    assert kept(run) == []


def test_an_actor_that_is_cut_off_from_half_of_a_brief_has_time_to_come_back_for_the_rest() -> None:
    run = Run(Rounds(1), BRIEFS).join("a", "b")
    brief(run, nbytes=1_000)
    run.event(Carried(b"session of a", (0, 0), 400)).event(Lost(b"a", "cannot be reached"))
    assert run.told("away")
    assert run.all(Brief) == []


def test_who_comes_back_to_its_place_is_told_again_of_what_is_briefed_and_of_nothing_else() -> None:
    run = Run(Rounds(2), Bounds(briefs=True, ahead=2, patience=60.0)).join("a")
    brief(run)
    back = run.core.facts.roster.actors[b"session of a"]
    run.hear("a", replace(hello("a", "host", 1, ()), greeting=1, epoch=run.core.facts.epoch, held=0), epoch=0)
    assert back.resumed
    assert [one.task for one in tasks(run)] == [(0, 0)]
    assert run.said("a", Assign) == []


def test_a_brief_that_was_whole_before_a_cut_is_not_to_come_once_the_worker_is_at_its_task() -> None:
    run = brief(Run(Rounds(1), BRIEFS).join("a", "b"), nbytes=1_000)
    [lease] = run.core.facts.ledger.leases.values()
    run.event(Carried(b"session of a", (0, 0), 0))
    run.hear("a", replace(hello("a", "host", 1, ()), greeting=1, epoch=run.core.facts.epoch, held=0), epoch=0)
    assert lease.left == 1_000  # its last piece may be lost
    since = lease.since
    run.hear("b", Beat(0, runs=(0, 0, ATTEMPT)))
    run.hear("a", Beat(0, runs=(0, 0, ATTEMPT + 1)))
    assert lease.left == 1_000
    run.tick(after=3.0).hear("a", Beat(0, runs=(0, 0, ATTEMPT)))
    assert (lease.left, lease.since) == (0, since)  # its time goes on
    assert "in task (0, 0)" in run.event(Lost(b"a", "ended", dead=True)).told("lost")[0]


def test_a_round_that_closes_lets_go_of_its_briefs() -> None:
    run = Run(Rounds(2, quorum=1, deadline=5.0), BRIEFS).join("a", "b")
    brief(run, (0, 0))
    brief(run, (0, 1))
    assert kept(run.contribute("a")) == [((0, 1), ATTEMPT)]
    assert kept(run.tick(after=6.0).event(Stepped(1, {}))) == []


class Recalling:
    """An aggregator with something for task 1 alone."""

    linear = False

    def __init__(self) -> None:
        self.memory = Bundle.zeros(Layout.of({"memory": ("f4", (3,))}))

    def weights(self) -> Bundle:
        return Bundle.zeros(Layout.of({"w": ("f4", (2,))}))

    def brief(self, task: Task) -> Bundle | None:
        return self.memory if task.index == 1 else None


def test_the_learner_hands_out_what_the_aggregator_has_for_a_task() -> None:
    aggregator: Any = Recalling()
    learner = Learner(aggregator, None, float, briefs=[aggregator.memory.layout])  # type: ignore[arg-type]
    learner.put([Brief(Task(0, 0, (0,)), 5), Brief(Task(0, 1, (1,)), 6)])
    none, some = learner.outcomes
    assert none == Briefed((0, 0), 5)
    assert isinstance(some, Briefed)
    assert (some.task, some.attempt, some.layout, some.arrays.nbytes) == ((0, 1), 6, aggregator.memory.layout.digest, 12)
    other = Learner(aggregator, None, float)  # type: ignore[arg-type]
    with pytest.raises(UserError, match=r"Recalling.brief of task \(0, 1\) has layout .* none of those in the job's briefs"):
        other.put([Brief(Task(0, 1, (1,)), 6)])


# At the actor


class Life:
    """A session that has been welcomed and has weights 0."""

    def __init__(self) -> None:
        self.now = 0.0
        self.session = Session(b"12345678", hello("a", "host", 1, ()), "here", 0.0)
        self.effects: list[Any] = []
        self.welcome(1).hear(Weights(0))

    def event(self, event: Any, after: float = 0.001) -> Life:
        self.now += after
        self.effects = self.session.handle(event, self.now)
        return self

    def hear(self, message: Message, epoch: int = 1) -> Life:
        return self.event(Heard(Envelope(b"12345678", epoch, message)))

    def welcome(self, epoch: int, greeting: int = 0, resumed: bool = False) -> Life:
        return self.hear(Welcome("run", 0, 0.25, 10.0, "host", (), greeting, resumed), epoch)

    def assign(self, index: int, attempt: int = 7, nbytes: int = 0, version: int = 0) -> Life:
        told = Assign((version, index), attempt, (index,), "train", False, brief="layout", nbytes=nbytes)
        return self.hear(told)

    def all(self, kind: type[Any]) -> list[Any]:
        return [one for one in self.effects if isinstance(one, kind)]

    def coming(self) -> list[tuple[tuple[int, ...], int]]:
        """Names and sizes of the arrays that are fetched, in their order."""
        return [(one.what, one.nbytes) for one in self.session.fetching.queue]

    def wants(self) -> list[Want]:
        return [one.envelope.message for one in self.all(Say) if isinstance(one.envelope.message, Want)]

    def fetch(self) -> Life:
        """All that is asked for comes, until nothing is."""
        seen: list[Any] = list(self.effects)
        while asked := self.wants():
            for want in asked:
                self.hear(Chunk(want.what, want.first, want.last))
                seen += self.effects
        self.effects = seen
        return self


def test_a_brief_that_comes_with_its_task_is_placed_and_used() -> None:
    life = Life().assign(3)
    assert life.all(Stow) == [Stow((0, 3, 7))]
    [run] = life.all(Order)
    assert (run.attempt, run.brief) == (7, "layout")


def test_a_task_waits_for_its_brief_and_others_do_not_wait_for_it() -> None:
    life = Life().assign(3, nbytes=2 * LEAST)
    assert life.coming() == [((0, 3, 7), 2 * LEAST)]
    assert life.all(Order) == []
    asked = life.wants()
    assert [one.task.index for one in life.hear(Assign((0, 4), 7, (4,), "train", False)).all(Order)] == [4]
    life.hear(Chunk(asked[0].what, asked[0].first, asked[0].last)).fetch()
    assert {one.what for one in life.all(Stow)} == {(0, 3, 7)}
    assert [(one.task.index, one.brief) for one in life.all(Order)] == [(3, "layout")]


def test_a_brief_is_fetched_on_where_it_was_when_its_task_is_told_again() -> None:
    life = Life().assign(3, nbytes=3 * LEAST)
    [probe] = life.wants()
    [first] = life.hear(Chunk(probe.what, 0, 0)).wants()
    [second] = life.hear(Chunk(first.what, first.first, first.last)).wants()
    life.event(Opened(arrays=False)).welcome(1, greeting=1, resumed=True)
    assert life.all(Drop) == []
    again = life.assign(3, nbytes=3 * LEAST)
    assert again.coming() == [((0, 3, 7), 3 * LEAST)]
    life.event(Opened(arrays=True)).event(Tick(), after=0.1)
    assert [one.first for one in life.wants()] == [second.first]


def test_a_later_attempt_begins_its_brief_anew() -> None:
    life = Life().assign(3, nbytes=3 * LEAST).assign(3, attempt=8, nbytes=3 * LEAST)
    assert life.all(Drop) == [Drop((0, 3, 7))]
    assert life.coming() == [((0, 3, 8), 3 * LEAST)]
    life.assign(5, version=9).assign(5, attempt=8, version=9)  # whose weights are not here
    assert (life.all(Drop), life.all(Stow)) == ([Drop((9, 5, 7))], [Stow((9, 5, 8))])


def test_what_is_cancelled_is_fetched_no_further() -> None:
    life = Life().assign(3, nbytes=3 * LEAST).hear(Cancel((0, 3)))
    assert life.all(Drop) == [Drop((0, 3, 7))]
    assert life.session.fetching.first is None
    assert life.hear(Chunk((0, 3, 7), 0, 0)).effects == []


def test_a_new_place_has_no_use_for_the_briefs_of_the_last() -> None:
    life = Life().assign(3, version=9).assign(4, nbytes=3 * LEAST)
    life.event(Opened(arrays=False)).welcome(2, greeting=1)
    assert {one.what for one in life.all(Drop)} == {(9, 3, 7), (0, 4, 7)}


def test_a_brief_of_what_was_cancelled_while_nobody_heard_goes_with_the_next_beat() -> None:
    life = Life().assign(3, version=9).assign(4, version=9)
    life.event(Opened(arrays=False)).welcome(1, greeting=1, resumed=True).assign(3, version=9)
    assert life.all(Stow) == []  # it is here
    assert life.hear(Beat(0)).all(Drop) == [Drop((9, 4, 7))]


def test_weights_and_briefs_are_fetched_one_after_the_other_as_they_were_told_of() -> None:
    fetching = Fetching()
    fetching.begin((0, 3, 7), 100, 0.0)
    fetching.begin((1,), 100, 0.0)
    for at in (0, 1):
        assert {one.what for one in fetching.ask(0.1)} == {(0, 3, 7)}
        assert fetching.came((1,), 0, 0, 0.2) is None
        came = fetching.came((0, 3, 7), *((0, 0), (0, 100))[at], 0.2)
        assert came is not None
    assert came.fetch.left == 0
    assert {one.what for one in fetching.ask(0.3)} == {(1,)}


def test_a_person_is_told_which_brief_does_not_come() -> None:
    life = Life().assign(3, nbytes=2_000_000)
    life.hear(Beat(0)).event(Tick(), after=4.9).hear(Beat(0)).event(Tick(), after=1.0)
    assert [note.text for note in life.all(Note)] == [
        "no piece came from here for 6 s; brief of task (0, 3): 2.0 of 2.0 MB still to come"
    ]


def test_the_end_of_a_run_ends_what_is_fetched() -> None:
    life = Life().assign(3, nbytes=3 * LEAST).hear(Stop("done"))
    assert life.event(Tick(), after=9.0).effects == []
