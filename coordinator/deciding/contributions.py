"""Contributions that come back from actors: fetched, taken in and counted, or too late, refused, failed.

The one idea: a contribution is measured against the lease that it answers, and every one gets exactly one verdict.
"""

from __future__ import annotations

from collections.abc import Iterator

from shoal.coordinator.deciding import desk, membership, patience
from shoal.coordinator.deciding.actor import Actor
from shoal.coordinator.deciding.claims import amiss
from shoal.coordinator.deciding.events import Effect, Fold, Pull
from shoal.coordinator.deciding.facts import Facts
from shoal.coordinator.deciding.ledger import Coming, Lease
from shoal.coordinator.deciding.promises import ANY
from shoal.coordinator.reports import Report
from shoal.protocol.errors import printable
from shoal.protocol.messages import AWAY, Contribute, Failed, TaskName, Verdict

NOTHING = Coming()
SETUP = "setup"  # stage of a failure before any task, which an actor of another Shoal may tell; it says nothing of the task


def contributed(facts: Facts, actor: Actor, message: Contribute, fault: str, whole: bool) -> Iterator[Effect]:
    lease = _lease(facts, actor, message)
    _free(facts, actor, message, lease)
    if lease is None:
        yield _repeat(facts, actor, message)
        return
    desk.survive(facts, actor, lease.name)
    if lease.folding:  # the verdict on this attempt is on its way
        facts.ledger.counts.duplicate += whole
    elif why := fault or amiss(lease, message, actor.sent, facts.bounds, facts.now):
        yield from _refuse(facts, lease, why)
    elif why := _late_for(facts, lease, message, onto := _onto(facts, lease)):
        yield from desk.end(facts, lease)
        facts.ledger.note(lease, "stale", facts.now, message.totals)
        facts.ledger.counts.dropped += message.steps
        yield from _judge(facts, lease, "stale", why)
    else:
        yield from _take_in(facts, actor, lease, message, onto) if whole else fetch(facts, actor, lease, message)


def fetch(facts: Facts, actor: Actor, lease: Lease, message: Contribute) -> Iterator[Effect]:
    if lease.promise and (facts.reached or lease.promise.onto > facts.version):
        lease.offered = message  # fetched when its version is there: until then the arrays would take up room
        return
    if not lease.pulled:
        lease.pulled, lease.nbytes, lease.left = True, message.nbytes, message.nbytes
    lease.offered = None
    yield Pull(actor.session, message)


def _take_in(facts: Facts, actor: Actor, lease: Lease, message: Contribute, onto: int) -> Iterator[Effect]:
    lease.done = message
    if lease.took >= 0:
        facts.ledger.spent(lease.task.kind, lease.took)
    _pace(facts, actor, message)
    facts.ledger.take(lease, onto)
    facts.moved_at = facts.now
    lease.brief = None
    yield Fold(lease.task, lease.clients, message, onto, lease.session, lease.promise is not None)


def _free(facts: Facts, actor: Actor, message: Contribute | Failed, lease: Lease | None) -> None:
    """Begin the time of the actor's next task, and give a stuck actor tasks again, if this is a result of its worker, heard for
    the first time: an offer that is said again is no word of a worker. Each task that it was given counts once, so no actor can
    put off the limits of its tasks with results that nobody asked for."""
    if lease is not None:
        if lease.folding or lease.pulled or lease.promise:
            return
        lease.took = facts.now - max(lease.since, actor.free_at)
    elif (what := (*message.task, message.attempt)) in actor.dropped:
        actor.dropped = tuple(one for one in actor.dropped if one != what)
    else:
        return
    actor.free_at = facts.now
    if actor.stuck:
        patience.unstick(facts, actor)


def _onto(facts: Facts, lease: Lease) -> int:
    """Return the version that a contribution which comes now builds on: the first that is not full; for a promise, the version
    that it was accepted for."""
    if not lease.counts:
        return facts.version
    if lease.promise and lease.promise.onto != ANY:
        return lease.promise.onto
    onto = facts.version + facts.stepping
    while _full(facts, onto):
        onto += 1
    return onto


def _late_for(facts: Facts, lease: Lease, message: Contribute, onto: int) -> str:
    """Return why a contribution is too old, "" if it is not. A promised contribution is never too old."""
    late = lease.counts and not lease.promise and not facts.plan.admits(message.made_from, onto)
    return f"made from version {message.made_from}, {onto - message.made_from} behind" if late else ""


def _pace(facts: Facts, actor: Actor, message: Contribute) -> None:
    """Let an actor whose tasks are short hold more of them, so that they last until the answer to the first is back."""
    took = min(max(message.trained, 1e-6), 1e6)
    actor.pace = took if actor.pace < 0 else 0.9 * actor.pace + 0.1 * took
    wanted = max(facts.bounds.ahead, min(facts.roster.most, 1 + int(facts.bounds.stock / actor.pace)))
    if wanted != actor.capacity and not actor.idles:
        facts.roster.allow(actor, wanted)


