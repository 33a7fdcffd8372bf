"""Optimizers against torch.optim, step by step, and the seam that users' own go through."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import pytest
import torch
from torch import Tensor

from shoal.aggregators.fedopt import ServerYogi
from shoal.nets.updates import SGD, UPDATES, Adagrad, Adam, AdamW, Momentum, RMSprop, Update, tried, update_of
from shoal.protocol.errors import UserError

STEPS = 6
CASES: list[tuple[Update, type[torch.optim.Optimizer], dict[str, Any]]] = [
    (SGD(0.1), torch.optim.SGD, {"lr": 0.1}),
    (SGD(0.1, weight_decay=0.2), torch.optim.SGD, {"lr": 0.1, "weight_decay": 0.2}),
    (SGD(0.1, 0.8, 0.2), torch.optim.SGD, {"lr": 0.1, "momentum": 0.8, "weight_decay": 0.2}),
    (Momentum(0.1), torch.optim.SGD, {"lr": 0.1, "momentum": 0.9}),
    (Adam(), torch.optim.Adam, {}),
    (Adam(0.1, (0.8, 0.95), 1e-3, 0.2), torch.optim.Adam, {"lr": 0.1, "betas": (0.8, 0.95), "eps": 1e-3, "weight_decay": 0.2}),
    (AdamW(), torch.optim.AdamW, {}),
    (AdamW(0.1, (0.8, 0.95), weight_decay=0.2), torch.optim.AdamW, {"lr": 0.1, "betas": (0.8, 0.95), "weight_decay": 0.2}),
    (RMSprop(), torch.optim.RMSprop, {}),
    (
        RMSprop(0.1, 0.9, 1e-3, 0.5, 0.2),
        torch.optim.RMSprop,
        {"lr": 0.1, "alpha": 0.9, "eps": 1e-3, "momentum": 0.5, "weight_decay": 0.2},
    ),
    (Adagrad(), torch.optim.Adagrad, {}),
    (Adagrad(0.1, 1e-3, 0.2), torch.optim.Adagrad, {"lr": 0.1, "eps": 1e-3, "weight_decay": 0.2}),
]


@pytest.mark.parametrize(
    ("update", "theirs", "settings"), CASES, ids=lambda value: str(value) if isinstance(value, dict) else None
)
def test_an_update_is_torchs_at_every_step(update: Update, theirs: Any, settings: Mapping[str, Any]) -> None:
    draw = torch.Generator().manual_seed(0)
    w = torch.randn(7, dtype=torch.float64, generator=draw)
    twin = w.clone().requires_grad_()
    optimizer = theirs([twin], **settings)
    moments: list[Tensor] = [torch.full_like(w, first) for first in update.moments.values()]
    for t in range(1, STEPS + 1):
        twin.grad = torch.randn(7, dtype=torch.float64, generator=draw)
        step, *moments = update(w, -twin.grad, t, *moments)
        optimizer.step()
        w = w + step
        torch.testing.assert_close(w, twin.detach(), rtol=1e-12, atol=1e-13)  # float64, in another order of terms


def test_every_name_makes_an_update_with_a_rate_and_weight_decay() -> None:
    for name in UPDATES:
        made = update_of(name, lr=0.5, weight_decay=0.25, momentum=0.0)
        assert (made.lr, made.weight_decay) == (0.5, 0.25)  # type: ignore[attr-defined]
    assert update_of("momentum", lr=0.5, momentum=0.0) == Momentum(0.5, 0.9)
    assert update_of("rmsprop", lr=0.5, momentum=0.5) == RMSprop(0.5, momentum=0.5)


def test_an_update_brings_its_own_rate_and_a_class_is_made_with_the_rate_given() -> None:
    own = Adam(0.3)
    assert update_of(own, lr=0.1, momentum=0.0) is own
    assert update_of(AdamW, lr=0.1, weight_decay=0.5) == AdamW(0.1, weight_decay=0.5)


@pytest.mark.parametrize(
    ("optimizer", "settings", "says"),
    [
        ("adma", {}, "optimizer=adma: must be one of sgd, momentum, adam, adamw, rmsprop, adagrad, or an Update of your own"),
        ("adam", {"momentum": 0.9}, "momentum=0.9: optimizer adam takes lr, betas, eps, weight_decay"),
        (Adam(), {"weight_decay": 0.1}, "weight_decay=0.1: optimizer Adam has its own settings: set it there"),
        ("sgd", {"momentum": 1.0}, "momentum=1.0: must be a number from 0 to below 1"),
        ("adam", {"lr": math.nan}, "lr=nan: must be a number above 0"),
        ("adam", {"weight_decay": -1.0}, "weight_decay=-1.0: must be a number from 0"),
    ],
)
def test_a_setting_that_an_optimizer_does_not_have_is_an_error(optimizer: Any, settings: Any, says: str) -> None:
    with pytest.raises(UserError) as refused:
        update_of(optimizer, **{"lr": 0.1, **settings})
    assert str(refused.value) == says


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda: Adam(betas=(0.9, 1.0)), "betas=1.0: must be a number from 0 to below 1"),
        (lambda: RMSprop(alpha=-0.1), "alpha=-0.1: must be a number from 0 to below 1"),
        (lambda: Adagrad(eps=0.0), "eps=0.0: must be a number above 0"),
    ],
)
def test_a_setting_out_of_range_is_named(make: Any, says: str) -> None:
    with pytest.raises(UserError) as refused:
        make()
    assert str(refused.value) == says


class Bare:
    def __call__(self, w: Tensor, delta: Tensor, t: int, *moments: Tensor) -> Any:
        return delta


class Alone(Bare):
    moments: Mapping[str, float] = {}


class Forgetful(Bare):
    moments: Mapping[str, float] = {"m": 0.0}

    def __call__(self, w: Tensor, delta: Tensor, t: int, *moments: Tensor) -> Any:
        return (delta,)


class Counting(Alone):
    moments: Mapping[str, float] = {"steps": 0.0}


@pytest.mark.parametrize(
    ("update", "says"),
    [
        (
            Bare(),
            "update: Bare is no Update: expected `moments` (name -> first value, none of them steps) and __call__(",
        ),
        (Counting(), "update: Counting is no Update"),
        (Alone(), "update: Alone gave Tensor for weights [2]; expected a tuple (what to add), each [2]"),
        (Forgetful(), "update: Forgetful gave [[2]] for weights [2]; expected a tuple (what to add, m), each [2]"),
        (0.1, "update: float is no Update"),
    ],
)
def test_what_is_no_update_is_refused_before_it_is_used(update: Any, says: str) -> None:
    with pytest.raises(UserError) as refused:
        tried(update, "update")
    assert str(refused.value).startswith(says)


def test_a_servers_rule_is_an_update_as_well() -> None:
    assert tried(ServerYogi(0.1, 0.9, 0.01), "update").moments == {"m": 0.0, "v": 0.01**2}
