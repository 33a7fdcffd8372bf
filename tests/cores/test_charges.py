"""The charges of noised versions: durable before a version leaves, made once, and never fewer than what was released."""

from __future__ import annotations

import os
import stat
from pathlib import Path
from random import Random

import pytest

from shoal.coordinator.keeping.charges import FILE, KEY, Charges, secret_of
from shoal.coordinator.keeping.disk import DiskTrouble
from shoal.faults.ramdisk import RamDisk, power_cuts
from shoal.protocol.errors import UserError

TERMS = {"delta": 1e-5, "multiplier": 1.0}


def begun(folder: Path) -> Charges:
    charges = Charges(folder)
    charges.begin(TERMS)
    return charges


def test_a_charge_is_made_once_for_a_version_and_its_sum(tmp_path: Path):
    charges = begun(tmp_path)
    charges.charge(1, "aa", epsilon=0.5)
    charges.charge(1, "aa", epsilon=0.5)
    charges.charge(1, "bb", epsilon=0.7)
    again = Charges(tmp_path)
    assert again.tags == {(1, "aa"): 1, (1, "bb"): 2}
    assert again.terms == TERMS
    again.charge(1, "aa")
    assert len((tmp_path / FILE).read_text().splitlines()) == 3


def test_a_line_that_was_cut_short_is_no_charge_and_leaves_no_trace(tmp_path: Path):
    begun(tmp_path).charge(1, "aa")
    whole = (tmp_path / FILE).read_bytes()
    for torn in (b'{"version": 2, "tag"', b'{"version": 2, "tag": "b\0\0\0\n', b"\n"):
        (tmp_path / FILE).write_bytes(whole + torn)
        charges = Charges(tmp_path)
        assert charges.tags == {(1, "aa"): 1}
        charges.charge(2, "cc")
        assert Charges(tmp_path).tags == {(1, "aa"): 1, (2, "cc"): 2}


def test_a_file_damaged_before_its_last_line_is_refused(tmp_path: Path):
    charges = begun(tmp_path)
    charges.charge(1, "aa")
    charges.charge(2, "bb")
    rows = (tmp_path / FILE).read_bytes().split(b"\n")
    for at in (0, 1):  # the last line may have been cut short
        (tmp_path / FILE).write_bytes(b"\n".join([*rows[:at], b"?" + rows[at][1:], *rows[at + 1 :]]))
        with pytest.raises(UserError, match="is damaged"):
            Charges(tmp_path)


def test_after_a_power_cut_at_any_moment_every_charge_that_was_acknowledged_is_there():
    disk, folder, acknowledged = RamDisk(), Path("/run"), []  # type: ignore[var-annotated]
    disk.make_folder(folder)
    cuts: list[tuple[int, RamDisk]] = []
    disk.watch = lambda: cuts.extend((len(acknowledged), cut) for cut in power_cuts(disk, 40, Random(len(cuts))))
    charges = Charges(folder, disk)
    charges.begin(TERMS)
    for version in range(1, 4):
        charges.charge(version, f"{version:064x}")
        acknowledged.append((version, f"{version:064x}"))
    for many, cut in cuts:
        found = Charges(folder, cut)
        assert list(found.tags)[:many] == acknowledged[:many]
        assert len(found.tags) <= many + 1
        if many:
            assert found.terms == TERMS
            found.charge(9, "ff")
            assert Charges(folder, cut.killed()).tags == found.tags


def test_a_full_disk_charges_nothing(tmp_path: Path):
    charges = begun(tmp_path)

    class Full(type(charges.disk)):  # type: ignore[misc]
        def write(self, fd: int, buffers: list[memoryview], offset: int) -> int:
            raise OSError(28, "No space left on device")

    charges.disk = Full()
    with pytest.raises(DiskTrouble, match="No space"):
        charges.charge(1, "aa")
    assert not charges.tags
    assert not Charges(tmp_path).tags


def test_the_secret_is_drawn_once_and_only_its_owner_can_read_it(tmp_path: Path):
    before = os.umask(0)
    try:
        secret = secret_of(tmp_path)
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / KEY).stat().st_mode) == 0o600
    assert secret_of(tmp_path) == secret
    assert len(set(secret)) > 8
    (tmp_path / KEY).write_bytes(b"short")
    with pytest.raises(UserError, match="has 5 bytes"):
        secret_of(tmp_path)
