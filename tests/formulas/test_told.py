"""Weights told as what changed: everyone holds the same bits, and these stay as near to what is wanted as theory says."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from federated_deltas import LAYOUT, TRAINABLE, contribution, random_bundle, vector
from servers import FedAdamServer

from shoal.aggregators.around.moving import Moving
from shoal.aggregators.around.told import Told
from shoal.aggregators.fedavg import FedAvgServer
from shoal.protocol.changes import Changes, First, agreed, following, joined, last
from shoal.protocol.compress import CODECS, Coding
from shoal.protocol.errors import ProtocolError, UserError
from shoal.protocol.layout import Bundle, Layout
from shoal.protocol.picking import kept

Vector = np.ndarray[Any, np.dtype[np.float32]]
ROUNDING = 2.0**-23  # of float32 numbers: the difference and the sum, half a unit each


def rng(*key: int) -> np.random.Generator:
    return np.random.Generator(np.random.Philox(list(key)))


def normal(n: int, size: float = 1.0, seed: int = 0) -> Vector:
    return rng(seed).normal(0, size, n).astype(np.float32)


def told(codec: str, seed: int = 0) -> Told:
    return Told(FedAdamServer(random_bundle(99), TRAINABLE, device="cpu"), Coding(codec, 0.2, 4), seed=seed)


def step(one: Told | FedAvgServer, version: int) -> None:
    for client in range(3):
        one.fold(contribution(random_bundle(1_000 * version + client, 0.1), 1.0 + client, client=client))
    one.step()


def followed(changes: Changes, targets: list[Vector], start: Vector) -> list[Vector]:
    """What is held after each target was told."""
    held, seen = vector(start), []
    for at, target in enumerate(targets):
        into = Bundle.zeros(held.layout)
        changes.follow(held, [changes.tell(vector(target), held, rng(5, at)).data], into)
        held = into
        seen.append(held.vector().copy())
    return seen


def walk(n: int, steps: int, size: float = 0.01) -> list[Vector]:
    """Weights that move by as much each version."""
    moves = [normal(n, 1.0, seed) for seed in range(1, steps + 1)]
    return list(np.cumsum([move * np.float32(size / np.linalg.norm(move)) for move in moves], 0, dtype=np.float32))


# The same bits


@pytest.mark.parametrize("codec", CODECS)
def test_who_adds_what_changed_holds_the_bits_that_are_published(codec):
    one = told(codec)
    changes, held, versions, said = Changes(one.coding, LAYOUT), one.weights(), [one.weights()], []
    for version in range(6):
        step(one, version)
        change, into = one.change(), Bundle.zeros(LAYOUT)
        assert change is not None
        changes.follow(held, [change.data], into)
        assert into.sha256() == one.weights().sha256()
        held = into
        versions.append(one.weights())
        said.append(change)
    for base in range(6):  # one that was not here meanwhile adds all at once
        changes.follow(versions[base], [last(joined(said), said[0], 6 - base)], into)
        assert into.sha256() == versions[6].sha256()


@pytest.mark.parametrize("codec", CODECS)
def test_the_rules_own_weights_are_those_of_a_run_that_tells_all(codec):
    """A delta is added to w whatever h it was made from, so that nothing a client did is rounded away."""
    one, plain = told(codec), FedAdamServer(random_bundle(99), TRAINABLE, device="cpu")
    for version in range(5):
        step(one, version)
        step(plain, version)
    assert one.aggregator.weights().sha256() == plain.weights().sha256()


@pytest.mark.parametrize("codec", CODECS)
def test_a_restart_goes_on_to_the_same_bits(codec):
    one, again = told(codec), told(codec)
    for version in range(3):
        step(one, version)
    again.load(one.weights(), {name: np.array(value) for name, value in one.state().items()})
    assert again.change() is None
    assert again.weights().sha256() == one.weights().sha256()
    for version in range(3, 6):
        step(one, version)
        step(again, version)
    assert again.weights().sha256() == one.weights().sha256()


def test_random_entries_are_others_in_every_version_and_for_every_seed():
    seeds = set()
    for seed in (0, 1):
        one = told("randk", seed)
        for version in range(3):
            step(one, version)
            seeds.add(int(one.change()["seed"]))
    assert len(seeds) == 6


@pytest.mark.parametrize("codec", CODECS)
def test_entries_of_other_dtypes_are_told_as_they_are(codec):
    one = told(codec)
    step(one, 0)
    for dtype in ("i8", "f2", "bf16", "f8", "b1", "u1"):
        np.testing.assert_array_equal(one.weights().vector(dtype), one.aggregator.weights().vector(dtype))


# The error


def test_a_distance_is_within_the_bound_for_the_largest_entries():
    """|w - h| <= q s / (1 - q) where |C(x) - x| <= q |x| and |w' - w| <= s; of top-k q^2 = 1 - k / n."""
    n, share, size = 200, 0.2, 0.01
    targets = walk(n, 300, size)
    q = math.sqrt(1 - kept(share, n) / n)
    seen = followed(Changes(Coding("topk", share), vector(targets[0]).layout), targets, np.zeros(n, np.float32))
    off = [float(np.linalg.norm(w.astype(np.float64) - h)) for w, h in zip(targets, seen, strict=True)]
    assert max(off) <= q * size / (1 - q) + 300 * ROUNDING * np.abs(targets).max() * math.sqrt(n)
    assert max(off) > 1.3 * off[0]  # what is left out does add up


