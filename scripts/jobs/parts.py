"""Parts that every job has, whatever it learns: keeping (journal, snapshots), bearing (failures, leases), checks.

The one idea: each part is a dataclass of settings, and a setting stands in one part only, so `key=value` needs no prefix.
"""

from __future__ import annotations

from dataclasses import dataclass

from shoal.jobs.settings import option

JOURNALS = ("auto", "off", "ids", "payload")
"""auto is ids if the coordinator is bound to an address: actors from elsewhere outlive the coordinator. auto is off if all
actors end with the coordinator: then no actor is left that the coordinator has acknowledged a contribution to."""


@dataclass(frozen=True)
class Keeping:
    """Settings of what the coordinator writes to disk so that a run can be resumed."""

    journal: str = option(
        "auto", "what is on disk of a contribution before it is acknowledged (off: nothing)", choices=JOURNALS
    )
    snapshot_every: float = option(10.0, "most seconds between two snapshots of the weights", least=0)

    @property
    def retain(self) -> int:
        """MB of accepted contributions that an actor keeps until a snapshot contains them (0: none)."""
        return 0

    @property
    def partial_sums(self) -> bool:
        """True if an actor may send one sum over its clients."""
        return False


@dataclass(frozen=True)
class KeepingDeltas(Keeping):
    """Keeping for a run whose contributions are changes of the weights, which can be summed and offered again."""

    retain: int = option(
        256,
        "MB of accepted contributions that an actor keeps until a snapshot contains them, with journal=ids (0: none)",
        least=0,
    )
    partial_sums: bool = option(
        True, "an actor sends one sum over its clients, if the method and the checks need no single client's contribution"
    )


@dataclass(frozen=True)
class Bearing:
    """Settings for tasks that fail or take too long, and for actors whose contributions are refused."""

    lease: float = option(
        -1.0,
        "seconds that a task may take (0: no limit; -1: ten times the median of what tasks of its kind took, at least 60)",
        least=0,
        also=(-1.0,),
    )
    attempts: int = option(3, "times that a task is tried before it is left out", least=1, most=1000)
    on_failure: str = option(
        "continue", "what the run does when a task has failed as often as `attempts`", choices=("continue", "stop")
    )
    strikes: int = option(
        5, "failed tasks or refused contributions in a row after which an actor is in quarantine (0: never)", least=0
    )
    quarantine: float = option(
        10.0,
        "seconds of an actor's first quarantine, in which it gets no task; doubled each time, up to eight times this",
        above=0,
    )


@dataclass(frozen=True)
class Checks:
    """Bounds on contributions. This class has none: every contribution of finite numbers is accepted."""

    @property
    def norm_bound(self) -> float:
        """Largest L2 norm of one client's delta that is accepted (0: any)."""
        return 0.0

    @property
    def max_examples(self) -> float:
        """Largest weight of one client's contribution that is accepted (0: any)."""
        return 0.0

    @property
    def usual(self) -> float:
        """Bound on a contribution of an actor with a key of its own, as a multiple of the median of norms and of weights, where
        norm_bound or max_examples is 0. 0: none."""
        return 0.0

    @property
    def each(self) -> bool:
        """True if a check looks at single clients' contributions, so that actors must not send sums."""
        return self.norm_bound > 0 or self.max_examples > 0


@dataclass(frozen=True)
class DeltaChecks(Checks):
    """Bounds on contributions that are changes of the weights."""

    norm_bound: float = option(0.0, "largest L2 norm of one client's delta that is accepted (0: any)", least=0)
    max_examples: float = option(0.0, "largest weight of one client's contribution that is accepted (0: any)", least=0)

    @property
    def usual(self) -> float:
        return 100.0
