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
import json
import re
import sys
import traceback
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple, Protocol, cast

import numpy as np
import numpy.typing as npt

from shoal.envs import states
from shoal.envs.atari import arguments as atari_arguments
from shoal.envs.atari import is_atari
from shoal.envs.physics import hear_physics
from shoal.envs.pooled import is_pooled, pooled
from shoal.envs.spaces import IN_INFO, MASK, Spaces, flat_mask, spaces_of
from shoal.protocol.errors import UserError, signed, within
from shoal.protocol.place import place_of

Array = npt.NDArray[Any]
Bools = npt.NDArray[np.bool_]
Environment = str | Callable[..., Any]
"""An environment id; a factory of one environment, () -> gymnasium.Env; or a factory of many, num_envs -> VectorEnv. A factory
may have an argument `seed` too."""

NEXT_STEP, SAME_STEP, DISABLED = "NextStep", "SameStep", "Disabled"  # the values of gymnasium's AutoresetMode
RESET, STEP = ("observation", "info"), ("observation", "reward", "terminated", "truncated", "info")
STATES = "metadata['autoreset_mode']"
SEEDS = 2**30  # a factory's seed is below this: some environments take only 32 bits
MAKES = ("render_mode", "max_episode_steps")  # arguments of gymnasium.make itself
FAMILIES: Mapping[str, tuple[str, str]] = {
    "ALE/": ("ale_py", "atari"),
    "MiniGrid-": ("minigrid", "minigrid"),
    "BabyAI-": ("minigrid", "minigrid"),
}
"""Begin of an id -> (module whose import registers the id, extra of Shoal that installs it)."""


class Step(NamedTuple):
    """The result of a step or reset of B environments. Its arrays are valid until the next step."""

    observation: Array  # [B, *obs] observation of the trajectory's next row, which the policy acts on: as Spaces.record says
    mask: Bools  # [B] True where the trajectory's next row is to be learned from
    reward: npt.NDArray[np.float64]  # [B] reward of this step
    terminated: Bools  # [B] True where this step ended an episode in a terminal state
    truncated: Bools  # [B] True where this step cut an episode off
    lived: Bools  # [B] False where this step belonged to no episode: it only reset, or, where `over`, never happened
    first: Bools  # [B] True where `observation` begins an episode
    final: Array | None = None  # [B, *obs] where `truncated`, the old episode's last observation; None: the next row holds it
    replaced: int = 0  # environments' processes that were replaced during this step or reset (envs/isolated.py)
    cut: Bools | None = None  # [B] True where `truncated` is our doing: a first episode, cut short; None: nowhere

    @property
    def over(self) -> Bools:
        return self.terminated | self.truncated


class Worlds(Protocol):
    """B environments as a rollout sees them: `Envs` in this process, `Isolated` in processes of their own."""

    num_envs: int
    spaces: Spaces

    def reset(self, seed: int, shares: Array | None = None) -> Step: ...

    def step(self, action: Array) -> Step: ...

    def close(self) -> None: ...


class Stepping(Worlds, Protocol):
    """`Worlds` whose environments step by themselves between `send(action)` and `receive()`, which together are `step`."""

    def send(self, action: Array) -> None: ...

    def receive(self) -> Step: ...


