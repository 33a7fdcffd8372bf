"""Environments of EnvPool as a gymnasium VectorEnv: `envpool:TASK` in the place of an id.

The one idea: EnvPool takes a seed where environments are made, and ignores the one of `reset`. So environments are made at a
reset that has a seed, and what an episode is follows from that seed, as with every other environment.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from shoal.protocol.errors import UserError

POOLED = "envpool:"  # begins the name of an environment of EnvPool
THREADS = 1  # of each actor, unless env.num_threads says more: actors share the cores


def is_pooled(env: Any) -> bool:
    return isinstance(env, str) and env.startswith(POOLED)


def pooled(env: str, num_envs: int, arguments: Mapping[str, Any], time_limit: int = 0) -> Any:
    """A VectorEnv of `num_envs` environments of EnvPool's task. env: envpool:TASK. arguments: of envpool.make. time_limit:
    steps at which an episode is truncated; 0: EnvPool's own limit. Raises UserError for a task or an argument that EnvPool
    refuses, and if EnvPool is not installed."""
    import gymnasium

    try:
        import envpool
    except ImportError as error:
        raise UserError(f"environment {env!r} needs envpool: pip install envpool ({error})") from error
    limit = {"max_episode_steps": time_limit} if time_limit else {}
    given = {"num_threads": THREADS, **arguments, **limit}
    task = env.removeprefix(POOLED)

    def made(seed: int) -> Any:
        try:
            return envpool.make(task, env_type="gymnasium", num_envs=num_envs, batch_size=num_envs, seed=seed, **given)
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
