"""Facts about the coordinator's core, each a short story told in the order it happens. No sockets, no learner, and a clock
wound by hand.

The one idea: a story says what is heard and looks at what comes of it; whatever is not looked at is the simulator's.
"""

from __future__ import annotations

import itertools
import math
from collections import deque
from dataclasses import replace
from typing import Any, TypeVar

import pytest

from shoal.coordinator.deciding import claims
from shoal.coordinator.deciding.actor import Pending
from shoal.coordinator.deciding.bounds import Bounds, Goal
from shoal.coordinator.deciding.core import Core
from shoal.coordinator.deciding.events import (
    Admit,
    Carried,
    Effect,
    Event,
    Evict,
    Finish,
    Fold,
    Folded,
    Gone,
    Heard,
    Interrupt,
    Lost,
    Outdated,
    Probe,
    Pull,
    Pulse,
    Send,
    SendWeights,
    Stalled,
    Step,
    Stepped,
    Tick,
    Unfit,
    Unpull,
)
from shoal.coordinator.deciding.farewell import ASTRAY, MOMENT
from shoal.coordinator.deciding.ledger import VAIN
from shoal.coordinator.deciding.patience import PROBED, silent, waiting_for
from shoal.coordinator.deciding.plans import Asked, Plan
from shoal.coordinator.deciding.plans.rounds import Rounds
from shoal.coordinator.deciding.plans.stream import Stream
from shoal.coordinator.deciding.recovered import Recovered
from shoal.coordinator.reports import Report
from shoal.protocol.messages import (
    PROTOCOL,
    Assign,
    Beat,
    Bye,
    Cancel,
    Contribute,
    Envelope,
    Failed,
    Have,
    Hello,
    Message,
    Refused,
    Stop,
    TaskName,
    Verdict,
    Weights,
)
from shoal.protocol.work import Task

E = TypeVar("E")
M = TypeVar("M")


class Run:
    """A core, a clock, and the effects of what happened last. Actors are called by their names."""

    def __init__(self, plan: Plan, bounds: Bounds | None = None, goal: Goal | None = None, **found: int) -> None:
        self.now = 1_000.0
        self.core = Core(plan, goal or Goal(), bounds or Bounds(), Recovered(**found), self.now)  # type: ignore[arg-type]
        self.effects: list[Effect] = []
        self.peers: dict[str, bytes] = {}
        self.sessions: dict[str, bytes] = {}
        self.tasks: dict[str, dict[TaskName, Assign]] = {}  # what each was given and has not answered, in order
        self.slow: set[str] = set()  # weights do not reach these until a story says so

    def event(self, event: Event, after: float = 0.0) -> Run:
        self.now += after
        self.effects = self.core.handle(event, self.now)
        for send in self.all(Send):
            who = next((name for name, session in self.sessions.items() if session == send.envelope.session), "")
            match send.envelope.message:
                case Assign() as assign:
                    self.tasks[who][assign.task] = assign
                case Cancel(task):
                    self.tasks[who].pop(task, None)
        return self

    def tick(self, after: float = 0.0) -> Run:
        return self.event(Tick(), after)

    def join(self, *names: str, again: str = "", protocol: int = PROTOCOL) -> Run:
        """Each says Hello. again: over another connection, or in another life, of this name."""
        for name in names:
            self.peers[name] = f"{name}{again}".encode()
            self.sessions.setdefault(name, f"session of {name}".encode())
            self.tasks[name] = {}
            self.event(Heard(self.peers[name], Envelope(self.sessions[name], 0, Hello(protocol, name, "host", 1, ()))))
        return self

    def hear(self, name: str, message: Message, *, peer: bytes = b"", epoch: int = -1, fault: str = "", user: str = "") -> Run:
        envelope = Envelope(self.sessions[name], self.core.facts.epoch if epoch < 0 else epoch, message)
        return self.event(Heard(peer or self.peers[name], envelope, fault, user))

    def work(self, name: str, task: TaskName | None = None, **claims: Any) -> Contribute:
        """What this actor made of a task of its (the oldest) from the newest weights it has, as it should be said."""
        assign = self.tasks[name][task] if task else next(iter(self.tasks[name].values()))
        made_from = max(assign.task[0], self.core.facts.roster.actors[self.sessions[name]].held)
        layout = "layout" if assign.counts else ""
        done = Contribute(assign.task, assign.attempt, made_from, 1.0, layout, assign.summed, {}, {}, 0.0, 1.0)
        return replace(done, **claims)

    def send(self, name: str, task: TaskName | None = None, **claims: Any) -> Run:
        """The contribution is heard, and is with the learner now unless something is wrong with it."""
        self.arrive(name)
        done = self.work(name, task, **claims)
        self.tasks[name].pop(done.task, None)
        return self.hear(name, done)

    def arrive(self, name: str) -> None:
        """What weights are on their way to this actor have reached it."""
        actor = self.core.facts.roster.actors[self.sessions[name]]
        while actor.under_way and name not in self.slow:
            self.hear(name, Have(actor.sent))

    def contribute(self, *names: str, **claims: Any) -> Run:
        """And the learner folds it in."""
        for name in names:
            self.send(name, **claims)
            for fold in self.all(Fold):
                self.event(Folded((fold.task.version, fold.task.index)))
        return self

    def step(self) -> Run:
        """The learner has done the step that it was asked for."""
        [step] = self.all(Step)
        return self.event(Stepped(step.version, {}))

    def all(self, kind: type[E]) -> list[E]:
        return [effect for effect in self.effects if isinstance(effect, kind)]

    def said(self, name: str, kind: type[M]) -> list[M]:
        sent = [send.envelope for send in self.all(Send)]
        return [one.message for one in sent if one.session == self.sessions[name] and isinstance(one.message, kind)]

    def told(self, kind: str) -> list[str]:
        return [report.text for report in self.all(Report) if report.kind == kind]

    def verdicts(self, name: str) -> list[str]:
        return [verdict.verdict for verdict in self.said(name, Verdict)]


def names(assigns: list[Assign]) -> list[TaskName]:
    return [assign.task for assign in assigns]


def rounds(clients: int = 4, cohort: int = 0, **options: Any) -> Rounds:
    return Rounds(clients, cohort, **options)


# Joining


def test_who_says_hello_gets_a_welcome_weights_and_work() -> None:
    run = Run(rounds()).join("a")
    assert run.all(Admit) == [Admit(b"a", b"session of a", 0, Hello(PROTOCOL, "a", "host", 1, ()))]
    assert run.all(SendWeights) == [SendWeights(b"a", b"session of a", 0)]
    assert names(run.said("a", Assign)) == [(0, 0), (0, 1)]


def test_hello_said_twice_changes_nothing() -> None:
    run = Run(rounds()).join("a").join("a")
    assert [type(effect) for effect in run.effects] == [Admit]
    assert len(run.core.facts.ledger.leases) == 2


def greet(run: Run, name: str, peer: bytes = b"", **claims: Any) -> Run:
    """Hello again, with what it remembers."""
    run.peers[name] = peer or run.peers[name]
    said = replace(Hello(PROTOCOL, name, "host", 1, ()), **claims)
    return run.event(Heard(run.peers[name], Envelope(run.sessions[name], 0, said)))


def test_another_hello_after_more_was_said_starts_over() -> None:
    # it has forgotten what it was sent: nobody would ever do its tasks
    run = Run(rounds()).join("a").hear("a", Have(0))
    greet(run, "a", greeting=1)
    assert run.all(SendWeights) == [SendWeights(b"a", b"session of a", 0)]
    assert [assign.attempt % 2**16 for assign in run.said("a", Assign)] == [2, 2]


def test_a_hello_that_comes_late_changes_nothing() -> None:
    run = Run(rounds()).join("a").hear("a", Have(0)).join("a")
    assert run.effects == []
    greet(run, "a", b"a'", greeting=2)
    assert greet(run, "a", b"a", greeting=1).effects == []
    assert run.core.facts.roster.at(b"a'")


def test_one_that_remembers_its_place_keeps_it_over_another_connection() -> None:
    run = Run(rounds()).join("a").hear("a", Have(0)).hear("a", Beat(1))
    greet(run, "a", b"a'", greeting=1, epoch=1, held=0)
    assert [(admit.peer, admit.resumed) for admit in run.all(Admit)] == [(b"a'", True)]
    assert [assign.attempt % 2**16 for assign in run.said("a", Assign)] == [1, 1]  # told again, not given anew
    assert run.all(SendWeights) == []
    assert run.told("lost") == []
    assert run.hear("a", Beat(2), peer=b"a").said("a", Refused)
    assert run.contribute("a").verdicts("a") == ["accepted"]


def test_one_that_comes_back_without_its_weights_is_sent_them() -> None:
    run = Run(rounds()).join("a").hear("a", Have(0))
    greet(run, "a", greeting=1, epoch=1, held=-1)
    assert run.all(SendWeights) == [SendWeights(b"a", b"session of a", 0)]
    greet(run, "a", greeting=2, epoch=1, held=7)  # it never was sent these
    assert run.all(SendWeights) == [SendWeights(b"a", b"session of a", 0)]


def test_what_is_remembered_of_another_life_is_nothing() -> None:
    run = Run(rounds(), epoch=4).join("a").hear("a", Have(0))
    greet(run, "a", greeting=1, epoch=4, held=0)
    assert run.told("lost")
    assert run.all(Admit)[0].resumed is False


# Arrays that are fetched


def offer(run: Run, name: str, **claims: Any) -> Contribute:
    """A contribution is told of; its arrays wait at the actor."""
    run.arrive(name)
    message = run.work(name, nbytes=1_000_000, **claims)
    run.event(Heard(run.peers[name], Envelope(run.sessions[name], run.core.facts.epoch, message), whole=False))
    return message


def test_arrays_of_a_contribution_are_fetched_and_then_it_counts() -> None:
    run = Run(rounds()).join("a")
    message = offer(run, "a")
    assert run.all(Pull) == [Pull(b"session of a", message)]
    assert run.all(Fold) == run.verdicts("a") == []
    assert run.core.facts.ledger.counts.heard == 0
    assert run.hear("a", message).all(Fold)
    assert run.event(Folded(message.task)).verdicts("a") == ["accepted"]


def test_told_of_again_it_is_fetched_on_and_while_it_is_folded_in_nothing_is() -> None:
    run = Run(rounds()).join("a")
    message = offer(run, "a")
    assert offer(run, "a") == message
    assert run.all(Pull) == [Pull(b"session of a", message)]
    run.hear("a", message)
    offer(run, "a")
    assert run.effects == []


@pytest.mark.parametrize(("claims", "verdict"), [({"weight": math.nan}, "refused"), ({"made_from": 7}, "refused")])
def test_arrays_of_what_cannot_count_are_not_fetched(claims: dict[str, Any], verdict: str) -> None:
    run = Run(rounds()).join("a")
    offer(run, "a", **claims)
    assert run.all(Pull) == []
    assert run.verdicts("a") == [verdict]


