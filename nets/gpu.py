"""The question whether this machine has a GPU, asked in a way that leaves copies of this process able to use it.

The one idea: CUDA starts in a process at the first question to its runtime, and no copy of such a process can use a GPU.
NVIDIA's management library counts GPUs without that, so everything that happens before actors are forked asks here.
"""

from __future__ import annotations

import torch


def has_gpu() -> bool:
    """Return whether this machine has a GPU that this torch is built for. Only where the management library does not answer is
    CUDA's runtime asked."""
    return torch.cuda.device_count() > 0
