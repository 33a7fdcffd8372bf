"""The worker of a pool: it calls functions.

The one idea: what a call raises is its result, not a failure of the task. So a task fails only if its process ends.
"""

from __future__ import annotations

import os
import sys
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, nullcontext, suppress
from contextvars import ContextVar
from dataclasses import dataclass
from time import perf_counter
from typing import TYPE_CHECKING, Any

from shoal.actors.workers.filed import OnDisk
from shoal.actors.workers.many import Made, Many
from shoal.protocol.calls import Answer, Call, pack_answers, read_calls
from shoal.protocol.errors import UserError, said
from shoal.protocol.marks import Marks
from shoal.protocol.shared import Segment
from shoal.protocol.trusted import Parcel, opened, pack, whole
from shoal.protocol.work import Task, Words, Work

if TYPE_CHECKING:
    from shoal.protocol.layout import Bundle

FUNCTIONS = 256  # functions that an actor remembers
JOBLIB = "LOKY_MAX_CPU_COUNT"  # cores that joblib takes for n_jobs=-1
LONG = 0.05  # seconds after which calls of a task that have not begun are left to other actors


@dataclass(slots=True)
class Here:
    """A call that is being made. seed: of the pool. first: its number, less the number of `before`: results of calls before it
    that travelled with it."""

    seed: int
    first: int
    marks: Marks
    before: Sequence[Any] = ()

    @property
    def number(self) -> int:
        return self.first + len(self.before)


CALL: ContextVar[Here] = ContextVar("call")  # in a call
GIVEN: ContextVar[Any] = ContextVar("given")  # the object that the pool was made with, in a call: forks have it already
CORES: ContextVar[int] = ContextVar("cores")  # that a call may use, if not 1
RANKS: ContextVar[int] = ContextVar("ranks")  # of the gang, in a call that is one


def seed() -> int:
    """A number below 2**63 for the random generators of this call of a pool. It depends on the pool's seed and on how many
    calls were made before this one, and not on the actor, the order in which calls run, or how often this one is tried.

    Raises RuntimeError outside of a call.
    """
    try:
        here = CALL.get()
    except LookupError:
        raise RuntimeError("shoal.seed() is the seed of a call of a shoal.Pool, and this is no such call") from None
    from shoal.protocol import draws  # and so numpy, which many calls have no use for

    return draws.key(here.seed, "call", here.number) % 2**63


def own_cores() -> int:
    """The number of cores that this call of a pool may use; 0 outside of a call."""
    return CORES.get(1) if CALL.get(None) else 0


def cancelled() -> bool:
    """Return whether the caller of this call of a pool has said `future.cancel()` since the call began. A call that takes long
    asks for it now and then, and returns early.

    Raises RuntimeError outside of a call, and in a thread that the call started.
    """
    try:
        here = CALL.get()
    except LookupError:
        raise RuntimeError("shoal.cancelled() is for a call of a shoal.Pool, and this is no such call") from None
    return here.marks.cancelled(here.number)


@contextmanager
def within(words: Words) -> Iterator[None]:
    """Compute with as many threads, and see only the GPUs, that a task's words say."""
    threads, gpus = int(words["threads"]), ",".join(words["gpus"])
    RANKS.set(int(words.get("ranks", 0)))
    before = {name: os.environ.get(name) for name in ("OMP_NUM_THREADS", "CUDA_VISIBLE_DEVICES", JOBLIB)}
    os.environ["OMP_NUM_THREADS"] = os.environ[JOBLIB] = str(threads)
    CORES.set(threads)
    if gpus:
        os.environ["CUDA_VISIBLE_DEVICES"] = gpus
    torch = sys.modules.get("torch")
    own = torch.get_num_threads() if torch else threads
    with ExitStack() as stack:
        if torch:
            torch.set_num_threads(threads)
            stack.callback(torch.set_num_threads, own)
        with suppress(ModuleNotFoundError):
            from threadpoolctl import threadpool_limits

            stack.enter_context(threadpool_limits(threads))
        try:
            yield
        finally:
            RANKS.set(0)
            CORES.set(1)
            for name, value in before.items():
                if value is None:
                    os.environ.pop(name, None)
                else:
                    os.environ[name] = value


