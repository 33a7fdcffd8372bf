"""The cost of noised versions, in epsilon: Google's dp-accounting, asked for one mechanism repeated.

The one idea: a run is one mechanism, made once for each version, so its cost follows from the number of versions alone.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from shoal.protocol.errors import UserError

ACCOUNTANTS = ("pld", "rdp")
INTERVAL = 1e-3  # discretization of a privacy loss distribution: its epsilon is an upper bound, 1e-5 above that of 1e-4
MOST = 1_000_000  # versions that a budget is searched up to
LEAST, LARGEST = 0.1, 1_000.0  # noise multipliers are searched within these


def accounting() -> Any:
    """The package dp_accounting. Raises UserError if it is not installed."""
    try:
        import dp_accounting
        import dp_accounting.pld
        import dp_accounting.rdp
    except ModuleNotFoundError:
        raise UserError(
            "differential privacy needs the package dp-accounting, which is not installed: pip install 'shoal[privacy]'"
        ) from None
    return dp_accounting


@dataclass(frozen=True)
class Mechanism:
    """A Gaussian mechanism on a sample of clients.

    multiplier: standard deviation of the noise over the clipping norm, above 0. sampling: "poisson": each of `clients` takes
    part with probability cohort / clients, by itself; two data sets are neighbours if one has a client more. "fixed": `cohort`
    of `clients`, without replacement; neighbours differ in one client's data, which moves a sum by twice the clipping norm.
    "none": the client takes part each time, and all its data may be other data (local differential privacy).
    """

    multiplier: float
    sampling: str
    cohort: int
    clients: int
    delta: float
    accountant: str = "pld"

    def event(self) -> Any:
        """dp-accounting's event for one version."""
        dp = accounting()
        if self.sampling == "poisson":
            return dp.PoissonSampledDpEvent(self.cohort / self.clients, dp.GaussianDpEvent(self.multiplier))
        half = dp.GaussianDpEvent(self.multiplier / 2)
        return half if self.sampling == "none" else dp.SampledWithoutReplacementDpEvent(self.clients, self.cohort, half)

    def epsilon(self, versions: int) -> float:
        """Epsilon of so many versions at `delta`; 0 of none."""
        return self._spent(versions) if versions else 0.0

    @cached_property
    def _spent(self) -> Callable[[int], float]:
        dp = accounting()
        with _quiet():
            if self.accountant == "pld":
                rate = self.cohort / self.clients if self.sampling == "poisson" else 1.0
                noise = self.multiplier if self.sampling == "poisson" else self.multiplier / 2
                losses = dp.pld.privacy_loss_distribution
                one = losses.from_gaussian_mechanism(noise, value_discretization_interval=INTERVAL, sampling_prob=rate)
                return lambda versions: float(one.self_compose(versions).get_epsilon_for_delta(self.delta))
            relation = dp.NeighboringRelation
            near = relation.REPLACE_ONE if self.sampling == "fixed" else relation.ADD_OR_REMOVE_ONE
            once = dp.rdp.RdpAccountant(neighboring_relation=near).compose(self.event())
            orders, rdp = once._orders, once._rdp
        return lambda versions: float(dp.rdp.compute_epsilon(orders, rdp * versions, self.delta)[0])

    def most(self, epsilon: float) -> int:
        """The largest number of versions that epsilon pays for, at most MOST."""
        few, many = 0, 1
        while many <= MOST and self.epsilon(many) <= epsilon:
            few, many = many, 2 * many
        while many - few > 1:
            half = (few + many) // 2
            few, many = (half, many) if self.epsilon(half) <= epsilon else (few, half)
        return few


def least_noise(epsilon: float, versions: int, made: Callable[[float], Mechanism]) -> float:
    """The least noise multiplier, rounded up to 4 digits, with which so many versions cost at most epsilon. made: multiplier ->
    the mechanism. Raises UserError if there is none up to LARGEST."""

    def keeps(multiplier: float) -> bool:
        return made(multiplier).epsilon(versions) <= epsilon

    high = 1.0
    while not keeps(high):
        high *= 2
        if high > LARGEST:
            raise UserError(
                f"epsilon={epsilon:g}: no noise_multiplier up to {LARGEST:g} keeps {versions} versions within it; ask for a "
                "larger epsilon or fewer rounds"
            )
    low = high / 2
    while low > LEAST and keeps(low):
        low, high = low / 2, low
    while high - low > 1e-3 * high:
        half = (low + high) / 2
        low, high = (low, half) if keeps(half) else (half, high)
    scale = 10.0 ** (3 - math.floor(math.log10(high)))
    return math.ceil(high * scale) / scale


@contextmanager
def _quiet() -> Iterator[None]:
    """Hold back the warnings of dp-accounting that an order of RDP is left out: the bound holds without it."""
    logger = logging.getLogger("absl")
    before = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(before)
