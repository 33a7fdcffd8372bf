"""The plan of a server: what `shoal serve` was asked for, as plain data.

The one idea: all that can be wrong in a plan is told in one line here, before anything is loaded or bound.
"""

from __future__ import annotations

import importlib.util
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from shoal.protocol.door import is_local
from shoal.protocol.errors import UserError
from shoal.runs.rundir import RunDir
from shoal.serving.splitting import split_of


@dataclass(frozen=True, slots=True)
class Plan:
    """The plan of a server, as `shoal serve --help` tells it. Times are in seconds; 0 is none."""

    sources: tuple[str, ...]
    split: str = ""
    test: str = ""
    sticky: str = ""
    max_batch: int = 64
    max_wait: float = 0.002
    deadline: float = 0.0
    queue: int = 4_096
    replicas: int = 1
    host: str = "127.0.0.1"
    port: int = 8080
    zmq: str = "tcp://127.0.0.1:5557"
    only: str = ""
    token: str = ""
    key: str = ""
    server: str = ""
    job: str = ""
    trust: bool = False
    check: str = ""
    compile: bool = False
    dtype: str = "float32"
    quantize: str = ""
    max_loss: float = 0.01
    folder: str = ""


def check(plan: Plan) -> None:
    """Raises UserError for a plan that cannot be carried out, before anything is loaded or bound."""
    if plan.only != "zmq":
        for needed in ("orjson", "starlette", "uvicorn"):
            if importlib.util.find_spec(needed) is None:
                raise UserError(f"serve over HTTP needs {needed}: pip install 'shoal[serve]', or give --only zmq")
        if not is_local(f"tcp://{plan.host}:1") and not plan.token:
            raise UserError(f"--host {plan.host}: other machines can reach it: give --token @FILE, or leave --host out")
    if plan.only != "http" and not is_local(plan.zmq) and not plan.key:
        raise UserError(
            f"--zmq {plan.zmq}: other machines can reach it: type `shoal keys new NAME` and give --key NAME, or bind "
            "tcp://127.0.0.1:PORT"
        )
    if plan.only != "http" and not plan.zmq.startswith("tcp://"):
        raise UserError(f"--zmq {plan.zmq}: expected tcp://HOST:PORT")
    if plan.queue < plan.max_batch:
        raise UserError(f"--queue {plan.queue}: a request may have --max-batch {plan.max_batch} rows, so give that at least")
    names = names_of(plan)
    split_of(plan.split, names, plan.test)
    if plan.sticky and not re.fullmatch(r"[A-Za-z0-9-]{1,64}", plan.sticky):
        raise UserError(f"--sticky {plan.sticky}: expected the name of a header, such as x-user")


def names_of(plan: Plan) -> list[str]:
    """The names of the models: a run folder's own name, or a coordinator's address. Raises UserError for two of one name."""
    names = [place if "://" in place else RunDir.open(place).name for place in plan.sources]
    for name in names:
        if names.count(name) > 1:
            raise UserError(f"two models are called {name}: a model's name is that of its run's folder; rename one")
    return names


def plan_of(found: Mapping[str, Any]) -> Plan:
    """The plan that was written as JSON."""
    return Plan(**{**found, "sources": tuple(found["sources"])})
