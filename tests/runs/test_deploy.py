"""The files in examples/deploy: they parse, and their commands are commands of this shoal."""

from __future__ import annotations

import argparse
import configparser
import json
import os
import re
import shlex
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from shoal.commands.arguments import parser
from shoal.commands.cli import ACTS
from shoal.faults.patient import ran as finished

DEPLOY = Path(__file__).resolve().parents[2] / "examples" / "deploy"
ENVIRONMENT = {"SHOAL_ADDRESS": "tcp://10.0.0.7:5555", "SHOAL_BIND": "tcp://0.0.0.0:5555", "SHOAL_KEY": "hub"}
SCRIPTS = ("coordinator.sh", "shoal.sbatch")


@pytest.fixture(autouse=True)
def environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in ENVIRONMENT.items():
        monkeypatch.setenv(name, value)


def accepted(words: list[str]) -> argparse.Namespace:
    """The words of a command, as our parser takes them; it ends the test if it does not."""
    assert words[0].rpartition("/")[2] == "shoal", words
    return parser(ACTS).parse_args(words[1:])


def carried_out(folder: Path, script: str, code: int, **variables: str) -> tuple[int, list[list[str]]]:
    """Runs a script with stand-ins for the programs that it calls. Returns its exit code and what it called."""
    for name in ("shoal", "srun", "scontrol"):
        program = folder / name
        said = f'echo "{name} $*" >> {folder / "called"}'
        program.write_text(f"#!/bin/sh\n{said}\nexit {code if name == 'shoal' else 0}\n")
        program.chmod(0o755)
    path = {"PATH": f"{folder}:{os.environ['PATH']}", "RUN_DIR": str(folder / "run"), "JOB": "digits", "SLURM_JOB_ID": "7"}
    done = finished(["bash", DEPLOY / script], environment={**path, **variables})
    return done.returncode, [shlex.split(line) for line in (folder / "called").read_text().splitlines()]


@pytest.mark.parametrize("script", SCRIPTS)
def test_scripts_parse(script: str) -> None:
    subprocess.run(["bash", "-n", DEPLOY / script], check=True)


@pytest.mark.parametrize(("before", "command"), [(False, "coordinator"), (True, "resume")])
@pytest.mark.parametrize("script", SCRIPTS)
def test_a_script_starts_a_run_and_goes_on_with_one_that_is_there(
    tmp_path: Path, script: str, before: bool, command: str
) -> None:
    if before:
        (tmp_path / "run").mkdir()
        (tmp_path / "run" / "config.toml").touch()
    code, called = carried_out(tmp_path, script, 0)
    assert code == 0
    asked = next(accepted(words) for words in called if words[:2] == ["shoal", command])
    assert (str(asked.run_dir), asked.bind, asked.key) == (str(tmp_path / "run"), "tcp://0.0.0.0:5555", "hub")


def test_a_paused_run_queues_its_job_again(tmp_path: Path) -> None:
    code, called = carried_out(tmp_path, "shoal.sbatch", 75)
    assert code == 75
    assert ["scontrol", "requeue", "7"] in called
    actors = re.search(r"^srun (shoal actor .*) &$", (DEPLOY / "shoal.sbatch").read_text(), re.MULTILINE)
    assert actors is not None
    assert accepted(shlex.split(actors[1].replace("$(hostname)", "node1"))).count == 16


@pytest.mark.parametrize("unit", ["shoal-coordinator.service", "shoal-actor.service"])
def test_units_have_their_sections_and_start_what_is_there(unit: str) -> None:
    found = configparser.ConfigParser(interpolation=None)
    found.optionxform = str  # type: ignore[assignment,method-assign]
    found.read(DEPLOY / unit)
    assert found.sections() == ["Unit", "Service", "Install"]
    words = shlex.split(found["Service"]["ExecStart"])
    if words[0] == "/bin/sh":
        assert (DEPLOY / Path(words[1]).name).is_file()
        assert found["Service"]["RestartForceExitStatus"] == found["Service"]["SuccessExitStatus"] == "75"
    else:
        assert accepted(words).count == 4


def test_the_container_starts_an_actor_and_copies_what_is_there() -> None:
    lines = [line for line in (DEPLOY / "Containerfile").read_text().splitlines() if line and not line.startswith("#")]
    told = [(line.split()[0], line.partition(" ")[2]) for line in lines]
    assert {word for word, _ in told} <= {"FROM", "COPY", "RUN", "USER", "WORKDIR", "STOPSIGNAL", "ENTRYPOINT", "CMD"}
    last = dict(told)
    assert accepted([*json.loads(last["ENTRYPOINT"]), *json.loads(last["CMD"])]).address == ENVIRONMENT["SHOAL_ADDRESS"]
    assert (DEPLOY.parents[1] / shlex.split(last["COPY"])[1]).is_file()


def test_the_manifest_parses_and_its_commands_and_names_fit(monkeypatch: pytest.MonkeyPatch) -> None:
    things: list[dict[str, Any]] = list(yaml.safe_load_all((DEPLOY / "kubernetes.yaml").read_text()))
    assert [one["kind"] for one in things] == ["Service", "PersistentVolumeClaim", "Job", "Job"]
    service, claim, *jobs = things
    for job in jobs:
        pod = job["spec"]["template"]["spec"]
        [container] = pod["containers"]
        assert {one["name"] for one in container["volumeMounts"]} == {one["name"] for one in pod["volumes"]}
        variables = {one["name"]: one["value"] for one in container["env"]}
        last = shlex.split(container["args"][0].rpartition("exec ")[2])
        for name, value in variables.items():
            if not value.startswith("@"):
                monkeypatch.setenv(name, value)
        assert last == ["coordinator.sh"] or accepted(last).address == f"tcp://{service['metadata']['name']}:5555"
    coordinator = jobs[0]["spec"]["template"]
    assert coordinator["metadata"]["labels"] == service["spec"]["selector"]
    assert coordinator["spec"]["volumes"][0]["persistentVolumeClaim"]["claimName"] == claim["metadata"]["name"]
    assert accepted(coordinator["spec"]["containers"][0]["readinessProbe"]["exec"]["command"]).within == 600
