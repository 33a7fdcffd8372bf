"""Evolution strategies: the step against Salimans et al.'s estimate term by term, the ranks, and noise that never travels."""

from __future__ import annotations

from functools import partial
from typing import Any

import gymnasium
import numpy as np
import pytest
import torch
from gymnasium.vector import AutoresetMode, SyncVectorEnv

from shoal.actors.workers.evolution import Evolution, layout
from shoal.actors.workers.rollout import Rollout
from shoal.aggregators.es import ESLearner, centred_ranks
from shoal.envs.making import make_vector, spaces_in
from shoal.envs.spaces import Box, Discrete, Observations, Spaces
from shoal.envs.vector import Envs
from shoal.nets.flat import FlatModule
from shoal.nets.numpy_policy import NumpyPolicy
from shoal.nets.perturbed import Perturbed, acting, noise, pieces
from shoal.nets.policies import ActorCritic
from shoal.protocol.errors import ProtocolError, UserError
from shoal.protocol.layout import Bundle
from shoal.protocol.work import Contribution, Task, Work

SPACES = Spaces(Observations((3,)), Discrete(4))
BOX = Spaces(Observations((3,)), Box((2,), (-1.0, -1.0), (1.0, 1.0)))


def weights(spaces: Spaces = SPACES) -> Bundle:
    return FlatModule(ActorCritic(spaces, hidden=(5,), seed=1)).bundle()


def contribution(seeds: list[int], fitness: Any, client: int = 0) -> Contribution:
    bundle = Bundle.zeros(layout(len(seeds)))
    bundle["seed"][...], bundle["fitness"][...] = seeds, fitness
    bundle["probe"][...] = [noise(seed, 1)[0] for seed in seeds]
    return Contribution(Task(0, client, (client,)), 0, 0, Work(bundle))


def test_ranks_are_centred_and_equal_returns_share_theirs() -> None:
    assert np.allclose(centred_ranks(np.array([[10.0, 30.0], [20.0, 90.0]])), [[-0.5, 1 / 6], [-1 / 6, 0.5]])
    assert centred_ranks(np.array([[7.0, 7.0], [7.0, 7.0]])).tolist() == [[0.0, 0.0], [0.0, 0.0]]
    assert centred_ranks(np.array([[1.0, 5.0], [5.0, 9.0]])).tolist() == [[-0.5, 0.0], [0.0, 0.5]]
    assert centred_ranks(np.array([3.0])).tolist() == [0.0]


def test_a_step_is_adam_along_the_mirrored_estimate_written_out() -> None:
    first, seeds = weights(), [[4, 9], [2**62, 7]]
    fitness = [np.array([[1.0, 5.0], [2.0, 2.5]]), np.array([[9.0, -1.0], [0.0, 3.0]])]
    learner = ESLearner(first, lr=0.02, weight_decay=0.1)
    for client in (0, 1):
        learner.fold(contribution(seeds[client], fitness[client], client))
    told = learner.step()
    names = acting(first.layout)
    assert sorted({name.split(".")[0] for name in names}) == ["actor"]
    size = sum(first[name].size for name in names)
    flat = np.concatenate([first[name].ravel() for name in names]).astype(np.float64)
    every = np.concatenate(fitness)
    order = sorted(every.ravel())
    gradient = np.zeros(size)
    for seed, (plus, minus) in zip([s for its in seeds for s in its], every, strict=True):
        shaped = [order.index(value) / 7 - 0.5 for value in (plus, minus)]
        gradient += (shaped[0] - shaped[1]) * noise(seed, size).astype(np.float64) / 8
    twin = torch.nn.Parameter(torch.from_numpy(flat))
    twin.grad = torch.from_numpy(-gradient)
    torch.optim.Adam([twin], lr=0.02, weight_decay=0.1).step()
    for name, array in pieces(first.layout, names, twin.detach().numpy()):
        assert np.allclose(learner.weights()[name], array, rtol=0, atol=1e-6), name
    assert np.array_equal(learner.weights()["critic.0.weight"], first["critic.0.weight"])  # it does not act
    assert told.metrics["fitness_mean"] == pytest.approx(every.mean())
    assert told.metrics["fitness_max"] == 9


def test_the_order_of_arrival_changes_no_bit() -> None:
    a, b = contribution([1, 2], [[1.0, 2.0], [5.0, 3.0]]), contribution([3, 4], [[0.0, 2.0], [1.0, 8.0]], client=1)

    def learned(*folded: Contribution) -> str:
        learner = ESLearner(weights())
        for one in folded:
            learner.fold(one)
        learner.step()
        return learner.weights().sha256()

    assert learned(a, b) == learned(b, a) != learned(a)


def test_policies_of_equal_return_move_nothing_but_the_decay() -> None:
    learner = ESLearner(weights(), weight_decay=0.0)
    learner.fold(contribution([1, 2, 3], [[500.0, 500.0]] * 3))
    learner.step()
    assert learner.weights().sha256() == weights().sha256()


def test_a_learner_restored_from_its_state_goes_on_to_the_same_bits() -> None:
    def on(learner: ESLearner, *seeds: int) -> ESLearner:
        for seed in seeds:
            learner.fold(contribution([seed, seed + 50], [[float(seed), 3.0], [2.0, 1.0]]))
            learner.step()
        return learner

    first = on(ESLearner(weights()), 1, 2)
    kept, state = first.weights(), first.state()
    unbroken = on(first, 3, 4)
    restored = ESLearner(weights())
    restored.load(kept, state)
    assert on(restored, 3, 4).weights().sha256() == unbroken.weights().sha256()


