"""Peers of the benchmarks: how they are installed, asked and left out. Nothing is installed and nothing measured here."""

from __future__ import annotations

import ast
import os
import sys
import time
from collections.abc import Mapping
from pathlib import Path

import pytest

from shoal.benchmarks import moving, throughput
from shoal.benchmarks.peers import asking, questions, venvs
from shoal.benchmarks.peers.asking import Answer, AnswerError, Question
from shoal.benchmarks.peers.beside import POLICY, Beside
from shoal.benchmarks.peers.venvs import AbsentError
from shoal.commands.cli import main as shoal

ASKED = {
    "a_fast": Question("a", "a.py", ("fast", 3), turns=2, quick=True),
    "a_slow": Question("a", "a.py", ("slow",)),
    "a_other": Question("a", "a.py", ("other",), turns=1, alike=False),
    "b": Question("b", "b.py", (), quick=True),
}
SAYS = {"fast": 20.0, "slow": 5.0, "other": 90.0}
EVERY = [
    *questions.noop(9).values(),
    *questions.large(9).values(),
    *questions.rounds().values(),
    *questions.calls("single", 9).values(),
    *questions.serving(9, 3).values(),
    *questions.cohorts("fl-b", 9).values(),
    *questions.trained(Path("clients.npz"), 9, 9).values(),
    *questions.cartpole(True).values(),
    *questions.cheetah(9).values(),
    *questions.cheetah_sac(9).values(),
    *questions.pong(9).values(),
]


class Pip:
    """In place of venv and pip: notes what it was asked; fails where `fails` stands in the command, saying so."""

    def __init__(self, fails: str = "", said: str = "") -> None:
        self.fails, self.said, self.ran = fails, said, list[str]()

    def __call__(self, *command: str | Path, environment: Mapping[str, str]) -> tuple[bool, list[str]]:
        line = " ".join(map(str, command))
        self.ran.append(line)
        assert "PYTHONPATH" not in environment
        if self.fails and self.fails in line:
            return True, self.said.splitlines(keepends=True)
        if " -m venv " in line:
            (Path(command[-1]) / "bin").mkdir(parents=True, exist_ok=True)
            (Path(command[-1]) / "bin" / "python").touch()
        return False, []


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setenv("PYTHONPATH", "somewhere of ours")
    monkeypatch.delenv(POLICY, raising=False)
    return tmp_path


def pip(monkeypatch: pytest.MonkeyPatch, fails: str = "", said: str = "") -> Pip:
    stand_in = Pip(fails, said)
    monkeypatch.setattr(venvs, "run", stand_in)
    return stand_in


@pytest.mark.parametrize("peer", venvs.PEERS)
def test_every_requirement_of_a_peer_is_an_exact_pin(peer: str) -> None:
    pins = venvs.pins(peer)
    assert len(pins) > 10
    assert venvs.version(peer) in str(venvs.venv(peer))


def test_what_needs_torch_asks_for_the_release_that_has_a_small_build() -> None:
    assert venvs.pins("pfl")["torch"] == "2.13.0"


@pytest.mark.parametrize("line", ["ray", "ray>=2", "ray==2.*", "ray==2.60.0; python_version > '3'", "-r other.txt"])
def test_a_requirement_that_is_no_exact_pin_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, line: str) -> None:
    (tmp_path / "ray.txt").write_text(f"# of Ray\n{line}\n")
    monkeypatch.setattr(venvs, "HERE", tmp_path)
    with pytest.raises(ValueError, match="no exact pin"):
        venvs.pins("ray")


