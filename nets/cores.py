"""A recurrent core, LSTM or GRU, over all rows of a trajectory as one function to autograd.

The one idea: only the state goes from row to row. So the inputs meet their weights for all rows at once, all factors of the
derivatives are computed before the backward pass begins, and a row costs one product and a handful of calls in each direction,
where autograd keeps books of some thirty.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, TypeAlias

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import linear

from shoal.nets.passes import hooked

After: TypeAlias = Sequence[Mapping[str, Tensor]]
"""The state after each of T rows: T times name -> [B, ...]. Empty for a module without memory."""


def stepped(core: nn.LSTMCell | nn.GRUCell, x: Tensor, state: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
    """The state after one row. x: [B, inputs]."""
    if isinstance(core, nn.LSTMCell):
        h, c = core(x, (state["h"], state["c"]))
        return {"h": h, "c": c}
    return {"h": core(x, state["h"])}


def scanned(
    core: nn.LSTMCell | nn.GRUCell, x_TB: Tensor, state: Mapping[str, Tensor], first_TB: Tensor
) -> tuple[Tensor, After]:
    """Returns the outputs [T, B, size] of the core for inputs [T, B, inputs], and the state after each row.

    state: before the first row, name -> [B, size]. first: bool [T, B], True where a row begins an episode, before which the
    state is zeros. The numbers are those of the core called row by row, to rounding.
    """
    if x_TB.device.type != "cpu" or type(core) not in (nn.LSTMCell, nn.GRUCell) or hooked(core):
        return _row_by_row(core, x_TB, state, first_TB)
    if isinstance(core, nn.LSTMCell):
        gates = linear(x_TB, core.weight_ih, core.bias_ih + core.bias_hh)
        h_TB, c_TB = _LSTM.apply(gates, core.weight_hh, state["h"], state["c"], first_TB)  # type: ignore[no-untyped-call]
        return h_TB, [{"h": h, "c": c} for h, c in zip(h_TB, c_TB, strict=True)]
    gates = linear(x_TB, core.weight_ih, core.bias_ih)
    h_TB = _GRU.apply(gates, core.weight_hh, core.bias_hh, state["h"], first_TB)  # type: ignore[no-untyped-call]
    return h_TB, [{"h": h} for h in h_TB]


def forgotten(state: Mapping[str, Tensor], first_B: Tensor) -> Mapping[str, Tensor]:
    """The state with zeros where `first` is True."""
    return {name: each.masked_fill(first_B.view(-1, *(1,) * (each.dim() - 1)), 0.0) for name, each in state.items()}


def _row_by_row(
    core: nn.LSTMCell | nn.GRUCell, x_TB: Tensor, state: Mapping[str, Tensor], first_TB: Tensor
) -> tuple[Tensor, After]:
    after: list[Mapping[str, Tensor]] = []
    for x, first in zip(x_TB, first_TB, strict=True):
        state = stepped(core, x, forgotten(state, first))
        after.append(state)
    return torch.stack([each["h"] for each in after]), after


def _tanh(x: Tensor) -> None:
    """Write tanh(x) to x: numpy's takes a seventh of torch's time."""
    array = x.numpy()
    np.tanh(array, out=array)


def _kept(first_TB: Tensor) -> list[Tensor | None]:
    """A factor of the state for each row, float [B, 1]: 0 where the row begins an episode; None for a row that begins none."""
    begins = first_TB.any(1).tolist()
    return [(~first).unsqueeze(1) if any_ else None for first, any_ in zip(first_TB, begins, strict=True)]


def _before(first: Tensor, state_TB: Tensor, first_TB: Tensor) -> Tensor:
    """The state [T, B, size] with which each row begins. first: the state before the first row."""
    return torch.cat([first.unsqueeze(0), state_TB[:-1]]).masked_fill_(first_TB.unsqueeze(2), 0.0)


class _LSTM(torch.autograd.Function):
    """Hochreiter & Schmidhuber 1997, as torch's LSTMCell: gates in the order input, forget, cell, output."""

    @staticmethod
    def forward(ctx: Any, gates_TB: Tensor, w: Tensor, h_B: Tensor, c_B: Tensor, first_TB: Tensor) -> tuple[Tensor, Tensor]:
        T, B, n = *first_TB.shape, w.shape[1]
        half = w.new_full((4 * n,), 0.5)  # sigmoid(x) = tanh(x / 2) / 2 + 1 / 2, so one call of tanh makes all four gates
        half[2 * n : 3 * n] = 1.0
        shift = 1.0 - half
        active_TB, w_t = gates_TB * half, (w * half.unsqueeze(1)).t()
        h_TB, c_TB, tanh_TB = (w.new_empty((T, B, n)) for _ in range(3))
        h, c = h_B, c_B
        for keep, active, h_out, c_out, tanh in zip(
            _kept(first_TB), active_TB.unbind(), h_TB.unbind(), c_TB.unbind(), tanh_TB.unbind(), strict=True
        ):
            if keep is not None:
                h, c = h * keep, c * keep
            active.addmm_(h, w_t)
            _tanh(active)
            torch.addcmul(shift, active, half, out=active)
            i, f, g, o = torch.split(active, n, 1)
            torch.mul(f, c, out=c_out).addcmul_(i, g)
            tanh.copy_(c_out)
            _tanh(tanh)
            torch.mul(o, tanh, out=h_out)
            h, c = h_out, c_out
        ctx.save_for_backward(active_TB, h_TB, c_TB, tanh_TB, w, h_B, c_B, first_TB)
        return h_TB, c_TB

    @staticmethod
    def backward(ctx: Any, h_grad_TB: Tensor, c_grad_TB: Tensor) -> tuple[Tensor | None, ...]:
        active_TB, h_TB, c_TB, tanh_TB, w, h_B, c_B, first_TB = ctx.saved_tensors
        n = w.shape[1]
        i, f, g, o = torch.split(active_TB, n, 2)
        c_before = _before(c_B, c_TB, first_TB)
        grad_TB = torch.empty_like(active_TB)  # first the factors of each gate's derivative, then the gradient of the gates
        factors = torch.split(grad_TB, n, 2)
        for gate, other, factor in ((i, g, factors[0]), (f, c_before, factors[1]), (o, tanh_TB, factors[3])):
            torch.addcmul(gate, gate, gate, value=-1, out=factor).mul_(other)
        torch.addcmul(i, i * g, g, value=-1, out=factors[2])
        through_TB = torch.addcmul(o, o * tanh_TB, tanh_TB, value=-1)
        h_back, c_back = torch.zeros_like(h_B), torch.zeros_like(c_B)
        rows = zip(
            _kept(first_TB), grad_TB.unbind(), through_TB.unbind(), f.unbind(), h_grad_TB.unbind(), c_grad_TB.unbind(),
            strict=True,
        )  # fmt: skip
        for keep, grad, through, forget, h_grad, c_grad in reversed(list(rows)):
            h_back = h_back + h_grad
            c_back = (c_back + c_grad).addcmul_(h_back, through)
            gates = grad.view(-1, 4, n)
            gates[:, :3].mul_(c_back.unsqueeze(1))
            gates[:, 3].mul_(h_back)
            h_back, c_back = grad.mm(w), c_back * forget
            if keep is not None:
                h_back, c_back = h_back * keep, c_back * keep
        w_grad = grad_TB.flatten(0, 1).t().mm(_before(h_B, h_TB, first_TB).flatten(0, 1))
        return grad_TB, w_grad, h_back, c_back, None


