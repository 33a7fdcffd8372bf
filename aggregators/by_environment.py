"""The gradient of V-trace's losses over trajectories, a few environments at a time, without autograd.

The one idea: no environment's V-trace needs another environment, and the gradient of these losses with respect to logits and
values is a line each. So the rows of a few environments go forward, get their targets and go backward while they are in the
processor's cache. Whether the gradient is autograd's is not believed: that of the first batch is computed both ways.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt
from torch import Tensor

from shoal.envs.spaces import Discrete
from shoal.nets.passes import BLOCK, Passes
from shoal.nets.towers import Room, Towers

Floats: TypeAlias = npt.NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class Coefficients:
    """Numbers of the losses, by the names of IMPALA's settings (aggregators/impala.py)."""

    clip_rho: float
    clip_c: float
    vtrace_alpha: float
    ent_coef: float
    vf_coef: float


@dataclass(frozen=True, slots=True)
class Rows:
    """The arrays of a batch that are known before its passes. observation [T + 1, B, ...], float32 or uint8; action int64;
    decay: discount * lam; weight [B]: of each environment's rows in the loss, None: all count alike. All others [T, B],
    float32, and 0 where a row does not count; live: 1 where it does. many: number of rows that count, at least 1."""

    observation: Tensor
    action: npt.NDArray[np.int64]
    log_prob: Floats
    reward: Floats
    discount: Floats
    decay: Floats
    live: Floats
    weight: Floats | None
    many: int


@dataclass(slots=True)
class Told:
    """Sums over the rows of a batch, and the spread of the targets, merged block by block (Chan, Golub & LeVeque 1983)."""

    gain: float = 0.0
    error: float = 0.0
    entropy: float = 0.0
    rho: float = 0.0
    rho_square: float = 0.0
    count: float = 0.0
    mean: float = 0.0
    spread: float = 0.0

    def take(self, target: Floats, live: Floats) -> None:
        count = float(live.sum())
        if not count:
            return
        mean = float(np.vdot(target, live)) / count
        off = (target - np.float32(mean)) * live
        whole, between = self.count + count, mean - self.mean
        self.spread += float(np.vdot(off, off)) + between**2 * self.count * count / whole
        self.mean += between * count / whole
        self.count = whole

    def metrics(self, many: int) -> list[float]:
        """policy_loss, value_loss, entropy, rho_mean, explained_variance and ess, as IMPALALearner tells them."""
        value_loss = 0.5 * self.error / many
        explained = 1 - 2 * value_loss / (self.spread / many + 1e-8)
        ess = self.rho**2 / max(many * self.rho_square, float(np.finfo(np.float32).tiny))
        return [-self.gain / many, value_loss, self.entropy / many, self.rho / many, explained, ess]


@dataclass(eq=False, repr=False)
class Desk:
    """The memory of a block of `b` environments: the room of its passes, and arrays of R = T * b rows."""

    room: Room
    T: int
    b: int
    logits: Floats = field(init=False)
    value: Floats = field(init=False)  # [T + 1, b]
    first: npt.NDArray[np.int64] = field(init=False)

    def __post_init__(self) -> None:
        out, grad, R = self.room.out.numpy(), self.room.grad.numpy(), self.T * self.b
        self.logits, self.value = out[:-1, :R], out[-1].reshape(self.T + 1, self.b)
        self.logits_grad, self.value_grad = grad[:-1, :R], grad[-1, :R].reshape(self.T, self.b)
        self.first = np.arange(R)
        many = len(self.logits)
        self.log_p, self.p, self.spare = (np.empty((many, R), np.float32) for _ in range(3))
        self.whole = np.empty(R, np.float32)
        self.target = np.empty((self.T + 1, self.b), np.float32)
        self.seen = self.room.x[:, :-1].view(self.T + 1, self.b, -1)


