"""pfl-research's simulation of federated averaging on small clients. Runs in its own venv and imports nothing of Shoal.

Prints a JSON line: the median of rounds a second, and the versions.

The one idea: every setting of pfl is set for speed. Data sets of clients are made once and kept as tensors, cohorts are dealt
out by number without seeding numpy for each client, nothing is evaluated. Words: FILE.npz COHORT ROUNDS PROCESSES.
"""

from __future__ import annotations

import json
import os
import socket
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from importlib import metadata
from itertools import pairwise

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

SKIP = 30  # rounds that are left out at the start


class Model(torch.nn.Module):
    """Linear layers with ReLU between, with the methods that pfl wants a model to have."""

    def __init__(self, sizes: list[int]) -> None:
        super().__init__()
        layers: list[torch.nn.Module] = []
        for inputs, outputs in pairwise(sizes):
            layers += [torch.nn.Linear(inputs, outputs), torch.nn.ReLU()]
        self.net = torch.nn.Sequential(*layers[:-1])

    def loss(self, x: torch.Tensor, y: torch.Tensor, is_eval: bool = False) -> torch.Tensor:
        self.train(not is_eval)
        return torch.nn.functional.cross_entropy(self.net(x), y)

    def metrics(self, x: torch.Tensor, y: torch.Tensor) -> dict[str, float]:
        return {}


class Dealt(FederatedDataset):  # type: ignore[misc]
    """A data set that deals out to each process its share of a cohort, drawn by one generator that all processes have."""

    def __init__(self, clients: list[Dataset]) -> None:
        super().__init__(clients.__getitem__, get_user_sampler("minimize_reuse", range(len(clients))))
        self.clients, self.rng = clients, np.random.default_rng(0)

    def get_cohort(self, cohort_size: int) -> Iterator[tuple[object, int]]:
        drawn = self.rng.permutation(len(self.clients))[:cohort_size]
        for client in drawn[int(os.environ["RANK"]) :: int(os.environ["WORLD_SIZE"])]:
            yield self.clients[client], int(client)


class Clock(TrainingProcessCallback):  # type: ignore[misc]
    """Notes the time at which each round ended."""

    def __init__(self) -> None:
        self.moments: list[float] = []

    def after_central_iteration(self, metrics: object, model: object, *, central_iteration: int) -> tuple[bool, object]:
        self.moments.append(time.perf_counter())
        return False, Metrics()


def run(path: str, cohort: int, rounds: int) -> list[float]:
    torch.set_num_threads(1)
    with np.load(path, allow_pickle=False) as file:
        sizes, ends = file["sizes"].tolist(), np.cumsum(file["lengths"])[:-1]
        parts = zip(np.split(file["x"], ends), np.split(file["y"], ends), strict=True)
        clients = [Dataset([torch.from_numpy(x), torch.from_numpy(y)], user_id=str(at)) for at, (x, y) in enumerate(parts)]
    module, clock = Model(sizes), Clock()
    sgd = torch.optim.SGD(module.parameters(), lr=1.0)
    model = PyTorchModel(module, local_optimizer_create=torch.optim.SGD, central_optimizer=sgd)
    data = Dealt(clients)
    asked = NNAlgorithmParams(
        central_num_iterations=rounds, evaluation_frequency=rounds + 2, train_cohort_size=cohort, val_cohort_size=0
    )
    trained = NNTrainHyperParams(local_num_epochs=1, local_learning_rate=0.1, local_batch_size=10)
    FederatedAveraging().run(
        asked, SimulatedBackend(data, data), model, trained, callbacks=[clock], send_metrics_to_platform=False
    )
    return clock.moments


def main(path: str, *words: str) -> None:
    """Runs the rounds. Without RANK in the environment it starts itself PROCESSES times with torchrun, as pfl documents."""
    cohort, rounds, processes = map(int, words)
    if "RANK" not in os.environ:
        with socket.create_server(("127.0.0.1", 0)) as free:
            port = free.getsockname()[1]
        each = ["-P", "-m", "torch.distributed.run", "--nproc-per-node", str(processes), "--master-addr", "127.0.0.1"]
        subprocess.run([sys.executable, *each, "--master-port", str(port), __file__, path, *words], check=True)
        return
    moments = run(path, cohort, rounds)
    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()
    if os.environ["RANK"] == "0":
        skip = min(SKIP, rounds // 2 - 1)
        rate = 1 / statistics.median(after - before for before, after in pairwise(moments[skip:]))
        print(json.dumps({"figure": rate, "versions": {name: metadata.version(name) for name in ("pfl", "torch")}}))


if __name__ == "__main__":
    main(*sys.argv[1:])
