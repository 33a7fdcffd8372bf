"""Learning methods by name.

The one idea: a method is one file here and one row in METHODS, or a class in a user's own file.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from importlib import import_module

from shoal.jobs.methods.method import Method
from shoal.jobs.settings import ranges


class Methods(Mapping[str, type[Method]]):
    """Name -> class. A method's file is imported when its class is asked for, because a run needs one method of forty.

    rows: name -> "FILE:CLASS".
    """

    def __init__(self, rows: Mapping[str, str]) -> None:
        self._rows = rows

    def __getitem__(self, name: str) -> type[Method]:
        file, _, kind = self._rows[name].partition(":")
        found: type[Method] = getattr(import_module(f"{__name__}.{file}"), kind)
        return found

    def __contains__(self, name: object) -> bool:
        return name in self._rows

    def __iter__(self) -> Iterator[str]:
        return iter(self._rows)

    def __len__(self) -> int:
        return len(self._rows)


METHODS: Mapping[str, type[Method]] = Methods(
    {
        "fedavg": "fedavg:FedAvg",
        "fedprox": "fedprox:FedProx",
        "fedavgm": "fedopt:FedAvgM",
        "fedadagrad": "fedopt:FedAdagrad",
        "fedadam": "fedopt:FedAdam",
        "fedyogi": "fedopt:FedYogi",
        "scaffold": "scaffold:Scaffold",
        "fednova": "fednova:FedNova",
        "feddyn": "feddyn:FedDyn",
        "mimelite": "mimelite:MimeLite",
        "qffl": "qffl:QFFL",
        "finetune": "personal:FineTune",
        "ditto": "personal:Ditto",
        "fedper": "personal:FedPer",
        "fedrep": "personal:FedRep",
        "fedbn": "personal:FedBN",
        "fedbuff": "fedbuff:FedBuff",
        "dp_fedavg": "dp_fedavg:DPFedAvg",
        "local_dp": "dp_fedavg:LocalDP",
        "secagg": "secagg:SecAgg",
        "analytics": "analytics:Analytics",
        "xgb_bagging": "xgb_bagging:XGBBagging",
        "fedasync": "fedasync:FedAsync",
        "fedfix": "fedfix:FedFix",
        "median": "robust:Median",
        "trimmed_mean": "robust:TrimmedMean",
        "krum": "robust:Krum",
        "multikrum": "robust:MultiKrum",
        "bulyan": "robust:Bulyan",
        "rfa": "robust:RFA",
        "centered_clipping": "robust:CenteredClipping",
        "fltrust": "fltrust:FLTrust",
        "impala": "impala:IMPALA",
        "ppo": "ppo:PPO",
        "dqn": "dqn:DQN",
        "apex": "apex:ApeX",
        "r2d2": "r2d2:R2D2",
        "sac": "sac:SAC",
        "td3": "td3:TD3",
        "appo": "appo:APPO",
        "a2c": "a2c:A2C",
        "es": "es:ES",
    }
)


def owners(setting: str) -> list[str]:
    """The built-in methods that have a setting of this name."""
    return [name for name, method in METHODS.items() if setting in ranges(method)]
