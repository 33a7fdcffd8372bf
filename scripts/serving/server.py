"""A process of a server: requests in, answers out, a thread that computes, and a thread for each model that makes new versions
ready.

The one idea: a batch takes its version once, at its beginning. So what is under way ends on its own version, a new one begins
with the next batch, and no answer is of two versions.
"""

from __future__ import annotations

import json
import math
import os
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol, TypeAlias

import numpy as np

from shoal.protocol.batching import Queue, Turn
from shoal.protocol.errors import UserError, printable
from shoal.protocol.exact import unfinite
from shoal.protocol.layout import Bundle
from shoal.runs.rundir import finite, replaced
from shoal.serving.book import Book, Ready
from shoal.serving.inputs import Array, Inputs
from shoal.serving.splitting import Split
from shoal.serving.stats import Stats, merged

Clock: TypeAlias = Callable[[], float]
Compute: TypeAlias = Callable[[Array], Array]
"""rows [n, ...] -> outputs [n, ...]."""

SWEEP = 0.05  # seconds between two looks for requests that are late while a long batch is computed


class Sink(Protocol):
    """Takes answers, from any thread."""

    def deliver(self, answers: Sequence[tuple[Request, Reply]]) -> None: ...


@dataclass(slots=True, eq=False)
class Request:
    """A request under way. sink: where its answer goes; tag: the sink's own. name: by which an outcome may be posted."""

    rows: Array
    model: str
    key: str
    sink: Sink
    tag: Any
    arrived: float
    name: str = ""


@dataclass(frozen=True, slots=True)
class Answered:
    """The answer to a request. outputs: [rows, ...]."""

    outputs: Array
    model: str
    version: int


@dataclass(frozen=True, slots=True)
class Unanswered:
    """A request that gets no answer. why: "late", "full" or "failed"."""

    why: str
    reason: str


Reply: TypeAlias = Answered | Unanswered


class Source(Protocol):
    """A source of a model's versions. It calls `take` with each version, from a thread of its own, until `end`."""

    def start(self, take: Callable[[int, Bundle], None], say: Callable[[str], None]) -> bool:
        """Begin. Returns True if a first version is there, or on its way."""
        ...

    def end(self) -> None: ...


@dataclass(slots=True)
class Served:
    """A model of a server. make: weights -> the model, which may take long; it raises UserError for weights that it refuses.
    check: (version, compute) -> "" or why the version must not serve; None: only finite outputs are asked for. source: of its
    versions."""

    name: str
    inputs: Inputs
    make: Callable[[Bundle], Compute]
    source: Source
    told: str
    check: Callable[[int, Compute], str] | None = None
    example: Array | None = None
    good: Array | None = None  # the last batch whose outputs were finite
    coming: tuple[int, Bundle] | None = None


@dataclass(frozen=True, slots=True)
class Limits:
    """max_batch, most: rows of a batch and of a queue, at most. max_wait: seconds that a request waits for company, at most.
    deadline: seconds from arrival after which a request is not computed; inf: none."""

    max_batch: int = 64
    max_wait: float = 0.002
    deadline: float = math.inf
    most: int = 4_096


@dataclass(slots=True)
class Diary:
    """serve.jsonl: a line for each answer and each outcome. Several processes append to one file, each line whole."""

    path: Path | None
    _fd: int = -1
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def write(self, lines: Sequence[str]) -> None:
        """Append lines. A full disk loses them, and no request."""
        if self.path is None or not lines:
            return
        with self._lock:
            try:
                if self._fd < 0:
                    self._fd = os.open(self.path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o644)
                os.write(self._fd, "".join(lines).encode())
            except OSError:
                return

    def close(self) -> None:
        with self._lock:
            if self._fd >= 0:
                os.close(self._fd)
            self._fd = -1


