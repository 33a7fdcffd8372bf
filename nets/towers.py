"""Forward and backward pass of the built-in actor-critic over a block of rows, in memory that stays where it is.

The one idea: a block that goes forward and backward before the next one begins stays in the processor's cache, and the views
of memory that is reused are made once. Biases of the first layer are the weights of a column of ones; the two heads are one
matrix with zeros between actor and critic.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TypeAlias

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from shoal.nets.passes import Part, Passes

ATEN = torch.ops.aten
Floats: TypeAlias = npt.NDArray[np.float32]


@dataclass(eq=False, repr=False)
class Room:
    """The memory of a block of `rows` rows. x [rows, inputs + 1], whose last column is 1. acts: activations of each hidden
    stage, [rows, width]. back: of their gradients, each in the place of the activations after it, which are done with by then.
    out [A + 1, rows]: the action parameters, and in the last row the values. grad: the gradient of out."""

    x: Tensor
    acts: list[Tensor]
    back: list[Tensor]
    out: Tensor
    grad: Tensor
    towers: list[list[Tensor]] = field(init=False)  # the columns of each tower, of each stage
    backs: list[list[Tensor]] = field(init=False)
    arrays: list[Floats] = field(init=False)

    def __post_init__(self) -> None:
        self.towers = [list(torch.chunk(each, 2, 1)) for each in self.acts]
        self.backs = [list(torch.chunk(each, 2, 1)) for each in self.back]
        self.arrays = [each.numpy() for each in self.acts]


class Towers:
    """The passes of an actor-critic whose actor and critic share no layer and have hidden layers (nets/passes.py). `begin` and
    `end` enclose the blocks of one gradient: `begin` reads the weights, `end` adds the gradient to the flat one."""

    def __init__(self, passes: Passes) -> None:
        self.passes, self.tanh = passes, passes.tanh
        self.first, *self.inner, self.last = passes.stages
        self.widths = passes.widths
        inputs = self.first[0].w.shape[1]
        self.w_in = torch.empty((inputs + 1, self.widths[0]))
        self.w_in_grad = torch.zeros_like(self.w_in)
        self.w_out = torch.zeros((passes.actions + 1, self.widths[-1]))
        self.w_out_grad, self.bias_out = torch.zeros_like(self.w_out), torch.zeros((passes.actions + 1, 1))
        self.bias_out_grad = torch.zeros(passes.actions + 1)
        self.bias_grads = [torch.zeros(width) for width in self.widths[1:]]
        self._rooms: dict[int, Room] = {}

    @staticmethod
    def fits(passes: Passes) -> bool:
        return len(passes.stages) > 1 and all(len(stage) == 2 for stage in passes.stages)

    def room(self, rows: int) -> Room:
        if rows not in self._rooms:
            x = torch.ones((rows, len(self.w_in)))
            memory = [torch.empty(rows * max(self.widths)) for _ in range(len(self.widths) + 1)]
            acts, back = (
                [each[: rows * width].view(rows, width) for each, width in zip(which, self.widths, strict=True)]
                for which in (memory[:-1], memory[1:])
            )
            outs = torch.zeros((2, len(self.w_out), rows))
            self._rooms[rows] = Room(x, acts, back, outs[0], outs[1])
        return self._rooms[rows]

    def begin(self) -> None:
        for part, columns in self._columns():
            self.w_in[:-1, columns], self.w_in[-1, columns] = part.w.t(), part.bias
        for part, rows, columns in self._heads():
            self.w_out[rows, columns], self.bias_out[rows, 0] = part.w, part.bias
        for sums in (self.w_in_grad, self.w_out_grad, self.bias_out_grad, *self.bias_grads):
            sums.zero_()

    def forward(self, room: Room) -> None:
        """Fill room.out from room.x."""
        torch.mm(room.x, self.w_in, out=room.acts[0])
        self._activate(room, 0)
        for depth, stage in enumerate(self.inner, 1):
            for part, seen, out in zip(stage, room.towers[depth - 1], room.towers[depth], strict=True):
                torch.addmm(part.bias, seen, part.w.t(), out=out)
            self._activate(room, depth)
        torch.addmm(self.bias_out, self.w_out, room.acts[-1].t(), out=room.out)

    def backward(self, room: Room) -> None:
        """Add the gradient of the weights that follows from room.grad."""
        self.w_out_grad.addmm_(room.grad, room.acts[-1])
        self.bias_out_grad += room.grad.sum(1)
        torch.mm(room.grad.t(), self.w_out, out=room.back[-1])
        self._deactivate(room, -1)
        for depth in range(len(self.inner), 0, -1):
            seen, after, back = room.towers[depth - 1], room.backs[depth], room.backs[depth - 1]
            for part, its_seen, its_after, its_back in zip(self.inner[depth - 1], seen, after, back, strict=True):
                part.w_grad.addmm_(its_after.t(), its_seen)
                torch.mm(its_after, part.w, out=its_back)
            self.bias_grads[depth - 1] += room.back[depth].sum(0)
            self._deactivate(room, depth - 1)
        self.w_in_grad += torch.from_numpy(room.x.numpy().T @ room.back[0].numpy())

    def end(self) -> None:
        for part, columns in self._columns():
            part.w_grad += self.w_in_grad[:-1, columns].t()
            part.bias_grad += self.w_in_grad[-1, columns]
        for part, rows, columns in self._heads():
            part.w_grad += self.w_out_grad[rows, columns]
            part.bias_grad += self.bias_out_grad[rows]
        for stage, sums in zip(self.inner, self.bias_grads, strict=True):
            for part in stage:
                part.bias_grad += sums[slice(*part.at)]

    def _activate(self, room: Room, depth: int) -> None:
        if self.tanh:
            array = room.arrays[depth]
            np.tanh(array, out=array)
        else:
            torch.relu_(room.acts[depth])

    def _deactivate(self, room: Room, depth: int) -> None:
        """The gradient before the activation, in the place of the one after it."""
        back, act = room.back[depth], room.acts[depth]
        if self.tanh:
            ATEN.tanh_backward.grad_input(back, act, grad_input=back)
        else:
            ATEN.threshold_backward.grad_input(back, act, 0, grad_input=back)

    def _columns(self) -> list[tuple[Part, slice]]:
        return [(part, slice(*part.at)) for part in self.first]

    def _heads(self) -> list[tuple[Part, slice, slice]]:
        return [(part, slice(*part.at), slice(*part.reads)) for part in self.last]
