"""A vector that steps its environments all at once is told by seeds and actions, if it begins each episode with a seed."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, ClassVar

import gymnasium
import numpy as np
import pytest
from gymnasium import spaces as gym
from gymnasium.vector import AutoresetMode

from shoal.envs import logged_vector
from shoal.envs.lasting import state_told
from shoal.envs.logged import ACTIONS, ANEW, SEEDS
from shoal.envs.making import Recipe, make_vector
from shoal.envs.states import NoStateError
from shoal.envs.vector import Envs
from shoal.protocol import values
from shoal.protocol.draws import key

PONG, BREAKOUT = "ALE/Pong-v5", "ALE/Breakout-v5"
SMALL = {"img_height": 20, "img_width": 20}


class Cards(gymnasium.vector.VectorEnv[Any, Any, Any]):
    """Environments whose next cards are in iterators, which no attribute tells. An episode ends when its sum is above 4, or
    after 9 steps. seeded: a reset of some environments takes seeds; else it ignores them."""

    mode: ClassVar[AutoresetMode] = AutoresetMode.NEXT_STEP
    seeded: ClassVar[bool] = True
    single_observation_space: Any = gym.Box(-np.inf, np.inf, (2,), np.float64)
    single_action_space: Any = gym.Discrete(3, start=-1)

    def __init__(self, num_envs: int) -> None:
        self.num_envs, self.metadata = num_envs, {"autoreset_mode": self.mode}
        batched = gymnasium.vector.utils.batch_space
        self.observation_space = batched(self.single_observation_space, num_envs)
        self.action_space = batched(self.single_action_space, num_envs)
        self.dice = [np.random.default_rng(i) for i in range(num_envs)]
        self.cards: list[Iterator[float]] = [iter(()) for _ in range(num_envs)]
        self.sum, self.t, self.over = np.zeros(num_envs), np.zeros(num_envs, int), np.zeros(num_envs, bool)

    def reset(self, *, seed: Any = None, options: Any = None) -> Any:
        which = np.flatnonzero((options or {}).get("reset_mask", np.ones(self.num_envs, bool)))
        seeds = [seed + i for i in which] if isinstance(seed, int) else [None] * len(which) if seed is None else seed
        for i, its in zip(which, seeds, strict=True):
            if its is not None and (self.seeded or isinstance(seed, int)):
                self.dice[i] = np.random.default_rng(its)
            self.begin(i)
        return self.seen(), {}

    def begin(self, i: int) -> None:
        self.cards[i] = iter(self.dice[i].normal(size=20).tolist())
        self.sum[i], self.t[i], self.over[i] = next(self.cards[i]), 0, False

    def seen(self) -> Any:
        return np.stack([self.sum, self.t], axis=1)

    def step(self, actions: Any) -> Any:
        assert not (self.mode == AutoresetMode.DISABLED and self.over.any())
        reward, terminated, truncated = np.zeros(self.num_envs), np.zeros(self.num_envs, bool), np.zeros(self.num_envs, bool)
        for i, action in enumerate(actions):
            if self.over[i]:
                self.begin(i)
                continue
            self.t[i] += 1
            self.sum[i] += float(action) * next(self.cards[i]) + 0.1
            reward[i], terminated[i] = self.sum[i], abs(self.sum[i]) > 4
            truncated[i] = self.t[i] == 9 and not terminated[i]
        self.over = terminated | truncated
        info = {}
        if self.mode == AutoresetMode.SAME_STEP and self.over.any():
            info["final_obs"] = np.array([*self.seen(), None], object)[:-1]
            for i in np.flatnonzero(self.over):
                self.begin(i)
        return self.seen(), reward, terminated, truncated, info


class Same(Cards):
    mode = AutoresetMode.SAME_STEP


class Disabled(Cards):
    mode = AutoresetMode.DISABLED


class Unseeded(Cards):
    seeded = False


class Halved(gymnasium.vector.VectorWrapper[Any, Any, Any, Any]):
    def step(self, actions: Any) -> Any:
        seen, reward, *rest = self.env.step(actions)
        return seen, reward / 2, *rest


def watched(env: Any, num_envs: int = 3) -> Envs:
    envs = make_vector(env, num_envs)
    envs.reset(3)
    envs.watch(ANEW)
    return envs


def played(envs: Envs, many: int, seed: int = 1) -> list[bytes]:
    """What `many` steps of random actions show and pay."""
    rng, action, told = np.random.default_rng(seed), envs.spaces.action, []
    for _ in range(many):
        numbers = np.zeros((envs.num_envs, action.parameters), np.float32)
        step = envs.step(action.act(numbers, action.noise(rng, 1, envs.num_envs)[0]))
        flags = (step.mask, step.terminated, step.truncated, step.lived, step.first)
        told.append(step.observation.tobytes() + step.reward.tobytes() + b"".join(each.tobytes() for each in flags))
    return told


def state_of(envs: Envs) -> Any:
    return values.read_quickly(values.pack_quickly(envs.state()))


@pytest.fixture
def short_logs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(logged_vector, "SPAN", 15)


@pytest.mark.usefixtures("short_logs")
@pytest.mark.parametrize("steps", [0, 1, 9, 10, 11, 23, 40, 41, 42])
@pytest.mark.parametrize("many", [1, 3])
@pytest.mark.parametrize("env", [Cards, Same, Disabled, lambda num_envs: Halved(Cards(num_envs))])
def test_steps_of_a_vector_that_are_played_again_go_on_to_the_bit(env: Any, many: int, steps: int) -> None:
    one, other = (watched(env, many) for _ in range(2))
    played(one, steps)
    other.restore(state_of(one))
    assert state_of(other) == state_of(one)
    assert played(other, 30, seed=2) == played(one, 30, seed=2)
    assert state_of(other) == state_of(one)


@pytest.mark.parametrize(
    ("env", "arguments", "limit"),
    [
        (PONG, {"repeat_action_probability": 0.6}, 25),
        (PONG, {"noop_max": 30, "use_fire_reset": True, "autoreset_mode": "SameStep"}, 25),
        (BREAKOUT, {"episodic_life": True, "num_threads": 2}, 120),
        (BREAKOUT, {"life_loss_info": True, "frameskip": 7}, 60),
        (PONG, {"continuous": True, "stack_num": 2, "grayscale": False}, 25),
    ],
)
@pytest.mark.usefixtures("short_logs")
def test_atari_games_that_are_played_again_go_on_to_the_bit(env: str, arguments: dict[str, Any], limit: int) -> None:
    pytest.importorskip("ale_py", reason="pip install 'shoal[atari]'")
    one, other = (watched(Recipe(env, {**arguments, **SMALL}, limit), 2) for _ in range(2))
    played(one, 60)
    other.restore(state_of(one))
    assert played(other, 60, seed=2) == played(one, 60, seed=2)
    assert state_of(other) == state_of(one)


def test_atari_has_the_rows_that_it_has_without_a_log_until_an_episode_begins_with_a_seed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    pytest.importorskip("ale_py", reason="pip install 'shoal[atari]'")
    recipe = Recipe(PONG, {"noop_max": 9, **SMALL}, 30)
    monkeypatch.setattr(logged_vector, "SPAN", 80)
    logged, plain = watched(recipe, 2), make_vector(recipe, 2)
    plain.reset(3)
    assert played(logged, 92) == played(plain, 92)  # three episodes of 30 steps with two steps that only reset
    step = logged.step(np.zeros(2, np.int64))
    assert (step.first.all(), step.lived.any(), step.reward.any(), step.mask.all()) == (True, False, False, True)
    seeds = np.array([key(3 + i, "episode", 1) % SEEDS for i in range(2)])
    plain.step(np.zeros(2, np.int64))
    seen, _ = plain.vector.reset(seed=seeds, options={"reset_mask": np.ones(2, bool)})
    assert (step.observation == seen).all()
    assert played(logged, 30, seed=4) == played(plain, 30, seed=4)


@pytest.mark.usefixtures("short_logs")
@pytest.mark.parametrize("env", [Cards, Same, Disabled])
def test_episodes_end_as_they_do_without_a_log(env: Any) -> None:
    """Lengths of episodes, with rewards that do not depend on seeds."""

    class Counting(env):  # type: ignore[misc]
        def begin(self, i: int) -> None:
            self.cards[i], self.sum[i], self.t[i], self.over[i] = iter([0.3] * 20), 0.0, 0, False

    rng, both = np.random.default_rng(0), [watched(Counting), make_vector(Counting, 3)]
    both[1].reset(3)
    for _ in range(60):
        action = rng.integers(0, 3, 3)
        one, other = (each.step(action) for each in both)
        for mine, its in zip(one, other, strict=True):
            assert np.array_equal(mine, its) or (mine is None and its is None)


def test_a_trial_finds_that_a_vector_begins_each_episode_with_a_seed() -> None:
    for env in (Cards, Same, Disabled):
        assert state_told(env, "auto")[1:] == (ANEW, "")
    told = state_told(Unseeded, "auto")
    assert told.size == 0
    assert told.why == "Unseeded.cards[] is builtins.list_iterator; Unseeded steps its environments all at once"
    pytest.importorskip("ale_py", reason="pip install 'shoal[atari]'")
    size, *rest = state_told(PONG, "auto")
    assert rest == [ANEW, ""]
    assert 31_000 < size < 32_768  # an action a byte, of 4,096 steps and an episode of 108,000 frames
    assert state_told(Recipe(PONG, {}, 200), "auto").size < 5_000


def test_a_vector_with_more_steps_than_a_log_has_room_for_has_no_state_until_an_episode_begins_with_a_seed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(logged_vector, "SPAN", 3)
    monkeypatch.setattr(logged_vector, "UNKNOWN", 4)
    envs = watched(Cards, 1)
    played(envs, 8)
    state_of(envs)
    played(envs, 1)
    why = "9 steps were made since an episode began with a seed of its own, and the actions of 8 are kept"
    with pytest.raises(NoStateError, match=why):
        envs.state()
    played(envs, 1)  # the episode has ended
    state_of(envs)


def test_a_vector_that_does_not_do_the_same_has_no_state() -> None:
    one, other, third = watched(Unseeded), watched(Unseeded), watched(Cards)
    played(one, 20)
    with pytest.raises(NoStateError, match="an episode that was played again did not show what it had shown"):
        other.restore(state_of(one))
    with pytest.raises(NoStateError, match="the logs are of other environments"):
        watched(Cards, 2).restore(state_of(third))
    with pytest.raises(NoStateError, match="Cards steps its environments all at once"):
        make_vector(Cards, 2).watch(ACTIONS)
