"""APPO's update against IMPACT's loss written out, its target network, and weights by lag."""

from __future__ import annotations

import copy
from dataclasses import replace

import numpy as np
import pytest
import torch
from random_trajectories import BOX_SPACES, GAMMA, SPACES, contribution
from torch import nn

from shoal.aggregators.appo import APPOLearner
from shoal.aggregators.impala import IMPALALearner
from shoal.aggregators.ratios import effective
from shoal.aggregators.vtrace import vtrace
from shoal.envs.spaces import Spaces
from shoal.nets.policies import ActorCritic, entropy, log_prob
from shoal.protocol.layout import Bundle
from shoal.protocol.work import Contribution


def policy(spaces: Spaces = SPACES, seed: int = 3) -> ActorCritic:
    return ActorCritic(spaces, hidden=(8,), seed=seed)


def loss_by_rows(module: nn.Module, target: nn.Module, bundle: Bundle, clip: float, most: float, weight: float) -> torch.Tensor:
    """IMPACT's objective, row by row: R = pi / max(t, mu / most), -min(R A, clip(R) A), with V-trace from mu to t."""
    arrays = {name: torch.from_numpy(array) for name, array in bundle.items()}
    with torch.no_grad():
        _, value = module(arrays["observation"])
        slow = log_prob(target(arrays["observation"][:-1])[0], arrays["action"])
        discount = GAMMA * (1 - arrays["terminated"].float())
        rho = (slow - arrays["log_prob"]).exp()
        targets = vtrace(rho, arrays["reward"], discount, value[:-1], value[-1], arrays["mask"])
    rows = [(t, b) for t, b in np.ndindex(*bundle["mask"].shape) if bundle["mask"][t, b]]
    total, clipped = torch.zeros(()), 0
    for row in rows:
        parameters, value = module(arrays["observation"][row])
        centre = max(float(slow[row].exp()), float(arrays["log_prob"][row].exp()) / most)
        ratio = log_prob(parameters, arrays["action"][row]).exp() / centre
        clipped += abs(ratio.item() - 1) > clip
        gain = min(
            ratio * targets.advantage[row], ratio.clamp(1 - clip, 1 + clip) * targets.advantage[row], key=torch.Tensor.item
        )
        total = total + weight * (-gain + 0.4 * 0.5 * (targets.value[row] - value) ** 2 - 0.02 * entropy(parameters))
    assert 0 < clipped < len(rows)  # the clip takes part
    return total / len(rows)


@pytest.mark.parametrize("lag_weight", ["none", "sqrt", "inverse"])
@pytest.mark.parametrize("spaces", [SPACES, BOX_SPACES], ids=["discrete", "box"])
def test_one_pass_is_one_clipped_adam_step_down_impact_s_loss(spaces: Spaces, lag_weight: str) -> None:
    """The learner's weights differ from the target network's, which are those of its beginning."""
    mine, other = policy(spaces), policy(spaces, seed=4)
    with torch.no_grad():
        for parameter, moved in zip(mine.parameters(), other.parameters(), strict=True):
            parameter.add_(0.05 * moved + 0.05)
    slow = policy(spaces)
    folded, twin = replace(contribution(slow, seed=1, spaces=spaces, off_policy=0.5), lag=3), copy.deepcopy(mine)
    learner = APPOLearner(
        mine, gamma=GAMMA, lr=0.01, ent_coef=0.02, vf_coef=0.4, max_grad_norm=0.1, clip_coef=0.1, update_epochs=1,
        target_worker_clipping=1.5, lag_weight=lag_weight,
    )  # fmt: skip
    learner.target.module.load_state_dict(slow.state_dict())
    learner.fold(folded)
    metrics = learner.step().metrics
    assert folded.work.bundle is not None
    weight = {"none": 1.0, "sqrt": 0.5, "inverse": 0.25}[lag_weight]
    loss_by_rows(twin, slow, folded.work.bundle, clip=0.1, most=1.5, weight=weight).backward()
    norm = nn.utils.clip_grad_norm_(twin.parameters(), 0.1)
    torch.optim.Adam(twin.parameters(), lr=0.01, eps=1e-5).step()
    for name, parameter in twin.named_parameters():
        assert np.allclose(learner.weights()[name], parameter.detach().numpy(), rtol=0, atol=1e-5), name
    assert metrics["grad_norm"] == pytest.approx(float(norm), rel=1e-3)
    assert 0 < metrics["ess"] < 1


