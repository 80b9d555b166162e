"""The page, driven in headless Chromium as a visitor would, and without it as no visitor should."""

import concurrent.futures
import json
import os
import re
import shutil
import socket
import time
from pathlib import Path
from unittest import mock

import pytest
from PIL import Image
from search_load import Visitor, bad_requests, free_port

from tests.search.conftest import SAMPLE
from unipt_jax.config import schema
from unipt_jax.core.errors import ConfigError, DataError
from unipt_jax.search import app, gate
from unipt_jax.search.gallery import Gallery

pytest.importorskip("gradio")
sync_api = pytest.importorskip("playwright.sync_api")
CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "google-chrome", "chrome"))), None)
needs_chromium = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium is installed")

RED = "a woman with long dark hair in a red jacket and jeans"
MINUTE = 60_000  # milliseconds; other tests may run beside this one


@pytest.fixture(scope="module")
def address(gallery):
    port = free_port()
    served = app.serve(gallery, host="127.0.0.1", port=port, wait=False)
    yield f"http://127.0.0.1:{port}"
    served.close(verbose=False)


@pytest.fixture(scope="module")
def browser():
    # No sandbox: containers seldom allow one.
    with (
        sync_api.sync_playwright() as playwright,
        playwright.chromium.launch(
            executable_path=CHROMIUM, args=["--no-sandbox", "--disable-gpu"]
        ) as browser,
    ):
        yield browser


@pytest.fixture
def visit(browser, address):
    """A visitor's page, and the addresses of other machines that it asked for."""
    elsewhere = []
    context = browser.new_context(viewport={"width": 1300, "height": 1100})
    context.set_default_timeout(MINUTE)
    page = context.new_page()
    page.on("request", lambda r: elsewhere.append(r.url) if address not in r.url else None)
    page.goto(address)
    page.wait_for_selector("#query textarea")
    yield page
    context.close()
    assert [url for url in elsewhere if not url.startswith(("data:", "blob:"))] == []


def said(page, pattern):
    """Waits for the status to say so, and returns it."""
    status = page.locator("#status")
    sync_api.expect(status).to_have_text(re.compile(pattern), timeout=MINUTE)
    return status.inner_text()


def search(page, text):
    page.fill("#query textarea", text)
    page.click("#search")


def results(page):
    return page.locator("#results button:has(img)")


def look_at(page, rank):
    """Clicks a result, and returns what is told of it."""
    results(page).nth(rank - 1).click()
    sync_api.expect(page.locator("#about")).to_be_visible(timeout=MINUTE)
    page.wait_for_timeout(500)  # Of two that were looked at the first may still be shown.
    return page.locator("#about").inner_text()


@needs_chromium
def test_a_sentence_finds_the_right_person_and_a_click_tells_of_them(visit):
    visit.fill("#query textarea", RED)
    visit.press("#query textarea", "Enter")
    said(visit, "10 of 396 images")
    assert results(visit).count() == 10
    assert re.fullmatch(r"1 · 0\.\d{3}", results(visit).first.inner_text())
    told = look_at(visit, 1)
    assert re.search(r"image\s+10_\d{4}\.jpg", told)
    assert re.search(r"gender\s+female \(\d+%\)", told) and "red" in told
    size = visit.locator("#details img").evaluate("i => [i.naturalWidth, i.naturalHeight]")
    assert size[0] == 256 or size[1] == 512


@needs_chromium
def test_more_like_this_shows_the_same_person(visit, gallery):
    search(visit, RED)
    said(visit, "10 of 396 images")
    path = re.search(r"10_\d{4}\.jpg", look_at(visit, 3))[0]
    visit.click("#more")
    sync_api.expect(results(visit).first).to_have_text("1 · 1.000", timeout=MINUTE)
    assert path in look_at(visit, 1)
    assert re.search(r"image\s+10_\d{4}\.jpg", look_at(visit, 2))


@needs_chromium
def test_an_example_asks_at_once(visit):
    visit.get_by_text("a woman in a white coat").first.click()
    said(visit, "10 of 396 images")
    assert re.search(r"image\s+08_\d{4}\.jpg", look_at(visit, 1))


