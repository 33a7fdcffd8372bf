"""Facts about what is decided between the sockets and the core: whose line, whose arrays, which way, and until when.

No sockets, no arrays but their number of bytes, and a clock wound by hand.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any, TypeVar

import pytest

from shoal.coordinator.deciding import traffic
from shoal.coordinator.deciding.bounds import Bounds, Goal
from shoal.coordinator.deciding.claims import OF_A_KEY, OF_ALL, Figures
from shoal.coordinator.deciding.core import Core
from shoal.coordinator.deciding.deeds import (
    Deed,
    Describe,
    Ended,
    Greet,
    Happening,
    LetGo,
    Open,
    Opened,
    Ship,
    Store,
    Stored,
)
from shoal.coordinator.deciding.events import Briefed, Fold, Folded, Heard, Interrupt, Lost, Send, Step, Stepped, Tick, Unfit
from shoal.coordinator.deciding.lanes import Lanes
from shoal.coordinator.deciding.plans import Asked, Plan
from shoal.coordinator.deciding.plans.rounds import Rounds
from shoal.coordinator.deciding.plans.stream import Stream
from shoal.coordinator.deciding.promises import Promise
from shoal.coordinator.deciding.recovered import Recovered
from shoal.coordinator.deciding.traffic import Premises, Traffic
from shoal.coordinator.reports import Report
from shoal.coordinator.tally import Tally
from shoal.protocol.fetching import LEAST, PROBE, UNKNOWN
from shoal.protocol.messages import (
    PROTOCOL,
    WHOLE,
    Ask,
    Assign,
    Chunk,
    Contribute,
    Envelope,
    Have,
    Hello,
    Message,
    Ready,
    Refused,
    Verdict,
    Want,
    Weights,
    Welcome,
)
from shoal.protocol.work import Task

E = TypeVar("E")
MODEL, WORK, INLINE = 10 * LEAST, 2 * LEAST, 100


@dataclass(frozen=True)
class Bytes:
    nbytes: int


@dataclass
class Changes:
    """What changed since these versions, in so many bytes."""

    known: dict[int, int]

    def since(self, version: int) -> Bytes | None:
        return Bytes(self.known[version]) if version in self.known else None


class Slots:
    """Slots of shared memory that note what they hear. slot: the place of all weights, () if they lie in none."""

    def __init__(self) -> None:
        self.slot: tuple[int, ...] = (1, 2, 3)
        self.heard: list[tuple[Any, ...]] = []

    def lend(self, session: bytes, version: int) -> tuple[int, ...]:
        return self.slot

    def keep(self, session: bytes, version: int) -> None:
        self.heard.append(("keep", session, version))

    def moved_on(self, session: bytes, using: int | None) -> None:
        self.heard.append(("moved on", session, using))


class Run:
    """A traffic, a clock, and the deeds of what happened last. Actors are called by their names; "a" joins with memory to share
    when it is named so."""

    def __init__(
        self,
        plan: Plan | None = None,
        bounds: Bounds | None = None,
        whole: bool = False,
        model: int = MODEL,
        found: Recovered | None = None,
    ) -> None:
        self.now = 1_000.0
        self.core = Core(plan or Rounds(9), Goal(), bounds or Bounds(), found, now=self.now)
        premises = Premises("run", "host", ("", "key"), (7,), {"layout": WORK, "small": 8}, INLINE, whole, 3 * WORK)
        self.slots = Slots()
        self.traffic = Traffic(self.core, premises, self.slots, 0, Bytes(model), Changes({}))
        self.deeds: list[Deed] = []

    def event(self, event: Happening, after: float = 0.0) -> Run:
        self.now += after
        self.deeds = list(self.traffic.handle(event, self.now))
        return self

    def join(self, *names: str, host: str = "elsewhere", user: str = "", **again: Any) -> Run:
        for number, name in enumerate(names):
            hello = Hello(PROTOCOL, name, host, 100 + number, ("shm",), **again)
            self.event(Heard(name.encode(), Envelope(name.encode(), 0, hello), user=user))
        return self

    def say(self, name: str, message: Message, *, line: str = "", arrays: int = -1, user: str = "", epoch: int = 1) -> Run:
        """Over the actor's connection for words, or over another line."""
        envelope = Envelope(name.encode(), epoch, message)
        payload = None if arrays < 0 else Bytes(arrays)
        return self.event(Heard((line or name).encode(), envelope, user=user, arrays=payload))

    def tick(self, after: float = 0.0) -> Run:
        return self.event(Tick(), after)

    def all(self, kind: type[E]) -> list[E]:
        return [deed for deed in self.deeds if isinstance(deed, kind)]

    def said(self, kind: type[E]) -> list[tuple[bytes, E]]:
        sent = [(one.peer, one.envelope.message) for one in self.deeds if isinstance(one, Send | Ship | Greet)]
        return [(peer, message) for peer, message in sent if isinstance(message, kind)]

    def verdicts(self) -> list[str]:
        return [verdict.verdict for _, verdict in self.said(Verdict)]

    def arrived(self, name: str) -> Run:
        return self.say(name, Have(0))

    def work(self, name: str, at: int = 0, **claims: Any) -> Contribute:
        """Of the actor's oldest task, or one after it."""
        lease = self.core.facts.ledger.leases[sorted(self.core.facts.roster.actors[name.encode()].tasks)[at]]
        done = Contribute(lease.name, lease.attempt, 0, 1.0, "layout", False, {}, {}, 0.0, 1.0, nbytes=WORK)
        return replace(done, **claims)

    def fetch(self, name: str) -> Run:
        """Everything that this actor is asked for comes by its line, until its contribution is whole."""
        while not self.all(Fold):
            wants = self.said(Want) or self.tick(0.01).said(Want)
            assert wants
            for _, want in wants:
                self.piece(name, want)
        return self

    def piece(self, name: str, want: Want) -> Run:
        nbytes = want.last - want.first
        self.say(name, Chunk(want.what, want.first, want.last), line=f"lane of {name}", arrays=nbytes if nbytes else -1)
        for store in self.all(Store):
            store.delivery.arrays = [*(store.delivery.arrays or []), (store.first, store.piece)]
            self.event(Stored(store.delivery))
        return self


