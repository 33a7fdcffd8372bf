"""The ZeroMQ side of a server: arrays in, arrays out, one message each way.

The one idea: answers of a batch that go to one client leave as one frame, and the thread of the socket is woken once a batch.
"""

from __future__ import annotations

import json
import math
import threading
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from shoal.protocol.errors import printable
from shoal.protocol.link import Arrival, Hub
from shoal.protocol.messages import Declined, Envelope, Figures, Inquire, Predict, Predicted
from shoal.serving.inputs import Array, WrongRequestError
from shoal.serving.server import Answered, Reply, Request, Server

WHOLE = tuple(f"{kind}{bits}" for kind in ("int", "uint") for bits in (8, 16, 32, 64))
DTYPES = frozenset({"float16", "float32", "float64", "bool", *WHOLE})
TURN = 0.5  # seconds: the longest wait between looks whether the end has come
LARGEST = 64 << 20  # bytes of the rows or outputs of one message


class Wire(threading.Thread):
    """The thread with the socket. figures: the whole server's. broken: called if the thread ends by a fault of ours, which is
    then in `fault`: its process hears no client any more."""

    def __init__(
        self, hub: Hub, server: Server, figures: Callable[[], Mapping[str, Any]], broken: Callable[[], None] = lambda: None
    ) -> None:
        super().__init__(name="wire", daemon=True)
        self.hub, self.server, self.figures, self._broken = hub, server, figures, broken
        self.fault: BaseException | None = None
        self._out: deque[tuple[Request, Reply]] = deque()
        self._over = threading.Event()
        self.closing = False  # True: take no more requests; clients ask another process, over their next connection

    def deliver(self, answers: Sequence[tuple[Request, Reply]]) -> None:
        idle = not self._out
        self._out.extend(answers)
        if idle:
            self.hub.wake()

    def run(self) -> None:
        try:
            while not self._over.is_set():
                self.hub.wait(TURN)
                self._turn()
            self._turn()
        except BaseException as fault:  # noqa: BLE001  its process would live on and be deaf
            self.fault = fault
            self.server.say(f"the ZeroMQ side ended by {fault!r}: this process ends")
            self._broken()
        finally:
            self.hub.close()

    def end(self) -> None:
        """Send what is answered, and close the socket."""
        self._over.set()
        self.hub.wake()
        if self.is_alive():
            self.join(5.0)

    def _turn(self) -> None:
        for arrival in () if self.closing else self.hub.drain():
            if arrival.envelope is None:
                if arrival.kind not in ("lost", "opened"):
                    self.server.say(arrival.fault)
                continue
            match arrival.envelope.message:
                case Predict() as message:
                    self._predict(arrival, message)
                case Inquire(number):
                    told = json.dumps(dict(self.figures())).encode()
                    self.hub.say(arrival.peer, Envelope(arrival.envelope.session, 0, Figures(number)), told)
        while self._out:
            self._answer(*self._out.popleft())
        self.hub.flush()

    def _predict(self, arrival: Arrival, message: Predict) -> None:
        assert arrival.envelope is not None
        arrived, back = self.server.clock(), (arrival.peer, arrival.envelope.session, message.number)
        try:
            model, inputs = self.server.inputs_for(message.key)
            rows = inputs.checked(rows_of(message, arrival.payload))
        except WrongRequestError as wrong:
            self.server.stats.invalid += 1
            self._decline(back, "wrong", str(wrong))
            return
        request = Request(rows, model, message.key, self, back, arrived)
        if refused := self.server.ask(request, message.deadline if message.deadline > 0 else math.inf):
            self._decline(back, refused.why, refused.reason)

    def _decline(self, back: tuple[bytes, bytes, int], why: str, reason: str) -> None:
        peer, session, number = back
        self.hub.say(peer, Envelope(session, 0, Declined(number, why, reason[:1_000])))

    def _answer(self, request: Request, reply: Reply) -> None:
        if not isinstance(reply, Answered):
            self._decline(request.tag, reply.why, reply.reason)
            return
        peer, session, number = request.tag
        outputs = np.ascontiguousarray(reply.outputs)
        said = Predicted(number, reply.model, reply.version, outputs.dtype.name, outputs.shape, request.name)
        self.hub.say(peer, Envelope(session, 0, said), outputs.reshape(-1).view(np.uint8))


def rows_of(message: Predict | Predicted, payload: memoryview | None) -> Array:
    """The array of a message, over its payload. Raises WrongRequestError if its parts do not fit each other."""
    if message.dtype not in DTYPES:
        raise WrongRequestError(400, f"dtype {printable(message.dtype, 40)!r}: expected one of {', '.join(sorted(DTYPES))}")
    if not 0 < len(message.shape) <= 8 or min(message.shape) < 0:
        raise WrongRequestError(400, f"shape {list(message.shape)[:9]}: expected [rows, ...], of at most 8 dimensions")
    wanted, found = math.prod(message.shape) * np.dtype(message.dtype).itemsize, 0 if payload is None else len(payload)
    if wanted != found:
        raise WrongRequestError(400, f"{found} bytes for shape {list(message.shape)} of {message.dtype}: expected {wanted}")
    try:
        return np.frombuffer(payload if payload is not None else b"", message.dtype).reshape(message.shape)
    except (ValueError, OverflowError):  # beside a 0 nothing bounds the other numbers of a shape, and numpy takes no large ones
        raise WrongRequestError(400, f"shape {list(message.shape)}: expected numbers that an array can have") from None
