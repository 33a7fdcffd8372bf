"""The limits of control groups, read from made-up folders of both versions."""

from __future__ import annotations

import math
from pathlib import Path

import pytest

from shoal.protocol import cgroups
from shoal.runs import threads


@pytest.mark.parametrize("version", [1, 2])
def test_the_narrowest_container_says_how_many_cores_there_are(tmp_path: Path, version: int) -> None:
    (tmp_path / "self").mkdir()
    (tmp_path / "self" / "cgroup").write_text(["7:memory:/else\n4:cpu,cpuacct:/a/b\n", "0::/a/b\n"][version - 1])
    inner = (tmp_path / "cpu" if version == 1 else tmp_path) / "a" / "b"
    inner.mkdir(parents=True)
    assert cgroups.cores(tmp_path, tmp_path) == math.inf
    for folder, quota in ((inner, None), (inner.parent, 150_000)):
        if version == 2:
            (folder / "cpu.max").write_text(f"{quota or 'max'} 100000\n")
        else:
            (folder / "cpu.cfs_quota_us").write_text(f"{quota or -1}\n")
            (folder / "cpu.cfs_period_us").write_text("100000\n")
    assert cgroups.cores(tmp_path, tmp_path) == 1.5


@pytest.mark.parametrize(("may", "quota", "cores"), [(8, math.inf, 8), (8, 1.5, 2), (8, 0.2, 1), (2, 6.0, 2)])
def test_a_process_uses_no_more_cores_than_its_container_has_the_time_of(
    monkeypatch: pytest.MonkeyPatch, may: int, quota: float, cores: int
) -> None:
    monkeypatch.setattr("os.sched_getaffinity", lambda pid: set(range(may)), raising=False)
    monkeypatch.setattr("shoal.protocol.cgroups.cores", lambda: quota)
    assert threads.cores() == cores
