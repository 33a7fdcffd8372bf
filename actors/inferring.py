"""The inference process: it computes the network for the actors of its machine, in batches.

The one idea: questions are batched as `shoal serve` batches requests (protocol/batching.py): the batch begins with whoever
asked first, takes those who have asked by then, and waits for more only for a bounded time. A batch is of one version of the
weights, which the actors name and bring along. So this process follows no coordinator, and one that was just started knows all
that it needs after one packet.
"""

from __future__ import annotations

import math
import os
import select
import socket
from collections import OrderedDict
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from shoal.envs.spaces import Array, Floats, Kept
from shoal.nets.acting import State
from shoal.protocol.batching import Queue
from shoal.protocol.errors import ProtocolError
from shoal.protocol.layout import Bundle
from shoal.protocol.questions import ALONE, ANSWER, FAILED, FORM, LACKS, PACKET, QUESTION, WEIGHTS, Packet, Places, read_hello
from shoal.protocol.shared import Segment

Clock = Callable[[], float]
KEPT = 4  # versions whose weights are kept: as many as actors may be apart without giving weights twice
MOST = 1 << 20  # rows that may wait: never reached, because an actor has two questions under way at most
BACKLOG = 1_024  # actors that may connect at once


class Computing(Protocol):
    """The part of a policy (nets/acting.py) that this process needs: its network with the weights of one version."""

    @property
    def memory(self) -> Kept: ...

    @property
    def width(self) -> int: ...

    def load(self, weights: Bundle) -> None:
        """Compute with these weights, which stay as they are until the next call."""
        ...

    def numbers(self, seen: Array, state: State) -> tuple[Floats, State]: ...


@dataclass(frozen=True, slots=True)
class Batching:
    """min_batch, max_batch: rows of a batch. max_wait: seconds that a question waits for company, at most."""

    min_batch: int = 1
    max_batch: int = 1_024
    max_wait: float = 0.002


@dataclass(slots=True, eq=False)
class Asker:
    """An actor that asks. desk: None until its first packet."""

    line: socket.socket
    desk: Places | None = None
    segment: Segment | None = None

    def tell(self, packet: Packet) -> None:
        with suppress(OSError):  # the actor has ended, which the next look at its socket shows
            self.line.send(packet.packed())

    def close(self) -> None:
        self.line.close()
        self.desk = None
        if self.segment is not None:
            self.segment.close()


@dataclass(slots=True, eq=False)
class Question:
    """A question that waits. policy: with the weights of its version."""

    asker: Asker
    packet: Packet
    policy: Computing

    @property
    def seen(self) -> Array:
        assert self.asker.desk is not None
        return self.asker.desk.seen[self.packet.place][: self.packet.rows]

    @property
    def state(self) -> State:
        assert self.asker.desk is not None
        # Copied: the last bits of a product may depend on where in memory its numbers begin, and these begin anywhere.
        return {name: array[: self.packet.rows].copy() for name, array in self.asker.desk.before[self.packet.place].items()}

    def answer(self, numbers: Array, state: State) -> None:
        """Write the answer where the actor reads it, and tell the actor."""
        desk, at, rows = self.asker.desk, self.packet.place, self.packet.rows
        if desk is None:
            return
        desk.numbers[at][:rows] = numbers
        for name, array in state.items():
            desk.after[at][name][:rows] = array
        self.asker.tell(self.packet._replace(kind=ANSWER))


