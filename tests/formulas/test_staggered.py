"""First episodes that are cut short, so that episodes of one length do not all end together."""

from __future__ import annotations

from functools import partial
from typing import Any

import gymnasium
import numpy as np
import pytest
from counting import Counting
from gymnasium.wrappers import TimeLimit

from shoal.actors.workers.rollout import Rollout
from shoal.envs.making import make_vector
from shoal.envs.single import time_limit
from shoal.envs.spaces import Discrete
from shoal.envs.vector import Envs
from shoal.nets.flat import FlatModule
from shoal.nets.numpy_policy import NumpyPolicy
from shoal.nets.policies import ActorCritic
from shoal.protocol.work import Task, Work

LIMIT = 40
TRAIN = Task(0, 0, (0,))


def limited(length: int = 10**6, how: str = "t", limit: int = LIMIT) -> gymnasium.Env[Any, Any]:
    return TimeLimit(Counting([(length, how)]), limit)


def limited_one() -> gymnasium.Env[Any, Any]:
    return limited()


def ends(shares: Any, steps: int, make: Any = limited_one, num_envs: int = 4) -> tuple[list[list[int]], list[list[int]], Envs]:
    """The steps at which the episodes of each environment ended; the ends that were our doing; the environments."""
    envs = make_vector(make, num_envs)
    envs.reset(0, shares)
    over: list[list[int]] = [[] for _ in range(num_envs)]
    cut: list[list[int]] = [[] for _ in range(num_envs)]
    for at in range(1, steps + 1):
        step = envs.step(np.zeros(num_envs, np.int64))
        for i in range(num_envs):
            over[i] += [at] * bool(step.over[i])
            cut[i] += [at] * bool(step.cut is not None and step.cut[i])
    return over, cut, envs


def test_first_episodes_end_at_their_shares_and_all_others_at_the_limit() -> None:
    over, cut, envs = ends(np.array([0.25, 0.5, 0.75, 1.0]), 60)
    assert [each[0] for each in over] == [10, 20, 30, 40]
    assert cut == [[10], [20], [30], []]
    assert [each[1] for each in over[:1]] == [10 + 1 + LIMIT]  # a step between them only resets
    assert not envs._early


def test_without_shares_nothing_is_cut_short() -> None:
    over, cut, _ = ends(None, 50)
    assert over == [[40]] * 4
    assert cut == [[]] * 4


def test_an_episode_that_ends_by_itself_first_is_not_cut() -> None:
    over, cut, _ = ends(np.array([0.5, 0.5, 0.5, 0.5]), 30, lambda: limited(7))
    assert [each[0] for each in over] == [7] * 4
    assert cut == [[]] * 4


def test_an_episode_that_terminates_where_it_would_be_cut_has_terminated() -> None:
    _, cut, _ = ends(np.full(4, 0.25), 12, lambda: limited(10))
    assert cut == [[]] * 4


def test_an_environment_without_a_limit_is_left_alone() -> None:
    over, cut, _ = ends(np.full(4, 0.1), 100, lambda: Counting([(90, "c")]))
    assert over == [[90]] * 4
    assert cut == [[]] * 4


@pytest.mark.parametrize("env", ["Pendulum-v1", "Acrobot-v1"])
def test_the_limit_of_an_id_is_found(env: str) -> None:
    made = gymnasium.make(env)
    assert time_limit(made) == made.spec.max_episode_steps  # type: ignore[union-attr]


def rollouts(many: int, stagger: bool = True, client: int = 0) -> list[Work]:
    worker = Rollout(partial(make_vector, limited_one), NumpyPolicy(Discrete(2)), 10, 4, seed=0, stagger=stagger)
    with_torch = FlatModule(ActorCritic(worker.make_envs(1).spaces, (4,))).bundle()
    return [worker.run(with_torch, client, TRAIN) for _ in range(many)]


def test_ends_are_spread_over_the_rollouts_and_no_statistic_has_a_cut_episode() -> None:
    whole = [len(work.samples["return"]) for work in rollouts(16)]
    together = [len(work.samples["return"]) for work in rollouts(16, stagger=False)]
    assert max(together) == 4
    assert together.count(0) > 8
    assert max(whole) == 1
    assert {length for work in rollouts(16) for length in work.samples["length"]} == {LIMIT}


def test_every_step_of_a_cut_episode_is_learned_from() -> None:
    for work in rollouts(4):
        assert work.bundle is not None
        assert work.steps == np.count_nonzero(work.bundle["mask"])
        reset = np.count_nonzero(~work.bundle["mask"])
        assert work.steps + reset == 40
    cuts = [work.bundle["truncated"].sum() for work in rollouts(4) if work.bundle is not None]
    assert sum(cuts) == 4


def test_clients_cut_at_different_steps() -> None:
    def first(client: int) -> list[int]:
        flags = np.concatenate([w.bundle["truncated"] for w in rollouts(4, client=client) if w.bundle is not None])
        return [int(np.flatnonzero(flags[:, b])[0]) for b in range(4)]

    assert len({tuple(first(client)) for client in range(4)}) == 4
