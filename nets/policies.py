"""Policies in torch: the built-in actor-critic, functions of its outputs, and any other module as an actor's policy.

The one idea: a policy is a module whose forward returns (action parameters, value). Action parameters are a pair (mean,
log_std) for Box actions, and logits for all others (nets/distributions.py). A user's module that does so works everywhere the
built-in policy does; `fitting` looks at what a module returns before anything runs. A module acts and learns in the mode
(training or evaluation) in which it was made, because the learner's probability of an action must be the actor's.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Mapping, Sequence
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.dropout import _DropoutNd

from shoal.envs.spaces import OBSERVATION, Actions, Array, Box, Floats, Named, Spaces, apart
from shoal.nets.acting import OfModule, State, Stochastic
from shoal.nets.bodies import Body, active, flattened, linear
from shoal.nets.distributions import Parameters as Parameters
from shoal.nets.distributions import entropy as entropy
from shoal.nets.distributions import first_rows as first_rows
from shoal.nets.distributions import likelihood as likelihood
from shoal.nets.distributions import log_prob as log_prob
from shoal.nets.distributions import meant
from shoal.nets.flat import TORCH_DTYPES, FlatModule, as_tensor
from shoal.nets.numpy_policy import check_layers
from shoal.nets.pictures import deep
from shoal.protocol.errors import UserError

Output = torch.Tensor | tuple[torch.Tensor, torch.Tensor]
"""A module's action parameters: logits [..., n]; or mean [..., A] and log_std, which is [..., A] or [A]."""
Seen = torch.Tensor | Mapping[str, torch.Tensor]
"""Observations [N, *obs], or the arrays of `Spaces.arrays` by name, each [N, ...]."""
Judge = Callable[[Any], tuple[Output, torch.Tensor]]
"""The forward of a policy: observations [N, *obs], or part -> tensor -> (action parameters, value [N] or [N, 1]). Its attribute
`acts`, if it has one, says which kind of actions its logits are of."""
UNSTEADY = (
    "the learner's probability of an action must be the actor's: let the function that makes the policy return it in "
    "evaluation mode (module.eval()), or leave that layer out"
)


class ActorCritic(nn.Module):
    """A small perceptron for acting and valuing. Its weights are named actor.I.*, critic.I.* and, if shared, trunk.I.*.

    hidden: sizes of the hidden layers, which actor and critic have each, or (shared=True) both together. Weights are drawn
    from `seed`, orthogonal with gain sqrt(2), 0.01 for the last layer of the actor and 1 for that of the critic; biases are 0
    (Engstrom et al. 2020; Huang et al. 2022). log_std of Box actions is a parameter that does not depend on the state, 0 at
    first.
    """

    def __init__(
        self,
        spaces: Spaces,
        hidden: Sequence[int] = (64, 64),
        activation: str = "tanh",
        shared: bool = False,
        seed: int = 0,
    ) -> None:
        super().__init__()
        check_layers(hidden, activation)
        self.activation, self.acts = activation, spaces.action
        seen = spaces.observation
        self.rank = 0 if isinstance(seen, Named) else len(seen.shape)
        self.ranks = {name: len(part.shape) for name, part in seen.named.items()} if isinstance(seen, Named) else {}
        outputs = spaces.action.size
        generator = torch.Generator().manual_seed(seed)
        before, after = (list(hidden), []) if shared else ([], list(hidden))
        inputs = spaces.observation.size
        if isinstance(spaces.action, Box):
            self.log_std = nn.Parameter(torch.zeros(outputs))
        self.trunk = linears([inputs, *before], math.sqrt(2), generator)
        features = [before[-1] if before else inputs, *after]
        self.actor = linears([*features, outputs], 0.01, generator)
        self.critic = linears([*features, 1], 1.0, generator)

    def forward(self, observation: Seen) -> tuple[Output, torch.Tensor]:
        """The pair (action parameters, value [...]) of observations [..., *obs]. Bytes (pictures) are scaled to [0, 1]. The
        parts of a Dict are flattened, one after the other."""
        return self.heads(self.features(observation))

    def features(self, observation: Seen) -> torch.Tensor:
        """The features [..., F] that both heads share."""
        x = self.rows(observation)
        return active(self._through(self.trunk, x), self.activation) if len(self.trunk) else x

    def rows(self, observation: Seen) -> torch.Tensor:
        """Observations as the first layer takes them, float32 [..., size]."""
        if isinstance(observation, torch.Tensor):
            return flattened(observation, self.rank)
        return torch.cat([flattened(observation[name], rank) for name, rank in self.ranks.items()], dim=-1)

    def heads(self, x: torch.Tensor) -> tuple[Output, torch.Tensor]:
        """The pair (action parameters, value [...]) of features [..., F]."""
        out, value = self._through(self.actor, x), self._through(self.critic, x).squeeze(-1)
        return ((out, self.log_std) if hasattr(self, "log_std") else out), value

    def _through(self, layers: nn.ModuleList, x: torch.Tensor) -> torch.Tensor:
        for i, layer in enumerate(layers):
            x = layer(active(x, self.activation) if i else x)
        return x