def test_arrays_of_what_is_stale_are_not_fetched() -> None:
    run = Run(Stream(batch=1, max_lag=0)).join("a", "b")
    message = run.work("b")
    run.contribute("a").step()
    run.event(Heard(b"b", Envelope(run.sessions["b"], 1, replace(message, nbytes=9)), whole=False))
    assert run.all(Pull) == []
    assert run.verdicts("b") == ["stale"]


def test_nobody_fetches_for_a_task_that_is_given_up() -> None:
    run = Run(rounds()).join("a")
    message = offer(run, "a")
    run.hear("a", Bye("told to stop"))
    assert run.all(Unpull) == [Unpull(message.task)]


def test_what_was_made_of_an_old_version_is_not_fetched_any_further() -> None:
    run = Run(Rounds(2, quorum=1, deadline=1.0), Bounds(ahead=1)).join("a", "b")
    message = offer(run, "b")
    run.contribute("a").tick(after=1.1)
    assert run.step().all(Unpull) == [Unpull(message.task)]


def test_who_is_cut_off_while_its_arrays_come_has_as_long_to_come_back_as_silence_is_borne() -> None:
    run = Run(rounds(), Bounds(patience=3.0)).join("a", "b")
    message = offer(run, "a")
    run.event(Lost(b"a", "lost its connection"))
    assert (run.told("away"), run.told("lost"), run.all(Unpull)) != ([], [], [])
    assert run.told("lost") == []
    assert run.event(Lost(b"a", "lost its connection")).effects == []  # whatever else was on its way there
    assert run.tick(after=1.0).said("a", Beat) == []
    run.join("c")
    greet(run, "a", b"a'", greeting=1, epoch=1, held=0)
    assert run.hear("a", message).all(Fold)
    run.event(Lost(b"b", "lost its connection"))
    assert run.told("lost")  # nothing of this one is on its way


def test_who_does_not_come_back_is_given_up() -> None:
    run = Run(rounds(), Bounds(patience=3.0)).join("a")
    message = offer(run, "a")
    run.event(Lost(b"a", "lost its connection"))
    run.tick(after=3.1)
    assert run.told("lost")
    assert run.all(Unpull) == [Unpull(message.task)]


def test_a_lease_does_not_run_while_arrays_wait_and_ends_when_they_stall() -> None:
    run = Run(rounds(), Bounds(lease=2.0, patience=60.0)).join("a")
    first, second = offer(run, "a"), run.work("a", (0, 1))
    assert [lease.task for lease in run.core.facts.ledger.leases.values() if lease.pulled] != []
    run.tick(after=5.0)
    assert [text for text in run.told("late") if str(first.task) in text] == []
    assert [text for text in run.told("late") if str(second.task) in text] != []
    run.event(Carried(b"session of a", first.task, 400_000)).event(Stalled(first.task))
    why = "nothing came of its arrays from a for 2 s, 0.4 of 1.0 MB still to come"
    assert run.told("late") == [f"task {first.task}: {why}"]
    assert run.all(Unpull) == [Unpull(first.task)]
    assert run.event(Stalled(first.task)).effects == []


def test_arrays_that_stall_are_their_actors_fault_and_not_the_tasks() -> None:
    run = Run(Stream(9, 9), Bounds(ahead=1, strikes=4, patience=1e6)).join("a", "b")
    for _ in range(4):
        assert run.core.facts.ledger.counts.aside == 0
        message = offer(run, "a")
        run.event(Stalled(message.task))
    assert run.told("quarantine")[0].startswith("a gets no work for 10 s: 4 times in a row its work was no good")
    out = [*run.core.facts.ledger.leases.values(), *run.core.facts.ledger.returned]
    assert {one.faults for one in out} == {0}


def test_arrays_that_move_are_no_silence() -> None:
    run = Run(rounds(), Bounds(patience=3.0)).join("a")
    for _ in range(5):
        run.event(Carried(b"session of a"), after=2.0).tick()
    assert run.told("lost") == []
    assert run.event(Carried(b"session of nobody")).effects == []


def test_weights_that_are_not_to_be_had_any_more_give_way_to_the_newest() -> None:
    run = Run(Stream(batch=1, max_lag=9)).join("a", "b")
    run.slow.add("b")
    run.contribute("a").step()
    assert run.event(Outdated(b"session of b", 7)).all(SendWeights) == []  # that is not what is on its way
    assert run.event(Outdated(b"session of b", 0)).all(SendWeights) == [SendWeights(b"b", b"session of b", 1, -1)]


def test_an_actor_that_comes_back_over_another_connection_gets_everything_anew() -> None:
    run = Run(rounds()).join("a").join("a", again="'")
    assert run.all(Admit)[0].peer == run.all(SendWeights)[0].peer == b"a'"
    assert names(run.said("a", Assign)) == [(0, 0), (0, 1)]
    assert run.hear("a", Have(0), peer=b"a").said("a", Refused)


def test_a_new_life_on_the_same_connection_takes_the_place_of_the_old() -> None:
    run = Run(rounds()).join("a")
    run.peers["b"], run.sessions["b"], run.tasks["b"] = b"a", b"session of b", {}
    run.event(Heard(b"a", Envelope(b"session of b", 0, Hello(PROTOCOL, "b", "host", 2, ()))))
    assert run.told("lost")
    assert list(run.core.facts.roster.actors) == [b"session of b"]
    assert names(run.said("b", Assign)) == [(0, 0), (0, 1)]


def test_who_is_gone_is_told_of_however_it_went_and_before_it_begins_anew() -> None:
    run = Run(rounds()).join("a", "b", "c", "d")
    assert run.hear("a", Bye("for now")).all(Gone) == [Gone(b"session of a")]
    assert run.event(Lost(b"b", "ended", dead=True)).all(Gone) == [Gone(b"session of b")]
    again = run.join("c", again="'").effects
    assert next(one for one in again if isinstance(one, Gone | Admit)) == Gone(b"session of c")
    assert run.tick(after=11.0).all(Gone) == [Gone(b"session of d"), Gone(b"session of c")]


def test_a_number_is_the_lowest_that_is_free() -> None:
    run = Run(rounds()).join("a", "b", "c").hear("b", Bye("for now")).hear("a", Bye("too"))
    assert [run.join(name).all(Admit)[0].number for name in "def"] == [0, 1, 3]


def test_another_protocol_is_refused_for_good_and_says_what_to_install() -> None:
    run = Run(rounds()).join("a", protocol=PROTOCOL + 256)
    [refused] = run.said("a", Refused)
    assert refused.final
    assert "install the same shoal" in refused.reason
    assert run.all(Admit) == []
    assert run.join("b", protocol=PROTOCOL + 1).all(Admit)  # a minor only adds


@pytest.mark.parametrize("wrong", [{"peer": b"elsewhere"}, {"epoch": 9}, {"epoch": 0}])
def test_who_is_not_of_this_run_is_told_to_say_hello(wrong: dict[str, Any]) -> None:
    run = Run(rounds()).join("a").hear("a", Beat(1), **wrong)
    assert [type(effect) for effect in run.effects] == [Send]
    assert [refused.final for refused in run.said("a", Refused)] == [False]


def test_a_session_that_never_joined_is_told_to_say_hello() -> None:
    run = Run(rounds()).event(Heard(b"x", Envelope(b"unknown", 1, Beat(1))))
    [send] = run.all(Send)
    assert isinstance(send.envelope.message, Refused)


def test_a_session_is_the_key_holders_that_joined_with_it() -> None:
    run = Run(rounds()).join("a").hear("a", Bye("ha"), user="another key")
    assert run.said("a", Refused)
    assert run.told("access")
    assert len(run.core.facts.roster) == 1


def test_what_actors_do_not_say_is_reported_and_changes_nothing() -> None:
    run = Run(rounds()).join("a").hear("a", Weights(3))
    assert [type(effect) for effect in run.effects] == [Report]
    assert run.told("protocol")


def test_the_first_tasks_wait_until_enough_actors_have_gathered() -> None:
    run = Run(rounds(), Bounds(gather=2)).join("a")
    assert run.said("a", Assign) == []
    run.join("b")
    assert (names(run.said("a", Assign)), names(run.said("b", Assign))) == ([(0, 0), (0, 2)], [(0, 1), (0, 3)])


def test_nobody_waits_for_actors_beyond_patience() -> None:
    run = Run(rounds(), Bounds(gather=2, patience=10.0)).join("a")
    run.hear("a", Beat(0)).tick(after=9.0)
    assert names(run.hear("a", Beat(0)).tick(after=1.5).said("a", Assign)) == [(0, 0), (0, 1)]


# Leaving and dying


def test_tasks_of_a_dead_actor_go_to_another_at_once() -> None:
    run = Run(rounds(), Bounds(ahead=4)).join("a", "b").event(Lost(b"a", "cannot be reached"))
    assert names(run.said("b", Assign)) == [(0, 0), (0, 1), (0, 2), (0, 3)]
    assert run.told("lost") == ["a cannot be reached; 4 of its tasks go to others"]


def test_who_says_bye_leaves_its_tasks_to_others_at_once() -> None:
    run = Run(rounds(), Bounds(ahead=4)).join("a", "b").hear("a", Bye("told to stop"))
    assert len(run.said("b", Assign)) == 4


def test_the_silent_are_given_up_after_their_patience() -> None:
    run = Run(rounds(), Bounds(ahead=4, patience=5.0)).join("a").tick(after=4.0).join("b")
    assert run.tick(after=0.9).told("lost") == []
    assert run.tick(after=0.2).told("lost") == ["a silent for 5.1 s; 4 of its tasks go to others"]
    assert len(run.said("b", Assign)) == 4


def test_a_connection_that_was_lost_twice_is_lost_once() -> None:
    run = Run(rounds()).join("a").event(Lost(b"a", "gone"))
    assert run.event(Lost(b"a", "gone")).effects == []


def test_an_actor_that_returns_as_a_new_session_is_nobody_known() -> None:
    run = Run(rounds()).join("a")
    late = run.work("a")
    run.event(Lost(b"a", "died"))
    run.sessions["a"] = b"another life of a"
    run.join("a", again="'")
    assert run.hear("a", late).verdicts("a") == ["stale"]  # its first attempt is over
    assert run.contribute("a").verdicts("a") == ["accepted"]


def test_what_a_dead_actor_left_with_the_learner_is_counted() -> None:
    run = Run(rounds(2)).join("a", "b").contribute("a").send("a", task=(0, 1)).event(Lost(b"a", "died"))
    assert run.said("b", Assign) == []  # it is not given out again
    assert run.event(Folded((0, 1))).all(Step) == [Step(1, 0, 2)]
    assert run.core.facts.ledger.counts.accepted == 2


