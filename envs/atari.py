"""Atari games (ids ALE/...) as they are usually learned: ale_py's vector environment, by the protocol of Machado et al. 2018.

The one idea: what is done to the game is arguments of the environment, under ale_py's names, with defaults of their own; so
each can be changed by env.NAME=value, and a run says all of them.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

BEGIN = "ALE/"  # of an id
STANDARD: Mapping[str, Any] = {
    "repeat_action_probability": 0.25,  # sticky actions
    "frameskip": 4,
    "full_action_space": True,
    "episodic_life": False,
    "noop_max": 0,
    "use_fire_reset": False,
    "reward_clipping": False,
    "stack_num": 4,
    "num_threads": 1,  # of each actor: actors share the cores
}
"""Arguments of ale_py.AtariVectorEnv. Machado et al. 2018: sticky actions in place of random no-ops, all 18 actions, episodes
that end with the game and not with a life. The frame skip is that of ALE's v5 ids, 4; theirs was 5."""
SAID = ("repeat_action_probability", "frameskip", "full_action_space", "episodic_life", "noop_max", "reward_clipping")

SINGLE: Mapping[str, Any] = {
    "repeat_action_probability": 0.25,
    "frameskip": 4,
    "full_action_space": False,
    "obs_type": "rgb",
}
"""Arguments of ale_py.AtariEnv, the single environment, where an id says nothing else. It ends an episode with the game, has no
random no-ops and does not clip rewards."""


def is_atari(env: Any) -> bool:
    return isinstance(env, str) and env.rpartition(":")[2].startswith(BEGIN)


def arguments(given: Mapping[str, Any], time_limit: int) -> dict[str, Any]:
    """The arguments of the vector environment. given: the user's. time_limit: steps of an episode at most (0: ale_py's limit of
    108,000 frames)."""
    whole = {**STANDARD, **given}
    limit = {"max_num_frames_per_episode": time_limit * int(whole["frameskip"])} if time_limit else {}
    return {**whole, **limit}


def told_single(given: Mapping[str, Any]) -> str:
    """The line about a game as gymnasium.make makes it, to be told beside each result. given: the id's arguments,
    with the user's in their place."""
    whole = {**SINGLE, **given}
    named = ", ".join(f"{name}={_typed(whole[name])}" for name in SINGLE)
    return f"atari: as gymnasium.make gives it: {named}, one frame of 210x160; env.NAME=value changes one"


def _typed(value: Any) -> str:
    return str(value).lower().replace(" ", "")


def told(given: Mapping[str, Any], frames: int = 1) -> str:
    """The preprocessing in one line, to be told beside each result. frames: the last observations that a policy sees
    together."""
    whole = {**STANDARD, **given}
    named = ", ".join(f"{name}={_typed(whole[name])}" for name in SAID)
    size = f"{whole.get('img_height', 84)}x{whole.get('img_width', 84)} {'grey' if whole.get('grayscale', True) else 'RGB'}"
    stack = f"stack_num={whole['stack_num']}" + (f", frame_stack={frames}" if frames > 1 else "")
    return f"atari: protocol of Machado et al. 2018: {named}, {size}, {stack}; env.NAME=value changes one"
