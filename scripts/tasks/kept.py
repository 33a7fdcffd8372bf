"""The results of a pool's calls in a folder, for a program that is started again.

The one idea: a result is durable before its future is done, under a key that the same call has in the next life. So a program
that was killed runs again as it is, and only calls without a record are made. A result is a pickle, and a folder may come from
anybody: each record carries an HMAC with a secret that only its user can read, and a record without it is never opened.
"""

from __future__ import annotations

import hashlib
import hmac
import threading
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

from shoal.coordinator.keeping.disk import Lock
from shoal.coordinator.keeping.journal import Journal
from shoal.coordinator.keeping.replay import LARGEST, Replay
from shoal.protocol.errors import UserError
from shoal.protocol.trusted import whole

KEY, MAC = 16, 32  # bytes of a key, and of an HMAC
RUN = "pool"


class Kept:
    """The folder's results, key -> parcel. Used by one thread, but for `found` and `keys`. report: tells a person of damage."""

    def __init__(self, folder: Path, report: Callable[[str], None]) -> None:
        """Raises UserError if another process uses the folder, or the user's secret cannot be made or read, DiskTrouble if the
        folder cannot be written."""
        from shoal.protocol.keys import KeyFolder  # a pool without a folder needs none of that

        self._secret = KeyFolder().secret()
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as why:
            raise UserError(f"run_dir={str(folder)!r}: {why.strerror}; give a folder that can be made or written") from why
        self._lock = Lock(folder)
        replay = Replay(folder / "journal", RUN, report=report)
        self._results: dict[bytes, bytes] = {}
        self.keys = Keys()
        strange = 0
        for record in replay:
            key, mac, parcel = record[:KEY], record[KEY : KEY + MAC], record[KEY + MAC :]
            if hmac.compare_digest(mac, self._mac(key, parcel)):
                self._results[key] = parcel
            else:
                strange += 1
        if strange:
            report(f"{strange} results in {folder} are not signed by this user and are not opened: their calls are made again")
        self._journal = Journal(replay, replay.epoch + 1)
        self._report = report

    def found(self, key: bytes) -> bytes | None:
        """The parcel of a result of an earlier life; None if there is none."""
        return self._results.get(key)

    def add(self, key: bytes, parcel: bytes) -> None:
        """Append a result, which is durable once `commit` has returned."""
        data = whole(parcel)
        if len(data) + KEY + MAC > LARGEST:
            self._report(f"a result of {len(data):,} bytes is too large for the folder: its call is made again in another life")
        else:
            self._journal.append(key + self._mac(key, data), data)

    def _mac(self, key: bytes, parcel: bytes) -> bytes:
        return hmac.digest(self._secret, b"shoal call" + key + parcel, "sha256")

    def commit(self) -> None:
        """Make what was appended durable. Raises DiskTrouble, after which it may be called again, or SyncFailed."""
        self._journal.commit()

    def close(self) -> None:
        self._journal.close()
        self._lock.close()


class Keys:
    """The keys of calls: of a function's name, its arguments, the user's own key, and how many calls before were the same. Any
    thread may ask."""

    def __init__(self) -> None:
        self._times: Counter[bytes] = Counter()
        self._lock = threading.Lock()

    def key(self, function: Any, parcel: bytes, arguments: bytes, own: str) -> bytes:
        """The key of a call. parcel: of the function, which is looked at if the function has no name. arguments: as bytes that
        are the same in each life."""
        name = f"{getattr(function, '__module__', '')}.{getattr(function, '__qualname__', '')}"
        named = name.encode() if "<" not in name and not name.endswith(".") else parcel
        digest = hashlib.blake2b(digest_size=KEY)
        for part in (named, own.encode(), arguments):
            digest.update(len(part).to_bytes(8, "little"))
            digest.update(part)
        call = digest.digest()
        with self._lock:
            self._times[call] += 1
            times = self._times[call]
        return hashlib.blake2b(call + times.to_bytes(8, "little"), digest_size=KEY).digest()