@pytest.mark.parametrize(("codec", "top"), [("int8", 127), ("int4", 7)])
def test_a_distance_is_within_the_bound_for_whole_numbers_of_a_scale(codec, top):
    """Each entry is off by half a scale, 1 / (2 top) of its block's largest: q = 1 / (2 top) for the largest of all."""
    n, block = 512, 64
    targets = walk(n, 200)
    most = max(float(np.abs(b - a).max()) for a, b in zip([np.zeros(n), *targets], targets, strict=False))
    q = 1 / (2 * top)
    seen = followed(Changes(Coding(codec, block=block), vector(targets[0]).layout), targets, np.zeros(n, np.float32))
    off = max(float(np.abs(w.astype(np.float64) - h).max()) for w, h in zip(targets, seen, strict=True))
    assert off <= (q * most / (1 - q)) * (1 + 1e-3) + ROUNDING * np.abs(targets).max()
    assert off > 0.5 * q * most


@pytest.mark.parametrize(("codec", "unit"), [("float16", 2.0**-11), ("bfloat16", 2.0**-8)])
def test_halves_are_off_by_half_a_unit_of_what_changed_and_not_of_the_weights(codec, unit):
    n = 1_000
    start = normal(n, 10.0)
    target = start + normal(n, 0.1, 1)
    [held] = followed(Changes(Coding(codec), vector(start).layout), [target], start)
    off, changed = np.abs(target.astype(np.float64) - held), np.abs(target.astype(np.float64) - start)
    assert (off <= unit * changed + 2.0**-25 + ROUNDING * np.abs(target)).all()
    assert off.max() < 0.01 * (unit * np.abs(target)).max()  # what rounding the weights themselves would cost


def test_random_entries_leave_of_the_distance_what_the_definition_says():
    """An entry is told with probability k / n each time, so E |w - h|^2 = (1 - k / n)^t |w - h_0|^2 for weights that stay."""
    n, share, versions, draws = 100, 0.1, 8, 2_000
    target = normal(n)
    changes, left = Changes(Coding("randk", share), vector(target).layout), np.zeros((draws, versions))
    for draw in range(draws):
        held = vector(np.zeros(n))
        for version in range(versions):
            into = Bundle.zeros(held.layout)
            changes.follow(held, [changes.tell(vector(target), held, rng(draw, version)).data], into)
            held = into
            left[draw, version] = np.sum((target.astype(np.float64) - held.vector()) ** 2)
    expected = np.sum(target.astype(np.float64) ** 2) * (1 - share) ** np.arange(1, versions + 1)
    standard_error = left.std(0) / math.sqrt(draws)
    assert (np.abs(left.mean(0) - expected) <= 5 * standard_error).all()


@pytest.mark.parametrize("codec", CODECS)
def test_weights_that_stay_are_held_in_the_end_to_the_last_bits(codec):
    target = normal(256)
    seen = followed(Changes(Coding(codec, 0.1), vector(target).layout), [target] * 200, np.zeros(256, np.float32))
    np.testing.assert_allclose(seen[-1], target, rtol=4 * ROUNDING, atol=2.0**-24)
    assert np.linalg.norm(seen[0] - target) > np.linalg.norm(seen[-1] - target)


# Bytes


@pytest.mark.parametrize(
    ("codec", "nbytes"),
    [
        ("float16", 2 * 1_001),
        ("bfloat16", 2 * 1_001),
        ("int8", 1_001 + 4 * 11),
        ("int4", 501 + 4 * 11),
        ("topk", 50 * (4 + 4)),
        ("randk", 50 * 4 + 8),
    ],
)
def test_a_version_says_how_many_bytes_it_took(codec, nbytes):
    one = Told(FedAvgServer(vector(normal(1_001)), None, device="cpu"), Coding(codec, 0.05, 100))
    one.fold(contribution(vector(normal(1_001, 0.1, 1))))
    metrics = one.step().metrics
    assert metrics["weights_bytes"] == 4 * 1_001
    assert nbytes <= metrics["change_bytes"] < nbytes + 64  # the second segment begins at a multiple of 64
    wanted, held = one.aggregator.weights().vector().astype(np.float64), one.weights().vector()
    assert metrics["untold"] == pytest.approx(np.linalg.norm(wanted - held) / np.linalg.norm(wanted), rel=1e-4)


