"""Environments in processes of their own, stepped side by side: one that hangs or dies is replaced, the others lose nothing.

The one idea: a deadline for every step and reset. A process that has not answered by then is killed, and replaced like one
that died. The step that it owed never happened: its row is masked (`lived` is False, `truncated` True), so that the row
before bootstraps from the last observation that was seen, and nothing is learned, or reported, of an episode whose end is
unknown. The replacement's first observation is the next row.

An environment's exception is no death: it is the user's mistake, and is raised here with the traceback from there, unless the
user asked for a fresh environment instead (`replaces`).
"""

from __future__ import annotations

import math
import os
import select
import socket
import sys
import weakref
from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import suppress
from typing import Any

import numpy as np

from shoal.envs.cell import (
    BREAK,
    DONE,
    GO_ON,
    HEAD,
    MADE,
    MOST_STATE,
    MOST_TEXT,
    RAISED,
    RESET,
    STEP,
    TELL,
    TOLD,
    UNTOLD,
    WATCH,
    WRONG,
    Rows,
)
from shoal.envs.hatchery import ENDING, Hatchery
from shoal.envs.logged import WAYS
from shoal.envs.spaces import Spaces
from shoal.envs.states import NoStateError
from shoal.envs.vector import Array, EnvError, Step
from shoal.protocol.draws import key
from shoal.protocol.errors import UserError, within

MAKING = 60.0  # seconds that a process may take to be forked and to make its environment
MOST = 5  # replacements of one environment in a row without a good step between them
CLOSING = 3.0  # seconds that environments get at `close` to close by themselves
SEEDS = 2**30  # a replacement's seed lies below this: some environments take only 32 bits

Clock = Callable[[], float]
Losses = dict[int, str]  # environment -> how its process was lost


class _LostError(Exception):
    """A process has died, is late, or answered nonsense."""


