"""Clients on devices whose speeds are spread tenfold, in virtual time: what waiting for the slowest costs.

shoal simulate examples/devices.py
shoal simulate examples/devices.py over_selection=1.3
shoal simulate examples/devices.py method=fedbuff buffer=5 concurrency=20 rounds=260 max_lag=100
shoal simulate examples/devices.py method=fedasync mixing=0.2 concurrency=20 rounds=1300 eval_every=25
shoal simulate examples/devices.py method=fedfix deadline=4 concurrency=20 rounds=120

Then, for the curves by virtual seconds: shoal plot RUN_DIR RUN_DIR ... --out curves.png
"""

from torch import nn

from shoal import Device, Federated
from shoal.envs import datasets


def model() -> nn.Module:
    return nn.Sequential(nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 10))


def device(client: int) -> Device:
    """From 0.05 s an example to 0.5 s, evenly by their logarithms, and a link of a megabit."""
    return Device(0.05 * 10 ** (client * 37 % 100 / 99), download_mbps=1, upload_mbps=1)


job = Federated(
    model,
    datasets.digits,
    name="devices",
    devices=device,
    clock="virtual",
    clients=100,
    cohort=20,
    rounds=30,
    lr=0.1,
    alpha=1.0,
    eval_every=5,
)
