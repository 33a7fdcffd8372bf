"""The thread that works: it adds changes of weights, and does tasks.

The one idea: the thread that speaks takes changes in and links them; this one adds them, before the task that needs them. So a
change of a whole model delays no heartbeat, and of a run of changes only the last result is written.
"""

from __future__ import annotations

import queue
import threading
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, TypeAlias

from shoal.actors import Worker, close
from shoal.actors.effects import Run
from shoal.actors.labour import Product, perform
from shoal.actors.sharing import Shared
from shoal.protocol.changes import Following
from shoal.protocol.layout import Bundle, Bytes
from shoal.protocol.link import Wake
from shoal.protocol.pool import Buffers
from shoal.protocol.value import value

Workshop: TypeAlias = Callable[[Mapping[str, Any]], Worker]
"""Makes the worker for a workload (from the Terms of a Welcome). Called in the worker's thread, once for each Welcome."""

Clock: TypeAlias = Callable[[], float]
ENDING = 2.0  # seconds that the last task and the worker's close may take: less than a pool waits for its actors


@dataclass(slots=True, eq=False)
class Held:
    """Weights of one version: `whole`, or what `changes` was `told` to add to the weights `before`. The socket's thread makes a
    Held; only the worker's thread calls `bundle`."""

    whole: Bundle | None = None
    before: Held | None = None
    told: Bytes | None = None
    changes: Following | None = None

    def bundle(self, buffers: Buffers) -> Bundle:
        """The arrays. A change is added at the first call, to memory of its own, because a task may still read the weights of
        before. Raises ProtocolError for bytes that are no change of these weights."""
        told: list[Bytes] = []
        base = self
        while base.before is not None and base.told is not None:
            told.append(base.told)
            base = base.before
        assert base.whole is not None  # from the start, or added before
        if self.changes is None or not told:
            return base.whole
        into = Bundle(base.whole.layout, buffers.take(base.whole.layout.nbytes))
        self.changes.follow(base.whole, reversed(told), into)
        self.whole, self.before, self.told = into, None, None
        return into


@value
class Order:
    """A task for the worker's thread, with its weights, brief and workload."""

    run: Run
    weights: Held
    brief: Bundle | None
    workload: Mapping[str, Any]


class Hand(threading.Thread):
    """The thread that does tasks. It takes orders, places the arrays of each product where they are sent from, appends the
    product to `results`, and calls `wake`.

    Orders come in batches, because waking this thread costs more than a short task. For a workload that is put into `orders`
    the worker is made. Weights that are put there are decoded, unless newer ones have
    come; then they are appended to `results` too. What breaks this thread ends up there as well. newest: the newest weights,
    which the socket's thread sets.
    """

    def __init__(self, workshop: Workshop, clock: Clock, wake: Wake, shared: Shared, buffers: Buffers) -> None:
        super().__init__(name="worker", daemon=True)
        self._shared, self._buffers = shared, buffers
        self.orders: queue.SimpleQueue[deque[Order | Held | Mapping[str, Any]] | None] = queue.SimpleQueue()
        self.results: deque[Product | Held | BaseException] = deque()
        self.newest: Held | None = None
        self._workshop, self._clock, self._wake = workshop, clock, wake
        self.retains = False  # True: accepted contributions are kept, to be offered again
        self._made: tuple[Mapping[str, Any], Worker] | None = None
        self._ending = False

    def run(self) -> None:
        try:
            self._work()
        except BaseException as error:  # noqa: BLE001  handed on to the thread that can end this life
            self._tell(error)

    def _work(self) -> None:
        idle_since = self._clock()
        while (orders := self.orders.get()) is not None:
            while orders and not self._ending:
                order = orders.popleft()
                if isinstance(order, Order):
                    weights = order.weights.bundle(self._buffers)
                    product = self._obey(order, weights, self._clock() - idle_since)
                    self._tell(self._shared.place(product.sealed() if self.retains else product, self.retains))
                    del weights
                    idle_since = self._clock()
                elif not isinstance(order, Held):
                    self._make(order)
                elif order is self.newest:
                    order.bundle(self._buffers)
                    self._tell(order)
                del order  # or an idle worker would keep the weights in memory
        self._let_go()
        self._shared.close()

    def _tell(self, result: Product | Held | BaseException) -> None:
        """Append a result. Behind another one it is found without a wake, because the reader takes results until none is left;
        the wake costs as much as a short task."""
        self.results.append(result)
        if len(self.results) == 1:
            self._wake()

    def end(self) -> None:
        """Take no more orders, and drop those that wait: close the worker after the task that is under way. Waits ENDING
        seconds for that at most, and not at all if the worker has nothing to close."""
        self._ending = True
        self.orders.put(None)
        if self._made and hasattr(self._made[1], "close") and self.is_alive():
            self.join(ENDING)

    def _let_go(self) -> None:
        if self._made:
            close(self._made[1])
        self._made = None

    def _obey(self, order: Order, weights: Bundle, waited: float) -> Product:
        worker = self._make(order.workload)
        return perform(lambda: worker, order.run, weights, waited, self._clock, order.brief)

    def _make(self, workload: Mapping[str, Any]) -> Worker:
        """The worker for a workload. What its making raises ends this life: no task is to blame for that."""
        if self._made is None or self._made[0] is not workload:
            self._let_go()
            self._made = (workload, self._workshop(workload))
        return self._made[1]
