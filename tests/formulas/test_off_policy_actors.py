"""SAC's and TD3's updates against the same arithmetic written out in numpy, and the policies that their actors play."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from shoal.aggregators import sac, td3
from shoal.aggregators.replay import Transitions
from shoal.aggregators.sac import SACLearner
from shoal.aggregators.td3 import TD3Learner
from shoal.envs.spaces import Box, Discrete, Observations, Spaces
from shoal.nets.acting import Form
from shoal.nets.continuous import Bounds, Deterministic, Squashed, uniform
from shoal.nets.deterministic import DeterministicActor
from shoal.nets.flat import FlatModule
from shoal.nets.perceptrons import Critics
from shoal.nets.squashed import SquashedActor, log_slope, squashed
from shoal.protocol.errors import UserError

SPACES = Spaces(Observations((3,)), Box((2,), (-2.0, 0.0), (2.0, 5.0)))
BOUNDS = Bounds.of(SPACES, "sac")
FORM = Form((16, 8), "relu")
N = 33


def batch(seed: int = 0, n: int = N) -> Transitions:
    """Random transitions, of which a third terminate."""
    rng = np.random.default_rng(seed)
    action = np.array([0.0, 2.5]) + np.array([2.0, 2.5]) * rng.uniform(-1, 1, (n, 2))
    discount = 0.9 * (np.arange(n) % 3 > 0)
    arrays = (rng.normal(size=(n, 3)), rng.normal(size=(n, 3)), action, rng.normal(size=n), discount, np.ones(n))
    seen, after, *rest = (torch.from_numpy(each).float() for each in arrays)
    return Transitions(np.arange(n), {"observation": seen}, {"observation": after}, *rest)


def inside(action: Tensor) -> Tensor:
    return (action - torch.tensor([0.0, 2.5], dtype=action.dtype)) / torch.tensor([2.0, 2.5], dtype=action.dtype)


def parts(given: Transitions) -> tuple[Tensor, ...]:
    """Observation, action in [-1, 1], reward, discount and next observation."""
    return given.observation, inside(given.action), given.reward, given.discount, given.next_observation


def sac_learner(**more: Any) -> SACLearner:
    actor = SquashedActor(SPACES, (16, 8), seed=1)
    return SACLearner(actor, layout=SPACES.trajectory(4, 2), bounds=BOUNDS, hidden=(16, 8), **{"lr": 0.01, "tau": 0.1, **more})


def td3_learner(**more: Any) -> TD3Learner:
    actor = DeterministicActor(SPACES, (16, 8), seed=1)
    return TD3Learner(actor, layout=SPACES.trajectory(4, 2), bounds=BOUNDS, hidden=(16, 8), **{"lr": 0.01, "tau": 0.1, **more})


def updated(learner: SACLearner | TD3Learner, given: Transitions) -> dict[str, float]:
    """The metrics of one update."""
    told = {name: each.item() for name, each in zip(learner.METRICS, learner.update(given), strict=True)}
    learner.updates += 1
    return told


# The references in numpy: perceptrons layer by layer, critics one by one, and the formulas of Stable-Baselines3's sac and td3


def through(x: Any, layers: Any) -> Any:
    for i, (weight, bias) in enumerate(layers):
        x = (np.maximum(x, 0) if i else x) @ weight + bias
    return x


def layers_of(actor: nn.Module) -> Any:
    linears = [each for each in actor.modules() if isinstance(each, nn.Linear)]
    return [(each.weight.detach().numpy().T, each.bias.detach().numpy()) for each in linears]


def values(critics: nn.Module, seen: Any, action: Any) -> Any:
    """The values [2, N], a critic after the other."""
    named = {name: parameter.detach().numpy() for name, parameter in critics.named_parameters()}
    x = np.concatenate([seen, action], axis=1)
    each = [[(named[f"weight_{i}"][c], named[f"bias_{i}"][c]) for i in range(3)] for c in range(2)]
    return np.stack([through(x, layers)[:, 0] for layers in each])


def drawn(actor: nn.Module, seen: Any, noise: Any) -> Any:
    """SB3's SquashedDiagGaussianDistribution, without the 1e-6 that it adds to 1 - tanh(u) ** 2."""
    out = through(seen, layers_of(actor))
    mean, log_std = out[:, :2], np.clip(out[:, 2:], -20, 2)
    u = mean + np.exp(log_std) * noise
    normal = -0.5 * ((u - mean) / np.exp(log_std)) ** 2 - log_std - 0.5 * np.log(2 * np.pi)
    return np.tanh(u), normal.sum(1) - np.log(1 - np.tanh(u) ** 2).sum(1)


