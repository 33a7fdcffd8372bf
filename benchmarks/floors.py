"""Floors, the limits of the machine itself: copies and sums in memory, bare sockets, bare ZeroMQ.

The one idea: a floor is measured in the same run as the figure above it, and does only the work that nobody can leave out.
"""

from __future__ import annotations

import multiprocessing
import select
import socket
import struct
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import msgpack
import numpy as np
import numpy.typing as npt
import zmq

from shoal.benchmarks.timing import quantile

LENGTH = struct.Struct("<I")
FORK = multiprocessing.get_context("fork")
BUSY = 64  # buffers that a sum goes through in turn, so that they come from memory and not from a cache


def memcpy(nbytes: int) -> float:
    """Returns seconds of one copy between two buffers whose pages exist already."""
    source, target = np.ones(nbytes, np.uint8), np.ones(nbytes, np.uint8)
    began = time.perf_counter()
    np.copyto(target, source)
    return time.perf_counter() - began


def weighted_sum(floats: int, times: int) -> float:
    """Returns mean seconds of one total += weight * x, float32 [floats] from memory, by torch on one thread."""
    import torch

    torch.set_num_threads(1)
    total = torch.zeros(floats)
    many = max(2, min(BUSY, 2**29 // (4 * floats)))
    terms = [torch.ones(floats) for _ in range(many)]
    for term in terms:
        total.add_(term, alpha=0.5)
    began = time.perf_counter()
    for at in range(times):
        total.add_(terms[at % many], alpha=0.5)
    return (time.perf_counter() - began) / times


@contextmanager
def others(many: int, work: Callable[[int], None]) -> Iterator[list[Any]]:
    """Starts `many` forked processes that each call `work(number)`, and ends all of them on leaving."""
    processes = [FORK.Process(target=work, args=(number,), daemon=True) for number in range(many)]
    for process in processes:
        process.start()
    try:
        yield processes
    finally:
        for process in processes:
            process.terminate()
            process.join()


@contextmanager
def listening(kind: str) -> Iterator[tuple[socket.socket, Callable[[], socket.socket]]]:
    """Yields a listening socket, "tcp" (loopback) or "unix", and a function that connects to it."""
    with tempfile.TemporaryDirectory(prefix="shoal-bench-") as folder:
        family = socket.AF_INET if kind == "tcp" else socket.AF_UNIX
        server = socket.socket(family)
        server.bind(("127.0.0.1", 0) if kind == "tcp" else str(Path(folder) / "socket"))
        server.listen(1_024)

        def connect() -> socket.socket:
            client = socket.socket(family)
            client.connect(server.getsockname())
            if kind == "tcp":
                client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            return client

        with server:
            yield server, connect


def ping_pong(times: int, nbytes: int = 64) -> float:
    """Returns median seconds of a round trip over loopback TCP between two processes with blocking sockets."""
    with listening("tcp") as (server, connect):

        def echo(number: int) -> None:
            client = connect()
            while said := client.recv(65_536):
                client.sendall(said)

        with others(1, echo):
            line, _ = server.accept()
            line.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            message, seconds = bytes(nbytes), []
            for _ in range(times):
                began = time.perf_counter()
                line.sendall(message)
                line.recv(65_536)
                seconds.append(time.perf_counter() - began)
            line.close()
    return quantile(seconds, 0.5)


def parsed(message: bytes, senders: int, each: int, parse: Callable[[bytes], Any]) -> float:
    """Returns messages a second that one thread takes from `senders` TCP connections: epoll, recv, cut by length, parse."""
    everyone = FORK.Event()
    with listening("tcp") as (server, connect):

        def send(number: int) -> None:
            client, framed = connect(), LENGTH.pack(len(message)) + message
            everyone.wait()
            for _ in range(each):
                client.sendall(framed)
            client.recv(1)

        with others(senders, send):
            lines = {line.fileno(): line for line, _ in (server.accept() for _ in range(senders))}
            waiting, left = select.epoll(), dict.fromkeys(lines, b"")
            for number in lines:
                waiting.register(number, select.EPOLLIN)
            everyone.set()
            began = time.perf_counter()
            done, wanted = 0, senders * each
            while done < wanted:
                for number, _ in waiting.poll():
                    buffer = left[number] + lines[number].recv(65_536)
                    at = 0
                    while at + 4 <= len(buffer):
                        (length,) = LENGTH.unpack_from(buffer, at)
                        if at + 4 + length > len(buffer):
                            break
                        parse(buffer[at + 4 : at + 4 + length])
                        at += 4 + length
                        done += 1
                    left[number] = buffer[at:]
            seconds = time.perf_counter() - began
            waiting.close()
            for line in lines.values():
                line.close()
    return wanted / seconds


def received(kind: str, nbytes: int, senders: int, each: int, add: bool) -> float:
    """Returns messages of `nbytes` a second from `senders` processes by "tcp" or "unix": recv_into, and += if `add`."""
    with listening(kind) as (server, connect):

        def send(number: int) -> None:
            client, message = connect(), np.ones(nbytes // 4, np.float32)
            for _ in range(each):
                client.sendall(message.data)
            client.recv(1)

        with others(senders, send):
            lines = [server.accept()[0] for _ in range(senders)]
            buffers = {line: np.zeros(nbytes // 4, np.float32) for line in lines}
            total = np.zeros(nbytes // 4, np.float32)
            began, done = time.perf_counter(), 0
            poll, have = select.epoll(), dict.fromkeys(lines, 0)
            by_number = {line.fileno(): line for line in lines}
            for number in by_number:
                poll.register(number, select.EPOLLIN)
            while done < senders * each:
                for number, _ in poll.poll():
                    line = by_number[number]
                    have[line] += line.recv_into(buffers[line].data.cast("B")[have[line] :])
                    if have[line] == nbytes:
                        have[line], done = 0, done + 1
                        if add:
                            np.add(total, buffers[line], total)
            seconds = time.perf_counter() - began
            poll.close()
            for line in lines:
                line.close()
    return senders * each / seconds


def spread(nbytes: int, readers: int, times: int) -> float:
    """Returns median seconds to send `nbytes` to each of `readers` processes over loopback TCP, until all have confirmed."""
    message = np.ones(nbytes, np.uint8)
    with listening("tcp") as (server, connect):

        def read(number: int) -> None:
            client, buffer = connect(), np.zeros(nbytes, np.uint8).data
            while True:
                have = 0
                while have < nbytes:
                    got = client.recv_into(buffer[have:])
                    if not got:
                        return
                    have += got
                client.sendall(b".")

        with others(readers, read):
            lines = [server.accept()[0] for _ in range(readers)]
            seconds = [_round(lines, message) for _ in range(times)]
            for line in lines:
                line.close()
    return quantile(seconds, 0.5)


def _round(lines: list[socket.socket], message: npt.NDArray[np.uint8]) -> float:
    """Returns seconds to send the message to all lines, 1 MiB at a time to each line that is ready, until all confirm."""
    began, left = time.perf_counter(), dict.fromkeys(lines, 0)
    for line in lines:
        line.setblocking(False)
    view = message.data
    while left:
        _, ready, _ = select.select([], list(left), [])
        for line in ready:
            left[line] += line.send(view[left[line] : left[line] + (1 << 20)])
            if left[line] == len(view):
                del left[line]
    for line in lines:
        line.setblocking(True)
        line.recv(1)
    return time.perf_counter() - began


def bare_zmq(nbytes: int, actors: int, each: int, ahead: int = 2) -> float:
    """Returns contributions a second of the simplest pyzmq exchange: a token out, a header and raw floats back, one +=."""
    with tempfile.TemporaryDirectory(prefix="shoal-bench-") as folder:
        address = f"ipc://{folder}/hub"

        def answer(number: int) -> None:
            line = zmq.Context().socket(zmq.DEALER)
            line.connect(address)
            payload = np.ones(nbytes // 4, np.float32)
            line.send(msgpack.packb(["hello", number]))
            while True:
                task = msgpack.unpackb(line.recv())
                line.send(msgpack.packb(["contribute", task[1], 1.0]), zmq.SNDMORE)
                line.send(payload.data, 0, nbytes < 65_536)

        hub = zmq.Context()
        router = hub.socket(zmq.ROUTER)
        router.bind(address)
        with others(actors, answer):
            peers = [router.recv_multipart(copy=True)[0] for _ in range(actors)]
            total, given, done, wanted = np.zeros(nbytes // 4, np.float32), 0, 0, actors * each
            began = time.perf_counter()
            for peer in peers * ahead:
                router.send_multipart([peer, msgpack.packb(["assign", given])])
                given += 1
            while done < wanted:
                sender, header, payload = router.recv_multipart(copy=False)
                msgpack.unpackb(header.buffer)
                np.add(total, np.frombuffer(payload.buffer, np.float32), total)
                done += 1
                router.send_multipart([sender.bytes, msgpack.packb(["assign", given])])
                given += 1
            seconds = time.perf_counter() - began
        router.close(linger=0)
        hub.term()
    return wanted / seconds
