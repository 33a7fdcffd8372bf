"""Environments that keep a log: an episode that is played again goes on to the bit, whatever the environment is made of."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import gymnasium
import numpy as np
import pytest
from gymnasium import spaces as gym

from shoal.envs.agents import Parallel
from shoal.envs.lasting import state_told
from shoal.envs.logged import ACTIONS, ANEW, ATTRIBUTES, UNKNOWN, Logged
from shoal.envs.making import Recipe, make_vector
from shoal.envs.states import NoStateError
from shoal.envs.vector import Envs
from shoal.protocol import values


class Hidden(gymnasium.Env[Any, Any]):
    """What comes is in an iterator, which no attribute tells, drawn by a generator that goes on from episode to episode."""

    observation_space: Any = gym.Box(-np.inf, np.inf, (2,), np.float64)
    action_space: Any = gym.Discrete(3, start=-1)
    longest = 7

    def reset(self, *, seed: int | None = None, options: Any = None) -> Any:
        super().reset(seed=seed)
        self.coming: Iterator[float] = iter(self.np_random.normal(size=self.longest).tolist())
        self.sum, self.t = 0.0, 0
        return np.array([self.sum, next(self.coming)]), {}

    def step(self, action: Any) -> Any:
        self.t += 1
        self.sum += float(np.sum(action)) * next(self.coming)
        return np.array([self.sum, self.t]), self.sum, self.t == self.longest - 2, False, {}


class Many(Hidden):
    action_space = gym.MultiDiscrete([3, 300])


class Boxed(Hidden):
    action_space = gym.Box(-2, 2, (3,), np.float32)


class Bits(Hidden):
    action_space = gym.MultiBinary(4)


class Whole(Hidden):
    action_space = gym.Box(-4, 400, (2,), np.int64)


class Named(Hidden):
    """An observation of several parts, with text, as MiniGrid's."""

    observation_space = gym.Dict({"seen": gym.Box(-np.inf, np.inf, (2,), np.float64), "task": gym.Text(20)})

    def reset(self, **given: Any) -> Any:
        seen, info = super().reset(**given)
        return {"seen": seen, "task": "go there"}, info

    def step(self, action: Any) -> Any:
        seen, *rest = super().step(action)
        return {"seen": seen, "task": "go there"}, *rest


class Learnt(gymnasium.Wrapper[Any, Any, Any, Any]):
    """A wrapper that remembers all episodes: its statistics are part of what an episode began with."""

    def __init__(self, env: Any) -> None:
        super().__init__(env)
        self.many, self.mean = 0, np.zeros(2)

    def reset(self, **given: Any) -> Any:
        seen, info = self.env.reset(**given)
        return self.scaled(seen), info

    def step(self, action: Any) -> Any:
        seen, *rest = self.env.step(action)
        return self.scaled(seen), *rest

    def scaled(self, seen: Any) -> Any:
        self.many += 1
        self.mean = self.mean + (seen - self.mean) / self.many
        return seen - self.mean


class Game:
    """A game of two whose next cards are in an iterator; agent "a" is out after 3 steps, "b" after 5."""

    possible_agents = ("a", "b")

    def __init__(self) -> None:
        self.dice = np.random.default_rng(0)

    def observation_space(self, agent: str) -> Any:
        return gym.Box(-np.inf, np.inf, (2,), np.float64)

    def action_space(self, agent: str) -> Any:
        return gym.Discrete(3)

    def seen(self, agents: Any) -> Any:
        card = next(self.cards)
        return {name: np.array([self.points, card]) for name in agents}

    def reset(self, seed: int | None = None, options: Any = None) -> Any:
        if seed is not None:
            self.dice = np.random.default_rng(seed)
        self.cards, self.t, self.points, self.agents = iter(self.dice.normal(size=9).tolist()), 0, 0.0, ["a", "b"]
        return self.seen(self.agents), {}

    def step(self, actions: dict[str, Any]) -> Any:
        assert set(actions) == set(self.agents)
        self.t += 1
        self.points += sum(float(one) * (1 if name == "a" else -3) for name, one in actions.items())
        were = self.agents
        over = {name: self.t >= (3 if name == "a" else 5) for name in were}
        self.agents = [name for name in were if not over[name]]
        return self.seen(were), dict.fromkeys(were, self.points), over, dict.fromkeys(were, False), {}

    def close(self) -> None: ...


def watched(env: Any, way: str, num_envs: int = 2) -> Envs:
    envs = make_vector(env, num_envs)
    envs.reset(3)
    envs.watch(way)
    return envs


