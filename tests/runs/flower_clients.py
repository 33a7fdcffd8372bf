"""Flower clients as flwr's documentation writes them: softmax regression in numpy, five passes in batches of four.

This file is imported in Flower's own environment too (flower_expected.py), so it imports nothing of Shoal.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from flwr.client import NumPyClient

CLIENTS, ROUNDS = 6, 3
LAW = np.array([[1.0, -1.0, 0.0], [0.5, 0.5, -1.0], [-1.0, 0.0, 1.0], [0.0, 1.0, -0.5]])


def readings(number: int) -> tuple[np.ndarray, np.ndarray]:
    """A client's inputs [n, 4] and classes [n]; clients have 14 to 24 of them."""
    rng = np.random.default_rng(number)
    x = rng.normal(number % 3, 1, (14 + 2 * number, 4)).astype(np.float32)
    return x, (x @ LAW + rng.normal(0, 0.5, (len(x), 3))).argmax(1)


def first() -> list[np.ndarray]:
    return [np.zeros((4, 3), np.float32), np.zeros(3, np.float32)]


def chances(x: np.ndarray, weights: list[np.ndarray]) -> np.ndarray:
    logits = x @ weights[0] + weights[1]
    grown = np.exp(logits - logits.max(1, keepdims=True))
    return np.asarray(grown / grown.sum(1, keepdims=True))


def trained(number: int, round_: int, weights: list[np.ndarray], lr: float) -> list[np.ndarray]:
    x, y = readings(number)
    rng = np.random.default_rng([number, round_])
    slope, offset = weights
    for _ in range(5):
        for rows in np.array_split(rng.permutation(len(y)), len(y) // 4):
            error = (chances(x[rows], [slope, offset]) - np.eye(3)[y[rows]]).astype(np.float32)
            slope = slope - np.float32(lr / len(rows)) * (x[rows].T @ error)
            offset = offset - np.float32(lr / len(rows)) * error.sum(0)
    return [slope, offset]


def judged(number: int, weights: list[np.ndarray]) -> tuple[float, int, float]:
    """(mean loss, number of examples, share of right answers) of a client."""
    x, y = readings(number)
    found = chances(x, weights)
    return float(-np.log(found[np.arange(len(y)), y]).mean()), len(y), float((found.argmax(1) == y).mean())


class FlowerClient(NumPyClient):  # type: ignore[misc]
    def __init__(self, number: int) -> None:
        self.number = number

    def get_parameters(self, config: dict[str, Any]) -> list[np.ndarray]:
        return first()

    def fit(self, parameters: list[np.ndarray], config: dict[str, Any]) -> tuple[list[np.ndarray], int, dict[str, Any]]:
        new = trained(self.number, int(config["round"]), parameters, float(config["lr"]))
        return new, len(readings(self.number)[1]), {"after": judged(self.number, new)[0]}

    def evaluate(self, parameters: list[np.ndarray], config: dict[str, Any]) -> tuple[float, int, dict[str, Any]]:
        loss, examples, accuracy = judged(self.number, parameters)
        return loss, examples, {"accuracy": accuracy}


def client_fn(context: Any) -> Any:
    return FlowerClient(int(context.node_config["partition-id"])).to_client()


def fit_config(round_: int) -> dict[str, Any]:
    return {"round": round_, "lr": 0.2 / round_}


def app() -> Any:
    """The same as a ClientApp of messages."""
    from flwr.app import ArrayRecord, Context, Message, MetricRecord, RecordDict
    from flwr.clientapp import ClientApp

    made = ClientApp()

    @made.train()
    def train(message: Message, context: Context) -> Message:
        number, round_ = int(context.node_config["partition-id"]), int(message.content["config"]["server-round"])
        new = trained(number, round_, message.content["arrays"].to_numpy_ndarrays(), 0.2 / round_)
        metrics = MetricRecord({"num-examples": len(readings(number)[1]), "after": judged(number, new)[0]})
        return Message(RecordDict({"arrays": ArrayRecord(new), "metrics": metrics}), reply_to=message)

    @made.evaluate()
    def evaluate(message: Message, context: Context) -> Message:
        loss, examples, accuracy = judged(
            int(context.node_config["partition-id"]), message.content["arrays"].to_numpy_ndarrays()
        )
        metrics = MetricRecord({"num-examples": examples, "loss": loss, "accuracy": accuracy})
        return Message(RecordDict({"metrics": metrics}), reply_to=message)

    return made
