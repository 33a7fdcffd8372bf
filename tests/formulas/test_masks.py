"""Action masks: what a mask forbids is never done, has probability 0 and is no part of the entropy, from actor to learner."""

from __future__ import annotations

from functools import partial
from itertools import product
from pathlib import Path
from typing import Any, ClassVar

import gymnasium
import numpy as np
import pytest
import torch
from gymnasium import spaces as gym
from gymnasium.vector import AutoresetMode, SyncVectorEnv

import shoal
from shoal import Reinforcement
from shoal.actors.workers.evolution import Evolution
from shoal.actors.workers.rollout import SEEDS, Rollout
from shoal.aggregators.impala import IMPALALearner
from shoal.aggregators.ppo import PPOLearner
from shoal.envs.making import Recipe, make_vector
from shoal.envs.spaces import Discrete, MultiDiscrete, spaces_of
from shoal.envs.trying import masks_told
from shoal.nets import distributions, policies
from shoal.nets.flat import FlatModule
from shoal.nets.numpy_policy import NumpyPolicy
from shoal.nets.perturbed import acting, noise, pieces
from shoal.nets.policies import ActorCritic, TorchPolicy
from shoal.protocol.draws import key
from shoal.protocol.errors import UserError
from shoal.protocol.layout import Bundle
from shoal.protocol.work import Contribution, Task

SEEN = gym.Box(-1, 1, (3,), np.float32)


class Doors(gymnasium.Env[Any, Any]):
    """Which doors are open changes with each step; to go through a closed one raises. An episode ends after 7 steps: its last
    mask has no open door."""

    where: ClassVar[str] = "info"
    nvec: ClassVar[tuple[int, ...]] = (5,)
    ends: ClassVar[str] = "truncated"
    stuck: ClassVar[int] = -1  # a step at which nothing is allowed in the middle of an episode

    def __init__(self) -> None:
        one = len(self.nvec) == 1
        self.action_space = gym.Discrete(self.nvec[0], start=2) if one else gym.MultiDiscrete(self.nvec)
        mask = gym.MultiBinary(sum(self.nvec))
        self.observation_space: Any = SEEN
        if self.where == "observation":
            self.observation_space = gym.Dict({"observation": SEEN, "action_mask": mask})
        if self.where == "parts":
            self.observation_space = gym.Dict({"a": SEEN, "b": gym.Discrete(3), "action_mask": mask})

    def reset(self, *, seed: int | None = None, options: Any = None) -> Any:
        super().reset(seed=seed)
        self.at = 0
        return self._told()

    def _told(self) -> Any:
        self.open = [self.np_random.random(n) < 0.4 for n in self.nvec]
        for part in self.open:
            part[self.np_random.integers(len(part))] = True
            part[:] = False if self.at in (7, self.stuck) else part
        seen = self.np_random.uniform(-1, 1, 3).astype(np.float32)
        mask = np.concatenate(self.open).astype(np.int8)
        if self.where == "info":
            return seen, {"action_mask": mask if len(self.nvec) == 1 else tuple(part.astype(np.int8) for part in self.open)}
        if self.where == "observation":
            return {"observation": seen, "action_mask": mask}, {}
        return {"a": seen, "b": self.at % 3, "action_mask": mask}, {}

    def step(self, action: Any) -> Any:
        parts = [int(action) - 2] if len(self.nvec) == 1 else [int(n) for n in action]
        if not all(part[n] for part, n in zip(self.open, parts, strict=True)):
            raise AssertionError(f"went through a closed door: {parts} of {self.open}")
        self.at += 1
        seen, info = self._told()
        over = self.at == 7
        return seen, float(parts[0]), over and self.ends == "terminated", over and self.ends == "truncated", info


def doors(**own: Any) -> type[Doors]:
    return type("Doors", (Doors,), own)


def recipe(env: Any, mode: AutoresetMode | None = None) -> Recipe:
    if mode is None:
        return Recipe(env, told=env.where == "info")
    return Recipe(lambda num_envs: SyncVectorEnv([env] * num_envs, autoreset_mode=mode), told=env.where == "info")


WHERE = ["info", "observation", "parts"]
PARTS = [(5,), (3, 4)]


CASES = [
    (mode, where, nvec, numpy)
    for mode, where, nvec, numpy in product([None, *AutoresetMode], WHERE, PARTS, [True, False])
    if where != "info" or len(nvec) == 1 or mode is None  # gymnasium itself cannot batch a tuple of masks in an info
]


