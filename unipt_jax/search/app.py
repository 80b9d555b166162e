"""The search page: a sentence, a picture or a click finds people; nothing leaves the machine."""

import atexit
import functools
import hashlib
import html
import importlib.util
import io
import ipaddress
import os
import resource
import signal
import socket
import tempfile
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from etils import epath
from PIL import Image

from unipt_jax.captioning.sources import SUFFIXES
from unipt_jax.config import schema
from unipt_jax.core.errors import ConfigError, DataError, UserError, printable
from unipt_jax.core.files import write_bytes
from unipt_jax.data import images
from unipt_jax.search import gate
from unipt_jax.search.gallery import Gallery, Hit
from unipt_jax.search.terminal import fitted

EXAMPLES = (
    "a woman with long dark hair in a red jacket and jeans",
    "a man in a black coat and black trousers",
    "a woman in a white coat",
    "a person in a plaid shirt with a backpack",
)

# Of what people send: files of a folder, bytes of each, and characters of a sentence. What all of
# them send together is bounded by `gate`.
MOST_FILES, MOST_BYTES, MOST_CHARACTERS = 2_000, 20 << 20, 2_000

# Questions that may wait for an answer: the next is told that there are too many.
MOST_WAITING = 400

SHOWN = (5, 10, 20, 50)

_THUMBNAIL, _PICTURE = (128, 256), (256, 512)  # pixels, width and height
_OPEN = 6 * gate.KEPT  # seconds for which a visitor's own folder is kept at most
# A picture may take a GB to decode (`images.MAX_PIXELS`).
_DECODING = threading.BoundedSemaphore(2)
_GONE = "What you sent is no longer kept here; clear the folder, and send it again."
_CSS = """
.gradio-container {max-width: 1280px !important; margin: auto}
#status .problem {color: #b3261e; font-weight: 600}
.dark #status .problem {color: #ffb4ab}
#results .thumbnail-item {aspect-ratio: 1 / 2}
#results .grid-wrap {max-height: none; min-height: 0}
#results .grid-container {grid-template-columns: repeat(auto-fill, minmax(96px, 1fr)) !important}
@media (max-width: 760px) {
  #main {flex-direction: column; align-items: stretch}
}
#about :is(table, tr, td, th) {border: 0 !important; text-align: left}
#about :is(td, th) {padding: .1rem .8rem .1rem 0; font-weight: 400}
"""


def check(config: schema.Search, resumed: epath.PathLike | None) -> None:
    """Raises what is wrong before any image is encoded."""
    if not Path(config.images).is_dir():
        raise DataError(f"images={config.images}: no such folder")
    if config.picture and not Path(config.picture).is_file():
        raise DataError(f"picture={config.picture}: no such file")
    if config.query or config.picture:
        return
    if importlib.util.find_spec("gradio") is None:
        raise ConfigError(
            "the page needs pip install 'unipt-jax[search]'; --config.query='a man in red' answers "
            "in the terminal without it"
        )
    _require_free(config.host, config.port)


def _require_free(host: str, port: int) -> None:
    try:
        family, _, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        with socket.socket(family, socket.SOCK_STREAM) as tried:
            # A page that has just ended still holds its port for a while, which is no hindrance.
            tried.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            tried.bind(address)
    except OSError as error:
        why = error.strerror or error
        raise ConfigError(f"host={host}, port={port}: {why}; choose another") from None


def serve(gallery: Gallery, *, host: str, port: int, wait: bool = True) -> Any:
    """Serves the page until it is interrupted; without `wait` returns what `close()` ends.

    Raises:
        ConfigError: the port is taken, or the host is none of this machine's.
    """
    import gradio as gr  # slow to import, and an extra
    from starlette.middleware import Middleware

    _require_free(host, port)
    gallery.search(EXAMPLES[0], 1)  # Compiled before the first visitor waits for it.
    served = _kept() / "served"
    # Gradio asks nothing but the environment. By default its folders are shared among all programs
    # of a user, and lie in the working directory; and after each answer it goes through the last
    # ten thousand for a page of statistics.
    os.environ["GRADIO_TEMP_DIR"] = os.environ["GRADIO_EXAMPLES_CACHE"] = os.fspath(served)
    os.environ["GRADIO_ANALYTICS_MAX_EVENTS"] = "1"
    # A visitor holds two connections, and each file of a folder that is sent is open till its end.
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    made = page(gallery)
    _outlive_sessions(made)
    made.launch(
        server_name=host,
        server_port=port,
        prevent_thread_lock=True,
        quiet=True,
        show_error=True,
        share=False,
        ssr_mode=False,
        max_file_size=MOST_BYTES,
        footer_links=[],
        run_history=False,
        allowed_paths=[],
        app_kwargs={
            "middleware": [Middleware(gate.Gate, served=served, kept=_kept(), hosts=_names(host))]
        },
        css=_CSS,
        # The default one asks Google for its fonts.
        theme=gr.themes.Default(font=["system-ui", "sans-serif"], font_mono=["monospace"]),
    )
    print(f"search page: http://{host}:{port} (Ctrl+C ends it)", flush=True)
    if wait:
        # Ended by the system, it removes what visitors sent too.
        signal.signal(signal.SIGTERM, signal.default_int_handler)
        made.block_thread()
    return made


