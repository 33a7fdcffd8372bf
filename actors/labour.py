"""The doing of one task: the worker runs for each client, and the clients' work becomes one message with one payload.

The one idea: an actor process and the plain loop call the same function, so that both have the same numbers.
"""

from __future__ import annotations

import math
import sys
import traceback
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import cache, partial
from typing import TypeAlias

from shoal.actors import Worker, adds, works_of
from shoal.actors.effects import Run
from shoal.protocol.codec import figures_fault
from shoal.protocol.errors import AwayError, ProtocolError, UserError, signed
from shoal.protocol.exact import PartialSum
from shoal.protocol.grid import Adder
from shoal.protocol.layout import Bundle
from shoal.protocol.messages import AWAY, Contribute, Failed
from shoal.protocol.place import place_of
from shoal.protocol.value import value
from shoal.protocol.work import Task, Work

Told: TypeAlias = tuple[Mapping[str, tuple[float, float]], Mapping[str, Sequence[float]], int]
"""A client's totals, samples and steps."""
MOST_TEXT = 3_900  # characters of an error, and of a traceback, that are sent
TAKEN = frozenset(
    {"examples", "update_norm", "lag_min", "lag_mean", "lag_max", "down_bytes", "up_bytes", "return_mean", "length_mean"}
    | {"episodes", "return_age", "train_accuracy", "lag_p50", "lag_p90", "dropped_steps"}
    | {"rollout_seconds", "transfer_seconds", "queue_seconds", "learn_seconds"}
    | {"rollout_lag", "transfer_lag", "queue_lag", "learn_lag"}
)
"""The metrics that the coordinator makes of a step itself, in the place of a worker's total of the same name."""
FLOATS = frozenset({float})
MOST_SAMPLES = 900  # samples of each name that are sent, the last: as many as fit into a list of a header
SAMPLES = 4_000  # samples of all names together that are sent: as many as fit into a header beside its totals


@value
class Product:
    """The result of a task: a Contribute with its arrays, or a Failed. clients: number of clients that were done."""

    message: Contribute | Failed
    bundle: Bundle | None = None
    clients: int = 0

    def sealed(self) -> Product:
        """The product with the digest of its arrays in the message."""
        if self.bundle is None or not isinstance(self.message, Contribute):
            return self
        return replace(self, message=replace(self.message, digest=self.bundle.sha256()))


def perform(
    worker: Callable[[], Worker],
    run: Run,
    weights: Bundle,
    waited: float,
    clock: Callable[[], float],
    brief: Bundle | None = None,
) -> Product:
    """The product of one task. An exception of the worker becomes a Failed, and the actor lives.

    waited: seconds that the worker had been idle before this task.
    """
    stage, client, began = "setup", run.task.clients[0], clock()
    first: Work | None = None
    told: list[Told] = []
    try:
        hand = worker()
        stage = run.task.kind
        task = run.task if run.task.version == run.made_from else replace(run.task, version=run.made_from)
        total = PartialSum(weights.layout, run.exact, _adder()) if run.summed else None
        added = total is not None and brief is None and adds(hand)
        works = hand.add_all(weights, task.clients, task, total) if added else works_of(hand, weights, task, brief)  # type: ignore[attr-defined]
        taken = cache(partial(_taken, hand))
        for client in run.task.clients:
            try:
                work = next(works)
            except StopIteration:
                kind = type(hand).__name__
                raise UserError(f"{kind}.run_all gave no Work for client {client}: expected one for each client") from None
            _check(work, run.task, taken, added)
            if total is not None and work.bundle is not None:
                total.add(work.bundle, work.weight)
            told.append((work.totals, work.samples, work.steps))
            first = first or (work if total is None else None)  # a sum needs no client's arrays any more
        bundle = total.bundle() if total is not None else first.bundle if first else None
    except (Exception, SystemExit) as raised:  # noqa: BLE001  a worker is the user's code, and may even call sys.exit
        return Product(_failed(run, client, stage, raised))
    weight = total.weight if total is not None else first.weight if first else 0.0
    message = _contribute(run, told, weight, bundle, waited, clock() - began)
    if fault := figures_fault(message.totals, message.samples):  # else no message would ever arrive
        return Product(_failed(run, client, stage, UserError(f"a worker's Work has {fault}: give fewer metrics")))
    return Product(message, bundle, len(told))


def _check(work: Work, task: Task, taken: Callable[[], frozenset[str]], added: bool) -> None:
    """Raises UserError for a Work that is none. taken: gives the names that its totals must not have; asked only where a total
    has one that may be of them, because the answer is in all parts of the worker. added: the sum has its arrays."""
    if not _plain(work):
        _check_kinds(work)
    if work.bundle is None and task.counts and not added:
        raise UserError("no arrays came of a task that counts: a worker's Work needs a bundle")
    if "steps" in work.totals or not 0 <= work.steps < 2**53:
        found = f"steps={work.steps}, and totals of {', '.join(work.totals) or 'no name'}"
        raise UserError(f"a worker gives its number of steps, from 0, as Work(steps=...), not in totals; it gave {found}")
    if task.counts and not TAKEN.isdisjoint(work.totals) and (names := taken() & work.totals.keys()):
        name = sorted(names)[0]
        raise UserError(f"a worker's totals hold {name!r}, which is a metric of Shoal's own: give it another name")


