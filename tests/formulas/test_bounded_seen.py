"""SAC and TD3 on pictures and on observations of several parts."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import gymnasium
import numpy as np
import pytest
import torch
from gymnasium.vector import AutoresetMode, SyncVectorEnv

from shoal.actors.workers.rollout import Rollout
from shoal.aggregators.sac import SACLearner
from shoal.aggregators.td3 import TD3Learner
from shoal.envs.vector import Envs
from shoal.nets.acting import Form
from shoal.nets.continuous import Bounded, Bounds, Deterministic, Squashed
from shoal.nets.numpy_policy import NumpyPolicy
from shoal.nets.squashed import TorchNumbers
from shoal.protocol.work import Contribution, Task

KINDS: Mapping[str, tuple[Any, Any, Mapping[str, Any]]] = {
    "sac": (SACLearner, Squashed(), {"autotune": False, "alpha": 0.02}),
    "td3": (TD3Learner, Deterministic(), {"policy_delay": 1}),
}
FORM = Form((32,), "relu")


class Aim(gymnasium.Env[Any, Any]):
    """The observation shows where to aim, at -0.8 or 0.8; a step pays 1 less the distance. Six steps, then a cut."""

    action_space = gymnasium.spaces.Box(-1, 1, (1,))

    def reset(self, *, seed: int | None = None, options: Any = None) -> Any:
        super().reset(seed=seed)
        self.at = 0
        return self.shown(), {}

    def shown(self) -> Any:
        self.side = int(self.np_random.integers(2))
        return self.seen()

    def seen(self) -> Any:
        raise NotImplementedError

    def step(self, action: Any) -> Any:
        self.at += 1
        paid = 1.0 - abs(float(action[0]) - (0.8 if self.side else -0.8))
        return self.shown(), paid, False, self.at == 6, {}


class Parts(Aim):
    """The side as a Dict of a Discrete part and of a Tuple that says nothing."""

    observation_space = gymnasium.spaces.Dict(
        {"side": gymnasium.spaces.Discrete(2), "rest": gymnasium.spaces.Tuple([gymnasium.spaces.Box(-1, 1, (2,))])}
    )

    def seen(self) -> Any:
        return {"side": self.side, "rest": (np.zeros(2, np.float32),)}


class Screen(Aim):
    """The side as a bright column of a picture."""

    observation_space: Any = gymnasium.spaces.Box(0, 255, (16, 16, 1), np.uint8)

    def seen(self) -> Any:
        picture = np.zeros((16, 16, 1), np.uint8)
        picture[:, 3 + 7 * self.side : 6 + 7 * self.side] = 255
        return picture


class Both(Screen):
    """The picture in a Dict, beside numbers."""

    observation_space = gymnasium.spaces.Dict({"eye": Screen.observation_space, "n": gymnasium.spaces.Box(-1, 1, (3,))})

    def seen(self) -> Any:
        return {"eye": super().seen(), "n": np.zeros(3, np.float32)}


def learned(env: Any, method: str, versions: int, mode: str = "SameStep") -> tuple[Any, Rollout]:
    def make(number: int) -> Envs:
        return Envs(SyncVectorEnv([env] * number, autoreset_mode=AutoresetMode(mode)))

    kind, network, more = KINDS[method]
    spaces = make(1).spaces
    made = kind(
        network.build(spaces, FORM, 1),
        layout=spaces.trajectory(12, 4),
        bounds=Bounds.of(spaces, method),
        spaces=spaces,
        hidden=(32,),
        gamma=0.0,
        lr=3e-3,
        batch_size=32,
        replay_ratio=0.25,
        learning_starts=96,
        **more,
    )
    worker = Rollout(make, network.policy(spaces, FORM, None), 12, 4, seed=5)
    for version in range(versions):
        task = Task(version, 0, (0,), words={"random": version < 4, "noise": 0.2})
        made.fold(Contribution(task, version, 0, worker.run(made.weights(), 0, task)))
        made.step()
    return made, worker


@pytest.mark.parametrize(("env", "versions"), [(Parts, 25), (Screen, 15), (Both, 15)])
@pytest.mark.parametrize("method", KINDS)
def test_what_is_shown_in_a_picture_or_in_a_part_is_learned(method: str, env: Any, versions: int) -> None:
    made, worker = learned(env, method, versions)
    work = worker.run(made.weights(), 0, Task(99, 0, (0,), "evaluate", counts=False))
    assert np.mean(work.samples["return"]) > 4.5  # of 6; 1.2 if the side is not seen
    convolved = any(isinstance(part, torch.nn.Conv2d) for part in made.q.module.modules())
    assert convolved is (env is not Parts)
    assert isinstance(worker.policy, Bounded)
    assert isinstance(worker.policy.net, TorchNumbers if env is not Parts else NumpyPolicy)
    if env is Screen:
        assert made.buffer.ring["observation"].dtype == np.uint8


@pytest.mark.parametrize("method", KINDS)
def test_the_numpy_twin_of_several_parts_acts_as_the_module_does(method: str) -> None:
    spaces = Envs(SyncVectorEnv([Parts])).spaces
    network = KINDS[method][1]
    module = network.build(spaces, FORM, 3)
    seen = np.zeros(5, spaces.record()[0])
    for name in seen.dtype.names or ():
        seen[name] = np.random.default_rng(0).normal(size=seen[name].shape)
    acted = []
    for policy in (network.policy(spaces, FORM, None), network.policy(spaces, FORM, module)):
        policy.load(learned(Parts, method, 0)[0].weights())
        acted.append(policy.act(seen, np.zeros(5, bool), {}, None, {}).action)
    assert np.allclose(*acted, atol=1e-5)
    assert len(np.unique(acted[0])) > 1


@pytest.mark.parametrize("method", KINDS)
def test_both_critics_look_through_one_body_and_the_actor_through_its_own(method: str) -> None:
    made, _ = learned(Both, method, 0)
    features = made.q.module.body.features
    assert made.q.module.weight_0.shape == (2, features + 1, 32)
    before, own = made.pi.flat.vector.clone(), made.q.flat.vector.clone()
    made.fold(Contribution(Task(0, 0, (0,)), 0, 0, learned(Both, method, 0)[1].run(made.weights(), 0, Task(0, 0, (0,)))))
    made.owed += 4
    made.step()
    assert made.updates == 4
    assert not torch.equal(before, made.pi.flat.vector)
    assert not torch.equal(own, made.q.flat.vector)
