"""One convention over gymnasium's three ways of resetting; environments by id and by factory."""

from __future__ import annotations

import itertools
import math
from functools import partial
from typing import Any, ClassVar

import gymnasium
import numpy as np
import pytest
from counting import Counting, counting, definition
from gymnasium import spaces
from gymnasium.envs.registration import register
from gymnasium.vector import AutoresetMode, SyncVectorEnv

from shoal.envs.making import make_vector, spaces_in
from shoal.envs.spaces import Box, Discrete, Observations, spaces_of
from shoal.envs.vector import EnvError, Envs, Step
from shoal.jobs.reinforcement import Reinforcement
from shoal.protocol.errors import UserError
from shoal.protocol.place import place_of

MODES = ["NextStep", "SameStep", "Disabled"]
SCRIPTS = [
    [(3, "t"), (2, "c"), (1, "b"), (4, "c")],
    [(1, "c"), (1, "c"), (1, "t"), (2, "b")],
    [(5, "t")],
    [(1, "t"), (2, "c")],
]


def rows_of(envs: Envs, count: int) -> list[list[tuple[Any, ...]]]:
    """[row][environment]: what a rollout would write down, with what the policy acted on."""
    step, rows = envs.reset(7), []
    for _ in range(count):
        observation, mask = step.observation.copy(), step.mask.copy()
        step = envs.step(np.zeros(envs.num_envs, np.int64))
        rows.append(
            [
                (
                    tuple(observation[b]),
                    tuple(step.final[b]) if step.final is not None and step.truncated[b] else None,
                    step.reward[b],
                    step.terminated[b],
                    step.truncated[b],
                    mask[b],
                    step.lived[b],
                )
                for b in range(envs.num_envs)
            ]
        )
    return rows


@pytest.mark.parametrize("copy", [True, False])
@pytest.mark.parametrize("mode", MODES)
def test_every_row_is_what_the_definition_says(mode: str, copy: bool) -> None:
    rows = rows_of(counting(SCRIPTS, mode, copy), 40)
    for b, script in enumerate(SCRIPTS):
        for t, row in enumerate(itertools.islice(definition(script, mode), 40)):
            assert rows[t][b] == (row.observation, row.final, row.reward, row.terminated, row.truncated, row.mask, row.lived)


def test_next_step_spends_a_row_on_resetting_and_masks_it() -> None:
    rows = [row[0][:1] + row[0][2:6] for row in rows_of(counting([[(2, "t"), (1, "c")]], "NextStep"), 5)]
    assert rows == [
        ((0, 0), 1, False, False, True),
        ((0, 1), 2, True, False, True),
        ((0, 2), 0, False, False, False),  # only resets
        ((1, 0), 1001, False, True, True),
        ((1, 1), 0, False, False, False),  # there for its value
    ]


@pytest.mark.parametrize("mode", ["SameStep", "Disabled"])
def test_same_step_masks_no_row_and_tells_the_end_of_what_was_cut_beside_it(mode: str) -> None:
    rows = [row[0][:6] for row in rows_of(counting([[(2, "t"), (1, "c"), (2, "t")]], mode), 5)]
    assert rows == [
        ((0, 0), None, 1, False, False, True),
        ((0, 1), None, 2, True, False, True),
        ((1, 0), (1, 1), 1001, False, True, True),
        ((2, 0), None, 2001, False, False, True),
        ((2, 1), None, 2002, True, False, True),
    ]


@pytest.mark.parametrize("mode", MODES)
def test_reset_forgets_what_was_under_way(mode: str) -> None:
    envs = counting(SCRIPTS, mode)
    before = rows_of(envs, 6)
    assert rows_of(envs, 6) == before


@pytest.mark.parametrize("mode", MODES)
def test_the_end_of_a_truncated_episode_follows_its_last_row_or_is_beside_it(mode: str) -> None:
    envs, cuts = counting(SCRIPTS, mode), 0
    step = envs.reset(0)
    for _ in range(60):
        acted_on = step.observation.copy()
        step = envs.step(np.zeros(4, np.int64))
        for b in np.flatnonzero(step.truncated):
            cuts += 1
            end = step.observation if step.final is None else step.final
            assert tuple(end[b]) == (acted_on[b, 0], acted_on[b, 1] + 1)
            assert step.mask[b] == (mode != "NextStep")
    assert cuts > 20


