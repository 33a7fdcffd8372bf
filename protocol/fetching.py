"""Arrays on their way in pieces: the pieces that their receiver asks for next.

The one idea: the receiver pulls. It asks for as much as keeps the way busy and no more, so nothing queues up anywhere; a lost
piece is asked for again, and no other piece is; and the sender remembers nothing.
"""

from __future__ import annotations

import math
from collections import deque
from dataclasses import dataclass
from typing import TypeAlias

Range: TypeAlias = tuple[int, int]
"""(first, last): bytes from `first` to before `last`."""

LEAST, MOST = 1 << 18, 1 << 21  # bytes of a chunk; larger chunks gain nothing, and no longer fit in a core's cache
SPAN = 0.02  # seconds that a chunk should take
SLOWEST, LONGEST = 1 << 14, 2.0  # bytes of a chunk at least, on a way where LEAST bytes would take longer than LONGEST seconds
FAR = 0.05  # seconds there and back from which on a way may be slow, as long as no chunk has come
DEEPEST = 1 << 26  # bytes under way at most, however long the way
PROBE: Range = (0, 0)
UNKNOWN, KNOWN = 20.0, 5.0  # seconds after which a chunk is asked for again: if the rate is not known yet, and at least
FASTEST = 1e10  # bytes a second at most: the rate of memory
NEWEST = 0.1  # weight of the newest chunk in running means


def to_go(left: int, nbytes: int) -> str:
    """The rest of a transfer, in words for a person who waits."""
    return f"{left / 1e6:,.1f} of {nbytes / 1e6:,.1f} MB still to come"


@dataclass(slots=True)
class Way:
    """The time and rate of the way to a peer, kept from one transfer to the next.

    rtt: seconds there and back, the least that was seen (a busy end answers late, and that does not make the way longer); -1:
    the way was not tried. rate: bytes a second; 0: no chunk has come.
    """

    rtt: float = -1.0
    rate: float = 0.0
    _nbytes: float = 0.0
    _seconds: float = 0.0

    @property
    def chunk(self) -> int:
        """Bytes to ask for at once: a power of two. On a slow way so few that a chunk takes LONGEST seconds at most, because
        nothing shows of a chunk before all of it is here."""
        if self.rate == 0:
            return LEAST if self.rtt < FAR else LEAST // 4
        if (slow := self.rate * LONGEST) < LEAST:
            return max(SLOWEST, _power(slow))
        return min(MOST, max(LEAST, _power(self.rate * SPAN)))

    @property
    def window(self) -> int:
        """Bytes to have under way: one chunk, and as many as fill the time until an answer begins to come, if these are half a
        chunk or more. More bytes would wait in buffers, empty caches of other data, and be sent again after a cut."""
        ahead = max(0.0, self.rtt) * self.rate / self.chunk
        return min(DEEPEST, self.chunk * (1 + (math.ceil(ahead) if ahead > 0.5 else 0)))

    def answered(self, seconds: float) -> None:
        """Count in that an answer came `seconds` after its question."""
        self.rtt = seconds if self.rtt < 0 else min(self.rtt, seconds)

    def took(self, nbytes: int, seconds: float) -> None:
        """Count in that `nbytes` came in `seconds`. Of pieces that were taken in together, all but the first took no time: so
        the rate is all bytes by all seconds, of which older ones count less."""
        self._nbytes += NEWEST * (nbytes - self._nbytes)
        self._seconds += NEWEST * (max(seconds, nbytes / FASTEST) - self._seconds)
        self.rate = self._nbytes / self._seconds


def _power(number: float) -> int:
    """The largest power of two that is not above `number`; at least 1."""
    return 1 << max(0, int(number).bit_length() - 1)


class Fetch:
    """A transfer of `nbytes`, at the receiving end. Times are in seconds of a clock that never goes back.

    left: bytes that are not here; again: bytes that were asked for more than once; given_up: how many times late pieces were
    given up as lost.
    """

    def __init__(self, nbytes: int, way: Way) -> None:
        self.left, self.way = nbytes, way
        self.again = self.given_up = 0
        self._nbytes, self._next = nbytes, 0
        self._lost: deque[Range] = deque()
        self._asked: dict[Range, float] = {}  # piece under way -> time at which it was asked for
        self._under_way = 0  # bytes
        self._free_at = float("-inf")  # time at which the last piece came
        self._late = 1.0  # factor of the usual patience

    def ask(self, now: float, most: int = DEEPEST) -> list[Range]:
        """Pieces to ask for now, so that at most `most` bytes are under way, or one chunk of the least size."""
        self._give_up(now)
        if self.way.rtt < 0:
            return [] if PROBE in self._asked else [self._note(PROBE, now)]
        asked: list[Range] = []
        while (one := self._following(most)) is not None:
            asked.append(self._note(one, now))
        return asked

    def arrived(self, first: int, last: int, now: float) -> bool:
        """Count a piece in. Returns False if the piece is not wanted: it was not asked for, or was given up."""
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
        """Give up every piece under way: the connection is a new one, and answers on the last one are lost."""
        self._lose(list(self._asked))

    def _following(self, most: int) -> Range | None:
        """The next piece; None if there is no more, or no room for it under way."""
        if self._next == self._nbytes and not self._lost:
            return None
        chunk = min(self.way.chunk, max(LEAST, _power(most)))
        if self._under_way and self._under_way + chunk > min(self.way.window, most):
            return None
        if self._lost:
            first, last = self._lost.popleft()
            if last > first + chunk:  # it was asked for when chunks were larger
                self._lost.appendleft((first + chunk, last))
            return first, min(last, first + chunk)
        first, self._next = self._next, min(self._nbytes, self._next + chunk)
        return first, self._next

    def _note(self, one: Range, now: float) -> Range:
        self._asked[one] = now
        self._under_way += one[1] - one[0]
        return one

    def _give_up(self, now: float) -> None:
        """Give up the pieces that are late."""
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