def fetching(*names: str) -> Run:
    """Each of these has announced a contribution, and was asked for its first bytes over its line for arrays."""
    run = Run().join(*names)
    for name in names:
        run.arrived(name).say(name, Ready(), line=f"lane of {name}").say(name, run.work(name))
    return run.tick()


# Hellos


def test_a_key_that_says_hello_as_ever_new_sessions_costs_so_many_welcomes_and_no_more() -> None:
    run, welcomed, told = Run(), 0, 0
    for number in range(1_000):
        session = number.to_bytes(8, "big")
        hello = Envelope(session, 0, Hello(PROTOCOL, "x", "", 1, ()))
        run.event(Heard(b"one connection", hello, user="liar"), after=0.001)
        welcomed, told = welcomed + len(run.all(Greet)), told + sum(one.kind == "budget" for one in run.all(Report))
    assert (welcomed, welcomed + told) == (11, 1_000)  # 10 saved up, and 2 a second
    for number in range(1_000):
        hello = Envelope(number.to_bytes(8, "big"), 0, Hello(PROTOCOL, "x", "", 1, ()))
        run.event(Heard(b"connection %d" % number, hello, user="liar"), after=0.001)
        welcomed += len(run.all(Greet))
    assert welcomed <= 251  # 200 saved up by the key, 20 a second, and the first 11 once more, as they come back
    assert run.join("b", user="honest").all(Greet)
    assert run.join("c", user="key").all(Greet)  # of this machine


def test_after_a_restart_every_actor_of_a_key_that_a_promise_is_of_is_back_in_time() -> None:
    names = [f"actor {number}" for number in range(400)]
    promises = [
        Promise(Task(0, number, (number,)), (number,), 65_537, name.encode(), 0, 0, "digest")
        for number, name in enumerate(names)
    ]
    plan = Rounds(500, asked=Asked(done={0: set(range(400))}, first={0: 400}))
    run = Run(plan, Bounds(retain=1 << 30, back=2.0), found=Recovered(epoch=1, promises=promises))
    assert sum(len(run.join(name, user="one").all(Greet)) for name in names) == 400
    for number, name in enumerate(names):
        offered = Contribute((0, number), 65_537, 0, 1.0, "layout", False, {}, {}, 0.0, 1.0, nbytes=WORK, digest="digest")
        run.say(name, offered, user="one", epoch=2)
    assert "recall" not in {report.kind for report in run.tick(after=2.1).all(Report)}
    assert run.core.facts.ledger.promised.total() == 400
    for greeting in (1, 2):  # the next Hello of each is one that comes back, and the others are within the budget of the key
        again = sum(len(run.join(name, user="one", greeting=greeting).all(Greet)) for name in names)
        assert again == 400 if greeting == 1 else 200 <= again <= 250
    assert sum(len(run.join(f"stranger {number}", user="one").all(Greet)) for number in range(99)) == 0


