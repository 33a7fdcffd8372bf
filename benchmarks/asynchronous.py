"""Asynchronous against synchronous federated learning in virtual time: the case `fl-e`.

The one idea: both runs train the same clients on devices of the same speeds, so the seconds of their virtual clocks compare.
"""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from pathlib import Path
from statistics import median
from typing import Any

import shoal
from shoal.benchmarks.case import Finding
from shoal.envs import datasets
from shoal.envs.devices import Device
from shoal.nets.models import mlp
from shoal.protocol.draws import draw

CLIENTS, AT_ONCE, SPREAD = 400, 100, 10.0
TARGET, AFTER = 0.90, 5  # held-out accuracy, as the mean of so many versions
SECONDS = 0.06  # of passing over an example on the fastest device: a task takes about 1 s to 10 s


def device(client: int) -> Device:
    """The device of a client: log-uniform speeds whose slowest is SPREAD times as slow as the fastest."""
    return Device(seconds_per_example=SECONDS * SPREAD ** draw(1, "speed", client).random())


def fl_e(quick: bool) -> Finding:
    """Virtual seconds of FedBuff to the synchronous target accuracy, as a share of FedAvg's; medians over seeds."""
    buffered = {"buffer": 10, "max_lag": 1_000, "concurrency": AT_ONCE}
    ways: dict[str, dict[str, Any]] = {
        "fedavg": {"cohort": AT_ONCE, "rounds": 300},
        "fedbuff": {"method": "fedbuff", **buffered, "rounds": 3_000},
    }
    if not quick:
        ways["fedavg_over_selection"] = {"cohort": 77, "over_selection": 1.3, "rounds": 300}
        ways["fedfix"] = {"method": "fedfix", "deadline": 1.0, "max_lag": 1_000, "concurrency": AT_ONCE, "rounds": 3_000}
    seeds = range(1 if quick else 3)
    found = {way: [seconds(settings, seed) for seed in seeds] for way, settings in ways.items()}
    times = {way: median(each) for way, each in found.items()}
    share = times["fedbuff"] / times["fedavg"]
    return Finding(
        figure=share,
        unit=f"of FedAvg's virtual seconds to {TARGET:.0%} held-out accuracy: FedBuff, 10-fold spread of speeds, 100 at once",
        goal=1 / 3,
        holds=share <= 1 / 3,
        asked="the synchronous target accuracy in at most 1/3 of the (virtual) time",
        details={"virtual_seconds": found, "medians": times},
    )


def seconds(settings: Mapping[str, Any], seed: int) -> float:
    """Return the virtual seconds until the mean held-out accuracy of AFTER versions one after the other is TARGET, because a
    single version of an asynchronous run may have it by luck. Raises RuntimeError if the run ends before."""
    accuracy: dict[int, float] = {}
    at: dict[int, float] = {}

    def reached(row: Mapping[str, Any]) -> bool:
        accuracy[row["version"]], at[row["version"]] = row.get("accuracy", 0.0), row["seconds"]
        last = sorted(accuracy)[-AFTER - 1 : -1]  # the newest may not be evaluated yet
        return len(last) == AFTER and sum(accuracy[version] for version in last) >= TARGET * AFTER

    usual = {"clients": CLIENTS, "partition": "iid", "local_epochs": 5, "lr": 0.1, "eval_every": 1, "clock": "virtual"}
    job = shoal.Federated(mlp, datasets.digits, devices=device, seed=seed, **{**usual, **settings})
    with tempfile.TemporaryDirectory() as folder:
        run = shoal.run(job, folder=Path(folder) / "run", stop_when=reached, show=False)
    if run.reason == "done":
        raise RuntimeError(f"{settings} did not reach {TARGET:g} in {max(at)} versions")
    return at[sorted(at)[-2]]
