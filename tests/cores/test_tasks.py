"""What a task says beside its clients: words for the worker, and whether it counts; and what a worker says of itself."""

from __future__ import annotations

import math
import re
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from dataclasses import fields, replace
from typing import Any

import msgpack
import numpy as np
import pytest
from test_core import Run

from shoal.actors import Worker
from shoal.actors.effects import Run as Order
from shoal.actors.labour import perform
from shoal.coordinator.deciding.bounds import Bounds
from shoal.coordinator.deciding.events import Fold, Folded, Step
from shoal.coordinator.deciding.patience import waiting_for
from shoal.coordinator.deciding.plans import Outcome, Seats
from shoal.coordinator.deciding.plans.rounds import Rounds
from shoal.coordinator.deciding.plans.stream import Stream
from shoal.coordinator.deciding.recovered import Recovered
from shoal.coordinator.keeping.recording import ACCEPTED, COMMITTED, Rebuilding
from shoal.protocol.codec import MAX_WORDS, decode, encode, words_fault
from shoal.protocol.errors import ProtocolError, UserError
from shoal.protocol.layout import Bundle
from shoal.protocol.messages import Assign, Contribute, Envelope, Failed, Have
from shoal.protocol.work import Contribution, Moved, Task, Work

WORDS = {"lr": 0.03, "phase": "unmask", "peers": [1, None, {"deep": [True, -(2**63)]}], "limit": math.inf}
WRONG: dict[str, Any] = {
    "a tuple": {"pair": (1, 2)},
    "bytes": {"key": b"1"},
    "an array": {"w": np.zeros(2)},
    "a number of numpy's": {"n": np.float64(1)},
    "a set": {"all": {1}},
    "a key that is no string": {"of": {1: 2}},
    "a key of bytes": {b"of": 1},
    "a number beyond 64 bits": {"n": 2**64},
    "half of a character": {"text": "\ud800"},
    "a map of a subclass": {"map": OrderedDict()},
    "more names than a map may have": {str(n): n for n in range(257)},
    "more than a list may have": {"list": [0] * 901},
    "too many bytes": {"text": "x" * (MAX_WORDS - 8)},
}


def deep(levels: int) -> dict[str, Any]:
    value: Any = 0
    for _ in range(levels):
        value = [value]
    return {"deep": value}


def assign(words: Any) -> Envelope:
    return Envelope(b"12345678", 5, Assign((3, 4), 65537, (8,), "train", False, counts=False, words=words))


def test_words_arrive_as_they_were_said() -> None:
    assert words_fault(WORDS) == words_fault(deep(14)) == ""
    assert decode(encode(assign(WORDS))) == assign(WORDS)


@pytest.mark.parametrize("words", [*WRONG.values(), deep(16), deep(3_000)], ids=[*WRONG, "16 lists", "3,000 lists"])
def test_words_that_are_not_plain_data_are_none(words: Any) -> None:
    assert words_fault(words)


@pytest.mark.parametrize("words", [[], None, "lr", {"b": b"1"}, {"text": "x" * MAX_WORDS}, {"map": {b"k": 1}}, deep(500)])
def test_an_assign_with_words_that_are_none_is_refused(words: Any) -> None:
    row = msgpack.unpackb(encode(assign({})))
    row[3 + [field.name for field in fields(Assign)].index("words")] = words
    with pytest.raises(ProtocolError, match=r"Assign\.words is a map of plain data|not msgpack within the limits"):
        decode(msgpack.packb(row))


class Saying(Rounds):
    """Rounds whose tasks have words, and kinds of their own."""

    words: dict[str, Any] = {"epsilon": 0.1}  # noqa: RUF012

    def assign(self, seats: Seats, news: Sequence[Outcome], version: int, now: float) -> Sequence[Task]:
        return [replace(task, kind="mine", words=self.words) for task in super().assign(seats, news, version, now)]


def test_an_actor_is_told_kind_and_words_and_what_counts_does_not_hang_on_the_kind() -> None:
    run = Run(Saying(1, evaluate_every=1, evaluate_cohort=1)).join("a")
    told = [(one.kind, one.counts, one.words) for one in run.said("a", Assign)]
    assert told == [("mine", True, {"epsilon": 0.1}), ("mine", False, {"epsilon": 0.1})]
    run.send("a", steps=3)
    [fold] = run.all(Fold)
    assert fold.task.words == {"epsilon": 0.1}
    run.event(Folded((0, 0))).contribute("a", steps=40)
    assert run.all(Step) == [Step(1, 3, 2)]