def test_a_peer_is_installed_once_in_the_users_cache(
    cache: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    asked = pip(monkeypatch)
    inside = venvs.python("ray", install=True)
    assert inside.is_relative_to(cache / "shoal" / "peers" / f"ray-2.60.0-py3.{sys.version_info[1]}")
    assert [" -m venv " in asked.ran[0], " -m pip install " in asked.ran[1], len(asked.ran)] == [True, True, 2]
    [told] = capsys.readouterr().err.splitlines()
    assert told.startswith("Installing ray 2.60.0 into ")
    assert venvs.python("ray", install=False) == venvs.python("ray", install=True) == inside
    assert len(asked.ran) == 2


def test_half_an_installation_is_none_and_the_next_one_begins_anew(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pip(monkeypatch, "pip install", "Looking in indexes\nERROR: No matching distribution found for ray==2.60.0\n")
    with pytest.raises(AbsentError, match=r"^not installed: ERROR: No matching distribution found for ray==2\.60\.0$"):
        venvs.python("ray", install=True)
    with pytest.raises(AbsentError, match="--peers install"):
        venvs.python("ray", install=False)
    asked = pip(monkeypatch)
    venvs.python("ray", install=True)
    assert len(asked.ran) == 2


def test_without_a_network_that_is_the_reason(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    said = "WARNING: Retrying (Retry(total=1)) after connection broken\nERROR: Could not find a version (from versions: none)\n"
    pip(monkeypatch, "pip install", said)
    with pytest.raises(AbsentError, match=r"^not installed: no package index could be reached$"):
        venvs.python("pfl", install=True)


def test_other_pins_are_another_installation(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = pip(monkeypatch)
    venvs.python("ray", install=True)
    monkeypatch.setattr(venvs, "digest", lambda peer: "of other pins")
    venvs.python("ray", install=True)
    assert len(asked.ran) == 4


def test_a_cache_that_cannot_be_written_is_a_reason(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (cache / "shoal").write_text("a file where the folder should be")
    asked = pip(monkeypatch)
    with pytest.raises(AbsentError, match="not installed: "):
        venvs.python("ray", install=True)
    assert asked.ran == []


def test_an_answer_is_the_last_json_line() -> None:
    said = 'warning: slow\n{"figure": 1, "versions": {}}\n{"figure": 12.5, "versions": {"ray": "2"}}\nbye\n'
    assert asking.heard(said) == Answer(12.5, {"ray": "2"})


@pytest.mark.parametrize(
    "said",
    [
        "",
        "figure: 3",
        '{"figure": 3',
        '{"figure": "3", "versions": {}}',
        '{"figure": true, "versions": {}}',
        '{"figure": NaN, "versions": {}}',
        '{"figure": 0, "versions": {}}',
        '{"figure": 3}',
        '{"versions": {}}',
    ],
)
def test_anything_else_is_no_answer(said: str) -> None:
    with pytest.raises(AnswerError):
        asking.heard(said)


def script(folder: Path, monkeypatch: pytest.MonkeyPatch, source: str) -> Path:
    """A script in place of a peer's, and a Python in a venv's folder that runs it."""
    (folder / "peer.py").write_text(source)
    (folder / "bin").mkdir()
    (folder / "bin" / "python").symlink_to(sys.executable)
    monkeypatch.setattr(asking, "HERE", folder)
    monkeypatch.setenv("PYTHONPATH", "somewhere of ours")
    return folder / "bin" / "python"


def test_a_script_is_asked_in_a_folder_and_a_path_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = (
        "import json, os, sys\nprint(json.dumps({'figure': int(sys.argv[1]), 'versions': dict(os.environ, cwd=os.getcwd())}))"
    )
    answer = asking.ask(script(tmp_path, monkeypatch, source), Question("a", "peer.py", (7,)))
    assert answer.figure == 7
    assert answer.versions["PATH"].startswith(str(tmp_path / "bin"))
    assert "PYTHONPATH" not in answer.versions
    assert not Path(answer.versions["cwd"]).exists()


def test_a_script_that_fails_is_its_last_words(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    inside = script(tmp_path, monkeypatch, "raise SystemExit('no such thing')")
    with pytest.raises(AnswerError, match=r"^exit status 1: no such thing$"):
        asking.ask(inside, Question("a", "peer.py", ()))


def test_a_script_that_takes_too_long_is_ended_with_all_it_started(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sleeper = f"import subprocess, sys\nsubprocess.run(['sleep', '600'])\nopen({str(tmp_path / 'late')!r}, 'w')"
    inside = script(tmp_path, monkeypatch, sleeper)
    began = time.monotonic()
    with pytest.raises(AnswerError, match="no answer in 0 s"):
        asking.ask(inside, Question("a", "peer.py", (), seconds=0.3))
    assert time.monotonic() - began < 300  # of the 600 s that it would sleep
    assert not (tmp_path / "late").exists()


def reply(python: Path, question: Question) -> Answer:
    if question.peer == "b":
        raise AnswerError("exit status 1: it broke")
    return Answer(SAYS[str(question.words[0])], {"a": "1.0"})


def there(peer: str, install: bool) -> Path:
    return Path(peer)


def test_the_best_of_a_peer_is_that_of_the_same_work(cache: Path) -> None:
    beside = Beside(ASKED, False, python=there, ask=reply)
    for _ in range(5):
        beside.turn()
    assert [len(found) for found in beside.found.values()] == [2, 3, 1, 0]
    assert beside.best("a") == 20.0
    assert Beside.best(beside, "b") is None
    told = beside.details()
    assert [told[name] for name in ("a", "a_fast", "a_slow", "a_other")] == [20.0, 20.0, 5.0, 90.0]
    assert told["b"] == "failed: exit status 1: it broke"
    assert told["peers_versions"] == {"a": {"a": "1.0"}}


def test_of_times_the_least_is_best(cache: Path) -> None:
    beside = Beside(ASKED, False, min, python=there, ask=reply)
    beside.turn()
    assert beside.best("a") == 5.0


def test_a_quick_run_asks_little_once_and_installs_nothing(cache: Path) -> None:
    wanted: list[tuple[str, bool]] = []

    def python(peer: str, install: bool) -> Path:
        wanted.append((peer, install))
        raise AbsentError("not installed")

    beside = Beside(ASKED, True, python=python, ask=reply)
    assert wanted == [("a", False), ("b", False)]
    assert beside.turn() < 1
    assert beside.details() == {"a": "skipped: not installed", "b": "skipped: not installed", "peers_versions": {}}
    quick = Beside(ASKED, True, python=there, ask=reply)
    quick.turn()
    quick.turn()
    assert {name: len(found) for name, found in quick.found.items()} == {"a_fast": 1, "b": 0}


@pytest.mark.parametrize(("quick", "policy", "installs"), [(True, "install", True), (False, "installed", False)])
def test_the_command_line_says_otherwise(
    cache: Path, monkeypatch: pytest.MonkeyPatch, quick: bool, policy: str, installs: bool
) -> None:
    wanted: list[bool] = []
    monkeypatch.setenv(POLICY, policy)

    def python(peer: str, install: bool) -> Path:
        wanted.append(install)
        return Path(peer)

    Beside(ASKED, quick, python=python, ask=reply)
    assert set(wanted) == {installs}


def test_peers_that_are_left_out_are_not_looked_for(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(POLICY, "off")
    beside = Beside(ASKED, False, python=venvs.python, ask=reply)
    assert beside.details()["a"] == "skipped: --peers off"


def test_the_flag_reaches_the_cases(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(POLICY, "installed")
    assert shoal(["bench", "nops", "--peers", "off"]) == 2
    assert os.environ[POLICY] == "off"


@pytest.mark.parametrize(
    ("best", "holds"), [(None, True), (50.0, True), (70.0, False)], ids=["absent", "200 times slower", "171 times slower"]
)
def test_noop_holds_against_flower_where_it_was_measured(
    monkeypatch: pytest.MonkeyPatch, best: float | None, holds: bool
) -> None:
    monkeypatch.setenv(POLICY, "off")
    monkeypatch.setattr(throughput, "_rate", lambda *_, **__: 12_000.0)
    monkeypatch.setattr(throughput, "bare_zmq", lambda *_: 30_000.0)
    monkeypatch.setattr(Beside, "best", lambda self, peer: best)
    found = throughput.noop(True)
    assert (found.peer, found.holds, found.ratio) == (best, holds, 0.4)
    assert ("(not measured)" in found.asked) is (best is None)


def test_a_round_is_compared_with_flowers_where_it_was_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(POLICY, "off")
    monkeypatch.setattr(moving, "_round", lambda *_, **__: 0.002)
    absent = moving.round_tcp(True)
    assert (absent.peer, absent.ratio, absent.holds, absent.details["flower"]) == (None, None, True, "skipped: --peers off")
    monkeypatch.setattr(Beside, "best", lambda self, peer: 4_000.0)
    assert moving.round_tcp(True).ratio == 0.0005


def test_every_question_has_its_script_and_its_pins() -> None:
    assert {one.peer for one in EVERY} == set(venvs.PEERS)
    assert all((venvs.HERE / one.script).exists() for one in EVERY)


def test_shoal_and_its_peers_meet_in_no_process() -> None:
    scripts = {one.script for one in EVERY}
    for path in venvs.HERE.glob("*.py"):
        nodes = [node for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Import | ast.ImportFrom)]
        names = {(node.module or "") if isinstance(node, ast.ImportFrom) else node.names[0].name for node in nodes}
        tops = {name.partition(".")[0] for name in names}
        assert not tops & ({"shoal", ""} if path.name in scripts else {"flwr", "pfl", "ray"}), path.name
