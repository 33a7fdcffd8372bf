"""pfl-research's simulation on clients that do nothing. Runs in its own venv and imports nothing of Shoal.

Prints a JSON line: contributions of clients a second over all rounds but the first, and the versions.

The one idea: pfl has no messages. One process a core simulates its share of a round's clients one after the other and adds up
their statistics, and gloo reduces the processes' sums. So its peer is Shoal's partial sums; against single contributions the
difference is the cost of travelling. Tried, on two cores: its FederatedAveraging with training left out gave 9,100
clients/s of 4 KB and 810 of 4.8 MB; clients that give ready statistics, as here, 11,000 and 900 to 2,400, with one process or
two. Three quarters of the first is numpy's seeding for each client drawn; with a dataset of our own that deals clients
out by number (`own_cohorts`) it is 90,000 with one process and 116,000 with two, and 2,000 to 3,000 of 4.8 MB.
"""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from importlib import metadata

os.environ.update(OMP_NUM_THREADS="1", GLOO_SOCKET_IFNAME="lo" if sys.platform.startswith("linux") else "lo0")

import numpy as np
import torch
from pfl.aggregate.simulate import SimulatedBackend
from pfl.algorithm.base import NNAlgorithmParams
from pfl.algorithm.federated_averaging import FederatedAveraging
from pfl.callback.base import TrainingProcessCallback
from pfl.data.dataset import Dataset
from pfl.data.federated_dataset import FederatedDataset
from pfl.data.sampling import get_user_sampler
from pfl.hyperparam import NNTrainHyperParams
from pfl.metrics import Metrics
from pfl.model.pytorch import PyTorchModel
from pfl.stats import MappedVectorStatistics


class Model(torch.nn.Module):
    """float32 [floats], with the methods that pfl wants a model to have."""

    def __init__(self, floats: int) -> None:
        super().__init__()
        self.w = torch.nn.Parameter(torch.zeros(floats))

    def loss(self, x: torch.Tensor, is_eval: bool) -> torch.Tensor:
        return self.w.sum()

    def metrics(self, x: torch.Tensor) -> dict[str, float]:
        return {}


class Averaging(FederatedAveraging):  # type: ignore[misc]
    """pfl's federated averaging with clients that return the same delta."""

    def __init__(self, floats: int) -> None:
        super().__init__()
        self.delta = torch.full((floats,), 2.0**-10)

    def simulate_one_user(self, model: object, user_dataset: object, central_context: object) -> tuple[object, object]:
        return MappedVectorStatistics({"w": self.delta}, weight=1.0), Metrics()


class Dealt(FederatedDataset):  # type: ignore[misc]
    """A data set that deals clients out by number, to each process its share, without seeding numpy for each client."""

    def get_cohort(self, cohort_size: int) -> Iterator[tuple[object, int]]:
        for client in range(int(os.environ["RANK"]), cohort_size, int(os.environ["WORLD_SIZE"])):
            yield self.make_dataset_fn(client), client


class Clock(TrainingProcessCallback):  # type: ignore[misc]
    """Notes the time at which each round ended."""

    def __init__(self) -> None:
        self.moments: list[float] = []

    def after_central_iteration(self, metrics: object, model: object, *, central_iteration: int) -> tuple[bool, object]:
        self.moments.append(time.perf_counter())
        return False, Metrics()


def run(way: str, floats: int, clients: int, cohort: int, rounds: int) -> list[float]:
    torch.set_num_threads(1)
    module, clock = Model(floats), Clock()
    sgd = torch.optim.SGD(module.parameters(), lr=1.0)
    model = PyTorchModel(module, local_optimizer_create=torch.optim.SGD, central_optimizer=sgd)
    empty = np.zeros((1, 1), np.float32)
    kind = {"shipped": FederatedDataset, "own_cohorts": Dealt}[way]
    data = kind(lambda client: Dataset([empty], user_id=client), get_user_sampler("minimize_reuse", range(clients)))
    asked = NNAlgorithmParams(
        central_num_iterations=rounds + 1, evaluation_frequency=rounds + 2, train_cohort_size=cohort, val_cohort_size=0
    )
    trained = NNTrainHyperParams(local_num_epochs=1, local_learning_rate=1.0, local_batch_size=1)
    Averaging(floats).run(
        asked, SimulatedBackend(data, data), model, trained, callbacks=[clock], send_metrics_to_platform=False
    )
    assert abs(float(module.w.detach()[0]) - (rounds + 1) * 2.0**-10) < 1e-5
    return clock.moments


def main(*words: str) -> None:
    """Runs the rounds. Without RANK in the environment it starts itself on each core with torchrun, as pfl's documents say."""
    if "RANK" not in os.environ:
        with socket.create_server(("127.0.0.1", 0)) as free:
            port = free.getsockname()[1]
        each = ["-P", "-m", "torch.distributed.run", "--nproc-per-node", str(os.cpu_count() or 1), "--master-addr", "127.0.0.1"]
        subprocess.run([sys.executable, *each, "--master-port", str(port), __file__, *words], check=True)
        return
    floats, clients, cohort, rounds = map(int, words[1:])
    moments = run(words[0], floats, clients, cohort, rounds)
    torch.distributed.destroy_process_group()
    if os.environ["RANK"] == "0":
        rate = cohort * rounds / (moments[-1] - moments[0])
        print(json.dumps({"figure": rate, "versions": {name: metadata.version(name) for name in ("pfl", "torch")}}))


if __name__ == "__main__":
    main(*sys.argv[1:])
