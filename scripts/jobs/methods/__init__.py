"""Learning methods by name.

The one idea: a method is one file here and one row in METHODS, or a class in a user's own file.
"""

from __future__ import annotations

from collections.abc import Mapping

from shoal.jobs.methods.a2c import A2C
from shoal.jobs.methods.analytics import Analytics
from shoal.jobs.methods.appo import APPO
from shoal.jobs.methods.dp_fedavg import DPFedAvg, LocalDP
from shoal.jobs.methods.dqn import DQN, R2D2, ApeX
from shoal.jobs.methods.es import ES
from shoal.jobs.methods.fedasync import FedAsync
from shoal.jobs.methods.fedavg import FedAvg
from shoal.jobs.methods.fedbuff import FedBuff
from shoal.jobs.methods.feddyn import FedDyn
from shoal.jobs.methods.fedfix import FedFix
from shoal.jobs.methods.fednova import FedNova
from shoal.jobs.methods.fedopt import FedAdagrad, FedAdam, FedAvgM, FedYogi
from shoal.jobs.methods.fedprox import FedProx
from shoal.jobs.methods.fltrust import FLTrust
from shoal.jobs.methods.impala import IMPALA
from shoal.jobs.methods.method import Method
from shoal.jobs.methods.mimelite import MimeLite
from shoal.jobs.methods.personal import Ditto, FedBN, FedPer, FedRep, FineTune
from shoal.jobs.methods.ppo import PPO
from shoal.jobs.methods.qffl import QFFL
from shoal.jobs.methods.robust import RFA, Bulyan, CenteredClipping, Krum, Median, MultiKrum, TrimmedMean
from shoal.jobs.methods.sac import SAC
from shoal.jobs.methods.scaffold import Scaffold
from shoal.jobs.methods.secagg import SecAgg
from shoal.jobs.methods.td3 import TD3
from shoal.jobs.methods.xgb_bagging import XGBBagging
from shoal.jobs.settings import ranges

METHODS: Mapping[str, type[Method]] = {
    each.name: each
    for each in (
        FedAvg,
        FedProx,
        FedAvgM,
        FedAdagrad,
        FedAdam,
        FedYogi,
        Scaffold,
        FedNova,
        FedDyn,
        MimeLite,
        QFFL,
        FineTune,
        Ditto,
        FedPer,
        FedRep,
        FedBN,
        FedBuff,
        DPFedAvg,
        LocalDP,
        SecAgg,
        Analytics,
        XGBBagging,
        FedAsync,
        FedFix,
        Median,
        TrimmedMean,
        Krum,
        MultiKrum,
        Bulyan,
        RFA,
        CenteredClipping,
        FLTrust,
        IMPALA,
        PPO,
        DQN,
        ApeX,
        R2D2,
        SAC,
        TD3,
        APPO,
        A2C,
        ES,
    )
}


def owners(setting: str) -> list[str]:
    """The built-in methods that have a setting of this name."""
    return [name for name, method in METHODS.items() if setting in ranges(method)]