def test_all_actors_of_a_key_come_back_at_once_after_a_cut_of_their_link_and_a_flood_of_them_has_a_bound() -> None:
    names = [f"actor {number}" for number in range(600)]
    run = Run()
    for name in names:
        assert run.tick(after=0.1).join(name, user="one").all(Greet)
    for name in names:
        run.event(Lost(name.encode(), "lost its connection"))
    run.tick(after=8.0)
    assert sum(len(run.join(name, user="another", greeting=1).all(Greet)) for name in names[:300]) <= 200  # its own budget
    assert sum(len(run.join(name, user="one", greeting=1).all(Greet)) for name in names[300:]) == 300
    answered = 0
    for second in range(100):
        for name in names[300:]:
            answered += len(run.join(name, user="one", greeting=2 + second).all(Greet))
        run.tick(after=1.0)
    assert answered <= 200 + 100 * (20 + 300 / 20) + 300


def test_a_key_has_only_so_many_actors_here(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(traffic, "SESSIONS", 3)
    run = Run()
    places = [len(run.join(name, user="liar").all(Greet)) for name in ("a", "b", "c", "d", "a")]
    assert places == [1, 1, 1, 0, 1]
    assert run.join("e", user="honest").all(Greet)
    assert run.event(Lost(b"a", "is gone", dead=True)).join("d", user="liar").all(Greet)


@pytest.mark.parametrize("strict", [False, True])
def test_an_actor_with_another_job_file_is_told_of_and_refused_where_the_coordinator_is_strict(strict: bool) -> None:
    run = Run()
    run.traffic.premises = replace(run.traffic.premises, job="ours", strict=strict)
    for same in ("ours", ""):
        assert run.join(f"same {same}", user="key of it", job=same).all(Greet)
        assert "differs" not in {report.kind for report in run.all(Report)}
    run.join("another", user="key of it", job="theirs")
    assert [report.kind for report in run.all(Report)][:1] == ["differs"]
    assert bool(run.all(Greet)) is not strict
    assert [(said.final, "differs from the coordinator's" in said.reason) for _, said in run.said(Refused)] == [
        (True, True)
    ] * strict
    again = run.join("another", user="key of it", job="theirs", greeting=1)  # it says Hello until it hears
    assert "differs" not in {report.kind for report in again.all(Report)}
    assert bool(again.said(Refused)) is strict


def test_an_actor_with_another_number_of_threads_is_told_of_once() -> None:
    run = Run()
    run.traffic.premises = replace(run.traffic.premises, threads=2)
    for name, threads in (("same", 2), ("silent", 0)):
        assert [report.kind for report in run.join(name, threads=threads).all(Report)] == ["joined"]
    first = run.join("other", threads=8)
    assert [report.kind for report in first.all(Report)] == ["threads", "joined"]
    assert "other computes with 8 threads, and the run with 2" in first.all(Report)[0].text
    assert run.all(Greet)  # it works all the same
    again = run.join("other", threads=8, greeting=1, epoch=1)
    assert (len(again.all(Greet)), "threads" in {report.kind for report in again.all(Report)}) == (1, False)


# Monitors


def asks(run: Run, peer: bytes = b"monitor", user: str = "", after: float = 0.0) -> Run:
    return run.event(Heard(peer, Envelope(b"its own", 0, Ask(PROTOCOL)), user=user), after)


def test_a_monitor_is_answered_and_gets_no_place() -> None:
    run = asks(Run().join("a"))
    assert run.deeds == [Describe(b"monitor", b"its own")]
    assert list(run.core.facts.roster.actors) == [b"a"]


def test_a_monitor_is_answered_after_the_end_too() -> None:
    run = Run().join("a").event(Interrupt("stopped by SIGINT"))
    assert asks(run).deeds == [Describe(b"monitor", b"its own")]
    assert run.core.facts.farewell.waits(run.now)


def test_a_key_has_so_many_answers_and_no_fewer_hellos_for_them() -> None:
    run = Run()
    answers = sum(bool(asks(run, user="curious", after=0.001).deeds) for _ in range(1_000))
    assert answers == 11  # 10 saved up, and 2 a second
    answers = sum(bool(asks(run, b"line %d" % number, "curious", 0.001).deeds) for number in range(1_000))
    assert answers <= 240
    assert run.join("b", user="curious").all(Greet)
    assert asks(run, user="key").deeds  # of this machine


# Contributions


BIG = 1.7e308
HARD: dict[str, tuple[dict[str, tuple[float, float]], dict[str, tuple[float, ...]]]] = {
    "samples of both infinities": ({}, {"return": (math.inf, -math.inf)}),
    "samples whose sum overflows": ({}, {"return": (BIG, BIG), "length": (1.0, 1.0)}),
    "a sample of NaN": ({}, {"length": (math.nan,)}),
    "a total of NaN": ({"loss": (math.nan, 1.0)}, {}),
    "totals whose sum overflows": ({"loss": (BIG, 1.0)}, {}),
    "a long name": ({"x" * 65: (1.0, 1.0)}, {}),
    "a name that moves the cursor": ({"\x1b[2J": (1.0, 1.0)}, {}),
}


@pytest.mark.parametrize("name", HARD)
def test_figures_that_are_no_good_are_dropped_and_told_and_the_work_counts(name: str) -> None:
    totals, samples = HARD[name]
    run = Run(Stream(2, 9)).join("a").arrived("a")
    tally = Tally()
    for _ in range(2):
        figures: dict[str, Any] = {"totals": {**totals, "good": (4.0, 2.0)}, "samples": {**samples, "seen": (1.0,)}}
        done = replace(run.work("a", layout="small", nbytes=0), **figures)
        run.say("a", done, arrays=8)
        [fold] = run.all(Fold)
        assert [report.kind for report in run.all(Report)] == ["figures"]
        tally.train(fold.message, 0)
        tally.evaluate(fold.message)
        run.event(Folded(done.task))
        assert run.verdicts() == ["accepted"]
    metrics = tally.flush()
    assert all(map(math.isfinite, metrics.values()))
    assert (metrics["good"], metrics["eval/good"], metrics["eval/seen"]) == (2.0, 2.0, 1.0)
    assert not {f"eval/{name}" for name in (*totals, *samples)} & metrics.keys()


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf, BIG, -BIG])
def test_a_figure_that_is_no_good_is_dropped_also_under_a_name_that_is_known(bad: float) -> None:
    figures, work = Figures(), Contribute((0, 0), 1, 0, 1.0, "", False, {}, {}, 0.0, 0.0)
    good = replace(work, totals={"loss": (2.0, 1.0)}, samples={"return": (3.0,)})
    assert figures.sound(good, "honest") == figures.sound(good, "honest") == (good, "")
    for message in (replace(good, totals={"loss": (bad, 1.0)}), replace(good, samples={"return": (3.0, bad)})):
        sound, why = figures.sound(message, "honest")
        assert sound == replace(
            message, **{part: {} for part in ("totals", "samples") if getattr(message, part) != getattr(good, part)}
        )
        assert "is not finite, or above 2**500" in why


