"""The replay: its transitions against the episodes that environments told, its draws against their probabilities, snapshots."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import gymnasium
import numpy as np
import pytest
import torch
from gymnasium.vector import AutoresetMode, SyncVectorEnv

from shoal.actors.workers.rollout import Rollout
from shoal.aggregators import ring_replay, row_ring
from shoal.aggregators.n_step import n_step
from shoal.aggregators.priorities import Priorities
from shoal.aggregators.replay import ReplayBuffer, Transitions
from shoal.envs.spaces import Discrete, Observations, Spaces
from shoal.envs.vector import Envs
from shoal.nets.flat import FlatModule
from shoal.nets.q import QNetwork
from shoal.nets.q_policy import NumpyQ
from shoal.protocol.errors import ProtocolError, UserError
from shoal.protocol.layout import Bundle
from shoal.protocol.memory import Room
from shoal.protocol.work import Task

MODES = ["NextStep", "SameStep", "Disabled"]
GAMMA = 0.9


class Moment(NamedTuple):
    """A step as the environment saw it."""

    before: tuple[float, float, float]
    action: int
    reward: float
    terminated: bool
    truncated: bool
    after: tuple[float, float, float]


class Clock(gymnasium.Env[Any, Any]):
    """An environment whose observation says which environment, episode and step it is of. Episodes end after 1 to 6 steps, by
    turns terminated and truncated. told: all steps so far."""

    observation_space = gymnasium.spaces.Box(0, np.inf, (3,))
    action_space = gymnasium.spaces.Discrete(3)

    def __init__(self, number: int) -> None:
        self.number, self.episode, self.told = number, -1, list[Moment]()
        self.rng = np.random.default_rng(number)

    def reset(self, *, seed: int | None = None, options: Any = None) -> Any:
        self.episode += 1
        self.at, self.length = 0, int(self.rng.integers(1, 7))
        return self.seen(), {}

    def seen(self) -> Any:
        return np.array([self.number, self.episode, self.at], np.float32)

    def step(self, action: Any) -> Any:
        before = self.seen()
        self.at += 1
        reward, last = float(self.rng.integers(-4, 5)), self.at == self.length
        ends = (last and self.episode % 2 == 0, last and self.episode % 2 == 1)
        self.told.append(Moment(tuple(before), int(action), reward, *ends, tuple(self.seen())))
        return self.seen(), reward, *ends, {}


class Played(NamedTuple):
    envs: list[Clock]
    bundles: list[Bundle]


def played(mode: str, rollouts: int, rows: int, num_envs: int) -> Played:
    clocks: list[Clock] = []

    def one() -> Clock:
        clocks.append(Clock(len(clocks)))
        return clocks[-1]

    def make(number: int) -> Envs:
        return Envs(SyncVectorEnv([one] * number, autoreset_mode=AutoresetMode(mode)))

    spaces = Spaces(Observations((3,)), Discrete(3), mode != "NextStep")
    weights = FlatModule(QNetwork(spaces, (4,))).bundle()
    worker = Rollout(make, NumpyQ(Discrete(3)), rows, num_envs, seed=3)
    words = {"epsilon": 1.0}
    works = [worker.run(weights, 0, Task(version, 0, (0,), words=words)) for version in range(rollouts)]
    return Played(clocks, [work.bundle for work in works if work.bundle is not None])


Row = tuple[tuple[float, ...], int, float, float, tuple[float, ...]]


def expected(told: Played, n: int) -> list[list[Row]]:
    """The transitions of each rollout, found by walking along each environment's steps, one at a time."""
    found: list[list[Row]] = [[] for _ in told.bundles]
    for env, clock in enumerate(told.envs):
        steps = iter(clock.told)
        for rollout, bundle in enumerate(told.bundles):
            mine = [next(steps) for _ in range(int(bundle["mask"][:, env].sum()))]
            for first in range(len(mine)):
                reward, discount, last = 0.0, 1.0, mine[first]
                for moment in mine[first : first + n]:
                    reward, discount, last = reward + discount * moment.reward, discount * GAMMA, moment
                    if moment.terminated or moment.truncated:
                        break
                row = (mine[first].before, mine[first].action, reward, 0.0 if last.terminated else discount, last.after)
                found[rollout].append(row)
    return found


def held(buffer: ReplayBuffer) -> list[Row]:
    """Every transition that can be drawn, oldest first."""
    places = buffer.order[(buffer.taken + np.arange(len(buffer))) % buffer.capacity].astype(np.int64)
    return list(rows_of(buffer._gathered(places)))


