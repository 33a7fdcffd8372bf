"""Arrays on their way in pieces: what their receiver asks for next.

The one idea: whoever receives pulls. It asks for as much as keeps the way busy and no more, so that nothing queues up
anywhere, what was lost is asked for again and nothing else is, and whoever has the arrays need remember nothing.
"""

from __future__ import annotations

import math
from collections import deque
from dataclasses import dataclass
from typing import TypeAlias

Range: TypeAlias = tuple[int, int]
"""Bytes from the first to before the last."""

LEAST, MOST = 1 << 18, 1 << 21  # bytes of a chunk; larger ones gain nothing, and no longer fit in a core's cache
SPAN = 0.02  # seconds that a chunk should take
SLOWEST, LONGEST = 1 << 14, 2.0  # bytes of a chunk where one of LEAST would take longer than so many seconds, at least
FAR = 0.05  # seconds there and back of a way that may be a slow one, as far as is known before anything came
DEEPEST = 1 << 26  # bytes under way at most, however long the way
PROBE: Range = (0, 0)
UNKNOWN, KNOWN = 20.0, 5.0  # seconds after which a chunk is asked for again: of a way that is not known yet, and at least
FASTEST = 1e10  # bytes a second, of memory
NEWEST = 0.1  # weight of the newest chunk in running means


def to_go(left: int, nbytes: int) -> str:
    """For a person who waits."""
    return f"{left / 1e6:,.1f} of {nbytes / 1e6:,.1f} MB still to come"


@dataclass(slots=True)
class Way:
    """What is known of a way to somewhere; kept from one transfer to the next. rtt: seconds there and back, the least that was
    seen (an end that is busy answers late, and that does not make the way longer), -1 before it was tried; rate: bytes a
    second, 0 before anything came."""

    rtt: float = -1.0
    rate: float = 0.0
    _nbytes: float = 0.0
    _seconds: float = 0.0

    @property
    def chunk(self) -> int:
        """Bytes to ask for at once: a power of two. On a slow way so few that one comes every second or two, because nothing
        shows of a piece before all of it is here."""
        if self.rate == 0:
            return LEAST if self.rtt < FAR else LEAST // 4
        if (slow := self.rate * LONGEST) < LEAST:
            return max(SLOWEST, _power(slow))
        return min(MOST, max(LEAST, _power(self.rate * SPAN)))

    @property
    def window(self) -> int:
        """Bytes to have under way: one chunk, and as many as fill the time until an answer begins to come, if that is half
        of a chunk's at least. More would wait in buffers, push what is in caches out of them, and be sent again after a cut."""
        ahead = max(0.0, self.rtt) * self.rate / self.chunk
        return min(DEEPEST, self.chunk * (1 + (math.ceil(ahead) if ahead > 0.5 else 0)))

    def answered(self, seconds: float) -> None:
        """Something came so long after it was asked for."""
        self.rtt = seconds if self.rtt < 0 else min(self.rtt, seconds)

    def took(self, nbytes: int, seconds: float) -> None:
        """So many bytes came in so many seconds. Of pieces that were taken in together all but the first took no time: the rate
        is of all bytes to all seconds, those longer ago counting less."""
        self._nbytes += NEWEST * (nbytes - self._nbytes)
        self._seconds += NEWEST * (max(seconds, nbytes / FASTEST) - self._seconds)
        self.rate = self._nbytes / self._seconds


def _power(number: float) -> int:
    """The largest power of two that is not above it; 1 at least."""
    return 1 << max(0, int(number).bit_length() - 1)


class Fetch:
    """One transfer of `nbytes`, at the receiving end. `left`: bytes that are not here; `again`: bytes asked for more than
    once; `given_up`: how often they were, because they were late. Times are in seconds of a clock that never goes back."""

    def __init__(self, nbytes: int, way: Way) -> None:
        self.left, self.way = nbytes, way
        self.again = self.given_up = 0
        self._nbytes, self._next = nbytes, 0
        self._lost: deque[Range] = deque()
        self._asked: dict[Range, float] = {}  # what is under way -> when it was asked for
        self._under_way = 0
        self._free_at = float("-inf")  # when something came last
        self._late = 1.0  # times the usual patience

    def ask(self, now: float, most: int = DEEPEST) -> list[Range]:
        """What to ask for now, so that at most `most` bytes are under way, or one chunk of the least size."""
        self._give_up(now)
        if self.way.rtt < 0:
            return [] if PROBE in self._asked else [self._note(PROBE, now)]
        asked: list[Range] = []
        while (one := self._following(most)) is not None:
            asked.append(self._note(one, now))
        return asked

    def arrived(self, first: int, last: int, now: float) -> bool:
        """Is it wanted? If so it is not asked for any more."""
        when = self._asked.pop((first, last), None)
        if when is None:
            return False
        self.way.answered(now - when)
        if (first, last) == PROBE:
            return True
        self.way.took(last - first, now - max(self._free_at, when + self.way.rtt))
        self._under_way -= last - first
        self.left -= last - first
        self._free_at, self._late = now, 1.0
        return True

    def cut(self) -> None:
        """The connection is another one: nothing that is under way will come."""
        self._lose(list(self._asked))

    def _following(self, most: int) -> Range | None:
        """The next piece, if there is room for it under way."""
        if self._next == self._nbytes and not self._lost:
            return None
        chunk = min(self.way.chunk, max(LEAST, _power(most)))
        if self._under_way and self._under_way + chunk > min(self.way.window, most):
            return None
        if self._lost:
            return self._lost.popleft()
        first, self._next = self._next, min(self._nbytes, self._next + chunk)
        return first, self._next

    def _note(self, one: Range, now: float) -> Range:
        self._asked[one] = now
        self._under_way += one[1] - one[0]
        return one

    def _give_up(self, now: float) -> None:
        """What should have come long ago."""
        if not self._asked:
            return
        usual = UNKNOWN if self.way.rate == 0 else max(KNOWN, 4 * (self.way.rtt + self._under_way / self.way.rate))
        since = now - usual * self._late
        late = [one for one, when in self._asked.items() if max(when, self._free_at) < since]
        if late:
            self.given_up += 1
            self._late *= 2
            self._lose(late)

    def _lose(self, pieces: list[Range]) -> None:
        for one in pieces:
            del self._asked[one]
            self._under_way -= one[1] - one[0]
            if one != PROBE:
                self.again += one[1] - one[0]
                self._lost.append(one)
