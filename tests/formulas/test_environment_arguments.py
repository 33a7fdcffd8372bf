"""Arguments of environments: env.NAME=value, time limits, seeds of functions, Atari's protocol, and missing packages."""

from __future__ import annotations

import importlib
import select
import sys
from functools import partial
from typing import Any, ClassVar

import gymnasium
import numpy as np
import pytest
from gymnasium import spaces
from gymnasium.vector import AutoresetMode, SyncVectorEnv

from shoal import Reinforcement
from shoal.actors.workers.rollout import Rollout
from shoal.envs import atari, trying
from shoal.envs.making import Recipe, make_vector, spaces_in, wants_number, wants_seed
from shoal.envs.spaces import Discrete, Observations
from shoal.envs.trying import masks_told, tried
from shoal.envs.vector import EnvError
from shoal.jobs.catalog import digits
from shoal.jobs.job import Job
from shoal.nets.flat import FlatModule
from shoal.nets.numpy_policy import NumpyPolicy
from shoal.nets.policies import ActorCritic
from shoal.protocol.errors import UserError
from shoal.protocol.work import Task


class Tunable(gymnasium.Env[Any, Any]):
    """An environment with arguments, whose episodes never end by themselves. The first observation is `level`."""

    made: ClassVar[list[Any]] = []

    def __init__(self, level: float = 0.0, wide: bool = False, render_mode: str | None = None) -> None:
        self.level, self.render_mode = level, render_mode
        self.observation_space = spaces.Box(-9, 9, (4 if wide else 2,), np.float32)
        self.action_space = spaces.Discrete(2)

    def reset(self, *, seed: int | None = None, options: Any = None) -> Any:
        return np.full(self.observation_space.shape or (), self.level, np.float32), {}

    def step(self, action: Any) -> Any:
        return np.full(self.observation_space.shape or (), self.level, np.float32), 1.0, False, False, {}


@pytest.fixture(autouse=True)
def _registered() -> Any:
    gymnasium.register("Tunable-v0", entry_point=Tunable)
    yield
    del gymnasium.registry["Tunable-v0"]


def problem(job: Job) -> Any:
    return job.problem


def test_an_argument_is_the_same_from_python_and_from_the_command_line_and_stands_in_config_toml() -> None:
    given = Reinforcement("Tunable-v0", env_kwargs={"wide": True, "level": -2.5})
    typed = Reinforcement("Tunable-v0").configured({"env.wide": "true", "env.level": "-2.5"})
    again = Reinforcement("Tunable-v0").configured(given.plain())
    for job in (given, typed, again):
        assert problem(job).spaces().observation == Observations((4,))
        assert dict(problem(job).env_kwargs) == {"wide": True, "level": -2.5}
        envs = problem(job).worlds()(2)
        assert (envs.reset(0).observation == -2.5).all()
        envs.close()
    assert problem(given.configured({"env.wide": "false"})).spaces().observation == Observations((2,))
    assert problem(given).spaces().observation == Observations((4,))  # jobs do not share what an argument changes


def test_native_environments_take_arguments_that_are_theirs_and_single_ones_the_others() -> None:
    native = make_vector(Recipe("CartPole-v1", {"sutton_barto_reward": True}), 2)
    assert not isinstance(native.vector, SyncVectorEnv)
    assert (native.reset(0), native.step(np.zeros(2, np.int64)).reward)[1].tolist() == [0.0, 0.0]


@pytest.mark.parametrize(
    ("env", "given", "says"),
    [
        ("Tunable-v0", {"widee": 1}, "env.widee: environment 'Tunable-v0' has no argument 'widee'; did you mean wide?"),
        ("Tunable-v0", {"zz": 1}, "has no argument 'zz'; it takes level, wide, render_mode"),
        ("CartPole-v1", {"gravity": 1}, "env.gravity: environment 'CartPole-v1' has no argument 'gravity'"),
    ],
)
def test_an_argument_that_the_environment_does_not_have_is_refused_in_one_line(env: str, given: Any, says: str) -> None:
    with pytest.raises(UserError, match=says) as wrong:
        problem(Reinforcement(env, env_kwargs=given)).spaces()
    assert "\n" not in str(wrong.value)


class Picky(Tunable):
    """An environment that looks at its arguments late: at one when it is made, at others when it is stepped."""

    def __init__(self, board: str = "4x4", level: float | str = 0.0, limits: Any = 3, order: int = 1) -> None:
        super().__init__()
        self.side, self.limits, self.order = {"4x4": 4, "8x8": 8}[board], limits, order

    def step(self, action: Any) -> Any:
        return super().step(action)[0], 1.0 / self.order, self.limits < 0, False, {}