@needs_chromium
def test_a_filter_leaves_those_who_have_it(visit, gallery):
    search(visit, "a person in jeans")
    said(visit, "10 of 396 images")
    visit.get_by_text("Attributes", exact=True).click()
    field = visit.locator("[id='filter-upper_clothes.color'] input")
    count = gallery.choices()["upper_clothes.color"]["white"]
    field.click()
    visit.get_by_role("option", name=f"white ({count})").click()
    wanted = gallery.search("a person in jeans", where={"upper_clothes.color": "white"})
    sync_api.expect(results(visit).first).to_have_text(f"1 · {wanted[0].score:.3f}", timeout=MINUTE)
    assert wanted[0].path in look_at(visit, 1)
    assert "white" in visit.locator("#about").inner_text()


@needs_chromium
def test_without_takes_people_away(visit, gallery):
    visit.fill("#without input, #without textarea", "a person in a red jacket")
    search(visit, "a person in jeans")
    said(visit, "10 of 396 images")
    first = gallery.search("a person in jeans", 1, without="a person in a red jacket")[0]
    assert first.path in look_at(visit, 1)


@needs_chromium
def test_a_picture_finds_who_looks_like_it(visit):
    visit.set_input_files("#picture input[type=file]", sorted(Path(SAMPLE).glob("08_*"))[5])
    said(visit, "10 of 396 images")
    assert results(visit).first.inner_text() == "1 · 1.000"
    assert sorted(Path(SAMPLE).glob("08_*"))[5].name in look_at(visit, 1)
    # What must not be there, and how many, are of the picture too.
    visit.fill("#without input, #without textarea", "a person in a white coat")
    visit.press("#without input, #without textarea", "Enter")
    sync_api.expect(results(visit).first).not_to_have_text("1 · 1.000", timeout=MINUTE)
    assert re.search(r"image\s+08_\d{4}\.jpg", look_at(visit, 1))
    visit.locator("#shown input").click()
    visit.get_by_role("option", name="20").click()
    said(visit, "20 of 396 images")


@needs_chromium
@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("notes.txt", b"no picture", "notes.txt: cannot be decoded .not an image"),
        ("cut.jpg", None, "cut.jpg: cannot be decoded"),
        ("empty.png", b"", "empty.png: cannot be decoded .the file is empty"),
        ("page.jpg", b"<b>bold</b>", "starts with b.<b>bold</b>"),  # As text, not as markup.
    ],
)
def test_a_file_that_is_no_picture_is_named(visit, tmp_path, name, content, message):
    if content is None:
        content = next(Path(SAMPLE).iterdir()).read_bytes()[:-200]
    (tmp_path / name).write_bytes(content)
    visit.set_input_files("#picture input[type=file]", tmp_path / name)
    told = said(visit, message)
    assert "tmp/" not in told and "gradio" not in told  # Nothing of where the server keeps it.
    assert visit.locator("#status [role=alert]").count() == 1
    search(visit, RED)  # It goes on.
    said(visit, "10 of 396 images")


@needs_chromium
def test_a_removed_image_hinders_no_search(browser, model, tmp_path):
    folder = tmp_path / "crops"
    folder.mkdir()
    for path in sorted(Path(SAMPLE).glob("10_*"))[:3]:
        shutil.copy(path, folder / path.name)
    shown = Gallery.from_images(folder, model, index_directory=tmp_path / "index")
    first = shown.search(RED, 1)[0].path
    port = free_port()
    served = app.serve(shown, host="127.0.0.1", port=port, wait=False)
    (folder / first).unlink()
    page = browser.new_page()
    page.goto(f"http://127.0.0.1:{port}")
    page.wait_for_selector("#query textarea")
    search(page, RED)
    said(page, "3 of 3 images")
    assert first in look_at(page, 1)
    page.close()
    served.close(verbose=False)


@needs_chromium
def test_an_empty_query_is_told_what_to_do(visit):
    visit.click("#search")
    said(visit, "the query is empty; describe a person")


