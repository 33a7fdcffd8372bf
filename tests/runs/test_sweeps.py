"""Sweeps as a user runs them: the bits of single runs, kills of every kind, one line for each mistake."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import threading
import tomllib
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from typed import mistake, ran, shoal

import shoal as library
from shoal.commands.cli import main
from shoal.protocol.parent import forked
from shoal.runs.rundir import RunDir
from shoal.sweeps.folder import SweepDir, heal
from shoal.sweeps.found import Sweep

QUICK = ("rounds=4", "local_epochs=1", "eval_every=1")
OBJECTIVE = """
import optuna

def objective(trial):
    x = trial.suggest_float("x", 0.01, 10.0, log=True)
    kind = trial.suggest_categorical("kind", ["a", "b"])
    for step in range(1, 9):
        value = (x - 1) ** 2 + (kind == "b") + 1 / step
        trial.report(value, step)
        if trial.should_prune():
            raise optuna.TrialPruned
    return value
"""
# The sweep's process id stands in its lock; a file for each start tells how often which trial began.
KILLS = """
import os, pathlib, signal
import optuna

HERE = pathlib.Path(__file__).parent

def objective(trial):
    x = trial.suggest_float("x", -1, 1)
    seen = HERE / f"{trial.number}-{trial.seed}.{len(list(HERE.glob(f'{trial.number}-*')))}"
    seen.write_text(repr(x))
    trial.report(x + trial.seed / 10, 1)
    kill = HERE / f"kill-{trial.number}"
    if kill.exists():
        victim = kill.read_text()
        kill.unlink()
        os.kill(int((HERE / "sweep" / "lock").read_text()) if victim == "sweep" else os.getpid(), signal.SIGKILL)
        signal.pause()
    return x + trial.seed / 10
"""
PROBED = """
import os, pathlib, signal
import numpy as np
from torch import nn
from shoal import Federated

HERE = pathlib.Path(__file__).parent

def data():
    x = np.random.default_rng(0).normal(size=(400, 4)).astype("f4")
    return x, (x.sum(1) > 0).astype("i8")

def probe(logits, y):
    kill = HERE / "kill"
    if kill.exists() and len(list((HERE / "sweep" / "trials" / "0001" / "checkpoints").glob("*"))) > 2:
        kill.unlink()
        os.kill(os.getpid(), signal.SIGKILL)
    return float((logits.argmax(1) == y).float().mean())

job = Federated(lambda: nn.Linear(4, 2), data, metrics={"probe": probe}, clients=8, cohort=4, rounds=8, local_epochs=1,
                eval_every=1, snapshot_every=0, partition="iid")
"""

# A kill-N kills the sweep, or the trial, when trial N has written a row of its own.
BRED = (
    PROBED.partition("def probe")[0]
    + """
def probe(logits, y):
    for kill in HERE.glob("kill-*"):
        rows = HERE / "sweep" / "trials" / f"{int(kill.name[5:]):04d}" / "metrics.jsonl"
        if rows.exists() and len(rows.read_text().splitlines()) % 4 == 2:
            victim = kill.read_text()
            kill.unlink()
            os.kill(int((HERE / "sweep" / "lock").read_text()) if victim == "sweep" else os.getpid(), signal.SIGKILL)
            signal.pause()
    return float((logits.argmax(1) == y).float().mean())

job = Federated(lambda: nn.Linear(4, 2), data, metrics={"probe": probe}, clients=8, cohort=4, rounds=12, local_epochs=1,
                eval_every=1, snapshot_every=0, partition="iid")
