"""inference=auto: where a trial lets a network be computed, and what it says of it."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import pytest

import shoal
from shoal.protocol.errors import UserError
from shoal.runs import placing
from shoal.runs.placing import Costs, chosen, costs, placed, told_on
from shoal.runs.rundir import Config
from shoal.runs.tuning import tried


def job(**settings: Any) -> Any:
    return shoal.Reinforcement(
        "CartPole-v1", **{"preset": "none", "num_envs": 4, "rollout_length": 8, "eval_episodes": 0, **settings}
    )


def test_one_process_gains_what_larger_batches_save_and_loses_what_cores_compute_beside_each_other() -> None:
    saves, saves_not = Costs(step=4e-3, act=2e-3, all=2.5e-3), Costs(step=4e-3, act=2e-3, all=8e-3)
    assert saves.in_actors(4, 4) == saves_not.in_actors(4, 4) == pytest.approx(8e-3)
    assert saves.central(4, 4, alone=False) < 6e-3 < 16e-3 < saves_not.central(4, 4, alone=False)
    assert saves.central(4, 4, alone=True) == saves_not.central(4, 4, alone=True) > 16e-3  # a batch for each question
    assert saves.in_actors(4, 1) == pytest.approx(32e-3)


@pytest.mark.parametrize(("found", "where"), [(Costs(4e-3, 2e-3, 2.5e-3), "central"), (Costs(4e-3, 2e-3, 8e-3), "actor")])
def test_the_faster_place_is_taken_and_both_times_are_told(found: Costs, where: str) -> None:
    made, [line] = chosen(job(), found, 4, 4, {"inference_wait": 0.01})
    assert (made.problem.inference, made.problem.double_buffer) == (where, where == "central")
    assert line.startswith(f"inference={where}")
    assert "ms, by a trial, and" in line
    assert made.plain()["inference_wait"] == (0.01 if where == "central" else 0.002)


def test_a_trial_measures_the_parts_of_both_ways() -> None:
    step, act, everyone, one = costs(job(method="ppo"), 3)
    assert 0 <= step < 1
    assert 0 < act < 1
    assert 0 < everyone < 1
    assert one == 0  # in the inference process as in the actor


def test_a_trial_with_a_gpu_measures_the_inference_process_there(capfd: pytest.CaptureFixture[str]) -> None:
    step, act, everyone, one = costs(job(method="impala"), 3, "cpu:0")  # a device that is not the actor's "cpu"
    assert min(act, everyone, one) > 0 <= step
    assert capfd.readouterr().err == ""  # the network was computed there, and not in the actor's way


def test_a_choice_stands_in_the_runs_settings_and_closing_words_say_what_came_of_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(placing, "in_a_copy", lambda measure: [[4e-3, 2e-3, 1e-3]])
    monkeypatch.setattr(placing, "lone", lambda: True)
    monkeypatch.setattr(placing, "cores", lambda: 4)
    made = job(inference="auto", inference_wait=0.005, total_timesteps=4 * 8 * 2 * 4)
    run = shoal.run(made, actors=2, folder=tmp_path / "run", show=False)
    kept = Config.load(tmp_path / "run" / "config.toml").settings
    assert (kept["inference"], kept["double_buffer"], kept["inference_wait"]) == ("central", True, 0.005)
    assert "inference=central double_buffer=true: a step of 2 actors" in run.dir.log_file.read_text()
    assert "Inference: 100% of the last observations in the inference process" in str(shoal.runs.summary.closing(run.summary))


def test_what_a_gpu_saves_counts_also_where_each_question_is_computed_alone() -> None:
    found = Costs(step=4e-3, act=2e-3, all=1e-4, one=5e-5)
    assert found.central(4, 8, alone=True) == pytest.approx(4e-3)  # the environments' steps
    assert Costs(step=4e-3, act=2e-3, all=1e-4).central(4, 8, alone=True) > 16e-3


def test_with_a_gpu_one_actor_is_tried_too(monkeypatch: pytest.MonkeyPatch) -> None:
    tried: list[tuple[Any, ...]] = []
    monkeypatch.setattr(placing, "uses_gpu", lambda device: True)
    monkeypatch.setattr(placing, "lone", lambda: True)
    monkeypatch.setattr(placing, "costs", lambda *its: tried.append(its[1:]) or [4e-3, 2e-3, 1e-4, 5e-5])
    monkeypatch.setattr(placing, "in_a_copy", lambda measure: list(measure()))
    made, _ = placed(job(inference="auto", method="impala"), 1, "cuda")
    assert tried == [(1, "cuda")]
    assert (made.problem.inference, made.problem.inference_device) == ("central", "auto")
    placed(job(inference="auto", method="ppo"), 2, "cuda")
    assert tried[1:] == [(2, "cpu")]  # rounds promise the actor's bits
    placed(job(inference="auto", method="ppo", inference_device="cuda"), 2, "cuda")
    assert tried[2:] == [(2, "cuda")]


@pytest.mark.parametrize("inference", ["central", "auto"])
def test_a_gpu_that_is_named_and_not_there_is_refused(monkeypatch: pytest.MonkeyPatch, inference: str) -> None:
    monkeypatch.setattr(placing, "uses_gpu", lambda device: False)
    line = "inference_device=cuda: this machine has no CUDA device that torch can use; inference_device=auto takes the run's"
    with pytest.raises(UserError, match=line):
        placed(job(inference=inference, inference_device="cuda"), 2)


@pytest.mark.parametrize(
    ("method", "device", "line"),
    [
        ("impala", "cuda", "the inference process computes on cuda"),
        ("impala", "cpu", ""),
        ("ppo", "cpu", ""),
        ("ppo", "cuda", "the inference process computes on the processor: a run in rounds has the bits of inference=actor; "),
    ],
)
def test_the_device_of_the_inference_process_is_said_where_there_is_a_gpu(method: str, device: str, line: str) -> None:
    assert told_on(job(inference="central", method=method), device).startswith(line)
    assert bool(told_on(job(inference="central", method=method), device)) == bool(line)
    assert told_on(job(inference="central", method=method, inference_device="cpu"), device) == ""


@pytest.mark.parametrize("actors", [0, 1])
def test_one_actor_computes_itself(actors: int) -> None:
    made, [line] = placed(job(inference="auto", inference_min_batch=2), actors)
    assert made.problem.inference == "actor"
    assert line == "inference=actor: a run with one actor, or none, gains nothing by it"


def test_a_trial_that_fails_leaves_the_network_with_the_actors(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(placing, "in_a_copy", lambda measure: [])
    monkeypatch.setattr(placing, "lone", lambda: True)
    made, [line] = placed(job(inference="auto"), 2)
    assert (made.problem.inference, line) == ("actor", "inference=actor: a trial of where to compute the network failed")


def test_what_somebody_chose_is_not_tried() -> None:
    for inference in ("actor", "central"):
        made = job(inference=inference)
        assert placed(made, 2) == (made, ())


def test_a_tuner_tries_each_place_from_the_best_sizes_on() -> None:
    plain = {"num_envs": 32, "rollout_length": 32, "inference": "actor", "double_buffer": False}
    rates = {("central", True): 3.0, ("central", False): 2.0}
    rows = list(tried(plain, None, 2, lambda its, count: rates.get((its["inference"], its["double_buffer"]), 1.0)))
    places = [(row["inference"], row["double_buffer"]) for row, _, _ in rows]
    assert places[0] == ("actor", False)
    tries = [place for before, place in itertools.pairwise(places) if place != before]
    assert tries == [("central", False), ("central", True), ("actor", True), ("central", True)]  # then other numbers of actors
    assert {len(row) for row, _, _ in rows} == {4}
