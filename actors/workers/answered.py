"""The answers of a task for a coordinator that may be anywhere."""

from __future__ import annotations

from shoal.protocol.layout import Bundle
from shoal.protocol.shared import Segment


class Answered(Bundle):
    """The answers of a task, with the memory in which large results lie: it is let go when the coordinator has opened them."""

    __slots__ = ("segments",)

    def __init__(self, answers: Bundle, segments: list[Segment]) -> None:
        super().__init__(answers.layout, answers.data)
        self.segments = segments
