"""A2C's gradient step against one written out, and Mnih et al.'s optimizer."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from random_trajectories import BOX_SPACES, GAMMA, SPACES, contribution
from torch import nn

from shoal.aggregators.a2c import A2CLearner
from shoal.aggregators.gae import gae
from shoal.envs.spaces import Spaces
from shoal.jobs.methods.a2c import A2C
from shoal.jobs.reinforcement import Reinforcement
from shoal.nets.policies import ActorCritic, entropy, log_prob
from shoal.protocol.errors import UserError
from shoal.protocol.layout import Bundle
from shoal.protocol.work import Moved


def policy(spaces: Spaces = SPACES) -> ActorCritic:
    return ActorCritic(spaces, hidden=(8,), seed=3)


def loss_by_rows(module: nn.Module, bundle: Bundle, lam: float, vf: float, ent: float, scaled: bool) -> torch.Tensor:
    """-log pi(a) A + vf (R - V)**2 / 2 - ent H, the mean over the rows."""
    arrays = {name: torch.from_numpy(array) for name, array in bundle.items()}
    with torch.no_grad():
        _, value = module(arrays["observation"])
        discount = GAMMA * (1 - arrays["terminated"].float())
        targets = gae(arrays["reward"], discount, value[:-1], value[-1], arrays["mask"], lam)
    rows = [(t, b) for t, b in np.ndindex(*bundle["mask"].shape) if bundle["mask"][t, b]]
    advantages = np.array([float(targets.advantage[row]) for row in rows])
    if scaled:
        advantages = (advantages - advantages.mean()) / advantages.std(ddof=1)
    total = torch.zeros(())
    for row, advantage in zip(rows, advantages, strict=True):
        parameters, value = module(arrays["observation"][row])
        likely = log_prob(parameters, arrays["action"][row])
        total = total - likely * advantage + vf * 0.5 * (targets.value[row] - value) ** 2 - ent * entropy(parameters)
    return total / len(rows)


@pytest.mark.parametrize("scaled", [False, True])
@pytest.mark.parametrize("spaces", [SPACES, BOX_SPACES], ids=["discrete", "box"])
def test_a_step_is_one_clipped_rmsprop_step_down_the_policy_gradient(spaces: Spaces, scaled: bool) -> None:
    mine = policy(spaces)
    folded, twin = contribution(mine, seed=1, spaces=spaces), copy.deepcopy(mine)
    learner = A2CLearner(
        mine, gamma=GAMMA, gae_lambda=0.9, lr=0.01, ent_coef=0.02, vf_coef=0.4, max_grad_norm=0.1, optimizer="rmsprop",
        rms_prop_eps=1e-5, norm_adv=scaled,
    )  # fmt: skip
    learner.fold(folded)
    metrics = learner.step().metrics
    assert folded.work.bundle is not None
    loss_by_rows(twin, folded.work.bundle, 0.9, 0.4, 0.02, scaled).backward()
    norm = float(nn.utils.clip_grad_norm_(twin.parameters(), 0.1))
    assert norm > 0.1
    for name, parameter in twin.named_parameters():
        assert parameter.grad is not None
        square = 0.01 * parameter.grad**2  # alpha = 0.99, from 0
        moved = parameter.detach() - 0.01 * parameter.grad / (square.sqrt() + 1e-5)
        assert np.allclose(learner.weights()[name], moved.numpy(), rtol=0, atol=2e-4), name
    assert metrics["grad_norm"] == pytest.approx(norm, abs=1e-4)


def test_the_settings_are_those_of_the_paper_and_of_stable_baselines3() -> None:
    """16 environments of 5 steps (Mnih et al. 2016); lr, RMSprop's decay and eps, and no scaled advantages (SB3's A2C)."""
    settings = A2C()
    assert settings.clients * settings.num_envs == 16
    assert (settings.rollout_length, settings.gae_lambda, settings.gamma) == (5, 1.0, 0.99)
    assert (settings.lr, settings.optimizer, settings.rms_prop_eps, settings.max_grad_norm) == (7e-4, "rmsprop", 1e-5, 0.5)
    learner = A2CLearner(policy(), **settings.arguments(A2CLearner))
    assert {name: learner.descent.defaults[name] for name in ("lr", "alpha", "eps")} == {"lr": 7e-4, "alpha": 0.99, "eps": 1e-5}
    assert settings.vf_coef * 0.5 == 0.5  # SB3's vf_coef is the factor of the whole squared error


def test_a_learner_restored_from_its_state_goes_on_to_the_same_bits() -> None:
    def on(learner: A2CLearner, *seeds: int) -> A2CLearner:
        for seed in seeds:
            learner.fold(contribution(policy(), seed))
            learner.step()
        return learner

    first = on(A2CLearner(policy(), optimizer="rmsprop", total_timesteps=2_000), 0, 1)
    weights, state = first.weights(), first.state()
    unbroken = on(first, 2, 3)
    restored = A2CLearner(policy(), optimizer="rmsprop", total_timesteps=2_000)
    restored.load(weights, state)
    assert on(restored, 2, 3).weights().sha256() == unbroken.weights().sha256()


def test_a_round_without_a_row_to_learn_from_leaves_the_weights() -> None:
    empty = contribution(policy(), seed=0)
    assert empty.work.bundle is not None
    empty.work.bundle["mask"][...] = False
    learner = A2CLearner(policy())
    before = learner.weights().sha256()
    learner.fold(empty)
    assert learner.step() == Moved(weights=False)
    assert learner.weights().sha256() == before


def test_a_step_of_one_row_is_learned_from_unless_advantages_are_scaled() -> None:
    only = contribution(policy(), seed=0)
    assert only.work.bundle is not None
    only.work.bundle["mask"][...] = False
    only.work.bundle["mask"][1, 2] = True
    learner, scaling = A2CLearner(policy()), A2CLearner(policy(), norm_adv=True)
    for each in (learner, scaling):
        each.fold(only)
    before = learner.weights().sha256()
    assert all(np.isfinite(list(learner.step().metrics.values())))
    assert learner.weights().sha256() != before
    assert scaling.step() == Moved(weights=False)
    with pytest.raises(UserError, match=r"^norm_adv=true: a step learns from 1 row, .*; norm_adv=false$"):
        Reinforcement("CartPole-v1", method="a2c", clients=1, num_envs=1, rollout_length=1, norm_adv=True)
