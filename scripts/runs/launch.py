"""Putting a run together: a job, a run directory, a coordinator, and actors on this machine if asked for.

The one idea: every way to run (simulate, coordinator, resume, the plain loop) is the same few constructors in a row.
"""

from __future__ import annotations

import gc
import os
import signal
import socket
import sys
import time
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Any

from shoal.actors.loop import host_id
from shoal.actors.pool import Pool
from shoal.aggregators import Aggregator
from shoal.aggregators.around.told import coding_of
from shoal.coordinator.checks import Inspector
from shoal.coordinator.deciding.core import Core
from shoal.coordinator.deciding.events import Finish, Step
from shoal.coordinator.deciding.rules import Rules
from shoal.coordinator.keeping.disk import Lock
from shoal.coordinator.keeping.journal import Journal
from shoal.coordinator.keeping.recording import Recording, Recovered, recover
from shoal.coordinator.keeping.store import Store
from shoal.coordinator.learner import Learner, LearnerThread
from shoal.coordinator.reports import Report
from shoal.coordinator.server import Outside, Server, Wire
from shoal.coordinator.sharing import Sharing, sharing
from shoal.jobs.job import Job
from shoal.protocol import heap
from shoal.protocol.codec import pack_welcome
from shoal.protocol.door import ClientKeys, ServerKeys, is_local
from shoal.protocol.errors import UserError
from shoal.protocol.front import raise_descriptor_limit
from shoal.protocol.gateway import Gateway
from shoal.protocol.layout import Layout
from shoal.protocol.link import Hub
from shoal.runs import observers
from shoal.runs.crew import Crew
from shoal.runs.living import called_on, life_of
from shoal.runs.observers import Record, Together
from shoal.runs.plain import PlainWire
from shoal.runs.progress import display
from shoal.runs.rundir import Config, RunDir
from shoal.runs.socketdir import socket_folder
from shoal.runs.summary import summary


@dataclass(frozen=True)
class Launch:
    """What the command line decides. bind: an address for actors from elsewhere; "" for this machine's own only. keys: asked
    for there. gateway: a process of its own faces them; beyond this machine that is always so."""

    config: Config
    run: RunDir
    quiet: bool = False
    bind: str = ""
    resume: bool = False
    keys: ServerKeys | None = None
    gateway: bool = False


def device_of(name: str) -> str:
    """auto is cuda where there is one. Raises UserError where cuda is asked for in vain."""
    import torch

    if name == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    if name == "cuda" and not torch.cuda.is_available():
        raise UserError("device=cuda: this machine has no CUDA device that torch can use; device=cpu, say")
    return name


@dataclass
class Stopper:
    """Ctrl-C or SIGTERM end a run in good order; a second one ends the process at once."""

    reason: str = ""

    def __enter__(self) -> Stopper:
        self._before = {number: signal.signal(number, self._hear) for number in (signal.SIGINT, signal.SIGTERM)}
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _hear(self, number: int, frame: object) -> None:
        self.reason = f"stopped by {signal.Signals(number).name}"
        signal.signal(number, signal.SIG_DFL)


def launch(job: Job, options: Launch) -> tuple[dict[str, Any], Finish]:
    """Run a job to its end. Returns its summary and how it ended. Call it from the main thread, before others exist."""
    config, keys = options.config, options.keys
    threads = few_threads()
    heap.keep()
    job.prepare()
    device = device_of(config.device)
    with ExitStack() as stack:
        stack.callback(job.problem.close)
        pool = Pool(life_of(job)) if config.actors else None
        if pool:
            stack.callback(pool.close)
        stack.enter_context(Lock(options.run.path))  # after the fork, which would share it and hold it beyond our own end
        stopper = stack.enter_context(Stopper())
        show = stack.enter_context(display(sys.stderr, f"{config.job} in {options.run.path}", options.quiet))
        record = stack.enter_context(Record(options.run, time.time()))
        observer = Together(show, record)
        if why := crowded(
            config.actors, threads, len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
        ):
            observer.report(Report("threads", why, "warning"))
        aggregator = job.aggregator(device)
        layout = aggregator.weights().layout
        layouts = job.layouts(layout)
        recording, found = _recording(job, options, aggregator, layouts, observer)
        stack.callback(recording.close)
        core = Core(
            job.plan(found.asked),
            job.goal(),
            replace(_rules(job, config), retain=recording.retain),
            version=found.version,
            steps=found.steps,
            drawn=found.drawn,
            folded=found.folded,
            epoch=recording.epoch,
            kept=found.kept,
            promises=found.promises,
            now=time.monotonic(),
        )
        wire = _wire(options, job, stack)
        learner = _learner(job, aggregator, wire, recording, core.version, device)
        shared = _shared(config, options, layout, observer)
        if shared:
            stack.callback(shared.close)
        if options.bind:
            observer.report(Report("listening", f"listening on {wire.address}; add actors with: {invitation(wire, keys)}"))
        crew = Crew(pool, config.actors, observer.report, time.monotonic) if pool else None
        if crew:
            crew.hire(called_on(wire.address, ClientKeys(keys.own, keys.pair.public) if keys else None))
        server = Server(
            core,
            wire,
            learner,
            observer,
            run=options.run.name,
            host=host_id(),
            welcome=pack_welcome({"job": config.job, "seed": job.seed, "settings": job.plain()}, layout, coding_of(aggregator)),
            layouts=layouts,
            clock=time.monotonic,
            outside=_outside(stopper, crew, options),
            sharing=shared,
            local=(keys.own.public,) if keys else ("",),
            folder=options.run.path,
        )
        end = server.run()
        version, weights = learner.newest
        if recording.kept != version:
            recording.snapshot(Step(version, core.steps, core.drawn), weights, aggregator)
        result = summary(
            server.progress(),
            job=config.job,
            seed=config.seed,
            actors=config.actors,
            threads=threads,
            weights_sha256=weights.sha256(),
            run_dir=options.run.path,
        )
        options.run.write_summary(result)
    return result, end