# Contributions


def test_a_contribution_is_folded_once_and_acknowledged_when_the_learner_has_it() -> None:
    run = Run(rounds()).join("a").send("a")
    [fold] = run.all(Fold)
    assert (fold.task.index, fold.clients, fold.onto) == (0, (0,), 0)
    assert run.said("a", Verdict) == []
    assert run.event(Folded((0, 0))).verdicts("a") == ["accepted"]


def test_a_contribution_said_again_gets_the_same_answer_and_counts_once() -> None:
    run = Run(rounds()).join("a")
    done = run.work("a")
    run.contribute("a")
    assert run.hear("a", done).verdicts("a") == ["accepted"]
    assert run.all(Fold) == []
    counts = run.core.facts.ledger.counts
    assert (counts.heard, counts.accepted, counts.duplicate) == (2, 1, 1)


def test_a_contribution_that_is_with_the_learner_is_not_folded_again() -> None:
    run = Run(rounds()).join("a")
    done = run.work("a")
    assert run.send("a").hear("a", done).effects == []
    assert run.event(Folded((0, 0))).verdicts("a") == ["accepted"]


def test_a_refusal_said_again_is_the_same_refusal() -> None:
    run = Run(rounds(), Bounds(attempts=1)).join("a")
    wrong = run.work("a", weight=math.nan)
    reason = run.send("a", weight=math.nan).said("a", Verdict)[0].reason
    assert run.hear("a", wrong).said("a", Verdict) == [Verdict((0, 0), wrong.attempt, "refused", reason)]


def test_an_old_attempt_is_stale() -> None:
    run = Run(rounds()).join("a")
    old = run.work("a")
    run.send("a", weight=-1.0)  # refused, and given out again
    assert run.hear("a", replace(old, attempt=old.attempt - 1)).verdicts("a") == ["stale"]
    assert run.contribute("a").verdicts("a") == ["accepted"]


def test_an_actor_cannot_answer_for_another() -> None:
    run = Run(rounds()).join("a", "b")
    assert run.hear("b", run.work("a")).verdicts("b") == ["stale"]
    assert run.contribute("a").verdicts("a") == ["accepted"]


@pytest.mark.parametrize(
    "claim",
    [
        {"made_from": 1},  # not made yet
        {"made_from": -1},
        {"weight": math.nan},
        {"weight": math.inf},
        {"weight": 0.0},
        {"weight": -1.0},
        {"steps": -1},
        {"steps": 2**53},
        {"totals": {"loss": (1.0, math.inf)}},
        {"totals": {"loss": (1.0, -1.0)}},
        {"totals": {"loss": (1.0, 1.7e308)}},
        {"totals": {"loss": (1.0, 1e-300)}},
        {"summed": True},
        {"trained": math.nan},
        {"waited": -1.0},
        {"waited": 1.7e308},
    ],
    ids=repr,
)
def test_false_claims_are_refused_and_the_task_is_tried_again(claim: dict[str, Any]) -> None:
    run = Run(rounds()).join("a").send("a", **claim)
    assert run.all(Fold) == []
    assert run.verdicts("a") == ["refused"]
    assert run.told("refused")
    assert [assign.attempt % 2**16 for assign in run.said("a", Assign)] == [2]


def test_weights_that_were_never_sent_to_this_actor_made_nothing() -> None:
    run = Run(Stream(1, 9)).join("a", "b")
    run.slow = {"a"}
    run.contribute("b").step()  # 0 is on its way to a, and 1 is the newest
    assert run.send("a", made_from=1).verdicts("a") == ["refused"]
    assert run.send("a", made_from=0).all(Fold)


def test_what_the_shell_found_wrong_is_refused() -> None:
    run = Run(rounds()).join("a")
    run.hear("a", run.work("a"), fault="3 bytes of arrays")
    assert [verdict.reason for verdict in run.said("a", Verdict)] == ["3 bytes of arrays"]


def test_what_the_learner_finds_unfit_is_tried_again() -> None:
    run = Run(rounds()).join("a").send("a").event(Unfit((0, 0), "not finite"))
    assert run.verdicts("a") == ["refused"]
    assert names(run.said("a", Assign)) == [(0, 0)]
    assert run.core.facts.ledger.counts.folding == 0


def test_every_contribution_has_one_verdict() -> None:
    run = Run(rounds(3)).join("a")
    first = run.work("a")
    run.contribute("a").hear("a", first).send("a", weight=0.0).hear("a", replace(first, attempt=7)).send("a")
    counts = run.core.facts.ledger.counts
    assert (counts.heard, counts.accepted, counts.duplicate, counts.stale, counts.refused, counts.folding) == (5, 1, 1, 1, 1, 1)


def test_enough_verdicts_are_remembered_and_no_more() -> None:
    run = Run(Stream(1_000, 9, clients=5), Bounds(ahead=2)).join("a")
    said = []
    for _ in range(50):
        said.append(run.work("a"))
        run.contribute("a")
    assert run.hear("a", said[-8]).verdicts("a") == ["accepted"]
    assert run.hear("a", said[0]).verdicts("a") == ["stale"]
    assert len(run.core.facts.ledger.verdicts.last[run.sessions["a"]]) == 10


# Failures


def test_a_failure_is_reported_answered_and_tried_again() -> None:
    run = Run(rounds()).join("a")
    assign = run.tasks["a"].pop((0, 0))
    run.hear("a", Failed((0, 0), assign.attempt, 0, "training", "ValueError: no", "line 1\nline 2"))
    assert run.told("failed") == ["a: client 0 failed in training: ValueError: no\nline 1\nline 2"]
    assert run.verdicts("a") == ["refused"]
    assert names(run.said("a", Assign)) == [(0, 0)]


def test_who_cannot_set_up_its_work_is_sent_away_and_no_task_is_to_blame() -> None:
    run = Run(rounds(2), Bounds(ahead=1))
    for name in "abcdef":
        run.join(name)
        assign = run.work(name)
        run.hear(name, Failed(assign.task, assign.attempt, 0, "setup", "start this actor with --job FILE.py:job", ""))
        assert [refused.final for refused in run.said(name, Refused)] == [True]
        assert run.told("lost")
        assert not run.told("aside")
    assert run.join("g").contribute("g", "g").all(Step) == [Step(1, 0, 2)]


def test_a_failure_of_an_old_attempt_is_answered_or_it_would_be_said_for_ever() -> None:
    run = Run(rounds()).join("a").hear("a", Failed((0, 0), 5, 0, "training", "no", ""))
    assert run.verdicts("a") == ["stale"]
    assert (0, 0) in run.core.facts.ledger.leases


def test_a_failure_does_not_take_back_what_is_with_the_learner() -> None:
    run = Run(rounds()).join("a")
    attempt = run.work("a").attempt
    run.send("a").hear("a", Failed((0, 0), attempt, 0, "training", "no", ""))
    assert run.event(Folded((0, 0))).verdicts("a") == ["accepted"]


def test_a_task_is_set_aside_after_three_attempts_and_the_round_goes_on() -> None:
    run = Run(rounds(2), Bounds(ahead=1)).join("a")
    for _ in range(3):
        run.send("a", weight=math.nan)
    assert len(run.told("aside")) == 1
    assert names(run.said("a", Assign)) == [(0, 1)]
    assert run.contribute("a").all(Step) == [Step(1, 0, 2)]


# Deaths


def died(run: Run, *names: str) -> Run:
    """Each joins, gets the weights, and dies in the first task that it has."""
    for name in names:
        run.join(name).arrive(name)
        run.event(Lost(run.peers[name], "died", dead=True))
    return run


def test_three_actors_that_die_of_one_task_set_it_aside() -> None:
    assert len(died(Run(rounds(1), Bounds(ahead=1)), *"abc").told("aside")) == 1


def test_a_death_is_blamed_on_the_task_that_ran_and_not_on_those_behind_it() -> None:
    run, lost, aside = Run(rounds(3), Bounds(ahead=3)), [], []
    for name in "abcd":
        run.join(name).arrive(name)
        while next(iter(run.tasks[name]), (0, 0)) != (0, 0):
            run.contribute(name)
        if not run.tasks[name]:
            break
        run.event(Lost(run.peers[name], "died", dead=True))
        lost += run.told("lost")
        aside += run.told("aside")
    assert [text.partition(";")[0] for text in lost] == [f"{name} died in task (0, 0)" for name in "abc"]
    assert [text[:20] for text in aside] == ["task (0, 0) (clients"]
    assert run.core.facts.ledger.counts.accepted == 2  # both neighbours


def test_a_death_is_blamed_on_the_task_that_the_last_beat_named() -> None:
    run = Run(rounds(3), Bounds(ahead=3)).join("a")
    run.arrive("a")
    run.hear("a", Beat(0, runs=(0, 1, run.tasks["a"][0, 1].attempt))).event(Lost(b"a", "died"))
    assert run.told("lost") == ["a died in task (0, 1); 3 of its tasks go to others"]


def test_a_beat_of_before_a_task_came_back_does_not_blame_it() -> None:
    run = Run(rounds(3), Bounds(ahead=3)).join("a")
    run.arrive("a")
    run.hear("a", Beat(0, runs=(0, 0, run.tasks["a"][0, 0].attempt))).send("a").event(Lost(b"a", "died"))
    assert run.told("lost") == ["a died in task (0, 1); 3 of its tasks go to others"]


@pytest.mark.parametrize("why", ["weights", "cancelled", "hung", "left"])
def test_a_death_that_no_task_can_have_caused_is_blamed_on_none(why: str) -> None:
    run = Run(Rounds(4, quorum=1, deadline=1.0), Bounds(lease=3.0 * (why == "hung"), patience=60.0)).join("a", "b")
    if why != "weights":
        run.arrive("a")
    if why == "cancelled":  # the worker is still at the task of a round that closed
        run.hear("a", Beat(0, runs=(0, 0, run.tasks["a"][0, 0].attempt))).contribute("b").tick(after=1.1).step()
        run.arrive("a")
        assert run.core.facts.roster.actors[run.sessions["a"]].tasks
    if why == "hung":
        run.tick(after=2.0).contribute("b").tick(after=1.5)
    run.hear("a", Bye("told to stop")) if why == "left" else run.event(Lost(b"a", "died", dead=True))
    assert [text for text in run.told("lost") if "in task" in text] == []
    assert run.core.facts.ledger.counts.deaths == 0
    assert not any(one.faults for one in run.core.facts.ledger.leases.values())


