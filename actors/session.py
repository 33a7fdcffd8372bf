"""The deciding half of an actor: one life, from Hello to Bye. Events in, effects out; no sockets, no arrays, no clock.

The one idea: everything said is safe to say again. Hello is repeated until Welcome, a contribution until its Verdict, and a
coordinator that has forgotten us (it restarted, or gave us up) gets a new Hello and then whatever it has not judged yet. One
that has not, because only the connection is new, tells us again what we have to do.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace

from shoal.actors.coming import Fetching
from shoal.actors.events import (
    Adopt,
    Done,
    Drop,
    Effect,
    Event,
    Forget,
    Gather,
    Give,
    Heard,
    Leave,
    Note,
    Opened,
    Place,
    Quit,
    Reset,
    Retain,
    Run,
    Say,
    Stow,
    Tick,
)
from shoal.protocol.messages import (
    BEATS,
    PROTOCOL,
    WHOLE,
    Assign,
    Beat,
    Bye,
    Cancel,
    Chunk,
    Contribute,
    Envelope,
    Failed,
    Have,
    Hello,
    Message,
    Ready,
    Refused,
    Stop,
    TaskName,
    Verdict,
    Want,
    Weights,
    Welcome,
)
from shoal.protocol.work import Task

HELLO_AGAIN = (0.05, 2.0)  # seconds until Hello is said again, and the most that grows to
SAY_AGAIN = 2.0  # seconds until a contribution without a verdict is said again
AT_HAND = 8  # tasks with the worker at once, so that short ones do not wait for each other's answers
UNREACHED = 5.0  # seconds of silence after which a person is told
LOOK = 0.02  # seconds between looks at what is due, however often the clock is looked at: nothing here is as pressing as that


@dataclass(slots=True)
class Waiting:
    """A contribution that has no verdict yet; or that was accepted for what follows version `onto`."""

    message: Contribute | Failed
    said_at: float
    nbytes: int
    onto: int = -1


@dataclass(frozen=True, slots=True)
class Running:
    """A task with the worker, and the version it starts from."""

    attempt: int
    made_from: int


class Session:
    """One life of an actor. `session` is 8 random bytes, drawn by whoever starts this life."""

    def __init__(self, session: bytes, hello: Hello, where: str, now: float) -> None:
        self.session, self.hello, self.where = session, hello, where
        self.epoch = 0  # 0: not welcomed yet
        self.place = 0  # the epoch in which we were welcomed last, and have a place if it still is
        self.greeting = 0  # how often we lost our place
        self.number = -1
        self.held = -1  # the newest version that is here
        self.astray = False  # the coordinator takes it for another
        self.tasks: dict[TaskName, Assign] = {}  # in the order they came
        self.running: dict[TaskName, Running] = {}  # in the order they went to the worker
        self.fetching = Fetching()
        self.briefs: dict[TaskName, int] = {}  # attempts whose brief is here, of tasks that wait
        self.lacking: dict[TaskName, int] = {}  # attempts whose brief is on its way
        self.unready = False  # the line for arrays is another one, and the coordinator has not heard of it
        self.unjudged: dict[TaskName, Waiting] = {}
        self.retain = 0  # bytes
        self.retained: OrderedDict[TaskName, Waiting] = OrderedDict()  # accepted, and in no snapshot yet
        self.retained_bytes = 0
        self.beat, self.patience = 0.25, 10.0
        self.finished = 0
        self.pause = HELLO_AGAIN[0]
        self.hello_at = now
        self.heard_at = self.said_at = self.noted_at = now
        self.look_at = now
        self.over = False

    def handle(self, event: Event, now: float) -> list[Effect]:
        if self.over or (now < self.look_at and type(event) is Tick):
            return []
        self.now = now
        return [*self._take(event), *(self._settle() if self.tasks else ())]

    def _take(self, event: Event) -> Iterable[Effect]:
        match event:
            case Heard():
                return self._hear(event.envelope)
            case Tick():
                return self._tick()
            case Done():
                return self._done(event)
            case Opened(arrays):
                return self._opened(arrays)
            case Quit(reason):
                return self._leave(reason)

    # What the coordinator says

    def _hear(self, envelope: Envelope) -> Iterable[Effect]:
        if envelope.session != self.session:
            return ()
        self.heard_at = self.now
        match envelope.message:
            case Welcome() as welcome:
                return self._welcomed(welcome, envelope.epoch)
            case Refused(reason, final):
                return self._refused(reason, final)
            case Stop(reason):
                return self._stopped(reason)
            case message if envelope.epoch == self.epoch:
                return self._listen(message)
            case _:
                return ()

    def _stopped(self, reason: str) -> Iterator[Effect]:
        self.over = True
        yield self._say(Bye("it is over"))  # or we would be told again
        yield Leave(reason)

    def _opened(self, arrays: bool) -> Iterator[Effect]:
        if arrays:
            self.fetching.cut()
            self.look_at = self.now
            self.unready = True
            yield from self._ready()
        elif self.epoch:
            self._lose_place()  # the coordinator does not know this connection for ours

    def _ready(self) -> Iterator[Effect]:
        if self.epoch and self.unready:
            self.unready = False
            yield self._say(Ready())

    def _welcomed(self, welcome: Welcome, epoch: int) -> Iterator[Effect]:
        if epoch <= self.epoch or welcome.greeting != self.greeting:
            return  # Hello was said twice, or this is late and answers one from before we lost our place
        another = epoch != self.place
        kept, self.epoch, self.place = welcome.resumed and not another, epoch, epoch
        if not kept:
            yield from self._forget_arrays(another)
        self.number, self.beat, self.patience = welcome.number, welcome.beat, welcome.patience
        self.astray = False
        self.tasks.clear()  # those that are still ours will be told again
        self._offer_again(welcome, another)
        if not kept:
            self.held = -1
            yield Reset()
            yield Note(f"joined {self.where} as actor {welcome.number}")
        yield from self._ready()
        for waiting in self.unjudged.values():
            yield self._say_contribution(waiting)

    def _forget_arrays(self, another: bool) -> Iterator[Effect]:
        """We have a new place: briefs are of tasks that are ours no longer. another: in another life of the coordinator, whose
        weights are others."""
        for name in [*self.briefs, *self.lacking]:
            yield from self._unbrief(name)
        if another:
            yield from self._drop_weights()
        self.fetching.cut()  # what was asked for while we had no place, nobody heard

    def _refused(self, reason: str, final: bool) -> Iterator[Effect]:
        if final:
            self.over = True
            yield Leave(reason, failed=True)
        elif self.epoch:
            self._lose_place()

    def _lose_place(self) -> None:
        """We are nobody there, or nobody answers: Hello from the start."""
        self.epoch, self.greeting = 0, self.greeting + 1
        self.pause, self.hello_at, self.look_at = HELLO_AGAIN[0], self.now, self.now

    def _listen(self, message: Message) -> Iterable[Effect]:
        match message:
            case Assign(task, attempt):
                if attempt > self._attempt(task):
                    self.tasks[task] = message
                    if message.brief or self.briefs or self.lacking:
                        return self._brief(message)
                return ()
            case Verdict():
                return self._judged(message)
            case Weights():
                return self._told_of(message)
            case Beat():
                self._keep_time(message.beat)
                return self._told_all(message.kept)
            case Chunk(what, first, last):
                return self._came(what, first, last)
            case Want((version, index, attempt), first, last):
                return (Give((version, index), attempt, first, last),)
            case Cancel(task):
                self.tasks.pop(task, None)
                return self._unbrief(task)
            case _:
                return ()

    def _keep_time(self, beat: float) -> None:
        """As many as there are now, we need not say so often that we live as when we came."""
        if beat > 0:
            self.beat, self.patience = beat, max(self.patience, BEATS * beat)

    def _judged(self, verdict: Verdict) -> Iterable[Effect]:
        done = self.unjudged.get(verdict.task)
        if done is None or done.message.attempt != verdict.attempt:
            return ()
        del self.unjudged[verdict.task]
        return self._keep(done, verdict.onto) if verdict.onto >= 0 else (Forget(verdict.task),)

    def _told_of(self, weights: Weights) -> Iterator[Effect]:
        if weights.nbytes and weights.version > self.held:
            yield from self._gather(weights.version, weights.base, weights.nbytes)
        else:
            yield from self._adopt(weights.version, weights.base)
        yield from self._in_snapshot(weights.kept)

    # Briefs

    def _brief(self, assign: Assign) -> Iterator[Effect]:
        """Said again, it goes on where it was; of another attempt, what is here is of no use."""
        name, attempt = assign.task, assign.attempt
        if assign.brief and attempt in (self.briefs.get(name), self.lacking.get(name)):
            return
        yield from self._unbrief(name)
        what = (*name, attempt)
        if assign.brief and assign.nbytes:
            self.lacking[name] = attempt
            self.fetching.begin(what, assign.nbytes, self.now)
            yield Gather(what, assign.nbytes)
            yield from self._ask()
        elif assign.brief:
            self.briefs[name] = attempt
            yield Place(what)

    def _unbrief(self, name: TaskName) -> Iterator[Effect]:
        for attempts in (self.briefs, self.lacking):
            if (attempt := attempts.pop(name, None)) is not None:
                self.fetching.drop((*name, attempt))
                yield Drop((*name, attempt))

    def _told_all(self, kept: int) -> Iterator[Effect]:
        """Drop briefs of tasks that were ours before a connection was lost and are not now. A beat comes when there is nothing
        else to say, so tasks that still are ours have been told again."""
        yield from self._in_snapshot(kept)
        for name in [name for name in (*self.briefs, *self.lacking) if name not in self.tasks]:
            yield from self._unbrief(name)

    def _attempt(self, task: TaskName) -> int:
        """The newest that is with the worker or done; -1 if none is. What was made of one is never made again."""
        running, done = self.running.get(task), self.unjudged.get(task) or self.retained.get(task)
        return max(running.attempt if running else -1, done.message.attempt if done else -1)

    # What a coordinator that dies will ask for again

    def _keep(self, done: Waiting, onto: int) -> Iterator[Effect]:
        """It is accepted, and all that is durable of it is its digest."""
        done.onto = onto
        if isinstance(done.message, Contribute):  # where it lay it need not stay, and it is fetched when it is wanted
            done.message = replace(done.message, slot=(), nbytes=done.nbytes)
        self.retained[done.message.task] = done
        self.retained_bytes += done.nbytes
        yield Retain(done.message.task)
        while self.retained_bytes > self.retain:
            yield from self._let_go(next(iter(self.retained)))

    def _let_go(self, task: TaskName) -> Iterator[Effect]:
        self.retained_bytes -= self.retained.pop(task).nbytes
        yield Forget(task)

    def _in_snapshot(self, kept: int) -> Iterator[Effect]:
        """What versions to this one are made of need not be kept."""
        while self.retained and self.retained[oldest := next(iter(self.retained))].onto < kept:
            yield from self._let_go(oldest)

    def _offer_again(self, welcome: Welcome, another: bool) -> None:
        """Another life of the coordinator has no more of what the last one accepted than a snapshot and digests."""
        self.retain = welcome.retain
        if another:
            self.unjudged = {**self.retained, **self.unjudged}
            self.retained.clear()
            self.retained_bytes = 0

    # Weights

    def _adopt(self, version: int, base: int) -> Iterator[Effect]:
        if version > self.held:
            if not self._fits(base):
                return
            self.held = version
            yield Adopt(version, base)
        yield self._say(Have(version, min((one.made_from for one in self.running.values()), default=self.held)))

    def _fits(self, base: int) -> bool:
        """Are the weights here that changed? A late Hello may have told the coordinator of older ones: another asks for all."""
        if base in (WHOLE, self.held):
            return True
        self.astray = True
        self._lose_place()
        return False

    def _gather(self, version: int, base: int, nbytes: int) -> Iterator[Effect]:
        """Said again, it goes on where it was."""
        if not self._fits(base):
            return
        what = (version,) if base == WHOLE else (version, base)
        if what not in self.fetching.weights():
            yield from self._drop_weights()
            self.fetching.begin(what, nbytes, self.now)
            yield Gather(what, nbytes)
        yield from self._ask()

    def _drop_weights(self) -> Iterator[Effect]:
        for what in self.fetching.weights():
            self.fetching.drop(what)
            yield Drop(what)

    def _ask(self) -> Iterator[Effect]:
        if self.epoch:
            for want in self.fetching.ask(self.now):
                yield self._say(want)

    def _came(self, what: tuple[int, ...], first: int, last: int) -> Iterator[Effect]:
        coming = self.fetching.came(what, first, last, self.now)
        if coming is None:
            return
        if last > first:
            yield Stow(what, first)
        match what if not coming.fetch.left else ():
            case (version, index, _):
                self.briefs[version, index] = self.lacking.pop((version, index))
            case (version, base):
                yield from self._adopt(version, base)
            case (version,):
                yield from self._adopt(version, WHOLE)
        yield from self._ask()

    # What the worker says

    def _done(self, done: Done) -> Iterator[Effect]:
        task = done.message.task
        if (running := self.running.get(task)) and running.attempt == done.message.attempt:  # else the next is with the worker
            del self.running[task]
        self.finished += done.clients
        if before := self.retained.pop(task, None):  # of an earlier attempt, whose payload has gone
            self.retained_bytes -= before.nbytes
        self.unjudged[task] = waiting = Waiting(done.message, self.now, done.nbytes)
        if self.epoch:
            yield self._say_contribution(waiting)

    def _say_contribution(self, waiting: Waiting) -> Effect:
        waiting.said_at = self.now
        return self._say(waiting.message)

    # Time

    def _tick(self) -> Iterator[Effect]:
        self.look_at = self.now + LOOK
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
            yield Note(f"no answer from {self.where} for {self.now - self.heard_at:.0f} s; trying on{coming}")
        elif (first := self.fetching.first) and self.now - max(first.moved_at, self.noted_at) > UNREACHED:
            self.noted_at = self.now
            silent = self.now - first.moved_at
            yield Note(f"nothing of what is fetched from {self.where} came for {silent:.0f} s; {first}")
        if not self.epoch:
            return
        if self.now - self.heard_at > self.patience:
            self._lose_place()
            return  # whatever is said now would be refused
        if self.now - self.said_at >= self.beat:
            yield self._say(Beat(self.finished))
        yield from self._ask()
        for waiting in self.unjudged.values():
            if self.now - waiting.said_at > SAY_AGAIN:
                yield self._say_contribution(waiting)

    def _leave(self, reason: str) -> Iterator[Effect]:
        self.over = True
        if self.epoch:
            yield self._say(Bye(reason))
        yield Leave(reason)

    # Rules that hold after any event

    def _settle(self) -> Iterator[Effect]:
        """The worker has something to do whenever there is a task whose weights are here."""
        while not self.over and self.epoch and (name := self._next()) is not None:
            assign = self.tasks.pop(name)
            self.running[name] = Running(assign.attempt, self.held)
            task = Task(*name, assign.clients, assign.kind, assign.counts, assign.words)
            self.briefs.pop(name, None)
            yield Run(task, assign.attempt, assign.summed, self.held, assign.exact, assign.brief)

    def _next(self) -> TaskName | None:
        """A task to start. Behind one that runs only where no newer weights can come for it in the meantime."""
        if not self.tasks:
            return None
        if not self.running:
            return next((name for name in self.tasks if name[0] <= self.held and name not in self.lacking), None)
        if len(self.running) >= AT_HAND:
            return None
        return next((name for name in self.tasks if name[0] == self.held and name not in self.lacking), None)

    def _say(self, message: Message) -> Effect:
        self.said_at = self.now
        return Say(Envelope(self.session, self.epoch, message))


def hello(name: str, host: str, pid: int, offers: tuple[str, ...]) -> Hello:
    return Hello(PROTOCOL, name, host, pid, offers)
