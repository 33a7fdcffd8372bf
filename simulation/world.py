"""Deterministic simulation: the production cores of coordinator and actors, a network and a disk in one seeded process.

The one idea: nothing here waits, draws or reads a clock but from the seed; so thousands of schedules of trouble pass in
seconds, and `schedule(seed)` plays a schedule that ended badly again, event by event.
"""

from __future__ import annotations

import math
import time
from dataclasses import dataclass
from random import Random
from typing import Any

from shoal.coordinator.deciding.events import Interrupt
from shoal.coordinator.deciding.patience import waiting_for
from shoal.simulation.actors import Liar, Life, Product
from shoal.simulation.audit import Audit
from shoal.simulation.books import ViolationError
from shoal.simulation.disk import Disk
from shoal.simulation.hub import Hub
from shoal.simulation.setting import Setting, drawn
from shoal.simulation.wire import Timeline, Wire

MOST = 300_000  # timeline entries of one schedule: more is a storm
QUICK, WHOLE = (1_000, 12.0), (10_000, 40.0)  # number of schedules, and simulated seconds of faults in each
FAULTY = (ArithmeticError, AssertionError, AttributeError, LookupError, RuntimeError, TypeError, ValueError)


class World:
    """A run under one schedule of faults."""

    def __init__(self, seed: int, seconds: float) -> None:
        self.rng = rng = Random(seed)
        self.setting: Setting = drawn(rng, seconds)
        self.time = Timeline(rng)
        self.wire = Wire(self.time, self.setting.weather, rng, *self.setting.watch)
        self.audit = Audit(self.setting)
        self.disk = Disk(self.setting)
        self.healed = False
        self.lent: dict[int, Product] = {}  # number -> product in memory that its actor lent to the coordinator
        self._number = self._pids = 0
        self._healed_at = self._healed_version = 0
        self.hub: Hub | None = None
        self._restart(None)
        self.lives = [self._life(place) for place in range(self.setting.actors)]
        self.time.at(self.setting.heal_at, self._heal)
        if self.setting.weather.faults:
            self.time.at(rng.expovariate(1 / self.setting.weather.every), self._fault)

    def number(self, odd: bool) -> int:
        """A new number for a product."""
        self._number += 2
        return self._number + odd

    def pid(self) -> int:
        """A new process id."""
        self._pids += 1
        return self._pids

    def newest(self) -> int:
        return self.audit.books.published

    def run(self) -> None:
        """Play the run to its end, or until the run has shown after the faults that it lives. Raises ViolationError."""
        self.time.run(MOST)
        if not self.time.stopped:
            raise ViolationError(f"after {MOST} entries there is no end")

    # Trouble

    def _life(self, place: int) -> Life:
        lies = place < self.setting.weather.liars < self.setting.actors and not (self.healed and self.setting.unbounded)
        return (Liar if lies else Life)(self, place, self.setting.paces[place])

    def _fault(self, _: None) -> None:
        if self.healed:
            return
        weather, rng = self.setting.weather, self.rng
        life = rng.choice(self.lives)
        patience = self.setting.bounds.patience_for(len(self.lives))
        match rng.choice(weather.faults):
            case "cut":
                self.wire.cut(life, rng.choice((0.01, 0.2, 2 * patience)))
            case "cut line":
                self.wire.cut_line(rng.choice((life, life.lane)), rng.choice((0.01, 0.2, 2 * patience)))
            case "stall":
                self.wire.stall(life, rng.uniform(0.1, 2 * patience))
            case "partition":
                self._partition(rng.uniform(0.1, 2 * patience))
            case "crash":
                self.crash(life)
            case "churn":
                life.leave()
                self.crash(life)
            case "freeze":
                life.locked = int(1_000 * self.time.now) % 2 == 1  # no draw of its own
                life.freeze(rng.uniform(0.1, 2 * patience))
            case "hang":
                life.hangs = True
            case "pause":
                if self.hub:
                    self.hub.freeze(rng.uniform(0.1, 2 * patience))
            case "restart":
                self._kill()
        self.time.at(self.time.now + rng.expovariate(1 / weather.every), self._fault)

    def _partition(self, seconds: float) -> None:
        cuts = self.rng.random() < 0.5
        for life in self.rng.sample(self.lives, self.rng.randint(1, len(self.lives))):
            if cuts:
                self.wire.cut(life, seconds)
            else:
                self.wire.stall(life, seconds)

    def crash(self, life: Life) -> None:
        """End an actor's life; another life begins in its place 0.05 to 5 s later."""
        self.wire.cut(life, math.inf)
        life.die()
        if life.shares and self.hub:
            self.time.at(self.time.now + 0.05, self.hub.ended, life.pid)
        self.time.at(self.time.now + self.rng.choice((0.05, 1.0, 5.0)), self._return, life)

    def evict(self, peer: bytes) -> None:
        """End the peer's process if it runs on the coordinator's own machine: here, if the actor's place is odd."""
        connection = self.wire.peers.get(peer)
        if connection and isinstance(connection.life, Life) and connection.life.place % 2:
            self.crash(connection.life)

    def _return(self, life: Life) -> None:
        if self.lives[life.place] is life:
            self.lives[life.place] = self._life(life.place)

    def _kill(self) -> None:
        """End the coordinator's life; the next life starts from the durable records."""
        if self.hub is None:
            return
        self.hub.gone = True
        self.disk.log.crash(self.rng)
        self.hub = self.wire.hub = None
        self.wire.peers.clear()
        for life in self.lives:
            self.wire.cut(life, self.rng.uniform(0.0, 0.5))
        self.time.at(self.time.now + self.rng.uniform(0.05, 1.0), self._restart)

    def _restart(self, _: None) -> None:
        if self.hub is None:
            self.hub = self.wire.hub = Hub(self)

    # Its end

    def _heal(self, _: None) -> None:
        """End all faults. Wild connections are cut once, so that none of their late messages is left."""
        self.healed = True
        self._restart(None)
        self._healed_version = self.newest()
        self.audit.served.clear()
        trains = [life for life in self._healthy() if not life.gone and life.place not in self.setting.evaluators]
        bear = self.setting.limited and bool(trains)  # who trains may wait for a limit only beside another who trains
        for life in list(self.lives):
            life.thaw()
            if life.gone or (life.hangs and not bear) or (not life.honest and self.setting.unbounded):
                self.wire.cut(life, math.inf)
                life.die()
                self._return(life)
            elif self.wire.wild:
                self.wire.cut(life, 0.01)
        self.wire.wild = False
        if self.hub:
            self.hub.thaw()
        self.time.at(self.time.now + 0.5, self._watch)
        self.time.at(self.time.now + self.setting.within, self._despair)

    def _healthy(self) -> list[Life]:
        return [life for life in self.lives if life.honest and not life.hangs]

    def _watch(self, _: None) -> None:
        """End the schedule as soon as nothing is amiss."""
        if not self._amiss():
            self._interrupt()
        else:
            self.time.at(self.time.now + 0.5, self._watch)

    def _amiss(self) -> str:
        """Return why the run has not shown yet that it lives; "" if it has."""
        if self.newest() < self._healed_version + 3:
            return f"version {self.newest()}, from {self._healed_version} when the faults ended"
        starving = [life.place for life in self._healthy() if life.session.session not in self.audit.served]
        return f"nothing of actors {starving} was counted since the faults ended" * bool(starving)

    def _interrupt(self) -> None:
        if self.hub and not self.hub.finished:
            self.hub.handle(Interrupt("enough"))
        if not self.hub or not self.hub.finished:
            raise ViolationError("the run does not end when it is told to")
        self.time.stopped = True

    def _despair(self, _: None) -> None:
        if amiss := self._amiss():
            waiting = waiting_for(self.hub.core.facts) if self.hub else []
            raise ViolationError(f"liveness: {amiss}; waiting for {waiting}")


@dataclass(frozen=True, slots=True)
class Played:
    """The outcome of a schedule. violation: the broken invariant; "" if none."""

    seed: int
    events: int
    violation: str


def schedule(seed: int, seconds: float) -> Played:
    """Play one schedule, whose faults last about `seconds` simulated seconds."""
    world = World(seed, seconds)
    try:
        world.run()
    except FAULTY as fault:
        return Played(seed, world.time.events, f"at {world.time.now:.3f} s: {type(fault).__name__}: {fault}")
    return Played(seed, world.time.events, "")


def run(quick: bool, seed: int = 0) -> dict[str, Any]:
    """The case `dst`: many schedules, and how many of them broke an invariant. cpu_seconds, events_per_second: of one core."""
    schedules, seconds = QUICK if quick else WHOLE
    began = time.process_time()
    outcomes = [schedule(seed + number, seconds) for number in range(schedules)]
    spent = time.process_time() - began
    events = sum(outcome.events for outcome in outcomes)
    return {
        "schedules": schedules,
        "events": events,
        "violations": [f"seed {o.seed} {o.violation}" for o in outcomes if o.violation],
        "events_per_second": events / spent,
        "cpu_seconds": spent,
    }
