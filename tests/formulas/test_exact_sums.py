"""Exact sums: by definition term by term, in any order and grouping, and what is refused."""

from __future__ import annotations

import gc
import math
import random
import sys
import weakref
from fractions import Fraction

import numpy as np
import pytest
import torch
from federated_deltas import LAYOUT, random_bundle, term, vector
from hypothesis import given
from hypothesis import strategies as st

from shoal.actors.effects import Run
from shoal.actors.labour import perform
from shoal.aggregators.summing import DeviceSum
from shoal.nets.adding import TorchAdder
from shoal.protocol import exact
from shoal.protocol.errors import ProtocolError
from shoal.protocol.exact import AS_THEY_ARE, PartialSum, floats, squares, summed_layout
from shoal.protocol.grid import BLOCK, GRID, LIMIT, OFFSET, SMALL, STRETCH, WEIGHT_LIMIT, Adder, exact_weight
from shoal.protocol.layout import Bundle, Layout, Scattered
from shoal.protocol.work import Task, Work

ENTRIES = st.floats(-1e3, 1e3, width=32)
WEIGHTS = st.one_of(st.integers(1, 100_000).map(float), st.floats(1e-3, 1e3))
TERMS = st.lists(st.tuples(st.lists(ENTRIES, min_size=3, max_size=3), WEIGHTS), min_size=1, max_size=12)


def summed(layout: Layout, terms: list[tuple[Bundle, float]]) -> PartialSum:
    total = PartialSum(layout)
    for bundle, weight in terms:
        total.add(bundle, weight)
    return total


def in_groups(layout: Layout, terms: list[tuple[Bundle, float]], draw: random.Random) -> PartialSum:
    """In another order, in groups, and groups of groups."""
    terms = draw.sample(terms, len(terms))
    if len(terms) < 2 or draw.random() < 0.3:
        return summed(layout, terms)
    cut = draw.randrange(1, len(terms))
    left, right = in_groups(layout, terms[:cut], draw), in_groups(layout, terms[cut:], draw)
    left.merge(right.bundle(), right.weight)
    return left


@given(TERMS)
def test_a_total_is_the_sum_of_terms_each_rounded_to_the_grid(terms):
    bundles = [(vector(x), weight) for x, weight in terms]
    total = summed(bundles[0][0].layout, bundles)
    expected = [sum(term(exact_weight(weight), x[i]) for x, weight in terms) for i in range(3)]
    assert total.bundle()["sum/f4"].tolist() == expected
    assert total.weight == math.fsum(exact_weight(weight) for _, weight in terms)
    assert Fraction(total.weight) == sum(Fraction(exact_weight(weight)) for _, weight in terms)


@given(TERMS, st.integers(0, 2**32))
def test_order_and_grouping_change_no_bit(terms, seed):
    bundles = [(vector(x), weight) for x, weight in terms]
    layout = bundles[0][0].layout
    one, other = summed(layout, bundles), in_groups(layout, bundles, random.Random(seed))
    assert (other.bundle().sha256(), other.weight) == (one.bundle().sha256(), one.weight)


def test_order_changes_plain_float_sums_which_is_why_there_is_an_exact_form():
    terms = [(vector(np.random.default_rng(i).normal(size=1000)), 1.0 + i) for i in range(20)]
    layout = terms[0][0].layout
    forward, backward = PartialSum(layout, exact=False), PartialSum(layout, exact=False)
    for bundle, weight in terms:
        forward.add(bundle, weight)
    for bundle, weight in reversed(terms):
        backward.add(bundle, weight)
    assert forward.bundle().sha256() != backward.bundle().sha256()
    there, back = summed(layout, terms), summed(layout, terms[::-1])
    assert there.bundle().sha256() == back.bundle().sha256()
    by_hand = sum(bundle["w"].astype(np.float64) * weight for bundle, weight in terms)
    np.testing.assert_allclose(there.totals["f4"] * GRID, by_hand, rtol=0, atol=20 * 80 * 2.0**-24)
    np.testing.assert_allclose(forward.totals["f4"], by_hand, rtol=0, atol=20 * 800 * 2.0**-24)


