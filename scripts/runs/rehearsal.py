"""The trial of a job's environment, in a copy of this process.

The one idea: an environment may start threads, take a GPU or end its process, and actors are forked from this process
afterwards. So a copy makes the trial and says how it went, and nothing of the trial is left when this process goes on.
"""

from __future__ import annotations

import math
import os
import select
import signal
import time
import traceback
from contextlib import suppress

from shoal.envs.trying import LONG, say_long
from shoal.jobs.job import Job
from shoal.jobs.problems import Environment
from shoal.protocol.errors import UserError
from shoal.protocol.parent import die_with_parent, forked
from shoal.runs.theirs import told
from shoal.runs.threads import lone

MOST = 60_000  # bytes of the copy's words: a pipe holds them, so that the copy never waits for a reader
EVERY = 0.05  # seconds between two looks at whether the copy lives
MAKING = 5.0  # seconds that a trial may take in addition to step_timeout for its reset and its step
CLOSING = 3.0  # seconds that an environment may take to close
GOOD = b"\1"
BREAK = b"\0"  # between an exception's line and its traceback


def rehearse(job: Job, named: str = "") -> None:
    """Try one reset and one step of a job's environment. named: the JOB that was typed, or "".

    Raises UserError, one line, for a fault; a note holds the traceback. Faults that the job's settings have an answer to (an
    exception with on_env_error=replace, a hang or a death in a process of its own) pass.
    """
    problem = job.problem
    if not isinstance(problem, Environment) or not job.ours:
        return
    if lone() and hasattr(os, "fork"):
        _copied(problem, named)
    elif not problem.apart:  # a copy could wait for ever for a lock that another thread holds
        _here(problem, named)


def _here(problem: Environment, named: str) -> None:
    said = False
    try:
        with problem.rehearsed():
            said = True
    except UserError:
        if not said:
            raise
    except Exception as raised:
        if not said and problem.on_env_error != "replace":
            raise UserError(told(raised, named) or f"{type(raised).__name__}: {raised}") from raised


def _copied(problem: Environment, named: str) -> None:
    here, there = os.pipe()
    parent = os.getpid()

    def life() -> None:
        die_with_parent(parent)
        os.close(here)
        _play(problem, named, there)

    copy = _Copy(forked(life), here)
    os.close(there)
    try:
        patience = 2 * problem.step_timeout + MAKING if problem.step_timeout else math.inf
        words = copy.words(min(patience, LONG))
        if not words and copy.status is None and patience > LONG:
            say_long(problem.recipe(False))
            words = copy.words(patience - LONG)
        copy.wait(CLOSING)
    finally:
        copy.end()
    if words not in (GOOD, b""):
        line, _, trace = words.decode(errors="replace").partition(BREAK.decode())
        wrong = UserError(line) if line else RuntimeError("the trial of the environment failed")
        wrong.add_note(f"In the trial of the environment:\n{trace}")
        raise wrong
    if not words and not problem.apart:
        raise UserError(f"the environment ended its process in its first reset or step: it {_ending(copy.status)}")


def _play(problem: Environment, named: str, there: int) -> None:
    """Make the trial, and write GOOD or the fault. An exception of `close` is no fault here."""
    said = False
    try:
        with problem.rehearsed():
            said = bool(os.write(there, GOOD))
    except KeyboardInterrupt:
        os._exit(1)  # the process that waits hears Ctrl-C itself
    except BaseException as raised:  # noqa: BLE001  an environment is the user's code, and may even call sys.exit
        if not said and (isinstance(raised, UserError) or problem.on_env_error != "replace"):
            line = (told(raised, named) or "").encode(errors="backslashreplace")
            trace = "".join(traceback.format_exception(raised)).encode(errors="backslashreplace")
            os.write(there, line + BREAK + trace[-(MOST - len(line) - 1) :])


class _Copy:
    """The copy, as the process that waits for it sees it. status: how it ended, as os.waitpid says; None while it lives."""

    def __init__(self, pid: int, here: int) -> None:
        self.pid, self.here = pid, here
        self.status: int | None = None

    def words(self, patience: float) -> bytes:
        """Return what the copy says; b"" if it ends, or `patience` seconds pass, before it says anything."""
        until = time.monotonic() + patience
        while not (ready := select.select([self.here], [], [], EVERY)[0]) and not self._gone() and time.monotonic() < until:
            pass
        ready = ready or select.select([self.here], [], [], 0)[0]
        return os.read(self.here, MOST) if ready else b""

    def wait(self, patience: float) -> None:
        """Wait until the copy has ended, but not longer than `patience` seconds. The end of the pipe is the end of the copy,
        unless the environment has left processes of its own."""
        until = time.monotonic() + patience
        while not self._gone() and time.monotonic() < until:
            if select.select([self.here], [], [], EVERY)[0] and not os.read(self.here, MOST):
                self._gone(0)

    def end(self) -> None:
        if not self._gone():
            with suppress(ProcessLookupError):
                os.kill(self.pid, signal.SIGKILL)
            self._gone(0)
        os.close(self.here)

    def _gone(self, how: int = os.WNOHANG) -> bool:
        if self.status is None:
            ended, status = os.waitpid(self.pid, how)
            self.status = status if ended else None
        return self.status is not None


def _ending(status: int | None) -> str:
    code = os.waitstatus_to_exitcode(status or 0)
    return f"was ended by {signal.Signals(-code).name}" if code < 0 else f"exited with code {code}"
