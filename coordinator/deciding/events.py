"""The events that a coordinator core takes, and the effects that it returns.

The one idea: every effect is a plain value that the shell carries out without an opinion, and its outcome (a send that
failed, a step that is done) is just another event.
"""

from __future__ import annotations

from typing import Any, TypeAlias

from shoal.coordinator.reports import Report
from shoal.protocol.messages import Contribute, Envelope, Hello, TaskName
from shoal.protocol.value import value
from shoal.protocol.work import Metrics, Task

# Events


@value
class Heard:
    """A message came from `peer`. fault: the payload's fault that the shell found; "" if none. user: the sender's proven
    public key; "" if the run asks for none. whole: all arrays of the message are here; False if they are still to be pulled.
    arrays: the arrays that came with the message, for the shell; None if none did. The core does not look at them."""

    peer: bytes
    envelope: Envelope
    fault: str = ""
    user: str = ""
    whole: bool = True
    arrays: Any = None


@value
class Carried:
    """Arrays moved from or to this session, which asked for them or sent them: it lives. session: b"" if they were sent without
    a word from the actor. task: the task whose contribution or brief they are; None if neither. left: bytes of its arrays
    that are still to come; 0 without a task."""

    session: bytes
    task: TaskName | None = None
    left: int = 0


@value
class Stalled:
    """The arrays of this task's contribution were asked for, and no piece of them has come for the time of a lease."""

    task: TaskName


@value
class Outdated:
    """The session wants weights `version`, which cannot be had any more."""

    session: bytes
    version: int


@value
class Lost:
    """`peer` cannot be reached any more. dead: its process has ended, so it will not come back. ran: (version, index, attempt)
    of the task that its worker began last, from a record of the shell's; (): it began none; None: there is no such record."""

    peer: bytes
    why: str
    dead: bool = False
    ran: tuple[int, ...] | None = None


@value
class Pulse:
    """The answer to Probe. silent: seconds since anything came over the peer's connection, the answers of ZeroMQ's own threads
    included, which do not wait for Python. Where that is not known, no Pulse comes."""

    peer: bytes
    silent: float


@value
class Folded:
    """The learner folded in the contribution of this task."""

    task: TaskName


@value
class Unfit:
    """The learner refused this task's contribution (not finite, too large ...), which has not touched the weights."""

    task: TaskName
    reason: str


@value
class Briefed:
    """The learner made the brief of this attempt. layout: of its arrays, "" if there is no brief. arrays: for the shell, None
    if there is no brief; the core looks at their number of bytes alone."""

    task: TaskName
    attempt: int
    layout: str = ""
    arrays: Any = None


@value
class Stepped:
    """The learner made weights `version`, whose record in the journal, if the run has a journal, is durable. moved: False if
    the step left the weights as they were."""

    version: int
    metrics: Metrics
    moved: bool = True


@value
class Kept:
    """A snapshot holds weights `version`. Kept comes after the version's Stepped; before it for the last version of a run."""

    version: int


@value
class Tick:
    """Time passed."""


@value
class Nudge:
    """The plan, which is fed from outside, has new tasks to ask for."""


@value
class Withdraw:
    """A task that nobody wants any more. The actor that has it is ended, because its worker may be at the task."""

    task: TaskName


@value
class Flag:
    """Callers asked to give up calls of a task, which goes on. calls: their numbers."""

    task: TaskName
    calls: tuple[int, ...]


@value
class Dismiss:
    """An actor is not needed any more, or its worker is at a call that nobody wants. It is told not to come back, and its tasks
    go to others. reason: for it and for a person."""

    session: bytes
    reason: str


@value
class Interrupt:
    """The person (or a limit) wants the run to end here. pause: actors hear nothing of it, and wait for the run's next life."""

    reason: str
    pause: bool = False


Event: TypeAlias = (
    Heard
    | Carried
    | Stalled
    | Outdated
    | Lost
    | Pulse
    | Folded
    | Unfit
    | Briefed
    | Stepped
    | Kept
    | Tick
    | Nudge
    | Withdraw
    | Flag
    | Dismiss
    | Interrupt
)

# Effects


@value
class Send:
    peer: bytes
    envelope: Envelope


@value
class Admit:
    """Say Welcome to `peer`: the shell adds what only it knows (workload, layout, shared memory)."""

    peer: bytes
    session: bytes
    number: int
    hello: Hello
    resumed: bool = False


@value
class SendWeights:
    """Send the newest weights, which are `version`, to `peer`. One version is under way to an actor at a time. held: newest
    version that the actor has, -1 if none. same: version `held` has the same weights, so that only the number is to be told."""

    peer: bytes
    session: bytes
    version: int
    held: int = -1
    same: bool = False


@value
class Brief:
    """Ask the aggregator for this task's own arrays; the learner answers with Briefed. task: names the clients that do it."""

    task: Task
    attempt: int


@value
class SendTask:
    """Send this Assign to `peer`. arrays: its brief, which goes with it or waits to be fetched."""

    peer: bytes
    envelope: Envelope
    arrays: Any


@value
class Pull:
    """Fetch the arrays of this contribution, then let the core hear it again, whole. A repeated Pull changes nothing."""

    session: bytes
    message: Contribute


@value
class Unpull:
    """Drop the arrays of this task's contribution: they are not wanted any more."""

    task: TaskName


@value
class Fold:
    """Give the contribution just heard to the learner, which answers with Folded or Unfit; if its task does not count, to the
    statistics alone.

    onto: version that the contribution builds on; it is folded after the step that makes `onto` and before the next.
    clients: the clients that did the work (the actor's own number for a task without clients). session: of its actor.
    promised: an earlier life acknowledged the contribution, so that its arrays must have message.digest.
    """

    task: Task
    clients: tuple[int, ...]
    message: Contribute
    onto: int
    session: bytes = b""
    promised: bool = False


@value
class Step:
    """Make weights `version` of the folded contributions; the learner answers with Stepped.

    steps: environment steps folded in since the run began. drawn: tasks that the run's plan has given out. Both go in
    snapshots. last: the goal is reached with `version`.
    """

    version: int
    steps: int
    drawn: int
    last: bool = False


@value
class Evict:
    """End this actor's process, if it is ours: its worker hangs, or is at a task that nobody wants any more."""

    peer: bytes


@value
class Probe:
    """Ask how long nothing has come over this peer's connection; Pulse answers."""

    peer: bytes


@value
class Gone:
    """Forget this session outside the core: its life here is over. The session may begin another."""

    session: bytes


@value
class Finish:
    """End the run. failed: the run could not reach its goal."""

    reason: str
    failed: bool = False


Effect: TypeAlias = (
    Send | Admit | SendWeights | Brief | SendTask | Pull | Unpull | Fold | Step | Report | Evict | Probe | Gone | Finish
)
