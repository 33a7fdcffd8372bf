"""A worker whose arrays are sent in fewer bytes, with error feedback if asked for.

The one idea: the part of a delta that is not sent this time is sent another time. A client's residual, the vector it meant to
send minus the vector it sent, is added to its next delta (Seide et al. 2014; Karimireddy et al. 2019, algorithm 2).
"""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import replace

import numpy as np

from shoal.actors import Worker, work_of
from shoal.actors.workers.around import Around
from shoal.protocol import draws
from shoal.protocol.compress import Codec, Packed
from shoal.protocol.errors import UserError
from shoal.protocol.layout import Bundle
from shoal.protocol.rounding import Vector
from shoal.protocol.work import Task, Totals, Work


class Compressed(Around):
    """A worker around another, whose Work it gives with a packed bundle. The other end is
    aggregators.around.compressed.Decompressed.

    Totals: `sent_bytes` and `dense_bytes`, the size of a contribution packed and unpacked. A delta that holds NaN or an
    infinity is a ProtocolError.

    feedback: True needs a codec that contracts; else UserError. A client's residual stays with the actor that played the
    client: another actor that plays the client has a residual of its own. Over all actors nothing is lost. But the time when
    a part is sent depends on which actor plays which client, so only a run of one actor repeats itself bit for bit. A part
    that was sent but not folded in (a refused contribution, an actor that died) is not sent again.
    kept_bytes: most bytes of residuals that are kept. The residual unused for longest is dropped first; the total
    `dropped_residuals` counts the dropped ones.
    """

    def __init__(self, worker: Worker, codec: Codec, feedback: bool = False, *, seed: int = 0, kept_bytes: int = 2**28) -> None:
        if feedback and not codec.contracts:
            raise UserError(f"feedback=True: {codec} does not contract, so residuals would grow; use it without feedback")
        super().__init__(worker)
        self.codec, self.seed = codec, seed
        self.residuals = Residuals(kept_bytes) if feedback else None
        self.packed: Packed | None = None

    def run(self, weights: Bundle, client: int, task: Task, brief: Bundle | None = None) -> Work:
        work = work_of(self.worker, weights, client, task, brief)
        if work.bundle is None:
            return work
        packed = self._packed_for(work.bundle)
        rng = np.random.Generator(np.random.Philox(draws.key(self.seed, "compress", *task.draws(client))))
        more: Totals = {}
        if self.residuals is None:
            sent = packed.pack(work.bundle, rng)
        else:
            sent, more = _corrected(packed, self.residuals, work.bundle, client, rng)
        of_bytes = {"sent_bytes": (float(sent.data.nbytes), 1.0), "dense_bytes": (float(work.bundle.data.nbytes), 1.0)}
        return replace(work, bundle=sent, totals={**work.totals, **of_bytes, **more})

    def _packed_for(self, bundle: Bundle) -> Packed:
        if self.packed is None or self.packed.dense.digest != bundle.layout.digest:
            self.packed = Packed(self.codec, bundle.layout)
        return self.packed


def _corrected(
    packed: Packed, residuals: Residuals, bundle: Bundle, client: int, rng: np.random.Generator
) -> tuple[Bundle, Totals]:
    """The packed C(p) of p = delta + residual, and the totals. The new residual is p - C(p)."""
    meant, told = bundle.copy(), Bundle.zeros(packed.dense)
    p = meant.vector()
    if (residual := residuals.of(client)) is not None:
        p[: residual.size] += residual  # it may lack frozen parameters
    sent = packed.pack(meant, rng)
    packed.unpack(sent, told)
    return sent, {"dropped_residuals": (float(residuals.keep(client, p - told.vector())), 1.0)}


class Residuals:
    """The residuals of clients, up to a number of bytes."""

    def __init__(self, kept_bytes: int) -> None:
        self.kept_bytes = self.free = kept_bytes
        self.held: OrderedDict[int, Vector] = OrderedDict()

    def of(self, client: int) -> Vector | None:
        return self.held.get(client)

    def keep(self, client: int, residual: Vector) -> int:
        """Keep a residual in place of the client's last one. Returns the number of other residuals dropped."""
        if residual.nbytes > self.kept_bytes:
            raise UserError(f"kept_bytes={self.kept_bytes}: one residual has {residual.nbytes} bytes; must be at least that")
        if (last := self.held.pop(client, None)) is not None:
            self.free += last.nbytes
        self.held[client] = residual
        self.free -= residual.nbytes
        return self._make_room()

    def _make_room(self) -> int:
        before = len(self.held)
        while self.free < 0:
            _, gone = self.held.popitem(last=False)
            self.free += gone.nbytes
        return before - len(self.held)
