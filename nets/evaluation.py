"""Evaluation of weights on examples: the same sums on the coordinator's held-out data and on a client's own.

The one idea: a `Tally` collects losses and hits of each batch without waiting for the device. Its sums add up over batches
and clients, and only a total divided by its count is a mean. A metric that is not a mean (f1, AUC) is a function of a whole
evaluation set; over clients it is averaged by their numbers of examples.
"""

from __future__ import annotations

import inspect
import math
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from types import FunctionType
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from shoal.envs.datasets import Examples
from shoal.nets.flat import FlatModule, as_tensor
from shoal.nets.models import Model, seeded
from shoal.protocol.draws import globally
from shoal.protocol.errors import UserError
from shoal.protocol.layout import Bundle
from shoal.protocol.work import Metrics, Totals

Loss: TypeAlias = Callable[[Tensor, Tensor], Tensor]
"""A loss: (logits [B, ...], y [B, ...]) -> the mean over the batch, a scalar; or one loss per example, [B], whose mean is taken
(weighted, if the examples have weights). torch.nn.functional.cross_entropy can be either."""

Metric: TypeAlias = Callable[[Tensor, Tensor], "float | Tensor"]
"""A metric: (logits [n, ...], y [n, ...]) of a whole evaluation set, on the CPU -> one number; nan if it is not defined."""

OVER_CLASSES = ("cross_entropy", "nll_loss", "multi_margin_loss", "CrossEntropyLoss", "NLLLoss", "MultiMarginLoss")

KEPT = 1 << 16  # logits that a Tally keeps before it takes their guesses
WIDE = (torch.float32, torch.int64)  # dtypes that a model gets as they are
METRIC_NAME = re.compile(r"[A-Za-z0-9_/.-]{1,64}")
TAKEN = frozenset(
    {"accuracy", "change_bytes", "dense_bytes", "down_bytes", "dropped_residuals", "episodes", "examples", "held_out_examples"}
    | {"held_out_loss", "lag_max", "lag_mean", "lag_min", "loss", "norm_bound", "sent_bytes", "steps", "train_accuracy"}
    | {
        "return_mean",
        "length_mean",
        "return_age",
        "actors",
        "contributions",
        "lag",
        "seconds",
        "untold",
        "up_bytes",
        "update_norm",
        "version",
        "weights_bytes",
    }
)


def mean_loss(loss: Tensor, y: Tensor, weight: Tensor | None = None) -> Tensor:
    """The scalar to minimise. Without weights: a scalar loss itself, or the mean of losses [B]. With weights, of losses [B]:
    sum(weight * loss) / sum(weight), 0 if all weights are 0. Raises UserError for a loss of another shape."""
    if loss.ndim == 0 and weight is None:
        return loss
    if loss.shape != (len(y),):
        wanted = f"one number an example, [{len(y)}]" + (
            ", as they have weights" if weight is not None else ", or their mean, []"
        )
        raise UserError(f"loss gave shape {list(loss.shape)} for y {list(y.shape)}: expected {wanted}")
    if weight is None:
        return loss.mean()
    return (loss * weight).sum() / weight.sum().clamp(min=torch.finfo(torch.float32).tiny)


def loss_for(data: Sequence[Tensor], loss: Loss) -> Loss:
    """The loss for `data`. If the data has weights, a function that takes `reduction` (as torch.nn.functional's do) is told to
    return one loss per example."""
    if len(data) > 2 and isinstance(loss, FunctionType) and "reduction" in inspect.signature(loss).parameters:
        return partial(loss, reduction="none")
    return loss


def ignored_label(loss: Loss) -> int | None:
    """The label that a loss over classes leaves out: its `ignore_index`, or -100. None if `loss` is one of torch's that are not
    over classes. A loss of the user's own may be over classes."""
    options: dict[str, Any] = {}
    while isinstance(loss, partial):
        options, loss = {**loss.keywords, **options}, loss.func
    if over_classes(loss) is False:
        return None
    return int(options.get("ignore_index", getattr(loss, "ignore_index", -100)))


def reduction_of(loss: Loss) -> str:
    """The `reduction` of one of torch's losses: "mean" if none is set."""
    options: dict[str, Any] = {}
    while isinstance(loss, partial):
        options, loss = {**loss.keywords, **options}, loss.func
    return str(options.get("reduction", getattr(loss, "reduction", "mean")))


