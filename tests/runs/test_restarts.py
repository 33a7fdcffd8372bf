"""Facts about lives: of a coordinator under its supervisor, and of the folders and processes that a killed one leaves."""

from __future__ import annotations

import fcntl
import os
import signal
import tempfile
import threading
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from shoal.benchmarks.jobs import Still
from shoal.coordinator.deciding.bounds import Bounds, Goal
from shoal.coordinator.deciding.core import Core
from shoal.coordinator.deciding.events import Admit, Fold, Heard, Send, Step, Tick
from shoal.coordinator.deciding.plans.rounds import Rounds
from shoal.coordinator.deciding.recovered import Recovered
from shoal.coordinator.keeping.disk import DiskTrouble
from shoal.coordinator.keeping.recording import Recording
from shoal.coordinator.keeping.store import Store
from shoal.faults.booked import Accepted, Committed, read
from shoal.protocol.errors import UserError
from shoal.protocol.layout import Bundle
from shoal.protocol.messages import PROTOCOL, Assign, Envelope, Hello, Stop
from shoal.runs.socketdir import PREFIX, socket_folder, sweep
from shoal.runs.supervise import MOST, supervised


class Lives:
    """A coordinator in a few lines: what each of its lives does, told by a file that all of them see."""

    def __init__(self, folder: Path, *each: Callable[[], int]) -> None:
        self.file, self.each = folder / "lives", each
        self.said: list[str] = []
        self.waits: list[float] = []
        self.rows = folder / "rows"
        self.rows.touch()

    def lived(self) -> list[str]:
        return self.file.read_text().split()

    def live(self, resume: bool) -> int:
        number = len(self.lived()) if self.file.exists() else 0
        with self.file.open("a") as file:
            file.write(f"{'resumed' if resume else 'new'}\n")
        return self.each[min(number, len(self.each) - 1)]()

    def run(self) -> int:
        return supervised(
            self.live,
            self.said.append,
            lambda: self.rows.stat().st_size if self.rows.exists() else 0,
            self.waits.append,
            lambda: "" if self.rows.exists() else "its folder is gone",
        )


def killed() -> int:
    os.kill(os.getpid(), signal.SIGKILL)
    return 1


def test_a_life_that_is_killed_is_followed_by_another_that_resumes(tmp_path: Path) -> None:
    lives = Lives(tmp_path, killed, killed, lambda: 0)
    assert lives.run() == 0
    assert lives.lived() == ["new", "resumed", "resumed"]
    assert lives.said == ["the coordinator was ended by SIGKILL; it goes on from its journal"] * 2
    assert lives.waits == []  # whoever killed it need not be waited for


