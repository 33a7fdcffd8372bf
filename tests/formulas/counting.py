"""Environments whose observations tell (episode, step), and what a trajectory through them is by definition."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import gymnasium
import numpy as np
from gymnasium.vector import AutoresetMode, SyncVectorEnv

from shoal.envs.vector import Envs

Script = Sequence[tuple[int, str]]  # an environment's episodes: (length, how it ends); played over and over


class Counting(gymnasium.Env[Any, Any]):
    """Observation (episode, step); reward 1000 * episode + step. An episode "ends" by t(erminated), c(ut) or b(oth)."""

    observation_space = gymnasium.spaces.Box(0, np.inf, (2,), np.float32)

    def __init__(self, script: Script, action_space: Any = None) -> None:
        self.script = script
        self.action_space = action_space or gymnasium.spaces.Discrete(2)
        self.episode = -1
        self.at = 0
        self.taken: list[Any] = []

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[Any, dict[str, Any]]:
        super().reset(seed=seed)
        self.episode = 0 if seed is not None else self.episode + 1
        self.at = 0
        return self.seen(), {}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        self.taken.append(action)
        self.at += 1
        length, how = self.script[self.episode % len(self.script)]
        over = self.at == length
        return self.seen(), 1000.0 * self.episode + self.at, over and how in "tb", over and how in "cb", {}

    def seen(self) -> Any:
        return np.array([self.episode, self.at], dtype=np.float32)


def counting(scripts: Sequence[Script], mode: str, copy: bool = True, action_space: Any = None) -> Envs:
    singles = [Counting(script, action_space) for script in scripts]
    made = [lambda single=single: single for single in singles]
    return Envs(SyncVectorEnv(made, copy=copy, autoreset_mode=AutoresetMode(mode)))


@dataclass(frozen=True)
class Row:
    observation: tuple[int, int]
    final: tuple[int, int] | None  # where the row is cut off: its episode's last observation, if that is not in the next row
    reward: float
    terminated: bool
    truncated: bool
    mask: bool
    lived: bool


def definition(script: Script, mode: str) -> Iterator[Row]:
    """The rows of one environment for ever, told episode by episode."""
    for episode, (length, how) in enumerate(itertools.cycle(script)):
        for at in range(length):
            over = at == length - 1
            cut = over and how in "cb"
            final = (episode, length) if cut and mode != "NextStep" else None
            yield Row((episode, at), final, 1000 * episode + at + 1, over and how in "tb", cut, True, True)
        if mode == "NextStep":
            yield Row((episode, length), None, 0.0, False, False, False, False)


def finished(script: Script, mode: str, rows: range) -> list[tuple[int, float, int]]:
    """Of the episodes that end in these rows: (row, return, length)."""
    ends, total, length = [], 0.0, 0
    for t, row in enumerate(itertools.islice(definition(script, mode), rows.stop)):
        total, length = total + row.reward, length + row.lived
        if row.terminated or row.truncated:
            if t in rows:
                ends.append((t, total, length))
            total, length = 0.0, 0
    return ends
