"""The state of environments as plain values: told and loaded, an episode goes on to the bit; what cannot be told is refused."""

from __future__ import annotations

import random
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import Any, ClassVar

import gymnasium
import numpy as np
import pytest
from gymnasium import spaces as gym

from shoal.actors.workers import lives
from shoal.actors.workers.rollout import Rollout
from shoal.aggregators.around.lives import Lives
from shoal.envs.lasting import state_told
from shoal.envs.logged import ACTIONS, ATTRIBUTES
from shoal.envs.making import Recipe, make_vector
from shoal.envs.states import NoStateError, Watched
from shoal.jobs.reinforcement import Reinforcement
from shoal.protocol.layout import Bundle
from shoal.protocol.work import Contribution, Moved, Task, Work


class Mood(Enum):
    CALM, WILD = 1, 2


class Purse:
    def __init__(self) -> None:
        self.coins, self.owner = [0], None
        self.dice = random.Random(1)


class Many(gymnasium.Env[Any, Any]):
    """An environment with an attribute of every kind that a state tells."""

    observation_space = gym.Box(-np.inf, np.inf, (3,), np.float64)
    action_space = gym.Discrete(2)

    def __init__(self) -> None:
        self.purse, self.mood, self.seen = Purse(), Mood.CALM, deque(maxlen=3)
        self.purse.owner = self  # type: ignore[assignment]
        self.drift, self.old = np.random.normal(), np.random.RandomState(3)
        self.table: dict[str, Any] = {"a": (1, None), "b": {2: [b"x", 2**80]}}

    def reset(self, *, seed: int | None = None, options: Any = None) -> Any:
        super().reset(seed=seed)
        self.grid, self.t = self.np_random.normal(size=(40, 40)), np.int16(0)
        self.mood, self.table["b"][2] = Mood.CALM, [b"x", 2**80]
        return self.look(), {}

    def look(self) -> Any:
        return np.array([self.grid.sum(), self.drift, sum(self.seen) + self.purse.coins[-1]])

    def step(self, action: Any) -> Any:
        self.t += np.int16(1)
        self.mood = Mood.WILD if self.t % 3 else Mood.CALM
        self.grid[self.t % 40] += self.old.normal() + self.mood.value
        self.seen.append(float(self.np_random.normal()))
        self.purse.coins = [*self.purse.coins[-4:], self.purse.dice.randrange(9)]
        self.table["b"][2].append(int(action))
        return self.look(), float(self.grid[0, 0] + len(self.table["b"][2])), self.t > 9, False, {}


class Hidden(Many):
    """What comes is in an iterator, which no attribute tells."""

    def __init__(self) -> None:
        super().__init__()
        self.coming: Iterator[int] = iter(range(10**6))


class Drawn(Hidden):
    """Draws from a global generator, so that no episode can be played again."""

    def step(self, action: Any) -> Any:
        seen, *rest = super().step(action)
        return seen + np.random.normal(), *rest


class Beyond(Many):
    """What comes is nowhere in the attributes."""

    came: ClassVar[list[int]] = [0]

    def step(self, action: Any) -> Any:
        self.came[0] += 1
        seen, _, *rest = super().step(action)
        return seen, float(self.came[0]), *rest


class Saving(Hidden):
    def save_state(self) -> Any:
        self.at = next(self.coming)
        return {"at": self.at, "rng": str(self.np_random.bit_generator.state), "grid": self.grid}

    def load_state(self, state: Any) -> None:
        raise NotImplementedError


class Told(gymnasium.Env[Any, Any]):
    """What comes is in an iterator, and the environment itself tells how far it is."""

    observation_space, action_space = gym.Box(-np.inf, np.inf, (1,), np.float64), gym.Discrete(2)

    def reset(self, *, seed: int | None = None, options: Any = None) -> Any:
        super().reset(seed=seed)
        self.coming, self.at = iter(range(100)), 0
        return np.zeros(1), {}

    def step(self, action: Any) -> Any:
        self.at = next(self.coming)
        return np.array([self.at + self.np_random.normal()]), float(self.at), self.at > 7, False, {}

    def save_state(self) -> Any:
        return {"at": self.at, "drawn": self.np_random.bit_generator.state}

    def load_state(self, state: Any) -> None:
        self.at, self.coming = state["at"], iter(range(state["at"] + 1, 100))
        self.np_random.bit_generator.state = state["drawn"]