def over_classes(loss: Loss) -> bool | None:
    """Return whether a loss of torch's is over classes; None for a loss of the user's own, which may be."""
    while isinstance(loss, partial):
        loss = loss.func
    kind = loss if hasattr(loss, "__name__") else type(loss)
    return kind.__name__ in OVER_CLASSES if str(kind.__module__).startswith("torch.") else None


class Tally:
    """The losses and hits of many batches. The logits of training's batches are kept until they are KEPT numbers, because one
    argmax over all of them costs less than an argmax for each batch.

    loss: the loss that the module is trained with. Labels that it ignores are no hits and no misses, and if it is not over
    classes there is no accuracy. apart: guesses are taken of each batch, because a module that is evaluated may write its next
    logits where the last ones are.
    """

    def __init__(self, loss: Loss, apart: bool = False) -> None:
        self.ignored, self._sure, self.apart = ignored_label(loss), over_classes(loss), apart
        self.of_labels = bool(self._sure) and reduction_of(loss) == "mean"  # the loss is a mean over labels that count
        self.begin()

    def begin(self) -> Tally:
        """Forget all batches. Returns self."""
        self.classes = self.kept = 0
        self.losses: list[Tensor] = []
        self.sizes: list[float | Tensor] = []
        self.logits: list[Tensor] = []  # whose guesses are not taken yet: kept numbers, all of one shape but for the batch
        self.guesses: list[Tensor] = []
        self.truths: list[Tensor] = []
        return self

    def add(self, logits: Tensor, y: Tensor, loss: Tensor, weight: Tensor | None = None) -> None:
        """Add a batch. loss: the mean over the batch, weighted by `weight` [B] if there is one."""
        self.losses.append(loss.detach())
        self.sizes.append(y.shape[0] if weight is None else weight.sum())
        self.weighted = weight is not None
        if self.scores(logits, y):
            self.classes = logits.shape[1]
            self.truths.append(y)
            if self.logits and self.logits[0].shape[1:] != logits.shape[1:]:
                self._guess()
            self.logits.append(logits.detach())
            self.kept += logits.numel()
            if self.kept > KEPT or self.apart:
                self._guess()

    def _guess(self) -> None:
        """Take the guesses of the logits that are kept."""
        self.guesses.append((torch.cat(self.logits) if len(self.logits) > 1 else self.logits[0]).argmax(1))
        self.logits, self.kept = [], 0

    def scores(self, logits: Tensor, y: Tensor) -> bool:
        """Return whether the logits are scores of classes, on axis 1, as cross entropy has them. A loss of the user's own over
        more axes may have the classes elsewhere."""
        if self.ignored is None or y.is_floating_point() or not (self._sure or logits.ndim == 2):
            return False
        if logits.ndim == 2:
            return y.ndim == 1 and logits.shape[1] > 1 and logits.shape[0] == y.shape[0]
        return logits.ndim == y.ndim + 1 and logits.shape[1] > 1 and (logits.shape[0], *logits.shape[2:]) == y.shape

    def totals(self) -> dict[str, tuple[float, float]]:
        """The totals {"loss": (sum, count), "accuracy": (hits, labels)}. The count of loss is the number of examples, or the
        sum of their weights; labels that the loss ignores are no part of its examples. There is no accuracy if y holds no
        classes, or one that the module does not know. A loss that is not finite shows in its sum."""
        apart = self.losses[0].device.type == "cpu"  # where a number costs less than a call of torch
        losses: list[float] = [loss.item() for loss in self.losses] if apart else torch.stack(self.losses).tolist()
        sizes = [float(size) for size in self.sizes]
        totals = {"loss": (sum(map(float.__mul__, losses, sizes)), sum(sizes))}
        if self.logits:
            self._guess()
        if self.guesses:
            truths, guesses = (
                torch.cat([one.flatten() for one in parts]).cpu().numpy() for parts in (self.truths, self.guesses)
            )
            if self.ignored is not None and self.ignored >= 0:
                truths = np.where(truths == self.ignored, -1, truths)
            labels = np.count_nonzero(truths >= 0)  # no guess is below 0
            if labels < truths.size and self.of_labels and not self.weighted:
                totals["loss"] = _over_labels(losses, self.truths, self.ignored)
            if labels and not np.count_nonzero(truths >= self.classes):
                totals["accuracy"] = (float(np.count_nonzero(guesses == truths)), float(labels))
        return totals

    def hits(self, logits: Tensor, y: Tensor) -> tuple[Tensor, Tensor] | None:
        """(hits [B], labels [B]) of each example of a batch; None where the batch has no accuracy."""
        if not self.scores(logits, y) or not y.numel():
            return None
        y = y if self.ignored is None or self.ignored < 0 else y.where(y != self.ignored, -1)
        if int(y.max()) >= logits.shape[1]:
            return None
        found = logits.argmax(1) == y  # no guess is below 0
        return found.reshape(len(y), -1).sum(1), (y >= 0).reshape(len(y), -1).sum(1)