@needs_chromium
def test_a_folder_of_ones_own_is_searched_instead(visit, tmp_path):
    folder = tmp_path / "mine"
    (folder / "deep").mkdir(parents=True)
    for path in [*sorted(Path(SAMPLE).glob("08_*"))[:3], *sorted(Path(SAMPLE).glob("10_*"))[:2]]:
        shutil.copy(path, folder / path.name)
    shutil.copy(next(Path(SAMPLE).glob("11_*")), folder / "deep" / path.name)  # A name twice.
    (folder / "torn.jpg").write_bytes(b"torn")
    visit.get_by_text("Your own folder", exact=True).click()
    visit.set_input_files("#folder input[type=file]", folder)
    assert "1 could not be read; first: torn.jpg" in said(visit, "6 images of your own")
    assert visit.locator("#status [role=alert]").count() == 1
    search(visit, RED)
    said(visit, "6 of 6 images")
    assert re.search(r"image\s+10_", look_at(visit, 1))
    visit.get_by_role("button", name="Clear").click()
    said(visit, r"^\s*396 images")
    search(visit, RED)
    said(visit, "10 of 396 images")


@needs_chromium
def test_a_folder_without_images_is_told_so(visit, tmp_path):
    (tmp_path / "notes.txt").write_text("no picture")
    visit.get_by_text("Your own folder", exact=True).click()
    visit.set_input_files("#folder input[type=file]", tmp_path)
    told = said(visit, "none of these 1 files is called an image")
    assert "tmp/" not in told
    search(visit, RED)
    said(visit, "10 of 396 images")


@needs_chromium
def test_two_visitors_do_not_see_each_others_folders(visit, browser, address, tmp_path):
    for path in sorted(Path(SAMPLE).glob("08_*"))[:2]:
        shutil.copy(path, tmp_path / path.name)
    visit.get_by_text("Your own folder", exact=True).click()
    visit.set_input_files("#folder input[type=file]", tmp_path)
    said(visit, "2 images of your own")
    other = browser.new_page()
    other.goto(address)
    search(other, RED)
    said(other, "10 of 396 images")
    other.close()


# ---------------------------------------------------------------------------- without a browser


def config(**values):
    given = {"stage": "search", "images": SAMPLE, "checkpoint": "examples/small_clip"}
    return schema.build(given | values)


def test_the_page_needs_its_extra_and_the_terminal_does_not(monkeypatch):
    monkeypatch.setattr(app.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=r"pip install 'unipt-jax\[search\]'"):
        app.check(config(), None)
    app.check(config(query="a man"), None)
    app.check(config(picture=str(next(Path(SAMPLE).iterdir()))), None)


def test_a_folder_that_is_not_there_is_named():
    with pytest.raises(DataError, match="images=nowhere: no such folder"):
        app.check(config(images="nowhere"), None)
    with pytest.raises(DataError, match=r"picture=nowhere\.jpg: no such file"):
        app.check(config(picture="nowhere.jpg"), None)


def test_a_port_that_is_taken_is_named(gallery):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        message = f"host=127.0.0.1, port={port}: Address already in use; choose another"
        with pytest.raises(ConfigError, match=message):
            app.serve(gallery, host="127.0.0.1", port=port, wait=False)
        with pytest.raises(ConfigError, match=message):
            app.check(config(port=port), None)
    with pytest.raises(ConfigError, match=r"host=nowhere\.invalid"):
        app.check(config(host="nowhere.invalid"), None)


def test_too_many_files_are_refused(gallery, tmp_path):
    Image.new("RGB", (8, 16)).save(tmp_path / "a.png")
    found = app._open(gallery, (), [str(tmp_path / "a.png")] * (app.MOST_FILES + 1))
    assert "2,001 files are more than the 2,000" in found[5]


@pytest.fixture
def visitor(address):
    return Visitor(int(address.rpartition(":")[2]))


def form(name, content):
    """A file as a browser sends it."""
    head = f'--x\r\nContent-Disposition: form-data; name="files"; filename="{name}"\r\n\r\n'
    return head.encode() + content + b"\r\n--x--\r\n", "multipart/form-data; boundary=x"


def send(visitor, name, content):
    body, kind = form(name, content)
    return visitor.send("POST", gate.UPLOAD, body, **{"Content-Type": kind})


def wait_until(holds, seconds=20):
    end = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < end
        time.sleep(0.02)


