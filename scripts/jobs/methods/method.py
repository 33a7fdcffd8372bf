"""Method: a frozen dataclass whose fields are settings, and whose functions make the plan, aggregator and worker of a run.

The one idea: a user's own method can do all that a built-in method can. It is a subclass of Method with fields and three
functions, in any file. `key=value` on the command line sets its fields. A missing part is an error when the job is read.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, is_dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Self

from shoal.actors import Worker
from shoal.aggregators import Aggregator
from shoal.coordinator.deciding.bounds import Bounds, Goal
from shoal.coordinator.deciding.plans import Asked, Plan
from shoal.jobs.settings import ranges, shown
from shoal.protocol.errors import UserError
from shoal.protocol.layout import Bundle, Layout

if TYPE_CHECKING:
    from torch import nn

    from shoal.jobs.job import Job
    from shoal.jobs.members import Identity
    from shoal.jobs.problems import Evaluate, Problem

NEEDED = {"plan": "plan(asked, seed, sums)", "aggregator": "aggregator(start, device)", "worker": "worker(problem, seed)"}


@dataclass
class Start:
    """The start of a run, from which a method makes its aggregator.

    problem: the job's. seed: the run's. norm_bound: largest L2 norm of one client's delta that is accepted (0: any).
    """

    problem: Problem
    seed: int
    norm_bound: float = 0.0

    @cached_property
    def _weights(self) -> tuple[Bundle, int | None]:
        return self.problem.first(self.seed)

    @property
    def weights(self) -> Bundle:
        """Version 0 of the weights."""
        return self._weights[0]

    @property
    def trainable(self) -> int | None:
        """The number of float32 entries that are trained, from the first one. None: all."""
        return self._weights[1]

    def module(self) -> nn.Module:
        """The torch model with the weights of version 0. Raises UserError if the problem has no torch model."""
        return self.problem.module(self.seed)


@dataclass(frozen=True)
class Method:
    """A learning method. A subclass is a frozen dataclass in a file of its own, and its fields are settings.

    A subclass gives at least `name`, `plan`, `aggregator` and `worker`. name: the NAME in `method=NAME`.
    problems: the kinds of problem that the method can work on ("supervised", "environment", "calls").
    exact: True if sums are exact, so that no order of arrival changes a bit. Whether actors may send sums is said by the
    aggregator (`linear`), not here.
    """

    name: ClassVar[str] = ""
    problems: ClassVar[tuple[str, ...]] = ("supervised", "environment", "calls")
    whole: ClassVar[bool] = True
    """False if the weights alone are no model to be evaluated, because the clients have a part of it."""
    end: ClassVar[str] = "rounds"
    """The setting that says when a run is done. `shoal resume` may raise it."""
    independent: ClassVar[bool] = False
    """True if no client's contribution may decide whether another's counts, as differential privacy asks: no bound is then made
    from the median of contributions."""
    journalled: ClassVar[bool] = True
    """False if a contribution is of no use to a later life of the run: journal=auto then means off."""

    def plan(self, asked: Asked, seed: int, sums: bool) -> Plan:
        """The plan, which decides which clients work when. asked: the tasks that earlier lives of the run asked for. sums: True
        if a task may name several clients, whose weighted sum comes back as one contribution."""
        raise NotImplementedError

    def aggregator(self, start: Start, device: str) -> Aggregator:
        """The aggregator, which computes on the torch device `device`."""
        raise NotImplementedError

    def worker(self, problem: Problem, seed: int) -> Worker:
        """The worker, which does an actor's tasks. Called in the actor's process."""
        raise NotImplementedError

    # With defaults

    def surrounded(self, made: Aggregator, problem: Problem) -> Aggregator:
        """The method's aggregator, inside what the method itself puts around it. Default: as it was made."""
        return made

    @property
    def exact(self) -> bool:
        return False

    def fitted(self, problem: Problem) -> Mapping[str, Any]:
        """Settings whose values, of a default or a preset, do not fit the other settings -> values that do. A value that
        somebody gave stays, and is refused."""
        return {}

    def check(self, problem: Problem) -> None:
        """Raises UserError, one line, if settings contradict each other or the method cannot work on the problem."""

    def fits(self, job: Job) -> None:
        """Raises UserError, one line, if the method cannot work with the job's other parts: its checks and its wraps."""

    def prepare(self) -> None:
        """Compute what forked actors are to share. Raises UserError."""

    def hosted(self, actors: int, joined: bool, keyed: bool) -> None:
        """Raises UserError, one line, if these actors cannot play the method's clients. actors: number of the run's own.
        joined: actors from elsewhere may join. keyed: those actors prove keys."""

    def elsewhere(self, identity: Identity | None) -> Self:
        """The method at an actor that joins from elsewhere. identity: given by the actor's user; None: not given. Raises
        UserError, one line, if such an actor cannot take part."""
        return self

    def kept(self, folder: Path, seed: int) -> Self:
        """The method of a run that is kept in `folder`, whose lock the caller holds. A method that keeps something there beside
        snapshots and journal returns another than itself. Raises UserError."""
        return self

    @property
    def sized(self) -> bool:
        """True if the method's plan needs each client's number of examples (`Asked.sizes`)."""
        return False

    def notes(self, problem: Problem, aggregator: Aggregator) -> Sequence[str]:
        """Lines about the method that a person is told when a run begins."""
        return ()

    def going_on(self, problem: Problem, version: int) -> Sequence[str]:
        """Lines that a person is told when a run goes on from the snapshot of `version`."""
        return ()

    def try_out(self, seed: int) -> None:
        """Tries the user's own functions among the settings once, before the run has a folder. Raises UserError."""

    def goal(self) -> Goal:
        """The goal of the run: `rounds` versions if the method has a setting of that name; else the run never ends."""
        return Goal(versions=int(getattr(self, "rounds", 0)))

    def bounds(self, sums: bool) -> Bounds:
        """The bounds that the core keeps for this method. The job adds those of `Bearing`: lease, strikes, quarantine."""
        return Bounds()

    def layouts(self, problem: Problem, weights: Layout) -> Sequence[Layout]:
        """The layouts that one client's contribution may have. Default: the layout of the weights."""
        return [weights]

    def briefs(self, problem: Problem, weights: Layout) -> Sequence[Layout]:
        """The layouts of the briefs that the aggregator's `brief(task)` returns. Default: no layouts, and no briefs."""
        return ()

    @property
    def briefs_once(self) -> bool:
        """True if an actor that has had a client's brief goes on by itself: its later tasks need none, and wait for none."""
        return False

    def central(self, problem: Problem, seed: int, device: str) -> Evaluate | None:
        """The function that evaluates weights in the coordinator's process; None if only actors can evaluate. Default: the
        problem's."""
        return problem.central(self, seed, device)

    def due(self, version: int) -> bool:
        """True if this version is to be evaluated centrally."""
        return False

    # For subclasses

    def arguments(self, of: Callable[..., Any], **own: Any) -> dict[str, Any]:
        """The keyword arguments for `of`: each setting of the method that `of` takes under the setting's name, by keyword only;
        and `own`, which stand before settings."""
        keywords = {name for name, each in inspect.signature(of).parameters.items() if each.kind is each.KEYWORD_ONLY}
        return {**{name: getattr(self, name) for name in ranges(self) if name in keywords}, **own}


