"""Environments made from an id or a factory.

The one idea: an id has one meaning, the environment of `gymnasium.make`. A vector environment that a package registered is
taken only where it is the same environment, or where it is asked for.
"""

from __future__ import annotations

import difflib
import importlib
import inspect
import itertools
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any, cast

import numpy as np

from shoal.envs.arguments import check_arguments, parameters, typed
from shoal.envs.atari import arguments as atari_arguments
from shoal.envs.atari import is_atari
from shoal.envs.filmed import filmed_atari
from shoal.envs.physics import hear_physics
from shoal.envs.pooled import is_pooled, pooled
from shoal.envs.single import check_spaces, side_by_side
from shoal.envs.spaces import Spaces
from shoal.envs.vector import Envs, naming
from shoal.protocol.errors import UserError, signed, takes, within
from shoal.protocol.place import place_of

Environment = str | Callable[..., Any]
"""An environment id; a factory of one environment, () -> gymnasium.Env; or a factory of many, num_envs -> VectorEnv. A factory
may have an argument `seed` too."""

SEEDS = 2**30  # a factory's seed is below this: some environments take only 32 bits
FAMILIES: Mapping[str, tuple[str, str]] = {
    "ALE/": ("ale_py", "atari"),
    "MiniGrid-": ("minigrid", "minigrid"),
    "BabyAI-": ("minigrid", "minigrid"),
}
"""Begin of an id -> (module whose import registers the id, extra of Shoal that installs it)."""


@dataclass(frozen=True, slots=True)
class Recipe:
    """The recipe by which environments are made.

    env: as `Environment` says. arguments: keyword arguments of gymnasium.make, for an id. time_limit: number of steps at which
    an id's episode is truncated (0: the environment's own limit). told: True if action masks are in the infos. alone: how the
    one environment of a process of its own is made, "sync" or "native" (`make_vector`).
    """

    env: Environment
    arguments: Mapping[str, Any] = field(default_factory=dict)
    time_limit: int = 0
    told: bool = False
    alone: str = "sync"

    @property
    def name(self) -> str:
        return repr(self.env) if isinstance(self.env, str) else _name(self.env)

    @property
    def given(self) -> str:
        """The arguments and the time limit, as they are typed."""
        limit = {"time_limit": self.time_limit} if self.time_limit else {}
        return " ".join([typed(self.arguments), *(f"{name}={value}" for name, value in limit.items())]).strip()


def recipe_of(env: Environment | Recipe) -> Recipe:
    return env if isinstance(env, Recipe) else Recipe(env)


def make_vector(env: Environment | Recipe, num_envs: int, vector: str = "auto") -> Envs:
    """B = num_envs environments: the VectorEnv of a factory of many, or else gymnasium's SyncVectorEnv of single ones.

    vector: for an id. "native": the id's own vector environment, with raw rewards if it could clip them. "auto": that only
    if it is gymnasium's own, which is the same environment as the single one; anybody else's may see and pay otherwise.
    "sync": never, unless the id has no single environment. Atari games are ale_py's vector environment, with the arguments of
    envs/atari.py, unless "sync" is asked for.
    A factory's seed is drawn from numpy's global generator, which a rollout sets for each client.
    Raises UserError for an unknown id or argument, a factory that makes something else, a space that is not supported, or a
    package that the environment needs and that is not installed.
    """
    within("num_envs", num_envs, first=1)
    recipe = recipe_of(env)
    hear_physics()
    with naming(recipe.name):
        made = _by_id(recipe, num_envs, vector) if isinstance(recipe.env, str) else _by_factory(recipe, num_envs)
    try:
        return Envs(made, recipe.name, recipe.told, recipe.given)
    except UserError as odd:
        made.close()
        raise UserError(f"{recipe.given}: {odd}" if recipe.arguments else str(odd)) from odd


def spaces_in(env: Environment | Recipe, vector: str = "auto") -> Spaces:
    """The spaces of `env`: makes one environment and closes it again. Raises UserError as make_vector does."""
    envs = make_vector(env, 1, vector)
    envs.close()
    return envs.spaces


