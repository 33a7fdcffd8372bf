"""A run put together: a job, a run directory, a coordinator, and actors on this machine if asked for.

The one idea: every way to run (`shoal.run`, simulate, coordinator, resume, the plain loop) is the same few constructors in a
row. `ready` does what must come before this process has more threads; `launch` does the rest, in any thread.
"""

from __future__ import annotations

import gc
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from datetime import datetime
from pathlib import Path
from typing import Any

from shoal.actors.loop import host_id
from shoal.actors.pool import Pool
from shoal.coordinator.deciding.core import LOOK, Core
from shoal.coordinator.deciding.events import Finish
from shoal.coordinator.deciding.plans import AFRESH, evaluate_every
from shoal.coordinator.keeping.disk import DiskTrouble, Lock, SyncFailed, lasting, trouble
from shoal.coordinator.keeping.recording import Recording
from shoal.coordinator.reports import Observer, Report
from shoal.coordinator.server import Outside, Server
from shoal.jobs.catalog import INLINE, digest_of
from shoal.jobs.job import Job
from shoal.protocol import heap
from shoal.protocol.codec import Terms, pack_welcome
from shoal.protocol.door import ClientKeys, ServerKeys
from shoal.protocol.draws import lent_globals
from shoal.protocol.errors import UserError
from shoal.protocol.gateway import listening
from shoal.protocol.layout import Bundle
from shoal.protocol.link import INLINE as ATTACHED
from shoal.protocol.work import Metrics
from shoal.runs.best import Best, Target
from shoal.runs.closing import Closing, plays
from shoal.runs.crew import Crew
from shoal.runs.engines import decided
from shoal.runs.hiring import hired
from shoal.runs.living import called_on
from shoal.runs.observers import Record, Together, tensorboard
from shoal.runs.parts import bounds_of, inference_at, invitation, learner_of, recording_of, shared_of, virtual_wire, wire_of
from shoal.runs.placing import infers_on, placed, told_on
from shoal.runs.rehearsal import rehearse
from shoal.runs.rundir import Config, RunDir, finite
from shoal.runs.signing import sign
from shoal.runs.sizes import SIZE, sized
from shoal.runs.status import Status
from shoal.runs.summary import summary
from shoal.runs.threads import asked_for, cores, crowded, few, few_threads
from shoal.runs.virtual import VirtualClock, VirtualWire, look_at
from shoal.tracking.following import Followers
from shoal.tracking.trackers import Wanted


@dataclass(frozen=True)
class Launch:
    """The decisions that are made before a run begins.

    bind: the address at which other actors join; "" if only the run's own take part. keys: the coordinator's keys, which actors
    are asked for at that address. gateway: True if a process of its own faces those actors; for actors of other machines it
    always does. named: True if another process finds the same job by config.job. log_format: "text" or "json",
    of the lines of log.txt. strict: actors with another job file or Shoal are refused. advertise: the address that the
    invitation names; "" for that of the wire. track: trackers that the run is told to, each by a process of its own.
    engine: lines on how the run's engine was decided (runs/engines.py).
    """

    job: Job
    config: Config
    run: RunDir
    bind: str = ""
    strict: bool = False
    resume: bool = False
    keys: ServerKeys | None = None
    gateway: bool = False
    named: bool = True
    log_format: str = "text"
    advertise: str = ""
    track: tuple[Wanted, ...] = ()
    engine: tuple[str, ...] = ()


@dataclass(frozen=True)
class Ended:
    """The end of a run. reason: "done", or why the run stopped before its goal. failed: True if the run could not go on."""

    summary: dict[str, Any]
    version: int
    weights: Bundle
    reason: str
    failed: bool


@dataclass(frozen=True)
class Ready:
    """A run that can begin, in this thread or another."""

    options: Launch
    device: str
    pool: Pool | None


@contextmanager
def ready(options: Launch) -> Iterator[Ready]:
    """Prepare the job, and make the nursery from which actors are forked. The nursery ends with this block and this thread."""
    job = options.job
    check_actors(job, options.config, options.bind, options.keys)
    with few_threads():
        heap.keep()
        job.problem.adopt(options.run.findings())
        job.prepare()
        job.check_parts()
        options.run.keep_findings(job.problem.findings())
        few()
        check_evaluators(job, options.config, options.bind)
        device_of(options.config.device)
        pool = hired(options)
    try:
        yield Ready(options, _answering(options.config.device), pool)
    finally:
        if pool:
            pool.close()
        job.problem.close()


