"""Facts about evaluators at a coordinator: they get weights and evaluations, and those who train get no evaluation then."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
from test_core import Run, names

from shoal.actors import effects, events
from shoal.actors.session import OLDER, Session, hello
from shoal.coordinator.deciding.bounds import Bounds
from shoal.coordinator.deciding.events import Admit, Heard, Lost, Pulse, SendWeights, Step, Unfit
from shoal.coordinator.deciding.patience import waiting_for
from shoal.coordinator.deciding.plans import Outcome, Plan, Seats
from shoal.coordinator.deciding.plans.overlapped import Overlapped
from shoal.coordinator.deciding.plans.rounds import Rounds
from shoal.coordinator.deciding.plans.stream import Stream
from shoal.coordinator.deciding.plans.worded import Worded
from shoal.coordinator.deciding.roll import roll
from shoal.protocol.messages import PROTOCOL, Assign, Bye, Envelope, Failed, Have, Hello, Refused, Welcome
from shoal.protocol.work import Task


def evaluator(run: Run, *called: str) -> Run:
    for name in called:
        run.peers[name], run.sessions[name], run.tasks[name] = name.encode(), f"session of {name}".encode(), {}
        said = Hello(PROTOCOL, name, "host", 1, (), evaluates=True)
        run.event(Heard(run.peers[name], Envelope(run.sessions[name], 0, said)))
    return run


def kinds(run: Run, name: str) -> list[str]:
    """Return the kinds of the tasks that an actor has."""
    return [assign.kind for assign in run.tasks[name].values()]


def streaming(every: int = 1, ahead: int = 1, **bounds: float) -> Run:
    return Run(Stream(1, 3, evaluate_every=every), Bounds(ahead=ahead, **bounds))  # type: ignore[arg-type]


def turn(run: Run, times: int = 1) -> Run:
    """Actor a brings a contribution, and the learner steps."""
    for _ in range(times):
        run.contribute("a").step()
    return run


def test_an_evaluator_gets_weights_and_no_training() -> None:
    run = evaluator(streaming(), "e").join("a")
    assert (kinds(run, "a"), kinds(run, "e")) == (["train"], [])
    turn(run.hear("e", Have(0)))
    assert (b"e", 1) in [(one.peer, one.version) for one in run.all(SendWeights)]


def test_an_evaluator_evaluates_and_who_trains_is_not_interrupted() -> None:
    run = turn(evaluator(streaming().join("a"), "e")).contribute("a")
    assert (kinds(run, "a"), kinds(run, "e")) == (["train"], ["evaluate"])
    run.step().contribute("e", samples={"return": (7.0,)})
    assert (run.all(Step), run.verdicts("e")) == ([], ["accepted"])


def test_without_an_evaluator_who_trains_evaluates() -> None:
    assert kinds(turn(streaming().join("a")).contribute("a"), "a") == ["evaluate"]


def test_an_evaluator_that_is_busy_is_waited_for_and_then_evaluates_what_is_newest() -> None:
    run = turn(evaluator(streaming(), "e").join("a"), 9)
    assert [name[0] for name in run.tasks["e"]] == [0]  # of version 1, to begin with a version that is 3 older at most
    assert kinds(run, "a") == ["train"]
    assert kinds(run.contribute("e"), "e") == []
    run.contribute("a")  # it asks for a task, and the plan gives the evaluation that is due
    assert [name[0] for name in run.tasks["e"]] == [9 - 3]
    assert kinds(run, "a") == ["train"]


def test_the_evaluation_of_an_evaluator_that_is_lost_goes_to_who_trains() -> None:
    run = turn(evaluator(streaming(ahead=2).join("a"), "e")).contribute("a").step()
    [evaluation] = run.tasks["e"]
    run.event(Lost(b"e", "ended", dead=True)).contribute("a")
    assert evaluation in run.tasks["a"]


def test_evaluations_do_not_wait_for_an_evaluator_that_is_mute() -> None:
    run = turn(evaluator(streaming(hush=2.0).join("a"), "e").hear("e", Have(0))).contribute("a").step()
    assert kinds(run, "e") == ["evaluate"]
    run.event(Pulse(b"e", 3.0), after=3.0)
    assert run.core.facts.roster.evaluators.room is None
    assert kinds(run.contribute("a"), "a") == ["evaluate"]  # of the next version; the evaluator keeps what it has


def test_the_evaluation_of_an_evaluator_that_left_goes_to_the_other_evaluator() -> None:
    run = turn(evaluator(streaming(), "e", "f").join("a")).contribute("a")
    first = "e" if run.tasks["e"] else "f"
    other = "f" if first == "e" else "e"
    [name] = run.tasks[first]
    assert names(run.hear(first, Bye("told to stop")).said(other, Assign)) == [name]  # a is busy, and need not be asked


def test_the_ledger_tells_the_oldest_version_that_an_evaluation_may_play() -> None:
    run = turn(evaluator(streaming(), "e").join("a"))
    run.arrive("e")
    held = run.contribute("a").core.facts.roster.actors[run.sessions["e"]].held
    run.step().arrive("e")
    assert (held, run.core.facts.roster.actors[run.sessions["e"]].held) == (1, 2)
    assert run.core.facts.ledger.evaluating() == [1]
    assert run.contribute("e").core.facts.ledger.evaluating() == []


def test_an_evaluation_that_fails_at_an_evaluator_goes_to_who_trains() -> None:
    run = turn(evaluator(streaming(), "e").join("a")).contribute("a").step()
    [(evaluation, assign)] = run.tasks["e"].items()
    run.tasks["e"].clear()
    run.hear("e", Failed(evaluation, assign.attempt, 0, "training", "FileNotFoundError: no data here", ""))
    assert (run.said("e", Assign), kinds(run, "a")) == ([], ["train"])  # it waits for a, which is busy
    assert evaluation in run.contribute("a").tasks["a"]
    assert run.contribute("a").verdicts("a") == ["accepted"]


def test_an_evaluation_that_failed_goes_to_an_evaluator_if_nobody_trains() -> None:
    run = turn(evaluator(streaming(), "e").join("a")).contribute("a").step()
    [(evaluation, assign)] = run.tasks["e"].items()
    run.event(Lost(b"a", "ended", dead=True)).tasks["e"].clear()
    run.hear("e", Failed(evaluation, assign.attempt, 0, "training", "ValueError: no", ""))
    assert names(run.said("e", Assign)) == [evaluation]


class Bare:
    """A plan of a user's own, whose evaluations name no client."""

    def assign(self, seats: Seats, news: Sequence[Outcome], version: int, now: float) -> Sequence[Task]:
        return [Task(version, 7, (), "evaluate", counts=False)] if seats.evaluations else []

    def admits(self, made_from: int, version: int) -> bool:
        return True

    def enough(self, folded: int, outstanding: int, version: int, now: float) -> bool:
        return False

    def wakes(self, version: int, now: float) -> float:
        return float("inf")


