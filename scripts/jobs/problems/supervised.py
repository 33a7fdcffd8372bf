"""A problem of labelled data: a model, data and a loss.

The one idea: the clients and their data are made once in each process, and all that is asked of the data is asked of them.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, ClassVar

from shoal.actors import Worker, check_runs
from shoal.envs.datasets import widened
from shoal.envs.partitioners import as_partition
from shoal.envs.population import Population
from shoal.envs.shelf import Shelf
from shoal.jobs.parts import Bearing
from shoal.jobs.populations import populated
from shoal.jobs.problems.first_weights import fill
from shoal.jobs.problems.omissions import largest, omissions
from shoal.jobs.problems.problem import Evaluate, Problem
from shoal.jobs.settings import option, plain, values
from shoal.protocol.errors import UserError, binds, signed
from shoal.protocol.layout import Bundle

if TYPE_CHECKING:
    import torch
    from torch import nn

    from shoal.jobs.methods.method import Method

HELD_OUT = {"loss": "held_out_loss", "examples": "held_out_examples"}  # plain "loss" is of training, "accuracy" held out
SPLITS = ("auto", "iid", "dirichlet", "dirichlet_by_client", "shards", "pathological", "quantity_skew", "natural")


@dataclass(frozen=True)
class Supervised(Problem):
    """A model, data and a loss.

    model: () -> nn.Module. source: arrays (x, y), a pair (training, held out) of such pairs, a Population, or a function, () or
    of the settings, that returns one of these. loss: (logits, y) -> the mean loss, or one loss for each example; None is cross
    entropy. metrics: name -> (logits [n, ...], y [n, ...]) -> a number, over a whole evaluation set. worker: (settings,
    population) -> Worker, or () -> Worker, in place of SGD on the loss.
    """

    kind: ClassVar[str] = "supervised"

    model: Callable[[], nn.Module]
    source: Any
    loss: Callable[[Any, Any], Any] | None = None
    metrics: Mapping[str, Callable[[Any, Any], Any]] | None = None
    worker: Callable[..., Worker] | None = None
    partition: str = option(
        "auto",
        "how the training data is divided among clients (auto: dirichlet if the labels are classes, else iid)",
        choices=SPLITS,
        own=True,
        read=as_partition,
    )
    partition_by: str = option(
        "", "column of a table that has the client of each example (empty: the data are arrays)", of={"partition": ("natural",)}
    )
    alpha: float = option(
        0.5,
        "concentration of the Dirichlet distribution that divides the training data: smaller makes clients differ more",
        above=0,
        of={"partition": ("auto", "dirichlet", "dirichlet_by_client", "quantity_skew")},
    )
    shards_per_client: int = option(
        2, "shards of the training data, sorted by class, that each client gets", least=1, of={"partition": ("shards",)}
    )
    classes: int = option(2, "classes that each client has examples of", least=1, of={"partition": ("pathological",)})
    held_out: float = option(0.2, "share of the data that is held out for the central evaluation", above=0, below=1)
    data: str = option("", "folder or file of data, for a job that reads files (empty: the job's own default)")
    initial_weights: str = option(
        "", "file .safetensors, or folder of a run, with the weights of version 0 (empty: drawn with the seed)"
    )

    def check(self, bearing: Bearing) -> None:
        if callable(self.partition) and not (binds(self.partition, (), 1, 0) or binds(self.partition, (), 1, seed=0)):
            form = "a function (labels, clients, seed) -> a list of indices for each client"
            raise UserError(f"partition is {signed(self.partition)}: expected {form}")

    def module(self, seed: int) -> nn.Module:
        from shoal.nets.models import seeded

        module = seeded(self.model, seed)
        if self.initial_weights:
            fill(module, "initial_weights", self.initial_weights)
        return module

    def own_worker(self, method: Method, seed: int) -> Worker | None:
        if self.worker is None:
            return None
        both = binds(self.worker, None, None)
        made = self.worker(self.settings(method), self.population(method, seed)) if both else self.worker()
        check_runs(made)
        return made

    def example(self, method: Method, seed: int) -> tuple[torch.Tensor, ...]:
        import torch

        examples = self.population(method, seed).examples(0)
        return (torch.from_numpy(widened(examples.x[:2], examples.scale).copy()),)

    def central(self, method: Method, seed: int, device: str) -> Evaluate | None:
        if (held_out := self.population(method, seed).held_out) is None:
            return None
        from shoal.nets.evaluation import Evaluation

        evaluation = Evaluation(self.model, held_out, self.loss_function(), device=device, metrics=self.metrics)
        return lambda weights: {HELD_OUT.get(name, name): value for name, value in evaluation(weights).items()}

    def apiece(self, method: Method, seed: int) -> Callable[[Bundle], Mapping[str, Any]] | None:
        if (held_out := self.population(method, seed).held_out) is None:
            return None
        from shoal.nets.evaluation import Evaluation

        evaluation = Evaluation(self.model, held_out, self.loss_function())
        return lambda weights: {HELD_OUT.get(name, name): values for name, values in evaluation.apiece(weights).items()}

    def try_out(self, method: Method, seed: int) -> None:
        """Try a batch of a client (of the largest, if sizes are known), and two held-out examples, as a run will use them."""
        from shoal.nets.evaluation import ignored_label
        from shoal.nets.gpu import has_gpu
        from shoal.nets.trying import tried

        population, size = self.population(method, seed), getattr(self.settings(method), "batch_size", 2)
        sizes = population.sizes
        if not len(examples := population.examples(largest(population))):
            if sizes is not None and not self.worker:
                raise UserError(f"data: none of the {len(sizes)} clients has an example")
            return
        loss, backward = self.loss_function(), not has_gpu()
        classes = tried(self.model, examples[: max(2, size)], loss, population.held_out, self.metrics, backward=backward)
        if classes is not None:
            population.check_classes(classes, ignored_label(loss))

    def sizes(self, method: Method, seed: int) -> Sequence[int]:
        sizes = self.population(method, seed).sizes
        return () if sizes is None else sizes.tolist()

    def held_out_digest(self, method: Method, seed: int) -> str:
        held_out = self.population(method, seed).held_out
        return "" if held_out is None else held_out.sha256()

    def notes(self, method: Method, seed: int) -> Sequence[str]:
        population = self.population(method, seed)
        return (*population.notes, *omissions(self, self.settings(method), population))

    def prepare(self, method: Method, seed: int) -> None:
        self.population(method, seed)

    def loss_function(self) -> Callable[[Any, Any], Any]:
        if self.loss is not None:
            return self.loss
        from torch.nn.functional import cross_entropy

        return cross_entropy

    def population(self, method: Method, seed: int) -> Population:
        """The clients and their data, made once in each process and for each combination of settings."""
        settings = self.settings(method)
        asks = callable(self.source) and not hasattr(self.source, "examples") and inspect.signature(self.source).parameters
        key = repr((plain(self), self.partition, settings.clients, seed, vars(settings) if asks else ()))
        if key not in self.made:
            import torch  # noqa: F401  its generator is set for the data function too

            shelf: Shelf | None = self.made.get("shelf")
            self.made.clear()  # keep one population at most: data may be large
            from shoal.nets.evaluation import over_classes

            make = partial(populated, self.source, settings, seed, self.loss is None or over_classes(self.loss) is not False)
            self.made[key] = make() if shelf is None else shelf.population(key, make)
            if shelf is not None:
                self.made["shelf"] = shelf
        found: Population = self.made[key]
        return found

    def settings(self, method: Method) -> SimpleNamespace:
        """The settings of the problem and of the method as attributes, for a user's function of the settings."""
        return SimpleNamespace(**{"clients": 1, **values(method), **values(self)})
