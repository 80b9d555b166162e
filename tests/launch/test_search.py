"""launch/search.py from outside: a table, a sheet, a page, and mistakes in one line."""

import os
import re
import signal
import socket
import subprocess
import sys
import urllib.request

import pytest
from PIL import Image

DEMO = "--config=configs/search.py:demo"
RED = "--config.query=a woman with long dark hair in a red jacket and jeans"


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    return tmp_path_factory.mktemp("cache")


def start(cache, *arguments):
    environment = os.environ | {
        "HF_HUB_OFFLINE": "1",
        "JAX_PLATFORMS": "cpu",
        "XDG_CACHE_HOME": str(cache),
    }
    return subprocess.Popen(
        [sys.executable, "launch/search.py", *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=environment,
    )


def finish(process):
    try:
        out, err = process.communicate(timeout=300)
    finally:
        process.kill()  # Nothing to one that has ended.
    return process.returncode, out, err


def test_a_query_prints_the_right_person_first_and_draws_them(cache, tmp_path):
    sheet = tmp_path / "sheet.png"
    arguments = [DEMO, RED, "--config.k=4", f"--config.sheet={sheet}"]
    code, out, err = finish(start(cache, *arguments))
    assert code == 0, err
    assert re.findall(r"(\d\d)_\d{4}\.jpg", out) == ["10"] * 4
    assert "396 of 396 images indexed" in err
    assert Image.open(sheet).width > 4 * 96
    # The index is there now, and so are those of one colour and sex.
    filters = "--config.where=upper_clothes.color=blue,gender=male,upper_clothes.color=white"
    code, out, err = finish(start(cache, *arguments[:2], filters))
    assert code == 0, err
    assert "indexed" not in err
    found = re.findall(r"(\d\d)_\d{4}\.jpg", out)
    assert len(found) == 10 and found[0] != "10"


def test_a_picture_is_a_query_too_and_a_workdir_holds_the_index(cache, tmp_path):
    picture = "examples/pedestrians/imgs/10_0532.jpg"
    code, out, err = finish(
        start(
            cache,
            "--config=configs/search.py",
            "--config.checkpoint=examples/small_clip",
            "--config.images=examples/pedestrians/imgs",
            f"--config.picture={picture}",
            f"--workdir={tmp_path / 'index'}",
        )
    )
    assert code == 0, err
    assert re.search(r"1 │ 1\.000 │ 10_0532\.jpg", out)
    assert (tmp_path / "index" / "images.jsonl").exists()


@pytest.mark.parametrize("ended", [signal.SIGINT, signal.SIGTERM])
def test_without_a_query_it_serves_the_page_until_it_is_ended(cache, tmp_path, monkeypatch, ended):
    """And nothing that a visitor sent or was shown stays behind."""
    pytest.importorskip("gradio")
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    process = start(cache, DEMO, f"--config.port={port}")
    told = process.stdout.readline()
    try:
        page = urllib.request.urlopen(f"http://127.0.0.1:{port}", timeout=60).read()
        assert list(tmp_path.glob("unipt_jax_*"))
    finally:
        process.send_signal(ended)
    code, out, err = finish(process)
    assert not list(tmp_path.glob("unipt_jax_*"))
    assert f"search page: http://127.0.0.1:{port}" in told
    assert b"UniPT-JAX search" in page
    assert code == 0 and "Traceback" not in out + err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([DEMO, RED, "--config.images=nowhere"], "images=nowhere: no such folder"),
        ([DEMO, RED, "--config.picture=a.jpg"], "query and picture are both set"),
        ([DEMO, RED, "--config.where=red"], "where='red': expected ATTRIBUTE=PHRASE"),
        ([DEMO, RED, "--config.kk=3"], "did you mean 'k'"),
        ([DEMO, RED, "--resume"], "unknown argument --resume"),
        ([DEMO, RED, "--config.where=gender=mail"], "did you mean 'male'"),
        ([DEMO, RED, "--config.checkpoint=nowhere"], "nowhere"),
    ],
)
def test_mistakes_are_one_line(cache, arguments, message):
    code, _, err = finish(start(cache, *arguments))
    lines = [line for line in err.splitlines() if not re.match(r"\d\d:\d\d:\d\d ", line)]
    assert code == 2 and len(lines) == 1 and lines[0].startswith("error: "), err
    assert message in lines[0]
