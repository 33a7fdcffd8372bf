"""A look at a user's network before anything runs: whether its outputs have the form that a method learns.

The one idea: a copy of the module is called on observations of zeros and of ones. So a fault is one line before a run has a
folder, and no buffer of the user's module changes.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.dropout import _DropoutNd

from shoal.envs.spaces import OBSERVATION, Actions, Box, Spaces, apart
from shoal.nets.flat import TORCH_DTYPES
from shoal.protocol.errors import UserError

UNSTEADY = (
    "the learner's probability of an action must be the actor's: let the function that makes the policy return it in "
    "evaluation mode (module.eval()), or leave that layer out; a policy that remembers needs an attribute memory"
)
KEEPS = "a network that remembers needs an attribute memory and method=r2d2, and noise must come from torch's generator"
BOTH = -1  # stands for observations of zeros and of ones in one batch


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


def fitting(
    module: nn.Module, spaces: Spaces, remembers: bool = False, shaped: Shaped = actor_critic, noisy: bool = False
) -> nn.Module:
    """Returns the module. Raises UserError, one line, unless it is a policy for these spaces whose outputs follow from the
    weights, an observation and its state alone. remembers: it may have a memory. shaped: says which kind of policy it must be.
    noisy: outputs may be drawn at random too, from torch's generator (noisy networks).
    A copy of the module is tried, so that no buffer changes: on observations of zeros, and of ones if it takes them, because
    dropout shows on no zero and what divides by a norm has none there."""
    if not isinstance(module, nn.Module):
        raise UserError(f"policy: made {type(module).__name__}; expected a torch.nn.Module")
    for name, part in module.named_modules():
        drops = isinstance(part, _DropoutNd) and part.training and part.p > 0
        if not noisy and (drops or (isinstance(part, _BatchNorm) and (part.training or part.running_mean is None))):
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
        return _remembered(out, n, spaces.action, memory, shaped)

    def passes(seen: Any, n: int) -> list[list[torch.Tensor]]:
        """The outputs of two passes, and of a third one that may draw other numbers if the module may be noisy."""
        found = []
        with torch.no_grad(), torch.random.fork_rng(devices=()):
            for seed in (0, 0, 1) if noisy else (None, None):
                if seed is not None:
                    torch.manual_seed(seed)
                found.append(outputs(seen, n))
        return found

    alone: list[list[torch.Tensor]] = []  # outputs for three observations of zeros, and of ones
    for n, fill in ((1, 0), (3, 0), (3, 1), (3, BOTH)):
        if fill == BOTH and len(alone) < 2:
            break
        seen = examples(spaces, n, fill) if fill != BOTH else _both(spaces)
        try:
            first, again, *other = passes(seen, n)
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
        if not _alike(first, again):
            raise UserError(f"policy: two passes over the same observations differ; {KEEPS if noisy else UNSTEADY}")
        whole = first if shaped is not actor_critic else (first[0], first[2 if isinstance(spaces.action, Box) else 1])
        heads = [out.nan_to_num() for out in whole]  # without a log_std, which may be of no observation
        steady = all(_alike(first, each) for each in other)
        wanted = [out[:1].expand_as(out) for out in heads]
        if fill == BOTH:
            wanted = [torch.stack([zeros[0], ones[0], zeros[0]]) for zeros, ones in zip(*alone, strict=True)]
            what = "an observation gave other outputs beside other observations"
        else:
            what = f"{n} equal observations gave different outputs"
            alone += [heads] * (n > 1)
        if steady and not all(torch.allclose(out, its, atol=1e-4, rtol=1e-3) for out, its in zip(heads, wanted, strict=True)):
            raise UserError(
                f"policy: {what}, so they depend on each other: a policy that "
                "remembers needs an attribute memory (docs/policies.md)"
            )
        numbers |= not any(each.isnan().any() for each in first)
    learns = any(parameter.requires_grad for parameter in tried.parameters())
    with torch.random.fork_rng(devices=()):
        silent = learns and not any(each.requires_grad for each in outputs(examples(spaces, 2), 2))
    if silent:
        why = "no gradient would come of them; is there a detach(), .data or no_grad?"
        raise UserError(f"policy: the outputs of forward do not depend on any trainable parameter: {why}")
    if not numbers:
        raise UserError("policy: forward gave NaN for observations of zeros and of ones; expected numbers, or -inf for a logit")
    return module


def _both(spaces: Spaces) -> Any:
    """The input of a module for three observations: of zeros, of ones, and of zeros again."""
    zeros, ones = (examples(spaces, 1, fill) for fill in (0, 1))
    if isinstance(zeros, torch.Tensor):
        return torch.cat([zeros, ones, zeros])
    return {name: torch.cat([part, ones[name], part]) for name, part in zeros.items()}


def _alike(some: Sequence[torch.Tensor], others: Sequence[torch.Tensor]) -> bool:
    return all(torch.equal(a.nan_to_num(), b.nan_to_num()) for a, b in zip(some, others, strict=True))


def _given(seen: Any) -> str:
    if isinstance(seen, torch.Tensor):
        return f"observations {list(seen.shape)} of {seen.dtype}".replace("torch.", "")
    parts = ", ".join(f"{name!r}: {list(part.shape)} of {part.dtype}".replace("torch.", "") for name, part in seen.items())
    return f"observations {{{parts}}}"


def _remembered(out: Any, n: int, action: Actions, memory: Mapping[str, tuple[int, ...]], shaped: Shaped) -> list[torch.Tensor]:
    """The tensors of the output of a policy with memory. Raises UserError for an output of another form."""
    wanted = ", ".join(f"{name} {[n, *shape]}" for name, shape in memory.items())
    many, parts = (2, "action parameters, value") if shaped is actor_critic else (1, "values")
    if not isinstance(out, tuple | list) or len(out) != many + 1 or not isinstance(out[many], Mapping):
        raise UserError(f"policy: forward gave {form_of(out)}; expected ({parts}, state), a state of {wanted}")
    state = {name: tuple(its.shape) for name, its in out[many].items()}
    if state != {name: (n, *shape) for name, shape in memory.items()}:
        raise UserError(f"policy: forward gave the state {form_of(out[many])}; expected {wanted}, as memory says")
    return [*shaped(out[:many] if many > 1 else out[0], n, action), *out[many].values()]


def form_of(out: Any) -> str:
    """A module's output in words, for an error."""
    if isinstance(out, tuple | list):
        return f"({', '.join(map(form_of, out))})"
    if isinstance(out, Mapping):
        return f"{{{', '.join(f'{name} {form_of(its)}' for name, its in out.items())}}}"
    if not isinstance(out, torch.Tensor):
        return type(out).__name__
    return f"{list(out.shape)}" if out.is_floating_point() else f"{list(out.shape)} of {out.dtype}"