def test_every_dtype_that_has_a_mean_is_summed_and_order_does_not_show():
    terms = [(random_bundle(i), 1.0 + i / 3) for i in range(30)]
    one, other = summed(LAYOUT, terms), in_groups(LAYOUT, terms, random.Random(1))
    assert one.bundle().sha256() == other.bundle().sha256()
    assert set(one.totals) == {"f4", "i8", "f2", "bf16", "f8", "b1", "u1"}
    for dtype, total in one.totals.items():
        by_hand = sum(floats(b.vector(dtype), dtype).astype(np.float64) * exact_weight(w) for b, w in terms)
        np.testing.assert_allclose(total * GRID, by_hand, rtol=0, atol=1e-3 if dtype in ("i8", "u1") else 3e-5)
        assert np.abs(by_hand).max() > 1


@pytest.mark.parametrize("exact", [True, False])
def test_torch_sums_to_the_same_bits_as_numpy(exact):
    terms = [(random_bundle(i), 1.0 if i == 3 else 1.0 + i / 3) for i in range(9)]
    terms += [(random_bundle(99, size=1e4), 700.0)]
    host, there, parts = PartialSum(LAYOUT, exact), DeviceSum(LAYOUT, torch.device("cpu"), exact), PartialSum(LAYOUT, exact)
    for bundle, weight in terms:
        host.add(bundle, weight)
        there.add(bundle, weight)
        parts.add(bundle, weight)
    host.merge(parts.bundle(), parts.weight)
    there.merge(parts.bundle(), parts.weight)
    assert there.weight == host.weight
    for dtype, total in host.totals.items():
        if exact:
            np.testing.assert_array_equal(there.totals[dtype].numpy(), total)
        else:  # torch may fuse product and sum
            np.testing.assert_allclose(there.totals[dtype].numpy(), total, rtol=1e-5)
    there.clear()
    assert not any(total.any() for total in there.totals.values())
    assert there.weight == 0


@pytest.mark.parametrize("exact", [True, False])
def test_torch_sums_what_came_in_pieces_without_joining_it(exact):
    one, other = (DeviceSum(LAYOUT, torch.device("cpu"), exact) for _ in range(2))
    for i in range(4):
        bundle = random_bundle(i)
        pieces = Scattered(LAYOUT, [bundle.data[:64], bundle.data[64:192], bundle.data[192:]])
        one.add(bundle, 1.0 + i / 3)
        other.add(pieces, 1.0 + i / 3)
        assert "data" not in vars(pieces)
    assert all(torch.equal(one.totals[dtype], other.totals[dtype]) for dtype in one.totals)


@pytest.mark.parametrize("weight", [1.0, 0.3, 7.0])
@pytest.mark.parametrize("size", [5, 2**14 - 1, 2**14, 50_001])
def test_torch_adds_plain_sums_as_numpy_does_but_for_the_last_bit(size, weight):
    x, start = (np.random.default_rng(i).normal(size=size).astype(np.float32) for i in range(2))
    x.flags.writeable = False
    ours, theirs = start.copy(), start.copy()
    TorchAdder().plain(ours, x, weight)
    Adder().plain(theirs, x, weight)
    np.testing.assert_allclose(ours, theirs, rtol=0, atol=2.0**-21 * weight + 2.0**-22)
    np.testing.assert_allclose(ours, start + x.astype(np.float64) * weight, rtol=0, atol=2.0**-21 * weight + 2.0**-22)


class Same:
    """A worker whose clients count by their number."""

    def __init__(self, delta):
        self.delta = delta

    def run(self, weights, client, task):
        return Work(self.delta, 1.0 + client / 3)


