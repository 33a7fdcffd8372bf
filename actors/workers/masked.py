"""A worker that takes part in secure aggregation: it tells its client's masked vector, and never the vector.

The one idea: the client's side of a session (protocol/secagg.py) lives in the memory of one actor and is used once. An actor
that does not know a session has no share of it, and fails the task, so the client drops out.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np

from shoal.actors import Worker, work_of
from shoal.actors.workers.around import Around
from shoal.protocol import parcels
from shoal.protocol.exact import PartialSum
from shoal.protocol.grid import WEIGHT_GRID
from shoal.protocol.layout import Bundle
from shoal.protocol.parcels import NUMBER, SESSION, keyed, listed, packed, rows_of
from shoal.protocol.sealing import KEY, Randomness
from shoal.protocol.secagg import Advert, Client, Terms, words_of
from shoal.protocol.work import Task, Work


class Masking(Around):
    """A worker around another, whose deltas must be linear contributions: weight * delta is summed on the grid.

    terms: (session, its clients) -> the session's terms. degree: neighbours of a client. signing: client -> 32 bytes, the seed
    of its signing key. known: client -> public signing key, for all clients. random: random bytes from the system.
    Totals and samples of the inner worker stay with the client, because the server must learn no client's own.
    """

    def __init__(
        self,
        worker: Worker,
        terms: Callable[[bytes, tuple[int, ...]], Terms],
        degree: int,
        *,
        signing: Callable[[int], bytes],
        known: Mapping[int, bytes],
        random: Randomness,
    ) -> None:
        super().__init__(worker)
        self.terms, self.degree = terms, degree
        self.signing, self.known, self.random = signing, known, random
        self.sessions: dict[int, Client] = {}

    def run(self, weights: Bundle, client: int, task: Task, brief: Bundle | None = None) -> Work:
        phase = str(task.words["phase"])
        rows = None if brief is None else rows_of(brief, phase)
        size = sum(array.size for array in PartialSum(weights.layout).totals.values()) + 1
        layout = parcels.up(self.degree, size)[phase]
        if rows is None:  # the session was given up
            self.sessions.pop(client, None)
            return Work(Bundle.zeros(layout), 1.0)
        if phase == "advertise":
            cohort = tuple(int.from_bytes(row[SESSION : SESSION + NUMBER], "big") for row in rows)
            its = self.terms(rows[0][:SESSION], cohort)
            self.sessions[client] = Client(its, client, signing=self.signing(client), known=self.known, random=self.random)
        if (mine := self.sessions.get(client)) is None:
            raise ValueError(f"client {client} has no session at this actor: it drops out of the round")
        if phase == "mask":
            masked = mine.mask(keyed(rows), words_of(self._vector(weights, client, task)))
            return Work(Bundle.pack({"mask": masked.view(np.int64)}, layout), 1.0)
        return Work(packed(layout, phase, self._said(mine, phase, rows)), 1.0)

    def _said(self, mine: Client, phase: str, rows: list[bytes]) -> list[bytes]:
        match phase:
            case "advertise":
                advert = mine.advertise()
                return [advert.plain + advert.signature]
            case "share":
                adverts = {other: Advert(a[:KEY], a[KEY : 2 * KEY], a[2 * KEY :]) for other, a in keyed(rows).items()}
                return listed(mine.share(adverts))
            case "confirm":
                return [mine.confirm([int.from_bytes(row[:NUMBER], "big") for row in rows])]
            case _:
                shares = mine.unmask(keyed(rows))
                self.sessions.pop(mine.client, None)
                own = {other: b"\0" + share for other, share in shares.own.items()}
                return listed(own | {other: b"\1" + share for other, share in shares.keys.items()})

    def _vector(self, weights: Bundle, client: int, task: Task) -> np.ndarray[tuple[int, ...], np.dtype[np.int64]]:
        """The client's weighted delta on the grid, and its weight in units of WEIGHT_GRID."""
        work = work_of(self.worker, weights, client, task, None)
        if work.bundle is None:
            raise ValueError(f"client {client}: a task of secure aggregation must make a delta")
        own = PartialSum(weights.layout)
        own.add(work.bundle, work.weight)
        weight = np.array([round(own.weight / WEIGHT_GRID)], np.int64)
        return np.concatenate([*own.totals.values(), weight])
