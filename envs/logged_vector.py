"""The logs of a vector: one of each single environment, or one of a vector that steps its environments all at once.

The one idea: a vector that begins an episode of any one of its environments with a seed is told by seeds and actions, whatever
else it is made of. All its environments are played again together, each from its own seed, so that all logs end in one step. A
seed may be dear (ale_py loads the game anew, 88 ms), so a log goes on over several episodes.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from shoal.envs.logged import ANEW, MOST_BYTES, SEEDS, UNKNOWN, Logged, LoggedGame, compact, digest
from shoal.envs.spaces import MASK
from shoal.envs.states import NoStateError
from shoal.protocol import values
from shoal.protocol.draws import key

NEXT_STEP, SAME_STEP = "NextStep", "SameStep"  # the values of gymnasium's AutoresetMode with a reset of the vector's own
SPAN = 4_096  # steps with one seed after which the next episode begins with another
Bools = npt.NDArray[np.bool_]


def keep_logs(vector: Any, way: str, seed: int) -> tuple[Any, int]:
    """Have each environment, or game, of a vector keep a log from here on, after a reset of the vector with `seed`. Returns the
    vector that is to be stepped from now on, and the bytes that all the logs' actions take at most. Raises NoStateError if the
    environments cannot be told so."""
    import gymnasium

    inner = vector
    while isinstance(inner, gymnasium.vector.VectorWrapper):
        inner = inner.env
    logs: list[Logged] = []
    if hasattr(inner, "shoal_games"):
        space = inner.single_action_space
        inner.shoal_games = [game if isinstance(game, Logged) else LoggedGame(game, space) for game in inner.shoal_games]
        logs = inner.shoal_games
    elif isinstance(inner, gymnasium.vector.SyncVectorEnv):
        for i, one in enumerate(inner.envs):
            ours: Any = one if hasattr(one, "cut_after") else None  # envs/single.py
            env: Any = ours.env if ours else one
            if not isinstance(env, Logged):
                env = Logged(env, one.action_space, ours.remake if ours and way == ANEW else None)
            if ours:
                ours.env = env
            else:
                inner.envs[i] = env
            logs.append(env)
    elif way == ANEW:
        logged = vector if isinstance(vector, LoggedVector) else LoggedVector(vector)
        logged.begin(seed)
        return logged, logged.most
    else:
        raise NoStateError(f"{type(inner).__name__} steps its environments all at once")
    if way == ANEW and not all(log.remake for log in logs):
        raise NoStateError("only an environment with an id is made anew for each episode")
    for i, log in enumerate(logs):
        log.begin(seed + i)
    return vector, sum(log.most for log in logs)


class LoggedVector:
    """A vector of B environments that keeps a log of each environment since an episode began with a seed of its own: the first
    one, each that begins after SPAN steps with one seed, and each that the caller begins. All that is not here is the vector's
    own.

    The vector takes `reset(seed=int64 [n], options={"reset_mask": bool [B]})`, a seed for each of the n environments of the
    mask, as ale_py's AtariVectorEnv does. In NEXT_STEP and SAME_STEP the vector has begun an episode by itself, which
    begins once more with the seed. most: bytes that the actions of B logs take at most. It is a layer that tells its state
    itself (`states.OWN`)."""

    def __init__(self, vector: Any) -> None:
        self.vector = vector
        mode = vector.metadata.get("autoreset_mode")
        self._mode = str(getattr(mode, "value", mode))
        space = vector.single_action_space
        row = np.dtype((compact(space), space.shape))
        longest = 1 + (_limit(vector) or UNKNOWN)  # in NEXT_STEP an episode has a step that only resets
        self._room = max(1, min(longest + SPAN, MOST_BYTES // max(1, row.itemsize)))
        self._span = max(0, self._room - longest)
        self._rows = np.zeros((vector.num_envs, self._room), row)
        self.most = self._rows.nbytes
        self.begin(0)

    def __getattr__(self, name: str) -> Any:
        if name == "vector":
            raise AttributeError(name)
        return getattr(self.vector, name)

    def begin(self, seed: int) -> None:
        """Begin the logs: the vector was made, and has just been reset with `seed`."""
        B = len(self._rows)
        self._seed, self._kind = seed, ""  # kind: dtype of the actions as the vector gets them
        self._number, self._steps = np.zeros(B, np.int64), np.zeros(B, np.int64)  # of each environment: logs before, steps
        self._over: Bools = np.zeros(B, bool)  # the next step only resets (NEXT_STEP)
        self._last: Any = None  # observation, reward, terminated and truncated of the last step; None: there was only `begin`

    def reset(self, *, seed: int | None = None, options: Mapping[str, Any] | None = None) -> Any:
        if options is None or "reset_mask" not in options:
            given = self.vector.reset(seed=seed, options=options)
            self.begin(seed or 0)
            return given
        return self._begun(options["reset_mask"])

    def step(self, actions: Any) -> Any:
        noted = np.flatnonzero(self._steps < self._room)
        self._rows[noted, self._steps[noted]] = actions[noted]
        self._kind = actions.dtype.str
        self._steps += 1
        seen, reward, terminated, truncated, info = self._made(actions)
        ended = self._over
        over = ~ended & (np.asarray(terminated, bool) | np.asarray(truncated, bool))
        self._over = over & (self._mode == NEXT_STEP)
        begun = over if self._mode == SAME_STEP else ended
        if (due := begun & (self._steps > self._span)).any():
            seen, again = self._begun(due)
            if MASK in info:
                info = {**info, MASK: _put(info[MASK], again[MASK], due)}
        return seen, reward, terminated, truncated, info

    def save_state(self) -> bytes:
        """The logs as bytes. Raises NoStateError if an environment has made more steps than its log has room for."""
        if (most := int(self._steps.max())) > self._room:
            since = "since an episode began with a seed of its own"
            raise NoStateError(f"{most:,} steps were made {since}, and the actions of {self._room:,} are kept")
        rows = [its[:steps].tobytes() for its, steps in zip(self._rows, self._steps, strict=True)]
        numbers = [self._number.tolist(), self._steps.tolist(), self._over.tobytes(), self._kind]
        return values.pack_quickly([*numbers, rows, self._mark()])

    def load_state(self, state: bytes) -> None:
        """Play the steps of the logs again, in a vector that was made and reset like the one of the logs. Raises
        NoStateError if it does not do the same."""
        number, steps, over, self._kind, rows, told = values.read_quickly(state)
        if len(rows) != len(self._rows) or max(steps) > self._room:
            raise NoStateError("the logs are of other environments")
        self._number, self._steps = np.array(number), np.array(steps)
        self._over = np.frombuffer(over, bool).copy()
        for its, many, raw in zip(self._rows, steps, rows, strict=True):
            if len(raw) != its[:many].nbytes:
                raise NoStateError("the logs are of other environments")
            its[:many] = np.frombuffer(raw, its.dtype).reshape(its[:many].shape)
        if not told:
            return  # nothing was done since the reset
        try:
            self._play()
        except Exception as raised:  # a vector is another package's code, and may raise anything where it does not do the same
            raise NoStateError(f"an episode that was played again raised {type(raised).__name__}") from raised
        if self._mark() != told:
            raise NoStateError("an episode that was played again did not show what it had shown")

    def _play(self) -> None:
        """Play all logs again. A log that is shorter than the longest one begins later. Its environment plays the actions of
        the longest log meanwhile, which is without effect, because its episode begins with a seed."""
        most, leads = int(self._steps.max()), int(self._steps.argmax())
        waits = most - self._steps
        each, idle = np.arange(len(waits)), np.zeros(len(waits), bool)
        for t in range(most + 1):
            if (begins := (t == waits) | idle).any():
                self._reset(begins)
            if t < most:
                plays = t >= waits
                actions = self._rows[np.where(plays, each, leads), np.where(plays, t - waits, t)]
                _, _, terminated, truncated, _ = self._made(actions.astype(self._kind))
                if self._mode not in (NEXT_STEP, SAME_STEP):  # this vector steps no environment whose episode is over
                    idle = ~plays & (np.asarray(terminated, bool) | np.asarray(truncated, bool))

    def _made(self, actions: Any) -> Any:
        given = self.vector.step(actions)
        self._last = list(given[:4])
        return given

    def _begun(self, mask: Bools) -> tuple[Any, Any]:
        """Begin the next log in each environment of the mask. Returns the observations of all, and the reset's info."""
        self._number[mask] += 1
        self._steps[mask], self._over[mask] = 0, False
        info = self._reset(mask)
        return self._last[0], info

    def _reset(self, mask: Bools) -> Any:
        seeds = [self._seed_of(int(i)) for i in np.flatnonzero(mask)]
        seen, info = self.vector.reset(seed=np.array(seeds), options={"reset_mask": mask.copy()})
        rest = [None] * 3 if self._last is None else self._last[1:]
        self._last = [seen if self._last is None or mask.all() else _put(self._last[0], seen, mask), *rest]
        return info

    def _seed_of(self, i: int) -> int:
        """The seed with which the log of environment i begins. The vector's reset has begun the first one."""
        number = int(self._number[i])
        return key(self._seed + i, "episode", number) % SEEDS if number else self._seed + i

    def _mark(self) -> bytes:
        """A digest of all observations, and of rewards and ends where a log has steps; empty after the first reset."""
        if self._last is None:
            return b""
        seen, *rest = self._last
        return digest([seen, *(np.where(self._steps > 0, part, 0) for part in rest if self._steps.any())])


def _limit(vector: Any) -> int:
    """Steps of an episode at most, as the vector's spec says; 0: not known."""
    spec = getattr(getattr(vector, "unwrapped", vector), "spec", None)
    known: Mapping[str, Any] = getattr(spec, "kwargs", {})
    if frames := known.get("max_num_frames_per_episode", 0):  # of ale_py
        return -(-int(frames) // int(known.get("frameskip", 1)))
    return int(known.get("max_episode_steps") or 0)


def _put(into: Any, given: Any, mask: Bools) -> Any:
    """The observations `into`, with those of the mask from `given`."""
    if isinstance(into, Mapping):
        return {name: _put(part, given[name], mask) for name, part in into.items()}
    if isinstance(into, tuple):
        return tuple(_put(part, its, mask) for part, its in zip(into, given, strict=True))
    whole = np.array(into)
    whole[mask] = np.asarray(given)[mask]
    return whole