def test_an_actor_that_computes_without_a_word_keeps_its_task_while_its_connection_lives() -> None:
    run = Run(rounds(1), Bounds(patience=2.0, watched=True)).join("a")
    run.arrive("a")
    beats = sum(len(run.tick(after=0.1).said("a", Beat)) for _ in range(300))
    assert run.core.facts.roster.actors
    assert 5 < beats < 40  # it reads none of them
    assert waiting_for(run.core.facts) == ["a, on task (0, 0), for 30 s: its interpreter is busy in one call for 30 s"]
    assert run.event(Lost(b"a", "lost its connection")).told("lost") == [
        "a lost its connection in task (0, 0); 1 of its tasks go to others"
    ]


WATCHED = Bounds(ahead=1, watched=True)


def hushed(run: Run, name: str, seconds: float, *, pinged: bool = False) -> list[str]:
    """The actor says nothing for these seconds; pinged: its sockets answer, because its process lives. Returns what is
    reported of it."""
    told, since = [], 0.0
    for _ in range(round(seconds / 0.1)):
        since = 0.0 if pinged else since + 0.1
        asked = run.tick(after=0.1).all(Probe)
        told += [*run.told("silent"), *run.told("lost")]
        for probe in asked:
            if probe.peer == run.peers[name]:
                run.event(Pulse(probe.peer, since))
                told += run.told("silent")
        for other in run.peers:
            if other != name:
                run.hear(other, Beat(1))
    return told


def test_a_silent_connection_is_noticed_within_three_seconds_and_its_actor_gets_no_new_tasks() -> None:
    run = Run(rounds(), WATCHED).join("a", "b")
    run.arrive("a")
    [told] = hushed(run, "a", 3.0)
    assert told.startswith(
        "a, of which nothing has come for 2 s: its process is stopped, or its machine or link is down; it gets"
    )
    assert [line[:45] for line in silent(run.core.facts)] == ["a, of which nothing has come for 3 s: its pro"]
    lines = [line for line in waiting_for(run.core.facts) if " at a, " in line]
    assert [line.partition(";")[0] for line in lines] == [
        "task (0, 0) at a, of which nothing has come for 3 s: its process is stopped, or its machine or link is down"
    ]
    run.contribute("b", "b", "b")
    assert list(run.tasks["a"]) == [(0, 0)]
    assert list(run.tasks["b"]) == []  # every other task was done by it


def test_what_an_actor_that_was_cut_off_for_long_had_begun_counts_and_it_gets_tasks_again() -> None:
    run = Run(rounds(), WATCHED).join("a", "b")
    run.arrive("a")
    assert len(hushed(run, "a", 19.0)) == 1  # and not lost
    assert run.hear("a", Beat(1)).tick(after=0.1).told("lost") == []
    assert silent(run.core.facts) == []
    assert run.contribute("a").verdicts("a") == ["accepted"] or run.core.facts.ledger.counts.accepted == 1
    assert len(run.tasks["a"]) == 1
    assert [line.split(":")[0] for line in hushed(run, "a", 61.0)] == [
        "a silent for 20.1 s in task (0, 2); 1 of its tasks go to others"
    ]  # a second notice within a minute is not told


def test_an_idle_actor_that_is_cut_off_is_given_up_after_patience() -> None:
    run = Run(rounds(1), WATCHED).join("a", "b")
    [notice, lost] = hushed(run, "b", 11.0)
    assert notice.endswith("is given up after 10 s")
    assert lost == "b silent for 10.0 s; 0 of its tasks go to others"


def test_a_process_whose_sockets_answer_is_busy_and_not_silent() -> None:
    run = Run(rounds(1), WATCHED).join("a")
    run.arrive("a")
    assert hushed(run, "a", 30.0, pinged=True) == []
    assert [line.rpartition(": ")[2] for line in waiting_for(run.core.facts)] == [
        "its interpreter is busy in one call for 30 s"
    ]


def test_a_computing_process_whose_sockets_answer_again_may_have_tasks() -> None:
    run = Run(rounds(), WATCHED).join("a")
    run.arrive("a")
    actor = run.core.facts.roster.actors[run.sessions["a"]]
    run.tick(after=5.0).event(Pulse(b"a", 4.9))
    assert (actor.mute, actor.capacity, silent(run.core.facts) == []) == (True, 0, False)
    run.event(Pulse(b"a", 0.3), after=1.0)
    assert (actor.mute, actor.capacity, silent(run.core.facts)) == (False, 1, [])


def test_a_connection_that_ends_in_silence_keeps_its_actors_place_and_one_that_ends_at_once_does_not() -> None:
    run = Run(rounds(), WATCHED).join("a", "b")
    run.arrive("a")
    run.arrive("b")
    hushed(run, "a", 12.0)
    assert run.event(Lost(b"a", "lost its connection")).told("away") == [
        "a lost its connection when nothing came over it; waiting for it"
    ]
    assert "its connection was lost" in " ".join(waiting_for(run.core.facts)) or silent(run.core.facts)
    assert run.event(Lost(b"b", "lost its connection")).told("lost") == [
        "b lost its connection in task (0, 1); 1 of its tasks go to others"
    ]
    greet(run, "a", b"a'", greeting=1, epoch=1, held=0)
    assert [admit.resumed for admit in run.all(Admit)] == [True]
    assert run.hear("a", Beat(1)).contribute("a").core.facts.ledger.counts.accepted == 1


def test_clients_stay_with_an_actor_that_is_cut_off_for_seconds() -> None:
    run = Run(Rounds(4), replace(WATCHED, sticky=True)).join("a", "b").contribute("a", "b", "a", "b").step()
    homes = dict(run.core.facts.roster.contributors.homes)
    run.arrive("a")
    run.arrive("b")
    hushed(run, "b", 8.0)
    run.contribute("a", "a")
    assert run.core.facts.ledger.counts.accepted == 6
    run.hear("b", Beat(1)).tick(after=0.1)
    assert run.contribute("b", "b").all(Step)
    assert run.core.facts.roster.contributors.homes == homes


def test_many_silent_actors_are_looked_at_some_at_a_time_first_those_of_which_nothing_is_known() -> None:
    run = Run(Stream(4, 9), WATCHED).join(*(f"a{number}" for number in range(PROBED + 20)))
    run.tick(after=1.2)
    first = {probe.peer for probe in run.all(Probe)}
    assert len(first) == PROBED
    run.tick(after=1.0)
    for probe in run.all(Probe):
        run.event(Pulse(probe.peer, 2.1))
    rest = {probe.peer for probe in run.tick(after=0.6).all(Probe)}
    assert len(rest) == PROBED
    assert {*run.peers.values()} - first <= rest


def test_a_trial_alone_of_a_client_waits_while_nothing_comes_from_its_actor() -> None:
    run = Run(rounds(2), replace(WATCHED, sticky=True)).join("a", "b")
    run.arrive("b")
    facts = run.core.facts
    actor = facts.roster.actors[run.sessions["a"]]
    run.contribute("a").event(Pulse(b"a", 3.0), after=3.0)  # it has no task
    assert (actor.mute, actor.tasks) == (True, set())
    facts.roster.contributors.homes[7] = actor.session
    facts.ledger.returned.append(Pending(Task(0, 7, (7,)), alone=True))
    run.contribute("b").tick(after=0.1)
    assert (names(run.said("a", Assign)), actor.tasks) == ([], set())
    assert (0, 7) in run.hear("a", Beat(1)).tick(after=0.1).core.facts.ledger.leases


def test_a_trial_alone_does_not_wait_for_what_waits_for_it() -> None:
    run = Run(Stream(2, 9), Bounds(ahead=3)).join("a", "b")
    run.arrive("a")
    run.event(Lost(b"a", "died", dead=True))
    alone = {pending.task.name for pending in run.core.facts.ledger.returned if pending.alone}
    first, second, third = run.tasks["b"]
    for task in (first, second, third):
        run.send("b", task)
    run.event(Folded(second))
    run.event(Unfit(first, "not finite"))  # version 1 lacks a contribution, and the third task's is for version 2
    [begun] = run.tasks["b"]
    assert begun in alone


def test_an_actor_has_one_task_more_whenever_all_its_tasks_wait_for_a_version_that_lacks_one() -> None:
    run = Run(Stream(1, 9), Bounds(ahead=1)).join("a", "b")
    [mine], [theirs] = run.tasks["a"], run.tasks["b"]
    run.send("b", theirs).send("a", mine)  # for versions 1 and 2
    run.event(Lost(b"b", "died", dead=True)).event(Unfit(theirs, "not finite"))
    [second] = run.tasks["a"]
    run.join("c")
    [theirs] = run.tasks["c"]
    run.send("c", theirs).send("a", second)  # for versions 1 and 3
    run.event(Lost(b"c", "died", dead=True)).event(Unfit(theirs, "not finite"))
    [third] = run.tasks["a"]
    actor = run.core.facts.roster.actors[run.sessions["a"]]
    assert actor.tasks == {mine, second, third}
    run.send("a", third).event(Folded(third))
    assert actor.tasks == {mine, second}
    run.event(Stepped(1, {})).event(Folded(mine)).event(Stepped(2, {})).event(Folded(second)).event(Stepped(3, {}))
    assert (len(actor.tasks), actor.capacity) == (1, 1)


def test_a_lease_follows_what_tasks_took_and_begins_when_three_are_in() -> None:
    run = Run(rounds(9), Bounds(ahead=1, lease=-1.0, patience=1e6)).join("a", "b")
    assert run.tick(after=9_000.0).told("late") == []  # nobody knows yet what a task takes
    for _ in range(3):
        run.tick(after=12.0).contribute("b")
    assert run.tick(after=0.1).told("late")[0].endswith("no result within its lease of 120 s")
    assert any(line.startswith("b, on task") and line.endswith("of at most 120") for line in waiting_for(run.core.facts))


@pytest.mark.parametrize(("lease", "late"), [(-1.0, [False, True]), (0.0, [False, False])])
def test_a_lease_of_short_tasks_is_a_minute_unless_it_is_switched_off(lease: float, late: list[bool]) -> None:
    run = Run(rounds(9), Bounds(ahead=1, lease=lease, patience=1e6)).join("b").contribute("b", "b", "b").join("a")
    assert [bool(run.tick(after=seconds).told("late")) for seconds in (59.0, 2.0)] == late


def test_short_tasks_of_another_kind_do_not_shorten_a_lease() -> None:
    run = Run(rounds(9), Bounds(ahead=1, lease=-1.0, patience=1e6)).join("a")
    run.core.facts.ledger.took.update({"evaluate": deque([0.1] * 50), "train": deque([50.0] * 3)})
    assert run.tick(after=400.0).told("late") == []
    assert run.tick(after=101.0).told("late")


def test_after_a_death_the_task_that_ran_is_tried_alone_and_then_others_come_again() -> None:
    run = died(Run(rounds(8), Bounds(ahead=2)), "a").join("b")
    assert list(run.tasks["b"]) == [(0, 0)]
    assert list(run.contribute("b").tasks["b"]) == [(0, 1)]  # it may have been at this one
    assert list(run.contribute("b").tasks["b"]) == [(0, 2), (0, 3)]


