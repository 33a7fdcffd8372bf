"""Clients with something of their own: layers, a model, or a few steps before they are judged. And examples of their own to
judge them by.

The one idea: a client trains on one part of its examples and is evaluated on the other, because a personal model is good at
what it was trained on.
"""

from __future__ import annotations

from dataclasses import KW_ONLY, dataclass, replace

import numpy as np
import torch
from torch import Tensor

from shoal.actors.workers.local_sgd import LocalSGD
from shoal.nets.evaluation import Arrays
from shoal.nets.flat import as_tensor
from shoal.nets.personal import places
from shoal.protocol import draws
from shoal.protocol.beside import joined
from shoal.protocol.errors import within
from shoal.protocol.layout import Bundle
from shoal.protocol.work import Task, Totals, Work


@dataclass(eq=False, repr=False)
class OwnHeldOutSGD(LocalSGD):
    """Local SGD that keeps `own_held_out` of each client's examples for the client's evaluations, at least one of two.

    Which ones depends on (seed, client) alone. A client with a single example trains on it and is not evaluated: its evaluation
    has no totals.
    """

    _: KW_ONLY
    own_held_out: float = 0.2

    def __post_init__(self) -> None:
        within("own_held_out", self.own_held_out, above=0.0, below=1.0)
        super().__post_init__()
        self.row: Tensor | None = None

    def run(self, weights: Bundle, client: int, task: Task, brief: Bundle | None = None) -> Work:
        self.row = None if brief is None else as_tensor(brief["personal"]).to(self.flat.device)
        if task.kind == "evaluate" and not len(self._examples(client, task)[1]):
            return Work(None)
        return super().run(weights, client, task)

    def _examples(self, client: int, task: Task) -> Arrays:
        data = self.data.of(client)
        n = len(data[1])
        out = max(1, round(self.own_held_out * n)) if n > 1 else 0
        rng = np.random.Generator(np.random.Philox(draws.key(self.seed, "own_held_out", client)))
        order = rng.permutation(n)
        part = torch.from_numpy(np.sort(order[:out] if task.kind == "evaluate" else order[out:])).to(self.flat.device)
        found = Arrays(array.index_select(0, part) for array in data)
        found.scale = data.scale
        return found


@dataclass(eq=False, repr=False)
class FineTunedSGD(OwnHeldOutSGD):
    """Local SGD whose evaluations train first: `finetune_epochs` passes over the client's own examples, from the weights.

    An evaluation's totals are those after it, and beside each of them, as global_..., the one before.
    """

    _: KW_ONLY
    finetune_epochs: int = 1

    def _score(self, data: Arrays, client: int, task: Task) -> Totals:
        before = {f"global_{name}": total for name, total in super()._score(data, client, task).items()}
        if self.finetune_epochs:
            steps, epochs = self.local_steps, self.local_epochs
            self.local_steps, self.local_epochs = 0, self.finetune_epochs
            try:
                self._train(self._examples(client, replace(task, kind="train")), client, task)
            finally:
                self.local_steps, self.local_epochs = steps, epochs
        return {**super()._score(data, client, task), **before}


@dataclass(eq=False, repr=False)
class PersonalSGD(OwnHeldOutSGD):
    """FedPer's client (Arivazhagan et al. 2019, algorithm 1), and FedBN's (Li et al. 2021, algorithm 1): local SGD on all
    layers, of which those in `personal` are the client's own.

    personal: names of layers or tensors, as nets.personal.places takes them. brief: {"personal": values}, float32 [k]; None:
    those of the weights. In the delta of a training task the personal entries hold the client's values.
    """

    _: KW_ONLY
    personal: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        super().__post_init__()
        self.own = places(self.flat.layout, self.personal)
        self.places = torch.from_numpy(self.own).to(self.flat.device)

    def _take(self, weights: Bundle) -> None:
        super()._take(weights)
        if self.row is not None:
            self.flat.vector[self.places] = self.row

    def _delta(self, weights: Bundle) -> Bundle:
        delta = super()._delta(weights)
        delta.vector()[self.own] = self.flat.vector[self.places].cpu().numpy()
        return delta


@dataclass(eq=False, repr=False)
class RepresentedSGD(PersonalSGD):
    """FedRep's client (Collins et al. 2021, algorithm 1): first the personal layers, the head, for `head_epochs` passes with
    the others still; then the others, for local_epochs or local_steps with the head still.

    The optimizer begins anew in each of the two, and both begin with the same order of examples. Totals are of the second.
    """

    _: KW_ONLY
    head_epochs: int = 5

    def __post_init__(self) -> None:
        super().__post_init__()
        head = self.own[self.own < self.w.numel()]
        body = np.setdiff1d(np.arange(self.w.numel()), head)
        self.head, self.body = (torch.from_numpy(part).to(self.flat.device) for part in (head, body))
        self.still: Tensor | None = None

    def _train(self, data: Arrays, client: int, task: Task) -> dict[str, tuple[float, float]]:
        steps, epochs = self.local_steps, self.local_epochs
        self.local_steps, self.local_epochs, self.still = 0, self.head_epochs, self.body
        try:
            super()._train(data, client, task)
            self.local_steps, self.local_epochs, self.still = steps, epochs, self.head
            return super()._train(data, client, task)
        finally:
            self.local_steps, self.local_epochs, self.still = steps, epochs, None

    def _turn(self, gradient: Tensor) -> None:
        gradient[self.still] = 0.0

    def _step(self, factor: float, t: int) -> None:
        before = self.w[self.still]
        super()._step(factor, t)
        self.w[self.still] = before  # weight decay would move it


@dataclass(eq=False, repr=False)
class DittoSGD(OwnHeldOutSGD):
    """Ditto's client (Li et al. 2021, algorithm 1): FedAvg's steps for the global weights w, and as many for the client's own
    model v, down F(v) + lam / 2 ||v - w||^2.

    brief: {"personal": v}, float32 [entries that are not frozen]; None: v begins with w. A training task returns the delta of
    w, with v beside it. An evaluation is of v; beside each total, as global_..., stands that of w. Both passes have the same
    order of examples, and mu is for w alone. Integer buffers of v are those of w.
    """

    _: KW_ONLY
    lam: float = 0.1

    def __post_init__(self) -> None:
        within("lam", self.lam)
        super().__post_init__()
        first, last = self.flat.layout.moving.segments["f4"]
        self.entries = (last - first) // 4
        self.task: tuple[Arrays, int, Task] | None = None
        self.anchor: Tensor | None = None

    def _train(self, data: Arrays, client: int, task: Task) -> dict[str, tuple[float, float]]:
        self.task = (data, client, task)
        return super()._train(data, client, task)

    def _start(self) -> None:
        super()._start()
        if self.anchor is not None:
            self.w_global.copy_(self.anchor)

    def _delta(self, weights: Bundle) -> Bundle:
        delta = super()._delta(weights)
        assert self.task is not None
        self.flat.read(weights)
        mu, self.mu, self.anchor = self.mu, self.lam, self.w.clone()
        try:
            self._become()
            super()._train(*self.task)
        finally:
            self.mu, self.anchor, self.task = mu, None, None
        return joined(delta, {"personal": self.flat.vector[: self.entries].cpu().numpy()})

    def _become(self) -> None:
        if self.row is not None:
            self.flat.vector[: self.entries] = self.row

    def _score(self, data: Arrays, client: int, task: Task) -> Totals:
        of_all = {f"global_{name}": total for name, total in super()._score(data, client, task).items()}
        self._become()
        return {**super()._score(data, client, task), **of_all}
