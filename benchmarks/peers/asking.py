"""A question to a peer: a script of this folder, run by the Python of the peer's venv, which answers with a JSON line.

The one idea: any failure of a peer becomes one line here, and no process of the peer is left.
"""

from __future__ import annotations

import json
import math
import os
import signal
import subprocess
import tempfile
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from shoal.benchmarks.peers.venvs import HERE, surroundings

GRACE = 15.0  # seconds that a peer's processes have to end


class AnswerError(Exception):
    """A peer failed, took too long or gave no answer; the message is one line."""


@dataclass(frozen=True)
class Question:
    """A script to run and its words. turns: repeats in a full run. quick: True if a quick run asks it too, once.

    seconds: most seconds for an answer. alike: True if the work is the same as in Shoal's figure, so that this question
    may be the peer's best.
    """

    peer: str
    script: str
    words: tuple[str | int | float | Path, ...]
    turns: int = 3
    quick: bool = False
    seconds: float = 300.0
    alike: bool = True


@dataclass(frozen=True)
class Answer:
    """A peer's figure, in the unit of the case that asked, and the versions that it was measured with."""

    figure: float
    versions: Mapping[str, str]


def ask(python: Path, question: Question) -> Answer:
    """Runs the question's script and returns its answer. Raises AnswerError."""
    command: list[str | Path] = [python, "-P", HERE / question.script, *map(str, question.words)]
    with (
        tempfile.TemporaryDirectory(prefix="shoal-peer-", ignore_cleanup_errors=True) as folder,
        tempfile.TemporaryFile("w+") as complaints,
        subprocess.Popen(
            command,
            cwd=folder,
            env={**surroundings(python.parent.parent), "OMP_NUM_THREADS": "1", **_kept_in(folder)},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=complaints,
            text=True,
            errors="replace",
            start_new_session=True,
        ) as child,
    ):
        try:
            said, _ = child.communicate(timeout=question.seconds)
        except subprocess.TimeoutExpired:
            raise AnswerError(f"no answer in {question.seconds:.0f} s") from None
        finally:
            if child.returncode is None:
                _end(child)
        if child.returncode:
            raise AnswerError(f"exit status {child.returncode}: {_last(complaints)}")
        return heard(said)


def _kept_in(folder: str) -> dict[str, str]:
    """Returns variables that put Flower's and Ray's files into the folder. Ray's sockets need a short path."""
    return {"FLWR_HOME": folder, **({"RAY_TMPDIR": folder} if len(folder) < 40 else {})}


def heard(said: str) -> Answer:
    """Returns the answer in a script's output: the last line that begins with "{". Raises AnswerError."""
    lines = [line for line in said.splitlines() if line.startswith("{")]
    if not lines:
        raise AnswerError("no JSON line")
    try:
        match json.loads(lines[-1]):
            case {"figure": float() | int() as figure, "versions": dict(versions)} if _is_a_measure(figure):
                return Answer(float(figure), {str(name): str(value) for name, value in versions.items()})
    except json.JSONDecodeError:
        pass
    raise AnswerError(f"no answer: {lines[-1][:200]}")


def _is_a_measure(figure: float) -> bool:
    return not isinstance(figure, bool) and math.isfinite(figure) and figure > 0


def _end(child: subprocess.Popen[str]) -> None:
    """Ends the script and all that it started: SIGTERM first, SIGKILL after GRACE seconds."""
    os.killpg(child.pid, signal.SIGTERM)
    with suppress(subprocess.TimeoutExpired):
        child.wait(GRACE)
    with suppress(ProcessLookupError):
        os.killpg(child.pid, signal.SIGKILL)
    child.wait()


def _last(complaints: IO[str]) -> str:
    """Returns the last line that is not empty."""
    complaints.seek(0)
    lines = [line.strip() for line in complaints.read().splitlines() if line.strip()]
    return lines[-1][:200] if lines else "it said nothing"
