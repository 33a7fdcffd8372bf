"""`shoal.Loader`: batches of a dataset, made by actors ahead of the program that takes them.

The one idea: the order of all batches depends on (seed, epoch) alone. So a loader's state is a place in this order, and actors,
their number and their deaths change nothing but the time that a batch takes.
"""

from __future__ import annotations

import mmap
import re
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

from shoal.protocol.errors import UserError, WorkerLost, binds, signed
from shoal.runs.threads import cores
from shoal.tasks.futures import Result
from shoal.tasks.how import counted
from shoal.tasks.pool import PLAIN, Pool
from shoal.tasks.preparing import NOBODY, TOGETHER, Collate, Preparing, prepare
from shoal.tasks.sources import cut, order, shards_of, source_of, stream

AHEAD = 2  # batches that an actor holds: the batch that it is at, and its next
PREFETCH = 4  # batches for each actor that are made ahead, so that a slow batch does not hold up the actors after it


class Wanted(NamedTuple):
    """A batch to be made. number: of the batch in its epoch. examples: their numbers. given: the examples, if they travel."""

    epoch: int
    number: int
    examples: list[int]
    given: list[Any] | None


@dataclass(frozen=True, slots=True)
class Place:
    """The batches that were taken: all of the epochs before `epoch`, and `batch` of that one; `step` of all epochs."""

    epoch: int = 0
    batch: int = 0
    step: int = 0


class Crew(Pool):
    """The processes of a loader, which are copies of this one with its dataset. given: what they make batches with."""

    _ahead = AHEAD

    def __init__(self, actors: int, retries: int, given: Preparing) -> None:
        self._given = given
        super().__init__(actors, retries=retries, progress=False)

    @property
    def over(self) -> bool:
        """True if no process is left, and none is replaced."""
        return self._running.fault is not None

    def leave(self, calls: Iterable[Result[Any]]) -> None:
        """End all processes, whatever they are at. None is left when this returns."""
        for call in calls:
            call.kill()
        self.shutdown()


