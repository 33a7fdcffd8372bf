"""A mistake of the user's is one line that names the value and the remedy; one in their code says where; nothing is lost."""

from __future__ import annotations

import errno
import itertools
import json
import re
import shutil
import socket
import sys
from collections.abc import Callable
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from typed import Said, mistake, ran, shoal

from shoal.actors.effects import Note, Say
from shoal.actors.events import Tick
from shoal.actors.session import Session, hello
from shoal.jobs.federated import Federated
from shoal.jobs.job import Job
from shoal.jobs.reinforcement import Reinforcement
from shoal.protocol.errors import UserError
from shoal.protocol.messages import Hello
from shoal.runs.rundir import Config, RunDir


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A place of its own; what a job's file does to the path of modules ends with the test."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.delitem(sys.modules, "mine", raising=False)
    return tmp_path


# Names


@pytest.mark.parametrize(
    ("words", "nearest"),
    [
        ("simulate digts", "unknown job 'digts': did you mean digits?"),
        ("simulate cartpoleppo", "did you mean cartpole-ppo?"),
        ("simulate digits lrr=0.1", "unknown setting 'lrr': did you mean lr?"),
        ("simulate digits learning_rate=0.1", "unknown setting 'learning_rate': did you mean lr?"),
        ("simulate digits epochs=2", "unknown setting 'epochs': did you mean local_epochs?"),
        ("simulate cartpole-ppo epochs=2", "unknown setting 'epochs': did you mean update_epochs?"),
        ("simulate digits num_clients=2", "did you mean clients?"),
        ("simulate cartpole n_steps=9", "did you mean rollout_length?"),
        ("simulate digits clients_per_round=2", "did you mean cohort?"),
        ("simulate digits dropout=0.1", "unknown setting 'dropout': known are rounds, "),
        ("simulate cartpole gama=0.9", "unknown setting 'gama': did you mean gamma?"),
        ("simulate digits method=fedadm", "did you mean fedadam?"),
        ("simulate digits aggregator=fedadm", "did you mean fedadam?"),
        ("simulate digits methd=fedadam", "did you mean method?"),
        ("simulate cartpole algorithm=pqo", "did you mean ppo?"),
        ("simulate digits partition=dirichle", "did you mean dirichlet?"),
        ("simulate digits --device cdua", "'cdua' is not known: did you mean cuda?"),
        ("simulate digits --transport icp", "did you mean tcp?"),
        ("simulate digits --sed 3", "'--sed' is not known: did you mean --seed?"),
        ("simulat digits", "'simulat' is not known: did you mean simulate?"),
        ("simulate gymnasium:CartPol-v1", "no environment 'CartPol-v1'; the nearest name is CartPole-v1"),
        ("simulate Pendulum-v1", "unknown job 'Pendulum-v1': did you mean gymnasium:Pendulum-v1?"),
        ("jobs ALE/Pong-v5", "did you mean gymnasium:ALE/Pong-v5?"),
        ("simulate gymnasium:Pendulum-v1 method=SAC", "did you mean sac?"),
        ("simulate gymnasium:Pendulum-v1 env_kwargs={g:1}", 'env_kwargs={"continuous": true}, say'),
        ("jobs cartpol", "did you mean cartpole?"),
        ("simulate cartpole target_network_frequency=3 method=appo", "did you mean target_update_interval?"),
        ("simulate cartpole-ppo n_epochs=3", "did you mean update_epochs?"),
        ("simulate cartpole-ppo clip_range=0.1", "did you mean clip_coef?"),
        ("simulate cartpole-ppo normalize_advantage=false", "did you mean norm_adv?"),
        ("simulate cartpole-ppo vf_loss_coeff=1", "did you mean vf_coef?"),
        ("simulate cartpole-dqn train_freq=4", "did you mean replay_ratio?"),
        ("simulate gymnasium:Pendulum-v1 method=td3 policy_frequency=2", "did you mean policy_delay?"),
    ],
)
def test_an_unknown_name_is_answered_with_the_nearest_right_one(words: str, nearest: str) -> None:
    assert nearest in mistake(*words.split())


# Values


