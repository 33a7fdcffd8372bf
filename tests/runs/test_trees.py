"""Bagged gradient boosting: trees as arrays say what XGBoost says, and strangers' trees are checked."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from torch import nn
from typed import ran
from whole import run

from shoal import Federated
from shoal.aggregators.bagging import Bagging
from shoal.jobs.job import Job
from shoal.nets.trees import check, layout_of_trees, margins, no_trees, read
from shoal.protocol.errors import ProtocolError, UserError
from shoal.protocol.layout import Bundle
from shoal.protocol.work import Contribution, Task, Work

xgboost = pytest.importorskip("xgboost", reason="the extra shoal[trees] is not installed")

RNG = np.random.default_rng(0)
X = RNG.normal(size=(400, 5)).astype(np.float32)
Y = (X[:, 0] * X[:, 1] > 0).astype(np.int64) + (X[:, 2] > 1)


def grown(rounds: int = 3, depth: int = 3, missing: bool = False) -> tuple[Bundle, Any, Any]:
    x = np.where(RNG.random(X.shape) < 0.2, np.nan, X).astype(np.float32) if missing else X
    data = xgboost.DMatrix(x, label=Y)
    how = {"objective": "multi:softprob", "num_class": 3, "max_depth": depth, "base_score": 0.0, "nthread": 1}
    booster = xgboost.train(how, data, num_boost_round=rounds)
    return read(bytes(booster.save_raw("json")), depth), booster, data


@pytest.mark.parametrize("missing", [False, True])
def test_trees_as_arrays_say_what_xgboost_says(missing: bool):
    trees, booster, data = grown(missing=missing)
    x = np.asarray(data.get_data().toarray(), np.float32)
    if missing:
        held = data.get_data().tocoo()
        x = np.full(X.shape, np.nan, np.float32)
        x[held.row, held.col] = held.data
    np.testing.assert_allclose(margins(trees, x, 3), booster.predict(data, output_margin=True), atol=1e-6)
    check(trees, 5)


def job(**settings: object) -> Job:
    own = {"method": "xgb_bagging", "clients": 1, "rounds": 4, "partition": "iid", "eta": 0.5, "max_depth": 3, **settings}
    return Federated(lambda: nn.Linear(5, 3), ((X[:300], Y[:300]), (X[300:], Y[300:])), **own)


def test_one_client_is_xgboost_itself():
    its = run(job(), 0)
    data = xgboost.DMatrix(X[:300], label=Y[:300])
    how = {"objective": "multi:softprob", "num_class": 3, "max_depth": 3, "eta": 0.5, "base_score": 0.0, "tree_method": "exact"}
    one = xgboost.train({**how, "nthread": 1}, data, num_boost_round=4)
    expected = one.predict(xgboost.DMatrix(X[300:]), output_margin=True)
    np.testing.assert_allclose(margins(its.weights, X[300:], 3), expected, atol=1e-5)


def test_a_round_by_hand_puts_all_clients_trees_in_and_divides_their_leaves():
    trees = [grown(1)[0], grown(1, missing=True)[0]]
    its = Bagging(layout_of_trees(12, 3), 5)
    for client in (1, 0):  # the order of arrival decides nothing
        its.fold(Contribution(Task(0, client, (client,)), 0, 0, Work(trees[client], 5.0)))
    assert its.step().metrics == {"trees": 6.0, "clients": 2.0}
    mean = (margins(trees[0], X, 3) + margins(trees[1], X, 3)) / 2
    np.testing.assert_allclose(margins(its.weights(), X, 3), mean, atol=1e-6)
    assert np.array_equal(its.weights()["feature"][:3], trees[0]["feature"])


def test_a_run_that_is_given_a_later_end_has_the_bits_of_one_that_began_with_it(tmp_path: Path):
    how = (
        "method=xgb_bagging",
        "clients=3",
        "max_depth=2",
        "num_class=10",
        "eval_every=0",
        "--actors",
        0,
        "--json",
        "--run-dir",
    )
    ran("simulate", "digits", "rounds=2", *how, tmp_path / "grows")
    later = ran("resume", tmp_path / "grows", "rounds=3", "--json").result
    assert (later["version"], later["metrics"]["trees"]) == (3, 90)
    assert later["weights_sha256"] == ran("simulate", "digits", "rounds=3", *how, tmp_path / "whole").result["weights_sha256"]


def test_a_run_has_the_same_bits_for_any_number_of_actors_and_learns():
    many = job(clients=5, cohort=3, rounds=6)
    one, two = run(many, 0), run(many, 2)
    assert one.sha256 == two.sha256
    evaluate = many.central()
    assert evaluate is not None
    assert evaluate(one.weights)["accuracy"] > 0.75


def test_regression_fits_numbers():
    y = X[:, 0] + 2 * (X[:, 1] > 0)
    its = Federated(
        lambda: nn.Linear(5, 1), ((X[:300], y[:300]), (X[300:], y[300:])), method="xgb_bagging", clients=3, rounds=12
    )
    evaluate = its.central()
    assert evaluate is not None
    assert evaluate(run(its, 0).weights)["held_out_loss"] < 0.3 * float(y[300:].var())


def spoiled(name: str, place: tuple[int, ...], value: float) -> Bundle:
    trees = grown(1)[0].copy()
    trees[name][place] = value
    return trees


@pytest.mark.parametrize(
    ("trees", "said"),
    [
        (lambda: spoiled("feature", (0, 0), 5), "a column that is not one of 5"),
        (lambda: spoiled("feature", (0, 0), -2), "a column that is not one of 5"),
        (lambda: spoiled("feature", (0, 14), 1), "at its greatest depth"),
        (lambda: spoiled("value", (1, 0), np.nan), "NaN or an infinity"),
        (lambda: spoiled("count", (0,), 7), "3 trees says that it has 7"),
    ],
)
def test_strangers_trees_are_checked(trees: Callable[[], Bundle], said: str):
    its = Bagging(layout_of_trees(12, 3), 5)
    with pytest.raises(ProtocolError, match=said):
        its.fold(Contribution(Task(0, 0, (0,)), 0, 0, Work(trees(), 5.0)))
    assert not its.came


def test_an_empty_ensemble_says_nothing_and_a_cohort_that_is_too_large_is_refused():
    assert not margins(no_trees(layout_of_trees(4, 2)), X, 2).any()
    with pytest.raises(UserError, match="cohort=6: allowed is from 0 to clients=5"):
        job(clients=5, cohort=6)


@pytest.mark.parametrize("odd", [{"compress": "int8"}, {"norm_factor": 2.0}, {"compress_weights": "int8"}, {"norm_bound": 1.0}])
def test_what_takes_trees_for_changes_of_weights_is_refused(odd: dict[str, object]):
    with pytest.raises(UserError, match=r"which trees are not|trees have no norm"):
        job(**odd)
