"""What is asked of an actor, and what comes back."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, TypeAlias

from shoal.protocol.layout import Bundle

Metrics = Mapping[str, float]
"""Plain numbers, for a person to read: {"loss": 0.3}."""

Totals = Mapping[str, tuple[float, float]]
"""Statistics that add up: name -> (total, count). Their mean is total / count, over any number of clients."""

Words: TypeAlias = Mapping[str, Any]
"""Plain data that a plan tells a worker: names with None, bool, int, float, str, and lists and maps of these."""


@dataclass(frozen=True, slots=True)
class Task:
    """Work against weights `version`, for each of `clients` in turn. (version, index) names it within a run.

    An actor may start it with these weights or newer ones. kind: which work, a word for the worker that the machinery never
    looks at. counts: whether the contribution goes to the aggregator and counts towards a step; else only its totals and
    samples are used, as in evaluation. words: what else the plan tells the worker, at most 4 KiB when packed.
    """

    version: int
    index: int
    clients: tuple[int, ...]
    kind: str = "train"
    counts: bool = True
    words: Words = field(default_factory=dict, hash=False)

    def apart(self) -> tuple[Task, ...]:
        """One task for each client, so that one of them who cannot does not take the others along. The index of a task for
        several clients counts them, so that these have names of their own."""
        if len(self.clients) < 2:
            return (self,)
        return tuple(replace(self, index=self.index + at, clients=(client,)) for at, client in enumerate(self.clients))


@dataclass(frozen=True, slots=True)
class Work:
    """What a Worker made for one client.

    bundle: a delta against the weights (federated), a trajectory (reinforcement), or None (evaluation).
    weight: how much it counts (examples, say), finite and > 0.
    totals: statistics that add up, e.g. {"loss": (sum, count)}.
    samples: short lists of numbers that do not add up, e.g. {"return": [...], "length": [...]} of finished episodes.
    steps: environment steps made, 0 where there is no environment.
    """

    bundle: Bundle | None
    weight: float = 1.0
    totals: Totals = field(default_factory=dict)
    samples: Mapping[str, tuple[float, ...]] = field(default_factory=dict)
    steps: int = 0


@dataclass(frozen=True, slots=True)
class Moved:
    """What a step made. weights: False if the weights are those of before, so that only the version rises."""

    metrics: Metrics = field(default_factory=dict)
    weights: bool = True


@dataclass(frozen=True, slots=True)
class Contribution:
    """A Work as an aggregator sees it, made from weights `made_from`, which are `lag` versions old when it is folded in.

    task: the task that was done; its clients are those who did it, the actor's number where the plan named nobody.
    summed: bundle holds sum(weight * delta) over the task's clients in a form of protocol/exact.py.
    norm: the L2 norm of the bundle's float32 and float64 entries, finite, where whoever checked it has it already.
    """

    task: Task
    made_from: int
    lag: int
    work: Work
    summed: bool = False
    norm: float | None = None
