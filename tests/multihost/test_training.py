"""Training by real processes on one machine, against one process that has all the devices."""

import dataclasses
import json
import os
import re
import shutil
import signal
import subprocess
import time

import numpy as np
import pytest

from unipt_jax.core import trees
from unipt_jax.data import annotations, builders
from unipt_jax.training.checkpoints import Checkpoints

STEPS, SAVED = 20, 10
CAPTIONS = 431
# CAPTIONS: some batches span two epochs; 179 images and 357 captions are measured, which fill
# no batch either. AdamW divides by small second moments: at the demo's rate of 1e-3 rounding alone
# would grow beyond 1e-5 in the parameters.
TRAIN = [
    "launch/train.py",
    "--config=configs/pretrain.py:demo",
    f"--config.steps={STEPS}",
    "--config.batch_size=80",
    f"--config.checkpoint_every={SAVED}",
    "--config.log_every=1",
    "--config.image.height=32",
    "--config.image.width=16",
    "--config.model.image=micro",
    "--config.model.text=micro",
    "--config.init_image=",
    "--config.text.buckets=()",
    "--config.optimizer.learning_rate=1e-4",
    "--config.evaluate=True",
    "--config.paper_protocol=True",
]
MIXED = [f"--config.mesh.{axis}=2" for axis in ("data", "fsdp", "tensor")]
# One device multiplies matrices of other shapes than eight and rounds otherwise. Where two tokens
# are nearly equal, that settles which is the maximum, and so which one the gradient goes to. And
# keys' biases have no gradient but rounding (softmax does not see them), of which AdamW makes steps
# unless its epsilon is above it: with 1e-8 these alone differ by more than 1e-6, up to 1.3e-5.
SMOOTH = ["--config.model.pooling=class", "--config.optimizer.epsilon=1e-6"]


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """The sample with one caption less to train on, one less to measure, and an image less."""
    directory = tmp_path_factory.mktemp("data")
    records, _ = annotations.read("cuhk_pedes", "examples/pedestrians")
    train, test = ([r for r in records if r.split == split] for split in ("train", "test"))
    train[7] = dataclasses.replace(train[7], captions=train[7].captions[:1])
    test[7] = dataclasses.replace(test[7], captions=test[7].captions[:1])
    builders.write(
        [*train, *test[:-1]],
        source="examples/pedestrians",
        name="cuhk_pedes",
        workdir=directory,
        tokenizer="examples/tokenizer",
        quarantined=0,
        notices={},
    )
    return directory


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
        starts = re.findall(r"^image_encoder .* at random *$", said, re.MULTILINE)
        assert len(starts) == 1 and "Traceback" not in said, said
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


def require_same(one, other):
    """Losses, norm of the gradient, parameters and what was measured."""
    require_same_losses(one, other)
    assert difference(one, other) < 1e-5
    measured = [[row for row in rows(run) if "test/R1" in row] for run in (one, other)]
    assert [row["step"] for row in measured[0]] == [SAVED, STEPS]
    for here, there in zip(*measured, strict=True):
        for name in (name for name in here if name.startswith("test/")):
            assert here[name] == pytest.approx(there[name], abs=0.6)  # A few of 357 may tie.


def test_two_processes_are_one(both):
    """P03, P83, P102: as many steps and collectives on each, whatever remains of an epoch."""
    require_same(both[1], both[2])


def test_a_dry_run_of_two_processes(data, finish, tmp_path):
    """Told once, with one picture, of the batch that both share; nothing else is left."""
    places = [f"--config.data={data}", f"--workdir={tmp_path / 'run'}", "--config.dry_run"]
    code, said = finish(*TRAIN, *places, processes=2)
    assert code == 0, said
    for told in ("2 x cpu, 2 processes", "80 = 40 a device x 2 (data x fsdp)", "80 x 32 x 16 x 3"):
        assert said.count(told) == 1, said
    assert [path.name for path in tmp_path.iterdir()] == ["run.batch_0.png"]


@pytest.fixture(scope="module")
def alone(data, finish, tmp_path_factory):
    """The work directory of one process with one device."""
    workdir = tmp_path_factory.mktemp("alone") / "run"
    code, said = finish(*TRAIN, *SMOOTH, f"--config.data={data}", f"--workdir={workdir}")
    assert code == 0, said
    return workdir


