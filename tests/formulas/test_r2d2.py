"""R2D2 against its definition, one sequence and one row at a time, and on a task that asks for memory."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import pytest
import torch
from gymnasium.vector import AutoresetMode, SyncVectorEnv
from torch import Tensor

from shoal.actors.workers.rollout import Rollout
from shoal.aggregators import row_ring
from shoal.aggregators.r2d2 import R2D2Learner, rescaled, unscaled
from shoal.aggregators.sequences import SequenceBuffer, Sequences
from shoal.coordinator.keeping.store import Snapshot, Store
from shoal.envs.spaces import Discrete
from shoal.envs.vector import Envs
from shoal.nets.q import RecurrentQNetwork, fitting
from shoal.nets.q_policy import RecurrentTorchQ
from shoal.protocol.errors import UserError
from shoal.protocol.work import Contribution, Task
from tests.formulas.random_trajectories import SPACES

MODES = ["NextStep", "SameStep", "Disabled"]


class Recall(gymnasium.Env[Any, Any]):
    """A cue, then two steps that show nothing, then an action that pays 1 if it is the one that the cue named."""

    observation_space = gymnasium.spaces.Box(-1, 1, (2,))
    action_space = gymnasium.spaces.Discrete(2)

    def reset(self, *, seed: int | None = None, options: Any = None) -> Any:
        super().reset(seed=seed)
        self.cue, self.at = int(self.np_random.integers(2)), 0
        return np.array([1 - 2 * self.cue, 0], np.float32), {}

    def step(self, action: Any) -> Any:
        self.at += 1
        paid = float(self.at == 3 and action == self.cue)
        return np.array([0, self.at == 2], np.float32), paid, self.at == 3, False, {}


class Cut(Recall):
    """Recall, cut off after four steps instead of ended, and paid at each of them."""

    def step(self, action: Any) -> Any:
        self.at += 1
        return np.array([0, self.at / 4], np.float32), float(action == self.cue), False, self.at == 4, {}


def envs_of(env: Any, mode: str, number: int) -> Envs:
    return Envs(SyncVectorEnv([env] * number, autoreset_mode=AutoresetMode(mode)))


def made(env: Any, mode: str, core: str = "gru", rows: int = 12, envs: int = 3, **options: Any) -> tuple[R2D2Learner, Rollout]:
    spaces = envs_of(env, mode, 1).spaces
    network = RecurrentQNetwork(spaces, (8,), "tanh", options.pop("dueling", False), core, 8, seed=1)
    policy = RecurrentTorchQ(network, Discrete(2))
    layout = spaces.trajectory(rows, envs, policy.rows, policy.memory)
    worker = Rollout(lambda number: envs_of(env, mode, number), policy, rows, envs, seed=4)
    return R2D2Learner(network, layout=layout, **options), worker


def rollout(learner: R2D2Learner, worker: Rollout, version: int, epsilon: float = 0.5) -> Contribution:
    task = Task(version, 0, (0,), words={"epsilon": epsilon})
    return Contribution(task, version, 0, worker.run(learner.weights(), 0, task))


@pytest.mark.parametrize("x", [0.0, 1e-6, 0.3, 1.0, 47.0, 1e4])
def test_values_are_rescaled_and_back(x: float) -> None:
    """Pohlen et al. 2018, proposition A.2, with epsilon 0.001."""
    for sign in (1, -1):
        y = float(rescaled(torch.tensor(sign * x, dtype=torch.float64)))
        assert y == pytest.approx(sign * ((x + 1) ** 0.5 - 1 + 1e-3 * x), rel=1e-9, abs=1e-15)
        assert float(unscaled(torch.tensor(y, dtype=torch.float64))) == pytest.approx(sign * x, rel=1e-9, abs=1e-12)


@pytest.mark.parametrize("core", ["lstm", "gru"])
@pytest.mark.parametrize("mode", MODES)
def test_a_replayed_sequence_has_the_values_by_which_the_actor_acted(mode: str, core: str) -> None:
    """Greedy actions of three rollouts in a row, whose state goes on from one to the next, are those of the replayed values."""
    learner, worker = made(Cut, mode, core)
    told = [rollout(learner, worker, version, epsilon=0.0).bundle for version in range(3)]
    for bundle in told:
        learner.buffer.insert(bundle)
    (batch,) = learner.buffer.minibatches(np.random.default_rng(0), 1, 40)
    with torch.no_grad():
        values = apart(learner.q.module, batch)
    greedy = torch.stack([torch.stack([values[n][t].argmax() for n in range(40)]) for t in range(12)])
    assert torch.equal(greedy, batch.action)
    for n, place in enumerate(batch.places):
        bundle, env = told[place // 3], place % 3
        assert np.array_equal(batch.seen["observation"][:, n], bundle["observation"][:, env])
        for name, each in batch.state.items():
            assert np.array_equal(each[n], bundle[f"state/{name}"][env])
    assert all(bool(each.any()) for each in batch.state.values())


def apart(module: Any, batch: Sequences) -> list[list[Tensor]]:
    """Values of each sequence and row, one at a time: [N][T + 1] of [n]."""
    return [[values for values, _ in walked(module, batch, n)] for n in range(len(batch.places))]


def walked(module: Any, batch: Sequences, n: int) -> list[tuple[Tensor, Mapping[str, Tensor]]]:
    state = {name: each[n : n + 1] for name, each in batch.state.items()}
    found = []
    for t in range(len(batch.first)):
        if batch.first[t, n]:
            state = {name: torch.zeros_like(each) for name, each in state.items()}
        values, state = module(batch.seen["observation"][t, n : n + 1], state)
        found.append((values[0], state))
    return found


@pytest.mark.parametrize("double", [True, False])
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("env", [Cut, Recall])
def test_retrace_s_targets_are_those_of_a_walk_along_each_sequence(env: Any, mode: str, double: bool) -> None:
    """Munos et al. 2016, equation 3, as an explicit sum over the rows of an episode, with the greedy policy as pi: each row's
    error by products of traces. Values are read along single rows of the actor's own trajectory."""
    gamma, lam, burn = 0.9, 0.8, 4
    learner, worker = made(env, mode, double=double, gamma=gamma, burn_in=burn, returns="retrace", retrace_lambda=lam)
    with torch.no_grad():
        learner.target.vector.add_(torch.randn(learner.target.vector.shape, generator=torch.Generator().manual_seed(1)) * 0.2)
    told = rollout(learner, worker, 0, epsilon=0.3)
    learner.buffer.insert(told.bundle)
    (batch,) = learner.buffer.minibatches(np.random.default_rng(0), 1, 20)
    online, target = burnt(learner, batch)
    with torch.no_grad():
        found = learner.sequence_targets(batch, online, target)
        mine, theirs = ([walked(module, batch, n) for n in range(20)] for module in (learner.q.module, learner.target.module))
    arrays = {name: told.bundle[name] for name in ("reward", "terminated", "truncated", "mask", "action", "final")
              if name in told.bundle}  # fmt: skip
    longest = 0
    for n in range(20):
        at = int(batch.places[n])

        def natural(t: int, action: int | None, n: int = n, at: int = at) -> float:
            """The value of an action after row t (None: of the greedy one), of the observation that followed row t."""
            values = [its[n][t + 1][0] for its in (mine, theirs)]
            if arrays["truncated"][t, at] and mode != "NextStep":
                final = torch.from_numpy(arrays["final"][t, at][None].copy())
                values = [
                    module(final, its[n][t][1])[0][0].detach()
                    for module, its in ((learner.q.module, mine), (learner.target.module, theirs))
                ]
            best = int(values[0 if double else 1].argmax()) if action is None else action
            return float(unscaled(values[1][best].double()))

        for t in range(burn, 12):
            if not arrays["mask"][t, at]:
                continue
            taken = float(unscaled(theirs[n][t][0][int(arrays["action"][t, at])].double()))
            total, weight, k = taken, 1.0, t
            while True:
                ends = bool(arrays["terminated"][k, at])
                error = float(arrays["reward"][k, at]) + (0.0 if ends else gamma * natural(k, None)) - taken
                total += weight * error
                if ends or arrays["truncated"][k, at] or k == 11:
                    break
                greedy = int((mine if double else theirs)[n][k + 1][0].argmax())
                action = int(arrays["action"][k + 1, at])
                weight *= gamma * lam * (action == greedy)
                taken, k = natural(k, action), k + 1
                longest = max(longest, k - t if weight else 0)
            assert float(found[t - burn, n]) == pytest.approx(float(rescaled(torch.tensor(total))), abs=1e-5), (n, t)
    assert longest >= 2


