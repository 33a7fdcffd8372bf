"""TensorBoard as a tracker: events in a folder of the user's choice, beside those in the run's own folder.

The one idea: each follower writes a file of its own, which begins with the word that drops older points from its first step on.
So rows that are told twice are shown once.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from shoal.protocol.errors import UserError
from shoal.runs.observers import Events
from shoal.tracking.trackers import About, Down, Point


class TensorBoard:
    """Scalars for TensorBoard in the folder to/NAME."""

    unsure = 0

    def __init__(self, to: str) -> None:
        self.to = Path(to)
        self.events: Events | None = None

    def begin(self, about: About, memory: dict[str, Any]) -> None:
        name = str(memory.setdefault("folder", f"{about.name}-{about.token[:4]}"))
        folder = self.to / Path(name).name  # a note of a stranger's may name any path
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as refused:
            raise UserError(
                f"cannot make a folder in {self.to} ({refused.strerror}): name a folder where you may write"
            ) from None
        self.events = Events(folder, about.started)

    def tell(self, points: Sequence[Point]) -> None:
        assert self.events is not None, "begun"
        try:
            for point in points:
                self.events.values(point.step, point.seconds, point.values)
            self.events.flush()
        except OSError as full:
            with suppress(OSError):
                self.events.close()
            self.events = Events(self.events.folder, self.events.started)  # what the old file has in part is dropped
            raise Down(f"cannot write events in {self.to} ({full.strerror})") from None

    def end(self, state: str) -> None:
        if self.events is not None:
            self.events.close()
