"""Flower's two simulations of federated averaging on small clients. Runs in a venv of its own and imports nothing of Shoal.

Prints a JSON line: the median of rounds a second, and the versions.

The one idea: every setting of Flower is set for speed. A process keeps its model and all clients' data, arrays travel as
Flower's records, the server adds them in place and evaluates nothing; logs and telemetry are off. Words: WAY FILE.npz COHORT
ROUNDS CPUS.
"""

from __future__ import annotations

import json
import logging
import os
import statistics
import sys
import threading
import time
from importlib import metadata
from itertools import pairwise

os.environ.update(OMP_NUM_THREADS="1", FLWR_TELEMETRY_ENABLED="0", FLWR_DISABLE_UPDATE_CHECK="1", RAY_USAGE_STATS_ENABLED="0")

import numpy as np
import torch
from flwr.app import ArrayRecord, ConfigRecord, Context, Message, MetricRecord, RecordDict
from flwr.client import Client
from flwr.clientapp import ClientApp
from flwr.common import Code, FitIns, FitRes, Status, ndarrays_to_parameters, parameters_to_ndarrays
from flwr.server import Server, ServerConfig, SimpleClientManager
from flwr.server.strategy import FedAvg
from flwr.serverapp import Grid, ServerApp
from flwr.simulation import run_simulation, start_simulation

WAIT = threading.Event()
RAY = {"include_dashboard": False, "log_to_driver": False, "logging_level": logging.ERROR, "_node_ip_address": "127.0.0.1"}
SKIP = 3
Moments = list[float]
Kept = tuple[torch.nn.Module, list[tuple[torch.Tensor, torch.Tensor]]]


def kept(path: str) -> Kept:
    """The model, and each client's data: made once in each process. Ray copies this module by value for each client, so they
    are kept where they outlive the copy."""
    if not hasattr(torch, "kept_by_shoal"):
        setattr(torch, "kept_by_shoal", made(path))  # noqa: B010
    found: Kept = getattr(torch, "kept_by_shoal")  # noqa: B009
    return found


def made(path: str) -> Kept:
    torch.set_num_threads(1)
    with np.load(path, allow_pickle=False) as file:
        sizes, ends = file["sizes"].tolist(), np.cumsum(file["lengths"])[:-1]
        parts = list(zip(np.split(file["x"], ends), np.split(file["y"], ends), strict=True))
    layers: list[torch.nn.Module] = []
    for inputs, outputs in pairwise(sizes):
        layers += [torch.nn.Linear(inputs, outputs), torch.nn.ReLU()]
    return torch.nn.Sequential(*layers[:-1]), [(torch.from_numpy(x), torch.from_numpy(y)) for x, y in parts]


def trained(path: str, client: int, arrays: list[np.ndarray]) -> tuple[list[np.ndarray], int]:
    """A client's arrays after one epoch, and its number of examples."""
    model, data = kept(path)
    x, y = data[client % len(data)]
    with torch.no_grad():
        for parameter, array in zip(model.parameters(), arrays, strict=True):
            parameter.copy_(torch.from_numpy(np.array(array)))
    sgd, order = torch.optim.SGD(model.parameters(), lr=0.1), torch.randperm(len(y))
    for rows in torch.split(order, 10):
        sgd.zero_grad()
        torch.nn.functional.cross_entropy(model(x[rows]), y[rows]).backward()  # type: ignore[no-untyped-call]
        sgd.step()
    return [parameter.detach().numpy().copy() for parameter in model.parameters()], len(y)


def first(path: str) -> list[np.ndarray]:
    return [parameter.detach().numpy().copy() for parameter in kept(path)[0].parameters()]


def clients_in(path: str) -> int:
    with np.load(path, allow_pickle=False) as file:
        return len(file["lengths"])


