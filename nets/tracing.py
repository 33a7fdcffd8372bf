"""A training step traced once into a list of torch's own operations, which are then called without its autograd and modules.

The one idea: of a step of a small model, most is the cost of deciding what to call. `make_fx` writes down what was called,
forward and backward, and `vmap` makes of it the step of several models at once.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from functools import partial
from types import FunctionType
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn

from shoal.nets.evaluation import Loss, over_classes

Step: TypeAlias = Callable[..., Sequence[Tensor]]
"""(parameters..., other tensors of the module..., x, y, share) -> (gradients..., loss, logits). Of several clients, all but the
other tensors have one axis more, of the clients. share: weight of each example in the mean, [B], in all 1 or 0."""

DRAWING = (nn.modules.dropout._DropoutNd, nn.RReLU)
STATISTICS = (nn.modules.batchnorm._NormBase,)
RECURRENT = (nn.RNNBase, nn.RNNCellBase)


class UnfitError(ValueError):
    """A step cannot be traced; the message says why, as the end of a sentence."""


def amiss(module: nn.Module) -> str:
    """Return why the steps of a module cannot be made together with those of others, as far as its parts show it; "" if they
    show nothing."""
    for name, part in module.named_modules():
        where = f"the model's part {name or 'as a whole'} ({type(part).__name__})"
        if isinstance(part, DRAWING) and part.training and getattr(part, "p", 1.0) > 0:
            return f"{where} draws random numbers, in an order of each client's own"
        if isinstance(part, STATISTICS) and part.training:
            return f"{where} looks at all examples of a batch"
        if isinstance(part, RECURRENT):
            return f"{where} is recurrent"
    return ""


def apiece(loss: Loss) -> Callable[[Tensor, Tensor], Tensor] | None:
    """Return the function (logits [B, ...], y [B, ...]) -> losses [B, ...] of which the loss is the plain mean; None if none is
    known. A loss of the user's own is taken for one that gives [B] itself; whether it does shows when it is called."""
    options: dict[str, Any] = {}
    inner = loss
    while isinstance(inner, partial):
        if inner.args:
            return None
        options, inner = {**inner.keywords, **options}, inner.func
    function = isinstance(inner, FunctionType)
    if not str(inner.__module__ if function else type(inner).__module__).startswith("torch."):
        return loss
    given = options if function else vars(inner)
    if given.get("reduction", "mean") != "mean" or given.get("reduce") is not None or given.get("size_average") is not None:
        return None
    if over_classes(inner) and (given.get("weight") is not None or getattr(inner, "weight", None) is not None):
        return None
    alone: Any = inner
    if function:
        if inner.__name__ == "cross_entropy" and not options.keys() - {"ignore_index"}:
            return _cross_entropy
        return partial(alone, **options, reduction="none")
    if type(inner) is nn.CrossEntropyLoss and not inner.label_smoothing:
        return _cross_entropy
    if not hasattr(inner, "reduction"):
        return None
    alone = copy.copy(inner)
    alone.reduction = "none"
    return partial(alone)


def _cross_entropy(logits: Tensor, y: Tensor) -> Tensor:
    """Cross entropy of whole classes, in fewer operations than torch's own has under `vmap`."""
    if y.is_floating_point():
        return torch.nn.functional.cross_entropy(logits, y, reduction="none")
    return -torch.log_softmax(logits, 1).gather(1, y.unsqueeze(1)).squeeze(1)


def step_together(
    module: nn.Module, names: Sequence[str], still: Sequence[str], each: Callable[[Tensor, Tensor], Tensor], *given: Tensor
) -> Step:
    """The step of several clients, traced on `given`. names: the trained parameters. still: the module's other tensors, which
    all clients share. each: the losses of a batch's examples. Raises UnfitError if torch cannot make it."""
    from torch.func import functional_call, grad_and_value, vmap
    from torch.fx.experimental.proxy_tensor import make_fx

    many, others = len(names), len(still)

    def step(*tensors: Tensor) -> tuple[Tensor, ...]:
        trained, rest, (x, y, share) = tensors[:many], tensors[many : many + others], tensors[many + others :]

        def loss_of(trained: tuple[Tensor, ...]) -> tuple[Tensor, Tensor]:
            parts = {**dict(zip(names, trained, strict=True)), **dict(zip(still, rest, strict=True))}
            logits = functional_call(module, parts, (x,))
            losses = each(logits, y)
            if not losses.ndim or len(losses) != len(y):
                raise UnfitError("its loss is one number a batch, which may be no mean over examples")
            if losses.ndim > 1:
                losses = losses.reshape(len(y), -1).mean(1)
            return (losses * share).sum(), logits

        grads, (loss, logits) = grad_and_value(loss_of, has_aux=True)(trained)
        return (*grads, loss, logits)

    axes = (0,) * many + (None,) * others + (0, 0, 0)
    try:
        graph = make_fx(vmap(step, in_dims=axes))(*given)
    except UnfitError:
        raise
    except Exception as refused:
        first = str(refused).strip().partition("\n")[0][:200]
        raise UnfitError(f"torch cannot make its step for several clients ({type(refused).__name__}: {first})") from refused
    return cleaned(graph)


def cleaned(graph: torch.fx.GraphModule) -> Step:
    """The traced step without operations that give what they get, and without those whose result nobody uses."""
    for node in list(graph.graph.nodes):
        if node.op == "call_function":
            if torch.Tag.nondeterministic_seeded in getattr(node.target, "tags", ()):
                raise UnfitError(f"it draws random numbers ({node.target})")
            if (its := _given_back(node)) is not None:
                node.replace_all_uses_with(its)
    graph.graph.eliminate_dead_code()
    graph.recompile()
    made: Step = graph.forward
    return made


def _given_back(node: torch.fx.Node) -> torch.fx.Node | None:
    """Return the node whose tensor this node gives back as it is; None if it makes another."""
    aten, its = torch.ops.aten, node.args[0] if node.args else None
    if not isinstance(its, torch.fx.Node):
        return None
    if node.target in (aten.detach.default, aten.alias.default):
        return its
    shaping = (aten.view.default, aten.expand.default, aten._unsafe_view.default)
    before, after = _shape(its), _shape(node)
    known = before is not None and after is not None
    if known and node.target in shaping and before == after:
        return its
    if known and before and after and node.target is aten.mul.Scalar and node.args[1] == 1 and before[::2] == after[::2]:
        return its
    if node.target in (aten.transpose.int, aten.t.default) and its.target is node.target and its.args[1:] == node.args[1:]:
        return its.args[0] if isinstance(its.args[0], torch.fx.Node) else None
    return None


def _shape(node: torch.fx.Node) -> tuple[Any, ...] | None:
    """Return the shape, strides and dtype of the tensor that a node gave when it was traced; None if that is not known."""
    meta = node.meta.get("tensor_meta")
    return None if meta is None else (tuple(meta.shape), tuple(meta.stride), meta.dtype)