def test_an_evaluation_without_clients_is_of_client_0_at_an_evaluator() -> None:
    run = evaluator(Run(Bare()), "e").join("a")
    assert [assign.clients for assign in run.tasks["e"].values()] == [(0,)]


def test_an_evaluation_that_waits_for_an_evaluator_is_the_next_evaluators() -> None:
    run = evaluator(Run(Rounds(4, 1, evaluate_every=1, evaluate_cohort=3), Bounds(ahead=1)), "e").join("a")
    assert (len(run.tasks["e"]), len(run.core.facts.ledger.evaluations)) == (1, 2)
    assert kinds(evaluator(run, "f"), "f") == ["evaluate"]
    assert len(run.core.facts.ledger.evaluations) == 1
    for name in ("e", "f", "e"):
        assert run.all(Step) == []
        run.contribute(name)
    assert run.contribute("a").all(Step)


def test_a_fast_evaluator_takes_what_a_slow_one_has_not_begun() -> None:
    run = evaluator(Run(Rounds(6, 1, evaluate_every=1, evaluate_cohort=5), Bounds(ahead=1)), "slow", "fast").join("a")
    [begun] = run.tasks["slow"]
    run.contribute("a", "fast", "fast", "fast", "fast")
    assert ([*run.tasks["slow"]], [*run.tasks["fast"]], run.all(Step)) == ([begun], [], [])
    assert run.contribute("slow").all(Step)


def test_evaluations_that_wait_for_evaluators_go_to_who_trains_when_the_last_one_leaves() -> None:
    run = evaluator(Run(Rounds(4, 1, evaluate_every=1, evaluate_cohort=3), Bounds(ahead=1)), "e").join("a")
    assert kinds(run.contribute("a"), "a") == []
    assert kinds(run.hear("e", Bye("told to stop")), "a") == ["evaluate"]
    assert run.contribute("a", "a", "a").all(Step)


def test_an_evaluator_takes_the_next_evaluation_after_one_that_failed() -> None:
    run = evaluator(Run(Rounds(4, 1, evaluate_every=1, evaluate_cohort=2), Bounds(ahead=1)), "e").join("a")
    [(failed, assign)] = run.tasks["e"].items()
    run.tasks["e"].clear()
    run.hear("e", Failed(failed, assign.attempt, 0, "training", "FileNotFoundError: no data here", ""))
    assert failed not in run.tasks["e"]
    assert kinds(run, "e") == ["evaluate"]
    assert [*run.contribute("a").tasks["a"]] == [failed]
    assert run.contribute("a", "e").all(Step)


