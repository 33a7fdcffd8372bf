"""Codecs: the error is what theory says, a byte more or less is not sent, and what is malformed is refused."""

from __future__ import annotations

import math
from collections import Counter
from typing import Any

import numpy as np
import pytest
import torch
from federated_deltas import LAYOUT, contribution, random_bundle, vector
from hypothesis import given
from hypothesis import strategies as st
from servers import FedAdamServer

from shoal.actors.workers.compressed import Compressed
from shoal.aggregators.around.compressed import Decompressed
from shoal.aggregators.fedavg import FedAvgServer
from shoal.protocol.compress import CODECS, Codec, Packed, codec_of
from shoal.protocol.errors import ProtocolError, UserError
from shoal.protocol.layout import Bundle, Layout
from shoal.protocol.picking import RandomK, TopK, kept, largest, subset
from shoal.protocol.rounding import BFloat16, Blocks, Float16
from shoal.protocol.work import Task, Work

ALL = [codec_of(name, feedback=feedback) for name in CODECS for feedback in (False, True)]
CONTRACTING = [codec for codec in ALL if codec.contracts]
FLOATS = st.lists(st.floats(width=32, allow_nan=False, allow_infinity=False), max_size=40)
Vector = np.ndarray[Any, np.dtype[np.float32]]


def rng(*key: int) -> np.random.Generator:
    return np.random.Generator(np.random.Philox(list(key)))


def normal(n: int, size: float = 1.0, seed: int = 0) -> Vector:
    return rng(seed).normal(0, size, n).astype(np.float32)


def sent(codec: Codec, x: Vector, *key: int) -> Bundle:
    return Packed(codec, vector(x).layout).pack(vector(x), rng(*key))


def told(codec: Codec, x: Vector, *key: int) -> Vector:
    """decode(encode(x))"""
    packed, into = Packed(codec, vector(x).layout), vector(np.full(x.size, np.nan))
    packed.unpack(packed.pack(vector(x), rng(*key)), into)
    return into.vector()


def square(x: Vector) -> float:
    return float(np.sum(x.astype(np.float64) ** 2))


# Rounding


@pytest.mark.parametrize(
    ("codec", "error", "least", "most"),
    [(Float16(), 2.0**-11, 2.0**-14, 65504.0), (BFloat16(), 2.0**-8, 2.0**-126, 3.3e38)],
)
def test_halves_are_off_by_half_a_unit_in_their_last_place(codec, error, least, most):
    size = np.exp(rng(1).uniform(math.log(least), math.log(most), 20_000))
    x = (size * rng(2).choice([-1, 1], 20_000)).astype(np.float32)
    off = np.abs(told(codec, x).astype(np.float64) - x) / np.abs(x)
    assert 0.9 * error < off.max() <= error


def test_float16_below_its_normal_range_is_off_by_an_absolute_error():
    x = normal(1_000, 2.0**-20)
    assert np.abs(told(Float16(), x) - x).max() <= 2.0**-25


@given(FLOATS.filter(lambda x: all(abs(one) < 3.3e38 for one in x)))
def test_halves_are_rounded_as_torch_rounds_them(values):
    x = np.array(values, np.float32)
    np.testing.assert_array_equal(told(BFloat16(), x), torch.tensor(x).bfloat16().float().numpy())
    small = np.clip(x, -65504, 65504)
    np.testing.assert_array_equal(told(Float16(), small), torch.tensor(small).half().float().numpy())


@pytest.mark.parametrize("size", [1e-44, 1e-38, 1e-3, 1.0, 3e38])
@pytest.mark.parametrize(("bits", "top"), [(8, 127), (4, 7)])
@pytest.mark.parametrize(("n", "block"), [(1_000, 64), (999, 1), (100_001, 999)])
def test_the_scale_of_a_block_is_the_least_that_reaches_its_largest_entry(size, bits, top, n, block):
    x = (rng(3).uniform(-1, 1, n) * size).astype(np.float32)
    scales = sent(Blocks(bits, block), x)["scales"].astype(np.float64)
    peaks = np.array([np.abs(x[at : at + block]).max() for at in range(0, n, block)], np.float64)
    smaller = np.nextafter(scales.astype(np.float32), np.float32(-1)).astype(np.float64)
    assert (scales * top >= peaks).all()
    assert (smaller * top < peaks)[peaks > 0].all()


