"""What the status file tells of actors and tasks."""

from __future__ import annotations

import json
from typing import Any

from shoal.coordinator.deciding.actor import Actor
from shoal.coordinator.deciding.bounds import Bounds, Goal
from shoal.coordinator.deciding.facts import Facts
from shoal.coordinator.deciding.plans.stream import Stream
from shoal.coordinator.deciding.recovered import Recovered
from shoal.coordinator.deciding.roll import COLUMNS, roll
from shoal.coordinator.reports import Before
from shoal.coordinator.telling import Telling


def facts_of(actors: int) -> tuple[Facts, list[Actor]]:
    """A run at version 5 with actors a0, a1, ..., heard of at the times 0, 1, ..."""
    facts = Facts(Stream(batch=1, max_lag=9), Goal(versions=10), Bounds(), Recovered(), 0.0)
    facts.version = 5
    return facts, [facts.roster.join(b"%d" % at, b"p%d" % at, f"a{at}", float(at)) for at in range(actors)]


def rows(found: dict[str, Any]) -> list[dict[str, Any]]:
    return [dict(zip(COLUMNS, row, strict=True)) for row in found["rows"]]


def test_the_roll_names_each_actors_state_lag_host_and_pace() -> None:
    facts, (idle, works, receives, hangs, away) = facts_of(5)
    works.host, works.pid, works.held, works.pace = "here", 77, 4, 0.25
    facts.roster.burden(works, (4, 1))
    receives.host, receives.held, receives.under_way = "0123456789", 3, True
    facts.roster.burden(receives, (5, 0))
    hangs.stuck = True
    facts.roster.leave(away)
    found = rows(roll(facts, 10.0, "here"))
    assert [row["state"] for row in found] == ["idle", "working", "receiving", "hangs", "away"]
    assert found[1] == {
        "number": 1,
        "name": "a1",
        "host": "",
        "pid": 77,
        "state": "working",
        "lag": 1,
        "tasks": 1,
        "pace": 0.25,
        "restarts": 0,
        "silence": 9.0,
    }
    assert (found[0]["lag"], found[0]["pace"], found[2]["host"], found[2]["lag"]) == (-1, -1.0, "01234567", 2)
    facts.roster.bar(idle, 99.0)
    assert rows(roll(facts, 10.0))[0]["state"] == "barred"


def test_an_actor_in_the_place_of_another_is_a_restart() -> None:
    facts, actors = facts_of(2)
    facts.roster.part(actors[0])
    facts.roster.join(b"new", b"p", "a0", 5.0)
    assert [row["restarts"] for row in rows(roll(facts, 9.0))] == [1, 0]


def test_of_many_actors_those_silent_for_longest_are_in_the_roll() -> None:
    facts, actors = facts_of(7)
    facts.roster.hear(actors[0], 50.0)
    assert [row["number"] for row in rows(roll(facts, 60.0, most=3))] == [1, 2, 3]


def test_the_roll_is_plain_data_and_counts_lags() -> None:
    facts, _ = facts_of(3)
    nothing: Any = None
    core: Any = type("Core", (), {"facts": facts})
    telling = Telling(core, nothing, nothing, lambda: 9.0, Before(), "here")
    telling.tally.recent.extend([3, 0, 0, 1])
    found = json.loads(json.dumps(telling.roll(), allow_nan=False))
    assert found["lags"] == [[0, 2], [1, 1], [3, 1]]
    assert found["tasks"] == {
        "out": 0,
        "waiting": 0,
        "accepted": 0,
        "stale": 0,
        "refused": 0,
        "duplicate": 0,
        "failed": 0,
        "aside": 0,
    }
