"""Aggregators that stand around another one: bounds, compression, changes of weights.

The one idea: a wrapper defines only what it changes. `Around` forwards everything else.
"""

from __future__ import annotations

from typing import Any

from shoal.aggregators import Aggregator, State
from shoal.protocol.layout import Bundle
from shoal.protocol.work import Contribution, Moved


class Around:
    """An aggregator that forwards everything to the aggregator inside it. A subclass overrides what it changes.

    The inner aggregator's optional methods (`change`, `brief`) and its other attributes show through.
    """

    def __init__(self, aggregator: Aggregator) -> None:
        self.aggregator = aggregator

    @property
    def linear(self) -> bool:
        return self.aggregator.linear

    def weights(self) -> Bundle:
        return self.aggregator.weights()

    def fold(self, contribution: Contribution) -> None:
        self.aggregator.fold(contribution)

    def step(self) -> Moved:
        return self.aggregator.step()

    def state(self) -> State:
        return self.aggregator.state()

    def load(self, weights: Bundle, state: State) -> None:
        self.aggregator.load(weights, state)

    def __getattr__(self, name: str) -> Any:
        if name == "aggregator":  # __init__ has not set it yet
            raise AttributeError(name)
        return getattr(self.aggregator, name)
