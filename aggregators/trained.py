"""A network and its optimizer, of which an off-policy learner has one or several.

The one idea: with all trainable weights in one vector, the whole memory of the pair is a handful of flat arrays, which a
snapshot holds under the network's name.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Mapping, Sequence
from functools import partial

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from shoal.aggregators import State
from shoal.nets.flat import FlatModule
from shoal.protocol.errors import UserError
from shoal.protocol.layout import Bundle

OPTIMIZERS: Mapping[str, Callable[..., torch.optim.Optimizer]] = {
    "adam": partial(torch.optim.Adam, eps=1e-5),
    "rmsprop": partial(torch.optim.RMSprop, alpha=0.99),
}


class Trained:
    """A module on a device, trained by one optimizer.

    name: of the network, in snapshots; "" if the learner has no other. max_grad_norm: largest Euclidean norm of a gradient; a
    longer one is scaled down to it. optimizer: a name of OPTIMIZERS. eps: the optimizer's; None: that of OPTIMIZERS. fused: the
    optimizer's step is one operation, which rounds otherwise. beside: parameters that the optimizer moves along with the
    module's, such as a temperature, by gradients that the caller of `update` has set.
    Raises UserError for a module without trainable parameters, or with a trainable parameter that is not float32.
    """

    def __init__(
        self,
        name: str,
        module: nn.Module,
        device: torch.device | str,
        *,
        lr: float,
        max_grad_norm: float = math.inf,
        optimizer: str = "adam",
        eps: float | None = None,
        fused: bool = False,
        beside: Sequence[nn.Parameter] = (),
    ) -> None:
        self.start, self.max_grad_norm, self.fused = f"{name}/" if name else "", max_grad_norm, fused
        self.flat = FlatModule(module, device).trained()
        self.vector = nn.Parameter(self.flat.vector[: self.flat.trainable])
        self.vector.grad = self.flat.grad
        self.inputs = [each for each in self.module.parameters() if each.requires_grad]
        self.moved = {"optimizer": self.vector, **{f"beside/{i}": each for i, each in enumerate(beside)}}
        options = {**({} if eps is None else {"eps": eps}), **({"fused": True} if fused else {})}
        self.descent = OPTIMIZERS[optimizer](list(self.moved.values()), lr=lr, **options)

    @property
    def module(self) -> nn.Module:
        return self.flat.module

    def update(self, loss: Tensor) -> Tensor:
        """Make one gradient step, for which no gradient of another network's weights is computed. Returns the gradient's norm
        before the clip, still on the device."""
        self.flat.grad.zero_()
        loss.backward(inputs=self.inputs)  # type: ignore[no-untyped-call]
        return self.descended()

    def descended(self) -> Tensor:
        """Make one step down the gradient that is there. Returns its norm before the clip, still on the device."""
        norm = self.flat.grad.norm() if self.max_grad_norm == math.inf else self.flat.clip(self.max_grad_norm)
        self.descent.step()
        return norm

    def twin(self) -> FlatModule:
        """A copy of the network: a target network, whose gradients nobody computes."""
        return FlatModule(copy.deepcopy(self.module), self.flat.device)

    def moments(self) -> State:
        """The optimizer's arrays, for a snapshot."""
        return {
            f"{self.start}{part}/{key}": value.cpu().numpy().copy()
            for part, parameter in self.moved.items()
            for key, value in self.descent.state[parameter].items()
        }

    def state(self) -> State:
        """The network's and the optimizer's arrays, for a snapshot."""
        return {**self.moments(), f"{self.start}weights": kept(self.flat)}

    def load(self, state: State, weights: Bundle | None = None) -> None:
        """Go on from the arrays of `state`, or of `moments` and from weights."""
        if weights is None:
            restored(self.flat, f"{self.start}weights", state)
        else:
            self.flat.read(weights)
        for part, parameter in self.moved.items():
            start = f"{self.start}{part}/"
            self.descent.state[parameter] = {
                name.removeprefix(start): torch.tensor(value, device=self.flat.device if value.ndim or self.fused else "cpu")
                for name, value in state.items()
                if name.startswith(start)
            }


@torch.no_grad()
def follow(target: FlatModule, of: FlatModule, tau: float) -> None:
    """Move a target network towards a network: target + tau * (network - target). tau = 1 copies it. Buffers are copied."""
    if tau == 1.0:
        target.raw.copy_(of.raw)
        return
    target.vector[: of.trainable].lerp_(of.vector[: of.trainable], tau)
    target.vector[of.trainable :].copy_(of.vector[of.trainable :])


def kept(flat: FlatModule) -> npt.NDArray[np.uint8]:
    """A network's weights as one array for a snapshot, uint8."""
    return flat.bundle().data


def restored(flat: FlatModule, name: str, state: State) -> None:
    """Read a network's weights back. Raises UserError if they are another network's."""
    data = state.get(name)
    if data is None or data.nbytes != flat.layout.nbytes:
        raise UserError(f"the snapshot's {name!r} are of another network: resume with the settings of the run")
    flat.read(Bundle(flat.layout, data))
