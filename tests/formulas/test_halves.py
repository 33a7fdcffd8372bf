"""A rollout in two halves: the trajectory of one that steps all environments together, in another order of steps."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
from counting import counting
from test_central import VECTOR, asking, inferring
from test_rollout import EVALUATE, MODES, NOTHING, TRAIN, Still, weights

from shoal.actors.asking import Asking
from shoal.actors.workers.rollout import Rollout
from shoal.envs.making import Recipe, make_vector
from shoal.envs.spaces import LIFE, Discrete
from shoal.envs.vector import Worlds
from shoal.jobs.reinforcement import Reinforcement
from shoal.nets.acting import ALL, FIRST
from shoal.nets.numpy_policy import NumpyPolicy
from shoal.nets.q_policy import NumpyQ, epsilons
from shoal.protocol.errors import UserError
from shoal.protocol.layout import Bundle
from shoal.protocol.work import Task, Work

TWO = Discrete(2)
SCRIPTS = [
    [(3, "t"), (2, "c"), (1, "b"), (4, "c")],
    [(1, "c"), (1, "c"), (1, "t"), (2, "b")],
    [(5, "t")],
    [(2, "c")],
    [(7, "t")],
]


def scripted(mode: str) -> Callable[[int], Worlds]:
    """A function that makes environments, each call those of the next scripts."""
    at = itertools.count()

    def make(num_envs: int) -> Worlds:
        return counting([SCRIPTS[next(at) % len(SCRIPTS)] for _ in range(num_envs)], mode)

    return make


def same(one: Work, other: Work, but: float = 0.0) -> None:
    assert one.bundle is not None
    assert other.bundle is not None
    for (name, ours), (_, theirs) in zip(one.bundle.items(), other.bundle.items(), strict=True):
        np.testing.assert_allclose(ours.astype(float), theirs.astype(float), rtol=but, atol=but, err_msg=name)
    assert (one.samples, one.steps, one.weight) == (other.samples, other.steps, other.weight)


@pytest.mark.parametrize("rollout_length", [1, 3, 7])
@pytest.mark.parametrize("mode", MODES)
def test_two_halves_fill_the_rows_of_one_whole(mode: str, rollout_length: int) -> None:
    whole, halves = (
        Rollout(scripted(mode), Still(), rollout_length, len(SCRIPTS), seed=0, stagger=False, halves=each)
        for each in (False, True)
    )
    for version in range(6):
        task = Task(version, 0, (5,))
        same(whole.run(NOTHING, 5, task), halves.run(NOTHING, 5, task))
    assert [len(life.parts) for rollout in (whole, halves) for life in rollout._lives.values()] == [1, 2]
    halves.close()


@pytest.mark.parametrize("kind", ["actor-critic", "q"])
def test_cartpoles_of_two_halves_are_seeded_noised_and_staggered_as_those_of_one_whole(kind: str) -> None:
    recipe, words = Recipe("CartPole-v1", time_limit=20), {"epsilon": 0.4, "ladder": 7.0}
    its: Bundle = weights() if kind == "actor-critic" else Reinforcement("CartPole-v1", method="dqn").problem.first(0)[0]
    make: Callable[[], Any] = partial(NumpyPolicy, TWO) if kind == "actor-critic" else partial(NumpyQ, TWO)
    whole, halves = (
        Rollout(partial(make_vector, recipe, vector="sync"), make(), 30, 5, seed=3, halves=each) for each in (False, True)
    )
    for version in range(3):
        task = Task(version, 0, (1,), words=words)
        same(whole.run(its, 1, task), halves.run(its, 1, task), 1e-5)  # a product's last bits follow its number of rows
    assert whole.run(its, 0, EVALUATE).samples == halves.run(its, 0, EVALUATE).samples


def test_the_ladder_of_a_half_goes_on_where_the_other_half_ends() -> None:
    words = {"epsilon": 0.4, "ladder": 7.0}
    parts = [epsilons({**words, FIRST: first, ALL: 5}, many) for first, many in ((0, 3), (3, 2))]
    assert np.concatenate(parts).tolist() == epsilons(words, 5).tolist()


def test_a_rollout_whose_time_is_over_ends_both_halves_at_the_same_row() -> None:
    ticks = itertools.count()
    rollouts = [
        Rollout(scripted("NextStep"), Still(), 8, 4, seed=0, halves=each, seconds=2.5, clock=lambda: next(ticks))
        for each in (False, True)
    ]
    for rollout in rollouts:
        ticks = itertools.count()
        first, then = rollout.run(NOTHING, 0, TRAIN), rollout.run(NOTHING, 0, TRAIN)
        for work in (first, then):
            assert work.bundle is not None
            assert work.steps <= 3 * 4
            assert not work.bundle["mask"][3:].any()
        np.testing.assert_array_equal(first.bundle["observation"][-1], then.bundle["observation"][0])  # type: ignore[index]
    ticks = itertools.count()
    whole = Rollout(scripted("NextStep"), Still(), 8, 4, seed=0, seconds=2.5, clock=lambda: next(ticks)).run(NOTHING, 0, TRAIN)
    ticks = itertools.count()
    half = Rollout(scripted("NextStep"), Still(), 8, 4, seed=0, halves=True, seconds=2.5, clock=lambda: next(ticks))
    same(whole, half.run(NOTHING, 0, TRAIN))


class Noted(Asking):
    """Notes when questions are asked, and when their answers are awaited."""

    notes: list[str]

    def ask(self, place: int, seen: Any, first: Any, state: Any) -> None:
        self.notes.append(f"ask {place}")
        super().ask(place, seen, first, state)

    def answer(self, place: int, noise: Any, words: Any) -> Any:
        self.notes.append(f"answer {place}")
        return super().answer(place, noise, words)


def test_one_half_is_stepped_while_the_numbers_of_the_other_are_on_their_way(tmp_path: Path) -> None:
    notes: list[str] = []
    number = itertools.count()

    def make(num_envs: int) -> Worlds:
        envs, its = make_vector(Recipe("CartPole-v1"), num_envs, "sync"), next(number)
        plain = envs.step

        def step(action: Any) -> Any:
            notes.append(f"step {its}")
            return plain(action)

        envs.step = step  # type: ignore[method-assign]
        return envs

    with inferring(partial(NumpyPolicy, TWO), VECTOR, tmp_path / "at"):
        policy = Noted(NumpyPolicy(TWO), VECTOR.record(), str(tmp_path / "at"), 4, True, told=notes.append)
        policy.notes = notes
        rollout = Rollout(make, policy, 3, 4, seed=0, halves=True)
        work = rollout.run(weights(), 0, TRAIN)
        rollout.close()
    first = ["ask 0", "ask 1", "answer 0"]
    turn = ["step 0", "ask 0", "answer 1", "step 1", "ask 1", "answer 0"]
    assert notes == [*first, *turn, *turn, "step 0", "answer 1", "step 1"]
    assert work.totals == {"inference_central": (12.0, 12.0)}


@pytest.mark.parametrize("settings", [{}, {"memory": "lstm"}, {"vector": "sync"}])
def test_halves_have_the_same_bits_wherever_their_network_is_computed(tmp_path: Path, settings: dict[str, Any]) -> None:
    job = Reinforcement("CartPole-v1", method="ppo", num_envs=5, rollout_length=9, double_buffer=True, **settings)
    problem: Any = job.problem
    its, spaces, told = problem.first(0)[0], problem.spaces(), list[str]()
    own, other = cast(Rollout, job.worker()), cast(Rollout, job.worker())
    with inferring(lambda: problem.acts(0), spaces, tmp_path / "at"):
        other.policy = asking(lambda: problem.acts(0), spaces, tmp_path / "at", told)
        for version in range(3):
            task = Task(version, 0, (0,))
            one, two = own.run(its, 0, task), other.run(its, 0, task)
            assert one.bundle is not None
            assert two.bundle is not None
            assert one.bundle.sha256() == two.bundle.sha256()
            assert two.totals["inference_central"] == (45.0, 45.0)
        other.close()
    own.close()
    assert told == []


def test_halves_of_environments_that_step_by_themselves_have_the_same_numbers() -> None:
    made = {"method": "ppo", "num_envs": 4, "rollout_length": 12, "double_buffer": True}
    apart = Reinforcement("CartPole-v1", **made, vector="async")
    apart.prepare()
    try:
        ours, theirs = (
            cast(Rollout, Reinforcement("CartPole-v1", **made, vector="sync").worker()),
            cast(Rollout, apart.worker()),
        )
        ours.life = theirs.life = 0  # has other bytes for environments in processes of their own
        its = apart.problem.first(0)[0]
        for version in range(2):
            task = Task(version, 0, (0,))
            same(ours.run(its, 0, task), theirs.run(its, 0, task))
        assert all(part.stepping is not None for part in theirs._lives[0].parts)
        theirs.close()
    finally:
        apart.problem.close()


@pytest.mark.parametrize("settings", [{}, {"vector": "sync", "memory": "gru"}])
def test_another_actor_goes_on_with_both_halves(settings: dict[str, Any]) -> None:
    job = Reinforcement("CartPole-v1", method="ppo", num_envs=5, rollout_length=30, double_buffer=True, **settings)
    its = job.problem.first(0)[0]
    one, other, whole = (cast(Rollout, made.worker()) for made in (job, job, job.configured({"double_buffer": False})))
    first = one.run(its, 0, Task(0, 0, (0,))).bundle
    assert first is not None
    brief = Bundle.pack({LIFE: first[LIFE]})
    again, theirs = one.run(its, 0, Task(1, 0, (0,)), brief), other.run(its, 0, Task(1, 0, (0,)), brief)
    same(again, theirs)
    assert again.bundle is not None
    np.testing.assert_array_equal(first["observation"][-1], again.bundle["observation"][0])
    begun = whole.run(its, 0, Task(1, 0, (0,)), brief).bundle  # not in halves: it begins anew, and says so
    assert begun is not None
    assert not np.array_equal(first["observation"][-1], begun["observation"][0])


def test_environments_that_raise_in_one_half_close_those_of_both() -> None:
    closed: list[int] = []

    def make(num_envs: int) -> Worlds:
        envs = counting(SCRIPTS[:num_envs], "NextStep")
        plain = envs.close
        envs.close = lambda: (closed.append(num_envs), plain())[1]  # type: ignore[func-returns-value, method-assign]
        return envs

    worker = Rollout(make, Still(), 4, 3, seed=0, halves=True)
    worker.run(NOTHING, 0, TRAIN)
    worker._lives[0].parts[1].envs.step = lambda action: 1 / 0  # type: ignore[method-assign, assignment, return-value]
    with pytest.raises(ZeroDivisionError):
        worker.run(NOTHING, 0, TRAIN)
    assert sorted(closed) == [1, 2]
    assert worker._lives == {}
    worker.run(NOTHING, 0, TRAIN)


@pytest.mark.parametrize(
    ("settings", "line"),
    [
        ({"num_envs": 1, "method": "impala"}, "double_buffer=true: num_envs=1 has no two halves; num_envs=2 or more"),
        ({"num_envs": 1, "method": "dqn"}, "double_buffer=true: num_envs=1 has no two halves; num_envs=2 or more"),
        ({"method": "es"}, "double_buffer=true: the policies of method=es have weights of their own"),
    ],
)
def test_halves_that_there_are_not_are_refused(settings: dict[str, Any], line: str) -> None:
    with pytest.raises(UserError) as refused:
        Reinforcement("CartPole-v1", double_buffer=True, **settings)
    assert str(refused.value).startswith(line)
