"""Problems: labelled data, an environment, or workers of a user's own.

The one idea: a problem knows the user's part (a model, data, an environment) and no learning method. A problem makes a
population, spaces or processes from the user's part once in each process.
"""

from __future__ import annotations

import inspect
import math
import sys
import time
import tomllib
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, ClassVar, Self, TypeAlias, cast

from shoal.actors import Worker, check_runs
from shoal.actors.workers.lives import room_for
from shoal.envs import atari
from shoal.envs.agents import Parallel
from shoal.envs.atari import is_atari
from shoal.envs.datasets import widened
from shoal.envs.hatchery import Hatchery
from shoal.envs.isolated import Isolated
from shoal.envs.partitioners import as_partition
from shoal.envs.population import Population
from shoal.envs.shelf import Shelf
from shoal.envs.sources import array_of
from shoal.envs.spaces import IN_INFO, Kept, Named, Observations, Spaces
from shoal.envs.trying import masks_told, state_told
from shoal.envs.vector import Recipe, Worlds, make_vector, refuse_window, single_arguments, spaces_in
from shoal.jobs.parts import Bearing
from shoal.jobs.populations import populated
from shoal.jobs.presets import Preset
from shoal.jobs.presets import found as preset_of
from shoal.jobs.settings import NO_ARGUMENTS, Arguments, option, plain, ranges, shown, values
from shoal.nets.acting import Form, Network, Parted, Policy
from shoal.nets.framed import FRAMES, Framed, stacked_spaces
from shoal.nets.networks import ACTOR_CRITIC, ActorCriticNetwork
from shoal.nets.normal import Normalised, kept_of
from shoal.nets.pictures import NETWORKS, deep, described
from shoal.protocol.draws import globally
from shoal.protocol.errors import UserError, binds, signed
from shoal.protocol.layout import Bundle, Layout
from shoal.protocol.work import Metrics

if TYPE_CHECKING:
    import torch
    from torch import nn

    from shoal.actors.inferring import Batching
    from shoal.jobs.methods.method import Method

Evaluate: TypeAlias = Callable[[Bundle], Metrics]
ASKS = "asks"  # key in `Problem.made` of the place at which an actor asks the inference process
HELD_OUT = {"loss": "held_out_loss", "examples": "held_out_examples"}  # plain "loss" is of training, "accuracy" held out
CENTRAL = {"inference": ("central", "auto")}
SPLITS = ("auto", "iid", "dirichlet", "dirichlet_by_client", "shards", "pathological", "quantity_skew", "natural")


