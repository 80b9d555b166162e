"""Captioning by two processes on one machine: each has its share, and one's files come of it."""

import os
import signal
import time

import numpy as np
import pytest

from tests.launch.test_caption import contents, finished_parts, make_images
from tests.multihost.test_training import children


def flags(clip, images, workdir):
    return (
        "--config=configs/caption.py",
        f"--config.clip={clip}",
        f"--config.images={images}",
        "--config.tokenizer=examples/tokenizer",
        "--config.device_batch_size=4",
        "--config.on_bad_record=stop",
        f"--workdir={workdir}",
    )


def test_two_processes_write_what_one_does(clip, finish, tmp_path):
    """An image that only the second reads stops both; mended, both go on to the bytes of one."""
    images = make_images(tmp_path / "images", 75)
    paths = sorted(images.rglob("*.jpg"))
    script = tmp_path / "caption.py"
    script.write_text(
        "import runpy, sys\n"
        "from unipt_jax.data import images\n"
        f"seen = open({str(tmp_path)!r} + '/' + sys.argv[-1], 'a')\n"
        "decode = images.decode\n"
        "images.decode = lambda content, name: print(name, file=seen) or decode(content, name)\n"
        "runpy.run_path('launch/caption.py', run_name='__main__')\n"
    )
    content = paths[40].read_bytes()
    paths[40].write_bytes(b"no image")
    run = flags(clip, images, tmp_path / "run")
    code, said = finish(str(script), *run, processes=2)
    assert code == 2 and "Traceback" not in said, said
    assert f"{paths[40].name}: cannot be decoded" in said
    assert said.count("error: ") == 2 and "process 1 has stopped; it says why" in said
    assert len(finished_parts(tmp_path / "run")) == 2

    paths[40].write_bytes(content)
    code, said = finish(str(script), *run, "--resume", processes=2, devices=2)
    assert code == 0, said
    code, said = finish("launch/caption.py", *flags(clip, images, tmp_path / "alone"))
    assert code == 0, said
    assert contents(tmp_path / "run") == contents(tmp_path / "alone")
    # Three parts of 32 images or fewer, by turns.
    names = [str(path.relative_to(images)) for path in paths]
    shares = [set((tmp_path / f"--process={i}").read_text().split()) for i in range(2)]
    assert shares == [{*names[:32], *names[64:]}, set(names[32:64])]


@pytest.mark.slow
def test_storage_that_fails_for_one_stops_both(clip, finish, tmp_path):
    """At once, though it is nothing that one line would mend."""
    images = make_images(tmp_path / "images", 75)
    script = tmp_path / "caption.py"
    script.write_text(
        "import pathlib, runpy, sys\n"
        "read_bytes = pathlib.Path.read_bytes\n"
        "def read(path):\n"
        "    if path.suffix == '.jpg' and sys.argv[-1] == '--process=1':\n"
        "        raise OSError(5, 'Input/output error')\n"
        "    return read_bytes(path)\n"
        "pathlib.Path.read_bytes = read\n"
        "runpy.run_path('launch/caption.py', run_name='__main__')\n"
    )
    started = time.monotonic()
    code, said = finish(str(script), *flags(clip, images, tmp_path / "run"), processes=2)
    assert code in (1, 2) and time.monotonic() - started < 120
    assert said.count("Traceback") == 1 and "Input/output error" in said, said
    assert "error: process 1 has stopped; it says why" in said


@pytest.mark.slow
def test_kills_of_either_process_change_nothing(clip, start, finish, tmp_path):
    """SIGKILL soon after another part is whole; by turns two processes go on and one."""
    images, rng = make_images(tmp_path / "images", 2000), np.random.default_rng(0)
    code, said = finish("launch/caption.py", *flags(clip, images, tmp_path / "alone"))
    assert code == 0, said
    run, progress = tmp_path / "run", [0]
    for number in range(8):
        processes = 1 if number % 3 == 2 else 2
        command = ("launch/caption.py", *flags(clip, images, run), "--resume")
        process = start(*command, processes=processes)
        while len(finished_parts(run)) == progress[-1]:
            assert process.poll() is None, "it ended without another part"
            time.sleep(0.005)
        time.sleep(rng.uniform(0, 0.1))
        victims = children(process.pid) if processes > 1 else [process.pid]
        os.kill(int(rng.choice(victims)), signal.SIGKILL)
        process.send_signal(signal.SIGTERM)  # Else the other one goes on for a while.
        process.communicate(timeout=60)
        assert process.returncode != 0
        progress.append(len(finished_parts(run)))
    assert progress[-1] < 63
    code, said = finish(*command, processes=2)
    assert code == 0, said
    assert contents(run) == contents(tmp_path / "alone")
