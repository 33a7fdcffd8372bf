"""R2D2: values of actions by a network with memory, learned from sequences that begin in the state that the actor had.

The one idea: a state that was stored is of older weights, so the first rows of a sequence only carry it on (the burn-in), and
the rows after them are learned from (Kapturowski et al. 2019). Values are squashed, so that rewards need no clipping.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.functional import smooth_l1_loss

from shoal.aggregators.dqn import DQNLearner, permitted
from shoal.aggregators.retrace import retrace
from shoal.aggregators.sequences import SequenceBuffer, Sequences
from shoal.aggregators.trained import follow
from shoal.envs.spaces import apart
from shoal.nets.cores import forgotten
from shoal.nets.q import RecurrentQNetwork

EPSILON = 1e-3  # of the rescaling: keeps its inverse Lipschitz continuous


class Valued(NamedTuple):
    """Values [T, N, n] of T rows, and the state after each of them."""

    values: Tensor
    after: Sequence[Mapping[str, Tensor]]


def rescaled(x: Tensor) -> Tensor:
    """h(x) = sign(x) (sqrt(|x| + 1) - 1) + epsilon x (Pohlen et al. 2018, proposition A.2)."""
    return x.sign() * ((x.abs() + 1).sqrt() - 1) + EPSILON * x


def unscaled(x: Tensor) -> Tensor:
    """The inverse of `rescaled`: u^2 - 1 with u the root of epsilon u^2 + u = 1 + epsilon + |x|, in the form in which no two
    numbers that are nearly equal are subtracted."""
    positive = 1 + EPSILON + x.abs()
    root = 2 * positive / (1 + (1 + 4 * EPSILON * positive).sqrt())
    return x.sign() * (root * root - 1)


def valued(module: nn.Module, seen: Mapping[str, Tensor], state: Mapping[str, Tensor], first: Tensor) -> Valued:
    """The values of all rows, name -> [T, N, ...], from the state before the first row. first: bool [T, N]."""
    if isinstance(module, RecurrentQNetwork) and type(module).forward is RecurrentQNetwork.forward:
        return Valued(*module.unroll(apart(seen)[0], state, first))
    found: list[Tensor] = []
    after: list[Mapping[str, Tensor]] = []
    for t, begins in enumerate(first):
        values, state = module(apart({name: each[t] for name, each in seen.items()})[0], forgotten(state, begins))
        found.append(values)
        after.append(state)
    return Valued(torch.stack(found), after)


@dataclass(kw_only=True, eq=False, repr=False)
class R2D2Learner(DQNLearner):
    """Double Q-learning over sequences (Kapturowski et al. 2019), with n-step targets, rescaled values and the Huber loss.

    network: module with `memory` and forward(observation [N, *obs], state) -> (values [N, n], state). burn_in: rows at the
    begin of a sequence that only carry the state on. eta: weight of a sequence's largest error in its priority, beside its mean
    error. returns: "n_step", or "retrace", with targets that go on along a sequence for as long as its actions are the greedy
    ones, and the factor retrace_lambda a row (Badia et al. 2020, the transformed Retrace loss).
    """

    burn_in: int = 20
    eta: float = 0.9
    returns: str = "n_step"
    retrace_lambda: float = 0.95
    METRICS: ClassVar[tuple[str, ...]] = ("value_loss", "q_mean", "td_error", "grad_norm")

    def made_buffer(self) -> SequenceBuffer:
        return SequenceBuffer(self.layout, self.buffer_size, **self.drawing(), device=self.device)

    def drawing(self) -> dict[str, Any]:
        return super().drawing() | ({"n_step": 1} if self.returns == "retrace" else {})

    def update(self, batch: Sequences) -> Sequence[Tensor]:  # type: ignore[override]  # of sequences
        burn = self.burn_in
        with torch.no_grad():
            states = [self._warmed(module, batch) for module in (self.q.module, self.target.module)]
            learned = {name: each[burn:] for name, each in batch.seen.items()}
            target = valued(self.target.module, learned, states[1], batch.first[burn:])
        online = valued(self.q.module, learned, states[0], batch.first[burn:])
        chosen = online.values[:-1].gather(-1, batch.action[burn:, :, None]).squeeze(-1)
        mask = batch.mask[burn:]
        error = (chosen - self.sequence_targets(batch, online, target)).where(mask, 0.0)
        size, rows = error.detach().abs(), mask.sum(0).clamp(min=1)
        self.buffer.prioritize(batch.places, self.eta * size.amax(0) + (1 - self.eta) * size.sum(0) / rows)
        huber = smooth_l1_loss(error, torch.zeros_like(error), reduction="none")
        many = mask.sum().clamp(min=1)
        loss = (batch.weight * huber).sum() / many
        norm = self.q.update(loss)
        if (self.updates + 1) % self.target_update_interval == 0:
            follow(self.target, self.q.flat, self.tau)
        return [x.detach() for x in (loss, (chosen * mask).sum() / many, size.sum() / many, norm)]

    def _warmed(self, module: nn.Module, batch: Sequences) -> Mapping[str, Tensor]:
        """The state after the burn-in."""
        if not self.burn_in:
            return batch.state
        seen = {name: each[: self.burn_in] for name, each in batch.seen.items()}
        return valued(module, seen, batch.state, batch.first[: self.burn_in]).after[-1]

    @torch.no_grad()
    def sequence_targets(self, batch: Sequences, online: Valued, target: Valued) -> Tensor:
        """The targets [T - burn_in, N] of the values of the actions after the burn-in. Both networks' values are of the rows
        after the burn-in, the last observation included."""
        T, _ = batch.action[self.burn_in :].shape
        ahead, cut = batch.ahead[self.burn_in :], batch.cut[self.burn_in :]
        at = torch.arange(T, device=ahead.device)[:, None] + ahead
        allowed = apart(batch.seen)[1]
        chooses = online.values if self.double else target.values
        best = permitted(chooses, None if allowed is None else allowed[self.burn_in :]).argmax(-1)
        value_TN = chosen_of(target.values, best).gather(0, at)
        if batch.final and bool(cut.any()):
            row, each = cut.nonzero(as_tuple=True)
            last = at[row, each] - 1  # the truncated row, whose last observation follows the state after it
            final, allowed = apart({name: rows[self.burn_in :][last, each] for name, rows in batch.final.items()})
            found = [
                module(final, {name: torch.stack([state[name] for state in its.after])[last, each] for name in its.after[0]})[0]
                for module, its in ((self.q.module, online), (self.target.module, target))
            ]
            chosen = permitted(found[0] if self.double else found[1], allowed).argmax(-1, keepdim=True)
            value_TN[row, each] = found[1].gather(-1, chosen).squeeze(-1)
        reward, discount = batch.reward[self.burn_in :], batch.discount[self.burn_in :]
        if self.returns == "n_step":
            return rescaled(reward + discount * unscaled(value_TN))
        action = batch.action[self.burn_in :]
        greedy = (action == best[:-1]).to(reward.dtype)  # mu is at most 1, so where pi is 1 the ratio is cut off at 1
        follows = batch.mask[self.burn_in :] & ~batch.first[self.burn_in : -1]
        taken, lam = unscaled(chosen_of(target.values[:-1], action)), self.retrace_lambda
        return rescaled(retrace(greedy, reward, discount, taken, unscaled(value_TN), follows, lam))


def chosen_of(values: Tensor, action: Tensor) -> Tensor:
    """The value [T, N] of each row's action, from values [T, N, n] and actions int64 [T, N]."""
    return values.gather(-1, action[:, :, None]).squeeze(-1)
