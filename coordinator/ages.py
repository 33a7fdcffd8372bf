"""The seconds between the acting of a trajectory and the weights that were learned from it, in their four parts.

The one idea: lag in versions says how old the data was, and these seconds say where the age came from: the rollout itself, the
way of tasks, weights and arrays, the wait for the rest of the batch, or the learner's passes. All clocks are handed in.
"""

from __future__ import annotations

from dataclasses import dataclass, field

PARTS = ("rollout_seconds", "transfer_seconds", "queue_seconds", "learn_seconds")


@dataclass(slots=True)
class Ages:
    """Means since the last flush, over contributions that have environment steps. Times are in seconds of a clock that never
    goes back. last: seconds from asking the learner for the last step to its end; 0 before the first."""

    last: float = 0.0
    _began: float = 0.0
    _here: dict[int, list[float]] = field(default_factory=dict)  # onto -> times at which contributions were here, whole
    _sums: dict[str, tuple[float, int]] = field(default_factory=dict)

    def came(self, onto: int, trained: float, took: float, now: float) -> None:
        """All of a contribution to the step after `onto` is here. trained: seconds of its work by the actor's clock. took:
        seconds by the coordinator's clock from when its actor could begin to the announced result; below 0: not known."""
        self._add("rollout_seconds", trained)
        if took >= 0:
            self._add("transfer_seconds", max(0.0, took - trained))
        self._here.setdefault(onto, []).append(now)

    def begins(self, version: int, now: float) -> None:
        """The learner is asked for the step that makes `version`."""
        self._began = now
        for then in self._here.pop(version - 1, ()):
            self._add("queue_seconds", now - then)

    def ends(self, now: float) -> None:
        """The step is made."""
        self.last = now - self._began
        if self._sums:
            self._add("learn_seconds", self.last)

    def _add(self, name: str, seconds: float) -> None:
        total, many = self._sums.get(name, (0.0, 0))
        self._sums[name] = (total + seconds, many + 1)

    def flush(self) -> dict[str, float]:
        sums, self._sums = self._sums, {}
        return {name: sums[name][0] / sums[name][1] for name in PARTS if name in sums}