@pytest.mark.parametrize("size", [1e-44, 1e-38, 1e-3, 1.0, 3e38])
@pytest.mark.parametrize("bits", [8, 4])
@pytest.mark.parametrize(("n", "block"), [(1_000, 64), (999, 1), (100_001, 999)])
def test_the_nearest_is_off_by_half_a_scale_and_the_stochastic_by_less_than_one(size, bits, n, block):
    x = (rng(3).uniform(-1, 1, n) * size).astype(np.float32)
    scale = np.repeat(sent(Blocks(bits, block), x)["scales"].astype(np.float64), block)[:n]
    rounding = 2.0**-16 * scale  # float32 quotients and products of at most 127 scales
    nearest = np.abs(told(Blocks(bits, block, stochastic=False), x).astype(np.float64) - x)
    assert (nearest <= scale / 2 + rounding).all()
    assert (np.abs(told(Blocks(bits, block), x).astype(np.float64) - x) <= scale + rounding).all()


@pytest.mark.parametrize("bits", [8, 4])
@pytest.mark.parametrize("stochastic", [True, False])
def test_a_block_may_be_far_longer_than_all_entries(bits, stochastic):
    x = normal(11)
    expected = told(Blocks(bits, 11, stochastic), x, 6)
    for block in (12, 2**33, 2**64 - 1, 10**30):
        np.testing.assert_array_equal(told(Blocks(bits, block, stochastic), x, 6), expected)


@pytest.mark.parametrize("bits", [8, 4])
def test_stochastic_rounding_has_the_mean_and_the_variance_of_the_definition(bits):
    """Up with probability f, the fraction: mean x, variance scale^2 f (1 - f)."""
    x, draws = normal(512), 1_000
    scale = np.repeat(sent(Blocks(bits), x)["scales"].astype(np.float64), 256)
    f = (x / scale) % 1
    variance = scale**2 * f * (1 - f)
    off = np.array([told(Blocks(bits), x, 4, draw) for draw in range(draws)]).astype(np.float64) - x
    standard_error = np.sqrt(variance / draws)
    assert (np.abs(off.mean(0)) <= 5 * standard_error + 2.0**-16 * scale).all()
    # the mean square error over all entries: its own standard error is below 1/sqrt(512,000) of a unit
    assert (off**2).sum(1).mean() == pytest.approx(variance.sum(), rel=0.01)


@pytest.mark.parametrize("stochastic", [True, False])
@pytest.mark.parametrize(("bits", "top"), [(8, 127), (4, 7)])
def test_what_needs_no_rounding_is_not_rounded(bits, top, stochastic):
    x = np.arange(-top, top + 1, dtype=np.float32) * np.float32(0.375)
    np.testing.assert_array_equal(told(Blocks(bits, stochastic=stochastic), x), x)


@pytest.mark.parametrize("n", [1, 2, 7])
def test_zeros_stay_zeros(n):
    for codec in ALL:
        np.testing.assert_array_equal(told(codec, np.zeros(n, np.float32)), np.zeros(n))


# Sparse


@given(FLOATS.filter(len), st.floats(0.01, 1.0))
def test_the_error_of_top_k_is_what_the_smallest_entries_hold(values, share):
    x = np.clip(np.array(values, np.float32), -1e9, 1e9)
    k, off = kept(share, x.size), square(told(TopK(share), x) - x)
    assert off == pytest.approx(np.sort(x.astype(np.float64) ** 2)[: x.size - k].sum(), rel=1e-12)
    assert off <= (1 - k / x.size) * square(x) * (1 + 1e-12)


def test_entries_of_one_size_meet_the_bound_of_top_k():
    x = np.array([1, -1] * 50, np.float32)
    assert square(told(TopK(0.1), x) - x) == (1 - 10 / 100) * square(x)


def test_of_equals_the_first_are_sent():
    assert largest(np.array([1, -2, 2, 0, 2, 3], np.float32), 3).tolist() == [1, 2, 5]


