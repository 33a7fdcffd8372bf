"""A venv for each peer, outside the checkout, with exactly the versions that its requirements file pins.

The one idea: a stamp names the requirements that were installed completely, so the second time starts at once and half an
installation is never used. If a peer cannot be installed, the reason is one line and not a crash.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import re
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from shoal.up import reason

HERE = Path(__file__).resolve().parent
PEERS = ("flower", "flowertorch", "pfl", "ray", "pools", "litserve", "rayserve", "sb3", "rllib", "samplefactory")
PINNED = re.compile(r"([A-Za-z0-9._-]+)(?:\[[a-z,]+\])?==([A-Za-z0-9.+!]+)")
MINUTES = 30
NOT_THEIRS = ("PYTHONPATH", "PYTHONHOME", "VIRTUAL_ENV", "PYTHONWARNINGS")


class AbsentError(Exception):
    """A peer is not available here; the message is the reason, in one line."""


def python(peer: str, install: bool) -> Path:
    """Returns the Python of a peer's venv. Makes the venv if it is missing and `install` is true. Raises AbsentError."""
    folder = venv(peer)
    inside = folder / "bin" / "python"
    if _stamped(folder) == digest(peer) and inside.exists():
        return inside
    if not install:
        raise AbsentError("not installed; `shoal bench CASE --peers install` does that")
    try:
        with _alone(folder):
            if _stamped(folder) != digest(peer) or not inside.exists():
                _make(peer, folder)
    except OSError as error:
        raise AbsentError(f"not installed: {error}") from error
    return inside


def venv(peer: str) -> Path:
    """Returns the venv's folder, in the user's cache, by name, version and Python."""
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return cache / "shoal" / "peers" / f"{peer}-{version(peer)}-py{sys.version_info[0]}.{sys.version_info[1]}"


def version(peer: str) -> str:
    """Returns the version of the peer's own library: the first line of its requirements."""
    return next(iter(pins(peer).values()))


def pins(peer: str) -> Mapping[str, str]:
    """Returns the versions that a peer's requirements file pins, by distribution. Raises ValueError for any other line."""
    found: dict[str, str] = {}
    for line in requirements(peer).read_text().splitlines():
        if line and not line.startswith("#"):
            pin = PINNED.fullmatch(line)
            if pin is None:
                raise ValueError(f"{requirements(peer).name}: {line!r} is no exact pin")
            found[pin[1]] = pin[2]
    return found


def requirements(peer: str) -> Path:
    return HERE / f"{peer}.txt"


def digest(peer: str) -> str:
    return hashlib.sha256(requirements(peer).read_bytes()).hexdigest()


def surroundings(folder: Path) -> dict[str, str]:
    """Returns the environment without variables of Shoal's own venv, with the peer's commands first on the path."""
    kept = {name: value for name, value in os.environ.items() if name not in NOT_THEIRS}
    return {**kept, "PATH": f"{folder / 'bin'}{os.pathsep}{kept.get('PATH', os.defpath)}"}


def _make(peer: str, folder: Path) -> None:
    """Makes the venv. Raises AbsentError with the reason that venv or pip gave."""
    print(f"Installing {peer} {version(peer)} into {folder}: once, and a few minutes.", file=sys.stderr, flush=True)
    _stamp(folder).unlink(missing_ok=True)
    inside = folder / "bin" / "python"
    pip = (inside, "-m", "pip", "install", "--no-input", "--only-binary=:all:", "--retries=2", "--timeout=30")
    for command in ((sys.executable, "-m", "venv", "--clear", folder), (*pip, "--requirement", requirements(peer))):
        failed, said = run(*command, environment=surroundings(folder))
        if failed:
            raise AbsentError(f"not installed: {_why(said)}")
    _stamp(folder).write_text(digest(peer))


def _why(said: list[str]) -> str:
    """Returns the reason in pip's output, whose last line does not tell a missing index from a missing version."""
    cut_off = any("Retrying" in line for line in said)
    return "no package index could be reached" if cut_off else reason(said)


def run(*command: str | Path, environment: Mapping[str, str]) -> tuple[bool, list[str]]:
    """Runs a command. Returns True if it failed, and the lines of its output."""
    try:
        done = subprocess.run(
            command,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
            timeout=60 * MINUTES,
            check=False,
        )
    except subprocess.TimeoutExpired:
        return True, [f"no end in {MINUTES} minutes"]
    return done.returncode != 0, done.stdout.splitlines(keepends=True)


def _stamp(folder: Path) -> Path:
    return folder / "shoal-peer.stamp"


def _stamped(folder: Path) -> str:
    return _stamp(folder).read_text() if _stamp(folder).exists() else ""


@contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """Holds a lock, so that only one process at a time installs a venv."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    with Path(f"{folder}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield
