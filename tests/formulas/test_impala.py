"""IMPALA's gradient step against one written out, and what must not change it."""

from __future__ import annotations

import copy
import itertools
import math

import numpy as np
import pytest
import torch
from random_trajectories import BOX_SPACES, GAMMA, SPACES, Constant, contribution, endless
from torch import Tensor, nn

from shoal.aggregators.gae import Targets
from shoal.aggregators.impala import IMPALALearner
from shoal.aggregators.vtrace import vtrace
from shoal.envs.spaces import Spaces
from shoal.nets.policies import ActorCritic, entropy, log_prob
from shoal.protocol.errors import ProtocolError
from shoal.protocol.layout import Bundle
from shoal.protocol.work import Contribution, Task, Work


def policy(spaces: Spaces = SPACES) -> ActorCritic:
    return ActorCritic(spaces, hidden=(8,), seed=3)


def learned(*folded: Contribution, **options: float) -> Bundle:
    learner = IMPALALearner(policy(), gamma=GAMMA, **options)
    for one in folded:
        learner.fold(one)
    learner.step()
    return learner.weights()


def losses(module: nn.Module, bundle: Bundle) -> tuple[Tensor, Tensor, Tensor]:
    """Policy loss, half squared value error and entropy: row by row, their means over the rows of the mask."""
    arrays = {name: torch.from_numpy(array) for name, array in bundle.items()}
    targets = _targets(module, arrays)
    rows = [(t, b) for t, b in np.ndindex(*bundle["mask"].shape) if bundle["mask"][t, b]]
    policy_loss, value_loss, undecided = torch.zeros(()), torch.zeros(()), torch.zeros(())
    for t, b in rows:
        parameters, value = module(arrays["observation"][t, b])
        policy_loss = policy_loss - log_prob(parameters, arrays["action"][t, b]) * targets.advantage[t, b]
        value_loss = value_loss + 0.5 * (targets.value[t, b] - value) ** 2
        undecided = undecided + entropy(parameters)
    return policy_loss / len(rows), value_loss / len(rows), undecided / len(rows)


@torch.no_grad()
def _targets(module: nn.Module, arrays: dict[str, Tensor]) -> Targets:
    _, value = module(arrays["observation"])
    rho = (log_prob(module(arrays["observation"][:-1])[0], arrays["action"]) - arrays["log_prob"]).exp()
    discount = GAMMA * (1 - arrays["terminated"].float())
    return vtrace(rho, arrays["reward"], discount, value[:-1], value[-1], arrays["mask"])


@pytest.mark.parametrize("spaces", [SPACES, BOX_SPACES], ids=["discrete", "box"])
def test_a_step_is_one_clipped_adam_step_down_the_mean_losses(spaces: Spaces) -> None:
    mine = policy(spaces)
    folded = contribution(mine, seed=1, spaces=spaces, off_policy=0.3)
    twin = copy.deepcopy(mine)
    learner = IMPALALearner(mine, gamma=GAMMA, lr=0.01, ent_coef=0.02, vf_coef=0.4, max_grad_norm=0.1)
    learner.fold(folded)
    metrics = learner.step().metrics

    assert folded.work.bundle is not None
    policy_loss, value_loss, undecided = losses(twin, folded.work.bundle)
    (policy_loss + 0.4 * value_loss - 0.02 * undecided).backward()
    norm = nn.utils.clip_grad_norm_(twin.parameters(), 0.1)
    assert norm > 0.1
    torch.optim.Adam(twin.parameters(), lr=0.01, eps=1e-5).step()

    for name, parameter in twin.named_parameters():
        assert np.allclose(learner.weights()[name], parameter.detach().numpy(), rtol=0, atol=1e-6), name
    told = {"policy_loss": policy_loss, "value_loss": value_loss, "entropy": undecided, "grad_norm": norm}
    assert all(metrics[name] == pytest.approx(x.item(), abs=1e-4) for name, x in told.items())


def test_a_larger_reward_counts_as_max_reward() -> None:
    plain, cut = contribution(policy(), seed=2), contribution(policy(), seed=2)
    assert cut.work.bundle is not None
    assert (np.abs(cut.work.bundle["reward"]) > 0.5).any()
    cut.work.bundle["reward"][...] = cut.work.bundle["reward"].clip(-0.5, 0.5)
    assert learned(plain, max_reward=0.5).sha256() == learned(cut).sha256() != learned(plain).sha256()
    assert learned(plain, max_reward=1e6).sha256() == learned(plain).sha256()