@given(st.integers(0, 200), st.floats(0.001, 1.0), st.integers(-(2**63), 2**63 - 1))
def test_a_subset_is_the_first_that_differ_of_the_stream(n, share, seed):
    k, stream, found = kept(share, n), np.random.Philox(key=seed % 2**64), []
    few = min(k, n - k)
    while len(found) < few:
        one = int((int(stream.random_raw()) >> 11) * 2.0**-53 * n)
        found += [one] * (one not in found)
    expected = sorted(found) if few == k else sorted(set(range(n)) - set(found))
    assert subset(seed, n, k).tolist() == expected


def test_a_subset_of_a_seed_is_this_one_everywhere_and_for_ever():
    assert subset(7, 1_000, 8).tolist() == [82, 295, 296, 405, 420, 620, 696, 872]
    assert subset(-1, 10, 8).tolist() == [0, 1, 3, 4, 5, 6, 8, 9]


@pytest.mark.parametrize("k", [3, 9])
def test_every_entry_and_every_pair_is_drawn_alike_often(k):
    n, draws = 12, 20_000
    seen: Counter[tuple[int, ...]] = Counter()
    for seed in range(draws):
        chosen = subset(seed, n, k).tolist()
        seen.update((one,) for one in chosen)
        seen.update((one, other) for one in chosen for other in chosen if one < other)
    for drawn, times in seen.items():
        p = k / n if len(drawn) == 1 else k * (k - 1) / (n * (n - 1))
        assert abs(times - draws * p) <= 5 * math.sqrt(draws * p * (1 - p))
    assert len(seen) == n + n * (n - 1) // 2


@pytest.mark.parametrize("share", [0.1, 0.7])
def test_random_k_has_the_mean_and_the_error_of_the_definition(share):
    x, draws = normal(100), 4_000
    off = np.array([told(RandomK(share), x, 5, draw) for draw in range(draws)]).astype(np.float64) - x
    ratio = 1 / share - 1
    assert (np.abs(off.mean(0)) <= 5 * np.abs(x) * math.sqrt(ratio / draws) + 1e-6).all()
    errors = (off**2).sum(1)
    assert abs(errors.mean() - ratio * square(x)) <= 5 * errors.std() / math.sqrt(draws)
    unscaled = [square(told(RandomK(share, scaled=False), x, 6, draw) - x) for draw in range(draws)]
    assert abs(np.mean(unscaled) - (1 - share) * square(x)) <= 5 * np.std(unscaled) / math.sqrt(draws)


# What error feedback needs


@given(FLOATS.filter(len), st.integers(0, 1_000))
def test_what_contracts_is_never_farther_off_than_zero_is(values, seed):
    x = np.clip(np.array(values, np.float32), -6e4, 6e4)
    for codec in CONTRACTING:
        assert square(told(codec, x, seed) - x) <= square(x) * (1 + 1e-6)


def test_what_does_not_contract_can_be_farther_off_than_zero_is():
    spike = np.array([1.0] + [0.0143] * 4_095, np.float32)  # a tenth of a scale each: up one time of ten
    assert np.mean([square(told(Blocks(4, 4_096), spike, draw) - spike) for draw in range(50)]) > square(spike)
    assert square(told(RandomK(0.1), spike, 1) - spike) > square(spike)


# Bytes


@pytest.mark.parametrize(
    ("name", "nbytes"),
    [
        ("float16", 2 * 1_001),
        ("bfloat16", 2 * 1_001),
        ("int8", 1_001 + 4 * 11),
        ("int4", 501 + 4 * 11),
        ("topk", 50 * (4 + 4)),
        ("randk", 50 * 4 + 8),
    ],
)
def test_bytes_on_the_wire_are_as_computed(name, nbytes):
    bundle = sent(codec_of(name, share=0.05, block=100), normal(1_001))
    assert sum(place.nbytes for place in bundle.layout.places) == nbytes
    assert nbytes <= bundle.data.nbytes < nbytes + 64  # the second segment begins at a multiple of 64


