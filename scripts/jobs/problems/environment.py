"""A problem of an environment, and perhaps a policy.

The one idea: what an actor and the learner must agree on (spaces, network, layout of a trajectory) follows from the settings
and from one look at the environment, which is made once in each process.
"""

from __future__ import annotations

import math
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field, replace
from functools import partial
from typing import TYPE_CHECKING, Any, ClassVar, Self, cast

from shoal.actors.workers.lives import room_for
from shoal.envs import atari, pooled
from shoal.envs.agents import Parallel
from shoal.envs.atari import is_atari
from shoal.envs.cell import MOST_STATE
from shoal.envs.hatchery import Hatchery
from shoal.envs.isolated import Isolated
from shoal.envs.lasting import TRIAL, Telling, state_told
from shoal.envs.logged import WAYS
from shoal.envs.making import Recipe, make_vector, single_arguments, spaces_in
from shoal.envs.pooled import game_of
from shoal.envs.spaces import IN_INFO, Kept, Named, Observations, Spaces
from shoal.envs.trying import masks_told
from shoal.envs.vector import Worlds
from shoal.jobs.parts import Bearing
from shoal.jobs.presets import STACKED, Preset
from shoal.jobs.presets import found as preset_of
from shoal.jobs.problems import conflicts
from shoal.jobs.problems.first_weights import fill
from shoal.jobs.problems.problem import Problem
from shoal.jobs.settings import NO_ARGUMENTS, Arguments, option
from shoal.nets.acting import Form, Network, Parted, Policy
from shoal.nets.framed import FRAMES, Framed, stacked_spaces
from shoal.nets.networks import ACTOR_CRITIC
from shoal.nets.normal import Normalised, kept_of
from shoal.nets.pictures import NETWORKS
from shoal.protocol.draws import globally
from shoal.protocol.errors import UserError
from shoal.protocol.layout import Layout

if TYPE_CHECKING:
    from torch import nn

    from shoal.actors.inferring import Batching, Computing
    from shoal.jobs.methods.method import Method

ASKS = "asks"  # key in `Problem.made` of the place at which an actor asks the inference process
STEPS = 20  # times step_timeout that the trial of an environment's state may take: it may hang there too
SLOW = 20.0  # seconds that this trial may take in any case: its outcome is to be the same on a slow machine
CENTRAL = {"inference": ("central", "auto")}


