"""The rooms, their floors and what may not be said in them, read from the sources with `ast`.

The one idea: a rule of the house that is not a test is a wish. Every rule here is also shown to catch a breach of it.
"""

from __future__ import annotations

import ast
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterable, Iterator, Mapping
from graphlib import TopologicalSorter
from pathlib import Path
from typing import Any, NamedTuple

import pytest

ROOT = Path(__file__).resolve().parent.parent
LINKS = ROOT / "tests" / "links" / "shoal"
PROJECT: Mapping[str, Any] = tomllib.loads((ROOT / "pyproject.toml").read_text())
PACKED: Mapping[str, str] = PROJECT["tool"]["setuptools"]["package-dir"]
CHECKOUT: Mapping[str, str] = {"shoal.simulation": "simulation", "shoal.faults": "tests/faults"}  # no part of the wheel
FOLDERS: Mapping[str, str] = {**PACKED, **CHECKOUT}

# Which rooms a room may import from, beside its own. The command line and the benchmarks stand on top and may use all.
MAY_IMPORT: Mapping[str, frozenset[str]] = {
    "protocol": frozenset(),
    "envs": frozenset({"protocol"}),
    "nets": frozenset({"protocol", "envs"}),
    "aggregators": frozenset({"protocol", "envs", "nets"}),
    "coordinator": frozenset({"protocol", "envs", "nets", "aggregators"}),
    "actors": frozenset({"protocol", "envs", "nets"}),
    "scripts": frozenset({"protocol", "envs", "nets", "aggregators", "coordinator", "actors", "benchmarks"}),
    "benchmarks": frozenset({"protocol", "envs", "nets", "aggregators", "coordinator", "actors", "scripts", "tests/faults"}),
    "simulation": frozenset({"protocol", "envs", "nets", "aggregators", "coordinator", "actors", "scripts"}),
    "tests/faults": frozenset(
        {"protocol", "envs", "nets", "aggregators", "coordinator", "actors", "scripts", "benchmarks", "simulation"}
    ),
}
DECIDING = ("shoal.coordinator.deciding", "shoal.actors.session")  # and all they import in their rooms
NOT_FOR_DECIDING = frozenset({"asyncio", "msgpack", "numpy", "psutil", "socket", "threading", "time", "torch", "zmq"})
EDGE = ("shoal", "shoal.protocol", "shoal.actors.session", "shoal.actors.loop", "shoal.commands.cli", "shoal.__main__")
CORE_IMPORTS = frozenset({"zmq", "msgpack", "numpy", "psutil"})  # import names of [project.dependencies]
TRUSTED = "shoal.protocol.trusted"  # the only file that pickles
USE_JOBLIB = (
    "shoal.tasks.backend",
    "shoal.benchmarks.peers.pools",
)  # joblib's backend and the script of a peer: they load nothing
OPENS = ("shoal.actors.workers.call", "shoal.tasks.")  # what may open what it has pickled: a program's own forks, and its pool
UNSAFE_MODULES = frozenset({"cloudpickle", "dill", "joblib", "marshal", "pickle", "shelve"})
UNSAFE_CALLS = frozenset({"eval", "exec", "time.sleep", "torch.load", "torch.save", "yaml.load"})
UNSAFE_METHODS = frozenset({"recv_pyobj", "send_pyobj", "recv_serialized"})
BANNED_NAMES = frozenset({"manager", "handler", "helper", "helpers", "util", "utils", "engine", "context", "service", "base"})


class Module(NamedTuple):
    name: str  # as it is imported
    path: Path
    room: str
    tree: ast.Module

    @property
    def package(self) -> str:
        return self.name if self.path.name == "__init__.py" else self.name.rpartition(".")[0]


class Import(NamedTuple):
    line: int
    name: str  # the module it brings in
    eager: bool  # at import time, not inside a function or for type checkers alone


def read(name: str, path: Path, room: str) -> Module:
    return Module(name, path, room, ast.parse(path.read_text(), str(path)))


def house() -> Iterator[Module]:
    for package, folder in FOLDERS.items():
        for path in sorted((ROOT / folder).rglob("*.py")):
            steps = path.relative_to(ROOT / folder).with_suffix("").parts
            yield read(".".join((package, *(s for s in steps if s != "__init__"))), path, folder)


MODULES = tuple(house())
# A thin script that is named like a room (scripts/coordinator.py) is run by its path; the room has the name.
BY_NAME: Mapping[str, Module] = {m.name: m for m in sorted(MODULES, key=lambda m: m.room != "scripts")}


