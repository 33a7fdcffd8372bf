"""Built-in networks: which one a space gets, in which order a picture's axes are read, and where the weights come from."""

from __future__ import annotations

import copy
from typing import Any, cast

import gymnasium
import numpy as np
import pytest
import torch

from shoal.aggregators.around.lives import Lives
from shoal.aggregators.box_learner import BoxLearner
from shoal.envs.spaces import Box, Discrete, MultiDiscrete, Named, Observations, Spaces
from shoal.jobs.methods import METHODS
from shoal.jobs.reinforcement import Reinforcement
from shoal.nets.acting import Form
from shoal.nets.bodies import BLOCK, Body, convolution, precise
from shoal.nets.continuous import Deterministic
from shoal.nets.fitting import fitting
from shoal.nets.flat import FlatModule
from shoal.nets.forward import tensors
from shoal.nets.networks import ACTOR_CRITIC
from shoal.nets.perceptrons import Critics
from shoal.nets.pictures import chosen, described, picture
from shoal.nets.policies import DeepActorCritic, TorchPolicy, built_in, judged
from shoal.nets.q_policy import QNetworks
from shoal.protocol.errors import UserError


def pixels(*shape: int) -> Observations:
    return Observations(shape, "u1")


SHAPES: dict[tuple[int, ...], tuple[str, str]] = {
    (84, 84): ("84x84x1", "nature"),
    (4, 84, 84): ("84x84x4", "nature"),
    (84, 84, 4): ("84x84x4", "nature"),
    (210, 160, 3): ("210x160x3", "nature"),
    (4, 84, 84, 3): ("84x84x12", "nature"),
    (4, 1, 84, 84): ("84x84x4", "nature"),
    (4, 1, 84, 84, 3): ("84x84x12", "nature"),  # the stacks of frame_stack, of a game in colour
    (4, 2, 3, 40, 48): ("40x48x24", "nature"),
    (36, 36, 3): ("36x36x3", "nature"),
    (35, 64, 3): ("35x64x3", "small"),
    (7, 7, 3): ("7x7x3", "small"),
    (2, 3): ("2x3x1", "mlp"),
}


@pytest.mark.parametrize("shape", SHAPES)
def test_a_pictures_axes_are_found_from_its_shape_and_its_network_from_its_size(shape: Any) -> None:
    assert (str(picture(pixels(*shape))), chosen(pixels(*shape))) == SHAPES[shape]


@pytest.mark.parametrize("network", ["auto", "impala"])
@pytest.mark.parametrize("shape", [(84, 84, 4), (7, 7, 3), (64, 40)])
@pytest.mark.parametrize("action", [Discrete(3), Box((2,), (-1.0,) * 2, (1.0,) * 2), MultiDiscrete((2, 3), (0, 0), (2,))])
def test_a_network_for_pictures_is_a_policy_that_actors_play(network: str, shape: Any, action: Any) -> None:
    spaces = Spaces(pixels(*shape), action)
    module = fitting(built_in(spaces, network, seed=1), spaces)
    assert isinstance(module, DeepActorCritic)
    seen = np.random.default_rng(0).integers(0, 256, (3, *shape), dtype=np.uint8)
    policy = ACTOR_CRITIC.policy(spaces, Form(pictures=network), None)
    assert isinstance(policy, TorchPolicy)
    policy.load(FlatModule(built_in(spaces, network, seed=1)).bundle())
    numbers = policy.parameters(seen)
    assert numbers.shape == (3, action.parameters)
    parameters, value = judged(module, torch.from_numpy(seen))
    flat = parameters[0] if isinstance(parameters, tuple) else getattr(parameters, "logits", parameters)
    assert isinstance(flat, torch.Tensor)
    np.testing.assert_array_equal(numbers[:, : flat.shape[1]], flat.detach())
    assert value.shape == (3,)


def test_stacks_of_stacks_are_read_as_one_stack() -> None:
    seen = torch.randint(0, 256, (5, 6, 40, 48, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))
    shapes = ((6, 40, 48, 3), (6, 1, 40, 48, 3), (3, 2, 40, 48, 3))
    told = [built_in(Spaces(pixels(*shape), Discrete(2)), seed=5)(seen.reshape(5, *shape)) for shape in shapes]
    assert [torch.equal(one, first) for others in told[1:] for one, first in zip(others, told[0], strict=True)] == [True] * 4


