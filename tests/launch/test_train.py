"""launch/train.py from outside: a real kill, a real resume, and mistakes in one line."""

import json
import os
import resource
import shutil
import signal
import subprocess
import sys
import time

import numpy as np
import pytest

from unipt_jax.core import trees
from unipt_jax.training.checkpoints import Checkpoints

SMALL = [
    "--config.batch_size=32",
    "--config.checkpoint_every=3",
    "--config.log_every=1",
    "--config.image.height=64",
    "--config.image.width=32",
    "--config.model.image=tiny",
    "--config.init_image=",
]
PRETRAIN = ["--config=configs/pretrain.py:demo", "--config.steps=12", *SMALL]
# The paper's losses, of a model that fits `PRETRAIN`'s.
FINETUNE = [
    "--config=configs/finetune.py:cuhk_pedes",
    "--config.steps=2",
    *SMALL,
    "--config.model.text=tiny",
    "--config.model.embedding_dim=128",
    "--config.model.pgu=tiny",
    "--config.text.tokenizer=examples/tokenizer",
    "--config.text.length=64",
    "--config.text.buckets=()",  # Each length would be compiled by itself.
    "--config.evaluate=False",  # The sample has no validation split.
    "--config.optimizer.learning_rate=1e-12",  # Too small to see.
]


def command(script, *arguments, **options):
    environment = os.environ | {"HF_HUB_OFFLINE": "1", "JAX_PLATFORMS": "cpu"}
    return subprocess.Popen(
        [sys.executable, f"launch/{script}.py", *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=environment,
        **options,
    )


def finish(process, seconds=500):
    try:
        out, err = process.communicate(timeout=seconds)
    finally:
        process.kill()  # Nothing to one that has ended.
    return process.returncode, out, err


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    directory = tmp_path_factory.mktemp("prepared")
    code, _, err = finish(
        command("prepare", "--config=configs/prepare.py:demo", f"--workdir={directory}")
    )
    assert code == 0, err
    return directory


@pytest.fixture(scope="module")
def pretrained(data, tmp_path_factory):
    """The work directory of a run that nothing disturbed."""
    workdir = tmp_path_factory.mktemp("pretrained") / "run"
    code, out, err = finish(
        command("train", *PRETRAIN, f"--config.data={data}", f"--workdir={workdir}")
    )
    assert code == 0, err
    assert "loss/contrastive" in out and "Traceback" not in err
    return workdir


def parameters(workdir):
    with Checkpoints.open_read_only(workdir) as checkpoints:
        step = checkpoints.latest_step()
        return step, trees.flatten(checkpoints.manager.restore(step)["state"]["params"])


def test_a_killed_and_resumed_run_ends_with_the_same_bits(data, pretrained, tmp_path):
    """P28, P38: SIGKILL at any moment after the first checkpoint; then --resume.

    The step that goes on is the killed run's own, compiled once and kept.
    """
    compiled = tmp_path / "compiled"
    arguments = [*PRETRAIN, f"--config.data={data}", f"--config.compute.cache={compiled}"]
    victim = command("train", *arguments, f"--workdir={tmp_path / 'b'}")
    checkpoints, deadline = tmp_path / "b" / "checkpoints", time.monotonic() + 120
    while not any(path.name.isdigit() for path in checkpoints.glob("*")):
        assert victim.poll() is None and time.monotonic() < deadline
        time.sleep(0.05)
    victim.send_signal(signal.SIGKILL)
    victim.communicate()
    # A finished victim proves nothing; steps are long enough for that not to happen.
    assert not (checkpoints / "12").exists()
    steps = {path.name for path in compiled.glob("jit_train_step-*-cache")}
    resume = [*arguments, f"--workdir={tmp_path / 'b'}", "--resume"]
    code, _, err = finish(command("train", *resume))
    assert code == 0 and "resumed" in err, err
    assert steps and {path.name for path in compiled.glob("jit_train_step-*-cache")} == steps
    (step, straight), (_, resumed) = parameters(pretrained), parameters(tmp_path / "b")
    assert step == 12
    for path, leaf in straight.items():
        np.testing.assert_array_equal(leaf, resumed[path], err_msg=path)
    rows = [
        [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
        for run in (pretrained, tmp_path / "b")
    ]
    for one, other in zip(*rows, strict=True):
        for name in ("step", "loss", "learning_rate", "gradient_norm"):
            assert one[name] == other[name]

    for extra, message in (
        ([], "pass --resume"),
        (["--resume", "--config.optimizer.learning_rate=1.0"], "optimizer.learning_rate"),
        (["--resume", "--overwrite"], "exclude each other"),
    ):
        code, _, err = finish(command("train", *arguments, f"--workdir={pretrained}", *extra))
        assert code == 2 and message in err and "Traceback" not in err
        assert err.strip().splitlines()[-1].startswith("error: ")


def test_a_full_disk_ends_the_run_and_leaves_the_last_checkpoint(data, pretrained, tmp_path):
    """No file may grow beyond 100 kB, so the next checkpoint fails; later it goes on (P37)."""
    workdir = tmp_path / "run"
    shutil.copytree(pretrained, workdir)
    shutil.rmtree(workdir / "checkpoints" / "12")
    arguments = [*PRETRAIN, f"--config.data={data}", f"--workdir={workdir}", "--resume"]
    limit = lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))  # noqa: E731
    code, _, err = finish(command("train", *arguments, preexec_fn=limit))
    last = err.strip().splitlines()[-1]
    assert code == 1 and last.startswith("error: ") and "Traceback" not in err, err
    assert "could not be written; the last good one is step 9" in last and "too large" in last
    code, _, err = finish(command("train", *arguments))
    assert code == 0 and "at step 9" in err, err
    for (path, one), other in zip(
        parameters(pretrained)[1].items(), parameters(workdir)[1].values(), strict=True
    ):
        np.testing.assert_array_equal(one, other, err_msg=path)


