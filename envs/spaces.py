"""Observations and actions as plain arrays: the kinds of gymnasium spaces that are supported.

The one idea: a space is a small frozen description that converts the environment's own form to the arrays of a trajectory
and back, so that policies, rollouts and learners never see a gymnasium object. The kinds themselves are in
envs/observations.py and envs/actions.py.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np

from shoal.envs.actions import Actions as Actions
from shoal.envs.actions import Bools
from shoal.envs.actions import Box as Box
from shoal.envs.actions import Discrete as Discrete
from shoal.envs.actions import Floats as Floats
from shoal.envs.actions import MultiBinary as MultiBinary
from shoal.envs.actions import MultiDiscrete as MultiDiscrete
from shoal.envs.observations import Array as Array
from shoal.envs.observations import Categories as Categories
from shoal.envs.observations import Named as Named
from shoal.envs.observations import Observations as Observations
from shoal.envs.observations import Part as Part
from shoal.envs.observations import Path, named
from shoal.protocol.errors import UserError
from shoal.protocol.layout import DTYPES, Layout

Kept: TypeAlias = Mapping[str, tuple[str, tuple[int, ...]]]
"""Arrays that a policy adds to a trajectory: name -> (dtype, shape of one entry)."""
NOTHING: Kept = {}
MOMENTS = "moments/"  # begins the names of a trajectory's statistics, for a normaliser
STATE = "state/"  # begins the names of a policy's recurrent state in a trajectory
OBSERVATION = "observation"
LIFE = "life"  # a trajectory's array for what its client's next rollout goes on from
MASK = "action_mask"  # key of an action mask in an observation or an info, and name of its array in a trajectory
IN_OBSERVATION, IN_INFO = "observation", "info"
MOST_CHOICES = 4_096  # logits of a Box of whole numbers, at most
MOST_LETTERS = 200  # characters of the name of an observation's part, at most


@dataclass(frozen=True, slots=True)
class Spaces:
    """The observations and the actions of an agent.

    observation: Named for a Dict or a Tuple, else one part. If a Dict has the keys "observation" and "action_mask" and no
    others, the observation is the part "observation".
    finals: True if the environment begins a new episode in the very step that truncates one, so that the old episode's last
    observation is not in the trajectory's next row, but beside its last row.
    masks: where the environment says which actions are allowed, under the key "action_mask": "observation" or "info"; "":
    nowhere. A mask has an entry for each of the action's `choices`.
    """

    observation: Part | Named
    action: Actions
    finals: bool = False
    masks: str = ""

    @property
    def plain(self) -> bool:
        """True if an observation is one array: it has one part, and no mask beside it."""
        return not self.masks and not isinstance(self.observation, Named)

    def single(self, reader: str) -> Part:
        """The one part of an observation, for a network that reads one array and no mask. reader: the network, for the error.
        Raises UserError for a Dict or Tuple, and for action masks."""
        if self.masks:
            raise UserError(f"{reader} knows no action masks, and the environment gives some; use method=ppo or impala")
        if isinstance(self.observation, Named):
            names = ", ".join(self.observation.named)
            fix = "use method=ppo or impala, or wrap the environment in gymnasium.wrappers.FlattenObservation"
            raise UserError(f"{reader} reads one array, and the observation has parts ({names}); {fix}")
        return self.observation

    @property
    def arrays(self) -> dict[str, tuple[str, tuple[int, ...]]]:
        """Name in a trajectory -> (dtype, shape of one) of the arrays of an observation: "observation", or "observation/PART"
        for each part of a Dict or Tuple; and, if there are masks, "action_mask"."""
        parts = self.observation.named if isinstance(self.observation, Named) else {"": self.observation}
        found = {f"{OBSERVATION}/{name}" if name else OBSERVATION: (part.dtype, part.shape) for name, part in parts.items()}
        return {**found, MASK: ("b1", (self.action.choices,))} if self.masks else found

    def record(self) -> tuple[np.dtype[Any], tuple[int, ...]]:
        """(dtype, shape) of one observation in a `Step`: if there is more than one array, a structured dtype with the names of
        `arrays`."""
        if self.plain:
            dtype, shape = self.arrays[OBSERVATION]
            return DTYPES[dtype], shape
        return np.dtype([(name, DTYPES[dtype], shape) for name, (dtype, shape) in self.arrays.items()]), ()

    def encoded(self, observation: Any, info: Mapping[str, Any], num_envs: int) -> Array:
        """Observations [B, *shape], as `record` says, from the environment's form, batched. info: with "action_mask" if masks
        are there. May be a view of `observation`. Raises UserError for a mask of another size."""
        if self.plain:
            assert not isinstance(self.observation, Named)
            return self.observation.encoded(observation)
        out = np.empty(num_envs, self.record()[0])
        if self.masks:
            given = (info if self.masks == IN_INFO else observation).get(MASK)  # an info at an episode's end may lack it
            out[MASK] = False if given is None else self._flags(given, num_envs)
        if isinstance(self.observation, Named):
            for name, array in self.observation.encoded(observation):
                out[f"{OBSERVATION}/{name}"] = _of_each(array, num_envs, name)
        else:
            inner = observation[OBSERVATION] if self.masks == IN_OBSERVATION else observation
            out[OBSERVATION] = _of_each(self.observation.encoded(inner), num_envs, OBSERVATION)
        return out

    def _flags(self, given: Any, num_envs: int) -> Bools:
        whole = flat_mask(given, num_envs)
        if whole.shape[1] != self.action.choices:
            entries = f"{whole.shape[1]} entries: expected {self.action.choices}, one for each choice of an action"
            raise UserError(f"the environment's action_mask has {entries}")
        return whole

    def trajectory(
        self,
        rollout_length: int,
        num_envs: int,
        rows: Kept = NOTHING,
        memory: Kept = NOTHING,
        moments: Kept = NOTHING,
        life: int = 0,
    ) -> Layout:
        """The layout of a trajectory of T = rollout_length rows by B = num_envs environments, time first.

        observation [T+1, B, *shape] (see `arrays`), the last row to bootstrap from; action [T, B, ...] (a Box's before it
        is clipped to the bounds); an array [T, B, ...] for each of `rows`, the policy's own, such as log_prob, that of the
        action under the policy that drew it; reward [T, B];
        terminated, truncated [T, B]; mask [T, B], False on a row that is not to be learned from: its observation is the
        last one of a truncated episode, from which the row before bootstraps, or, if the row only resets, the last one of
        any finished episode. If `finals`: final [T, B, *shape], the last observation of an episode that its row truncates.
        For a policy with memory: first [T+1, B], True where an observation begins an episode; and state/NAME [B, ...] for each
        of `memory`, the state before the first row, which counts as the policy's first one where first[0] is True.
        moments/NAME [...] for each of `moments`: statistics of the whole trajectory (nets/moments.py). If `life`: life, that
        many bytes, from which the client's next rollout goes on (actors/workers/lives.py).
        """
        T, B = rollout_length, num_envs
        dtype, shape = self.action.layout()
        final = {final_name(name): (kind, (T, B, *its)) for name, (kind, its) in self.arrays.items()} if self.finals else {}
        added = {name: (kind, (T, B, *its)) for name, (kind, its) in rows.items()}
        state = {f"{STATE}{name}": (kind, (B, *its)) for name, (kind, its) in memory.items()}
        return Layout.of(
            {
                **{name: (kind, (T + 1, B, *its)) for name, (kind, its) in self.arrays.items()},
                "action": (dtype, (T, B, *shape)),
                **added,
                "reward": ("f4", (T, B)),
                "terminated": ("b1", (T, B)),
                "truncated": ("b1", (T, B)),
                "mask": ("b1", (T, B)),
                **final,
                **({"first": ("b1", (T + 1, B))} if memory else {}),
                **state,
                **{f"{MOMENTS}{name}": its for name, its in moments.items()},
                **({LIFE: ("u1", (life,))} if life else {}),
            }
        )


def _of_each(array: Array, num_envs: int, name: str) -> Array:
    """The array. Raises UserError unless it has a row for each environment: a single one would count for all."""
    if len(array) != num_envs:
        raise UserError(
            f"part {name!r} of the observations has {len(array)} rows: expected {num_envs}, one of each environment"
        )
    return array


def final_name(name: str) -> str:
    """The name in a trajectory of the last observations of truncated episodes, from an observation's: "final", "final/PART";
    "final/action_mask"."""
    return f"final/{name}" if name == MASK else "final" + name.removeprefix(OBSERVATION)


def apart(seen: Any) -> tuple[Any, Any]:
    """(observation, mask) of observations that may have several arrays: a structured array, or name -> array (or tensor). The
    observation is one array, or part -> array for a Dict or Tuple; the mask is None if there is none."""
    names = seen.dtype.names if isinstance(seen, np.ndarray) else seen if isinstance(seen, Mapping) else None
    if names is None:
        return seen, None
    mask = seen[MASK] if MASK in names else None
    if OBSERVATION in names:
        return seen[OBSERVATION], mask
    return {name.removeprefix(f"{OBSERVATION}/"): seen[name] for name in names if name != MASK}, mask


def legal(action: Actions, numbers: Floats, seen: Any) -> Floats:
    """A policy's numbers [B, ...] with -inf for each choice that the action mask of its observation in `seen` forbids; the same
    array if the observations have no mask."""
    allowed = apart(seen)[1]
    return numbers if allowed is None else action.legal(numbers, allowed)


def flat_mask(given: Any, num_envs: int) -> Bools:
    """Masks [num_envs, entries] from an array, or from a tuple of one array for each part of an action."""
    parts = given if isinstance(given, tuple | list) else [given]
    return np.concatenate([np.asarray(part).reshape(num_envs, -1).astype(bool) for part in parts], axis=1)


def spaces_of(observation_space: Any, action_space: Any, finals: bool = False, told: bool = False) -> Spaces:
    """The `Spaces` of a single environment's gymnasium spaces; finals as in Spaces. told: True if the environment's infos have
    action masks. Raises UserError for a space that is not supported."""
    from gymnasium import spaces

    action = _actions(action_space)
    if isinstance(observation_space, spaces.Dict) and MASK in observation_space.spaces and action.choices:
        _check_mask(observation_space[MASK], action)
        rest = {name: space for name, space in observation_space.spaces.items() if name != MASK}
        if list(rest) == [OBSERVATION] and not isinstance(rest[OBSERVATION], spaces.Dict | spaces.Tuple):
            return Spaces(_part(rest[OBSERVATION]), action, finals, IN_OBSERVATION)
        return Spaces(_several(spaces.Dict(rest)), action, finals, IN_OBSERVATION)
    if told and not action.choices:
        kinds = "Discrete, MultiDiscrete or a Box of whole numbers"
        raise UserError(
            f"the environment's info has an action_mask, and its actions are {_short(action_space)}: expected {kinds}"
        )
    several = isinstance(observation_space, spaces.Dict | spaces.Tuple)
    seen = _several(observation_space) if several else _part(observation_space)
    return Spaces(seen, action, finals, IN_INFO if told else "")


def _check_mask(space: Any, action: Actions) -> None:
    sizes = [sum(int(np.prod(each.shape or ())) for _, each in _leaves(space, ()))]
    if sizes != [action.choices]:
        raise UserError(
            f"observation space: its action_mask has {sizes[0]} entries: expected {action.choices}, one for each choice of an "
            "action"
        )


def _several(space: Any) -> Named:
    """The parts of a Dict or a Tuple. Raises UserError for a part that is not supported, or if only text is there."""
    parts: list[tuple[Path, Part]] = []
    texts: list[str] = []
    for path, each in _leaves(space, ()):
        if each.dtype is not None and np.dtype(each.dtype).kind == "U":  # Text, and MiniGrid's mission
            texts.append(named(path))
        else:
            parts.append((path, _part(each, f"part {named(path)!r} of the ")))
    names = [named(path) for path, _ in parts]
    if not names:
        raise UserError(f"observation space {_short(space)} has no part but text; give at least one part of numbers")
    if len(set(names)) < len(names) or max(map(len, names)) > MOST_LETTERS or "" in names:
        raise UserError(
            f"observation space {_short(space)}: the parts' names, joined by /, must differ and have 1 to {MOST_LETTERS} "
            "characters"
        )
    return Named(tuple(parts), tuple(texts))


def _leaves(space: Any, path: Path) -> Iterator[tuple[Path, Any]]:
    from gymnasium import spaces

    if isinstance(space, spaces.Dict | spaces.Tuple):
        inner = space.spaces.items() if isinstance(space, spaces.Dict) else enumerate(space.spaces)
        for key, each in inner:
            yield from _leaves(each, (*path, key))
    else:
        yield path, space


def _part(space: Any, which: str = "") -> Part:
    from gymnasium import spaces

    match space:
        case spaces.Box():
            if 0 in space.shape:
                raise UserError(f"{which}observation space {_short(space)} holds nothing: expected at least one number")
            picture = space.dtype == np.uint8 and len(space.shape) > 1 and (space.low == 0).all() and (space.high == 255).all()
            return Observations(tuple(space.shape), "u1" if picture else "f4")
        case spaces.Discrete():
            return Observations((int(space.n),), categories=int(space.n), start=int(space.start))
        case spaces.MultiBinary():
            return Observations(tuple(space.shape))
        case spaces.MultiDiscrete():
            return Categories(_whole(space.nvec), _whole(space.start))
    raise UserError(
        f"{which}observation space {_short(space)} is not supported (Box, Discrete, MultiBinary, MultiDiscrete, and Dict and "
        "Tuple of these are); wrap the environment in a gymnasium.ObservationWrapper that offers one of those"
    )


def _actions(space: Any) -> Actions:
    from gymnasium import spaces

    if 0 in (space.shape or ()):
        raise UserError(f"action space {_short(space)} holds nothing: expected at least one number")
    match space:
        case spaces.Discrete():
            return Discrete(int(space.n), int(space.start))
        case spaces.MultiDiscrete():
            return MultiDiscrete(_whole(space.nvec), _whole(space.start), tuple(space.shape), space.dtype.name)
        case spaces.MultiBinary():
            return MultiBinary(tuple(space.shape))
        case spaces.Box() if space.dtype in (np.float32, np.float64):
            return Box(
                tuple(space.shape), _numbers(space.low), _numbers(space.high), "f8" if space.dtype == np.float64 else "f4"
            )
        case spaces.Box() if np.issubdtype(space.dtype, np.integer):
            lowest, highest = _whole(space.low), _whole(space.high)
            nvec = tuple(high - low + 1 for low, high in zip(lowest, highest, strict=True))
            if sum(nvec) > MOST_CHOICES:
                raise UserError(
                    f"action space {_short(space)} has {sum(nvec):,} values of whole numbers, and at most {MOST_CHOICES:,} are "
                    "supported; wrap the environment in a gymnasium.ActionWrapper that offers a Box of float32 and rounds"
                )
            return MultiDiscrete(nvec, lowest, tuple(space.shape), space.dtype.name)
    raise UserError(
        f"action space {_short(space)} is not supported (Discrete, MultiDiscrete, MultiBinary and Box are); "
        "wrap the environment in a gymnasium.ActionWrapper that offers one of those"
    )


def _whole(numbers: Array) -> tuple[int, ...]:
    return tuple(int(n) for n in numbers.ravel())


def _numbers(bounds: Array) -> tuple[float, ...]:
    return tuple(float(x) for x in bounds.ravel())


def _short(space: Any) -> str:
    text = " ".join(str(space).split())
    return text if len(text) <= 80 else f"{text[:77]}..."