class Loader(Iterable[tuple[int, Any]]):
    """Batches of a dataset: `for step, batch in loader` gives the batches of `epochs` epochs, from where the loader stands.

    dataset: an array, a tuple or dict of arrays (an example is an entry of each), any object with __getitem__ and __len__, or
    an iterable of shards, each of which is such an object. transform: changes an example: `transform(example)`, or
    `transform(example, rng)` for a numpy Generator of the example's own. batch_size: examples of a batch; the last batch of an
    epoch may have fewer, unless drop_last, which leaves it out. shuffle: each epoch has an order of its own; shards keep their
    order, and are shuffled in themselves. seed: of the orders and generators. actors: processes that make batches; 0: this one;
    "auto": one for each core. epochs: epochs of one `for`. collate: makes a batch of a list of examples; None: numbers and
    arrays are stacked, dicts, lists and tuples of them stay such, texts become a list. prefetch: batches that are made ahead,
    and so held in memory; None: 4 for each actor. retries: times that a batch is made again after its process has ended. start:
    a state at which to begin.

    Batches hold numpy arrays, which may be written and live as long as anybody holds them; `torch.from_numpy` takes them
    without a copy. The next `for` goes on where the last one ended, by `break` or an exception too. Processes live only while a
    `for` does.

    Raises UserError for arguments that do not fit. A `for` raises what the user's code raises, with a note that names the
    example; UserError for examples that cannot be stacked; WorkerLost, which names the example, if it ends its process each
    time.
    """

    def __init__(
        self,
        dataset: Any,
        transform: Callable[..., Any] | None = None,
        *,
        batch_size: int = 32,
        shuffle: bool = True,
        seed: int = 0,
        actors: int | str = PLAIN,
        epochs: int = 1,
        drop_last: bool = False,
        collate: Collate | None = None,
        prefetch: int | None = None,
        retries: int = 2,
        start: Mapping[str, int] | None = None,
    ) -> None:
        self._size, self._epochs = counted("batch_size", batch_size, 1), counted("epochs", epochs, 1)
        self._retries, self._seed = counted("retries", retries, 0), counted("seed", seed, -(2**63))
        self._actors = cores() if actors == PLAIN else counted("actors", actors, 0)
        self._ahead = PREFETCH * self._actors if prefetch is None else counted("prefetch", prefetch, 1)
        for name, given in (("transform", transform), ("collate", collate)):
            if given is not None and not callable(given):
                raise UserError(f"{name} is {signed(given)}: expected a function")
        if transform is not None and not any((binds(transform, 0), binds(transform, 0, 0), binds(transform, 0, rng=0))):
            raise UserError(f"transform is {signed(transform)}: expected transform(example) or transform(example, rng)")
        self._source, self._dataset = source_of(dataset), dataset
        self._once = isinstance(dataset, Iterator)  # it can be read once
        self._shuffle, self._drop_last = shuffle, drop_last
        if self._once and self._epochs > 1:
            raise UserError(
                f"epochs={epochs}: an iterator can be read once; give an object whose __iter__ begins anew, or epochs=1"
            )
        if self._source is not None:
            self._many = self._full(cut(len(self._source), self._size, drop_last))
        slots = memoryview(mmap.mmap(-1, 8 * max(1, self._ahead))).cast("q")
        self._preparing = Preparing(self._source, transform, collate, self._seed, slots)
        self._turn: object = None
        self._done = self._used = False  # _done: all batches of the last `for` were taken
        self.load(start)

    def state(self) -> dict[str, int]:
        """The place after the batch that was taken last: {"epoch": epochs before it, "batch": batches of its epoch}; for
        shards also "step", batches of all epochs. All from 0."""
        place = self._place
        state = {"epoch": place.epoch, "batch": place.batch}
        return state if self._source is not None else {**state, "step": place.step}

    def load(self, state: Mapping[str, int] | None = None) -> None:
        """Go to the place of a state: the next `for` gives the rest of the `for` in which the state was taken. None: the
        beginning. Raises UserError for a state that this dataset does not have."""
        if not (state is None or isinstance(state, Mapping)):
            raise UserError(f'state is {signed(state)}: expected {{"epoch": 3, "batch": 120}}, as loader.state() gives it')
        given = {"epoch": 0, "batch": 0} if state is None else dict(state)
        if not {"epoch", "batch"} <= set(given) <= {"epoch", "batch", "step"}:
            raise UserError(f'state {given}: expected {{"epoch": 3, "batch": 120}}, as loader.state() gives it')
        given = {name: counted(f"state: {name}", value, 0) for name, value in given.items()}
        place = Place(given["epoch"], given["batch"], given.get("step", given["batch"]))
        if self._source is not None:
            if place.batch > self._many:
                raise UserError(
                    f"state: batch={place.batch}: an epoch of this dataset has {self._many} batches of {self._size}"
                )
            place = replace(place, step=place.epoch * self._many + place.batch)
        self._place, self._done, self._turn = place, False, None

    def state_dict(self) -> dict[str, int]:
        """`state`, by the name that torchdata's StatefulDataLoader has for it."""
        return self.state()

    def load_state_dict(self, state: Mapping[str, int]) -> None:
        """`load`, by the name that torchdata's StatefulDataLoader has for it."""
        self.load(state)

    def __len__(self) -> int:
        """Batches of a whole `for`. Raises TypeError for shards."""
        if self._source is None:
            raise TypeError("a loader of shards has no length: it is known when they have been read")
        return self._many * self._epochs

    def __iter__(self) -> Iterator[tuple[int, Any]]:
        its = self._turn = object()
        return self._batches(its)

    def _batches(self, turn: object) -> Iterator[tuple[int, Any]]:
        self._check(turn)
        if self._used:
            raise UserError("dataset: an iterator can be read once; give an object whose __iter__ begins anew")
        self._used = self._once
        if self._done:
            self._place, self._done = replace(self._place, epoch=self._place.epoch + 1, batch=0), False
        for wanted, batch in self._made() if self._actors else self._made_here():
            self._check(turn)
            place = Place(wanted.epoch, wanted.number + 1, self._place.step + 1)
            if self._source is not None and place.batch == self._many:
                self._done = place.epoch + 1 == self._until(place.epoch)
                place = place if self._done else replace(place, epoch=place.epoch + 1, batch=0)
            step, self._place = self._place.step, place
            del wanted
            yield step, batch
            del batch  # or it would be held until the next one is there
        self._check(turn)
        self._done = True

    def _check(self, turn: object) -> None:
        if turn is not self._turn:
            raise RuntimeError("this `for` has ended: another one over the same loader has begun since, or load() was called")

    def _until(self, epoch: int) -> int:
        """The epoch at which a `for` ends that gives this one."""
        return (epoch // self._epochs + 1) * self._epochs

    def _wanted(self) -> Iterator[Wanted]:
        """The batches from where the loader stands to the end of a `for`."""
        place = self._place
        for epoch in range(place.epoch, self._until(place.epoch)):
            first = place.batch if epoch == place.epoch else 0
            yield from self._of_source(epoch, first) if self._source is not None else self._of_shards(epoch, first)

    def _of_source(self, epoch: int, first: int) -> Iterator[Wanted]:
        assert self._source is not None
        numbers = order(len(self._source), self._shuffle, self._seed, epoch)
        for number in range(first, self._many):
            yield Wanted(epoch, number, numbers[number * self._size : (number + 1) * self._size].tolist(), None)

    def _of_shards(self, epoch: int, first: int) -> Iterator[Wanted]:
        number, examples = first, list[tuple[int, Any]]()
        for one in stream(shards_of(self._dataset), self._shuffle, self._seed, epoch, first * self._size):
            examples.append(one)
            if len(examples) == self._size:
                yield Wanted(epoch, number, [its for its, _ in examples], [example for _, example in examples])
                number, examples = number + 1, []
        if examples and not self._drop_last:
            yield Wanted(epoch, number, [its for its, _ in examples], [example for _, example in examples])
        elif first == 0:
            self._full(number)

    def _full(self, batches: int) -> int:
        if not batches:
            raise UserError(
                f"dataset: it has no batch of {self._size} examples{' (drop_last=True)' * self._drop_last}; is it empty?"
            )
        return batches

    def _made_here(self) -> Iterator[tuple[Wanted, Any]]:
        for wanted in self._wanted():
            try:
                batch = self._preparing.here(0, wanted.epoch, wanted.examples, wanted.given)
            except Exception as error:
                error.add_note(_named(self._preparing.at[0], wanted))
                raise
            yield wanted, batch
            del batch

    def _made(self) -> Iterator[tuple[Wanted, Any]]:
        waiting: deque[tuple[int, Wanted, Result[Any]]] = deque()
        crew, made = self._crew(), 0  # made: batches that were taken from it

        def renew(lost: WorkerLost) -> None:
            """Have a new crew, if this one has ended after it had made something: nobody else is to blame."""
            nonlocal crew, made
            if not (crew.over and made):
                raise lost
            crew.leave(())
            crew, made = self._crew(), 0
            for place, (slot, one, call) in enumerate(list(waiting)):
                if call.exception() is not None:
                    waiting[place] = (slot, one, self._asked(crew, slot, one))

        def first() -> tuple[Wanted, Any]:
            nonlocal made
            while True:
                try:
                    its = self._taken(*waiting[0])
                except WorkerLost as lost:
                    renew(lost)
                    continue
                waiting.popleft()
                made += 1
                return its

        try:
            for number, one in enumerate(self._wanted()):
                if len(waiting) == self._ahead:
                    yield first()
                slot = number % self._ahead
                try:
                    call = self._asked(crew, slot, one)
                except WorkerLost as lost:
                    renew(lost)
                    call = self._asked(crew, slot, one)
                waiting.append((slot, one, call))
                del call
            while waiting:
                yield first()
        finally:
            crew.leave(call for _, _, call in waiting)

    def _crew(self) -> Crew:
        return Crew(self._actors, self._retries, self._preparing)

    def _asked(self, crew: Crew, slot: int, one: Wanted) -> Result[Any]:
        self._preparing.at[slot] = NOBODY
        try:
            return crew.submit(prepare, slot, one.epoch, one.examples, one.given, cost=0.0)
        except UserError as wrong:
            raise UserError(_unfit(str(wrong), one)) from wrong

    def _taken(self, slot: int, wanted: Wanted, call: Result[Any]) -> tuple[Wanted, Any]:
        try:
            return wanted, call.result()
        except WorkerLost as lost:
            raise WorkerLost(f"{_named(self._preparing.at[slot], wanted)}: {lost}") from lost.__cause__
        except BaseException as error:  # a transform may call sys.exit
            if call.done() and call.exception() is error:  # else a Ctrl-C came while this program waited
                error.add_note(_named(self._preparing.at[slot], wanted))
            raise
        finally:
            del call  # an exception's traceback holds this frame, and the future holds the exception


def _named(at: int, wanted: Wanted) -> str:
    """Return the examples at which the making of a batch was."""
    where = f"batch {wanted.number} of epoch {wanted.epoch}"
    if at == NOBODY:
        return where
    return f"putting together {where}" if at == TOGETHER else f"example {at}, in {where}"


def _unfit(text: str, wanted: Wanted) -> str:
    """Return the pool's line about an argument that cannot travel, with the example's number in place of its place in the
    call."""
    return re.sub(r"^args\[3\]\[(\d+)\]", lambda found: f"example {wanted.examples[int(found[1])]}: its part ", text)
