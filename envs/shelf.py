"""One copy of a job's examples for several processes of a machine that cannot have it from their parent.

The one idea: the processes have a file without a name from their parent. The first one that needs the examples writes them into
the file, the others map the file. A lock of the system's keeps them apart, which a process that dies lets go of, and a header
that is written last tells a whole copy from a part of one.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import mmap
import os
import struct
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import numpy.typing as npt

from shoal.envs.datasets import Examples
from shoal.envs.population import Population

MAGIC = b"shoal examples 1"
HEAD = struct.Struct("<16sQ")  # MAGIC, and the bytes of the table behind it
PAGE = 4096
ARRAYS = ("x", "y", "weight")


class Shelf:
    """A place for the examples of one population, made before the processes are forked. It takes no memory until it is used,
    and goes with the last process that has it."""

    def __init__(self) -> None:
        self.descriptor, self.lock = _nameless(), _nameless()  # a lock is lost when any descriptor of its file is closed

    def population(self, key: str, make: Callable[[], Population]) -> Population:
        """The population that `make` gives, with its examples in shared memory if it is one data set that is divided.

        key: tells populations apart. Of a key other than the first one's, and of a population that is no one data set, each
        process makes its own.
        """
        digest = hashlib.sha256(key.encode()).hexdigest()
        with self._alone():
            if (table := self._table()) is None:
                made = make()
                if made.divides is None or made.sizes is None:
                    return made
                self._write(digest, made)
                table = self._table()
                assert table is not None
                del made
        return self._read(table) if table["key"] == digest else make()

    @contextmanager
    def _alone(self) -> Iterator[None]:
        fcntl.lockf(self.lock, fcntl.LOCK_EX)
        try:
            yield
        finally:
            fcntl.lockf(self.lock, fcntl.LOCK_UN)

    def _table(self) -> dict[str, Any] | None:
        """The contents of the shelf: where each array lies; None if nothing is, or less than all of something."""
        head = os.pread(self.descriptor, HEAD.size, 0)
        if len(head) < HEAD.size or (found := HEAD.unpack(head))[0] != MAGIC:
            return None
        table: dict[str, Any] = json.loads(os.pread(self.descriptor, found[1], HEAD.size))
        return table

    def _write(self, digest: str, made: Population) -> None:
        arrays: list[dict[str, Any]] = []
        table: dict[str, Any] = {"key": digest, "notes": made.notes, "scales": {}, "arrays": arrays}
        given = dict(_arrays(made))
        at = PAGE * (2 + (256 * len(given) + 6 * sum(map(len, made.notes))) // PAGE)  # more than the table takes
        for name, array in given.items():
            arrays.append({"name": name, "dtype": array.dtype.str, "shape": array.shape, "at": at})
            at += -(-array.nbytes // PAGE) * PAGE
        for part, examples in (("divides", made.divides), ("held_out", made.held_out)):
            if examples is not None:
                table["scales"][part] = examples.scale
        os.ftruncate(self.descriptor, max(at, PAGE))
        with mmap.mmap(self.descriptor, max(at, PAGE)) as memory:
            for place, array in zip(arrays, given.values(), strict=True):
                into = np.frombuffer(memory, array.dtype, array.size, place["at"]).reshape(array.shape)
                into[...] = array
                del into
        text = json.dumps({**table, "bytes": max(at, PAGE)}).encode()
        os.pwrite(self.descriptor, text, HEAD.size)
        os.pwrite(self.descriptor, HEAD.pack(MAGIC, len(text)), 0)

    def _read(self, table: dict[str, Any]) -> Population:
        memory = mmap.mmap(self.descriptor, table["bytes"], access=mmap.ACCESS_READ)
        found: dict[str, npt.NDArray[Any]] = {}
        for place in table["arrays"]:
            size = int(np.prod(place["shape"], dtype=np.int64))
            array = np.frombuffer(memory, np.dtype(place["dtype"]), size, place["at"])
            found[place["name"]] = array.reshape(place["shape"])
        divides, held_out = (
            Examples(*(found.get(f"{part}.{name}") for name in ARRAYS), scale=scale) if scale else None  # type: ignore[arg-type]
            for part in ("divides", "held_out")
            for scale in (table["scales"].get(part),)
        )
        assert divides is not None
        return Population.in_order(divides, found["sizes"], held_out, tuple(table["notes"]))


def _nameless() -> int:
    """The descriptor of a new file without a name: in memory on Linux, else in the folder for temporary files."""
    if sys.platform == "linux":
        return os.memfd_create("shoal-examples", os.MFD_CLOEXEC)
    with tempfile.TemporaryFile(buffering=0) as file:
        return os.dup(file.fileno())


def _arrays(made: Population) -> Iterator[tuple[str, npt.NDArray[Any]]]:
    """Yield each array of a population, by name."""
    assert made.sizes is not None
    yield "sizes", np.ascontiguousarray(made.sizes)
    for part, examples in (("divides", made.divides), ("held_out", made.held_out)):
        for name in ARRAYS:
            if examples is not None and (array := getattr(examples, name)) is not None:
                yield f"{part}.{name}", np.ascontiguousarray(array)
