"""examples/chat.py: two browsers' worth of clients, server-sent events, and a lost connection."""

import http.client
import json
import signal
import sys
from urllib.parse import urlencode

import pytest
from kit import wait_until
from psycopg2.extensions import make_dsn
from test_cli import ENVIRONMENT, ROOT, RunningServer

pytestmark = pytest.mark.only_hub("threads")

APPLICATION_NAME = "greenpg-test-chat"


@pytest.fixture
def chat_dsn(dsn, admin):
    yield make_dsn(dsn, application_name=APPLICATION_NAME)
    with admin.cursor() as cur:
        cur.execute("DROP TABLE IF EXISTS chat_message")


def start(command, dsn, output):
    return RunningServer(command, output, cwd=ROOT / "examples", env=ENVIRONMENT | {"DATABASE_URL": dsn})


@pytest.fixture(params=["python", "gunicorn"])
def chat(request, chat_dsn, tmp_path):
    if request.param == "python":
        command = [sys.executable, "chat.py", chat_dsn, "0"]
    else:
        options = ["-c", "gunicorn_conf.py", "--graceful-timeout", "1", "-b", "127.0.0.1:0"]
        command = [sys.executable, "-m", "gunicorn", *options, "chat:app"]
    running = start(command, chat_dsn, tmp_path / "output")
    yield running
    if running.process.returncode is None:
        assert running.stop(signal.SIGINT if request.param == "python" else signal.SIGTERM) == 0


class Browser:
    """What an EventSource does."""

    def __init__(self, chat, last_event_id=None):
        self.connection = http.client.HTTPConnection("127.0.0.1", int(chat._address()[1]), timeout=20)
        self.connection.request("GET", "/events", headers={"Last-Event-ID": last_event_id} if last_event_id else {})
        self.response = self.connection.getresponse()
        assert self.response.status == 200
        assert self.response.headers["Content-Type"] == "text/event-stream"
        assert self.response.readline() == b": welcome\n"

    def next_message(self):
        while True:
            line = self.response.readline()
            assert line, "the stream has ended"
            if line.startswith(b"data: "):
                message = json.loads(line.removeprefix(b"data: "))
                self.last_event_id = str(message["id"])
                return message["author"], message["text"]

    def close(self):
        self.response.close()
        self.connection.close()


def post(chat, **form):
    connection = http.client.HTTPConnection("127.0.0.1", int(chat._address()[1]), timeout=20)
    connection.request("POST", "/messages", urlencode(form))
    status = connection.getresponse().status
    connection.close()
    return status


def listeners(admin):
    with admin.cursor() as cur:
        cur.execute(
            "SELECT pid FROM pg_stat_activity WHERE application_name = %s AND query LIKE 'LISTEN%%'",
            (APPLICATION_NAME,),
        )
        return [pid for (pid,) in cur.fetchall()]


def test_two_browsers(chat, admin):
    assert b"EventSource" in chat.get("/").body
    ann, ben = Browser(chat), Browser(chat)
    try:
        assert post(chat, author="Ann", text="hello\nBen") == 204
        assert post(chat, author="Ben", text="<b>hi</b> Änn") == 204
        for browser in (ann, ben):
            assert browser.next_message() == ("Ann", "hello\nBen")
            assert browser.next_message() == ("Ben", "<b>hi</b> Änn")

        # The one connection that listens is lost: both still get what was written meanwhile, once.
        assert len(listeners(admin)) == 1
        with admin.cursor() as cur:
            cur.execute("SELECT pg_terminate_backend(%s, 5000)", (listeners(admin)[0],))
        assert post(chat, author="Ann", text="still there?") == 204
        assert post(chat, author="Ben", text="yes") == 204
        for browser in (ann, ben):
            assert browser.next_message() == ("Ann", "still there?")
            assert browser.next_message() == ("Ben", "yes")

        # A browser that comes back gets what it has missed, a new one everything.
        ann.close()
        assert post(chat, author="Ben", text="where are you?") == 204
        assert ben.next_message() == ("Ben", "where are you?")
        ann = Browser(chat, last_event_id=ann.last_event_id)
        assert ann.next_message() == ("Ben", "where are you?")
        carl = Browser(chat)
        assert [carl.next_message()[0] for _ in range(5)] == ["Ann", "Ben", "Ann", "Ben", "Ben"]
        carl.close()
    finally:
        ann.close()
        ben.close()


def test_bad_requests(chat):
    assert chat.get("/nothing").status == 404
    assert post(chat, author="Ann", text="  ") == 400
    assert post(chat, text="who?") == 400
    assert post(chat, author="A\0nn", text="nul\0") == 204


@pytest.mark.parametrize("chat", ["python"], indirect=True)
def test_a_second_process_chats_with_the_first(chat, chat_dsn, tmp_path):
    second = start([sys.executable, "chat.py", chat_dsn, "0"], chat_dsn, tmp_path / "second")
    browsers = []
    try:
        browsers += [Browser(chat), Browser(second)]
        assert post(chat, author="Ann", text="to all") == 204
        assert [browser.next_message() for browser in browsers] == [("Ann", "to all")] * 2
    finally:
        for browser in browsers:
            browser.close()
        assert second.stop(signal.SIGINT) == 0


@pytest.mark.parametrize("chat", ["python"], indirect=True)
def test_nothing_is_left_at_the_server(chat, admin):
    """Stopped with a browser still there."""
    browser = Browser(chat)
    assert listeners(admin)
    chat.stop(signal.SIGINT)
    browser.close()
    wait_until(lambda: not listeners(admin))
