"""Frames that are kept once and stacked at the learner, beside environments that stack them themselves."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import pytest
from gymnasium.vector import AutoresetMode, SyncVectorEnv
from gymnasium.wrappers import FrameStackObservation

import shoal
from shoal import Reinforcement
from shoal.actors.workers.rollout import Rollout
from shoal.aggregators.replay import ReplayBuffer
from shoal.envs.making import Recipe, make_vector
from shoal.envs.vector import Envs
from shoal.jobs.problems import Environment
from shoal.nets.acting import Acted, Around, Form
from shoal.nets.framed import Framed, stacked_spaces
from shoal.nets.q_policy import QNetworks
from shoal.protocol.errors import UserError
from shoal.protocol.work import Task

MODES = ["NextStep", "SameStep", "Disabled"]
K = 3


class Film(gymnasium.Env[Any, Any]):
    """Pictures of noise that begin with the number of the episode and of the step. Episodes last 2 to 6 steps, and every other
    one is cut off; a step pays the action, or how near it is to zero."""

    observation_space = gymnasium.spaces.Box(0, 255, (6, 6, 1), np.uint8)

    def __init__(self, box: bool = False) -> None:
        self.action_space = gymnasium.spaces.Box(-1, 1, (1,)) if box else gymnasium.spaces.Discrete(2)
        self.box, self.episode = box, 0

    def reset(self, *, seed: int | None = None, options: Any = None) -> Any:
        super().reset(seed=seed)
        self.episode, self.at = self.episode + 1, 0
        self.length = int(self.np_random.integers(2, 7))
        return self.seen(), {}

    def seen(self) -> Any:
        picture = self.np_random.integers(1, 256, (6, 6, 1), dtype=np.uint8)
        picture[0, 0], picture[0, 1] = self.episode % 250 + 1, self.at + 1
        return picture

    def step(self, action: Any) -> Any:
        self.at += 1
        over = self.at == self.length
        paid = -float(abs(action[0])) if self.box else float(action)
        return self.seen(), paid, over and self.episode % 2 == 0, over and self.episode % 2 == 1, {}


def of(mode: str, box: bool = False, stacked: bool = False) -> Callable[[int], Any]:
    def one() -> Any:
        return FrameStackObservation(Film(box), K, padding_type="zero") if stacked else Film(box)

    return lambda num_envs: SyncVectorEnv([one] * num_envs, autoreset_mode=AutoresetMode(mode))


FEW: dict[str, Any] = {"num_envs": 3, "rollout_length": 7, "total_timesteps": 260, "eval_episodes": 2}
LATE: dict[str, Any] = {"learning_starts": 20, "batch_size": 8, "replay_ratio": 0.2}


@pytest.mark.parametrize(
    ("method", "mode", "more"),
    [
        *(("ppo", mode, {}) for mode in MODES),
        *(("dqn", mode, LATE) for mode in MODES),
        ("impala", "SameStep", {}),
        ("ppo", "SameStep", {"memory": "gru", "memory_size": 8}),
        ("apex", "NextStep", LATE),
        ("sac", "SameStep", LATE),
        ("td3", "NextStep", LATE),
    ],
)
def test_a_run_has_the_weights_of_one_whose_environments_stack_the_frames(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, method: str, mode: str, more: dict[str, Any]
) -> None:
    monkeypatch.chdir(tmp_path)
    box = method in ("sac", "td3")
    runs = [
        shoal.run(Reinforcement(of(mode, box, stacked), method=method, **FEW, **more, **given), actors=0, show=False)
        for stacked, given in ((True, {}), (False, {"frame_stack": K}))
    ]
    plain, framed = (run.weights for run in runs)
    assert plain.keys() == framed.keys()
    assert all(np.array_equal(plain[name], framed[name]) for name in plain)
    assert runs[0].metrics["eval/return_mean"] == runs[1].metrics["eval/return_mean"]
    player, seen = runs[1].policy(), Film(box).reset(seed=1)[0]
    player.act(seen)  # a player stacks frames too
    problems = [run.job.problem for run in runs]
    kept = [problem.trajectory(32, 8).by_name["observation"].nbytes for problem in problems if isinstance(problem, Environment)]
    assert kept[0] == K * kept[1]


@pytest.mark.parametrize(
    ("method", "more"),
    [
        ("ppo", {}),
        ("ppo", {"memory": "gru", "memory_size": 8, "double_buffer": True}),
        ("dqn", LATE),
    ],
)
def test_central_inference_computes_the_numbers_of_stacks_as_the_actor_does(
    tmp_path: Path, method: str, more: dict[str, Any]
) -> None:
    job = Reinforcement(of("SameStep"), method=method, frame_stack=K, **FEW, **more)
    alone = shoal.run(job, actors=0, folder=tmp_path / "alone", show=False)
    central = shoal.run(job, settings={"inference": "central"}, actors=2, folder=tmp_path / "central", show=False)
    assert central.summary["weights_sha256"] == alone.summary["weights_sha256"]
    assert central.history[-1]["metrics"]["inference_central"] == 1.0  # on a busy machine actors may begin before that process


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("prioritized", [False, True])
def test_stacks_from_a_full_replay_are_of_one_episode_and_without_gaps(mode: str, prioritized: bool) -> None:
    spaces = Envs(of(mode)(1)).spaces
    network, form = QNetworks(), Form((4,))
    inner = network.policy(stacked_spaces(spaces, K), form, None)
    policy = Framed(inner, K, spaces.observation)  # type: ignore[arg-type]
    weights = network.build(stacked_spaces(spaces, K), form, 1)
    from shoal.nets.flat import FlatModule

    worker = Rollout(lambda many: Envs(of(mode)(many)), policy, 7, 3, seed=2)
    layout = spaces.trajectory(7, 3, policy.rows, policy.memory)
    buffer = ReplayBuffer(layout, 60, prioritized=prioritized)
    rng, met = np.random.default_rng(0), 0
    for version in range(14):
        task = Task(version, 0, (0,), words={"epsilon": 0.5})
        work = worker.run(FlatModule(weights).bundle(), 0, task)
        assert work.bundle is not None
        buffer.insert(work.bundle)
        (batch,) = buffer.minibatches(rng, 1, 64)
        buffer.prioritize(batch.places, batch.reward + 1)
        for stacks in (batch.observation.numpy(), batch.next_observation.numpy()):
            episode, step = stacks[:, :, 0, 0, 0].astype(int), stacks[:, :, 0, 1, 0].astype(int)
            for age in range(1, K):
                older, newest = K - 1 - age, K - 1
                begun = step[:, newest] > age
                assert (step[begun, older] == step[begun, newest] - age).all()
                assert (episode[begun, older] == episode[begun, newest]).all()
                assert not stacks[~begun, older].any()
                met += int(begun.sum())
        goes_on = batch.discount.numpy() > 0
        assert (batch.next_observation.numpy()[goes_on, :-1] == batch.observation.numpy()[goes_on, 1:]).all()
    assert met > 100
    assert 20 < len(buffer) <= 60 + 9
    worker.close()


class Looking(Around):
    """A policy that acts at random and keeps what it saw last."""

    def __init__(self, actions: int) -> None:
        self.actions, self.rng, self.seen = actions, np.random.default_rng(3), np.zeros(0)

    @property
    def memory(self) -> Any:
        return {}

    def begin(self, num_envs: int) -> Any:
        return {}

    def act(self, seen: Any, first: Any, state: Any, noise: Any, words: Any) -> Acted:
        self.seen = seen
        return Acted(self.rng.integers(self.actions, size=len(seen)), {}, state)


@pytest.mark.parametrize("mode", ["NextStep", "SameStep"])
@pytest.mark.parametrize("arguments", [{}, {"episodic_life": True, "noop_max": 30, "use_fire_reset": True}])
def test_the_frames_of_atari_are_stacked_as_its_vector_environment_stacks_them(mode: str, arguments: dict[str, Any]) -> None:
    pytest.importorskip("ale_py", reason="pip install 'shoal[atari]'")
    given = {**arguments, "autoreset_mode": mode}
    whole, single = (make_vector(Recipe("ALE/Breakout-v5", {**given, **one}, 150), 3) for one in ({}, {"stack_num": 1}))
    looking = Looking(18)
    policy = Framed(looking, 4, single.spaces.observation)  # type: ignore[arg-type]
    step, stacked, state, over = single.reset(7), whole.reset(7), policy.begin(3), 0
    for _ in range(400):
        acted = policy.act(step.observation, step.first, state, None, {})
        np.testing.assert_array_equal(looking.seen[:, :, 0], stacked.observation)
        step, stacked, state = single.step(acted.action), whole.step(acted.action), acted.state
        for name in ("reward", "terminated", "truncated", "mask", "first"):
            np.testing.assert_array_equal(getattr(step, name), getattr(stacked, name))
        if step.final is not None and stacked.final is not None and step.truncated.any():
            np.testing.assert_array_equal(step.final[step.truncated][:, 0], stacked.final[step.truncated][:, -1])
        over += int(step.over.sum())
    assert over >= 6
    whole.close()
    single.close()


def test_a_policy_of_pictures_learns_from_scaled_rewards(tmp_path: Path) -> None:
    job = Reinforcement(of("SameStep"), method="ppo", norm_reward=True, **FEW)
    run = shoal.run(job, actors=0, folder=tmp_path / "run", show=False)
    assert run.weights["normal.reward_count"] == run.summary["steps"]


@pytest.mark.parametrize("grayscale", [True, False])
def test_a_run_of_atari_has_the_weights_of_one_whose_frames_its_vector_environment_stacks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, grayscale: bool
) -> None:
    pytest.importorskip("ale_py", reason="pip install 'shoal[atari]'")
    monkeypatch.chdir(tmp_path)
    few = {**FEW, "num_envs": 2, "total_timesteps": 56, "eval_episodes": 1, "time_limit": 10, "num_minibatches": 2}
    few["env_kwargs"] = {"grayscale": grayscale}
    runs = [
        shoal.run(Reinforcement("ALE/Breakout-v5", method="ppo", **few, **given), actors=0, show=False)
        for given in ({"frame_stack": 1}, {"frame_stack": 4})
    ]
    assert all(np.array_equal(runs[0].weights[name], runs[1].weights[name]) for name in runs[0].weights)
    about = [run.job.problem.about(run.job.method, 0)[-1] for run in runs]  # type: ignore[attr-defined]
    assert about == [f"policy: Nature CNN (Mnih et al. 2015) for pictures of 84x84x{4 if grayscale else 12}"] * 2
    conditions = [run.job.problem.conditions()[0].partition("84x84 ")[2] for run in runs]
    colour = "grey" if grayscale else "RGB"
    assert [each.partition(";")[0] for each in conditions] == [f"{colour}, stack_num={n}" for n in ("4", "1, frame_stack=4")]


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"method": "r2d2", "memory": "gru"}, "frame_stack=3: r2d2"),
        ({"method": "es"}, "frame_stack=3: es"),
        ({"method": "ppo", "norm_obs": True}, "frame_stack=3: .*norm_obs"),
    ],
)
def test_what_cannot_be_stacked_is_refused(settings: dict[str, Any], said: str) -> None:
    with pytest.raises(UserError, match=said):
        Reinforcement(of("SameStep"), frame_stack=3, **settings)
