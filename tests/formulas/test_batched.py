"""Clients that are trained together have the deltas of the loop, and what cannot be trained together is refused by name."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
from case_names import without_addresses
from torch import nn
from torch.nn import functional

from shoal.actors.workers.batched import Batched, unfit
from shoal.actors.workers.graphed import Graphed, GraphedSGD
from shoal.actors.workers.local_sgd import LocalSGD
from shoal.envs.datasets import Examples
from shoal.envs.population import Population
from shoal.jobs.federated import Federated
from shoal.nets.models import mlp
from shoal.nets.stacked import stacked
from shoal.nets.tracing import UnfitError
from shoal.nets.updates import SGD
from shoal.protocol.errors import ProtocolError, UserError
from shoal.protocol.exact import PartialSum
from shoal.protocol.work import Task, Work
from shoal.runs.engines import decided

SIZES = (23, 7, 10, 1, 14)  # of batches of 10: whole ones and parts, one example, three steps
TASK = Task(3, 0, (0, 1, 2, 3))
ALL = Task(3, 0, (0, 1, 2, 3, 4))


def examples(client: int, weighted: bool = False, wide: bool = True) -> Examples:
    rng = np.random.Generator(np.random.Philox(client))
    n = SIZES[client]
    x = rng.normal(size=(n, 16)).astype(np.float32) if wide else rng.integers(0, 255, (n, 16)).astype(np.uint8)
    return Examples(
        x, rng.integers(0, 4, n), rng.uniform(0, 2, n).astype(np.float32) if weighted else None, scale=1 if wide else 255
    )


def worker(model: Callable[[], nn.Module] | None = None, loss: Any = functional.cross_entropy, **settings: Any) -> LocalSGD:
    given = {name: settings.pop(name) for name in ("weighted", "wide") if name in settings}
    clients = Population(len(SIZES), partial(examples, **given))
    return LocalSGD(model or (lambda: mlp((16, 32, 4))), clients, loss, **{"batch_size": 10, "seed": 5, **settings})


def assert_same(made: LocalSGD) -> None:
    weights = made.flat.bundle()
    alone = [made.run(weights, client, TASK) for client in TASK.clients]
    for one, other in zip(alone, Batched(made).run_all(weights, TASK.clients, TASK), strict=True):
        assert one.bundle is not None
        assert other.bundle is not None
        assert one.bundle.layout.digest == other.bundle.layout.digest
        np.testing.assert_allclose(other.bundle.vector(), one.bundle.vector(), rtol=0, atol=1e-5)
        assert np.abs(one.bundle.vector()).max() > 1e-3
        assert one.weight == other.weight
        assert one.totals.keys() == other.totals.keys()
        assert one.totals.get("accuracy") == other.totals.get("accuracy")
        np.testing.assert_allclose(other.totals["loss"], one.totals["loss"], rtol=1e-5)


@pytest.mark.parametrize(
    "settings",
    [
        {"local_epochs": 2, "momentum": 0.9, "weight_decay": 0.01},
        {"mu": 0.5, "clip_grad_norm": 0.3, "weighting": "users"},
        {"optimizer": "adam", "lr": 0.01, "local_steps": 4},
        {"drop_last": True, "lr_schedule": lambda version: 0.5},
        {"weighted": True},
        {"wide": False, "batch_size": 100},
        {"loss": nn.CrossEntropyLoss(label_smoothing=0.1)},
        {"loss": partial(functional.cross_entropy, ignore_index=2)},
        {"loss": lambda logits, y: -logits.log_softmax(1).gather(1, y[:, None])[:, 0]},
        {"loss": lambda logits, y: functional.mse_loss(logits, torch.eye(4)[y], reduction="none").mean(1)},
        {
            "model": lambda: nn.Sequential(
                nn.Unflatten(1, (1, 4, 4)), nn.Conv2d(1, 3, 3), nn.Flatten(), nn.GELU(), nn.Linear(12, 4)
            )
        },
    ],
    ids=without_addresses,
)
def test_ragged_clients_trained_together_have_the_loops_deltas_and_totals(settings: dict[str, Any]) -> None:
    assert_same(worker(**settings))


def test_a_client_alone_and_beside_others_has_the_same_bits_where_rows_are_whole_vectors() -> None:
    made = Batched(worker(lambda: mlp((16, 64, 16))))
    weights = made.worker.flat.bundle()
    beside = dict(zip(ALL.clients, made.run_all(weights, ALL.clients, ALL), strict=True))
    for client in ALL.clients:
        one, other = made.run(weights, client, ALL).bundle, beside[client].bundle
        assert one is not None
        assert other is not None
        assert np.array_equal(one.vector(), other.vector())


def test_deltas_added_together_have_the_bits_of_deltas_added_one_after_the_other() -> None:
    made = Batched(worker(lambda: mlp((16, 64, 16)), weighting=lambda client, examples: 0.3 + client))
    weights = made.worker.flat.bundle()
    apart, together = PartialSum(weights.layout), PartialSum(weights.layout)
    works = list(made.run_all(weights, ALL.clients, ALL))
    for work in works:
        assert work.bundle is not None
        apart.add(work.bundle, work.weight)
    added = list(made.add_all(weights, ALL.clients, ALL, together))
    assert together.bundle().sha256() == apart.bundle().sha256()
    assert [(one.weight, one.totals) for one in added] == [(one.weight, one.totals) for one in works]
    assert all(one.bundle is None for one in added)


def test_a_delta_that_must_not_be_added_is_its_clients_fault() -> None:
    def spoiled(client: int) -> Examples:
        found = examples(client)
        return replace(found, x=found.x * (math.nan if client == 2 else 1))

    made = Batched(worker(lambda: mlp((16, 64, 16))))
    made.worker.data.population = Population(len(SIZES), spoiled)
    weights = made.worker.flat.bundle()
    works = made.add_all(weights, ALL.clients, ALL, PartialSum(weights.layout))
    assert [next(works).weight, next(works).weight] == [23.0, 7.0]
    with pytest.raises(ProtocolError, match="holds NaN or an infinity"):
        next(works)


def test_more_clients_than_slots_are_trained_in_their_order() -> None:
    made = worker()
    weights, many = made.flat.bundle(), ALL.clients * 14
    found = list(Batched(made).run_all(weights, many, TASK))
    assert [one.weight for one in found] == [float(SIZES[client]) for client in many]


def test_a_step_without_a_trace_has_the_gradients_of_autograd() -> None:
    made, rng = worker(lambda: mlp((16, 32, 8, 4))), torch.Generator().manual_seed(0)
    assert made.dense is not None
    parameters = [torch.randn(3, *one.shape, generator=rng, requires_grad=True) for one in made.flat.module.parameters()]
    x, y = torch.randn(3, 5, 16, generator=rng), torch.randint(0, 4, (3, 5), generator=rng)
    share = torch.tensor([[0.2] * 5, [0.5, 0.5, 0, 0, 0], [1.0, 0, 0, 0, 0]])
    names = [name for name, _ in made.flat.module.named_parameters()]
    losses = []
    for at in range(3):
        logits = torch.func.functional_call(
            made.flat.module, {n: p[at] for n, p in zip(names, parameters, strict=True)}, (x[at],)
        )
        losses.append((functional.cross_entropy(logits, y[at], reduction="none") * share[at]).sum())
    expected = torch.autograd.grad(sum(losses), parameters)
    with torch.no_grad():
        *grads, loss, _ = stacked(made.dense)(*[one.detach() for one in parameters], x, y, share)
    torch.testing.assert_close(loss, torch.stack(losses).detach())
    for one, other in zip(grads, expected, strict=True):
        torch.testing.assert_close(one, other)


def test_weights_of_examples_and_other_models_are_traced_and_plain_perceptrons_are_not() -> None:
    for settings, traced in (({}, False), ({"weighted": True}, True), ({"model": lambda: nn.Linear(16, 4)}, True)):
        its = Batched(worker(**settings))
        list(its.run_all(its.worker.flat.bundle(), TASK.clients, TASK))
        assert bool(its.steps) == traced


def test_the_fault_of_one_client_is_raised_at_its_turn_and_the_others_are_trained() -> None:
    def odd(client: int) -> Examples:
        found = examples(client)
        return Examples(found.x, found.y + 9 * (client == 2))  # a label that the model does not know

    made = worker()
    made.data.population = Population(len(SIZES), odd)
    works: Iterator[Work] = Batched(made).run_all(made.flat.bundle(), (0, 1, 2, 3), TASK)
    assert [next(works).weight, next(works).weight] == [23.0, 7.0]
    with pytest.raises((RuntimeError, IndexError)):
        next(works)
    empty = worker()
    empty.data.population = Population(2, lambda client: examples(client)[: 23 * client])
    with pytest.raises(UserError, match="client 0 has no examples"):
        next(Batched(empty).run_all(empty.flat.bundle(), (0, 1), TASK))


def test_an_evaluation_is_the_loops() -> None:
    made, task = worker(), Task(0, 0, (0, 4), "evaluate", False)
    weights = made.flat.bundle()
    assert list(Batched(made).run_all(weights, task.clients, task)) == [made.run(weights, client, task) for client in (0, 4)]


class Halving(SGD):
    pass


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"model": lambda: nn.Sequential(nn.Linear(16, 4), nn.Dropout(0.5))}, "1 (Dropout) draws random numbers"),
        ({"model": lambda: nn.Sequential(nn.BatchNorm1d(16), nn.Linear(16, 4))}, "0 (BatchNorm1d) looks at all examples"),
        ({"model": lambda: nn.LSTM(16, 4)}, "(LSTM) is recurrent"),
        ({"optimizer": Halving()}, "the optimizer Halving is no built-in one"),
        ({"loss": partial(functional.cross_entropy, weight=torch.ones(4))}, "its loss is one number a batch"),
        ({"loss": partial(functional.cross_entropy, reduction="sum")}, "its loss is one number a batch"),
    ],
    ids=without_addresses,
)
def test_what_cannot_be_trained_together_is_refused_by_its_part(settings: dict[str, Any], said: str) -> None:
    assert said in unfit(worker(**settings))


class Looking(nn.Module):
    """Its way depends on the data."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(16, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        out: torch.Tensor = self.layer(x)
        return out if float(x.sum()) > 0 else 2 * out


