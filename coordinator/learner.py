"""The thread that owns the aggregator and its device. It never waits on a socket.

The one idea: jobs go in and events come out, in order; a contribution meant for a later version than the aggregator's waits
here, so that every step is made of exactly the contributions that the core meant for it.
"""

from __future__ import annotations

import queue
import sys
import threading
import traceback
from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import field, replace
from typing import Any, TypeAlias

import numpy as np

from shoal.aggregators import Aggregator
from shoal.coordinator.checks import Inspector
from shoal.coordinator.deciding.events import Brief, Briefed, Event, Fold, Folded, Kept, Step, Stepped, Unfit
from shoal.coordinator.keeping.disk import DiskTrouble, Done, lasting
from shoal.coordinator.keeping.recording import Recording
from shoal.coordinator.lately import Lately
from shoal.coordinator.reports import Report
from shoal.protocol.errors import UserError, signed
from shoal.protocol.exact import unfinite
from shoal.protocol.layout import Bundle, Bytes, Layout, run_of
from shoal.protocol.value import value
from shoal.protocol.work import Contribution, Metrics, Moved, Task, Work


@value
class Intake:
    """A contribution with its arrays."""

    fold: Fold
    bundle: Bundle | None


@value
class Make:
    """A step. room: uint8, as large as the weights: memory shared with actors, where the next weights are written too; None
    if there is no such memory. figures: of episodes, for a snapshot (coordinator/tally.py)."""

    step: Step
    room: Bytes | None = None
    figures: Mapping[str, Any] = field(default_factory=dict)


@value
class Evaluated:
    """A central evaluation of weights `version`: for observers, not for the core."""

    version: int
    metrics: Metrics


@value
class Broke:
    """The learner itself failed: the run cannot go on."""

    error: BaseException


Job: TypeAlias = Intake | Make | Brief
Answer: TypeAlias = Event | Evaluated | Broke | Report
GROUP = 64  # jobs whose records are made durable together
LONG = 2e-4  # seconds of a job after which its outcome is told: its actor may be waiting for the memory that its arrays lie in
DEARER = 4  # times the seconds of the last telling, sync included: jobs take this long before the next telling


