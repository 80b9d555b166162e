"""What the page's server lets in: the requests that the page makes, of bounded size, and no others.

Gradio serves much more than one page needs: it fetches addresses of other machines for visitors,
hands out what other Gradio programs of the same user have put into the folder of temporary files,
keeps whatever a request holds, and stops for good at a session without a name.
"""

import asyncio
import contextlib
import dataclasses
import json
import os
import re
import time
from collections.abc import Awaitable, Callable, MutableMapping
from pathlib import Path
from typing import Any

# Bytes: of the files that are sent at once, of all that is kept for visitors, and of any other
# request (the longest names two thousand files that were sent).
MOST_SENT, MOST_KEPT, MOST_ASKED = 256 << 20, 4 << 30, 2 << 20

# Of what a question holds: two thousand files, each told of in ten values.
MOST_VALUES = 30_000

KEPT = 3_600  # seconds for which a picture that was shown or sent is kept

UPLOAD = "/gradio_api/upload"
FILE = "/gradio_api/file="

_GET = re.compile(
    r"/|/(config|favicon\.ico|manifest\.json|pwa_icon(/\d+)?|robots\.txt|theme\.css)"
    r"|/(assets|static)/.+"
    r"|/gradio_api/(app_id|queue/data|startup-events|upload_progress|heartbeat/\w{1,32})"
)
_QUERY = re.compile(rb"[\w=&%.-]{0,200}")
_POST = ("/gradio_api/queue/join", "/gradio_api/run/predict", UPLOAD)
_SESSION = re.compile(r"\w{1,32}")
_UPLOADS = 2  # at once; others wait
_PATIENCE = 60  # seconds for which the next piece of a request is waited for
_BLOCK = 4096  # the least that a file takes of a disk

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]
Application = Callable[[Scope, Receive, Send], Awaitable[None]]


