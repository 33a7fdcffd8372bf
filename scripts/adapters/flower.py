"""A Flower client as a Shoal worker, unchanged: a NumPyClient, a Client or a ClientApp.

The one idea: a worker's `run` is Flower's `fit`, with the difference of the weights in place of the weights. Flower is imported
only where a part of it must be made: a Message for a ClientApp, or a FitIns for a Client that is no NumPyClient.
"""

from __future__ import annotations

import inspect
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from shoal.jobs.federated import Federated
from shoal.jobs.job import Job
from shoal.protocol.errors import UserError, signed, takes
from shoal.protocol.layout import Bundle
from shoal.protocol.work import Task, Work

Arrays = Mapping[str, npt.NDArray[Any]]
Config = Mapping[str, Any]
LONG = 1e9  # seconds that a message is good for
MISSING = "a Flower {} needs flwr, which is not installed: pip install 'shoal[flower]'"


def Flower(  # noqa: N802  it reads like Federated
    client: Any,
    *,
    clients: int,
    cohort: int = 0,
    initial: Any = None,
    fit_config: Config | Callable[[int], Config] | None = None,
    evaluate_config: Config | Callable[[int], Config] | None = None,
    run_config: Config | None = None,
    name: str = "flower",
    **settings: Any,
) -> Job:
    """A federated job whose clients are Flower's: `job = Flower(client_fn, clients=10, rounds=3)`.

    client: a function `client_fn(context)`, or of a client's number as text, that makes a NumPyClient or a Client; or a
    ClientApp. It is made anew for each task, as in Flower's simulation. `context.node_config` has "partition-id", the client's
    number, and "num-partitions".
    clients: number of clients (Flower's supernodes). cohort: clients in a round; 0: all (fraction_fit=1).
    initial: the first weights, a list of arrays, name -> array, or a torch module; None: what client 0 gives
    (`get_parameters`), and a ClientApp must be given them.
    fit_config, evaluate_config: what a client is told (`config`): a dict, or a function of the round, from 1. run_config: the
    `context.run_config`. Further keywords are settings of `Federated`: method, rounds, eval_cohort and the like.

    A client's `context.state` is not kept from one round to the next; a task that leaves something in it fails. Raises
    UserError.
    """
    plays = _Plays(client, clients, fit_config or {}, evaluate_config or {}, run_config or {})
    return Federated(
        worker=lambda: _Worker(plays),
        weights=lambda: plays.first(initial),
        name=name,
        clients=clients,
        cohort=cohort or clients,
        **settings,
    )


class _Client(Protocol):
    """A Flower client as a worker uses it. Both functions return (value, number of examples, metrics)."""

    def fit(self, arrays: Arrays, config: Config) -> tuple[Arrays, float, Config]: ...

    def evaluate(self, arrays: Arrays, config: Config) -> tuple[float, float, Config]: ...


@dataclass(frozen=True)
class _Plays:
    """The maker of a user's clients: for each task a client of its own."""

    client: Any
    clients: int
    fit_config: Any
    evaluate_config: Any
    run_config: Config
    by_number: bool = field(init=False)

    def __post_init__(self) -> None:
        if not _is_app(self.client):
            takes("client", self.client, "a function client_fn(context) that makes a Flower client, or a ClientApp", None)
        object.__setattr__(self, "by_number", not _is_app(self.client) and _by_number(self.client))

    def of(self, client: int, context: Any) -> _Client:
        """The client of this number. Raises UserError if the user's function makes none."""
        if _is_app(self.client):
            return _App(self.client, context)
        made = self.client(str(client) if self.by_number else context)
        made = getattr(made, "numpy_client", made)  # to_client() stands around it
        if not callable(getattr(made, "fit", None)):
            raise UserError(f"client: {signed(self.client)} gave {type(made).__name__}: expected a NumPyClient or a Client")
        return _ByList(made) if _takes_lists(made) else _ByRecord(made)

    def surroundings(self, client: int) -> Any:
        """Flower's Context of one client, or one like it if flwr is not installed."""
        node = {"partition-id": client, "num-partitions": self.clients}
        try:
            from flwr.app import Context, RecordDict
        except ModuleNotFoundError:
            return SimpleNamespace(run_id=0, node_id=client, node_config=node, state={}, run_config=dict(self.run_config))
        return Context(run_id=0, node_id=client, node_config=node, state=RecordDict(), run_config=dict(self.run_config))

    def first(self, initial: Any) -> Arrays:
        """Version 0 of the weights. Raises UserError."""
        if initial is not None:
            return _named(initial)
        if _is_app(self.client):
            raise UserError("a ClientApp gives no first weights: give initial=, a list of arrays, name -> array, or a module")
        made = self.of(0, self.surroundings(0))
        assert isinstance(made, _ByList | _ByRecord)
        return made.parameters()


