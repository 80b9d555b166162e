"""Evaluation by two processes on one machine, against one process that has both devices."""

import json

import pytest

from tests.launch.test_caption import contents
from unipt_jax.data import annotations, builders


@pytest.fixture(scope="module")
def damaged(tmp_path_factory):
    """The sample's test split, of which one image cannot be read."""
    directory = tmp_path_factory.mktemp("damaged")
    records, _ = annotations.read("cuhk_pedes", "examples/pedestrians")
    records = [record for record in records if record.split == "test"]
    source = "examples/pedestrians"
    builders.write(
        records,
        source=source,
        name="cuhk_pedes",
        workdir=directory,
        tokenizer="",
        quarantined=0,
        notices={},
        read=lambda record: (
            b"no image" if record is records[7] else builders.read_image(record, source)
        ),
    )
    return directory


def test_two_processes_measure_what_one_does(clip, damaged, finish, tmp_path):
    """To the byte, with batches that are not full and an image that only one of them reads.

    P29, P83: nothing is dropped.
    """
    for processes in (1, 2):
        code, said = finish(
            "launch/evaluate.py",
            "--config=configs/evaluate.py:demo",
            f"--config.data={damaged}",
            f"--config.checkpoint={clip}",
            "--config.batch_size=50",
            "--config.on_bad_record=quarantine",
            "--config.rerank=True",
            f"--workdir={tmp_path / str(processes)}",
            processes=processes,
            devices=2 // processes,
        )
        assert code == 0 and said.count("report:") == 1, said
    assert contents(tmp_path / "1") == contents(tmp_path / "2")
    found = json.loads((tmp_path / "2" / "evaluation.json").read_text())
    assert (found["queries"], found["gallery"], found["quarantined"]) == (358, 179, 1)
