"""The inputs of a call: values that were put into shared memory, and futures of other calls.

The one idea: an argument is looked at before it travels. A value that was put is a handle of a few bytes, and a future is its
result as soon as that is there.
"""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import Future
from typing import Any, Generic, TypeVar

from shoal.protocol.trusted import opened, pack, plain, read, whole

T = TypeVar("T")


class Put(Generic[T]):
    """A value in shared memory, whose large arrays all calls read in place. As an argument of a call it is the value itself.

    value: the value, in this process. The memory is given back when nobody holds this object and no call needs it. copy: each
    call may write the value's arrays, and sees only what it wrote itself.
    """

    def __init__(self, value: T, seen: Seen, copy: bool = False) -> None:
        self.value, self._open = value, opened if copy else read
        self._parcel, self._seen = pack(value), seen

    def __reduce__(self) -> tuple[Callable[[bytes], Any], tuple[bytes]]:
        if self._seen.known:
            return bytes, (hashlib.blake2b(whole(self._parcel.data), digest_size=32).digest(),)
        self._seen.add(self)
        return self._open, (self._parcel.data,)


class Seen(threading.local):
    """The values in shared memory in what this thread pickles: a call holds them until it is done."""

    def __init__(self) -> None:
        self._puts: list[object] = []
        self.known = False  # True: a put value is pickled as a digest of its contents

    def plain(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> bytes:
        """Arguments as bytes that are the same in each life of a program."""
        self.known = True
        try:
            return plain((args, dict(kwargs)))
        finally:
            self.known = False

    def add(self, put: object) -> None:
        self._puts.append(put)

    def taken(self) -> tuple[object, ...]:
        """The values that were seen since the last call."""
        puts, self._puts = tuple(self._puts), []
        return puts


def awaited(args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> list[Future[Any]]:
    """The futures among arguments, and in lists and tuples that are arguments."""
    found: list[Future[Any]] = []
    for given in (*args, *kwargs.values()):
        if isinstance(given, Future):
            found.append(given)
        elif type(given) in (list, tuple):
            found += [one for one in given if isinstance(one, Future)]
    return found


def settled(
    args: tuple[Any, ...],
    kwargs: Mapping[str, Any],
    futures: Iterable[Future[Any]],
    itself: Callable[[Future[Any]], Any] = lambda future: future.result(),
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """The arguments with results in the place of these futures, which are done, or of which one has failed. Raises what that
    one raises. itself: a future's result as an argument."""
    for future in futures:
        if future.done():
            Future.result(future)  # which opens no large result

    def one(given: Any) -> Any:
        if isinstance(given, Future):
            return itself(given)
        if type(given) in (list, tuple) and any(isinstance(each, Future) for each in given):
            return type(given)(map(one, given))
        return given

    return tuple(map(one, args)), {name: one(given) for name, given in kwargs.items()}


class Countdown:
    """Calls `ready` once, when all of these futures are done, on the thread that completes the last one; or when the first of
    them has failed."""

    def __init__(self, futures: Iterable[Future[Any]], ready: Callable[[], None]) -> None:
        self._lock, self._ready = threading.Lock(), ready
        each = {id(future): future for future in futures}.values()
        self._left = len(each)
        for future in each:
            future.add_done_callback(self._done)

    def _done(self, future: Future[Any]) -> None:
        failed = future.cancelled() or Future.exception(future) is not None  # a large result is not opened for that
        with self._lock:
            now = self._left > 0 and (failed or self._left == 1)
            self._left = 0 if now else self._left - 1
        if now:
            self._ready()


def elsewhere(args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """The arguments of a call for another machine, on which there is no shared memory of this one: values that were put, also
    in lists and tuples that are arguments, are themselves."""
    return tuple(map(_itself, args)), {name: _itself(given) for name, given in kwargs.items()}


def _itself(given: Any) -> Any:
    if isinstance(given, Put):
        return given.value
    if type(given) in (list, tuple) and any(isinstance(one, Put) for one in given):
        return type(given)(map(_itself, given))
    return given
