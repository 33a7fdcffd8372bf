"""Several passes over one batch of trajectories, each in shuffled minibatches: the frame of PPO's and APPO's steps.

The one idea: a minibatch is a set of rows and the policy's outputs there. Where the policy has memory it is a set of whole
environments, whose rows are gone through in their order.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from operator import itemgetter, methodcaller

import torch
from torch import Tensor

from shoal.aggregators.descent import TrajectoryLearner
from shoal.aggregators.staging import Batch
from shoal.nets.distributions import selected
from shoal.nets.policies import Parameters, every, judged
from shoal.nets.recurrent import unrolled
from shoal.protocol import draws


@dataclass(kw_only=True, eq=False, repr=False)
class MinibatchLearner(TrajectoryLearner):
    """A learner whose step is update_epochs passes over the unmasked rows, each in num_minibatches parts, shuffled by (seed,
    updates). The parts are of rows, or of whole environments if the policy has memory."""

    seed: int = 0
    update_epochs: int = 4
    num_minibatches: int = 4

    def _minibatches(self, batch: Batch) -> Iterator[tuple[Tensor, Parameters, Tensor]]:
        """The rows of each minibatch, indexes of the flattened [T * B], and the policy's action parameters and values there."""
        generator = torch.Generator().manual_seed(draws.key(self.seed, "minibatch", self.updates) % 2**63)
        if batch.first is not None:
            yield from self._sequences(batch, batch.first[:-1], generator)
            return
        observation = every(batch.observation, lambda x: x[:-1].flatten(0, 1))
        for rows in self._parts(batch.rows, generator):
            yield rows, *judged(self.judge, every(observation, methodcaller("index_select", 0, rows)))

    def _parts(self, rows: Tensor, generator: torch.Generator) -> Iterator[Tensor]:
        """The rows in another order each epoch, in parts of nearly one size, at least 2: one row has no spread."""
        parts = min(self.num_minibatches, len(rows) // 2)
        for _ in range(self.update_epochs):
            order = torch.randperm(len(rows), generator=generator).to(rows.device)
            yield from rows[order].tensor_split(parts)

    def _sequences(
        self, batch: Batch, first_TB: Tensor, generator: torch.Generator
    ) -> Iterator[tuple[Tensor, Parameters, Tensor]]:
        """Minibatches of whole environments in another order each epoch: a policy with memory goes through all rows of an
        environment, and those where mask is False are left out afterwards."""
        T, B = batch.mask.shape
        index_TB = torch.arange(T * B, device=batch.mask.device).view(T, B)
        lived_B = batch.mask.sum(0).cpu()
        for _ in range(self.update_epochs):
            parts = torch.randperm(B, generator=generator).tensor_split(min(self.num_minibatches, B))
            if any(int(lived_B[part].sum()) < 2 for part in parts):  # one row has no spread
                parts = (torch.arange(B),)
            for part in parts:
                columns = part.to(batch.mask.device)
                state = {name: each[columns] for name, each in batch.state.items()}
                seen = every(batch.observation, itemgetter((slice(-1), columns)))
                its = unrolled(self.flat.module, seen, state, first_TB[:, columns])
                kept = batch.mask[:, columns].flatten().nonzero().squeeze(1)
                yield index_TB[:, columns].flatten()[kept], selected(its.parameters, kept), its.value.flatten()[kept]
