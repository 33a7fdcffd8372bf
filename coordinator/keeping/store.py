"""Snapshots: a run's weights, its aggregator's state and its counters, one safetensors file a version.

The one idea: a file's digest covers every byte of the file, header included, and only a file that fits its digest is loaded.
So a restart takes the newest whole snapshot, says which ones it stepped over, and cannot take half of one.

The format is written here, and the safetensors library's `load_file` reads it. That library does not write it, because it
copies, knows no bfloat16 without torch, and gives its caller no way to sync or to see a full disk.
Tensors are called `weights/NAME` and `state/NAME`. Bytes between a layout's segments are not kept; they come back as zeros.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import math
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from shoal.coordinator.keeping import disk as disks
from shoal.coordinator.keeping.disk import Disk, DiskTrouble, trouble
from shoal.protocol.layout import ALIGNMENT, DTYPES, STORED, UNSIGNED, Bundle, Layout

Array = npt.NDArray[Any]
Counters = Mapping[str, Any]
"""Values that JSON can hold: numbers, strings, booleans, None, lists and mappings of them."""

FORMAT = "shoal 1"
FOLDER = "checkpoints"
NAME = re.compile(r"(\d{8,})\.safetensors")
DAMAGED = ".damaged"
LARGEST_HEADER = 100_000_000  # bytes, as in the safetensors library
ITEMS: Mapping[str, np.dtype[Any]] = {**DTYPES, **UNSIGNED}
CODES: Mapping[str, str] = {  # our dtype -> safetensors'
    **{"f8": "F64", "f4": "F32", "f2": "F16", "bf16": "BF16", "i8": "I64", "i4": "I32", "i2": "I16", "i1": "I8"},
    **{"u1": "U8", "u2": "U16", "u4": "U32", "u8": "U64", "b1": "BOOL"},
}
HASHED = 1 << 20  # bytes that are read at a time where only the digest is looked at
HASHED_FIRST = 1 << 26  # bytes of a file from which on its digest is checked before its arrays get memory
NO_DIGEST = "0" * 64


class CorruptError(ValueError):
    """A snapshot file that is not as it was written. The text says in which way."""


@dataclass(frozen=True, eq=False)
class Snapshot:
    """The state that a run goes on from. state: the aggregator's own arrays (optimizer moments, random states) by name.
    counters: values that JSON can hold; tuples come back as lists."""

    version: int
    weights: Bundle
    state: Mapping[str, Array] = field(default_factory=dict)
    counters: Counters = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class _Tensor:
    """A row of a header. first, last: begin and end of the tensor's bytes, counted from the end of the header."""

    name: str
    code: str
    shape: tuple[int, ...]
    first: int
    last: int


class Store:
    """The snapshots of the run in `folder`, whose lock the caller holds. kept: version -> counters of the snapshots known to be
    whole."""

    def __init__(self, folder: Path, keep: int = 3, disk: Disk = disks.REAL) -> None:
        """Make `checkpoints/`, and unlink the temporary files that a crash left. keep: number of snapshots to keep, at least 1.
        Raises DiskTrouble."""
        if keep < 1:
            raise ValueError(f"keep={keep}: must be at least 1 snapshot")
        self.folder = folder / FOLDER
        self.keep = keep
        self.disk = disk
        self.kept: dict[int, Counters] = {}
        with trouble(f"open {self.folder}"):
            disk.make_folder(self.folder)
        disks.sweep(disk, self.folder)

    def save(self, snapshot: Snapshot) -> Path:
        """Write a snapshot, durably; only then unlink the snapshots before the last `keep`. Returns the file. The arrays must
        not change meanwhile. Saving a version again replaces its file.

        Raises DiskTrouble, with the former snapshots untouched and no temporary file left; or SyncFailed.
        """
        path = self.folder / f"{snapshot.version:08d}.safetensors"
        try:
            disks.write_file(self.disk, path, _buffers(snapshot))
        except DiskTrouble as trouble:
            if trouble.errno == errno.ENOENT and self.folder.parent.is_dir():  # the next attempt finds the folder
                self.disk.make_folder(self.folder)
            raise
        self.kept[snapshot.version] = dict(snapshot.counters)
        self._drop_old()
        return path

    def newest(self, report: Callable[[str], None]) -> Snapshot | None:
        """The newest whole snapshot, or None. Damaged snapshots on the way are reported and renamed, so that a version made
        anew never meets its damaged file."""
        disks.sync_folder(self.disk, self.folder)  # a name that the last life left behind may not be durable yet
        for version, path in reversed(snapshots(self.folder, self.disk)):
            try:
                snapshot = read(path, self.disk)
            except CorruptError as damage:
                report(f"snapshot {path} is damaged ({damage}); set aside, going back to the snapshot before")
                with trouble(f"set {path} aside"):
                    self.disk.rename(path, path.with_name(path.name + DAMAGED))
                    disks.sync_folder(self.disk, self.folder)
                continue
            self.kept[version] = snapshot.counters
            return snapshot
        return None

    def oldest(self) -> Counters | None:
        """Counters of the oldest of the newest `keep` snapshots: no kept snapshot needs the journal's records up to there. None
        if there are fewer snapshots, or if this life has neither written nor read that one. Raises DiskTrouble."""
        with trouble(f"list {self.folder}"):
            versions = [version for version, _ in snapshots(self.folder, self.disk)]
        return self.kept.get(versions[-self.keep]) if len(versions) >= self.keep else None

    def _drop_old(self) -> None:
        with contextlib.suppress(OSError):  # the new snapshot is safe; the next save tries again
            versions = [version for version, _ in snapshots(self.folder, self.disk)]
            oldest = versions[-self.keep :][0]
            for name in self.disk.names(self.folder):
                match = NAME.fullmatch(name.removesuffix(DAMAGED))
                if match and int(match[1]) < oldest:
                    self.disk.unlink(self.folder / name)
                    self.kept.pop(int(match[1]), None)


