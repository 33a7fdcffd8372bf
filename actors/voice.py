"""Words of the worker of an actor beside its work, and words that it is told meanwhile.

The one idea: a worker that is at a call of an hour reads no message. So the thread with the socket says for it what stands
here, and calls what it left here, as soon as a message comes.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from shoal.protocol.work import Words


@dataclass(slots=True)
class Voice:
    """told: plain data that goes with each sign of life; whoever changes it puts another in its place. flag: is called with the
    numbers of calls whose callers asked to give them up."""

    told: Words = field(default_factory=dict)
    flag: Callable[[Sequence[int]], object] = len
