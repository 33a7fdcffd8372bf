"""A policy of each agent's own, in one module.

The one idea: an observation ends with its agent's number, one-hot, so one module can hold all agents' policies and answer a
batch of all of them. A learner and an actor need to know nothing of it.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from shoal.nets.policies import Parameters


class Separate(nn.Module):
    """The policies of A agents, for observations [N, obs + A] whose last A entries say whose they are.

    Each policy computes all rows, and each row takes the outputs of its own agent: A times the arithmetic, in A calls.
    """

    def __init__(self, policies: Sequence[nn.Module]) -> None:
        super().__init__()
        self.agents = nn.ModuleList(policies)

    def forward(self, observation: Tensor) -> tuple[Parameters, Tensor]:
        """(action parameters, value [N])."""
        plain, marks = observation[..., : -len(self.agents)], observation[..., -len(self.agents) :]
        found = [policy(plain) for policy in self.agents]
        heads, values = [head for head, _ in found], [value.reshape(len(observation)) for _, value in found]
        value = _own(values, marks)
        if isinstance(heads[0], Tensor):
            return _own(heads, marks), value
        means = [mean for mean, _ in heads]
        return (_own(means, marks), _own([log_std.expand_as(mean) for mean, log_std in heads], marks)), value


def _own(each: Sequence[Tensor], marks: Tensor) -> Tensor:
    """Row n of the agent that marks[n] names. A -inf of another agent, which a sum would spread, stays with that agent."""
    stacked = torch.stack(list(each))
    which = marks.argmax(-1)
    return stacked[which, torch.arange(len(which), device=which.device)]
