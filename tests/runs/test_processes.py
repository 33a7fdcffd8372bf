"""What survives what: real processes, killed and stopped."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from itertools import pairwise
from pathlib import Path

import psutil
import pytest
import standing
from whole import run as whole_run

from shoal.coordinator.keeping.store import newest
from shoal.faults.booked import Accepted, Committed, read, records
from shoal.faults.family import lives
from shoal.faults.patient import ended, wait_until
from shoal.protocol.keys import KeyFolder
from shoal.protocol.messages import TaskName
from shoal.runs.rundir import RunDir

SHOAL = (sys.executable, "-m", "shoal")
STANDING = Path(standing.__file__)
LONG = ["rounds=100000", "eval_every=0"]


class Process:
    """A command with what it said so far."""

    def __init__(self, folder: Path, *words: str, program: Sequence[str] = SHOAL) -> None:
        self.log = folder / f"log-{len(list(folder.glob('log-*')))}"
        self.out = folder / (self.log.name + ".out")
        with self.log.open("wb") as err, self.out.open("wb") as out:
            self.child = subprocess.Popen([*program, *words], cwd=folder, stderr=err, stdout=out, start_new_session=True)
        self.ps = psutil.Process(self.child.pid)

    def said(self) -> str:
        return self.log.read_text(errors="replace") + self.out.read_text(errors="replace")

    def until(self, pattern: str) -> re.Match[str]:
        found: list[re.Match[str] | None] = [None]

        def look() -> bool:
            found[0] = re.search(pattern, self.said())
            assert found[0] is not None or self.child.poll() is None, f"ended without {pattern!r}:\n{self.said()}"
            return found[0] is not None

        wait_until(look, lambda: f"{pattern!r} in:\n{self.said()}", self.log.parent)
        assert found[0] is not None
        return found[0]

    def result(self) -> dict[str, object]:
        ended(self.child, self.log.parent)
        return json.loads(self.out.read_text().splitlines()[-1])


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Callable[..., Process]]:
    started: list[Process] = []

    def begin(*words: str, program: Sequence[str] = SHOAL) -> Process:
        started.append(Process(tmp_path, *words, program=program))
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
    wait_until(lambda: rows.exists() and rows.stat().st_size > 0, folder=tmp_path)
    victim = actors_of(run)[0]
    victim.kill()
    run.until(rf"ended \(process {victim.pid}\)|actor-{victim.pid} lost its connection")  # no silence was waited for
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
    wait_until(lambda: rows.exists() and rows.stat().st_size > 0, folder=tmp_path)
    family = run.ps.children(recursive=True)
    assert len(family) == 3
    run.child.send_signal(signal.SIGINT)
    stopped = run.result()
    assert 0 < stopped["version"] < 300
    assert run.child.returncode == 130
    assert not any(map(lives, family))
    last = RunDir(tmp_path / "broken").rows()[-1]
    assert (last["version"], last["metrics"]["accuracy"]) == (stopped["version"], stopped["metrics"]["accuracy"])
    resumed = start("resume", "broken", "--json").result()
    lines = [json.loads(line) for line in rows.read_text().splitlines()]
    assert [line["version"] for line in lines] == list(range(1, 301))
    assert all(before["seconds"] <= after["seconds"] for before, after in pairwise(lines))
    assert resumed["seconds"] >= stopped["seconds"]
    assert resumed["contributions"] == unbroken.result()["contributions"]
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
    coordinator.until(r"early@\S+:\d+ joined as actor 0")
    late = start("actor", address, "--count", "2", "--name", "late")
    result = coordinator.result()
    assert result["version"] == 60
    assert ended(early.child, early.log.parent) == 0
    assert ended(late.child, late.log.parent) == 0


def test_sigterm_ends_a_run_of_this_machine_in_good_order_with_exit_code_143(start, tmp_path):
    run = start("simulate", "digits", "--actors", "1", "--run-dir", "run", "--json", *LONG)
    rows = tmp_path / "run" / "metrics.jsonl"
    wait_until(lambda: rows.exists() and rows.stat().st_size > 0, folder=tmp_path)
    run.child.send_signal(signal.SIGTERM)
    assert run.result()["version"] > 0
    assert run.child.returncode == 128 + signal.SIGTERM


def test_an_actor_started_first_says_that_nobody_answers_and_keeps_trying(start, tmp_path):
    lonely = start("actor", f"ipc://{tmp_path}/nobody", "--name", "lonely")
    lonely.until(r"no answer from ipc://\S+ for [5-9] s; trying on")
    assert lonely.child.poll() is None
    lonely.child.send_signal(signal.SIGTERM)
    assert ended(lonely.child, lonely.log.parent) == 0


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
        wait_until(
            lambda grown=grown: rows.exists() and rows.stat().st_size > grown, lambda: f"progress:\n{run.said()}", tmp_path
        )
        run.ps.children()[0].kill()
        wait_until(lambda kills=kills: run.said().count("goes on from its journal") > kills, run.said, tmp_path)
    result = run.result()
    assert result["version"] == 200
    assert "differs" not in run.said()
    plain = start("simulate", "digits", "rounds=200", "eval_every=0", "--actors", "0", "--json", "--run-dir", "plain")
    assert plain.result()["weights_sha256"] == result["weights_sha256"]


# A coordinator that dies between an acceptance and the snapshot that holds it


class HalfARound:
    """A run that stands still in the middle of a round: each of its two actors has heard that what it did was accepted, and
    waits at the gate with its next task. Nobody but these two has what they did."""

    def __init__(self, start: Callable[..., Process], folder: Path, setting: str) -> None:
        self.start, self.setting, self.gate = start, setting, Path(os.environ[standing.GATE])
        self.folder, self.notes = folder / "killed", folder / "heard"
        self.notes.mkdir()
        os.mkfifo(self.gate)
        words = (f"{STANDING}:job", setting, "--json", "--bind", "tcp://127.0.0.1:*", "--restart", "--run-dir", "killed")
        self.run = start("coordinator", *words)
        self.address = self.run.until(r"listening on (\S+);")[1]
        self.actors = [self.actor() for _ in range(standing.ACTORS)]
        tasks = 1 if setting == "partial_sums=true" else standing.SHARE
        self.until(lambda: all(len(self.heard(actor)) == tasks for actor in self.actors), "each to have done its share")
        self.promised = self._in_no_snapshot()
        assert {one[:2] for one in self.promised} == self.heard(self.actors[0]) | self.heard(self.actors[1])
        assert len({session for *_, session in self.promised}) == standing.ACTORS

    def actor(self) -> Process:
        return self.start(self.address, str(self.notes), program=(sys.executable, str(STANDING)))

    def heard(self, actor: Process) -> set[tuple[TaskName, int]]:
        """Task and attempt of what this actor was told is accepted for the round."""
        path = self.notes / str(actor.child.pid)
        notes = [line.split() for line in path.read_text().splitlines()] if path.exists() else []
        told = [((int(version), int(index)), int(attempt)) for _, version, index, attempt, word in notes if word == "accepted"]
        return {one for one in told if one[0][0] == standing.ROUND}

    def accepted(self, epoch: int) -> set[tuple[TaskName, int, bytes]]:
        """Task, attempt and session of what this life of the coordinator has accepted for the round, each once."""
        rows = [row for row in self._records() if isinstance(row, Accepted) and row.epoch == epoch]
        found = {(row.task, row.attempt, row.session) for row in rows if row.onto == standing.ROUND}
        assert len(found) == sum(row.onto == standing.ROUND for row in rows)
        return found

    def _records(self) -> list[Accepted | Committed]:
        return list(records(self.folder / "journal", self.covered))

    def _in_no_snapshot(self) -> set[tuple[TaskName, int, bytes]]:
        """What the newest snapshot, of the version that the round is made from, does not cover."""
        snapshot = newest(self.folder, pytest.fail)
        assert snapshot is not None
        assert snapshot.version == standing.ROUND
        self.covered = int(snapshot.counters["record"])
        return self.accepted(1)

    def kill(self) -> None:
        """The coordinator; its supervisor begins another life."""
        assert self._in_no_snapshot() == self.promised  # still: nothing moves
        self.run.ps.children()[0].kill()

    def wait_for(self, promised: set[tuple[TaskName, int, bytes]]) -> None:
        """Until these are counted again. Who made them waits at the gate, and cannot have made them again."""
        self.until(lambda: promised <= self.accepted(2), "what was kept to be offered again")

    def end(self) -> None:
        """The gate opens. What follows ends with the bits of a run that nothing happened to, each client counted once."""
        opened = os.open(self.gate, os.O_RDWR)
        try:
            result = self.run.result()
            plain = whole_run(standing.job.configured(dict([self.setting.split("=")])), 0)
        finally:
            os.close(opened)
        assert (result["version"], result["weights_sha256"]) == (3, plain.sha256)
        assert "differs" not in self.run.said()
        book = read(self._records(), payload=False)
        assert book.made == {2: list(range(standing.CLIENTS)), 3: list(range(standing.CLIENTS))}
        assert (book.twice, book.again, book.lives) == (0, standing.ACTORS * standing.SHARE, {1, 2})

    def recalled(self) -> int:
        return self.run.said().count("accepted before the restart, is to be done again: nobody offers it again")

    def until(self, holds: Callable[[], bool], what: str) -> None:
        def look() -> bool:
            with suppress(RuntimeError):  # a record that is being written looks torn
                return holds()
            return False

        wait_until(look, lambda: f"{what}:\n{self.run.said()}")


@pytest.fixture(params=["partial_sums=false", "partial_sums=true"], ids=["each", "sums"])
def half(start, tmp_path, monkeypatch, request) -> HalfARound:
    monkeypatch.setenv(standing.GATE, str(tmp_path / "gate"))
    return HalfARound(start, tmp_path, request.param)


def test_what_was_accepted_and_is_in_no_snapshot_is_offered_again_and_not_made_again(half):
    half.kill()
    half.wait_for(half.promised)
    half.end()
    assert half.recalled() == 0


def test_where_the_actor_that_has_it_dies_as_well_it_is_made_again_and_a_person_is_told(half):
    lost = {one for one in half.promised if one[:2] in half.heard(half.actors[0])}
    half.kill()
    half.actors[0].child.kill()
    half.actor()  # another takes its place
    half.wait_for(half.promised - lost)
    half.until(lambda: half.recalled() == len(lost), "what was lost to be recalled")
    half.end()
    assert half.recalled() == len(lost)
    assert not lost & half.accepted(2)


def test_an_actor_without_the_job_says_so_in_one_line_and_the_run_goes_on_with_others(start, tmp_path):
    (tmp_path / "mine.py").write_text(
        "import numpy as np\nfrom shoal import Federated\nfrom shoal.nets.models import mlp\n"
        "x = np.random.default_rng(1).normal(size=(80, 64)).astype('float32')\n"
        "job = Federated(mlp, (x, np.arange(80) % 10), clients=4, cohort=4, rounds=2, local_epochs=1)\n"
    )
    coordinator = start("coordinator", "mine.py", "--bind", "tcp://127.0.0.1:*", "--json")
    address = coordinator.until(r"(tcp://127\.0\.0\.1:\d+)")[1]
    strangers = [start("actor", address) for _ in range(2)]
    for stranger in strangers:
        assert ended(stranger.child, stranger.log.parent) == 2
        assert "start this actor with --job FILE.py:job" in stranger.said()
        assert "Traceback" not in stranger.said()
    start("actor", address, "--job", "mine.py")
    result = coordinator.result()
    assert (result["version"], result["contributions"]) == (2, 8)
    assert "set aside" not in coordinator.said()


@pytest.mark.parametrize(
    ("number", "words"), [(signal.SIGTERM, ()), (signal.SIGINT, ("--pause",)), (signal.SIGINT, ("--pause", "--restart"))]
)
def test_a_coordinator_that_is_paused_leaves_its_actors_waiting_and_ctrl_c_sends_them_home(start, tmp_path, number, words):
    first = start("coordinator", "digits", "--bind", "tcp://127.0.0.1:*", "--run-dir", "run", *words, *LONG)
    address = first.until(r"listening on (\S+);")[1]
    actor = start("actor", address)
    rows = tmp_path / "run" / "metrics.jsonl"
    wait_until(lambda: rows.exists() and rows.stat().st_size > 0, lambda: f"a row: {first.said()}", tmp_path)
    first.child.send_signal(number)
    assert ended(first.child, first.log.parent) == 75
    size = rows.stat().st_size
    second = start("resume", "run", "--bind", address)
    wait_until(lambda: rows.stat().st_size > size, lambda: f"a row more: {second.said()} {actor.said()}", tmp_path)
    assert actor.child.poll() is None
    second.child.send_signal(signal.SIGINT)
    assert (ended(second.child, second.log.parent), ended(actor.child, actor.log.parent)) == (130, 0)


@pytest.mark.parametrize("gateway", [(), ("--gateway",)], ids=["hub", "gateway"])
def test_a_coordinator_tells_its_state_to_a_key_that_it_knows_and_to_nobody_else(start, tmp_path, monkeypatch, gateway):
    monkeypatch.setenv("SHOAL_KEYS", str(tmp_path / "keys"))
    folder = KeyFolder()
    for name in ("hub", "monitor", "stranger"):
        folder.new(name)
    folder.allow(folder.public("monitor"), "monitor")
    first = start("coordinator", "digits", "--bind", "tcp://127.0.0.1:*", "--key", "hub", *gateway, *LONG)
    address = first.until(r"listening on (\S+);")[1]
    keys = ("--key", "monitor", "--server", "hub")
    monkeypatch.setenv("OMP_NUM_THREADS", "2")
    start("actor", address, *keys)
    first.until(r"computes with 2 threads, and the run with 1: the weights may have other bits; set OMP_NUM_THREADS=1")
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    wait_until(lambda: start("status", address, *keys, "--json").result().get("version", 0) > 0)
    asked = start("status", address, *keys, "--json")
    found = asked.result()
    assert (asked.child.returncode, found["state"], found["actors"], found["why"]) == (0, "running", 1, "")
    for words in ((), ("--key", "stranger", "--server", "hub")):
        stranger = start("status", address, *words, "--json")
        assert (stranger.result()["state"], stranger.child.returncode) == ("no answer", 1)
        assert {*stranger.result()} == {"address", "state", "why"}


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_a_crowd_replaces_its_dead_and_says_bye_when_it_is_told_to_go(start, number):
    coordinator = start("coordinator", "digits", "--bind", "tcp://127.0.0.1:*", *LONG)
    crowd = start("actor", coordinator.until(r"listening on (\S+);")[1], "--count", "2", "--name", "pair")
    coordinator.until(r"joined as actor 1")
    victim = actors_of(crowd)[0]
    coordinator.until(rf"pair@\S+:{victim.pid} joined")
    victim.kill()
    crowd.until(f"process {victim.pid} ended by signal 9; another takes its place")
    wait_until(lambda: len(actors_of(crowd)) == 2)
    left = [one.pid for one in actors_of(crowd)]
    for pid in left:
        coordinator.until(rf"pair@\S+:{pid} joined")
    os.killpg(crowd.child.pid, number) if number == signal.SIGHUP else crowd.child.send_signal(number)
    assert ended(crowd.child, crowd.log.parent) == 0
    for pid in left:
        coordinator.until(rf"pair@\S+:{pid} left: told to stop")
