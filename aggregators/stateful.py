"""The frame of servers whose clients have a state: FedAvg's arithmetic for the deltas, and a row for each client.

The one idea: a contribution is taken apart into the delta, which goes into FedAvg's sum, and what lies beside it, which waits
for the step. So what a client is told is a function of the last step alone, and not of contributions since.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from shoal.aggregators import State
from shoal.aggregators.fedavg import FedAvgServer
from shoal.aggregators.remembered import HELD, Floats, Remembered
from shoal.protocol.beside import Beside
from shoal.protocol.errors import ProtocolError
from shoal.protocol.layout import Bundle
from shoal.protocol.work import Contribution, Moved, Task


class Split(FedAvgServer):
    """FedAvg's server for contributions of one client each, with flat float32 arrays beside the delta: name -> entries."""

    linear: ClassVar[bool] = False  # a sum does not show what one client sent

    def __init__(self, weights: Bundle, trainable: int | None = None, *, beside: Mapping[str, int], **options: Any) -> None:
        super().__init__(weights, trainable, **options)
        self.beside = Beside([weights.layout, weights.layout.moving], beside)

    def fold(self, contribution: Contribution) -> None:
        """Raises ProtocolError, with nothing taken in, for a sum, for a task of no or several clients, for an array beside the
        delta that is not finite, and as FedAvgServer does."""
        if contribution.summed or len(contribution.task.clients) != 1:
            raise ProtocolError(f"{type(self).__name__} takes the contribution of one client at a time; this one is a sum")
        delta, arrays = self.beside.apart(contribution.bundle)
        for name, array in arrays.items():
            if not np.isfinite(array).all():
                raise ProtocolError(f"{name!r}, beside a delta, holds NaN or an infinity")
        (client,) = contribution.task.clients
        delta, weight = self.prepared(delta, contribution.work.weight, arrays)
        super().fold(replace(contribution, work=replace(contribution.work, bundle=delta, weight=weight), norm=None))
        self.took(client, delta, arrays, weight)

    def prepared(self, delta: Bundle, weight: float, arrays: dict[str, Floats]) -> tuple[Bundle, float]:
        """The delta and the weight that go into the sum. Delta and arrays may be changed; an array may be added for `took`."""
        return delta, weight

    def took(self, client: int, delta: Bundle, arrays: dict[str, Floats], weight: float) -> None:
        """Put aside, until the step, what else the contribution says. The arrays stay as they are."""


class StatefulServer(Split):
    """A Split server that remembers a row for each client.

    clients: number of clients (N). entries: of a row; None: as many as are trainable. held: bytes of rows in memory
    (aggregators/remembered.py).
    """

    def __init__(
        self,
        weights: Bundle,
        trainable: int | None = None,
        *,
        clients: int,
        entries: int | None = None,
        held: int = HELD,
        **options: Any,
    ) -> None:
        super().__init__(weights, trainable, **options)
        self.clients = clients
        self.remembered = Remembered(self.trainable if entries is None else entries, held)

    def settle(self, folder: Path) -> None:
        """Keep rows beyond `held` bytes in this folder."""
        self.remembered.settle(folder)

    def forget(self, version: int) -> None:
        """Forget what no snapshot from `version` on can need."""
        self.remembered.forget(version)

    def step(self) -> Moved:
        """FedAvg's step, with which the rows that came become the clients' rows."""
        moved = super().step()
        self.remembered.step(self.steps)
        return moved

    def row(self, task: Task) -> Floats | None:
        """The row of the task's client; None if it has none."""
        (client,) = task.clients
        return self.remembered.of(client)

    def state(self) -> State:
        return {**super().state(), **self.remembered.state()}

    def load(self, weights: Bundle, state: State) -> None:
        self.remembered.load(state, int(state["steps"]))
        super().load(weights, state)


class PersonalRows(StatefulServer):
    """A StatefulServer whose row is what a client keeps to itself: a contribution has the next one under the name "personal".

    A task's brief, of evaluations too, is {"personal": the client's row}; None for a client that has none yet.
    """

    def brief(self, task: Task) -> Bundle | None:
        row = self.row(task)
        return None if row is None else Bundle.pack({"personal": row})

    def took(self, client: int, delta: Bundle, arrays: dict[str, Floats], weight: float) -> None:
        self.remembered.put(client, arrays["personal"])
