"""The goal of a run, and the bounds that it sets its actors."""

from __future__ import annotations

from dataclasses import dataclass

from shoal.protocol.messages import BEATS


@dataclass(frozen=True, slots=True)
class Goal:
    """The end of a run: after `versions` versions or `steps` environment steps, whichever comes first. 0: no such bound.

    each: most environment steps of one version. The run ends when `each` more would be too many, but not before version 1.
    """

    versions: int = 0
    steps: int = 0
    each: int = 0

    def reached(self, version: int, steps: int) -> bool:
        if 0 < self.versions <= version:
            return True
        if not self.steps:
            return False
        return steps >= self.steps or (version > 0 and steps + self.each > self.steps)

    def share(self, version: int, steps: int) -> float:
        """Return the part of the goal that is reached, from 0 to 1; 0 without a goal."""
        if self.reached(version, steps):
            return 1.0
        shares = [have / want for have, want in ((version, self.versions), (steps, self.steps)) if want]
        return min(1.0, max(shares, default=0.0))

    def __str__(self) -> str:
        said = [f"{self.versions:,} versions"] * (self.versions > 0) + [f"{self.steps:,} steps"] * (self.steps > 0)
        return " or ".join(said) or "no end"


@dataclass(frozen=True, slots=True)
class Bounds:
    """The bounds that a run sets its actors. Times in seconds.

    ahead: tasks that an actor holds at once, so that it starts the next while the last result is on its way; up to `most` if
    `ahead` tasks last for less than `stock` seconds. attempts: times that a task is given out before it is set aside. lease:
    longest time of one attempt (0: no limit; below 0: see Facts.limit). floor, first: of a lease below 0, the shortest, and the
    lease before three tasks of a kind have come in (0: no limit).
    hush: time without anything over an actor's connection after which the actor gets no new tasks, until it is heard again.
    beat, patience: shortest silence before a Beat, and before the other side is
    given up (`beat_for`, `patience_for`). quiet: time without progress before a warning. sticky: a client stays with the actor
    that plays it (its environments live there). summed: actors send one sum over a task's clients; exact: the sum is of whole
    numbers. gather: actors that the first tasks wait for, at most `patience` seconds (0: none). on_failure: "continue" or
    "stop" when a task is set aside. strikes: results in a row refused or failed before an actor gets no tasks for `quarantine`
    seconds, doubled each time up to 8 times as many (0: never). retain: bytes of accepted contributions that an actor keeps
    for a coordinator that keeps none (0: no bytes). briefs: the aggregator may have arrays of its own for a task (`brief`).
    brief_once: it is asked for them only until an actor has had them once for a client; later tasks wait for no learner.
    watched: the sockets tell by themselves whose process has stopped, so that silence alone is no sign of it.
    endless: no version follows, and a task that is set aside is no reason to end.
    light: weights are so small that they need not be on their way while an actor is at its only task: they go with its next.
    steps: environment steps that one client's task can have (0: any number below 2**53).
    back: seconds after a restart in which actors of the last life may offer again its accepted contributions, or hear Stop.
    """

    ahead: int = 2
    most: int = 0  # below `ahead`: `ahead`
    stock: float = 0.01
    attempts: int = 3
    lease: float = 0.0
    floor: float = 60.0
    first: float = 0.0
    beat: float = 0.25
    patience: float = 10.0
    hush: float = 2.0
    quiet: float = 5.0
    sticky: bool = False
    gather: int = 0
    summed: bool = False
    exact: bool = True
    on_failure: str = "continue"
    strikes: int = 5
    quarantine: float = 10.0
    retain: int = 0
    briefs: bool = False
    brief_once: bool = False
    watched: bool = False
    endless: bool = False
    light: bool = False
    steps: int = 0
    back: float = 2.0

    @property
    def stall(self) -> float:
        """Return the longest time without a piece of a contribution that is fetched (0: no limit)."""
        return self.lease if self.lease >= 0 else self.floor

    def beat_for(self, actors: int) -> float:
        """Return the seconds of silence before either side says Beat: all actors together say at most 2,000 Beats a second."""
        return max(self.beat, actors / 2_000)

    def patience_for(self, actors: int) -> float:
        """Return the seconds of silence after which the other side is given up: at least BEATS beats."""
        return max(self.patience, BEATS * self.beat_for(actors))

    def away_for(self, actors: int) -> float:
        """Return the seconds of silence after which an actor with tasks is given up whose connection is silent too. Twice
        `patience_for`: after a cut of a link, TCP waits up to as long again before it goes on."""
        return 2 * self.patience_for(actors)
