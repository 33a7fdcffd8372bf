"""Families of environments that have presets, as `shoal jobs` lists them.

The one idea: a family is a name and ids that a user can type. Which methods have a row for it follows from the presets.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from shoal.jobs.presets import EVERY_ID, PRESETS, STACKED

FAMILIES: Mapping[str, tuple[str, ...]] = {
    "CartPole": ("CartPole-v1",),
    "Acrobot": ("Acrobot-v1",),
    "MountainCar": ("MountainCar-v0", "MountainCarContinuous-v0"),
    "Pendulum": ("Pendulum-v1",),
    "LunarLander": ("LunarLander-v3", "LunarLanderContinuous-v3"),
    "BipedalWalker": ("BipedalWalker-v3", "BipedalWalkerHardcore-v3"),
    "MuJoCo": ("HalfCheetah-v5", "Ant-v5", "Humanoid-v5"),
    "Atari": ("ALE/Pong-v5",),
    "MiniGrid": ("MiniGrid-DoorKey-5x5-v0", "BabyAI-GoToObj-v0"),
}
"""Name of a family -> ids of it, of which `shoal jobs` shows the first. Each row of PRESETS is for one of these ids."""
HEAD = "Families with a preset for a method, published or tuned here; shoal jobs gymnasium:ID method=NAME lists its settings:"


def methods_of(ids: tuple[str, ...]) -> list[str]:
    """The methods that have a preset for one of these ids, in the order of PRESETS. A preset for any id is left out, and one
    that only says where frames are stacked."""
    told = [row for row in PRESETS if row.ids != EVERY_ID and row.without(STACKED).settings]
    rows = [row for row in told if any(row.fits(env, row.method) for env in ids)]
    return list(dict.fromkeys(row.method for row in rows))


def lines() -> Iterator[str]:
    """A line for each family: its name, an id, and the methods that have a preset for it. Then one for all other ids."""
    rows = [(name, ids[0], methods_of(ids)) for name, ids in FAMILIES.items()]
    for name, env, methods in [*rows, ("any other", "ID", [row.method for row in PRESETS if row.ids == EVERY_ID])]:
        yield f"{name:<16}gymnasium:{env:<26}{', '.join(methods)}"