def numbers(*seeds: int) -> tuple[Any, Any, Any]:
    """An actor of SAC, critics and target critics, all in float64."""
    modules = (SquashedActor(SPACES, (16, 8), seed=seeds[0]), *(Critics((3,), 2, (16, 8), seed=seed) for seed in seeds[1:]))
    return tuple(each.double() for each in modules)  # type: ignore[return-value]


def test_sacs_losses_are_those_of_sb3_on_the_same_batch() -> None:
    actor, critics, target = numbers(1, 2, 3)
    seen, action, reward, discount, after = (each.double() for each in parts(batch()))
    noise = np.random.default_rng(5).normal(size=(2, N, 2))
    alpha, temperature = 0.3, torch.tensor(0.3, dtype=torch.float64)

    with torch.no_grad():
        own_action, own_log_prob = squashed(*actor(seen), torch.from_numpy(noise[0]))
        next_action, next_log_prob = squashed(*actor(after), torch.from_numpy(noise[1]))
        own_target = sac.soft_target(reward, discount, target(after, next_action), next_log_prob, temperature)
        own_critic = sac.critic_loss(critics(seen, action), own_target, torch.ones(N))
        own_actor = sac.actor_loss(critics(seen, own_action), own_log_prob, temperature)

    s, a, r, d, n = (each.numpy() for each in (seen, action, reward, discount, after))
    pi, log_prob = drawn(actor, s, noise[0])
    next_pi, log_prob_after = drawn(actor, n, noise[1])
    y = r + d * (values(target, n, next_pi).min(0) - alpha * log_prob_after)
    q = values(critics, s, a)
    assert own_target.numpy() == pytest.approx(y, abs=1e-9)
    assert float(own_critic) == pytest.approx(0.5 * (((q[0] - y) ** 2).mean() + ((q[1] - y) ** 2).mean()), abs=1e-9)
    assert float(own_actor) == pytest.approx((alpha * log_prob - values(critics, s, pi).min(0)).mean(), abs=1e-9)
    assert (own_target.numpy() == r)[d == 0].all()  # nothing follows a terminated transition

    # SB3: ent_coef_loss = -(log_ent_coef * (log_prob + target_entropy).detach()).mean()
    log_alpha = torch.zeros(1, dtype=torch.float64, requires_grad=True)
    (-(log_alpha * (own_log_prob - 2)).mean()).backward()  # type: ignore[no-untyped-call]
    assert log_alpha.grad is not None
    assert float(sac.temperature_gradient(own_log_prob, -2)) == pytest.approx(float(log_alpha.grad), abs=1e-12)


def test_td3s_losses_are_those_of_sb3_on_the_same_batch() -> None:
    actor, target_actor = (DeterministicActor(SPACES, (16, 8), seed=seed).double() for seed in (1, 4))
    _, critics, target = numbers(0, 2, 3)
    seen, action, reward, discount, after = (each.double() for each in parts(batch()))
    noise = 3 * np.random.default_rng(5).normal(size=(N, 2))  # large, so that noise and actions are cut off

    with torch.no_grad():
        own_next = td3.smoothed(target_actor(after), torch.from_numpy(noise), 0.2, 0.5)
        own_target = td3.clipped_target(reward, discount, target(after, own_next))
        own_critic = td3.critic_loss(critics(seen, action), own_target, torch.ones(N))
        own_actor = td3.actor_loss(critics.first(seen, actor(seen)))

    s, a, r, d, n = (each.numpy() for each in (seen, action, reward, discount, after))
    next_pi = np.clip(np.tanh(through(n, layers_of(target_actor))) + np.clip(noise * 0.2, -0.5, 0.5), -1, 1)
    assert (np.abs(noise * 0.2) > 0.5).any()
    y = r + d * values(target, n, next_pi).min(0)
    q = values(critics, s, a)
    assert own_target.numpy() == pytest.approx(y, abs=1e-9)
    assert float(own_critic) == pytest.approx(((q[0] - y) ** 2).mean() + ((q[1] - y) ** 2).mean(), abs=1e-9)
    pi = np.tanh(through(s, layers_of(actor)))
    assert float(own_actor) == pytest.approx(-values(critics, s, pi)[0].mean(), abs=1e-9)