class Calls:
    """A worker that makes the calls in a task's brief, one after another. marks: written before each call. seed: the pool's.
    prepare: called once, before the first call and on its thread: OpenMP has a number of threads for each thread that computes.
    given: what GIVEN is in a call. beside: large buffers of results lie in shared memory of this machine; False: they go with
    the result."""

    def __init__(
        self,
        marks: Marks,
        seed: int = 0,
        prepare: Callable[[], object] | None = None,
        given: object = None,
        beside: bool = True,
    ) -> None:
        self._marks, self._seed, self._prepare, self._given, self._beside = marks, seed, prepare, given, beside
        self._functions: dict[bytes, Callable[..., Any]] = {}

    def run(self, weights: Bundle, client: int, task: Task, brief: Bundle | None = None) -> Work:
        from shoal.actors.workers.answered import Answered

        assert brief is not None  # a task of a pool always has calls
        began = perf_counter()
        answers, segments = self.made(
            task.index, task.words, read_calls(brief), lambda: perf_counter() - began <= LONG, task.version
        )
        return Work(Answered(pack_answers(answers), segments))

    def made(
        self, index: int, words: Words, calls: Sequence[Call], may: Callable[[], bool], version: int = 0
    ) -> tuple[list[Answer], list[Segment]]:
        """The answers of the calls of a task, and the memory in which large results lie. may: says, before each call, whether
        it may begin; from the first that may not, the calls are left to other actors."""
        if self._prepare:
            self._prepare()
            self._prepare = None
        GIVEN.set(self._given)
        answers: list[Answer] = []
        segments: list[Segment] = []
        with within(words) if words else nullcontext():
            for call in calls:
                if not may():
                    break
                self._marks.note(version, index, call.ticket)
                CALL.set(Here(self._seed, call.ticket, self._marks))
                answer, parcel = self._answer(call)
                answers.append(answer)
                if parcel.segment:
                    segments.append(parcel.segment)
        return answers, segments

    def _answer(self, call: Call) -> tuple[Answer, Parcel]:
        began = perf_counter()
        try:
            value, folder = self._called(call), ""
            if type(value) is OnDisk:
                value, folder = value.value, value.folder
            try:
                parcel = pack(value, folder=folder)
            except UserError:
                if not isinstance(value, Made):
                    raise
                parcel = pack(value.mended(pack, _told))
            raised = False
        except BaseException as error:  # noqa: BLE001  a user's function may raise anything, and even call sys.exit
            parcel, raised = _of(error), True
        if not self._beside:
            parcel = Parcel(whole(parcel.data))
        return Answer(call.ticket, raised, parcel.data, perf_counter() - began, parcel.nbytes), parcel

    def _called(self, call: Call) -> Any:
        function = self._functions.get(call.function)
        if function is None:
            if len(self._functions) >= FUNCTIONS:
                self._functions.clear()
            function = self._functions[call.function] = opened(call.function)
        args, kwargs = opened(call.arguments)
        if kwargs is None:
            its: Many = args
            try:
                return its.made(
                    function,
                    lambda before: CALL.set(Here(self._seed, its.first, self._marks, before)),
                    self._marks.claim,
                    _told,
                )
            finally:
                self._marks.end_piece()
        return function(*args, **kwargs)


def _told(error: BaseException) -> bytes:
    """An exception and its traceback as bytes alone."""
    return whole(_of(error).data)


def _of(error: BaseException) -> Parcel:
    """The parcel of an exception and its traceback; of a plain RuntimeError if the exception cannot travel."""
    text = "".join(traceback.format_exception(error))
    try:
        parcel = pack((error, text))
        opened(parcel.data)  # an exception whose __init__ takes other arguments can be pickled, and not be unpickled
    except BaseException:  # noqa: BLE001  an exception is the user's object, and may call sys.exit when it is unpickled
        return pack((RuntimeError(f"{type(error).__name__}: {said(error)}"), text))
    return parcel