def linears(sizes: Sequence[int], last_gain: float, generator: torch.Generator) -> nn.ModuleList:
    """Linear layers of these sizes, orthogonal with gain sqrt(2), and `last_gain` for the last; biases are 0."""
    last = len(sizes) - 2
    gains = (last_gain if i == last else math.sqrt(2) for i in range(len(sizes)))
    return nn.ModuleList(linear(*pair, gain, generator) for pair, gain in zip(pairwise(sizes), gains, strict=False))


class DeepActorCritic(nn.Module):
    """A network with convolutions for acting and valuing (nets/bodies.py). Actor and critic share the body, and the gradients
    of both reach it.

    network: "auto", "nature" or "impala", for each picture. hidden, activation: of the perceptrons of actor and critic for an
    observation of several parts; the features of a picture alone go to the last layers at once. Weights are drawn from `seed`,
    orthogonal, as ActorCritic's.
    """

    def __init__(
        self, spaces: Spaces, network: str = "auto", hidden: Sequence[int] = (64, 64), activation: str = "tanh", seed: int = 0
    ) -> None:
        super().__init__()
        self.acts = spaces.action
        generator = torch.Generator().manual_seed(seed)
        self.body = Body(spaces, network, generator)
        towers = list(hidden) if self.body.named else []
        make = {"tanh": nn.Tanh, "relu": nn.ReLU}[activation]
        if isinstance(spaces.action, Box):
            self.log_std = nn.Parameter(torch.zeros(spaces.action.size))
        self.actor = _perceptron([self.body.features, *towers, spaces.action.size], 0.01, make, generator)
        self.critic = _perceptron([self.body.features, *towers, 1], 1.0, make, generator)

    def forward(self, observation: Seen) -> tuple[Output, torch.Tensor]:
        """The pair (action parameters, value [N]) of observations [N, *obs]."""
        x = self.body(observation)
        out, value = self.actor(x), self.critic(x).squeeze(-1)
        return ((out, self.log_std) if hasattr(self, "log_std") else out), value


def _perceptron(
    sizes: Sequence[int], last_gain: float, activation: type[nn.Module], generator: torch.Generator
) -> nn.Sequential:
    layers = nn.Sequential()
    for i, layer in enumerate(linears(sizes, last_gain, generator)):
        layers.extend([activation(), layer] if i else [layer])
    return layers


def built_in(
    spaces: Spaces, network: str = "auto", hidden: Sequence[int] = (64, 64), activation: str = "tanh", seed: int = 0
) -> nn.Module:
    """The built-in actor-critic for these spaces: with convolutions if there are pictures, else ActorCritic."""
    if deep(spaces, network):
        return DeepActorCritic(spaces, network, hidden, activation, seed)
    return ActorCritic(spaces, hidden, activation, seed=seed)


def judged(module: Judge, seen: Seen) -> tuple[Parameters, torch.Tensor]:
    """The pair (action parameters, value [N]) of observations [N, *obs], or of the arrays of `Spaces.arrays`. Choices that
    "action_mask" forbids have probability 0. The module's values may be [N] or [N, 1]."""
    observation, allowed = apart(seen)
    parameters, value = module(observation)
    return meant(parameters, getattr(module, "acts", None), allowed), value.flatten()


def every(seen: Seen, change: Callable[[torch.Tensor], torch.Tensor]) -> Seen:
    """The observations with `change` made to each of their arrays."""
    return change(seen) if isinstance(seen, torch.Tensor) else {name: change(part) for name, part in seen.items()}


def examples(spaces: Spaces, n: int, fill: int = 0) -> Any:
    """The input of a module for n observations that are `fill` everywhere: a tensor, or part -> tensor."""
    arrays = {name: torch.full((n, *shape), fill, dtype=TORCH_DTYPES[dtype]) for name, (dtype, shape) in spaces.arrays.items()}
    return apart(arrays if len(arrays) > 1 or OBSERVATION not in arrays else arrays[OBSERVATION])[0]


