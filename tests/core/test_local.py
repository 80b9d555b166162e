"""The launcher of several processes: when it ends, and with which code."""

import signal
import sys
import time

import pytest

from unipt_jax.core import local


@pytest.mark.parametrize(
    ("processes", "code"),
    [
        (["sys.exit(0)", "sys.exit(0)"], 0),
        (["time.sleep(600)", "sys.exit(3)"], 3),
        (["time.sleep(600)", "os.kill(os.getpid(), 9)"], 137),
        (["sys.exit(1)", "time.sleep(0.3); sys.exit(2)"], 2),  # 1 is what losing another leads to.
    ],
)
def test_one_that_fails_ends_all(tmp_path, monkeypatch, processes, code):
    script = tmp_path / "script.py"
    script.write_text(
        "import os, sys, time\n"
        "first = sys.argv[-1] == '--process=0'\n"
        f"exec({processes[0]!r} if first else {processes[1]!r})\n"
    )
    monkeypatch.setattr(local, "_GRACE", 2.0)
    monkeypatch.setattr(signal, "signal", lambda *given: None)
    monkeypatch.setattr(sys, "argv", ["local.py", "--processes=2", str(script)])
    started = time.monotonic()
    assert local.main("") == code
    assert time.monotonic() - started < 100
