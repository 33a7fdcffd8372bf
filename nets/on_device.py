"""A policy's network on a GPU, for the inference process: observations go up and numbers come down in one copy each.

The one idea: a batch is filled up to one of a few numbers of rows, and the pass of each is captured once (nets/capturing.py),
so a batch costs two copies and one call. The CPU could compute every batch as well. It computes the first one of each number of
rows beside the GPU, and all from then on if the numbers differ or the GPU fails.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from shoal.envs.spaces import Array, Floats, Kept, apart
from shoal.nets.acting import Parted, Policy, State
from shoal.nets.capturing import Capture, cuda_graph
from shoal.nets.flat import FlatModule, as_tensor, views
from shoal.nets.forward import Forward, first_line, of_module, off, say
from shoal.protocol.layout import Bundle, Layout, dtype_name

LEAST = 8  # rows of the smallest batch that is computed


def filled(rows: int) -> int:
    """The number of rows that a batch of `rows` is filled up to: 8, 12, 16, 24, 32, 48 ..., at most half of `rows` more from 8
    rows on."""
    power = 1 << (max(rows, LEAST) - 1).bit_length()
    return power * 3 // 4 if max(rows, LEAST) <= power * 3 // 4 else power


def uncaptured(work: Callable[[], Tensor]) -> tuple[Callable[[], object], Tensor]:
    """A Capture that captures nothing: the work is done anew each time."""
    told = work()
    return lambda: told.copy_(work()), told


@dataclass(slots=True, eq=False)
class Slot:
    """The memory of batches of so many rows. inputs: on the host, name -> [rows, ...], views of `up`. there: the copy of `up`
    on the device. again: computes `told`, the numbers and then the state, float32 [rows, width], from it. back: told on the
    host."""

    inputs: Bundle
    up: Tensor
    there: Tensor
    again: Callable[[], object]
    told: Tensor
    back: Tensor

    def asked(self, given: Mapping[str, Array], rows: int) -> Floats:
        """The outputs [rows, width] for these inputs, valid until the next call."""
        for name, array in given.items():
            self.inputs[name][:rows] = array  # what an earlier batch left in the other rows is computed and not looked at
        self.there.copy_(self.up, non_blocking=True)
        self.again()
        self.back.copy_(self.told)  # waits for the device
        found: Floats = self.back.numpy()[:rows]
        return found


class OnDevice:
    """One network on a device for the weights of several versions.

    make: a policy of the job whose network is a torch module. capture: of a pass; None: CUDA graphs on a GPU, nothing on a CPU.
    told: prints a line. fault: why the device is asked no more; "" as long as it is.
    """

    def __init__(
        self,
        make: Callable[[], Policy],
        device: str,
        capture: Capture | None = None,
        told: Callable[[str], None] = say,
    ) -> None:
        self.device, self.fault = torch.device(device), ""
        self._make, self._tell = make, told
        self._capture = capture or (cuda_graph if self.device.type == "cuda" else uncaptured)
        self._forward: Forward | None = None
        self._slots: dict[int, Slot] = {}
        self._holds: Tensor | None = None  # the weights that are in the module

    @property
    def sizes(self) -> list[int]:
        """The numbers of rows that batches were filled up to."""
        return sorted(self._slots)

    def taken(self, weights: Bundle, into: Tensor | None) -> Tensor | None:
        """The weights on the device, in the memory of `into` if it is given; None if the device failed."""
        try:
            self._made().flat.layout.expect(weights.layout)
            if into is None:
                into = torch.empty_like(self._made().flat.raw)
            if self._holds is into:
                self._holds = None
            return into.copy_(as_tensor(weights.data))
        except RuntimeError as wrong:
            self._fails(first_line(wrong))
            return None

    @torch.no_grad()
    def numbers(
        self, weights: Tensor, seen: Array, state: State, own: Callable[[Array, State], tuple[Floats, State]]
    ) -> tuple[Floats, State] | None:
        """The numbers and the next state by these weights, valid until the next call; None if the device fails. own: computes
        the same on the CPU, with which the first batch of each number of rows is compared."""
        rows = filled(len(seen))
        try:
            if self._holds is not weights:
                self._made().flat.raw.copy_(weights)
                self._holds = weights
            given = _arrays(seen, state)
            if new := rows not in self._slots:
                self._slots[rows] = self._slot(rows, given, state)
            whole = self._slots[rows].asked(given, len(seen))
        except RuntimeError as wrong:
            self._fails(first_line(wrong))
            return None
        widths = [math.prod(array.shape[1:]) for array in state.values()]
        edges = np.cumsum([whole.shape[1] - sum(widths), *widths])
        numbers, *after = np.split(whole, edges[:-1], axis=1)
        found = {name: its.reshape(state[name].shape) for name, its in zip(state, after, strict=True)}
        if new and (far := off(self._made().flat.module, (numbers, found), own(seen, state))):
            self._fails(f"its numbers for the first {len(seen)} observations are up to {far:.2g} off")
            return None
        return numbers, found

    def _made(self) -> Forward:
        if self._forward is None:
            if self.device.type == "cuda":
                torch.backends.cudnn.allow_tf32 = False  # an actor's convolutions have no numbers of 10 bits
            policy = of_module(self._make())
            if policy is None:
                raise RuntimeError("the policy's network is no torch module")
            self._forward = Forward(FlatModule(policy.flat.module, self.device), policy.forward.read)
        return self._forward

    def _slot(self, rows: int, given: Mapping[str, Array], state: State) -> Slot:
        forward, page_locked = self._made(), self.device.type == "cuda"
        layout = Layout.of({name: (dtype_name(its.dtype), (rows, *its.shape[1:])) for name, its in given.items()})
        up = torch.zeros(layout.nbytes, dtype=torch.uint8, pin_memory=page_locked)
        there = torch.zeros(layout.nbytes, dtype=torch.uint8, device=self.device)
        parts = views(there, layout)
        before = {name: parts[f"before/{name}"] for name in state}
        seen = parts.get("seen", {name.removeprefix("seen/"): its for name, its in parts.items() if name.startswith("seen/")})

        def work() -> Tensor:
            numbers, after = forward.run(seen, before)
            return torch.cat([numbers, *(after[name].flatten(1) for name in state)], dim=1)

        for name, array in given.items():  # a capture looks at the numbers of a batch, not at zeros
            parts[name][: len(array)].copy_(as_tensor(array.copy()))
        try:
            again, told = self._capture(work)
        except RuntimeError as wrong:
            self._capture = uncaptured
            self._tell(f"no CUDA graph of the policy's network, which runs without one: {first_line(wrong)}")
            again, told = uncaptured(work)
        back = torch.zeros(told.shape, dtype=told.dtype, pin_memory=page_locked)
        return Slot(Bundle(layout, up.numpy()), up, there, again, told, back)

    def _fails(self, why: str) -> None:
        self.fault = why
        self._slots.clear()
        self._tell(f"the inference process computes on the CPU from now on, and not on {self.device}: {why}")


class Placed:
    """A policy's numbers by the network on a device, and by the policy `own` on the CPU from the network's fault on."""

    def __init__(self, own: Parted, network: OnDevice) -> None:
        self.own, self.network = own, network
        self._weights: Bundle | None = None
        self._there: Tensor | None = None
        self._ready = False  # `own` has the weights

    @property
    def memory(self) -> Kept:
        return self.own.memory

    @property
    def width(self) -> int:
        return self.own.width

    def load(self, weights: Bundle) -> None:
        """Act by these weights from now on, which stay as they are until the next call."""
        self._weights, self._ready = weights, False
        if not self.network.fault:
            self._there = self.network.taken(weights, self._there)

    def numbers(self, seen: Array, state: State) -> tuple[Floats, State]:
        if not self.network.fault and self._there is not None:
            found = self.network.numbers(self._there, seen, state, self._here)
            if found is not None:
                return found
        return self._here(seen, state)

    def _here(self, seen: Array, state: State) -> tuple[Floats, State]:
        if not self._ready:
            assert self._weights is not None
            self.own.load(self._weights)
            self._ready = True
        return self.own.numbers(seen, state)


def _arrays(seen: Array, state: State) -> dict[str, Array]:
    """The inputs of a pass by name: "seen", or "seen/PART" for each part, and "before/NAME" of the state."""
    inner = apart(seen)[0]
    parts = {f"seen/{name}": its for name, its in inner.items()} if isinstance(inner, Mapping) else {"seen": inner}
    return {**parts, **{f"before/{name}": array for name, array in state.items()}}
