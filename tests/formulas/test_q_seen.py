"""Q-networks behind action masks, on pictures and on observations of several parts."""

from __future__ import annotations

from typing import Any

import gymnasium
import numpy as np
import pytest
import torch
from gymnasium.vector import AutoresetMode, SyncVectorEnv

from shoal.actors.workers.rollout import Rollout
from shoal.aggregators.dqn import DQNLearner
from shoal.envs.spaces import Spaces
from shoal.envs.vector import Envs
from shoal.nets.acting import Form
from shoal.nets.q import QNetwork
from shoal.nets.q_policy import EpsilonGreedy, NumpyQ, QNetworks, TorchQ
from shoal.protocol.work import Contribution, Task

MODES = ["NextStep", "SameStep", "Disabled"]
WORDS = {"epsilon": 0.7}


class Gated(gymnasium.Env[Any, Any]):
    """Rooms 0 to 4 in a row. In room r only the actions r and r + 1 of six are allowed; the larger goes on, and pays 1 in the
    last room. Action 5 would be best everywhere, and is allowed nowhere but in the last room."""

    observation_space = gymnasium.spaces.Dict(
        {"observation": gymnasium.spaces.Box(0, 1, (5,)), "action_mask": gymnasium.spaces.MultiBinary(6)}
    )
    action_space = gymnasium.spaces.Discrete(6)

    def reset(self, *, seed: int | None = None, options: Any = None) -> Any:
        super().reset(seed=seed)
        self.room, self.at, self.broken = 0, 0, getattr(self, "broken", 0)
        return self.seen(), {}

    def seen(self) -> Any:
        mask = np.zeros(6, np.int8)
        mask[self.room : self.room + 2] = 1
        return {"observation": np.eye(5, dtype=np.float32)[self.room], "action_mask": mask}

    def step(self, action: Any) -> Any:
        assert self.seen()["action_mask"][action], (self.room, action)
        self.at += 1
        paid = float(self.room == 4 and action == 5)
        self.room = min(4, self.room + int(action > self.room))
        return self.seen(), paid, False, self.at == 8, {}


def learned(env: Any, mode: str, versions: int, **options: Any) -> tuple[DQNLearner, Any]:
    def make(number: int) -> Envs:
        return Envs(SyncVectorEnv([env] * number, autoreset_mode=AutoresetMode(mode)))

    spaces = make(1).spaces
    networks = QNetworks()
    policy = networks.policy(spaces, Form((), "relu"), None)
    network = networks.build(spaces, Form((), "relu"), 1)
    settings = {"gamma": 0.8, "lr": 0.05, "batch_size": 32, "replay_ratio": 0.25, "target_update_interval": 3} | options
    made = DQNLearner(network, layout=spaces.trajectory(12, 4), learning_starts=0, **settings)
    worker = Rollout(make, policy, 12, 4, seed=5)
    for version in range(versions):
        task = Task(version, 0, (0,), words=WORDS)
        made.fold(Contribution(task, version, 0, worker.run(made.weights(), 0, task)))
        made.step()
    return made, worker


@pytest.mark.parametrize("mode", MODES)
def test_actions_that_are_not_allowed_are_neither_taken_nor_bootstrapped_from(mode: str) -> None:
    """The environment itself asserts the first. Values of forbidden actions are put at 1,000, which no target may see."""
    made, worker = learned(Gated, mode, versions=30)
    work = worker.run(made.weights(), 0, Task(30, 0, (0,), "evaluate", counts=False))
    assert set(work.samples["return"]) == {4.0}  # four steps to the last room, then four times 1
    (batch,) = made.buffer.minibatches(np.random.default_rng(0), 1, 200)
    rooms = batch.following["observation"].argmax(1)
    with torch.no_grad():
        made.q.module.q.weight[:] = 1_000.0  # of every action in every room
        for room in range(5):
            made.q.module.q.weight[room : room + 2, room] = torch.tensor([1.0, 2.0])
        made.q.module.q.bias.zero_()
    made.target.read(made.weights())
    for double in (True, False):
        made.double = double
        assert torch.allclose(made.targets(batch), batch.reward + 0.8 * torch.full_like(batch.reward, 2.0))
    assert len(set(rooms.tolist())) == 5