class Arrays(tuple[Tensor, ...]):
    """The arrays of examples: x, y and, if the examples have weights, weight. scale: a model gets x / scale. kind: a note of a
    worker that trains clients together."""

    scale: float = 1.0
    kind: object = None

    @property
    def inputs(self) -> Tensor:
        """Return all x as a model gets them."""
        return widened(self[0], self.scale)


def batches(arrays: Sequence[Tensor], size: int, scale: float = 1.0) -> Iterator[tuple[Tensor, ...]]:
    """The examples in order, `size` at a time, the last part perhaps smaller, as a model gets them."""
    parts = zip(*(torch.split(array, size) for array in arrays), strict=True)
    if scale == 1 and all(array.dtype in WIDE for array in arrays):
        return parts
    return ((widened(x, scale), *map(widened, others)) for x, *others in parts)


def widened(array: Tensor, scale: float = 1.0) -> Tensor:
    """The array as a model gets it: int64 for whole numbers, float32 for others; itself if it is that already. With a scale
    other than 1: array / scale, float32, with the same bits on any device."""
    if scale != 1:  # by a number, a GPU would multiply by the reciprocal
        return array.to(torch.float32) / torch.full((), scale, dtype=torch.float32, device=array.device)
    whole = not array.is_floating_point() and array.dtype != torch.bool
    return array.to(torch.int64 if whole else torch.float32)


def loss_apiece(loss: Loss, logits: Tensor, y: Tensor) -> Tensor:
    """The loss of each example of a batch, [B]: by one call where the loss gives one number an example, else by a call for each
    example. logits [B, ...], y [B, ...]."""
    whole = loss_for((logits, y, y), loss)(logits, y)
    if whole.shape == (len(y),):
        return whole
    return torch.stack([mean_loss(loss(logits[i : i + 1], y[i : i + 1]), y[i : i + 1]) for i in range(len(y))])


@contextmanager
def evaluating(module: nn.Module) -> Iterator[None]:
    """Evaluation mode inside. After it each submodule is in the mode in which it was before."""
    before = [(part, part.training) for part in module.modules()]
    module.eval()
    try:
        yield
    finally:
        module.train(before[0][1])  # a module may override `train`, to split merged weights again, say
        for part, training in before:
            part.training = training


@torch.no_grad()
def tallied(
    module: nn.Module, data: Sequence[Tensor], loss: Loss, batch_size: int, metrics: Mapping[str, Metric] | None = None
) -> Totals:
    """The totals of a module on `data`, in evaluation mode, which ends with the call. data: x [n, ...], y [n, ...], perhaps
    weight [n], on the module's device.

    Each metric adds (value * n, n), or nothing if its value is nan.
    """
    loss, tally, kept = loss_for(data, loss), Tally(loss, apart=True), list[Tensor]()
    with evaluating(module):
        for xs, ys, *weight in batches(data, batch_size, getattr(data, "scale", 1.0)):
            logits = module(xs)
            tally.add(logits, ys, mean_loss(loss(logits, ys), ys, *weight), *weight)
            if metrics:
                kept.append(logits.cpu())
    totals = tally.totals()
    if metrics:
        n = float(len(data[1]))
        values = measured(metrics, torch.cat(kept), widened(data[1].cpu()))
        totals |= {name: (value * n, n) for name, value in values.items() if not math.isnan(value)}
    return totals


def measured(metrics: Mapping[str, Metric], logits: Tensor, y: Tensor) -> dict[str, float]:
    """The number of each metric, by name. Raises UserError for a metric that raises or does not give one number."""
    found = {}
    given = f"logits {list(logits.shape)} and y {list(y.shape)}"
    for name, metric in metrics.items():
        try:
            value = metric(logits, y)
        except Exception as raised:  # a metric is the user's code and may raise anything at all
            raise UserError(f"metric {name} raised {raised!r} for {given}: math.nan says that it is not defined") from raised
        try:
            found[name] = float(value)
        except (TypeError, ValueError, RuntimeError):
            shape = f"shape {list(value.shape)}" if hasattr(value, "shape") else type(value).__name__
            raise UserError(f"metric {name} gave {shape} for {given}: expected one number for all of them") from None
    return found


