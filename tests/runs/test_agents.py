"""Games of several agents as rows of one batch: who waits, who begins anew, and that a shared policy learns."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import pytest

import shoal
from shoal import Reinforcement
from shoal.envs.agents import Parallel, parallel_of
from shoal.envs.making import Recipe, make_vector
from shoal.protocol.errors import UserError


class Countdown:
    """Agent "a" is out after 2 steps, "b" after 4. An agent sees (steps, its own number), and is paid 1 for action 1."""

    possible_agents = ("a", "b")
    ENDS = {"a": 2, "b": 4}  # noqa: RUF012

    def __init__(self, truncates: bool = False) -> None:
        self.truncates = truncates
        self.agents: list[str] = []

    def observation_space(self, agent: str) -> Any:
        return gymnasium.spaces.Box(0, 10, (2,), np.float32)

    def action_space(self, agent: str) -> Any:
        return gymnasium.spaces.Discrete(2)

    def _seen(self, agents: list[str]) -> dict[str, Any]:
        return {name: np.array([self.t, "ab".index(name)], np.float32) for name in agents}

    def reset(self, seed: int | None = None, options: Any = None) -> Any:
        self.t, self.agents = 0, ["a", "b"]
        return self._seen(self.agents), {}

    def step(self, actions: dict[str, int]) -> Any:
        assert set(actions) == set(self.agents), "only agents that are in are asked"
        self.t += 1
        were, over = self.agents, {name: self.t >= self.ENDS[name] for name in self.agents}
        self.agents = [name for name in were if not over[name]]
        none = dict.fromkeys(were, False)
        ends = (none, over) if self.truncates else (over, none)
        return self._seen(were), {name: float(actions[name]) for name in were}, *ends, {}

    def close(self) -> None: ...


def test_an_agent_that_is_out_waits_masked_until_its_game_begins_anew() -> None:
    envs = make_vector(Parallel(Countdown), 4)
    step = envs.reset(0)
    told = [(step.mask, step.lived, step.first, step.terminated, step.observation.copy())]
    for _ in range(6):
        step = envs.step(np.ones(4, np.int64))
        told.append((step.mask, step.lived, step.first, step.terminated, step.observation.copy()))
    mask, lived, _, over, seen = (np.array(each) for each in zip(*told, strict=True))
    assert mask[:, 0].tolist() == [True, True, False, False, False, True, True]  # "a": out at 2, waits, game begins anew at 5
    assert mask[:, 1].tolist() == [True, True, True, True, False, True, True]
    assert over[:, 0].tolist() == [False, False, True, False, False, False, False]
    assert over[:, 1].tolist() == [False, False, False, False, True, False, False]
    assert lived[1:, 0].tolist() == [True, True, False, False, False, True]
    assert seen[:, 0, 0].tolist() == [0, 1, 2, 2, 2, 0, 1]  # the row after its last one holds its last observation
    assert seen[:, 1, 0].tolist() == [0, 1, 2, 3, 4, 0, 1]
    assert (mask[:, 2:] == mask[:, :2]).all()
    envs.close()


def test_a_truncated_agent_has_its_last_observation_in_the_next_row() -> None:
    envs = make_vector(Parallel(lambda: Countdown(truncates=True)), 2)
    envs.reset(0)
    steps = [envs.step(np.zeros(2, np.int64)) for _ in range(3)]
    assert steps[1].truncated.tolist() == [True, False]
    assert steps[1].observation[0].tolist() == [2, 0]
    assert not steps[1].mask[0]
    envs.close()


def test_an_agents_number_can_be_part_of_what_it_sees() -> None:
    envs = make_vector(Parallel(Countdown, agent_ids=True), 2)
    assert envs.reset(0).observation[:, 2:].tolist() == [[1, 0], [0, 1]]
    envs.close()


@pytest.mark.parametrize("method", ["ppo", "impala"])
def test_a_policy_that_all_agents_share_learns(method: str, tmp_path: Path) -> None:
    some: dict[str, Any] = {"num_envs": 8, "rollout_length": 16, "lr": 0.01, "total_timesteps": 8_000, "eval_episodes": 5}
    run = shoal.run(Reinforcement(Parallel(Countdown), method=method, **some), actors=1, folder=tmp_path / "run", show=False)
    assert run.metrics["return_mean"] > 2.5  # 3 at best: the mean of 2 and 4 steps, each paid by action 1; at random 1.5


def test_agents_with_policies_of_their_own_learn_each_its_own(tmp_path: Path) -> None:
    class Opposed(Countdown):
        """Agent "a" is paid for action 1, "b" for action 0, and neither sees which it is but by its mark."""

        def _seen(self, agents: list[str]) -> dict[str, Any]:
            return {name: np.zeros(2, np.float32) for name in agents}

        def step(self, actions: dict[str, int]) -> Any:
            seen, _, *more = super().step(actions)
            return seen, {name: float(action == (name == "a")) for name, action in actions.items()}, *more

    some: dict[str, Any] = {"num_envs": 8, "rollout_length": 16, "lr": 0.01, "total_timesteps": 8_000, "method": "ppo"}
    job = Reinforcement(Parallel(Opposed, policies="separate"), **some)
    run = shoal.run(job, actors=1, folder=tmp_path / "run", show=False)
    assert run.metrics["return_mean"] > 2.5
    assert {name.split(".")[1] for name in run.weights} == {"0", "1"}


def test_each_row_takes_the_outputs_of_its_own_agent() -> None:
    from torch import cat, eye, full, nn, tensor

    from shoal.nets.separate import Separate

    class Fixed(nn.Module):
        def __init__(self, number: float) -> None:
            super().__init__()
            self.number = nn.Parameter(tensor(number))

        def forward(self, seen: Any) -> Any:
            return seen * self.number, self.number.expand(len(seen))

    both = Separate([Fixed(2.0), Fixed(float("inf"))])
    head, value = both(cat([full((2, 1), -1.0), eye(2)], dim=1))
    assert head.flatten().tolist() == [-2.0, float("-inf")]
    assert value.tolist() == [2.0, float("inf")]


class Locked(Countdown):
    """Of three actions an agent may take those that its mask allows, which change with each step; any other raises. An agent is
    paid 1 for action 2, which is allowed in most steps. An agent that is out is allowed nothing."""

    where = "info"

    def observation_space(self, agent: str) -> Any:
        seen = super().observation_space(agent)
        mask = gymnasium.spaces.MultiBinary(3)
        return seen if self.where == "info" else gymnasium.spaces.Dict({"observation": seen, "action_mask": mask})

    def action_space(self, agent: str) -> Any:
        return gymnasium.spaces.Discrete(3)

    def allowed(self, agent: str) -> Any:
        """Two of the three actions, or nothing for an agent that is out."""
        forbidden = (self.t + "ab".index(agent)) % 3 if agent in self.agents else -1
        return np.array([agent in self.agents and at != forbidden for at in range(3)], np.int8)

    def _told(self, seen: dict[str, Any]) -> Any:
        masks = {name: self.allowed(name) for name in seen}
        if self.where == "info":
            return seen, {name: {"action_mask": mask} for name, mask in masks.items()}
        return {name: {"observation": each, "action_mask": masks[name]} for name, each in seen.items()}, {}

    def reset(self, seed: int | None = None, options: Any = None) -> Any:
        seen, _ = super().reset(seed)
        return self._told(seen)

    def step(self, actions: dict[str, int]) -> Any:
        for name, action in actions.items():
            assert self.allowed(name)[action], f"{name} took the forbidden action {action} in step {self.t}"
        seen, _, *ends, _ = super().step(actions)
        seen, infos = self._told(seen)
        return seen, {name: float(action == 2) for name, action in actions.items()}, *ends, infos


def locked(where: str) -> Any:
    return type("Locked", (Locked,), {"where": where})


@pytest.mark.parametrize("where", ["info", "observation"])
@pytest.mark.parametrize("agent_ids", [False, True])
def test_each_row_has_the_mask_of_its_agent(where: str, agent_ids: bool) -> None:
    envs = make_vector(Recipe(Parallel(locked(where), agent_ids=agent_ids), told=where == "info"), 4)
    assert envs.spaces.masks == where
    step = envs.reset(0)
    masks, seen, live = [], [], []
    for _ in range(5):
        masks.append(step.observation["action_mask"].tolist())
        seen.append(step.observation["observation"][0].tolist())
        live.append(step.mask.tolist())
        step = envs.step(step.observation["action_mask"].argmax(1))
    envs.close()
    every = [True] * 3
    a, b = ([row[0] for row in masks], [row[1] for row in masks])
    assert a == [[False, True, True], [True, False, True], every, every, every]  # out after 2 steps: nothing counts
    assert b == [[True, False, True], [True, True, False], [False, True, True], [True, False, True], every]
    assert [row[:2] for row in live] == [[True, True], [True, True], [False, True], [False, True], [False, False]]
    assert all(row[:2] == row[2:] for row in masks)
    assert seen[1] == ([1, 0, 1, 0] if agent_ids else [1, 0])


@pytest.mark.parametrize("where", ["info", "observation"])
def test_agents_of_a_game_that_have_no_row_take_what_their_masks_allow(where: str) -> None:
    envs = make_vector(Recipe(Parallel(locked(where)), told=where == "info"), 1)
    step = envs.reset(0)
    for _ in range(40):
        step = envs.step(step.observation["action_mask"].argmax(1))
    envs.close()


@pytest.mark.parametrize("where", ["info", "observation"])
@pytest.mark.parametrize(
    ("policies", "settings"),
    [
        ("shared", {"method": "ppo"}),
        ("shared", {"method": "ppo", "double_buffer": True}),
        ("separate", {"method": "ppo"}),
        ("separate", {"method": "impala"}),
        ("shared", {"method": "dqn", "learning_starts": 40, "batch_size": 8}),
        ("shared", {"method": "es", "clients": 2, "pairs": 2}),
        ("shared", {"method": "ppo", "opponents": 2, "opponent_every": 1}),
    ],
)
def test_no_agent_takes_a_forbidden_action_in_a_run(
    policies: str, where: str, settings: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    some: dict[str, Any] = {"total_timesteps": 300, "eval_every": 1, "eval_episodes": 4, "lr": 1e-8, **settings}
    some |= {} if settings["method"] == "es" else {"num_envs": 4, "rollout_length": 10}
    job = Reinforcement(Parallel(locked(where), policies=policies), **some)
    assert f"action masks: from the {where}; what a mask forbids is never done" in job.problem.about(job.method, 0)
    run = shoal.run(job, actors=0, show=False)
    assert run.summary["steps"] >= 150
    assert "eval/return_mean" in run.metrics
    ratios = {"ppo": ("first_ratio_error", 0.0), "impala": ("rho_mean", 1.0)}
    if (ratio := ratios.get(settings["method"])) is not None:  # the learner has the actors' masks
        found = [row["metrics"][ratio[0]] for row in run.history]
        assert found == pytest.approx([ratio[1]] * len(found), abs=1e-4)


def test_agents_learn_behind_masks(tmp_path: Path) -> None:
    some: dict[str, Any] = {"num_envs": 8, "rollout_length": 16, "lr": 0.01, "total_timesteps": 6_000, "method": "ppo"}
    run = shoal.run(Reinforcement(Parallel(Locked), **some), actors=1, folder=tmp_path / "run", show=False)
    assert run.metrics["return_mean"] > 2.3  # 2.5 at best: "a" may take action 2 twice, "b" in 3 of its 4 steps; random 1.25


def test_a_mask_that_an_agent_s_info_lacks_or_that_has_another_size_is_told() -> None:
    class Lacks(Locked):
        def _told(self, seen: dict[str, Any]) -> Any:
            seen, infos = super()._told(seen)
            infos.pop("b", None)
            return seen, infos

    class Long(Locked):
        def allowed(self, agent: str) -> Any:
            return np.ones(4, np.int8)

    wanted = "expected 3, one for each choice of an action"
    for game, said in (
        (Lacks, "Lacks: the info's action_mask allows nothing or is missing in environment 1: expected at least one choice"),
        (Long, f"Long: the action_mask in the info of agent a has 4 entries: {wanted}"),
    ):
        with pytest.raises(UserError, match=said):
            make_vector(Recipe(Parallel(game), told=True), 2).reset(0)


def refused(text: str, env: Any, **settings: Any) -> None:
    with pytest.raises(UserError, match=text) as told:
        Reinforcement(env, method="ppo", **settings).prepare()
    assert "\n" not in str(told.value)


def test_what_is_no_parallel_environment_is_refused_in_one_line() -> None:
    refused(r"num_envs=3: Countdown has 2 agents, each of which is a row; num_envs=2, say", Parallel(Countdown), num_envs=3)
    refused("expected a ParallelEnv, which has possible_agents", Parallel(lambda: gymnasium.make("CartPole-v1")), num_envs=2)
    for method, learns in (("dqn", "learns one network"), ("es", "perturbs one network")):
        with pytest.raises(UserError, match=rf"policies='separate': .*method={method} {learns}; policies='shared', or"):
            Reinforcement(Parallel(Countdown, policies="separate"), method=method)
    with pytest.raises(UserError, match="memory=gru: policies of the agents' own have no memory"):
        Reinforcement(Parallel(Countdown, policies="separate"), method="ppo", memory="gru")
    refused("step_timeout=5.0: the agents of a game are stepped together", Parallel(Countdown), step_timeout=5)

    class Odd(Countdown):
        def action_space(self, agent: str) -> Any:
            return gymnasium.spaces.Discrete(2 if agent == "a" else 3)

    refused("agent b has the spaces", Parallel(Odd), num_envs=2)


def test_a_game_that_is_not_there_is_told_with_its_extra() -> None:
    told = "(needs the package pettingzoo|No module named|NameNotFound)"
    with pytest.raises(UserError, match=rf"env=pettingzoo:sisl.nothing_v0: {told}"):
        parallel_of("pettingzoo:sisl.nothing_v0")