class _GRU(torch.autograd.Function):
    """Cho et al. 2014, as torch's GRUCell: gates in the order reset, update, new."""

    @staticmethod
    def forward(ctx: Any, gates_TB: Tensor, w: Tensor, bias: Tensor, h_B: Tensor, first_TB: Tensor) -> Tensor:
        T, B, n = *first_TB.shape, w.shape[1]
        both = gates_TB[:, :, : 2 * n]
        active_TB, own_TB, h_TB = torch.empty_like(gates_TB), w.new_empty((T, B, n)), w.new_empty((T, B, n))
        torch.mul(both, 0.5, out=active_TB[:, :, : 2 * n])
        active_TB[:, :, 2 * n :] = gates_TB[:, :, 2 * n :]
        half = w.new_full((3 * n,), 0.5)
        half[2 * n :] = 1.0
        w_t, shift = (w * half.unsqueeze(1)).t(), bias * half
        h = h_B
        for keep, active, own, h_out in zip(_kept(first_TB), active_TB.unbind(), own_TB.unbind(), h_TB.unbind(), strict=True):
            if keep is not None:
                h = h * keep
            inner = torch.addmm(shift, h, w_t)
            gates, new = active[:, : 2 * n], active[:, 2 * n :]
            gates.add_(inner[:, : 2 * n])
            _tanh(gates)
            gates.mul_(0.5).add_(0.5)
            own.copy_(inner[:, 2 * n :])
            new.addcmul_(gates[:, :n], own)
            _tanh(new)
            torch.lerp(new, h, gates[:, n:], out=h_out)
            h = h_out
        ctx.save_for_backward(active_TB, own_TB, h_TB, w, h_B, first_TB)
        return h_TB

    @staticmethod
    def backward(ctx: Any, h_grad_TB: Tensor) -> tuple[Tensor | None, ...]:
        active_TB, own_TB, h_TB, w, h_B, first_TB = ctx.saved_tensors
        n = w.shape[1]
        reset, update, new = torch.split(active_TB, n, 2)
        before = _before(h_B, h_TB, first_TB)
        inner_TB = torch.empty_like(active_TB)  # of the products with w: first their factors, then their gradient
        factors = torch.split(inner_TB, n, 2)
        straight = (1 - update).mul_(torch.addcmul(torch.ones_like(new), new, new, value=-1))
        torch.mul(straight, reset, out=factors[2])
        torch.addcmul(reset, reset, reset, value=-1, out=factors[0]).mul_(straight).mul_(own_TB)
        torch.addcmul(update, update, update, value=-1, out=factors[1]).mul_(before - new)
        h_back = torch.zeros_like(h_B)
        rows = zip(_kept(first_TB), inner_TB.unbind(), update.unbind(), straight.unbind(), h_grad_TB.unbind(), strict=True)
        for keep, inner, z, new_grad, h_grad in reversed(list(rows)):
            h_back = h_back + h_grad
            inner.view(-1, 3, n).mul_(h_back.unsqueeze(1))
            new_grad.mul_(h_back)
            h_back = torch.addmm(h_back * z, inner, w)
            if keep is not None:
                h_back = h_back * keep
        grad_TB = torch.cat([inner_TB[:, :, : 2 * n], straight], dim=2)
        flat = inner_TB.flatten(0, 1)
        return grad_TB, flat.t().mm(before.flatten(0, 1)), flat.sum(0), h_back, None
