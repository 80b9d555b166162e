"""Training by real processes on one machine, against one process that has all the devices."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time

import numpy as np
import pytest

from unipt_jax.core import trees
from unipt_jax.training.checkpoints import Checkpoints

STEPS = 12
# 432 captions: a batch spans two epochs; 180 images and 360 captions are measured, in odd batches.
TRAIN = [
    "launch/train.py",
    "--config=configs/pretrain.py:demo",
    f"--config.steps={STEPS}",
    "--config.batch_size=80",
    "--config.checkpoint_every=6",
    "--config.log_every=1",
    "--config.image.height=32",
    "--config.image.width=16",
    "--config.model.image=tiny",
    "--config.init_image=",
    "--config.text.buckets=()",
    "--config.optimizer.learning_rate=1e-4",
    "--config.evaluate=True",
    "--config.paper_protocol=True",
]
MIXED = [f"--config.mesh.{axis}=2" for axis in ("data", "fsdp", "tensor")]


@pytest.fixture(scope="module")
def start(tmp_path_factory):
    """Starts a command with so many virtual devices a process."""
    cache = tmp_path_factory.mktemp("compiled")

    def start(*arguments, processes=1, devices=1):
        several = ["launch/local.py", f"--processes={processes}"] if processes > 1 else []
        return subprocess.Popen(
            [sys.executable, *several, *arguments],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            env=os.environ
            | {
                "HF_HUB_OFFLINE": "1",
                "JAX_PLATFORMS": "cpu",
                "JAX_NUM_CPU_DEVICES": str(devices),
                "JAX_COMPILATION_CACHE_DIR": str(cache),
                "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
            },
        )

    return start


@pytest.fixture(scope="module")
def finish(start):
    """Runs a command to its end; returns its exit code and what it said."""

    def finish(*arguments, **options):
        process = start(*arguments, **options)
        try:
            said, _ = process.communicate(timeout=500)
        finally:
            process.kill()  # Nothing to one that has ended.
        return process.returncode, said

    return finish


@pytest.fixture(scope="module")
def both(data, finish, tmp_path_factory):
    """The work directories of one process with eight devices and of two with four each."""
    found = {}
    for processes in (1, 2):
        found[processes] = tmp_path_factory.mktemp("training") / str(processes)
        places = [f"--config.data={data}", f"--workdir={found[processes]}"]
        size = {"processes": processes, "devices": 8 // processes}
        code, said = finish(*TRAIN, *MIXED, *places, **size)
        assert code == 0, said
        assert said.count("image_encoder starts at random") == 1 and "Traceback" not in said
    return found


def rows(workdir):
    return [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]


def difference(one, other, steps=STEPS):
    """The largest difference of two runs' parameters."""
    values = []
    for workdir in (one, other):
        with Checkpoints.open_read_only(workdir) as checkpoints:
            assert checkpoints.latest_step() == steps
            values.append(trees.flatten(checkpoints.restore_params()))
    assert values[0].keys() == values[1].keys()
    return max(np.abs(values[0][name] - values[1][name]).max() for name in values[0])


def require_same_losses(one, other, steps=STEPS):
    for run in (one, other):
        assert [row["step"] for row in rows(run)] == list(range(1, steps + 1))
    for here, there in zip(rows(one), rows(other), strict=True):
        for name in ("loss", "loss/contrastive", "loss/mlm", "gradient_norm", "learning_rate"):
            assert here[name] == pytest.approx(there[name], rel=1e-5, abs=1e-6), (here, there)


def test_two_processes_are_one(both):
    require_same_losses(both[1], both[2])
    assert difference(both[1], both[2]) < 1e-5
    measured = [[row for row in rows(both[n]) if "test/R1" in row] for n in (1, 2)]
    assert [row["step"] for row in measured[0]] == [6, 12]
    for one, two in zip(*measured, strict=True):
        assert one["test/R1"] == pytest.approx(two["test/R1"], abs=0.6)  # One of 180 may tie.


@pytest.mark.slow
@pytest.mark.parametrize("devices", [2, 1])
def test_a_run_goes_on_with_fewer_devices(both, data, finish, tmp_path, devices):
    workdir = tmp_path / "run"
    shutil.copytree(both[2], workdir)
    shutil.rmtree(workdir / "checkpoints" / str(STEPS))
    places = [f"--config.data={data}", f"--workdir={workdir}", "--resume"]
    code, said = finish(*TRAIN, *places, devices=devices)
    assert code == 0 and "at step 6" in said, said
    require_same_losses(both[1], workdir)
    assert difference(both[1], workdir) < 1e-5


