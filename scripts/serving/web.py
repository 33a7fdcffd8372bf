"""The HTTP side of a server: an ASGI application.

The one idea: `/predict` is answered by the bare application, because routing and request objects cost as much as a small
model; everything else, which is asked for rarely, goes through starlette.
"""

from __future__ import annotations

import asyncio
import hmac
import json
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from shoal.protocol.errors import UserError
from shoal.serving.inputs import WrongRequestError, check_fields, from_json, object_in
from shoal.serving.server import Answered, Reply, Request, Server
from shoal.serving.stats import prometheus

if TYPE_CHECKING:
    from starlette.applications import Starlette
    from starlette.requests import Request as WebRequest
    from starlette.responses import Response

MOST_BYTES = 64 << 20  # bytes of a body
SMALL_BODY = 65_536  # bytes of a body other than a prediction's
LOCAL = frozenset({"localhost", "127.0.0.1", "[::1]"})
OPEN = ("/health", "/ready")  # paths that need no token: an orchestrator asks for them
STATUS = {"late": 503, "full": 503, "failed": 500}
JSON = (b"content-type", b"application/json")

Scope = Mapping[str, Any]
Receive = Callable[[], Any]
Send = Callable[[Mapping[str, Any]], Any]


class Web:
    """The application. figures: the whole server's. token: asked for as `Authorization: Bearer TOKEN`; "": none, and then only
    requests to a loopback name are answered, so that no web page can ask by a name of its own. sticky: name of the header with
    the user's key; "": there is none. host: the address that is bound. pinned: told (model, version or None) that a user pins
    or frees."""

    def __init__(
        self,
        server: Server,
        figures: Callable[[], Mapping[str, Any]],
        pinned: Callable[[str, int | None], None],
        token: str = "",
        sticky: str = "",
        host: str = "127.0.0.1",
    ) -> None:
        self.server, self.figures, self.pinned = server, figures, pinned
        self._bearer = f"Bearer {token}".encode() if token else b""
        self._sticky = sticky.lower().encode()
        self._names = LOCAL | {f"[{host}]" if ":" in host else host}
        self._loop: asyncio.AbstractEventLoop | None = None
        self._waking = False  # `_wake` is due
        self._rest = self._routes()

    # Answers

    def deliver(self, answers: Sequence[tuple[Request, Reply]]) -> None:
        if self._loop is not None:
            try:
                self._loop.call_soon_threadsafe(_settle, answers)
            except RuntimeError:  # the loop is closed: nobody waits any more
                return

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return
        try:
            key, length = self._let_in(scope)
            if scope["path"] != "/predict":
                await self._rest(scope, receive, send)  # type: ignore[arg-type]
            elif scope["method"] != "POST":
                raise WrongRequestError(405, 'POST /predict: send {"inputs": [[...], ...]}')
            else:
                await self._predict(key, length, receive, send)
        except WrongRequestError as wrong:
            if wrong.status in (400, 413):
                self.server.stats.invalid += 1
            await _error(send, wrong.status, str(wrong))

    def _let_in(self, scope: Scope) -> tuple[str, int]:
        """The user's key and the length of the body (-1: not told). Raises WrongRequestError for a stranger."""
        key, length, bearer, host = b"", -1, b"", b""
        for name, value in scope["headers"]:
            if name == b"content-length":
                length = int(value)  # uvicorn has checked it
            elif name == b"authorization":
                bearer = value
            elif name == b"host":
                host = value
            if name == self._sticky and self._sticky:
                key = value
        if self._bearer:
            if scope["path"] not in OPEN and not hmac.compare_digest(bearer, self._bearer):
                raise WrongRequestError(401, "the token is missing or wrong: send the header Authorization: Bearer TOKEN")
        elif host and _host(host) not in self._names:
            named = host.decode("latin-1")[:60]
            raise WrongRequestError(403, f"Host {named!a}: a server without --token answers to 127.0.0.1 and localhost alone")
        return _text(key), length

    async def _predict(self, key: str, length: int, receive: Receive, send: Send) -> None:
        server = self.server
        arrived = server.clock()
        body = await _body(receive, length, MOST_BYTES)
        model, inputs = server.inputs_for(key)
        asked = from_json(body, inputs)
        loop = self._loop = self._loop or asyncio.get_running_loop()
        waiter: asyncio.Future[Reply] = loop.create_future()
        request = Request(asked.rows, model, key, self, waiter, arrived)
        if not self._waking:
            self._waking = True
            loop.call_soon(self._wake)
        reply = server.ask(request, asked.deadline, wake=False) or await waiter
        if isinstance(reply, Answered):
            outputs = json.dumps(reply.outputs.tolist())
            text = f'{{"outputs": {outputs}, "model": {json.dumps(reply.model)}, "version": {reply.version}}}'
            await _respond(send, 200, text.encode(), (JSON, (b"x-request-id", request.name.encode())))
        else:
            await _error(send, STATUS[reply.why], reply.reason)

    def _wake(self) -> None:
        """Called when all requests that had come with the first one are read: so they make one batch, and an idle server's only
        request waits for nothing."""
        self._waking = False
        self.server.wake()

    # The rest

    def _routes(self) -> Starlette:
        from starlette.applications import Starlette
        from starlette.responses import JSONResponse, PlainTextResponse
        from starlette.routing import Route

        async def health(_: WebRequest) -> Response:
            return JSONResponse({"alive": True})

        async def ready(_: WebRequest) -> Response:
            well = self.server.ready and not self.server.draining
            return JSONResponse({"ready": well}, 200 if well else 503)

        async def stats(_: WebRequest) -> Response:
            return JSONResponse(dict(self.figures()))

        async def metrics(_: WebRequest) -> Response:
            return PlainTextResponse(prometheus(self.figures()), media_type="text/plain; version=0.0.4; charset=utf-8")

        async def outcome(request: WebRequest) -> Response:
            self.server.diary.write([outcome_line(await _object(request), self.server.wall())])
            return JSONResponse({"noted": True})

        async def pin(request: WebRequest) -> Response:
            found = await _object(request)
            check_fields(found, ("version", "model"), "version")
            version = found["version"]
            if type(version) is not int:
                raise WrongRequestError(
                    400, f"version: {str(version)[:40]}: expected a whole number, as /stats lists them in held"
                )
            return self._pin(found, version)

        async def unpin(request: WebRequest) -> Response:
            return self._pin(await _object(request), None)

        async def rollback(request: WebRequest) -> Response:
            found = await _object(request)
            try:
                return self._pin(found, self.server.books[self._model(found)].before())
            except UserError as none:
                raise WrongRequestError(409, str(none)) from None

        posts = {"/outcome": outcome, "/pin": pin, "/unpin": unpin, "/rollback": rollback}
        gets = {"/health": health, "/ready": ready, "/stats": stats, "/metrics": metrics}
        routes = [Route(path, act, methods=["POST"]) for path, act in posts.items()]
        routes += [Route(path, act, methods=["GET"]) for path, act in gets.items()]

        async def wrong(_: Any, why: Exception) -> Response:
            return JSONResponse({"error": str(why)}, getattr(why, "status", 400))

        async def unknown(request: WebRequest, _: Exception) -> Response:
            known = ", ".join(["POST /predict", *(f"POST {path}" for path in posts), *(f"GET {path}" for path in gets)])
            return JSONResponse({"error": f"{request.method} {request.url.path[:60]}: not here; known are {known}"}, 404)

        return Starlette(routes=routes, exception_handlers={WrongRequestError: wrong, 404: unknown, 405: unknown})

    def _model(self, found: Mapping[str, Any]) -> str:
        names = list(self.server.models)
        name = found.get("model", names[0] if len(names) == 1 else None)
        if name not in names:
            raise WrongRequestError(400, f"model: {str(name)[:40]}: expected one of {', '.join(names)}")
        return str(name)

    def _pin(self, found: Mapping[str, Any], version: int | None) -> Response:
        from starlette.responses import JSONResponse

        name = self._model(found)
        try:
            self.server.pin(name, version)
        except UserError as none:
            raise WrongRequestError(409, str(none)) from None
        self.pinned(name, version)
        return JSONResponse({"model": name, "pinned": version})


