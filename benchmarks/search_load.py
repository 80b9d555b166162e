"""The search page under load: many visitors at once, and one who sends what no page would.

Each visitor has a session, holds its connection open, and asks again as soon as it has the answer
and the first picture of it, so that as many questions wait as there are visitors. Visitors and
server share the machine. Beside them bad requests go on: wrong types, damaged JSON, no session,
files of the server's and of elsewhere, other hosts and sites, too much.

Usage: python benchmarks/search_load.py [--visitors 200] [--rounds 10]
"""

import argparse
import contextlib
import http.client
import json
import os
import secrets
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table

QUERIES = [
    f"a {who} in a {colour} {garment}"
    for who in ("man", "woman", "person")
    for colour in ("red", "black", "white", "blue", "grey")
    for garment in ("coat", "jacket", "shirt", "dress")
]
FILE = "/gradio_api/file="
_TIMEOUT = 300  # seconds


class Visitor:
    """One session of the page at a port of this machine, as a browser would hold it."""

    def __init__(self, port: int) -> None:
        self._port, self._session = port, secrets.token_hex(6)
        self._config = json.loads(self.send("GET", "/config")[1])

    def send(self, method: str, path: str, body: bytes = b"", **headers: str) -> tuple[int, bytes]:
        """Sends a request; returns the answer's status and content."""
        connection = http.client.HTTPConnection("127.0.0.1", self._port, timeout=_TIMEOUT)
        with contextlib.closing(connection):
            connection.request(method, path, body or None, headers)
            answer = connection.getresponse()
            return answer.status, answer.read()

    def search(self, text: Any, **settings: Any) -> list[Any]:
        """Asks for a description; returns what the event gives back.

        Raises:
            RuntimeError: the server refused the question, or could not answer it.
        """
        given = {"query": text, "shown": 10, "without": ""} | settings
        return self._event("search", "click", given)

    @contextlib.contextmanager
    def heartbeat(self) -> Iterator[None]:
        """Holds the connection by which the server knows that the page is open."""
        connection = http.client.HTTPConnection("127.0.0.1", self._port, timeout=_TIMEOUT)
        with contextlib.closing(connection):
            connection.request("GET", f"/gradio_api/heartbeat/{self._session}")
            connection.getresponse()
            yield

    def look_alikes(self, file: dict[str, Any]) -> list[Any]:
        """Asks for people like a picture, which is described as Gradio's browser code does.

        Raises:
            RuntimeError: as `search`.
        """
        return self._event("picture", "upload", {"picture": file, "shown": 10, "without": ""})

    def _event(self, element: str, event: str, given: dict[str, Any]) -> list[Any]:
        names = {each["id"]: each["props"].get("elem_id") for each in self._config["components"]}
        [dependency] = [
            each
            for each in self._config["dependencies"]
            if [(names.get(of), what) for of, what in each["targets"]] == [(element, event)]
        ]
        values = [given.get(names[number]) for number in dependency["inputs"]]
        asked = {"data": values, "fn_index": dependency["id"], "session_hash": self._session}
        status, content = self.send(
            "POST", "/gradio_api/queue/join", json.dumps(asked).encode(), **JSON
        )
        if status != 200:
            raise RuntimeError(f"{status}: {content.decode(errors='replace')}")
        number = json.loads(content)["event_id"]
        for message in self._messages():
            if message.get("event_id") == number and message["msg"] == "process_completed":
                if not message["success"]:
                    raise RuntimeError(f"{message['output']}")
                return message["output"]["data"]
        raise RuntimeError("the server ended the answer before it came")

    def _messages(self) -> Iterator[dict[str, Any]]:
        connection = http.client.HTTPConnection("127.0.0.1", self._port, timeout=_TIMEOUT)
        with contextlib.closing(connection):
            connection.request("GET", f"/gradio_api/queue/data?session_hash={self._session}")
            for line in connection.getresponse():
                if line.startswith(b"data:"):
                    yield json.loads(line.removeprefix(b"data:"))


JSON = {"Content-Type": "application/json"}


