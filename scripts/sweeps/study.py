"""Optuna's side of a sweep: samplers ask for arms, pruners judge them, and a journal shows the sweep to Optuna's own tools.

The one idea: only the coordinator asks and tells, in memory, so no storage is contended. trials.jsonl and arms.jsonl hold all
from which the next life makes the study again. `optuna.log` is a copy for Optuna's dashboard and importances: an arm is
written there, whole, when it is over, so that none is ever left running. A sampler is made anew for each arm, with a seed that
is a function of (seed, arm): so a sweep that was killed asks for the same arms as one that was not.
"""

from __future__ import annotations

import fcntl
import inspect
import json
import math
import warnings
import zlib
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from shoal.jobs.settings import nearest
from shoal.protocol import draws
from shoal.protocol.errors import UserError, signed
from shoal.sweeps.arms import Goal
from shoal.sweeps.folder import heal
from shoal.sweeps.population import Rules
from shoal.sweeps.space import Axis

if TYPE_CHECKING:
    from optuna.distributions import BaseDistribution
    from optuna.pruners import BasePruner
    from optuna.samplers import BaseSampler
    from optuna.trial import FrozenTrial, Trial

SAMPLERS: Mapping[str, str] = {
    "grid": "",  # all combinations, in the order typed: nothing is drawn
    "pbt": "",  # population.py decides
    "tpe": "TPESampler",
    "random": "RandomSampler",
    "cmaes": "CmaEsSampler",
    "gp": "GPSampler",
    "qmc": "QMCSampler",
}
INDEPENDENT = ("tpe", "random")  # draw each setting by itself, so an arm without axes draws nothing when it begins
PRUNERS: Mapping[str, str] = {
    "none": "NopPruner",
    "asha": "SuccessiveHalvingPruner",
    "median": "MedianPruner",
    "hyperband": "HyperbandPruner",
    "percentile": "PercentilePruner",
    "wilcoxon": "WilcoxonPruner",
}
NEEDS: Mapping[str, tuple[str, ...]] = {
    "cmaes": ("cmaes",),
    "gp": ("torch", "scipy"),
    "qmc": ("scipy",),
    "wilcoxon": ("scipy",),
}
MISSING = "shoal sweep needs {}, which is not installed: pip install 'shoal[sweep]'"


def named(kind: str, text: str, known: Mapping[str, str]) -> tuple[str, dict[str, Any]]:
    """The name and the arguments in a text like "asha" or "asha:min_resource=2,reduction_factor=3". Raises UserError."""
    name, sign, rest = text.partition(":")
    if name not in known:
        raise UserError(f"{kind}={text}: {name!r} is not known: {nearest(name, known)}")
    arguments: dict[str, Any] = {}
    for word in rest.split(",") if sign else ():
        key, equals, value = word.partition("=")
        if not equals or not key or not value:
            raise UserError(f"{kind}={text}: {word!r} is not of the form key=value; asha:reduction_factor=3, say")
        if key in arguments:
            raise UserError(f"{kind}={text}: {key!r} stands there twice; give it once")
        arguments[key] = _value(value)
    return name, arguments


def made(kind: str, text: str, **more: Any) -> Any:
    """A sampler or pruner of Optuna's by name. more: arguments that the text may replace. Raises UserError."""
    optuna = needed()
    known, room = (SAMPLERS, optuna.samplers) if kind == "sampler" else (PRUNERS, optuna.pruners)
    name, arguments = named(kind, text, known)
    if name == "pbt":
        Rules.of(text, arguments)
    if name in ("grid", "pbt"):
        return optuna.samplers.RandomSampler(seed=0)
    for module in NEEDS.get(name, ()):
        try:
            __import__(module)
        except ModuleNotFoundError:
            raise UserError(f"{kind}={name} needs {module}, which is not installed: pip install 'shoal[sweep]'") from None
    kind_of = getattr(room, known[name])
    takes = inspect.signature(kind_of).parameters
    if name == "percentile":
        more["percentile"] = 25.0
    for key in arguments:
        if key not in takes:
            raise UserError(f"{kind}={text}: {known[name]} has no {key!r}: {nearest(key, takes)}")
    try:
        return kind_of(**{key: value for key, value in {**more, **arguments}.items() if key in takes})
    except (ValueError, TypeError) as wrong:
        raise UserError(f"{kind}={text}: {wrong}") from None


