"""The worker of a pool on another machine: it calls functions of the modules that this machine's user allowed.

The one idea: the form of a brief says what may be done with it. Plain values run no code when they are read. Pickles are opened
only if this machine's user said --trust-code.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import nullcontext
from time import perf_counter
from typing import Any

from shoal.actors.voice import Voice
from shoal.actors.workers.call import CALL, LONG, Calls, Here, within
from shoal.actors.workers.store import Store
from shoal.protocol.errors import ProtocolError
from shoal.protocol.layout import Bundle
from shoal.protocol.marks import Marks
from shoal.protocol.names import function_of
from shoal.protocol.plaincalls import PlainCall, pack_answers, pack_raised, pack_result, read_brief, read_told
from shoal.protocol.values import MAGIC
from shoal.protocol.work import Task, Work

MOST = 2**62  # numbers of calls are less


class NamedCalls:
    """A worker that makes the calls in a task's brief, one after another. allowed: modules whose functions may be called, each
    with all below it. trusted: pickles of the pool's program are opened too. seed: the pool's. prepare: as in Calls. voice:
    where callers give up calls. at: (index of the task that is being done, bytes that its calls promised to use); (-1, 0): none
    is. store: values that were put and are here."""

    def __init__(
        self,
        allowed: Sequence[str],
        trusted: bool,
        seed: int = 0,
        prepare: Callable[[], object] | None = None,
        voice: Voice | None = None,
    ) -> None:
        self._prepare = prepare
        self.at = (-1, 0)
        self.store, self._voice = Store(), voice
        if voice:
            voice.flag = self._flag
        self._allowed, self._seed, self._marks = tuple(allowed), seed, Marks()
        self._code = Calls(self._marks, seed, beside=False) if trusted else None
        self._functions: dict[str, Callable[..., Any]] = {}

    def run(self, weights: Bundle, client: int, task: Task, brief: Bundle | None = None) -> Work:
        assert brief is not None  # a task of a pool always has calls
        if self._prepare:
            self._prepare()
            self._prepare = None
        self.at = (task.index, int(task.words.get("memory", 0)))
        try:
            return self._work(weights, client, task, brief)
        finally:
            self.at = (-1, 0)

    def _flag(self, calls: Sequence[int]) -> None:
        for number in calls:
            if 0 <= number < MOST:
                self._marks.cancel(number)

    def _work(self, weights: Bundle, client: int, task: Task, brief: Bundle) -> Work:
        if bytes(brief.data[: len(MAGIC)]) == MAGIC:
            with within(task.words) if task.words else nullcontext():
                lacks = self.store.take(read_told(brief))
                if self._voice:
                    self._voice.told = {**self._voice.told, "puts": self.store.handles()}
                return Work(pack_answers(() if lacks else self._all(read_brief(brief)), lacks))
        if self._code is None:
            raise ProtocolError("the pool sent pickled code, which this actor does not open: start it with --trust-code")
        return self._code.run(weights, client, task, brief)

    def _all(self, calls: Sequence[PlainCall]) -> Sequence[tuple[int, bool, bytes, float]]:
        answers: list[tuple[int, bool, bytes, float]] = []
        start = perf_counter()
        for call in calls:
            if answers and perf_counter() - start > LONG:
                break
            CALL.set(Here(self._seed, call.ticket, self._marks))
            began = perf_counter()
            raised, data = self._answer(self.store.filled(call) if call.puts else call)
            answers.append((call.ticket, raised, data, perf_counter() - began))
        return answers

    def _answer(self, call: PlainCall) -> tuple[bool, bytes]:
        try:
            function = self._functions.get(call.function)
            if function is None:
                function = self._functions[call.function] = function_of(call.function, self._allowed)
            return False, pack_result(function(*call.args, **call.kwargs), f"the result of {call.function}")
        except BaseException as error:  # noqa: BLE001  a user's function may raise anything, and even call sys.exit
            return True, pack_raised(error)