def newest(folder: Path, report: Callable[[str], None], disk: Disk = disks.REAL) -> Snapshot | None:
    """The newest whole snapshot of a run that may be going on, or None. Reads only, and needs no lock."""
    for _, path in reversed(snapshots(folder / FOLDER, disk)):
        try:
            return read(path, disk)
        except CorruptError as damage:
            report(f"snapshot {path} is damaged ({damage}); going back to the snapshot before")
        except FileNotFoundError:  # the run has unlinked the file just now
            continue
    return None


def snapshots(folder: Path, disk: Disk = disks.REAL) -> list[tuple[int, Path]]:
    """The pairs (version, file) of all snapshot files, by version. A file may be damaged."""
    return disks.numbered(disk, folder, NAME)


def read(path: Path, disk: Disk = disks.REAL) -> Snapshot:
    """The snapshot in a file, with every offset and the digest checked. Raises CorruptError; OSError if it cannot be opened."""
    fd = disk.open(path)
    try:
        return _read(disk, fd, path)
    except OSError as error:
        if error.errno != errno.EIO:
            raise
        raise CorruptError("the device cannot read the file") from error
    finally:
        disk.close(fd)


def _buffers(snapshot: Snapshot) -> list[memoryview]:
    """The bytes of a snapshot's file; the arrays are their own memory, not copies."""
    parts = sorted(_parts(snapshot), key=lambda part: -ITEMS[part[1]].itemsize)  # so that every tensor is aligned
    rows: dict[str, Any] = {"__metadata__": _metadata(snapshot)}
    offset = 0
    for name, dtype, array in parts:
        rows[name] = {"dtype": CODES[dtype], "shape": list(array.shape), "data_offsets": [offset, offset + array.nbytes]}
        offset += array.nbytes
    data = [_raw(array) for _, _, array in parts if array.nbytes]
    head = _head(rows)
    summed = hashlib.sha256(head)
    for part in data:
        summed.update(part)
    return [memoryview(head.replace(NO_DIGEST.encode(), summed.hexdigest().encode(), 1)), *data]


def _raw(array: Array) -> memoryview:
    return array.reshape(-1).view(np.uint8).data


def _parts(snapshot: Snapshot) -> Iterator[tuple[str, str, Array]]:
    for place in snapshot.weights.layout.places:
        yield f"weights/{place.name}", place.dtype, snapshot.weights[place.name]
    for name, array in snapshot.state.items():
        yield f"state/{name}", _dtype(name, array), np.ascontiguousarray(array).reshape(array.shape)


def _dtype(name: str, array: Array) -> str:
    if found := STORED.get(array.dtype.str):
        return found
    raise TypeError(f"state {name!a} has dtype {array.dtype}; a snapshot holds {', '.join(CODES)}")


def _metadata(snapshot: Snapshot) -> dict[str, str]:
    """The metadata of a header. The digest comes first, because its place is the first 64 zeros of the header."""
    return {
        "sha256": NO_DIGEST,
        "format": FORMAT,
        "version": str(snapshot.version),
        "layout": json.dumps(snapshot.weights.layout.rows(), separators=(",", ":")),
        "counters": json.dumps(snapshot.counters, separators=(",", ":")),
    }


def _head(rows: Mapping[str, Any]) -> bytes:
    """The header's length and the header, padded with spaces so that the arrays begin on a cache line."""
    text = json.dumps(rows, separators=(",", ":")).encode()
    text += b" " * (-(len(text) + 8) % ALIGNMENT)
    return len(text).to_bytes(8, "little") + text


