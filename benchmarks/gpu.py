"""The learner on a GPU: contributions folded on the device, and weights copied back.

The one idea: the floor is a copy over the bus from page-locked memory. A fold adds the host's copy into that memory and the
sum on the device; both should hide behind the bus.
"""

from __future__ import annotations

import time
from itertools import cycle

import numpy as np
import torch

from shoal.aggregators.fedavg import FedAvgServer
from shoal.benchmarks.case import Finding
from shoal.benchmarks.jobs import vector
from shoal.benchmarks.timing import interleaved
from shoal.protocol.layout import Bundle
from shoal.protocol.work import Contribution, Task, Work

SIZE, CONTRIBUTIONS = 100_000_000, 100
ASKED = "a fold at least 80 % of the rate of copies from page-locked memory, weights back likewise"


def gpu(quick: bool) -> Finding:
    """Measures 100 contributions of 100 MB, plain and exact, and the weights' way back to the host's memory."""
    if not torch.cuda.is_available():
        return Finding(None, "GB/s", asked=ASKED, details={"skipped": "torch finds no CUDA device here"})
    times = CONTRIBUTIONS // 5 if quick else CONTRIBUTIONS
    device = torch.device("cuda")
    plain, exact, there, back, down = interleaved(
        3 if quick else 5,
        lambda: folded(SIZE, times, device, exact=False)[0],
        lambda: folded(SIZE, times, device, exact=True)[0],
        lambda: copied(SIZE, times, device, back=False),
        lambda: folded(SIZE, 2, device, exact=False)[1],
        lambda: copied(SIZE, times, device, back=True),
    )
    return Finding(
        figure=plain / 1e9,
        unit="GB/s of contributions folded in on the device",
        goal=0.8 * there / 1e9,
        floor=there / 1e9,
        ratio=plain / there,
        holds=plain >= 0.8 * there and back >= 0.8 * down,
        asked=ASKED,
        details={
            "device": torch.cuda.get_device_name(device),
            "exact": exact / 1e9,
            "weights_back": back / 1e9,
            "copies_back": down / 1e9,
            "back_ratio": back / down,
        },
    )


def folded(nbytes: int, times: int, device: torch.device, *, exact: bool) -> tuple[float, float]:
    """Returns two rates in bytes a second: of contributions into a sum, until the device has finished; and of weights, from the
    end of a step until they can be read.
    """
    layout = vector(nbytes // 4)
    deltas = cycle([Bundle.zeros(layout) for _ in range(4)])
    aggregator = FedAvgServer(Bundle.zeros(layout), device=device, deterministic=exact)
    for client in range(2):  # pages are touched and kernels are loaded before the clock starts
        aggregator.fold(_contribution(next(deltas), client))
    aggregator.step()
    aggregator.weights()
    _wait(device)
    began = time.perf_counter()
    for client in range(times):
        aggregator.fold(_contribution(next(deltas), client))
    _wait(device)
    added = time.perf_counter()
    aggregator.step()
    stepped = time.perf_counter()
    newest = aggregator.weights()
    back = time.perf_counter()
    assert np.isfinite(newest.vector()[-1])
    return times * nbytes / (added - began), nbytes / max(back - stepped, 1e-9)


def _contribution(delta: Bundle, client: int) -> Contribution:
    return Contribution(Task(0, client, (client,)), 0, 0, Work(delta, 1.0), norm=0.0)


def copied(nbytes: int, times: int, device: torch.device, *, back: bool) -> float:
    """Returns bytes a second of bare copies between page-locked memory and the device."""
    host = torch.zeros(nbytes, dtype=torch.uint8, pin_memory=device.type == "cuda")
    there = torch.zeros(nbytes, dtype=torch.uint8, device=device)
    into, given = (host, there) if back else (there, host)
    into.copy_(given, non_blocking=True)
    _wait(device)
    began = time.perf_counter()
    for _ in range(times):
        into.copy_(given, non_blocking=True)
    _wait(device)
    return times * nbytes / (time.perf_counter() - began)


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