# Whole updates against separate networks, autograd and torch's own Adam


class Two(nn.Module):
    """Two critics as modules of their own, with the weights of `critics`."""

    def __init__(self, critics: nn.Module) -> None:
        super().__init__()
        named = {name: parameter.detach().clone() for name, parameter in critics.named_parameters()}
        self.each = nn.ModuleList()
        for c in range(2):
            linears = []
            for i in range(3):
                weight = named[f"weight_{i}"][c]
                linear = nn.Linear(*weight.shape)
                linear.weight.data, linear.bias.data = weight.T.clone(), named[f"bias_{i}"][c, 0].clone()
                linears += [linear, nn.ReLU()]
            self.each.append(nn.Sequential(*linears[:-1]))

    def forward(self, seen: Tensor, action: Tensor) -> Tensor:
        return torch.stack([one(torch.cat([seen, action], 1)).squeeze(-1) for one in self.each])

    def weights(self) -> list[Tensor]:
        return [parameter.detach() for parameter in self.parameters()]


def follow(target: nn.Module, source: nn.Module, tau: float) -> None:
    with torch.no_grad():
        for one, other in zip(target.parameters(), source.parameters(), strict=True):
            one.mul_(1 - tau).add_(other, alpha=tau)


def down(loss: Tensor, descent: torch.optim.Optimizer) -> None:
    descent.zero_grad()
    loss.backward()  # type: ignore[no-untyped-call]
    descent.step()


def close(found: nn.Module, expected: Any, atol: float = 2e-6) -> None:
    for one, other in zip(found.parameters(), expected.parameters(), strict=True):
        assert torch.allclose(one, other, rtol=0, atol=atol)


def test_sacs_updates_are_those_of_a_plain_loop() -> None:
    learner = sac_learner()
    actor = SquashedActor(SPACES, (16, 8), seed=1)
    critics, target = Two(learner.q.module), Two(learner.q.module)
    log_alpha = torch.zeros(1, requires_grad=True)
    descents = [torch.optim.Adam(p, lr=0.01) for p in ([log_alpha], critics.parameters(), actor.parameters())]
    for n in range(4):
        seen, action, reward, discount, after = parts(batch(n))
        noise = learner.noise(N)
        told = updated(learner, batch(n))

        alpha = log_alpha.exp().item()
        pi, log_prob = squashed(*actor(seen), noise[0])
        with torch.no_grad():
            next_pi, next_log_prob = squashed(*actor(after), noise[1])
            y = reward + discount * (target(after, next_pi).min(0).values - alpha * next_log_prob)
        temperature = -(log_alpha * (log_prob - 2).detach()).mean()
        values_loss = 0.5 * sum((nn.functional.mse_loss(one, y) for one in critics(seen, action)), torch.zeros(()))
        for loss, descent in zip((temperature, values_loss), descents[:2], strict=True):
            down(loss, descent)
        policy_loss = (alpha * log_prob - critics(seen, pi).min(0).values).mean()
        down(policy_loss, descents[2])
        follow(target, critics, 0.1)
        assert told["critic_loss"] == pytest.approx(values_loss.item(), abs=1e-5)
        assert told["actor_loss"] == pytest.approx(policy_loss.item(), abs=1e-5)
        assert told["alpha"] == pytest.approx(alpha, abs=1e-6)
    close(learner.pi.module, actor)
    close(Two(learner.q.module), critics)
    close(Two(learner.target.module), target)
    assert learner.log_alpha.item() == pytest.approx(log_alpha.item(), abs=1e-6)


