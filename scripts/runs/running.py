"""`shoal.run` and `shoal.start`: how a job is run from Python.

The one idea: `run` runs a job in this thread, to its end; `start` does the same in a new thread, and hands on rows as they
come. Both give what `shoal simulate` gives, with the same numbers.
"""

from __future__ import annotations

import argparse
import atexit
import queue
import signal
import sys
import threading
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from typing import Any, Self

from shoal.commands.readers import address
from shoal.coordinator.keeping.store import Snapshot
from shoal.coordinator.reports import Observer
from shoal.jobs.job import Job
from shoal.protocol.door import check_bind
from shoal.protocol.errors import UserError
from shoal.runs.choosing import brief, chosen, refuse_within_find
from shoal.runs.launch import Ended, Launch, Ready, launch, planned, ready
from shoal.runs.observers import Together
from shoal.runs.progress import Errors, Lines, display
from shoal.runs.resuming import is_done, resumed
from shoal.runs.run import Place, Run
from shoal.runs.stopping import Stopper
from shoal.runs.theirs import in_one_line
from shoal.runs.watching import Row, StopWhen, Watch
from shoal.tracking.trackers import wanted


class RunError(UserError):
    """A run could not go on, or an observer or `stop_when` raised. run: the run as far as it came."""

    def __init__(self, text: str, run: Run) -> None:
        super().__init__(text)
        self.run = run


def run(
    job: Job | Place,
    *,
    actors: int | None = None,
    evaluators: int | None = None,
    settings: Mapping[str, Any] | None = None,
    seed: int | None = None,
    device: str | None = None,
    transport: str | None = None,
    bind: str = "",
    folder: Place | None = None,
    observers: Iterable[Observer] = (),
    stop_when: StopWhen | None = None,
    track: str | Sequence[str] = (),
    show: bool | None = None,
) -> Run:
    """Run a job to its end, and return the run.

    job: a Job, or a name as `shoal simulate` takes it: "digits", "gymnasium:Pendulum-v1", "file.py:job", "config.toml".
    actors: number of processes that do the work (default 2; 0 is the plain loop in this process). evaluators: number of
    processes besides that do evaluations alone (default 0: the actors do them). settings: settings of the job by name, as
    `shoal jobs JOB` lists them. seed: decides everything random (default 0, or the job's own). device: where the learner works,
    "auto", "cpu" or "cuda". transport: how arrays travel on this machine, "shm", "ipc" or "tcp". A config.toml gives those of
    actors, evaluators, seed, device and transport that are left out. bind: an address at which other actors of this machine may
    join, tcp://127.0.0.1:5555 for one. folder: a new folder for the run; None is runs/JOB-DATE-TIME.
    observers: objects with the methods stepped, moved and report (docs/python.md). stop_when: a function of a row (version,
    seconds, steps, metrics by name); the run ends in good order when it returns something true. track: trackers that the run is
    told to, "mlflow", "tensorboard", "wandb", "trackio" or "prometheus", each with its place behind = if it needs one
    (docs/tracking.md). show: True shows progress on the screen; None shows it on a terminal and in a notebook.

    Ctrl-C ends the run in good order. Raises UserError for a mistake in what was asked for, RunError if the run failed.
    """
    watch = Watch(observers, stop_when)
    with in_one_line():
        given = {"seed": seed, "actors": actors, "evaluators": evaluators, "transport": transport, "device": device}
        options = _asked(job, settings, bind, folder, track, **given)
        return _carried_out(Run(options.run.path.absolute(), options.job, options.named), options, watch, show)


def start(
    job: Job | Place,
    *,
    actors: int | None = None,
    evaluators: int | None = None,
    settings: Mapping[str, Any] | None = None,
    seed: int | None = None,
    device: str | None = None,
    transport: str | None = None,
    bind: str = "",
    folder: Place | None = None,
    observers: Iterable[Observer] = (),
    stop_when: StopWhen | None = None,
    track: str | Sequence[str] = (),
    show: bool | None = None,
) -> Started:
    """Run a job in the background: `with shoal.start("digits") as run:`, `for row in run: ...`, `run.stop()`.

    The arguments are those of `shoal.run`.
    """
    with in_one_line():
        begun = Started(observers, stop_when, show)
        given = {"seed": seed, "actors": actors, "evaluators": evaluators, "transport": transport, "device": device}
        begun._begin(_asked(job, settings, bind, folder, track, **given))
        return begun


def resume(
    run: Run,
    settings: Mapping[str, Any],
    actors: int | None,
    evaluators: int | None,
    bind: str,
    watch: Watch,
    track: str | Sequence[str],
    show: bool | None,
) -> Run:
    """Go on with a run, as `Run.resume` says."""
    refuse_within_find()
    _check_address(bind)
    with in_one_line():
        trackers = wanted(track)
        config, job = resumed(run.dir, run.job, settings, actors=actors, evaluators=evaluators)
        if is_done(run.dir, job):
            return run
        options = Launch(job, config, run.dir, bind, resume=True, named=run.named, track=trackers)
        return _carried_out(Run(run.folder, job, run.named), options, watch, show)


