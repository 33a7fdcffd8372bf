"""The built-in actor-critic's forward and backward pass on a CPU, as one function to autograd.

The one idea: actor and critic are towers of the same widths, so their layers stand side by side in one array. One call then
activates both, memory is reused from pass to pass, and numpy's tanh takes a seventh of torch's time. Whether the numbers are
those of the module is not believed: the first observations are computed both ways.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.modules import module as hooks

from shoal.nets.cuda_graphs import Graphed
from shoal.nets.flat import FlatModule
from shoal.nets.policies import ActorCritic, DeepActorCritic, Judge, Output, Seen

ATEN = torch.ops.aten
BLOCK = 1024  # rows that go through all layers before the next ones, so that they stay in the processor's cache
NARROW = 32
Columns: TypeAlias = tuple[int, int]  # of a stage's array: the first column, and the one after the last


@dataclass(slots=True)
class Part:
    """A linear layer of one tower. w [outputs, inputs], bias [outputs]; w_grad, bias_grad: views of the flat gradient. reads:
    the columns of the stage before that are its inputs. at: its columns of its own stage."""

    w: Tensor
    bias: Tensor
    w_grad: Tensor
    bias_grad: Tensor
    reads: Columns
    at: Columns


Stage: TypeAlias = tuple[Part, ...]
"""Layers of equal depth, side by side."""


class Passes:
    """The forward pass of an ActorCritic with weights and gradient in a FlatModule, differentiable as a whole.

    Outputs and gradients are those of the module, to rounding. flat: the module's. alike: True if the first outputs were the
    module's; if they were not, the module itself is called from then on. None: not compared yet.
    """

    def __init__(self, module: ActorCritic) -> None:
        self.module, self.acts = module, module.acts
        self.tanh = module.activation == "tanh"
        self.stages = _stages(module)
        self.widths = [stage[-1].at[1] for stage in self.stages[:-1]]
        self.log_std: Tensor | None = getattr(module, "log_std", None)
        self.actions = self.stages[-1][0].at[1]  # the critic's row stands after the actor's
        self.anchor = torch.zeros((), requires_grad=True)  # without an input that asks for it, autograd would record nothing
        self.spare: list[Tensor] = []
        self.back = torch.empty(2 * BLOCK * max(self.widths, default=0))
        self.alike: bool | None = None

    def __call__(self, observation: Seen) -> tuple[Output, Tensor]:
        """The pair (action parameters, value [N]) of observations [N, *obs], float32 or uint8, or of part -> tensor."""
        if self.alike is None:
            self.alike = self._compared(observation)
        if not self.alike:
            told: tuple[Output, Tensor] = self.module(observation)
            return told
        if torch.is_grad_enabled():
            out, value = _Whole.apply(self.anchor, self, observation)  # type: ignore[no-untyped-call]
        else:
            both, _, self.spare = self.forward(observation)
            out, value = both[: self.actions].t(), both[self.actions]
        return (out if self.log_std is None else (out, self.log_std)), value

    def forward(self, observation: Seen) -> tuple[Tensor, Tensor, list[Tensor]]:
        """Returns the outputs [A + 1, N], of which the last row is the values; the inputs [N, features]; and the activations
        of each hidden stage, [>= N, width], in the spare memory, which is the caller's until `backward` gives it back."""
        x = self.module.rows(observation)
        memory = self._memory(len(x))
        both = torch.empty((self.actions + 1, len(x)))
        for first, rows in _blocks(len(x)):
            held = [each.narrow(0, first, rows) for each in memory]
            self._ahead(x.narrow(0, first, rows), held, both.narrow(1, first, rows))
        return both, x, memory

    def _ahead(self, seen: Tensor, memory: list[Tensor], both: Tensor) -> None:
        for stage, out in zip(self.stages[:-1], memory, strict=True):
            if stage[0].reads == stage[-1].reads:  # one product for both towers, where both read the observation
                bias, w = torch.cat([part.bias for part in stage]), torch.cat([part.w for part in stage])
                torch.addmm(bias, seen, w.t(), out=out)
            else:
                for part in stage:
                    torch.addmm(part.bias, _columns(seen, part.reads), part.w.t(), out=_columns(out, part.at))
            seen = self._active(out)
        for part in self.stages[-1]:
            torch.addmm(
                part.bias.unsqueeze(1),
                part.w,
                _columns(seen, part.reads).t(),
                out=both.narrow(0, part.at[0], part.at[1] - part.at[0]),
            )

    def _active(self, x: Tensor) -> Tensor:
        """The activations, in the place of x."""
        if not self.tanh:
            return torch.relu_(x)
        array = x.numpy()
        np.tanh(array, out=array)
        return x

    def backward(self, x: Tensor, memory: list[Tensor], out_grad: Tensor, value_grad: Tensor) -> None:
        """Add the gradient of `forward` to the flat gradient. out_grad [N, A], value_grad [N]. x, memory: as `forward` gave
        them; gradients overwrite the memory."""
        value_grad = value_grad.unsqueeze(1)
        for first, rows in _blocks(len(x)):
            held = [each.narrow(0, first, rows) for each in memory]
            ours = (grad.narrow(0, first, rows) for grad in (out_grad, value_grad))
            self._back(tuple(zip(self.stages[-1], ours, strict=True)), x.narrow(0, first, rows), held)
        self.spare = memory

    def _back(self, grads: Sequence[tuple[Part, Tensor]], x: Tensor, memory: list[Tensor]) -> None:
        for depth in range(len(memory), 0, -1):
            seen = memory[depth - 1]
            back = self.back[: seen.numel()].view_as(seen)
            self._through(grads, seen, back)
            after = (  # in the activations' place
                ATEN.tanh_backward.grad_input(back, seen, grad_input=seen)
                if self.tanh
                else ATEN.threshold_backward.grad_input(back, seen, 0, grad_input=seen)
            )
            grads = [(part, _columns(after, part.at)) for part in self.stages[depth - 1]]
        self._through(grads, x, None)

    def _through(self, grads: Sequence[tuple[Part, Tensor]], seen: Tensor, back: Tensor | None) -> None:
        """Add the gradients of the weights of one stage. Write the gradient of its inputs to `back`."""
        written: set[Columns] = set()
        for part, grad in grads:
            inputs = _columns(seen, part.reads)
            if inputs.shape[1] < NARROW:  # products of many rows and few columns are slow the other way round
                part.w_grad.add_(torch.mm(inputs.t(), grad).t())
            else:
                part.w_grad.addmm_(grad.t(), inputs)
            part.bias_grad.add_(grad.sum(0))
            if back is None:
                continue
            into = _columns(back, part.reads)
            if part.reads in written:  # two heads on one trunk
                into.addmm_(grad, part.w)
            else:
                torch.mm(grad, part.w, out=into)
            written.add(part.reads)

    def _memory(self, rows: int) -> list[Tensor]:
        memory, self.spare = self.spare, []
        if len(memory) == len(self.widths) and all(len(held) >= rows for held in memory):
            return memory
        return [torch.empty((rows, width)) for width in self.widths]

    @torch.no_grad()
    def _compared(self, observation: Seen) -> bool:
        both, _, self.spare = self.forward(observation)
        out, value = self.module(observation)
        logits = out if isinstance(out, Tensor) else out[0]
        return torch.allclose(torch.cat([logits, value.unsqueeze(1)], dim=1).t(), both, 1e-3, 1e-4, equal_nan=True)


