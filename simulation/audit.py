"""The invariants, asserted after every event of a coordinator, from the event and its effects.

The one idea: the audit keeps books of its own from events and effects alone, and compares; only invariants without outward sign
(indices that must agree with each other and must not grow) are looked up in the core, every LOOK events. learned.py takes an
event into the books; judged.py, given.py and present.py hold the core's effects against them.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from random import Random
from statistics import median
from typing import TYPE_CHECKING

from shoal.coordinator.deciding.events import Effect, Event, Pull, Send, Tick, Unpull
from shoal.coordinator.deciding.ledger import TRIES
from shoal.coordinator.deciding.promises import Promise
from shoal.coordinator.reports import Report
from shoal.protocol.messages import Stop, TaskName
from shoal.protocol.work import Totals
from shoal.simulation import judged, learned
from shoal.simulation.books import Books, Holding, Row, Taken, told, wrong
from shoal.simulation.look import held, look, punctual
from shoal.simulation.setting import Setting

if TYPE_CHECKING:
    from shoal.simulation.actors import Product
    from shoal.simulation.hub import Hub

LOOK = 64  # events between two looks at the core's own indices
OFTEN = 4  # events that are ticks and acted on are followed by a look at lateness, one in so many
SHELL = 16  # events between two looks at the shell
MANY = 64  # arrays being fetched, from which only every LOOK events is looked whose they are
FINAL = ("accepted", "stale", "aside")


class Audit:
    """The audit of one run, over all lives of its coordinator."""

    def __init__(self, setting: Setting) -> None:
        self.setting = setting
        self.books = Books(setting)
        self.served: set[bytes] = set()  # sessions whose work was judged on its merits since the faults ended
        self.peak = 0
        self.events = 0

    def begin(self, hub: Hub) -> None:
        """Begin the books of a new life of the coordinator."""
        self.books.begin(hub)
        self.hub, self.core, self.plan = hub, hub.core, hub.plan
        self.counted: dict[TaskName, Taken] = {}
        self.rows: dict[bytes, Row] = {}
        self.held: dict[TaskName, Holding] = {
            one.task.name: Holding(
                one.session, one.attempt, one.clients, told(one.task), self.core.facts.now, owed=self._owed(one)
            )
            for one in hub.found.promises
        }
        self.tries: dict[TaskName, int] = {}
        self.faults: dict[TaskName, int] = {}  # times that a task failed, or was blamed for a death
        self.blamed: set[TaskName] = set()  # tasks on which a death was blamed, and which have not been given out since
        self.folding: dict[TaskName, Taken] = {}
        self.pulled: dict[TaskName, Holding] = {}
        self.took: dict[str, deque[float]] = {}  # kind -> seconds of work at its last tasks that came in
        self.changes = False
        self.heard = self.accepted = 0
        self.stops: set[bytes] = set()
        self.leaving: set[bytes] = set()  # sessions that are gone, of which the shell is about to hear
        self.due: deque[tuple[TaskName, str]] = deque()  # tasks and their outcomes that the plan has to hear
        self.final: set[TaskName] = set()  # tasks of which the plan heard that they are over
        self.promised_at = (-1, 0.0)
        self.round(self.core.facts.version)
        self.over = False
        self.acted, self.looked_at = False, self.core.look_at  # acted: the last event was a Tick that the core acted on

    def _owed(self, promise: Promise) -> Taken:
        """The contribution that the core is promised; its acknowledgement need not have been sent."""
        if owed := self.books.owed.get((promise.task.name, promise.attempt)):
            return owed
        of_it = [
            one for one in self.books.taken.values() if (one.task, one.holding.attempt) == (promise.task.name, promise.attempt)
        ]
        if not of_it:
            wrong(f"{promise} is of nothing")
        return of_it[-1]

    def anything(self, rng: Random) -> tuple[TaskName, int, int]:
        """A task that an actor has, or had; its attempt; and the newest version: for a liar to claim."""
        tasks = [*self.held, *list(self.counted)[-5:]]
        task = rng.choice(tasks) if tasks else (0, 0)
        return task, self.attempt(task), self.core.facts.version

    def attempt(self, task: TaskName) -> int:
        return self.core.facts.epoch * TRIES + self.tries.get(task, 0)

    # One event

    def saw(self, event: Event, effects: Sequence[Effect], product: Product | None) -> None:
        """Check an event and its effects: called after the core took the event, before its effects are carried out."""
        if self.over:
            if not all(isinstance(one, Send) and isinstance(one.envelope.message, Stop) for one in effects):
                wrong(f"{effects} after the end")
            return
        if effects or type(event) is not Tick:
            self._compare(event, effects, product)
        if self.plan.asked:
            self._heard()
        counts = self.core.facts.ledger.counts
        heard, accepted, folding = counts.heard, counts.accepted, counts.folding
        if heard != self.heard or accepted != self.accepted or folding != len(self.folding):
            books = f"{self.heard} heard, {self.accepted} accepted, {len(self.folding)} with the learner"
            wrong(f"in the books {books}; in the core {counts}")
        self.events += 1
        self.acted, self.looked_at = self.core.look_at != self.looked_at, self.core.look_at
        if self.events % LOOK == 0 and not self.over:
            look(self)
        if self.acted and self.events % OFTEN == 0 and not self.over:
            punctual(self)

    def settled(self, hub: Hub) -> None:
        """Check the shell every SHELL events, LOOK if much is on its way: called after all effects of one were carried out."""
        if self.events % (SHELL if len(hub.traffic.deliveries) < MANY else LOOK) == 0 and not self.over:
            held(hub)

    def _compare(self, event: Event, effects: Sequence[Effect], product: Product | None) -> None:
        self.event, self.product, self.answers, self.expected = event, product, 0, 0
        self.pulls = self.changes = False  # whether a fetch begins; whether a fetch begins or ends
        self.parted: set[bytes] = set()  # sessions that are gone, of which the core has told nobody yet
        self.leaving.clear()
        for effect in effects:
            if type(effect) is Pull:
                self.pulls = self.changes = True
            elif type(effect) is Unpull:
                self.changes = True
        if learn := learned.EVENTS.get(type(event)):
            learn(self, event)
        for effect in effects:
            if type(effect) is Report and effect.kind == "lost":
                judged.blame(self, effect.text)
        for effect in effects:
            if judge := judged.EFFECTS.get(type(effect)):
                judge(self, effect)
        if self.answers != self.expected and not self.over:
            wrong(f"{self.answers} answers to {event}")
        if self.parted:
            wrong(f"nobody hears that {self.parted} are gone, after {event}")
        often = len(self.pulled) < MANY or self.events % LOOK == 0  # a restart may have thousands to fetch
        for task, holding in self.pulled.items() if often else ():
            if self.held.get(task) is not holding and not self.over:
                wrong(f"arrays are fetched for what is nobody's, after {event}")

    def _heard(self) -> None:
        """Check that the plan, which was asked for tasks, has heard the outcome of every other task, once."""
        plan = self.plan
        heard, plan.heard, plan.asked = plan.heard, [], False
        for task, word, _, totals in heard:
            name = (task.version, task.index)
            if self.due and self.due[0] == (name, word):
                self.due.popleft()
                self._said_so(name, word, totals)
            elif word != "stale" or name in self.held or task.version >= self.core.facts.version:  # else it waited for a redo
                wrong(f"the plan hears that {task} is {word}, and {list(self.due)[:3]} is what became of others")
            if word in FINAL and name in self.final:
                wrong(f"the plan hears that {task} is {word}, which was over")
            self.final.update([name] if word in FINAL else [])
        if self.due:
            wrong(f"the plan does not hear that {self.due[0]}")

    def _said_so(self, name: TaskName, word: str, totals: Totals) -> None:
        product = self.counted[name].product if word == "accepted" else None
        if product and product.honest and totals != {"number": (product.number, 1.0)}:
            wrong(f"the plan hears of task {name}, made of {product}, with {totals}")

    # The books of this life

    def snapshots(self) -> list[int]:
        return [snapshot.version for snapshot in self.hub.world.disk.shelf.kept]

    def round(self, version: int) -> None:
        """Note the beginning of a round for which work is promised: it may begin without a task of the plan."""
        if any(holding.owed for holding in self.held.values()):
            self.promised_at = version, self.core.facts.now

    def limit(self, kind: str) -> float:
        """The longest time of a task of this kind; 0: no limit."""
        bounds, took = self.setting.bounds, self.took.get(kind, ())
        if bounds.lease >= 0:
            return bounds.lease
        return max(bounds.floor, 10 * median(took)) if len(took) >= 3 else bounds.first

    def at_it(self, row: Row) -> TaskName | None:
        """The task that an actor's worker is at, as far as the coordinator can know: the task that its Beat named, or the first
        of those that it can have begun. None: it is at none of its tasks."""
        begun = [task for task in sorted(row.tasks) if task not in self.folding and task not in self.pulled]
        begun = [task for task in begun if not ((one := self.held[task]).briefing or one.owed or one.left)]
        begun = [task for task in begun if task[0] <= row.held and not row.stuck]
        if row.runs:
            return next((task for task in begun if (*task, self.held[task].attempt) == row.runs), None)
        return min(begun, key=lambda task: self.held[task].since, default=None)

    def fault(self, task: TaskName, holding: Holding, blamed: bool = False) -> None:
        """Count a fault of a task, or of each part that comes back of it. blamed: it is to blame for a death."""
        faults = self.faults.get(task, 0) + 1
        for part in range(len(holding.clients)):
            self.faults[task[0], task[1] + part] = faults
            self.blamed |= {(task[0], task[1] + part)} if blamed else set()

    def end(self, task: TaskName, holding: Holding) -> None:
        """End a holding: no actor has the task any more."""
        self.held.pop(task, None)
        if holding.owed:
            self.books.owed.pop((task, holding.attempt), None)
        if row := self.rows.get(holding.session):
            row.tasks.discard(task)
