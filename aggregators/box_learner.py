"""The part that SAC's and TD3's learners share: an actor of bounded actions, and two critics of observations and actions.

The one idea: both are made here from the same settings and keyed seeds, so that the two methods differ in their losses alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from torch import nn

from shoal.aggregators.off_policy import OffPolicyLearner
from shoal.aggregators.trained import Trained
from shoal.envs.spaces import Named, Spaces
from shoal.nets.bodies import body_of
from shoal.nets.continuous import Bounds
from shoal.nets.perceptrons import Critics
from shoal.nets.squashed import inward
from shoal.protocol.draws import key
from shoal.protocol.layout import Bundle


@dataclass(kw_only=True, eq=False, repr=False)
class BoxLearner(OffPolicyLearner):
    """The actor `pi` and the critics `q` of a method for Box actions with finite bounds, each with its Adam.

    actor: the module that is learned; a method says its form. bounds: those of the environment's actions. hidden, activation:
    of the critics. spaces, pictures: for observations of several parts or pictures, of which the critics make features together
    (nets/bodies.py). precision: of those features and of the critics' hidden layers. lr: learning rate of Adam.
    """

    actor: nn.Module = field(kw_only=False)
    bounds: Bounds
    spaces: Spaces | None = None
    pictures: str = "auto"
    precision: str = "float32"
    hidden: Sequence[int] = (256, 256)
    activation: str = "relu"
    lr: float
    tau: float = 0.005

    def __post_init__(self) -> None:
        super().__post_init__()
        self.actions = len(self.bounds.half)
        self.inward = inward(self.bounds, self.device)
        body = body_of(self.spaces, self.pictures, self.precision, key(self.seed, "critics' body") % 2**63)
        shape = () if body else self.layout.by_name["observation"].shape[2:]
        if self.spaces is not None and not isinstance(self.spaces.observation, Named):
            shape = self.spaces.observation.shape  # with frame_stack, that of several observations
        seed = key(self.seed, "critics") % 2**63
        sizes = (shape, self.actions, self.hidden, self.activation)
        critics = Critics(*sizes, seed=seed, body=body, precision=self.precision)
        self.pi = Trained("actor", self.actor, self.device, lr=self.lr, eps=1e-8, fused=True, beside=self.beside())
        self.q = Trained("critics", critics, self.device, lr=self.lr, eps=1e-8, fused=True)

    def beside(self) -> Sequence[nn.Parameter]:
        """The numbers that the actor's optimizer moves beside the actor's weights."""
        return ()

    def weights(self) -> Bundle:
        return self.pi.flat.bundle()
