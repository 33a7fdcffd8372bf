"""A policy's network on a device, with a CPU as the device: its numbers are those of the actor, however batches are filled up,
and if they are not, the actor's way computes them. Page-locked memory and the capture itself need a GPU."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
import torch
from taping import taped
from test_central import MAKERS, PICTURES, asking, inferring, observations
from torch import Tensor, nn

from shoal.envs.spaces import Box, Discrete, Named, Observations, Spaces
from shoal.jobs.reinforcement import Reinforcement
from shoal.nets.acting import Parted
from shoal.nets.bodies import precise
from shoal.nets.capturing import Capture
from shoal.nets.continuous import Bounds, SquashedPolicy
from shoal.nets.flat import FlatModule
from shoal.nets.numpy_policy import NumpyPolicy
from shoal.nets.on_device import OnDevice, Placed, filled, uncaptured
from shoal.nets.policies import DeepActorCritic, TorchPolicy, built_in
from shoal.nets.q import QNetwork, RecurrentQNetwork
from shoal.nets.q_policy import RecurrentTorchQ, TorchQ
from shoal.nets.recurrent import RecurrentActorCritic
from shoal.nets.squashed import SquashedActor, TorchNumbers
from shoal.protocol.layout import Bundle

ARM = Box((3,), (-1.0,) * 3, (1.0,) * 3)
PARTS = Spaces(Named(((("eye",), Observations((36, 36), "u1")), (("speed",), Observations((3,))))), ARM)
FLOATS, REACH = Spaces(Observations((5,)), Discrete(4)), Spaces(Observations((5,)), ARM)
KINDS: dict[str, tuple[Spaces, Callable[[], Any]]] = {
    "pictures": (PICTURES, lambda: TorchPolicy(DeepActorCritic(PICTURES), PICTURES.action)),
    "parts": (PARTS, lambda: TorchPolicy(built_in(PARTS), ARM)),
    "memory": (REACH, lambda: TorchPolicy(RecurrentActorCritic(REACH, (8,), core="lstm", size=6), ARM)),
    "values": (FLOATS, lambda: TorchQ(QNetwork(FLOATS, (8,), dueling=True), Discrete(4))),
    "values with memory": (FLOATS, lambda: RecurrentTorchQ(RecurrentQNetwork(FLOATS, (8,), size=6), Discrete(4))),
    "bounded": (REACH, lambda: SquashedPolicy(Bounds.of(REACH, "sac"), TorchNumbers(SquashedActor(REACH, (8,))))),
}


def module_of(policy: Any) -> nn.Module:
    module: nn.Module = getattr(policy, "net", policy).flat.module
    return module


def versions(make: Callable[[], Any], many: int) -> list[Bundle]:
    """Weights of several versions."""
    found = [FlatModule(module_of(make())).bundle().copy() for _ in range(many)]
    for version, weights in enumerate(found):
        weights.vector()[:] *= 1 + version / 2
    return found


def states(policy: Any, rows: int, seed: int) -> dict[str, Any]:
    drawn = np.random.default_rng(seed)
    return {name: drawn.normal(size=its.shape).astype(np.float32) for name, its in policy.begin(rows).items()}


def drawn_observations(spaces: Spaces, rows: int, seed: int) -> Any:
    dtype, _ = spaces.record()
    if dtype.names is None:
        return observations(spaces, rows, seed)
    out, drawn = np.zeros(rows, dtype), np.random.default_rng(seed)
    for name in dtype.names:
        numbers = drawn.normal(size=out[name].shape)
        out[name] = np.abs(60 * numbers) if out[name].dtype == np.uint8 else numbers
    return out


def test_batches_are_filled_up_to_a_few_numbers_of_rows() -> None:
    assert [filled(rows) for rows in (1, 8, 9, 12, 13, 16, 17, 24, 25, 33, 200, 1_000)] == [
        *(8, 8, 12, 12, 16, 16, 24, 24, 32, 48, 256, 1_024)
    ]
    assert all(rows <= filled(rows) < 1.5 * rows for rows in range(8, 1_025))
    assert len({filled(rows) for rows in range(1, 1_025)}) == 15


@pytest.mark.parametrize("capture", [uncaptured, taped])
@pytest.mark.parametrize("kind", KINDS)
def test_numbers_of_a_device_are_those_of_the_actor_for_every_version_and_number_of_rows(kind: str, capture: Capture) -> None:
    spaces, make = KINDS[kind]
    told: list[str] = []
    network = OnDevice(make, "cpu", capture, told.append)
    placed, own = [Placed(cast(Parted, make()), network) for _ in range(2)], make()
    for turn, rows in enumerate((5, 9, 3, 8, 12, 1)):
        weights = versions(make, 2)
        for each in weights:
            each.vector()[:] += turn / 64
        for policy, each in zip(placed, weights, strict=True):
            policy.load(each)
        for version in (0, 1, 0):
            own.load(weights[version])
            seen, before = drawn_observations(spaces, rows, 10 * turn + version), states(own, rows, turn)
            wanted, after = own.numbers(seen, before)
            found, state = placed[version].numbers(seen, before)
            np.testing.assert_allclose(found, wanted, rtol=1e-5, atol=1e-6)
            assert (found.dtype, found.shape, state.keys()) == (np.float32, (rows, placed[0].width), after.keys())
            for name in after:
                np.testing.assert_allclose(state[name], after[name], rtol=1e-5, atol=1e-6)
    assert (network.sizes, network.fault, told) == ([8, 12], "", [])


def test_bfloat16_is_computed_on_the_device_too_and_its_rounding_is_no_fault() -> None:
    def make() -> Any:
        return TorchPolicy(precise(DeepActorCritic(PICTURES), "bf16"), PICTURES.action)

    told: list[str] = []
    placed, own = Placed(make(), OnDevice(make, "cpu", taped, told.append)), make()
    plain = TorchPolicy(DeepActorCritic(PICTURES), PICTURES.action)
    [weights] = versions(make, 1)
    weights.vector()[:] *= 3
    seen = observations(PICTURES, 6)
    for each in (placed, own, plain):
        each.load(weights)
    found = placed.numbers(seen, {})[0].copy()
    np.testing.assert_allclose(found, own.parameters(seen), rtol=1e-2, atol=1e-2)
    assert not np.array_equal(found, plain.parameters(seen))
    assert told == []


def placed_by(capture: Capture, told: list[str]) -> tuple[Placed, Any, Any]:
    """A policy on a device, the same in an actor, and observations."""
    spaces, make = KINDS["pictures"]
    placed, own = Placed(make(), OnDevice(make, "cpu", capture, told.append)), make()
    [weights] = versions(make, 1)
    placed.load(weights)
    own.load(weights)
    return placed, own, observations(spaces, 5)


def test_a_device_with_other_numbers_is_asked_once_and_the_processor_computes() -> None:
    def wrong(work: Callable[[], Tensor]) -> tuple[Callable[[], object], Tensor]:
        again, numbers = uncaptured(work)
        return lambda: (again(), numbers.add_(0.25)), numbers

    told: list[str] = []
    placed, own, seen = placed_by(wrong, told)
    for _ in range(2):
        np.testing.assert_array_equal(placed.numbers(seen, {})[0], own.parameters(seen))
    assert told == [
        "the inference process computes on the CPU from now on, and not on cpu: "
        "its numbers for the first 5 observations are up to 0.25 off"
    ]
    weights = versions(KINDS["pictures"][1], 2)[1]
    placed.load(weights)
    own.load(weights)
    np.testing.assert_array_equal(placed.numbers(seen, {})[0], own.parameters(seen))


def test_a_device_that_fails_is_asked_no_more_and_the_processor_computes() -> None:
    calls = []

    def out_of_memory(work: Callable[[], Tensor]) -> tuple[Callable[[], object], Tensor]:
        def again() -> None:
            calls.append(1)
            raise RuntimeError("out of memory\nat a place")

        return again, work()

    told: list[str] = []
    placed, own, seen = placed_by(out_of_memory, told)
    for _ in range(3):
        np.testing.assert_array_equal(placed.numbers(seen, {})[0], own.parameters(seen))
    assert (len(calls), len(told)) == (1, 1)
    assert told[0].endswith("not on cpu: out of memory")


def test_without_a_capture_the_device_computes_anyway() -> None:
    def refused(work: Callable[[], Tensor]) -> tuple[Callable[[], object], Tensor]:
        raise RuntimeError("operation not permitted when stream is capturing\nat line 3")

    told: list[str] = []
    placed, own, seen = placed_by(refused, told)
    for rows in (5, 2, 5):
        np.testing.assert_allclose(placed.numbers(seen[:rows], {})[0], own.parameters(seen[:rows]), rtol=1e-5, atol=1e-6)
    assert (placed.network.fault, placed.network.sizes) == ("", [8])
    assert told == [
        "no CUDA graph of the policy's network, which runs without one: operation not permitted when stream is capturing"
    ]


def test_a_policy_that_is_no_module_stays_on_the_processor() -> None:
    told: list[str] = []
    spaces, module, make = MAKERS["numpy"]
    placed, own = Placed(make(), OnDevice(make, "cpu", told=told.append)), cast(NumpyPolicy, make())
    weights, seen = FlatModule(module()).bundle(), observations(spaces, 3)
    placed.load(weights)
    own.load(weights)
    np.testing.assert_array_equal(placed.numbers(seen, {})[0], own.parameters(seen))
    assert [line.partition("cpu: ")[2] for line in told] == ["the policy's network is no torch module"]


JOBS: list[tuple[str, dict[str, Any]]] = [
    ("CartPole-v1", {"method": "impala"}),
    ("CartPole-v1", {"method": "impala", "norm_obs": True, "memory": "gru"}),
    ("CartPole-v1", {"method": "r2d2", "memory": "lstm"}),
    ("CartPole-v1", {"method": "impala", "frame_stack": 3}),
    ("CartPole-v1", {"method": "apex"}),
    ("Pendulum-v1", {"method": "sac"}),
    ("Pendulum-v1", {"method": "td3"}),
]


@pytest.mark.parametrize(("env", "settings"), JOBS)
def test_a_built_in_perceptron_has_on_a_device_the_numbers_that_it_has_in_numpy(env: str, settings: dict[str, Any]) -> None:
    problem: Any = Reinforcement(env, **settings).problem
    weights, spaces, own = problem.first(0)[0].copy(), problem.spaces(), problem.acts(0)
    weights.vector()[:] *= 3
    placed = problem.inferred(0, "cpu:0")()  # as on a GPU, and not the actor's own way
    own.load(weights)
    placed.load(weights)
    seen, before = observations(spaces, 6), own.begin(6)
    wanted, after = own.numbers(seen, before)
    found, state = placed.numbers(seen, before)
    np.testing.assert_allclose(found, wanted, rtol=1e-5, atol=1e-6)
    assert state.keys() == after.keys()
    network = getattr(placed, "inner", placed).network
    assert (network.sizes, network.fault) == ([8], "")


def test_actors_have_the_numbers_of_a_device_in_the_inference_process(tmp_path: Path) -> None:
    spaces, module, make = MAKERS["pictures"]
    told: list[str] = []
    network = OnDevice(make, "cpu", taped, told.append)
    own, policy = make(), asking(make, spaces, tmp_path / "at", told)
    with inferring(lambda: Placed(make(), network), spaces, tmp_path / "at"):
        for version in range(3):
            weights = FlatModule(module()).bundle().copy()
            weights.vector()[:] += version / 64
            own.load(weights)
            policy.named(version)
            policy.load(weights)
            seen, noise = observations(spaces, 5, version), own.noise(np.random.default_rng(version), 1, 5)[0]
            one, other = (each.act(seen, np.zeros(5, bool), {}, noise, {}) for each in (own, policy))
            np.testing.assert_allclose(one.extras["numbers"], other.extras["numbers"], rtol=1e-5, atol=1e-6)
            np.testing.assert_array_equal(one.action, other.action)
        assert policy.totals() == {"inference_central": (15.0, 15.0)}
        policy.close()
    assert (told, network.sizes) == ([], [8])


@pytest.mark.parametrize(
    ("settings", "device"),
    [
        ({"method": "impala"}, "cuda"),
        ({"method": "ppo"}, "cpu"),
        ({"method": "ppo", "overlap": True}, "cuda"),
        ({"method": "ppo", "inference_device": "cuda"}, "cuda"),
        ({"method": "impala", "inference_device": "cpu"}, "cpu"),
    ],
)
def test_a_gpu_computes_where_no_bits_are_promised_or_where_it_is_asked_for(settings: dict[str, Any], device: str) -> None:
    job = Reinforcement("CartPole-v1", inference="central", **settings)
    repeats = cast(Any, job.method).repeats
    assert cast(Any, job.problem).inferring_on("cuda", repeats) == device


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("kind", KINDS)
def test_on_a_gpu_the_numbers_are_those_of_the_actor(kind: str) -> None:
    spaces, make = KINDS[kind]
    told: list[str] = []
    network = OnDevice(make, "cuda", told=told.append)
    placed, own = [Placed(cast(Parted, make()), network) for _ in range(2)], make()
    for version, weights in enumerate(versions(make, 2)):
        placed[version].load(weights)
    for turn, (rows, version) in enumerate([(64, 0), (50, 1), (64, 1), (9, 0), (64, 0)]):
        own.load(versions(make, 2)[version])
        seen, before = drawn_observations(spaces, rows, turn), states(own, rows, turn)
        wanted, after = own.numbers(seen, before)
        found, state = placed[version].numbers(seen, before)
        np.testing.assert_allclose(found, wanted, rtol=1e-4, atol=1e-5)
        for name in after:
            np.testing.assert_allclose(state[name], after[name], rtol=1e-4, atol=1e-5)
    assert (network.sizes, network.fault, told) == ([12, 64], "", [])