def imports(module: Module, known: Iterable[str] = BY_NAME.keys()) -> Iterator[Import]:
    def visit(node: ast.AST, eager: bool) -> Iterator[Import]:
        for child in ast.iter_child_nodes(node):
            match child:
                case ast.Import():
                    yield from (Import(child.lineno, alias.name, eager) for alias in child.names)
                case ast.ImportFrom():
                    source = absolute(child, module.package)
                    for alias in child.names:
                        whole = f"{source}.{alias.name}"
                        yield Import(child.lineno, whole if whole in known else source, eager)
                case ast.FunctionDef() | ast.AsyncFunctionDef():
                    yield from visit(child, False)
                case ast.If(test=ast.Name(id="TYPE_CHECKING") | ast.Attribute(attr="TYPE_CHECKING")):
                    yield from visit(child, False)
                case _:
                    yield from visit(child, eager)

    yield from visit(module.tree, True)


def absolute(node: ast.ImportFrom, package: str) -> str:
    """`from . import x` in full."""
    steps = package.split(".")[: len(package.split(".")) - max(node.level - 1, 0)] if node.level else []
    return ".".join([*steps, *([node.module] if node.module else [])])


def room_of(name: str) -> str | None:
    """The room of an imported name; None for what is not ours, and for `shoal` itself, which holds a version and no more."""
    if name == "shoal" or not name.startswith("shoal."):
        return None
    return next((FOLDERS[p] for p in sorted(FOLDERS, key=len, reverse=True) if name == p or name.startswith(f"{p}.")), None)


def where(module: Module, line: int) -> str:
    return f"{module.path.relative_to(ROOT) if module.path.is_absolute() else module.path}:{line}"


def broken_floors(module: Module) -> list[str]:
    return [
        f"{where(module, found.line)} imports {found.name}: {module.room}/ may import from "
        f"{', '.join(sorted(MAY_IMPORT[module.room])) or 'nothing'} and itself"
        for found in imports(module)
        if (room := room_of(found.name)) is not None and room != module.room and room not in MAY_IMPORT[module.room]
    ]


def with_parents(name: str) -> list[str]:
    """Importing a.b.c runs a, a.b and a.b.c."""
    steps = name.split(".")
    return [".".join(steps[: n + 1]) for n in range(len(steps))]


def closure(roots: Iterable[str], own_room: bool) -> dict[str, Module]:
    """Everything of ours that importing the roots runs; with own_room, only what lies in the importer's room."""
    found: dict[str, Module] = {}
    waiting = [
        m.name for m in BY_NAME.values() if any(m.name == r or (r != "shoal" and m.name.startswith(f"{r}.")) for r in roots)
    ]
    while waiting:
        for name in with_parents(waiting.pop()):
            if name in BY_NAME and name not in found:
                module = found[name] = BY_NAME[name]
                waiting += [i.name for i in imports(module) if i.eager and (not own_room or room_of(i.name) == module.room)]
    return found


def impure(module: Module) -> list[str]:
    """In a deciding half: imports of what waits, computes or tells the time; or of more of the house than protocol/."""
    return [
        f"{where(module, found.line)} imports {found.name}: what decides is handed facts and `now`"
        for found in imports(module)
        if found.name.split(".")[0] in NOT_FOR_DECIDING or room_of(found.name) not in (None, "protocol", module.room)
    ]


def unsafe(module: Module) -> list[str]:
    """What could run a peer's code, waits for no reason, or hides a mistake of ours."""
    allowed = {"pickle", "cloudpickle"} if module.name == TRUSTED else set()
    allowed |= {"joblib"} if module.name in USE_JOBLIB else set()
    found = [(i.line, i.name) for i in imports(module) if i.name.split(".")[0] in UNSAFE_MODULES - allowed]
    if not module.name.startswith(OPENS):
        found += [(i.line, i.name) for i in imports(module) if i.name == TRUSTED]
    for node in ast.walk(module.tree):
        match node:
            case ast.Call(func=callee) if (called := ast.unparse(callee)) in UNSAFE_CALLS:
                found.append((node.lineno, called))
            case ast.Attribute(attr=method) if method in UNSAFE_METHODS:
                found.append((node.lineno, method))
            case ast.keyword(arg="allow_pickle", value=value) if ast.unparse(value) != "False":
                found.append((node.value.lineno, "allow_pickle"))
            case ast.ExceptHandler(type=None):
                found.append((node.lineno, "a bare except"))
            case ast.Call(func=callee, args=[ast.Name(id="Exception" | "BaseException")]) if "suppress" in ast.unparse(callee):
                found.append((node.lineno, "suppress(Exception)"))
            case ast.ImportFrom(module="time" | "torch", names=names) if {a.name for a in names} & {"sleep", "load", "save"}:
                found.append((node.lineno, f"from {node.module} import {', '.join(a.name for a in names)}"))
    return [f"{where(module, line)}: {what}" for line, what in found]


