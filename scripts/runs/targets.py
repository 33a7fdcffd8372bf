"""Files that a user names to be written: looked at before anything is computed for them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from shoal.protocol.errors import UserError

if TYPE_CHECKING:
    from matplotlib.figure import Figure

PICTURES = (".png", ".svg", ".pdf")


def writable(
    path: Path | str, suffixes: Sequence[str] = PICTURES, *, verb: str = "draw", flag: str = "", new: bool = False
) -> Path:
    """Return the path. Raises UserError for another suffix, for a missing folder and, if it must be new, for a file that
    exists. flag: the option that named the file, in front of it in the error."""
    found = Path(path)
    named = f"{flag} {found}" if flag else str(found)
    if found.suffix not in suffixes:
        known = f"{', '.join(suffixes[:-1])} or {suffixes[-1]}"
        raise UserError(f"{named}: cannot {verb} {found.suffix or 'a file without a suffix'}; use {known}")
    if new and found.exists():
        raise UserError(f"{named}: exists; name another file or remove it first")
    if not found.parent.is_dir():
        raise UserError(f"{named}: no folder {found.parent}; make it first")
    return found


def figures() -> type[Figure]:
    """Return matplotlib's Figure, which has no window and no state outside of a picture, as pyplot has. Raises UserError if
    matplotlib is not installed."""
    try:
        from matplotlib.figure import Figure
    except ModuleNotFoundError:
        raise UserError("plotting needs matplotlib: pip install 'shoal[all]'") from None
    return Figure