def said(wrap: Any) -> str:
    """Return the settings of a wrap that have not their default, as a user types them; of a user's own wrap, its name."""
    known = ranges(wrap)
    changed = {name: getattr(wrap, name) for name in known}
    typed = ", ".join(f"{name}={shown(value)}" for name, value in changed.items() if value != known[name].default)
    kind = getattr(wrap, "function", None)
    return typed or f"around: {getattr(kind, '__name__', '') or type(wrap).__name__}"


def check_plain(job: Job, wrong: str, norm: str) -> None:
    """Raises UserError for a part of the job that takes contributions for changes of weights, where they are something else.
    wrong: what such a wrap does; norm: why norm_bound cannot work."""
    for wrap in job.around:
        if wrap.looks or getattr(wrap, "compress_weights", "none") != "none":
            raise UserError(f"{said(wrap)}: with method={job.method.name} this {wrong}; leave it out")
    if bound := job.checks.norm_bound:
        raise UserError(f"norm_bound={bound:g}: {norm}; norm_bound=0")


def fault(method: Any) -> str:
    """Return why a job cannot have this object as its method, in one line; "" if it can."""
    kind = type(method).__name__
    if not isinstance(method, Method):
        return f"method={method!r}: must be a name, a method such as FedAvg(), or your own subclass of shoal.Method"
    cls = type(method)
    new = [name for name, value in vars(cls).get("__annotations__", {}).items() if "ClassVar" not in str(value)]
    if not is_dataclass(cls) or (new and "__dataclass_fields__" not in vars(cls)):
        return f"method {kind}: its settings {', '.join(new)} are not read; put @dataclass(frozen=True) above class {kind}"
    if not method.name:
        return f"method {kind} lacks a name; add to the class: name: ClassVar[str] = {kind.lower()!r}"
    lacking = [form for part, form in NEEDED.items() if getattr(cls, part) is getattr(Method, part)]
    return f"method {method.name} lacks {' and '.join(lacking)}; see docs/own.md" if lacking else ""
