"""Distributions of actions in torch: what a policy's outputs mean, for each kind of actions of envs/actions.py.

The one idea: the parts of an action are independent given the observation, so log probabilities add up over the parts, and so
do entropies. An action that a mask forbids has the logit -inf: its probability is 0 when acting, in the log probability and in
the entropy, which is the sum over the allowed actions alone (Huang and Ontanon 2022).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, TypeAlias

import torch
from torch import Tensor
from torch.nn.functional import log_softmax, softplus

from shoal.envs.actions import Actions, MultiBinary, MultiDiscrete


@dataclass(frozen=True, slots=True)
class Choices:
    """Several categorical distributions: logits [..., sum(nvec)], nvec[i] of them for the i-th."""

    logits: Tensor
    nvec: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Bits:
    """Bernoulli distributions: logits [..., n]."""

    logits: Tensor


Parameters: TypeAlias = Tensor | tuple[Tensor, Tensor] | Choices | Bits
"""Action parameters: logits [..., n] of Discrete actions; mean [..., A] and log_std, [..., A] or [A], of Box actions; Choices
of MultiDiscrete actions; Bits of MultiBinary actions."""


def meant(parameters: Tensor | tuple[Tensor, Tensor], action: Actions | None, allowed: Tensor | None = None) -> Parameters:
    """The action parameters that a module's output means.

    action: the kind of actions; None: Discrete or Box, by the output's form. allowed: bool, of the shape of the logits; a
    choice that is not allowed gets probability 0.
    """
    if not isinstance(parameters, Tensor):
        return parameters
    if allowed is not None:
        parameters = parameters.masked_fill(~allowed, -torch.inf)
    match action:
        case MultiDiscrete():
            return Choices(parameters, action.nvec)
        case MultiBinary():
            return Bits(parameters)
    return parameters


def log_prob(parameters: Parameters, action: Tensor) -> Tensor:
    """The log probability (density) [...] of `action`: int64 [...]; float [..., A]; int64 [..., K]; bool [..., n]."""
    match parameters:
        case Tensor():
            return log_softmax(parameters, dim=-1).gather(-1, action.unsqueeze(-1)).squeeze(-1)
        case Choices(logits, nvec):
            each = zip(torch.split(logits, list(nvec), -1), action.unbind(-1), strict=True)
            return torch.stack([log_prob(part, chosen) for part, chosen in each]).sum(0)
        case Bits(logits):
            return -softplus(torch.where(action, -logits, logits)).sum(-1)
    mean, log_std = parameters
    z = (action - mean) * torch.exp(-log_std)
    return -(0.5 * z * z + log_std + 0.5 * math.log(2 * math.pi)).sum(-1)


def entropy(parameters: Parameters) -> Tensor:
    """The entropy [...] in nats: -sum p log p, or the differential entropy of the normal distribution."""
    match parameters:
        case Tensor():
            log_p = log_softmax(parameters, dim=-1)
            # a masked action has p = 0 and log p = -inf: 0 * -inf is NaN
            finite = log_p.clamp(min=torch.finfo(log_p.dtype).min)
            return -(log_p.exp() * finite).sum(-1)
        case Choices(logits, nvec):
            return torch.stack([entropy(part) for part in torch.split(logits, list(nvec), -1)]).sum(0)
        case Bits(logits):
            return (softplus(logits) - logits * logits.sigmoid()).sum(-1)
    mean, log_std = parameters
    return (log_std + 0.5 * math.log(2 * math.pi * math.e)).expand_as(mean).sum(-1)


def likelihood(parameters: Parameters, action: Tensor) -> tuple[Tensor, Tensor]:
    """The pair (log_prob(parameters, action), entropy(parameters)), in fewer steps for logits [N, n] and actions int64 [N]."""
    if isinstance(parameters, Tensor) and parameters.dim() == 2:
        pair: tuple[Tensor, Tensor] = _Categorical.apply(parameters, action)  # type: ignore[no-untyped-call]
        return pair
    return log_prob(parameters, action), entropy(parameters)


class _Categorical(torch.autograd.Function):
    """The log probability [N] of actions and the entropy [N], of logits. Actions run along the first axis inside: sums over a
    few logits a row are slow where rows are not side by side in memory."""

    @staticmethod
    def forward(ctx: Any, logits: Tensor, action: Tensor) -> tuple[Tensor, Tensor]:
        log_p = log_softmax(logits.t(), dim=0)
        p = log_p.exp()
        finite = log_p.clamp(min=-1e30)  # a masked action has p = 0 and log p = -inf, whose product is NaN
        undecided = -(p * finite).sum(0)
        ctx.save_for_backward(p, finite, undecided, action)
        return log_p.gather(0, action.unsqueeze(0)).squeeze(0), undecided

    @staticmethod
    def backward(ctx: Any, chosen_grad: Tensor, undecided_grad: Tensor) -> tuple[Tensor, None]:
        p, finite, undecided, action = ctx.saved_tensors
        grad = p * -(chosen_grad + undecided_grad * (finite + undecided))
        return grad.scatter_add_(0, action.unsqueeze(0), chosen_grad.unsqueeze(0)).t(), None


def first_rows(parameters: Parameters, n: int) -> Parameters:
    """The parameters of the first n observations. A log_std that depends on no observation stays as it is."""
    match parameters:
        case Tensor():
            return parameters[:n]
        case Choices(logits, nvec):
            return Choices(logits[:n], nvec)
        case Bits(logits):
            return Bits(logits[:n])
    mean, log_std = parameters
    return mean[:n], log_std[:n] if log_std.dim() == mean.dim() else log_std


def selected(parameters: Parameters, rows: Tensor) -> Parameters:
    """The parameters of the observations `rows`, int64 [n]. A log_std that depends on no observation stays as it is."""
    match parameters:
        case Tensor():
            return parameters[rows]
        case Choices(logits, nvec):
            return Choices(logits[rows], nvec)
        case Bits(logits):
            return Bits(logits[rows])
    mean, log_std = parameters
    return mean[rows], log_std[rows] if log_std.dim() == mean.dim() else log_std