def test_figures_and_names_at_the_very_bounds_are_taken() -> None:
    figures, work = Figures(), Contribute((0, 0), 1, 0, 1.0, "", False, {}, {}, 0.0, 0.0)
    most = replace(work, totals={"x" * 64: (2.0**500, 1.0), "y": (-(2.0**500), 1.0)}, samples={"z": (-(2.0**500), 2.0**500)})
    assert figures.sound(most, "honest") == figures.sound(most, "honest") == (most, "")


def test_this_users_own_names_of_metrics_are_all_kept_and_take_no_place_of_others() -> None:
    figures, work = Figures(("",)), Contribute((0, 0), 1, 0, 1.0, "", False, {}, {}, 0.0, 0.0)
    many = {f"own/layer {number}": (1.0, 1.0) for number in range(2_000)}
    own = replace(work, totals=many, samples={f"own-{number}": (1.0,) for number in range(200)})
    assert figures.sound(own, "") == figures.sound(own, "") == (own, "")
    bad = figures.sound(replace(own, totals={**many, "bad": (math.nan, 1.0)}), "")
    assert (bad[0], "is not finite" in bad[1]) == (own, True)
    stranger = replace(work, totals={f"strange-{number}": (1.0, 1.0) for number in range(OF_A_KEY + 1)})
    assert len(figures.sound(stranger, "key of it")[0].totals) == OF_A_KEY


def test_actors_of_this_machine_are_known_to_traffic_as_this_users() -> None:
    run = Run().join("a").arrived("a")
    work = run.work("a", totals={f"own-{number}": (1.0, 1.0) for number in range(OF_A_KEY + 9)})
    assert "figures" not in {report.kind for report in run.say("a", work).all(Report)}


def test_one_key_brings_only_so_many_names_of_metrics_and_takes_none_from_others() -> None:
    figures, work = Figures(), Contribute((0, 0), 1, 0, 1.0, "", False, {}, {}, 0.0, 0.0)
    kept: set[str] = set()
    for turn in range(100):
        liar = replace(work, totals={f"liar-{turn}-{number}": (1.0, 1.0) for number in range(30)})
        kept |= figures.sound(liar, "liar")[0].totals.keys()
    assert len(kept) == OF_A_KEY
    honest = replace(work, totals={"loss": (1.0, 1.0)})
    assert figures.sound(honest, "honest") == (honest, "")
    told = figures.sound(replace(work, samples={"more": (1.0,)}), "liar")[1]
    assert "'more' is one name of a metric too many" in told
    for key in range(100):
        figures.sound(replace(work, totals={f"{key}-{number}": (1.0, 1.0) for number in range(30)}), str(key))
    assert len(figures.names) == OF_ALL


