"""The lag of a trajectory in versions, split by its causes: rollout, transfer, queue and the learner's step under way.

The one idea: every version was published at a time, so the seconds of a trajectory's way (coordinator/ages.py) say how many
versions each part of the way cost. The four parts are whole numbers, and add up to the lag.
"""

from __future__ import annotations

from bisect import bisect_right
from collections import Counter, deque
from collections.abc import Mapping
from dataclasses import dataclass, field
from itertools import pairwise

CAUSES = ("rollout_lag", "transfer_lag", "queue_lag", "learn_lag")
VERSIONS = 1_000  # versions whose times are remembered: more than a lag that a plan lets pass
RECENT = 1_000  # trajectories that the histograms are over


@dataclass(slots=True)
class Causes:
    """Means since the last flush, and histograms of the last RECENT trajectories. Times are in seconds of a clock that never
    goes back. batch: lag -> trajectories of the last step."""

    batch: Mapping[int, int] = field(default_factory=dict)
    _stepping: bool = False
    _times: deque[float] = field(default_factory=lambda: deque(maxlen=VERSIONS))  # at which versions were made, rising
    _versions: deque[int] = field(default_factory=lambda: deque(maxlen=VERSIONS))
    _lags: dict[int, list[tuple[int, ...]]] = field(default_factory=dict)  # onto -> parts of what came for it
    _told: list[tuple[int, ...]] = field(default_factory=list)  # of the step that is being made, or was made last
    _recent: deque[tuple[int, ...]] = field(default_factory=lambda: deque(maxlen=RECENT))

    def came(self, made_from: int, onto: int, trained: float, took: float, now: float) -> None:
        """All of a trajectory is here. made_from: version that acted; onto: version that it is learned onto. trained, took: as
        of `Ages.came`; where `took` is not known, the way counts as none.

        An actor may act by an older version than the newest, which is then on its way: transfer. Versions that are made while
        it acts: rollout; until its arrays are here: transfer; while it waits for the rest of its batch: queue. The version that
        the learner is making when its arrays come: learn."""
        begun = now - max(took, trained)
        marks = (self._at(begun), self._at(begun + trained), self._at(now), onto - self._stepping, onto)
        steps = [made_from]
        for mark in marks:
            steps.append(min(max(mark, steps[-1]), onto))
        down, out, up, queue, learn = (after - before for before, after in pairwise(steps))
        self._lags.setdefault(onto, []).append((out, down + up, queue, learn))

    def begins(self, version: int) -> None:
        """The learner is asked for the step that makes `version`."""
        self._stepping, self._told = True, self._lags.pop(version - 1, [])

    def ends(self, version: int, now: float) -> None:
        """The step is made."""
        self._stepping = False
        self._times.append(now)
        self._versions.append(version)

    def flush(self) -> dict[str, float]:
        """Mean versions by cause, of the step's trajectories; empty if none of them lagged."""
        told, self._told = self._told, []
        self._recent.extend(told)
        self.batch = Counter(sum(parts) for parts in told)
        if not any(self.batch.keys()):
            return {}
        return {name: sum(column) / len(told) for name, column in zip(CAUSES, zip(*told, strict=True), strict=True)}

    def histograms(self) -> dict[str, list[list[int]]]:
        """Cause -> pairs [versions, trajectories], versions rising, of the last RECENT trajectories."""
        columns = zip(*self._recent, strict=True) if self._recent else iter(((),) * len(CAUSES))
        return {name: pairs(Counter(column)) for name, column in zip(CAUSES, columns, strict=True)}

    def _at(self, when: float) -> int:
        """The newest version at a time; 0 before the first that is remembered."""
        place = bisect_right(self._times, when)
        return self._versions[place - 1] if place else 0


def pairs(counts: Mapping[int, int]) -> list[list[int]]:
    """Pairs [number, count], numbers rising."""
    return [[number, counts[number]] for number in sorted(counts)]
