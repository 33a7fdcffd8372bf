"""Environments of several agents, in PettingZoo's parallel form, as a vector of environments.

The one idea: an agent is a row. A game of A agents is A environments that are stepped together, so rollouts, learners and
evaluation need to know nothing of agents. An agent that is out waits, masked, until its game begins anew.
"""

from __future__ import annotations

import copy
import importlib
from collections.abc import Callable, Mapping
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np

from shoal.envs.single import mask_of
from shoal.envs.spaces import MASK, OBSERVATION, spaces_of
from shoal.protocol.errors import UserError, signed

if TYPE_CHECKING:
    from gymnasium.vector import VectorEnv

PREFIX = "pettingzoo:"
POLICIES = ("shared", "separate")
TURNS = "pettingzoo has no parallel form of it; a game whose agents take turns is not supported"
PARTS = ("possible_agents", "observation_space", "action_space", "reset", "step")


class Parallel:
    """The environment of a job whose agents learn together: `Reinforcement(Parallel(make))`.

    make: () -> an environment in the form of PettingZoo's ParallelEnv. policies: "shared", all agents have one policy;
    "separate", each has its own. agent_ids: True appends the agent's number, one-hot, to each observation (agent indication;
    Gupta et al. 2017), which must be of floats in one dimension; separate policies need that. In a Dict of "observation" and
    "action_mask" the number is appended to the former.

    Action masks are told by the observations or by the agents' infos, under the key "action_mask". All agents must have the
    same spaces. Row g * A + a is agent a (of possible_agents) of game g.
    """

    def __init__(self, make: Callable[[], Any], policies: str = "shared", agent_ids: bool = False) -> None:
        if policies not in POLICIES:
            raise UserError(f"policies={policies!r}: allowed is one of {', '.join(POLICIES)}; policies='separate', say")
        self.make, self.policies, self.agent_ids = make, policies, agent_ids or policies == "separate"
        self.__name__ = str(getattr(make, "__name__", type(make).__name__))

    @cached_property
    def agents(self) -> tuple[str, ...]:
        """The names of the agents of one game. Raises UserError for an environment in another form."""
        game = self.make()
        if lacking := [name for name in PARTS if not hasattr(game, name)]:
            raise UserError(f"{self.__name__}() made {signed(game)}: expected a ParallelEnv, which has {', '.join(lacking)}")
        names = tuple(game.possible_agents)
        game.close()
        if not names:
            raise UserError(f"{self.__name__}: possible_agents is empty; a game needs at least one agent")
        return names

    def __call__(self, num_envs: int) -> VectorEnv[Any, Any, Any]:
        """The games of `num_envs` rows; in a game whose rows are fewer than its agents, the others draw allowed actions."""
        return _vector(self, num_envs)


