"""Weights that are handed out without a copy: nobody sees them change, and no more memory is used than is looked at."""

from __future__ import annotations

import gc
import math
import threading
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from federated_deltas import LAYOUT, TRAINABLE, contribution, random_bundle, vector
from servers import FedAdagradServer, FedAdamServer, FedAvgMServer, FedYogiServer

from shoal.aggregators.buffers import Buffers
from shoal.aggregators.fedavg import FedAvgServer
from shoal.aggregators.fedbuff import FedBuffServer
from shoal.aggregators.summing import DeviceSum
from shoal.nets.flat import as_tensor
from shoal.protocol.layout import Bundle

BOTH = pytest.mark.parametrize("deterministic", [True, False])
MADE: dict[str, Callable[[Bundle], Any]] = {
    "array": lambda look: look.data,
    "view": lambda look: look.vector()[3:][::2],
    "block": lambda look: next(look.blocks_of("half"))[1].reshape(2, 2)[1],
    "memoryview": lambda look: look.data.data[5:9],
    "tensor": lambda look: as_tensor(look.data[:64]).view(torch.float32)[3:],
    "bundle": lambda look: Bundle.of_buffer(look.layout, look.data.data),
}


def moved(aggregator: FedAvgServer, by: float = 0.5) -> FedAvgServer:
    """One round further."""
    for weight in (3.0, 1.0):
        bundle = random_bundle(int(weight), by)
        aggregator.fold(contribution(bundle, weight))
    aggregator.step()
    return aggregator


@pytest.mark.parametrize("made", MADE)
def test_a_buffer_is_free_once_nothing_that_was_made_of_a_look_is_held(made: str) -> None:
    buffers = Buffers(LAYOUT)
    raw = buffers.take()
    raw.fill_(7)
    held = MADE[made](buffers.show(raw))
    other = buffers.take()
    assert (buffers.made, other is raw) == (2, False)
    del held
    gc.collect()
    assert (buffers.take() is raw, buffers.made) == (True, 2)


def test_a_look_is_read_only() -> None:
    buffers = Buffers(LAYOUT)
    look = buffers.show(buffers.take())
    assert not look.data.flags.writeable
    with pytest.raises(ValueError, match="WRITEABLE"):
        look.data.flags.writeable = True
    with pytest.raises(ValueError, match="read-only"):
        look["half"][...] = 0


def test_a_look_may_go_on_another_thread() -> None:
    buffers = Buffers(LAYOUT)
    looks = [buffers.show(buffers.take())]
    thread = threading.Thread(target=looks.clear)
    thread.start()
    thread.join()
    buffers.take()
    assert buffers.made == 1


def test_buffers_that_many_looked_at_are_not_all_kept() -> None:
    buffers = Buffers(LAYOUT)
    looks = [buffers.show(buffers.take()) for _ in range(5)]
    looks.clear()
    buffers.take()
    buffers.take()
    assert buffers.made == 6


@BOTH
@pytest.mark.parametrize("kind", [FedAvgServer, FedAvgMServer, FedAdagradServer, FedAdamServer, FedYogiServer, FedBuffServer])
def test_weights_that_are_held_never_change(kind: Callable[..., FedAvgServer], deterministic: bool) -> None:
    aggregator = kind(random_bundle(0), TRAINABLE, deterministic=deterministic)
    held = [aggregator.weights()]
    digests = [held[0].sha256()]
    for _ in range(4):
        held.append(moved(aggregator).weights())
        digests.append(held[-1].sha256())
    assert [look.sha256() for look in held] == digests
    assert len(set(digests)) == 5
    assert aggregator.weights() is held[-1]


@pytest.mark.parametrize(("deterministic", "most"), [(True, 2), (False, 2)])
def test_where_the_newest_weights_alone_are_held_two_buffers_do_for_ever(deterministic: bool, most: int) -> None:
    aggregator = FedAvgServer(random_bundle(0), TRAINABLE, deterministic=deterministic)
    newest = aggregator.weights()
    for _ in range(5):
        moved(aggregator)
        newest = aggregator.weights()
    assert newest is aggregator.weights()
    assert aggregator.current.buffers.made == most


def test_exact_sums_move_weights_in_place_where_nobody_looks_at_them() -> None:
    aggregator = FedAvgServer(random_bundle(0), TRAINABLE)
    for _ in range(5):
        moved(aggregator)
    assert aggregator.current.buffers.made == 1


@BOTH
def test_as_many_buffers_are_made_as_are_looked_at(deterministic: bool) -> None:
    aggregator = FedAvgServer(random_bundle(0), TRAINABLE, deterministic=deterministic)
    held = []
    for _ in range(4):
        held.append(aggregator.weights())
        moved(aggregator)
    assert aggregator.current.buffers.made == 5
    held.clear()
    for _ in range(4):
        moved(aggregator)
    assert aggregator.current.buffers.made <= 6


