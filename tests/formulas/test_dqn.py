"""DQN against its definition, against other implementations' arithmetic, and on environments whose values are known."""

from __future__ import annotations

import copy
from dataclasses import replace
from fractions import Fraction
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import pytest
import torch
from gymnasium.vector import AutoresetMode, SyncVectorEnv
from torch import Tensor, nn

from shoal.actors.workers.rollout import Rollout
from shoal.aggregators import row_ring
from shoal.aggregators.dqn import DQNLearner
from shoal.aggregators.replay import ReplayBuffer, Transitions
from shoal.coordinator.keeping.store import Snapshot, Store
from shoal.envs.spaces import Box, Discrete, Observations, Spaces
from shoal.envs.vector import Envs
from shoal.nets.flat import FlatModule
from shoal.nets.q import QNetwork, fitting
from shoal.nets.q_policy import NumpyQ, TorchQ, epsilons
from shoal.protocol.errors import UserError
from shoal.protocol.layout import Bundle
from shoal.protocol.work import Contribution, Task, Work
from tests.formulas.random_trajectories import SPACES
from tests.formulas.test_known_mdps import MODES, Gate, Hall


def batch(seed: int, n: int = 32, **changes: Any) -> Transitions:
    rng = np.random.default_rng(seed)
    made = Transitions(
        np.arange(n),
        {"observation": torch.from_numpy(rng.normal(size=(n, 3)).astype(np.float32))},
        {"observation": torch.from_numpy(rng.normal(size=(n, 3)).astype(np.float32))},
        torch.from_numpy(rng.integers(0, 4, n)),
        torch.from_numpy(rng.normal(size=n).astype(np.float32) * 3),
        torch.from_numpy((0.9 * rng.integers(0, 2, n)).astype(np.float32)),
        torch.from_numpy(rng.random(n).astype(np.float32)),
    )
    return replace(made, **changes)


def learner(network: int = 0, **options: Any) -> DQNLearner:
    """A learner over trajectories of 8 rows by 4 environments. network: seed of the first weights."""
    return DQNLearner(QNetwork(SPACES, (16, 16), "tanh", seed=network), layout=SPACES.trajectory(8, 4), **options)


def numpy_q(flat: FlatModule, x: Any) -> Any:
    """A perceptron's values in float64, from its weights."""
    arrays = {name: array.astype(np.float64) for name, array in flat.bundle().items()}
    for i in range(2):
        x = np.tanh(x @ arrays[f"trunk.{i}.weight"].T + arrays[f"trunk.{i}.bias"])
    return x @ arrays["q.weight"].T + arrays["q.bias"]


def apart(made: DQNLearner) -> DQNLearner:
    """The learner, with a target network that differs from the learned one."""
    with torch.no_grad():
        made.target.vector.add_(torch.randn(made.target.vector.shape, generator=torch.Generator().manual_seed(1)) * 0.3)
    return made


@pytest.mark.parametrize("double", [False, True])
def test_targets_and_loss_are_those_of_sb3s_arithmetic(double: bool) -> None:
    """Stable-Baselines3 2.x, dqn.py: max over actions of the target network, times (1 - done) and gamma; smooth_l1_loss with
    beta = 1. Double DQN as in van Hasselt et al. 2016, equation 4."""
    made, told = apart(learner(double=double)), batch(2, weight=torch.ones(32))
    before, after = told.observation.numpy().astype(np.float64), told.next_observation.numpy().astype(np.float64)
    following, each = numpy_q(made.target, after), np.arange(32)
    value = following[each, numpy_q(made.q.flat, after).argmax(1)] if double else following.max(1)
    target = told.reward.numpy() + told.discount.numpy() * value
    assert made.targets(told).numpy() == pytest.approx(target, abs=1e-5)
    error = np.abs(numpy_q(made.q.flat, before)[each, told.action.numpy()] - target)
    assert 0 < np.count_nonzero(error < 1) < 32
    loss = np.where(error < 1, 0.5 * error**2, error - 0.5).mean()
    assert float(made.update(told)[0]) == pytest.approx(loss, abs=1e-5)


class Table(nn.Module):
    """Values that are given, whatever is observed."""

    def __init__(self, values: list[list[float]]) -> None:
        super().__init__()
        self.values = nn.Parameter(torch.tensor(values, dtype=torch.float32))

    def forward(self, observation: Tensor) -> Tensor:
        return self.values[observation[:, 0].long()]


