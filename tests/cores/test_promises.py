"""What was acknowledged outlives the coordinator: at whoever made it, and in the snapshots and records of who accepted it."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

from test_core import Run

from shoal.actors.effects import Forget, Retain, Say
from shoal.actors.events import Done, Heard
from shoal.actors.session import Session, hello
from shoal.coordinator.deciding.bounds import Bounds, Goal
from shoal.coordinator.deciding.events import Fold, Folded, Pull, Step
from shoal.coordinator.deciding.events import Heard as AtCore
from shoal.coordinator.deciding.plans import Asked
from shoal.coordinator.deciding.plans.rounds import Rounds
from shoal.coordinator.deciding.plans.stream import Stream
from shoal.coordinator.deciding.promises import ANY, Promise, Promises
from shoal.coordinator.deciding.recovered import Recovered
from shoal.coordinator.reports import Report
from shoal.protocol.messages import Assign, Beat, Contribute, Envelope, Message, Verdict, Welcome
from shoal.protocol.work import Task

OLD = 65_537  # an attempt of the life before
DIGEST = "d" * 64
ME = b"12345678"
KEEPS = Bounds(retain=1_000, back=2.0)


def promise(
    version: int, index: int, *clients: int, onto: int, session: bytes = b"session of a", attempt: int = OLD
) -> Promise:
    return Promise(Task(version, index, clients), clients, attempt, session, version, onto, DIGEST)


def offer(run: Run, name: str, one: Promise, **claims: Any) -> Run:
    told: dict[str, Any] = {"digest": one.digest, "nbytes": 100, **claims}
    message = Contribute(one.task.name, one.attempt, one.made_from, 1.0, "layout", False, {}, {}, 0.0, 0.0, **told)
    return _heard(run, name, message, whole=False)


def _heard(run: Run, name: str, message: Contribute, whole: bool) -> Run:
    envelope = Envelope(run.sessions[name], run.core.facts.epoch, message)
    return run.event(AtCore(run.peers[name], envelope, whole=whole))


def restarted(plan: Any, *promises: Promise, version: int = 0, bounds: Bounds = KEEPS, goal: Goal | None = None) -> Run:
    told: Any = {"version": version, "epoch": 2, "promises": promises}
    return Run(plan, bounds, goal, **told)


def counted(run: Run, name: str, one: Promise) -> Run:
    """Offered, fetched, and folded in."""
    offer(run, name, one)
    assert len(run.all(Pull)) == 1
    message = run.all(Pull)[0].message
    _heard(run, name, message, whole=True)
    [fold] = run.all(Fold)
    assert fold.promised
    return run.event(Folded(one.task.name))


def test_what_was_accepted_before_a_restart_is_asked_of_nobody_else_and_counts_once() -> None:
    first, second = promise(0, 0, 0, onto=0), promise(0, 1, 1, onto=0)
    run = restarted(Rounds(3, asked=Asked(done={0: {0, 1}}, first={0: 2})), first, second).join("a", "b")
    assert [assign.clients for name in "ab" for assign in run.tasks[name].values()] == [(2,)]
    counted(run, "a", first)
    [said] = [send.envelope.message for send in run.effects if hasattr(send, "envelope")][:1]
    assert isinstance(said, Verdict)
    assert (said.verdict, said.onto) == ("accepted", 0)
    offer(run, "a", first)
    assert run.all(Pull) == []
    assert run.core.facts.ledger.counts.duplicate == 1
    assert run.core.facts.ledger.folded == {0: 1}


def test_a_round_waits_for_what_was_promised_and_no_longer_than_its_actors_have_to_come_back() -> None:
    run = restarted(
        Rounds(2, asked=Asked(done={0: {0, 1}}, first={0: 2})), promise(0, 0, 0, onto=0), promise(0, 1, 1, onto=0)
    ).join("a", "b")
    counted(run, "a", promise(0, 0, 0, onto=0))
    assert run.all(Step) == []
    run.tick(after=1.9)
    assert run.tasks["a"] == run.tasks["b"] == {}
    run.tick(after=0.2)
    assert [report.kind for report in run.all(Report)] == ["recall"]
    [again] = [assign for name in "ab" for assign in run.tasks[name].values()]
    assert (again.task, again.clients, again.attempt > OLD) == ((0, 1), (1,), True)


def test_nobody_else_can_keep_a_promise() -> None:
    first = promise(0, 0, 0, onto=0)
    run = restarted(Rounds(2, asked=Asked(done={0: {0}}, first={0: 1})), first).join("a", "b")
    offer(run, "b", first)
    assert run.all(Pull) == []
    assert run.core.facts.ledger.counts.stale == 1


def test_other_arrays_than_those_that_were_accepted_are_refused_and_the_work_is_done_again() -> None:
    first = promise(0, 0, 0, onto=0)
    run = restarted(Rounds(2, asked=Asked(done={0: {0}}, first={0: 1})), first).join("a", "b")
    offer(run, "a", first, digest="e" * 64)
    assert run.core.facts.ledger.counts.refused == 1
    assert (0, 0) in {assign.task for name in "ab" for assign in run.tasks[name].values()}


def test_a_promise_for_a_later_version_is_fetched_when_that_version_comes() -> None:
    now, later = promise(0, 0, 0, onto=0), promise(1, 0, 0, onto=1)
    run = restarted(Rounds(1, asked=Asked(done={0: {0}, 1: {0}}, first={0: 1, 1: 1})), now, later).join("a")
    offer(run, "a", later)
    assert run.all(Pull) == []
    counted(run, "a", now).step()
    assert [pull.message.task for pull in run.all(Pull)] == [(1, 0)]


def test_a_lost_promise_for_a_later_version_is_done_again_when_that_version_comes() -> None:
    now, later = promise(0, 0, 0, onto=0), promise(1, 0, 0, onto=1)
    run = restarted(Rounds(1, asked=Asked(done={0: {0}, 1: {0}}, first={0: 1, 1: 1})), now, later).join("a")
    offer(run, "a", later, digest="e" * 64)
    assert run.core.facts.ledger.counts.refused == 1
    assert run.tasks["a"] == {}
    counted(run, "a", now).step()
    assert [assign.task for assign in run.tasks["a"].values()] == [(1, 0)]


def test_what_a_stream_was_promised_counts_however_old_it_is() -> None:
    first = promise(3, 7, 0, onto=ANY)
    run = restarted(Stream(1, 0, clients=5, asked=Asked(8)), first, version=9).join("a")
    counted(run, "a", first)
    assert run.core.facts.ledger.counts.accepted == 1
    assert len(run.all(Step)) == 1


def test_what_was_promised_is_not_fetched_where_the_goal_is_reached() -> None:
    one = promise(3, 0, 1, onto=ANY)
    run = restarted(Stream(1, 9, clients=5), one, version=4, goal=Goal(versions=4)).join("a")
    assert offer(run, "a", one).all(Pull) == []
    assert [report.kind for report in run.tick(after=run.core.facts.bounds.back + 0.1).all(Report)] == []  # nor missed
    assert run.core.facts.ended


def test_one_who_left_with_the_answer_on_its_way_hears_it_when_it_is_back() -> None:
    run = Run(Rounds(2), KEEPS).join("a", "b")
    work = run.work("a", digest=DIGEST)
    _heard(run, "a", work, whole=True)
    [fold] = run.all(Fold)
    run.tick(after=11.0)  # its silence is borne no longer
    run.event(Folded((fold.task.version, fold.task.index)))
    run.join("a", again=", once more")
    _heard(run, "a", work, whole=True)
    verdicts = [send.envelope.message for send in run.effects if isinstance(getattr(send, "envelope", None), Envelope)]
    assert [(said.verdict, said.onto) for said in verdicts if isinstance(said, Verdict)] == [("accepted", 0)]


# The books


def test_a_task_that_was_done_again_in_parts_is_not_promised_as_a_whole() -> None:
    promises = Promises()
    promises.add(promise(2, 5, 10, 11, 12, onto=2))
    promises.add(promise(2, 5, 10, onto=2, attempt=OLD + 1))
    promises.add(promise(2, 6, 11, onto=2, attempt=OLD + 1))
    assert [(one.task.name, one.clients) for one in promises.by_name.values()] == [((2, 5), (10,)), ((2, 6), (11,))]
    assert promises.first == {2: 8}
    promises.drop((2, 5), 3)
    assert promises.by_name == {}


def test_a_promise_survives_json() -> None:
    bare = promise(2, 5, 10, 11, onto=3)
    one = replace(bare, task=replace(bare.task, kind="mine", words={"lr": [0.5, None]}))
    assert Promise.of_plain(json.loads(json.dumps(one.plain()))) == one
    assert Promise.of_plain(json.loads(json.dumps(bare.plain()[:-2]))) == bare  # of version 0.1


def test_a_snapshot_that_covers_the_records_of_promises_says_what_they_are() -> None:
    found = Recovered()
    record = found.begin(4, {"steps": 3, "record": 17, "promises": [promise(5, 0, 1, onto=5).plain()], "made": {"6": "digest"}})
    assert (record, found.version, found.kept, found.newest, found.made) == (17, 4, 4, 6, {6: "digest"})
    found.settle(streams=False)
    assert (found.version, found.done) == (4, {5: {1}})


def test_rounds_that_are_closed_want_nothing_and_streams_go_on_under_a_version_nobody_has_seen() -> None:
    rounds, stream = (Recovered(version=4, newest=6, promises=[promise(3, 0, 1, onto=3)]) for _ in range(2))
    rounds.settle(streams=False)
    stream.settle(streams=True)
    assert (rounds.version, rounds.promises) == (4, [])
    assert (stream.version, [one.onto for one in stream.promises]) == (7, [ANY])


# At the actor


class Life:
    """A session that has been welcomed."""

    def __init__(self, retain: int) -> None:
        self.session = Session(ME, hello("a", "host", 1, ()), "here", 0.0)
        self.effects: list[Any] = []
        self.welcome(1, retain)

    def welcome(self, epoch: int, retain: int) -> None:
        self.hear(Welcome("run", 0, 0.25, 10.0, "host", (), self.session.greeting, False, retain), epoch)

    def hear(self, message: Message, epoch: int = 1) -> list[Any]:
        self.effects = self.session.handle(Heard(Envelope(ME, epoch, message)), 1.0)
        return self.effects

    def accepted(self, index: int, onto: int, nbytes: int = 100) -> None:
        self.hear(Assign((0, index), 1, (0,), "train", False))
        done = Contribute((0, index), 1, 0, 1.0, "layout", False, {}, {}, 0.0, 0.0, (7, 7), 0, DIGEST)
        self.session.handle(Done(done, 1, nbytes), 1.0)
        self.hear(Verdict((0, index), 1, "accepted", "", onto))

    def again(self) -> list[Contribute]:
        """What is offered to another life of the coordinator."""
        self.session._lose_place()
        self.welcome(2, 1_000)
        messages = [effect.envelope.message for effect in self.effects if isinstance(effect, Say)]
        return [message for message in messages if isinstance(message, Contribute)]


def test_what_was_accepted_is_offered_to_the_next_life_to_be_fetched() -> None:
    life = Life(1_000)
    life.accepted(0, onto=0)
    assert life.effects == [Retain((0, 0))]
    [said] = life.again()
    assert (said.task, said.slot, said.nbytes, said.digest) == ((0, 0), (), 100, DIGEST)


def test_what_is_in_a_snapshot_is_forgotten_and_what_is_in_none_is_not() -> None:
    life = Life(1_000)
    life.accepted(0, onto=0)
    life.accepted(1, onto=1)
    assert life.hear(Beat(5, 1)) == [Forget((0, 0))]
    assert [said.task for said in life.again()] == [(0, 1)]


def test_no_more_is_kept_than_the_coordinator_asked_for() -> None:
    life = Life(250)
    for index in range(3):
        life.accepted(index, onto=0)
    assert life.effects == [Retain((0, 2)), Forget((0, 0))]
    assert [said.task for said in life.again()] == [(0, 1), (0, 2)]


def test_what_is_not_asked_for_is_not_kept() -> None:
    life = Life(0)
    life.accepted(0, onto=-1)
    assert life.effects == [Forget((0, 0))]
    assert life.again() == []


def test_the_same_life_is_offered_nothing_twice() -> None:
    life = Life(1_000)
    life.accepted(0, onto=0)
    life.session._lose_place()
    life.welcome(1, 1_000)
    said = [effect.envelope.message for effect in life.effects if isinstance(effect, Say)]
    assert not any(isinstance(message, Contribute) for message in said)


def test_what_is_kept_is_not_made_again() -> None:
    life = Life(1_000)
    life.accepted(0, onto=0)
    life.session.tasks.clear()  # it never had weights to begin with
    life.hear(Assign((0, 0), 1, (0,), "train", False))
    assert life.session.tasks == {}


# Quarantine


def failing(run: Run, name: str, times: int) -> list[Report]:
    """This actor's work is no good, so many times in a row."""
    reports = []
    for _ in range(times):
        _heard(run, name, run.work(name, weight=-1.0), whole=True)
        reports += [report for report in run.all(Report) if report.kind == "quarantine"]
    return reports


