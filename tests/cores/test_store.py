"""Facts about snapshots: whole or not loaded, durable or not there, readable without Shoal."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from shoal.coordinator.keeping.disk import Disk, DiskTrouble, Lock, SyncFailed, write_file
from shoal.coordinator.keeping.store import CODES, CorruptError, Snapshot, Store, newest, read, snapshots
from shoal.faults.ramdisk import File, RamDisk
from shoal.protocol.errors import UserError
from shoal.protocol.layout import DTYPES, Bundle, Layout

ROOT = Path("run")


def snapshot(version: int = 1, **counters: Any) -> Snapshot:
    weights = Bundle.zeros(Layout.of({"half": ("bf16", (3,)), "w": ("f4", (2, 5)), "none": ("f4", (0, 4)), "n": ("i8", ())}))
    for k, (_, array) in enumerate(weights.items()):
        array[...] = version + k
    state: dict[str, np.ndarray[Any, Any]] = {"adam/m": np.linspace(0, version, 7), "t": np.array(version, np.uint32)}
    state["random"] = np.arange(5, dtype=np.uint8)
    return Snapshot(version, weights, state, counters)


def same(a: Snapshot | None, b: Snapshot) -> bool:
    assert a is not None
    states = a.state.keys() == b.state.keys() and all(_equal(a.state[name], b.state[name]) for name in a.state)
    return (a.version, a.weights.sha256(), a.counters) == (b.version, b.weights.sha256(), b.counters) and states


def _equal(a: np.ndarray[Any, Any], b: np.ndarray[Any, Any]) -> bool:
    return a.dtype == b.dtype and a.shape == b.shape and a.tobytes() == b.tobytes()


def unexpected(line: str) -> None:
    pytest.fail(line)


def test_a_sparse_file_that_claims_gigabytes_gets_no_memory_for_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    given: list[int] = []
    zeros = Bundle.zeros
    monkeypatch.setattr(Bundle, "zeros", lambda layout: given.append(layout.nbytes) or zeros(layout))
    path, layout = tmp_path / "00000001.safetensors", Layout.of({"w": ("f4", (1 << 26,))})
    about = {"sha256": "1" * 64, "format": "shoal 1", "version": "1", "counters": "{}", "layout": json.dumps(layout.rows())}
    row = {"dtype": "F32", "shape": [1 << 26], "data_offsets": [0, 1 << 28]}
    text = json.dumps({"__metadata__": about, "weights/w": row}).encode()
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        file.truncate(8 + len(text) + (1 << 28))
    with pytest.raises(CorruptError, match="the digest does not fit"):
        read(path)
    assert given == []


def test_a_file_large_enough_to_be_hashed_first_is_loaded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("shoal.coordinator.keeping.store.HASHED_FIRST", 1)
    store = Store(ROOT, disk=RamDisk())
    store.save(snapshot(7))
    assert same(store.newest(unexpected), snapshot(7))


def test_what_is_saved_is_loaded() -> None:
    store = Store(ROOT, disk=RamDisk())
    assert store.newest(unexpected) is None
    wrote = snapshot(7, epoch=3, rate=0.1, name="digits", seen=[["a", 1], ["b", 2]], nested={"k": None})
    store.save(wrote)
    assert same(store.newest(unexpected), wrote)


def test_every_dtype_comes_back_bit_for_bit() -> None:
    layout = Layout.of({dtype: (dtype, (3, 2)) for dtype in DTYPES})
    weights = Bundle.zeros(layout)
    for name, array in weights.items():
        array[...] = np.arange(6).reshape(3, 2) % 2 if name == "b1" else np.arange(6).reshape(3, 2)
    state = {code: np.ones(2, dtype) for code, dtype in (("u2", "u2"), ("u4", "u4"), ("u8", "u8"), ("b", "?"), ("T", "f8"))}
    state["slice"] = np.arange(12, dtype=np.float32).reshape(3, 4).T[::2]  # not contiguous
    store = Store(ROOT, disk=RamDisk())
    store.save(Snapshot(1, weights, state))
    assert same(store.newest(unexpected), Snapshot(1, weights, state))
    assert set(DTYPES) < set(CODES)


def test_the_safetensors_library_reads_it(tmp_path: Path) -> None:
    numpy_file = pytest.importorskip("safetensors.numpy")
    wrote = snapshot(3, epoch=1)
    plain = Snapshot(3, Bundle.pack({"w": wrote.weights["w"], "n": wrote.weights["n"]}), wrote.state, wrote.counters)
    path = Store(tmp_path).save(plain)
    tensors = numpy_file.load_file(path)
    assert sorted(tensors) == ["state/adam/m", "state/random", "state/t", "weights/n", "weights/w"]
    assert np.array_equal(tensors["weights/w"], wrote.weights["w"])
    assert np.array_equal(tensors["state/adam/m"], wrote.state["adam/m"])
    assert tensors["state/t"] == 3
    with pytest.importorskip("safetensors").safe_open(path, "np") as file:
        about = file.metadata()
    assert (about["format"], about["version"], json.loads(about["counters"])) == ("shoal 1", "3", {"epoch": 1})


def test_bfloat16_is_bfloat16_to_torch(tmp_path: Path) -> None:
    torch = pytest.importorskip("torch")
    load_file = pytest.importorskip("safetensors.torch").load_file
    weights = Bundle.zeros(Layout.of({"w": ("f4", (3,)), "half": ("bf16", (2,))}))
    weights["half"][...] = 0x3FC0  # 1.5
    path = Store(tmp_path).save(Snapshot(1, weights))
    tensors = load_file(path)
    assert tensors["weights/half"].dtype == torch.bfloat16
    assert tensors["weights/half"].tolist() == [1.5, 1.5]


def test_a_dtype_that_no_snapshot_holds_is_named() -> None:
    store = Store(ROOT, disk=RamDisk())
    for array in (np.array(["text"]), np.ones(2, ">f4"), np.ones(2, "c8"), np.array([None])):
        with pytest.raises(TypeError, match="state 'odd' has dtype"):
            store.save(Snapshot(1, snapshot().weights, {"odd": array}))


def test_the_last_three_are_kept() -> None:
    disk = RamDisk()
    store = Store(ROOT, disk=disk)
    for version in range(1, 7):
        store.save(snapshot(version))
        assert same(newest(ROOT, unexpected, disk), snapshot(version))
    assert [version for version, _ in snapshots(store.folder, disk)] == [4, 5, 6]


def test_old_ones_go_only_after_the_new_one_is_durable() -> None:
    disk = RamDisk()
    store = Store(ROOT, keep=1, disk=disk)
    store.save(snapshot(1))
    calls: list[str] = []
    disk.fault = lambda call, path: calls.append(call) or 0  # type: ignore[func-returns-value]
    store.save(snapshot(2))
    assert [call for call in calls if call != "names"] == ["create", "write", "sync", "rename", "sync_folder", "unlink"]


def test_a_damaged_one_is_stepped_over_reported_and_never_met_again() -> None:
    disk = RamDisk()
    store = Store(ROOT, disk=disk)
    for version in (1, 2, 3):
        store.save(snapshot(version))
    disk.seen[store.folder / "00000003.safetensors"].seen[-1] ^= 4
    lines: list[str] = []
    assert same(newest(ROOT, lines.append, disk), snapshot(2))
    assert same(Store(ROOT, disk=disk).newest(lines.append), snapshot(2))
    assert len(lines) == 2
    assert "00000003.safetensors is damaged (the digest does not fit)" in lines[1]
    assert disk.names(store.folder)[-1] == "00000003.safetensors.damaged"
    assert same(Store(ROOT, disk=disk).newest(unexpected), snapshot(2))
    for version in (3, 4, 5, 6):
        store.save(snapshot(version))
    assert disk.names(store.folder) == [f"0000000{k}.safetensors" for k in (4, 5, 6)]


def test_a_snapshot_under_another_versions_name_is_damaged() -> None:
    disk = RamDisk()
    path = Store(ROOT, disk=disk).save(snapshot(1))
    disk.rename(path, path.with_name("00000009.safetensors"))
    with pytest.raises(CorruptError, match="the file holds version 1"):
        read(path.with_name("00000009.safetensors"), disk)


@pytest.fixture(scope="module")
def written() -> bytes:
    disk = RamDisk()
    path = Store(ROOT, disk=disk).save(snapshot(5, epoch=1))
    return disk.seen[path].durable


def load(content: bytes) -> Snapshot:
    disk = RamDisk()
    disk.seen[ROOT / "00000005.safetensors"] = File(bytearray(content))
    return read(ROOT / "00000005.safetensors", disk)


def test_no_flipped_bit_is_ever_loaded(written: bytes) -> None:
    assert same(load(written), snapshot(5, epoch=1))
    for byte in range(len(written)):
        content = bytearray(written)
        content[byte] ^= 1 << (byte % 8)
        with pytest.raises(CorruptError):
            load(bytes(content))


def test_no_part_of_a_snapshot_is_ever_loaded(written: bytes) -> None:
    for length in range(len(written)):
        with pytest.raises(CorruptError):
            load(written[:length])
    with pytest.raises(CorruptError):
        load(written + b"\0")


@given(st.binary(max_size=300), st.sampled_from([b"", b'{"__metadata__":', b'{"weights/w":{"dtype":"F32","shape":[1],']))
def test_a_file_of_anything_is_no_snapshot(content: bytes, start: bytes) -> None:
    text = start + content
    with pytest.raises(CorruptError):
        load(len(text).to_bytes(8, "little") + text)
    with pytest.raises(CorruptError):
        load(content)


LIES: dict[str, dict[str, dict[str, Any]]] = {
    "a tensor beyond the file": {"weights/w": {"data_offsets": [0, 1 << 40], "shape": [1 << 38]}},
    "a tensor over another": {"weights/w": {"data_offsets": [24, 64]}},
    "a shape that wraps to nothing": {"weights/w": {"shape": [1 << 32, 1 << 32]}},
    "a shape below zero": {"weights/w": {"shape": [-2, -5]}},
    "a shape of truths": {"weights/n": {"shape": [True]}},
    "offsets that are not whole": {"weights/w": {"data_offsets": [0.0, 40.0]}},
    "a dtype nobody has": {"weights/w": {"dtype": "F4096"}},
    "a shape of too many dimensions": {"state/adam/m": {"shape": [7, *[1] * 70]}},
    "another layout": {"weights/w": {"shape": [5, 2]}},
    "a row that is none": {"weights/w": {"shape": None}},
}


@pytest.mark.parametrize("lie", LIES)
def test_a_header_that_lies_is_refused_before_anything_is_read(written: bytes, lie: str) -> None:
    length = int.from_bytes(written[:8], "little")
    rows = json.loads(written[8 : 8 + length])
    for name, fields in LIES[lie].items():
        rows[name].update(fields)
    text = json.dumps(rows).encode()
    with pytest.raises(CorruptError) as refusal:
        load(len(text).to_bytes(8, "little") + text + written[8 + length :])
    assert "digest" not in str(refusal.value)


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EIO, errno.EROFS, errno.EMFILE])
@pytest.mark.parametrize("call", ["create", "write", "rename"])
def test_trouble_while_saving_leaves_the_former_ones_and_no_temporary_file(call: str, code: int) -> None:
    disk = RamDisk()
    store = Store(ROOT, disk=disk)
    store.save(snapshot(1))
    disk.fault = lambda its, path: code if its == call else 0
    with pytest.raises(DiskTrouble) as trouble:
        store.save(snapshot(2))
    assert trouble.value.errno == code
    assert not isinstance(trouble.value, SyncFailed)
    assert disk.names(store.folder) == ["00000001.safetensors"]
    assert disk.descriptors == {}
    disk.fault = lambda its, path: 0
    store.save(snapshot(2))
    assert same(store.newest(unexpected), snapshot(2))


def test_a_disk_that_fills_up_in_the_middle_of_a_snapshot_is_noticed() -> None:
    disk = RamDisk()
    store = Store(ROOT, disk=disk)
    store.save(snapshot(1))
    disk.capacity = 2 * len(disk.seen[store.folder / "00000001.safetensors"].seen) - 1
    with pytest.raises(DiskTrouble, match="No space left"):
        store.save(snapshot(2))
    assert disk.names(store.folder) == ["00000001.safetensors"]


@pytest.mark.parametrize("call", ["sync", "sync_folder"])
def test_a_failed_sync_is_told_apart(call: str) -> None:
    disk = RamDisk()
    store = Store(ROOT, disk=disk)
    disk.fault = lambda its, path: errno.EIO if its == call else 0
    with pytest.raises(SyncFailed, match="end, then run shoal resume"):
        store.save(snapshot(1))


def test_short_writes_are_continued() -> None:
    disk = RamDisk()
    disk.longest = 13
    store = Store(ROOT, disk=disk)
    store.save(snapshot(1))
    assert same(store.newest(unexpected), snapshot(1))


def test_a_file_the_device_cannot_read_is_stepped_over_but_too_many_descriptors_are_not_damage() -> None:
    disk = RamDisk()
    store = Store(ROOT, disk=disk)
    store.save(snapshot(1))
    store.save(snapshot(2))
    disk.fault = lambda call, path: errno.EMFILE if call == "open" else 0
    with pytest.raises(OSError, match="Too many open files"):
        store.newest(unexpected)
    disk.fault = lambda call, path: errno.EIO if call == "read" and path.name == "00000002.safetensors" else 0
    lines: list[str] = []
    assert same(store.newest(lines.append), snapshot(1))
    assert "the device cannot read the file" in lines[0]


def test_what_a_crash_left_half_written_is_cleared_at_the_next_start() -> None:
    disk = RamDisk()
    store = Store(ROOT, disk=disk)
    disk.close(disk.create(store.folder / "00000001.safetensors.tmp"))
    Store(ROOT, disk=disk)
    assert disk.names(store.folder) == []


def test_a_journal_may_be_forgotten_only_up_to_the_oldest_of_all_kept_snapshots() -> None:
    disk = RamDisk()
    store = Store(ROOT, keep=2, disk=disk)
    assert store.oldest() is None
    store.save(snapshot(1, record=10))
    assert store.oldest() is None  # were this one damaged, the journal would be all there is
    store.save(snapshot(2, record=20))
    assert store.oldest() == {"record": 10}
    again = Store(ROOT, keep=2, disk=disk)
    again.newest(unexpected)
    assert again.oldest() is None  # this life has not seen that version 1 is whole
    again.save(snapshot(3, record=30))
    assert again.oldest() == {"record": 20}


def test_keeping_none_is_refused() -> None:
    with pytest.raises(ValueError, match="keep=0"):
        Store(ROOT, keep=0, disk=RamDisk())


def test_a_second_coordinator_on_one_run_directory_is_refused_by_pid(tmp_path: Path) -> None:
    ask = f"from shoal.coordinator.keeping.disk import Lock; from pathlib import Path; Lock(Path({str(tmp_path)!r}))"
    with contextlib.closing(Lock(tmp_path)):
        with pytest.raises(UserError, match=f"in use by the coordinator with pid {os.getpid()}: stop that one"):
            Lock(tmp_path)
        other = subprocess.run([sys.executable, "-c", ask], capture_output=True, text=True, check=False)
        assert other.returncode != 0
        assert f"pid {os.getpid()}" in other.stderr
    subprocess.run([sys.executable, "-c", ask], check=True)  # its end, too, gave the lock back
    Lock(tmp_path).close()


def test_a_program_started_later_does_not_inherit_the_lock(tmp_path: Path) -> None:
    lock = Lock(tmp_path)
    with subprocess.Popen(["cat"], stdin=subprocess.PIPE, close_fds=False) as child:
        lock.close()
        Lock(tmp_path).close()  # would be refused if the child held a copy
        assert child.poll() is None
        assert child.stdin is not None
        child.stdin.close()


def test_a_real_disk_writes_whole_files_and_folders(tmp_path: Path) -> None:
    store = Store(tmp_path / "a" / "b")
    wrote = snapshot(1, record=4)
    store.save(wrote)
    assert same(store.newest(unexpected), wrote)
    assert [path.name for path in (tmp_path / "a/b/checkpoints").iterdir()] == ["00000001.safetensors"]
    many = [bytes([k % 256]) * (k % 7) for k in range(2000)]  # more buffers than one call takes
    write_file(Disk(), tmp_path / "many", many)
    assert (tmp_path / "many").read_bytes() == b"".join(many)


@pytest.mark.parametrize("code", [errno.EMFILE, errno.ENFILE])
def test_a_folder_that_could_not_be_opened_to_be_synced_is_trouble_to_be_tried_again(code: int) -> None:
    disk = RamDisk()
    store = Store(ROOT, disk=disk)
    disk.fault = lambda call, path: code if call == "sync_folder" else 0
    with pytest.raises(DiskTrouble) as trouble:
        store.save(snapshot(1))
    assert not isinstance(trouble.value, SyncFailed)
    disk.fault = lambda call, path: 0
    store.save(snapshot(1))
    assert Store(ROOT, disk=disk).newest(print) is not None


def test_names_that_cannot_be_listed_for_want_of_a_descriptor_are_trouble_too() -> None:
    disk = RamDisk()
    store = Store(ROOT, disk=disk)
    disk.fault = lambda call, path: errno.EMFILE if call == "names" else 0
    with pytest.raises(DiskTrouble):
        store.oldest()


@pytest.mark.parametrize(("module", "call"), [("fcntl", "flock"), ("os", "ftruncate"), ("os", "pwrite")])
def test_a_lock_that_the_file_system_refuses_is_trouble_and_is_not_held(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, module: str, call: str
) -> None:
    def fail(*_: Any) -> None:
        raise OSError(errno.ENOLCK, "none left")

    with monkeypatch.context() as patched:
        patched.setattr(f"{module}.{call}", fail)
        with pytest.raises(DiskTrouble, match=r"^\[Errno \d+\] cannot lock .*: none left"):
            Lock(tmp_path)
    Lock(tmp_path).close()