def rows_of(batch: Transitions) -> Iterator[Row]:
    for i in range(len(batch)):
        yield (
            tuple(batch.observation[i].tolist()),
            int(batch.action[i]),
            float(batch.reward[i]),
            float(batch.discount[i]),
            tuple(batch.next_observation[i].tolist()),
        )


def alike(one: list[Row], other: list[Row]) -> bool:
    """True if the same transitions are in both, in any order. Terminated ones may bootstrap from any observation: it counts
    0."""

    def rounded(row: Row) -> Any:
        return row[0], row[1], round(row[2], 4), round(row[3], 5), row[4] if row[3] else ()

    return sorted(map(rounded, one)) == sorted(map(rounded, other))


@pytest.mark.parametrize("n", [1, 2, 3, 5, 20])
@pytest.mark.parametrize("mode", MODES)
def test_transitions_are_those_that_the_environments_told(mode: str, n: int) -> None:
    told = played(mode, rollouts=4, rows=11, num_envs=3)
    buffer = ReplayBuffer(told.bundles[0].layout, 500, n_step=n, gamma=GAMMA)
    counts = [buffer.insert(bundle) for bundle in told.bundles]
    wanted = expected(told, n)
    assert counts == [len(rows) for rows in wanted]
    assert alike(held(buffer), [row for rows in wanted for row in rows])


@pytest.mark.parametrize("n", [1, 3])
def test_a_reward_larger_than_max_reward_counts_as_that_before_rewards_are_added_up(n: int) -> None:
    told = played("SameStep", rollouts=4, rows=11, num_envs=3)
    assert any(abs(moment.reward) > 2 for clock in told.envs for moment in clock.told)
    for clock in told.envs:
        clock.told = [moment._replace(reward=max(-2.0, min(2.0, moment.reward))) for moment in clock.told]
    buffer = ReplayBuffer(told.bundles[0].layout, 500, n_step=n, gamma=GAMMA, max_reward=2.0)
    for bundle in told.bundles:
        buffer.insert(bundle)
    assert alike(held(buffer), [row for rows in expected(told, n) for row in rows])


@pytest.mark.parametrize("mode", MODES)
def test_a_ring_that_is_full_keeps_the_newest_transitions_whole(mode: str) -> None:
    told = played(mode, rollouts=25, rows=7, num_envs=2)
    buffer = ReplayBuffer(told.bundles[0].layout, 33, n_step=3, gamma=GAMMA)
    wanted = [row for rows in expected(told, 3) for row in rows]
    known = {(row[0], row[1]): row for row in wanted}
    for bundle in told.bundles:
        before = len(buffer)
        came = buffer.insert(bundle)
        rows = held(buffer)
        assert len(rows) == len(buffer) <= before + came
        assert alike(rows, [known[row[0], row[1]] for row in rows])
    assert 24 <= len(buffer) <= 38  # 33 transitions take 38 places; a row that only resets takes one too
    newest = {row[0] for row in held(buffer)}
    assert all(row[0] in newest for row in expected(told, 3)[-1])


def test_a_return_over_rows_that_a_slow_rollout_left_out_stops_before_them() -> None:
    """A rollout that ran out of time: rows 2 and 3 are masked, and hold the observation to bootstrap from."""
    no, mask = np.zeros((4, 1), bool), np.array([[True], [True], [False], [False]])
    returns = n_step(np.array([[1.0], [2.0], [7.0], [7.0]]), no, no, mask, 3, 0.5)
    assert returns.reward.ravel().tolist() == [2.0, 2.0, 0.0, 0.0]
    assert returns.discount.ravel().tolist()[:2] == [0.25, 0.5]
    assert returns.steps.ravel().tolist() == [2, 1, 0, 0]


def test_pictures_stay_bytes_and_are_kept_once() -> None:
    spaces = Spaces(Observations((4, 5), "u1"), Discrete(3))
    buffer = ReplayBuffer(spaces.trajectory(10, 2), 1000)
    assert buffer.ring["observation"].dtype == np.uint8
    assert buffer.capacity == 1100  # one place in eleven holds the last observation of a rollout
    assert buffer.nbytes == 1100 * (20 + 8 + 12 + 4)


