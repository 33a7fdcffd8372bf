"""Names of metrics: the names that Shoal itself gives, and the order in which a person sees metrics.

The one idea: a metric that Shoal does not give is the user's own, and a user who brought a metric wants to see it.
"""

from __future__ import annotations

import re
from collections.abc import Iterable

from shoal.protocol.errors import UserError

FIRST = ("accuracy", "held_out_loss", "return_mean", "loss")  # shown before all other metrics
# fmt: off
OURS = frozenset({
    "train_accuracy", "examples", "update_norm", "lag_min", "lag_mean", "lag_max", "down_bytes", "up_bytes",
    "held_out_examples", "sent_bytes", "dense_bytes", "dropped_residuals", "change_bytes", "weights_bytes", "untold",
    "length_mean", "episodes", "return_age", "env_replaced", "inference_central",
    "policy_loss", "value_loss", "entropy", "grad_norm", "explained_variance",
    "rho_mean", "approx_kl", "control_norm", "tau_eff", "gradient_norm", "mu", "global_loss", "global_accuracy",
    "clip_fraction", "first_ratio_error", "too_few", "clipped", "unclipped", "attackers", "norm_limit", "attack_refused",
    "loss_squared",
    "lag_p50", "lag_p90", "dropped_steps", "rollout_seconds", "transfer_seconds", "queue_seconds", "learn_seconds", "ess",
    "gradient_steps", "fitness_mean", "fitness_max", "fitness_std", "weight_norm",
    "left_out", "above_limit", "mixing", "epsilon", "clip_norm", "noise_stddev", "secagg_clients", "secagg_aborted", "trees",
    "q_mean", "td_error", "critic_loss", "actor_loss", "alpha", "updates", "replay_rows",
    "clients", "rollout_lag", "transfer_lag", "queue_lag", "learn_lag", "quantile_error",
})
# fmt: on


SPREAD = re.compile(r"/(p[1-9]0|worst_tenth)$")  # ends the names of a metric's distribution over clients


def own(names: Iterable[str]) -> list[str]:
    """The names of metrics that a user's own code gives, in their order; metrics over clients (eval/...) come last. Their
    distributions over clients are left out."""
    plain = {name: name.removeprefix("eval/") for name in names if not SPREAD.search(name)}
    found = [name for name, its in plain.items() if its not in OURS and its not in FIRST]
    return sorted(found, key=lambda name: name.startswith("eval/"))


def ordered(names: Iterable[str]) -> list[str]:
    """Return the names in the order in which a person sees them: FIRST, the user's own, the rest."""
    there = list(names)
    return list(dict.fromkeys([*(name for name in FIRST if name in there), *own(there), *there]))


def directed(goal: str, noun: str = "METRIC") -> tuple[str, str]:
    """The direction ("min", "max", or "" if none is given) and the name in a goal like max:accuracy. Raises UserError."""
    way, sign, name = goal.partition(":")
    if not sign:
        return "", goal
    if way not in ("min", "max"):
        raise UserError(f"goal {goal!r}: expected max:{noun} or min:{noun}, or {noun} alone")
    return way, name