def test_td3s_updates_are_those_of_a_plain_loop() -> None:
    learner = td3_learner()
    actor, target_actor = (DeterministicActor(SPACES, (16, 8), seed=1) for _ in range(2))
    critics, target = Two(learner.q.module), Two(learner.q.module)
    descents = [torch.optim.Adam(p, lr=0.01) for p in (actor.parameters(), critics.parameters())]
    for n in range(5):
        seen, action, reward, discount, after = parts(batch(n))
        noise = learner.noise(N)
        updated(learner, batch(n))

        with torch.no_grad():
            next_pi = (target_actor(after) + (noise * 0.2).clamp(-0.5, 0.5)).clamp(-1, 1)
            y = reward + discount * target(after, next_pi).min(0).values
        down(sum((nn.functional.mse_loss(one, y) for one in critics(seen, action)), torch.zeros(())), descents[1])
        if n % 2:  # the second and the fourth update
            down(-critics(seen, actor(seen))[0].mean(), descents[0])
            follow(target_actor, actor, 0.1)
            follow(target, critics, 0.1)
    close(learner.pi.module, actor)
    close(learner.target_pi.module, target_actor)
    close(Two(learner.q.module), critics)
    close(Two(learner.target_q.module), target)


LEARNERS: Mapping[str, Callable[..., SACLearner | TD3Learner]] = {"sac": sac_learner, "td3": td3_learner}


@pytest.mark.parametrize("kind", LEARNERS)
def test_a_transition_of_weight_0_teaches_the_critics_nothing(kind: str) -> None:
    weight = torch.tensor([1.0, 0.0]).repeat_interleave(torch.tensor([20, 13]))
    given = [replace(batch(), reward=batch().reward + odd * (1 - weight), weight=weight) for odd in (0.0, 100.0)]
    learners = [LEARNERS[kind](), LEARNERS[kind]()]
    for learner, one in zip(learners, given, strict=True):
        updated(learner, one)
    states = [learner.q.state() for learner in learners]
    assert all((states[0][name] == states[1][name]).all() for name in states[0])


@pytest.mark.parametrize("kind", LEARNERS)
def test_updates_after_a_restart_are_bit_for_bit_those_without(kind: str) -> None:
    first, second = LEARNERS[kind](), LEARNERS[kind]()
    for n in range(3):
        updated(first, batch(n))
    second.load(first.weights(), {name: array.copy() for name, array in first.state().items()})
    assert second.updates == 3
    for n in range(3, 6):
        assert updated(first, batch(n)) == updated(second, batch(n))
    mine, other = first.state(), second.state()
    assert mine.keys() == other.keys()
    assert all((mine[name] == other[name]).all() for name in mine)
    assert (first.weights().data == second.weights().data).all()


@pytest.mark.parametrize("kind", LEARNERS)
def test_the_value_of_reward_1_for_ever_is_1_over_1_minus_gamma(kind: str) -> None:
    learner = LEARNERS[kind](**({"autotune": False, "alpha": 0.0} if kind == "sac" else {}))
    for n in range(400):
        given = replace(batch(n % 20), reward=torch.ones(N), discount=torch.full((N,), 0.8))
        updated(learner, given)
    with torch.no_grad():
        value = learner.q.module(given.observation, learner.inward(given.action))
    assert value.numpy() == pytest.approx(np.full((2, N), 5.0), abs=0.3)


# The squashed density


@pytest.mark.parametrize(("mean", "std"), [(0.0, 1.0), (0.7, 0.5), (-1.5, 0.8), (0.2, 2.0)])
def test_the_squashed_density_is_the_slope_of_its_distribution_function(mean: float, std: float) -> None:
    """P(a < x) is the normal distribution function at atanh(x); integrated over actions, the density gives it."""
    u = torch.linspace(mean - 9 * std, mean + 9 * std, 200_001, dtype=torch.float64)[:, None]
    action, log_prob = squashed(torch.tensor([mean]), torch.tensor([math.log(std)], dtype=torch.float64), (u - mean) / std)
    density, at = log_prob.exp().numpy(), action[:, 0].numpy()
    mass = np.concatenate([[0.0], np.cumsum((density[1:] + density[:-1]) / 2 * np.diff(at))])
    expected = [0.5 * (1 + math.erf((float(each) - mean) / std / math.sqrt(2))) for each in u[::5000, 0]]
    assert mass[::5000] == pytest.approx(expected, abs=1e-6)
    assert mass[-1] == pytest.approx(1.0, abs=1e-6)


