"""Labelled data sets, read from files that are on the disk already: nothing here downloads.

The one idea: a data set is two arrays, `Examples(x, y)`; everything else about federated data is a matter of indices.
"""

from __future__ import annotations

import gzip
import hashlib
import importlib.util
import io
import math
import zlib
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from shoal.protocol import draws
from shoal.protocol.errors import UserError, within

BATCH = 4096  # examples turned into a model's dtype at once, for a digest
READ = 1 << 24  # bytes of a file asked for at once: room is made for all of them, whether they are there or not
MNIST_FROM = "https://ossci-datasets.s3.amazonaws.com/mnist/"
CIFAR10_FROM = "cifar-10-binary.tar.gz of https://www.cs.toronto.edu/~kriz/cifar.html"
CIFAR10 = 3 * 32 * 32  # bytes of a picture: red, green and blue, each 32 rows of 32


@dataclass(frozen=True, eq=False, slots=True)
class Examples:
    """Inputs x [n, ...] and labels y [n, ...], kept in the dtype given if that is no larger than the one in which a model gets
    them: int64 for whole numbers (labels, tokens, bytes of pictures), float32 for others. (uint16 is kept as int32, larger
    unsigned numbers as int64; y [n] always as a model gets it.) `widened` turns them into that dtype, a batch at a time.

    weight: factor of each example's loss, [n], finite, at least 0; None: all examples count alike.
    scale: a model gets x / scale, float32, so that bytes of pictures stay bytes here; 1: x as `widened` turns it.
    """

    x: npt.NDArray[Any]
    y: npt.NDArray[Any]
    weight: npt.NDArray[Any] | None = None
    scale: float = field(default=1.0, kw_only=True)

    def __post_init__(self) -> None:
        within("scale", self.scale, above=0.0)
        object.__setattr__(self, "x", _as_kept(self.x))
        y = _as_kept(self.y)
        object.__setattr__(self, "y", widened(y) if y.ndim == 1 else y)  # classes are few bytes
        if len(self.x) != len(self.y):
            raise UserError(f"examples: {len(self.x)} inputs but {len(self.y)} labels; there must be as many of each")
        if self.weight is not None:
            object.__setattr__(self, "weight", _weights(self.weight, len(self.y)))

    def __len__(self) -> int:
        return len(self.y)

    def sha256(self) -> str:
        """A digest of all arrays, as a model gets them, and their shapes."""
        digest = hashlib.sha256()
        for array, scale in ((self.x, self.scale), (self.y, 1.0), (self.weight, 1.0)):
            if array is None:
                digest.update(b"none")
                continue
            digest.update(f"{widened(array[:0], scale).dtype}{array.shape}".encode())
            for first in range(0, len(array), BATCH):
                digest.update(np.ascontiguousarray(widened(array[first : first + BATCH], scale)).view(np.uint8).data)
        return digest.hexdigest()

    def __getitem__(self, which: Any) -> Examples:
        """A slice (a view) or an array of indices (a copy)."""
        return Examples(self.x[which], self.y[which], None if self.weight is None else self.weight[which], scale=self.scale)


def split(examples: Examples, held_out: float = 0.2, seed: int = 0) -> tuple[Examples, Examples]:
    """The pair (kept, held out), both shuffled. Held out is a random share `held_out`, rounded to whole examples."""
    kept, held = split_rows(len(examples), held_out, seed)
    return examples[kept], examples[held]


def split_rows(many: int, held_out: float = 0.2, seed: int = 0) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """The pair (kept, held out) of the numbers of `many` examples, as `split` takes them."""
    if many < 2:
        raise UserError(f"data has {many} examples: expected at least 2, of which one is held out")
    held = round(many * held_out)
    if not 0 < held < many:
        raise UserError(f"held_out={held_out}: expected to leave some of {many} examples on both sides; try 0.2")
    order = np.random.Generator(np.random.Philox(draws.key(seed, "split"))).permutation(many)
    return order[held:], order[:held]


def digits() -> Examples:
    """scikit-learn's 1,797 handwritten digits (8 by 8, flat): x float32 [1797, 64] in [0, 1], y int64 [1797] from 0 to 9.

    The installed package's file is read directly, because importing scikit-learn takes longer than all the rest of a start.
    """
    found = importlib.util.find_spec("sklearn")
    if found is None or found.origin is None:
        raise UserError("the digits come with scikit-learn, which is not installed: pip install 'shoal[all]'")
    path = Path(found.origin).parent / "datasets" / "data" / "digits.csv.gz"
    if not path.exists():
        return _digits_by_import()
    with gzip.open(path, "rt") as file:
        table = np.loadtxt(file, delimiter=",", dtype=np.float32)
    return Examples(table[:, :-1] / 16, table[:, -1].astype(np.int64))


def tokens() -> Examples:
    """The digits as sequences: x uint8 [1797, 64], the darkness of each pixel, a token from 0 to 16; y as of `digits`."""
    found = digits()
    return Examples(np.rint(found.x * 16).astype(np.uint8), found.y)


def _digits_by_import() -> Examples:
    from sklearn.datasets import load_digits

    x, y = load_digits(return_X_y=True)
    return Examples(x / 16, y)


def mnist(folder: str | Path, seed: int = 0) -> tuple[Examples, Examples]:
    """(training, held out) from the standard IDX files, gzipped or not: x uint8 [n, 1, 28, 28] of scale 255, which a model gets
    as float32 in [0, 1], and y int64 [n].

    Where only the t10k files are present (10,000 examples), a fifth of these, drawn by `seed`, is held out.
    """
    train, test = (_images(Path(folder), name) for name in ("train", "t10k"))
    if test is None:
        raise UserError(
            f"data={folder}: no MNIST there; put train-images-idx3-ubyte, train-labels-idx1-ubyte, t10k-images-idx3-ubyte and "
            f"t10k-labels-idx1-ubyte (.gz or not; the t10k pair is enough) from {MNIST_FROM} into that folder"
        )
    return split(test, seed=seed) if train is None else (train, test)