@pytest.mark.parametrize("codec", ALL, ids=str)
def test_entries_of_other_dtypes_travel_as_they_are(codec):
    packed, bundle, into = Packed(codec, LAYOUT), random_bundle(1), Bundle.zeros(LAYOUT)
    packed.unpack(packed.pack(bundle, rng(1)), into)
    for dtype in ("i8", "f2", "bf16", "f8", "b1", "u1"):
        np.testing.assert_array_equal(into.vector(dtype), bundle.vector(dtype))


@pytest.mark.parametrize("codec", ALL, ids=str)
def test_a_bundle_without_float32_entries_goes_too(codec):
    counters = Bundle.pack({"n": np.arange(3)})
    packed, into = Packed(codec, counters.layout), Bundle.zeros(counters.layout)
    packed.unpack(packed.pack(counters, rng(1)), into)
    assert into["n"].tolist() == [0, 1, 2]


# What a peer may get wrong


@pytest.mark.parametrize(
    ("codec", "name", "values"),
    [
        (TopK(0.5), "indices", [0, 1, 6]),
        (TopK(0.5), "indices", [-1, 1, 2]),
        (TopK(0.5), "indices", [0, 1, 1]),
        (TopK(0.5), "indices", [2, 1, 3]),
        (TopK(0.5), "indices", [0, -(2**31), 3]),
        (TopK(0.5), "values", [0, math.nan, 1]),
        (RandomK(0.5), "values", [0, math.inf, 1]),
        (RandomK(0.5), "values", [0, 3e38, 1]),  # twice that is no float32
        (Blocks(8, 4), "scales", [1, math.nan]),
        (Blocks(8, 4), "scales", [1, math.inf]),
        (Blocks(4, 4), "scales", [1, -1]),
        (Float16(), "values", [0, 0, math.nan, 0, 0, 0]),
        (BFloat16(), "values", [0, 0, 0x7F80, 0, 0, 0]),
    ],
)
def test_a_malformed_contribution_is_refused(codec, name, values):
    x = vector(np.ones(6))
    packed, into = Packed(codec, x.layout), Bundle.zeros(x.layout)
    bundle = packed.pack(x, rng(1))
    bundle[name][...] = values
    with pytest.raises(ProtocolError):
        packed.unpack(bundle, into)


@given(st.binary(min_size=600, max_size=600))
def test_whatever_bytes_come_they_are_finite_numbers_or_refused(raw):
    for codec in ALL:
        packed = Packed(codec, Layout.of({"w": ("f4", (37,))}))
        into = Bundle.zeros(packed.dense)
        try:
            packed.unpack(Bundle.of_buffer(packed.layout, raw[: packed.layout.nbytes]), into)
        except ProtocolError:
            continue
        assert np.isfinite(into.vector()).all()


@pytest.mark.parametrize("codec", ALL, ids=str)
@pytest.mark.parametrize("wrong", [math.nan, math.inf, -math.inf])
def test_a_delta_that_is_not_finite_is_not_made_finite(codec, wrong):
    with pytest.raises(ProtocolError, match="NaN or an infinity"):
        sent(codec, np.array([1, wrong, 2], np.float32))


def test_a_delta_beyond_a_half_is_refused():
    with pytest.raises(ProtocolError, match="70000 is beyond float16"):
        sent(Float16(), np.array([1, 7e4], np.float32))
    with pytest.raises(ProtocolError, match="beyond bfloat16"):
        sent(BFloat16(), np.array([1, 3.4e38], np.float32))


@pytest.mark.parametrize("codec", ALL, ids=str)
def test_another_layout_is_refused_with_its_first_difference(codec):
    packed = Packed(codec, LAYOUT)
    with pytest.raises(ProtocolError, match="first difference"):
        packed.pack(vector([1.0]), rng(1))
    with pytest.raises(ProtocolError, match="first difference"):
        packed.unpack(vector([1.0]), Bundle.zeros(LAYOUT))


@pytest.mark.parametrize(
    "make", [lambda: TopK(0), lambda: RandomK(1.5), lambda: Blocks(5), lambda: Blocks(8, 0), lambda: codec_of("zip")]
)
def test_a_wrong_setting_of_a_codec_is_named(make):
    with pytest.raises(UserError, match=r"must be|known are"):
        make()