def make_shown(env: Environment | Recipe, vector: str = "auto") -> Any:
    """A gymnasium environment whose `render` gives pictures (render_mode "rgb_array"). vector: as of make_vector; an Atari game
    is preprocessed as there.

    Raises UserError for a factory of many, for one of EnvPool's tasks, and for a factory whose environment has another
    render_mode and that takes no argument render_mode.
    """
    import gymnasium

    recipe = recipe_of(env)
    env = recipe.env
    if isinstance(env, str):
        if is_pooled(env):
            raise UserError(f"--video: {env}: EnvPool's environments give no pictures; play the run's policy in another one")
        own = {**recipe.arguments, **_limit(recipe), "render_mode": "rgb_array"}
        try:
            if is_atari(env) and _native(recipe, _spec(env), vector) is not None:
                made = partial(gymnasium.make_vec, _spec(env), num_envs=1, vectorization_mode="vector_entry_point")
                return filmed_atari(made, atari_arguments(recipe.arguments, recipe.time_limit))
            return gymnasium.make(_spec(env), disable_env_checker=True, **own)
        except (gymnasium.error.Error, ImportError) as error:
            raise UserError(f"environment {env!r} cannot be shown: {' '.join(str(error).split())}") from error
    name = _name(env)
    if wants_number(env):
        raise UserError(f"{name} makes many environments at once, which cannot be shown one by one: give env=() -> Env")
    shown = {"render_mode": "rgb_array"} if "render_mode" in inspect.signature(env).parameters else {}
    made = env(**shown, **({"seed": _seed()} if wants_seed(env) else {}))
    if (mode := getattr(made, "render_mode", None)) != "rgb_array":
        fix = f'let {name} take render_mode and hand it on, or make it with render_mode="rgb_array"'
        raise UserError(f"{name}() made an environment with render_mode={mode!r}, which gives no pictures: {fix}")
    return made


def _by_id(recipe: Recipe, num_envs: int, vector: str) -> Any:
    import gymnasium

    env = str(recipe.env)
    if is_pooled(env):
        return pooled(env, num_envs, recipe.arguments, recipe.time_limit)
    spec = _spec(env)
    refuse_window({**spec.kwargs, **recipe.arguments}.get("render_mode"), f"environment {env!r} with render_mode=human")
    limit = _limit(recipe)
    try:
        if (entry := _native(recipe, spec, vector)) is not None:
            taken = inspect.signature(entry).parameters
            raw: dict[str, Any] = {"reward_clipping": False} if "reward_clipping" in taken else {}
            atari = atari_arguments(recipe.arguments, recipe.time_limit) if is_atari(env) else {}
            own = atari or {**raw, **recipe.arguments, **limit}
            return gymnasium.make_vec(spec, num_envs=num_envs, vectorization_mode="vector_entry_point", **own)
        check_arguments(env, recipe.arguments, parameters(spec.entry_point, spec.kwargs))
        own = {**recipe.arguments, **limit}
        return side_by_side([lambda: gymnasium.make(spec, disable_env_checker=True, **own)] * num_envs, recipe.told, again=True)
    except (gymnasium.error.Error, ImportError) as error:
        lacks = isinstance(error, ImportError | gymnasium.error.DependencyNotInstalled)
        fix = f"; pip install 'shoal[{extra}]'" if lacks and (extra := extra_of(spec)) else ""
        given = f"{recipe.given}: " if recipe.arguments and not fix else ""
        raise UserError(f"{given}environment {env!r} cannot be made: {' '.join(str(error).split())}{fix}") from error
    except UserError:
        raise
    except Exception as error:  # an environment is foreign code and may raise anything at all
        if not recipe.arguments or place_of(error):
            raise
        said = f"{type(error).__name__}: {' '.join(str(error).split())}".removesuffix(": ")
        raise UserError(f"{recipe.given}: environment {env!r} cannot be made with that: {said}"[:300]) from error


