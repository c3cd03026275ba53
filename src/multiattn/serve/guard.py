"""Who may ask: the Host header, where posts come from, the token; and headers that keep pages from loading anything.

A page of another site, open in the same browser, can send requests here. It cannot read the answers, as long as its own
name does not lead here (DNS rebinding): so Host must be an address or a name of this machine. And it cannot start or
delete anything: browsers say of such requests where they come from.
"""

import hmac
import ipaddress
import re
import socket
from collections.abc import Collection
from http.cookies import CookieError, SimpleCookie
from urllib.parse import parse_qs, urlsplit

from starlette.datastructures import Headers, MutableHeaders
from starlette.responses import JSONResponse, PlainTextResponse, RedirectResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

SAFE_METHODS = ("GET", "HEAD", "OPTIONS")
OPEN_PATHS = ("/health",)
"""Asked without a token, by whatever watches the server."""
POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; connect-src 'self'; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
HEADERS = {
    "Content-Security-Policy": POLICY,
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cache-Control": "no-store",
}
TOKEN_WORDS = (
    "This server asks for its token: open the address with ?token=... that it printed when it was started, or send "
    "`Authorization: Bearer TOKEN`."
)


def is_loopback(host: str) -> bool:
    """True for an address, or the name, that only this machine can reach."""
    address = _address(host)
    return host.lower() == "localhost" if address is None else address.is_loopback


def _address(host: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    try:
        return ipaddress.ip_address(host.strip("[]"))
    except ValueError:
        return None


class Guard:
    """ASGI middleware around an application.

    Args:
        host: the address that is listened at.
        token: what whoever asks must know; empty: nothing, for this machine alone.
        names: further names of this machine, as a proxy before it may have one.
    """

    def __init__(self, app: ASGIApp, *, host: str, token: str = "", names: Collection[str] = ()) -> None:
        self._app, self._host, self._token = app, host, token.encode()
        self._names = {"localhost", host.lower(), *(name.lower() for name in names)}
        if not is_loopback(host):
            self._names.add(socket.gethostname().lower())

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """As ASGI has it."""
        if scope["type"] != "http":
            return await self._app(scope, receive, send)

        async def send_with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                for name, value in HEADERS.items():
                    headers.setdefault(name, value)
            await send(message)

        refusal = self._refusal(scope)
        return await (refusal or self._app)(scope, receive, send_with_headers)

    def _refusal(self, scope: Scope) -> Response | None:
        headers = Headers(scope=scope)
        host = headers.get("host", "")
        if not self._is_own(host):
            return _refused(400, "The Host header is no address and no known name of this machine (--allow-host).")
        if scope["method"] not in SAFE_METHODS and not _from_here(headers, host):
            return _refused(403, "This request comes from a page of another site.")
        if not self._token or scope["path"] in OPEN_PATHS:
            return None
        asked = parse_qs(scope["query_string"].decode("latin-1")).get("token", [""])[0]
        if scope["path"] == "/" and asked and self._is_right(asked):
            moved = RedirectResponse("/", 303)
            moved.set_cookie(self._cookie(scope), asked, httponly=True, samesite="lax", path="/")
            return moved
        scheme, _, sent = headers.get("authorization", "").partition(" ")
        if (scheme.lower() == "bearer" and self._is_right(sent.strip())) or self._has_cookie(headers, scope):
            return None
        if scope["path"] == "/":
            return PlainTextResponse(TOKEN_WORDS, 401)
        return _refused(401, TOKEN_WORDS, {"WWW-Authenticate": "Bearer"})

    def _is_own(self, host: str) -> bool:
        found = re.fullmatch(r"(\[[0-9a-f:.]+\]|[^:\[\]/@\s]+)(:\d{1,5})?", host, re.IGNORECASE)
        if found is None:
            return False
        address = _address(found[1])
        if address is None:
            return found[1].lower().rstrip(".") in self._names
        return not is_loopback(self._host) or address.is_loopback

    def _is_right(self, token: str) -> bool:
        return hmac.compare_digest(token.encode(), self._token)

    def _cookie(self, scope: Scope) -> str:
        """Cookies are a host's, whatever the port: one name a server."""
        return f"multiattn_token_{(scope.get('server') or ('', 0))[1]}"

    def _has_cookie(self, headers: Headers, scope: Scope) -> bool:
        try:
            found = SimpleCookie(headers.get("cookie", "")).get(self._cookie(scope))
        except CookieError:
            return False
        return found is not None and self._is_right(found.value)


def _refused(status: int, words: str, headers: dict[str, str] | None = None) -> Response:
    return JSONResponse({"detail": words}, status, headers)


def _from_here(headers: Headers, host: str) -> bool:
    """True unless a browser says that a page of another site sent it; other programs say nothing."""
    if headers.get("sec-fetch-site", "same-origin") not in ("same-origin", "none"):
        return False
    origin = headers.get("origin")
    try:
        return origin is None or urlsplit(origin).netloc.lower() == host.lower()
    except ValueError:
        return False
