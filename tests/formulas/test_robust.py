"""Robust rules against ten lines of numpy, ByzFL's results and rounds worked by hand."""

from __future__ import annotations

import math
import random
from collections.abc import Callable
from typing import Any

import byzfl_cases
import numpy as np
import pytest
import robust_references as reference
import torch
from federated_deltas import LAYOUT, TRAINABLE, bits, contribution, random_bundle, vector
from hypothesis import given, settings
from hypothesis import strategies as st

from shoal.aggregators.breakdown import NEEDS, fewest, most
from shoal.aggregators.centered_clipping import CenteredClipping
from shoal.aggregators.fedavg import FedAvgServer
from shoal.aggregators.fltrust import FLTrust
from shoal.aggregators.krum import Bulyan, Krum, MultiKrum
from shoal.aggregators.median import Median, TrimmedMean
from shoal.aggregators.rfa import RFA
from shoal.aggregators.robust import RobustServer, Rule, buckets
from shoal.nets.updates import Momentum
from shoal.protocol.errors import ProtocolError, UserError
from shoal.protocol.exact import PartialSum
from shoal.protocol.layout import Bundle, Layout, Scattered

CLOSE = {"rtol": 1e-6, "atol": 1e-6}


def server(rule: Rule, start: Bundle, trainable: int | None = None, **more: Any) -> RobustServer:
    return RobustServer(FedAvgServer(start, trainable, deterministic=False), rule, **more)


def made(rule: Rule, x: Any, *, weights: Any = None, order: Any = None, **more: Any) -> np.ndarray:
    """The step that the rule makes of the rows of x."""
    x = np.asarray(x, np.float32)
    aggregator = server(rule, vector(np.zeros(x.shape[1])), **more)
    return stepped(aggregator, x, order)


def stepped(aggregator: RobustServer, x: Any, order: Any = None) -> np.ndarray:
    before = aggregator.weights()["w"].astype(np.float64)
    for client in range(len(x)) if order is None else order:
        aggregator.fold(contribution(vector(x[client]), client=client))
    aggregator.step()
    return aggregator.weights()["w"].astype(np.float64) - before


def own(delta: Any) -> Callable[[Bundle, int], Bundle]:
    return lambda weights, version: vector(delta)


RULES: dict[str, tuple[Callable[[int], Rule], Callable[[Any, int], Any]]] = {
    "median": (Median, lambda x, f: np.median(x, axis=0)),
    "trimmed_mean": (TrimmedMean, reference.trimmed_mean),
    "krum": (Krum, lambda x, f: reference.multikrum(x, len(x) - f - 2, 1)),
    "multikrum": (MultiKrum, lambda x, f: reference.multikrum(x, len(x) - f - 2, len(x) - f)),
    "multikrum of 3": (lambda f: MultiKrum(f, keep=3), lambda x, f: reference.multikrum(x, len(x) - f - 2, 3)),
    "bulyan": (Bulyan, reference.bulyan),
    "rfa": (lambda f: RFA(f, 20, 1e-3), lambda x, f: reference.rfa(x, 20, 1e-3)),
    "centered_clipping": (
        lambda f: CenteredClipping(f, 2.0, 3),
        lambda x, f: reference.centered_clipping(x, np.zeros(x.shape[1]), 2.0, 3),
    ),
    "fltrust": (lambda f: FLTrust(f, root=own(np.arange(1, 6))), lambda x, f: reference.fltrust(x, np.arange(1.0, 6))),
}


def drawn(seed: int, f: int, n: int) -> np.ndarray:
    """Deltas of which the first f are far from the others."""
    rng = np.random.default_rng(seed)
    x = rng.normal(0.5, 1, (n, 5))
    x[:f] = rng.normal(0, 20, (f, 5))
    return x.astype(np.float32).astype(np.float64)


@pytest.mark.parametrize("pre", ["none", "nnm", "bucketing"])
@pytest.mark.parametrize("name", RULES)
def test_a_step_is_the_rule_of_the_paper(name, pre):
    make, expected = RULES[name]
    for seed in range(25):
        f = 1 + seed % 3
        x = drawn(seed, f, 2 * (4 * f + 3) + seed % 4)
        given = x
        if pre == "nnm":
            given = reference.nearest_neighbour_mixing(x, f)
        if pre == "bucketing":
            aggregator = server(make(f), vector(np.zeros(5)), pre=pre, seed=seed)
            given = reference.bucketed(x, bucket_order(aggregator, len(x)), 2)
        np.testing.assert_allclose(made(make(f), x, pre=pre, seed=seed), expected(given, f), **CLOSE)