def test_a_task_that_comes_back_has_its_words_and_so_have_its_parts() -> None:
    run = Run(Saying(2, summed=True), Bounds(ahead=1)).join("a")
    [whole] = run.said("a", Assign)
    [part] = run.hear("a", Failed(whole.task, whole.attempt, 0, "training", "no", "")).said("a", Assign)
    assert (whole.clients, part.clients) == ((0, 1), (0,))
    assert (part.kind, part.words) == (whole.kind, whole.words) == ("mine", {"epsilon": 0.1})


def test_a_plan_whose_words_cannot_travel_ends_the_run_in_one_line() -> None:
    plan = Saying(1)
    plan.words = {"w": np.zeros(2)}
    with pytest.raises(UserError, match=r"the plan Saying gave Task\(.*: words must be plain data; these are not plain data"):
        Run(plan).join("a")


class Giving(Rounds):
    """A plan that gives what it is told to, once."""

    def __init__(self, given: Any) -> None:
        super().__init__(4)
        self.given = given

    def assign(self, seats: Seats, news: Sequence[Outcome], version: int, now: float) -> Any:
        given, self.given = self.given, []
        return given


@pytest.mark.parametrize(
    ("given", "fault"),
    [
        (None, "None: assign must return a list of Task, [] for none"),
        (Task(0, 0, (1,)), "assign must return a list of Task"),
        ({"client": 1}, "{'client': 1}: assign must return a list of Task"),
        ([3], r"3: assign must return a list of Task; Task\(version, index, \(client,\)\), say"),
        ([(0, 0, (1,))], r"\(0, 0, \(1,\)\): assign must return a list of Task"),
        ([Task(1, 0, (1,))], "version must be a whole number from 0 to 0, the newest version"),
        ([Task(-1, 0, (1,))], "version must be"),
        ([Task(0.0, 0, (1,))], "version must be"),  # type: ignore[arg-type]
        ([Task(0, -1, (1,))], "index must be a whole number from 0"),
        ([Task(0, np.int64(1), (1,))], "index must be a whole number from 0"),  # type: ignore[arg-type]
        ([Task(0, 0, 1)], r"clients must be a tuple of whole numbers from 0; \(3,\), say"),  # type: ignore[arg-type]
        ([Task(0, 0, [1])], "clients must be a tuple"),  # type: ignore[arg-type]
        ([Task(0, 0, (-1,))], "clients must be a tuple of whole numbers from 0"),
        ([Task(0, 0, (np.int64(1),))], "clients must be a tuple of whole numbers from 0"),
        ([Task(0, 0, (True,))], "clients must be"),
        ([Task(0, 0, (1,), kind=None)], "kind must be text"),  # type: ignore[arg-type]
        ([Task(0, 0, (1,), counts=1)], "counts and alone True or False"),  # type: ignore[arg-type]
        ([Task(0, 0, (1,)), Task(0, 0, (2,))], r"task \(0, 0\) is out already"),
    ],
)
def test_a_plan_that_gives_no_task_but_something_else_is_told_so_in_one_line(given: Any, fault: str) -> None:
    with pytest.raises(UserError, match=rf"^the plan Giving gave .*{fault}[^\n]*$"):
        Run(Giving(given)).join("a")


def test_a_task_that_is_to_be_alone_is_alone_also_when_it_is_tried_again() -> None:
    run = Run(Giving([Task(0, 0, (0,), alone=True), Task(0, 1, (1,))]), Bounds(ahead=2)).join("a")
    first = run.tasks["a"].pop((0, 0))
    run.hear("a", Failed(first.task, first.attempt, 0, "training", "no", ""))
    while run.tasks["a"]:
        assert len(run.tasks["a"]) == 1
        run.contribute("a")
    assert run.core.facts.ledger.folded == {0: 2}


def test_a_plan_that_gives_no_task_is_what_the_run_waits_for() -> None:
    run = Run(Giving([]), Bounds(quiet=5.0)).join("a").tick(after=5.1)
    assert run.told("waiting") == ["nothing moves: waiting for the plan Giving, which gives no task, for 5 s"]
    run = Run(Giving([Task(0, 0, (1,))]), Bounds(quiet=5.0, patience=60.0)).join("a").contribute("a").tick(after=7.0)
    assert run.told("waiting") == [
        "nothing moves: waiting for the plan Giving, which gives no task, "
        "and has not enough with the contributions of 1 clients, for 7 s"
    ]


