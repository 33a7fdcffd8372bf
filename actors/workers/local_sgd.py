"""The worker of federated learning: stochastic gradient descent on a client's own examples, and the delta it makes.

The one idea: a client's work is a function of (weights, client, task, seed) and of nothing that ran before, bit for bit.
So any actor may play any client. With all parameters in one flat vector, a step is one addition.
"""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import KW_ONLY, dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from shoal.envs.datasets import Examples
from shoal.envs.population import Population
from shoal.nets.dense import dense_of
from shoal.nets.evaluation import Arrays, Loss, Metric, Tally, batches, loss_for, mean_loss, named, tallied, tensors
from shoal.nets.flat import FlatModule, as_tensor
from shoal.nets.models import Model, for_training
from shoal.nets.schedules import Schedule
from shoal.nets.squares import Squares
from shoal.nets.straight import Straight
from shoal.nets.updates import SGD, Momentum, Optimizer, update_of
from shoal.protocol import draws
from shoal.protocol.errors import UserError, within
from shoal.protocol.exact import VALUES, PartialSum
from shoal.protocol.layout import DTYPES, Bundle, Bytes, Layout, Scattered
from shoal.protocol.streams import Streams
from shoal.protocol.work import Task, Totals, Work

PIECE = 2**19
"""Bytes of a delta that are made at a time: a core's own cache holds them beside what they are made of and added to."""


