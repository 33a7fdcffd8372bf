"""Reports and progress of a run, which its observers read; nothing else hooks into the machinery."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import field
from typing import Any, Protocol

from shoal.protocol.value import value
from shoal.protocol.work import Metrics


@value
class Report:
    """An event that a person should know. kind: one word (joined, lost, stale, refused, failed, waiting ...). text: one whole
    line. level: "info", "warning" or "error". count: how often the event happened since the last report of it."""

    kind: str
    text: str
    level: str = "info"
    count: int = 1


@value
class Before:
    """The counts of a run before it was resumed: seconds that it ran, clients folded in, and figures of episodes (Tally)."""

    seconds: float = 0.0
    contributions: int = 0
    figures: Mapping[str, Any] = field(default_factory=dict)


@value
class Progress:
    """The state of a run, over all its lives. Rates are units a second, over the last RECENT (5) seconds.

    shares: shares of the actors' time, adding up to 1: "waiting", "training", "moving"; and "stepping", the learner's own
    share of wall time. lag: min, mean, max versions between made_from and fold, of the last step's contributions. lags: pairs
    (lag in versions, contributions of the last step with that lag), lags rising; empty before the first step.
    left_out: client -> why its task was set aside, of clients that have contributed nothing since.
    waiting_for: one line per actor or task, with since when, if nothing has moved for 5 s; otherwise one line for each actor
    of which nothing comes, not even from its sockets.
    virtual: True if `seconds`, and the seconds of rates, are of virtual time. fallen: a line on the mean return if it is far
    below its best now (coordinator/falling.py); else "". played: the version whose weights the evaluations played that the last
    row tells of; -1: it tells of none, or of several versions.
    """

    version: int
    goal: str  # e.g. "100 rounds", "500,000 steps"
    done: float  # share of the goal, 0..1
    seconds: float  # that the run has run; time between its lives does not count
    contributions: int
    contributions_per_second: float
    steps: int  # environment steps; 0 in federated runs
    steps_per_second: float
    actors: int
    lag: tuple[float, float, float] = (0.0, 0.0, 0.0)
    shares: Mapping[str, float] = field(default_factory=dict)
    metrics: Metrics = field(default_factory=dict)  # newest value of each metric: loss, accuracy, return_mean, eval/...
    waiting_for: tuple[str, ...] = ()
    left_out: Mapping[int, str] = field(default_factory=dict)
    virtual: bool = False
    fallen: str = ""
    lags: tuple[tuple[int, int], ...] = ()
    played: int = -1


class Observer(Protocol):
    """Sees a run. The coordinator's own thread calls it: an observer is quick, and never raises for a closed terminal."""

    def stepped(self, version: int, metrics: Metrics, progress: Progress) -> None:
        """Called after every step, with the metrics that are new in that step."""
        ...

    def moved(self, progress: Progress) -> None:
        """Called at most every 0.25 s (telling.LOOK) while the run goes on, and at its end."""
        ...

    def report(self, report: Report) -> None: ...
