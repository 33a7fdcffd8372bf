"""V-trace: values and advantages of the newest policy from trajectories of a slightly older one.

The one idea: a temporal-difference error is weighted by how likely the newest policy is to act as the older policy did. Two
weights are cut off from above: rho decides *which* value function is learnt, c only how far back an error reaches.
"""

from __future__ import annotations

import torch
from torch import Tensor

from shoal.aggregators.gae import Targets, backward_sum


@torch.no_grad()
def vtrace(
    rho_TB: Tensor,
    reward_TB: Tensor,
    discount_TB: Tensor,
    value_TB: Tensor,
    last_value_B: Tensor,
    mask_TB: Tensor,
    clip_rho: float = 1.0,
    clip_c: float = 1.0,
    lam: float = 1.0,
    alpha: float = 1.0,
) -> Targets:
    """Value targets and policy-gradient advantages from importance ratios rho (Espeholt et al. 2018, equations 1 and 4).

    rho is pi(action) / mu(action), unclipped. discount is gamma * (1 - terminated). mask is False on a row that is not learned
    from, so that a truncated episode bootstraps from its own last observation. last_value is the value of the observation
    after the last row. lam scales c (the paper's remark 2). alpha below 1 is leaky V-trace (Zahavy et al. 2020): rho and c are
    alpha times the clipped ratio plus 1 - alpha times the ratio itself. All floats have one dtype; mask is bool.
    """
    clipped_TB = leaky(rho_TB, clip_rho, alpha)
    next_value_TB = torch.cat([value_TB[1:], last_value_B[None]])
    delta_TB = (clipped_TB * (reward_TB + discount_TB * next_value_TB - value_TB)).where(mask_TB, 0.0)
    decay_TB = (discount_TB * lam * leaky(rho_TB, clip_c, alpha)).where(mask_TB, 0.0)
    target_TB = value_TB + backward_sum(delta_TB, decay_TB)
    next_target_TB = torch.cat([target_TB[1:], last_value_B[None]])
    advantage_TB = clipped_TB * (reward_TB + discount_TB * next_target_TB - value_TB)
    return Targets(target_TB, advantage_TB.where(mask_TB, 0.0))


def leaky(ratio: Tensor, most: float, alpha: float) -> Tensor:
    """The mixture of the ratio that is cut off at `most`, by the share alpha, and of the ratio itself."""
    clipped = ratio.clamp(max=most)
    return clipped if alpha == 1.0 else alpha * clipped + (1.0 - alpha) * ratio