def _limit(recipe: Recipe) -> dict[str, int]:
    return {"max_episode_steps": recipe.time_limit} if recipe.time_limit else {}


def _native(recipe: Recipe, spec: Any, vector: str) -> Callable[..., Any] | None:
    """The maker of the id's own vector environment, if that is meant; else None."""
    import gymnasium

    entry = spec.vector_entry_point
    atari = is_atari(recipe.env)
    if entry is None:
        if atari and vector != "sync":
            raise UserError(f"environment {recipe.env!r} needs a newer ale_py: pip install 'shoal[atari]'")
        if vector == "native":
            raise UserError(f"vector=native: {recipe.env} has no vector environment of its own; leave it at vector=auto")
        return None
    module = str(entry.__module__ if callable(entry) else entry.partition(":")[0])
    must = vector == "native" or spec.entry_point is None or (atari and vector == "auto")
    if not must and not (vector == "auto" and module.startswith("gymnasium.envs.")):
        return None
    found: Callable[..., Any] = entry if callable(entry) else gymnasium.envs.registration.load_env_creator(entry)
    known = parameters(found, {})
    asked = {**recipe.arguments, **({} if atari else _limit(recipe))}
    if known.others or all(name in known.defaults for name in asked):
        check_arguments(str(recipe.env), recipe.arguments, known)
        return found
    if must and not atari and recipe.time_limit and "max_episode_steps" not in known.defaults:
        raise UserError(f"time_limit={recipe.time_limit}: the vector environment of {recipe.env} takes none; try vector=sync")
    if must:
        check_arguments(str(recipe.env), recipe.arguments, known)
    return None  # the single environment takes them, or says that it does not


def refuse_window(mode: Any, given: str) -> None:
    """Raises UserError for a render_mode that draws each step for a person, as fast as a person can look. given: what asks for
    it, as the begin of an error's line."""
    if mode == "human":
        raise UserError(
            f"{given}: training would wait for a window at every step; leave render_mode out, and film episodes with "
            "shoal evaluate RUN_DIR --video"
        )


def _spec(env: str) -> Any:
    """The gymnasium spec of "Name-v0", or of "module:Name-v0", where importing the module registers the name."""
    import gymnasium

    module, _, name = env.rpartition(":")
    family = next((known for known in FAMILIES if not module and name.startswith(known)), "")
    try:
        if module or family:
            importlib.import_module(module or FAMILIES[family][0])
        return gymnasium.spec(name)
    except gymnasium.error.Error:
        space = name.rpartition("/")[0]
        if space and not any(known.startswith(f"{space}/") for known in gymnasium.registry):
            fix = f"write the module that registers {space}/ in front, as in my_envs:{space}/Name-v0"
            raise UserError(f"gymnasium knows no environment {name!r}: {fix}") from None
        near = difflib.get_close_matches(name, gymnasium.registry, n=1, cutoff=0.0)
        raise UserError(f"gymnasium knows no environment {name!r}; the nearest name is {', '.join(near)}") from None
    except ImportError as error:
        if family:
            needs, extra = FAMILIES[family]
            raise UserError(f"environment {env!r} needs {needs}: pip install 'shoal[{extra}]' ({error})") from error
        raise UserError(f"environment {env!r}: {error}") from error


def single_arguments(env: str, package: str) -> Mapping[str, Any] | None:
    """The arguments with which an id of a package makes its single environment; None if the id is another package's, or none
    that was made or looked up before."""
    import gymnasium

    spec = gymnasium.registry.get(env.rpartition(":")[2])
    place = "" if spec is None else str(getattr(spec.entry_point, "__module__", spec.entry_point))
    return spec.kwargs if spec is not None and place.startswith(f"{package}.") else None


def extra_of(spec: Any) -> str:
    """The extra of Shoal with which the packages of an environment are installed; "" if there is none."""
    place = str(getattr(spec.entry_point, "__module__", spec.entry_point))
    own = {"gymnasium.envs.box2d": "box2d", "gymnasium.envs.mujoco": "mujoco"}
    return next((extra for start, extra in own.items() if place.startswith(start)), "")


