"""The reinforcement-learning worker: what it writes down, what it counts, what it repeats."""

from __future__ import annotations

import itertools
import random
import sys
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
from counting import Counting, counting, definition, finished
from gymnasium import spaces

from shoal.actors.workers.rollout import MAX_SAMPLES, Rollout
from shoal.aggregators.gae import gae
from shoal.envs.making import make_vector, spaces_in
from shoal.envs.spaces import Actions, Box, Discrete, Observations, Spaces
from shoal.envs.vector import Envs
from shoal.faults.patient import ran
from shoal.jobs.reinforcement import Reinforcement
from shoal.nets import policies
from shoal.nets.acting import State, Stochastic
from shoal.nets.flat import FlatModule
from shoal.nets.numpy_policy import NumpyPolicy
from shoal.nets.policies import ActorCritic, TorchPolicy
from shoal.protocol.errors import UserError
from shoal.protocol.layout import Bundle
from shoal.protocol.work import Task, Work

MODES = ["NextStep", "SameStep", "Disabled"]
SCRIPTS = [[(3, "t"), (2, "c"), (1, "b"), (4, "c")], [(1, "c"), (1, "c"), (1, "t"), (2, "b")], [(5, "t")]]
TWO = Discrete(2)
TRAIN, EVALUATE = Task(0, 0, (0,)), Task(0, 0, (0,), kind="evaluate")


class Still(Stochastic):
    """A policy that likes all actions equally, and keeps what it was shown."""

    def __init__(self, action: Actions = TWO) -> None:
        super().__init__(action)
        self.shown: list[Any] = []

    def load(self, weights: Bundle) -> None: ...

    def forget(self) -> None: ...

    def numbers(self, seen: Any, state: State) -> Any:
        self.shown.append(seen.copy())
        return np.zeros((len(seen), self.action.parameters), np.float32), state


NOTHING = Bundle.pack({})


def scripted(scripts: Any, mode: str, **more: Any) -> Any:
    return lambda num_envs: counting(scripts[:num_envs], mode, **more)


def cartpole(seed: int = 0, num_envs: int = 4, **more: Any) -> Rollout:
    return Rollout(partial(make_vector, "CartPole-v1"), NumpyPolicy(TWO), 16, num_envs, seed, **more)


def weights(env: str = "CartPole-v1", seed: int = 0) -> Bundle:
    return FlatModule(ActorCritic(spaces_in(env), (16,), seed=seed)).bundle()


