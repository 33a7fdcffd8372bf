"""The inputs of a call: values that were put into shared memory, and futures of other calls.

The one idea: an argument is looked at before it travels. A value that was put is a handle of a few bytes, and a future is its
result as soon as that is there.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import Future
from functools import cached_property
from typing import Any, Generic, NamedTuple, TypeVar

from shoal.protocol.trusted import opened, pack, plain, read, whole

T = TypeVar("T")
ONCE = 1 << 17  # bytes of a value that was put from which on another machine is sent it once


class Put(Generic[T]):
    """A value in shared memory, whose large arrays all calls read in place. As an argument of a call it is the value itself.

    value: the value, in this process. The memory is given back when nobody holds this object and no call needs it. copy: each
    call may write the value's arrays, and sees only what it wrote itself.
    """

    def __init__(self, value: T, seen: Seen, copy: bool = False) -> None:
        self.value, self._open = value, opened if copy else read
        self._parcel, self._seen = pack(value), seen

    @cached_property
    def plain(self) -> bytes:
        """The value as plain values. Raises UserError if it cannot travel to another machine."""
        from shoal.protocol import values

        return values.pack(self.value, "the value that was put")

    @cached_property
    def name(self) -> str:
        """The name of the value on other machines."""
        import hashlib  # and so OpenSSL, which only values that were put need

        return hashlib.blake2b(self.plain, digest_size=16).hexdigest()

    def __reduce__(self) -> tuple[Callable[[bytes], Any], tuple[bytes]]:
        if self._seen.known:
            import hashlib

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
    return [one for one in flat(args, kwargs) if isinstance(one, Future)]


def flat(args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Iterator[Any]:
    """Yield the arguments, and those in lists and tuples that are arguments."""
    for given in (*args, *kwargs.values()):
        if type(given) in (list, tuple):
            yield from given
        else:
            yield given


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

    return tuple(_settled(one, itself) for one in args), {name: _settled(one, itself) for name, one in kwargs.items()}


def _settled(given: Any, itself: Callable[[Future[Any]], Any]) -> Any:
    if isinstance(given, Future):
        return itself(given)
    if type(given) in (list, tuple) and any(isinstance(each, Future) for each in given):
        return type(given)(_settled(each, itself) for each in given)
    return given


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


class Apart(NamedTuple):
    """The arguments of a call without the large values that were put. places: (name, argument, place in it or -1) of each of
    these. puts: the values."""

    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    places: list[tuple[str, int | str, int]]
    puts: tuple[Put[Any], ...]


def here(args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Return the arguments of a call with the values that were put in their own places, also in lists and tuples."""
    return tuple(map(_itself, args)), {name: _itself(given) for name, given in kwargs.items()}


def _itself(given: Any) -> Any:
    if isinstance(given, Put):
        return given.value
    if type(given) in (list, tuple) and any(isinstance(one, Put) for one in given):
        return type(given)(map(_itself, given))
    return given


def apart(args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Apart:
    """Return the arguments of a call for another machine, on which there is no shared memory of this one. Of values that were
    put, also in lists and tuples that are arguments, small ones are themselves, and those of ONCE bytes or more are left out: a
    machine is sent them once. Raises UserError if such a value cannot travel."""
    places: list[tuple[str, int | str, int]] = []
    puts: dict[str, Put[Any]] = {}
    its = tuple(_apart(given, at, -1, places, puts) for at, given in enumerate(args))
    named = {name: _apart(given, name, -1, places, puts) for name, given in kwargs.items()}
    return Apart(its, named, places, tuple(puts.values()))


def _apart(given: Any, where: int | str, at: int, places: list[tuple[str, int | str, int]], puts: dict[str, Put[Any]]) -> Any:
    if isinstance(given, Put):
        if len(given.plain) < ONCE:
            return given.value
        places.append((given.name, where, at))
        puts[given.name] = given
        return None
    if at < 0 and type(given) in (list, tuple) and any(isinstance(each, Put) for each in given):
        return type(given)(_apart(each, where, place, places, puts) for place, each in enumerate(given))
    return given