class Envs:
    """B environments with automatic reset, over a gymnasium VectorEnv in any of its autoreset modes.

    NEXT_STEP: the step after an episode's end ignores its action and only resets. The row of that step has the episode's
    last observation, mask False and reward 0.
    SAME_STEP, DISABLED: the new episode begins at once (in DISABLED, `Envs` resets the finished environments), so no row is
    masked, and `final` holds the last observations of truncated episodes (`spaces.finals` is True).
    name: the environment's, for errors. told: True if action masks are in the infos. arguments: of the environment, as text: a
    state of environments that were made with others does not fit. Raises UserError for a VectorEnv whose
    metadata name no mode, or whose steps show another mode than the metadata: which observation ends an episode would be a
    guess. Raises EnvError for an exception that comes from inside gymnasium.
    """

    def __init__(self, vector: Any, name: str = "", told: bool = False, arguments: str = "") -> None:
        self.vector, self.name, self.arguments = vector, name or type(vector).__name__, arguments
        _with_its_traceback(getattr(vector, "unwrapped", vector))
        self.num_envs = int(vector.num_envs)
        self.mode = self._mode()
        observations, actions = vector.single_observation_space, vector.single_action_space
        self.spaces: Spaces = spaces_of(observations, actions, self.mode != NEXT_STEP, told)
        plain = self.spaces.plain
        self._encoded: Callable[[Any], Array] | None = self.spaces.single("one array").encoded if plain else None
        self._all = np.ones(self.num_envs, dtype=bool)
        self._none = np.zeros(self.num_envs, dtype=bool)
        self._no_reward = np.zeros(self.num_envs)
        for array in (self._all, self._none, self._no_reward):
            array.flags.writeable = False
        self._over: Bools = self._none
        self._watched: states.Watched | None = None
        self._early: list[Any] = []  # environments whose first episode is to be cut short

    def reset(self, seed: int, shares: Array | None = None) -> Step:
        """Begin an episode in every environment; environment i is seeded with seed + i where gymnasium does so.

        shares: float [B] above 0; the episode that begins in environment i is truncated after this share of its time limit, if
        the environment is a single one that has a time limit. So episodes of one length do not all end together. None: no
        episode is cut short."""
        with naming(self.name):
            observation, info = self.vector.reset(seed=seed)
        singles = [one for one in getattr(self.vector, "envs", ()) if hasattr(one, "cut_after")]
        for single in singles:
            single.cut_after(0.0)
        if shares is not None and len(singles) == self.num_envs:
            self._early = [one for one, share in zip(singles, shares, strict=True) if one.cut_after(float(share))]
        first = self._playable(self._seen(observation, info), self._all)
        self._over = self._none
        final = first if self.spaces.finals else None
        return Step(first, self._all, self._no_reward, self._none, self._none, self._none, self._all, final)

    def step(self, action: Array) -> Step:
        """Step every environment. action: [B, ...], as Spaces.action.layout says; a Box's is clipped to its bounds here."""
        with naming(self.name):
            observation, reward, terminated, truncated, info = self.vector.step(self.spaces.action.decoded(action))
        seen = self._seen(observation, info)
        reward = np.asarray(reward, dtype=np.float64)
        terminated, truncated = np.asarray(terminated, dtype=bool), np.asarray(truncated, dtype=bool)
        if self.mode == NEXT_STEP:
            if "final_obs" in info:
                raise UserError(f"{self.name}: a step's info has final_obs, as in SAME_STEP, but {STATES} is NEXT_STEP")
            step = self._next_step(seen, reward, terminated, truncated, info.get("waiting"))
        else:
            step = self._same_step(seen, reward, terminated, truncated, info)
        return self._cut(step) if self._early else step

    def _cut(self, step: Step) -> Step:
        """The step, with `cut`, while first episodes are still to be cut short."""
        cut = np.array([one.was_cut for one in self.vector.envs])
        self._early = [one for one in self._early if one.left]
        return step._replace(cut=cut) if cut.any() else step

    def _next_step(self, seen: Array, reward: Array, terminated: Bools, truncated: Bools, waiting: Bools | None) -> Step:
        """waiting: rows whose episode is over, and whose next one has yet to begin (envs/agents.py)."""
        first = self._over
        lived = ~first
        if first.any():  # a step that only reset has no reward and no end, whatever the environment returned
            reward, terminated, truncated = np.where(lived, reward, 0.0), terminated & lived, truncated & lived
        self._over = terminated | truncated if waiting is None else terminated | truncated | waiting
        return Step(self._playable(seen, ~self._over), ~self._over, reward, terminated, truncated, lived, first)

    def _same_step(self, seen: Array, reward: Array, terminated: Bools, truncated: Bools, info: Any) -> Step:
        over = terminated | truncated
        final = seen
        if self.mode == DISABLED and over.any():
            final = seen.copy()
            seen = self._restarted(seen, over)
        elif truncated.any():
            if "final_obs" not in info:
                raise UserError(
                    f"{self.name}: {STATES} is SAME_STEP, but info['final_obs'] is missing where an episode was truncated"
                )
            final = seen.copy()
            for i in np.flatnonzero(truncated):
                final[i] = self._final(info, int(i))
        final = self._playable(final, self._none) if final is not seen else seen
        return Step(self._playable(seen, self._all), self._all, reward, terminated, truncated, self._all, over, final)

    def _seen(self, observation: Any, info: Mapping[str, Any]) -> Array:
        if self._encoded is not None:
            return self._encoded(observation)
        return self.spaces.encoded(observation, info, self.num_envs)

    def _final(self, info: Mapping[str, Any], i: int) -> Array:
        """The last observation of the episode that environment i ended in this step."""
        given, masks = info["final_obs"], info.get("final_info", {}).get(MASK)
        one = alone(given[i]) if isinstance(given, np.ndarray | list) else _row(given, i)
        last: Array = self.spaces.encoded(one, {} if masks is None else {MASK: masks[i : i + 1]}, 1)[0]
        return last

    def _playable(self, seen: Array, live: Bools) -> Array:
        """The observations, in which a mask that allows no action allows all where no action counts: an episode's last
        observation often has such a mask. Raises UserError for such a mask where `live`."""
        if not self.spaces.masks or (possible := self.spaces.action.possible(seen[MASK])).all():
            return seen
        if (stuck := np.flatnonzero(~possible & live)).size:
            given = f"the {self.spaces.masks}'s action_mask"
            lacks = f"{given} allows nothing" + " or is missing" * (self.spaces.masks == IN_INFO)
            raise UserError(
                f"{self.name}: {lacks} in environment {stuck[0]}: expected at least one choice, or the episode's end"
            )
        seen[MASK][~possible] = True
        return seen

    def _restarted(self, seen: Array, over: Bools) -> Array:
        act_on = seen.copy()
        observation, info = self.vector.reset(options={"reset_mask": over.copy()})
        act_on[over] = self._seen(observation, info)[over]
        return act_on

    def watch(self) -> None:
        """Watch the environments from their reset on, so that their state can be told."""
        self._watched = states.Watched(self.vector)

    def state(self) -> Any:
        """The environments' state as plain data (envs/states.py), since `watch` was called. Raises NoStateError if it cannot be
        told."""
        assert self._watched is not None
        return [self._watched.state(), self._over.tobytes(), self.arguments]

    def restore(self, state: Any) -> None:
        """Go on from a state, in environments that were made and reset alike, and are watched since. Raises NoStateError if it
        does not fit."""
        assert self._watched is not None
        if not isinstance(state, list) or len(state) != 3:
            raise states.NoStateError("the state is not one of a vector of environments")
        if state[2] != self.arguments:
            raise states.NoStateError(
                f"they were made with {state[2] or 'no arguments'}, and now with {self.arguments or 'none'}"
            )
        self._watched.restore(state[0])
        self._over = np.frombuffer(state[1], bool).copy()
        self._early = [one for one in getattr(self.vector, "envs", ()) if getattr(one, "left", 0)]

    def close(self) -> None:
        self.vector.close()

    def _mode(self) -> str:
        mode = self.vector.metadata.get("autoreset_mode")
        name = str(getattr(mode, "value", mode))
        if name not in (NEXT_STEP, SAME_STEP, DISABLED):
            raise UserError(
                f"{self.name}: {STATES} is {mode!r}; say how episodes begin anew: "
                "gymnasium.vector.AutoresetMode.NEXT_STEP, SAME_STEP or DISABLED"
            )
        return name