def device_of(name: str) -> str:
    """The torch device that a name means. "auto" is cuda if torch is loaded and this machine has a GPU, else cpu. CUDA does not
    start here.

    Raises UserError for "cuda" if there is none.
    """
    if name == "cpu" or (name == "auto" and not sys.modules.get("torch")):
        return "cpu"
    from shoal.nets.gpu import has_gpu

    if name == "auto":
        return "cuda" if has_gpu() else "cpu"
    if not has_gpu():
        raise UserError("device=cuda: this machine has no CUDA device that torch can use; type device=cpu, or device=auto")
    return name


def _answering(name: str) -> str:
    """The device that a name means, of which CUDA itself is asked, because actors are forked already: a driver may be too old
    for this torch, and then "auto" is cpu."""
    device = device_of(name)
    if device == "cuda" and name == "auto":
        import torch

        return "cuda" if torch.cuda.is_available() else "cpu"
    return device


def launch(ready: Ready, observer: Observer, interrupted: Callable[[], str] = str, pauses: Callable[[], bool] = bool) -> Ended:
    """Run a job to its end. interrupted: gives a reason to end the run in good order, or ""; it is called about 20 times a
    second. pauses: True if actors from elsewhere are then to wait for the run's next life."""
    options, pool, real = ready.options, ready.pool, time.monotonic
    config, keys = options.config, options.keys
    with ExitStack() as stack:
        stack.enter_context(few_threads())
        shown = observer
        followers = Followers(options.run, options.track, lambda text: shown.report(Report("tracking", text, "warning")))
        stack.enter_context(followers)  # its end comes after that of the lock: a resume need not wait for trackers
        stack.callback(Lock(options.run.path).close)  # after the fork: a copy of the lock would outlive this process
        options = replace(options, job=options.job.kept(options.run.path))
        job = options.job
        followers.start()
        central = job.central(ready.device)
        record = Record(
            options.run, time.time(), lambda version: central is not None and job.method.due(version), options.log_format
        )
        status, target, best = Status(options.run), Target(job), Best(job, options.run.path, real)
        observer = Together(stack.enter_context(record), status, observer, target, best)  # a row is there when it is told
        stack.callback(best.write)
        if not config.actors:
            stack.enter_context(lent_globals())  # tasks set them, in the user's own process
        aggregator = job.aggregator(ready.device)
        threads = few()
        if why := crowded(config.actors + config.evaluators, threads, cores()):
            observer.report(Report("threads", why, "warning"))
        if config.threads not in (0, threads):
            were, now = f"{config.threads} threads a process", f"OMP_NUM_THREADS says {threads}"
            observer.report(
                Report("threads", f"the run was begun with {were}, and {now}: its weights may have other bits", "warning")
            )
        if digest := job.problem.held_out_digest(job.method, job.seed):
            options.run.check_held_out(digest)
            options.run.held_out_file.write_text(digest + "\n")
        for text in options.engine:
            observer.report(Report("engine", text))
        for note in job.problem.about(job.method, job.seed):
            observer.report(Report("policy", note))
        for note in job.problem.notes(job.method, job.seed):
            observer.report(Report("data", note, "warning"))
        for note in job.method.notes(job.problem, aggregator):
            observer.report(Report("method", note))
        layout = aggregator.weights().layout
        layouts, briefs = job.layouts(layout), job.briefs(layout)
        recording, found = recording_of(options, aggregator, layouts, observer, real)
        stack.callback(recording.close)
        for note in job.method.going_on(job.problem, found.version) if found.version else ():
            observer.report(Report("resumed", note))
        before = replace(record.rewind(found.version), figures=found.figures)
        virtual = VirtualClock(before.seconds) if job.virtual else None
        clock: Callable[[], float] = virtual or real
        again: Metrics = {}
        if central and found.version and job.method.due(found.version) and not options.run.has_row(found.version):
            again = central(aggregator.weights())  # the last life was killed after the snapshot, and before it had told of this
        if pool:
            pool.ready(interrupted)
        afar, coded = config.actors > 0 or bool(options.bind), hasattr(aggregator, "change")
        once = job.briefs_once(layout)
        light = afar and (once or not briefs) and not (coded or job.virtual) and layout.nbytes <= ATTACHED
        core = Core(
            job.plan(replace(found.asked, seconds=before.seconds)),
            job.method.goal(),
            replace(
                bounds_of(options),
                retain=recording.retain,
                briefs=bool(briefs),
                brief_once=once,
                watched=True,
                light=light,
            ),
            found,
            clock(),
            0.0 if virtual else LOOK,
        )
        wire = virtual_wire(job, virtual, before.seconds) if virtual else wire_of(options, stack, clock)
        if isinstance(wire, VirtualWire):
            wire.looks = lambda: look_at(core.facts, clock())
        learner = learner_of(
            job,
            aggregator,
            wire,
            recording,
            core.facts.version,
            central,
            clock,
            briefs,
            keys is not None,
            interrupted,
            observer.report,
        )
        stack.callback(learner.finish)
        best.follow(lambda: learner.newest, core.facts.ledger.evaluating)
        shared = shared_of(config, options, layout, observer)
        if shared:
            stack.callback(shared.close)
        if options.bind:
            observer.report(
                Report(
                    "listening",
                    f"listening on {wire.address}; add actors with: {invitation(options.advertise or wire.address, keys)}",
                )
            )
        crew = Crew(pool, config.actors, observer.report, clock, lambda: core.facts.ledger.counts.deaths) if pool else None
        if crew:
            called = called_on(wire.address, ClientKeys(keys.own, keys.pair.public) if keys else None)
            asks = inference_at(job, stack)
            if asks and (note := told_on(job, ready.device)):
                observer.report(Report("inference", note))
            inferring = {"infers": asks, "device": infers_on(job, ready.device)} if asks else None
            crew.hire({**called, "asks": asks} if asks else called, inferring, config.evaluators)
        told = digest_of(config.job)
        workload = {"job": config.job, "seed": job.seed, "settings": job.plain(), "digest": told}
        workload |= {"findings": job.problem.findings()}
        server = Server(
            core,
            wire,
            learner,
            observer,
            run=options.run.name,
            host=host_id(),
            welcome=pack_welcome(Terms(workload, layout, getattr(aggregator, "coding", None), briefs)),
            layouts=layouts,
            clock=clock,
            outside=_outside(lambda: interrupted() or target.reason, pauses, crew, options),
            sharing=shared,
            job=told,
            strict=options.strict,
            threads=config.threads or threads,
            local=(keys.own.public,) if keys else ("",),
            folder=options.run.path,
            before=before,
            real=real if virtual else None,
        )
        status.roll = server.telling.roll
        if again:
            server.telling.evaluation(found.version, again)
        end = _lived(server)
        if target.reason and end.reason == target.reason:
            observer.report(Report("target", target.reason))
            end = Finish("done", False)
        version, weights = learner.newest

        def keep() -> None:
            recording.sync()
            if recording.kept != version:
                recording.snapshot(weights, aggregator, needed=True)

        lost = _on_disk(keep, "waits with the weights in memory", interrupted, observer)
        if lost:
            end = Finish(f"{lost}; {_gone(recording, version)}", True)
        if central and version > max(found.version, server.telling.evaluated) and not end.failed:
            server.telling.evaluation(version, central(weights))  # so that the last metrics are of the last weights
        ending = replace(server.telling.progress(), version=version)  # a step may have been under way when the run was stopped
        result = summary(ending, config, threads, weights.sha256(), options.run.path, job.problem.conditions())
        _on_disk(lambda: options.run.write_summary(result), "the summary waits", interrupted, observer)
        if version and not end.failed and plays(job, end.reason):
            last = Closing(job, options.run.path, pool, ending.seconds, interrupted, observer.report)
            if found_last := last.metrics(version, weights):
                server.telling.evaluation(version, found_last)
                result = {**result, "metrics": finite({**ending.metrics, **found_last})}
                _on_disk(lambda: options.run.write_summary(result), "the summary waits", interrupted, observer)
        status.ended(end.reason)
    return Ended(result, version, weights, end.reason, end.failed or end.reason == _alone(crew, options))


