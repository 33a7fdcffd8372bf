"""An environment is tried once before a run has a folder: a mistake in it is one line, and nothing of the trial is left."""

from __future__ import annotations

import os
import random
import signal
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar

import gymnasium
import numpy as np
import pytest
import torch
from gymnasium import spaces
from gymnasium.vector import AutoresetMode, SyncVectorEnv, VectorEnv

import shoal
from shoal import Reinforcement
from shoal.commands.cli import main
from shoal.protocol.errors import UserError
from shoal.runs.threads import lone

FEW: dict[str, Any] = {"method": "ppo", "total_timesteps": 32, "num_envs": 2, "rollout_length": 8, "clients": 2}


class Walk(gymnasium.Env[Any, Any]):
    """Observations are `seen`; an episode ends after 5 steps. A test overrides what is wrong."""

    observation_space: Any = spaces.Box(-1, 1, (3,), np.float32)
    action_space: Any = spaces.Discrete(2)
    seen: Any = np.zeros(3, np.float32)
    gives: Any = (1.0, False, False)
    first: Any = None

    def reset(self, *, seed: int | None = None, options: Any = None) -> Any:
        return (self.seen, {}) if self.first is None else self.first()

    def step(self, action: Any) -> Any:
        return self.gives() if callable(self.gives) else (self.seen, *self.gives, {})


class Batch(VectorEnv[Any, Any, Any]):
    metadata: ClassVar[dict[str, Any]] = {"autoreset_mode": AutoresetMode.SAME_STEP}
    single_observation_space = observation_space = spaces.Box(-1, 1, (3,), np.float32)
    single_action_space = action_space = spaces.Discrete(2)

    def __init__(self, num_envs: int, **wrong: Any) -> None:
        self.num_envs, none = num_envs, np.zeros(num_envs, dtype=bool)
        parts = {"seen": np.zeros((num_envs, 3)), "reward": np.ones(num_envs), "terminated": none, "truncated": none}
        self.parts = {**parts, **wrong}

    def reset(self, *, seed: Any = None, options: Any = None) -> Any:
        return self.parts["seen"], {}

    def step(self, actions: Any) -> Any:
        return *self.parts.values(), {}


def like(**wrong: Any) -> Callable[[], Walk]:
    return type("Walk", (Walk,), {"__module__": __name__, **wrong})


def raising(error: Exception) -> Any:
    def part(*_: Any) -> Any:
        raise error

    return part


def bare(self: Any) -> Any:
    return self.seen, {}


