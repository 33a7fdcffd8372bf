"""Calls for an actor on another machine, and their answers, as plain values.

The one idea: no end runs code that came from the other. A function is a name, an exception is the name of its type with a text,
and all else is what values.py can read.
"""

from __future__ import annotations

import math
import traceback
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from shoal.protocol import values
from shoal.protocol.calls import Answer
from shoal.protocol.errors import GangError, ProtocolError, UserError, said
from shoal.protocol.layout import Bundle, Layout

MOST_TEXT = 65_536  # characters of a message and of a traceback
RAISED: Mapping[str, type[Exception]] = {
    kind.__name__: kind
    for kind in (
        ArithmeticError,
        AssertionError,
        AttributeError,
        BufferError,
        EOFError,
        FileExistsError,
        FileNotFoundError,
        FloatingPointError,
        ImportError,
        IndexError,
        KeyError,
        LookupError,
        MemoryError,
        ModuleNotFoundError,
        NameError,
        NotADirectoryError,
        NotImplementedError,
        OSError,
        OverflowError,
        PermissionError,
        RecursionError,
        RuntimeError,
        TimeoutError,
        TypeError,
        ValueError,
        ZeroDivisionError,
    )
}
"""The exceptions that are raised again as what they were, by name; any other is a RuntimeError that names it."""


class PlainCall(NamedTuple):
    """A call. ticket: its number. function: `module:attribute`."""

    ticket: int
    function: str
    args: Sequence[Any]
    kwargs: Mapping[str, Any]
    puts: Sequence[tuple[str, int | str, int]] = ()


class Told(NamedTuple):
    """The word of a brief about a value that was put. how: "bytes" if `data` is the value; "there" if the value lies at
    `handle` in shared memory of the actor's machine; "drop" if nobody needs the value any more. name: digest of its bytes."""

    how: str
    name: str
    data: Any = None
    handle: tuple[int, ...] = ()


def pack_call(
    function: str, args: Sequence[Any], kwargs: Mapping[str, Any], puts: Sequence[tuple[str, int | str, int]] = ()
) -> bytes:
    """A call as bytes. puts: (name, argument, place in it or -1) of values that go beside the call. Raises UserError, which
    names the argument that cannot travel (`args[1]['x']`)."""
    call = (function, tuple(args), dict(kwargs), *([[list(one) for one in puts]] if puts else ()))
    try:
        return values.pack(call, "the call")
    except UserError:
        named = {**{f"args[{at}]": one for at, one in enumerate(args)}, **kwargs}
        for what, one in named.items():
            values.split(one, what)
        raise


def pack_brief(calls: Iterable[tuple[int, bytes]], told: Iterable[Told] = ()) -> Bundle:
    """The brief of a task. calls: number and bytes of each. told: of values that were put."""
    rows: list[Any] = [[number, np.frombuffer(call, np.uint8)] for number, call in calls]
    for one in told:
        rest = [np.frombuffer(one.data, np.uint8)] if one.how == "bytes" else list(one.handle)
        rows.append([one.how, one.name, *rest])
    return run_of(rows)


def read_brief(brief: Bundle) -> list[PlainCall]:
    """The calls of a brief. Their arrays may be written. Raises ProtocolError."""
    calls = []
    for row in _rows(brief):
        match row:
            case [int(ticket), np.ndarray() as call]:
                calls.append(PlainCall(ticket, *_call(values.read(call))))
            case [str(), *_]:
                continue
            case _:
                raise ProtocolError("a brief of calls has a row that is no number and call")
    return calls


def read_told(brief: Bundle) -> list[Told]:
    """The words of a brief about values that were put. Bytes lie in the brief. Raises ProtocolError."""
    told = []
    for row in _rows(brief):
        match row:
            case ["bytes", str(name), np.ndarray() as data] if data.dtype == np.uint8 and data.ndim == 1:
                told.append(Told("bytes", name, data))
            case ["there", str(name), int(pid), int(descriptor), int(nbytes), int(inode)]:
                told.append(Told("there", name, None, (pid, descriptor, nbytes, inode)))
            case ["drop", str(name)]:
                told.append(Told("drop", name))
            case [str(), *_]:
                raise ProtocolError("a brief of calls has a row of a value that is of no known form")
    return told


