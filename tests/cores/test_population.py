"""Population based training: which arm begins from which, with which settings."""

from __future__ import annotations

import random

import pytest

from shoal.protocol.errors import UserError
from shoal.sweeps.arms import Goal
from shoal.sweeps.population import Population, Rules, changed
from shoal.sweeps.space import Axis
from shoal.sweeps.study import rules_of

LR = Axis("lr", (), 1e-4, 1.0, log=True)
SIZE = Axis("size", (), 1, 64, whole=True, step=1.0)
KIND = Axis("kind", ("a", "b", "c"))
STEPS = Axis("steps", (), 8, 64, whole=True, step=8.0)
TENTHS = Axis("tenths", (), 0.0, 1.0, step=0.25)


def population(rules: Rules = Rules(8, 3), seed: int = 0, end: int = 12, largest: bool = True) -> Population:  # noqa: B008
    return Population(rules, (LR, KIND), seed, Goal("accuracy", largest), end)


def lived(it: Population, generation: int, values: list[float | None]) -> None:
    first = generation * it.rules.population
    for at, value in enumerate(values):
        it.over(first + at, it.settings(first + at), value)


def test_the_first_generation_is_drawn_from_the_axes_and_the_same_for_a_seed() -> None:
    found = [population().settings(arm) for arm in range(8)]
    assert found == [population().settings(arm) for arm in reversed(range(8))][::-1]
    assert found != [population(seed=1).settings(arm) for arm in range(8)]
    assert all(1e-4 <= its["lr"] <= 1 and its["kind"] in "abc" for its in found)
    assert len({its["lr"] for its in found}) == 8
    assert [population().parent(arm) for arm in range(8)] == [None] * 8


def test_a_run_is_divided_into_parts_that_end_at_its_end() -> None:
    assert [population(end=100).until(arm) for arm in (0, 7, 8, 15, 16, 23)] == [34, 34, 67, 67, 100, 100]


@pytest.mark.parametrize("largest", [True, False])
def test_the_last_quarter_begins_from_the_best_quarter_and_all_others_go_on_as_they_were(largest: bool) -> None:
    it = population(largest=largest)
    lived(it, 0, [3.0, 8.0, 1.0, 5.0, 7.0, 2.0, 6.0, 4.0])
    last, best = ([2, 5], {1, 4}) if largest else ([1, 4], {2, 5})
    for place in range(8):
        parent, its = it.parent(8 + place), it.settings(8 + place)
        if place in last:
            assert parent in best
            assert its != it.settings(parent if parent is not None else 0)
        else:
            assert parent == place
            assert its == it.settings(place)


def test_an_arm_that_failed_is_replaced_and_is_nobody_s_origin() -> None:
    it = population()
    lived(it, 0, [None, None, None, None, 1.0, None, None, None])
    assert [it.parent(arm) for arm in range(8, 16)] == [4] * 8
    assert it.settings(12) == it.settings(4)
    lived(it, 1, [None] * 8)
    assert [it.parent(arm) for arm in range(16, 24)] == [None] * 8  # nothing is left to go on from
    assert len({it.settings(arm)["lr"] for arm in range(16, 24)}) == 8


def test_with_a_quantile_of_0_nobody_is_replaced() -> None:
    it = population(Rules(4, 2, quantile=0.0))
    lived(it, 0, [1.0, 2.0, 3.0, 4.0])
    assert [it.parent(arm) for arm in range(4, 8)] == [0, 1, 2, 3]


def test_what_an_arm_is_depends_on_no_arm_of_its_own_generation() -> None:
    orders = []
    for seed in range(3):
        it = population()
        lived(it, 0, [float(at * 7 % 8) for at in range(8)])
        arms = list(range(8, 16))
        random.Random(seed).shuffle(arms)
        for arm in arms:
            it.over(arm, it.settings(arm), float(arm % 3))
        orders.append([(it.parent(arm), it.settings(arm)) for arm in range(8, 24)])
    assert orders[0] == orders[1] == orders[2]


@pytest.mark.parametrize(
    ("axis", "value", "near"),
    [
        (LR, 0.01, {0.008, 0.0125}),
        (LR, 1.0, {0.8, 1.0}),
        (SIZE, 2, {1, 2, 3}),
        (SIZE, 40, {32, 50}),
        (SIZE, 64, {51, 64, 63}),
        (KIND, "a", {"a", "b"}),
        (KIND, "b", {"a", "c"}),
        (STEPS, 16, {8, 24}),
        (TENTHS, 0.5, {0.25, 0.75}),
    ],
)
def test_a_change_is_to_a_value_near_by_and_on_the_axis(axis: Axis, value: object, near: set[object]) -> None:
    found = {changed(axis, value, random.Random(seed)) for seed in range(40)}
    assert found <= near
    assert found - {value}
    assert all(type(each) is type(value) for each in found)


def test_settings_that_came_back_from_json_are_those_that_went_in() -> None:
    wide = Axis("hidden", ((64,), (32, 32), (16,)))
    for parent in ([32, 32], (32, 32)):
        it = Population(Rules(2, 2, quantile=0.5, resample=0.0), (wide,), 0, Goal("accuracy", True), 8)
        it.over(0, {"hidden": parent}, 1.0)
        it.over(1, {"hidden": [16]}, 0.0)
        assert it.settings(2) == {"hidden": (32, 32)}
        assert it.settings(3)["hidden"] in ((64,), (16,))


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("pbt:population=1", "population is 1: allowed are whole numbers from 2 to 10000"),
        ("pbt:generations=2.5", "generations is 2.5: allowed are whole numbers"),
        ("pbt:quantile=0.6", "quantile is 0.6: allowed are numbers from 0 to 0.5"),
        ("pbt:resample=true", "resample is True: allowed are numbers from 0 to 1"),
        ("pbt:size=4", "pbt has no 'size': it has population, generations, quantile, resample"),
        ("pbt:population=5000,generations=5000", "population times generations is above 10,000"),
        ("pbt:population", "not of the form key=value"),
    ],
)
def test_a_wrong_rule_is_one_line(text: str, line: str) -> None:
    with pytest.raises(UserError, match=line.replace("(", r"\(")):
        rules_of(text)
    assert rules_of("pbt:population=4") == Rules(4)
    assert rules_of("tpe") is None
