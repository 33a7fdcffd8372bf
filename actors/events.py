"""The events that an actor's session takes: plain values all.

The one idea: everything that happens to an actor reaches its session as one of a few kinds of event. So a test can play an
actor's life without a process.
"""

from __future__ import annotations

from typing import TypeAlias

from shoal.protocol.messages import Contribute, Envelope, Failed
from shoal.protocol.value import value


@value
class Heard:
    """A message came from the coordinator. The shell keeps the payload of a Weights, Chunk, Assign or Welcome."""

    envelope: Envelope


@value
class Opened:
    """A line to the coordinator has a new connection. arrays: True for the line for arrays, False for that of messages."""

    arrays: bool


@value
class Done:
    """The worker finished a task. The shell keeps the payload until Forget. clients: number of clients that were done. nbytes:
    bytes of the contribution's arrays, whichever way they are sent (0: no arrays)."""

    message: Contribute | Failed
    clients: int = 1
    nbytes: int = 0


@value
class Decoded:
    """The worker's thread has added every change: the newest weights are arrays of their own, made of no older weights."""


@value
class Tick:
    """Time passed. The shell says so at least ten times a second."""


@value
class Quit:
    """The process was told to stop, so the actor is to leave. reason: a line for the coordinator and for a person."""

    reason: str


Event: TypeAlias = Heard | Opened | Done | Decoded | Tick | Quit
