"""Environments that keep a log of their episode, so that it can be played again in another process.

The one idea: environments that are made and reset alike, and are given the same actions, are in the same state, whatever they
are made of: a physics world of C++, say, of which no attribute tells (envs/states.py). So a state is how the episode began, and
the actions since. After these are played again, the last observation must be the one that was kept, to the bit.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from shoal.envs.single import time_limit
from shoal.envs.states import NoStateError, Watched
from shoal.protocol import values
from shoal.protocol.draws import globally, key

ATTRIBUTES, ACTIONS, ANEW = "attributes", "actions", "anew"
WAYS = (ATTRIBUTES, ACTIONS, ANEW)
"""How the state of an environment is told. ATTRIBUTES: by its attributes alone (envs/states.py). ACTIONS: by its attributes
before the episode's reset, as many as can be told, and the actions since. ANEW: by the number of the episode and the actions
since; each episode but the first begins with a seed of its own, in an environment that is made anew, because it takes
something from one episode into the next that no attribute tells. A vector that steps its environments all at once is not made
anew (envs/logged_vector.py)."""
MOST_BYTES = 32_768  # of the actions of one environment, or of one game, that are kept
UNKNOWN = 4_096  # steps whose actions are kept of an environment without a time limit
SEEDS = 2**30  # an episode's seed is below this: some environments take only 32 bits


class Logged:
    """An environment that keeps a log of its episode. All that is not here is the environment's own.

    remake: makes the environment, for each episode after the first (ANEW); None: one environment plays all (ACTIONS). most:
    bytes that the actions of an episode take at most. It is a layer that tells its state itself (`states.OWN`)."""

    def __init__(self, env: Any, space: Any, remake: Callable[[], Any] | None = None) -> None:
        self.env, self.remake = env, remake
        row = self._row(space)
        self._room = max(1, min(self._limit() or UNKNOWN, MOST_BYTES // max(1, row.itemsize)))
        self._rows = np.zeros(self._room, row)
        self.most = self._rows.nbytes
        self.begin(0)

    def __getattr__(self, name: str) -> Any:
        if name == "env":
            raise AttributeError(name)
        return getattr(self.env, name)

    def begin(self, seed: int) -> None:
        """Begin the log of the first episode: the environment was made, and has just been reset with `seed`."""
        self._seed, self._episode, self._steps = seed, 0, 0
        self._began: list[Any] | None = None
        self._last: Any = None  # what the last reset or step gave
        self._kind = ""  # dtype of the actions as the environment gets them
        self._before = None if self.remake else Watched(self.env, partly=True)

    def reset(self, **given: Any) -> Any:
        if self._before is None:
            self._episode += 1
            if given.get("seed") is None:
                given["seed"] = key(self._seed, "episode", self._episode) % SEEDS
            self._made_anew()
            self._began = [None, given]
        else:
            self._began = [self._before.state(), given]
        self._steps = 0
        self._last = self.env.reset(**given)
        return self._last

    def step(self, action: Any) -> Any:
        t = self._steps
        self._steps = t + 1
        if t < self._room:
            self._note(t, action)
        self._last = given = self.env.step(action)
        return given

    def save_state(self) -> bytes:
        """The log as bytes. Raises NoStateError if the episode is longer than its log."""
        if self._steps > self._room:
            raise NoStateError(f"an episode has {self._steps:,} steps by now, and the actions of {self._room:,} are kept")
        rows = self._rows[: self._steps].tobytes()
        return values.pack_quickly([self._began, self._episode, self._steps, self._kind, rows, digest(self._last)])

    def load_state(self, state: bytes) -> None:
        """Play the episode of a log again, in an environment that was made and reset like the one of the log. Raises
        NoStateError if the environment does not do the same."""
        self._began, self._episode, self._steps, self._kind, rows, mark = values.read_quickly(state)
        if self._steps > self._room or len(rows) != self._rows[: self._steps].nbytes:
            raise NoStateError("the log is of other environments")
        self._rows[: self._steps] = np.frombuffer(rows, self._rows.dtype).reshape(self._steps, *self._rows.shape[1:])
        try:
            if self._began is not None:
                before, given = self._began
                if self._before is None:
                    self._made_anew()
                else:
                    self._before.restore(before)
                self._last = self.env.reset(**given)
            for t in range(self._steps):
                self._last = self.env.step(self._noted(t))
        except NoStateError:
            raise
        except Exception as raised:  # an environment is the user's code, and may raise anything where it does not do the same
            raise NoStateError(f"an episode that was played again raised {type(raised).__name__}") from raised
        if digest(self._last) != mark:
            raise NoStateError("an episode that was played again did not show what it had shown")

    def _made_anew(self) -> None:
        assert self.remake is not None
        self.env.close()
        with globally(self._seed, "episode made", self._episode):
            self.env = self.remake()

    def _limit(self) -> int:
        return time_limit(self.env)

    def _row(self, space: Any) -> np.dtype[Any]:
        return np.dtype((compact(space), space.shape))

    def _note(self, t: int, action: Any) -> None:
        self._rows[t] = action
        if not self._kind:
            self._kind = np.asarray(action).dtype.str

    def _noted(self, t: int) -> Any:
        return self._rows[t].astype(self._kind)


class LoggedGame(Logged):
    """A game of several agents (envs/agents.py) that keeps a log of its episode."""

    def _limit(self) -> int:
        return 0

    def _row(self, space: Any) -> np.dtype[Any]:
        self._names: Sequence[str] = tuple(self.env.possible_agents)
        many = len(self._names)
        return np.dtype([("action", compact(space), (many, *space.shape)), ("acts", "?", (many,))])

    def _note(self, t: int, action: Mapping[str, Any]) -> None:
        row = self._rows[t]
        row["acts"] = False
        for a, name in enumerate(self._names):
            if name in action:
                row["action"][a], row["acts"][a] = action[name], True
                self._kind = self._kind or np.asarray(action[name]).dtype.str

    def _noted(self, t: int) -> dict[str, Any]:
        row = self._rows[t]
        action = row["action"].astype(self._kind)
        return {name: action[a] for a, name in enumerate(self._names) if row["acts"][a]}


def compact(space: Any) -> np.dtype[Any]:
    """The smallest dtype that holds every action of a space: Discrete, MultiDiscrete, MultiBinary or Box."""
    from gymnasium import spaces

    kind: np.dtype[Any] = np.dtype(space.dtype)
    if isinstance(space, spaces.MultiBinary) or kind.kind == "b":
        return np.dtype(bool)
    if kind.kind not in "iu":
        return kind
    box = isinstance(space, spaces.Box)
    low = np.min(space.low if box else space.start)
    high = np.max(space.high if box else space.start + (space.n if isinstance(space, spaces.Discrete) else space.nvec) - 1)
    kinds: Iterator[np.dtype[Any]] = (np.dtype(f"{sign}{size}") for size in (1, 2, 4, 8) for sign in "ui")
    return next(each for each in kinds if np.iinfo(each).min <= low and high <= np.iinfo(each).max)


def digest(given: Any) -> bytes:
    """A digest of what a reset or a step gave, to the bit: observation, reward and ends. The info, with which a tuple ends, is
    left out."""
    whole = hashlib.blake2b(digest_size=16)

    def add(part: Any) -> None:
        if isinstance(part, Mapping):
            for name, its in part.items():
                whole.update(str(name).encode())
                add(its)
        elif isinstance(part, tuple | list):
            for its in part:
                add(its)
        else:
            array = np.asarray(part)
            whole.update(repr(part).encode() if array.dtype.kind == "O" else array.tobytes())

    add(given[: max(1, len(given) - 1)] if isinstance(given, tuple) else given)
    return whole.digest()
