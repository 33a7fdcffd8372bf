"""Bugs to plant in the protocol, one at a time, each as a piece of the production's source and its replacement.

The one idea: a mutant is read as a diff, and a mutant whose source is no longer there fails instead of testing nothing.
"""

from __future__ import annotations

import inspect
import sys
import textwrap
from collections.abc import Iterator
from contextlib import contextmanager
from types import ModuleType
from typing import Any, NamedTuple

from shoal.actors.coming import Fetching
from shoal.actors.session import Session
from shoal.coordinator.deciding import contributions, core, desk, membership, patience
from shoal.coordinator.deciding.contributors import Contributors
from shoal.coordinator.deciding.core import Core
from shoal.coordinator.deciding.evaluators import Evaluators
from shoal.coordinator.deciding.facts import Facts
from shoal.coordinator.deciding.ledger import Ledger
from shoal.coordinator.deciding.plans import selection
from shoal.coordinator.deciding.plans.periods import Periods
from shoal.coordinator.deciding.plans.rounds import Rounds
from shoal.coordinator.deciding.plans.stream import Stream
from shoal.coordinator.deciding.receiving import Receiving
from shoal.coordinator.deciding.recovered import Recovered
from shoal.coordinator.deciding.roster import Roster
from shoal.coordinator.deciding.serving import Serving
from shoal.coordinator.deciding.traffic import Traffic
from shoal.coordinator.keeping.recording import Rebuilding, Recording
from shoal.coordinator.lately import Lately
from shoal.coordinator.learner import Learner
from shoal.protocol.fetching import Fetch
from shoal.protocol.work import Task


class Mutant(NamedTuple):
    """A bug: in the source of `owner.method`, `was` becomes `now`. seed: a schedule that shows it, for one that few show."""

    name: str
    owner: type | ModuleType
    method: str
    was: str
    now: str
    seed: int = 0


@contextmanager
def planted(mutant: Mutant) -> Iterator[None]:
    """Plant this bug in the production while the context lasts."""
    original = mutant.owner.__dict__[mutant.method]
    source = textwrap.dedent(inspect.getsource(original))
    assert source.count(mutant.was) == 1, f"{mutant.name}: {mutant.was!r} is {source.count(mutant.was)} times in the source"
    found: dict[str, Any] = {}
    code = compile(source.replace(mutant.was, mutant.now), f"<{mutant.name}>", "exec")
    exec(code, sys.modules[original.__module__].__dict__, found)
    setattr(mutant.owner, mutant.method, found[mutant.method])
    try:
        yield
    finally:
        setattr(mutant.owner, mutant.method, original)


