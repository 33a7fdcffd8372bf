"""The script behind `make demo` and `make test`: once slow, then quick, and a line with a remedy where it cannot."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

from shoal import up


@pytest.fixture
def clone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for name in up.ASKED:
        (tmp_path / name).write_text("as it is")
    for name, path in {"ROOT": tmp_path, "VENV": tmp_path / ".venv", "LOG": tmp_path / "build" / "up.log"}.items():
        monkeypatch.setattr(up, name, path)
    monkeypatch.setattr(up, "PYTHON", tmp_path / ".venv" / "bin" / "python")
    monkeypatch.setattr(up.shutil, "which", lambda name: None)
    return tmp_path


class Installer:
    """In place of pip and uv: notes what it was asked, and answers with what it was told to say (nothing: all is well)."""

    def __init__(self, clone: Path, says: dict[str, str]) -> None:
        self.clone, self.says, self.ran = clone, says, list[str]()

    def __call__(self, said: list[str], *command: str | Path) -> bool:
        line = " ".join(map(str, command))
        self.ran.append(line)
        failures = [text for start, text in self.says.items() if start in line]
        said += failures
        if not failures:
            python = self.clone / ".venv" / "bin" / "python"
            python.parent.mkdir(parents=True, exist_ok=True)
            python.touch()
        return not failures


def installer(clone: Path, monkeypatch: pytest.MonkeyPatch, **says: str) -> Installer:
    stand_in = Installer(clone, {start.replace("_", " "): text for start, text in says.items()})
    monkeypatch.setattr(up, "quietly", stand_in)
    return stand_in


def test_the_second_time_installs_nothing(clone: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pip = installer(clone, monkeypatch)
    up.install("test")
    assert "--editable .[test]" in pip.ran[-1]
    pip.ran.clear()
    up.install("test")
    up.install("all")  # the tests' extra brings the demo's
    assert pip.ran == []


def test_what_the_demo_installs_is_not_enough_for_the_tests(clone: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pip = installer(clone, monkeypatch)
    up.install("all")
    up.install("test")
    assert "--editable .[test]" in pip.ran[-1]


@pytest.mark.parametrize("name", up.ASKED)
def test_a_changed_requirement_installs_again(clone: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    pip = installer(clone, monkeypatch)
    up.install("test")
    pip.ran.clear()
    (clone / name).write_text("changed")
    up.install("test")
    assert len(pip.ran) == 2


def test_a_venv_without_its_python_is_made_again(clone: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pip = installer(clone, monkeypatch)
    up.install("test")
    pip.ran.clear()
    up.PYTHON.unlink()
    up.install("test")
    assert pip.ran != []


def test_uv_that_fails_gives_way_to_pip_in_one_line(
    clone: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    pip = installer(clone, monkeypatch, uv_pip="Resolving\nerror: no route to the index\n")
    monkeypatch.setattr(up.shutil, "which", lambda name: "/usr/bin/uv")
    up.install("all")
    assert "-m pip install" in pip.ran[-1]
    assert [line for line in capsys.readouterr().out.splitlines() if "uv" in line] == [
        "uv could not: error: no route to the index; going on with pip."
    ]


@pytest.mark.parametrize(
    ("said", "remedy"),
    [
        ("ERROR: Could not install packages due to an OSError: [Errno 28] No space left on device\n", "disk space"),
        ("WARNING: Retrying after NewConnectionError\nERROR: No matching distribution found for numpy\n", "network"),
        ("ERROR: No matching distribution found for torch==2.13.0\n", "Python 3.11 to 3.13"),
        ("something else\n", "remove .venv"),
    ],
)
def test_a_failed_install_is_one_line_with_a_remedy(
    clone: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], said: str, remedy: str
) -> None:
    pip = installer(clone, monkeypatch, pip_install=said)
    assert up.main(["demo"]) == 1
    [line] = capsys.readouterr().err.splitlines()
    assert said.splitlines()[-1] in line
    assert remedy in line.partition("Remedy: ")[2]
    assert (clone / "build" / "up.log").read_text() == said
    pip.says.clear()
    up.install("all")  # nothing of the failure stays in the way
    assert "-m pip install" in pip.ran[-1]


def test_a_python_without_venv_is_one_line_with_a_remedy(
    clone: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    installer(clone, monkeypatch, import_pip="No module named pip")
    monkeypatch.setattr(up.importlib.util, "find_spec", lambda name: None)
    assert up.main(["test"]) == 1
    [line] = capsys.readouterr().err.splitlines()
    assert f"apt install python3.{sys.version_info[1]}-venv" in line


@pytest.mark.parametrize(("version", "system", "remedy"), [((3, 9, 2), "posix", "install one"), ((3, 12, 0), "nt", "wsl")])
def test_a_machine_that_is_not_enough_is_told_what_would_be(version: tuple[int, ...], system: str, remedy: str) -> None:
    with pytest.raises(up.UserError, match=rf"Remedy: .*{remedy}"):
        up.accept_python(version, system)
    up.accept_python((3, 11, 0), "posix")


def test_a_python_that_is_too_old_can_still_read_the_script() -> None:
    source = Path(up.__file__).read_text()
    ast.parse(source, feature_version=(3, 7))
    assert "from __future__ import annotations" not in source  # unknown to 3.6


def test_a_child_that_a_signal_ended_is_a_failure_as_a_shell_counts_it() -> None:
    dies = "import os, signal; os.kill(os.getpid(), signal.SIGTERM)"
    assert up.follow(sys.executable, "-c", dies) == 128 + 15
    assert up.follow(sys.executable, "-c", "raise SystemExit(3)") == 3


def test_the_script_runs_where_shoal_is_not_installed(tmp_path: Path) -> None:
    alone = subprocess.run(
        [sys.executable, "-I", "-S", up.__file__, "--help"], capture_output=True, text=True, cwd=tmp_path, check=True
    )
    assert "demo" in alone.stdout


def test_the_last_line_counts_the_tests_of_both_processes() -> None:
    whole = up.closing(
        "..\n==== 1 failed, 20 passed, 2 skipped, 15 deselected in 12.50s ====\n",
        "x\n3 passed, 1 skipped in 20.25s (0:00:20)\n",
    )
    assert whole == "==== 1 failed, 23 passed, 3 skipped, 15 deselected in 20.25s ===="
    assert up.closing("5 passed in 1.00s\n", "INTERNALERROR\n") == ""


def test_both_processes_are_heard_and_the_exit_code_is_of_the_one_that_failed(
    clone: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(up, "ROOT", clone)
    monkeypatch.setattr(up, "PYTHON", clone / "python")
    (clone / "tests" / "runs").mkdir(parents=True)
    (clone / "python").write_text(
        '#!/bin/sh\ncase "$3" in *runs) echo 2 passed in 1.00s;; *) echo 1 failed, 3 passed in 2.00s; exit 1;; esac\n'
    )
    (clone / "python").chmod(0o755)
    assert up.together() == 1
    assert capsys.readouterr().out.splitlines()[-1] == "==== 1 failed, 5 passed in 2.00s ===="
