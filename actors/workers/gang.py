"""The call of a gang, on several devices: `torchrun` as the child of a call's process.

The one idea: each process ends with the process above it, so a gang is ended by ending the call, and whatever is killed, no
rank is left: program, nursery, call, torchrun, ranks.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
from contextlib import suppress
from typing import Any

from shoal.actors.workers.call import RANKS, cancelled
from shoal.actors.workers.rank import PARENT
from shoal.protocol.errors import GangError, UserError

LOG = 4 << 20  # bytes of a gang's log that are returned, the last
LOOK = 0.2  # seconds between two looks at whether the call is to be given up
GRACE = 5.0  # seconds that a gang has to end after SIGTERM


def torchrun(script: str | os.PathLike[str], *args: object) -> dict[str, Any]:
    """Run `script` with these arguments under torchrun, in a call of a pool with `need=Need(..., gang=True)`: one rank for each
    GPU of the need, or for each core where it has no GPUs. Returns {"code": 0, "log": what all ranks wrote}.

    Raises GangError if a rank ends with another code; the pool makes the call again, as often as `retries` says. Raises
    FileNotFoundError without the script, UserError in a call without a gang.
    """
    ranks = RANKS.get(0)
    if not ranks:
        raise UserError("shoal.torchrun is for a call of a pool with a gang: need=shoal.Need(cores=2, gang=True), say")
    if not os.path.exists(script):
        raise FileNotFoundError(f"shoal.torchrun: there is no {os.fspath(script)} in {os.getcwd()}")
    first = [sys.executable, "-m", "shoal.actors.workers.rank"]
    gang = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(ranks), *first[1:]]
    its = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join(filter(None, sys.path)),
        "PYTHONUNBUFFERED": "1",
        PARENT: str(os.getpid()),
    }
    with tempfile.TemporaryFile() as log:
        run = subprocess.Popen(
            [*first, *gang, os.fspath(script), *map(str, args)],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            env=its,
            process_group=0,
        )
        try:
            code = _awaited(run)
        finally:
            with suppress(ProcessLookupError):  # it has ended
                os.killpg(run.pid, signal.SIGKILL)
        log.seek(max(0, log.seek(0, os.SEEK_END) - LOG))
        text = log.read().decode(errors="replace")
    if code:
        raise GangError(code, text)
    return {"code": code, "log": text}


def _awaited(gang: subprocess.Popen[bytes]) -> int:
    """The exit code of a gang, which is told to end when the call is to be given up."""
    while True:
        with suppress(subprocess.TimeoutExpired):
            return gang.wait(LOOK)
        if cancelled():
            gang.terminate()
            with suppress(subprocess.TimeoutExpired):
                return gang.wait(GRACE)
            gang.kill()
            return gang.wait()