def test_a_replay_that_does_not_fit_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    layout = Spaces(Observations((4,)), Discrete(3)).trajectory(10, 2)
    with pytest.raises(
        UserError, match=r"buffer_size=19: must hold one trajectory, rollout_length x num_envs = 10 x 2 = 20 rows"
    ):
        ReplayBuffer(layout, 19)
    monkeypatch.setattr(ring_replay, "room", lambda: Room(30_000_000, "container"))
    with pytest.raises(
        UserError, match=r"buffer_size=1000000: the replay would take 0.0 GB of memory, and this container has 0"
    ):
        ReplayBuffer(layout, 1_000_000)


def test_a_trajectory_of_another_layout_is_refused() -> None:
    spaces = Spaces(Observations((4,)), Discrete(3))
    buffer = ReplayBuffer(spaces.trajectory(10, 2), 100)
    with pytest.raises(ProtocolError, match="layout of the run's first one"):
        buffer.insert(Bundle.zeros(spaces.trajectory(10, 3)))
    assert (buffer.ring.written, len(buffer)) == (0, 0)


# Draws


def numbered(rows: int, envs: int, **options: Any) -> ReplayBuffer:
    """A replay of one trajectory whose observations are numbered."""
    layout = Spaces(Observations((1,)), Discrete(2)).trajectory(rows, envs)
    bundle = Bundle.zeros(layout)
    bundle["observation"][...] = np.arange((rows + 1) * envs).reshape(rows + 1, envs, 1)
    bundle["mask"][...] = True
    buffer = ReplayBuffer(layout, rows * envs, **options)
    buffer.insert(bundle)
    return buffer


def chi_square(counts: Any, expected: Any) -> float:
    return float(((counts - expected) ** 2 / expected).sum())


def bound(freedom: int) -> float:
    """The 99.99 % quantile of chi-square, by Wilson and Hilferty's approximation."""
    spread = 2 / (9 * freedom)
    return freedom * (1 - spread + 3.719 * spread**0.5) ** 3


def test_uniform_draws_are_uniform() -> None:
    buffer = numbered(8, 5)
    counts = np.zeros(40)
    for batch in buffer.minibatches(np.random.default_rng(0), 400, 50):
        counts += np.bincount(batch.places, minlength=40)[:40]
    assert chi_square(counts, 20_000 / 40) < bound(39)


def test_prioritized_draws_are_in_proportion_to_the_size_of_errors() -> None:
    buffer = numbered(8, 5, prioritized=True, alpha=0.7)
    errors = np.linspace(0.01, 3.0, 40)
    buffer.prioritize(np.arange(40), torch.from_numpy(errors))
    p = (errors + 1e-6) ** 0.7
    counts = np.zeros(40)
    rng = np.random.default_rng(1)
    for _ in range(2000):  # of draws in strata one from each batch is independent of the others
        (batch,) = buffer.minibatches(rng, 1, 10, beta=0.5)
        counts[rng.choice(batch.places)] += 1
        weight = (40 * p[batch.places] / p.sum()) ** -0.5
        assert batch.weight.numpy() == pytest.approx(weight / weight.max(), rel=1e-5)
    assert chi_square(counts, 2000 * p / p.sum()) < bound(39)


def test_every_batch_has_a_place_from_each_part_of_the_sum() -> None:
    buffer = numbered(8, 5, prioritized=True)
    (batch,) = buffer.minibatches(np.random.default_rng(2), 1, 40)
    assert sorted(batch.places) == list(range(40))  # forty equal priorities, forty parts


def test_new_rows_have_the_largest_priority_so_far() -> None:
    priorities = Priorities(10, alpha=0.5)
    assert priorities.largest == 1.0
    priorities.put(np.array([1, 2]), np.array([4.0, 0.25]))
    assert priorities.largest == pytest.approx(2.0)
    priorities.put(np.array([1]), np.array([0.0]))
    assert priorities.largest == pytest.approx(2.0)
    buffer = numbered(4, 2, prioritized=True, alpha=0.5)
    buffer.prioritize(np.arange(8), torch.full((8,), 9.0))
    again = Bundle.zeros(buffer.layout)
    again["mask"][:2] = True
    buffer.insert(again)  # over the oldest places: 4 of 8 rows can be drawn
    leaves = buffer.priorities.tree.leaves if buffer.priorities else np.zeros(0)
    assert sorted(leaves[leaves > 0]) == pytest.approx([3.0] * len(buffer))