def test_double_q_errors_are_those_of_a_published_test() -> None:
    """rlax, value_learning_test.py, DoubleQLearningTest: rows of the selector and of the values are observations 0 and 1, those
    of the actions that were taken are observations 2 and 3."""
    spaces = Spaces(Observations((1,)), Discrete(3))
    table = Table([[2, 10, 1], [11, 20, 1], [1, 1, 0], [1, 2, 0]])
    made = DQNLearner(table, layout=spaces.trajectory(4, 1), double=True)
    made.target.vector[:6] = torch.tensor([99.0, 1, 98, 91, 2, 66])
    seen, after = ({"observation": torch.tensor([[a], [b]])} for a, b in ((2.0, 3.0), (0.0, 1.0)))
    ones, zeros = torch.ones(2), torch.tensor([0.0, 1.0])
    told = Transitions(np.arange(2), seen, after, torch.tensor([0, 1]), ones, zeros, ones)
    taken = torch.tensor([1.0, 2.0])
    assert (made.targets(told) - taken).tolist() == [0.0, 1.0]


def test_the_gradient_is_that_of_the_weighted_huber_loss_alone() -> None:
    """No gradient comes through the target: against autograd on the definition, in float64."""
    made, told = apart(learner(max_grad_norm=1e9)), batch(3)
    q, target = copy.deepcopy(made.q.module).double(), made.targets(told).double()
    chosen = q(told.observation.double())[torch.arange(32), told.action]
    error = chosen - target
    huber = torch.where(error.abs() < 1, 0.5 * error**2, error.abs() - 0.5)
    (told.weight.double() * huber).mean().backward()  # type: ignore[no-untyped-call]
    made.update(told)
    by_name = {name: parameter.grad for name, parameter in made.q.module.named_parameters()}
    for name, parameter in q.named_parameters():
        assert torch.allclose(by_name[name].double(), parameter.grad, atol=1e-6), name


def test_the_target_network_moves_every_so_many_gradient_steps() -> None:
    made = learner(target_update_interval=3, tau=0.25)
    first = made.target.vector.clone()
    for k in range(1, 7):
        made.update(batch(k))
        made.updates += 1
        if k % 3:
            assert torch.equal(made.target.vector, first)
        else:
            assert torch.allclose(made.target.vector, first + 0.25 * (made.q.flat.vector - first), atol=1e-7)
            first = made.target.vector.clone()
    copied = learner(target_update_interval=1)
    copied.update(batch(0))
    assert torch.equal(copied.target.vector, copied.q.flat.vector)


def test_a_duelling_network_adds_value_and_advantage_without_its_mean() -> None:
    q = QNetwork(SPACES, (), dueling=True, seed=4)
    seen = torch.randn(5, 3, generator=torch.Generator().manual_seed(0))
    advantage = q.advantage(seen)
    assert torch.allclose(q(seen), q.value(seen) + advantage - advantage.mean(1, keepdim=True))
    assert torch.allclose(q(seen).mean(1), q.value(seen)[:, 0], atol=1e-6)


def test_weights_begin_within_one_over_the_root_of_the_inputs() -> None:
    q = QNetwork(SPACES, (100,), seed=3)
    again = QNetwork(SPACES, (100,), seed=3)
    assert q.trunk[0].weight.abs().max() < 1 / 3**0.5
    assert q.q.weight.abs().max() < 0.1
    assert float(q.q.weight.detach().std()) == pytest.approx(0.1 / 3**0.5, rel=0.1)
    assert all(torch.equal(a, b) for a, b in zip(q.parameters(), again.parameters(), strict=True))


# Acting


@pytest.mark.parametrize("activation", ["tanh", "relu"])
@pytest.mark.parametrize("dueling", [False, True])
def test_the_numpy_twin_values_as_the_module_does(dueling: bool, activation: str) -> None:
    q = QNetwork(SPACES, (7, 5), activation, dueling, seed=1)
    weights, seen = FlatModule(q).bundle(), np.random.default_rng(0).normal(size=(9, 3)).astype(np.float32)
    twin, whole = NumpyQ(Discrete(4), activation), TorchQ(q, Discrete(4))
    for policy in (twin, whole):
        policy.load(weights)
    assert twin.values(seen) == pytest.approx(whole.values(seen), abs=1e-6)
    none = np.zeros(9, bool)
    assert (twin.act(seen, none, {}, None, {"epsilon": 1.0}).action == whole.values(seen).argmax(1)).all()