class Started(Run):
    """A run in the background. Iteration gives its rows as they come, until the run has ended.

    There is a row a step, and one more a central evaluation. A row is a dict of version, seconds, steps, contributions, actors,
    and the last value of each metric by name. Leaving the `with` block stops the run in good order. An error that ended the run
    is raised where the iteration ends, by `wait`, or at the end of the block.
    """

    def __init__(self, observers: Iterable[Observer], stop_when: StopWhen | None, show: bool | None) -> None:
        self._rows: queue.SimpleQueue[Row | None] = queue.SimpleQueue()
        self._watch = Watch(observers, stop_when, self._rows.put)
        self._show = show
        self._over = threading.Event()
        self._error: BaseException | None = None
        self._raised = False

    def _begin(self, options: Launch) -> None:
        super().__init__(options.run.path.absolute(), options.job, options.named)
        stack = ExitStack()
        made = ready(options)
        if threading.current_thread() is threading.main_thread():  # it outlives the run, and may be the only one so far
            begun = stack.enter_context(made)
            make: Callable[[], Ready] = lambda: begun  # noqa: E731
        else:
            make = lambda: stack.enter_context(made)  # noqa: E731
        atexit.register(self._at_exit)
        threading.Thread(target=self._live, args=(stack, make, options), name="run", daemon=True).start()

    def _live(self, stack: ExitStack, make: Callable[[], Ready], options: Launch) -> None:
        try:
            with in_one_line(), stack:
                begun = make()
                shown = stack.enter_context(_display(options, self._show))
                ended = launch(begun, Together(shown, self._watch), lambda: self._watch.reason)
            _settle(self, ended, self._watch)
        except BaseException as error:  # noqa: BLE001  raised to whoever waits
            self._error = error
        finally:
            atexit.unregister(self._at_exit)
            self._over.set()
            self._rows.put(None)

    def _at_exit(self) -> None:
        self.stop("stopped at the end of the program")
        self._over.wait()

    def stop(self, reason: str = "stopped by stop()") -> None:
        """Ask for the end of the run, in good order. Rows still come until the run has ended."""
        self._watch.stop(reason)

    def wait(self) -> Self:
        """Wait until the run has ended. Raises the error that ended it."""
        self._over.wait()
        if self._error is not None:
            self._raised = True
            raise self._error
        return self

    def __iter__(self) -> Iterator[Row]:
        while (row := self._rows.get()) is not None:
            yield row
        self._rows.put(None)  # for another iteration
        self.wait()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        self.stop("stopped by leaving its with block")
        self._over.wait()
        if kind is None and not self._raised:
            self.wait()


def _asked(
    job: Job | Place,
    settings: Mapping[str, Any] | None,
    bind: str,
    folder: Place | None,
    track: str | Sequence[str],
    **given: Any,
) -> Launch:
    """The launch that is asked for. A mistake in it is told before the run's folder is made."""
    refuse_within_find()
    _check_address(bind)
    trackers = wanted(track)
    its, config, named = chosen(job, settings or {}, **given)
    return planned(its, config, folder, bind, named=named, track=trackers)


def _carried_out(run: Run, options: Launch, watch: Watch, show: bool | None) -> Run:
    with ready(options) as begun, Stopper() as stopper, _display(options, show) as shown:
        ended = launch(begun, Together(shown, watch), lambda: stopper.reason or watch.reason, stopper.pauses)
    if stopper.number == signal.SIGTERM:
        signal.raise_signal(signal.SIGTERM)  # now it does what it does to the program
    _settle(run, ended, watch)
    return run


def _settle(run: Run, ended: Ended, watch: Watch) -> None:
    """Tell a run how it ended. Raises RunError if it failed."""
    run.ended(Snapshot(ended.version, ended.weights), ended.reason)
    if watch.raised is not None:
        raise RunError(watch.raised[0], run) from watch.raised[1]
    if ended.failed:
        raise RunError(f"the run failed: {ended.reason}; {run.dir.log_file} says more", run)
    if complaint := watch.complaint():
        warnings.warn(complaint, stacklevel=4)


def _check_address(bind: str) -> None:
    if not isinstance(bind, str):
        raise UserError(f"bind={bind!r}: an address has the form tcp://HOST:PORT")
    if bind:
        try:
            check_bind(address(bind), None)
        except argparse.ArgumentTypeError as wrong:
            raise UserError(f"bind={wrong}") from None


def _display(options: Launch, show: bool | None) -> Errors:
    title = f"{brief(options.config.job)} in {options.run.path}"
    notebook = _in_notebook()
    if show or (show is None and (notebook or (sys.stderr is not None and sys.stderr.isatty()))):
        return Lines(sys.stdout, title) if notebook else display(sys.stderr, title)
    return display(sys.stderr, title, quiet=True)


def _in_notebook() -> bool:
    shell = sys.modules.get("IPython")
    return shell is not None and hasattr(shell.get_ipython(), "kernel")