def _outlive_sessions(made: Any) -> None:
    """Lets what is for a session that is gone be lost; it would end Gradio's queue for all."""
    queue = made._queue
    send = queue.send_message

    def send_if_there(event: Any, message: Any) -> None:
        if event.session_hash in queue.pending_messages_per_session:
            send(event, message)

    queue.send_message = send_if_there


@functools.cache
def _kept() -> Path:
    """Returns the folder of what is kept for visitors, which is removed with this process."""
    place = tempfile.TemporaryDirectory(prefix="unipt_jax_")
    atexit.register(place.cleanup)
    return Path(place.name).resolve()


def _names(host: str) -> frozenset[str]:
    """Returns the names by which a page may be asked that is for its own machine; else none."""
    address = socket.getaddrinfo(host, None)[0][4][0]
    if not ipaddress.ip_address(address).is_loopback:
        return frozenset()
    return frozenset({"localhost", "127.0.0.1", "[::1]", f"[{host}]" if ":" in host else host})


def page(gallery: Gallery) -> Any:
    """Returns the page over a gallery, as Gradio's blocks."""
    import gradio as gr

    choices = gallery.choices()
    with gr.Blocks(
        title="UniPT-JAX search",
        analytics_enabled=False,
        fill_width=True,
    ) as made:
        # What a visitor's own folder is, the query, what it found and which of that is looked at.
        # They go an hour after the visitor has.
        folder, query = gr.State(None, time_to_live=_OPEN), gr.State(None)
        # Kept by the browser, so that a folder that is gone is missed.
        has_folder = gr.Checkbox(False, visible=False)
        hits, chosen = gr.State([]), gr.State(None)
        gr.Markdown("# Find a person\nDescribe whom you look for, or show a picture.")
        examples = gr.Row()  # Filled once there is what they fill.
        with gr.Row(elem_id="main"):
            with gr.Column(scale=1, min_width=300):
                text = gr.Textbox(
                    # With more lines than one Enter would not search.
                    label="Description",
                    placeholder=EXAMPLES[0],
                    lines=1,
                    max_lines=4,
                    elem_id="query",
                )
                without = gr.Textbox(label="Without", placeholder="a hat", elem_id="without")
                button = gr.Button("Search", variant="primary", elem_id="search")
                picture = gr.File(
                    label="Or drop a picture of a person", height=150, elem_id="picture"
                )
                k = gr.Dropdown(SHOWN, value=10, label="People to show", elem_id="shown")
                with gr.Accordion("Attributes", open=False, visible=bool(choices)), gr.Row():
                    filters = {name: _filter(gr, name, counts) for name, counts in choices.items()}
                with gr.Accordion("Your own folder", open=False):
                    files = gr.File(
                        label="Images to search instead",
                        file_count="directory",
                        height=150,
                        elem_id="folder",
                    )
            with gr.Column(scale=3, min_width=320):
                status = gr.HTML(_greeting(gallery), elem_id="status")
                results = gr.Gallery(
                    show_label=False,
                    object_fit="contain",
                    allow_preview=False,
                    interactive=False,
                    buttons=[],
                    elem_id="results",
                )
                with gr.Row(visible=False, elem_id="details") as details:
                    large = gr.Image(
                        show_label=False, height=360, interactive=False, buttons=[], scale=1
                    )
                    with gr.Column(scale=2):
                        about = gr.HTML(elem_id="about")
                        more = gr.Button("More like this", elem_id="more")
        settings = [k, without, *filters.values()]
        answer = [query, results, hits, status, details]

        def on(event: Any, ask: Callable[..., Any], *inputs: Any) -> None:
            """Lets an event ask, and shows the answer or what was wrong."""
            how = functools.partial(_answer, gallery, tuple(filters), ask, len(inputs))
            given = [folder, has_folder, *inputs, *settings]
            event(how, given, answer, show_progress="minimal")

        for event in (button.click, text.submit):
            on(event, _by_text, text)
        on(without.submit, _again_or_by_text, query, text)
        on(picture.upload, _by_picture, picture)
        on(more.click, _by_likeness, chosen)
        for setting in (k.input, *(each.input for each in filters.values())):
            on(setting, _again, query)
        with examples:
            offered = gr.Examples([[each] for each in EXAMPLES], [text], label="Examples")
        on(offered.load_input_event.then, _by_text, text)

        @results.select(inputs=[folder, has_folder, hits], outputs=[chosen, large, about, details])
        def look(
            event: gr.SelectData, folder: Any, has_folder: bool | None, hits: list[Hit]
        ) -> tuple[Any, ...]:
            try:
                hit = hits[event.index]
                picture = _picture(_in_use(gallery, folder, bool(has_folder)), hit, *_PICTURE)
            except (IndexError, UserError):  # The server was started anew, or the folder is gone.
                return None, None, _said(_GONE, problem=True), _shown(True)
            return hit.number, picture, _about(hit), _shown(True)

        opened = [folder, has_folder, *answer, *filters.values()]
        # One folder at a time: while it is encoded, others still ask.
        opening = functools.partial(_open, gallery, tuple(filters))
        files.upload(opening, [files], opened, concurrency_limit=1)
        files.clear(functools.partial(_close, gallery, tuple(filters)), [], opened)
    # Told of their place every few seconds, not after each answer to anybody.
    made.queue(
        default_concurrency_limit=8, max_size=MOST_WAITING, api_open=False, status_update_rate=5
    )
    return made