@dataclass(slots=True)
class Slotted:
    number: int = 0


@pytest.mark.parametrize(
    ("env", "vector"),
    [
        ("CartPole-v1", "auto"),
        ("CartPole-v1", "sync"),
        ("Acrobot-v1", "auto"),
        ("Pendulum-v1", "auto"),
        ("MountainCarContinuous-v0", "auto"),
        ("Blackjack-v1", "auto"),
        ("HalfCheetah-v5", "auto"),
        ("Ant-v5", "auto"),
        (Many, "auto"),
        (Told, "auto"),
    ],
)
def test_environments_whose_attributes_tell_all_have_a_state(
    env: Any, vector: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)  # MuJoCo writes its warnings here
    if env in ("HalfCheetah-v5", "Ant-v5"):
        pytest.importorskip("mujoco")
    size, way, why = state_told(env, vector)
    assert (size > 0, way, why) == (True, ATTRIBUTES, "")


@pytest.mark.parametrize(
    ("env", "why"),
    [(Drawn, "Drawn.coming is builtins.range_iterator"), (Beyond, "with the state of one, another did not do the same")],
)
def test_what_neither_attributes_nor_actions_tell_has_no_state(env: Any, why: str) -> None:
    told = state_told(env, "auto")
    assert (told.size, told.why) == (0, f"{why}; an episode that was played again did not show what it had shown")


@pytest.mark.parametrize("env", [Hidden, "Taxi-v4", Saving])
def test_what_attributes_do_not_tell_is_told_by_actions(env: Any) -> None:
    told = state_told(env, "auto")
    assert (told.size > 0, told.way, told.why) == (True, ACTIONS, "")


@pytest.mark.parametrize(
    ("value", "why"),
    [
        (Slotted(), "Slotted"),
        (type("Own", (list,), {})([1]), "Own"),
        ([Purse()], "holds objects"),
        ({(1, 2): 3}, "dict"),
        (np.zeros(2, "O"), "ndarray"),
    ],
)
def test_an_attribute_of_another_kind_is_named(value: Any, why: str) -> None:
    env = Many()
    env.reset(seed=0)
    env.table = {}
    env.extra = value  # type: ignore[attr-defined]
    with pytest.raises(NoStateError, match=rf"Many\.extra.*{why}"):
        Watched(env).state()


class Counted(gymnasium.vector.VectorEnv[Any, Any, Any]):
    """Two environments that count their games, which `games` alone tells: a number, or an array of numbers."""

    metadata: ClassVar[dict[str, Any]] = {"autoreset_mode": gymnasium.vector.AutoresetMode.SAME_STEP}
    num_envs = 2
    single_observation_space = observation_space = gym.Box(-np.inf, np.inf, (1,), np.float64)
    single_action_space, action_space = gym.Discrete(2), gym.MultiDiscrete([2, 2])

    def __init__(self, games: Any) -> None:
        self.observation_space = gym.Box(-np.inf, np.inf, (2, 1), np.float64)
        self.games = games

    def reset(self, *, seed: Any = None, options: Any = None) -> Any:
        return self._seen(), {}

    def step(self, actions: Any) -> Any:
        self.games = self.games + 1
        return self._seen(), np.ones(2), np.zeros(2, bool), np.zeros(2, bool), {}

    def _seen(self) -> Any:
        return np.broadcast_to(np.asarray(self.games, np.float64), (2,)).reshape(2, 1).copy()


@pytest.mark.parametrize("games", [0, np.zeros(2)])
def test_an_attribute_of_a_users_own_may_be_named_games(games: Any) -> None:
    told = state_told(lambda num_envs: Counted(games), "auto")
    assert (told.why, told.way) == ("", ATTRIBUTES)


def test_two_attributes_that_are_one_array_are_refused() -> None:
    env = Many()
    env.reset(seed=0)
    env.copy = env.grid  # type: ignore[attr-defined]
    with pytest.raises(NoStateError, match=r"Many\.copy is held by two attributes"):
        Watched(env).state()