class Sloppy(gymnasium.vector.VectorEnv[Any, Any, Any]):
    """NEXT_STEP with stale flags, NaN rewards and reused buffers on the step that only resets."""

    metadata: ClassVar[dict[str, Any]] = {"autoreset_mode": AutoresetMode.NEXT_STEP}
    num_envs = 2
    single_observation_space = observation_space = spaces.Box(0, 9, (1,), np.float64)
    single_action_space = action_space = spaces.Discrete(2)

    def __init__(self) -> None:
        self.seen, self.over = np.zeros((2, 1)), np.zeros(2, dtype=bool)

    def reset(self, *, seed: Any = None, options: Any = None) -> Any:
        self.seen[:] = 0
        return self.seen, {}

    def step(self, actions: Any) -> Any:
        reward = np.where(self.over, np.nan, 1.0)
        self.seen[:] = np.where(self.over[:, None], 0, self.seen + 1)
        stale = self.over.copy()
        self.over[:] = self.seen[:, 0] == 2
        return self.seen, reward, self.over | stale, stale, {}


def test_a_resetting_step_has_no_reward_and_no_flags_whatever_the_environment_says() -> None:
    envs = Envs(Sloppy())
    envs.reset(0)
    steps = [envs.step(np.zeros(2, np.int64)) for _ in range(4)]
    assert [float(s.reward[0]) for s in steps] == [1, 1, 0, 1]
    assert [bool(s.terminated[0]) for s in steps] == [False, True, False, False]
    assert not any(s.truncated.any() for s in steps)
    assert [bool(s.mask[1]) for s in steps] == [True, False, True, True]
    assert steps[0].observation.dtype == np.float32


def test_native_cartpole_moves_as_the_single_environment_does() -> None:
    envs, single = make_vector("CartPole-v1", 4), gymnasium.make("CartPole-v1").unwrapped
    rng, step, compared = np.random.default_rng(0), envs.reset(3), 0
    for _ in range(200):
        action, before, mask = rng.integers(0, 2, 4), envs.vector.state.T.copy(), step.mask
        step = envs.step(action)
        for b in np.flatnonzero(mask):
            single.reset()
            single.state = before[b]
            seen, reward, terminated, _, _ = single.step(int(action[b]))
            np.testing.assert_allclose(step.observation[b], seen, rtol=1e-6, atol=1e-7)
            assert (reward, terminated) == (step.reward[b], step.terminated[b])
            compared += 1
    assert compared > 700


def balanced(envs: Envs, step: Step) -> Step:
    x, x_dot, theta, theta_dot = step.observation.T
    return envs.step((0.05 * x + 0.1 * x_dot + theta + 0.5 * theta_dot > 0).astype(np.int64))


def test_native_cartpole_is_cut_at_500_and_says_so() -> None:
    envs = make_vector("CartPole-v1", 3)
    step = envs.reset(0)
    for _ in range(499):
        step = balanced(envs, step)
        assert not step.over.any()
    step = balanced(envs, step)
    assert step.truncated.all()
    assert not step.terminated.any()
    assert not step.mask.any()
    step = balanced(envs, step)
    assert (step.reward == 0).all()
    assert step.mask.all()
    assert (abs(step.observation) <= 0.05).all()  # a new episode


def test_native_cartpole_uses_the_vector_entry_point_and_acrobot_the_plain_one() -> None:
    assert type(make_vector("CartPole-v1", 2).vector).__name__ == "CartPoleVectorEnv"
    assert isinstance(make_vector("Acrobot-v1", 2).vector, SyncVectorEnv)


@pytest.mark.parametrize("env", ["CartPole-v1", "Acrobot-v1"])
def test_a_seed_decides_where_environments_begin(env: str) -> None:
    first, again, other = (make_vector(env, 3).reset(seed).observation for seed in (1, 1, 2))
    assert (first == again).all()
    assert (first != other).any()
    assert (first[0] != first[1]).any()


