"""The messages between actors and the coordinator, each a frozen dataclass.

The one idea: the class name is the wire name and the annotations are the schema, so that a message is described once
and a peer's bytes are checked field by field, exactly, before any other code sees them.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import field
from typing import TypeAlias

from shoal.protocol.value import value
from shoal.protocol.work import Words

PROTOCOL = 0x0207  # major * 256 + minor: a new minor adds fields at the end; a peer with another major is refused

WHOLE = -1  # in place of a version that changes build on: the weights themselves

TaskName: TypeAlias = tuple[int, int]
"""(version, index): a task's name within a run."""


# Messages of an actor


@value
class Hello:
    """An actor's first message on any connection, repeated until Welcome; repeats change nothing.

    host: name of the machine and its boot, by which both ends know whether they can share memory. offers: ways in which this
    actor can exchange arrays beside the socket ("shm"), and "code" if it opens pickles. greeting: number of times that the
    actor has looked for a place before, by which a late message is known for late. epoch: life of the coordinator in which the
    actor has a place and remembers it, so that only its connection is new; 0: it has no place. held: newest version that the
    actor holds from that life; WHOLE: none, or it wants the weights whole. busy: True if its worker has a task. job: digest of
    the job's file and of Shoal's version on its machine; "": not told. threads: threads that it computes with, of which bits
    depend; 0: not told. follows: True for a server of predictions, which wants the weights and does no task. A coordinator of
    protocol 2.3 or earlier takes it for an actor that does tasks. cores, memory (bytes), gpus (names by which CUDA knows them):
    of its machine, for the calls of a pool; 0 and (): not told. evaluates: True for an evaluator, an actor that does
    evaluations and nothing else. A coordinator of protocol 2.6 or earlier takes it for an actor that trains.
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
    job: str = ""
    threads: int = 0
    follows: bool = False
    cores: int = 0
    memory: int = 0
    gpus: tuple[str, ...] = ()
    evaluates: bool = False


@value
class Have:
    """Weights `version` arrived at this actor. One Weights is under way to an actor at a time: Have frees the way for the next.

    using: the oldest version that this actor still looks at; the memory of earlier versions may be written again.
    """

    version: int
    using: int = 0


@value
class Contribute:
    """The work of one task, sent again until a Verdict names it. Its arrays follow in the payload, or lie in shared memory at
    `slot`, or wait at the actor, `nbytes` bytes, until the coordinator wants them.

    layout: digest of the arrays' layout; "": there are no arrays. summed: True if the arrays are one weighted sum over the
    task's clients. waited: seconds that the worker was idle before the task; trained: seconds that it took for the task.
    digest: of the arrays (protocol/layout.py, Bundle.sha256), if the actor keeps them beyond the verdict, so that arrays that
    it offers again are known for the same; "": it does not keep them. steps: environment steps that the worker made, over all
    of the task's clients.
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


AWAY = "away"  # stage of a Failed: the client dropped out


@value
class Failed:
    """The worker raised an exception for `client`, in the part of the task called `stage`. The actor takes the next task. The
    stage AWAY: the client dropped out, and no exception was raised."""

    task: TaskName
    attempt: int
    client: int
    stage: str
    error: str
    traceback: str


BEATS = 4  # beats that may be missed before the other side is given up


@value
class Beat:
    """A sign of life, from either side when it has sent no other message for Welcome.beat seconds.

    progress: from an actor, the number of clients finished since its start; from the coordinator, the newest version. kept:
    newest version that is in a snapshot; -1: none, or an actor says this. beat: seconds between two signs of life for as many
    actors as there are by now; 0: an actor says this. runs: (version, index, attempt) of the task that the actor's worker is
    at; (): it is at none, or the coordinator says this. told: what the worker of a pool's actor says of itself: memory that is
    free there, memory that its call uses; or where the worker of a run's actor is that is at one task for long
    (actors/whereabouts.py); empty: nothing.
    """

    progress: int
    kept: int = -1
    beat: float = 0.0
    runs: tuple[int, ...] = ()
    told: Words = field(default_factory=dict)


@value
class Bye:
    """The actor leaves; its tasks go to other actors at once."""

    reason: str


@value
class Ready:
    """The actor's line for arrays has a new connection: messages that were under way on the last one are lost."""


# A message of a monitor, which is no actor


@value
class Ask:
    """The question how the run is, of `shoal status` under a session of its own; the coordinator answers State. It gives no
    place, and may be asked at any time. A coordinator of protocol 2.2 or earlier drops it as malformed."""

    protocol: int


# Messages of a client of `shoal serve`, which is no actor, to the server


@value
class Predict:
    """A request of a client, under a session of its own. The payload holds the rows, in C order. It may be sent again: a new
    connection may lead to another process of the server.

    number: of the request, which its answer has too. dtype: of the rows, numpy's name. shape: (rows, ...). deadline: seconds
    from its arrival after which it is not computed any more; 0: none. key: the user that it is for, who is always given the
    same model; "": none.
    """

    number: int
    dtype: str
    shape: tuple[int, ...]
    deadline: float = 0.0
    key: str = ""


@value
class Inquire:
    """The question for a server's figures; the answer is Figures. number: of the question, which its answer has too."""

    number: int


# Messages of either side: the receiver of arrays asks, their sender answers


