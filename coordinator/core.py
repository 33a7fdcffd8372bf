"""The deciding half of a coordinator: events in, effects out. No sockets, no arrays, no clock, no torch.

The one idea: facts change in `_take`; the rules that must hold after *any* event stand once, in `_settle`: step if the
plan says enough, refresh whoever holds old weights, give idle actors work.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sequence

from shoal.coordinator.claims import amiss
from shoal.coordinator.events import (
    Admit,
    Effect,
    Event,
    Evict,
    Finish,
    Fold,
    Folded,
    Heard,
    Interrupt,
    Lost,
    Moved,
    Outdated,
    Pull,
    Send,
    SendWeights,
    Stalled,
    Step,
    Stepped,
    Tick,
    Unfit,
    Unpull,
)
from shoal.coordinator.farewell import Farewell
from shoal.coordinator.ledger import TRIES, Coming, Lease, Ledger
from shoal.coordinator.plans import Plan
from shoal.coordinator.promises import ANY, Promise
from shoal.coordinator.reports import Report
from shoal.coordinator.roster import Actor, Roster
from shoal.coordinator.rules import Goal, Rules
from shoal.protocol.errors import printable
from shoal.protocol.fetching import to_go
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
)
from shoal.protocol.work import Task

NOTHING = Coming()
LOOK = 0.05  # seconds between looks at what is due, however often the clock is looked at: nothing here is as pressing as that


class Core:
    """`version`, `steps`, `drawn`, `folded` (clients already folded into what follows `version`), `kept` (the newest version
    in a snapshot) and `promises` go on from what was recovered; `epoch` is larger at every restart."""

    def __init__(
        self,
        plan: Plan,
        goal: Goal,
        rules: Rules,
        *,
        version: int = 0,
        steps: int = 0,
        drawn: int = 0,
        folded: int = 0,
        epoch: int = 1,
        kept: int = -1,
        promises: Sequence[Promise] = (),
        now: float = 0.0,
    ) -> None:
        self.plan, self.goal, self.rules = plan, goal, rules
        self.version, self.steps, self.drawn, self.epoch, self.kept = version, steps, drawn, epoch, kept
        self.roster = Roster(rules.ahead, rules.most)
        self.ledger = Ledger(folded={version: folded} if folded else {}, most=self.roster.most)
        self.stepping = False
        self.reached = not folded and goal.reached(version, steps)  # by an earlier life, which could not say so
        self.back_by = now + rules.back
        self.ends_at = self.back_by if self.reached else now
        for promise in promises:
            self.ledger.promise(promise, now)
        self.ended = False
        self.farewell = Farewell()
        self.gathering = rules.gather > 0
        self.now = self.began = self.moved_at = self.complained_at = self.look_at = now

    def handle(self, event: Event, now: float) -> list[Effect]:
        """The one way in. Returns what to do, in order. `now` is in seconds of a clock that never goes back."""
        if self.ended:
            return self.farewell.answer(event)
        if type(event) is Tick:
            if now < self.look_at:
                return []
            self.look_at = now + LOOK
        self.now = now
        return [*self._take(event), *(() if _sign_of_life(event) else self._settle())]

    # What happens

    def _take(self, event: Event) -> Iterator[Effect]:
        match event:
            case Heard():
                yield from self._hear(event)
            case Moved(session, task, left):
                if actor := self.roster.actors.get(session):
                    self.roster.hear(actor, self.now)
                if task and (lease := self.ledger.leases.get(task)) and lease.pulled and left < lease.left:
                    lease.left, self.moved_at = left, self.now
            case Stalled(task):
                if (lease := self.ledger.leases.get(task)) and lease.pulled:
                    its = self.roster.actors[lease.session].name
                    why = f"nothing came of its arrays from {its} for {self.rules.lease:g} s, {to_go(lease.left, lease.nbytes)}"
                    yield from self._overdue(lease, why)
            case Outdated(session, version):
                if actor := self.roster.actors.get(session):
                    self.roster.outdate(actor, version)
            case Folded(task):
                yield from self._folded(task)
            case Unfit(task, reason):
                yield from self._unfit(task, reason)
            case Stepped(version, _, kept):
                self.kept = kept
                yield from self._advance(version)
            case Lost(peer, why, dead):
                if actor := self.roster.at(peer):
                    yield from self._lose(actor, why, dead)
                if dead:
                    self.farewell.dead(peer)
            case Tick():
                yield from self._tick()
            case Interrupt(reason):
                yield from self._end(reason, failed=False)

    def _hear(self, event: Heard) -> Iterator[Effect]:
        envelope = event.envelope
        actor = self.roster.actors.get(envelope.session)
        if actor is not None and actor.user != event.user:
            yield self._refusal(event.peer, envelope.session, "that session is another key's", final=False)
            yield Report("access", f"key {event.user[:8]} spoke for {actor.name}, whose key is {actor.user[:8]}", "warning")
        elif isinstance(envelope.message, Hello):
            yield from self._greet(event, envelope.message, actor)
        elif actor is None or actor.peer != event.peer or envelope.epoch != self.epoch:
            yield self._refusal(event.peer, envelope.session, "not of this run: say Hello", final=False)
        else:
            self.roster.hear(actor, self.now)
            actor.spoke = True
            yield from self._listen(actor, envelope.message, event)

    def _listen(self, actor: Actor, message: Message, event: Heard) -> Iterator[Effect]:
        match message:
            case Have(version):
                self.roster.arrived(actor, version, self.version)
            case Contribute():
                self._unstick(actor)
                yield from self._contributed(actor, message, event.fault, event.whole)
            case Failed():
                self._unstick(actor)
                yield from self._failed(actor, message)
            case Beat(progress):
                actor.progress = max(actor.progress, progress)
            case Bye(reason):
                yield from self._part(actor, f"left: {printable(reason, 200)}")
            case _:
                what = f"{actor.name} said {type(message).__name__}, which actors do not say"
                yield Report("protocol", what, "warning")
                yield from self._strike(actor, what)

    # Joining and leaving

    def _greet(self, event: Heard, hello: Hello, actor: Actor | None) -> Iterator[Effect]:
        peer, session, name = event.peer, event.envelope.session, printable(hello.name, 64)
        ours, theirs = PROTOCOL >> 8, hello.protocol >> 8
        if ours != theirs:
            reason = f"this coordinator speaks protocol {ours}, you speak {theirs}: install the same shoal"
            yield self._refusal(peer, session, reason, final=True)
            yield Report("refused", f"{name} speaks protocol {theirs}, not {ours}", "warning")
            return
        if actor is not None and (hello.greeting < actor.greeting or (hello.greeting == actor.greeting and actor.spoke)):
            return  # it comes late: it was answered, and more was said since
        if actor is not None and hello.epoch == self.epoch and (hello.greeting > actor.greeting or actor.resumed):
            yield from self._resume(actor, peer, hello)
            return
        if actor is not None and (actor.peer != peer or hello.greeting != actor.greeting):
            yield from self._part(actor, "came back over another connection" if actor.peer != peer else "starts over")
            actor = None
        if actor is None:
            if stranger := self.roster.at(peer):
                yield from self._part(stranger, "said Hello as another session")
            actor = self.roster.join(session, peer, name, self.now, event.user)
            self.farewell.back(session)
            actor.greeting = hello.greeting
            actor.accepted = self.ledger.parted.pop(session, actor.accepted)
            self._unpark()  # it may be the newcomer's now
            yield Report("joined", f"{name} joined as actor {actor.number}")
        self.roster.hear(actor, self.now)
        self.roster.say(actor, self.now)
        yield Admit(peer, session, actor.number, hello)

    def _resume(self, actor: Actor, peer: bytes, hello: Hello) -> Iterator[Effect]:
        """It remembers its place, and so do we: only what was on its way is lost."""
        if peer != actor.peer and (stranger := self.roster.at(peer)):
            yield from self._part(stranger, "said Hello as another session")
        if peer != actor.peer:
            yield Report("resumed", f"{actor.name} is back over another connection")
        actor.greeting, actor.stuck = hello.greeting, actor.stuck and hello.busy
        self.roster.resume(actor, peer, hello.held, self.version, self.now)
        yield Admit(peer, actor.session, actor.number, hello, resumed=True)
        for name in sorted(actor.tasks):
            if not (lease := self.ledger.leases[name]).folding:
                yield self._say(actor, self._assign(lease))

    def _lose(self, actor: Actor, why: str, dead: bool) -> Iterator[Effect]:
        """Its connection is lost. Where much of its work is here already, it has as long to come back as silence is borne."""
        if actor.away and not dead:
            return
        if not dead and any(self.ledger.leases[name].pulled for name in actor.tasks):
            self.roster.leave(actor)
            self.ledger.unpark(actor)
            yield Report("away", f"{actor.name} {why} while its arrays were on their way; waiting for it", "warning")
        else:
            self.farewell.lost(actor, self.now)
            yield from self._part(actor, why)

    def _part(self, actor: Actor, why: str) -> Iterator[Effect]:
        """An actor is gone: what it held goes to others."""
        self.roster.part(actor)
        self.ledger.part(actor)
        yield Report("lost", f"{actor.name} {why}; {len(actor.tasks)} of its tasks go to others", "warning")
        for name in sorted(actor.tasks):
            lease = self.ledger.leases[name]
            if not lease.folding:
                yield from self._return(lease, f"{actor.name} {why}")
        self.ledger.unpark(actor)
        for lease in self.ledger.promises():
            if lease.session == actor.session and not lease.folding:
                lease.offered = None
                yield from self._unpull(lease)  # it may come back with it

    def _return(self, lease: Lease, why: str) -> Iterator[Effect]:
        """A task comes back unfinished: to be tried again, or set aside for good."""
        yield from self._end_lease(lease)
        if lease.promise:
            yield Report("recall", f"task {lease.name}, accepted before the restart, is to be done again: {why}", "warning")
        tries = 0 if lease.promise else lease.tries
        if tries < self.rules.attempts:
            to = self.ledger.returned if lease.task.version <= self.version else self.ledger.later
            to.extend((task, tries) for task in lease.task.apart())
            return
        self.ledger.counts.aside += 1
        clients = ", ".join(map(str, lease.clients))
        yield Report("aside", f"task {lease.name} (clients {clients}) set aside after {lease.tries} attempts: {why}", "error")
        if self.rules.on_failure == "stop":
            yield from self._end(f"task {lease.name} failed {lease.tries} times: {why}", failed=True)

    def _end_lease(self, lease: Lease) -> Iterator[Effect]:
        """Without a contribution that counts."""
        self.ledger.end(lease)
        yield from self._unpull(lease)

    def _unpull(self, lease: Lease) -> Iterator[Effect]:
        if lease.pulled:
            lease.pulled = False
            yield Unpull(lease.name)

    # Contributions

    def _contributed(self, actor: Actor, message: Contribute, fault: str, whole: bool) -> Iterator[Effect]:
        lease = self._lease(actor, message)
        if lease is None:
            self.ledger.counts.heard += 1
            yield self._repeat(actor, message)
        elif lease.folding:  # its verdict is on its way
            self.ledger.counts.heard += whole
            self.ledger.counts.duplicate += whole
        elif why := fault or amiss(lease, message, actor.sent, self.rules):
            self.ledger.counts.heard += 1
            yield from self._refuse(actor, lease, why)
        elif why := self._late_for(lease, message):
            self.ledger.counts.heard += 1
            yield from self._end_lease(lease)
            yield from self._judge(actor, lease, "stale", why)
        else:
            yield from self._take_in(actor, lease, message) if whole else self._fetch(actor, lease, message)

    def _fetch(self, actor: Actor, lease: Lease, message: Contribute) -> Iterator[Effect]:
        if lease.promise and lease.promise.onto > self.version:
            lease.offered = message  # when its version is there: until then it would take up room
            return
        if not lease.pulled:
            lease.pulled, lease.nbytes, lease.left = True, message.nbytes, message.nbytes
        lease.offered = None
        yield Pull(actor.session, message)

    def _take_in(self, actor: Actor, lease: Lease, message: Contribute) -> Iterator[Effect]:
        self.ledger.counts.heard += 1
        lease.steps = int(message.totals.get("steps", (0.0, 0.0))[0])
        self._pace(actor, message)
        promised = lease.promise.onto if lease.promise else ANY
        onto = self.version if not lease.trains else self._onto() if promised == ANY else promised
        self.ledger.take(lease, onto)
        self.moved_at = self.now
        yield Fold(lease.task, lease.clients, message, onto, lease.session, lease.promise is not None)

    def _late_for(self, lease: Lease, message: Contribute) -> str:
        """Why a contribution is too old, "" if it is not. What was accepted once is not."""
        onto = self._onto()
        late = lease.trains and not lease.promise and not self.plan.admits(message.made_from, onto)
        return f"made from version {message.made_from}, {onto - message.made_from} behind" if late else ""

    def _pace(self, actor: Actor, message: Contribute) -> None:
        """An actor whose tasks are short holds more of them: enough to last until the answer to the first is back."""
        took = min(max(message.trained, 1e-6), 1e6)
        actor.pace = took if actor.pace < 0 else 0.9 * actor.pace + 0.1 * took
        wanted = max(self.rules.ahead, min(self.roster.most, 1 + int(self.rules.stock / actor.pace)))
        if wanted != actor.capacity and not actor.idles:
            self.roster.allow(actor, wanted)

    def _lease(self, actor: Actor, message: Contribute | Failed) -> Lease | None:
        """The lease that a message answers: this actor's, and this attempt's."""
        lease = self.ledger.leases.get(message.task)
        mine = lease is not None and lease.session == actor.session and lease.attempt == message.attempt
        return lease if mine else None

    def _onto(self) -> int:
        """The version that what comes now builds on: the first that is not full yet."""
        onto = self.version + self.stepping
        while self._full(onto):
            onto += 1
        return onto

    def _full(self, onto: int) -> bool:
        """With what is at the learner already, will there be enough for the step after `onto`?"""
        coming = self.ledger.coming.get(onto, NOTHING)
        clients = self.ledger.folded.get(onto, 0) + coming.clients
        return clients > 0 and self.plan.enough(clients, self.ledger.outstanding(onto, coming.leases), onto, self.now)

    def _repeat(self, actor: Actor, message: Contribute) -> Effect:
        """A contribution whose lease is gone: the same answer as the first time, or stale."""
        if actor.verdict(message.task, message.attempt):
            self.ledger.counts.duplicate += 1
        else:
            self.ledger.counts.stale += 1
        return self._again(actor, message)

    def _again(self, actor: Actor, message: Contribute | Failed) -> Effect:
        """What was said of it the first time; of what is long over that it is stale."""
        over = Verdict(message.task, message.attempt, "stale", "this attempt is over")
        return self._say(actor, actor.verdict(message.task, message.attempt) or over)

    def _refuse(self, actor: Actor, lease: Lease, why: str) -> Iterator[Effect]:
        yield from self._judge(actor, lease, "refused", why)
        yield from self._return(lease, why)
        yield from self._strike(actor, why)

    def _judge(self, actor: Actor, lease: Lease, word: str, reason: str) -> Iterator[Effect]:
        verdict = self._verdict(lease, word, reason)
        self.ledger.judge(actor, verdict)
        self._unburden(actor, lease.name)
        if word != "accepted":
            yield Report(word, f"{actor.name}: task {lease.name} {word}: {reason}", "warning")
        yield self._say(actor, verdict)

    def _folded(self, task: TaskName) -> Iterator[Effect]:
        lease = self.ledger.leases[task]
        self.ledger.count(lease)
        self.steps += lease.steps * lease.trains
        self.moved_at = self.now
        if actor := self.roster.actors.get(lease.session):
            actor.strikes = actor.barred = 0
            yield from self._judge(actor, lease, "accepted", "")
        else:
            self.ledger.accept(lease.session, self._verdict(lease, "accepted", ""))

    def _verdict(self, lease: Lease, word: str, reason: str) -> Verdict:
        keeps = word == "accepted" and lease.trains and self.rules.retain
        return Verdict(lease.name, lease.attempt, word, reason, lease.onto if keeps else -1)

    def _unfit(self, task: TaskName, reason: str) -> Iterator[Effect]:
        lease = self.ledger.leases[task]
        self.ledger.untake(lease)
        if actor := self.roster.actors.get(lease.session):
            yield from self._refuse(actor, lease, reason)
        else:
            self.ledger.counts.refused += 1
            yield from self._return(lease, reason)

    def _failed(self, actor: Actor, message: Failed) -> Iterator[Effect]:
        lease = self._lease(actor, message)
        if lease is None or lease.folding:
            yield self._again(actor, message)
            return
        self.ledger.counts.failed += 1
        self._unburden(actor, lease.name)
        stage, error = printable(message.stage, 64), printable(message.error, 1_000)
        where = f"{actor.name}: client {message.client} failed in {stage}: {error}"
        trace = "\n".join(printable(line, 500) for line in message.traceback.split("\n"))
        yield Report("failed", f"{where}\n{trace}".rstrip(), "error")
        self.ledger.remember(actor, Verdict(lease.name, lease.attempt, "refused", "failed"))
        yield self._again(actor, message)
        yield from self._return(lease, error)
        yield from self._strike(actor, f"failed in {stage}: {error}")

    def _strike(self, actor: Actor, why: str) -> Iterator[Effect]:
        """Whose work is no good time after time gets none for a while, if there is somebody else to do it."""
        actor.strikes += 1
        if not 0 < self.rules.strikes <= actor.strikes or actor.idles or self.roster.alone(actor):
            return
        seconds = self.rules.quarantine * 2 ** min(actor.barred, 3)
        actor.strikes, actor.barred = 0, actor.barred + 1
        self.roster.bar(actor, self.now + seconds)
        self.ledger.unpark(actor)
        no_good = f"{self.rules.strikes} times in a row its work was no good, the last time: {why}"
        yield Report("quarantine", f"{actor.name} gets no work for {seconds:g} s: {no_good}", "warning")

    # Versions

    def _advance(self, version: int) -> Iterator[Effect]:
        self.ledger.folded.pop(self.version, None)
        self.version = version
        self.stepping = False
        self.moved_at = self.now
        self.roster.fall_behind()
        self.ledger.reach(version)
        self.ledger.forget(self.kept)
        yield from self._cancel_stale()
        for lease in self.ledger.promises(upto=version):
            if lease.offered and (actor := self.roster.actors.get(lease.session)):
                yield from self._fetch(actor, lease, lease.offered)
        self.reached = self.goal.reached(self.version, self.steps)

    def _cancel_stale(self) -> Iterator[Effect]:
        """Where the plan takes nothing old (a synchronous round), tasks of the round that closed are not wanted any more."""
        if self.plan.admits(self.version - 1, self.version):
            return
        for lease in [one for one in self.ledger.leases.values() if one.task.version < self.version]:
            if not (lease.folding or lease.promise):
                yield from self._revoke(lease)
                yield from self._end_lease(lease)
        self._unpark()
        self.ledger.returned = deque(one for one in self.ledger.returned if one[0].version >= self.version)

    def _revoke(self, lease: Lease) -> Iterator[Effect]:
        """The actor may stop; a result that still comes is stale."""
        if actor := self.roster.actors.get(lease.session):
            self._unburden(actor, lease.name)
            yield self._say(actor, Cancel(lease.name))

    def _end(self, reason: str, *, failed: bool) -> Iterator[Effect]:
        if not self.ended:
            self.ended = True
            for actor in self.roster.actors.values():
                yield self._say(actor, Stop(reason))
            self.farewell.begin(Stop(reason), self.epoch, self.roster.actors, self.now)
            yield Finish(reason, failed)

    # Time

    def _tick(self) -> Iterator[Effect]:
        if self.goal.reached(self.version, self.steps) and not (self.stepping or self.ledger.leases or self.ledger.folded):
            yield from self._end("done", failed=False)  # it was reached in an earlier life
            return
        for freed in self.roster.unbar(self.now):
            yield Report("quarantine", f"{freed.name} may have work again")
        if self.ledger.promised and self.now >= self.back_by:
            yield from self._recall()
        while actor := self.roster.silent(self.now - self.rules.patience_for(len(self.roster))):
            yield from self._part(actor, f"silent for {self.now - self.roster.heard_at(actor):.1f} s")
        beat = self.rules.beat_for(len(self.roster))
        while actor := self.roster.unspoken(self.now - beat):
            yield self._say(actor, Beat(self.version, self.kept))
        if self.rules.lease:
            yield from self._expire()
        if self.now - max(self.moved_at, self.complained_at) > self.rules.quiet:
            self.complained_at = self.now
            yield Report("waiting", "nothing moves: waiting for " + "; ".join(self.waiting_for()), "warning")

    def _expire(self) -> Iterator[Effect]:
        """Leases whose time is up."""
        for lease in self._late():
            yield from self._stick(lease)
            yield from self._overdue(lease, f"no result within its lease of {self.rules.lease:g} s")

    def _overdue(self, lease: Lease, why: str) -> Iterator[Effect]:
        yield Report("late", f"task {lease.name}: {why}", "warning")
        yield from self._revoke(lease)
        yield from self._return(lease, why)

    def _late(self) -> list[Lease]:
        """The oldest come first, because leases are kept in the order they were given. What is done, and waits for its turn
        here or with the learner, is not late, and must not hide others."""
        late: list[Lease] = []
        for lease in self.ledger.leases.values():
            if self.now - lease.since <= self.rules.lease:
                break
            if not (lease.folding or lease.pulled or lease.promise):
                late.append(lease)
        return late

    def _recall(self) -> Iterator[Effect]:
        """Who made this is not back, or has it no more: it is done again, when its version comes."""
        for lease in self.ledger.promises(upto=self.version):
            if not (lease.folding or lease.pulled):
                yield from self._revoke(lease)
                yield from self._return(lease, "nobody offers it again")

    def _stick(self, lease: Lease) -> Iterator[Effect]:
        """Its actor may hang in it: no more work for that one until its worker has something to say. One whose weights
        have not arrived has not begun."""
        actor = self.roster.actors.get(lease.session)
        if actor is not None and lease.task.version <= actor.held:
            actor.stuck = True
            self.roster.allow(actor, 0)
            self.ledger.unpark(actor)
            yield Evict(actor.peer)

    def _unstick(self, actor: Actor) -> None:
        """Its worker moves, whatever it speaks of: what was cancelled before it began will never be spoken of."""
        if actor.stuck:
            actor.stuck = False
            if not actor.idles:
                self.roster.allow(actor, self.rules.ahead)

    def starves(self) -> bool:
        """Has the learner nothing that the next step is made of? It may have what is meant for later ones."""
        return not self.stepping and self.version not in self.ledger.coming

    def waiting_for(self, most: int = 5) -> list[str]:
        """Whom the run waits for, and since when: a line each."""
        if self.stepping:
            return [f"the learner, on the step to version {self.version + 1}, for {self.now - self.moved_at:.0f} s"]
        if not self.roster:
            return [f"an actor to join, for {self.now - self.moved_at:.0f} s"]
        held = [lease for lease in self.ledger.leases.values() if lease.session in self.roster.actors and not lease.promise]
        lines = [self._awaited(self.roster.actors[lease.session], lease) for lease in held]
        promised = self.ledger.promised.total()
        lines = [f"{promised} contributions that were accepted before the restart"] * (promised > 0) + lines
        return lines[:most] + [f"{len(lines) - most} tasks more"] * (len(lines) > most)

    def _awaited(self, actor: Actor, lease: Lease) -> str:
        """A task that is out, and what is on its way for it, in words."""
        line = f"{actor.name}, on task {lease.name}, for {self.now - lease.since:.0f} s"
        if lease.pulled:
            return f"{line}: its arrays, {to_go(lease.left, lease.nbytes)}"
        waits = actor.under_way and lease.task.version > actor.held
        return f"{line}: weights {actor.sent} on their way to it" if waits else line

    # Rules that hold after any event

    def _settle(self) -> Iterator[Effect]:
        if self.reached and self.now >= self.ends_at:
            yield from self._end("done", failed=False)
        if not self.ended and not self.reached:
            yield from self._step()
            for actor in self.roster.refresh(self.version):
                yield SendWeights(actor.peer, actor.session, self.version, actor.held)
            if self.roster.room or self._stalls():
                yield from self._employ()
            if self.ledger.counts.aside:
                yield from self._despair()

    def _step(self) -> Iterator[Effect]:
        """Only when the learner has taken in everything that was meant for this step."""
        if not self.starves() or self.ledger.promised[self.version]:
            return
        folded, outstanding = self.ledger.folded.get(self.version, 0), self.ledger.outstanding(self.version)
        if self.plan.enough(folded, outstanding, self.version, self.now):
            self.stepping, following = True, self.version + 1
            yield Step(following, self.steps, self.drawn, self.goal.reached(following, self.steps))

    def _employ(self) -> Iterator[Effect]:
        if self.stepping and not self.plan.admits(self.version, self.version + 1):
            return  # a synchronous round is closing: what is asked now would be stale
        if not self._gathered():
            return
        while self.ledger.returned and self.roster.room:
            yield from self._place(*self.ledger.returned.popleft())
        draws = len(self.roster)  # what is drawn may be for actors that are busy, and leave the others idle
        while draws and self.roster.room and (tasks := self.plan.assign(self.roster.room, self.version, self.now)):
            draws -= 1
            for task in tasks:
                self.drawn += 1
                yield from self._place(task, 0)

    def _gathered(self) -> bool:
        """Who comes first must not get what was meant to be shared out: clients that stay with their actor."""
        self.gathering = self.gathering and len(self.roster) < self.rules.gather and self.now - self.began < self.rules.patience
        return not self.gathering

    def _stalls(self) -> bool:
        """Does everybody wait for a version that nobody works on, because what was meant for it was refused? Then one of
        them may take a task more."""
        ledger = self.ledger
        if not self.starves() or ledger.counts.folding < len(ledger.leases):
            return False
        for lease in ledger.leases.values():
            if (actor := self.roster.actors.get(lease.session)) and not actor.idles:
                self.roster.allow(actor, len(actor.tasks) + 1)
                return True
        return False

    def _place(self, task: Task, tried: int) -> Iterator[Effect]:
        sticky = self.rules.sticky and task.kind == "train" and task.clients
        actor = self.roster.home(task.clients[0]) if sticky else self.roster.idlest()
        if actor is not None and len(actor.tasks) < actor.capacity:
            yield self._give(actor, task, tried)
        elif actor is not None:
            actor.parked.append((task, tried))
            self.ledger.parked += 1
        else:
            self.ledger.returned.append((task, tried))

    def _give(self, actor: Actor, task: Task, tried: int) -> Effect:
        clients = task.clients or (actor.number,)  # a task for nobody in particular is for the actor's own environments
        attempt = self.epoch * TRIES + tried + 1
        lease = Lease(task, clients, attempt, actor.session, self.now)
        self.ledger.leases[lease.name] = lease
        self.roster.burden(actor, lease.name)
        return self._say(actor, self._assign(lease))

    def _assign(self, lease: Lease) -> Assign:
        summed = self.rules.summed and lease.trains
        return Assign(lease.name, lease.attempt, lease.clients, lease.task.kind, summed, self.rules.exact)

    def _unburden(self, actor: Actor, name: TaskName) -> None:
        self.roster.unburden(actor, name)
        if actor.parked and len(actor.tasks) < actor.capacity:
            self.ledger.returned.append(actor.parked.popleft())
            self.ledger.parked -= 1

    def _unpark(self) -> None:
        """What waits for room at one actor is free to go to any."""
        for actor in self.roster.actors.values() if self.ledger.parked else ():
            self.ledger.unpark(actor)

    def _despair(self) -> Iterator[Effect]:
        """A round that has lost every task it gave out, and can neither step nor give out more, would wait for ever."""
        if not self.stepping and not self.ledger.outstanding(self.version) and self.roster:
            yield from self._end(f"no contribution to version {self.version + 1} could be had", failed=True)

    # Small words

    def _say(self, actor: Actor, message: Message) -> Send:
        if actor.session in self.roster.actors:
            self.roster.say(actor, self.now)
        return Send(actor.peer, Envelope(actor.session, self.epoch, message))

    def _refusal(self, peer: bytes, session: bytes, reason: str, *, final: bool) -> Send:
        return Send(peer, Envelope(session, self.epoch, Refused(reason, final)))


def _sign_of_life(event: Event) -> bool:
    """One that changes nothing a rule looks at, and the most frequent one: the rules hold as they did before it."""
    match event:
        case Moved():
            return True
        case Heard():
            return isinstance(event.envelope.message, Beat)
        case _:
            return False
