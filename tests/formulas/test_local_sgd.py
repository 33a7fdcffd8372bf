"""Local training against plain torch, term by term, and its promise: the same bits whatever ran before."""

from __future__ import annotations

import copy
import math
import random
from collections.abc import Mapping
from functools import partial

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn.functional import cross_entropy, mse_loss

from shoal.actors.workers import local_sgd
from shoal.actors.workers.local_sgd import Difference, LocalSGD
from shoal.envs.datasets import Examples
from shoal.envs.partition import quantity_skew
from shoal.envs.population import Population
from shoal.nets.evaluation import Evaluation, tallied, tensors
from shoal.nets.flat import FlatModule
from shoal.nets.models import fedavg_cnn, mlp, seeded
from shoal.nets.trying import normalised_twice, tried
from shoal.nets.updates import SGD, AdamW, RMSprop
from shoal.protocol import draws
from shoal.protocol.errors import UserError
from shoal.protocol.exact import PartialSum
from shoal.protocol.layout import Bundle, Layout
from shoal.protocol.work import Task

ROUNDING = {"rtol": 1e-5, "atol": 1e-7}
"""Weights of size 0.1 to 1 after some twenty float32 steps: each rounds to 6e-8 relative. Nothing here sums in another
order than the plain loop, so that this leaves room only for a fused multiply-add on the one side and not on the other."""


def population(clients: int = 5, features: int = 6, classes: int = 3) -> Population:
    rng = np.random.Generator(np.random.Philox(5))
    y = rng.integers(0, classes, size=20 * clients)
    x = rng.normal(size=(len(y), features)) + 2 * np.eye(features)[y]
    return Population.divided(Examples(x, y), quantity_skew(y, clients, seed=0, least=12))


def small() -> nn.Module:
    return seeded(lambda: mlp((6, 8, 3)), 1)