def misnamed(module: Module) -> list[str]:
    definitions = (n for n in ast.walk(module.tree) if isinstance(n, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef))
    names = [(1, module.path.stem), *((node.lineno, node.name) for node in definitions)]
    return [f"{where(module, line)}: {name}" for line, name in names if words(name) & BANNED_NAMES]


def words(name: str) -> set[str]:
    return {word.lower() for word in re.findall(r"[A-Z]?[a-z]+|[A-Z]+(?![a-z])", name)}


def written(source: str, name: str = "shoal.protocol.planted") -> Module:
    """A module that is not on disk."""
    room = room_of(name)
    assert room is not None
    return Module(name, Path(room) / "planted.py", room, ast.parse(source))


def test_the_package_list_is_the_folders() -> None:
    with_code = {
        ".".join((package, *folder.relative_to(ROOT / top).parts))
        for package, top in PACKED.items()
        for folder in [ROOT / top, *(p for p in (ROOT / top).rglob("*") if p.is_dir())]
        if any(folder.glob("*.py"))
    }
    assert set(PROJECT["tool"]["setuptools"]["packages"]) == with_code
    assert all((m.path.parent / "__init__.py").exists() for m in MODULES)


def test_every_room_and_every_module_of_scripts_has_its_link_for_the_type_checkers() -> None:
    rooms = {p.removeprefix("shoal."): ROOT / folder for p, folder in FOLDERS.items() if p != "shoal"}
    inner = {path.parent.name: path.parent for path in (ROOT / "scripts").glob("*/__init__.py")}
    scripts = {path.name: path for path in (ROOT / "scripts").glob("*.py") if path.stem not in rooms | inner}
    assert {link.name: link.resolve() for link in LINKS.iterdir()} == rooms | inner | scripts
    assert all(link.is_symlink() and not link.readlink().is_absolute() for link in LINKS.iterdir())


def test_beside_a_clone_that_is_called_shoal_the_package_is_what_lies_in_it(tmp_path: Path) -> None:
    (tmp_path / "shoal").symlink_to(ROOT)
    code = "import shoal, shoal.runs, shoal.coordinator as c; print(shoal.__file__, c.__file__, shoal.__version__)"
    for words in (["-c", code], ["-m", "shoal", "--version"]):
        done = subprocess.run([sys.executable, *words], cwd=tmp_path, capture_output=True, text=True, check=False)
        assert (done.returncode, done.stderr) == (0, "")
        *places, version = done.stdout.split()
        assert version == PROJECT["project"]["version"]
        assert all(place == "shoal" or Path(place).is_relative_to(tmp_path) for place in places)


def test_no_script_hides_a_module_of_the_standard_library() -> None:
    # `python scripts/up.py` puts scripts/ first on the path: scripts/signal.py would be everybody's signal.
    assert not {path.stem for path in (ROOT / "scripts").glob("*.py")} & set(sys.stdlib_module_names)


def test_the_version_is_told_once() -> None:
    [told] = [
        n.value
        for n in ast.walk(BY_NAME["shoal"].tree)
        if isinstance(n, ast.Assign) and ast.unparse(n.targets[0]) == "__version__"
    ]
    assert ast.literal_eval(told) == PROJECT["project"]["version"]


def test_every_dependency_has_a_pin() -> None:
    extras = PROJECT["project"]["optional-dependencies"]
    wanted = {
        distribution(d) for d in [*PROJECT["project"]["dependencies"], *(each for extra in extras.values() for each in extra)]
    } - {"shoal"}
    pinned = [line.partition("==") for line in (ROOT / "constraints.txt").read_text().split("\n") if line and line[0] != "#"]
    assert wanted <= {name for name, _, _ in pinned}
    assert all(version for _, _, version in pinned)


def distribution(requirement: str) -> str:
    match = re.match(r"[A-Za-z0-9._-]+", requirement)
    assert match is not None
    return re.sub(r"[-_.]+", "-", match[0]).lower()


def test_test_modules_have_names_of_their_own() -> None:
    # pytest's default import mode knows a test module by its base name alone
    names = [path.name for path in (ROOT / "tests").rglob("test_*.py")]
    assert sorted(names) == sorted(set(names))


def test_every_room_imports_from_lower_floors_only() -> None:
    assert [breach for module in MODULES for breach in broken_floors(module)] == []


def test_what_decides_neither_waits_nor_computes_nor_tells_the_time() -> None:
    deciding = closure(DECIDING, own_room=True)
    deciding.pop("shoal", None)
    assert "shoal.coordinator.deciding.plans" in deciding
    assert [breach for module in deciding.values() for breach in impure(module)] == []


def test_modules_that_decide_import_each_other_in_one_direction_types_included() -> None:
    ours = [module for module in MODULES if module.name.startswith("shoal.coordinator.deciding.")]
    graph = {module.name: {found.name for found in imports(module)} & {one.name for one in ours} for module in ours}
    assert list(TopologicalSorter(graph).static_order())  # raises CycleError


