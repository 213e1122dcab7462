"""`TopApp`: the same as a web page."""

from __future__ import annotations

import hmac
import json
import secrets
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs

from ..pool.pool import ConnectionPool
from .view import View

_SHORTEST_TOKEN = 16
_HEADERS = [("Cache-Control", "no-store"), ("X-Content-Type-Options", "nosniff"), ("Referrer-Policy", "no-referrer")]

StartResponse = Callable[[str, list[tuple[str, str]]], object]


class TopApp:
    """A WSGI application that shows the process's pools in a browser; mount it where only you can come.

        application = DispatcherMiddleware(application, {"/greenpg": greenpg.top.TopApp(token=os.environ["TOP_TOKEN"])})

    - `token`: 16 characters or more. The page is at `/greenpg/?token=...`; other requests get 403.
    - `pools` (none: all that there are in the process). `statements` (False): whether statements' texts are shown.

    It only reads, and shows the worker that happens to answer; its plots begin with the first look of an hour. Its
    requests suspend as others do; the server's view takes a connection of its own for a moment. Raises ValueError for a
    token that is too short.
    """

    def __init__(self, *pools: ConnectionPool, token: str, statements: bool = False) -> None:
        if len(token) < _SHORTEST_TOKEN:
            raise ValueError(
                f"the token must have {_SHORTEST_TOKEN} characters or more: secrets.token_urlsafe() makes good ones"
            )
        self._token = token.encode()
        self._view = View(pools, statements)
        self._page = Path(__file__).with_name("page.html").read_text(encoding="utf-8")

    def __call__(self, environ: dict[str, Any], start_response: StartResponse) -> Iterable[bytes]:
        if environ["REQUEST_METHOD"] not in ("GET", "HEAD"):
            return _answer(start_response, "405 Method Not Allowed", "text/plain", b"read only\n", ("Allow", "GET"))
        query = parse_qs(environ.get("QUERY_STRING", ""))
        if not self._may_look(environ, query):
            return _answer(start_response, "403 Forbidden", "text/plain", b"the token is missing, or wrong\n")
        path = environ.get("PATH_INFO", "")
        if path in ("", "/"):
            return self._show_page(start_response)
        if path == "/data":
            data = self._view.look(stacks=query.get("stacks") == ["1"])
            return _answer(start_response, "200 OK", "application/json", json.dumps(data).encode())
        return _answer(start_response, "404 Not Found", "text/plain", b"there is nothing here\n")

    def _may_look(self, environ: dict[str, Any], query: dict[str, list[str]]) -> bool:
        given = environ.get("HTTP_AUTHORIZATION", "").removeprefix("Bearer ") or query.get("token", [""])[0]
        return hmac.compare_digest(given.encode(), self._token)

    def _show_page(self, start_response: StartResponse) -> Iterable[bytes]:
        nonce = secrets.token_urlsafe(16)
        policy = (
            f"default-src 'none'; script-src 'nonce-{nonce}'; style-src 'nonce-{nonce}'; connect-src 'self'; "
            "frame-ancestors 'none'; base-uri 'none'; form-action 'none'"
        )
        page = self._page.replace("NONCE", nonce).encode()
        return _answer(start_response, "200 OK", "text/html; charset=utf-8", page, ("Content-Security-Policy", policy))


def _answer(
    start_response: StartResponse, status: str, kind: str, body: bytes, *headers: tuple[str, str]
) -> Iterable[bytes]:
    start_response(status, [("Content-Type", kind), ("Content-Length", str(len(body))), *_HEADERS, *headers])
    return [body]