def test_factories_of_one_and_of_many() -> None:
    assert make_vector(lambda: Counting([(3, "t")]), 2).num_envs == 2

    def many(num_envs: int = 1) -> Any:
        return SyncVectorEnv([lambda: Counting([(3, "t")])] * num_envs)

    assert make_vector(many, 5).num_envs == 5
    assert make_vector(lambda n: SyncVectorEnv([lambda: Counting([(3, "t")])] * n), 4).num_envs == 4


class Spaceless(gymnasium.Env[Any, Any]):
    """An environment whose author forgot its spaces."""


class AsMany(gymnasium.vector.VectorEnv[Any, Any, Any]):
    """A vector environment whose author forgot its spaces."""

    def __init__(self, num_envs: int) -> None:
        self.num_envs = num_envs


@pytest.mark.parametrize(
    ("env", "said"),
    [
        ("CartPoll-v1", "CartPole-v1"),
        ("CartPole", "CartPole-v"),
        ("no_such_module:X-v0", "no_such_module"),
        ("LunarLander-v2", "LunarLander-v3"),
        (lambda: 3, "made an object of type int, not a gymnasium.Env"),
        (lambda num_envs: Counting([(3, "t")]), "not a gymnasium VectorEnv of 2"),
        (Spaceless, "Spaceless has no observation_space and no action_space: its class or its __init__ must set it to "),
        (AsMany, "AsMany has no single_observation_space and no single_action_space: "),
    ],
)
def test_a_wrong_environment_is_one_line_that_says_what_to_do(env: Any, said: str) -> None:
    with pytest.raises(UserError, match=said) as error:
        make_vector(env, 2)
    assert "\n" not in str(error.value)


def test_one_environment_given_twice_is_refused() -> None:
    one = Counting([(3, "t")])
    with pytest.raises(UserError, match="the same environment twice"):
        make_vector(lambda: one, 2)
    with pytest.raises(UserError, match="num_envs=0: must be a number from 1"):
        make_vector("CartPole-v1", 0)


def test_spaces_are_told_plainly() -> None:
    assert spaces_in("CartPole-v1").observation == Observations((4,))
    assert spaces_in("CartPole-v1").action == Discrete(2)
    assert spaces_in("Pendulum-v1").action == Box((1,), (-2.0,), (2.0,))


@pytest.mark.parametrize(
    ("space", "given", "told"),
    [
        (spaces.Box(0, 255, (2, 2), np.uint8), np.full((3, 2, 2), 200, np.uint8), np.full((3, 2, 2), 200, np.uint8)),
        (spaces.Box(-1, 1, (), np.float64), np.full(3, 0.5), np.full(3, 0.5, np.float32)),
        (spaces.Discrete(3, start=5), np.array([5, 7]), np.array([[1, 0, 0], [0, 0, 1]], np.float32)),
        (spaces.MultiBinary(2), np.array([[0, 1]], np.int8), np.array([[0, 1]], np.float32)),
    ],
)
def test_observations_become_bytes_or_floats(space: Any, given: Any, told: Any) -> None:
    known = spaces_of(space, spaces.Discrete(2)).observation
    encoded = known.encoded(given)
    assert encoded.dtype == told.dtype
    assert encoded.tolist() == told.tolist()
    assert encoded.shape[1:] == known.shape


@pytest.mark.parametrize("mode", MODES)
def test_discrete_observations_go_through_every_mode(mode: str) -> None:
    class Walk(Counting):
        observation_space = spaces.Discrete(3)

        def seen(self) -> Any:
            return self.at

    made = SyncVectorEnv([lambda: Walk([(2, "c")])] * 2, autoreset_mode=AutoresetMode(mode))
    envs = Envs(made)
    envs.reset(0)
    envs.step(np.zeros(2, np.int64))
    step = envs.step(np.zeros(2, np.int64))
    assert (step.observation if step.final is None else step.final).tolist() == [[0, 0, 1], [0, 0, 1]]


@pytest.mark.parametrize(
    ("observation", "action", "said"),
    [
        (spaces.Sequence(spaces.Discrete(2)), spaces.Discrete(2), "observation space Sequence"),
        (spaces.Discrete(2), spaces.Dict(a=spaces.Discrete(2)), "action space Dict"),
        (
            spaces.Discrete(2),
            spaces.Box(-2, 2, (3,), np.float16),
            r"Box\(.*float16.* \(Discrete, MultiDiscrete, MultiBinary and",
        ),
    ],
)
def test_spaces_that_are_not_supported_are_named_in_one_line(observation: Any, action: Any, said: str) -> None:
    with pytest.raises(UserError, match=said) as error:
        spaces_of(observation, action)
    assert "\n" not in str(error.value)


