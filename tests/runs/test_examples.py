"""The examples do what they say: each runs, and learns something real."""

from __future__ import annotations

import ast
import json
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from typed import ran

from shoal.coordinator.keeping.store import newest
from shoal.faults.patient import ran as finished
from shoal.jobs.catalog import named
from shoal.jobs.methods import METHODS

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"
EXTRA = ("torch", "gymnasium", "sklearn", "scipy", "matplotlib", "tensorboard", "rich", "safetensors", "tomli_w", "argcomplete")
# A device that has installed shoal and nothing more: whatever else is asked for is not there.
EDGE = f"""
import sys
class Blocker:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in {EXTRA}:
            raise ModuleNotFoundError(f"No module named {{name!r}}", name=name)
sys.meta_path.insert(0, Blocker())
from shoal.commands.cli import main
code = main(sys.argv[1:])
print(sorted(m for m in {EXTRA} if m in sys.modules))
sys.exit(code)
"""


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    return tmp_path


def test_a_federated_job_of_one_s_own_is_at_most_15_lines() -> None:
    text = (EXAMPLES / "my_federated.py").read_text()
    [docstring, *code] = ast.parse(text).body
    assert isinstance(docstring, ast.Expr)
    lines = {n for node in code for n in range(node.lineno, (node.end_lineno or node.lineno) + 1)}
    assert len([n for n in lines if text.splitlines()[n - 1].strip()]) <= 15


def test_the_federated_example_tells_tumours_apart() -> None:
    found = ran("simulate", EXAMPLES / "my_federated.py", "rounds=10", "--actors", 0, "--json").result
    assert found["metrics"]["accuracy"] > 0.9  # always saying "benign" is right for 63 %
    assert found["metrics"]["held_out_examples"] == 114  # a fifth of 569


def test_the_reinforcement_example_learns_to_balance_on_the_moon() -> None:
    found = ran("simulate", EXAMPLES / "my_rl.py", "total_timesteps=50000", "--actors", 0, "--json").result
    assert found["metrics"]["return_mean"] > 100  # at random it falls after some 26 steps
    assert ran("evaluate", found["run_dir"], "--episodes", 5, "--json").result["return_mean"] > 100


def test_a_few_steps_of_ones_own_help_clients_that_differ_much() -> None:
    words = ("simulate", EXAMPLES / "methods.py", "method=finetune", "rounds=11", "--actors", 0, "--json")
    found = ran(*words, "finetune_epochs=2").result["metrics"]  # the last evaluation is of version 10
    assert found["eval/accuracy"] > found["eval/global_accuracy"] + 0.1
    assert found["eval/accuracy/worst_tenth"] <= found["eval/accuracy/p10"] <= found["eval/accuracy/p90"] <= 1.0


def test_an_environment_by_its_id_is_a_job_too() -> None:
    found = ran("simulate", f"{EXAMPLES}/my_rl.py:by_id", "total_timesteps=40000", "--actors", 0, "--json").result
    assert 0 < found["steps"] <= 40_000


def test_an_actor_with_the_core_packages_alone_plays_the_edge_example(folder: Path) -> None:
    job = EXAMPLES / "edge_numpy.py"
    words = [sys.executable, "-m", "shoal", "coordinator", job, "--bind", "tcp://127.0.0.1:*", "--json", "--run-dir", "run"]
    coordinator = subprocess.Popen(words, cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    try:
        assert coordinator.stderr is not None
        address = next(m[1] for line in coordinator.stderr if (m := re.search(r"listening on (\S+);", line)))
        edge = [sys.executable, "-c", EDGE, "actor", address, "--job", job]
        actor = finished(edge, folder)
        out, _ = coordinator.communicate()
    finally:
        coordinator.kill()
        coordinator.wait()
    assert (actor.returncode, actor.stderr) == (0, "")
    assert actor.stdout.splitlines()[-1] == "[]"
    found = json.loads(out.splitlines()[-1])
    assert found["version"] == 40
    assert found["metrics"]["eval/loss"] < 0.02  # the readings' own noise is 0.01
    snapshot = newest(folder / "run", lambda text: None)
    assert snapshot is not None
    np.testing.assert_allclose(snapshot.weights["slope"], [1.5, -2.0, 0.5], atol=0.05)
    alone = ran("simulate", job, "--actors", 0, "--json").result
    assert alone["weights_sha256"] == found["weights_sha256"]


NEEDS = {"secagg": "cryptography", "xgb_bagging": "xgboost", "dp_fedavg": "dp_accounting", "local_dp": "dp_accounting"}
PICTURES = named(f"{EXAMPLES.parent}/docs/curves.py:PICTURES")
COMMANDS = {
    found[1] if (found := re.search(r"\bmethod=(\w+)", command)) else "fedavg": command
    for commands in PICTURES.values()
    for command in commands
}


@pytest.mark.parametrize("method", COMMANDS)
def test_every_federated_method_has_an_example_job_that_runs(method: str) -> None:
    if method in NEEDS:
        pytest.importorskip(NEEDS[method])
    job, *words = COMMANDS[method].split()
    settings = dict(word.split("=") for word in words) | {"rounds": "2", "local_epochs": "1", "eval_every": "1"}
    settings |= {"clients": "40", "cohort": "20"} if method in ("dp_fedavg", "local_dp") else {}
    kept = METHODS[method].__dataclass_fields__
    its = [f"{name}={value}" for name, value in settings.items() if name in kept or name in ("method", "attack")]
    place = EXAMPLES.parent / job if job.startswith("examples/") else job
    found = ran("simulate", place, *its, "--actors", 0, "--json").result
    assert found["version"] > 0
    assert found["metrics"]


def test_who_waits_for_nobody_is_sooner_there_on_devices_that_differ_much() -> None:
    words = ("simulate", EXAMPLES / "devices.py", "eval_every=0", "--json")
    waits = ran(*words, "rounds=4").result
    goes_on = ran(*words, "method=fedbuff", "buffer=5", "concurrency=20", "rounds=24").result
    assert (waits["virtual"], goes_on["virtual"]) == (True, True)
    assert goes_on["contributions"] > waits["contributions"]
    assert goes_on["seconds"] < waits["seconds"]
