"""The built-in actor-critic's passes by hand: outputs and gradients are autograd's, and nothing else is taken for it."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from shoal.envs.spaces import Box, Discrete, Observations, Spaces
from shoal.nets import passes
from shoal.nets.flat import FlatModule
from shoal.nets.passes import BLOCK, Passes, judge_of
from shoal.nets.policies import ActorCritic, entropy, judged, likelihood, log_prob

VECTOR, PICTURE = Observations((5,)), Observations((2, 3), "u1")
ACTIONS = [Discrete(4), Box((3,), (-1.0,) * 3, (1.0,) * 3)]


def made(seen: Observations, action: Any, hidden: Any = (8, 6), activation: str = "tanh", shared: bool = False) -> ActorCritic:
    module = ActorCritic(Spaces(seen, action), hidden, activation, shared)
    generator = torch.Generator().manual_seed(7)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(0.3 * torch.randn(parameter.shape, generator=generator))
    return module


def observed(of: Observations, rows: int) -> Tensor:
    generator = torch.Generator().manual_seed(3)
    if of.dtype == "u1":
        return torch.randint(0, 256, (rows, *of.shape), dtype=torch.uint8, generator=generator)
    return torch.randn((rows, *of.shape), generator=generator)


def drawn(action: Any, rows: int) -> Tensor:
    generator = torch.Generator().manual_seed(4)
    if isinstance(action, Discrete):
        return torch.randint(0, action.n, (rows,), generator=generator)
    return torch.randn((rows, action.size), generator=generator)


def loss(judge: Any, seen: Tensor, action: Tensor) -> Tensor:
    """Any loss in which each output of each row has a weight of its own."""
    parameters, value = judged(judge, seen)
    weights = torch.linspace(-1, 1, len(seen))
    return (weights * (log_prob(parameters, action) + 0.3 * entropy(parameters)) + (value - weights) ** 2).mean()


@pytest.mark.parametrize("hidden", [(), (8,), (8, 6, 4)])
@pytest.mark.parametrize("activation", ["tanh", "relu"])
@pytest.mark.parametrize("shared", [True, False])
@pytest.mark.parametrize("seen", [VECTOR, PICTURE])
@pytest.mark.parametrize("action", ACTIONS)
def test_outputs_and_gradients_are_autograds(
    hidden: Any, activation: str, shared: bool, seen: Observations, action: Any
) -> None:
    module = made(seen, action, hidden, activation, shared)
    twin, flat = copy.deepcopy(module), FlatModule(module)
    judge = judge_of(flat)
    assert isinstance(judge, Passes)
    for rows in (7, 11, 3):  # memory of the passes before is reused, and is too small once
        acted = drawn(action, rows)
        ours = loss(judge, observed(seen, rows), acted)
        theirs = loss(twin, observed(seen, rows), acted)
        flat.grad.zero_()
        twin.zero_grad()
        ours.backward()
        theirs.backward()
        assert judge.alike
        assert torch.allclose(ours, theirs, rtol=1e-5, atol=1e-6)
        for (name, mine), other in zip(flat.module.named_parameters(), twin.parameters(), strict=True):
            assert mine.grad is not None
            assert other.grad is not None
            assert torch.allclose(mine.grad, other.grad, rtol=1e-4, atol=1e-6), name


def test_rows_beyond_a_block_are_learned_from_too() -> None:
    module = made(VECTOR, ACTIONS[0])
    twin, flat, rows = copy.deepcopy(module), FlatModule(module), 2 * BLOCK + 5
    loss(judge_of(flat), observed(VECTOR, rows), drawn(ACTIONS[0], rows)).backward()
    loss(twin, observed(VECTOR, rows), drawn(ACTIONS[0], rows)).backward()
    gradient = torch.cat([parameter.grad.flatten() for parameter in twin.parameters() if parameter.grad is not None])
    assert torch.allclose(flat.grad, gradient, rtol=1e-4, atol=1e-6)


def test_gradients_add_up_and_passes_under_way_keep_their_memory() -> None:
    module = made(VECTOR, ACTIONS[0])
    twin, flat = copy.deepcopy(module), FlatModule(module)
    judge = judge_of(flat)
    for each in (judge, twin):
        first = loss(each, observed(VECTOR, 9), drawn(ACTIONS[0], 9))
        with torch.no_grad():
            judged(each, observed(VECTOR, 6))
        second = loss(each, 2 * observed(VECTOR, 5), drawn(ACTIONS[0], 5))
        (first + 0.5 * second).backward()
    gradient = torch.cat([parameter.grad.flatten() for parameter in twin.parameters() if parameter.grad is not None])
    assert torch.allclose(flat.grad, gradient, rtol=1e-4, atol=1e-6)


def test_weights_that_were_read_in_are_judged_by() -> None:
    flat, other = FlatModule(made(VECTOR, ACTIONS[0])), FlatModule(ActorCritic(Spaces(VECTOR, ACTIONS[0]), (8, 6), seed=5))
    judge = judge_of(flat)
    judged(judge, observed(VECTOR, 4))
    flat.read(other.bundle())
    with torch.no_grad():
        for ours, theirs in zip(judged(judge, observed(VECTOR, 4)), judged(other.module, observed(VECTOR, 4)), strict=True):
            assert isinstance(ours, Tensor)
            assert isinstance(theirs, Tensor)
            assert torch.allclose(ours, theirs, rtol=1e-5, atol=1e-6)


class Doubled(ActorCritic):
    def forward(self, observation: Tensor) -> Any:
        out, value = super().forward(observation)
        return 2 * out, value


def test_a_class_of_the_users_own_a_frozen_layer_and_a_hook_are_never_passed_over() -> None:
    spaces = Spaces(VECTOR, ACTIONS[0])
    own, frozen, hooked = Doubled(spaces), ActorCritic(spaces), ActorCritic(spaces)
    frozen.actor[0].weight.requires_grad_(False)
    assert isinstance(hooked.critic[0], nn.Linear)
    hooked.critic[0].register_forward_hook(lambda module, inputs, output: output + 1)
    for module in (own, frozen, hooked):
        flat = FlatModule(module)
        assert judge_of(flat) is flat.module


def test_a_module_that_computes_something_else_is_called_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(passes, "ActorCritic", Doubled)
    flat = FlatModule(Doubled(Spaces(VECTOR, ACTIONS[0])))
    judge = judge_of(flat)
    assert isinstance(judge, Passes)
    out, _ = judge(observed(VECTOR, 4))
    assert judge.alike is False
    assert torch.equal(out, flat.module(observed(VECTOR, 4))[0])  # type: ignore[arg-type]


@pytest.mark.parametrize("masked", [False, True])
def test_a_likelihood_is_log_prob_and_entropy_with_their_gradients(masked: bool) -> None:
    generator = torch.Generator().manual_seed(1)
    logits = torch.randn((9, 5), generator=generator, dtype=torch.float64)
    if masked:
        logits[:, 3] = -torch.inf
    action = torch.randint(0, 3, (9,), generator=generator)
    one, two = logits.clone().requires_grad_(), logits.clone().requires_grad_()
    weights = torch.linspace(-2, 3, 9, dtype=torch.float64)
    chosen, undecided = likelihood(one, action)
    (weights * chosen + 7 * weights**2 * undecided).sum().backward()
    # by hand: entropy() of a masked action has no gradient that is a number
    p = torch.softmax(two.detach(), dim=1)
    free = p > 0
    log_p = torch.where(free, torch.log(p.clamp(min=1e-300)), 0.0)
    assert torch.allclose(chosen, log_prob(two, action))
    assert torch.allclose(undecided, entropy(two))
    hot = nn.functional.one_hot(action, 5)
    expected = weights[:, None] * (hot - p) - 7 * (weights**2)[:, None] * p * (log_p + undecided.detach()[:, None])
    assert one.grad is not None
    assert torch.allclose(one.grad, expected)


def test_a_likelihood_of_box_actions_is_log_prob_and_entropy() -> None:
    mean, log_std, action = torch.randn(4, 3), torch.randn(3), torch.randn(4, 3)
    chosen, undecided = likelihood((mean, log_std), action)
    assert torch.equal(chosen, log_prob((mean, log_std), action))
    assert torch.equal(undecided, entropy((mean, log_std)))
