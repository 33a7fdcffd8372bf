"""What a user's code draws from global generators is the same each time, and other held-out data is noticed."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import pytest
import torch
from torch import nn

import shoal
from shoal import Bundle, Federated, Reinforcement, Work
from shoal.actors import close
from shoal.protocol.errors import UserError
from shoal.protocol.work import Task

FEW: dict[str, Any] = {"clients": 4, "cohort": 4, "rounds": 2, "local_epochs": 1}


class Augmented(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(3, 2)
        self.scale = nn.Parameter(torch.tensor(np.random.normal(size=3), dtype=torch.float32))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.layer(x * self.scale + float(np.random.normal()) * random.random())


def data() -> Any:
    x = np.random.normal(size=(80, 3)) + torch.rand(80, 3).numpy()
    order = [random.random() for _ in range(80)]
    return (x, (x[:, 0] > 0.5).astype(int)) if order else None


def states() -> list[Any]:
    return [random.getstate(), repr(np.random.get_state()), torch.get_rng_state().tolist()]


@pytest.mark.parametrize("actors", [0, 2])
def test_unseeded_data_models_and_augmentation_repeat(tmp_path: Path, actors: int) -> None:
    runs, found = [], []
    for name in ("a", "b"):
        before = states()
        runs.append(shoal.run(Federated(Augmented, data, **FEW), actors=actors, folder=tmp_path / name))
        assert states() == before
        found.append(shoal.evaluate(runs[-1]))
        random.random(), np.random.rand(), torch.rand(())
    assert runs[0].summary["weights_sha256"] == runs[1].summary["weights_sha256"]
    assert found[0] == found[1]
    assert found[0]["held_out_loss"] == pytest.approx(runs[0].metrics["held_out_loss"])
    again = shoal.evaluate(shoal.load(tmp_path / "a", Federated(Augmented, data, **FEW)))
    assert again == found[0]


def test_other_held_out_data_is_refused(tmp_path: Path) -> None:
    def other() -> Any:
        x, y = data()
        return x + 1, y

    run = shoal.run(Federated(Augmented, data, **FEW), actors=0, folder=tmp_path / "run")
    assert len((tmp_path / "run" / "held_out.sha256").read_text().strip()) == 64
    changed = shoal.load(run.folder, Federated(Augmented, other, **FEW))
    with pytest.raises(UserError, match="the held-out data is not that of the run"):
        shoal.evaluate(changed)
    with pytest.raises(UserError, match="the held-out data is not that of the run"):
        changed.resume(settings={"rounds": 3})


class Drawing:
    """A worker of a user's own whose delta is what it draws."""

    def __init__(self) -> None:
        self.first = random.random()

    def run(self, weights: Any, client: int, task: Any) -> Work:
        drawn = (random.random(), np.random.rand(), float(torch.rand(())), self.first, 0.0)
        return Work(Bundle.pack({"w": np.array(drawn, np.float32)}, weights.layout))


def test_what_a_worker_of_ones_own_draws_is_a_function_of_the_task(tmp_path: Path) -> None:
    zeros = {"w": np.zeros(5, np.float32)}
    ended = set()
    for actors in (0, 1, 3):
        random.seed(actors), np.random.seed(actors), torch.manual_seed(actors)
        before = states()
        job = Federated(worker=Drawing, weights=lambda: zeros, clients=5, cohort=3, rounds=3)
        ended.add(shoal.run(job, actors=actors, folder=tmp_path / str(actors)).summary["weights_sha256"])
        assert states() == before
    assert len(ended) == 1


def test_generators_are_not_set_for_a_worker_that_says_it_draws_nothing() -> None:
    class Steady(Drawing):
        draws = False

    zeros = {"w": np.zeros(5, np.float32)}
    for kind, same in ((Drawing, False), (Steady, True)):
        worker = Federated(worker=kind, weights=lambda: zeros, clients=5, cohort=3).worker()
        random.seed(9)
        worker.run(Bundle.pack(zeros), 0, Task(0, 0, (0,)))
        after = random.getstate()
        random.seed(9)
        random.random()
        assert (random.getstate() == after) is same


class Rolling(gymnasium.Env[Any, Any]):
    """Observes what it draws from the global generator of numpy."""

    observation_space, action_space = gymnasium.spaces.Box(0, 1, (1,)), gymnasium.spaces.Discrete(2)

    def reset(self, *, seed: int | None = None, options: Any = None) -> Any:
        return np.random.rand(1).astype(np.float32), {}

    def step(self, action: Any) -> Any:
        return *self.reset()[:1], 0.0, False, False, {}


def test_environments_in_processes_that_a_user_forks_live_episodes_of_their_own() -> None:
    def rolling(num_envs: int) -> Any:
        return gymnasium.vector.AsyncVectorEnv([Rolling] * num_envs)

    seen = []
    for _ in range(2):
        worker = Reinforcement(rolling, method="ppo", num_envs=3, rollout_length=4).worker()
        bundle = worker.run(Reinforcement(Rolling, method="ppo").problem.first(0)[0], 0, Task(0, 0, (0,))).bundle
        assert bundle is not None
        seen.append(bundle["observation"].copy())
        close(worker)
    assert np.array_equal(seen[0], seen[1])
    assert np.unique(seen[0]).size == seen[0].size == 5 * 3
