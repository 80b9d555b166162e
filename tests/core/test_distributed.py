"""Several processes of one run: the failure of one ends them all, and it is the one that counts."""

import os
import subprocess
import sys
import time

import pytest

# A run that waits for all, twice; one process fails in between, which the others cannot know.
FAILING = """
import jax
from unipt_jax.config import command_line
from unipt_jax.core import distributed
from unipt_jax.core.errors import DataError

def run(config, workdir, resume):
    distributed.union([1])
    if jax.process_index() == {failing}:
        raise {error}
    distributed.union([2])

distributed._PATIENCE = 3.0
command_line.main(run, "")
"""


@pytest.mark.parametrize(
    ("failing", "error", "code", "line"),
    [
        (1, "DataError('record 7 cannot be read')", 2, "error: record 7 cannot be read"),
        pytest.param(
            *(0, "ZeroDivisionError('a fault of ours')", 1, "ZeroDivisionError: a fault of ours"),
            marks=pytest.mark.slow,
        ),
    ],
)
def test_one_that_fails_is_not_waited_for(tmp_path, failing, error, code, line):
    """Left to JAX it takes five minutes, and the code is that of an abort."""
    (tmp_path / "run.py").write_text(FAILING.format(failing=failing, error=error))
    started = time.monotonic()
    found = subprocess.run(
        [
            *(sys.executable, "launch/local.py", "--processes=2", str(tmp_path / "run.py")),
            *("--config=configs/prepare.py:demo", f"--workdir={tmp_path / 'run'}"),
        ],
        capture_output=True,
        text=True,
        env=os.environ | {"JAX_PLATFORMS": "cpu", "JAX_NUM_CPU_DEVICES": "1"},
        timeout=500,
    )
    assert found.returncode == code, found.stderr
    assert line in found.stderr.splitlines()
    assert time.monotonic() - started < 120