def alone(given: Any) -> Any:
    """The observation of a single environment, as a batch of one."""
    if isinstance(given, Mapping):
        return {name: alone(part) for name, part in given.items()}
    if isinstance(given, tuple):
        return tuple(map(alone, given))
    return [given] if isinstance(given, str) else np.asarray(given)[None]


def _row(given: Any, i: int) -> Any:
    """Row i of a batched observation, as a batch of one."""
    if isinstance(given, Mapping):
        return {name: _row(part, i) for name, part in given.items()}
    return tuple(_row(part, i) for part in given) if isinstance(given, tuple) else given[i : i + 1]


class EnvError(Exception):
    """An exception of an environment, told with the environment's name or number."""


@contextmanager
def naming(name: str) -> Iterator[None]:
    """An exception from inside gymnasium becomes an EnvError with the environment's name. One of the environment's own code
    stays as it is: its traceback says where."""
    try:
        yield
    except Exception as raised:  # an environment is the user's code; all that is not gymnasium's goes on as it is
        *_, last = traceback.walk_tb(raised.__traceback__)
        if str(last[0].f_globals.get("__name__")).split(".")[0] in ("gymnasium", "numpy"):
            text = f"environment {name}: {type(raised).__name__}: {raised}{_place(raised)}"
            raise EnvError(text).with_traceback(raised.__traceback__) from raised  # so that the user's own frame is found
        raise


