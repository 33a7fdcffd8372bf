"""Shoal: federated and reinforcement learning over long-lived actors.

The one idea: `import shoal` imports no other module, but for the few lines that wait for joblib. Python imports a public name's
module when the name is first used.
"""

from __future__ import annotations

from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from shoal.actors.workers.call import cancelled as cancelled
    from shoal.actors.workers.call import seed as seed
    from shoal.actors.workers.gang import torchrun as torchrun
    from shoal.aggregators import Aggregator as Aggregator
    from shoal.coordinator.deciding.resources import Need as Need
    from shoal.envs.agents import Parallel as Parallel
    from shoal.envs.devices import Device as Device
    from shoal.jobs.federated import Federated as Federated
    from shoal.jobs.job import Job as Job
    from shoal.jobs.methods import METHODS as METHODS
    from shoal.jobs.methods.fedavg import FedAvg as FedAvg
    from shoal.jobs.methods.fedbuff import FedBuff as FedBuff
    from shoal.jobs.methods.impala import IMPALA as IMPALA
    from shoal.jobs.methods.method import Method as Method
    from shoal.jobs.methods.method import Start as Start
    from shoal.jobs.methods.ppo import PPO as PPO
    from shoal.jobs.problems import Problem as Problem
    from shoal.jobs.reinforcement import Reinforcement as Reinforcement
    from shoal.jobs.settings import option as option
    from shoal.jobs.wraps import Wrap as Wrap
    from shoal.protocol.errors import GangError as GangError
    from shoal.protocol.errors import Late as Late
    from shoal.protocol.errors import NeedError as NeedError
    from shoal.protocol.errors import UserError as UserError
    from shoal.protocol.errors import WorkerLost as WorkerLost
    from shoal.protocol.layout import Bundle as Bundle
    from shoal.protocol.work import Contribution as Contribution
    from shoal.protocol.work import Moved as Moved
    from shoal.protocol.work import Task as Task
    from shoal.protocol.work import Work as Work
    from shoal.runs.compare import compare as compare
    from shoal.runs.comparison import Comparison as Comparison
    from shoal.runs.evaluate import evaluate as evaluate
    from shoal.runs.evaluate import export as export
    from shoal.runs.run import Run as Run
    from shoal.runs.run import load as load
    from shoal.runs.run import plot as plot
    from shoal.runs.running import RunError as RunError
    from shoal.runs.running import run as run
    from shoal.runs.running import start as start
    from shoal.serving.client import Client as Client
    from shoal.sweeps.found import Sweep as Sweep
    from shoal.sweeps.sweep import sweep as sweep
    from shoal.tasks.common import Shared as Shared
    from shoal.tasks.graphs import dask_get as dask_get
    from shoal.tasks.loader import Loader as Loader
    from shoal.tasks.pool import Pool as Pool
    from shoal.tracking.track import track as track

__version__ = "0.1.0"

MODULES = {
    "actors.workers.call": "cancelled seed",
    "actors.workers.gang": "torchrun",
    "aggregators": "Aggregator",
    "coordinator.deciding.resources": "Need",
    "envs.agents": "Parallel",
    "envs.devices": "Device",
    "jobs.federated": "Federated",
    "jobs.job": "Job",
    "jobs.methods": "METHODS",
    "jobs.methods.fedavg": "FedAvg",
    "jobs.methods.fedbuff": "FedBuff",
    "jobs.methods.impala": "IMPALA",
    "jobs.methods.method": "Method Start",
    "jobs.methods.ppo": "PPO",
    "jobs.problems": "Problem",
    "jobs.reinforcement": "Reinforcement",
    "jobs.settings": "option",
    "jobs.wraps": "Wrap",
    "protocol.errors": "GangError Late NeedError UserError WorkerLost",
    "protocol.layout": "Bundle",
    "protocol.work": "Contribution Moved Task Work",
    "runs.compare": "compare",
    "runs.comparison": "Comparison",
    "runs.evaluate": "evaluate export",
    "runs.run": "Run load plot",
    "runs.running": "RunError run start",
    "serving.client": "Client",
    "sweeps.found": "Sweep",
    "sweeps.sweep": "sweep",
    "tasks.graphs": "dask_get",
    "tasks.common": "Shared",
    "tasks.loader": "Loader",
    "tasks.pool": "Pool",
    "tracking.track": "track",
}
"""Module -> the public names that it defines."""
PLACES = {name: module for module, names in MODULES.items() for name in names.split()}
__all__ = sorted(["__version__", *PLACES])  # noqa: PLE0605  the table above is the list

if (_here := Path(__file__).parent).name == "scripts":  # a checkout
    # the root comes first, or scripts/coordinator.py would hide the room coordinator/; only a checkout has tests/faults/
    __path__[:0] = [str(_here.parent), str(_here.parent / "tests")]


def __getattr__(name: str) -> Any:
    if name not in PLACES:
        raise AttributeError(f"module 'shoal' has no attribute {name!r}")
    return getattr(import_module(f"shoal.{PLACES[name]}"), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})


from shoal.tasks.hook import tell as _tell  # noqa: E402  the path above is needed

_tell()