def test_what_an_edge_actor_imports_needs_the_core_dependencies_only() -> None:
    edge = closure(EDGE, own_room=False)
    assert "shoal.protocol.layout" in edge
    allowed = CORE_IMPORTS | sys.stdlib_module_names | {"shoal"}
    outside = [(m, i) for m in edge.values() for i in imports(m) if i.eager and i.name.split(".")[0] not in allowed]
    assert [f"{where(module, found.line)} imports {found.name}" for module, found in outside] == []


def test_an_edge_actor_starts_without_torch() -> None:
    modules = sorted(m.name for m in closure(EDGE, own_room=False).values() if m.name != "shoal.__main__")
    heavy = "{'torch', 'gymnasium', 'sklearn', 'matplotlib', 'tensorboard', 'rich'}"
    code = f"import sys, importlib as i\nfor m in {modules}: i.import_module(m)\nprint(sorted({heavy} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (done.stdout, done.stderr) == ("[]\n", "")


def test_nothing_in_the_house_is_unsafe_or_hides_mistakes() -> None:
    plants = "shoal.simulation.mutants"  # it plants faults in our own sources, and executes what comes of that
    assert [breach for module in MODULES if module.name != plants for breach in unsafe(module)] == []


def test_things_have_names_that_say_what_they_are() -> None:
    assert [breach for module in MODULES for breach in misnamed(module)] == []


@pytest.mark.parametrize(
    ("importer", "line"),
    [
        ("shoal.protocol.x", "from shoal.envs import flat"),
        ("shoal.envs.x", "import shoal.aggregators.fedavg"),
        ("shoal.aggregators.x", "from shoal.coordinator.deciding.core import Coordinator"),
        ("shoal.actors.x", "from shoal import coordinator"),
        ("shoal.actors.x", "def f():\n    import shoal.aggregators"),
        ("shoal.actors.workers.x", "from ...coordinator import core"),
        ("shoal.coordinator.x", "import shoal.actors.session"),
        ("shoal.coordinator.x", "import shoal.commands.cli"),
        ("shoal.coordinator.deciding.plans.x", "import shoal.benchmarks"),
    ],
)
def test_a_line_that_breaks_a_floor_is_found(importer: str, line: str) -> None:
    assert len(broken_floors(written(line, importer))) == 1


@pytest.mark.parametrize(
    ("importer", "line"),
    [
        ("shoal.envs.x", "import shoal.protocol.layout"),
        ("shoal.coordinator.x", "from shoal import __version__"),
        ("shoal.actors.workers.x", "from shoal.actors import Worker"),
        ("shoal.actors.workers.x", "from .. import loop"),
        ("shoal.commands.cli", "import shoal.coordinator.deciding.core, shoal.actors.session, shoal.benchmarks"),
    ],
)
def test_a_line_that_keeps_to_its_floor_is_not(importer: str, line: str) -> None:
    assert broken_floors(written(line, importer)) == []


@pytest.mark.parametrize(
    "line",
    [
        "import time",
        "from time import monotonic",
        "import numpy as np",
        "import zmq.sugar",
        "import shoal.nets.flat",
        "import threading",
    ],
)
def test_a_deciding_half_that_does_something_is_found(line: str) -> None:
    assert len(impure(written(line, "shoal.coordinator.deciding.core"))) == 1


@pytest.mark.parametrize(
    "line",
    [
        "import pickle",
        "from shoal.protocol import trusted",
        "from shoal.protocol.trusted import opened",
        "from joblib import load",
        "socket.recv_pyobj()",
        "torch.load(path)",
        "from torch import load",
        "np.load(path, allow_pickle=True)",
        "eval(text)",
        "yaml.load(text)",
        "time.sleep(1)",
        "from time import sleep",
        "try: f()\nexcept: pass",
        "with contextlib.suppress(Exception): f()",
    ],
)
def test_an_unsafe_line_is_found(line: str) -> None:
    assert len(unsafe(written(line))) == 1


@pytest.mark.parametrize(
    "line", ["model.eval()", "np.load(path, allow_pickle=False)", "try: f()\nexcept KeyError: pass", "poller.poll(1)"]
)
def test_a_safe_line_is_not(line: str) -> None:
    assert unsafe(written(line)) == []


@pytest.mark.parametrize(
    "line", ["class ActorManager: ...", "def base_url(): ...", "def io_utils(): ...", "class ZMQContext: ..."]
)
def test_a_name_that_says_nothing_is_found(line: str) -> None:
    assert len(misnamed(written(line))) == 1


def test_names_that_only_look_alike_are_not() -> None:
    assert misnamed(written("def handle(): ...\nclass Database: ...\ndef rebased(): ...")) == []
