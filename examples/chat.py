"""A chat: server-sent events to any number of browsers, over one database connection that listens.

A message is notified in the transaction that stores it, so who hears of it finds it in the table. The table is read
when a browser connects, and whenever something is heard: a notification, or a Gap, which says that some may be missing.
Any number of such processes, on any number of machines, chat with each other: what connects them is PostgreSQL.

Run it with `python examples/chat.py [DSN] [PORT]` and open two windows on http://127.0.0.1:8001. Under gunicorn:
`gunicorn -c gunicorn_conf.py --graceful-timeout 1 chat:app` in this folder, with DATABASE_URL set (without the timeout,
gunicorn waits 30 s for the event streams, which don't end by themselves).
"""

from gevent import monkey

monkey.patch_all()

import functools  # noqa: E402
import json  # noqa: E402
import os  # noqa: E402
import signal  # noqa: E402
import sys  # noqa: E402
from collections.abc import Callable, Iterator  # noqa: E402
from contextlib import nullcontext  # noqa: E402
from typing import Any  # noqa: E402
from urllib.parse import parse_qs  # noqa: E402

import gevent  # noqa: E402
from gevent.event import Event  # noqa: E402
from gevent.pywsgi import WSGIServer  # noqa: E402

import greenpg  # noqa: E402
import greenpg.embedded  # noqa: E402

PAGE = """<!doctype html>
<meta charset="utf-8">
<title>greenpg chat</title>
<style>
  body { font: 1rem/1.5 system-ui, sans-serif; max-width: 40rem; margin: 2rem auto; padding: 0 1rem }
  ol { list-style: none; padding: 0 } form { display: flex; gap: .5rem } input[name=text] { flex: 1 }
</style>
<h1>Chat</h1>
<ol id="messages" aria-live="polite"></ol>
<form id="form">
  <input name="author" placeholder="name" size="8" required maxlength="30">
  <input name="text" placeholder="message" required maxlength="500" autocomplete="off">
  <button>Send</button>
</form>
<script>
  const list = document.getElementById("messages"), form = document.getElementById("form");
  let last = 0;
  new EventSource("/events").onmessage = event => {
    const message = JSON.parse(event.data);
    if (message.id <= last) return;  // the table was read again
    last = message.id;
    const item = document.createElement("li");
    item.textContent = message.author + ": " + message.text;
    list.append(item);
    item.scrollIntoView();
  };
  form.onsubmit = event => {
    event.preventDefault();
    fetch("/messages", {method: "POST", body: new URLSearchParams(new FormData(form))});
    form.text.value = "";
  };
</script>
"""

#: Seconds of silence after which a comment is sent: it tells the browser, and proxies, that we are there; and us, that
#: the browser isn't any more.
KEEP_ALIVE = 15.0

pool = greenpg.ConnectionPool(os.environ.get("DATABASE_URL", ""), min_size=1, max_size=5)


@functools.cache
def create_table() -> None:
    with pool.cursor() as cur:
        cur.execute("SELECT pg_advisory_xact_lock(hashtext('chat'))")  # several workers may start at once
        cur.execute(
            """CREATE TABLE IF NOT EXISTS chat_message
               (id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY, author text NOT NULL, text text NOT NULL)"""
        )


def post(author: str, text: str) -> None:
    with pool.cursor() as cur:
        # One at a time, so that ids become visible in their order: a reader that has seen 7 won't be shown 6 later.
        cur.execute("SELECT pg_advisory_xact_lock(hashtext('chat'))")
        cur.execute("INSERT INTO chat_message (author, text) VALUES (%s, %s)", (author, text))
        cur.execute("SELECT pg_notify('chat', '')")  # a signal: the payload is limited to 8000 bytes, the table isn't


def messages_after(last: int) -> list[dict[str, Any]]:
    with pool.cursor() as cur:
        cur.execute("SELECT id, author, text FROM chat_message WHERE id > %s ORDER BY id LIMIT 1000", (last,))
        return [dict(zip(("id", "author", "text"), row, strict=True)) for row in cur]


def events(last: int) -> Iterator[bytes]:
    """What one browser is sent, for as long as it is there."""
    with pool.listen("chat") as subscription:
        yield b": welcome\n\n"
        while not subscription.closed:
            # Read after listening, and after whatever was heard: a Gap is a reason to read as any other.
            while messages := messages_after(last):
                for message in messages:
                    last = message["id"]
                    yield f"id: {last}\ndata: {json.dumps(message)}\n\n".encode()
            try:
                if subscription.get(timeout=KEEP_ALIVE) is None:
                    yield b": still here\n\n"
                while subscription.pending:  # one look at the table is enough for all that have come meanwhile
                    subscription.get(timeout=0)
            except greenpg.ListenerClosed:  # the program ends
                return


def app(environ: dict[str, Any], start_response: Callable[..., Any]) -> Any:
    create_table()
    method, path = environ["REQUEST_METHOD"], environ["PATH_INFO"]
    if (method, path) == ("GET", "/"):
        start_response("200 OK", [("Content-Type", "text/html; charset=utf-8")])
        return [PAGE.encode()]
    if (method, path) == ("GET", "/events"):
        last = environ.get("HTTP_LAST_EVENT_ID", "")  # a browser that comes back says what it has seen
        start_response("200 OK", [("Content-Type", "text/event-stream"), ("Cache-Control", "no-cache")])
        return events(int(last) if last.isdecimal() else 0)
    if (method, path) == ("POST", "/messages"):
        length = min(int(environ.get("CONTENT_LENGTH") or 0), 10_000)
        form = parse_qs(environ["wsgi.input"].read(length).decode(errors="replace").replace("\0", ""))
        author, text = (form.get(name, [""])[0].replace("\0", "").strip()[:500] for name in ("author", "text"))
        if not (author and text):
            start_response("400 Bad Request", [("Content-Type", "text/plain")])
            return [b"author and text are needed\n"]
        post(author, text)
        start_response("204 No Content", [])
        return []
    start_response("404 Not Found", [("Content-Type", "text/plain")])
    return [b"not found\n"]


def main(dsn: str, port: int) -> None:
    pool.conninfo = dsn
    server = WSGIServer(("127.0.0.1", port), app, log=None)
    server.start()
    print(f"The chat listens on http://127.0.0.1:{server.server_port}", flush=True)
    stopped = Event()
    gevent.signal_handler(signal.SIGINT, stopped.set)  # a KeyboardInterrupt could come out of any request
    try:
        stopped.wait()
    finally:
        server.stop(timeout=1)
        pool.close()


if __name__ == "__main__":
    greenpg.patch()
    with nullcontext(sys.argv[1]) if len(sys.argv) > 1 else greenpg.embedded.server() as dsn:
        main(dsn, int(sys.argv[2]) if len(sys.argv) > 2 else 8001)
