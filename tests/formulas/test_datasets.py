"""Data sets are what their sources say; broken files are refused in one line."""

from __future__ import annotations

import gzip
import struct
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from shoal.envs.datasets import Examples, digits, mnist, read_idx, split, widened
from shoal.protocol.errors import UserError


def idx(array: np.ndarray) -> bytes:
    return struct.pack(f">BBBB{array.ndim}I", 0, 0, 8, array.ndim, *array.shape) + array.astype(np.uint8).tobytes()


def write_pair(folder: Path, name: str, count: int, *, zipped: bool) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.Generator(np.random.Philox(count))
    pixels, labels = rng.integers(0, 256, size=(count, 28, 28)), rng.integers(0, 10, size=count)
    for kind, array in (("images-idx3", pixels), ("labels-idx1", labels)):
        path = folder / f"{name}-{kind}-ubyte{'.gz' if zipped else ''}"
        path.write_bytes(gzip.compress(idx(array)) if zipped else idx(array))
    return pixels, labels


def test_the_digits_are_scikit_learns():
    from sklearn.datasets import load_digits

    theirs = load_digits()
    ours = digits()
    assert ours.x.dtype == np.float32
    assert ours.y.dtype == np.int64
    assert np.array_equal(ours.x, theirs.data.astype(np.float32) / 16)
    assert np.array_equal(ours.y, theirs.target)
    assert (ours.x.min(), ours.x.max()) == (0, 1)


def test_reading_the_digits_imports_neither_scikit_learn_nor_torch():
    code = "import sys; from shoal.envs.datasets import digits; digits(); print({'sklearn', 'torch'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"


def test_a_split_is_shuffled_disjoint_and_whole():
    examples = Examples(np.arange(1000.0)[:, None], np.arange(1000))
    rest, held = split(examples, 0.2, seed=0)
    assert (len(rest), len(held)) == (800, 200)
    assert np.array_equal(np.sort(np.concatenate([rest.y, held.y])), np.arange(1000))
    assert np.array_equal(held.x[:, 0], held.y)
    assert 300 < held.y.mean() < 700
    assert np.array_equal(split(examples, 0.2, seed=0)[1].y, held.y)
    assert not np.array_equal(split(examples, 0.2, seed=1)[1].y, held.y)


@pytest.mark.parametrize("held_out", [0.0, 1.0, -0.1, 0.0001])
def test_a_split_that_leaves_a_side_empty_is_refused(held_out):
    with pytest.raises(UserError, match=f"held_out={held_out}"):
        split(Examples(np.zeros((9, 1)), np.zeros(9)), held_out)


def test_examples_that_do_not_match_are_refused():
    with pytest.raises(UserError, match="3 inputs but 4 labels"):
        Examples(np.zeros((3, 2)), np.zeros(4))


def test_examples_keep_a_dtype_that_is_no_larger_than_a_models():
    for of, kept, given_ in [
        ("f8", "f4", "f4"), ("f4", "f4", "f4"), ("f2", "f2", "f4"), ("?", "?", "f4"), ("u1", "u1", "i8"), ("i1", "i1", "i8"),
        ("i4", "i4", "i8"), (">i2", "i2", "i8"), ("u2", "i4", "i8"), ("u4", "i8", "i8"), ("i8", "i8", "i8"),
    ]:  # fmt: skip
        found = Examples(np.arange(6).reshape(2, 3).astype(of), np.arange(6).reshape(2, 3).astype(of))
        assert (found.x.dtype, found.y.dtype) == (np.dtype(kept), np.dtype(kept))
        assert widened(found.x).dtype == np.dtype(given_)
        np.testing.assert_array_equal(widened(found.x), np.arange(6).reshape(2, 3).astype(of).astype(given_))
        assert found.sha256() == Examples(widened(found.x), widened(found.y)).sha256()
    assert Examples(np.zeros((2, 3), np.uint8), np.zeros(2, np.uint8)).y.dtype == np.int64


def test_the_digest_of_examples_is_of_every_number_its_place_and_its_weight(monkeypatch):
    monkeypatch.setattr("shoal.envs.datasets.BATCH", 2)
    x, y = np.arange(12.0).reshape(6, 2), np.arange(6)
    last, label = x.copy(), y.copy()
    last[5, 1], label[5] = 99.0, 1
    others = [
        Examples(last, y), Examples(x, label), Examples(x[:5], y[:5]), Examples(x.reshape(6, 1, 2), y), Examples(x, y * 1.0),
        Examples(x[[1, 0, 2, 3, 4, 5]], y), Examples(x, y, np.ones(6)), Examples(x, y, np.arange(6) + 1.0),
    ]  # fmt: skip
    digests = [one.sha256() for one in (Examples(x, y), *others)]
    assert all(len(digest) == 64 for digest in digests)
    assert len({*digests}) == len(digests)
    assert Examples(x.copy(), y.copy()).sha256() == digests[0]
    monkeypatch.setattr("shoal.envs.datasets.BATCH", 5)
    assert Examples(x, y).sha256() == digests[0]


