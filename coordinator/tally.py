"""Statistics of a run, from the contributions' own numbers.

The one idea: every quantity that adds up is kept as (total, count), so that a mean over clients is right however the clients
were grouped on the way.
"""

from __future__ import annotations

import math
from collections import Counter, deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from shoal.protocol.messages import Contribute

WINDOW = 100  # episodes that a mean return is over
LAGS = 1000  # contributions that the histogram of lags is over
RECENT = 5.0  # seconds that rates are over
FEW = 10  # clients from which on a metric's distribution over clients is told
REPLACED = "env_replaced"  # environments' processes that were replaced, a total; a mean of them would say nothing


@dataclass(slots=True)
class Rate:
    """The rate at which a count grows, over the last RECENT seconds."""

    marks: deque[tuple[float, float]] = field(default_factory=deque)

    def at(self, now: float, count: float) -> float:
        """Units a second; 0 until two marks differ in time."""
        self.marks.append((now, count))
        while len(self.marks) > 2 and self.marks[0][0] < now - RECENT:
            self.marks.popleft()
        (then, before), (_, after) = self.marks[0], self.marks[-1]
        return (after - before) / (now - then) if now > then else 0.0


@dataclass(slots=True)
class Tally:
    """Counts since the start of this process, and means since the last step. Episodes and environment steps are counted since
    the run began: `figures` tells them for a snapshot, and `load` takes them up.

    Episodes of one step count in the order of their tasks, not of their arrival: so which ones are the last WINDOW does not
    depend on how fast the actors were."""

    totals: dict[str, tuple[float, float]] = field(default_factory=dict)
    evaluated: dict[str, tuple[float, float]] = field(default_factory=dict)
    apiece: dict[str, list[float]] = field(default_factory=dict)  # each client's mean of a metric, in its evaluation
    returns: deque[float] = field(default_factory=lambda: deque(maxlen=WINDOW))
    lengths: deque[float] = field(default_factory=lambda: deque(maxlen=WINDOW))
    told_at: deque[int] = field(default_factory=lambda: deque(maxlen=WINDOW))  # `steps` when each episode was told
    came: list[Contribute] = field(default_factory=list)  # since the last step, if they tell episodes or environment steps
    steps: int = 0  # environment steps
    lags: list[int] = field(default_factory=list)
    recent: deque[int] = field(default_factory=lambda: deque(maxlen=LAGS))  # lags of the last contributions
    batch: Mapping[int, int] = field(default_factory=dict)  # lag -> contributions of the last step
    playing: set[int] = field(default_factory=set)  # versions that were evaluated since the last step
    played: int = -1  # the version that was evaluated in the last step; -1: none was, or several
    episodes: int = 0
    replaced: float = 0.0
    waited: float = 0.0
    trained: float = 0.0

    def train(self, message: Contribute, lag: int) -> None:
        """Count a contribution that was folded in, `lag` versions old."""
        add(self.totals, self._means_of(message))
        if message.steps or message.samples:
            self.came.append(message)
        self.lags.append(lag)
        self.recent.append(lag)
        self.waited += max(0.0, message.waited)
        self.trained += max(0.0, message.trained)

    def settle(self) -> None:
        """Count the episodes and the environment steps of what came since the last step."""
        came, self.came = self.came, []
        for message in sorted(came, key=lambda each: (each.made_from, each.task)):
            returns = message.samples.get("return", ())
            self.steps += message.steps
            self.returns.extend(returns)
            self.told_at.extend([self.steps] * len(returns))
            self.lengths.extend(message.samples.get("length", ()))
            self.episodes += len(returns)

    def figures(self) -> Mapping[str, Any]:
        """The figures that a snapshot keeps, as JSON can hold them; empty if there are no episodes."""
        self.settle()
        if not (self.steps or self.episodes):
            return {}
        lists = {name: list(getattr(self, name)) for name in ("returns", "lengths", "told_at")}
        return {**lists, "steps": self.steps, "episodes": self.episodes, "replaced": self.replaced}

    def load(self, figures: Mapping[str, Any]) -> None:
        """Go on from the figures of a snapshot."""
        for name in ("returns", "lengths", "told_at"):
            getattr(self, name).extend(figures.get(name, ()))
        self.steps, self.episodes = int(figures.get("steps", 0)), int(figures.get("episodes", 0))
        self.replaced = float(figures.get("replaced", 0.0))

    def evaluate(self, message: Contribute) -> None:
        """Count an evaluation. Its episodes and examples do not count as training."""
        self.playing.add(message.made_from)
        samples = {name: (math.fsum(values), float(len(values))) for name, values in message.samples.items()}
        add(self.evaluated, self._means_of(message))
        add(self.evaluated, samples)
        for name, (total, count) in message.totals.items():
            if count and math.isfinite(total):
                self.apiece.setdefault(name, []).append(total / count)

    def _means_of(self, message: Contribute) -> Mapping[str, tuple[float, float]]:
        """The (total, count) of every metric shown as a mean. Replaced environments are counted instead, in training and
        evaluation."""
        self.replaced += message.totals.get(REPLACED, (0.0, 0.0))[0]
        return {name: total for name, total in message.totals.items() if name != REPLACED}

    def flush(self) -> dict[str, float]:
        """Means since the last flush. Metrics of evaluations are named eval/...; the accuracy of training is train_accuracy."""
        self.settle()
        metrics = {_trained(name): total / count for name, (total, count) in self.totals.items() if count}
        metrics |= {f"eval/{_named(name)}": total / count for name, (total, count) in self.evaluated.items() if count}
        for name, values in self.apiece.items():
            if len(values) >= FEW:
                metrics |= {f"eval/{_named(name)}/{where}": value for where, value in spread(name, values).items()}
        if self.returns:
            metrics["return_mean"] = math.fsum(self.returns) / len(self.returns)
            metrics["length_mean"] = math.fsum(self.lengths) / max(1, len(self.lengths))
            metrics["episodes"] = float(self.episodes)
            metrics["return_age"] = self.steps - sum(self.told_at) / len(self.told_at)
        if self.replaced:
            metrics[REPLACED] = self.replaced
        self.batch = Counter(self.lags)
        self.played, self.playing = self.playing.pop() if len(self.playing) == 1 else -1, set()
        if self.lags:
            metrics |= {"lag_min": min(self.lags), "lag_mean": sum(self.lags) / len(self.lags), "lag_max": max(self.lags)}
            if metrics["lag_max"] > 0:
                ordered = sorted(self.lags)
                metrics |= {"lag_p50": quantile(ordered, 0.5), "lag_p90": quantile(ordered, 0.9)}
        self.totals, self.evaluated, self.apiece, self.lags = {}, {}, {}, []
        return metrics