LOGGED = re.compile(r"^(\x1b\[\d+m)?ERROR: |\x1b\[0m$")  # around what gymnasium logs of an error
FRAME = re.compile(r'File "([^"]+)", line (\d+), in (\S+)')


def _with_its_traceback(vector: Any) -> None:
    """Have gymnasium's AsyncVectorEnv raise an environment's exception with the traceback of its process as a note. It only
    logs the traceback, as warnings, and the exception that it raises begins here."""
    raises = getattr(vector, "_raise_if_errors", None)
    if raises is None:
        return

    def raise_if_errors(successes: Iterable[bool]) -> None:
        found = tuple(successes)
        if all(found):
            return
        with warnings.catch_warnings(record=True) as logged:
            warnings.simplefilter("always")
            try:
                raises(found)
            except Exception as raised:  # the environment's, which goes on
                for text in (LOGGED.sub("", str(one.message)).strip() for one in logged):
                    if text.startswith("Traceback"):
                        raised.add_note(f"in the environment's process:\n{text}")
                raise

    vector._raise_if_errors = raise_if_errors


def _place(raised: BaseException) -> str:
    """Return where an environment raised in a process of its own: file, line and function; "" if that is not known."""
    frames = FRAME.findall("\n".join(getattr(raised, "__notes__", ())))
    own = [frame for frame in frames if "site-packages" not in frame[0]]
    return f" ({Path(own[-1][0]).name}, line {own[-1][1]}, in {own[-1][2]})" if own else ""


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
        return " ".join([_typed(self.arguments), *(f"{name}={value}" for name, value in limit.items())]).strip()


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
    with naming(recipe.name):
        made = _by_id(recipe, num_envs, vector) if isinstance(recipe.env, str) else _by_factory(recipe, num_envs)
    hear_physics(sys.modules.get("mujoco"))
    return Envs(made, recipe.name, recipe.told, recipe.given)


def spaces_in(env: Environment | Recipe, vector: str = "auto") -> Spaces:
    """The spaces of `env`: makes one environment and closes it again. Raises UserError as make_vector does."""
    envs = make_vector(env, 1, vector)
    envs.close()
    return envs.spaces


def make_shown(env: Environment | Recipe) -> Any:
    """A gymnasium environment whose `render` gives pictures (render_mode "rgb_array").

    Raises UserError for a factory of many, and for a factory whose environment has another render_mode and that takes no
    argument render_mode.
    """
    import gymnasium

    recipe = recipe_of(env)
    env = recipe.env
    if isinstance(env, str):
        if is_atari(env):
            raise UserError("--video: Atari games that are scaled down and stacked for the policy cannot be shown")
        if is_pooled(env):
            raise UserError(f"--video: environments of EnvPool cannot be shown: {env}")
        own = {**recipe.arguments, **_limit(recipe), "render_mode": "rgb_array"}
        try:
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
        _check_arguments(env, recipe.arguments, _parameters(spec.entry_point, spec.kwargs))
        own = {**recipe.arguments, **limit}
        return _side_by_side([lambda: gymnasium.make(spec, disable_env_checker=True, **own)] * num_envs, recipe.told)
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
    known = _parameters(found, {})
    asked = {**recipe.arguments, **({} if atari else _limit(recipe))}
    if known.others or all(name in known.defaults for name in asked):
        _check_arguments(str(recipe.env), recipe.arguments, known)
        return found
    if must and not atari and recipe.time_limit and "max_episode_steps" not in known.defaults:
        raise UserError(f"time_limit={recipe.time_limit}: the vector environment of {recipe.env} takes none; try vector=sync")
    if must:
        _check_arguments(str(recipe.env), recipe.arguments, known)
    return None  # the single environment takes them, or says that it does not


class Parameters(NamedTuple):
    """What an entry point takes: name -> default, None if there is none; and, for annotated ones, name -> annotation. others:
    it takes any other name too, or does not say what it takes."""

    defaults: Mapping[str, Any]
    annotations: Mapping[str, str]
    others: bool