async def _object(request: WebRequest) -> Mapping[str, Any]:
    """The JSON object of a request that changes something. Its content type must be JSON's, which a web page of elsewhere may
    not send unasked."""
    if not request.headers.get("content-type", "").startswith("application/json"):
        raise WrongRequestError(415, "content-type: expected application/json")
    length = int(request.headers.get("content-length", "-1"))
    return object_in(await _body(request.receive, length, SMALL_BODY))


def outcome_line(found: Mapping[str, Any], at: float) -> str:
    """A line of serve.jsonl for an outcome that was posted. Raises WrongRequestError."""
    check_fields(found, ("request", "key", "value", "name"), "value")
    value = found["value"]
    if isinstance(value, bool) or not isinstance(value, int | float) or not abs(value) <= 1e300:
        raise WrongRequestError(400, f"value: {str(value)[:40]}: expected a number, such as 1 or 0")
    by = [name for name in ("request", "key") if name in found]
    if len(by) != 1:
        raise WrongRequestError(400, 'an outcome names one of "request" (the x-request-id of an answer) and "key" (of a user)')
    for name in (*by, "name"):
        if not isinstance(found.get(name, ""), str) or len(found.get(name, "")) > 200:
            raise WrongRequestError(400, f"{name}: {str(found[name])[:40]}: expected a text of at most 200 characters")
    line = {"at": round(at, 3), by[0]: found[by[0]], "outcome": found.get("name", "outcome"), "value": value}
    return json.dumps(line) + "\n"


