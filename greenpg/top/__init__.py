"""Floor 6: a running program's pools, live. `serve_top()` for `greenpg top`, `TopApp` for a browser; both only read."""

from .socket_server import serve_top
from .wsgi import TopApp

__all__ = ["TopApp", "serve_top"]