def test_a_picture_is_read_alike_whether_its_channels_come_first_or_last() -> None:
    last, first = (built_in(Spaces(pixels(*shape), Discrete(2)), seed=5) for shape in ((40, 48, 3), (3, 40, 48)))
    seen = torch.from_numpy(np.random.default_rng(1).integers(0, 256, (2, 40, 48, 3), dtype=np.uint8))
    for a, b in zip(last(seen), first(seen.permute(0, 3, 1, 2)), strict=True):
        torch.testing.assert_close(a, b)
    stacked = built_in(Spaces(pixels(2, 40, 48, 3), Discrete(2)), seed=5)
    both = torch.stack([seen, seen.flip(1)], dim=1)
    wide = built_in(Spaces(pixels(6, 40, 48), Discrete(2)), seed=5)
    torch.testing.assert_close(stacked(both)[1], wide(torch.cat([seen, seen.flip(1)], dim=3).permute(0, 3, 1, 2))[1])


CONVOLUTIONS = [  # channels, height, width, size of the kernel, stride, padding
    (4, 84, 84, 8, 4, 0),
    (3, 87, 42, 8, 4, 0),  # rows and columns at the edge that no kernel reaches
    (1, 36, 41, 8, 4, 0),
    (3, 9, 9, 3, 1, 1),
    (3, 11, 12, 3, 2, 0),  # a kernel that is no multiple of its stride
    (3, 12, 12, 4, 2, 1),
]


@pytest.mark.parametrize(("channels", "height", "width", "size", "stride", "padding"), CONVOLUTIONS)
@pytest.mark.parametrize("last", [False, True])
def test_a_convolution_of_bytes_is_that_of_scaled_floats(
    channels: int, height: int, width: int, size: int, stride: int, padding: int, last: bool
) -> None:
    generator = torch.Generator().manual_seed(0)
    layer = convolution(channels, 16, size, generator, stride, padding, scale=255.0)
    seen = torch.randint(0, 256, (3, channels, height, width), dtype=torch.uint8, generator=generator)
    weight = layer.weight.detach().double().requires_grad_()
    wanted = torch.nn.functional.conv2d(seen.double() / 255, weight, None, stride, padding)
    found = layer(seen.permute(0, 2, 3, 1).contiguous().permute(0, 3, 1, 2) if last else seen)
    torch.testing.assert_close(found, wanted.float(), atol=1e-5, rtol=1e-5)
    each = torch.randn(wanted.shape, generator=generator)
    (found * each).sum().backward()
    (wanted * each).sum().backward()
    assert layer.weight.grad is not None
    assert weight.grad is not None
    torch.testing.assert_close(layer.weight.grad, weight.grad.float(), atol=1e-3, rtol=1e-4)


@pytest.mark.parametrize("rows", [2 * BLOCK - 1, 2 * BLOCK, 3 * BLOCK + 5])
def test_a_large_batch_goes_through_in_parts_with_the_outputs_and_gradients_of_the_whole(rows: int) -> None:
    body = Body(Spaces(pixels(36, 36), Discrete(2)), "nature", torch.Generator().manual_seed(0))
    seen = torch.randint(0, 256, (rows, 36, 36), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))
    weights = torch.linspace(-1, 1, rows)[:, None]
    (body(seen) * weights).sum().backward()
    found = [parameter.grad for parameter in body.parameters()]
    body.zero_grad()
    whole = body.nets[0](seen)
    torch.testing.assert_close(body(seen), whole, atol=1e-5, rtol=1e-4)
    (whole * weights).sum().backward()
    for ours, parameter in zip(found, body.parameters(), strict=True):
        assert ours is not None
        assert parameter.grad is not None
        assert (ours - parameter.grad).norm() < 1e-4 * parameter.grad.norm()


