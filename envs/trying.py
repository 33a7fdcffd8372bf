"""The trial of an environment before a run begins, by one reset and one step: a mistake in an environment is told in one line.

The one idea: the environment goes the way that it will go in an actor, and what it gives is looked at before gymnasium and
numpy convert it, because their errors name neither the environment nor the part of it that is wrong.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np

from shoal.envs.vector import RESET, STEP, EnvError, Environment, Envs, make_vector, told_apart
from shoal.protocol.draws import globally
from shoal.protocol.errors import UserError, signed
from shoal.protocol.place import place_of, place_of_function

SEED = 0
FORMS = {
    "reset": "reset(self, *, seed=None, options=None) -> (observation, info)",
    "step": "step(self, action) -> (observation, reward, terminated, truncated, info)",
}


@contextmanager
def tried(env: Environment, vector: str = "auto") -> Iterator[None]:
    """Make one environment (or a VectorEnv of one), reset it and make one step; after the block it is closed.

    Raises UserError for a result that is no observation of the space, no finite reward or no boolean, and EnvError, with the
    traceback from there, for an exception of the environment.
    """
    with globally(SEED, "try"):
        envs = make_vector(env, 1, vector)
        try:
            _played(envs)
        except BaseException:
            _close(envs)
            raise
    try:
        yield
    finally:
        envs.close()


def _close(failed: Envs) -> None:
    try:
        failed.close()
    except Exception:  # noqa: BLE001  an environment that has failed may fail again: its first error is the one to tell
        return


def _played(envs: Envs) -> None:
    from gymnasium.vector import SyncVectorEnv

    single = envs.vector.envs[0] if isinstance(envs.vector, SyncVectorEnv) else None
    part: Any = envs.vector if single is None else single
    space, rows = envs.vector.single_observation_space, () if single else (1,)
    action = envs.spaces.action
    drawn = action.act(np.zeros((1, action.parameters), np.float32), action.noise(np.random.default_rng(SEED), 1, 1)[0])
    with _blamed(envs.name, part, "reset"):
        seen, _ = told_apart(part.reset(seed=SEED), RESET)
        _check_observation(seen, space, rows)
    with _blamed(envs.name, part, "step"):
        sent = action.decoded(drawn)
        seen, reward, terminated, truncated, _ = told_apart(part.step(sent[0] if single else sent), STEP, rows)
        _check_observation(seen, space, rows)
        _check_reward(reward)
        for name, flag in (("terminated", terminated), ("truncated", truncated)):
            _check_flag(name, flag, rows)
    with _blamed(envs.name, part, "reset"):
        envs.reset(SEED)
    with _blamed(envs.name, part, "step"):
        envs.step(drawn)


@contextmanager
def _blamed(name: str, part: Any, method: str) -> Iterator[None]:
    """An exception gets the environment's name, and the place of the user's method if no frame of its traceback has one."""
    inner = getattr(part, "unwrapped", part)
    place = place_of_function(getattr(type(inner), method, None))
    where = f"{place}: environment {name}" if place else f"environment {name}"
    try:
        yield
    except UserError as wrong:
        what = str(wrong).removeprefix("the environment's ")
        raise UserError(f"{where}: {method} {what}" if what.startswith("gave ") else f"{where}: {what}") from None
    except EnvError:
        raise
    except Exception as raised:  # an environment is the user's code and may raise anything at all
        text = f"environment {name}: {method} raised {type(raised).__name__}: {raised}".removesuffix(": ")
        if not place_of(raised):  # the call itself failed, or a part of a base class is not written yet
            text = f"{where}{text.removeprefix(f'environment {name}')}; expected {FORMS[method]}"
        raise EnvError(text).with_traceback(raised.__traceback__) from raised


def _check_observation(given: Any, space: Any, rows: tuple[int, ...]) -> None:
    """rows: (B,) for an observation of a VectorEnv, () for one of a single environment."""
    try:
        seen = np.asarray(given)
    except ValueError:
        raise UserError(f"gave the observation {signed(given)}, which is no array: expected {_wanted(space, rows)}") from None
    if seen.dtype.kind not in "biuf":
        raise UserError(f"gave the observation {_found(given)}: expected {_wanted(space, rows)}")
    if seen.shape != (*rows, *space.shape):
        raise UserError(f"gave an observation of shape {list(seen.shape)}: expected {_wanted(space, rows)}")
    if not rows and not np.can_cast(seen.dtype, space.dtype, "same_kind"):
        fix = f"give np.asarray(observation, np.{space.dtype}), or another observation_space"
        raise UserError(f"gave an observation of {seen.dtype}: expected {_wanted(space, rows)}; {fix}")
    if not np.isfinite(seen).all():
        raise UserError("gave an observation that holds NaN or an infinity: expected finite numbers")


def _wanted(space: Any, rows: tuple[int, ...]) -> str:
    return f"{space.dtype} of shape {[*rows, *space.shape]}, as observation_space says"


def _found(given: Any) -> str:
    return f"a {type(given).__name__} with {', '.join(map(repr, given))}"[:100] if isinstance(given, dict) else signed(given)


def _check_reward(given: Any) -> None:
    if not np.isfinite(np.asarray(given, dtype=np.float64)).all():
        raise UserError(f"gave the reward {given!r}"[:150] + ": expected a finite number")


def _check_flag(name: str, given: Any, rows: tuple[int, ...]) -> None:
    flag = np.asarray(given)
    if flag.shape not in (rows, (1,)) or flag.dtype.kind not in "biu" or not np.isin(flag, (0, 1)).all():
        wanted = f"booleans of shape {list(rows)}" if rows else "True or False"
        raise UserError(f"gave {name}={given!r}"[:150] + f": expected {wanted}")
