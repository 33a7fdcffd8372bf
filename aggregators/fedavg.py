"""Federated averaging (McMahan et al. 2017), and the frame of servers that do something else with the average.

The one idea: contributions are deltas, and their weighted mean is a direction to go. FedAvg goes all the way; an `Update`
(nets/updates.py, fedopt.py) treats the mean as a pseudo-gradient. One accumulator serves a cohort of any size.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from shoal.aggregators import State
from shoal.aggregators.buffers import Weights
from shoal.aggregators.summing import BLOCKS, Turning, make_sum
from shoal.nets.flat import as_tensor, segment
from shoal.nets.updates import SGD, Update, tried
from shoal.protocol.errors import ProtocolError
from shoal.protocol.exact import VALUES, PartialSum, averaged
from shoal.protocol.grid import GRID
from shoal.protocol.layout import Bundle, Layout
from shoal.protocol.work import Contribution, Moved

SHORT = 2**15  # entries of a model up to which a step by numpy is faster than one by torch


class FedAvgServer:
    """w <- w + update(sum(weight * delta) / sum(weight)).

    update: optimizer of the first `trainable` float32 entries (trainable=None: all). update=None: SGD(lr).
    The other float32 entries (frozen parameters, batch normalisation's statistics) and float16, bfloat16 and float64 entries
    move by the plain mean. Integers (counters) move by the mean, rounded to a whole number. Contributions hold
    values of b1, u1 and i1, not differences: booleans become the weighted majority (a tie changes nothing), one-byte integers
    the weighted mean, rounded to a whole number.
    The arithmetic is float64, one block of entries at a time, rounded once.

    shares: clients whose contributions make a step, at most: each may have one share of the range of the sum, and no more.
    deterministic: True gives the same bits for any order of arrival and any partial sums (protocol/grid.py). False takes
    plain float32 sums, faster.
    Memory: the weights, one total (8 bytes an entry; plain: 4) and 4 bytes an entry for each moment. An exact total needs the
    weights once more while others look at the last ones. A plain total becomes the next weights in place.
    Raises UserError for a setting out of range.
    """

    linear: ClassVar[bool] = True

    def __init__(
        self,
        weights: Bundle,
        trainable: int | None = None,
        *,
        lr: float = 1.0,
        update: Update | None = None,
        device: torch.device | str = "cpu",
        deterministic: bool = True,
        shares: int = 1,
    ) -> None:
        self.layout, self.device = weights.layout, torch.device(device)
        self.update = SGD(lr) if update is None else tried(update, "update")
        self.current = Weights(weights, self.device)
        entries = averaged(self.layout).get("f4", 0)
        self.trainable = entries if trainable is None else trainable
        if not 0 <= self.trainable <= entries:
            has = f"the weights have {entries} float32 entries"
            raise ValueError(f"trainable={trainable}: {has}; must be a number from 0 to that")
        self.sum = make_sum(self.current, self.device, deterministic)
        self.sum.gauge.shares = shares
        self.unit = GRID if deterministic else 1.0
        self.block = BLOCKS.get(self.device.type, BLOCKS["cuda"])
        sgd = self.update
        plain = type(sgd) is SGD and not (sgd.momentum or sgd.weight_decay)
        alone = [*self.layout.segments] == ["f4"] and 0 < self.trainable == entries <= SHORT
        own = type(self)._learn is not FedAvgServer._learn
        self.short = plain and alone and not own and self.device.type == "cpu"  # a step is made by numpy
        self.steps = 0
        self.moments = {
            name: torch.full((self.trainable,), start, device=self.device) for name, start in self.update.moments.items()
        }

    def weights(self) -> Bundle:
        return self.current.bundle()

    def fold(self, contribution: Contribution) -> None:
        """Raises ProtocolError, nothing added, for another layout, NaN, an infinity, or an entry out of grid.py's range."""
        if not contribution.summed:
            self.sum.add(contribution.bundle, self.weight_of(contribution), contribution.norm)
        elif self.linear:
            self.sum.merge(contribution.bundle, contribution.work.weight, len(contribution.task.clients) or 1)
        else:
            raise ProtocolError("this aggregator weighs each contribution by itself; it takes no sums, and this one is a sum")

    def weight_of(self, contribution: Contribution) -> float:
        return contribution.work.weight

    def divisor(self) -> float:
        return self.sum.weight

    def step(self) -> Moved:
        """Metrics: examples (the sum of weights) and update_norm (L2 norm of the trainable entries' move).

        Raises RuntimeError if nothing was folded in. Arrays in shared memory can change between their check and the sum, so
        the sum is checked again: RuntimeError if it holds NaN, or more than was counted into it. Neither is ever published.
        """
        if not self.sum.weight:
            raise RuntimeError("step(): nothing folded in since the last step; expected at least one contribution")
        if self.short and isinstance(self.sum, PartialSum):
            return self._moved(*self._short(self.sum.totals["f4"], self.unit / self.divisor()))
        spare = self.sum.turn() if isinstance(self.sum, Turning) else self.current.spare()
        move = Move(self.current.raw, spare, self.layout, self.sum.totals, self.unit / self.divisor(), self.block)
        square = torch.zeros((), dtype=torch.float64, device=self.device)
        for where in self._blocks(0, self.trainable):
            square += self._learn(move, where)
        for dtype in self.sum.totals:
            for where in self._blocks(self.trainable if dtype == "f4" else 0, len(move.after[dtype])):
                self._average(move, dtype, where)
        return self._moved(float(square), float(move.most), move.finished())

    def _moved(self, square: float, most: float, following: Tensor) -> Moved:
        """End a step. square: squared length of the move. most: largest |mean|. following: the next weights."""
        if not most * self.divisor() <= 2 * self.sum.gauge.reach:  # twice, to leave room for rounding
            raise RuntimeError("a sum holds more than was counted into it: a contribution changed while it was folded in")
        examples = self.sum.weight
        self.current.become(following)
        self._clear()
        self.steps += 1
        return Moved({"examples": examples, "update_norm": math.sqrt(square)})

    def _short(self, total: npt.NDArray[np.int64], scale: float) -> tuple[float, float, Tensor]:
        """Make the step of a small model by numpy, in the operations of `_learn`: torch's calls would take longer than they
        work. Returns the squared length of the move, the largest |mean|, and the next weights."""
        update = torch.empty(len(total), dtype=torch.float64)
        mean = update.numpy()
        spare = self.current.spare()
        after, before = (segment(raw, self.layout, "f4").numpy() for raw in (spare, self.current.raw))
        with np.errstate(over="ignore", invalid="ignore"):  # as torch does: what is not finite is refused after the step
            np.copyto(mean, total, casting="same_kind")
            np.multiply(mean, scale, mean)
            most = max(float(mean.max()), -float(mean.min()))
            if (lr := getattr(self.update, "lr", 1.0)) != 1:
                np.multiply(mean, lr, mean)
            square = float(update.dot(update))
            np.add(mean, before, mean)
            np.copyto(after, mean, casting="same_kind")
        return square, most, spare

    def _blocks(self, first: int, last: int) -> Iterator[slice]:
        return (slice(start, min(start + self.block, last)) for start in range(first, last, self.block))

    def _learn(self, move: Move, where: slice) -> Tensor:
        """Move the trainable entries in `where` by the update. Returns the squared length of the move."""
        held = [moment[where] for moment in self.moments.values()]
        delta, before = move.mean("f4", where), move.before["f4"][where]
        update, *new = self.update(before, delta, self.steps + 1, *(moment.double() for moment in held))
        for moment, value in zip(held, new, strict=True):
            moment.copy_(value)
        square = update.dot(update)
        move.after["f4"][where] = update.add_(before)
        return square

    def _average(self, move: Move, dtype: str, where: slice) -> None:
        before, mean = move.before[dtype][where], move.mean(dtype, where)
        if dtype in VALUES:
            total, weight = move.totals[dtype][where].double().mul_(self.unit), self.sum.weight
            if dtype == "b1":
                move.after[dtype][where] = torch.where(total == weight / 2, before, total > weight / 2)
            else:
                range_ = torch.iinfo(before.dtype)
                move.after[dtype][where] = (total / weight).round_().clamp_(range_.min, range_.max).to(before.dtype)
        elif before.dtype.is_floating_point:
            move.after[dtype][where] = mean.add_(before)
        else:
            move.after[dtype][where] = before + mean.round_().to(before.dtype)

    def _clear(self) -> None:
        self.sum.clear()

    def state(self) -> State:
        """The number of steps made, "steps", int64 [], and each moment by name, float32 [trainable]."""
        moments = {name: moment.cpu().numpy().copy() for name, moment in self.moments.items()}
        return {"steps": np.array(self.steps, np.int64), **moments}

    def load(self, weights: Bundle, state: State) -> None:
        """Go on from weights and state as `weights` and `state` returned them. Contributions folded since are forgotten.

        Raises ValueError, with nothing changed, if weights or state do not fit.
        """
        self.layout.expect(weights.layout)
        for name, shape in {"steps": (), **{name: moment.shape for name, moment in self.moments.items()}}.items():
            if name not in state or state[name].shape != shape:
                found = f"shape {list(state[name].shape)}" if name in state else "nothing"
                raise ValueError(f"saved state: {name!r} must have shape {list(shape)}, found {found}")
        self.current.load(weights)
        self.steps = int(state["steps"])
        for name, moment in self.moments.items():
            moment.copy_(as_tensor(state[name]))
        self._clear()


class Move:
    """A move from the weights in `raw` to the next weights in `spare`, which may be the same memory, by the mean of a sum.

    before, after: dtype -> all entries of that dtype, flat. most: the largest |mean| so far, on the device; NaN if any was NaN.
    scale: factor from a total to its mean. block: number of entries worked on at once, in one reused buffer, because fresh
    memory costs page faults.
    """

    def __init__(self, raw: Tensor, spare: Tensor, layout: Layout, totals: Mapping[str, Any], scale: float, block: int) -> None:
        self.raw, self.spare, self.layout, self.scale = raw, spare, layout, scale
        self.before = {dtype: segment(raw, layout, dtype) for dtype in layout.segments}
        self.after = {dtype: segment(spare, layout, dtype) for dtype in layout.segments}
        self.totals = {dtype: torch.as_tensor(total) for dtype, total in totals.items()}
        self.most = torch.zeros((), dtype=torch.float64, device=raw.device)
        entries = max(map(len, self.totals.values()), default=0)
        self._mean = torch.empty(min(block, entries), dtype=torch.float64, device=raw.device)

    def mean(self, dtype: str, where: slice) -> Tensor:
        """The means of the entries in `where`, float64. The caller may change them; they are valid until the next call."""
        mean = self._mean[: where.stop - where.start].copy_(self.totals[dtype][where]).mul_(self.scale)
        low, high = mean.aminmax()
        self.most = torch.maximum(self.most, torch.maximum(high, -low))
        return mean

    def finished(self) -> Tensor:
        """The next weights. Entries of dtypes that have no mean stay as they were."""
        if self.spare is not self.raw:
            for dtype in self.before.keys() - self.totals.keys():
                self.after[dtype].copy_(self.before[dtype])
        return self.spare
