"""The cases fl-b, fl-c and fl-f of `shoal bench` measure what they say. Nothing here is about how fast anything is."""

from __future__ import annotations

import struct
from pathlib import Path

import numpy as np
import pytest
import torch

from shoal.benchmarks import averaging, cohorts
from shoal.benchmarks.averaging import TABLE, best_of, fl_f, in_order, rounds_to
from shoal.benchmarks.peers.questions import cohorts as questions
from shoal.benchmarks.run import FIGURES
from shoal.jobs.problems import Supervised


@pytest.mark.parametrize(("case", "parameters", "each", "cohort"), [("fl-b", 6_603_710, 20, 100), ("fl-c", 1_626_442, 50, 50)])
def test_a_case_of_cohorts_has_the_shape_that_it_is_named_for(case: str, parameters: int, each: int, cohort: int) -> None:
    job = cohorts.SHAPES[case]()
    assert isinstance(job.problem, Supervised)
    population = job.problem.population(job.method, 0)
    assert population.sizes is not None
    assert (len(population.sizes), set(population.sizes)) == (1_000, {each})
    assert sum(p.numel() for p in job.module().parameters()) == parameters
    settings = job.plain()
    assert (settings["cohort"], settings["local_epochs"], settings["batch_size"], settings["lr"]) == (cohort, 1, 10, 0.1)
    assert [question.words[0] for question in questions(case, 2).values()] == [case]


def test_the_half_for_a_gpu_is_skipped_in_words_where_there_is_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cohorts, "has_gpu", lambda: False)
    monkeypatch.setattr(cohorts, "_cohort", lambda case, quick: cohorts.Finding(1.0, "s", holds=True, details={"case": case}))
    found = cohorts.fl_c(True)
    assert found.details == {"case": "fl-c", "gpu": "skipped: torch finds no CUDA device here"}
    assert found.holds is True


def test_the_half_for_a_gpu_decides_with_the_other_where_there_is_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cohorts, "has_gpu", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "a GPU")
    monkeypatch.setattr(cohorts, "_cohort", lambda case, quick: cohorts.Finding(1.0, "s", holds=True))
    for seconds, holds in ((1.9, True), (2.1, False)):  # of 50 rounds; 60 s for 1,500
        monkeypatch.setattr(cohorts, "on_gpu", lambda job, rounds, seconds=seconds: seconds if rounds == 50 else None)
        found = cohorts.fl_c(True)
        assert found.holds is holds
        assert found.details["gpu_seconds_of_1500_rounds"] == pytest.approx(30 * seconds)


def test_the_cpu_of_all_processes_holds_that_of_this_one() -> None:
    before, mine = cohorts._busy(), cohorts._cpu()
    while cohorts._cpu() - mine < 0.2:
        pass
    assert cohorts._busy() - before > 0.1  # the system counts hundredths of a second, by ticks


def test_the_order_of_the_paper_is_asked_for() -> None:
    paper = {local: local.paper for local in TABLE}
    assert in_order(paper)
    assert in_order({**paper, TABLE[1]: paper[TABLE[0]]})  # neighbours may take equally many
    for at in range(len(TABLE) - 1):
        assert not in_order({**paper, TABLE[at]: paper[TABLE[at + 1]] + 1})
    assert not in_order(dict.fromkeys(TABLE, 7))
    assert [str(local) for local in (TABLE[0], TABLE[-1])] == ["E=5 B=10", "E=1 B=full"]


def test_without_the_images_the_case_says_what_it_wants(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv(averaging.FOLDER, str(tmp_path / "nowhere"))
    found = fl_f(True)
    assert (found.figure, found.holds) == (None, None)
    assert "no MNIST there" in found.details["skipped"]
    assert "$SHOAL_MNIST" in found.details["skipped"]


def test_rounds_are_counted_to_the_first_evaluation_that_reaches_the_target(tmp_path: Path) -> None:
    y = np.arange(200, dtype=np.uint8) % 2
    x = (np.zeros((200, 28, 28)) + 200 * y[:, None, None]).astype(np.uint8)
    (tmp_path / "t10k-images-idx3-ubyte").write_bytes(struct.pack(">4B3I", 0, 0, 8, 3, *x.shape) + x.tobytes())
    (tmp_path / "t10k-labels-idx1-ubyte").write_bytes(struct.pack(">4BI", 0, 0, 8, 1, 200) + y.tobytes())
    assert sum(parameter.numel() for parameter in averaging.small_cnn().parameters()) == 11_274
    few = TABLE[0]._replace(epochs=1, most=2, rates=(1e-6, 0.1))
    assert rounds_to(0.3, few, 0.1, 2, str(tmp_path)) == 1
    assert rounds_to(1.01, few, 0.1, 2, str(tmp_path)) is None
    assert best_of(0.3, few, str(tmp_path)) == (0.1, {"1e-06": None, "0.1": 1})
    assert best_of(1.01, few, str(tmp_path)) == (1e-6, {"1e-06": None, "0.1": None})


def test_the_cases_are_known_by_their_names() -> None:
    assert {"fl-a", "fl-b", "fl-c", "fl-d", "fl-f", "fl-h"} <= set(FIGURES)
