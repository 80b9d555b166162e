"""Several processes of one run: the failure of one ends them all, and it is the one that counts."""

import os
import signal
import subprocess
import sys
import time

import jax
import numpy as np
import pytest

from unipt_jax.core import distributed
from unipt_jax.training.checkpoints import Checkpoints


@pytest.fixture
def start(tmp_path):
    """Starts a program as two processes of one run of the stage `prepare`."""

    def start(program, *flags):
        (tmp_path / "run.py").write_text(program)
        return subprocess.Popen(
            [
                *(sys.executable, "launch/local.py", "--processes=2", str(tmp_path / "run.py")),
                *("--config=configs/prepare.py:demo", f"--workdir={tmp_path / 'run'}", *flags),
            ],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            env=os.environ | {"JAX_PLATFORMS": "cpu", "JAX_NUM_CPU_DEVICES": "1"},
        )

    return start


@pytest.fixture
def finish(start):
    """Runs a program to its end; returns its exit code and the lines that it said."""

    def finish(program, *flags):
        process = start(program, *flags)
        try:
            said, _ = process.communicate(timeout=500)
        finally:
            process.terminate()  # It ends those that it has started; nothing once it has ended.
        return process.returncode, said.splitlines()

    return finish


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
def test_one_that_fails_is_not_waited_for(finish, failing, error, code, line):
    """Left to JAX it takes five minutes, and the code is that of an abort."""
    started = time.monotonic()
    found, lines = finish(FAILING.format(failing=failing, error=error))
    assert found == code and line in lines, lines
    assert time.monotonic() - started < 120


# One reads a checkpoint while the other finds a mistake.
READING = """
import jax
from unipt_jax.config import command_line
from unipt_jax.core.errors import DataError
from unipt_jax.training.checkpoints import Checkpoints, is_begun

def check(config, resumed):
    if jax.process_index() == {failing}:
        raise DataError("record 7 cannot be read")
    assert is_begun("{workdir}")
    with Checkpoints.open_read_only("{workdir}") as checkpoints:
        print("read", checkpoints.restore_params()["kernel"].sum())

command_line.main(lambda config, workdir, resume: None, "", check=check)
"""


@pytest.mark.parametrize("failing", [0, 1])
def test_a_checkpoint_is_read_without_the_others(finish, tmp_path, failing):
    with Checkpoints.open(tmp_path / "begun", keep=1) as checkpoints:
        checkpoints.save_params({"kernel": np.arange(3.0, dtype=np.float32)}, config={})
    code, lines = finish(READING.format(failing=failing, workdir=tmp_path / "begun"))
    assert code == 2, lines
    assert "read 3.0" in lines and "error: record 7 cannot be read" in lines
    assert f"error: process {failing} has stopped; it says why" in lines


WAITING = """
import time
import jax
from unipt_jax.config import command_line

def run(config, workdir, resume):
    (workdir / f"waits{jax.process_index()}").touch()
    time.sleep(400)

command_line.main(run, "")
"""


def test_sigterm_ends_what_saves_nothing(start, tmp_path):
    process = start(WAITING)
    while len(list(tmp_path.glob("run/waits*"))) < 2:
        assert process.poll() is None
        time.sleep(0.1)
    process.send_signal(signal.SIGTERM)
    said, _ = process.communicate(timeout=30)
    assert process.returncode == 128 + signal.SIGTERM, said


SLURM_JOB = {"SLURM_JOB_ID": "1", "SLURM_NTASKS": "16", "SLURM_PROCID": "0", "SLURM_LOCALID": "0"}


@pytest.mark.parametrize(
    ("environment", "several"),
    [
        ({}, False),
        (SLURM_JOB, False),  # In a batch script, without srun.
        (SLURM_JOB | {"SLURM_STEP_NUM_TASKS": "1"}, False),
        (SLURM_JOB | {"SLURM_STEP_NUM_TASKS": "16"}, True),
        ({"OMPI_COMM_WORLD_SIZE": "1"}, False),
        ({"OMPI_COMM_WORLD_SIZE": "2"}, True),
    ],
)
def test_the_environment_tells_of_the_others(monkeypatch, environment, several):
    for name in ("SLURM_NTASKS", "SLURM_STEP_NUM_TASKS", "OMPI_COMM_WORLD_SIZE"):
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    calls = []
    monkeypatch.setattr(jax.distributed, "initialize", lambda *arguments: calls.append(arguments))
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)  # No TPU.
    distributed.start()
    assert calls == [()] * several