def _read(disk: Disk, fd: int, path: Path) -> Snapshot:
    head, rows = _read_head(disk, fd)
    about = rows.pop("__metadata__", {})
    tensors = _tensors(rows, disk.size(fd) - len(head))
    if len(head) + sum(tensor.last - tensor.first for tensor in tensors) > HASHED_FIRST:
        _check_digest(disk, fd, head, about)
    snapshot = _empty(about, tensors)
    if (match := NAME.fullmatch(path.name)) and int(match[1]) != snapshot.version:
        raise CorruptError(f"the file holds version {snapshot.version}")
    summed = hashlib.sha256(head.replace(about["sha256"].encode(), NO_DIGEST.encode(), 1))
    for tensor in tensors:
        part, name = tensor.name.split("/", 1)
        array = snapshot.weights[name] if part == "weights" else snapshot.state[name]
        if array.nbytes:
            into = _raw(array)
            if disks.fill(disk, fd, into, len(head) + tensor.first) != array.nbytes:
                raise CorruptError("the file ends early")
            summed.update(into)
    if summed.hexdigest() != about["sha256"]:
        raise CorruptError("the digest does not fit")
    return snapshot


def _check_digest(disk: Disk, fd: int, head: bytes, about: Mapping[str, str]) -> None:
    """Read the file once, a piece at a time, before its arrays get memory: a sparse file may claim any size."""
    with _corrupt("the metadata is not that of a snapshot", KeyError, TypeError, AttributeError):
        told = about["sha256"]
        summed, at = hashlib.sha256(head.replace(told.encode(), NO_DIGEST.encode(), 1)), len(head)
    while piece := disks.read_all(disk, fd, HASHED, at):
        summed.update(piece)
        at += len(piece)
    if summed.hexdigest() != told:
        raise CorruptError("the digest does not fit")


def _read_head(disk: Disk, fd: int) -> tuple[bytes, dict[str, Any]]:
    size = disk.size(fd)
    length = int.from_bytes(disks.read_all(disk, fd, 8, 0), "little")
    if size < 8 or length > min(size - 8, LARGEST_HEADER):
        raise CorruptError("the header is cut short or is no header")
    head = disks.read_all(disk, fd, 8 + length, 0)
    with _corrupt("the header is not JSON", ValueError, RecursionError):
        rows = json.loads(head[8:])
    if type(rows) is not dict:
        raise CorruptError("the header is not a JSON object")
    return head, rows


def _tensors(rows: Mapping[str, Any], nbytes: int) -> list[_Tensor]:
    """The tensors of a header in the order of their bytes, which they fill without gap or overlap."""
    with _corrupt("a tensor is not described", KeyError, TypeError, ValueError, AttributeError):
        found = [_Tensor(n, row["dtype"], tuple(row["shape"]), *row["data_offsets"]) for n, row in rows.items()]
        found.sort(key=lambda tensor: (tensor.first, tensor.last))
    end = 0
    for tensor in found:
        dtype = _known(tensor)
        if tensor.first != end or tensor.last - end != math.prod(tensor.shape) * ITEMS[dtype].itemsize:
            raise CorruptError(f"tensor {tensor.name!a} does not lie where its shape says")
        end = tensor.last
    if end != nbytes:
        raise CorruptError(f"the file holds {nbytes} bytes of arrays, not {end}")
    return found


def _known(tensor: _Tensor) -> str:
    dtypes = [dtype for dtype, code in CODES.items() if code == tensor.code]
    if not dtypes or not all(type(n) is int and n >= 0 for n in (*tensor.shape, tensor.first, tensor.last)):
        raise CorruptError(f"tensor {tensor.name!a} has a dtype or shape that no snapshot has")
    return dtypes[0]


def _empty(about: Mapping[str, Any], tensors: list[_Tensor]) -> Snapshot:
    """The snapshot that a header describes, with zeros in its arrays."""
    with _corrupt("the metadata is not that of a snapshot", KeyError, TypeError, ValueError, AttributeError, RecursionError):
        if about["format"] != FORMAT or not re.fullmatch("[0-9a-f]{64}", about["sha256"]):
            raise CorruptError(f"the format is not {FORMAT!a}")
        version, counters = int(about["version"]), json.loads(about["counters"])
        layout = Layout.from_rows(json.loads(about["layout"]))
    weights = {f"weights/{p.name}": (CODES[p.dtype], p.shape) for p in layout.places}
    states = [tensor for tensor in tensors if tensor.name.startswith("state/")]
    held = {tensor.name: (tensor.code, tensor.shape) for tensor in tensors if not tensor.name.startswith("state/")}
    if weights != held:
        raise CorruptError("the weights are not those of the layout")
    with _corrupt("the state has impossible shapes", ValueError):  # of a tensor without bytes; others are checked by now
        state = {tensor.name[6:]: np.zeros(tensor.shape, ITEMS[_known(tensor)]) for tensor in states}
    return Snapshot(version, Bundle.zeros(layout), state, counters)


@contextlib.contextmanager
def _corrupt(what: str, *errors: type[Exception]) -> Iterator[None]:
    """Turn an error of parsing an unverified header into CorruptError, because it means only that the header is damaged."""
    try:
        yield
    except CorruptError:
        raise
    except errors as error:
        raise CorruptError(what) from error
