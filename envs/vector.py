"""Many environments stepped as one, under one convention for how episodes end.

The one idea: gymnasium's three autoreset modes differ in where an episode's last observation is found and in whether a
step is spent on resetting. Where a step is, the row after a truncated one holds the old episode's last observation, and a
mask says that nothing is learned from that row. Where none is, that observation travels beside the truncated row (`final`).
"""

from __future__ import annotations

import difflib
import importlib
import inspect
import itertools
from collections.abc import Callable
from typing import Any, NamedTuple, Protocol

import numpy as np
import numpy.typing as npt

from shoal.envs.spaces import Spaces, spaces_of
from shoal.protocol.errors import UserError, within

Array = npt.NDArray[Any]
Bools = npt.NDArray[np.bool_]
Environment = str | Callable[..., Any]
"""An environment id; a factory of one environment, () -> gymnasium.Env; or a factory of many, num_envs -> VectorEnv."""

NEXT_STEP, SAME_STEP, DISABLED = "NextStep", "SameStep", "Disabled"  # the values of gymnasium's AutoresetMode


class Step(NamedTuple):
    """The result of a step or reset of B environments. Its arrays are valid until the next step."""

    observation: Array  # [B, *obs] observation of the trajectory's next row, which the policy acts on
    mask: Bools  # [B] True where the trajectory's next row is to be learned from
    reward: npt.NDArray[np.float64]  # [B] reward of this step
    terminated: Bools  # [B] True where this step ended an episode in a terminal state
    truncated: Bools  # [B] True where this step cut an episode off
    lived: Bools  # [B] False where this step belonged to no episode: it only reset, or, where `over`, never happened
    final: Array | None = None  # [B, *obs] where `truncated`, the old episode's last observation; None: the next row holds it
    replaced: int = 0  # environments' processes that were replaced during this step or reset (envs/isolated.py)

    @property
    def over(self) -> Bools:
        return self.terminated | self.truncated


class Worlds(Protocol):
    """B environments as a rollout sees them: `Envs` in this process, `Isolated` in processes of their own."""

    num_envs: int
    spaces: Spaces

    def reset(self, seed: int) -> Step: ...

    def step(self, action: Array) -> Step: ...

    def close(self) -> None: ...


class Envs:
    """B environments with automatic reset, over a gymnasium VectorEnv in any of its autoreset modes.

    NEXT_STEP: the step after an episode's end ignores its action and only resets. The row of that step has the episode's
    last observation, mask False and reward 0.
    SAME_STEP, DISABLED: the new episode begins at once (in DISABLED, `Envs` resets the finished environments), so no row is
    masked, and `final` holds the last observations of truncated episodes (`spaces.finals` is True).
    A VectorEnv whose metadata name no mode is taken for NEXT_STEP, as gymnasium's own wrappers do.
    """

    def __init__(self, vector: Any) -> None:
        self.vector = vector
        self.num_envs = int(vector.num_envs)
        self.mode = _mode(vector)
        self.spaces: Spaces = spaces_of(vector.single_observation_space, vector.single_action_space, self.mode != NEXT_STEP)
        self._all = np.ones(self.num_envs, dtype=bool)
        self._none = np.zeros(self.num_envs, dtype=bool)
        self._no_reward = np.zeros(self.num_envs)
        for array in (self._all, self._none, self._no_reward):
            array.flags.writeable = False
        self._over: Bools = self._none

    def reset(self, seed: int) -> Step:
        """Begin an episode in every environment; environment i is seeded with seed + i where gymnasium does so."""
        observation, _ = self.vector.reset(seed=seed)
        first = self.spaces.observation.encoded(observation)
        self._over = self._none
        return Step(
            first, self._all, self._no_reward, self._none, self._none, self._none, first if self.spaces.finals else None
        )

    def step(self, action: Array) -> Step:
        """Step every environment. action: [B] int64, or [B, A] float32, which is clipped to the space's bounds here."""
        observation, reward, terminated, truncated, info = self.vector.step(self.spaces.action.decoded(action))
        seen = self.spaces.observation.encoded(observation)
        reward = np.asarray(reward, dtype=np.float64)
        terminated, truncated = np.asarray(terminated, dtype=bool), np.asarray(truncated, dtype=bool)
        if self.mode == NEXT_STEP:
            return self._next_step(seen, reward, terminated, truncated)
        return self._same_step(seen, reward, terminated, truncated, info)

    def _next_step(self, seen: Array, reward: Array, terminated: Bools, truncated: Bools) -> Step:
        lived = ~self._over
        if self._over.any():  # a step that only reset has no reward and no end, whatever the environment returned
            reward, terminated, truncated = np.where(lived, reward, 0.0), terminated & lived, truncated & lived
        self._over = terminated | truncated
        return Step(seen, ~self._over, reward, terminated, truncated, lived)

    def _same_step(self, seen: Array, reward: Array, terminated: Bools, truncated: Bools, info: Any) -> Step:
        over = terminated | truncated
        final = seen
        if self.mode == DISABLED and over.any():
            final = seen.copy()
            seen = self._restarted(seen, over)
        elif truncated.any():
            final = seen.copy()
            for i in np.flatnonzero(truncated):
                final[i] = self.spaces.observation.encoded(info["final_obs"][i])
        return Step(seen, self._all, reward, terminated, truncated, self._all, final)

    def _restarted(self, seen: Array, over: Bools) -> Array:
        act_on = seen.copy()
        observation, _ = self.vector.reset(options={"reset_mask": over.copy()})
        act_on[over] = self.spaces.observation.encoded(observation)[over]
        return act_on

    def close(self) -> None:
        self.vector.close()


