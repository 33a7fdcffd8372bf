"""Facts about how often a contribution's numbers are read on their way into the weights."""

from __future__ import annotations

import math
import re
import time
from collections.abc import Iterable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from shoal.aggregators.fedavg import FedAvgServer
from shoal.coordinator.checks import Inspector
from shoal.coordinator.deciding.events import Fold, Folded, Step, Stepped, Unfit
from shoal.coordinator.learner import Intake, Learner, LearnerThread, Make
from shoal.protocol.exact import PartialSum, squares
from shoal.protocol.layout import Bundle
from shoal.protocol.messages import Contribute
from shoal.protocol.work import Contribution, Task

START = Bundle.pack({"w": np.zeros(5, np.float32), "n": np.zeros(2), "half": np.zeros(3, np.float16)})


def delta(value: float) -> Bundle:
    return Bundle.pack({name: np.full(array.shape, value) for name, array in START.items()}, START.layout)


def intake(bundle: Bundle, weight: float = 2.0, index: int = 0, summed: bool = False) -> Intake:
    message = Contribute((0, index), 0, 0, weight, bundle.layout.digest, summed, {}, {}, 0.0, 0.0)
    return Intake(Fold(Task(0, index, (index,)), (index,), message, 0), bundle)


@pytest.mark.parametrize("deterministic", [True, False])
@pytest.mark.parametrize("bound", [0.0, 100.0])
def test_every_entry_is_squared_once_between_its_arrival_and_the_sum(
    deterministic: bool, bound: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    looked: list[str] = []

    def noted(bundle: Bundle, dtypes: Iterable[str] = ("f4", "f8")) -> float:
        looked.extend(dtypes)
        return squares(bundle, dtypes)

    monkeypatch.setattr("shoal.coordinator.checks.squares", noted)
    monkeypatch.setattr("shoal.protocol.exact.squares", noted)
    learner = Learner(FedAvgServer(START, deterministic=deterministic), Inspector(norm=bound), time.monotonic)
    learner.put([intake(delta(0.5))])
    assert sorted(looked) == ["f2", "f4", "f8"]
    learner.put([Make(Step(1, 0, 0))])
    assert [type(outcome) for outcome in learner.outcomes] == [Folded, Stepped]
    assert sorted(looked) == ["f2", "f2", "f4", "f4", "f8", "f8"]  # the new weights, once
    assert learner.newest[1]["w"].tolist() == [0.5] * 5


def said(checks: Inspector, *jobs: Any) -> list[str]:
    learner = Learner(FedAvgServer(START), checks, time.monotonic)
    learner.put(jobs)
    return [outcome.reason for outcome in learner.outcomes if isinstance(outcome, Unfit)]


def test_what_is_out_of_bounds_is_refused_with_number_and_bound() -> None:
    norm = 0.5 * math.sqrt(7)
    assert said(Inspector(norm=1.01 * norm, examples=2.0), intake(delta(0.5))) == []
    [why] = said(Inspector(norm=0.99 * norm), intake(delta(0.5)))
    assert why == f"norm {norm:g} is above the bound of {0.99 * norm:g}"
    [why] = said(Inspector(examples=1.5), intake(delta(0.5)))
    assert why == "weight 2 is above the cap of 1.5"
    [why] = said(Inspector(), intake(delta(math.nan)))
    assert why == "not finite: 'w' holds NaN or an infinity"


@pytest.mark.parametrize(("name", "value"), [("n", math.inf), ("half", math.nan)])
def test_the_array_that_is_not_finite_is_named(name: str, value: float) -> None:
    odd = delta(0.5)
    odd[name][1] = value
    [why] = said(Inspector(), intake(odd))
    assert re.search(f"{name!r} .*holds NaN or an infinity", why)


def test_a_norm_above_what_a_number_holds_is_refused_though_each_entry_is_finite() -> None:
    large = delta(0.0)
    large["n"][:] = 1e200
    assert said(Inspector(), intake(large)) == ["too large: its squared norm has no number"]


@pytest.mark.parametrize("summed", [True, False])
def test_what_is_far_above_the_median_of_earlier_versions_is_refused_where_no_bound_is_set(summed: bool) -> None:
    def made(value: float, weight: float) -> Intake:
        if not summed:
            return intake(delta(value), weight)
        part = PartialSum(START.layout)
        part.add(delta(value), weight)
        return intake(part.bundle(), part.weight, summed=True)

    honest = [made(0.5, 2.0 + turn) for turn in range(10)]
    step = Make(Step(1, 0, 0))
    assert said(Inspector(factor=100.0), *honest, made(200.0, 2.0), made(0.5, 2000.0)) == []  # nothing is usual yet
    norm, weight = said(Inspector(factor=100.0), *honest, step, made(200.0, 2.0), made(0.5, 2000.0), made(40.0, 500.0))
    assert norm.endswith("is above 100 times the median: set norm_bound")
    assert weight == "weight 2000 of a client is above 100 times the median: set max_examples"
    assert said(Inspector(600.0, 5000.0, 100.0), *honest, step, made(200.0, 2.0), made(0.5, 2000.0)) == []
    assert said(Inspector(), *honest, step, made(200.0, 2.0), made(0.5, 2000.0)) == []


def test_nothing_is_usual_before_ten_contributions_or_where_all_norms_are_zero() -> None:
    step = Make(Step(1, 0, 0))
    nine, ten = [intake(delta(0.5)) for _ in range(9)], [intake(delta(0.0)) for _ in range(10)]
    assert said(Inspector(factor=100.0), *nine, step, intake(delta(0.5), 2000.0), intake(delta(200.0))) == []
    assert said(Inspector(factor=100.0), *ten, step, intake(delta(200.0))) == []


def test_the_weight_of_a_sum_is_compared_by_its_mean_client() -> None:
    checks, bundle = Inspector(factor=2.0), delta(0.5)
    message = intake(bundle).fold.message
    for _ in range(10):
        assert checks.look(bundle, replace(message, weight=30.0), clients=3)[0] == ""
        checks.taken()
    checks.step()
    assert checks.look(bundle, replace(message, weight=60.0), clients=3)[0] == ""
    assert checks.look(bundle, replace(message, weight=60.5), clients=3)[0].startswith(
        "weight 20.1667 of a client is above 2 times"
    )


@pytest.mark.parametrize("exact", [True, False])
def test_the_norm_of_a_sum_is_that_of_its_mean(exact: bool) -> None:
    part = PartialSum(START.layout, exact)
    for weight in (2.0, 6.0):
        part.add(delta(0.5), weight)
    message = intake(part.bundle(), part.weight, summed=True).fold.message
    norm = 0.5 * math.sqrt(5)  # of float32 entries
    assert Inspector().look(part.bundle(), message) == Inspector(norm=1.001 * norm).look(part.bundle(), message) == ("", None)
    assert Inspector(norm=0.999 * norm).look(part.bundle(), message)[0].startswith(f"norm {norm:g} is above")


@pytest.mark.parametrize(("seconds", "together"), [(1e-6, [3]), (0.01, [1, 2, 3])])
def test_those_whose_contributions_take_long_are_told_at_once_and_others_together(seconds: float, together: list[int]) -> None:
    now, told = [0.0], []

    class Slow(FedAvgServer):
        def fold(self, contribution: Contribution) -> None:
            now[0] += seconds
            super().fold(contribution)

    learner = LearnerThread(Slow(START), Inspector(), lambda: now[0], wake=lambda: told.append(len(learner.outcomes)))
    learner.put([intake(delta(0.5), index=index) for index in range(3)])
    learner.finish()
    assert list(dict.fromkeys(told)) == together
    assert [type(outcome) for outcome in learner.outcomes] == [Folded] * 3