@pytest.mark.parametrize(
    ("env", "given", "says"),
    [
        (
            "Tunable-v0",
            {"level": "abc"},
            "env.level=abc: environment 'Tunable-v0' expects a number there; env.level=0.0 is its",
        ),
        ("Tunable-v0", {"level": True}, "env.level=true: environment 'Tunable-v0' expects a number there"),
        ("Tunable-v0", {"level": [1]}, r"env.level=\[1\]: environment 'Tunable-v0' expects a number there"),
        (
            "Tunable-v0",
            {"wide": "False"},
            "env.wide=False: environment 'Tunable-v0' expects true or false there; env.wide=false",
        ),
        ("Pendulum-v1", {"g": "abc"}, "env.g=abc: environment 'Pendulum-v1' expects a number there; env.g=10.0 is its default"),
        (
            "CartPole-v1",
            {"sutton_barto_reward": "yes"},
            "env.sutton_barto_reward=yes: environment 'CartPole-v1' expects true or",
        ),
    ],
)
def test_an_argument_that_is_no_number_where_one_is_expected_is_refused(env: str, given: Any, says: str) -> None:
    with pytest.raises(UserError, match=says) as wrong:
        problem(Reinforcement(env, env_kwargs=given)).spaces()
    assert "\n" not in str(wrong.value)


def test_an_argument_may_be_none_and_of_any_type_that_its_annotation_names() -> None:
    gymnasium.register("Picky-v0", entry_point=Picky)
    try:
        for given in ({"level": "high"}, {"level": None}, {"limits": [1]}, {"order": 2}):
            make_vector(Recipe("Picky-v0", given), 1).close()
    finally:
        del gymnasium.registry["Picky-v0"]


@pytest.mark.parametrize(
    ("env", "given", "says"),
    [
        (
            "FrozenLake-v1",
            {"map_name": "7x7"},
            "env.map_name=7x7: environment 'FrozenLake-v1' cannot be made with that: KeyError",
        ),
        ("Pendulum-v1", {"max_episode_steps": "many"}, "env.max_episode_steps=many: environment 'Pendulum-v1' cannot be made"),
    ],
)
def test_what_an_environment_raises_when_it_is_made_is_told_with_its_arguments(env: str, given: Any, says: str) -> None:
    with pytest.raises(UserError, match=says) as wrong:
        problem(Reinforcement(env, env_kwargs=given)).spaces()
    assert "\n" not in str(wrong.value)


@pytest.mark.parametrize(("name", "value"), [("limits", "low"), ("order", 0)])
def test_what_an_environment_raises_in_its_first_step_is_told_with_its_arguments(name: str, value: Any) -> None:
    gymnasium.register("Picky-v0", entry_point=Picky)
    try:
        says = f"env.{name}={value}: environment 'Picky-v0': step raised"
        with pytest.raises(EnvError, match=says), tried(Recipe("Picky-v0", {name: value})):
            pass
    finally:
        del gymnasium.registry["Picky-v0"]