# The worker's side


class Deltas:
    """A worker whose delta is a function of client and version."""

    def run(self, weights: Bundle, client: int, task: Task) -> Work:
        if task.kind == "evaluate":
            return Work(None, 3.0, {"loss": (1.0, 1.0)})
        return Work(random_bundle(100 * client + task.version, 0.01), 3.0, {"loss": (6.0, 3.0)}, {"return": (1.0,)})


def play(worker: Compressed, client: int = 0, version: int = 0, kind: str = "train") -> Work:
    return worker.run(Bundle.zeros(LAYOUT), client, Task(version, 0, (client,), kind))


def test_a_compressed_worker_says_what_it_sent_and_all_that_the_worker_said():
    work = play(Compressed(Deltas(), codec_of("int8")))
    assert work.bundle is not None
    assert work.totals == {
        "loss": (6.0, 3.0),
        "sent_bytes": (work.bundle.data.nbytes, 1.0),
        "dense_bytes": (LAYOUT.nbytes, 1.0),
    }
    assert (work.weight, work.samples) == (3.0, {"return": (1.0,)})


def test_an_evaluation_is_left_alone():
    worker = Compressed(Deltas(), codec_of("topk"), feedback=True)
    assert play(worker, kind="evaluate") == Deltas().run(Bundle.zeros(LAYOUT), 0, Task(0, 0, (0,), "evaluate"))
    assert not worker.residuals.held


@pytest.mark.parametrize("name", ["int8", "int4", "randk"])
def test_what_is_sent_is_a_function_of_seed_client_and_version(name):
    def digest(seed: int = 0, client: int = 0, version: int = 0, before: int = 0) -> str:
        worker = Compressed(Constant(), codec_of(name), seed=seed)
        for other in range(before):
            play(worker, 50 + other)
        return play(worker, client, version).bundle.sha256()

    assert digest() == digest(before=3)
    assert len({digest(), digest(seed=1), digest(client=1), digest(version=1)}) == 4


class Constant:
    def run(self, weights: Bundle, client: int, task: Task) -> Work:
        return Work(vector(normal(100)))


@pytest.mark.parametrize("codec", CONTRACTING, ids=str)
def test_what_was_sent_and_the_residual_are_together_what_was_meant(codec):
    worker, packed, into = Compressed(Deltas(), codec, feedback=True), Packed(codec, LAYOUT), Bundle.zeros(LAYOUT)
    rounds = 20
    for client in (3, 4):
        sums = {"sent": np.zeros(21), "meant": np.zeros(21)}
        for version in range(rounds):
            packed.unpack(play(worker, client, version).bundle, into)
            sums["sent"] += into.vector()
            sums["meant"] += random_bundle(100 * client + version, 0.01).vector()
        # two float32 roundings a round, of numbers below 1
        np.testing.assert_allclose(
            sums["sent"] + worker.residuals.of(client), sums["meant"], atol=rounds * 2 * 2.0**-24, rtol=0
        )


def test_residuals_stay_within_the_bound_of_the_paper():
    """|e|^2 <= 4 (1 - d) / d^2 * max |g|^2 where |C(x) - x|^2 <= (1 - d) |x|^2 (Karimireddy et al. 2019, lemma 3)."""
    worker, d = Compressed(Deltas(), TopK(0.2), feedback=True), kept(0.2, 21) / 21
    most = max(square(random_bundle(version, 0.01).vector()) for version in range(200))
    for version in range(200):
        play(worker, 0, version)
        assert square(worker.residuals.of(0)) <= 4 * (1 - d) / d**2 * most


def test_feedback_sends_in_the_end_what_compression_alone_never_sends():
    x = np.array([1.0, 0.1, 0.05, 0.0], np.float32)

    class Same:
        def run(self, weights: Bundle, client: int, task: Task) -> Work:
            return Work(vector(x))

    def mean(feedback: bool) -> Vector:
        worker, into, total = Compressed(Same(), TopK(0.25), feedback), vector(x), np.zeros(4)
        packed = Packed(TopK(0.25), into.layout)
        for version in range(400):
            packed.unpack(worker.run(into, 0, Task(version, 0, (0,))).bundle, into)
            total += into.vector()
        return total / 400

    np.testing.assert_array_equal(mean(False), [1, 0, 0, 0])
    np.testing.assert_allclose(mean(True), x, atol=2 / 400)  # no residual here is above 2


