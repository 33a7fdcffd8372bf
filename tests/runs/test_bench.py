"""`shoal bench`: what it prints, keeps and returns. Nothing here is about how fast anything is."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch

from shoal.benchmarks import gpu, heartbeat, ledger, run
from shoal.benchmarks.alone import CrashedError, apart
from shoal.benchmarks.case import FIELDS, Case, Finding, line, short
from shoal.benchmarks.core import Crowd
from shoal.benchmarks.moving import journeys
from shoal.benchmarks.play import Trace
from shoal.benchmarks.timing import interleaved, quantile
from shoal.commands.cli import main as shoal
from shoal.protocol.errors import UserError
from shoal.protocol.messages import Envelope, Have

FOUND = Finding(figure=12.34567, unit="things/s", goal=10.0, floor=20.0, ratio=0.6172835, holds=True, asked="at least 10/s")


def trivial(quick: bool) -> Finding:
    return FOUND if quick else Finding(figure=1.0, unit="things/s", goal=10.0, holds=False)


def broken(quick: bool) -> Finding:
    raise RuntimeError("no such thing")


CASES: dict[str, Case] = {"trivial": trivial, "broken": broken}


def here(case: Case, quick: bool) -> tuple[Finding, float]:
    """In place of a process of its own."""
    try:
        return case(quick), 1.5
    except RuntimeError as why:
        raise CrashedError(str(why)) from why


def bench(folder: Path, *cases: str, quick: bool = True, as_json: bool = False) -> int:
    return run.main(cases, quick, as_json, registry=CASES, measure=here, folder=folder)


def json_lines(printed: str) -> list[dict[str, object]]:
    return [json.loads(text) for text in printed.splitlines() if text.startswith("{")]


def test_a_case_has_a_json_line_with_the_fields_of_the_contract_first(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert bench(tmp_path, "trivial", as_json=True) == 0
    printed = capsys.readouterr().out
    [found] = json_lines(printed)
    assert len(printed.splitlines()) == 1
    assert tuple(found)[: len(FIELDS)] == FIELDS
    assert tuple(found)[len(FIELDS) :] == ("asked", "details", "quick")
    assert (found["case"], found["figure"], found["goal"], found["peer"], found["holds"]) == ("trivial", 12.35, 10, None, True)
    assert {"python", "numpy", "shoal"} <= set(found["versions"])  # type: ignore[call-overload]


def test_a_person_gets_a_table_as_well(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    bench(tmp_path, "trivial")
    head, row = capsys.readouterr().out.splitlines()[-2:]
    assert head.split() == list(run.COLUMNS)
    assert row.split() == ["trivial", "12.35", "things/s", "10", "20", "-", "0.6173", "yes", "1.5"]


def test_a_goal_that_is_missed_is_a_finding_and_no_error(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert bench(tmp_path, "trivial", quick=False) == 0
    [found] = json_lines(capsys.readouterr().out)
    assert found["holds"] is False


def test_a_case_that_crashes_is_an_error_and_the_others_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert bench(tmp_path, "broken", "trivial") == 1
    told = capsys.readouterr()
    assert [found["case"] for found in json_lines(told.out)] == ["trivial"]
    assert "case broken crashed (no such thing)" in told.err


def test_findings_are_kept_with_the_machine_and_a_picture(tmp_path: Path) -> None:
    bench(tmp_path / "new", "trivial")
    kept = json.loads((tmp_path / "new" / "trivial.json").read_text())
    assert kept["figure"] == 12.35
    assert {"cores", "memory", "cpu", "kernel", "load"} <= set(kept["machine"])
    assert (tmp_path / "new" / "trivial.png").read_bytes().startswith(b"\x89PNG")


def test_an_unknown_case_is_one_line_that_names_the_nearest(capsys: pytest.CaptureFixture[str]) -> None:
    assert shoal(["bench", "noops"]) == 2
    told = capsys.readouterr().err
    assert told == "shoal: unknown case 'noops': did you mean noop?\n"


def test_a_wrong_name_is_told_before_anything_is_measured(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="unknown case"):
        bench(tmp_path, "trivial", "trivail")
    assert not list(tmp_path.iterdir())


def test_a_case_runs_in_a_process_of_its_own() -> None:
    assert apart(trivial, True)[0] == FOUND


def test_a_crash_in_that_process_is_told(capfd: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(CrashedError, match="exit status 1"):
        apart(broken, True)
    assert "no such thing" in capfd.readouterr().err


def test_every_case_has_a_row_that_says_how_it_is_measured() -> None:
    readme = (Path(run.__file__).resolve().parent / "README.md").read_text()
    assert all(f"| {name}" in readme or f", {name}" in readme for name in run.cases())


def test_a_word_is_answered_while_others_read_as_fast_as_they_can() -> None:
    found = heartbeat.trips(0.3, readers=2, floats=1_000_000)
    assert 0 < found.p50 <= found.p99
    assert found.rate > 0


def test_without_a_gpu_its_case_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    found = gpu.gpu(True)
    run.picture(line("gpu", found, 0.0, {}, True), Path("nowhere.png"))  # there is nothing to draw
    assert not Path("nowhere.png").exists()
    assert (found.figure, found.holds, found.details) == (None, None, {"skipped": "torch finds no CUDA device here"})


@pytest.mark.parametrize("exact", [True, False])
def test_the_gpu_case_measures_any_device(exact: bool) -> None:
    device = torch.device("cpu")
    assert min(gpu.folded(400_000, 3, device, exact=exact)) > 0
    assert min(gpu.copied(400_000, 3, device, back=back) for back in (True, False)) > 0


def test_the_ledger_is_made_of_what_was_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ledger, "cases", lambda: CASES)
    bench(tmp_path, "trivial")
    readme = ledger.written(f"before\n{ledger.BEGIN}\nstale figures\n{ledger.END}\nafter\n", ledger.rows(tmp_path))
    assert readme.startswith("before\n")
    assert readme.endswith("after\n")
    assert "stale figures" not in readme
    assert "| `shoal bench trivial --quick` | 12.35 things/s | at least 10/s | 20 |  | 0.6173 | yes |" in readme


def test_numbers_keep_four_digits() -> None:
    assert short({"a": [0.123456, 123456.7, 3.0, True, None, "x"]}) == {"a": [0.1235, 123500, 3.0, True, None, "x"]}
    assert line("x", FOUND, 2.04, {}, True)["ratio"] == 0.6173


def test_what_is_compared_is_measured_by_turns() -> None:
    order: list[str] = []

    def way(name: str, values: Sequence[float]) -> float:
        order.append(name)
        return values[order.count(name) - 1]

    medians = interleaved(3, lambda: way("a", (3.0, 1.0, 2.0)), lambda: way("b", (9.0, 9.0, 1.0)))
    assert medians == [2.0, 9.0]
    assert order == ["a", "b"] * 3


def test_a_quantile_is_one_of_the_values() -> None:
    assert [quantile([5.0, 1.0, 3.0, 4.0, 2.0], share) for share in (0.0, 0.5, 0.9, 1.0)] == [1.0, 3.0, 5.0, 5.0]


def test_a_version_has_arrived_when_the_last_actor_has_it() -> None:
    heard = [(at, Envelope(b"", 1, Have(version))) for at, version in ((2.0, 1), (3.5, 1), (5.0, 2), (9.0, 3), (9.5, 3))]
    assert journeys(Trace(heard=heard), [0.0, 1.0, 4.0, 8.0], actors=2) == [2.5, 1.5]


def test_the_crowd_of_the_core_case_does_real_work() -> None:
    crowd = Crowd(3)
    crowd.cost(64)
    counts = crowd.core.facts.ledger.counts
    assert counts.accepted == counts.heard >= 32
    assert crowd.core.facts.version == counts.accepted // 3
