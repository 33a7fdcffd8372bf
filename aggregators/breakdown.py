"""The number of malicious clients that a rule withstands.

The one idea: each rule is proven for n >= a * f + b deltas, f of them malicious. The numbers stand here once, without torch, so
that a job that asks for more is refused when it is read.
"""

from __future__ import annotations

from collections.abc import Mapping

NEEDS: Mapping[str, tuple[int, int]] = {
    "median": (2, 1),  # Yin et al. 2018
    "trimmed_mean": (2, 1),  # Yin et al. 2018
    "krum": (2, 3),  # Blanchard et al. 2017, proposition 2
    "multikrum": (2, 3),
    "bulyan": (4, 3),  # El Mhamdi et al. 2018, section 4
    "rfa": (2, 1),  # Pillutla et al. 2022: fewer than half
    "centered_clipping": (2, 1),  # Karimireddy et al. 2021: fewer than half
    "fltrust": (0, 1),  # Cao et al. 2021: any number, because the server has data of its own
}
"""Rule -> (a, b): n >= a * f + b."""


def fewest(rule: str, malicious: int) -> int:
    """The fewest deltas for which a rule withstands `malicious` of them; 1 at least."""
    a, b = NEEDS[rule]
    return max(1, a * malicious + b)


def needed(rule: str, malicious: int) -> str:
    """The condition with its numbers, for a person: 2 x 4 + 3 = 11."""
    a, b = NEEDS[rule]
    return f"{a} x {malicious} + {b} = {a * malicious + b}" if a else str(b)


def most(rule: str, n: int) -> int:
    """The most malicious deltas that a rule withstands among n; -1 if it needs more than n even with none."""
    a, b = NEEDS[rule]
    return (n - b) // a if a else n