def test_draws_with_priorities_never_meet_rows_that_cannot_be_drawn() -> None:
    told = played("NextStep", rollouts=12, rows=7, num_envs=2)
    buffer = ReplayBuffer(told.bundles[0].layout, 40, prioritized=True)
    rng = np.random.default_rng(3)
    for bundle in told.bundles:
        buffer.insert(bundle)
        for batch in buffer.minibatches(rng, 3, 16):
            assert (buffer.ring["ahead"][batch.places] > 0).all()
            buffer.prioritize(batch.places, torch.from_numpy(rng.normal(size=16)))
        assert buffer.priorities is not None
        assert np.count_nonzero(buffer.priorities.tree.leaves) == len(buffer)


# Snapshots


def filled(told: Played, folder: Path | None, size: int = 60) -> ReplayBuffer:
    buffer = ReplayBuffer(told.bundles[0].layout, size, n_step=2, prioritized=True)
    if folder is not None:
        buffer.settle(folder)
    return buffer


@pytest.mark.parametrize("files", [False, True])
def test_a_replay_goes_on_from_a_snapshot_with_the_same_bits(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, files: bool
) -> None:
    monkeypatch.setattr(row_ring, "HELD", 0)
    told = played("SameStep", rollouts=30, rows=7, num_envs=2)
    one = filled(told, tmp_path / "replay" if files else None)
    rng = np.random.default_rng(4)
    for k, bundle in enumerate(told.bundles[:20]):
        one.insert(bundle)
        one.prioritize(*_some(one, rng))
        state = {name: np.array(array) for name, array in one.state().items()} if k % 3 == 1 else {}
    assert (set(state) >= {"replay/files"}) is files
    other = filled(told, tmp_path / "replay" if files else None)
    other.load(state)
    twins = np.random.default_rng(5), np.random.default_rng(5)
    for bundle in told.bundles[20:]:
        for buffer, rng in zip((one, other), twins, strict=True):
            buffer.insert(bundle)
            buffer.prioritize(*_some(buffer, rng))
    assert one.order.shape == other.order.shape
    for first, second in zip(one.minibatches(twins[0], 5, 9), other.minibatches(twins[1], 5, 9), strict=True):
        for name in ("observation", "action", "reward", "discount", "next_observation", "weight"):
            assert torch.equal(getattr(first, name), getattr(second, name)), name
    assert held(one) == held(other)


def _some(buffer: ReplayBuffer, rng: np.random.Generator) -> tuple[Any, Any]:
    (batch,) = buffer.minibatches(rng, 1, 8)
    return batch.places, torch.from_numpy(rng.normal(size=8))


def test_a_snapshot_writes_only_rows_that_came_since_the_last(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(row_ring, "HELD", 0)
    told = played("NextStep", rollouts=12, rows=7, num_envs=2)
    buffer = filled(told, tmp_path)
    sizes = []
    for bundle in told.bundles:
        buffer.insert(bundle)
        buffer.state()
        sizes.append(max(tmp_path.iterdir()).stat().st_size)
    assert set(sizes) == {16 * buffer.ring.row_bytes}
    assert len(list(tmp_path.iterdir())) == 12
    buffer.forget(buffer.first)  # 69 places of 16 in a file: the newest five files are needed
    assert min(path.name for path in tmp_path.iterdir()) == "000000000112-000000000128.rows"


def test_a_damaged_or_missing_file_of_rows_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(row_ring, "HELD", 0)
    told = played("NextStep", rollouts=2, rows=7, num_envs=2)
    buffer = filled(told, tmp_path)
    buffer.insert(told.bundles[0])
    state = buffer.state()
    (file,) = tmp_path.iterdir()
    whole = file.read_bytes()
    file.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    with pytest.raises(UserError, match="rows of the replay are damaged"):
        filled(told, tmp_path).load(state)
    file.unlink()
    with pytest.raises(UserError, match="copy replay/ with checkpoints/"):
        filled(told, tmp_path).load(state)


@pytest.mark.parametrize("size", [30, 200])
def test_a_run_may_go_on_with_another_buffer_size(size: int) -> None:
    told = played("NextStep", rollouts=20, rows=7, num_envs=2)
    one = filled(told, None)
    for bundle in told.bundles[:15]:
        one.insert(bundle)
    other = filled(told, None, size)
    other.load(one.state())
    rows = held(one)
    assert held(other) == rows[-len(other) :]
    assert len(other) == min(len(rows), len(other))
    for bundle in told.bundles[15:]:
        other.insert(bundle)
        assert other.priorities is not None
        assert np.count_nonzero(other.priorities.tree.leaves) == len(other) == len(held(other))