def _is_app(client: Any) -> bool:
    return hasattr(client, "train") and hasattr(client, "lifespan") and callable(client)


def _by_number(client_fn: Callable[..., Any]) -> bool:
    """True for Flower's older form, client_fn(cid: str)."""
    first = next(iter(inspect.signature(client_fn).parameters.values()), None)
    return first is not None and (first.name == "cid" or first.annotation in (str, "str"))


def _takes_lists(client: Any) -> bool:
    """True for a NumPyClient: `fit(parameters, config)`. A Client has `fit(ins)`."""
    try:
        inspect.signature(client.fit).bind([], {})
    except TypeError:
        return False
    return True


def _named(initial: Any) -> Arrays:
    if callable(getattr(initial, "state_dict", None)):
        return {name: tensor.detach().cpu().numpy() for name, tensor in initial.state_dict().items()}
    if isinstance(initial, Mapping):
        return {str(name): np.asarray(array.numpy() if hasattr(array, "numpy") else array) for name, array in initial.items()}
    if isinstance(initial, Sequence):
        return {str(at): np.asarray(array) for at, array in enumerate(initial)}
    raise UserError(f"initial is {signed(initial)}: expected a list of arrays, name -> array, or a torch module")


class _ByList:
    """A NumPyClient: weights are a list of arrays."""

    def __init__(self, client: Any) -> None:
        self.client = client

    def parameters(self) -> Arrays:
        return _named(self.client.get_parameters(config={}))

    def fit(self, arrays: Arrays, config: Config) -> tuple[Arrays, float, Config]:
        found, examples, metrics = self.client.fit([array.copy() for array in arrays.values()], dict(config))
        return dict(zip(arrays, map(np.asarray, found), strict=True)), examples, metrics

    def evaluate(self, arrays: Arrays, config: Config) -> tuple[float, float, Config]:
        loss, examples, metrics = self.client.evaluate([array.copy() for array in arrays.values()], dict(config))
        return float(loss), examples, metrics


class _ByRecord:
    """A Client: weights are Flower's Parameters, in a FitIns or an EvaluateIns."""

    def __init__(self, client: Any) -> None:
        self.client = client

    def parameters(self) -> Arrays:
        common = _flwr("Client")
        return _named(common.parameters_to_ndarrays(_well(self.client.get_parameters(common.GetParametersIns({}))).parameters))

    def fit(self, arrays: Arrays, config: Config) -> tuple[Arrays, float, Config]:
        common = _flwr("Client")
        ins = common.FitIns(common.ndarrays_to_parameters([*arrays.values()]), dict(config))
        done = _well(self.client.fit(ins))
        found = common.parameters_to_ndarrays(done.parameters)
        return dict(zip(arrays, found, strict=True)), done.num_examples, done.metrics

    def evaluate(self, arrays: Arrays, config: Config) -> tuple[float, float, Config]:
        common = _flwr("Client")
        done = _well(self.client.evaluate(common.EvaluateIns(common.ndarrays_to_parameters([*arrays.values()]), dict(config))))
        return float(done.loss), done.num_examples, done.metrics


