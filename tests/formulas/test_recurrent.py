"""Policies with memory: the actor's twin, the learner's replay, and a task that needs them."""

from __future__ import annotations

from collections.abc import Mapping
from operator import itemgetter
from typing import Any, ClassVar

import gymnasium
import numpy as np
import pytest
import torch
from counting import Counting
from gymnasium.vector import AutoresetMode, SyncVectorEnv
from torch import Tensor, nn

from shoal.actors.workers.rollout import Rollout
from shoal.aggregators.a2c import A2CLearner
from shoal.aggregators.appo import APPOLearner
from shoal.aggregators.impala import IMPALALearner
from shoal.aggregators.ppo import PPOLearner
from shoal.envs.spaces import Box, Discrete, Named, Observations, Spaces
from shoal.envs.vector import Envs
from shoal.jobs.reinforcement import Reinforcement
from shoal.nets.acting import Form
from shoal.nets.fitting import fitting
from shoal.nets.flat import FlatModule
from shoal.nets.networks import REMEMBERING
from shoal.nets.numpy_policy import NumpyPolicy, RecurrentNumpyPolicy
from shoal.nets.policies import ActorCritic, TorchPolicy, every, log_prob
from shoal.nets.recurrent import RecurrentActorCritic, unrolled
from shoal.protocol.errors import UserError
from shoal.protocol.layout import Bundle
from shoal.protocol.work import Contribution, Task, Work

MODES = ["NextStep", "SameStep", "Disabled"]
SCRIPT = [(3, "c"), (2, "t"), (4, "c"), (1, "c"), (5, "b")]
DISCRETE = Spaces(Observations((2,)), Discrete(2))
CONTINUOUS = Spaces(Observations((2,)), Box((3,), (-1.0,) * 3, (1.0,) * 3))


def shaken(module: nn.Module, size: float = 0.3) -> Any:
    """Every parameter away from its start, so that no bias is 0 and actions differ."""
    generator = torch.Generator().manual_seed(4)
    with torch.no_grad():
        for p in module.parameters():
            p.add_(size * torch.randn(p.shape, generator=generator))
    return module


class Own(nn.Module):
    """A recurrent policy of a user's own."""

    def __init__(self, spaces: Spaces) -> None:
        super().__init__()
        torch.manual_seed(6)
        self.memory = {"seen": (5,)}
        self.core, self.out = nn.GRUCell(spaces.observation.size, 5), nn.Linear(5, 3)

    def forward(self, observation: Tensor, state: Mapping[str, Tensor]) -> Any:
        h = self.core(0.01 * observation, state["seen"])
        out = self.out(h)
        return out[:, :2], out[:, 2:], {"seen": h}


def made(core: str, spaces: Spaces = DISCRETE) -> Any:
    return shaken(Own(spaces) if core == "own" else RecurrentActorCritic(spaces, (6,), core=core, size=5, seed=3), 0.2)


def policy_of(core: str, spaces: Spaces = DISCRETE) -> Any:
    return TorchPolicy(Own(spaces), spaces.action) if core == "own" else RecurrentNumpyPolicy(spaces.action, core=core, size=5)