SHORT = "expected [3], as observation_space says"
SHAPE = "expected float32 of shape [3], as observation_space says"
WRONG: dict[str, tuple[Any, str]] = {
    "reset-raises": (like(first=raising(LookupError("no map"))), "in part: environment Walk: reset raised LookupError: no map"),
    "step-raises": (like(gives=raising(OSError("no wall"))), "in part: environment Walk: step raised OSError: no wall"),
    "step-in-numpy": (
        like(gives=lambda _: np.linalg.inv(np.zeros((2, 2)))),
        "test_rehearsal.py, line ",
    ),
    "reset-takes-no-seed": (like(reset=bare), "unexpected keyword argument 'seed'; expected reset(self, *, seed=None,"),
    "no-step": (
        like(step=gymnasium.Env.step),
        "environment Walk: step raised NotImplementedError; expected step(self, action)",
    ),
    "no-info": (like(first=lambda _: np.zeros(3)), "reset gave an object of type ndarray: expected (observation, info)"),
    "four-parts": (like(gives=lambda _: (0, 1.0, True, {})), "step gave a tuple of 4: expected (observation, reward, term"),
    "observation-shape": (
        like(seen=np.zeros(4)),
        f"in reset: environment Walk: reset gave an observation of shape [4]: {SHORT}",
    ),
    "observation-none": (like(first=lambda _: (None, {})), f"reset gave the observation None: {SHAPE}"),
    "observation-dict": (like(seen={"at": 1}), f"reset gave the observation a dict with 'at': {SHAPE}"),
    "observation-ragged": (like(seen=[[1, 2], 3]), "reset gave the observation an object of type list, which is no array"),
    "observation-nan": (like(seen=np.array([0, 0, np.nan])), "reset gave an observation that holds NaN or an infinity"),
    "observation-dtype": (
        like(observation_space=spaces.Box(0, 9, (3,), np.uint8), seen=np.zeros(3)),
        "reset gave an observation of float64: expected uint8 of shape [3], as observation_space says; give np.asarray(",
    ),
    "observation-outside": (
        like(observation_space=spaces.Discrete(4), seen=4),
        "environment Walk: an environment's observation is 4, outside its space Discrete(4, start=0)",
    ),
    "mask-of-bits": (
        like(action_space=spaces.MultiBinary(2), first=lambda _: (np.zeros(3), {"action_mask": np.ones(4)})),
        "reset: environment Walk: info has an action_mask, and actions are MultiBinary: a mask forbids choices of Discrete",
    ),
    "mask-of-numbers": (
        like(action_space=spaces.Box(-1, 1, (2,)), first=lambda _: (np.zeros(3), {"action_mask": np.ones(2)})),
        "info has an action_mask, and actions are Box: ",
    ),
    "reward-nan": (like(gives=(np.nan, False, False)), "step gave the reward nan: expected a finite number"),
    "reward-huge": (like(gives=(1e39, False, False)), "step gave the reward 1e+39: expected a finite number, of the size of"),
    "reward-text": (like(gives=("3", False, False)), "step gave the reward '3': expected one number"),
    "reward-array": (like(gives=(np.ones(2), False, False)), "step gave the reward array([1., 1.]): expected one number"),
    "terminated-text": (like(gives=(1.0, "no", False)), "step gave terminated='no': expected True or False"),
    "truncated-none": (like(gives=(1.0, False, None)), "step gave truncated=None: expected True or False"),
    "truncated-many": (like(gives=(1.0, False, np.ones(2, dtype=bool))), "step gave truncated=array([ True,  True]): expected"),
    "exits": (like(gives=lambda _: os._exit(7)), "ended its process in its first reset or step: it exited with code 7"),
    "leaves": (like(gives=raising(SystemExit(7))), "in part: SystemExit: 7"),  # type: ignore[arg-type]
    "killed": (like(gives=lambda _: os.kill(os.getpid(), signal.SIGKILL)), "it was ended by SIGKILL"),
    "of-many": (lambda n: SyncVectorEnv([like(seen=np.zeros(4))] * n), f"reset gave an observation of shape [4]: {SHAPE}"),
    "batch-shape": (
        lambda n: Batch(n, seen=np.zeros((n, 2))),
        "in reset: environment <lambda>: reset gave an observation of shape [1, 2]: expected float32 of shape [1, 3]",
    ),
    "batch-reward": (lambda n: Batch(n, reward=1.0), "step gave the reward 1.0: expected an array of 1"),
    "batch-flags": (lambda n: Batch(n, terminated=False), "step gave terminated=False: expected booleans of shape [1]"),
    "needs-arguments": (lambda size: Walk(), "; an environment with arguments is given as env=lambda: <lambda>(...)"),
    "gives-the-class": (lambda: Walk, "() made the class Walk, not a gymnasium.Env; return Walk(), say"),
}


