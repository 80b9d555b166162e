"""The demo's commands: what each stage reads, and that none reads the test's identities."""

import json
import shlex

import pytest

from benchmarks import stages
from unipt_jax.config import command_line, load

COMMANDS = stages.commands(stages.Path("runs/any"), 3)


def parsed(command):
    flags, overrides = command_line.parse("", command[2:])
    return flags, load.load(flags.config, overrides)


@pytest.mark.parametrize("command", COMMANDS, ids=lambda command: shlex.join(command[1:4])[:60])
def test_each_command_has_a_valid_configuration(command):
    flags, config = parsed(command)
    assert flags.overwrite and flags.workdir.startswith("runs/any/")
    if hasattr(config, "seed") and config.stage in ("pretrain", "finetune", "caption"):
        assert config.seed == 3


def test_stages_differ_in_what_they_start_from_alone():
    made = {}
    for command in COMMANDS:
        flags, config = parsed(command)
        made[flags.workdir.removeprefix("runs/any/")] = config
    assert made["pretrain"].data == ("runs/any/drawn", "runs/any/captions")
    tuned, alone, still = (made[name] for name in ("finetune", "finetune_alone", "random"))
    assert tuned.data == alone.data == still.data == ("runs/any/data", "runs/any/drawn")
    assert (tuned.init, alone.init, still.init) == ("runs/any/pretrain", "", "")
    assert tuned.steps == alone.steps > still.steps == 1
    for name in stages.STAGES:
        assert made[stages.evaluation(name)].checkpoint == f"runs/any/{name}"
        assert made[stages.evaluation(name)].split == "test"


def test_every_stage_reads_by_one_tokenizer():
    """Its tokens are stored with the data sets, for training to read."""
    configs = [parsed(command)[1] for command in COMMANDS]
    of_data = {it.tokenizer for it in configs if it.stage in ("prepare", "caption")}
    of_models = {it.text.tokenizer for it in configs if it.stage in ("pretrain", "finetune")}
    assert of_data == of_models == {"examples/tokenizer"}


def test_identities_of_the_test_are_in_no_other_split():
    with open("examples/pedestrians/reid_raw.json") as file:
        records = json.load(file)
    of = {split: {r["id"] for r in records if r["split"] == split} for split in ("train", "test")}
    assert len(of["test"]) == 5 and not of["train"] & of["test"]
    texts = {
        split: {text for r in records if r["split"] == split for text in r["captions"]}
        for split in of
    }
    assert not texts["train"] & texts["test"]


def test_the_table_has_means_and_ranges():
    found = [
        {
            stage: {"text_to_image": {"R1": base + at, "mAP": 2 * base}}
            for at, stage in enumerate(stages.STAGES)
        }
        for base in (10.0, 20.0)
    ]
    columns = [list(column.cells) for column in stages.table(found).columns]
    assert columns[1] == ["15.0", "16.0", "17.0", "18.0"]
    assert columns[2][0] == "10.0-20.0" and columns[3] == ["30.0"] * 4
