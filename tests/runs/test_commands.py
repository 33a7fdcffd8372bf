"""The command line is a contract: scripts and documents rely on it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from typed import Said, ran, shoal

from shoal.faults.patient import ran as finished
from shoal.jobs.catalog import find
from shoal.runs.rundir import RunDir

SCRIPTS = Path(__file__).resolve().parents[2] / "scripts"
COMMANDS = ("jobs", "partition", "simulate", "coordinator", "actor", "resume")
COMMANDS += ("status", "evaluate", "compare", "plot", "export", "bench")
DIGITS = ("simulate", "digits", "rounds=4", "local_epochs=1", "eval_every=2", "--actors", 0, "--json")
CARTPOLE = ("simulate", "cartpole", "num_envs=128", "total_timesteps=6000", "--actors", 0, "--json")
FIELDS = ["job", "seed", "actors", "version", "contributions", "seconds", "rounds_per_second", "steps", "steps_per_second"]
FIELDS += ["metrics", "weights_sha256", "run_dir", "threads", "left_out", "left_out_why"]


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("commands")


@pytest.fixture(autouse=True)
def here(place: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(place)
    return place


@pytest.fixture(scope="module")
def digits(place: Path) -> Said:
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(place)
        return ran(*DIGITS, "--run-dir", "runs/digits")


@pytest.fixture(scope="module")
def cartpole(place: Path) -> Said:
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(place)
        return ran(*CARTPOLE, "--run-dir", "runs/cartpole")


# The result


def test_verbose_tells_of_the_engines_trial_and_changes_nothing(digits: Said) -> None:
    said = ran(*DIGITS, "--run-dir", "runs/verbose", "--verbose")
    assert "ms by the loop and " in said.err
    assert "ms by the loop and " not in digits.err
    assert "; engine=loop, whose bits deterministic=true keeps" in Path("runs/verbose/log.txt").read_text()
    assert said.result["weights_sha256"] == digits.result["weights_sha256"]


def test_the_last_line_of_json_has_the_fields_of_the_contract(digits: Said, cartpole: Said) -> None:
    for said in (digits, cartpole):
        assert list(said.result) == FIELDS
        assert json.loads((Path(said.result["run_dir"]) / "summary.json").read_text()) == said.result
    assert (digits.result["job"], digits.result["version"], digits.result["steps"]) == ("digits", 4, 0)
    assert digits.result["contributions"] == 40
    assert digits.result["threads"] == 1
    assert 0 < digits.result["metrics"]["accuracy"] < 1
    assert 0 < cartpole.result["steps"] <= 6000
    assert cartpole.result["metrics"]["return_mean"] > 0


def test_a_run_leaves_what_the_contract_says(digits: Said) -> None:
    run = RunDir(digits.result["run_dir"])
    for path in (run.config_file, run.metrics_file, run.summary_file, run.picture, run.log_file):
        assert path.stat().st_size > 0
    assert list(run.checkpoints.glob("*.safetensors"))
    assert list(run.path.glob("events.out.tfevents.*"))
    assert Path("runs/latest").is_symlink()
    rows = [json.loads(line) for line in run.metrics_file.read_text().splitlines()]
    assert [row["version"] for row in rows if "accuracy" in row["metrics"]] == [2, 4]  # held out: only where evaluated
    assert [row["version"] for row in rows if "train_accuracy" in row["metrics"]] == [1, 2, 3, 4]


def test_config_toml_repeats_the_run(digits: Said) -> None:
    again = ran("simulate", f"{digits.result['run_dir']}/config.toml", "--json").result
    assert again["weights_sha256"] == digits.result["weights_sha256"]
    assert again["run_dir"] != digits.result["run_dir"]
    other = ran("simulate", f"{digits.result['run_dir']}/config.toml", "--seed", 1, "--json").result
    assert other["weights_sha256"] != digits.result["weights_sha256"]


def test_settings_may_stand_before_and_behind_options_and_on_top_of_a_file(digits: Said) -> None:
    said = ran("simulate", f"{digits.result['run_dir']}/config.toml", "rounds=1", "--actors", 0, "lr=0.2", "--json")
    settings = RunDir(said.result["run_dir"]).config().settings
    assert (settings["rounds"], settings["lr"], settings["local_epochs"]) == (1, 0.2, 1)


def test_a_person_gets_the_result_where_it_lies_and_what_to_try_next(place: Path) -> None:
    said = ran("simulate", "digits", "rounds=1", "local_epochs=1", "--actors", 0)
    run = os.readlink("runs/latest")
    assert said.out.startswith("digits: held-out accuracy ")
    for line in (
        f"The run lies in runs/{run}",
        f"shoal evaluate runs/{run}",
        f"shoal simulate runs/{run}/config.toml --seed 1",
        f"shoal export runs/{run}",
    ):
        assert line in said.out
    quiet = ran("simulate", "digits", "rounds=1", "local_epochs=1", "--actors", 0, "--quiet")
    assert (quiet.err, quiet.out.startswith("digits: held-out accuracy ")) == ("", True)


# Afterwards


def test_evaluate_gives_the_accuracy_that_the_run_ended_with(digits: Said) -> None:
    found = ran("evaluate", digits.result["run_dir"], "--json").result
    assert found["accuracy"] == digits.result["metrics"]["accuracy"]
    assert (found["version"], found["held_out_examples"]) == (4, 359)
    assert "accuracy" in ran("evaluate", digits.result["run_dir"]).out


def test_evaluate_plays_fresh_greedy_episodes(cartpole: Said) -> None:
    found = ran("evaluate", cartpole.result["run_dir"], "--episodes", 7, "--json").result
    assert found["episodes"] == 7
    assert found["return_min"] <= found["return_mean"] <= found["return_max"]
    assert found["version"] == cartpole.result["version"]


@pytest.mark.filterwarnings("default::DeprecationWarning", "default::FutureWarning")  # torch.export's own
def test_export_writes_programs_that_torch_runs_without_us(digits: Said, cartpole: Said) -> None:
    ran("export", digits.result["run_dir"], "--to", "digits.pt2")
    ran("export", cartpole.result["run_dir"], "--to", "cartpole.pt2")
    digits_model, policy = torch.export.load("digits.pt2").module(), torch.export.load("cartpole.pt2").module()
    assert digits_model(torch.zeros(5, 64)).shape == (5, 10)
    logits, value = policy(torch.zeros(3, 4))
    assert (logits.shape, value.shape) == ((3, 2), (3,))


def test_export_writes_the_weights_by_name(digits: Said) -> None:
    from safetensors import safe_open

    ran("export", digits.result["run_dir"], "--to", "digits.safetensors")
    with safe_open("digits.safetensors", framework="np") as file:
        assert sorted(file.keys()) == ["0.bias", "0.weight", "2.bias", "2.weight"]
        assert file.metadata() == {"job": "digits", "version": "4", "run": "digits"}


def test_plot_lays_runs_over_each_other(digits: Said, cartpole: Said) -> None:
    said = ran("plot", digits.result["run_dir"], cartpole.result["run_dir"], "--out", "both.png")
    assert said.out == "both.png\n"
    assert Path("both.png").read_bytes()[:4] == b"\x89PNG"


# Help


def test_jobs_are_listed_a_line_each() -> None:
    lines, _ = [part.splitlines() for part in ran("jobs").out.split("\n\n")]  # what follows is of the presets
    names = [line.split()[0] for line in lines]
    federated = ["digits", "mnist", "femnist", "cifar10", "shakespeare", "lora"]
    acting = ["fed-cartpole", "cartpole", "cartpole-ppo", "cartpole-dqn", "cartpole-es", "acrobot", "lunarlander"]
    assert names == [*federated, *acting, "gymnasium:ID", "pettingzoo:NAME"]
    assert all(line.split()[1].rstrip(":") in ("federated", "reinforcement") for line in lines)


@pytest.mark.parametrize("job", ["digits", "cartpole"])
def test_jobs_with_a_name_lists_every_setting_with_its_value_and_range(job: str) -> None:
    lines, *_ = [part.splitlines() for part in ran("jobs", job).out.split("\n\n")]  # what follows is of the preset
    assert [line.partition("=")[0] for line in lines] == ["method", *find(job).options()]
    if job == "digits":
        assert lines[0].startswith("method=fedavg")
        assert lines[1].split() == [
            "rounds=100",
            "from",
            "1",
            "versions",
            "of",
            "the",
            "weights",
            "after",
            "which",
            "the",
            "run",
            "is",
            "done",
        ]


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_has_a_help_and_is_in_the_list(command: str) -> None:
    assert f"usage: shoal {command}" in ran(command, "--help").out
    assert f"\n    {command}" in ran("--help").out


def test_no_command_is_a_mistake() -> None:
    assert shoal().code == 2


# Processes of their own, where it is about what is imported


def command(*words: object, **environment: str) -> subprocess.CompletedProcess[str]:
    return finished([sys.executable, *map(str, words)], environment=environment)


def test_help_and_the_two_kinds_of_job_need_neither_torch_nor_numpy() -> None:
    heavy = "sorted({'torch', 'numpy', 'gymnasium', 'zmq', 'rich'} & set(sys.modules))"
    code = f"""
