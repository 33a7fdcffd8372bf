"""The trial of an environment before a run begins, by one reset and one step: a mistake in an environment is told in one line.

The one idea: the environment goes the way that it will go in an actor, and what it gives is looked at before gymnasium and
numpy convert it, because their errors name neither the environment nor the part of it that is wrong.
"""

from __future__ import annotations

import os
import select
import signal
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from typing import Any

import numpy as np

from shoal.envs.making import Environment, Recipe, make_vector, recipe_of
from shoal.envs.single import RESET, STEP, check_flag, in_words, told_apart
from shoal.envs.spaces import MASK, Actions, flat_mask, legal
from shoal.envs.vector import EnvError, Envs, alone
from shoal.protocol.draws import globally
from shoal.protocol.errors import UserError
from shoal.protocol.parent import die_with_parent, forked, lone
from shoal.protocol.place import place_of, place_of_function

SEED = 0
MOST_SAID = 300  # bytes that a copy of this process answers
LONG = 10.0  # seconds of a trial after which the person that waits is told of it
FORMS = {
    "reset": "reset(self, *, seed=None, options=None) -> (observation, info)",
    "step": "step(self, action) -> (observation, reward, terminated, truncated, info)",
}


@contextmanager
def tried(env: Environment | Recipe, vector: str = "auto") -> Iterator[None]:
    """Make one environment (or a VectorEnv of one), reset it and make one step; after the block it is closed.

    Raises UserError for a result that is no observation of the space, no finite reward or no boolean, and EnvError, with the
    traceback from there, for an exception of the environment.
    """
    with globally(SEED, "try"):
        envs = make_vector(env, 1, vector)
        try:
            with _with_arguments(recipe_of(env)):
                _played(envs)
        except BaseException:
            _close(envs)
            raise
    try:
        yield
    finally:
        envs.close()


@contextmanager
def _with_arguments(recipe: Recipe) -> Iterator[None]:
    """A fault of an environment that was made with arguments is told with these, because they may be its cause."""
    try:
        yield
    except (UserError, EnvError) as fault:
        if not recipe.arguments:
            raise
        raise type(fault)(f"{recipe.given}: {fault}").with_traceback(fault.__traceback__) from fault


def masks_told(env: Environment | Recipe, vector: str, seconds: float) -> bool:
    """True if the info of an environment's first reset has an action mask. False if there is an exception, or no answer within
    `seconds` (0: no limit)."""
    return in_copy(lambda: b"1" if _look(env, vector) else b"0", seconds, recipe_of(env)) == b"1"


def say_long(recipe: Recipe) -> None:
    """Tell a person that waits what is waited for: an environment may hang, or ask a person something."""
    given = f" with {recipe.given}" if recipe.arguments else ""
    line = f"shoal: environment {recipe.name}{given}: its trial before the run has lasted for {LONG:g} s, and goes on"
    print(f"{line}: a reset or a step of it takes long, or never ends (Ctrl-C ends the trial)", file=sys.stderr, flush=True)


def in_copy(act: Callable[[], bytes], seconds: float, recipe: Recipe) -> bytes:
    """Return what `act` returns, MOST_SAID bytes at most. Empty if there is no answer within `seconds` (0: no limit).

    A copy of this process acts, if this process has one thread: an environment may start threads or take a GPU in its first
    reset, and actors are forked from this process afterwards.
    """
    if not lone() or not hasattr(os, "fork"):
        return act()
    here, there = os.pipe()
    parent = os.getpid()

    def life() -> None:
        die_with_parent(parent)
        os.close(here)
        for number in (1, 2):  # whatever an environment prints, its trial prints again
            os.dup2(os.open(os.devnull, os.O_WRONLY), number)
        os.write(there, act())
        os._exit(0)  # an environment may have left threads that never end

    copy = forked(life)
    os.close(there)
    try:
        ready = select.select([here], [], [], min(seconds or LONG, LONG))[0]
        if not ready and not 0 < seconds <= LONG:
            say_long(recipe)
            ready = select.select([here], [], [], seconds - LONG if seconds else None)[0]
        return os.read(here, MOST_SAID) if ready else b""
    finally:
        os.close(here)
        with suppress(ProcessLookupError):
            os.kill(copy, signal.SIGKILL)
        os.waitpid(copy, 0)