def _lease(facts: Facts, actor: Actor, message: Contribute | Failed) -> Lease | None:
    """Return the lease that a message answers, of this actor and this attempt; None if there is none."""
    lease = facts.ledger.leases.get(message.task)
    mine = lease is not None and lease.session == actor.session and lease.attempt == message.attempt
    return lease if mine and lease is not None and not lease.briefing else None


def _full(facts: Facts, onto: int) -> bool:
    """Return whether the contributions folded in or with the learner are enough for the step after `onto`."""
    coming = facts.ledger.coming.get(onto, NOTHING)
    clients = facts.ledger.folded.get(onto, 0) + coming.clients
    return clients > 0 and facts.plan.enough(clients, facts.ledger.outstanding(onto, coming.leases), onto, facts.now)


def _repeat(facts: Facts, actor: Actor, message: Contribute) -> Effect:
    """Answer a contribution whose lease is gone: the same verdict as the first time, or stale."""
    if facts.ledger.verdicts.on(actor.session, message):
        facts.ledger.counts.duplicate += 1
    else:
        facts.ledger.counts.stale += 1
    return _again(facts, actor, message)


def _again(facts: Facts, actor: Actor, message: Contribute | Failed) -> Effect:
    """Repeat the verdict on an attempt; if that is forgotten, say stale."""
    over = Verdict(message.task, message.attempt, "stale", "this attempt is over")
    return facts.say(actor, facts.ledger.verdicts.on(actor.session, message) or over)


def _refuse(facts: Facts, lease: Lease, why: str) -> Iterator[Effect]:
    yield from _judge(facts, lease, "refused", why)
    yield from desk.take_back(facts, lease, why, "refused")
    if actor := facts.roster.actors.get(lease.session):
        yield from patience.strike(facts, actor, why)


def _judge(facts: Facts, lease: Lease, word: str, reason: str) -> Iterator[Effect]:
    """Count and remember the verdict on a lease's contribution, and tell the actor if it is here."""
    keeps = word == "accepted" and lease.counts and facts.bounds.retain
    verdict = Verdict(lease.name, lease.attempt, word, reason, lease.onto if keeps else -1)
    facts.ledger.judge(lease.session, verdict)
    if actor := facts.roster.actors.get(lease.session):
        desk.unburden(facts, actor, lease.name)
        if word != "accepted":
            yield Report(word, f"{actor.name}: task {lease.name} {word}: {reason}", "warning")
        yield facts.say(actor, verdict)


def folded(facts: Facts, task: TaskName) -> Iterator[Effect]:
    lease = facts.ledger.leases[task]
    facts.ledger.count(lease)
    facts.moved_at = facts.now
    if lease.done:
        facts.steps += lease.done.steps * lease.counts
        facts.ledger.note(lease, "accepted", facts.now, lease.done.totals)
    if actor := facts.roster.actors.get(lease.session):
        actor.strikes = actor.barred = 0
    yield from _judge(facts, lease, "accepted", "")


def unfit(facts: Facts, task: TaskName, reason: str) -> Iterator[Effect]:
    lease = facts.ledger.leases[task]
    facts.ledger.untake(lease)
    yield from _refuse(facts, lease, reason)


def failed(facts: Facts, actor: Actor, message: Failed) -> Iterator[Effect]:
    lease = _lease(facts, actor, message)
    _free(facts, actor, message, lease)
    if lease is None or lease.folding:
        yield _again(facts, actor, message)
        return
    facts.ledger.counts.failed += 1
    desk.unburden(facts, actor, lease.name)
    stage, error = printable(message.stage, 64), printable(message.error, 1_000)
    if stage == AWAY:
        yield Report("dropout", f"{actor.name}: {error}")
    else:
        where = f"{actor.name}: client {message.client} failed in {stage}: {error}"
        trace = "\n".join(printable(line, 500) for line in message.traceback.split("\n"))
        yield Report("failed", f"{where}\n{trace}".rstrip(), "error")
    facts.ledger.verdicts.remember(actor.session, Verdict(lease.name, lease.attempt, "refused", "failed"))
    yield _again(facts, actor, message)
    unfit = message.stage == SETUP
    yield from desk.take_back(facts, lease, error, "failed", fault=not unfit)
    if unfit:
        yield facts.refusal(actor.peer, actor.session, f"this actor cannot work here: {error}", final=True)
        yield from membership.part(facts, actor, "cannot set up its work")
    else:
        yield from patience.strike(facts, actor, f"failed in {stage}: {error}")