@dataclasses.dataclass
class Gate:
    """Stands before the page's server, as ASGI middleware.

    Attributes:
        app: the server.
        served: the folder of what was sent and shown, for `KEPT` seconds: the only one that a file
            is served from.
        kept: the folder of all that is kept for visitors, `served` among it.
        hosts: the names by which it may be asked; empty: any. A page of elsewhere in a visitor's
            browser could else have its own name point here (DNS rebinding), and read all.
    """

    app: Application
    served: Path
    kept: Path
    hosts: frozenset[str]
    _uploads: asyncio.Semaphore = dataclasses.field(
        default_factory=lambda: asyncio.Semaphore(_UPLOADS)
    )
    _swept: float = -KEPT

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Passes a request on, or answers it with what is wrong with it."""
        if scope["type"] == "lifespan":
            await self.app(scope, receive, send)
            return
        if scope["type"] != "http":
            return
        status, why = self._refusal(scope)
        if why:
            await _answer(receive, send, status, why)
        elif scope["method"] != "POST":
            await self.app(scope, receive, send)
        elif scope["path"] == UPLOAD:
            await self._upload(scope, _impatient(receive), send)
        else:
            await self._question(scope, _impatient(receive), send)

    def _refusal(self, scope: Scope) -> tuple[int, str]:
        """Returns the status and what is wrong with a request; nothing, if it may pass."""
        method, path = scope["method"], scope["path"]
        host, origin = _header(scope, b"host"), _header(scope, b"origin")
        name = re.sub(r":\d+$", "", host)
        if self.hosts and name not in self.hosts:
            return 403, f"this page is for its own machine, and not asked for as {name!r}"
        own = {host, _header(scope, b"x-forwarded-host")} - {""}
        if origin and origin.partition("://")[2] not in own:
            return 403, f"a page of {origin!r} may not ask here"
        if method in ("GET", "HEAD"):
            if path.startswith(FILE):
                known = _is_below(path.removeprefix(FILE), self.served)
            else:
                known = _GET.fullmatch(path) and _QUERY.fullmatch(scope["query_string"])
            return (0, "") if known else (404, "there is no such page here")
        if method != "POST":
            return 405, f"{method} is not asked for here"
        if path not in _POST:
            return 404, "there is no such page here"
        length = _length(scope)
        if not length:
            return 411, "say how long the request is"
        most = MOST_SENT if path == UPLOAD else MOST_ASKED
        if length > most:
            return 413, f"{_size(length)} are more than the {_size(most)} that one request may have"
        return 0, ""

    async def _question(self, scope: Scope, receive: Receive, send: Send) -> None:
        content, more = b"", True
        while more:
            message = await receive()
            if message["type"] == "http.disconnect":
                return
            content, more = content + message["body"], message.get("more_body", False)
        # Beside the server's loop: a long one takes a while.
        why = await asyncio.to_thread(fault, content, self.served)
        if why:
            await _answer(receive, send, 400, why, heard=True)
            return
        if time.monotonic() - self._swept > KEPT / 6:
            self._swept = time.monotonic()
            await asyncio.to_thread(_sweep, self.served)
        pieces = [{"type": "http.request", "body": content, "more_body": False}]

        async def again() -> MutableMapping[str, Any]:
            return pieces.pop() if pieces else await receive()

        await self.app(scope, again, send)

    async def _upload(self, scope: Scope, receive: Receive, send: Send) -> None:
        async with self._uploads:
            await asyncio.to_thread(_sweep, self.served)
            held = await asyncio.to_thread(size, self.kept)
            if held + (_length(scope) or 0) <= MOST_KEPT:
                await self.app(scope, receive, send)
                return
        await _answer(
            receive,
            send,
            503,
            f"the page keeps {_size(held)} of files, and {_size(MOST_KEPT)} at most; try again in "
            "an hour, or start it on that folder: --config.images=DIR",
        )


def fault(content: bytes, served: Path) -> str:
    """Returns what is wrong with a question as Gradio's browser code puts it; or an empty string.

    Whatever is called a file has to lie below `served`: Gradio fetches what has an address.
    """
    try:
        asked = json.loads(content)
    except (ValueError, RecursionError):
        return "the question is no JSON"
    if not isinstance(asked, dict) or not isinstance(asked.get("data"), list):
        return "the question has no data"
    session = asked.get("session_hash")
    if not isinstance(session, str) or not _SESSION.fullmatch(session):
        return "the question is of no session"
    if type(asked.get("fn_index")) is not int:
        return "the question is for no event"
    left, count = [asked], 0
    while left:
        value = left.pop()
        count += 1
        if count > MOST_VALUES:
            return f"the question has more than {MOST_VALUES:,} values"
        if isinstance(value, dict):
            if not value.keys().isdisjoint(("path", "url")) and not _is_below(
                value.get("path"), served
            ):
                return "the question names a file that was not sent"
            left.extend(value.values())
        elif isinstance(value, list):
            left.extend(value)
    return ""


def size(folder: Path) -> int:
    """Returns the bytes of the files below a folder, each counted once however it is linked."""
    found: dict[int, int] = {}
    for where, _, names in os.walk(folder):
        for name in names:
            with contextlib.suppress(FileNotFoundError):  # Removed meanwhile.
                about = os.lstat(os.path.join(where, name))
                found[about.st_ino] = max(1, -(-about.st_size // _BLOCK)) * _BLOCK
    return sum(found.values())


def _sweep(served: Path) -> None:
    """Removes what was sent, shown or left by an upload that broke off longer ago than `KEPT`."""
    oldest = time.time() - KEPT
    for where, _, names in os.walk(served, topdown=False):
        for name in names:
            path = os.path.join(where, name)
            with contextlib.suppress(FileNotFoundError):
                if os.lstat(path).st_mtime < oldest:
                    os.unlink(path)
        with contextlib.suppress(OSError):  # It holds something, or is made use of just now.
            if where != os.fspath(served) and os.stat(where).st_mtime < oldest:
                os.rmdir(where)


def _is_below(path: Any, folder: Path) -> bool:
    return isinstance(path, str) and Path(os.path.normpath(path)).is_relative_to(folder)


def _impatient(receive: Receive) -> Receive:
    """Breaks off with who sends nothing any more."""

    async def receive_soon() -> MutableMapping[str, Any]:
        try:
            return await asyncio.wait_for(receive(), _PATIENCE)
        except TimeoutError:
            return {"type": "http.disconnect"}

    return receive_soon


def _header(scope: Scope, name: bytes) -> str:
    return dict(scope["headers"]).get(name, b"").decode("latin-1")


def _length(scope: Scope) -> int | None:
    """Returns what a request says of its length, to which the server holds it; None: nothing."""
    length = _header(scope, b"content-length")
    return int(length) if length.isdecimal() and not _header(scope, b"transfer-encoding") else None


def _size(count: int) -> str:
    return f"{count / (1 << 20):,.0f} MB"


async def _answer(
    receive: Receive, send: Send, status: int, why: str, *, heard: bool = False
) -> None:
    # Heard to its end and thrown away: a browser that is still sending reads no answer.
    while not heard and (await receive()).get("more_body"):
        pass
    content = why.encode()
    headers = [(b"content-type", b"text/plain; charset=utf-8")]
    headers.append((b"content-length", str(len(content)).encode()))
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": content})
