"""V-trace's gradient block by block: weights, gradients and metrics are those of the losses under autograd."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import numpy as np
import pytest
import torch
from random_trajectories import BOX_SPACES, GAMMA, LOG_PROB, SPACES, random_trajectory

from shoal.aggregators import by_environment
from shoal.aggregators.by_environment import _blocks
from shoal.aggregators.impala import IMPALALearner
from shoal.envs.spaces import Discrete, Observations, Spaces
from shoal.nets.policies import ActorCritic
from shoal.protocol.layout import Bundle
from shoal.protocol.work import Contribution, Task, Work

FINALS = Spaces(SPACES.observation, SPACES.action, finals=True)
PICTURES = Spaces(Observations((2, 3), "u1"), Discrete(3))
ALIKE = {
    "plain": {},
    "clipped": {"clip_rho": 0.7, "clip_c": 0.9, "lam": 0.8, "ent_coef": 0.3, "vf_coef": 0.2},
    "leaky": {"clip_rho": 0.7, "vtrace_alpha": 0.6},
    "weighed by lag": {"lag_weight": "sqrt"},
}


def contribution(spaces: Spaces, seed: int, index: int = 0) -> Contribution:
    """A random trajectory whose actions another policy drew, `index` versions old."""
    trajectory, rng = random_trajectory(seed), np.random.default_rng(seed)
    rows, envs = trajectory.reward.shape
    bundle = Bundle.zeros(spaces.trajectory(rows, envs, LOG_PROB))
    for name in ("observation", *(("final",) if spaces.finals else ())):
        bundle[name][...] = (
            np.abs(40 * rng.normal(size=bundle[name].shape)).astype(np.uint8)
            if spaces is PICTURES
            else rng.normal(size=bundle[name].shape)
        )
    bundle["action"][...] = rng.integers(0, spaces.action.size, (rows, envs))
    bundle["log_prob"][...] = -rng.exponential(size=(rows, envs))
    for name in ("reward", "terminated", "truncated", "mask"):
        bundle[name][...] = getattr(trajectory, name).numpy()
    return Contribution(Task(0, index, (index,)), 0, index, Work(bundle))


def pair(spaces: Spaces = SPACES, module: dict[str, Any] | None = None, **options: Any) -> tuple[IMPALALearner, IMPALALearner]:
    """A learner, and its twin that descends by autograd. The output layers are away from their start."""
    both = []
    for _ in range(2):
        made = ActorCritic(spaces, **{"hidden": (8, 6), "seed": 3, **(module or {})})
        generator = torch.Generator().manual_seed(5)
        with torch.no_grad():
            for parameter in made.parameters():
                parameter.add_(0.3 * torch.randn(parameter.shape, generator=generator))
        both.append(IMPALALearner(made, gamma=GAMMA, lr=0.01, **options))
    both[1].fast = None
    return both[0], both[1]


def compared(ours: IMPALALearner, theirs: IMPALALearner, *folded: Contribution) -> None:
    if theirs.updates:
        ours.load(theirs.weights(), theirs.state())
    for learner in (ours, theirs):
        for one in folded:
            learner.fold(one)
    found, expected = ours.step().metrics, theirs.step().metrics
    assert ours.alike
    torch.testing.assert_close(ours.flat.grad, theirs.flat.grad, rtol=1e-4, atol=1e-6)
    assert found == {name: pytest.approx(number, rel=2e-4, abs=2e-5) for name, number in expected.items()}
    np.testing.assert_allclose(ours.weights().vector(), theirs.weights().vector(), rtol=1e-3, atol=2e-4)


@pytest.mark.parametrize("options", ALIKE.values(), ids=ALIKE)
@pytest.mark.parametrize("module", [{}, {"hidden": (7,), "activation": "relu"}, {"hidden": (4, 8, 6)}])
def test_steps_are_those_of_the_losses_under_autograd(options: Any, module: Any) -> None:
    ours, theirs = pair(SPACES, module, **options)
    for version in range(3):
        compared(ours, theirs, *(contribution(SPACES, seed=2 * version + index, index=index) for index in range(2)))


@pytest.mark.parametrize("spaces", [FINALS, PICTURES], ids=["finals", "pictures"])
def test_cut_off_episodes_and_pictures_are_learned_from_alike(spaces: Spaces) -> None:
    ours, theirs = pair(spaces)
    for version in range(2):
        compared(ours, theirs, contribution(spaces, seed=version, index=0))


@pytest.mark.parametrize("rows", [1, 30, 31, 95, 10_000])
def test_every_environment_is_in_one_block(rows: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(by_environment, "BLOCK", 96)
    blocks = list(_blocks(13, rows))
    assert [env for first, last in blocks for env in range(first, last)] == list(range(13))
    assert all((last - first) * rows <= 96 or last - first == 1 for first, last in blocks)


def test_blocks_of_other_sizes_make_the_same_step(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(by_environment, "BLOCK", 1)
    ours, theirs = pair()
    compared(ours, theirs, contribution(SPACES, seed=1, index=0))


def test_a_gradient_that_is_not_autograds_is_not_descended(monkeypatch: pytest.MonkeyPatch) -> None:
    ours, theirs = pair()
    fast: Any = ours.fast
    whole = fast.towers.end
    monkeypatch.setattr(fast.towers, "end", lambda: (whole(), ours.flat.grad.mul_(1.01)))
    for version in range(2):
        for learner in (ours, theirs):
            learner.fold(contribution(SPACES, seed=version, index=0))
            learner.step()
    assert ours.alike is False
    np.testing.assert_array_equal(ours.weights().vector(), theirs.weights().vector())


def test_a_learner_that_is_resumed_goes_on_with_the_same_bits() -> None:
    whole, _ = pair()
    for version in range(3):
        whole.fold(contribution(SPACES, seed=version, index=0))
        whole.step()
        if not version:
            weights, state = whole.weights(), whole.state()
    resumed, _ = pair()
    resumed.load(weights, state)
    for version in (1, 2):
        resumed.fold(contribution(SPACES, seed=version, index=0))
        resumed.step()
    np.testing.assert_array_equal(whole.weights().vector(), resumed.weights().vector())


@pytest.mark.parametrize("many", [2, 3, 50])
@pytest.mark.parametrize("options", ALIKE.values(), ids=ALIKE)
def test_minibatches_are_steps_over_some_environments_each_one_after_the_other(many: int, options: Any) -> None:
    ours, theirs = pair(FINALS, num_minibatches=many, **options)
    one, _ = pair(FINALS, **options)
    folded = [contribution(FINALS, seed=index, index=index) for index in range(2)]
    for learner in (ours, theirs, one):
        for each in folded:
            learner.fold(each)
    found, expected = ours.step().metrics, theirs.step().metrics
    assert found == {name: pytest.approx(number, rel=2e-3, abs=2e-4) for name, number in expected.items()}
    batch = one.staging.batch()
    envs = batch.mask.shape[1]
    edges = [part * envs // min(many, envs) for part in range(min(many, envs) + 1)]
    rows, cut, losses = 0, 0, []
    for first, last in pairwise(edges):
        part = batch.part(first, last)
        rows, cut = rows + len(part.rows), cut + len(part.cut)
        assert all(part.mask.flatten()[at] for at in (*part.rows, *part.cut))
        its = first + part.cut % (last - first) + part.cut // (last - first) * envs  # in the whole batch
        where = (batch.cut[:, None] == its[None]).nonzero()[:, 0]
        torch.testing.assert_close(part.final, batch.final[where])
        loss, told = one._loss(part)
        losses.append(float(told[0]))
        one.update(loss)
    assert (rows, cut) == (len(batch.rows), len(batch.cut))
    assert cut  # some episodes are cut off, or this says nothing of them
    assert expected["policy_loss"] == pytest.approx(np.mean(losses), rel=1e-3)
    assert one.updates == ours.updates == theirs.updates == min(many, envs)
    for learner in (ours, theirs):
        np.testing.assert_allclose(learner.weights().vector(), one.weights().vector(), rtol=2e-3, atol=4e-4)


def test_other_policies_are_left_to_autograd() -> None:
    for spaces, module in ((BOX_SPACES, {}), (SPACES, {"shared": True}), (SPACES, {"hidden": ()})):
        assert pair(spaces, module)[0].fast is None
