"""Ray without any learning: one actor a core makes arrays, the driver adds them. Runs in Ray's own venv, without Shoal.

Prints a JSON line: contributions of clients a second, and the versions.

The one idea: only actor calls, as many under way as help, so no framework on top of Ray can be faster. Tried, on
two cores with 4 KB: `ray.wait` for one at a time gave 1,000 clients/s with 2 calls under way and 1,300 with 64, `ray.get` of
slices 1,800, weights as an argument rather than by `ray.put` 2,000; 20 clients a call 24,000, 100 a call 35,000 to 49,000,
500 a call 60,000 to 90,000. With 4.8 MB, by `ray.put`: 200 to 300 with 4, 16, 64 and 200 under way, no more with 5 a call.
"""

from __future__ import annotations

import json
import logging
import os
import sys
import time
from importlib import metadata
from typing import Any

os.environ["RAY_USAGE_STATS_ENABLED"] = "0"

import numpy as np
import numpy.typing as npt
import ray

Array = npt.NDArray[np.float32]
INLINE = 100_000  # bytes: Ray sends smaller arguments with the call; larger arguments are put once into its store


class Maker:
    """An actor that makes each client's own array."""

    def run(self, weights: Array, clients: int) -> list[Array]:
        return [weights + 1 for _ in range(clients)]


def pace(makers: list[Any], weights: Array, contributions: int, each: int, ahead: int) -> float:
    """Returns contributions a second: `each` clients a call, `ahead` calls under way, half of which are taken at a time."""
    total = np.zeros_like(weights)
    began = time.perf_counter()
    handed = weights if weights.nbytes < INLINE else ray.put(weights)
    under_way: list[Any] = []
    given, done = 0, 0
    while done < contributions:
        while given < contributions and len(under_way) < ahead:
            under_way.append(makers[given // each % len(makers)].run.remote(handed, each))
            given += each
        taken = under_way[: max(1, len(under_way) // 2)]
        del under_way[: len(taken)]
        for arrays in ray.get(taken):
            for array in arrays:
                np.add(total, array, total)
                done += 1
    seconds = time.perf_counter() - began
    assert total[0] == done
    return done / seconds


def main(floats: int, contributions: int, each: int, ahead: int) -> None:
    cores = os.cpu_count() or 1
    ray.init(
        num_cpus=cores,
        include_dashboard=False,
        log_to_driver=False,
        logging_level=logging.ERROR,
        _node_ip_address="127.0.0.1",
    )
    remote = ray.remote(num_cpus=1)(Maker)
    makers = [remote.remote() for _ in range(cores)]
    weights = np.zeros(floats, np.float32)
    pace(makers, weights, contributions // 4 // each * each or each, each, ahead)  # processes start, memory is touched
    rate = pace(makers, weights, contributions, each, ahead)
    ray.shutdown()
    print(json.dumps({"figure": rate, "versions": {"ray": metadata.version("ray")}}))


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