def _look(env: Environment | Recipe, vector: str) -> bool:
    from gymnasium.vector import SyncVectorEnv

    with globally(SEED, "try"):
        try:
            envs = make_vector(env, 1, vector)
            single: Any = envs.vector.envs[0] if isinstance(envs.vector, SyncVectorEnv) else None
            part = envs.vector if single is None else getattr(single, "env", single)
            _, info = part.reset(seed=SEED)
            _close(envs)
        except Exception:  # noqa: BLE001  an environment is the user's code and may raise anything at all; the trial tells of it
            return False
    return isinstance(info, Mapping) and MASK in info


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
    with _blamed(envs.name, part, "reset"):
        seen, info = told_apart(part.reset(seed=SEED), RESET)
        _check_each(seen, space, rows)
        hinted = getattr(single, "hints", False) if single else isinstance(info, Mapping) and MASK in info
        if hinted and not envs.spaces.masks:
            raise UserError(f"info has an action_mask, {_unheard(action)}")
        if single:
            told = {MASK: flat_mask(info[MASK], 1)} if isinstance(info, Mapping) and MASK in info else {}
            seen, info = alone(seen), told
        drawn = _drawn(envs, envs.spaces.encoded(seen, info, 1))
    with _blamed(envs.name, part, "step"):
        sent = action.decoded(drawn)
        seen, reward, terminated, truncated, _ = told_apart(part.step(sent[0] if single else sent), STEP, rows)
        _check_each(seen, space, rows)
        _check_reward(reward)
        for name, flag in (("terminated", terminated), ("truncated", truncated)):
            check_flag(name, flag, rows)
    with _blamed(envs.name, part, "reset"):
        again = envs.reset(SEED).observation
    with _blamed(envs.name, part, "step"):
        envs.step(_drawn(envs, again) if envs.spaces.masks else drawn)


def _unheard(action: Actions) -> str:
    """The end of a line about an action mask in the info that no policy would obey."""
    if not action.choices:
        kinds = "a mask forbids choices of Discrete, MultiDiscrete or a Box of whole numbers; leave it out of the info"
        return f"and actions are {type(action).__name__}: {kinds}"
    fix = "put it into the observation, a Dict with the key action_mask, or leave out what gives environments processes"
    return f"which does not reach an environment with a process of its own: {fix}"


def _drawn(envs: Envs, seen: Any) -> Any:
    return chosen(envs, np.random.default_rng(SEED), seen)


def chosen(envs: Envs, rng: np.random.Generator, seen: Any) -> Any:
    """Actions for all environments, drawn among those that the observations before allow."""
    action, many = envs.spaces.action, envs.num_envs
    numbers = legal(action, np.zeros((many, action.parameters), np.float32), seen)
    return action.act(numbers, action.noise(rng, 1, many)[0])


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


def _check_each(given: Any, space: Any, rows: tuple[int, ...], where: str = "") -> None:
    """Check each part of an observation. where: the path of the part, "" for the whole."""
    from gymnasium import spaces

    if isinstance(space, spaces.Dict):
        if not isinstance(given, Mapping) or (missing := [name for name in space.spaces if name not in given]):
            lacks = f" without {', '.join(map(repr, missing))}" if isinstance(given, Mapping) else ""
            raise UserError(
                f"gave the observation{where} {in_words(given)}{lacks}: expected a dict with {', '.join(space.spaces)}"
            )
        for name, each in space.spaces.items():
            _check_each(given[name], each, rows, f"{where}[{name!r}]")
    elif isinstance(space, spaces.Tuple):
        if not isinstance(given, tuple | list) or len(given) != len(space.spaces):
            raise UserError(f"gave the observation{where} {in_words(given)}: expected a tuple of {len(space.spaces)}")
        for i, each in enumerate(space.spaces):
            _check_each(given[i], each, rows, f"{where}[{i}]")
    elif space.dtype is None or np.dtype(space.dtype).kind != "U":
        try:
            _check_observation(given, space, rows)
        except UserError as wrong:
            if not where:
                raise
            raise UserError(f"{wrong} (observation{where})") from None


def _check_observation(given: Any, space: Any, rows: tuple[int, ...]) -> None:
    """rows: (B,) for an observation of a VectorEnv, () for one of a single environment."""
    try:
        seen = np.asarray(given)
    except ValueError:
        raise UserError(f"gave the observation {in_words(given)}: expected {_wanted(space, rows)}") from None
    if seen.dtype.kind not in "biuf":
        raise UserError(f"gave the observation {in_words(given)}: expected {_wanted(space, rows)}")
    if seen.shape != (*rows, *space.shape):
        raise UserError(f"gave an observation of shape {list(seen.shape)}: expected {_wanted(space, rows)}")
    if not rows and not np.can_cast(seen.dtype, space.dtype, "same_kind"):
        fix = f"give np.asarray(observation, np.{space.dtype}), or another observation_space"
        raise UserError(f"gave an observation of {seen.dtype}: expected {_wanted(space, rows)}; {fix}")
    if not np.isfinite(seen).all():
        raise UserError("gave an observation that holds NaN or an infinity: expected finite numbers")


def _wanted(space: Any, rows: tuple[int, ...]) -> str:
    return f"{space.dtype} of shape {[*rows, *space.shape]}, as observation_space says"


def _check_reward(given: Any) -> None:
    if not (np.abs(np.asarray(given, dtype=np.float64)) <= np.finfo(np.float32).max).all():
        raise UserError(f"gave the reward {given!r}"[:150] + ": expected a finite number, of the size of a float32 at most")
