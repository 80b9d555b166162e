"""Each message that docs/troubleshooting.md quotes, provoked: it is what the program prints."""

import json
import re
import runpy
import shutil
import sys

import pytest

from tests import documents
from tests.test_commands import CROPS, TRAINING, tiny  # noqa: F401
from unipt_jax.config import load, schema

PAGE = documents.ROOT / "docs/troubleshooting.md"
MESSAGES = [block.text.strip() for block in documents.blocks(PAGE)]
SPLITS = ["train"] * 4 + ["val", "test"]


@pytest.fixture
def prepare(call, tmp_path):
    """Prepares a few crops after something was done to their annotations or images."""

    def prepare(change=None, *arguments, file="reid_raw.json", encoding="utf-8", images=True):
        source = tmp_path / "source"
        (source / "imgs/Market").mkdir(parents=True)
        for crop in CROPS if images else ():
            shutil.copy(crop, source / "imgs/Market")
        records = [
            {"file_path": f"Market/{it.name}", "captions": ["A man."], "id": at % 6}
            | {"split": SPLITS[at % 6]}
            for at, it in enumerate(CROPS)
        ]
        if change:
            change(records)
        (source / file).write_text(json.dumps(records), encoding=encoding)
        where = [f"--config.source={source}", "--config.tokenizer="]
        return call("prepare", "cuhk_pedes", *where, *arguments, workdir=tmp_path / "prepared")

    return prepare


@pytest.fixture
def call(capfd, tmp_path):
    """Runs a script of launch/; returns what it printed."""

    def call(script, variant, *arguments, workdir=tmp_path / "run"):
        config = {"train": "pretrain"}.get(script, script)
        file = f"configs/{'finetune' if 'cuhkpedes' in variant else config}.py"
        argv = [f"launch/{script}.py", f"--config={file}:{variant}", *map(str, arguments)]
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(sys, "argv", [*argv, f"--workdir={workdir}"])
            with pytest.raises(SystemExit):
                runpy.run_path(argv[0], run_name="__main__")
        return "\n".join(capfd.readouterr())

    return call


@pytest.fixture
def train(call, data):
    """Trains on the sample, with what differs from `TRAINING`."""

    def train(variant="", *flags, workdir=None, **fields):
        fields = {name.replace("__", "."): value for name, value in fields.items()}
        values = {"data": data} | TRAINING | fields
        arguments = [f"--config.{name}={value}" for name, value in values.items()]
        where = {"workdir": workdir} if workdir else {}
        return call("train", variant, *arguments, *flags, **where)

    return train


# ---------------------------------------------------------------------------- what is done wrong


def without_split(records):
    for record in records:
        del record["split"]


def in_two_splits(records):
    records[0]["id"] = 5


PROVOKED = {
    "has no reid_raw.json": lambda it: it.prepare(file="other.json"),
    "no record has the field 'split'": lambda it: it.prepare(without_split),
    "missing images": lambda it: it.prepare(images=False),
    "cannot be decoded": lambda it: it.prepare(it.cut),
    "is also in split": lambda it: it.prepare(in_two_splits),
    "is not UTF-8": lambda it: it.prepare(encoding="utf-16"),
    "caption also describes": lambda it: it.prepare(),
    "lerning_rate": lambda it: it.train(optimizer__lerning_rate=1),
    "has no variant": lambda it: it.train("cuhkpedes"),
    "is not empty": lambda it: it.train(workdir=it.used()),
    "differs from": lambda it: it.train(
        "", "--resume", workdir=it.used(), optimizer__learning_rate=1.0
    ),
    "error: init_image": lambda it: it.train(init_image="google/vit-base-patch16-224"),
    "tokenizer ... cannot be loaded": lambda it: it.train(text__tokenizer="bert-base-uncased"),
    "is no prepared data set": lambda it: it.train(data="examples/pedestrians"),
    "format 1": lambda it: it.train(data=it.old()),
    "stores pixels": lambda it: it.train(data=it.pixels(), image__height=64, image__width=32),
    "has no split 'val'": lambda it: it.train(evaluate=True),
    "does not fit model": lambda it: it.train(init=it.converted()),
    "mesh data=8": lambda it: it.train(mesh__data=8),
    "NaN": lambda it: it.train(steps=20, optimizer__learning_rate=1e30),
    "error: ... is neither": lambda it: it.call(
        "evaluate", "", "--config.data=x", "--config.checkpoint=runs/nothing"
    ),
}


class Mistakes:
    """What the lambdas above need."""

    def __init__(self, call, prepare, train, data, place):
        self.call, self.prepare, self.train = call, prepare, train
        self.data, self.place = data, place

    def cut(self, records):
        """Takes the end of an image away."""
        path = self.place / "source/imgs" / records[0]["file_path"]
        path.write_bytes(path.read_bytes()[:300])

    def used(self):
        """Returns the work directory of a run that has just begun."""
        values = {"data": str(self.data)} | TRAINING | {"optimizer.learning_rate": "1e-05"}
        made = schema.to_dict(load.load("configs/pretrain.py", values))
        (self.place / "used").mkdir()
        (self.place / "used/config.json").write_text(json.dumps(made))
        return self.place / "used"

    def old(self):
        """Returns a data set of an earlier version."""
        shutil.copytree(self.data, self.place / "old")
        path = self.place / "old/manifest.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | {"format": 1}))
        return path.parent

    def pixels(self):
        """Returns a data set whose images are stored as 32x16."""
        self.prepare(None, "--config.pixels=32,16")
        return self.place / "prepared"

    def converted(self):
        """Returns a model that is another one."""
        source = "--config.source=examples/small_clip"
        self.call("convert", "", source, workdir=self.place / "converted")
        return self.place / "converted"


@pytest.mark.usefixtures("tiny")
@pytest.mark.parametrize("message", MESSAGES)
def test_each_message_is_printed(message, call, prepare, train, data, tmp_path):
    (provoke,) = (it for part, it in PROVOKED.items() if part in message)
    printed = provoke(Mistakes(call, prepare, train, data, tmp_path))
    pattern = ".*".join(map(re.escape, message.split("...")))
    assert re.search(pattern, printed), printed


def test_every_mistake_is_documented():
    assert len(PROVOKED) == len(MESSAGES)


def test_the_readme_quotes_some_of_them():
    section = documents.ROOT.joinpath("README.md").read_text().partition("## Troubleshooting")[2]
    quoted = re.findall(r"^\| `(.*?)` \|", section.partition("\n## ")[0], re.MULTILINE)
    assert len(quoted) > 4
    for words in quoted:
        pattern = ".*".join(map(re.escape, words.split("...")))
        assert any(re.search(pattern, message) for message in MESSAGES), words
