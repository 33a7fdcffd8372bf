"""Bytes that compression saves in either direction, and its cost in accuracy: digits, 100 rounds, each codec.

The one idea: bytes and accuracy come from the same runs, made by the commands that a user types.
"""

from __future__ import annotations

import statistics
from collections.abc import Mapping
from typing import Any

from shoal.benchmarks.case import Finding
from shoal.benchmarks.play import simulated
from shoal.protocol.compress import CODECS

FEEDBACK = ("compress_feedback=true", "deterministic=false")
LOST = 0.01  # largest loss of held-out accuracy for which a quarter of the bytes is good


def ways() -> Mapping[str, tuple[str, ...]]:
    """Returns name -> settings. up: clients' deltas are compressed; down: weights are compressed; both: either."""
    found: dict[str, tuple[str, ...]] = {"none": ("compress=none",)}
    for name in CODECS:
        found[f"up {name}"] = (f"compress={name}",)
        found[f"up {name}+feedback"] = (f"compress={name}", *FEEDBACK)
        found[f"down {name}"] = (f"compress_weights={name}",)
    for name in ("int8", "int4"):
        found[f"both {name}"] = (f"compress={name}", f"compress_weights={name}")
    return found


def compression(quick: bool) -> Finding:
    """Measures means over 3 seeds. quick: one seed, and only int8."""
    asked = {name: words for name, words in ways().items() if not quick or name == "none" or name.endswith("int8")}
    found = {name: _figures(words, seeds=1 if quick else 3) for name, words in asked.items()}
    lost = found["none"]["accuracy"] - found["both int8"]["accuracy"]
    share = max(found["both int8"]["up"], found["both int8"]["down"])
    return Finding(
        figure=share,
        unit="of the bytes of a contribution and of weights for who holds the last version, int8 both ways",
        goal=0.26,
        holds=share <= 0.26 and lost <= LOST,
        asked=f"at most 0.26, for at most {LOST:g} of held-out accuracy",
        details={"accuracy_lost": lost, "ways": found},
    )


def _figures(words: tuple[str, ...], seeds: int) -> dict[str, float]:
    found = [_played(words, seed) for seed in range(seeds)]
    return {name: round(statistics.mean(one[name] for one in found), 4) for name in found[0]}


def _played(words: tuple[str, ...], seed: int) -> dict[str, float]:
    """Returns the figures after the last round. The run has one actor, which keeps all residuals.

    up, down: share of the uncompressed bytes, of a contribution and of a version for one actor.
    """
    with simulated("digits", *words, "--seed", str(seed), "--actors", "0") as played:
        metrics: Mapping[str, Any] = played.summary["metrics"]
    return {
        "up": metrics["sent_bytes"] / metrics["dense_bytes"] if "sent_bytes" in metrics else 1.0,
        "down": metrics["change_bytes"] / metrics["weights_bytes"] if "change_bytes" in metrics else 1.0,
        "change_bytes": metrics.get("change_bytes", 0.0),
        "untold": metrics.get("untold", 0.0),
        "held_out_loss": metrics["held_out_loss"],
        "accuracy": metrics["accuracy"],
    }
