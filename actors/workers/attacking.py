"""A worker whose malicious clients send something else than their work. A tool of experiments.

The one idea: a malicious client does its work and then replaces the numbers of its delta. So the replaced numbers go the whole
way that honest ones go: through the actor, the wire, and the coordinator's checks.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from shoal.actors import Worker, close, work_of
from shoal.actors.workers.around import Around
from shoal.envs.datasets import Examples
from shoal.envs.population import Population
from shoal.protocol import draws
from shoal.protocol.layout import Bundle
from shoal.protocol.work import Task, Work

DELTAS = ("sign_flip", "gaussian", "nan", "huge")
"""The attacks that a client makes on its own delta."""
REPLACED = ("f4", "f8")
HUGE = 1e30


class Attacking(Around):
    """A worker around another. Clients 0 to attackers - 1 are malicious: in tasks that count, the float32 and float64 entries
    of their contributions are replaced.

    attack: "sign_flip": -strength times the delta. "gaussian": independent normal numbers of standard deviation `strength`.
    "nan": NaN. "huge": 1e30. poisoned: the worker that does malicious clients' tasks that count, in place of `worker`; None:
    the same. With attack="" nothing is replaced.
    """

    def __init__(
        self,
        worker: Worker,
        attack: str,
        attackers: int,
        strength: float = 1.0,
        *,
        seed: int = 0,
        poisoned: Worker | None = None,
    ) -> None:
        if attack not in ("", *DELTAS):
            raise ValueError(f"attack={attack!r}: must be one of {', '.join(DELTAS)}")
        super().__init__(worker)
        self.attack, self.attackers, self.strength, self.seed = attack, attackers, strength, seed
        self.poisoned = poisoned

    def run(self, weights: Bundle, client: int, task: Task, brief: Bundle | None = None) -> Work:
        malicious = client < self.attackers and task.counts
        work = work_of((self.poisoned if malicious else None) or self.worker, weights, client, task, brief)
        if not malicious or not self.attack or work.bundle is None:
            return work
        return replace(work, bundle=self._replaced(work.bundle, client, task))

    def close(self) -> None:
        super().close()
        if self.poisoned is not None:
            close(self.poisoned)

    def _replaced(self, bundle: Bundle, client: int, task: Task) -> Bundle:
        out = bundle.copy()
        rng = np.random.Generator(np.random.Philox(draws.key(self.seed, "attack", *task.draws(client))))
        for dtype in REPLACED:
            x = out.vector(dtype)
            match self.attack:
                case "sign_flip":
                    x *= -self.strength
                case "gaussian":
                    x[:] = rng.normal(0.0, self.strength, x.size)
                case "nan":
                    x[:] = np.nan
                case "huge":
                    x[:] = HUGE
        return out


def flipped(population: Population, attackers: int) -> Population:
    """The same population, whose clients 0 to attackers - 1 have the label classes - 1 - y in place of y (label flip; Fung et
    al. 2018 flip single classes, Karimireddy et al. 2022 all, as here).

    The number of classes is one more than the largest label of the data that is divided, else of the held-out data, else of the
    client's. Labels below 0, which losses ignore, stay.
    """
    known = population.divides or population.held_out

    def examples(client: int) -> Examples:
        its: Examples = population.examples(client)
        if client >= attackers or not len(its):
            return its
        top = (its if known is None else known).y.max()
        return replace(its, y=np.where(its.y < 0, its.y, top - its.y).astype(its.y.dtype))

    return replace(population, examples=examples)