def named(metrics: Mapping[str, Metric] | None) -> Mapping[str, Metric]:
    """Returns the metrics, an empty map for None. Raises UserError for a name that cannot be shown or has a meaning already."""
    for name in metrics or {}:
        if not isinstance(name, str) or not METRIC_NAME.fullmatch(name) or name in TAKEN or name.startswith("eval/"):
            taken = f"not one of {', '.join(sorted(TAKEN))}, not eval/..."
            raise UserError(f"metric {name!r}: expected a name of letters, digits and _ / . - (1 to 64 of them), {taken}")
    return metrics or {}


class Evaluation:
    """A function: weights -> {"loss", "accuracy", "examples", each metric} on examples that stay on the device.

    batch_size: examples per forward pass. When this object is made, the metrics are tried on all y, with the logits of the
    first batch repeated: UserError if a metric raises or does not give one number.
    """

    def __init__(
        self,
        model: Model,
        examples: Examples,
        loss: Loss,
        batch_size: int = 1000,
        device: torch.device | str = "cpu",
        metrics: Mapping[str, Metric] | None = None,
    ) -> None:
        self.flat = FlatModule(seeded(model, 0), device)  # each call brings the weights
        self.loss, self.batch_size, self.metrics = loss, batch_size, named(metrics)
        self.data = tensors(examples, device)
        if metrics:
            with evaluating(self.flat.module), torch.no_grad():
                logits, y = (
                    self.flat.module(widened(self.data[0][:batch_size], self.data.scale)).cpu(),
                    widened(self.data[1].cpu()),
                )
            measured(metrics, logits[torch.arange(len(y)) % len(logits)], y)

    def __call__(self, weights: Bundle) -> Metrics:
        self.flat.read(weights)
        with globally(0, "evaluate"):  # for a module that draws when it is evaluated
            totals = tallied(self.flat.module, self.data, self.loss, self.batch_size, self.metrics)
        means = {name: total / count for name, (total, count) in totals.items() if count}
        return {**means, "examples": float(len(self.data[1]))}

    @torch.no_grad()
    def apiece(self, weights: Bundle) -> dict[str, npt.NDArray[np.float64]]:
        """{"loss", "accuracy"} of each example, [n], in their order. The mean of each array is what a call gives: an example
        counts by its weight in the loss, and by its number of labels in the accuracy."""
        self.flat.read(weights)
        tally, losses, hits = Tally(self.loss, apart=True), list[Tensor](), list[tuple[Tensor, Tensor] | None]()
        with globally(0, "evaluate"), evaluating(self.flat.module):
            for xs, ys, *_ in batches(self.data, self.batch_size):
                logits = self.flat.module(xs)
                losses.append(loss_apiece(self.loss, logits, ys))
                hits.append(tally.hits(logits, ys))
        found = {"loss": _doubles(losses)}
        if len(self.data) > 2:
            weight = _doubles([self.data[2]])
            found["loss"] = found["loss"] * weight / weight.mean()
        if there := [one for one in hits if one is not None]:
            right, labels = _doubles([one for one, _ in there]), _doubles([one for _, one in there])
            if len(there) == len(hits) and labels.any():
                found["accuracy"] = right / labels.mean()
        return found


def _doubles(parts: Sequence[Tensor]) -> npt.NDArray[np.float64]:
    return torch.cat(list(parts)).cpu().numpy().astype(np.float64)


def tensors(examples: Examples, device: torch.device | str) -> Arrays:
    """The arrays of the examples on `device`, as they are kept."""
    arrays = (examples.x, examples.y) if examples.weight is None else (examples.x, examples.y, examples.weight)
    found = Arrays(as_tensor(array).to(device) for array in arrays)
    found.scale = examples.scale
    return found


def _over_labels(losses: Sequence[float], labels: Sequence[Tensor], ignored: int | None) -> tuple[float, float]:
    """Return sum and count of batches' mean losses over the labels that are not ignored. The count is in examples: labels
    divided by those of an example. The mean over no label is NaN, and left out."""
    sizes = [float(y.ne(-100 if ignored is None else ignored).sum()) * (len(y) / max(1, y.numel())) for y in labels]
    return sum(loss * size for loss, size in zip(losses, sizes, strict=True) if size), sum(sizes)
