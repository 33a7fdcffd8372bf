"""MimeLite's client (Karimireddy et al. 2021, algorithm 1, lines 6 to 12).

The one idea: each step is the base optimizer's with the server's statistics, which come as the task's brief and stay as they
are; the gradient of all examples at the server's weights goes up beside the delta.
"""

from __future__ import annotations

from dataclasses import KW_ONLY, dataclass

import torch

from shoal.actors.workers.local_sgd import LocalSGD
from shoal.nets.evaluation import Arrays, batches, loss_for, mean_loss
from shoal.nets.flat import as_tensor
from shoal.nets.mime import BASES
from shoal.protocol.beside import joined
from shoal.protocol.errors import UserError
from shoal.protocol.layout import Bundle
from shoal.protocol.work import Task, Work

AT_ONCE = 100  # examples of the full-batch gradient that go through the module at once, unless batch_size is larger


@dataclass(eq=False, repr=False)
class MimeLiteSGD(LocalSGD):
    """y <- y - lr U(g(y), s), with the statistics s of the brief, float32 [trainable] each; None: zeros.

    base_optimizer: a name of nets.mime.BASES, made with beta1, beta2 and eps. A training task returns "gradient" beside its
    delta: the mean gradient over the client's examples at the server's weights, in training mode, float32 [trainable]. Batch
    normalisation's statistics are left as they were by it. clip_grad_norm bounds g(y).
    """

    _: KW_ONLY
    base_optimizer: str = "momentum"
    beta1: float = 0.9
    beta2: float = 0.99
    eps: float = 1e-3

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.sgd is None or self.sgd.momentum or self.sgd.weight_decay:
            raise UserError("MimeLite's clients step by base_optimizer alone: optimizer=sgd, momentum=0 and weight_decay=0")
        self.base = BASES[self.base_optimizer](self.beta1, self.beta2, self.eps)
        self.s = [torch.zeros_like(self.w) for _ in self.base.names]
        self.whole = torch.zeros_like(self.w)
        self.given: Bundle | None = None

    def run(self, weights: Bundle, client: int, task: Task, brief: Bundle | None = None) -> Work:
        for name, each in zip(self.base.names, self.s, strict=True):
            if brief is None:
                each.zero_()
            else:
                each.copy_(as_tensor(brief[name]))
        self.given = weights
        try:
            return super().run(weights, client, task)
        finally:
            self.given = None  # it is valid until this function returns

    def _train(self, data: Arrays, client: int, task: Task) -> dict[str, tuple[float, float]]:
        self._whole_gradient(data)
        assert self.given is not None
        self.flat.read(self.given)  # whatever the pass has done to buffers
        return super()._train(data, client, task)

    def _whole_gradient(self, data: Arrays) -> None:
        """Set `whole` to the gradient of the mean loss over all examples, by their weights if they have any."""
        loss_of, size, count = loss_for(data, self.loss), max(AT_ONCE, self.batch_size), 0.0
        self.whole.zero_()
        for xs, ys, *weight in batches(data, size, data.scale):
            self.flat.grad.zero_()
            mean_loss(loss_of(self.flat.module(xs), ys), ys, *weight).backward()  # type: ignore[no-untyped-call]
            many = float(weight[0].sum()) if weight else float(len(ys))
            self.whole.add_(self.flat.grad, alpha=many)
            count += many
        self.whole.div_(max(count, 1e-30))

    def _step(self, factor: float, t: int) -> None:
        if self.clip_grad_norm:
            self.flat.clip(self.clip_grad_norm)
        self.w.add_(self.base.move(self.flat.grad, *self.s), alpha=-self.lr * factor)

    def _delta(self, weights: Bundle) -> Bundle:
        return joined(super()._delta(weights), {"gradient": self.whole.cpu().numpy()})