def bad_requests(visitor: Visitor) -> Iterator[tuple[str, tuple[int, bytes]]]:
    """Sends one bad request of each kind; yields its name, and the answer's status and content."""

    def join(content: bytes, **headers: str) -> tuple[int, bytes]:
        return visitor.send("POST", "/gradio_api/queue/join", content, **(JSON | headers))

    def get(path: str, **headers: str) -> tuple[int, bytes]:
        return visitor.send("GET", path, **headers)

    def question(*data: Any, session: Any = "a") -> tuple[int, bytes]:
        asked = {"data": data, "fn_index": 0, "session_hash": session}
        return join(json.dumps(asked).encode())

    yield "no session", question(session="")
    yield "an address of elsewhere", question({"path": "https://elsewhere.example/a.png"})
    yield "a file of the server's", question({"path": "/etc/hostname"})
    yield "many values", question(*[[]] * 40_000)
    yield "another site", get("/config", Origin="http://elsewhere.example")
    yield "no JSON", join(b"{")
    yield "deep JSON", join(b"[" * 100_000)
    yield "no such event", join(b'{"data": [], "fn_index": 99999, "session_hash": "a"}')
    yield "a number of text", join(b'{"data": 1, "fn_index": "x", "session_hash": null}')
    yield "too long", join(b" " * (5 << 20))
    yield "no length", join(b"0\r\n\r\n", **{"Transfer-Encoding": "chunked"})
    yield "another host", get("/config", Host="elsewhere.example")
    yield "another method", visitor.send("DELETE", "/")
    for path in (
        "/etc/hostname",
        "../../../etc/hostname",
        "%2e%2e/%2e%2e/etc/hostname",
        "pyproject.toml",
        "http://localhost/",
        "file:///etc/hostname",
    ):
        yield f"file={path}", get(f"/gradio_api/file={path}")
    yield "proxy", get("/gradio_api/proxy=http://localhost/")
    yield "static", get("/static/../../pyproject.toml")
    yield "upload of no form", visitor.send("POST", "/gradio_api/upload", b"no form", **JSON)


def free_port() -> int:
    """Returns a port that nobody listens at."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


@contextlib.contextmanager
def page() -> Iterator[tuple[int, int]]:
    """Starts the page on the embedded sample; yields its port and process number."""
    port = free_port()
    with tempfile.TemporaryDirectory() as place:
        server = subprocess.Popen(
            [
                sys.executable,
                "launch/search.py",
                "--config=configs/search.py:demo",
                f"--config.port={port}",
            ],
            env={**os.environ, "XDG_CACHE_HOME": place},
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
        )
        try:
            for line in server.stdout:
                if line.startswith("search page:"):
                    break
            yield port, server.pid
        finally:
            server.terminate()
            server.wait()


def memory(process: int) -> float:
    """Returns the MB that a process holds."""
    pages = int(Path(f"/proc/{process}/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / (1 << 20)


def measure(visitors: int, rounds: int) -> Table:
    """Returns the table of a run."""
    with page() as (port, process):
        sessions = [Visitor(port) for _ in range(visitors)]
        over = threading.Event()
        times, errors, held = [], [], []

        def visit(number: int) -> None:
            for at in range(rounds):
                started = time.perf_counter()
                try:
                    answer = sessions[number].search(f"{QUERIES[at % len(QUERIES)]}, {number}")
                    pictures = [each["image"]["path"] for each in answer[1]]
                    if len(pictures) != 10:
                        raise RuntimeError(f"{len(pictures)} pictures")
                    status, content = sessions[number].send("GET", f"{FILE}{pictures[0]}")
                    if status != 200 or not content:
                        raise RuntimeError(f"{status} for a picture")
                except Exception as error:
                    errors.append(str(error))
                else:
                    times.append(time.perf_counter() - started)
                if len(times) % visitors == 0:
                    held.append(memory(process))

        def disturb() -> list[tuple[str, int]]:
            visitor, answers = Visitor(port), []
            while not over.is_set():
                answers += [(name, status) for name, (status, _) in bad_requests(visitor)]
            return answers

        with contextlib.ExitStack() as open_pages, ThreadPoolExecutor(visitors + 1) as threads:
            for session in sessions:
                open_pages.enter_context(session.heartbeat())
            vandal = threads.submit(disturb)
            started = time.perf_counter()
            for done in [threads.submit(visit, number) for number in range(visitors)]:
                done.result()
            took = time.perf_counter() - started
            over.set()
            bad = vandal.result()
            held.append(memory(process))
    let_through = [name for name, status in bad if status < 400]
    table = Table(title=f"The search page, {visitors} visitors at once")
    p50, p99 = np.percentile(times, [50, 99]) if times else (np.nan, np.nan)
    row = {
        "requests": f"{len(times) + len(errors):,}",
        "errors": f"{len(errors)}",
        "p50, s": f"{p50:.2f}",
        "p99, s": f"{p99:.2f}",
        "answers/s": f"{len(times) / took:.1f}",
        "memory after a question each, MB": f"{held[0]:.0f}",
        "growth to the end, MB": f"{held[-1] - held[0]:+.0f}",
        "bad requests": f"{len(bad):,}",
        "let through": f"{len(let_through)}",
    }
    for name in row:
        table.add_column(name, justify="right")
    table.add_row(*row.values())
    for what in (errors[:3], let_through[:3]):
        if what:
            table.caption = f"{what}"
    return table


def main() -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--visitors", type=int, default=200)
    parser.add_argument("--rounds", type=int, default=10)
    flags = parser.parse_args()
    Console(width=150).print(measure(flags.visitors, flags.rounds))


if __name__ == "__main__":
    main()
