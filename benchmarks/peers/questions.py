"""What the cases ask of the peers: the same model, clients and cohort as Shoal has, at the settings that were best here.

The one idea: a question's name says which way of the peer it is; what else was tried stands in the scripts.
"""

from __future__ import annotations

from collections.abc import Mapping

from shoal.benchmarks.peers.asking import Question

FLOWER, PFL, RAY = "flower_simulated.py", "pfl_simulated.py", "ray_bare.py"
DEPLOYED = "flower_deployed.py"


def noop(floats: int) -> Mapping[str, Question]:
    """Clients a second of small models: 1,000 registered, all in each round; Flower also with 10,000 of whom 1,000 are."""
    return {
        "flower_start_simulation": Question("flower", FLOWER, ("start_simulation", floats, 1_000, 1_000, 2, 1), quick=True),
        "flower_runtime": Question("flower", FLOWER, ("runtime", floats, 1_000, 1_000, 2, 0.25)),
        "flower_runtime_of_10000": Question(
            "flower", FLOWER, ("runtime", floats, 10_000, 1_000, 1, 0.25), turns=1, seconds=600, alike=False
        ),
        "pfl_shipped": Question("pfl", PFL, ("shipped", floats, 1_000, 1_000, 20)),
        "pfl_own_cohorts": Question("pfl", PFL, ("own_cohorts", floats, 1_000, 1_000, 50), quick=True),
        "ray_a_call_each": Question("ray", RAY, (floats, 4_000, 1, 4_000), quick=True),
        "ray_100_a_call": Question("ray", RAY, (floats, 20_000, 100, 20)),
    }


def large(floats: int) -> Mapping[str, Question]:
    """The same with large models: 100 registered, all in each round."""
    return {
        "flower_start_simulation": Question("flower", FLOWER, ("start_simulation", floats, 100, 100, 3, 1)),
        "flower_runtime": Question("flower", FLOWER, ("runtime", floats, 100, 100, 3, 0.5), quick=True),
        "pfl_shipped": Question("pfl", PFL, ("shipped", floats, 100, 100, 10)),
        "pfl_own_cohorts": Question("pfl", PFL, ("own_cohorts", floats, 100, 100, 10), quick=True),
        "ray_a_call_each": Question("ray", RAY, (floats, 200, 1, 64), quick=True),
    }


def rounds() -> Mapping[str, Question]:
    """Milliseconds of a round of two clients over TCP."""
    return {
        "flower_superlink": Question("flower", DEPLOYED, ("superlink", 4), quick=True, seconds=240),
        "flower_start_server": Question("flower", DEPLOYED, ("start_server", 300), quick=True, alike=False),
    }
