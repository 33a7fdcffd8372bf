"""What survives what: real processes, killed and stopped."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import psutil
import pytest

from shoal.benchmarks.booked import Accepted, records
from shoal.coordinator.store import newest

SHOAL = [sys.executable, "-m", "shoal"]
LONG = ["rounds=100000", "eval_every=0"]
LIMIT = 60.0  # seconds until a test gives up


class Process:
    """A command with what it said so far."""

    def __init__(self, folder: Path, *words: str) -> None:
        self.log = folder / f"log-{len(list(folder.glob('log-*')))}"
        self.out = folder / (self.log.name + ".out")
        with self.log.open("wb") as err, self.out.open("wb") as out:
            self.child = subprocess.Popen([*SHOAL, *words], cwd=folder, stderr=err, stdout=out, start_new_session=True)
        self.ps = psutil.Process(self.child.pid)

    def said(self) -> str:
        return self.log.read_text(errors="replace") + self.out.read_text(errors="replace")

    def until(self, pattern: str) -> re.Match[str]:
        found: list[re.Match[str] | None] = [None]

        def look() -> bool:
            found[0] = re.search(pattern, self.said())
            assert found[0] is not None or self.child.poll() is None, f"ended without {pattern!r}:\n{self.said()}"
            return found[0] is not None

        wait_until(look, lambda: f"{pattern!r} in:\n{self.said()}")
        assert found[0] is not None
        return found[0]

    def result(self) -> dict[str, object]:
        self.child.wait(LIMIT)
        return json.loads(self.out.read_text().splitlines()[-1])


def wait_until(holds: Callable[[], bool], what: Callable[[], str] = lambda: "") -> None:
    ends_at = time.monotonic() + LIMIT
    while not holds():
        assert time.monotonic() < ends_at, f"waited {LIMIT} s for {what()}"
        time.sleep(0.02)


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Callable[..., Process]]:
    started: list[Process] = []

    def begin(*words: str) -> Process:
        started.append(Process(tmp_path, *words))
        return started[-1]

    yield begin
    for process in started:
        if process.child.poll() is None:
            os.killpg(process.child.pid, signal.SIGKILL)
            process.child.wait()


def actors_of(process: Process) -> list[psutil.Process]:
    """Grandchildren: the pool's children."""
    return [actor for pool in process.ps.children() for actor in pool.children()]


def test_an_actor_killed_mid_run_is_noticed_and_nothing_is_counted_twice(start, tmp_path):
    run = start("simulate", "digits", "rounds=400", "eval_every=0", "--actors", "3", "--json", "--run-dir", "killed")
    run.until("joined as actor 2")
    rows = tmp_path / "killed" / "metrics.jsonl"
    wait_until(lambda: rows.exists() and rows.stat().st_size > 0)
    victim = actors_of(run)[0]
    victim.kill()
    killed_at = time.monotonic()
    run.until(rf"ended \(process {victim.pid}\)")
    assert time.monotonic() - killed_at < 1.0 + 0.5  # a second to notice; the rest is this test's own looking
    run.until(r"another takes its place")
    run.until(r"joined as actor \d[\s\S]* joined as actor \d[\s\S]* joined as actor \d[\s\S]* joined as actor \d")
    result = run.result()
    assert result["version"] == 400
    assert result["contributions"] == 400 * 10
    plain = start("simulate", "digits", "rounds=400", "eval_every=0", "--actors", "0", "--json", "--run-dir", "plain")
    assert plain.result()["weights_sha256"] == result["weights_sha256"]


@pytest.mark.parametrize("settings", [(), ("compress_weights=randk",)], ids=["whole", "told"])
def test_ctrl_c_leaves_no_process_and_resume_ends_with_the_same_bits_as_an_unbroken_run(start, tmp_path, settings):
    words = ("simulate", "digits", "rounds=300", *settings, "--actors", "2", "--json", "--run-dir")
    unbroken, run = start(*words, "unbroken"), start(*words, "broken")
    run.until("joined as actor 1")
    rows = tmp_path / "broken" / "metrics.jsonl"
    wait_until(lambda: rows.exists() and rows.stat().st_size > 0)
    family = run.ps.children(recursive=True)
    assert len(family) == 3
    run.child.send_signal(signal.SIGINT)
    stopped = run.result()
    assert 0 < stopped["version"] < 300
    assert run.child.returncode == 130
    assert not [one for one in family if one.is_running() and one.status() != psutil.STATUS_ZOMBIE]
    resumed = start("resume", "broken", "--json").result()
    assert resumed["version"] == 300
    assert resumed["weights_sha256"] == unbroken.result()["weights_sha256"]


@pytest.mark.parametrize("words", [("simulate", "digits", "--actors", "2", *LONG)])
def test_killing_the_parent_leaves_no_orphan(start, words):
    run = start(*words)
    run.until("joined as actor 1")
    family = run.ps.children(recursive=True)
    assert len(family) == 3
    run.child.kill()
    wait_until(lambda: not any(one.is_running() for one in family))


def test_killing_the_pool_takes_its_actors_with_it(start):
    run = start("simulate", "digits", "--actors", "2", *LONG)
    run.until("joined as actor 1")
    family = actors_of(run)
    run.ps.children()[0].kill()
    wait_until(lambda: not any(one.is_running() for one in family))


