"""A short real run on the sample: it learns, and an interruption leaves no trace."""

import dataclasses
import json
import shutil

import numpy as np
import pytest

from unipt_jax.config import load, schema
from unipt_jax.core import trees
from unipt_jax.core.errors import (
    CheckpointError,
    ConfigError,
    ConversionError,
    DataError,
    DivergenceError,
)
from unipt_jax.data import builders, pipeline, tokenization
from unipt_jax.training import loop, metrics, run
from unipt_jax.training.checkpoints import Checkpoints

SMALL = {
    "steps": 8,
    "batch_size": 16,
    "log_every": 1,
    "checkpoint_every": 4,
    "image.height": 32,
    "image.width": 16,
    "model.dropout": 0.1,
    "mesh.data": 8,
}


def config(source, **changes):
    return load.load("configs/pretrain.py:demo", {"data": str(source)} | SMALL | changes)


def params(workdir):
    with Checkpoints.open_read_only(workdir) as checkpoints:
        step = checkpoints.latest_step()
        stored = checkpoints.manager.restore(step)["state"]["params"]
    return step, trees.flatten(stored)


class Killed(BaseException):
    """Stands for the end of the process: nothing below catches it."""


@pytest.fixture(scope="module")
def undisturbed(data, tmp_path_factory):
    workdir = tmp_path_factory.mktemp("undisturbed")
    run.pretrain(config(data), workdir, False)
    return workdir


@pytest.mark.parametrize("killed_after", [3, 5])
def test_an_interrupted_run_ends_with_the_same_bits(
    data, undisturbed, tmp_path, monkeypatch, killed_after
):
    """P28: parameters, metrics and record order of 8 steps equal those of an interrupted run."""
    seen, real = [], pipeline.Batches.__next__

    def count(batches):
        if len(seen) == killed_after:
            raise Killed
        batch = real(batches)
        seen.append(batch["record"].tolist())
        return batch

    monkeypatch.setattr(pipeline.Batches, "__next__", count)
    with pytest.raises(Killed):
        run.pretrain(config(data), tmp_path, False)
    restart = 4 if killed_after > 4 else 0
    seen, killed_after = seen[:restart], 99
    run.pretrain(config(data), tmp_path, True)
    monkeypatch.undo()

    step, resumed = params(tmp_path)
    assert step == 8
    for path, leaf in params(undisturbed)[1].items():
        np.testing.assert_array_equal(leaf, resumed[path], err_msg=path)
    timing = {"examples_per_second"}
    straight, rows = (
        [{k: v for k, v in row.items() if k not in timing} for row in metrics.read(workdir)]
        for workdir in (undisturbed, tmp_path)
    )
    assert straight == rows and [row["step"] for row in rows] == list(range(1, 9))
    split = builders.open_split(data, "train")
    how = pipeline.Preprocess(32, 16, 0.5, 64, (32, 48), 0.15, False)
    tokenizer = tokenization.load("examples/tokenizer")
    batches = pipeline.train_batches(split, tokenizer, how, batch_size=16, seed=0)
    assert seen == [batches[k]["record"].tolist() for k in range(8)]


def test_a_run_starts_from_other_weights_and_keeps_them(data, undisturbed, tmp_path, caplog):
    """Killed before its first checkpoint and resumed, it ends as if nothing had happened."""
    origin = {"init.image": str(undisturbed), "init.text": str(undisturbed)}
    # So small a rate that a step changes next to nothing: what is left is where it started.
    made = config(data, steps=4, **origin, **{"optimizer.learning_rate": 1e-12})
    with caplog.at_level("INFO"):
        run.check(made, None)
        run.pretrain(made, tmp_path / "straight", False)
    assert f"image_encoder starts from {undisturbed}" in caplog.text
    assert f"mlm_head starts from {undisturbed}" in caplog.text
    source, ended = params(undisturbed)[1], params(tmp_path / "straight")[1]
    for path, leaf in ended.items():
        close = np.abs(leaf - source[path]).max() < 1e-6
        # Heads belong to another objective and start anew; so does the temperature, which agrees.
        assert close == path.startswith(("image_encoder", "text_encoder", "mlm_head")) or (
            path == "logit_scale"
        ), path

    # What a kill leaves before the first checkpoint: descriptions, and no parameters.
    shutil.copytree(tmp_path / "straight", tmp_path / "killed")
    for step in (tmp_path / "killed" / "checkpoints").iterdir():
        shutil.rmtree(step)
    (tmp_path / "killed" / "metrics.jsonl").unlink()
    run.check(made, tmp_path / "killed")
    run.pretrain(made, tmp_path / "killed", True)
    for path, leaf in params(tmp_path / "killed")[1].items():
        np.testing.assert_array_equal(leaf, ended[path], err_msg=path)


def test_a_run_that_goes_on_needs_its_origin_no_more(data, undisturbed, tmp_path):
    made = config(data, **{"init.image": "gone"})
    with pytest.raises(ConversionError, match=r"init\.image: gone.*starts at random"):
        run.check(made, None)
    shutil.copytree(undisturbed, tmp_path / "run")
    run.check(made, tmp_path / "run")


