"""Batch norm in federated learning: two ways to have none that clients' data pull apart.

The one idea: a batch norm's running statistics are of one client's batches, and their mean over clients is of no client's data.
What becomes of them is a choice, made where the model is made.
"""

from __future__ import annotations

from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from shoal.protocol.errors import UserError


def grouped(module: nn.Module, groups: int = 8) -> nn.Module:
    """The module with a GroupNorm, which has no running statistics, in place of each batch norm (Hsieh et al. 2020). groups:
    the most groups of a layer; it has fewer if they do not divide its channels. New weights are 1 and 0."""
    if groups < 1:
        raise UserError(f"groups={groups}: must be a whole number from 1")
    for name, part in list(module.named_modules()):
        if isinstance(part, _BatchNorm):
            many = next(each for each in range(min(groups, part.num_features), 0, -1) if part.num_features % each == 0)
            made = nn.GroupNorm(many, part.num_features, part.eps, part.affine)
            if not name:
                return made
            above, _, own = name.rpartition(".")
            setattr(module.get_submodule(above), own, made)
    return module


def frozen(module: nn.Module) -> nn.Module:
    """The module with each batch norm in evaluation mode and its parameters frozen: it normalises by the statistics that it
    came with, those of a pretrained model. Shoal trains such a layer in evaluation mode."""
    for part in module.modules():
        if isinstance(part, _BatchNorm):
            part.eval()
            for parameter in part.parameters():
                parameter.requires_grad_(False)
    return module