def make_vector(env: Environment, num_envs: int, native: bool = True) -> Envs:
    """B = num_envs environments: the native vector environment of an id that has one (if `native`), the VectorEnv of a
    factory of many, else gymnasium's SyncVectorEnv.

    Raises UserError for an unknown id, a factory that makes something else, a space that is not supported, or a package
    that the environment needs and that is not installed.
    """
    within("num_envs", num_envs, first=1)
    vector = _by_id(env, num_envs, native) if isinstance(env, str) else _by_factory(env, num_envs)
    return Envs(vector)


def spaces_in(env: Environment) -> Spaces:
    """The spaces of `env`: makes one environment and closes it again. Raises UserError as make_vector does."""
    envs = make_vector(env, 1)
    envs.close()
    return envs.spaces


def _mode(vector: Any) -> str:
    mode = vector.metadata.get("autoreset_mode", NEXT_STEP)
    name = str(getattr(mode, "value", mode))
    if name not in (NEXT_STEP, SAME_STEP, DISABLED):
        raise UserError(f"{type(vector).__name__}: metadata['autoreset_mode'] is {mode!r}, not a gymnasium AutoresetMode")
    return name


def _by_id(env: str, num_envs: int, native: bool) -> Any:
    import gymnasium

    spec = _spec(env)
    try:
        if native and spec.vector_entry_point is not None:
            return gymnasium.make_vec(spec, num_envs=num_envs, vectorization_mode="vector_entry_point")
        return gymnasium.vector.SyncVectorEnv([lambda: gymnasium.make(spec, disable_env_checker=True)] * num_envs)
    except (gymnasium.error.Error, ImportError) as error:
        raise UserError(f"environment {env!r} cannot be made: {' '.join(str(error).split())}") from error


def _spec(env: str) -> Any:
    """The gymnasium spec of "Name-v0", or of "module:Name-v0", where importing the module registers the name."""
    import gymnasium

    module, _, name = env.rpartition(":")
    try:
        if module:
            importlib.import_module(module)
        return gymnasium.spec(name)
    except gymnasium.error.Error:
        near = difflib.get_close_matches(name, gymnasium.registry, n=1, cutoff=0.0)
        raise UserError(f"gymnasium knows no environment {name!r}; the nearest name is {', '.join(near)}") from None
    except ImportError as error:
        raise UserError(f"environment {env!r}: {error}") from error


def _by_factory(factory: Callable[..., Any], num_envs: int) -> Any:
    import gymnasium

    if _wants_number(factory):
        vector = factory(num_envs)
        if not isinstance(vector, gymnasium.vector.VectorEnv) or vector.num_envs != num_envs:
            raise UserError(f"{_name(factory)}({num_envs}) made {_what(vector)}, not a gymnasium VectorEnv of {num_envs}")
        return vector
    singles = [factory() for _ in range(num_envs)]
    for single in singles:
        if not isinstance(single, gymnasium.Env):
            raise UserError(f"{_name(factory)}() made {_what(single)}, not a gymnasium.Env")
    if len({id(single) for single in singles}) < num_envs:
        raise UserError(f"{_name(factory)}() gave the same environment twice: make a new one at each call")
    return gymnasium.vector.SyncVectorEnv([itertools.repeat(single).__next__ for single in singles])


def _wants_number(factory: Callable[..., Any]) -> bool:
    positional = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    first = next(iter(inspect.signature(factory).parameters.values()), None)
    return first is not None and first.kind in positional and (first.name == "num_envs" or first.default is first.empty)


def _name(factory: Callable[..., Any]) -> str:
    return str(getattr(factory, "__name__", type(factory).__name__))


def _what(made: Any) -> str:
    return f"{type(made).__module__}.{type(made).__qualname__}"
