"""What the documents say is so: every command they show can be typed, every job in them runs, every table is complete.

The one idea: a document that is not run is a rumour.
"""

from __future__ import annotations

import argparse
import ast
import os
import re
import shlex
import signal
import socket
import subprocess
import sys
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from subprocess import PIPE
from typing import Any

import pytest
from flower_standin import flwr_or_stand_in

import shoal
from shoal.aggregators.breakdown import NEEDS
from shoal.commands.arguments import parser
from shoal.commands.cli import ACTS
from shoal.jobs.catalog import find, named
from shoal.jobs.federated import Federated
from shoal.jobs.job import Job
from shoal.jobs.methods import METHODS
from shoal.jobs.methods.off_policy import OffPolicy
from shoal.jobs.reinforcement import Reinforcement
from shoal.jobs.settings import pairs, ranges, shown
from shoal.jobs.wraps import ATTACKS
from shoal.nets.models import mlp
from shoal.protocol.errors import UserError
from shoal.sweeps.space import check, space_of

ROOT = Path(__file__).resolve().parent.parent
DOCUMENTS = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
TABLES: Mapping[str, Job] = {"federated.md": Federated(mlp, 2), "rl_settings.md": Reinforcement("CartPole-v1")}
HEAD = "| setting | allowed | what it means | method |\n"
SHOWN = ("{'max_depth': 8}", "[GaussianNB(), ExtraTreeClassifier()]", "0.5")  # what the programs of bridges.md print
CONFLICT = re.compile(r"(<{7}|>{7}) |={7}$")  # of git, in a file whose conflicts were not resolved
METHOD = re.compile(r"method=(\w+)")
SHORT = {"rounds": 2, "total_timesteps": 2_000}


