"""The roll of a run: its actors, lags and tasks as plain data, for a person who looks.

The one idea: a look costs the coordinator's thread time that contributions need, so the roll has a limit. The actors that were
silent for longest come first, because a person looks for those.
"""

from __future__ import annotations

from itertools import islice
from typing import Any

from shoal.coordinator.deciding.actor import Actor
from shoal.coordinator.deciding.facts import Facts

MOST = 250  # actors in a roll
COLUMNS = ("number", "name", "host", "pid", "state", "lag", "tasks", "pace", "restarts", "silence")


def roll(facts: Facts, now: float, host: str = "", most: int = MOST) -> dict[str, Any]:
    """Return the columns and rows of at most `most` actors, by number, and the counts of tasks.

    Of a row: number: place of the actor. host: "" on the coordinator's own machine, whose id is `host`, else the start of the
    other machine's id. state: see `state_of`. lag: versions between the actor's weights and the newest, -1 if it has none.
    tasks: tasks that it holds. pace: seconds that a task takes it, a running mean, -1 before the first. restarts: times that
    an actor with this place was replaced; 0 for an evaluator, whose number is -1. silence: seconds since it was heard. Of
    tasks: out: with an actor; waiting: for an actor; accepted, stale, refused, duplicate: contributions by verdict; failed:
    attempts that failed; aside: tasks given up.
    """
    shown = sorted(islice((one for one in facts.roster.by_silence() if not one.follows), most), key=lambda actor: actor.number)
    ledger, counts = facts.ledger, facts.ledger.counts
    verdicts = {name: getattr(counts, name) for name in ("accepted", "stale", "refused", "duplicate", "failed", "aside")}
    return {
        "columns": list(COLUMNS),
        "rows": [_row(facts, actor, now, host) for actor in shown],
        "tasks": {"out": len(ledger.leases), "waiting": ledger.waiting, **verdicts},
    }


def state_of(facts: Facts, actor: Actor) -> str:
    """Return one word for what an actor does: "away", its connection is lost; "barred", in quarantine; "hangs", a task of it
    ran out of time; "receiving", weights that its task needs are on their way; "working"; or "idle", without a task."""
    if actor.away:
        return "away"
    if actor.barred_until > 0:
        return "barred"
    if actor.stuck:
        return "hangs"
    if not actor.tasks:
        return "idle"
    return "receiving" if actor.under_way and min(actor.tasks)[0] > actor.held else "working"


def _row(facts: Facts, actor: Actor, now: float, host: str) -> list[Any]:
    where = "" if actor.host == host else actor.host[:8]
    lag = facts.version - actor.held if actor.held >= 0 else -1
    restarts, silence = facts.roster.contributors.lives.get(actor.number, 1) - 1, now - facts.roster.heard_at(actor)
    about = (len(actor.tasks), round(actor.pace, 3), restarts, round(silence, 1))
    return [actor.number, actor.name, where, actor.pid, state_of(facts, actor), lag, *about]