class Isolated:
    """`Worlds` in B = num_envs processes of `hatchery`, each with one environment.

    The processes begin at the first reset. Environment i is seeded with seed + i at a reset; its n-th replacement after that
    with a number drawn from (seed, i, n). timeout: seconds that a step or reset may take; math.inf: no limit. replaces: True if
    an exception has an environment replaced, as a death has; the first of each kind is printed to stderr.
    Raises EnvError for an environment's exception, and UserError if an environment cannot be made, or was replaced MOST
    times in a row without one good step. The environments are closed before either is raised.
    """

    def __init__(
        self, hatchery: Hatchery, num_envs: int, spaces: Spaces, timeout: float, clock: Clock, replaces: bool = False
    ) -> None:
        within("num_envs", num_envs, first=1)
        self.num_envs, self.spaces = num_envs, spaces
        self._hatchery, self._timeout, self._clock = hatchery, timeout, clock
        self._replaces, self._said = replaces, set[str]()
        self._rows = Rows.of(spaces)
        self._commands, self._answers = np.zeros(num_envs, self._rows.command), np.zeros(num_envs, self._rows.answer)
        self._told = [self._commands[i : i + 1].view(np.uint8).data for i in range(num_envs)]
        self._heard = [self._answers[i : i + 1].view(np.uint8).data for i in range(num_envs)]
        self._holds: dict[int, _Hold] = {}
        self._seed, self._watched, self._tellings = 0, False, 0
        self._born = np.zeros(num_envs, np.int64)  # seeds with which the processes of the environments began
        self._told_of: dict[int, bytes] = {}  # environment -> its state, which was asked for last
        self._untold: Losses = {}  # environment -> why it did not tell its state, or go on from one, when it was asked last
        self._replaced = np.zeros(num_envs, np.int64)  # replacements of each environment since the last reset
        self._fruitless = np.zeros(num_envs, np.int64)  # replacements of each environment since its last good step
        self._drop = weakref.finalize(self, _dropped, self._holds, os.getpid())

    def reset(self, seed: int, shares: Array | None = None) -> Step:
        self._seed, self._commands["share"] = seed, 0.0 if shares is None else shares
        self._replaced[:], self._watched, self._tellings = 0, False, 0
        return self._led_to(self._reset)

    def step(self, action: Array) -> Step:
        self.send(action)
        return self.receive()

    def send(self, action: Array) -> None:
        """Let every environment begin its step. `receive` follows."""
        self._commands["order"], self._commands["action"] = STEP, action
        for i in range(self.num_envs):
            self._holds[i].tell(self._told[i])

    def receive(self) -> Step:
        """The result of the step that `send` began."""
        return self._led_to(self._step)

    def watch(self, way: str) -> int:
        """Watch the environments from their reset on, so that their state can be told in a way of envs/logged.py. Returns 0."""
        self._watched, self._commands["way"] = True, WAYS.index(way)
        self._of_state(WATCH, range(self.num_envs))  # a process that is lost meanwhile is replaced in the next step
        return 0

    def state(self) -> Any:
        """The environments' state as plain data. Raises NoStateError, also if a process is lost meanwhile."""
        self._tellings += 1
        for why in self._of_state(TELL, range(self.num_envs)).values():
            raise NoStateError(why)
        told = [self._told_of[i] for i in range(self.num_envs)]
        return [self._born.tolist(), self._replaced.tolist(), self._tellings, told]

    def restore(self, state: Any) -> None:
        """Go on from a state, in environments that were made and reset alike. Raises NoStateError if it does not fit."""
        born, replaced, self._tellings, told = state
        others = {i: seed for i, seed in enumerate(born) if seed != self._born[i]}
        for i in others:
            self._holds.pop(i).end()
        self._commands["share"] = 0.0
        try:
            amiss = self._begun(others) or self._of_state(GO_ON, range(self.num_envs), told)
        except EnvError as raised:
            raise NoStateError(str(raised)) from raised
        for why in amiss.values():
            raise NoStateError(why)
        self._replaced[:] = replaced

    def close(self) -> None:
        """End all processes; none is left when this returns. Environments get CLOSING seconds to close by themselves."""
        for hold in self._holds.values():
            _let_go(hold.channel)
        until = self._clock() + CLOSING
        for hold in self._holds.values():
            hold.end(max(0.0, until - self._clock()))
        self._holds.clear()

    def _led_to(self, ask: Callable[[], int]) -> Step:
        try:
            replaced = ask()
        except (UserError, EnvError):
            self.close()
            raise
        arrays = {name: np.ascontiguousarray(self._answers[name]) for name in self._rows.fields}
        cut = arrays.pop("cut")
        return Step(**arrays, replaced=replaced, cut=cut if cut.any() else None)

    def _reset(self) -> int:
        return self._replace(self._begun({i: self._seed + i for i in range(self.num_envs)}))

    def _step(self) -> int:
        lost = self._heard_from(range(self.num_envs), DONE)
        abandoned = np.zeros(self.num_envs, dtype=bool)
        abandoned[list(lost)] = True
        self._fruitless[~abandoned] = 0
        self._commands["share"] = 0.0  # a replacement's first episode is no first one
        replaced = self._replace(lost)
        self._answers["truncated"] |= abandoned
        return replaced

    def _replace(self, lost: Losses) -> int:
        """Replace lost processes until every environment has begun again. Returns the number of new processes."""
        many = 0
        while lost:
            many += len(lost)
            lost = self._begun({i: self._anew(i, why) for i, why in lost.items()})
        return many

    def _anew(self, i: int, why: str) -> int:
        """End the process of environment i. Returns the seed of its replacement."""
        if self._fruitless[i] == MOST:
            raise UserError(f"environment {i} was replaced {MOST} times in a row without one good step; at last it {why}")
        self._fruitless[i] += 1
        self._replaced[i] += 1
        self._holds.pop(i).end()
        return key(self._seed, "replaced", i, int(self._replaced[i])) % SEEDS

    def _begun(self, seeds: Mapping[int, int]) -> Losses:
        """Begin an episode in each environment of `seeds`, in a new process if it has none. Returns the processes lost."""
        new = [i for i in seeds if i not in self._holds]
        for i in new:
            self._holds[i] = _Hold(self._hatchery, seeds[i], self._clock)
            self._born[i] = seeds[i]
        within = self._long
        lost = self._gather(new, MADE, within, f"was not made within {within:g} s")
        self._commands["order"] = RESET
        for i, seed in seeds.items():
            self._commands["seed"][i] = seed
        lost |= self._answered([i for i in seeds if i not in lost], DONE)
        if self._watched:
            watched = self._of_state(WATCH, [i for i in seeds if i not in lost])
            lost |= {i: watched[i] for i in watched.keys() - self._untold.keys()}  # one that is not watched steps all the same
        return lost

    @property
    def _long(self) -> float:
        """Seconds that a process may take to make its environment, or to play an episode again."""
        return max(MAKING, self._timeout) if math.isfinite(self._timeout) else MAKING

    def _of_state(self, order: int, asked: Collection[int], states: Sequence[bytes] | None = None) -> Losses:
        """Let processes WATCH, TELL, or GO_ON from `states`. Returns those that did not, and why. A process that did not answer
        is ended, because its answer may come at any time."""
        self._commands["order"], self._untold = order, {}
        for i in asked:
            self._commands["seed"][i] = key(self._seed, "told", i, self._tellings) % SEEDS
            self._commands["length"][i] = len(states[i]) if states else 0
            self._holds[i].tell(self._told[i])
            if states and states[i]:
                self._holds[i].tell(memoryview(states[i]))
        within = self._long if order == GO_ON else self._timeout
        lost = self._gather(asked, TOLD, within, f"did not tell its state, or go on from one, within {within:g} s")
        for i in lost:
            _let_go(self._holds[i].leash)
        return lost | self._untold

    def _answered(self, asked: Collection[int], kind: int) -> Losses:
        for i in asked:
            self._holds[i].tell(self._told[i])
        return self._heard_from(asked, kind)

    def _heard_from(self, asked: Collection[int], kind: int) -> Losses:
        return self._gather(asked, kind, self._timeout, f"took longer than step_timeout={self._timeout:g} s")

    def _gather(self, asked: Collection[int], wanted: int, within: float, late: str) -> Losses:
        """Take in the answers, of the kind `wanted` or of exceptions. Returns the lost processes.

        The last environment comes first: when it has answered most others have, and this thread is not woken for each.
        """
        until, lost = self._clock() + within, Losses()
        for i in reversed(list(asked)):
            try:
                kind, body = self._holds[i].hear(self._heard[i], until, late)
            except _LostError as why:
                lost[i] = str(why)
            else:
                if (wanted, kind) == (TOLD, UNTOLD):
                    self._untold[i] = body.decode(errors="replace")
                elif kind not in (wanted, RAISED, WRONG):
                    lost[i] = "answered nonsense"
                elif kind == TOLD:
                    self._told_of[i] = body
                elif kind == RAISED and self._replaces:
                    lost[i] = self._excused(i, body)
                else:
                    self._check(i, kind, body)
        return lost

    def _excused(self, i: int, body: bytes) -> str:
        """The outcome of environment i, which raised an exception."""
        line = body.decode(errors="replace").partition(BREAK.decode())[0]
        if (kind := line.partition(":")[0]) not in self._said:
            self._said.add(kind)
            print(
                f"shoal: environment {i} raised {line} and is replaced; env_replaced counts these", file=sys.stderr, flush=True
            )
        return f"raised {line}"

    def _check(self, i: int, kind: int, body: bytes) -> None:
        if kind == RAISED:
            line, _, trace = body.decode(errors="replace").partition(BREAK.decode())
            raised = EnvError(line)
            raised.add_note(f"In the process of environment {i}:\n{trace}")
            raise raised
        if kind == WRONG:
            raise UserError(body.decode(errors="replace"))
        if kind == MADE and body != self._rows.digest:
            raise UserError(f"environment {i} has other observations or actions than the one that was made first")


