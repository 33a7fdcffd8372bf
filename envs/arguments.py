"""Arguments of an environment, looked at before it is made.

The one idea: an environment may take a wrong argument without a word, or raise far from it, so names and kinds of values are
compared with what the entry point says of itself.
"""

from __future__ import annotations

import difflib
import inspect
import json
import re
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np

from shoal.protocol.errors import UserError

MAKES = ("render_mode", "max_episode_steps")  # arguments of gymnasium.make itself


class Parameters(NamedTuple):
    """The arguments of an entry point. defaults: name -> default, None if there is none. annotations: of the annotated ones.
    others: True if the entry point takes any other name too, or does not say what it takes."""

    defaults: Mapping[str, Any]
    annotations: Mapping[str, str]
    others: bool


def parameters(entry: Any, given: Mapping[str, Any]) -> Parameters:
    """The arguments of an entry point. given: defaults of an id, in place of those of the entry point."""
    import gymnasium

    try:
        maker = entry if callable(entry) else gymnasium.envs.registration.load_env_creator(entry)
        found = inspect.signature(maker).parameters
    except (ImportError, AttributeError, ValueError, TypeError):
        return Parameters({}, {}, others=True)  # making the environment says what is wrong
    named = {name: each for name, each in found.items() if each.kind not in (each.VAR_KEYWORD, each.VAR_POSITIONAL)}
    defaults = {name: None if each.default is each.empty else each.default for name, each in named.items()}
    said = {
        name: inspect.formatannotation(each.annotation) for name, each in named.items() if each.annotation is not each.empty
    }
    return Parameters({**defaults, **given}, said, any(each.kind is each.VAR_KEYWORD for each in found.values()))


def check_arguments(env: str, arguments: Mapping[str, Any], known: Parameters) -> None:
    """Raises UserError for an argument that the environment does not take, or that is no number or no boolean where it has
    one."""
    for name, value in arguments.items():
        if name in known.defaults:
            _check_value(env, name, value, known.defaults[name], known.annotations.get(name, ""))
        elif not known.others and name not in MAKES:
            near = difflib.get_close_matches(name, known.defaults, n=1, cutoff=0.6)
            fix = f"did you mean {near[0]}?" if near else f"it takes {', '.join(known.defaults) or 'no arguments'}"
            raise UserError(f"env.{name}: environment {env!r} has no argument {name!r}; {fix}")


def _check_value(env: str, name: str, value: Any, default: Any, annotation: str) -> None:
    """Raises UserError if the default is a boolean or a number, and the value is neither this, nor None, nor of a type that the
    annotation names."""
    truth = isinstance(default, bool | np.bool_)
    if not truth and not isinstance(default, int | float | np.number):
        return
    fits = value is None or (value in (0, 1) if truth else isinstance(value, int | float) and not isinstance(value, bool))
    if fits or type(value).__name__ in re.findall(r"\w+", annotation) or "Any" in annotation:
        return
    must = "true or false" if truth else "a number"
    shown, say = f"{value}" if isinstance(value, str) else json.dumps(value), json.dumps(default, default=str)
    raise UserError(f"env.{name}={shown}: environment {env!r} expects {must} there; env.{name}={say} is its default")


def typed(arguments: Mapping[str, Any]) -> str:
    """The arguments as a user types them."""
    return " ".join(f"env.{name}={value}" for name, value in arguments.items())
