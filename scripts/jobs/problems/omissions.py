"""Lines about labelled data that a person is told when a run begins: clients that take no part, and outputs that are no logits.

The one idea: a client that would fail in every task is found before the run, and is told of and not refused, because the other
clients can be learned from.
"""

from __future__ import annotations

from collections.abc import Iterator
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

from shoal.envs.population import Population, listed

if TYPE_CHECKING:
    from shoal.jobs.problems.supervised import Supervised


def omissions(problem: Supervised, settings: SimpleNamespace, population: Population) -> Iterator[str]:
    """Yield the lines. settings: of the problem and of the job's method."""
    yield from _spare(settings, population)
    if problem.worker is None:
        yield from _without_numbers(population)
        yield from _without_examples(population)
        yield from _alone(problem, settings, population)
        yield from _softened(problem, population)


def largest(population: Population) -> int:
    """Return the client with most examples; the first one if sizes are not known."""
    return 0 if population.sizes is None else int(population.sizes.argmax())


def _spare(settings: SimpleNamespace, population: Population) -> Iterator[str]:
    """A line if the data has clients that take no part, because `clients` is smaller."""
    if (taken := settings.clients) < population.clients:
        yield f"the data has {population.clients} clients, of which the first {taken} take part: clients=N sets how many"


def _without_numbers(population: Population) -> Iterator[str]:
    if odd := population.without_numbers():
        yield f"{len(odd)} clients hold NaN or an infinity ({listed(odd)}): if the model lets it through, they are left out"


def _without_examples(population: Population) -> Iterator[str]:
    if (sizes := population.sizes) is not None and (empty := (sizes == 0).nonzero()[0]).size:
        yield f"{len(empty)} of {len(sizes)} clients have no examples ({listed(empty)}) and are left out"


def _alone(problem: Supervised, settings: SimpleNamespace, population: Population) -> Iterator[str]:
    """A line if the model cannot be trained on one example, and clients have a batch of one."""
    sizes, size = population.sizes, getattr(settings, "batch_size", 0)
    if sizes is None or not size or not (alone := (sizes == 1) | _ends_alone(settings, sizes)).any():
        return
    from shoal.nets.gpu import has_gpu
    from shoal.nets.trying import fails_alone

    examples, backward = population.examples(largest(population)), not has_gpu()
    if fails_alone(problem.model, examples, problem.loss_function(), backward=backward):
        who, share = alone.nonzero()[0], sizes[alone].sum() / sizes.sum()
        fix = "drop_last=true leaves it out" if size > 1 and (sizes[alone] > 1).any() else "use larger batches"
        yield (
            f"{len(who)} of {len(sizes)} clients ({listed(who)}; {share:.0%} of the examples) have a batch of one "
            f"example, on which the model or its loss raises, and are left out: {fix}"
        )


def _ends_alone(settings: SimpleNamespace, sizes: Any) -> Any:
    """Return for each client whether its passes have a batch of one example that is not the only one."""
    steps, size = settings.local_steps, settings.batch_size
    reached = steps == 0 or steps >= -(-sizes // size)
    return (sizes > 0) & reached & (size == 1 or (not settings.drop_last and sizes % size == 1))


def _softened(problem: Supervised, population: Population) -> Iterator[str]:
    """A line if the loss takes the model's outputs for logits and they are probabilities."""
    from shoal.nets.trying import normalised_twice

    examples = population.examples(largest(population))
    if len(examples) and normalised_twice(problem.model, examples, problem.loss_function()):
        yield (
            "the model's outputs are probabilities (they add up to 1), and cross entropy takes them for logits, which "
            "slows training down: leave out the softmax at the model's end"
        )
