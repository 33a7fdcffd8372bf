"""A map of many calls: many short ones go as one call of the pool, and their results are never futures.

The one idea: the pool learns from the first calls how long one takes, and what goes at once lasts for some milliseconds. A
piece whose process ended is cut into its calls, so who is blamed and how often a call is tried is the business of single calls.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import CancelledError, Future
from functools import partial
from typing import Any, Generic, NamedTuple, TypeVar

from shoal.actors.workers.many import Made
from shoal.coordinator.deciding.plans.tickets import BYTES, CHUNK, Batch
from shoal.protocol.errors import WorkerLost
from shoal.protocol.trusted import opened
from shoal.tasks.entries import Entry
from shoal.tasks.futures import RemoteTraceback, Result
from shoal.tasks.meter import Tally
from shoal.tasks.running import Running

T = TypeVar("T")
FEW = 64  # calls of a map that are made one by one, at most
MOST = 4_096  # calls of a piece
LEAST = 0.001  # seconds that a piece lasts, at least: some times what it costs
SPREAD = 4  # pieces of equal size into which the rest is cut for each actor, at least, so that all actors end together


class Came(NamedTuple):
    """The results of calls in a row. raised: place among them -> exception. nbytes: of the piece, in the account of a batch."""

    values: list[Any]
    raised: dict[int, BaseException]
    nbytes: int


class Part:
    """Calls of a map that are out, as one call of the pool. start, end: the first, and after the last. alone: it is one call,
    which may be blamed. held: it counts among those that are out."""

    __slots__ = ("_spread", "alone", "end", "held", "start")

    def __init__(self, spread: Spread[Any], start: int, end: int, alone: bool) -> None:
        self._spread, self.start, self.end, self.alone, self.held = spread, start, end, alone, True

    def cut(self, at: int) -> None:
        self._spread.cut(self, self.start + at)


class Spread(Generic[T]):
    """The calls of a map, of which there are `many`. make: an entry of the pool for a part; raises what keeps arguments from
    travelling. pace: seconds of a call as far as it is known; None: it is not. learned: is told seconds of a call among
    others."""

    def __init__(
        self,
        many: int,
        make: Callable[[Part], Entry],
        pace: Callable[[], float | None],
        learned: Callable[[float], object],
        running: Running,
        batch: Batch,
        width: int,
    ) -> None:
        self.batch = batch
        self._all, self._make, self._pace, self._learned = many, make, pace, learned
        self._running, self._width = running, width
        self._change = threading.Condition(threading.RLock())
        self._tally = Tally(many)
        self._next, self._out, self._left = 0, 0, many
        self._again: deque[tuple[int, int, bool]] = deque()  # (first, after the last, one by one) of calls to be made again
        self._came: dict[int, Came] = {}
        self._seconds: float | None = None
        self._nbytes = 0.0  # of a call's arguments
        self._ended: BaseException | None = None  # why no further call is made
        self._over = False  # the pool does not wait for this map any more
        self._whole: Future[list[T]] | None = None

    def begin(self) -> None:
        """Begin. Raises RuntimeError if the pool takes no calls any more, or what keeps the first arguments from travelling."""
        self._running.expect(self._tally)
        try:
            with self._change:
                self._feed(first=True)
        except BaseException as failed:
            self._end(failed)
            raise

    def results(self, ends_at: float | None, ordered: bool) -> Iterator[T]:
        """The results, each of which is forgotten here once it is taken."""
        at = taken = 0
        try:
            while taken < self._all:
                came = self._take(at if ordered else None, ends_at)
                values, raised = came.values, came.raised
                at += len(values)
                taken += len(values)
                values.reverse()
                place = 0
                while values:
                    if raised and place in raised:
                        raise raised.pop(place)
                    yield values.pop()
                    place += 1
                full = self.batch.full
                self.batch.taken += came.nbytes
                if full and not self.batch.full:
                    self._running.nudge()
        finally:
            self._end(CancelledError())

    def whole(self) -> Future[list[T]]:
        """The future of the list of all results."""
        with self._change:
            self._whole = Future()
            self._whole.set_running_or_notify_cancel()
            self._tell()
            return self._whole

    def _take(self, at: int | None, ends_at: float | None) -> Came:
        with self._change:
            while not (self._came if at is None else at in self._came):
                if self._ended is not None:
                    raise self._ended
                seconds = None if ends_at is None else ends_at - time.monotonic()
                if (seconds is not None and seconds <= 0) or not self._change.wait(seconds):
                    raise TimeoutError
            return self._came.pop(next(iter(self._came)) if at is None else at)

    def _feed(self, first: bool = False) -> None:
        """Make calls until each actor has one that runs and one that waits. first: let an error of arguments out."""
        entries: list[Entry] = []
        while self._ended is None and self._out + len(entries) < 2 * self._width and (cut := self._cut()):
            part = Part(self, *cut)
            start, end, _ = cut
            try:
                entry = self._make(part)
            except Exception as failed:
                if end - start > 1:
                    self._again.append((start, end, True))
                elif first:
                    raise
                else:
                    self._arrived(start, Came([None], {0: failed}, 0))
                continue
            self._nbytes = entry.arguments.nbytes / (end - start)
            entry.future.add_done_callback(partial(self._done, part))
            entries.append(entry)
        self._out += len(entries)
        try:
            self._running.more(entries)
        except WorkerLost as over:
            self._ended = over

    def _cut(self) -> tuple[int, int, bool] | None:
        """The next calls to be made, as (first, after the last, alone)."""
        if self._again:
            start, end, alone = self._again.popleft()
            fresh = False
        else:
            start, end, alone, fresh = self._next, self._all, False, True
        many = 1 if alone else min(self._many(), end - start)
        if many < 1:
            return None
        if fresh:
            self._next += many
        elif start + many < end:
            self._again.appendleft((start + many, end, alone))
        return start, start + many, many == 1

    def _many(self) -> int:
        """Calls that go at once."""
        seconds = self._pace() if self._seconds is None else self._seconds
        if seconds is None or seconds > CHUNK:
            return 1
        share = (self._all - self._next) // (SPREAD * self._width)
        last = max(1e-9, seconds)
        many = min(MOST, int(CHUNK / last), max(share, int(LEAST / last)), int(BYTES / max(1.0, self._nbytes)))
        return max(1, many)

    def _done(self, part: Part, future: Future[Any]) -> None:
        with self._change:
            self._out -= part.held
            self._take_in(part, future)
            self._feed()
            self._change.notify_all()

    def cut(self, part: Part, at: int) -> None:
        """Make the calls of a part from this one on anew: they have not begun, and will not."""
        with self._change:
            if self._ended is None and part.held and at < part.end:
                self._again.append((at, part.end, False))
                part.end, part.held = at, False
                self._out -= 1
                self._feed()

    def _take_in(self, part: Part, future: Future[Any]) -> None:
        start, end, alone = part.start, part.end, part.alone
        nbytes = future.nbytes if isinstance(future, Result) else 0
        if future.cancelled():
            self._ended = self._ended or CancelledError()
            self._leave()
            return
        failed = future.exception()
        if alone:
            self._arrived(start, Came([None if failed else future.result()], {0: failed} if failed else {}, nbytes))
        elif isinstance(failed, WorkerLost) and self._running.over:
            self._ended = failed
            self._leave()
        elif failed:
            self.batch.taken += nbytes
            self._again.append((start, end, True))
        else:
            made: Made = future.result()
            count = len(made.values)
            known = self._seconds or self._pace()  # a process that was put aside for a while does not make calls slow
            self._seconds = made.seconds / count if known is None else min(made.seconds / count, 2 * known)
            self._learned(self._seconds)
            if start + count < end:
                self._again.append((start + count, end, False))
            self._arrived(start, Came(made.values, {place: _opened(parcel) for place, parcel in made.raised}, nbytes))

    def _arrived(self, start: int, came: Came) -> None:
        self._came[start] = came
        self._left -= len(came.values)
        self._tally.done += len(came.values)
        self._tell()
        if not self._left:
            self._leave()

    def _tell(self) -> None:
        """Complete the future of all results, if it can be."""
        if (whole := self._whole) is None or whole.done():
            return
        raised = next((error for came in self._came.values() for error in came.raised.values()), self._ended)
        if raised is not None:
            whole.set_exception(raised)
        elif not self._left:
            whole.set_result([value for start in sorted(self._came) for value in self._came[start].values])

    def _end(self, why: BaseException) -> None:
        with self._change:
            self._ended = self._ended or why
            self._leave()

    def _leave(self) -> None:
        """Let the pool end, once."""
        self._tell()
        if not self._over:
            self._over = True
            self._tally.many = self._tally.done  # what is left of a map that was given up is not made
            self._running.follow(None)


def _opened(parcel: bytes) -> BaseException:
    error: BaseException
    try:
        error, text = opened(parcel)
    except BaseException as raised:  # noqa: BLE001  an exception's own code runs when it is unpickled
        return raised
    error.__cause__ = RemoteTraceback(text)
    return error
