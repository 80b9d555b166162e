"""What a run writes beside its checkpoints, on a store as `gs://` is: objects, never added to."""

from pathlib import Path
from unittest import mock

import pytest
from etils import epath
from etils.epath import backend
from fsspec.implementations.memory import MemoryFileSystem

from tests.training import micro
from unipt_jax.config import command_line, schema
from unipt_jax.core import files
from unipt_jax.core.errors import CheckpointError, ConfigError, DataError
from unipt_jax.data import builders, tokenization
from unipt_jax.training import checkpoints, curves, loop, metrics, model_file

RUN = "gs://bucket/run"
EXAMPLES = Path(__file__).parents[2] / "examples"


class Bucket(MemoryFileSystem):
    """Takes whole objects: opening one to add to it empties it, as gcsfs does."""

    cachable = False

    @classmethod
    def _strip_protocol(cls, path):
        return super()._strip_protocol("/" + str(path).removeprefix("gs://").lstrip("/"))

    def _open(self, path, mode="rb", **options):
        return super()._open(path, mode.replace("a", "w"), **options)


@pytest.fixture
def bucket(monkeypatch, tmp_path):
    """An empty bucket behind gs://, and an empty working directory that must remain so."""
    monkeypatch.setattr(Bucket, "store", {})
    monkeypatch.setattr(Bucket, "pseudo_dirs", [""])
    monkeypatch.setattr(backend.fsspec_backend, "fs", lambda path: Bucket())
    monkeypatch.chdir(tmp_path)
    yield epath.Path("gs://bucket")
    assert not list(tmp_path.iterdir())


def row(step):
    return {"step": float(step), "loss": 1.0 / step, "learning_rate": 1e-3}


def test_metrics_keep_every_row_and_take_back_those_after_the_checkpoint(bucket):
    with mock.patch("tensorboardX.event_file_writer.EventsWriter") as events:
        for first, last in ((0, 3), (2, 4)):
            with metrics.Writer(RUN, step=first) as writer:
                for step in range(first + 1, last + 1):
                    writer.write(row(step))
    assert [each["step"] for each in metrics.read(RUN)] == [1, 2, 3, 4]
    assert events.call_args.args == (f"{RUN}/tensorboard/events", "")


def test_unreadable_records_are_listed_once_each(bucket):
    """Whatever their paths hold: U+2028 and others end a line of text, not one of JSON (P08)."""
    path = bucket / "run" / "quarantine.jsonl"
    for new in ({7, 3}, {5}, set()):
        loop._note_bad_records(new, loop._read_bad_records(path), path, "{}\u2028\x85.jpg".format)
    known = loop._read_bad_records(path)
    assert [known[record]["image"] for record in (3, 7, 5)] == [
        f"{record}\u2028\x85.jpg" for record in (3, 7, 5)
    ]
    assert list(known) == [3, 7, 5]


def test_model_tokenizer_and_curve_come_back(bucket):
    tokenizer = tokenization.load(str(EXAMPLES / "tokenizer"))
    written = model_file.ModelFile(micro.model().spec, "float32", 12)
    written.write(RUN, tokenizer)
    assert model_file.exists(RUN) and model_file.read(RUN) == written
    assert model_file.tokenizer(RUN).fingerprint == tokenizer.fingerprint
    curves.plot([row(1), row(2)], f"{RUN}/loss.png")
    assert (bucket / "run" / "loss.png").read_bytes().startswith(b"\x89PNG")


def test_a_work_directory_is_claimed_kept_and_emptied(bucket):
    config = {"stage": "pretrain"}
    with files.claim_workdir(RUN) as claimed:
        files.write_json(claimed / files.CONFIG_FILE, config)
    (bucket / "run" / "checkpoints" / "2").mkdir(parents=True)
    (bucket / "run" / "checkpoints" / "2" / "state").write_text("weights")
    with pytest.raises(ConfigError, match="pass --resume"), files.claim_workdir(RUN):
        pass
    with files.claim_workdir(RUN, resume=True):
        pass
    assert {path.name for path in (bucket / "run").iterdir()} == {"config.json", "checkpoints"}
    with files.claim_workdir(RUN, overwrite=True):
        pass
    assert not list((bucket / "run").iterdir())


@pytest.mark.parametrize("name", ["state/_METADATA", "meta/metadata"])
def test_a_step_that_is_not_yet_whole_hinders_nobody(bucket, name):
    """It has its name from the beginning; its last file, written last, makes it a step (P38)."""
    steps = bucket / "run" / "checkpoints"
    for path, content in {
        "2/commit_success.txt": "",
        "2/_CHECKPOINT_METADATA": "{}",
        "2/meta/metadata": '{"score": 1.5}',
        "2/metrics/metrics": '{"score": 1.5}',
        f"4/{name}": "",
    }.items():
        (steps / path).parent.mkdir(parents=True, exist_ok=True)
        (steps / path).write_text(content)
    checkpoints._require_scores(steps)
    assert checkpoints._finalized(steps) == [2]
    (steps / "2/metrics/metrics").write_text('{"score": 2.5}')
    with pytest.raises(CheckpointError, match=r"/2 is damaged.* another score .* leaves none$"):
        checkpoints._require_scores(steps)


@pytest.mark.parametrize("inner", ["", "/data"])
def test_overwrite_does_not_remove_what_is_read(bucket, inner):
    (bucket / "run" / "data").mkdir(parents=True)
    config = schema.build({"stage": "pretrain", "data": [RUN + inner]})
    with pytest.raises(ConfigError, match=rf"would remove data={RUN}{inner}, which lies in"):
        command_line._require_other_inputs(config, RUN)
    command_line._require_other_inputs(config, "gs://bucket/another")
    command_line._require_other_inputs(config, "bucket/run")


def test_paths_are_absolute_as_they_are(bucket, tmp_path):
    assert str(files.absolute(RUN)) == RUN
    assert str(files.absolute("run")) == str(tmp_path / "run")


def test_data_sets_are_written_to_disks_alone(bucket):
    with pytest.raises(ConfigError, match=r"run: files of this kind .* to disks alone"):
        command_line._require_place(epath.Path(RUN), remote=False)
    command_line._require_place(epath.Path(RUN), remote=True)


def test_a_store_that_cannot_be_reached_is_told_in_one_line(bucket, monkeypatch):
    def without_gcsfs(path):
        raise ImportError("Please install gcsfs")

    monkeypatch.setattr(backend.fsspec_backend, "fs", without_gcsfs)
    with pytest.raises(DataError, match=r"run cannot be reached: Please .* 'unipt-jax\[gcs\]'"):
        builders.read_manifest(RUN)
