"""Arrays that travel beside a client's delta, in the same bundle.

The one idea: they lie behind the delta's own float32 entries, so the delta is the first entries of each dtype, and both ends
find either part without a table of places.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import numpy.typing as npt

from shoal.protocol.layout import Bundle, Layout

Floats = npt.NDArray[np.float32]
PREFIX = "beside/"  # begins the names of these arrays; no parameter of a torch module has a slash in its name


def with_beside(layout: Layout, sizes: Mapping[str, int]) -> Layout:
    """The layout of a delta of `layout` with these flat float32 arrays beside it, given as name -> number of entries."""
    own = {place.name: (place.dtype, place.shape) for place in layout.places}
    return Layout.of({**own, **{f"{PREFIX}{name}": ("f4", (size,)) for name, size in sizes.items()}})


def joined(delta: Bundle, arrays: Mapping[str, Floats]) -> Bundle:
    """A bundle of the delta and of the flat float32 arrays beside it."""
    out = Bundle.zeros(with_beside(delta.layout, {name: array.size for name, array in arrays.items()}))
    for dtype in delta.layout.segments:
        own = delta.vector(dtype)
        out.vector(dtype)[: own.size] = own
    for name, array in arrays.items():
        out[f"{PREFIX}{name}"][:] = array
    return out


class Beside:
    """The parts of contributions whose deltas have one of `layouts`, with the arrays of `sizes` beside them."""

    def __init__(self, layouts: Sequence[Layout], sizes: Mapping[str, int]) -> None:
        self.names = tuple(sizes)
        self.whole = with_beside(layouts[0], sizes)
        self.deltas = {with_beside(layout, sizes).digest: layout for layout in layouts}

    def apart(self, bundle: Bundle) -> tuple[Bundle, dict[str, Floats]]:
        """Copies of the delta and of each array beside it. Raises ProtocolError for a bundle of another layout."""
        delta = self.deltas.get(bundle.layout.digest)
        if delta is None:
            self.whole.expect(bundle.layout)
            raise AssertionError("unreachable: no other layout has the digest")
        return bundle.first(delta), {name: _copied(bundle, f"{PREFIX}{name}") for name in self.names}


def _copied(bundle: Bundle, name: str) -> Floats:
    out = np.empty(bundle.layout.by_name[name].shape, np.float32)
    for first, piece in bundle.blocks_of(name):
        out[first : first + piece.size] = piece
    return out