def test_epsilon_is_the_share_of_random_actions() -> None:
    policy = NumpyQ(Discrete(4))
    policy.load(FlatModule(QNetwork(SPACES, (5,), seed=1)).bundle())
    seen, none = np.zeros((500, 3), np.float32), np.zeros(500, bool)
    best = policy.values(seen[:1]).argmax()
    noise = policy.noise(np.random.default_rng(1), 40, 500)
    actions = [policy.act(seen, none, {}, each, {"epsilon": 0.4}).action for each in noise]
    counts = np.bincount(np.concatenate(actions), minlength=4)
    share = np.full(4, 0.1)
    share[best] += 0.6
    assert counts / 20_000 == pytest.approx(share, abs=0.015)
    assert (policy.act(seen, none, {}, noise[0], {}).action == best).all()


def test_the_ladder_of_epsilons_is_that_of_apex() -> None:
    """Horgan et al. 2018, section 4: epsilon 0.4, alpha 7, here with 8 environments."""
    wanted = [0.4 ** (1 + 7 * i / 7) for i in range(8)]
    assert epsilons({"epsilon": 0.4, "ladder": 7.0}, 8).tolist() == pytest.approx(wanted)
    assert epsilons({"epsilon": 0.4, "ladder": 7.0}, 1).tolist() == [0.4]


def test_a_network_that_gives_no_value_for_each_action_is_refused() -> None:
    class Two(nn.Module):
        def forward(self, observation: Tensor) -> Any:
            return torch.zeros(len(observation), 4), torch.zeros(len(observation))

    with pytest.raises(UserError, match=r"forward gave \(\[1, 4\], \[1\]\) for .*one value for each action, \[1, 4\]"):
        fitting(Two(), SPACES)
    with pytest.raises(UserError, match=r"forward gave \[1, 5\]"):
        fitting(nn.Linear(3, 5), SPACES)
    with pytest.raises(UserError, match="actions are Box: a Q-network gives a value for each of finitely many actions"):
        fitting(nn.Linear(3, 5), Spaces(Observations((3,)), Box((1,), (0.0,), (1.0,))))
    assert fitting(nn.Linear(3, 4), SPACES)


class Own(nn.Module):
    """A Q-network of somebody's own, for observations [N, 3] and 4 actions. mixed: what it makes of its features [N, 6]."""

    def __init__(self, mixed: Any) -> None:
        super().__init__()
        self.body, self.q = nn.Linear(3, 6), nn.Linear(6, 4)
        self.lstm = nn.LSTM(6, 6)
        self.kept = torch.zeros(6)
        self.mixed = mixed

    def forward(self, observation: Tensor) -> Tensor:
        return self.q(self.mixed(self, self.body(observation)))  # type: ignore[no-any-return]


def remembering(own: Own, x: Tensor) -> Tensor:
    own.kept = own.kept + x.mean(0).detach()
    return x + own.kept


@pytest.mark.parametrize(
    ("mixed", "says"),
    [
        (lambda own, x: own.lstm(x)[0], "3 equal observations gave different outputs, so they depend on each other"),
        (remembering, "two passes over the same observations differ; a network that remembers needs an attribute memory"),
        (lambda own, x: x * torch.nan, "forward gave NaN"),
        (lambda own, x: x * torch.inf, "forward gave (NaN|a value that is not finite)"),
    ],
)
def test_a_q_network_that_is_no_function_of_one_observation_is_refused(mixed: Any, says: str) -> None:
    with pytest.raises(UserError, match=f"^policy: {says}"):
        fitting(Own(mixed), SPACES)


def test_a_q_network_without_a_gradient_is_refused_and_one_that_draws_noise_is_not() -> None:
    silent = Own(lambda own, x: x).requires_grad_(False)
    silent.unused = nn.Linear(2, 2)
    with pytest.raises(UserError, match="do not depend on any trainable parameter"):
        fitting(silent, SPACES)
    noisy = Own(lambda own, x: x * (1 + torch.randn(len(x), 1)))
    before = torch.get_rng_state()
    assert fitting(noisy, SPACES) is noisy
    assert torch.equal(torch.get_rng_state(), before)


# Learning


def trajectory(made: DQNLearner, seed: int) -> Contribution:
    rng = np.random.default_rng(seed)
    bundle = Bundle.zeros(made.layout)
    bundle["observation"][...] = rng.normal(size=bundle["observation"].shape)
    bundle["action"][...] = rng.integers(0, 4, bundle["action"].shape)
    bundle["reward"][...] = rng.normal(size=bundle["reward"].shape)
    bundle["mask"][...] = rng.random(bundle["mask"].shape) < 0.9
    bundle["terminated"][...] = bundle["mask"] & (rng.random(bundle["mask"].shape) < 0.1)
    return Contribution(Task(seed, 0, (0,)), seed, 0, Work(bundle))