@pytest.mark.parametrize("processes", [1, pytest.param(2, marks=pytest.mark.slow)])
def test_sigterm_saves_and_exits(both, data, start, finish, tmp_path, processes):
    """The last checkpoint is of the step reached, from where the run goes on to the same bits."""
    workdir = tmp_path / "run"
    places = [f"--config.data={data}", f"--workdir={workdir}", "--config.checkpoint_every=1000"]
    size = {"processes": processes, "devices": 8 // processes}
    process = start(*TRAIN, *MIXED, *places, **size)
    deadline = time.monotonic() + 400
    while not (workdir / "metrics.jsonl").exists() or len(rows(workdir)) < 2:
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.02)
    process.send_signal(signal.SIGTERM)
    said, _ = process.communicate(timeout=300)
    assert process.returncode == 143, said
    assert said.count("error: SIGTERM: step") == processes and "Traceback" not in said
    with Checkpoints.open_read_only(workdir) as checkpoints:
        reached = checkpoints.latest_step()
    assert 2 <= reached < STEPS and f"SIGTERM: step {reached} is saved" in said

    places[-1] = "--config.checkpoint_every=6"
    code, said = finish(*TRAIN, *MIXED, *places, "--resume", **size)
    assert code == 0 and f"at step {reached}" in said, said
    require_same_losses(both[processes], workdir)
    assert difference(both[processes], workdir) == 0


@pytest.mark.slow
@pytest.mark.parametrize("processes", [1, 2])
def test_fifteen_kills_change_nothing(data, start, finish, tmp_path, processes):
    """SIGKILL at random moments, with a save at each step; of two processes it hits one."""
    steps, rng = 40, np.random.default_rng(processes)
    size = {"processes": processes, "devices": 8 // processes}
    flags = [flag for flag in TRAIN if "evaluate" not in flag and "protocol" not in flag]
    flags += [*MIXED, f"--config.data={data}", f"--config.steps={steps}"]
    flags += ["--config.checkpoint_every=1"]
    code, said = finish(*flags, f"--workdir={tmp_path / 'straight'}", **size)
    assert code == 0, said

    saved = tmp_path / "run" / "checkpoints"
    for _ in range(15):
        before = set(saved.glob("*"))
        process = start(*flags, f"--workdir={tmp_path / 'run'}", "--resume", **size)
        while set(saved.glob("*")) == before:
            assert process.poll() is None
            time.sleep(0.005)
        time.sleep(rng.uniform(0, 0.3))
        victims = children(process.pid) if processes > 1 else [process.pid]
        os.kill(int(rng.choice(victims)), signal.SIGKILL)
        said, _ = process.communicate(timeout=300)
        assert process.returncode != 0, said
    code, said = finish(*flags, f"--workdir={tmp_path / 'run'}", "--resume", **size)
    assert code == 0, said
    require_same_losses(tmp_path / "straight", tmp_path / "run", steps)
    assert difference(tmp_path / "straight", tmp_path / "run", steps) == 0


def children(pid):
    """The processes that a process has started."""
    listed = subprocess.run(
        ["ps", "-o", "pid=", "--ppid", str(pid)], capture_output=True, text=True
    )
    return [int(number) for number in listed.stdout.split()]


def test_a_mistake_of_one_process_stops_all(data, finish, tmp_path):
    """A flag of the second alone: both say so in one line, and nothing is written."""
    script = tmp_path / "train.py"
    script.write_text(
        "import runpy, sys\n"
        "if sys.argv[-1] == '--process=1':\n"
        "    sys.argv.append('--config.data=nowhere')\n"
        "runpy.run_path('launch/train.py', run_name='__main__')\n"
    )
    code, said = finish(
        str(script), f"--config.data={data}", *TRAIN[1:], f"--workdir={tmp_path / 'run'}",
        processes=2, devices=1,
    )  # fmt: skip
    assert code == 2, said
    assert "nowhere" in said and "process 1 has stopped; it says why" in said
    assert "Traceback" not in said and not (tmp_path / "run").exists()
