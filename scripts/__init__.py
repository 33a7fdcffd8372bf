"""Shoal: federated and reinforcement learning over long-lived actors.

The one idea: `import shoal` costs nothing. The two kinds of job are imported when they are named.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from shoal.jobs.federated import Federated
    from shoal.jobs.reinforcement import Reinforcement

__all__ = ["Federated", "Reinforcement", "__version__"]
__version__ = "0.1.0"

if (
    _here := Path(__file__).parent
).name == "scripts":  # a checkout: scripts/coordinator.py must not hide the room coordinator/,
    __path__[:0] = [str(_here.parent), str(_here.parent / "tests")]  # and simulation/ and tests/faults/ are of a checkout alone


def __getattr__(name: str) -> Any:
    match name:
        case "Federated":
            from shoal.jobs.federated import Federated

            return Federated
        case "Reinforcement":
            from shoal.jobs.reinforcement import Reinforcement

            return Reinforcement
    raise AttributeError(f"module 'shoal' has no attribute {name!r}")
