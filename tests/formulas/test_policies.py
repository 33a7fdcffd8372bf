"""The built-in policy in torch and its numpy twin; what a policy's numbers mean."""

from __future__ import annotations

import math
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
import torch
from random_trajectories import LOG_PROB, sample
from torch import nn

from shoal.aggregators.impala import IMPALALearner
from shoal.aggregators.ppo import PPOLearner
from shoal.envs.spaces import Box, Discrete, Observations, Spaces
from shoal.jobs.reinforcement import Reinforcement
from shoal.nets import policies
from shoal.nets.fitting import fitting
from shoal.nets.flat import FlatModule
from shoal.nets.numpy_policy import NumpyPolicy
from shoal.nets.policies import ActorCritic, TorchPolicy
from shoal.protocol.errors import UserError
from shoal.protocol.layout import Bundle
from shoal.protocol.work import Contribution, Task, Work

VECTOR, PICTURE = Observations((5,)), Observations((2, 3), "u1")
ACTIONS = [Discrete(4), Box((3,), (-1.0,) * 3, (1.0,) * 3)]


def shaken(module: nn.Module, seed: int = 0) -> nn.Module:
    """Every parameter away from its start, so that no bias or log_std is 0."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for p in module.parameters():
            p.add_(0.3 * torch.randn(p.shape, generator=generator))
    return module


def observations(of: Observations, *batch: int) -> np.ndarray[Any, Any]:
    rng = np.random.default_rng(1)
    if of.dtype == "u1":
        return rng.integers(0, 256, (*batch, *of.shape), dtype=np.uint8)
    return rng.standard_normal((*batch, *of.shape), dtype=np.float32)


@pytest.mark.parametrize("hidden", [(), (8,), (64, 64)])
@pytest.mark.parametrize("activation", ["tanh", "relu"])
@pytest.mark.parametrize("shared", [True, False])
@pytest.mark.parametrize("seen", [VECTOR, PICTURE])
@pytest.mark.parametrize("action", ACTIONS)
def test_the_numpy_twin_equals_torch(hidden: Any, activation: str, shared: bool, seen: Observations, action: Any) -> None:
    module = shaken(ActorCritic(Spaces(seen, action), hidden, activation, shared))
    twin, rng = NumpyPolicy(action, activation), np.random.default_rng(2)
    twin.load(FlatModule(module).bundle())
    obs = observations(seen, 7)
    ours = twin.parameters(obs)
    drawn = action.act(ours, action.noise(rng, 1, 7)[0])
    with torch.no_grad():
        theirs, _ = module(torch.from_numpy(obs))
        wanted = policies.log_prob(theirs, torch.from_numpy(drawn))
    np.testing.assert_allclose(action.log_prob(ours, drawn), wanted, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(action.act(ours, None), sample(theirs, None), rtol=1e-5, atol=1e-5)


def test_the_twin_reads_weights_in_place() -> None:
    module = shaken(ActorCritic(Spaces(VECTOR, Discrete(2)), (8,)))
    bundle, twin = FlatModule(module).bundle(), NumpyPolicy(Discrete(2))
    twin.load(bundle)
    before = twin.parameters(observations(VECTOR, 3)).copy()
    bundle["actor.1.bias"][:] += 1
    np.testing.assert_allclose(twin.parameters(observations(VECTOR, 3)), before + 1, rtol=1e-6)


def test_batches_may_change_size() -> None:
    twin = NumpyPolicy(Discrete(2))
    twin.load(FlatModule(shaken(ActorCritic(Spaces(VECTOR, Discrete(2))))).bundle())
    many = twin.parameters(observations(VECTOR, 6)).copy()
    np.testing.assert_allclose(twin.parameters(observations(VECTOR, 6)[:2]), many[:2], rtol=1e-5)
    np.testing.assert_allclose(twin.parameters(observations(VECTOR, 6)), many, rtol=1e-5)


@pytest.mark.parametrize("action", ACTIONS)
def test_forward_keeps_time_and_batch(action: Any) -> None:
    module = ActorCritic(Spaces(PICTURE, action))
    parameters, value = module(torch.from_numpy(observations(PICTURE, 4, 6)))
    assert value.shape == (4, 6)
    assert policies.entropy(parameters).shape == (4, 6)
    drawn = sample(parameters, torch.Generator().manual_seed(0))
    assert policies.log_prob(parameters, drawn).shape == (4, 6)
    assert drawn.dtype == (torch.int64 if isinstance(action, Discrete) else torch.float32)
    assert drawn.shape[2:] == action.layout()[1]


def test_scalar_observations_are_one_number() -> None:
    module = ActorCritic(Spaces(Observations(()), Discrete(2)))
    assert module(torch.zeros(4, 6))[1].shape == (4, 6)


@pytest.mark.parametrize("shared", [True, False])
def test_weights_begin_orthogonal_with_the_gain_of_their_place(shared: bool) -> None:
    module = ActorCritic(Spaces(VECTOR, Discrete(4)), (64, 32), shared=shared)
    gains = {"actor": 0.01, "critic": 1.0}
    for name, p in module.named_parameters():
        if name.endswith("bias"):
            assert not p.any()
            continue
        chain = name.split(".")[0]
        last = chain in gains and name == f"{chain}.{len(module.get_submodule(chain)) - 1}.weight"  # type: ignore[arg-type]
        wide = p if p.shape[0] <= p.shape[1] else p.T
        gain = gains[chain] if last else math.sqrt(2)
        torch.testing.assert_close(wide @ wide.T, gain**2 * torch.eye(len(wide)), atol=1e-5, rtol=1e-5)


def test_weights_are_decided_by_their_seed_and_leave_the_global_generator_alone() -> None:
    before = torch.random.get_rng_state()
    first, again, other = (FlatModule(ActorCritic(Spaces(VECTOR, Discrete(4)), seed=s)).bundle().sha256() for s in (1, 1, 2))
    assert first == again != other
    assert torch.equal(torch.random.get_rng_state(), before)


def test_names_say_which_network_a_weight_belongs_to() -> None:
    names = set(ActorCritic(Spaces(VECTOR, ACTIONS[1]), (8,), shared=True).state_dict())
    assert names == {"log_std", *(f"{n}.0.{w}" for n in ("trunk", "actor", "critic") for w in ("weight", "bias"))}


def test_probabilities_are_those_of_torch_distributions() -> None:
    logits, mean, log_std = torch.randn(6, 4), torch.randn(6, 3), torch.randn(3)
    cases: list[tuple[Any, Any, Any]] = [
        (logits, torch.distributions.Categorical(logits=logits), torch.randint(4, (6,))),
        (
            (mean, log_std),
            torch.distributions.Independent(torch.distributions.Normal(mean, log_std.exp()), 1),
            torch.randn(6, 3),
        ),
    ]
    for parameters, known, action in cases:
        torch.testing.assert_close(policies.log_prob(parameters, action), known.log_prob(action))
        torch.testing.assert_close(policies.entropy(parameters), known.entropy())


def test_log_prob_of_unlikely_actions_is_finite() -> None:
    parameters = np.array([[1e4, 0, -1e4]], np.float32)
    assert Discrete(3).log_prob(parameters, np.array([2])).tolist() == [-2e4]


def test_draws_are_as_frequent_as_their_probability() -> None:
    logits = np.array([0.0, 1.0, -1.0], np.float32)
    head, n = Discrete(3), 200_000
    noise = head.noise(np.random.default_rng(0), 1, n)[0]
    counts = np.bincount(head.act(np.broadcast_to(logits, (n, 3)), noise), minlength=3)
    p = np.exp(logits) / np.exp(logits).sum()
    assert (abs(counts - n * p) < 4 * np.sqrt(n * p * (1 - p))).all()


def test_gaussian_draws_have_the_mean_and_the_spread_they_should() -> None:
    head, n = Box((2,), (-1.0,) * 2, (1.0,) * 2), 100_000
    parameters = np.broadcast_to(np.array([1.0, -2.0, math.log(0.5), math.log(3.0)], np.float32), (n, 4))
    drawn = head.act(parameters, head.noise(np.random.default_rng(0), 1, n)[0]).astype(np.float64)
    for i, (mean, std) in enumerate([(1.0, 0.5), (-2.0, 3.0)]):
        assert abs(drawn[:, i].mean() - mean) < 4 * std / math.sqrt(n)
        assert abs(drawn[:, i].var() - std**2) < 4 * std**2 * math.sqrt(2 / n)


class Users(nn.Module):
    """A module of a user's own: log_std depends on the state, frozen parts, buffers."""

    def __init__(self, box: bool) -> None:
        super().__init__()
        self.box, self.core, self.norm = box, nn.Linear(5, 6), nn.BatchNorm1d(6)

    def forward(self, x: torch.Tensor) -> Any:
        out = self.norm(self.core(x))
        return ((out[:, :3], out[:, 3:]) if self.box else out), out.sum(-1)


