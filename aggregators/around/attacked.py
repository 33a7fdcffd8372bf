"""An aggregator whose malicious clients know all others' deltas. A tool of experiments.

The one idea: no client of a real run sees other clients' deltas before it sends its own, but an attack that is to be withstood
may assume it. So these attacks are made where all deltas are: here, when a round's contributions are together and before the
aggregator gets any of them.
"""

from __future__ import annotations

import math
from dataclasses import replace
from statistics import NormalDist

import numpy as np

from shoal.aggregators import Aggregator, State
from shoal.aggregators.around import Around
from shoal.protocol.layout import Bundle
from shoal.protocol.work import Contribution, Moved

OMNISCIENT = ("alie", "ipm", "mimic")
REPLACED = ("f4", "f8")


class Apart(Around):
    """An aggregator around another, which gets each client's contribution by itself, so that a malicious client spoils no
    other's sum."""

    linear = False


class Attacked(Around):
    """An aggregator around another. It holds a round's contributions until the step, replaces those of clients 0 to attackers
    - 1, and then hands all on, in the order of their clients' numbers.

    With mean m and standard deviation s (n - 1 in the denominator) of the honest clients' entries, the float32 and float64
    entries of malicious contributions are
    "alie": m - z s (Baruch et al. 2019, algorithm 3), z = strength, or for strength=0 the paper's largest z that hides among
    the honest: the standard normal quantile of `hidden`;
    "ipm": -strength m (inner-product manipulation, Xie et al. 2020, equation 1);
    "mimic": the delta of the honest client with the lowest number (Karimireddy et al. 2022, section 3.2, with a fixed target).
    A round without honest or without malicious clients is handed on as it is.

    Metrics: `attackers`, the malicious clients of a round; `attack_refused`, contributions that the inner aggregator refused
    then. Memory: the deltas of a round, beside the inner aggregator's own.
    """

    linear = False

    def __init__(self, aggregator: Aggregator, attack: str, attackers: int, strength: float = 0.0) -> None:
        super().__init__(aggregator)
        if attack not in OMNISCIENT:
            raise ValueError(f"attack={attack!r}: must be one of {', '.join(OMNISCIENT)}")
        self.attack, self.attackers, self.strength = attack, attackers, strength
        self._held: list[Contribution] = []

    def fold(self, contribution: Contribution) -> None:
        work = contribution.work
        self._held.append(replace(contribution, work=replace(work, bundle=contribution.bundle.copy())))

    def step(self) -> Moved:
        held = sorted(self._held, key=lambda each: (each.task.clients, each.task.version, each.task.index))
        self._held = []
        malicious = [each for each in held if self._malicious(each)]
        honest = [each.bundle for each in held if not self._malicious(each)]
        if malicious and honest:
            self._replace(malicious, honest, len(held))
        refused = 0
        for each in held:
            try:
                self.aggregator.fold(replace(each, norm=None) if self._malicious(each) else each)
            except ValueError:  # it was acknowledged already
                refused += 1
        told = {"attackers": float(len(malicious)), "attack_refused": float(refused)}
        if refused == len(held) > 0:
            return Moved(told, weights=False)
        moved = self.aggregator.step()
        return replace(moved, metrics={**moved.metrics, **told})

    def _malicious(self, contribution: Contribution) -> bool:
        return contribution.task.clients[0] < self.attackers

    def _replace(self, malicious: list[Contribution], honest: list[Bundle], n: int) -> None:
        for dtype in REPLACED:
            size = min(each.vector(dtype).size for each in honest)
            if not size:
                continue
            x_ND = np.stack([each.vector(dtype)[:size] for each in honest]).astype(np.float64)
            match self.attack:
                case "alie":
                    z = self.strength or hidden(n, len(malicious))
                    made = x_ND.mean(0) - z * x_ND.std(0, ddof=1 if len(x_ND) > 1 else 0)
                case "ipm":
                    made = -(self.strength or 2.0) * x_ND.mean(0)
                case _:
                    made = x_ND[0]
            for each in malicious:
                into = each.bundle.vector(dtype)
                into[: min(size, into.size)] = made[: into.size]

    def load(self, weights: Bundle, state: State) -> None:
        self.aggregator.load(weights, state)
        self._held = []


def hidden(n: int, f: int) -> float:
    """ALIE's z (Baruch et al. 2019, algorithm 3): s = floor(n / 2 + 1) - f supporters are needed for a majority, so z is where
    the standard normal distribution is (n - f - s) / (n - f); 0 if that is below 1/2."""
    supporters = math.floor(n / 2 + 1) - f
    share = (n - f - supporters) / (n - f)
    return max(0.0, NormalDist().inv_cdf(min(max(share, 1e-9), 1 - 1e-9)))
