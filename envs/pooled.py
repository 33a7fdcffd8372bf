"""Environments of EnvPool as a gymnasium VectorEnv: `envpool:TASK` in the place of an id.

The one idea: EnvPool takes a seed where environments are made, and ignores the one of `reset`. So environments are made at a
reset that has a seed, and what an episode is follows from that seed, as with every other environment.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from shoal.protocol.errors import UserError

POOLED = "envpool:"  # begins the name of an environment of EnvPool
THREADS = 1  # of each actor, unless env.num_threads says more: actors share the cores
PHYSICS = (
    "Ant",
    "HalfCheetah",
    "Hopper",
    "Humanoid",
    "HumanoidStandup",
    "InvertedDoublePendulum",
    "InvertedPendulum",
    "Pusher",
    "Reacher",
    "Swimmer",
    "Walker2d",
)
"""Names of gymnasium's MuJoCo environments, without their versions. EnvPool has them as -v5 too, beside its Atari games."""
ATARI: Mapping[str, Any] = {
    "repeat_action_probability": 0.0,
    "frame_skip": 4,
    "full_action_space": False,
    "episodic_life": False,
    "noop_max": 30,
    "use_fire_reset": True,
    "reward_clip": False,
}
"""Arguments of EnvPool's Atari games, where nothing else is said: those of OpenAI Baselines, with no-ops in place of sticky
actions."""


def is_pooled(env: Any) -> bool:
    return isinstance(env, str) and env.startswith(POOLED)


def game_of(env: Any) -> str:
    """The game of an Atari task of EnvPool, "Pong-v5" of "envpool:Pong-v5"; "" if it is none."""
    name, _, version = env.removeprefix(POOLED).rpartition("-") if is_pooled(env) else ("", "", "")
    return f"{name}-{version}" if version == "v5" and name not in PHYSICS else ""


def told(given: Mapping[str, Any]) -> str:
    """The preprocessing of an Atari game in one line, to be told beside each result. given: the user's arguments."""
    named = ", ".join(f"{name}={str(given.get(name, default)).lower()}" for name, default in ATARI.items())
    size = f"{given.get('img_height', 84)}x{given.get('img_width', 84)} {'grey' if given.get('gray_scale', True) else 'RGB'}"
    return f"atari: as EnvPool gives it: {named}, {size}, stack_num={given.get('stack_num', 4)}; env.NAME=value changes one"


def pooled(env: str, num_envs: int, arguments: Mapping[str, Any], time_limit: int = 0) -> Any:
    """A VectorEnv of `num_envs` environments of EnvPool's task. env: envpool:TASK. arguments: of envpool.make. time_limit:
    steps at which an episode is truncated; 0: EnvPool's own limit. Raises UserError for a task or an argument that EnvPool
    refuses, and if EnvPool is not installed."""
    import gymnasium

    try:
        import envpool
    except ImportError as error:
        raise UserError(f"environment {env!r} needs envpool: pip install 'shoal[envpool]' ({error})") from error
    limit = {"max_episode_steps": time_limit} if time_limit else {}
    given = {"num_threads": THREADS, **arguments, **limit}
    task = env.removeprefix(POOLED)

    def made(seed: int) -> Any:
        try:
            with _no_remarks():
                pool = envpool.make(task, env_type="gymnasium", num_envs=num_envs, batch_size=num_envs, seed=seed, **given)
                _ = pool.observation_space, pool.action_space  # which a pool computes when it is first asked
                return pool
        except (AssertionError, KeyError, TypeError, ValueError, RuntimeError) as error:
            typed = " ".join(f"env.{name}={value}" for name, value in arguments.items())
            cannot = f"environment {env!r} cannot be made: {' '.join(str(error).split())[:200]}"
            raise UserError(f"{typed}: {cannot}" if typed else cannot) from error

    class Pooled(gymnasium.vector.VectorEnv[Any, Any, Any]):
        metadata = {"autoreset_mode": gymnasium.vector.AutoresetMode.NEXT_STEP}  # noqa: RUF012  as gymnasium declares it

        def __init__(self) -> None:
            self.num_envs, self.pool, self.seed = num_envs, made(0), 0
            self.single_observation_space, self.single_action_space = self.pool.observation_space, self.pool.action_space
            batched = gymnasium.vector.utils.batch_space
            self.observation_space = batched(self.single_observation_space, num_envs)
            self.action_space = batched(self.single_action_space, num_envs)

        def reset(self, *, seed: Any = None, options: Any = None) -> tuple[Any, dict[str, Any]]:
            if isinstance(seed, int):
                self.pool.close()
                self.pool, self.seed = made(seed), seed
            return self.pool.reset()  # type: ignore[no-any-return]

        def step(self, actions: Any) -> tuple[Any, Any, Any, Any, dict[str, Any]]:
            return self.pool.step(actions)  # type: ignore[no-any-return]

        def close_extras(self, **kwargs: Any) -> None:
            self.pool.close()

    return Pooled()


@contextmanager
def _no_remarks() -> Iterator[None]:
    """Leave out gymnasium's remark that EnvPool's bounds are rounded to float32."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", ".*precision lowered by casting", UserWarning)
        yield