@pytest.mark.parametrize("box", [True, False])
def test_any_module_is_a_policy(box: bool) -> None:
    module = shaken(Users(box)).eval()
    weights = FlatModule(module).bundle()
    weights.data.flags.writeable = False  # as it comes from elsewhere
    policy, obs = TorchPolicy(Users(box).eval(), ACTIONS[box]), observations(VECTOR, 4)
    policy.load(weights)
    with torch.no_grad():
        out, _ = module(torch.from_numpy(obs))
    wanted = torch.cat(out, dim=-1) if box else out
    np.testing.assert_array_equal(policy.parameters(obs), wanted)


class Made(nn.Module):
    """A policy that returns what `out` makes of its features, [N, 6]."""

    def __init__(self, out: Any, *layers: nn.Module) -> None:
        super().__init__()
        self.body, self.out = nn.Sequential(nn.Linear(5, 6), *layers), out

    def forward(self, x: torch.Tensor) -> Any:
        return self.out(self.body(x))


DISCRETE, CONTINUOUS = (Spaces(VECTOR, action) for action in ACTIONS)


@pytest.mark.parametrize("learner", [PPOLearner, IMPALALearner])
def test_a_value_with_a_trailing_1_trains_as_one_without(learner: Any) -> None:
    def trained(out: Any) -> Any:
        torch.manual_seed(3)
        module = Made(out)
        made = learner(fitting(module, DISCRETE), lr=0.05)
        bundle = Bundle.zeros(DISCRETE.trajectory(4, 3, LOG_PROB))
        bundle["observation"][...] = observations(VECTOR, 5, 3)
        bundle["reward"][...] = np.arange(12).reshape(4, 3)
        bundle["mask"][...] = True
        made.fold(Contribution(Task(0, 0, (0,)), 0, 0, Work(bundle)))
        return made.step().metrics, made.weights().sha256()

    assert trained(lambda f: (f[:, :4], f[:, 4:5])) == trained(lambda f: (f[:, :4], f[:, 4]))