@pytest.mark.parametrize("network", ["nature", "impala"])
def test_bf16_is_the_network_of_rounded_weights_whose_gradients_are_summed_in_float32(network: str) -> None:
    body = Body(Spaces(pixels(36, 36), Discrete(2)), network, torch.Generator().manual_seed(0))
    rounded, cast = precise(copy.deepcopy(body), "bf16"), copy.deepcopy(body.nets[0]).to(torch.bfloat16)
    seen = torch.randint(0, 256, (2 * BLOCK + 3, 36, 36), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))
    each = torch.randn((len(seen), body.features), generator=torch.Generator().manual_seed(2))
    found = rounded(seen)
    (found * each).sum().backward()
    summed = [torch.zeros_like(weight) for weight in body.parameters()]
    parts = []
    for pictures, factors in zip(seen.tensor_split(2), each.tensor_split(2), strict=True):
        cast.zero_grad()
        parts.append(cast(pictures).float())
        (parts[-1] * factors).sum().backward()
        for total, weight in zip(summed, cast.parameters(), strict=True):
            assert weight.grad is not None
            total.add_(weight.grad.float())
    assert torch.equal(found, torch.cat(parts))
    assert 0 < (found - body(seen)).norm() < 2**-5 * found.norm()  # bfloat16 has eight bits
    for ours, total, weight in zip(rounded.parameters(), summed, body.parameters(), strict=True):
        assert torch.equal(ours, weight)
        assert ours.grad is not None
        torch.testing.assert_close(ours.grad, total, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("method", ["impala", "ppo", "dqn", "sac"])
def test_every_network_of_a_method_computes_in_the_precision_of_its_form(method: str) -> None:
    action = Box((2,), (-1.0,) * 2, (1.0,) * 2) if method == "sac" else Discrete(2)
    spaces, kind = Spaces(pixels(36, 36), action), METHODS[method]().network  # type: ignore[attr-defined]
    for precision in ("float32", "bf16"):
        bodies = [part for part in kind.build(spaces, Form(precision=precision), 0).modules() if isinstance(part, Body)]
        assert [part.precision for part in bodies] == [precision]


def test_weights_follow_from_the_seed_and_leave_torchs_generator_alone() -> None:
    before = torch.random.get_rng_state()
    spaces = Spaces(pixels(84, 84, 4), Discrete(2))
    first, again, other = (FlatModule(built_in(spaces, "impala", seed=s)).bundle().sha256() for s in (1, 1, 2))
    assert first == again != other
    assert torch.equal(torch.random.get_rng_state(), before)


def test_nature_cnn_has_the_weights_of_the_paper() -> None:
    module = built_in(Spaces(pixels(84, 84, 4), Discrete(6)))
    shapes = [tuple(p.shape) for name, p in module.named_parameters() if name.endswith("weight")]
    assert shapes == [(32, 4, 8, 8), (64, 32, 4, 4), (64, 64, 3, 3), (512, 3136), (6, 512), (1, 512)]


def test_impalas_resnet_has_15_convolutions_and_256_features() -> None:
    module = built_in(Spaces(pixels(72, 96, 3), Discrete(6)), "impala")
    convolutions = [p.shape for p in module.parameters() if p.dim() == 4]
    assert len(convolutions) == 15
    assert [shape[0] for shape in convolutions] == [16] * 5 + [32] * 10
    assert module.get_parameter("actor.0.weight").shape == (6, 256)


def test_first_features_are_of_the_order_of_1() -> None:
    for shape, network in (((84, 84, 4), "nature"), ((84, 84, 4), "impala"), ((7, 7, 3), "small")):
        spaces = Spaces(pixels(*shape), Discrete(2))
        body = Body(spaces, "auto" if network == "small" else network, torch.Generator().manual_seed(0))
        top = 11 if network == "small" else 256
        seen = torch.from_numpy(np.random.default_rng(2).integers(0, top, (8, *shape), dtype=np.uint8))
        spread = body(seen).std().item()
        assert 0.05 < spread < 10, (network, spread)


PARTS = Named(((("image",), pixels(7, 7, 3)), (("direction",), Observations((4,), categories=4))), ("mission",))


def test_the_parts_of_a_dict_lie_beside_the_pictures_features() -> None:
    spaces = Spaces(PARTS, Discrete(7))
    module = built_in(spaces)
    assert isinstance(module, DeepActorCritic)
    assert module.body.features == 256 + 4
    seen = {"image": torch.zeros((2, 7, 7, 3), dtype=torch.uint8), "direction": torch.eye(4)[:2]}
    logits, value = module(seen)
    assert logits.shape == (2, 7)
    assert not torch.equal(value[0], value[1])  # the direction is looked at


@pytest.mark.parametrize("many", [1, 2])
@pytest.mark.parametrize(
    "spaces", [Spaces(PARTS, Discrete(7)), Spaces(Observations((4,)), Discrete(3), masks="info")], ids=["parts", "mask"]
)
def test_fields_of_records_are_tensors_whatever_their_place_in_memory(spaces: Spaces, many: int) -> None:
    seen = np.zeros(many, spaces.record()[0])
    found = tensors(seen)
    for name, tensor in found.items() if isinstance(found, dict) else {"": found}.items():
        field = f"observation/{name}" if name else "observation"
        assert tensor.dtype == (torch.uint8 if name == "image" else torch.float32)
        assert tensor.shape == seen[field].shape


LINES = {
    "policy: Nature CNN (Mnih et al. 2015) for pictures of 84x84x4": (pixels(84, 84, 4), "auto"),
    "policy: IMPALA ResNet (Espeholt et al. 2018) for pictures of 84x84x4": (pixels(84, 84, 4), "impala"),
    "policy: perceptron of 64 and 64 units (tanh) for 4 numbers": (Observations((4,)), "auto"),
    "policy: perceptron of 64 and 64 units (tanh) for 151 numbers, 2 parts one after the other": (PARTS, "mlp"),
    "policy: image: CNN of three 3x3 convolutions for pictures of 7x7x3, 4 further numbers beside the features, then a "
    "perceptron of 64 and 64 units (tanh)": (PARTS, "auto"),
}


@pytest.mark.parametrize("line", LINES)
def test_the_choice_is_said_in_one_line(line: str) -> None:
    seen, network = LINES[line]
    assert described(Spaces(seen, Discrete(2)), Form(pictures=network)) == line  # type: ignore[arg-type]


FLAT = "policy: perceptron of 64 and 64 units (tanh) for 4 numbers"
CRITICS = "; two critics with the same layers"
SAID = {
    "impala": FLAT,
    "ppo": FLAT,
    "appo": FLAT,
    "a2c": FLAT,
    "es": FLAT,
    "dqn": f"{FLAT}, then the value of each action",
    "apex": f"{FLAT}, then the value of the state and the advantage of each action",
    "r2d2": f"{FLAT}, then gru of 128 units, then the value of the state and the advantage of each action",
    "sac": "policy: perceptron of 256 and 256 units (relu) for 3 numbers, then the mean and the deviation of each action"
    + CRITICS,
    "td3": "policy: perceptron of 400 and 300 units (relu) for 3 numbers, then each action" + CRITICS,
}


@pytest.mark.parametrize("method", [name for name, method in METHODS.items() if method.problems == ("environment",)])
def test_every_method_says_which_network_the_space_has_chosen(method: str) -> None:
    own: dict[str, Any] = {"memory": "gru"} if method == "r2d2" else {}
    env = "Pendulum-v1" if method in ("sac", "td3") else "CartPole-v1"
    job = Reinforcement(env, method=method, **({"hidden": (64, 64), "activation": "tanh"} if env[0] == "C" else {}), **own)
    assert job.problem.about(job.method, 0) == [SAID[method]]


def test_the_networks_of_other_methods_say_how_they_read_pictures() -> None:
    pictures, form = Spaces(pixels(84, 84, 4), Discrete(2)), Form()
    cnn = "policy: Nature CNN (Mnih et al. 2015) for pictures of 84x84x4"
    assert QNetworks().said(pictures, form) == f"{cnn}, then the value of each action"
    bounded, flat = Spaces(pixels(84, 84, 4), Box((2,), (-1.0,) * 2, (1.0,) * 2)), "a perceptron of 64 and 64 units (tanh)"
    assert Deterministic().said(bounded, form) == f"{cnn}, then {flat}, then each action{CRITICS}"


def test_nothing_is_said_of_a_network_that_somebody_brought() -> None:
    job = Reinforcement("CartPole-v1", lambda spaces: torch.nn.Linear(4, 2), method="dqn")
    assert job.problem.about(job.method, 0) == []


@pytest.mark.parametrize(
    ("seen", "network", "says"),
    [
        (
            pixels(20, 84, 3),
            "nature",
            "network=nature: pictures of 20x84x3: Nature CNN needs 36 pixels a side; try network=auto",
        ),
        (Observations((4,)), "impala", "network=impala: the observation has no picture"),
    ],
)
def test_a_network_that_cannot_read_the_observation_is_refused(seen: Any, network: str, says: str) -> None:
    with pytest.raises(UserError, match=says):
        built_in(Spaces(seen, Discrete(2)), network)


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ({"hidden": (32,)}, r"^hidden=32: it is for the built-in policy, .* leave it out$"),
        ({"activation": "relu", "method": "dqn"}, r"^activation=relu: it is for the built-in policy"),
        ({"dueling": True, "method": "dqn"}, r"^dueling=true: it is for the built-in network, .* leave it out$"),
        ({"dueling": False, "method": "apex"}, r"^dueling=false: it is for the built-in network"),
    ],
)
def test_a_shape_of_the_built_in_network_is_refused_beside_a_policy_of_ones_own(given: Any, says: str) -> None:
    with pytest.raises(UserError, match=says):
        Reinforcement("CartPole-v1", lambda spaces: torch.nn.Linear(4, 2), **given)