def rules_of(sampler: str) -> Rules | None:
    """The rules of a population, if the sampler is one; else None. Raises UserError."""
    if sampler.partition(":")[0] != "pbt":
        return None
    return Rules.of(sampler, named("sampler", sampler, SAMPLERS)[1])


def needed() -> Any:
    """Optuna. Raises UserError if it is not installed."""
    try:
        import optuna
    except ModuleNotFoundError as missing:
        raise UserError(MISSING.format(missing.name)) from None
    return optuna


@contextmanager
def quiet() -> Iterator[None]:
    """Optuna tells every trial, and that a part is experimental: not so inside the block. What the user had set comes back."""
    optuna = needed()
    before = optuna.logging.get_verbosity()
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
            yield
    finally:
        optuna.logging.set_verbosity(before)


def distribution(axis: Axis) -> BaseDistribution:
    """The distribution of Optuna's that an axis is. A value that is no plain one stands there by its text."""
    optuna = needed()
    kinds = optuna.distributions
    if axis.values:
        return kinds.CategoricalDistribution([choice(value) for value in axis.values])
    listed = axis.listed()
    high = listed[-1] if listed else axis.high  # the last step of the range, which Optuna warns of if it is not the end
    if axis.whole:
        return kinds.IntDistribution(int(axis.low), int(high), log=axis.log, step=int(axis.step) or 1)
    return kinds.FloatDistribution(axis.low, high, log=axis.log, step=axis.step or None)


def choice(value: Any) -> Any:
    """A value as a choice of Optuna's, which are plain."""
    return value if value is None or isinstance(value, str | int | float | bool) else str(value)


