"""The rows of one trajectory, filled step by step by the environments that are stepped together.

The one idea: each part of a client's environments writes to views of the same arrays, its own columns. So whether there is one
part or two halves, and whether a policy answers at once or is asked, is a matter of order alone.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, cast

import numpy as np
import numpy.typing as npt

from shoal.actors.asking import Asking
from shoal.envs.spaces import MASK, OBSERVATION, STATE, Spaces, final_name
from shoal.envs.vector import Step, Stepping, Worlds
from shoal.nets.acting import ALL, FIRST, Acted, Policy, State
from shoal.protocol.layout import Bundle
from shoal.protocol.work import Words


@dataclass(slots=True)
class Portion:
    """Environments of one client that are stepped together: all of them, or a half. step: their last one. state: the policy's,
    before it acts on that step's observations. columns: their places among all of the client's."""

    envs: Worlds
    step: Step
    state: State
    columns: slice
    action: Any = None  # of the step that begins when its result is asked for
    stepping: Stepping | None = None  # the environments, if they step by themselves

    def __post_init__(self) -> None:
        if hasattr(self.envs, "send"):
            self.stepping = cast(Stepping, self.envs)

    def send(self, action: Any) -> None:
        """Begin a step, if the environments step by themselves; else it begins at `receive`."""
        if self.stepping is None:
            self.action = action
        else:
            self.stepping.send(action)

    def receive(self) -> Step:
        """The result of the step."""
        self.step = self.envs.step(self.action) if self.stepping is None else self.stepping.receive()
        return self.step


@dataclass(slots=True)
class Filling:
    """The rows of a trajectory that one part of the environments fills: views [T, b, ...] of its arrays; observation and first
    have T + 1 rows. extras: of the policy, by name, which the first step makes."""

    part: Portion
    words: Words
    noise: Any
    observation: Any
    final: Any
    first: Any
    action: Any
    mask: Any
    terminated: Any
    truncated: Any
    reward: Any
    lived: Any
    extras: dict[str, Any] = field(default_factory=dict)

    def see(self, t: int) -> Step:
        """Write what is seen before step t. Returns the step that showed it."""
        step = self.part.step
        if self.first is not None:
            self.first[t] = step.first
        self.observation[t], self.mask[t] = step.observation, step.mask
        return step

    def act(self, t: int, acted: Acted, whole: dict[str, Any], B: int) -> None:
        """Write the actions of step t, and begin the step. whole: the extras of all parts, [T, B, ...]."""
        self.action[t], self.part.state = acted.action, acted.state
        for name, array in acted.extras.items():
            if name not in self.extras:
                if name not in whole:
                    whole[name] = np.empty((len(self.action), B, *array.shape[1:]), array.dtype)
                self.extras[name] = whole[name][:, self.part.columns]
            self.extras[name][t] = array
        self.part.send(self.action[t])

    def take(self, t: int) -> Step:
        """Write the result of step t."""
        step = self.part.receive()
        self.reward[t], self.terminated[t], self.truncated[t] = step.reward, step.terminated, step.truncated
        self.lived[t] = step.lived
        if step.final is not None and step.truncated.any():
            self.final[t, step.truncated] = step.final[step.truncated]
        return step


class Rows:
    """The T rows of a trajectory of B environments, as `bundle` holds them when `fill` is done.

    noise: of the policy, for all rows. words: of the task. reward (float64), lived and, where first episodes were cut short,
    cut (else None), all [T, B], are for the statistics of episodes; replaced is the number of processes replaced.
    """

    def __init__(
        self, bundle: Bundle, spaces: Spaces, parts: Sequence[Portion], policy: Policy, noise: Any, words: Words
    ) -> None:
        self.bundle, self.spaces, self.policy = bundle, spaces, policy
        self.T, self.B = T, B = bundle["mask"].shape
        self.observation, self.final = _whole(bundle, spaces, T, B)
        self.reward, self.lived = np.empty((T, B)), np.empty((T, B), dtype=bool)
        self.cut: npt.NDArray[np.bool_] | None = None
        self.replaced = sum(part.step.replaced for part in parts)
        self._extras: dict[str, Any] = {}
        self._asks = policy if isinstance(policy, Asking) and len(parts) > 1 else None
        self._waiting: tuple[int, int] | None = None  # (place, row) of a question whose answer was not asked for yet
        names = ("action", "mask", "terminated", "truncated")
        arrays: dict[str, Any] = {name: bundle[name] for name in names}
        arrays |= {"noise": noise, "reward": self.reward, "lived": self.lived}
        arrays |= {"observation": self.observation, "final": self.final, "first": bundle["first"] if policy.memory else None}
        self._every: list[Filling] = []
        for part in parts:
            its: dict[str, Any] = {name: None if array is None else array[:, part.columns] for name, array in arrays.items()}
            told = words if len(parts) == 1 else {**words, FIRST: part.columns.start, ALL: B}
            self._every.append(Filling(part, told, **its))
            for name, array in part.state.items():
                bundle[f"{STATE}{name}"][part.columns] = array

    def fill(self, late: Callable[[], bool] | None = None) -> int:
        """Play all rows, or as many as there are before `late` says so, the first in any case; the rows that are not played are
        masked. Returns the number of rows that were played."""
        t = 0
        for t in range(self.T):
            if t and late is not None and late():
                break
            for place, rows in enumerate(self._every):
                if t:
                    self._take(rows, t - 1)
                self._act(place, rows, t)
        else:
            t = self.T
        for place, rows in enumerate(self._every):
            if self._waiting and self._waiting[0] == place:
                self._answer()
            self._take(rows, t - 1)
        if t < self.T:
            self._blank(t)
        self._end()
        return t

    def _act(self, place: int, rows: Filling, t: int) -> None:
        """Begin step t of one part: with the policy's actions, or by asking for them while another part's step begins."""
        step = rows.see(t)
        if self._asks:
            self._asks.ask(place, step.observation, step.first, rows.part.state)
            self._answer()  # the other half's, which begins a step
            self._waiting = place, t
        else:
            acted = self.policy.act(step.observation, step.first, rows.part.state, rows.noise[t], rows.words)
            rows.act(t, acted, self._extras, self.B)

    def _answer(self) -> None:
        """Wait for the answer to the question that is out, if there is one, and begin its step."""
        if self._asks and self._waiting:
            place, row = self._waiting
            rows, self._waiting = self._every[place], None
            rows.act(row, self._asks.answer(place, rows.noise[row], rows.words), self._extras, self.B)

    def _take(self, rows: Filling, row: int) -> None:
        step = rows.take(row)
        self.replaced += step.replaced
        if step.cut is not None:
            self.cut = np.zeros((self.T, self.B), dtype=bool) if self.cut is None else self.cut
            self.cut[row, rows.part.columns] = step.cut

    def _blank(self, t: int) -> None:
        """Mask the rows from t on, which were not played. Their action is 0, whose probability must be a number."""
        self.bundle["mask"][t:], self.lived[t:] = False, False
        for rows in self._every:
            rows.observation[t : self.T] = rows.part.step.observation
            if rows.first is not None:
                rows.first[t] = rows.part.step.first
        if self.spaces.masks:
            self.observation[MASK][t : self.T] = True
        for array in (self.reward, self.bundle["action"], *self._extras.values()):
            array[t:] = 0

    def _end(self) -> None:
        bundle, spaces = self.bundle, self.spaces
        bundle["mask"][...] &= self.lived  # a row that only resets is masked already; one that never happened shows by now
        for rows in self._every:
            rows.observation[self.T] = rows.part.step.observation
            if rows.first is not None:
                rows.first[self.T] = rows.part.step.first
            rows.part.step = rows.part.step._replace(replaced=0)  # the replaced processes are counted by now
        bundle["reward"][...] = self.reward
        if not spaces.plain:
            for name in spaces.arrays:
                bundle[name][...] = self.observation[name]
                if spaces.finals:
                    bundle[final_name(name)][...] = self.final[name]
        for name, rows_TB in self.policy.finish(self._extras, bundle["action"]).items():
            bundle[name][...] = rows_TB


def _whole(bundle: Bundle, spaces: Spaces, T: int, B: int) -> tuple[Any, Any]:
    """Arrays for observations [T + 1, B, ...] and for last observations of truncated episodes [T, B, ...], as `Spaces.record`
    says: the bundle's own, or structured ones, which are copied to the bundle at the end."""
    if spaces.plain:
        return bundle[OBSERVATION], bundle["final"] if spaces.finals else None
    dtype = spaces.record()[0]
    return np.zeros((T + 1, B), dtype), np.zeros((T, B), dtype) if spaces.finals else None