def test_actors_join_a_coordinator_late_and_leave_when_it_is_done(start):
    coordinator = start("coordinator", "digits", "rounds=60", "--bind", "tcp://127.0.0.1:*", "--json")
    address = coordinator.until(r"listening on (\S+);")[1]
    early = start("actor", address, "--name", "early")
    coordinator.until("early joined as actor 0")
    late = start("actor", address, "--count", "2", "--name", "late")
    result = coordinator.result()
    assert result["version"] == 60
    assert early.child.wait(LIMIT) == 0
    assert late.child.wait(LIMIT) == 0


def test_an_actor_started_first_says_that_nobody_answers_and_keeps_trying(start, tmp_path):
    lonely = start("actor", f"ipc://{tmp_path}/nobody", "--name", "lonely")
    lonely.until(r"no answer from ipc://\S+ for [5-9] s; trying on")
    assert lonely.child.poll() is None
    lonely.child.send_signal(signal.SIGTERM)
    assert lonely.child.wait(LIMIT) == 0


def test_a_coordinator_killed_again_and_again_ends_with_the_same_bits(start, tmp_path):
    """Restarted by its supervisor at the same address; actors find it again by themselves."""
    words = (
        "coordinator",
        "digits",
        "rounds=200",
        "eval_every=0",
        "snapshot_every=0.5",
        "--json",
        "--bind",
        "tcp://127.0.0.1:*",
    )
    run = start(*words, "--restart", "--run-dir", "killed")
    address = run.until(r"listening on (\S+);")[1]
    start("actor", address, "--count", "2")
    rows = tmp_path / "killed" / "metrics.jsonl"
    for kills in range(3):
        grown = rows.stat().st_size if rows.exists() else 0
        wait_until(lambda grown=grown: rows.exists() and rows.stat().st_size > grown, lambda: f"progress:\n{run.said()}")
        run.ps.children()[0].kill()
        wait_until(lambda kills=kills: run.said().count("goes on from its journal") > kills, run.said)
    result = run.result()
    assert result["version"] == 200
    assert "differs" not in run.said()
    plain = start("simulate", "digits", "rounds=200", "eval_every=0", "--actors", "0", "--json", "--run-dir", "plain")
    assert plain.result()["weights_sha256"] == result["weights_sha256"]


# A coordinator that dies between an acceptance and the snapshot that holds it


class HalfARound:
    """A run that stands still in its first round: one of its two actors is stopped in the middle of a task, the other has
    done all else that there is to do. What both have done so far was accepted, and nothing but they has it."""

    words = ("digits", "rounds=2", "clients=40", "cohort=40", "local_epochs=60", "partial_sums=false", "eval_every=0")

    def __init__(self, start: Callable[..., Process], folder: Path) -> None:
        words = (*self.words, "journal=ids", "--json", "--bind", "tcp://127.0.0.1:*", "--restart", "--run-dir", "killed")
        self.start, self.run, self.folder = start, start("coordinator", *words), folder / "killed"
        self.pool = start("actor", self.run.until(r"listening on (\S+);")[1], "--count", "2")
        self._until(lambda: len({session for *_, session in self.accepted(1)}) == 2, "both actors to have done something")
        self.stopped = actors_of(self.pool)[1]
        self.stopped.suspend()
        self._until(lambda: len(self.accepted(1)) >= 36, "the other actor to have done the rest")
        snapshot = newest(self.folder / "checkpoints", pytest.fail)
        assert snapshot is None or snapshot.version == 0
        self.promised = self.accepted(1)

    def accepted(self, epoch: int) -> set[tuple[tuple[int, int], int, bytes]]:
        """Task, attempt and session of what this life of the coordinator has accepted for the first round, each once."""
        rows = [row for row in records(self.folder / "journal") if isinstance(row, Accepted) and row.epoch == epoch]
        found = {(row.task, row.attempt, row.session) for row in rows if row.onto == 0}
        assert len(found) == sum(row.onto == 0 for row in rows)
        return found

    def end(self) -> None:
        """The coordinator is killed. What follows ends with the bits of a run that nothing happened to."""
        self.run.ps.children()[0].kill()
        if self.stopped.is_running():
            self.stopped.resume()
        result = self.run.result()
        plain = self.start("simulate", *self.words, "--actors", "0", "--json", "--run-dir", "plain").result()
        assert result["version"] == 2
        assert result["weights_sha256"] == plain["weights_sha256"]

    def _until(self, holds: Callable[[], bool], what: str) -> None:
        def look() -> bool:
            with suppress(RuntimeError):  # a record that is being written looks torn
                return holds()
            return False

        wait_until(look, lambda: f"{what}:\n{self.run.said()}")


def test_what_was_accepted_and_is_in_no_snapshot_is_offered_again_and_not_made_again(start, tmp_path):
    half = HalfARound(start, tmp_path)
    half.end()
    assert half.promised <= half.accepted(2)
    assert "to be done again" not in half.run.said()


def test_where_the_actor_that_has_it_dies_as_well_it_is_made_again_and_a_person_is_told(start, tmp_path):
    half = HalfARound(start, tmp_path)
    half.stopped.kill()
    half.end()
    lost = half.promised - half.accepted(2)
    (gone,) = {session for *_, session in lost}
    assert lost == {one for one in half.promised if one[2] == gone}
    assert half.run.said().count("accepted before the restart, is to be done again") == len(lost)
