"""Messages to bytes and back: every message, one and many in a frame, and bytes that are none."""

from __future__ import annotations

import dataclasses
from typing import get_args

import msgpack
import numpy as np
import pytest

from shoal.protocol import messages
from shoal.protocol.codec import (
    MAX_HEADER,
    Terms,
    decode,
    decode_all,
    encode,
    encode_arrays,
    pack_welcome,
    unpack_welcome,
)
from shoal.protocol.compress import Coding
from shoal.protocol.errors import ProtocolError
from shoal.protocol.layout import Layout
from shoal.protocol.link import Outbox, read
from shoal.protocol.messages import (
    Ask,
    Assign,
    Beat,
    Bye,
    Cancel,
    Chunk,
    Contribute,
    Declined,
    Envelope,
    Failed,
    Figures,
    GiveUp,
    Have,
    Hello,
    Inquire,
    Message,
    Predict,
    Predicted,
    Ready,
    Refused,
    State,
    Stop,
    Verdict,
    Want,
    Weights,
    Welcome,
)

EXAMPLES: tuple[Message, ...] = (
    Hello(256, "phone", "boot", 7, ("shm",)),
    Have(3, 2),
    Contribute((3, 4), 65537, 3, 12.5, "abcd", True, {"loss": (1.5, 2.0)}, {"return": (1.0, 2.0)}, 0.25, 0.5, (1, 2), steps=9),
    Failed((3, 4), 65537, 9, "train", "ValueError: no", "Traceback ..."),
    Beat(17),
    Beat(17, 12, 2.5),
    Bye("told to stop"),
    Ready(),
    Ask(515),
    Want((3, 4, 65537), 0, 262_144),
    Chunk((5,), 262_144, 524_288),
    Welcome("run", 0, 0.25, 10.0, "boot", (1, 2, 3)),
    Weights(5, (0, 1)),
    Assign((3, 4), 65537, (8, 9), "train", True),
    Assign((3, 4), 65537, (8, 9), "probe", False, counts=False, words={"lr": 0.03, "of": [1, None, {"a": True}]}),
    Verdict((3, 4), 65537, "accepted", ""),
    Cancel((3, 4)),
    GiveUp((3, 4), (5, 6)),
    Refused("say Hello", False),
    Stop("done"),
    State("run", "running", 7, 37, "100 rounds", 0.37, 0, 4, 0.5, ("an actor to join, for 6 s",)),
    Predict(4, "float32", (2, 64), 0.05, "7"),
    Predicted(4, "a", 120, "float32", (2, 10), "1f-4"),
    Declined(4, "late", "the deadline of 0.05 s is over"),
    Inquire(5),
    Figures(5),
)


def sealed(message: Message) -> Envelope:
    return Envelope(b"12345678", 5, message)


def test_every_message_has_an_example():
    assert {type(example) for example in EXAMPLES} == set(get_args(messages.Message))


@pytest.mark.parametrize("message", EXAMPLES, ids=lambda message: type(message).__name__)
def test_a_message_comes_back_as_it_was(message):
    assert decode(encode(sealed(message))) == sealed(message)
    assert decode_all(encode(sealed(message))) == [(sealed(message), None)]


@pytest.mark.parametrize("message", EXAMPLES, ids=lambda message: type(message).__name__)
def test_a_header_is_its_name_session_epoch_and_fields_in_order(message):
    name, session, epoch, *values = msgpack.unpackb(encode(sealed(message)))
    assert (name, session, epoch) == (type(message).__name__, b"12345678", 5)
    assert len(values) == len(dataclasses.fields(message))


def test_the_bytes_of_a_message_do_not_change():
    """Protocol 1.0: changing them breaks every actor that is out there."""
    assert encode(sealed(Have(3, 2))).hex() == "95a448617665c4083132333435363738050302"
    assert encode(sealed(Cancel((3, 4)))).hex() == "94a643616e63656cc408313233343536373805920304"


@pytest.mark.parametrize("message", EXAMPLES, ids=lambda message: type(message).__name__)
def test_a_field_of_another_type_is_refused_by_name(message):
    fields = dataclasses.fields(message)
    for at, field in enumerate(fields):
        row = msgpack.unpackb(encode(sealed(message)))
        row[3 + at] = None
        with pytest.raises(ProtocolError, match=f"{type(message).__name__}.{field.name} is"):
            decode(msgpack.packb(row))


def test_true_is_no_number_and_a_whole_number_is_a_number():
    row = ["Beat", b"12345678", 5, True]
    with pytest.raises(ProtocolError, match="progress"):
        decode(msgpack.packb(row))
    row = ["Welcome", b"12345678", 5, "run", 0, 1, 10, "boot", []]
    assert decode(msgpack.packb(row)).message == Welcome("run", 0, 1.0, 10.0, "boot", ())


@pytest.mark.parametrize(
    "row",
    [
        [],
        ["Beat"],
        ["Beat", b"12345678", 5],
        ["Beat", b"12345678", 5, 1, 2, 3.0, 4],
        ["Beat", "12345678", 5, 1],
        ["Beat", b"1" * 17, 5, 1],
        ["Beat", b"12345678", -1, 1],
        ["Beat", b"12345678", True, 1],
        ["Beat", b"12345678", 5, 2**64 - 1],
        ["Nothing", b"12345678", 5],
        [1, b"12345678", 5],
        {"Beat": 1},
        7,
    ],
)
def test_what_is_no_message_is_refused(row):
    with pytest.raises(ProtocolError):
        decode(msgpack.packb(row))
    with pytest.raises(ProtocolError):
        decode_all(msgpack.packb(row))


