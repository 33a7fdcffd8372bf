"""What happens at a coordinator, and what is to be done, beside what its core hears and asks for (events.py).

The one idea: a deed is a plain value that the shell carries out, and whatever comes of it is just another event.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeAlias

from shoal.coordinator.deciding.events import Effect, Event, Heard, SendWeights
from shoal.coordinator.deciding.receiving import Delivery
from shoal.coordinator.deciding.serving import Sized
from shoal.protocol.messages import Contribute, Envelope, Weights

# Events


@dataclass(frozen=True, slots=True)
class Stored:
    """The shell put a piece where its delivery's arrays are gathered. trouble: why it could not, or ""."""

    delivery: Delivery
    trouble: str = ""


@dataclass(frozen=True, slots=True)
class Opened:
    """The arrays that `asked` looked for in shared memory; or None, and what is wrong with them."""

    asked: Open
    arrays: Sized | None
    fault: str = ""


@dataclass(frozen=True, slots=True)
class Unlent:
    """These weights lie nowhere in shared memory."""

    wanted: SendWeights


@dataclass(frozen=True, slots=True)
class Ended:
    """A process of this machine has ended."""

    pid: int


# Deeds


@dataclass(frozen=True, slots=True)
class Rename:
    """This session looks at the weights in shared memory that are out, and calls them `version` from now on."""

    session: bytes
    version: int


@dataclass(frozen=True, slots=True)
class Open:
    """Look up the arrays of this Contribute in its actor's shared memory; the answer is Opened."""

    heard: Heard
    message: Contribute


@dataclass(frozen=True, slots=True)
class Greet:
    """Say this Welcome, with the run's workload and layout as its payload."""

    peer: bytes
    envelope: Envelope


@dataclass(frozen=True, slots=True)
class Ship:
    """Say this with the bytes from `first` to before `last` of some arrays."""

    peer: bytes
    envelope: Envelope
    arrays: Sized
    first: int
    last: int


@dataclass(frozen=True, slots=True)
class Lend:
    """Say this with the place of the newest weights in shared memory; where they are in none, the answer is Unlent."""

    wanted: SendWeights
    weights: Weights


@dataclass(frozen=True, slots=True)
class Release:
    """This session looks at no weights in shared memory that are older than `version`."""

    session: bytes
    version: int


@dataclass(frozen=True, slots=True)
class Store:
    """Put a piece of a delivery's arrays, which begins at byte `first`, to those that are here; the answer is Stored."""

    delivery: Delivery
    first: int
    piece: Sized


@dataclass(frozen=True, slots=True)
class Evaluate:
    """This contribution does not count towards a step: it is for the statistics."""

    message: Contribute


@dataclass(frozen=True, slots=True)
class LetGo:
    """The arrays of this delivery are folded in, or not wanted: their memory, file or slot is free."""

    delivery: Delivery


Happening: TypeAlias = Event | Stored | Opened | Unlent | Ended
Deed: TypeAlias = Effect | Greet | Ship | Lend | Release | Rename | Open | Store | Evaluate | LetGo
