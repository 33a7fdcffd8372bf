"""The trial that a user's objective is called with, in a process of its own.

The one idea: it is a trial of Optuna's in all that an objective asks of it. A suggestion goes to the sweep and back; a report
waits for its verdict only if trials can be pruned.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any

from optuna.distributions import (
    BaseDistribution,
    CategoricalDistribution,
    FloatDistribution,
    IntDistribution,
    distribution_to_json,
)
from optuna.trial import BaseTrial

from shoal.protocol.errors import UserError, signed
from shoal.sweeps.line import Line


class Trial(BaseTrial):  # type: ignore[misc]  # of optuna, an extra
    """A trial of an arm under a seed.

    number: of the trial. seed: its seed; `random`, numpy and torch are set from it before the objective is called.
    """

    def __init__(self, line: Line, told: Mapping[str, Any]) -> None:
        self._line, self._trial, self._waits = line, int(told["trial"]), bool(told["waits"])
        self._params: dict[str, Any] = dict(told["params"])
        self._distributions: dict[str, BaseDistribution] = {}
        self._attributes: dict[str, Any] = {}
        self._constraints: dict[str, float] = {}
        self._began = datetime.now()
        self._pruned = False
        self.seed, self.step = int(told["seed"]), 0

    def _suggested(self, name: str, what: BaseDistribution) -> Any:
        if name == "seed":
            return self.seed
        if name not in self._distributions:
            self._line.say({"suggest": self._trial, "name": name, "distribution": distribution_to_json(what)})
            answer = self._line.hear()
            if "wrong" in answer:
                raise UserError(answer["wrong"])
            self._params[name], self._distributions[name] = answer["value"], what
        return self._params[name]

    def suggest_float(self, name: str, low: float, high: float, *, step: float | None = None, log: bool = False) -> float:
        return float(self._suggested(name, FloatDistribution(low, high, log=log, step=step)))

    def suggest_int(self, name: str, low: int, high: int, *, step: int = 1, log: bool = False) -> int:
        return int(self._suggested(name, IntDistribution(low, high, log=log, step=step)))

    def suggest_categorical(self, name: str, choices: Sequence[Any]) -> Any:
        for value in choices:
            if not (value is None or isinstance(value, str | int | float | bool)):
                raise UserError(f"choice {signed(value)} of {name}: a choice is a number, a text, true, false or None")
        found = self._suggested(name, CategoricalDistribution(choices))
        return next((value for value in choices if value == found and type(value) is type(found)), found)

    def suggest_uniform(self, name: str, low: float, high: float) -> float:
        return self.suggest_float(name, low, high)

    def suggest_loguniform(self, name: str, low: float, high: float) -> float:
        return self.suggest_float(name, low, high, log=True)

    def suggest_discrete_uniform(self, name: str, low: float, high: float, q: float) -> float:
        return self.suggest_float(name, low, high, step=q)

    def report(self, value: float, step: int) -> None:
        try:
            number, at = float(value), int(step)
        except (TypeError, ValueError):
            raise UserError(f"trial.report({value!r:.60}, {step!r:.60}): expected a number and a step") from None
        self.step = max(self.step, at)
        if self._pruned or number != number:
            return
        self._line.say({"said": self._trial, "step": at, "value": number})
        if self._waits:
            self._pruned = not self._line.hear()["go"]

    def should_prune(self) -> bool:
        return self._pruned

    def set_user_attr(self, key: str, value: Any) -> None:
        try:
            json.dumps(value, allow_nan=False)
        except (TypeError, ValueError):
            raise UserError(f"user attribute {key} is {signed(value)}: expected plain data") from None
        self._attributes[key] = value
        self._line.say({"attribute": self._trial, "key": key, "value": value})

    def set_constraint(self, key: str, value: float) -> None:
        self._constraints[key] = float(value)

    @property
    def constraints(self) -> dict[str, float]:
        return dict(self._constraints)

    @property
    def params(self) -> dict[str, Any]:
        return dict(self._params)

    @property
    def distributions(self) -> dict[str, BaseDistribution]:
        return dict(self._distributions)

    @property
    def user_attrs(self) -> dict[str, Any]:
        return dict(self._attributes)

    @property
    def datetime_start(self) -> datetime | None:
        return self._began

    @property
    def number(self) -> int:
        return self._trial