def normalised() -> nn.Module:
    layers = [nn.Linear(6, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Dropout(0.3), nn.Linear(8, 3)]
    return seeded(lambda: nn.Sequential(*layers), seed=1)


def weights_of(module: nn.Module) -> Bundle:
    return FlatModule(copy.deepcopy(module)).bundle()


def shuffles(seed: int, client: int, version: int, count: int, epochs: int) -> list[np.ndarray]:
    rng = np.random.Generator(np.random.Philox(draws.key(seed, "shuffle", client, version)))
    return [rng.permutation(count) for _ in range(epochs)]


def plain_loop(
    module, examples, orders, *, batch_size, mu=0.0, loss=cross_entropy, clip=math.inf, by=torch.optim.SGD, **settings
):
    """An ordinary torch training loop, FedProx's term written as it stands in the paper and left to autograd.
    Returns the trained module and the (loss, size, hits) of each step."""
    module = copy.deepcopy(module).train()
    start = [parameter.detach().clone() for parameter in module.parameters()]
    optimizer = by(module.parameters(), **settings)
    x, y = torch.from_numpy(examples.x), torch.from_numpy(examples.y)
    seen = []
    for order in orders:
        for first in range(0, len(order), batch_size):
            batch = torch.from_numpy(order[first : first + batch_size])
            optimizer.zero_grad()
            logits = module(x[batch])
            its_loss = loss(logits, y[batch])
            distance = sum(((w - w0) ** 2).sum() for w, w0 in zip(module.parameters(), start, strict=True))
            (its_loss + mu / 2 * distance).backward()
            nn.utils.clip_grad_norm_(module.parameters(), clip)
            optimizer.step()
            seen.append((its_loss.item(), len(batch), int((logits.argmax(1) == y[batch]).sum())))
    return module, seen


@pytest.mark.parametrize("momentum", [0.0, 0.9])
@pytest.mark.parametrize("mu", [0.0, 0.7])
def test_local_sgd_is_the_plain_torch_loop(momentum, mu):
    people, module = population(), small()
    worker = LocalSGD(small, people, cross_entropy, local_epochs=3, batch_size=5, lr=0.2, momentum=momentum, mu=mu, seed=11)
    weights = weights_of(module)
    for client in range(people.clients):
        examples = people.examples(client)
        work = worker.run(weights, client, Task(version=4, index=0, clients=(client,)))
        orders = shuffles(11, client, 4, len(examples), 3)
        trained, seen = plain_loop(module, examples, orders, batch_size=5, lr=0.2, momentum=momentum, mu=mu)
        before = dict(module.named_parameters())
        for name, local in trained.named_parameters():
            expected = (local - before[name]).detach().numpy()
            assert np.abs(expected).max() > 1e-3
            assert np.allclose(before[name].detach().numpy() + work.bundle[name], local.detach().numpy(), **ROUNDING), name
        losses = [loss * size for loss, size, _ in seen]
        assert work.totals["loss"] == (pytest.approx(sum(losses), rel=1e-5), 3 * len(examples))
        assert work.totals["accuracy"] == (sum(hits for *_, hits in seen), 3 * len(examples))
        assert work.totals["examples"] == (len(examples), 1)
        assert work.weight == len(examples)


@pytest.mark.parametrize(
    ("ours", "theirs"),
    [
        ({"optimizer": "sgd", "weight_decay": 0.1}, {"by": torch.optim.SGD, "weight_decay": 0.1}),
        ({"optimizer": "momentum", "weight_decay": 0.1}, {"by": torch.optim.SGD, "momentum": 0.9, "weight_decay": 0.1}),
        ({"optimizer": SGD(0.02, 0.5, 0.1)}, {"by": torch.optim.SGD, "momentum": 0.5, "weight_decay": 0.1}),
        ({"optimizer": "adam", "weight_decay": 0.1}, {"by": torch.optim.Adam, "weight_decay": 0.1}),
        ({"optimizer": AdamW, "weight_decay": 0.3}, {"by": torch.optim.AdamW, "weight_decay": 0.3}),
        ({"optimizer": "rmsprop", "momentum": 0.5}, {"by": torch.optim.RMSprop, "momentum": 0.5}),
        ({"optimizer": "adagrad"}, {"by": torch.optim.Adagrad}),
        ({"clip_grad_norm": 0.2, "mu": 0.5}, {"clip": 0.2, "mu": 0.5}),
        ({"clip_grad_norm": 0.2, "momentum": 0.9, "weight_decay": 0.1}, {"clip": 0.2, "momentum": 0.9, "weight_decay": 0.1}),
    ],
    ids=str,
)
def test_each_optimizer_is_torchs_in_the_plain_loop(ours, theirs):
    people, module = population(), small()
    worker = LocalSGD(small, people, cross_entropy, batch_size=5, lr=0.02, seed=11, **ours)
    for client in range(people.clients):
        examples = people.examples(client)
        work = worker.run(weights_of(module), client, Task(version=4, index=0, clients=(client,)))
        trained, _ = plain_loop(module, examples, shuffles(11, client, 4, len(examples), 1), batch_size=5, lr=0.02, **theirs)
        before = dict(module.named_parameters())
        for name, local in trained.named_parameters():
            # Adam and its kin divide by roots of small squares: where a gradient is near 0, its rounding shows
            found = before[name].detach().numpy() + work.bundle[name]
            assert np.allclose(found, local.detach().numpy(), rtol=1e-5, atol=1e-6), name


def test_sgd_in_place_is_the_same_formula():
    class Other(SGD):
        """No subclass is taken for SGD itself: it may change the formula."""

    people, weights, task = population(), weights_of(small()), Task(0, 0, (1,))
    settings = {"lr": 0.2, "momentum": 0.9, "weight_decay": 0.1}
    found = [LocalSGD(small, people, cross_entropy, optimizer=kind, **settings) for kind in (SGD, Other)]
    assert [worker.sgd is None for worker in found] == [False, True]
    one, other = (worker.run(weights, 1, task).bundle.vector() for worker in found)
    assert np.allclose(one, other, **ROUNDING)


def test_a_schedule_scales_the_rate_of_a_version():
    people, weights = population(), weights_of(small())
    for optimizer in ("sgd", "adam"):
        halved = LocalSGD(small, people, cross_entropy, optimizer=optimizer, lr_schedule=lambda version: 0.5**version)
        twin = LocalSGD(small, people, cross_entropy, optimizer=optimizer, lr=0.1 / 4)
        one, other = (worker.run(weights, 0, Task(2, 0, (0,))).bundle.vector() for worker in (halved, twin))
        assert np.allclose(one, other, **ROUNDING)


def test_an_update_of_ones_own_may_keep_the_memory_that_it_was_given():
    class Delayed:
        """Goes by the gradient and the weights of the step before."""

        moments: Mapping[str, float] = {"delta": 0.0, "w": 0.0}

        def __call__(self, w, delta, t, *moments):
            return 0.1 * moments[0] + (0.01 * (w - moments[1]) if t > 1 else 0 * w), delta, w

    people, module = population(), small()
    worker = LocalSGD(small, people, cross_entropy, batch_size=4, optimizer=Delayed())
    first = worker.run(weights_of(module), 1, Task(3, 0, (1,))).bundle.vector()
    worker.run(weights_of(module), 0, Task(3, 0, (0,)))
    assert np.array_equal(first, worker.run(weights_of(module), 1, Task(3, 0, (1,))).bundle.vector())
    w = torch.from_numpy(weights_of(module).vector()[: worker.flat.trainable].copy())
    begun, last, old = w.clone(), torch.zeros_like(w), torch.zeros_like(w)
    examples = people.examples(1)
    [order] = shuffles(0, 1, 3, len(examples), 1)
    twin = copy.deepcopy(module)
    for t, batch in enumerate(np.split(order, range(4, len(order), 4)), 1):
        nn.utils.vector_to_parameters(w, twin.parameters())
        twin.zero_grad()
        cross_entropy(twin(torch.from_numpy(examples.x[batch])), torch.from_numpy(examples.y[batch])).backward()
        gradient = torch.cat([p.grad.flatten() for p in twin.parameters()])
        w, last, old = w + 0.1 * last + (0.01 * (w - old) if t > 1 else 0 * w), -gradient, w
    assert np.allclose(first, (w - begun).numpy(), **ROUNDING)


def test_steps_in_place_of_epochs_go_on_over_passes():
    people, weights = population(), weights_of(small())
    n = len(people.examples(0))
    passes = LocalSGD(small, people, cross_entropy, local_epochs=2, batch_size=5)
    for extra in (-1, 0, 1):
        steps = LocalSGD(small, people, cross_entropy, local_steps=2 * math.ceil(n / 5) + extra, batch_size=5)
        one, other = (worker.run(weights, 0, Task(0, 0, (0,))) for worker in (passes, steps))
        assert (one.bundle.sha256() == other.bundle.sha256()) == (extra == 0)
        assert other.totals["loss"][1] == {-1: 2 * n - (n % 5 or 5), 0: 2 * n, 1: 2 * n + 5}[extra]
        assert other.totals["examples"] == (n, 1)


def test_the_last_batch_is_left_out_unless_it_is_the_only_one():
    people, weights = population(), weights_of(small())
    n = len(people.examples(0))
    for size in (5, 7, n, n + 1, 1000):
        dropping = LocalSGD(small, people, cross_entropy, batch_size=size, drop_last=True, local_epochs=3)
        totals = dropping.run(weights, 0, Task(0, 0, (0,))).totals
        assert totals["loss"][1] == 3 * (n - n % size if size <= n else n)
    two = LocalSGD(small, people, cross_entropy, batch_size=5, drop_last=True, local_steps=n // 5 + 1)
    assert two.run(weights, 0, Task(0, 0, (0,))).totals["loss"][1] == 5 * (n // 5 + 1)


each_loss = partial(cross_entropy, reduction="none")


def test_a_loss_an_example_is_its_mean():
    people, weights, task = population(), weights_of(small()), Task(0, 0, (0,))
    one, other = (LocalSGD(small, people, loss).run(weights, 0, task) for loss in (cross_entropy, each_loss))
    assert np.allclose(one.bundle.vector(), other.bundle.vector(), **ROUNDING)
    assert other.totals["loss"] == (pytest.approx(one.totals["loss"][0], rel=1e-6), one.totals["loss"][1])


def test_an_example_of_weight_two_is_two_examples_and_one_of_weight_zero_is_none():
    examples = population().examples(0)
    weight = np.arange(len(examples)) % 3
    twice = np.repeat(np.arange(len(examples)), weight)
    weighted = Population(1, lambda client: Examples(examples.x, examples.y, weight))
    repeated = Population(1, lambda client: examples[twice])
    found = [
        LocalSGD(small, people, each_loss, batch_size=1000, local_epochs=3).run(weights_of(small()), 0, Task(0, 0, (0,)))
        for people in (weighted, repeated)
    ]
    assert np.allclose(found[0].bundle.vector(), found[1].bundle.vector(), rtol=1e-5, atol=1e-6)
    assert found[0].totals["loss"] == (pytest.approx(found[1].totals["loss"][0], rel=1e-5), 3 * weight.sum())
    assert (found[0].weight, found[1].weight) == (len(examples), len(twice))
    one, other = (Evaluation(small, people.examples(0), each_loss)(weights_of(small())) for people in (weighted, repeated))
    assert one["loss"] == pytest.approx(other["loss"], rel=1e-5)


def test_a_batch_whose_weights_are_all_zero_changes_nothing():
    people = Population(1, lambda client: Examples(np.ones((4, 6)), np.zeros(4, int), np.zeros(4)))
    work = LocalSGD(small, people, each_loss).run(weights_of(small()), 0, Task(0, 0, (0,)))
    assert (work.bundle.vector() == 0).all()
    assert work.totals["loss"] == (0, 0)
    assert set(Evaluation(small, people.examples(0), each_loss)(weights_of(small()))) == {"accuracy", "examples"}


def test_a_loss_of_another_shape_is_refused_in_one_line():
    people, weights, task = population(), weights_of(small()), Task(0, 0, (0,))
    with pytest.raises(UserError, match=r"^loss gave shape \[10, 3\] for y \[10\]: expected one number an example, \[10\], or"):
        LocalSGD(small, people, lambda logits, y: logits).run(weights, 0, task)
    weighted = Population(1, lambda client: Examples(np.ones((4, 6)), np.zeros(4, int), np.ones(4)))
    with pytest.raises(UserError, match=r"^loss gave shape \[\] for y \[4\]: expected one .* \[4\], as they have weights$"):
        LocalSGD(small, weighted, nn.CrossEntropyLoss()).run(weights, 0, task)


def test_torchs_own_losses_are_asked_for_one_an_example_where_examples_have_weights():
    examples, task = population().examples(0), Task(0, 0, (0,))
    people = Population(1, lambda client: Examples(examples.x, examples.y, np.arange(len(examples)) % 3))
    one, other = (LocalSGD(small, people, loss).run(weights_of(small()), 0, task) for loss in (cross_entropy, each_loss))
    assert one.bundle.sha256() == other.bundle.sha256()
    found = [Evaluation(small, people.examples(0), loss)(weights_of(small())) for loss in (cross_entropy, each_loss)]
    assert found[0] == found[1]


def macro_f1(logits, y):
    guess = logits.argmax(1)
    hits = [(2 * ((guess == c) & (y == c)).sum(), (guess == c).sum() + (y == c).sum()) for c in range(3)]
    return sum(two / both if both else 0.0 for two, both in hits) / 3


def test_metrics_are_of_all_of_a_clients_examples_and_of_all_that_is_held_out():
    from sklearn.metrics import f1_score

    people, module = population(), small()
    metrics = {"f1/macro": macro_f1, "rows": lambda logits, y: len(logits)}
    examples = people.examples(2)
    logits = module(torch.from_numpy(examples.x))
    expected = f1_score(examples.y, logits.argmax(1), average="macro")
    n = len(examples)
    totals = (
        LocalSGD(small, people, cross_entropy, metrics=metrics).run(weights_of(module), 2, Task(0, 0, (2,), "evaluate")).totals
    )
    assert totals["f1/macro"] == (pytest.approx(expected * n), n)
    assert totals["rows"] == (n * n, n)
    for batch_size in (3, 1000):
        found = Evaluation(small, examples, cross_entropy, batch_size, metrics=metrics)(weights_of(module))
        assert (found["f1/macro"], found["rows"]) == (pytest.approx(expected), n)


def test_a_metric_that_is_not_defined_for_a_client_is_left_out_of_its_totals():
    people, task = population(), Task(0, 0, (2,), "evaluate")
    worker = LocalSGD(small, people, cross_entropy, metrics={"auc": lambda logits, y: math.nan})
    assert set(worker.run(weights_of(small()), 2, task).totals) == {"loss", "accuracy"}


@pytest.mark.parametrize(
    "name",
    [
        "loss",
        "accuracy",
        "examples",
        "steps",
        "lag",
        "seconds",
        "actors",
        "contributions",
        "",
        "f 1",
        "f1\n",
        "eval/f1",
        "f" * 65,
        3,
    ],
)
def test_a_metric_of_a_name_that_means_something_else_is_refused(name):
    with pytest.raises(UserError, match=r"^metric .*: expected a name of letters"):
        LocalSGD(small, population(), cross_entropy, metrics={name: macro_f1})
    with pytest.raises(UserError, match=r"^metric "):
        Evaluation(small, population().examples(0), cross_entropy, metrics={name: macro_f1})


@pytest.mark.parametrize(
    ("gives", "found"), [(lambda logits, y: logits.argmax(1) == y, r"shape \[\d+\]"), (lambda logits, y: None, "NoneType")]
)
def test_a_metric_that_is_no_number_is_refused_before_anything_is_trained(gives, found):
    with pytest.raises(UserError, match=rf"^metric mine gave {found} for logits \[\d+, 3\] and y \[\d+\]: expected one number"):
        Evaluation(small, population().examples(0), cross_entropy, metrics={"mine": gives})


def test_the_proximal_term_pulls_towards_the_global_weights():
    people, weights = population(), weights_of(small())
    task = Task(0, 0, (0,))
    distances = [
        np.linalg.norm(
            LocalSGD(small, people, cross_entropy, local_epochs=20, lr=0.1, mu=mu).run(weights, 0, task).bundle.vector()
        )
        for mu in (0.0, 0.1, 1.0)
    ]
    assert distances[0] > distances[1] > distances[2] > 0


def test_the_delta_of_a_batch_norm_model_holds_its_statistics_and_counters():
    """No dropout mask can be compared here but the plain loop's own, so the same generator is set to the same place."""
    people, module = population(), normalised()
    examples = people.examples(1)
    count = len(examples) - len(examples) % 4  # batch normalisation cannot take a last batch of one
    people = Population(2, lambda client: examples[:count])
    worker = LocalSGD(normalised, people, cross_entropy, local_epochs=2, batch_size=4, seed=2)
    delta = worker.run(weights_of(module), 1, Task(7, 0, (1,))).bundle
    torch.default_generator.manual_seed(draws.key(2, "torch", 1, 7) % 2**63)
    trained, _ = plain_loop(module, examples[:count], shuffles(2, 1, 7, count, 2), batch_size=4, lr=0.1)
    assert delta["1.num_batches_tracked"] == 2 * count / 4
    before = module.state_dict()
    for name, local in trained.state_dict().items():
        assert np.allclose(before[name].numpy() + delta[name], local.numpy(), **ROUNDING), name


@pytest.mark.parametrize("kind", ["train", "evaluate"])
@pytest.mark.parametrize("optimizer", ["sgd", "adam", RMSprop(0.01, momentum=0.5)], ids=str)
def test_the_result_depends_on_nothing_that_ran_before(kind, optimizer):
    people = Population(5, lambda client: population().examples(client)[:12])
    weights, task = weights_of(normalised()), Task(3, 0, (2,), kind)
    settings = {"local_epochs": 2, "batch_size": 4, "mu": 0.1, "seed": 6, "optimizer": optimizer, "clip_grad_norm": 0.5}
    settings |= {"momentum": 0.9} if optimizer == "sgd" else {}
    alone = LocalSGD(normalised, people, cross_entropy, **settings).run(weights, 2, task)
    busy = LocalSGD(normalised, people, cross_entropy, kept_bytes=1000, **settings)
    torch.rand(7)
    for client in (0, 2, 4):
        busy.run(weights, client, Task(1, 0, (client,)))
    busy.run(weights, 3, Task(1, 0, (3,), "evaluate"))
    after = busy.run(weights, 2, task)
    assert after.totals == alone.totals
    assert kind == "evaluate" or after.bundle.sha256() == alone.bundle.sha256()


def test_a_run_that_raised_leaves_nothing_behind():
    people, weights, task = population(), weights_of(small()), Task(3, 0, (2,))
    calls = []

    def failing_once(logits: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        calls.append(y)
        if len(calls) == 3:
            raise RuntimeError("out of memory")
        return cross_entropy(logits, y)

    worker = LocalSGD(small, people, failing_once, batch_size=4, momentum=0.9)
    with pytest.raises(RuntimeError, match="out of memory"):
        worker.run(weights, 2, task)
    expected = LocalSGD(small, people, cross_entropy, batch_size=4, momentum=0.9).run(weights, 2, task)
    assert worker.run(weights, 2, task).bundle.sha256() == expected.bundle.sha256()


def test_clients_versions_and_seeds_shuffle_differently():
    examples = population().examples(0)
    people, weights = Population(2, lambda client: examples), weights_of(small())

    def digest(seed: int, client: int, version: int) -> str:
        worker = LocalSGD(small, people, cross_entropy, batch_size=4, seed=seed)
        return worker.run(weights, client, Task(version, 0, (client,))).bundle.sha256()

    assert len({digest(0, 0, 0), digest(1, 0, 0), digest(0, 1, 0), digest(0, 0, 1)}) == 4


def test_read_only_weights_are_read_and_left_as_they_were():
    weights = weights_of(small())
    frame = bytes(weights.data)
    people, task = population(), Task(0, 0, (0,))
    from_frame = LocalSGD(small, people, cross_entropy).run(Bundle.of_buffer(weights.layout, frame), 0, task)
    assert frame == bytes(weights.data)
    assert from_frame.bundle.sha256() == LocalSGD(small, people, cross_entropy).run(weights, 0, task).bundle.sha256()


def test_frozen_parameters_stay_and_other_dtypes_are_differences():
    class Odd(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear = nn.Linear(6, 3)
            self.frozen = nn.Parameter(torch.ones(3), requires_grad=False)
            self.register_buffer("steps", torch.tensor([2**62, 5]))
            self.register_buffer("flags", torch.tensor([True, False]))
            self.register_buffer("coarse", torch.tensor([1.5], dtype=torch.bfloat16))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            self.steps.add_(1)
            self.flags.fill_(True)
            self.coarse.mul_(2)
            return self.linear(x) * self.frozen

    delta = (
        LocalSGD(Odd, population(), cross_entropy, batch_size=1000).run(weights_of(seeded(Odd, 0)), 0, Task(0, 0, (0,))).bundle
    )
    assert np.abs(delta["linear.weight"]).max() > 0
    assert (delta["frozen"] == 0).all()
    assert delta["steps"].tolist() == [1, 1]
    assert delta["flags"].tolist() == [True, True]  # of one byte: values
    assert (delta["coarse"].astype(np.uint32) << 16).view(np.float32) == 1.5


def test_a_buffer_replaced_and_not_changed_in_place_is_refused():
    class Replacing(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear = nn.Linear(6, 3)
            self.register_buffer("seen", torch.zeros(1))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            self.seen = self.seen + len(x)
            return self.linear(x)

    worker = LocalSGD(Replacing, population(), cross_entropy)
    with pytest.raises(ValueError, match="buffer 'seen' was replaced"):
        worker.run(weights_of(seeded(Replacing, 0)), 0, Task(0, 0, (0,)))


def test_a_loss_that_is_not_finite_shows_in_the_totals():
    people = population()
    work = LocalSGD(small, people, cross_entropy, local_epochs=5, lr=1e30).run(weights_of(small()), 0, Task(0, 0, (0,)))
    assert not math.isfinite(work.totals["loss"][0])
    assert work.totals["loss"][1] == 5 * len(people.examples(0))
    assert not np.isfinite(work.bundle.vector()).all()


def test_evaluation_is_the_mean_over_examples_whatever_the_batch_size():
    people, module = population(), small()
    examples = people.examples(0)
    logits = module(torch.from_numpy(examples.x)).detach()
    y = torch.from_numpy(examples.y)
    loss, accuracy = float(cross_entropy(logits, y)), float((logits.argmax(1) == y).float().mean())
    for batch_size in (1, 7, 1000):
        found = Evaluation(small, examples, cross_entropy, batch_size)(weights_of(module))
        # sums of 1 or 7 losses round otherwise than one mean over all: a few parts in 1e7
        assert found == {
            "loss": pytest.approx(loss, rel=1e-5),
            "accuracy": pytest.approx(accuracy),
            "examples": len(examples),
        }
    work = LocalSGD(small, people, cross_entropy).run(weights_of(module), 0, Task(0, 0, (0,), "evaluate"))
    assert work.bundle is None
    assert work.totals["loss"] == (pytest.approx(loss * len(y), rel=1e-5), len(y))
    assert work.totals["accuracy"] == (pytest.approx(accuracy * len(y)), len(y))


def test_evaluation_leaves_batch_statistics_alone():
    people, weights = population(), weights_of(normalised())
    evaluation = Evaluation(normalised, people.examples(0), cross_entropy)
    assert evaluation(weights) == evaluation(weights)
    assert evaluation.flat.bundle().sha256() == weights.sha256()


def test_a_regression_has_a_loss_and_no_accuracy():
    people = Population(1, lambda client: Examples(np.ones((8, 6)), np.zeros((8, 3))))
    weights = weights_of(small())
    assert set(LocalSGD(small, people, mse_loss).run(weights, 0, Task(0, 0, (0,))).totals) == {"loss", "examples"}
    assert set(Evaluation(small, people.examples(0), mse_loss)(weights)) == {"loss", "examples"}


def test_users_count_alike():
    people, weights = population(), weights_of(small())
    worker = LocalSGD(small, people, cross_entropy, weighting="users")
    assert [worker.run(weights, client, Task(0, 0, (client,))).weight for client in range(5)] == [1.0] * 5


@pytest.mark.parametrize(
    "wrong",
    [
        {"local_epochs": 0},
        {"batch_size": 0},
        {"lr": 0.0},
        {"lr": math.nan},
        {"momentum": 1.0},
        {"mu": -0.1},
        {"mu": math.inf},
        {"local_steps": -1},
        {"clip_grad_norm": -1.0},
        {"weight_decay": -0.1},
        {"weighting": "sample"},
    ],
)
def test_a_setting_out_of_range_is_named(wrong):
    ((name, value),) = wrong.items()
    with pytest.raises(UserError) as refused:
        LocalSGD(small, population(), cross_entropy, **wrong)
    assert str(refused.value).startswith(f"{name}={value!r}: must be ")


@pytest.mark.parametrize("factor", [-1.0, math.nan, math.inf])
def test_a_schedule_that_gives_no_factor_is_refused_at_once(factor):
    with pytest.raises(UserError, match=rf"lr_schedule gave {factor} for version 0: must be a number from 0"):
        LocalSGD(small, population(), cross_entropy, lr_schedule=lambda version: factor)


def test_a_model_or_client_that_cannot_be_trained_is_refused():
    with pytest.raises(UserError, match=r"parameter '0.weight' is torch.float64"):
        LocalSGD(lambda: small().double(), population(), cross_entropy)
    with pytest.raises(UserError, match="no trainable parameter"):
        LocalSGD(nn.ReLU, population(), cross_entropy)
    nobody = Population(3, lambda client: Examples(np.zeros((0, 6)), np.zeros(0, dtype=np.int64)))
    with pytest.raises(UserError, match="client 2 has no examples"):
        LocalSGD(small, nobody, cross_entropy).run(weights_of(small()), 2, Task(0, 0, (2,)))
    with pytest.raises(ValueError, match="task kind 'trial'"):
        LocalSGD(small, population(), cross_entropy).run(weights_of(small()), 2, Task(0, 0, (2,), "trial"))


def test_the_cnn_has_the_papers_number_of_parameters():
    cnn = fedavg_cnn()
    assert sum(parameter.numel() for parameter in cnn.parameters()) == 1_663_370
    assert cnn(torch.zeros(2, 1, 28, 28)).shape == (2, 10)


def test_a_model_is_a_function_of_its_seed_and_leaves_the_generator_alone():
    torch.default_generator.manual_seed(3)
    first = weights_of(seeded(mlp, 0)).sha256()
    drawn = torch.rand(3)
    assert first == weights_of(seeded(mlp, 0)).sha256()
    assert first != weights_of(seeded(mlp, 1)).sha256()
    torch.default_generator.manual_seed(3)
    assert torch.equal(torch.rand(3), drawn)


@pytest.mark.parametrize("name", ["local_epochs", "local_steps", "batch_size"])
def test_numbers_of_steps_and_examples_are_whole(name):
    for value in (1.5, 4.0):
        with pytest.raises(UserError, match=f"{name}={value}: must be a whole number"):
            LocalSGD(small, population(), cross_entropy, **{name: value})
    LocalSGD(small, population(), cross_entropy, **{name: np.int64(4)})


def test_a_norm_that_the_factory_froze_stays_frozen_after_an_evaluation():
    def frozen() -> nn.Module:
        module = normalised()
        module[1].eval()
        return module

    people, weights = population(), weights_of(frozen())
    worker = LocalSGD(frozen, people, cross_entropy, batch_size=7, seed=2)
    first = worker.run(weights, 3, Task(1, 0, (3,))).bundle
    assert not first["1.num_batches_tracked"].any()
    worker.run(weights, 2, Task(1, 1, (2,), "evaluate"))
    assert worker.run(weights, 3, Task(1, 0, (3,))).bundle.sha256() == first.sha256()


def test_an_evaluation_leaves_every_mode_as_it_found_it():
    class Merged(nn.Sequential):
        """Changes its weights with its mode, as low-rank adapters do."""

        def train(self, mode: bool = True) -> nn.Module:
            if mode != self.training:
                self[0].weight.data.mul_(0.5 if mode else 2.0)
            return super().train(mode)

    module = Merged(nn.Linear(6, 3), nn.Sequential(nn.Dropout(0.4)))
    module[1][0].eval()
    before = module[0].weight.detach().clone()
    tallied(module, tensors(population().examples(0), "cpu"), cross_entropy, 9)
    assert [part.training for part in module.modules()] == [True, True, True, False]
    assert torch.equal(module[0].weight, before)


def test_a_module_in_evaluation_mode_as_a_whole_is_trained_in_training_mode():
    people, weights = population(), weights_of(normalised())
    one, other = (LocalSGD(f, people, cross_entropy) for f in (normalised, lambda: normalised().eval()))
    found = [worker.run(weights, 0, Task(0, 0, (0,))).bundle.sha256() for worker in (one, other)]
    assert found[0] == found[1]


def test_a_metric_is_tried_on_every_class_and_its_own_fault_is_one_line():
    def both(logits, y):
        if len(set(y.tolist())) < 2:
            raise IndexError("one class only")
        return 0.25

    rng = np.random.default_rng(4)
    x, y = rng.normal(size=(30, 6)), np.repeat([0, 2], 15)
    found = Evaluation(small, Examples(x, y), cross_entropy, batch_size=7, metrics={"both": both})(weights_of(small()))
    assert found["both"] == 0.25
    with pytest.raises(
        UserError, match=r"^metric both raised IndexError\('one class only'\) for logits \[15, 3\] and y \[15\]: "
    ):
        Evaluation(small, Examples(x[:15], y[:15]), cross_entropy, batch_size=7, metrics={"both": both})


def test_each_visit_of_one_version_draws_anew_and_from_all_generators():
    class Noisy(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear = nn.Linear(6, 3)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.linear(x * float(np.random.rand()) + random.random())

    weights = weights_of(seeded(Noisy, 0))

    def made(visit: int | None, version: int = 4) -> str:
        worker = LocalSGD(Noisy, population(), cross_entropy, batch_size=2, seed=5)
        task = Task(version, 9, (1,), words={} if visit is None else {"visit": visit})
        return worker.run(weights, 1, task).bundle.sha256()

    tasks = [(None, 4), (None, 5), (0, 4), (1, 4), (1, 5)]
    first = [made(*task) for task in tasks]
    random.random(), np.random.rand(), torch.rand(())
    assert [made(*task) for task in tasks] == first
    assert len(set(first)) == len(tasks)


class Probed(nn.Module):
    """A frozen body of 42 numbers with running statistics, and a trained head. grows: a task changes the body itself."""

    def __init__(self, grows: bool = False) -> None:
        super().__init__()
        self.body, self.norm, self.head = nn.Linear(6, 6).requires_grad_(False), nn.BatchNorm1d(6), nn.Linear(6, 3)
        self.norm.requires_grad_(False)
        self.grows = grows

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if self.grows and self.training:
            self.body.weight.mul_(2)
        return self.head(self.norm(self.body(x)))


def test_a_delta_lacks_frozen_parameters_and_has_the_statistics_that_training_moves():
    weights = weights_of(seeded(Probed, 0))
    whole = LocalSGD(Probed, population(), cross_entropy).run(weights, 0, Task(0, 0, (0,))).bundle
    thin = LocalSGD(Probed, population(), cross_entropy, thin=True).run(weights, 0, Task(0, 0, (0,))).bundle
    moving = {"head.weight", "head.bias", "norm.running_mean", "norm.running_var", "norm.num_batches_tracked"}
    assert thin.layout.by_name.keys() == moving
    assert whole.layout.by_name.keys() == weights.layout.by_name.keys() > moving
    assert all((thin[name] == whole[name]).all() for name in moving)
    assert np.abs(thin["norm.running_mean"]).max() > 0


def test_a_frozen_parameter_that_a_task_changed_is_in_the_delta():
    worker = LocalSGD(lambda: Probed(grows=True), population(), cross_entropy, local_steps=1, thin=True)
    weights = weights_of(seeded(Probed, 0))
    np.testing.assert_array_equal(worker.run(weights, 0, Task(0, 0, (0,))).bundle["body.weight"], weights["body.weight"])


@pytest.mark.parametrize("dtype", ["u1", "f2", "?", "i4"])
def test_data_of_few_bytes_is_kept_as_it_is_and_trains_to_the_same_bits(dtype):
    class Scaled(nn.Linear):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            assert x.dtype == (torch.int64 if dtype in ("u1", "i4") else torch.float32)
            return super().forward(x.float() / 3)

    rng = np.random.default_rng(5)
    x, y = rng.integers(0, 2, (30, 6)).astype(dtype), rng.integers(0, 3, 30)
    wide = x.astype(np.int64 if dtype in ("u1", "i4") else np.float32)
    found = []
    for given in (x, wide):
        worker = LocalSGD(lambda: Scaled(6, 3), Population(1, lambda client, given=given: Examples(given, y)), cross_entropy)
        found += [worker.run(weights_of(seeded(lambda: Scaled(6, 3), 0)), 0, Task(0, 0, (0,))).bundle.sha256()]
        assert worker.data.of(0)[0].element_size() == given.itemsize
        worker.run(weights_of(seeded(lambda: Scaled(6, 3), 0)), 0, Task(0, 0, (0,), "evaluate"))
        tried(lambda: Scaled(6, 3), Examples(given, y), cross_entropy, Examples(given, y))
    assert found[0] == found[1]


def test_pictures_with_a_scale_train_and_score_as_scaled_ones_do():
    rng = np.random.default_rng(5)
    x, y = rng.integers(0, 256, (60, 1, 4, 4), np.uint8), rng.integers(0, 3, 60)
    weight = rng.random(60, np.float32)

    def of(examples: Examples):
        population = Population.divided(examples[:40], np.split(np.arange(40), 2), examples[40:])
        made = LocalSGD(model, population, cross_entropy, batch_size=7)
        weights = made.flat.bundle()
        work = [
            made.run(weights, client, Task(0, client, (client,), kind)) for client in (0, 1) for kind in ("train", "evaluate")
        ]
        evaluation = Evaluation(model, examples[40:], cross_entropy, batch_size=6)(weights)
        return [w.totals for w in work], [w.bundle.sha256() for w in work if w.bundle], evaluation, made.data.kept[0][0].dtype

    def model():
        return nn.Sequential(nn.Flatten(), nn.Linear(16, 3))

    for weights in (None, weight):
        *kept, kept_dtype = of(Examples(x, y, weights, scale=100))
        *scaled, scaled_dtype = of(Examples(x.astype(np.float32) / 100, y, weights))
        assert kept == scaled
        assert (kept_dtype, scaled_dtype) == (torch.uint8, torch.float32)
    with pytest.raises(UserError, match=r"scale=0: must be a number above 0"):
        Examples(x, y, scale=0)


class Softened(nn.Sequential):
    def __init__(self, *after: nn.Module) -> None:
        super().__init__(nn.Linear(6, 3), *after)


@pytest.mark.parametrize(
    ("after", "loss", "twice"),
    [
        ([nn.Softmax(1)], cross_entropy, True),
        ([nn.Softmax(1)], nn.CrossEntropyLoss(label_smoothing=0.1), True),
        ([nn.Softmax(1)], lambda logits, y: 2 * cross_entropy(input=logits, target=y), True),
        ([], cross_entropy, False),
        ([nn.Sigmoid()], cross_entropy, False),
        ([nn.Softmax(1)], lambda p, y: nn.functional.nll_loss(p.log(), y), False),
        ([nn.Softmax(1)], lambda p, y: cross_entropy(p.log(), y), False),
        ([nn.Linear(3, 2), nn.Softmax(1), nn.Flatten(0)], cross_entropy, False),  # raises
    ],
)
def test_a_softmax_before_cross_entropy_is_noticed_however_the_loss_calls_it(after, loss, twice):
    rng = np.random.default_rng(8)
    examples = Examples(rng.normal(size=(9, 6)).astype(np.float32), rng.integers(0, 3, 9))
    assert normalised_twice(lambda: Softened(*after), examples, loss) is twice


def test_a_clients_order_does_not_hang_on_who_else_is_in_its_task_nor_on_who_went_before():
    weights, task = weights_of(small()), Task(3, 0, (0, 1, 2))
    alone = {
        client: LocalSGD(small, population(), cross_entropy, batch_size=2).run(weights, client, Task(3, 1, (client,)))
        for client in (0, 1, 2)
    }
    worker = LocalSGD(small, population(), cross_entropy, batch_size=2)
    for client in (2, 0, 0, 1, 2):  # one that is tried again, too
        again = worker.run(weights, client, task)
        assert again.bundle.sha256() == alone[client].bundle.sha256()
        assert again.totals == alone[client].totals


class Replacing(nn.Module):
    """It counts its calls in a buffer: in place, or in a new tensor, or in a buffer that it makes when it is first called."""

    def __init__(self, way):
        super().__init__()
        self.linear, self.way = nn.Linear(6, 3), way
        if way != "new":
            self.register_buffer("count", torch.zeros(2))

    def forward(self, x):
        match self.way:
            case "in place":
                self.count += 1
            case "replaced":
                self.count = self.count + 1
            case "new":
                self.register_buffer("count", torch.ones(2))
        return self.linear(x)


@pytest.mark.parametrize("way", ["in place", "replaced", "new"])
def test_a_buffer_that_is_not_changed_in_place_is_refused(way):
    def factory():
        return Replacing(way)

    worker = LocalSGD(factory, population(), cross_entropy)
    weights, task = weights_of(factory()), Task(0, 0, (1,))
    if way == "in place":
        assert worker.run(weights, 1, task).bundle["count"].min() > 0
        return
    with pytest.raises(ValueError, match=r"^buffer 'count' was replaced, not changed: write self\.count\.copy_\(\.\.\.\) in"):
        worker.run(weights, 1, task)


def picture_model() -> nn.Module:
    layers = [nn.Unflatten(1, (1, 3, 2)), nn.Conv2d(1, 5, 2), nn.Tanh(), nn.Flatten(), nn.Linear(10, 3)]
    return seeded(lambda: nn.Sequential(*layers), seed=2)


def test_a_step_that_adds_gradients_where_they_lie_has_the_bits_of_one_by_the_flat_gradient():
    weights, task = weights_of(picture_model()), Task(0, 0, (0, 1, 2, 3))
    straight, flat = (LocalSGD(picture_model, population(), cross_entropy, batch_size=5, local_epochs=2) for _ in range(2))
    flat.straight = None
    for client in task.clients:
        one, other = straight.run(weights, client, task), flat.run(weights, client, task)
        assert one.bundle.sha256() == other.bundle.sha256()
        assert one.totals == other.totals
    assert straight.straight  # it was looked at, and held
    assert flat.straight is None


def test_weights_of_minus_zero_go_by_the_flat_gradient_for_a_gradient_may_be_minus_zero_too():
    weights = weights_of(picture_model())
    weights["1.weight"][...] = -0.0  # of the weights' 0.0 and -0.0 the sign alone tells which way was taken
    worker = LocalSGD(picture_model, population(), cross_entropy)
    worker.flat.read(weights)
    assert not worker._goes_straight(Task(1, 0, (0,)))
    weights["1.weight"][...] = 0.0
    worker.flat.read(weights)
    assert not worker._goes_straight(worker.looked_at)  # a task's clients begin alike, so it is asked once a task
    assert worker._goes_straight(Task(2, 0, (0,)))


def test_gradients_are_views_of_the_flat_one_again_after_a_task_that_raised():
    worker = LocalSGD(picture_model, population(), lambda logits, y: logits[9_999, 0])
    with pytest.raises(IndexError):
        worker.run(weights_of(picture_model()), 0, Task(0, 0, (0,)))
    assert all(parameter.grad is into for parameter, _, into in worker.flat.trained_parts)


@pytest.mark.parametrize(("model", "thin"), [(Probed, False), (Probed, True), (picture_model, True), (small, False)])
@pytest.mark.parametrize("exact", [False, True])
def test_deltas_added_as_they_are_made_have_the_bits_of_deltas_made_first(model, thin, exact):
    weights, task = weights_of(seeded(model, 0)), Task(0, 0, (0, 1, 2))
    first, added = (LocalSGD(model, population(), cross_entropy, thin=thin) for _ in range(2))
    one, other = PartialSum(weights.layout, exact), PartialSum(weights.layout, exact)
    works = [first.run(weights, client, task) for client in task.clients]
    for work in works:
        one.add(work.bundle, work.weight)
    assert [(work.weight, work.totals) for work in added.add_all(weights, task.clients, task, other)] == [
        (work.weight, work.totals) for work in works
    ]
    assert other.bundle().layout.digest == one.bundle().layout.digest
    assert other.bundle().sha256() == one.bundle().sha256()


def test_a_difference_is_made_a_piece_at_a_time_with_every_dtype_in_its_place(monkeypatch):
    layout = Layout.of({"a": ("f4", (1001,)), "b": ("i8", (3,)), "c": ("b1", (70,)), "d": ("f8", (129,)), "e": ("bf16", (33,))})
    rng = np.random.Generator(np.random.Philox(1))
    local, start = (Bundle(layout, rng.integers(0, 60, layout.nbytes, np.uint8)) for _ in range(2))
    for bundle in (local, start):
        bundle["c"][...] = rng.integers(0, 2, 70) > 0
    monkeypatch.setattr(local_sgd, "PIECE", 256)
    made = Difference(layout, local, start)
    for name in ("a", "b", "d"):
        assert np.array_equal(made[name], local[name] - start[name])
    assert np.array_equal(made["c"], local["c"])
    e = (torch.from_numpy(one["e"].view(np.int16)).view(torch.bfloat16) for one in (local, start))
    assert np.array_equal(made["e"].view(np.int16), torch.sub(*e).view(torch.int16).numpy())
    assert made.sha256() == made.copy().sha256()


@pytest.mark.parametrize("name", ["run", "run_all", "_take", "_delta"])
def test_a_worker_that_makes_deltas_in_a_way_of_its_own_adds_none_itself(name):
    own = type("Own", (LocalSGD,), {name: lambda self, *given: getattr(super(own, self), name)(*given)})
    assert LocalSGD(small, population(), cross_entropy).adds
    assert not own(small, population(), cross_entropy).adds


def test_deltas_of_a_subclass_that_turns_gradients_are_added_as_they_are_made():
    class Turned(LocalSGD):
        def _turn(self, gradient):
            gradient.mul_(2)

    weights, task = weights_of(seeded(small, 0)), Task(0, 0, (0, 1, 2))
    first, added = (Turned(small, population(), cross_entropy) for _ in range(2))
    assert added.adds
    one, other = PartialSum(weights.layout), PartialSum(weights.layout)
    for client in task.clients:
        work = first.run(weights, client, task)
        one.add(work.bundle, work.weight)
    list(added.add_all(weights, task.clients, task, other))
    assert other.bundle().sha256() == one.bundle().sha256()
