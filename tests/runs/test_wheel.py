"""A wheel built from this tree works elsewhere: in an empty venv, from another folder, with the core dependencies alone."""

from __future__ import annotations

import shutil
import subprocess
import sys
import venv
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
NOT_SOURCES = shutil.ignore_patterns(".*", "build", "dist", "*.egg-info", "__pycache__", "tests")


def not_sources(folder: str, names: list[str]) -> set[str]:
    """What a wheel is not built from; `runs` is a folder of runs in the root, and a room in scripts/."""
    return set(NOT_SOURCES(folder, names)) | ({"runs", "sweeps"} & set(names) if Path(folder) == ROOT else set())


def said(*command: str | Path, cwd: Path) -> str:
    done = subprocess.run(command, cwd=cwd, capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"{command}\n{done.stdout}{done.stderr}"
    return done.stdout


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Built from a copy: setuptools keeps what it built before in build/, and would pack what is long gone."""
    folder = tmp_path_factory.mktemp("wheel")
    shutil.copytree(ROOT, folder / "tree", ignore=not_sources)
    said(sys.executable, "-m", "pip", "wheel", "--no-deps", "--wheel-dir", folder, folder / "tree", cwd=folder)
    [built] = folder.glob("shoal-*.whl")
    return built


@pytest.fixture(scope="module")
def python(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The Python of a venv that holds the wheel and what it asks for, nothing else."""
    folder = tmp_path_factory.mktemp("elsewhere")
    venv.create(folder / "venv", with_pip=False, symlinks=True)
    inside = folder / "venv" / "bin" / "python"
    said(
        sys.executable, "-m", "pip", "--python", inside, "install", "--constraint", ROOT / "constraints.txt", wheel, cwd=folder
    )
    return inside


@pytest.mark.slow
def test_a_wheel_holds_every_module_the_pins_of_peers_and_the_mark_that_it_is_typed(wheel: Path) -> None:
    names = zipfile.ZipFile(wheel).namelist()
    rooms = ("protocol", "envs", "nets", "aggregators", "actors", "coordinator", "benchmarks")
    modules = {f"shoal/{path.relative_to(ROOT)}" for room in rooms for path in (ROOT / room).rglob("*.py")}
    modules |= {f"shoal/{path.relative_to(ROOT / 'scripts')}" for path in (ROOT / "scripts").rglob("*.py")}
    pins = {f"shoal/{path.relative_to(ROOT)}" for path in (ROOT / "benchmarks" / "peers").glob("*.txt")}
    page = {f"shoal/{path.relative_to(ROOT / 'scripts')}" for path in (ROOT / "scripts" / "watching" / "static").iterdir()}
    assert {name for name in names if name.startswith("shoal/")} == modules | pins | page | {"shoal/py.typed"}


@pytest.mark.slow
def test_an_edge_actor_needs_the_core_dependencies_only(python: Path, tmp_path: Path) -> None:
    (tmp_path / "envs").mkdir()  # a user's own folder of that name is none of shoal's business
    code = "import shoal.protocol.layout as l, importlib.util as u; print(l.__file__, u.find_spec('torch'))"
    path, torch = said(python, "-c", code, cwd=tmp_path).split()
    assert Path(path).is_relative_to(python.parents[1])
    assert torch == "None"


@pytest.mark.slow
def test_the_command_answers_without_torch(python: Path, tmp_path: Path) -> None:
    version = wheel_version(python, tmp_path)
    assert version in said(python, "-m", "shoal", "--version", cwd=tmp_path)
    assert version in said(python.parent / "shoal", "--version", cwd=tmp_path)


def wheel_version(python: Path, cwd: Path) -> str:
    return said(python, "-c", "from importlib.metadata import version; print(version('shoal'))", cwd=cwd).strip()