def test_a_run_whose_actors_may_have_no_work_says_so() -> None:
    run = Run(Stream(9, 9), Bounds(ahead=1, lease=5.0, patience=60.0)).join("a").hear("a", Have(0)).tick(after=5.1)
    assert waiting_for(run.core.facts)[0].startswith("an actor that may have work again")
    run = Run(Stream(9, 9), Bounds(gather=3)).join("a")
    assert waiting_for(run.core.facts) == ["2 more actors to join before the first tasks go out"]


# What a worker says


class Three:
    """A worker that takes no brief."""

    def __init__(self, work: Work) -> None:
        self.work = work

    def run(self, weights: Bundle, client: int, task: Task) -> Work:
        return self.work


def done(work: Work, *, counts: bool = True, clients: tuple[int, ...] = (0,), kind: type[Three] = Three) -> Contribute | Failed:
    worker: Any = kind(work)

    def hand() -> Worker:
        return worker  # type: ignore[no-any-return]

    bundle = Bundle.pack({"w": np.zeros(2, np.float32)})
    task = Task(0, 0, clients, "mine", counts)
    return perform(hand, Order(task, 1, len(clients) > 1, 0), bundle, 0.0, float).message


def delta() -> Bundle:
    return Bundle.pack({"w": np.ones(2, np.float32)})


@pytest.mark.parametrize("total", [math.inf, -math.inf, 1.7e308, math.nan])
def test_totals_that_cannot_be_added_are_no_number_and_end_no_actor(total: float) -> None:
    works = iter([total, -total if math.isinf(total) else total, 1.0])

    class Turns(Three):
        def run(self, weights: Bundle, client: int, task: Task) -> Work:
            return Work(delta(), totals={"loss": (next(works), 1.0)})

    hand: Any = lambda: Turns(Work(None))  # noqa: E731
    order = Order(Task(0, 0, (0, 1, 2), "mine"), 1, True, 0)
    message = perform(hand, order, Bundle.pack({"w": np.zeros(2, np.float32)}), 0.0, float).message
    assert isinstance(message, Contribute)
    assert math.isnan(message.totals["loss"][0])
    assert message.totals["loss"][1] == 3.0


@pytest.mark.parametrize("clients", [(0,), (0, 1, 2)])
def test_as_many_figures_as_a_worker_may_give_arrive(clients: tuple[int, ...]) -> None:
    totals = {f"{number:03}".ljust(64, "x"): (-0.1, 0.1) for number in range(256)}
    samples = {f"of {number}": (-0.1,) * 2_000 for number in range(20)}
    message = done(Work(delta(), totals=totals, samples=samples), clients=clients)
    assert isinstance(message, Contribute)
    message = replace(message, digest="d" * 64, slot=(2**63 - 1,) * 4)
    assert decode(encode(Envelope(b"16 bytes of name", 2**62, message))).message == message
    assert (len(message.totals), {len(values) for values in message.samples.values()}) == (256, {200})


@pytest.mark.parametrize(
    ("figures", "fault"),
    [
        ({"totals": {str(number): (1.0, 1.0) for number in range(257)}}, "257 names in its totals, and 256 is the limit"),
        ({"samples": {str(number): (1.0,) for number in range(300)}}, "300 names in its samples, and 256 is the limit"),
        ({"totals": {f"{number}{'x' * 400}": (1.0, 1.0) for number in range(200)}}, "bytes of figures and their names, and"),
    ],
)
def test_figures_that_no_message_can_hold_fail_their_task_in_one_line(figures: dict[str, Any], fault: str) -> None:
    message = done(Work(delta(), **figures))
    assert isinstance(message, Failed)
    assert fault in message.error
    assert (message.error.count("\n"), message.traceback) == (0, "")


