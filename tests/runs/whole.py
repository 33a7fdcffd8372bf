"""Whole runs in one process, over real sockets: a server, its learner's thread, and actors on threads of their own."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from shoal.actors.loop import Actor, host_id
from shoal.coordinator.checks import Inspector
from shoal.coordinator.deciding.core import Core
from shoal.coordinator.deciding.events import Finish
from shoal.coordinator.deciding.plans import AFRESH
from shoal.coordinator.learner import Learner, LearnerThread
from shoal.coordinator.reports import Progress, Report
from shoal.coordinator.server import Outside, Server
from shoal.coordinator.sharing import sharing
from shoal.faults.patient import SILENCE
from shoal.jobs.job import Job
from shoal.protocol.codec import Terms, pack_welcome
from shoal.protocol.gateway import Gateway
from shoal.protocol.layout import Bundle
from shoal.protocol.link import Hub
from shoal.protocol.work import Metrics
from shoal.runs.plain import PlainWire


@dataclass
class Seen:
    """An observer that remembers. came_at: when the run last got on."""

    steps: list[tuple[int, Metrics]] = field(default_factory=list)
    reports: list[Report] = field(default_factory=list)
    last: Progress | None = None
    came_at: float = field(default_factory=time.monotonic)

    def stepped(self, version: int, metrics: Metrics, progress: Progress) -> None:
        self.steps.append((version, metrics))

    def moved(self, progress: Progress) -> None:
        if _come(progress) != (self.last and _come(self.last)):
            self.came_at = time.monotonic()
        self.last = progress

    def report(self, report: Report) -> None:
        self.reports.append(report)

    def kinds(self) -> set[str]:
        return {report.kind for report in self.reports}


def _come(progress: Progress) -> tuple[int, int, int, int]:
    """Returns the numbers that grow, or change, while a run gets on."""
    return progress.version, progress.contributions, progress.steps, progress.actors


@dataclass
class Outcome:
    finish: Finish
    weights: Bundle
    seen: Seen
    core: Core

    @property
    def sha256(self) -> str:
        return self.weights.sha256()


def run(
    job: Job,
    actors: int,
    address: str = "tcp://127.0.0.1:*",
    jobs: Sequence[Job] = (),
    share: bool = False,
    through: Callable[[str], str] = str,
    room: int = 0,
    gateway: bool = False,
    together: bool = False,
    core_of: Callable[..., Core] = Core,
) -> Outcome:
    """To the end, or until nothing has moved for SILENCE seconds. jobs: what each actor runs, where that is not `job` itself.
    through: where actors go instead of there. room: bytes of contributions that may be fetched at a time, where that is not the
    server's own choice. gateway: a process of its own faces the actors. together: the first tasks wait until all actors
    are here, who may come late for a short run. core_of: what makes the core, from a Core's arguments."""
    aggregator = job.aggregator("cpu")
    layout = aggregator.weights().layout
    layouts, briefs = job.layouts(layout), job.briefs(layout)
    bounds = replace(job.bounds(), gather=actors if together or job.bounds().sticky else 0, briefs=bool(briefs))
    bounds = replace(bounds, brief_once=job.briefs_once(layout))
    core = core_of(job.plan(AFRESH), job.method.goal(), bounds, now=time.monotonic())
    options: dict[str, Any] = {"evaluate": job.central(), "due": job.method.due, "briefs": briefs}
    seen = Seen()
    if actors:
        wire: Any = Gateway(address) if gateway else Hub(address)
        learner: Learner = LearnerThread(aggregator, Inspector(), time.monotonic, wake=wire.wake, **options)
    else:
        wire = PlainWire(lambda workload: job.worker(), time.monotonic)
        learner = Learner(aggregator, Inspector(), time.monotonic, **options)
    shared = sharing(layout.nbytes)[0] if share else None
    crowd = [_actor(through(wire.address), (jobs or [job] * actors)[at], at) for at in range(actors)]
    server = Server(
        core,
        wire,
        learner,
        seen,
        run="test",
        host=host_id(),
        welcome=pack_welcome(Terms({}, layout, getattr(aggregator, "coding", None), briefs)),
        layouts=layouts,
        clock=time.monotonic,
        outside=Outside(lambda: "nothing moves" if time.monotonic() - seen.came_at > SILENCE else ""),
        sharing=shared,
    )
    if room:
        server.traffic.receiving.room = room
    finish = server.run()
    if gateway:
        wire.close()  # what it was told to say leaves now
    for thread in crowd:
        thread.join(SILENCE)
        assert not thread.is_alive()
    if not gateway:
        wire.close()
    if shared:
        shared.close()
    return Outcome(finish, learner.newest[1], seen, core)


def _actor(address: str, job: Job, number: int) -> threading.Thread:
    def live() -> None:
        life = Actor(
            address,
            lambda workload: job.worker(),
            name=f"actor-{number}",
            session=os.urandom(8),
            clock=time.monotonic,
            say=lambda text: None,
        )
        life.live()

    thread = threading.Thread(target=live, daemon=True)
    thread.start()
    return thread
