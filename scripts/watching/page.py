"""`shoal watch` as a process: the socket, the address that a person opens, and the end.

The one idea: a page beside a run is a process of its own, in a session of its own. It ends when the run's process has ended and
the last state was told; a browser keeps what it shows.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import quote

from shoal.protocol.errors import UserError
from shoal.watching.app import EVERY, application, needed
from shoal.watching.door import Door, is_loopback
from shoal.watching.sources import Elsewhere, Source

PORT = 8265
TRIED = 20  # further ports that are tried if nobody named one
LOCAL = "127.0.0.1"
LAST = 4.0  # seconds that a page has to tell the last state of its run


def bound(host: str, port: int | None) -> socket.socket:
    """A socket that listens at `port`; if it is None, at PORT or the next port that is free. 0: any free port. Raises
    UserError."""
    why = ""
    for one in (port,) if port is not None else range(PORT, PORT + TRIED):
        try:
            family = socket.getaddrinfo(host, one, type=socket.SOCK_STREAM)[0][0]
            made = socket.socket(family, socket.SOCK_STREAM)
        except OSError as wrong:
            raise UserError(f"--host {host}: no address of this machine ({wrong.strerror})") from None
        try:
            made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            made.bind((host, one))
            made.listen(64)
            return made
        except OSError as taken:
            made.close()
            why = taken.strerror or str(taken)
    if port is None:
        raise UserError(f"no port from {PORT} to {PORT + TRIED - 1} is free at {host} ({why}): name one, --port 0 takes any")
    raise UserError(f"port {port} at {host} cannot be had ({why}): name another, or leave --port out for the next free one")


def address_of(listening: socket.socket, token: str = "") -> str:
    """The address that a person opens."""
    host, port = listening.getsockname()[:2]
    if host in ("0.0.0.0", "::"):
        host = socket.gethostname()
    shown = f"[{host}]" if ":" in host else host
    return f"http://{shown}:{port}/" + (f"?token={quote(token)}" if token else "")


def token_of(host: str, given: str) -> str:
    """The token that the page asks for: the one that was given; else none at an address that only this machine reaches, and a
    new one at any other. Raises UserError for a token that an address cannot hold."""
    if given and not (given.isascii() and given.replace("-", "").replace("_", "").isalnum() and len(given) >= 8):
        raise UserError("--token: 8 letters, digits, - or _ at least; leave it out beyond this machine, and one is made")
    return given or ("" if is_loopback(host) else secrets.token_urlsafe(18))


def show(
    sources: Sequence[Source],
    listening: socket.socket,
    token: str = "",
    over: Callable[[], bool] = bool,
    begun: Callable[[], object] = bool,
) -> None:
    """Serve the page until Ctrl-C (KeyboardInterrupt), SIGTERM, or `over` says True. The socket is closed then. begun: called
    once the page answers and a signal ends it. Raises UserError without the extra `watch`."""
    needed()
    import uvicorn

    names = [socket.gethostname(), socket.getfqdn()] if not is_loopback(listening.getsockname()[0]) else []
    ending: list[uvicorn.Server] = []

    def ended() -> bool:
        return over() or any(server.should_exit for server in ending)

    class Page(uvicorn.Server):
        """Looks every EVERY seconds whether it is over; pages that are open get the last news first."""

        async def startup(self, sockets: list[socket.socket] | None = None) -> None:
            await super().startup(sockets)
            begun()

        async def on_tick(self, counter: int) -> bool:
            if counter % max(1, round(EVERY / 0.1)) == 0 and over():
                self.should_exit = True
            return await super().on_tick(counter)

    door = Door(application(sources, ended), names, token)
    config = uvicorn.Config(
        door,
        log_level="critical",
        access_log=False,
        server_header=False,
        lifespan="off",
        ws="none",
        http="h11",
        timeout_graceful_shutdown=2,
    )
    server = Page(config)
    ending.append(server)
    asked = [source for source in sources if isinstance(source, Elsewhere)]
    for source in asked:
        source.begin()
    try:
        server.run(sockets=[listening])
    finally:
        for source in asked:
            source.end()
        listening.close()


@contextmanager
def beside(run: Path) -> Iterator[str]:
    """A page about the run in this folder, by a process of its own; gives its address. The process ends with this block, and by
    itself if this process is killed. Raises UserError without the extra `watch`."""
    needed()
    with bound(LOCAL, None) as listening:
        words = ["watch", str(run), "--socket", str(listening.fileno()), "--beside", str(os.getpid())]
        page = subprocess.Popen(
            [sys.executable, "-m", "shoal", *words],
            pass_fds=[listening.fileno()],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            start_new_session=True,  # Ctrl-C is for the run, whose last state the page still tells
        )
        address = address_of(listening)
    try:
        yield address
    finally:
        page.terminate()  # it tells the last state first
        with contextlib.suppress(subprocess.TimeoutExpired):
            page.wait(LAST)


def orphaned(parent: int) -> Callable[[], bool]:
    """A function that says whether the process that started this one, `parent`, has ended."""
    return lambda: os.getppid() != parent
