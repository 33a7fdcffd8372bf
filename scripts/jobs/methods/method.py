"""What a method is: a frozen dataclass whose fields are its settings and which brings the parts of a run.

The one idea: a method of a user's own is as good as a built-in one. It is a subclass with fields and three functions, in any
file. `key=value` on the command line sets its fields, and a part that it lacks is told when the job is read.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, is_dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any, ClassVar

from shoal.protocol.layout import Bundle, Layout

if TYPE_CHECKING:
    from torch import nn

    from shoal.actors import Worker
    from shoal.aggregators import Aggregator
    from shoal.coordinator.deciding.plans import Asked, Plan
    from shoal.coordinator.deciding.rules import Goal, Rules
    from shoal.jobs.problems import Problem

NEEDED = {"plan": "plan(asked, seed, sums)", "aggregator": "aggregator(start, device)", "worker": "worker(problem, seed)"}


@dataclass
class Start:
    """What a run starts from. An aggregator is made of it.

    seed: the run's. problem: the job's. norm_bound: largest L2 norm of one client's delta that is accepted (0: any).
    """

    problem: Problem
    seed: int
    norm_bound: float = 0.0
    _first: Callable[[], tuple[Bundle, int | None]] | None = field(default=None, repr=False)

    @cached_property
    def _weights(self) -> tuple[Bundle, int | None]:
        return self.problem.first(self.seed)

    @property
    def weights(self) -> Bundle:
        """Version 0."""
        return self._weights[0]

    @property
    def trainable(self) -> int | None:
        """How many of the float32 entries are trained: the first so many. None: all."""
        return self._weights[1]

    def module(self) -> nn.Module:
        """The torch model with version 0 in it. Raises UserError if the problem has none."""
        return self.problem.module(self.seed)


@dataclass(frozen=True)
class Method:
    """A learning method. A subclass is a frozen dataclass in a file of its own, and its fields are settings.

    A subclass gives at least `name`, `plan`, `aggregator` and `worker`. name: what `method=NAME` calls it.
    problems: the kinds of problem that it can work on ("supervised", "environment", "calls").
    linear needs nothing here: the aggregator says it. exact: sums are exact, so that no order of arrival changes a bit.
    """

    name: ClassVar[str] = ""
    problems: ClassVar[tuple[str, ...]] = ("supervised", "environment", "calls")
    end: ClassVar[str] = "rounds"
    """The setting that says when a run is done. A resumed run may put it off."""

    def plan(self, asked: Asked, seed: int, sums: bool) -> Plan:
        """The schedule. asked: what earlier lives of the run asked for. sums: a task may hold several clients, whose weighted
        sum comes back."""
        raise NotImplementedError

    def aggregator(self, start: Start, device: str) -> Aggregator:
        """The arithmetic, on a torch device."""
        raise NotImplementedError

    def worker(self, problem: Problem, seed: int) -> Worker:
        """What an actor does with weights. Called in the actor's process."""
        raise NotImplementedError

    # With defaults

    @property
    def exact(self) -> bool:
        return False

    def check(self, problem: Problem) -> None:
        """Raises UserError, one line, for settings that do not go together or a problem that the method cannot work on."""

    def goal(self) -> Goal:
        """When the run is done: after `rounds` versions, if the method has a setting of that name; else never."""
        from shoal.coordinator.deciding.rules import Goal

        return Goal(versions=int(getattr(self, "rounds", 0)))

    def rules(self, sums: bool) -> Rules:
        """What the method asks of actors. The job adds lease, quarantine and the like."""
        from shoal.coordinator.deciding.rules import Rules

        return Rules()

    def layouts(self, problem: Problem, weights: Layout) -> Sequence[Layout]:
        """The layouts that one client's contribution may have: by default that of the weights."""
        return [weights]

    def briefs(self, problem: Problem, weights: Layout) -> Sequence[Layout]:
        """The layouts of what the aggregator's `brief(task)` gives, a task's own arrays: by default it gives none."""
        return ()

    def due(self, version: int) -> bool:
        """True if this version is to be evaluated centrally."""
        return False


def fault(method: Any) -> str:
    """Why an object is no method that a job can have, in one line; "" if it is one."""
    kind = type(method).__name__
    if not isinstance(method, Method):
        return f"method={method!r}: must be a name, or a method such as FedAvg(); your own is a subclass of shoal.Method"
    cls = type(method)
    new = [name for name, value in vars(cls).get("__annotations__", {}).items() if "ClassVar" not in str(value)]
    if not is_dataclass(cls) or (new and "__dataclass_fields__" not in vars(cls)):
        return f"method {kind}: its settings {', '.join(new)} are not read; put @dataclass(frozen=True) above class {kind}"
    if not method.name:
        return f"method {kind} lacks a name; add to the class: name: ClassVar[str] = {kind.lower()!r}"
    lacking = [form for part, form in NEEDED.items() if getattr(cls, part) is getattr(Method, part)]
    return f"method {method.name} lacks {' and '.join(lacking)}; see docs/own.md" if lacking else ""
