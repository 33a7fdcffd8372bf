"""The cases of `shoal bench` that need a checkout: damage that a run must survive, and strangers that must stay out.

The one idea: these cases hurt processes, disks and networks on purpose, so they are with the tests and not in the wheel.
"""

from __future__ import annotations

from collections.abc import Mapping

from shoal.benchmarks.case import Case
from shoal.faults import access, chaos, diskfull, endurance, fuzz, leaks, liars, recovery, slowlink, soak, stalled

FAULTS: Mapping[str, Case] = {
    "dst": endurance.dst,
    "powercut": endurance.powercut,
    "chaos": chaos.chaos,
    "chaos-async": chaos.chaos_async,
    "recovery": recovery.recovery,
    "leaks": leaks.leaks,
    "diskfull": diskfull.diskfull,
    "fuzz": fuzz.fuzz,
    "stalled": stalled.stalled,
    "slowlink": slowlink.slowlink,
    "soak": soak.soak,
    "access": access.access,
    "strangers": liars.strangers,
}
