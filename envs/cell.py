"""One environment's life in a process of its own: what it is told, what it answers, and in which bytes.

The one idea: a command and an answer are one row each of a numpy dtype that follows from the spaces. Both ends know it
before the first byte, so that nothing that crosses has to be understood, and no object is ever written or read.
"""

from __future__ import annotations

import hashlib
import random
import socket
import struct
import sys
import traceback
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import numpy as np

from shoal.envs.spaces import Spaces
from shoal.envs.vector import Environment, Envs, Step, make_vector
from shoal.protocol.errors import UserError
from shoal.protocol.layout import DTYPES

HEAD = struct.Struct("=ii")  # kind, bytes that follow
DONE, MADE, RAISED, WRONG = range(4)
"""What an answer is: a Step's row; a digest of the spaces; a traceback behind its last line; a UserError's line."""
MOST_TEXT = 4_000  # bytes of a text
BREAK = b"\0"  # between an exception's line and its traceback
FIELDS = Step._fields[:7]  # of a Step: all but how many were replaced


@dataclass(frozen=True, slots=True)
class Rows:
    """The two dtypes that cross, and a digest by which both ends know that they mean the same spaces."""

    command: np.dtype[Any]
    answer: np.dtype[Any]
    digest: bytes

    @classmethod
    def of(cls, spaces: Spaces) -> Rows:
        seen, (kind, shape) = spaces.observation, spaces.action.layout()
        observation = (DTYPES[seen.dtype], seen.shape)
        command = [("reset", "?"), ("seed", "i8"), ("action", DTYPES[kind], shape)]
        answer = [("kind", "i4"), ("length", "i4"), ("act_on", *observation), ("record", *observation)]
        answer += [("reward", "f8"), ("mask", "?"), ("terminated", "?"), ("truncated", "?"), ("lived", "?")]
        digest = hashlib.blake2b(repr(spaces).encode(), digest_size=16).digest()
        return cls(np.dtype(command, align=True), np.dtype(answer, align=True), digest)


class _GoneError(Exception):
    """The other end is closed."""


def live(channel: socket.socket, env: Environment, seed: int) -> None:
    """Until the other end is closed. seed: of the generators that all code of a process shares, which a fork has copied."""
    _seed_all(seed)
    with suppress(_GoneError):
        try:
            envs = make_vector(env, 1, native=False)
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
        step = envs.reset(int(heard["seed"][0])) if heard["reset"][0] else envs.step(heard["action"].copy())
        for name in FIELDS:
            answer[name] = getattr(step, name)
        _send(channel, said)


def _say(channel: socket.socket, kind: int, body: bytes) -> None:
    _send(channel, HEAD.pack(kind, len(body)) + body)


def _send(channel: socket.socket, data: bytes | memoryview) -> None:
    try:
        channel.sendall(data)
    except OSError:
        raise _GoneError from None


def _told(raised: Exception) -> bytes:
    """Its line, then as much of the end of its traceback as there is room for."""
    line = f"{type(raised).__name__}: {raised}".encode(errors="backslashreplace")[: MOST_TEXT // 4]
    trace = "".join(traceback.format_exception(raised)).encode(errors="backslashreplace")
    return line + BREAK + trace[-(MOST_TEXT - len(line) - len(BREAK)) :]


def _seed_all(seed: int) -> None:
    random.seed(seed)
    np.random.seed(seed % 2**32)
    if "torch" in sys.modules:
        sys.modules["torch"].manual_seed(seed)
