"""Environments that a policy plays and a camera films: Atari's vector environment, and games of several agents.

The one idea: what is filmed is what was trained on. An Atari game is played twice, with one seed and the same actions: the
policy sees the one as in training, small, grey and stacked, and the camera sees the other in colour and whole.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from shoal.envs.agents import Parallel
from shoal.protocol.errors import UserError

RGB = "rgb_array"
FRAMES = 60  # of a game, in a second
WHOLE: Mapping[str, Any] = {"stack_num": 1, "grayscale": False, "img_height": 210, "img_width": 160}
"""Arguments of ale_py's vector environment that change what is seen and not what happens: the screen as it is."""


def filmed_atari(make: Callable[..., Any], arguments: Mapping[str, Any]) -> Any:
    """A gymnasium environment that is the game of `make(**arguments)`, a vector environment of one, and whose `render` gives
    the game's screen [210, 160, 3]: the maximum of the last two frames of a step."""
    import gymnasium

    class Filmed(gymnasium.Env[Any, Any]):
        metadata = {"render_modes": [RGB], "render_fps": FRAMES / arguments["frameskip"]}  # noqa: RUF012  gymnasium's own form
        render_mode = RGB

        def __init__(self) -> None:
            given = {**arguments, "autoreset_mode": "NextStep"}  # the last picture is of the episode that ended
            self.seen = make(**given)
            self.screen = make(**{**given, **WHOLE})
            self.observation_space, self.action_space = self.seen.single_observation_space, self.seen.single_action_space
            self.picture: Any = None

        def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[Any, dict[str, Any]]:
            both = int(np.random.randint(2**30)) if seed is None else seed
            observation, _ = self.seen.reset(seed=both)
            self.picture, _ = self.screen.reset(seed=both)
            return observation[0], {}

        def step(self, action: Any) -> tuple[Any, Any, bool, bool, dict[str, Any]]:
            given = np.asarray(action)[None]
            observation, reward, terminated, truncated, _ = self.seen.step(given)
            self.picture, *_ = self.screen.step(given)
            return observation[0], float(reward[0]), bool(terminated[0]), bool(truncated[0]), {}

        def render(self) -> Any:
            return self.picture[0, -1]

        def close(self) -> None:
            self.seen.close()
            self.screen.close()

    return Filmed()


def filmed_games(of: Parallel) -> Parallel:
    """The games of `of`, each made with render_mode="rgb_array". Making one raises UserError, one line, if a game gives no
    pictures."""

    def make() -> Any:
        plain: Callable[..., Any] = of.make
        game = plain(render_mode=RGB) if _takes_mode(plain) else plain()
        if (mode := getattr(game, "render_mode", RGB)) != RGB or not hasattr(game, "render"):
            gives = f"render_mode={mode!r}" if hasattr(game, "render") else "no function render"
            fix = f'let {of.__name__} take render_mode and hand it on, or make it with render_mode="{RGB}"'
            raise UserError(f"{of.__name__}() made a game with {gives}, which gives no pictures: {fix}")
        return game

    filmed = Parallel(make, of.policies, of.agent_ids)
    filmed.__name__ = of.__name__
    return filmed


def _takes_mode(make: Callable[..., Any]) -> bool:
    """True if the function takes an argument render_mode, by name or among any others, as PettingZoo's do."""
    known = inspect.signature(make).parameters
    return "render_mode" in known or any(one.kind is one.VAR_KEYWORD for one in known.values())
