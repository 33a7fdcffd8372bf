"""Kinds of actions and observations: what a policy's numbers mean, what an environment is given, what a trajectory holds."""

from __future__ import annotations

import math
from typing import Any

import gymnasium
import numpy as np
import pytest
import torch
from gymnasium import spaces as gym
from gymnasium.spaces.utils import flatten, flatten_space
from torch import nn
from torch.distributions import Bernoulli, Categorical, Independent

from shoal.envs.spaces import Categories, MultiBinary, MultiDiscrete, Named, Observations, Spaces, apart, spaces_of
from shoal.envs.vector import Envs, alone
from shoal.nets import distributions, policies
from shoal.nets.continuous import Bounds
from shoal.nets.fitting import fitting
from shoal.nets.flat import FlatModule
from shoal.nets.numpy_policy import NumpyPolicy
from shoal.nets.policies import ActorCritic, TorchPolicy
from shoal.protocol.errors import UserError

SEEN = gym.Box(-1, 1, (3,), np.float32)
SEVERAL = MultiDiscrete((3, 2, 4), (0, 0, 0), (3,))
BITS = MultiBinary((2, 2))
ACTIONS: dict[str, gymnasium.Space[Any]] = {
    "discrete": gym.Discrete(4),
    "discrete-start": gym.Discrete(3, start=-5),
    "multi-discrete": gym.MultiDiscrete([3, 2, 4]),
    "multi-discrete-start": gym.MultiDiscrete([[3, 2], [5, 2]], start=[[1, -1], [7, 0]]),
    "multi-binary": gym.MultiBinary(5),
    "multi-binary-2": gym.MultiBinary([2, 3]),
    "box": gym.Box(-2, 3, (2, 2), np.float64),
    "whole-box": gym.Box(np.array([-1, 5]), np.array([2, 9]), dtype=np.int32),
    "byte-box": gym.Box(0, 7, (2, 2), np.uint8),
}


@pytest.mark.parametrize("name", ACTIONS)
def test_each_action_that_is_drawn_lies_in_the_environments_space(name: str) -> None:
    space = ACTIONS[name]
    action, rng = spaces_of(SEEN, space).action, np.random.default_rng(3)
    numbers = rng.standard_normal((40, 6, action.parameters), dtype=np.float32)
    noise = action.noise(rng, 40, 6)
    found: list[Any] = []
    for row, drawn in zip(numbers, noise, strict=True):
        taken = action.act(row, drawn)
        assert taken.shape == (6, *action.layout()[1])
        found += list(action.decoded(taken))
    for given in found:
        assert space.contains(given if space.shape else np.int64(given)), given
    if not isinstance(space, gym.Box) or np.issubdtype(space.dtype, np.integer):
        assert len({np.asarray(given).tobytes() for given in found}) > 2


def test_every_value_of_a_whole_box_and_of_a_start_can_be_drawn() -> None:
    for name in ("whole-box", "multi-discrete-start"):
        action, space = spaces_of(SEEN, ACTIONS[name]).action, ACTIONS[name]
        assert isinstance(action, MultiDiscrete)
        rng = np.random.default_rng(0)
        drawn = action.decoded(action.act(np.zeros((2000, action.size), np.float32), action.noise(rng, 1, 2000)[0]))
        lowest = space.low if isinstance(space, gym.Box) else space.start  # type: ignore[attr-defined]
        highest = space.high if isinstance(space, gym.Box) else space.start + space.nvec - 1  # type: ignore[attr-defined]
        assert (drawn.min(0) == lowest).all()
        assert (drawn.max(0) == highest).all()


def _known(action: Any, logits: torch.Tensor) -> list[Any]:
    if isinstance(action, MultiBinary):
        return [Independent(Bernoulli(logits=logits), 1)]
    return [Categorical(logits=part) for part in logits.split(action.nvec, -1)]


