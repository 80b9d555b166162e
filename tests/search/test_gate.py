"""The gate, before a server that would do anything it is asked."""

import asyncio
import json
import os
import time

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

    def ask(method, path, hosts=(), body=None, query=b"", **headers):
        seen, answer = [], []
        question = {"data": [], "fn_index": 1, "session_hash": "a"}
        content = json.dumps(question if body is None else body).encode()

        async def server(scope, receive, send):
            seen.append(scope["path"])
            await send({"type": "http.response.start", "status": 200, "headers": []})

        async def receive():
            return {"type": "http.request", "body": content, "more_body": False}

        async def send(message):
            answer.append(message)

        passing = gate.Gate(server, tmp_path / "served", tmp_path, frozenset(hosts))
        given = [(name.replace("_", "-").encode(), it.encode()) for name, it in headers.items()]
        scope = {"type": "http", "method": method, "path": path, "headers": given}
        asyncio.run(passing(scope | {"query_string": query}, receive, send))
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
    assert ask("POST", join, content_length="0") == (411, False)
    assert ask("POST", join, content_length=f"{2 << 20}") == (200, True)
    assert ask("POST", join, content_length=f"{(2 << 20) + 1}") == (413, False)
    assert ask("POST", gate.UPLOAD, content_length=f"{256 << 20}") == (200, True)
    assert ask("POST", gate.UPLOAD, content_length=f"{(256 << 20) + 1}") == (413, False)
    assert ask("POST", gate.UPLOAD, content_length="9" * 50) == (413, False)


def test_no_more_is_kept_than_the_bound(ask, tmp_path, monkeypatch):
    monkeypatch.setattr(gate, "MOST_KEPT", 3 * 4096)
    (tmp_path / "a").write_bytes(b"x" * 4097)  # Two blocks.
    assert ask("POST", gate.UPLOAD, content_length="4096") == (200, True)
    assert ask("POST", gate.UPLOAD, content_length="4097") == (503, False)
    (tmp_path / "b").write_bytes(b"x")
    assert ask("POST", gate.UPLOAD, content_length="1") == (503, False)
    assert ask("POST", "/gradio_api/queue/join", content_length="1") == (200, True)


def test_what_is_old_goes(ask, tmp_path):
    for folder in ("old", "new"):
        (tmp_path / "served" / folder).mkdir()
        (tmp_path / "served" / folder / "a.png").write_bytes(b"whole")
    (tmp_path / "served" / "tmp1").write_bytes(b"half")
    before = time.time() - gate.KEPT - 1
    for name in ("old/a.png", "old", "tmp1"):
        os.utime(tmp_path / "served" / name, (before, before))
    assert ask("POST", gate.UPLOAD, content_length="1") == (200, True)
    assert not (tmp_path / "served" / "tmp1").exists()
    assert not (tmp_path / "served" / "old" / "a.png").exists()
    assert (tmp_path / "served" / "new" / "a.png").exists()


def test_two_uploads_go_on_at_once_and_who_sends_nothing_is_left(tmp_path, monkeypatch):
    monkeypatch.setattr(gate, "_PATIENCE", 0.2)
    heard = []

    async def all_of_them():
        async def server(scope, receive, send):
            heard.append(1)
            assert sum(heard) <= 2
            assert (await receive())["type"] == "http.disconnect"
            heard.append(-1)

        async def receive():
            await asyncio.sleep(60)

        async def send(message):
            raise AssertionError(message)

        passing = gate.Gate(server, tmp_path, tmp_path, frozenset())
        scope = {"type": "http", "method": "POST", "path": gate.UPLOAD, "query_string": b""}
        scope["headers"] = [(b"content-length", b"60")]
        await asyncio.gather(*(passing(scope, receive, send) for _ in range(5)))

    asyncio.run(all_of_them())
    assert heard.count(1) == heard.count(-1) == 5


def test_a_question_is_of_the_form_that_the_page_sends(ask, tmp_path):
    join, good = "/gradio_api/queue/join", {"data": [], "fn_index": 1, "session_hash": "ab1"}
    sent = {"path": f"{tmp_path}/served/a/b.png", "url": "http://localhost/x", "meta": {}}
    for data in ([], [None, 1.5, "red", ["a"], True], [sent], [[sent] * 2000]):
        assert ask("POST", join, body=good | {"data": data}, content_length="9") == (200, True)
    elsewhere = [
        {"path": "/etc/passwd"},
        {"path": f"{tmp_path}/served/../index"},
        {"path": "https://a.example/b.png"},
        {"url": "https://a.example/b.png"},
        {"path": None, "url": None},
        {"path": ["a"]},
        [[{"deep": {"path": "a"}}]],
    ]
    wrong = [good | {"data": [each]} for each in elsewhere]
    wrong += [good | {"session_hash": each} for each in ("", None, 1, "a" * 33, "a b", "a\n")]
    wrong += [good | {"fn_index": each} for each in (None, "1", 1.0, True)]
    wrong += [good | {"data": each} for each in (None, {}, "a", [[]] * 30_001)]
    wrong += [[], 1, {}]
    for body in wrong:
        assert ask("POST", join, body=body, content_length="9") == (400, False), body


def test_no_other_site_asks_in_a_visitors_name(ask):
    for origin in ("http://localhost:7860", "https://localhost:7860"):
        assert ask("GET", "/", host="localhost:7860", origin=origin) == (200, True)
    proxied = {"host": "127.0.0.1:7860", "x_forwarded_host": "search.example"}
    assert ask("GET", "/", **proxied, origin="https://search.example") == (200, True)
    for origin in ("http://evil.example", "null", "http://localhost:1", "localhost"):
        assert ask("GET", "/", host="localhost:7860", origin=origin) == (403, False)


def test_a_query_string_is_short_and_plain(ask):
    data = "/gradio_api/queue/data"
    assert ask("GET", data, query=b"session_hash=abc&x=1") == (200, True)
    for query in (b"a" * 201, b"a=/etc", b"a=\xff"):
        assert ask("GET", data, query=query) == (404, False)


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