@pytest.mark.parametrize("double", [True, False])
@pytest.mark.parametrize("mode", MODES)
def test_targets_are_those_of_a_walk_along_each_sequence(mode: str, double: bool) -> None:
    """Kapturowski et al. 2019, equation 1: h(sum of gamma^k r + gamma^n h^-1(Q)), along single rows of the actor's own
    trajectory. Nothing of the buffer's returns, offsets or flags is used."""
    gamma, n_step, burn = 0.9, 3, 4
    learner, worker = made(Cut, mode, double=double, gamma=gamma, n_step=n_step, burn_in=burn)
    with torch.no_grad():
        learner.target.vector.add_(torch.randn(learner.target.vector.shape, generator=torch.Generator().manual_seed(1)) * 0.2)
    told = rollout(learner, worker, 0)
    learner.buffer.insert(told.bundle)
    (batch,) = learner.buffer.minibatches(np.random.default_rng(0), 1, 20)
    online, target = burnt(learner, batch)
    with torch.no_grad():
        found = learner.sequence_targets(batch, online, target)
        mine, theirs = ([walked(module, batch, n) for n in range(20)] for module in (learner.q.module, learner.target.module))
    arrays = {name: told.bundle[name] for name in ("reward", "terminated", "truncated", "mask", "observation")}
    for n in range(20):
        env = int(batch.places[n])
        for t in range(burn, 12):
            if not arrays["mask"][t, env]:
                continue
            total, k = 0.0, t
            while True:
                total += gamma ** (k - t) * float(arrays["reward"][k, env])
                ended = arrays["terminated"][k, env] or arrays["truncated"][k, env]
                if ended or k == 11 or k - t + 1 == n_step:
                    break
                k += 1
            values = [its[n][k + 1][0] for its in (mine, theirs)]
            if arrays["truncated"][k, env] and mode != "NextStep":
                final = torch.from_numpy(told.bundle["final"][k, env][None].copy())
                values = [
                    module(final, its[n][k][1])[0][0].detach()
                    for module, its in ((learner.q.module, mine), (learner.target.module, theirs))
                ]
            best = int(values[0 if double else 1].argmax())
            follows = 0.0 if arrays["terminated"][k, env] else gamma ** (k - t + 1) * float(unscaled(values[1][best]))
            assert float(found[t - burn, n]) == pytest.approx(float(rescaled(torch.tensor(total + follows))), abs=1e-5), (n, t)


