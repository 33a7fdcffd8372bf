"""A worker in wall-clock time that takes as long as its clients' devices would, and drops out as often.

The one idea: the time of a task is the device's arithmetic in virtual and in wall-clock time alike; here it is waited for.
"""

from __future__ import annotations

import math
from collections.abc import Callable

from shoal.actors import Worker, work_of
from shoal.actors.workers.around import Around
from shoal.envs.devices import Devices, drops, examples_of
from shoal.protocol.errors import AwayError
from shoal.protocol.layout import Bundle
from shoal.protocol.work import Task, Work


class Paced(Around):
    """A worker around another, whose work is given when the client's device would have done it, or when the other has.

    devices: client -> its device. passes: examples of a client -> examples that a training task passes over. wait: waits so
    many seconds. clock: in seconds. seed: of the draws of drop-outs. Raises AwayError, at that time, if the client drops out of
    its task.
    """

    def __init__(
        self,
        worker: Worker,
        devices: Devices,
        passes: Callable[[float], float],
        *,
        wait: Callable[[float], object],
        clock: Callable[[], float],
        seed: int = 0,
    ) -> None:
        super().__init__(worker)
        self.devices, self.passes, self.seed = devices, passes, seed
        self.wait, self.clock = wait, clock
        self.done = 0  # tasks of this actor so far: another attempt at a task has a chance of its own

    def run(self, weights: Bundle, client: int, task: Task, brief: Bundle | None = None) -> Work:
        began, device = self.clock(), self.devices(client)
        work = work_of(self.worker, weights, client, task, brief)
        examples = examples_of(work.totals, work.weight)
        up = work.bundle.data.nbytes if work.bundle is not None else 0
        took = device.seconds(self.passes(examples) if task.counts else examples, weights.data.nbytes, up)
        self.done += 1
        share = drops(device, self.seed, client, task.version, task.index, self.done)
        self.wait(max(0.0, took * min(1.0, share) - (self.clock() - began)))
        if share < math.inf:
            raise AwayError(f"client {client} dropped out: it went away before its task was done")
        return work