def _settle(answers: Sequence[tuple[Request, Reply]]) -> None:
    for request, reply in answers:
        if not request.tag.done():  # it is done if its connection ended
            request.tag.set_result(reply)


def _text(value: bytes) -> str:
    """A user's key in a header. It is the same text as in an outcome's JSON and over ZeroMQ if it is UTF-8."""
    try:
        return value.decode()
    except UnicodeDecodeError:
        return value.decode("latin-1")


def _host(value: bytes) -> str:
    """The name in a Host header, without the port."""
    text = value.decode("latin-1").lower()
    return text.partition("]")[0] + "]" if text.startswith("[") else text.partition(":")[0]


async def _body(receive: Receive, length: int, most: int) -> bytes:
    """A request's body. Raises WrongRequestError if it has more than `most` bytes, or ends early."""
    if length > most:
        raise WrongRequestError(413, f"body: {length:,} bytes: at most {most:,} are read")
    message = await receive()
    if message["type"] == "http.request" and not message.get("more_body"):
        whole: bytes = message.get("body", b"")
        return whole
    parts = [message.get("body", b"")]
    read = len(parts[0])
    while message.get("more_body"):
        message = await receive()
        parts.append(message.get("body", b""))
        read += len(parts[-1])
        if read > most:
            raise WrongRequestError(413, f"body: more than {most:,} bytes: at most so many are read")
    if message["type"] != "http.request":
        raise WrongRequestError(400, "body: the connection ended before all of it came")
    return b"".join(parts)


async def _respond(send: Send, status: int, body: bytes, headers: Sequence[tuple[bytes, bytes]]) -> None:
    length = (b"content-length", str(len(body)).encode())
    await send({"type": "http.response.start", "status": status, "headers": [length, *headers]})
    await send({"type": "http.response.body", "body": body})


async def _error(send: Send, status: int, text: str) -> None:
    headers = (JSON, (b"retry-after", b"1")) if status == 503 else (JSON,)
    await _respond(send, status, json.dumps({"error": text}).encode(), headers)