def test_a_preset_gives_no_shape_to_a_policy_of_ones_own_but_to_the_critics_beside_it() -> None:
    made = lambda spaces: torch.nn.Linear(4, 2)  # noqa: E731
    assert Reinforcement("CartPole-v1", method="dqn").plain()["hidden"] == [128, 128]
    own = Reinforcement("CartPole-v1", made, method="dqn")
    assert (own.plain()["hidden"], own.plain()["batch_size"]) == ([64, 64], 128)
    assert Reinforcement("Pendulum-v1", made, method="sac", hidden=(32,)).plain()["hidden"] == [32]
    assert Reinforcement("Pendulum-v1", made, method="sac").plain()["hidden"] == [256, 256]


class Sees(gymnasium.Env[Any, Any]):
    observation_space, action_space = gymnasium.spaces.Box(0, 255, (9, 9), np.uint8), gymnasium.spaces.Discrete(2)


@pytest.mark.parametrize("method", ["ppo", "dqn"])
def test_hidden_layers_are_refused_where_a_picture_alone_is_seen(method: str) -> None:
    with pytest.raises(UserError, match=r"^hidden=32: the policy sees a picture alone, .*, or network=mlp flattens the pic"):
        Reinforcement(Sees, method=method, hidden=(32,)).problem.module(0)
    assert Reinforcement(Sees, method=method, hidden=(32,), network="mlp").problem.module(0)
    assert Reinforcement(Sees, method=method).problem.module(0)