def bucket_order(aggregator: RobustServer, n: int) -> np.ndarray:
    """The order in which this server's next step takes n clients."""
    from shoal.protocol import draws

    key = draws.key(aggregator.seed, "buckets", aggregator.rounds)
    return np.random.Generator(np.random.Philox(key)).permutation(n)


@pytest.mark.parametrize("rule", byzfl_cases.RULES)
def test_a_step_is_what_byzfl_makes_in_a_thousand_random_cases(rule):
    """ByzFL 0.0.11 in float64 (byzfl_cases.py wrote its results)."""
    for case in byzfl_cases.cases(rule):
        agrees(case)


def agrees(case):
    """A case of ByzFL's. Its Krum counts n - f - 1 neighbours, which are ours of f - 1."""
    x, f = case["x"], case["f"]
    rule = {
        "Median": lambda: Median(f),
        "TrMean": lambda: TrimmedMean(f),
        "GeometricMedian": lambda: RFA(f, case["T"], case["nu"]),
        "Krum": lambda: Krum(f - 1),
        "MultiKrum": lambda: MultiKrum(f - 1, keep=len(x) - f),
        "CenteredClipping": lambda: CenteredClipping(f, case["tau"], case["L"]),
        "NNM": lambda: Median(f),
    }[case["rule"]]()
    aggregator = server(rule, vector(np.zeros(x.shape[1])), pre="nnm" if case["rule"] == "NNM" else "none")
    for expected in case["expected"]:  # centered clipping remembers
        np.testing.assert_allclose(stepped(aggregator, x), expected, **CLOSE)


# By hand. Five clients, one entry or two.

FIVE = [[1.0], [2.0], [4.0], [5.0], [100.0]]


def test_by_hand_the_median_and_the_trimmed_mean():
    assert made(Median(), FIVE).tolist() == [4.0]
    assert made(Median(), FIVE[:4]).tolist() == [3.0]  # the mean of 2 and 4
    assert made(TrimmedMean(1), FIVE).tolist() == pytest.approx([11 / 3], rel=1e-6)  # of 2, 4, 5


def test_by_hand_krum_and_multikrum():
    """n = 5, f = 1: 2 neighbours. Scores: 1: 1 + 9 = 10; 2: 1 + 4 = 5; 4: 1 + 4 = 5; 5: 1 + 9 = 10; 100: 95^2 + 96^2."""
    assert made(Krum(1), FIVE).tolist() == [2.0]  # of equal scores the lowest client
    assert made(MultiKrum(1, keep=2), FIVE).tolist() == [3.0]
    assert made(MultiKrum(1), FIVE).tolist() == [3.0]  # the mean of 1, 2, 4, 5


def test_by_hand_bulyan():
    """n = 7, f = 1: five are selected, by Krum among 7, 6, 5, 4, 3 with 4, 3, 2, 1, 1 neighbours.

    Of 1, 2, 3, 4, 5, 6, 100: 3 (score 1+1+4+4 = 10, as 4; the lowest client), 4 (1+4+4 of 2, 5, 6 as 2's 1+4+9 and 5's 1+1+9
    = 11 are more: 9), 2 (1 + 9 = 10; 1: 1 + 16, 5: 1 + 9 = 10, 6: 1 + 16; the lowest client), 5 (1; 1: 16, 6: 1), then 6 or 1
    (25 each) and 100: 1. Their median, of 1, 2, 3, 4, 5, is 3; the three nearest to it are 2, 3, 4.
    """
    assert made(Bulyan(1), [[float(v)] for v in (1, 2, 3, 4, 5, 6, 100)]).tolist() == pytest.approx([3.0])


def test_by_hand_the_geometric_median():
    """Of (3, 0), (-3, 0), (0, 4) and nu = 1: from 0, distances 3, 3, 4, so v = (0, 4 / 4) / (1/3 + 1/3 + 1/4) = (0, 12/11)."""
    x = [[3.0, 0.0], [-3.0, 0.0], [0.0, 4.0]]
    np.testing.assert_allclose(made(RFA(0, 1, 1.0), x), [0, 12 / 11], **CLOSE)
    np.testing.assert_allclose(made(RFA(1, 300), x), [0, math.sqrt(3)], **CLOSE)  # Fermat's point: 120 degrees to each side


def test_by_hand_centered_clipping_over_two_rounds():
    """Radius 2 from 0: 1, -1 and 9 count as 1, -1 and 2, so v = 2/3. From 2/3: 1/3, -5/3, 2, so v = 2/3 + 2/9 = 8/9."""
    aggregator = server(CenteredClipping(0, 2.0), vector([0.0]))
    x = [[1.0], [-1.0], [9.0]]
    np.testing.assert_allclose([stepped(aggregator, x)[0] for _ in range(2)], [2 / 3, 8 / 9], **CLOSE)


