"""CartPole whose physics differ by client, for federated reinforcement learning."""

from __future__ import annotations

from typing import Any

POLES = 5  # lengths of the pole
EACH = 0.15  # of the standard half length, 0.5 m, from one length to the next


def leaning(client: int, render_mode: str | None = None) -> Any:
    """CartPole-v1 with a pole of 0.7, 0.85, 1, 1.15 or 1.3 times the standard length, by client, and with a gravity of 8 to 12
    m/s2: clients 0 to 4 have 8, the next five 9, and so on."""
    import gymnasium

    env = gymnasium.make("CartPole-v1", render_mode=render_mode)
    physics: Any = env.unwrapped
    physics.length = 0.5 * (1 + EACH * (client % POLES - POLES // 2))
    physics.polemass_length = physics.masspole * physics.length
    physics.gravity = 8.0 + client // POLES % 5
    return env
