"""The future of a call in a pool.

The one idea: it is Python's own future, and its call can also be killed.
"""

from __future__ import annotations

import threading
import weakref
from collections.abc import Callable
from concurrent.futures import Future
from concurrent.futures._base import CANCELLED_AND_NOTIFIED, FINISHED, LOGGER
from typing import Any, Generic, Protocol, TypeVar, cast

from shoal.protocol.errors import UserError
from shoal.protocol.shared import ShortError
from shoal.tasks.inputs import Seen
from shoal.tasks.refs import Passed, Ref

T = TypeVar("T")
R = TypeVar("R")


class RemoteTraceback(Exception):  # noqa: N818  as in concurrent.futures, whose tracebacks look the same
    """The traceback of an exception in another process, as text: the cause of the exception here."""

    def __init__(self, text: str) -> None:
        super().__init__(text)
        self.text = text

    def __str__(self) -> str:
        return f'\n"""\n{self.text}"""'


class Owner(Protocol):
    """The thread of a pool, as its futures know it."""

    def kill(self, number: int) -> bool: ...

    def flag(self, number: int) -> None: ...


class Result(Future[T], Generic[T]):
    """The future of a call. It is completed on the pool's own thread, which so runs the functions of `add_done_callback`.
    A large result is opened when it is asked for, here. nbytes: bytes of the result of a call of `map`, once it is there."""

    def __init__(self, owner: Owner, number: int, pool: weakref.ref[Any]) -> None:
        super().__init__()
        self._owner, self._number, self._pool = owner, number, pool
        self.nbytes = 0

    def cancel(self) -> bool:
        """Cancel the call if it has not begun. If it is running, `shoal.cancelled()` is True in it from now on, and this
        returns False."""
        if super().cancel():
            return True
        if not self.done():
            self._owner.flag(self._number)
        return False

    def result(self, timeout: float | None = None) -> T:
        value: Any = super().result(timeout)
        return self._opened(value) if type(value) is Ref else value

    def exception(self, timeout: float | None = None) -> BaseException | None:
        error = super().exception(timeout)
        if error is None and type(ref := cast(Any, super().result())) is Ref:
            try:
                self._opened(ref)
            except Exception as raised:  # noqa: BLE001  a result's own code runs when it is unpickled
                return raised
        return error

    def _opened(self, ref: Ref) -> T:
        """The result itself, for which this future lets go of the memory in which nobody had looked."""
        try:
            value: T = ref.open()
        except ShortError as short:  # it can be opened later
            raise UserError(f"this result cannot be opened: {short}") from short
        except Exception as raised:
            self._exception, self._result = raised, None
            raise
        self._result = value
        return value

    def passed(self, seen: Seen) -> Any:
        """The result as an argument of another call. seen: as in Passed. Raises what the call raised."""
        value: Any = super().result()
        return Passed(value, seen) if type(value) is Ref else value

    def then(self, fn: Callable[..., R], /, *args: Any, **how: Any) -> Result[R]:
        """Call `fn` with this call's result, when it is there. Returns its future. args, how: as for `submit`. Raises UserError
        if the pool is gone."""
        if (pool := self._pool()) is None:
            raise UserError("then: the pool of this future is gone")
        its: Result[R] = pool.submit(fn, self, *args, **how)
        return its

    def kill(self) -> bool:
        """Cancel the call even if it is running: its process is ended and replaced, and other calls of that process are made
        again. Returns False if the call was done before."""
        return super().cancel() or self._owner.kill(self._number)

    def _invoke_callbacks(self) -> None:
        """Call the functions of `add_done_callback`, as Python's own future does; on the pool's thread, `sys.exit` in one of
        them ends neither the thread nor the calls of others. They are forgotten then: a call that waited for this one holds its
        result."""
        callbacks: list[Callable[[Any], object]] = vars(self)["_done_callbacks"]
        vars(self)["_done_callbacks"] = []
        for callback in callbacks:
            try:
                callback(self)
            except BaseException as raised:
                if not isinstance(raised, Exception) and threading.current_thread() is threading.main_thread():
                    raise  # a Ctrl-C, which only that thread gets
                LOGGER.exception("exception calling callback for %r", self)

    def killed(self) -> bool:
        """Set this running future to cancelled. Returns False if it is done. For the pool's own thread."""
        with self._condition:
            if self._state in (FINISHED, CANCELLED_AND_NOTIFIED):
                return False
            self._state = CANCELLED_AND_NOTIFIED
            for waiter in self._waiters:
                waiter.add_cancelled(self)
            self._condition.notify_all()
        self._invoke_callbacks()  # as set_result does
        return True
