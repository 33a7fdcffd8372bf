"""Values that were put, on other machines: who has which, and who is to be sent it. Pure: no sockets, no clock.

The one idea: a machine gets a value once. Its first actor that needs the value is sent the bytes, keeps them in shared memory
and says where they lie; its other actors are told that place. Until then, calls that need the value go elsewhere or wait.
"""

from __future__ import annotations

from collections.abc import Collection, Container, Iterable, Iterator
from typing import Any, NamedTuple, TypeAlias

WAIT = 60.0  # seconds after which a value that was sent to an actor is sent to another one of its machine
SOON = 1.0  # the same, if it was only decided to send it
Place: TypeAlias = tuple[str, str]
"""A machine, and the key of the actors that are believed about each other there."""


class Part(NamedTuple):
    """The word that an actor is told of a value. how: "bytes", it is sent them; "there", they lie at `handle`; "drop", nobody
    needs the value any more. name: of the value."""

    how: str
    name: str
    handle: tuple[int, ...] = ()


class Shelves:
    """Times are in seconds of a clock that never goes back. names: of values, which are digests of their bytes."""

    def __init__(self) -> None:
        self._has: dict[bytes, set[str]] = {}  # session -> values that it has, or is being told of
        self._sent: dict[bytes, set[str]] = {}  # the same, of which it was sent the bytes
        self._there: dict[tuple[Place, str], dict[bytes, tuple[int, ...]]] = {}  # value on a machine -> session -> handle
        self._coming: dict[tuple[Place, str], tuple[bytes, float]] = {}  # the same -> who is sent it, and how long that counts

    def ready(self, session: bytes, place: Place, names: Iterable[str], now: float) -> bool:
        """Return whether an actor may have a call that needs these values, which then counts as being given it."""
        lacks = [name for name in names if name not in self._has.get(session, ()) and not self._there.get((place, name))]
        for name in lacks:
            who, until = self._coming.get((place, name), (session, now))
            if who != session and now < until:
                return False
        for name in lacks:
            self._coming[place, name] = (session, now + SOON)
        return True

    def parts(self, session: bytes, place: Place, names: Collection[str], alive: Container[str], now: float) -> Iterator[Part]:
        """The words that an actor is told with a call that needs these values. alive: values that are held by the program."""
        has, sent = self._has.setdefault(session, set()), self._sent.setdefault(session, set())
        for name in [name for name in has if name not in alive and name not in names]:
            has.discard(name)
            sent.discard(name)
            yield Part("drop", name)
        for name in names:
            if name in has:
                continue
            has.add(name)
            if handles := self._there.get((place, name)):
                yield Part("there", name, next(iter(handles.values())))
            else:
                sent.add(name)
                self._coming[place, name] = (session, now + WAIT)
                yield Part("bytes", name)

    def told(self, session: bytes, place: Place, puts: Any) -> None:
        """Take in what an actor says that it keeps: rows of (name, handle). Rows of another form are left out."""
        for row in puts if isinstance(puts, list) else ():
            match row:
                case [str(name), int(pid), int(descriptor), int(nbytes), int(inode)] if name in self._has.get(session, ()):
                    self._there.setdefault((place, name), {})[session] = (pid, descriptor, nbytes, inode)
                    self._coming.pop((place, name), None)

    def lacks(self, session: bytes, place: Place, name: str) -> bool:
        """Take in that an actor found no such value where it was told to look. Returns False if it was sent the bytes."""
        self._has.get(session, set()).discard(name)
        self._there.pop((place, name), None)
        return name not in self._sent.get(session, ())

    def keep(self, sessions: Container[bytes]) -> None:
        """Forget all actors but these."""
        for session in [one for one in self._has if one not in sessions]:
            del self._has[session]
            self._sent.pop(session, None)
        for value, handles in list(self._there.items()):
            for session in [one for one in handles if one not in sessions]:
                del handles[session]
            if not handles:
                del self._there[value]
        for value in [value for value, (session, _) in self._coming.items() if session not in sessions]:
            del self._coming[value]
