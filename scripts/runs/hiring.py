"""The choice of a nursery, from which this machine's actors are forked: a copy of this process, or a fresh interpreter.

The one idea: a fork copies one thread, and the locks that other threads hold. If this process has one thread, a copy is safe,
costs nothing and has the job as it is. If this process has more threads (a notebook has), or CUDA, a fresh interpreter
imports the job by its name. A job that was made in a cell has no name that another process could find, and nothing is ever
pickled, so a copy is its only way; the copy touches nothing that belongs to other threads (actors/pool.py).
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from shoal.actors.pool import Life, Pool
from shoal.protocol.errors import UserError
from shoal.runs.living import life_of
from shoal.runs.rundir import finite
from shoal.runs.threads import lone

if TYPE_CHECKING:
    from shoal.runs.launch import Launch

TASKS = Path("/proc/self/task")


def hired(options: Launch) -> Pool | None:
    """A nursery for the actors of a run; None if the run has none.

    Raises UserError if the job has no name and a copy of this process could not train.
    """
    job, config = options.job, options.config
    if not config.actors + config.evaluators:
        return None
    word = json.dumps([config.job, finite(job.plain()), job.seed])
    return nursery(life_of(job), options.named, "shoal.runs.fresh", word)


def nursery(life: Life, named: bool, module: str, word: str) -> Pool:
    """A nursery of processes that live `life`: a copy of this process if it has one thread (see `lone`), or if `named` is not
    true; else a fresh interpreter that runs `module` and is told `word`. Raises UserError if a copy could not train."""
    if named and (not lone() or _uses_cuda()):
        return Pool.started(module, word)
    if _differentiates():
        raise UserError(
            "torch has used its autograd threads in this process, so a job made here cannot train in a copy of it: "
            "put the job into a file and run FILE.py:job, or give actors=0"
        )
    return Pool.forked(life)


def _uses_cuda() -> bool:
    torch = sys.modules.get("torch")
    return torch is not None and (torch.cuda.is_initialized() or _differentiates())


def _differentiates() -> bool:
    """True if torch runs autograd threads. Its first backward pass on a machine with a GPU starts them, and from then on torch
    refuses backward passes in a copy of the process."""
    return any(_called(task).startswith("pt_autograd") for task in TASKS.glob("*/comm"))


def _called(task: Path) -> str:
    try:
        return task.read_text()
    except (FileNotFoundError, ProcessLookupError):  # the thread has just ended
        return ""
