"""The trial of one batch before a run begins: a mistake in a user's model, data or loss is told before anything was forked.

The one idea: the batch goes the way that it will go in an actor (forward, loss, backward) and at the learner (held-out data),
so that the mistake that would stop every actor is one line instead.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from shoal.envs.datasets import Examples
from shoal.nets.evaluation import (
    Evaluation,
    Loss,
    Metric,
    ignored_label,
    loss_for,
    mean_loss,
    over_classes,
    tallied,
    tensors,
    widened,
)
from shoal.nets.flat import FlatModule, told
from shoal.nets.models import Model, for_training
from shoal.protocol.draws import globally
from shoal.protocol.errors import UserError


def tried(
    model: Model,
    examples: Examples,
    loss: Loss,
    held_out: Examples | None = None,
    metrics: Mapping[str, Metric] | None = None,
    *,
    backward: bool = True,
) -> int | None:
    """Try a training step on a client's examples, and the evaluation of two held-out ones with all metrics.

    backward: False leaves out the backward pass, which on a machine with a GPU starts threads that a fork cannot copy.
    Returns the number of classes if the loss is one of torch's over classes, else None. Raises UserError, whose traceback ends
    in the user's own code if that raised.
    """
    flat = FlatModule(for_training(model)).trained()
    found = tensors(examples, "cpu")
    data = (found.inputs, *map(widened, found[1:]))
    x, y = data[:2]
    with globally(0, "try"), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # training gives them again
        whole = "" if x.is_floating_point() else "; whole numbers stay int64, x.astype('float32') makes them float32"
        with _blamed("model", f"x {told(x)}", whole):
            logits = flat.module(x)
        if not isinstance(logits, Tensor):
            raise UserError(f"model gave {type(logits).__name__} for x {told(x)}: expected one tensor")
        given = f"outputs {told(logits)} and y {told(y)}"
        with _blamed("loss", given, _remedy(loss, logits, y)):
            value = loss_for(data, loss)(logits, y)
        if not isinstance(value, Tensor):
            raise UserError(
                f"loss gave {type(value).__name__} for {given}: expected a tensor, the mean or one number an example"
            )
        mean = mean_loss(value, y, *data[2:])
        _refuse_plain_logits(loss, logits)
        _refuse_broadcast(loss, loss_for(data, loss), logits, y)
        if not mean.requires_grad:
            raise UserError(f"loss gave a number for {given} that does not depend on any trainable parameter: no gradient")
        if backward:
            with _blamed("the backward pass", given):
                mean.backward()  # type: ignore[no-untyped-call]
        if held_out is not None and len(held_out):
            with _blamed("model or loss", "held-out data"):
                tallied(flat.module, tensors(held_out[:2], "cpu"), loss, 2)
                if metrics:
                    Evaluation(model, held_out, loss, metrics=metrics)
    return logits.shape[1] if logits.ndim > 1 and not y.is_floating_point() and over_classes(loss) else None


def fails_alone(model: Model, examples: Examples, loss: Loss, *, backward: bool = True) -> bool:
    """True if a training step on a single example raises where one on two does not: BatchNorm1d needs two, and a model that
    squeezes its outputs gives a single one no axis of examples. backward: as in `tried`."""
    module, data = for_training(model), tuple(map(widened, tensors(examples[:2], "cpu")))
    with globally(0, "try"), torch.set_grad_enabled(backward), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # perhaps no client has such a batch
        alone = tuple(part[:1] for part in data)
        return len(data[0]) == 2 and _runs(module, data, loss) and not _runs(module, alone, loss)


def normalised_twice(model: Model, examples: Examples, loss: Loss) -> bool:
    """True if torch's cross entropy, which takes logits, is given probabilities: then a softmax at the model's end is followed
    by another, and the gradients are small. False if model or loss raises."""
    module, data = for_training(model), tuple(map(widened, tensors(examples[:8], "cpu")))
    seen = _Logits()
    with globally(0, "try"), torch.no_grad(), warnings.catch_warnings(), seen:
        warnings.simplefilter("ignore")
        try:
            loss_for(data, loss)(module(data[0]), data[1])
        except Exception:  # noqa: BLE001  model and loss are the user's code; the trial has told of what raises
            return False
    return bool(seen.found) and all(map(_are_probabilities, seen.found))


class _Logits(TorchFunctionMode):
    """Keeps what torch's cross entropy is given as logits while it is active."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[Tensor] = []

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if func is nn.functional.cross_entropy:
            self.found.append(args[0] if args else kwargs["input"])
        return func(*args, **kwargs)