def test_whose_work_is_no_good_time_after_time_gets_none_for_a_while() -> None:
    run = Run(Stream(99, 9, clients=5), Bounds(strikes=3, quarantine=10.0, attempts=99, patience=99.0)).join("a", "b")
    assert failing(run, "a", 2) == []
    [report] = failing(run, "a", 1)
    assert report.text.startswith("a gets no work for 10 s: 3 times in a row its work was no good, the last time: weight -1.0")
    left = len(run.tasks["a"])
    run.contribute("b", "b")
    assert len(run.tasks["a"]) == left
    run.tick(after=10.1)
    assert [one.text for one in run.all(Report) if one.kind == "quarantine"] == ["a may have work again"]
    assert len(run.tasks["a"]) > left


def test_quarantine_is_twice_as_long_each_time_up_to_eight_times_and_short_again_after_good_work() -> None:
    run = Run(Stream(99, 9, clients=5), Bounds(strikes=1, quarantine=10.0, attempts=99, patience=1e9)).join("a", "b")
    for seconds in (10, 20, 40, 80, 80):
        [report] = failing(run, "a", 1)
        assert report.text.startswith(f"a gets no work for {seconds} s: 1 times in a row")
        assert [one for one in run.tick(after=seconds - 0.1).all(Report) if one.kind == "quarantine"] == []
        assert [one.text for one in run.tick(after=0.2).all(Report) if one.kind == "quarantine"] == ["a may have work again"]
    run.contribute("a")
    assert failing(run, "a", 1)[0].text.startswith("a gets no work for 10 s")


def test_who_comes_out_of_quarantine_gets_its_share_of_what_waits_for_others() -> None:
    bounds = Bounds(ahead=1, sticky=True, gather=3, strikes=1, quarantine=1.0, attempts=9, patience=99.0)
    run = Run(Rounds(12), bounds).join("a", "b", "c")
    failing(run, "b", 1)
    while run.tasks["c"]:
        run.contribute("c")
    before, waits = dict(run.tasks["b"]), run.core.facts.ledger.parked
    assert waits > 1  # for a, which is at its first task
    run.tick(after=1.1)
    assert len(run.tasks["b"]) == len(before) + 1
    assert run.core.facts.ledger.parked < waits


def test_good_work_in_between_wipes_the_slate() -> None:
    run = Run(Stream(99, 9, clients=5), Bounds(strikes=3, attempts=99)).join("a", "b")
    failing(run, "a", 2)
    run.contribute("a")
    assert failing(run, "a", 2) == []


def test_the_only_one_there_is_not_barred() -> None:
    run = Run(Stream(99, 9, clients=5), Bounds(strikes=3, attempts=99)).join("a")
    assert failing(run, "a", 9) == []
