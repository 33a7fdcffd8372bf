"""A client of federated learning: stochastic gradient descent on its own examples, and the difference it made.

The one idea: what a client returns is a function of (weights, client, version, seed) and of nothing that ran before, bit for
bit. With that, any actor may play any client; with all parameters in one flat vector, a step is one addition.
"""

from __future__ import annotations

import math
from collections import OrderedDict

import numpy as np
import torch
from torch import Tensor

from shoal.envs.population import Population
from shoal.nets.evaluation import Loss, Tally, batches, tallied
from shoal.nets.flat import FlatModule, as_tensor
from shoal.nets.models import Model, seeded
from shoal.protocol import draws
from shoal.protocol.errors import UserError
from shoal.protocol.layout import Bundle
from shoal.protocol.work import Task, Work


class LocalSGD:
    """FedAvg's ClientUpdate (McMahan et al. 2017, algorithm 1); with mu > 0 FedProx's (Li et al. 2020, algorithm 2).

    model: makes the module; only its shape counts, weights come with each task. float32 parameters are trained.
    loss: (logits, y) -> the mean over the batch.
    mu: adds mu / 2 * ||w - w_global||^2 to the loss, that is mu * (w - w_global) to the gradient.
    momentum: v <- momentum * v + gradient, w <- w - lr * v (as torch.optim.SGD), from v = 0 for each client.
    weighting: a client counts by its "samples", or each alike as one of the "users".
    kept_bytes: so much of the clients' data stays on the device, the longest unused going first.

    "train" gives the delta (local - global, in every dtype's own arithmetic; for booleans whether they differ) and the
    totals over all examples of all local epochs, each taken just before the step that uses it. "evaluate" gives totals only.
    A loss that is not finite is no error here: it shows in the totals, and the delta is what came of it.
    """

    def __init__(
        self,
        model: Model,
        population: Population,
        loss: Loss,
        *,
        local_epochs: int = 1,
        batch_size: int = 10,
        lr: float = 0.1,
        momentum: float = 0.0,
        mu: float = 0.0,
        weighting: str = "samples",
        seed: int = 0,
        device: torch.device | str = "cpu",
        kept_bytes: int = 2**28,
    ) -> None:
        _check(local_epochs >= 1, "local_epochs", local_epochs, "at least 1")
        _check(batch_size >= 1, "batch_size", batch_size, "at least 1")
        _check(0 < lr < math.inf, "lr", lr, "a number above 0")
        _check(0 <= momentum < 1, "momentum", momentum, "from 0 to below 1")
        _check(0 <= mu < math.inf, "mu", mu, "a number from 0")
        _check(weighting in ("samples", "users"), "weighting", weighting, "'samples' or 'users'")
        self.population, self.loss = population, loss
        self.local_epochs, self.batch_size = local_epochs, batch_size
        self.lr, self.momentum, self.mu = lr, momentum, mu
        self.weighting, self.seed = weighting, seed
        self.flat = _checked(FlatModule(seeded(model, 0), device))  # its weights come with each task
        self.own_buffers = {name: buffer.data_ptr() for name, buffer in self.flat.module.named_buffers()}
        self.w = self.flat.vector[: self.flat.trainable]
        self.w_global = torch.empty_like(self.w)
        self.velocity = torch.zeros_like(self.w)
        self.drift = torch.empty_like(self.w)
        self.one = torch.ones((), device=self.flat.device)
        self.data = _Data(population, self.flat.device, kept_bytes)

    def run(self, weights: Bundle, client: int, task: Task, brief: Bundle | None = None) -> Work:
        x, y = self.data.of(client)
        self.flat.read(weights)
        self._seed(client, task.version)
        weight = float(len(y)) if self.weighting == "samples" else 1.0
        match task.kind:
            case "train":
                totals = self._train(x, y, client, task.version)
                return Work(self._delta(weights), weight, {**totals, "examples": (float(len(y)), 1.0)})
            case "evaluate":
                return Work(None, weight, tallied(self.flat.module, x, y, self.loss, max(self.batch_size, 1000)))
        raise ValueError(f"task kind {task.kind!r}: LocalSGD knows 'train' and 'evaluate'")

    def _train(self, x: Tensor, y: Tensor, client: int, version: int) -> dict[str, tuple[float, float]]:
        self._start()
        module, tally = self.flat.module, Tally()
        shuffle = np.random.Generator(np.random.Philox(draws.key(self.seed, "shuffle", client, version)))
        for _ in range(self.local_epochs):
            order = torch.from_numpy(shuffle.permutation(len(y))).to(x.device)
            for xs, ys in batches(x.index_select(0, order), y.index_select(0, order), self.batch_size):
                self.flat.grad.zero_()
                logits = module(xs)
                loss = self.loss(logits, ys)
                loss.backward(self.one)  # type: ignore[no-untyped-call]
                self._step()
                tally.add(logits, ys, loss)
        return tally.totals()

    def _start(self) -> None:
        """Leave nothing of the client before."""
        if not self.flat.module.training:
            self.flat.module.train()
        if self.momentum:
            self.velocity.zero_()
        if self.mu:
            self.w_global.copy_(self.w)

    def _seed(self, client: int, version: int) -> None:
        """For dropout and its like."""
        place = draws.key(self.seed, "torch", client, version) % 2**63
        torch.default_generator.manual_seed(place)  # a hundredth of what torch.manual_seed costs, which asks every backend
        if self.flat.device.type == "cuda":
            torch.cuda.manual_seed(place)

    def _step(self) -> None:
        step = self.flat.grad
        if self.mu:
            step.add_(torch.sub(self.w, self.w_global, out=self.drift), alpha=self.mu)
        if self.momentum:
            step = self.velocity.mul_(self.momentum).add_(step)
        self.w.add_(step, alpha=-self.lr)

    def _delta(self, weights: Bundle) -> Bundle:
        """local - global. A module that put a new tensor in a buffer's place would leave it out, and to the next client."""
        for name, buffer in self.flat.module.named_buffers():
            if buffer.data_ptr() != self.own_buffers.get(name):
                raise ValueError(f"buffer {name!r} was replaced, not changed: write self.{name}.copy_(...) in the module")
        delta = self.flat.bundle()
        for dtype in delta.layout.segments:
            _subtract(delta, weights, dtype)
        return delta