def _call(given: Any) -> tuple[str, Sequence[Any], Mapping[str, Any], Sequence[tuple[str, int | str, int]]]:
    match given:
        case (str(function), tuple(args), dict(kwargs), *rest) if all(type(name) is str for name in kwargs):
            return function, args, kwargs, [_put(one, args, kwargs) for one in (rest[0] if rest else ())]
    raise ProtocolError("a call is no function with arguments")


def _put(given: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> tuple[str, int | str, int]:
    """The place of a value among the arguments of a call. Raises ProtocolError if there is none."""
    match given:
        case [str(name), int() | str() as where, int(at)]:
            there = args[where : where + 1] if isinstance(where, int) else [kwargs[where]] if where in kwargs else []
            if there and (at == -1 or (type(there[0]) in (list, tuple) and 0 <= at < len(there[0]))):
                return name, where, at
    raise ProtocolError("a value that was put has no place in its call")


def pack_result(result: Any, what: str) -> bytes:
    """A result as bytes. what: the result, in words. Raises UserError if it cannot travel."""
    return values.pack(result, what)


def pack_raised(error: BaseException) -> bytes:
    """An exception as bytes: name, arguments if they are plain, message, traceback."""
    kind = type(error)
    name = kind.__name__ if kind.__module__ == "builtins" else f"{kind.__module__}.{kind.__qualname__}"
    text = "".join(traceback.format_exception(error))[-MOST_TEXT:]
    message = said(error)[:MOST_TEXT]
    try:
        return values.pack((name, tuple(error.args), message, text))
    except UserError:
        return values.pack((name, (message,), message, text))


def pack_answers(answers: Iterable[tuple[int, bool, bytes, float]], lacks: Iterable[str] = ()) -> Bundle:
    """The answers of a task. answers: ticket, whether it raised, bytes, seconds. lacks: values that do not lie where the brief
    said."""
    rows: list[Any] = [[ticket, raised, np.frombuffer(data, np.uint8), seconds] for ticket, raised, data, seconds in answers]
    return run_of([*rows, *(["lacks", name] for name in lacks)])


def read_lacks(bundle: Bundle) -> list[str]:
    """The values that an actor did not find. Raises ProtocolError."""
    return [
        row[1] for row in _rows(bundle) if type(row) is list and len(row) == 2 and row[0] == "lacks" and type(row[1]) is str
    ]


def read_answers(bundle: Bundle) -> list[Answer]:
    """The answers in bytes from another machine, each with its result still as bytes. Raises ProtocolError."""
    answers = []
    for row in _rows(bundle):
        match row:
            case [int(ticket), bool(raised), np.ndarray() as data, float(seconds)] if 0 <= seconds < math.inf:
                answers.append(Answer(ticket, raised, data.tobytes(), seconds, data.nbytes))
            case ["lacks", str()]:
                continue
            case _:
                raise ProtocolError("the answers of calls have a row of another form than number, raised, result, seconds")
    return answers


def result_of(answer: Answer) -> Any:
    """The result in an answer; for an answer that raised, a pair of the exception and its traceback as text. Raises
    ProtocolError."""
    given = values.read(answer.parcel)
    if not answer.raised:
        return given
    match given:
        case (str(name), tuple(args), str(said), str(text)):
            return _exception(name, args, said), text
    raise ProtocolError("an exception from another machine is no name, arguments, message and traceback")


def _exception(name: str, args: tuple[Any, ...], said: str) -> Exception:
    if name.endswith((".UserError", ".NeedError")):
        return UserError(said)
    if name == "shoal.protocol.errors.GangError" and [type(one) for one in args] == [int, str]:
        return GangError(*args)
    if name not in RAISED:
        return RuntimeError(f"{name}: {said}")
    return RAISED[name](*args)


def _rows(bundle: Bundle) -> list[Any]:
    rows = values.read(bundle.data, writable=False)
    if type(rows) is not list:
        raise ProtocolError("bytes of calls are no list")
    return rows


def run_of(value: Any) -> Bundle:
    """A plain value as a run of bytes."""
    data = np.frombuffer(values.pack(value), np.uint8)
    return Bundle(Layout.run(data.nbytes), data)