def test_a_task_to_be_tried_alone_waits_until_an_actor_is_empty() -> None:
    run = Run(rounds(8), Bounds(ahead=2)).join("a", "b")
    run.arrive("a")
    run.event(Lost(b"a", "died", dead=True))
    assert list(run.tasks["b"]) == [(0, 2), (0, 3)]
    assert list(run.contribute("b").tasks["b"]) == [(0, 3)]  # and no second one
    assert list(run.contribute("b").tasks["b"]) == [(0, 0)]


def test_who_was_to_try_a_task_alone_that_another_actor_gets_has_several_tasks_again() -> None:
    run = Run(rounds(6), Bounds(ahead=2)).join("a", "b", "c")
    run.contribute("b", "a").event(Lost(b"a", "died", dead=True))
    assert (list(run.tasks["b"]), list(run.tasks["c"])) == ([(0, 3)], [(0, 4), (0, 5)])  # (0, 1) waits until b is empty
    run.contribute("c", "c", "b")
    assert (list(run.tasks["b"]), list(run.tasks["c"])) == ([], [(0, 1)])  # c was empty before b
    run.contribute("c").step()
    assert (len(run.tasks["b"]), len(run.tasks["c"])) == (2, 2)


def test_who_was_to_try_a_task_alone_that_a_newcomer_gets_has_several_tasks_again() -> None:
    run = Run(rounds(5), Bounds(ahead=3)).join("a", "b").contribute("a", "a").event(Lost(b"a", "died", dead=True))
    assert run.core.facts.roster.contributors.room == 0  # (0, 2) waits until b is empty
    run.join("c")
    assert (list(run.tasks["b"]), list(run.tasks["c"])) == ([(0, 3), (0, 4)], [(0, 2)])
    assert run.core.facts.roster.contributors.room == 1


def test_tasks_that_are_tried_alone_hold_up_no_round_of_clients_that_stay_with_their_actor() -> None:
    run = died(Run(rounds(6), Bounds(ahead=2, sticky=True)), "a").join("b", "c")
    seen = {assign.clients[0] for name in "bc" for assign in run.tasks[name].values()}
    while not run.all(Step):
        name = next(name for name in "bc" if run.tasks[name])
        run.contribute(name)
        seen |= {assign.clients[0] for name in "bc" for assign in run.tasks[name].values()}
    assert seen == set(range(6))


def test_a_run_can_stop_when_a_task_is_set_aside() -> None:
    run = Run(rounds(2), Bounds(ahead=1, on_failure="stop")).join("a")
    for _ in range(3):
        run.send("a", weight=math.nan)
    [finish] = run.all(Finish)
    assert finish.failed
    assert run.said("a", Stop)


def test_a_round_that_has_lost_every_task_ends_the_run() -> None:
    run = Run(rounds(1), Bounds(ahead=1)).join("a")
    for _ in range(3):
        run.send("a", weight=math.nan)
    assert [finish.failed for finish in run.all(Finish)] == [True]


def test_a_stream_of_which_a_hundred_tasks_in_a_row_are_lost_ends_the_run() -> None:
    run = Run(Stream(2, 9), Bounds(ahead=1, attempts=2, strikes=0)).join("a")
    for _ in range(2 * (VAIN - 1)):
        run.send("a", weight=math.nan)
    run.contribute("a")  # and one that counts begins the count anew
    for _ in range(2 * VAIN - 1):
        run.send("a", weight=math.nan)
        assert run.all(Finish) == []
    [finish] = run.send("a", weight=math.nan).all(Finish)
    assert finish.failed
    assert f"the last {VAIN} tasks all failed, each 2 times; the last one: weight nan is not" in finish.reason


def test_clients_that_failed_together_are_tried_again_one_by_one() -> None:
    run = Run(rounds(4, summed=True), Bounds(ahead=1, summed=True)).join("a")
    assign = run.tasks["a"].pop((0, 0))
    assert len(assign.clients) > 1
    run.hear("a", Failed((0, 0), assign.attempt, 0, "training", "no", ""))
    again = [run.said("a", Assign)[0]]
    while len(again) < len(assign.clients):
        again += run.contribute("a").said("a", Assign)
    assert [one.clients for one in again] == [(client,) for client in assign.clients]


# Weights


def test_who_holds_weights_that_a_step_left_as_they_were_hears_their_new_number_alone() -> None:
    run = Run(Stream(1, 9), Bounds(ahead=2)).join("a", "b")
    run.slow.add("b")
    run.contribute("a").event(Stepped(1, {}, moved=False))
    assert run.all(SendWeights) == [SendWeights(b"a", b"session of a", 1, 0, same=True)]
    run.contribute("a").event(Stepped(2, {}, moved=False))
    assert run.all(SendWeights) == [SendWeights(b"a", b"session of a", 2, 1, same=True)]
    assert run.hear("b", Have(0)).all(SendWeights) == [SendWeights(b"b", b"session of b", 2, 0, same=True)]
    run.contribute("a").event(Stepped(3, {}))
    assert run.all(SendWeights) == [SendWeights(b"a", b"session of a", 3, 2)]
    run.contribute("a").event(Stepped(4, {}, moved=False))
    assert run.hear("b", Have(2)).all(SendWeights) == [SendWeights(b"b", b"session of b", 4, 2)]  # which are others


def test_weights_are_never_queued_behind_weights() -> None:
    run = Run(Stream(1, 9)).join("a")
    run.slow = {"a"}
    run.contribute("a").step()
    assert run.all(SendWeights) == []  # version 0 is still on the way
    run.contribute("a").step()
    assert run.all(SendWeights) == []
    assert run.hear("a", Have(0)).all(SendWeights) == [SendWeights(b"a", b"session of a", 2, 0)]  # 1 was skipped


def test_a_slow_actor_skips_versions_and_the_others_do_not() -> None:
    run = Run(Stream(1, 9)).join("slow", "quick")
    run.slow = {"slow"}
    sent = []
    for _ in range(3):
        run.contribute("quick").step()
        sent += [(weights.peer, weights.version) for weights in run.all(SendWeights)]
    assert sent == [(b"quick", 1), (b"quick", 2), (b"quick", 3)]
    assert run.hear("slow", Have(0)).all(SendWeights) == [SendWeights(b"slow", b"session of slow", 3, 0)]


def test_light_weights_wait_for_the_next_task_of_an_actor_that_is_at_its_only_one() -> None:
    run = Run(Stream(1, 9), Bounds(ahead=1, light=True)).join("a", "b").hear("a", Have(0)).hear("b", Have(0))
    assert run.contribute("a").step().all(SendWeights) == []  # both are at a task that version 0 is good for
    run.contribute("b")
    assert [type(one) for one in run.effects if not isinstance(one, Step)] == [Send, SendWeights, Send]  # before the task
    assert run.all(SendWeights) == [SendWeights(b"b", b"session of b", 1, 0)]
    assert run.step().all(SendWeights) == []
    assert run.contribute("a").all(SendWeights) == [SendWeights(b"a", b"session of a", 2, 0)]  # 1 was skipped
    run.step().arrive("b")
    assert list(run.core.facts.roster.later) == [b"session of b"]
    assert run.event(Lost(b"b", "ended", dead=True)).core.facts.roster.later == {}


def test_light_weights_that_waited_are_not_queued_behind_those_that_an_actor_got_when_it_came_back() -> None:
    run = Run(Stream(1, 9), Bounds(ahead=1, light=True)).join("a", "b").hear("a", Have(0)).hear("b", Have(0))
    run.contribute("a").step()
    assert list(run.core.facts.roster.later) == [b"session of a", b"session of b"]
    greet(run, "b", peer=b"b2", greeting=1, epoch=1, held=-1)  # and has lost its weights
    assert run.all(SendWeights) == [SendWeights(b"b2", b"session of b", 1)]
    run.slow = {"b"}
    assert run.contribute("a").step().contribute("b").all(SendWeights) == []
    assert run.hear("b", Have(1)).all(SendWeights) == []  # it is at work on its next
    assert run.contribute("b").all(SendWeights) == [SendWeights(b"b2", b"session of b", 2, 1)]


def test_light_weights_go_at_once_to_an_actor_that_needs_them_or_has_another_task_waiting() -> None:
    run = Run(Stream(1, 0), Bounds(ahead=1, light=True)).join("a", "b").hear("a", Have(0))  # nothing lags
    run.slow = {"b"}
    run.contribute("a").step()
    assert [one.peer for one in run.all(SendWeights)] == [b"a"]  # its task is of version 1
    assert [one.peer for one in run.hear("b", Have(0)).all(SendWeights)] == [b"b"]  # so is its, since the last one is stale
    run = Run(Stream(1, 9), Bounds(ahead=2, light=True)).join("a").hear("a", Have(0))
    assert run.contribute("a").step().all(SendWeights) == [SendWeights(b"a", b"session of a", 1, 0)]


def test_a_have_of_other_weights_frees_no_way() -> None:
    run = Run(Stream(1, 9)).join("a").contribute("a").step()
    run.slow = {"a"}  # version 1 is on the way
    assert run.hear("a", Have(0)).contribute("a").step().all(SendWeights) == []


def test_who_has_the_newest_weights_gets_none() -> None:
    assert Run(Stream(1, 9)).join("a").hear("a", Have(0)).tick(after=0.1).all(SendWeights) == []


# Rounds


def test_a_round_steps_when_all_of_it_is_in() -> None:
    run = Run(rounds(3)).join("a", "b").contribute("a", "b")
    assert run.all(Step) == []
    assert run.contribute("a").all(Step) == [Step(1, 0, 3)]
    run.step()
    assert sorted(names(run.said("a", Assign) + run.said("b", Assign))) == [(1, 0), (1, 1), (1, 2)]


def test_nothing_is_asked_for_a_round_that_is_closing() -> None:
    run = Run(rounds(1)).join("a").contribute("a")
    assert run.join("b").said("b", Assign) == []
    assert run.event(Stepped(1, {})).core.facts.version == 1


def test_after_the_deadline_a_quorum_suffices_and_who_is_late_is_cancelled() -> None:
    run = Run(rounds(4, quorum=2, deadline=5.0), Bounds(patience=60.0)).join("a", "b").contribute("a", "a")
    late = run.work("b")
    assert run.tick(after=4.9).all(Step) == []
    assert run.tick(after=0.2).all(Step) == [Step(1, 0, 4)]
    assert names(run.step().said("b", Cancel)) == [(0, 2), (0, 3)]
    assert run.hear("b", late).verdicts("b") == ["stale"]


def test_after_the_deadline_fewer_than_a_quorum_do_not_suffice() -> None:
    run = Run(rounds(4, quorum=2, deadline=5.0), Bounds(patience=60.0)).join("a", "b").contribute("a").tick(after=6.0)
    assert run.all(Step) == []
    assert run.contribute("b").all(Step) == [Step(1, 0, 4)]


