"""Contributions whose arrays come in pieces: which are fetched now, and how far they are.

The one idea: one that is only announced costs a few hundred bytes, so any number may wait; what is fetched and not yet folded
in has a bound, so that a cohort of ten thousand costs no more memory than one of ten.
"""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass

from shoal.protocol.fetching import Fetch, Way
from shoal.protocol.messages import Chunk, Contribute, TaskName, Want

LOOK = 0.25  # seconds between two looks at what does not come
LARGE = 64  # contributions too large for the room that are fetched at a time


@dataclass(slots=True)
class Stream:
    """One contribution. fetch: None while it waits for its turn. moved_at: when this began, or a piece came last."""

    session: bytes
    message: Contribute
    fetch: Fetch | None = None
    moved_at: float = 0.0

    @property
    def whole(self) -> bool:
        return self.fetch is not None and not self.fetch.left

    @property
    def what(self) -> tuple[int, ...]:
        return (*self.message.task, self.message.attempt)


class Receiving:
    """room: bytes that may be fetched, and wait to be folded in, at a time; what is larger than that goes somewhere else, and
    of it only what is under way counts. Decides, and sees no arrays. Times are in seconds of a clock that never goes back."""

    def __init__(self, room: int) -> None:
        self.room = room
        self.held = self.large = 0
        self.streams: dict[TaskName, Stream] = {}
        self._waiting: OrderedDict[TaskName, None] = OrderedDict()
        self.lanes: dict[bytes, bytes] = {}  # session -> the connection that its arrays come by, and are asked for by
        self._fetching: dict[bytes, TaskName] = {}  # one at a time from a session: they have one way
        self._ways: dict[bytes, Way] = {}
        self._due: dict[bytes, None] = {}  # sessions that may be asked for more
        self._news = False  # may somebody who waits have a turn since we looked?
        self._looked_at = 0.0

    def pull(self, session: bytes, message: Contribute) -> None:
        """It is wanted: fetch it when there is room."""
        stream = self.streams.get(message.task)
        if stream is not None and (stream.session, stream.message.attempt) == (session, message.attempt):
            return
        self.drop(message.task)
        self.streams[message.task] = Stream(session, message)
        self._waiting[message.task] = None
        self._news = True

    def drop(self, task: TaskName) -> None:
        """It is folded in, or not wanted any more; or was never pulled."""
        stream = self.streams.pop(task, None)
        if stream is None:
            return
        self._waiting.pop(task, None)
        self._news = True
        if stream.fetch is not None:
            self._count(stream, -1)
            self._next(stream.session, task)

    def gone(self, session: bytes) -> None:
        """It will not come back."""
        self.lanes.pop(session, None)
        self._ways.pop(session, None)
        self._due.pop(session, None)

    def cut(self, session: bytes) -> None:
        """Its connection is another one: what was under way is lost."""
        stream = self.streams.get(self._fetching.get(session, (-1, -1)))
        if stream is not None and stream.fetch is not None:
            stream.fetch.cut()
            self._due[session] = None

    def came(self, session: bytes, chunk: Chunk, now: float) -> Stream | None:
        """A piece came. Of which stream it is, if it was asked for."""
        stream = self._stream(session, chunk)
        if stream is None or stream.fetch is None or not stream.fetch.arrived(chunk.first, chunk.last, now):
            return None
        stream.moved_at = now
        if stream.fetch.left:
            self._due[session] = None
        else:
            self._next(session, stream.message.task)
        return stream

    def _stream(self, session: bytes, chunk: Chunk) -> Stream | None:
        stream = self.streams.get((chunk.what[0], chunk.what[1])) if len(chunk.what) == 3 else None
        return stream if stream is not None and (stream.session, stream.what) == (session, chunk.what) else None

    def ask(self, now: float, starved: bool) -> list[tuple[bytes, Want]]:
        """What to ask whom for. starved: nothing that is here can be folded in before something else has come."""
        if not self.streams:
            return []
        self._begin(now, starved and not self._fetching)
        if now - self._looked_at >= LOOK:
            self._looked_at = now
            self._due.update(dict.fromkeys(self._fetching))
        due, self._due = self._due, {}
        share = self.room // max(1, len(self._fetching))  # what is under way lies in memory too, and nowhere else is it counted
        wants: list[tuple[bytes, Want]] = []
        for session in due:
            stream = self.streams.get(self._fetching.get(session, (-1, -1)))
            if stream is not None and stream.fetch is not None:
                given_up = stream.fetch.given_up
                wants += [(session, Want(stream.what, first, last)) for first, last in stream.fetch.ask(now, share)]
                if stream.fetch.given_up > given_up:
                    self.lanes.pop(session, None)  # what should have come by it has not: ask on the other line
        return wants

    def stalled(self, since: float) -> list[TaskName]:
        """Of what nothing has come since then, though it was asked for."""
        return [task for task in self._fetching.values() if self.streams[task].moved_at < since]

    def to_go(self, session: bytes, chunk: Chunk) -> tuple[TaskName | None, int]:
        """What it is a piece of, and how many bytes of that are still to come; None where nobody waits for it."""
        stream = self._stream(session, chunk)
        return (stream.message.task, stream.fetch.left) if stream is not None and stream.fetch is not None else (None, 0)

    def _begin(self, now: float, one: bool) -> None:
        """Those that wait have their turn, in order, as far as there is room; `one` of them in any case."""
        if not (self._waiting and (one or (self._news and self.held < self.room))):
            return
        self._news = False
        for task in list(self._waiting):
            stream = self.streams[task]
            if not (one or self._fits(stream.message.nbytes)):
                return
            one = False
            if stream.session not in self._fetching:
                del self._waiting[task]
                stream.fetch = Fetch(stream.message.nbytes, self._ways.setdefault(stream.session, Way()))
                stream.moved_at = now
                self._count(stream, 1)
                self._fetching[stream.session] = task
                self._due[stream.session] = None

    def _fits(self, nbytes: int) -> bool:
        return self.large < LARGE if nbytes > self.room else self.held + nbytes <= self.room

    def _count(self, stream: Stream, sign: int) -> None:
        if stream.message.nbytes > self.room:
            self.large += sign
        else:
            self.held += sign * stream.message.nbytes

    def _next(self, session: bytes, task: TaskName) -> None:
        """Nothing of this one is to come: the way is free for another of the same session."""
        if self._fetching.get(session) == task:
            del self._fetching[session]
            self._news = True