odd: Any = Work  # whose parts may be of any type here
PAIR = "expected a pair of numbers (sum, count)"
ODD: dict[str, tuple[Any, str]] = {
    "no Work": ({"w": 1.0}, "a worker's run gave an object of type dict: expected a Work"),
    "no bundle": (odd({"w": 1.0}), "has a bundle an object of type dict: expected Bundle.pack"),
    "a weight of text": (odd(delta(), "3"), "has the weight '3': expected a number above 0"),
    "no totals": (odd(delta(), totals=None), "totals = None: expected a dict of names"),
    "a number for a name": (odd(delta(), totals={3: (1.0, 1.0)}), "expected a dict of names"),
    "another name that is none": (
        odd(delta(), totals={"loss": (1.0, 1.0), 3: (1.0, 1.0)}),
        "expected a dict of names",
    ),
    "a total of one number": (odd(delta(), totals={"loss": (1.0,)}), PAIR),
    "a total of three": (odd(delta(), totals={"loss": (1.0, 2.0, 3.0)}), PAIR),
    "a total that is no pair": (odd(delta(), totals={"loss": 2.0}), PAIR),
    "a sum of text": (odd(delta(), totals={"loss": ("1", 2.0)}), PAIR),
    "a count of text": (odd(delta(), totals={"loss": (1.0, "2")}), PAIR),
    "a text of two": (odd(delta(), totals={"loss": "12"}), PAIR),
    "a sample that is a number": (odd(delta(), samples={"return": 3}), "samples['return'] = 3: expected a tuple"),
    "a sample of text": (odd(delta(), samples={"return": ("3",)}), "expected a tuple of numbers"),
    "steps of text": (odd(delta(), steps="many"), "steps='many': expected a whole number from 0"),
    "half a step": (odd(delta(), steps=0.5), "steps=0.5: expected a whole number from 0"),
    "a metric of Shoal's": (odd(delta(), totals={"update_norm": (1.0, 1.0)}), "totals hold 'update_norm', which is a metric"),
    "examples": (odd(delta(), totals={"examples": (1.0, 1.0)}), "totals hold 'examples', which is a metric"),
}


@pytest.mark.parametrize("name", ODD)
def test_a_work_that_is_none_is_the_tasks_failure_in_one_line(name: str) -> None:
    work, fault = ODD[name]
    message = done(work)
    assert isinstance(message, Failed)
    assert fault in message.error
    assert (message.error.count("\n"), message.traceback) == (0, "")


@pytest.mark.parametrize(
    "work",
    [
        odd(delta(), np.float32(2.0), {"loss": (np.float64(1.0), 2)}, {"return": (np.float32(1.0), 2)}, steps=np.int64(3)),
        odd(delta(), 2, {"loss": [1, 2]}, {"return": np.ones(2)}),
        odd(delta(), totals=OrderedDict(loss=(1.0, 2.0))),
    ],
)
def test_numbers_of_numpy_and_whole_ones_are_numbers(work: Any) -> None:
    message = done(work)
    assert isinstance(message, Contribute)
    assert message.totals == {"loss": (1.0, 2.0)}


def test_what_a_task_that_does_not_count_names_is_its_own_and_shoals_worker_counts_examples() -> None:
    named = Work(delta(), totals={"examples": (1.0, 1.0)})
    ours = type("Counting", (Three,), {"__module__": "shoal.actors.workers.local_sgd"})
    assert isinstance(done(named, counts=False), Contribute)
    assert isinstance(done(named, kind=ours), Contribute)
    norm = done(replace(named, totals={"update_norm": (1.0, 1.0)}), kind=ours)
    assert isinstance(norm, Failed)

    class Around(Three):
        inner: type = ours

        def __init__(self, work: Work) -> None:
            super().__init__(work)
            self.worker = self.inner(work)

    assert isinstance(done(named, kind=type("Twice", (Around,), {"inner": Around})), Contribute)


def test_steps_of_all_clients_are_added() -> None:
    message = done(Work(delta(), steps=np.int64(7)), clients=(0, 1, 2))  # type: ignore[arg-type]
    assert isinstance(message, Contribute)
    assert (message.steps, type(message.steps)) == (21, int)


@pytest.mark.parametrize("work", [Work(None, totals={"steps": (3.0, 1.0)}), Work(None, steps=-1), Work(None, steps=2**70)])
def test_steps_that_are_no_number_from_0_are_the_tasks_failure(work: Work) -> None:
    message = done(work, counts=False)
    assert isinstance(message, Failed)
    assert "as Work(steps=...)" in message.error