def test_random_actions_are_drawn_alike_from_those_that_are_allowed() -> None:
    spaces = Envs(SyncVectorEnv([Gated])).spaces
    policy = NumpyQ(spaces.action)  # type: ignore[arg-type]
    policy.values = lambda seen: np.zeros((len(seen), 6), np.float32)  # type: ignore[method-assign]
    seen = np.zeros(3, spaces.record()[0])
    seen["action_mask"] = [[0, 1, 0, 0, 1, 1], [1, 0, 0, 0, 0, 0], [0, 0, 1, 1, 0, 0]]
    noise = policy.noise(np.random.default_rng(0), 6_000, 3)
    none = np.zeros(3, bool)
    counts = np.zeros((3, 6))
    for each in noise:
        counts[np.arange(3), policy.act(seen, none, {}, each, {"epsilon": 1.0}).action] += 1
    assert counts[0] == pytest.approx([0, 2_000, 0, 0, 2_000, 2_000], abs=200)
    assert counts[1].tolist() == [6_000, 0, 0, 0, 0, 0]
    assert counts[2] == pytest.approx([0, 0, 3_000, 3_000, 0, 0], abs=200)


class Screen(gymnasium.Env[Any, Any]):
    """A picture of 40 x 40 with a bright column, left or right; the action that names its side pays 1."""

    observation_space = gymnasium.spaces.Box(0, 255, (40, 40, 1), np.uint8)
    action_space = gymnasium.spaces.Discrete(2)

    def reset(self, *, seed: int | None = None, options: Any = None) -> Any:
        super().reset(seed=seed)
        self.at = 0
        return self.seen(), {}

    def seen(self) -> Any:
        self.side = int(self.np_random.integers(2))
        picture = np.zeros((40, 40, 1), np.uint8)
        picture[:, 10 + 20 * self.side : 14 + 20 * self.side] = 255
        return picture

    def step(self, action: Any) -> Any:
        self.at += 1
        paid = float(action == self.side)
        return self.seen(), paid, False, self.at == 6, {}


def test_pictures_are_learned_from_by_convolutions_and_kept_as_bytes() -> None:
    made, worker = learned(Screen, "SameStep", versions=12, gamma=0.0, lr=1e-3, batch_size=16)
    assert made.buffer.ring["observation"].dtype == np.uint8  # type: ignore[attr-defined]
    assert any(isinstance(part, torch.nn.Conv2d) for part in made.q.module.modules())
    assert isinstance(worker.policy, TorchQ)
    work = worker.run(made.weights(), 0, Task(30, 0, (0,), "evaluate", counts=False))
    assert np.mean(work.samples["return"]) > 5.5


class Parts(Gated):
    """The rooms as a Dict of a number and a picture's worth of zeros, without masks."""

    observation_space = gymnasium.spaces.Dict({"room": gymnasium.spaces.Discrete(5), "more": gymnasium.spaces.Box(-1, 1, (2,))})
    action_space = gymnasium.spaces.Discrete(2)

    def seen(self) -> Any:
        return {"room": self.room, "more": np.zeros(2, np.float32)}

    def step(self, action: Any) -> Any:
        self.at += 1
        paid = float(self.room == 4)
        self.room = min(4, self.room + int(action))
        return self.seen(), paid, False, self.at == 8, {}


@pytest.mark.parametrize("mode", ["NextStep", "SameStep"])
def test_observations_of_several_parts_are_learned_from(mode: str) -> None:
    made, worker = learned(Parts, mode, versions=25)
    assert isinstance(worker.policy, EpsilonGreedy)
    work = worker.run(made.weights(), 0, Task(30, 0, (0,), "evaluate", counts=False))
    assert set(work.samples["return"]) == {4.0}


def test_the_numpy_twin_of_several_parts_values_as_the_module_does() -> None:
    spaces: Spaces = Envs(SyncVectorEnv([Parts])).spaces
    q = QNetwork(spaces, (7,), "tanh", seed=2)
    twin, whole = NumpyQ(spaces.action, "tanh"), TorchQ(q, spaces.action)  # type: ignore[arg-type]
    seen = np.zeros(4, spaces.record()[0])
    for name in seen.dtype.names or ():
        seen[name] = np.random.default_rng(0).normal(size=seen[name].shape)
    for policy in (twin, whole):
        policy.load(whole.flat.bundle())
    assert twin.values(seen) == pytest.approx(whole.values(seen), abs=1e-6)
