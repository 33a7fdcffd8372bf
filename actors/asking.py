"""A policy whose network is computed by another process of the machine: the asking side of central inference.

The one idea: the other process computes what this one could compute as well. So whatever becomes of that process (it is not
there yet, has ended, hangs, or its network raises), the actor computes the numbers itself, and nothing waits for long.
"""

from __future__ import annotations

import select
import socket
import sys
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import numpy as np

from shoal.envs.spaces import Array, Floats, Kept
from shoal.nets.acting import Acted, Bools, Parted, State, forgotten
from shoal.protocol.errors import ProtocolError, UserError
from shoal.protocol.layout import Bundle
from shoal.protocol.questions import ALONE, ANSWER, FAILED, FORM, LACKS, QUESTION, WEIGHTS, Packet, Places, Shape, hello
from shoal.protocol.shared import Segment
from shoal.protocol.work import Totals, Words

PATIENCE = 30.0  # seconds that an answer may take, after which the actor computes itself
HALVES = 2  # questions of one actor that may be under way: one for each half of its environments


@dataclass(slots=True)
class Pending:
    """A question under way. number: 0 if it was not sent, so that this process computes it."""

    seen: Array
    state: State
    number: int
    mark: int


def say(text: str) -> None:
    print(f"shoal: {text}", file=sys.stderr, flush=True)


