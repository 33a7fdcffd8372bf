"""The setting of one simulated schedule: a plan, bounds, a network, and the faults that the run has to bear.

The one idea: swarm testing. A seed switches most kinds of trouble off, so that the few kinds left can happen often enough, in
every combination, to meet.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from random import Random
from typing import Any

from shoal.coordinator.deciding.bounds import Bounds, Goal
from shoal.coordinator.deciding.plans import Asked, Outcome, Plan, Seats
from shoal.coordinator.deciding.plans.periods import Periods
from shoal.coordinator.deciding.plans.rounds import Rounds
from shoal.coordinator.deciding.plans.stream import Stream
from shoal.protocol.fetching import LEAST
from shoal.protocol.work import Task, Words

PULSE = 2.6  # seconds until a unix socket that pings its peers gives up a connection without an answer
FAULTS = ("cut", "cut line", "crash", "churn", "freeze", "stall", "partition", "hang", "pause", "restart", "restart")
UNLIMITED = 1_000_000  # attempts: so many that no task is ever set aside
RETAIN = 1 << 40  # bytes: so many that actors keep all accepted contributions that are in no snapshot


@dataclass(frozen=True, slots=True)
class Schedule:
    """The plan of a run, by name and numbers. quorum, deadline, cohort, summed: of rounds; batch, max_lag: of a stream."""

    streams: bool
    clients: int
    cohort: int = 1
    quorum: int = 0
    deadline: float = 0.0
    summed: bool = False
    batch: int = 1
    max_lag: int = 0
    evaluate_every: int = 0
    seed: int = 0

    def plan(self, asked: Asked) -> Overheard:
        """A fresh plan, as a coordinator makes it at its start."""
        return Overheard(self._bare(asked), self)

    def _bare(self, asked: Asked) -> Plan:
        if self.streams:
            options: dict[str, Any] = {
                "clients": self.clients,
                "seed": self.seed,
                "evaluate_every": self.evaluate_every,
                "asked": asked,
            }
            if self.period:
                return Periods(self.period, self.max_lag, least=self.batch, **options)
            return Stream(self.batch, self.max_lag, **options)
        return Rounds(
            self.clients,
            self.cohort,
            quorum=self.quorum,
            deadline=self.deadline,
            seed=self.seed,
            summed=self.summed,
            evaluate_every=self.evaluate_every,
            evaluate_cohort=self.judges if self.evaluate_every else 0,
            asked=asked,
            spare=self.spare,
        )

    @property
    def period(self) -> float:
        """Return the seconds from one step of a stream to the next; 0 if a step follows the number of contributions."""
        return (0.1, 0.5, 2.0)[self.seed % 3] if self.streams and self.seed % 11 == 5 else 0.0  # no draw of its own

    @property
    def judges(self) -> int:
        """Return the number of clients that evaluate a version in rounds."""
        return 3 if self.seed % 13 == 11 else 2  # no draw of its own

    @property
    def spare(self) -> int:
        """Return the number of clients that a round asks beyond its cohort."""
        over = self.seed % 7 < 2 and not (self.streams or self.summed)  # no draw of its own, like `worded`
        return min(2, self.clients - self.cohort) if over else 0

    @property
    def worded(self) -> bool:
        """Return whether tasks have words, and misleading kinds ("evaluate" for training, "train" for evaluation)."""
        return self.seed % 5 < 2  # no draw of its own, so that the schedules that found bugs stay the same

    def told(self, version: int, counts: bool) -> tuple[str, bool, Words]:
        """Kind, counts and words of a task for this version."""
        kind = "train" if counts != self.worded else "evaluate"
        return (kind, counts, {"lr": [0.5, version]} if self.worded else {})

    @property
    def lag(self) -> int:
        """The most versions that a contribution may be behind; 0 in rounds."""
        return self.max_lag if self.streams else 0


@dataclass(slots=True)
class Overheard:
    """A plan around another, whose tasks get words. heard: outcomes that the plan was told, oldest first, until the audit
    takes them away. newest: newest version of a task that the plan gave. began: time when it gave the first task of that
    version, which may wait for its actor."""

    plan: Plan
    schedule: Schedule
    heard: list[Outcome] = field(default_factory=list)
    asked: bool = False  # whether the plan was asked for tasks since then
    newest: int = -1
    began: float = 0.0

    def assign(self, seats: Seats, news: Sequence[Outcome], version: int, now: float) -> Sequence[Task]:
        self.heard += news
        self.asked = True
        if len({seat.actor for seat in seats}) < sum(1 for _ in seats) or sum(seat.free for seat in seats) != seats.room:
            raise AssertionError(f"{seats.room} places, at {list(seats)}")
        tasks = self.plan.assign(seats, news, version, now)
        if tasks and tasks[0].version > self.newest:
            self.newest, self.began = tasks[0].version, now
        return [self._told(task) for task in tasks]

    def _told(self, task: Task) -> Task:
        kind, _, words = self.schedule.told(task.version, task.counts)
        return replace(task, kind=kind, words=words)

    def admits(self, made_from: int, version: int) -> bool:
        return self.plan.admits(made_from, version)

    def enough(self, folded: int, outstanding: int, version: int, now: float) -> bool:
        return self.plan.enough(folded, outstanding, version, now)


@dataclass(frozen=True, slots=True)
class Weather:
    """The behaviour of network and machines. lost, twice, late: chances, 0 to 1, for each message, if wild; raising, poisoned:
    for each task. delay, every: seconds. liars: actors that lie.

    wild: messages are also lost, repeated and reordered within a connection, which ZeroMQ does not do.
    """

    delay: float
    every: float  # mean time between faults
    faults: tuple[str, ...]
    wild: bool = False
    lost: float = 0.0
    twice: float = 0.0
    late: float = 0.0
    raising: float = 0.0
    poisoned: float = 0.0
    liars: int = 0


@dataclass(frozen=True, slots=True)
class Setting:
    """The properties of a schedule that are decided before it begins.

    journal: off, ids or payload. snapshot_every: seconds between snapshots. step, fold: the most seconds of one step, one fold.
    heal_at: second at which faults end. within: seconds after heal_at, in which the run must move on, and work of every healthy
    actor count.
    """

    schedule: Schedule
    bounds: Bounds
    goal: Goal
    weather: Weather
    actors: int
    journal: str
    snapshot_every: float
    step: float
    fold: float
    heal_at: float
    within: float
    paces: tuple[float, ...] = field(default=(0.1,))  # mean seconds of a task, one pace for each actor
    weights_bytes: int = 0  # bytes of weights that are fetched in pieces; 0: weights go with their message
    changes: bool = False  # whether actors that hold recent weights are sent the changes since
    brief_bytes: int = 0  # bytes of briefs that are fetched in pieces; 0: briefs go with their message
    rests: bool = False  # whether some steps leave the weights as they are
    work_bytes: int = 0  # bytes of contributions that are fetched in pieces; 0: contributions go with their message
    work_room: int = 1  # bytes of contributions that may be fetched at a time
    share: float = 0.0  # share of the time for snapshots; any above 0 is enough for a snapshot of every version
    shares: bool = False  # whether actors in even places share memory with the coordinator
    far: bool = False  # whether actors connect over TCP, if the sockets watch their connections; else over unix sockets
    keyed: bool = False  # whether every actor has a key of its own
    deadly: int = -1  # client whose task ends its actor's process, until the faults end; -1: none

    @property
    def evaluators(self) -> range:
        """Return the places of the actors that do evaluations alone: none, one or two. An honest actor that trains is left."""
        wanted = {3: 1, 7: 1, 11: 2}.get(self.schedule.seed % 13, 0)  # no draw of its own
        places = range(max(self.actors - wanted, self.weather.liars + 1), self.actors)
        return places if self.schedule.evaluate_every else range(0)

    @property
    def brief_nbytes(self) -> int:
        """Bytes of a brief, in pieces or with its message; 0 if there are no briefs."""
        return (self.brief_bytes or 8) * self.bounds.briefs

    @property
    def watch(self) -> tuple[float, float]:
        """Seconds until the coordinator's socket gives up a connection without an answer, and after which it can tell that
        nothing comes; as in Wire."""
        if not self.bounds.watched:
            return math.inf, 0.0
        return (1.25 * self.bounds.patience, self.bounds.hush) if self.far else (PULSE, 0.0)

    @property
    def most(self) -> int:
        """The most tasks that an actor may ever hold."""
        return max(self.bounds.ahead, self.bounds.most)

    @property
    def keeps(self) -> bool:
        """Return whether every actor keeps all its accepted contributions that are in no snapshot."""
        return self.bounds.retain == RETAIN

    @property
    def unlimited(self) -> bool:
        """Return whether no task is ever set aside. Then an actor that always lies about a task, or hangs in it, holds up its
        round for ever."""
        return self.bounds.attempts == UNLIMITED

    @property
    def limited(self) -> bool:
        """Whether a task that hangs has a limit in any case."""
        return self.bounds.lease > 0 or (self.bounds.lease < 0 and self.bounds.first > 0)

    @property
    def unbounded(self) -> bool:
        """Return whether a liar may hold up its round for ever: by lies, or by a task that it never ends, also in silence."""
        return self.unlimited or not self.limited

    @property
    def exact(self) -> bool:
        """Return whether every life of the coordinator must make the same weights of a version."""
        s = self.schedule
        return not (s.streams or s.deadline or s.spare) and self.unlimited

    @property
    def forks(self) -> bool:
        """Return whether two lives may make different weights of one version: if a version is published before it is
        durable."""
        return not self.exact and (self.journal == "off" or not (self.schedule.streams or self.journal == "payload"))


def drawn(rng: Random, seconds: float) -> Setting:
    """A drawn setting, whose faults last about `seconds` seconds."""
    actors = rng.choice((1, 2, 3, 4, 4, 5, 6))
    quickest = rng.choice((0.003, 0.01, 0.03, 0.1))
    paces = tuple(quickest * 16 ** rng.random() for _ in range(actors))
    delay = rng.choice((0.001, 0.001, 0.01, 0.1, 0.3))
    schedule = _schedule(rng)
    bounds = _bounds(rng, schedule, max(paces), delay, actors)
    journal = rng.choice(("off", "ids", "ids", "payload", "payload"))
    work = rng.choice((0, LEAST // 2, 2 * LEAST, 3 * LEAST + 1))
    retain = rng.choice((0, 3 * max(work, 8), RETAIN, RETAIN, RETAIN, RETAIN)) if journal == "ids" else 0
    setting = Setting(
        schedule=schedule,
        bounds=replace(
            bounds,
            retain=retain,
            briefs=schedule.seed % 3 > 0,
            brief_once=schedule.seed % 5 == 0,
            watched=schedule.seed % 4 < 3,
            light=(schedule.seed % 3 == 0 or schedule.seed % 5 == 0) and schedule.seed % 2 > 0,  # without changes
            hush=bounds.patience / (3 + schedule.seed % 2),
        ),  # no draw of its own
        goal=rng.choice((Goal(), Goal(), Goal(), Goal(versions=rng.randint(3, 40)), Goal(steps=rng.randint(20, 400)))),
        weather=_weather(rng, delay, seconds),
        actors=actors,
        journal=journal,
        snapshot_every=rng.choice((0.0, 0.5, 3.0, 30.0, 30.0, 30.0)),
        step=rng.choice((0.002, 0.002, 0.02, 0.3)),
        fold=rng.choice((0.003, 0.1)),
        heal_at=seconds * rng.uniform(0.6, 1.2),
        within=40.0
        + 10 * (bounds.patience + _longest(bounds))
        + 6 * (max(paces) + delay) * (schedule.cohort + schedule.batch + 2),  # by one actor, a task at a time
        paces=paces,
        weights_bytes=rng.choice((0, LEAST // 2, 3 * LEAST)),
        rests=schedule.seed % 4 == 1,
        brief_bytes=(0, LEAST // 2, 2 * LEAST + 1)[schedule.seed % 7 % 3],
        work_bytes=work,
        work_room=rng.choice((1, work, 3 * work)),
        share=rng.choice((0.0, 0.0, 0.0, 1.0)),
        changes=schedule.seed % 2 == 0,  # no draw of its own, so that the schedules that found bugs stay the same
        shares=schedule.seed % 5 < 2,
        far=schedule.seed % 8 < 5,
        keyed=schedule.seed % 4 < 2,
        deadly=0 if schedule.seed % 6 == 1 else -1,
    )
    return _keeping(rng, setting, seconds) if rng.random() < 0.25 else setting


def _keeping(rng: Random, setting: Setting, seconds: float) -> Setting:
    """The setting with a coordinator that dies every few versions, actors that keep all their accepted work (journal ids), and
    few other faults."""
    faults = ("restart", *rng.sample(setting.weather.faults, min(1, len(setting.weather.faults))))
    weather = replace(setting.weather, faults=faults, every=seconds / rng.choice((3, 6)), raising=0.0, poisoned=0.0)
    journal = "payload" if setting.schedule.seed % 3 == 1 else "ids"  # no draw of its own
    bounds, every = replace(setting.bounds, retain=RETAIN * (journal == "ids")), rng.choice((1.0, 3.0, 30.0, 30.0))
    return replace(setting, weather=weather, bounds=bounds, journal=journal, snapshot_every=every, share=0.0, goal=Goal())


def _schedule(rng: Random) -> Schedule:
    clients, seed = rng.choice((3, 12, 20, 50)), rng.randrange(1_000)
    evaluate_every = rng.choice((0, 0, 1, 3))
    if rng.random() < 0.45:
        named = 0 if rng.random() < 0.4 else clients
        batch, max_lag = rng.choice((1, 2, 3, 5, 12)), rng.choice((0, 1, 2, 4, 9))
        return Schedule(True, named, batch=batch, max_lag=max_lag, evaluate_every=evaluate_every, seed=seed)
    cohort = rng.randint(1, min(clients, 12))
    deadline = rng.choice((0.0, 0.0, 0.1, 0.3, 1.0))
    quorum = rng.randint(1, max(1, cohort // 2)) if deadline else 0
    summed = rng.random() < 0.3
    return Schedule(False, clients, cohort, quorum, deadline, summed, evaluate_every=evaluate_every, seed=seed)


def _bounds(rng: Random, schedule: Schedule, pace: float, delay: float, actors: int) -> Bounds:
    sticky = not schedule.streams and not schedule.summed
    ahead = rng.choice((1, 2, 2, 3))
    one = pace * (3 if schedule.summed else 1) + 2 * delay + 0.5  # seconds; a shorter lease is too short for one task
    enough = ahead * pace * (3 if schedule.summed else 1) + 2 * delay + 0.5
    bounds = Bounds(
        ahead=ahead,
        most=rng.choice((0, 0, 4, 12)),
        stock=rng.choice((0.01, 0.5)),
        attempts=rng.choice((UNLIMITED, UNLIMITED, 3)),
        lease=enough * rng.choice((0.0, 0.0, 1.0, 1.0, 4.0)),
        beat=rng.choice((0.1, 0.1, 0.25)),
        patience=rng.choice((1.0, 2.0, 3.0)),
        sticky=sticky and schedule.clients >= 2 * actors and rng.random() < 0.8,
        summed=schedule.summed,
        strikes=rng.choice((0, 1, 3, 5)),
        quarantine=rng.choice((0.5, 2.0)),
        back=rng.choice((0.3, 1.0, 2.0)),
    )
    if bounds.lease or schedule.seed % 3 == 0:
        return bounds
    return replace(bounds, lease=-1.0, floor=one, first=4 * one * (schedule.seed % 3 == 1))  # no draw of its own


def _longest(bounds: Bounds) -> float:
    """The longest lease that is to be expected, in seconds."""
    return bounds.lease if bounds.lease >= 0 else max(bounds.first, 10 * bounds.floor)


def _weather(rng: Random, delay: float, seconds: float) -> Weather:
    wild = rng.random() < 0.25
    some = rng.sample(FAULTS, rng.choice((0, 1, 2, 3, 3, 4, 5, len(FAULTS)))) if rng.random() < 0.7 else ["cut", "cut line"]
    return Weather(
        delay=delay,
        every=seconds / rng.choice((4, 6, 15, 40)),
        faults=tuple(some),
        wild=wild,
        lost=rng.choice((0.0, 0.02, 0.2)) if wild else 0.0,
        twice=rng.choice((0.0, 0.05, 0.3)) if wild else 0.0,
        late=rng.choice((0.0, 0.05, 0.3)) if wild else 0.0,
        raising=rng.choice((0.0, 0.0, 0.05, 0.2)),
        poisoned=rng.choice((0.0, 0.0, 0.0, 0.1)),
        liars=rng.choice((0, 0, 1, 1, 2)),
    )
