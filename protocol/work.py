"""The values that plans, workers and aggregators exchange: tasks, works and contributions.

The one idea: a task is work against a version of the weights, and a contribution brings its task along.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, TypeAlias

from shoal.protocol.errors import ProtocolError

if TYPE_CHECKING:  # a pool of calls without arrays needs no numpy
    from shoal.protocol.layout import Bundle

Metrics = Mapping[str, float]
"""Plain numbers for a person to read: {"loss": 0.3}."""

Totals = Mapping[str, tuple[float, float]]
"""Statistics that add up: name -> (total, count). Their mean is total / count, over any number of clients."""

Words: TypeAlias = Mapping[str, Any]
"""Plain data that a plan tells a worker: name -> None, bool, int, float, str, or lists and maps of these."""


@dataclass(frozen=True, slots=True)
class Task:
    """Work against weights `version`, for each of `clients` in turn. (version, index) is the task's name within a run.

    An actor may start the task with these weights or newer ones: the task that its worker sees has the version of the weights
    that the worker gets. kind: the kind of work, a word for the worker that the
    machinery never looks at. counts: True if the contribution goes to the aggregator and counts towards a step; False if only
    its totals and samples are used, as in evaluation. words: plain data from the plan to the worker, at most 4 KiB packed. A
    plan that may give a client several tasks of one version says which this is in the word "visit", a whole number.
    alone: True if the task may take long, so that its actor gets no task that would wait behind it.
    where: number of the seat whose actor is to do the task; if that actor has no room any more, any does it; -1: any.
    briefed: for an aggregator's `brief` alone: True if the task's actor has had a brief for a training task of its clients.
    """

    version: int
    index: int
    clients: tuple[int, ...]
    kind: str = "train"
    counts: bool = True
    words: Words = field(default_factory=dict, hash=False)
    alone: bool = False
    where: int = -1
    briefed: bool = False

    @property
    def name(self) -> tuple[int, int]:
        return (self.version, self.index)

    def draws(self, client: int) -> tuple[int, ...]:
        """The numbers that key a worker's draws, beside seed and purpose: client, version and, if the plan says it, visit."""
        visit = self.words.get("visit")
        return (client, self.version) if type(visit) is not int else (client, self.version, visit)

    def apart(self) -> tuple[Task, ...]:
        """The task cut into a task for each client, so that a client that fails takes no other along. Indices count clients,
        so that each of these tasks has a name of its own."""
        if len(self.clients) < 2:
            return (self,)
        return tuple(replace(self, index=self.index + at, clients=(client,)) for at, client in enumerate(self.clients))


@dataclass(frozen=True, slots=True)
class Has:
    """The part of a machine that is there for calls. memory: bytes. gpus: names by which CUDA knows them."""

    cores: int
    memory: int
    gpus: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Work:
    """The result of a worker's work for one client.

    bundle: a delta against the weights (federated), a trajectory (reinforcement), or None (evaluation).
    weight: weight of this result in a mean (number of examples, say), finite and above 0.
    totals: statistics that add up, e.g. {"loss": (sum, count)}.
    samples: short lists of numbers that do not add up, e.g. {"return": [...], "length": [...]} of finished episodes.
    steps: environment steps that were made; 0: there is no environment.
    """

    bundle: Bundle | None
    weight: float = 1.0
    totals: Totals = field(default_factory=dict)
    samples: Mapping[str, tuple[float, ...]] = field(default_factory=dict)
    steps: int = 0


@dataclass(frozen=True, slots=True)
class Moved:
    """The result of an aggregator's step. weights: False if the weights are those of before: only the version rises."""

    metrics: Metrics = field(default_factory=dict)
    weights: bool = True


@dataclass(frozen=True, slots=True)
class Contribution:
    """A Work as an aggregator sees it, made from weights `made_from`, which are `lag` versions old when it is folded in.

    task: the task that was done; its clients are those that the work was done for: the actor's number if the plan named none.
    summed: True if the bundle holds sum(weight * delta) over the task's clients, in a form of protocol/exact.py.
    norm: L2 norm of the bundle's float32 and float64 entries, finite, if a check has computed it; None: not known.
    """

    task: Task
    made_from: int
    lag: int
    work: Work
    summed: bool = False
    norm: float | None = None

    @property
    def bundle(self) -> Bundle:
        """The arrays of the work. Raises ProtocolError if there are none."""
        if self.work.bundle is None:
            raise ProtocolError("this contribution holds no arrays; an aggregator needs a bundle of them")
        return self.work.bundle