import sys
from shoal.commands.cli import main
try: main(["--help"])
except SystemExit: print({heavy})
main(["jobs"])
import shoal
print({heavy}, shoal.Federated.__module__, shoal.Reinforcement.__module__, 'torch' in sys.modules)"""
    said = command("-c", code)
    assert said.stderr == ""
    assert said.stdout.count("[]\n") == 1
    assert said.stdout.endswith(" False\n")


def test_python_m_shoal_is_the_command() -> None:
    assert command("-m", "shoal", "--version").stdout.startswith("shoal ")


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_is_a_script_too(name: str) -> None:
    said = command(SCRIPTS / f"{name}.py", "--help")
    assert said.stdout.startswith(f"usage: shoal {name}"), said.stderr


def test_a_script_named_like_a_room_does_not_take_its_place() -> None:
    said = command(SCRIPTS / "coordinator.py", "digits", "--bind", "tcp://127.0.0.1:1", "--seed", "x")
    assert "--seed: x" in said.stderr
    found = command(
        "-c", "import shoal.coordinator.deciding.core, shoal.coordinator as c; print(c.__path__[0], shoal.__path__)"
    )
    assert Path(found.stdout.split()[0]) == SCRIPTS.parent / "coordinator", found.stderr


def test_a_script_runs_a_job_whose_modules_are_called_like_ours(place: Path) -> None:
    (place / "evaluate.py").write_text("ROUNDS = 1")  # as is a package on the index
    (place / "its.py").write_text(
        "from evaluate import ROUNDS\nfrom shoal.jobs.catalog import digits\njob = digits().configured({'rounds': ROUNDS})"
    )
    said = command(SCRIPTS / "simulate.py", "its.py", "--actors", "1", "--json")
    assert (said.returncode, json.loads(said.stdout.splitlines()[-1])["version"]) == (0, 1), said.stderr


@pytest.mark.parametrize(
    ("line", "offered"),
    [
        ("shoal simul", {"simulate"}),
        ("shoal simulate cartp", {"cartpole", "cartpole-ppo", "cartpole-dqn", "cartpole-es"}),
        ("shoal simulate digits --dev", {"--device"}),
        ("shoal simulate digits --device c", {"cpu", "cuda"}),
        ("shoal simulate digits method=fedad", {"method=fedadagrad", "method=fedadam"}),
        ("shoal simulate cartpole gam", {"gamma="}),
    ],
)
def test_the_shell_completes_commands_jobs_options_and_settings(place: Path, line: str, offered: set[str]) -> None:
    said = command(
        "-m",
        "shoal",
        _ARGCOMPLETE="1",
        _ARGCOMPLETE_STDOUT_FILENAME=str(place / "offered"),
        _ARGCOMPLETE_IFS="\n",
        _ARGCOMPLETE_COMP_WORDBREAKS=" ",
        COMP_LINE=line,
        COMP_POINT=str(len(line)),
    )
    assert said.returncode == 0, said.stderr
    assert {word.strip() for word in (place / "offered").read_text().split("\n")} == offered