@pytest.mark.parametrize(
    ("spaces", "out", "said"),
    [
        (DISCRETE, lambda f: f[:, :4], r"gave \[1, 4\] for 1 observations; expected \(logits \[1, 4\], value \[1\]\)"),
        (DISCRETE, lambda f: (f[:, :4], f[:, 4:6]), r"gave \(\[1, 4\], \[1, 2\]\)"),
        (DISCRETE, lambda f: (f[:, :5], f[:, 4]), r"gave \(\[1, 5\], \[1\]\)"),
        (DISCRETE, lambda f: (f[:, :4], f[:, 4].mean()), r"gave \(\[1, 4\], \[\]\)"),
        (DISCRETE, lambda f: (f[:, :4], f[:, 4].mean(0, keepdim=True)), r"gave \(\[3, 4\], \[1\]\) for 3 observations"),
        (DISCRETE, lambda f: (f[:, :4].long(), f[:, 4]), r"gave \(\[1, 4\] of torch.int64, \[1\]\)"),
        (DISCRETE, lambda f: (f[:, :4].argmax(1), f[:, 4]), r"gave \(\[1\] of torch.int64, \[1\]\)"),
        (DISCRETE, lambda f: (torch.distributions.Categorical(logits=f), f[:, 4]), r"gave \(Categorical, \[1\]\)"),
        (DISCRETE, lambda f: ((f[:, :3], f[:, 3:]), f[:, 4]), r"gave \(\(\[1, 3\], \[1, 3\]\), \[1\]\)"),
        (CONTINUOUS, lambda f: (f, f[:, 4]), r"expected \(\(mean \[1, 3\], log_std \[1, 3\] or \[3\]\), value \[1\]\)"),
        (CONTINUOUS, lambda f: ((f[:, :3], f[:, 3:], f), f[:, 4]), r"gave \(\(\[1, 3\], \[1, 3\], \[1, 6\]\), \[1\]\)"),
        (CONTINUOUS, lambda f: ((f[:, :3], f[0, :2]), f[:, 4]), r"gave \(\(\[1, 3\], \[2\]\), \[1\]\)"),
    ],
)
def test_outputs_of_another_form_are_refused_in_one_line(spaces: Spaces, out: Any, said: str) -> None:
    with pytest.raises(UserError, match=said) as error:
        fitting(Made(out), spaces)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("cut", [lambda f: f.detach(), lambda f: f.data, lambda f: torch.zeros_like(f) + 1])