@pytest.mark.slow
@pytest.mark.parametrize("mesh", [(8, 1, 1), (1, 8, 1), (1, 1, 8), (2, 2, 2), (4, 1, 2)])
def test_eight_devices_are_one(alone, data, finish, tmp_path, mesh):
    """P03, P23, P102: twenty steps on one device, and on any mesh of eight."""
    axes = zip(("data", "fsdp", "tensor"), mesh, strict=True)
    sizes = [f"--config.mesh.{axis}={size}" for axis, size in axes]
    places = [f"--config.data={data}", f"--workdir={tmp_path / 'run'}"]
    code, said = finish(*TRAIN, *SMOOTH, *sizes, *places, devices=8)
    assert code == 0, said
    require_same(alone, tmp_path / "run")


@pytest.mark.slow
@pytest.mark.parametrize("devices", [2, 1])
def test_a_run_goes_on_with_fewer_devices(both, data, finish, tmp_path, devices):
    workdir = tmp_path / "run"
    shutil.copytree(both[2], workdir)
    shutil.rmtree(workdir / "checkpoints" / str(STEPS))
    places = [f"--config.data={data}", f"--workdir={workdir}", "--resume"]
    code, said = finish(*TRAIN, *places, devices=devices)
    assert code == 0 and f"at step {SAVED}" in said, said
    require_same_losses(both[1], workdir)
    assert difference(both[1], workdir) < 1e-5


@pytest.mark.slow
@pytest.mark.parametrize("processes", [1, 2])
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

    places[-1] = f"--config.checkpoint_every={SAVED}"
    code, said = finish(*TRAIN, *MIXED, *places, "--resume", **size)
    assert code == 0 and f"at step {reached}" in said, said
    require_same_losses(both[processes], workdir)
    assert difference(both[processes], workdir) == 0


# Beside the work directory's files: the records that each step is trained on, as the step counts.
NOTING = """
import json, runpy, sys
from unipt_jax.training import loop

(workdir,) = (flag.removeprefix("--workdir=") for flag in sys.argv if "--workdir=" in flag)
real = loop.jit_step

def noting(*arguments):
    step = real(*arguments)

    def noted(state, batch):
        for shard in batch["record"].addressable_shards:
            line = [int(state.step) + 1, shard.index[0].start or 0, shard.data.tolist()]
            with open(f"{workdir}/records.jsonl", "a") as file:
                file.write(json.dumps(line) + "\\n")
        return step(state, batch)

    return noted

loop.jit_step = noting
runpy.run_path("launch/train.py", run_name="__main__")
"""


def trained_on(workdir):
    """The records of all steps in their order; a step that was done again read the same ones."""
    noted = {}
    for line in (workdir / "records.jsonl").read_text().splitlines():
        step, row, records = json.loads(line)
        assert noted.setdefault((step, row), records) == records
    return [record for place in sorted(noted) for record in noted[place]]


# As on a TPU pod, whose hosts' chips take turns in the mesh.
INTERLEAVED = """
import jax

made = jax.make_mesh

def interleaved(*arguments, **options):
    mesh = made(*arguments, **options)
    devices = mesh.devices.reshape(2, 2).T
    assert [device.process_index for device in devices.flat] == [0, 1, 0, 1]
    devices = devices.reshape(mesh.devices.shape)
    return jax.sharding.Mesh(devices, mesh.axis_names, axis_types=mesh.axis_types)

jax.make_mesh = interleaved
"""