@pytest.mark.parametrize(("mode", "where", "nvec", "numpy"), CASES)
def test_no_closed_door_is_gone_through_and_every_ratio_is_1(mode: Any, where: str, nvec: Any, numpy: bool) -> None:
    make = partial(make_vector, recipe(doors(where=where, nvec=nvec), mode))
    spaces = make(1).spaces
    assert spaces.masks == ("info" if where == "info" else "observation")
    module = ActorCritic(spaces, (16,), seed=4)
    with torch.no_grad():
        module.actor[-1].weight.mul_(300)  # far from uniform
    policy = NumpyPolicy(spaces.action) if numpy else TorchPolicy(module, spaces.action)
    worker = Rollout(make, policy, 20, 3, seed=1, episodes=4)
    weights = FlatModule(module).bundle()
    works = [worker.run(weights, 0, Task(v, 0, (0,))) for v in range(3)]
    evaluated = worker.run(weights, 0, Task(0, 0, (0,), "evaluate"))  # greedy
    assert len(evaluated.samples["return"]) == 4
    worker.close()
    for work in works:
        bundle = work.bundle
        assert bundle is not None
        mask, log_prob = bundle["action_mask"], bundle["log_prob"]
        assert np.isfinite(log_prob).all()
        assert spaces.action.possible(mask).all()  # what only resets allows everything
        assert (~mask).any()
        taken = bundle["action"][..., None] if len(nvec) == 1 else bundle["action"]
        firsts = np.cumsum([0, *nvec[:-1]])
        assert np.take_along_axis(mask[:-1], taken + firsts, axis=-1)[bundle["mask"]].all()
    ppo, impala = PPOLearner(module, lr=1e-3), IMPALALearner(module, lr=1e-3)
    for learner, name, wanted in ((ppo, "first_ratio_error", 0.0), (impala, "rho_mean", 1.0)):
        learner.fold(Contribution(Task(0, 0, (0,)), 0, 0, works[-1]))
        metrics = learner.step().metrics
        assert metrics[name] == pytest.approx(wanted, abs=2e-5)
        assert np.isfinite(list(metrics.values())).all()
        assert learner.weights().vector("f4").size
        assert np.isfinite(learner.weights().vector("f4")).all()


@pytest.mark.parametrize("action", [Discrete(4), MultiDiscrete((2, 3), (0, 0), (2,))])
def test_log_prob_and_entropy_are_those_of_the_allowed_choices_alone(action: Any) -> None:
    rng = np.random.default_rng(2)
    sizes = [4] if isinstance(action, Discrete) else [2, 3]
    for _ in range(30):
        numbers = 2 * rng.standard_normal(sum(sizes)).astype(np.float32)
        allowed = [rng.random(n) < 0.5 for n in sizes]
        for part in allowed:
            part[rng.integers(len(part))] = True
        entropy, log_probs = 0.0, []
        for part, logits in zip(allowed, np.split(numbers.astype(np.float64), np.cumsum(sizes)[:-1]), strict=True):
            p = np.exp(logits[part]) / np.exp(logits[part]).sum()
            entropy -= float((p * np.log(p)).sum())
            log_probs.append({int(n): float(np.log(q)) for n, q in zip(np.flatnonzero(part), p, strict=True)})
        taken = np.array([int(rng.choice(list(each))) for each in log_probs])
        wanted = sum(each[int(n)] for each, n in zip(log_probs, taken, strict=True))
        given = taken[0] if isinstance(action, Discrete) else taken
        mask, legal = np.concatenate(allowed), action.legal(numbers[None], np.concatenate(allowed)[None])
        assert action.log_prob(legal, np.asarray(given)[None])[0] == pytest.approx(wanted, abs=1e-5)
        logits_t = torch.from_numpy(numbers)[None].requires_grad_()
        meant = distributions.meant(logits_t, action, torch.from_numpy(mask)[None])
        found = policies.log_prob(meant, torch.as_tensor(given)[None])
        assert found.item() == pytest.approx(wanted, abs=1e-5)
        assert policies.entropy(meant).item() == pytest.approx(entropy, abs=1e-5)
        (found.sum() + policies.entropy(meant).sum()).backward()
        assert logits_t.grad is not None
        assert torch.isfinite(logits_t.grad).all()
        assert (logits_t.grad[0][~torch.from_numpy(mask)] == 0).all()