def test_a_header_past_its_limit_is_neither_sent_nor_read():
    long = Failed((0, 0), 1, 0, "train", "e" * 40_000, "t" * 40_000)
    with pytest.raises(ProtocolError, match="past the limit"):
        encode(sealed(long))
    with pytest.raises(ProtocolError, match="at most"):
        decode(b"\x00" * (MAX_HEADER + 1))
    with pytest.raises(ProtocolError, match="at most"):
        decode_all(b"\x00" * (MAX_HEADER + 1))


# Many in a frame


def test_a_frame_holds_messages_in_order_each_with_the_arrays_behind_it():
    arrays = np.arange(10, dtype=np.uint8)
    frame = encode(sealed(Beat(1))) + encode(sealed(Beat(2))) + encode_arrays(arrays) + encode(sealed(Beat(3)))
    assert decode_all(frame) == [(sealed(Beat(1)), None), (sealed(Beat(2)), bytes(arrays)), (sealed(Beat(3)), None)]


@pytest.mark.parametrize(
    "frame",
    [
        b"",
        encode_arrays(b"abc"),
        encode(sealed(Beat(1))) + encode_arrays(b"a") + encode_arrays(b"b"),
        encode(sealed(Beat(1))) + encode(sealed(Beat(2)))[:-1],
        encode(sealed(Beat(1))) + b"\xc1",
    ],
)
def test_a_frame_that_is_not_whole_is_refused_altogether(frame):
    with pytest.raises(ProtocolError):
        decode_all(frame)
    (arrival,) = read(b"peer", "", [memoryview(frame)])
    assert arrival.envelope is None
    assert arrival.fault


def test_the_second_frame_is_the_last_message_s():
    first, last = read(b"peer", "", [memoryview(encode(sealed(Beat(1))) + encode(sealed(Beat(2)))), memoryview(b"xyz")])
    assert (first.envelope, first.payload) == (sealed(Beat(1)), None)
    assert last.envelope == sealed(Beat(2))
    assert last.payload == b"xyz"


def test_small_words_are_gathered_and_arrays_take_along_what_was_said_before():
    outbox = Outbox()
    assert outbox.add(b"a", sealed(Beat(1)), None) == []
    assert outbox.add(b"a", sealed(Beat(2)), b"small") == []
    assert outbox.add(b"b", sealed(Beat(3)), None) == []
    large = np.zeros(100_000, np.uint8)
    ((header, payload),) = outbox.add(b"a", sealed(Beat(4)), large)
    assert payload is large
    assert [envelope.message for envelope, _ in decode_all(header)] == [Beat(1), Beat(2), Beat(4)]
    assert {peer: decode_all(said) for peer, said in outbox.rest().items()} == {b"b": [(sealed(Beat(3)), None)]}
    assert outbox.rest() == {}


def test_no_frame_of_gathered_words_is_past_the_limit():
    outbox = Outbox()
    left = [one for _ in range(20) for one in outbox.add(b"a", sealed(Beat(1)), b"x" * 16_000)]
    frames = [bytes(header) for header, _ in left] + [bytes(said) for said in outbox.rest().values()]
    assert max(map(len, frames)) <= MAX_HEADER
    assert sum(len(decode_all(frame)) for frame in frames) == 20


# Welcome's payload


def test_workload_and_layout_come_back_as_they_were():
    layout = Layout.of({"w": ("f4", (3, 4)), "n": ("i8", ()), "b": ("f4", (4,))})
    workload = {"job": "digits", "seed": 0, "settings": {"lr": 0.1, "hidden": [64, 64]}}
    back = unpack_welcome(pack_welcome(Terms(workload, layout)))
    assert (back.coding, back.briefs) == (None, [])
    assert back.workload == workload
    assert back.layout.digest == layout.digest
    assert back.layout.places == layout.places
    memory, coding = Layout.of({"c": ("f4", (4,))}), Coding("int8", 0.1, 256)
    back = unpack_welcome(pack_welcome(Terms(workload, layout, coding, [layout, memory])))
    assert back.coding == coding
    assert [one.digest for one in back.briefs] == [layout.digest, memory.digest]


@pytest.mark.parametrize(
    "rows",
    [
        [["w", "f4"]],
        [["w", "f4", [-1]]],
        [["w", "f4", [2**47, 4]]],
        [["w", "O", [1]]],
        [["w", ">f4", [1]]],
        [["w", "f4", [1] * 9]],
        [["w", "f4", [True]]],
        [["w", "f4", [1]], ["w", "f4", [1]]],
        [["w" * 300, "f4", [1]]],
        [[1, "f4", [1]]],
        {"w": 1},
    ],
)
def test_a_layout_that_lies_is_refused(rows):
    with pytest.raises(ProtocolError):
        Layout.from_rows(rows)


def test_layouts_tell_where_they_differ_first():
    here = Layout.of({"w": ("f4", (3, 4)), "b": ("f4", (4,))})
    there = Layout.of({"w": ("f4", (3, 5)), "b": ("f4", (4,))})
    line = here.difference(there)
    assert here.digest in line
    assert there.digest in line
    assert "'w' f4[3, 4] here, f4[3, 5] there" in line
    assert here.difference(here) == ""


def test_fields_of_a_later_minor_version_are_ignored() -> None:
    frame = msgpack.packb(["Have", b"12345678", 5, 7, 6, "a later field", [1, {"and": 2}]])
    assert decode(frame).message == Have(7, 6)
    assert [envelope.message for envelope, _ in decode_all(frame)] == [Have(7, 6)]
