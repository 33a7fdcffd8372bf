"""What an actor's session takes and what it gives: events in, effects out, plain values all.

The one idea: whatever happens to an actor reaches what decides as one of a few kinds of event, and whatever it decides is one
of a few things that its shell can do; so a life can be played without a process.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeAlias

from shoal.protocol.messages import WHOLE, Contribute, Envelope, Failed, TaskName
from shoal.protocol.work import Task

# Events


@dataclass(frozen=True, slots=True)
class Heard:
    """A message came from the coordinator; the payload of a Weights, Chunk or Welcome is the shell's."""

    envelope: Envelope


@dataclass(frozen=True, slots=True)
class Opened:
    """A line leads to the coordinator over another connection than before. arrays: the one for these."""

    arrays: bool


@dataclass(frozen=True, slots=True)
class Done:
    """The worker finished a task. The shell keeps the payload until Forget. nbytes: of its arrays, whichever way they go."""

    message: Contribute | Failed
    clients: int = 1
    nbytes: int = 0


@dataclass(frozen=True, slots=True)
class Tick:
    """Time passed."""


@dataclass(frozen=True, slots=True)
class Quit:
    """Whoever runs this actor wants it to leave."""

    reason: str


Event: TypeAlias = Heard | Opened | Done | Tick | Quit

# Effects


@dataclass(frozen=True, slots=True)
class Say:
    """Send this; for a Contribute with the payload kept for its task."""

    envelope: Envelope


@dataclass(frozen=True, slots=True)
class Gather:
    """Arrays will come in pieces, of weights or of a task's brief: have room for so many bytes of `what` (as in Want)."""

    what: tuple[int, ...]
    nbytes: int


@dataclass(frozen=True, slots=True)
class Stow:
    """The payload of the Chunk just heard belongs there in what is being gathered, from byte `first`."""

    what: tuple[int, ...]
    first: int


@dataclass(frozen=True, slots=True)
class Place:
    """The payload of the Assign just heard is all of the brief `what`."""

    what: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Drop:
    """What was gathered or placed under this name is not wanted."""

    what: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Give:
    """Send these bytes of what a task has made, if they are still kept."""

    task: TaskName
    attempt: int
    first: int
    last: int


@dataclass(frozen=True, slots=True)
class Adopt:
    """The payload of the Weights just heard, or what has been gathered, is now the newest there is; or what changed in it
    since `base`, which was the newest until now."""

    version: int
    base: int = WHOLE


@dataclass(frozen=True, slots=True)
class Run:
    """Give the task to the worker, with the newest weights, which are `made_from`. brief: the layout of the task's own arrays,
    which have been gathered or placed; "" where it has none."""

    task: Task
    attempt: int
    summed: bool
    made_from: int
    exact: bool = True
    brief: str = ""


@dataclass(frozen=True, slots=True)
class Forget:
    """The payload of this task need not be kept any more."""

    task: TaskName


@dataclass(frozen=True, slots=True)
class Retain:
    """The coordinator has used the payload of this task, and may ask for it again: keep it where nobody else can reach it."""

    task: TaskName


@dataclass(frozen=True, slots=True)
class Reset:
    """A coordinator (another one, or another life of it) has welcomed us: what belonged to the last one is void."""


@dataclass(frozen=True, slots=True)
class Note:
    """Something a person should know."""

    text: str


@dataclass(frozen=True, slots=True)
class Leave:
    """This life is over. failed: by a refusal that trying again will not change."""

    reason: str
    failed: bool = False


Effect: TypeAlias = Say | Gather | Stow | Place | Drop | Give | Adopt | Run | Forget | Retain | Reset | Note | Leave