def _images(folder: Path, name: str) -> Examples | None:
    """The examples of one pair of files (images, labels), or None if either file is missing."""
    pixels, labels = (_present(folder / f"{name}-{kind}-ubyte") for kind in ("images-idx3", "labels-idx1"))
    if pixels is None or labels is None:
        return None
    x, y = read_idx(pixels, 3), read_idx(labels, 1)
    if len(x) != len(y):
        raise UserError(f"{pixels}: {len(x)} images, but {len(y)} labels in {labels.name}; fetch both again")
    return Examples(x[:, None], y, scale=255)


def _present(path: Path) -> Path | None:
    return next((p for p in (path, path.with_name(path.name + ".gz")) if p.is_file()), None)


def read_idx(path: Path, rank: int) -> npt.NDArray[np.uint8]:
    """The array in an IDX file of unsigned bytes with `rank` dimensions; gzipped if the file's name ends in .gz.

    Format: bytes 0, 0, 8 (unsigned byte), rank; then each dimension, big-endian 32 bits; then the product of these in bytes.
    No more is read or unpacked than the header announces. Raises UserError naming the file.
    """
    try:
        with gzip.open(path) if path.suffix == ".gz" else path.open("rb") as file:
            return _parse_idx(file, rank)
    except (ValueError, OSError, EOFError, zlib.error) as error:
        raise UserError(f"{path}: not a whole IDX file of {rank} dimensions ({error}); fetch it again") from error


def _parse_idx(file: io.BufferedIOBase, rank: int) -> npt.NDArray[np.uint8]:
    if file.read(4) != bytes((0, 0, 8, rank)):
        raise ValueError("wrong magic number")
    header = file.read(4 * rank)
    if len(header) != 4 * rank:
        raise ValueError("the header is cut off")
    shape = tuple(int(n) for n in np.frombuffer(header, dtype=">u4"))
    announced = math.prod(shape)
    body = bytearray()
    while len(body) <= announced and (more := file.read(min(READ, announced + 1 - len(body)))):
        body += more
    if (n := len(body)) != announced:
        found = f"{n} bytes are fewer" if n < announced else "there are more"
        raise ValueError(f"{found} than the {announced} bytes of its dimensions {shape}")
    return np.frombuffer(body, dtype=np.uint8).reshape(shape)


def cifar10(folder: str | Path) -> tuple[Examples, Examples]:
    """(training, held out) from CIFAR10's binary files, data_batch_1.bin and so on, and test_batch.bin: x uint8 [n, 3, 32, 32]
    of scale 255, which a model gets as float32 in [0, 1], and y int64 [n] from 0 to 9. A file may hold any number of pictures.
    """
    paths, test = sorted(Path(folder).glob("data_batch_*.bin")), Path(folder) / "test_batch.bin"
    if not paths or not test.is_file():
        raise UserError(
            f"data={folder}: no CIFAR10 there; put data_batch_1.bin to data_batch_5.bin and test_batch.bin from {CIFAR10_FROM} "
            "into that folder"
        )
    return _pictures(paths), _pictures([test])


def _pictures(paths: list[Path]) -> Examples:
    """The pictures of several files, one after the other. A record is a label and CIFAR10 bytes."""
    parts = [np.fromfile(path, np.uint8) for path in paths]
    for path, part in zip(paths, parts, strict=True):
        if not part.size or part.size % (1 + CIFAR10):
            raise UserError(f"{path}: {part.size} bytes are not whole records of {1 + CIFAR10} bytes; fetch it again")
        if (odd := part[:: 1 + CIFAR10]).max() > 9:
            raise UserError(
                f"{path}: the label {odd.max()}; expected 0 to 9: fetch the binary version of CIFAR10, not CIFAR100"
            )
    records = np.concatenate(parts).reshape(-1, 1 + CIFAR10)
    return Examples(records[:, 1:].reshape(-1, 3, 32, 32), records[:, 0], scale=255)


def widened(array: npt.NDArray[Any], scale: float = 1.0) -> npt.NDArray[Any]:
    """The array as a model gets it: int64 or float32, or, if scale is not 1, array / scale in float32. No copy is made of an
    array that has that dtype already, with the scale 1."""
    if scale != 1:
        return np.asarray(array, dtype=np.float32, order="C") / np.float32(scale)
    return np.asarray(array, dtype=np.int64 if array.dtype.kind in "iu" else np.float32, order="C")


def _as_kept(array: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """The array in its own dtype if torch has that and it is no larger than that of `widened`, else in one that is. No copy
    is made of an array that has that dtype already. Raises UserError for other than real numbers."""
    if (dtype := np.asarray(array).dtype).kind not in "biuf":
        raise UserError(f"examples of dtype {dtype}: expected real numbers; give real and imaginary parts as two, say")
    to = dtype.newbyteorder("=")
    if dtype.kind == "u" and dtype.itemsize > 1:  # which torch can hold and not index
        to = np.dtype(np.int32 if dtype.itemsize == 2 else np.int64)
    elif dtype.kind == "f" and dtype.itemsize > 4:
        to = np.dtype(np.float32)
    return np.asarray(array, dtype=to, order="C")


def _weights(array: npt.NDArray[Any], n: int) -> npt.NDArray[np.float32]:
    weight = np.asarray(array, dtype=np.float32, order="C")
    if weight.shape != (n,) or not (np.isfinite(weight) & (weight >= 0)).all():
        raise UserError(f"examples: weights of shape {list(weight.shape)}; expected [{n}], each a finite number from 0")
    return weight
