"""The rules for readers of the page: the Host header, the token, and the headers of every answer.

The one idea: a browser on this machine runs pages of strangers. A stranger's page may point a name of its own at 127.0.0.1, so
a Host that is such a name is refused; an address in figures cannot be pointed elsewhere.
"""

from __future__ import annotations

import hmac
import ipaddress
from collections.abc import Callable, Iterable, MutableMapping
from http.cookies import CookieError, SimpleCookie
from typing import Any, TypeAlias
from urllib.parse import parse_qs

Scope: TypeAlias = MutableMapping[str, Any]
Asgi: TypeAlias = Callable[[Scope, Callable[[], Any], Callable[[Any], Any]], Any]

POLICY = "default-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'; object-src 'none'"
HEADERS = {
    "content-security-policy": POLICY,
    "x-content-type-options": "nosniff",
    "x-frame-options": "DENY",
    "referrer-policy": "no-referrer",
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
}
COOKIE = "shoal-watch"


def is_loopback(host: str) -> bool:
    """Return whether an address that is bound can be reached from this machine alone."""
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return host == "localhost"


def known(header: str, names: Iterable[str]) -> bool:
    """Return whether a Host header names this server: localhost, an address in figures, or one of `names`; with or without a
    port."""
    name, bracket, rest = header.lower().partition("]")
    name = name[1:] if bracket and name.startswith("[") else header.lower().rpartition(":")[0] or header.lower()
    if bracket and rest and not rest.startswith(":"):
        return False
    if name == "localhost" or name in {one.lower() for one in names}:
        return True
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return False
    return True


class Door:
    """An ASGI application in front of another, which answers only requests to read, of this server's name, with the token.

    names: names of this machine beside localhost. token: without which nothing is answered; "" asks for none. The token comes
    as a cookie, which the address `/?token=...` sets, or as `Authorization: Bearer`.
    """

    def __init__(self, inner: Asgi, names: Iterable[str] = (), token: str = "") -> None:
        self.inner, self.names, self.token = inner, tuple(names), token

    async def __call__(self, scope: Scope, receive: Callable[[], Any], send: Callable[[Any], Any]) -> None:
        if scope["type"] != "http":
            return
        asked = {name.decode("latin-1").lower(): value.decode("latin-1") for name, value in scope["headers"]}
        port = (scope.get("server") or ("", ""))[1]
        if scope["method"] not in ("GET", "HEAD"):
            await _answer(send, 405, "this page can only be read", {"allow": "GET, HEAD"})
        elif not known(asked.get("host", ""), self.names):
            host = asked.get("host", "")[:80]
            why = f"no page of this server: Host is {host!r}; open it by an address in figures, or localhost"
            await _answer(send, 421, why)
        elif self.token and self._told(scope):
            cookie = f"{COOKIE}-{port}={self.token}; HttpOnly; SameSite=Strict; Path=/"
            await _answer(send, 303, "", {"location": "/", "set-cookie": cookie})
        elif self.token and not self._shown(asked, f"{COOKIE}-{port}"):
            await _answer(send, 401, "open the address that `shoal watch` printed: it holds the token", {})
        else:
            await self.inner(scope, receive, _with_headers(send))

    def _told(self, scope: Scope) -> bool:
        """Return whether the request is for the page with the right token in its address."""
        found = parse_qs(scope.get("query_string", b"").decode("latin-1")).get("token", [""])[0]
        return bool(scope["path"] == "/" and self._same(found))

    def _shown(self, asked: MutableMapping[str, str], name: str) -> bool:
        try:
            cookie = SimpleCookie(asked.get("cookie", "")).get(name)
        except CookieError:
            cookie = None
        bearer = asked.get("authorization", "").removeprefix("Bearer ")
        return self._same(cookie.value if cookie else "") or self._same(bearer)

    def _same(self, text: str) -> bool:
        return hmac.compare_digest(text.encode(), self.token.encode())


def _with_headers(send: Callable[[Any], Any]) -> Callable[[Any], Any]:
    async def sent(message: Any) -> None:
        if message["type"] == "http.response.start":
            more = [(name.encode(), value.encode()) for name, value in HEADERS.items()]
            message = {**message, "headers": [*message.get("headers", ()), *more]}
        await send(message)

    return sent


async def _answer(send: Callable[[Any], Any], status: int, text: str, more: MutableMapping[str, str] | None = None) -> None:
    headers = {"content-type": "text/plain; charset=utf-8", "cache-control": "no-store", **(more or {})}
    raw = [(name.encode(), value.encode("latin-1", "replace")) for name, value in headers.items()]
    await _with_headers(send)({"type": "http.response.start", "status": status, "headers": raw})
    await send({"type": "http.response.body", "body": (text + "\n" if text else "").encode()})