@dataclass(eq=False, repr=False)
class LocalSGD:
    """FedAvg's ClientUpdate (McMahan et al. 2017, algorithm 1); with mu > 0 FedProx's (Li et al. 2020, algorithm 2).

    model: factory of the module. Only the module's shape counts, because weights come with each task. Trained parameters are
    float32. A submodule that the factory leaves in evaluation mode (a frozen batch norm) is trained in that mode; a module that
    is in evaluation mode as a whole is trained in training mode.
    loss: (logits, y) -> the mean over the batch, or one loss per example, [B], whose mean is weighted by the examples' weights.
    local_epochs: number of passes over the client's data. local_steps: number of steps in place of passes; 0: local_epochs
    decides.
    drop_last: True leaves out the last batch of a pass if it is smaller than batch_size and not the only batch.
    optimizer: a name of UPDATES or a class, made with lr and, if not 0, momentum and weight_decay; or an Update, which brings
    its own settings. Moments begin anew with each task.
    lr_schedule: version -> factor of the optimizer's step; None: 1.
    clip_grad_norm: largest Euclidean norm of a step's gradient, proximal term included; 0: any.
    mu: weight of the proximal term, mu / 2 * ||w - w_global||^2 in the loss, mu * (w - w_global) in the gradient; 0: none.
    weighting: "samples" weighs a client by its number of examples, "users" weighs all clients alike; a function (client, its
    Examples) -> weight, from 2**-20 to 2**33, is called once for each client.
    metrics: name -> (logits [n, ...], y [n, ...]) -> one number, of a client's whole data, in a task of kind "evaluate".
    kept_bytes: most bytes of clients' data that stay on the device; the data unused for longest go first.
    thin: True leaves frozen parameters (requires_grad=False) out of deltas, until a task changed one of them.
    squares: True adds the total `loss_squared` to those of a "train" task (nets/squares.py).

    A "train" task returns the delta (local - global, in each dtype's own arithmetic; of booleans and one-byte integers local
    itself) and totals over all examples of all steps, each taken just before the step that uses it. An "evaluate" task returns
    totals only. A loss that is not finite is no error here: it shows in the totals, and the delta follows from it.
    Raises UserError for a setting out of range.
    """

    model: Model
    population: Population
    loss: Loss
    _: KW_ONLY
    local_epochs: int = 1
    local_steps: int = 0
    batch_size: int = 10
    drop_last: bool = False
    optimizer: Optimizer = "sgd"
    lr: float = 0.1
    momentum: float = 0.0
    weight_decay: float = 0.0
    lr_schedule: Schedule | None = None
    clip_grad_norm: float = 0.0
    mu: float = 0.0
    weighting: str | Callable[[int, Examples], float] = "samples"
    metrics: Mapping[str, Metric] | None = None
    seed: int = 0
    device: torch.device | str = "cpu"
    kept_bytes: int = 2**28
    thin: bool = False
    squares: bool = False

    def __post_init__(self) -> None:
        for name, least in {"local_epochs": 1, "local_steps": 0, "batch_size": 1}.items():
            within(name, number := getattr(self, name), first=least)
            if not hasattr(number, "__index__"):
                raise UserError(f"{name}={number!r}: must be a whole number")
        within("lr", self.lr, above=0.0)
        within("clip_grad_norm", self.clip_grad_norm)
        within("mu", self.mu)
        if not callable(self.weighting) and self.weighting not in ("samples", "users"):
            raise UserError(f"weighting={self.weighting!r}: must be 'samples' or 'users', or a function (client, examples)")
        self.weighed: dict[int, float] = {}
        self.metrics = named(self.metrics)
        self.update = update_of(self.optimizer, lr=self.lr, momentum=self.momentum, weight_decay=self.weight_decay)
        self.sgd = self.update if isinstance(self.update, SGD) and type(self.update) in (SGD, Momentum) else None
        self.factor_at(0)
        self.flat = FlatModule(for_training(self.model), self.device).trained()  # each task brings the weights
        self.tally = Tally(self.loss)
        self.streams = Streams()
        self.keys: dict[int, npt.NDArray[np.uint64]] = {}  # of the orders of the clients of `keyed`
        self.keyed: Task | None = None
        self.w = self.flat.vector[: self.flat.trainable]
        self.w_global = torch.empty_like(self.w)
        self.drift = torch.empty_like(self.w)
        self.moments = [torch.empty_like(self.w) for _ in self.update.moments]
        self.straight: Straight | None = Straight(self.flat)  # None: every step goes by the flat gradient
        self.looked_at: Task | None = None
        self.no_negative_zero = False  # of the weights of `looked_at`
        self.data = _Data(self.population, self.flat.device, self.kept_bytes)
        self.dense = dense_of(self.flat, self.loss)

    def run(self, weights: Bundle, client: int, task: Task, brief: Bundle | None = None) -> Work:
        work = self._run(weights, client, task)
        return replace(work, bundle=self._delta(weights)) if task.kind == "train" else work

    @property
    def adds(self) -> bool:
        """True if the clients' deltas are added to a sum as they are made, and lie in memory of their own nowhere: unless a
        subclass takes weights in, or makes a delta or a client's work, in a way of its own."""
        own = type(self)
        return all(getattr(own, name, None) is getattr(LocalSGD, name, None) for name in ("run", "run_all", "_take", "_delta"))

    def add_all(self, weights: Bundle, clients: Sequence[int], task: Task, total: PartialSum) -> Iterator[Work]:
        """Yield the work of each client, without its delta, which is in `total` then."""
        local = self.flat.seen()
        plain = [*local.layout.segments] == ["f4"] and local.layout.moving is local.layout and total.gauge.exact
        absorbs = plain and self.flat.device.type == "cpu" and task.kind == "train"
        taken = False
        for client in clients:
            work = self._run(weights, client, task, taken)
            if taken := absorbs and self._moved(weights) is local.layout:
                total.absorb(local.vector(), weights.vector(), work.weight)
            elif task.kind == "train":
                total.add(Difference(self._moved(weights), self.flat.seen(), weights), work.weight)
            yield work

    def _run(self, weights: Bundle, client: int, task: Task, taken: bool = False) -> Work:
        """The work of a client without its delta. taken: the weights were taken in, and are as they were."""
        data = self._examples(client, task)
        if not taken:
            self._take(weights)
        if not self._draws_nothing(data, task):
            draws.set_globals(self.seed, "torch", *task.draws(client))  # for dropout, augmentation and the like
        examples = float(len(data[1]))
        weight = self._weight(client, examples)
        match task.kind:
            case "train":
                return Work(None, weight, {**self._train(data, client, task), "examples": (examples, 1.0)})
            case "evaluate":
                return Work(None, weight, self._score(data, client, task))
        raise ValueError(f"task kind {task.kind!r}: LocalSGD knows 'train' and 'evaluate'")

    def _weight(self, client: int, examples: float) -> float:
        """The weight of a client with this number of examples."""
        if not callable(self.weighting):
            return examples if self.weighting == "samples" else 1.0
        if client not in self.weighed:
            given = self.weighting(client, self.population.examples(client))
            try:
                weight = float(given)
            except (TypeError, ValueError, RuntimeError):
                weight = math.nan
            if not 2.0**-20 <= weight <= 2.0**33:
                raise UserError(f"weighting gave {given!r} for client {client}: must be a number from 2**-20 to 2**33")
            self.weighed[client] = weight
        return self.weighed[client]

    def _draws_nothing(self, data: Arrays, task: Task) -> bool:
        """Return whether no code of a user's own takes part in this task, and no part of the model that draws."""
        plain = self.dense is not None and task.kind == "train" and self.dense.takes(data)
        ours = self.lr_schedule is None or getattr(self.lr_schedule, "__module__", "").startswith("shoal.")
        return plain and ours and self.sgd is not None and type(self) is LocalSGD and not callable(self.weighting)

    def _take(self, weights: Bundle) -> None:
        """Take the task's weights in. A subclass may put a client's own entries in their place."""
        self.flat.read(weights)

    def _score(self, data: Arrays, client: int, task: Task) -> Totals:
        """The totals of an evaluation of the weights that were taken in."""
        return tallied(self.flat.module, data, self.loss, max(self.batch_size, 1000), self.metrics)

    def _examples(self, client: int, task: Task) -> Arrays:
        """The examples of this client that a task of this kind uses. A subclass may keep some of them for evaluation."""
        return self.data.of(client)

    def factor_at(self, version: int) -> float:
        """The factor of the optimizer's step in a task against weights `version`. Raises UserError unless finite and from 0."""
        given = 1.0 if self.lr_schedule is None else self.lr_schedule(version)
        try:
            factor = float(given)
        except (TypeError, ValueError, RuntimeError):
            factor = math.nan
        if not 0 <= factor < math.inf:
            raise UserError(f"lr_schedule gave {given!r} for version {version}: must be a number from 0")
        return factor

    def _train(self, data: Arrays, client: int, task: Task) -> dict[str, tuple[float, float]]:
        self._start()
        module, loss_of, tally, factor = (
            self.flat.module,
            loss_for(data, self.loss),
            self.tally.begin(),
            self.factor_at(task.version),
        )
        squares = Squares(self.loss) if self.squares else None
        straight = self.straight if self._goes_straight(task) else None
        by_hand = straight is None or straight.wide is None  # else autograd is quicker, for it leaves the wide gradients out
        t, quick = 0, self.dense if by_hand and self.dense is not None and self.dense.takes(data) else None
        try:
            if straight is not None:
                straight.begin()
            for order in self._orders(len(data[1]), self._shuffle(client, task)):
                for xs, ys, *weight in batches([array.index_select(0, order) for array in data], self.batch_size, data.scale):
                    t += 1
                    if quick is not None and xs.shape[0] in quick.sure:
                        logits, loss = quick(xs, ys)
                        self._step(factor, t)
                    else:
                        if straight is None:
                            self.flat.loosen()
                        else:
                            straight.await_one(xs.shape[0])
                        logits = module(xs)
                        loss = mean_loss(loss_of(logits, ys), ys, *weight)
                        if straight is not None:
                            straight.turn()
                        loss.backward()  # type: ignore[no-untyped-call]
                        if quick is not None:
                            (self.flat if straight is None else straight).gather()
                            quick = self.dense = quick.proved(xs, ys, logits, loss)
                        straight = self._descend(factor, t, straight, xs.shape[0])
                    tally.add(logits, ys, loss, *weight)
                    if squares is not None:
                        squares.add(logits, ys)
        finally:
            if straight is not None:
                straight.end()
            self.flat.tighten()
        return tally.totals() if squares is None else {**tally.totals(), **squares.totals()}

    def _shuffle(self, client: int, task: Task) -> np.random.Generator:
        """The generator of the client's orders, at their start. The orders of the client before are over. A task's keys are
        made together: one after the other, between calls of torch, they take four times as long."""
        if self.keyed is not task or client not in self.keys:
            clients = list(dict.fromkeys((client, *task.clients)))
            keys = self.streams.keys([draws.key(self.seed, "shuffle", *task.draws(each)) for each in clients])
            self.keys, self.keyed = dict(zip(clients, keys, strict=True)), task
        return self.streams.begin(self.keys[client])

    def _orders(self, n: int, shuffle: np.random.Generator) -> Iterator[Tensor]:
        """The indices of the examples that each pass over n examples uses, in an order of the pass's own."""
        return (torch.from_numpy(order).to(self.flat.device) for order in self._indices(n, shuffle))

    def _indices(self, n: int, shuffle: np.random.Generator) -> Iterator[npt.NDArray[np.int64]]:
        size = self.batch_size
        count = n - n % size if self.drop_last and n > size else n
        each = -(-count // size)
        left = self.local_steps or self.local_epochs * each
        while left > 0:
            yield shuffle.permutation(n)[: min(count, left * size)]
            left -= each

    def _start(self) -> None:
        """Begin a task: moments and global weights, so that nothing is left of the client before."""
        for moment, first in zip(self.moments, self.update.moments.values(), strict=True):
            moment.fill_(first)
        if self.mu:
            self.w_global.copy_(self.w)

    def _goes_straight(self, task: Task) -> bool:
        """Return whether a step of this task is an addition of gradients to weights and nothing else. A sum of zeros with a
        gradient has no -0.0, and a gradient may: so weights of -0.0, to which alone that matters, go another way."""
        sgd = self.sgd
        plain = type(self) is LocalSGD and sgd is not None and not (sgd.momentum or sgd.weight_decay)
        if not plain or self.mu or self.clip_grad_norm or self.straight is None:
            return False
        if self.looked_at is not task:  # of whose clients each begins with the same weights
            self.looked_at, self.no_negative_zero = task, int(self.w.view(torch.int32).min()) != -(2**31)
        return self.no_negative_zero

    def _descend(self, factor: float, t: int, straight: Straight | None, size: int) -> Straight | None:
        """Make a step by the gradients that lie apart. straight: how, if not by the flat gradient. size: of the batch. Return
        how the next step is made."""
        if straight is None or self.sgd is None:
            self.flat.gather()
            self._step(factor, t)
            return None
        alpha = -self.sgd.lr * factor
        if not straight.lies():
            straight.gather()
            self._step(factor, t)
            return straight
        if size in straight.sizes:
            straight.add(alpha)
            return straight
        before = self.w.clone()
        straight.gather()
        self._step(factor, t)
        self.straight = straight.proved(before, alpha, size)
        return self.straight

    def _step(self, factor: float, t: int) -> None:
        """Make one step of the optimizer. SGD's formula is computed in place, without new memory."""
        step = self.flat.grad
        if self.mu:
            step.add_(torch.sub(self.w, self.w_global, out=self.drift), alpha=self.mu)
        if self.clip_grad_norm:
            self.flat.clip(self.clip_grad_norm)
        self._turn(step)
        if (sgd := self.sgd) is None:
            update, *moments = self.update(self.w, step.neg_(), t, *self.moments)
            self.moments = [moment.clone() for moment in moments]  # an Update may give back the gradient's memory, or w's
            self.w.add_(update, alpha=factor)
            return
        if sgd.weight_decay:
            step.add_(self.w, alpha=sgd.weight_decay)
        if sgd.momentum:
            step = self.moments[0].mul_(sgd.momentum).add_(step)
        self.w.add_(step, alpha=-sgd.lr * factor)

    def _turn(self, gradient: Tensor) -> None:
        """Change the clipped gradient of a step in place, float32 [trainable]. A subclass adds its method's correction here."""

    def _delta(self, weights: Bundle) -> Bundle:
        """The delta, local - global, as `_moved` says."""
        layout = self._moved(weights)
        delta, local = Bundle.zeros(layout), self.flat.seen()
        for dtype in layout.segments:
            into = delta.vector(dtype)
            _subtract(dtype, local.vector(dtype)[: into.size], weights.vector(dtype)[: into.size], into)
        return delta

    def _moved(self, weights: Bundle) -> Layout:
        """The layout of this task's delta. Raises ValueError if the module put a new tensor in a buffer's place: the delta
        would lack the new tensor, and the next client would start with it."""
        if (replaced := self.flat.replaced()) is not None:
            raise ValueError(f"buffer {replaced!r} was replaced, not changed: write self.{replaced}.copy_(...) in the module")
        moving = self.flat.layout.moving
        still = moving is self.flat.layout or self.flat.seen().ends_as(weights, moving)
        self.thin &= still  # a module may change a frozen one itself
        return moving if self.thin else self.flat.layout


class Difference(Scattered):
    """The delta local - start, made a piece at a time when it is looked at, in a piece of memory that stays in a core's cache.
    It is to be looked at before either changes. layout: of the delta, the first arrays of each dtype of theirs."""

    def __init__(self, layout: Layout, local: Bundle, start: Bundle) -> None:
        self.local, self.start, self.room = local, start, np.zeros(min(PIECE, layout.nbytes), np.uint8)
        super().__init__(layout, self._made)

    def _made(self) -> Iterator[Bytes]:
        ends = [*(first for first, _ in self.layout.segments.values()), self.layout.nbytes][1:]
        for (dtype, (first, last)), end in zip(self.layout.segments.items(), ends, strict=True):
            ours, theirs, size = self.local.vector(dtype), self.start.vector(dtype), DTYPES[dtype].itemsize
            for at in range(first, end, PIECE):
                piece = self.room[: min(PIECE, end - at)]
                into = piece[: min(last - at, piece.size)].view(DTYPES[dtype])
                where = slice((at - first) // size, (at - first) // size + into.size)
                _subtract(dtype, ours[where], theirs[where], into)
                piece[into.nbytes :] = 0  # up to where the next dtype begins
                yield piece


class _Data:
    """The clients' examples as tensors on the device, kept for later tasks up to a number of bytes."""

    def __init__(self, population: Population, device: torch.device, kept_bytes: int) -> None:
        self.population = population
        self.device = device
        self.free = kept_bytes
        self.kept: OrderedDict[int, Arrays] = OrderedDict()

    def of(self, client: int) -> Arrays:
        if client in self.kept:
            self.kept.move_to_end(client)
            return self.kept[client]
        examples = self.population.examples(client)
        if not len(examples):
            raise UserError(f"client {client} has no examples: a client must have at least 1")
        data = tensors(examples, self.device)
        self._keep(client, data)
        return data

    def _keep(self, client: int, data: Arrays) -> None:
        self.kept[client] = data
        self.free -= _nbytes(data)
        while self.free < 0:
            _, gone = self.kept.popitem(last=False)
            self.free += _nbytes(gone)


def _nbytes(data: tuple[Tensor, ...]) -> int:
    return sum(tensor.nbytes for tensor in data)


def _subtract(dtype: str, ours: npt.NDArray[Any], theirs: npt.NDArray[Any], into: npt.NDArray[Any]) -> None:
    """Write ours - theirs. numpy subtracts, except for bfloat16: for a small model, calling torch takes longer than the work.
    Entries of one byte stay values."""
    if dtype == "bf16":
        a, b, c = (as_tensor(each).view(torch.bfloat16) for each in (ours, theirs, into))
        torch.sub(a, b, out=c)
    elif dtype in VALUES:
        into[...] = ours
    else:
        with np.errstate(over="ignore"):  # the coordinator refuses a client whose delta is not finite
            np.subtract(ours, theirs, out=into)