@pytest.mark.parametrize("action", [SEVERAL, BITS])
def test_log_probs_and_entropies_of_parts_add_up_in_numpy_and_in_torch(action: Any) -> None:
    rng = np.random.default_rng(1)
    numbers = 3 * rng.standard_normal((50, action.parameters), dtype=np.float32)
    taken, logits = action.act(numbers, action.noise(rng, 1, 50)[0]), torch.from_numpy(numbers)
    known = _known(action, logits)
    if isinstance(action, MultiBinary):
        wanted = known[0].log_prob(torch.from_numpy(taken).float())
    else:
        wanted = sum(each.log_prob(torch.from_numpy(taken[:, i])) for i, each in enumerate(known))
    meant = distributions.meant(logits, action)
    np.testing.assert_allclose(action.log_prob(numbers, taken), wanted, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(policies.log_prob(meant, torch.from_numpy(taken)), wanted)
    torch.testing.assert_close(policies.entropy(meant), sum(each.entropy() for each in known))
    assert action.log_prob(numbers, taken).dtype == np.float32


@pytest.mark.parametrize("action", [SEVERAL, BITS])
def test_draws_of_each_part_are_as_frequent_as_their_probability(action: Any) -> None:
    rng, n = np.random.default_rng(5), 100_000
    numbers = rng.standard_normal(action.parameters, dtype=np.float32)
    taken = action.act(np.broadcast_to(numbers, (n, action.parameters)), action.noise(rng, 1, n)[0])
    if isinstance(action, MultiBinary):
        expected = [np.array([1 - p, p]) for p in 1 / (1 + np.exp(-numbers.astype(np.float64)))]
    else:
        parts = [part.astype(np.float64) for part in action.parts(numbers)]
        expected = [np.exp(part) / np.exp(part).sum() for part in parts]
    for i, p in enumerate(expected):
        counts = np.bincount(taken[:, i].astype(int), minlength=len(p))
        assert (abs(counts - n * p) < 4.5 * np.sqrt(n * p * (1 - p))).all()


def test_bits_and_parts_are_greedy_each_for_itself() -> None:
    assert BITS.act(np.array([[2, -1, 0.5, -0.1]], np.float32), None).tolist() == [[True, False, True, False]]
    assert SEVERAL.act(np.array([[0, 2, 1, 5, 4, 0, 0, 9, 0]], np.float32), None).tolist() == [[1, 0, 2]]


def test_unlikely_bits_have_a_finite_log_prob() -> None:
    assert BITS.log_prob(np.array([[200.0, 0, -200, 0]], np.float32), np.array([[False, True, True, False]]))[0] < -400
    meant = distributions.meant(torch.tensor([[300.0, 0, -300, 0]]), BITS)
    assert torch.isfinite(policies.entropy(meant)).all()


NESTED = gym.Dict(
    {
        "camera": gym.Box(0, 255, (4, 4, 3), np.uint8),
        "body": gym.Tuple([gym.Box(-1, 1, (2,), np.float64), gym.Dict({"gear": gym.Discrete(5, start=1)})]),
        "keys": gym.MultiBinary(3),
        "state": gym.MultiDiscrete([2, 3], start=[1, 0]),
        "word": gym.Text(5),
    }
)


def test_a_nested_observation_is_named_arrays_and_its_text_is_left_out() -> None:
    found = spaces_of(NESTED, gym.Discrete(2))
    assert found.arrays == {
        "observation/body/0": ("f4", (2,)),
        "observation/body/1/gear": ("f4", (5,)),
        "observation/camera": ("u1", (4, 4, 3)),
        "observation/keys": ("f4", (3,)),
        "observation/state": ("f4", (5,)),
    }
    assert isinstance(found.observation, Named)
    assert found.observation.left_out == ("word",)
    layout = found.trajectory(7, 2)
    assert layout.by_name["observation/camera"].shape == (8, 2, 4, 4, 3)
    assert "observation" not in layout.by_name


def test_parts_are_encoded_as_gymnasium_flattens_them() -> None:
    numbers = gym.Dict({name: part for name, part in NESTED.items() if name != "word"})
    numbers.seed(3)
    found = spaces_of(numbers, gym.Discrete(2))
    for _ in range(20):
        given = numbers.sample()
        seen = found.encoded(alone(given), {}, 1)
        assert seen.dtype == found.record()[0]
        flat = np.concatenate([seen[name].reshape(-1).astype(np.float64) for name in found.arrays])
        np.testing.assert_allclose(flat, flatten(numbers, given), rtol=1e-6)
        assert len(flat) == flatten_space(numbers).shape[0]


def test_an_observation_of_a_million_categories_takes_the_memory_of_one_row_for_each() -> None:
    many = 10**6
    found = Observations((many,), categories=many, start=5).encoded(np.array([5, many + 4]))
    assert found.shape == (2, many)
    assert np.argwhere(found).tolist() == [[0, 0], [1, many - 1]]


def test_a_whole_number_outside_its_space_is_told() -> None:
    kind = Categories((2, 3), (1, 0))
    assert kind.encoded(np.array([[2, 0]])).tolist() == [[0, 1, 1, 0, 0]]
    with pytest.raises(UserError, match=r"has 3 in place 1, outside its space: expected 0 to 2"):
        kind.encoded(np.array([[1, 3]]))


@pytest.mark.parametrize(
    ("seen", "acts", "says"),
    [
        (gym.Graph(SEEN, None), gym.Discrete(2), r"observation space Graph.* is not supported \(Box, Discrete"),
        (
            gym.Dict({"a": gym.Sequence(SEEN)}),
            gym.Discrete(2),
            r"part 'a' of the observation space Sequence.* is not supported",
        ),
        (gym.Dict({"a": gym.Text(3)}), gym.Discrete(2), "has no part but text"),
        (gym.Dict({"a/b": SEEN, "a": gym.Dict({"b": SEEN})}), gym.Discrete(2), "names, joined by /, must differ"),
        (SEEN, gym.Tuple([gym.Discrete(2)]), r"action space Tuple.* is not supported \(Discrete, MultiDiscrete"),
        (SEEN, gym.Box(-1, 1, (0,), np.float32), r"action space Box\(.*\) holds nothing: expected at least one number"),
        (SEEN, gym.Box(0, 2**20, (1,), np.int64), r"1,048,577 values of whole numbers, and at most 4,096"),
        (gym.Dict({"a": SEEN, "action_mask": gym.MultiBinary(3)}), gym.Discrete(2), r"action_mask has 3 entries: expected 2"),
    ],
)
def test_spaces_that_cannot_be_are_refused_in_one_line(seen: Any, acts: Any, says: str) -> None:
    with pytest.raises(UserError, match=says) as wrong:
        spaces_of(seen, acts)
    assert "\n" not in str(wrong.value)


def test_plain_spaces_have_the_layout_that_they_had() -> None:
    found = spaces_of(SEEN, gym.Discrete(2), finals=True)
    rows = {"log_prob": ("f4", ())}
    assert [place.name for place in found.trajectory(2, 3, rows).places] == [
        *("observation", "log_prob", "reward", "final"),
        "action",
        *("terminated", "truncated", "mask"),
    ]
    assert found.plain
    assert found.record() == (np.dtype("<f4"), (3,))


@pytest.mark.parametrize("action", [SEVERAL, BITS])
@pytest.mark.parametrize(
    "seen", [Observations((5,)), Named(((("a",), Observations((2, 3), "u1")), (("b", 0), Observations((4,)))))]
)
def test_the_numpy_twin_equals_torch_on_several_parts(action: Any, seen: Any) -> None:
    spaces = Spaces(seen, action)
    module = ActorCritic(spaces, (8,))
    with torch.no_grad():
        for p in module.parameters():
            p.add_(0.3 * torch.randn(p.shape, generator=torch.Generator().manual_seed(p.numel())))
    rng = np.random.default_rng(0)
    obs: Any = np.zeros(7, spaces.record()[0]) if not spaces.plain else rng.standard_normal((7, 5), dtype=np.float32)
    if not spaces.plain:
        obs["observation/a"] = rng.integers(0, 256, (7, 2, 3))
        obs["observation/b/0"] = rng.standard_normal((7, 4))
    twin, slow = NumpyPolicy(action), TorchPolicy(ActorCritic(spaces, (8,)), action)
    for policy in (twin, slow):
        policy.load(FlatModule(module).bundle())
    np.testing.assert_allclose(twin.parameters(obs), slow.parameters(obs), rtol=1e-5, atol=1e-5)


class Parts(nn.Module):
    """A user's policy that reads a dict of tensors."""

    def __init__(self, spaces: Spaces) -> None:
        super().__init__()
        assert isinstance(spaces.observation, Named)
        self.names = sorted(spaces.observation.named)
        self.head = nn.Linear(spaces.observation.size, spaces.action.size + 1)

    def forward(self, seen: dict[str, torch.Tensor]) -> Any:
        out = self.head(torch.cat([seen[name].flatten(1).float() for name in self.names], dim=1))
        return out[:, :-1], out[:, -1]


def test_a_users_module_gets_a_dict_of_tensors_by_the_parts_names() -> None:
    spaces = spaces_of(NESTED, gym.MultiDiscrete([2, 3]))
    module = fitting(Parts(spaces), spaces)
    assert module.names == ["body/0", "body/1/gear", "camera", "keys", "state"]  # type: ignore[comparison-overlap]
    parameters, value = policies.judged(module, _zeros(spaces, 4))
    assert isinstance(parameters, distributions.Choices)
    assert parameters.nvec == (2, 3)
    assert value.shape == (4,)


def _zeros(spaces: Spaces, n: int) -> Any:
    kinds = {"f4": torch.float32, "u1": torch.uint8, "b1": torch.bool}
    return {name: torch.zeros((n, *shape), dtype=kinds[dtype]) for name, (dtype, shape) in spaces.arrays.items()}


def test_outputs_of_another_width_are_refused_for_several_parts() -> None:
    class Wrong(Parts):
        def forward(self, seen: dict[str, torch.Tensor]) -> Any:
            out, value = super().forward(seen)
            return out[:, :-1], value

    spaces = spaces_of(NESTED, gym.MultiDiscrete([2, 3]))
    with pytest.raises(UserError, match=r"gave \(\[1, 4\], \[1\]\) for 1 observations; expected \(logits \[1, 5\]"):
        fitting(Wrong(spaces), spaces)

    class Raises(Parts):
        def forward(self, seen: dict[str, torch.Tensor]) -> Any:
            return self.head(seen["camera"])

    with pytest.raises(UserError, match=r"raised RuntimeError for observations \{'body/0': \[1, 2\] of float32, "):
        fitting(Raises(spaces), spaces)


def test_apart_tells_an_observation_from_its_mask() -> None:
    plain = torch.zeros(())
    assert apart(plain) == (plain, None)
    seen = np.zeros(2, [("observation", "f4", (3,)), ("action_mask", "?", (4,))])
    inner, mask = apart(seen)
    assert inner.shape == (2, 3)
    assert mask.shape == (2, 4)
    inner, mask = apart({"observation/a": 1, "observation/b/c": 2, "action_mask": 3})
    assert inner == {"a": 1, "b/c": 2}
    assert mask == 3


def test_entropies_of_even_parts_are_those_of_dice() -> None:
    even = distributions.meant(torch.zeros(1, 9), SEVERAL)
    assert policies.entropy(even).item() == pytest.approx(math.log(3) + math.log(2) + math.log(4))
    assert policies.entropy(distributions.meant(torch.zeros(1, 4), BITS)).item() == pytest.approx(4 * math.log(2))


def test_envs_takes_a_vector_of_dicts() -> None:
    class Two(gymnasium.Env[Any, Any]):
        observation_space = gym.Dict({"a": SEEN, "b": gym.Discrete(3)})
        action_space = gym.MultiBinary(2)

        def reset(self, *, seed: int | None = None, options: Any = None) -> Any:
            self.at = 0
            return self._seen(), {}

        def _seen(self) -> Any:
            return {"a": np.full(3, self.at / 10, np.float32), "b": self.at % 3}

        def step(self, action: Any) -> Any:
            assert action.dtype == np.int8
            self.at += 1
            return self._seen(), 1.0, False, self.at == 4, {}

    for mode in gymnasium.vector.AutoresetMode:
        envs = Envs(gymnasium.vector.SyncVectorEnv([Two, Two], autoreset_mode=mode))
        step = envs.reset(0)
        for _ in range(3):
            step = envs.step(np.zeros((2, 2), bool))
        np.testing.assert_allclose(step.observation["observation/a"], 0.3, rtol=1e-6)
        step = envs.step(np.ones((2, 2), bool))
        assert step.truncated.all()
        last = step.observation if step.final is None else step.final
        np.testing.assert_allclose(last["observation/a"], 0.4, rtol=1e-6)
        assert (last["observation/b"].argmax(1) == 1).all()
        if step.final is not None:
            assert (step.observation["observation/a"] == 0).all()


def test_the_wrapper_that_a_refusal_of_endless_actions_names_gives_bounds() -> None:
    class Endless(gymnasium.Env[Any, Any]):
        observation_space, action_space = SEEN, gym.Box(-np.inf, np.inf, (2,), np.float32)

    with pytest.raises(UserError, match=r"finite bounds are needed; gymnasium.wrappers.TransformAction gives it others"):
        Bounds.of(spaces_of(SEEN, Endless.action_space), "sac")
    bounded = gymnasium.wrappers.TransformAction(Endless(), lambda action: action, gym.Box(-1, 1, (2,), np.float32))
    assert Bounds.of(spaces_of(SEEN, bounded.action_space), "sac").half.tolist() == [1.0, 1.0]