class Counting(Looking):
    """Its way depends on how often it was called."""

    calls = 0

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.calls += 1
        out: torch.Tensor = self.layer(x)
        return out * self.calls


class Keeping(Looking):
    """It counts in a buffer, which is part of a client's delta."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("seen", torch.zeros((), dtype=torch.int64))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.seen += 1
        out: torch.Tensor = self.layer(x)
        return out


class Mixing(Looking):
    """Its outputs for an example depend on the other examples of the batch."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        out: torch.Tensor = self.layer(x - x.mean(0))
        return out


class Noisy(Looking):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        out: torch.Tensor = self.layer(x + torch.randn(16))
        return out


def job(model: Callable[[], nn.Module] = lambda: mlp((16, 32, 4)), **settings: Any) -> Any:
    return Federated(model, Population(len(SIZES), examples), **{"clients": len(SIZES), "cohort": 4, "rounds": 1, **settings})


@pytest.mark.parametrize(
    ("model", "said"),
    [
        (Looking, "torch cannot make its step for several clients"),
        (Counting, "the model keeps count in its attribute calls"),
        (Keeping, "the model changes its buffers"),
        (Mixing, "an example's output depends on the other examples of its batch"),
        (Noisy, "the model draws random numbers"),
    ],
)
def test_a_model_that_is_no_function_of_an_example_is_found_out_and_refused_or_trained_by_the_loop(
    model: Any, said: str
) -> None:
    with pytest.raises(UserError, match=f"^engine=batched: .*{said}.*; engine=loop$"):
        decided(job(model, engine="batched"), 1)
    made = decided(job(model, deterministic=False), 1)
    assert (made.job.method.engine, said in made.told[0]) == ("loop", True)


