"""Servers over real sockets, and an ASGI application that is called directly. A model gives the number of its version.

The one idea: the outputs of version n are n, in every column, so an answer of two versions shows.
"""

from __future__ import annotations

import asyncio
import json
import math
import socket
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
import pytest

import shoal
from shoal.protocol.errors import UserError
from shoal.protocol.layout import Bundle
from shoal.protocol.link import Hub, Line
from shoal.protocol.messages import Declined, Envelope, Predict
from shoal.serving.client import Client
from shoal.serving.inputs import Array, Inputs, WrongRequestError
from shoal.serving.server import Diary, Limits, Request, Served, Server, Unanswered
from shoal.serving.splitting import split_of
from shoal.serving.stats import merged
from shoal.serving.web import Web, outcome_line
from shoal.serving.wire import LARGEST, Wire


@dataclass
class ByHand:
    """A source whose versions a test gives."""

    take: Callable[[int, Bundle], None] = field(default=lambda version, weights: None)

    def start(self, take: Callable[[int, Bundle], None], say: Callable[[str], None]) -> bool:
        self.take = take
        return False

    def end(self) -> None:
        pass


def weights(version: float) -> Bundle:
    return Bundle.pack({"a": np.full(1, version, np.float32), "b": np.full(1, version, np.float32)})


def numbered(bundle: Bundle) -> Callable[[Array], Array]:
    """A model that gives its version in two columns, each from an array of its own, and fails for a row that begins with 13."""

    def compute(rows: Array) -> Array:
        if (rows[:, 0] == 13).any():
            raise ValueError("13 is no good")
        return np.stack([np.full(len(rows), bundle["a"][0]), np.full(len(rows), bundle["b"][0])], axis=1)

    return compute


def made(
    names: Sequence[str] = ("a",), split: str = "", limits: Limits | None = None, diary: Diary | None = None, **parts: Any
) -> Server:
    inputs = Inputs((2,), "float32", 8)
    models = [Served(name, inputs, numbered, ByHand(), f"runs/{name}", example=np.zeros((1, 2), np.float32)) for name in names]
    for one in models:
        for name, value in parts.items():
            setattr(one, name, value)
    clock = iter(range(10**9))
    limits = limits or Limits(max_batch=8)
    made = Server(
        models, split_of(split, names), limits, lambda: next(clock) * 1e-5, lambda: 7.0, lambda: 0, {"pids": [1]}, "n", diary
    )
    for name in names:
        made.take(made.models[name], 1, weights(1))
    return made


@contextmanager
def serving(server: Server) -> Iterator[Server]:
    server.start()
    try:
        yield server
    finally:
        server.drain()


@contextmanager
def wired(server: Server) -> Iterator[str]:
    """The address of a server over ZeroMQ."""
    with serving(server):
        wire = Wire(Hub("tcp://127.0.0.1:*", largest=LARGEST), server, lambda: merged([server.figures()]))
        wire.start()
        try:
            yield wire.hub.address
        finally:
            wire.end()


