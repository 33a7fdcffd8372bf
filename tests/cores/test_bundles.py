"""Facts about bundles whose bytes came in pieces: the same numbers as in one buffer, and nothing joined that need not be."""

from __future__ import annotations

import tracemalloc
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from shoal.coordinator.checks import Inspector
from shoal.protocol.errors import ProtocolError, UserError
from shoal.protocol.exact import PartialSum
from shoal.protocol.layout import ALIGNMENT, DTYPES, Bundle, Bytes, Layout, Place, Scattered
from shoal.protocol.messages import Contribute

MIXED = Layout.of(
    {
        "weight": ("f4", (70, 3)),
        "none": ("i2", (0, 4)),
        "count": ("i8", ()),
        "bias": ("f4", (3,)),
        "double": ("f8", (33,)),
        "half": ("f2", (41,)),
        "brain": ("bf16", (9,)),
        "mask": ("b1", (5,)),
        "bytes": ("u1", (77,)),
    }
)
WHOLE = ("i1", "i2", "i4", "i8", "u1", "b1")
LAYOUTS = st.dictionaries(
    st.text("abcdef", min_size=1, max_size=3),
    st.tuples(st.sampled_from(sorted(DTYPES)), st.lists(st.integers(0, 9), max_size=3).map(tuple)),
    max_size=6,
).map(Layout.of)


def filled(layout: Layout, seed: int = 0) -> Bundle:
    draw = np.random.default_rng(seed)

    def numbers(place: Place) -> Any:
        x = draw.normal(0, 5, place.shape).astype(np.float32)
        bits = x.view(np.uint32) >> 16 if place.dtype == "bf16" else x.astype(np.int64)
        return bits.astype(DTYPES[place.dtype]) if place.dtype in {*WHOLE, "bf16"} else x

    return Bundle.pack({place.name: numbers(place) for place in layout.places}, layout)


def cut(bundle: Bundle, *lines: int) -> list[Bytes]:
    """Pieces that begin on so many lines of 64 bytes."""
    edges = [0, *(line * ALIGNMENT for line in lines), bundle.layout.nbytes]
    return [bundle.data[first:last] for first, last in pairwise(edges)]


