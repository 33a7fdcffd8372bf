"""CartPole that shows positions and hides velocities: a policy without memory cannot balance the pole for long.

shoal simulate examples/blind.py                        # PPO with a GRU
shoal simulate examples/blind.py memory=none            # the same without memory
shoal simulate examples/blind.py:by_r2d2                # R2D2
"""

import gymnasium
import numpy as np
from gymnasium.wrappers.vector import TransformObservation

from shoal import Reinforcement


def env(num_envs):
    made = gymnasium.make_vec("CartPole-v1", num_envs=num_envs, vectorization_mode="vector_entry_point")
    positions = gymnasium.spaces.Box(-np.inf, np.inf, (2,), np.float32)
    return TransformObservation(made, lambda seen: seen[:, ::2], single_observation_space=positions)


small = {"hidden": (64,), "memory": "gru", "memory_size": 32}
job = Reinforcement(
    env, method="ppo", total_timesteps=100_000, clients=1, num_envs=32, rollout_length=32, lr=3e-3, reward_scale=0.1, **small
)
replayed = {"lr": 1e-3, "gamma": 0.99, "learning_starts": 1_000, "target_update_interval": 1, "tau": 0.02, "reward_scale": 0.1}
sequences = {"num_envs": 8, "rollout_length": 20, "burn_in": 4, "replay_ratio": 0.1, "priority_alpha": 0.6, "epsilon": 0.2}
by_r2d2 = Reinforcement(env, method="r2d2", total_timesteps=70_000, **small, **replayed, **sequences)
