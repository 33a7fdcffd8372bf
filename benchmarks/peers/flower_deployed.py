"""Flower's deployment on one machine: rounds of two clients that do nothing. Runs in Flower's own venv, without Shoal.

Prints a JSON line: median milliseconds of a round without the first round, and the versions. All servers listen on 127.0.0.1
and are ended by process id.

The one idea: this file is also the app, packed into a bundle that the SuperLink hands to the processes it starts.
`superlink` is a SuperLink and two SuperNodes without TLS. Tried: as installed, with Flower's FedAvg, a round takes 6.1 s;
with FLWR_SUPEREXEC_TASK_POLL_INTERVAL at its least, 0.01 s, it takes 3.1 to 6.3 s; with a server loop of push_messages and
pull_messages every 10, 50 or 100 ms, 4.1 to 5.5 s. The rest cannot be set: a SuperNode that found no message sleeps for 3 s,
and each message to a client starts a Python process. (Flower 1.42 speaks HTTP here and gRPC no longer.)
`start_server` is the gRPC server with clients that stay, deprecated since 1.13 and still shipped.
"""

from __future__ import annotations

import json
import logging
import os
import shutil
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib import metadata
from itertools import pairwise
from pathlib import Path

os.environ.update(FLWR_TELEMETRY_ENABLED="0", FLWR_DISABLE_UPDATE_CHECK="1", FLWR_SUPEREXEC_TASK_POLL_INTERVAL="0.01")

import numpy as np
from flwr.app import ArrayRecord, ConfigRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from flwr.common import Code, FitIns, FitRes, Status, ndarrays_to_parameters
from flwr.serverapp import Grid, ServerApp

FLOATS, NODES = 1_000, 2
PATIENCE = 60.0
WAIT = threading.Event()
PROJECT = """
[project]
name = "nothing"
version = "1.0.0"
description = "Clients that do nothing"
license = "Apache-2.0"
dependencies = []
[tool.flwr.app]
publisher = "nobody"
[tool.flwr.app.components]
serverapp = "nothing.app:server"
clientapp = "nothing.app:client"
[tool.flwr.app.config]
rounds = 1
out = ""
"""
SUPERLINK = """
[superlink]
default = "here"
[superlink.here]
address = "127.0.0.1:{port}"
insecure = true
"""
server = ServerApp()
client = ClientApp()


@client.train()  # type: ignore[untyped-decorator]
def train(message: Message, _: Context) -> Message:
    content = RecordDict({"arrays": message.content["arrays"], "metrics": MetricRecord({"num-examples": 1})})
    return Message(content=content, reply_to=message)


@server.main()  # type: ignore[untyped-decorator]
def serve(grid: Grid, context: Context) -> None:
    """Makes the rounds, in the process that the SuperLink starts, and writes the times of their ends into a file."""
    while len(nodes := list(grid.get_node_ids())) < NODES:
        WAIT.wait(0.1)
    arrays, moments = ArrayRecord([np.zeros(FLOATS, np.float32)]), []
    for number in range(int(context.run_config["rounds"]) + 1):
        content = RecordDict({"arrays": arrays, "config": ConfigRecord({"server-round": number})})
        asked = [Message(content=content, dst_node_id=node, message_type="train") for node in nodes]
        waiting = set(grid.push_messages(asked))
        while waiting:
            for reply in grid.pull_messages(waiting):
                waiting.discard(reply.metadata.reply_to_message_id)
                assert reply.has_content()
            WAIT.wait(0.05 if waiting else 0)
        moments.append(time.perf_counter())
    part = Path(str(context.run_config["out"]) + ".part")
    part.write_text(json.dumps(moments))
    part.rename(part.with_suffix(""))


