"""The choice of a built-in network by the space, without torch: an actor that plays a perceptron never imports it.

The one idea: vectors go through a perceptron and pictures through convolutions, which depend on the pictures' size; the parts
of a Dict are flattened or convolved, each for itself, and then put one after the other.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from shoal.envs.spaces import Named, Observations, Part, Spaces
from shoal.protocol.errors import UserError

if TYPE_CHECKING:
    from shoal.nets.acting import Form

NATURE_LEAST = 36  # pixels of a side that Nature CNN's three convolutions need
SMALL_LEAST = 5  # pixels of a side from which a picture is worth a convolution
GRID_MOST = 15  # pixels of a side up to which a "picture" is a grid of codes, as MiniGrid's 7 x 7 are
CODES = 10.0  # a grid's codes are divided by this: MiniGrid's largest
PIXELS = 255.0
NETWORKS = ("auto", "mlp", "nature", "impala")
PAPERS: Mapping[str, str] = {
    "nature": "Nature CNN (Mnih et al. 2015)",
    "impala": "IMPALA ResNet (Espeholt et al. 2018)",
    "small": "CNN of three 3x3 convolutions",
}


@dataclass(frozen=True, slots=True)
class Picture:
    """A picture's channels, height and width. order: the axes of the space's shape that give (channels..., height, width)."""

    channels: int
    height: int
    width: int
    order: tuple[int, ...]

    def __str__(self) -> str:
        return f"{self.height}x{self.width}x{self.channels}"


def picture(part: Part) -> Picture | None:
    """The picture in a part of an observation; None if it is none. Channels are the smaller of the first and the last axis (the
    last if they are equal). Axes before the last three are stacks of frames: of four axes the first, of five the first two."""
    if not isinstance(part, Observations) or part.dtype != "u1":
        return None
    match part.shape:
        case (height, width):
            return Picture(1, height, width, (0, 1))
        case (first, second, last) if first < last:
            return Picture(first, second, last, (0, 1, 2))
        case (height, width, channels):
            return Picture(channels, height, width, (2, 0, 1))
        case (stack, channels, height, width) if channels < width:
            return Picture(stack * channels, height, width, (0, 1, 2, 3))
        case (stack, height, width, channels):
            return Picture(stack * channels, height, width, (0, 3, 1, 2))
        case (frames, *shape) if len(shape) == 4:
            each = picture(Observations(tuple(shape), part.dtype))
            assert each is not None  # by one of the two cases above
            return Picture(frames * each.channels, each.height, each.width, (0, *(1 + axis for axis in each.order)))
    return None


def chosen(part: Part, network: str = "auto") -> str:
    """The network for a part: "mlp" (flattened), "nature", "impala" or "small". Raises UserError if the picture is too small
    for the network that is asked for."""
    seen = picture(part)
    if seen is None or network == "mlp":
        return "mlp"
    side = min(seen.height, seen.width)
    if network == "nature" and side < NATURE_LEAST:
        raise UserError(f"network=nature: pictures of {seen}: Nature CNN needs {NATURE_LEAST} pixels a side; try network=auto")
    if network == "auto":
        return "nature" if side >= NATURE_LEAST else "small" if side >= SMALL_LEAST else "mlp"
    return network


def described(spaces: Spaces, form: Form, heads: str = "", through: bool = False) -> str:
    """The built-in network for these spaces, in one line. heads: what the network gives; "": the line says nothing of it.
    through: the features of a picture alone go through the hidden layers too."""
    core = f", then {form.memory} of {form.memory_size} units" if form.memory != "none" else ""
    return f"policy: {_layers(spaces, form, through)}{core}{f', then {heads}' if heads else ''}"


def _layers(spaces: Spaces, form: Form, through: bool) -> str:
    """The layers that read the observation."""
    seen, network, hidden = spaces.observation, form.pictures, form.hidden
    parts = seen.named if isinstance(seen, Named) else {"": seen}
    kinds = {name: chosen(part, network) for name, part in parts.items()}
    deep = {name: kind for name, kind in kinds.items() if kind != "mlp"}
    convolved = {name: f"{PAPERS[kind]} for pictures of {picture(parts[name])}" for name, kind in deep.items()}
    flat = sum(part.size for name, part in parts.items() if kinds[name] == "mlp")
    perceptron = f"perceptron of {' and '.join(map(str, hidden))} units ({form.activation})" if hidden else "linear layer"
    if not convolved:
        of = f", {len(parts)} parts one after the other" if isinstance(seen, Named) else ""
        return f"{perceptron} for {flat} numbers{of}"
    if not isinstance(seen, Named):
        return convolved[""] + (f", then a {perceptron}" if through and hidden else "")
    rest = f", {flat} further numbers beside the features" if flat else ""
    whole = "; ".join(f"{name}: {text}" for name, text in convolved.items())
    return f"{whole}{rest}, then a {perceptron}"


def deep(spaces: Spaces, network: str = "auto") -> bool:
    """True if the built-in network for these spaces has convolutions, so that acting needs torch. Raises UserError if a network
    for pictures is asked for, and the observation has none, or too small ones."""
    parts = list(spaces.observation.named.values()) if isinstance(spaces.observation, Named) else [spaces.observation]
    if network in ("nature", "impala") and not any(map(picture, parts)):
        raise UserError(f"network={network}: the observation has no picture (bytes from 0 to 255); leave it at network=auto")
    return any(chosen(part, network) != "mlp" for part in parts)


def headless(spaces: Spaces, network: str = "auto") -> bool:
    """True if the built-in actor-critic or Q-network has no hidden layers of its own: the features of a picture alone go to its
    heads at once."""
    return not isinstance(spaces.observation, Named) and deep(spaces, network)