def every_line(bundle: Bundle) -> list[Bytes]:
    return cut(bundle, *range(1, -(-bundle.layout.nbytes // ALIGNMENT)))


@given(st.data())
def test_pieces_hold_the_same_arrays_however_they_are_cut(data: st.DataObject) -> None:
    whole = filled(data.draw(LAYOUTS))
    lines = max(0, (whole.layout.nbytes - 1) // ALIGNMENT)
    cuts = sorted(data.draw(st.lists(st.integers(0, lines), max_size=5)))
    for bundle in (whole, Scattered(whole.layout, cut(whole, *cuts))):
        for dtype in DTYPES:
            blocks = list(bundle.blocks(dtype))
            assert [first for first, _ in blocks] == [sum(x.size for _, x in blocks[:i]) for i in range(len(blocks))]
            assert all(x.size and x.dtype == DTYPES[dtype] for _, x in blocks)
            assert b"".join(x.tobytes() for _, x in blocks) == whole.vector(dtype).tobytes()
        for name, array in whole.items():
            assert b"".join(x.tobytes() for _, x in bundle.blocks_of(name)) == array.tobytes()


def test_an_ordinary_bundle_is_one_block_and_one_without_such_entries_is_none() -> None:
    bundle = filled(MIXED)
    [(first, vector)] = bundle.blocks("f8")
    assert (first, vector.base is not None, vector.tolist()) == (0, True, bundle["double"].tolist())
    assert list(bundle.blocks("i4")) == list(bundle.blocks("i2")) == list(bundle.blocks_of("none")) == []


def test_blocks_are_views_that_are_cut_where_a_piece_or_a_segment_ends() -> None:
    whole = filled(MIXED)
    pieces = cut(whole, 4, 14)  # the float32 entries take 852 bytes, the whole number begins in line 14
    scattered = Scattered(MIXED, pieces)
    assert [(first, x.size) for first, x in scattered.blocks("f4")] == [(0, 64), (64, 149)]
    assert [(first, x.size) for first, x in scattered.blocks("i8")] == [(0, 1)]
    assert all(any(np.shares_memory(x, piece) for piece in pieces) for dtype in DTYPES for _, x in scattered.blocks(dtype))
    assert "data" not in vars(scattered)


def test_a_float64_that_ends_a_piece_is_whole() -> None:
    whole = filled(Layout.of({"double": ("f8", (17,)), "one": ("f4", (1,))}))
    blocks = list(Scattered(whole.layout, every_line(whole)).blocks("f8"))
    assert [(first, x.size) for first, x in blocks] == [(0, 8), (8, 8), (16, 1)]
    assert np.concatenate([x for _, x in blocks]).tolist() == whole["double"].tolist()


FEW = Layout.of({"w": ("f4", (10,)), "n": ("i4", (2,)), "half": ("bf16", (3,)), "mask": ("b1", (2,))})
FIT: dict[str, Any] = {
    "w": np.ones(10, np.float32),
    "n": np.ones(2, np.int32),
    "half": np.ones(3, np.uint16),
    "mask": np.zeros(2, np.bool_),
}


@pytest.mark.parametrize(
    ("arrays", "says"),
    [
        ({"w": np.ones(1, np.float32)}, "array 'w': found float32[1], expected f4 as float32[10]"),
        ({"w": np.ones((1, 10), np.float32)}, "array 'w': found float32[1, 10], expected f4 as float32[10]"),
        ({"w": np.ones(10) + 2j}, "array 'w': found complex128[10], expected f4 as float32[10]"),
        ({"n": np.ones(2)}, "array 'n': found float64[2], expected i4 as int32[2]"),
        ({"n": np.array([1, 2**31])}, "array 'n': found a number of int64 that int32 cannot hold"),
        ({"mask": np.array([0, 2])}, "array 'mask': found a number of int64 that bool cannot hold"),
        ({"mask": np.ones(2)}, "array 'mask': found float64[2], expected b1 as bool[2]"),
        ({"half": np.ones(3, np.float32)}, "array 'half': found float32[3], expected bf16 as uint16[3]"),
        ({"half": np.ones(3, np.uint8)}, "array 'half': found uint8[3], expected bf16 as uint16[3]"),
        ({"v": np.ones(10), "u": 1}, "arrays that do not fit their layout: 'u' is not in the layout, 'v' is not in the layout"),
        ({"w": None, "W": np.ones(10)}, "arrays that do not fit their layout: 'W' is not in the layout, 'w' is missing"),
    ],
)
def test_arrays_that_do_not_fit_their_layout_are_refused_by_name(arrays: dict[str, Any], says: str) -> None:
    with pytest.raises(UserError) as refused:
        Bundle.pack({name: array for name, array in {**FIT, **arrays}.items() if array is not None}, FEW)
    assert str(refused.value) == says


def test_floats_and_integers_of_other_widths_are_cast() -> None:
    packed = Bundle.pack({**FIT, "w": np.arange(10) / 8, "n": np.array([-(2**31), 2**31 - 1]), "mask": [1, 0]}, FEW)
    assert packed["w"].tolist() == [n / 8 for n in range(10)]
    assert packed["mask"].tolist() == [True, False]
    assert packed["n"].tolist() == [-(2**31), 2**31 - 1]
    assert Bundle.pack({**FIT, "w": [True] * 10, "n": [3, 4]}, FEW)["w"].sum() == 10


def test_joined_it_is_a_bundle_like_any_other() -> None:
    whole = filled(MIXED)
    scattered = Scattered(MIXED, every_line(whole))
    assert scattered.sha256() == scattered.copy().sha256() == whole.sha256()
    assert "data" not in vars(scattered)
    assert {name: array.tobytes() for name, array in scattered.items()} == {n: a.tobytes() for n, a in whole.items()}
    assert scattered.vector().tolist() == whole.vector().tolist()
    assert scattered.data is scattered.data  # joined once
    assert not scattered.data.flags.writeable


def test_pieces_that_do_not_make_the_bundle_are_refused() -> None:
    whole = filled(MIXED)
    pieces = cut(whole, 4)
    short, odd = [pieces[0]], [whole.data[:100], whole.data[100:]]
    for bad in (short, [*pieces, pieces[0]], odd, [], [piece.view(np.int8) for piece in pieces]):
        with pytest.raises(ProtocolError, match=f"a bundle of layout {MIXED.digest} has {MIXED.nbytes} bytes"):
            Scattered(MIXED, bad)
        with pytest.raises(ProtocolError, match="pieces that begin on multiples of 64"):
            Scattered(MIXED, lambda bad=bad: bad).copy()


def test_pieces_may_be_read_from_a_file_into_one_buffer_for_all(tmp_path: Path) -> None:
    whole = filled(Layout.of({"w": ("f4", (5_000,)), "n": ("i8", (3,))}))
    (tmp_path / "spooled").write_bytes(whole.data)
    buffer = np.empty(1_024, np.uint8)

    def read() -> Iterator[Bytes]:
        with (tmp_path / "spooled").open("rb") as file:
            while size := file.readinto(buffer):
                yield buffer[:size]

    scattered = Scattered(whole.layout, read)
    assert sum(float(x.sum()) for _, x in scattered.blocks()) == pytest.approx(float(whole["w"].sum()), rel=1e-5)
    ours, theirs = PartialSum(whole.layout), PartialSum(whole.layout)
    ours.add(scattered, 3.0)
    theirs.add(whole, 3.0)
    assert ours.bundle().sha256() == theirs.bundle().sha256()
    assert scattered.sha256() == whole.sha256()
    assert scattered.data.tobytes() == whole.data.tobytes()


def judged(bundle: Bundle, checks: Inspector) -> str:
    return checks.look(bundle, Contribute((0, 0), 0, 0, 2.0, bundle.layout.digest, False, {}, {}, 0.0, 0.0))[0]


def test_a_contribution_in_pieces_is_judged_as_a_whole_one() -> None:
    whole = filled(MIXED)
    norm = float(np.sqrt(sum((whole.vector(dtype).astype(np.float64) ** 2).sum() for dtype in ("f4", "f8"))))
    bad = whole.copy()
    bad["double"][-1] = np.nan
    for bundle, broken in ((whole, bad), (Scattered(MIXED, every_line(whole)), Scattered(MIXED, every_line(bad)))):
        assert judged(bundle, Inspector(norm=norm * 1.001)) == ""
        assert judged(bundle, Inspector(norm=norm * 0.999)).startswith(f"norm {norm:g} is above the bound")
        assert "not finite" in judged(broken, Inspector())


@pytest.mark.parametrize("exact", [True, False])
def test_a_contribution_in_pieces_is_summed_to_the_same_bits_without_being_joined(exact: bool) -> None:
    one, other = PartialSum(MIXED, exact), PartialSum(MIXED, exact)
    for seed in range(5):
        whole = filled(MIXED, seed)
        scattered = Scattered(MIXED, cut(whole, seed, 2 * seed + 1))
        one.add(whole, 1.5 + seed)
        other.add(scattered, 1.5 + seed)
        assert "data" not in vars(scattered)
    summed = Scattered(one.bundle().layout, every_line(one.bundle()))
    other.merge(summed, one.weight)
    one.merge(one.bundle().copy(), one.weight)
    assert "data" not in vars(summed)
    assert (one.bundle().sha256(), one.weight) == (other.bundle().sha256(), other.weight)


def test_what_is_not_finite_in_pieces_is_refused_by_name() -> None:
    bad = filled(MIXED)
    bad["half"][-1] = np.inf
    scattered = Scattered(MIXED, every_line(bad))
    with pytest.raises(ProtocolError, match=r"'half' .* NaN or an infinity"):
        PartialSum(MIXED).add(scattered, 1.0)
    assert "data" not in vars(scattered)


def test_checks_and_sums_of_pieces_take_no_memory_of_a_models_size() -> None:
    layout = Layout.of({"w": ("f4", (1_000_000,)), "half": ("f2", (1_000_000,))})
    whole, total = Bundle.zeros(layout), PartialSum(layout)
    scattered = Scattered(layout, cut(whole, 10_000, 40_000, 90_000))
    total.add(whole, 3.0)
    tracemalloc.start()
    try:
        assert judged(scattered, Inspector(norm=1.0)) == ""
        total.add(scattered, 3.0)
        assert tracemalloc.get_traced_memory()[1] < 1_000_000
    finally:
        tracemalloc.stop()
