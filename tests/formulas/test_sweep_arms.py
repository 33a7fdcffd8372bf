"""Spaces as they are typed, and arms by their mean and Student's interval, against the definitions."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest

from shoal.jobs.catalog import find
from shoal.jobs.settings import Range
from shoal.protocol.errors import UserError
from shoal.sweeps.arms import Arm, Goal, as_good, best, interval, ranked
from shoal.sweeps.space import Axis, check, said, space_of
from shoal.sweeps.study import PRUNERS, SAMPLERS, Study, made

MOST, LEAST = Goal("accuracy", True), Goal("loss", False)
KNOWN = {
    "lr": Range("", 0.1, above=0),
    "batch": Range("", 10, least=1),
    "hidden": Range("", (64, 64)),
    "data": Range("", ""),
    "kind": Range("", "a", choices=("a", "b")),
}


def arm(number: int, *values: float, **states: int) -> Arm:
    return Arm(number, {"lr": number}, dict(enumerate(values)), {"complete": len(values), **states})


def test_the_interval_is_student_s_at_95_percent() -> None:
    # 2.776445 is the 97.5 % point of t with 4 degrees of freedom, from a table
    values = [1.0, 2.0, 3.0, 4.0, 5.0]
    reach = 2.776445 * math.sqrt(2.5) / math.sqrt(5)
    assert interval(values) == pytest.approx((3 - reach, 3 + reach), rel=1e-6)
    assert interval([1.0]) is None


def test_the_interval_covers_the_mean_95_times_of_100() -> None:
    drawn = np.random.default_rng(0).normal(size=(2_000, 4))
    covered = [low <= 0 <= high for low, high in (interval(list(row)) or (1, 1) for row in drawn)]
    assert 0.935 <= np.mean(covered) <= 0.965


def test_the_best_arm_has_the_best_mean_and_not_the_luckiest_seed() -> None:
    lucky, steady = arm(0, 0.99, 0.5), arm(1, 0.8, 0.8)
    assert best([lucky, steady], MOST) is steady
    assert best([arm(0, 3.0), arm(1, 2.0)], LEAST) == arm(1, 2.0)


def test_an_arm_with_a_trial_that_failed_or_was_pruned_never_wins() -> None:
    assert best([arm(0, 0.99, failed=1), arm(1, 0.98, pruned=1), arm(2, 0.5)], MOST) == arm(2, 0.5)
    assert best([arm(0, 0.99, failed=1)], MOST) is None
    order = ranked([arm(0, failed=1), arm(1, pruned=1), arm(2, 0.1), arm(3, 0.9), arm(4, running=1)], MOST)
    assert [each.number for each in order] == [3, 2, 4, 1, 0]


def test_arms_are_compared_seed_by_seed() -> None:
    seeds = [0.1, 0.5, 0.9, 0.3]
    assert as_good(arm(0, *seeds), arm(1, *(value + 0.01 for value in seeds))) is False  # always a little better
    noise = (0.01, -0.02, 0.02, -0.01)
    assert as_good(arm(0, *seeds), arm(1, *map(sum, zip(seeds, noise, strict=True)))) is True
    assert as_good(arm(0, 0.1), arm(1, 0.2)) is None


@pytest.mark.parametrize(
    ("name", "text", "axis"),
    [
        ("lr", "0.01,0.1", Axis("lr", (0.01, 0.1))),
        ("lr", "1e-4..1e-1~log", Axis("lr", (), 1e-4, 0.1, True)),
        ("lr", "0..1", None),
        ("lr", "0.5..1~0.25", Axis("lr", (), 0.5, 1.0, False, 0.25)),
        ("batch", "8,16,32", Axis("batch", (8, 16, 32))),
        ("batch", "1..9", Axis("batch", (), 1, 9, False, 1.0, True)),
        ("batch", "8..64~log", Axis("batch", (), 8, 64, True, 0.0, True)),
        ("hidden", "64,64/128,128", Axis("hidden", ((64, 64), (128, 128)))),
        ("kind", "a,b", Axis("kind", ("a", "b"))),
    ],
)
def test_an_axis_is_read_as_typed_and_read_back_from_the_folder(name: str, text: str, axis: Axis | None) -> None:
    if axis is None:
        with pytest.raises(UserError, match="allowed is above 0"):
            space_of({name: text}, KNOWN)
        return
    space = space_of({name: text}, KNOWN)
    assert space.axes == (axis,)
    assert space_of(space.plain(), KNOWN) == space


def test_one_value_is_no_axis_and_a_path_with_dots_no_range() -> None:
    assert space_of({"lr": "0.1", "data": "../x", "hidden": "64,64"}, KNOWN).fixed == {
        "lr": 0.1,
        "data": "../x",
        "hidden": (64, 64),
    }
    assert space_of({"depth": 3}).axes == (Axis("depth", (3,)),)  # an objective finds it in its trial


def test_a_grid_is_the_product_in_the_order_typed_and_seeds_are_no_axis() -> None:
    space = space_of({"lr": "0.1,0.2", "batch": "1..3", "seed": "4..6"}, KNOWN)
    assert list(space.grid()) == [{"lr": lr, "batch": batch} for lr, batch in itertools.product((0.1, 0.2), (1, 2, 3))]
    assert (space.size, space.seeds) == (6, (4, 5, 6))
    assert [space.at(number) for number in range(6)] == list(space.grid())
    assert list(space.at(4)) == ["lr", "batch"]
    assert space_of({"lr": "0.1..0.2"}, KNOWN).size == 0


def test_python_s_own_values_say_the_same() -> None:
    from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

    told = {"a": [1, 2], "b": range(1, 4), "c": "1e-3..1~log", "d": np.array([0.5, 1.5])}
    space = space_of(
        {**told, "e": FloatDistribution(0.1, 1.0, log=True), "f": IntDistribution(1, 5), "g": CategoricalDistribution("xy")}
    )
    kinds = {axis.name: axis for axis in space.axes}
    assert kinds["b"].values == (1, 2, 3)
    assert kinds["d"].values == (0.5, 1.5)
    assert kinds["e"] == Axis("e", (), 0.1, 1.0, True)
    assert kinds["f"].listed() == (1, 2, 3, 4, 5)
    assert kinds["g"].values == ("x", "y")
    assert space_of(space.plain()) == space


@pytest.mark.parametrize(
    ("given", "line"),
    [
        ({"lr": ""}, "lr=: the list has no value"),
        ({"lr": "0.1,,0.2"}, "no value at one place"),
        ({"lr": []}, "lr: the list of values is empty"),
        ({"lr": "0.1..0.01"}, "from its lowest number to its highest: lr=0.01..0.1"),
        ({"lr": "1..x"}, "a range is LOW..HIGH"),
        ({"lr": "0.1..1~0"}, "step of a range is above 0"),
        ({"x": "0..1~log"}, "begins above 0"),
        ({"batch": "1..2.5"}, "batch is a whole number"),
        ({"batch": "0..5"}, "batch=0: allowed is from 1"),
        ({"batch": "2,2"}, "2 stands there twice"),
        ({"kind": "a,c"}, "allowed is one of a, b"),
        ({"seed": "5..3"}, "seed=5..3"),
        ({"seed": "-1,2"}, "allowed is from 0"),
        ({"seed": "0..1000000"}, "seeds are whole numbers"),
    ],
)
def test_a_space_that_cannot_be_is_one_line(given: dict[str, object], line: str) -> None:
    with pytest.raises(UserError, match=line.replace(".", r"\.")) as wrong:
        space_of(given, KNOWN)
    assert "\n" not in str(wrong.value)


def test_a_setting_that_the_method_lacks_is_told_as_the_job_tells_it() -> None:
    job = find("cartpole")
    with pytest.raises(UserError, match="mu is a setting of fedavg"):
        check(space_of({"mu": [0.1, 0.2]}, job.options()), job, grid=True)
    with pytest.raises(UserError, match="did you mean gamma"):
        check(space_of({"gama": [0.1, 0.2]}, job.options()), job, grid=True)


def test_every_sampler_and_pruner_that_is_named_can_be_made() -> None:
    import warnings

    for kind, known in (("sampler", SAMPLERS), ("pruner", PRUNERS)):
        for name in known:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                assert made(kind, name, seed=0, constant_liar=True) is not None
    assert made("pruner", "asha:reduction_factor=3")._reduction_factor == 3
    for text, line in (
        ("asha:x=1", "has no 'x'"),
        ("asha:reduction_factor=1", "reduction_factor"),
        ("ahsa", "did you mean asha"),
    ):
        with pytest.raises(UserError, match=line):
            made("pruner", text)


@pytest.mark.parametrize("sampler", ["random", "tpe", "qmc"])
def test_a_study_that_is_made_again_asks_for_the_arms_that_it_would_have_asked_for(sampler: str, tmp_path: object) -> None:
    from pathlib import Path

    from shoal.sweeps.study import quiet

    folder = Path(str(tmp_path))
    axes = space_of({"lr": "1e-4..1~log", "kind": ["a", "b"]}).axes

    def study(name: str) -> Study:
        return Study(sampler, "none", LEAST, 3, axes, None, folder / name, "sweep")

    def value(params: dict[str, object]) -> float:
        return math.log10(float(str(params["lr"]))) ** 2 + (params["kind"] == "a")

    with quiet():
        whole, rows = study("a"), []
        for number in range(24):
            whole.ask(number)
            params = whole.params(number)
            whole.tell(number, "complete", value(params))
            rows.append((params, value(params), whole.state(number)))
        cut = study("b")
        for number, (params, found, kept) in enumerate(rows[:13]):
            cut.known(number, "complete", found, params, kept)
        for number in range(13, 24):
            cut.ask(number)
            assert cut.params(number) == rows[number][0]
            cut.tell(number, "complete", rows[number][1])


def test_a_setting_is_said_as_it_is_typed() -> None:
    assert said({"lr": 0.1, "hidden": (64, 64), "on": True, "w": 1 / 3}) == "lr=0.1 hidden=64,64 on=true w=0.333333"
