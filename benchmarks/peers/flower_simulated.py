"""Flower's two simulations on clients that do nothing. Runs in Flower's own venv and imports nothing of Shoal.

Prints a JSON line: contributions of clients a second over all rounds but the first, and the versions.

The one idea: every setting of Flower is set for speed. Clients return the record they got, so nothing
is unpacked; the server adds arrays in place and does not evaluate; logs and telemetry are off. Tried, 1,000 clients on two
cores: the runtime with num_cpus of 2, 1, 0.5, 0.25, 0.125 and 0.0625 a client gave 136, 180, 225, 308, 273 and 230 clients/s,
the same with its FedAvg as with a loop of our own; `start_simulation`, which Flower calls deprecated but ships, gave 300 to
450 with an actor a core and 2 to 8 server threads, best with two threads a core.
"""

from __future__ import annotations

import json
import logging
import os
import sys
import threading
import time
from importlib import metadata

os.environ.update(FLWR_TELEMETRY_ENABLED="0", FLWR_DISABLE_UPDATE_CHECK="1", RAY_USAGE_STATS_ENABLED="0")

import numpy as np
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
Moments = list[float]  # times at which the rounds ended


def runtime(floats: int, clients: int, cohort: int, rounds: int, cpus: float) -> Moments:
    """Runs the simulation that Flower documents: a ServerApp, a ClientApp and simulated SuperNodes."""
    moments: Moments = []
    nothing, server = ClientApp(), ServerApp()

    @nothing.train()  # type: ignore[untyped-decorator]
    def train(message: Message, _: Context) -> Message:
        content = RecordDict({"arrays": message.content["arrays"], "metrics": MetricRecord({"num-examples": 1})})
        return Message(content=content, reply_to=message)

    @server.main()  # type: ignore[untyped-decorator]
    def main(grid: Grid, _: Context) -> None:
        while len(nodes := list(grid.get_node_ids())) < clients:
            WAIT.wait(0.1)
        arrays = ArrayRecord([np.full(floats, 2.0**-10, np.float32)])
        for number in range(rounds + 1):
            content = RecordDict({"arrays": arrays, "config": ConfigRecord({"server-round": number})})
            asked = [Message(content=content, dst_node_id=node, message_type="train") for node in nodes[:cohort]]
            total, come = np.zeros(floats, np.float32), 0
            for reply in grid.send_and_receive(asked):
                np.add(total, reply.content["arrays"].to_numpy_ndarrays()[0], total)
                come += 1
            assert come == cohort
            moments.append(time.perf_counter())

    resources = {"num_cpus": cpus, "num_gpus": 0.0}
    run_simulation(server, nothing, clients, backend_config={"client_resources": resources, "init_args": RAY})
    return moments


class Nothing(Client):  # type: ignore[misc]
    def fit(self, ins: FitIns) -> FitRes:
        return FitRes(Status(Code.OK, ""), ins.parameters, 1, {})


class Sum(FedAvg):  # type: ignore[misc]
    """A strategy that adds the clients' arrays and notes the time at which each round ended."""

    def __init__(self, floats: int, clients: int, cohort: int) -> None:
        self.floats, self.cohort, self.moments = floats, cohort, Moments()
        self.start = ndarrays_to_parameters([np.full(floats, 2.0**-10, np.float32)])
        super().__init__(
            fraction_fit=cohort / clients,
            min_fit_clients=cohort,
            min_available_clients=clients,
            fraction_evaluate=0.0,
            initial_parameters=self.start,
        )

    def aggregate_fit(self, server_round: int, results: list[tuple[object, FitRes]], failures: list[object]) -> object:
        assert len(results) == self.cohort, failures[:1]
        total = np.zeros(self.floats, np.float32)
        for _, result in results:
            np.add(total, parameters_to_ndarrays(result.parameters)[0], total)
        self.moments.append(time.perf_counter())
        return self.start, {}


def older(floats: int, clients: int, cohort: int, rounds: int, cpus: float) -> Moments:
    """Runs `start_simulation`, deprecated since 1.13 and the faster of the two."""
    strategy = Sum(floats, clients, cohort)
    server = Server(client_manager=SimpleClientManager(), strategy=strategy)
    server.set_max_workers(2 * (os.cpu_count() or 1))
    start_simulation(
        client_fn=lambda _: Nothing(),
        num_clients=clients,
        client_resources={"num_cpus": cpus, "num_gpus": 0.0},
        config=ServerConfig(num_rounds=rounds + 1),
        server=server,
        ray_init_args=RAY,
    )
    return strategy.moments


def main(way: str, *words: str) -> None:
    logging.getLogger("flwr").setLevel(logging.ERROR)
    floats, clients, cohort, rounds = map(int, words[:4])
    moments = {"runtime": runtime, "start_simulation": older}[way](floats, clients, cohort, rounds, float(words[4]))
    rate = cohort * rounds / (moments[-1] - moments[0])
    print(json.dumps({"figure": rate, "versions": {name: metadata.version(name) for name in ("flwr", "ray")}}))


if __name__ == "__main__":
    main(*sys.argv[1:])
