"""Single environments of gymnasium, stepped one after the other as one vector.

The one idea: what a user's reset and step give is looked at here, once, so that a wrong form is one line and not a run that
learns nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np

from shoal.envs.spaces import MASK, flat_mask
from shoal.protocol.errors import UserError, signed

FLAGS = (bool, np.bool_)
RESET, STEP = ("observation", "info"), ("observation", "reward", "terminated", "truncated", "info")


def side_by_side(makers: Sequence[Callable[[], Any]], told: bool = False, again: bool = False) -> Any:
    """gymnasium's SyncVectorEnv without infos, which fails on infos that change their shape; told: with their action masks.
    again: a maker may be called again, for a new environment of the same kind."""
    import gymnasium

    class Silent(gymnasium.Wrapper[Any, Any, Any, Any]):
        def __init__(self, make: Callable[[], Any]) -> None:
            super().__init__(make())
            check_spaces(self.env, ("observation_space", "action_space"))
            self.remake = make if again else None
            self.shape = self.env.observation_space.shape
            self.hints = False  # an action mask is in the info
            self.left, self.was_cut = 0, False  # steps until the episode is cut short, 0: it is not; this step cut it short

        def cut_after(self, share: float) -> bool:
            """Cut the episode that has begun short after this share of its time limit. Returns False if that cuts nothing."""
            limit = time_limit(self.env)
            steps = max(1, round(share * limit)) if share else 0
            self.left, self.was_cut = steps if steps < limit else 0, False
            return self.left > 0

        def reset(self, **given: Any) -> Any:
            self.was_cut = False
            seen, info = told_apart(self.env.reset(**given), RESET)
            self.hints = isinstance(info, Mapping) and MASK in info
            return self._fitting(seen, "reset"), mask_of(info) if told else {}

        def step(self, action: Any) -> Any:
            seen, reward, terminated, truncated, info = told_apart(self.env.step(action), STEP)
            infos = mask_of(info) if told else {}
            for name, flag in (("terminated", terminated), ("truncated", truncated)):
                if type(flag) not in FLAGS:
                    check_flag(name, flag)
            if self.left:
                over = bool(_single(terminated) or _single(truncated))
                self.left, self.was_cut = 0 if over else self.left - 1, self.left == 1 and not over
                truncated = truncated or self.was_cut
            return self._fitting(seen, "step"), _single(reward), _single(terminated), _single(truncated), infos

        def _fitting(self, seen: Any, part: str) -> Any:
            if self.shape is not None and (found := shape_of(seen)) != self.shape:
                wanted = f"{list(self.shape)}, as observation_space says"
                if found is None:
                    wanted = f"{self.env.observation_space.dtype} of shape {wanted}"
                    raise UserError(f"the environment's {part} gave the observation {in_words(seen)}: expected {wanted}")
                raise UserError(f"the environment's {part} gave an observation of shape {list(found)}: expected {wanted}")
            return seen

    return gymnasium.vector.SyncVectorEnv([partial(Silent, make) for make in makers])


def check_spaces(env: Any, names: Sequence[str]) -> None:
    """Raises UserError if an environment lacks one of these attributes, its spaces."""
    if lacking := [name for name in names if not hasattr(env, name)]:
        kind = type(env.unwrapped).__name__
        raise UserError(
            f"{kind} has no {' and no '.join(lacking)}: its class or its __init__ must set it to a gymnasium.spaces.Space"
        )


def time_limit(env: Any) -> int:
    """The steps after which an environment truncates an episode, as gymnasium's TimeLimit or the environment itself names
    them; 0: not known."""
    for name in ("_max_episode_steps", "max_steps"):
        if env.has_wrapper_attr(name) and isinstance(limit := env.get_wrapper_attr(name), int) and limit > 0:
            return limit
    return 0


def mask_of(info: Any) -> dict[str, Any]:
    """An environment's info with nothing but its action mask, bool [entries]; empty if it has none."""
    found = info.get(MASK) if isinstance(info, Mapping) else None
    return {} if found is None else {MASK: flat_mask(found, 1)[0]}


def shape_of(given: Any) -> tuple[int, ...] | None:
    """The shape of an array, of a number, or of a list of numbers; None of anything else."""
    found = getattr(given, "shape", None)
    if found is not None:
        return tuple(found)
    try:
        seen = np.asarray(given)
    except ValueError:  # a list of lists of several lengths
        return None
    return seen.shape if seen.dtype.kind in "biuf" else None


def in_words(given: Any) -> str:
    """An observation that is no array of numbers, in words."""
    if isinstance(given, dict):
        return f"a {type(given).__name__} with {', '.join(map(repr, given))}"[:100]
    try:
        np.asarray(given)
    except ValueError:
        return f"{signed(given)}, which is no array"
    return signed(given)


def check_flag(name: str, given: Any, rows: tuple[int, ...] = ()) -> None:
    """Raises UserError unless `terminated` or `truncated` is a boolean, or booleans of the shape `rows`."""
    flag = np.asarray(given)
    if flag.shape not in (rows, (1,)) or flag.dtype.kind not in "biu" or not np.isin(flag, (0, 1)).all():
        wanted = f"booleans of shape {list(rows)}" if rows else "True or False"
        raise UserError(f"the environment's step gave {name}={given!r}"[:150] + f": expected {wanted}")


def _single(given: Any) -> Any:
    """The number in an array of one, and any other value as it is."""
    return given.reshape(()) if getattr(given, "shape", ()) == (1,) else given


def told_apart(given: Any, parts: tuple[str, ...], rows: tuple[int, ...] = ()) -> tuple[Any, ...]:
    """Returns the result of a reset or a step. Raises UserError unless it has these parts and a number as reward: a step of gym
    0.25, (observation, reward, done, info), would pass for one that never ends. rows: (B,) for a VectorEnv of B."""
    if not isinstance(given, tuple) or len(given) != len(parts):
        found = f"a tuple of {len(given)}" if isinstance(given, tuple) else signed(given)
        part = "reset" if parts is RESET else "step"
        raise UserError(f"the environment's {part} gave {found}: expected ({', '.join(parts)})")
    if parts is STEP and (not hasattr(given[1], "__float__") or getattr(given[1], "shape", ()) not in (rows, (1,))):
        wanted = f"an array of {rows[0]}" if rows else "one number"
        raise UserError(f"the environment's step gave the reward {given[1]!r}"[:150] + f": expected {wanted}")
    return given