@pytest.mark.parametrize(
    ("words", "field", "allowed"),
    [
        ("simulate digits lr=-1", "lr=-1", "allowed is above 0"),
        ("simulate digits lr=nan", "lr=nan", "above 0"),
        ("simulate digits lr=abc", "lr=abc", "a number, above 0"),
        ("simulate digits lease=-0.3", "lease=-0.3", "allowed is from 0, or -1"),
        ("simulate cartpole lease=-2", "lease=-2", "allowed is from 0, or -1"),
        ("simulate digits rounds=0", "rounds=0", "allowed is from 1"),
        ("simulate digits rounds=1.5", "rounds=1.5", "a whole number, from 1"),
        ("simulate digits momentum=1", "momentum=1", "from 0 below 1"),
        ("simulate digits cohort=101", "cohort=101", "from 1 to clients=100"),
        ("simulate digits quorum=11", "quorum=11", "from 0 to cohort=10"),
        ("simulate digits clients=5000", "clients=5000", "use at most"),
        ("simulate digits method=fedprox mu=0", "mu=0", "is above 0"),
        ("simulate digits beta1=0.5", "beta1=0.5", "a setting of fedadam, fedyogi, mimelite; this job's method is fedavg"),
        ("simulate digits method=fedbuff cohort=5", "cohort=5", "this job's method is fedbuff"),
        ("simulate digits gamma=0.9", "gamma=0.9", "a setting of impala, ppo, "),
        ("simulate cartpole clip_coef=0.1", "clip_coef=0.1", "a setting of ppo, appo"),
        ("simulate cartpole method=fedavg", "method=fedavg", "allowed is one of impala, ppo, "),
        (
            "simulate digits partition=iid alpha=0.1",
            "alpha=0.1",
            "partition=auto or dirichlet or dirichlet_by_client or quantity_skew",
        ),
        ("simulate digits select=power_of_choice candidates=3", "candidates=3", "from cohort=10 to clients=100"),
        ("simulate cartpole hidden=64.5", "hidden=64.5", "whole numbers like 64,64"),
        ("simulate digits quorum=3", "quorum=3", "deadline=60, say"),
        ("simulate digits over_selection=11", "a round would ask 110 clients, and there are clients=100", "from 1 to 10"),
        ("simulate digits over_selection=0.5", "over_selection=0.5", "allowed is from 1"),
        ("simulate digits method=fedasync compress=int8", "compress=int8", "sends its weights and no delta"),
        ("simulate digits method=fedasync norm_bound=3", "norm_bound=3", "norm_bound=0"),
        ("simulate digits method=fedasync norm_factor=3", "norm_factor=3", "norm_factor=0"),
        ("simulate digits method=fedasync server_lr=2", "server_lr=2", "mixing=0.3, say"),
        ("simulate digits method=fedasync hinge_a=3", "hinge_a=3", "staleness_function=hinge"),
        ("simulate digits method=fedasync mixing=2", "mixing=2", "above 0 to 1"),
        ("simulate digits method=fedfix deadline=0", "deadline=0", "above 0"),
        ("simulate digits deadline=3", "deadline=3", "quorum=5, say"),
        ("simulate digits eval_cohort=3 eval_every=0", "eval_cohort=3", "eval_every=10, say"),
        ("simulate digits compress_ratio=0.5", "compress_ratio=0.5", "compress_weights=topk or randk"),
        ("simulate digits deterministic=maybe", "deterministic=maybe", "true or false"),
        ("simulate digits held_out=1", "held_out=1", "above 0 below 1"),
        ("simulate cartpole gamma=1.1", "gamma=1.1", "from 0 to 1"),
        ("simulate cartpole total_timesteps=1e30", "total_timesteps=1e30", "a whole number below 2**63"),
        ("simulate cartpole hidden=1000000,1000000", "hidden=1000000,1000000", "; give smaller layers"),
        ("simulate cartpole-dqn hidden=1000000,1000000", "hidden=1000000,1000000", "16,000.1 GB of memory, and this "),
        ("simulate cartpole memory=lstm memory_size=1000000", "hidden=64,64 memory_size=1000000", "; give smaller layers"),
        ("simulate cartpole clip_obs=5", "clip_obs=5", "a setting of norm_obs=true"),
        ("simulate cartpole clip_reward=5", "clip_reward=5", "a setting of norm_reward=true"),
        ("simulate cartpole-dqn replay_ratio=1e-7", "replay_ratio=1e-7", "from 1e-06"),
        ("simulate cartpole-dqn replay=prioritized priority_alpha=11", "priority_alpha=11", "from 0 to 10"),
        ("simulate cartpole hidden=a,b", "hidden=a,b", "whole numbers like 64,64"),
        ("simulate cartpole hidden=64,0", "hidden=64,0", "numbers from 1"),
        ("simulate cartpole step_timeout=-1", "step_timeout=-1", "allowed is from 0"),
        ("simulate cartpole step_timeout=60 lease=60", "step_timeout=60", "below lease=60"),
        ("simulate digits --actors -1", "--actors: -1", "whole numbers from 0"),
        ("simulate digits --seed x", "--seed: x", "whole numbers from 0"),
        ("actor tcp://127.0.0.1:5555 --count 0", "--count: 0", "whole numbers from 1"),
        ("coordinator digits --bind tcp://127.0.0.1:99999", "127.0.0.1:99999", "from 1 to 65535"),
        ("coordinator digits --bind 5555", "--bind: 5555", "tcp://HOST:PORT"),
        ("simulate cartpole --evaluators -1", "--evaluators: -1", "whole numbers from 0"),
        ("actor tcp://127.0.0.1:5555 --evaluate --allow json", "--evaluate and --allow", "leave one of the two out"),
        ("actor localhost:5555", "localhost:5555", "did you mean tcp://localhost:5555?"),
        ("simulate digits lr", "'lr'", "key=value"),
        ("simulate digits =3", "'=3'", "key=value"),
        ("simulate", "JOB", "required"),
        ("evaluate one two", "'two'", "one word too many"),
    ],
)
def test_a_wrong_value_is_answered_with_field_value_and_range(words: str, field: str, allowed: str) -> None:
    line = mistake(*words.split())
    assert field in line
    assert allowed in line


def test_what_was_typed_wrong_leaves_no_run(folder: Path) -> None:
    for words in ("digits lr=-1", "mnist", "gymnasium:CartPol-v1", "digits clients=5000"):
        mistake("simulate", *words.split())
    assert list(folder.iterdir()) == []


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is one here")
def test_a_device_that_is_not_there_is_said_before_anything_is_begun(folder: Path) -> None:
    assert "device=cuda: this machine has no CUDA device" in mistake("simulate", "digits", "--device", "cuda")
    assert list(folder.iterdir()) == []