@pytest.mark.parametrize("codec", [codec for codec in ALL if not codec.contracts], ids=str)
def test_feedback_is_refused_for_what_does_not_contract(codec):
    with pytest.raises(UserError, match="does not contract"):
        Compressed(Deltas(), codec, feedback=True)


def test_residuals_take_so_many_bytes_and_the_longest_unused_go_first():
    worker = Compressed(Deltas(), TopK(0.1), feedback=True, kept_bytes=2 * 21 * 4)
    dropped = [play(worker, client).totals["dropped_residuals"] for client in (0, 1, 0, 2, 2)]
    assert dropped == [(0.0, 1.0), (0.0, 1.0), (0.0, 1.0), (1.0, 1.0), (0.0, 1.0)]
    assert list(worker.residuals.held) == [0, 2]
    assert worker.residuals.free == 0


def test_room_for_less_than_one_residual_is_a_mistake():
    with pytest.raises(UserError, match=r"kept_bytes=83: one residual has 84"):
        play(Compressed(Deltas(), TopK(0.1), feedback=True, kept_bytes=83))


# The aggregator's side


@pytest.mark.parametrize("codec", ALL, ids=str)
def test_an_aggregator_gets_what_was_unpacked(codec):
    weights, packed, into = random_bundle(1), Packed(codec, LAYOUT), Bundle.zeros(LAYOUT)
    ours, plain = Decompressed(FedAvgServer(weights), codec), FedAvgServer(weights)
    for client in range(3):
        bundle = packed.pack(random_bundle(10 + client), rng(client))
        packed.unpack(bundle, into)
        ours.fold(contribution(bundle, 2.0 + client, client=client))
        plain.fold(contribution(into, 2.0 + client, client=client))
    assert ours.step() == plain.step()
    assert ours.weights().sha256() == plain.weights().sha256()


def test_sums_are_refused_and_nothing_too():
    ours = Decompressed(FedAvgServer(random_bundle(1)), TopK())
    assert not ours.linear
    bundle = Packed(TopK(), LAYOUT).pack(random_bundle(2), rng(1))
    with pytest.raises(ProtocolError, match="one by one"):
        ours.fold(contribution(bundle, summed=True))
    with pytest.raises(ProtocolError, match="no arrays"):
        ours.fold(contribution(None))


@pytest.mark.parametrize("codec", ALL, ids=str)
def test_the_norm_that_is_bounded_is_of_what_was_unpacked(codec):
    """One float32 entry and two float64 entries: a 3-4-12 triangle in three dimensions, of norm 13."""
    delta = Bundle.pack({"w": np.float32([12.0]), "v": np.float64([3.0, 4.0])})
    bundle = Packed(codec, delta.layout).pack(delta, rng(1))
    Decompressed(FedAvgServer(delta), codec, norm=13.1).fold(contribution(bundle))
    ours = Decompressed(FedAvgServer(delta), codec, norm=12.9)
    with pytest.raises(ProtocolError, match=r"norm 13 is above the bound of 12\.9"):
        ours.fold(contribution(bundle))
    with pytest.raises(RuntimeError, match="nothing folded in"):
        ours.step()


def test_the_state_is_the_other_aggregators():
    ours, plain = Decompressed(FedAdamServer(random_bundle(1), 18), Float16()), FedAdamServer(random_bundle(1), 18)
    bundle = Packed(Float16(), LAYOUT).pack(random_bundle(2), rng(1))
    ours.fold(contribution(bundle))
    ours.step()
    plain.load(ours.weights(), ours.state())
    again = Decompressed(FedAdamServer(random_bundle(3), 18), Float16())
    again.load(plain.weights(), plain.state())
    assert again.weights().sha256() == ours.weights().sha256()
    assert {name: value.tolist() for name, value in again.state().items()} == {
        name: value.tolist() for name, value in ours.state().items()
    }