@pytest.mark.slow
def test_processes_whose_devices_take_turns_are_one(data, finish, tmp_path):
    """They read the same records in the same rows, train alike and measure alike."""
    for processes, before in ((1, ""), (2, INTERLEAVED)):
        script, workdir = tmp_path / f"train{processes}.py", tmp_path / str(processes)
        script.write_text(before + NOTING)
        places = [f"--config.data={data}", f"--workdir={workdir}", "--config.mesh.fsdp=2"]
        size = {"processes": processes, "devices": 4 // processes}
        code, said = finish(str(script), *TRAIN[1:], *places, **size)
        assert code == 0, said
    assert trained_on(tmp_path / "1") == trained_on(tmp_path / "2")
    require_same(tmp_path / "1", tmp_path / "2")


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("processes", [1, 2])
def test_fifteen_kills_change_nothing(data, start, finish, tmp_path, processes):
    """SIGKILL at random: after the start, after a save, and in the midst of one.

    Of two processes, each of which writes its half of every checkpoint, it hits one.

    P28: each epoch holds each record once all the same.
    """
    steps, batch_size, rng = 36, 40, np.random.default_rng(processes)
    script = tmp_path / "train.py"
    script.write_text(NOTING)
    size = {"processes": processes, "devices": 2 // processes}
    flags = [flag for flag in TRAIN[1:] if "evaluate" not in flag and "protocol" not in flag]
    flags += [f"--config.data={data}", "--config.mesh.fsdp=2", "--config.checkpoint_every=1"]
    flags += [f"--config.steps={steps}", f"--config.batch_size={batch_size}"]
    straight, run = tmp_path / "straight", tmp_path / "run"
    code, said = finish(str(script), *flags, f"--workdir={straight}", **size)
    assert code == 0, said

    saved, in_a_save = run / "checkpoints", 0
    for number in range(15):
        before = set(saved.glob("*"))
        process = start(str(script), *flags, f"--workdir={run}", "--resume", **size)
        while len(victims := children(process.pid) if processes > 1 else [process.pid]) < processes:
            time.sleep(0.1)
        if number % 3 == 0:
            time.sleep(rng.uniform(0, 20))  # Imports and compilation take half of that.
        else:  # What a kill has left of a save is there before.
            awaited = "*-tmp*" if number % 3 == 1 else "*[0-9]"
            while not set(saved.glob(awaited)) - before:
                assert process.poll() is None
                time.sleep(0.005)
            time.sleep(rng.uniform(0, 1) if number % 3 == 2 else 0)
        in_a_save += bool(set(saved.glob("*-tmp*")) - before)
        os.kill(int(rng.choice(victims)), signal.SIGKILL)
        said, _ = process.communicate(timeout=300)
        assert process.returncode != 0, said
    assert in_a_save >= 3
    code, said = finish(str(script), *flags, f"--workdir={run}", "--resume", **size)
    assert code == 0, said

    assert difference(straight, run, steps) == 0
    require_same_losses(straight, run, steps)
    for here, there in zip(rows(straight), rows(run), strict=True):
        assert here["learning_rate"] == there["learning_rate"]
    order = trained_on(straight)
    assert len(order) == steps * batch_size and trained_on(run) == order
    epochs = np.array(order[: len(order) // CAPTIONS * CAPTIONS]).reshape(-1, CAPTIONS)
    assert (np.sort(epochs) == np.arange(CAPTIONS)).all()


def children(pid):
    """The processes that a process has started."""
    listed = subprocess.run(
        ["ps", "-o", "pid=", "--ppid", str(pid)], capture_output=True, text=True
    )
    return [int(number) for number in listed.stdout.split()]


# What the second process alone does otherwise.
OTHER = """
import runpy, sys
from unipt_jax.data import builders

if sys.argv[-1] == "--process=1":
    {otherwise}
runpy.run_path("launch/train.py", run_name="__main__")
"""


@pytest.mark.parametrize(
    ("otherwise", "said_of_it"),
    [
        ("sys.argv.append('--config.seed=7')", "differs from process 0 in its configuration"),
        ("builders.Split.fingerprint = 'other'", "differs from process 0 in its data set"),
    ],
)
def test_processes_that_differ_are_refused(data, finish, tmp_path, otherwise, said_of_it):
    """Both say so, and no step is done."""
    script = tmp_path / "train.py"
    script.write_text(OTHER.format(otherwise=otherwise))
    code, said = finish(
        str(script), f"--config.data={data}", *TRAIN[1:], f"--workdir={tmp_path / 'run'}",
        processes=2, devices=1,
    )  # fmt: skip
    assert code == 2 and "Traceback" not in said, said
    assert said.count(f"error: process 1 {said_of_it}") == 2
    assert not (tmp_path / "run" / "checkpoints").exists()