# Files


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ('job = "digits', "mine.toml: is not TOML: "),
        ("seed = 1", "mine.toml: has no `job`"),
        ('job = "digits"\nsead = 3', "mine.toml: unknown key 'sead'; did you mean 'seed'?"),
        ('job = "digits"\ndevice = "cdua"', "mine.toml: device = 'cdua'; it must be one of auto, cpu, cuda"),
        ('job = "digits"\nactors = -1', "mine.toml: actors = -1; it must be a whole number from 0"),
        ('job = "digits"\n[settings]\nlrr = 1', "unknown setting 'lrr': did you mean lr?"),
        ('job = "digits"\n[settings]\nlr = [1]', "lr=1: must be a number, above 0"),
        ('job = "digts"', "unknown job 'digts': did you mean digits?"),
    ],
)
def test_a_toml_file_that_is_wrong_is_one_line(folder: Path, text: str, line: str) -> None:
    (folder / "mine.toml").write_text(text)
    assert line in mistake("simulate", "mine.toml")


JOB = """
from shoal import Federated, Reinforcement
import gymnasium
from torch import nn
def model(): return nn.Linear(2, 2)
def data(): return [[0.0, 1.0]] * 40, [0, 1] * 20
class Env(gymnasium.Env):
    observation_space = gymnasium.spaces.Discrete(2)
    action_space = gymnasium.spaces.Discrete(2)
    def reset(self, *, seed=None, options=None): return 0, {}
    def step(self, action): return 0, 0.0, False, False, {}
"""


@pytest.mark.parametrize(
    ("name", "line"),
    [
        ("absent.py:job", "no file "),
        ("mine.py:jab", "mine.py has no 'jab': end it with `jab = Federated(...)`"),
        ("mine.py:model", "is of type function, not a job"),
        ("nowhere:job", "no module 'nowhere'"),
    ],
)
def test_a_job_that_is_not_there_is_one_line(folder: Path, name: str, line: str) -> None:
    (folder / "mine.py").write_text(JOB)
    assert line in mistake("simulate", name)


@pytest.mark.parametrize(
    ("code", "line"),
    [
        ("def data(:", "mine.py, line 1: SyntaxError: invalid syntax"),
        ("if True:\npass", "mine.py, line 2: IndentationError: "),
        ("def f():\n    return {}['colour']\nf()", "mine.py, line 2, in f: KeyError: 'colour'"),
        ("import json\njson.loads('x')", "mine.py, line 2: JSONDecodeError: Expecting value"),
        ("import no_such_module", "mine.py, line 1: ModuleNotFoundError: No module named 'no_such_module'"),
        ("from shoal import Federted", "mine.py, line 1: ImportError: cannot import name 'Federted'"),
        (
            "from shoal import Federated\nFederated(1, 2, cohrt=3)",
            "mine.py, line 2: unknown setting 'cohrt': did you mean cohort?",
        ),
        ("from shoal import Federated\nFederated()", "mine.py, line 2: Federated needs model= and data="),
    ],
)
def test_a_job_s_file_that_cannot_be_read_says_where(folder: Path, code: str, line: str) -> None:
    (folder / "mine.py").write_text(code)
    assert mistake("simulate", "mine.py:job").startswith(line)


def test_a_job_of_a_module_that_cannot_be_imported_says_where_too(folder: Path) -> None:
    (folder / "my_module.py").write_text("1 / 0")
    assert mistake("simulate", "my_module:job") == "my_module.py, line 1: ZeroDivisionError: division by zero"


@pytest.mark.parametrize(
    ("job", "line"),
    [
        ("Federated(model, lambda: {}['x'])", "KeyError: 'x'"),
        ("Federated(model, lambda: 3)", "data is of type int: expected a tuple (x, y)"),
        ("Federated(model, lambda: ([[1.0]], [0, 1]))", "1 inputs but 2 labels"),
        ("Federated(lambda: nn.Linear(2), data, clients=4, cohort=2)", "TypeError: "),
        ("Federated(model, data, lambda logits: 0, clients=4, cohort=2)", "loss raised TypeError for outputs float32[10, 2]"),
        ("Reinforcement(lambda: 1 / 0)", "ZeroDivisionError: division by zero"),
        ("Reinforcement(lambda: 3)", "made an object of type int, not a gymnasium.Env"),
        ("Reinforcement(Env, lambda spaces: spaces.colour)", "AttributeError: "),
    ],
)
def test_what_a_job_s_own_code_raises_says_where(folder: Path, job: str, line: str) -> None:
    (folder / "mine.py").write_text(f"{JOB}\njob = {job}")
    assert line in mistake("simulate", "mine.py", "--actors", 0)
    assert not (folder / "runs").exists()


@pytest.mark.parametrize(
    ("space", "line"),
    [
        ("observation_space = gymnasium.spaces.Text(9)", "observation space Text"),
        ("action_space = gymnasium.spaces.Dict(a=gymnasium.spaces.Discrete(2))", "action space Dict"),
    ],
)
def test_an_environment_with_a_space_that_is_not_supported_is_one_line(folder: Path, space: str, line: str) -> None:
    (folder / "mine.py").write_text(f"{JOB}    {space}\njob = Reinforcement(Env)")
    assert line in mistake("simulate", "mine.py")


def test_mnist_without_its_files_says_which_where_from_and_where_to(folder: Path) -> None:
    line = mistake("simulate", "mnist", "data=elsewhere")
    assert "data=elsewhere: no MNIST there" in line
    assert "t10k-images-idx3-ubyte" in line
    assert "https://" in line
    assert "data=data/mnist" in mistake("simulate", "mnist")  # where they are looked for unless one says


