"""Returns over n steps of trajectories that tell terminated from truncated episodes.

The one idea: a return adds rewards until its n-th row, the episode's end or the trajectory's end, whichever comes first, and
says how many rows it took. What follows its last row bootstraps, unless the episode terminated there. So a return near the
end of a trajectory is one over fewer steps, never one over the rows of another episode.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import numpy.typing as npt

Doubles = npt.NDArray[np.float64]
Bools = npt.NDArray[np.bool_]


class Returns(NamedTuple):
    """Returns that begin in each row of a trajectory.

    reward: float64 [T, B], the discounted sum of rewards. discount: float64 [T, B], the factor of the value of what follows:
    gamma to the power of `steps`, 0 after a terminated row. steps: int64 [T, B], number of rows in the sum, 0 on a masked row.
    """

    reward: Doubles
    discount: Doubles
    steps: npt.NDArray[np.int64]


def n_step(
    reward_TB: npt.NDArray[np.floating], terminated_TB: Bools, truncated_TB: Bools, mask_TB: Bools, n: int, gamma: float
) -> Returns:
    """Returns over n steps (Sutton 1988; Mnih et al. 2016, section 4): the sum of gamma^k * reward[t + k] for k below `steps`.

    `steps` is n, or less if before that the episode ends, the next row is masked (it holds the observation to bootstrap from),
    or the trajectory ends. mask is False on a row that is not learned from (Spaces.trajectory).
    """
    T, _ = reward_TB.shape
    last_TB = terminated_TB | truncated_TB
    last_TB = last_TB | ~np.concatenate([mask_TB[1:], np.zeros_like(mask_TB[:1])])
    sum_TB = np.zeros(reward_TB.shape)
    steps_TB = np.zeros(reward_TB.shape, np.int64)
    runs_TB = mask_TB.copy()
    for k in range(min(n, T)):
        runs, rows = runs_TB[: T - k], slice(k, T)  # a sum that begins later has ended: the last row ends all
        sum_TB[: T - k] += np.where(runs, gamma**k * reward_TB[rows].astype(np.float64), 0.0)
        steps_TB[: T - k] += runs
        runs &= ~last_TB[rows]
    final_TB = np.arange(T)[:, None] + np.maximum(steps_TB, 1) - 1
    ended_TB = np.take_along_axis(terminated_TB, final_TB, axis=0)
    return Returns(sum_TB, np.where(ended_TB, 0.0, np.power(float(gamma), steps_TB)), steps_TB)
