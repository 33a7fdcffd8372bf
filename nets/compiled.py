"""A policy's pass in an actor, compiled by torch.compile.

The one idea: that the compiled pass computes what the module computes is not believed. The first batch of each number of rows
is computed both ways; if the numbers differ, or if torch cannot compile, the module computes all of them.
"""

from __future__ import annotations

import os
import shutil
import sys
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from typing import TypeAlias

import torch

from shoal.envs.spaces import Array, Floats
from shoal.nets.acting import Policy, State
from shoal.nets.forward import Forward, Found, first_line, of_module, off, passed, say

MOST = 4  # numbers of rows that are compiled for: all environments, two halves, and those of an evaluation

Compile: TypeAlias = Callable[[Callable[..., Found]], Callable[..., Found]]


def compiler() -> str:
    """The name of the C++ compiler that torch.compile calls on a CPU."""
    return os.environ.get("CXX", "clang++" if sys.platform == "darwin" else "g++")


def by_torch(run: Callable[..., Found]) -> Callable[..., Found]:
    """The function, compiled for the shapes of each call."""
    made: Callable[..., Found] = torch.compile(run, dynamic=False)
    return made


@contextmanager
def alone() -> Iterator[None]:
    """A block in which torch compiles in this process, where it would start one for each core, and keeps the warnings about its
    own parts to itself."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from torch._inductor import config

        with config.patch(compile_threads=1):
            yield


class Compiled(Forward):
    """The pass of `inner`, compiled. compile: run -> the compiled function; None: torch's. told: prints a line, once, if the
    module takes its place."""

    def __init__(
        self,
        inner: Forward,
        compile: Compile | None = None,
        told: Callable[[str], None] = say,
    ) -> None:
        super().__init__(inner.flat, inner.read)
        self._compile, self._tell = compile or by_torch, told
        self._ours = compile is None
        self._fast: Callable[..., Found] | None = None
        self.fault = ""  # why the module computes; "" as long as the compiled pass does
        self.sizes: set[int] = set()  # numbers of rows that the compiled pass was compared for

    def __call__(self, seen: Array, state: State) -> tuple[Floats, State]:
        rows = len(seen)
        if self.fault or (rows not in self.sizes and len(self.sizes) == MOST):
            return super().__call__(seen, state)
        if rows in self.sizes:
            assert self._fast is not None
            return passed(self._fast, seen, state)
        wanted = super().__call__(seen, state)  # what the module raises, it raises here
        found, self.fault = self._tried(seen, state, wanted)
        if self.fault:
            self._tell(f"compile_policy=true: the policy's network runs as it is: {self.fault}")
        else:
            self.sizes.add(rows)
        return found  # the compiled pass's already, so that no bit depends on how many batches this process has seen

    def _tried(self, seen: Array, state: State, wanted: tuple[Floats, State]) -> tuple[tuple[Floats, State], str]:
        """The compiled pass's numbers, and ""; or the module's, and why the compiled pass cannot take its place."""
        if self._ours and shutil.which(compiler()) is None:
            return wanted, f"torch.compile needs a C++ compiler, and there is no {compiler()}"
        try:
            with alone() if self._ours else nullcontext():
                self._fast = self._fast or self._compile(self.run)
                found = passed(self._fast, seen, state)
        except (RuntimeError, OSError, ImportError) as wrong:
            return wanted, first_line(wrong)
        if far := off(self.flat.module, found, wanted):
            return wanted, f"its compiled form's numbers for the first {len(seen)} observations are up to {far:.2g} off"
        return found, ""


def compiled(policy: Policy, told: Callable[[str], None] = say) -> Policy:
    """The policy, whose network is compiled from now on if it is a torch module."""
    if (inner := of_module(policy)) is not None:
        inner.forward = Compiled(inner.forward, told=told)
    return policy