def test_a_full_disk_is_said_in_a_line(monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device", "runs/digits/journal")

    monkeypatch.setattr(RunDir, "write_config", full)
    assert "No space left on device: 'runs/digits/journal'" in mistake("simulate", "digits", "--actors", 0)


def test_a_missing_package_of_the_extra_is_said_with_its_remedy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "gymnasium", None)
    assert mistake("simulate", "cartpole") == "this needs gymnasium, which is not installed: pip install 'shoal[all]'"


# Runs that are there, and runs that are not


def test_a_run_dir_that_holds_something_is_never_overwritten(folder: Path) -> None:
    (folder / "mine").mkdir()
    (folder / "mine" / "precious").write_text("1")
    assert "mine exists and is not empty" in mistake("simulate", "digits", "--run-dir", "mine")
    assert "is a file" in mistake("simulate", "digits", "--run-dir", "mine/precious")
    assert "cannot make a folder in mine/precious/run (Not a directory)" in mistake(
        "simulate", "digits", "--run-dir", "mine/precious/run"
    )
    assert [path.name for path in folder.rglob("*")] == ["mine", "precious"]


@pytest.mark.parametrize("words", ["evaluate", "resume", "plot", "export --to w.safetensors"])
def test_a_run_that_is_not_there_is_answered_with_the_nearest(folder: Path, words: str) -> None:
    command, *rest = words.split()
    assert "runs/digts is no run: it does not exist; start one" in mistake(command, "runs/digts", *rest)
    run = RunDir.create("digits", datetime(2025, 1, 2))
    run.write_config(Config("digits"))
    assert f"the nearest run is {run.path}" in mistake(command, "runs/digts", *rest)


def test_what_needs_weights_says_so_before_the_first_snapshot(folder: Path) -> None:
    run = RunDir.create("digits", datetime(2025, 1, 2))
    run.write_config(Config("digits"))
    for words in (["evaluate", run.path], ["export", run.path, "--to", "w.pt2"]):
        assert f"has no whole snapshot yet: let it run on with `shoal resume {run.path}`" in mistake(*words)
    assert "has no metrics yet" in mistake("plot", run.path)


def test_weights_are_exported_to_what_can_be_written_and_never_over_a_file(folder: Path) -> None:
    numpy_job(folder)
    ran("simulate", "mine.py", "rounds=1", "--actors", 0, "--run-dir", "run")
    assert "cannot write .pickle; use .safetensors, .pt2 or .onnx" in mistake("export", "run", "--to", "w.pickle")
    assert "has no torch model" in mistake("export", "run", "--to", "w.pt2")
    ran("export", "run", "--to", "w.safetensors")
    assert "w.safetensors: exists" in mistake("export", "run", "--to", "w.safetensors")


# Coordinators and actors


@pytest.mark.parametrize("number", ["0", "-2", "many", "1.5", " ,2"])
def test_a_number_of_threads_that_is_none_is_named(folder: Path, monkeypatch: pytest.MonkeyPatch, number: str) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", number)
    assert mistake("simulate", "digits", "rounds=1", "--actors", 0).startswith(
        f"OMP_NUM_THREADS={number}: must be a whole number"
    )
    assert not (folder / "runs").exists()


