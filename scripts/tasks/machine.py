"""The resources of this machine for calls: cores, memory, GPUs."""

from __future__ import annotations

import os
import shutil
import subprocess

from shoal.coordinator.deciding.resources import Machine
from shoal.protocol.memory import room
from shoal.runs.threads import cores

WAIT = 20.0  # seconds that nvidia-smi may take


def machine(actors: int) -> Machine:
    """The machine of a pool. A pool of more actors than there are cores has as many cores as actors: its user wants them."""
    return Machine(max(actors, cores()), room().nbytes)


def gpus() -> list[str]:
    """The names by which CUDA knows this machine's GPUs that this program may use; empty if there are none."""
    if (said := os.environ.get("CUDA_VISIBLE_DEVICES")) is not None:
        return [name.strip() for name in said.split(",") if name.strip() not in ("", "-1")]
    if shutil.which("nvidia-smi") is None:
        return []
    asked = ["nvidia-smi", "--query-gpu=index", "--format=csv,noheader"]
    try:
        done = subprocess.run(asked, capture_output=True, text=True, timeout=WAIT, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return []
    return done.stdout.split() if done.returncode == 0 else []
