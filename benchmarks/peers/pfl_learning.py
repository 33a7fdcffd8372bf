"""pfl-research's federated averaging on drawn pictures: the shapes of fl-b and fl-c. Runs in its own venv and imports nothing
of Shoal.

Prints a JSON line: seconds of a round, the median over all rounds but the first, and the versions.

The one idea: pfl's own algorithm, model class and data set, as its benchmarks use them; one process a core by torchrun, one
thread each. Data are tensors that are made once and sliced by user, which is pfl's fastest form (`from_slices`). Clients
are equal, so its scheduling by their sizes has nothing to do.
"""

from __future__ import annotations

import json
import os
import socket
import statistics
import subprocess
import sys
import time
import types
from importlib import metadata
from itertools import pairwise

os.environ.update(OMP_NUM_THREADS="1", GLOO_SOCKET_IFNAME="lo" if sys.platform.startswith("linux") else "lo0")

import torch
from pfl.aggregate.simulate import SimulatedBackend
from pfl.algorithm.base import NNAlgorithmParams
from pfl.algorithm.federated_averaging import FederatedAveraging
from pfl.callback.base import TrainingProcessCallback
from pfl.data.federated_dataset import FederatedDataset
from pfl.data.sampling import get_user_sampler
from pfl.hyperparam import NNTrainHyperParams
from pfl.metrics import Metrics, Weighted
from pfl.model.pytorch import PyTorchModel
from torch import nn


def leaf_cnn() -> nn.Sequential:
    return nn.Sequential(
        *(nn.Conv2d(1, 32, 5, padding=2), nn.ReLU(), nn.MaxPool2d(2)),
        *(nn.Conv2d(32, 64, 5, padding=2), nn.ReLU(), nn.MaxPool2d(2)),
        *(nn.Flatten(), nn.Linear(64 * 7 * 7, 2048), nn.ReLU(), nn.Linear(2048, 62)),
    )


def cifar10_cnn() -> nn.Sequential:
    return nn.Sequential(
        *(nn.Conv2d(3, 32, 3), nn.ReLU(), nn.Conv2d(32, 64, 3), nn.ReLU(), nn.MaxPool2d(2), nn.Dropout(0.25)),
        *(nn.Flatten(), nn.Linear(64 * 14 * 14, 128), nn.ReLU(), nn.Dropout(0.5), nn.Linear(128, 10)),
    )


SHAPES = {"fl-b": (leaf_cnn, (1, 28, 28), 62, 20, 100), "fl-c": (cifar10_cnn, (3, 32, 32), 10, 50, 50)}
CLIENTS = 1_000


def loss(self: nn.Module, inputs: torch.Tensor, targets: torch.Tensor, eval: bool = False) -> torch.Tensor:
    self.train(not eval)
    return nn.functional.cross_entropy(self(inputs), targets)


def metrics(self: nn.Module, inputs: torch.Tensor, targets: torch.Tensor, eval: bool = True) -> dict[str, object]:
    return {"loss": Weighted(float(loss(self, inputs, targets, eval)) * len(targets), len(targets))}


class Clock(TrainingProcessCallback):  # type: ignore[misc]
    """Notes the time at which each round ended."""

    def __init__(self) -> None:
        self.moments: list[float] = []

    def after_central_iteration(self, metrics: object, model: object, *, central_iteration: int) -> tuple[bool, object]:
        self.moments.append(time.perf_counter())
        return False, Metrics()


def run(case: str, rounds: int) -> list[float]:
    make, shape, classes, each, cohort = SHAPES[case]
    torch.set_num_threads(1)
    torch.manual_seed(0)
    module, clock = make(), Clock()
    module.loss = types.MethodType(loss, module)  # type: ignore[assignment]
    module.metrics = types.MethodType(metrics, module)  # type: ignore[assignment]
    central = torch.optim.SGD(module.parameters(), lr=1.0)
    model = PyTorchModel(module, local_optimizer_create=torch.optim.SGD, central_optimizer=central)
    x, y = torch.rand(CLIENTS * each, *shape), torch.randint(classes, (CLIENTS * each,))
    slices = [(x[at : at + each], y[at : at + each]) for at in range(0, len(x), each)]
    data = FederatedDataset.from_slices(slices, get_user_sampler("minimize_reuse", range(CLIENTS)))
    asked = NNAlgorithmParams(
        central_num_iterations=rounds + 1, evaluation_frequency=rounds + 2, train_cohort_size=cohort, val_cohort_size=0
    )
    trained = NNTrainHyperParams(local_num_epochs=1, local_learning_rate=0.1, local_batch_size=10)
    backend = SimulatedBackend(data, data)
    FederatedAveraging().run(asked, backend, model, trained, callbacks=[clock], send_metrics_to_platform=False)
    return clock.moments


def main(*words: str) -> None:
    """Runs the rounds. Without RANK in the environment it starts itself on each core with torchrun, as pfl's documents say."""
    if "RANK" not in os.environ:
        with socket.create_server(("127.0.0.1", 0)) as free:
            port = free.getsockname()[1]
        each = ["-P", "-m", "torch.distributed.run", "--nproc-per-node", str(os.cpu_count() or 1), "--master-addr", "127.0.0.1"]
        subprocess.run([sys.executable, *each, "--master-port", str(port), __file__, *words], check=True)
        return
    moments = run(words[0], int(words[1]))
    torch.distributed.destroy_process_group()
    if os.environ["RANK"] == "0":
        figure = statistics.median(after - before for before, after in pairwise(moments))
        print(json.dumps({"figure": figure, "versions": {name: metadata.version(name) for name in ("pfl", "torch")}}))


if __name__ == "__main__":
    main(*sys.argv[1:])
