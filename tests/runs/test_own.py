"""What a user brings to a federated job: an optimizer, a schedule, a partition, metrics, a loss, a worker, first weights."""

from __future__ import annotations

import json
import re
import sys
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from typed import mistake, ran
from whole import run

from shoal import Bundle, FedAvg, Federated, Task, UserError, Work
from shoal.actors.workers.local_sgd import LocalSGD
from shoal.jobs.catalog import find
from shoal.jobs.methods.local import OPTIMIZERS
from shoal.jobs.settings import changed, ranges
from shoal.nets.models import mlp
from shoal.nets.updates import SGD, UPDATES, Adam
from shoal.runs.metrics import own
from shoal.runs.plot import panels, read
from shoal.runs.rundir import RunDir

RNG = np.random.Generator(np.random.Philox(5))
X, Y = RNG.normal(size=(120, 64)).astype(np.float32), RNG.integers(0, 10, 120)
SMALL = {"clients": 6, "cohort": 3, "rounds": 2, "local_epochs": 1, "partition": "iid"}


@pytest.fixture(autouse=True)
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.delitem(sys.modules, "mine", raising=False)
    return tmp_path


def job(**more: Any) -> Any:
    return Federated(mlp, (X, Y), **{**SMALL, **more})


def test_the_names_of_optimizers_are_those_that_there_are() -> None:
    assert tuple(UPDATES) == OPTIMIZERS


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_a_client_s_optimizer_is_a_setting_and_makes_a_difference(name: str) -> None:
    plain = run(job(), 0).sha256
    assert (run(job(optimizer=name), 0).sha256 == plain) == (name == "sgd")
    assert (run(job(server_optimizer=name), 0).sha256 == plain) == (name == "sgd")


def test_a_default_that_a_subclass_changes_is_that_setting_still() -> None:
    @dataclass(frozen=True)
    class Slow(FedAvg):
        lr: float = 0.01
        warm: int = 3

    slow = ranges(Slow)
    assert slow["lr"] == replace(ranges(FedAvg)["lr"], default=0.01)
    assert slow["warm"].about == "a setting of your own method or wrap"
    with pytest.raises(UserError, match=r"lr=-1: allowed is above 0; lr=0\.01, say"):
        changed(Slow(), {"lr": -1})


def test_an_optimizer_of_one_s_own_is_one_too_and_has_its_own_rate() -> None:
    class Half(SGD):
        def __call__(self, w: Tensor, delta: Tensor, t: int, *moments: Tensor) -> tuple[Tensor, ...]:
            return (delta * self.lr / 2,)

    assert run(job(optimizer=Half, lr=0.2), 0).sha256 != run(job(lr=0.2), 0).sha256
    assert run(job(optimizer=Adam(lr=0.01)), 0).sha256 == run(job(optimizer="adam", lr=0.01), 0).sha256
    assert run(job(server_optimizer=Adam(lr=0.01)), 0).sha256 == run(job(server_optimizer="adam", server_lr=0.01), 0).sha256
    with pytest.raises(UserError, match=r"lr=0.3: optimizer=Adam was made with its own learning rate"):
        job(optimizer=Adam(lr=0.01), lr=0.3)
    with pytest.raises(UserError, match="optimizer=3: must be a function of yours, or one of sgd"):
        job(optimizer=3)


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"weight_decay": 0.5}, {}),
        ({"clip_grad_norm": 0.01}, {}),
        ({"lr_schedule": "cosine"}, {}),
        ({"local_steps": 1}, {}),
        ({"drop_last": True, "batch_size": 9}, {"batch_size": 9}),
    ],
)
def test_each_setting_of_the_clients_makes_a_difference(settings: dict[str, Any], said: dict[str, Any]) -> None:
    assert run(job(**settings), 0).sha256 != run(job(**said), 0).sha256


def test_a_module_in_place_of_a_function_that_makes_one_is_copied() -> None:
    made = mlp()
    before = made[0].weight.detach().clone()
    job = Federated(made, (X, Y), **SMALL)
    outcome = run(job, 0)
    assert torch.equal(made[0].weight, before)
    start = outcome.seen.steps and job.module()[0].weight
    assert torch.equal(start, before)


@pytest.mark.parametrize(
    ("code", "line"),
    [
        ("lr_schedule=lambda version: -1.0", "lr_schedule gave -1.0 for version 0: must be a number from 0"),
        ("optimizer=lambda w: w", "optimizer"),
        ("metrics={'accuracy': lambda logits, y: 0.0}", "metric 'accuracy'"),
    ],
)
def test_what_is_brought_and_of_no_use_is_one_line_before_there_is_a_run(place: Path, code: str, line: str) -> None:
    (place / "mine.py").write_text(f"""
from shoal import Federated
from shoal.envs import datasets
from shoal.nets import models
job = Federated(models.mlp, datasets.digits, {code})
""")
    assert line in mistake("simulate", "mine.py")
    assert not (place / "runs").exists()


