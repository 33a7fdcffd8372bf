"""PPO's update against one written out, its ratios, and what must not change it."""

from __future__ import annotations

import copy
import math
import re
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
from random_trajectories import BOX_SPACES, GAMMA, SPACES, Constant, contribution, endless
from torch import Tensor, nn

from shoal import Reinforcement
from shoal.actors.workers.rollout import Rollout
from shoal.aggregators.gae import gae
from shoal.aggregators.impala import IMPALALearner
from shoal.aggregators.ppo import PPOLearner, squared_error
from shoal.envs.making import make_vector, spaces_in
from shoal.envs.spaces import Spaces
from shoal.nets.numpy_policy import NumpyPolicy
from shoal.nets.policies import ActorCritic, entropy, log_prob
from shoal.nets.recurrent import RecurrentActorCritic
from shoal.protocol.errors import UserError
from shoal.protocol.layout import Bundle
from shoal.protocol.work import Contribution, Metrics, Moved, Task


def policy(spaces: Spaces = SPACES) -> ActorCritic:
    return ActorCritic(spaces, hidden=(8,), seed=3)


def stepped(*folded: Contribution, seed: int = 0, **options: float) -> tuple[Bundle, Metrics]:
    learner = PPOLearner(policy(), gamma=GAMMA, seed=seed, **options)  # type: ignore[arg-type]
    for one in folded:
        learner.fold(one)
    metrics = learner.step().metrics
    return learner.weights(), metrics


def loss_by_rows(module: nn.Module, bundle: Bundle, clip: float, vf: float, ent: float) -> Tensor:
    arrays = {name: torch.from_numpy(array) for name, array in bundle.items()}
    with torch.no_grad():
        _, value = module(arrays["observation"])
        discount = GAMMA * (1 - arrays["terminated"].float())
        targets = gae(arrays["reward"], discount, value[:-1], value[-1], arrays["mask"], 0.9)
    rows = [(t, b) for t, b in np.ndindex(*bundle["mask"].shape) if bundle["mask"][t, b]]
    advantages = np.array([float(targets.advantage[row]) for row in rows])
    spread, centre, total, clipped = advantages.std(ddof=1), advantages.mean(), torch.zeros(()), 0
    for row, advantage in zip(rows, (advantages - centre) / spread, strict=True):
        parameters, value = module(arrays["observation"][row])
        ratio = (log_prob(parameters, arrays["action"][row]) - arrays["log_prob"][row]).exp()
        clipped += abs(ratio.item() - 1) > clip
        surrogate = min(ratio * advantage, ratio.clamp(1 - clip, 1 + clip) * advantage, key=Tensor.item)
        total = total - surrogate + vf * 0.5 * (targets.value[row] - value) ** 2 - ent * entropy(parameters)
    assert 0 < clipped < len(rows)  # the clip takes part
    return total / len(rows)


@pytest.mark.parametrize("spaces", [SPACES, BOX_SPACES], ids=["discrete", "box"])
def test_one_pass_in_one_part_is_one_clipped_adam_step_down_the_clipped_loss(spaces: Spaces) -> None:
    mine = policy(spaces)
    folded = contribution(mine, seed=1, spaces=spaces, off_policy=0.3)
    twin = copy.deepcopy(mine)
    learner = PPOLearner(
        mine, gamma=GAMMA, gae_lambda=0.9, lr=0.01, ent_coef=0.02, vf_coef=0.4, max_grad_norm=0.1,
        update_epochs=1, num_minibatches=1,
    )  # fmt: skip
    learner.fold(folded)
    metrics = learner.step().metrics

    assert folded.work.bundle is not None
    loss_by_rows(twin, folded.work.bundle, clip=0.2, vf=0.4, ent=0.02).backward()
    norm = nn.utils.clip_grad_norm_(twin.parameters(), 0.1)
    assert norm > 0.1
    torch.optim.Adam(twin.parameters(), lr=0.01, eps=1e-5).step()
    for name, parameter in twin.named_parameters():
        assert np.allclose(learner.weights()[name], parameter.detach().numpy(), rtol=0, atol=1e-6), name
    assert metrics["grad_norm"] == pytest.approx(float(norm), abs=1e-4)


@pytest.mark.parametrize("env", ["CartPole-v1", "Pendulum-v1"])
def test_every_ratio_is_1_on_the_first_minibatch_of_the_first_epoch(env: str) -> None:
    """With trajectories of a real worker, whose log_probs numpy made."""
    spaces = spaces_in(env)
    worker = Rollout(partial(make_vector, env), NumpyPolicy(spaces.action), rollout_length=40, num_envs=4, seed=1)
    learner = PPOLearner(ActorCritic(spaces, seed=1), lr=0.01, update_epochs=1, num_minibatches=1)
    for version in range(3):
        for client in range(2):
            task = Task(version, client, (client,))
            learner.fold(Contribution(task, version, 0, worker.run(learner.weights(), client, task)))
        metrics = learner.step().metrics
        assert metrics["first_ratio_error"] < 1e-5
        assert abs(metrics["approx_kl"]) < 1e-6
        assert metrics["clip_fraction"] == 0
    worker.close()


