"""The cases about calls in a pool: what they ask, and what they make of the answers, not how fast anything is."""

from __future__ import annotations

import sys
from concurrent.futures import ThreadPoolExecutor

import pytest

from shoal.benchmarks import calls
from shoal.benchmarks.peers import pools
from shoal.benchmarks.peers.beside import POLICY, Beside

ANSWERS = {"shoal": {"1": 100.0}, "ppe": {"1": 200.0, "32": 90.0, "256": 95.0, "1000": 120.0}}


@pytest.fixture
def answers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(POLICY, "off")
    monkeypatch.setattr(calls, "_asked", lambda name, _, number, chunk, lost=None: ANSWERS[name][str(chunk)])


def test_a_map_is_held_against_the_best_chunksize(answers: None) -> None:
    found = calls.tasks_map(True)
    assert (found.figure, found.goal, found.peer, found.holds) == (100.0, 80.0, 200.0, False)
    assert found.details["ppe"] == ANSWERS["ppe"]
    assert found.details["ray"] == "skipped: --peers off"


def test_a_peer_that_was_not_measured_is_said(answers: None, monkeypatch: pytest.MonkeyPatch) -> None:
    assert calls.tasks_single(True).asked.endswith("Ray's (not measured)")
    assert calls.tasks_start(True).holds is None
    monkeypatch.setattr(calls, "_median", lambda beside, name: {"ray": 250.0, "loky": 180.0}.get(name))
    assert calls.tasks_single(True).holds is False  # 0.5 of PPE's, and 0.4 of Ray's
    assert calls.tasks_start(True).holds is False
    assert calls.tasks_start(True).goal == 25.0


def test_each_engine_has_a_median_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(POLICY, "off")
    beside = Beside(calls.questions.calls("single", 10), quick=True)
    beside.found |= {"loky_single": [3.0, 1.0, 2.0], "dask_single": [9.0]}
    assert [calls._median(beside, name) for name in ("loky", "dask", "joblib")] == [2.0, 9.0, None]


@pytest.mark.parametrize("question", sorted(pools.QUESTIONS.keys() - {"kill", "memory"}))
def test_every_question_can_be_asked(question: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pools, "ARRAY", 1_000)
    with ThreadPoolExecutor(2) as pool:
        assert pools.answer(pools.Asked(lambda *call: pool.submit(*call).result, pool.map), question, 20) > 0


def test_a_broken_pool_is_told_by_the_results_that_it_gave() -> None:
    assert calls._asked("ppe", "kill", 30, 1, lost=-1.0) == -1.0


def test_cpu_counts_children_that_have_ended() -> None:
    import subprocess

    before = pools.cpu()
    subprocess.run([sys.executable, "-c", "import time\nwhile time.process_time() < 0.3: pass"], check=True)
    assert pools.cpu() - before > 0.25
