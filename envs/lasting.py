"""The trial of an environment's state before a run: in which way it can be told, and if it is whole.

The one idea: that a state is whole is looked at, not believed. One vector of environments goes on, and another one, made and
reset alike, is given its state: both must then see and pay the same, to the bit.
"""

from __future__ import annotations

from contextlib import ExitStack, closing
from typing import NamedTuple

import numpy as np

from shoal.envs.logged import ACTIONS, ANEW, ATTRIBUTES, WAYS
from shoal.envs.making import Environment, Recipe, make_vector, recipe_of, wants_number
from shoal.envs.states import NoStateError
from shoal.envs.trying import MOST_SAID, SEED, chosen, in_copy
from shoal.envs.vector import Envs, Step
from shoal.protocol import values
from shoal.protocol.draws import globally

TWINS = 2  # environments, or games, of a trial
BEFORE, AFTER = 12, 24  # steps of each environment before and after its state is told by attributes
EPISODES, PLAYED = 4, 48  # episodes before its state is told by what was done to it, and steps of each of them
TRIAL = 60.0  # seconds that a trial may take: environments that are slower begin anew


class Telling(NamedTuple):
    """How the state of an environment is told: in a way of envs/logged.py, in `size` bytes at most. size 0: it cannot be told,
    for the reason `why`."""

    size: int
    way: str
    why: str


def state_told(env: Environment | Recipe, vector: str, seconds: float = TRIAL) -> Telling:
    """The first way in which a trial shows that the state of an environment is whole. seconds: of the trial, at most."""
    said = in_copy(lambda: " ".join(map(str, _told(env, vector))).encode()[:MOST_SAID], seconds, recipe_of(env))
    none = f"0 - their trial ended without an answer, or took longer than {seconds:g} s"
    size, way, why = (said.decode(errors="replace") or none).split(" ", 2)
    return Telling(int(size), way, why)


def _told(env: Environment | Recipe, vector: str) -> Telling:
    whys: list[str] = []
    for way in WAYS:
        size, why = _tried(env, vector, way)
        if size:
            return Telling(size, way, "")
        whys.append(why)
        if way == ACTIONS and not (isinstance(made := recipe_of(env).env, str) or wants_number(made)):
            break  # a function is not called again for each episode: it may do more than make an environment
    return Telling(0, "-", "; ".join(dict.fromkeys(whys[:2])))


def _tried(env: Environment | Recipe, vector: str, way: str) -> tuple[int, str]:
    """Bytes that the state of one environment takes at most, and ""; or 0, and why it cannot be told in this way."""
    rows = TWINS * len(getattr(recipe_of(env).env, "agents", (0,)))  # each agent of a game is a row
    with ExitStack() as stack:
        try:
            made: list[Envs] = []
            logs = 0
            for _ in range(2):
                with globally(SEED, "state"):
                    made.append(stack.enter_context(closing(make_vector(env, rows, vector))))
                    first = made[-1].reset(SEED)
                    logs = made[-1].watch(way)
            one, other = made
            with globally(SEED, "before"):
                last = _steps(one, first, BEFORE if way == ATTRIBUTES else PLAYED)[-1]
                for _ in range(0 if way == ATTRIBUTES else EPISODES - 1):
                    last = _steps(one, _begun_anew(one, last), PLAYED)[-1]
                if way == ANEW:  # episodes of different lengths
                    last = _steps(one, _begun_anew(one, last, rows // TWINS), BEFORE)[-1]
            told = values.pack_quickly(one.state())
            with globally(SEED, "again"):
                other.restore(values.read_quickly(told))
            seen = []
            for each in (one, other):
                with globally(SEED, "after"):
                    steps = _steps(each, last, AFTER if way == ATTRIBUTES else PLAYED)
                    if way != ATTRIBUTES:
                        steps += _steps(each, _begun_anew(each, steps[-1]), AFTER)
                    seen.append([_bits(step) for step in steps])
            size = max(len(told), len(values.pack_quickly(one.state())))
        except NoStateError as why:
            return 0, str(why)
        except Exception as raised:  # noqa: BLE001  the user's code may raise anything: another trial tells of its faults
            return 0, f"{type(raised).__name__} in their trial"
    if seen[0] != seen[1]:
        return 0, "with the state of one, another did not do the same"
    return -(-(2 * size + logs) // rows), ""  # states may grow to twice of this


def _begun_anew(envs: Envs, last: Step, many: int | None = None) -> Step:
    """Begin an episode in the first `many` environments; None: in all."""
    over = np.arange(envs.num_envs) < (envs.num_envs if many is None else many)
    return last._replace(observation=envs.restarted(last.observation, over))


def _steps(envs: Envs, last: Step, many: int) -> list[Step]:
    """Make `many` steps after the step `last`."""
    rng, told = np.random.default_rng(SEED), [last]
    for _ in range(many):
        step = envs.step(chosen(envs, rng, told[-1].observation))
        told.append(step._replace(observation=step.observation.copy()))
    return told[1:]


def _bits(step: Step) -> tuple[bytes, ...]:
    return tuple(np.asarray(part).tobytes() for part in (step.observation, step.reward, step.terminated, step.truncated))