# ---------------------------------------------------------------------------- what events do


def _by_text(gallery: Gallery, text: str) -> Any:
    return gallery.encode_text(_bounded(text))


def _by_picture(gallery: Gallery, file: str) -> Any:
    # By its own name: where the server put it means nothing to who sent it.
    name = Path(file).name
    with _DECODING:
        pixels = images.decode(images.read(file, name), name)
    return gallery.encode_image(pixels)


def _by_likeness(gallery: Gallery, number: int) -> Any:
    return gallery.embedding(number)


def _again(gallery: Gallery, query: Any) -> Any:
    return query


def _again_or_by_text(gallery: Gallery, query: Any, text: str) -> Any:
    return _by_text(gallery, text) if query is None else query


def _bounded(text: str) -> str:
    if len(text) > MOST_CHARACTERS:
        raise DataError(
            f"{len(text):,} characters are more than the {MOST_CHARACTERS:,} that this page takes; "
            "say it in a sentence"
        )
    return text


def _answer(
    own: Gallery, names: Sequence[str], ask: Callable[..., Any], count: int, *values: Any
) -> tuple[Any, ...]:
    """Returns query, pictures, hits, status and the details' state, from what the page holds.

    `values` are the visitor's folder, whether there is one, `count` values for `ask`, then k,
    `without` and the filters.
    """
    import gradio as gr

    folder, has_folder, *given = values
    inputs, (k, without, *chosen) = given[:count], given[count:]
    try:
        gallery = _in_use(own, folder, bool(has_folder))
        started = time.perf_counter()
        query = ask(gallery, *inputs)
        if query is None:  # A filter was set before anything was asked.
            return (gr.skip(),) * 5
        where = {name: each for name, each in zip(names, chosen, strict=True) if each}
        hits = gallery.find(query, int(k), without=_bounded(without), where=where)
        took = 1000 * (time.perf_counter() - started)
        shown = [
            (_picture(gallery, hit, *_THUMBNAIL), f"{rank} · {hit.score:.3f}")
            for rank, hit in enumerate(hits, 1)
        ]
    except UserError as error:
        return gr.skip(), gr.skip(), gr.skip(), _said(str(error), problem=True), gr.skip()
    told = f"{len(hits)} of {len(gallery):,} images, in {took:.0f} ms."
    return query, shown, hits, _said(told if hits else "No image has all of these."), _shown(False)


