"""The messages of secure aggregation as arrays of fixed shapes, which travel as contributions and briefs do.

The one idea: how many neighbours a client has, and how long a vector is, are known before a run. So each phase has one layout
up and one down, and a row is for one neighbour: its number in the first 8 bytes, then bytes of a fixed length.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from shoal.protocol.layout import Bundle, Layout
from shoal.protocol.sealing import KEY, SHARE

NUMBER, SIGNATURE, SESSION = 8, 64, 32
ADVERT = 2 * KEY + SIGNATURE
CIPHER = 12 + 16 + 4 + 2 * SHARE  # nonce, tag, place, two shares
TOLD = 1 + 4 + SHARE  # kind, place, share


def up(degree: int, size: int) -> dict[str, Layout]:
    """Phase -> the layout of what a client says. size: words of a vector."""
    shapes = {
        "advertise": (1, ADVERT),
        "share": (degree, NUMBER + CIPHER),
        "confirm": (1, SIGNATURE),
        "unmask": (degree, NUMBER + TOLD),
    }
    rows = {phase: Layout.of({phase: ("u1", shape), "rows": ("i4", (1,))}) for phase, shape in shapes.items()}
    return {**rows, "mask": Layout.of({"mask": ("i8", (size,))})}


def down(degree: int, cohort: int) -> dict[str, Layout]:
    """Phase -> the layout of what a client is told as the phase begins. rows: -1 if the session was given up."""
    shapes = {
        "advertise": (cohort, SESSION + NUMBER),
        "share": (degree, NUMBER + ADVERT),
        "mask": (degree, NUMBER + CIPHER),
        "confirm": (cohort, NUMBER),
        "unmask": (degree, NUMBER + SIGNATURE),
    }
    return {
        phase: Layout.of({phase: ("u1", shape), "rows": ("i4", (1,)), "down": ("u1", (1,))}) for phase, shape in shapes.items()
    }


def rows_of(bundle: Bundle, phase: str) -> list[bytes] | None:
    """The rows of a message; None if the session was given up. Raises ValueError for more rows than there is room for."""
    many, raw = int(bundle["rows"][0]), bundle[phase]
    if many < 0:
        return None
    if many > len(raw):
        raise ValueError(f"{many} rows in a message of at most {len(raw)}")
    return [raw[at].tobytes() for at in range(many)]


def packed(layout: Layout, phase: str, rows: Sequence[bytes] | None) -> Bundle:
    """A message of these rows; None: the session was given up."""
    made = Bundle.zeros(layout)
    made["rows"][0] = -1 if rows is None else len(rows)
    for at, row in enumerate(rows or ()):
        made[phase][at] = np.frombuffer(row, np.uint8)
    return made


def keyed(rows: Sequence[bytes]) -> dict[int, bytes]:
    """Client -> the rest of its row."""
    return {int.from_bytes(row[:NUMBER], "big"): row[NUMBER:] for row in rows}


def listed(rows: Mapping[int, bytes]) -> list[bytes]:
    return [client.to_bytes(NUMBER, "big") + row for client, row in sorted(rows.items())]