class ByEnvironment:
    """Adds the gradient of V-trace's losses for a batch to a FlatModule's. None of its memory is handed out."""

    def __init__(self, passes: Passes) -> None:
        self.passes, self.towers = passes, Towers(passes)
        self.desks: dict[tuple[int, int], Desk] = {}

    def descend(self, rows: Rows, by: Coefficients) -> Told:
        T, B = rows.action.shape
        told = Told()
        self.towers.begin()
        with np.errstate(over="ignore", invalid="ignore"):  # an infinite ratio is clipped; weights that are not finite are told
            for first, last in _blocks(B, T + 1):
                desk = self._desk(T, last - first)
                seen = self.passes.module.rows(rows.observation[:, first:last])
                desk.seen.copy_(seen.reshape(desk.seen.shape))
                self.towers.forward(desk.room)
                self._gradient(desk, rows, slice(first, last), by, told)
                self.towers.backward(desk.room)
        self.towers.end()
        return told

    def _desk(self, T: int, b: int) -> Desk:
        if (T, b) not in self.desks:
            self.desks[T, b] = Desk(self.towers.room((T + 1) * b), T, b)
        return self.desks[T, b]

    def _gradient(self, desk: Desk, rows: Rows, at: slice, by: Coefficients, told: Told) -> None:
        """Fill the gradient of a block's outputs (Espeholt et al. 2018, equations 1 and 4)."""
        shape, R = (desk.T, desk.b), desk.T * desk.b
        log_p, p, spare, whole = desk.log_p, desk.p, desk.spare, desk.whole
        np.subtract(desk.logits, desk.logits.max(axis=0), out=log_p)
        np.exp(log_p, out=p)
        np.sum(p, axis=0, out=whole)
        p /= whole
        log_p -= np.log(whole, out=whole)
        np.multiply(p, log_p, out=spare)
        decided = np.sum(spare, axis=0)  # the negative entropy
        index = rows.action[:, at].reshape(R) * R
        index += desk.first
        chosen = log_p.reshape(-1)[index]
        live = rows.live[:, at]
        rho = np.exp(chosen.reshape(shape) - rows.log_prob[:, at])
        clipped = _leaky(rho, by.clip_rho, by.vtrace_alpha) * live
        value, after = desk.value[:-1], desk.value[1:]
        reward, discount = rows.reward[:, at], rows.discount[:, at]
        error = discount * after
        error += reward
        error -= value
        error *= clipped
        decay = _leaky(rho, by.clip_c, by.vtrace_alpha)
        decay *= rows.decay[:, at]
        _add_up(error, decay)
        np.add(value, error, out=desk.target[:-1])
        desk.target[-1] = after[-1]
        advantage = discount * desk.target[1:]
        advantage += reward
        advantage -= value
        advantage *= clipped
        told.gain += float(np.vdot(chosen, advantage))
        told.error += float(np.vdot(error, error))
        told.entropy -= float(np.vdot(decided, live))
        rho *= live
        told.rho += float(rho.sum())
        told.rho_square += float(np.vdot(rho, rho))
        told.take(desk.target[:-1], live)
        if rows.weight is not None:
            weight = rows.weight[at]
            advantage, error, live = advantage * weight, error * weight, live * weight
        each = np.float32(1 / rows.many)
        pulled = (advantage * -each).reshape(R)  # the loss's derivative by the log probability of the action
        np.subtract(log_p, decided, out=spare)
        spare *= (live * np.float32(-by.ent_coef * each)).reshape(R)
        spare += pulled
        spare *= p
        np.negative(spare, out=desk.logits_grad)
        desk.logits_grad[rows.action[:, at].reshape(R), desk.first] += pulled
        np.multiply(error, np.float32(-by.vf_coef * each), out=desk.value_grad)


def _leaky(ratio: Floats, most: float, alpha: float) -> Floats:
    """The ratios bounded as `leaky` of aggregators/vtrace.py bounds them, in memory of their own."""
    clipped = np.minimum(ratio, np.float32(most))
    if alpha != 1.0:
        clipped *= np.float32(alpha)
        clipped += np.float32(1.0 - alpha) * ratio
    return clipped


def _add_up(delta: Floats, decay: Floats) -> None:
    """Write sum[t] = delta[t] + decay[t] * sum[t + 1] to delta, in log2(T) strides; what decay holds then means nothing."""
    stride = 1
    while stride < len(delta):
        delta[:-stride] += decay[:-stride] * delta[stride:]
        decay[:-stride] = decay[:-stride] * decay[stride:]
        stride *= 2


def _blocks(envs: int, rows: int) -> Iterator[tuple[int, int]]:
    """The first and last environment of each block, of about BLOCK rows together; environments have `rows` each."""
    most = max(1, BLOCK // rows)
    parts = -(-envs // most)
    size, longer = divmod(envs, parts)
    first = 0
    for part in range(parts):
        yield first, first + size + (part < longer)
        first += size + (part < longer)


def fitting(judge: Any) -> ByEnvironment | None:
    """The ByEnvironment of a learner's judge; None unless that is Passes of towers that share nothing, for Discrete actions."""
    if isinstance(judge, Passes) and isinstance(judge.acts, Discrete) and Towers.fits(judge):
        return ByEnvironment(judge)
    return None
