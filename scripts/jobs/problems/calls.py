"""A problem of workers of a user's own, which needs no torch."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from shoal.actors import Worker, check_runs
from shoal.envs.sources import array_of
from shoal.jobs.problems.problem import Problem
from shoal.protocol.errors import UserError, signed
from shoal.protocol.layout import Bundle

if TYPE_CHECKING:
    from shoal.jobs.methods.method import Method


@dataclass(frozen=True)
class Calls(Problem):
    """Workers of a user's own, and the weights of version 0. This problem needs no torch.

    worker: () -> Worker. weights: () -> name -> array.
    """

    kind: ClassVar[str] = "calls"

    worker: Callable[[], Worker]
    weights: Callable[[], Mapping[str, Any]]

    def first(self, seed: int) -> tuple[Bundle, int | None]:
        made = self.weights()
        if not isinstance(made, Mapping) or not made:
            what = "nothing" if isinstance(made, Mapping) else signed(made)
            raise UserError(f"weights: the first weights are {what}: expected name -> array")
        arrays = {name: array_of(array) for name, array in made.items()}
        try:
            return Bundle.pack(arrays), None
        except TypeError as odd:
            told = ", ".join(f"{name} {array.dtype}" for name, array in arrays.items())
            raise UserError(f"first weights ({told}): {odd}") from None

    def own_worker(self, method: Method, seed: int) -> Worker | None:
        made = self.worker()
        check_runs(made)
        return made
