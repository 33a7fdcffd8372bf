"""Environments in processes of their own: the same trajectories, and what a hang, a death and an exception come to."""

from __future__ import annotations

import faulthandler
import itertools
import math
import os
import re
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import gymnasium
import numpy as np
import psutil
import pytest
import torch
from counting import Counting, counting, definition
from gymnasium.vector import AutoresetMode, SyncVectorEnv
from test_rollout import EVALUATE, NOTHING, TRAIN, Still
from test_vector_envs import SCRIPTS, rows_of

from shoal.actors.effects import Run
from shoal.actors.labour import perform
from shoal.actors.workers.rollout import MOST_LOST, Rollout
from shoal.aggregators.vtrace import vtrace
from shoal.envs.hatchery import Hatchery
from shoal.envs.isolated import MOST, EnvError, Isolated
from shoal.envs.lasting import Telling
from shoal.envs.logged import ACTIONS, ANEW, ATTRIBUTES
from shoal.envs.making import make_vector, spaces_in
from shoal.envs.states import NoStateError
from shoal.envs.vector import Step, Worlds
from shoal.faults.family import lives
from shoal.jobs.reinforcement import Reinforcement
from shoal.protocol.errors import UserError
from shoal.protocol.messages import Failed

LONG, SHORT = 600.0, 2.0  # deadlines: one that no step comes near, and one that a hang has to pass
MODES = ["NextStep", "SameStep", "Disabled"]
VICTIM, SEED = 2, 7  # whose trap is set: the environment that is seeded with SEED + VICTIM
PLACE = r"\(.*test_isolated_envs\.py, line \d+, in stumble\)"  # of an exception in the user's own code
Make = Callable[..., Isolated]


@pytest.fixture
def isolated() -> Iterator[Make]:
    """Isolated environments, whose processes are all gone at the end."""
    hatcheries: list[Hatchery] = []
    made: list[Isolated] = []
    before = set(psutil.Process().children())

    def make(
        env: Any, num_envs: int, timeout: float = LONG, like: Any = lambda: Counting([(3, "t")]), replaces: bool = False
    ) -> Isolated:
        hatcheries.append(Hatchery.forked(env))
        spaces = spaces_in(env if isinstance(env, str) else like)
        made.append(Isolated(hatcheries[-1], num_envs, spaces, timeout, time.monotonic, replaces))
        return made[-1]

    yield make
    for one in made:
        one.close()
    for hatchery in hatcheries:
        hatchery.close()
    assert set(psutil.Process().children(recursive=True)) <= before


class Trapped(Counting):
    """Meets its fate at a step of its episode `episode`; with seed SEED + VICTIM alone, unless it is `always` set."""

    def __init__(self, fate: Callable[[], object], at: int = 3, episode: int = 1, always: bool = False) -> None:
        super().__init__([(5, "t"), (4, "c")])
        self.fate, self.fatal, self.always = fate, (episode, at), always
        self.set = False

    def reset(self, *, seed: int | None = None, options: Any = None) -> Any:
        if seed is not None:
            self.set = self.always or seed == SEED + VICTIM
        seen = super().reset(seed=seed)
        self._meet()
        return seen

    def step(self, action: Any) -> Any:
        stepped = super().step(action)
        self._meet()
        return stepped

    def _meet(self) -> None:
        if self.set and (self.episode, self.at) == self.fatal:
            self.fate()


def hang() -> None:
    threading.Event().wait()


def segfault() -> None:
    faulthandler.disable()  # pytest's would tell of it
    os.kill(os.getpid(), signal.SIGSEGV)


def leave() -> None:
    os._exit(3)


def stumble() -> None:
    raise ValueError("the floor is wet")


def taken(envs: Worlds, count: int, seed: int = SEED) -> list[Step]:
    """Steps by random actions, copied, after that of the reset."""
    rng, discrete = np.random.default_rng(0), envs.spaces.action.layout()[0] == "i8"
    steps = [envs.reset(seed)]
    for _ in range(count):
        action = rng.integers(0, 2, envs.num_envs) if discrete else rng.normal(size=(envs.num_envs, 1)).astype(np.float32)
        steps.append(copied(envs.step(action)))
    return steps


