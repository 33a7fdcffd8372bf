"""Devices and traces: the time of a task by hand, and files that are refused in one line."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest

from shoal.actors.workers.paced import Paced
from shoal.envs.devices import Device, drops, read_devices, read_traces
from shoal.protocol.errors import AwayError, UserError
from shoal.protocol.layout import Bundle
from shoal.protocol.work import Task, Work


def test_the_time_of_a_task_is_computing_and_both_ways_of_its_arrays() -> None:
    device = Device(seconds_per_example=0.02, download_mbps=8.0, upload_mbps=2.0)
    assert device.seconds(100.0, 3_000_000, 500_000) == pytest.approx(2.0 + 3.0 + 2.0)
    assert Device(seconds_per_example=0.02).seconds(100.0, 3_000_000, 500_000) == 2.0
    assert Device().seconds(100.0, 10**9, 10**9) == 0.0


@pytest.mark.parametrize("wrong", [{"upload_mbps": -1.0}, {"memory_mb": math.inf}, {"dropout": 1.0}, {"dropout": math.nan}])
def test_a_device_out_of_range_is_refused(wrong: dict[str, float]) -> None:
    with pytest.raises(UserError, match=f"Device.{next(iter(wrong))}"):
        Device(**wrong)


def test_a_device_drops_out_as_often_as_it_says_and_at_any_part_of_the_task() -> None:
    shares = [drops(Device(dropout=0.3), 5, task, 0, 1) for task in range(10_000)]
    lost = np.array([share for share in shares if share < math.inf])
    assert abs(len(lost) / 10_000 - 0.3) < 0.02
    assert (lost > 0).all()
    assert (lost <= 1).all()
    assert abs(lost.mean() - 0.5) < 0.02
    assert drops(Device(), 5, 1, 0, 1) == math.inf
    assert shares[:50] == [drops(Device(dropout=0.3), 5, task, 0, 1) for task in range(50)]


def test_devices_are_read_from_a_file_whose_columns_stand_in_any_order(tmp_path: Path) -> None:
    file = tmp_path / "devices.csv"
    file.write_text("dropout,client,seconds_per_example\n0.1,1,0.5\n,0,0.25\n\n0,2,1\n")
    devices = read_devices(str(file), 2)
    assert devices(0) == Device(0.25)
    assert devices(1) == Device(0.5, dropout=0.1)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "the first line lacks client"),
        ("seconds_per_example\n1\n", "the first line lacks client"),
        ("client,speed\n0,1\n", "unknown column 'speed'; known are client, seconds_per_example"),
        ("client,dropout\n0,0.1\n0,0.2\n", "line 3 is a second row for client 0"),
        ("client,dropout\n0,much\n", "line 2 has dropout='much': must be a number"),
        ("client,dropout\n0,nan\n", "line 2 has dropout='nan'"),
        ("client,dropout\n0,2\n", "line 2: Device"),
        ("client,dropout\n-1,0\n", "line 2 has client='-1': must be a whole number"),
        ("client,dropout\n0\n", "line 2 has 1 values, and there are 2 columns"),
        ("client,dropout\n0,0\n3,0\n", r"2 of clients=3 have no row \(1, 2\)"),
    ],
)
def test_a_file_of_devices_that_cannot_be_used_is_refused_with_its_line(tmp_path: Path, text: str, says: str) -> None:
    file = tmp_path / "devices.csv"
    file.write_text(text)
    with pytest.raises(UserError, match=says) as refused:
        read_devices(str(file), 3)
    assert str(refused.value).startswith(f"devices={file}: ")
    assert "\n" not in str(refused.value)


def test_a_file_that_is_not_there_is_named() -> None:
    with pytest.raises(UserError, match=r"^traces=nowhere.csv: cannot be read \(No such file or directory\)"):
        read_traces("nowhere.csv", 1)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("client,start\n0,1\n", "the first line lacks end"),
        ("client,start,end\n0,5,5\n", "line 2 has start=5 and end=5: expected 0 <= start < end"),
        ("client,start,end\n0,-1,5\n", "line 2 has start=-1"),
        ("client,start,end\n0,0,5\n", r"1 of clients=2 have no row \(1\)"),
    ],
)
def test_a_file_of_traces_that_cannot_be_used_is_refused_with_its_line(tmp_path: Path, text: str, says: str) -> None:
    file = tmp_path / "traces.csv"
    file.write_text(text)
    with pytest.raises(UserError, match=says):
        read_traces(str(file), 2)


def test_traces_are_read_in_any_order(tmp_path: Path) -> None:
    file = tmp_path / "traces.csv"
    file.write_text("client,start,end\n1,0,5\n0,10,20\n0,0,5\n")
    assert read_traces(str(file), 2) == {1: [(0.0, 5.0)], 0: [(10.0, 20.0), (0.0, 5.0)]}


class Plain:
    def run(self, weights: Bundle, client: int, task: Task) -> Work:
        return Work(weights.copy() if task.counts else None, 4.0, {"examples": (4.0, 1.0)})


def test_in_wall_clock_time_a_task_waits_for_the_rest_of_its_device_s_time() -> None:
    waited: list[float] = []
    now = iter([100.0, 100.5])  # the work itself takes half a second
    weights = Bundle.pack({"w": np.zeros(250_000, np.float32)})  # 1 MB
    device = Device(seconds_per_example=0.5, upload_mbps=8.0)
    worker = Paced(Plain(), lambda client: device, lambda examples: 3 * examples, wait=waited.append, clock=lambda: next(now))
    worker.run(weights, 0, Task(0, 0, (0,)))
    assert waited == [pytest.approx(3 * 4 * 0.5 + 1.0 - 0.5)]


def test_in_wall_clock_time_a_client_drops_out_after_a_part_of_its_time() -> None:
    waited: list[float] = []
    device = Device(seconds_per_example=1.0, dropout=0.999)
    worker = Paced(Plain(), lambda client: device, float, wait=waited.append, clock=lambda: 0.0)
    with pytest.raises(AwayError, match="client 0 dropped out"):
        worker.run(Bundle.pack({"w": np.zeros(3, np.float32)}), 0, Task(0, 0, (0,)))
    assert 0 < waited[0] <= 4.0