def _rules(job: Job, config: Config) -> Rules:
    """Where clients stay with their actors, these are shared out when all are here."""
    rules = job.rules()
    return replace(rules, gather=config.actors) if rules.sticky else rules


def _outside(stopper: Stopper, crew: Crew | None, options: Launch) -> Outside:
    if crew is None:
        return Outside(lambda: stopper.reason)
    return Outside(lambda: stopper.reason or _alone(crew, options), gone=crew.gone, evict=crew.evict)


def _alone(crew: Crew | None, options: Launch) -> str:
    """Why a run without actors from elsewhere cannot go on; "" while it can."""
    return crew.spent() if crew and not options.bind else ""


def preload(job: Job) -> None:
    """Import whatever a run of this job needs: a life that is forked from here begins at once."""
    few_threads()
    job.prepare()
    job.check_parts()
    job.central()
    observers.preload()
    gc.freeze()  # the collector must not touch, and so copy, what all lives share


def few_threads() -> int:
    """Actors and learner share the cores: torch's own threads would only fight over them, unless the user asks for some.
    Returns how many each process has."""
    import torch

    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "1")))
    return torch.get_num_threads()


def cores() -> int:
    """That this process may run on."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def crowded(actors: int, threads: int, cores: int) -> str:
    """What to say of actors whose threads are more than the cores, by the user's own wish; "" otherwise."""
    if threads == 1 or actors * threads <= cores:
        return ""
    return f"{actors} actors of {threads} threads each on {cores} cores get in each other's way: OMP_NUM_THREADS=1 is the usual"


def _recording(
    job: Job, options: Launch, aggregator: Aggregator, layouts: Sequence[Layout], observer: Together
) -> tuple[Recording, Recovered]:
    """The run's book, opened where the last life of this run closed it, and what that life had promised."""

    def report(text: str) -> None:
        observer.report(Report("durable", text, "warning"))

    kind = job.keeping.journal
    if kind == "auto":
        kind = "ids" if options.bind else "off"
    store, run = Store(options.run.path), options.run.name[-60:]
    found, replay = recover(options.run.path, run, store, aggregator, {one.digest: one for one in layouts}, report)
    if options.resume:
        observer.report(Report("resumed", f"going on from version {found.version}"))
    found.settle(streams=job.plan(found.asked).admits(0, 1))
    epoch = found.epoch + 1
    recording = Recording(
        store,
        None if kind == "off" else Journal(replay, epoch),
        payload=kind == "payload",
        every=job.keeping.snapshot_every,
        clock=time.monotonic,
        report=report,
        epoch=epoch,
        made=found.made,
        retain=job.keeping.retain << 20 if kind == "ids" and (options.bind or options.config.actors) else 0,
        promises=found.promises,
        past=max(replay.last, replay.after),
        kept=found.kept,
    )
    if kind == "off":  # or the next life might take this one's epoch for its own
        recording.snapshot(Step(found.version, found.steps, found.drawn), aggregator.weights(), aggregator)
    return recording, found


def _wire(options: Launch, job: Job, stack: ExitStack) -> Wire:
    if not options.config.actors and not options.bind:
        return PlainWire(lambda workload: job.worker(), time.monotonic)
    address = options.bind or _local_address(options.config.transport, stack)
    raise_descriptor_limit()
    keys = options.keys if options.bind else None
    if options.bind and (options.gateway or not is_local(address)):
        wire: Hub | Gateway = Gateway(address, keys)
    else:
        wire = Hub(address, keys)
    stack.callback(wire.close)
    return wire


def invitation(wire: Wire, keys: ServerKeys | None) -> str:
    """What to type on a machine that is to join."""
    place = wire.address.replace("//0.0.0.0:", f"//{socket.gethostname()}:")
    return f"shoal actor {place}" + (f" --key NAME --server {keys.pair.public}" if keys else "")


def _shared(config: Config, options: Launch, layout: Layout, observer: Together) -> Sharing | None:
    """Shared memory for actors of this machine, if it is asked for and to be had."""
    if config.transport != "shm" or not (config.actors or options.bind):
        return None
    shared, why = sharing(layout.nbytes)
    if why:
        observer.report(Report("transport", f"no shared memory here ({why}): arrays go by ipc", "warning"))
    return shared


def _local_address(transport: str, stack: ExitStack) -> str:
    if transport == "tcp":
        return "tcp://127.0.0.1:*"
    return f"ipc://{stack.enter_context(socket_folder()) / 'hub'}"


def _learner(job: Job, aggregator: Aggregator, wire: Wire, recording: Recording, version: int, device: str) -> Learner:
    inspector = Inspector(norm=job.checks.norm_bound, examples=job.checks.max_examples)
    options: dict[str, Any] = {"version": version, "evaluate": job.central(device), "due": job.due, "recording": recording}
    if isinstance(wire, Hub | Gateway):
        return LearnerThread(aggregator, inspector, time.monotonic, wake=wire.wake, **options)
    return Learner(aggregator, inspector, time.monotonic, **options)


def new_run(config: Config, path: str | None) -> RunDir:
    """A fresh run directory with its config.toml."""
    run = RunDir.create(config.job, datetime.now(), path=path)
    run.write_config(config)
    return run