def copied(step: Step) -> Step:
    return Step._make(np.array(each) if isinstance(each, np.ndarray) else each for each in step)


def same(ours: Step, theirs: Step, at: Any = slice(None)) -> bool:
    arrays = [(a, b) for a, b in zip(ours, theirs, strict=True) if isinstance(a, np.ndarray)]
    assert len(arrays) >= 6
    return all(a.dtype == b.dtype and (a[at] == b[at]).all() for a, b in arrays)


# A state that goes on in other processes


class Windy(gymnasium.Env[Any, Any]):
    """Draws from the global generator of its process. dies: perhaps, in the third step of an episode."""

    observation_space = gymnasium.spaces.Box(-np.inf, np.inf, (2,), np.float64)
    action_space = gymnasium.spaces.Discrete(2)

    def __init__(self, dies: bool = False) -> None:
        self.dies, self.wind = dies, 0.0

    def reset(self, *, seed: int | None = None, options: Any = None) -> Any:
        super().reset(seed=seed)
        self.t, self.born = 0, self.np_random.random()
        return np.array([self.born, 0]), {}

    def step(self, action: Any) -> Any:
        self.t, self.wind = self.t + 1, self.wind + np.random.normal()
        if self.dies and self.t == 3 and self.np_random.random() < 0.4:
            leave()
        return np.array([self.born, self.wind]), float(action), self.t == 5, False, {}


class Vast(Windy):
    """Changes a map that takes more bytes than a process tells."""

    def __init__(self) -> None:
        super().__init__()
        self.map = np.zeros(530_000)

    def step(self, action: Any) -> Any:
        self.map[self.t] += 1.0
        return super().step(action)


def gone_on(one: Isolated, other: Isolated, way: str, steps: int) -> Iterator[tuple[Step, Step]]:
    """The steps of environments that have made `steps` steps, and of others that were given their state."""
    for each in (one, other):
        each.reset(SEED)
        each.watch(way)
    taken_on(one, steps)
    one.state()
    taken_on(one, 3)
    other.restore(one.state())
    yield from zip(taken_on(one, 20), taken_on(other, 20), strict=True)


def taken_on(envs: Isolated, count: int) -> list[Step]:
    rng = np.random.default_rng(count)
    return [copied(envs.step(rng.integers(0, 2, envs.num_envs))) for _ in range(count)]


@pytest.mark.parametrize("way", [ATTRIBUTES, ACTIONS])
def test_a_state_goes_on_in_other_processes_to_the_bit(isolated: Make, way: str) -> None:
    assert all(same(*both) for both in gone_on(isolated("CartPole-v1", 3), isolated("CartPole-v1", 3), way, 40))


def test_a_state_tells_of_replaced_processes_and_of_their_global_generators(isolated: Make) -> None:
    one, other = (isolated(lambda: Windy(dies=True), 4, like=Windy) for _ in range(2))
    both = list(gone_on(one, other, ATTRIBUTES, 12))
    assert one._replaced.any()
    assert all(same(ours, theirs) and ours.replaced == theirs.replaced for ours, theirs in both)
    assert any(ours.replaced for ours, _ in both)


def test_what_a_process_cannot_play_again_is_said_and_costs_no_process(isolated: Make) -> None:
    one, other = (isolated(Windy, 2, like=Windy) for _ in range(2))
    with pytest.raises(NoStateError, match="an episode that was played again did not show what it had shown"):
        list(gone_on(one, other, ACTIONS, 4))
    assert not any(step.replaced for step in taken_on(one, 9))