def test_a_small_contribution_goes_to_the_learner_with_what_came_with_it() -> None:
    run = Run().join("a").arrived("a")
    done = run.work("a", layout="small", nbytes=0)
    run.say("a", done, arrays=8)
    assert [fold.message for fold in run.all(Fold)] == [done]
    delivery = run.traffic.deliveries[done.task]
    assert (delivery.state, delivery.arrays, delivery.lag) == ("folding", Bytes(8), 0)
    run.event(Folded(done.task))
    assert (run.verdicts(), run.all(LetGo), run.traffic.deliveries) == (["accepted"], [], {})


def test_a_large_contribution_is_fetched_by_its_actors_line_and_let_go_of_once_it_is_folded_in() -> None:
    run = fetching("a")
    [(peer, want)] = run.said(Want)
    assert (peer, want.first, want.last) == (b"lane of a", *PROBE)
    done = run.work("a")
    run.fetch("a")
    assert [fold.message for fold in run.all(Fold)] == [done]
    delivery = run.traffic.deliveries[done.task]
    assert sorted(delivery.arrays) == [(0, Bytes(LEAST)), (LEAST, Bytes(LEAST))]
    run.event(Folded(done.task))
    assert run.all(LetGo) == [LetGo(delivery)]
    assert (run.traffic.deliveries, run.traffic.receiving.held) == ({}, 0)


def test_one_that_the_learner_refuses_is_let_go_of_and_the_actor_is_told() -> None:
    run = fetching("a").fetch("a")
    run.event(Unfit(run.all(Fold)[0].message.task, "not finite"))
    assert run.verdicts() == ["refused"]
    assert len(run.all(LetGo)) == 1
    assert run.traffic.deliveries == {}


def test_said_again_while_it_is_fetched_it_is_fetched_on() -> None:
    run = fetching("a")
    delivery = run.traffic.deliveries[run.work("a").task]
    run.say("a", run.work("a"))
    assert run.traffic.deliveries[delivery.task] is delivery
    assert run.tick(0.01).said(Want) == []  # what was asked for is under way


def test_said_again_while_it_is_with_the_learner_it_is_not_taken_twice() -> None:
    run = fetching("a")
    done = run.work("a")
    delivery = run.fetch("a").traffic.deliveries[done.task]
    for message, arrays in ((done, -1), (replace(done, nbytes=0), WORK)):
        run.say("a", message, arrays=arrays)
        assert (run.all(Fold), run.all(LetGo), run.verdicts()) == ([], [], [])
        assert run.traffic.deliveries[done.task] is delivery
    assert delivery.state == "folding"


def test_what_another_says_of_a_task_leaves_what_is_fetched_of_it_alone() -> None:
    run = fetching("a", "b")
    done = run.work("a")
    delivery = run.traffic.deliveries[done.task]
    for message, arrays in ((done, -1), (replace(done, nbytes=0), WORK), (replace(done, attempt=3), -1)):
        run.say("b", message, arrays=arrays)
        assert run.verdicts() == ["stale"]
        assert (run.traffic.deliveries[done.task], delivery.state) == (delivery, "fetching")


def test_all_of_it_at_once_takes_the_place_of_what_is_fetched() -> None:
    run = fetching("a")
    run.piece("a", run.said(Want)[0][1])
    run.piece("a", run.tick(0.01).said(Want)[0][1])
    before, done = run.traffic.deliveries[run.work("a").task], run.work("a", nbytes=0)
    run.say("a", done, arrays=WORK)
    assert (len(run.all(Fold)), run.all(LetGo)) == (1, [LetGo(before)])
    assert run.traffic.deliveries[done.task].arrays == Bytes(WORK)
    assert run.traffic.receiving.held == 0


def test_what_is_not_wanted_any_more_is_let_go_of_in_the_middle() -> None:
    run = fetching("a", "b")
    run.piece("a", next(want for peer, want in run.said(Want) if peer == b"lane of a"))
    run.piece("a", run.tick(0.01).said(Want)[0][1])
    delivery = run.traffic.deliveries[run.work("a").task]
    run.event(Lost(b"a", "ended", dead=True))
    assert [deed for deed in run.deeds if isinstance(deed, LetGo)] == [LetGo(delivery)]
    assert run.slots.heard[-1] == ("moved on", b"a", None)
    assert run.tick(1.0).said(Want) == []