def _parameters(entry: Any, given: Mapping[str, Any]) -> Parameters:
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


def _check_arguments(env: str, arguments: Mapping[str, Any], known: Parameters) -> None:
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


def _typed(arguments: Mapping[str, Any]) -> str:
    return " ".join(f"env.{name}={value}" for name, value in arguments.items())


def refuse_window(mode: Any, given: str) -> None:
    """Raises UserError for a render_mode that draws each step for a person, as fast as a person can look. given: what asks for
    it, as the begin of an error's line."""
    if mode == "human":
        raise UserError(
            f"{given}: training would wait for a window at every step; leave render_mode out, and film episodes with "
            "shoal evaluate RUN_DIR --video"
        )


def _side_by_side(makers: Sequence[Callable[[], Any]], told: bool = False) -> Any:
    """gymnasium's SyncVectorEnv without infos, which fails on infos that change their shape; told: with their action masks."""
    import gymnasium

    class Silent(gymnasium.Wrapper[Any, Any, Any, Any]):
        def __init__(self, env: Any) -> None:
            super().__init__(env)
            self.shape = env.observation_space.shape
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
            return self._fitting(seen, "reset"), _mask_of(info) if told else {}

        def step(self, action: Any) -> Any:
            seen, reward, terminated, truncated, info = told_apart(self.env.step(action), STEP)
            infos = _mask_of(info) if told else {}
            if self.left:
                over = bool(_single(terminated) or _single(truncated))
                self.left, self.was_cut = 0 if over else self.left - 1, self.left == 1 and not over
                truncated = truncated or self.was_cut
            return self._fitting(seen, "step"), _single(reward), _single(terminated), _single(truncated), infos

        def _fitting(self, seen: Any, part: str) -> Any:
            if self.shape is not None and tuple(found := getattr(seen, "shape", self.shape)) != self.shape:
                wanted = f"{list(self.shape)}, as observation_space says"
                raise UserError(f"the environment's {part} gave an observation of shape {list(found)}: expected {wanted}")
            return seen

    return gymnasium.vector.SyncVectorEnv([partial(lambda make: Silent(make()), make) for make in makers])


def time_limit(env: Any) -> int:
    """The steps after which an environment truncates an episode, as gymnasium's TimeLimit or the environment itself names
    them; 0: not known."""
    for name in ("_max_episode_steps", "max_steps"):
        if env.has_wrapper_attr(name) and isinstance(limit := env.get_wrapper_attr(name), int) and limit > 0:
            return limit
    return 0


def _mask_of(info: Any) -> dict[str, Any]:
    found = info.get(MASK) if isinstance(info, Mapping) else None
    return {} if found is None else {MASK: flat_mask(found, 1)[0]}


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
        for one in (vector, *getattr(vector, "envs", ()), *getattr(vector, "games", ())):
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
    return _side_by_side([itertools.repeat(single).__next__ for single in singles], recipe.told)


def wants_number(factory: Callable[..., Any]) -> bool:
    """True if the factory makes many environments: it has a first argument for their number, which is not called `seed`."""
    positional = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    first = next(iter(inspect.signature(factory).parameters.values()), None)
    if first is None or first.kind not in positional or first.name == "seed":
        return False
    return first.name == "num_envs" or first.default is first.empty


def wants_seed(factory: Callable[..., Any]) -> bool:
    """True if the factory has an argument `seed`, which may be given by name."""
    found = inspect.signature(factory).parameters.get("seed")
    return found is not None and found.kind in (found.POSITIONAL_OR_KEYWORD, found.KEYWORD_ONLY)


def _seed() -> int:
    """A seed for a factory. Each client has another one: a rollout sets numpy's global generator by (seed, client, version)."""
    return int(np.random.randint(SEEDS))


def _name(factory: Callable[..., Any]) -> str:
    return str(getattr(factory, "__name__", type(factory).__name__))


def _is_env(made: Any) -> bool:
    import gymnasium

    return isinstance(made, gymnasium.Env)


def _what(made: Any) -> str:
    if made is None:
        return "None"
    return f"the class {made.__name__}" if isinstance(made, type) else f"an object of type {type(made).__qualname__}"