def test_a_work_directory_that_goes_away_ends_the_run(data, pretrained, tmp_path):
    """Like a mount that is lost once the run is under way; its last checkpoint is whole."""
    workdir, away = tmp_path / "run", tmp_path / "away"
    shutil.copytree(pretrained, workdir)
    shutil.rmtree(workdir / "checkpoints" / "12")
    events = set((workdir / "tensorboard").iterdir())
    arguments = [*PRETRAIN, f"--config.data={data}", f"--workdir={workdir}", "--resume"]
    process = command("train", *arguments)
    while set((workdir / "tensorboard").iterdir()) == events:  # What a run opens first.
        assert process.poll() is None
        time.sleep(0.01)
    workdir.rename(away)
    code, _, err = finish(process)
    assert code == 1 and "Traceback" not in err, err
    last = err.strip().splitlines()[-1]
    assert last == f"error: {workdir / 'metrics.jsonl'}: No such file or directory"
    assert parameters(away)[0] == 9


def test_a_damaged_checkpoint_is_named(data, pretrained, tmp_path):
    """One bit of each file of the newest one's arrays; some of these files are never read."""
    workdir = tmp_path / "run"
    shutil.copytree(pretrained, workdir)
    shutil.rmtree(workdir / "checkpoints" / "12")
    newest = workdir / "checkpoints" / "9"
    for file in newest.rglob("d/*"):
        content = bytearray(file.read_bytes())
        content[len(content) // 2] ^= 1
        file.write_bytes(content)
    arguments = [*PRETRAIN, f"--config.data={data}", f"--workdir={workdir}", "--resume"]
    code, _, err = finish(command("train", *arguments))
    last = err.strip().splitlines()[-1]
    assert code == 2 and "Traceback" not in err, err
    assert last.startswith(f"error: {newest} is damaged or cannot be read: ")
    assert last.endswith("take it away, which leaves step 6")


@pytest.mark.slow
def test_fine_tuning_goes_on_from_a_pre_trained_run(data, pretrained, tmp_path):
    """Both encoders come from there; classifiers and PGU are new; two data sets make one."""
    arguments = [*FINETUNE, f"--config.data={data},{data}", f"--config.init={pretrained}"]
    code, _, err = finish(command("train", *arguments, f"--workdir={tmp_path / 'run'}"))
    assert code == 0 and "Traceback" not in err, err
    for name in ("loss/identity", "loss/ranking", "loss/pgu_identity", "loss/pgu_ranking"):
        assert name in (tmp_path / "run" / "metrics.jsonl").read_text()
    (_, before), (step, after) = parameters(pretrained), parameters(tmp_path / "run")
    assert step == 2
    kept = {path for path in before if path.split("/")[0].startswith(("image_", "text_"))}
    assert kept <= set(after) and not any(path.startswith("pgu/") for path in before)
    for path in kept:
        np.testing.assert_allclose(after[path], before[path], atol=1e-9, err_msg=path)
    assert any(path.startswith("pgu/") for path in after)
    # Six persons in each, who are others although they have the same names.
    spec = json.loads((tmp_path / "run" / "model.json").read_text())
    assert '"identities": 12' in json.dumps(spec)
    config = json.loads((tmp_path / "run" / "config.json").read_text())
    assert (config["stage"], config["data"]) == ("finetune", [str(data), str(data)])

    # Measured on five people that its classifier, of twelve, does not know.
    measured = tmp_path / "evaluation"
    where = [f"--config.data={data}", f"--config.checkpoint={tmp_path / 'run'}"]
    code, out, err = finish(
        command("evaluate", "--config=configs/evaluate.py:demo", *where, f"--workdir={measured}")
    )
    assert code == 0 and "Traceback" not in err, err
    found = json.loads((measured / "evaluation.json").read_text())
    assert set(found["data_sets"][0]["features"]) == {"global", "pgu", "concatenated"}
    assert found["queries"] == 360 and found["gallery"] == 180
    assert "Fine-tuned on sample and sample" in out.replace("\n", " ")
    report = (measured / "report.html").read_text()
    assert "No test split had a part" in report and "examples/tokenizer" in report


def test_an_unknown_recipe_is_answered_with_the_nearest(data, tmp_path):
    workdir = tmp_path / "x"
    config = "--config=configs/finetune.py:cuhk_pedes,recipe=ira"
    code, out, err = finish(
        command("train", config, f"--config.data={data}", f"--workdir={workdir}")
    )
    assert (code, out) == (2, "")
    assert err.strip() == (
        "error: configs/finetune.py has no variant 'recipe=ira'; did you mean 'recipe=irra'?"
    )
    assert not workdir.exists()


def test_a_misspelt_field_is_answered_with_the_nearest(data, tmp_path):
    code, out, err = finish(
        command(
            "train", *PRETRAIN, f"--config.data={data}", f"--workdir={tmp_path / 'x'}",
            "--config.optimizer.lerning_rate=1e-3",
        )
    )  # fmt: skip
    assert (code, out) == (2, "")
    assert err.strip() == (
        "error: optimizer.lerning_rate is unknown; did you mean 'optimizer.learning_rate'?"
    )
    assert not (tmp_path / "x").exists()