def test_what_comes_while_a_round_is_being_closed_is_stale() -> None:
    run = Run(rounds(4, quorum=2, deadline=5.0), Bounds(patience=60.0)).join("a", "b").contribute("a", "a").tick(after=6.0)
    assert run.send("b").verdicts("b") == ["stale"]


def test_a_step_waits_for_what_is_on_its_way_to_the_learner() -> None:
    run = Run(rounds(4, quorum=1, deadline=5.0), Bounds(patience=60.0)).join("a", "b").contribute("a").send("b")
    assert run.tick(after=6.0).all(Step) == []
    assert run.event(Folded((0, 2))).all(Step) == [Step(1, 0, 4)]


def test_evaluation_is_waited_for_and_trains_nothing() -> None:
    run = Run(rounds(1, evaluate_every=1, evaluate_cohort=1), Bounds(ahead=2)).join("a")
    assert [assign.kind for assign in run.said("a", Assign)] == ["train", "evaluate"]
    run.contribute("a", steps=10)
    assert run.all(Step) == []
    run.contribute("a", steps=90)
    assert run.all(Step) == [Step(1, 10, 2)]
    assert run.core.facts.ledger.counts.clients == 1


def test_a_cohort_is_a_function_of_seed_and_version() -> None:
    def cohort(seed: int, actors: str) -> list[set[int]]:
        run = Run(rounds(50, 5, seed=seed), Bounds(ahead=5)).join(*actors)
        seen: list[set[int]] = []
        for _ in range(3):
            clients: set[int] = set()
            while not run.all(Step):
                name = next(name for name in actors if run.tasks[name])
                clients.update(next(iter(run.tasks[name].values())).clients)
                run.contribute(name)
            seen.append(clients)
            run.step()
        return seen

    assert cohort(1, "a") == cohort(1, "ab")
    assert cohort(1, "a") != cohort(2, "a")


def test_a_restarted_round_asks_only_those_who_have_not_answered() -> None:
    plan = rounds(4, asked=Asked(done={3: {0, 2}}))
    run = Run(plan, version=3, steps=30, drawn=12, folded=2, epoch=4).join("a")
    assert [assign.clients for assign in run.said("a", Assign)] == [(1,), (3,)]
    assert run.contribute("a", "a", steps=1).all(Step) == [Step(4, 32, 14)]


# Streams


def test_a_stream_steps_for_every_batch_and_every_actor_always_has_work() -> None:
    run = Run(Stream(2, 9), Bounds(ahead=2)).join("a").contribute("a")
    assert run.all(Step) == []
    run.contribute("a")
    assert run.all(Step) == [Step(1, 0, 3)]
    assert len(run.tasks["a"]) == 2


def test_what_a_batch_has_no_room_for_goes_onto_the_next_version() -> None:
    run = Run(Stream(1, 9), Bounds(ahead=3)).join("a")
    assert [run.send("a").all(Fold)[0].onto for _ in range(3)] == [0, 1, 2]
    run.event(Folded((0, 0)))
    assert run.all(Step) == [Step(1, 0, 3)]
    assert run.send("a").all(Fold)[0].onto == 3


def test_what_comes_during_a_step_goes_onto_the_version_it_makes() -> None:
    run = Run(Stream(1, 9)).join("a").contribute("a")
    assert run.all(Step)
    assert run.send("a").all(Fold)[0].onto == 1


def test_a_contribution_may_be_as_many_versions_behind_as_the_plan_allows() -> None:
    run = Run(Stream(1, 2), Bounds(ahead=2)).join("a", "slow")
    for _ in range(2):
        run.contribute("a").step()
    assert run.send("slow", made_from=0).all(Fold)[0].onto == 2
    run.event(Folded((0, 2))).step()
    assert run.send("slow", made_from=0).verdicts("slow") == ["stale"]
    assert run.told("stale") == ["slow: task (0, 3) stale: made from version 0, 3 behind"]


def test_tasks_of_a_stream_are_numbered_on_after_a_restart() -> None:
    run = Run(Stream(1, 2, clients=10, asked=Asked(40)), version=7, drawn=40, epoch=1).join("a")
    assert names(run.said("a", Assign)) == [(5, 40), (5, 41)]
    assert run.contribute("a").all(Step) == [Step(8, 0, 42)]


def test_a_task_for_nobody_is_for_the_actors_own_environments() -> None:
    run = Run(Stream(1, 2)).join("a", "b")
    assert [assign.clients for assign in run.said("b", Assign)] == [(1,), (1,)]
    assert names(run.event(Lost(b"b", "died")).join("c").said("c", Assign)) == [(0, 2), (0, 3)]


def test_when_all_wait_for_a_version_that_nobody_works_on_one_of_them_takes_a_task_more() -> None:
    run = Run(Stream(1, 9), Bounds(ahead=1)).join("a", "b").send("a").send("b")  # onto versions 0 and 1
    run.event(Unfit((0, 0), "not finite")).send("a").event(Lost(b"a", "died"))
    run.event(Unfit((0, 0), "not finite"))
    assert names(run.said("b", Assign)) == [(0, 0)]
    assert run.send("b").all(Fold)[0].onto == 0


# Leases


def test_a_task_whose_lease_ends_goes_to_another_and_a_late_result_is_stale() -> None:
    run = Run(rounds(1), Bounds(lease=5.0, patience=60.0)).join("a", "b").hear("a", Have(0))
    late = run.work("a")
    assert run.tick(after=5.0).told("late") == []
    run.tick(after=0.1)
    assert run.told("late") == ["task (0, 0): no result within its lease of 5 s"]
    assert names(run.said("a", Cancel)) == names(run.said("b", Assign)) == [(0, 0)]
    assert run.hear("a", late).verdicts("a") == ["stale"]
    assert run.contribute("b").all(Step) == [Step(1, 0, 1)]


def test_an_actor_that_hangs_gets_no_more_until_its_worker_speaks() -> None:
    run = Run(Stream(9, 9), Bounds(ahead=1, lease=5.0, patience=60.0)).join("a").hear("a", Have(0))
    late = run.work("a")
    run.tick(after=5.1)
    assert run.all(Evict) == [Evict(b"a")]
    assert run.said("a", Assign) == []
    at_it = Beat(0, runs=(*late.task, late.attempt))
    assert run.hear("a", at_it).tick(after=9.0).said("a", Assign) == []  # its other thread lives, which says nothing
    assert names(run.hear("a", late).said("a", Assign)) == [(0, 0)]


@pytest.mark.parametrize("kind", [Contribute, Failed])
def test_what_an_actor_says_again_is_no_word_of_its_worker_that_hangs(kind: type[Any]) -> None:
    run = Run(Stream(9, 9), Bounds(ahead=1, lease=5.0, patience=60.0)).join("a").hear("a", Have(0))
    late = run.work("a")
    again = replace(late, task=(0, 7)) if kind is Contribute else Failed((0, 7), late.attempt, 0, "train", "oops", "")
    run.tick(after=5.1).hear("a", again)  # of a task that it has no lease of: it was accepted before a restart, say
    assert run.tick(after=0.1).said("a", Assign) == []
    assert names(run.hear("a", late).said("a", Assign)) == [(0, 0)]


def test_work_is_measured_from_when_the_task_was_given_also_if_its_lease_was_renewed() -> None:
    run = Run(Stream(9, 9), Bounds(ahead=1, patience=900.0)).join("a").hear("a", Have(0))
    done = run.work("a", trained=60.0)
    run.tick(after=60.0)
    lease = run.core.facts.ledger.leases[done.task]
    run.core.facts.ledger.renew(lease, run.now)  # its brief was sent again, to an actor that came back
    assert claims.amiss(lease, done, 0, run.core.facts.bounds, run.now) == ""
    assert "90 s of work" in claims.amiss(lease, replace(done, trained=90.0), 0, run.core.facts.bounds, run.now)


def test_an_actor_that_runs_no_task_does_not_hang() -> None:
    run = Run(Stream(9, 9), Bounds(ahead=1, lease=5.0, patience=60.0)).join("a").hear("a", Have(0)).tick(after=5.1)
    assert run.said("a", Assign) == []
    assert names(run.hear("a", Beat(0)).tick(after=0.1).said("a", Assign)) == [(0, 0)]


def test_an_actor_whose_weights_are_still_on_their_way_does_not_hang() -> None:
    run = Run(Stream(9, 9), Bounds(ahead=1, lease=5.0, patience=60.0)).join("a").tick(after=5.1)
    assert run.all(Evict) == []
    assert names(run.said("a", Assign)) == [(0, 0)]


def test_what_is_with_the_learner_hides_no_lease_that_ends() -> None:
    run = Run(Stream(2, 9), Bounds(ahead=1, lease=5.0, patience=60.0)).join("a", "b").send("a").tick(after=5.1)
    assert run.told("late") == ["task (0, 1): no result within its lease of 5 s"]


def queued(lease: float, **bounds: Any) -> Run:
    """Actor a is at the first of its two tasks and says so; b has finished its own."""
    run = Run(Stream(9, 9), Bounds(ahead=2, lease=lease, patience=1e6, **bounds)).join("a").hear("a", Have(0))
    first = run.work("a")
    return run.hear("a", Beat(0, runs=(*first.task, first.attempt)))


def test_a_task_that_waits_behind_another_is_not_late() -> None:
    run = queued(5.0).tick(after=4.0)
    behind = list(run.tasks["a"])[1]
    run.send("a").tick(after=4.0)  # 8 s after it was given, and its actor began it 4 s ago
    assert run.told("late") == []
    assert behind in run.core.facts.ledger.leases
    assert run.tick(after=1.1).told("late") == [f"task {behind}: no result within its lease of 5 s"]


def test_tasks_behind_a_task_that_hangs_go_to_others_at_once_and_are_not_to_blame() -> None:
    run = queued(5.0).tick(after=3.0).join("b").hear("b", Have(0))
    run.tick(after=2.1)
    assert run.told("late") == ["task (0, 0): no result within its lease of 5 s; waiting behind it, and given to others: 1"]
    assert names(run.said("a", Cancel)) == [(0, 0), (0, 1)]
    waiting = {lease.name: lease.faults for lease in run.core.facts.ledger.leases.values()}
    waiting |= {one.task.name: one.faults for one in run.core.facts.ledger.returned}
    assert (waiting[0, 0], waiting[0, 1]) == (1, 0)
    assert run.all(Evict) == [Evict(b"a")]


def test_of_a_silent_actor_the_first_task_is_late_and_the_others_are_not_to_blame() -> None:
    run = Run(Stream(9, 9), Bounds(ahead=3, lease=5.0, patience=60.0)).join("a").hear("a", Have(0)).tick(after=5.1)
    assert [text[:11] for text in run.told("late")] == ["task (0, 0)"]
    assert [one.faults for one in run.core.facts.ledger.returned] == [1, 0, 0]


