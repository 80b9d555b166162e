"""The gate, before a server that would do anything it is asked."""

import asyncio
import os

import pytest

from unipt_jax.search import gate

PASSES = """
/ /config /theme.css /assets/index.js /gradio_api/queue/data /gradio_api/heartbeat/abc
/gradio_api/startup-events /gradio_api/upload_progress
"""
REFUSED = """
/gradio_api/proxy=http://a /gradio_api/info /gradio_api/dev/reload /gradio_api/heartbeat/a/b
/gradio_api/mcp /gradio_api/file=http://a/b /gradio_api/file=/etc/hostname /gradio_api/file=
/login /monitoring /static /config/x
"""


@pytest.fixture
def ask(tmp_path):
    """Sends a request through the gate; returns the status, and whether the server saw it."""
    (tmp_path / "served").mkdir()

    def ask(method, path, hosts=(), **headers):
        seen, answer = [], []

        async def server(scope, receive, send):
            seen.append(scope["path"])
            await send({"type": "http.response.start", "status": 200, "headers": []})

        async def receive():
            return {"type": "http.request", "body": b"", "more_body": False}

        async def send(message):
            answer.append(message)

        passing = gate.Gate(server, tmp_path / "served", tmp_path, frozenset(hosts))
        given = [(name.replace("_", "-").encode(), it.encode()) for name, it in headers.items()]
        scope = {"type": "http", "method": method, "path": path, "headers": given}
        asyncio.run(passing(scope, receive, send))
        assert passing._coming == 0
        return answer[0]["status"], bool(seen)

    return ask


@pytest.mark.parametrize("path", PASSES.split())
def test_what_the_page_asks_for_passes(ask, path):
    assert ask("GET", path) == ask("HEAD", path) == (200, True)


@pytest.mark.parametrize("path", REFUSED.split())
def test_whatever_else_the_server_knows_does_not(ask, path):
    assert ask("GET", path) == (404, False)


def test_only_files_that_were_sent_or_shown_are_served(ask, tmp_path):
    (tmp_path / "index").write_bytes(b"of another visitor")
    assert ask("GET", f"{gate.FILE}{tmp_path}/served/a/image.webp") == (200, True)
    assert ask("GET", f"{gate.FILE}{tmp_path}/index") == (404, False)
    assert ask("GET", f"{gate.FILE}{tmp_path}/served/../index") == (404, False)


def test_only_what_the_page_sends_is_taken(ask):
    for path in ("/gradio_api/run/predict", "/gradio_api/queue/join", "/gradio_api/upload"):
        assert ask("POST", path, content_length="10") == (200, True)
    for path in ("/gradio_api/run/other", "/gradio_api/call/look", "/gradio_api/vibe-edit", "/"):
        assert ask("POST", path, content_length="10") == (404, False)
    for method in ("PUT", "DELETE", "OPTIONS", "PATCH", "TRACE"):
        assert ask(method, "/") == (405, False)


def test_a_request_says_how_long_it_is_and_is_not_too_long(ask):
    join = "/gradio_api/queue/join"
    assert ask("POST", join) == (411, False)
    assert ask("POST", join, content_length="-1") == (411, False)
    assert ask("POST", join, content_length="5", transfer_encoding="chunked") == (411, False)
    assert ask("POST", join, content_length=f"{4 << 20}") == (200, True)
    assert ask("POST", join, content_length=f"{(4 << 20) + 1}") == (413, False)
    assert ask("POST", gate.UPLOAD, content_length=f"{1 << 30}") == (200, True)
    assert ask("POST", gate.UPLOAD, content_length=f"{(1 << 30) + 1}") == (413, False)
    assert ask("POST", gate.UPLOAD, content_length="9" * 50) == (413, False)


def test_no_more_is_kept_than_the_bound(ask, tmp_path, monkeypatch):
    monkeypatch.setattr(gate, "MOST_KEPT", 3 * 4096)
    (tmp_path / "a").write_bytes(b"x" * 4097)  # Two blocks.
    assert ask("POST", gate.UPLOAD, content_length="4096") == (200, True)
    assert ask("POST", gate.UPLOAD, content_length="4097") == (503, False)
    (tmp_path / "b").write_bytes(b"x")
    assert ask("POST", gate.UPLOAD, content_length="1") == (503, False)
    assert ask("POST", "/gradio_api/queue/join", content_length="1") == (200, True)


def test_what_a_broken_upload_left_goes_once_none_is_under_way(ask, tmp_path):
    (tmp_path / "served" / "tmp1").write_bytes(b"half")
    (tmp_path / "served" / "hash").mkdir()
    (tmp_path / "served" / "hash" / "a.png").write_bytes(b"whole")
    assert ask("POST", gate.UPLOAD, content_length="1") == (200, True)
    assert [path.name for path in (tmp_path / "served").rglob("*")] == ["hash", "a.png"]


def test_uploads_under_way_count_too(tmp_path, monkeypatch):
    monkeypatch.setattr(gate, "MOST_KEPT", 100)
    statuses = []

    async def both():
        first_is_there, go_on = asyncio.Event(), asyncio.Event()

        async def server(scope, receive, send):
            first_is_there.set()
            await go_on.wait()
            await send({"type": "http.response.start", "status": 200})

        async def receive():
            return {"more_body": False}

        async def send(message):
            statuses.extend([message["status"]] if "status" in message else [])

        passing = gate.Gate(server, tmp_path, tmp_path, frozenset())
        scope = {"type": "http", "method": "POST", "path": gate.UPLOAD}
        scope["headers"] = [(b"content-length", b"60")]
        first = asyncio.create_task(passing(scope, receive, send))
        await first_is_there.wait()
        await passing(scope, receive, send)
        go_on.set()
        await first
        await passing(scope, receive, send)

    asyncio.run(both())
    assert statuses == [503, 200, 200]


def test_a_page_for_its_own_machine_answers_to_no_other_name(ask):
    hosts = ("localhost", "127.0.0.1", "[::1]")
    for host in ("localhost", "localhost:7860", "127.0.0.1:1", "[::1]", "[::1]:7860"):
        assert ask("GET", "/", hosts, host=host) == (200, True)
    for host in ("elsewhere.example", "localhost.elsewhere.example:7860", "", "127.0.0.1:x"):
        assert ask("GET", "/", hosts, host=host) == (403, False)
    assert ask("GET", "/", (), host="any.example") == (200, True)


def test_a_file_is_counted_once_however_often_it_is_linked(tmp_path):
    (tmp_path / "a").write_bytes(b"x" * 5000)
    os.link(tmp_path / "a", tmp_path / "b")
    (tmp_path / "deep").mkdir()
    (tmp_path / "deep" / "c").symlink_to("nowhere")
    assert gate.size(tmp_path) == 2 * 4096 + 4096
