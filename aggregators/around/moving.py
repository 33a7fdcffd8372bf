"""An aggregator whose frozen arrays go to an actor once: later versions go as their other arrays alone.

The one idea: nothing is rounded. A version is the actor's last version with the first entries of each dtype replaced, so a run
has the same bits whichever way its weights travel.
"""

from __future__ import annotations

from shoal.aggregators import Aggregator, State
from shoal.aggregators.around import Around
from shoal.protocol.changes import First
from shoal.protocol.layout import Bundle
from shoal.protocol.work import Moved


class Moving(Around):
    """An aggregator around another whose layout has arrays that are still (`Layout.still`), the last ones of each dtype. A step
    that changed one of these after all, as a client may, tells no change: that version goes whole.

    Cost of a step: the entries that are still are compared, and the others copied once.
    """

    def __init__(self, aggregator: Aggregator) -> None:
        super().__init__(aggregator)
        self.moving = aggregator.weights().layout.moving
        self.coding = First.of(self.moving)
        self._change: Bundle | None = None

    def change(self) -> Bundle | None:
        """The arrays that are not still, as the last step left them; None before the first step, after a restart, and if a step
        changed others too."""
        return self._change

    def step(self) -> Moved:
        before = self.aggregator.weights()
        moved = self.aggregator.step()
        now = self.aggregator.weights()
        self._change = now.first(self.moving) if now.ends_as(before, self.moving) else None
        return moved

    def load(self, weights: Bundle, state: State) -> None:
        self.aggregator.load(weights, state)
        self._change = None
