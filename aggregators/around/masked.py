"""Secure aggregation around a linear aggregator, which gets one contribution a step: the sum that the protocol gives.

The one idea: the protocol's server (protocol/secagg.py) is fed by `fold` and asked by `brief`, and only its last answer, a sum
modulo 2**64 of whole numbers on the grid, is a sum as any other. So the step has the bits that it would have without masks.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from shoal.aggregators import Aggregator, State
from shoal.aggregators.around import Around
from shoal.protocol import parcels
from shoal.protocol.errors import ProtocolError
from shoal.protocol.exact import summed_layout
from shoal.protocol.grid import WEIGHT_GRID
from shoal.protocol.layout import Bundle, Layout
from shoal.protocol.parcels import NUMBER, SIGNATURE, keyed, listed, packed, rows_of
from shoal.protocol.sealing import KEY
from shoal.protocol.secagg import PHASES, Aborted, Advert, Server, Shares, Terms, numbers_of
from shoal.protocol.work import Contribution, Moved, Task, Work


def vector_size(layout: Layout) -> int:
    """Words of a client's vector: the sum's entries of all dtypes, and the weight."""
    return sum(place.nbytes // 8 for place in summed_layout(layout).places) + 1


class Masked(Around):
    """A linear aggregator behind secure aggregation.

    terms: session -> the session's terms. cohort: version -> its clients. random: random bytes for the session's name. A round
    that the protocol gives up moves no weights; the metric `secagg_aborted` says so. A round is lost with this process: the
    next life begins it anew, in another session.
    Metrics: `secagg_clients`, the number of clients in the sum.
    """

    linear = False

    def __init__(
        self,
        aggregator: Aggregator,
        terms: Callable[[bytes, tuple[int, ...]], Terms],
        cohort: Callable[[int], tuple[int, ...]],
        degree: int,
        random: Callable[[int], bytes],
    ) -> None:
        super().__init__(aggregator)
        self.terms, self.cohort, self.random = terms, cohort, random
        self.layout = aggregator.weights().layout
        self.size = vector_size(self.layout)
        self.steps = 0
        self.down: dict[str, Layout] = {}
        self.degree = degree
        self._reset()

    def _reset(self) -> None:
        self.server: Server | None = None
        self.reached = -1  # the phase that clients are in
        self.given_up = ""
        self.told: dict[int, dict[int, Advert]] = {}
        self.answers: dict[int, list[bytes]] = {}

    def brief(self, task: Task) -> Bundle | None:
        """The arrays that the client is told as the phase begins. The first brief of a phase ends the phase before."""
        phase = str(task.words["phase"])
        if self.server is None:
            self.server = Server(self.terms(self.random(parcels.SESSION), self.cohort(task.version)), self.size)
            self.down = parcels.down(self.degree, len(self.server.terms.clients))
        while self.reached < PHASES.index(phase) and not self.given_up:
            self._close(self.server, self.reached)
            self.reached += 1
        return packed(self.down[phase], phase, None if self.given_up else self.answers.get(task.clients[0]))

    def _close(self, server: Server, phase: int) -> None:
        """End a phase and make the answers that the next one begins with."""
        try:
            match phase:
                case -1:
                    session, clients = server.terms.session, server.terms.clients
                    rows = [session + client.to_bytes(NUMBER, "big") for client in clients]
                    self.answers = dict.fromkeys(clients, rows)
                case 0:
                    told = server.close_advertise()
                    plain = {client: {other: a.plain + a.signature for other, a in its.items()} for client, its in told.items()}
                    self.answers = {client: listed(its) for client, its in plain.items()}
                case 1:
                    self.answers = {client: listed(its) for client, its in server.close_share().items()}
                case 2:
                    lists = server.close_mask()
                    self.answers = {client: [c.to_bytes(NUMBER, "big") for c in its] for client, its in lists.items()}
                case 3:
                    self.answers = {client: listed(its) for client, its in server.close_confirm().items()}
        except Aborted as why:
            self.given_up = str(why)

    def fold(self, contribution: Contribution) -> None:
        """Raises ProtocolError, with nothing taken, for a message that is not expected of its client."""
        server, client, bundle = self.server, contribution.task.clients[0], contribution.bundle
        phase = str(contribution.task.words["phase"])
        if self.given_up or server is None:
            return
        if phase != PHASES[self.reached]:
            raise ProtocolError(f"client {client} said {phase} in the phase {PHASES[self.reached]}")
        if phase not in bundle:
            raise ProtocolError(f"client {client} said {phase} without the array {phase}")
        if phase == "mask":
            return server.took(client, bundle["mask"].view(np.uint64))
        rows = rows_of(bundle, phase) or []
        match phase:
            case "advertise":
                [row] = rows or [b""]
                server.advertised(client, advert_of(row))
            case "share":
                server.shared(client, keyed(rows))
            case "confirm":
                server.confirmed(client, rows[0][:SIGNATURE] if rows else b"")
            case _:
                told = keyed(rows)
                own = {other: row[1:] for other, row in told.items() if row[0] == 0}
                server.unmasked(client, Shares(own, {other: row[1:] for other, row in told.items() if row[0] == 1}))
        return None

    def step(self) -> Moved:
        try:
            if self.server is None or self.given_up or PHASES[self.reached] != "unmask":
                raise Aborted(self.given_up or "too few clients for the next phase")
            total, clients = numbers_of(self.server.close_unmask()), len(self.server.masked)
        except Aborted:
            self._reset()
            return Moved({"secagg_aborted": 1.0, "secagg_clients": 0.0}, weights=False)
        sums, at = Bundle.zeros(summed_layout(self.layout)), 0
        for name in sums.layout.by_name:
            array = sums[name]
            array[...] = total[at : at + array.size]
            at += array.size
        work = Work(sums, float(total[-1]) * WEIGHT_GRID)
        self.aggregator.fold(Contribution(Task(0, 0, tuple(range(clients))), 0, 0, work, summed=True))
        moved = self.aggregator.step()
        self._reset()
        return Moved({**moved.metrics, "secagg_aborted": 0.0, "secagg_clients": float(clients)})

    def load(self, weights: Bundle, state: State) -> None:
        self.aggregator.load(weights, state)
        self._reset()


def advert_of(row: bytes) -> Advert:
    return Advert(row[:KEY], row[KEY : 2 * KEY], row[2 * KEY :])
