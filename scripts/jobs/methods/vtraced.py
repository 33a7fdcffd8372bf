"""Settings shared by methods on a stream whose targets are V-trace's: IMPALA and APPO."""

from __future__ import annotations

from dataclasses import dataclass

from shoal.jobs.methods.acting import OnPolicy
from shoal.jobs.methods.rhythms import OnStream
from shoal.jobs.settings import option


@dataclass(frozen=True)
class VTraced(OnPolicy, OnStream):
    """A method that corrects by V-trace for the lag of the weights that a trajectory was made from."""

    lag_weight: str = option(
        "none", "weight of a trajectory in the loss: 1 (none), 1 / sqrt(1 + lag) (sqrt), 1 / (1 + lag) (inverse)",
        choices=("none", "sqrt", "inverse"),
    )  # fmt: skip
    clip_rho: float = option(1.0, "V-trace's upper bound on the importance ratio rho", above=0)
    clip_c: float = option(1.0, "V-trace's upper bound on the importance ratio c", above=0)
    lam: float = option(1.0, "V-trace's lambda, a factor of the ratio c", least=0, most=1)
    vtrace_alpha: float = option(
        1.0, "share of the bounded ratios in rho and c, beside the ratios themselves: below 1 it is leaky V-trace",
        least=0, most=1,
    )  # fmt: skip
    tune_envs: bool = option(
        True,
        "num_envs and rollout_length, if nobody set either, are chosen by a short trial before the run, if the run has actors "
        "of its own machine",
    )
