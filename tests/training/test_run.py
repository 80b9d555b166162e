"""A short real run on the sample: it learns, and an interruption leaves no trace."""

import dataclasses
import json
import shutil

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tokenizers
from PIL import Image

from tests.training import micro
from unipt_jax.config import load, schema
from unipt_jax.core import trees
from unipt_jax.core.errors import (
    CheckpointError,
    ConfigError,
    ConversionError,
    DataError,
    DivergenceError,
)
from unipt_jax.core.sharding import make_mesh
from unipt_jax.data import annotations, builders, images, pipeline, tokenization
from unipt_jax.models import specs, variants
from unipt_jax.models.dual_encoder import DualEncoder
from unipt_jax.training import loop, metrics, model_file, run, state, trackers
from unipt_jax.training.checkpoints import Checkpoints

SMALL = {
    "steps": 8,
    "batch_size": 16,
    "log_every": 1,
    "checkpoint_every": 4,
    "image.height": 32,
    "image.width": 16,
    "image.padding": 0,
    "image.erase": 0.0,
    "model.image": "micro",
    "model.text": "micro",
    "model.dropout": 0.1,
    "init_image": "",
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
    run.train(config(data), workdir, False)
    return workdir


@pytest.mark.parametrize("killed_after", [3, pytest.param(5, marks=pytest.mark.slow)])
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
        run.train(config(data), tmp_path, False)
    restart = 4 if killed_after > 4 else 0
    seen, killed_after = seen[:restart], 99
    run.train(config(data), tmp_path, True)
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


def test_a_run_starts_from_other_weights_and_keeps_them(data, undisturbed, tmp_path, capfd):
    """Killed before its first checkpoint and resumed, it ends as if nothing had happened."""
    origin = {"init_image": str(undisturbed), "init_text": str(undisturbed)}
    # So small a rate that a step changes next to nothing: what is left is where it started.
    made = config(data, steps=4, **origin, **{"optimizer.learning_rate": 1e-12})
    run.check(made, None)
    capfd.readouterr()
    run.train(made, tmp_path / "straight", False)
    told = capfd.readouterr().err.splitlines()
    starts = {line.split()[0]: line for line in told if line.split()}
    for part in ("image_encoder", "mlm_head", "image_head"):
        assert ("at random" in starts[part]) == (part == "image_head")
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
    run.train(made, tmp_path / "killed", True)
    for path, leaf in params(tmp_path / "killed")[1].items():
        np.testing.assert_array_equal(leaf, ended[path], err_msg=path)


def test_a_run_that_goes_on_needs_its_origin_no_more(data, undisturbed, tmp_path):
    made = config(data, **{"init_image": "gone"})
    with pytest.raises(ConversionError, match=r"init_image: gone.*starts at random"):
        run.check(made, None)
    shutil.copytree(undisturbed, tmp_path / "run")
    run.check(made, tmp_path / "run")


def test_a_run_leaves_what_the_other_stages_read(data, undisturbed):
    rows = [json.loads(line) for line in (undisturbed / "metrics.jsonl").read_text().splitlines()]
    assert {"step", "loss", "learning_rate", "examples_per_second"} <= rows[0].keys()
    weight = config(data).loss.mlm
    sums = [row["loss/contrastive"] + weight * row["loss/mlm"] for row in rows]
    np.testing.assert_allclose([row["loss"] for row in rows], sums, atol=1e-5)
    assert (undisturbed / "loss.png").stat().st_size > 5000
    assert (undisturbed / "tokenizer" / "tokenizer.json").exists()
    assert list((undisturbed / "tensorboard").iterdir())
    assert sorted(p.name for p in (undisturbed / "checkpoints").iterdir()) == ["4", "8"]


@pytest.mark.slow
def test_the_loss_on_the_sample_falls_well_under_its_start(data, tmp_path):
    """The bar is on both halves; the sum's leaves room for drift by a JPEG decoder's rounding."""
    run.train(
        config(
            data,
            steps=60,
            log_every=5,
            checkpoint_every=60,
            **{"optimizer.learning_rate": 2e-3, "mesh.data": 1, "mesh.fsdp": 8},
            **{"model.image": "tiny", "model.text": "tiny"},
        ),
        tmp_path,
        False,
    )
    rows = metrics.read(tmp_path)
    first, last = rows[0], {name: np.mean([row[name] for row in rows[-4:]]) for name in rows[0]}
    assert last["loss"] < 0.8 * first["loss"]
    assert last["loss/contrastive"] < 0.9 * first["loss/contrastive"]
    assert last["loss/mlm"] < 0.75 * first["loss/mlm"]


def test_epochs_count_the_captions(data, tmp_path):
    """432 captions in batches of 216 and a half epoch make one step."""
    run.train(config(data, steps=0, epochs=0.5, batch_size=216), tmp_path, False)
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
    """P78, P105 and their kind: one clear line, and no checkpoint."""
    with pytest.raises((ConfigError, DataError), match=message):
        run.train(config(data, **changes), tmp_path, False)
    assert not (tmp_path / "metrics.jsonl").exists()


def test_more_steps_than_can_be_counted_are_refused(data):
    """In one line, before a step."""
    made = config(data, steps=0, epochs=1e6, batch_size=16)
    assert run.steps_of(made, 1000) == 62_500_000
    with pytest.raises(
        ConfigError, match=r"epochs=1e\+06 of 50000 captions .* more than 2147483647"
    ):
        run.steps_of(made, 50_000)


@pytest.mark.parametrize(
    ("kept", "changes", "message"),
    [
        (1, {}, "'train' has one caption alone"),
        (4, {"loss.ranking": 1.0}, "'train' has one identity alone, and loss.ranking would tell"),
        (4, {}, None),
        (4, {"batch_size": 40}, None),
    ],
)
def test_data_of_which_nothing_can_be_learnt_are_refused(data, monkeypatch, kept, changes, message):
    """P29: before a step, and not by a loss of 0; few captions, and fewer than a batch, do."""
    real = builders.open_split

    def small(directory, split):
        whole = real(directory, split)
        return dataclasses.replace(
            whole,
            caption_counts=np.array([min(kept, 2)] * (1 if kept == 1 else 2), np.int32),
            identities=np.zeros(1 if kept == 1 else 2, np.int32),
            text_lengths=whole.text_lengths[:kept],
            tokens=(),
        )

    monkeypatch.setattr(builders, "open_split", small)
    made = config(data, **{"mesh.data": 8} | changes)
    if message is None:
        run.check(made, None)
        return
    with pytest.raises((ConfigError, DataError), match=message):
        run.check(made, None)


def test_other_data_are_not_resumed_with(data, undisturbed, tmp_path, monkeypatch):
    """The same path with other captions in it is another run."""
    shutil.copytree(undisturbed, tmp_path / "run")
    real = builders.open_split

    def altered(directory, split):
        whole = real(directory, split)
        return dataclasses.replace(whole, identities=whole.identities[::-1].copy())

    monkeypatch.setattr(builders, "open_split", altered)
    with pytest.raises(CheckpointError, match="trained on other data: dataset"):
        run.train(config(data), tmp_path / "run", True)


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
        run.train(config(data), tmp_path, False)
    assert params(tmp_path)[0] == 4


def test_unreadable_records_are_left_out_and_counted(data, tmp_path, monkeypatch):
    real = builders.open_split

    class Damaged(builders.Images):
        def __getitem__(self, number):
            entry = super().__getitem__(number)
            return entry | {"image": b"no image"} if number < 100 else entry

    def damaged(directory, split):
        whole = real(directory, split)
        return dataclasses.replace(whole, images=Damaged(whole.images._source))

    monkeypatch.setattr(builders, "open_split", damaged)
    with pytest.raises(DataError, match=r"\.jpg"):
        run.train(config(data), tmp_path / "stop", False)
    run.train(config(data, on_bad_record="quarantine", steps=2), tmp_path / "go", False)
    lines = (tmp_path / "go" / "quarantine.jsonl").read_text().splitlines()
    records = [json.loads(line)["pair"] for line in lines]
    assert records and max(records) < 200 and len(set(records)) == len(records)
    rows = metrics.read(tmp_path / "go")
    assert rows[-1]["quarantined"] == len(records)
    assert sum(row["valid_examples"] for row in rows) == 32 - len(records)


def left(directory):
    """What lies in a directory, and when each file was written."""
    return {path: path.stat().st_mtime_ns for path in directory.rglob("*")}


def test_a_dry_run_describes_a_run_and_leaves_its_directory_alone(
    data, undisturbed, tmp_path, capsys, monkeypatch
):
    """New, and going on from step 8; the picture holds the batch's own pixels."""
    monkeypatch.setattr(loop, "train", lambda **_: pytest.fail("a step was taken"))
    made = config(data, dry_run=True)
    workdir = tmp_path / "run"
    run.check(made, None)
    run.train(made, workdir, False)
    assert [path.name for path in tmp_path.iterdir()] == ["run.batch_0.png"]
    out = capsys.readouterr().out
    assert "mesh           data 8 x fsdp 1 x tensor 1" in out
    assert "16 = 2 a device x 8 (data x fsdp)" in out
    rows = {line.split()[0]: line.split() for line in out.splitlines() if line.split()}
    assert rows["image"][1:] == ["16", "x", "32", "x", "16", "x", "3", "uint8"]
    assert rows["text"][1:] == ["16", "x", "32", "int32"]  # The bucket of this batch.
    assert float(rows["temporary"][1]) > 0 and "texts of 64 tokens" in out
    shown = np.asarray(Image.open(tmp_path / "run.batch_0.png"))
    split, tokenizer = builders.open_split(data, "train"), tokenization.load("examples/tokenizer")
    how = pipeline.Preprocess(32, 16, 0.5, 64, (32, 48), 0.15, False)
    batch = pipeline.train_batches(split, tokenizer, how, batch_size=16, seed=0)[0]
    enlarged = batch["image"][0].repeat(8, axis=0).repeat(8, axis=1)
    places = np.lib.stride_tricks.sliding_window_view(shown, (256, 128, 3))[:64, :64, 0]
    assert (places == enlarged).all(axis=(2, 3, 4)).any()

    shutil.copytree(undisturbed, workdir)
    before = left(workdir)
    run.train(made, workdir, True)
    assert left(workdir) == before
    assert "step 8 of this run" in capsys.readouterr().out
    assert (tmp_path / "run.batch_8.png").exists()


def test_a_tracker_gets_the_rows_of_a_run(data, tmp_path, monkeypatch):
    """Also what was evaluated and where it was configured; without its package it is refused."""
    sent = []

    class Tracker(trackers.Tracker):
        def write(self, row):
            sent.append(row)

    def start(name, workdir, values):
        assert (name, str(workdir), values["batch_size"]) == ("mlflow", str(tmp_path), 16)
        return Tracker()

    monkeypatch.setattr(trackers, "start", start)
    run.train(config(data, steps=2, tracker="mlflow"), tmp_path, False)
    assert sent == metrics.read(tmp_path)
    monkeypatch.setattr(trackers.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=r"pip install 'unipt-jax\[mlflow\]'"):
        run.check(config(data, tracker="mlflow"), None)


def test_configuration_of_a_run_can_be_read_back(data):
    made = config(data)
    assert schema.build(json.loads(json.dumps(schema.to_dict(made)))) == made


# ---------------------------------------------------------------------------- fine-tuning

FINE_TUNING = {
    "steps": 6,
    "batch_size": 8,
    "log_every": 4,
    "checkpoint_every": 2,
    "keep_checkpoints": 1,
    "evaluate": True,
    "ema": 0.5,
    "repeats": (),
    "image.height": 32,
    "image.width": 16,
    "model.image": "micro",
    "model.text": "micro",
    "model.pgu": "tiny",
    "init_image": "",
    "loss.identity": 1.0,
    "loss.ranking": 1.0,
    "loss.n_itc": 0.0,
}


@pytest.fixture(scope="module")
def three_splits(tmp_path_factory):
    """Some images of every person of the sample, two of the training persons in `val`."""
    records, _ = annotations.read("cuhk_pedes", "examples/pedestrians")
    kept, seen = [], {}
    for record in records:
        seen[record.identity] = seen.get(record.identity, 0) + 1
        if seen[record.identity] <= 8:
            held_out = record.split == "train" and record.identity.endswith(("/1", "/3"))
            kept.append(dataclasses.replace(record, split="val") if held_out else record)
    assert {record.identity for record in kept if record.split == "val"} == {
        "cuhk_pedes/1",
        "cuhk_pedes/3",
    }
    directory = tmp_path_factory.mktemp("three_splits")
    builders.write(
        kept,
        source="examples/pedestrians",
        name="cuhk_pedes",
        workdir=directory,
        tokenizer="examples/tokenizer",
        quarantined=0,
        notices={},
    )
    return directory


@pytest.fixture
def small(monkeypatch):
    """One device and few numbers: a fine-tuning run's time is its compilation."""
    monkeypatch.setattr(run, "make_mesh", lambda *_: make_mesh(devices=jax.devices()[:1]))
    monkeypatch.setitem(variants.PGU_VARIANTS, "tiny", micro.PGU)


def fine_tuning(source, **changes):
    return load.load("configs/finetune.py:demo", {"data": str(source)} | FINE_TUNING | changes)


def kept(workdir):
    return sorted(int(path.name) for path in (workdir / "checkpoints").iterdir())


def rank_1(workdir, source, params):
    """Rank-1 of `val` by hand: all features' unit rows side by side, each caption against all."""
    model = DualEncoder(model_file.read(workdir).spec)
    split, tokenizer = builders.open_split(source, "val"), model_file.tokenizer(workdir)
    entries = [split.images[number] for number in range(len(split.images))]
    pixels = np.stack([images.resize(images.decode(e["image"], ""), 32, 16) for e in entries])
    captions = [tokenizer.encode(text, 64) for entry in entries for text in entry["captions"]]
    text = np.full((len(captions), 64), tokenizer.pad, np.int32)
    for row, ids in zip(text, captions, strict=True):
        row[: len(ids)] = ids
    mask = np.arange(64)[None] < np.array([[len(ids)] for ids in captions])

    def encode(method, *inputs):
        apply = jax.jit(lambda *given: model.apply({"params": params}, *given, method=method))
        rows = apply(*inputs)
        assert set(rows) == {"global", "pgu"}
        unit = [np.asarray(r) / np.linalg.norm(r, axis=1, keepdims=True) for r in rows.values()]
        return np.concatenate(unit, axis=1)

    best = (encode("text_features", text, mask) @ encode("image_features", pixels).T).argmax(axis=1)
    owners = np.repeat(split.identities, split.caption_counts)
    return 100 * np.mean(split.identities[best] == owners)


def test_fine_tuning_measures_keeps_the_best_and_goes_on(
    three_splits, small, tmp_path, monkeypatch
):
    """By `val` unless told otherwise (P101).

    An interrupted run ends with the same bits, those of the moving average too (P28).
    """
    straight, broken = tmp_path / "straight", tmp_path / "broken"
    made = fine_tuning(three_splits)
    run.train(made, straight, False)
    rows = metrics.read(straight)
    assert [row["step"] for row in rows] == [2, 4, 6]
    names = {"val/R1", "val/R5", "val/R10", "val/mAP", "val/mINP", "loss/identity", "loss/ranking"}
    assert names | {"loss/pgu_identity", "loss/pgu_ranking"} <= set(rows[0])
    scores = {int(row["step"]): row["val/R1"] for row in rows}
    best = max(reversed(scores), key=scores.get)  # The latest of equals.
    assert kept(straight) == sorted({best, 6})
    with Checkpoints.open_read_only(straight) as checkpoints:
        loaded = checkpoints.restore_params(specs.abstract_params(model_file.read(straight).spec))
        stored = checkpoints.manager.restore(best)["state"]
    for path, leaf in trees.flatten(loaded).items():
        np.testing.assert_array_equal(leaf, trees.flatten(stored["average"])[path])
    assert rank_1(straight, three_splits, loaded) == pytest.approx(scores[best], abs=1e-4)

    real, count = pipeline.Batches.__next__, iter(range(99))

    def killed(batches):
        if next(count) == 5:
            raise Killed
        return real(batches)

    monkeypatch.setattr(pipeline.Batches, "__next__", killed)
    with pytest.raises(Killed):
        run.train(made, broken, False)
    monkeypatch.setattr(pipeline.Batches, "__next__", real)
    run.train(made, broken, True)
    assert kept(broken) == kept(straight)
    ends = []
    for workdir in (straight, broken):
        with Checkpoints.open_read_only(workdir) as checkpoints:
            assert checkpoints.best_step() == best
            state = checkpoints.manager.restore(6)["state"]
        ends.append(trees.flatten({name: state[name] for name in ("params", "average")}))
    for path, leaf in ends[0].items():
        np.testing.assert_array_equal(leaf, ends[1][path], err_msg=path)
    assert any((ends[0][p.replace("average", "params", 1)] != ends[0][p]).any() for p in ends[0])
    timing = "examples_per_second"
    assert [row | {timing: 0} for row in metrics.read(broken)] == [
        row | {timing: 0} for row in rows
    ]


def test_the_papers_protocol_measures_on_test(three_splits, small, tmp_path, monkeypatch):
    """Only where it is asked for by name (P101)."""
    found = []

    def measure(*, state, score, **_):
        found.append(score(state.chosen))
        raise Killed

    monkeypatch.setattr(loop, "train", measure)
    with pytest.raises(Killed):
        run.train(fine_tuning(three_splits, paper_protocol=True), tmp_path, False)
    assert set(found[0]) == {f"test/{name}" for name in ("R1", "R5", "R10", "mAP", "mINP")}
    assert all(0 <= value <= 100 for value in found[0].values())


def test_measuring_needs_its_split_before_anything_is_written(data, tmp_path):
    """Without `val` it is refused, and measured on no other split instead (P61, P101, P103)."""
    made = fine_tuning(data)
    for go in (lambda: run.check(made, None), lambda: run.train(made, tmp_path, False)):
        with pytest.raises(DataError, match="has no split 'val'"):
            go()
    assert not list(tmp_path.iterdir())
    assert run.open_evaluation(fine_tuning(data, evaluate=False)) is None


def test_fine_tuning_starts_from_a_whole_run(data, undisturbed, tmp_path):
    """Of each part it is told where it starts; a run of another size is refused by `check`."""
    changes = {"init": str(undisturbed), "evaluate": False}
    spec, tokenizer = model_file.read(undisturbed).spec, tokenization.load("examples/tokenizer")
    made = fine_tuning(data, **changes)
    run.check(made, None)
    wanted = run.build_spec(
        made, vocab_size=tokenizer.vocab_size, end_token=tokenizer.end, identities=6
    )
    assert (wanted.identities, wanted.mlm, wanted.features) == (6, False, ("global", "pgu"))
    _, weights = run.start_from(made, wanted, tokenizer)
    params = specs.abstract_params(wanted)
    starts = run.origins(made, params, weights, None)
    assert starts.keys() == params.keys()
    for part in ("image_encoder", "text_encoder", "image_head", "text_head"):
        assert starts[part] == f"from {undisturbed}"
    for part in ("pgu", "identity_head", "pgu_identity_head"):
        assert starts[part] == "at random"
    assert set(run.origins(made, params, {}, 7).values()) == {"step 7 of this run"}
    with pytest.raises(ConversionError, match=rf"embedding_dim {spec.embedding_dim}, not 64"):
        run.check(fine_tuning(data, **changes, **{"model.embedding_dim": 64}), None)


@pytest.mark.parametrize(
    "variant",
    [
        "finetune.py:cuhk_pedes",
        "finetune.py:cuhk_pedes,recipe=irra",
        "finetune.py:cuhk_pedes,recipe=rde",
        "finetune.py:cuhk_pedes,recipe=tbps_clip",
        pytest.param("finetune.py:cuhk_pedes,recipe=clip", marks=pytest.mark.slow),
        "pretrain.py:recipe=sdm",
    ],
)
def test_each_recipe_takes_a_step_of_its_full_size(data, tmp_path, variant):
    """In shapes alone, on a batch of the sample; CLIP's tokenizer is one that spells all words."""
    of_clip = "recipe" in variant
    _write_letters(tmp_path)
    changes = {
        "data": str(data),
        "steps": 2,
        "batch_size": 8,
        "evaluate": False,
        "init": "",
        "text.tokenizer": str(tmp_path) if of_clip else "examples/tokenizer",
        "mesh.data": 8,
    }
    if not of_clip:
        changes |= {"init_image": "", "init_text": ""}
    made = load.load(f"configs/{variant}", changes)
    tokenizer, (split, epoch) = tokenization.load(made.text.tokenizer), run.open_data(made)
    spec = run.build_spec(
        made,
        vocab_size=tokenizer.vocab_size,
        end_token=tokenizer.end,
        identities=split.identity_count,
    )
    batch = run.build_batches(made, split, tokenizer, spec, epoch, make_mesh())[0]
    if "irra" in variant or "rde" in variant:
        masked = batch["masked_text" if "irra" in variant else "text"]
        assert (masked == tokenizer.mask).any()
    model = DualEncoder(spec)
    transform, train_step = run.build_step(made, model, 2)

    def start(seed):
        key, shapes = jax.random.key(seed), specs.abstract_batch(spec, 8)
        example = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), shapes)
        params = nn.meta.unbox(model.init(key, example, train=False))["params"]
        return state.TrainState(np.int32(0), params, transform.init(params), None, key)

    before = jax.eval_shape(start, 0)
    after, found = jax.eval_shape(train_step, before, batch)
    assert jax.tree.structure(after) == jax.tree.structure(before)
    expected = {name for name, weight in vars(made.loss).items() if weight} & {
        "contrastive", "mlm", "identity", "ranking", "sdm", "tal", "n_itc", "r_itc", "c_itc"
    }  # fmt: skip
    assert {f"loss/{name}" for name in expected} <= found.keys()


def _write_letters(directory):
    """A tokenizer as CLIP's, without a mask token, whose byte pairs are single characters."""
    around = ("<|startoftext|>", "<|endoftext|>")
    characters = [chr(number) for number in range(33, 127)]
    pieces = [*characters, *(f"{each}</w>" for each in characters), *around]
    ids = {piece: number for number, piece in enumerate(pieces)}
    made = tokenizers.Tokenizer(
        tokenizers.models.BPE(ids, [], unk_token=around[1], end_of_word_suffix="</w>")
    )
    made.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    made.add_special_tokens(list(around))
    made.post_processor = tokenizers.processors.TemplateProcessing(
        single=f"{around[0]} $A {around[1]}", special_tokens=[(name, ids[name]) for name in around]
    )
    made.save(str(directory / "tokenizer.json"))
