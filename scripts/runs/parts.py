"""The parts of a run that depend on how it is run: the recording, the wire, shared memory, the learner.

The one idea: each part is a constructor with an `if` in front of it. `launch` puts the parts together.
"""

from __future__ import annotations

import socket
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from shoal.aggregators import Aggregator
from shoal.coordinator.checks import Inspector
from shoal.coordinator.deciding.bounds import Bounds
from shoal.coordinator.deciding.recovered import Recovered
from shoal.coordinator.keeping.journal import Journal
from shoal.coordinator.keeping.recording import Recording, recover
from shoal.coordinator.keeping.store import Store
from shoal.coordinator.learner import Learner, LearnerThread
from shoal.coordinator.reports import Observer, Report
from shoal.coordinator.server import Wire
from shoal.coordinator.sharing import Sharing, sharing
from shoal.jobs.job import Job
from shoal.jobs.methods.attending import attendance_of, devices_of
from shoal.jobs.methods.local import LocalTraining
from shoal.jobs.problems import Evaluate
from shoal.protocol.door import ServerKeys, is_local
from shoal.protocol.front import raise_descriptor_limit
from shoal.protocol.gateway import Gateway
from shoal.protocol.layout import Layout
from shoal.protocol.link import Hub
from shoal.runs.export import of_this_model
from shoal.runs.plain import PlainWire
from shoal.runs.rundir import Config
from shoal.runs.socketdir import socket_folder
from shoal.runs.virtual import Pace, VirtualClock, VirtualWire

if TYPE_CHECKING:
    from shoal.runs.launch import Launch

Clock = Callable[[], float]
NEVER = 1e12  # seconds


def bounds_of(options: Launch) -> Bounds:
    """The job's bounds. If clients stay with their actors, the first tasks wait until all of this machine's actors are here. In
    virtual time no actor is silent, slow or to blame: its client's device decides when it is done. The plain loop's actor is
    silent while the learner works, because both are one thread."""
    bounds = options.job.bounds()
    if options.job.virtual:
        return replace(
            bounds,
            ahead=1,
            most=1,
            stock=0.0,
            lease=max(0.0, bounds.lease),
            beat=NEVER,
            patience=NEVER,
            hush=NEVER,
            quiet=NEVER,
            back=0.0,
            strikes=0,
        )
    if is_plain(options):
        bounds = replace(bounds, patience=NEVER, hush=NEVER)
    return replace(bounds, gather=options.config.actors) if bounds.sticky else bounds


def is_plain(options: Launch) -> bool:
    """True if the run is the plain loop, whose only actor is in this process."""
    return not options.config.actors and not options.bind


def recording_of(
    options: Launch, aggregator: Aggregator, layouts: Sequence[Layout], observer: Observer, clock: Clock
) -> tuple[Recording, Recovered]:
    """The run's recording, which goes on where the last life of the run ended, and what that life had promised."""

    def report(text: str) -> None:
        observer.report(Report("durable", text, "warning"))

    job = options.job
    kind = job.keeping.journal
    if kind == "auto":
        kind = "ids" if options.bind and job.method.journalled else "off"
    store, run = Store(options.run.path), options.run.name[-60:]
    if hasattr(aggregator, "settle"):
        aggregator.settle(options.run.path / "clients")
    with of_this_model(options.run.path):
        found, replay = recover(options.run.path, run, store, aggregator, {one.digest: one for one in layouts}, report)
    if options.resume:
        observer.report(Report("resumed", f"going on from version {found.version}"))
    found.settle(streams=job.plan(found.asked).admits(0, 1))
    recording = Recording(
        store,
        None if kind == "off" else Journal(replay, found.epoch + 1),
        found,
        payload=kind == "payload",
        every=job.keeping.snapshot_every,
        clock=clock,
        report=report,
        retain=job.keeping.retain << 20 if kind == "ids" and (options.bind or options.config.actors) else 0,
        versions=getattr(job.method, "renew_every", 0) or 1,
    )
    if kind == "off":  # or the next life might take this one's epoch for its own
        recording.snapshot(aggregator.weights(), aggregator)
    return recording, found


def virtual_wire(job: Job, clock: VirtualClock, before: float) -> VirtualWire:
    """The wire of a run in virtual time. before: virtual seconds of the run's earlier lives."""
    method = job.method
    assert isinstance(method, LocalTraining)
    pace = Pace(devices_of(method), attendance_of(method, before), method.passes, job.seed)
    return VirtualWire(method.at_once, lambda workload: job.worker(), clock, pace)


def wire_of(options: Launch, stack: ExitStack, clock: Clock) -> Wire:
    """The coordinator's wire: sockets, or the plain loop if there are no actors."""
    if is_plain(options):
        return PlainWire(lambda workload: options.job.worker(), clock)
    address = options.bind or _local_address(options.config.transport, stack)
    raise_descriptor_limit()
    keys = options.keys if options.bind else None
    if options.bind and (options.gateway or not is_local(address)):
        wire: Hub | Gateway = Gateway(address, keys)
    else:
        wire = Hub(address, keys)
    stack.callback(wire.close)
    return wire


def invitation(address: str, keys: ServerKeys | None) -> str:
    """The command that a person types on a machine that is to join."""
    place = address.replace("//0.0.0.0:", f"//{socket.gethostname()}:")
    return f"shoal actor {place}" + (f" --key NAME --server {keys.pair.public}" if keys else "")


def shared_of(config: Config, options: Launch, layout: Layout, observer: Observer) -> Sharing | None:
    """Shared memory for actors of this machine; None if it is not asked for or not to be had."""
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


def learner_of(
    job: Job,
    aggregator: Aggregator,
    wire: Wire,
    recording: Recording,
    version: int,
    central: Evaluate | None,
    clock: Clock,
    briefs: Sequence[Layout],
    strangers: bool,
    given_up: Callable[[], object] = bool,
    complain: Callable[[Report], None] | None = None,
) -> Learner:
    """The learner, on a thread of its own; in the plain loop on the caller's. strangers: actors come with keys of their own."""
    usual = job.checks.usual if strangers and not job.method.independent else 0.0
    inspector = Inspector(job.checks.norm_bound, job.checks.max_examples, usual)
    evaluation = {"evaluate": central, "due": job.method.due}
    options: dict[str, Any] = {"version": version, "recording": recording, "briefs": briefs, "given_up": given_up, **evaluation}
    if isinstance(wire, Hub | Gateway):
        return LearnerThread(aggregator, inspector, clock, wake=wire.wake, **options)
    return Learner(aggregator, inspector, clock, complain=complain, prompt=isinstance(wire, VirtualWire), **options)


def inference_at(job: Job, stack: ExitStack) -> str:
    """The path of the socket at which this machine's actors ask the inference process; "" if the job has none. The folder is
    removed with the stack."""
    if getattr(job.problem, "inference", "actor") != "central":
        return ""
    return str(stack.enter_context(socket_folder()) / "inference")
