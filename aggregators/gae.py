"""Generalized advantage estimation over trajectories that tell terminated from truncated episodes.

The one idea: an advantage is a sum of temporal-difference errors that runs backwards in time, and two things cut it. If an
episode terminated, the discount is 0, so nothing follows. If an episode was truncated, the next row holds the episode's own
last observation and is masked: its value bootstraps the row before it, and no sum crosses it. Where that observation lies
beside the rows, its value becomes part of the last row's reward (`cut_off`), and nothing follows either.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor


class Targets(NamedTuple):
    """The targets of a learner's two losses, both of shape [T, B], without gradients.

    value: target of the value function; on a masked row the value itself, so that the error there is 0.
    advantage: weight of the policy gradient; 0 on a masked row.
    """

    value: Tensor
    advantage: Tensor


@torch.no_grad()
def gae(
    reward_TB: Tensor, discount_TB: Tensor, value_TB: Tensor, last_value_B: Tensor, mask_TB: Tensor, lam: float = 0.95
) -> Targets:
    """Advantages as sums of (discount * lam)-weighted errors (Schulman et al. 2016, equation 16); value targets, which are
    advantage + value.

    discount is gamma * (1 - terminated). mask is False on a row that is not learned from. last_value is the value of the
    observation after the last row. All floats have one dtype; mask is bool.
    """
    next_value_TB = torch.cat([value_TB[1:], last_value_B[None]])
    delta_TB = (reward_TB + discount_TB * next_value_TB - value_TB).where(mask_TB, 0.0)
    advantage_TB = backward_sum(delta_TB, (discount_TB * lam).where(mask_TB, 0.0))
    return Targets(advantage_TB + value_TB, advantage_TB)


@torch.no_grad()
def cut_off(reward_TB: Tensor, discount_TB: Tensor, cut: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
    """Rewards and discounts [T, B] in which the rows `cut` [n] of the flattened [T * B] end truncated episodes whose last
    observation is in no row: its value [n], discounted, is part of the reward, and the discount is 0, so nothing follows."""
    reward, discount = reward_TB.flatten(), discount_TB.flatten()
    added = reward.index_add(0, cut, discount[cut] * value)
    return added.view_as(reward_TB), discount.index_fill(0, cut, 0.0).view_as(discount_TB)


def backward_sum(delta_TB: Tensor, decay_TB: Tensor) -> Tensor:
    """The sums [T, B] with sum[t] = delta[t] + decay[t] * sum[t + 1], and sum[T] = 0."""
    sum_TB = torch.empty_like(delta_TB)
    sum_B = torch.zeros_like(delta_TB[0])
    rows = zip(delta_TB.unbind(), decay_TB.unbind(), sum_TB.unbind(), strict=True)
    for delta_B, decay_B, out_B in reversed(list(rows)):
        sum_B = torch.addcmul(delta_B, decay_B, sum_B, out=out_B)
    return sum_TB