def memory_of(module: nn.Module) -> Mapping[str, tuple[int, ...]]:
    """The shapes of one environment's state, by name; empty for a module without memory. Raises UserError for a `memory` of
    another form."""
    memory = getattr(module, "memory", None)
    if memory is None:
        return {}
    named = isinstance(memory, Mapping) and all(isinstance(name, str) for name in memory)
    if not named or not all(isinstance(n, int) and n > 0 for shape in memory.values() for n in _sizes(shape)):
        raise UserError(
            f"policy: memory={memory!r}"[:120] + ': expected name -> shape of one environment\'s state, {"h": (64,)}'
        )
    return {name: tuple(shape) for name, shape in memory.items()}


def _sizes(shape: Any) -> Sequence[Any]:
    return shape if isinstance(shape, tuple | list) else (None,)


Shaped = Callable[[Any, int, Actions], list[torch.Tensor]]
"""The tensors of a module's output for n observations. Raises UserError for an output of another form."""


def actor_critic(out: Any, n: int, action: Actions) -> list[torch.Tensor]:
    """The tensors of a policy's output for n observations. Raises UserError for an output of another form."""
    allowed: list[list[tuple[int, ...]]]
    match action:
        case Box(size=size):
            wanted = f"((mean [{n}, {size}], log_std [{n}, {size}] or [{size}]), value [{n}])"
            allowed = [[(n, size)], [(n, size), (size,)], [(n,), (n, 1)]]
        case _:
            size = action.size
            wanted, allowed = f"(logits [{n}, {size}], value [{n}])", [[(n, size)], [(n,), (n, 1)]]
    try:
        head, value = out
        tensors = [*head, value] if isinstance(action, Box) else [head, value]
        pairs = zip(tensors, allowed, strict=True)
        fits = [tuple(each.shape) in shapes and each.is_floating_point() for each, shapes in pairs]
    except (TypeError, ValueError, AttributeError):
        fits = [False]
    if not all(fits):
        q = isinstance(out, torch.Tensor) and out.shape == (n, action.size) and not isinstance(action, Box)
        raise UserError(
            f"policy: forward gave {form_of(out)} for {n} observations; expected {wanted}, all of floats: an actor-critic"
            + " (a Q-network, which gives a value for each action, is for dqn or apex)" * q
        )
    return tensors


def fitting(module: nn.Module, spaces: Spaces, remembers: bool = False, shaped: Shaped = actor_critic) -> nn.Module:
    """Returns the module. Raises UserError, one line, unless it is a policy for these spaces whose outputs follow from the
    weights, an observation and its state alone. remembers: it may have a memory. shaped: says which kind of policy it must be.
    A copy of the module is tried, so that no buffer changes: on observations of zeros, and of ones if it takes them, because
    dropout shows on no zero and what divides by a norm has none there."""
    if not isinstance(module, nn.Module):
        raise UserError(f"policy: made {type(module).__name__}; expected a torch.nn.Module")
    for name, part in module.named_modules():
        drops = isinstance(part, _DropoutNd) and part.training and part.p > 0
        if drops or (isinstance(part, _BatchNorm) and (part.training or part.running_mean is None)):
            raise UserError(f"policy: part {name!r} is {type(part).__name__}, active as it stands; {UNSTEADY}")
    memory = memory_of(module)
    if memory and not remembers:
        its = f"has memory ({', '.join(memory)}), and the job's method learns without"
        raise UserError(f"policy: {type(module).__name__} {its}; choose a method with memory, such as ppo, or leave it out")
    module.acts = spaces.action  # type: ignore[assignment]  # which actions the module's logits are of: `judged` asks
    tried, numbers = copy.deepcopy(module), False

    def outputs(seen: Any, n: int) -> list[torch.Tensor]:
        if not memory:
            return shaped(tried(seen), n, spaces.action)
        out = tried(seen, {name: torch.zeros((n, *shape)) for name, shape in memory.items()})
        return _remembered(out, n, spaces.action, memory)

    for n, fill in ((1, 0), (3, 0), (3, 1)):
        seen = examples(spaces, n, fill)
        try:
            with torch.no_grad():
                first, again = (outputs(seen, n) for _ in range(2))
        except UserError:
            if fill:  # ones may be no observation
                continue
            raise
        except Exception as raised:  # noqa: BLE001  a policy is the user's code and may raise anything at all
            if fill:
                continue
            what = next((line for line in str(raised).splitlines() if line.strip()), "")
            given = _given(seen)
            text = f"policy: forward raised {type(raised).__name__} for {given}: {what}"
            raise UserError(text).with_traceback(raised.__traceback__) from None
        if not all(torch.equal(a.nan_to_num(), b.nan_to_num()) for a, b in zip(first, again, strict=True)):
            raise UserError(f"policy: two passes over the same observations differ; {UNSTEADY}")
        whole = first if shaped is not actor_critic else (first[0], first[2 if isinstance(spaces.action, Box) else 1])
        heads = [out.nan_to_num() for out in whole]  # without a log_std, which may be of no observation
        if not all(torch.allclose(out, out[:1].expand_as(out), atol=1e-4, rtol=1e-3) for out in heads):
            raise UserError(
                f"policy: {n} equal observations gave different outputs, so they depend on each other: a policy that "
                "remembers needs an attribute memory (docs/policies.md)"
            )
        numbers |= not any(each.isnan().any() for each in first)
    learns = any(parameter.requires_grad for parameter in tried.parameters())
    if learns and not any(each.requires_grad for each in outputs(examples(spaces, 2), 2)):
        why = "no gradient would come of them; is there a detach(), .data or no_grad?"
        raise UserError(f"policy: the outputs of forward do not depend on any trainable parameter: {why}")
    if not numbers:
        raise UserError("policy: forward gave NaN for observations of zeros and of ones; expected numbers, or -inf for a logit")
    return module