class _App:
    """A ClientApp: it is told in messages. Replies are those of Flower's strategies: "arrays", and "metrics" with
    "num-examples"; an app of a client_fn has the records of FitIns and FitRes."""

    def __init__(self, app: Any, context: Any, clock: Callable[[], float] = time.time) -> None:
        self.app, self.context, self.clock = app, context, clock
        self.older = getattr(app, "_call", None) is not None  # made of a client_fn, which Flower tells from outside only so

    def fit(self, arrays: Arrays, config: Config) -> tuple[Arrays, float, Config]:
        if self.older:
            common, compat = _flwr("ClientApp"), _compat()
            ins = common.FitIns(common.ndarrays_to_parameters([*arrays.values()]), dict(config))
            done = _well(compat.recorddict_to_fitres(self._told(compat.fitins_to_recorddict(ins, True), "train"), True))
            found = common.parameters_to_ndarrays(done.parameters)
            return dict(zip(arrays, found, strict=True)), done.num_examples, done.metrics
        reply = self._told(self._content(arrays, config), "train")
        [record] = reply.array_records.values()
        new = {name: array.numpy() for name, array in record.items()}
        examples, metrics = _metrics(reply)
        return new, examples, metrics

    def evaluate(self, arrays: Arrays, config: Config) -> tuple[float, float, Config]:
        if self.older:
            common, compat = _flwr("ClientApp"), _compat()
            ins = common.EvaluateIns(common.ndarrays_to_parameters([*arrays.values()]), dict(config))
            done = _well(compat.recorddict_to_evaluateres(self._told(compat.evaluateins_to_recorddict(ins, True), "evaluate")))
            return float(done.loss), done.num_examples, done.metrics
        examples, metrics = _metrics(self._told(self._content(arrays, config), "evaluate"))
        found = dict(metrics)
        loss = next((found.pop(name) for name in ("loss", "eval_loss", "eval-loss") if name in found), np.nan)
        return float(loss), examples, found

    def _content(self, arrays: Arrays, config: Config) -> Any:
        from flwr.app import Array, ArrayRecord, ConfigRecord, RecordDict

        record = ArrayRecord({name: Array(array.copy()) for name, array in arrays.items()})
        return RecordDict({"arrays": record, "config": ConfigRecord(dict(config))})

    def _told(self, content: Any, kind: str) -> Any:
        from flwr.app import Message, Metadata

        node = self.context.node_id
        about = Metadata(  # a Message without it asks for the identity of Flower's own process
            run_id=0,
            message_id="",
            src_node_id=node,
            dst_node_id=node,
            reply_to_message_id="",
            group_id="",
            created_at=self.clock(),
            ttl=LONG,
            message_type=kind,
        )
        reply = self.app(Message(metadata=about, content=content), self.context)
        if reply.has_error():
            raise RuntimeError(f"the ClientApp answered with an error: {reply.error.reason}")
        return reply.content


def _metrics(reply: Any) -> tuple[float, Config]:
    """(number of examples, the other metrics) of a reply's metric record."""
    [record] = reply.metric_records.values()
    found = dict(record)
    return float(found.pop("num-examples")), found


def _flwr(kind: str) -> Any:
    try:
        import flwr.common
    except ModuleNotFoundError:
        raise UserError(MISSING.format(kind)) from None
    return flwr.common


def _compat() -> Any:
    """The module of flwr that turns a FitIns into records; its place depends on the version."""
    try:
        from flwr.compat.common import recorddict_compat
    except ModuleNotFoundError:
        from flwr.common import recorddict_compat
    return recorddict_compat


def _well(done: Any) -> Any:
    """The answer of a Client. Raises RuntimeError if it says that it failed."""
    code = getattr(done.status, "code", None)
    if code is not None and getattr(code, "value", code) != 0:
        raise RuntimeError(f"the Flower client answered {code}: {done.status.message}")
    return done


class _Worker:
    """Tasks of kind "train" are `fit`, of kind "evaluate" `evaluate`."""

    def __init__(self, plays: _Plays) -> None:
        self.plays = plays

    def run(self, weights: Bundle, client: int, task: Task, brief: Bundle | None = None) -> Work:
        context = self.plays.surroundings(client)
        its = self.plays.of(client, context)
        arrays = {place.name: weights[place.name] for place in weights.layout.places}
        if task.kind == "evaluate":
            loss, examples, metrics = its.evaluate(arrays, self._config(self.plays.evaluate_config, task))
            return Work(None, float(examples), {"loss": (loss * examples, float(examples)), **_totals(metrics, examples)})
        new, examples, metrics = its.fit(arrays, self._config(self.plays.fit_config, task))
        if left := getattr(context, "state", None):
            raise UserError(
                f"the Flower client left {', '.join(map(str, left))} in context.state, which is not kept from round to round"
            )
        delta = Bundle.zeros(weights.layout)
        for name, array in arrays.items():
            if new[name].shape != array.shape:
                raise ValueError(f"array {name}: fit gave {list(new[name].shape)}, and the weights have {list(array.shape)}")
            delta[name][...] = new[name] if array.dtype.itemsize == 1 else new[name] - array
        return Work(delta, float(examples), _totals(metrics, examples))

    def _config(self, config: Any, task: Task) -> Config:
        found: Config = config(task.version + 1) if callable(config) else config
        return {"server-round": task.version + 1, **found} if _is_app(self.plays.client) else found


def _totals(metrics: Config, examples: float) -> dict[str, tuple[float, float]]:
    """Numbers among a client's metrics, weighted by its examples, as Flower's usual weighted average has them."""
    numbers = {name: value for name, value in metrics.items() if isinstance(value, int | float | np.number)}
    return {str(name): (float(value) * examples, float(examples)) for name, value in numbers.items()}