def test_a_schedule_of_one_s_own_is_a_function_of_the_version() -> None:
    assert run(job(lr_schedule=lambda version: 1.0), 0).sha256 == run(job(), 0).sha256
    assert run(job(lr_schedule=lambda version: 0.5), 0).sha256 == run(job(lr=0.05), 0).sha256


@pytest.mark.parametrize(
    ("words", "line"),
    [
        ("optimizer=adm", "did you mean adam?"),
        (
            "optimizer=adam momentum=0.5",
            "momentum is a setting of optimizer=sgd or momentum or rmsprop",
        ),
        ("lr_schedule=cosin", "did you mean cosine?"),
        ("initial_weights=nowhere.safetensors", "nowhere.safetensors: cannot be read as a .safetensors file (no such file)"),
    ],
)
def test_what_does_not_go_together_is_one_line(words: str, line: str) -> None:
    assert line in mistake("simulate", "digits", *words.split())


def test_metrics_of_one_s_own_are_shown_centrally_and_on_clients() -> None:
    def wrong(logits: Tensor, y: Tensor) -> Tensor:
        return (logits.argmax(1) != y).float().mean()

    outcome = run(job(metrics={"wrong": wrong}, eval_cohort=2, eval_every=1), 0)
    last = dict(pair for _, metrics in outcome.seen.steps for pair in metrics.items())
    assert last["wrong"] == pytest.approx(1 - last["accuracy"])
    assert last["eval/wrong"] == pytest.approx(1 - last["eval/accuracy"])


def test_a_metric_of_one_s_own_stands_in_the_progress_the_closing_words_and_the_picture(place: Path) -> None:
    (place / "mine.py").write_text("""
from shoal import Federated
from shoal.envs import datasets
from shoal.nets import models
def wrong(logits, y):
    return float((logits.argmax(1) != y).float().mean())
job = Federated(models.mlp, datasets.digits, metrics={"wrong": wrong}, rounds=2, local_epochs=1, eval_every=1, eval_cohort=3)
""")
    said = ran("simulate", "mine.py", "--actors", 0)
    assert ", wrong 0." in said.out.splitlines()[0]
    assert "eval/wrong" in said.out.splitlines()[0]
    assert " wrong 0." in said.err
    assert panels([read(RunDir.open("runs/latest"))]) == ["accuracy", "eval/accuracy", "loss", "wrong", "eval/wrong"]


def test_every_metric_that_the_documents_name_is_one_of_ours() -> None:
    docs = Path(__file__).resolve().parents[2] / "docs"
    named: set[str] = set()
    for page in ("federated.md", "rl_runs.md", "replay.md"):
        for table in re.findall(r"^\| metric \| meaning \|\n(?:\|.*\n)+", (docs / page).read_text(), re.MULTILINE):
            for row in re.findall(r"^\| (`.*?) (?:\(|\|)", table, re.MULTILINE):
                named |= set(re.findall(r"`([a-z_/]+)`", row))
    assert {"update_norm", "rho_mean", "q_mean"} <= named
    answers = {"count", "clients", "mean"}  # of analytics: shown before the rest, as a user's own are
    assert own(named - answers) == []


def test_a_partition_of_one_s_own_says_who_has_what() -> None:
    def halves(labels: Any, clients: int, seed: int) -> list[Any]:
        return np.array_split(np.arange(len(labels)), clients)

    made = job(partition=halves)
    population = made.problem.population(made.method, made.seed)
    assert [len(population.examples(client)) for client in range(6)] == [16] * 6
    assert "partition" not in made.plain()
    assert run(made, 0).finish.reason == "done"


def test_a_selection_is_a_name_or_a_function_of_the_version_how_many_and_the_news() -> None:
    asked: list[tuple[int, int, list[tuple[str, int]]]] = []

    def first_then_last(version: int, how_many: int, news: Any) -> range:
        asked.append((version, how_many, sorted((outcome.word, outcome.task.clients[0]) for outcome in news)))
        return range(how_many) if version == 0 else range(6 - how_many, 6)

    outcome = run(job(select=first_then_last, partial_sums=False), 0)
    assert asked == [(0, 3, []), (1, 3, [("accepted", 0), ("accepted", 1), ("accepted", 2)])]
    assert outcome.finish.reason == "done"
    plain = run(job(rounds=4), 0).sha256
    assert run(job(rounds=4, select="power_of_choice", candidates=6), 0).sha256 != plain