@value
class Want:
    """A request for bytes of `what`, from `first` to before `last`; (0, 0) asks for none, to see how long an answer takes.

    what: (version,): the weights; (version, base): the changes of the weights since `base`; (version, index, attempt): the
    contribution of a task, if the coordinator asks, or the brief of a task, if an actor asks.
    """

    what: tuple[int, ...]
    first: int
    last: int


@value
class Chunk:
    """The answer to Want: the payload holds the bytes that it asked for."""

    what: tuple[int, ...]
    first: int
    last: int


# Messages of the coordinator


@value
class Welcome:
    """The answer to Hello. The payload holds the Terms of the run: see `protocol/codec.py`, pack_welcome.

    number: the actor's place, the lowest free one; -1: it follows or evaluates, and has none. beat: seconds of silence that
    either side should keep, at most. patience: seconds of silence after which the other side is given up. greeting: that of the
    Hello. resumed: True if the actor has the place that it had before; its tasks are then told again. retain: bytes of accepted
    contributions that the actor keeps, at most, until a version with them is in a snapshot: the coordinator has only their
    digests; 0: it keeps none.
    """

    run: str
    number: int
    beat: float
    patience: float
    host: str
    shares: tuple[int, ...]  # offer of the weights' shared slots; (): arrays go by the socket
    greeting: int = 0
    resumed: bool = False
    retain: int = 0


@value
class Weights:
    """Weights `version`. They follow in the payload, or lie in shared memory at `slot`, or wait at the coordinator, `nbytes`
    bytes, until the actor wants them.

    base: version since which the arrays are the changes (protocol/changes.py); WHOLE: they are the weights themselves. If no
    arrays come at all, weights `version` are weights `base` under a new number. slot: a token (protocol/board.py), then the
    version as which the slot was written. kept: newest version that is in a snapshot; -1: none.
    """

    version: int
    slot: tuple[int, ...] = ()
    nbytes: int = 0
    base: int = WHOLE
    kept: int = -1


@value
class Assign:
    """A task for an actor, to start from weights `task[0]` or newer.

    attempt: number by which this lease differs from any other of a task of this name, also from one of another life of the
    coordinator (which may have cut tasks otherwise). kind, counts, words: as in Task (protocol/work.py). summed: True if the
    actor is to send one sum over the clients. exact: True if that sum has the form of protocol/exact.py that no order changes;
    False if it is of plain floats. brief: digest of the layout of the task's own arrays; "": it has none. They follow in the
    payload, or wait at the coordinator, `nbytes` bytes, under the name (version, index, attempt).
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


@value
class Verdict:
    """The answer to Contribute or Failed. verdict: "accepted", "duplicate", "stale" or "refused".

    onto: version that the contribution was folded onto: the actor keeps the arrays until a later version is in a snapshot; -1:
    the actor need not keep them.
    """

    task: TaskName
    attempt: int
    verdict: str
    reason: str
    onto: int = -1


@value
class Cancel:
    """The end of a task that is no longer wanted. Its contribution, if it comes, is stale."""

    task: TaskName


@value
class GiveUp:
    """The wish of callers of a pool that calls of a task give up early; the task goes on. calls: their numbers."""

    task: TaskName
    calls: tuple[int, ...]


@value
class Refused:
    """The actor is not of this run (any more). final: True: it must not come back; False: it may say Hello."""

    reason: str
    final: bool


@value
class Stop:
    """The end of the run."""

    reason: str


@value
class State:
    """The answer to Ask.

    run: name of the run. state: "running", or why the run ended. pid: process id of the coordinator. version: newest version
    of the weights. goal: of the run, in words; done: share of it, 0 to 1. steps: environment steps; 0 in federated runs.
    actors: number of actors that are here. still: seconds since the last step, or since the start if there was none.
    waiting_for: one line for each thing that the run waits for, if nothing has moved for 5 s.
    """

    run: str
    state: str
    pid: int
    version: int
    goal: str
    done: float
    steps: int
    actors: int
    still: float
    waiting_for: tuple[str, ...] = ()


# Messages of a server of predictions


@value
class Predicted:
    """The answer to Predict. The payload holds the outputs, in C order.

    number: of the request. model, version: that made the outputs. dtype: of the outputs, numpy's name. shape: (rows, ...).
    request: the server's name of the request, by which an outcome may be posted.
    """

    number: int
    model: str
    version: int
    dtype: str
    shape: tuple[int, ...]
    request: str = ""


@value
class Declined:
    """The answer to a Predict that was not computed. why: "late", past its deadline; "full", the queue is full; "wrong", the
    request is; "failed", the model raised. reason: a line for a person."""

    number: int
    why: str
    reason: str


@value
class Figures:
    """The answer to Inquire. The payload holds the server's figures (`scripts/serving/stats.py`), as JSON."""

    number: int


OfActor: TypeAlias = Hello | Have | Contribute | Failed | Bye | Ready
OfMonitor: TypeAlias = Ask
OfClient: TypeAlias = Predict | Inquire
OfEither: TypeAlias = Beat | Want | Chunk
OfCoordinator: TypeAlias = Welcome | Weights | Assign | Verdict | Cancel | GiveUp | Refused | Stop | State
OfServer: TypeAlias = Predicted | Declined | Figures
Message: TypeAlias = OfActor | OfMonitor | OfClient | OfEither | OfCoordinator | OfServer


@value
class Envelope:
    """A message and its lives. session: the actor's, 8 random bytes. epoch: the coordinator's; 0: not known."""

    session: bytes
    epoch: int
    message: Message
