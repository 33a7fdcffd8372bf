"""Runs from Python: the numbers of the command line, from any thread, with the user's eyes on them."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
import torch
from sklearn.datasets import load_digits
from torch import nn
from typed import mistake, ran
from zmq.utils.garbage import GarbageCollectorThread

import shoal
from shoal.coordinator.reports import Progress, Report
from shoal.faults.patient import ran as finished
from shoal.protocol.errors import UserError
from shoal.runs.hiring import nursery
from shoal.runs.threads import lone

SMALL = {"rounds": 3, "local_epochs": 1}
WORDS = ("rounds=3", "local_epochs=1")


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.delitem(sys.modules, "mine", raising=False)
    return tmp_path


@pytest.fixture(scope="module")
def typed(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What the command line says of the same run."""
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(tmp_path_factory.mktemp("typed"))
        return ran("simulate", "digits", *WORDS, "--json").result


def made_here() -> shoal.Job:
    """A job that stands in no file: no other process could find it."""
    x, y = load_digits(return_X_y=True)
    return shoal.Federated(lambda: nn.Linear(64, 10), (x / 16, y), clients=20, cohort=4, name="mine", **SMALL)


def in_a_thread(act: Callable[[], Any]) -> Any:
    found: list[Any] = []
    thread = threading.Thread(target=lambda: found.append(act()))
    thread.start()
    thread.join()
    return found[0]


class Seen:
    """An observer that remembers."""

    def __init__(self) -> None:
        self.steps: list[int] = []
        self.looks: list[Progress] = []
        self.reports: list[Report] = []

    def stepped(self, version: int, metrics: Any, progress: Progress) -> None:
        self.steps.append(version)

    def moved(self, progress: Progress) -> None:
        self.looks.append(progress)

    def report(self, report: Report) -> None:
        self.reports.append(report)


# The same run


@pytest.mark.parametrize("actors", [0, 2])
def test_a_run_has_the_numbers_and_leaves_the_folder_of_the_command_line(typed: dict[str, Any], actors: int) -> None:
    run = shoal.run("digits", settings=SMALL, actors=actors)
    assert run.summary["weights_sha256"] == typed["weights_sha256"]
    assert list(run.summary) == list(typed)
    assert run.metrics["accuracy"] == typed["metrics"]["accuracy"]
    assert run.folder == Path("runs/latest").resolve()
    assert run.reason == "done"
    again = ran("simulate", run.folder / "config.toml", "--json").result
    assert again["weights_sha256"] == typed["weights_sha256"]


def test_a_run_in_a_thread_has_the_same_numbers_from_a_fresh_interpreter(typed: dict[str, Any]) -> None:
    seen = Seen()
    run = in_a_thread(lambda: shoal.run("digits", settings=SMALL, observers=[seen]))
    assert run.summary["weights_sha256"] == typed["weights_sha256"]
    [first, second] = [report.text for report in seen.reports if report.kind == "joined"]
    assert first != second


