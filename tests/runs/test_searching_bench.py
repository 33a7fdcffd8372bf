"""The case of grid searches: what it makes of its measurements, not how fast anything is."""

from __future__ import annotations

import json
import subprocess
from types import SimpleNamespace
from typing import Any

import pytest

from shoal.benchmarks import searching

SECONDS = {"serial": 4.0, "shoal": 2.2, "loky": 6.0, "threading": 5.0, "bare": 2.0}


def test_a_search_holds_if_its_scores_are_the_serial_loop_s(monkeypatch: pytest.MonkeyPatch) -> None:
    scores = {way: [0.5, 0.75] for way in SECONDS} | {"bare": []}

    def run(command: list[str], **_: Any) -> Any:
        way, each = command[-2], SECONDS[command[-2]]
        return SimpleNamespace(stdout=json.dumps({"measured": [[each, each], [each, each]], "scores": scores[way]}))

    monkeypatch.setattr(subprocess, "run", run)
    found = searching.tasks_grid(True)
    assert (found.figure, found.peer, found.holds) == (0.55, 1.5, True)
    assert found.details["bare"]["cpu"] == 0.5
    scores["shoal"] = [0.5, 0.8]
    assert searching.tasks_grid(True).holds is False
