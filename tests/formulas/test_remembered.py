"""Rows of clients in memory and in files: the same rows, whatever lies where, in whichever life."""

from __future__ import annotations

import numpy as np
import pytest

from shoal.aggregators import remembered
from shoal.aggregators.remembered import Remembered
from shoal.protocol.errors import UserError


def row(number):
    return np.full(5, number, np.float32)


def stepped(it, version, *clients):
    for client in clients:
        it.put(client, row(100 * version + client))
    it.step(version)


def found(it, *clients):
    rows = (it.of(client) for client in clients)
    return [None if its is None else int(its[0]) for its in rows]


def test_a_row_counts_from_the_next_step_on():
    it = Remembered(5)
    it.put(3, row(7))
    assert found(it, 3) == [None]
    it.step(1)
    assert found(it, 3, 4) == [7, None]


@pytest.mark.parametrize("folder", [False, True])
def test_a_snapshot_brings_rows_back_wherever_they_lie(tmp_path, folder):
    it, again = Remembered(5, held=40), Remembered(5, held=40)
    if folder:
        it.settle(tmp_path / "clients")
        again.settle(tmp_path / "clients")
    stepped(it, 1, *range(8))
    stepped(it, 2, 3, 4)
    state = {name: array.copy() for name, array in it.state().items()}
    assert len(state["clients/rows"]) == (2 if folder else 8)  # 40 bytes are two rows
    stepped(it, 3, 0, 1, 2, 3)
    it.put(5, row(1))
    again.load(state, 2)
    assert found(again, *range(9)) == [100, 101, 102, 203, 204, 105, 106, 107, None]
    stepped(again, 3, 0, 1, 2, 3)
    assert found(again, *range(8)) == found(it, *range(8)) == [300, 301, 302, 303, 204, 105, 106, 107]


def test_files_go_when_no_snapshot_needs_them_and_old_rows_are_gathered(tmp_path, monkeypatch):
    monkeypatch.setattr(remembered, "FILE", 60)  # three rows
    it = Remembered(5, held=0)
    it.settle(tmp_path)
    for version in range(1, 60):
        stepped(it, version, *((version + client) % 9 for client in range(3)), 20)
        it.forget(version - 2)
        assert len(list(tmp_path.iterdir())) < 20
    assert found(it, 20) == [5920]
    again = Remembered(5, held=0)
    again.settle(tmp_path)
    again.load(it.state(), 59)
    assert found(again, *range(9)) == found(it, *range(9))
    before = {path.name for path in tmp_path.iterdir()}
    again.forget(58)
    assert {path.name for path in tmp_path.iterdir()} == before
    again.forget(59)
    assert found(again, *range(9)) == found(it, *range(9))


def test_a_damaged_or_missing_file_is_told_in_one_line(tmp_path):
    it, again = Remembered(5, held=0), Remembered(5, held=0)
    it.settle(tmp_path)
    again.settle(tmp_path)
    stepped(it, 1, 1, 2, 3)
    state = it.state()
    [file] = tmp_path.iterdir()
    again.load(state, 1)
    whole = file.read_bytes()
    file.write_bytes(b"\1" + whole[1:])
    with pytest.raises(UserError, match=r"00000001.rows: the state of client 1 is damaged"):
        again.of(1)
    file.unlink()
    with pytest.raises(UserError, match=r"00000001.rows with states of clients is not there"):
        again.load(state, 1)
    with pytest.raises(ValueError, match=r"clients/rows"):
        Remembered(6).load(state, 1)


def test_rows_stay_in_memory_while_the_disk_takes_none(tmp_path):
    it = Remembered(5, held=0)
    it.settle(tmp_path / "missing" / "clients")
    stepped(it, 1, 1, 2, 3)
    assert found(it, 1, 2, 3) == [101, 102, 103]
    assert len(it.state()["clients/rows"]) == 3
    (tmp_path / "missing").mkdir()
    stepped(it, 2, 1)
    assert len(it.state()["clients/rows"]) == 1
    assert found(it, 1, 2, 3) == [201, 102, 103]