def test_stale_rows_and_later_passes_show_in_the_ratios() -> None:
    _, stale = stepped(contribution(policy(), 2, off_policy=0.3), update_epochs=1, num_minibatches=1)
    assert stale["first_ratio_error"] > 0.1
    _, later = stepped(contribution(policy(), 2), update_epochs=8, num_minibatches=1, lr=0.03)
    assert later["first_ratio_error"] < 1e-5
    assert later["approx_kl"] > 1e-3


def test_a_pass_takes_every_unmasked_row_once_and_each_pass_another_order() -> None:
    learner = PPOLearner(policy(), update_epochs=3, num_minibatches=4)
    rows = torch.tensor([1, 4, 5, 9, 12, 20, 21, 30, 31])
    parts = list(learner._parts(rows, torch.Generator().manual_seed(1)))
    passes = [torch.cat(parts[i : i + 4]).tolist() for i in (0, 4, 8)]
    assert [len(part) for part in parts[:4]] == [3, 2, 2, 2]
    assert all(sorted(one) == rows.tolist() for one in passes)
    assert passes[0] != passes[1] != passes[2]


def test_rows_outside_the_mask_do_not_matter_but_for_their_observation() -> None:
    plain, strange = contribution(policy(), seed=2), contribution(policy(), seed=2)
    assert strange.work.bundle is not None
    masked = ~strange.work.bundle["mask"]
    strange.work.bundle["reward"][masked] = 1e6
    strange.work.bundle["action"][masked] = 0
    strange.work.bundle["log_prob"][masked] = -1e6
    assert stepped(plain)[0].sha256() == stepped(strange)[0].sha256()
    strange.work.bundle["observation"][:-1][masked] += 1  # the truncated rows before it bootstrap from it
    assert stepped(plain)[0].sha256() != stepped(strange)[0].sha256()


def test_the_order_of_arrival_changes_no_bit_and_the_seed_does() -> None:
    a, b, c = (contribution(policy(), seed=s, client=s) for s in range(3))
    assert stepped(a, b, c)[0].sha256() == stepped(c, a, b)[0].sha256()
    assert stepped(a, b, c)[0].sha256() != stepped(a, b, c, seed=1)[0].sha256()


def test_a_learner_restored_from_its_state_goes_on_to_the_same_bits() -> None:
    def on(learner: PPOLearner, *seeds: int) -> PPOLearner:
        for seed in seeds:
            learner.fold(contribution(policy(), seed))
            learner.step()
        return learner

    first = on(PPOLearner(policy(), total_timesteps=2_000), 0, 1)
    weights, state = first.weights(), first.state()
    unbroken = on(first, 2, 3)
    restored = PPOLearner(policy(), total_timesteps=2_000)
    restored.load(weights, state)
    assert on(restored, 2, 3).weights().sha256() == unbroken.weights().sha256()


def test_the_value_of_an_endless_environment_cut_by_a_time_limit_is_its_endless_return() -> None:
    learner = PPOLearner(Constant(), gamma=GAMMA, lr=0.3, max_grad_norm=math.inf, num_minibatches=1, total_timesteps=20 * 100)
    for _ in range(100):
        learner.fold(endless(rows=24, limit=5))
        learner.step()
    assert learner.weights()["value"] == pytest.approx(1 / (1 - GAMMA), abs=0.01)


def test_a_round_without_a_row_to_learn_from_leaves_the_weights() -> None:
    empty = contribution(policy(), seed=0)
    assert empty.work.bundle is not None
    empty.work.bundle["mask"][...] = False
    learner = PPOLearner(policy())
    before = learner.weights().sha256()
    learner.fold(empty)
    assert learner.step() == Moved(weights=False)
    assert learner.weights().sha256() == before


@pytest.mark.parametrize("learner", [PPOLearner, IMPALALearner])
def test_a_policy_that_would_not_be_trained_is_refused(learner: type[PPOLearner | IMPALALearner]) -> None:
    with pytest.raises(UserError, match=r"parameter '.+' is torch.float64; only torch.float32 is trained"):
        learner(policy().double())
    with pytest.raises(UserError, match="no trainable parameter"):
        learner(policy().requires_grad_(False))


def test_the_order_of_arrival_of_one_clients_tasks_changes_no_bit() -> None:
    a, b = (replace(contribution(policy(), seed=s, client=4), task=Task(0, s, (4,))) for s in (6, 7))
    assert stepped(a, b)[0].sha256() == stepped(b, a)[0].sha256()


def test_a_value_that_moves_beyond_the_range_pays_nothing_and_a_wrong_move_is_taken_back() -> None:
    """CleanRL's clipped value loss (ppo.py, clip_vloss), rewritten in numpy, on values around the old one."""
    rng = np.random.default_rng(3)
    value, target, old = (torch.from_numpy(rng.normal(size=50)) for _ in range(3))
    clipped = old.numpy() + np.clip(value.numpy() - old.numpy(), -0.2, 0.2)
    expected = np.maximum((value.numpy() - target.numpy()) ** 2, (clipped - target.numpy()) ** 2)
    assert np.allclose(squared_error(value, target, old, 0.2).numpy(), expected, rtol=0, atol=1e-12)
    assert torch.equal(squared_error(value, target, old), (target - value) ** 2)
    right, wrong = torch.tensor([1.0, -1.0], requires_grad=True), torch.tensor([2.0, 2.0])
    squared_error(right, wrong, torch.zeros(2), 0.2).sum().backward()  # both beyond; the first on its way to the target
    assert right.grad is not None
    assert right.grad.tolist() == [0.0, -6.0]