def test_an_evaluation_goes_to_the_statistics_and_is_accepted() -> None:
    run = Run(Rounds(3, evaluate_every=1, evaluate_cohort=1), Bounds(ahead=4)).join("a").arrived("a")
    tasks = [run.core.facts.ledger.leases[task].task for task in sorted(run.core.facts.roster.actors[b"a"].tasks)]
    [at] = [at for at, task in enumerate(tasks) if not task.counts]
    done = run.work("a", at, layout="", nbytes=0)
    run.say("a", done)
    assert ([(fold.message, fold.task.counts) for fold in run.all(Fold)], run.verdicts()) == ([(done, False)], ["accepted"])
    assert run.traffic.deliveries == {}


@pytest.mark.parametrize(
    ("claims", "arrays", "why"),
    [
        ({"layout": "other"}, -1, "is none of this run's (layout, small)"),
        ({"layout": "small"}, -1, f"{WORK} bytes of arrays where its layout has 8"),
        ({"nbytes": 0}, 7, f"7 bytes of arrays where its layout has {WORK}"),
        ({"nbytes": 0}, -1, f"0 bytes of arrays where its layout has {WORK}"),
        ({"layout": ""}, -1, "arrays without a layout"),
        ({"slot": (1, 2)}, WORK, "shared memory, where none was offered"),
    ],
)
def test_arrays_that_are_not_those_of_a_contribution_are_refused(claims: dict[str, Any], arrays: int, why: str) -> None:
    run = Run().join("a").arrived("a")
    run.say("a", run.work("a", **claims), arrays=arrays)
    [(_, verdict)] = run.said(Verdict)
    assert (verdict.verdict, why in verdict.reason) == ("refused", True)
    assert run.traffic.deliveries == {}


def test_where_the_disk_takes_no_piece_a_contribution_is_fetched_anew_when_it_is_said_again() -> None:
    run = fetching("a")
    done = run.work("a")
    run.piece("a", run.said(Want)[0][1])
    [(_, want)] = run.tick(0.01).said(Want)
    run.say("a", Chunk(want.what, want.first, want.last), line="lane of a", arrays=LEAST)
    [store] = run.all(Store)
    run.event(Stored(store.delivery, "the disk is full"))
    assert [report.text for report in run.all(Report)] == ["the disk is full: a contribution of a waits until there is room"]
    assert (run.traffic.deliveries, run.traffic.receiving.held) == ({}, 0)
    run.say("a", done).tick(0.01)
    assert [want.first for _, want in run.said(Want)] == [0]


# In shared memory


def sharing(*names: str) -> Run:
    run = Run().join(*names, host="host")
    for name in names:
        run.arrived(name)
    return run


def test_who_is_of_this_machine_is_offered_its_memory_and_others_are_not() -> None:
    [(_, welcome)] = Run().join("a", host="host").said(Welcome)
    assert (welcome.host, welcome.shares) == ("host", (7,))
    assert Run().join("a").said(Welcome)[0][1].shares == ()
    assert Run().join("a", host="host", user="key").said(Welcome)[0][1].shares == (7,)
    assert Run().join("a", host="host", user="another key").said(Welcome)[0][1].shares == ()


def test_arrays_in_shared_memory_are_opened_before_they_are_judged_and_let_go_of_after() -> None:
    run = sharing("a")
    done = run.work("a", slot=(1, 2), nbytes=0)
    [asked] = run.say("a", done).all(Open)
    assert (asked.message, run.all(Fold)) == (done, [])
    run.event(Opened(asked, Bytes(WORK)))
    assert (run.deeds, run.slots.heard[-1]) == (run.all(Fold), ("moved on", b"a", 0))
    assert run.say("a", done).deeds == []  # said again, it is not opened again
    delivery = run.traffic.deliveries[done.task]
    assert run.event(Folded(done.task)).all(LetGo) == [LetGo(delivery)]


def test_what_is_wrong_with_shared_memory_is_told_to_the_actor() -> None:
    run = sharing("a")
    [asked] = run.say("a", run.work("a", slot=(1, 2), nbytes=0)).all(Open)
    run.event(Opened(asked, None, "shared memory: no such slot"))
    assert [verdict.reason for _, verdict in run.said(Verdict)] == ["shared memory: no such slot"]
    assert run.all(LetGo) == []


def test_arrays_that_nobody_wants_are_let_go_of_at_once() -> None:
    run = sharing("a", "b")
    [asked] = run.say("b", run.work("a", slot=(1, 2), nbytes=0)).all(Open)
    run.event(Opened(asked, Bytes(WORK)))
    assert (run.verdicts(), len(run.all(LetGo))) == (["stale"], 1)


