"""The server of the page: a few files, and one stream of events.

The one idea: the stream is the whole interface. Its id is the place in each source, so a browser that lost the connection asks
for what came since, and the server keeps nothing for it.
"""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from importlib.resources import files
from typing import TYPE_CHECKING, Any

from shoal.protocol.errors import UserError
from shoal.runs.metrics import FIRST, OURS
from shoal.watching.sources import Cursor, Source, plain

if TYPE_CHECKING:
    from starlette.applications import Starlette

EVERY = 0.5  # seconds between two looks for a page
QUIET = 15.0  # seconds without news after which a page is told that the server lives
PAGES = 64  # pages that may be open
KINDS: Mapping[str, str] = {
    "html": "text/html; charset=utf-8",
    "css": "text/css; charset=utf-8",
    "js": "text/javascript; charset=utf-8",
    "svg": "image/svg+xml",
    "LICENSE": "text/plain; charset=utf-8",
}
FILES = ("index.html", "watch.css", "watch.js", "icon.svg", "uPlot.iife.min.js", "uPlot.min.css", "uPlot.LICENSE")


def static() -> dict[str, bytes]:
    """The files of the page by name."""
    folder = files("shoal.watching") / "static"
    return {name: (folder / name).read_bytes() for name in FILES}


def application(
    sources: Sequence[Source], over: Callable[[], bool] = bool, now: Callable[[], float] | None = None
) -> Starlette:
    """The page of these sources as an ASGI application. over: True when streams are to end. now: Unix time.

    Raises UserError if starlette is not installed."""
    needed()
    import time

    from starlette.applications import Starlette
    from starlette.requests import Request
    from starlette.responses import PlainTextResponse, Response, StreamingResponse
    from starlette.routing import Route

    kept, clock, pages = static(), now or time.time, [0]
    build = hashlib.sha256(b"".join(kept.values())).hexdigest()[:12]

    async def file(request: Request) -> Response:
        name = request.path_params.get("name", "index.html")
        if name not in kept:
            return PlainTextResponse("no such file\n", 404)
        tag = f'"{hashlib.sha256(kept[name]).hexdigest()[:16]}"'
        headers = {"etag": tag, "cache-control": "no-cache"}
        if request.headers.get("if-none-match") == tag:
            return Response(status_code=304, headers=headers)
        return Response(kept[name], headers={**headers, "content-type": KINDS[name.rpartition(".")[2]]})

    async def events(request: Request) -> Response:
        if pages[0] >= PAGES:
            return PlainTextResponse(f"{PAGES} pages are open\n", 503, headers={"retry-after": "5"})
        last = request.headers.get("last-event-id", "")
        headers = {"cache-control": "no-store", "x-accel-buffering": "no"}
        return StreamingResponse(counted(last), media_type="text/event-stream", headers=headers)

    async def counted(last: str) -> AsyncIterator[str]:
        pages[0] += 1
        try:
            async for text in stream(sources, last, build, over, clock):
                yield text
        finally:
            pages[0] -= 1

    return Starlette(routes=[Route("/", file), Route("/static/{name}", file), Route("/events", events)])


async def stream(
    sources: Sequence[Source], last: str, build: str, over: Callable[[], bool], now: Callable[[], float], every: float = EVERY
) -> AsyncIterator[str]:
    """The events for one page, as text of server-sent events. last: the id of the last event that the page had; "" for none."""
    marks = last.split(",")
    cursors = [source.cursor(mark) for source, mark in zip(sources, marks + [""] * len(sources), strict=False)]
    about = [{**source.about(), "key": key} for key, source in enumerate(sources)]
    yield "retry: 1000\n" + event(
        "hello", {"sources": about, "build": build, "first": FIRST, "ours": sorted(OURS), "now": now()}
    )
    quiet = 0.0
    while not over():
        told = await asyncio.to_thread(_news, cursors, now)
        if told:
            yield told
        quiet = 0.0 if told else quiet + every
        if quiet >= QUIET:
            quiet = 0.0
            yield ": here\n\n"
        await asyncio.sleep(every)
    if told := _news(cursors, now):  # the run's last word
        yield told
    yield event("bye", {})


def _news(cursors: Sequence[Cursor], now: Callable[[], float]) -> str:
    """The news of all sources as text; the last event has the id of the place that is reached with it."""
    found = [(key, name, data) for key, cursor in enumerate(cursors) for name, data in cursor.news()]
    if not found:
        return ""
    at, mark = round(now(), 2), ",".join(cursor.mark for cursor in cursors)
    texts = [event(name, {"key": key, "now": at, **data}) for key, name, data in found]
    return "".join(texts[:-1]) + f"id: {mark}\n{texts[-1]}"


def event(name: str, data: Mapping[str, Any]) -> str:
    return f"event: {name}\ndata: {plain(data)}\n\n"


def needed() -> None:
    """Raises UserError if what the page needs is not installed."""
    try:
        import starlette
        import uvicorn
    except ModuleNotFoundError as missing:
        raise UserError(f"`shoal watch` needs {missing.name}: pip install 'shoal[watch]'") from None
    assert starlette
    assert uvicorn