"""
)


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    return tmp_path


def written(name: str, code: str) -> str:
    Path(name).write_text(code)
    return name


def apart(*words: object) -> int:
    """The exit code of a command in a process of its own, which may be killed: a copy of this one, which need not import."""
    code = os.waitstatus_to_exitcode(os.waitpid(forked(lambda: main([*map(str, words)])), 0)[1])
    assert code in (0, -signal.SIGKILL)
    return code


def values(folder: Path | str) -> dict[int, Any]:
    """Trial -> what it came to, without what a kill may change: the number of its processes and its seconds."""
    rows = SweepDir(folder).rows()
    return {row["trial"]: {name: row.get(name) for name in ("arm", "seed", "state", "value", "params")} for row in rows}


# A job


def test_a_trial_has_the_bits_of_the_plain_loop_and_best_repeats_its_run() -> None:
    said = ran("sweep", "digits", "lr=0.03,0.3", "seed=0..1", *QUICK, "--run-dir", "s", "--json", "--actors", 2).result
    assert said["trials"] == {"complete": 4, "pruned": 0, "failed": 0, "running": 0}
    assert [arm["params"] for arm in said["arms"]] == [{"lr": 0.03}, {"lr": 0.3}]
    rows = {(row["params"]["lr"], row["seed"]): row for row in Sweep("s").trials}
    alone = ran("simulate", "digits", "lr=0.3", *QUICK, "--seed", 1, "--actors", 0, "--json").result
    assert rows[0.3, 1]["weights_sha256"] == alone["weights_sha256"]
    assert rows[0.3, 1]["value"] == alone["metrics"]["accuracy"]
    best = Sweep("s").best
    assert best is not None
    again = ran("simulate", "s/best/config.toml", "--json").result
    assert again["weights_sha256"] == rows[best.params["lr"], 0]["weights_sha256"]
    assert json.loads(Path("s/best/arm.json").read_text())["params"] == dict(best.params)
    assert ran("plot", "s").out == "s/sweep.png\n"
    assert ran("plot", "s/trials/0000", "s/trials/0001", "--out", "both.png").out == "both.png\n"
    assert ran("resume", "s/trials/0003", "--json").result["weights_sha256"] == rows[0.3, 1]["weights_sha256"]
    assert ran("resume", "s", "--json").result["arms"] == said["arms"]  # nothing is left to do


def test_a_method_can_be_an_axis_and_a_toml_file_the_job() -> None:
    ran("simulate", "digits", *QUICK, "--seed", 3, "--actors", 0, "--run-dir", "r")
    said = ran("sweep", "r/config.toml", "method=fedavg,fedadam", "rounds=2", "--run-dir", "s", "--json").result
    assert [arm["params"]["method"] for arm in said["arms"]] == ["fedavg", "fedadam"]
    config = tomllib.loads(Path("s/trials/0001/config.toml").read_text())
    assert (config["seed"], config["actors"], config["method"]["name"], config["method"]["rounds"]) == (3, 0, "fedadam", 2)


def test_a_pruned_trial_is_a_run_that_stopped_and_all_seeds_of_its_arm_stop_with_it() -> None:
    words = ("lr=0.0001,0.1,0.2", "seed=0..1", "rounds=9", "local_epochs=1", "eval_every=1", "--actors", 1)
    pruner = ("--pruner", "asha:min_resource=1,reduction_factor=2")
    said = ran("sweep", "digits", *words, *pruner, "--run-dir", "s", "--json").result
    rows = Sweep("s").trials
    states = {arm: {row["state"] for row in rows if row["arm"] == arm} for arm in range(3)}
    assert all(len(its) == 1 for its in states.values())
    steps = {arm: {row["step"] for row in rows if row["arm"] == arm} for arm in range(3)}
    assert all(len(its) == 1 for its in steps.values())
    assert said["steps"] == sum(row["step"] for row in rows) < 6 * 9
    pruned = next(row for row in rows if row["state"] == "pruned")
    assert json.loads((Path("s") / pruned["run"] / "summary.json").read_text())["version"] == pruned["step"]


def test_a_run_whose_process_is_killed_goes_on_from_its_snapshot_to_the_same_bits() -> None:
    job = written("probed.py", PROBED)
    words = ("sweep", job, "lr=0.05,0.1", "--goal", "max:probe", "--actors", 1, "--json", "--run-dir")
    ran(*words, "whole")
    Path("kill").touch()
    ran(*words, "sweep")
    rows, whole = Sweep("sweep").trials, Sweep("whole").trials
    assert [row["attempt"] for row in rows] == [1, 2]
    assert [row["weights_sha256"] for row in rows] == [row["weights_sha256"] for row in whole]
    assert "resumed" in Path("sweep/trials/0001/log.txt").read_text()
    assert values("sweep") == values("whole")


def test_a_sweep_of_environments_is_judged_by_return() -> None:
    said = ran("sweep", "cartpole", "lr=1e-3,2e-3", "total_timesteps=3000", "--run-dir", "s", "--json").result
    assert said["goal"] == "max:return_mean"
    alone = ran("simulate", "cartpole", "lr=2e-3", "total_timesteps=3000", "--actors", 0, "--json").result
    assert Sweep("s").trials[1]["weights_sha256"] == alone["weights_sha256"]


# A population

PBT = ("lr=1e-3..1~log", "batch_size=8,16,32", "--sampler", "pbt:population=4,generations=3", "--goal", "max:probe")


def test_a_trial_of_a_population_goes_on_from_another_s_snapshot_with_the_bits_of_a_run_that_never_stopped() -> None:
    job = written("bred.py", BRED)
    said = ran("sweep", job, *PBT, "--run-dir", "sweep", "--json").result
    rows, arms = Sweep("sweep").trials, Sweep("sweep").arms
    assert [row["step"] for row in rows] == [4] * 4 + [8] * 4 + [12] * 4
    assert [arm.steps for arm in arms] == [4] * 12
    assert said["steps"] == 12 * 4
    assert [arm.origin for arm in arms[:4]] == [None] * 4
    assert all(arm.origin in range(arm.number // 4 * 4 - 4, arm.number // 4 * 4) for arm in arms[4:])
    assert [arm["from"] for arm in said["arms"][4:]] == [arm.origin for arm in arms[4:]]
    assert "arm  from  lr" in Sweep("sweep").table()
    whole = next(arm for arm in arms[8:] if arm.origin == arm.number - 4 and arms[arm.number - 4].origin == arm.number - 8)
    alone = ran("simulate", job, *(f"{n}={v!r}" for n, v in whole.params.items()), "--actors", 0, "--json").result
    assert rows[whole.number]["weights_sha256"] == alone["weights_sha256"]
    history = RunDir(f"sweep/trials/{whole.number:04d}").rows()
    assert [row["version"] for row in history] == list(range(1, 13))
    bred = next(arm for arm in arms[4:] if arm.origin != arm.number - 4)
    assert bred.origin is not None
    assert bred.params != arms[bred.origin].params


def test_a_population_that_is_killed_has_the_arms_and_the_bits_of_one_that_was_not(
    here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tables = []
    for kills in ({}, {1: "sweep", 5: "trial", 6: "sweep", 9: "sweep"}):
        place = here / f"{len(kills)}"
        place.mkdir()
        monkeypatch.chdir(place)
        job = written("bred.py", BRED)
        for trial, victim in kills.items():
            Path(f"kill-{trial}").write_text(victim)
        codes = [apart("sweep", job, *PBT, "--run-dir", "sweep", "--quiet", "--actors", 1 if kills else 2)]
        while codes[-1]:
            codes.append(apart("resume", "sweep", "--quiet"))
        assert codes == [-signal.SIGKILL] * list(kills.values()).count("sweep") + [0]
        assert not list(Path().glob("kill-*"))
        rows = Sweep("sweep").trials
        told = [
            {name: row[name] for name in ("arm", "from", "params", "value", "weights_sha256", "step", "began")} for row in rows
        ]
        tables.append((told, Sweep("sweep").table()))
    assert tables[0] == tables[1]


FALLING = """
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from shoal import Federated, FedAvg, Work, option
from shoal.protocol.layout import Bundle