def _are_probabilities(logits: Tensor) -> bool:
    """Return whether each example's numbers lie between 0 and 1 and add up to 1; a single number of each does not count."""
    if logits.ndim < 2 or logits.shape[1] < 2 or not len(logits):
        return False
    sums = logits.sum(1)
    return bool((logits >= 0).all()) and torch.allclose(sums, torch.ones_like(sums), atol=1e-3)


def _runs(module: nn.Module, data: tuple[Tensor, ...], loss: Loss) -> bool:
    """True if a training step runs, with its backward pass if gradients are enabled: cross entropy finds some shapes only
    there."""
    x, y = data[:2]
    try:
        mean = mean_loss(loss_for(data, loss)(module(x), y), y, *data[2:])
        if mean.requires_grad:
            mean.backward()  # type: ignore[no-untyped-call]
    except Exception:  # noqa: BLE001  model and loss are the user's code and may raise anything at all
        return False
    return True


def _remedy(loss: Loss, logits: Tensor, y: Tensor) -> str:
    """The end of an error of a loss over classes: what to do about these labels. "" for any other loss."""
    if over_classes(loss) is not True or logits.ndim < 2:
        return ""
    if y.is_floating_point():
        return "; cross entropy needs classes, y.astype('int64'), and for numbers there is loss=nn.functional.mse_loss"
    if y.shape == logits.shape:
        return "; one-hot labels are given as classes, y.argmax(1), or as probabilities, y.astype('float32')"
    if y.shape == (len(logits), 1):
        return "; labels are given as [n]: y.reshape(-1)"
    low, high, ignored = int(y.min()), int(y.max()), ignored_label(loss)
    if (y.ndim == 1 and high >= logits.shape[1]) or (low < 0 and low != ignored):
        return (
            f"; y holds {low} to {high}, and the model's {logits.shape[1]} outputs are the classes 0 to {logits.shape[1] - 1}"
        )
    return ""


def _refuse_plain_logits(loss: Loss, logits: Tensor) -> None:
    """Raises UserError if the loss takes log probabilities and the outputs are none: it would fall without end."""
    whole: Loss = loss
    while isinstance(whole, partial):
        whole = whole.func
    takes = whole is nn.functional.nll_loss or isinstance(whole, nn.NLLLoss)
    if takes and logits.ndim > 1 and not torch.allclose(sums := logits.exp().sum(1), torch.ones_like(sums), atol=1e-3):
        fix = "give loss=nn.functional.cross_entropy, or nn.LogSoftmax(1) at the model's end"
        raise UserError(f"the model's outputs are no log probabilities, which nll_loss needs: {fix}")


def _refuse_broadcast(loss: Loss, called: Loss, logits: Tensor, y: Tensor) -> None:
    """Raises UserError if the loss pairs each output with each label: outputs [n, 1] with y [n], or the other way round. Then
    the mean over single examples, which can pair nothing, is that of equal shapes. called: the loss as training calls it."""
    says = f"outputs {list(logits.shape)} against y {list(y.shape)}: the loss pairs each output with each label"
    fix = "nn.Flatten(0) at the model's end makes outputs [n]; y.reshape(-1, 1) makes labels [n, 1]"
    if logits.shape == (*y.shape, 1):
        slim = (logits.squeeze(-1), y)
    elif y.shape == (*logits.shape, 1):
        slim = (logits, y.squeeze(-1))
    else:
        if over_classes(loss) is False and logits.shape != y.shape:
            raise UserError(f"outputs {list(logits.shape)} against y {list(y.shape)}: this loss needs equal shapes")
        return
    try:
        whole, equal = called(logits, y).mean(), called(*slim).mean()
        alone = torch.stack([called(logits[i : i + 1], y[i : i + 1]).mean() for i in range(len(y))]).mean()
    except Exception:  # noqa: BLE001  the loss takes the shapes as they are, and no others
        return
    if torch.allclose(alone, equal, equal_nan=True) and not torch.allclose(alone, whole, equal_nan=True):
        raise UserError(f"{says}; {fix}")


@contextmanager
def _blamed(part: str, given: str, fix: str = "") -> Iterator[None]:
    """An exception becomes a UserError that names the part and what it was given. fix: what to try, for the end of the line."""
    try:
        yield
    except UserError:
        raise
    except Exception as raised:  # noqa: BLE001  the user's code may raise anything at all
        what = next((line for line in str(raised).splitlines() if line.strip()), "")
        raise UserError(f"{part} raised {type(raised).__name__} for {given}: {what}{fix}").with_traceback(
            raised.__traceback__
        ) from None
