"""What the page's server lets in: the requests that the page makes, of bounded size, and no others.

Gradio serves much more than one page needs: it fetches addresses of other machines for visitors,
hands out what other Gradio programs of the same user have put into the folder of temporary files,
and bounds a file that is sent, but neither their sum nor any other request.
"""

import asyncio
import contextlib
import dataclasses
import os
import re
from collections.abc import Awaitable, Callable, MutableMapping
from pathlib import Path
from typing import Any

# Bytes: of all files that a visitor sends at once, of all that is kept for visitors, and of any
# other request (the longest names two thousand files that were sent).
MOST_SENT, MOST_KEPT, MOST_ASKED = 1 << 30, 4 << 30, 4 << 20

UPLOAD = "/gradio_api/upload"
FILE = "/gradio_api/file="

_GET = re.compile(
    r"/|/(config|favicon\.ico|manifest\.json|pwa_icon(/\d+)?|robots\.txt|theme\.css)"
    r"|/(assets|static)/.+"
    r"|/gradio_api/(queue/data|startup-events|upload_progress|heartbeat/\w+)"
)
_POST = ("/gradio_api/queue/join", "/gradio_api/run/predict", UPLOAD)
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
        served: the folder of what was sent and shown: the only one that a file is served from.
        kept: the folder of all that is kept for visitors, `served` among it.
        hosts: the names by which it may be asked; empty: any. A page of elsewhere in a visitor's
            browser could else have its own name point here (DNS rebinding), and read all.
    """

    app: Application
    served: Path
    kept: Path
    hosts: frozenset[str]
    _coming: int = 0  # bytes of what is being sent

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
        elif scope["path"] != UPLOAD:
            await self.app(scope, receive, send)
        else:
            await self._upload(scope, receive, send)

    def _refusal(self, scope: Scope) -> tuple[int, str]:
        """Returns the status and what is wrong with a request; nothing, if it may pass."""
        method, path = scope["method"], scope["path"]
        host = re.sub(r":\d+$", "", _header(scope, b"host"))
        if self.hosts and host not in self.hosts:
            return 403, f"this page is for its own machine, and not asked for as {host!r}"
        if method in ("GET", "HEAD"):
            if path.startswith(FILE):
                named = os.path.normpath(path.removeprefix(FILE))
                known = Path(named).is_relative_to(self.served)
            else:
                known = _GET.fullmatch(path) is not None
            return (0, "") if known else (404, "there is no such page here")
        if method != "POST":
            return 405, f"{method} is not asked for here"
        if path not in _POST:
            return 404, "there is no such page here"
        length = _length(scope)
        if length is None:
            return 411, "say how long the request is"
        most = MOST_SENT if path == UPLOAD else MOST_ASKED
        if length > most:
            return 413, f"{_size(length)} are more than the {_size(most)} that one request may have"
        return 0, ""

    async def _upload(self, scope: Scope, receive: Receive, send: Send) -> None:
        length = _length(scope) or 0
        # Counted before the disk is looked at: another upload may begin meanwhile.
        self._coming += length
        try:
            held = await asyncio.to_thread(size, self.kept)
            if held + self._coming > MOST_KEPT:
                await _answer(
                    receive,
                    send,
                    503,
                    f"the page keeps {_size(held)} of files, and {_size(MOST_KEPT)} at most; try "
                    "again in an hour, or start it on that folder: --config.images=DIR",
                )
                return
            await self.app(scope, receive, send)
        finally:
            self._coming -= length
            if not self._coming:
                _remove_broken_off(self.served)


def size(folder: Path) -> int:
    """Returns the bytes of the files below a folder, each counted once however it is linked."""
    found: dict[int, int] = {}
    for where, _, names in os.walk(folder):
        for name in names:
            with contextlib.suppress(FileNotFoundError):  # Removed meanwhile.
                about = os.lstat(os.path.join(where, name))
                found[about.st_ino] = -(-about.st_size // _BLOCK) * _BLOCK
    return sum(found.values())


def _remove_broken_off(served: Path) -> None:
    """Removes what uploads that broke off left; whole ones have folders of their own."""
    for each in served.iterdir() if served.is_dir() else ():
        if each.is_file():
            each.unlink(missing_ok=True)


def _header(scope: Scope, name: bytes) -> str:
    return dict(scope["headers"]).get(name, b"").decode("latin-1")


def _length(scope: Scope) -> int | None:
    """Returns what a request says of its length, to which the server holds it; None: nothing."""
    length = _header(scope, b"content-length")
    return int(length) if length.isdecimal() and not _header(scope, b"transfer-encoding") else None


def _size(count: int) -> str:
    return f"{count / (1 << 20):,.0f} MB"


async def _answer(receive: Receive, send: Send, status: int, why: str) -> None:
    # Heard to its end and thrown away: a browser that is still sending reads no answer.
    while (await receive()).get("more_body"):
        pass
    content = why.encode()
    headers = [(b"content-type", b"text/plain; charset=utf-8")]
    headers.append((b"content-length", str(len(content)).encode()))
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": content})
