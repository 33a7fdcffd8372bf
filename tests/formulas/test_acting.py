"""The door by which a policy acts: the rows that it adds, the state that it keeps, the words that it hears."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
from counting import counting
from torch import nn

from shoal.actors.workers.rollout import Rollout
from shoal.coordinator.deciding.plans import Seats, wakes
from shoal.coordinator.deciding.plans.stream import Stream
from shoal.coordinator.deciding.plans.worded import Worded
from shoal.envs.making import make_vector
from shoal.envs.spaces import Actions, Discrete, Kept
from shoal.jobs.methods.impala import IMPALA
from shoal.jobs.problems import Environment
from shoal.jobs.reinforcement import Reinforcement
from shoal.nets.acting import Acted, Stochastic, begun, forgotten
from shoal.nets.networks import ACTOR_CRITIC
from shoal.protocol.errors import UserError
from shoal.protocol.layout import Bundle
from shoal.protocol.work import Task

MODES = ["NextStep", "SameStep", "Disabled"]
SCRIPTS = [[(3, "t"), (2, "c"), (1, "b"), (4, "c")], [(1, "c"), (1, "c"), (1, "t"), (2, "b")], [(5, "t")]]
NOTHING = Bundle.pack({})
AGE: Kept = {"age": ("i8", ())}


class Aged(Stochastic):
    """A policy that counts the observations of an episode, and writes down the count before each."""

    rows: ClassVar[Kept] = {"age": ("i4", ())}

    def __init__(self, action: Actions, memory: Kept = AGE) -> None:
        super().__init__(action, memory)

    def load(self, weights: Bundle) -> None: ...

    def forget(self) -> None: ...

    def act(self, seen: Any, first: Any, state: Any, noise: Any, words: Any) -> Acted:
        age = forgotten(state, first)["age"]
        return Acted(np.zeros(len(seen), np.int64), {"age": age}, {"age": age + 1})

    def finish(self, extras: Any, action: Any) -> Any:
        return extras


@pytest.mark.parametrize("rollout_length", [1, 2, 3, 7])
@pytest.mark.parametrize("mode", MODES)
def test_a_state_begins_anew_where_an_episode_does_and_goes_on_over_rollouts(mode: str, rollout_length: int) -> None:
    worker = Rollout(lambda n: counting(SCRIPTS[:n], mode), Aged(Discrete(2)), rollout_length, len(SCRIPTS), seed=0)
    for _ in range(42 // rollout_length):
        got = worker.run(NOTHING, 5, Task(0, 0, (0,))).bundle
        assert got is not None
        at = got["observation"][..., 1]  # number of the observation in its episode
        np.testing.assert_array_equal(got["first"], at == 0)
        np.testing.assert_array_equal(got["age"], at[:-1])
        before = np.where(got["first"][0], 0, got["state/age"])
        np.testing.assert_array_equal(before, at[0])
    worker.close()


def test_an_evaluation_keeps_the_state_within_an_episode() -> None:
    class Watched(Aged):
        ages: ClassVar[list[list[int]]] = []

        def act(self, seen: Any, first: Any, state: Any, noise: Any, words: Any) -> Acted:
            assert noise is None
            acted = super().act(seen, first, state, noise, words)
            self.ages.append([seen[:, 1].tolist(), acted.extras["age"].tolist()])
            return acted

    worker = Rollout(lambda n: counting(SCRIPTS[:n], "NextStep"), Watched(Discrete(2)), 4, 3, seed=0, episodes=9)
    worker.run(NOTHING, 0, Task(0, 0, (0,), "evaluate"))
    assert len(Watched.ages) > 9
    assert all(at == age for at, age in Watched.ages)


def test_a_rollout_that_is_cut_short_keeps_the_state_of_its_last_step() -> None:
    clock = iter(range(10**6))
    worker = Rollout(
        lambda n: counting([[(50, "t")]] * n, "NextStep"), Aged(Discrete(2)), 8, 2, 0, seconds=3, clock=lambda: next(clock)
    )
    first, second = (worker.run(NOTHING, 0, Task(0, 0, (0,))) for _ in range(2))
    assert first.bundle is not None
    assert second.bundle is not None
    rows = first.steps // 2
    assert 0 < rows < 8
    assert first.bundle["age"][:, 0].tolist() == [*range(rows), *[0] * (8 - rows)]
    assert second.bundle["state/age"].tolist() == [rows, rows]


class Wordy(Aged):
    """A policy without memory and with one row, the task's epsilon and the rollout's noise added up."""

    rows: ClassVar[Kept] = {"sum": ("f8", (1,))}

    def __init__(self, action: Actions) -> None:
        super().__init__(action, {})

    def noise(self, rng: Any, rows: int, num_envs: int) -> Any:
        return np.arange(rows * num_envs, dtype=np.float64).reshape(rows, num_envs, 1)

    def act(self, seen: Any, first: Any, state: Any, noise: Any, words: Any) -> Acted:
        assert state == {}
        return Acted(np.zeros(len(seen), np.int64), {"sum": noise + words["epsilon"]}, state)


def test_a_policy_hears_its_noise_and_the_tasks_words_and_adds_its_own_rows() -> None:
    worker = Rollout(lambda n: counting(SCRIPTS[:n], "SameStep"), Wordy(Discrete(2)), 4, 2, seed=0)
    got = worker.run(NOTHING, 0, Task(0, 0, (0,), words={"epsilon": 0.5})).bundle
    assert got is not None
    np.testing.assert_array_equal(got["sum"][..., 0], np.arange(8).reshape(4, 2) + 0.5)
    assert not {"log_prob", "first"} & {name for name, _ in got.items()}


def test_a_plans_tasks_have_words_that_follow_from_the_task() -> None:
    plan = Worded(Stream(batch=2, max_lag=3, clients=9), lambda task: {"epsilon": 1 / (1 + task.index)})
    tasks = plan.assign(Seats(3), (), 0, 0.0)
    assert [task.words for task in tasks] == [{"visit": i, "epsilon": 1 / (1 + i)} for i in range(3)]
    assert (plan.admits(0, 3), plan.admits(0, 4)) == (True, False)
    assert (plan.enough(1, 5, 0, 0.0), plan.enough(2, 5, 0, 0.0)) == (False, True)
    assert wakes(plan, 0, 0.0) == np.inf


def test_forgetting_replaces_numbers_that_are_none() -> None:
    state = {"h": np.array([[np.nan, 1], [2, np.inf]], np.float32), "n": np.array([3, 4])}
    assert forgotten(state, np.array([False, False])) is state
    after = forgotten(state, np.array([True, True]))
    assert [(a.dtype.str[1:], a.tolist()) for a in after.values()] == [("f4", [[0, 0], [0, 0]]), ("i8", [0, 0])]
    assert begun({"h": ("f4", (2,))}, 3)["h"].shape == (3, 2)


class Q(nn.Module):
    def __init__(self, spaces: Any) -> None:
        super().__init__()
        self.q = nn.Linear(spaces.observation.size, spaces.action.n)

    def forward(self, observation: torch.Tensor) -> torch.Tensor:
        out: torch.Tensor = self.q(observation)
        return out


@dataclass(frozen=True)
class QNetwork:
    """A kind of network whose forward gives the values of actions."""

    remembers: bool = False

    def build(self, spaces: Any, form: Any, seed: int) -> nn.Module:
        torch.manual_seed(seed)
        return Q(spaces)

    def fitting(self, module: nn.Module, spaces: Any) -> nn.Module:
        if not isinstance(module(torch.zeros(1, *spaces.observation.shape)), torch.Tensor):
            raise UserError("policy: expected a Q-network: values [N, n]")
        return module

    def policy(self, spaces: Any, form: Any, module: nn.Module | None) -> Wordy:
        return Wordy(spaces.action)


@dataclass(frozen=True)
class OfValues(IMPALA):
    name: ClassVar[str] = "of_values"
    network: ClassVar[Any] = QNetwork()


def test_a_method_says_which_network_it_learns_and_how_actors_play_it() -> None:
    job = Reinforcement("CartPole-v1", method=OfValues, rollout_length=4, num_envs=2)
    assert isinstance(job.module(), Q)
    assert {name for name, _ in job.problem.first(0)[0].items()} == {"q.weight", "q.bias"}
    layout = job.layouts(job.problem.first(0)[0].layout)[-1]
    assert {place.name: (place.dtype, place.shape) for place in layout.places}["sum"] == ("f8", (4, 2, 1))
    assert isinstance(job.problem, Environment)
    assert isinstance(job.problem.acts(0), Wordy)
    other = job.configured({"method": "ppo"})
    assert isinstance(other.problem, Environment)
    assert isinstance(other.problem.learns, type(ACTOR_CRITIC))
    assert "log_prob" in {place.name for place in other.layouts(other.problem.first(0)[0].layout)[0].places}


def test_a_policy_of_another_kind_is_refused_in_one_line_by_either_method() -> None:
    for method, policy, said in (
        (
            "ppo",
            Q,
            r"^policy: forward gave \[1, 2\] for 1 observations; expected \(logits .*: an actor-critic \(a Q-network.*\)$",
        ),
        (OfValues, partial(ACTOR_CRITIC.build, form=Environment("CartPole-v1").form, seed=0), "expected a Q-network"),
    ):
        with pytest.raises(UserError, match=said) as told:
            Reinforcement("CartPole-v1", policy, method=method).check_parts()
        assert "\n" not in str(told.value)
    with pytest.raises(UserError, match="memory=gru: the job's method learns without memory"):
        Reinforcement("CartPole-v1", method=OfValues, memory="gru")


def test_the_built_in_policy_draws_what_its_distribution_draws() -> None:
    policy, rng = Stochastic(Discrete(3)), np.random.default_rng(0)
    numbers = rng.normal(size=(5, 3)).astype(np.float32)
    policy.numbers = lambda seen, state: (numbers, state)  # type: ignore[method-assign]
    noise = policy.noise(rng, 4, 5)
    acted = policy.act(numbers, np.ones(5, bool), {}, noise[2], {})
    np.testing.assert_array_equal(acted.action, (numbers + noise[2]).argmax(1))
    rows = policy.finish({"numbers": numbers[None]}, acted.action[None])
    np.testing.assert_array_equal(rows["log_prob"][0], Discrete(3).log_prob(numbers, acted.action))
    assert policy.act(numbers, np.ones(5, bool), {}, None, {}).action.tolist() == numbers.argmax(1).tolist()
    assert make_vector("CartPole-v1", 2).reset(0).first.all()