def test_a_selection_that_gives_what_there_is_not_ends_the_run_in_one_line(place: Path) -> None:
    (place / "mine.py").write_text("""
from shoal import Federated
from shoal.envs import datasets
from shoal.nets import models
job = Federated(models.mlp, lambda: datasets.digits(), select=lambda version, how_many, news: [1, 1], rounds=2)
""")
    line = "a selection gave [1, 1] for the round of version 0; asked were 10 different clients from 0 to 99"
    assert line in mistake("simulate", "mine.py", "--actors", 0)


def test_a_worker_of_one_s_own_gets_the_settings_and_the_population() -> None:
    class Still:
        def __init__(self, settings: Any, population: Any) -> None:
            self.examples = float(len(population.examples(0)) * settings.rounds)

        def run(self, weights: Bundle, client: int, task: Task) -> Work:
            return Work(Bundle.zeros(weights.layout), totals={"seen": (self.examples, 1.0)})

    outcome = run(job(worker=Still), 0)
    assert outcome.seen.steps[0][1]["seen"] == 2 * 16


def test_a_loss_an_example_is_a_loss_too() -> None:
    def each(logits: Tensor, y: Tensor) -> Tensor:
        return torch.nn.functional.cross_entropy(logits, y, reduction="none")

    alike, mean = run(job(loss=each), 0), run(job(), 0)
    np.testing.assert_allclose(alike.weights["0.weight"], mean.weights["0.weight"], atol=1e-6)


def test_a_run_may_start_from_another_run_s_exported_weights(place: Path) -> None:
    first = ran("simulate", "digits", "rounds=2", "local_epochs=1", "--actors", 0, "--run-dir", "first", "--json").result
    ran("export", "first", "--to", "w.safetensors")
    evaluated = ran("evaluate", "first", "--json").result
    ran("simulate", "digits", "rounds=1", "local_epochs=1", "lr=1e-9", "initial_weights=w.safetensors", "--actors", 0)
    row = RunDir.open("runs/latest").rows()[-1]["metrics"]
    assert row["accuracy"] == pytest.approx(evaluated["accuracy"], abs=1e-6)
    assert first["metrics"]["accuracy"] == pytest.approx(evaluated["accuracy"], abs=1e-6)
    assert json.loads(json.dumps(find("digits").plain()))["initial_weights"] == ""


def test_a_workers_total_that_a_metric_of_ours_would_replace_is_refused_by_name() -> None:
    for name in ("examples", "update_norm", "lag_mean", "up_bytes", "return_mean"):

        class Counting:
            def run(self, weights: Bundle, client: int, task: Task, name: str = name) -> Work:
                return Work(Bundle.zeros(weights.layout), totals={name: (7.0, 1.0)})

        failing = Federated(worker=Counting, weights=lambda: {"w": np.zeros(3, np.float32)}, clients=2, cohort=2, rounds=1)
        outcome = run(failing, 0)
        assert outcome.finish.failed
        assert any(f"totals hold '{name}'" in report.text for report in outcome.seen.reports)


def test_a_worker_around_local_sgd_hands_on_its_count_of_examples() -> None:
    class Around:
        def __init__(self, settings: Any, population: Any) -> None:
            self.inner = LocalSGD(mlp, population, torch.nn.functional.cross_entropy)

        def run(self, weights: Bundle, client: int, task: Task) -> Work:
            return self.inner.run(weights, client, task)

    assert run(job(worker=Around), 0).finish.reason == "done"


@pytest.mark.parametrize("name", ["loss", "examples", "return_mean", "lag_max"])
def test_a_metric_with_a_name_of_ours_is_refused_before_there_is_a_run(name: str) -> None:
    with pytest.raises(UserError, match=f"metric '{name}'"):
        job(metrics={name: lambda logits, y: 1.0}).check_parts()


def test_a_jobs_file_may_have_the_name_of_a_module_that_is_imported(place: Path) -> None:
    text = """
from __future__ import annotations
from dataclasses import dataclass
from typing import ClassVar
import numpy as np, shoal, torch

@dataclass(frozen=True)
class Mine(shoal.FedAvg):
    name: ClassVar[str] = "mine"
    trim: float = 0.3

data = (np.zeros((60, 4), np.float32), np.arange(60) % 2)
job = shoal.Federated(lambda: torch.nn.Linear(4, 2), data, method=Mine, rounds=1, clients=3, cohort=3)
"""
    for name in ("random.py", "json.py", "job.py", "folder/job.py"):
        (place / name).parent.mkdir(exist_ok=True)
        (place / name).write_text(text)
        before = sys.modules.get(Path(name).stem)
        found = find(f"{name}:job")
        assert found.plain()["trim"] == 0.3
        assert "name" not in found.plain()
        assert before is None or sys.modules[Path(name).stem] is before
    assert find("job.py:job").method.__class__ is not find("folder/job.py:job").method.__class__
    assert sys.modules["random"].random() < 1
