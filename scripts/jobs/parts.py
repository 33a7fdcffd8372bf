"""Parts that every job has, whatever it learns: how it is kept, what it bears with, and what it accepts.

The one idea: each part is a dataclass of settings, and a setting stands in one part only, so `key=value` needs no prefix.
"""

from __future__ import annotations

from dataclasses import dataclass

from shoal.jobs.settings import option

JOURNALS = ("auto", "off", "ids", "payload")
"""auto is ids for a coordinator that is bound for actors from elsewhere, who outlive it. It is off for a run whose actors end
with the coordinator, because then nobody is left who was promised anything."""


@dataclass(frozen=True)
class Keeping:
    """What is kept of a run."""

    journal: str = option("auto", "what is durable before a contribution is acknowledged", choices=JOURNALS)
    snapshot_every: float = option(10.0, "most seconds between two snapshots of the weights", least=0)

    @property
    def retain(self) -> int:
        """MB of accepted contributions that an actor keeps until a snapshot holds them."""
        return 0

    @property
    def partial_sums(self) -> bool:
        """True if an actor may send one sum over its clients."""
        return False


@dataclass(frozen=True)
class KeepingDeltas(Keeping):
    """The same for a run whose contributions are changes of the weights, which can be summed and offered again."""

    retain: int = option(
        256, "MB of accepted contributions that an actor keeps until a snapshot holds them, with journal=ids", least=0
    )
    partial_sums: bool = option(True, "an actor sends one sum over its clients, where nothing needs each client's own")


@dataclass(frozen=True)
class Bearing:
    """How a run bears with tasks that fail or take too long, and with actors whose work is no good."""

    lease: float = option(0.0, "seconds that a task may take (0: any number)", least=0)
    on_failure: str = option("continue", "what follows when a task failed three times", choices=("continue", "stop"))
    strikes: int = option(5, "failures in a row after which an actor is in quarantine (0: never)", least=0)
    quarantine: float = option(
        10.0,
        "seconds of an actor's first quarantine, in which it gets no work; doubled each time, up to eight times this",
        above=0,
    )


@dataclass(frozen=True)
class Checks:
    """What a contribution must be like to be accepted, beside being finite: anything."""

    @property
    def norm_bound(self) -> float:
        """Largest L2 norm of one client's delta (0: any)."""
        return 0.0

    @property
    def max_examples(self) -> float:
        """Largest weight of one client's contribution (0: any)."""
        return 0.0

    @property
    def each(self) -> bool:
        """True if a check looks at each client's own contribution, which a sum does not show."""
        return self.norm_bound > 0 or self.max_examples > 0


@dataclass(frozen=True)
class DeltaChecks(Checks):
    """The same for contributions that are changes of the weights."""

    norm_bound: float = option(0.0, "largest L2 norm of one client's delta (0: any)", least=0)
    max_examples: float = option(0.0, "largest weight of one client's contribution (0: any)", least=0)
