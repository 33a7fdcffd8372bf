"""Local training of a task's clients together: a step of many small models costs hardly more than a step of one.

The one idea: the weights of up to 64 clients are the rows of one matrix, and one step, traced (nets/tracing.py) or of a known
form (nets/stacked.py), makes a step of each. A client that has fewer examples than the others takes part with examples of
weight 0, and one that has fewer steps is not changed any more. The arithmetic is that of LocalSGD up to the rounding of sums.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from shoal.actors.workers.local_sgd import LocalSGD
from shoal.nets.evaluation import Arrays, Tally, ignored_label, over_classes, widened
from shoal.nets.stacked import Stack, stacked
from shoal.nets.tracing import Step, UnfitError, amiss, apiece, step_together
from shoal.nets.updates import UPDATES
from shoal.protocol.errors import UserError
from shoal.protocol.exact import PartialSum
from shoal.protocol.layout import Bundle
from shoal.protocol.work import Task, Totals, Work

SLOTS = (1, 2, 4, 8, 16, 32, 64)  # numbers of clients that a step is traced for; other numbers leave slots empty
TRACED, STACKED = 32, 64  # most clients in a step that is traced, and in one that is called without a trace
PAD = 64  # a row of weights is a multiple of so many float32, so that no vector instruction reaches from one row into the next
WHOLE = 64  # largest batch_size of which a client with fewer examples has whole batches, filled up with examples of weight 0

JOINED = 2**25  # most bytes of a group's data that are kept one after the other for the next group
GATHERED = 2**22  # bytes of examples that are put into the order of their steps at a time

Place: TypeAlias = tuple[str, int, tuple[int, ...]]
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
    """A client of a group. passes: places of the examples that each pass over its data uses, in order. steps: of all passes."""

    client: int
    data: Arrays
    passes: list[npt.NDArray[np.int64]]
    steps: int


@dataclass(slots=True)
class Trained:
    """Clients that were trained together. w: what they have trained, float32 [clients, entries]. totals: of each."""

    members: list[Member]
    w: npt.NDArray[np.float32]
    totals: list[Totals]


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
        sgd = worker.sgd
        plain = sgd is not None and not (sgd.momentum or sgd.weight_decay or worker.mu or worker.clip_grad_norm)
        several = self.dense is not None and self.dense.layers[-1].w.shape[0] > 1
        self.rate = sgd.lr if sgd is not None and plain and several else 0.0  # of steps that a Stack makes; 0: it makes none
        self.kinds: dict[Kind, Kind] = {}  # one object for all equal ones, told apart by `is`
        self.stacks: dict[int, Stack] = {}  # by the number of examples in a batch
        self.joined: tuple[list[Arrays], Arrays] = ([], Arrays())  # data of a group's clients, and the same one after the other

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
            groups, faults = self.trained(weights, some, task)
            placed = {one.client: (group, at) for group in groups for at, one in enumerate(group.members)}
            for client in some:
                if client in faults:
                    raise faults[client]
                group, at = placed[client]
                yield self._work(client, group, at, self._delta(weights, group.w[at]))

    @property
    def adds(self) -> bool:
        """True if the deltas of clients that are trained together are added together."""
        return self.dense is not None

    def add_all(self, weights: Bundle, clients: Sequence[int], task: Task, total: PartialSum) -> Iterator[Work]:
        """Yield the work of each client, without its delta, which is in `total` then. Raises as `run_all` does."""
        if task.kind != "train":
            yield from self.run_all(weights, clients, task)
            return
        for first in range(0, len(clients), self.most):
            some = clients[first : first + self.most]
            groups, faults = self.trained(weights, some, task)
            works: dict[int, Work] = {}
            for group in groups:
                for at, one in enumerate(group.members):
                    try:
                        works[one.client] = self._work(one.client, group, at)
                    except UserError as fault:  # of the user's weighting
                        faults[one.client] = fault
                if not faults:
                    its = [works[one.client].weight for one in group.members]
                    with np.errstate(over="ignore"):  # the sum refuses a client whose delta is not finite
                        deltas = np.subtract(group.w, weights.vector(), out=group.w)
                    refused = total.add_rows(deltas, its)
                    faults.update((group.members[at].client, fault) for at, fault in refused.items())
            for client in some:
                if client in faults:
                    raise faults[client]
                yield works[client]

    def trained(self, weights: Bundle, clients: Sequence[int], task: Task) -> tuple[list[Trained], dict[int, Exception]]:
        """Train at most `most` clients. Returns those that were trained, and client -> its own fault of the others."""
        found: dict[int, tuple[Kind, list[Member]]] = {}
        faults: dict[int, Exception] = {}
        for client in clients:
            try:
                member, kind = self._member(client, task)
            except Exception as raised:  # noqa: BLE001  a user's population may raise anything
                faults[client] = raised
            else:
                if (its := found.get(id(kind))) is None:
                    its = found[id(kind)] = kind, []
                its[1].append(member)
        self.worker.flat.read(weights)
        kinds: dict[Kind, list[Member]] = {}
        for kind, members in found.values():
            kinds.setdefault(kind, []).extend(members)
        groups = [group for kind, members in kinds.items() for group in self._apart(kind, members, task, faults)]
        return groups, faults

    def _work(self, client: int, group: Trained, at: int, delta: Bundle | None = None) -> Work:
        examples = float(group.members[at].data[1].shape[0])
        return Work(delta, self.worker._weight(client, examples), {**group.totals[at], "examples": (examples, 1.0)})

    def _delta(self, weights: Bundle, w: npt.NDArray[np.float32]) -> Bundle:
        worker = self.worker
        if self.dense is None:
            worker.flat.read(weights)
            worker.w.copy_(torch.from_numpy(w))
            return worker._delta(weights)
        delta = Bundle.zeros(worker.flat.layout)
        with np.errstate(over="ignore"):  # the coordinator refuses a client whose delta is not finite
            np.subtract(w, weights.vector(), out=delta.vector())
        return delta

    def _member(self, client: int, task: Task) -> tuple[Member, Kind]:
        worker = self.worker
        data = worker._examples(client, task)
        n, size = data[1].shape[0], worker.batch_size
        width = size if size <= WHOLE or n >= size else 1 << (n - 1).bit_length()
        shuffle, passes = worker._shuffle(client, task), list[npt.NDArray[np.int64]]()
        if worker.local_steps or worker.drop_last:
            passes.extend(worker._indices(n, shuffle))
            steps = sum(-(-order.size // size) for order in passes)
        else:
            passes.extend(shuffle.permutation(n) for _ in range(worker.local_epochs))
            steps = worker.local_epochs * -(-n // size)
        return Member(client, data, passes, steps), self._kind(width, data)

    def _kind(self, width: int, data: Arrays) -> Kind:
        """The kind of a client's data, which remember it: most clients come again."""
        kind = data.kind
        if not isinstance(kind, Kind) or kind.width != width:
            found = Kind(width, tuple((array.dtype, tuple(array.shape[1:])) for array in data), data.scale)
            kind = data.kind = self.kinds.setdefault(found, found)
        return kind

    def _apart(self, kind: Kind, members: list[Member], task: Task, faults: dict[int, Exception]) -> list[Trained]:
        """Train the members of a group. If the group raises, each trains by itself, and `faults` gets what it raises."""
        try:
            with torch.no_grad():
                return [self._together(kind, members, task)]
        except Exception as raised:  # noqa: BLE001  a user's module or loss may raise anything
            if len(members) == 1:
                faults[members[0].client] = raised
                return []
            return [one for each in members for one in self._apart(kind, [each], task, faults)]

    def _together(self, kind: Kind, members: list[Member], task: Task) -> Trained:
        worker = self.worker
        members = sorted(members, key=lambda one: -one.steps)
        quick = self.dense is not None and self.dense.takes(members[0].data)
        slots_of = int if quick else slots_for
        slots = slots_of(len(members))
        data, firsts = self._joined(members)
        index, there = laid(members, firsts, slots, kind.width, worker.batch_size)
        x, y, *given = data
        weight = there * widened(given[0])[index] if given else there
        y, counted = self._counted(widened(y), index, weight, bool(given))
        size = counted.sum(2, keepdim=True)
        share = counted / size.clamp(min=torch.finfo(torch.float32).tiny)
        lengths = np.array([one.steps for one in members])
        actives = np.count_nonzero(lengths > np.arange(index.shape[0])[:, None], 1).tolist()
        factor, scores = worker.factor_at(task.version), Scores(len(members), size[:, :, 0].double().numpy(), worker.tally)

        def batch(t: int, many: int, steps: int = 1) -> tuple[Tensor, Tensor]:
            chosen = index[t : t + steps, :many].flatten()
            xs = widened(x.index_select(0, chosen), kind.scale).view(steps * many, kind.width, *x.shape[1:])
            return xs, y.index_select(0, chosen).view(steps * many, kind.width, *y.shape[1:])

        if quick and self.rate:
            at_once = max(1, GATHERED // (4 * index[0].numel() * x[0].numel()))
            stack = self._stack(len(members), kind.width)
            stack.begin(len(members))
            for t in range(0, len(actives), at_once):
                some = slice(t, min(t + at_once, len(actives)))
                its = batch(t, slots, some.stop - t)
                scores.straight(some, *stack.steps(actives[some], *its, share[some], self.rate * factor), counted[some])
            return Trained(members, self._weights(stack, len(members)), scores.totals())
        group, still = Group(worker, self.places, slots, self.floats), tuple(self.still.values())
        for t, active in enumerate(actives):
            many = slots_of(active)
            xs, ys = batch(t, many)
            given_to = (*group.views(many), *still, xs, ys, share[t, :many])
            *grads, losses, logits = self.stacked(*given_to) if quick and self.stacked else self._step(kind, many, given_to)
            group.step(grads, many, active, factor, t + 1)
            scores.add(logits, ys, losses, counted[t, :many], active)
        return Trained(members, group.w[: len(members), : worker.flat.trainable].numpy(), scores.totals())

    def _joined(self, members: Sequence[Member]) -> tuple[Arrays, list[int]]:
        """The members' data one after the other, by their numbers, and where the data of each member begin. Kept for the next
        group, which has the same clients where a round has all."""
        ordered = sorted(members, key=lambda one: one.client)
        apart, (before, whole) = [one.data for one in ordered], self.joined
        if len(before) != len(apart) or not all(map(operator.is_, before, apart)):
            whole = Arrays(torch.cat([one[at] for one in apart]) for at in range(len(apart[0])))
            self.joined = (apart, whole) if sum(one.nbytes for one in whole) <= JOINED else ([], Arrays())
        firsts, at = dict[int, int](), 0
        for one in ordered:
            firsts[one.client] = at
            at += one.data[1].shape[0]
        return whole, [firsts[one.client] for one in members]

    def _stack(self, many: int, width: int) -> Stack:
        """The memory in which so many clients are trained."""
        assert self.dense is not None
        stack = self.stacks.get(width)
        if stack is None or stack.most < many:
            stack = self.stacks[width] = Stack(self.dense, many, width)
        return stack

    def _weights(self, stack: Stack, clients: int) -> npt.NDArray[np.float32]:
        w = np.empty((clients, self.worker.flat.trainable), np.float32)
        for (_, first, shape), its in zip(self.places, stack.parts(clients), strict=True):
            w[:, first : first + math.prod(shape)] = its
        return w

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


def laid(members: Sequence[Member], firsts: Sequence[int], slots: int, width: int, size: int) -> tuple[Tensor, Tensor]:
    """(int64, float32), each [steps, slots, width]: the places of a step's examples in the members' joined data, and 1 where
    there is an example, 0 where a place is filled up. Members come with most steps first. firsts: where the data of each begin.
    size: of a batch; of a pass all batches but the last have it."""
    places = np.full((slots, members[0].steps * width), -1, np.int64)
    for client, (one, first) in enumerate(zip(members, firsts, strict=True)):
        at = 0
        for order in one.passes:
            np.add(order, first, out=places[client, at : at + order.size])
            at += -(-order.size // size) * width
    index = places.reshape(slots, -1, width).transpose(1, 0, 2)
    return torch.from_numpy(np.maximum(index, 0, order="C")), torch.from_numpy((index >= 0).astype(np.float32, order="C"))


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
    """The losses and hits of clients that are trained together. sizes: weights of the batches, [steps, clients or more]. rule:
    says where logits are scores of classes."""

    def __init__(self, clients: int, sizes: npt.NDArray[np.float64], rule: Tally) -> None:
        self.clients, self.sizes, self.rule = clients, sizes[:, :clients], rule
        self.losses = np.zeros(self.sizes.shape)
        self.steps = 0
        self.scored: list[tuple[Tensor, Tensor, Tensor]] = []
        self.right, self.labels = np.zeros(clients), np.zeros(clients)  # hits, and labels that may be hit

    def add(self, logits: Tensor, y: Tensor, losses: Tensor, counted: Tensor, active: int) -> None:
        """Add a step of the first `active` clients. logits and y [slots, B, ...], losses [slots]. counted [slots, B]: 0 where
        there is no example, or an ignored one."""
        self.losses[self.steps, :active] = losses[:active].numpy()
        self.steps += 1
        if self.rule.scores(logits[0], y[0]):
            self.scored.append((logits, y, counted))

    def straight(self, steps: slice, logits: Tensor, y: Tensor, losses: Tensor, counted: Tensor) -> None:
        """Take several steps at once: logits [steps, clients, B, classes], y and counted [steps, clients, B], losses [steps,
        clients]. Each y is a class."""
        self.losses[steps] = losses.numpy()
        valid = counted.numpy() > 0
        self.right += (valid & (logits.argmax(3) == y).numpy()).sum((0, 2))
        self.labels += valid.sum((0, 2))

    def totals(self) -> list[Totals]:
        """The totals of each client, as `Tally.totals` gives them."""
        sums = (self.losses * self.sizes).sum(0).tolist(), self.sizes.sum(0).tolist()
        told: list[dict[str, tuple[float, float]]] = [{"loss": pair} for pair in zip(*sums, strict=True)]
        if self.scored:
            self._score()
        for one, right, labels in zip(told, self.right.tolist(), self.labels.tolist(), strict=True):
            if labels > 0:
                one["accuracy"] = (right, labels)
        return [*told]

    def _score(self) -> None:
        """Count hits and labels of each client; no label where a client has a class that the module does not know."""
        logits, ys, there = zip(*self.scored, strict=True)
        guesses = torch.cat([one.flatten(0, 1) for one in logits]).argmax(1).flatten().numpy()
        truths = torch.cat([one.flatten() for one in ys]).numpy()
        owner = np.concatenate([np.repeat(np.arange(one.shape[0]), one[0].numel()) for one in ys])
        spread = [one.view(*one.shape, *[1] * (y.ndim - 2)).expand(y.shape).flatten() for one, y in zip(there, ys, strict=True)]
        valid = (torch.cat(spread).numpy() > 0) & (truths >= 0)
        most = max(self.clients, *(one.shape[0] for one in ys))  # slots without a client have no example
        labels = np.bincount(owner, valid, most)
        labels[np.bincount(owner, valid & (truths >= logits[-1].shape[2]), most) > 0] = 0
        self.right += np.bincount(owner, valid & (guesses == truths), most)[: self.clients]
        self.labels += labels[: self.clients]