class Learner:
    """A learner that does jobs as they are put, on the caller's thread. `newest` is (version, weights), swapped as one;
    `lately` their recent changes, if the aggregator tells changes (aggregators/around/told.py).

    evaluate: central evaluation, of every version for which `due` is True; None: no evaluation. recording: makes promises
    durable; None: nothing is recorded. briefs: the layouts that briefs may have. wake: called after each step. given_up:
    returns whether a person ended the run, so that no more room on a full disk is waited for. complain: tells of a full disk.
    prompt: the answers to jobs are there when `put` returns, and the server takes them in the same turn.
    """

    def __init__(
        self,
        aggregator: Aggregator,
        inspector: Inspector,
        clock: Callable[[], float],
        *,
        version: int = 0,
        evaluate: Callable[[Bundle], Metrics] | None = None,
        due: Callable[[int], bool] = lambda version: True,
        recording: Recording | None = None,
        briefs: Iterable[Layout] = (),
        wake: Callable[[], None] = lambda: None,
        given_up: Callable[[], object] = bool,
        complain: Callable[[Report], object] | None = None,
        prompt: bool = False,
    ) -> None:
        self.prompt = prompt
        self.outcomes: deque[Answer] = deque()
        self.given_up, self.complain = given_up, complain or self.outcomes.append
        self.briefs = {layout.digest for layout in briefs}
        self.aggregator, self.inspector, self.clock = aggregator, inspector, clock
        self.evaluate, self.due, self.recording = evaluate, due, recording
        self.newest = (version, aggregator.weights())
        self.lately = Lately(version)
        self.busy = 0.0  # seconds spent on jobs
        self._wake = wake
        self._early: dict[int, list[Intake]] = {}
        self._loss = (0.0, 0.0)  # total and count of the contributions' loss since the last step
        self._unsaid: list[Answer] = []  # answers not to be told before their records are durable

    def put(self, jobs: Sequence[Job]) -> None:
        """Do these jobs in this order."""
        for job in jobs:
            self._do(job)
        self._flush()

    def finish(self, seconds: float | None = None) -> bool:
        """Return True when all jobs are done, or False after `seconds`; no job may be put after this."""
        return True

    def stack(self) -> str:
        """The stack of the learner's own thread, as text; "" if it has none."""
        return ""

    def _do(self, job: Job) -> None:
        began = self.clock()
        match job:
            case Intake() if job.fold.onto > self.newest[0]:
                self._early.setdefault(job.fold.onto, []).append(job)
            case Intake():
                self._take(job)
            case Make(step):
                self._step(job)
                self._after(step)
            case Brief(task, attempt):
                self._unsaid.append(self._brief(task, attempt))
        self.busy += self.clock() - began

    def _take(self, intake: Intake) -> None:
        self._unsaid.append(self._fold(intake))

    def _flush(self) -> None:
        """Tell the answers, once their records are durable."""
        if self._unsaid:
            self._sync()
        told, self._unsaid = self._unsaid, []
        self.outcomes.extend(told)

    def _fold(self, intake: Intake) -> Event:
        fold, message = intake.fold, intake.fold.message
        name = fold.task.name
        if intake.bundle is None:
            return Unfit(name, "a contribution without arrays")
        if fold.promised and intake.bundle.sha256() != message.digest:
            return Unfit(name, "its arrays are not those that were accepted before the restart")
        fault, norm = self.inspector.look(intake.bundle, message, len(fold.clients))
        if fault:
            return Unfit(name, fault)
        work = Work(intake.bundle, message.weight, message.totals, message.samples, message.steps)
        task = fold.task if fold.task.clients else replace(fold.task, clients=fold.clients)
        lag = fold.onto - message.made_from
        try:
            self.aggregator.fold(Contribution(task, message.made_from, lag, work, message.summed, norm))
        except ValueError as unfit:  # an aggregator raises it for values it cannot take in; nothing was changed
            return Unfit(name, str(unfit))
        self.inspector.taken()
        if "loss" in message.totals:
            total, count = message.totals["loss"]
            self._loss = (self._loss[0] + total, self._loss[1] + count)
        if self.recording is not None:
            self.recording.accept(fold, intake.bundle)
        return Folded(name)

    def _brief(self, task: Task, attempt: int) -> Briefed:
        """The brief of this attempt. Raises UserError if its layout is none that actors were told of."""
        bundle = self.aggregator.brief(task) if hasattr(self.aggregator, "brief") else None
        name = task.name
        if bundle is None:
            return Briefed(name, attempt)
        if bundle.layout.digest not in self.briefs and run_of(bundle.layout.digest) is None:
            whose = f"{type(self.aggregator).__name__}.brief of task {name}"
            raise UserError(f"{whose} has layout {bundle.layout.digest[:16]}, which is none of those in the job's briefs")
        return Briefed(name, attempt, bundle.layout.digest, bundle.data)

    def _step(self, make: Make) -> None:
        step, version = make.step, make.step.version
        moved = self.aggregator.step()
        self.inspector.step()
        if not isinstance(moved, Moved):
            kind = type(self.aggregator).__name__
            raise UserError(f"aggregator {kind}: step() gave {type(moved).__name__}; expected Moved({{'loss': 0.3}}), say")
        if odd := _odd(moved.metrics):
            raise UserError(f"aggregator {type(self.aggregator).__name__}: step() gave Moved({odd}); expected name -> number")
        weights = self.aggregator.weights() if moved.weights else self.newest[1]
        if moved.weights and (name := unfinite(weights)):
            raise UserError(self._diverged(version, name, moved.metrics))
        self._loss = (0.0, 0.0)
        self.newest = (version, weights)
        if not moved.weights:
            self.lately = Lately(version)
        elif hasattr(self.aggregator, "change"):
            self.lately = self.lately.then(version, self.aggregator.change(), weights.data.nbytes)
        if make.room is not None and moved.weights:
            np.copyto(make.room, weights.data)
        if self.recording is not None:
            self.recording.commit(step, weights, make.figures)
            self._sync()
        if step.last:  # actors that are told of the last step leave, and can be asked for nothing again
            self._keep(step)
        self._unsaid.append(Stepped(version, moved.metrics, moved.weights))
        self._flush()
        self._wake()  # for a new version, before the work that comes after

    def _diverged(self, version: int, name: str, metrics: Metrics) -> str:
        total, count = self._loss
        told = {"loss": total / count} if count else {}
        told |= {key: value for key, value in metrics.items() if "loss" in key or "norm" in key}
        found = f" ({', '.join(f'{key} {value:.4g}' for key, value in told.items())})" if told else ""
        return (
            f"version {version} is not finite: {name!r} holds NaN or an infinity{found}. It is neither published nor kept, and "
            f"version {self.newest[0]} is the last one; smaller learning rates or a bound on gradients may help"
        )

    def _after(self, step: Step) -> None:
        """Do the work that can wait until the version is told: snapshot, contributions that came early for it, evaluation."""
        if not step.last:
            self._keep(step)
        for intake in self._early.pop(step.version, ()):
            self._take(intake)
        if self.evaluate and self.due(step.version):
            self._unsaid.append(Evaluated(step.version, self.evaluate(self.newest[1])))

    def _keep(self, step: Step) -> None:
        recording = self.recording
        if recording and self._lasting(lambda: recording.keep(step, self.newest[1], self.aggregator)):
            self._unsaid.append(Kept(step.version))

    def _sync(self) -> None:
        """Make all records durable before this returns."""
        if self.recording is not None:
            self._lasting(self.recording.sync)

    def _lasting(self, act: Callable[[], Done]) -> Done:
        """Act, as soon as there is room on the disk: nothing is acknowledged or published meanwhile, actors keep their work and
        wait. Raises SyncFailed; or DiskTrouble once the run is given up."""

        def complain(trouble: DiskTrouble) -> None:
            self.complain(
                Report("disk", f"{trouble}: nothing is acknowledged until there is room; Ctrl-C ends the wait", "error")
            )
            self._wake()

        return lasting(act, self.given_up, complain)


