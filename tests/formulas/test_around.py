"""What stands around an aggregator hands on all that it does not change."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from servers import FedAdamServer

from shoal.aggregators import amiss, lacking
from shoal.aggregators.around import Around
from shoal.aggregators.around.bounded import Bounded
from shoal.aggregators.around.compressed import Decompressed
from shoal.aggregators.around.told import Told
from shoal.aggregators.fedavg import FedAvgServer
from shoal.aggregators.fedbuff import FedBuffServer
from shoal.protocol.compress import Coding, codec_of
from shoal.protocol.layout import Bundle
from shoal.protocol.work import Contribution, Task, Work

START = Bundle.pack({"w": np.ones(5, np.float32)})


def folded(aggregator: FedAvgServer | Around) -> FedAvgServer | Around:
    for n in range(3):
        delta = Bundle.pack({"w": np.full(5, 0.25 + n, np.float32)})
        aggregator.fold(Contribution(Task(0, n, (n,)), 0, 0, Work(delta, 1.0 + n)))
    return aggregator


def test_a_wrapper_that_changes_nothing_is_the_other_one() -> None:
    plain, around = folded(FedAdamServer(START)), folded(Around(Around(FedAdamServer(START))))
    assert around.step() == plain.step()
    assert around.weights().sha256() == plain.weights().sha256()
    assert {name: value.tolist() for name, value in around.state().items()} == {
        name: value.tolist() for name, value in plain.state().items()
    }
    again = Around(FedAdamServer(START))
    again.load(plain.weights(), plain.state())
    assert folded(again).step() == folded(plain).step()


def test_a_wrapper_is_as_linear_as_the_other_one_unless_it_says_otherwise() -> None:
    coding = Coding("int8", 0.1, 256)
    assert Around(FedAvgServer(START)).linear
    assert Told(FedAvgServer(START), coding).linear
    assert not Around(FedBuffServer(START)).linear
    assert not Told(FedBuffServer(START), coding).linear
    assert not Told(Bounded(FedAvgServer(START), 2.0), coding).linear
    assert not Decompressed(FedAvgServer(START), codec_of("int8")).linear


def test_a_change_and_its_coding_show_through_what_stands_around_them() -> None:
    coding = Coding("int8", 0.1, 256)
    around = folded(Around(Told(FedAvgServer(START), coding)))
    assert around.coding == coding
    assert around.change() is None
    around.step()
    assert around.change() is not None
    assert not hasattr(Around(FedAvgServer(START)), "coding")


def test_what_an_aggregator_lacks_is_named() -> None:
    class Half:
        def weights(self) -> Bundle:
            return START

        def fold(self, contribution: Contribution) -> None: ...

        step = None

    assert lacking(Half()) == ["step", "state", "load", "linear"]
    assert lacking(object()) == ["weights", "fold", "step", "state", "load", "linear"]
    assert lacking(Around(FedAvgServer(START))) == []


@pytest.mark.parametrize("name", ["change", "brief", "anything"])
def test_what_the_other_one_has_not_the_wrapper_has_not(name: str) -> None:
    assert not hasattr(Around(FedAvgServer(START)), name)


@pytest.mark.parametrize(
    "value", [np.array("x"), np.ones(2, complex), np.array("2024-05-06", "datetime64[s]"), np.ones(3, ">f4")]
)
def test_a_state_that_no_snapshot_holds_is_refused_at_the_start(value: np.ndarray[Any, Any]) -> None:
    class Odd(Around):
        def state(self) -> dict[str, Any]:
            return {"fine": np.ones(2, np.uint32), "odd": value}

    assert amiss(Odd(FedAvgServer(START))).startswith(f"state()['odd'] has dtype {value.dtype}; a snapshot holds f4, f8, ")
