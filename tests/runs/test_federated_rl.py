"""Federated reinforcement learning: clients that act in environments of their own, under the methods of federated learning."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import pytest
import torch

import shoal
from shoal import Federated
from shoal.actors.workers.playing import Experience, Playing
from shoal.envs.poles import leaning
from shoal.jobs.job import Job
from shoal.jobs.methods import METHODS
from shoal.nets.surrogate import Surrogate
from shoal.protocol.errors import UserError
from shoal.protocol.work import Task

SMALL: dict[str, Any] = {
    "clients": 4,
    "cohort": 4,
    "rounds": 2,
    "num_envs": 2,
    "rollout_length": 32,
    "local_epochs": 2,
    "batch_size": 32,
    "optimizer": "adam",
    "lr": 2e-3,
    "eval_every": 0,
}


def job(**settings: Any) -> Job:
    return Federated(env=leaning, **{**SMALL, **settings})


def test_the_surrogate_is_ppos_loss_by_hand() -> None:
    loss = Surrogate(clip_coef=0.2, vf_coef=0.5, ent_coef=0.1, discrete=True)
    logits, value = torch.log(torch.tensor([[0.5, 0.5], [0.9, 0.1]])), torch.tensor([1.0, 2.0])
    # action 0 has ratio 0.5 / 0.25 = 2, clipped to 1.2; action 1 has ratio 0.1 / 0.2 = 0.5, clipped to 0.8
    y = torch.tensor([[0, np.log(0.25), 1.0, 0.0], [1, np.log(0.2), -1.0, 2.0]])
    policy, of_value = -(1.2 - 0.8) / 2, 0.5 * (1 + 0) / 2
    entropy = (np.log(2) - 0.9 * np.log(0.9) - 0.1 * np.log(0.1)) / 2
    assert float(loss((logits, value), y)) == pytest.approx(policy + 0.5 * of_value - 0.1 * entropy, abs=1e-6)
    each = loss((logits, value), y, reduction="none").tolist()
    entropies = [np.log(2), -0.9 * np.log(0.9) - 0.1 * np.log(0.1)]
    assert each == pytest.approx([-1.2 + 0.25 - 0.1 * entropies[0], 0.8 - 0.1 * entropies[1]], abs=1e-6)


def test_a_clients_rows_are_its_trajectory_with_advantages_of_mean_0() -> None:
    made = job()
    worker = made.method.worker(made.problem, 0)
    assert isinstance(worker, Playing)
    experience: Experience = worker.experience
    work = experience.act(made.problem.first(0)[0], 1, Task(0, 0, (1,)))
    rows = experience.examples(1)
    assert work.steps == len(rows) + int(np.isin(rows.x, np.nan).sum())
    assert rows.y.shape == (len(rows), 4)
    assert set(np.unique(rows.y[:, 0])) <= {0.0, 1.0}
    assert (rows.y[:, 1] <= 0).all()
    assert abs(float(rows.y[:, 2].mean())) < 1e-5
    assert float(rows.y[:, 2].std(ddof=1)) == pytest.approx(1, abs=1e-4)
    worker.close()


def test_a_client_acts_alike_whoever_plays_it_and_whatever_was_before(tmp_path: Path) -> None:
    runs = [shoal.run(job(rounds=3), actors=n, folder=tmp_path / str(n), show=False) for n in (0, 1, 2)]
    assert len({run.summary["weights_sha256"] for run in runs}) == 1
    assert runs[0].summary["steps"] > 0
    assert runs[0].metrics["return_mean"] > 0


def test_clients_that_differ_have_environments_that_differ() -> None:
    lengths = [leaning(client).unwrapped.length for client in range(5)]
    assert lengths == pytest.approx([0.35, 0.425, 0.5, 0.575, 0.65])
    assert [leaning(client).unwrapped.gravity for client in (0, 5, 24)] == [8, 9, 12]


def test_learning_together_raises_the_return(tmp_path: Path) -> None:
    grown = {"rounds": 10, "num_envs": 8, "rollout_length": 128, "local_epochs": 4, "batch_size": 256, "reward_scale": 0.05}
    run = shoal.run(job(**grown), actors=1, folder=tmp_path / "run", show=False)
    assert run.metrics["return_mean"] > 50  # 22 at first


def test_clients_evaluate_by_greedy_episodes(tmp_path: Path) -> None:
    run = shoal.run(job(eval_every=1, eval_cohort=2, eval_episodes=3), actors=0, folder=tmp_path / "run", show=False)
    assert run.metrics["eval/return_mean"] > 0


@pytest.mark.parametrize(
    "settings",
    [
        {"method": "scaffold", "optimizer": "sgd", "lr": 0.05},
        {"method": "fednova", "optimizer": "sgd", "lr": 0.05},
        {"method": "fedadam", "server_lr": 0.01},
        {"method": "fedprox", "mu": 0.1},
        {"method": "median"},
        {"method": "krum", "malicious": 0},
        {"method": "fedbuff", "buffer": 2, "rounds": 3},
        {"method": "fedavg", "select": "oort"},
    ],
    ids=lambda settings: str(settings.get("select", settings["method"])),
)
def test_another_rule_is_one_word(settings: dict[str, Any], tmp_path: Path) -> None:
    plain = {name: value for name, value in SMALL.items() if name != "cohort" or settings["method"] != "fedbuff"}
    run = shoal.run(Federated(env=leaning, **{**plain, **settings}), actors=0, folder=tmp_path / "run", show=False)
    assert run.summary["version"] == settings.get("rounds", 2)
    assert run.summary["steps"] > 0


def test_box_actions_are_trained(tmp_path: Path) -> None:
    made = Federated(env="Pendulum-v1", **SMALL)
    run = shoal.run(made, actors=0, folder=tmp_path / "run", show=False)
    assert run.summary["steps"] > 0


def refused(text: str, **settings: Any) -> None:
    with pytest.raises(UserError, match=text) as told:
        job(**settings).check_parts()
    assert "\n" not in str(told.value)


def test_what_cannot_work_is_refused_when_the_job_is_read() -> None:
    refused("engine=batched: clients that act in environments", engine="batched")
    refused("method=ditto: allowed is one of", method="ditto")
    refused("rollout_length=0", rollout_length=0)
    refused("attack=label_flip: clients that act in environments have no labels", attack="label_flip", attackers=1)
    refused("step_timeout=5: environments that differ by client", step_timeout=5)
    with pytest.raises(UserError, match="have no model; leave out model= or env="):
        Federated(model=lambda: None, env="CartPole-v1")


def test_clients_with_other_spaces_are_told_by_number() -> None:
    made = Federated(
        env=lambda client: gymnasium.make(("CartPole-v1", "Acrobot-v1")[client]), **{**SMALL, "clients": 2, "cohort": 2}
    )
    worker = made.method.worker(made.problem, 0)
    with pytest.raises(UserError, match="env: client 1 has the spaces"):
        worker.run(made.problem.first(0)[0], 1, Task(0, 0, (1,)))


def test_the_methods_for_environments_of_clients_are_those_that_average_deltas() -> None:
    with_envs = {name for name, method in METHODS.items() if "environments" in method.problems}
    assert {"fedavg", "scaffold", "fedbuff", "median", "dp_fedavg", "secagg"} <= with_envs
    assert not {"ppo", "impala", "ditto", "fltrust", "qffl", "analytics", "xgb_bagging"} & with_envs


class Paying(gymnasium.Env[Any, Any]):
    """Episodes of 3 steps, each of which pays `pay`."""

    observation_space = gymnasium.spaces.Box(-1, 1, (2,), np.float32)
    action_space = gymnasium.spaces.Discrete(2)

    def __init__(self, pay: float = 7.0, render_mode: str | None = None) -> None:
        self.pay, self.render_mode = pay, render_mode

    def reset(self, *, seed: int | None = None, options: Any = None) -> Any:
        self.t = 0
        return np.zeros(2, np.float32), {}

    def step(self, action: Any) -> Any:
        self.t += 1
        return np.zeros(2, np.float32), self.pay, self.t == 3, False, {}

    def render(self) -> Any:
        return np.full((8, 8, 3), int(self.pay), np.uint8)


def paying(client: int, render_mode: str | None = None) -> Paying:
    return Paying(float(client), render_mode)


def test_an_evaluation_plays_in_the_environments_of_all_clients_that_differ(tmp_path: Path) -> None:
    run = shoal.run(Federated(env=paying, **SMALL), actors=0, folder=tmp_path / "run", show=False)
    found = shoal.evaluate(run, episodes=8)
    assert (found["return_mean"], found["return_min"], found["return_max"], found["episodes"]) == (4.5, 0, 9, 8)
    assert shoal.evaluate(run, episodes=5)["episodes"] == 8  # each client plays as many, and one at least
    for none in (0, 2.5):
        with pytest.raises(UserError, match=rf"episodes={none}: must be a whole number from 1"):
            shoal.evaluate(run, episodes=none)  # type: ignore[arg-type]
    alike = shoal.run(Federated(env=Paying, **SMALL), actors=0, folder=tmp_path / "alike", show=False)
    assert shoal.evaluate(alike, episodes=5)["episodes"] == 5


def test_arguments_with_defaults_are_no_clients_number() -> None:
    for env, differs in (
        (Paying, False),
        (paying, True),
        (lambda client=0: Paying(client), True),
        (lambda **all: Paying(), False),
    ):
        made = Federated(env=env, **SMALL)
        assert made.problem.differs == differs  # type: ignore[attr-defined]
    worker = Federated(env=Paying, **SMALL).worker()
    assert isinstance(worker, Playing)
    returns = worker.experience.act(Federated(env=Paying, **SMALL).problem.first(0)[0], 3, Task(0, 0, (3,))).samples["return"]
    assert set(returns) == {21.0}
    worker.close()


def test_an_episode_of_client_0_is_filmed(tmp_path: Path) -> None:
    run = shoal.run(Federated(env=paying, **SMALL), actors=0, folder=tmp_path / "run", show=False)
    assert run.video(tmp_path / "film.gif").stat().st_size > 0


def test_a_game_of_several_agents_is_refused() -> None:
    with pytest.raises(UserError, match=r"env is a game of several agents, .*Reinforcement\(env\)"):
        Federated(env=shoal.Parallel(lambda: None), **SMALL)