@pytest.mark.parametrize("examples", [0, 1])
def test_data_of_less_than_two_examples_cannot_be_split(examples):
    with pytest.raises(UserError, match=f"data has {examples} examples: expected at least 2, of which one is held out"):
        split(Examples(np.zeros((examples, 1)), np.zeros(examples)))


@pytest.mark.parametrize("zipped", [False, True])
def test_mnist_is_read_from_idx_files_gzipped_or_not(tmp_path, zipped):
    pixels, labels = write_pair(tmp_path, "train", 12, zipped=zipped)
    held_pixels, held_labels = write_pair(tmp_path, "t10k", 5, zipped=zipped)
    train, held = mnist(tmp_path)
    assert train.x.shape == (12, 1, 28, 28)
    assert train.x.dtype == np.uint8
    assert np.array_equal(train.y, labels)
    assert np.array_equal(held.y, held_labels)
    for found, given in ((train, pixels), (held, held_pixels)):
        scaled = given[:, None].astype(np.float32) / 255
        assert np.array_equal(widened(found.x, found.scale), scaled)
        assert found.sha256() == Examples(scaled, found.y).sha256()


def test_the_t10k_files_alone_are_split(tmp_path):
    _, labels = write_pair(tmp_path, "t10k", 20, zipped=True)
    train, held = mnist(tmp_path, seed=3)
    assert (len(train), len(held)) == (16, 4)
    assert np.array_equal(np.sort(np.concatenate([train.y, held.y])), np.sort(labels))


def test_missing_files_are_told_in_one_line_with_the_remedy(tmp_path):
    with pytest.raises(UserError) as told:
        mnist(tmp_path / "nowhere")
    line = str(told.value)
    assert "\n" not in line
    assert all(part in line for part in ("nowhere", "train-images-idx3-ubyte", "t10k-labels-idx1-ubyte", "https://"))


def test_images_without_as_many_labels_are_refused(tmp_path):
    write_pair(tmp_path, "t10k", 20, zipped=False)
    (tmp_path / "t10k-labels-idx1-ubyte").write_bytes(idx(np.zeros(19)))
    with pytest.raises(UserError, match="20 images, but 19 labels"):
        mnist(tmp_path)


WHOLE = idx(np.zeros((2, 3)))


@pytest.mark.parametrize(
    ("name", "content", "says"),
    [
        ("empty", b"", "wrong magic number"),
        ("html", b"<!DOCTYPE html>", "wrong magic number"),
        ("of-floats", b"\0\0\x0d\2" + WHOLE[4:], "wrong magic number"),
        ("of-rank-3", b"\0\0\x08\3" + WHOLE[4:], "wrong magic number"),
        ("cut-in-the-header", WHOLE[:10], "the header is cut off"),
        ("cut", WHOLE[:-1], "fewer than the 6 bytes"),
        ("too-long", WHOLE + b"\0", "more than the 6 bytes"),
        ("huge", struct.pack(">BBBBII", 0, 0, 8, 2, 2**32 - 1, 2**32 - 1), "0 bytes are fewer than the"),
        ("large", struct.pack(">BBBBII", 0, 0, 8, 2, 2**16, 2**15) + bytes(77), "77 bytes are fewer than the 2147483648"),
        ("not-gzipped.gz", WHOLE, "Not a gzipped file"),
        ("cut.gz", gzip.compress(WHOLE, mtime=0)[:-12], "end-of-stream"),
        ("garbled.gz", gzip.compress(WHOLE, mtime=0)[:10] + b"\xff" * 20, "invalid"),
    ],
)
def test_a_broken_idx_file_is_refused_by_name(tmp_path, name, content, says):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(UserError) as refused:
        read_idx(tmp_path / name, 2)
    assert str(tmp_path / name) in str(refused.value)
    assert says in str(refused.value)


def test_no_more_is_unpacked_than_the_header_announces(tmp_path):
    """Sixty-four megabytes of zeros pack into sixty-four kilobytes; the header says six bytes."""
    (tmp_path / "bomb.gz").write_bytes(gzip.compress(WHOLE + bytes(2**26), 1))
    with pytest.raises(UserError, match="more than the 6 bytes"):
        read_idx(tmp_path / "bomb.gz", 2)