def burnt(learner: R2D2Learner, batch: Sequences) -> Any:
    from shoal.aggregators.r2d2 import valued

    burn = learner.burn_in
    with torch.no_grad():
        found = []
        for module in (learner.q.module, learner.target.module):
            before, after = ({name: each[cut] for name, each in batch.seen.items()} for cut in (slice(burn), slice(burn, None)))
            state = valued(module, before, batch.state, batch.first[:burn]).after[-1]
            found.append(valued(module, after, state, batch.first[burn:]))
    return found


def test_a_sequence_s_priority_mixes_its_largest_and_its_mean_error() -> None:
    learner, worker = made(Cut, "NextStep", replay="prioritized", priority_alpha=1.0, eta=0.75, burn_in=2, lr=1e-12)
    learner.buffer.insert(rollout(learner, worker, 0).bundle)
    (batch,) = learner.buffer.minibatches(np.random.default_rng(0), 1, 6)
    online, target = burnt(learner, batch)
    error = learner.sequence_targets(batch, online, target) - online.values[:-1].gather(-1, batch.action[2:, :, None]).squeeze(
        -1
    )
    learner.update(batch)
    assert isinstance(learner.buffer, SequenceBuffer)
    assert learner.buffer.priorities is not None
    for n, place in enumerate(batch.places):
        size = error[:, n][batch.mask[2:, n]].abs()
        wanted = 0.75 * float(size.max()) + 0.25 * float(size.mean())
        assert learner.buffer.priorities.tree.leaves[place] == pytest.approx(wanted, abs=1e-5)


@pytest.mark.parametrize("returns", ["n_step", "retrace"])
def test_what_was_seen_at_the_beginning_is_remembered(returns: str) -> None:
    options: dict[str, Any] = {"lr": 0.01, "gamma": 0.9, "batch_size": 16, "replay_ratio": 0.04, "target_update_interval": 10}
    learner, worker = made(
        Recall, "SameStep", rows=16, envs=8, burn_in=2, learning_starts=300, n_step=3, returns=returns, **options
    )
    for version in range(45):
        learner.fold(rollout(learner, worker, version))
        learner.step()
    work = worker.run(learner.weights(), 0, Task(45, 0, (0,), "evaluate", counts=False))
    assert np.mean(work.samples["return"]) == 1.0


def test_a_run_goes_on_from_a_snapshot_on_disk_with_the_same_bits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(row_ring, "HELD", 2_000)
    options: dict[str, Any] = {
        "replay": "prioritized",
        "batch_size": 4,
        "learning_starts": 40,
        "replay_ratio": 0.1,
        "burn_in": 3,
    }
    options |= {"buffer_size": 200, "total_timesteps": 400, "target_update_interval": 5}
    whole, worker = made(Cut, "NextStep", **options)
    told = [rollout(whole, worker, version) for version in range(10)]
    first, second = (made(Cut, "NextStep", **options)[0] for _ in range(2))
    store = Store(tmp_path)
    first.settle(tmp_path / "clients")
    second.settle(tmp_path / "clients")
    for k, each in enumerate(told):
        whole.fold(each)
        whole.step()
        if k < 5:
            first.fold(each)
            first.step()
            store.save(Snapshot(k + 1, first.weights(), first.state()))
    found = store.newest(lambda text: None)
    assert found is not None
    assert "replay/files" in found.state
    second.load(found.weights, found.state)
    for each in told[5:]:
        second.fold(each)
        second.step()
    assert whole.updates > 10
    assert second.weights().sha256() == whole.weights().sha256()
    ours, theirs = second.state(), whole.state()
    for name in set(ours) & set(theirs):
        assert np.array_equal(ours[name], theirs[name]), name


def test_a_network_that_remembers_nothing_is_refused() -> None:
    with pytest.raises(UserError, match="Linear has no attribute memory, and the job's method needs one; method=dqn learns it"):
        fitting(torch.nn.Linear(3, 4), SPACES, remembers=True)
    network = RecurrentQNetwork(SPACES, (4,), "tanh", False, "lstm", 5)
    with pytest.raises(UserError, match=r"RecurrentQNetwork has memory \(h, c\), and the job's method learns without"):
        fitting(network, SPACES)
    assert fitting(network, SPACES, remembers=True) is network