class Inferring:
    """make: a policy of the job, without weights. seen: dtype and shape of one observation."""

    def __init__(
        self, make: Callable[[], Computing], seen: tuple[np.dtype[Any], tuple[int, ...]], batching: Batching, clock: Clock
    ) -> None:
        self._make, self._seen, self._clock = make, seen, clock
        self._plain = make()
        self.policies: OrderedDict[int, tuple[Computing, Bundle]] = OrderedDict()
        self.queue: Queue[Question] = Queue((), batching.max_batch, batching.max_wait, MOST, batching.min_batch)
        self._askers: dict[int, Asker] = {}
        self._poller = select.poll()
        self.batches = self.rows = 0

    def serve(self, listener: socket.socket, over: Callable[[], bool] = bool) -> None:
        """Answer until `over`."""
        listener.setblocking(False)
        self._poller.register(listener, select.POLLIN)
        again = math.inf
        while not over():
            left = max(0.0, again - self._clock())
            for descriptor, _ in self._poller.poll(None if left == math.inf else math.ceil(left * 1_000)):
                if descriptor == listener.fileno():
                    self._accept(listener)
                else:
                    self._hear(descriptor)
            again = self._turn()
        for asker in self._askers.values():
            asker.close()
        self._askers.clear()

    def _accept(self, listener: socket.socket) -> None:
        with suppress(BlockingIOError, ConnectionError):
            line, _ = listener.accept()
            line.setblocking(False)
            self._askers[line.fileno()] = Asker(line)
            self._poller.register(line, select.POLLIN)

    def _hear(self, descriptor: int) -> None:
        asker = self._askers[descriptor]
        try:
            while data := asker.line.recv(PACKET):
                self._take(asker, data)
        except BlockingIOError:
            return
        except (OSError, ProtocolError):
            pass
        self._poller.unregister(asker.line)
        del self._askers[descriptor]
        asker.close()

    def _take(self, asker: Asker, data: bytes) -> None:
        if asker.desk is None:
            handle, shape = read_hello(data, self._seen, self._plain.memory, self._plain.width)
            asker.segment = Segment.open(handle, common=True)
            if asker.segment.data.nbytes < shape.nbytes:
                raise ProtocolError("an actor's memory is smaller than it says")
            asker.desk = Places(shape, asker.segment.data)
            return
        packet = Packet.read(data[: FORM.size])
        if packet.kind == WEIGHTS:
            self._learn(packet.version, asker.desk.weights)
        elif packet.kind == QUESTION:
            self._ask(asker, asker.desk, packet)

    def _learn(self, version: int, weights: Bundle) -> None:
        """Take weights in, of which the actor keeps no copy here."""
        if version in self.policies:
            return
        idle = (each for each in self.policies if not self.queue.lanes.get(str(each)))
        oldest = next(idle, None) if len(self.policies) >= KEPT else None
        policy, own = self._make() if oldest is None else self.policies.pop(oldest)[0], weights.copy()
        policy.load(own)
        self.policies[version] = policy, own

    def _ask(self, asker: Asker, desk: Places, packet: Packet) -> None:
        if not (packet.place < desk.places and 0 < packet.rows <= desk.rows):
            raise ProtocolError("an actor asks beyond its memory")
        found = self.policies.get(packet.version)
        if found is None:
            asker.tell(packet._replace(kind=LACKS))
            return
        self.policies.move_to_end(packet.version)
        question = Question(asker, packet, found[0])
        if packet.mark & ALONE:
            self._answer([question])
        else:
            self.queue.offer(str(packet.version), question, packet.rows, self._clock())

    def _turn(self) -> float:
        """Compute one batch, if one is due. Returns the time at which to look again, at the latest; inf: at the next packet."""
        turn = self.queue.turn(self._clock())
        if not turn.batch:
            return turn.again
        here = [question for question in turn.batch if question.asker.desk is not None]
        if here:
            self._answer(here)
        for lane in [lane for lane in self.queue.lanes if int(lane) not in self.policies]:
            self.queue.forget(lane)
        return self._clock()  # packets may have come meanwhile, and the model is free

    def _answer(self, batch: Sequence[Question]) -> None:
        """Answer questions of one version."""
        self.batches += 1
        self.rows += sum(one.packet.rows for one in batch)
        seen, state = batch[0].seen, batch[0].state
        if len(batch) > 1:
            seen = np.concatenate([one.seen for one in batch])
            state = {name: np.concatenate([one.state[name] for one in batch]) for name in state}
        try:
            numbers, after = batch[0].policy.numbers(seen, state)
        except Exception:  # noqa: BLE001  a policy is the user's code: the actor computes itself, and so finds what it raises
            for one in batch:
                one.asker.tell(one.packet._replace(kind=FAILED))
            return
        at = 0
        for one in batch:
            rows = slice(at, at + one.packet.rows)
            one.answer(numbers[rows], {name: array[rows] for name, array in after.items()})
            at += one.packet.rows


def listening(path: str) -> socket.socket:
    """A socket at which actors ask. One that an earlier process left there is replaced."""
    with suppress(FileNotFoundError):
        os.unlink(path)
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    listener.bind(path)
    listener.listen(BACKLOG)
    return listener
