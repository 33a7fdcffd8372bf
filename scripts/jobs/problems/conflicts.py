"""Settings of an environment that do not go together.

The one idea: each function looks at one subject and raises UserError, one line, that names the setting, its value and the fix.
"""

from __future__ import annotations

import math
import sys
from itertools import pairwise
from typing import TYPE_CHECKING

from shoal.envs.agents import Parallel
from shoal.envs.making import refuse_window
from shoal.jobs.parts import Bearing
from shoal.jobs.settings import ranges, shown
from shoal.nets.continuous import BetweenBounds
from shoal.nets.networks import ActorCriticNetwork
from shoal.nets.normal import Normalised
from shoal.nets.pictures import deep, headless
from shoal.nets.q_policy import QNetworks, RecurrentQNetworks
from shoal.protocol.errors import UserError
from shoal.protocol.memory import room

if TYPE_CHECKING:
    from shoal.jobs.problems.environment import Environment


def check(problem: Environment, bearing: Bearing) -> None:
    """Raises UserError for the first conflict."""
    _check_processes(problem)
    _check_function(problem)
    _check_inference(problem)
    _check_network(problem)
    _check_agents(problem)
    if problem.frame_stack > 1:
        _check_stack(problem)
    if problem.memory != "none":
        _check_memory(problem)
    if problem.step_timeout >= bearing.lease > 0:
        raise UserError(
            f"step_timeout={problem.step_timeout:g}: must be below lease={bearing.lease:g}, the seconds after which the actor "
            "is ended; give a larger lease or a smaller step_timeout"
        )


def _check_processes(problem: Environment) -> None:
    if problem.apart and isinstance(problem.env, Parallel):
        known = ranges(problem)
        why = next(name for name in ("step_timeout", "vector", "on_env_error") if getattr(problem, name) != known[name].default)
        given = shown(getattr(problem, why))
        raise UserError(f"{why}={given}: the agents of a game are stepped together, in the actor's process; leave {why} out")
    if problem.apart and problem.vector in ("sync", "native"):
        why = "step_timeout" if problem.step_timeout else "on_env_error=replace"
        raise UserError(f"vector={problem.vector}: {why} gives each environment a process of its own; leave it at vector=auto")
    refuse_window(problem.env_kwargs.get("render_mode"), "env.render_mode=human")
    if problem.vector == "native" and callable(problem.env):
        raise UserError("vector=native: only an id has a vector environment of its own; leave it at vector=auto")


def _check_function(problem: Environment) -> None:
    """Raises UserError for a setting that only an id takes, if a function makes the environments."""
    fixes = {
        "env_kwargs": "give them to the environment there",
        "time_limit": "gymnasium.wrappers.TimeLimit sets one there",
    }
    for name, fix in fixes.items():
        if callable(problem.env) and (value := getattr(problem, name)):
            raise UserError(f"{name}={value}: only an id takes it, and a function makes this job's environment; {fix}")


def _check_inference(problem: Environment) -> None:
    if problem.inference == "central" and sys.platform != "linux":
        raise UserError(
            f"inference=central: it needs shared memory without a name (Linux), and this is {sys.platform}; inference=actor"
        )
    if problem.inference_min_batch > problem.inference_max_batch:
        most = f"must be at most inference_max_batch, {problem.inference_max_batch}"
        raise UserError(f"inference_min_batch={problem.inference_min_batch}: {most}")
    if problem.compile_policy and problem.inference != "actor":
        whose = "the inference process computes the network as it is"
        raise UserError(f"compile_policy=true: with inference={problem.inference} {whose}; inference=actor, or leave it out")


FEATURES = 512  # of a picture, at most
COPIES = 4  # of a network's weights that a learner holds at least: weights, gradient, two moments
SHAPES = ("hidden", "activation")
"""Settings of the layers of a built-in network."""


