"""Federated averaging in plain torch, without Shoal's machinery: the peer of `round-overhead`, and the bare loop of `fl-b` and
`fl-c`.

The one idea: no bus, no flat buffers, no accumulators; an nn.Sequential, torch.optim.SGD, state_dicts and their weighted
mean. Only the data, its partition, the first weights, the cohorts and the shuffles are Shoal's, so that both learn alike.

`python -m shoal.benchmarks.plain_torch FOLDER ROUNDS SEED [CASE]` writes FOLDER/weights.npz and prints {"rounds": [seconds,
...], "cpu": seconds of CPU a round}. CASE is fl-b or fl-c; without it the job is digits, with one local epoch.
"""

from __future__ import annotations

import json
import sys
import time
from itertools import pairwise
from pathlib import Path

import numpy as np
import torch
from torch import nn

from shoal.coordinator.deciding.plans import Seats
from shoal.coordinator.deciding.plans.rounds import Rounds
from shoal.envs.datasets import widened
from shoal.jobs.catalog import digits
from shoal.jobs.job import Job
from shoal.jobs.methods.fedavg import FedAvg
from shoal.jobs.problems import Supervised
from shoal.protocol.draws import key

State = dict[str, torch.Tensor]


def learned(job: Job, rounds: int) -> tuple[State, list[float]]:
    """Returns the weights after `rounds` rounds, and the times at which each round began and the last round ended."""
    settings, problem = job.method, job.problem
    assert isinstance(settings, FedAvg)
    assert isinstance(problem, Supervised)
    population = problem.population(settings, job.seed)
    model = job.module()
    data = {}
    for client in range(settings.clients):
        examples = population.examples(client)
        data[client] = (torch.from_numpy(widened(examples.x, examples.scale).copy()), torch.from_numpy(examples.y.copy()))
    weights = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    plan = Rounds(settings.clients, settings.cohort, seed=job.seed)
    moments = [time.perf_counter()]
    for version in range(rounds):
        cohort = [task.clients[0] for task in plan.assign(Seats(settings.cohort), (), version, 0.0)]
        states = [trained(model, weights, *data[client], job, client, version) for client in cohort]
        weights = mean(states, [len(data[client][1]) for client in cohort])
        moments.append(time.perf_counter())
    return weights, moments


def trained(model: nn.Module, weights: State, x: torch.Tensor, y: torch.Tensor, job: Job, client: int, version: int) -> State:
    """Returns the state after the local epochs of one client (FedAvg's ClientUpdate)."""
    settings = job.method
    assert isinstance(settings, FedAvg)
    model.load_state_dict(weights)
    optimizer = torch.optim.SGD(model.parameters(), lr=settings.lr)
    shuffle = np.random.Generator(np.random.Philox(key(job.seed, "shuffle", client, version)))
    for _ in range(settings.local_epochs):
        order = torch.from_numpy(shuffle.permutation(len(y)))
        for start in range(0, len(y), settings.batch_size):
            rows = order[start : start + settings.batch_size]
            optimizer.zero_grad()
            nn.functional.cross_entropy(model(x[rows]), y[rows]).backward()  # type: ignore[no-untyped-call]
            optimizer.step()
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


def mean(states: list[State], examples: list[int]) -> State:
    """Returns the mean of the states, weighted by examples."""
    total = sum(examples)
    return {
        name: sum((state[name] * (many / total) for state, many in zip(states, examples, strict=True)), torch.zeros(()))
        for name in states[0]
    }


def main(folder: str, rounds: str, seed: str, case: str = "") -> None:
    from shoal.benchmarks.cohorts import SHAPES

    torch.set_num_threads(1)
    job = SHAPES[case]().configured({}, int(seed)) if case else digits().configured({"local_epochs": 1}, int(seed))
    before = time.process_time()
    weights, moments = learned(job, int(rounds))
    spent = (time.process_time() - before) / int(rounds)
    arrays = {name: tensor.numpy() for name, tensor in weights.items()}
    np.savez(Path(folder) / "weights.npz", allow_pickle=False, **arrays)
    print(json.dumps({"rounds": [after - before for before, after in pairwise(moments)], "cpu": spent}))


if __name__ == "__main__":
    main(*sys.argv[1:])
