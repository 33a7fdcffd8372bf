"""Warnings of MuJoCo are lines of ours, and leave no file in the user's folder."""

from __future__ import annotations

import importlib
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from shoal.envs import physics
from shoal.envs.physics import listen, teller
from shoal.protocol.imports import when_imported


def test_each_kind_of_warning_is_told_once() -> None:
    told: list[str] = []
    hear = teller(told.append)
    for second in range(30):
        hear(f"Nan in QACC at DOF {second}.\n The simulation is unstable. Time = {second / 7:.4f}.")
        hear(f"attribute 'x{second}' is deprecated")
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
    for module in (ours, theirs, object()):
        listen(module)
    assert callable(ours.listener)
    assert theirs.listener is print


PROGRAM = """
import sys

import numpy as np

from shoal.envs.making import make_vector

assert "mujoco" not in sys.modules
envs = make_vector("HalfCheetah-v5", 2)  # compiles a model, which warns
envs.reset(0)
for single in envs.vector.envs:
    single.unwrapped.data.qvel[:] = 1e20
envs.step(np.zeros((2, 6), np.float32))
envs.close()
"""


def test_an_unstable_simulation_is_told_in_a_line_and_not_in_a_file(tmp_path: Path) -> None:
    pytest.importorskip("mujoco")
    made = subprocess.run([sys.executable, "-c", PROGRAM], cwd=tmp_path, capture_output=True, text=True, timeout=90, check=True)
    assert list(tmp_path.iterdir()) == []
    (line,) = [line for line in made.stderr.splitlines() if line.startswith("shoal: ")]
    assert line.startswith("shoal: MuJoCo warns (told once): Nan, Inf or huge value in QVEL")


def test_a_module_is_acted_on_once_when_it_is_imported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "imported_late.py").write_text("number = 1\n")
    monkeypatch.syspath_prepend(tmp_path)
    told: list[int] = []

    def act(module: Any) -> None:
        told.append(module.number)

    before = list(sys.meta_path)
    for _ in range(2):
        when_imported("imported_late", act)
    assert told == []
    importlib.import_module("imported_late")
    assert told == [1]
    assert sys.meta_path == before
    when_imported("imported_late", act)
    assert told == [1, 1]
    del sys.modules["imported_late"]