def add(into: dict[str, tuple[float, float]], more: Mapping[str, tuple[float, float]]) -> None:
    for name, (total, count) in more.items():
        had, of = into.get(name, (0.0, 0.0))
        into[name] = (had + total, of + count)


def quantile(ordered: Sequence[float], share: float) -> float:
    """The value below which this share of the numbers lies, interpolated between neighbours. ordered: numbers, rising."""
    at = share * (len(ordered) - 1)
    low = ordered[math.floor(at)]
    return low + (at - math.floor(at)) * (ordered[math.ceil(at)] - low)


def spread(name: str, values: Sequence[float]) -> dict[str, float]:
    """The distribution of a metric over clients, each of which counts alike: the deciles "p10" to "p90", interpolated between
    neighbours, and "worst_tenth", the mean over the tenth of the clients that fare worst: with the largest values of a loss,
    and the smallest of any other metric."""
    ordered = sorted(values)
    last = len(ordered) - 1
    deciles = {}
    for tenth in range(1, 10):
        below, part = divmod(tenth * last, 10)
        low = ordered[below]
        deciles[f"p{tenth}0"] = low + part / 10 * (ordered[min(below + 1, last)] - low)
    many = math.ceil(len(ordered) / 10)
    worst = ordered[-many:] if name.endswith("loss") else ordered[:many]
    return {**deciles, "worst_tenth": math.fsum(worst) / many}


def _trained(name: str) -> str:
    """The metric's name in training: people who ask for accuracy do not mean that on the training examples."""
    return "train_accuracy" if name == "accuracy" else name


def _named(name: str) -> str:
    return {"return": "return_mean", "length": "length_mean"}.get(name, name)