@pytest.mark.parametrize("ratio", [0.03, 0.25, 1.0, 1.7])
def test_gradient_steps_follow_environment_steps_exactly(ratio: float) -> None:
    made = learner(replay_ratio=ratio, learning_starts=50, batch_size=4)
    for seed in range(12):
        made.fold(trajectory(made, seed))
        moved = made.step()
        assert made.updates == int(Fraction(str(ratio)) * max(0, made.steps - 50))
        assert moved.weights is (moved.metrics["updates"] > 0 and len(moved.metrics) > 2)


@pytest.mark.parametrize("kind", ["uniform", "prioritized"])
def test_a_learner_with_max_reward_learns_as_from_rewards_that_were_cut(kind: str) -> None:
    digests = []
    for bound, cut in ((0.5, False), (0.0, True), (0.0, False)):
        made = learner(batch_size=8, learning_starts=0, n_step=2, replay=kind, max_reward=bound)
        for seed in range(3):
            told = trajectory(made, seed)
            assert told.work.bundle is not None
            if cut:
                told.work.bundle["reward"][...] = told.work.bundle["reward"].clip(-0.5, 0.5)
            made.fold(told)
            made.step()
        digests.append(made.weights().sha256())
    assert digests[0] == digests[1] != digests[2]


@pytest.mark.parametrize("kind", ["uniform", "prioritized"])
def test_a_run_goes_on_from_a_snapshot_on_disk_with_the_same_bits(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    """Twelve versions, against six, a snapshot, a new learner and six more: weights, moments, target network and replay."""
    monkeypatch.setattr(row_ring, "HELD", 2_000)
    options = {"replay": kind, "batch_size": 8, "learning_starts": 40, "replay_ratio": 0.3, "buffer_size": 150, "n_step": 3}
    options |= {"total_timesteps": 400, "target_update_interval": 5, "seed": 7}
    whole, first = learner(**options), learner(**options)
    first.settle(tmp_path / "clients")
    for seed in range(12):
        whole.fold(trajectory(whole, seed))
        whole.step()
    store = Store(tmp_path)
    for seed in range(6):
        first.fold(trajectory(first, seed))
        first.step()
        store.save(Snapshot(seed + 1, first.weights(), first.state()))
    second = learner(network=9, **options)
    second.settle(tmp_path / "clients")
    found = store.newest(lambda text: None)
    assert found is not None
    assert "replay/files" in found.state
    second.load(found.weights, found.state)
    for seed in range(6, 12):
        second.fold(trajectory(second, seed))
        second.step()
    assert second.weights().sha256() == whole.weights().sha256()
    ours, theirs = second.networks(), whole.networks()
    assert {name: array.tobytes() for name, array in ours.items()} == {name: array.tobytes() for name, array in theirs.items()}
    assert (second.updates, second.steps, second.owed) == (whole.updates, whole.steps, whole.owed)


def test_the_order_of_arrival_in_a_round_changes_no_bit() -> None:
    digests = set()
    for order in ((0, 1, 2), (2, 0, 1)):
        made = learner(batch_size=8, learning_starts=0)
        for k in order:
            told = trajectory(made, k)
            made.fold(replace(told, made_from=0, task=Task(0, k, (k,))))
        made.step()
        digests.add(made.weights().sha256())
    assert len(digests) == 1


def played(mode: str, made: DQNLearner, env: Any, versions: int, num_envs: int, epsilon: float = 0.3) -> DQNLearner:
    def make(number: int) -> Envs:
        return Envs(SyncVectorEnv([env] * number, autoreset_mode=AutoresetMode(mode)))

    worker = Rollout(make, NumpyQ(made_action(made), "tanh"), rollout_length=12, num_envs=num_envs, seed=5)
    for version in range(versions):
        task = Task(version, 0, (0,), words={"epsilon": epsilon})
        made.fold(Contribution(task, version, 0, worker.run(made.weights(), 0, task)))
        made.step()
    worker.close()
    return made


def made_action(made: DQNLearner) -> Discrete:
    return Discrete(int(made.q.module.q.out_features))  # type: ignore[union-attr,arg-type]


def known(env: Any, mode: str, num_envs: int, **options: Any) -> DQNLearner:
    spaces = Envs(SyncVectorEnv([env], autoreset_mode=AutoresetMode(mode))).spaces
    settings = {"gamma": 0.8, "lr": 0.05, "batch_size": 32, "replay_ratio": 0.25, "target_update_interval": 3} | options
    return DQNLearner(QNetwork(spaces, (), seed=2), layout=spaces.trajectory(12, num_envs), **settings)


@pytest.mark.parametrize("n_step", [1, 3])
@pytest.mark.parametrize("mode", MODES)
def test_the_first_action_of_an_episode_is_learned(mode: str, n_step: int) -> None:
    made = known(lambda: Gate(4), mode, 4, n_step=n_step, learning_starts=0)
    played(mode, made, lambda: Gate(4), versions=15, num_envs=4, epsilon=0.8)
    with torch.no_grad():
        assert int(made.q.module(torch.eye(3))[0].argmax()) == 2


@pytest.mark.parametrize("n_step", [1, 3])
@pytest.mark.parametrize("mode", MODES)
def test_the_value_of_every_action_is_that_of_the_endless_walk(mode: str, n_step: int) -> None:
    """Reward 1 for ever, cut off after five steps: 1 / (1 - gamma) = 5, only if the last step bootstraps from its own end."""
    made = known(Hall, mode, 2, n_step=n_step, learning_starts=0, tau=0.5, target_update_interval=2)
    played(mode, made, Hall, versions=70, num_envs=2, epsilon=0.5)
    with torch.no_grad():
        assert made.q.module(torch.eye(4)).flatten().tolist() == pytest.approx([5.0] * 8, abs=0.2)


class Last(gymnasium.Env[Any, Any]):
    """Two steps and a cut. What the second action leads to is seen only in the last observation, and only from there on is
    anything paid: in room 3, for ever."""

    observation_space = gymnasium.spaces.Discrete(4)
    action_space = gymnasium.spaces.Discrete(2)

    def reset(self, *, seed: int | None = None, options: Any = None) -> Any:
        super().reset(seed=seed)
        self.episodes = getattr(self, "episodes", 0) + 1  # some begin in the last rooms, so that these are learned too
        self.room, self.at = (0, 2, 3)[self.episodes % 3], 0
        return self.room, {}

    def step(self, action: Any) -> Any:
        self.at += 1
        paid = 1.0 if self.room == 3 else 0.0
        if self.room < 2:
            self.room = 1 if self.room == 0 else 2 + int(action)
        return self.room, paid, False, self.at == 2, {}


@pytest.mark.parametrize("mode", MODES)
def test_what_hangs_on_the_last_observation_before_a_cut_is_learned(mode: str) -> None:
    made = known(Last, mode, 4, learning_starts=0)
    played(mode, made, Last, versions=40, num_envs=4, epsilon=0.8)
    with torch.no_grad():
        q = made.q.module(torch.eye(4))
    assert q[1].tolist() == pytest.approx([0.0, 0.8 * 5.0], abs=0.6)
    assert q[3].tolist() == pytest.approx([5.0, 5.0], abs=0.6)


def test_actors_beliefs_are_the_first_priorities() -> None:
    """Horgan et al. 2018: |R + gamma^n max Q - Q| with the actor's values, where the trajectory holds them; else the
    largest."""
    spaces = Spaces(Observations((3,)), Discrete(4))
    layout = spaces.trajectory(6, 2, {"q": ("f4", ()), "best": ("f4", ())})
    rng = np.random.default_rng(0)
    bundle = Bundle.zeros(layout)
    for name in ("reward", "q", "best"):
        bundle[name][...] = rng.normal(size=(6, 2))
    bundle["mask"][...] = True
    bundle["terminated"][5, 0] = bundle["terminated"][2, 1] = True
    buffer = ReplayBuffer(layout, 100, n_step=2, gamma=0.5, reward_scale=2.0, prioritized=True, alpha=1.0)
    buffer.insert(bundle)
    assert buffer.priorities is not None
    found = buffer.priorities.tree.leaves[:12].reshape(6, 2)
    r, q, best = (bundle[name].astype(np.float64) for name in ("reward", "q", "best"))
    for t in range(6):
        for b in range(2):
            if bundle["terminated"][t, b]:
                wanted = abs(2 * r[t, b] - q[t, b])
            elif t < 5 and bundle["terminated"][t + 1, b]:
                wanted = abs(2 * (r[t, b] + 0.5 * r[t + 1, b]) - q[t, b])
            elif t < 4:
                wanted = abs(2 * (r[t, b] + 0.5 * r[t + 1, b]) + 0.25 * best[t + 2, b] - q[t, b])
            else:
                wanted = 1.0
            assert found[t, b] == pytest.approx(wanted, abs=1e-5), (t, b)
