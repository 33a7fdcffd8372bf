"""Events at a coordinator, and deeds for its shell, beside the events and effects of its core (events.py).

The one idea: a deed is a plain value that the shell carries out, and its outcome is just another event.
"""

from __future__ import annotations

from typing import TypeAlias

from shoal.coordinator.deciding.events import Effect, Event, Heard
from shoal.coordinator.deciding.receiving import Delivery
from shoal.coordinator.deciding.serving import Sized
from shoal.protocol.messages import Contribute, Envelope
from shoal.protocol.value import value

# Events


@value
class Stored:
    """The shell stored a piece of a delivery. trouble: why it could not store the piece; "" if it could."""

    delivery: Delivery
    trouble: str = ""


@value
class Opened:
    """The shell answers an Open, `asked`. arrays: the arrays in shared memory; None if there is a fault. fault: "" if none."""

    asked: Open
    arrays: Sized | None
    fault: str = ""


@value
class Ended:
    """A process of this machine has ended. pid: its process number. ran: as in Lost."""

    pid: int
    ran: tuple[int, ...] | None = None


# Deeds


@value
class Open:
    """Look up the arrays of this Contribute in its actor's shared memory; the shell answers Opened."""

    heard: Heard
    message: Contribute


@value
class Greet:
    """Say the Welcome in `envelope` to `peer`, with the run's workload and layout as its payload."""

    peer: bytes
    envelope: Envelope


@value
class Describe:
    """Say the State of the run to `peer`, in the session that asked for it."""

    peer: bytes
    session: bytes


@value
class Ship:
    """Say `envelope` to `peer`, with the bytes from `first` to before `last` of `arrays`."""

    peer: bytes
    envelope: Envelope
    arrays: Sized
    first: int
    last: int


@value
class Store:
    """Store a piece of a delivery's arrays, which begins at byte `first` of them; the shell answers Stored."""

    delivery: Delivery
    first: int
    piece: Sized


@value
class LetGo:
    """Free the memory, file or slot of this delivery's arrays: they are folded in, or not wanted."""

    delivery: Delivery


Happening: TypeAlias = Event | Stored | Opened | Ended
Deed: TypeAlias = Effect | Greet | Describe | Ship | Open | Store | LetGo
