"""The life of an actor of a pool, a process that was forked from the user's own program."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from shoal.actors.near import Near
from shoal.actors.pool import LEFT, Life
from shoal.actors.workers.call import JOBLIB, Calls
from shoal.protocol import heap
from shoal.protocol.marks import Marks
from shoal.runs.threads import asked_for, few_for_good


def life_of(marks: Marks, seed: int, threads: int | None, given: object = None) -> Life:
    """marks: shared with the process that looks at them when the actor has ended. seed, threads: the pool's. given: an object
    that calls have as GIVEN, in their own copy."""

    def live(arguments: Mapping[str, Any]) -> int:
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # a Ctrl-C is the user's own program's to hear
        heap.keep()
        os.environ[JOBLIB] = str(few_for_good(threads))  # a call of joblib in a call has its cores, not the machine's
        marks.begin(int(arguments["born"]))
        if path := arguments.get("near"):
            Near(Path(path), Calls(marks, seed, None, given)).live()
            return LEFT
        from shoal.actors.loop import Actor, on_signals  # the pool has imported them before the fork, if they are needed
        from shoal.protocol.door import ClientKeys
        from shoal.protocol.keys import Pair

        told = threading.Event()
        on_signals(told, [signal.SIGTERM])
        keys = arguments.get("keys")
        Actor(
            str(arguments["address"]),
            lambda workload: Calls(marks, seed, lambda: few_for_good(threads or asked_for()), given),
            name=f"actor-{os.getpid()}",
            session=os.urandom(8),
            clock=time.monotonic,
            say=lambda text: None,
            interrupted=lambda: "told to stop" if told.is_set() else "",
            keys=ClientKeys(Pair(keys[0], keys[1]), keys[2]) if keys else None,
        ).live()
        return LEFT

    return live
