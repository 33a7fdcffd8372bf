"""What a coordinator core takes and what it gives: events in, effects out.

The one idea: every effect is a plain value that the shell carries out without an opinion, and whatever comes of it (a send
that failed, a step that is done) is just another event.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, TypeAlias

from shoal.coordinator.reports import Report
from shoal.protocol.messages import Contribute, Envelope, Hello, TaskName
from shoal.protocol.work import Metrics, Task

# Events


@dataclass(frozen=True, slots=True)
class Heard:
    """A message came from `peer`. fault: what the shell found wrong with its payload, or "". user: the public key that it
    came under, proven; "" where none is asked for. whole: its arrays are here too, if it has any; else they can be pulled.
    arrays: those that came with it, for the shell; the core does not look at them."""

    peer: bytes
    envelope: Envelope
    fault: str = ""
    user: str = ""
    whole: bool = True
    arrays: Any = None


@dataclass(frozen=True, slots=True)
class Moved:
    """Arrays are on their way from or to this session: it lives. task, left: the task whose contribution or brief they are, and
    bytes that are still to come, where that is known."""

    session: bytes
    task: TaskName | None = None
    left: int = 0


@dataclass(frozen=True, slots=True)
class Stalled:
    """Nothing has come of the arrays of this task for as long as a lease may take."""

    task: TaskName


@dataclass(frozen=True, slots=True)
class Outdated:
    """This session wants weights `version`, which are not to be had any more."""

    session: bytes
    version: int


@dataclass(frozen=True, slots=True)
class Lost:
    """`peer` cannot be reached any more. dead: its process has ended, so it will not come back."""

    peer: bytes
    why: str
    dead: bool = False


@dataclass(frozen=True, slots=True)
class Folded:
    """The learner took the contribution of this task in."""

    task: TaskName


@dataclass(frozen=True, slots=True)
class Unfit:
    """The learner refused it (not finite, too large ...): nothing of it touched the weights."""

    task: TaskName
    reason: str


@dataclass(frozen=True, slots=True)
class Briefed:
    """The learner made the brief of this attempt, which has so many bytes. layout: "" where the aggregator has none for it."""

    task: TaskName
    attempt: int
    layout: str = ""
    nbytes: int = 0


@dataclass(frozen=True, slots=True)
class Stepped:
    """Weights `version` are there, and its record in the journal is durable, where the run has a journal. moved: False if these
    weights are those of the version before."""

    version: int
    metrics: Metrics
    moved: bool = True


@dataclass(frozen=True, slots=True)
class Kept:
    """A snapshot holds weights `version`. It comes after Stepped; before it for the last version of a run."""

    version: int


@dataclass(frozen=True, slots=True)
class Tick:
    """Time passed."""


@dataclass(frozen=True, slots=True)
class Nudge:
    """The plan, which somebody feeds from outside, has something new to ask for."""


@dataclass(frozen=True, slots=True)
class Interrupt:
    """The person (or a limit) wants the run to end here."""

    reason: str


Event: TypeAlias = (
    Heard | Moved | Stalled | Outdated | Lost | Folded | Unfit | Briefed | Stepped | Kept | Tick | Nudge | Interrupt
)

# Effects


@dataclass(frozen=True, slots=True)
class Send:
    peer: bytes
    envelope: Envelope


@dataclass(frozen=True, slots=True)
class Admit:
    """Say Welcome to `peer`: the shell adds what only it knows (workload, layout, shared memory)."""

    peer: bytes
    session: bytes
    number: int
    hello: Hello
    resumed: bool = False


@dataclass(frozen=True, slots=True)
class SendWeights:
    """The newest weights, which are `version`, go to `peer`. One is under way to an actor at a time. held: the version that it
    has, -1 if none. same: those of version `held` are the same weights, so that only their number is to be told."""

    peer: bytes
    session: bytes
    version: int
    held: int = -1
    same: bool = False


@dataclass(frozen=True, slots=True)
class Brief:
    """Ask the aggregator for this task's own arrays; the learner answers with Briefed. task: with those who are to do it."""

    task: Task
    attempt: int


@dataclass(frozen=True, slots=True)
class SendTask:
    """This Assign, whose brief goes with it or waits to be fetched, goes to `peer`."""

    peer: bytes
    envelope: Envelope


@dataclass(frozen=True, slots=True)
class Unbrief:
    """The brief of this attempt is not needed any more."""

    task: TaskName
    attempt: int


@dataclass(frozen=True, slots=True)
class Pull:
    """Fetch the arrays of this contribution, then let it be heard again, whole. Said again it changes nothing."""

    session: bytes
    message: Contribute


@dataclass(frozen=True, slots=True)
class Unpull:
    """They are not wanted any more."""

    task: TaskName


@dataclass(frozen=True, slots=True)
class Fold:
    """The contribution just heard goes to the learner; it answers with Folded or Unfit.

    onto: it builds on this version, so that it is folded after the step that makes `onto` and before the next.
    clients: who did the work (the actor's own number for a task that names nobody). session: of whom it came from.
    promised: an earlier life acknowledged it, so that its arrays must be those of message.digest.
    """

    task: Task
    clients: tuple[int, ...]
    message: Contribute
    onto: int
    session: bytes = b""
    promised: bool = False


@dataclass(frozen=True, slots=True)
class Step:
    """Everything folded becomes weights `version`; the learner answers with Stepped.

    steps: environment steps folded in since the run began; drawn: tasks that its plan has given out. Both go in snapshots.
    last: the goal is reached with it.
    """

    version: int
    steps: int
    drawn: int
    last: bool = False


@dataclass(frozen=True, slots=True)
class Evict:
    """This actor's worker hangs: where its process is ours, end it."""

    peer: bytes


@dataclass(frozen=True, slots=True)
class Gone:
    """This session's life here is over: whatever is kept of it outside the core may go. It may begin another."""

    session: bytes


@dataclass(frozen=True, slots=True)
class Finish:
    """The run is over. failed: it could not reach its goal."""

    reason: str
    failed: bool = False


Effect: TypeAlias = (
    Send | Admit | SendWeights | Brief | SendTask | Unbrief | Pull | Unpull | Fold | Step | Report | Evict | Gone | Finish
)