@BOTH
def test_looking_changes_no_bit(deterministic: bool) -> None:
    watched, alone = (FedAvgServer(random_bundle(0), TRAINABLE, deterministic=deterministic) for _ in range(2))
    looks = []
    for i in range(6):
        looks.append(moved(watched).weights())
        moved(alone)
        if i == 3:
            looks.clear()
    assert watched.weights().sha256() == alone.weights().sha256()


@BOTH
def test_weights_loaded_are_copied_and_those_before_stay(deterministic: bool) -> None:
    aggregator, other = (FedAvgServer(random_bundle(i), TRAINABLE, deterministic=deterministic) for i in range(2))
    before = aggregator.weights()
    aggregator.fold(contribution(random_bundle(5), 2.0))  # forgotten
    start = random_bundle(1)
    aggregator.load(start, aggregator.state())
    for name, array in start.items():
        array[...] = 0
        assert (before[name] == random_bundle(0)[name]).all()
    assert moved(aggregator).weights().sha256() == moved(other).weights().sha256()


def test_what_lies_between_segments_is_zero_in_every_version() -> None:
    start = random_bundle(0)
    between = np.ones(LAYOUT.nbytes, bool)
    for first, last in LAYOUT.segments.values():
        between[first:last] = False
    start.data[between] = 9
    for deterministic in (True, False):
        aggregator = FedAvgServer(start, TRAINABLE, deterministic=deterministic)
        for _ in range(3):
            assert not moved(aggregator).weights().data[between].any()


def elsewhere(deterministic: bool) -> FedAvgServer:
    """As on a device: weights are moved where they are, and others see a copy."""
    aggregator = FedAvgServer(random_bundle(0), TRAINABLE, deterministic=deterministic)
    current = aggregator.current
    current.here, current._look, current.raw = False, None, current.raw.clone()
    aggregator.sum = DeviceSum(LAYOUT, torch.device("cpu"), deterministic)
    return aggregator


@BOTH
def test_weights_on_a_device_are_moved_in_place_and_shown_as_copies_that_stay(deterministic: bool) -> None:
    there, here = elsewhere(deterministic), FedAvgServer(random_bundle(0), TRAINABLE, deterministic=deterministic)
    raw, held = there.current.raw, []
    for _ in range(4):
        held = [*held, (there.weights(), there.weights().sha256())][-2:]
        moved(there)
        moved(here)
        assert there.current.raw is raw
        np.testing.assert_allclose(there.weights().vector(), here.weights().vector(), rtol=1e-6)
    assert [look.sha256() for look, _ in held] == [digest for _, digest in held]
    assert there.weights() is there.weights()
    assert there.current.buffers.made == 3  # as many as were ever looked at
    if deterministic:
        assert there.weights().sha256() == here.weights().sha256()


@BOTH
@pytest.mark.parametrize("value", [math.nan, math.inf, 3e8])
def test_arrays_that_change_after_they_were_checked_end_the_run_before_anyone_sees(value: float, deterministic: bool) -> None:
    aggregator, delta = FedAvgServer(vector([1.0, 2.0]), deterministic=deterministic), vector([0.5, 0.5])
    before = aggregator.weights()
    delta["w"][1] = value  # once its norm was taken
    with np.errstate(invalid="ignore"):
        aggregator.fold(contribution(delta, 3.0, norm=math.sqrt(0.5)))
    with pytest.raises(RuntimeError, match="changed while it was folded in"):
        aggregator.step()
    assert aggregator.weights()["w"].tolist() == before["w"].tolist() == [1.0, 2.0]


@BOTH
def test_the_smallest_deltas_are_no_alarm(deterministic: bool) -> None:
    """Their squares vanish."""
    aggregator = FedAvgServer(vector([0.0, 0.0]), deterministic=deterministic)
    for _ in range(3):
        aggregator.fold(contribution(vector([2.0**-80, -(2.0**-149)]), 600.0))
    aggregator.step()
    aggregator.fold(contribution(vector([2.0**-33, 0.0]), 1.0))
    aggregator.step()
    assert abs(aggregator.weights()["w"]).max() <= 2.0**-32


@pytest.mark.parametrize("turned", [lambda x: x.T, lambda x: x[:, ::-1], lambda x: x[1:, 2:4], lambda x: x[2, 3]])
def test_a_read_only_array_of_any_order_becomes_a_tensor_of_the_same_numbers(turned: Callable[[Any], Any]) -> None:
    array = np.asarray(turned(np.arange(20, dtype=np.float64).reshape(4, 5)))
    array.flags.writeable = False
    assert np.array_equal(as_tensor(array).numpy(), array)
    assert as_tensor(array).shape == array.shape