def test_a_loss_of_ones_own_that_is_one_number_is_refused_when_it_is_called() -> None:
    made = worker(loss=lambda logits, y: 1.0 * functional.cross_entropy(logits, y))
    with pytest.raises(UnfitError, match="one number a batch"):
        next(Batched(made).run_all(made.flat.bundle(), (0, 1), TASK))


class Clock:
    """Seconds that rise by the next of `steps` at each call."""

    def __init__(self, loop: float, together: float) -> None:
        self.now, self.steps, self.calls = 0.0, (loop, together, 0.0), -1

    def __call__(self) -> float:
        if self.calls >= 0:
            self.now += self.steps[self.calls % 3]
        self.calls += 1
        return self.now


def test_the_choice_that_hangs_on_a_clock_is_made_once_and_only_where_no_bits_are_promised() -> None:
    quick, slow = Clock(0.010, 0.002), Clock(0.010, 0.012)
    loose = job(deterministic=False)
    made = decided(loose, 2, clock=quick)
    assert made.job.method.engine == "batched"
    assert made.told[0].startswith(
        "a task of 2 clients takes 10.0 ms by the loop and 2.0 ms together (0.20); one client's delta is "
    )
    assert decided(made.job, 2, clock=slow).job.method.engine == "batched"  # as config.toml says
    made = decided(loose, 1, clock=slow)
    assert (made.job.method.engine, "does not pay; engine=loop" in made.told[0]) == ("loop", True)
    assert decided(job(), 1, clock=quick).job.method.engine == "auto"  # an actor takes the loop
    assert decided(job(), 1, clock=quick).told == ()
    made = decided(job(), 1, tell=True, clock=quick)
    assert (made.job.method.engine, "engine=loop, whose bits deterministic=true keeps" in made.told[0]) == ("auto", True)


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"norm_bound": 1.0}, "with method=fedavg and these settings a task is one client"),
        ({"method": "fedbuff", "cohort": None}, "with method=fedbuff and these settings a task is one client"),
        ({"cohort": 1}, "a round has one client"),
    ],
    ids=without_addresses,
)
def test_where_no_task_has_several_clients_the_engine_is_refused(settings: dict[str, Any], said: str) -> None:
    given = {name: value for name, value in {"cohort": 4, **settings}.items() if value is not None}
    method = given.pop("method", "fedavg")
    made = Federated(
        lambda: mlp((16, 32, 4)), Population(len(SIZES), examples), method=method, clients=len(SIZES), engine="batched", **given
    )
    with pytest.raises(UserError, match=f"^engine=batched: {said}"):
        decided(made, 1)


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a GPU")
def test_the_graph_engine_without_a_gpu_is_refused_in_one_line() -> None:
    with pytest.raises(UserError, match=r"^engine=graph: this machine has no GPU that torch can use; type engine=auto$"):
        job(engine="graph").worker()


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_the_graph_engine_has_the_loops_deltas() -> None:
    def made() -> GraphedSGD:
        clients = Population(len(SIZES), examples)
        return GraphedSGD(lambda: mlp((16, 32, 4)), clients, functional.cross_entropy, batch_size=10, seed=5)

    loop, graphed = worker(), Graphed(made)
    weights = loop.flat.bundle()
    for client in (*TASK.clients, *TASK.clients):
        one, other = loop.run(weights, client, TASK), graphed.run(weights, client, TASK)
        assert one.bundle is not None
        assert other.bundle is not None
        np.testing.assert_allclose(other.bundle.vector(), one.bundle.vector(), rtol=0, atol=1e-5)
        np.testing.assert_allclose(other.totals["loss"], one.totals["loss"], rtol=1e-4)
        assert other.totals["accuracy"] == one.totals["accuracy"]
