"""Two cases in simulation: many schedules of faults, and many power cuts.

The one idea: the figure counts events that must not happen.
"""

from __future__ import annotations

from shoal.benchmarks.case import Finding
from shoal.faults import powercut as disks
from shoal.simulation import world as simulation

PACE = 300_000.0  # simulated events a second on one core


def dst(quick: bool) -> Finding:
    """Runs random schedules of faults in simulation and counts those that broke an invariant."""
    found = simulation.run(quick)
    broken, pace = len(found["violations"]), found["events_per_second"]
    return Finding(
        figure=float(broken),
        unit=f"of {found['schedules']:,} schedules that broke an invariant",
        goal=0.0,
        holds=broken == 0 and pace >= PACE and found["cpu_seconds"] <= 300 and (quick or found["events"] >= 80_000_000),
        asked="none of 10,000 (80 million events) in 5 CPU-minutes; at least 300,000 events/s a core",
        details={**found, "violations": found["violations"][:5]},
    )


def powercut(quick: bool) -> Finding:
    """Makes power cuts, torn files and flipped bits; counts acknowledged records that were lost, and false ones loaded."""
    found = disks.run(quick)
    wrong = found["acknowledged_lost"] + found["corrupt_loads"]
    return Finding(
        figure=wrong,
        unit=f"of {found['cases']:,} damaged disks that lost or invented something",
        goal=0.0,
        holds=wrong == 0,
        asked="none of 100,000",
        details=found,
    )