class Study:
    """A study of Optuna's in memory, and its journal.

    sampler, pruner: a text, or an object of Optuna's. axes: of the settings that are asked for at once; an objective may ask
    for more. grid: arm -> its settings; None if the sampler decides. name: of the study.
    """

    def __init__(
        self,
        sampler: str | BaseSampler,
        pruner: str | BasePruner,
        goal: Goal,
        seed: int,
        axes: tuple[Axis, ...],
        grid: Callable[[int], Mapping[str, Any]] | None,
        journal: Path,
        name: str,
    ) -> None:
        optuna = needed()
        self._sampler, self.seed, self.grid = sampler, seed, grid
        self.axes = {axis.name: axis for axis in axes}
        self._fixed = {axis.name: distribution(axis) for axis in axes}
        self._storage = optuna.storages.InMemoryStorage()
        judge = made("pruner", pruner) if isinstance(pruner, str) else pruner
        self.study: Any = optuna.create_study(
            storage=self._storage,
            sampler=self._made(0),
            pruner=judge,
            direction="maximize" if goal.largest else "minimize",
            study_name=name,
        )
        self.prunes = not isinstance(judge, optuna.pruners.NopPruner)
        self.arms: dict[int, Trial] = {}
        self._journal_path, self._goal = journal, goal
        self._journal: _Journal | None = None

    def _made(self, arm: int, name: str = "") -> BaseSampler:
        """The sampler of an arm; or of one setting that an objective asks for, whose draw depends on no other arm and on no
        earlier life."""
        if not isinstance(self._sampler, str):
            return self._sampler
        own = (arm, zlib.crc32(name.encode())) if name else (arm,)
        numbers = () if self._sampler.startswith("qmc") else own  # one sequence for all arms
        number = draws.key(self.seed, "arm", *numbers) % 2**32
        found: BaseSampler = made("sampler", self._sampler, seed=number, constant_liar=True)
        return found

    def ask(self, arm: int, params: Mapping[str, Any] | None = None) -> None:
        """Begin an arm. params: its settings, if they are known: those of an earlier life."""
        given = params if params is not None else self.grid(arm) if self.grid else None
        if given is not None:
            self.study.enqueue_trial({name: self._in(name, value) for name, value in given.items()})
        if isinstance(self._sampler, str) and (self._fixed or self._sampler not in INDEPENDENT):
            self.study.sampler = self._made(arm)
        self.arms[arm] = self.study.ask(self._fixed)

    def _in(self, name: str, value: Any) -> Any:
        axis = self.axes.get(name)
        return choice(value) if axis is None or not isinstance(value, list) else choice(tuple(value))

    def params(self, arm: int) -> dict[str, Any]:
        """The settings of an arm so far, as they were typed."""
        found = self.arms[arm].params
        return {name: self._out(name, value) for name, value in found.items()}

    def _out(self, name: str, value: Any) -> Any:
        axis = self.axes.get(name)
        if axis is None or not axis.values:
            return value
        return next(each for each in axis.values if choice(each) == value and type(choice(each)) is type(value))

    def suggest(self, arm: int, name: str, distribution: str) -> Any:
        """The value of one more setting of an arm, for an objective. distribution: as Optuna's JSON. Raises UserError."""
        optuna = needed()
        what, trial = optuna.distributions.json_to_distribution(distribution), self.arms[arm]
        if isinstance(self._sampler, str):
            self.study.sampler = self._made(arm, name)
        if name in self._fixed:
            value = trial.params[name]
            if not what._contains(what.to_internal_repr(value)) if not hasattr(what, "choices") else value not in what.choices:
                raise UserError(
                    f"{name}={value}: the sweep's own axis has values that the objective's suggestion has not ({what})"
                )
            return value
        try:
            if isinstance(what, optuna.distributions.FloatDistribution):
                return trial.suggest_float(name, what.low, what.high, step=what.step, log=what.log)
            if isinstance(what, optuna.distributions.IntDistribution):
                return trial.suggest_int(name, what.low, what.high, step=what.step, log=what.log)
            return trial.suggest_categorical(name, what.choices)
        except ValueError as wrong:
            raise UserError(f"suggestion of {name}: {wrong}") from None

    def attribute(self, arm: int, key: str, value: Any) -> None:
        self.arms[arm].set_user_attr(key, value)

    def judge(self, arm: int, step: int, mean: float) -> bool:
        """Report the mean of an arm's trials at a step. Returns True if the pruner ends the arm here."""
        self.arms[arm].report(mean, step)
        return bool(self.arms[arm].should_prune())

    def tell(self, arm: int, state: str, value: float | None) -> None:
        """An arm is over."""
        states = needed().trial.TrialState
        trial = self.arms.pop(arm)
        if state == "complete":
            self.study.tell(trial, value)
        else:
            # a pruned arm's value is its last report, if it has one
            seen = self._storage.get_trial(trial._trial_id).intermediate_values
            told = states.PRUNED if state == "pruned" and (seen or self.prunes) else states.FAIL
            self.study.tell(trial, state=told)
        self._copy(self._storage.get_trial(trial._trial_id), arm)

    # Over lives

    def state(self, arm: int) -> dict[str, Any]:
        """Return the numbers that samplers and pruners keep of an arm that is over, as plain data for the next life. (The state
        that CMA-ES keeps is a pickle, and stays out: it begins anew.)"""
        trial = self.study.get_trials(deepcopy=False)[arm]
        optuna = needed()
        return {
            "distributions": {n: optuna.distributions.distribution_to_json(d) for n, d in trial.distributions.items()},
            "reported": {str(step): value for step, value in trial.intermediate_values.items() if math.isfinite(value)},
            "rungs": _numbers(trial.system_attrs),
            "study": _numbers(self._storage.get_study_system_attrs(self.study._study_id)),
        }

    def known(self, arm: int, state: str, value: float | None, params: Mapping[str, Any], kept: Mapping[str, Any]) -> None:
        """Take up an arm that was over in an earlier life."""
        optuna = needed()
        kinds = {name: optuna.distributions.json_to_distribution(text) for name, text in kept.get("distributions", {}).items()}
        reported = {int(step): number for step, number in kept.get("reported", {}).items()}
        ended = {"complete": "COMPLETE", "pruned": "PRUNED" if reported else "FAIL"}.get(state, "FAIL")
        last = reported[max(reported)] if reported else None
        trial = optuna.trial.create_trial(
            state=optuna.trial.TrialState[ended],
            value=value if state == "complete" else last if ended == "PRUNED" else None,
            params={name: self._in(name, params[name]) for name in kinds},
            distributions=kinds,
            intermediate_values=reported,
            system_attrs=dict(kept.get("rungs", {})),
        )
        self.study.add_trial(trial)
        for key, number in kept.get("study", {}).items():
            self._storage.set_study_system_attr(self.study._study_id, key, number)
        self._copy(self.study.get_trials(deepcopy=False)[-1], arm)

    def _copy(self, trial: FrozenTrial, arm: int) -> None:
        """Write an arm that is over to the journal, unless it is there."""
        optuna = needed()
        if self._journal is None:
            self._journal = _Journal(self._journal_path, self.study.study_name, self._goal)
        self._journal.add(
            arm,
            lambda: optuna.trial.create_trial(
                state=trial.state,
                value=trial.value,
                params=trial.params,
                distributions=trial.distributions,
                intermediate_values=trial.intermediate_values,
                user_attrs={**trial.user_attrs, "arm": arm},
            ),
        )


