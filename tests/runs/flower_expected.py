"""The weights that Flower's own simulation makes of the clients in flower_clients.py, printed as literals for test_flower.py.

`shoal bench noop` makes Flower's environment (benchmarks/peers/flower.txt); its Python runs this file.
"""

from __future__ import annotations

import logging
import os

os.environ.update(FLWR_TELEMETRY_ENABLED="0", FLWR_DISABLE_UPDATE_CHECK="1", RAY_USAGE_STATS_ENABLED="0")

import numpy as np
from flower_clients import CLIENTS, ROUNDS, client_fn, fit_config
from flwr.common import ndarrays_to_parameters, parameters_to_ndarrays
from flwr.server import ServerConfig
from flwr.server.strategy import FedAvg
from flwr.simulation import start_simulation


class Kept(FedAvg):  # type: ignore[misc]
    """FedAvg that keeps the weights of each round."""

    def aggregate_fit(self, server_round: int, results: list[object], failures: list[object]) -> object:
        assert len(results) == CLIENTS, failures[:1]
        self.last, metrics = super().aggregate_fit(server_round, results, failures)
        return self.last, metrics


def main() -> None:
    from flower_clients import first

    logging.getLogger("flwr").setLevel(logging.ERROR)
    strategy = Kept(
        fraction_fit=1.0,
        fraction_evaluate=0.0,
        min_fit_clients=CLIENTS,
        min_available_clients=CLIENTS,
        on_fit_config_fn=fit_config,
        initial_parameters=ndarrays_to_parameters(first()),
    )
    here = os.path.dirname(os.path.abspath(__file__))
    start_simulation(
        client_fn=client_fn,
        num_clients=CLIENTS,
        config=ServerConfig(num_rounds=ROUNDS),
        strategy=strategy,
        client_resources={"num_cpus": 1, "num_gpus": 0.0},
        ray_init_args={
            "include_dashboard": False,
            "log_to_driver": False,
            "_node_ip_address": "127.0.0.1",
            "runtime_env": {"env_vars": {"PYTHONPATH": here}},
        },
    )
    for name, array in zip(("SLOPE", "OFFSET"), parameters_to_ndarrays(strategy.last), strict=True):
        print(f"{name} = np.array({np.asarray(array, np.float64).tolist()}, np.float32)")


if __name__ == "__main__":
    main()