def _plain(work: Work) -> bool:
    """Return whether a Work is made of the plainest types, as nearly every Work is: this is quicker than `_check_kinds`."""
    if not (type(work) is Work and type(work.weight) is float and type(work.steps) is int and type(work.totals) is dict):
        return False
    for name, pair in work.totals.items():
        if not (type(name) is str and type(pair) is tuple and len(pair) == 2 and type(pair[0]) is type(pair[1]) is float):
            return False
    for name, numbers in work.samples.items() if type(work.samples) is dict else ((None, None),):
        if not (type(name) is str and type(numbers) is tuple and FLOATS.issuperset(map(type, numbers))):
            return False
    return work.bundle is None or isinstance(work.bundle, Bundle)


def _check_kinds(work: Work) -> None:
    """Raises UserError for a Work whose parts are of other types than they must be."""
    if not isinstance(work, Work):
        raise UserError(f"a worker's run gave {signed(work)}: expected a Work(bundle, weight, totals)")
    if not (work.bundle is None or isinstance(work.bundle, Bundle)):
        raise UserError(f"a worker's Work has a bundle {signed(work.bundle)}: expected Bundle.pack(name -> array)")
    if not hasattr(work.weight, "__float__"):
        raise UserError(f"a worker's Work has the weight {signed(work.weight)}: expected a number above 0")
    for part in ("totals", "samples"):
        if not isinstance(names := getattr(work, part), Mapping) or not all(isinstance(name, str) for name in names):
            raise UserError(f"a worker's Work has {part} = {names!r}"[:200] + ": expected a dict of names")
    for name, numbers in work.samples.items():
        if not (hasattr(numbers, "__iter__") and all(hasattr(each, "__float__") for each in numbers)):
            raise UserError(f"a worker's Work has samples[{name!r}] = {numbers!r}"[:200] + ": expected a tuple of numbers")
    if not hasattr(work.steps, "__index__"):
        raise UserError(f"a worker's Work has steps={work.steps!r}: expected a whole number from 0")
    for name, pair in work.totals.items():
        if not (isinstance(pair, tuple | list) and len(pair) == 2 and all(hasattr(each, "__float__") for each in pair)):
            raise UserError(f"a worker's Work has totals[{name!r}] = {pair!r}: expected a pair of numbers (sum, count)")


def _taken(worker: Worker) -> frozenset[str]:
    """Return the names of Shoal's own metrics, which totals of this worker must not have. LocalSGD counts examples itself."""
    while (inner := getattr(worker, "worker", None)) is not None:
        worker = inner
    parts = [kind for each in (worker, *getattr(worker, "__dict__", {}).values()) for kind in type(each).__mro__]
    ours = any(kind.__module__ == "shoal.actors.workers.local_sgd" for kind in parts)
    return TAKEN - {"examples"} if ours else TAKEN


def _adder() -> Adder:
    """The adder of plain sums. torch adds in half the time, so it is used if the worker has loaded torch."""
    if "torch" not in sys.modules:
        return Adder()
    from shoal.nets.adding import TorchAdder

    return TorchAdder()


def _contribute(
    run: Run, told: Sequence[Told], weight: float, bundle: Bundle | None, waited: float, trained: float
) -> Contribute:
    names = dict.fromkeys(name for totals, _, _ in told for name in totals)
    lists = dict.fromkeys(name for _, samples, _ in told for name in samples)
    most = min(MOST_SAMPLES, SAMPLES // max(1, len(lists)))
    return Contribute(
        task=(run.task.version, run.task.index),
        attempt=run.attempt,
        made_from=run.made_from,
        weight=weight,
        layout=bundle.layout.digest if bundle is not None else "",
        summed=run.summed,
        totals={name: _total([totals[name] for totals, _, _ in told if name in totals]) for name in names},
        samples={name: _last([x for _, samples, _ in told for x in samples.get(name, ())], most) for name in lists},
        waited=waited,
        trained=trained,
        steps=sum(int(steps) for _, _, steps in told),
    )


def _last(samples: Sequence[float], most: int) -> tuple[float, ...]:
    return tuple(samples[max(0, len(samples) - most) :])


def _total(pairs: Sequence[tuple[float, float]]) -> tuple[float, float]:
    return (_added([total for total, _ in pairs]), _added([count for _, count in pairs]))


def _added(numbers: Sequence[float]) -> float:
    """The sum of a worker's figures, rounded once; NaN if it overflows or two infinities cancel."""
    try:
        return math.fsum(numbers)
    except (OverflowError, ValueError):
        return math.nan


def _failed(run: Run, client: int, stage: str, raised: BaseException) -> Failed:
    stage = AWAY if isinstance(raised, AwayError) else stage
    plain = isinstance(raised, UserError | ProtocolError)  # a user's mistake, or NaNs: a traceback is no help
    text = "" if plain else "".join(traceback.format_exception(raised))[-MOST_TEXT:]
    place = "" if plain else place_of(raised)
    what = str(raised) if plain else f"{place}{': ' * bool(place)}{type(raised).__name__}: {raised}"
    return Failed((run.task.version, run.task.index), run.attempt, client, stage, what[:MOST_TEXT], text)