def played(envs: Envs, many: int, seed: int = 1) -> list[bytes]:
    """What `many` steps of random actions show and pay."""
    rng, action, told = np.random.default_rng(seed), envs.spaces.action, []
    for _ in range(many):
        numbers = np.zeros((envs.num_envs, action.parameters), np.float32)
        step = envs.step(action.act(numbers, action.noise(rng, 1, envs.num_envs)[0]))
        told.append(step.observation.tobytes() + step.reward.tobytes() + step.terminated.tobytes())
    return told


def state_of(envs: Envs) -> Any:
    return values.read_quickly(values.pack_quickly(envs.state()))


@pytest.mark.parametrize("steps", [0, 3, 5, 6, 17, 31])
@pytest.mark.parametrize(
    "env", [Hidden, Many, Boxed, Bits, Whole, Named, lambda: Learnt(Hidden()), Parallel(Game)], ids=lambda env: env.__name__
)
def test_an_episode_that_is_played_again_goes_on_to_the_bit(env: Any, steps: int) -> None:
    one, other = (watched(env, ACTIONS) for _ in range(2))
    played(one, steps)
    other.restore(state_of(one))
    assert state_of(other) == state_of(one)
    assert played(other, 20, seed=2) == played(one, 20, seed=2)
    assert state_of(other) == state_of(one)


@pytest.mark.parametrize(
    ("env", "vector", "way"),
    [
        ("CartPole-v1", "auto", ATTRIBUTES),
        (Hidden, "auto", ACTIONS),
        (Parallel(Game), "auto", ACTIONS),
        ("Taxi-v4", "auto", ACTIONS),
        ("LunarLander-v3", "auto", ACTIONS),
        ("BipedalWalker-v3", "auto", ANEW),
        ("MiniGrid-DoorKey-5x5-v0", "auto", ACTIONS),
        (Recipe("ALE/Pong-v5", {"obs_type": "ram"}), "sync", ANEW),
    ],
)
def test_a_trial_finds_how_an_environment_is_told(env: Any, vector: str, way: str) -> None:
    for name, package in (("Lander", "Box2D"), ("Walker", "Box2D"), ("MiniGrid", "minigrid"), ("ALE", "ale_py")):
        if name in str(env):
            pytest.importorskip(package)
    told = state_told(env, vector)
    assert (told.size > 0, told.way, told.why) == (True, way, "")


def test_environments_that_are_made_anew_play_each_episode_as_its_seed_says() -> None:
    pytest.importorskip("Box2D")
    one, other = (watched(Recipe("BipedalWalker-v3", {}, time_limit=10), ANEW) for _ in range(2))
    played(one, 36)  # the fourth episode
    other.restore(state_of(one))
    assert played(other, 30, seed=2) == played(one, 30, seed=2)
    (log,) = (silent.env for silent in one.vector.envs[:1])
    fresh = gymnasium.make("BipedalWalker-v3")
    assert (fresh.reset(seed=log._began[1]["seed"])[0] == log.env.reset(seed=log._began[1]["seed"])[0]).all()


def test_actions_take_no_more_room_than_their_space_needs() -> None:
    log = Logged(Hidden(), Hidden.action_space)
    assert log.most == UNKNOWN
    assert Logged(Many(), Many.action_space).most == 4 * UNKNOWN
    assert Logged(Boxed(), Boxed.action_space).most <= 32_768
    assert Logged(gymnasium.wrappers.TimeLimit(Hidden(), 50), Hidden.action_space).most == 50


def test_an_episode_that_is_longer_than_its_log_has_no_state_until_the_next_one() -> None:
    class Long(Hidden):
        longest = UNKNOWN + 4

    envs = watched(Long, ACTIONS)
    played(envs, UNKNOWN)
    envs.state()
    played(envs, 1)
    with pytest.raises(NoStateError, match=r"an episode has 4,097 steps by now, and the actions of 4,096 are kept"):
        envs.state()
    played(envs, 2)
    envs.state()


def test_an_environment_that_does_not_do_the_same_has_no_state() -> None:
    class Drifting(Hidden):
        drift = 0.0

        def step(self, action: Any) -> Any:
            seen, *rest = super().step(action)
            Drifting.drift += 1.0
            return seen + Drifting.drift, *rest

    one, other = (watched(Drifting, ACTIONS) for _ in range(2))
    played(one, 3)
    with pytest.raises(NoStateError, match="an episode that was played again did not show what it had shown"):
        other.restore(state_of(one))
    told = state_told(Drifting, "auto")
    assert told.size == 0
    assert told.why.startswith("Drifting.coming is builtins.list_iterator; ")


def test_a_vector_that_steps_all_at_once_keeps_no_log() -> None:
    envs = make_vector("CartPole-v1", 2)
    envs.reset(0)
    with pytest.raises(NoStateError, match="CartPoleVectorEnv steps its environments all at once"):
        envs.watch(ACTIONS)
    with pytest.raises(NoStateError, match="only an environment with an id is made anew"):
        watched(Hidden, ANEW)
