"""Facts about the form in which values cross a network: what goes in comes out, and nothing else comes out."""

from __future__ import annotations

import math
import os
import tracemalloc
from contextlib import suppress
from random import Random
from typing import Any

import msgpack
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shoal.faults.fuzz import mutated
from shoal.protocol import trusted, values
from shoal.protocol.errors import ProtocolError, UserError
from shoal.protocol.names import function_of, name_of

NUMBERS = st.integers() | st.floats() | st.booleans()
LEAVES: Any = st.none() | NUMBERS | st.text(max_size=8) | st.binary(max_size=8)
KEYS: Any = st.none() | st.integers(-(2**63), 2**63 - 1) | st.text(max_size=4) | st.tuples(st.integers(0, 9), st.text())
VALUES: Any = st.recursive(
    LEAVES,
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.tuples(inner, inner)
        | st.dictionaries(KEYS, inner, max_size=3)
        | st.lists(st.floats(), min_size=64, max_size=70)
        | st.lists(st.integers(), min_size=64, max_size=70).map(tuple)
    ),
    max_leaves=12,
)
EXAMPLE = ({"x": [1, 2.5, (None, b"\0")], 3: 2**70, ("a", 1): -(2**64)}, [0.5] * 100, np.arange(6.0).reshape(2, 3), (1,) * 80)


def same(one: Any, two: Any) -> bool:
    """Whether two values are the same, of the same types, NaN being NaN."""
    if type(one) is not type(two):
        return False
    if isinstance(one, np.ndarray):
        return one.dtype == two.dtype and one.shape == two.shape and one.tobytes() == two.tobytes()
    if isinstance(one, float):
        return one == two or (math.isnan(one) and math.isnan(two))
    if isinstance(one, list | tuple):
        return len(one) == len(two) and all(map(same, one, two))
    if isinstance(one, dict):
        return list(one) == list(two) and all(map(same, one.values(), two.values()))
    return bool(one == two)


@given(value=VALUES)
@settings(max_examples=300, deadline=None, derandomize=True)
def test_a_plain_value_comes_back_as_it_was(value: Any) -> None:
    assert same(values.read(values.pack(value)), value)


def test_arrays_of_every_dtype_and_shape_come_back() -> None:
    for dtype in ("f4", "f8", "f2", "i1", "i2", "i4", "i8", "u1", "?"):
        for shape in ((), (0,), (3,), (2, 0, 4), (2, 3, 4)):
            array = np.random.default_rng(1).integers(0, 2, shape).astype(dtype)
            assert same(values.read(values.pack({"a": array, "b": [array[()] if shape == () else array.T]}))["a"], array)
    view = np.arange(24.0).reshape(4, 6)[::2, ::3]
    assert same(values.read(values.pack(view)), np.ascontiguousarray(view))
    assert same(values.read(values.pack(np.float64(1.5))), np.float64(1.5))
    back = values.read(values.pack([np.zeros(3)]))
    back[0][:] = 1.0  # the reader's own
    assert not values.read(values.pack(np.zeros(3)), writable=False).flags.writeable


@pytest.mark.parametrize(
    ("value", "said"),
    [
        ({"x": [1, {2}]}, r"^it\['x'\]\[1\] is of type set, which cannot travel"),
        ([print], r"^it\[0\] is of type builtin_function_or_method"),
        (np.array(["a"]), r"^it is an array of dtype <U1, which cannot travel"),
        (np.array([None]), r"^it is an array of dtype object"),
        (np.arange(3, dtype=">f8"), r"^it is an array of dtype >f8"),
        ({frozenset(): 1}, r"^it has a key of type frozenset"),
        ({((1,),): 1}, r"^it has a key of type tuple"),
        (1 << 40_000, r"^it is an integer of 5,001 bytes, and 4,096 can travel"),
        (["x" * 999] * 4_000, r"^it takes [\d,]+ bytes beside its arrays, and 2,097,152 can travel"),
        (1j, r"^it is of type complex"),
    ],
    ids=lambda given: type(given).__name__,
)
def test_what_cannot_travel_is_named_by_its_place(value: Any, said: str) -> None:
    with pytest.raises(UserError, match=said) as caught:
        values.pack(value, "it")
    assert "\n" not in str(caught.value)


def test_a_value_that_is_too_deep_is_refused_on_both_sides() -> None:
    deep: Any = []
    for _ in range(100):
        deep = [deep]
    with pytest.raises(UserError, match="nested more than 64 deep"):
        values.pack(deep)
    form: Any = [0]
    for _ in range(100):
        form = [0, form]
    with pytest.raises(ProtocolError, match="too deep"):
        values.join(msgpack.packb(form), [])


