"""A server of a small model, and a load on it: LitServe and Ray Serve, in their own venvs, without Shoal. Shoal's own server is
loaded and measured by the same functions.

Prints a JSON line: microseconds of CPU a request, of all processes of the server together, and the versions.

The one idea: the servers compute the same model in numpy, a request is one row of 784 numbers as JSON, and as many clients as
given ask again as soon as they have their answer.
"""

from __future__ import annotations

import asyncio
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from importlib import metadata
from importlib.util import find_spec
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

WIDE = (784, 512, 512, 10)
BATCH, WAIT = 32, 0.002  # rows of a batch; seconds that a request waits for others, at most
STARTING = 120.0  # seconds that a server may take to answer
Floats = npt.NDArray[np.float32]


def layers() -> list[Floats]:
    rng = np.random.default_rng(0)
    return [rng.normal(0, 0.05, (a, b)).astype(np.float32) for a, b in pairwise(WIDE)]


def forward(weights: list[Floats], rows: Floats) -> Floats:
    """The model: rows [n, 784] -> [n, 10]."""
    for each in weights[:-1]:
        rows = np.maximum(rows @ each, 0)
    found: Floats = rows @ weights[-1]
    return found


# The servers


if find_spec("litserve"):  # its worker process, which is spawned, finds the class by name
    import litserve as lit

    class Api(lit.LitAPI):  # type: ignore[misc]
        def setup(self, device: Any) -> None:
            self.weights = layers()

        def decode_request(self, request):  # type: ignore[no-untyped-def]  # an annotation would become a query
            return np.array(request["inputs"], np.float32)

        def batch(self, inputs: list[Floats]) -> Floats:
            return np.concatenate(inputs)

        def predict(self, rows: Floats) -> Floats:
            return forward(self.weights, rows)

        def unbatch(self, outputs: Floats) -> list[Floats]:
            return list(outputs)

        def encode_response(self, output: Floats) -> dict[str, Any]:
            return {"outputs": [output.tolist()]}


def litserve(port: int, fast: bool) -> None:
    api = Api(max_batch_size=BATCH, batch_timeout=WAIT)
    server = lit.LitServer(api, accelerator="cpu", workers_per_device=1, fast_queue=fast)
    server.run(host="127.0.0.1", port=port, num_api_servers=1, generate_client_file=False, log_level="error")


def rayserve(port: int) -> None:
    import ray
    from ray import serve

    @serve.deployment(num_replicas=1, max_ongoing_requests=1_000)
    class Model:
        def __init__(self) -> None:
            self.weights = layers()

        @serve.batch(max_batch_size=BATCH, batch_wait_timeout_s=WAIT)  # type: ignore[untyped-decorator]
        async def many(self, rows: list[Floats]) -> list[Floats]:
            return list(forward(self.weights, np.concatenate(rows)))

        async def __call__(self, request: Any) -> dict[str, Any]:
            asked = await request.json()
            output = await self.many(np.array(asked["inputs"], np.float32))
            return {"outputs": [output.tolist()]}

    ray.init(num_cpus=4, include_dashboard=False, log_to_driver=False, _node_ip_address="127.0.0.1")
    serve.start(http_options={"host": "127.0.0.1", "port": port, "access_log": False})
    serve.run(Model.bind())  # type: ignore[attr-defined]
    signal.pause()


# The load


def body() -> bytes:
    return json.dumps({"inputs": [[round(0.001 * number, 3) for number in range(WIDE[0])]]}).encode()


def request(port: int, path: str = "/predict") -> bytes:
    asked = body()
    head = f"POST {path} HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\nContent-Type: application/json\r\n"
    return f"{head}Content-Length: {len(asked)}\r\n\r\n".encode() + asked