def _vector(of: Parallel, num_envs: int) -> VectorEnv[Any, Any, Any]:
    import gymnasium
    from gymnasium.vector import AutoresetMode, VectorEnv
    from gymnasium.vector.utils import batch_space, concatenate, create_empty_array

    class Games(VectorEnv[Any, Any, Any]):
        """A game ends when no agent is left in it, and the step after that only resets it. The info `waiting` has the rows
        whose agent is out while its game goes on. The info `action_mask`, if the info of an agent has one, has a row for each
        agent, which allows nothing if the agent's last info had none."""

        metadata = {"autoreset_mode": AutoresetMode.NEXT_STEP}  # noqa: RUF012  gymnasium's own form

        def __init__(self) -> None:
            self.names, self.num_envs = of.agents, num_envs
            self.shoal_games = [of.make() for _ in range(-(-num_envs // len(self.names)))]
            self.single_observation_space, self.single_action_space = self._alike()
            self.observation_space = batch_space(self.single_observation_space, num_envs)
            self.action_space = batch_space(self.single_action_space, num_envs)
            self.spaces = spaces_of(self.single_observation_space, self.single_action_space)
            self.rng = np.random.default_rng(0)  # of agents without a row
            rows = len(self.shoal_games) * len(self.names)
            self.masks: list[Any] = [None] * rows  # of the agents' last infos
            self.seen = [_zeros(self.single_observation_space) for _ in range(rows)]
            self.alive = np.zeros(rows, dtype=bool)

        def _alike(self) -> tuple[Any, Any]:
            game, (first, *others) = self.shoal_games[0], self.names
            spaces = game.observation_space(first), game.action_space(first)
            for name in others:
                if (its := (game.observation_space(name), game.action_space(name))) != spaces:
                    raise UserError(
                        f"{of.__name__}: agent {name} has the spaces {its}, {first} has {spaces}; all must be alike: pad them "
                        "with supersuit's pad_observations_v0 and pad_action_space_v0"
                    )
            return (self._marked(spaces[0]), spaces[1]) if of.agent_ids else spaces

        def _marked(self, seen: Any) -> Any:
            """The space of an observation to which its agent's number is appended."""
            if isinstance(seen, gymnasium.spaces.Dict) and set(seen.spaces) == {OBSERVATION, MASK}:
                return gymnasium.spaces.Dict({**seen.spaces, OBSERVATION: self._marked(seen[OBSERVATION])})
            if not isinstance(seen, gymnasium.spaces.Box) or len(seen.shape) != 1 or seen.dtype.kind != "f":
                raise UserError(f"{of.__name__}: agent_ids=True needs observations of floats in one dimension, not {seen}")
            zeros, ones = np.zeros(len(self.names), seen.dtype), np.ones(len(self.names), seen.dtype)
            low, high = np.concatenate([seen.low, zeros]), np.concatenate([seen.high, ones])
            return gymnasium.spaces.Box(low, high, dtype=seen.dtype.type)

        def reset(self, *, seed: Any = None, options: Any = None) -> tuple[Any, dict[str, Any]]:
            if seed is not None:
                self.rng = np.random.default_rng(seed)
            for g in range(len(self.shoal_games)):
                self._begin(g, None if seed is None else seed + g)
            return self._told(), self._allowed()

        def step(self, actions: Any) -> tuple[Any, Any, Any, Any, dict[str, Any]]:
            rows = len(self.alive)
            reward = np.zeros(rows)
            ends: Any = np.zeros((2, rows), dtype=bool)  # terminated, truncated
            for g, game in enumerate(self.shoal_games):
                at = {name: g * len(self.names) + a for a, name in enumerate(self.names)}
                if not any(self.alive[row] for row in at.values()):
                    self._begin(g, None)
                    continue
                given = {name: self._action(actions, row) for name, row in at.items() if self.alive[row]}
                seen, rewards, terminations, truncations, infos = game.step(given)
                self._take(at, seen, infos)
                left = set(game.agents)
                for name in given:
                    row = at[name]
                    reward[row] = float(rewards.get(name, 0.0))
                    ends[0, row] = bool(terminations.get(name, name not in left))  # left out without a word: it is over
                    ends[1, row] = bool(truncations.get(name, False)) and not ends[0, row]
                    self.alive[row] = not ends[:, row].any()
                for name in left.difference(given) & set(seen):  # an agent that comes later
                    self.alive[at[name]] = True
            n = self.num_envs
            over = ends.any(0)
            waiting = np.array([not self.alive[row] and not over[row] for row in range(rows)])
            infos = {"waiting": waiting[:n], **self._allowed()}
            return self._told(), reward[:n], ends[0, :n], ends[1, :n], infos

        def _action(self, actions: Any, row: int) -> Any:
            """The action of a row's agent; of an agent without a row, one that is drawn among those that its mask allows."""
            if row < self.num_envs:
                return actions[row]
            action, numbers = self.spaces.action, np.zeros((1, self.spaces.action.parameters), np.float32)
            if told := mask_of(self.seen[row] if self.spaces.masks else {MASK: self.masks[row]}):
                numbers = action.legal(numbers, told[MASK][None])
            return action.decoded(action.act(numbers, action.noise(self.rng, 1, 1)[0]))[0]

        def _begin(self, g: int, seed: int | None) -> None:
            seen, infos = self.shoal_games[g].reset(seed=seed)
            at = {name: g * len(self.names) + a for a, name in enumerate(self.names)}
            self._take(at, seen, infos)
            for name, row in at.items():
                self.alive[row] = name in seen

        def _take(self, at: Mapping[str, int], seen: Mapping[str, Any], infos: Any) -> None:
            """Keep what each agent sees, and the action mask of its info."""
            for name, observation in seen.items():
                row = at[name]
                told = copy.deepcopy(observation)  # a game may write its next one where this one is
                if of.agent_ids and isinstance(told, Mapping):
                    told = {**told, OBSERVATION: self._with_number(told[OBSERVATION], row)}
                elif of.agent_ids:
                    told = self._with_number(told, row)
                self.seen[row] = told
                if self.spaces.action.choices and not self.spaces.masks:
                    self.masks[row] = self._mask(name, infos.get(name) if isinstance(infos, Mapping) else None)

        def _with_number(self, seen: Any, row: int) -> Any:
            mark = np.zeros(len(self.names), np.asarray(seen).dtype)
            mark[row % len(self.names)] = 1
            return np.concatenate([seen, mark])

        def _mask(self, name: str, info: Any) -> Any:
            """The action mask in an agent's info, bool [choices]; None if there is none."""
            mask, choices = mask_of(info).get(MASK), self.spaces.action.choices
            if mask is not None and len(mask) != choices:
                wanted = f"expected {choices}, one for each choice of an action"
                raise UserError(f"{of.__name__}: the action_mask in the info of agent {name} has {len(mask)} entries: {wanted}")
            return mask

        def _allowed(self) -> dict[str, Any]:
            """The info with the action masks of all rows; empty if the info of no agent has one."""
            if all(mask is None for mask in self.masks):
                return {}
            nothing = np.zeros(self.spaces.action.choices, bool)
            return {MASK: np.stack([nothing if mask is None else mask for mask in self.masks[: self.num_envs]])}

        def _told(self) -> Any:
            room: Any = create_empty_array(self.single_observation_space, self.num_envs)
            return concatenate(self.single_observation_space, self.seen[: self.num_envs], room)

        def close_extras(self, **kwargs: Any) -> None:
            for game in self.shoal_games:
                game.close()

    return Games()


def _zeros(space: Any) -> Any:
    """An observation of zeros."""
    if hasattr(space, "spaces"):
        parts = space.spaces
        return {name: _zeros(its) for name, its in parts.items()} if hasattr(parts, "items") else tuple(map(_zeros, parts))
    return np.zeros(space.shape, space.dtype)


def parallel_of(env: str) -> Parallel:
    """The environment of `pettingzoo:FAMILY.NAME_vN`, "pettingzoo:sisl.pursuit_v5" say. Raises UserError, one line."""
    name = env.removeprefix(PREFIX)
    try:
        pettingzoo = importlib.import_module("pettingzoo")
    except ImportError as missing:
        raise UserError(f"env={env}: needs the package pettingzoo; pip install 'shoal[multiagent]'") from missing
    try:
        # From 1.27 on, games have a registry, and importing one by its old name is deprecated.
        make = _registered(pettingzoo, name) if hasattr(pettingzoo, "parallel_registry") else _imported(name)
    except UserError:
        raise
    except ImportError as missing:
        theirs = (missing.name or "").partition(".")[0] != "pettingzoo"
        fix = f"pip install 'pettingzoo[{name.partition('.')[0]}]' brings what its games need"
        fix = f"; {fix if theirs else 'the pettingzoo that is installed has no game of this name and version'}"
        raise UserError(f"env={env}: {' '.join(str(missing).split())}{fix}") from missing
    except Exception as raised:
        raise UserError(f"env={env}: {type(raised).__name__}: {' '.join(str(raised).split())}"[:300]) from raised
    made = Parallel(make)
    made.__name__ = name
    return made


def _registered(pettingzoo: Any, name: str) -> Callable[[], Any]:
    """The maker of a game in PettingZoo's registry, whose module is imported here, so that a missing package shows."""
    known = name.replace(".", "/", 1)
    version = known.rpartition("_v")
    if f"{version[0]}-v{version[2]}" in pettingzoo.aec_registry.keys() - pettingzoo.parallel_registry.keys():
        raise UserError(f"env={PREFIX}{name}: {TURNS}")
    spec = pettingzoo.spec("parallel", known)
    if isinstance(spec.entry_point, str):
        importlib.import_module(spec.entry_point.partition(":")[0])
    make: Callable[[], Any] = spec.make
    return make


def _imported(name: str) -> Callable[[], Any]:
    module = importlib.import_module(f"pettingzoo.{name}")
    if not hasattr(module, "parallel_env"):
        raise UserError(f"env={PREFIX}{name}: {TURNS}")
    make: Callable[[], Any] = module.parallel_env
    return make
