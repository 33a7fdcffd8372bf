"""A trained policy that plays, and videos of episodes."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import pytest
import torch
from typed import mistake, ran

import shoal
from shoal import Federated, Reinforcement
from shoal.envs.agents import Parallel
from shoal.envs.making import Recipe, make_shown, make_vector
from shoal.protocol.errors import UserError

SHORT = {"total_timesteps": 64, "num_envs": 2, "rollout_length": 8, "clients": 2, "hidden": (8,)}


class Shown(gymnasium.Env[Any, Any]):
    """Two steps long; its pictures count the steps. Observation: a Discrete number."""

    observation_space = gymnasium.spaces.Discrete(3, start=1)
    action_space = gymnasium.spaces.Box(-2, 2, (2,), np.float32)
    metadata = {"render_fps": 10}  # noqa: RUF012  as gymnasium has it

    def __init__(self, render_mode: str | None = None, picture: Any = None) -> None:
        self.render_mode, self.picture, self.at = render_mode, picture, 0

    def reset(self, *, seed: int | None = None, options: Any = None) -> Any:
        super().reset(seed=seed)
        self.at = 0
        return 1, {}

    def step(self, action: Any) -> Any:
        assert self.action_space.contains(action)
        self.at += 1
        return 1 + self.at, 1.0, self.at == 2, False, {}

    def render(self) -> Any:
        return np.full((16, 20, 3), 60 * self.at, np.uint8) if self.picture is None else self.picture


def trained(env: Any, **more: Any) -> shoal.Run:
    return shoal.run(Reinforcement(env, method="ppo", **(SHORT | more)), actors=0, show=False)


def test_a_loaded_policy_plays_the_episodes_of_an_evaluation(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    run = trained("CartPole-v1")
    policy, env = run.policy(), gymnasium.make("CartPole-v1")
    module = run.model()
    for episode in range(2):
        policy.reset()
        seen, over = env.reset(seed=episode)[0], False
        while not over:
            action = policy.act(seen)
            assert type(action) is int
            with torch.no_grad():
                assert action == int(module(torch.from_numpy(seen)[None])[0].argmax())
            seen, _, terminated, truncated, _ = env.step(action)
            over = terminated or truncated
    drawn = [run.policy(greedy=False, seed=seed) for seed in (1, 1, 2)]
    first, again, other = ([each.act(seen) for _ in range(50)] for each in drawn)
    assert first == again != other
    with pytest.raises(UserError, match=r"the observation has the shape \[3\]: expected \[4\]"):
        policy.act(seen[:3])
    with pytest.raises(UserError, match="keeps no best weights"):
        run.policy(best=True)


@pytest.mark.parametrize(
    ("env", "method", "settings"),
    [
        ("CartPole-v1", "dqn", {"exploration_final_eps": 1.0}),
        ("CartPole-v1", "apex", {"epsilon": 1.0, "clients": None}),
        ("Pendulum-v1", "td3", {"exploration_noise": 5.0, "learning_starts": 0}),
        ("Pendulum-v1", "sac", {"learning_starts": 1_000}),
    ],
)
def test_a_policy_that_is_not_greedy_explores_as_training_does(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, env: str, method: str, settings: dict[str, Any]
) -> None:
    """Exploring is in the words of a task: without them a policy of dqn or td3 played its best action always."""
    monkeypatch.chdir(tmp_path)
    short = {name: value for name, value in (SHORT | settings).items() if value is not None}
    run = shoal.run(Reinforcement(env, method=method, **short), actors=0, show=False)
    seen = np.zeros(4 if env == "CartPole-v1" else 3, np.float32)
    greedy, free = (run.policy(greedy=each, seed=3) for each in (True, False))
    best, drawn = ({float(np.asarray(policy.act(seen)).ravel()[0]) for _ in range(30)} for policy in (greedy, free))
    assert len(best) == 1
    assert len(drawn) > 1


def test_a_policy_with_memory_keeps_it_from_step_to_step_until_it_is_reset(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    run = trained("Pendulum-v1", memory="lstm", memory_size=6)
    policy, module, seen = run.policy(), run.model(), np.array([0.5, 0.2, -1], np.float32)
    state = {name: torch.zeros(1, 6) for name in ("h", "c")}
    fresh = []
    for _ in range(3):
        with torch.no_grad():
            (mean, _), _, state = module(torch.from_numpy(seen)[None], state)
        action = policy.act(seen)
        assert action.shape == (1,)
        np.testing.assert_allclose(action, mean[0].clip(-2, 2), rtol=1e-4, atol=1e-6)
        fresh.append(action)
    assert fresh[0] != fresh[1]
    policy.reset()
    assert policy.act(seen) == fresh[0]


@pytest.mark.filterwarnings("default::DeprecationWarning", "default::FutureWarning")  # torch.export's own
def test_a_policy_with_memory_is_exported_as_a_program_of_observations_and_state(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    run = trained("CartPole-v1", memory="gru", memory_size=6)
    program, module = torch.export.load(shoal.export(run, "policy.pt2")).module(), run.model()
    seen, state = torch.randn(5, 4), {"h": torch.randn(5, 6)}
    (logits, value, after), (ours, its, then) = program(seen, state), module(seen, state)
    for a, b in ((logits, ours), (value, its), (after["h"], then["h"])):
        torch.testing.assert_close(a, b)


def test_a_job_without_an_environment_has_no_policy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    x, y = np.zeros((8, 3), np.float32), np.arange(8) % 2
    job = Federated(lambda: torch.nn.Linear(3, 2), (x, y), rounds=1, clients=2, cohort=2)
    run = shoal.run(job, actors=0, show=False)
    with pytest.raises(UserError, match=r"has no environment and so no policy: run.model\(\) is its model"):
        run.policy()


def test_a_video_shows_one_greedy_episode(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from PIL import Image

    monkeypatch.chdir(tmp_path)
    run = trained(Shown)
    assert run.policy().act(2).shape == (2,)
    path = run.video("seen.gif")
    with Image.open(path) as picture:
        assert (picture.size, getattr(picture, "n_frames", 1)) == ((20, 16), 3)
        assert picture.info["duration"] == 100
    own = run.video()
    assert own.parent == run.folder
    assert own.stem == f"episode-{run.snapshot().version}"
    assert run.video() == own  # made anew
    with pytest.raises(UserError, match=r"seen.gif: exists; name another file"):
        run.video("seen.gif")
    with pytest.raises(UserError, match=r"cannot write .avi; use .mp4 or .gif"):
        run.video("seen.avi")
    with pytest.raises(UserError, match="no folder"):
        run.video("none/seen.gif")
    assert list(tmp_path.glob("**/*.part*")) == []


def test_an_mp4_needs_an_extra_and_says_so_in_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import sys

    monkeypatch.chdir(tmp_path)
    run = trained(Shown)
    monkeypatch.setitem(sys.modules, "imageio", None)
    with pytest.raises(UserError, match=r"--video needs imageio for .mp4, with ffmpeg: pip install 'shoal\[video\]', or"):
        run.video("seen.mp4")
    assert not Path("seen.mp4").exists()


def test_an_mp4_is_written_where_the_extra_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("imageio_ffmpeg", reason="the extra shoal[video] is not installed")
    monkeypatch.chdir(tmp_path)
    assert b"ftyp" in trained(Shown).video("seen.mp4").read_bytes()[:16]


class Unseen(Shown):
    """An environment that gives no pictures."""

    def __init__(self) -> None:
        super().__init__(None)


def test_environments_that_cannot_be_shown_are_told_in_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)

    def odd(render_mode: str | None = None) -> Any:
        return Shown(render_mode, picture=[1, 2])

    for env, said in (
        (Unseen, r"Unseen\(\) made an environment with render_mode=None, which gives no pictures: let Unseen take render_mode"),
        (odd, r"render gave int64 of shape \[2\]: expected uint8 of shape \[height, width, 3\]"),
    ):
        with pytest.raises(UserError, match=said) as told:
            trained(env).video("seen.gif")
        assert "\n" not in str(told.value)
        assert not Path("seen.gif").exists()


def shrunk(screen: Any) -> Any:
    """A screen [210, 160, 3] in grey, its mean over each of 84 x 84 areas."""
    grey = screen @ np.array([0.299, 0.587, 0.114])
    return grey.repeat(2, axis=0).repeat(21, axis=1).reshape(84, 5, 84, 40).mean(axis=(1, 3))


@pytest.mark.parametrize("arguments", [{}, {"episodic_life": True, "noop_max": 30, "frameskip": 3}])
def test_a_filmed_game_of_atari_is_the_one_that_the_policy_sees(arguments: dict[str, Any]) -> None:
    pytest.importorskip("ale_py", reason="pip install 'shoal[atari]'")
    recipe = Recipe("ALE/Breakout-v5", arguments, time_limit=200)
    env, trained_on = make_shown(recipe), make_vector(recipe, 1)
    assert env.metadata["render_fps"] == 60 / arguments.get("frameskip", 4)
    rng = np.random.default_rng(0)
    [seen], (other, _) = trained_on.reset(5).observation, env.reset(seed=5)
    over, scored = False, 0.0
    while not over:
        np.testing.assert_array_equal(seen, other)
        assert env.render().shape == (210, 160, 3)
        assert np.abs(shrunk(env.render()) - other[-1]).max() < 3
        action = int(rng.integers(18))
        step = trained_on.step(np.array([action]))
        other, reward, terminated, truncated, _ = env.step(action)
        assert (reward, terminated, truncated) == (step.reward[0], step.terminated[0], step.truncated[0])
        [seen], over, scored = step.observation, terminated or truncated, scored + reward
    assert scored > 0
    env.close()
    trained_on.close()


def test_a_single_game_of_atari_is_filmed_as_gymnasium_makes_it() -> None:
    pytest.importorskip("ale_py", reason="pip install 'shoal[atari]'")
    env = make_shown("ALE/Pong-v5", "sync")
    seen, _ = env.reset(seed=1)
    np.testing.assert_array_equal(env.render(), seen)
    env.close()


def test_a_run_of_atari_is_filmed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from PIL import Image

    pytest.importorskip("ale_py", reason="pip install 'shoal[atari]'")
    monkeypatch.chdir(tmp_path)
    run = trained("ALE/Pong-v5", network="mlp", time_limit=20, num_minibatches=1, update_epochs=1, eval_episodes=0)
    with Image.open(run.video("seen.gif")) as picture:
        assert picture.size == (160, 210)
        assert 1 < getattr(picture, "n_frames", 1) <= 21


class Chess:
    """A game of two agents, of whom "a" is out after one step and "b" after three. Its pictures count the steps."""

    possible_agents = ("a", "b")
    metadata = {"render_fps": 4}  # noqa: RUF012

    def __init__(self, render_mode: str | None = None) -> None:
        self.render_mode = render_mode
        self.agents: list[str] = []

    def observation_space(self, agent: str) -> Any:
        return gymnasium.spaces.Box(0, 10, (1,), np.float32)

    def action_space(self, agent: str) -> Any:
        return gymnasium.spaces.Discrete(2)

    def reset(self, seed: int | None = None, options: Any = None) -> Any:
        self.at, self.agents = 0, ["a", "b"]
        return {name: np.zeros(1, np.float32) for name in self.agents}, {}

    def step(self, actions: dict[str, int]) -> Any:
        self.at += 1
        were, over = self.agents, {name: self.at >= {"a": 1, "b": 3}[name] for name in self.agents}
        self.agents = [name for name in were if not over[name]]
        seen = {name: np.full(1, self.at, np.float32) for name in were}
        return seen, dict.fromkeys(were, 1.0), over, dict.fromkeys(were, False), {}

    def render(self) -> Any:
        return np.full((16, 20, 3), 60 * self.at, np.uint8)

    def close(self) -> None: ...


class Blind(Chess):
    """A game that takes no render_mode."""

    def __init__(self) -> None:
        super().__init__(None)


@pytest.mark.parametrize("policies", ["shared", "separate"])
def test_a_game_is_filmed_until_its_last_agent_is_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, policies: str) -> None:
    from PIL import Image

    monkeypatch.chdir(tmp_path)
    with Image.open(trained(Parallel(Chess, policies)).video("seen.gif")) as picture:
        assert (picture.size, getattr(picture, "n_frames", 1)) == ((20, 16), 4)
        assert picture.info["duration"] == 250
    with pytest.raises(
        UserError, match=r"^Blind\(\) made a game with render_mode=None, which gives no pictures: let Blind take"
    ):
        trained(Parallel(Blind, policies)).video("none.gif")


def test_a_pool_gives_no_pictures_and_says_so() -> None:
    with pytest.raises(UserError, match=r"^--video: envpool:Pong-v5: EnvPool's environments give no pictures"):
        make_shown("envpool:Pong-v5")


def test_the_command_writes_the_video_beside_its_metrics(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    ran("simulate", "cartpole-ppo", "--actors", 0, "--run-dir", "run", "total_timesteps=64", "num_envs=2", "rollout_length=8")
    found = ran("evaluate", "run", "--episodes", 2, "--video", "seen.gif", "--json").result
    assert found["video"] == "seen.gif"
    assert Path("seen.gif").stat().st_size > 0
    for file, says in (("seen.gif", "exists; name another file"), ("seen.avi", "cannot write .avi; use .mp4 or .gif")):
        said = mistake("evaluate", "run", "--episodes", 10**12, "--video", file)  # said before an episode is played
        assert says in said


def test_the_five_lines_that_are_shown_play(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    page = (Path(__file__).resolve().parents[2] / "docs" / "rl_runs.md").read_text()
    [program] = re.findall(r"```python\n(import gymnasium\n.*?)```", page, re.DOTALL)
    ran("simulate", "cartpole-ppo", "--actors", 0, "total_timesteps=64", "num_envs=2", "rollout_length=8")
    names: dict[str, Any] = {}
    exec(program.replace(', render_mode="human"', ""), names)
    assert names["over"]