def test_a_round_has_the_same_tasks_with_an_evaluator_and_evaluates_first() -> None:
    def given(evaluations: int | None) -> Sequence[Task]:
        plan = Rounds(5, evaluate_every=1, evaluate_cohort=2, seed=3)
        return [task for _ in range(4) for task in plan.assign(Seats(2, evaluations=evaluations), (), 0, 0.0)]

    assert [task.kind for task in given(1)] == ["evaluate"] * 2 + ["train"] * 5
    assert sorted(given(1), key=lambda task: task.index) == list(given(None))
    assert [task.kind for task in given(None)] == ["train"] * 5 + ["evaluate"] * 2


def test_a_summed_round_is_cut_alike_with_an_evaluator() -> None:
    def given(evaluations: int | None) -> list[tuple[int, ...]]:
        plan = Rounds(8, evaluate_every=1, evaluate_cohort=1, summed=True)
        tasks = [task for _ in range(2) for task in plan.assign(Seats(3, evaluations=evaluations), (), 0, 0.0)]
        return [task.clients for task in tasks if task.counts]

    assert sorted(client for clients in given(1) for client in clients) == list(range(8))


def test_overlapped_rounds_wait_for_an_evaluator_that_is_busy() -> None:
    plan = Overlapped(1, evaluate_every=1)
    [first] = plan.assign(Seats(2, evaluations=0), [], 0, 0.0)
    busy = plan.assign(Seats(1, evaluations=0), [Outcome(first, "accepted", 1.0, {})], 1, 0.0)
    assert [task.kind for task in busy] == ["train"]
    assert [task.kind for task in plan.assign(Seats(1, evaluations=1), [], 1, 0.0)] == ["evaluate"]


def test_actors_count_and_are_numbered_as_without_evaluators() -> None:
    run = evaluator(Run(Rounds(4, evaluate_every=1, evaluate_cohort=1), Bounds(gather=2, ahead=2, sticky=True)), "e", "f")
    assert waiting_for(run.core.facts) == ["an actor to join, for 0 s"]
    assert run.join("a").said("a", Assign) == []
    run.join("b").event(Lost(b"e", "ended", dead=True)).join("c")
    actors = run.core.facts.roster.actors
    assert [actors[run.sessions[name]].number for name in ("a", "b", "c", "f")] == [0, 1, 2, -1]
    assert (len(run.core.facts.roster), {*run.core.facts.roster.contributors.homes.values()} & {run.sessions["f"]}) == (
        3,
        set(),
    )
    assert [row[0] for row in roll(run.core.facts, run.now)["rows"]] == [-1, 0, 1, 2]
    assert roll(run.core.facts, run.now)["rows"][0][8] == 0


@pytest.mark.parametrize(
    "plan", [Stream(1, 3), Rounds(4), Worded(Stream(1, 3), lambda task: {})], ids=["stream", "rounds", "worded"]
)
def test_an_evaluator_is_refused_where_there_are_no_evaluations(plan: Plan) -> None:
    run = evaluator(Run(plan), "e")
    [refused] = run.said("e", Refused)
    assert (refused.final, run.all(Admit)) == (True, [])
    assert "eval_every=50" in refused.reason


def test_an_evaluator_at_work_does_not_hide_that_a_version_lacks_a_contribution() -> None:
    run = turn(evaluator(streaming(), "e").join("a", "b"), 2)
    assert (kinds(run, "e"), kinds(run, "a"), kinds(run, "b")) == (["evaluate"], ["train"], ["train"])
    [mine], [theirs] = run.tasks["a"], run.tasks["b"]
    run.send("b", theirs).send("a", mine)  # for versions 3 and 4
    run.event(Lost(b"b", "died", dead=True)).event(Unfit(theirs, "not finite"))
    assert kinds(run, "a") == ["train"]


def test_the_session_of_an_evaluator_says_so_and_leaves_a_coordinator_that_has_it_train() -> None:
    session = Session(b"12345678", hello("e", "host", 1, (), evaluates=True), "tcp://here:1", 0.0)
    [said] = session.handle(events.Tick(), 1.0)
    assert isinstance(said, effects.Say)
    assert said.envelope.message == Hello(PROTOCOL, "e", "host", 1, (), evaluates=True)
    welcomed = session.handle(events.Heard(Envelope(b"12345678", 7, Welcome("run", -1, 0.25, 10.0, "host", ()))), 1.0)
    assert effects.Note("joined tcp://here:1 as an evaluator") in welcomed

    def told(assign: Assign) -> list[effects.Effect]:
        return session.handle(events.Heard(Envelope(b"12345678", 7, assign)), 1.0)

    assert told(Assign((0, 1), 1, (0,), "evaluate", False, counts=False)) == []  # it waits for weights
    assert told(Assign((0, 2), 1, (0,), "train", False))[-1] == effects.Leave(OLDER, failed=True)
