"""Local training of a task's clients together: a step of many small models costs hardly more than a step of one.

The one idea: the weights of up to 64 clients are the rows of one matrix, and one step, traced (nets/tracing.py) or of a known
form (nets/stacked.py), makes a step of each. A client that has fewer examples than the others takes part with examples of
weight 0, and one that has fewer steps is not changed any more. The arithmetic is that of LocalSGD up to the rounding of sums.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from shoal.actors.workers.local_sgd import LocalSGD
from shoal.nets.evaluation import Arrays, Tally, ignored_label, over_classes, widened
from shoal.nets.stacked import stacked
from shoal.nets.tracing import Step, UnfitError, amiss, apiece, step_together
from shoal.nets.updates import UPDATES
from shoal.protocol.errors import UserError
from shoal.protocol.layout import Bundle
from shoal.protocol.work import Task, Totals, Work

SLOTS = (1, 2, 4, 8, 16, 32, 64)  # numbers of clients that a step is traced for; other numbers leave slots empty
TRACED, STACKED = 32, 64  # most clients in a step that is traced, and in one that is called without a trace
PAD = 64  # a row of weights is a multiple of so many float32, so that no vector instruction reaches from one row into the next
WHOLE = 64  # largest batch_size of which a client with fewer examples has whole batches, filled up with examples of weight 0

Place = tuple[str, int, tuple[int, ...]]
"""A trained parameter: its name, its first entry in a row of weights, its shape."""


def unfit(worker: LocalSGD) -> str:
    """Return why the clients of this worker cannot be trained together, as far as its parts show that; "" if they do not."""
    if type(worker) is not LocalSGD:
        return f"{type(worker).__name__} trains a client in a way of its own"
    if worker.flat.device.type != "cpu":
        return f"it computes on {worker.flat.device.type}, and clients are trained together on the CPU"
    if type(worker.update) not in UPDATES.values():
        name = type(worker.update).__name__
        return f"the optimizer {name} is no built-in one, and may look at all of a client's weights at once"
    if worker.squares:
        return "a selection wants the squares of each example's loss"
    if apiece(worker.loss) is None:
        return "its loss is one number a batch, which may be no mean over examples"
    return amiss(worker.flat.module)


def together(worker: LocalSGD) -> Batched:
    """Return the worker that trains the clients of a task together. Raises UserError, one line, if they cannot be."""
    try:
        return Batched(worker)
    except UnfitError as why:
        raise UserError(f"engine=batched: {why}; engine=loop") from None


@dataclass(frozen=True, slots=True)
class Kind:
    """Clients that can be trained together: of one number of examples in a batch, with arrays of the same dtypes and shapes."""

    width: int
    arrays: tuple[tuple[torch.dtype, tuple[int, ...]], ...]
    scale: float


@dataclass(slots=True)
class Member:
    """A client of a group. rows: int64 [steps, width], places of a step's examples in its data; -1: the step has no more."""

    client: int
    data: Arrays
    rows: npt.NDArray[np.int64]


@dataclass(slots=True)
class Trained:
    """The result of a client: its trained weights, and its totals."""

    vector: Tensor
    totals: Totals
    examples: float