class _Data:
    """The clients' examples as tensors on the device, kept for the next time up to a number of bytes."""

    def __init__(self, population: Population, device: torch.device, kept_bytes: int) -> None:
        self.population = population
        self.device = device
        self.free = kept_bytes
        self.kept: OrderedDict[int, tuple[Tensor, Tensor]] = OrderedDict()

    def of(self, client: int) -> tuple[Tensor, Tensor]:
        if client in self.kept:
            self.kept.move_to_end(client)
            return self.kept[client]
        examples = self.population.examples(client)
        if not len(examples):
            raise UserError(f"client {client} has no examples: a client has at least 1")
        pair = as_tensor(examples.x).to(self.device), as_tensor(examples.y).to(self.device)
        self._keep(client, pair)
        return pair

    def _keep(self, client: int, pair: tuple[Tensor, Tensor]) -> None:
        self.kept[client] = pair
        self.free -= _nbytes(pair)
        while self.free < 0:
            _, gone = self.kept.popitem(last=False)
            self.free += _nbytes(gone)


def _nbytes(pair: tuple[Tensor, Tensor]) -> int:
    return sum(tensor.nbytes for tensor in pair)


def _subtract(local: Bundle, start: Bundle, dtype: str) -> None:
    """In place, in numpy where it can: for a small model torch takes longer to be called than to subtract."""
    into, other = local.vector(dtype), start.vector(dtype)
    match dtype:
        case "b1":
            np.logical_xor(into, other, out=into)
        case "bf16":
            as_tensor(into).view(torch.bfloat16).sub_(as_tensor(other).view(torch.bfloat16))
        case _:
            np.subtract(into, other, out=into)


def _checked(flat: FlatModule) -> FlatModule:
    for name, parameter in flat.module.named_parameters():
        if parameter.requires_grad and parameter.dtype != torch.float32:
            raise UserError(f"model: parameter {name!r} is {parameter.dtype}, but local SGD trains float32: use model.float()")
    if not flat.trainable:
        raise UserError("model: no trainable parameter; local SGD needs at least one")
    return flat


def _check(holds: bool, name: str, value: object, allowed: str) -> None:
    if not holds:
        raise UserError(f"{name}={value!r}: must be {allowed}")
