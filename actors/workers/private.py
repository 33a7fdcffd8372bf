"""A worker whose deltas are clipped, and noised if asked for, before they leave the client.

The one idea: the accountant needs to know how far one client can move a sum. A delta of at most `clip_norm` says so. Noise that
the client adds itself protects it from the server too (local differential privacy).
"""

from __future__ import annotations

from dataclasses import replace

from shoal.actors import Worker, work_of
from shoal.actors.workers.around import Around
from shoal.protocol.exact import VALUES
from shoal.protocol.layout import Bundle
from shoal.protocol.private import CLIP_NORM, UNCLIPPED, clipped, key_of, noised
from shoal.protocol.work import Task, Work


class Clipped(Around):
    """A worker around another: the delta of a client is scaled down to the L2 norm `clip_norm`, and weighs 1.

    A brief holds the norm of its version, CLIP_NORM, float64 [1]. The total UNCLIPPED goes along then: 1 if the delta stayed as
    it was, else 0, so that the totals of a sum count the unclipped clients (Andrew et al. 2021, algorithm 1).
    """

    def __init__(self, worker: Worker, clip_norm: float) -> None:
        super().__init__(worker)
        self.clip_norm = clip_norm

    def run(self, weights: Bundle, client: int, task: Task, brief: Bundle | None = None) -> Work:
        work = work_of(self.worker, weights, client, task, None)
        if work.bundle is None:
            return work
        most = self.clip_norm if brief is None else float(brief[CLIP_NORM][0])
        bundle, scaled = clipped(work.bundle, most)
        totals = work.totals if brief is None else {**work.totals, UNCLIPPED: (0.0 if scaled else 1.0, 1.0)}
        return replace(work, bundle=bundle, weight=1.0, totals=totals)


class LocallyPrivate(Clipped):
    """A worker around another: the clipped delta gets noise of standard deviation noise_multiplier * clip_norm in each of its
    first `trainable` float32 entries (None: all). Its other entries say that nothing changed, and no totals or samples go
    along.

    secret: 32 bytes, of which the noise is a function with the client and its delta: a task that is repeated with the same
    result gives the same bits, and so tells nothing more.
    """

    def __init__(
        self, worker: Worker, clip_norm: float, noise_multiplier: float, *, secret: bytes, trainable: int | None = None
    ) -> None:
        super().__init__(worker, clip_norm)
        self.stddev, self.secret, self.trainable = noise_multiplier * clip_norm, secret, trainable

    def run(self, weights: Bundle, client: int, task: Task, brief: Bundle | None = None) -> Work:
        work = super().run(weights, client, task, brief)
        if work.bundle is None:
            return Work(None, 1.0)
        delta = work.bundle.copy()
        vector = delta.vector()
        trained = vector.size if self.trainable is None else self.trainable
        vector[trained:] = 0
        for dtype in delta.layout.segments.keys() - {"f4"}:
            entries = delta.vector(dtype)
            entries[...] = weights.vector(dtype)[: entries.size] if dtype in VALUES else 0
        noised(vector[:trained], key_of(self.secret, "local", *task.draws(client), vector.tobytes()), self.stddev)
        return Work(delta, 1.0)
