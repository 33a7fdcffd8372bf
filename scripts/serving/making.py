"""The models that a plan names: each with its source of versions, its maker and the user's own check.

The one idea: whatever needs torch, a job or a coordinator is imported here, when a process of the server begins.
"""

from __future__ import annotations

import os
import socket
from collections.abc import Callable
from contextlib import suppress
from typing import TYPE_CHECKING, Any

from shoal.protocol.errors import printable
from shoal.serving.plan import Plan, names_of

if TYPE_CHECKING:
    from shoal.serving.server import Compute, Served


def served(plan: Plan, say: Callable[[str], None]) -> list[Served]:
    """The models of a plan. Raises UserError."""
    from shoal.serving.models import Faster, Maker
    from shoal.serving.server import Served

    faster = Faster(plan.compile, plan.dtype, plan.quantize, plan.max_loss)
    own_check = _own_check(plan.check)
    found = []
    for name, place in zip(names_of(plan), plan.sources, strict=True):
        job, source = _source(plan, name, place, say)
        maker = Maker(job, faster, plan.max_batch, lambda text, name=name: say(f"{name}: {text}"))  # type: ignore[misc]
        found.append(Served(name, maker.inputs, maker, source, place, own_check, maker.example))
    return found


def _source(plan: Plan, name: str, place: str, say: Callable[[str], None]) -> tuple[Any, Any]:
    from shoal.serving.following import Coordinator, RunFolder

    if "://" not in place:
        from shoal.runs.run import trusted

        run = trusted(place, plan.trust)
        return run.job, RunFolder(run.dir.path)
    from shoal.commands.access import of_actor
    from shoal.jobs.catalog import find
    from shoal.runs.choosing import absolute

    keys = of_actor(plan.key, plan.server) if plan.server else None
    own = find(absolute(plan.job)) if plan.job else None
    source = Coordinator(place, keys, own, f"server@{socket.gethostname()}:{os.getpid()}")
    return source.join(say), source


def _own_check(name: str) -> Callable[[int, Compute], str] | None:
    """The user's own check, (version, predict) -> "" or None or True for a good version, False or a reason for a bad one."""
    if not name:
        return None
    from shoal.jobs.catalog import named
    from shoal.protocol.errors import takes
    from shoal.runs.choosing import absolute

    own = named(absolute(name))
    takes("--check", own, "a function (version, predict) -> a reason to refuse the version, or None", 0, len)

    def checked(version: int, predict: Compute) -> str:
        found = own(version, predict)
        if found is None or found is True or found == "":
            return ""
        return found if isinstance(found, str) else f"{name} says so"

    return checked


def threads_found(threads: int) -> str:
    """The threads that this process computes with, in words: torch's, and those of the libraries beside it."""
    from shoal.runs.threads import cores

    found = [f"torch {threads}"]
    with suppress(ModuleNotFoundError):
        from threadpoolctl import threadpool_info

        found += [f"{one['internal_api']} {one['num_threads']}" for one in threadpool_info()]
    asked, have = os.environ.get("OMP_NUM_THREADS", "1"), cores()
    told = ", ".join(dict.fromkeys(found))
    return f"threads: {told} (OMP_NUM_THREADS={printable(asked, 20)}), of {have} core{'s' * (have > 1)}"