@dataclass(frozen=True)
class Environment(Problem):
    """An environment, and optionally a policy.

    env: a gymnasium id, () -> Env, or num_envs -> VectorEnv. policy: (spaces) -> nn.Module of the method's kind of network. For
    an actor-critic, forward(observation) -> (logits | (mean, log_std), value). None: the built-in network of that kind.
    learns: the method's kind of network. learned_by: the method's name. sides: rows of environments
    that are played for each row that is learned from: 2 in self-play; None: 1.
    """

    kind: ClassVar[str] = "environment"

    learns: Network = field(default=ACTOR_CRITIC, kw_only=True, repr=False)
    learned_by: str | None = field(default=None, kw_only=True, repr=False)
    sides: int | None = field(default=None, kw_only=True, repr=False)

    env: str | Callable[..., Any]
    policy: Callable[[Spaces], nn.Module] | None = None
    hidden: tuple[int, ...] = option((64, 64), "units of each hidden layer of the built-in policy")
    activation: str = option("tanh", "activation of the built-in policy", choices=("tanh", "relu"))
    memory: str = option(
        "none",
        "recurrent core of the built-in policy, between its hidden layers and its two heads",
        choices=("none", "lstm", "gru"),
    )
    memory_size: int = option(128, "units of the recurrent core", least=1, of={"memory": ("lstm", "gru")})
    network: str = option(
        "auto",
        "how the built-in policy reads pictures: flattened (mlp), by Nature CNN or IMPALA's ResNet; auto: nature, or a smaller "
        "CNN for small pictures",
        choices=NETWORKS,
    )
    precision: str = option(
        "float32",
        "numbers in which the built-in policy's convolutions are computed, and the critics' hidden layers with sac and td3; "
        "bf16 is faster where the processor has instructions for it",
        choices=("float32", "bf16"),
    )
    frame_stack: int = option(
        1,
        "last observations that the policy sees together; trajectories and the replay hold each once, and the learner stacks "
        "them on its device",
        least=1,
        most=64,
    )
    env_kwargs: Arguments = option(  # noqa: RUF009  a field, as those around it
        NO_ARGUMENTS, "arguments of gymnasium.make, as JSON; env.NAME=value sets one of them (continuous, say)"
    )
    time_limit: int = option(0, "steps after which an episode of an id is truncated (0: the environment's own limit)", least=0)
    step_timeout: float = option(
        0.0,
        "seconds that a step or reset of an environment may take, in its own process (0: no limit, in the actor's process)",
        least=0,
    )

    vector: str = option(
        "auto",
        "how environments are stepped: one after another (sync), each in a process of its own (async), by an id's vector "
        "env, which may see and pay otherwise than its single one (native); auto: native if gymnasium's own, else sync",
        choices=("auto", "sync", "async", "native"),
    )
    on_env_error: str = option(
        "raise",
        "what an environment's exception comes to: the task fails (raise), a fresh environment takes its place (replace)",
        choices=("raise", "replace"),
    )

    stagger: bool = option(
        True,
        "the first episode of each training environment is cut short at a step of its own, so that episodes of one length do "
        "not all end together",
    )

    double_buffer: bool = option(
        False,
        "an actor steps one half of a trajectory's environments while the other half waits for its actions; pays with "
        "inference=central, and with environments in processes of their own",
    )
    inference: str = option(
        "actor",
        "where the policy's network is computed: by each actor (actor), in batches by one process for all actors of the "
        "coordinator's machine (central), or where a short trial before the run finds it faster (auto)",
        choices=("actor", "central", "auto"),
    )
    inference_min_batch: int = option(
        1, "observations for which a batch of central inference waits, inference_wait seconds at most", least=1, of=CENTRAL
    )
    inference_max_batch: int = option(1_024, "most observations of a batch of central inference", least=1, of=CENTRAL)
    inference_wait: float = option(
        0.002, "most seconds that a question waits for others to make a batch of central inference", least=0, of=CENTRAL
    )
    inference_device: str = option(
        "auto",
        "where the process of central inference computes the network: on the processor (cpu), on a GPU (cuda), or on the run's "
        "device, but on the processor if the method learns in rounds, whose bits a GPU would change (auto)",
        choices=("auto", "cpu", "cuda"),
        of=CENTRAL,
    )
    compile_policy: bool = option(
        False, "actors compute a policy that is a torch module by torch.compile, which needs a C++ compiler"
    )

    init: str = option("", "folder of a run, or file .safetensors, with the weights of version 0 (empty: drawn with the seed)")
    preset: str = option(
        "auto",
        "settings that nobody gave: those of the table of presets for the environment's family (auto), or the defaults (none)",
        choices=("auto", "none"),
    )

    @property
    def form(self) -> Form:
        """The settings of the built-in network."""
        return Form(tuple(self.hidden), self.activation, self.memory, self.memory_size, self.network, self.precision)

    def suited(self, method: Method) -> Self:
        network: Network = getattr(method, "network", ACTOR_CRITIC)
        scaled = {name: getattr(method, name, False) for name in ("norm_obs", "norm_reward")}
        if any(scaled.values()):
            network = Normalised(network, scaled["norm_obs"], scaled["norm_reward"], getattr(method, "clip_obs", 10.0))
        return replace(self, learns=network, learned_by=method.name)

    @property
    def apart(self) -> bool:
        """True if each environment has a process of its own."""
        return self.step_timeout > 0 or self.vector == "async" or self.on_env_error == "replace"

    def published(self, method: str) -> Preset | None:
        row = preset_of(self.env, method) if self.preset == "auto" else None
        if row is not None and self.policy is not None and conflicts.is_whole(self):
            row = row.without(conflicts.SHAPES)
        one_by_one = is_atari(self.env) and self.vector != "sync" and "stack_num" not in self.env_kwargs
        if row is None or (one_by_one and self.policy is None and not isinstance(self.learns, Normalised)):
            return row
        rest = row.without(STACKED)
        return rest if rest.settings else None

    def check(self, bearing: Bearing) -> None:
        conflicts.check(self, bearing)

    def module(self, seed: int) -> nn.Module:
        module = self._module(seed)
        if self.init:
            names = ("hidden", "activation", "memory", "memory_size", "network", "frame_stack") if self.maker is None else ()
            ours = {"method": self.learned_by, **{name: getattr(self, name) for name in names}, **self._learned()}
            fill(module, "init", self.init, ours)
        return module

    def _learned(self) -> dict[str, bool]:
        """The method's settings from which the arrays of the network follow."""
        network = self.learns
        found = {"norm_obs": False, "norm_reward": False}
        if isinstance(network, Normalised):
            found = {"norm_obs": network.observation, "norm_reward": network.reward}
        heads = {} if (its := getattr(network, "dueling", None)) is None or self.maker is not None else {"dueling": its}
        return {**found, **heads}

    def _module(self, seed: int) -> nn.Module:
        """The torch model with weights that are drawn."""
        from shoal.nets.models import seeded

        if (policy := self.maker) is not None:
            return seeded(lambda: self.learns.fitting(policy(self.shown()), self.shown()), seed)
        conflicts.check_shown(self)
        return self.learns.build(self.shown(), self.form, seed)

    @property
    def maker(self) -> Callable[[Spaces], nn.Module] | None:
        """The function that makes the policy; None: the built-in network does as it is."""
        if not isinstance(self.env, Parallel) or self.env.policies == "shared":
            return self.policy
        agents, own = len(self.env.agents), self.policy

        def apart(spaces: Spaces) -> nn.Module:
            import torch

            from shoal.nets.separate import Separate

            seen = replace(spaces, masks="").single("policies=separate")  # a mask is applied to what the module returns
            plain = replace(spaces, observation=Observations((seen.size - agents,)))
            drawn = int(torch.randint(2**30, ()))  # of the generator that `seeded` has set
            made = [own(plain) if own else self.learns.build(plain, self.form, drawn + each) for each in range(agents)]
            return Separate(made)

        return apart

    def example(self, method: Method, seed: int) -> tuple[Any, ...]:
        """Two observations of zeros; for a policy with memory, besides, its state for them."""
        import torch

        from shoal.nets.fitting import examples
        from shoal.nets.flat import TORCH_DTYPES

        observation, memory = examples(self.shown(), 2), self._added()[1]
        own = {name: its for name, its in memory.items() if name != FRAMES}
        state = {name: torch.zeros((2, *shape), dtype=TORCH_DTYPES[dtype]) for name, (dtype, shape) in own.items()}
        return (observation, state) if state else (observation,)

    def spaces(self) -> Spaces:
        key = ("spaces", self.vector, self.apart, self.arguments)
        if key not in self.made:
            vector, recipe = self.stepping, self.recipe(False)
            with globally(0, "spaces"):
                found = spaces_in(recipe, vector)
            if found.action.choices and not found.masks and not self.apart and masks_told(recipe, vector, self.step_timeout):
                found = replace(found, masks=IN_INFO)
            self.made[key] = found
        spaces: Spaces = self.made[key]
        return spaces

    def shown(self) -> Spaces:
        """The spaces as a network sees them: with frame_stack, the last observations together."""
        return stacked_spaces(self.spaces(), self.frame_stack)

    def recipe(self, told: bool | None = None) -> Recipe:
        """The recipe of an environment. told: as of Recipe; None: a trial finds it."""
        masks = self.spaces().masks == IN_INFO if told is None else told
        alone = "native" if is_atari(self.env) else "sync"
        return Recipe(self.env, dict(self.arguments), self.time_limit, masks, alone)

    @property
    def arguments(self) -> Arguments:
        """The arguments of the environment. An Atari game shows one frame if frames are stacked where they are learned from."""
        stacks = is_atari(self.env) and self.vector != "sync" and self.frame_stack > 1
        return Arguments({"stack_num": 1, **self.env_kwargs}) if stacks else self.env_kwargs

    @property
    def stepping(self) -> str:
        """The argument `vector` of make_vector."""
        return self.recipe(False).alone if self.apart else self.vector

    def rehearsed(self) -> AbstractContextManager[None]:
        """The trial of one environment, in this process: envs/trying.py."""
        from shoal.envs.trying import tried

        return tried(self.recipe(), self.stepping)

    def acts(self, seed: int) -> Policy:
        """The policy in the form that actors run."""
        return self._framed(self._unframed(seed))

    def _unframed(self, seed: int) -> Policy:
        """The policy of observations as the network sees them."""
        return self.learns.policy(self.shown(), self.form, None if self.maker is None else self._module(seed))

    def _framed(self, policy: Policy) -> Policy:
        """The policy of observations as the environment shows them."""
        seen = self.spaces().observation
        return Framed(policy, self.frame_stack, seen) if self.frame_stack > 1 and isinstance(seen, Observations) else policy

    def inferred(self, seed: int, device: str) -> Callable[[], Computing]:
        """Makes the policies whose network the inference process computes. On another device than the CPU they share the module
        there, and each has weights of its own."""
        if device == "cpu":
            return lambda: parted(self.acts(seed))
        from shoal.nets.on_device import OnDevice, Placed

        network = OnDevice(lambda: self.learns.policy(self.shown(), self.form, self._module(seed)), device)
        return lambda: cast(Parted, self._framed(cast(Policy, Placed(parted(self._unframed(seed)), network))))

    def inferring_on(self, device: str, repeats: bool) -> str:
        """The device of the inference process. device: the run's. repeats: the run promises the bits of inference=actor."""
        if self.inference_device != "auto":
            return self.inference_device
        return "cpu" if repeats else device

    def played(self, seed: int, num_envs: int, alone: bool) -> Policy:
        """The policy of an actor's rollouts: `acts`, of which another process computes the network if inference=central and
        this process was told where to ask. num_envs: observations of a question, at most. alone: each question is computed in a
        batch of its own, so that the run's bits do not depend on who asks at the same time."""
        policy = self.acts(seed)
        if self.compile_policy:
            from shoal.nets.compiled import compiled

            policy = compiled(policy)
        if self.inference != "central" or ASKS not in self.made:
            return policy
        from shoal.actors.asking import Asking

        return Asking(parted(policy), self.spaces().record(), self.made[ASKS], num_envs, alone)

    @property
    def batching(self) -> Batching:
        """The batches of central inference."""
        from shoal.actors.inferring import Batching

        return Batching(self.inference_min_batch, self.inference_max_batch, self.inference_wait)

    def trajectory(self, rollout_length: int, num_envs: int, moments: Sequence[str] = (), life: int = 0) -> Layout:
        """The layout of a trajectory, with the arrays that the policy adds, statistics and a life: `Spaces.trajectory`."""
        spaces = self.spaces()
        return spaces.trajectory(rollout_length, num_envs, *self._added(), kept_of(moments, spaces), life)

    def life(self, num_envs: int) -> int:
        """Bytes that the life of num_envs environments takes at most (actors/workers/lives.py); 0 if it cannot be told."""
        each = self.told_whole.size
        return room_for(each, self.spaces(), self._added()[1], (self.sides or 1) * num_envs) if each else 0

    @property
    def told_whole(self) -> Telling:
        """How the state of one environment is told, or why it cannot be told. A trial finds it once in a run, and the other
        processes of the run adopt it."""
        if self._of_state not in self.made:
            longest = min(TRIAL, max(SLOW, STEPS * self.step_timeout)) if self.step_timeout else TRIAL
            self.made[self._of_state] = state_told(self.recipe(), self.stepping, longest)
        found: Telling = self.made[self._of_state]
        if self.apart and found.size > MOST_STATE:
            why = f"it may take {found.size:,} bytes, and a process of its own tells {MOST_STATE:,} at most"
            return Telling(0, found.way, why)
        return found

    @property
    def _of_state(self) -> tuple[Any, ...]:
        """The key of how the state is told, in `made`."""
        return ("state", self.stepping, self.arguments, self.time_limit)

    def findings(self) -> Mapping[str, Any]:
        found: Telling | None = self.made.get(self._of_state)
        return {"state": found._asdict()} if found else {}

    def adopt(self, findings: Mapping[str, Any]) -> None:
        match findings.get("state"):  # of the run's folder, or of a coordinator elsewhere: any other form has no effect
            case {"size": int(size), "way": str(way), "why": str(why)} if way in WAYS or size == 0:
                self.made[self._of_state] = Telling(max(0, size), way, why)

    def _added(self) -> tuple[Kept, Kept]:
        """The rows and the memory of the policy, found out once in each process."""
        key = ("policy", self.learns, self.form, self.frame_stack, self.arguments)
        if key not in self.made:
            policy = self.acts(0)
            self.made[key] = policy.rows, policy.memory
        found: tuple[Kept, Kept] = self.made[key]
        return found

    @property
    def group(self) -> int:
        """The number of environments that belong together: the agents of one game."""
        return len(self.env.agents) if isinstance(self.env, Parallel) else 1

    def prepare(self, method: Method, seed: int) -> None:
        if isinstance(self.env, Parallel) and (rows := getattr(method, "num_envs", 0)) % (each := self.group):
            fix = f"num_envs={max(1, rows // each) * each}"
            raise UserError(f"num_envs={rows}: {self.env.__name__} has {each} agents, each of which is a row; {fix}, say")
        spaces = self.spaces()
        native = self.vector == "native" and "compared" not in self.made  # a run prepares its job twice, and says this once
        if native and (single := replace(self, vector="sync").spaces()) != spaces:
            also = f"observations {_told(spaces)}, {spaces.action}"
            plain = f"{_told(single)}, {single.action}"
            print(f"shoal: vector=native: {self.env} has {also}, where gymnasium.make gives {plain}", file=sys.stderr)
        self.made["compared"] = True
        if self.compile_policy:
            self._check_compiled(seed)
        if self.apart:
            self._hatched()

    def _check_compiled(self, seed: int) -> None:
        """Raises UserError if the policy is computed without torch."""
        from shoal.nets.forward import of_module

        if of_module(self.acts(seed)) is None:
            raise UserError("compile_policy=true: actors compute the built-in perceptron by numpy; leave it out")

    def conditions(self) -> Sequence[str]:
        if is_atari(self.env) and self.vector != "sync":
            return [atari.told(self.arguments, self.frame_stack)]
        if game_of(self.env):
            return [pooled.told(self.env_kwargs)]
        known = single_arguments(self.env, "ale_py") if isinstance(self.env, str) else None
        return [] if known is None else [atari.told_single({**known, **self.env_kwargs})]

    def about(self, method: Method, seed: int) -> Sequence[str]:
        found = list(self.conditions())
        seen = self.spaces().observation
        if isinstance(seen, Named) and seen.left_out:
            found.append(f"observation: {', '.join(seen.left_out)} is text, which policies here do not read: left out")
        said = getattr(getattr(self.learns, "inner", self.learns), "said", None)
        if self.policy is None and said is not None:
            found.append(said(self.shown(), self.form))
        if masks := self.spaces().masks:
            found.append(f"action masks: from the {masks}; what a mask forbids is never done")
        return found

    def hatch(self) -> None:
        if callable(self.env):  # a function reaches the new process only by fork; an id starts its process in `worlds`
            self._hatched()

    def close(self) -> None:
        self.made.pop("hatchery", None)  # the process ends with the last reference to the Hatchery

    def _hatched(self) -> None:
        """Start the process from which the environments' processes are forked, unless it runs already."""
        if "hatchery" not in self.made:
            self.made["hatchery"] = Hatchery.forked(self.recipe(False))

    def worlds(self) -> Callable[[int], Worlds]:
        """The function that makes an actor's environments: their number -> Worlds."""
        if not self.apart:
            return partial(make_vector, self.recipe(), vector=self.vector)
        hatchery: Hatchery | None = self.made.get("hatchery")
        timeout, spaces, replaces = self.step_timeout or math.inf, self.spaces(), self.on_env_error == "replace"
        if hatchery is None and isinstance(self.env, str):
            hatchery = Hatchery.started(self.recipe())
        if hatchery is None:
            raise UserError(
                "environments that a function makes, and that have processes of their own (step_timeout, vector=async, "
                "on_env_error=replace), need job.prepare() before there are threads"
            )
        return lambda num_envs: Isolated(hatchery, num_envs, spaces, timeout, time.monotonic, replaces)


def parted(policy: Policy) -> Parted:
    """The policy as one whose network another process can compute. Raises UserError if it is none."""
    own = policy.inner if isinstance(policy, Framed) else policy
    if not hasattr(own, "chosen"):
        raise UserError(f"inference=central: {type(own).__name__} has no function chosen; leave it at inference=actor")
    return cast(Parted, policy)


def _told(spaces: Spaces) -> str:
    parts = [f"{list(shape)} of {dtype}" for dtype, shape in spaces.arrays.values()]
    return " and ".join(parts)