def test_a_process_that_is_lost_while_it_tells_its_state_is_replaced(isolated: Make) -> None:
    class Mute(Windy):
        def save_state(self) -> Any:
            if self.np_random.random() < 0.5:
                leave()
            return None

        def load_state(self, state: Any) -> None: ...

    envs = isolated(Mute, 4, like=Windy)
    envs.reset(SEED)
    envs.watch(ATTRIBUTES)
    with pytest.raises(NoStateError, match="exited with code 3"):
        envs.state()
    step = envs.step(np.zeros(4, np.int64))
    assert 0 < step.replaced < 4
    assert step.truncated.sum() == step.replaced


def test_a_process_whose_state_takes_too_many_bytes_says_so_and_lives_on(isolated: Make) -> None:
    envs = isolated(Vast, 2, like=Windy)
    envs.reset(SEED)
    envs.watch(ATTRIBUTES)
    for _ in range(3):
        envs.step(np.zeros(2, np.int64))
        with pytest.raises(NoStateError, match=r"its state takes 4,[0-9,]+ bytes, and a process tells 4,194,304 at most"):
            envs.state()
    assert not any(step.replaced or step.truncated.any() for step in taken_on(envs, 9))


def test_a_trial_leaves_out_states_that_a_process_would_not_tell() -> None:
    job = Reinforcement(Vast, method="ppo", num_envs=2, vector="async")
    told = job.problem.told_whole
    assert told.size == 0
    assert re.fullmatch(r"it may take [0-9,]+ bytes, and a process of its own tells 4,194,304 at most", told.why)
    assert job.problem.life(2) == 0


