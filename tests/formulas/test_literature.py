"""The formulas of the on-policy methods against literal numbers that others published with their code.

The one idea: numbers that another group typed into its tests were checked by another group. Each table names its file. The
numbers are those that were printed, so a table is compared to its last printed digit where that is coarser than 1e-6.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor

from shoal.aggregators.gae import cut_off, gae
from shoal.aggregators.n_step import n_step
from shoal.aggregators.ppo import surrogate
from shoal.aggregators.r2d2 import chosen_of, rescaled, unscaled
from shoal.aggregators.retrace import retrace
from shoal.aggregators.vtrace import vtrace
from shoal.nets.policies import entropy, log_prob


def rows(*batch: list[float]) -> Tensor:
    """Sequences, one a line as the tables print them, as float64 [T, B]."""
    return torch.tensor(batch, dtype=torch.float64).T.contiguous()


def everything(like: Tensor) -> Tensor:
    return torch.ones_like(like, dtype=torch.bool)


def of_rlax(alpha: float = 1.0) -> tuple[Tensor, Tensor]:
    """The errors and advantages that V-trace gives for the inputs of google-deepmind/rlax, rlax/_src/vtrace_test.py."""
    behaviour = torch.tensor(
        [[[8.9, 0.7], [5.0, 1.0], [0.6, 0.1], [-0.9, -0.1]], [[0.3, -5.0], [1.0, -8.0], [0.3, 1.7], [4.7, 3.3]]],
        dtype=torch.float64,
    )
    target = torch.tensor(
        [[[0.4, 0.5], [9.2, 8.8], [0.7, 4.4], [7.9, 1.4]], [[1.0, 0.9], [1.0, -1.0], [-4.3, 8.7], [0.8, 0.3]]],
        dtype=torch.float64,
    )
    action = torch.tensor([[0, 1, 0, 0], [1, 0, 0, 1]])
    rho = (log_prob(target, action) - log_prob(behaviour, action)).exp().T
    reward = rows([-1.3, -1.3, 2.3, 42.0], [1.3, 5.3, -3.3, -5.0])
    discount = rows([0.0, 0.89, 0.85, 0.99], [0.88, 1.0, 0.83, 0.95])
    value, last = rows([2.1, 1.1, -3.1, 0.0], [3.1, 0.1, -1.1, 7.4]), torch.tensor([8.4, -1.2], dtype=torch.float64)
    found = vtrace(rho, reward, discount, value, last, everything(reward), alpha=alpha)
    return found.value - value, found.advantage


def test_vtrace_gives_the_numbers_of_rlax() -> None:
    """google-deepmind/rlax, rlax/_src/vtrace_test.py, VTraceTest: float32 numbers of 8 digits."""
    errors = rows([-1.6155143, -3.4973226, 1.8670533, 50.316002], [1.4662437, 3.6116405, -8.3327293e-5, -13.54])
    advantages = rows([-1.6155143, -3.4973226, 1.8670534, 50.316002], [1.4662433, 3.6116405, -8.3369283e-5, -13.54])
    found = of_rlax()
    assert torch.allclose(found[0], errors, rtol=1e-6, atol=1e-6)
    assert torch.allclose(found[1], advantages, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize(
    ("alpha", "expected"),
    [
        (
            0.7,
            ([-1.615514348, -18.59064597, 2.971459245, 83.8370043], [43.09466615, 3.611609413, -0.000118369625, -17.23050401]),
        ),
        (
            0.0,
            ([-1.615514348, -4.929184731, 5.548406092, 162.052681], [140.2216611, 3.611537472, -0.0002000371985, -25.84168002]),
        ),
    ],
)
def test_leaky_vtrace_gives_the_numbers_that_rlax_computes(alpha: float, expected: tuple[list[float], list[float]]) -> None:
    """No literal numbers of leaky V-trace were found: vtrace_test.py of rlax compares alpha = 1 with V-trace. These were made
    by leaky_vtrace_td_error_and_advantage of rlax 0.1.9 in float64, from the inputs of that test. Errors and advantages agree
    where the ratio's bound is 1 in both and lambda is 1."""
    for found in of_rlax(alpha):
        assert torch.allclose(found, rows(*expected), rtol=1e-6, atol=1e-6)


