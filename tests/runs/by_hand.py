"""Whole runs of small jobs, and what references in numpy need to play them again: cohorts, batches, gradients."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
from torch import nn
from torch.nn.functional import mse_loss

from shoal.coordinator.deciding.plans.selection import uniform
from shoal.envs.datasets import Examples
from shoal.envs.partition import quantity_skew
from shoal.envs.population import Population
from shoal.jobs.federated import Federated
from shoal.jobs.job import Job
from shoal.protocol import draws

FEATURES, CLASSES, CLIENTS, COHORT, ROUNDS, SEED = 4, 3, 6, 3, 5, 3
Floats = Any


def people() -> Population:
    rng = np.random.Generator(np.random.Philox(5))
    y = rng.integers(0, CLASSES, size=60)
    x = (rng.normal(size=(len(y), FEATURES)) + 2 * np.eye(FEATURES)[y]).astype(np.float32)
    return Population.divided(Examples(x, y), quantity_skew(y, CLIENTS, seed=0, least=4))


def linear(method: Any, **settings: Any) -> Job:
    """A softmax regression on clients of unequal sizes: the weights are one vector of 15 numbers."""
    own: dict[str, Any] = {
        "clients": CLIENTS,
        "cohort": COHORT,
        "rounds": ROUNDS,
        "local_epochs": 2,
        "batch_size": 4,
        "lr": 0.2,
    }
    return Federated(
        lambda: nn.Linear(FEATURES, CLASSES), people(), method=method, seed=SEED, **{**own, "eval_every": 0, **settings}
    )


def gradient(w: Floats, x: Floats, y: Floats) -> Floats:
    """Of the mean cross entropy of `linear`'s model."""
    W, b = w[: CLASSES * FEATURES].reshape(CLASSES, FEATURES), w[CLASSES * FEATURES :]
    scores = np.exp(x @ W.T + b)
    p = scores / scores.sum(1, keepdims=True) - np.eye(CLASSES)[y]
    return np.concatenate([(p.T @ x).ravel(), p.sum(0)]) / len(y)


def loss(w: Floats, x: Floats, y: Floats) -> float:
    W, b = w[: CLASSES * FEATURES].reshape(CLASSES, FEATURES), w[CLASSES * FEATURES :]
    scores = np.exp(x @ W.T + b)
    return float(-np.log(scores[np.arange(len(y)), y] / scores.sum(1)).mean())


def start(job: Job) -> Floats:
    return job.problem.first(SEED)[0].vector().astype(np.float64)


def rounds(job: Job) -> Iterator[dict[int, list[tuple[Floats, Floats]]]]:
    """For each round, each client of the cohort with the batches that it steps on."""
    settings: Any = job.method
    for version in range(settings.rounds):
        cohort = uniform(settings.clients, SEED)(version, settings.cohort, ())
        yield {client: list(batches(job, client, version)) for client in sorted(cohort)}


def batches(job: Job, client: int, version: int, epochs: int = 0) -> Iterator[tuple[Floats, Floats]]:
    x, y = data(client)
    settings: Any = job.method
    shuffle = np.random.Generator(np.random.Philox(draws.key(SEED, "shuffle", client, version)))
    for _ in range(epochs or settings.local_epochs):
        order = shuffle.permutation(len(y))
        for first in range(0, len(y), settings.batch_size):
            batch = order[first : first + settings.batch_size]
            yield x[batch], y[batch]


def data(client: int) -> tuple[Floats, Floats]:
    examples = people().examples(client)
    return examples.x.astype(np.float64), examples.y


def single(method: Any, *targets: float, sizes: tuple[int, ...] = (), **settings: Any) -> Job:
    """One weight w, which begins with 0, and a client for each target t, whose loss is (w - t)**2: its gradient is 2 (w - t).
    Each client makes two steps with a learning rate of 0.1, in each of two rounds. sizes: each client's number of examples, all
    alike; (): 1."""

    def model() -> nn.Module:
        made = nn.Linear(1, 1, bias=False)
        nn.init.zeros_(made.weight)
        return made

    many = zip(targets, sizes or (1,) * len(targets), strict=True)
    clients = [(np.ones((size, 1), np.float32), np.full((size, 1), target, np.float32)) for target, size in many]
    own: dict[str, Any] = {
        "clients": len(targets),
        "cohort": len(targets),
        "rounds": 2,
        "local_steps": 2,
        "lr": 0.1,
        "eval_every": 0,
    }
    return Federated(model, clients, mse_loss, method=method, **{**own, **settings})
