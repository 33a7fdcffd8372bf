"""A network's passes on a GPU as CUDA graphs: the kernels of a forward or a backward pass are launched by one call.

The one idea: a graph is of one number of rows. So graphs are captured for the few numbers that come up, and a somewhat smaller
batch is filled up with rows of zeros, whose outputs are cut off and have no gradient.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn

from shoal.nets.capturing import WARM, cuda_graph
from shoal.nets.capturing import Capture as Work
from shoal.nets.policies import Output, Seen

MOST = 8  # graphs, each of which holds the activations of its rows
FULL = 0.75  # share of a graph's rows that a batch must have

Graph: TypeAlias = Callable[[Tensor], tuple[Tensor, Tensor]]
Capture: TypeAlias = Callable[[nn.Module, Tensor, bool], Graph]
"""Makes the graph of a module's pass over rows like the given ones. True: its outputs have gradients."""


class Graphed:
    """The forward pass of an actor-critic without memory, differentiable: the module's outputs and gradients, by CUDA graphs.

    module: forward(observation [N, *obs]) -> (logits or (mean, log_std), value [N]), where log_std is the module's parameter.
    Outputs that have gradients lie in the graph's memory: they are valid until the next such pass. Observations of several
    parts go through the module itself, as all do after a capture that failed, which is said once.
    """

    def __init__(self, module: nn.Module, capture: Capture | None = None) -> None:
        self.module, self.acts = module, getattr(module, "acts", None)
        self.capture = capture or captured
        self.graphs: dict[tuple[int, bool], Graph] = {}
        self.most = MOST

    def __call__(self, observation: Seen) -> tuple[Output, Tensor]:
        graph = self._graph(observation) if isinstance(observation, Tensor) and len(observation) else None
        if graph is None:
            whole: tuple[Output, Tensor] = self.module(observation)
            return whole
        assert isinstance(observation, Tensor)
        (rows, run), n = graph, len(observation)
        filled = observation
        if rows > n:
            filled = torch.cat([observation, observation.new_zeros((rows - n, *observation.shape[1:]))])
        out, value = run(filled)
        out, value = out[:n], value[:n]
        log_std = getattr(self.module, "log_std", None)
        return (out if log_std is None else (out, log_std)), value

    def _graph(self, observation: Tensor) -> tuple[int, Graph] | None:
        """The number of rows of the graph to take, and the graph; None: there is none for so many rows."""
        n, learns = len(observation), torch.is_grad_enabled()
        fitting = [rows for rows, its in self.graphs if its == learns and n <= rows <= n / FULL]
        if not fitting and len(self.graphs) < self.most:
            try:
                self.graphs[n, learns] = self.capture(self.module, observation, learns)
                fitting = [n]
            except RuntimeError as wrong:
                self.most = 0
                why = (str(wrong).splitlines() or [""])[0]
                print(f"shoal: no CUDA graph of the network, which runs without one: {why}", file=sys.stderr, flush=True)
        return (min(fitting), self.graphs[min(fitting), learns]) if fitting else None


class _Pair(nn.Module):
    """The module's outputs as a graph gives them: logits or means, and values, all of them computed."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module

    def forward(self, observation: Tensor) -> tuple[Tensor, Tensor]:
        out, value = self.module(observation)
        return (out if isinstance(out, Tensor) else out[0]), value


def captured(module: nn.Module, example: Tensor, learns: bool, capture: Work = cuda_graph) -> Graph:
    """The CUDA graph of a module's pass over as many rows as the example has. capture: of a pass without gradients. Raises
    RuntimeError if it cannot be captured."""
    pair = _Pair(module)
    if learns:
        made: Any = torch.cuda.make_graphed_callables(pair, (example.clone(),), WARM, allow_unused_input=True)
        whole: Graph = made
        return whole
    held = example.clone()

    def work() -> Tensor:
        out, value = pair(held)
        return torch.cat([out, value.reshape(-1, 1)], dim=1)

    again, both = capture(work)

    def replayed(observation: Tensor) -> tuple[Tensor, Tensor]:
        held.copy_(observation)
        again()
        found = both.clone()
        return found[:, :-1], found[:, -1]

    return replayed
