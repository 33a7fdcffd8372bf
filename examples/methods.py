"""Clients that differ much: handwritten digits, about two classes a client. `method=` takes any federated method.

shoal simulate examples/methods.py method=scaffold
shoal simulate examples/methods.py method=feddyn alpha_coef=0.1
shoal simulate examples/methods.py method=fedper personal=2      # its last layer stays with each client
shoal simulate examples/methods.py:normed method=fedbn           # a model with batch norm, which stays with each client

Then, for the curves: shoal plot RUN_DIR RUN_DIR ... --out curves.png
"""

from torch import nn

from shoal import Federated
from shoal.envs import datasets


def model() -> nn.Module:
    return nn.Sequential(nn.Linear(64, 32), nn.Tanh(), nn.Linear(32, 10))


def normed_model() -> nn.Module:
    return nn.Sequential(nn.Linear(64, 32), nn.BatchNorm1d(32), nn.Tanh(), nn.Linear(32, 10))


settings = {"clients": 50, "cohort": 10, "rounds": 60, "alpha": 0.1, "eval_every": 5}
job = Federated(model, datasets.digits, name="methods", **settings)
normed = Federated(normed_model, datasets.digits, name="normed", drop_last=True, **settings)