def is_whole(problem: Environment) -> bool:
    """True if the policy is all that the method learns: the critics of sac and td3, beside it, are always built in."""
    network = getattr(problem.learns, "inner", problem.learns)
    return type(network) in (ActorCriticNetwork, QNetworks, RecurrentQNetworks)


def _check_network(problem: Environment) -> None:
    known = ranges(problem)
    for name in ("network", "precision", *(SHAPES if is_whole(problem) else ())):
        if problem.policy is not None and (given := getattr(problem, name)) != known[name].default:
            raise UserError(
                f"{name}={shown(given)}: it is for the built-in policy, and this job has a policy of its own; leave it out"
            )
    if not all(units > 0 for units in problem.hidden):
        raise UserError(f"hidden={','.join(map(str, problem.hidden))}: allowed are whole numbers from 1; hidden=64,64, say")


def check_shown(problem: Environment) -> None:
    """Raises UserError for a setting of the built-in policy that has no effect for what this environment shows, or layers that
    take more than the memory that is left."""
    _check_size(problem)
    rounds = deep(problem.shown(), problem.network) or isinstance(problem.learns, BetweenBounds)
    if problem.precision != "float32" and not rounds:
        what = "it is for convolutions and for critics of sac and td3"
        raise UserError(f"precision={problem.precision}: {what}, and this policy has neither; leave it out")
    known = ranges(problem)
    for name in SHAPES if is_whole(problem) and headless(problem.shown(), problem.network) else ():
        if (given := getattr(problem, name)) != known[name].default:
            why = "the policy sees a picture alone, whose features go to its heads at once"
            raise UserError(f"{name}={shown(given)}: {why}; leave it out, or network=mlp flattens the picture")


def _check_size(problem: Environment) -> None:
    """Raises UserError if the layers of the built-in policy are too large to be learned on this machine."""
    seen = problem.shown()
    layers = [FEATURES if deep(seen, problem.network) else seen.observation.size, *problem.hidden]
    weights = sum(math.prod(pair) for pair in pairwise(layers))
    named = f"hidden={shown(problem.hidden)}"
    if problem.memory != "none":
        weights += 4 * problem.memory_size * (problem.memory_size + layers[-1])
        named += f" memory_size={problem.memory_size}"
    needs, have = COPIES * 4 * weights, room()
    if needs > have.nbytes:
        what = f"the network, its gradient and the optimizer's moments take {needs / 1e9:,.1f} GB of memory"
        raise UserError(f"{named}: {what}, and this {have.bound} has {have.nbytes / 1e9:,.1f} GB left; give smaller layers")


def _check_agents(problem: Environment) -> None:
    """Raises UserError for policies of the agents' own that a method cannot learn."""
    if not isinstance(problem.env, Parallel) or problem.env.policies == "shared":
        return
    network = getattr(problem.learns, "inner", problem.learns)
    if not isinstance(network, ActorCriticNetwork):
        why = f"each agent has an actor-critic of its own, and method={problem.learned_by} learns one network"
        raise UserError(f"policies='separate': {why}; policies='shared', or method=ppo")
    if problem.memory != "none":
        raise UserError(f"memory={problem.memory}: policies of the agents' own have no memory; policies='shared' has")


def _check_stack(problem: Environment) -> None:
    said = f"frame_stack={problem.frame_stack}"
    if isinstance(problem.env, Parallel):
        raise UserError(f"{said}: the agents of a game see single observations; supersuit's frame_stack_v1 stacks them")
    if isinstance(problem.learns, Normalised):
        raise UserError(f"{said}: norm_obs and norm_reward scale single observations; frame_stack=1, or leave them out")


def _check_memory(problem: Environment) -> None:
    if problem.policy is not None:
        fix = "give the policy an attribute memory (docs/policies.md) and leave it at memory=none"
        raise UserError(f"memory={problem.memory}: it is for the built-in policy, and this job has a policy of its own; {fix}")
    if not problem.learns.remembers:
        raise UserError(
            f"memory={problem.memory}: the job's method learns without memory; leave it at memory=none, or take ppo"
        )
