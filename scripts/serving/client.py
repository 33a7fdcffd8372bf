"""A client of `shoal serve` over ZeroMQ: arrays, no JSON, one message each way.

The one idea: a request is safe to send again. If the process that had it ends, the connection leads to another, and the client
asks that one.
"""

from __future__ import annotations

import json
import os
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from types import TracebackType
from typing import Any

import numpy as np
import numpy.typing as npt

from shoal.protocol.errors import Late, UserError, printable
from shoal.protocol.link import Line
from shoal.protocol.messages import Declined, Envelope, Figures, Inquire, Message, Predict, Predicted
from shoal.serving.inputs import Array, WrongRequestError
from shoal.serving.wire import DTYPES, LARGEST, rows_of

DEADLINE = 10.0  # seconds that a request waits for its answer, if it names no deadline
EARLY = "ended the connection"  # of a line: also said while a server starts, whose port is open before it answers there
AGAIN = 0.5  # seconds between two looks at the connection


@dataclass(frozen=True, slots=True)
class Prediction:
    """An answer. outputs: [rows, ...]. request: the server's name of the request, by which an outcome may be posted."""

    outputs: Array
    model: str
    version: int
    request: str


class Client:
    """A client of the server at `address`, a context manager. Several threads may share it, and then ask one after another.

    key: name of this user's own key (`shoal keys`), server: the server's public key; both are needed if the server is on
    another machine. Raises UserError.
    """

    def __init__(
        self,
        address: str = "tcp://127.0.0.1:5557",
        *,
        key: str = "",
        server: str = "",
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        from shoal.commands.access import of_actor

        self.address, self._clock = address, clock
        self._line = Line(address, of_actor(key or None, server or None), clock, largest=LARGEST)
        self._session, self._number, self._lock = os.urandom(8), 0, threading.Lock()

    def predict(self, x: npt.ArrayLike, *, key: str = "", deadline: float = DEADLINE) -> Array:
        """The model's outputs for the rows x: [rows, ...]. key: the user that asks, who always gets the same model. deadline:
        seconds until `shoal.Late` is raised.

        Raises Late, also if the server has no room for the request; UserError for rows that the model does not take; and
        RuntimeError if the model raised.
        """
        return self.ask(x, key=key, deadline=deadline).outputs

    def ask(self, x: npt.ArrayLike, *, key: str = "", deadline: float = DEADLINE) -> Prediction:
        """Return the outputs as `predict` does, with the model, the version, and the request's name."""
        if not deadline > 0:
            raise UserError(f"deadline={deadline!r}: must be a number of seconds above 0")
        rows = np.ascontiguousarray(x)
        if rows.dtype.name not in DTYPES:
            raise UserError(f"x has the dtype {rows.dtype}: expected one of {', '.join(sorted(DTYPES))}")
        if rows.nbytes > LARGEST:
            raise UserError(f"x has {rows.nbytes:,} bytes: at most {LARGEST:,} go in a request; send several")
        with self._lock:
            self._number += 1
            asked = Predict(self._number, rows.dtype.name, rows.shape, deadline, key)
            answer, payload = self._answer(asked, rows.reshape(-1).view(np.uint8), deadline)
        match answer:
            case Predicted():
                with suppress(WrongRequestError):
                    return Prediction(rows_of(answer, payload), answer.model, answer.version, answer.request)
                raise RuntimeError(f"{self.address} sent outputs that do not fit their shape: is that `shoal serve`?")
            case Declined(_, "late" | "full", reason):
                raise Late(printable(reason, 1_000))
            case Declined(_, "wrong", reason):
                raise UserError(printable(reason, 1_000))
            case Declined(_, _, reason):
                raise RuntimeError(printable(reason, 1_000))
        raise RuntimeError(f"{self.address} answered with {type(answer).__name__}: is that `shoal serve`?")

    def stats(self, deadline: float = DEADLINE) -> dict[str, Any]:
        """The server's figures, as /stats tells them: requests, p50, p99, batch, queue, and of each model its version."""
        with self._lock:
            self._number += 1
            _, payload = self._answer(Inquire(self._number), None, deadline)
        found: dict[str, Any] = json.loads(bytes(payload or b"{}"))
        return found

    def close(self) -> None:
        """Close the connection. A second call changes nothing."""
        line, self._line = self._line, None  # type: ignore[assignment]
        if line is not None:
            line.close()

    def __enter__(self) -> Client:
        return self

    def __exit__(self, kind: type[BaseException] | None, raised: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    def _answer(
        self, asked: Predict | Inquire, payload: npt.NDArray[np.uint8] | None, deadline: float
    ) -> tuple[Message, memoryview | None]:
        """The answer to a message, with its arrays. Raises Late after `deadline` seconds, and UserError if the server lets this
        key not in."""
        if self._line is None:
            raise UserError("this client is closed: make another with shoal.Client(ADDRESS)")
        envelope, until = Envelope(self._session, 0, asked), self._clock() + deadline
        why = ""
        self._line.say(envelope, payload)
        self._line.flush()
        while (left := until - self._clock()) > 0:
            self._line.wait(min(left, AGAIN))
            for arrival in self._line.drain():
                if arrival.kind == "opened" and arrival.envelope is None:  # what was sent on the last connection may be lost
                    self._line.say(envelope, payload)
                    self._line.flush()
                elif arrival.kind == "access" and arrival.envelope is None:
                    why = arrival.fault.removesuffix("; trying on")
                    if EARLY not in why:
                        raise UserError(why)
                elif arrival.envelope is not None:
                    message = arrival.envelope.message
                    if isinstance(message, Predicted | Declined | Figures) and message.number == asked.number:
                        return message, arrival.payload
        raise Late(f"no answer from {self.address} within {deadline:g} s{why and f': {why}'}")
