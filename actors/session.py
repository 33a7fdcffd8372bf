"""The deciding half of an actor: one life, from Hello to Bye. Events in, effects out; no sockets, no arrays, no clock.

The one idea: every message is safe to send again. The actor repeats Hello until Welcome, and a contribution until its Verdict.
If the coordinator has forgotten the actor (it restarted, or gave the actor up), it gets a new Hello, and then every
contribution without a verdict. If only the connection is new, the coordinator tells the actor its tasks again.
"""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace

from shoal.actors import effects, events
from shoal.actors.coming import Fetching
from shoal.actors.effects import Effect
from shoal.actors.events import Event
from shoal.protocol import messages
from shoal.protocol.fetching import LEAST
from shoal.protocol.messages import BEATS, PROTOCOL, WHOLE, Envelope, Message, TaskName
from shoal.protocol.work import Has, Task, Words

HELLO_AGAIN = (0.05, 2.0)  # seconds until Hello is sent again: the first pause, which doubles, and the longest
SAY_AGAIN = 2.0  # seconds until a contribution without a verdict is sent again
AT_HAND = 8  # most tasks with the worker at once, so that a short task need not wait for the verdict of the one before
BACKLOG = 1 << 26  # bytes of changes that may wait for a worker that is busy; one change may in any case
UNREACHED = 5.0  # seconds of silence after which a person is told
LAST = 2.5  # seconds that the last weights may take after the end of a run: less than a coordinator's farewell
LOOK = 0.02  # least seconds between two Ticks that are acted on: nothing that a Tick does is more urgent
OLDER = "an evaluator was given training: the coordinator's Shoal is older (protocol 2.6 or earlier); install the same there"
RIDES = 0.05  # seconds that a Have which nothing waits for may wait for the actor's next word: alone it wakes the coordinator


@dataclass(slots=True)
class Unsettled:
    """A contribution without a verdict; or, if `onto` is not -1, an accepted contribution that was folded onto version `onto`.

    said_at: when it was sent last. nbytes: bytes of its arrays (0: none).
    """

    message: messages.Contribute | messages.Failed
    said_at: float
    nbytes: int
    onto: int = -1


@dataclass(frozen=True, slots=True)
class Running:
    """A task with the worker. needs: the oldest version that the weights which the worker starts from are made of; older memory
    may be written anew."""

    attempt: int
    needs: int


