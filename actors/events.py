"""The events that an actor's session takes, and the effects that it returns: plain values all.

The one idea: everything that happens to an actor reaches its session as one of a few kinds of event, and every decision of the
session is one of a few effects that the actor's shell carries out. So a test can play an actor's life without a process.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeAlias

from shoal.protocol.messages import WHOLE, Contribute, Envelope, Failed, TaskName
from shoal.protocol.work import Task

# Events


@dataclass(frozen=True, slots=True)
class Heard:
    """A message came from the coordinator. The shell keeps the payload of a Weights, Chunk, Assign or Welcome."""

    envelope: Envelope


@dataclass(frozen=True, slots=True)
class Opened:
    """A line to the coordinator has a new connection. arrays: True for the line for arrays, False for that of messages."""

    arrays: bool


@dataclass(frozen=True, slots=True)
class Done:
    """The worker finished a task. The shell keeps the payload until Forget. clients: number of clients that were done. nbytes:
    bytes of the contribution's arrays, whichever way they are sent (0: no arrays)."""

    message: Contribute | Failed
    clients: int = 1
    nbytes: int = 0


@dataclass(frozen=True, slots=True)
class Decoded:
    """The worker's thread has added every change: the newest weights are arrays of their own, made of no older weights."""


@dataclass(frozen=True, slots=True)
class Tick:
    """Time passed. The shell says so at least ten times a second."""


@dataclass(frozen=True, slots=True)
class Quit:
    """The process was told to stop, so the actor is to leave. reason: a line for the coordinator and for a person."""

    reason: str


Event: TypeAlias = Heard | Opened | Done | Decoded | Tick | Quit

# Effects


@dataclass(frozen=True, slots=True)
class Say:
    """Send this message to the coordinator. A Contribute is sent with the payload that is kept for its task."""

    envelope: Envelope


@dataclass(frozen=True, slots=True)
class Stow:
    """Keep the payload of the message just heard under the name `what`, as in Want, of weights or a brief.

    first, nbytes: a Chunk's payload is `nbytes` bytes of arrays from byte `first` on, and the first to come makes room for all;
    nbytes 0: an Assign's payload is the whole brief.
    """

    what: tuple[int, ...]
    first: int = 0
    nbytes: int = 0


@dataclass(frozen=True, slots=True)
class Drop:
    """Drop the arrays that are kept under the name `what`: nobody needs them."""

    what: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Give:
    """Send the bytes from `first` to before `last` of a task's contribution, if the contribution is still kept."""

    task: TaskName
    attempt: int
    first: int
    last: int


@dataclass(frozen=True, slots=True)
class Adopt:
    """Make `version` the newest weights, from the payload of the Weights just heard or from its arrays that are kept.

    base: WHOLE for whole weights; else the arrays are the change since version `base`, which was the newest. If there are no
    arrays, the weights of `base` get the number `version`.
    """

    version: int
    base: int = WHOLE


@dataclass(frozen=True, slots=True)
class Run:
    """Give the task to the worker, with the newest weights, which are version `made_from`.

    summed: True if the clients' sum is sent. exact: True for an exact sum. brief: digest of the layout of the task's brief,
    which is kept; "": the task has no brief.
    """

    task: Task
    attempt: int
    summed: bool
    made_from: int
    exact: bool = True
    brief: str = ""


@dataclass(frozen=True, slots=True)
class Forget:
    """Drop the payload that is kept for this task."""

    task: TaskName


@dataclass(frozen=True, slots=True)
class Retain:
    """Keep this task's payload in the actor's own memory: the coordinator has used it, and may ask for it again."""

    task: TaskName


@dataclass(frozen=True, slots=True)
class Reset:
    """The actor has a new place, at another coordinator, another life of it, or the same: drop the weights and terms it had."""


@dataclass(frozen=True, slots=True)
class Note:
    """A line for the person who runs this actor."""

    text: str


@dataclass(frozen=True, slots=True)
class Leave:
    """This life is over. failed: True if the coordinator refused the actor for good."""

    reason: str
    failed: bool = False


Effect: TypeAlias = Say | Stow | Drop | Give | Adopt | Run | Forget | Retain | Reset | Note | Leave