def test_a_short_kind_behind_a_long_one_waits_for_it() -> None:
    run = queued(-1.0, floor=10.0)
    behind = list(run.tasks["a"])[1]
    lease = run.core.facts.ledger.leases[behind]
    lease.task = replace(lease.task, kind="short")
    run.core.facts.ledger.took.update({"short": deque([0.1] * 9), "train": deque([100.0] * 9)})
    assert run.tick(after=900.0).told("late") == []
    assert run.send("a").tick(after=9.0).told("late") == []
    assert run.tick(after=1.1).told("late")[0].startswith(f"task {behind}: no result within its lease of 10 s")


def test_the_lease_follows_the_work_and_not_the_time_in_a_queue() -> None:
    run = Run(Stream(9, 9), Bounds(ahead=3, lease=-1.0, patience=1e6)).join("a").hear("a", Have(0))
    for _ in range(3):
        run.tick(after=20.0).send("a")
    assert list(run.core.facts.ledger.took["train"]) == [20.0, 20.0, 20.0]  # and not 20, 40, 60


def test_the_time_of_arrays_on_their_way_is_not_time_of_work() -> None:
    run = Run(Stream(9, 9), Bounds(ahead=1, lease=5.0, patience=1e6)).join("a")
    run.tick(after=4.0).hear("a", Have(0))  # the weights took 4 s to come
    assert run.tick(after=4.0).told("late") == []
    done = run.work("a", nbytes=10)
    run.event(Heard(b"a", Envelope(run.sessions["a"], run.core.facts.epoch, done), whole=False))
    run.event(Heard(b"a", Envelope(run.sessions["a"], run.core.facts.epoch, done)), after=30.0)
    assert list(run.core.facts.ledger.took["train"]) == [4.0]


def test_weights_that_do_not_come_are_no_fault_of_the_task() -> None:
    run = Run(Stream(9, 9), Bounds(ahead=1, lease=5.0, patience=60.0)).join("a")
    for _ in range(4):
        run.tick(after=5.1)
    assert run.core.facts.ledger.counts.aside == 0
    assert [lease.faults for lease in run.core.facts.ledger.leases.values()] == [0]


def test_a_task_behind_one_that_was_taken_back_is_not_to_blame() -> None:
    run = Run(Rounds(4, quorum=1, deadline=3.0), Bounds(ahead=1, lease=5.0, patience=60.0)).join("a", "b")
    run.hear("a", Have(0)).hear("b", Have(0))
    taken = run.work("a")
    at_it = Beat(0, runs=(*taken.task, taken.attempt))
    run.hear("a", at_it).contribute("b").tick(after=3.1).step()
    assert taken.task not in run.core.facts.ledger.leases
    run.hear("a", Have(1)).hear("a", at_it).contribute("b", "b", "b").tick(after=4.0)
    run.hear("a", taken)  # only now has its worker begun the task of this round
    assert run.tick(after=4.0).told("late") == []
    run.hear("a", taken).hear("a", taken).tick(after=1.1)  # repeats put nothing off
    assert len(run.told("late")) == 1


def test_a_worker_that_stays_at_a_task_that_was_taken_back_hangs_and_the_next_task_is_not_to_blame() -> None:
    run = Run(Rounds(4, quorum=1, deadline=3.0), Bounds(ahead=1, lease=5.0, patience=60.0)).join("a", "b")
    run.hear("a", Have(0)).hear("b", Have(0))
    taken = run.work("a")
    at_it = Beat(0, runs=(*taken.task, taken.attempt))
    run.hear("a", at_it).contribute("b").tick(after=3.1).step()
    run.hear("a", Have(1)).hear("a", at_it).hear("b", Have(1)).tick(after=4.0).contribute("b").tick(after=1.1)
    assert run.all(Evict) == [Evict(b"a")]
    out = [*run.core.facts.ledger.leases.values(), *run.core.facts.ledger.returned]
    assert [one.faults for one in out] == [0]


def test_a_limit_before_three_tasks_are_known_can_be_set() -> None:
    run = Run(Stream(9, 9), Bounds(ahead=1, lease=-1.0, first=600.0, patience=1e6)).join("a").hear("a", Have(0))
    assert [bool(run.tick(after=seconds).told("late")) for seconds in (599.0, 1.1)] == [False, True]


# Sticky clients


def test_a_client_stays_with_the_actor_that_plays_it() -> None:
    run = Run(rounds(4), Bounds(ahead=2, sticky=True, gather=2)).join("a", "b")
    home = {assign.clients: name for name in "ab" for assign in run.tasks[name].values()}
    assert sorted(home) == [(0,), (1,), (2,), (3,)]
    for order in ("abab", "bbaa", "aabb"):
        run.contribute(*order).step()
        assert {assign.clients: name for name in "ab" for assign in run.tasks[name].values()} == home


def test_a_task_waits_for_room_where_its_client_lives() -> None:
    run = Run(rounds(4), Bounds(ahead=1, sticky=True, gather=2)).join("a", "b").tick()
    homes = run.core.facts.roster.contributors.homes
    lives = {client: name for name in "ab" for client, home in homes.items() if home == run.sessions[name]}
    [client] = next(iter(run.tasks["a"].values())).clients
    run.contribute("b")
    assert len(run.tasks["a"]) == 1  # though b has nothing left to do but what is a's
    while not run.all(Step):
        name = next(name for name in "ab" if run.tasks[name])
        [client] = next(iter(run.tasks[name].values())).clients
        assert lives.setdefault(client, name) == name
        run.contribute(name)


def test_clients_of_a_dead_actor_move_to_the_one_with_fewest() -> None:
    run = Run(rounds(4), Bounds(ahead=2, sticky=True)).join("a", "b").event(Lost(b"a", "died"))
    run.contribute("b", "b").contribute("b", "b")
    assert run.all(Step) == [Step(1, 0, 4)]


def test_a_newcomer_gets_its_share_of_the_clients() -> None:
    run = Run(rounds(4), Bounds(ahead=4, sticky=True)).join("a").contribute("a", "a", "a", "a").join("b")
    run.event(Stepped(1, {}))
    assert (len(run.tasks["a"]), len(run.tasks["b"])) == (2, 2)


def test_a_closed_round_leaves_nothing_waiting_for_an_actor() -> None:
    run = Run(rounds(4, quorum=1, deadline=5.0), Bounds(ahead=1, sticky=True, gather=2, patience=60.0)).join("a", "b").tick()
    run.contribute("b").tick().contribute("b")
    assert run.core.facts.ledger.parked == 1  # for a, which is busy
    run.tick(after=6.0).step()
    assert [assign.task for name in "ab" for assign in run.tasks[name].values()] == [(1, 0), (1, 1)]
    assert run.core.facts.ledger.outstanding(1) == 2


# Short tasks


def test_an_actor_whose_tasks_are_short_holds_more_of_them() -> None:
    run = Run(Stream(1_000, 9), Bounds(ahead=2, most=6, stock=0.01)).join("a")
    assert len(run.tasks["a"]) == 2
    run.contribute("a", trained=0.0001)
    assert len(run.tasks["a"]) == 6
    for _ in range(50):
        run.contribute("a", trained=1.0)
    assert len(run.tasks["a"]) == 2


# Time, goals and ends


def test_a_beat_is_said_to_whoever_was_told_nothing_else() -> None:
    run = Run(rounds(), Bounds(beat=0.25)).join("a", "b")
    run.tick(after=0.2).contribute("a")
    assert run.tick(after=0.06).said("b", Beat) == [Beat(0, beat=Bounds().beat)]
    assert run.said("a", Beat) == []


def test_whom_the_run_waits_for_is_told_and_since_when() -> None:
    run = Run(rounds(1), Bounds(quiet=5.0, patience=60.0))
    assert run.tick(after=5.1).told("waiting") == ["nothing moves: waiting for an actor to join, for 5 s"]
    assert run.tick(after=1.0).told("waiting") == []
    run.join("a").tick(after=7.0)
    assert run.told("waiting") == ["nothing moves: waiting for a, on task (0, 0), for 7 s: weights 0 on their way to it"]
    run.hear("a", Have(0)).tick(after=6.0)
    assert run.told("waiting") == [
        "nothing moves: waiting for a, on task (0, 0), for 6 s: starting (it has finished no task yet)"
    ]
    assert waiting_for(run.hear("a", Beat(1)).core.facts) == ["a, on task (0, 0), for 6 s"]
    run.contribute("a").tick(after=6.0)
    assert run.told("waiting") == ["nothing moves: waiting for the learner, on the step to version 1, for 6 s"]


def test_arrays_that_stall_are_told_with_what_is_still_to_come() -> None:
    run = Run(rounds(1), Bounds(quiet=5.0, patience=60.0)).join("a")
    task = offer(run, "a").task
    run.event(Carried(b"session of a", task, 600_000), after=4.0)
    assert run.tick(after=4.0).told("waiting") == []  # a piece has come since
    run.event(Carried(b"session of a", task, 600_000))
    run.event(Carried(b"session of a", (3, 3), 1))
    text = "a, on task (0, 0), for 10 s: its arrays, 0.6 of 1.0 MB still to come"
    assert run.tick(after=2.0).told("waiting") == [f"nothing moves: waiting for {text}"]
    assert waiting_for(run.core.facts) == [text]


def test_a_run_that_only_folds_in_moves() -> None:
    run = Run(Stream(99, 9), Bounds(quiet=5.0, patience=60.0)).join("a")
    for _ in range(3):
        run.tick(after=4.0)
        assert run.told("waiting") == []
        task = run.work("a").task
        run.send("a").tick(after=4.0)
        assert run.told("waiting") == []
        run.event(Folded(task))


def test_what_became_of_work_and_actors_is_counted() -> None:
    run = Run(rounds(6), Bounds(ahead=3)).join("a").hear("a", Have(0))
    done = run.work("a")
    run.contribute("a").hear("a", done).hear("a", done)
    task, attempt = next((name, assign.attempt) for name, assign in run.tasks["a"].items())
    run.hear("a", Failed(task, attempt, 1, "train", "no", ""))
    run.event(Lost(b"a", "died", dead=True))
    counts = run.core.facts.ledger.counts
    assert (counts.accepted, counts.duplicate, counts.failed, counts.deaths) == (1, 2, 1, 1)


def test_who_was_left_out_in_one_round_and_counts_in_the_next_is_not_left_out() -> None:
    run = Run(rounds(2), Bounds(attempts=1, strikes=0)).join("a")
    run.send("a", weight=-1.0)
    assert list(run.core.facts.ledger.left_out) == [0]
    run.contribute("a").step().contribute("a")
    assert run.core.facts.ledger.left_out == {}


