"""Warnings of MuJoCo are lines of ours, and leave no file in the user's folder."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from shoal.envs import physics
from shoal.envs.making import make_vector
from shoal.envs.physics import hear_physics, teller


def test_each_kind_of_warning_is_told_once() -> None:
    told: list[str] = []
    hear = teller(told.append)
    for second in range(30):
        hear(f"Nan in QACC at DOF {second}.\n The simulation is unstable. Time = {second / 7:.4f}.")
        hear(f"Contact buffer is full at {1e-9 * second}")
    assert told == [
        "shoal: MuJoCo warns (told once): Nan in QACC at DOF 0. The simulation is unstable. Time = 0.0000.",
        "shoal: MuJoCo warns (told once): Contact buffer is full at 0.0",
    ]
    for letter in "abcdefghijklmnopqrstuvwxyz":
        hear(letter)
    assert len(told) == physics.MOST


class Standing:
    """A module in the place of mujoco."""

    def __init__(self, listener: Any) -> None:
        self.listener = listener

    def get_mju_user_warning(self) -> Any:
        return self.listener

    def set_mju_user_warning(self, listener: Any) -> None:
        self.listener = listener


def test_a_listener_of_the_user_s_own_stays() -> None:
    ours, theirs = Standing(None), Standing(print)
    for module in (ours, theirs, None, object()):
        hear_physics(module)
    assert callable(ours.listener)
    assert theirs.listener is print


def test_an_unstable_simulation_is_told_in_a_line_and_not_in_a_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    mujoco: Any = pytest.importorskip("mujoco")
    monkeypatch.chdir(tmp_path)
    mujoco.set_mju_user_warning(None)
    envs = make_vector("InvertedPendulum-v5", 2)
    envs.reset(0)
    for single in envs.vector.envs:
        single.unwrapped.data.qvel[:] = 1e20
    envs.step(np.zeros((2, 1), np.float32))
    envs.close()
    assert list(tmp_path.iterdir()) == []
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("shoal: MuJoCo warns (told once): Nan, Inf or huge value in QVEL")