def test_forbidden_choices_are_never_drawn_however_likely_their_logits() -> None:
    action, rng = Discrete(3), np.random.default_rng(0)
    numbers = action.legal(np.array([[1e6, 0.0, -1e6]], np.float32), np.array([[False, True, True]]))
    drawn = action.act(np.broadcast_to(numbers, (5000, 3)), action.noise(rng, 1, 5000)[0])
    assert set(drawn.tolist()) == {1}
    assert action.act(numbers, None).tolist() == [1]


def test_a_mask_in_an_info_is_found_by_a_trial_and_leaves_nothing() -> None:
    assert masks_told(Doors, "auto", 0.0)
    assert not masks_told(doors(where="observation"), "auto", 0.0)
    assert not masks_told("CartPole-v1", "auto", 0.0)

    class Raises(Doors):
        def reset(self, **given: Any) -> Any:
            raise LookupError

    assert not masks_told(Raises, "auto", 0.0)


def test_a_mask_that_allows_nothing_in_the_middle_of_an_episode_is_told() -> None:
    for where, says in (
        ("info", "the info's action_mask allows nothing or is missing"),
        ("parts", "the observation's action_mask"),
    ):
        envs = make_vector(recipe(doors(where=where, stuck=2)), 1)
        step = envs.step(envs.reset(0).observation["action_mask"].argmax(1))
        with pytest.raises(UserError, match=f"{says}.*in environment 0: expected at least one choice"):
            envs.step(step.observation["action_mask"].argmax(1))


@pytest.mark.parametrize(
    ("space", "says"),
    [
        (gym.Box(-1, 1, (2,), np.float32), "info has an action_mask, and its actions are Box.*: expected Discrete"),
        (gym.MultiBinary(2), "info has an action_mask, and its actions are MultiBinary"),
    ],
)
def test_a_mask_for_actions_that_have_no_choices_is_refused(space: Any, says: str) -> None:
    with pytest.raises(UserError, match=says):
        spaces_of(SEEN, space, told=True)


def test_in_an_observation_a_part_called_action_mask_is_a_part_like_others_if_actions_have_no_choices() -> None:
    found = spaces_of(gym.Dict({"a": SEEN, "action_mask": gym.MultiBinary(2)}), gym.Box(-1, 1, (2,), np.float32))
    assert list(found.arrays) == ["observation/a", "observation/action_mask"]
    assert found.masks == ""


