"""The returns and lengths of the episodes that environments play, over any number of rollouts.

The one idea: an episode is a stretch of one environment's rows, so one sum per stretch gives the statistics of all episodes at
once, and what a rollout leaves unfinished goes on in the next.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt


@dataclass(slots=True)
class Episodes:
    """The returns and lengths so far of the running episodes of B environments."""

    returns: npt.NDArray[np.float64]  # [B]
    lengths: npt.NDArray[np.int64]  # [B]

    @classmethod
    def none(cls, num_envs: int) -> Episodes:
        return cls(np.zeros(num_envs), np.zeros(num_envs, np.int64))

    def finished(
        self,
        reward_TB: npt.NDArray[np.float64],
        lived_TB: npt.NDArray[np.bool_],
        over_TB: npt.NDArray[np.bool_],
        cut_TB: npt.NDArray[np.bool_] | None = None,
    ) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.int64]]:
        """Take T rows in. Gives returns and lengths of the episodes that ended in these rows, in the order of their ends.

        An episode is a stretch of one environment's rows up to a row with `over`. A row that is not `lived` only reset: it has
        no reward and adds nothing to the length. If an episode's last row is not `lived`, the episode was lost with its process
        and is left out. Sums are taken per stretch, so that a NaN stays in its own episode.
        """
        T, B = over_TB.shape
        begins = np.ones((B, T), dtype=bool)
        begins[:, 1:] = over_TB.T[:, :-1]
        starts = np.flatnonzero(begins)
        ends = np.append(starts[1:], T * B) - 1
        returns = np.add.reduceat(reward_TB.T.ravel(), starts)
        lengths = np.add.reduceat(lived_TB.T.ravel().astype(np.int64), starts)
        first, last = starts % T == 0, ends % T == T - 1  # one stretch of each kind per environment
        returns[first] += self.returns
        lengths[first] += self.lengths
        over = over_TB.T.ravel()[ends]
        self.returns, self.lengths = np.where(over, 0, returns)[last], np.where(over, 0, lengths)[last]
        told = over & lived_TB.T.ravel()[ends]
        if cut_TB is not None:
            told &= ~cut_TB.T.ravel()[ends]
        order = np.argsort((ends % T)[told], kind="stable")
        return returns[told][order], lengths[told][order]


def samples(returns: Any, lengths: Any) -> dict[str, tuple[float, ...]]:
    """The samples of a Work that tells these episodes."""
    return {name: tuple(np.asarray(each, float).tolist()) for name, each in (("return", returns), ("length", lengths))}