def test_a_state_under_other_arguments_does_not_fit() -> None:
    envs = [make_vector(Recipe("Pendulum-v1", {"g": g}), 2) for g in (9.0, 9.0, 8.0)]
    for each in envs:
        each.reset(0)
        each.watch()
    envs[1].restore(envs[0].state())
    with pytest.raises(NoStateError, match=r"they were made with env.g=9.0, and now with env.g=8.0"):
        envs[2].restore(envs[0].state())


def played(rollouts: list[Rollout], weights: list[Bundle], briefs: bool) -> list[Bundle]:
    """The trajectories of a client, each made by the next of the workers, which hears how the one before ended."""
    seen: list[Bundle] = []
    for version, each in enumerate(weights):
        worker = rollouts[version % len(rollouts)]
        told = {"brief": Bundle(lives.layout(worker.life), seen[-1]["life"].copy())} if briefs and seen else {}
        bundle = worker.run(each, 3, Task(version, 0, (3,)), **told).bundle
        assert bundle is not None
        seen.append(bundle.copy())
    return seen


@pytest.mark.parametrize("memory", ["none", "lstm"])
def test_a_client_that_changes_its_actor_goes_on_to_the_bit(memory: str) -> None:
    job = Reinforcement("CartPole-v1", method="ppo", num_envs=6, memory=memory, hidden=(8,))
    weights = [job.problem.first(seed)[0] for seed in range(7)]

    def worker() -> Rollout:
        made = job.worker()
        assert isinstance(made, Rollout)
        assert made.life > 0
        return made

    whole = played([worker()], weights, briefs=True)
    moved = played([worker(), worker(), worker()], weights, briefs=True)
    assert [one.sha256() for one in moved] == [one.sha256() for one in whole]
    fresh = played([worker()], weights, briefs=False)  # without a brief each task begins anew
    assert fresh[0].sha256() == whole[0].sha256()
    assert all(one.sha256() != other.sha256() for one, other in zip(fresh[1:], whole[1:], strict=True))


def test_what_a_client_is_told_changes_in_the_step_alone() -> None:
    class Learner:
        linear, folded = False, 0

        def weights(self) -> Bundle:
            return Bundle.pack({"w": np.zeros(1, np.float32)})

        def fold(self, contribution: Contribution) -> None:
            self.folded += 1

        def step(self) -> Moved:
            return Moved({})

        def state(self) -> dict[str, Any]:
            return {"own": np.ones(2)}

        def load(self, weights: Bundle, state: Any) -> None:
            assert list(state) == ["own"]

    around = Lives(Learner(), 32)
    task, layout = Task(0, 0, (5,)), lives.layout(32)

    def bring(number: int) -> None:
        bundle = Bundle(layout, np.full(32, number, np.uint8))
        around.fold(Contribution(task, 0, 0, Work(bundle, 1.0), False))

    bring(1)
    assert around.brief(task) is None
    around.step()
    bring(2)
    assert around.brief(task)["life"][0] == 1  # type: ignore[index]
    again = Lives(Learner(), 32)
    again.load(around.weights(), around.state())
    assert again.brief(task)["life"].tolist() == [1] * 32  # type: ignore[index]
    assert again.brief(Task(0, 0, (5,), "evaluate", counts=False)) is None
    other = Lives(Learner(), 64)  # of other settings: environments begin anew
    other.load(around.weights(), around.state())
    assert other.brief(task) is None
    bring(3)
    around.load(around.weights(), around.state())
    around.step()
    assert around.brief(task)["life"][0] == 1  # type: ignore[index]


def of_stream(now: list[float]) -> tuple[Any, Rollout]:
    job = Reinforcement("CartPole-v1", method="impala", num_envs=6, hidden=(8,), tune_envs=False)
    made = job.worker()
    assert isinstance(made, Rollout)
    made.clock = lambda: now[0]
    return job, made


def rolled(worker: Rollout, weights: Bundle, brief: Bundle | None = None) -> Bundle:
    bundle = worker.run(weights, 2, Task(0, 0, (2,)), brief).bundle
    assert bundle is not None
    return bundle.copy()


def same(one: Bundle, other: Bundle) -> bool:
    return all(np.array_equal(one[name], other[name]) for name in one.layout.by_name if name != "life")