def test_an_actor_adds_plain_sums_by_torch_where_it_is_there_and_by_numpy_where_not(monkeypatch):
    delta, run = vector(np.random.default_rng(0).normal(size=20_000)), Run(Task(0, 0, tuple(range(8))), 1, True, 0, exact=False)
    by_torch = perform(lambda: Same(delta), run, delta, 0.0, float).bundle
    monkeypatch.delitem(sys.modules, "torch")
    by_numpy = perform(lambda: Same(delta), run, delta, 0.0, float).bundle
    plain = PartialSum(delta.layout, exact=False)
    for client in range(8):
        plain.add(delta, 1.0 + client / 3)
    assert by_numpy.sha256() == plain.bundle().sha256()
    np.testing.assert_allclose(by_torch["sum/f4"], by_numpy["sum/f4"], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("size", [1, BLOCK - 1, BLOCK, STRETCH, 2 * STRETCH + 3])
@pytest.mark.parametrize("exact", [True, False])
def test_blocks_leave_no_seam(size, exact):
    x = np.random.default_rng(size).normal(size=size).astype(np.float32)
    total = PartialSum(vector(x).layout, exact)
    total.add(vector(x), 3.0)
    total.add(vector(x), 1.0)
    product = (x * np.float32(3)).astype(np.float64)
    if exact:
        np.testing.assert_array_equal(total.totals["f4"], np.rint(product * 2.0**32) + np.rint(x * 2.0**32))
    else:
        np.testing.assert_array_equal(total.totals["f4"], product.astype(np.float32) + x)


def test_a_term_half_way_between_two_grid_points_goes_to_the_even_one():
    total = PartialSum(vector([0, 0, 0, 0]).layout)
    total.add(vector(np.array([0.5, 1.5, -0.5, -2.5]) * GRID), 1.0)
    assert total.totals["f4"].tolist() == [0, 2, 0, -2]


SINGLES = st.floats(-SMALL, SMALL, width=32, allow_subnormal=True) | st.integers(-(2**24), 2**24).map(lambda n: n / 2**33)


def both_ways(values: list[float], weight: float, dtype: str = "f4") -> tuple[list[int], list[int]]:
    """Units of the grid, by the way for any term and by the one for small terms."""
    x = np.asarray(values, dtype)
    plain, fast = np.zeros(x.size, np.int64), np.zeros(x.size, np.int64)
    Adder().exact(plain, x, weight)
    Adder().small(fast, x, weight)
    return plain.tolist(), (fast.view(np.uint64) - np.uint64(OFFSET)).view(np.int64).tolist()


@given(st.lists(SINGLES, min_size=1, max_size=8), WEIGHTS | st.sampled_from([2.0**-20, 1.0, 2.0**33]))
def test_small_terms_are_rounded_as_all_are(values, weight):
    weight = exact_weight(weight)
    values = [x for x in values if abs(weight * x) <= SMALL] or [0.0]
    plain, fast = both_ways(values, weight)
    assert plain == fast == [term(weight, x) for x in values]


@given(st.lists(st.floats(-SMALL, SMALL), min_size=1, max_size=8), st.integers(1, 1000).map(float))
def test_small_terms_of_float64_are_too(values, weight):
    plain, fast = both_ways([x / weight for x in values], weight, "f8")
    assert plain == fast


def test_ties_edges_and_the_smallest_numbers_are_rounded_as_all_are():
    halves = [(n + 0.5) * GRID for n in (-5, -2, -1, 0, 1, 2, 7, 2**22 - 1, -(2**22))]
    edges = [SMALL, -SMALL, float(np.nextafter(np.float32(SMALL), np.float32(0))), 2.0**-149, -(2.0**-140), -0.0, 0.49 * GRID]
    plain, fast = both_ways([*halves, *edges], 1.0)
    assert plain == fast == [term(1.0, x) for x in [*halves, *edges]]
    assert fast[:9] == [-4, -2, 0, 0, 2, 2, 8, 2**22, -(2**22)]
    assert fast[9:11] == [2**51, -(2**51)]


def test_a_sum_of_small_and_large_terms_has_the_bits_of_its_definition():
    terms = [([0.3, -1e-9, 7.5], 3.0), ([2.0**19, -(2.0**20), 1.0], 1.0), ([1e-3, 5.0, -0.1], 250.0), ([-9e8, 3.0, 2.0], 1.0)]
    total, other = PartialSum(vector([0, 0, 0]).layout), PartialSum(vector([0, 0, 0]).layout)
    for x, weight in terms * 300:
        total.add(vector([n / 300 for n in x]), weight)
        other.add(vector([0.125, 0.25, -0.5]), 2.0)
    total.merge(other.bundle(), other.weight)
    expected = [
        300 * (sum(term(weight, np.float32(x[i] / 300)) for x, weight in terms) + 4 * term(2.0, y))
        for i, y in enumerate([0.125, 0.25, -0.5])
    ]
    assert total.bundle()["sum/f4"].tolist() == total.totals["f4"].tolist() == expected


@pytest.mark.parametrize("exact", [True, False])
def test_a_norm_that_is_known_spares_a_look_and_changes_no_bit(exact, monkeypatch):
    looked: list[str] = []

    def squares_and_says(bundle, dtypes=AS_THEY_ARE):
        looked.extend(dtypes)
        return squares(bundle, dtypes)

    monkeypatch.setattr("shoal.protocol.exact.squares", squares_and_says)
    one, other = PartialSum(LAYOUT, exact), PartialSum(LAYOUT, exact)
    for i in range(3):
        bundle = random_bundle(i)
        norm = math.sqrt(squares(bundle))
        other.add(bundle, 1.5, norm)
        assert set(looked) == {"i8", "f2", "bf16", "b1", "u1"}
        one.add(bundle, 1.5)
        looked.clear()
    assert one.bundle().sha256() == other.bundle().sha256()
    assert one.gauge.reach == pytest.approx(other.gauge.reach, rel=1e-9)


@pytest.mark.parametrize("norm", [math.nan, math.inf])
def test_a_norm_that_is_no_number_is_looked_into(norm):
    total = PartialSum(LAYOUT)
    total.add(random_bundle(1), 1.0, norm)
    bad = random_bundle(2)
    bad["double"][1] = math.nan
    with pytest.raises(ProtocolError, match=r"'double' .* NaN"):
        total.add(bad, 1.0, norm)
    bad["half"][1] = math.nan
    with pytest.raises(ProtocolError, match=r"'half' .* NaN"):
        total.add(bad, 1.0, 3.0)  # halves are none of the norm's business, but the sum's


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("name", ["layer.weight", "norm.mean", "half", "brain", "double"])
def test_what_is_not_finite_is_refused_by_name_and_leaves_no_trace(name, value):
    total = summed(LAYOUT, [(random_bundle(1), 2.0)])
    before = total.bundle().sha256(), total.weight, total.gauge.reach
    bad = random_bundle(2)
    where = bad[name].reshape(-1)
    where[-1] = np.float32(value).view(np.uint32) >> 16 if name == "brain" else value
    with pytest.raises(ProtocolError, match=f"'{name}' .* NaN or an infinity"):
        total.add(bad, 1.0)
    assert (total.bundle().sha256(), total.weight, total.gauge.reach) == before


def test_a_sum_that_could_leave_the_exact_range_is_refused_and_the_rest_still_fits():
    total = PartialSum(vector([0]).layout)
    total.add(vector([1.0]), LIMIT / 2)
    total.add(vector([0.5]), LIMIT / 2)
    for x, weight in (([1.0], LIMIT / 2), ([-1.0], LIMIT), ([1e30], 1.0), ([3e38], 1e6)):
        with pytest.raises(ProtocolError, match=r"may pass 1\.07e\+09.*clip the contributions, or scale their weights down"):
            total.add(vector(x), weight)
    total.add(vector([0.25]), LIMIT / 2)
    assert total.totals["f4"].tolist() == [round(LIMIT * 7 / 8 / GRID)]
    assert total.weight == 1.5 * LIMIT


def test_the_range_holds_for_entries_not_for_norms():
    wide = vector(np.full(10_000, 1.0))  # its norm is 100 times its largest entry
    total = PartialSum(wide.layout)
    total.add(wide, LIMIT / 2)
    total.add(wide, LIMIT / 4)
    assert set(total.totals["f4"].tolist()) == {round(LIMIT * 3 / 4 / GRID)}


@pytest.mark.parametrize("make", [PartialSum, lambda layout: DeviceSum(layout, torch.device("cpu"))])
def test_sums_that_cancel_never_run_out_of_range(make):
    total = make(vector([0]).layout)
    total.add(vector([1.0]), LIMIT / 8)
    for i in range(20):
        total.add(vector([(-1.0) ** i]), LIMIT / 4)
    assert total.totals["f4"].tolist() == [round(LIMIT / 8 / GRID)]


def test_partial_sums_that_could_leave_the_range_are_refused():
    large = summed(vector([0]).layout, [(vector([-1.0]), 0.75 * LIMIT)])
    total = summed(vector([0]).layout, [(vector([-1.0]), 0.5 * LIMIT)])
    before = total.bundle().sha256(), total.weight
    with pytest.raises(ProtocolError, match="may pass"):
        total.merge(large.bundle(), large.weight)
    large.totals["f4"][:] = -(2**63)  # the most a peer can lie
    with pytest.raises(ProtocolError, match="may pass"):
        total.merge(large.bundle(), large.weight)
    assert (total.bundle().sha256(), total.weight) == before


@pytest.mark.parametrize("weight", [0.0, -1.0, math.nan, math.inf, 2.0**-21, 2.0**34, 1e300])
def test_a_weight_out_of_range_is_refused_with_its_value(weight):
    total = PartialSum(vector([0]).layout)
    with pytest.raises(ProtocolError, match=r"weight is from 2\*\*-20 to 2\*\*33, not "):
        total.add(vector([1.0]), weight)
    assert total.weight == 0


@given(st.integers(1, 2**24))
def test_counts_are_weights_as_they_are(count):
    assert exact_weight(count) == count


@given(st.floats(2.0**-20, 2.0**33))
def test_a_weight_is_rounded_once_and_by_little(weight):
    used = exact_weight(weight)
    assert exact_weight(used) == used == float(np.float32(used))
    assert abs(used - weight) <= max(2.0**-21 + weight * 2.0**-24, weight * 2.0**-24)


@pytest.mark.parametrize("weight", [1 / 3, 0.0, math.nan, math.inf, 2.0**33 + 1])
def test_a_sum_of_weights_that_is_not_on_their_grid_is_refused(weight):
    total, part = PartialSum(vector([0]).layout), summed(vector([0]).layout, [(vector([1.0]), 1.0)])
    with pytest.raises(ProtocolError, match=r"multiple of 2\*\*-20"):
        total.merge(part.bundle(), weight)


def test_weights_that_sum_past_what_float64_adds_exactly_are_refused():
    total = summed(vector([0]).layout, [(vector([2.0**-10]), WEIGHT_LIMIT / 2)] * 2)
    with pytest.raises(ProtocolError, match="sum to more than"):
        total.add(vector([2.0**-10]), 1.0)
    assert total.weight == WEIGHT_LIMIT
    assert total.totals["f4"].tolist() == [round(WEIGHT_LIMIT * 2.0**-10 / GRID)]


def test_another_layout_is_refused_with_the_first_difference():
    total = PartialSum(vector([0, 0]).layout)
    with pytest.raises(ProtocolError, match=r"first difference: 'w' f4\[2\] here, f4\[3\] there"):
        total.add(vector([0, 0, 0]), 1.0)
    with pytest.raises(ProtocolError, match=r"'sum/f4' i8\[2\] here"):
        total.merge(vector([0, 0]), 1.0)


def test_every_dtype_travels_in_sums():
    assert {p.name for p in summed_layout(LAYOUT).places} == {f"sum/{dtype}" for dtype in LAYOUT.segments}
    assert {p.dtype for p in summed_layout(LAYOUT).places} == {"i8"}
    assert {p.name: p.dtype for p in summed_layout(LAYOUT, exact=False).places} == {
        "sum/f4": "f4",
        "sum/f2": "f4",
        "sum/bf16": "f4",
        "sum/f8": "f8",
        "sum/i8": "f8",
        "sum/b1": "f8",
        "sum/u1": "f8",
    }


@pytest.mark.parametrize("make", [PartialSum, lambda layout: DeviceSum(layout, torch.device("cpu"))])
def test_the_memory_of_a_sum_is_free_as_soon_as_nobody_holds_it(make):
    total = make(LAYOUT)
    total.add(random_bundle(1), 2.0)
    gone = weakref.ref(total)
    gc.disable()
    try:
        del total
        assert gone() is None
    finally:
        gc.enable()


def test_a_cleared_sum_starts_from_nothing():
    total = summed(LAYOUT, [(random_bundle(1), 2.0)])
    total.clear()
    total.add(random_bundle(2), 3.0)
    fresh = summed(LAYOUT, [(random_bundle(2), 3.0)])
    assert (total.bundle().sha256(), total.weight, total.gauge.reach) == (
        fresh.bundle().sha256(),
        fresh.weight,
        fresh.gauge.reach,
    )


FROZEN = Layout.of(
    {"head": ("f4", (3,)), "mean": ("f4", (2,)), "count": ("i8", (1,)), "body": ("f4", (4,)), "map": ("f8", (2,))},
    ["body", "map"],
)


def lacking_and_whole() -> list[tuple[Bundle, float]]:
    rng = np.random.default_rng(4)
    found = []
    for at, layout in enumerate([FROZEN.moving, FROZEN, FROZEN.moving, FROZEN.moving]):
        arrays = {p.name: rng.normal(size=p.shape) * 10 ** (2 * at) for p in layout.places}
        found.append(
            (
                Bundle.pack(
                    {
                        name: np.asarray(x.round() if name == "count" else x).astype(Bundle.zeros(layout)[name].dtype)
                        for name, x in arrays.items()
                    },
                    layout,
                ),
                1.0 + at,
            )
        )
    return found


def padded(bundle: Bundle) -> Bundle:
    whole = Bundle.zeros(FROZEN)
    for name, array in bundle.items():
        whole[name][...] = array
    return whole


@pytest.mark.parametrize(
    "make", [lambda: PartialSum(FROZEN), lambda: PartialSum(FROZEN, False), lambda: DeviceSum(FROZEN, torch.device("cpu"))]
)
def test_arrays_that_a_contribution_lacks_count_as_zeros(make):
    some, other, parts = make(), make(), PartialSum(Layout.from_rows(FROZEN.rows()), make().gauge.exact)
    for bundle, weight in lacking_and_whole():
        some.add(bundle, weight)
        other.add(padded(bundle), weight)
    for bundle, weight in lacking_and_whole()[2:]:  # an actor, which does not know what is frozen
        parts.add(bundle, weight)
        other.add(padded(bundle), weight)
    assert parts.bundle().layout.digest == summed_layout(FROZEN.moving, parts.gauge.exact).digest
    some.merge(parts.bundle(), parts.weight)
    assert some.weight == other.weight
    for dtype, total in other.totals.items():
        np.testing.assert_allclose(np.asarray(some.totals[dtype]), np.asarray(total), rtol=0 if some.gauge.exact else 1e-5)
    parts.add(padded(lacking_and_whole()[0][0]), 1.0)
    assert parts.bundle().layout.digest == summed_layout(FROZEN, parts.gauge.exact).digest


@pytest.mark.parametrize("exact", [True, False])
def test_a_sum_of_sums_has_all_arrays_that_one_of_them_has(exact):
    lacking, whole, *_ = lacking_and_whole()
    for terms, layout in (([lacking, lacking], FROZEN.moving), ([lacking, whole], FROZEN), ([whole, lacking], FROZEN)):
        sums = PartialSum(FROZEN, exact)
        for bundle, weight in terms:
            part = PartialSum(FROZEN, exact)
            part.add(bundle, weight)
            sums.merge(part.bundle(), part.weight)
        assert sums.bundle().layout.digest == summed_layout(layout, exact).digest
    sums.clear()
    sums.add(*lacking)
    assert sums.bundle().layout.digest == summed_layout(FROZEN.moving, exact).digest


def test_what_a_first_term_has_is_not_lost_when_later_ones_lack_more():
    part = PartialSum(Layout.from_rows(FROZEN.rows()))  # an actor, which does not know what is frozen
    more = Layout.of({p.name: (p.dtype, p.shape) for p in FROZEN.places if p.name != "map"})
    ones = Bundle.zeros(more)
    ones["body"][...] = 1.0
    part.add(ones, 2.0)
    part.add(Bundle.zeros(FROZEN.moving), 1.0)
    assert (part.bundle()["sum/f4"][-4:] * GRID).tolist() == [2.0] * 4


def test_a_sum_refuses_a_bundle_that_lacks_other_arrays_than_the_last():
    for lacking in (["head"], ["mean"], ["count", "head"]):
        odd = Layout.of({p.name: (p.dtype, p.shape) for p in FROZEN.places if p.name not in lacking})
        with pytest.raises(ProtocolError, match="first difference"):
            PartialSum(FROZEN).add(Bundle.zeros(odd), 1.0)


@pytest.mark.parametrize("exact", [True, False])
@pytest.mark.parametrize("largest", [1.0, 1e7])  # the second is above SMALL
def test_rows_added_at_once_have_the_bits_of_rows_added_one_after_the_other(exact, largest):
    rng = np.random.Generator(np.random.Philox(2))
    rows = (rng.normal(size=(7, 1000)) * largest / 10).astype(np.float32)
    weights, layout = [1.0, 20.0, 0.3, 1 / 3, 5.0, 2.0, 7.7], Layout.of({"w": ("f4", (10, 50)), "b": ("f4", (500,))})
    apart, together = PartialSum(layout, exact), PartialSum(layout, exact)
    for total in (apart, together):
        total.add(Bundle(layout, rows[0].view(np.uint8)), 3.0)  # something is there before
    for row, weight in zip(rows, weights, strict=True):
        apart.add(Bundle(layout, row.view(np.uint8)), weight)
    assert together.add_rows(rows, weights) == {}
    assert together.add_rows(rows[:0], []) == {}
    assert together.bundle().sha256() == apart.bundle().sha256()
    assert together.weight == apart.weight


def test_a_row_that_must_not_be_added_is_told_with_its_reason():
    rows, total = np.ones((4, 3), np.float32), PartialSum(vector([0.0, 0.0, 0.0]).layout)
    rows[1, 2], rows[3, 0] = math.nan, 1e30
    faults = total.add_rows(rows, [1.0, 1.0, -1.0, 1.0])
    assert sorted(faults) == [1, 2, 3]
    assert "holds NaN or an infinity" in str(faults[1])
    assert "a contribution's weight is from" in str(faults[2])
    assert "the most that is summed" in str(faults[3])
    assert not total.totals["f4"].any()


@pytest.mark.parametrize("largest", [1e-3, 1.0, 3e5, 1e6])  # of the last two some parts are above SMALL
def test_a_delta_absorbed_as_it_is_made_has_the_bits_of_one_that_is_added_and_leaves_the_start(largest, monkeypatch):
    monkeypatch.setattr(exact, "STRETCH", 256)
    rng = np.random.Generator(np.random.Philox(4))
    layout = Layout.of({"w": ("f4", (30, 40)), "b": ("f4", (77,))})
    apart, absorbed = PartialSum(layout), PartialSum(layout)
    for weight in (20.0, 1 / 3, 1.0):
        start = rng.normal(size=1277).astype(np.float32)
        local = start + (rng.normal(size=1277) * np.repeat([1.0, largest], [900, 377])).astype(np.float32)
        apart.add(Bundle(layout, (local - start).view(np.uint8)), weight)
        absorbed.absorb(local, start, weight)
        assert np.array_equal(local, start)
    assert absorbed.bundle().sha256() == apart.bundle().sha256()
    assert absorbed.weight == apart.weight


@pytest.mark.parametrize(
    ("entry", "value", "weight", "said"),
    [
        (1000, math.nan, 1.0, "^'w' of a contribution holds NaN or an infinity$"),
        (1200, math.inf, 1.0, "^'b' of a contribution holds NaN or an infinity$"),
        (3, 1e9, 20.0, "the most that is summed"),
        (3, 1.0, 0.0, "a contribution's weight is from"),
    ],
)
def test_a_delta_that_must_not_be_absorbed_is_refused_as_one_that_is_added(entry, value, weight, said, monkeypatch):
    monkeypatch.setattr(exact, "STRETCH", 256)
    layout, local = Layout.of({"w": ("f4", (30, 40)), "b": ("f4", (77,))}), np.zeros(1277, np.float32)
    local[entry] = value
    with pytest.raises(ProtocolError, match=said):
        PartialSum(layout).add(Bundle(layout, local.copy().view(np.uint8)), weight)
    with pytest.raises(ProtocolError, match=said):
        PartialSum(layout).absorb(local, np.zeros(1277, np.float32), weight)