def test_a_slot_that_the_learner_reads_is_not_opened_for_anyone() -> None:
    run = sharing("a", "b")
    done = run.work("a", slot=(1, 2), nbytes=0)
    run.event(Opened(run.say("a", done).all(Open)[0], Bytes(WORK)))
    run.say("b", run.work("b", slot=(1, 2), nbytes=0))
    assert (run.all(Open), run.verdicts()) == ([], ["refused"])


# Lines


@pytest.mark.parametrize("told", [Ready(), Chunk((0, 0, 65537), *PROBE), Want((0,), 0, 10)])
def test_a_line_under_another_key_or_of_an_earlier_life_is_not_believed(told: Message) -> None:
    run = Run().join("a", user="key").say("a", Have(0), user="key")
    run.say("a", run.work("a"), user="key").tick()
    for user, epoch in (("another key", 1), ("", 1), ("key", 0), ("key", 2)):
        run.say("a", told, line="lane of a", user=user, epoch=epoch)
        assert (run.deeds, run.traffic.lanes.by_session) == ([], {})
    run.say("a", told, line="lane of a", user="key")
    assert run.traffic.lanes.by_session == {b"a": b"lane of a"}


def test_after_ready_what_was_under_way_is_asked_for_again_on_the_new_line() -> None:
    run = fetching("a")
    run.say("a", Ready(), line="another lane").tick(0.01)
    assert [(peer, want.first, want.last) for peer, want in run.said(Want)] == [(b"another lane", *PROBE)]


def test_a_line_that_is_lost_or_was_asked_in_vain_is_asked_no_more() -> None:
    run = fetching("a").event(Lost(b"lane of a", "cannot be reached"))
    assert run.traffic.lanes.by_session == {}
    assert b"a" in run.core.facts.roster.actors  # its other line is not lost
    run = fetching("a")
    for _ in range(int(UNKNOWN) - 1):
        assert run.arrived("a").tick(1.0).said(Want) == []
    run.arrived("a").tick(2.0)
    assert [peer for peer, _ in run.said(Want)] == [b"a"]


def test_the_line_of_one_connection_is_one_sessions() -> None:
    lanes = Lanes()
    lanes.take(b"a", b"one")
    lanes.take(b"a", b"two")
    lanes.lost(b"one")
    assert lanes.by_session == {b"a": b"two"}
    lanes.take(b"b", b"two")
    assert lanes.by_session == {b"b": b"two"}
    lanes.lost(b"two")
    assert lanes.by_session == {}


def test_of_who_is_gone_nothing_is_kept() -> None:
    run = fetching("a")
    run.event(Lost(b"a", "ended", dead=True))
    traffic = run.traffic
    kept = (traffic.lanes.by_session, traffic.receiving._ways, traffic.serving._readers, traffic.sharers, traffic.deliveries)
    assert not any(kept)


def test_a_process_of_this_machine_that_ends_is_lost_at_once() -> None:
    run = Run().join("a", "b", host="host")
    assert run.event(Ended(100)).slots.heard == [("moved on", b"a", None)]
    assert run.event(Ended(100)).deeds == []
    assert Run().join("a").event(Ended(100)).deeds == []  # a number that another machine told


# Weights


def test_large_weights_are_announced_and_fetched_by_who_was_told_of_them() -> None:
    run = Run().join("a")
    assert run.said(Weights) == [(b"a", Weights(0, (), MODEL))]
    run.say("a", Want((0,), 0, 10), line="lane of a")
    assert run.all(Ship) == [Ship(b"lane of a", Envelope(b"a", 1, Chunk((0,), 0, 10)), Bytes(MODEL), 0, 10)]
    run.arrived("a").say("a", Want((0,), 0, 10), line="lane of a")
    assert run.all(Ship) == []  # it has them


def test_small_weights_go_with_their_message() -> None:
    [ship] = [deed for deed in Run(model=INLINE).join("a").all(Ship) if isinstance(deed.envelope.message, Weights)]
    assert (ship.envelope.message, ship.arrays, ship.first, ship.last) == (Weights(0), Bytes(INLINE), 0, INLINE)


def stepped(run: Run, changes: dict[int, int]) -> Run:
    """The next version is there."""
    for task in sorted(run.core.facts.roster.actors[b"a"].tasks)[:1]:
        run.say("a", run.work("a", layout="small", nbytes=0), arrays=8).event(Folded(task))
    [step] = run.all(Step)
    run.traffic.publish(step.version, Bytes(MODEL), Changes(changes))
    return run.event(Stepped(step.version, {}))