def over_http(
    server: Server,
    asked: Sequence[tuple[str, str, Any, Mapping[str, str]]],
    token: str = "",
    sticky: str = "x-user",
    pinned: Callable[[str, int | None], None] = lambda name, version: None,
    together: bool = False,
) -> list[tuple[int, Any, dict[str, str]]]:
    """(status, body, headers) of each of several requests (method, path, body, headers), sent one after another; or
    together, all at once, to a server that has nothing to do."""
    web = Web(server, lambda: merged([server.figures()]), pinned, token, sticky)

    async def one(method: str, path: str, body: Any, headers: Mapping[str, str]) -> tuple[int, Any, dict[str, str]]:
        raw = body if isinstance(body, bytes) else json.dumps(body).encode()
        head = {"host": "127.0.0.1:8080", "content-type": "application/json", "content-length": str(len(raw)), **headers}
        scope = {
            "type": "http", "method": method, "path": path, "query_string": b"", "http_version": "1.1", "scheme": "http",
            "headers": [(name.encode(), value.encode()) for name, value in head.items()],
        }  # fmt: skip
        parts = [raw[: len(raw) // 2], raw[len(raw) // 2 :]]
        sent: list[Mapping[str, Any]] = []

        async def receive() -> Mapping[str, Any]:
            part = parts.pop(0) if parts else b""
            return {"type": "http.request", "body": part, "more_body": bool(parts)}

        async def send(message: Mapping[str, Any]) -> None:
            sent.append(message)

        await web(scope, receive, send)
        text = b"".join(message.get("body", b"") for message in sent)
        told = {name.decode(): value.decode() for name, value in sent[0]["headers"]}
        return sent[0]["status"], json.loads(text) if told["content-type"] == "application/json" else text.decode(), told

    async def all_of_them() -> list[tuple[int, Any, dict[str, str]]]:
        while together and not server._idle:  # its thread has just begun
            await asyncio.sleep(0)
        return await asyncio.gather(*(one(*each) for each in asked)) if together else [await one(*each) for each in asked]

    with serving(server):
        return asyncio.run(all_of_them())


def predict(rows: Any, **headers: str) -> tuple[str, str, Any, Mapping[str, str]]:
    return "POST", "/predict", {"inputs": rows}, {name.replace("_", "-"): value for name, value in headers.items()}


def test_a_prediction_over_http_names_its_model_and_version() -> None:
    [(status, body, headers)] = over_http(made(), [predict([[1, 2], [3, 4]])])
    assert (status, body) == (200, {"outputs": [[1.0, 1.0], [1.0, 1.0]], "model": "a", "version": 1})
    assert headers["x-request-id"] == "n-1"


@pytest.mark.parametrize(
    ("asked", "status", "fault"),
    [
        (predict([[1, 2, 3]]), 400, "inputs: shape [1, 3]: expected [rows, 2]"),
        (predict([[1, 2]] * 9), 413, "inputs: 9 rows: at most 8 go in a request"),
        (("POST", "/predict", b"no", {}), 400, "body: not JSON"),
        (("POST", "/predict", {"inputs": [[1, 2]]}, {"content-length": str(2**40)}), 413, "body: 1,099,511,627,776 bytes"),
        (("GET", "/predict", b"", {}), 405, "POST /predict: send"),
        (("GET", "/no", b"", {}), 404, "GET /no: not here; known are POST /predict"),
        (("GET", "/outcome", b"", {}), 404, "GET /outcome: not here"),
        (("GET", "/stats", b"", {"host": "evil.example:8080"}), 403, "answers to 127.0.0.1 and localhost alone"),
        (("POST", "/pin", {"version": 1}, {"content-type": "text/plain"}), 415, "content-type: expected application/json"),
        (("POST", "/pin", {"version": "1"}, {}), 400, "version: 1: expected a whole number"),
        (("POST", "/pin", {"version": 5}, {}), 409, "version 5 of a is not held here: held are 1"),
        (("POST", "/pin", {"version": 1, "model": "z"}, {}), 400, "model: z: expected one of a"),
        (("POST", "/rollback", {}, {}), 409, "no version of a before the one that answers"),
        (("POST", "/outcome", {"key": "7"}, {}), 400, "'value' is missing"),
        (predict([[13, 2]]), 500, "the model raised ValueError: 13 is no good"),
    ],
)
def test_a_wrong_request_over_http_is_one_line(asked: Any, status: int, fault: str) -> None:
    [(found, body, _)] = over_http(made(), [asked])
    assert found == status
    assert fault in body["error"]
    assert "\n" not in body["error"]


def test_a_token_is_asked_for_everywhere_but_where_health_is() -> None:
    paths = [("GET", path, b"", {"host": "serve.example"}) for path in ("/stats", "/health", "/ready")]
    right, wrong = {"authorization": "Bearer s3"}, {"authorization": "Bearer s"}
    found = over_http(made(), [*paths, predict([[1, 2]], **right), predict([[1, 2]], **wrong)], token="s3")
    assert [status for status, _, _ in found] == [401, 200, 200, 200, 401]


def test_requests_that_come_together_over_http_make_one_batch() -> None:
    batches: list[int] = []

    def counting(bundle: Bundle) -> Callable[[Array], Array]:
        inner = numbered(bundle)

        def compute(rows: Array) -> Array:
            batches.append(len(rows))
            return inner(rows)

        return compute

    server = made(make=counting)
    batches.clear()  # of the check
    found = over_http(server, [predict([[at, 0]]) for at in range(7)], together=True)
    assert [status for status, _, _ in found] == [200] * 7
    assert batches == [7]


def test_a_user_keeps_the_model_of_the_split() -> None:
    server = made(("a", "b"), "50,50")
    keys = [str(key) for key in range(40)]
    found = over_http(server, [predict([[1, 2]], x_user=key) for key in keys])
    assert [body["model"] for _, body, _ in found] == [server.split.of(key) for key in keys]
    assert {body["model"] for _, body, _ in found} == {"a", "b"}


def test_a_user_s_key_is_the_same_text_over_http_as_over_zeromq() -> None:
    server = made(("a", "b"), "50,50")
    keys = [f"José {key}" for key in range(20)]
    found = over_http(server, [predict([[1, 2]], x_user=key) for key in keys])
    assert [body["model"] for _, body, _ in found] == [server.split.of(key) for key in keys]


def test_a_request_whose_deadline_is_over_is_declined_before_it_is_computed() -> None:
    server = made()
    late = ("POST", "/predict", {"inputs": [[1, 2]], "deadline": 1e-9}, {})
    [(status, body, headers), (_, stats, _)] = over_http(server, [late, ("GET", "/stats", b"", {})])
    assert (status, headers["retry-after"]) == (503, "1")
    assert body["error"].startswith("the deadline is over: it waited")
    assert (stats["late"], stats["batches"]) == (1, 0)


def test_a_server_without_a_version_is_alive_and_not_ready() -> None:
    server = made()
    server.books["a"].serving = None
    found = over_http(server, [("GET", "/health", b"", {}), ("GET", "/ready", b"", {}), predict([[1, 2]])])
    assert [status for status, _, _ in found] == [200, 503, 503]
    assert found[2][1]["error"] == "a has no version yet: ask again when /ready answers 200"


def test_a_version_is_pinned_rolled_back_and_freed_over_http() -> None:
    server, told = made(), list[tuple[str, int | None]]()
    for version in (2, 3):
        server.take(server.models["a"], version, weights(version))
    posts = [("POST", "/rollback", {}, {}), ("POST", "/pin", {"version": 1}, {}), ("POST", "/unpin", {"model": "a"}, {})]
    asked = [each for post in posts for each in (post, predict([[1, 2]]))]
    found = over_http(server, asked, pinned=lambda name, version: told.append((name, version)))
    assert [body["version"] for _, body, _ in found[1::2]] == [2, 1, 3]
    assert told == [("a", 2), ("a", 1), ("a", None)]


def test_the_figures_are_told_as_json_and_for_prometheus() -> None:
    asked = [predict([[1, 2]]), predict([[1]]), ("GET", "/stats", b"", {}), ("GET", "/metrics", b"", {})]
    _, _, (_, stats, _), (_, text, headers) = over_http(made(), asked)
    assert (stats["requests"], stats["invalid"], stats["models"][0]["version"]) == (1, 1, 1)
    assert 'shoal_serve_requests_total{model="a"} 1\n' in text
    assert headers["content-type"].startswith("text/plain; version=0.0.4")


def test_answers_and_outcomes_are_written_down(tmp_path: Path) -> None:
    diary = Diary(tmp_path / "serve.jsonl")
    outcome = ("POST", "/outcome", {"request": "n-1", "value": 1}, {})
    over_http(made(diary=diary), [predict([[1, 2]], x_user='"7'), outcome])
    lines = [json.loads(line) for line in (tmp_path / "serve.jsonl").read_text().splitlines()]
    assert lines == [
        {"at": 7.0, "request": "n-1", "key": '"7', "model": "a", "version": 1},
        {"at": 7.0, "request": "n-1", "outcome": "outcome", "value": 1},
    ]


@pytest.mark.parametrize(
    ("found", "fault"),
    [
        ({"value": True, "key": "7"}, "value: True: expected a number"),
        ({"value": math.inf, "key": "7"}, "value: inf: expected a number"),
        ({"value": 1}, 'names one of "request"'),
        ({"value": 1, "key": "7", "request": "n-1"}, 'names one of "request"'),
        ({"value": 1, "key": 7}, "key: 7: expected a text"),
        ({"value": 1, "keys": "7"}, "did you mean 'key'?"),
    ],
)
def test_a_wrong_outcome_is_one_line(found: Mapping[str, Any], fault: str) -> None:
    with pytest.raises(WrongRequestError) as raised:
        outcome_line(found, 7.0)
    assert fault in str(raised.value)


def test_a_run_without_a_version_is_not_waited_for_and_a_refused_one_ends_the_wait() -> None:
    server = made(("a", "b"))
    for book in server.books.values():
        book.serving = None
    with serving(server):
        assert not server.first(600.0)  # no source says that a version is on its way
        server._expected.add("b")
        server.came(server.models["b"], 2, weights(math.nan))
        assert not server.first(600.0)
        assert server.books["b"].refusals == 1


# Over ZeroMQ


def test_a_client_gets_arrays_and_figures() -> None:
    with wired(made()) as address, Client(address) as client:
        assert client.predict(np.ones((3, 2))).tolist() == [[1.0, 1.0]] * 3
        found = client.ask([[1, 2]], key="7")
        assert (found.model, found.version, found.request) == ("a", 1, "n-2")
        assert client.stats()["requests"] == 2


def test_a_client_s_mistakes_are_one_line() -> None:
    with wired(made()) as address, Client(address) as client:
        for rows, fault in (([[1, 2, 3]], "shape [1, 3]"), ([["x", "y"]], "dtype"), ([[1, math.nan]], "inputs[0][1]: nan")):
            with pytest.raises(UserError) as raised:
                client.predict(rows)
            assert fault in str(raised.value)
            assert "\n" not in str(raised.value)
        with pytest.raises(UserError, match="deadline=0"):
            client.predict([[1, 2]], deadline=0)
        with pytest.raises(RuntimeError, match="the model raised ValueError: 13 is no good"):
            client.predict([[13, 2]])
    with pytest.raises(UserError, match="this client is closed"):
        client.predict([[1, 2]])


def test_no_message_of_a_stranger_ends_the_answers_over_zeromq() -> None:
    with wired(made()) as address, Client(address) as client:
        with socket.create_connection(("127.0.0.1", int(address.rpartition(":")[2]))) as plain:
            plain.sendall(b"\x01\x00\x06\x00hello")  # a peer of ZMTP 1: ZeroMQ tells no descriptor of its messages
            assert client.predict([[1, 2]]).tolist() == [[1.0, 1.0]]
            while client.stats()["notes"] == []:  # until its message was taken
                pass
        line = Line(address, None, time.monotonic)
        try:
            for number, rows in enumerate((2**62, 2**63 - 1)):
                line.say(Envelope(b"12345678", 0, Predict(number, "float32", (0, rows))), np.zeros(0, np.uint8))
                line.flush()
                said: list[Any] = []
                while not said:
                    line.wait(0.1)
                    said = [one.envelope.message for one in line.drain() if one.envelope is not None]
                assert isinstance(said[0], Declined)
                assert "expected numbers that an array can have" in said[0].reason
        finally:
            line.close()
        assert client.predict([[1, 2]]).tolist() == [[1.0, 1.0]]


def test_a_client_is_late_if_nobody_answers_and_if_the_queue_is_full() -> None:
    with (
        Client("tcp://127.0.0.1:9") as client,
        pytest.raises(shoal.Late, match="no answer from"),
    ):
        client.predict([[1, 2]], deadline=0.01)
    server = made(limits=Limits(max_batch=8, most=1))
    with wired(server) as address, Client(address) as client, pytest.raises(shoal.Late, match="the queue is full: 0 rows wait"):
        client.predict([[1, 2], [3, 4]])


def test_a_request_that_makes_the_model_fail_takes_no_other_with_it() -> None:
    server, got = made(), list[Any]()

    class Kept:
        def deliver(self, answers: Sequence[Any]) -> None:
            got.extend(answers)

    for number, first in enumerate((1, 13, 2)):
        rows = np.array([[first, 0]], np.float32)
        assert server.ask(Request(rows, "a", "", Kept(), number, server.clock())) is None
    with serving(server):
        pass
    failed = {one.tag: answer for one, answer in got if isinstance(answer, Unanswered)}
    assert (sorted(one.tag for one, _ in got), list(failed), failed[1].why) == ([0, 1, 2], [1], "failed")


def test_a_server_that_ends_answers_what_waits_and_takes_no_more() -> None:
    server, got = made(), list[Any]()

    class Kept:
        def deliver(self, answers: Sequence[Any]) -> None:
            got.extend(answers)

    ask = [Request(np.zeros((1, 2), np.float32), "a", "", Kept(), number, server.clock()) for number in range(21)]
    assert [server.ask(one) for one in ask[:20]] == [None] * 20
    with serving(server):
        pass
    assert len(got) == 20
    refused = server.ask(ask[20])
    assert refused is not None
    assert refused.why == "full"


# Versions


def test_a_version_of_nan_and_one_whose_outputs_are_not_finite_are_refused() -> None:
    server = made()
    one = server.models["a"]
    assert server.take(one, 2, weights(math.nan)) == "'a' holds NaN or an infinity"
    one.make = lambda bundle: lambda rows: np.full((len(rows), 1), np.inf)
    assert server.take(one, 3, weights(3)) == "its outputs on the last good batch are not finite"
    one.make = numbered
    one.check = lambda version, compute: "too large" if compute(np.zeros((1, 2)))[0, 0] > 4 else ""
    assert [server.take(one, version, weights(version)) for version in (4, 5)] == ["", "too large"]
    serving_now = server.books["a"].serving
    assert serving_now is not None
    assert (serving_now.version, server.books["a"].refusals) == (4, 3)


def publish_under_load(requests: int, clients: int, versions: int) -> dict[str, Any]:
    """Requests while versions are published, the middle one of NaN. Returns the figures, and the faults found."""
    server, answered, never, faults = made(), threading.Semaphore(0), threading.Event(), list[str]()

    def asks(address: str, many: int) -> None:
        with Client(address) as client:
            for at in range(many):
                rows = np.full((1 + at % 5, 2), at, np.float32) + 20
                try:
                    found = client.ask(rows, deadline=60.0)
                    if found.outputs.shape != (len(rows), 2) or (found.outputs != found.version).any():
                        faults.append(f"mixed: {found}")
                except (shoal.Late, RuntimeError, UserError) as failed:
                    faults.append(f"failed: {failed}")
                answered.release()

    with wired(server) as address, ExitStack() as stack:
        threads = [threading.Thread(target=asks, args=(address, requests // clients)) for _ in range(clients)]
        for thread in threads:
            thread.start()
            stack.callback(thread.join)
        source = server.models["a"].source
        assert isinstance(source, ByHand)
        bad = 1 + versions // 2
        for version in range(2, versions + 2):
            for _ in range(requests // versions):
                answered.acquire()
            book = server.books["a"]
            source.take(version, weights(math.nan if version == bad else version))
            while book.wants(version):  # so that no version is passed over for a newer one
                never.wait(0.001)
        for thread in threads:
            thread.join()
        found = merged([server.figures()])
    return {**found, "faults": faults}


def check_published(found: Mapping[str, Any], requests: int, versions: int) -> None:
    assert found["faults"] == []
    [model] = found["models"]
    assert (found["requests"], found["failed"], found["late"], found["full"]) == (requests, 0, 0, 0)
    assert (model["version"], model["swaps"], model["refusals"]) == (versions + 1, versions - 1, 1)


def test_no_request_fails_or_gets_two_versions_while_versions_are_published_and_one_is_nan() -> None:
    check_published(publish_under_load(requests=1_000, clients=4, versions=50), 1_000, 50)


@pytest.mark.slow
def test_ten_thousand_requests_meet_fifty_versions() -> None:
    check_published(publish_under_load(requests=10_000, clients=8, versions=50), 10_000, 50)


def test_a_server_whose_zeromq_side_fails_says_so_and_does_not_live_on_deaf(monkeypatch: pytest.MonkeyPatch) -> None:
    server, ended, said = made(), threading.Event(), list[str]()
    monkeypatch.setattr(server, "_say", said.append)

    def broken() -> NoReturn:
        raise MemoryError("no room for figures")

    with serving(server):
        wire = Wire(Hub("tcp://127.0.0.1:*", largest=LARGEST), server, broken, ended.set)
        wire.start()
        with Client(wire.hub.address) as client, pytest.raises(shoal.Late):
            client.stats(deadline=0.5)
        assert ended.wait(60)
        wire.end()
    assert isinstance(wire.fault, MemoryError)
    assert said == ["the ZeroMQ side ended by MemoryError('no room for figures'): this process ends"]