class Server:
    """The models of one process of a server, and its queue. clock: seconds that never go back; wall: Unix time. draw: a number
    from 0 to 9,999 for a request without a key. about: fields of serve.json that do not change. nonce: begins the names of this
    process's requests."""

    def __init__(
        self,
        models: Sequence[Served],
        split: Split,
        limits: Limits,
        clock: Clock,
        wall: Clock,
        draw: Callable[[], int],
        about: Mapping[str, Any],
        nonce: str = "",
        diary: Diary | None = None,
        say: Callable[[str], None] = lambda text: None,
    ) -> None:
        self.models = {one.name: one for one in models}
        self.books: dict[str, Book[Compute]] = {one.name: Book(one.name) for one in models}
        self.split, self.limits, self.clock, self.wall, self._draw = split, limits, clock, wall, draw
        self.queue: Queue[Request] = Queue([one.name for one in models], limits.max_batch, limits.max_wait, limits.most)
        shares = {name: points / 100 for name, points in zip(split.models, split.shares, strict=True)}
        self.stats = Stats(about, {one.name: one.told for one in models}, shares, clock())
        self.diary = diary or Diary(None)
        self._nonce, self._number, self._say = nonce, 0, say
        self._lock = threading.Condition()
        self._idle = self.draining = self.over = False
        self._news = threading.Condition()
        self._expected: set[str] = set()  # models of which a first version is on its way
        self._threads = [threading.Thread(target=self._work, name="model", daemon=True)]
        self._threads += [threading.Thread(target=self._prepare, args=(one,), name="ready", daemon=True) for one in models]
        self._threads.append(threading.Thread(target=self._sweep, name="late", daemon=True))

    def start(self) -> None:
        for thread in self._threads:
            thread.start()
        for one in self.models.values():
            if one.source.start(lambda version, weights, one=one: self.came(one, version, weights), self.say):  # type: ignore[misc]
                self._expected.add(one.name)

    def say(self, text: str) -> None:
        """Tell a person a line, and keep it for serve.json."""
        self.stats.notes.append(text)
        self._say(text)

    @property
    def ready(self) -> bool:
        """True if each model has a version."""
        return all(book.serving is not None for book in self.books.values())

    def inputs_for(self, key: str) -> tuple[str, Inputs]:
        """The model that answers a key ("": any of them, by its share), and its inputs."""
        name = self.split.of(key) if key else self.split.models[0] if len(self.models) == 1 else self.split.at(self._draw())
        return name, self.models[name].inputs

    # Requests

    def ask(self, request: Request, deadline: float = math.inf, wake: bool = True) -> Unanswered | None:
        """Queue a request. Returns why it is refused at once; None: its sink gets the answer. deadline: seconds from now. wake:
        False if the caller has more requests, and calls `wake` after the last one."""
        now = request.arrived
        due = now + min(deadline, self.limits.deadline)
        with self._lock:
            if self.draining:
                return Unanswered("full", "the server is told to end: ask another, or again")
            if self.books[request.model].serving is None:
                self.stats.full += 1
                return Unanswered("full", f"{request.model} has no version yet: ask again when /ready answers 200")
            self._number += 1
            request.name = f"{self._nonce}-{self._number:x}"
            why, late = self.queue.offer(request.model, request, len(request.rows), now, due)
            self.stats.full += bool(why)
            if self._idle and wake:
                self._lock.notify()
        self._decline_late(late)
        return Unanswered("full", why) if why else None

    def wake(self) -> None:
        """Let the thread that computes look at the queue."""
        with self._lock:
            if self._idle:
                self._lock.notify()

    def _work(self) -> None:
        """The thread that computes."""
        while (taken := self._next()) is not None:
            turn, ready = taken
            self._decline_late(turn.late)
            if turn.batch and ready is not None:
                self._compute(turn, ready)

    def _next(self) -> tuple[Turn[Request], Ready[Compute] | None] | None:
        with self._lock:
            while True:
                now = self.clock()
                turn = self.queue.turn(now, self.draining)
                if turn.batch or turn.late:
                    return turn, self.books[turn.lane].serving
                if self.over or (self.draining and not len(self.queue)):
                    return None
                self._idle = True
                self._lock.wait(None if turn.again == math.inf else max(0.0, turn.again - now))
                self._idle = False

    def _compute(self, turn: Turn[Request], ready: Ready[Compute]) -> None:
        batch = turn.batch
        rows = batch[0].rows if len(batch) == 1 else np.concatenate([one.rows for one in batch])
        try:
            outputs = ready.model(rows)
            if len(outputs) != len(rows):
                raise UserError(f"the model gave {len(outputs)} outputs for {len(rows)} rows: one for each row is needed")
        except Exception as raised:  # noqa: BLE001  a model is the user's code
            self._alone(batch, ready, raised)
            return
        whole = bool(np.isfinite(outputs).all())
        if whole:
            self.models[turn.lane].good = rows
        answers: list[tuple[Request, Reply]] = []
        at = 0
        for one in batch:
            part = outputs[at : at + len(one.rows)]
            at += len(one.rows)
            answers.append((one, _answer(part, turn.lane, ready.version, whole)))
        self._done(answers, turn.rows)

    def _alone(self, batch: Sequence[Request], ready: Ready[Compute], raised: Exception) -> None:
        """Compute the requests of a batch that failed one by one, so that only the one to blame fails."""
        for one in batch:
            try:
                if len(batch) == 1:
                    raise raised
                outputs = ready.model(one.rows)
                answer = _answer(outputs, one.model, ready.version, bool(np.isfinite(outputs).all()))
            except Exception as why:  # noqa: BLE001  a model is the user's code
                answer = Unanswered("failed", f"the model raised {type(why).__name__}: {printable(str(why), 300)}")
            self._done([(one, answer)], len(one.rows))

    def _done(self, answers: Sequence[tuple[Request, Reply]], rows: int) -> None:
        now, lines = self.clock(), list[str]()
        with self._lock:
            self.stats.computed(rows)
            for one, answer in answers:
                if isinstance(answer, Answered):
                    self.stats.answered(one.model, len(one.rows), now - one.arrived, now)
                else:
                    self.stats.failed += 1
        if self.diary.path is not None:
            at = round(self.wall(), 3)
            for one, answer in answers:
                if isinstance(answer, Answered):
                    key = f', "key": {json.dumps(one.key)}' if one.key else ""
                    model, version = json.dumps(answer.model), answer.version
                    lines.append(f'{{"at": {at}, "request": "{one.name}"{key}, "model": {model}, "version": {version}}}\n')
        self.diary.write(lines)
        self._deliver(answers)

    def _decline_late(self, late: Sequence[Request]) -> None:
        if late:
            with self._lock:
                self.stats.late += len(late)
            now = self.clock()
            told = [f"the deadline is over: it waited {now - one.arrived:.3g} s behind other requests" for one in late]
            self._deliver([(one, Unanswered("late", text)) for one, text in zip(late, told, strict=True)])

    def _deliver(self, answers: Sequence[tuple[Request, Reply]]) -> None:
        by_sink: dict[int, list[tuple[Request, Reply]]] = {}
        for answer in answers:
            by_sink.setdefault(id(answer[0].sink), []).append(answer)
        for each in by_sink.values():
            each[0][0].sink.deliver(each)

    def _sweep(self) -> None:
        """Answer the requests whose deadline passes behind a long batch."""
        while True:
            with self._news:
                self._news.wait(SWEEP)
                if self.over:
                    return
            late: list[Request] = []
            with self._lock:
                if self.queue.busy and len(self.queue):
                    now = self.clock()
                    for lane in self.queue.lanes:
                        late += self.queue.drop_late(lane, now)
            self._decline_late(late)

    # Versions

    def came(self, one: Served, version: int, weights: Bundle) -> None:
        """Take a version that came: it is made ready aside. Of several that come meanwhile the newest counts."""
        with self._news:
            one.coming = (version, weights)
            self._news.notify_all()

    def _prepare(self, one: Served) -> None:
        while True:
            with self._news:
                while one.coming is None and not self.over:
                    self._news.wait()
                if self.over or one.coming is None:
                    return
                (version, weights), one.coming = one.coming, None
            book = self.books[one.name]
            if book.wants(version):
                self.take(one, version, weights)

    def take(self, one: Served, version: int, weights: Bundle) -> str:
        """Make a version ready, check it, and let it answer from the next batch on. Returns why it is refused, or ""."""
        book = self.books[one.name]
        try:
            why = f"{name!r} holds NaN or an infinity" if (name := unfinite(weights)) else ""
            model = None if why else one.make(weights)
            why = why or (self._fault(one, version, model) if model else "")
        except UserError as wrong:
            model, why = None, str(wrong)
        except Exception as raised:  # noqa: BLE001  a model, and its check, are the user's code
            model, why = None, f"{type(raised).__name__}: {raised}"
        if why or model is None:
            with self._lock:
                book.refuse(version, printable(why, 300))
                self._lock.notify_all()
            still = f"version {book.serving.version} goes on" if book.serving else "there is none to go on with"
            self.say(f"{one.name}: version {version} is refused: {printable(why, 300)}; {still}")
            return why
        with self._lock:
            book.take(version, model)
            self._lock.notify_all()  # for `first`
        return ""

    def first(self, seconds: float) -> bool:
        """Wait until each model has a version, if one is on its way. Returns False if a model has none: it was refused, is not
        there yet, or took more than `seconds`."""

        def settled() -> bool:
            return all(book.serving or book.refusals or name not in self._expected for name, book in self.books.items())

        with self._lock:
            self._lock.wait_for(settled, seconds)
            return self.ready

    def _fault(self, one: Served, version: int, model: Compute) -> str:
        """Return why a version must not serve: its outputs on the last good batch (or on an example) are not finite, or the
        user's own check says so."""
        rows = one.good if one.good is not None else one.example
        if rows is not None and not np.isfinite(model(rows)).all():
            return "its outputs on the last good batch are not finite"
        return one.check(version, model) if one.check else ""

    def pin(self, name: str, version: int | None) -> None:
        """Serve a version and stay with it; None: serve the newest, and follow again. Raises UserError."""
        with self._lock:
            book = self.books[name]
            if version is None:
                book.unpin()
            elif book.pinned != version:
                book.pin(version)

    # Figures

    def figures(self) -> dict[str, Any]:
        """The figures of this process, with what `merged` needs to add them to those of others."""
        with self._lock:
            state = "ended" if self.over else "serving" if self.ready else "starting"
            queued = sum(self.queue.rows.values())
            return self.stats.plain(self.books, queued, self.clock(), self.wall(), state)

    # The end

    def drain(self) -> None:
        """Answer what waits, take no more, and end the threads."""
        with self._lock:
            self.draining = True
            self._lock.notify_all()
        self._threads[0].join()
        for one in self.models.values():
            one.source.end()
        with self._news:
            self.over = True
            self._news.notify_all()
        for thread in self._threads[1:]:
            thread.join(5.0)
        self.diary.close()


def _answer(outputs: Array, model: str, version: int, whole: bool) -> Reply:
    if whole or np.isfinite(outputs).all():
        return Answered(outputs, model, version)
    return Unanswered("failed", f"the outputs of {model} version {version} for these inputs are not finite")


def write_figures(path: Path, parts: Sequence[Mapping[str, Any]]) -> None:
    """Replace serve.json. On a full disk the file grows old, and a reader says so."""
    try:
        replaced(path, json.dumps(finite(merged(parts)), allow_nan=False) + "\n")
    except OSError:
        return