def test_rows_outside_the_mask_do_not_matter_but_for_their_observation() -> None:
    plain, strange = contribution(policy(), seed=2), contribution(policy(), seed=2)
    assert strange.work.bundle is not None
    masked = ~strange.work.bundle["mask"]
    strange.work.bundle["reward"][masked] = 1e6
    strange.work.bundle["action"][masked] = 0
    strange.work.bundle["log_prob"][masked] = -1e6
    assert learned(plain).sha256() == learned(strange).sha256()
    strange.work.bundle["observation"][:-1][masked] += 1  # the truncated rows before it bootstrap from it
    assert learned(plain).sha256() != learned(strange).sha256()


def test_the_order_of_arrival_changes_no_bit() -> None:
    a, b, c = (contribution(policy(), seed=s, client=s, off_policy=0.1) for s in range(3))
    assert learned(a, b, c).sha256() == learned(c, a, b).sha256()
    assert learned(a, b, c).sha256() != learned(a, b).sha256()


def test_a_bundle_may_be_reused_once_fold_returns() -> None:
    expected = learned(contribution(policy(), seed=4))
    folded = contribution(policy(), seed=4)
    learner = IMPALALearner(policy(), gamma=GAMMA)
    learner.fold(folded)
    assert folded.work.bundle is not None
    folded.work.bundle.data[:] = 0
    learner.step()
    assert learner.weights().sha256() == expected.sha256()


def test_what_was_made_by_the_same_weights_has_ratios_of_1() -> None:
    learner = IMPALALearner(policy())
    learner.fold(contribution(policy(), seed=5))
    assert learner.step().metrics["rho_mean"] == pytest.approx(1, abs=1e-5)


def test_reward_scale_multiplies_rewards() -> None:
    plain, scaled = contribution(policy(), seed=6), contribution(policy(), seed=6)
    assert scaled.work.bundle is not None
    scaled.work.bundle["reward"][...] *= 4
    assert learned(plain, reward_scale=4.0).sha256() == learned(scaled).sha256()


@pytest.mark.parametrize("optimizer", ["adam", "rmsprop"])
def test_a_learner_restored_from_its_state_goes_on_to_the_same_bits(optimizer: str) -> None:
    def fresh() -> IMPALALearner:
        return IMPALALearner(policy(), lr=0.01, optimizer=optimizer, total_timesteps=2_000)

    def on(learner: IMPALALearner, *seeds: int) -> IMPALALearner:
        for seed in seeds:
            learner.fold(contribution(policy(), seed))
            learner.step()
        return learner

    first = on(fresh(), 0, 1)
    weights, state = first.weights(), first.state()
    unbroken = on(first, 2, 3)
    restored = fresh()
    restored.fold(contribution(policy(), 9))  # was never stepped: forgotten
    restored.load(weights, state)
    assert on(restored, 2, 3).weights().sha256() == unbroken.weights().sha256()
    assert all(np.array_equal(restored.state()[name], array) for name, array in unbroken.state().items())


def test_the_rate_falls_to_0_at_the_last_timestep() -> None:
    folded = contribution(policy(), seed=7)
    assert folded.work.bundle is not None
    rows = int(folded.work.bundle["mask"].sum())
    learner = IMPALALearner(policy(), total_timesteps=2 * rows)
    seen = [learner.weights()]
    for _ in range(3):
        learner.fold(folded)
        learner.step()
        seen.append(learner.weights())
    first, second, third = (np.abs(b.vector() - a.vector()).max() for a, b in itertools.pairwise(seen))
    assert first > second > 0
    assert third == 0


def test_the_value_of_an_endless_environment_cut_by_a_time_limit_is_its_endless_return() -> None:
    learner = IMPALALearner(Constant(), gamma=GAMMA, lr=0.3, max_grad_norm=math.inf, total_timesteps=20 * 300)
    for _ in range(300):
        learner.fold(endless(rows=24, limit=5))
        learner.step()
    assert learner.weights()["value"] == pytest.approx(1 / (1 - GAMMA), abs=0.01)


def test_what_is_no_trajectory_of_this_run_is_refused() -> None:
    learner = IMPALALearner(policy())
    learner.fold(contribution(policy(), seed=0))
    with pytest.raises(ProtocolError, match="the layout of the run's first one: layout"):
        learner.fold(contribution(policy(BOX_SPACES), seed=0, spaces=BOX_SPACES))
    with pytest.raises(ProtocolError, match="holds no arrays"):
        learner.fold(Contribution(Task(0, 0, (0,)), 0, 0, Work(None)))
    learner.step()
    with pytest.raises(ValueError, match="fold one in first"):
        learner.step()
