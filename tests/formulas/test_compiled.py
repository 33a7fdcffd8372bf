"""A policy's pass that is compiled: it takes the module's place only where it gives the module's numbers."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Callable
from typing import Any, cast

import numpy as np
import pytest
import torch
from test_central import PICTURES, observations
from torch import nn

from shoal.envs.spaces import Spaces
from shoal.jobs.reinforcement import Reinforcement
from shoal.nets import compiled as compiling
from shoal.nets.compiled import MOST, Compiled, compiled, compiler
from shoal.nets.forward import Forward
from shoal.nets.framed import Framed
from shoal.nets.policies import ActorCritic, DeepActorCritic, TorchPolicy
from shoal.protocol.errors import UserError
from shoal.protocol.work import Task


class Counts:
    """In place of torch.compile: the function itself, with `add` added to its numbers, and the rows of each call."""

    def __init__(self, add: float = 0.0, raises: Exception | None = None) -> None:
        self.add, self.raises, self.rows = add, raises, list[int]()

    def __call__(self, run: Callable[..., Any]) -> Callable[..., Any]:
        def fast(seen: Any, state: Any) -> Any:
            if self.raises is not None:
                raise self.raises
            self.rows.append(len(seen))
            numbers, after = run(seen, state)
            return numbers + self.add, after

        return fast


def pictures() -> TorchPolicy:
    return TorchPolicy(DeepActorCritic(PICTURES), PICTURES.action)


def test_the_compiled_pass_computes_every_batch_of_the_sizes_that_it_was_compared_for() -> None:
    policy, counts, told = pictures(), Counts(1e-6), list[str]()
    fast = Compiled(policy.forward, counts, told.append)
    sizes = [*range(1, MOST + 2), 1, MOST + 1]
    for rows in sizes:
        seen = observations(PICTURES, rows)
        np.testing.assert_allclose(fast(seen, {})[0], policy.forward(seen, {})[0] + (rows <= MOST) * 1e-6, rtol=0, atol=1e-7)
    assert counts.rows == [*range(1, MOST + 1), 1]
    assert told == []


@pytest.mark.parametrize(
    ("counts", "why"),
    [
        (Counts(0.25), "its compiled form's numbers for the first 3 observations are up to 0.25 off"),
        (Counts(raises=RuntimeError("No working C++ compiler found\nin config.cpp.cxx")), "No working C++ compiler found"),
        (Counts(raises=OSError("no room")), "no room"),
    ],
)
def test_a_compiled_pass_that_does_not_fit_is_said_once_and_the_module_computes(counts: Counts, why: str) -> None:
    policy, told = pictures(), list[str]()
    fast = Compiled(policy.forward, counts, told.append)
    for rows in (3, 3, 2):
        seen = observations(PICTURES, rows)
        np.testing.assert_array_equal(fast(seen, {})[0], policy.forward(seen, {})[0])
    assert told == [f"compile_policy=true: the policy's network runs as it is: {why}"]


def test_without_a_compiler_nothing_is_tried(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CXX", "/nowhere/c++")
    policy, told = pictures(), list[str]()
    seen = observations(PICTURES, 3)
    fast = Compiled(policy.forward, told=told.append)
    np.testing.assert_array_equal(fast(seen, {})[0], policy.forward(seen, {})[0])
    why = "torch.compile needs a C++ compiler, and there is no /nowhere/c++"
    assert [line.partition("as it is: ")[2] for line in told] == [why]


def test_what_a_module_raises_is_no_fault_of_the_compiled_pass() -> None:
    policy, counts, told = pictures(), Counts(), list[str]()
    fast = Compiled(policy.forward, counts, told.append)
    with pytest.raises(RuntimeError):
        fast(np.zeros((2, 5), np.float32), {})
    assert (fast.fault, counts.rows, told) == ("", [], [])


def test_the_network_inside_a_policy_is_compiled() -> None:
    inner = pictures()
    assert isinstance(inner.forward, Forward)
    compiled(Framed(inner, 2, cast(Any, PICTURES.observation)))
    assert isinstance(inner.forward, Compiled)


def own(spaces: Spaces) -> nn.Module:
    return ActorCritic(spaces, (16, 16))


NEEDS = pytest.mark.skipif(shutil.which(compiler()) is None, reason="torch.compile needs a C++ compiler")


@pytest.mark.parametrize("backend", ["eager", pytest.param("inductor", marks=[pytest.mark.slow, NEEDS])])
def test_a_compiled_rollout_has_the_trajectory_of_the_module(
    backend: str, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    if backend == "eager":  # torch traces the policy, and calls no C++ compiler, of which there need be none
        monkeypatch.setattr(compiling, "by_torch", lambda run: torch.compile(run, dynamic=False, backend="eager"))
        monkeypatch.setattr(compiling, "compiler", lambda: sys.executable)
    sizes = {"method": "ppo", "num_envs": 4, "rollout_length": 8}
    plain = cast(Any, Reinforcement("CartPole-v1", policy=own, **sizes).worker())
    job = Reinforcement("CartPole-v1", policy=own, compile_policy=True, **sizes)
    fast, weights = cast(Any, job.worker()), cast(Any, job.problem).first(0)[0]
    assert isinstance(fast.policy.forward, Compiled)
    one, other = (worker.run(weights, 0, Task(0, 0, (0,))).bundle for worker in (plain, fast))
    assert (fast.policy.forward.fault, fast.policy.forward.sizes) == ("", {4})
    np.testing.assert_array_equal(one["action"], other["action"])
    np.testing.assert_allclose(one["log_prob"], other["log_prob"], rtol=1e-5, atol=1e-6)
    weights.vector()[:] *= 2  # of the next version: no weight is a part of the compiled code
    one, other = (worker.run(weights, 0, Task(1, 0, (0,))).bundle for worker in (plain, fast))
    np.testing.assert_allclose(one["log_prob"], other["log_prob"], rtol=1e-5, atol=1e-6)
    for worker in (plain, fast):
        worker.close()
    assert capfd.readouterr().err == ""


@pytest.mark.parametrize(
    ("settings", "line"),
    [
        ({"inference": "central"}, "compile_policy=true: with inference=central the inference process computes the network"),
        ({"method": "es"}, "compile_policy=true: the policies of method=es have weights of their own"),
    ],
)
def test_a_compiled_policy_is_refused_where_no_actor_computes_one(settings: dict[str, Any], line: str) -> None:
    with pytest.raises(UserError) as refused:
        Reinforcement("CartPole-v1", compile_policy=True, **settings)
    assert str(refused.value).startswith(line)


def test_a_perceptron_that_numpy_computes_is_not_compiled() -> None:
    with pytest.raises(UserError, match="compile_policy=true: actors compute the built-in perceptron by numpy; leave it out"):
        Reinforcement("CartPole-v1", compile_policy=True).prepare()
