"""The whereabouts of an actor's worker: one word for what it is at, and its stack, once it has been there for long.

The one idea: the thread that speaks can look at the stack of the thread that works. So a worker that hangs in a call need not
say anything, and a worker that does not hang pays nothing: no step of it writes a word.
"""

from __future__ import annotations

import sys
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from types import FrameType
from typing import NamedTuple

from shoal.protocol.work import Words

AFTER = 5.0  # seconds at one task after which a worker's place is told
EVERY = 2.0  # seconds between two looks at it
MOST = 2_500  # characters of a stack that are told, the innermost
PLACES: Sequence[tuple[str, str, str]] = (
    ("shoal.envs.", "step", "env.step"),
    ("shoal.envs.", "reset", "env.reset"),
    ("shoal.envs.", "make_vector", "env.make"),
    ("shoal.nets.", "parameters", "act"),
    ("shoal.actors.asking", "_heard", "wait_inference"),
    ("shoal.nets.", "act", "act"),
    ("shoal.actors.workers.local_sgd", "", "train"),
    ("shoal.actors.workers.batched", "", "train"),
    ("shoal.actors.sharing", "place", "send"),
    ("shoal.protocol.changes", "", "add_weights"),
)
"""The beginning of a module's name, a function ("": any), and the word for a worker that is in there."""
OURS = ("shoal.actors.hand", "shoal.actors.labour", "threading")  # frames that stand around every task


class Frame(NamedTuple):
    """A frame of a stack: the name of its module, and of its function."""

    module: str
    function: str


def word(frames: Sequence[Frame]) -> str:
    """The word for the place of a worker; "work" if no place is known. frames: of its stack, the outermost first."""
    for frame in reversed(frames):
        for module, function, its in PLACES:
            if frame.module.startswith(module) and function in ("", frame.function):
                return its
    return "work"


@dataclass(slots=True)
class Whereabouts:
    """The words that go with the Beats of an actor whose worker is at one task for longer than AFTER seconds: `doing`, a word;
    `for`, seconds at the task; `stack`, ASCII text. stack: returns the frames and the text of the worker's stack as it is now.
    told: the words that the first Beats have. Times are in seconds of a clock that is handed in."""

    stack: Callable[[], tuple[Sequence[Frame], str]]
    told: Words = field(default_factory=dict)
    _task: tuple[int, ...] = ()
    _since: float = 0.0
    _looked_at: float = 0.0

    def look(self, at: tuple[int, ...], now: float) -> Words:
        """The words for the next Beat; empty unless the worker is at this task for long. at: (version, index, attempt) of its
        task; () if it is at none. The same object comes back until there is news."""
        if at != self._task:
            self._task, self._since, self._looked_at = at, now, now
            if self.told:
                self.told = {}
        elif at and now - self._since > AFTER and (not self.told or now - self._looked_at >= EVERY):
            self._looked_at = now
            frames, text = self.stack()
            plain = text.encode("ascii", "backslashreplace").decode()
            self.told = {"doing": word(frames), "for": round(now - self._since, 1), "stack": plain[-MOST:]}
        return self.told


def stack_of(ident: int | None) -> tuple[Sequence[Frame], str]:
    """The stack of a thread of this process, the outermost frame first, without what stands around every task: frames, and text
    as a traceback has it. Empty if the thread has ended."""
    frame: FrameType | None = sys._current_frames().get(ident) if ident is not None else None
    frames: list[FrameType] = []
    while frame is not None:
        frames.append(frame)
        frame = frame.f_back
    frames.reverse()
    shown = [each for each in frames if str(each.f_globals.get("__name__", "")) not in OURS] or frames
    lines = traceback.StackSummary.extract((each, each.f_lineno) for each in shown)
    return [Frame(str(each.f_globals.get("__name__", "")), each.f_code.co_name) for each in frames], "".join(lines.format())