class Session:
    """The deciding half of one life of an actor.

    session: 8 random bytes, drawn for this life by its caller. where: the coordinator's address, for notes. Times (`now`) are
    in seconds of a clock that never goes back.
    """

    def __init__(self, session: bytes, hello: messages.Hello, where: str, now: float) -> None:
        self.session, self.hello, self.where = session, hello, where
        self.epoch = 0  # the coordinator's; 0: the actor is not welcomed
        self.place = 0  # the epoch of the last Welcome (0: none came)
        self.greeting = 0  # how often the actor lost its place
        self.held = -1  # the newest version that is here (-1: none)
        self.needs = -1  # the oldest version that the newest weights are made of; `held` once the worker has added all changes
        self.undone = 0  # bytes of changes that the worker has not added
        self.owing = False  # the coordinator waits for a Have
        self.told_of = -1  # the newest version that the coordinator was told is here
        self.rides_until = math.inf  # when the Have of the newest weights is said at the latest; inf: none waits
        self.astray = False  # True: the coordinator believes that another version is here
        self.tasks: dict[TaskName, messages.Assign] = {}  # waiting tasks, in the order in which they came
        self.running: dict[TaskName, Running] = {}  # in the order in which the worker got them
        self.fetching = Fetching()
        self.briefs: dict[TaskName, int] = {}  # waiting task -> the attempt whose brief is here, or coming
        self.lacking: set[TaskName] = set()  # waiting tasks whose briefs are coming
        self.unready = False  # True: the line for arrays has a new connection, and the coordinator has not been told
        self.unjudged: dict[TaskName, Unsettled] = {}  # contributions without a verdict
        self.retain = 0  # most bytes of accepted contributions that are kept
        self.retained: OrderedDict[TaskName, Unsettled] = OrderedDict()  # accepted contributions that are in no snapshot yet
        self.retained_bytes = 0
        self.beat, self.patience = 0.25, 10.0  # seconds: of silence before a Beat is sent; before the coordinator is given up
        self.finished = 0  # clients done in this life
        self.told: Words = {}  # of the worker, for the next Beat
        self.beaten: tuple[Words, float] = (self.told, now)  # what the last Beat told, and when it was said
        self.pause = HELLO_AGAIN[0]
        self.hello_at = now
        self.heard_at = self.said_at = self.noted_at = now
        self.look_at = now
        self.over = False
        self.stop: messages.Stop | None = None  # the run is over, and the last weights are on their way to a follower
        self.stop_at = 0.0

    @property
    def at(self) -> tuple[int, ...]:
        """(version, index, attempt) of the task that the worker is at; () if it is at none."""
        name, running = next(iter(self.running.items()), ((), None))
        return (*name, running.attempt) if running else ()

    def handle(self, event: Event, now: float) -> list[Effect]:
        if self.over or (now < self.look_at and type(event) is events.Tick):
            return []
        self.now = now
        taken = [*self._take(event), *(self._riding() if self.rides_until < math.inf else ())]
        return [*taken, *self._settle()] if self.tasks else taken

    def _take(self, event: Event) -> Iterable[Effect]:
        match event:
            case events.Heard():
                return self._hear(event.envelope)
            case events.Tick():
                return self._tick()
            case events.Done():
                return self._done(event)
            case events.Decoded():
                return self._decoded()
            case events.Opened(arrays):
                return self._opened(arrays)
            case events.Quit(reason):
                return self._leave(reason, reason if self.epoch else "")

    # What the coordinator says

    def _hear(self, envelope: Envelope) -> Iterable[Effect]:
        if envelope.session != self.session and not _to_a_key(envelope):
            return ()
        self.heard_at = self.now
        match envelope.message:
            case messages.Welcome() as welcome:
                return self._welcomed(welcome, envelope.epoch)
            case messages.Refused(reason, final):
                return self._refused(reason, final)
            case messages.Stop() as stop if self.hello.follows and self.fetching.weights():
                return self._postpone(stop)
            case messages.Stop(reason):
                return self._leave(reason, "it is over")  # without a Bye, the coordinator would send Stop again
            case message if envelope.epoch == self.epoch:
                return self._listen(message)
            case _:
                return ()

    def _postpone(self, stop: messages.Stop) -> Iterable[Effect]:
        """Stay until the last weights are here, which the coordinator still gives, for LAST seconds at most."""
        if self.stop is None:
            self.stop, self.stop_at = stop, self.now + LAST
        return ()

    def _opened(self, arrays: bool) -> Iterator[Effect]:
        if arrays:
            self.fetching.cut()
            self.look_at = self.now
            self.unready = True
            yield from self._ready()
        elif self.epoch:
            self._lose_place()  # the coordinator does not know that this connection is this actor's

    def _ready(self) -> Iterator[Effect]:
        if self.epoch and self.unready:
            self.unready = False
            yield self._say(messages.Ready())

    def _welcomed(self, welcome: messages.Welcome, epoch: int) -> Iterator[Effect]:
        if epoch <= self.epoch or welcome.greeting != self.greeting:
            return  # Hello was sent twice, or this late Welcome answers a Hello from before the place was lost
        another = epoch != self.place
        kept, self.epoch, self.place = welcome.resumed and not another, epoch, epoch
        if not kept:
            yield from self._forget_arrays(another)
        self.beat, self.patience = welcome.beat, welcome.patience
        self.astray = False
        self.tasks.clear()  # the coordinator tells this actor's tasks again
        self._offer_again(welcome, another)
        if not kept:
            self.held = self.needs = -1
            self.undone, self.owing = 0, False
            self.told_of, self.rides_until = -1, math.inf
            yield effects.Reset()
            place = f"as {'an evaluator' if self.hello.evaluates else f'actor {welcome.number}'}"
            place = "to follow the weights" if self.hello.follows else place
            yield effects.Note(f"joined {self.where} {place}")
        yield from self._ready()
        for waiting in self.unjudged.values():
            yield self._say_contribution(waiting)

    def _forget_arrays(self, another: bool) -> Iterator[Effect]:
        """Drop arrays after a new place: briefs belong to tasks that are now another actor's. another: True for another life of
        the coordinator, which has other weights."""
        for name in list(self.briefs):
            yield from self._unbrief(name)
        if another:
            yield from self._drop_weights()
        self.fetching.cut()  # the coordinator did not hear requests from an actor without a place

    def _refused(self, reason: str, final: bool) -> Iterator[Effect]:
        if final:
            self.over = True
            yield effects.Leave(reason, failed=True)
        elif self.epoch:
            self._lose_place()

    def _lose_place(self) -> None:
        """Begin again with Hello, because the coordinator does not know the actor, or does not answer."""
        self.epoch, self.greeting = 0, self.greeting + 1
        self.told_of, self.rides_until = -1, math.inf  # the next Hello tells what is here
        self.pause, self.hello_at, self.look_at = HELLO_AGAIN[0], self.now, self.now

    def _listen(self, message: Message) -> Iterable[Effect]:
        match message:
            case messages.Assign(counts=True) if self.hello.evaluates:
                return self._leave(OLDER, OLDER, failed=True)
            case messages.Assign(task, attempt):
                if attempt > self._attempt(task):
                    self.tasks[task] = message
                    if message.brief or self.briefs:
                        return self._brief(message)
                return ()
            case messages.Verdict():
                return self._judged(message)
            case messages.Weights():
                return self._told_of(message)
            case messages.Beat():
                self._keep_time(message.beat)
                return self._told_all(message.kept)
            case messages.Chunk(what, first, last):
                return self._came(what, first, last)
            case messages.Want((version, index, attempt), first, last):
                return (effects.Give((version, index), attempt, first, last),)
            case messages.GiveUp(_, calls):
                return (effects.Flag(calls),)
            case messages.Cancel(task):
                self.tasks.pop(task, None)
                return self._unbrief(task)
            case _:
                return ()

    def _keep_time(self, beat: float) -> None:
        """Take a new interval of beats: with more actors, the coordinator asks each for fewer beats. 0: keep the interval."""
        if beat > 0:
            self.beat, self.patience = beat, max(self.patience, BEATS * beat)

    def _judged(self, verdict: messages.Verdict) -> Iterable[Effect]:
        done = self.unjudged.get(verdict.task)
        if done is None or done.message.attempt != verdict.attempt:
            return ()
        del self.unjudged[verdict.task]
        return self._keep(done, verdict.onto) if verdict.onto >= 0 else (effects.Forget(verdict.task),)

    def _told_of(self, weights: messages.Weights) -> Iterator[Effect]:
        if weights.nbytes and weights.version > self.held:
            yield from self._gather(weights.version, weights.base, weights.nbytes)
        else:
            yield from self._adopt(weights.version, weights.base, rides=weights.base == WHOLE)
        yield from self._in_snapshot(weights.kept)

    # Briefs

    def _brief(self, assign: messages.Assign) -> Iterator[Effect]:
        """Fetch or place the brief of a task. If an Assign came again, its brief goes on. A brief of another attempt is
        dropped."""
        name, attempt = assign.task, assign.attempt
        if assign.brief and self.briefs.get(name) == attempt:
            return
        yield from self._unbrief(name)
        if not assign.brief:
            return
        self.briefs[name] = attempt
        if assign.nbytes:
            self.lacking.add(name)
            self.fetching.begin((*name, attempt), assign.nbytes, self.now)
            yield from self._ask()
        else:
            yield effects.Stow((*name, attempt))

    def _unbrief(self, name: TaskName) -> Iterator[Effect]:
        if (attempt := self.briefs.pop(name, None)) is not None:
            self.lacking.discard(name)
            self.fetching.drop((*name, attempt))
            yield effects.Drop((*name, attempt))

    def _told_all(self, kept: int) -> Iterator[Effect]:
        """Drop briefs of tasks that this actor had before a connection was lost, and has no longer. The coordinator sends a
        Beat only when it has nothing else to send, so it has told this actor's tasks again before."""
        yield from self._in_snapshot(kept)
        for name in [name for name in self.briefs if name not in self.tasks]:
            yield from self._unbrief(name)

    def _attempt(self, task: TaskName) -> int:
        """The newest attempt at a task that the worker has or has done, -1 if there is none. No attempt is done twice."""
        running, done = self.running.get(task), self.unjudged.get(task) or self.retained.get(task)
        return max(running.attempt if running else -1, done.message.attempt if done else -1)

    # Contributions that the coordinator's next life will ask for

    def _keep(self, done: Unsettled, onto: int) -> Iterator[Effect]:
        """Keep an accepted contribution: the coordinator has only its digest on disk. If more than `retain` bytes are kept, the
        oldest contributions are dropped."""
        done.onto = onto
        if isinstance(done.message, messages.Contribute):  # its slot is given back; a later coordinator fetches the bytes
            done.message = replace(done.message, slot=(), nbytes=done.nbytes)
        self.retained[done.message.task] = done
        self.retained_bytes += done.nbytes
        yield effects.Retain(done.message.task)
        while self.retained_bytes > self.retain:
            yield from self._let_go(next(iter(self.retained)))

    def _let_go(self, task: TaskName) -> Iterator[Effect]:
        self.retained_bytes -= self.retained.pop(task).nbytes
        yield effects.Forget(task)

    def _in_snapshot(self, kept: int) -> Iterator[Effect]:
        """Drop the contributions to versions up to `kept`, which is in a snapshot (-1: none is)."""
        while self.retained and self.retained[oldest := next(iter(self.retained))].onto < kept:
            yield from self._let_go(oldest)

    def _offer_again(self, welcome: messages.Welcome, another: bool) -> None:
        """Offer accepted contributions again to another life of the coordinator, which has only a snapshot and digests."""
        self.retain = welcome.retain
        if another:
            self.unjudged = {**self.retained, **self.unjudged}
            self.retained.clear()
            self.retained_bytes = 0

    # Weights

    def _adopt(self, version: int, base: int, nbytes: int = 0, rides: bool = False) -> Iterator[Effect]:
        """nbytes: of a change that was fetched. rides: if the weights are new, their Have may wait for the next word."""
        rides = rides and version > self.held
        if version > self.held:
            if not self._fits(base):
                return
            self.held = version
            if base == WHOLE:
                self.needs, self.undone = version, 0
            else:
                self.undone += max(nbytes, LEAST)
            yield effects.Adopt(version, base)
            yield from self._drop_weights(version)  # or an older version, which nobody sends any more, would hold up the queue
        self.owing = self.undone > BACKLOG
        if rides:
            self.rides_until = self.now + RIDES
        elif not self.owing:  # else the coordinator sends no more until the worker has added these
            yield self._have(version)

    def _have(self, version: int) -> Effect:
        self.told_of = max(self.told_of, version)
        if version >= self.held:
            self.rides_until = math.inf
        return self._say(messages.Have(version, min([self.needs, *(one.needs for one in self.running.values())])))

    def _riding(self) -> Iterator[Effect]:
        """Say the Have that waits once its time is up; and at once if a task here needs the weights: the task's time begins
        with the Have, and if the task ends this process, the coordinator must know that it had begun."""
        due = self.now >= self.rides_until and not self.over
        if due or any(name[0] > self.told_of for name in (*self.running, *self.tasks)):
            yield self._have(self.held)

    def _decoded(self) -> Iterator[Effect]:
        self.needs, self.undone = self.held, 0
        if self.owing and self.epoch:
            self.owing = False
            yield self._have(self.held)

    def _fits(self, base: int) -> bool:
        """True if the change since `base` fits the weights that are here. If not (a late Hello may have told the coordinator
        of older weights), a new Hello asks for whole weights."""
        if base in (WHOLE, self.held):
            return True
        self.astray = True
        self._lose_place()
        return False

    def _gather(self, version: int, base: int, nbytes: int) -> Iterator[Effect]:
        """Fetch weights in pieces. If the same weights are told again, the transfer goes on where it was."""
        if not self._fits(base):
            return
        what = (version,) if base == WHOLE else (version, base)
        if what not in self.fetching.weights():
            yield from self._drop_weights()
            self.fetching.begin(what, nbytes, self.now)
        yield from self._ask()

    def _drop_weights(self, upto: float = math.inf) -> Iterator[Effect]:
        """Stop fetching weights of versions up to this one."""
        for what in self.fetching.weights():
            if what[0] <= upto:
                self.fetching.drop(what)
                yield effects.Drop(what)

    def _ask(self) -> Iterator[Effect]:
        if self.epoch:
            for want in self.fetching.ask(self.now):
                yield self._say(want)

    def _came(self, what: tuple[int, ...], first: int, last: int) -> Iterator[Effect]:
        coming = self.fetching.came(what, first, last, self.now)
        if coming is None:
            return
        if last > first:
            yield effects.Stow(what, first, coming.nbytes)
        match what if not coming.fetch.left else ():
            case (version, index, _):
                self.lacking.discard((version, index))
            case (version, base):
                yield from self._adopt(version, base, coming.nbytes)
            case (version,):
                yield from self._adopt(version, WHOLE)
        if self.stop and not self.fetching.weights():
            yield from self._leave(self.stop.reason, "it is over")
            return
        yield from self._ask()

    # What the worker says

    def _done(self, done: events.Done) -> Iterator[Effect]:
        task = done.message.task
        running = self.running.get(task)
        if running and running.attempt == done.message.attempt:  # else the next one is with the worker
            del self.running[task]
        self.finished += done.clients
        if before := self.retained.pop(task, None):  # an earlier attempt's, whose payload the shell has dropped
            self.retained_bytes -= before.nbytes
        self.unjudged[task] = waiting = Unsettled(done.message, self.now, done.nbytes)
        if self.epoch and self.rides_until < math.inf:
            yield self._have(self.held)
        if self.epoch:
            yield self._say_contribution(waiting)

    def _say_contribution(self, waiting: Unsettled) -> Effect:
        waiting.said_at = self.now
        return self._say(waiting.message)

    # Time

    def _tick(self) -> Iterator[Effect]:
        self.look_at = self.now + LOOK
        if self.stop and self.now >= self.stop_at:
            yield from self._leave(self.stop.reason, "it is over")
            return
        if not self.epoch and self.now >= self.hello_at:
            self.hello_at = self.now + self.pause
            self.pause = min(2 * self.pause, HELLO_AGAIN[1])
            busy = bool(self.running)
            held = WHOLE if self.astray else self.held
            yield self._say(replace(self.hello, greeting=self.greeting, epoch=self.place, held=held, busy=busy))
        silence = self.now - max(self.heard_at, self.noted_at)
        if silence > UNREACHED:
            self.noted_at = self.now
            coming = f"; {self.fetching.first}" if self.fetching.first else ""
            yield effects.Note(f"no answer from {self.where} for {self.now - self.heard_at:.0f} s; trying on{coming}")
        elif (first := self.fetching.first) and self.now - max(first.moved_at, self.noted_at) > UNREACHED:
            self.noted_at = self.now
            silent = self.now - first.moved_at
            yield effects.Note(f"no piece came from {self.where} for {silent:.0f} s; {first}")
        if not self.epoch:
            return
        if self.now - self.heard_at > self.patience:
            self._lose_place()
            return  # the coordinator would refuse a message now
        told, at = self.beaten
        news = self.told is not told and self.now - at >= self.beat  # of an actor that answers all the time, too
        if self.now - self.said_at >= self.beat or news:
            self.beaten = (self.told, self.now)
            yield self._say(messages.Beat(self.finished, runs=self.at, told=self.told))
        yield from self._ask()
        for waiting in self.unjudged.values():
            if self.now - waiting.said_at > SAY_AGAIN:
                yield self._say_contribution(waiting)

    def _leave(self, reason: str, bye: str, *, failed: bool = False) -> Iterator[Effect]:
        """bye: the reason for the coordinator; "": it does not know this actor."""
        self.over = True
        if bye:
            yield self._say(messages.Bye(bye))
        yield effects.Leave(reason, failed)

    # Rules that hold after any event

    def _settle(self) -> Iterator[Effect]:
        """Give the worker each task whose weights and brief are here, up to AT_HAND tasks."""
        while not self.over and self.epoch and (name := self._next()) is not None:
            assign = self.tasks.pop(name)
            self.running[name] = Running(assign.attempt, self.needs)
            task = Task(*name, assign.clients, assign.kind, assign.counts, assign.words)
            self.briefs.pop(name, None)
            yield effects.Run(task, assign.attempt, assign.summed, self.held, assign.exact, assign.brief)

    def _next(self) -> TaskName | None:
        """The next task for the worker; None if there is none. Behind a running task only a task of the version that is here
        is taken, because for another task newer weights may come while it waits."""
        if not self.tasks or len(self.running) >= AT_HAND:
            return None
        oldest = self.held if self.running else 0
        return next((name for name in self.tasks if oldest <= name[0] <= self.held and name not in self.lacking), None)

    def _say(self, message: Message) -> Effect:
        self.said_at = self.now
        return effects.Say(Envelope(self.session, self.epoch, message))


def _to_a_key(envelope: Envelope) -> bool:
    """True for the last word to all actors of a key that was revoked, said where no session is known."""
    return envelope.session == b"" and isinstance(envelope.message, messages.Refused) and envelope.message.final


def hello(
    name: str,
    host: str,
    pid: int,
    offers: tuple[str, ...],
    job: str = "",
    threads: int = 0,
    follows: bool = False,
    has: Has | None = None,
    evaluates: bool = False,
) -> messages.Hello:
    """The Hello of a new life."""
    first = messages.Hello(PROTOCOL, name, host, pid, offers, job=job, threads=threads, follows=follows, evaluates=evaluates)
    return replace(first, cores=has.cores, memory=has.memory, gpus=has.gpus) if has else first
