"""A nursery of trials' processes in a fresh interpreter, which finds the job or the objective by its name (runs/fresh.py)."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

from shoal.actors.pool import Life
from shoal.protocol.parent import lived
from shoal.runs.fresh import serve
from shoal.sweeps.work import life_of, maker


def made(word: Any) -> tuple[str, Callable[[], Life]]:
    """The name of the job or objective in this word, and a function that gives the life of its trials' processes."""
    kind, name, settings, config = word
    return name, lambda: life_of(maker(kind, name, settings, config))


if __name__ == "__main__":
    lived(lambda: serve(int(sys.argv[1]), int(sys.argv[2]), made))