@dataclass(frozen=True)
class Problem:
    """A problem to learn from. A subclass overrides the functions that it can answer.

    kind: the word for this kind of problem in `Method.problems`. made: objects made from the user's part in this process.
    """

    kind: ClassVar[str] = ""

    made: dict[Any, Any] = field(default_factory=dict, kw_only=True, repr=False, compare=False)

    def check(self, bearing: Bearing) -> None:
        """Raises UserError, one line, for settings that do not go together."""

    def suited(self, method: Method) -> Self:
        """Return the problem as this method learns it: the same user's part, and the method's kind of network."""
        return self

    def published(self, method: str) -> Preset | None:
        """The settings that published tables have for this problem and the method of this name; None if there are none."""
        return None

    def first(self, seed: int) -> tuple[Bundle, int | None]:
        """Version 0 of the weights, and the number of their first float32 entries that are trained (None: all)."""
        from shoal.nets.flat import FlatModule

        flat = FlatModule(self.module(seed))
        return flat.bundle(), flat.trainable

    def module(self, seed: int) -> nn.Module:
        """The torch model with the weights of version 0. Raises UserError if there is no torch model."""
        raise UserError("this job has no torch model: it was made with worker= and weights=; give model= and data= instead")

    def example(self, method: Method, seed: int) -> tuple[Any, ...]:
        """Inputs for the torch model, tensors or maps of tensors: a batch of one or two. Raises UserError if there is no torch
        model."""
        raise UserError("this job has no torch model: it was made with worker= and weights=; give model= and data= instead")

    def own_worker(self, method: Method, seed: int) -> Worker | None:
        """The user's own worker; None if the user gave no worker."""
        return None

    def central(self, method: Method, seed: int, device: str) -> Evaluate | None:
        """The function that evaluates weights in the coordinator's process; None if only actors can evaluate."""
        return None

    def apiece(self, method: Method, seed: int) -> Callable[[Bundle], Mapping[str, Any]] | None:
        """The function weights -> name -> a number for each held-out example, [n]; None if there is no held-out data."""
        return None

    def sizes(self, method: Method, seed: int) -> Sequence[int]:
        """Each client's number of examples; empty if it is not known."""
        return ()

    def try_out(self, method: Method, seed: int) -> None:
        """Try the user's part once, in this process. Raises UserError for a fault in it."""

    def held_out_digest(self, method: Method, seed: int) -> str:
        """The digest of the held-out data; "" if there is none."""
        return ""

    def notes(self, method: Method, seed: int) -> Sequence[str]:
        """Lines about the user's part that a person is told when a run begins."""
        return ()

    def conditions(self) -> Sequence[str]:
        """Lines without which a result of this problem means little: how a game was preprocessed."""
        return ()

    def about(self, method: Method, seed: int) -> Sequence[str]:
        """Lines about what was chosen for the user, which a person is told when a run begins."""
        return ()

    def prepare(self, method: Method, seed: int) -> None:
        """Make the data and processes that forked actors share. Raises UserError for a fault in the user's part."""

    def hatch(self) -> None:
        """Start the process that must be forked while this process has one thread, before the settings of a run are known."""

    def close(self) -> None:
        """End the processes that `prepare` or `hatch` started. A later `prepare` starts them again."""


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
            _filled(module, "initial_weights", self.initial_weights)
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
        if not len(examples := population.examples(self._largest(population))):
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
        told = (*population.notes, *self._spare(method, population))
        return (*told, *self._left_out(method, population), *self._softened(population))

    def _spare(self, method: Method, population: Population) -> Iterator[str]:
        """A line if the data has clients that take no part, because `clients` is smaller."""
        if (taken := self.settings(method).clients) < population.clients:
            yield f"the data has {population.clients} clients, of which the first {taken} take part: clients=N sets how many"

    def _softened(self, population: Population) -> Iterator[str]:
        """A line if the loss takes the model's outputs for logits and they are probabilities."""
        from shoal.nets.trying import normalised_twice

        examples = population.examples(self._largest(population))
        if self.worker is None and len(examples) and normalised_twice(self.model, examples, self.loss_function()):
            yield (
                "the model's outputs are probabilities (they add up to 1), and cross entropy takes them for logits, which "
                "slows training down: leave out the softmax at the model's end"
            )

    def _largest(self, population: Population) -> int:
        """The client with most examples; the first one if sizes are not known."""
        return 0 if population.sizes is None else int(population.sizes.argmax())

    def _left_out(self, method: Method, population: Population) -> Iterator[str]:
        """A line for each kind of clients that are known to fail in every task."""
        from shoal.envs.population import listed

        if self.worker is None and (odd := population.without_numbers()):
            yield f"{len(odd)} clients hold NaN or an infinity ({listed(odd)}): if the model lets it through, they are left out"
        if (sizes := population.sizes) is None or self.worker is not None:
            return
        if (empty := (sizes == 0).nonzero()[0]).size:
            yield f"{len(empty)} of {len(sizes)} clients have no examples ({listed(empty)}) and are left out"
        settings = self.settings(method)
        if (size := getattr(settings, "batch_size", 0)) and (alone := (sizes == 1) | self._ends_alone(settings, sizes)).any():
            from shoal.nets.gpu import has_gpu
            from shoal.nets.trying import fails_alone

            examples, backward = population.examples(int(sizes.argmax())), not has_gpu()
            if fails_alone(self.model, examples, self.loss_function(), backward=backward):
                who, share = alone.nonzero()[0], sizes[alone].sum() / sizes.sum()
                fix = "drop_last=true leaves it out" if size > 1 and (sizes[alone] > 1).any() else "use larger batches"
                yield (
                    f"{len(who)} of {len(sizes)} clients ({listed(who)}; {share:.0%} of the examples) have a batch of one "
                    f"example, on which the model or its loss raises, and are left out: {fix}"
                )

    def _ends_alone(self, settings: SimpleNamespace, sizes: Any) -> Any:
        """Return for each client whether its passes have a batch of one example that is not the only one."""
        steps, size = settings.local_steps, settings.batch_size
        reached = steps == 0 or steps >= -(-sizes // size)
        return (sizes > 0) & reached & (size == 1 or (not settings.drop_last and sizes % size == 1))

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


def _filled(module: nn.Module, name: str, place: str, wanted: Mapping[str, Any] | None = None) -> None:
    """Copy the weights of a .safetensors file, or the newest of a run, into a module. name: the setting's. place: the file, the
    run's folder, or its folder `best`. wanted: what the job says of its network, by the names of settings. Raises UserError,
    which compares the two networks if the run's config.toml is at hand."""
    from shoal.coordinator.keeping.store import FOLDER, snapshots
    from shoal.nets.saved import read_weights

    path = Path(place)
    had = _run_of(path)
    if path.is_dir():
        found = snapshots(path / FOLDER) if (path / FOLDER).is_dir() else []
        if not found:
            raise UserError(f"{name}={place}: holds no weights of a run; give the folder of a run, runs/latest say")
        path = found[-1][1]
    differ = [each for each in wanted or {} if each in had and shown(had[each]) != shown((wanted or {})[each])]
    try:
        read_weights(module, path)
    except UserError as odd:
        if "job" not in had:
            raise UserError(f"{name}={odd}") from odd
        detail = str(odd).removeprefix(f"{path}: ")
        raise UserError(f"{name}={place}: {_unlike(had, wanted or {}, differ)} ({detail})") from odd
    if "activation" in differ:  # the arrays are alike, and what they compute is not
        raise UserError(f"{name}={place}: {_unlike(had, wanted or {}, ['activation'])}")


def _run_of(place: Path) -> dict[str, Any]:
    """The settings in the config.toml of the run that a file or a folder belongs to, by name; {} if there is none."""
    for folder in (place, *list(place.absolute().parents)[:2]):
        try:
            told = tomllib.loads((folder / "config.toml").read_text())
        except (OSError, ValueError):
            continue
        if "job" not in told:
            continue
        tables = {key: each for key, each in told.items() if isinstance(each, dict)}
        flat = {key: each for table in tables.values() for key, each in table.items()}
        method = tables.get("method", {}).get("name", told.get("method"))
        return {**flat, **{key: each for key, each in told.items() if key not in tables}, "method": method}
    return {}


def _unlike(had: Mapping[str, Any], wanted: Mapping[str, Any], differ: Sequence[str]) -> str:
    """Which network a run has and which one a job wants, and what to type."""
    theirs, ours = (" ".join(f"{each}={shown(its[each])}" for each in differ) for its in (had, wanted))
    named = str(had["job"]).removeprefix("inline:")
    if not differ:
        return (
            f"the run (job {named}) has a network with other arrays than this job's: give a run with its model, data or spaces"
        )
    same = [each for each in differ if each != "method"]
    fix = f"{theirs} fits, if observations and actions are alike" if same else f"{theirs} learns such a network"
    return f"the run (job {named}) has a network of {theirs}, and this job's is of {ours}; {fix}"


@dataclass(frozen=True)
class Calls(Problem):
    """Workers of a user's own, and the weights of version 0. This problem needs no torch.

    worker: () -> Worker. weights: () -> name -> array.
    """

    kind: ClassVar[str] = "calls"

    worker: Callable[[], Worker]
    weights: Callable[[], Mapping[str, Any]]

    def first(self, seed: int) -> tuple[Bundle, int | None]:
        made = self.weights()
        if not isinstance(made, Mapping) or not made:
            what = "nothing" if isinstance(made, Mapping) else signed(made)
            raise UserError(f"weights: the first weights are {what}: expected name -> array")
        arrays = {name: array_of(array) for name, array in made.items()}
        try:
            return Bundle.pack(arrays), None
        except TypeError as odd:
            told = ", ".join(f"{name} {array.dtype}" for name, array in arrays.items())
            raise UserError(f"first weights ({told}): {odd}") from None

    def own_worker(self, method: Method, seed: int) -> Worker | None:
        made = self.worker()
        check_runs(made)
        return made


@dataclass(frozen=True)
class Environment(Problem):
    """An environment, and optionally a policy.

    env: a gymnasium id, () -> Env, or num_envs -> VectorEnv. policy: (spaces) -> nn.Module of the method's kind of network. For
    an actor-critic, forward(observation) -> (logits | (mean, log_std), value). None: the built-in network of that kind.
    learns: the method's kind of network. learned_by: the method's name.
    """

    kind: ClassVar[str] = "environment"

    learns: Network = field(default=ACTOR_CRITIC, kw_only=True, repr=False)
    learned_by: str | None = field(default=None, kw_only=True, repr=False)

    env: str | Callable[..., Any]
    policy: Callable[[Spaces], nn.Module] | None = None
    hidden: tuple[int, ...] = option((64, 64), "units of each hidden layer of the built-in policy")
    activation: str = option("tanh", "activation of the built-in policy", choices=("tanh", "relu"))
    memory: str = option(
        "none",
        "recurrent core of the built-in policy, between its hidden layers and its two heads",
        choices=("none", "lstm", "gru"),
    )
    memory_size: int = option(128, "units of the recurrent core", least=1, of={"memory": ("lstm", "gru")})
    network: str = option(
        "auto",
        "how the built-in policy reads pictures: flattened (mlp), by Nature CNN or IMPALA's ResNet; auto: nature, or a smaller "
        "CNN for small pictures",
        choices=NETWORKS,
    )
    precision: str = option(
        "float32",
        "numbers in which the built-in policy's convolutions are computed; bf16 is faster where the processor has instructions "
        "for it",
        choices=("float32", "bf16"),
    )
    frame_stack: int = option(
        1,
        "last observations that the policy sees together; trajectories and the replay hold each once, and the learner stacks "
        "them on its device",
        least=1,
        most=64,
    )
    env_kwargs: Arguments = option(  # noqa: RUF009  a field, as those around it
        NO_ARGUMENTS, "arguments of gymnasium.make, as JSON; env.NAME=value sets one of them (continuous, say)"
    )
    time_limit: int = option(0, "steps after which an episode of an id is truncated (0: the environment's own limit)", least=0)
    step_timeout: float = option(
        0.0,
        "seconds that a step or reset of an environment may take, in its own process (0: no limit, in the actor's process)",
        least=0,
    )

    vector: str = option(
        "auto",
        "how environments are stepped: one after another (sync), each in a process of its own (async), by an id's vector "
        "env, which may see and pay otherwise than its single one (native); auto: native if gymnasium's own, else sync",
        choices=("auto", "sync", "async", "native"),
    )
    on_env_error: str = option(
        "raise",
        "what an environment's exception comes to: the task fails (raise), a fresh environment takes its place (replace)",
        choices=("raise", "replace"),
    )

    stagger: bool = option(
        True,
        "the first episode of each training environment is cut short at a step of its own, so that episodes of one length do "
        "not all end together",
    )

    double_buffer: bool = option(
        False,
        "an actor steps one half of a trajectory's environments while the other half waits for its actions; pays with "
        "inference=central, and with environments in processes of their own",
    )
    inference: str = option(
        "actor",
        "where the policy's network is computed: by each actor (actor), in batches by one process for all actors of the "
        "coordinator's machine (central), or where a short trial before the run finds it faster (auto)",
        choices=("actor", "central", "auto"),
    )
    inference_min_batch: int = option(
        1, "observations for which a batch of central inference waits, inference_wait seconds at most", least=1, of=CENTRAL
    )
    inference_max_batch: int = option(1_024, "most observations of a batch of central inference", least=1, of=CENTRAL)
    inference_wait: float = option(
        0.002, "most seconds that a question waits for others to make a batch of central inference", least=0, of=CENTRAL
    )

    init: str = option("", "folder of a run, or file .safetensors, with the weights of version 0 (empty: drawn with the seed)")
    preset: str = option(
        "auto",
        "settings that nobody gave: those of a published table for the environment's family (auto), or the defaults (none)",
        choices=("auto", "none"),
    )

    @property
    def form(self) -> Form:
        """The settings of the built-in network."""
        return Form(tuple(self.hidden), self.activation, self.memory, self.memory_size, self.network, self.precision)

    def suited(self, method: Method) -> Self:
        network: Network = getattr(method, "network", ACTOR_CRITIC)
        scaled = {name: getattr(method, name, False) for name in ("norm_obs", "norm_reward")}
        if any(scaled.values()):
            network = Normalised(network, scaled["norm_obs"], scaled["norm_reward"], getattr(method, "clip_obs", 10.0))
        return replace(self, learns=network, learned_by=method.name)

    @property
    def apart(self) -> bool:
        """True if each environment has a process of its own."""
        return self.step_timeout > 0 or self.vector == "async" or self.on_env_error == "replace"

    def published(self, method: str) -> Preset | None:
        return preset_of(self.env, method) if self.preset == "auto" else None

    def check(self, bearing: Bearing) -> None:
        if self.apart and isinstance(self.env, Parallel):
            why = next(
                name for name in ("step_timeout", "vector", "on_env_error") if getattr(self, name) != ranges(self)[name].default
            )
            given = shown(getattr(self, why))
            raise UserError(
                f"{why}={given}: the agents of a game are stepped together, in the actor's process; leave {why} out"
            )
        if self.apart and self.vector in ("sync", "native"):
            why = "step_timeout" if self.step_timeout else "on_env_error=replace"
            raise UserError(f"vector={self.vector}: {why} gives each environment a process of its own; leave it at vector=auto")
        refuse_window(self.env_kwargs.get("render_mode"), "env.render_mode=human")
        if self.vector == "native" and callable(self.env):
            raise UserError("vector=native: only an id has a vector environment of its own; leave it at vector=auto")
        if callable(self.env):
            for name, value in (("env_kwargs", self.env_kwargs), ("time_limit", self.time_limit)):
                if value:
                    fix = (
                        "give them to the environment there"
                        if name == "env_kwargs"
                        else "gymnasium.wrappers.TimeLimit sets one there"
                    )
                    raise UserError(f"{name}={value}: only an id takes it, and a function makes this job's environment; {fix}")
        if self.inference == "central" and sys.platform != "linux":
            raise UserError(
                f"inference=central: it needs shared memory without a name (Linux), and this is {sys.platform}; inference=actor"
            )
        if self.inference_min_batch > self.inference_max_batch:
            most = f"must be at most inference_max_batch, {self.inference_max_batch}"
            raise UserError(f"inference_min_batch={self.inference_min_batch}: {most}")
        if self.policy is not None and self.network != "auto":
            raise UserError(
                f"network={self.network}: it is for the built-in policy, and this job has a policy of its own; leave it out"
            )
        if self.policy is not None and self.precision != "float32":
            raise UserError(
                f"precision={self.precision}: it is for the built-in policy, and this job has a policy of its own; leave it out"
            )
        if not all(units > 0 for units in self.hidden):
            raise UserError(f"hidden={','.join(map(str, self.hidden))}: allowed are whole numbers from 1; hidden=64,64, say")
        if self.frame_stack > 1:
            self._check_stack()
        if self.memory != "none" and self.policy is not None:
            fix = "give the policy an attribute memory (docs/policies.md) and leave it at memory=none"
            raise UserError(f"memory={self.memory}: it is for the built-in policy, and this job has a policy of its own; {fix}")
        if self.memory != "none" and not self.learns.remembers:
            raise UserError(
                f"memory={self.memory}: the job's method learns without memory; leave it at memory=none, or take ppo"
            )
        if self.step_timeout >= bearing.lease > 0:
            raise UserError(
                f"step_timeout={self.step_timeout:g}: must be below lease={bearing.lease:g}, the seconds after which the actor "
                "is ended; give a larger lease or a smaller step_timeout"
            )

    def _check_stack(self) -> None:
        said = f"frame_stack={self.frame_stack}"
        if isinstance(self.env, Parallel):
            raise UserError(f"{said}: the agents of a game see single observations; supersuit's frame_stack_v1 stacks them")
        if self.inference != "actor":
            raise UserError(f"{said}: inference={self.inference} sends single observations; inference=actor")
        if isinstance(self.learns, Normalised):
            raise UserError(f"{said}: norm_obs and norm_reward scale single observations; frame_stack=1, or leave them out")

    def module(self, seed: int) -> nn.Module:
        module = self._module(seed)
        if self.init:
            names = ("hidden", "activation", "memory", "memory_size", "network", "frame_stack") if self.maker is None else ()
            _filled(module, "init", self.init, {"method": self.learned_by, **{name: getattr(self, name) for name in names}})
        return module

    def _module(self, seed: int) -> nn.Module:
        """The torch model with weights that are drawn."""
        from shoal.nets.models import seeded

        if (policy := self.maker) is not None:
            return seeded(lambda: self.learns.fitting(policy(self.shown()), self.shown()), seed)
        if self.precision != "float32" and not deep(self.shown(), self.network):
            raise UserError(f"precision={self.precision}: it is for convolutions, and the policy has none; leave it out")
        return self.learns.build(self.shown(), self.form, seed)

    @property
    def maker(self) -> Callable[[Spaces], nn.Module] | None:
        """The function that makes the policy; None: the built-in network does as it is."""
        if not isinstance(self.env, Parallel) or self.env.policies == "shared":
            return self.policy
        agents, own = len(self.env.agents), self.policy

        def apart(spaces: Spaces) -> nn.Module:
            import torch

            from shoal.nets.separate import Separate

            seen = spaces.single("policies=separate")
            plain = replace(spaces, observation=Observations((seen.size - agents,)))
            drawn = int(torch.randint(2**30, ()))  # of the generator that `seeded` has set
            made = [own(plain) if own else self.learns.build(plain, self.form, drawn + each) for each in range(agents)]
            return Separate(made)

        return apart

    def example(self, method: Method, seed: int) -> tuple[Any, ...]:
        """Two observations of zeros; for a policy with memory, besides, its state for them."""
        import torch

        from shoal.nets.flat import TORCH_DTYPES
        from shoal.nets.policies import examples

        observation, memory = examples(self.shown(), 2), self._added()[1]
        own = {name: its for name, its in memory.items() if name != FRAMES}
        state = {name: torch.zeros((2, *shape), dtype=TORCH_DTYPES[dtype]) for name, (dtype, shape) in own.items()}
        return (observation, state) if state else (observation,)

    def spaces(self) -> Spaces:
        key = ("spaces", self.vector, self.apart, self.env_kwargs)
        if key not in self.made:
            vector, recipe = self.stepping, self.recipe(False)
            with globally(0, "spaces"):
                found = spaces_in(recipe, vector)
            if found.action.choices and not found.masks and not self.apart and masks_told(recipe, vector, self.step_timeout):
                found = replace(found, masks=IN_INFO)
            self.made[key] = found
        spaces: Spaces = self.made[key]
        return spaces

    def shown(self) -> Spaces:
        """The spaces as a network sees them: with frame_stack, the last observations together."""
        return stacked_spaces(self.spaces(), self.frame_stack)

    def recipe(self, told: bool | None = None) -> Recipe:
        """How an environment is made. told: as of Recipe; None: as a trial finds."""
        masks = self.spaces().masks == IN_INFO if told is None else told
        alone = "native" if is_atari(self.env) else "sync"
        return Recipe(self.env, dict(self.env_kwargs), self.time_limit, masks, alone)

    @property
    def stepping(self) -> str:
        """The argument `vector` of make_vector."""
        return self.recipe(False).alone if self.apart else self.vector

    def rehearsed(self) -> AbstractContextManager[None]:
        """The trial of one environment, in this process: envs/trying.py."""
        from shoal.envs.trying import tried

        return tried(self.recipe(), self.stepping)

    def acts(self, seed: int) -> Policy:
        """The policy in the form that actors run."""
        policy = self.learns.policy(self.shown(), self.form, None if self.maker is None else self._module(seed))
        seen = self.spaces().observation
        return Framed(policy, self.frame_stack, seen) if self.frame_stack > 1 and isinstance(seen, Observations) else policy

    def played(self, seed: int, num_envs: int, alone: bool) -> Policy:
        """The policy of an actor's rollouts: `acts`, of which another process computes the network if inference=central and
        this process was told where to ask. num_envs: observations of a question, at most. alone: each question is computed in a
        batch of its own, so that the run's bits do not depend on who asks at the same time."""
        policy = self.acts(seed)
        if self.inference != "central" or ASKS not in self.made:
            return policy
        from shoal.actors.asking import Asking

        return Asking(parted(policy), self.spaces().record(), self.made[ASKS], num_envs, alone)

    @property
    def batching(self) -> Batching:
        """The batches of central inference."""
        from shoal.actors.inferring import Batching

        return Batching(self.inference_min_batch, self.inference_max_batch, self.inference_wait)

    def trajectory(self, rollout_length: int, num_envs: int, moments: Sequence[str] = (), life: int = 0) -> Layout:
        """The layout of a trajectory, with the arrays that the policy adds, statistics and a life: `Spaces.trajectory`."""
        spaces = self.spaces()
        return spaces.trajectory(rollout_length, num_envs, *self._added(), kept_of(moments, spaces), life)

    def life(self, num_envs: int) -> int:
        """Bytes that the life of num_envs environments takes at most (actors/workers/lives.py); 0 if it cannot be told."""
        each = self.told_whole[0]
        return room_for(each, self.spaces(), self._added()[1], num_envs) if each else 0

    @property
    def told_whole(self) -> tuple[int, str]:
        """Bytes of one environment's state, and ""; or 0, and why the state of these environments cannot be told."""
        if self.apart:
            return 0, "they have processes of their own"
        if isinstance(self.env, Parallel):
            return 0, "several agents play in one"
        key = ("state", self.vector, self.env_kwargs, self.time_limit)
        if key not in self.made:
            self.made[key] = state_told(self.recipe(), self.stepping)
        found: tuple[int, str] = self.made[key]
        return found

    def _added(self) -> tuple[Kept, Kept]:
        """The rows and the memory of the policy, found out once in each process."""
        key = ("policy", self.learns, self.form)
        if key not in self.made:
            policy = self.acts(0)
            self.made[key] = policy.rows, policy.memory
        found: tuple[Kept, Kept] = self.made[key]
        return found

    @property
    def group(self) -> int:
        """The number of environments that belong together: the agents of one game."""
        return len(self.env.agents) if isinstance(self.env, Parallel) else 1

    def prepare(self, method: Method, seed: int) -> None:
        if isinstance(self.env, Parallel) and (rows := getattr(method, "num_envs", 0)) % (each := self.group):
            fix = f"num_envs={max(1, rows // each) * each}"
            raise UserError(f"num_envs={rows}: {self.env.__name__} has {each} agents, each of which is a row; {fix}, say")
        spaces = self.spaces()
        native = self.vector == "native" and "compared" not in self.made  # a run prepares its job twice, and says this once
        if native and (single := replace(self, vector="sync").spaces()) != spaces:
            also = f"observations {_told(spaces)}, {spaces.action}"
            plain = f"{_told(single)}, {single.action}"
            print(f"shoal: vector=native: {self.env} has {also}, where gymnasium.make gives {plain}", file=sys.stderr)
        self.made["compared"] = True
        if self.apart:
            self._hatched()

    def conditions(self) -> Sequence[str]:
        if is_atari(self.env) and self.vector != "sync":
            return [atari.told(self.env_kwargs)]
        known = single_arguments(self.env, "ale_py") if isinstance(self.env, str) else None
        return [] if known is None else [atari.told_single({**known, **self.env_kwargs})]

    def about(self, method: Method, seed: int) -> Sequence[str]:
        found = list(self.conditions())
        seen = self.spaces().observation
        if isinstance(seen, Named) and seen.left_out:
            found.append(f"observation: {', '.join(seen.left_out)} is text, which policies here do not read: left out")
        if self.policy is None and isinstance(getattr(self.learns, "inner", self.learns), ActorCriticNetwork):
            whole = described(self.shown(), self.network, self.hidden, self.activation)
            found.append(whole + (f", then {self.memory} of {self.memory_size} units" if self.memory != "none" else ""))
        if masks := self.spaces().masks:
            found.append(f"action masks: from the {masks}; what a mask forbids is never done")
        return found

    def hatch(self) -> None:
        if callable(self.env):  # a function reaches the new process only by fork; an id starts its process in `worlds`
            self._hatched()

    def close(self) -> None:
        self.made.pop("hatchery", None)  # the process ends with the last reference to the Hatchery

    def _hatched(self) -> None:
        """Start the process from which the environments' processes are forked, unless it runs already."""
        if "hatchery" not in self.made:
            self.made["hatchery"] = Hatchery.forked(self.recipe(False))

    def worlds(self) -> Callable[[int], Worlds]:
        """The function that makes an actor's environments: their number -> Worlds."""
        if not self.apart:
            return partial(make_vector, self.recipe(), vector=self.vector)
        hatchery: Hatchery | None = self.made.get("hatchery")
        timeout, spaces, replaces = self.step_timeout or math.inf, self.spaces(), self.on_env_error == "replace"
        if hatchery is None and isinstance(self.env, str):
            hatchery = Hatchery.started(self.recipe())
        if hatchery is None:
            raise UserError(
                "environments that a function makes, and that have processes of their own (step_timeout, vector=async, "
                "on_env_error=replace), need job.prepare() before there are threads"
            )
        return lambda num_envs: Isolated(hatchery, num_envs, spaces, timeout, time.monotonic, replaces)


def parted(policy: Policy) -> Parted:
    """The policy as one whose network another process can compute. Raises UserError if it is none."""
    if not hasattr(policy, "chosen"):
        raise UserError(f"inference=central: {type(policy).__name__} has no function chosen; leave it at inference=actor")
    return cast(Parted, policy)


def _told(spaces: Spaces) -> str:
    parts = [f"{list(shape)} of {dtype}" for dtype, shape in spaces.arrays.values()]
    return " and ".join(parts)