def test_outputs_without_a_gradient_are_refused(cut: Any) -> None:
    with pytest.raises(UserError, match="the outputs of forward do not depend on any trainable parameter: no gradient would"):
        fitting(Made(lambda f: (cut(f)[:, :4], cut(f)[:, 4])), DISCRETE)
    fitting(Made(lambda f: (f[:, :4], cut(f)[:, 4])), DISCRETE)


def test_a_forward_that_cannot_be_called_or_raises_is_told_in_one_line() -> None:
    class Masks(nn.Module):
        def forward(self, x: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
            return x

    for says, module in (("raised TypeError for observations", Masks()), ("raised RuntimeError for", nn.Linear(17, 5))):
        with pytest.raises(UserError) as told:
            fitting(module, DISCRETE)
        assert str(told.value).startswith(f"policy: forward {says}")
        assert "\n" not in str(told.value)


def test_a_jobs_policy_is_looked_at_before_anything_runs() -> None:
    job = Reinforcement("CartPole-v1", lambda spaces: nn.Linear(spaces.observation.size, spaces.action.n))
    with pytest.raises(UserError, match=r"policy: forward gave \[1, 2\] for 1 observations"):
        job.check_parts()


@pytest.mark.parametrize("log_std", [lambda f: f[:, 3:], lambda f: f[0, 3:]])
def test_a_log_std_may_depend_on_the_state_or_not(log_std: Any) -> None:
    fitting(Made(lambda f: ((f[:, :3], log_std(f)), f[:, 5:])), CONTINUOUS)


@pytest.mark.parametrize(
    ("out", "said"),
    [
        (lambda f: (f[:, :4] * math.nan, f[:, 4]), "forward gave NaN for observations of zeros and of ones"),
        (lambda f: (f[:, :4], f[:, 4] + torch.rand(())), "two passes over the same observations differ"),
        (lambda f: (f[:, :4] + torch.rand(()), f[:, 4]), "two passes over the same observations differ"),
    ],
)
def test_a_policy_that_gives_no_numbers_or_others_each_time_is_refused(out: Any, said: str) -> None:
    with pytest.raises(UserError, match=f"^policy: {said}"):
        fitting(Made(out), DISCRETE)


def test_a_policy_whose_outputs_depend_on_other_observations_of_the_batch_is_refused() -> None:
    class Centred(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x - 0.3 * x.mean(0)

    with pytest.raises(UserError, match=r"^policy: an observation gave other outputs beside other observations, so they"):
        fitting(nn.Sequential(Centred(), Made(lambda f: (f[:, :4], f[:, 4]))), DISCRETE)


class Halved(nn.Module):
    """A layer that takes no ones."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if (x > 0.9).all():
            raise ValueError("no observation of this environment")
        return x


def test_a_policy_need_not_take_ones_and_may_have_a_dropout_of_nothing() -> None:
    module = nn.Sequential(Halved(), Made(lambda f: (f[:, :4], f[:, 4]), nn.Dropout(0.0)))
    assert fitting(module, DISCRETE) is module


class Noisy(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return nn.functional.dropout(x, 0.4, self.training)


@pytest.mark.parametrize(
    ("layer", "said"),
    [
        (nn.Dropout(0.3), "part 'body.1' is Dropout, active"),
        (nn.BatchNorm1d(6), "part 'body.1' is BatchNorm1d, active"),
        (Noisy(), "two passes over the same observations differ"),
    ],
)
def test_layers_by_which_two_passes_differ_are_refused_unless_they_rest(layer: nn.Module, said: str) -> None:
    module = Made(lambda f: (f[:, :4], f[:, 4]), layer)
    with pytest.raises(UserError, match=rf"{said}.*return it in evaluation mode \(module.eval\(\)\)"):
        fitting(module.train(), DISCRETE)
    assert fitting(module.eval(), DISCRETE) is module


def test_batch_norm_without_running_statistics_is_refused_in_evaluation_mode_too() -> None:
    with pytest.raises(UserError, match="BatchNorm1d, active"):
        fitting(Made(lambda f: (f[:, :4], f[:, 4]), nn.BatchNorm1d(6, track_running_stats=False)).eval(), DISCRETE)


@pytest.mark.parametrize("training", [True, False])
def test_actors_run_a_policy_in_the_mode_in_which_it_was_made(training: bool) -> None:
    module = Made(lambda f: (f[:, :4], f[:, 4])).train(training)
    assert TorchPolicy(module, Discrete(4)).flat.module.training == training


def test_a_trial_changes_no_buffer() -> None:
    class Counted(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.seen = nn.Buffer(torch.zeros(()))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            self.seen += len(x)
            return x

    counted = Counted()
    fitting(Made(lambda f: (f[:, :4], f[:, 4]), counted), DISCRETE)
    assert counted.seen == 0


@pytest.mark.parametrize("fill", [-math.inf, -1e9])
def test_the_entropy_and_its_gradient_of_masked_actions_are_those_of_the_others(fill: float) -> None:
    plain = torch.tensor([[0.3, -1.2, 0.7], [2.0, 0.1, -0.4]], requires_grad=True)
    some = torch.tensor([[0.3, 5.0, -1.2, 0.7], [2.0, 5.0, 0.1, -0.4]], requires_grad=True)
    allowed = torch.tensor([True, False, True, True])
    masked = some.masked_fill(~allowed, fill)
    for parameters in (plain, masked):
        policies.entropy(parameters).sum().backward()
    torch.testing.assert_close(policies.entropy(masked), policies.entropy(plain))
    assert some.grad is not None
    torch.testing.assert_close(some.grad[:, allowed], plain.grad)
    assert (some.grad[:, ~allowed] == 0).all()


def test_one_action_that_is_left_has_no_entropy() -> None:
    logits = torch.tensor([[-math.inf, 1.5, -math.inf]], requires_grad=True)
    policies.entropy(logits).sum().backward()
    assert policies.entropy(logits).item() == 0
    assert logits.grad is not None
    assert (logits.grad == 0).all()


def test_torch_and_numpy_policies_agree_on_the_built_in_one() -> None:
    for action, shared in zip(ACTIONS, (True, False), strict=True):
        module = shaken(ActorCritic(Spaces(VECTOR, action), shared=shared))
        weights, obs, twin = FlatModule(module).bundle(), observations(VECTOR, 4), NumpyPolicy(action)
        torch_policy = TorchPolicy(ActorCritic(Spaces(VECTOR, action), shared=shared), action)
        for policy in (twin, torch_policy):
            policy.load(weights)
        np.testing.assert_allclose(twin.parameters(obs), torch_policy.parameters(obs), rtol=1e-5, atol=1e-5)


def test_what_cannot_be_is_refused_in_one_line() -> None:
    with pytest.raises(UserError, match="activation='sin': must be one of tanh, relu"):
        ActorCritic(Spaces(VECTOR, Discrete(2)), activation="sin")
    with pytest.raises(UserError, match="activation='sin'"):
        NumpyPolicy(Discrete(2), "sin")
    with pytest.raises(UserError, match=r"hidden=\(8, 0\)"):
        ActorCritic(Spaces(VECTOR, Discrete(2)), (8, 0))


def test_hidden_layers_are_as_wide_as_asked() -> None:
    module = ActorCritic(Spaces(VECTOR, Discrete(4)), (7, 9))
    for chain, outputs in ((module.actor, 4), (module.critic, 1)):
        assert [(layer.in_features, layer.out_features) for layer in chain] == list(pairwise([5, 7, 9, outputs]))