def test_by_hand_fltrust():
    """The server's own delta is (2, 0). (3, 4): cosine 0.6, scaled to (1.2, 1.6). (8, -6): 0.8, (1.6, -1.2). (-5, 0): below 0,
    out. (0.6 (1.2, 1.6) + 0.8 (1.6, -1.2)) / 1.4 = (2, 0) / 1.4."""
    found = made(FLTrust(root=own([2.0, 0.0])), [[3.0, 4.0], [8.0, -6.0], [-5.0, 0.0]])
    np.testing.assert_allclose(found, [2 / 1.4, 0.0], **CLOSE)


def test_by_hand_mixing_and_bucketing():
    """n = 4, f = 1: 1, 2, 4 and 50 become the means of their three nearest: 7/3, 7/3, 7/3 and 56/3."""
    x = [[1.0], [2.0], [4.0], [50.0]]
    np.testing.assert_allclose(made(Median(1), x, pre="nnm"), [7 / 3], **CLOSE)
    mixing = buckets(torch.tensor([3, 0, 2, 1, 4]), 2)
    assert (mixing @ torch.tensor([1.0, 2.0, 4.0, 50.0, 9.0], dtype=torch.float64)).tolist() == [25.5, 3.0, 9.0]


# What is true of every rule


@given(st.permutations(range(11)), st.sampled_from(sorted(RULES)), st.sampled_from(["none", "nnm", "bucketing"]))
@settings(max_examples=60)
def test_order_of_arrival_changes_no_bit(order, name, pre):
    make, x = RULES[name][0], drawn(7, 1, 11)
    assert (made(make(1), x, pre=pre) == made(make(1), x, pre=pre, order=order)).all()


@pytest.mark.parametrize("name", RULES)
def test_one_delta_of_1e18_moves_the_weights_no_further_than_the_honest_ones_reach(name):
    x = drawn(3, 0, 11)
    x[4] = 1e18
    if name == "centered_clipping":
        assert np.linalg.norm(made(RULES[name][0](1), x)) < 3 * 2.0  # iterations x radius
    elif name == "fltrust":
        assert np.linalg.norm(made(RULES[name][0](1), x)) <= np.linalg.norm(np.arange(1, 6)) * (1 + 1e-6)
    else:
        assert np.abs(made(RULES[name][0](1), x)).max() < np.abs(np.delete(x, 4, axis=0)).max()


@pytest.mark.parametrize("name", RULES)
def test_a_restored_server_goes_on_with_the_same_bits_and_forgets_a_half_folded_round(name):
    rounds = [drawn(seed, 1, 11) for seed in range(4)]
    unbroken, restored = (server(RULES[name][0](1), vector(np.zeros(5)), pre="bucketing", bucket_size=1) for _ in range(2))
    for x in rounds[:2]:
        stepped(unbroken, x)
    for client in range(5):
        restored.fold(contribution(vector(rounds[3][client]), client=client))
    restored.load(unbroken.weights(), unbroken.state())
    for x in rounds[2:]:
        assert (stepped(restored, x) == stepped(unbroken, x)).all()
    assert restored.weights().sha256() == unbroken.weights().sha256()


def test_a_state_of_another_method_is_refused():
    aggregator = server(CenteredClipping(0, 1.0), vector([0.0]))
    with pytest.raises(ValueError, match="'robust_rounds' is missing"):
        aggregator.load(vector([0.0]), FedAvgServer(vector([0.0])).state())
    with pytest.raises(ValueError, match="'center' is missing"):
        aggregator.load(vector([0.0]), server(Median(), vector([0.0])).state())


def test_fewer_rows_than_the_rule_is_proven_for_change_no_weights():
    aggregator = server(Krum(1), vector([0.0]))
    for client in range(4):
        aggregator.fold(contribution(vector([1.0]), client=client))
    moved = aggregator.step()
    assert (moved.weights, moved.metrics) == (False, {"examples": 4.0, "too_few": 1.0})
    assert aggregator.weights()["w"].tolist() == [0.0]
    assert stepped(aggregator, FIVE).tolist() == [2.0]  # the next round begins from nothing
    grouped = server(Median(1), vector([0.0]), pre="bucketing", bucket_size=2)
    for client in range(4):  # two groups, of which one may be malicious
        grouped.fold(contribution(vector([1.0]), client=client))
    assert not grouped.step().weights