def test_a_run_leaves_what_the_other_stages_read(undisturbed):
    rows = [json.loads(line) for line in (undisturbed / "metrics.jsonl").read_text().splitlines()]
    assert {"step", "loss", "learning_rate", "examples_per_second"} <= rows[0].keys()
    assert all(abs(row["loss"] - row["loss/contrastive"] - row["loss/mlm"]) < 1e-5 for row in rows)
    assert (undisturbed / "loss.png").stat().st_size > 5000
    assert (undisturbed / "tokenizer" / "tokenizer.json").exists()
    assert list((undisturbed / "tensorboard").iterdir())
    assert sorted(p.name for p in (undisturbed / "checkpoints").iterdir()) == ["4", "8"]


def test_the_loss_on_the_sample_falls_well_under_its_start(data, tmp_path):
    """The bar is on both halves: contrastive and masked language."""
    run.pretrain(
        config(
            data,
            steps=60,
            log_every=5,
            checkpoint_every=60,
            **{"optimizer.learning_rate": 2e-3, "mesh.data": 1, "mesh.fsdp": 8},
        ),
        tmp_path,
        False,
    )
    rows = metrics.read(tmp_path)
    first, last = rows[0], {name: np.mean([row[name] for row in rows[-4:]]) for name in rows[0]}
    assert last["loss"] < 0.75 * first["loss"]
    assert last["loss/contrastive"] < 0.9 * first["loss/contrastive"]
    assert last["loss/mlm"] < 0.75 * first["loss/mlm"]


def test_epochs_count_the_captions(data, tmp_path):
    """432 captions in batches of 216 and a half epoch make one step."""
    run.pretrain(config(data, steps=0, epochs=0.5, batch_size=216), tmp_path, False)
    assert params(tmp_path)[0] == 1


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"text.length": 200, "text.buckets": ()}, "text.length=200 exceeds the 128 positions"),
        ({"batch_size": 12}, "batch_size=12 cannot be split over data x fsdp = 8"),
        ({"mesh.data": 3}, "does not fit 8 devices"),
        ({"model.image": "vit_b61"}, "vit_b16"),
        ({"text.tokenizer": "nowhere/at_all"}, "nowhere/at_all"),
        ({"data": "nowhere"}, "nowhere"),
    ],
)
def test_what_cannot_work_is_refused_before_training(data, tmp_path, changes, message):
    """P78 and its kind: one clear line, and no checkpoint."""
    with pytest.raises((ConfigError, DataError), match=message):
        run.pretrain(config(data, **changes), tmp_path, False)
    assert not (tmp_path / "metrics.jsonl").exists()


def test_other_data_are_not_resumed_with(data, undisturbed, tmp_path, monkeypatch):
    """The same path with other captions in it is another run."""
    shutil.copytree(undisturbed, tmp_path / "run")
    real = builders.open_split

    def altered(directory, split):
        whole = real(directory, split)
        return dataclasses.replace(whole, identities=whole.identities[::-1].copy())

    monkeypatch.setattr(builders, "open_split", altered)
    with pytest.raises(CheckpointError, match="trained on other data: dataset"):
        run.pretrain(config(data), tmp_path / "run", True)


def test_divergence_stops_the_run_and_is_never_saved(data, tmp_path, monkeypatch):
    """P40: no checkpoint holds a state whose loss was NaN."""
    real = loop.jit_step

    def poisoned(train_step, shardings, mesh):
        step = real(train_step, shardings, mesh)

        def spoil(state, batch):
            state, scalars = step(state, batch)
            is_late = (state.step > 5).astype(float)
            return state, scalars | {"loss": scalars["loss"] + 0.0 / (1.0 - is_late)}

        return spoil

    monkeypatch.setattr(loop, "jit_step", poisoned)
    with pytest.raises(DivergenceError, match="loss became NaN or infinite in steps 6 to 6"):
        run.pretrain(config(data), tmp_path, False)
    assert params(tmp_path)[0] == 4


def test_unreadable_records_are_left_out_and_counted(data, tmp_path, monkeypatch):
    real = builders.open_split

    class Damaged(builders.Images):
        def __init__(self, images):
            self.images = images

        def __len__(self):
            return len(self.images)

        def __getitem__(self, number):
            entry = self.images[number]
            return entry | {"image": b"no image"} if number < 100 else entry

    def damaged(directory, split):
        whole = real(directory, split)
        return dataclasses.replace(whole, images=Damaged(whole.images))

    monkeypatch.setattr(builders, "open_split", damaged)
    with pytest.raises(DataError, match=r"\.jpg"):
        run.pretrain(config(data), tmp_path / "stop", False)
    run.pretrain(config(data, on_bad_record="quarantine", steps=2), tmp_path / "go", False)
    lines = (tmp_path / "go" / "quarantine.jsonl").read_text().splitlines()
    records = [json.loads(line)["pair"] for line in lines]
    assert records and max(records) < 200 and len(set(records)) == len(records)
    rows = metrics.read(tmp_path / "go")
    assert rows[-1]["quarantined"] == len(records)
    assert sum(row["valid_examples"] for row in rows) == 32 - len(records)


def test_configuration_of_a_run_can_be_read_back(data):
    made = config(data)
    assert schema.build(json.loads(json.dumps(schema.to_dict(made)))) == made