class Batched:
    """A worker that trains the clients of a task together, and does all else as `worker` does it. Raises UnfitError if `unfit`
    finds why that cannot be."""

    def __init__(self, worker: LocalSGD) -> None:
        if why := unfit(worker):
            raise UnfitError(why)
        self.worker = worker
        flat = worker.flat
        trained = {name for name, one in flat.module.named_parameters() if one.requires_grad}
        first = flat.layout.segments["f4"][0]
        self.places: list[Place] = [
            (place.name, (place.offset - first) // 4, tuple(place.shape))
            for place in flat.layout.places
            if place.name in trained
        ]
        others = {**dict(flat.module.named_parameters()), **dict(flat.module.named_buffers())}
        self.still = {name: tensor.detach() for name, tensor in others.items() if name not in trained}  # views of flat.raw
        self.floats = -(-flat.trainable // PAD) * PAD
        self.ignored = ignored_label(worker.loss) if over_classes(worker.loss) else None
        self.steps: dict[tuple[Kind, int], Step] = {}
        self.dense = worker.dense  # whose steps need no trace, and whose weights are all trained
        self.stacked = None if worker.dense is None else stacked(worker.dense)
        self.most = TRACED if self.stacked is None else STACKED

    @property
    def thin(self) -> bool:
        return self.worker.thin

    @thin.setter
    def thin(self, value: bool) -> None:
        self.worker.thin = value

    def run(self, weights: Bundle, client: int, task: Task, brief: Bundle | None = None) -> Work:
        if task.kind != "train":
            return self.worker.run(weights, client, task, brief)
        return next(self.run_all(weights, (client,), task))

    def run_all(self, weights: Bundle, clients: Sequence[int], task: Task) -> Iterator[Work]:
        """Yield the work of each client. What a client's data, or its training, raises is raised when its turn comes."""
        if task.kind != "train":
            yield from (self.worker.run(weights, client, task) for client in clients)
            return
        for first in range(0, len(clients), self.most):
            some = clients[first : first + self.most]
            done = self.trained(weights, some, task)
            for client in some:
                yield self._work(weights, client, done[client])

    def trained(self, weights: Bundle, clients: Sequence[int], task: Task) -> dict[int, Trained | Exception]:
        """Client -> its result, or its own fault, of at most `most` clients."""
        kinds: dict[Kind, list[Member]] = {}
        done: dict[int, Trained | Exception] = {}
        for client in clients:
            try:
                member, kind = self._member(client, task)
            except Exception as raised:  # noqa: BLE001  a user's population may raise anything
                done[client] = raised
            else:
                kinds.setdefault(kind, []).append(member)
        self.worker.flat.read(weights)
        for kind, members in kinds.items():
            done |= self._apart(kind, members, task)
        return done

    def _work(self, weights: Bundle, client: int, done: Trained | Exception) -> Work:
        if isinstance(done, Exception):
            raise done
        worker = self.worker
        if self.dense is None:
            worker.flat.read(weights)
            worker.w.copy_(done.vector)
            delta = worker._delta(weights)
        else:
            delta = Bundle.zeros(worker.flat.layout)
            np.subtract(done.vector.numpy(), weights.vector(), out=delta.vector())
        weight = worker._weight(client, done.examples)
        return Work(delta, weight, {**done.totals, "examples": (done.examples, 1.0)})

    def _member(self, client: int, task: Task) -> tuple[Member, Kind]:
        worker = self.worker
        data = worker._examples(client, task)
        n, size = data[1].shape[0], worker.batch_size
        width = size if size <= WHOLE or n >= size else 1 << (n - 1).bit_length()
        rows = []
        for order in worker._indices(n, worker._shuffle(client, task)):
            laid = np.full(-(-order.size // size) * width, -1, np.int64)
            laid[: order.size] = order  # of several batches all but the last are `width` long
            rows.append(laid.reshape(-1, width))
        kind = Kind(width, tuple((array.dtype, tuple(array.shape[1:])) for array in data), data.scale)
        return Member(client, data, rows[0] if len(rows) == 1 else np.concatenate(rows)), kind

    def _apart(self, kind: Kind, members: list[Member], task: Task) -> Mapping[int, Trained | Exception]:
        """Client -> the result of each member of a group. If the group raises, each trains by itself."""
        try:
            with torch.no_grad():
                return self._together(kind, members, task)
        except Exception as raised:  # noqa: BLE001  a user's module or loss may raise anything
            if len(members) == 1:
                return {members[0].client: raised}
            return {client: one for each in members for client, one in self._apart(kind, [each], task).items()}

    def _together(self, kind: Kind, members: list[Member], task: Task) -> dict[int, Trained | Exception]:
        worker, trainable = self.worker, self.worker.flat.trainable
        members = sorted(members, key=lambda one: -len(one.rows))
        lengths = np.array([len(one.rows) for one in members])
        quick = self.stacked if self.dense is not None and self.dense.takes(members[0].data) else None
        slots_of = slots_for if quick is None else int
        group, factor = Group(worker, self.places, slots_of(len(members)), self.floats), worker.factor_at(task.version)
        index, there = laid(members, slots_of(len(members)), kind.width)
        x, y, *given = (torch.cat([one.data[at] for one in members]) for at in range(len(kind.arrays)))
        weight = there * widened(given[0])[index] if given else there
        y, counted = self._counted(widened(y), index, weight, bool(given))
        size = counted.sum(2, keepdim=True)
        share = counted / size.clamp(min=torch.finfo(torch.float32).tiny)
        sizes = size[:, :, 0].double().numpy()
        scores = Scores(len(members), worker.tally)
        still = tuple(self.still.values())
        for t in range(index.shape[0]):
            active = int(np.count_nonzero(lengths > t))
            slots = slots_of(active)
            chosen = index[t, :slots].flatten()
            xs = widened(x.index_select(0, chosen), kind.scale).view(slots, kind.width, *x.shape[1:])
            ys = y.index_select(0, chosen).view(slots, kind.width, *y.shape[1:])
            given_to = (*group.views(slots), *still, xs, ys, share[t, :slots])
            *grads, losses, logits = self._step(kind, slots, given_to) if quick is None else quick(*given_to)
            group.step(grads, slots, active, factor, t + 1)
            scores.add(logits, ys, losses, sizes[t], counted[t, :slots], active)
        totals = scores.totals()
        return {
            one.client: Trained(group.w[at, :trainable], totals[at], float(one.data[1].shape[0]))
            for at, one in enumerate(members)
        }

    def _counted(self, y: Tensor, index: Tensor, weight: Tensor, weighted: bool) -> tuple[Tensor, Tensor]:
        """Return labels without the ignored one, and the weights of examples with 0 for these, which a mean leaves out."""
        if self.ignored is None or y.is_floating_point() or not (out := y == self.ignored).any():
            return y, weight
        if y.ndim > 1 or weighted:
            raise UnfitError("labels are ignored that are some of an example's, or have weights")
        return y.masked_fill(out, 0), weight * ~out[index]

    def _step(self, kind: Kind, slots: int, tensors: tuple[Tensor, ...]) -> Sequence[Tensor]:
        if (step := self.steps.get((kind, slots))) is None:
            each = apiece(self.worker.loss)
            assert each is not None  # `unfit` has looked
            names = [name for name, *_ in self.places]
            step = step_together(self.worker.flat.module, names, list(self.still), each, *tensors)
            self.steps[kind, slots] = step
        return step(*tensors)


def slots_for(clients: int) -> int:
    """Return the number of slots in which so many clients are trained."""
    return next(slots for slots in SLOTS if slots >= clients)


def laid(members: Sequence[Member], slots: int, width: int) -> tuple[Tensor, Tensor]:
    """(int64, float32), each [steps, slots, width]: the places of a step's examples in the members' joined data, and 1 where
    there is an example, 0 where a place is filled up. Members come with most steps first."""
    index = np.zeros((len(members[0].rows), slots, width), np.int64)
    there = np.zeros(index.shape, np.float32)
    before = 0
    for at, one in enumerate(members):
        found = one.rows >= 0
        index[: len(found), at] = np.where(found, one.rows, 0) + before
        there[: len(found), at] = found
        before += one.data[1].shape[0]
    return torch.from_numpy(index), torch.from_numpy(there)


class Group:
    """The weights of clients that are trained together, w: float32 [slots, floats], and the steps of their optimizer."""

    def __init__(self, worker: LocalSGD, places: Sequence[Place], slots: int, floats: int) -> None:
        self.worker, self.places, sgd = worker, places, worker.sgd
        self.w = torch.zeros(slots, floats)
        self.w[:, : worker.flat.trainable] = worker.w
        self.plain = sgd is not None and not (sgd.weight_decay or sgd.momentum or worker.mu or worker.clip_grad_norm)
        self.grad = torch.zeros(0 if self.plain else slots, floats)
        self.start = self.w[0].clone() if worker.mu else None
        self.moments = [torch.full_like(self.w, first) for first in worker.update.moments.values()]
        self._views: dict[int, list[Tensor]] = {}

    def views(self, many: int) -> list[Tensor]:
        """The parameters of the first clients, each [many, ...]."""
        if many not in self._views:
            self._views[many] = self._parts(self.w[:many])
        return self._views[many]

    def _parts(self, rows: Tensor) -> list[Tensor]:
        many = rows.shape[0]
        return [rows[:, at : at + math.prod(shape)].view(many, *shape) for _, at, shape in self.places]

    def step(self, grads: list[Tensor], slots: int, active: int, factor: float, t: int) -> None:
        """Make step t of the first `active` clients, by the formulas of LocalSGD. grads: of each parameter, [slots, ...]."""
        worker, sgd = self.worker, self.worker.sgd
        if active < slots:
            grads = [one[:active] for one in grads]
        if self.plain and sgd is not None:
            torch._foreach_add_(self.views(active), grads, alpha=-sgd.lr * factor)
            return
        w, step = self.w[:active], self.grad[:active]
        torch._foreach_copy_(self._parts(step), grads)
        if self.start is not None:
            step.add_(w - self.start, alpha=worker.mu)
        if worker.clip_grad_norm:
            step.mul_((worker.clip_grad_norm / (step.norm(dim=1, keepdim=True) + 1e-6)).clamp(max=1.0))
        if sgd is None:
            update, *moments = worker.update(w, step.neg_(), t, *(one[:active] for one in self.moments))
            for into, one in zip(self.moments, moments, strict=True):
                into[:active] = one
            w.add_(update, alpha=factor)
            return
        if sgd.weight_decay:
            step.add_(w, alpha=sgd.weight_decay)
        if sgd.momentum:
            step = self.moments[0][:active].mul_(sgd.momentum).add_(step)
        w.add_(step, alpha=-sgd.lr * factor)


class Scores:
    """The losses and hits of clients that are trained together. rule: says where logits are scores of classes."""

    def __init__(self, clients: int, rule: Tally) -> None:
        self.clients, self.rule = clients, rule
        self.loss, self.size = np.zeros(clients), np.zeros(clients)
        self.scored: list[tuple[Tensor, Tensor, Tensor]] = []

    def add(
        self, logits: Tensor, y: Tensor, losses: Tensor, sizes: npt.NDArray[np.float64], counted: Tensor, active: int
    ) -> None:
        """Add a step of the first `active` clients. logits and y [slots, B, ...], losses [slots]. sizes: of the batches.
        counted [slots, B]: 0 where there is no example, or an ignored one."""
        self.loss[:active] += losses[:active].double().numpy() * sizes[:active]
        self.size[:active] += sizes[:active]
        if self.rule.scores(logits[0], y[0]):
            self.scored.append((logits, y, counted))

    def totals(self) -> list[dict[str, tuple[float, float]]]:
        """The totals of each client, as `Tally.totals` gives them."""
        told = [{"loss": pair} for pair in zip(self.loss.tolist(), self.size.tolist(), strict=True)]
        if self.scored:
            for one, hit, labels in zip(told, *self._hits(), strict=True):
                if labels > 0:
                    one["accuracy"] = (hit, labels)
        return told

    def _hits(self) -> tuple[list[float], list[float]]:
        """Hits and labels of each client; no label where a client has a class that the module does not know."""
        logits, ys, there = zip(*self.scored, strict=True)
        guesses = torch.cat([one.flatten(0, 1) for one in logits]).argmax(1).flatten().numpy()
        truths = torch.cat([one.flatten() for one in ys]).numpy()
        owner = np.concatenate([np.repeat(np.arange(one.shape[0]), one[0].numel()) for one in ys])
        spread = [one.view(*one.shape, *[1] * (y.ndim - 2)).expand(y.shape).flatten() for one, y in zip(there, ys, strict=True)]
        valid = (torch.cat(spread).numpy() > 0) & (truths >= 0)
        most = max(self.clients, *(one.shape[0] for one in ys))  # slots without a client have no example
        labels = np.bincount(owner, valid, most)
        labels[np.bincount(owner, valid & (truths >= logits[-1].shape[2]), most) > 0] = 0
        return np.bincount(owner, valid & (guesses == truths), most)[: self.clients].tolist(), labels[: self.clients].tolist()