def _given(seen: Any) -> str:
    if isinstance(seen, torch.Tensor):
        return f"observations {list(seen.shape)} of {seen.dtype}".replace("torch.", "")
    parts = ", ".join(f"{name!r}: {list(part.shape)} of {part.dtype}".replace("torch.", "") for name, part in seen.items())
    return f"observations {{{parts}}}"


def _remembered(out: Any, n: int, action: Actions, memory: Mapping[str, tuple[int, ...]]) -> list[torch.Tensor]:
    """The tensors of the output of a policy with memory. Raises UserError for an output of another form."""
    wanted = ", ".join(f"{name} {[n, *shape]}" for name, shape in memory.items())
    if not isinstance(out, tuple | list) or len(out) != 3 or not isinstance(out[2], Mapping):
        raise UserError(f"policy: forward gave {form_of(out)}; expected (action parameters, value, state), a state of {wanted}")
    state = {name: tuple(its.shape) for name, its in out[2].items()}
    if state != {name: (n, *shape) for name, shape in memory.items()}:
        raise UserError(f"policy: forward gave the state {form_of(out[2])}; expected {wanted}, as memory says")
    return [*actor_critic(out[:2], n, action), *out[2].values()]


def form_of(out: Any) -> str:
    """A module's output in words, for an error."""
    if isinstance(out, tuple | list):
        return f"({', '.join(map(form_of, out))})"
    if isinstance(out, Mapping):
        return f"{{{', '.join(f'{name} {form_of(its)}' for name, its in out.items())}}}"
    if not isinstance(out, torch.Tensor):
        return type(out).__name__
    return f"{list(out.shape)}" if out.is_floating_point() else f"{list(out.shape)} of {out.dtype}"


class TorchPolicy(OfModule, Stochastic):
    """A module with forward(obs) -> (logits | (mean, log_std), value) as a rollout's policy, in the module's own mode."""

    def __init__(self, module: nn.Module, action: Actions) -> None:
        super().__init__(action, {name: ("f4", shape) for name, shape in memory_of(module).items()})
        self.flat = FlatModule(module)

    def numbers(self, seen: Array, state: State) -> tuple[Floats, State]:
        if not self.memory:
            return self.parameters(seen), state
        return self._remembering(seen, state)

    @torch.inference_mode()
    def parameters(self, observation: Array) -> Floats:
        """The numbers [B, P] of observations [B, *obs]: logits, or mean and log_std in one row."""
        out, _ = self.flat.module(tensors(observation))
        return _in_one_row(out)

    @torch.inference_mode()
    def _remembering(self, seen: Array, state: State) -> tuple[Floats, State]:
        before = {name: as_tensor(np.ascontiguousarray(array)) for name, array in state.items()}
        out, _, after = self.flat.module(tensors(seen), before)
        return _in_one_row(out), {name: after[name].float().numpy() for name in state}


def _in_one_row(parameters: Output) -> Floats:
    if isinstance(parameters, torch.Tensor):
        return parameters.float().numpy()
    mean, log_std = parameters
    return torch.cat([mean, log_std.expand_as(mean)], dim=-1).float().numpy()


def tensors(seen: Array) -> Any:
    """Observations as a module gets them: a tensor, or part -> tensor."""
    inner = apart(seen)[0]
    if isinstance(inner, np.ndarray):
        return as_tensor(np.ascontiguousarray(inner))
    return {name: as_tensor(np.ascontiguousarray(part)) for name, part in inner.items()}