def test_a_task_that_counts_needs_arrays_and_one_that_does_not_needs_none() -> None:
    assert isinstance(done(Work(None), counts=False), Contribute)
    message = done(Work(None))
    assert isinstance(message, Failed)
    assert message.error == "no arrays came of a task that counts: a worker's Work needs a bundle"


# What was recorded


class Remembering:
    """An aggregator that keeps what it was given."""

    def __init__(self) -> None:
        self.folded: list[Contribution] = []

    def fold(self, contribution: Contribution) -> None:
        self.folded.append(contribution)

    def step(self) -> Moved:
        return Moved()


def record(*row: Any, payload: bytes = b"") -> bytes:
    head: bytes = msgpack.packb(row)
    return len(head).to_bytes(4, "little") + head + payload


@pytest.mark.parametrize("told", [(), ("mine", {"lr": 0.5})])
def test_records_of_before_there_were_words_are_replayed(told: tuple[Any, ...]) -> None:
    kind, words = told or ("train", {})
    found, bundle = Recovered(), delta()
    aggregator: Any = Remembering()
    layouts = {bundle.layout.digest: bundle.layout}
    one = (ACCEPTED, [0, 4, 65537, 0, 0], [7], 2.0, False, bundle.layout.digest, 30, b"12345678", "", 8, False, *told)
    two = (ACCEPTED, [1, 5, 65537, 1, 1], [8], 2.0, False, bundle.layout.digest, 30, b"12345678", "d" * 64, 8, True, *told)
    records = [record(*one, payload=bytes(bundle.data)), record(COMMITTED, 1, 30, 5, "digest"), record(*two)]
    Rebuilding(found, aggregator, layouts).follow(records)
    assert [one.task for one in aggregator.folded] == [Task(0, 4, (7,), kind, True, words)]
    assert (found.version, found.steps) == (1, 30)
    assert [promise.task for promise in found.promises] == [Task(1, 5, (8,), kind, True, words)]


def test_of_too_many_samples_the_last_are_sent() -> None:
    class Long(Three):
        def run(self, weights: Bundle, client: int, task: Task) -> Work:
            return Work(weights, samples={"return": tuple(float(n) for n in range(1_000 * client, 1_000 * client + 600))})

    message = done(Work(None), clients=(1, 2), kind=Long)
    assert isinstance(message, Contribute)
    assert message.samples["return"] == (*map(float, range(1_300, 1_600)), *map(float, range(2_000, 2_600)))


def test_an_exception_in_the_users_own_code_is_told_with_its_place() -> None:
    class Ill(Three):
        def run(self, weights: Bundle, client: int, task: Task) -> Work:
            raise LookupError("no such client")

    message = done(Work(None), kind=Ill)
    assert isinstance(message, Failed)
    assert re.search(r"test_tasks\.py, line \d+, in run: LookupError: no such client$", message.error)


# Clients together


class Together(Three):
    """A worker that gives the work of several clients at once, up to the first client that is `odd`."""

    odd = 7

    def run(self, weights: Bundle, client: int, task: Task) -> Work:
        raise AssertionError("run_all is there")

    def run_all(self, weights: Bundle, clients: Sequence[int], task: Task) -> Iterator[Work]:
        for client in clients:
            if client == self.odd:
                raise ValueError("odd")
            yield replace(self.work, weight=1.0 + client)


def test_a_worker_that_takes_a_tasks_clients_together_is_asked_once_and_its_works_are_summed_in_order() -> None:
    message = done(Work(delta(), totals={"n": (1.0, 1.0)}), clients=(0, 2, 3), kind=Together)
    assert isinstance(message, Contribute)
    assert (message.weight, message.totals) == (8.0, {"n": (3.0, 3.0)})


def test_what_it_raises_is_of_the_client_whose_work_is_due_and_a_client_without_a_work_is_named() -> None:
    failed = done(Work(delta()), clients=(0, 7, 3), kind=Together)
    assert isinstance(failed, Failed)
    assert (failed.client, "odd" in failed.error) == (7, True)

    class Few(Together):
        def run_all(self, weights: Bundle, clients: Sequence[int], task: Task) -> Iterator[Work]:
            return super().run_all(weights, clients[:1], task)

    few = done(Work(delta()), clients=(0, 4), kind=Few)
    assert isinstance(few, Failed)
    assert (few.client, few.error) == (4, "Few.run_all gave no Work for client 4: expected one for each client")
