"""Names of cases that are the same in every process, so that a case can be asked for by its name."""

from __future__ import annotations

import re
from typing import Any


def without_addresses(value: Any) -> str:
    """Returns the value as text, without the addresses of functions and objects."""
    return re.sub(r" at 0x[0-9a-f]+", "", str(value))
