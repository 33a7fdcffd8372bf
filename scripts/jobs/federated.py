"""Federated learning as a job: a model, data that stays where it is, a loss.

The one idea: the user's part is at most a model, the data and a loss; every other choice has a field's own name and a default.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from copy import copy
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from shoal.actors import Worker
from shoal.jobs.settings import JOURNALS, configured, option, plain
from shoal.protocol.compress import CODECS, Codec, Coding, Packed, codec_of
from shoal.protocol.errors import UserError
from shoal.protocol.exact import summed_layout
from shoal.protocol.layout import Bundle, Layout

if TYPE_CHECKING:
    import torch
    from torch import nn

    from shoal.aggregators import Aggregator
    from shoal.coordinator.deciding.plans import Asked, Plan
    from shoal.coordinator.deciding.rules import Goal, Rules
    from shoal.envs.population import Population
    from shoal.jobs.job import Evaluate

RULES = ("fedavg", "fedprox", "fedavgm", "fedadagrad", "fedadam", "fedyogi", "fedbuff")
HELD_OUT = {"loss": "held_out_loss", "examples": "held_out_examples"}  # plain names are the training's; accuracy is held out
SPLITS = ("iid", "dirichlet", "shards", "pathological", "quantity_skew")


@dataclass(frozen=True)
class FederatedSettings:
    """Everything that can be set of a federated job."""

    rounds: int = option(100, "versions to make", least=1)
    clients: int = option(100, "how many there are", least=1)
    cohort: int = option(10, "clients of a round", least=1)
    local_epochs: int = option(5, "passes over a client's data", least=1)
    batch_size: int = option(10, "examples a local step", least=1)
    lr: float = option(0.1, "of the clients' SGD", above=0)
    momentum: float = option(0.0, "of the clients' SGD", least=0, below=1)
    mu: float = option(0.0, "FedProx's proximal term", least=0)
    weighting: str = option("samples", "what a client counts by", choices=("samples", "users"))
    aggregator: str = option("fedavg", "the server's rule", choices=RULES)
    server_lr: float = option(0.0, "of the server's rule (0: its own default)", least=0)
    server_momentum: float = option(0.9, "of fedavgm", least=0, below=1)
    beta1: float = option(0.9, "of fedadam and fedyogi", least=0, below=1)
    beta2: float = option(0.99, "of fedadam and fedyogi", least=0, below=1)
    tau: float = option(1e-3, "adaptivity of fedadagrad, fedadam and fedyogi", above=0)
    buffer: int = option(10, "contributions a step of fedbuff (K)", least=1)
    max_lag: int = option(20, "versions that fedbuff's contributions may be behind", least=0)
    staleness: float = option(0.5, "exponent of fedbuff's weight (1 + lag) ** -staleness", least=0)
    partition: str = option("dirichlet", "how the data is divided", choices=SPLITS)
    alpha: float = option(0.5, "of dirichlet and quantity_skew", above=0)
    shards_per_client: int = option(2, "of shards", least=1)
    classes: int = option(2, "a client's, of pathological", least=1)
    held_out: float = option(0.2, "share of the data for the central evaluation", above=0, below=1)
    data: str = option("", "folder of data files, for jobs that read some")
    quorum: int = option(0, "clients that suffice after the deadline (0: the whole cohort)", least=0)
    deadline: float = option(0.0, "seconds of a round after which the quorum suffices (0: none)", least=0)
    lease: float = option(0.0, "seconds a task may take (0: any)", least=0)
    on_failure: str = option("continue", "when a task failed three times", choices=("continue", "stop"))
    journal: str = option("auto", "what is durable before it is acknowledged", choices=JOURNALS)
    snapshot_every: float = option(10.0, "seconds between snapshots of the weights, at most", least=0)
    retain: int = option(256, "MB that an actor keeps of what was accepted until a snapshot holds it, with ids", least=0)
    strikes: int = option(5, "failures in a row after which an actor gets no work for a while (0: never)", least=0)
    quarantine: float = option(10.0, "seconds of that, twice as many each time up to eight times", above=0)
    eval_every: int = option(10, "rounds between central evaluations (0: only at the end)", least=0)
    eval_cohort: int = option(0, "clients that evaluate as well (0: none)", least=0)
    norm_bound: float = option(0.0, "largest norm of a client's delta (0: any)", least=0)
    norm_factor: float = option(0.0, "the same, as a multiple of the median of recent norms (0: any)", least=0)
    max_examples: float = option(0.0, "largest weight of a client (0: any)", least=0)
    partial_sums: bool = option(True, "an actor sends one sum over its clients, where nothing needs each client's own")
    deterministic: bool = option(True, "the same bits for any number of actors and any order of arrival")
    compress: str = option("none", "how clients' deltas are sent", choices=("none", *CODECS))
    compress_weights: str = option("none", "how weights are told to actors, as what changed", choices=("none", *CODECS))
    compress_ratio: float = option(0.1, "share of the entries that topk and randk send", above=0, most=1)
    compress_block: int = option(256, "entries with a scale of int8 and int4", least=1)
    compress_feedback: bool = option(False, "send what compression left out another time (error feedback)")


class Federated:
    """A job: `job = Federated(model=..., data=..., loss=...)`, run by `shoal simulate FILE.py:job`.

    model: () -> nn.Module. data: (x, y) arrays or a pair of such pairs (training, held out), an envs.population.Population,
    or a function that gives any of these: () or of the settings (called once a process, where it is needed).
    loss: (logits, y) -> mean loss; cross entropy by default. Further keywords are FederatedSettings.

    Without torch at the actors: worker: () -> Worker and weights: () -> name -> array, in place of model, data and loss.
    """

    def __init__(
        self,
        model: Callable[[], nn.Module] | None = None,
        data: Any = None,
        loss: Callable[[Any, Any], Any] | None = None,
        *,
        worker: Callable[[], Worker] | None = None,
        weights: Callable[[], Mapping[str, Any]] | None = None,
        name: str = "federated",
        seed: int = 0,
        **settings: Any,
    ) -> None:
        if (model is None or data is None) and (worker is None or weights is None):
            raise UserError("Federated needs model= and data=, or worker= and weights=")
        self.model, self.data, self.loss = model, data, loss
        self.own_worker, self.own_weights = worker, weights
        self.name, self.seed = name, seed
        self.settings = configured(FederatedSettings(), settings)
        self._check()
        self._population: Population | None = None

    def _check(self) -> None:
        s = self.settings
        if s.cohort > s.clients:
            raise UserError(f"cohort={s.cohort}: allowed is from 1 to clients={s.clients}")
        if s.quorum > s.cohort:
            raise UserError(f"quorum={s.quorum}: allowed is from 0 to cohort={s.cohort}")
        if s.aggregator == "fedprox" and s.mu == 0:
            raise UserError("mu=0: allowed with aggregator=fedprox is above 0; mu=0.01, say")
        if s.compress_feedback and s.compress == "none":
            raise UserError("compress_feedback=true: nothing is compressed; compress=topk, say")
        if s.compress_feedback and s.deterministic:
            raise UserError("compress_feedback=true: what was left out stays with its actor; it needs deterministic=false")

    def configured(self, changes: Mapping[str, Any], seed: int | None = None) -> Federated:
        twin = copy(self)
        twin.seed = self.seed if seed is None else seed
        twin.settings = configured(self.settings, changes)
        twin._population = None
        twin._check()
        return twin

    def plain(self) -> dict[str, Any]:
        return plain(self.settings)

    # In the coordinator

    @property
    def streams(self) -> bool:
        return self.settings.aggregator == "fedbuff"

    @property
    def summed(self) -> bool:
        s = self.settings
        bounded = s.norm_bound > 0 or s.norm_factor > 0 or s.max_examples > 0  # each client's own
        return s.partial_sums and not (self.streams or s.compress != "none" or bounded)

    def codec(self) -> Codec | None:
        """How deltas are sent; None as they are."""
        s = self.settings
        if s.compress == "none":
            return None
        return codec_of(s.compress, share=s.compress_ratio, block=s.compress_block, feedback=s.compress_feedback)

    def aggregator(self, device: str) -> Aggregator:
        from shoal.aggregators.around.bounded import Bounded
        from shoal.aggregators.around.compressed import Decompressed
        from shoal.aggregators.around.told import Told

        s, found = self.settings, self._rule(device)
        if s.norm_factor:
            found = Bounded(found, s.norm_factor)
        if codec := self.codec():
            found = Decompressed(found, codec, norm=s.norm_bound)
        if s.compress_weights != "none":
            found = Told(found, Coding(s.compress_weights, s.compress_ratio, s.compress_block), seed=self.seed)
        return found

    def _rule(self, device: str) -> Aggregator:
        from shoal.aggregators.registry import FEDERATED

        s = self.settings
        own: Mapping[str, dict[str, Any]] = {
            "fedavgm": {"beta": s.server_momentum},
            "fedadagrad": {"tau": s.tau},
            "fedadam": {"beta1": s.beta1, "beta2": s.beta2, "tau": s.tau},
            "fedyogi": {"beta1": s.beta1, "beta2": s.beta2, "tau": s.tau},
            "fedbuff": {"exponent": s.staleness},
        }
        lr = {"lr": s.server_lr} if s.server_lr else {}
        weights, trainable = self._first_weights()
        return FEDERATED[s.aggregator](
            weights, trainable, device=device, deterministic=s.deterministic, **lr, **own.get(s.aggregator, {})
        )

    def _first_weights(self) -> tuple[Bundle, int | None]:
        if self.own_weights is not None:
            return Bundle.pack(self.own_weights()), None
        from shoal.nets.flat import FlatModule

        flat = FlatModule(self.module())
        return flat.bundle(), flat.trainable

    def module(self) -> nn.Module:
        """The model, with the weights that this seed starts from."""
        from shoal.nets.models import seeded

        if self.model is None:
            raise UserError(f"job {self.name} has no torch model: its worker is its own")
        return seeded(self.model, self.seed)

    def example(self) -> tuple[torch.Tensor, ...]:
        """Inputs that the model takes: two of a client's examples, or one twice."""
        import torch

        x = torch.from_numpy(self.population().examples(0).x[:2].copy())
        return (x if len(x) > 1 else torch.cat([x, x]),)

    def plan(self, asked: Asked) -> Plan:
        from shoal.coordinator.deciding.plans.rounds import Rounds
        from shoal.coordinator.deciding.plans.stream import Stream

        s = self.settings
        if self.streams:
            return Stream(s.buffer, s.max_lag, clients=s.clients, seed=self.seed, asked=asked)
        return Rounds(
            s.clients,
            s.cohort,
            quorum=s.quorum,
            deadline=s.deadline,
            seed=self.seed,
            summed=self.summed,
            evaluate_every=s.eval_every if s.eval_cohort else 0,
            evaluate_cohort=s.eval_cohort,
            asked=asked,
        )

    def goal(self) -> Goal:
        from shoal.coordinator.deciding.rules import Goal

        return Goal(versions=self.settings.rounds)

    def rules(self) -> Rules:
        from shoal.coordinator.deciding.rules import Rules

        return Rules(
            most=2 if self.summed or self.streams else 32,
            summed=self.summed,
            exact=self.settings.deterministic,
            lease=self.settings.lease,
            on_failure=self.settings.on_failure,
            strikes=self.settings.strikes,
            quarantine=self.settings.quarantine,
        )

    def layouts(self, weights: Layout) -> Sequence[Layout]:
        if codec := self.codec():
            return [Packed(codec, weights).layout]
        return [summed_layout(weights, self.settings.deterministic) if self.summed else weights]

    def central(self, device: str = "cpu") -> Evaluate | None:
        if self.model is None or (held_out := self.population().held_out) is None:
            return None
        from shoal.nets.evaluation import Evaluation

        evaluation = Evaluation(self.model, held_out, self._loss(), device=device)
        return lambda weights: {HELD_OUT.get(name, name): value for name, value in evaluation(weights).items()}

    def due(self, version: int) -> bool:
        every = self.settings.eval_every
        return version == self.settings.rounds or (every > 0 and version % every == 0)

    # In an actor

    def worker(self) -> Worker:
        if (codec := self.codec()) is None:
            return self._trainer()
        from shoal.actors.workers.compressed import Compressed

        return Compressed(self._trainer(), codec, self.settings.compress_feedback, seed=self.seed)

    def _trainer(self) -> Worker:
        if self.own_worker is not None:
            return self.own_worker()
        from shoal.actors.workers.local_sgd import LocalSGD

        s = self.settings
        assert self.model is not None
        return LocalSGD(
            self.model,
            self.population(),
            self._loss(),
            local_epochs=s.local_epochs,
            batch_size=s.batch_size,
            lr=s.lr,
            momentum=s.momentum,
            mu=s.mu,
            weighting=s.weighting,
            seed=self.seed,
        )

    def _loss(self) -> Callable[[Any, Any], Any]:
        if self.loss is not None:
            return self.loss
        from torch.nn.functional import cross_entropy

        return cross_entropy

    def prepare(self) -> None:
        """Before processes are forked: what they can share."""
        if self.model is not None:
            self.population()

    def population(self) -> Population:
        """Clients and their data, made once a process."""
        if self._population is None:
            from shoal.jobs.populations import populated

            self._population = populated(self.data, self.settings, self.seed)
        return self._population