RETRACE = (
    [2.8800001, 3.8934109, 4.5942383],
    [3.1121615e-1, 2.0253206e1, 3.1601219e-3],
)  # half the squared errors
SIGNED = ([-2.4, -2.7905, -3.0313], [0.7889, -6.3645, -0.0795])  # the same errors, of the table of TransformedRetraceTest
RESCALED = ([-1.6179, -3.0165, -5.2699], [-2.7742, -9.9544, 2.3167])


def test_retrace_gives_the_numbers_of_rlax() -> None:
    """google-deepmind/rlax, rlax/_src/value_learning_test.py, RetraceTest, lambda 0.9 (and trfl's retrace ops, from which its
    numbers are); nonlinear_bellman_test.py, TransformedRetraceTest, in R2D2's scale of values (SIGNED_HYPERBOLIC_PAIR), printed
    to 4 places. The tables hold a row more than there are targets: values and probabilities of the next observation. The value
    of the first action is in no target."""
    values = torch.tensor(
        [[[1.1, 2.1], [-1.1, 1.1], [3.1, -3.1], [-1.2, 0.0]], [[2.1, 3.1], [9.5, 0.1], [-2.1, -1.1], [0.1, 7.4]]],
        dtype=torch.float64,
    ).swapaxes(0, 1)
    slow = torch.tensor(
        [[[1.2, 2.2], [-1.2, 0.2], [2.2, -1.2], [-2.25, -6.0]], [[4.2, 2.2], [1.2, 1.2], [-1.2, -2.2], [1.5, 1.0]]],
        dtype=torch.float64,
    ).swapaxes(0, 1)
    learned = torch.tensor(
        [[[0.5, 0.5], [0.2, 0.8], [0.6, 0.4], [0.9, 0.1]], [[0.1, 0.9], [1.0, 0.0], [0.3, 0.7], [0.7, 0.3]]],
        dtype=torch.float64,
    ).swapaxes(0, 1)
    acted = rows([0.5, 0.1, 0.9, 0.3], [0.4, 0.6, 1.0, 0.9])
    action = torch.tensor([[0, 1, 0, 0], [1, 0, 0, 1]]).T
    reward = rows([-1.3, -1.3, 2.3], [1.3, 5.3, -3.3])
    discount = rows([0.0, 0.89, 0.85], [0.88, 1.0, 0.83])
    ratio = (chosen_of(learned, action) / acted)[:3]

    def errors(values: Tensor, plain: Callable[[Tensor], Tensor], scaled: Callable[[Tensor], Tensor]) -> Tensor:
        ahead = (learned * plain(slow)).sum(-1)[1:]
        taken = plain(chosen_of(slow, action))[:3]
        found = retrace(ratio, reward, discount, taken, ahead, everything(reward), 0.9)
        return scaled(found) - chosen_of(values, action)[:3]

    same = errors(values, lambda x: x, lambda x: x)
    assert torch.allclose(same, torch.sign(rows(*SIGNED)) * (2 * rows(*RETRACE)).sqrt(), rtol=1e-6, atol=1e-6)
    assert (same - rows(*SIGNED)).abs().max() < 1e-4
    assert (errors(values, unscaled, rescaled) - rows(*RESCALED)).abs().max() < 2e-4  # made in float32


REWARD = ([1.0, 0.0, -1.0, 0.0, 1.0], [0.5, 0.8, -0.7, 0.0, 2.1])
DISCOUNT = ([0.5, 0.9, 1.0, 0.5, 0.8], [0.9, 0.5, 0.3, 0.8, 0.7])
NEXT = ([3.0, 1.0, 5.0, -5.0, 3.0], [-1.7, 1.2, 2.3, 2.2, 2.7])
LAMBDA = ([1.6460547, 0.72281253, 0.7375001, 0.6500001, 3.4], [0.7866317, 0.9913063, 0.1101501, 2.834, 3.99])
WHOLE = ([1.315, 0.63000005, 0.70000005, 1.7, 3.4], [1.33592, 0.9288, 0.2576, 3.192, 3.9899998])