def _lived(server: Server) -> Finish:
    """Run a server and return how it ended; as failed, if its learner gave up waiting for room on the disk."""
    try:
        return server.run()
    except SyncFailed:
        raise
    except DiskTrouble as full:
        return Finish(str(full), True)


def _on_disk(write: Callable[[], None], waits: str, interrupted: Callable[[], str], observer: Observer) -> str:
    """Write, as soon as there is room on the disk. Returns why nothing was written, if the run is interrupted; else ""."""

    def act() -> None:
        with trouble("write the end of the run"):
            write()

    def complain(full: DiskTrouble) -> None:
        observer.report(Report("disk", f"{full}: {waits} until there is room; Ctrl-C ends the wait", "error"))

    try:
        lasting(act, interrupted, complain)
    except SyncFailed:
        raise
    except DiskTrouble as full:
        observer.report(Report("disk", f"given up: {full}", "error"))
        return str(full)
    return ""


def _gone(recording: Recording, version: int) -> str:
    """Return a line on what is lost without a snapshot of this version."""
    which = f"version {version}" if version == recording.kept + 1 else f"versions {recording.kept + 1} to {version}"
    again = "the journal has their contributions" if recording.journal and recording.payload else "their weights are lost"
    return f"{which} are in no snapshot, and {again}: shoal resume goes on from version {max(0, recording.kept)}"


