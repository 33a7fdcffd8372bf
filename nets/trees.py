"""Boosted trees as arrays: read from XGBoost's own JSON, checked, and summed up by numpy.

The one idea: a tree of bounded depth is a heap, where node k has the children 2 k + 1 and 2 k + 2. So an ensemble is four
arrays of known shapes, which any actor may send and everybody can check, and no file of a library's is read from a stranger.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from shoal.protocol.errors import ProtocolError
from shoal.protocol.layout import Bundle, Layout

Floats = npt.NDArray[np.float32]
LEAF = -1  # in place of a feature


def layout_of_trees(trees: int, depth: int) -> Layout:
    """The layout of so many trees of at most this depth, with nodes = 2 ** (depth + 1) - 1.

    feature int32 [trees, nodes]: column that a node splits on, or LEAF. value float32 [trees, nodes]: threshold of a split,
    below which a row goes left, or a leaf's value. left uint8 [trees, nodes]: 1 if a row without this feature goes left.
    count int64 [1]: trees that are there; the others are leaves of 0.
    """
    nodes = 2 ** (depth + 1) - 1
    return Layout.of(
        {
            "feature": ("i4", (trees, nodes)),
            "value": ("f4", (trees, nodes)),
            "left": ("u1", (trees, nodes)),
            "count": ("i8", (1,)),
        }
    )


def no_trees(layout: Layout) -> Bundle:
    """An ensemble without trees."""
    empty = Bundle.zeros(layout)
    empty["feature"][...] = LEAF
    return empty


def read(model: bytes, depth: int) -> Bundle:
    """The trees of an XGBoost model in its JSON form, in their order."""
    trees = json.loads(model)["learner"]["gradient_booster"]["model"]["trees"]
    made = no_trees(layout_of_trees(len(trees), depth))
    made["count"][...] = len(trees)
    for at, tree in enumerate(trees):
        _place(tree, 0, 0, {name: made[name][at] for name in ("feature", "value", "left")})
    return made


def _place(tree: Mapping[str, Any], node: int, heap: int, into: Mapping[str, npt.NDArray[Any]]) -> None:
    """Write a node of XGBoost's and those below it to their places in the heap."""
    into["value"][heap] = tree["split_conditions"][node]
    if tree["left_children"][node] < 0:
        return
    into["feature"][heap], into["left"][heap] = tree["split_indices"][node], tree["default_left"][node]
    _place(tree, tree["left_children"][node], 2 * heap + 1, into)
    _place(tree, tree["right_children"][node], 2 * heap + 2, into)


def check(trees: Bundle, columns: int) -> None:
    """Raises ProtocolError for an ensemble that is none: a column that is not there, a number that is not finite, a split
    without children."""
    feature, value, nodes = trees["feature"], trees["value"], trees["feature"].shape[1]
    if int(trees["count"][0]) != len(feature):
        raise ProtocolError(f"a contribution of {len(feature)} trees says that it has {int(trees['count'][0])}")
    if ((feature < LEAF) | (feature >= columns)).any():
        raise ProtocolError(f"a tree splits on a column that is not one of {columns}")
    if (feature[:, nodes // 2 :] != LEAF).any():
        raise ProtocolError("a tree splits at its greatest depth, where its leaves are")
    if not np.isfinite(value).all():
        raise ProtocolError("a tree holds NaN or an infinity")


def margins(trees: Bundle, x: Floats, classes: int) -> Floats:
    """The sums of the trees' values, float32 [n, classes]; tree k is of class k % classes. x: float32 [n, columns]."""
    count, depth = int(trees["count"][0]), trees["feature"].shape[1].bit_length() - 1
    total = np.zeros((len(x), classes), np.float32)
    rows = np.arange(len(x))
    for at in range(count):
        feature, value, left = (trees[name][at] for name in ("feature", "value", "left"))
        node = np.zeros(len(x), np.int64)
        for _ in range(depth):
            column = feature[node]
            seen = x[rows, np.maximum(column, 0)]
            right = np.where(np.isnan(seen), left[node] == 0, seen >= value[node])
            node = np.where(column == LEAF, node, 2 * node + 1 + right)
        total[:, at % classes] += value[node]
    return total
