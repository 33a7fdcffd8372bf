"""The effects that an actor's session returns: plain values all.

The one idea: every decision of the session is one of a few effects, which the actor's shell carries out without an opinion.
"""

from __future__ import annotations

from typing import TypeAlias

from shoal.protocol.messages import WHOLE, Envelope, TaskName
from shoal.protocol.value import value
from shoal.protocol.work import Task


@value
class Say:
    """Send this message to the coordinator. A Contribute is sent with the payload that is kept for its task."""

    envelope: Envelope


@value
class Stow:
    """Keep the payload of the message just heard under the name `what`, as in Want, of weights or a brief.

    first, nbytes: a Chunk's payload is `nbytes` bytes of arrays from byte `first` on, and the first to come makes room for all;
    nbytes 0: an Assign's payload is the whole brief.
    """

    what: tuple[int, ...]
    first: int = 0
    nbytes: int = 0


@value
class Drop:
    """Drop the arrays that are kept under the name `what`: nobody needs them."""

    what: tuple[int, ...]


@value
class Give:
    """Send the bytes from `first` to before `last` of a task's contribution, if the contribution is still kept."""

    task: TaskName
    attempt: int
    first: int
    last: int


@value
class Adopt:
    """Make `version` the newest weights, from the payload of the Weights just heard or from its arrays that are kept.

    base: WHOLE for whole weights; else the arrays are the change since version `base`, which was the newest. If there are no
    arrays, the weights of `base` get the number `version`.
    """

    version: int
    base: int = WHOLE


@value
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


@value
class Flag:
    """Tell the worker that callers gave up the calls with these numbers."""

    calls: tuple[int, ...]


@value
class Forget:
    """Drop the payload that is kept for this task."""

    task: TaskName


@value
class Retain:
    """Keep this task's payload in the actor's own memory: the coordinator has used it, and may ask for it again."""

    task: TaskName


@value
class Reset:
    """The actor has a new place, at another coordinator, another life of it, or the same: drop the weights and terms it had."""


@value
class Note:
    """A line for the person who runs this actor."""

    text: str


@value
class Leave:
    """End this life of the actor. failed: True if the coordinator refused the actor for good."""

    reason: str
    failed: bool = False


Effect: TypeAlias = Say | Stow | Drop | Give | Adopt | Run | Flag | Forget | Retain | Reset | Note | Leave