class Stepping:
    def __init__(self, step):
        self.step = step

    def run(self, weights, client, task):
        delta = -self.step * np.sign(weights["x"])
        return Work(Bundle.pack({"x": delta.astype(np.float32)}, weights.layout), weight=1.0)


@dataclass(frozen=True)
class Falling(FedAvg):
    name: ClassVar[str] = "falling"
    step: float = option(0.1, "length of every step")

    def worker(self, problem, seed):
        return Stepping(self.step)

    def central(self, problem, seed, device):
        return lambda weights: {"distance": float(abs(weights["x"][0]))}

    def due(self, version):
        return True


def start():
    return {"x": np.array([10.37], np.float32)}


job = Federated(worker=lambda: Stepping(0.1), weights=start, method=Falling, clients=1, cohort=1, rounds=60, snapshot_every=0)
"""


def test_a_population_finds_a_schedule_that_beats_every_setting_that_stays_and_tells_its_way() -> None:
    job = written("falling.py", FALLING)  # a step of 1 comes near and then jumps to and fro; a step of 0.01 does not get there
    words = (job, "step=0.01,0.1,1", "--goal", "min:distance")
    alone = ran("sweep", *words, "--run-dir", "alone", "--json").result
    assert min(arm["mean"] for arm in alone["arms"]) > 0.3
    said = ran("sweep", *words, "--sampler", "pbt:population=4,generations=6", "--run-dir", "bred", "--json").result
    assert said["best"]["mean"] < 0.06
    found = Sweep("bred")
    way = found.lineage()
    assert [arm.number for arm in way] == said["lineage"]
    assert [arm.number // 4 for arm in way] == list(range(len(way)))
    assert len(way) > 2
    steps = [arm.params["step"] for arm in way]
    assert steps[0] == 1
    assert steps[-1] < 1
    assert all(one.number == other.origin for one, other in pairwise(way))
    tree = found.tree().splitlines()
    assert len(tree) == 24
    assert next(line for line in tree if line.endswith("best")).startswith(f"{'  ' * (len(way) - 1)}{way[-1].number}  step=")
    assert found.lineage(999) == []


def test_a_population_goes_on_to_more_generations_and_plays_environments() -> None:
    words = (
        "lr=1e-4..1e-2~log",
        "seed=0..1",
        "total_timesteps=2000",
        "--sampler",
        "pbt:population=2,generations=2,quantile=0.5",
    )
    ran("sweep", "cartpole", *words, "--run-dir", "s")
    said = ran("resume", "s", "trials=12", "--json").result
    rows = Sweep("s").trials
    assert said["trials"]["complete"] == 12
    assert [row["from"] for row in rows[:4]] == [None] * 4
    assert all(row["seed"] == rows[row["from"]]["seed"] for row in rows[4:])
    assert all(row["began"] == rows[row["from"]]["step"] for row in rows[4:])
    configs = [tomllib.loads(Path(f"s/{row['run']}/config.toml").read_text()) for row in rows]
    assert [config["method"]["total_timesteps"] for config in configs] == [1000] * 4 + [2000] * 4 + [3000] * 4


# An objective


def test_an_objective_is_the_function_that_optuna_takes() -> None:
    import optuna

    name = written("train.py", OBJECTIVE)
    words = ("--trials", 25, "--pruner", "asha", "--seed", 1, "--actors", 1)
    said = ran("sweep", f"{name}:objective", *words, "--run-dir", "s", "--json").result
    assert said["goal"] == "min:value"
    assert sum(said["trials"].values()) == 25
    assert said["trials"]["complete"] > 0
    assert said["trials"]["pruned"] > 0
    assert set(said["best"]["params"]) == {"x", "kind"}
    backend = optuna.storages.journal.JournalFileBackend("s/optuna.log")
    study = optuna.load_study(study_name="sweep", storage=optuna.storages.JournalStorage(backend))
    assert {trial.state.name for trial in study.trials} == {"COMPLETE", "PRUNED"}
    assert study.best_value == said["best"]["mean"]
    assert study.best_params == said["best"]["params"]
    assert tuple(Path("s/trials.jsonl").read_text().count(f'"trial": {n},') > 1 for n in range(25)) == (True,) * 25


def test_the_same_seed_asks_for_the_same_settings_and_the_globals_are_set_from_the_trial_s() -> None:
    code = "import random\n\ndef objective(trial):\n    return random.random() + trial.suggest_float('x', 0, 1) * 0\n"
    name = written("luck.py", code)
    for folder in ("a", "b"):
        ran("sweep", f"{name}:objective", "seed=0..2", "--trials", 6, "--sampler", "random", "--run-dir", folder)
    assert values("a") == values("b")
    found = values("a")
    assert len({row["value"] for row in found.values()}) == 6
    assert len({row["params"]["x"] for row in found.values()}) == 2  # an arm's, for all its seeds


def test_a_killed_trial_is_tried_again_and_nothing_else() -> None:
    name = written("kills.py", KILLS)
    words = ("sweep", f"{name}:objective", "seed=0..2", "--trials", 9, "--sampler", "random", "--run-dir", "sweep")
    for trial in (1, 4, 8):
        Path(f"kill-{trial}").write_text("trial")
    ran(*words)
    rows = Sweep("sweep").trials
    assert [row["attempt"] for row in rows] == [1, 2, 1, 1, 2, 1, 1, 1, 2]
    assert {row["state"] for row in rows} == {"complete"}
    assert len(list(Path().glob("[0-9]*-*"))) == 9 + 3


@pytest.mark.parametrize(("sampler", "axis"), [("random", ()), ("grid", ("x=-0.5,0.25,0.75",))])
def test_a_sweep_that_is_killed_five_times_has_the_table_of_one_that_was_not(
    here: Path, sampler: str, axis: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    import optuna

    tables = {}
    for kills in ((), (0, 2, 3, 5, 8)):
        place = here / f"{len(kills)}"
        place.mkdir()
        monkeypatch.chdir(place)
        name = written("kills.py", KILLS)
        for trial in kills:
            Path(f"kill-{trial}").write_text("sweep")
        words = ("sweep", f"{name}:objective", *axis, "seed=0..2", "--sampler", sampler, "--trials", 9, "--actors", 1)
        codes = [apart(*words, "--run-dir", "sweep", "--quiet")]
        while codes[-1]:
            codes.append(apart("resume", "sweep", "--quiet"))
        assert codes == [-signal.SIGKILL] * len(kills) + [0]
        tables[kills] = values("sweep"), Path("sweep/best/arm.json").read_text(), Sweep("sweep").table()
        starts = [path.name.partition("-")[0] for path in place.glob("[0-9]*-*")]
        assert {int(trial): starts.count(trial) for trial in starts} == {n: 1 + (n in kills) for n in range(9)}
        backend = optuna.storages.journal.JournalFileBackend("sweep/optuna.log")
        study = optuna.load_study(study_name="sweep", storage=optuna.storages.JournalStorage(backend))
        assert [(trial.state.name, trial.user_attrs["arm"]) for trial in study.trials] == [("COMPLETE", n) for n in range(3)]
    assert tables[()] == tables[0, 2, 3, 5, 8]


def test_a_line_that_was_cut_short_is_healed(here: Path) -> None:
    file = here / "x.jsonl"
    for text, left in (("", ""), ("a\n", "a\n"), ("a\nb", "a\n"), ("ab", "")):
        file.write_text(text)
        heal(file)
        assert file.read_text() == left


def test_a_journal_and_rows_that_were_cut_short_do_not_stop_a_resume() -> None:
    name = written("train.py", OBJECTIVE)
    ran("sweep", f"{name}:objective", "--trials", 4, "--run-dir", "s")
    before = values("s")
    for file in ("trials.jsonl", "arms.jsonl", "optuna.log"):
        with Path("s", file).open("a") as end:
            end.write('{"trial": 3, "st')
    said = ran("resume", "s", "trials=6", "--json").result
    assert said["trials"]["complete"] == 6
    assert {number: row for number, row in values("s").items() if number < 4} == before
    whole = Path("s/optuna.log").read_text()
    assert len(whole.splitlines()) == 1 + 6
    Path("s/optuna.log").write_text("\0" * 40 + whole)  # it is a copy, and made anew
    ran("resume", "s", "trials=7")
    assert len(Path("s/optuna.log").read_text().splitlines()) == 1 + 7


# From Python


def test_python_sweeps_an_objective_that_was_made_here_also_beside_threads() -> None:
    over = threading.Event()
    other = threading.Thread(target=over.wait)
    other.start()
    try:
        found = library.sweep(lambda trial: trial.params["x"] ** 2, {"x": [3, -2, 1]}, folder="s", show=False)
    finally:
        over.set()
        other.join()
    assert found.reason == "done"
    assert found.best is not None
    assert (found.best.params, found.best.mean) == ({"x": 1}, 1.0)
    assert [arm.mean for arm in found.arms] == [9.0, 4.0, 1.0]
    assert "best" in found.table()
    assert found.plot("s/p.svg").is_file()


def test_what_has_a_name_is_imported_in_a_fresh_interpreter_beside_threads() -> None:
    written("train.py", OBJECTIVE)
    over = threading.Event()
    other = threading.Thread(target=over.wait)
    other.start()
    try:
        found = library.sweep("train.py:objective", trials=4, sampler="random", folder="s", show=False)
        settings = {"rounds": 2, "local_epochs": 1}
        job = library.sweep("digits", {"lr": [0.05, 0.1]}, settings=settings, folder="d", show=False)
    finally:
        over.set()
        other.join()
    ran("sweep", "train.py:objective", "--trials", 4, "--sampler", "random", "--run-dir", "t")
    assert values("s") == values("t")
    assert [row["state"] for row in found.trials] == ["complete"] * 4
    alone = ran("simulate", "digits", "lr=0.1", "rounds=2", "local_epochs=1", "--actors", 0, "--json").result
    assert job.trials[1]["weights_sha256"] == alone["weights_sha256"]


def test_the_same_words_go_on_with_a_sweep_and_other_words_are_refused() -> None:
    def calls(trial: Any) -> float:
        with open("calls", "a") as file:
            file.write("x")
        return float(trial.suggest_float("x", 0, 1))

    for trials in (3, 5, 5):
        found = library.sweep(calls, trials=trials, sampler="random", folder="s", show=False)
    assert len(found.trials) == len(Path("calls").read_text()) == 5
    with pytest.raises(library.UserError, match="its sweep has sampler=random, and this one sampler=tpe"):
        library.sweep(calls, trials=5, sampler="tpe", folder="s", show=False)


def test_python_sweeps_a_job_by_name_and_with_optuna_s_own_parts() -> None:
    import optuna

    sampler, pruner = optuna.samplers.RandomSampler(seed=0), optuna.pruners.NopPruner()
    settings = {"rounds": 2, "local_epochs": 1}
    found = library.sweep(
        "digits", {"lr": "0.01..0.1~log"}, trials=2, sampler=sampler, pruner=pruner, settings=settings, folder="s"
    )
    assert found.run.metrics["accuracy"] == found.best.mean if found.best else False
    assert found.goal.metric == "accuracy"
    assert mistake("resume", "s", "trials=3") == (
        "s: its sampler is an object of RandomSampler: go on from Python, with shoal.sweep(folder=...)"
    )


@pytest.mark.parametrize(("number", "exit_code"), [("SIGINT", 130), ("SIGTERM", 143)])
def test_an_interrupt_ends_a_sweep_in_good_order_and_resume_goes_on(number: str, exit_code: int) -> None:
    code = (
        "import os, pathlib, signal\n\ndef objective(trial):\n"
        "    x = trial.suggest_float('x', 0, 1)\n    stop = pathlib.Path(__file__).parent / 'stop'\n"
        "    if trial.number == 2 and stop.exists():\n        stop.unlink()\n"
        "        os.kill(int((stop.parent / 's' / 'lock').read_text()), signal.NUMBER)\n        signal.pause()\n    return x\n"
    )
    name = written("stops.py", code.replace("NUMBER", number))
    Path("stop").touch()
    said = shoal("sweep", f"{name}:objective", "--trials", 4, "--sampler", "random", "--actors", 1, "--run-dir", "s")
    assert said.code == exit_code
    assert "shoal resume s" in said.out
    assert [row["state"] for row in Sweep("s").trials] == ["complete", "complete", "running"]
    assert ran("resume", "s", "--json").result["trials"]["complete"] == 4


def test_no_process_and_no_folder_stays_behind() -> None:
    name = written("train.py", OBJECTIVE)
    ran("sweep", f"{name}:objective", "--trials", 3, "--run-dir", "s")
    own = str(os.getpid())
    left = subprocess.run(["ps", "--ppid", own, "-o", "stat="], capture_output=True, text=True, check=False).stdout.split()
    assert [state for state in left if not state.startswith(("Z", "R"))] == []


# Mistakes


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (("digits",), "nothing to sweep: give a setting several values"),
        (("digits", "lr=0.1"), "nothing to sweep"),
        (("digits", "lr="), "the list has no value"),
        (("digits", "lr=0.1..0.01"), "from its lowest number to its highest"),
        (("digits", "lr=0.01..0.1"), "it never ends by itself; say --trials N or --timeout 2h"),
        (("train.py:objective", "--sampler", "pbt"), "an objective has no snapshots to begin from"),
        (
            ("digits", "lr=0.1..1", "--sampler", "pbt", "--trials", "9"),
            "a population has population x generations x seeds, 40 here",
        ),
        (("digits", "lr=0.1..1", "--sampler", "pbt", "--pruner", "asha"), "leave the pruner out"),
        (("digits", "seed=0..3", "--sampler", "pbt"), "nothing to change: give a setting several values"),
        (("digits", "lr=0.1..1", "rounds=4", "--sampler", "pbt"), "rounds=4: 5 generations need 5 at least"),
        (
            ("digits", "lr=0.1..1", "rounds=4,8", "--sampler", "pbt"),
            "rounds: a trial that goes on from another's snapshot keeps its",
        ),
        (("digits", "lr=0.1..1", "--sampler", "pbt:generation=3"), "pbt has no 'generation'"),
        (("digits", "lr=nan..0.1", "--trials", "3"), "the ends and the step of a range are finite numbers"),
        (("digits", "lr=0.1..0.2~0.5", "--trials", "3"), "the step is larger than the range"),
        (("digits", "lr=0.1..0.1", "--trials", "3"), "nothing to sweep"),
        (("digits", "lr=0..0.1~log", "--trials", "3"), "a range with ~log begins above 0; lr=1e-5..0.1~log, say"),
        (("digits", "batch_size=0..8~log", "--trials", "3"), "batch_size=1..8~log, say"),
        (("digits", "lr=0.1,fast"), "lr=fast: must be a number"),
        (("digits", "lr=0.1,0.2", "seed=-1..3"), "seed=-1: allowed is from 0"),
        (("digits", "lr=0.1,0.1"), "0.1 stands there twice"),
        (("train.py:objective", "x=3..1", "--trials", "3"), "from its lowest number to its highest: x=1..3, say"),
        (("train.py:objective", "x=0..1~log", "--trials", "3"), "a range with ~log begins above 0"),
        (("digits", "lr=0.01..0.1", "--sampler", "grid"), "a grid has no place for a range of any numbers"),
        (("digits", "gamma=0.9,0.99"), "gamma is a setting of impala, ppo, "),
        (("digits", "gama=0.9,0.99"), "unknown setting 'gama'"),
        (("digits", "partition=iid", "alpha=0.1,0.5"), "alpha is a setting of partition="),
        (("digits", "lr=0.1,0.2", "--goal", "max:acuracy"), "no metric 'acuracy': did you mean accuracy?"),
        (("digits", "lr=0.1,0.2", "--goal", "accuracy"), "must be max:METRIC or min:METRIC"),
        (("digits", "lr=0.1,0.2", "--sampler", "tpee"), "did you mean tpe?"),
        (("digits", "lr=0.1,0.2", "--pruner", "asha:rate=1"), "SuccessiveHalvingPruner has no 'rate'"),
        (("digits", "lr=0.1,0.2", "--pruner", "asha:reduction_factor"), "not of the form key=value"),
        (
            ("digits", "lr=0.1..1", "--sampler", "pbt:population=4,population=5"),
            "'population' stands there twice; give it once",
        ),
        (("digits", "lr=0.1,0.2", "seed=0..4", "--trials", "3"), "each arm has 5 seeds"),
        (("digits", "lr=0.1,0.2", "--timeout", "soon"), "a time is a number above 0 with s, m, h or d"),
        (("digts", "lr=0.1,0.2"), "did you mean digits?"),
        (("nofile.py:objective", "--trials", "3"), "nofile.py: give the path of the file"),
        (("train.py:objectiv", "--trials", "3"), "has no 'objectiv'"),
        (("train.py:objective",), "it never ends by itself"),
        (("train.py:objective", "--sampler", "grid"), "an objective's grid is empty without axes"),
    ],
)
def test_a_mistake_is_one_line_and_leaves_no_folder(words: tuple[str, ...], line: str) -> None:
    written("train.py", OBJECTIVE)
    assert line in mistake("sweep", *words)
    assert not Path("sweeps").exists()


def test_a_folder_that_is_there_is_not_written_into() -> None:
    written("train.py", OBJECTIVE)
    ran("sweep", "train.py:objective", "--trials", 1, "--run-dir", "s")
    assert "go on with its run: shoal resume s" in mistake("sweep", "train.py:objective", "--trials", 1, "--run-dir", "s")
    assert "only trials may grow" in mistake("resume", "s", "lr=3")
    assert "s is a sweep, not a run: name one of its runs, s/trials/0000, say" in mistake("evaluate", "s")
    with pytest.raises(library.UserError, match="nothing holds no sweep"):
        Sweep("nothing")
    Path("s/sweep.toml").write_text("job = 3\n")
    assert "it must be of type str" in mistake("resume", "s")


def test_optuna_that_is_missing_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "optuna", None)
    line = "shoal sweep needs optuna, which is not installed: pip install 'shoal[sweep]'"
    assert mistake("sweep", "digits", "lr=0.1,0.2") == line
    with pytest.raises(library.UserError, match="needs optuna, which is not installed"):
        library.sweep("digits", {"lr": [0.1, 0.2]})


def test_an_objective_that_always_fails_ends_its_sweep_with_its_line() -> None:
    written("bad.py", "def objective(trial):\n    return {}['key']\n")
    line = mistake("sweep", "bad.py:objective", "--trials", "50", "--run-dir", "s", "--quiet")
    why = "bad.py, line 2, in objective: KeyError: 'key'"
    assert re.fullmatch(rf"all of the first 3 trials failed, the last one so: trial \d \(seed=0\): {why}.*", line)


def test_one_trial_that_fails_is_told_and_its_arm_never_wins() -> None:
    code = "def objective(trial):\n    x = trial.params['x']\n    return 1 / x if trial.seed else float(x)\n"
    written("some.py", code)
    said = shoal("sweep", "some.py:objective", "x=2,0,-1", "seed=0..1", "--run-dir", "s")
    assert said.code == 1  # though there is a best arm
    line = "trial 3 (x=0 seed=1){} some.py, line 3, in objective: ZeroDivisionError: division by zero\n"
    assert f"shoal: {line.format(' failed:')}" in said.err  # at once
    assert f"Failed: {line.format(':')}" in said.out
    assert [row["state"] for row in Sweep("s").trials] == ["complete"] * 3 + ["failed"] + ["complete"] * 2
    assert "failed: some.py, line 3, in objective: ZeroDivisionError: division by zero" in said.out
    assert Sweep("s").summary()["best"]["params"] == {"x": -1}


def test_an_objective_may_sweep_itself_and_its_own_faults_are_those_of_its_trial() -> None:
    code = (
        "import shoal\n\ndef inner(trial):\n    return (trial.suggest_float('y', 0, 1) - trial.params['z']) ** 2\n\n"
        "def objective(trial):\n"
        "    z = trial.suggest_float('z', 0, 1)\n"
        "    found = shoal.sweep(inner, {'z': [z]}, trials=2, sampler='random', folder=f'in-{trial.number}', show=False)\n"
        "    if trial.number == 1:\n        raise RuntimeError('no more')\n"
        "    return found.best.mean\n"
    )
    written("nested.py", code)
    said = shoal("sweep", "nested.py:objective", "--trials", 3, "--sampler", "random", "--run-dir", "s", "--quiet")
    assert said.code == 1
    assert re.search(
        r"Failed: trial 1 \(z=0\.\d+ seed=0\): nested.py, line 10, in objective: RuntimeError: no more\n", said.out
    )
    inner = [best.mean for number in range(3) if (best := Sweep(f"in-{number}").best) is not None]
    assert [row["value"] for row in Sweep("s").trials] == [inner[0], None, inner[2]]
    assert [len(Sweep(f"in-{number}").trials) for number in range(3)] == [2, 2, 2]


@pytest.mark.parametrize(
    ("body", "line"),
    [
        ("return 'much'", "it returned 'much': expected a number"),
        ("return float('nan')", "its value is None, which is no finite number"),
        ("return trial.suggest_categorical('x', [[1], [2]])", "a choice is a number, a text, true, false or None"),
        ("return trial.report('a', 1)", "expected a number and a step"),
        ("return trial.set_user_attr('model', object())", "expected plain data"),
        ("return trial.suggest_float('x', 5, 6)", "has values that the objective's suggestion has not"),
    ],
)
def test_what_an_objective_may_not_do_is_one_line(body: str, line: str) -> None:
    written("odd.py", f"def objective(trial):\n    {body}\n")
    assert line in mistake("sweep", "odd.py:objective", "x=1,2,3", "--actors", "1", "--run-dir", "s", "--quiet")


def test_a_metric_that_no_run_has_is_told_with_those_there_are() -> None:
    code = (
        "import numpy as np\nfrom shoal import Bundle, Federated, Work\n\nclass Adds:\n"
        "    def run(self, weights, client, task):\n"
        "        return Work(Bundle.pack({'w': np.ones(2, 'f4')}), 1.0, {'height': (2.0, 1.0)})\n\n"
        "job = Federated(worker=Adds, weights=lambda: {'w': np.zeros(2, 'f4')}, clients=4, cohort=2, rounds=2)\n"
    )
    written("own.py", code)
    words = ("server_lr=0.1,1", "--quiet", "--goal", "max:hight")
    assert "no run has a metric 'hight': did you mean height?" in mistake("sweep", "own.py", *words)


def test_a_stranger_s_sweep_is_not_run_without_trust() -> None:
    written("train.py", OBJECTIVE)
    ran("sweep", "train.py:objective", "--trials", 1, "--run-dir", "s")
    ran("resume", "s", "trials=2")  # one's own is
    Path("s/signature").unlink()
    assert "give --trust if you know it" in mistake("resume", "s", "trials=3")
    assert ran("resume", "s", "trials=3", "--trust", "--json").result["trials"]["complete"] == 3