@pytest.mark.parametrize("actors", [2, 0])
def test_two_runs_at_once_have_the_same_numbers_and_give_torch_its_threads_back(typed: dict[str, Any], actors: int) -> None:
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    found: list[shoal.Run] = []

    def run() -> None:
        found.append(shoal.run("digits", settings=SMALL, actors=actors))

    threads = [threading.Thread(target=run) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    now = in_a_thread(torch.get_num_threads)
    torch.set_num_threads(before)
    assert [run.summary["weights_sha256"] for run in found] == [typed["weights_sha256"]] * 2
    assert len({run.folder for run in found}) == 2
    assert now == 2


def test_a_job_that_was_made_here_runs_from_any_thread_and_goes_on_here(folder: Path) -> None:
    job = made_here()
    first, plain = shoal.run(job), shoal.run(job, actors=0)
    other = in_a_thread(lambda: shoal.run(job))
    assert len({run.summary["weights_sha256"] for run in (first, plain, other)}) == 1
    assert first.folder.name.startswith("mine-")
    assert "was made in Python" in mistake("evaluate", first.folder)
    assert "shoal.load(RUN_DIR, job=...)" in mistake("resume", first.folder, "rounds=4")
    with pytest.raises(UserError, match="was made in Python"):
        shoal.load(first.folder).model()
    longer = shoal.load(first.folder, job=job).resume(settings={"rounds": 5})
    assert longer.summary["version"] == 5
    assert longer.summary["weights_sha256"] == shoal.run(job, settings={"rounds": 5}).summary["weights_sha256"]


def test_a_job_in_a_module_is_imported_by_a_fresh_interpreter_where_there_are_threads(folder: Path) -> None:
    (folder / "mine.py").write_text(
        "import os\nfrom shoal.jobs.catalog import digits\n"
        "with open('imported', 'a') as file: file.write(f'{os.getpid()} ')\njob = digits().configured({'rounds': 2})\n"
    )
    sys.path.insert(0, str(folder))
    import mine  # type: ignore[import-not-found]

    run = in_a_thread(lambda: shoal.run(mine.job))
    assert len((folder / "imported").read_text().split()) == 2
    assert run.config.job == f"{folder}/mine.py:job"
    assert ran("evaluate", run.folder, "--json").result["version"] == 2
    others = not lone()  # daemons that other tests have left
    shoal.run(mine.job)  # a copy of this process has it, if there are no others
    assert len((folder / "imported").read_text().split()) == 3 + others  # `evaluate` above


def test_a_process_whose_other_thread_is_zeromqs_collector_makes_actors_of_a_copy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(threading, "enumerate", lambda: [threading.current_thread(), *collectors])
    monkeypatch.setattr("shoal.runs.hiring.Pool.forked", lambda life: "a copy")
    monkeypatch.setattr("shoal.runs.hiring.Pool.started", lambda module, word: "a fresh interpreter")
    collectors: list[threading.Thread] = [GarbageCollectorThread(None)]
    assert nursery(lambda told: 0, True, "mine", "") == "a copy"
    collectors += [threading.Thread()]
    assert nursery(lambda told: 0, True, "mine", "") == "a fresh interpreter"


def test_where_torch_has_threads_for_a_gpu_a_job_made_here_is_refused_and_one_with_a_name_is_not(
    typed: dict[str, Any], folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (folder / "tasks" / "7").mkdir(parents=True)
    (folder / "tasks" / "7" / "comm").write_text("pt_autograd_0\n")
    monkeypatch.setattr("shoal.runs.hiring.TASKS", folder / "tasks")
    with pytest.raises(UserError, match=r"put the job into a file and run FILE.py:job, or give actors=0"):
        shoal.run(made_here())
    assert shoal.run(made_here(), actors=0).reason == "done"
    assert shoal.run("digits", settings=SMALL).summary["weights_sha256"] == typed["weights_sha256"]


def test_a_thread_that_ends_while_threads_are_listed_is_none_of_torchs(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Ending:
        def glob(self, pattern: str) -> list[Path]:
            return [folder / "gone" / "comm"]

    monkeypatch.setattr("shoal.runs.hiring.TASKS", Ending())
    assert shoal.run(made_here()).reason == "done"


def test_values_that_a_toml_file_gives_stay_unless_others_are_given(folder: Path) -> None:
    (folder / "mine.toml").write_text('job = "digits"\nseed = 3\nactors = 0\n[settings]\nrounds = 1\n')
    assert (shoal.run("mine.toml").config.seed, shoal.run("mine.toml", seed=0).config.seed) == (3, 0)
    assert shoal.run(Path("mine.toml"), settings={"rounds": "2"}).summary["version"] == 2


def test_a_job_keeps_its_own_seed() -> None:
    job = shoal.Federated(lambda: nn.Linear(64, 10), load_digits(return_X_y=True), seed=7, **SMALL)
    assert shoal.run(job, actors=0).config.seed == 7
    assert shoal.run(job, actors=0, seed=1).config.seed == 1


NUMPY = """
import sys
sys.modules["torch"] = None  # whoever imports it fails
from dataclasses import dataclass
from typing import ClassVar
import numpy as np
import shoal
from shoal.coordinator.deciding.plans.rounds import Rounds
from shoal.protocol.layout import Bundle
from shoal.protocol.work import Moved, Work

class Half:
    def run(self, weights, client, task, *brief):
        return Work(Bundle.pack({"w": (client - weights["w"]) / 2}, weights.layout))

class Mean:
    linear = True
    def __init__(self, weights):
        self.now, self.total, self.many = weights, 0.0, 0
    def weights(self):
        return self.now
    def fold(self, contribution):
        self.total, self.many = self.total + contribution.work.bundle["w"], self.many + 1
    def step(self):
        self.now = Bundle.pack({"w": self.now["w"] + self.total / self.many}, self.now.layout)
        self.total, self.many = 0.0, 0
        return Moved({"w": float(self.now["w"][0])})
    def state(self):
        return {}
    def load(self, weights, state):
        self.now = weights

@dataclass(frozen=True)
class Plainly(shoal.Method):
    name: ClassVar[str] = "plainly"
    rounds: int = shoal.option(20, "rounds", least=1)
    clients: int = shoal.option(4, "clients", least=1)
    def plan(self, asked, seed, sums):
        return Rounds(self.clients, self.clients, seed=seed, summed=False, asked=asked)
    def aggregator(self, start, device):
        assert device == "cpu"
        return Mean(start.weights)
    def worker(self, problem, seed):
        return Half()

job = shoal.Federated(
    worker=Half, weights=lambda: {"w": np.zeros(2, np.float32)}, method=Plainly(), partial_sums=False
)
for actors in (0, 2):
    run = shoal.run(job, actors=actors)
    print(run.reason, round(float(run.weights["w"][0]), 3), run.metrics["w"] == run.weights["w"][0])
"""


def test_a_job_without_torch_runs_where_there_is_none() -> None:
    said = subprocess.run([sys.executable, "-c", NUMPY], capture_output=True, text=True, check=False)
    assert (said.stdout, said.stderr) == ("done 1.5 True\n" * 2, "")


def test_a_job_that_needs_torch_says_so_where_there_is_none() -> None:
    code = "import sys; sys.modules['torch'] = None; import shoal; shoal.run('digits')"
    said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert said.stderr.endswith("UserError: this needs torch, which is not installed: pip install 'shoal[all]'\n")


# What there is afterwards


def test_a_run_has_history_weights_and_model(monkeypatch: pytest.MonkeyPatch) -> None:
    run = shoal.run("digits", settings={**SMALL, "eval_every": 2}, actors=0)
    assert [row["version"] for row in run.history] == [1, 2, 3]
    assert ["accuracy" in row["metrics"] for row in run.history] == [False, True, True]
    assert run.history[-1]["metrics"]["accuracy"] == run.metrics["accuracy"]
    model = run.model()
    assert not model.training
    for name, parameter in model.named_parameters():
        np.testing.assert_array_equal(parameter.detach().numpy(), run.weights[name])
    assert shoal.evaluate(run)["accuracy"] == shoal.evaluate(run.folder)["accuracy"] == run.metrics["accuracy"]
    assert shoal.plot(run) == run.folder / "learning.png"
    assert shoal.plot(run, run.folder, out="both.png") == Path("both.png")
    assert shoal.export(run, "weights.safetensors").is_file()
    assert "accuracy" in repr(run)
    assert "accuracy" in run._repr_html_()


def test_history_is_a_frame_where_pandas_is_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    run = shoal.run("digits", settings={**SMALL, "eval_every": 0}, actors=0)
    frame = run.history.frame()
    assert list(frame["version"]) == [1, 2, 3]
    assert {"seconds", "loss"} < set(frame.columns)
    assert "metrics" not in frame.columns
    monkeypatch.setitem(sys.modules, "pandas", None)
    with pytest.raises(UserError, match="pip install pandas"):
        run.history.frame()


def test_bfloat16_weights_come_as_float32() -> None:
    class Brain(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(64, 10)
            self.scale = nn.Parameter(torch.tensor([1.5, -2.0], dtype=torch.bfloat16), requires_grad=False)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.layer(x)

    run = shoal.run(shoal.Federated(Brain, load_digits(return_X_y=True), clients=20, cohort=4, **SMALL), actors=0)
    assert run.weights["scale"].dtype == np.float32
    assert run.weights["scale"].tolist() == [1.5, -2.0]
    assert run.model().scale.dtype == torch.bfloat16


def test_a_run_goes_on_and_ends_as_one_that_never_stopped(typed: dict[str, Any]) -> None:
    first = shoal.run("digits", settings=SMALL, stop_when=lambda row: row["version"] == 2)
    assert (first.reason, first.summary["version"]) == ("stopped by stop_when at version 2", 2)
    rest = first.resume(actors=0)
    assert (rest.reason, rest.folder) == ("done", first.folder)
    assert rest.summary["weights_sha256"] == typed["weights_sha256"]
    assert rest.resume() is rest  # it is done
    with pytest.raises(UserError, match="only rounds may grow"):
        rest.resume(settings={"lr": 1})
    assert rest.resume(settings={"rounds": 4}).summary["version"] == 4
    weights = first.weights["0.bias"]  # those of its own end, whatever the folder holds by now
    assert not np.array_equal(weights, rest.weights["0.bias"])


def test_what_is_loaded_is_the_run_and_not_whatever_latest_points_at_later() -> None:
    run = shoal.run("digits", settings=SMALL, actors=0)
    loaded = shoal.load("runs/latest")
    shoal.run("digits", settings={**SMALL, "lr": 0.2}, actors=0)
    assert loaded.folder == run.folder
    assert loaded.summary == run.summary
    assert all(np.array_equal(array, run.weights[name]) for name, array in loaded.weights.items())
    with pytest.raises(UserError, match="is no run"):
        shoal.load("nowhere")


# The user's mistakes


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        ({"settings": {"lrr": 0.1}}, "unknown setting 'lrr': did you mean lr?"),
        ({"settings": {"lr": -1}}, "lr=-1: allowed is above 0"),
        ({"actors": -1}, "actors = -1; it must be a whole number from 0"),
        ({"seed": "x"}, "seed = 'x'; it must be a whole number from 0"),
        ({"device": "cdua"}, "device = 'cdua'; it must be one of auto, cpu, cuda"),
        ({"transport": "pigeon"}, "transport = 'pigeon'; it must be one of shm, ipc, tcp"),
        ({"bind": "5555"}, "bind=5555: an address has the form tcp://HOST:PORT"),
        ({"bind": "tcp://0.0.0.0:5555"}, "other machines can reach"),
        ({"folder": "full"}, "full exists and is not empty: name another folder"),
        ({"observers": [Seen]}, "observer type has no"),
        ({"observers": [3]}, "observer int has no stepped, moved, report"),
        ({"stop_when": 0.9}, "stop_when=0.9: must be a function of a row"),
    ],
)
def test_a_mistake_is_one_line_and_leaves_no_folder(folder: Path, arguments: dict[str, Any], line: str) -> None:
    (folder / "full").mkdir()
    (folder / "full" / "precious").touch()
    if line.startswith("observer type"):
        arguments = {"observers": [object()]}
        line = "observer object has no"
    for act in (shoal.run, shoal.start):
        with pytest.raises(UserError) as error:
            act("digits", **arguments)
        assert line in str(error.value)
        assert "\n" not in str(error.value)
    assert not (folder / "runs").exists()


@pytest.mark.parametrize(
    ("job", "line"),
    [("digts", "did you mean digits?"), ("none.py:job", "no file"), (5, "5 is of type int, not a job"), (None, "not a job")],
)
def test_what_is_no_job_is_said(job: Any, line: str) -> None:
    with pytest.raises(UserError, match=line):
        shoal.run(job)


def test_a_file_that_starts_a_run_while_it_is_read_for_its_job_is_refused(folder: Path) -> None:
    code = "import shoal\nfrom shoal.jobs.catalog import digits\njob = digits()\nshoal.run(job, settings={'rounds': 1})\n"
    (folder / "mine.py").write_text(code)
    with pytest.raises(UserError, match="while the file is read for its job"):
        shoal.run("mine.py:job")
    assert "mine.py, line 4: a run is started while" in mistake("simulate", "mine.py")
    assert not (folder / "runs").exists()
    subprocess.run([sys.executable, "mine.py"], check=True)  # as a script it is fine
    assert 'mine.py:job"' in Path("runs/latest/config.toml").read_text()


def test_an_exception_of_the_users_own_code_is_theirs_to_see() -> None:
    def data() -> Any:
        raise KeyError("colour")

    with pytest.raises(KeyError, match="colour"):
        shoal.run(shoal.Federated(lambda: nn.Linear(2, 2), data))


# Eyes on it


def test_observers_see_what_there_is_to_see() -> None:
    first, second = Seen(), Seen()
    shoal.run("digits", settings=SMALL, observers=[first, second])
    for seen in (first, second):
        assert seen.steps == [1, 2, 3, 3]  # and the evaluation of the last
        assert seen.looks
        assert "joined" in {report.kind for report in seen.reports}


@pytest.mark.parametrize("method", ["stepped", "moved", "report"])
def test_an_observer_that_raises_ends_the_run_in_good_order_and_is_named(method: str) -> None:
    broken, other = Seen(), Seen()

    def fail(*_: Any) -> None:
        raise ZeroDivisionError("by nothing")

    setattr(broken, method, fail)
    with pytest.raises(shoal.RunError, match=f"observer Seen failed in {method}: ZeroDivisionError: by nothing") as error:
        shoal.run("digits", observers=[broken, other])
    assert isinstance(error.value.__cause__, ZeroDivisionError)
    assert other.looks
    run = error.value.run
    assert run.reason == f"observer Seen failed in {method}"
    assert run.summary["version"] < 100
    assert shoal.evaluate(run)["version"] == run.summary["version"]


def test_stop_when_waits_for_a_metric_that_is_not_known_yet() -> None:
    seen: list[dict[str, Any]] = []

    def enough(row: dict[str, Any]) -> bool:
        seen.append(row)
        return row["accuracy"] > 0

    run = shoal.run("digits", settings={**SMALL, "rounds": 100, "eval_every": 4}, stop_when=enough, actors=0)
    assert run.reason.startswith("stopped by stop_when at version 4")
    assert "accuracy" not in seen[0]
    assert {"version", "seconds", "steps", "contributions", "actors", "loss", "accuracy"} <= set(seen[-1])


def test_stop_when_that_asks_for_what_no_row_has_is_told_of() -> None:
    with pytest.warns(UserWarning, match="stop_when never applied: no row of this run had 'acuracy'"):
        run = shoal.run("digits", settings=SMALL, stop_when=lambda row: row["acuracy"] > 0, actors=0)
    assert run.reason == "done"
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        shoal.run("digits", settings=SMALL, stop_when=lambda row: row["loss"] < 0, actors=0)


def test_stop_when_that_fails_is_raised() -> None:
    with pytest.raises(shoal.RunError, match="stop_when failed: KeyError: 'mine'") as error:
        shoal.run("digits", settings=SMALL, stop_when=lambda row: {}["mine"], actors=0)
    assert error.value.run.summary["version"] == 1


def test_progress_is_shown_when_it_is_asked_for(capfd: pytest.CaptureFixture[str]) -> None:
    shoal.run("digits", settings=SMALL)
    assert capfd.readouterr() == ("", "")
    run = shoal.run("digits", settings=SMALL, show=True)
    said = capfd.readouterr()
    assert said.out == ""
    assert f"digits in {run.folder.relative_to(Path.cwd())}: " in said.err
    assert "version 3 of 3" in said.err


# In the background


def test_a_run_is_watched_row_by_row_and_stopped() -> None:
    rows = []
    with shoal.start("digits", settings=SMALL | {"rounds": 100_000}) as run:
        for row in run:
            rows.append(row)
            if row["version"] == 3:
                assert 3 in [each["version"] for each in run.history]  # which may be further on by now
                run.stop()
    assert [row["version"] for row in rows[:3]] == [1, 2, 3]
    assert (run.reason, run.summary["version"]) == ("stopped by stop()", rows[-1]["version"])
    assert list(run) == []
    assert run.weights
    assert run.wait() is run


def test_the_rows_end_with_the_run(typed: dict[str, Any]) -> None:
    with shoal.start("digits", settings=SMALL) as run:
        versions = [row["version"] for row in run]
    assert versions == [1, 2, 3, 3]
    assert (run.reason, run.summary["weights_sha256"]) == ("done", typed["weights_sha256"])


def test_leaving_the_block_stops_the_run_and_what_was_raised_there_stays() -> None:
    run = shoal.start("digits", settings=SMALL | {"rounds": 100_000})

    def watch() -> None:
        with run:
            next(iter(run))
            raise LookupError

    with pytest.raises(LookupError):
        watch()
    assert run.reason == "stopped by leaving its with block"
    assert run.resume(stop_when=lambda row: True).reason.startswith("stopped by stop_when")


def test_a_run_in_the_background_may_be_started_in_a_thread_that_ends() -> None:
    run = in_a_thread(lambda: shoal.start("digits", settings=SMALL))
    assert run.wait().reason == "done"


def test_what_fails_in_the_background_is_raised_where_it_is_waited_for() -> None:
    class Broken(Seen):
        def report(self, report: Report) -> None:
            raise ZeroDivisionError

    def watch(patiently: bool) -> None:
        with run:
            if patiently:
                list(run)
            else:
                run._over.wait(60)

    for patiently in (True, False):
        run = shoal.start("digits", observers=[Broken()])
        with pytest.raises(shoal.RunError, match="observer Broken failed in report"):
            watch(patiently)
        with pytest.raises(shoal.RunError, match="observer Broken failed in report"):
            run.wait()


def test_a_program_that_ends_stops_its_run_in_good_order(folder: Path) -> None:
    code = "import shoal\nrun = shoal.start('digits', settings={'rounds': 100_000})\nnext(iter(run))\n"
    assert finished([sys.executable, "-c", code], folder).returncode == 0
    run = shoal.load("runs/latest")
    assert run.summary["version"] == run.history[-1]["version"] == shoal.evaluate(run)["version"]


def test_processes_from_which_no_actor_can_be_forked_any_more_end_the_run() -> None:
    run = shoal.start("digits", settings={"rounds": 100_000})
    next(iter(run))
    for child in psutil.Process().children():
        child.kill()
    with pytest.raises(shoal.RunError, match="the run failed: the process from which this machine's actors are forked"):
        run.wait()


# Ctrl-C


class Signals(Seen):
    def __init__(self, *numbers: int) -> None:
        super().__init__()
        self.numbers = list(numbers)

    def stepped(self, version: int, metrics: Any, progress: Progress) -> None:
        if self.numbers:
            signal.raise_signal(self.numbers.pop(0))


def test_ctrl_c_ends_a_run_in_good_order_and_returns_what_there_is() -> None:
    before = signal.getsignal(signal.SIGINT)
    run = shoal.run("digits", observers=[Signals(signal.SIGINT)])
    assert run.reason == "stopped by SIGINT"
    assert run.summary["version"] < 100
    assert run.weights
    assert signal.getsignal(signal.SIGINT) is before


def test_a_second_ctrl_c_is_a_keyboard_interrupt_and_leaves_no_process() -> None:
    class Twice(Signals):
        def stepped(self, version: int, metrics: Any, progress: Progress) -> None:
            signal.raise_signal(signal.SIGINT)
            signal.raise_signal(signal.SIGINT)

    with pytest.raises(KeyboardInterrupt):
        shoal.run("digits", observers=[Twice()])
    assert psutil.Process().children() == []
    assert {thread.name for thread in threading.enumerate()} & {"learner", "run"} == set()


def test_a_sigterm_ends_the_run_first_and_is_the_programs_own_then(monkeypatch: pytest.MonkeyPatch) -> None:
    heard: list[int] = []
    before = signal.signal(signal.SIGTERM, lambda number, frame: heard.append(number))
    try:
        run = shoal.run("digits", observers=[Signals(signal.SIGTERM)])
    finally:
        signal.signal(signal.SIGTERM, before)
    assert (run.reason, heard) == ("stopped by SIGTERM", [signal.SIGTERM])


# The package


def test_public_names_are_there_and_no_script_takes_their_place() -> None:
    assert set(shoal.__all__) <= set(dir(shoal))
    for name in shoal.__all__:
        assert getattr(shoal, name) is not None
    for name in ("evaluate", "plot", "export"):
        with pytest.raises(ImportError, match=f"shoal.{name} is a function"):
            __import__(f"shoal.{name}")
        assert callable(getattr(shoal, name))


def test_processes_that_are_forked_hold_no_port_of_this_one() -> None:
    import socket

    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        server.listen()
        port = server.getsockname()[1]
        with shoal.start(made_here(), settings={"rounds": 100_000}) as run:
            next(iter(run))
            server.close()
            with socket.socket() as again:
                again.bind(("127.0.0.1", port))
    assert os.getpid() == psutil.Process().pid