class LearnerThread(Learner):
    """A learner on a thread of its own. wake: called whenever there is an outcome."""

    def __init__(self, *arguments: object, wake: Callable[[], None], **options: object) -> None:
        super().__init__(*arguments, **options, wake=wake)  # type: ignore[arg-type]
        self._jobs: queue.SimpleQueue[Sequence[Job] | None] = queue.SimpleQueue()
        self._telling = 0.0  # seconds of the last telling
        self._finishing = False  # True: the end of all jobs was put
        self._thread = threading.Thread(target=self._work, name="learner", daemon=True)
        self._thread.start()

    def put(self, jobs: Sequence[Job]) -> None:
        self._jobs.put(jobs)

    def finish(self, seconds: float | None = None) -> bool:
        if not self._finishing:
            self._finishing = True
            self._jobs.put(None)
        self._thread.join(seconds)
        return not self._thread.is_alive()

    def stack(self) -> str:
        frame = sys._current_frames().get(self._thread.ident or 0)
        return "" if frame is None else "".join(traceback.format_stack(frame)).rstrip()

    def _work(self) -> None:
        try:
            while (jobs := self._jobs.get()) is not None:
                self._group(jobs)
                del jobs  # or their arrays would be kept while there is nothing to do
        except BaseException as error:  # noqa: BLE001  handed on to the socket thread, which can end the run
            self.outcomes.append(Broke(error))
            self._wake()

    def _group(self, jobs: Sequence[Job] | None) -> None:
        """Do these jobs and the waiting ones, until GROUP are done; all jobs shorter than LONG share one sync and one wake."""
        done, told_at = 0, self.clock()
        while jobs:
            for job in jobs:
                before = self.busy
                self._do(job)
                if self.busy - before > LONG and self.clock() - told_at > DEARER * self._telling:
                    self._tell()
                    told_at = self.clock()
            done += len(jobs)
            jobs = self._jobs.get_nowait() if done < GROUP and not self._jobs.empty() else ()
        if jobs is None:
            self._jobs.put(None)  # the end of all jobs, for the loop in _work to see
        self._tell()

    def _tell(self) -> None:
        """Tell the answers and wake the thread that waits for them. Without answers it is not woken: a wake costs it a turn."""
        if not self._unsaid:
            return
        began = self.clock()
        self._flush()
        self._wake()
        self._telling = self.clock() - began


def _odd(metrics: Any) -> str:
    """The metrics of a user's step, in part, if they are not names with numbers; else ""."""
    if not isinstance(metrics, Mapping):
        return signed(metrics)
    odd = [name for name, value in metrics.items() if not isinstance(name, str) or not hasattr(value, "__float__")]
    return f"{{{odd[0]!r}: {signed(metrics[odd[0]])}}}" if odd else ""
