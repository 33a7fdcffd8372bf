"""Perturbed copies of the built-in policy, acting side by side in numpy: the actors' half of evolution strategies.

The one idea: noise is a function of a seed, so actor and learner each make it, and it never travels. The copies' weights lie
behind each other in one array for each layer, so one matrix product moves all copies at once.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np

from shoal.envs.spaces import Array, Floats
from shoal.nets.numpy_policy import ACTIVATIONS, flat
from shoal.protocol.layout import Bundle, Layout

ACTING = ("trunk.", "actor.")  # beginnings of the names of the weights by which ActorCritic chooses its likeliest action


def acting(layout: Layout) -> list[str]:
    """The names, in the layout's order, of the arrays by which the built-in policy acts greedily. The critic and log_std do
    not act, so nothing is learned about them."""
    return [place.name for place in layout.places if place.name.startswith(ACTING)]


def noise(seed: int, size: int) -> Floats:
    """`size` draws from the standard normal distribution, float32: a function of the seed, which is from 0 to below 2**63."""
    return np.random.Generator(np.random.Philox(key=seed)).standard_normal(size, dtype=np.float32)


def pieces(layout: Layout, names: Sequence[str], vector: Array) -> Iterator[tuple[str, Array]]:
    """The arrays of these names whose entries lie in `vector` one after the other, as views: (name, array [..., *shape]).
    vector: [..., n]."""
    first, shapes = 0, {place.name: tuple(place.shape) for place in layout.places}
    for name in names:
        size = int(np.prod(shapes[name], dtype=np.int64))
        yield name, vector[..., first : first + size].reshape(*vector.shape[:-1], *shapes[name])
        first += size


class Perturbed:
    """2 P copies of the built-in policy: with weights + sigma * noise for each of P noises, [P, n], and then with weights -
    sigma * noise for each. activation: "tanh" or "relu"."""

    def __init__(self, weights: Bundle, noises: Floats, sigma: float, activation: str) -> None:
        names = acting(weights.layout)
        steps = np.float32(sigma) * noises
        both = pieces(weights.layout, names, np.concatenate([steps, -steps]))
        arrays = {name: weights[name] + piece for name, piece in both}
        self.activation = ACTIVATIONS[activation]
        layers = [name.removesuffix(".weight") for name in names if name.endswith(".weight")]
        self.layers = [(arrays[f"{name}.weight"], arrays[f"{name}.bias"]) for name in layers]

    def parameters(self, observation: Array) -> Floats:
        """The logits or means [2 P, A] of one observation for each copy, [2 P, *obs]."""
        x = flat(observation)
        for i, (weight, bias) in enumerate(self.layers):
            if i:
                self.activation(x, out=x)
            x = np.matmul(weight, x[:, :, None])[:, :, 0] + bias
        return x
