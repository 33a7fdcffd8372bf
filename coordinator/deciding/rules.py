"""What a run is for, and what it asks of its actors."""

from __future__ import annotations

from dataclasses import dataclass

from shoal.protocol.messages import BEATS


@dataclass(frozen=True, slots=True)
class Goal:
    """When a run is done: after so many versions, or so many environment steps. 0 is no bound."""

    versions: int = 0
    steps: int = 0

    def reached(self, version: int, steps: int) -> bool:
        return (0 < self.versions <= version) or (0 < self.steps <= steps)

    def share(self, version: int, steps: int) -> float:
        """How much of it is done, from 0 to 1."""
        shares = [have / want for have, want in ((version, self.versions), (steps, self.steps)) if want]
        return min(1.0, max(shares, default=0.0))

    def __str__(self) -> str:
        said = [f"{self.versions:,} versions"] * (self.versions > 0) + [f"{self.steps:,} steps"] * (self.steps > 0)
        return " or ".join(said) or "no end"


@dataclass(frozen=True, slots=True)
class Rules:
    """What a run asks of its actors. Times in seconds.

    ahead: tasks an actor holds at once, so that it starts the next while the last is on its way; up to `most` where tasks
    are so short that fewer would not last for `stock` seconds. attempts: how often a
    task is given out before it is set aside. lease: how long one attempt may take (0: for ever). sticky: a client stays
    with the actor that plays it (its environments live there). summed: actors send one sum over a task's clients, exact: of
    whole numbers. gather: the first tasks wait for so many actors, though
    not for longer than `patience`. on_failure: "continue" or "stop" when a task is set aside. strikes: pieces of work in a
    row that are refused or fail, after which an actor gets no more for `quarantine` seconds, twice as many each time up to
    eight times (0: never). retain: bytes of accepted contributions that an actor keeps for a coordinator that does not.
    briefs: the aggregator may have arrays of its own for a task (`brief`). back: for so long actors of an earlier life may
    come back, with what it accepted, or to hear that all is done.
    """

    ahead: int = 2
    most: int = 0  # never fewer than `ahead`
    stock: float = 0.01
    attempts: int = 3
    lease: float = 0.0
    beat: float = 0.25
    patience: float = 10.0
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
    back: float = 2.0

    def beat_for(self, actors: int) -> float:
        """Seconds of silence before either side says that it lives: longer for many, who together say it 2,000 times a
        second at most."""
        return max(self.beat, actors / 2_000)

    def patience_for(self, actors: int) -> float:
        """Seconds of silence after which the other side is given up: a few beats at least."""
        return max(self.patience, BEATS * self.beat_for(actors))
