"""Everything that is ever said: a frozen dataclass a message.

The one idea: the class name is the wire name and the annotations are the schema, so that a message is described once
and a peer's bytes are checked field by field, exactly, before anything else sees them.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TypeAlias

from shoal.protocol.work import Words

PROTOCOL = 0x0200  # major * 256 + minor: a minor adds fields at the end, a major is refused

WHOLE = -1  # no version: weights as they are

TaskName: TypeAlias = tuple[int, int]
"""(version, index): names a task within a run."""


# An actor says


@dataclass(frozen=True, slots=True)
class Hello:
    """First thing on any connection, repeated until Welcome; repeats change nothing.

    host names the machine and its boot, so that both ends know whether they can share memory; offers lists the ways in
    which this actor can exchange arrays beside the socket ("shm"). greeting: how often it has looked for a place before,
    so that what comes late is known for late. epoch: the life of the coordinator in which it has a place and remembers it,
    so that only its connection is new; 0 where it begins. held: the newest weights it has from there, WHOLE if none or if it
    wants them whole; busy: its worker has something to do.
    """

    protocol: int
    name: str
    host: str
    pid: int
    offers: tuple[str, ...]
    greeting: int = 0
    epoch: int = 0
    held: int = -1
    busy: bool = False


@dataclass(frozen=True, slots=True)
class Have:
    """Weights arrived here. One Weights is under way to an actor at a time: this frees the way for the next.

    using: the oldest version that this actor still looks at; the memory of those before it may be written anew.
    """

    version: int
    using: int = 0


@dataclass(frozen=True, slots=True)
class Contribute:
    """The work of one task. Sent again until a Verdict names it. Its arrays follow in the payload, or lie in shared memory at
    `slot`, or wait here, `nbytes` of them, until the coordinator wants them.

    layout: digest of the arrays' layout, "" where there are none. summed: they are one exact weighted sum over the task's
    clients. waited, trained: seconds of the actor's time since its last Contribute. digest: of the arrays (protocol/layout.py,
    Bundle.sha256), where the actor keeps them beyond the verdict, so that what is offered again is known for the same.
    steps: environment steps that the worker made, over all of the task's clients.
    """

    task: TaskName
    attempt: int
    made_from: int
    weight: float
    layout: str
    summed: bool
    totals: Mapping[str, tuple[float, float]]
    samples: Mapping[str, tuple[float, ...]]
    waited: float
    trained: float
    slot: tuple[int, ...] = ()
    nbytes: int = 0
    digest: str = ""
    steps: int = 0


@dataclass(frozen=True, slots=True)
class Failed:
    """The worker raised. The actor lives and takes the next task."""

    task: TaskName
    attempt: int
    client: int
    stage: str
    error: str
    traceback: str


BEATS = 4  # that may be missed before the other side is given up


@dataclass(frozen=True, slots=True)
class Beat:
    """Alive, said by either side when it has said nothing else for a while.

    From an actor, progress counts clients finished since its start; from the coordinator it is the newest version, kept the
    newest that is in a snapshot, and beat the seconds between two of these, for as many actors as there are by now.
    """

    progress: int
    kept: int = -1
    beat: float = 0.0


@dataclass(frozen=True, slots=True)
class Bye:
    """This actor leaves; its tasks go to others at once."""

    reason: str


@dataclass(frozen=True, slots=True)
class Ready:
    """This actor's line for arrays is another connection than before: what was under way on the last is lost."""


# Whoever is to receive arrays says, and whoever has them answers


@dataclass(frozen=True, slots=True)
class Want:
    """Send me these bytes of it, from `first` to before `last`; none at all is asked for to see how long an answer takes.

    what: (version,) is of weights, (version, base) of what changed in them since `base`; (version, index, attempt) of what a
    task has made, where the coordinator asks, or of the task's brief, where an actor asks.
    """

    what: tuple[int, ...]
    first: int
    last: int


@dataclass(frozen=True, slots=True)
class Chunk:
    """Here they are, in the payload."""

    what: tuple[int, ...]
    first: int
    last: int


# The coordinator says


@dataclass(frozen=True, slots=True)
class Welcome:
    """Answers Hello. The payload holds workload and layout: see `protocol/codec.py`, pack_welcome.

    number is the actor's place, the lowest free one; beat is the longest silence in seconds that either side should keep,
    patience how long the other side will bear it. greeting: that of the Hello. resumed: it is the place that it had; what
    it has to do is told again. retain: bytes of accepted contributions that the actor is to keep, at most, until a version
    that they are in is in a snapshot: the coordinator has only their digests.
    """

    run: str
    number: int
    beat: float
    patience: float
    host: str
    shares: tuple[int, ...]  # the handle of the weights' shared segment, () where arrays go by the socket
    greeting: int = 0
    resumed: bool = False
    retain: int = 0


@dataclass(frozen=True, slots=True)
class Weights:
    """Weights `version`. They follow in the payload, or lie in shared memory at `slot`, or wait here, `nbytes` of them.

    base: what comes is not they, but what changed since weights `base` (protocol/changes.py); WHOLE if it is they.
    kept: the newest version that is in a snapshot.
    """

    version: int
    slot: tuple[int, ...] = ()
    nbytes: int = 0
    base: int = WHOLE
    kept: int = -1


@dataclass(frozen=True, slots=True)
class Assign:
    """Do this, starting from weights `task[0]` or newer. attempt tells this lease from any other of a task of
    this name, also from one that another life of the coordinator gave (and may have cut otherwise).

    kind, counts, words: as in Task (protocol/work.py). exact: a sum has the form of protocol/exact.py that no order changes;
    else it is of plain floats. brief: the layout of the task's own arrays, "" where it has none; they follow in the payload, or
    wait here, `nbytes` of them, under the name (version, index, attempt).
    """

    task: TaskName
    attempt: int
    clients: tuple[int, ...]
    kind: str
    summed: bool
    exact: bool = True
    counts: bool = True
    words: Words = field(default_factory=dict)
    brief: str = ""
    nbytes: int = 0


@dataclass(frozen=True, slots=True)
class Verdict:
    """What became of a Contribute or Failed: accepted, duplicate, stale or refused. Nothing need be kept any more, unless it
    is in what follows version `onto`, from 0: then until that is in a snapshot."""

    task: TaskName
    attempt: int
    verdict: str
    reason: str
    onto: int = -1


@dataclass(frozen=True, slots=True)
class Cancel:
    """This task is no longer wanted. Its result, if it comes, is stale."""

    task: TaskName


@dataclass(frozen=True, slots=True)
class Refused:
    """You are not of this run (any more): say Hello, or, if `final`, do not come back."""

    reason: str
    final: bool


@dataclass(frozen=True, slots=True)
class Stop:
    """The run is over."""

    reason: str


Message: TypeAlias = (
    Hello
    | Have
    | Contribute
    | Failed
    | Beat
    | Bye
    | Ready
    | Want
    | Chunk
    | Welcome
    | Weights
    | Assign
    | Verdict
    | Cancel
    | Refused
    | Stop
)


@dataclass(frozen=True, slots=True)
class Envelope:
    """A message and whose life it belongs to: the actor's session (8 random bytes), the coordinator's epoch (0: unknown)."""

    session: bytes
    epoch: int
    message: Message
