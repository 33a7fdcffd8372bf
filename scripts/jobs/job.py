"""What a job is to the machinery: a plan, an aggregator, a worker, and what they agree on.

The one idea: a run is a choice of one of each seam. Everything that knows a learning method by name is on this side of it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Protocol, TypeAlias

from shoal.actors import Worker
from shoal.protocol.layout import Bundle, Layout
from shoal.protocol.work import Metrics

if TYPE_CHECKING:  # an actor has no coordinator
    from shoal.aggregators import Aggregator
    from shoal.coordinator.deciding.plans import Asked, Plan
    from shoal.coordinator.deciding.rules import Goal, Rules

Evaluate: TypeAlias = Callable[[Bundle], Metrics]


class Job(Protocol):
    """A user's own job implements this, or is a `Federated` or a `Reinforcement`, which do."""

    name: str
    seed: int

    def configured(self, changes: Mapping[str, Any], seed: int | None = None) -> Job:
        """The same job with other settings. Raises UserError."""
        ...

    def plain(self) -> dict[str, Any]:
        """All settings as plain data; `configured(plain())` is the same job."""
        ...

    # In the coordinator

    def aggregator(self, device: str) -> Aggregator: ...

    def plan(self, asked: Asked) -> Plan:
        """The schedule. asked: what it need not ask for, because earlier lives of the run did."""
        ...

    def goal(self) -> Goal: ...

    def rules(self) -> Rules: ...

    def layouts(self, weights: Layout) -> Sequence[Layout]:
        """Those that contributions may have."""
        ...

    def central(self, device: str = "cpu") -> Evaluate | None:
        """Evaluates weights where the coordinator is, on its device; None where only actors can."""
        ...

    def due(self, version: int) -> bool:
        """Is this version to be evaluated centrally?"""
        ...

    # In an actor

    def prepare(self) -> None:
        """Before processes are forked: what they can share, and whatever of the user's may be wrong."""
        ...

    def worker(self) -> Worker: ...
