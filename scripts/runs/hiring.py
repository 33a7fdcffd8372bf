"""Where this machine's actors are forked from: a copy of this process, or a fresh interpreter.

The one idea: a fork copies one thread, and the locks that the others hold. Where this process has one thread, a copy costs
nothing and has the job as it is. Where it has more (a notebook has), or CUDA, a job that another process can find by its name
is imported by a fresh interpreter. A job that was made here, in a cell say, exists in a copy alone: nothing is ever pickled.
Then the copy forks at once and touches nothing of the other threads' (actors/pool.py).
"""

from __future__ import annotations

import json
import sys
import threading
from pathlib import Path

from shoal.actors.pool import Pool
from shoal.jobs.job import Job
from shoal.protocol.errors import UserError
from shoal.runs.living import life_of
from shoal.runs.rundir import Config, finite

TASKS = Path("/proc/self/task")


def hired(job: Job, config: Config, named: bool) -> Pool | None:
    """A nursery for this job's actors; None where there are to be none here. named: config.job finds this job anywhere.

    Raises UserError where a copy of this process could not train, and the job has no name.
    """
    if not config.actors:
        return None
    if named and (threading.active_count() > 1 or _uses_cuda()):
        return Pool.started("shoal.runs.fresh", json.dumps([config.job, finite(job.plain()), job.seed]))
    if _differentiates():
        raise UserError(
            "torch has used its autograd threads in this process, so a job made here cannot train in a copy of it: "
            "put the job into a file and run FILE.py:job, or give actors=0"
        )
    return Pool.forked(life_of(job))


def _uses_cuda() -> bool:
    torch = sys.modules.get("torch")
    return torch is not None and (torch.cuda.is_initialized() or _differentiates())


def _differentiates() -> bool:
    """Where torch sees a GPU, the first backward pass starts threads, and a copy of the process can differentiate no more."""
    return any(task.read_text().startswith("pt_autograd") for task in TASKS.glob("*/comm"))