def test_weights_go_as_what_changed_to_who_holds_a_version_of_lately() -> None:
    run = Run(Stream(1, 9)).join("a").arrived("a")
    assert [weights for _, weights in stepped(run, {0: 10}).said(Weights)] == [Weights(1, base=0)]
    run = Run(Stream(1, 9)).join("a").arrived("a")
    assert [weights for _, weights in stepped(run, {0: LEAST}).said(Weights)] == [Weights(1, (), LEAST, 0)]
    run.say("a", Want((1, 0), 0, 10), line="lane of a")
    assert [ship.arrays for ship in run.all(Ship)] == [Bytes(LEAST)]
    run = Run(Stream(1, 9)).join("a").arrived("a")
    assert [weights for _, weights in stepped(run, {}).said(Weights)] == [Weights(1, (), MODEL, WHOLE)]
    run = Run(Stream(1, 9), whole=True).join("a").arrived("a")
    assert [weights for _, weights in stepped(run, {0: 10}).said(Weights)] == [Weights(1, (), MODEL, WHOLE)]


def test_weights_of_this_machine_are_lent_and_go_by_the_socket_where_they_cannot_be() -> None:
    run = Run()
    assert run.join("a", host="host").said(Weights) == [(b"a", Weights(0, (1, 2, 3)))]
    run.slots.slot = ()
    assert run.join("b", host="host").said(Weights) == [(b"b", Weights(0, (), MODEL))]


def test_weights_that_rest_keep_their_slot_under_a_new_number() -> None:
    run = sharing("a", "b")
    run.traffic.publish(1, Bytes(MODEL), Changes({}))
    run.event(Stepped(1, {}, moved=False))
    assert run.said(Weights) == [(name, Weights(1, base=0)) for name in (b"a", b"b")]
    assert run.slots.heard[-2:] == [("keep", b"a", 1), ("keep", b"b", 1)]


def test_only_the_actor_itself_says_which_weights_it_reads() -> None:
    run = Run().join("a", "b", host="host")
    for line, user, epoch in (("b", "", 1), ("a", "key", 1), ("a", "", 2)):
        run.say("a", Have(0, 9), line=line, user=user, epoch=epoch)
    assert run.slots.heard == []
    run.say("a", Have(0, 9))
    assert run.slots.heard == [("moved on", b"a", 9)]


# Briefs


def briefed(nbytes: int) -> Run:
    """The brief of a's task is made, and told with it."""
    run = Run(bounds=Bounds(briefs=True, ahead=1)).join("a").arrived("a")
    [lease] = run.core.facts.ledger.leases.values()
    return run.event(Briefed(lease.name, lease.attempt, "layout", Bytes(nbytes)), after=0.5)


def test_a_small_brief_goes_with_its_task_and_is_no_sign_that_the_actor_lives() -> None:
    run = briefed(INLINE)
    [ship] = run.all(Ship)
    assert isinstance(ship.envelope.message, Assign)
    assert (ship.envelope.message.nbytes, ship.arrays) == (0, Bytes(INLINE))
    [lease] = run.core.facts.ledger.leases.values()
    assert lease.left == 0
    assert run.core.facts.roster.heard_at(run.core.facts.roster.actors[b"a"]) == run.now - 0.5


def test_a_large_brief_is_fetched_by_who_has_the_task() -> None:
    run = briefed(MODEL).join("b")
    lease = next(iter(run.core.facts.ledger.leases.values()))
    what = (*lease.name, lease.attempt)
    run.say("a", Want(what, 0, LEAST), line="lane of a")
    assert [(ship.peer, ship.arrays, ship.last) for ship in run.all(Ship)] == [(b"lane of a", Bytes(MODEL), LEAST)]
    assert lease.left == MODEL - LEAST
    for name, asked in (("b", what), ("a", (*lease.name, lease.attempt + 1)), ("a", (9, 9, lease.attempt))):
        assert run.say(name, Want(asked, 0, LEAST), line=f"lane of {name}").all(Ship) == []
    assert run.say("a", Want(what, 0, MODEL + 1), line="lane of a").all(Ship) == []


def test_an_actor_that_comes_back_idle_has_its_brief_still_to_come() -> None:
    run = briefed(INLINE)
    [lease] = run.core.facts.ledger.leases.values()
    run.join("a", greeting=1, epoch=1, busy=True)
    assert lease.left == 0
    run.join("a", greeting=2, epoch=1)
    assert (len(run.all(Ship)), lease.left) == (1, 0)  # it goes along again
    run = briefed(MODEL)
    [lease] = run.core.facts.ledger.leases.values()
    run.say("a", Want((*lease.name, lease.attempt), MODEL - LEAST, MODEL), line="lane of a")
    assert lease.left == 0
    assert run.join("a", greeting=1, epoch=1).core.facts.ledger.leases[lease.name].left == MODEL
