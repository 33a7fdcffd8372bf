"""A problem: the user's part of a job, and what can be asked of it.

The one idea: a problem knows the user's part (a model, data, an environment) and no learning method. A problem makes a
population, spaces or processes from the user's part once in each process.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar, Self, TypeAlias

from shoal.actors import Worker
from shoal.jobs.parts import Bearing
from shoal.jobs.presets import Preset
from shoal.protocol.errors import UserError
from shoal.protocol.layout import Bundle
from shoal.protocol.work import Metrics

if TYPE_CHECKING:
    from torch import nn

    from shoal.jobs.methods.method import Method

Evaluate: TypeAlias = Callable[[Bundle], Metrics]


@dataclass(frozen=True)
class Problem:
    """A problem to learn from. A subclass overrides the functions that it can answer.

    kind: the word for this kind of problem in `Method.problems`. made: objects made from the user's part in this process.
    """

    kind: ClassVar[str] = ""

    made: dict[Any, Any] = field(default_factory=dict, kw_only=True, repr=False, compare=False)

    def check(self, bearing: Bearing) -> None:
        """Raises UserError, one line, for settings that do not go together."""

    def suited(self, method: Method) -> Self:
        """Return the problem as this method learns it: the same user's part, and the method's kind of network."""
        return self

    def published(self, method: str) -> Preset | None:
        """The settings that published tables have for this problem and the method of this name; None if there are none."""
        return None

    def first(self, seed: int) -> tuple[Bundle, int | None]:
        """Version 0 of the weights, and the number of their first float32 entries that are trained (None: all)."""
        from shoal.nets.flat import FlatModule

        flat = FlatModule(self.module(seed))
        return flat.bundle(), flat.trainable

    def module(self, seed: int) -> nn.Module:
        """The torch model with the weights of version 0. Raises UserError if there is no torch model."""
        raise UserError("this job has no torch model: it was made with worker= and weights=; give model= and data= instead")

    def example(self, method: Method, seed: int) -> tuple[Any, ...]:
        """Inputs for the torch model, tensors or maps of tensors: a batch of one or two. Raises UserError if there is no torch
        model."""
        raise UserError("this job has no torch model: it was made with worker= and weights=; give model= and data= instead")

    def own_worker(self, method: Method, seed: int) -> Worker | None:
        """The user's own worker; None if the user gave no worker."""
        return None

    def central(self, method: Method, seed: int, device: str) -> Evaluate | None:
        """The function that evaluates weights in the coordinator's process; None if only actors can evaluate."""
        return None

    def apiece(self, method: Method, seed: int) -> Callable[[Bundle], Mapping[str, Any]] | None:
        """The function weights -> name -> a number for each held-out example, [n]; None if there is no held-out data."""
        return None

    def sizes(self, method: Method, seed: int) -> Sequence[int]:
        """Each client's number of examples; empty if it is not known."""
        return ()

    def try_out(self, method: Method, seed: int) -> None:
        """Try the user's part once, in this process. Raises UserError for a fault in it."""

    def held_out_digest(self, method: Method, seed: int) -> str:
        """The digest of the held-out data; "" if there is none."""
        return ""

    def notes(self, method: Method, seed: int) -> Sequence[str]:
        """Lines about the user's part that a person is told when a run begins."""
        return ()

    def conditions(self) -> Sequence[str]:
        """Lines without which a result of this problem means little: how a game was preprocessed."""
        return ()

    def about(self, method: Method, seed: int) -> Sequence[str]:
        """Lines about what was chosen for the user, which a person is told when a run begins."""
        return ()

    def findings(self) -> Mapping[str, Any]:
        """The findings of this process's trials of the user's part, as plain data. The run keeps them, and its other processes
        adopt them: a trial in another process may find something else, because it is timed."""
        return {}

    def adopt(self, findings: Mapping[str, Any]) -> None:
        """Go by the findings of another process of the run, in place of trials."""

    def prepare(self, method: Method, seed: int) -> None:
        """Make the data and processes that forked actors share. Raises UserError for a fault in the user's part."""

    def hatch(self) -> None:
        """Start the process that must be forked while this process has one thread, before the settings of a run are known."""

    def close(self) -> None:
        """End the processes that `prepare` or `hatch` started. A later `prepare` starts them again."""
