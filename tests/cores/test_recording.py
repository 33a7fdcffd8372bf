"""The last snapshot of a life, and what the next life finds after it."""

from __future__ import annotations

import errno
import shutil
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from shoal.aggregators.fedavg import FedAvgServer
from shoal.coordinator.checks import Inspector
from shoal.coordinator.deciding.events import Fold, Step
from shoal.coordinator.deciding.recovered import Recovered
from shoal.coordinator.keeping.disk import DiskTrouble
from shoal.coordinator.keeping.journal import Journal
from shoal.coordinator.keeping.recording import Recording, recover
from shoal.coordinator.keeping.store import Store
from shoal.coordinator.learner import Intake, Learner, Make
from shoal.protocol.layout import Bundle
from shoal.protocol.messages import Contribute
from shoal.protocol.work import Task

START = Bundle.pack({"w": np.zeros(4, np.float32)})


class Life:
    """A learner, its recording, and what it began with."""

    def __init__(self, folder: Path, payload: bool = True) -> None:
        self.said: list[str] = []
        store, aggregator = Store(folder), FedAvgServer(START)
        self.found, replay = recover(folder, "run", store, aggregator, {START.layout.digest: START.layout}, self.said.append)
        self.recording = Recording(
            store,
            Journal(replay, self.found.epoch + 1),
            self.found,
            payload=payload,
            every=1e9,
            clock=time.monotonic,
            report=self.said.append,
        )
        self.learner = Learner(aggregator, Inspector(), time.monotonic, version=self.found.version, recording=self.recording)

    def fold(self, client: int, steps: int = 6) -> None:
        onto, bundle = self.learner.newest[0], Bundle.pack({"w": np.full(4, client + 0.5, np.float32)})
        said = Contribute((onto, client), 1, onto, 3.0, START.layout.digest, False, {}, {}, 0.0, 0.0, steps=steps)
        self.learner.put([Intake(Fold(Task(onto, client, (client,)), (client,), said, onto), bundle)])

    def step(self, steps: int) -> None:
        self.learner.put([Make(Step(self.learner.newest[0] + 1, steps, 2))])

    def stop(self) -> None:
        """In good order: as scripts/runs/launch.py ends."""
        self.recording.snapshot(self.learner.newest[1], self.learner.aggregator)
        self.recording.close()


def begun(folder: Path, payload: bool = True) -> Life:
    """A life that has made versions 1 and 2 and is in the middle of version 3."""
    life = Life(folder, payload)
    for version in (1, 2):
        life.fold(5)
        life.step(6 * version)
    life.fold(7)
    life.fold(9)
    return life


def told(found: Recovered) -> tuple[Any, ...]:
    return (found.version, found.done, found.steps, found.drawn, found.folded, found.counted)


def test_an_orderly_stop_keeps_what_a_kill_keeps(tmp_path: Path) -> None:
    life = begun(tmp_path / "stopped")
    shutil.copytree(tmp_path / "stopped", tmp_path / "killed")
    life.stop()
    stopped, killed = Life(tmp_path / "stopped"), Life(tmp_path / "killed")
    assert (stopped.found.kept, killed.found.kept) == (2, 1)
    assert (stopped.found.version, stopped.found.done, stopped.found.steps) == (2, {2: {7, 9}}, 24)
    assert told(stopped.found)[:5] == told(killed.found)[:5]
    for one in (stopped, killed):
        one.step(24)
    assert stopped.learner.newest[1].sha256() == killed.learner.newest[1].sha256()


def test_a_life_that_only_replayed_keeps_what_it_replayed(tmp_path: Path) -> None:
    begun(tmp_path).recording.close()
    Life(tmp_path).stop()
    found = Life(tmp_path).found
    assert (found.kept, found.version, found.done, found.steps) == (2, 2, {2: {7, 9}}, 24)


def test_the_last_snapshot_counts_no_steps_of_contributions_that_it_does_not_hold(tmp_path: Path) -> None:
    begun(tmp_path, payload=False).stop()
    found = Life(tmp_path, payload=False).found
    assert (found.version, found.steps, found.done) == (2, 12, {})


def test_a_snapshot_whose_journal_cannot_go_on_in_a_new_file_is_said_to_be_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full() -> None:
        raise DiskTrouble(errno.ENOSPC, "no room")

    life = begun(tmp_path)
    monkeypatch.setattr(life.recording.journal, "rotate", full)
    life.stop()
    assert [line.partition(": [")[0] for line in life.said] == [
        "version 2: the snapshot is made, but the journal before it stays"
    ]
    assert life.recording.kept == 2
    monkeypatch.setattr(life.recording.store, "save", lambda snapshot: full())
    life.recording.snapshot(life.learner.newest[1], life.learner.aggregator)
    assert life.said[1].startswith("version 2: no snapshot is made: ")


@pytest.mark.parametrize(
    ("last", "retain", "waits"), [(False, 0, False), (True, 0, True), (False, 48, True), (False, 64, False)]
)
def test_a_full_disk_is_waited_for_only_where_a_snapshot_is_all_that_keeps_the_work(
    last: bool, retain: int, waits: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(snapshot: object) -> None:
        raise DiskTrouble(errno.ENOSPC, "no room")

    life = begun(tmp_path)  # three contributions of 16 bytes since the snapshot of version 1
    life.recording.retain, life.recording.kept_at = retain, -1e10
    monkeypatch.setattr(life.recording.store, "save", full)
    step, (_, weights) = Step(2, 12, 2, last), life.learner.newest
    if waits:
        with pytest.raises(DiskTrouble):
            life.recording.keep(step, weights, life.learner.aggregator)
    else:
        assert not life.recording.keep(step, weights, life.learner.aggregator)
        assert life.said[-1].startswith("version 2: no snapshot is made: ")
    assert life.recording.kept == 1


def test_a_life_that_folded_nothing_has_a_number_of_its_own_all_the_same(tmp_path: Path) -> None:
    begun(tmp_path).stop()
    epochs = []
    for _ in range(3):
        life = Life(tmp_path)
        epochs.append(life.recording.epoch)
        life.stop()
    assert epochs == [2, 3, 4]
