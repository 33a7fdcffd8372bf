"""The life of an environment in a process of its own: its commands, its answers, and their bytes.

The one idea: a command and an answer are one row each of a numpy dtype that follows from the spaces. Both ends derive the
dtypes before the first byte crosses, so no byte has to be interpreted, and no object is ever pickled.
"""

from __future__ import annotations

import hashlib
import socket
import struct
import traceback
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import numpy as np

from shoal.envs.logged import WAYS
from shoal.envs.making import Environment, Recipe, make_vector, recipe_of
from shoal.envs.spaces import Spaces
from shoal.envs.states import NoStateError
from shoal.envs.vector import Envs
from shoal.protocol import values
from shoal.protocol.draws import set_globals
from shoal.protocol.errors import UserError
from shoal.protocol.layout import DTYPES
from shoal.protocol.place import place_of

HEAD = struct.Struct("=ii")  # an answer's kind, number of bytes that follow
STEP, RESET, WATCH, TELL, GO_ON = range(5)
"""Commands. WATCH: watch the environment, in the way of the command, from its reset on. TELL: tell its state. GO_ON: go on
from a state, whose bytes follow the command. After TELL and GO_ON the global generators are set from the command's seed."""
DONE, MADE, RAISED, WRONG, TOLD, UNTOLD = range(6)
"""Kinds of answers. DONE: a Step's row. MADE: a digest of the spaces. RAISED: an exception's line, then its traceback.
WRONG: a UserError's line. TOLD: a state, or nothing if none was asked for. UNTOLD: why there is no state, or why it does not
fit."""
MOST_TEXT = 4_000  # bytes of a RAISED, WRONG or UNTOLD answer, at most
MOST_STATE = 1 << 22  # bytes of a TOLD answer, at most; a longer state is UNTOLD
BREAK = b"\0"  # between an exception's line and its traceback


@dataclass(frozen=True, slots=True)
class Rows:
    """The dtypes of a command and of an answer, and a digest by which both ends know that they mean the same spaces."""

    command: np.dtype[Any]
    answer: np.dtype[Any]
    digest: bytes

    @property
    def fields(self) -> tuple[str, ...]:
        """The names of a Step's arrays, which follow an answer's head."""
        return (self.answer.names or ())[2:]

    @classmethod
    def of(cls, spaces: Spaces) -> Rows:
        observation, (kind, shape) = spaces.record(), spaces.action.layout()
        command: list[Any] = [("order", "u1"), ("way", "u1"), ("seed", "i8"), ("length", "i8"), ("share", "f8")]
        command += [("action", DTYPES[kind], shape)]
        answer = [("kind", "i4"), ("length", "i4"), ("observation", *observation), ("reward", "f8")]
        answer += [("mask", "?"), ("terminated", "?"), ("truncated", "?"), ("lived", "?"), ("first", "?"), ("cut", "?")]
        answer += [("final", *observation)] if spaces.finals else []
        digest = hashlib.blake2b(repr(spaces).encode(), digest_size=16).digest()
        return cls(np.dtype(command, align=True), np.dtype(answer, align=True), digest)


class _GoneError(Exception):
    """The other end of the channel is closed."""


def live(channel: socket.socket, env: Environment | Recipe, seed: int) -> None:
    """Serve commands on `channel` until its other end is closed.

    seed: for the generators of `random`, numpy and torch that a process shares; a fork has copied their states.
    """
    set_globals(seed, "env made")
    with suppress(_GoneError):
        try:
            recipe = recipe_of(env)
            envs = make_vector(recipe, 1, recipe.alone)
            rows = Rows.of(envs.spaces)
            _say(channel, MADE, rows.digest)
            _serve(channel, envs, rows)
            envs.close()
        except UserError as wrong:
            _say(channel, WRONG, str(wrong).encode()[:MOST_TEXT])
        except _GoneError:
            raise
        except Exception as raised:  # noqa: BLE001  an environment is the user's code and may raise anything at all
            _say(channel, RAISED, _told(raised))


def _serve(channel: socket.socket, envs: Envs, rows: Rows) -> None:
    heard, answer = np.zeros(1, rows.command), np.zeros(1, rows.answer)
    answer["kind"], answer["length"] = DONE, rows.answer.itemsize - HEAD.size
    command, said = heard.view(np.uint8).data, answer.view(np.uint8).data
    while channel.recv_into(command, 0, socket.MSG_WAITALL) == len(command):
        order, seed = int(heard["order"][0]), int(heard["seed"][0])
        if order in (STEP, RESET):
            if order == RESET:
                set_globals(seed, "env steps")
            share = heard["share"] if heard["share"][0] else None
            step = envs.reset(seed, share) if order == RESET else envs.step(heard["action"].copy())
            for name in rows.fields:
                answer[name] = False if (value := getattr(step, name)) is None else value
            _send(channel, said)
            continue
        given = channel.recv(int(heard["length"][0]), socket.MSG_WAITALL) if heard["length"][0] else b""
        _say(channel, *_of_state(envs, order, WAYS[int(heard["way"][0])], given))
        if order != WATCH:
            set_globals(seed, "env steps")


def _of_state(envs: Envs, order: int, way: str, given: bytes) -> tuple[int, bytes]:
    """The answer to WATCH, TELL or GO_ON. given: a state to go on from."""
    try:
        if order == WATCH:
            envs.watch(way)
        elif order == GO_ON:
            envs.restore(values.read_quickly(given))
        told = values.pack_quickly(envs.state()) if order == TELL else b""
    except (NoStateError, UserError) as why:
        return UNTOLD, str(why).encode()[:MOST_TEXT]
    if len(told) > MOST_STATE:
        return UNTOLD, f"its state takes {len(told):,} bytes, and a process tells {MOST_STATE:,} at most".encode()
    return TOLD, told


def _say(channel: socket.socket, kind: int, body: bytes) -> None:
    _send(channel, HEAD.pack(kind, len(body)) + body)


def _send(channel: socket.socket, data: bytes | memoryview) -> None:
    try:
        channel.sendall(data)
    except OSError:
        raise _GoneError from None


def _told(raised: Exception) -> bytes:
    """The exception's line, with its place in the user's own code, then as much of the end of its traceback as fits into
    MOST_TEXT bytes."""
    place = place_of(raised)
    line = f"{type(raised).__name__}: {raised}{f' ({place})' * bool(place)}".encode(errors="backslashreplace")[: MOST_TEXT // 4]
    trace = "".join(traceback.format_exception(raised)).encode(errors="backslashreplace")
    return line + BREAK + trace[-(MOST_TEXT - len(line) - len(BREAK)) :]
