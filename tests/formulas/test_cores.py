"""A recurrent core over all rows at once: outputs and gradients are those of torch's cell, called row by row."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from shoal.envs.spaces import Discrete, Observations, Spaces
from shoal.nets import cores
from shoal.nets.cores import scanned
from shoal.nets.q import RecurrentQNetwork
from shoal.nets.recurrent import RecurrentActorCritic, unrolled

CELLS = {"lstm": nn.LSTMCell, "gru": nn.GRUCell}
NAMES = {"lstm": ("h", "c"), "gru": ("h",)}
T, B, INPUTS, SIZE = 9, 5, 3, 4


def drawn(*shape: int, seed: int = 1) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def made(core: str, inputs: int = INPUTS, size: int = SIZE) -> Any:
    cell = CELLS[core](inputs, size).double()
    with torch.no_grad():
        for at, parameter in enumerate(cell.parameters()):
            parameter.copy_(drawn(*parameter.shape, seed=10 + at))
    return cell


def by_rows(cell: Any, x: Tensor, state: dict[str, Tensor], first: Tensor) -> list[dict[str, Tensor]]:
    """The state after each row, as torch's cell makes it of the state before."""
    after = []
    for t in range(len(x)):
        before = {name: torch.where(first[t, :, None], torch.zeros_like(each), each) for name, each in state.items()}
        if "c" in state:
            h, c = cell(x[t], (before["h"], before["c"]))
            state = {"h": h, "c": c}
        else:
            state = {"h": cell(x[t], before["h"])}
        after.append(state)
    return after


def begins(share: float) -> Tensor:
    return torch.rand((T, B), generator=torch.Generator().manual_seed(2)) < share


@pytest.mark.parametrize("share", [0.0, 0.2, 1.0])
@pytest.mark.parametrize("core", ["lstm", "gru"])
@pytest.mark.parametrize("told", ["outputs", "states", "both"])
def test_outputs_states_and_every_gradient_are_the_cells_row_by_row(core: str, share: float, told: str) -> None:
    cell, first, losses = made(core), begins(share), []
    twin = copy.deepcopy(cell)
    leaves = []
    for each, run in ((cell, scanned), (twin, by_rows)):
        x = drawn(T, B, INPUTS).requires_grad_()
        state = {name: drawn(B, SIZE, seed=20 + at).requires_grad_() for at, name in enumerate(NAMES[core])}
        found: Any = run(each, x, state, first)
        h, after = found if run is scanned else (torch.stack([one["h"] for one in found]), found)
        weights = drawn(T, B, SIZE, seed=5)
        loss = (weights * h).sum() if told != "states" else torch.zeros((), dtype=torch.float64)
        if told != "outputs":
            loss = loss + sum((weights[t] ** 2 * one[name]).sum() for t, one in enumerate(after) for name in NAMES[core])
        loss.backward()
        losses.append((h.detach(), [one[name].detach() for one in after for name in NAMES[core]]))
        leaves.append([x, *state.values(), *each.parameters()])
    torch.testing.assert_close(losses[0], losses[1], rtol=0, atol=1e-12)
    for ours, theirs in zip(*leaves, strict=True):
        expected = torch.zeros_like(ours) if theirs.grad is None else theirs.grad
        torch.testing.assert_close(ours.grad, expected, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("core", ["lstm", "gru"])
def test_a_core_that_is_looked_at_by_a_hook_is_called_row_by_row(core: str) -> None:
    cell, seen = made(core), []
    cell.register_forward_hook(lambda module, inputs, output: seen.append(1))
    state = {name: drawn(B, SIZE) for name in NAMES[core]}
    h, after = scanned(cell, drawn(T, B, INPUTS), state, begins(0.2))
    assert len(seen) == len(h) == len(after) == T
    quiet = made(core)
    torch.testing.assert_close(scanned(quiet, drawn(T, B, INPUTS), state, begins(0.2))[0], h, rtol=0, atol=1e-12)


@pytest.mark.parametrize("core", ["lstm", "gru"])
@pytest.mark.parametrize("kind", [RecurrentActorCritic, RecurrentQNetwork])
def test_built_in_networks_pass_over_all_rows_at_once(core: str, kind: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    module = kind(Spaces(Observations((INPUTS,)), Discrete(2)), (6,), "tanh", core=core, size=SIZE)
    state = {name: drawn(B, SIZE).float() for name in NAMES[core]}
    calls = []
    monkeypatch.setattr(cores, "stepped", lambda *given: calls.append(given))
    found = module.unroll(drawn(T, B, INPUTS).float(), state, begins(0.2))
    assert not calls
    assert len(found[-1]) == T
    assert all(one.dtype == torch.float32 for one in found[-1][0].values())


class Doubled(RecurrentActorCritic):
    """A policy of a user's own that changes the outputs of the built-in one."""

    def forward(self, observation: Any, state: Any) -> Any:
        out, value, after = super().forward(observation, state)
        return 2 * out, value, after


def test_a_forward_of_the_users_own_is_never_passed_over() -> None:
    spaces = Spaces(Observations((INPUTS,)), Discrete(2))
    plain, own = (kind(spaces, (6,), core="gru", size=SIZE) for kind in (RecurrentActorCritic, Doubled))
    seen, state, first = drawn(T, B, INPUTS).float(), {"h": torch.zeros(B, SIZE)}, begins(0.2)
    with torch.no_grad():
        ours, theirs = (unrolled(module, seen, state, first).parameters for module in (plain, own))
    assert isinstance(ours, Tensor)
    assert isinstance(theirs, Tensor)
    torch.testing.assert_close(2 * ours, theirs)
