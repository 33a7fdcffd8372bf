"""A small model trained by DistributedDataParallel, one process or several, with the same weights in the end.

    python examples/ddp.py weights.npz                                   one process
    pool.submit(shoal.torchrun, "examples/ddp.py", "weights.npz", need=shoal.Need(cores=2, gang=True))

Each rank takes its share of every batch, and DDP averages the gradients: so the steps are those of one process at the same
global batch, but for the rounding of sums.
"""

from __future__ import annotations

import os
import sys

import numpy as np
import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel

BATCH, STEPS = 32, 60


def main(path: str) -> None:
    several = "RANK" in os.environ
    rank, ranks = int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1"))
    device = torch.device("cpu")
    if several and torch.cuda.is_available():
        device = torch.device("cuda", int(os.environ["LOCAL_RANK"]))
    if several:
        torch.distributed.init_process_group("nccl" if device.type == "cuda" else "gloo")
    torch.manual_seed(0)
    inputs = torch.randn(512, 8)
    targets = torch.sin(inputs.sum(1, keepdim=True))
    model: nn.Module = nn.Sequential(nn.Linear(8, 32), nn.Tanh(), nn.Linear(32, 1)).to(device)
    trained = DistributedDataParallel(model) if several else model
    optimizer = torch.optim.SGD(trained.parameters(), lr=0.1)
    for step in range(STEPS):
        batch = torch.arange(step * BATCH, (step + 1) * BATCH) % len(inputs)
        mine = batch[rank::ranks]
        optimizer.zero_grad()
        loss = nn.functional.mse_loss(trained(inputs[mine].to(device)), targets[mine].to(device))
        loss.backward()
        optimizer.step()
    if rank == 0:
        np.savez(path, **{name: value.detach().cpu().numpy() for name, value in model.named_parameters()})
    print(f"rank {rank} of {ranks}: loss {loss.item():.4f}")
    if several:
        torch.distributed.destroy_process_group()


if __name__ == "__main__":
    main(sys.argv[1])
