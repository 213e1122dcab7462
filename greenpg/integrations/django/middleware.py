"""`ReadYourWritesMiddleware`: the next request of who has written reads that, whichever process serves it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from django.db import DEFAULT_DB_ALIAS
from django.http import HttpRequest, HttpResponse

from .clusters import find_cluster


class ReadYourWritesMiddleware:
    """For MIDDLEWARE, as the first one: a signed cookie says how far the client's last request has written.

    It is set by requests that have written, and lasts for `cookie_age` (60) seconds more than a replica that is read
    from may be behind; without `max_lag` until the browser is closed. What a streaming response writes isn't seen. A
    subclass may have another `cookie_name` ("greenpg_written"), and `using` ("default"). Doesn't suspend by itself.
    """

    using = DEFAULT_DB_ALIAS
    cookie_name = "greenpg_written"
    cookie_age = 60

    def __init__(self, get_response: Callable[[HttpRequest], HttpResponse]) -> None:
        self._get_response = get_response

    def __call__(self, request: HttpRequest) -> HttpResponse:
        cluster = find_cluster(self.using)
        if cluster is None:
            return self._get_response(request)
        tokens, age = cluster._tokens, self._age(cluster)
        try:
            tokens.take(
                request.get_signed_cookie(self.cookie_name, default="", salt=self.cookie_name, max_age=age) or ""
            )
        except ValueError:  # signed, but by somebody who has put something else into it
            tokens.forget()
        before = tokens.text
        response = self._get_response(request)
        if tokens.text not in ("", before):
            response.set_signed_cookie(
                self.cookie_name,
                tokens.text,
                salt=self.cookie_name,
                max_age=age,
                secure=request.is_secure(),
                httponly=True,
                samesite="Lax",
            )
        return response

    def _age(self, cluster: Any) -> float | None:
        max_lag: float | None = cluster.max_lag
        return None if max_lag is None else max_lag + self.cookie_age