def test_the_first_pass_without_lag_is_impala_s_step() -> None:
    """The target network is the learner, so every ratio is 1, and the surrogate's gradient is the policy gradient."""
    a, b = policy(), policy()
    appo, impala = APPOLearner(a, update_epochs=1, lr=0.01), IMPALALearner(b, lr=0.01)
    for learner in (appo, impala):
        learner.fold(contribution(policy(), seed=5))
    told = appo.step().metrics
    impala.step()
    assert told["rho_mean"] == pytest.approx(1, abs=1e-5)
    assert told["ess"] == pytest.approx(1, abs=1e-5)
    assert told["clip_fraction"] == 0
    assert np.allclose(appo.weights().vector(), impala.weights().vector(), rtol=0, atol=1e-6)


def test_the_target_network_follows_every_so_many_versions() -> None:
    learner = APPOLearner(policy(), lr=0.01, target_update_interval=2)
    seen = []
    for version in range(4):
        learner.fold(contribution(policy(), seed=version))
        learner.step()
        seen.append(torch.equal(learner.target.raw, learner.flat.raw))
    assert seen == [False, True, False, True]


def test_a_learner_restored_from_its_state_goes_on_to_the_same_bits() -> None:
    def on(learner: APPOLearner, *seeds: int) -> APPOLearner:
        for seed in seeds:
            learner.fold(contribution(policy(), seed))
            learner.step()
        return learner

    def fresh() -> APPOLearner:
        return APPOLearner(policy(), lr=0.01, num_minibatches=3, target_update_interval=3, total_timesteps=4_000)

    first = on(fresh(), 0)
    weights, state = first.weights(), first.state()
    unbroken = on(first, 1, 2, 3)
    restored = fresh()
    restored.load(weights, state)
    assert on(restored, 1, 2, 3).weights().sha256() == unbroken.weights().sha256()
    assert all(np.array_equal(restored.state()[name], array) for name, array in unbroken.state().items())


def test_a_trajectory_with_lag_counts_less_in_impala_too() -> None:
    """Two trajectories: the loss is half of each, the second one's times its weight."""

    def moved(lag: int, lag_weight: str) -> Bundle:
        learner = IMPALALearner(policy(), lr=0.01, lag_weight=lag_weight)
        learner.fold(contribution(policy(), 1))
        learner.fold(replace(contribution(policy(), 2, client=1), lag=lag))
        learner.step()
        return learner.weights()

    def far(a: Bundle, b: Bundle) -> float:
        return float(np.abs(a.vector() - b.vector()).max())

    assert far(moved(8, "none"), moved(0, "none")) == 0
    assert far(moved(8, "sqrt"), moved(2, "inverse")) == 0  # both a third
    assert far(moved(0, "inverse"), moved(0, "none")) == 0
    assert far(moved(8, "inverse"), moved(0, "none")) > 0


def test_the_effective_sample_size_is_a_share_of_the_rows() -> None:
    ratio = torch.tensor([1.0, 1.0, 2.0, 5.0])
    assert float(effective(ratio)) == pytest.approx(81 / (4 * 31))
    assert float(effective(ratio, torch.tensor([True, True, True, False]))) == pytest.approx(16 / (3 * 6))
    assert float(effective(3 * torch.ones(7))) == pytest.approx(1)
    assert float(effective(torch.tensor([0.0, 0.0, 1.0, 0.0]))) == pytest.approx(1 / 4)


def test_the_order_of_arrival_changes_no_bit() -> None:
    def learned(*folded: Contribution) -> str:
        learner = APPOLearner(policy(), num_minibatches=2, lag_weight="sqrt")
        for one in folded:
            learner.fold(one)
        learner.step()
        return learner.weights().sha256()

    a, b = contribution(policy(), 1), replace(contribution(policy(), 2, client=1), lag=2)
    assert learned(a, b) == learned(b, a)