def test_another_number_of_threads_than_the_run_was_begun_with_is_told(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    ran(
        "simulate",
        "digits",
        "rounds=1",
        "clients=10",
        "cohort=1",
        "local_epochs=1",
        "eval_every=0",
        "--actors",
        0,
        "--run-dir",
        "run",
    )
    assert "threads = 1\n" in (folder / "run" / "config.toml").read_text()
    ran("resume", "run", "rounds=2")
    assert "threads" not in (folder / "run" / "log.txt").read_text()
    monkeypatch.setenv("OMP_NUM_THREADS", "2,4")
    ran("resume", "run", "rounds=3")
    said = "the run was begun with 1 threads a process, and OMP_NUM_THREADS says 2: its weights may have other bits"
    assert said in (folder / "run" / "log.txt").read_text()


def test_a_busy_port_is_named(folder: Path) -> None:
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        address = f"tcp://127.0.0.1:{other.getsockname()[1]}"
        assert mistake("coordinator", "digits", "--bind", address).startswith(f"address {address} is in use")
    assert not (folder / "runs").exists()


def test_an_actor_that_cannot_reach_its_coordinator_says_so_after_5_s_and_keeps_trying() -> None:
    session = Session(b"8 bytes.", hello("edge", "host", 1, ()), "tcp://far:5555", 0.0)
    said_at: list[float] = []
    notes: dict[float, str] = {}
    for tick in range(300):  # half a minute, ten looks a second
        now = tick / 10
        for effect in session.handle(Tick(), now):
            match effect:
                case Say(envelope):
                    assert isinstance(envelope.message, Hello)
                    said_at.append(now)
                case Note(text):
                    notes[now] = text
    assert min(notes) == pytest.approx(5.0, abs=0.11)
    assert notes[min(notes)] == "no answer from tcp://far:5555 for 5 s; trying on"
    assert len(notes) == pytest.approx(30 / 5, abs=1)  # and now and then again
    pauses = [later - sooner for sooner, later in itertools.pairwise(said_at)]
    assert pauses[-1] == max(pauses) == pytest.approx(2.0, abs=0.11)  # backing off, yet never for long


# Workers


def numpy_job(folder: Path, ill: str = "", made: str = "pass") -> None:
    """A federated job in which client 3 does what `ill` says, and making a worker what `made` does."""
    (folder / "mine.py").write_text(f"""
import os, signal
from pathlib import Path
import numpy as np
from shoal import Federated
from shoal.protocol.layout import Bundle
from shoal.protocol.work import Work
class Device:
    def __init__(self):
        {made}
    def run(self, weights, client, task):
        delta = {{"w": np.full(3, client + task.version, np.float32)}}
        if client == 3:
            {ill or "pass"}
        return Work(Bundle.pack(delta), 1.0, {{"loss": (1.0, 1.0)}})
job = Federated(worker=Device, weights=lambda: {{"w": np.zeros(3, np.float32)}}, clients=4, cohort=4, rounds=3)
""")


def reports(said: Said) -> str:
    return (Path(said.result["run_dir"]) / "log.txt").read_text()


def test_a_worker_that_raises_is_reported_with_client_stage_and_traceback_and_the_run_goes_on(folder: Path) -> None:
    numpy_job(folder, 'raise RuntimeError("client three is ill")')
    said = ran("simulate", "mine.py", "--actors", 0, "--json")
    assert (said.result["version"], said.result["contributions"]) == (3, 9)
    assert "client 3 failed in train: mine.py, line 14, in run: RuntimeError: client three is ill" in reports(said)
    assert f'File "{folder}/mine.py", line 14, in run' in reports(said)
    assert reports(said).count("set aside after 3 attempts") == 3  # once a round


def test_a_worker_that_calls_sys_exit_is_a_failure_of_its_task_and_not_a_hang(folder: Path) -> None:
    numpy_job(folder, 'raise SystemExit("enough")')
    said = ran("simulate", "mine.py", "--actors", 1, "--json")
    assert (said.result["version"], said.result["contributions"]) == (3, 9)
    assert re.search(r"client 3 failed in train: mine.py, line \d+, in run: SystemExit: enough", reports(said))


def test_or_it_stops_where_the_job_says_so(folder: Path) -> None:
    numpy_job(folder, 'raise RuntimeError("client three is ill")')
    said = shoal("simulate", "mine.py", "on_failure=stop", "--actors", 0, "--json")
    assert (said.code, said.result["version"]) == (1, 0)
    assert "the run failed: task (0, 3) failed 3 times: mine.py, line 14, in run: RuntimeError: client three" in said.err


@pytest.mark.parametrize("actors", [0, 2])
def test_a_worker_that_cannot_be_made_ends_the_run_in_one_line_and_is_no_fault_of_a_task(folder: Path, actors: int) -> None:
    numpy_job(folder, made='raise OSError("no camera")')
    said = shoal("simulate", "mine.py", "--actors", actors, "--json")
    assert said.code == (1 if actors else 2)
    assert "OSError: no camera" in said.err
    assert "Traceback" not in said.err
    assert ("could not set up its work" in said.err) == (actors > 0)
    assert "set aside" not in said.err


@pytest.mark.parametrize(
    ("ill", "sums", "line"),
    [
        ('delta["w"][1] = np.nan', "no", "refused: not finite: 'w' holds NaN or an infinity"),
        ('delta["w"][1] = np.inf', "yes", "'w' of a contribution holds NaN or an infinity"),
        ('delta = {"w": np.zeros(4, np.float32)}', "no", "first difference: 'w' f4[3] here, f4[4] there"),
        ('delta = {"w": np.zeros(4, np.float32)}', "yes", "first difference: 'w' f4[3] here, f4[4] there"),
        ('delta["v"] = np.ones(2, np.float32)', "no", "first difference: 'v' no array here, f4[2] there"),
        ('delta["v"] = np.ones(2, np.float32)', "yes", "first difference: 'v' no array here, f4[2] there"),
        ("delta = {}", "no", "first difference: 'w' f4[3] here, no array there"),
        ("return Work(Bundle.pack(delta), float('nan'))", "no", "weight nan is not a finite number above 0"),
        ("return Work(None)", "no", "no arrays came of a task that counts"),
        ("return Work(None)", "yes", "no arrays came of a task that counts"),
    ],
)
def test_a_contribution_of_nonsense_is_refused_and_reported_and_touches_nothing(
    folder: Path, ill: str, sums: str, line: str
) -> None:
    numpy_job(folder, ill)
    said = ran("simulate", "mine.py", f"partial_sums={sums}", "--actors", 0, "--json")
    assert (said.result["version"], said.result["contributions"]) == (3, 9)
    assert line in reports(said)
    assert "Traceback" not in reports(said)
    sound = ran("evaluate", said.result["run_dir"], "--json").result
    assert sound["loss"] == 1.0
    weights = final_weights(said)
    assert weights == [1.0 + 2.0 + 3.0] * 3  # each round the mean of clients 0, 1 and 2, plus the version


def final_weights(said: Said) -> list[float]:
    from shoal.coordinator.keeping.store import newest

    snapshot = newest(Path(said.result["run_dir"]), lambda text: None)
    assert snapshot is not None
    found: list[float] = snapshot.weights["w"].tolist()
    return found


# Ends


def test_ctrl_c_ends_the_plain_loop_in_good_order_and_resume_goes_on_to_the_same_weights(folder: Path) -> None:
    once = 'if task.version == 1 and not Path("heard").exists():\n'
    numpy_job(folder, f'{once}                Path("heard").touch()\n                os.kill(os.getpid(), signal.SIGINT)')
    stopped = shoal("simulate", "mine.py", "--actors", 0, "--run-dir", "broken")
    assert stopped.code == 130
    assert "shoal resume broken" in stopped.out
    version = json.loads((folder / "broken" / "summary.json").read_text())["version"]
    assert 0 < version < 3
    whole = ran("simulate", "mine.py", "--actors", 0, "--json").result
    resumed = ran("resume", "broken", "--json").result
    assert (resumed["version"], resumed["weights_sha256"]) == (3, whole["weights_sha256"])
    assert resumed["contributions"] == whole["contributions"] == 12
    lines = (folder / "broken" / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(line)["version"] for line in lines] == [1, 2, 3]


def test_ctrl_c_in_the_middle_of_a_round_loses_no_contribution_that_the_journal_holds(folder: Path) -> None:
    once = 'if task.version == 2 and not Path("heard").exists():\n'
    kill = '                Path("heard").touch()\n                os.kill(os.getpid(), signal.SIGINT)\n'
    note = '        with open("done", "a") as done:\n            done.write(f"{task.version} {client}\\n")'
    numpy_job(folder, once + kill + note)
    assert shoal("simulate", "mine.py", "journal=payload", "--actors", 0, "--run-dir", "broken").code == 130
    assert ran("resume", "broken", "--json").result["version"] == 3
    done = (folder / "done").read_text().split("\n")[:-1]
    assert sorted(done) == [f"{version} {client}" for version in range(3) for client in range(4)]


def test_a_finished_run_says_that_it_is_done_and_goes_on_only_to_a_later_end(folder: Path) -> None:
    numpy_job(folder)
    first = ran("simulate", "mine.py", "--actors", 0, "--run-dir", "run", "--json").result
    said = ran("resume", "run")
    assert "run is done: its goal of 3 versions is reached. To go on: shoal resume run rounds=6, say" in said.out
    assert ran("resume", "run", "--json").result["weights_sha256"] == first["weights_sha256"]
    assert "lr=0.2: a run that is resumed keeps its settings; only rounds may grow" in mistake("resume", "run", "lr=0.2")
    assert "rounds=2: allowed is from 3" in mistake("resume", "run", "rounds=2")
    longer = ran("resume", "run", "rounds=5", "--json").result
    shutil.copy("run/config.toml", "again.toml")
    again = ran("simulate", "again.toml", "--json").result
    assert longer["version"] == again["version"] == 5
    assert longer["weights_sha256"] == again["weights_sha256"]


# Parts of a job that are not what they are given as


PARTS = """
import gymnasium, torch
from shoal import Federated, Reinforcement, Work
from torch import nn
def model(): return nn.Linear(2, 2)
def data(): return [[0.0, 1.0]] * 40, [0, 1] * 20
def two(a, b): return None
def zeros(): return {"w": []}
class Idle: pass
class Narrow:
    def run(self, weights): return None
class Blind(nn.Module):
    def __init__(self, spaces): super().__init__()
    def forward(self, seen): return None
class NaN(nn.Module):
    def __init__(self, spaces):
        super().__init__()
        self.head = nn.Linear(spaces.observation.size, 3)
    def forward(self, seen):
        out = self.head(seen) * float("nan")
        return out[:, :2], out[:, 2]
class Noisy(NaN):
    def forward(self, seen):
        out = nn.functional.dropout(self.head(seen) * 0 + seen.sum(-1, keepdim=True))
        return out[:, :2], out[:, 2]
class Bare(gymnasium.Env):
    observation_space = gymnasium.spaces.Discrete(2)
few = dict(clients=4, cohort=2)
"""


@pytest.mark.parametrize(
    ("job", "line"),
    [
        ("Federated('mlp', data)", "model is 'mlp': expected a function without arguments that makes a torch module"),
        ("Federated(two, data)", "model is two(a, b): expected a function without arguments"),
        ("Federated(nn.Linear, data)", "model is Linear(in_features"),
        ("Federated(model, two)", "data is two(a, b): expected a function without arguments, or of the settings"),
        (
            "Federated(model, data, nn.CrossEntropyLoss)",
            "the class CrossEntropyLoss: expected a function (logits, y); loss=Cross",
        ),
        ("Federated(model, data, 'mse')", "loss is 'mse': expected a function (logits, y)"),
        ("Federated(model, data, metrics=two)", "metrics is two(a, b): expected name -> function"),
        ("Federated(model, data, partition=two)", "partition is two(a, b): expected a function (labels, clients, seed)"),
        ("Federated(model, data, select=two)", "select is two(a, b): expected a function (version, how_many, news)"),
        ("Federated(model, data, select=lambda *_: None, **few)", "a selection gave None for the round of version 0"),
        (
            "Federated(model, data, select=lambda *_: ['a', 'b'], **few)",
            "a selection gave ['a', 'b'] for the round of version 0",
        ),
        ("Federated(model, data, select=lambda *_: range(3), **few)", "[0, 1, 2] for the round of version 0; asked were 2"),
        ("Federated(model, data, lr_schedule=two)", "lr_schedule is two(a, b): expected a function version -> factor"),
        (
            "Federated(model, data, lr_schedule=lambda v: 'slow', **few)",
            "lr_schedule gave 'slow' for version 0: must be a number",
        ),
        (
            "Federated(model, data, optimizer=torch.optim.SGD, **few)",
            "optimizer is the class SGD, which lr alone does not make",
        ),
        ("Federated(model, data, worker=Idle)", "worker: expected a function run(weights, client, task) -> Work; Idle has no"),
        ("Federated(model, data, worker=Narrow)", "Narrow's is run(self, weights)"),
        ("Federated(model, data, worker=Narrow())", "worker is an object of type Narrow: expected a class or a function"),
        ("Federated(worker=two, weights=zeros)", "worker is two(a, b): expected a class or a function () -> worker"),
        ("Federated(worker=lambda: 3, weights={'w': []})", "weights is an object of type dict: expected a function"),
        (
            "Federated(worker=lambda: 3, weights=lambda: [1])",
            "the first weights are an object of type list: expected name -> array",
        ),
        ("Federated(model, lambda: (torch.zeros(40, 2, dtype=torch.int64), [0, 1] * 20), **few)", "x.astype('float32') makes"),
        ("Federated(model, lambda: ([[0.0, 1.0]] * 40, [0.5, 1] * 20), **few)", "loss=nn.functional.mse_loss"),
        ("Federated(model, lambda: (torch.zeros(0, 2), []))", "data has 0 examples: expected at least 2"),
        ("Reinforcement(None)", "env is None: expected an id, a function () -> gymnasium.Env, or num_envs -> VectorEnv"),
        ("Reinforcement(gymnasium.make('CartPole-v1'))", "one environment: expected an id, a function () -> gymnasium.Env"),
        ("Reinforcement('CartPole-v1', init=3)", "init=3: must be text"),
        ("Reinforcement(dict)", "dict() made an object of type dict, not a gymnasium.Env"),
        ("Reinforcement(two)", "env is two(a, b): expected an id"),
        ("Reinforcement(Bare)", "Bare has no action_space: its class or its __init__ must set it to a gymnasium.spaces.Space"),
        ("Reinforcement('CartPole-v1', 'mlp')", "policy is 'mlp': expected a function of the spaces"),
        ("Reinforcement('CartPole-v1', Blind(None))", "policy is a module, Blind: expected a function of the spaces"),
        ("Reinforcement('CartPole-v1', Blind)", "expected (logits [1, 2], value [1])"),
        ("Reinforcement('CartPole-v1', two)", "policy is two(a, b): expected a function of the spaces"),
        ("Reinforcement('CartPole-v1', NaN)", "policy: forward gave NaN"),
        ("Reinforcement('CartPole-v1', Noisy)", "policy: two passes over the same observations differ"),
        ("Reinforcement('CartPole-v1', around=two)", "around is two(a, b): expected a list; around=[two], say"),
        ("Federated(model, data, around=[Idle])", "around is Idle(): expected a function from an aggregator to an aggregator"),
        ("Federated(model, data, around='clip')", "around is 'clip': expected a list"),
        ("Federated(model, [(torch.zeros(0, 2), [])] * 3, clients=3, cohort=2)", "data: none of the 3 clients has an example"),
    ],
)
def test_a_part_that_is_not_what_it_is_given_as_is_one_line_before_the_run_has_a_folder(
    folder: Path, job: str, line: str
) -> None:
    (folder / "mine.py").write_text(f"{PARTS}\njob = {job}")
    assert line in mistake("simulate", "mine.py", "--actors", 0)
    assert not (folder / "runs").exists()


def test_a_partition_names_its_arguments_as_it_likes(folder: Path) -> None:
    own = "import numpy as np\ndef deal(y, n, s): return np.array_split(np.arange(len(y)), n)\n"
    (folder / "mine.py").write_text(
        f"{PARTS}{own}job = Federated(model, data, partition=deal, rounds=1, local_epochs=1, **few)"
    )
    assert ran("simulate", "mine.py", "--actors", 0, "--json").result["version"] == 1


@pytest.mark.parametrize(
    ("ill", "line"),
    [
        ("return {'w': 1}", "a worker's run gave an object of type dict: expected a Work(bundle, weight, totals)"),
        ("return None", "a worker's run gave None: expected a Work"),
        ("return Work(delta)", "a worker's Work has a bundle an object of type dict: expected Bundle.pack(name -> array)"),
        ("return Work(Bundle.pack(delta), totals=None)", "totals = None: expected a dict of names"),
        ("return Work(Bundle.pack(delta), totals={3: (1.0, 1.0)})", "totals = {3: (1.0, 1.0)}: expected a dict of names"),
        ("return Work(Bundle.pack(delta), samples={'return': 3})", "samples['return'] = 3: expected a tuple of numbers"),
        ("return Work(Bundle.pack(delta), steps='many')", "steps='many': expected a whole number from 0"),
        ("return Work(Bundle.pack(delta), '3')", "a worker's Work has the weight '3': expected a number above 0"),
        (
            "return Work(Bundle.pack(delta), 1.0, {'loss': 2.0})",
            "totals['loss'] = 2.0: expected a pair of numbers (sum, count)",
        ),
    ],
)
def test_work_of_another_form_is_told_in_one_line_without_a_traceback_of_ours(folder: Path, ill: str, line: str) -> None:
    numpy_job(folder, ill)
    said = ran("simulate", "mine.py", "--actors", 0, "--json")
    assert line in reports(said)
    assert "client 3 failed in train: a worker's " in reports(said)
    assert "Traceback" not in reports(said)


@pytest.mark.parametrize(
    ("body", "line"),
    [
        (
            "def step(self, action): return 0, 1.0, True, {}",
            "step gave a tuple of 4: expected (observation, reward, terminated",
        ),
        ("def step(self, action): return 0, None, True, False, {}", "step gave the reward None: expected one number"),
        ("def reset(self, **given): return 0", "reset gave 0: expected (observation, info)"),
    ],
)
def test_an_environment_of_another_interface_is_told_in_one_line(folder: Path, body: str, line: str) -> None:
    (folder / "mine.py").write_text(f"{JOB}    {body}\njob = Reinforcement(Env, method='ppo')")
    assert line in mistake("simulate", "mine.py", "--actors", 0)
    assert not (folder / "runs").exists()


def test_a_policy_that_divides_by_a_norm_which_is_zero_for_zeros_is_taken(folder: Path) -> None:
    norm = "class Norm(NaN):\n    def forward(self, seen):\n        out = self.head(seen / seen.norm(dim=-1, keepdim=True))\n"
    job = "job = Reinforcement('CartPole-v1', Norm, method='ppo', total_timesteps=64, num_envs=2, rollout_length=8)"
    (folder / "mine.py").write_text(f"{PARTS}{norm}        return out[:, :2], out[:, 2]\n{job}")
    assert ran("simulate", "mine.py", "--actors", 0, "--json").result["version"] > 0


def test_a_run_whose_job_has_another_model_now_says_so_in_every_command(folder: Path) -> None:
    few = "Federated(model, data, rounds=1, local_epochs=1, **few)"
    (folder / "mine.py").write_text(f"{PARTS}job = {few}")
    ran("simulate", "mine.py", "--actors", 0, "--run-dir", "run")
    (folder / "mine.py").write_text(f"{PARTS}def model(): return nn.Linear(2, 3)\njob = {few}")
    line = "the weights are not this model's: layout"
    for words in (["evaluate", "run"], ["export", "run", "--to", "w.pt2"], ["resume", "run", "rounds=2"]):
        assert line in mistake(*words)
    assert RunDir.open("run").rows()[-1]["version"] == 1


def test_a_toml_file_names_a_job_s_file_as_the_command_does(folder: Path) -> None:
    numpy_job(folder)
    (folder / "mine.toml").write_text('job = "mine.py"\nactors = 0\n[settings]\nrounds = 1')
    assert ran("simulate", "mine.toml", "--json").result["version"] == 1


@pytest.mark.parametrize(
    ("call", "line"),
    [
        ("run(job, settings='lr=0.1')", "settings is 'lr=0.1': expected name -> value; settings={'lr': 0.1}, say"),
        ("run(job, bind=5555)", "bind=5555: an address has the form tcp://HOST:PORT"),
        ("run(job, observers=3)", "observers is 3: expected a list"),
        ("evaluate(job)", "an object of type Job: expected a run, of shoal.run or shoal.load, or its folder"),
        ("load(3)", "3: expected a run"),
        ("plot()", "plot: no run is given"),
    ],
)
def test_a_wrong_argument_in_python_is_a_usererror_of_one_line(folder: Path, call: str, line: str) -> None:
    import shoal as package

    numpy_job(folder)
    sys.path.insert(0, str(folder))
    from shoal.jobs.catalog import find

    with pytest.raises(UserError) as wrong:
        eval(f"package.{call}", {"package": package, "job": find("mine.py:job")})
    assert line in str(wrong.value)
    assert list(folder.glob("runs")) == []


RULE = """
from dataclasses import dataclass
from typing import ClassVar
from shoal import FedAvg, Moved
class Rule:
    linear = False
    def __init__(self, weights): self.now = weights.copy()
    def weights(self): return self.now
    def fold(self, contribution): pass
    def step(self): return Moved()
    def state(self): return {}
    def load(self, weights, state): self.now = weights.copy()
class Turns:
    def assign(self, seats, news): return []
    def admits(self, made_from, version): return True
    def enough(self, folded, outstanding, version, now): return False
class Odd(Rule):
    BODY
@dataclass(frozen=True)
class Mine(FedAvg):
    name: ClassVar[str] = "mine"
    def aggregator(self, start, device): return Odd(start.weights)
    PLAN
job = Federated(model, data, method=Mine, rounds=1, local_epochs=1, **few)
"""


@pytest.mark.parametrize(
    ("body", "plan", "line", "left"),
    [
        ("def fold(self): pass", "", "its aggregator Odd lacks fold (its fold() takes other arguments)", False),
        ("def step(self, now): pass", "", "its aggregator Odd lacks step (its step(now) takes other arguments)", False),
        ("", "def plan(self, asked, seed, sums): return Turns()", "lacks assign (its assign(seats, news) takes other", False),
        ("def step(self): return Moved({'loss': 'low'})", "", "gave Moved({'loss': 'low'}); expected name -> number", True),
        ("def step(self): return Moved([0.5])", "", "gave Moved(an object of type list); expected name -> number", True),
    ],
)
def test_a_rule_or_a_plan_with_other_arguments_or_metrics_is_one_line(
    folder: Path, body: str, plan: str, line: str, left: bool
) -> None:
    (folder / "mine.py").write_text(PARTS + RULE.replace("BODY", body or "pass").replace("PLAN", plan))
    assert line in mistake("simulate", "mine.py", "--actors", 0, "--quiet")
    assert (folder / "runs").exists() == left


def federated(seed: Any) -> Job:
    return Federated(lambda: torch.nn.Linear(2, 2), ([[0.0, 1.0]], [1]), seed=seed)


@pytest.mark.parametrize("seed", ["a", "7", 1.5, None, True, -1, 2**63])
@pytest.mark.parametrize("make", [federated, lambda seed: Reinforcement("CartPole-v1", seed=seed)])
def test_a_seed_that_is_none_is_refused_where_the_job_is_made(make: Callable[[Any], Job], seed: Any) -> None:
    with pytest.raises(UserError, match=rf"^seed={re.escape(repr(seed))}: must be a whole number from 0 to below 2\*\*63$"):
        make(seed)


def test_a_seed_of_numpys_is_a_number_and_one_that_is_too_large_is_one_line() -> None:
    assert type(federated(np.int64(3)).seed) is int
    assert mistake("simulate", "digits", "--seed", 2**63).startswith(f"seed={2**63}: must be a whole number from 0")