def test_where_no_client_is_trusted_all_weights_stay():
    start = {"w": np.zeros(2, np.float32), "seen": np.array([True])}
    aggregator = server(FLTrust(root=lambda *_: Bundle.pack(start | {"w": np.ones(2, np.float32)})), Bundle.pack(start))
    aggregator.fold(contribution(Bundle.pack({"w": -np.ones(2, np.float32), "seen": np.array([False])})))
    moved = aggregator.step()
    assert (moved.weights, moved.metrics["left_out"]) == (False, 1.0)
    assert aggregator.weights()["seen"].tolist() == [True]


def test_a_step_of_nothing_is_an_error_of_ours():
    with pytest.raises(RuntimeError, match="nothing folded"):
        server(Median(), vector([1.0])).step()


def test_sums_other_layouts_and_numbers_that_are_none_are_refused_and_leave_no_trace():
    aggregator = server(Median(), vector([0.0, 0.0]))
    part = PartialSum(vector([0.0, 0.0]).layout)
    part.add(vector([1.0, 1.0]), 1.0)
    for wrong, line in (
        (contribution(part.bundle(), 1.0, summed=True), "is a sum"),
        (contribution(vector([1.0, math.nan])), "'w' of a contribution holds NaN"),
        (contribution(Bundle.pack({"v": np.zeros(2)})), "first difference"),
    ):
        with pytest.raises(ProtocolError, match=line):
            aggregator.fold(wrong)
    with pytest.raises(RuntimeError, match="nothing folded"):
        aggregator.step()


def test_a_weight_that_a_client_claims_counts_nothing():
    light, heavy = (server(TrimmedMean(1), vector([0.0])) for _ in range(2))
    for client, (value,) in enumerate(FIVE):
        light.fold(contribution(vector([value]), client=client))
        heavy.fold(contribution(vector([value]), 1e6 if client == 4 else 1.0, client=client))
    metrics = light.step().metrics, heavy.step().metrics
    assert light.weights().sha256() == heavy.weights().sha256()
    assert [each["examples"] for each in metrics] == [5.0, 1e6 + 4]


def test_a_server_optimizer_goes_along_the_rules_delta():
    aggregator = RobustServer(FedAvgServer(vector([0.0]), update=Momentum(1.0, 0.5), deterministic=False), Median())
    assert [stepped(aggregator, FIVE)[0] for _ in range(2)] == [4.0, 6.0]


def test_a_contribution_in_pieces_and_without_frozen_arrays_is_a_whole_one():
    layout = Layout.of({"w": ("f4", (16,)), "frozen": ("f4", (8,)), "count": ("i8", ())}, still=["frozen"])
    whole, thin = (server(Median(), Bundle.zeros(layout), 16) for _ in range(2))
    rng = np.random.default_rng(0)
    for client in range(3):
        arrays = {"w": rng.normal(size=16), "count": np.array(3 + client)}
        narrow = Bundle.pack(arrays, layout.moving)
        pieces = [narrow.data[:64], narrow.data[64:]]
        whole.fold(contribution(Bundle.pack({**arrays, "frozen": np.zeros(8)}, layout), client=client))
        thin.fold(contribution(Scattered(layout.moving, pieces) if client else narrow, client=client))
    whole.step()
    thin.step()
    assert thin.weights().sha256() == whole.weights().sha256()
    assert thin.weights()["count"] == 4


@pytest.mark.parametrize("rule", [Median, lambda f: MultiKrum(f, keep=3), RFA, lambda f: CenteredClipping(f, 1e9)])
def test_arrays_of_other_dtypes_take_part_by_the_same_choice(rule):
    """All clients' deltas are alike but for rounding, so every rule makes what the mean makes of each dtype."""
    start, delta = random_bundle(1), random_bundle(2, size=0.1)
    robust, plain = server(rule(1), start, TRAINABLE), FedAvgServer(start, TRAINABLE, deterministic=False)
    for client in range(5):
        robust.fold(contribution(delta, client=client))
        plain.fold(contribution(delta, client=client))
    robust.step()
    plain.step()
    for name, array in plain.weights().items():
        units = {"f4": 2e-6, "f8": 1e-6, "f2": 2e-3, "bf16": 0.0}.get(LAYOUT.by_name[name].dtype, 0.0)
        np.testing.assert_allclose(robust.weights()[name].astype(np.float64), array.astype(np.float64), rtol=units, atol=units)


