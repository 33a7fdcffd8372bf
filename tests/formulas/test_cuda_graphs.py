"""CUDA graphs of a network, with a stand-in for the capture: which rows a graph is of, and that outputs and gradients are those
of the module. The capture itself needs a GPU."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from taping import taped
from torch import Tensor, nn

from shoal.envs.spaces import Box, Discrete, Observations, Spaces
from shoal.nets.cuda_graphs import MOST, Graphed, captured
from shoal.nets.flat import FlatModule
from shoal.nets.passes import judge_of
from shoal.nets.policies import built_in, entropy, judged, log_prob

PICTURES = Observations((40, 36), "u1")
ACTIONS = [Discrete(4), Box((3,), (-1.0,) * 3, (1.0,) * 3)]


class Captures:
    """In place of the capture: runs the module, but only for the rows that it was captured for."""

    def __init__(self, fails: str = "") -> None:
        self.fails, self.made = fails, list[tuple[int, bool]]()

    def __call__(self, module: nn.Module, example: Tensor, learns: bool) -> Callable[[Tensor], tuple[Tensor, Tensor]]:
        if self.fails:
            raise RuntimeError(self.fails)
        self.made.append((len(example), learns))

        def run(observation: Tensor) -> tuple[Tensor, Tensor]:
            assert observation.shape == example.shape
            assert torch.is_grad_enabled() == learns
            out, value = module(observation)
            return (out if isinstance(out, Tensor) else out[0]), value

        return run


def pictures(rows: int) -> Tensor:
    return torch.randint(0, 256, (rows, *PICTURES.shape), dtype=torch.uint8, generator=torch.Generator().manual_seed(rows))


def gradients(judge: Any, flat: FlatModule, seen: Tensor, action: Tensor) -> Tensor:
    flat.grad.zero_()
    parameters, value = judged(judge, seen)
    (log_prob(parameters, action) * value.detach() + entropy(parameters) + value**2).sum().backward()
    return flat.grad.clone()


@pytest.mark.parametrize("action", ACTIONS)
def test_outputs_and_gradients_are_the_modules_whole_or_filled_up(action: Any) -> None:
    flat = FlatModule(built_in(Spaces(PICTURES, action), seed=2))
    captures = Captures()
    graphed = Graphed(flat.module, captures)
    for rows in (8, 6, 8):
        seen = pictures(rows)
        acts = torch.zeros(rows, dtype=torch.int64) if isinstance(action, Discrete) else torch.full((rows, 3), 0.3)
        torch.testing.assert_close(gradients(graphed, flat, seen, acts), gradients(flat.module, flat, seen, acts))
        for ours, theirs in zip(judged(graphed, seen), judged(flat.module, seen), strict=True):
            torch.testing.assert_close(ours, theirs)
    assert captures.made == [(8, True)]  # six rows are three quarters of eight


def test_passes_with_and_without_gradients_have_graphs_of_their_own() -> None:
    captures = Captures()
    graphed = Graphed(built_in(Spaces(PICTURES, ACTIONS[0])), captures)
    graphed(pictures(4))
    with torch.no_grad():
        graphed(pictures(4))
        graphed(pictures(4))
    assert captures.made == [(4, True), (4, False)]


def test_a_batch_far_smaller_than_any_graph_has_one_of_its_own_until_there_are_many() -> None:
    captures, module = Captures(), built_in(Spaces(PICTURES, ACTIONS[0]))
    graphed = Graphed(module, captures)
    sizes = [2**power for power in range(MOST + 2)]
    for rows in sizes:
        torch.testing.assert_close(graphed(pictures(rows)), module(pictures(rows)))
    assert captures.made == [(rows, True) for rows in sizes[:MOST]]


def test_a_capture_that_fails_is_said_once_and_the_module_runs(capsys: pytest.CaptureFixture[str]) -> None:
    module = built_in(Spaces(PICTURES, ACTIONS[0]))
    graphed = Graphed(module, Captures("operation not permitted when stream is capturing\nat line 3"))
    for rows in (3, 5):
        torch.testing.assert_close(graphed(pictures(rows)), module(pictures(rows)))
    said = "shoal: no CUDA graph of the network, which runs without one: operation not permitted when stream is capturing\n"
    assert capsys.readouterr().err == said


@pytest.mark.parametrize("action", ACTIONS)
@torch.no_grad()
def test_a_captured_pass_is_of_the_weights_and_observations_of_now(action: Any) -> None:
    flat = FlatModule(built_in(Spaces(PICTURES, action), seed=2))
    graphed = Graphed(flat.module, partial(captured, capture=taped))
    before = [graphed(pictures(4))[1] for _ in range(2)]
    flat.vector.mul_(1.5)
    seen = 255 - pictures(4)
    torch.testing.assert_close(judged(graphed, seen), judged(flat.module, seen))
    assert torch.equal(*before)
    assert not torch.equal(before[0], graphed(seen)[1])
    assert len(graphed.graphs) == 1


def test_on_a_cpu_a_network_for_pictures_runs_as_it_is() -> None:
    flat = FlatModule(built_in(Spaces(PICTURES, ACTIONS[0])))
    assert judge_of(flat) is flat.module


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("action", ACTIONS)
def test_on_a_gpu_graphs_give_the_modules_outputs_and_gradients(action: Any) -> None:
    flat = FlatModule(built_in(Spaces(PICTURES, action), seed=2), "cuda")
    graphed = judge_of(flat)
    assert isinstance(graphed, Graphed)
    for rows in (64, 50, 64):
        seen = pictures(rows).cuda()
        acts = torch.zeros(rows, dtype=torch.int64) if isinstance(action, Discrete) else torch.full((rows, 3), 0.3)
        found, wanted = (gradients(judge, flat, seen, acts.cuda()) for judge in (graphed, flat.module))
        torch.testing.assert_close(found, wanted, atol=1e-4, rtol=1e-3)
    assert graphed.graphs
