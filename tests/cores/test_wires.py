"""Facts about the wires that need no socket: what wakes a wait, and how often arrays go to a gateway process."""

from __future__ import annotations

import itertools
import os
import select
import socket
import threading
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import zmq

from shoal.protocol import wake as waking
from shoal.protocol.gate import KEEP, KEPT, SEND, SEND_KEPT
from shoal.protocol.gateway import Gateway
from shoal.protocol.link import Part, Waiting
from shoal.protocol.messages import Chunk, Envelope, Weights
from shoal.protocol.pipe import Pipe
from shoal.protocol.wake import Wake

PIECE = 1 << 18


def woken(wake: Wake) -> bool:
    return bool(select.select([wake.out], [], [], 0)[0])


def test_a_call_while_another_thread_has_just_written_its_byte_wakes_too(monkeypatch: pytest.MonkeyPatch) -> None:
    wake, write = Wake(), os.write
    second = threading.Thread(target=wake)

    def slow(descriptor: int, data: bytes) -> int:
        written = write(descriptor, data)
        if second.ident is None:
            wake.clear()  # the waiter is awake, and looks at what there was before the second call
            second.start()
            second.join(0.2)
        return written

    monkeypatch.setattr(waking.os, "write", slow)
    wake()
    second.join()
    assert woken(wake)
    wake.close()


def test_a_call_after_the_end_writes_to_no_file_that_has_the_number_now() -> None:
    wake = Wake()
    numbers = wake.out, wake._in
    wake.close()
    pairs = [socket.socketpair() for _ in range(2)]
    assert set(numbers) <= {end.fileno() for pair in pairs for end in pair}
    wake()
    ends = list(itertools.chain(*pairs))
    assert select.select(ends, [], [], 0)[0] == []
    for end in ends:
        end.close()


class Through(Pipe):
    """Counts what goes to a gateway process that is not there."""

    def __init__(self) -> None:
        ours, self.theirs = socket.socketpair()
        super().__init__(ours, 1)
        self.kinds: list[bytes] = []
        self.nbytes = 0

    def put(self, frames: Sequence[Any]) -> None:
        self.kinds.append(frames[0])
        self.nbytes += sum(len(frame) for frame in frames)


class Alone(Gateway):
    def _start(self) -> None:
        self._pipe = self.through = Through()

    def _listen(self) -> None:
        for peer in range(40):
            self._know(b"%d" % peer)

    def serve(self, peer: int, what: tuple[int, ...], whole: np.ndarray[Any, np.dtype[np.uint8]], first: int) -> None:
        last = min(len(whole), first + PIECE)
        assert self.send(b"%d" % peer, Envelope(b"", 9, Chunk(what, first, last)), Part(whole, first, last)) == ""

    def over(self) -> None:
        for end in (self.through._end, self.through.theirs):
            end.close()
        self.wake.close()


def array(pieces: int) -> np.ndarray[Any, np.dtype[np.uint8]]:
    return np.zeros(pieces * PIECE, np.uint8)


def test_briefs_fetched_by_turns_go_through_once_and_leave_the_weights_where_they_are() -> None:
    gateway, weights, briefs = Alone("ipc:///nowhere"), array(3), [array(5) for _ in range(4)]
    gateway.serve(9, (7,), weights, 0)
    for first in range(0, 5 * PIECE, PIECE):
        for actor, brief in enumerate(briefs):
            gateway.serve(actor, (7, actor, 11), brief, first)
    gateway.serve(9, (7,), weights, PIECE)
    assert gateway.through.kinds == [KEEP, SEND_KEPT, *[SEND] * 20, SEND_KEPT]
    assert gateway.through.nbytes < (3 + 4 * 5) * PIECE + 10_000
    gateway.over()


def test_changes_of_more_versions_than_are_kept_cost_at_most_twice_what_their_readers_get() -> None:
    gateway, bases = Alone("ipc:///nowhere"), range(2, 9)
    changes = {base: array(9 - base) for base in bases}
    for peer, base in itertools.product(range(6), bases):  # six readers of each, by turns
        for first in range(0, len(changes[base]), PIECE):
            gateway.serve(peer, (9, base), changes[base], first)
    kept, got = sum(9 - base for base in bases[:KEPT]), 6 * sum(9 - base for base in bases)
    assert gateway.through.nbytes < (kept + 2 * got) * PIECE
    gateway.over()


def test_weights_that_many_fetch_after_changes_go_through_twice_and_no_more() -> None:
    gateway, weights = Alone("ipc:///nowhere"), array(4)
    for base in (5, 6, 7):
        gateway.serve(0, (8, base), array(1), 0)
    before = gateway.through.nbytes
    for peer, first in itertools.product(range(40), range(0, 4 * PIECE, PIECE)):
        gateway.serve(peer, (8,), weights, first)
    assert gateway.through.nbytes - before < 2 * 4 * PIECE + 20_000
    gateway.over()


def test_a_newer_version_has_room_at_once() -> None:
    gateway = Alone("ipc:///nowhere")
    for what in ((8, 5), (8, 6), (8, 7), (8,), (9, 6), (9, 7), (8, 5), (9, 8), (9,), (10,)):
        gateway.serve(0, what, array(2), 0)
    whole = [KEEP, SEND_KEPT]
    assert gateway.through.kinds == [*whole * 3, SEND, *whole * 2, SEND, *whole, SEND, *whole]
    gateway.over()


def test_weights_that_go_with_their_message_go_through_once_for_all_actors() -> None:
    gateway, weights = Alone("ipc:///nowhere"), array(1)
    for peer in range(30):
        gateway.send(b"%d" % peer, Envelope(b"", 9, Weights(4, kept=peer // 10)), weights)  # snapshots are made meanwhile
    assert gateway.through.kinds == [KEEP, *[SEND_KEPT] * 30]
    gateway.over()


def test_a_socket_in_which_a_wait_found_nothing_is_not_looked_into_once() -> None:
    context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
    front, back = context.socket(zmq.PAIR), context.socket(zmq.PAIR)
    front.bind("inproc://spared")
    back.connect("inproc://spared")
    waiting = Waiting()
    waiting.poller.register(front, zmq.POLLIN)
    assert not waiting.spares(front)  # nobody has waited
    waiting.wait(0)
    assert waiting.spares(front)
    assert not waiting.spares(front)  # a second look without a wait between may find what came since
    back.send(b"")
    waiting.wait(5)
    assert not waiting.spares(front)
    for end in (front, back):
        end.close(0)
    context.term()
    waiting.wake.close()
