"""Central differential privacy around an aggregator: clipping, noise on the sum, a fixed denominator (McMahan et al. 2018).

The one idea: the inner aggregator gets one contribution a step, the noised sum, whose weight is the expected number of clients.
So every linear aggregator, whatever its optimizer, sees nothing that was not noised. The noise follows from a secret, the
version and the sum itself: the same sum of the same version has the same noise, so making a version again after a crash tells
nothing new, and another sum has noise of its own and is charged again.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from shoal.aggregators import Aggregator, State
from shoal.aggregators.around import Around
from shoal.protocol.errors import ProtocolError, UserError
from shoal.protocol.exact import VALUES, PartialSum
from shoal.protocol.grid import GRID
from shoal.protocol.layout import Bundle, Layout
from shoal.protocol.private import CLIP_NORM, UNCLIPPED, clipped, gaussian, key_of, number
from shoal.protocol.work import Contribution, Moved, Task, Work

STEPS, CLIP = "private_steps", "private_clip_norm"


@dataclass(frozen=True)
class Noise:
    """The settings of Noised.

    multiplier: standard deviation of the noise on the sum and, if the clipping norm adapts, on the count of unclipped clients,
    taken together as one vector in units of its sensitivity (the accountant's noise multiplier). clip_norm: the norm that a
    client's delta is clipped to, or its first value. quantile: 0, or the share of clients that the adapted norm leaves
    unclipped (the gamma of Andrew et al. 2021). rate: learning rate of the norm (their eta_C). count_stddev: standard deviation
    of the noise on the count (their sigma_b), above multiplier / 2. denominator: expected number of clients in a step.
    """

    multiplier: float
    clip_norm: float
    denominator: int
    quantile: float = 0.0
    rate: float = 0.2
    count_stddev: float = 0.0

    @property
    def on_sum(self) -> float:
        """Standard deviation of the noise on the sum, in units of the clipping norm (Andrew et al. 2021, theorem 1)."""
        if not self.quantile or not self.multiplier:
            return self.multiplier
        return 1 / math.sqrt(self.multiplier**-2 - (2 * self.count_stddev) ** -2)


class Noised(Around):
    """A linear aggregator whose steps see sum(clip(delta)) + N(0, (on_sum * clip_norm)^2) over the fixed denominator.

    secret: 32 bytes. charge: (version, tag) -> metrics; called, and done when it returns, before the noised sum exists outside
    of this object. It raises UserError if the budget has no room for this version. tag: of the sum that the version is made
    of, 64 hexadecimal digits that tell nothing about it. charged: () -> number of charges.
    each: True clips each client's delta here; False takes sums of deltas that workers clipped (actors/workers/private.py).

    If the clipping norm adapts, it follows clip_norm * exp(-rate * (b - quantile)), where b is the noised share of unclipped
    clients over the same denominator. A step of no contribution is a step of noise alone, as Poisson sampling asks for.
    Only trained float32 entries move: buffers stay as they are, because no noise covers them.
    Metrics: those of `charge`, `clip_norm`, and `noise_stddev` of an entry of the mean.
    Memory: 8 bytes an entry, beside the inner aggregator's own.
    """

    def __init__(
        self,
        aggregator: Aggregator,
        noise: Noise,
        *,
        secret: bytes,
        charge: Callable[[int, str], dict[str, float]],
        charged: Callable[[], int],
        each: bool = True,
        trainable: int | None = None,
        clients: int = 1,
    ) -> None:
        super().__init__(aggregator)
        self.noise, self.each, self.secret = noise, each, secret
        self.charge, self.charged = charge, charged
        layout = aggregator.weights().layout
        self.trainable = check_covered(layout, trainable)
        self.sum = PartialSum(layout)
        self.sum.gauge.shares = clients
        self.clip_norm = noise.clip_norm
        self.steps = self.unclipped = self.members = 0

    @property
    def linear(self) -> bool:
        return not self.each

    def fold(self, contribution: Contribution) -> None:
        """Raises ProtocolError, with nothing added, for NaN, an infinity, a sum whose weights are not 1 a client, and, if the
        clipping norm adapts, a sum without the number of its unclipped clients."""
        many, weight = len(contribution.task.clients) or 1, contribution.work.weight
        if contribution.summed == self.each:
            raise ProtocolError(
                "expected the delta of one client, found a sum" if self.each else "expected a sum of clipped deltas"
            )
        if weight != (many if contribution.summed else 1.0):
            raise ProtocolError(f"weight {weight:g} of {many} clients: with a fixed denominator each client weighs 1")
        if contribution.summed:
            unclipped = self._told(contribution, many)
            self.sum.merge(contribution.bundle, weight, many)
            self.unclipped += unclipped
        else:
            bundle, scaled = clipped(contribution.bundle, self.clip_norm)
            self.sum.add(bundle, 1.0)
            self.unclipped += not scaled
        self.members += many

    def _told(self, contribution: Contribution, many: int) -> int:
        """The number of unclipped clients in a sum, as its actor counted them; 0 if the clipping norm stays as it is."""
        if not self.noise.quantile:
            return 0
        unclipped, of = contribution.work.totals.get(UNCLIPPED, (0.0, 0.0))
        if of != many or not 0 <= unclipped <= many or unclipped != int(unclipped):
            raise ProtocolError(
                f"{unclipped:g} of {of:g} clients unclipped, in a sum of {many}: expected a count of all of them"
            )
        return int(unclipped)

    def step(self) -> Moved:
        version, noise, total = self.steps + 1, self.noise, self.sum.bundle()
        self._quieten(total)
        counts = (version, self.unclipped, self.members, np.float64(self.clip_norm).tobytes())
        tag = key_of(self.secret, "sum", *counts, bytes.fromhex(total.sha256()))
        told = self.charge(version, tag.hex())
        stddev = noise.on_sum * self.clip_norm
        entries = total["sum/f4"]
        for first, draws in gaussian(key_of(self.secret, "noise", tag), self.trainable, stddev):
            part = entries[first : first + draws.size]
            np.add(part, draws, part)
        work = Work(total, float(noise.denominator))
        self.aggregator.fold(Contribution(Task(version - 1, 0, ()), version - 1, 0, work, summed=True))
        moved = self.aggregator.step()
        metrics = {**moved.metrics, **told, "clip_norm": self.clip_norm, "noise_stddev": stddev / noise.denominator}
        if noise.quantile:
            count = self.unclipped - self.members / 2 + number(key_of(self.secret, "count", tag), noise.count_stddev)
            share = count / noise.denominator + 0.5
            self.clip_norm *= math.exp(-noise.rate * (share - noise.quantile))
        self._begin(version)
        return Moved(metrics)

    def _quieten(self, total: Bundle) -> None:
        """Let all entries but the trained ones stay as they are: buffers and counters, which no noise covers."""
        weights, each = self.aggregator.weights(), round(self.noise.denominator / GRID)
        for name, entries in total.items():
            dtype = name.removeprefix("sum/")
            if dtype == "f4":
                entries[self.trainable :] = 0
            elif dtype in VALUES:
                entries[...] = weights.vector(dtype)[: entries.size].astype(np.int64) * each
            else:
                entries[...] = 0

    def state(self) -> State:
        own = {STEPS: np.array(self.steps, np.int64), CLIP: np.array(self.clip_norm, np.float64)}
        return {**self.aggregator.state(), **own}

    def load(self, weights: Bundle, state: State) -> None:
        """Raises UserError if fewer versions are charged than were made."""
        self.aggregator.load(weights, state)
        made, charged = int(state[STEPS]), self.charged()
        if charged < made:
            raise UserError(
                f"the run has made {made} noised versions and its privacy.jsonl holds {charged} charges: put the whole file "
                "back, or begin a new run"
            )
        self.clip_norm = float(state[CLIP])
        self._begin(made)

    def _begin(self, steps: int) -> None:
        self.sum.clear()
        self.steps, self.unclipped, self.members = steps, 0, 0


class Briefed(Noised):
    """A Noised that tells clients its clipping norm, because they clip to it: CLIP_NORM, float64 [1], in each task's brief."""

    def brief(self, task: Task) -> Bundle | None:
        return Bundle.pack({CLIP_NORM: np.array([self.clip_norm], np.float64)}) if task.counts else None


def check_covered(layout: Layout, trainable: int | None) -> int:
    """The number of float32 entries that noise must cover: the trained ones, which come first. Raises UserError if there is
    none, and for batch norm's running statistics, which clients change and no noise covers."""
    first, last = layout.moving.segments.get("f4", (0, 0))
    covered = (last - first) // 4 if trainable is None else trainable
    if not covered:
        raise UserError("differential privacy: the weights have no float32 parameter that is trained")
    if running := [name for name in layout.by_name if name.endswith("num_batches_tracked")]:
        norm = running[0].rpartition(".")[0] or "the model"
        raise UserError(
            f"differential privacy: {norm} is a batch norm, whose running statistics no noise covers; use GroupNorm or "
            "LayerNorm in its place"
        )
    return covered