# What cannot be


def test_a_change_beyond_a_half_ends_the_run_with_what_to_use():
    one = Told(FedAvgServer(vector([0.0, 0.0]), None, device="cpu", deterministic=False), Coding("float16"))
    one.fold(contribution(vector([1e5, 0.0])))
    with pytest.raises(UserError, match=r"compress_weights=float16: version 1 cannot be told: .* use bfloat16"):
        one.step()


@pytest.mark.parametrize("cut", [1, -1, 64, 10_000])
def test_bytes_of_no_whole_number_of_changes_are_refused(cut):
    changes, held = Changes(Coding("int8"), LAYOUT), random_bundle(0)
    told = joined([changes.tell(random_bundle(1), held, rng(0))] * 2)
    wrong = told[:-cut] if cut > 0 else np.append(told, np.uint8(0))
    with pytest.raises(ProtocolError, match="bytes of changes: expected one or more changes of"):
        changes.follow(held, [wrong], Bundle.zeros(LAYOUT))


@pytest.mark.parametrize(
    "row", [None, [], ["int8"], ["zip", 0.1, 256], ["int8", 0.0, 256], ["int8", 1.5, 256], ["int8", 0.1, 0], ["int8", 1, 256]]
)
def test_a_codec_that_is_none_is_refused(row):
    with pytest.raises(ProtocolError, match=r"\[name, share, block\]"):
        Coding.from_row(row)


def test_a_codec_comes_back_as_it_was():
    assert Coding.from_row(Coding("topk", 0.25, 7).row()) == Coding("topk", 0.25, 7)


# Frozen arrays


STILL = Layout.of({"head": ("f4", (3,)), "body": ("f4", (80,)), "seen": ("i8", ())}, still=["body"])


def part(**ones: float) -> Bundle:
    delta = Bundle.zeros(STILL)
    for name, value in ones.items():
        delta[name][...] = value
    return delta


def test_a_version_is_the_one_before_with_its_moving_entries_replaced():
    one = Moving(FedAvgServer(part(body=2.0), None, device="cpu"))
    actor, held, told = following(agreed(one.coding.row()), STILL), [one.weights()], []
    assert one.change() is None
    for at in range(3):
        one.fold(contribution(part(head=1.0 + at, seen=at)))
        one.step()
        told.append(one.change())
        held.append(Bundle.zeros(STILL))
        actor.follow(held[-2], [told[-1].data], held[-1])
        assert (held[-1].data == one.weights().data).all()
    assert told[0].data.nbytes < 0.6 * one.weights().data.nbytes
    behind = Bundle.zeros(STILL)
    actor.follow(held[0], [told[0].data, joined(told[1:])], behind)
    assert (behind.data == held[-1].data).all()


def test_a_step_that_moved_a_still_array_and_a_restart_tell_no_change():
    one = Moving(FedAvgServer(part(), None, device="cpu"))
    for moves, tells in (("head", True), ("body", False), ("head", True)):
        one.fold(contribution(part(**{moves: 1.0})))
        one.step()
        assert (one.change() is not None) == tells
    one.load(one.weights().copy(), one.state())
    assert one.change() is None


@pytest.mark.parametrize(
    "row",
    [
        ["first"],
        ["first", 3],
        ["first", [["f4"]]],
        ["first", [["f4", -1]]],
        ["first", [["f4", True]]],
        ["first", [["x", 1]]],
        ["first", [["f4", 1], ["f4", 1]]],
        ["first", [[["f4"], 1]]],
        ["first", [["f4", 2**60]]],
        ["first", [], 1],
    ],
)
def test_moving_entries_that_are_none_are_refused(row):
    with pytest.raises(ProtocolError, match="pairs of a dtype and its number of entries"):
        agreed(row)


@pytest.mark.parametrize("entries", [(("f4", 84),), (("i8", 2),), (("b1", 1),)])
def test_more_moving_entries_than_the_weights_have_are_refused(entries):
    with pytest.raises(ProtocolError, match="more than the weights have"):
        following(First(entries), STILL)


@pytest.mark.parametrize("cut", [1, -1, 64])
def test_moving_entries_of_another_length_are_refused(cut):
    held, told = part(), np.zeros(First.of(STILL.moving).entries[0][1] * 4 + 1_000, np.uint8)[: STILL.moving.nbytes - cut]
    with pytest.raises(ProtocolError, match="bytes of changes: expected one or more changes of"):
        following(First.of(STILL.moving), STILL).follow(held, [told], part())