def superlink(rounds: int, folder: Path) -> list[float]:
    """Runs this app on a SuperLink and two SuperNodes; returns the times at which rounds ended."""
    os.environ.update(FLWR_HOME=str(folder / "home"), PATH=f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}")
    app, out = folder / "app", folder / "moments"
    (app / "nothing").mkdir(parents=True)
    (app / "pyproject.toml").write_text(PROJECT)
    (app / "nothing" / "__init__.py").touch()
    shutil.copyfile(__file__, app / "nothing" / "app.py")
    port, *others = free_ports(1 + NODES)
    (folder / "home").mkdir()
    (folder / "home" / "config.toml").write_text(SUPERLINK.format(port=port))
    at = ["--insecure", "--host", "127.0.0.1", "--port"]
    nodes = [["flower-supernode", "--superlink", f"127.0.0.1:{port}", *at, str(other)] for other in others]
    with started(["flower-superlink", "--disable-runtime-dependency-installation", *at, str(port)]):
        until(lambda: answers(port), "the SuperLink does not answer")
        with started(*nodes):
            settings = f"rounds={rounds} out='{out}'"
            subprocess.run(["flwr", "run", str(app), "here", "--run-config", settings], check=True, stdout=sys.stderr)
            until(out.exists, "the run does not end", PATIENCE + 15 * rounds)
    moments: list[float] = json.loads(out.read_text())
    return moments


def start_server(rounds: int, folder: Path) -> list[float]:
    """Runs the gRPC server in this process and two clients in their own; returns the times at which rounds ended."""
    from flwr.server import ServerConfig
    from flwr.server import start_server as start
    from flwr.server.strategy import FedAvg

    moments: list[float] = []
    weights = ndarrays_to_parameters([np.zeros(FLOATS, np.float32)])

    class Noting(FedAvg):  # type: ignore[misc]
        def aggregate_fit(self, server_round: int, results: list[object], failures: list[object]) -> object:
            assert len(results) == NODES, failures[:1]
            moments.append(time.perf_counter())
            return weights, {}

    [port] = free_ports(1)
    strategy = Noting(fraction_evaluate=0.0, initial_parameters=weights)
    with started(*[[sys.executable, "-P", __file__, "client", str(port)]] * NODES):
        start(server_address=f"127.0.0.1:{port}", config=ServerConfig(num_rounds=rounds + 1), strategy=strategy)
    return moments


def stay(port: str) -> None:
    """Runs a client of `start_server` until the server ends it."""
    from flwr.client import Client, start_client

    class Nothing(Client):  # type: ignore[misc]
        def fit(self, ins: FitIns) -> FitRes:
            return FitRes(Status(Code.OK, ""), ins.parameters, 1, {})

    start_client(server_address=f"127.0.0.1:{port}", client=Nothing(), insecure=True)


@contextmanager
def started(*commands: list[str]) -> Iterator[None]:
    """Starts the commands and ends them on leaving: SIGTERM first, SIGKILL after 10 s."""
    children = [subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=sys.stderr) for command in commands]
    try:
        yield
    finally:
        for child in children:
            child.terminate()
        for child in children:
            try:
                child.wait(10)
            except subprocess.TimeoutExpired:
                child.kill()
                child.wait()


def free_ports(many: int) -> list[int]:
    open_ones = [socket.create_server(("127.0.0.1", 0)) for _ in range(many)]
    ports = [one.getsockname()[1] for one in open_ones]
    for one in open_ones:
        one.close()
    return ports


def answers(port: int) -> bool:
    with socket.socket() as line:
        return line.connect_ex(("127.0.0.1", port)) == 0


def until(there: Callable[[], bool], complaint: str, seconds: float = PATIENCE) -> None:
    end = time.monotonic() + seconds
    while not there():
        if time.monotonic() > end:
            raise TimeoutError(complaint)
        WAIT.wait(0.1)


def stop(number: int, _: object) -> None:
    raise SystemExit(128 + number)  # an exception, so that `started` ends its processes


def main(way: str, word: str) -> None:
    logging.getLogger("flwr").setLevel(logging.ERROR)
    if way == "client":
        stay(word)
        return
    signal.signal(signal.SIGTERM, stop)
    with tempfile.TemporaryDirectory(prefix="flower-", ignore_cleanup_errors=True) as folder:
        moments = {"superlink": superlink, "start_server": start_server}[way](int(word), Path(folder))
    rounds = [after - before for before, after in pairwise(moments)]
    versions = {"flwr": metadata.version("flwr")}
    print(json.dumps({"figure": 1e3 * statistics.median(rounds), "versions": versions}))


if __name__ == "__main__":
    main(*sys.argv[1:])
