"""`shoal.track` and `shoal track`: a run told to trackers from this process.

The one idea: it is what a follower does that a run started, with the same note, so either goes on where the other stopped.
"""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable
from typing import TYPE_CHECKING

from shoal.protocol.errors import UserError
from shoal.runs.run import opened
from shoal.tracking.follower import track as follow
from shoal.tracking.trackers import wanted

if TYPE_CHECKING:
    from shoal.runs.run import Place, Run


def track(run: Run | Place, *trackers: str) -> int:
    """Tell a run's rows to trackers, one after the other, and return the number of rows told.

    run: a run or its folder; of a run under way, this returns when it has ended. trackers: "mlflow", "tensorboard", "wandb",
    "trackio" or "prometheus", with a place behind = if it needs one: "mlflow=http://127.0.0.1:5000". Rows that were told before
    are not told again. Raises UserError if a tracker is not known, not installed, refuses, or did not answer for a minute.
    """
    if not trackers:
        raise UserError("track: no tracker is given; shoal.track(run, 'mlflow'), say")
    told = 0
    for word in trackers:
        many, whole = tracked(run, word, lambda text: print(f"shoal: {text}", file=sys.stderr))
        told += many
        if not whole:
            raise UserError(
                f"track={word}: the tracker did not answer; rows that it does not know are told by the next shoal.track"
            )
    return told


def tracked(run: Run | Place, word: str, say: Callable[[str], object]) -> tuple[int, bool]:
    """Tell a run to the tracker that `word` names. Returns the number of rows told, and True if the tracker knows all rows."""
    [one] = wanted(word)
    return follow(opened(run).dir, one, say, threading.Event().wait)
