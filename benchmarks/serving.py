"""Serving: CPU a request, batched and one by one, over HTTP and ZeroMQ, beside LitServe and Ray Serve; and swaps under load.

The one idea: all servers compute the same model in numpy, with one thread, and the CPU of all their processes is counted; the
clients' is not.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import msgpack
import numpy as np
import zmq

from shoal.benchmarks.case import Finding
from shoal.benchmarks.peers import questions
from shoal.benchmarks.peers import serving as load
from shoal.benchmarks.peers.beside import Beside
from shoal.benchmarks.timing import interleaved
from shoal.protocol.codec import decode_all, encode
from shoal.protocol.layout import Bundle
from shoal.protocol.messages import Envelope, Predict, Predicted

CLIENTS = 32
BATCHED, HTTP, ZMQ = 0.6, 2.0, 5.0  # the goals: of one by one; times the requests per CPU-second of the best peer
VERSIONS, BAD = 50, 26  # versions published under load; the version that holds NaN
STEP = 1_000.0  # between the outputs of one version and of the next


def serve(quick: bool) -> Finding:
    """CPU of a request of one row."""
    number = 2_048 if quick else 4_096
    beside = Beside(questions.serving(number, CLIENTS), quick, min)
    ways = {
        "http": partial(_http, number, load.BATCH),
        "http_one": partial(_http, number, 1),
        "zmq": partial(_zmq, number, load.BATCH),
        "zmq_one": partial(_zmq, number, 1),
    }
    found = dict(zip(ways, interleaved(1 if quick else 3, *ways.values(), beside.turn), strict=False))
    swaps = _swapped(number)
    peers = [one for one in map(beside.best, ("litserve", "rayserve")) if one is not None]
    peer = min(peers, default=None)
    goals = [found["http"] <= BATCHED * found["http_one"], found["zmq"] <= BATCHED * found["zmq_one"]]
    goals.append(swaps["failed"] == swaps["mixed"] == 0 and swaps["refused"] == 1)
    if peer is not None:
        goals += [peer >= HTTP * found["http"], peer >= ZMQ * found["zmq"]]
    return Finding(
        figure=found["http"],
        unit="us of CPU a request over HTTP, batched",
        goal=BATCHED * found["http_one"],
        peer=peer,
        ratio=None if peer is None else found["http"] / peer,
        holds=all(goals),
        asked="batched at most 0.6 of one by one; requests a CPU-second at least 2 times those of LitServe and Ray Serve over "
        "HTTP, 5 times over ZeroMQ; 50 versions under load, one of NaN: 0 failed, 0 mixed",
        details={
            **found,
            "http_batched_to_one": found["http"] / found["http_one"],
            "zmq_batched_to_one": found["zmq"] / found["zmq_one"],
            "peer_to_http": None if peer is None else peer / found["http"],
            "peer_to_zmq": None if peer is None else peer / found["zmq"],
            "swaps": swaps,
            **beside.details(),
        },
    )


def _http(number: int, batch: int) -> float:
    """Microseconds of CPU a request over HTTP."""
    port = load.free_port()
    return load.measured(_command(batch, port, 0, 0), port, "/predict", number, CLIENTS)


def _zmq(number: int, batch: int) -> float:
    """Microseconds of CPU a request over ZeroMQ."""
    with _Server(batch, 0) as server:
        server.asked(number // 4, lambda answer, outputs: True)
        before = load.cpu(server.process.pid)
        if bad := server.asked(number, lambda answer, outputs: True):
            raise RuntimeError(f"{bad} of {number} answers were bad")
        return (load.cpu(server.process.pid) - before) / number * 1e6


def _swapped(number: int) -> dict[str, Any]:
    """Requests over ZeroMQ while 50 versions are published, one of them of NaN."""
    with _Server(load.BATCH, VERSIONS) as server:
        mixed, longest, seen = 0, 0.0, set[int]()
        last = time.monotonic()

        def judge(answer: Predicted, outputs: Any) -> bool:
            nonlocal mixed, longest, last
            now = time.monotonic()
            longest, last = max(longest, now - last), now
            seen.add(answer.version)
            mixed += bool((np.round(outputs / STEP) != answer.version).any())
            return True

        failed = asked = 0
        while server.going():
            failed += server.asked(number // 4, judge)
            asked += number // 4
        told = server.end()
        return {"requests": asked, "failed": failed, "mixed": mixed, "seen": len(seen), "longest_ms": longest * 1e3, **told}


class _Server:
    """A server over ZeroMQ in a process of its own, which publishes `versions` versions."""

    def __init__(self, batch: int, versions: int) -> None:
        self.port = load.free_port()
        self.process = subprocess.Popen(
            _command(batch, 0, self.port, versions),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env=load.one_thread(),
            start_new_session=True,
        )
        self._context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        self._sockets: list[zmq.Socket[bytes]] = []
        self._began = False

    def __enter__(self) -> _Server:
        assert self.process.stdout is not None
        self.process.stdout.readline()  # it says that it listens
        for _ in range(CLIENTS):
            one = self._context.socket(zmq.DEALER)
            one.connect(f"tcp://127.0.0.1:{self.port}")
            self._sockets.append(one)
        return self

    def __exit__(self, *_: object) -> None:
        for one in self._sockets:
            one.close(0)
        self._context.term()
        load.ended(self.process)

    def asked(self, number: int, judge: Callable[[Predicted, Any], bool]) -> int:
        """Make so many requests, one at a time over each connection. Returns the number of bad answers."""
        rows = np.arange(load.WIDE[0], dtype=np.float32)[None] * np.float32(0.001)
        said = encode(Envelope(b"12345678", 0, Predict(1, "float32", rows.shape)))
        payload = msgpack.packb(rows.tobytes())
        poller, left, bad = zmq.Poller(), dict.fromkeys(self._sockets, number // CLIENTS), 0
        for one in self._sockets:
            poller.register(one, zmq.POLLIN)
            one.send(said + payload)
        while left:
            for one, _ in poller.poll():
                [(envelope, arrays)] = decode_all(one.recv())
                message = envelope.message
                good = isinstance(message, Predicted) and arrays is not None
                bad += not (good and judge(message, np.frombuffer(arrays or b"", np.float32)))  # type: ignore[arg-type]
                left[one] -= 1
                if left[one]:
                    one.send(said + payload)
                else:
                    del left[one]
                    poller.unregister(one)
        return bad

    def going(self) -> bool:
        """True until the server has published all versions. The first call lets it begin."""
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        if not self._began:
            self._began = True
            self.process.stdin.write(b"begin\n")
            self.process.stdin.flush()
            os.set_blocking(self.process.stdout.fileno(), False)
            return True
        return not self.process.stdout.readline()

    def end(self) -> dict[str, Any]:
        """The figures that the server tells at its end."""
        assert self.process.stdout is not None
        os.set_blocking(self.process.stdout.fileno(), True)
        self.process.send_signal(signal.SIGTERM)
        told: dict[str, Any] = json.loads(self.process.stdout.readline())
        return told


def _command(batch: int, port: int, zmq_port: int, versions: int) -> list[str]:
    return [sys.executable, "-m", "shoal.benchmarks.serving", *map(str, (batch, port, zmq_port, versions))]


def _numpy_model(bundle: Bundle) -> Callable[[Any], Any]:
    weights, shift = load.layers(), float(bundle["version"][0]) * STEP

    def compute(rows: Any) -> Any:
        found = load.forward(weights, rows)
        return found if shift == 0 else found + np.float32(shift)

    return compute


def main(batch: int, port: int, zmq_port: int, versions: int) -> None:
    """The process of a server: over HTTP at `port` or over ZeroMQ at `zmq_port`; then it publishes `versions` versions."""
    import math
    import socket
    import threading

    from shoal.serving.inputs import Inputs
    from shoal.serving.places import Doors
    from shoal.serving.plan import Plan
    from shoal.serving.serve import Life
    from shoal.serving.server import Diary, Limits, Served, Server
    from shoal.serving.splitting import split_of

    class Source:
        def start(self, take: Any, say: Any) -> bool:
            self.take = take
            take(0, Bundle.pack({"version": np.zeros(1, np.float32)}))
            return True

        def end(self) -> None:
            pass

    source = Source()
    doors = Doors(addresses={"http": f"http://127.0.0.1:{port}", "zmq": f"tcp://127.0.0.1:{zmq_port}"})
    if port:
        doors.http = socket.create_server(("127.0.0.1", port), backlog=128)
        doors.http.setblocking(False)
    if zmq_port:
        doors.zmq = socket.create_server(("127.0.0.1", zmq_port), backlog=128)
        doors.zmq.setblocking(False)
    folder = Path(tempfile.mkdtemp(prefix="shoal-serve-"))
    inputs = Inputs((load.WIDE[0],), "float32", 64)
    example = np.zeros((1, load.WIDE[0]), np.float32)
    models = [Served("m", inputs, _numpy_model, source, "bench", example=example)]

    class Bench(Life):
        def _server(self) -> Server:
            self.threads = 1
            limits = Limits(max_batch=batch, max_wait=load.WAIT)
            diary = Diary(folder / "serve.jsonl")
            return Server(models, split_of("", ["m"]), limits, time.monotonic, time.time, lambda: 0, {"pids": []}, "n", diary)

        def _announce(self, server: Server) -> None:
            print("listening", flush=True)
            self.served = server
            if versions:
                threading.Thread(target=self._publish, args=(server,), daemon=True).start()

        def _publish(self, server: Server) -> None:
            sys.stdin.readline()
            book = server.books["m"]
            for version in range(1, versions + 1):
                told = math.nan if version == BAD else version
                source.take(version, Bundle.pack({"version": np.full(1, told, np.float32)}))
                while book.wants(version):
                    self._end.wait(0.005)
                self._end.wait(0.05)
            print("published", flush=True)

    life = Bench(Plan(("bench",)), doors, folder, 0, quiet=True)
    life.live()
    book = life.served.books["m"]
    print(json.dumps({"swaps": book.swaps, "refused": book.refusals}), flush=True)


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
