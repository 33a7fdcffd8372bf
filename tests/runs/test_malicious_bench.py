"""The case fl-g of `shoal bench` measures what it says. Nothing here is about how fast or how good anything is."""

from __future__ import annotations

from typing import Any

import pytest

from shoal.benchmarks import malicious
from shoal.benchmarks.run import FIGURES
from shoal.jobs.catalog import digits
from shoal.jobs.methods.robust import Robust
from shoal.jobs.wraps import ATTACKS


def test_the_figure_is_what_the_best_rule_loses_in_the_attack_that_costs_it_most(monkeypatch: pytest.MonkeyPatch) -> None:
    costs = {
        "multikrum": {"ipm": 0.1, "alie": 0.1},
        "fltrust": {"ipm": 0.015, "alie": 0.01},
        "rfa": {"ipm": 0.04, "alie": 0.005},
        "": {},
    }
    asked = []

    def accuracy(words: Any) -> float:
        asked.append((words["partition"], words.get("attack"), words.get("attackers")))
        return float(0.95 - costs[words.get("method", "")].get(words.get("attack", ""), 0.0))

    monkeypatch.setattr(malicious, "accuracy", accuracy)
    found = FIGURES["fl-g"](True)
    assert (found.figure, found.holds) == (pytest.approx(1.5), True)
    table = found.details["iid"]
    assert [table["by_attack"][attack]["rule"] for attack in ("ipm", "alie")] == ["fltrust", "rfa"]
    assert table["single_best"] == {"rule": "fltrust", "lost": pytest.approx(1.5)}
    assert asked == [("iid", None, None), *[("iid", attack, 5) for _ in malicious.QUICK for attack in malicious.HARD]]
    assert set(malicious.HARD) < set(ATTACKS)
    for rule in malicious.QUICK:
        costs[rule]["mimic"] = 0.021
    assert not FIGURES["fl-g"](True).holds


@pytest.mark.parametrize("rule", malicious.RULES)
def test_every_rule_of_the_case_is_made_for_a_fifth_of_malicious_clients(rule: str) -> None:
    for partition in malicious.PARTITIONS.values():
        job = digits().configured({**malicious.JOB, **malicious.RULES[rule], **partition, "attack": "nan", "attackers": 5})
        assert malicious.MALICIOUS / malicious.CLIENTS == 0.2
        assert job.method.name == rule
        if isinstance(job.method, Robust):
            assert job.method.malicious == malicious.MALICIOUS
