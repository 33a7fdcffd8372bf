"""A job: the parts of a run. They are a problem, a method, keeping, bearing, checks, and the wraps around the aggregator.

The one idea: a job is concrete. Each part is a dataclass whose fields are its settings. A setting stands in one part only, so
`key=value` needs no name of a part. Only the code in jobs/ knows learning methods by name; the machinery does not.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property, partial, reduce
from pathlib import Path
from typing import TYPE_CHECKING, Any

from shoal.actors import Worker
from shoal.actors.workers.drawing import Drawing
from shoal.actors.workers.rollout import Rollout
from shoal.aggregators import Aggregator, amiss, lacking
from shoal.coordinator.deciding.bounds import Bounds
from shoal.coordinator.deciding.plans import AFRESH, Asked, Plan
from shoal.jobs.members import Identity
from shoal.jobs.methods import METHODS, owners
from shoal.jobs.methods.attending import paced
from shoal.jobs.methods.local import LocalTraining
from shoal.jobs.methods.method import Method, Start, fault
from shoal.jobs.parts import Bearing, Checks, Keeping
from shoal.jobs.presets import STACKED
from shoal.jobs.problems import Evaluate as Evaluate
from shoal.jobs.problems import Problem
from shoal.jobs.settings import (
    Range,
    among,
    argument,
    changed,
    check_used,
    checked,
    coerced,
    described,
    has_effect,
    nearest,
    plain,
    ranges,
    shown,
    values,
    whole_seed,
)
from shoal.jobs.wraps import Calling, chain
from shoal.protocol.draws import globally
from shoal.protocol.errors import UserError, unfit
from shoal.protocol.exact import summed_layout, unfinite
from shoal.protocol.layout import Layout

if TYPE_CHECKING:
    from torch import nn

    from shoal.jobs.presets import Preset

OTHER_WORDS = ("aggregator", "algorithm")  # by which version 0.1 called the method
WORTH = 0.75  # share of the weights' bytes below which the arrays that move are sent alone: an actor copies the others itself
ENV = "env."  # begins an argument of the environment on the command line
NAMED = 6  # methods that a message lists by name
PLAN = {"assign": 4, "admits": 2, "enough": 4}  # name -> number of arguments


@dataclass(frozen=True)
class Job:
    """A job for `shoal.run` and `shoal simulate`. `Federated` and `Reinforcement` make a job from a user's part and settings.

    around: wraps, innermost first; a function from an aggregator to an aggregator counts as a wrap. seed: decides every random
    number of the run. Raises UserError, one line, if a part lacks something or if settings contradict each other.
    """

    problem: Problem
    method: Method
    keeping: Keeping = field(default_factory=Keeping)
    bearing: Bearing = field(default_factory=Bearing)
    checks: Checks = field(default_factory=Checks)
    around: tuple[Any, ...] = ()
    name: str = "job"
    seed: int = 0
    given: frozenset[str] | None = field(default=None, repr=False, compare=False)
    """Names of the settings that somebody gave, which no preset changes. None: all of them, of a job made from its parts."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "seed", whole_seed(self.seed))
        object.__setattr__(self, "around", chain(self.around))
        if why := fault(self.method):
            raise UserError(why)
        if type(self.method) is not METHODS.get(self.method.name, type(self.method)):
            kind = type(self.method).__name__
            raise UserError(f"method {kind}: {self.method.name} is the name of a built-in method; give class {kind} another")
        if self.problem.kind not in self.method.problems:
            raise UserError(f"method={self.method.name}: allowed is one of {', '.join(self.fitting())}, for this job's problem")
        posed = reduce(lambda problem, wrap: wrap.posed(problem), self.around, self.problem.suited(self.method))
        object.__setattr__(self, "problem", posed)
        stands = {"method": "job"}
        for group, part in self._parts():
            checked(part)
            check_used(part)
            for name in ranges(part):
                if name in stands:
                    raise UserError(f"{name} is a setting of two parts, {stands[name]} and {group}: rename one")
                stands[name] = group
        self.problem.check(self.bearing)
        self.method.check(self.problem)
        for wrap in self.around:
            wrap.check(self.method.exact)
            wrap.suits(self.method, self.problem)
        self.method.fits(self)

    def _parts(self) -> Iterator[tuple[str, Any]]:
        """Yield each part, and before it the group of config.toml that holds the part's settings."""
        yield "method", self.method
        yield "problem", self.problem
        yield "keeping", self.keeping
        yield "bearing", self.bearing
        yield "checks", self.checks
        yield from (("around", wrap) for wrap in self.around)

    # Settings

    def configured(self, changes: Mapping[str, Any], seed: int | None = None) -> Job:
        """Return the same job with other settings, whose values may be strings. `method` chooses another method; the new method
        takes over each value that was set for the old method, if it has a setting of that name. Raises UserError."""
        changes, given = self._with_arguments(changes), self.given
        if given is not None:
            given |= changes.keys()
        job = replace(self._unstacked(), seed=self.seed if seed is None else seed)
        for word in ("method", *OTHER_WORDS):
            if word in changes and word not in self.options():
                method = changes.pop(word)
                if given is not None and isinstance(method, Method):
                    given |= ranges(method).keys()
                job = replace(job, method=job._chosen(word, method))
        ours = (self.preset.settings.keys() - given) if self.preset and given is not None else frozenset[str]()
        changed = job._changed({**job._idle(ours, changes), **changes})
        return replace(changed._with_preset(self.preset, given), given=given)

    def _unstacked(self) -> Job:
        """The job without those settings of its preset that other settings take out of the row (STACKED)."""
        row = self.preset.settings if self.preset else {}
        ours = row.keys() & STACKED.keys() - (self.given or frozenset())
        return self._changed({name: self.options()[name].default for name in ours}) if ours else self

    def _idle(self, names: Iterable[str], changes: Mapping[str, Any]) -> dict[str, Any]:
        """The defaults of those settings `names` that have no effect in this job with these changes."""
        known, stands = self.options(), {**self.plain(), **changes}
        return {name: known[name].default for name in names if name in known and not has_effect(known[name], stands)}

    @property
    def preset(self) -> Preset | None:
        """The table from which settings that nobody gave are taken (jobs/presets.py); None if there is none for this job."""
        return None if self.given is None else self.problem.published(self.method.name)

    def _with_preset(self, before: Preset | None, given: frozenset[str] | None) -> Job:
        """The job with its preset in place of the one before, and settings that fit each other. given: names of settings that
        stay as they are."""
        if given is None:
            return self
        now, known = self.preset, self.options()
        settings = dict(now.settings) if now else {}
        if before is not None and before is not now:
            settings = {**{name: known[name].default for name in before.settings if name in known}, **settings}
        ours = {name: value for name, value in settings.items() if name not in given}
        job = self._changed({**ours, **self._idle(ours, ours)})
        fitted = {name: value for name, value in job.method.fitted(job.problem).items() if name not in given}
        return job._changed(fitted) if fitted else job

    def _with_arguments(self, changes: Mapping[str, Any]) -> dict[str, Any]:
        """The changes, in which env.NAME=value is an argument in env_kwargs, beside those that the job has."""
        given = {name.removeprefix(ENV): value for name, value in changes.items() if name.startswith(ENV)}
        rest = {name: value for name, value in changes.items() if not name.startswith(ENV)}
        if not given:
            return rest
        if "env_kwargs" not in self.options():
            raise UserError(f"{ENV}{next(iter(given))}: this job has no environment that takes arguments")
        before = coerced("env_kwargs", rest.get("env_kwargs", self.plain()["env_kwargs"]), self.options()["env_kwargs"])
        typed = {name: argument(value) if isinstance(value, str) else value for name, value in given.items()}
        return {**rest, "env_kwargs": {**before, **typed}}

    def _changed(self, changes: Mapping[str, Any]) -> Job:
        known = self.options()
        for name, value in changes.items():
            if name not in known and (others := owners(name)):
                many = f" and {len(others) - NAMED} other methods" if len(others) > NAMED + 1 else ""
                listed = ", ".join(others[: NAMED if many else None])
                its = f"a setting of {listed}{many}; this job's method is {self.method.name}"
                raise UserError(f"{name}={shown(value)}: {name} is {its}")
            if name not in known:
                raise UserError(f"unknown setting {name!r}: {nearest(name, [*known, 'method'])}")
        parts = [
            (group, changed(part, {name: value for name, value in changes.items() if name in ranges(part)}))
            for group, part in self._parts()
        ]
        return replace(self, **{**dict(parts), "around": tuple(wrap for group, wrap in parts if group == "around")})

    def _chosen(self, word: str, given: Any) -> Method:
        """The method of this name, with the values that were set for the job's method. `given` may also be a Method or a
        subclass of Method."""
        if isinstance(given, Method):
            return given
        if isinstance(given, type) and issubclass(given, Method):
            kind = given
        elif given == self.method.name:
            return self.method
        elif given in METHODS:
            kind = METHODS[given]
        else:
            fitting = self.fitting()
            if not isinstance(given, str):
                raise UserError(f"{word}={given!r}: must be a name ({', '.join(fitting)}), or a subclass of shoal.Method")
            raise UserError(among(word, given, fitting))
        own, before = ranges(kind), self.method
        kept = {n: value for n, value in values(before).items() if n in own and value != ranges(before)[n].default}
        return kind(**{n: value for n, value in kept.items() if self.given is None or n in self.given})

    def fitting(self) -> list[str]:
        """The names of methods that can work on the job's problem."""
        built_in = [name for name, method in METHODS.items() if self.problem.kind in method.problems]
        return built_in if self.method.name in METHODS else [self.method.name, *built_in]

    def options(self) -> dict[str, Range]:
        """Name -> range of every setting but `method`."""
        return {name: allowed for _, part in self._parts() for name, allowed in ranges(part).items()}

    def plain(self) -> dict[str, Any]:
        """Return the settings as plain data; `configured(plain())` is the same job."""
        return {"method": self.method.name, **{name: value for _, part in self._parts() for name, value in plain(part).items()}}

    def groups(self) -> dict[str, list[str]]:
        """Group -> names of its settings, as they stand in config.toml."""
        found: dict[str, list[str]] = {"method": ["method"]}
        for group, part in self._parts():
            found.setdefault(group, []).extend(ranges(part))
        return found

    def described(self) -> list[tuple[str, str, str]]:
        """Return a row for each setting: `name=value` as a user types it, the allowed values, the meaning."""
        method = (f"method={self.method.name}", "one of " + ", ".join(self.fitting()), "how the weights are learned")
        return [method, *(row for _, part in self._parts() for row in described(part))]

    # In the coordinator

    def kept(self, folder: Path) -> Job:
        """The job of a run that is kept in `folder`, whose lock the caller holds. Raises UserError if the method finds there
        that the run must not go on."""
        method = self.method.kept(folder, self.seed)
        return self if method is self.method else replace(self, method=method)

    def elsewhere(self, identity: Identity | None) -> Job:
        """The job at an actor that joins from elsewhere. identity: given by the actor's user, for secure aggregation; None: not
        given. Raises UserError if such an actor cannot take part."""
        method = self.method.elsewhere(identity)
        return self if method is self.method else replace(self, method=method)

    def aggregator(self, device: str) -> Aggregator:
        """The method's aggregator inside the job's wraps. Raises UserError if an aggregator lacks a part."""
        start = Start(self.problem, self.seed, self.checks.norm_bound)
        made, maker = self.method.aggregator(start, device), f"method {self.method.name}: its"
        if not lacking(made):
            made = self.method.surrounded(made, self.problem)
        for wrap in (None, *self.around):
            if wrap is not None:
                made, maker = wrap.aggregator(made, start), f"around: {type(wrap).__name__}'s"
            if parts := lacking(made):
                raise UserError(f"{maker} aggregator {type(made).__name__} lacks {', '.join(parts)}")
        if not type(made).__module__.startswith("shoal.aggregators") and (why := amiss(made)):
            raise UserError(f"{maker} aggregator {type(made).__name__}: {why}")
        layout = made.weights().layout
        if self._few_move(layout) and not hasattr(made, "coding"):
            from shoal.aggregators.around.moving import Moving

            made = Moving(made)
        if callable(getattr(made, "brief", None)) != bool(self.briefs(layout)):
            raise UserError(
                f"{maker} aggregator needs brief(task), and the method briefs(problem, weights): one of them is missing"
            )
        return made

    def _few_move(self, layout: Layout) -> bool:
        """True if actors are sent the arrays that move alone, and no part of the user's own may alter the others."""
        theirs = any(isinstance(wrap, Calling) for wrap in self.around)
        ours = type(self.method).aggregator.__module__.startswith("shoal.") and not theirs
        return ours and layout.moving.nbytes < WORTH * layout.nbytes and layout.begins_with(layout.moving)

    @cached_property
    def _linear(self) -> bool:
        return self.aggregator("cpu").linear

    @property
    def sums(self) -> bool:
        """True if an actor sends one sum over its clients: the aggregator is linear, and no check looks at single clients."""
        return self.keeping.partial_sums and not self.virtual and not self.checks.each and self._linear

    @property
    def virtual(self) -> bool:
        """True if the run's time is virtual: tasks last for as long as their clients' devices take."""
        return getattr(self.method, "clock", "wall") == "virtual"

    def plan(self, asked: Asked) -> Plan:
        """The method's plan. asked: the tasks that earlier lives of the run asked for. Raises UserError if the plan lacks a
        part."""
        if self.method.sized:
            asked = replace(asked, sizes=self.problem.sizes(self.method, self.seed))
        made = self.method.plan(asked, self.seed, self.sums)
        if parts := unfit(made, PLAN):
            raise UserError(f"method {self.method.name}: its plan {type(made).__name__} lacks {', '.join(parts)}")
        return made

    def bounds(self) -> Bounds:
        return replace(
            self.method.bounds(self.sums),
            summed=self.sums,
            exact=self.method.exact,
            **plain(self.bearing),
        )

    def layouts(self, weights: Layout) -> Sequence[Layout]:
        """The layouts that contributions may have."""
        both = [weights.moving, weights] if self.thin and weights.still else []
        if self.sums:
            return [summed_layout(each, self.method.exact) for each in both or [weights]]
        inner = [layout for each in both or [weights] for layout in self.method.layouts(self.problem, each)]
        return reduce(lambda layouts, wrap: wrap.layouts(layouts), self.around, inner)

    @property
    def thin(self) -> bool:
        """True if contributions may lack frozen parameters: if no code of the user's, which may need them, sees contributions.
        (The arrays of randk do not show how many entries they are of.)"""
        parts = [getattr(type(self.method), part) for part in ("aggregator", "layouts", "worker")]
        ours = all(part.__module__.startswith("shoal.") for part in (*parts, *map(type, self.around)))
        plain_around = not any(isinstance(wrap, Calling) or getattr(wrap, "compress", "") == "randk" for wrap in self.around)
        return ours and plain_around and self.ours and isinstance(self.method, LocalTraining)

    def briefs(self, weights: Layout) -> Sequence[Layout]:
        """The layouts that the aggregator's briefs may have; none if the aggregator gives no briefs."""
        return reduce(
            lambda layouts, wrap: wrap.briefs(layouts, weights), self.around, self.method.briefs(self.problem, weights)
        )

    def briefs_once(self, weights: Layout) -> bool:
        """True if actors need a brief for the first task of a client alone: the method says so, and no wrap has briefs too."""
        own = self.method.briefs(self.problem, weights)
        return self.method.briefs_once and [each.digest for each in own] == [each.digest for each in self.briefs(weights)]

    def central(self, device: str = "cpu") -> Evaluate | None:
        """The function that evaluates weights in the coordinator's process, on `device`; None if only actors can evaluate."""
        return self.method.central(self.problem, self.seed, device) if self.method.whole else None

    # In an actor

    def prepare(self) -> None:
        """Make the data and processes that forked actors share. Raises UserError for a fault in the user's part."""
        self.method.prepare()
        self.problem.prepare(self.method, self.seed)

    def check_parts(self) -> None:
        """Raises UserError, one line, if the aggregator or the plan lacks a part. Called before the run has a folder."""
        _ = self._linear
        self.plan(AFRESH)
        if self.ours:
            self.worker()

    @property
    def ours(self) -> bool:
        """True if the worker is one of ours. A user's own worker is made only in its actor."""
        ours = type(self.method).worker.__module__.startswith("shoal.")
        return ours and getattr(self.problem, "worker", None) is None

    def try_out(self) -> None:
        """Raises UserError, one line, for a fault that shows in the first weights or on a first batch: before the run has a
        folder, and before anything is forked. Called after `check_parts`."""
        if name := unfinite(self.problem.first(self.seed)[0]):
            raise UserError(f"first weights: {name!r} holds NaN or an infinity")
        self.method.try_out(self.seed)
        if self.ours:
            self.problem.try_out(self.method, self.seed)

    def worker(self) -> Worker:
        if self.ours:
            made = self.method.worker(self.problem, self.seed)
        else:
            with globally(self.seed, "worker"):
                made = self.method.worker(self.problem, self.seed)
        if isinstance(made, Rollout):
            # A rollout that is cut short is worth more than a task that fails. A lease that nobody set follows the rollouts.
            made.seconds = max(0.0, self.bearing.lease) / 2
        if self.thin:
            setattr(made, "thin", True)  # noqa: B010  a LocalSGD, whose module needs torch
        draws = not self.ours and getattr(made, "draws", True)  # a worker of the user's own may say that it draws nothing
        first: Worker = Drawing(made, self.seed, partial(self.method.layouts, self.problem)) if draws else made
        problem, seed = self.problem, self.seed
        whole = reduce(lambda worker, wrap: wrap.played(wrap.worker(worker, seed), problem, seed), self.around, first)
        return paced(self.method, whole, self.seed) if not self.virtual else whole

    # For evaluation and export

    def module(self) -> nn.Module:
        """The torch model with the weights of version 0. Raises UserError if the job has no torch model."""
        return self.problem.module(self.seed)
