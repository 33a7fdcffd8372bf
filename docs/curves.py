"""The pictures of the pages on methods: `python docs/curves.py` makes all of them anew, `... robust.png` one of them, `... rl`
those of reinforcement learning.

The one idea: a picture is a list of commands that anybody can type. Each method of docs/federated.md is in one of them, and
each of docs/reinforcement.md too, with several seeds. With `--runs FOLDER` runs stay in that folder, and those that are done
there are not made again.
"""

from __future__ import annotations

import argparse
import json
import shlex
import shutil
import statistics
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
    "lora.png": ("lora",),
}

CARTPOLE = "gymnasium:CartPole-v1 --actors"
CHEETAH = "gymnasium:HalfCheetah-v5 --actors"
PENDULUM = "gymnasium:Pendulum-v1 --actors 0 eval_every=64"

RL: Mapping[str, Sequence[str]] = {
    "rl_rounds.png": (f"{CARTPOLE} 0 total_timesteps=100000", f"{CARTPOLE} 0 method=a2c"),
    "rl_streams.png": (f"{CARTPOLE} 2 method=impala", f"{CARTPOLE} 2 method=appo"),
    "rl_values.png": (f"{CARTPOLE} 0 method=dqn", f"{CARTPOLE} 2 method=apex"),
    "rl_es.png": ("cartpole-es --actors 0",),
    "rl_bounded.png": (f"{PENDULUM} method=sac total_timesteps=10000", f"{PENDULUM} method=td3"),
    "rl_memory.png": ("examples/blind.py --actors 0", "examples/blind.py:by_r2d2 --actors 0"),
    "rl_cheetah.png": (f"{CHEETAH} 0", f"{CHEETAH} 0 method=sac total_timesteps=300000"),
}
SEEDS = 10
# Words of commands whose runs take minutes, and how many seeds these have at most.
FEW: Mapping[str, int] = {
    "by_r2d2": 5,
    "method=sac": 5,
    "method=td3": 5,
    "HalfCheetah": 3,
    "method=sac total_timesteps=300000": 1,
}


def drawn(picture: str, commands: Sequence[str], folder: Path, seeds: Sequence[int] | None = None) -> None:
    """Make the runs of a picture, each in a folder of `folder`, and the picture in docs/. seeds: None, the job's own alone."""
    shoal = [sys.executable, "-m", "shoal"]
    runs: list[Path] = []
    for number, command in enumerate(commands):
        found: list[float] = []
        most = min((many for words, many in FEW.items() if words in command), default=None)
        for seed in (None,) if seeds is None else seeds[:most]:
            words = [*shlex.split(command), *(() if seed is None else ("--seed", str(seed)))]
            run = folder / (str(number) if seed is None else f"{number}-{seed}")
            runs.append(run)
            if not (run / "summary.json").is_file():
                shutil.rmtree(run, ignore_errors=True)  # of a command that was ended half-way
                print(f"{picture}: shoal simulate {shlex.join(words)}", flush=True)
                subprocess.run([*shoal, "simulate", *words, "--run-dir", run, "--quiet"], cwd=ROOT, check=True)
            told = json.loads((run / "summary.json").read_text())["metrics"]
            found += [told["eval/return_mean"]] if "eval/return_mean" in told else []
        if seeds is not None and found:
            each = " ".join(f"{one:.0f}" for one in found)
            print(f"{picture}: {command}: greedy returns at the end {each}: median {statistics.median(found):.1f}", flush=True)
    subprocess.run([*shoal, "plot", *runs, "--out", ROOT / "docs" / picture], cwd=ROOT, check=True)


def main() -> None:
    asked = argparse.ArgumentParser(description="the pictures of the pages on methods")
    asked.add_argument("names", nargs="*", metavar="NAME", help="NAME.png, or rl; all of them if none is given")
    asked.add_argument("--seeds", type=int, default=SEEDS, help="seeds of each method of rl (default: %(default)s)")
    asked.add_argument("--runs", type=Path, help="folder in which the runs stay (default: a temporary one)")
    given = asked.parse_args()
    names = [name for each in given.names or [*PICTURES, "rl"] for name in (RL if each == "rl" else [each])]
    for name in names:
        with tempfile.TemporaryDirectory() as made:
            folder = Path(made) if given.runs is None else given.runs.resolve() / Path(name).stem
            folder.mkdir(parents=True, exist_ok=True)
            if name in RL:
                drawn(name, RL[name], folder, range(given.seeds))
            else:
                drawn(name, PICTURES[name], folder)


if __name__ == "__main__":
    main()