def described(path):
    return {"path": str(path), "meta": {"_type": "gradio.FileData"}}


def test_a_question_without_a_browser_is_answered(visitor):
    answer = visitor.search(RED, shown=5)
    assert "5 of 396 images" in str(answer[3])


def test_each_bad_request_is_refused_and_shows_nothing_of_this_machine(visitor):
    host = socket.gethostname().encode()
    answers = dict(bad_requests(visitor))
    assert {name: status for name, (status, _) in answers.items() if status < 400} == {}
    for name, (_, content) in answers.items():
        assert host not in content and b"[build-system]" not in content, name
    assert "10 of 396 images" in str(visitor.search(RED)[3])


def test_what_another_program_put_beside_is_not_served(visitor, tmp_path):
    shared = Path(os.environ["GRADIO_TEMP_DIR"]).parent
    (shared / "index.json").write_text("of another visitor")
    try:
        for path in (shared / "index.json", f"{shared}/served/../index.json", tmp_path):
            assert visitor.send("GET", f"{gate.FILE}{path}")[0] in (403, 404)
    finally:
        (shared / "index.json").unlink()


@pytest.mark.parametrize("path", ["/etc/passwd", "pyproject.toml", "served/../index.json", ""])
def test_a_picture_that_was_never_sent_is_not_looked_at(visitor, path):
    with pytest.raises(RuntimeError) as refused:
        visitor.look_alikes(described(path))
    assert "root:" not in str(refused.value) and "starts with" not in str(refused.value)


def test_an_address_of_elsewhere_is_not_fetched(visitor, monkeypatch):
    fetched = []
    fetch = "gradio.processing_utils.async_ssrf_protected_download"
    monkeypatch.setattr(fetch, lambda *given: fetched.append(given))
    for asked in (described("https://a.example/b.png"), {"url": "https://a.example/b.png"}):
        with pytest.raises(RuntimeError, match="names a file that was not sent"):
            visitor.look_alikes(asked)
    assert fetched == []
    with socket.socket() as elsewhere:
        elsewhere.bind(("127.0.0.1", 0))
        elsewhere.listen()
        elsewhere.settimeout(1)
        url = f"http://127.0.0.1:{elsewhere.getsockname()[1]}/a.png"
        for asked in (described(url), described(url) | {"url": url}):
            with pytest.raises(RuntimeError):
                visitor.look_alikes(asked)
        with pytest.raises(TimeoutError):
            elsewhere.accept()


def test_a_question_of_no_session_stops_nothing(visitor):
    """An empty name ended Gradio's queue, and with it the page, for everybody."""
    for session in ("", None, 5, "a" * 33, "a b"):
        visitor._session, kept = session, visitor._session
        with pytest.raises(RuntimeError, match="of no session"):
            visitor.search(RED)
        visitor._session = kept
    assert "10 of 396 images" in str(visitor.search(RED)[3])


def test_a_message_for_a_session_that_is_gone_is_lost_alone(gallery):
    made = app.page(gallery)
    sent = []
    made._queue.send_message = lambda event, message: sent.append(message)
    app._outlive_sessions(made)
    made._queue.pending_messages_per_session["there"] = None
    for session in ("gone", "there"):
        made._queue.send_message(mock.Mock(session_hash=session), session)
    assert sent == ["there"]


def test_a_folder_that_is_gone_is_missed(gallery):
    """Its visitor is not shown others' images in its place."""
    said = app._answer(gallery, (), app._by_text, 1, None, True, RED, 10, "")[3]
    assert "is no longer kept here" in said
    assert "10 of 396" in app._answer(gallery, (), app._by_text, 1, None, False, RED, 10, "")[3]


def test_questions_of_wrong_types_are_refused_and_hurt_no_other(visitor, address):
    wild = [
        {"text": {"a": 1}, "shown": "many"},
        {"text": ["a"] * 1000, "shown": -1},
        {"text": 3.5, "shown": 10**30},
        {"text": RED, "shown": [5]},
        {"text": RED, "without": {"b": []}, "shown": None},
        {"text": RED, "filter-gender": "no such"},
        {"text": RED, "filter-gender": [[1]]},
    ]

    def ask(settings):
        with pytest.raises(RuntimeError):
            Visitor(int(address.rpartition(":")[2])).search(settings.pop("text"), **settings)

    with concurrent.futures.ThreadPoolExecutor(12) as threads:
        bad = [threads.submit(ask, each) for each in wild]
        good = [threads.submit(visitor.search, RED)]
        others = [Visitor(int(address.rpartition(":")[2])) for _ in range(4)]
        good += [threads.submit(other.search, RED) for other in others]
        for done in bad:
            done.result()
        for done in good:
            assert "10 of 396 images" in str(done.result()[3])


