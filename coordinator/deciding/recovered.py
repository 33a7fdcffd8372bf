"""The state that a run goes on from: its beginning, or the end of the coordinator's last life.

The one idea: a restart finds everything in one value, and the core, the plan and the recording each take their part of it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from shoal.coordinator.deciding.events import Step
from shoal.coordinator.deciding.plans import Asked
from shoal.coordinator.deciding.promises import ANY, Promise


@dataclass(slots=True)
class Recovered:
    """The state that a run goes on from.

    epoch: number of the last life of the coordinator; this life's is one more. folded: clients folded in after `version`.
    done: version -> the clients whose contributions are folded in, or promised. first: version -> the lowest index that is free
    for its tasks. kept: version of the snapshot that was loaded, -1 if none was. stepped: the step that made `version`. record:
    number of the last record up to that step; later records are of contributions to the next version. past: number of the last
    record of all. figures: of episodes, from the snapshot (coordinator/tally.py).
    """

    version: int = 0
    kept: int = -1
    steps: int = 0
    drawn: int = 0
    epoch: int = 0
    counted: int = 0
    done: dict[int, set[int]] = field(default_factory=dict)
    folded: int = 0
    made: dict[int, str] = field(default_factory=dict)  # version -> the digest it was committed with
    newest: int = 0  # the highest version that was ever committed
    first: dict[int, int] = field(default_factory=dict)
    promises: list[Promise] = field(default_factory=list)
    stepped: Step = field(default_factory=lambda: Step(0, 0, 0))
    record: int = 0
    past: int = 0
    figures: Mapping[str, Any] = field(default_factory=dict)

    @property
    def asked(self) -> Asked:
        return Asked(self.drawn, self.done, self.first)

    def begin(self, version: int, counters: Mapping[str, Any]) -> int:
        """Go on from the snapshot of `version`. Return the number of the last record that the snapshot covers."""
        self.version = self.kept = version
        self.steps, self.drawn = int(counters.get("steps", 0)), int(counters.get("drawn", 0))
        self.epoch = int(counters.get("epoch", 0))
        self.figures = dict(counters.get("figures", {}))
        self.promises = [Promise.of_plain(row) for row in counters.get("promises", ())]
        self.made = {int(version): digest for version, digest in counters.get("made", {}).items()}
        self.newest = max([version, *self.made])
        self.stepped, self.record = Step(version, self.steps, self.drawn), int(counters.get("record", 0))
        return self.record

    def settle(self, streams: bool) -> None:
        """Decide for which version each promise counts. Rounds are made again as they were: promises for closed rounds are
        dropped. A stream cannot be made again alike: it goes on under a version that no actor has seen, and a promise counts
        for any version."""
        if streams:
            self.promises = [replace(promise, onto=ANY) for promise in self.promises]
            self.version = max(self.version, self.newest + (self.newest > self.version))
            self.stepped = replace(self.stepped, version=self.version)
            return
        self.promises = [promise for promise in self.promises if promise.onto >= self.version]
        for promise in self.promises:
            self.done.setdefault(promise.onto, set()).update(promise.clients)