def _by_factory(recipe: Recipe, num_envs: int) -> Any:
    import gymnasium

    factory, seed = cast(Callable[..., Any], recipe.env), {}
    if wants_number(factory):
        if wants_seed(factory):
            seed = {"seed": _seed()}
        vector = factory(num_envs, **seed)
        if not isinstance(vector, gymnasium.vector.VectorEnv) or vector.num_envs != num_envs:
            fix = f"; an environment with arguments is given as env=lambda: {_name(factory)}(...)" if _is_env(vector) else ""
            raise UserError(f"{_name(factory)}({num_envs}) made {_what(vector)}, not a gymnasium VectorEnv of {num_envs}{fix}")
        check_spaces(vector, ("single_observation_space", "single_action_space"))
        for one in (vector, *getattr(vector, "envs", ()), *getattr(vector, "shoal_games", ())):
            refuse_window(getattr(one, "render_mode", None), f'{_name(factory)}({num_envs}) has render_mode="human"')
        return vector
    singles = [factory(**({"seed": _seed()} if wants_seed(factory) else {})) for _ in range(num_envs)]
    for single in singles:
        if not _is_env(single):
            fix = f"; return {single.__name__}(), say" if isinstance(single, type) else ""
            raise UserError(f"{_name(factory)}() made {_what(single)}, not a gymnasium.Env{fix}")
        refuse_window(single.render_mode, f'{_name(factory)}() has render_mode="human"')
    if len({id(single) for single in singles}) < num_envs:
        raise UserError(f"{_name(factory)}() gave the same environment twice: make a new one at each call")
    return side_by_side([itertools.repeat(single).__next__ for single in singles], recipe.told)


def wants_number(factory: Callable[..., Any], called: str = "num_envs") -> bool:
    """True if the factory has a first argument for a number, which is not called `seed`: it is called `called`, or has no
    default. A factory of many environments has one for how many they are."""
    positional = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    first = next(iter(_arguments(factory).values()), None)
    if first is None or first.kind not in positional or first.name == "seed":
        return False
    return first.name == called or first.default is first.empty


def _arguments(factory: Callable[..., Any]) -> Mapping[str, inspect.Parameter]:
    """The arguments of a factory; empty for a class or function of C that tells none."""
    try:
        return inspect.signature(factory).parameters
    except ValueError:
        return {}


def check_factory(env: Any, form: str, called: str = "num_envs") -> None:
    """Raises UserError unless `env` is a function that can be called as a factory is: with a number, if it wants one (`called`
    as of wants_number), and with a seed, if it wants one. form: the expected value, in words."""
    if hasattr(env, "reset") and hasattr(env, "step") and not isinstance(env, type):
        raise UserError(f"env is {signed(env)}, one environment: expected {form}; env=lambda: ..., which makes it, say")
    seed = {"seed": 0} if callable(env) and wants_seed(env) else {}
    takes("env", env, form, *((1,) if callable(env) and wants_number(env, called) else ()), **seed)


def wants_seed(factory: Callable[..., Any]) -> bool:
    """True if the factory has an argument `seed`, which may be given by name."""
    found = _arguments(factory).get("seed")
    return found is not None and found.kind in (found.POSITIONAL_OR_KEYWORD, found.KEYWORD_ONLY)


def _seed() -> int:
    """A seed for a factory. Each client has another one: a rollout sets numpy's global generator by (seed, client, version)."""
    return int(np.random.randint(SEEDS))


def _name(factory: Callable[..., Any]) -> str:
    """The name of a function, or of that whose arguments functools.partial has set."""
    named = factory.func if isinstance(factory, partial) else factory
    return str(getattr(named, "__name__", type(named).__name__))


def _is_env(made: Any) -> bool:
    import gymnasium

    return isinstance(made, gymnasium.Env)


def _what(made: Any) -> str:
    if made is None:
        return "None"
    return f"the class {made.__name__}" if isinstance(made, type) else f"an object of type {type(made).__qualname__}"