@pytest.mark.parametrize("core", ["lstm", "gru"])
@pytest.mark.parametrize("spaces", [DISCRETE, CONTINUOUS])
@pytest.mark.parametrize("hidden", [(), (6,), (6, 7)])
def test_the_numpy_twin_remembers_as_torch_does(core: str, spaces: Spaces, hidden: tuple[int, ...]) -> None:
    module = shaken(RecurrentActorCritic(spaces, hidden, core=core, size=5))
    twins = RecurrentNumpyPolicy(spaces.action, core=core, size=5), TorchPolicy(shaken(module, 0), spaces.action)
    rng = np.random.default_rng(1)
    states = [twin.begin(4) for twin in twins]
    assert twins[0].memory == twins[1].memory
    for twin in twins:
        twin.load(FlatModule(module).bundle())
    for _ in range(6):
        seen, first = rng.normal(size=(4, 2)).astype(np.float32), rng.random(4) < 0.3
        both = [twin.act(seen, first, state, None, {}) for twin, state in zip(twins, states, strict=True)]
        states = [dict(acted.state) for acted in both]
        np.testing.assert_allclose(*(acted.extras["numbers"] for acted in both), rtol=1e-4, atol=1e-5)
        for name in twins[0].memory:
            np.testing.assert_allclose(states[0][name], states[1][name], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("named", [False, True])
def test_pictures_go_through_convolutions_before_they_are_remembered(named: bool) -> None:
    picture = Observations((7, 7, 3), "u1")
    seen = Named(((("picture",), picture), (("place",), Observations((2,))))) if named else picture
    spaces, form = Spaces(seen, Discrete(3)), Form((6,), memory="gru", memory_size=5)
    module = REMEMBERING.build(spaces, form, 3)
    assert isinstance(module, RecurrentActorCritic)
    assert module.body is not None
    assert fitting(module, spaces, remembers=True)
    rng = np.random.default_rng(1)
    pictures = rng.integers(0, 10, (4, 2, 7, 7, 3), dtype=np.uint8)
    places = rng.normal(size=(4, 2, 2)).astype(np.float32)
    rows: Any = torch.from_numpy(pictures)
    if named:
        rows = {"picture": rows, "place": torch.from_numpy(places)}
    first = torch.tensor([[True, True], [False, True], [False, False], [True, False]])
    with torch.no_grad():
        its = unrolled(module, rows, {"h": torch.zeros(2, 5)}, first)
        state: Any = {"h": torch.zeros(2, 5)}
        for t in range(4):
            state = {"h": state["h"].masked_fill(first[t][:, None], 0.0)}
            logits, value, state = module(every(rows, itemgetter(t)), state)
            assert isinstance(its.parameters, Tensor)
            torch.testing.assert_close(its.parameters.view(4, 2, 3)[t], logits)
            torch.testing.assert_close(its.value[t], value)
    assert isinstance(REMEMBERING.policy(spaces, form, None), TorchPolicy)
    flattened = REMEMBERING.policy(spaces, Form((6,), memory="gru", memory_size=5, pictures="mlp"), None)
    assert isinstance(flattened, RecurrentNumpyPolicy)


def test_the_twin_takes_large_numbers_without_a_warning() -> None:
    policy = RecurrentNumpyPolicy(DISCRETE.action, core="lstm", size=5)
    policy.load(FlatModule(shaken(RecurrentActorCritic(DISCRETE, (), core="lstm", size=5), 9.0)).bundle())
    acted = policy.act(np.full((3, 2), 1e6, np.float32), np.ones(3, bool), policy.begin(3), None, {})
    assert all(np.isfinite(array).all() for array in acted.state.values())


def by_hand(module: Any, observation_T: Tensor, first_T: Any, state: Mapping[str, Tensor]) -> list[tuple[Any, ...]]:
    """(logits, value, state) of each row of one environment, one row at a time, in float64."""
    rows = []
    for seen, first in zip(observation_T, first_T, strict=True):
        before = {name: torch.zeros_like(each) if first else each for name, each in state.items()}
        logits, value, state = module(seen[None], before)
        rows.append((logits[0], value.reshape(()), state))
    return rows


def rollouts(core: str, mode: str, many: int, T: int = 7) -> list[Work]:
    """Rollouts, one after the other, of two environments whose episodes end in every way."""

    def make(number: int) -> Envs:
        scripts = [SCRIPT, SCRIPT[1:]]
        return Envs(SyncVectorEnv([lambda s=s: Counting(s) for s in scripts], autoreset_mode=AutoresetMode(mode)))

    worker = Rollout(make, policy_of(core), T, 2, seed=1)
    weights = FlatModule(made(core)).bundle()
    works = [worker.run(weights, 0, Task(0, 0, (0,))) for _ in range(many)]
    worker.close()
    return works


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("core", ["lstm", "gru", "own"])
def test_a_replay_is_the_forward_pass_unrolled_by_hand(core: str, mode: str) -> None:
    module = made(core).double()
    for work in rollouts(core, mode, 3):
        assert work.bundle is not None
        got = {name: torch.from_numpy(array.copy()) for name, array in work.bundle.items()}
        seen, state = got["observation"].double(), {n: got[f"state/{n}"].double() for n in module.memory}
        with torch.no_grad():
            its = unrolled(module, seen, state, got["first"])
            for b in range(2):
                rows = by_hand(module, seen[:, b], got["first"][:, b], {n: s[b : b + 1] for n, s in state.items()})
                logits = torch.stack([row[0] for row in rows])
                assert isinstance(its.parameters, Tensor)
                torch.testing.assert_close(its.parameters.view(8, 2, -1)[:, b], logits, rtol=0, atol=1e-9)
                torch.testing.assert_close(its.value[:, b], torch.stack([row[1] for row in rows]), rtol=0, atol=1e-9)
                acted = log_prob(logits[:-1], got["action"][:, b])
                torch.testing.assert_close(acted.float(), got["log_prob"][:, b], rtol=0, atol=2e-6)


@pytest.mark.parametrize("mode", ["SameStep", "Disabled"])
def test_a_cut_off_episode_is_valued_from_the_state_before_the_reset(mode: str) -> None:
    """Where no row holds an episode's last observation, its value follows from the state of its own last row."""
    module = made("lstm")
    learner = IMPALALearner(module, gamma=0.9)
    [_, work] = rollouts("lstm", mode, 2)
    learner.fold(Contribution(Task(0, 0, (0,)), 0, 0, work))
    batch = learner.staging.batch()
    reward_TB, discount_TB = learner.rewards(batch, learner.outputs(batch).after)
    assert work.bundle is not None
    assert batch.first is not None
    cut = work.bundle["truncated"] & ~work.bundle["terminated"]
    assert cut.sum() == len(batch.cut) > 1
    with torch.no_grad():
        for b in range(2):
            state = {name: each[b : b + 1] for name, each in batch.state.items()}
            rows = by_hand(module, batch.observation[:, b], batch.first[:, b], state)
            for t in np.flatnonzero(cut[:, b]):
                final = torch.from_numpy(work.bundle["final"][t, b][None].copy())
                value = float(module(final, rows[t][2])[1])
                assert float(reward_TB[t, b]) == pytest.approx(float(batch.reward[t, b]) + 0.9 * value, rel=1e-5)
                assert discount_TB[t, b] == 0
                zeros = {name: torch.zeros_like(each) for name, each in state.items()}
                assert value != pytest.approx(float(module(final, zeros)[1]), rel=1e-3)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("core", ["lstm", "gru", "own"])
def test_every_ratio_is_1_where_nothing_is_stale(core: str, mode: str) -> None:
    ppo = PPOLearner(made(core), update_epochs=1, num_minibatches=1, lr=1e-9)
    impala = IMPALALearner(made(core))
    for version, work in enumerate(rollouts(core, mode, 2)):
        for learner in (ppo, impala):
            learner.load(FlatModule(made(core)).bundle(), {"counters": np.zeros(2, np.int64)})
            learner.fold(Contribution(Task(version, 0, (0,)), version, 0, work))
        assert ppo.step().metrics["first_ratio_error"] < 1e-5
        assert impala.step().metrics["rho_mean"] == pytest.approx(1, abs=1e-6)


@pytest.mark.parametrize("mode", MODES)
def test_the_target_network_of_appo_remembers_too(mode: str) -> None:
    learner = APPOLearner(made("gru"), update_epochs=1, num_minibatches=2, lr=1e-9)
    for version, work in enumerate(rollouts("gru", mode, 2)):
        learner.fold(Contribution(Task(version, 0, (0,)), version, 0, work))
        metrics = learner.step().metrics
        assert metrics["rho_mean"] == pytest.approx(1, abs=1e-6)
        assert abs(metrics["approx_kl"]) < 1e-6


def test_a2c_with_memory_makes_the_step_of_impala_where_nothing_is_stale() -> None:
    """With lambda 1 and every ratio 1, V-trace is the n-step return."""
    [work] = rollouts("lstm", "SameStep", 1)
    found = []
    for kind, more in ((A2CLearner, {"gae_lambda": 1.0}), (IMPALALearner, {})):
        learner: Any = kind(made("lstm"), gamma=0.9, optimizer="adam", lr=0.01, **more)
        learner.fold(Contribution(Task(0, 0, (0,)), 0, 0, work))
        learner.step()
        found.append(learner.weights().vector())
    np.testing.assert_allclose(*found, rtol=1e-3, atol=2e-4)


@pytest.mark.parametrize("parts", [1, 2, 3, 50])
def test_minibatches_are_of_whole_environments_and_each_row_comes_once_an_epoch(parts: int) -> None:
    learner = PPOLearner(made("gru"), update_epochs=2, num_minibatches=parts)
    for client, work in enumerate(rollouts("gru", "NextStep", 2)):
        learner.fold(Contribution(Task(0, client, (client,)), 0, 0, work))
    batch = learner.staging.batch()
    found = [rows for rows, *_ in learner._minibatches(batch)]
    each = min(parts, 4)
    assert len(found) == 2 * each
    for epoch in (found[:each], found[each:]):
        assert torch.equal(torch.cat(epoch).sort().values, batch.rows)
        columns = [set((rows % 4).tolist()) for rows in epoch]
        assert sum(map(len, columns)) == 4


class Recall(gymnasium.Env[Any, Any]):
    """The first observation shows which action the last step pays; the observations between show nothing."""

    observation_space = gymnasium.spaces.Box(-1, 1, (2,), np.float32)
    action_space = gymnasium.spaces.Discrete(2)

    def reset(self, *, seed: int | None = None, options: Any = None) -> Any:
        super().reset(seed=seed)
        self.wanted, self.at = int(self.np_random.integers(2)), 0
        return np.array([2 * self.wanted - 1, 0], np.float32), {}

    def step(self, action: Any) -> Any:
        self.at += 1
        over = self.at == 4
        return np.array([0, self.at == 3], np.float32), float(over and action == self.wanted), over, False, {}


def recalled(learner: Any, policy: Any, versions: int) -> float:
    """The mean return of the last fifth of `versions` rollouts in Recall."""

    def make(number: int) -> Envs:
        return Envs(SyncVectorEnv([Recall] * number))

    worker = Rollout(make, policy, 20, 16, seed=5)
    returns: list[float] = []
    for version in range(versions):
        work = worker.run(learner.weights(), 0, Task(version, 0, (0,)))
        learner.fold(Contribution(Task(version, 0, (0,)), version, 0, work))
        learner.step()
        if version >= 0.8 * versions:
            returns += work.samples["return"]
    worker.close()
    return float(np.mean(returns))


RECALL = Spaces(Observations((2,)), Discrete(2))


LEARNERS = [(PPOLearner, "lstm", 40), (PPOLearner, "gru", 40), (IMPALALearner, "gru", 200), (APPOLearner, "gru", 120)]


@pytest.mark.parametrize(("kind", "core", "versions"), LEARNERS)
def test_what_must_be_remembered_is_learned_with_memory(kind: Any, core: str, versions: int) -> None:
    learner = kind(RecurrentActorCritic(RECALL, (16,), core=core, size=16, seed=1), lr=0.01)
    assert recalled(learner, RecurrentNumpyPolicy(RECALL.action, core=core, size=16), versions) > 0.9


def test_and_is_not_learned_without() -> None:
    assert recalled(PPOLearner(ActorCritic(RECALL, (16,), seed=1), lr=0.01), NumpyPolicy(RECALL.action), 40) < 0.6


class Unsound(nn.Module):
    """A policy of which one part is wrong."""

    memory: ClassVar[Any] = {"h": (5,)}

    def __init__(self, spaces: Spaces, out: Any = None, memory: Any = None) -> None:
        super().__init__()
        self.body, self.out = nn.Linear(2, 5), out
        if memory is not None:
            self.memory = memory  # type: ignore[misc]

    def forward(self, observation: Tensor, state: Any) -> Any:
        h = self.body(observation)
        return self.out(h) if self.out else (h[:, :2], h[:, 2], {"h": h + state["h"]})


@pytest.mark.parametrize(
    ("out", "memory", "said"),
    [
        (lambda h: (h[:, :2], h[:, 2]), None, r"gave \(\[1, 2\], \[1\]\); expected \(action parameters, value, state\)"),
        (
            lambda h: (h[:, :2], h[:, 2], {"h": h[:, :4]}),
            None,
            r"gave the state \{h \[1, 4\]\}; expected h \[1, 5\], as memory says",
        ),
        (lambda h: (h[:, :2], h[:, 2], {"c": h}), None, r"gave the state \{c \[1, 5\]\}"),
        (None, {"h": 5}, r"memory=\{'h': 5\}: expected name -> shape of one environment's state"),
        (None, 5, "memory=5: expected name -> shape"),
        (None, {"h": (0,)}, "expected name -> shape"),
    ],
)
def test_a_memory_of_another_form_is_refused_in_one_line(out: Any, memory: Any, said: str) -> None:
    with pytest.raises(UserError, match=f"^policy: .*{said}") as told:
        fitting(Unsound(DISCRETE, out, memory), DISCRETE, remembers=True)
    assert "\n" not in str(told.value)


def test_a_module_with_memory_is_refused_by_a_method_without() -> None:
    assert fitting(Unsound(DISCRETE), DISCRETE, remembers=True)
    with pytest.raises(UserError, match=r"policy: Unsound has memory \(h\), and the job's method learns without"):
        fitting(Unsound(DISCRETE), DISCRETE)


def test_a_recurrent_module_without_memory_is_not_run_over_environments_as_if_they_were_time() -> None:
    class Over(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.core, self.out = nn.LSTM(2, 4), nn.Linear(4, 3)

        def forward(self, observation: Tensor) -> Any:
            out = self.out(self.core(observation)[0])
            return out[:, :2], out[:, 2]

    with pytest.raises(UserError, match=r"3 equal observations gave different outputs.*needs an attribute memory"):
        fitting(shaken(Over()), DISCRETE)


def test_settings_of_memory_that_cannot_work_are_refused() -> None:
    job = Reinforcement("CartPole-v1", method="ppo", memory="gru", memory_size=7)
    assert job.problem.first(0)[0]["core.weight_hh"].shape == (21, 7)
    names = {place.name for place in job.layouts(job.problem.first(0)[0].layout)[0].places}
    assert {"first", "state/h"} <= names
    for more, said in (
        ({"memory": "rnn"}, "memory"),
        ({"memory_size": 9}, "memory_size=9"),
        ({"memory": "lstm", "memory_size": 0}, "memory_size=0"),
    ):
        with pytest.raises(UserError, match=said):
            Reinforcement("CartPole-v1", method="ppo", **more)  # type: ignore[arg-type]
    with pytest.raises(UserError, match="memory=lstm: it is for the built-in policy"):
        Reinforcement("CartPole-v1", Own, method="ppo", memory="lstm")


def test_nothing_of_a_memory_is_kept_of_the_weights() -> None:
    policy = RecurrentNumpyPolicy(DISCRETE.action, core="gru", size=5)
    weights = FlatModule(made("gru")).bundle()
    lent = Bundle.of_buffer(weights.layout, memory := bytearray(weights.data.tobytes()))
    policy.load(lent)
    policy.act(np.zeros((2, 2), np.float32), np.ones(2, bool), policy.begin(2), None, {})
    policy.forget()
    del lent
    memory.append(0)  # a BufferError as long as there is a view of it