def hostile() -> dict[str, bytes]:
    """Bytes that nobody honest would send, by what is wrong with them."""
    pairs = [part for number in range(20_000) for part in ([1, number], None)]
    heads = {
        "a pickle": None,
        "an unknown kind": [99],
        "a kind that is text": ["0"],
        "no kind": [],
        "a dict without its last value": [2, 1],
        "a dict of which a key is a list": [2, [0, 1], 1],
        "a dict of which a key is a dict": [2, [2], 1],
        "a dict of tuples without end": [2, *pairs],
        "an array without a buffer": [3, "f8", [2], 0],
        "an array of objects": [3, "O", [1], 0],
        "an array with a negative side": [3, "f8", [-1], 0],
        "an array of 2^70 numbers": [3, "f8", [2**35, 2**35], 0],
        "an array whose product overflows": [3, "u1", [2**40, 2**40, 2**40], 0],
        "an array of 9 dimensions": [3, "u1", [1] * 9, 0],
        "an array with a side that is true": [3, "u1", [True], 0],
        "a buffer used twice": [0, [3, "u1", [64], 0], [3, "u1", [64], 0]],
        "a run of half a number": [6, 0, 1],
        "a run of no buffer": [7, 1, 12],
        "a run that is neither list nor tuple": [6, 5, 0],
        "a scalar of another size": [4, "f8", b"1"],
        "an integer of 100 KB": [5, b"x" * 100_000],
    }
    made = {}
    for name, form in heads.items():
        run = np.zeros(64, np.uint8), np.zeros(9, np.uint8)
        made[name] = framed(msgpack.packb(form) if form is not None else b"cos\nsystem\n(S'true'\ntR.", *run)
    made["a map"] = framed(msgpack.packb({1: 2}))
    made["an extension"] = framed(msgpack.packb(msgpack.ExtType(4, b"x" * 8)))
    made["a timestamp"] = framed(msgpack.packb(msgpack.Timestamp(1)))
    made["nested 1,000 deep"] = framed(b"\x91" * 1_000 + b"\xc0")
    made["a list of 2^32 - 1"] = framed(b"\xdd\xff\xff\xff\xff")
    made["text of 2^32 - 1"] = framed(b"\xdb\xff\xff\xff\xff")
    made["text that is no UTF-8"] = framed(b"\xa2\xff\xfe")
    made["nothing"], made["a front alone"] = b"", values.MAGIC
    made["sizes beyond the end"] = values.MAGIC + msgpack.packb((b"\xc0", [2**40]))
    made["sizes below 0"] = values.MAGIC + msgpack.packb((b"\xc0", [-64]))
    made["sizes that are true"] = values.MAGIC + msgpack.packb((b"\xc0", [True]))
    made["sizes without end"] = values.MAGIC + msgpack.packb((b"\xc0", [0] * 70_000))
    made["a byte too many"] = values.pack(1) + b"\0"
    made["a head of empty lists"] = framed(b"\xdc\xff\xff" + b"\x00" + b"\x91\x00" * 65_534, nbytes=3)
    return made


def framed(head: bytes, *buffers: Any, nbytes: int = 0) -> bytes:
    front = values.MAGIC + msgpack.packb((head, [one.nbytes for one in buffers]))
    whole = bytearray(values.aligned(len(front)) + sum(values.aligned(one.nbytes) for one in buffers) + nbytes)
    whole[: len(front)] = front
    return bytes(whole)


@pytest.mark.parametrize("name", hostile())
def test_hostile_bytes_are_refused_at_a_bounded_price(name: str) -> None:
    raw = hostile()[name]
    tracemalloc.start()
    with pytest.raises(ProtocolError) as caught:
        values.read(raw)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert len(str(caught.value)) < 200  # a peer's bytes are not repeated
    assert peak < 1e6 + 100 * len(raw)


def test_the_worst_head_costs_less_than_a_hundred_times_its_bytes() -> None:
    raw = framed(b"\xdd" + (100_000).to_bytes(4, "big") + b"\x00" + b"\x91\x00" * 99_999)
    tracemalloc.start()
    assert len(values.read(raw)) == 99_999
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 100 * len(raw)


def test_mutated_values_end_in_a_value_or_a_refusal() -> None:
    rng = Random(5)
    honest = [values.pack(one) for one in (EXAMPLE, None, [1, "a"], {"a": np.ones((2, 2), "f4")}, np.float32(3.0))]
    for _ in range(4_000):
        raw = mutated(honest, rng)
        with suppress(ProtocolError):
            values.read(raw)


def test_a_pickle_is_refused_and_does_nothing(tmp_path: Any) -> None:
    class Harm:
        def __reduce__(self) -> Any:
            return os.mkdir, (str(tmp_path / "touched"),)

    for raw in (trusted.pack(Harm()).data, trusted.pack(Harm()).data[1:], values.MAGIC + trusted.pack(Harm()).data):
        with pytest.raises(ProtocolError):
            values.read(raw)
    assert not (tmp_path / "touched").exists()


def outer() -> Any:
    return lambda: 1


def test_functions_have_a_name_or_are_refused_in_one_line() -> None:
    assert name_of(np.linalg.norm) == "numpy.linalg:norm"
    assert name_of(math.sqrt) == "math:sqrt"
    assert name_of(outer) == f"{__name__}:outer"
    said = r"^`.*<lambda>` has no name another process can import: define it in a file, or use a local Pool$"
    for nameless in (lambda: 1, outer()):
        with pytest.raises(UserError, match=said):
            name_of(nameless)
    with pytest.raises(UserError, match="has no name another process can import"):
        name_of(Random(1).random)


@pytest.mark.parametrize(
    "name",
    [
        "os:system",
        "test_plain_values:os.system",
        "shoal.protocol.names:import_module",
        "shoal.protocol.names:re.compile",
        "shoal.protocol.values:np.save",
        "shoal.protocol.values:MAX_HEAD",
        "shoal.protocol.values:pack.__globals__",
        "shoal.protocol.values:_form",
        "shoal.protocol.values:missing",
        "shoal.protocol.absent:pack",
        "shoal.protocolx:pack",
        "shoal.protocol.values",
        "shoal.protocol.values:pack()",
        "shoal.protocol.values:pack\n",
        "",
        "a" * 1_000 + ":f",
    ],
)
def test_a_name_leads_to_functions_of_the_allowed_modules_alone(name: str) -> None:
    assert function_of("shoal.protocol.values:pack", ["shoal.protocol"]) is values.pack
    with pytest.raises(ProtocolError) as caught:
        function_of(name, ["shoal.protocol"])
    assert "\n" not in str(caught.value)