async def asks(port: int, path: str, each: int, judge: Callable[[bytes], bool]) -> int:
    """Ask `each` times over one connection. Returns the number of answers that `judge` finds bad."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    asked, bad = request(port, path), 0
    for _ in range(each):
        writer.write(asked)
        head = await reader.readuntil(b"\r\n\r\n")
        if (at := head.lower().find(b"content-length:") + 15) >= 15:
            answer = await reader.readexactly(int(head[at : head.index(b"\r\n", at)]))
        else:
            answer = await reader.readuntil(b"\r\n0\r\n\r\n")  # chunks, as Ray Serve sends
        bad += not (head.startswith(b"HTTP/1.1 200") and judge(answer))
    writer.close()
    return bad


def load(port: int, path: str, number: int, clients: int, judge: Callable[[bytes], bool] = bool) -> int:
    """Make `number` requests by so many clients at once. Returns the number of bad answers."""

    async def all_clients() -> int:
        return sum(await asyncio.gather(*(asks(port, path, number // clients, judge) for _ in range(clients))))

    return asyncio.run(all_clients())


def descendants(pid: int) -> list[int]:
    """The process and all that come from it."""
    parents: dict[int, list[int]] = {}
    for path in Path("/proc").iterdir():
        if path.name.isdigit():
            with suppress(OSError, ValueError):
                parents.setdefault(int((path / "stat").read_text().rpartition(")")[2].split()[1]), []).append(int(path.name))
    found = [pid]
    for each in found:
        found += parents.get(each, [])
    return found


def cpu(pid: int) -> float:
    """Seconds of CPU that a process and all that come from it have taken."""
    ticks = 0
    for each in descendants(pid):
        with suppress(OSError):
            fields = Path(f"/proc/{each}/stat").read_text().rpartition(")")[2].split()
            ticks += int(fields[11]) + int(fields[12])
    return ticks / os.sysconf("SC_CLK_TCK")


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as found:
        port: int = found.getsockname()[1]
        return port


def wait_for(port: int, path: str, process: subprocess.Popen[bytes]) -> None:
    """Wait until the server answers a request with 200."""
    until = time.monotonic() + STARTING
    while time.monotonic() < until:
        if process.poll() is not None:
            raise SystemExit(f"the server ended with {process.returncode}")
        with suppress(OSError, asyncio.IncompleteReadError, ValueError):
            if load(port, path, 1, 1) == 0:
                return
        threading.Event().wait(0.2)
    raise SystemExit(f"no answer within {STARTING:g} s")


def one_thread() -> dict[str, str]:
    return {**os.environ, "OMP_NUM_THREADS": "1"}


def measured(command: list[str], port: int, path: str, number: int, clients: int) -> float:
    """Microseconds of CPU a request of the server that a command starts."""
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, env=one_thread(), start_new_session=True)
    try:
        wait_for(port, path, process)
        load(port, path, number // 4, clients)
        before = cpu(process.pid)
        if bad := load(port, path, number, clients):
            raise SystemExit(f"{bad} of {number} answers were bad")
        return (cpu(process.pid) - before) / (number // clients * clients) * 1e6
    finally:
        ended(process)


def ended(process: subprocess.Popen[bytes]) -> None:
    """End a server and all that come from it."""
    whole = descendants(process.pid)
    with suppress(ProcessLookupError):
        process.send_signal(signal.SIGTERM)
    with suppress(subprocess.TimeoutExpired):
        process.wait(5)
    for pid in whole:
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    process.wait()


def main(peer: str, number: int, clients: int) -> None:
    name = peer.partition("-")[0]
    port = free_port()
    path = {"litserve": "/predict", "rayserve": "/"}[name]
    figure = measured([sys.executable, "-P", __file__, "serve", peer, str(port)], port, path, number, clients)
    library = {"litserve": "litserve", "rayserve": "ray"}[name]
    print(json.dumps({"figure": figure, "versions": {library: metadata.version(library)}}))


if __name__ == "__main__":
    match sys.argv[1:]:
        case ["serve", "rayserve", port]:
            rayserve(int(port))
        case ["serve", peer, port]:
            litserve(int(port), peer.endswith("-fast"))
        case [peer, number, clients]:
            main(peer, int(number), int(clients))
