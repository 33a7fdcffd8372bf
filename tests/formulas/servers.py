"""The servers of FedOpt's family, as methods make them: FedAvgServer with an update each."""

from __future__ import annotations

from functools import partial
from typing import Any

from shoal.aggregators.fedavg import FedAvgServer
from shoal.aggregators.fedopt import ServerAdagrad, ServerAdam, ServerYogi
from shoal.nets.updates import SGD
from shoal.protocol.layout import Bundle


def _server(update: Any, weights: Bundle, trainable: int | None = None, **given: Any) -> FedAvgServer:
    own = {name: given.pop(name) for name in ("device", "deterministic") if name in given}
    return FedAvgServer(weights, trainable, update=update(**given), **own)


def _momentum(lr: float = 1.0, beta: float = 0.9) -> SGD:
    return SGD(lr, beta)


FedAvgMServer, FedAdagradServer, FedAdamServer, FedYogiServer = (
    partial(_server, update) for update in (_momentum, ServerAdagrad, ServerAdam, ServerYogi)
)
