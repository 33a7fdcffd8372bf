"""Normalisation of observations and rewards by running statistics: moments, the module, the actor, the learner."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial, reduce
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import pytest
import torch

import shoal
from shoal.actors.workers.rollout import Rollout
from shoal.aggregators.impala import IMPALALearner
from shoal.aggregators.ppo import PPOLearner
from shoal.envs.making import make_vector, spaces_in
from shoal.jobs.problems import Environment
from shoal.nets.acting import Form
from shoal.nets.flat import FlatModule
from shoal.nets.moments import Moments
from shoal.nets.networks import ACTOR_CRITIC, REMEMBERING
from shoal.nets.normal import EPSILON, PAID, PART, SEEN, Normalised
from shoal.protocol.errors import UserError
from shoal.protocol.layout import Bundle
from shoal.protocol.work import Contribution, Task, Work

ENV = "Pendulum-v1"
GAMMA = 0.9
T, B = 24, 3


def test_the_moments_of_eight_actors_merged_are_those_of_one_pass() -> None:
    rng = np.random.default_rng(0)
    parts = [rng.normal(1e3, [1e-2, 1, 50], (n, 3)) for n in (1, 2, 700, 3, 5, 40, 999, 8)]
    whole = Moments.of(np.concatenate(parts), (3,))
    together = reduce(Moments.merged, (Moments.of(part, (3,)) for part in parts))
    for name in ("count", "mean", "m2"):
        np.testing.assert_allclose(getattr(together, name), getattr(whole, name), rtol=1e-10)
    np.testing.assert_allclose(together.variance, np.concatenate(parts).var(axis=0), rtol=1e-9)


def test_nothing_merged_with_something_is_something() -> None:
    some = Moments.of(np.array([[1.0], [4.0]]), (1,))
    for both in (Moments.none((1,)).merged(some), some.merged(Moments.none((1,)))):
        assert (both.count, both.mean[0], both.m2[0]) == (2, 2.5, 4.5)
    assert (Moments.none((2,)).variance == 1).all()


class VecNormalize:
    """The arithmetic of Stable-Baselines3's VecNormalize (RunningMeanStd by Chan et al.), rewritten. There the first count is
    1e-4, and here 0."""

    def __init__(self, shape: tuple[int, ...]) -> None:
        self.mean, self.var, self.count = np.zeros(shape), np.ones(shape), 0.0

    def update(self, batch: Any) -> None:
        mean, var, n = np.mean(batch, axis=0), np.var(batch, axis=0), len(batch)
        delta, total = mean - self.mean, self.count + n
        m2 = self.var * self.count + var * n + delta**2 * self.count * n / total
        self.mean, self.var, self.count = self.mean + delta * n / total, m2 / total, total


def network(observation: bool = True, reward: bool = True, clip: float = 10.0, inner: Any = ACTOR_CRITIC) -> Normalised:
    return Normalised(inner, observation, reward, clip)


def rollout(env: Any = ENV, moments: Sequence[str] = (SEEN, PAID), clip: float = 10.0, form: Form | None = None) -> Rollout:
    its = network(SEEN in moments, PAID in moments, clip, REMEMBERING if form else ACTOR_CRITIC)
    policy = its.policy(spaces_in(env), form or Form((16,)), None)
    return Rollout(partial(make_vector, env), policy, T, B, 0, moments=tuple(moments), gamma=GAMMA)


def module(env: Any = ENV, seed: int = 0, clip: float = 10.0) -> Any:
    return network(clip=clip).build(spaces_in(env), Form((16,)), seed)


def contribution(work: Work, client: int = 0, index: int = 0) -> Contribution:
    return Contribution(Task(0, index, (client,)), 0, 0, work)


def works(worker: Rollout, weights: Bundle, many: int, clients: int = 1) -> list[tuple[int, Work]]:
    return [(c, worker.run(weights, c, Task(0, 0, (c,)))) for _ in range(many) for c in range(clients)]


def test_a_trajectory_brings_what_vec_normalize_would_have_seen() -> None:
    worker, weights = rollout(), FlatModule(module()).bundle()
    seen, paid, owed = VecNormalize((3,)), VecNormalize(()), np.zeros(B)
    got_seen, got_paid = Moments.none((3,)), Moments.none(())
    for _, work in works(worker, weights, 20):
        bundle = work.bundle
        assert bundle is not None
        got_seen = got_seen.merged(Moments.read(bundle, f"moments/{SEEN}"))
        got_paid = got_paid.merged(Moments.read(bundle, f"moments/{PAID}"))
        lived = bundle["mask"]  # of Pendulum, a row is masked if it only resets
        for t in range(T):
            seen.update(bundle["observation"][t][lived[t]].astype(float))
            owed = owed * GAMMA + bundle["reward"][t]
            paid.update(owed[lived[t]])
            owed = np.where(bundle["terminated"][t] | bundle["truncated"][t], 0.0, owed)
    assert got_seen.count == seen.count > 1000
    np.testing.assert_allclose(got_seen.mean, seen.mean, rtol=1e-9)
    np.testing.assert_allclose(got_seen.variance, seen.var, rtol=1e-9)
    np.testing.assert_allclose([got_paid.mean, got_paid.variance], [paid.mean, paid.var], rtol=1e-5)  # rewards are float32


@pytest.mark.parametrize("clip", [10.0, 0.5])
def test_actor_and_module_scale_alike(clip: float) -> None:
    made = module(clip=clip)
    made.normal.take(SEEN, [Moments.of(np.random.default_rng(1).normal([3, -1, 0.2], [0.1, 5, 1], (50, 3)), (3,))])
    worker = rollout(clip=clip)
    bundle = worker.run(FlatModule(made).bundle(), 0, Task(0, 0, (0,))).bundle
    assert bundle is not None
    seen = torch.from_numpy(bundle["observation"][:-1])
    with torch.no_grad():
        (mean, log_std), _ = made(seen)
        from shoal.nets.policies import log_prob

        told = log_prob((mean, log_std), torch.from_numpy(bundle["action"]))
    torch.testing.assert_close(told, torch.from_numpy(bundle["log_prob"]), rtol=1e-5, atol=1e-5)
    scaled = made.normal(seen)
    assert scaled.abs().max() <= clip
    mean, deviation = made.normal.observation_mean.float(), torch.sqrt(made.normal.observation_m2 / 50 + EPSILON).float()
    unclipped = (seen - mean) / deviation
    torch.testing.assert_close(scaled, unclipped.clamp(-clip, clip), rtol=1e-5, atol=1e-5)


def test_at_first_nothing_is_scaled() -> None:
    made, plain = module(), ACTOR_CRITIC.build(spaces_in(ENV), Form((16,)), 0)
    seen = torch.randn(5, 3)
    assert torch.equal(made(seen)[1], plain(seen)[1])
    assert torch.equal(made.normal.reward(seen, 10.0), seen)


@pytest.mark.parametrize("form", [None, Form((16,), memory="lstm", memory_size=8)])
@pytest.mark.parametrize("learner", [PPOLearner, IMPALALearner])
def test_the_ratio_is_one_at_no_lag_and_statistics_are_merged_after_that(learner: Any, form: Form | None) -> None:
    its = network(inner=REMEMBERING if form else ACTOR_CRITIC)
    made = learner(its.build(spaces_in(ENV), form or Form((16,)), 0), **({"update_epochs": 2} if learner is PPOLearner else {}))
    worker = rollout(form=form)
    wanted_seen, wanted_paid = Moments.none((3,)), Moments.none(())
    for _ in range(3):
        weights = made.weights()
        for client, work in works(worker, weights, 1, clients=2):
            assert work.bundle is not None
            wanted_seen = wanted_seen.merged(Moments.read(work.bundle, f"moments/{SEEN}"))
            wanted_paid = wanted_paid.merged(Moments.read(work.bundle, f"moments/{PAID}"))
            made.fold(contribution(work, client))
        metrics = made.step().metrics
        assert metrics.get("first_ratio_error", 0.0) < 1e-4
        assert abs(metrics.get("rho_mean", 1.0) - 1) < 1e-4
        for name, wanted in ((SEEN, wanted_seen), (PAID, wanted_paid)):
            told = Moments.read(made.weights(), f"{PART}.{name}")
            np.testing.assert_array_equal(told.mean, wanted.mean)
            np.testing.assert_array_equal(told.m2, wanted.m2)


def test_rewards_are_scaled_by_statistics_that_have_them() -> None:
    learner = PPOLearner(module(), clip_reward=0.3)
    work = rollout().run(learner.weights(), 0, Task(0, 0, (0,)))
    assert work.bundle is not None
    raw = work.bundle["reward"].copy()
    learner.fold(contribution(work))
    batch = learner.staging.batch()
    variance = Moments.read(work.bundle, f"moments/{PAID}").variance
    np.testing.assert_allclose(batch.reward.numpy(), np.clip(raw / np.sqrt(variance + EPSILON), -0.3, 0.3), rtol=1e-5)
    assert abs(batch.reward).max() == np.float32(0.3)


def test_the_order_of_arrival_changes_no_bit() -> None:
    def stepped(order: Sequence[int]) -> str:
        learner = PPOLearner(module())
        made = works(rollout(), learner.weights(), 1, clients=4)
        for at in order:
            learner.fold(contribution(made[at][1], made[at][0]))
        learner.step()
        return learner.weights().sha256()

    assert stepped([0, 1, 2, 3]) == stepped([2, 0, 3, 1])


def test_statistics_survive_a_restart() -> None:
    learner, again = PPOLearner(module()), PPOLearner(module(seed=5))
    work = rollout().run(learner.weights(), 0, Task(0, 0, (0,)))
    learner.fold(contribution(work))
    learner.step()
    again.load(learner.weights(), learner.state())
    for one in (learner, again):
        one.fold(contribution(work))
        one.step()
    assert learner.weights().sha256() == again.weights().sha256()


class Pictures(gymnasium.Env[Any, Any]):
    observation_space = gymnasium.spaces.Box(0, 255, (8, 8), np.uint8)
    action_space = gymnasium.spaces.Discrete(2)


def test_pictures_and_a_taken_name_are_refused() -> None:
    with pytest.raises(UserError, match="norm_obs=true: the observations are pictures"):
        network().build(spaces_in(Pictures), Form(), 0)

    class Policy(torch.nn.Module):
        def __init__(self, spaces: Any) -> None:
            super().__init__()
            self.normal, self.value = torch.nn.Linear(3, 2), torch.nn.Linear(3, 1)

        def forward(self, seen: Any) -> Any:
            return self.normal(seen).split(1, -1), self.value(seen)

    with pytest.raises(UserError, match="policy: it has an attribute 'normal', the name that norm_obs and norm_reward need"):
        network().fitting(Policy(None), spaces_in(ENV))


SMALL: dict[str, Any] = {"num_envs": 4, "rollout_length": 32, "total_timesteps": 1024, "eval_episodes": 2, "preset": "none"}
ON = {"norm_obs": True, "norm_reward": True}


class Own(torch.nn.Module):
    def __init__(self, spaces: Any) -> None:
        super().__init__()
        self.body, self.value = torch.nn.Linear(3, 2), torch.nn.Linear(3, 1)

    def forward(self, seen: Any) -> Any:
        return tuple(self.body(seen).split(1, -1)), self.value(seen)


@pytest.mark.parametrize("more", [{}, {"compress_weights": "int8"}, {"policy": Own}, {"memory": "gru"}])
def test_a_run_keeps_its_statistics_wherever_its_weights_go(tmp_path: Path, more: dict[str, Any]) -> None:
    job = shoal.Reinforcement(ENV, method="ppo", clients=2, num_minibatches=2, **{**SMALL, **ON, **more})
    run = shoal.run(job, actors=0, folder=tmp_path / "run")
    weights = run.weights
    steps = run.summary["steps"]
    assert weights[f"{PART}.{SEEN}count"] == steps == weights[f"{PART}.{PAID}count"]
    assert (weights[f"{PART}.{SEEN}m2"] > 0).all()
    assert all(row["metrics"]["first_ratio_error"] < (0.1 if more.get("compress_weights") else 1e-4) for row in run.history)
    assert shoal.evaluate(run, episodes=2)["return_mean"] == run.metrics["eval/return_mean"]
    if "memory" not in more:
        exported = torch.export.load(shoal.export(run, tmp_path / "model.pt2")).module()
        seen = torch.randn(7, 3)
        torch.testing.assert_close(exported(seen)[1], run.model()(seen)[1])
        assert not torch.allclose(exported(seen)[1], exported(10 * seen)[1])


def test_several_actors_merge_what_the_plain_loop_merges(tmp_path: Path) -> None:
    job = shoal.Reinforcement(ENV, method="ppo", clients=4, num_minibatches=2, **SMALL, **ON)
    digests = [shoal.run(job, actors=n, folder=tmp_path / str(n)).summary["weights_sha256"] for n in (0, 3)]
    assert digests[0] == digests[1]


def test_a_job_says_what_it_normalises() -> None:
    problem = shoal.Reinforcement(ENV, method="ppo", **ON).problem
    assert isinstance(problem, Environment)
    names = problem.trajectory(4, 2, (SEEN, PAID)).by_name
    assert {name for name in names if name.startswith("moments/")} == {
        f"moments/{what}{part}" for what in (SEEN, PAID) for part in ("count", "mean", "m2")
    }