def test_the_median_of_counters_bytes_and_booleans():
    start = {"w": np.zeros(1, np.float32), "n": np.array([10]), "b": np.array([True, True]), "u": np.array([7], np.uint8)}
    aggregator = server(Median(), Bundle.pack(start), 1)
    rows = [(1.0, 2, [True, False], 3), (2.0, 5, [False, False], 4), (3.0, 90, [True, False], 255), (4.0, 6, [False, True], 9)]
    for client, (w, n, b, u) in enumerate(rows):
        arrays = {"w": np.array([w], np.float32), "n": np.array([n]), "b": np.array(b), "u": np.array([u], np.uint8)}
        aggregator.fold(contribution(Bundle.pack(arrays), client=client))
    aggregator.step()
    now = aggregator.weights()
    assert now["n"].tolist() == [16]  # 10 + 5.5, rounded half to even: 6
    assert now["b"].tolist() == [True, False]  # two of four change nothing; one of four is none
    assert now["u"].tolist() == [6]  # 6.5, half to even


def test_krum_leaves_a_clients_running_statistics_out_with_its_weights():
    start = {
        "w": np.zeros(2, np.float32),
        "mean": np.zeros(1, np.float32),
        "half": np.zeros(1, np.float16),
        "brain": bits([0.0]),
    }
    layout = Layout.of({"w": ("f4", (2,)), "mean": ("f4", (1,)), "half": ("f2", (1,)), "brain": ("bf16", (1,))})
    aggregator = server(MultiKrum(1), Bundle.pack(start, layout), 2)
    for client in range(6):
        w, other = (np.full(2, 50.0), 9.0) if client == 2 else (np.full(2, 1.0), 0.5)
        arrays = {"w": w, "mean": np.full(1, other), "half": np.full(1, other, np.float16), "brain": bits([other])}
        aggregator.fold(contribution(Bundle.pack(arrays, layout), client=client))
    assert aggregator.step().metrics["left_out"] == 1.0
    now = aggregator.weights()
    assert (now["w"].tolist(), now["mean"].tolist(), now["half"].tolist()) == ([1.0, 1.0], [0.5], [0.5])
    assert now["brain"].tolist() == bits([0.5]).tolist()


def test_distances_are_over_the_trained_entries_alone():
    start = Bundle.pack({"w": np.zeros(1, np.float32), "mean": np.zeros(1, np.float32)})
    aggregator = server(Krum(1), start, 1)
    for client, (w, mean) in enumerate([(1.0, 500.0), (2.0, 0.0), (4.0, 0.0), (5.0, 0.0), (1.5, -500.0)]):
        arrays = {"w": np.array([w], np.float32), "mean": np.array([mean], np.float32)}
        aggregator.fold(contribution(Bundle.pack(arrays), client=client))
    aggregator.step()
    assert aggregator.weights()["w"].tolist() == [1.5]


def test_memory_of_a_round_is_used_again_in_the_next():
    aggregator = server(Median(), vector(np.zeros(1000)))
    addresses = []
    for _ in range(3):
        stepped(aggregator, np.ones((5, 1000), np.float32))
        addresses.append(sorted(free.data.ctypes.data for free in aggregator._free))
    assert addresses[0] == addresses[1] == addresses[2]


def test_blocks_do_not_show(monkeypatch):
    x = np.random.default_rng(0).normal(size=(11, 50))
    for name in ("median", "bulyan", "rfa", "centered_clipping"):
        make = RULES[name][0]
        whole = made(make(1), x)
        with monkeypatch.context() as patch:
            patch.setattr("shoal.aggregators.robust.ENTRIES", 11 * 7)
            np.testing.assert_allclose(made(make(1), x), whole, rtol=1e-7, atol=1e-9)


def test_what_a_rule_needs_is_what_its_paper_says():
    assert [fewest(rule, 2) for rule in ("median", "krum", "multikrum", "bulyan", "rfa")] == [5, 7, 7, 11, 5]
    for rule in NEEDS.keys() - {"fltrust"}:
        for n in range(3, 40):
            assert fewest(rule, most(rule, n)) <= n < fewest(rule, most(rule, n) + 1)


def test_settings_out_of_range_are_refused():
    with pytest.raises(UserError, match="malicious=-1"):
        Krum(-1)
    with pytest.raises(UserError, match=r"smoothing=0.0: must be a number above 0"):
        RFA(0, 10, 0.0)
    with pytest.raises(UserError, match="radius"):
        CenteredClipping(0, -1.0)
    with pytest.raises(ValueError, match="pre='mean'"):
        server(Median(), vector([0.0]), pre="mean")


def test_random_orders_of_many_rounds_end_in_the_same_weights():
    first, second = (server(MultiKrum(1), vector(np.zeros(5))) for _ in range(2))
    draw = random.Random(0)
    for seed in range(5):
        x = drawn(seed, 1, 9)
        stepped(first, x)
        stepped(second, x, draw.sample(range(9), 9))
    assert first.weights().sha256() == second.weights().sha256()