def _open(own: Gallery, names: Sequence[str], files: Sequence[str]) -> tuple[Any, ...]:
    """Makes a gallery of the files that a visitor sent, which is removed once it is not kept."""
    import gradio as gr

    try:
        if len(files) > MOST_FILES:
            raise DataError(
                f"{len(files):,} files are more than the {MOST_FILES:,} that this page takes; "
                "start it on that folder: --config.images=DIR"
            )
        if not any(Path(file).suffix.lower() in SUFFIXES for file in files):
            raise DataError(
                f"none of these {len(files):,} files is called an image "
                f"({', '.join(sorted(SUFFIXES))})"
            )
        total = sum(os.path.getsize(file) for file in files)
        if total > gate.MOST_SENT:
            raise DataError(
                f"{total >> 20:,} MB are more than the {gate.MOST_SENT >> 20:,} that this page "
                "takes; start it on that folder: --config.images=DIR"
            )
        place = tempfile.TemporaryDirectory(dir=_kept())
        sent = Path(place.name) / "images"
        for number, file in enumerate(files):
            # Files of several folders may have one name.
            target = sent / Path(file).name
            target = sent / str(number) / target.name if target.exists() else target
            target.parent.mkdir(parents=True, exist_ok=True)
            os.link(file, target)
        gallery = own.of_other_images(sent, Path(place.name) / "index")
    except (UserError, OSError) as error:
        # The system's own errors tell where this server keeps things.
        why = error.strerror if isinstance(error, OSError) else error
        return (gr.skip(),) * 5 + (_said(f"{why}", problem=True),) + (gr.skip(),) * (1 + len(names))
    return (gallery, place), True, *_emptied(gallery, names, " of your own")


def _close(own: Gallery, names: Sequence[str]) -> tuple[Any, ...]:
    return None, False, *_emptied(own, names)


def _emptied(gallery: Gallery, names: Sequence[str], whose: str = "") -> tuple[Any, ...]:
    """Returns what the page holds where nothing was asked of a gallery yet."""
    import gradio as gr

    choices = gallery.choices()
    counts = [choices.get(name, {}) for name in names]
    filters = [gr.update(choices=_counted(it), value=[], visible=bool(it)) for it in counts]
    return None, [], [], _greeting(gallery, whose), _shown(False), *filters


def _in_use(own: Gallery, folder: tuple[Gallery, Any] | None, has_folder: bool) -> Gallery:
    if has_folder and not folder:
        raise DataError(_GONE)
    return folder[0] if folder else own


# ---------------------------------------------------------------------------- what it looks like


def _said(text: str, *, problem: bool = False) -> str:
    kind = ' class="problem" role="alert"' if problem else ' role="status"'
    return f"<div{kind}>{html.escape(printable(text))}</div>"


def _greeting(gallery: Gallery, whose: str = "") -> str:
    told = f"{len(gallery):,} images{whose}."
    if gallery.faults:
        told += f" {len(gallery.faults):,} could not be read; first: {gallery.faults[0]}"
    return _said(told, problem=bool(gallery.faults))


def _shown(visible: bool) -> Any:
    import gradio as gr

    return gr.update(visible=visible)


def _filter(gr: Any, name: str, counts: Mapping[str, int]) -> Any:
    label = name.replace("_", " ").replace(".", ": ")
    return gr.Dropdown(
        _counted(counts),
        label=label,
        multiselect=True,
        visible=bool(counts),
        min_width=130,
        elem_id=f"filter-{name}",
    )


def _counted(counts: Mapping[str, int]) -> list[tuple[str, str]]:
    return [(f"{phrase} ({count:,})", phrase) for phrase, count in counts.items()]


def _picture(gallery: Gallery, hit: Hit, width: int, height: int) -> str:
    """Returns the file of an image as it is shown; a grey one where it is no longer to be read.

    It is made once, and never seen half-written, as those that Gradio makes anew for each answer.
    """
    try:
        content = gallery.encoded(hit.number)
    except DataError:
        content = b""
    size = f"{width}x{height}".encode()
    key = hashlib.blake2b(content, digest_size=16, person=size).hexdigest()
    file = _kept() / "served" / key / "image.jpg"
    try:
        os.utime(file)  # Kept for as long as it is shown.
    except FileNotFoundError:
        write_bytes(file, _drawn(content, hit.path, width, height))
    return os.fspath(file)


def _drawn(content: bytes, path: str, width: int, height: int) -> bytes:
    try:
        with _DECODING:
            picture = fitted(images.decode(content, path), width, height)
    except DataError:
        picture = Image.new("RGB", (width, height), "lightgrey")
    drawn = io.BytesIO()
    picture.save(drawn, "JPEG", quality=90)
    return drawn.getvalue()


def _about(hit: Hit) -> str:
    rows = [("image", printable(hit.path)), ("score", f"{hit.score:.3f}")]
    rows += [
        (name.replace("_", " "), f"{chosen['phrase']} ({chosen['probability']:.0%})")
        for name, chosen in hit.attributes.items()
        if chosen["phrase"]
    ]
    cells = (f"<tr><th>{html.escape(a)}</th><td>{html.escape(b)}</td></tr>" for a, b in rows)
    caption = f"<p>{html.escape(hit.caption)}</p>" if hit.caption else ""
    return f"{caption}<table>{''.join(cells)}</table>"