def blocks(document: Path, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", document.read_text(), re.MULTILINE | re.DOTALL)


def commands(document: Path) -> list[str]:
    """Lines that begin with shoal, in blocks without a language."""
    lines = [line.partition(" #")[0].strip() for block in blocks(document, "") for line in block.splitlines()]
    return [line for line in lines if line.startswith("shoal ") and not line.endswith("...]") and "JOB" not in line]


@pytest.mark.parametrize(("document", "line"), [(path.name, line) for path in DOCUMENTS for line in commands(path)])
def test_every_command_that_is_shown_can_be_typed(document: str, line: str) -> None:
    asked, rest = parser(ACTS).parse_known_args(shlex.split(line.replace(" ...", ""))[1:])
    assert [word for word in rest if word.startswith("-")] == []
    if asked.act is ACTS["sweep"]:
        swept = None if ".py:" in asked.job else find(asked.job)
        space = space_of(pairs([*asked.settings, *rest]), swept and swept.options())
        if swept:
            check(space, swept, bool(space.size))
    elif "settings" in asked and getattr(asked, "job", None):
        path = ROOT / asked.job
        job: Any = find(f"{path}:job") if path.is_file() and path.suffix == ".py" else None
        job = job or (find(asked.job) if ":" in asked.job or asked.job in ("digits", "cartpole") else None)
        if job:
            job.configured(pairs([*asked.settings, *rest]))


def test_the_page_on_sweeps_begins_with_a_program_of_ten_lines_that_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    first, journal, *_ = blocks(ROOT / "docs" / "sweeps.md", "python")
    assert len(first.splitlines()) <= 10
    for program in (first, journal):
        exec(program, {})
    found, importances = capsys.readouterr().out.splitlines()
    assert 0 <= float(found.split()[2]) < 5
    assert importances == "{'x': 1.0}"


def test_the_page_on_watching_begins_with_commands_that_run(tmp_path: Path) -> None:
    lines = blocks(ROOT / "docs" / "watching.md", "")[0].splitlines()
    assert len(lines) <= 10
    shoal = [sys.executable, "-m", "shoal"]
    simulated = subprocess.run([*shoal, *shlex.split(lines[0])[1:]], cwd=tmp_path, capture_output=True, text=True, check=True)
    assert "watch this run at http://127.0.0.1:" in simulated.stderr
    (tmp_path / "sweeps" / "latest").mkdir(parents=True)
    (tmp_path / "sweeps" / "latest" / "sweep.toml").write_text('job = "digits"\ngoal = "max:accuracy"\n')
    for line, names in ((lines[1], "latest"), (lines[2], "digits-")):
        words = [*shoal, *shlex.split(line)[1:]]
        with subprocess.Popen(words, cwd=tmp_path, stdout=subprocess.PIPE, text=True) as page:
            assert page.stdout is not None
            shown = page.stdout.readline()
            page.send_signal(signal.SIGINT)
            assert page.wait(60) == 0
        assert shown.startswith(f"shoal: {names}")
        assert " at http://127.0.0.1:" in shown


def test_the_page_for_python_runs_from_top_to_bottom(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    names: dict[str, Any] = {}
    for block in [*blocks(ROOT / "docs" / "python.md", "python"), blocks(ROOT / "README.md", "python")[-1]]:
        exec(block, names)
    assert names["run"].reason.startswith("stopped by stop_when")


def test_the_page_for_calls_runs_from_top_to_bottom(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    first, *rest = blocks(ROOT / "docs" / "tasks.md", "python")
    assert len(first.splitlines()) <= 10
    for at, block in enumerate([first, first + "".join(rest)]):
        (tmp_path / f"shown{at}.py").write_text(block)
        done = subprocess.run([sys.executable, f"shown{at}.py"], capture_output=True, text=True, check=False, timeout=120)
        assert (done.returncode, done.stderr) == (0, "")
        assert done.stdout.startswith("12.56636 1045")


def test_the_page_on_other_libraries_runs_from_top_to_bottom(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    programs = blocks(ROOT / "docs" / "bridges.md", "python")
    for at, block in enumerate(programs):
        assert len(block.splitlines()) <= 10
        (tmp_path / f"shown{at}.py").write_text(block)
        done = subprocess.run([sys.executable, f"shown{at}.py"], capture_output=True, text=True, check=False, timeout=120)
        assert (done.returncode, done.stderr) == (0, "")
        assert done.stdout.strip() == SHOWN[at]


def test_the_page_on_loading_runs_from_top_to_bottom(tmp_path: Path) -> None:
    first, *rest = blocks(ROOT / "docs" / "loading.md", "python")
    assert len(first.splitlines()) <= 10
    (tmp_path / "shown.py").write_text(first + "".join(rest))
    done = subprocess.run([sys.executable, "shown.py"], cwd=tmp_path, capture_output=True, text=True, check=False, timeout=120)
    assert (done.returncode, done.stderr) == (0, "")
    lines = done.stdout.splitlines()
    assert lines[:1] + lines[23:24] == ["0 (64, 28, 28)", "23 (52, 28, 28)"]
    assert lines[24] == "{'epoch': 1, 'batch': 6} [16, 17, 18]"


def test_the_page_on_schedules_begins_with_a_short_program_that_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    program = blocks(ROOT / "docs" / "scheduling.md", "python")[0]
    assert len(program.splitlines()) <= 10
    exec(program, {})
    assert re.fullmatch(r"200 clients in \d+ virtual minutes\n", capsys.readouterr().out)


def test_the_page_of_other_words_names_only_things_that_are_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    page = ROOT / "docs" / "known_as.md"
    [program] = blocks(page, "python")
    assert len(program.splitlines()) <= 10
    (tmp_path / "shown.py").write_text(program)
    done = subprocess.run([sys.executable, "shown.py"], capture_output=True, text=True, check=True, timeout=120)
    assert done.stdout == "49 [0, 1, 4, 9, 16]\n"
    ours = [row.split("|")[2] for row in page.read_text().splitlines() if row.startswith("| ")]
    words = [word for cell in ours for word in re.findall(r"`([^`]+)`", cell)]
    names = {name for word in words for name in re.findall(r"\bshoal\.(\w+)", word)}
    assert {"Pool", "Need", "sweep", "Client", "dask_get"} <= names
    assert [name for name in names if not hasattr(shoal, name)] == []
    methods = {name for word in words for name in re.findall(r"\bpool\.(\w+)", word)}
    assert {"map", "reduce", "gather"} <= methods
    assert [name for name in methods if not hasattr(shoal.Pool, name)] == []
    acts = {act for word in words for act in re.findall(r"(?:^|\d )shoal (\w+)", word)}
    assert {"sweep", "serve", "watch", "actor"} <= acts
    assert acts <= set(ACTS)
    flags = {flag for word in words if "mpirun" not in word for flag in re.findall(r"(?<!\S)--[a-z-]+", word)}
    assert [flag for flag in flags if flag not in said(parser(ACTS))] == []


def test_the_page_for_users_of_other_systems_of_rl_says_what_is_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every setting of the table is a method's, and a name of another system that is typed is answered with ours."""
    monkeypatch.chdir(tmp_path)
    page = ROOT / "docs" / "coming_from_rl.md"
    [program] = blocks(page, "python")
    assert len(program.splitlines()) <= 10
    (tmp_path / "shown.py").write_text(program)
    done = subprocess.run([sys.executable, "shown.py"], capture_output=True, text=True, check=True, timeout=120)
    assert re.fullmatch(r"4\d\d \(1,\)\n", done.stdout)
    names, _, settings = page.read_text().partition("## Settings")
    jobs = [Reinforcement("CartPole-v1", method=method) for method in Reinforcement("CartPole-v1").fitting()]
    ours = [row.split("|")[-2] for row in names.partition("## Names")[2].splitlines() if row.startswith("| ")]
    words = [word for cell in ours for word in re.findall(r"`([^`]+)`", cell)]
    known = {"method", "greedy"}.union(*(job.options() for job in jobs))
    assert {name for word in words for name in re.findall(r"(\w+)=", word)} <= known
    assert {act for word in words for act in re.findall(r"^shoal (\w+)", word)} <= set(ACTS)
    rows = [[cell.strip(" `") for cell in row.split("|")[1:-1]] for row in settings.splitlines() if row.startswith("| ")][1:]
    assert len(rows) > 25
    for *theirs, name, _ in rows:
        its = [job for job in jobs if name in job.options()]
        assert its, name
        for word in {word for word in theirs if word and word != name and not word.endswith("(PPO)")}:
            for job in its:
                with pytest.raises(UserError, match=f"unknown setting '{word}': did you mean {name}\\?"):
                    job.configured({word: "1"})


def said(parser: argparse.ArgumentParser) -> set[str]:
    """The options of a parser and of its commands."""
    choices = [action.choices for action in parser._actions if isinstance(action.choices, dict)]
    inner = [one for each in choices for one in each.values()]
    return {word for action in parser._actions for word in action.option_strings}.union(*map(said, inner))


def test_the_page_on_comparing_begins_with_a_short_program_that_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    page = ROOT / "docs" / "comparing.md"
    [program] = blocks(page, "python")
    assert len(program.splitlines()) <= 10
    names: dict[str, Any] = {}
    exec(program, names)
    [shown] = blocks(page, "text")
    assert numberless(str(names["found"])) == numberless(shown.strip())  # other builds of torch have other bits
    assert names["found"]["B"].verdict == "better"


def test_the_page_on_privacy_begins_with_a_short_program_that_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("dp_accounting", reason="the extra shoal[privacy] is not installed")
    monkeypatch.chdir(tmp_path)
    program = blocks(ROOT / "docs" / "privacy.md", "python")[0]
    assert len(program.splitlines()) <= 10
    exec(program, {})
    accuracy, epsilon = re.findall(r"[0-9.]+", capsys.readouterr().out)
    assert float(accuracy) > 0.2
    assert 7.5 < float(epsilon) <= 8


def test_the_page_on_serving_begins_with_a_short_program_that_runs(tmp_path: Path) -> None:
    program = blocks(ROOT / "docs" / "serving.md", "python")[0]
    assert len(program.splitlines()) <= 10
    port, other = free_port(), free_port()
    shell = f'[sys.executable, "-m", "shoal", "serve", str(run.folder), "--zmq", "tcp://127.0.0.1:{port}", "--port", "{other}"]'
    here = (
        program.replace("5557", str(port))
        .replace('["shoal", "serve", str(run.folder)]', shell)
        .replace("import sub", "import sys, sub")
    )
    (tmp_path / "shown.py").write_text(here + "assert server.wait(60) == 0\n")
    with subprocess.Popen(
        [sys.executable, "shown.py"], cwd=tmp_path, stdout=PIPE, stderr=PIPE, text=True, start_new_session=True
    ) as run:
        try:
            out, err = run.communicate(timeout=180)
        finally:
            with suppress(ProcessLookupError):
                os.killpg(run.pid, signal.SIGKILL)  # and the server, if the program failed
    assert (run.returncode, err) == (0, "")
    assert out.splitlines()[-1] == "(1, 10) 3"


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as found:
        port: int = found.getsockname()[1]
        return port


def numberless(text: str) -> str:
    return re.sub(r"[0-9.]+", "#", text)


JOBS = [
    (path, block) for path in DOCUMENTS for block in blocks(path, "python") if "\njob = " in block and path.name != "python.md"
]


@pytest.mark.parametrize(("document", "code"), [(path.name, code) for path, code in JOBS])
def test_every_job_that_is_shown_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, document: str, code: str) -> None:
    from shoal.runs.launch import Launch, launch, ready
    from shoal.runs.progress import Errors
    from shoal.runs.rundir import Config, RunDir

    monkeypatch.setattr(sys, "path", list(sys.path))
    if "flwr" in code:
        flwr_or_stand_in(monkeypatch)
    (tmp_path / "shown.py").write_text(code)
    job: Any = find(f"{tmp_path}/shown.py:job")
    sys.modules.pop("shown", None)
    job = job.configured({job.method.end: SHORT[job.method.end]})
    (tmp_path / "run").mkdir()
    with ready(Launch(job, Config("shown", actors=0, settings=job.plain()), RunDir(tmp_path / "run"))) as begun:
        end = launch(begun, Errors(sys.stderr))
    assert (end.reason, end.summary["version"] > 0) == ("done", True)


def test_the_readme_shows_the_examples_as_they_are() -> None:
    federated, reinforcement, _ = blocks(ROOT / "README.md", "python")
    assert (ROOT / "examples" / "my_federated.py").read_text().endswith(f'"""\n\n{federated}')
    example = ast.unparse(ast.parse((ROOT / "examples" / "my_rl.py").read_text()))
    for node in ast.parse(reinforcement).body:
        if isinstance(node, ast.FunctionDef):
            assert ast.unparse(node) in example


def test_the_page_on_what_is_one_s_own_shows_the_example_as_it_is() -> None:
    rule = blocks(ROOT / "docs" / "own.md", "python")[0]
    assert (ROOT / "examples" / "trimmed_mean.py").read_text().endswith(f'"""\n\n{rule}')


@pytest.mark.parametrize(("document", "job"), TABLES.items())
def test_every_setting_is_in_the_table_as_it_is(document: str, job: Job) -> None:
    assert (ROOT / "docs" / document).read_text().endswith(table(job)), "python tests/test_documents.py writes it anew"


def table(job: Job) -> str:
    """Settings of every method that fits the job, then those of its other parts. A setting whose default or meaning differs
    between methods has a row for each."""
    methods = job.fitting()
    first, *rest = job.described()
    whose: dict[tuple[str, str, str], list[str]] = {(f"`{first[0]}`", *first[1:]): methods}
    for method in methods:
        for name, allowed in ranges(METHODS[method]).items():
            row = (f"`{name}={shown(allowed.default)}`", str(allowed), allowed.about)
            whose.setdefault(row, []).append(method)
    own = ranges(job.method)
    for word, allowed, what in rest:
        if word.partition("=")[0] not in own:
            whose[f"`{word}`", allowed, what] = methods
    rows = "".join(f"| {' | '.join(row)} | {told(its, methods)} |\n" for row, its in whose.items())
    return f"{HEAD}|---|---|---|---|\n{rows}"


def told(its: list[str], methods: list[str]) -> str:
    """The methods in few words: those that have the setting, or those that lack it, so that a row need not change with each."""
    off_policy = [method for method in methods if issubclass(METHODS[method], OffPolicy)]
    lack = [method for method in methods if method not in its]
    if not lack:
        return "all"
    if off_policy and off_policy in (its, lack):
        return "off-policy" if its == off_policy else "all but off-policy"
    return f"all but {', '.join(lack)}" if len(lack) < len(its) else ", ".join(its)


def test_the_page_on_malicious_clients_begins_with_a_short_program_and_has_every_rule_and_attack() -> None:
    page = ROOT / "docs" / "robust.md"
    assert len(blocks(page, "python")[0].splitlines()) <= 10
    text = page.read_text()
    assert [rule for rule in NEEDS if f"| `{rule}` |" not in text] == []
    assert [attack for attack in ATTACKS if f"`{attack}`" not in text] == []


def test_every_federated_method_has_a_curve_that_a_page_shows() -> None:
    pages, pictures = "".join(page.read_text() for page in DOCUMENTS), named(f"{ROOT}/docs/curves.py:PICTURES")
    assert [picture for picture in pictures if f"]({picture})" not in pages] == []
    assert [picture for picture in pictures if not (ROOT / "docs" / picture).is_file()] == []
    commands = [command for each in pictures.values() for command in each]
    drawn = {found[1] if (found := re.search(r"\bmethod=(\w+)", command)) else "fedavg" for command in commands}
    assert drawn == set(TABLES["federated.md"].fitting())


def test_every_method_of_reinforcement_learning_has_tests_a_curve_and_a_figure() -> None:
    page, pictures = ROOT / "docs" / "reinforcement.md", named(f"{ROOT}/docs/curves.py:RL")
    rows = re.findall(r"^\| `(\w+)` \| (.+) \| (.+) \| (.+) \| (.+) \|$", page.read_text().partition("## Curves")[2], re.M)
    assert [method for method, *_ in rows] == TABLES["rl_settings.md"].fitting()
    drawn = {found[1] for command in " ".join(map(" ".join, pictures.values())).split() if (found := METHOD.match(command))}
    assert {method for method, *_ in rows} - drawn == {"ppo", "es", "r2d2"}  # which their jobs name
    for method, tests, curve, published, here in rows:
        files = re.findall(r"`([\w/.]+\.py)`", tests)
        assert files, method
        assert [file for file in files if not (ROOT / "tests" / file).is_file()] == []
        [picture] = re.findall(r"\]\((\w+\.png)\)", curve)
        assert picture in pictures
        assert (ROOT / "docs" / picture).is_file()
        assert re.search(r"\d", published), method
        assert re.search(r"\d", here), method


def test_every_kind_of_report_is_explained() -> None:
    sources = [path for room in ("coordinator", "scripts") for path in (ROOT / room).rglob("*.py")]
    kinds = {kind for path in sources for kind in re.findall(r'Report\(\s*"([a-z]+)"', path.read_text())}
    explained = set(re.findall(r"^\| `([a-z]+)` \|", (ROOT / "docs" / "running.md").read_text(), re.MULTILINE))
    assert {"failed", "lost"} <= kinds <= explained


def test_no_document_has_the_marks_of_a_conflict() -> None:
    pages = [*DOCUMENTS, *(ROOT / name for name in ("CHANGELOG.md", "DESIGN.md", "benchmarks/README.md"))]
    found = [(page.name, line) for page in pages for line in page.read_text().splitlines() if CONFLICT.match(line)]
    assert found == []
    assert all(map(CONFLICT.match, ("<<<<<<< HEAD", "=======", ">>>>>>> 321f97d (words)")))
    assert not any(map(CONFLICT.match, ("= a rule", "========", "a <<<<<<< b")))


def test_every_link_leads_somewhere() -> None:
    for document in [*DOCUMENTS, ROOT / "DESIGN.md"]:
        for target in re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", document.read_text()):
            assert (document.parent / target).exists(), f"{document.name}: {target}"


if __name__ == "__main__":
    for name, job in TABLES.items():
        document = ROOT / "docs" / name
        document.write_text(document.read_text().partition(HEAD)[0] + table(job))
