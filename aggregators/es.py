"""ES: a learner that follows the returns of perturbed policies, and never sees an observation.

The one idea: a contribution is a seed and two returns. The learner makes the noise again from the seed, so the traffic of a
version is a few numbers for each pair, for any size of network.
"""

from __future__ import annotations

import math
from typing import ClassVar

import numpy as np
import numpy.typing as npt
import torch

from shoal.aggregators import State
from shoal.nets.perturbed import acting, noise, pieces
from shoal.nets.updates import Adam
from shoal.protocol.errors import ProtocolError
from shoal.protocol.layout import Bundle
from shoal.protocol.work import Contribution, Moved


class ESLearner:
    """Evolution strategies with mirrored noise and centred ranks (Salimans et al. 2017, algorithm 2 and section 2.1).

    Of N pairs of a version, with returns F(w + sigma e) and F(w - sigma e) that are turned into ranks u from -0.5 to 0.5 over
    all 2 N, the step goes along g = sum((u+ - u-) e) / (2 N), by Adam, with weight_decay * w as part of the gradient. As in the
    authors' code g has no factor 1 / sigma, which Adam would cancel. Policies of equal return have equal ranks, the mean of
    theirs: otherwise their order would move the weights.

    sigma is the actors'. Only the arrays that act (`acting`) are learned.
    """

    linear: ClassVar[bool] = False  # ranks are over all returns of a version

    def __init__(self, weights: Bundle, *, lr: float = 0.01, weight_decay: float = 0.005) -> None:
        self.names = acting(weights.layout)
        self.update = Adam(lr=lr, weight_decay=weight_decay)
        self._read(weights)
        self.moments = [torch.zeros_like(self.vector) for _ in self.update.moments]
        self.updates = 0
        self.folded: dict[tuple[tuple[int, ...], int, int], tuple[npt.NDArray[np.int64], npt.NDArray[np.float64]]] = {}

    def _read(self, weights: Bundle) -> None:
        self.newest = Bundle(weights.layout, weights.data.copy())
        self.vector = torch.from_numpy(np.concatenate([self.newest[name].ravel() for name in self.names]))

    def weights(self) -> Bundle:
        return self.newest

    def fold(self, contribution: Contribution) -> None:
        bundle, task = contribution.bundle, contribution.task
        seed, fitness = bundle["seed"].copy(), bundle["fitness"].copy()
        if not np.isfinite(fitness).all():
            raise ProtocolError("a return is NaN or infinite: an environment gave such a reward")
        if (seed < 0).any() or any(noise(int(s), 1)[0] != p for s, p in zip(seed, bundle["probe"], strict=True)):
            raise ProtocolError(f"the actor's numpy draws other noise than numpy {np.__version__} here: install this one there")
        self.folded[(task.clients, task.version, task.index)] = (seed, fitness)

    def step(self) -> Moved:
        if not self.folded:
            raise ValueError("a step needs at least one contribution; fold one in first")
        ordered = [self.folded[name] for name in sorted(self.folded)]  # the order of arrival changes no bit
        self.folded.clear()
        seeds, fitness = (np.concatenate(each) for each in zip(*ordered, strict=True))
        gain = centred_ranks(fitness)
        direction = np.zeros(len(self.vector), np.float32)
        for seed, weight in zip(seeds, gain[:, 0] - gain[:, 1], strict=True):
            if weight:
                direction += np.float32(weight) * noise(int(seed), len(direction))
        direction /= np.float32(fitness.size)
        self.updates += 1
        step, *self.moments = self.update(self.vector, torch.from_numpy(direction), self.updates, *self.moments)
        self.vector = self.vector + step
        self.newest = Bundle(self.newest.layout, self.newest.data.copy())
        for name, piece in pieces(self.newest.layout, self.names, self.vector.numpy()):
            self.newest[name][...] = piece
        return Moved(
            {
                "fitness_mean": float(fitness.mean()),
                "fitness_max": float(fitness.max()),
                "fitness_std": float(fitness.std()),
                "grad_norm": math.sqrt(float(np.square(direction, dtype=np.float64).sum())),
                "weight_norm": float(self.vector.norm()),
            }
        )

    def state(self) -> State:
        moments = {name: value.numpy().copy() for name, value in zip(self.update.moments, self.moments, strict=True)}
        return {**moments, "updates": np.array(self.updates)}

    def load(self, weights: Bundle, state: State) -> None:
        self.folded.clear()
        self._read(weights)
        self.updates = int(state["updates"])
        self.moments = [torch.tensor(np.asarray(state[name])) for name in self.update.moments]


def centred_ranks(fitness: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """The ranks of all numbers, from -0.5 (the smallest) to 0.5 (the largest), in the shape of `fitness`; equal numbers have
    the mean of their ranks. A single number has 0."""
    _, place, many = np.unique(fitness, return_inverse=True, return_counts=True)
    last = np.cumsum(many)
    middle = last - (many + 1) / 2  # mean rank, from 0, of each number
    return (middle[place.reshape(fitness.shape)] / max(1, fitness.size - 1)) - 0.5 * (fitness.size > 1)
