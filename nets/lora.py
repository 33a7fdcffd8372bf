"""LoRA adapters: small trained matrices beside frozen ones (Hu et al. 2021), so that clients send little of a large model.

The one idea: frozen parameters go to an actor once and never come back, so freezing all but the adapters is all that it takes.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from shoal.protocol.errors import UserError


class LoRA(nn.Module):
    """A frozen linear layer W and its adapter: W x + (alpha / rank) B A x, with A [rank, inputs] and B [outputs, rank].

    B starts at 0, so the adapted layer starts as the layer. dropout: share of the adapter's inputs that is dropped in training.
    """

    def __init__(self, linear: nn.Linear, rank: int, alpha: float, dropout: float = 0.0) -> None:
        super().__init__()
        self.linear, self.scale = linear, alpha / rank
        self.dropout: nn.Module = nn.Dropout(dropout) if dropout else nn.Identity()
        self.a = nn.Parameter(torch.empty(rank, linear.in_features))
        self.b = nn.Parameter(torch.zeros(linear.out_features, rank))
        nn.init.kaiming_uniform_(self.a, a=math.sqrt(5))

    def forward(self, x: Tensor) -> Tensor:
        adapted: Tensor = nn.functional.linear(nn.functional.linear(self.dropout(x), self.a), self.b)
        frozen: Tensor = self.linear(x)
        return frozen + self.scale * adapted


def adapted(
    module: nn.Module,
    rank: int = 8,
    alpha: float = 16.0,
    *,
    targets: Sequence[str] = (),
    trained: Sequence[str] = (),
    dropout: float = 0.0,
) -> nn.Module:
    """The module with an adapter on each linear layer whose name ends with one of `targets`, and everything else frozen.

    targets: ends of dotted names, as in ("query", "value"); none: every linear layer that `trained` does not hold. trained:
    beginnings of names of parts that are trained whole, as a new classifier. Raises UserError if nothing has such a name.
    """
    if rank < 1:
        raise UserError(f"rank={rank}: an adapter has a rank from 1")
    whole = {name for name, _ in module.named_modules() if any(name == part or name.startswith(f"{part}.") for part in trained)}
    found = [
        (name, part)
        for name, part in module.named_modules()
        if isinstance(part, nn.Linear) and name not in whole and (not targets or name.endswith(tuple(targets)))
    ]
    if not found:
        linear = [name for name, part in module.named_modules() if isinstance(part, nn.Linear)][:8]
        raise UserError(
            f"targets={','.join(targets)}: no linear layer has such a name; there are {', '.join(linear) or 'none'}"
        )
    if missing := [part for part in trained if part not in whole]:
        raise UserError(f"trained={missing[0]}: the model has no part of that name")
    for name, parameter in module.named_parameters():
        parameter.requires_grad_(any(name.startswith(f"{part}.") for part in trained))
    for name, part in found:
        above, _, own = name.rpartition(".")
        setattr(module.get_submodule(above), own, LoRA(part, rank, alpha, dropout))
    return module


class Logits(nn.Module):
    """A Hugging Face model as a function of token numbers alone: int64 [B, T] -> its output's `logits`.

    pad: number of the token that fills up short texts, which is not attended to; -1: none.
    """

    def __init__(self, model: Any, pad: int = -1) -> None:
        super().__init__()
        self.model, self.pad = model, pad

    def forward(self, tokens: Tensor) -> Tensor:
        logits: Tensor = self.model(input_ids=tokens, attention_mask=(tokens != self.pad).long()).logits
        return logits