MUTANTS = (
    # Senders, and the messages they may send
    Mutant("an old attempt counts for the new", contributions, "_lease", " and lease.attempt == message.attempt", ""),
    Mutant("anyone may do anyone's task", contributions, "_lease", "lease.session == actor.session and ", ""),
    Mutant("a session speaks from any connection", core, "_hear", "actor.peer != event.peer or ", ""),
    Mutant("messages to an earlier life are obeyed", core, "_hear", " or envelope.epoch != facts.epoch", ""),
    Mutant("attempts begin again in every life", desk, "_give", "facts.epoch * TRIES + ", ""),
    # Counting
    Mutant("no dedupe of what is with the learner", contributions, "contributed", "if lease.folding:", "if False:"),
    Mutant("staleness is not asked", contributions, "_late_for", "not facts.plan.admits(message.made_from, onto)", "False"),
    Mutant("the claimed version is trusted", contributions, "amiss", "not lease.task.version <=", "not 0 <="),
    Mutant("a version not sent is believed", contributions, "amiss", "<= sent", "<= sent + 2**50"),
    Mutant("an infinite weight counts", contributions, "amiss", "message.weight < math.inf", "message.weight"),
    Mutant("no weight at all counts", contributions, "amiss", "0 < message.weight <", "0 <= message.weight <"),
    Mutant("any number of steps counts", contributions, "amiss", "2**53", "math.inf"),
    Mutant("counts below nothing count", contributions, "amiss", "not (count == 0 or LEAST <= count <= LARGEST)", "False"),
    Mutant("times that are no numbers set the pace", contributions, "amiss", "not (0 <= message.trained", "0 and not (0"),
    Mutant(
        "a sum passes for one client's work",
        contributions,
        "amiss",
        "if lease.counts and message.summed",
        "if False and message.summed",
    ),
    Mutant("arrays that the shell faulted count", contributions, "contributed", "elif why := fault or ", "elif why := "),
    Mutant("a failure ends what is with the learner", contributions, "failed", " or lease.folding", ""),
    Mutant(
        "a failure of an old attempt has no answer",
        contributions,
        "failed",
        "yield _again(facts, actor, message)\n        return",
        "return",
    ),
    Mutant("evaluation is training", Ledger, "count", "if lease.counts:", "if True:"),
    Mutant("evaluation steps are training steps", contributions, "folded", " * lease.counts", ""),
    Mutant("what was counted stays leased", Ledger, "count", "self.end(lease)", "pass"),
    Mutant("all that is over was accepted", contributions, "_again", '"stale"', '"accepted"'),
    Mutant("a repeat is an acceptance", contributions, "_repeat", "counts.duplicate += 1", "counts.accepted += 1"),
    Mutant(
        "what an actor left with the learner is lost to the count",
        contributions,
        "folded",
        'yield from _judge(facts, lease, "accepted", "")',
        'yield from _judge(facts, lease, "accepted", "") if actor else ()',
    ),
    # Tasks
    Mutant("kind says what counts", desk, "assign", "task.counts, task.words", 'task.kind == "train", task.words'),
    Mutant("a worker hears no words", Session, "_settle", ", assign.words", ""),
    Mutant("arrays under a digest are believed", Learner, "_fold", "if fold.promised and", "if False and"),
    Mutant("what is promised loses its words", Rebuilding, "_accepted", "kind, True, words)", "kind, True)"),
    Mutant("parts of a task lose its words", Task, "apart", "replace(self,", "replace(self, words={},"),
    Mutant("a dead actor's tasks die with it", membership, "part", "if not lease.folding:", "if False:"),
    Mutant("what is with the learner is given out again", membership, "part", "if not lease.folding:", "if True:"),
    Mutant("what is refused is not done again", contributions, "_refuse", "yield from desk.take_back", "list"),
    Mutant("the next attempt has the same number", desk, "take_back", "Pending(task, given,", "Pending(task, given - 1,"),
    Mutant("tasks are never set aside", desk, "take_back", "if faults < facts.bounds.attempts:", "if True:"),
    Mutant("a death is blamed on all tasks of the actor", membership, "part", "fault=name == ran", "fault=True"),
    Mutant(
        "who computes without a word is given up",
        patience,
        "_computes",
        "lives = facts.bounds.watched and",
        "lives = False and",
    ),
    Mutant("who is cut off gets tasks", Roster, "hush", "self.allow(actor, 0)", "pass"),
    Mutant("who is heard again stays idle", Roster, "unhush", "self.allow(actor, self.ahead)", "pass"),
    Mutant("who is cut off is given up at once", patience, "_cut_off", "return actor.mute and", "return False and"),
    Mutant("who is cut off is waited for", patience, "_cut_off", "<= facts.bounds", "<= 99 * facts.bounds"),
    Mutant("a connection that ends in silence is a death", membership, "lose", "(actor.mute and actor.tasks)", "False"),
    Mutant("a death is blamed on no task", membership, "part", "fault=name == ran", "fault=False"),
    Mutant("a death is blamed on what was not begun", membership, "suspects", "lease.task.version <= actor.held and ", ""),
    Mutant("what ends actors is tried beside others", desk, "_place", "if one.alone and", "if False and"),
    Mutant("others come beside what is tried alone", Contributors, "allow", "if actor.alone else", "if False else"),
    Mutant("leases never end", patience, "tick", "if facts.bounds.lease:", "if False:"),
    Mutant("what waits behind another task is late", patience, "_late", " and not _waits(facts, actor, lease)", ""),
    Mutant("time in a queue is time of a task", patience, "_late", "max(lease.since, actor.free_at)", "lease.since"),
    Mutant("what waits behind a task that hangs is to blame", patience, "_expire", "fault=False", "fault=True"),
    Mutant("what waits behind a task that hangs stays there", patience, "_expire", "if actor.stuck and", "if False and"),
    Mutant("what was not begun is to blame for its lateness", patience, "_expire", "blamed=blamed", "blamed=True"),
    Mutant("a task whose arrays stall is to blame", core, "_stalled", "blamed=False", "blamed=True"),
    Mutant("weights on their way are time of a task", patience, "ready", "facts.ledger.renew(lease, facts.now)", "pass"),
    Mutant("a lease follows time in a queue", contributions, "_free", "max(lease.since, actor.free_at)", "lease.since"),
    Mutant("a result of a task that was taken back frees nobody", contributions, "_free", "actor.free_at = facts.now", "pass"),
    Mutant("an actor that hangs gets more", patience, "_stick", "facts.roster.allow(actor, 0)", "pass"),
    Mutant("an idle actor counts as hanging", core, "_listen", "if not runs:", "if False:"),
    Mutant("an actor that hung stays idle", patience, "unstick", "facts.roster.allow(actor, facts.bounds.ahead)", "pass"),
    Mutant("a revoked task still burdens", desk, "revoke", "unburden(facts, actor, lease.name)", "pass"),
    Mutant("more tasks than an actor takes", desk, "_place", "len(actor.tasks) < actor.capacity", "True"),
    Mutant("what waits for one actor is forgotten", Ledger, "unpark", "self.put_back(*actor.parked)", "pass"),
    Mutant("what came back holds up no round", Ledger, "outstanding", "self.waiting", "self.parked"),
    Mutant("a closed round's tasks are done later", Ledger, "close", "task.version < version", "False"),
    Mutant("a closed round's tasks wait on for their actors", desk, "close", "unpark(facts)", "pass"),
    Mutant("newcomers play nobody", Roster, "join", "self.contributors.share()", "pass"),
    # Joining and leaving
    Mutant("a new connection is not believed", membership, "greet", "actor.peer != peer or ", ""),
    Mutant("the silent are waited for", patience, "tick", "if not (_computes", "if False and not (_computes"),
    Mutant(
        "two actors have one number",
        Contributors,
        "join",
        "heapq.heappop(self._free) if self._free else len(self)",
        "len(self)",
    ),
    Mutant("the room of the dead is given away", Contributors, "part", "self.allow(actor, 0)", "pass"),
    Mutant("nobody is told of the end", Facts, "end", "yield self.say(actor, Stop(reason))", "pass"),
    Mutant("nobody outside hears who is gone", membership, "part", "yield Gone(actor.session)", "pass"),
    # Coming back
    Mutant("a late Hello is taken for another", membership, "greet", "hello.greeting < actor.greeting or", "False and"),
    Mutant("a first Hello, repeated, resumes", membership, "greet", "hello.greeting > actor.greeting or actor.resumed", "True"),
    Mutant("who comes back is believed", Roster, "resume", "held if -1 <= held <= actor.sent else -1", "held"),
    Mutant("who comes back is told nothing", membership, "_resume", "if not (lease.folding", "if False and not (lease.folding"),
    Mutant(
        "who comes back stays for gone",
        Roster,
        "resume",
        "actor.away, actor.under_way = peer, False,",
        "actor.under_way = peer,",
    ),
    Mutant("one told again does it again", Session, "_attempt", "running.attempt if running else -1", "-1"),
    Mutant("who is away gets work", Roster, "leave", "self.allow(actor, 0)", "pass"),
    # Lines, and the arrays that come by them
    Mutant("what is with the learner is opened again", Traffic, "_contributed", " and message.slot not in self.read", ""),
    Mutant("arrays of any size are taken", Traffic, "_fault", "nbytes == layouts[message.layout]", "True"),
    Mutant("a line under another key is believed", Traffic, "_on_lane", "actor.user != event.user or ", ""),
    Mutant("what is read is free", Traffic, "_arrived", "moved_on(session, have.using)", "moved_on(session, have.version + 1)"),
    Mutant("what is folded in is held", Traffic, "_over", "self.deliveries.get(event.task)", "None"),
    Mutant("what is refused is held", Traffic, "_judge", 'if delivery.state == "announced" or', "if False and"),
    Mutant("what is with the learner is let go", Traffic, "_judge", ' and delivery.state != "folding"', ""),
    Mutant("what is not wanted is held", Traffic, "_unpull", "self.deliveries.get(effect.task)", "None"),
    Mutant("what another offers takes up the room of both", Traffic, "_put", "self._let_go(before)", "self._let_go(None)", 735),
    Mutant("a cut is not told to what is fetched", Traffic, "_on_lane", "self.receiving.cut(session)", "pass"),
    Mutant("who comes back is waited for on its last line", Traffic, "_admit", "self.receiving.cut(session)", "pass"),
    Mutant("a line is for ever", Traffic, "_on_lane", "isinstance(message, Ready) or ", ""),
    Mutant("a line that is lost is asked on", Traffic, "_lost", "self.lanes.lost(event.peer)", "pass"),
    Mutant("who is gone keeps its line", Traffic, "_gone", "self.lanes.forget(gone.session)", "pass"),
    Mutant("weights that are not shared go no other way", Traffic, "_weights", "return self._by_socket(wanted)", "return ()"),
    Mutant("what is whole is not heard of", Traffic, "_stored", 'if delivery.state != "here":', "if True:"),
    # Arrays in pieces
    Mutant("a piece counts twice", Fetch, "arrived", "self._asked.pop((first, last), None)", "self._asked.get((first, last))"),
    Mutant("pieces of anything are taken", Receiving, "came", " or delivery.what != chunk.what", ""),
    Mutant("room is never given back", Receiving, "drop", "self._count(delivery, -1)", "pass"),
    Mutant("nobody's arrays are fetched on", desk, "unpull", "if lease.pulled:", "if False:"),
    Mutant("an old want ends what is on its way", Roster, "outdate", " and actor.sent == version", ""),
    Mutant("what changed is added to any weights", Session, "_fits", "if base in (WHOLE, self.held):", "if True:"),
    Mutant("one change too few is told", Lately, "since", "self.changes[-1], count", "self.changes[-1], max(1, count - 1)"),
    Mutant(
        "what changed is told of the wrong version", Lately, "since", "self.version - version", "self.version - version - 1"
    ),
    Mutant("weights are queued behind weights", Roster, "fall_behind", "actor.under_way or ", ""),
    Mutant("any Have frees the way", Roster, "arrived", " and version == actor.sent", ""),
    Mutant("a slow actor stays with old weights", Roster, "arrived", "if version < newest:", "if False:"),
    Mutant("nobody hears of a new version", core, "_advance", "facts.roster.fall_behind()", "pass"),
    Mutant("a step before all is in", Facts, "starves", " and self.version not in self.ledger.coming", ""),
    Mutant("a step while stepping", Facts, "starves", "not self.stepping and ", ""),
    Mutant("versions skip", core, "_step", "version + 1", "version + 2"),
    Mutant("snapshots forget what was drawn", core, "_step", ", facts.drawn,", ", 0,"),
    Mutant("snapshots forget the steps", core, "_step", "facts.steps, facts.drawn", "0, facts.drawn"),
    Mutant("a batch runs over", contributions, "_onto", "while _full(facts, onto):", "while False:"),
    # Briefs
    Mutant("a task begins before its brief is here", Session, "_brief", "self.lacking.add(name)", "pass"),
    Mutant(
        "the brief of another attempt is used",
        Session,
        "_brief",
        "self.briefs.get(name) == attempt",
        "name in self.briefs",
    ),
    Mutant(
        "a brief is fetched for what is not to be done", Session, "_unbrief", "self.fetching.drop((*name, attempt))", "pass"
    ),
    Mutant("weights starve briefs", Fetching, "begin", "self.queue.append(", "self.queue.appendleft("),
    Mutant("briefs outlive a new place", Session, "_forget_arrays", "list(self.briefs)", "()"),
    Mutant("a brief is kept after its task", contributions, "_take_in", "lease.brief = None", "pass"),
    Mutant("a brief is given up before its task is done", contributions, "fetch", "lease.offered = None", "lease.brief = None"),
    Mutant("any attempt's brief will do", desk, "briefed", " or lease.attempt != event.attempt", ""),
    Mutant("a task is told before its brief is made", membership, "_resume", " or lease.briefing", ""),
    Mutant("work is taken that nobody was told of", contributions, "_lease", " and not lease.briefing", ""),
    Mutant("a brief on its way is late", patience, "_stick", " and not lease.left", ""),
    Mutant("weights that rest are told to who holds others", Core, "_settle", "actor.held >= facts.since", "actor.held >= 0"),
    Mutant("weights that rest go out again", core, "_advance", "version if moved else facts.since", "version"),
    Mutant("weights that moved are told to rest", Learner, "_step", "moved.metrics, moved.weights", "moved.metrics, False"),
    # Plans
    Mutant("rounds do not wait", Rounds, "enough", "(all_out and outstanding == 0)", "all_out"),
    Mutant("rounds do not ask for a quorum", Rounds, "enough", " and folded >= self.quorum", ""),
    Mutant("rounds end before their deadline", Rounds, "enough", "self.deadline <= now - self.began", "self.deadline"),
    Mutant("rounds take more than their cohort", Rounds, "enough", "folded >= self.cohort\n", "folded > self.cohort\n"),
    Mutant("every round has one cohort", selection, "uniform", "purpose, version", "purpose"),
    Mutant("rounds take what is old", Rounds, "admits", "made_from == version", "made_from <= version"),
    Mutant("a restarted round asks everyone again", Rounds, "_begin", "if client not in done", "if True"),
    Mutant("streams take what is too old", Stream, "admits", "self.max_lag", "self.max_lag + 1"),
    Mutant("periods do not wait for their end", Periods, "enough", "lasts >= self.deadline and ", ""),
    Mutant("streams wait for one more", Stream, "enough", "folded >= self.batch", "folded > self.batch"),
    Mutant("one task under two versions", Stream, "_next", "self.drawn += 1", "self.drawn += number % 5 > 0"),
    Mutant("work on weights that are not there", Stream, "_next", "version - self.max_lag", "version + 1"),
    Mutant("the plan hears all of it twice", desk, "_new", "news.clear()", "len(told) % 5 == 3 or news.clear()"),
    Mutant("the plan hears nothing", desk, "_new", "facts.seats, told", "facts.seats, ()"),
    Mutant("the plan hears of failures as refusals", contributions, "failed", '"failed", fault', '"refused", fault'),
    Mutant("the plan hears none of the numbers", contributions, "folded", ", lease.done.totals", ""),
    Mutant("seats are counted that are taken", Contributors, "seats", "one.capacity - held", "one.capacity"),
    # Durable records
    Mutant(
        "acknowledged before it is durable",
        Learner,
        "_take",
        "self._unsaid.append(self._fold(intake))",
        "self.outcomes.append(self._fold(intake))",
    ),
    Mutant("acceptances are not recorded", Recording, "accept", "if self.journal is None:", "if True:"),
    Mutant("versions are not recorded", Recording, "commit", "if self.journal is None:", "if True:"),
    Mutant("actors leave before the last version is in a snapshot", Learner, "_step", "if step.last:", "if False:"),
    Mutant("nobody hears of snapshots", Learner, "_keep", "self._unsaid.append(Kept(step.version))", "pass"),
    Mutant(
        "a snapshot counts before it is made",
        Learner,
        "_keep",
        "recording and self._lasting(",
        "recording and not self._lasting(",
    ),
    Mutant("arrays are not recorded", Recording, "accept", "if self.payload:", "if False:"),
    Mutant("early work is folded at once", Learner, "_do", "if job.fold.onto > self.newest[0]", "if False"),
    Mutant("early work is forgotten", Learner, "_after", "self._early.pop(step.version, ())", "()"),
    Mutant("snapshots cover too much of the journal", Recording, "snapshot", "self.record}", "self.record + 1}"),
    Mutant("a replay redoes what it has", Rebuilding, "_accepted", ".update(clients)", ".update(())"),
    Mutant("a replay forgets what was folded", Rebuilding, "_accepted", "self.found.folded += len(clients)", "pass"),
    Mutant("a replay carries folds over", Rebuilding, "_committed", "found.folded = 0", "pass"),
    Mutant("a replay draws again", Rebuilding, "_accepted", "index + 1)  #", "0)  #"),
    Mutant("what is promised is drawn again", Rebuilding, "_accepted", "index + 1)\n    if not", "0)\n    if not"),
    Mutant("a replay loses steps", Rebuilding, "_accepted", "self.found.steps += steps", "pass"),
    # Actors
    Mutant("a task begins before its weights come", Session, "_next", "oldest <= name[0] <= self.held and ", ""),
    Mutant("weights of an earlier life are used", Session, "_welcomed", "self.held = self.needs = -1", "pass"),
    Mutant("older weights replace newer ones", Session, "_adopt", "if version > self.held:", "if True:"),
    Mutant("weights are not confirmed", Session, "_adopt", "yield self._have(version)", "pass"),
    Mutant("memory is freed that changes are added to", Session, "_have", "self.needs, *(one.needs", "self.held, *(self.held"),
    Mutant("what a task reads is freed", Session, "_have", "self.needs, *(one.needs for", "self.needs, *(self.needs for"),
    Mutant("changes that waited are not confirmed", Session, "_decoded", "yield self._have(self.held)", "pass"),
    Mutant("a new attempt of what is done is not begun", Session, "_listen", "attempt > self._attempt", "0 > self._attempt"),
    Mutant("a contribution is dropped once said", Session, "_done", "self.unjudged[task] = waiting", "waiting"),
    Mutant("a refusal is ignored", Session, "_refused", "elif self.epoch:", "elif False:"),
    Mutant("Hello is said once", Session, "_tick", "self.hello_at = self.now + self.pause", "self.hello_at = self.now + 1e9"),
    Mutant("the worker is taken for busy for ever", Session, "_done", "del self.running[task]", "pass"),
    Mutant("verdicts are not heard", Session, "_judged", "(effects.Forget(verdict.task),)", "()"),
    # Work that actors keep for a coordinator that dies
    Mutant("what is accepted is not kept", Session, "_judged", "if verdict.onto >= 0 else", "if False else"),
    Mutant("what is kept is not offered again", Session, "_offer_again", "if another:", "if False:"),
    Mutant("what is in no snapshot is dropped", Session, "_in_snapshot", ".onto < kept", ".onto <= kept"),
    Mutant("more is kept than was asked for", Session, "_keep", "while self.retained_bytes > self.retain:", "while False:"),
    Mutant("what is kept is made again", Session, "_attempt", " or self.retained.get(task)", ""),
    Mutant("nobody is asked for what was promised", Facts, "__init__", "self.ledger.promise(promise, now)", "pass"),
    Mutant("a round closes without what was promised", core, "_step", "ledger.promised.get(version)", "False"),
    Mutant("what was promised counts for any version", contributions, "_onto", "lease.promise.onto != ANY", "False"),
    Mutant("what was promised can be late", contributions, "_late_for", " and not lease.promise", ""),
    Mutant("promises are waited for without end", patience, "tick", "if facts.ledger.promised and", "if False and"),
    Mutant("what waits for its version is forgotten", core, "_advance", "if lease.offered and", "if False and"),
    Mutant("all that is promised is fetched at once", contributions, "fetch", "if lease.promise and", "if False and"),
    Mutant("what is done again is promised still", Recording, "accept", "if self.promises.by_name:", "if False:"),
    Mutant("nobody knows who promised it", Recording, "accept", "fold.session", 'b""'),
    Mutant("two tasks have one name", Rounds, "_task", "self.asked.first.get(self.version, 0) + ", ""),
    Mutant("a stream's versions are made again", Recovered, "settle", " + (self.newest > self.version)", ""),
    # What is said, and to whom
    Mutant("words of another epoch", Facts, "say", "actor.session, self.epoch", "actor.session, self.epoch + 1"),
    Mutant("refusals go to somebody else", Facts, "refusal", "Send(peer,", 'Send(peer + b"x",'),
    Mutant(
        "who is gone is told",
        membership,
        "part",
        "yield Gone(actor.session)",
        "yield facts.say(actor, desk.Cancel((0, 0))); yield Gone(actor.session)",
    ),
    Mutant(
        "who is gone is gone twice",
        membership,
        "part",
        "yield Gone(actor.session)",
        "yield Gone(actor.session); yield Gone(actor.session)",
    ),
    Mutant(
        "a newcomer puts another out",
        membership,
        "greet",
        "stranger := facts.roster.at(peer)",
        "stranger := next(iter(facts.roster.actors.values()), None)",
    ),
    Mutant("every place is resumed", membership, "greet", "actor.number, hello)", "actor.number, hello, resumed=True)"),
    Mutant(
        "numbers are not used again",
        Contributors,
        "join",
        "heapq.heappop(self._free) if self._free else len(self)",
        "len(self) + len(self._free)",
    ),
    Mutant("weights go to nobody", Core, "_settle", "SendWeights(actor.peer,", 'SendWeights(actor.peer + b"x",'),
    Mutant("weights of before go out", Core, "_settle", "actor.session, facts.version,", "actor.session, facts.version - 1,"),
    Mutant(
        "a task is taken back twice",
        desk,
        "revoke",
        "yield facts.say(actor, Cancel(lease.name))",
        "yield from [facts.say(actor, Cancel(lease.name))] * 2",
    ),
    Mutant(
        "one actor's work costs another its task",
        contributions,
        "contributed",
        "desk.survive(facts, actor, lease.name)",
        "yield from desk.revoke(facts, next(iter(facts.ledger.leases.values())))",
    ),
    Mutant(
        "who comes back is told of another attempt",
        membership,
        "_resume",
        "lease = facts.ledger.leases[name]",
        "lease = facts.ledger.leases[name]; lease.attempt += 1",
    ),
    Mutant(
        "what counted is given out again",
        contributions,
        "folded",
        "yield from _judge(",
        "facts.ledger.returned.append(desk.Pending(lease.task)); yield from _judge(",
    ),
    Mutant(
        "a run that is told to end goes on", core, "_take", "return facts.end(reason, failed=False, pause=pause)", "return ()"
    ),
    # What is folded in, and for which version
    Mutant("what is not here goes to the learner", contributions, "contributed", "if whole else fetch(", "if True else fetch("),
    Mutant("what is not fetched is not wanted", desk, "unpull", "if lease.pulled:", "if True:"),
    Mutant("all work was promised", contributions, "_take_in", "lease.promise is not None)", "True)"),
    Mutant(
        "work goes onto a version that is closed",
        contributions,
        "_onto",
        "while _full(facts, onto):",
        "while (onto := facts.version) < 0:",
    ),
    Mutant(
        "arrays are let go of when they are folded in",
        Traffic,
        "_fold",
        "return (*before, effect)",
        "return (*before, effect, deeds.LetGo(delivery))",
    ),
    Mutant(
        "a change of other weights is served",
        Serving,
        "wanted",
        "self._kept.get(what)",
        "next((kept for key, kept in self._kept.items() if len(key) == len(what)), None)",
    ),
    # Briefs and promises
    Mutant("tasks go out without their briefs", desk, "_give", "if facts.bounds.briefs and", "if False and"),
    Mutant("a new actor is told no brief", desk, "_give", "actor.briefed.issuperset(clients)", "True"),
    Mutant("an evaluation is a client's first task", desk, "briefed", "if lease.counts:", "if True:"),
    Mutant(
        "a brief is told of under another attempt",
        desk,
        "briefed",
        "lease.briefing = False",
        "lease.briefing = False; lease.attempt += 1",
    ),
    Mutant(
        "a brief is kept for another attempt",
        Session,
        "_brief",
        "effects.Stow((*name, attempt))",
        "effects.Stow((*name, attempt + 1))",
    ),
    Mutant(
        "a whole brief is taken for a piece",
        Session,
        "_brief",
        "effects.Stow((*name, attempt))",
        "effects.Stow((*name, attempt), 0, 64)",
    ),
    Mutant("what is judged is said again", Session, "_judged", "del self.unjudged[verdict.task]", "pass"),
    Mutant("two lives have one epoch", Facts, "__init__", "found.epoch + 1", "max(1, found.epoch)"),
    Mutant("a snapshot is told of before it is made", Learner, "_keep", "Kept(step.version)", "Kept(step.version + 1)"),
    Mutant(
        "rounds' promises count for any version",
        Recovered,
        "settle",
        "if streams:\n        self.promises",
        "if True:\n        self.promises",
    ),
    Mutant(
        "a replay promises what nobody did",
        Rebuilding,
        "_accepted",
        "self.promises.add(",
        "[self.promises.add(replace(one, task=replace(task, index=index + 50))) for one in [*self.promises.by_name.values()]]; "
        "self.promises.add(",
    ),
    # Quarantine
    Mutant("quarantine has no end", Roster, "unbar", "alone or actor.barred_until <= now", "alone"),
    Mutant("who is in quarantine gets work", Roster, "bar", "self.allow(actor, 0)", "pass"),
    # Evaluators
    Mutant("an evaluator trains", Roster, "_among", "self.evaluators if actor.evaluates else ", ""),
    Mutant("who trains evaluates beside an evaluator", desk, "_next", " and not facts.roster.evaluators.able", ""),
    Mutant("new evaluations go to who trains", desk, "_begin", "if one.task.counts or not", "if True or not"),
    Mutant("a failed evaluation stays with evaluators", Ledger, "put_back", " or one.faults", ""),
    Mutant("evaluations wait for an evaluator that hangs", Evaluators, "_index", "if actor.capacity:", "if True:"),
    Mutant(
        "evaluations wait for who has left",
        desk,
        "_next",
        "evaluations.popleft() if",
        "evaluations[0] if False and",
    ),
)