class Asking:
    """`own` as a policy whose `numbers` are those of the process that listens at `address`.

    seen: dtype and shape of one observation. rows: environments of a question, at most; a larger one is computed here. alone:
    True if each question is to be computed in a batch of its own: then the bits are those of `own`. patience: seconds that an
    answer may take. told: prints a line, once for each way in which the other process failed.
    """

    def __init__(
        self,
        own: Parted,
        seen: tuple[np.dtype[Any], tuple[int, ...]],
        address: str,
        rows: int,
        alone: bool,
        patience: float = PATIENCE,
        told: Callable[[str], None] = say,
    ) -> None:
        self.own, self.version = own, -1
        self._seen, self._address, self._rows, self._mark = seen, address, rows, ALONE if alone else 0
        self._patience, self._tell, self._said = patience, told, set[str]()
        self._untold: list[str] = []  # lines for the next rollout: at a run's end, where there is none, they are no news
        self._weights: Bundle | None = None
        self._ready = False  # `own` has the weights
        self._late = False  # an answer did not come in time: this actor asks no more
        self._line: socket.socket | None = None
        self._poller = select.poll()
        self._segment: Segment | None = None
        self._desk: Places | None = None
        self._asked: dict[int, Pending] = {}
        self._answers: dict[int, Packet] = {}  # place -> the answer that came to the question there
        self._number = self._gave_at = 0
        self._counts = [0, 0]  # rows that the other process computed, and all rows

    @property
    def rows(self) -> Kept:
        return self.own.rows

    @property
    def memory(self) -> Kept:
        return self.own.memory

    @property
    def width(self) -> int:
        return self.own.width

    def named(self, version: int) -> None:
        """Say which version the weights have that `load` is called with next."""
        self.version = version

    def load(self, weights: Bundle) -> None:
        self._weights, self._ready = weights, False
        self._asked.clear()
        while self._untold:
            self._tell(self._untold.pop(0))
        if self._line is None and not self._late:
            self._connect(weights)

    def forget(self) -> None:
        if self._ready:
            self.own.forget()
        self._weights, self._ready = None, False
        self._asked.clear()

    def noise(self, rng: np.random.Generator, rows: int, num_envs: int) -> Array:
        return self.own.noise(rng, rows, num_envs)

    def begin(self, num_envs: int) -> State:
        return self.own.begin(num_envs)

    def finish(self, extras: Mapping[str, Array], action: Array) -> Mapping[str, Array]:
        return self.own.finish(extras, action)

    def act(self, seen: Array, first: Bools, state: State, noise: Array | None, words: Words) -> Acted:
        self.ask(0, seen, first, state)
        return self.answer(0, noise, words)

    def numbers(self, seen: Array, state: State) -> tuple[Floats, State]:
        self._put(0, seen, state)
        return self._numbers(0)

    def chosen(self, numbers: Floats, seen: Array, state: State, noise: Array | None, words: Words) -> Acted:
        return self.own.chosen(numbers, seen, state, noise, words)

    def ask(self, place: int, seen: Array, first: Bools, state: State) -> None:
        """Ask for the network's numbers of B observations. They stay as they are until `answer`. place: 0 or 1."""
        self._put(place, seen, forgotten(state, first) if state else state)

    def answer(self, place: int, noise: Array | None, words: Words) -> Acted:
        """The actions for the observations that were asked about at this place."""
        seen = self._asked[place].seen
        numbers, state = self._numbers(place)
        return self.own.chosen(numbers, seen, state, noise, words)

    def totals(self) -> Totals:
        """The share of rows since the last call that the other process computed."""
        (central, every), self._counts = self._counts, [0, 0]
        return {"inference_central": (float(central), float(every))} if every else {}

    def close(self) -> None:
        self._leave()
        if self._segment is not None:
            self._desk = None
            self._segment.close()
            self._segment = None

    # The other process

    def _put(self, place: int, seen: Array, state: State) -> None:
        asked = self._asked[place] = Pending(seen, state, 0, self._mark)
        self._counts[1] += len(seen)
        if self._line is None or self._desk is None or len(seen) > self._desk.rows or not place < self._desk.places:
            return
        self._desk.seen[place][: len(seen)] = seen
        for name, array in state.items():
            self._desk.before[place][name][: len(seen)] = array
        self._send(place, asked)

    def _send(self, place: int, asked: Pending) -> None:
        self._number += 1
        asked.number = self._number
        packet = Packet(QUESTION, place, asked.mark, len(asked.seen), asked.number, self.version)
        try:
            assert self._line is not None
            self._line.send(packet.packed())
        except OSError:
            self._lost("has ended")

    def _numbers(self, place: int) -> tuple[Floats, State]:
        asked = self._asked.pop(place)
        if asked.number and self._heard(place, asked):
            assert self._desk is not None
            rows = len(asked.seen)
            self._counts[0] += rows
            state = {name: array[:rows].copy() for name, array in self._desk.after[place].items()}
            return self._desk.numbers[place][:rows], state
        if not self._ready:
            assert self._weights is not None
            self.own.load(self._weights)
            self._ready = True
        return self.own.numbers(asked.seen, asked.state)

    def _heard(self, place: int, asked: Pending) -> bool:
        """Wait for the answer. Returns False if this process must compute it."""
        while (came := self._answers.get(place)) is None or came.number != asked.number:
            if self._line is None:
                return False
            if not self._poller.poll(self._patience * 1_000):
                self._late = True
                self._lost(f"gave no answer within {self._patience:g} s")
                return False
            self._take(place, asked)
        del self._answers[place]
        return came.kind == ANSWER

    def _take(self, waiting: int, asked: Pending) -> None:
        """Take one packet. waiting, asked: the question that is waited for, which is no longer in `_asked`."""
        assert self._line is not None
        try:
            data = self._line.recv(FORM.size)
        except OSError:
            self._lost("has ended")
            return
        if not data:
            self._lost("has ended")
            return
        packet = Packet.read(data)
        about = asked if packet.place == waiting else self._asked.get(packet.place)
        if about is None or packet.number != about.number:
            return  # the answer to a question of an abandoned rollout
        if packet.kind == LACKS:
            if packet.number > self._gave_at:
                self._give()
            if self._line is not None:
                self._send(packet.place, about)
            return
        if packet.kind == ANSWER and packet.version != self.version:
            raise ProtocolError(f"weights of version {packet.version} answered a question to version {self.version}")
        if packet.kind in (ANSWER, FAILED):
            self._answers[packet.place] = packet

    def _give(self) -> None:
        assert self._desk is not None
        assert self._weights is not None
        assert self._line is not None
        np.copyto(self._desk.weights.data, self._weights.data)
        self._gave_at = self._number
        try:
            self._line.send(Packet(WEIGHTS, version=self.version).packed())
        except OSError:
            self._lost("has ended")

    def _connect(self, weights: Bundle) -> None:
        shape = Shape(self._seen, self.own.memory, self.own.width, self._rows, HALVES, weights.layout)
        line = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        try:
            line.connect(self._address)
            if self._segment is None:
                self._segment = Segment.create(shape.nbytes, common=True)
                self._desk = Places(shape, self._segment.data)
            line.send(hello(self._segment.handle, shape))
        except (OSError, UserError, ProtocolError) as why:
            line.close()
            self._complain(f"cannot be asked ({getattr(why, 'strerror', None) or why})")
            return
        self._line = line
        self._poller.register(line, select.POLLIN)

    def _lost(self, why: str) -> None:
        self._leave()
        self._complain(why)

    def _leave(self) -> None:
        if self._line is not None:
            with suppress(KeyError):
                self._poller.unregister(self._line)
            self._line.close()
        self._line = None
        self._answers.clear()

    def _complain(self, why: str) -> None:
        if why not in self._said:
            self._said.add(why)
            until = "from now on" if self._late else "until a rollout begins at which there is one"
            self._untold.append(f"the inference process {why}: this actor computes its network itself {until}")