@pytest.mark.parametrize(("step_timeout", "seconds"), [(0.0, 60.0), (0.1, 20.0), (2.5, 50.0), (100.0, 60.0)])
def test_a_short_step_timeout_leaves_a_trial_time_enough(
    step_timeout: float, seconds: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    given: list[float] = []

    def told(env: Any, vector: str, longest: float) -> Telling:
        given.append(longest)
        return Telling(100, ATTRIBUTES, "")

    monkeypatch.setattr("shoal.jobs.problems.environment.state_told", told)
    job = Reinforcement("CartPole-v1", method="ppo", num_envs=2, step_timeout=step_timeout)
    assert job.problem.told_whole.size == 100
    assert given == [seconds]


def test_a_replacement_that_cannot_be_watched_is_no_loss(isolated: Make) -> None:
    envs = isolated(lambda: Windy(dies=True), 4, like=Windy)
    envs.reset(SEED)
    envs.watch(ANEW)  # only an environment with an id can be told so
    steps = taken_on(envs, 40)
    assert sum(step.replaced for step in steps) > MOST
    assert all(step.replaced == step.truncated.sum() for step in steps)
    with pytest.raises(NoStateError, match="was not watched from its reset on"):
        envs.state()


# The same trajectories


@pytest.mark.parametrize("env", ["CartPole-v1", "Pendulum-v1", "Acrobot-v1"])
def test_trajectories_are_those_of_the_actors_own_process_bit_for_bit(isolated: Make, env: str) -> None:
    count = 250  # Pendulum is cut at 200
    ours, theirs = taken(isolated(env, 3), count), taken(make_vector(env, 3, vector="sync"), count)
    assert all(same(a, b) for a, b in zip(ours, theirs, strict=True))
    assert any(step.over.any() for step in ours) or env == "Acrobot-v1"


def test_every_row_is_what_the_definition_says(isolated: Make) -> None:
    rows = rows_of(isolated(lambda: Counting([(3, "t"), (2, "c"), (1, "b"), (4, "c")]), 2), 30)
    for t, row in enumerate(itertools.islice(definition(SCRIPTS[0], "NextStep"), 30)):
        expected = (row.observation, row.final, row.reward, row.terminated, row.truncated, row.mask, row.lived)
        assert rows[t] == [expected, expected]


@pytest.mark.parametrize("mode", MODES)
def test_a_factory_of_many_makes_one_a_process_in_any_mode(isolated: Make, mode: str) -> None:
    def many(num_envs: int) -> Any:
        singles: list[Any] = [lambda: Counting([(2, "c"), (3, "t")])] * num_envs
        return SyncVectorEnv(singles, autoreset_mode=AutoresetMode(mode))

    ours = rows_of(isolated(many, 2, like=many), 20)
    assert ours == rows_of(counting([[(2, "c"), (3, "t")]] * 2, mode), 20)


def test_a_reset_forgets_what_was_under_way(isolated: Make) -> None:
    envs = isolated("CartPole-v1", 3)
    first, again, other = (taken(envs, 40, seed) for seed in (1, 1, 2))
    assert all(same(a, b) for a, b in zip(first, again, strict=True))
    assert not all(same(a, b) for a, b in zip(first, other, strict=True))


def test_a_fresh_interpreter_hatches_the_same(isolated: Make) -> None:
    hatchery = Hatchery.started("CartPole-v1")
    envs = Isolated(hatchery, 2, spaces_in("CartPole-v1"), LONG, time.monotonic)
    ours, theirs = taken(envs, 60), taken(isolated("CartPole-v1", 2), 60)
    assert all(same(a, b) for a, b in zip(ours, theirs, strict=True))
    envs.close()
    hatchery.close()


def test_pictures_and_large_observations_cross_whole(isolated: Make) -> None:
    class Picture(gymnasium.Env[Any, Any]):
        observation_space = gymnasium.spaces.Box(0, 255, (600, 800), np.uint8)  # more than a socket holds
        action_space = gymnasium.spaces.Box(-1, 1, (2, 2), np.float32)

        def reset(self, *, seed: Any = None, options: Any = None) -> Any:
            return np.full((600, 800), (seed or 0) % 256, np.uint8), {}

        def step(self, action: Any) -> Any:
            return np.full((600, 800), round(100 + action.sum()), np.uint8), float(action[1, 0]), False, False, {}

    envs = isolated(Picture, 2, like=Picture)
    assert [int(seen.min()) for seen in envs.reset(9).observation] == [9, 10]
    step = envs.step(np.array([[0, 0, 1, 0.5], [0, 0, -7, 0]], np.float32))
    assert step.observation.dtype == np.uint8
    assert [(int(seen.min()), int(seen.max())) for seen in step.observation] == [(102, 102), (99, 99)]
    assert step.reward.tolist() == [1, -1]  # clipped there


def test_processes_do_not_share_their_random_numbers(isolated: Make) -> None:
    class Dice(Counting):
        def seen(self) -> Any:
            return np.array([np.random.random(), torch.rand(()).item()], np.float32)

    envs = isolated(lambda: Dice([(9, "t")]), 3)
    first = envs.reset(0).observation
    assert len(np.unique(first)) == 6
    assert (isolated(lambda: Dice([(9, "t")]), 3).reset(0).observation == first).all()


def test_a_reset_sets_the_generators_that_a_process_shares(isolated: Make) -> None:
    class Dice(Counting):
        def seen(self) -> Any:
            return np.array([np.random.random(), torch.rand(()).item()], np.float32)

    envs = isolated(lambda: Dice([(2, "c")]), 2)
    first, again, other = (taken(envs, 7, seed) for seed in (4, 4, 5))
    assert all(same(a, b) for a, b in zip(first, again, strict=True))
    assert not any(same(a, b) for a, b in zip(first, other, strict=True))


# One is lost


def met(isolated: Make, fate: Callable[[], object], timeout: float, **more: Any) -> tuple[list[Step], list[Step]]:
    """Twenty steps of four environments of which one is trapped; and the same without a trap."""
    ours = taken(isolated(lambda: Trapped(fate, **more), 4, timeout), 20)
    return ours, taken(isolated(lambda: Trapped(lambda: None), 4), 20)


@pytest.mark.parametrize(("fate", "timeout"), [(hang, SHORT), (segfault, LONG), (leave, LONG)])
def test_the_others_lose_nothing_and_another_takes_its_place(isolated: Make, fate: Any, timeout: float) -> None:
    began = time.monotonic()
    ours, theirs = met(isolated, fate, timeout)
    assert time.monotonic() - began < LONG / 2
    lost = 6 + 3  # five steps, one that resets, and the third step of the next episode
    for t, (a, b) in enumerate(zip(ours, theirs, strict=True)):
        assert same(a, b, [i for i in range(4) if i != VICTIM])
        assert same(a, b, VICTIM) == (t < lost)
    row, *after = ours[lost:]
    assert (row.reward[VICTIM], row.terminated[VICTIM], row.truncated[VICTIM], row.lived[VICTIM]) == (0, False, True, False)
    assert row.observation[VICTIM].tolist() == [0, 0]  # the next row is a new episode's first
    assert row.mask[VICTIM]
    assert [step.observation[VICTIM].tolist() for step in after[:3]] == [[0, 1], [0, 2], [0, 3]]
    assert [step.replaced for step in ours] == [1 if t == lost else 0 for t in range(21)]


def test_one_that_hangs_in_a_reset_is_replaced_too(isolated: Make) -> None:
    ours, theirs = met(isolated, hang, SHORT, at=0)
    lost = 6
    assert [step.replaced for step in ours] == [1 if t == lost else 0 for t in range(21)]
    assert not ours[lost].lived[VICTIM]
    assert ours[lost].observation[VICTIM].tolist() == [0, 0]
    assert all(same(a, b, [0, 1, 3]) for a, b in zip(ours, theirs, strict=True))


def test_one_that_is_lost_in_the_first_reset_is_told_of(isolated: Make) -> None:
    envs = isolated(lambda: Trapped(segfault, at=0, episode=0), 4)
    step = envs.reset(SEED)
    assert step.replaced == 1
    assert not step.over.any()
    assert step.observation.tolist() == [[0, 0]] * 4


def test_two_that_are_lost_at_once_cost_one_deadline(isolated: Make) -> None:
    class Both(Trapped):
        def reset(self, *, seed: int | None = None, options: Any = None) -> Any:
            self.always = seed in (SEED, SEED + VICTIM)
            return super().reset(seed=seed)

    envs = isolated(lambda: Both(hang, at=1, episode=0), 4, SHORT)
    envs.reset(SEED)
    began = time.monotonic()
    step = envs.step(np.zeros(4, np.int64))
    assert time.monotonic() - began < 2 * SHORT
    assert step.replaced == 2
    assert step.lived.tolist() == [False, True, False, True]


def test_a_replacements_seed_follows_from_seed_environment_and_how_many_there_were(isolated: Make) -> None:
    class Told(Trapped):
        def seen(self) -> Any:
            return np.array([self.given % 2**12, self.at], np.float32)

        def reset(self, *, seed: int | None = None, options: Any = None) -> Any:
            self.given = seed or 0
            return super().reset(seed=seed)

    def seeds(base: int) -> list[Any]:
        envs = isolated(lambda: Told(leave, at=2, episode=0, always=True), 2)
        return [step.observation[:, 0].tolist() for step in taken(envs, 6, base)]

    first = seeds(1)
    assert first == seeds(1)
    assert first != seeds(2)
    lives = {seed for row in first for seed in row}
    assert len(lives) == 2 * 4  # the first ones, and a replacement at every second step


def test_one_that_is_replaced_again_and_again_is_given_up(isolated: Make) -> None:
    envs = isolated(lambda: Trapped(segfault, at=1, episode=0, always=True), 3)
    envs.reset(0)
    for _ in range(MOST):
        assert envs.step(np.zeros(3, np.int64)).replaced == 3
    with pytest.raises(
        UserError, match=f"^environment . was replaced {MOST} times in a row.*; at last it was ended by SIGSEGV$"
    ):
        envs.step(np.zeros(3, np.int64))


def test_one_that_can_never_begin_is_given_up(isolated: Make) -> None:
    with pytest.raises(UserError, match=f"was replaced {MOST} times in a row.*; at last it exited with code 3"):
        isolated(leave, 2).reset(0)


def test_good_steps_in_between_are_forgiven(isolated: Make) -> None:
    envs = isolated(lambda: Trapped(leave, at=2, episode=0, always=True), 1)
    assert sum(step.replaced for step in taken(envs, 6 * MOST)) == 3 * MOST


# Mistakes


def test_an_exception_is_raised_here_with_the_traceback_from_there(isolated: Make) -> None:
    envs = isolated(lambda: Trapped(stumble), 4)
    before = len(psutil.Process().children(recursive=True))
    with pytest.raises(EnvError, match=rf"^ValueError: the floor is wet {PLACE}\n") as raised:
        taken(envs, 20)
    [note] = raised.value.__notes__
    assert f"In the process of environment {VICTIM}:" in note
    assert "in stumble" in note
    assert len(psutil.Process().children(recursive=True)) == before  # its own four were not there yet, and are gone


def test_an_exception_fails_the_task_as_one_in_the_actors_own_process_does(isolated: Make) -> None:
    worker = Rollout(lambda n: isolated(lambda: Trapped(stumble, always=True), n), Still(), 32, 2, seed=0)
    failed = perform(lambda: worker, Run(TRAIN, 0, 0, False), NOTHING, 0.0, time.monotonic).message
    assert isinstance(failed, Failed)
    assert re.fullmatch(rf"EnvError: ValueError: the floor is wet {PLACE}", failed.error)
    assert "in stumble" in failed.traceback


@pytest.mark.parametrize(
    ("env", "said"),
    [
        (lambda: 3, "made an object of type int, not a gymnasium.Env"),
        (lambda num_envs: Counting([(3, "t")]), "not a gymnasium VectorEnv of 1"),
        (lambda: Counting([(3, "t")], gymnasium.spaces.Discrete(3)), "environment . has other observations or actions"),
    ],
)
def test_a_wrong_environment_is_one_line(isolated: Make, env: Any, said: str) -> None:
    with pytest.raises(UserError, match=said) as error:
        isolated(env, 2).reset(0)
    assert "\n" not in str(error.value)


def test_numbers_below_one_are_refused(isolated: Make) -> None:
    with pytest.raises(UserError, match="num_envs=0: must be a number from 1"):
        isolated("CartPole-v1", 0)


def test_one_that_raises_may_be_replaced_like_one_that_dies(isolated: Make, capfd: Any) -> None:
    ours = taken(isolated(lambda: Trapped(stumble), 4, math.inf, replaces=True), 20)
    died = taken(isolated(lambda: Trapped(leave), 4), 20)
    assert all(same(a, b) for a, b in zip(ours, died, strict=True))
    assert [step.replaced for step in ours] == [step.replaced for step in died]
    said = rf"shoal: environment 2 raised ValueError: the floor is wet {PLACE} and is replaced; env_replaced counts these"
    assert len(re.findall(said, capfd.readouterr().err)) == 1


def test_one_that_raises_at_once_again_and_again_is_given_up_with_its_exception(isolated: Make) -> None:
    envs = isolated(lambda: Trapped(stumble, at=1, episode=0, always=True), 2, replaces=True)
    envs.reset(0)
    with pytest.raises(UserError, match=f"replaced {MOST} times in a row .*; at last it raised ValueError: the floor is wet"):
        taken(envs, MOST + 1)


@pytest.mark.parametrize(
    ("settings", "apart"),
    [({}, False), ({"vector": "async"}, True), ({"on_env_error": "replace"}, True), ({"step_timeout": 3}, True)],
)
def test_settings_say_whether_environments_have_processes_of_their_own(settings: Any, apart: bool) -> None:
    job = Reinforcement("Acrobot-v1", **settings)
    job.prepare()
    worlds = job.problem.worlds()(2)  # type: ignore[attr-defined]
    assert isinstance(worlds, Isolated) == apart
    rows, theirs = taken(worlds, 5), taken(make_vector("Acrobot-v1", 2, "sync"), 5)
    assert all(same(a, b) for a, b in zip(rows, theirs, strict=True))
    worlds.close()
    job.problem.close()


@pytest.mark.parametrize(
    ("env", "settings", "said"),
    [
        ("CartPole-v1", {"vector": "native", "step_timeout": 3}, "vector=native: step_timeout gives each environment"),
        ("CartPole-v1", {"vector": "sync", "on_env_error": "replace"}, "vector=sync: on_env_error=replace gives"),
        (lambda: Counting([(3, "t")]), {"vector": "native"}, "vector=native: only an id"),
    ],
)
def test_settings_that_contradict_each_other_are_refused(env: Any, settings: Any, said: str) -> None:
    with pytest.raises(UserError, match=said):
        Reinforcement(env, **settings)


# In a rollout


def lost_in(isolated: Make, rollout_length: int) -> Rollout:
    """Three environments in processes of their own, of which one dies in step 4 of its first episode."""
    envs = lambda n: isolated(lambda: Trapped(segfault, at=4, episode=0), n)  # noqa: E731
    return Rollout(envs, Still(), rollout_length, 3, seed=0)


@pytest.fixture
def seeded(monkeypatch: pytest.MonkeyPatch) -> None:
    """A rollout's environments are seeded so that the trap of one is set."""
    monkeypatch.setattr("shoal.actors.workers.rollout.key", lambda *_: SEED)


@pytest.mark.usefixtures("seeded")
def test_the_row_of_a_lost_step_is_masked_and_its_episode_is_not_told_of(isolated: Make) -> None:
    work = lost_in(isolated, 12).run(NOTHING, 0, TRAIN)
    assert work.bundle is not None
    mask, observation = work.bundle["mask"][:, VICTIM], work.bundle["observation"][:, VICTIM]
    assert mask.tolist() == [True] * 3 + [False] + [True] * 5 + [False] + [True] * 2
    assert observation[:6].tolist() == [[0, 0], [0, 1], [0, 2], [0, 3], [0, 0], [0, 1]]
    assert (work.steps, work.totals) == (36 - 5 - 1, {"env_replaced": (1.0, 1.0)})  # five that reset, one that never was
    assert sorted(work.samples["length"]) == [4, 4, 5, 5, 5]
    assert work.weight == np.count_nonzero(work.bundle["mask"])


@pytest.mark.usefixtures("seeded")
def test_the_row_before_bootstraps_from_the_last_observation_as_after_a_truncation(isolated: Make) -> None:
    bundle = lost_in(isolated, 9).run(NOTHING, 0, TRAIN).bundle
    cut = (
        Rollout(lambda n: counting([[(3, "c"), (5, "t")]] * n, "NextStep"), Still(), 9, 3, seed=0).run(NOTHING, 0, TRAIN).bundle
    )
    assert bundle is not None
    assert cut is not None
    value = torch.linspace(1, 2, 10)
    targets = []
    for one in (bundle, cut):
        reward, mask, over = (torch.from_numpy(one[name][:4, VICTIM].copy()) for name in ("reward", "mask", "terminated"))
        told = vtrace(torch.ones(4), reward, 0.9 * ~over, value[:4], value[4], mask)
        targets.append((told.value.tolist(), told.advantage.tolist()))
    assert targets[0] == targets[1]


@pytest.mark.usefixtures("seeded")
@pytest.mark.parametrize("rollout_length", [1, 4])
def test_a_loss_at_the_edge_of_a_rollout_is_told_of_once(isolated: Make, rollout_length: int) -> None:
    worker = lost_in(isolated, rollout_length)
    works = [worker.run(NOTHING, 0, TRAIN) for _ in range(12 // rollout_length)]
    assert [work.totals.get("env_replaced") for work in works].count((1.0, 1.0)) == 1
    assert sorted(length for work in works for length in work.samples["length"]) == [4, 4, 5, 5, 5]


@pytest.mark.usefixtures("seeded")
def test_an_evaluation_counts_whole_episodes_alone(isolated: Make) -> None:
    worker = Rollout(
        lambda n: isolated(lambda: Trapped(segfault, at=2), n), Still(), 4, 3, seed=0, episodes=6
    )  # fmt: skip
    work = worker.run(NOTHING, 0, EVALUATE)
    assert sorted(work.samples["length"]) == [4, 4, 5, 5, 5, 5]  # the victim's second one is its replacement's first
    assert work.totals == {"env_replaced": (1.0, 1.0)}
    assert worker.run(NOTHING, 0, EVALUATE).samples == work.samples


def test_an_evaluation_that_never_finishes_an_episode_is_given_up(isolated: Make) -> None:
    worker = Rollout(lambda n: isolated(lambda: Trapped(leave, episode=0, always=True), n), Still(), 4, 1, seed=0, episodes=1)
    with pytest.raises(UserError, match=f"lost {MOST_LOST + 1} evaluation episodes in a row"):
        worker.run(NOTHING, 0, EVALUATE)


# Processes


def family() -> set[psutil.Process]:
    return set(psutil.Process().children(recursive=True))


def until_ended(processes: set[psutil.Process]) -> None:
    gives_up_at = time.monotonic() + LONG
    while any(map(lives, processes)):
        assert time.monotonic() < gives_up_at
        time.sleep(0.01)


def test_closing_lets_environments_close_and_leaves_no_process(isolated: Make, tmp_path: Any) -> None:
    class Closing(Counting):
        def close(self) -> None:
            (tmp_path / str(os.getpid())).touch()

    before = family()
    envs = isolated(lambda: Closing([(9, "t")]), 3)
    envs.reset(0)
    ours = {process.pid for process in family() - before}
    envs.close()
    assert len(family() - before) == 1  # the hatchery
    assert len({int(path.name) for path in tmp_path.iterdir()} & ours) == 3


def test_letting_go_is_as_good_as_closing(isolated: Make) -> None:
    before = family()
    hatchery = Hatchery.forked("CartPole-v1")
    envs = Isolated(hatchery, 2, spaces_in("CartPole-v1"), LONG, time.monotonic)
    envs.reset(0)
    mine = family() - before
    assert len(mine) == 3
    del envs, hatchery
    until_ended(mine)


def test_what_an_environment_started_ends_with_it(isolated: Make) -> None:
    class Game(Counting):
        def reset(self, *, seed: Any = None, options: Any = None) -> Any:
            self.game = subprocess.Popen(["sleep", "1000"])
            return super().reset(seed=seed)

        def step(self, action: Any) -> Any:
            hang()

    before = family()
    envs = isolated(lambda: Game([(9, "t")]), 1, SHORT)
    envs.reset(0)
    [game] = [process for process in family() - before if process.name() == "sleep"]
    assert envs.step(np.zeros(1, np.int64)).replaced == 1
    until_ended({game})


def test_a_hatchery_that_is_gone_takes_its_environments_along_and_is_named(isolated: Make) -> None:
    before = family()
    envs = isolated("CartPole-v1", 2)
    hatchery = next(iter(family() - before))
    envs.reset(0)
    mine = family() - before
    hatchery.kill()
    until_ended(mine - {hatchery})
    with pytest.raises(UserError, match="at last it has no hatchery any more"):
        envs.step(np.zeros(2, np.int64))


def test_many_hands_may_ask_one_hatchery(isolated: Make) -> None:
    hatchery, ends = Hatchery.forked("CartPole-v1"), []

    def live() -> None:
        envs = Isolated(hatchery, 3, spaces_in("CartPole-v1"), LONG, time.monotonic)
        ends.append(taken(envs, 30)[-1])
        envs.close()

    threads = [threading.Thread(target=live) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(LONG)
    assert len(ends) == 4
    assert all(same(ends[0], end) for end in ends)
    hatchery.close()
