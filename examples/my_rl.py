"""Reinforcement learning of your own: an environment, and a policy if you like.

shoal simulate examples/my_rl.py
shoal simulate examples/my_rl.py:by_id       # an environment that gymnasium knows, and the built-in policy
"""

import gymnasium
from torch import nn

from shoal import Reinforcement


def env():
    made = gymnasium.make("CartPole-v1")
    made.unwrapped.gravity = 1.6  # on the moon
    return made


class Policy(nn.Module):
    """From observations [..., 4] to (logits [..., 2], value [...]); for Box actions, to ((mean, log_std), value)."""

    def __init__(self, spaces):
        super().__init__()
        inputs, actions = spaces.observation.size, spaces.action.n
        self.actor = nn.Sequential(nn.Linear(inputs, 64), nn.ReLU(), nn.Linear(64, actions))
        self.critic = nn.Sequential(nn.Linear(inputs, 64), nn.ReLU(), nn.Linear(64, 1))

    def forward(self, observation):
        return self.actor(observation), self.critic(observation).squeeze(-1)


job = Reinforcement(env, Policy, method="ppo", total_timesteps=100_000, clients=1, lr=3e-3)
by_id = Reinforcement("CartPole-v1")