def test_discrete_actions_are_told_from_the_spaces_start() -> None:
    envs = counting([[(9, "t")]] * 2, "NextStep", action_space=spaces.Discrete(3, start=-1))
    envs.reset(0)
    envs.step(np.array([0, 2]))
    assert [env.taken for env in envs.vector.envs] == [[-1], [1]]


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_box_actions_are_clipped_for_the_environment_alone(dtype: Any) -> None:
    space = spaces.Box(np.array([[-1, -math.inf]], dtype), np.array([[1, 0.5]], dtype), dtype=dtype)
    envs = counting([[(9, "t")]], "NextStep", action_space=space)
    envs.reset(0)
    action = np.array([[3, -7]], np.float32)
    envs.step(action)
    taken = envs.vector.envs[0].taken[0]
    assert taken.tolist() == [[1, -7]]
    assert taken.dtype == dtype
    assert space.contains(taken)
    assert action.tolist() == [[3, -7]]


# Modes that are not told, or told wrongly


def lying(mode: str, told: Any) -> Any:
    vector = counting([[(2, "c")]] * 2, mode).vector
    vector.metadata = {} if told is None else {"autoreset_mode": told}
    return vector


@pytest.mark.parametrize("told", [None, "at once", True])
def test_a_vector_environment_without_an_autoreset_mode_is_refused(told: Any) -> None:
    with pytest.raises(
        UserError, match=r"SyncVectorEnv: metadata\['autoreset_mode'\] is .*AutoresetMode.NEXT_STEP, SAME_STEP or"
    ):
        Envs(lying("SameStep", told))


@pytest.mark.parametrize(("mode", "told"), [("SameStep", "NextStep"), ("NextStep", "SameStep")])
def test_a_vector_environment_that_begins_anew_in_another_way_than_it_tells_is_refused(mode: str, told: str) -> None:
    envs = Envs(lying(mode, told))
    envs.reset(0)
    envs.step(np.zeros(2, np.int64))
    with pytest.raises(UserError, match="final_obs"):
        envs.step(np.zeros(2, np.int64))


# An id is one environment


class Coins(gymnasium.Env[Any, Any]):
    """Pays 7 a step; episodes of three steps."""

    observation_space = spaces.Box(0, 9, (2,), np.float32)
    action_space = spaces.Discrete(2)

    def reset(self, *, seed: int | None = None, options: Any = None) -> Any:
        self.at = 0
        return np.zeros(2, np.float32), {}

    def step(self, action: Any) -> Any:
        self.at += 1
        return np.full(2, self.at, np.float32), 7.0, self.at == 3, False, {}


class Preprocessed(gymnasium.vector.VectorEnv[Any, Any, Any]):
    """Somebody's fast version: it sees otherwise, and clips rewards unless it is told not to."""

    metadata: ClassVar[dict[str, Any]] = {"autoreset_mode": AutoresetMode.NEXT_STEP}

    def __init__(self, num_envs: int, reward_clipping: bool = True) -> None:
        self.num_envs, self.pays = num_envs, 1.0 if reward_clipping else 7.0
        self.single_observation_space, self.single_action_space = spaces.Box(0, 1, (4,), np.float32), spaces.Discrete(2)

    def reset(self, *, seed: Any = None, options: Any = None) -> Any:
        return np.zeros((self.num_envs, 4), np.float32), {}

    def step(self, actions: Any) -> Any:
        no = np.zeros(self.num_envs, bool)
        return np.zeros((self.num_envs, 4), np.float32), np.full(self.num_envs, self.pays), no, no, {}


register("Coins-v0", entry_point=Coins, vector_entry_point=Preprocessed)
register("FastCoins-v0", vector_entry_point=Preprocessed)


