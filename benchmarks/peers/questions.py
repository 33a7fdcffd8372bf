"""Questions of the cases to the peers: the same model, clients and cohort as Shoal's, with the peers' best settings.

The one idea: a question's name says which way of the peer it measures; the scripts say what else was tried.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from shoal.benchmarks.peers.asking import Question

FLOWER, PFL, RAY = "flower_simulated.py", "pfl_simulated.py", "ray_bare.py"
LEARNING = "pfl_learning.py"
TRAINED = ("pfl_trained.py", "flower_trained.py")
LOOPS, SB3, RLLIB, FACTORY = "rl_loops.py", "rl_sb3.py", "rl_rllib.py", "rl_samplefactory.py"
SAC_LOOP = "rl_sac_loop.py"
DEPLOYED, POOLS, SERVING = "flower_deployed.py", "pools.py", "serving.py"


def noop(floats: int) -> Mapping[str, Question]:
    """Returns questions on small models: 1,000 clients registered, all in each round; for Flower also 1,000 of 10,000."""
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
    """Returns the same questions on large models: 100 clients registered, all in each round."""
    return {
        "flower_start_simulation": Question("flower", FLOWER, ("start_simulation", floats, 100, 100, 3, 1)),
        "flower_runtime": Question("flower", FLOWER, ("runtime", floats, 100, 100, 3, 0.5), quick=True),
        "pfl_shipped": Question("pfl", PFL, ("shipped", floats, 100, 100, 10)),
        "pfl_own_cohorts": Question("pfl", PFL, ("own_cohorts", floats, 100, 100, 10), quick=True),
        "ray_a_call_each": Question("ray", RAY, (floats, 200, 1, 64), quick=True),
    }


def trained(path: Path, cohort: int, rounds: int) -> Mapping[str, Question]:
    """Returns questions on federated averaging of the clients in a file, in rounds a second. Flower is asked for few rounds,
    because each takes long."""
    few, started = min(rounds, 40), Question("flowertorch", TRAINED[1], ("start_simulation", path, cohort, min(rounds, 40), 1))
    return {
        "pfl_1_process": Question("pfl", TRAINED[0], (path, cohort, rounds, 1), seconds=600),
        "pfl_2_processes": Question("pfl", TRAINED[0], (path, cohort, rounds, 2), quick=True, seconds=600),
        "flower_start_simulation": replace(started, quick=True),
        "flower_runtime": replace(started, words=("runtime", path, cohort, few, 0.25)),
    }


def rounds() -> Mapping[str, Question]:
    """Returns questions on a round of two clients over TCP, in milliseconds."""
    return {
        "flower_superlink": Question("flower", DEPLOYED, ("superlink", 4), quick=True, seconds=240),
        "flower_start_server": Question("flower", DEPLOYED, ("start_server", 300), quick=True, alike=False),
    }


def calls(question: str, number: int) -> Mapping[str, Question]:
    """Returns the same question (pools.py) to loky, joblib, Dask and Ray, which take few calls for few seconds."""
    few = {"single": 300, "map": 2_000}.get(question, number)
    fewer = {"loky": min(few, 20)} if question in ("array", "memory") else {}  # it copies the array for each call
    peers = {"loky": "pools", "joblib": "pools", "dask": "pools", "ray": "ray"}
    return {
        f"{name}_{question}": Question(venv, POOLS, (name, question, fewer.get(name, few)), quick=True, seconds=120)
        for name, venv in peers.items()
    }


def cohorts(case: str, rounds: int) -> Mapping[str, Question]:
    """Returns the question of fl-b or fl-c, in seconds a round."""
    return {"pfl_two_processes": Question("pfl", LEARNING, (case, rounds), quick=True, seconds=600)}


def serving(number: int, clients: int) -> Mapping[str, Question]:
    """Returns questions on servers of a small model, in microseconds of CPU a request. Ray Serve takes a quarter of the
    requests, because each costs it five times as much."""
    return {
        "litserve_zmq": Question("litserve", SERVING, ("litserve-fast", number, clients)),
        "litserve_queue": Question("litserve", SERVING, ("litserve", number, clients), quick=True),
        "rayserve_batched": Question("rayserve", SERVING, ("rayserve", number // 4, clients), quick=True),
    }


def cartpole(quick: bool) -> Mapping[str, Question]:
    """Returns questions on CartPole-v1, collected and learned from, in environment steps a second."""
    steps = 1 if quick else 4
    return {
        "samplefactory_batched": Question("samplefactory", FACTORY, ("batched", 600_000 * steps), quick=True),
        "samplefactory_scalar": Question("samplefactory", FACTORY, ("scalar", 60_000 * steps)),
        "rllib_2_runners": Question("rllib", RLLIB, (8 * steps, 2, 16), quick=True),
        "rllib_1_runner": Question("rllib", RLLIB, (8 * steps, 1, 64)),
        "cleanrl_native": Question("sb3", LOOPS, ("CartPole-v1", 150_000 * steps, "native"), quick=True, alike=False),
        "cleanrl_sync": Question("sb3", LOOPS, ("CartPole-v1", 20_000 * steps, "sync"), alike=False),
        "sb3_dummy": Question("sb3", SB3, ("CartPole-v1", 20_000 * steps, 8), quick=True),
    }


def cheetah(steps: int) -> Mapping[str, Question]:
    """Returns questions on PPO of HalfCheetah-v5, in environment steps a second."""
    return {
        "cleanrl_sync": Question("sb3", LOOPS, ("HalfCheetah-v5", steps, "sync"), quick=True, alike=False, seconds=600),
        "sb3_dummy": Question("sb3", SB3, ("HalfCheetah-v5", steps, 1), quick=True, seconds=600),
    }


def cheetah_sac(steps: int) -> Mapping[str, Question]:
    """Returns questions on SAC of HalfCheetah-v5, in environment steps a second once it learns. One asks for a second thread,
    because it is worth something where both cores are free."""
    return {
        "sac_cleanrl": Question("sb3", SAC_LOOP, ("HalfCheetah-v5", steps), quick=True, alike=False, seconds=600),
        "sac_sb3": Question("sb3", SB3, ("HalfCheetah-v5", steps, 1, "sac"), quick=True, seconds=600),
        "sac_sb3_2_threads": Question("sb3", SB3, ("HalfCheetah-v5", steps, 1, "sac", 2), seconds=600),
    }


def pong(steps: int) -> Mapping[str, Question]:
    """Returns the questions on ALE/Pong-v5 with the Nature CNN, collected and learned from, in environment steps a second."""
    return {
        "samplefactory_batched": Question("samplefactory", FACTORY, ("pong-batched", steps), quick=True),
        "samplefactory_scalar": Question("samplefactory", FACTORY, ("pong-scalar", steps)),
    }