def test_a_sentence_that_is_too_long_is_told_so(visitor):
    for asked in ({"text": "red " * 501}, {"text": RED, "without": "x" * 2001}):
        told = str(visitor.search(**asked)[3])
        assert "characters are more than the 2,000 that this page takes" in told


@pytest.mark.parametrize("name", ["../../evil.png", "/etc/evil.png", "a/../../b.png", "..", "\x00"])
def test_a_file_is_kept_below_its_own_folder_whatever_it_is_called(visitor, name):
    status, content = send(visitor, name, b"x")
    kept = Path(os.environ["GRADIO_TEMP_DIR"])
    found = [path for path in kept.parent.rglob("*evil*") if not path.is_relative_to(kept)]
    assert found == [] and not Path("/etc/evil.png").exists()
    if status == 200:
        for path in json.loads(content):
            assert Path(path).resolve().is_relative_to(kept)


def test_sizes_of_files_and_of_all_of_them_are_bounded(visitor, monkeypatch):
    assert send(visitor, "big.png", b"x" * (20 << 20))[0] == 200
    assert send(visitor, "big.png", b"x" * ((20 << 20) + 1))[0] == 413
    monkeypatch.setattr(gate, "MOST_KEPT", 20 << 20)
    status, content = send(visitor, "one.png", b"x")
    assert status == 503 and b"MB of files, and 20 MB at most; try again in an hour" in content


def test_an_upload_that_breaks_off_leaves_nothing_for_long(visitor, address):
    body, kind = form("a.png", b"x" * 100_000)
    head = f"POST {gate.UPLOAD} HTTP/1.1\r\nHost: localhost\r\nContent-Type: {kind}\r\n"
    head += f"Content-Length: {len(body)}\r\n\r\n"
    kept = Path(os.environ["GRADIO_TEMP_DIR"])
    with socket.create_connection(("127.0.0.1", int(address.rpartition(":")[2]))) as sending:
        sending.sendall(head.encode() + body[:50_000])
        wait_until(lambda: any(path.is_file() for path in kept.iterdir()))
    left = [path for path in kept.iterdir() if path.is_file()]
    for path in left:
        os.utime(path, (0, 0))  # Long ago.
    wait_until(lambda: send(visitor, "a.png", b"x")[0] == 200 and not any(map(Path.exists, left)))


@pytest.mark.skipif(not Path("/proc/net/tcp").exists(), reason="Linux lists its ports there")
def test_the_page_listens_at_the_loopback_address_alone(address):
    rows = [line.split() for line in Path("/proc/net/tcp").read_text().splitlines()[1:]]
    port = f"{int(address.rpartition(':')[2]):04X}"
    listening = [row[1] for row in rows if row[3] == "0A" and row[1].endswith(f":{port}")]
    assert listening == [f"0100007F:{port}"]


def test_the_page_is_for_its_own_machine_unless_told_otherwise():
    assert schema.build({"stage": "search", "images": "a", "checkpoint": "b"}).host == "127.0.0.1"
    assert app._names("127.0.0.1") == app._names("localhost") == {"localhost", "127.0.0.1", "[::1]"}
    assert "127.0.0.2" in app._names("127.0.0.2")
    assert app._names("0.0.0.0") == frozenset()


def test_a_folder_that_is_too_big_is_refused(gallery, tmp_path, monkeypatch):
    monkeypatch.setattr(gate, "MOST_SENT", 3 << 20)
    (tmp_path / "a.png").write_bytes(b"x" * (2 << 20))
    found = app._open(gallery, (), [str(tmp_path / "a.png")] * 2)
    assert "4 MB are more than the 3 that this page takes" in found[5]
