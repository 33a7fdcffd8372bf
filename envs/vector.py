"""Many environments stepped as one, under one convention for how episodes end.

The one idea: gymnasium's three autoreset modes differ in where an episode's last observation is found and in whether a
step is spent on resetting. Where a step is, the row after a truncated one holds the old episode's last observation, and a
mask says that nothing is learned from that row. Where none is, that observation travels beside the truncated row (`final`).
"""

from __future__ import annotations

import re
import traceback
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np
import numpy.typing as npt

from shoal.envs import states
from shoal.envs.logged import ATTRIBUTES
from shoal.envs.logged_vector import keep_logs
from shoal.envs.spaces import IN_INFO, MASK, Spaces, spaces_of
from shoal.protocol.errors import UserError

Array = npt.NDArray[Any]
Bools = npt.NDArray[np.bool_]
NEXT_STEP, SAME_STEP, DISABLED = "NextStep", "SameStep", "Disabled"  # the values of gymnasium's AutoresetMode
STATES = "metadata['autoreset_mode']"


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


class Lasting(Worlds, Protocol):
    """`Worlds` whose state can be told, so that their episodes go on in other `Worlds` that were made and reset alike."""

    def watch(self, way: str) -> int: ...

    def state(self) -> Any: ...

    def restore(self, state: Any) -> None: ...


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
        self._shape = (self.num_envs, *self.spaces.record()[1])  # of observations
        self._over: Bools = self._none
        self._watched: states.Watched | None = None
        self._seed = 0
        self._early: list[Any] = []  # environments whose first episode is to be cut short

    def reset(self, seed: int, shares: Array | None = None) -> Step:
        """Begin an episode in every environment; environment i is seeded with seed + i where gymnasium does so.

        shares: float [B] above 0; the episode that begins in environment i is truncated after this share of its time limit, if
        the environment is a single one that has a time limit. So episodes of one length do not all end together. None: no
        episode is cut short."""
        self._seed = seed
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
        if not reward.shape == terminated.shape == truncated.shape == self._none.shape:  # one would count for all
            self._refuse({"rewards": reward, "terminated": terminated, "truncated": truncated})
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
            seen = self.restarted(seen, over)
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
        if self._encoded is None:
            return self.spaces.encoded(observation, info, self.num_envs)
        seen = self._encoded(observation)
        if seen.shape != self._shape:
            raise UserError(f"{self.name}: gave observations of shape {list(seen.shape)}: expected {list(self._shape)}")
        return seen

    def _refuse(self, given: Mapping[str, Array]) -> None:
        """Raises UserError for the first array that has no entry for each environment."""
        for name, array in given.items():
            if array.shape != self._none.shape:
                wanted = f"expected [{self.num_envs}], one of each environment"
                raise UserError(f"{self.name}: a step gave {name} of shape {list(array.shape)}: {wanted}")

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

    def restarted(self, seen: Array, over: Bools) -> Array:
        """Begin an episode, without a seed, in each environment of `over`. Returns `seen` with their first observations."""
        act_on = seen.copy()
        observation, info = self.vector.reset(options={"reset_mask": over.copy()})
        act_on[over] = self._seen(observation, info)[over]
        return act_on

    def watch(self, way: str = ATTRIBUTES) -> int:
        """Watch the environments from their reset on, so that their state can be told in a way of envs/logged.py. Returns the
        bytes that their logs take at most. Raises NoStateError if they cannot be told so."""
        logs = 0
        if way != ATTRIBUTES:
            self.vector, logs = keep_logs(self.vector, way, self._seed)
        self._watched = states.Watched(self.vector)
        return logs

    def state(self) -> Any:
        """The environments' state as plain data (envs/states.py), since `watch` was called. Raises NoStateError if it cannot be
        told."""
        if self._watched is None:
            raise states.NoStateError(f"{self.name} was not watched from its reset on")
        return [self._watched.state(), self._over.tobytes(), self.arguments]

    def restore(self, state: Any) -> None:
        """Go on from a state, in environments that were made and reset alike, and are watched since. Raises NoStateError if it
        does not fit."""
        if self._watched is None:
            raise states.NoStateError(f"{self.name} was not watched from its reset on")
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