def test_critics_in_bf16_have_the_values_and_gradients_of_float32_to_its_rounding() -> None:
    rng = torch.Generator().manual_seed(3)
    seen, action = torch.randn((64, 5), generator=rng), torch.rand((64, 2), generator=rng).requires_grad_()
    found = {}
    for precision in ("float32", "bf16"):
        critics = Critics((5,), 2, (32, 16), seed=7, precision=precision)
        values = critics(seen, action)
        slopes = torch.autograd.grad(values.sum(), [action, *critics.parameters()])
        assert values.dtype == torch.float32
        assert {slope.dtype for slope in slopes} == {torch.float32}
        found[precision] = [values, *slopes]
    for exact, rounded in zip(found["float32"], found["bf16"], strict=True):
        error = (exact - rounded).norm() / exact.norm()
        assert error <= 0.05  # bfloat16 keeps 8 bits; where a number near 0 is rounded across 0, a unit's slope is lost
    assert not torch.equal(found["float32"][0], found["bf16"][0])


@pytest.mark.parametrize("method", ["sac", "td3"])
def test_precision_reaches_the_critics_of_a_job_and_not_its_actor(method: str) -> None:
    job = Reinforcement("Pendulum-v1", method=method, precision="bf16", hidden=(16, 16), num_envs=2, total_timesteps=64)
    learner = cast(Lives, job.aggregator("cpu")).aggregator
    assert isinstance(learner, BoxLearner)
    assert learner.q.module.rounded == torch.bfloat16
    assert {weight.dtype for weight in learner.pi.module.parameters()} == {torch.float32}


def test_a_precision_of_convolutions_is_refused_where_there_are_none() -> None:
    with pytest.raises(
        UserError, match=r"^precision=bf16: it is for convolutions and .*, and this policy has neither; leave it out$"
    ):
        Reinforcement("CartPole-v1", precision="bf16").problem.module(0)
    with pytest.raises(UserError, match=r"^precision=bf16: it is for the built-in policy, .* leave it out$"):
        Reinforcement("CartPole-v1", lambda spaces: torch.nn.Linear(4, 2), precision="bf16")