@pytest.mark.parametrize("method", ["ppo", "impala"])
@pytest.mark.parametrize("where", WHERE)
def test_a_run_learns_behind_masks(method: str, where: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    few: dict[str, Any] = {
        "total_timesteps": 600,
        "num_envs": 3,
        "rollout_length": 20,
        "eval_every": 2,
        "eval_episodes": 3,
        "lr": 1e-8,
    }
    job = Reinforcement(doors(where=where), method=method, **few)
    run = shoal.run(job, actors=0)
    name, wanted = ("first_ratio_error", 0.0) if method == "ppo" else ("rho_mean", 1.0)
    found = [row["metrics"][name] for row in run.dir.rows()]
    assert len(found) >= 2
    assert found == pytest.approx([wanted] * len(found), abs=1e-4)  # weights that hardly move


@pytest.mark.parametrize("method", ["dqn", "r2d2"])
@pytest.mark.parametrize("where", WHERE)
def test_methods_that_learn_values_go_through_no_closed_door(where: str, method: str) -> None:
    few: dict[str, Any] = {"total_timesteps": 500, "num_envs": 3, "rollout_length": 20, "learning_starts": 60, "batch_size": 8}
    few |= {"memory": "gru", "memory_size": 8} if method == "r2d2" else {}
    run = shoal.run(Reinforcement(doors(where=where, nvec=(5,)), method=method, **few), actors=0)
    assert list(run.dir.rows())[-1]["metrics"]["updates"] > 0


@pytest.mark.parametrize("where", WHERE)
def test_masks_hold_where_another_process_computes_the_network(where: str, tmp_path: Path) -> None:
    few: dict[str, Any] = {"total_timesteps": 240, "num_envs": 4, "rollout_length": 10, "clients": 2, "double_buffer": True}
    settings = ({}, {"inference": "central"})
    runs = [
        shoal.run(
            Reinforcement(doors(where=where), method="ppo", **few, **more),
            actors=actors,
            folder=tmp_path / str(actors),
            show=False,
        )
        for actors, more in zip((0, 2), settings, strict=True)
    ]
    alone, central = runs
    assert central.history[-1]["metrics"]["inference_central"] == 1.0
    assert alone.summary["weights_sha256"] == central.summary["weights_sha256"]


@pytest.mark.parametrize(("mode", "where", "nvec"), [each[:3] for each in CASES if each[3]])
def test_a_perturbed_policy_of_es_takes_the_likeliest_open_door(mode: Any, where: str, nvec: Any) -> None:
    make = partial(make_vector, recipe(doors(where=where, nvec=nvec), mode))
    spaces = make(1).spaces
    module = ActorCritic(spaces, (16,), seed=4)
    with torch.no_grad():
        module.actor[-1].weight.mul_(300)
    weights, pairs = FlatModule(module).bundle(), 3
    worker = Evolution(make, "tanh", pairs, 0.5, 1, Rollout(make, NumpyPolicy(spaces.action), 1, 2, seed=1, episodes=2))
    work = worker.run(weights, 0, Task(0, 0, (0,)))
    worker.close()
    assert work.bundle is not None
    assert work.samples["length"] == (7.0,) * 2 * pairs
    names, found = acting(weights.layout), []
    size = sum(weights[name].size for name in names)
    for at, (sign, pair) in enumerate(product((1, -1), range(pairs))):
        moved = Bundle(weights.layout, weights.data.copy())
        for name, piece in pieces(weights.layout, names, noise(int(work.bundle["seed"][pair]), size)):
            moved[name][...] += np.float32(0.5 * sign) * piece
        alone = NumpyPolicy(spaces.action)
        alone.load(moved)
        envs, paid = make(1), 0.0
        step = envs.reset(key(1, "es", 0, 0) % SEEDS + at)
        while not step.over[0]:
            step = envs.step(alone.act(step.observation, step.first, {}, None, {}).action)
            paid += float(step.reward[0])
        found.append(paid)
    assert work.samples["return"] == tuple(found)
    assert len(set(found)) > 1


@pytest.mark.parametrize("where", WHERE)
def test_evolution_runs_behind_masks(where: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    few: dict[str, Any] = {"total_timesteps": 200, "clients": 2, "pairs": 4, "eval_every": 1, "eval_episodes": 2}
    run = shoal.run(Reinforcement(doors(where=where), method="es", **few), actors=0, show=False)
    assert run.summary["steps"] == 224  # 2 rounds of 16 episodes of 7 steps, in which no closed door raised
    assert "eval/return_mean" in run.metrics


class Filmed(Doors):
    """Doors that can be seen."""

    def __init__(self, render_mode: str | None = None) -> None:
        super().__init__()
        self.render_mode = render_mode

    def render(self) -> Any:
        return np.full((16, 20, 3), 30 * self.at, np.uint8)


@pytest.mark.parametrize("where", WHERE)
@pytest.mark.parametrize("method", ["ppo", "dqn", "es"])
def test_a_trained_policy_goes_through_no_closed_door_where_it_plays_is_judged_or_is_filmed(
    method: str, where: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    few: dict[str, Any] = {"total_timesteps": 100, "hidden": (8,)}
    few |= {"clients": 2, "pairs": 2} if method == "es" else {"num_envs": 2, "rollout_length": 8}
    env = type("Filmed", (Filmed,), {"where": where})
    run = shoal.run(Reinforcement(env, method=method, **few), actors=0, show=False)
    assert shoal.evaluate(run, episodes=3)["episodes"] == 3
    for greedy in (True, False):
        policy, played = run.policy(greedy=greedy, seed=3), env()
        for episode in range(4):
            policy.reset()
            (seen, info), over = played.reset(seed=episode), False
            while not over:
                seen, _, terminated, truncated, info = played.step(policy.act(seen, info))
                over = terminated or truncated
    assert run.video("seen.gif").stat().st_size > 0
    if where == "info":
        with pytest.raises(UserError, match=r"gives action masks in its info: call act\(observation, info\)"):
            policy.act(seen)


def test_a_network_that_reads_one_array_refuses_masks_and_parts() -> None:
    with pytest.raises(UserError, match="a small network knows no action masks"):
        spaces_of(SEEN, gym.Discrete(2), told=True).single("a small network")
    with pytest.raises(UserError, match=r"reads one array, and the observation has parts \(a, b\)"):
        spaces_of(gym.Dict({"a": SEEN, "b": SEEN}), gym.Discrete(2)).single("a small network")
