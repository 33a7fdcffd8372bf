"""Presets: settings by family of environments, which nobody gave."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from shoal.commands.cli import main
from shoal.jobs.catalog import find, recalled
from shoal.jobs.families import FAMILIES, HEAD, methods_of
from shoal.jobs.methods import METHODS
from shoal.jobs.methods.impala import IMPALA
from shoal.jobs.methods.ppo import PPO
from shoal.jobs.presets import PRESETS, Preset, found
from shoal.jobs.reinforcement import Reinforcement
from shoal.jobs.settings import coerced, ranges, shown
from shoal.protocol.errors import UserError

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.parametrize("row", PRESETS, ids=lambda row: f"{row.method} {row.ids[0]}")
def test_a_row_has_settings_of_its_method_and_its_source(row: Preset) -> None:
    known = Reinforcement("CartPole-v1", method=row.method).options()
    for name, value in row.settings.items():
        assert coerced(name, value, known[name]) == value
    assert row.source
    assert row.method in METHODS
    assert {"num_envs", "rollout_length"} & row.settings.keys() or row.method != "ppo"


@pytest.mark.parametrize("row", PRESETS, ids=lambda row: f"{row.method} {row.ids[0]}")
def test_a_row_stands_in_the_docs_as_it_is(row: Preset) -> None:
    settings = " ".join(f"`{name}={shown(value)}`" for name, value in row.settings.items())
    line = f"| {', '.join(f'`{one}`' for one in row.ids)} | {row.method} | {row.source} | {settings} |"
    assert line in (ROOT / "docs/presets.md").read_text().splitlines()


@pytest.mark.parametrize("size", [1e-7, 1e-5, 1e-3, 0.1])  # of each number of the mean losses' gradient
def test_the_row_of_impala_on_atari_makes_the_papers_step_although_its_losses_are_means(size: float) -> None:
    row = found("ALE/Pong-v5", "impala")
    assert row is not None
    its: dict[str, Any] = dict(row.settings)
    rows, weights = its["batch"] * its["num_envs"] * its["rollout_length"], 1_000
    summed = rows * size
    summed *= min(1.0, 40.0 / (summed * weights**0.5))
    paper = 0.0006 * summed / (summed**2 + 0.01) ** 0.5  # TensorFlow's RMSProp, its mean square having settled
    mean = size * min(1.0, its["max_grad_norm"] / (size * weights**0.5))
    ours = its["lr"] * mean / (mean + its["rms_prop_eps"])
    assert 0.5**0.5 - 0.01 < ours / paper < 1.01  # the root of a sum is at most the sum of roots


@pytest.mark.parametrize(
    ("env", "family"),
    [
        ("HalfCheetah-v5", "HalfCheetah-v[2-9]"),
        ("ale_py:ALE/Pong-v5", "ALE/*"),
        ("LunarLander-v3", "LunarLander-v[23]"),
        ("LunarLanderContinuous-v3", "LunarLanderContinuous-v[23]"),
        ("minigrid:MiniGrid-Empty-5x5-v0", "MiniGrid-*"),
        ("FrozenLake-v1", None),
    ],
)
def test_an_id_finds_its_family(env: str, family: str | None) -> None:
    row = found(env, "ppo")
    assert (row and family in row.ids) or (row is None and family is None)


def made(**settings: Any) -> dict[str, Any]:
    return Reinforcement("CartPole-v1", **settings).plain()


def test_what_nobody_gave_is_the_presets_and_what_somebody_gave_stays() -> None:
    row = found("CartPole-v1", "ppo")
    assert row is not None
    assert row.settings.items() <= made(method="ppo").items()
    mine = made(method="ppo", lr=0.5, gamma=0.99)
    assert (mine["lr"], mine["gamma"]) == (0.5, 0.99)  # 0.99 is the default too, and was given
    assert mine["update_epochs"] == row.settings["update_epochs"]


def test_a_choice_that_somebody_gave_leaves_out_what_the_preset_says_of_another_choice() -> None:
    row = found("CartPole-v1", "impala")
    assert row is not None
    assert row.settings["optimizer"] == "rmsprop"
    defaults = ranges(IMPALA)
    for at_once in (True, False):
        choice = {"optimizer": "adam"}
        plain = made(**choice) if at_once else Reinforcement("CartPole-v1").configured(choice).plain()
        assert (plain["optimizer"], plain["rms_prop_eps"]) == ("adam", defaults["rms_prop_eps"].default)
        rest = row.settings.keys() - {"optimizer", "rms_prop_eps"}
        assert {name: plain[name] for name in rest} == {name: row.settings[name] for name in rest}
    there = Reinforcement("CartPole-v1").configured({"optimizer": "adam"})
    assert there.configured({"optimizer": "rmsprop"}).plain() == made()
    with pytest.raises(UserError, match="rms_prop_eps is a setting of optimizer=rmsprop; this job has optimizer=adam"):
        made(optimizer="adam", rms_prop_eps=0.5)


def test_another_method_brings_its_own_row_and_leaves_none_of_the_others() -> None:
    there = Reinforcement("CartPole-v1", method="ppo", lr=0.5)
    other = there.configured({"method": "impala"}).plain()
    assert other == made(method="impala", lr=0.5)
    assert there.configured({"method": "impala"}).configured({"method": "ppo"}).plain() == there.plain()


@pytest.mark.parametrize(
    "changes",
    [{"method": "ppo", "norm_reward": True}, {"method": "r2d2"}, {"method": "es"}, {"env.stack_num": "4"}, {"vector": "sync"}],
    ids=str,
)
def test_a_preset_stacks_no_frames_where_what_somebody_chose_refuses_it(changes: dict[str, Any]) -> None:
    there = find("gymnasium:ALE/Pong-v5")
    assert there.plain()["frame_stack"] == 4
    chosen = there.configured(changes)
    assert chosen.plain()["frame_stack"] == 1
    assert chosen.plain() == Reinforcement("ALE/Pong-v5", **{"method": "ppo", **changes}).plain()
    if row := found("ALE/Pong-v5", chosen.method.name):  # all else in the row stays
        rest = row.without(["frame_stack"]).settings
        assert {name: chosen.plain()[name] for name in rest} == rest


def test_a_preset_stacks_frames_again_where_nothing_refuses_it_any_more() -> None:
    scaled = find("gymnasium:ALE/Pong-v5").configured({"norm_reward": True})
    assert scaled.configured({"norm_reward": False}).plain()["frame_stack"] == 4
    assert scaled.configured({"method": "dqn"}).plain()["frame_stack"] == 4


def test_frames_that_somebody_stacks_are_refused_together_with_scaled_rewards() -> None:
    with pytest.raises(UserError, match=r"^frame_stack=4: norm_obs and norm_reward scale single observations"):
        find("gymnasium:ALE/Pong-v5").configured({"frame_stack": 4, "norm_reward": True})


def test_none_leaves_the_defaults() -> None:
    plain = Reinforcement("CartPole-v1", method="ppo").configured({"preset": "none"})
    for name, allowed in ranges(PPO).items():
        assert plain.plain()[name] == allowed.default
    assert plain.preset is None


def test_a_method_that_was_made_and_a_factory_take_no_preset() -> None:
    assert Reinforcement("CartPole-v1", method=PPO(lr=0.1)).method == PPO(lr=0.1)
    assert Reinforcement(lambda: None, method="ppo").method == PPO()


def test_one_word_goes_from_ppo_to_sac() -> None:
    there = find("gymnasium:Pendulum-v1")
    row = found("Pendulum-v1", "sac")
    assert row is not None
    learns = there.configured({"method": "sac"}).plain()
    assert [shown(learns[name]) for name in row.settings] == [shown(value) for value in row.settings.values()]
    own = find("gymnasium:FrozenLake-v1")  # a job of settings that were tuned for PPO
    for method in ("sac", "dqn"):
        plain, factory = own.configured({"method": method}).plain(), Reinforcement(lambda: None, method=method).plain()
        assert plain == factory
    assert factory["reward_scale"] == 1.0 != own.plain()["reward_scale"]


def test_a_file_repeats_its_run_whatever_the_table_says() -> None:
    job = find("gymnasium:HalfCheetah-v5").configured({"preset": "auto", "gamma": "0.9"})
    assert recalled("gymnasium:HalfCheetah-v5", job.plain(), 0).plain() == job.plain()
    before = {name: value for name, value in job.plain().items() if name not in ("preset", "norm_obs", "norm_reward", "lr")}
    older = recalled("gymnasium:HalfCheetah-v5", before, 0)  # a file from before there were presets
    assert older.plain()["lr"] == ranges(PPO)["lr"].default
    assert older.plain()["gamma"] == 0.9


def test_jobs_lists_the_families_with_their_methods(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["jobs"]) == 0
    head, *rows = capsys.readouterr().out.partition("\n\n")[2].splitlines()
    assert head == HEAD
    told = [(row[:16].strip(), *row[16:].split(None, 1)) for row in rows]
    assert told == [
        ("CartPole", "gymnasium:CartPole-v1", "impala, ppo, dqn, apex, appo, a2c, es"),
        ("Acrobot", "gymnasium:Acrobot-v1", "ppo"),
        ("MountainCar", "gymnasium:MountainCar-v0", "ppo"),
        ("Pendulum", "gymnasium:Pendulum-v1", "ppo, sac, td3"),
        ("LunarLander", "gymnasium:LunarLander-v3", "ppo, dqn, sac, td3"),
        ("BipedalWalker", "gymnasium:BipedalWalker-v3", "ppo, sac, td3"),
        ("MuJoCo", "gymnasium:HalfCheetah-v5", "ppo, sac, td3"),
        ("Atari", "gymnasium:ALE/Pong-v5", "ppo, impala, dqn"),
        ("MiniGrid", "gymnasium:MiniGrid-DoorKey-5x5-v0", "ppo"),
        ("any other", "gymnasium:ID", "sac, td3"),
    ]


def test_each_row_is_of_a_family_and_each_id_of_a_family_has_a_row() -> None:
    ids = [env for family in FAMILIES.values() for env in family]
    assert [row.ids for row in PRESETS if not any(row.fits(env, row.method) for env in ids)] == []
    assert [env for env in ids if not methods_of((env,))] == []


def test_jobs_tells_what_is_chosen_and_from_where(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["jobs", "gymnasium:Pendulum-v1"]) == 0
    told = capsys.readouterr().out
    row = found("Pendulum-v1", "ppo")
    assert row is not None
    assert f"From the preset ({row.source}), unless you set them: lr=0.001 " in told
    assert main(["jobs", "gymnasium:Pendulum-v1", "method=td3", "lr=0.5"]) == 0
    told = capsys.readouterr().out
    assert "method=td3 " in told
    assert "lr=0.5 " in told
    assert "exploration_noise=0.1 " in told
    assert main(["jobs", "gymnasium:FrozenLake-v1"]) == 0
    assert "From the preset" not in capsys.readouterr().out


def test_a_wrong_word_is_refused() -> None:
    with pytest.raises(UserError, match="preset=zoo: allowed is one of auto, none"):
        made(preset="zoo")