@pytest.mark.parametrize(("lease", "stall"), [(5.0, 5.0), (0.0, 0.0), (-1.0, 60.0)])
def test_arrays_may_stall_as_long_as_a_lease_lasts_at_least(lease: float, stall: float) -> None:
    assert Bounds(lease=lease, floor=60.0).stall == stall


def test_pieces_that_come_are_a_sign_of_life() -> None:
    run = Run(rounds(1), Bounds(patience=5.0)).join("a")
    task = offer(run, "a").task
    for left in (800_000, 600_000, 600_000):  # the last of them is not of this task
        run.event(Carried(b"session of a", task, left), after=4.0)
        assert run.tick(after=0.9).told("lost") == []
    assert run.tick(after=4.2).told("lost") == ["a silent for 5.1 s; 1 of its tasks go to others"]


def test_a_death_is_not_blamed_on_a_task_whose_work_is_done_or_has_not_begun() -> None:
    run = Run(rounds(1), Bounds(attempts=1)).join("a")
    offer(run, "a")  # its arrays are fetched: the worker is done
    assert run.event(Lost(b"a", "died", dead=True)).told("lost") == ["a died; 1 of its tasks go to others"]
    briefed = Run(rounds(1), Bounds(attempts=1, briefs=True)).join("a")
    briefed.hear("a", Have(0))  # the brief is being made: the actor knows of no task
    assert briefed.event(Lost(b"a", "died", dead=True)).told("lost") == ["a died; 1 of its tasks go to others"]
    assert run.told("aside") == briefed.told("aside") == []


def test_an_actor_that_reads_nothing_hears_a_beat_every_four_seconds() -> None:
    run = Run(rounds(1), Bounds(beat=0.25, patience=60.0)).join("a").hear("a", Have(0))
    heard = [run.now for _ in range(400) if run.tick(after=0.1).said("a", Beat)]
    gaps = [round(after - before, 1) for before, after in itertools.pairwise(heard)]
    assert set(gaps[:12]) == {0.3}
    assert 9 <= len(gaps[13:]) <= 18  # one or two at each of nine turns
    assert 3.5 < max(gaps[13:]) < 4.5


def test_only_so_many_of_those_waited_for_are_named() -> None:
    run = Run(rounds(8), Bounds(ahead=8)).join("a")
    assert len(waiting_for(run.core.facts, most=3)) == 4
    assert waiting_for(run.core.facts, most=3)[-1] == "5 tasks more"


def test_a_goal_of_versions_ends_the_run_and_all_are_told() -> None:
    run = Run(rounds(1), goal=Goal(versions=2)).join("a", "b")
    name = next(name for name in "ab" if run.tasks[name])
    run.contribute(name).step()
    assert run.all(Finish) == []
    name = next(name for name in "ab" if run.tasks[name])
    assert run.contribute(name).step().all(Finish) == [Finish("done", False)]
    assert run.said("a", Stop) == run.said("b", Stop) == [Stop("done")]
    assert run.tick(after=60.0).effects == []


def test_a_goal_of_steps_ends_the_run_with_the_version_that_reaches_it() -> None:
    run = Run(Stream(1, 9), goal=Goal(steps=100)).join("a")
    run.contribute("a", steps=60).step()
    assert run.all(Finish) == []
    run.contribute("a", steps=60).step()
    assert run.all(Finish) == [Finish("done", False)]


def test_a_goal_of_steps_ends_the_run_when_one_more_version_may_be_too_many() -> None:
    run = Run(Stream(1, 9), goal=Goal(steps=100, each=30)).join("a")
    for steps in (30, 28):
        run.contribute("a", steps=steps).step()
        assert run.all(Finish) == []
    run.contribute("a", steps=12).step()  # 70 are made: 30 more are 100, not too many
    assert run.all(Finish) == []
    run.contribute("a", steps=1).step()
    assert run.all(Finish) == [Finish("done", False)]


def test_a_goal_below_the_steps_of_one_version_is_reached_by_one_version() -> None:
    goal = Goal(steps=20, each=30)
    assert [goal.reached(*at) for at in ((0, 0), (1, 3))] == [False, True]
    assert [goal.share(*at) for at in ((0, 0), (1, 3))] == [0.0, 1.0]


def test_in_a_pause_no_actor_hears_of_the_end_and_none_is_answered() -> None:
    run = Run(rounds()).join("a").event(Interrupt("stopped by SIGTERM", pause=True))
    assert run.all(Finish) == [Finish("stopped by SIGTERM", False)]
    assert [send for send in run.all(Send) if isinstance(send.envelope.message, Stop)] == []
    assert not run.core.facts.farewell.waits(run.now)
    assert run.hear("a", Beat(0)).all(Send) == []


def test_an_interrupt_ends_the_run_and_all_are_told() -> None:
    run = Run(rounds()).join("a").event(Interrupt("stopped by SIGINT"))
    assert run.said("a", Stop) == [Stop("stopped by SIGINT")]
    assert run.all(Finish) == [Finish("stopped by SIGINT", False)]


def over(run: Run) -> Run:
    return run.event(Interrupt("over"))


def lingers(run: Run, after: float = 0.0) -> bool:
    return run.core.facts.farewell.waits(run.now + after)


def test_a_hello_that_comes_after_the_end_is_told_of_it() -> None:
    run = over(Run(rounds()).join("a"))
    greet(run, "a", b"a'", greeting=1, epoch=1, held=0)
    assert run.effects == [Send(b"a'", Envelope(b"session of a", 1, Stop("over")))]
    assert run.join("c").said("c", Stop) == [Stop("over")]  # nobody that we knew of
    assert run.tick().effects == []


def test_the_end_waits_a_moment_for_each_to_say_that_it_knows() -> None:
    run = over(Run(rounds()).join("a", "b"))
    assert lingers(run)
    assert run.hear("a", Bye("so I hear")).effects == []
    assert lingers(run)
    run.hear("b", Bye("so I hear"))
    assert not lingers(run)
    silent = over(Run(rounds()).join("a"))
    assert lingers(silent, after=MOMENT - 0.1)
    assert not lingers(silent, after=MOMENT)


def test_the_end_waits_for_one_that_is_between_two_connections() -> None:
    run = Run(rounds()).join("a").event(Lost(b"a", "lost its connection"))
    assert run.told("lost")
    assert lingers(over(run).tick(after=0.1))
    assert greet(run, "a", b"a'", greeting=1, epoch=1).said("a", Stop) == [Stop("over")]
    assert not lingers(run.hear("a", Bye("so I hear"), peer=b"a'", epoch=0))


def test_the_end_waits_for_none_that_is_back_or_long_gone_or_whose_process_ended() -> None:
    back = Run(rounds()).join("a").event(Lost(b"a", "lost its connection")).join("a", again="'")
    assert not lingers(over(back).hear("a", Bye("so I hear")))
    gone = Run(rounds()).join("a").event(Lost(b"a", "lost its connection")).tick(after=ASTRAY + 0.1)
    assert not lingers(over(gone))
    for known_by in (False, True):  # its connection is found to be lost before its process is, or not at all
        dead = Run(rounds()).join("a")
        if known_by:
            dead.event(Lost(b"a", "lost its connection"))
        assert not lingers(over(dead.event(Lost(b"a", "ended", dead=True))))
    later = over(Run(rounds()).join("a")).event(Lost(b"a", "ended", dead=True))
    assert not lingers(later)


def test_nobody_says_goodbye_for_another_key() -> None:
    run = Run(rounds())
    run.sessions["a"], run.peers["a"], run.tasks["a"] = b"session of a", b"a", {}
    run.hear("a", Hello(PROTOCOL, "a", "host", 1, ()), epoch=0, user="key of a")
    assert over(run).hear("a", Bye("so I hear"), user="another").effects == []
    assert lingers(run)
    assert not lingers(run.hear("a", Bye("so I hear"), user="key of a"))


def test_one_whose_process_ended_is_not_waited_for_though_its_arrays_were_on_their_way() -> None:
    run = Run(rounds()).join("a")
    offer(run, "a")
    run.event(Lost(b"a", "lost its connection"))
    assert run.told("away")
    assert run.event(Lost(b"a", "ended (process 7)", dead=True)).told("lost")


def test_attempts_of_two_lives_of_the_coordinator_differ() -> None:
    first = Run(rounds(), epoch=0).join("a").said("a", Assign)[0]
    second = Run(rounds(), epoch=1).join("a")
    assert first.task == second.said("a", Assign)[0].task
    old = Contribute(first.task, first.attempt, 0, 1.0, "layout", False, {}, {}, 0.0, 0.0)
    assert second.hear("a", old).verdicts("a") == ["stale"]


@pytest.mark.parametrize(
    ("claims", "said"),
    [
        ({"steps": 10**10}, "steps, where its task has 24 at most"),
        ({"steps": 25}, "25 steps, where its task has 24 at most"),
        ({"steps": 2, "samples": {"return": (1.0, 1.0, 1.0)}}, "more samples than its 2 steps"),
        ({"trained": 1e9}, "s of work, but its actor has had the task for"),
    ],
)
def test_claims_that_a_task_cannot_bear_out_are_refused_and_bring_no_goal_nearer(claims: dict[str, Any], said: str) -> None:
    run = Run(Stream(1, 9), Bounds(steps=24), goal=Goal(steps=1000)).join("a").send("a", **claims)
    [verdict] = run.said("a", Verdict)
    assert verdict.verdict == "refused"
    assert said in verdict.reason
    assert run.core.facts.steps == 0
    assert not run.all(Fold)


def test_claims_at_the_very_bounds_are_taken() -> None:
    run = Run(Stream(1, 9), Bounds(steps=3), goal=Goal(steps=1000)).join("a")
    counts = {"none": (0.0, 0.0), "least": (1.0, 2.0**-500), "most": (1.0, 2.0**500)}
    run.contribute("a", steps=3, samples={"return": (1.0,) * 3}, trained=claims.SLACK, totals=counts, waited=2.0**500)
    assert run.core.facts.steps == 3


def test_work_that_may_be_asked_for_again_needs_a_digest_to_be_known_by() -> None:
    run = Run(Stream(1, 9), Bounds(retain=1_000)).join("a").send("a")
    assert [verdict.reason for verdict in run.said("a", Verdict)] == [
        "no digest, by which it is known again if it is asked for once more"
    ]
    assert run.send("a", digest="of its arrays").all(Fold)


def test_an_evaluation_brings_no_arrays_and_so_neither_sum_nor_digest_and_any_number_of_steps() -> None:
    run = Run(rounds(4, 1, evaluate_every=1, evaluate_cohort=1), Bounds(steps=3, summed=True, retain=1_000)).join("a")
    [evaluation] = [assign for assign in run.tasks["a"].values() if not assign.counts]
    assert run.send("a", evaluation.task, steps=9).all(Fold)
