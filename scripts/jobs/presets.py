"""Settings by family of environments, from published tables: what a job starts from if nobody says otherwise.

The one idea: a preset is a row of plain settings with its source. It stands between a setting's default and what the user gave,
and it is written into config.toml like any other value, so that a run is repeated by its file and not by this table.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from typing import Any

from shoal.envs.pooled import PHYSICS, game_of

ZOO = "rl-baselines3-zoo, hyperparams"
SB3 = {  # Stable-Baselines3's defaults of PPO, from which the zoo's rows start; its value loss is twice the one here
    "lr": 3e-4,
    "anneal_lr": False,
    "gamma": 0.99,
    "gae_lambda": 0.95,
    "clip_coef": 0.2,
    "update_epochs": 10,
    "ent_coef": 0.0,
    "vf_coef": 1.0,
    "max_grad_norm": 0.5,
}
NORMAL = {"norm_obs": True, "norm_reward": True}

WIDE: Mapping[str, Any] = {"hidden": (256, 256), "activation": "relu"}  # the networks of SAC's paper
ZOOS: Mapping[str, Any] = {"hidden": (400, 300), "activation": "relu", "learning_starts": 10_000}


@dataclass(frozen=True, slots=True)
class Preset:
    """A row: the ids that it is for, as patterns of the shell; the method; where its settings are from; the settings."""

    ids: tuple[str, ...]
    method: str
    source: str
    settings: Mapping[str, Any]

    def fits(self, env: str, method: str) -> bool:
        return method == self.method and any(fnmatchcase(env, pattern) for pattern in self.ids)

    def without(self, names: Collection[str]) -> Preset:
        """The row without these settings."""
        return replace(self, settings={name: value for name, value in self.settings.items() if name not in names})


def rounds(rows: int, batch_size: int, num_envs: int, clients: int = 2) -> dict[str, int]:
    """The settings of rounds of `rows` rows, from `clients` trajectories of num_envs environments, and minibatches of
    batch_size."""
    return {
        "clients": clients,
        "num_envs": num_envs,
        "rollout_length": rows // (clients * num_envs),
        "num_minibatches": rows // batch_size,
    }


MUJOCO = tuple(f"{name}-v[2-9]" for name in PHYSICS)
EVERY_ID = ("*",)
ATARI = ("ALE/*", "*NoFrameskip-v[0-9]", "*Deterministic-v[0-9]")
STACKED: Mapping[str, Any] = {"frame_stack": 4}  # the stacks of ale_py's vector environment

CARTPOLE_VALUES: Mapping[str, Any] = {
    "total_timesteps": 50_000,
    "num_envs": 8,
    "rollout_length": 8,
    "hidden": (128, 128),
    "activation": "relu",
    "batch_size": 128,
    "target_update_interval": 1,
}

PRESETS: Sequence[Preset] = (
    Preset(
        ("CartPole-v[01]",),
        "impala",
        "tuned here for few seconds, docs/presets.md",
        {
            "total_timesteps": 4_000_000,
            "num_envs": 512,
            "rollout_length": 32,
            "batch": 1,
            "num_minibatches": 2,
            "lr": 4e-3,
            "optimizer": "rmsprop",
            "rms_prop_eps": 3e-3,
            "ent_coef": 0.003,
            "vf_coef": 1.0,
            "max_grad_norm": 0.5,
            "reward_scale": 0.05,
        },
    ),
    Preset(
        ("CartPole-v[01]",),
        "ppo",
        "tuned here for few steps, docs/presets.md",
        {
            "total_timesteps": 150_000,
            "clients": 1,
            "num_envs": 8,
            "rollout_length": 64,
            "num_minibatches": 8,
            "update_epochs": 10,
            "lr": 2e-3,
            "ent_coef": 0.0,
            "reward_scale": 0.05,
        },
    ),
    Preset(
        ("CartPole-v[01]",),
        "dqn",
        "tuned here, docs/replay.md",
        {
            **CARTPOLE_VALUES,
            "lr": 5e-4,
            "replay_ratio": 0.5,
            "tau": 0.01,
            "exploration_fraction": 0.16,
            "exploration_final_eps": 0.04,
        },
    ),
    Preset(
        ("CartPole-v[01]",),
        "apex",
        "tuned here, docs/replay.md",
        {**CARTPOLE_VALUES, "lr": 1e-3, "replay_ratio": 0.25, "tau": 0.02, "reward_scale": 0.1},
    ),
    Preset(
        ("CartPole-v[01]",),
        "appo",
        "tuned here for few steps, docs/presets.md",
        {
            "total_timesteps": 500_000,
            "batch": 1,
            "num_envs": 32,
            "rollout_length": 32,
            "lr": 1e-3,
            "ent_coef": 0.0,
            "reward_scale": 0.05,
        },
    ),
    Preset(
        ("CartPole-v[01]",),
        "a2c",
        "tuned here for few steps, docs/presets.md",
        {
            "total_timesteps": 100_000,
            "clients": 1,
            "num_envs": 8,
            "rollout_length": 5,
            "lr": 2e-3,
            "anneal_lr": False,
            "ent_coef": 0.0,
            "reward_scale": 0.05,
        },
    ),
    Preset(("CartPole-v[01]",), "es", "tuned here, docs/reinforcement.md", {"hidden": (16,), "lr": 0.1}),
    Preset(
        ("Acrobot-v1",),
        "ppo",
        f"{ZOO}/ppo.yml, Acrobot-v1",
        {**SB3, **NORMAL, **rounds(4096, 64, 8), "total_timesteps": 1_000_000, "gae_lambda": 0.94, "update_epochs": 4},
    ),
    Preset(
        ("MountainCar-v0",),
        "ppo",
        f"{ZOO}/ppo.yml, MountainCar-v0",
        {**SB3, **NORMAL, **rounds(256, 64, 8), "total_timesteps": 1_000_000, "gae_lambda": 0.98, "update_epochs": 4},
    ),
    Preset(
        ("MountainCarContinuous-v0", "Pendulum-v[01]"),
        "ppo",
        f"{ZOO}/ppo.yml, Pendulum-v1, without its state-dependent noise, with normalisation",
        {**SB3, **NORMAL, **rounds(4096, 64, 8), "total_timesteps": 200_000, "lr": 1e-3, "gamma": 0.9},
    ),
    Preset(
        ("LunarLander-v[23]",),
        "ppo",
        "tuned here for few steps, docs/presets.md",
        {
            **rounds(4096, 256, 8),
            "total_timesteps": 500_000,
            "lr": 1e-3,
            "gamma": 0.995,
            "gae_lambda": 0.98,
            "update_epochs": 8,
            "ent_coef": 0.0,
            "reward_scale": 0.02,
            "norm_obs": True,
            "hidden": (128, 128),
        },
    ),
    Preset(
        ("LunarLander-v[23]",),
        "dqn",
        f"{ZOO}/dqn.yml, LunarLander-v2, with double targets",
        {
            "total_timesteps": 100_000,
            "num_envs": 4,
            "rollout_length": 8,
            "hidden": (256, 256),
            "activation": "relu",
            "lr": 6.3e-4,
            "buffer_size": 50_000,
            "batch_size": 128,
            "replay_ratio": 1.0,
            "learning_starts": 0,
            "target_update_interval": 250,
            "exploration_fraction": 0.12,
            "exploration_final_eps": 0.1,
        },
    ),
    Preset(
        ("LunarLanderContinuous-v[23]",),
        "ppo",
        f"{ZOO}/ppo.yml, LunarLanderContinuous-v2",
        {
            **SB3,
            **rounds(16_384, 64, 8),
            "total_timesteps": 1_000_000,
            "gamma": 0.999,
            "gae_lambda": 0.98,
            "update_epochs": 4,
            "ent_coef": 0.01,
        },
    ),
    Preset(
        ("BipedalWalker-v3",),
        "ppo",
        f"{ZOO}/ppo.yml, BipedalWalker-v3",
        {**SB3, **NORMAL, **rounds(65_536, 64, 16), "total_timesteps": 5_000_000, "gamma": 0.999, "clip_coef": 0.18},
    ),
    Preset(
        ("BipedalWalkerHardcore-v3",),
        "ppo",
        f"{ZOO}/ppo.yml, BipedalWalkerHardcore-v3",
        {
            **SB3,
            **NORMAL,
            **rounds(32_768, 64, 8),
            "total_timesteps": 100_000_000,
            "lr": 2.5e-4,
            "anneal_lr": True,
            "ent_coef": 0.001,
        },
    ),
    Preset(
        MUJOCO,
        "ppo",
        "CleanRL, ppo_continuous_action.py: one table for all of MuJoCo",
        {**SB3, **NORMAL, **rounds(2048, 64, 4), "total_timesteps": 1_000_000, "anneal_lr": True, "vf_coef": 0.5},
    ),
    Preset(
        ATARI,
        "ppo",
        f"{ZOO}/ppo.yml, atari",
        {
            **SB3,
            **rounds(1024, 256, 4),
            "total_timesteps": 10_000_000,
            "lr": 2.5e-4,
            "anneal_lr": True,
            "clip_coef": 0.1,
            "update_epochs": 4,
            "ent_coef": 0.01,
            "max_reward": 1.0,
            **STACKED,
        },
    ),
    Preset(
        ATARI,
        "impala",
        "Espeholt et al. 2018, table G.1, whose losses are sums over 640 rows, and not means: hence the last two",
        {
            "total_timesteps": 10_000_000,
            "batch": 1,
            "num_envs": 32,
            "rollout_length": 20,
            "lr": 6e-4,
            "optimizer": "rmsprop",
            "ent_coef": 0.01,
            "max_reward": 1.0,
            "max_grad_norm": 40.0 / 640,
            "rms_prop_eps": round(0.01**0.5 / 640, 6),  # theirs is added under the root
            **STACKED,
        },
    ),
    Preset(
        ATARI,
        "dqn",
        "CleanRL, dqn_atari.py, with a tenth of its replay, double targets and Huber's loss",
        {
            "total_timesteps": 10_000_000,
            "num_envs": 8,
            "rollout_length": 16,
            "lr": 1e-4,
            "buffer_size": 100_000,
            "batch_size": 32,
            "replay_ratio": 0.25,
            "learning_starts": 80_000,
            "target_update_interval": 250,  # gradient steps: theirs is 1,000 environment steps, four to each of these
            "exploration_fraction": 0.1,
            "exploration_final_eps": 0.01,
            "max_reward": 1.0,
            **STACKED,
        },
    ),
    *(
        Preset(("ALE/*",), method, "the stacks of ale_py's vector environment, made where they are learned from", STACKED)
        for method in ("appo", "a2c", "apex")
    ),
    Preset(
        ("MiniGrid-*", "BabyAI-*"),
        "ppo",
        f"{ZOO}/ppo.yml, MiniGrid-DoorKey-5x5-v0, without its normalisation",
        {**SB3, **rounds(1024, 64, 4), "total_timesteps": 100_000, "lr": 2.5e-4},
    ),
    Preset(
        ("Pendulum-v[01]",),
        "sac",
        f"{ZOO}/sac.yml, Pendulum-v1",
        {**WIDE, "total_timesteps": 20_000, "lr": 1e-3},
    ),
    Preset(
        MUJOCO,
        "sac",
        f"{ZOO}/sac.yml, HalfCheetah-v4: one table for all of MuJoCo",
        {**WIDE, "total_timesteps": 1_000_000, "buffer_size": 1_000_000, "learning_starts": 10_000},
    ),
    Preset(
        ("LunarLander*-v[23]",),
        "sac",
        f"{ZOO}/sac.yml, LunarLanderContinuous-v2, without its falling learning rate",
        {**ZOOS, "total_timesteps": 500_000, "buffer_size": 1_000_000, "lr": 7.3e-4, "tau": 0.01},
    ),
    Preset(
        ("BipedalWalker*-v3",),
        "sac",
        f"{ZOO}/sac.yml, BipedalWalker-v3, without its state-dependent noise",
        {
            **ZOOS,
            "total_timesteps": 500_000,
            "num_envs": 4,
            "rollout_length": 16,
            "buffer_size": 300_000,
            "lr": 7.3e-4,
            "gamma": 0.98,
            "tau": 0.02,
        },
    ),
    Preset(EVERY_ID, "sac", "Stable-Baselines3's defaults", WIDE),
    Preset(
        ("Pendulum-v[01]",),
        "td3",
        f"{ZOO}/td3.yml, Pendulum-v1",
        {**ZOOS, "total_timesteps": 20_000, "buffer_size": 200_000, "gamma": 0.98},
    ),
    Preset(
        MUJOCO,
        "td3",
        f"{ZOO}/td3.yml, HalfCheetah-v4: one table for all of MuJoCo",
        {**ZOOS, "total_timesteps": 1_000_000, "buffer_size": 1_000_000},
    ),
    Preset(
        ("LunarLander*-v[23]",),
        "td3",
        f"{ZOO}/td3.yml, LunarLanderContinuous-v2",
        {**ZOOS, "total_timesteps": 300_000, "buffer_size": 200_000, "gamma": 0.98},
    ),
    Preset(
        ("BipedalWalker*-v3",),
        "td3",
        f"{ZOO}/td3.yml, BipedalWalker-v3",
        {**ZOOS, "total_timesteps": 1_000_000, "buffer_size": 200_000, "gamma": 0.98},
    ),
    Preset(EVERY_ID, "td3", "Stable-Baselines3's defaults", {"hidden": (400, 300), "activation": "relu"}),
)


def found(env: Any, method: str) -> Preset | None:
    """The preset of an environment's id, which may have its module in front, and a method's name; None if there is none. An
    Atari game of EnvPool has that of ALE's id. A factory of environments has no id: only a row of "*" is for it."""
    game = game_of(env)
    name = f"ALE/{game}" if game else env.rpartition(":")[2] if isinstance(env, str) else ""
    return next((row for row in PRESETS if row.fits(name, method)), None)