def runtime(path: str, cohort: int, rounds: int, cpus: float) -> Moments:
    """Runs the simulation that Flower documents: a ServerApp, a ClientApp and simulated SuperNodes."""
    moments: Moments = []
    clients = clients_in(path)
    app, server = ClientApp(), ServerApp()

    @app.train()  # type: ignore[untyped-decorator]
    def train(message: Message, context: Context) -> Message:
        partition = int(context.node_config["partition-id"])
        arrays, many = trained(path, partition, message.content["arrays"].to_numpy_ndarrays())
        content = RecordDict({"arrays": ArrayRecord(arrays), "metrics": MetricRecord({"num-examples": many})})
        return Message(content=content, reply_to=message)

    @server.main()  # type: ignore[untyped-decorator]
    def main(grid: Grid, _: Context) -> None:
        while len(nodes := list(grid.get_node_ids())) < clients:
            WAIT.wait(0.1)
        rng, arrays = np.random.default_rng(0), first(path)
        for number in range(rounds):
            record = ArrayRecord(arrays)
            content = RecordDict({"arrays": record, "config": ConfigRecord({"server-round": number})})
            drawn = [nodes[at] for at in rng.permutation(len(nodes))[:cohort]]
            asked = [Message(content=content, dst_node_id=node, message_type="train") for node in drawn]
            total, weight = [np.zeros_like(one) for one in arrays], 0
            for reply in grid.send_and_receive(asked):
                many = int(reply.content["metrics"]["num-examples"])
                for into, one in zip(total, reply.content["arrays"].to_numpy_ndarrays(), strict=True):
                    np.add(into, many * one, into)
                weight += many
            arrays = [one / np.float32(weight) for one in total]
            moments.append(time.perf_counter())

    resources = {"num_cpus": cpus, "num_gpus": 0.0}
    run_simulation(server, app, clients, backend_config={"client_resources": resources, "init_args": RAY})
    return moments


class Trains(Client):  # type: ignore[misc]
    def __init__(self, path: str, client: int) -> None:
        self.path, self.client = path, client

    def fit(self, ins: FitIns) -> FitRes:
        arrays, many = trained(self.path, self.client, parameters_to_ndarrays(ins.parameters))
        return FitRes(Status(Code.OK, ""), ndarrays_to_parameters(arrays), many, {})


class Timed(FedAvg):  # type: ignore[misc]
    """Flower's FedAvg, which notes the time at which each round ended."""

    moments: Moments

    def aggregate_fit(self, server_round: int, results: list[object], failures: list[object]) -> object:
        assert not failures, failures[:1]
        found = super().aggregate_fit(server_round, results, failures)
        self.moments.append(time.perf_counter())
        return found


def older(path: str, cohort: int, rounds: int, cpus: float) -> Moments:
    """Runs `start_simulation`, deprecated since 1.13 and the faster of the two."""
    clients = clients_in(path)
    strategy = Timed(
        fraction_fit=cohort / clients,
        min_fit_clients=cohort,
        min_available_clients=clients,
        fraction_evaluate=0.0,
        initial_parameters=ndarrays_to_parameters(first(path)),
    )
    strategy.moments = []
    server = Server(client_manager=SimpleClientManager(), strategy=strategy)
    server.set_max_workers(2 * (os.cpu_count() or 1))
    start_simulation(
        client_fn=lambda context: Trains(path, int(context.node_config["partition-id"])),
        num_clients=clients,
        client_resources={"num_cpus": cpus, "num_gpus": 0.0},
        config=ServerConfig(num_rounds=rounds),
        server=server,
        ray_init_args=RAY,
    )
    return strategy.moments


def main(way: str, path: str, *words: str) -> None:
    logging.getLogger("flwr").setLevel(logging.ERROR)
    cohort, rounds = int(words[0]), int(words[1])
    moments = {"runtime": runtime, "start_simulation": older}[way](path, cohort, rounds, float(words[2]))
    rate = 1 / statistics.median(after - before for before, after in pairwise(moments[SKIP:]))
    print(json.dumps({"figure": rate, "versions": {name: metadata.version(name) for name in ("flwr", "ray", "torch")}}))


if __name__ == "__main__":
    main(*sys.argv[1:])
