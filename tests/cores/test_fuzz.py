"""Facts about bytes that nobody honest would send: every reader survives them, at a bounded price."""

from __future__ import annotations

import tracemalloc
from collections.abc import Callable
from pathlib import Path
from random import Random
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shoal.faults.bombs import HEADERS, HONEST, ROWS
from shoal.faults.fuzz import mutated, seeds, targets
from shoal.protocol.codec import decode, decode_all
from shoal.protocol.errors import ProtocolError
from shoal.protocol.layout import Layout
from shoal.protocol.messages import Message

READERS = targets()
CORPUS = Path(__file__).resolve().parent.parent / "corpus"
MOST = 8e6  # bytes that one frame may make a reader allocate


def price(read: Callable[[], object]) -> int:
    """Bytes allocated at most. What it takes in time is `shoal bench fuzz`'s to say: no clock decides a test."""
    tracemalloc.start()
    try:
        read()
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


def said_of(reader: Callable[[bytes], object], raw: bytes) -> str:
    try:
        reader(raw)
    except ProtocolError as wrong:
        return str(wrong)
    return ""


def read_all(raw: bytes) -> None:
    for reader in (decode, decode_all):
        assert len(said_of(reader, raw)) < 300  # a peer's bytes are not repeated


@pytest.mark.parametrize("name", HEADERS)
def test_a_bomb_is_cheap(name: str) -> None:
    raw = HEADERS[name]()
    assert price(lambda: read_all(raw)) < MOST


@pytest.mark.parametrize("name", ROWS)
def test_a_layout_that_lies_is_refused_cheaply(name: str) -> None:
    rows = ROWS[name]()

    def refused() -> None:
        with pytest.raises(ProtocolError):
            Layout.from_rows(rows)

    nbytes = price(refused)
    assert nbytes < MOST


def test_the_examples_that_frames_are_made_of_are_of_every_kind() -> None:
    assert {type(message) for message in HONEST} == set(Message.__args__)


@pytest.mark.parametrize("name", READERS)
def test_mutated_frames_end_in_a_value_or_in_the_error_that_the_reader_documents(name: str) -> None:
    rng, honest = Random(0), seeds()[name]
    for _ in range(1_500):
        READERS[name](mutated(honest, rng))


@pytest.mark.parametrize("name", READERS)
@given(raw=st.binary(max_size=2_000))
@settings(max_examples=60, deadline=None, derandomize=True)
def test_noise_does_too(name: str, raw: bytes) -> None:
    READERS[name](raw)


LEAVES: Any = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8) | st.binary(max_size=8)
VALUES: Any = st.deferred(
    lambda: LEAVES | st.lists(VALUES, max_size=3) | st.dictionaries(st.text(max_size=4), LEAVES, max_size=3)
)


@given(rows=VALUES | st.lists(st.lists(VALUES, min_size=3, max_size=3), max_size=4))
@settings(max_examples=200, deadline=None, derandomize=True)
def test_rows_of_anything_make_a_layout_or_a_protocol_error(rows: Any) -> None:
    try:
        layout = Layout.from_rows(rows)
    except ProtocolError:
        return
    assert layout.nbytes >= 0
    assert Layout.from_rows(layout.rows()).digest == layout.digest


@pytest.mark.parametrize("path", sorted(CORPUS.iterdir()), ids=lambda path: path.name)
def test_the_corpus_of_the_guided_fuzzer_is_read(path: Path) -> None:
    raw = path.read_bytes()
    [*READERS.values()][raw[0]](raw[1:])