class _Hold:
    """The parent's ends of the two sockets to one process: the channel, for commands and answers, and the leash."""

    def __init__(self, hatchery: Hatchery, seed: int, clock: Clock) -> None:
        self.channel, theirs = socket.socketpair()
        self.leash, held = socket.socketpair()
        self._clock = clock
        self._poller = select.poll()
        self._poller.register(self.channel, select.POLLIN)
        hatchery.hatch(seed, theirs, held)

    def tell(self, command: memoryview) -> None:
        with suppress(ConnectionError):  # the process has died: `hear` finds that out
            self.channel.sendall(command)

    def hear(self, row: memoryview, until: float, late: str) -> tuple[int, bytes]:
        """The answer's kind and body. DONE fills the row and has no body. An answer that is there is taken, however late."""
        got = self._fill(row, HEAD.size, until, late)
        kind, length = HEAD.unpack_from(row)
        if kind == DONE and length == len(row) - HEAD.size:
            self._fill(row[got:], len(row) - got, until, late)
            return kind, b""
        most = MOST_STATE if kind == TOLD else MOST_TEXT
        if kind not in (MADE, RAISED, WRONG, TOLD, UNTOLD) or not got - HEAD.size <= length <= most:
            raise _LostError("answered nonsense")
        body = bytearray(length)
        body[: got - HEAD.size] = row[HEAD.size : got]
        self._fill(memoryview(body)[got - HEAD.size :], length + HEAD.size - got, until, late)
        return kind, bytes(body)

    def _fill(self, into: memoryview, least: int, until: float, late: str) -> int:
        got = 0
        while got < least:
            try:
                read = self.channel.recv_into(into[got:], 0, socket.MSG_DONTWAIT)
            except BlockingIOError:
                left = until - self._clock()
                if left <= 0 or not self._poller.poll(left * 1_000 if math.isfinite(left) else None):
                    raise _LostError(late) from None
                continue
            except ConnectionResetError:
                read = 0
            if not read:
                raise _LostError(self._last_word(ENDING) or "closed its channel")
            got += read
        return got

    def end(self, patience: float = 0.0) -> None:
        """End the process: it is gone when this returns, by itself or killed after `patience` seconds."""
        _let_go(self.channel)
        if not self._last_word(patience):
            _let_go(self.leash)
            self._last_word(ENDING)
        self.channel.close()
        self.leash.close()

    def _last_word(self, patience: float) -> str:
        """The hatchery's words for how the process ended; "" if it has not ended after `patience` seconds."""
        self.leash.settimeout(patience)
        with suppress(TimeoutError, BlockingIOError, ConnectionResetError):
            return self.leash.recv(200).decode() or "has no hatchery any more"
        return ""


def _let_go(end: socket.socket) -> None:
    """Shut this end for every process that holds it: a process forked from here in the meantime has a copy."""
    with suppress(OSError):  # the other end has gone already
        end.shutdown(socket.SHUT_WR)


def _dropped(holds: dict[int, _Hold], maker: int) -> None:
    """Let go of holds that were never closed: their processes end when nobody holds their leashes."""
    for hold in holds.values():
        for end in (hold.leash, hold.channel):
            if os.getpid() == maker:  # a process forked from the maker has copies, and only closes these
                _let_go(end)
            end.close()