@pytest.mark.parametrize(("lam", "expected"), [(0.75, LAMBDA), (1.0, WHOLE)], ids=["lambda-returns", "n-step"])
@pytest.mark.parametrize("formula", ["gae", "vtrace"])
def test_value_targets_are_the_lambda_returns_and_n_step_returns_of_rlax(
    formula: str, lam: float, expected: tuple[list[float], list[float]]
) -> None:
    """google-deepmind/rlax, rlax/_src/multistep_test.py, LambdaReturnsTest and DiscountedReturnsTest (and trfl's sequence ops,
    from which the inputs are). The value of the first observation is in no return: any number may stand for it."""
    reward, discount, following = rows(*REWARD), rows(*DISCOUNT), rows(*NEXT)
    value = torch.cat([torch.tensor([[17.0, -4.0]], dtype=torch.float64), following[:-1]])
    if formula == "gae":
        found = gae(reward, discount, value, following[-1], everything(reward), lam).value
    else:
        found = vtrace(torch.ones_like(reward), reward, discount, value, following[-1], everything(reward), lam=lam).value
    assert torch.allclose(found, rows(*expected), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize(
    ("lam", "expected"),
    [
        (1.0, ([-1.45118, -4.4557, 2.5396, 0.5249, -0.49], [3.0, 2.0, 1.0, 0.0, -4.9])),
        (0.7, ([-0.676979, -5.248167, 2.4846, 0.6704, -0.49], [2.2899, 1.73, 1.0, 0.0, -4.9])),
        (0.4, ([0.56731, -6.042, 2.3431, 0.815, -0.49], [1.725, 1.46, 1.0, 0.0, -4.9])),
    ],
)
def test_generalized_advantages_are_those_of_rlax(lam: float, expected: tuple[list[float], list[float]]) -> None:
    """google-deepmind/rlax, rlax/_src/multistep_test.py, TruncatedGeneralizedAdvantageEstimationTest: printed to 3 or 4 places,
    and compared there with a tolerance of 1e-3. The second sequence has an episode's end inside: a discount of 0."""
    reward = rows([0.0, 0.0, 1.0, 0.0, -0.5], [0.0, 0.0, 0.0, 0.0, 1.0])
    discount = rows([0.99] * 5, [0.9, 0.9, 0.9, 0.0, 0.9])
    value = rows([1.0, 4.0, -3.0, -2.0, -1.0, -1.0], [-3.0, -2.0, -1.0, 0.0, 5.0, -1.0])
    found = gae(reward, discount, value[:-1], value[-1], everything(reward), lam).advantage
    assert (found - rows(*expected)).abs().max() < 1e-3


@pytest.mark.parametrize(
    ("n", "expected"),
    [
        (1, [2.6, 3.6, 4.4, 5.3, 6.2, 8.0, 8.0, 8.9, 9.8, 12.0]),
        (2, [3.36, 3.6, 5.53, 6.62, 7.8, 8.0, 9.89, 10.98, 12.2, 12.0]),
        (10, [3.36, 3.6, 5.678, 6.78, 7.8, 8.0, 10.122, 11.22, 12.2, 12.0]),
    ],
)
def test_returns_over_n_steps_are_those_of_tianshou(n: int, expected: list[float]) -> None:
    """thu-ml/tianshou, test/base/test_returns.py, test_nstep_returns: rewards 3 to 12. The second row was cut off by a time
    limit, and the sixth and the tenth ended an episode. The value of what follows a row is minus the next row's reward; of a
    row that was cut off, minus its own."""
    reward = np.arange(3.0, 13.0)
    terminated, truncated = np.isin(reward, (8, 12))[:, None], np.isin(reward, (4,))[:, None]
    found = n_step(reward[:, None], terminated, truncated, np.ones((10, 1), bool), n, 0.1)
    last = np.arange(10) + found.steps[:, 0] - 1
    follows = -np.where(truncated[last, 0] | terminated[last, 0], reward[last], reward[np.minimum(last + 1, 9)])
    assert found.reward[:, 0] + found.discount[:, 0] * follows == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize(
    ("cut", "expected"),
    [
        ((), [454.8344, 376.1143, 291.298, 200.0, 464.5610, 383.1085, 295.387, 201.0]),
        ((3, 7), [454.0109, 375.2386, 290.3669, 199.01, 462.9138, 381.3571, 293.5248, 199.02]),
    ],
    ids=["ended", "cut off"],
)
@pytest.mark.parametrize("formula", ["gae", "vtrace"])
def test_an_episode_that_was_cut_off_bootstraps_from_its_last_observation_as_tianshou_s(
    formula: str, cut: tuple[int, ...], expected: list[float]
) -> None:
    """thu-ml/tianshou, test/base/test_returns.py, test_episodic_returns: three episodes of four rows, gamma 0.99, lambda 0.95.
    The values are of what follows each row. Numbers of 4 places."""
    reward = rows([101.0, 102, 103, 200, 104, 105, 106, 201, 107, 108, 109, 202])
    following = rows([2.0, 3, 4, -1, 5, 6, 7, -2, 8, 9, 10, -3])
    discount = 0.99 * (torch.arange(12) % 4 != 3).double()[:, None]
    discount[list(cut)] = 0.99
    at = torch.tensor(cut, dtype=torch.int64)
    reward, discount = cut_off(reward, discount, at, following.flatten()[at])
    value, last = following.roll(1, 0), following[-1]
    if formula == "gae":
        found = gae(reward, discount, value, last, everything(reward), 0.95)
    else:
        found = vtrace(torch.ones_like(reward), reward, discount, value, last, everything(reward), lam=0.95)
    assert found.value.flatten().tolist() == pytest.approx([*expected, 474.2876, 390.1027, 299.476, 202.0], abs=1e-4)


LOGITS = torch.tensor([[1.0, 1.0, 1.0], [2.0, 0.0, 0.0], [-1.0, -2.0, -3.0]], dtype=torch.float64)


def test_the_clipped_surrogate_is_that_of_rlax() -> None:
    """google-deepmind/rlax, rlax/_src/policy_gradients_test.py, ClippedSurrogatePGLossTest. Of its two numbers the
    first is 3e-6 from -(0.5 + 0.1 exp(-2)) / 3, which is its exact value: it was made by a less precise exponential."""
    old = torch.tensor([[1.0, 1.0, 1.0], [2.0, 0.0, 0.0], [-3.0, -2.0, -1.0]], dtype=torch.float64)
    action, advantage = torch.tensor([0, 1, 2]), torch.tensor([0.3, 0.2, 0.1], dtype=torch.float64)
    ratio = (log_prob(LOGITS, action) - log_prob(old, action)).exp()
    assert float(surrogate(ratio, advantage, 0.2).mean()) == pytest.approx(-0.17117467, abs=4e-6)
    assert float(surrogate(ratio, advantage, 0.2).mean()) == pytest.approx(-(0.5 + 0.1 * math.exp(-2)) / 3, abs=1e-12)
    assert float(surrogate(ratio, -advantage, 0.2).mean()) == pytest.approx(0.19333333, abs=1e-6)


def test_entropies_and_policy_gradients_are_those_of_rlax() -> None:
    """google-deepmind/rlax, rlax/_src/policy_gradients_test.py, EntropyLossTest and PolicyGradientLossTest."""
    weight = torch.tensor([-2.0, 2.0, 0.0], dtype=torch.float64)
    undecided = entropy(LOGITS)
    assert float(-(undecided * weight).mean()) == pytest.approx(0.288693, abs=1e-6)
    assert float(-(undecided * (weight - 1)).mean()) == pytest.approx(1.15422, abs=1e-5)  # printed to 5 places
    advantage = torch.tensor([0.3, 0.2, 0.1], dtype=torch.float64)
    likely = log_prob(LOGITS, torch.tensor([0, 1, 2]))
    assert float(-(likely * advantage * weight).mean()) == pytest.approx(0.0788835088, abs=1e-6)


def test_an_advantage_actor_critic_has_the_losses_of_trfl() -> None:
    """google-deepmind/trfl, trfl/policy_gradient_ops_test.py, SequenceA2CLossTest.testRun: whole numbers. There a sequence's
    losses are sums, baseline_cost is 2 and a log probability is 6 times the action's number."""
    value, reward = rows([-3.0, -1.0, 1.0], [-2.0, 0.0, 2.0]), rows([-2.0, 0.0, 2.0], [-1.0, 1.0, 3.0])
    last, likely = torch.tensor([-2.0, 4.0], dtype=torch.float64), 6 * rows([0.0, 2.0, 4.0], [1.0, 3.0, 5.0])
    targets = gae(reward, torch.ones_like(reward), value, last, everything(reward), lam=1.0)
    assert (2 * 0.5 * (targets.value - value) ** 2).sum(0).tolist() == [3.0, 170.0]
    assert (-likely * targets.advantage).sum(0).tolist() == [12.0, -348.0]