@pytest.mark.parametrize(
    ("env", "vector", "size"),
    [("Coins-v0", "auto", 2), ("Coins-v0", "sync", 2), ("Coins-v0", "native", 4), ("FastCoins-v0", "auto", 4)],
)
def test_an_id_is_gymnasiums_environment_unless_another_is_chosen_and_pays_raw_rewards(
    env: str, vector: str, size: int
) -> None:
    envs = make_vector(env, 2, vector)
    assert envs.spaces.observation == Observations((size,)) == spaces_in(env, vector).observation
    envs.reset(0)
    assert envs.step(np.zeros(2, np.int64)).reward.tolist() == [7, 7]


def test_an_id_without_a_vector_environment_has_no_native_one() -> None:
    with pytest.raises(UserError, match="vector=native: Acrobot-v1 has no vector environment of its own"):
        make_vector("Acrobot-v1", 2, "native")


@pytest.mark.parametrize(("env", "said"), [("Coins-v0", True), ("CartPole-v1", False)])
def test_what_a_chosen_vector_environment_sees_otherwise_is_said(env: str, said: bool, capsys: Any) -> None:
    job = Reinforcement(env, vector="native")
    for _ in range(2):
        job.prepare()
    line = (
        f"shoal: vector=native: {env} has observations [4] of f4, Discrete(n=2, start=0), where gymnasium.make gives [2] of f4"
    )
    assert capsys.readouterr().err.count(line) == said


# Infos, and exceptions


def test_infos_may_change_their_shape_because_nothing_reads_them() -> None:
    class Telling(Counting):
        def step(self, action: Any) -> Any:
            *rest, _ = super().step(action)
            return *rest, {"path": np.zeros(self.at), "kind": self.at if self.at % 2 else "odd"}

    envs = make_vector(lambda: Telling([(4, "t")]), 2)
    envs.reset(0)
    assert [float(envs.step(np.zeros(2, np.int64)).reward[0]) for _ in range(3)] == [1, 2, 3]


def test_an_exception_from_inside_gymnasium_names_the_environment() -> None:
    class Odd(Counting):
        def seen(self) -> Any:
            return np.array([None, None]) if self.at else super().seen()

    def odd() -> Any:
        return Odd([(4, "t")])

    envs = make_vector(odd, 2)
    envs.reset(0)
    with pytest.raises(EnvError, match=r"^environment odd: TypeError: "):
        envs.step(np.zeros(2, np.int64))


def test_an_id_of_an_unknown_namespace_is_told_how_its_package_is_named() -> None:
    with pytest.raises(UserError, match=r"no environment 'Mine/Walk-v0': write the module that registers Mine/ in front"):
        make_vector("Mine/Walk-v0", 1)


def test_an_observation_that_changes_its_shape_is_told_with_both_shapes() -> None:
    class Growing(Counting):
        def seen(self) -> Any:
            return np.zeros(2 + self.at, np.float32)

    envs = make_vector(lambda: Growing([(4, "t")]), 2)
    envs.reset(0)
    with pytest.raises(UserError, match=r"step gave an observation of shape \[3\]: expected \[2\], as observation_space says"):
        envs.step(np.zeros(2, np.int64))


@pytest.mark.parametrize(
    ("later", "says"),
    [
        ({"seen": [0.0, 0.0, 0.0]}, r"step gave an observation of shape \[3\]: expected \[2\], as observation_space says"),
        ({"seen": None}, r"step gave the observation None: expected float32 of shape \[2\], as observation_space says"),
        ({"seen": "ab"}, r"step gave the observation 'ab': expected float32 of shape \[2\]"),
        ({"terminated": None}, "step gave terminated=None: expected True or False"),
        ({"truncated": "no"}, "step gave truncated='no': expected True or False"),
        ({"terminated": 2}, "step gave terminated=2: expected True or False"),
        ({"truncated": np.array([True, False])}, r"step gave truncated=array\(\[ True, False\]\): expected True or False"),
    ],
)
def test_what_a_later_step_gives_is_looked_at_like_what_the_first_gave(later: dict[str, Any], says: str) -> None:
    class Turning(Counting):
        def step(self, action: Any) -> Any:
            seen, reward, terminated, truncated, info = super().step(action)
            found = {"seen": seen, "terminated": terminated, "truncated": truncated, **(later if self.at > 1 else {})}
            return found["seen"], reward, found["terminated"], found["truncated"], info

    envs = make_vector(lambda: Turning([(4, "t")]), 2)
    envs.reset(0)
    envs.step(np.zeros(2, np.int64))
    with pytest.raises(UserError, match=says):
        envs.step(np.zeros(2, np.int64))


