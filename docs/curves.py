"""The pictures of the pages on federated methods: `python docs/curves.py` makes all of them anew, `... robust.png` one of them.

The one idea: a picture is a list of commands that anybody can type. Each method of docs/federated.md is in one of them.
"""

from __future__ import annotations

import shlex
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
METHODS = "examples/methods.py"
ROBUST = "examples/robust.py attack=ipm eval_every=2"
DEVICES = "examples/devices.py"
PRIVATE = "digits clients=1000 cohort=200 rounds=60 eval_every=3"
TREES = "digits clients=10 eval_every=1"

PICTURES: Mapping[str, Sequence[str]] = {
    "stateful.png": (
        METHODS,
        f"{METHODS} method=scaffold",
        f"{METHODS} method=fednova",
        f"{METHODS} method=feddyn alpha_coef=0.1",
        f"{METHODS} method=mimelite",
        f"{METHODS} method=qffl",
    ),
    "servers.png": (
        METHODS,
        f"{METHODS} method=fedprox",
        f"{METHODS} method=fedprox adaptive_mu=true",
        f"{METHODS} method=fedavgm",
        f"{METHODS} method=fedadagrad",
        f"{METHODS} method=fedadam",
        f"{METHODS} method=fedyogi",
    ),
    "personal.png": (
        f"{METHODS} method=finetune finetune_epochs=0",
        f"{METHODS} method=finetune finetune_epochs=3",
        f"{METHODS} method=ditto lam=0.5",
        f"{METHODS} method=fedper personal=2",
        f"{METHODS} method=fedrep personal=2",
    ),
    "fedbn.png": (f"{METHODS}:normed method=finetune finetune_epochs=0", f"{METHODS}:normed method=fedbn"),
    "robust.png": (
        f"{ROBUST} method=fedavg",
        f"{ROBUST} method=median",
        f"{ROBUST} method=trimmed_mean",
        f"{ROBUST} method=krum",
        f"{ROBUST} method=multikrum",
        f"{ROBUST} method=bulyan",
        f"{ROBUST} method=rfa",
        f"{ROBUST} method=centered_clipping",
        f"{ROBUST} method=fltrust",
    ),
    "asynchronous.png": (
        DEVICES,
        f"{DEVICES} over_selection=1.3",
        f"{DEVICES} method=fedbuff buffer=5 concurrency=20 rounds=260 max_lag=100",
        f"{DEVICES} method=fedasync mixing=0.2 concurrency=20 rounds=1300 eval_every=25",
        f"{DEVICES} method=fedfix deadline=4 concurrency=20 rounds=120",
    ),
    "privacy.png": (
        f"{PRIVATE} weighting=users",
        f"{PRIVATE} method=dp_fedavg clip_norm=0.5 epsilon=16",
        f"{PRIVATE} method=dp_fedavg clip_norm=0.5 epsilon=8",
        f"{PRIVATE} method=dp_fedavg clip_norm=0.5 epsilon=3",
    ),
    "local_dp.png": (
        "digits clients=200 cohort=100 rounds=20 eval_every=2 weighting=users",
        "digits clients=200 cohort=100 rounds=20 eval_every=2 method=local_dp clip_norm=0.5 epsilon=500",
        "digits clients=200 cohort=100 rounds=20 eval_every=2 method=local_dp clip_norm=0.5 epsilon=100",
    ),
    "secagg.png": (METHODS, f"{METHODS} method=secagg"),
    "trees.png": (
        f"{TREES} method=fedavg cohort=10 rounds=20",
        f"{TREES} method=xgb_bagging",
        f"{TREES} method=xgb_bagging cohort=3",
    ),
    "analytics.png": ("digits method=analytics query=quantiles",),
    "lora.png": ("lora eval_every=2",),
}


def drawn(picture: str, commands: Sequence[str], folder: Path) -> None:
    """Make the runs of a picture, each in a folder of `folder`, and the picture in docs/."""
    shoal = [sys.executable, "-m", "shoal"]
    runs = [folder / str(number) for number in range(len(commands))]
    for run, command in zip(runs, commands, strict=True):
        print(f"{picture}: shoal simulate {command}", flush=True)
        subprocess.run([*shoal, "simulate", *shlex.split(command), "--run-dir", run, "--quiet"], cwd=ROOT, check=True)
    subprocess.run([*shoal, "plot", *runs, "--out", ROOT / "docs" / picture], cwd=ROOT, check=True)


if __name__ == "__main__":
    for name in sys.argv[1:] or PICTURES:
        with tempfile.TemporaryDirectory() as made:
            drawn(name, PICTURES[name], Path(made))