class _Journal:
    """Optuna's journal file, made anew if it cannot be read: it is a copy."""

    def __init__(self, path: Path, name: str, goal: Goal) -> None:
        optuna = needed()
        heal(path)
        try:
            self._storage = optuna.storages.JournalStorage(_Backend(path))
        except ValueError:  # after a power cut
            path.unlink()
            self._storage = optuna.storages.JournalStorage(_Backend(path))
        direction = optuna.study.StudyDirection.MAXIMIZE if goal.largest else optuna.study.StudyDirection.MINIMIZE
        if name not in {study.study_name for study in self._storage.get_all_studies()}:
            self._storage.create_new_study([direction], name)
        self._study = self._storage.get_study_id_from_name(name)
        there = self._storage.get_all_trials(self._study, deepcopy=False)
        self._there = {trial.user_attrs.get("arm") for trial in there}

    def add(self, arm: int, made: Callable[[], FrozenTrial]) -> None:
        if arm not in self._there:
            self._there.add(arm)
            self._storage.create_new_trial(self._study, template_trial=made())


class _Backend:
    """A journal file that is locked by itself and not synced. Optuna's own lock, a link beside the file, stays when its holder
    is killed; and a copy is worth no wait for the disk."""

    def __init__(self, path: Path) -> None:
        self._path, self._file = path, needed().storages.journal.JournalFileBackend(str(path))

    def read_logs(self, log_number_from: int) -> Any:
        return self._file.read_logs(log_number_from)

    def append_logs(self, logs: list[dict[str, Any]]) -> None:
        with self._path.open("ab") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            file.write("".join(json.dumps(log, separators=(",", ":")) + "\n" for log in logs).encode())


def _numbers(attributes: Mapping[str, Any]) -> dict[str, float | int]:
    return {
        key: value
        for key, value in attributes.items()
        if isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
    }


def _value(text: str) -> Any:
    if text.lower() in ("true", "false", "none"):
        return {"true": True, "false": False, "none": None}[text.lower()]
    for kind in (int, float):
        with suppress(ValueError):
            return kind(text)
    return text


def check_parts(sampler: Any, pruner: Any) -> None:
    """Raises UserError for a sampler or pruner that is neither a name nor an object of Optuna's."""
    optuna = needed()
    if not isinstance(sampler, str | optuna.samplers.BaseSampler):
        raise UserError(f"sampler is {signed(sampler)}: expected one of {', '.join(SAMPLERS)}, or a sampler of Optuna's")
    if not isinstance(pruner, str | optuna.pruners.BasePruner):
        raise UserError(f"pruner is {signed(pruner)}: expected one of {', '.join(PRUNERS)}, or a pruner of Optuna's")
