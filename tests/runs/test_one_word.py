"""One word goes from one method to another: the same job, the same environment, another learner."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from typed import mistake

import shoal
from shoal import Reinforcement
from shoal.protocol.errors import UserError

ON_ANY = ("ppo", "a2c", "impala", "appo")
SHORT: dict[str, Any] = {"total_timesteps": 64, "num_envs": 2, "rollout_length": 8, "eval_episodes": 2, "hidden": (8,)}


@pytest.mark.parametrize(
    ("env", "method"),
    [
        *(("Pendulum-v1", method) for method in (*ON_ANY, "sac", "td3")),
        *(("CartPole-v1", method) for method in (*ON_ANY, "dqn", "apex")),
    ],
)
def test_the_same_job_runs_by_every_method_that_takes_its_actions(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, env: str, method: str
) -> None:
    monkeypatch.chdir(tmp_path)
    run = shoal.run(Reinforcement(env, method=method, **SHORT), actors=0, show=False)
    assert run.summary["steps"] >= 32
    assert np.isfinite(run.metrics["eval/return_mean"])
    seen = np.zeros(3 if env == "Pendulum-v1" else 4, np.float32)
    action = run.policy().act(seen)
    assert action in (0, 1) if env == "CartPole-v1" else action.shape == (1,)


@pytest.mark.parametrize(
    ("env", "method", "setting", "owners"),
    [
        ("Pendulum-v1", "sac", "clip_coef", "ppo, appo"),
        ("Pendulum-v1", "sac", "gae_lambda", "ppo, a2c"),
        ("Pendulum-v1", "td3", "autotune", "sac"),
        ("CartPole-v1", "dqn", "update_epochs", "ppo, appo"),
        ("CartPole-v1", "ppo", "policy_delay", "td3"),
    ],
)
def test_a_setting_that_the_method_lacks_is_refused_by_name(env: str, method: str, setting: str, owners: str) -> None:
    with pytest.raises(UserError, match=f"^{setting}=1: {setting} is a setting of {owners}; this job's method is {method}$"):
        Reinforcement(env, method=method, **{setting: 1})


@pytest.mark.parametrize(
    ("env", "method", "fix"), [("Pendulum-v1", "dqn", "method=sac or ppo"), ("CartPole-v1", "sac", "method=dqn or method=ppo")]
)
def test_a_method_for_other_actions_is_refused_with_those_that_take_them(env: str, method: str, fix: str) -> None:
    assert fix in mistake("simulate", f"gymnasium:{env}", f"method={method}", "total_timesteps=64")
