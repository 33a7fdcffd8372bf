"""Facts about what power cuts leave: everything acknowledged, nothing that nobody wrote; and that the search would see it."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from random import Random

import pytest

from shoal.coordinator.keeping.disk import write_file
from shoal.coordinator.keeping.journal import Journal
from shoal.coordinator.keeping.replay import Replay
from shoal.faults.powercut import Killed, Tally, one_run, run
from shoal.faults.ramdisk import RamDisk, power_cuts

PATH = Path("run/file")


def test_thousands_of_power_cuts_and_damaged_disks_lose_nothing_acknowledged_and_load_nothing_false() -> None:
    found = run(quick=True)
    assert found["cases"] >= 3_000
    assert (found["acknowledged_lost"], found["corrupt_loads"]) == (0, 0)


def every_cut_while(disk: RamDisk, seed: int = 0) -> list[RamDisk]:
    """Fills with every state that power cuts during the next calls can leave, all of them where they are at most 5,000."""
    found: list[RamDisk] = []
    disk.watch = lambda: found.extend(power_cuts(disk, 5_000, Random(seed)))
    return found


def test_every_cut_while_a_file_is_replaced_leaves_the_old_or_the_new_one() -> None:
    disk = RamDisk()
    disk.make_folder(PATH.parent)
    write_file(disk, PATH, [b"old"])
    states = every_cut_while(disk)
    write_file(disk, PATH, [b"new " * 300, b"and more"])
    contents = {bytes(state.seen[PATH].seen) for state in states}
    assert contents == {b"old", b"new " * 300 + b"and more"}
    assert bytes(states[-1].seen[PATH].seen) == b"new " * 300 + b"and more"


@pytest.mark.parametrize("group", [1, 3])
def test_every_cut_while_the_journal_is_written_leaves_a_prefix_with_all_that_was_committed(group: int) -> None:
    disk = RamDisk()
    folder = Path("run/journal")
    written = [b"%d " % k * 100 for k in range(2 * group)]
    with contextlib.closing(Journal(Replay(folder, "run", report=_quiet, disk=disk), 1, extent=1024)) as journal:
        for record in written[:group]:
            journal.append(record)
        journal.commit()
        states = every_cut_while(disk)
        for record in written[group:]:
            journal.append(record)
        journal.commit()
    lengths = set()
    for state in states:
        found = list(Replay(folder, "run", report=_quiet, disk=state))
        assert found == written[: len(found)]
        lengths.add(len(found))
    assert min(lengths) == group
    assert max(lengths) == 2 * group


def test_every_cut_after_a_restart_leaves_what_the_restart_has_read() -> None:
    folder = Path("run/journal")
    disk = killed_before_the_sync(folder)
    written = [b"one", b"two" * 99, b"three"]
    states = every_cut_while(disk)
    replay = Replay(folder, "run", report=_quiet, disk=disk)
    with contextlib.closing(Journal(replay, 2, extent=512)) as journal:
        assert journal.durable == 2  # seen in the page cache, and so promised from here on
        before = len(states)
        journal.append(b"three")
        journal.commit()
    for k, state in enumerate(states):
        found = list(Replay(folder, "run", report=_quiet, disk=state))
        assert found == written[: len(found)]
        assert len(found) >= (1 if k < before else 2)
    assert len(list(Replay(folder, "run", report=_quiet, disk=states[-1]))) == 3


def killed_before_the_sync(folder: Path) -> RamDisk:
    """One record durable, the second written but not synced."""
    disk = RamDisk()
    with contextlib.closing(Journal(Replay(folder, "run", report=_quiet, disk=disk), 1, extent=512)) as journal:
        journal.append(b"one")
        journal.commit()
        journal.append(b"two" * 99)
        disk.fault = _killed_at_sync
        with pytest.raises(Killed):
            journal.commit()
    return disk.killed()


def _killed_at_sync(call: str, path: Path) -> int:
    if call == "sync":
        raise Killed
    return 0


class NoSync(RamDisk):
    def sync(self, fd: int) -> None:
        pass


class NoFolderSync(RamDisk):
    def sync_folder(self, folder: Path) -> None:
        pass


class NoSettling(RamDisk):
    def settle(self, fd: int) -> None:
        pass


@pytest.mark.parametrize("lying", [NoSync, NoFolderSync, NoSettling])
def test_the_search_notices_a_sync_that_is_left_out(lying: type[RamDisk]) -> None:
    tally = Tally()
    for seed in _until_found(tally):
        one_run(Random(seed), tally, disk=lying())
    assert tally.lost


def _until_found(tally: Tally) -> Iterator[int]:
    seed = 0
    while not tally.lost and tally.cases < 30_000:
        yield seed
        seed += 1


def _quiet(line: str) -> None:
    pass