class _Whole(torch.autograd.Function):
    """All layers of a Passes. The gradient of the weights goes to the flat gradient at once, and none to the inputs."""

    @staticmethod
    def forward(ctx: Any, anchor: Tensor, passes: Passes, observation: Seen) -> tuple[Tensor, Tensor]:
        both, ctx.x, ctx.memory = passes.forward(observation)
        ctx.passes = passes
        return both[: passes.actions].t(), both[passes.actions]

    @staticmethod
    def backward(ctx: Any, out_grad: Tensor, value_grad: Tensor) -> tuple[None, None, None]:
        ctx.passes.backward(ctx.x, ctx.memory, out_grad, value_grad)
        return None, None, None


def judge_of(flat: FlatModule) -> Judge:
    """The forward pass of a learner's module: Passes for the built-in ActorCritic on a CPU, all of whose weights are trained;
    CUDA graphs for a built-in network on a GPU; else the module itself. A hook, or a class of the user's own, is never passed
    over."""
    module = flat.module
    if type(module) not in (ActorCritic, DeepActorCritic) or hooked(module):
        return module
    if flat.device.type == "cuda":
        return Graphed(module)
    if type(module) is not ActorCritic or flat.device.type != "cpu":
        return module
    if any(not p.requires_grad or p.grad is None or p._backward_hooks for p in module.parameters()):
        return module
    return Passes(module)


def hooked(module: nn.Module) -> bool:
    """True if a hook of the module or of a part of it, or one of all modules, may see or change its passes."""
    everywhere = hooks._global_forward_hooks or hooks._global_forward_pre_hooks or hooks._global_backward_hooks
    kinds = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
    return bool(everywhere) or any(getattr(part, kind) for part in module.modules() for kind in kinds)


def _stages(module: ActorCritic) -> list[Stage]:
    """The layers by depth: the trunk's, then those of actor and critic side by side."""
    stages: list[Stage] = []
    read: tuple[Columns, Columns] | None = None
    for layer in module.trunk:
        only = _part(layer, None, 0)
        stages.append((only,))
        read = (only.at, only.at)
    for actor, critic in zip(module.actor, module.critic, strict=True):
        first = _part(actor, read and read[0], 0)
        pair = (first, _part(critic, read and read[1], first.at[1]))
        stages.append(pair)
        read = (pair[0].at, pair[1].at)
    return stages


def _part(layer: nn.Module, reads: Columns | None, first: int) -> Part:
    """A layer whose outputs begin at column `first`. reads: None: all columns of its inputs."""
    assert isinstance(layer, nn.Linear)
    w_grad, bias_grad = layer.weight.grad, layer.bias.grad
    assert w_grad is not None
    assert bias_grad is not None
    at = (first, first + layer.out_features)
    return Part(layer.weight.detach(), layer.bias.detach(), w_grad, bias_grad, reads or (0, layer.in_features), at)


def _columns(x: Tensor, which: Columns) -> Tensor:
    first, end = which
    return x if not first and end == x.shape[1] else x.narrow(1, first, end - first)


def _blocks(rows: int) -> Iterator[tuple[int, int]]:
    """The first row and the number of rows of each block: about BLOCK, and less than twice that."""
    parts = max(1, rows // BLOCK)
    size, longer = divmod(rows, parts)
    first = 0
    for part in range(parts):
        yield first, size + (part < longer)
        first += size + (part < longer)