def test_a_range_of_values_bounds_the_step_and_a_wide_one_changes_nothing() -> None:
    folded = contribution(policy(), 2)
    free, wide, near = (stepped(folded, lr=0.05, clip_range_vf=clip)[0] for clip in (0.0, 10.0, 0.01))
    assert np.allclose(wide.vector(), free.vector(), rtol=0, atol=1e-4)
    assert not np.allclose(near.vector(), free.vector(), rtol=0, atol=1e-2)


def test_a_step_ends_early_above_the_target_kl_and_says_after_how_many_gradient_steps() -> None:
    folded, many = contribution(policy(), 2), {"update_epochs": 8, "num_minibatches": 2, "lr": 0.03}
    whole, told = stepped(folded, **many)
    assert "gradient_steps" not in told
    loose, told = stepped(folded, target_kl=1e9, **many)
    assert (loose.sha256(), told["gradient_steps"]) == (whole.sha256(), 16)
    early, told = stepped(folded, target_kl=0.01, **many)
    assert 1 < told["gradient_steps"] < 16
    assert early.sha256() != whole.sha256()
    once, told = stepped(folded, target_kl=1e-9, **many)
    assert told["gradient_steps"] == 1
    assert once.sha256() != policy_bits()


@pytest.mark.parametrize(("method", "many"), [("ppo", "clients"), ("appo", "batch")])
def test_more_minibatches_than_the_rows_of_a_step_make_are_refused_before_a_run_begins(method: str, many: str) -> None:
    def job(parts: int, **settings: Any) -> None:
        small = {"num_envs": 3, "rollout_length": 5, many: 2, **settings}
        Reinforcement("CartPole-v1", method=method, num_minibatches=parts, **small).check_parts()

    job(15)
    line = "num_minibatches=16: a step learns from 2 x num_envs=3 x rollout_length=5 rows, and a minibatch has at least 2 rows"
    with pytest.raises(UserError, match=re.escape(f"{line}; num_minibatches=15 or less")):
        job(16)
    job(6, memory="gru")
    line = "a minibatch has whole environments, as the policy has memory; num_minibatches=6 or less"
    with pytest.raises(UserError, match=line):
        job(7, memory="gru")
    with pytest.raises(UserError, match="give a larger rollout_length"):
        job(1, **{"num_envs": 1, "rollout_length": 1, many: 1})


@pytest.mark.parametrize(("method", "many"), [("ppo", "clients"), ("appo", "batch")])
def test_a_step_of_one_row_is_refused_for_a_policy_with_memory_too(method: str, many: str) -> None:
    one = {"num_envs": 1, "rollout_length": 1, many: 1, "num_minibatches": 1, "memory": "gru"}
    with pytest.raises(UserError, match="whole environments, as the policy has memory and at least 2 rows; give a larger roll"):
        Reinforcement("CartPole-v1", method=method, **one).check_parts()
    Reinforcement("CartPole-v1", method=method, **{**one, "num_envs": 2}).check_parts()


def test_impala_has_no_more_minibatches_than_environments() -> None:
    Reinforcement("CartPole-v1", method="impala", num_envs=3, batch=2, num_minibatches=6).check_parts()
    with pytest.raises(UserError, match="and a minibatch has whole environments; num_minibatches=6 or less"):
        Reinforcement("CartPole-v1", method="impala", num_envs=3, batch=2, num_minibatches=7).check_parts()


def test_a_policy_of_one_s_own_with_memory_is_asked_how_many_minibatches_it_allows() -> None:
    def own(spaces: Spaces) -> nn.Module:
        return RecurrentActorCritic(spaces, (8,), "tanh", "gru", 4, 0)

    small = {"num_envs": 3, "rollout_length": 5, "clients": 2}
    Reinforcement("CartPole-v1", own, method="ppo", num_minibatches=6, **small).check_parts()
    with pytest.raises(UserError, match="num_minibatches=6 or less"):
        Reinforcement("CartPole-v1", own, method="ppo", num_minibatches=7, **small).check_parts()


def test_minibatches_that_nobody_asked_for_are_as_many_as_the_rows_make() -> None:
    job = Reinforcement("CartPole-v1", method="ppo", num_envs=3)
    assert job.plain()["num_minibatches"] == 8  # of the preset
    assert job.configured({"memory": "gru"}).plain()["num_minibatches"] == 3
    assert job.configured({"memory": "gru"}).configured({"num_envs": 9}).plain()["num_minibatches"] == 8
    assert Reinforcement("CartPole-v1", method="appo", num_envs=1, rollout_length=1).plain()["num_minibatches"] == 1


def policy_bits() -> str:
    return PPOLearner(policy()).weights().sha256()