def test_a_trial_that_lasts_says_what_is_waited_for(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(trying, "LONG", 0.05)
    monkeypatch.setattr(trying, "_look", lambda env, vector: bool(select.select([], [], [], 1.0)[0]))
    assert not masks_told(Recipe("Tunable-v0", {"level": 2.0}), "sync", 0.0)
    assert "shoal: environment 'Tunable-v0' with env.level=2.0: its trial before the run has lasted" in capsys.readouterr().err


class Empty(Tunable):
    def __init__(self, rows: int = 2) -> None:
        super().__init__()
        self.observation_space = spaces.Box(-1, 1, (rows, 3), np.float32)


def test_observations_that_hold_nothing_are_refused_with_the_arguments_that_made_them_so() -> None:
    gymnasium.register("Empty-v0", entry_point=Empty)
    try:
        with pytest.raises(UserError, match=r"env.rows=0: observation space Box\(.*\) holds nothing: expected at least one"):
            make_vector(Recipe("Empty-v0", {"rows": 0}), 1)
    finally:
        del gymnasium.registry["Empty-v0"]


def test_a_window_at_every_step_is_refused_however_it_is_asked_for() -> None:
    says = "training would wait for a window at every step; leave render_mode out, and film episodes with shoal evaluate"
    with pytest.raises(UserError, match=f"env.render_mode=human: {says}"):
        Reinforcement("CartPole-v1", env_kwargs={"render_mode": "human"})
    with pytest.raises(UserError, match=rf'shown\(\) has render_mode="human": {says}'):
        problem(Reinforcement(shown)).spaces()
    with pytest.raises(UserError, match=rf'many_shown\(1\) has render_mode="human": {says}'):
        problem(Reinforcement(many_shown)).spaces()
    gymnasium.register("Shown-v0", entry_point=Tunable, kwargs={"render_mode": "human"})
    try:
        with pytest.raises(UserError, match=f"environment 'Shown-v0' with render_mode=human: {says}"):
            problem(Reinforcement("Shown-v0")).spaces()
    finally:
        del gymnasium.registry["Shown-v0"]
    problem(Reinforcement("Pendulum-v1", env_kwargs={"render_mode": "rgb_array"})).spaces()


def shown() -> Any:
    return Tunable(render_mode="human")


def many_shown(num_envs: int) -> Any:
    return SyncVectorEnv([shown] * num_envs, autoreset_mode=AutoresetMode.NEXT_STEP)


def test_arguments_and_limits_are_refused_where_they_could_not_work() -> None:
    with pytest.raises(UserError, match=r"env_kwargs=.*a function makes this job's environment; give them to the environment"):
        Reinforcement(Tunable, env_kwargs={"wide": True})
    with pytest.raises(UserError, match="time_limit=5: only an id takes it"):
        Reinforcement(Tunable, time_limit=5)
    with pytest.raises(UserError, match=r"env_kwargs=.*: must be a dict of plain data"):
        Reinforcement("Tunable-v0", env_kwargs={"level": object()})
    with pytest.raises(UserError, match=r"env\.lr: this job has no environment"):
        digits().configured({"env.lr": "1"})


@pytest.mark.parametrize("settings", [{}, {"vector": "async"}])
def test_a_time_limit_truncates(settings: Any) -> None:
    job = Reinforcement("Tunable-v0", time_limit=3, env_kwargs={"level": 1.0}, **settings)
    job.prepare()
    envs = problem(job).worlds()(2)
    try:
        envs.reset(0)
        steps = [envs.step(np.zeros(2, np.int64)) for _ in range(3)]
    finally:
        envs.close()
        job.problem.close()
    assert [step.truncated.all() for step in steps] == [False, False, True]
    assert (steps[0].observation == 1).all()


def test_a_native_environment_has_its_time_limit_too() -> None:
    envs = make_vector(Recipe("CartPole-v1", time_limit=2), 3)
    envs.reset(0)
    assert not isinstance(envs.vector, SyncVectorEnv)
    assert [envs.step(np.zeros(3, np.int64)).truncated.all() for _ in range(2)] == [False, True]


def with_seed(seed: int) -> Any:
    Tunable.made.append(seed)
    return Tunable(seed % 7)


def by_name(*, seed: int = 0) -> Any:
    return with_seed(seed)


def many(num_envs: int, seed: int) -> Any:
    Tunable.made.append(seed)
    return SyncVectorEnv([partial(Tunable, seed % 7)] * num_envs, autoreset_mode=AutoresetMode.NEXT_STEP)


@pytest.mark.parametrize(("env", "each"), [(with_seed, 3), (by_name, 3), (many, 1)])
def test_a_function_with_a_seed_gives_each_client_other_environments_and_a_run_the_same_again(env: Any, each: int) -> None:
    assert wants_seed(env)
    assert problem(Reinforcement(env)).spaces()  # a job takes it
    assert wants_number(env) == (env is many)

    def made(client: int, seed: int) -> list[Any]:
        Tunable.made.clear()
        worker = Rollout(partial(make_vector, env), NumpyPolicy(Discrete(2)), 2, 3, seed)
        module = ActorCritic(spaces_in(Tunable))
        Tunable.made.clear()
        worker.run(FlatModule(module).bundle(), client, Task(0, 0, (client,)))
        worker.close()
        return list(Tunable.made)

    first, again, other, later = made(0, 1), made(0, 1), made(1, 1), made(0, 2)
    assert first == again
    assert len(set(first)) == each
    assert not set(first) & (set(other) | set(later))
    assert all(0 <= seed < 2**30 for seed in first)


@pytest.mark.parametrize(("env", "extra"), [("ALE/Pong-v5", "atari"), ("MiniGrid-Empty-5x5-v0", "minigrid")])
def test_a_package_that_is_missing_is_named_with_its_extra(env: str, extra: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(name: str) -> Any:
        raise ModuleNotFoundError(f"No module named {name!r}")

    monkeypatch.setattr(importlib, "import_module", missing)
    with pytest.raises(UserError, match=rf"{env}' needs .*: pip install 'shoal\[{extra}\]'"):
        spaces_in(env)


def test_a_missing_mujoco_is_named_with_its_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "mujoco", None)
    for name in [name for name in sys.modules if name.startswith("gymnasium.envs.mujoco")]:
        monkeypatch.delitem(sys.modules, name)
    with pytest.raises(UserError, match=r"environment 'HalfCheetah-v5' cannot be made: .*pip install 'shoal\[mujoco\]'"):
        spaces_in("HalfCheetah-v5")


def test_minigrids_mission_is_left_out_and_said() -> None:
    pytest.importorskip("minigrid", reason="pip install 'shoal[minigrid]'")
    job = Reinforcement("MiniGrid-Empty-5x5-v0")
    assert set(problem(job).spaces().arrays) == {"observation/image", "observation/direction"}
    text, network = problem(job).about(job.method, 0)
    assert text == "observation: mission is text, which policies here do not read: left out"
    assert network.startswith("policy: image: CNN of three 3x3 convolutions for pictures of 7x7x3, 4 further numbers")


# Atari


def test_atari_is_played_by_machados_protocol_and_says_so() -> None:
    pytest.importorskip("ale_py", reason="pip install 'shoal[atari]'")
    job = Reinforcement("ALE/Breakout-v5", time_limit=5)
    found = problem(job).spaces()
    assert found.observation == Observations((1, 84, 84), "u1")
    assert problem(job).shown().observation == Observations((4, 1, 84, 84), "u1")
    assert found.action == Discrete(18)
    line, network = problem(job).about(job.method, 0)
    assert line == (
        "atari: protocol of Machado et al. 2018: repeat_action_probability=0.25, frameskip=4, full_action_space=true, "
        "episodic_life=false, noop_max=0, reward_clipping=false, 84x84 grey, stack_num=1, frame_stack=4; "
        "env.NAME=value changes one"
    )
    assert network == "policy: Nature CNN (Mnih et al. 2015) for pictures of 84x84x4"
    envs = problem(job).worlds()(2)
    first = envs.reset(0)
    steps = [envs.step(np.ones(2, np.int64)) for _ in range(5)]
    envs.close()
    assert first.observation.dtype == np.uint8
    assert [bool(step.truncated.all()) for step in steps] == [False] * 4 + [True]


def test_an_argument_of_atari_changes_one_part_of_the_protocol() -> None:
    pytest.importorskip("ale_py", reason="pip install 'shoal[atari]'")
    job = Reinforcement("ALE/Breakout-v5").configured({"env.full_action_space": "false", "env.episodic_life": "true"})
    assert problem(job).spaces().action == Discrete(4)
    assert "full_action_space=false, episodic_life=true" in problem(job).conditions()[0]
    with pytest.raises(UserError, match=r"env\.sticky: environment 'ALE/Breakout-v5' has no argument 'sticky'"):
        problem(Reinforcement("ALE/Breakout-v5", env_kwargs={"sticky": 0.1})).spaces()
    assert problem(Reinforcement("ALE/Breakout-v5", vector="sync")).spaces().observation == Observations((210, 160, 3), "u1")


@pytest.mark.parametrize("given", [{"frame_stack": 1}, {"env_kwargs": {"stack_num": 4}}, {"method": "r2d2", "memory": "gru"}])
def test_atari_stacks_frames_itself_where_they_are_not_stacked_later(given: dict[str, Any]) -> None:
    pytest.importorskip("ale_py", reason="pip install 'shoal[atari]'")
    job = Reinforcement("ALE/Breakout-v5", **given)
    assert job.plain()["frame_stack"] == 1
    assert problem(job).shown().observation == Observations((4, 84, 84), "u1")
    assert "84x84 grey, stack_num=4; env" in problem(job).conditions()[0]


def test_a_policy_of_ones_own_sees_the_stacks_of_atari() -> None:
    pytest.importorskip("ale_py", reason="pip install 'shoal[atari]'")
    for method in ("impala", "apex"):
        job = Reinforcement("ALE/Breakout-v5", lambda spaces: None, method=method)  # type: ignore[arg-type, return-value]
        assert problem(job).shown().observation == Observations((4, 84, 84), "u1")
        assert (job.preset is None) == (method == "apex")


def test_the_single_environment_of_atari_is_told_as_it_is_too() -> None:
    pytest.importorskip("ale_py", reason="pip install 'shoal[atari]'")
    single = problem(Reinforcement("ALE/Breakout-v5", vector="sync").configured({"env.obs_type": "grayscale"}))
    assert single.spaces().observation == Observations((210, 160), "u1")
    assert single.conditions() == [
        "atari: as gymnasium.make gives it: repeat_action_probability=0.25, frameskip=4, full_action_space=false, "
        "obs_type=grayscale, one frame of 210x160; env.NAME=value changes one"
    ]
    older = problem(Reinforcement("PongNoFrameskip-v4"))
    assert "repeat_action_probability=0.0, frameskip=1, full_action_space=false" in older.conditions()[0]
    assert not problem(Reinforcement("CartPole-v1")).conditions()


def test_what_is_said_of_atari_is_what_is_done() -> None:
    assert set(atari.SAID) <= set(atari.STANDARD)
    assert atari.arguments({"frameskip": 5}, 100)["max_num_frames_per_episode"] == 500
    assert "frameskip=5" in atari.told({"frameskip": 5})
