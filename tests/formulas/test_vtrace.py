"""V-trace against its definition: explicit sums and products over the rows of each episode."""

from __future__ import annotations

import math

import pytest
import torch
from random_trajectories import GAMMA, Piece, Trajectory, pieces, random_trajectory

from shoal.aggregators.gae import Targets
from shoal.aggregators.vtrace import vtrace

CLIPS = [
    (1.0, 1.0, 1.0, 1.0), (2.0, 1.0, 1.0, 1.0), (0.7, 0.4, 0.9, 1.0), (math.inf, math.inf, 1.0, 1.0), (1.2, 0.4, 0.9, 0.7),
    (1.0, 1.0, 1.0, 0.0),
]  # fmt: skip


def computed(
    trajectory: Trajectory, clip_rho: float = 1.0, clip_c: float = 1.0, lam: float = 1.0, alpha: float = 1.0
) -> Targets:
    reward, value, mask = trajectory.reward, trajectory.value, trajectory.mask
    return vtrace(trajectory.rho, reward, trajectory.discount, value[:-1], value[-1], mask, clip_rho, clip_c, lam, alpha)


def defined(
    trajectory: Trajectory, piece: Piece, clip_rho: float, clip_c: float, lam: float, alpha: float
) -> tuple[list[float], list[float]]:
    """Equation 1 for every row s of a piece, and the advantage of equation 4, on plain floats."""
    rows = range(piece.first, piece.last + 1)
    r, v, ratio = ([float(x[t, piece.env]) for t in rows] for x in (trajectory.reward, trajectory.value, trajectory.rho))
    v.append(piece.bootstrap)
    rho = [alpha * min(clip_rho, x) + (1 - alpha) * x for x in ratio]
    c = [lam * (alpha * min(clip_c, x) + (1 - alpha) * x) for x in ratio]
    n = len(r)
    targets = [
        v[s] + sum(GAMMA ** (t - s) * math.prod(c[s:t]) * rho[t] * (r[t] + GAMMA * v[t + 1] - v[t]) for t in range(s, n))
        for s in range(n)
    ]
    following = [*targets[1:], piece.bootstrap]
    return targets, [rho[s] * (r[s] + GAMMA * following[s] - v[s]) for s in range(n)]


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("clips", CLIPS)
@pytest.mark.parametrize("on_policy", [True, False])
def test_targets_and_advantages_equal_their_definition_episode_by_episode(
    seed: int, clips: tuple[float, float, float, float], on_policy: bool
) -> None:
    trajectory = random_trajectory(seed, on_policy=on_policy)
    assert trajectory.terminated.any()
    assert trajectory.truncated.any()
    expected = Targets(trajectory.value[:-1].clone(), torch.zeros_like(trajectory.reward))
    for piece in pieces(trajectory):
        rows = slice(piece.first, piece.last + 1)
        targets, advantages = defined(trajectory, piece, *clips)
        expected.value[rows, piece.env] = torch.tensor(targets, dtype=torch.float64)
        expected.advantage[rows, piece.env] = torch.tensor(advantages, dtype=torch.float64)
    found = computed(trajectory, *clips)
    assert (found.value - expected.value).abs().max() < 1e-6
    assert (found.advantage - expected.advantage).abs().max() < 1e-6


def test_on_policy_targets_are_n_step_bellman_targets() -> None:
    """Equation 2: with rho = 1 the target is the discounted sum of rewards and the value that follows."""
    trajectory = random_trajectory(1, on_policy=True)
    found = computed(trajectory).value
    for piece in pieces(trajectory):
        for s in range(piece.first, piece.last + 1):
            rewards = trajectory.reward[s : piece.last + 1, piece.env].tolist()
            n = len(rewards)
            bellman = sum(GAMMA**k * reward for k, reward in enumerate(rewards)) + GAMMA**n * piece.bootstrap
            assert abs(float(found[s, piece.env]) - bellman) < 1e-6


def test_without_a_share_of_clipped_ratios_no_bit_depends_on_the_clip() -> None:
    """And with all of it no bit depends on the ratio beyond the clip, which may be infinite."""
    trajectory = random_trajectory(4)
    for one, other in zip(computed(trajectory, 0.5, 0.5, alpha=0.0), computed(trajectory, alpha=0.0), strict=True):
        assert torch.equal(one, other)
    endless = trajectory._replace(rho=trajectory.rho.masked_fill(trajectory.rho > 1, math.inf))
    for one, other in zip(computed(endless), computed(trajectory), strict=True):
        assert torch.equal(one, other)


def test_a_masked_row_has_its_own_value_as_target_and_no_advantage() -> None:
    trajectory = random_trajectory(2)
    found = computed(trajectory)
    masked = ~trajectory.mask
    assert masked.any()
    assert torch.equal(found.value[masked], trajectory.value[:-1][masked])
    assert (found.advantage[masked] == 0).all()


def test_nothing_on_a_masked_row_but_its_value_matters() -> None:
    trajectory = random_trajectory(3)
    masked = ~trajectory.mask
    strange = trajectory._replace(
        reward=trajectory.reward.masked_fill(masked, math.nan), rho=trajectory.rho.masked_fill(masked, math.inf)
    )
    for one, other in zip(computed(trajectory), computed(strange), strict=True):
        assert torch.equal(one, other)


def test_a_truncated_row_at_the_very_end_bootstraps_from_the_last_observation() -> None:
    one, no = torch.ones(1, 1, dtype=torch.float64), torch.zeros(1, 1, dtype=torch.bool)
    trajectory = Trajectory(
        reward=one, terminated=no, truncated=~no, mask=~no, value=torch.tensor([[2.0], [30.0]]).double(), rho=one
    )
    assert computed(trajectory).value.item() == pytest.approx(1 + GAMMA * 30)
    assert computed(trajectory._replace(terminated=~no)).value.item() == pytest.approx(1)


def test_an_endless_environment_cut_by_a_time_limit_is_worth_its_endless_return() -> None:
    """A table of one state, reward 1 for ever, episodes cut after 5 rows: the value tends to 1 / (1 - gamma), not to 4.1."""
    rows = torch.arange(24)
    mask = (rows % 6 != 5)[:, None]  # five rows, then one that only resets
    shape, value = mask.double(), torch.zeros(())
    for _ in range(300):
        found = vtrace(
            torch.ones_like(shape), torch.ones_like(shape), GAMMA * torch.ones_like(shape), value * torch.ones_like(shape),
            value * torch.ones(1).double(), mask,
        )  # fmt: skip
        value = value + 0.5 * (found.value - value)[mask].mean()
    assert abs(float(value) - 1 / (1 - GAMMA)) < 1e-6