@pytest.mark.parametrize("rollout_length", [1, 2, 3, 7])
@pytest.mark.parametrize("mode", MODES)
def test_rollouts_laid_end_to_end_are_the_definition(mode: str, rollout_length: int) -> None:
    policy, T = Still(), rollout_length
    worker = Rollout(scripted(SCRIPTS, mode), policy, T, len(SCRIPTS), seed=0)
    for r in range(42 // T):
        work = worker.run(NOTHING, 5, TRAIN)
        got, steps = work.bundle, 0
        assert got is not None
        for b, script in enumerate(SCRIPTS):
            rows = list(itertools.islice(definition(script, mode), r * T, (r + 1) * T + 1))
            assert [tuple(o) for o in got["observation"][:, b]] == [row.observation for row in rows]
            assert [tuple(o[b]) for o in policy.shown[r * T :]] == [row.observation for row in rows[:T]]
            if mode != "NextStep":
                assert [tuple(o) for o in got["final"][:, b]] == [row.final or (0, 0) for row in rows[:T]]
            for name in ("reward", "terminated", "truncated", "mask"):
                assert got[name][:, b].tolist() == [getattr(row, name) for row in rows[:T]]
            steps += sum(row.lived for row in rows[:T])
        assert (work.steps, work.totals) == (steps, {})
        assert work.weight == max(1, np.count_nonzero(got["mask"]))


@pytest.mark.parametrize("rollout_length", [1, 4, 9])
@pytest.mark.parametrize("mode", MODES)
def test_returns_and_lengths_are_those_of_whole_episodes(mode: str, rollout_length: int) -> None:
    T = rollout_length
    worker = Rollout(scripted(SCRIPTS, mode), Still(), T, len(SCRIPTS), seed=0)
    for r in range(36 // T):
        samples = worker.run(NOTHING, 0, TRAIN).samples
        ends = [
            (t, b, *rest) for b, script in enumerate(SCRIPTS) for t, *rest in finished(script, mode, range(r * T, (r + 1) * T))
        ]
        assert samples["return"] == tuple(total for _, _, total, _ in sorted(ends))
        assert samples["length"] == tuple(length for _, _, _, length in sorted(ends))


def test_a_trajectory_has_the_layout_that_was_agreed() -> None:
    work = cartpole().run(weights(), 0, TRAIN)
    assert work.bundle is not None
    assert {name: (a.dtype.str[1:], a.shape) for name, a in work.bundle.items()} == {
        "observation": ("f4", (17, 4, 4)),
        "action": ("i8", (16, 4)),
        "log_prob": ("f4", (16, 4)),
        "reward": ("f4", (16, 4)),
        "terminated": ("b1", (16, 4)),
        "truncated": ("b1", (16, 4)),
        "mask": ("b1", (16, 4)),
    }


def test_episodes_told_of_are_bounded() -> None:
    worker = Rollout(lambda n: counting([[(1, "t")]] * n, "SameStep"), Still(), 150, 8, seed=0)
    samples = worker.run(NOTHING, 0, TRAIN).samples
    assert {name: len(s) for name, s in samples.items()} == {"return": MAX_SAMPLES, "length": MAX_SAMPLES}


def test_one_bad_reward_spoils_one_episode() -> None:
    def make(num_envs: int) -> Envs:
        envs = counting([[(3, "t")]] * num_envs, "NextStep")
        plain = envs.vector.step

        def step(action: Any) -> Any:
            seen, reward, *rest = plain(action)
            return seen, np.where(seen[:, 0] == 1, np.nan, reward), *rest

        envs.vector.step = step
        return envs

    worker = Rollout(make, Still(), 6, 1, seed=0)
    returns = [x for _ in range(4) for x in worker.run(NOTHING, 0, TRAIN).samples["return"]]
    assert np.isnan(returns).tolist() == [False, True, False, False, False, False][: len(returns)]


def test_the_same_seed_gives_the_same_trajectories_bitwise() -> None:
    first, again, other = (cartpole(seed) for seed in (1, 1, 2))
    for _ in range(3):
        digests = [w.run(weights(), 3, TRAIN).bundle.sha256() for w in (first, again, other)]  # type: ignore[union-attr]
        assert digests[0] == digests[1] != digests[2]


def test_a_clients_trajectories_do_not_depend_on_what_else_its_actor_does() -> None:
    alone, busy = cartpole(), cartpole()
    for _ in range(3):
        busy.run(weights(), 8, TRAIN)
        busy.run(weights(), 0, EVALUATE)
        mine, theirs = alone.run(weights(), 0, TRAIN).bundle, busy.run(weights(), 0, TRAIN).bundle
        assert mine is not None
        assert theirs is not None
        assert mine.sha256() == theirs.sha256()
    other = busy.run(weights(), 8, TRAIN).bundle
    assert other is not None
    assert (other["observation"][0] != mine["observation"][0]).any()


def test_a_rollout_goes_on_where_the_last_one_ended() -> None:
    worker = cartpole()
    first, second = (worker.run(weights(), 0, TRAIN).bundle for _ in range(2))
    assert first is not None
    assert second is not None
    np.testing.assert_array_equal(first["observation"][-1], second["observation"][0])
    assert (first["action"] != second["action"]).any()


def test_after_a_failure_half_way_a_client_begins_anew() -> None:
    worker, whole = cartpole(), cartpole()
    worker.run(weights(), 0, TRAIN)
    worker._lives[0].parts[0].envs.vector.step = lambda action: 1 / 0
    with pytest.raises(ZeroDivisionError):
        worker.run(weights(), 0, TRAIN)
    again, fresh = worker.run(weights(), 0, TRAIN).bundle, whole.run(weights(), 0, TRAIN).bundle
    assert again is not None
    assert fresh is not None
    assert again.sha256() == fresh.sha256()


@pytest.mark.parametrize("env", ["CartPole-v1", "Pendulum-v1"])
def test_log_prob_is_the_learners_own_at_the_same_weights(env: str) -> None:
    module = ActorCritic(spaces_in(env), (16,))
    with torch.no_grad():
        for p in module.parameters():
            p.add_(0.2)
    work = Rollout(partial(make_vector, env), NumpyPolicy(spaces_in(env).action), 40, 3, seed=0).run(
        FlatModule(module).bundle(), 0, TRAIN
    )
    assert work.bundle is not None
    got = {name: torch.from_numpy(a) for name, a in work.bundle.items()}
    with torch.no_grad():
        parameters, _ = module(got["observation"][:-1])
    torch.testing.assert_close(policies.log_prob(parameters, got["action"]), got["log_prob"], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("env", ["CartPole-v1", "Pendulum-v1"])
def test_a_torch_policy_lives_the_same_life(env: str) -> None:
    action = spaces_in(env).action
    module = TorchPolicy(ActorCritic(spaces_in(env), (16,)), action)
    works = [
        Rollout(partial(make_vector, env), policy, 24, 3, seed=0).run(weights(env), 0, TRAIN)
        for policy in (NumpyPolicy(action), module)
    ]
    ours, theirs = (work.bundle for work in works)
    assert ours is not None
    assert theirs is not None
    np.testing.assert_allclose(ours["action"], theirs["action"], rtol=1e-3, atol=1e-3)
    np.testing.assert_allclose(ours["observation"], theirs["observation"], rtol=1e-2, atol=1e-3)


@pytest.mark.parametrize("task", [TRAIN, EVALUATE])
def test_nothing_holds_on_to_the_weights_when_the_work_is_done(task: Task) -> None:
    worker, lent = cartpole(), weights()
    lent = Bundle.of_buffer(lent.layout, memory := bytearray(lent.data.tobytes()))
    worker.run(lent, 0, task)
    del lent
    memory.append(0)  # a BufferError as long as there is a view of it


def test_box_actions_are_stored_unclipped() -> None:
    space = spaces.Box(-0.1, 0.1, (2,), np.float32)
    envs: list[Envs] = []

    def make(num_envs: int) -> Envs:
        envs.append(counting([[(9, "t")]] * num_envs, "NextStep", action_space=space))
        return envs[-1]

    work = Rollout(make, Still(Box((2,), (-0.1, -0.1), (0.1, 0.1))), 9, 2, seed=0).run(NOTHING, 0, TRAIN)
    assert work.bundle is not None
    action = work.bundle["action"]
    assert action.shape == (9, 2, 2)
    assert abs(action).max() > 1
    for b, single in enumerate(envs[0].vector.envs):
        np.testing.assert_array_equal(np.stack(single.taken), np.clip(action[:, b], -0.1, 0.1, dtype=np.float32))


def test_pictures_stay_bytes() -> None:
    class Picture:
        spaces = Spaces(Observations((2, 2), "u1"), Discrete(2))

    assert Picture.spaces.trajectory(3, 2).by_name["observation"].dtype == "u1"


@pytest.mark.parametrize("mode", MODES)
def test_evaluation_counts_a_fixed_number_of_episodes_of_each_environment(mode: str) -> None:
    scripts = [[(1, "t")], [(10, "c")], [(3, "b"), (2, "c")]]
    worker = Rollout(scripted(scripts, mode), Still(), 4, 3, seed=0, episodes=7)
    work = worker.run(NOTHING, 0, EVALUATE)
    assert work.bundle is None
    assert not work.totals
    assert sorted(work.samples["length"]) == [1, 1, 1, 2, 3, 10, 10]
    wanted = [(1, "t")] * 3
    expected = [1000 * e + 1 for e in range(len(wanted))] + [55, 10055] + [6, 2003]
    assert sorted(work.samples["return"]) == sorted(expected)


def test_evaluation_is_greedy_and_leaves_training_alone() -> None:
    class Leaning(Still):
        def numbers(self, seen: Any, state: State) -> Any:
            return np.tile(np.array([0.0, 1e-3, 0.0], np.float32), (len(seen), 1)), state

    envs: list[Envs] = []

    def make(num_envs: int) -> Envs:
        envs.append(counting([[(5, "t")]] * num_envs, "NextStep", action_space=spaces.Discrete(3)))
        return envs[-1]

    worker = Rollout(make, Leaning(Discrete(3)), 8, 2, seed=0, episodes=2)
    worker.run(NOTHING, 0, TRAIN)
    before = [list(single.taken) for single in envs[0].vector.envs]
    assert worker.run(NOTHING, 0, EVALUATE).samples["length"] == (5, 5)
    assert [single.taken for single in envs[0].vector.envs] == before
    assert {int(a) for single in envs[1].vector.envs for a in single.taken} == {1}
    assert {a for taken in before for a in map(int, taken)} == {0, 1, 2}


def test_evaluations_repeat_and_differ_between_versions() -> None:
    def evaluated(worker: Rollout, version: int) -> Work:
        return worker.run(weights(), 0, Task(version, 0, (0,), kind="evaluate"))

    first, again = cartpole(episodes=6), cartpole(episodes=6)
    first.run(weights(), 0, TRAIN)
    evaluated(first, 1)
    assert evaluated(first, 2).samples == evaluated(again, 2).samples
    assert evaluated(first, 2).samples != evaluated(first, 3).samples


def test_an_evaluation_without_an_end_is_given_up() -> None:
    worker = Rollout(lambda n: counting([[(10**9, "t")]] * n, "NextStep"), Still(), 8, 2, seed=0, longest=50)
    with pytest.raises(UserError, match="after 50 steps: give the environment a time limit"):
        worker.run(NOTHING, 0, EVALUATE)


@pytest.mark.parametrize("name", ["rollout_length", "num_envs", "episodes"])
def test_numbers_below_one_are_refused(name: str) -> None:
    numbers = {"rollout_length": 4, "num_envs": 2, "episodes": 2} | {name: 0}
    with pytest.raises(UserError, match=f"{name}=0: must be a number from 1"):
        Rollout(partial(make_vector, "CartPole-v1"), NumpyPolicy(TWO), seed=0, **numbers)


WITHOUT_TORCH = """
import sys
from functools import partial
import numpy as np
from shoal.actors.workers.rollout import Rollout
from shoal.envs.spaces import Discrete
from shoal.nets.numpy_policy import NumpyPolicy
from shoal.envs.making import make_vector
from shoal.protocol.layout import Bundle
from shoal.protocol.work import Task

shapes = {"actor.0": (8, 4), "actor.1": (2, 8), "critic.0": (8, 4), "critic.1": (1, 8)}
weights = {f"{name}.weight": np.ones(shape, np.float32) for name, shape in shapes.items()}
weights |= {f"{name}.bias": np.ones(shape[0], np.float32) for name, shape in shapes.items()}
worker = Rollout(partial(make_vector, "CartPole-v1"), NumpyPolicy(Discrete(2)), 8, 4, seed=0, episodes=2)
for kind in ("train", "evaluate"):
    worker.run(Bundle.pack(weights), 0, Task(0, 0, (0,), kind))
worker.close()
assert "torch" not in sys.modules
"""


def test_an_actor_with_the_built_in_policy_never_imports_torch() -> None:
    assert ran([sys.executable, "-W", "error", "-c", WITHOUT_TORCH]).returncode == 0


@pytest.mark.parametrize("task", [TRAIN, EVALUATE], ids=["train", "evaluate"])
@pytest.mark.parametrize("call", ["reset", "step"])
def test_environments_that_fail_are_closed(task: Task, call: str) -> None:
    closed: list[bool] = []

    def make(num_envs: int) -> Envs:
        envs = make_vector("CartPole-v1", num_envs)
        setattr(envs.vector, call, lambda *_, **__: 1 / 0)
        envs.close = lambda: closed.append(True)  # type: ignore[method-assign]
        return envs

    worker = Rollout(make, NumpyPolicy(TWO), 8, 3, 0)
    with pytest.raises(ZeroDivisionError):
        worker.run(weights(), 0, task)
    assert closed == [True]


class Dice(Counting):
    """Observations are drawn from the generators that a whole process shares."""

    def __init__(self) -> None:
        super().__init__([(5, "c"), (3, "t")])
        self.made = np.random.random()

    def step(self, action: Any) -> Any:
        seen, _, *rest = super().step(action)
        return seen, random.random(), *rest

    def seen(self) -> Any:
        return np.array([self.made + random.random() + np.random.random(), torch.rand(()).item()], np.float32)


def diced() -> Rollout:
    return Rollout(partial(make_vector, Dice), Still(), 6, 2, seed=11, episodes=3)


def as_forked() -> None:
    """The generators as every actor forked from one process finds them."""
    random.seed(3)
    np.random.seed(3)
    torch.manual_seed(3)


def observed(worker: Rollout, client: int) -> list[str]:
    return [worker.run(NOTHING, client, Task(0, 0, (client,))).bundle.sha256() for _ in range(3)]  # type: ignore[union-attr]


def test_environments_that_draw_from_global_generators_live_other_episodes_in_every_actor() -> None:
    lives = []
    for client in (0, 1, 2):
        as_forked()
        lives += observed(diced(), client)
    assert len(set(lives)) == 9


def test_they_live_the_same_whatever_else_their_process_draws() -> None:
    as_forked()
    first = observed(diced(), 4)
    random.random(), np.random.random(), torch.rand(9)
    worker = diced()
    worker.run(NOTHING, 1, TRAIN)
    again = observed(worker, 4)
    assert first == again
    worker.run(NOTHING, 0, EVALUATE)
    assert worker.run(NOTHING, 0, EVALUATE).samples == diced().run(NOTHING, 0, EVALUATE).samples


@pytest.mark.parametrize("task", [TRAIN, EVALUATE])
def test_a_task_leaves_global_generators_as_they_were(task: Task) -> None:
    before = random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state().tolist()  # type: ignore[union-attr,index]
    diced().run(NOTHING, 0, task)
    after = random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state().tolist()  # type: ignore[union-attr,index]
    assert before == after


# Slow environments


class Hours:
    """A clock that moves on by `each` seconds at every look."""

    def __init__(self, each: float) -> None:
        self.now, self.each = 0.0, each

    def __call__(self) -> float:
        self.now += self.each
        return self.now


def paced(mode: str, rollout_length: int, seconds: float, each: float) -> Rollout:
    make = scripted(SCRIPTS, mode)
    return Rollout(make, Still(), rollout_length, len(SCRIPTS), seed=0, seconds=seconds, clock=Hours(each))


@pytest.mark.parametrize("mode", MODES)
def test_a_rollout_that_takes_too_long_ends_early_and_loses_no_transition(mode: str, capsys: Any) -> None:
    """Cut after 5 rows, it has the rows of a rollout of 5; the others are masked, and the next one goes on from there."""
    slow, short = paced(mode, 9, 5.0, 1.1), paced(mode, 5, 0.0, 1.1)
    for _ in range(6):
        works = slow.run(NOTHING, 0, TRAIN), short.run(NOTHING, 0, TRAIN)
        cut, whole = (work.bundle for work in works)
        assert cut is not None
        assert whole is not None
        for name in ("reward", "terminated", "truncated", "mask"):
            assert (cut[name][:5] == whole[name]).all()
        assert (cut["observation"][:6] == whole["observation"]).all()
        assert not cut["mask"][5:].any()
        assert np.isfinite(cut["log_prob"]).all()
        assert (works[0].steps, works[0].samples) == (works[1].steps, works[1].samples)
        targets = []
        for one, n in ((cut, 9), (whole, 5)):
            reward, mask, over = (torch.from_numpy(one[name]) for name in ("reward", "mask", "terminated"))
            value = torch.from_numpy(one["observation"]).sum(-1)[: n + 1]
            targets.append(gae(reward, 0.9 * ~over, value[:-1], value[-1], mask).advantage[:5])
        assert torch.equal(*targets)
    assert capsys.readouterr().err.count("shoal: environments are slow: a rollout ends after 5 of rollout_length=9") == 1


def test_a_rollout_makes_one_step_at_least_and_all_if_there_is_no_limit() -> None:
    assert paced("NextStep", 7, 1.0, 50.0).run(NOTHING, 0, TRAIN).steps == len(SCRIPTS)
    assert paced("NextStep", 7, 0.0, 50.0).run(NOTHING, 0, TRAIN).steps > len(SCRIPTS)


@pytest.mark.parametrize("method", ["impala", "ppo"])
def test_a_jobs_rollouts_end_within_half_of_a_lease_that_the_user_gave(method: str) -> None:
    for given, seconds in (({"lease": 90.0}, 45.0), ({"lease": 0.0}, 0.0), ({}, 0.0)):
        worker = Reinforcement("CartPole-v1", method=method, **given).worker()
        assert isinstance(worker, Rollout)
        assert worker.seconds == seconds


@pytest.mark.parametrize("method", ["impala", "ppo"])
def test_a_lease_that_nobody_gave_follows_the_rollouts_and_is_an_hour_before_three_are_in(method: str) -> None:
    bounds = Reinforcement("CartPole-v1", method=method).bounds()
    assert (bounds.lease, bounds.floor, bounds.first) == (-1.0, 60.0, 3_600.0)


def test_an_actor_of_impala_is_asked_for_as_many_trajectories_as_the_user_says() -> None:
    assert Reinforcement("CartPole-v1").bounds().ahead == 1
    assert Reinforcement("CartPole-v1", ahead=2).bounds().ahead == 2