class One(SyncVectorEnv):
    """A vector environment that gives, in place of `part`, that of its first environment alone."""

    part = ""

    def step(self, actions: Any) -> Any:
        names = ("seen", "reward", "terminated", "truncated", "info")
        return tuple(each[:1] if name == self.part else each for name, each in zip(names, super().step(actions), strict=True))


@pytest.mark.parametrize(
    ("part", "says"),
    [
        ("seen", r"gave observations of shape \[1, 2\]: expected \[3, 2\]"),
        ("reward", r"a step gave rewards of shape \[1\]: expected \[3\], one of each environment"),
        ("terminated", r"a step gave terminated of shape \[1\]: expected \[3\]"),
        ("truncated", r"a step gave truncated of shape \[1\]: expected \[3\]"),
    ],
)
def test_what_a_vector_gives_of_one_environment_does_not_count_for_all(part: str, says: str) -> None:
    kind = type("One", (One,), {"part": part})
    envs = Envs(kind([lambda: Counting([(4, "t")])] * 3))
    envs.reset(0)
    with pytest.raises(UserError, match=says):
        envs.step(np.zeros(3, np.int64))


def test_a_part_of_an_observation_that_has_one_row_does_not_count_for_all() -> None:
    found = spaces_of(spaces.Dict(a=spaces.Box(-1, 1, (2,)), b=spaces.Discrete(3)), spaces.Discrete(2))
    with pytest.raises(UserError, match="part 'b' of the observations has 1 rows: expected 3, one of each environment"):
        found.encoded({"a": np.zeros((3, 2), np.float32), "b": np.array([1])}, {}, 3)


def test_an_exception_of_numpy_keeps_the_frame_of_the_environments_own_code() -> None:
    class Singular(Counting):
        def step(self, action: Any) -> Any:
            return np.linalg.inv(np.zeros((2, 2)))

    envs = make_vector(lambda: Singular([(4, "t")]), 2)
    envs.reset(0)
    with pytest.raises(EnvError, match="LinAlgError: Singular matrix") as raised:
        envs.step(np.zeros(2, np.int64))
    assert place_of(raised.value).endswith("in step")


def test_a_reward_or_a_flag_in_an_array_of_one_is_that_number() -> None:
    class Boxed(Counting):
        def step(self, action: Any) -> Any:
            seen, *numbers, info = super().step(action)
            return seen, *(np.array([number]) for number in numbers), info

    plain, boxed = (make_vector(partial(kind, [(3, "t"), (2, "c")]), 2) for kind in (Counting, Boxed))
    assert rows_of(plain, 9) == rows_of(boxed, 9)


def test_an_exception_of_the_environments_own_code_stays_as_it_is() -> None:
    class Broken(Counting):
        def step(self, action: Any) -> Any:
            return 1 / 0

    envs = make_vector(lambda: Broken([(4, "t")]), 2)
    envs.reset(0)
    with pytest.raises(ZeroDivisionError):
        envs.step(np.zeros(2, np.int64))


# Observations


@pytest.mark.parametrize(
    "space",
    [
        spaces.Box(0, 255, (6,), np.uint8),  # no picture: one dimension
        spaces.Box(0, 12, (2, 3), np.uint8),  # no picture: other bounds
    ],
)
def test_bytes_that_are_no_picture_are_numbers_as_they_stand(space: Any) -> None:
    known = spaces_of(space, spaces.Discrete(2)).observation
    seen = known.encoded(np.full((1, *space.shape), 9, np.uint8))
    assert (known.dtype, seen.dtype, seen.flat[0]) == ("f4", np.float32, 9)


@pytest.mark.parametrize(
    ("space", "value"), [(spaces.Discrete(3), -1), (spaces.Discrete(4, start=-2), 2), (spaces.Discrete(3), 3)]
)
def test_a_discrete_observation_outside_its_space_is_refused(space: Any, value: int) -> None:
    known = spaces_of(space, spaces.Discrete(2)).observation
    with pytest.raises(UserError, match=rf"observation is {value}, outside its space Discrete\("):
        known.encoded(np.array([1, value]))
