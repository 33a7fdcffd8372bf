"""A call that is not done, and how its future is completed.

The one idea: a future is completed once, by an accepted answer or by the reason why there is none, on the pool's own thread.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol, cast

from shoal.coordinator.deciding.plans.tickets import Ticket
from shoal.protocol.calls import Answer
from shoal.protocol.shared import ShortError
from shoal.protocol.trusted import GoneError, Parcel, held, opened
from shoal.tasks.futures import RemoteTraceback, Result
from shoal.tasks.how import How
from shoal.tasks.inputs import Put
from shoal.tasks.refs import Ref

DEFAULT = How()
REFUSED = "an actor's answer cannot be taken"


class Piece(Protocol):
    """Calls of a map in a row, which are one call of the pool."""

    def cut(self, at: int) -> None:
        """Make the calls from this one on elsewhere: it and those behind it have not begun, and will not. at: counted from the
        first of the piece."""
        ...


@dataclass(slots=True, eq=False)
class Entry:
    """A call that is not done. arguments, function: parcels, whose memory the actor may read. puts: values in shared memory
    that are among the arguments. key: of its result in the pool's folder; b"": none. how: its wishes as they were submitted.
    begun: its future is running. tries: times that it was made again after an exception. plain: the call as plain values, for
    actors elsewhere; b"": there are none. apart: values that were put, which go beside that. piece: of a map, if it stands for
    many calls, which are counted by the map."""

    ticket: Ticket
    future: Result[Any]
    function: Parcel
    arguments: Parcel
    puts: tuple[object, ...] = ()
    key: bytes = b""
    how: How = DEFAULT
    plain: bytes = b""
    apart: tuple[Put[Any], ...] = ()
    begun: bool = False
    tries: int = 0
    piece: Piece | None = None

    def complete(self, answer: Answer) -> None:
        """Complete the future. What its result raises here is the call's exception; a large result stays where it is until it
        is asked for. Raises GoneError, with the future as it was, if the result has gone with its process, and ShortError if no
        descriptor is left to open it."""
        value, wrong = cast(Any, None), cast(BaseException | None, None)
        try:
            there = held(answer.parcel)
            value = opened(answer.parcel) if there is None else Ref(there)
        except (GoneError, ShortError):
            raise
        except BaseException as raised:  # noqa: BLE001  a result's own code runs when it is unpickled, and may call sys.exit
            wrong = raised
        if self.ticket.batch:
            self.ticket.batch.came += answer.nbytes
            self.future.nbytes = answer.nbytes
        if wrong is not None:
            self.future.set_exception(wrong)
            return
        if answer.raised:
            error, text = value
            error.__cause__ = RemoteTraceback(text)
            self.future.set_exception(error)
        else:
            self.future.set_result(value)
