"""Retrace: values of actions from sequences that another policy acted, for as long as the learned policy would act alike.

The one idea: behind each row the target goes on along the sequence by the share in which the learned policy takes the action
that was taken (the trace), and bootstraps from the policy's own value by the rest. A trace is cut off at 1, so no product of
ratios can grow; an action that the policy would not take ends the sum.
"""

from __future__ import annotations

import torch
from torch import Tensor

from shoal.aggregators.gae import backward_sum


@torch.no_grad()
def retrace(
    ratio_TB: Tensor,
    reward_TB: Tensor,
    discount_TB: Tensor,
    taken_TB: Tensor,
    next_value_TB: Tensor,
    follows_TB: Tensor,
    lam: float = 1.0,
) -> Tensor:
    """Targets [T, B] of the values of the actions that were taken (Munos et al. 2016, equations 3 and 4, Retrace(lambda)).

    ratio is pi(action) / mu(action), unclipped, with pi the policy that is learned and mu the one that acted. taken is the
    value of the row's observation and action; next_value is that of the observation after the row, the mean over pi's actions.
    Both are of the target network. discount is gamma * (1 - terminated). follows is False on a row that does not go on from
    the row before: a masked row, and the first one of an episode. All floats have one dtype; follows is bool.
    """
    trace_TB = (lam * ratio_TB.clamp(max=1.0)).where(follows_TB, 0.0)
    decay_TB = discount_TB * torch.cat([trace_TB[1:], torch.zeros_like(trace_TB[:1])])
    next_taken_TB = torch.cat([taken_TB[1:], torch.zeros_like(taken_TB[:1])])
    return backward_sum(reward_TB + discount_TB * next_value_TB - decay_TB * next_taken_TB, decay_TB)