def test_the_slope_of_tanh_has_a_logarithm_where_tanh_is_flat() -> None:
    u = torch.tensor([0.0, 1.0, -1.0, 3.0, 30.0, -30.0, 300.0])
    exact = [-2 * math.log(math.cosh(float(each))) if abs(each) < 100 else 2 * math.log(2) - 2 * abs(float(each)) for each in u]
    assert log_slope(u).tolist() == pytest.approx(exact, rel=1e-5, abs=1e-6)


# The policies that actors play


def played(network: Any, module: nn.Module, noise: Any, words: Any, seen: Any, own: bool = False) -> Any:
    policy = network.policy(SPACES, FORM, module if own else None)
    weights = FlatModule(module).bundle()
    policy.load(weights)
    acted = policy.act(seen, np.zeros(len(seen), bool), policy.begin(len(seen)), noise, words)
    policy.forget()
    assert acted.action.dtype == np.float32
    return acted.action.copy()


SEEN = np.random.default_rng(1).normal(size=(5, 3)).astype(np.float32)
NOISE = np.random.default_rng(2).normal(size=(5, 2)).astype(np.float32)


@pytest.mark.parametrize("own", [False, True], ids=["numpy", "torch"])
def test_an_actor_draws_sacs_actions_from_the_learners_distribution(own: bool) -> None:
    module = SquashedActor(SPACES, FORM.hidden, FORM.activation, seed=1)
    with torch.no_grad():
        drawn_ones, _ = squashed(*module(torch.from_numpy(SEEN)), torch.from_numpy(NOISE))
        mean = torch.tanh(module(torch.from_numpy(SEEN))[0])
    assert played(Squashed(), module, NOISE, {}, SEEN, own) == pytest.approx([0, 2.5] + [2, 2.5] * drawn_ones.numpy(), abs=1e-5)
    assert played(Squashed(), module, None, {"random": True}, SEEN, own) == pytest.approx(
        [0, 2.5] + [2, 2.5] * mean.numpy(), abs=1e-5
    )


@pytest.mark.parametrize("own", [False, True], ids=["numpy", "torch"])
def test_an_actor_adds_td3s_noise_to_the_policys_action_and_cuts_it_off(own: bool) -> None:
    module = DeterministicActor(SPACES, FORM.hidden, FORM.activation, seed=1)
    with torch.no_grad():
        quiet = module(torch.from_numpy(SEEN)).numpy()
    noisy = np.clip(quiet + 0.9 * NOISE, -1, 1)
    assert (np.abs(noisy) == 1).any()
    assert played(Deterministic(), module, NOISE, {"noise": 0.9}, SEEN, own) == pytest.approx(
        [0, 2.5] + [2, 2.5] * noisy, abs=1e-5
    )
    assert played(Deterministic(), module, None, {"noise": 0.9}, SEEN, own) == pytest.approx(
        [0, 2.5] + [2, 2.5] * quiet, abs=1e-5
    )


@pytest.mark.parametrize("network", [Squashed(), Deterministic()], ids=["sac", "td3"])
def test_the_first_actions_are_uniform_between_the_bounds(network: Any) -> None:
    policy = network.policy(SPACES, FORM, None)
    policy.load(FlatModule(network.build(SPACES, FORM, 0)).bundle())
    noise = policy.noise(np.random.default_rng(3), 1, 20_000)[0]
    action = policy.act(np.zeros((20_000, 3), np.float32), np.zeros(20_000, bool), {}, noise, {"random": True}).action
    for i, (low, high) in enumerate(((-2.0, 2.0), (0.0, 5.0))):
        share = np.sort((action[:, i] - low) / (high - low))
        assert np.abs(share - np.arange(20_000) / 20_000).max() < 0.0138  # Kolmogorov-Smirnov at p = 0.001
    assert uniform(np.float32([0.0])) == 0


def test_actions_that_are_not_between_finite_bounds_are_refused_in_one_line() -> None:
    endless = Spaces(Observations((3,)), Box((2,), (-1.0, -math.inf), (1.0, math.inf)))
    with pytest.raises(UserError, match=r"method=sac: action 1 .* -inf to inf.*method=ppo"):
        Squashed().build(endless, FORM, 0)
    with pytest.raises(UserError, match=r"method=td3: .*Discrete.*method=dqn or method=ppo"):
        Deterministic().build(Spaces(Observations((3,)), Discrete(4)), FORM, 0)