@pytest.fixture(autouse=True)
def _apart(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert lone(), f"an earlier test left threads, beside which no copy is made: {threading.enumerate()}"


@pytest.mark.parametrize("name", WRONG)
def test_a_mistake_in_an_environment_is_one_line_and_leaves_no_folder(name: str) -> None:
    env, says = WRONG[name]
    with pytest.raises(UserError) as wrong:
        shoal.run(Reinforcement(env, **FEW), actors=0)
    assert says in str(wrong.value)
    assert "\n" not in str(wrong.value)
    assert not Path("runs").exists()


@pytest.mark.parametrize("name", ["reset-raises", "step-in-numpy", "reward-nan", "terminated-text", "needs-arguments"])
def test_a_mistake_in_an_environment_is_one_line_beside_other_threads_too(name: str) -> None:
    over = threading.Event()
    thread = threading.Thread(target=over.wait)
    thread.start()  # as in a notebook: this process cannot be copied
    try:
        test_a_mistake_in_an_environment_is_one_line_and_leaves_no_folder(name)
    finally:
        over.set()
        thread.join()


RIGHT: dict[str, Any] = {
    "float64": like(seen=np.zeros(3)),
    "integers": like(seen=np.zeros(3, np.int8)),
    "list": like(seen=[0.0, 0.5, 1]),
    "tensor": like(seen=torch.zeros(3)),
    "arrays-of-one": like(gives=(np.ones(1), np.zeros(1, dtype=bool), np.zeros(1, dtype=bool))),
    "whole-numbers": like(gives=(1, 0, 1)),
    "number": like(observation_space=spaces.Box(-1, 1, ()), seen=0.5),
    "endless-actions": like(action_space=spaces.Box(-np.inf, np.inf, (2,))),
    "batch": Batch,
}


@pytest.mark.parametrize("name", RIGHT)
def test_what_gymnasium_takes_goes_through(name: str) -> None:
    assert shoal.run(Reinforcement(RIGHT[name], **FEW), actors=0).history[-1]["version"] > 0


def test_environments_that_are_tried_are_closed_and_their_processes_are_gone() -> None:
    def closed(self: Any) -> None:
        with Path("closed").open("a") as file:
            file.write(f"{os.getpid()}\n")

    with pytest.raises(UserError):
        shoal.run(Reinforcement(like(seen=np.zeros(4), close=closed), **FEW), actors=0)
    _, *copies = map(int, Path("closed").read_text().split())  # the first one was made for its spaces
    looks = sorted(copies.count(copy) for copy in set(copies))
    assert looks == [1, 1, 4]  # a look for action masks, the trial, and looks whether two go on alike, in each of two ways
    for copy in copies:
        assert copy != os.getpid()
        with pytest.raises(ProcessLookupError):
            os.kill(copy, 0)


def test_a_process_of_several_threads_makes_the_trial_itself_and_keeps_its_generators() -> None:
    done = threading.Event()
    thread = threading.Thread(target=done.wait)
    thread.start()
    before = (random.getstate(), repr(np.random.get_state()))
    try:
        with pytest.raises(UserError, match=r"reset gave an observation of shape \[4\]"):
            shoal.run(Reinforcement(like(seen=np.zeros(4)), **FEW), actors=0)
    finally:
        done.set()
        thread.join()
    assert (random.getstate(), repr(np.random.get_state())) == before
    assert not Path("runs").exists()


def test_an_environment_that_is_replaced_when_it_raises_may_raise_in_the_trial() -> None:
    def moody(self: Any) -> Any:
        if not Path("raised").exists():
            Path("raised").touch()
            raise OSError("not today")
        return self.seen, 1.0, False, True, {}

    job = Reinforcement(like(gives=moody), on_env_error="replace", **FEW)
    assert shoal.run(job, actors=0).history[-1]["version"] > 0


def test_the_command_ends_with_2_and_the_line_of_the_users_file(capsys: pytest.CaptureFixture[str]) -> None:
    Path("mine.py").write_text(
        "import gymnasium\nfrom shoal import Reinforcement\n\n\nclass Slope(gymnasium.Env):\n"
        "    observation_space = gymnasium.spaces.Box(0, 1, (2,))\n    action_space = gymnasium.spaces.Discrete(3)\n\n"
        "    def reset(self, *, seed=None, options=None):\n        return self.at, {}\n\n\njob = Reinforcement(Slope)\n"
    )
    assert main(["simulate", "mine.py", "--actors", "1"]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    says = "environment Slope: reset raised AttributeError: 'Slope' object has no attribute 'at'"
    assert line == f"shoal: mine.py, line 10, in reset: {says}"
    assert not Path("runs").exists()