def test_in_a_stream_a_trajectory_a_second_tells_what_another_actor_goes_on_from() -> None:
    now = [100.0]
    job, worker = of_stream(now)
    weights, layouts = job.problem.first(0)[0], {each.digest for each in job.layouts(job.problem.first(0)[0].layout)}
    told = []
    for at in (100.0, 100.9, 101.0, 101.5):
        now[0] = at
        told.append(rolled(worker, weights))
    assert ["life" in each.layout.by_name for each in told] == [True, False, True, False]
    assert {each.layout.digest for each in told} == layouts
    other = of_stream(now)[1]
    assert same(rolled(other, weights, Bundle(lives.layout(other.life), told[2]["life"])), told[3])


def test_in_a_stream_an_actor_s_own_environments_go_on_unless_a_brief_tells_later_ones() -> None:
    now = [0.0]
    job, one = of_stream(now)
    weights, untouched, other = job.problem.first(0)[0], of_stream(now)[1], of_stream(now)[1]

    def brief(bundle: Bundle) -> Bundle:
        return Bundle(lives.layout(one.life), bundle["life"])

    old = brief(rolled(one, weights))
    rolled(untouched, weights)
    assert same(rolled(one, weights, old), rolled(untouched, weights))  # the brief tells where it has been
    rolled(other, weights, old)
    for _ in range(2):
        now[0] += 1
        late = rolled(other, weights)
    assert same(rolled(one, weights, brief(late)), rolled(other, weights))  # another actor has played on meanwhile
    untold = Bundle.zeros(lives.layout(one.life))
    assert same(rolled(of_stream(now)[1], weights, untold), rolled(of_stream(now)[1], weights))


def test_a_learner_sees_trajectories_of_one_layout_whether_they_tell_a_life_or_not() -> None:
    now = [0.0]
    job, worker = of_stream(now)
    learner, weights, again = job.aggregator("cpu"), job.problem.first(0)[0], job.aggregator("cpu")
    for index in range(4):
        bundle = rolled(worker, weights)
        for each, work in ((learner, bundle), (again, without(bundle))):
            each.fold(Contribution(Task(0, index, (2,)), 0, 0, Work(work, 1.0)))
        if index % 2:
            learner.step()
            again.step()
    assert learner.weights().sha256() == again.weights().sha256() != weights.sha256()
    assert learner.brief(Task(2, 9, (2,))) is not None
    assert again.brief(Task(2, 9, (2,))) is None


def test_a_stream_that_is_resumed_says_why_environments_begin_anew() -> None:
    told, drawn = (Reinforcement(env, method="impala", num_envs=2, tune_envs=False) for env in ("CartPole-v1", Drawn))
    assert told.method.going_on(told.problem, 3) == ()
    (says,) = drawn.method.going_on(drawn.problem, 3)
    assert says.startswith(
        "environments begin new episodes: their state cannot be kept (Drawn.coming is builtins.range_iterator"
    )


def test_in_a_stream_environments_that_end_their_actor_s_process_soon_again_begin_anew() -> None:
    now = [0.0]
    job, worker = of_stream(now)
    learner, weights, task = job.aggregator("cpu"), job.problem.first(0)[0], Task(1, 0, (2,))

    def told(many: int) -> None:
        for _ in range(many):
            now[0] += 1
            learner.fold(Contribution(Task(0, 0, (2,)), 0, 0, Work(rolled(worker, weights), 1.0)))
            learner.step()

    told(1)
    assert learner.brief(task) is not None
    assert learner.brief(task) is not None  # of another task that goes out with the first
    told(2)
    assert [learner.brief(task), learner.brief(task)] == [None, None]
    told(1)
    assert learner.brief(task) is not None
    told(3)
    assert all(learner.brief(task) is not None for _ in range(8))
    assert learner.brief(task) is None  # it ended each process before it told anything


def without(bundle: Bundle) -> Bundle:
    return Bundle.pack({name: array for name, array in bundle.items() if name != "life"})


def test_a_state_that_does_not_fit_in_is_left_out_and_said() -> None:
    into = np.ones(128, np.uint8)
    assert "were expected" in lives.tell(into, 3, 4, lambda: {"a": bytes(1000)})
    told = lives.heard(Bundle(lives.layout(128), into))
    assert (told.born, told.rollouts, told.state()) == (3, 4, None)
    assert lives.tell(into, 3, 5, lambda: {"a": 1}) == ""
    assert lives.heard(Bundle(lives.layout(128), into)).state() == {"a": 1}