def _outside(interrupted: Callable[[], str], pauses: Callable[[], bool], crew: Crew | None, options: Launch) -> Outside:
    its = pauses if options.bind else bool
    if crew is None:
        return Outside(interrupted, its)
    return Outside(lambda: interrupted() or _alone(crew, options), its, gone=crew.gone, evict=crew.evict)


def _alone(crew: Crew | None, options: Launch) -> str:
    """Return why a run without actors from elsewhere cannot go on; "" while it can."""
    return crew.spent() if crew and not options.bind else ""


def try_out(job: Job, named: str = "") -> None:
    """Prepare a job and try it once, with few threads. named: the JOB that was typed, or "".

    Raises UserError for a fault in the user's part."""
    with few_threads():
        _try_out(job, named)


def _try_out(job: Job, named: str = "") -> None:
    job.prepare()
    job.check_parts()
    few()  # threads of a first batch would be in the way of a fork
    job.try_out()
    rehearse(job, named)


def preload(job: Job) -> None:
    """Import all that a run of this job needs, so that a process forked from here begins at once."""
    _try_out(job)
    few()
    job.central()
    tensorboard()
    gc.freeze()  # the collector would copy the pages that all these processes share


def check_actors(job: Job, config: Config, bind: str, keys: ServerKeys | None) -> None:
    """Raises UserError if the job's clients cannot be played by the actors that the run would have."""
    job.method.hosted(config.actors, bool(bind), keys is not None)
    if job.virtual and (bind or config.actors):
        asked = f"bind={bind}" if bind else f"actors={config.actors}"
        raise UserError(f"clock=virtual: a run in virtual time has no actors beside this process; {asked} asks for some")


def check_evaluators(job: Job, config: Config, bind: str) -> None:
    """Raises UserError if a run with evaluators has no evaluations for them, or no other process that trains."""
    asked = f"evaluators={config.evaluators}"
    if config.evaluators and job.virtual:
        raise UserError(f"{asked}: a run in virtual time has no actors beside this process; evaluators=0")
    if config.evaluators and not (config.actors or bind):
        raise UserError(
            f"{asked} and actors=0: the plain loop evaluates in this process; actors=1, or --evaluators 0 (evaluators=0)"
        )
    if config.evaluators and not evaluate_every(job.plan(AFRESH)):
        how = "eval_every=50, say" if hasattr(job.problem, "spaces") else "eval_every=10 and eval_cohort=5, say"
        raise UserError(f"{asked}: this run gives actors no evaluations; {how}, or evaluators=0")


def planned(job: Job, config: Config, path: Path | str | None, bind: str, *, verbose: bool = False, **how: Any) -> Launch:
    """The launch of a new run. verbose: try the engines, and tell of them, also where nothing hangs on that.

    Raises UserError for a fault in the job or the device before the run has a folder.
    """
    check_actors(job, config, bind, how.get("keys"))
    try_out(job, config.job)
    check_evaluators(job, config, bind)
    device_of(config.device)
    with few_threads():
        made = decided(job, config.actors, tell=verbose)
        ready, told = sized(made.job, config.actors, config.device)
        ready, placing = placed(ready, config.actors, config.device)
    if ready is not job:
        new = {"engine", *SIZE, "inference", "double_buffer"} & ready.plain().keys()
        config = replace(config, settings={**config.settings, **{name: ready.plain()[name] for name in new}})
    return Launch(ready, config, new_run(config, path, bind), bind, engine=(*made.told, *told, *placing), **how)


def new_run(config: Config, path: Path | str | None, bind: str = "") -> RunDir:
    """A fresh run directory with its config.toml. bind: the address at which actors will join; if it is in use, UserError is
    raised before there is a folder."""
    if bind.startswith("tcp://"):
        listening(bind).close()
    run = RunDir.create(config.job.removeprefix(INLINE), datetime.now(), path=path)
    run.write_config(replace(config, threads=asked_for()))
    sign(run, config.job)
    return run