def test_a_contribution_that_would_poison_the_weights_is_refused() -> None:
    learner = ESLearner(weights())
    with pytest.raises(ProtocolError, match="a return is NaN or infinite"):
        learner.fold(contribution([1], [[np.nan, 1.0]]))
    strange = contribution([1], [[0.0, 1.0]])
    assert strange.work.bundle is not None
    strange.work.bundle["probe"][...] += 1
    with pytest.raises(ProtocolError, match=r"the actor's numpy draws other noise than numpy .+ here: install this one there"):
        learner.fold(strange)
    with pytest.raises(ValueError, match="fold one in first"):
        learner.step()


@pytest.mark.parametrize("spaces", [SPACES, BOX], ids=["discrete", "box"])
@pytest.mark.parametrize("activation", ["tanh", "relu"])
def test_each_copy_acts_as_the_policy_with_its_weights_alone(spaces: Spaces, activation: str) -> None:
    first = FlatModule(ActorCritic(spaces, hidden=(6, 5), activation=activation, seed=1)).bundle()
    size = sum(first[name].size for name in acting(first.layout))
    noises = np.stack([noise(seed, size) for seed in (3, 8)])
    seen = np.random.default_rng(0).normal(size=(4, 3)).astype(np.float32)
    found = Perturbed(first, noises, 0.3, activation).parameters(seen)
    for i, (sign, at) in enumerate([(1, 0), (1, 1), (-1, 0), (-1, 1)]):
        moved = Bundle(first.layout, first.data.copy())
        for name, piece in pieces(first.layout, acting(first.layout), noises[at]):
            moved[name][...] += np.float32(sign * 0.3) * piece
        alone = NumpyPolicy(spaces.action, activation)
        alone.load(moved)
        n = found.shape[1]
        assert np.allclose(found[i], alone.parameters(seen[i : i + 1])[0, :n], atol=1e-5)


class Counted(gymnasium.Env[Any, Any]):
    """Pays the number of the action, and 100 after `steps` steps of an episode, with which it ends."""

    observation_space = gymnasium.spaces.Box(-1, 1, (3,), np.float32)
    action_space = gymnasium.spaces.Discrete(4)

    def __init__(self, steps: int, ends: bool = True) -> None:
        self.steps, self.ends = steps, ends

    def reset(self, *, seed: int | None = None, options: Any = None) -> Any:
        super().reset(seed=seed)
        self.at = 0
        return self._seen(), {}

    def step(self, action: Any) -> Any:
        self.at += 1
        last = self.at == self.steps and self.ends
        return self._seen(), float(action) + 100.0 * last, last, False, {}

    def _seen(self) -> Any:
        return self.np_random.uniform(-1, 1, 3).astype(np.float32)


def worker(mode: str, *, ends: bool = True, longest: int = 100) -> Evolution:
    def make(many: int) -> Envs:
        kinds = [partial(Counted, 2 + i, ends) for i in range(many)]
        return Envs(SyncVectorEnv(kinds, autoreset_mode=AutoresetMode(mode)))  # type: ignore[arg-type]

    judge = Rollout(make, NumpyPolicy(SPACES.action), 1, 2, seed=4, episodes=2)
    return Evolution(make, "tanh", pairs=2, sigma=0.1, seed=4, judge=judge, longest=longest)


@pytest.mark.parametrize("mode", ["NextStep", "SameStep", "Disabled"])
def test_the_first_episode_of_each_environment_counts_whole_and_alone(mode: str) -> None:
    hand = worker(mode)
    task = Task(3, 0, (1,))
    work = hand.run(weights(), 1, task)
    assert work.bundle is not None
    assert work.bundle.layout.digest == layout(2).digest
    assert work.steps == 2 + 3 + 4 + 5
    assert work.samples["length"] == (2.0, 3.0, 4.0, 5.0)
    returns = np.array(work.samples["return"])
    assert ((returns >= 100) & (returns < 200)).all()
    assert work.bundle["fitness"].tolist() == [[returns[0], returns[2]], [returns[1], returns[3]]]
    again = hand.run(weights(), 1, task)
    assert again.bundle is not None
    assert again.bundle.sha256() == work.bundle.sha256()  # a task is a function of its numbers
    other = hand.run(weights(), 2, task)
    assert other.bundle is not None
    assert not np.intersect1d(other.bundle["seed"], work.bundle["seed"]).size
    assert len(hand.run(weights(), 1, Task(3, 1, (1,), "evaluate", counts=False)).samples["return"]) == 2
    hand.close()


def test_an_episode_without_an_end_is_one_line() -> None:
    with pytest.raises(UserError, match=r"an episode goes on after 50 steps: give the environment a time limit"):
        worker("NextStep", ends=False, longest=50).run(weights(), 0, Task(0, 0, (0,)))


def test_a_learner_and_workers_alone_find_the_better_action() -> None:
    spaces = spaces_in("CartPole-v1")
    make = partial(make_vector, "CartPole-v1")
    first = FlatModule(ActorCritic(spaces, hidden=(8,), seed=2)).bundle()
    learner = ESLearner(first, lr=0.1)
    hand = Evolution(make, "tanh", pairs=8, sigma=0.2, seed=1, judge=Rollout(make, NumpyPolicy(spaces.action), 1, 8, seed=1))
    means = []
    for version in range(12):
        task = Task(version, 0, (0,))
        learner.fold(Contribution(task, version, 0, hand.run(learner.weights(), 0, task)))
        means.append(learner.step().metrics["fitness_mean"])
    hand.close()
    assert means[-1] > 2 * means[0]
