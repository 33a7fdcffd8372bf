"""Shoal: federated and reinforcement learning over long-lived actors.

The one idea: `import shoal` imports no other module. Python imports a public name's module when the name is first used.
"""

from __future__ import annotations

from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from shoal.aggregators import Aggregator
    from shoal.jobs.federated import Federated
    from shoal.jobs.job import Job
    from shoal.jobs.methods import METHODS
    from shoal.jobs.methods.fedavg import FedAvg
    from shoal.jobs.methods.fedbuff import FedBuff
    from shoal.jobs.methods.impala import IMPALA
    from shoal.jobs.methods.method import Method, Start
    from shoal.jobs.methods.ppo import PPO
    from shoal.jobs.problems import Problem
    from shoal.jobs.reinforcement import Reinforcement
    from shoal.jobs.settings import option
    from shoal.jobs.wraps import Wrap
    from shoal.protocol.errors import UserError
    from shoal.protocol.layout import Bundle
    from shoal.protocol.work import Contribution, Moved, Task, Work
    from shoal.runs.run import Run, evaluate, export, load, plot
    from shoal.runs.running import RunError, run, start

__all__ = [
    "IMPALA",
    "METHODS",
    "PPO",
    "Aggregator",
    "Bundle",
    "Contribution",
    "FedAvg",
    "FedBuff",
    "Federated",
    "Job",
    "Method",
    "Moved",
    "Problem",
    "Reinforcement",
    "Run",
    "RunError",
    "Start",
    "Task",
    "UserError",
    "Work",
    "Wrap",
    "__version__",
    "evaluate",
    "export",
    "load",
    "option",
    "plot",
    "run",
    "start",
]
__version__ = "0.1.0"

MODULES = {
    "aggregators": "Aggregator",
    "jobs.federated": "Federated",
    "jobs.job": "Job",
    "jobs.methods": "METHODS FedAvg FedBuff IMPALA PPO",
    "jobs.methods.method": "Method Start",
    "jobs.problems": "Problem",
    "jobs.reinforcement": "Reinforcement",
    "jobs.settings": "option",
    "jobs.wraps": "Wrap",
    "protocol.errors": "UserError",
    "protocol.layout": "Bundle",
    "protocol.work": "Contribution Moved Task Work",
    "runs.run": "Run evaluate export load plot",
    "runs.running": "RunError run start",
}
"""Module -> the public names that it defines."""
PLACES = {name: module for module, names in MODULES.items() for name in names.split()}

if (_here := Path(__file__).parent).name == "scripts":  # a checkout
    # the root comes first, or scripts/coordinator.py would hide the room coordinator/; only a checkout has tests/faults/
    __path__[:0] = [str(_here.parent), str(_here.parent / "tests")]


def __getattr__(name: str) -> Any:
    if name not in PLACES:
        raise AttributeError(f"module 'shoal' has no attribute {name!r}")
    return getattr(import_module(f"shoal.{PLACES[name]}"), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