def test_lives_that_get_nowhere_are_given_up_in_the_end(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    lives = Lives(tmp_path, lambda: 1 // 0)
    assert lives.run() == 1
    assert len(lives.lived()) == MOST + 1
    assert lives.said[-1] == f"the coordinator broke down, {MOST + 1} times in a row without a new row of metrics: given up"
    assert lives.waits[0] < lives.waits[-1] <= 1.0
    assert "ZeroDivisionError" in capfd.readouterr().err


def test_lives_that_get_somewhere_are_never_given_up(tmp_path: Path) -> None:
    def fruitful() -> int:
        with lives.rows.open("a") as rows:
            rows.write("version\n")
        return killed()

    lives = Lives(tmp_path, *[fruitful] * (2 * MOST), lambda: 0)
    assert lives.run() == 0
    assert len(lives.lived()) == 2 * MOST + 1


def test_a_full_disk_is_waited_for(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    def full() -> int:
        raise DiskTrouble(28, "no room for the journal")

    lives = Lives(tmp_path, *[full] * (2 * MOST), lambda: 0)
    assert lives.run() == 0
    assert len(lives.waits) == 2 * MOST
    assert capfd.readouterr().err.startswith("shoal: [Errno 28] no room for the journal\n")


@pytest.mark.parametrize("end", ["a full disk", "a signal"])
def test_a_run_whose_folder_is_gone_has_no_other_life(tmp_path: Path, end: str) -> None:
    def vanished() -> int:
        lives.rows.unlink()
        if end == "a signal":
            return killed()
        raise DiskTrouble(2, "no such folder")

    lives = Lives(tmp_path, vanished)
    assert lives.run() == 1
    assert lives.lived() == ["new"]
    [line] = lives.said
    assert line.endswith("and cannot go on: its folder is gone")


def test_a_users_mistake_ends_the_first_life_and_all(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    def mistaken() -> int:
        raise UserError("address tcp://127.0.0.1:1 is in use")

    lives = Lives(tmp_path, mistaken)
    assert lives.run() == 2
    assert lives.lived() == ["new"]
    assert capfd.readouterr().err == "shoal: address tcp://127.0.0.1:1 is in use\n"


def test_a_life_that_a_signal_to_the_supervisor_ended_is_the_last(tmp_path: Path) -> None:
    def interrupted() -> int:
        os.kill(os.getppid(), signal.SIGTERM)
        signal.pause()
        return 1

    lives = Lives(tmp_path, interrupted)
    assert lives.run() == 128 + signal.SIGTERM
    assert lives.lived() == ["new"]
    assert lives.said == []


def test_a_signal_that_another_thread_takes_reaches_the_life_that_is_going_on(tmp_path: Path) -> None:
    def interrupted() -> int:
        os.kill(os.getppid(), signal.SIGTERM)
        signal.pause()
        return 1

    over = threading.Event()
    others = [threading.Thread(target=over.wait) for _ in range(4)]
    for thread in others:
        thread.start()
    try:
        for turn in range(30):
            (tmp_path / str(turn)).mkdir()
            assert Lives(tmp_path / str(turn), interrupted).run() == 128 + signal.SIGTERM
    finally:
        over.set()
        for thread in others:
            thread.join()


# A life that finds its goal reached


def test_a_life_that_finds_the_goal_reached_says_so_to_whoever_comes_and_hands_out_nothing() -> None:
    core = Core(Rounds(2), Goal(versions=3), Bounds(), Recovered(version=3), 10.0)
    hello = Envelope(b"12345678", 0, Hello(PROTOCOL, "late", "host", 1, ()))
    effects = [*core.handle(Heard(b"peer", hello), 10.1), *core.handle(Tick(), 12.0)]
    assert any(isinstance(effect, Admit) for effect in effects)
    assert not any(isinstance(effect, Fold) or _says(effect, Assign) for effect in effects)
    assert any(_says(effect, Stop) for effect in effects)
    assert core.facts.ended


def test_with_contributions_folded_in_already_it_makes_their_version_first() -> None:
    core = Core(Rounds(2), Goal(versions=3), Bounds(), Recovered(version=3, folded=1), 10.0)
    assert not core.facts.reached


def _says(effect: object, kind: type) -> bool:
    return isinstance(effect, Send) and isinstance(effect.envelope.message, kind)


# Folders of local sockets


@pytest.fixture
def temporary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    return tmp_path


def test_the_folder_of_a_run_that_was_killed_is_swept_by_the_next(temporary: Path) -> None:
    left = temporary / f"{PREFIX}left"
    left.mkdir()
    (left / "hub").touch()
    with socket_folder() as folder:
        assert [path.name for path in temporary.iterdir()] == [folder.name]
        assert folder.stat().st_mode & 0o777 == 0o700
    assert list(temporary.iterdir()) == []


def test_the_folder_of_a_run_that_lives_is_left_alone(temporary: Path) -> None:
    with socket_folder() as folder:
        sweep(temporary)
        assert folder.is_dir()


def test_a_link_is_not_followed(temporary: Path) -> None:
    precious = temporary / "precious"
    precious.mkdir()
    (temporary / f"{PREFIX}link").symlink_to(precious)
    sweep(temporary)
    assert precious.is_dir()


def test_a_lock_ends_with_its_process(temporary: Path) -> None:
    folder = temporary / f"{PREFIX}child"
    folder.mkdir()
    if (child := os.fork()) == 0:
        fcntl.flock(os.open(folder, os.O_RDONLY), fcntl.LOCK_EX)
        killed()
    os.waitpid(child, 0)
    sweep(temporary)
    assert not folder.exists()


# The audit of a journal would see what it looks for


def test_a_version_is_made_of_what_was_accepted_onto_the_one_before() -> None:
    rows = [
        Accepted(1, (0, 0), 65537, 0, (4, 2)),
        Accepted(1, (0, 2), 65537, 0, (3,)),
        Committed(1, 1, "a"),
        Accepted(1, (1, 0), 65537, 1, (5,)),
    ]
    book = read(rows, payload=False)
    assert (book.made, book.digests, book.twice, book.again) == ({1: [2, 3, 4]}, {1: {"a"}}, 0, 0)


def test_what_a_life_without_payloads_folded_in_is_asked_for_again() -> None:
    rows = [Accepted(1, (0, 0), 65537, 0, (4,)), Accepted(2, (0, 0), 131073, 0, (4,)), Committed(2, 1, "a")]
    assert (read(rows, payload=False).made, read(rows, payload=False).again) == ({1: [4]}, 1)
    assert read(rows, payload=True).made == {1: [4, 4]}  # which would be counting it twice


def test_one_attempt_accepted_twice_is_seen() -> None:
    assert read([Accepted(1, (0, 0), 65537, 0, (4,))] * 2, payload=True).twice == 1


def test_a_version_with_two_contents_is_seen() -> None:
    assert read([Committed(1, 1, "a"), Committed(2, 1, "b")], payload=False).digests == {1: {"a", "b"}}


def test_a_life_without_a_journal_covers_what_the_last_one_wrote(tmp_path: Path) -> None:
    """Or a third life, with a journal again, would look for records that were forgotten long ago."""
    store = Store(tmp_path)
    found = Recovered(epoch=1, stepped=Step(4, 0, 0), past=77)
    recording = Recording(store, None, found, payload=False, every=0.0, clock=lambda: 0.0, report=print)
    weights = Bundle.pack({"w": np.zeros(3, np.float32)})
    recording.commit(Step(5, 0, 0), weights)
    recording.snapshot(weights, Still(3))
    assert store.kept[5]["record"] == 77
