"""Bombs: bytes that are small on the wire and once made a decoder large, slow or crash.

The one idea: each bomb is a row with a name, so the test suite, the fuzzer and its corpus use the same list.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from types import MappingProxyType
from typing import Any

import msgpack

from shoal.protocol.codec import MAX_HEADER, MAX_LIST, MAX_MAP, encode
from shoal.protocol.layout import DTYPES
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

HONEST: tuple[Message, ...] = (
    Hello(256, "phone", "boot", 7, ("shm",)),
    Have(3, 2),
    Contribute((3, 4), 65537, 3, 12.5, "abcd", True, {"loss": (1.5, 2.0)}, {"return": (1.0, 2.0)}, 0.25, 0.5, (1, 2)),
    Failed((3, 4), 65537, 9, "train", "ValueError: no", "Traceback ..."),
    Beat(17),
    Bye("told to stop"),
    Ready(),
    Want((3, 4, 65537), 0, 262_144),
    Chunk((5,), 262_144, 524_288),
    Welcome("run", 0, 0.25, 10.0, "boot", (1, 2, 3)),
    Weights(5, (0, 1)),
    Assign((3, 4), 65537, (8, 9), "train", True),
    Verdict((3, 4), 65537, "accepted", ""),
    Cancel((3, 4)),
    GiveUp((3, 4), (5, 6)),
    Refused("say Hello", False),
    Stop("done"),
    Ask(515),
    State("run", "running", 7, 37, "100 rounds", 0.37, 0, 4, 0.5, ("an actor to join, for 6 s",)),
    Predict(4, "float32", (2, 64), 0.05, "7"),
    Predicted(4, "a", 120, "float32", (2, 10), "1f-4"),
    Declined(4, "late", "the deadline of 0.05 s is over"),
    Inquire(5),
    Figures(5),
)


def honest() -> list[bytes]:
    """Returns a header frame of each kind of message."""
    return [encode(Envelope(b"12345678", 5, message)) for message in HONEST]


def _row(*fields: Any) -> bytes:
    packed: bytes = msgpack.packb(["Beat", b"12345678", 5, *fields])
    return packed


def _filled(pattern: bytes) -> bytes:
    return (pattern * MAX_HEADER)[: MAX_HEADER // len(pattern) * len(pattern)]


def _claims(head: bytes, many: int) -> bytes:
    """Returns headers nested in each other, each of which claims `many` entries."""
    return (head + many.to_bytes(4, "big")) * (MAX_HEADER // 5)


HEADERS: Mapping[str, Callable[[], bytes]] = MappingProxyType(
    {
        "nested a million deep": lambda: b"\x91" * 1_000_000,
        "nested as deep as fits": lambda: _filled(b"\x91"),
        "nested 1,000 deep": lambda: b"\x91" * 1_000 + b"\xc0",
        "an array of 2**32 - 1": lambda: b"\xdd\xff\xff\xff\xff",
        "a map of 2**32 - 1": lambda: b"\xdf\xff\xff\xff\xff",
        "bytes of 2**32 - 1": lambda: b"\xc6\xff\xff\xff\xff",
        "text of 2**32 - 1": lambda: b"\xdb\xff\xff\xff\xff",
        "an extension of 2**32 - 1": lambda: b"\xc9\xff\xff\xff\xff\x01",
        "arrays that each claim the whole frame": lambda: _claims(b"\xdd", MAX_HEADER),
        "arrays that each claim 1,024": lambda: _claims(b"\xdd", 1_024),
        "arrays that each claim all they may": lambda: _claims(b"\xdd", MAX_LIST),
        "maps that each claim all they may": lambda: _claims(b"\xdf", MAX_MAP),
        "empty maps": lambda: _filled(b"\x80"),
        "empty arrays": lambda: _filled(b"\x90"),
        "60 arrays of as many empty arrays as may be": lambda: (
            b"\x91\xdc\x00\x3c" + (b"\xdc" + MAX_LIST.to_bytes(2, "big") + b"\x90" * MAX_LIST) * 60
        ),
        "small numbers": lambda: _filled(b"\x01"),
        "extensions": lambda: _filled(b"\xd4\x01\x00"),
        "timestamps": lambda: b"\x91\xd6\xff\x00\x00\x00\x00" * 100,
        "a timestamp that overflows": lambda: b"\x91\xc7\x0c\xff" + b"\xff" * 12,
        "keys that are numbers": lambda: msgpack.packb(["Contribute", b"1", 5, {1: (1.0, 1.0)}]),
        "keys that are bytes": lambda: msgpack.packb(
            ["Contribute", b"1", 5, [3, 4], 1, 3, 1.0, "", False, {b"loss": [1.0, 1.0]}, {}, 0.0, 0.0]
        ),
        "keys that are arrays": lambda: b"\x91\x81\x91\x01\x02",
        "true where a number belongs": lambda: _row(True),
        "a number past 64 bits": lambda: b"\x94\xa4Beat\xc4\x01a\x05\xcf" + b"\xff" * 8,
        "text that is no UTF-8": lambda: b"\x94\xa4\xff\xfe\xfd\xfc\xc4\x01a\x05\x01",
        "a field too many": lambda: _row(1, 2, 3),
        "a session of 200 bytes": lambda: msgpack.packb(["Beat", bytes(200), 5, 1]),
        "a reserved byte": lambda: _filled(b"\xc1"),
        "as many messages as fit": lambda: honest()[4] * (MAX_HEADER // len(honest()[4])),
        "as many maps as fit in a message": lambda: msgpack.packb(
            ["Contribute", b"1", 5, [3, 4], 1, 3, 1.0, "", False, {str(k): [1.0, 1.0] for k in range(32)}, {}, 0.0, 0.0]
        ),
        "lists as long as may be": lambda: msgpack.packb(
            ["Contribute", b"1", 5, [3, 4], 1, 3, 1.0, "", False, {}, {str(k): [1.0] * 220 for k in range(32)}, 0.0, 0.0]
        ),
    }
)
"""Bombs for decode_all and decode: bytes that any peer with a key could send."""

ROWS: Mapping[str, Callable[[], Any]] = MappingProxyType(
    {
        "a product that wraps to 0": lambda: [["w", "f4", [2**32, 2**32]]],
        "a product that wraps to 0, again": lambda: [["w", "f4", [2**47, 4]]],
        "a dimension below 0": lambda: [["w", "f4", [-1]]],
        "a dimension that is true": lambda: [["w", "f4", [True]]],
        "a dimension that is a float": lambda: [["w", "f4", [2.0]]],
        "nine dimensions": lambda: [["w", "f4", [1] * 9]],
        "a dtype of objects": lambda: [["w", "O", [1]]],
        "a dtype of 2 GB": lambda: [["w", "V2147483647", [1]]],
        "a dtype that takes a second to read": lambda: [["w", "f8," * 20_000, [1]]],
        "big-endian": lambda: [["w", ">f4", [1]]],
        "a name of 300": lambda: [["w" * 300, "f4", [1]]],
        "a name twice": lambda: [["w", "f4", [1]], ["w", "f4", [1]]],
        "a name that is none": lambda: [[None, "f4", [1]]],
        "strides": lambda: [["w", "f4", [1], [0]]],
        "no list": lambda: {"w": 1},
        "70,000 arrays": lambda: [["w", "f4", [1]]] * 70_000,
    }
)
"""Bombs for Layout.from_rows."""


def payloads() -> Iterator[bytes]:
    """Yields well-formed payloads of Welcome."""
    for arrays in (1, 5, 40):
        rows = [[f"layer{k}.weight", name, [k + 1, 3]] for k, name in zip(range(arrays), [*DTYPES] * 8, strict=False)]
        yield msgpack.packb([{"job": "digits", "seed": 0, "settings": {"lr": 0.1, "rounds": 5, "data": ""}}, rows])
