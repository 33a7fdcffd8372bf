"""The needs of calls, and the part of a machine that no call has.

The one idea: what is promised is taken from an account before a call begins and given back after it, so the sum of all needs is
never more than the machine has.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from shoal.protocol.errors import UserError, own

UNITS = {"K": 10**3, "M": 10**6, "G": 10**9, "T": 10**12}
SMALL = 1e-9  # what sums of fractions may be off


@dataclass(frozen=True, slots=True)
class Need:
    """The needs of a call while it runs. cores: of the machine, from 0; a call computes with so many threads, at least 1.
    memory: bytes, as a number or as text ("500M", "1.5G"). gpus: whole ones, or a fraction of one that other calls share. gang:
    the call is `shoal.torchrun`, with a rank for each GPU, or for each core if it needs no GPUs. Raises UserError for values
    that are none of these."""

    cores: float = 1
    memory: int | str = 0
    gpus: float = 0
    gang: bool = False

    def __post_init__(self) -> None:
        object.__setattr__(self, "memory", _nbytes(own(self.memory)))
        for name in ("cores", "gpus"):
            object.__setattr__(self, name, own(getattr(self, name)))
            if not _number(value := getattr(self, name)) or value < 0:
                raise UserError(f"Need({name}={value!r}): must be a number from 0")
        if self.gpus > 1 and self.gpus != int(self.gpus):
            raise UserError(f"Need(gpus={self.gpus!r}): must be a whole number, or a fraction below 1")
        if self.gang and not (self.gpus or self.cores) == self.ranks >= 1:
            raise UserError(
                f"Need(cores={self.cores!r}, gpus={self.gpus!r}, gang=True): must be whole GPUs, or else whole cores"
            )

    @property
    def nbytes(self) -> int:
        return int(self.memory)

    @property
    def ranks(self) -> int:
        """Processes of a gang."""
        return int(self.gpus or self.cores)

    @property
    def threads(self) -> int:
        """Threads that each process of the call computes with."""
        return max(1, int(self.cores) // (self.ranks if self.gang else 1))

    def __str__(self) -> str:
        said = [f"{self.cores:g} cores"] * (self.cores > 0) + [f"{self.nbytes / 1e9:g} GB of memory"] * (self.nbytes > 0)
        return " and ".join(said + [f"{self.gpus:g} GPUs"] * (self.gpus > 0)) or "nothing"


def _number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and value == value and abs(value) < 2.0**62


def _nbytes(value: Any) -> int:
    text, unit = (value.strip().upper().removesuffix("B"), 1) if isinstance(value, str) else ("", 1)
    if text and text[-1] in UNITS:
        text, unit = text[:-1], UNITS[text[-1]]
    try:
        number: Any = float(text) if isinstance(value, str) else value
    except ValueError:
        number = None
    if not _number(number) or number < 0:
        raise UserError(f'Need(memory={value!r}): must be bytes from 0, as a number or as text like "1.5G"')
    return int(number * unit)


ONE_CORE, NOTHING = Need(), Need(cores=0)


@dataclass(slots=True)
class Machine:
    """The part of a machine that no call has. cores, nbytes: in all, of processors and memory. gpus: free share of each GPU,
    from 0 to 1. names: by which CUDA knows them. closed: why no call begins there now; "": calls may."""

    cores: float
    nbytes: int
    gpus: list[float] = field(default_factory=list)
    names: list[str] = field(default_factory=list)
    used_cores: float = 0.0
    used_nbytes: int = 0
    closed: str = ""

    def add(self, names: Sequence[str]) -> None:
        """Count these GPUs in."""
        self.names += names
        self.gpus += [1.0] * len(names)

    def never(self, need: Need) -> str:
        """Return why this machine can never meet a need; "" if it can."""
        if need.cores > self.cores or need.nbytes > self.nbytes or need.gpus > len(self.gpus):
            return f"this call needs {need}, and the machine has {Need(self.cores, self.nbytes, len(self.gpus))}"
        return ""

    def lacks(self, need: Need) -> frozenset[str]:
        """The kinds of which there is not enough left: "cores", "memory", "gpus"."""
        short = {"cores"} if need.cores > self.cores - self.used_cores + SMALL else set[str]()
        if need.nbytes > self.nbytes - self.used_nbytes:
            short.add("memory")
        if need.gpus and self._pick(need) is None:
            short.add("gpus")
        return frozenset(short)

    def take(self, need: Need) -> tuple[int, ...]:
        """Promise what is needed, of which there is enough. Returns the numbers of the GPUs."""
        self.used_cores += need.cores
        self.used_nbytes += need.nbytes
        picked = self._pick(need) or ()
        for gpu in picked:
            self.gpus[gpu] -= min(1.0, need.gpus)
        return picked

    def give_back(self, need: Need, gpus: Sequence[int]) -> None:
        self.used_cores = max(0.0, self.used_cores - need.cores)
        self.used_nbytes -= need.nbytes
        for gpu in gpus:
            self.gpus[gpu] = min(1.0, self.gpus[gpu] + min(1.0, need.gpus))

    def _pick(self, need: Need) -> tuple[int, ...] | None:
        """GPUs for a need, for a fraction the fullest one that has room; None if there are not enough."""
        if not need.gpus:
            return ()
        share, many = min(1.0, need.gpus), max(1, int(need.gpus))
        fit = sorted((left, at) for at, left in enumerate(self.gpus) if left >= share - SMALL)
        return tuple(at for _, at in fit[:many]) if len(fit) >= many else None


def uses(need: Need) -> frozenset[str]:
    """The kinds that a need takes something of."""
    kinds = (("cores", need.cores), ("memory", need.nbytes), ("gpus", need.gpus))
    return frozenset(kind for kind, amount in kinds if amount)
