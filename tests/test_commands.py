"""Every command of the README, of docs/ and of the benchmarks' results, as it stands there.

Those of launch/ are run at a small size, and so is Python. Scripts of benchmarks/ parse their
arguments, which takes minutes less than to measure; targets of make are looked up with all that
they call, and packages of pip with their extras.

A command of launch/ is changed in three ways alone. Placeholders become small data, encoders keep
their names but become tiny, and the fields of `SMALL` make one step of what takes hours.
`runs/NAME` and `data/NAME` are what the documented command with that work directory makes of it.
What cannot run here is named in `PARSED`, with the reason; its arguments are checked.
"""

import argparse
import dataclasses
import importlib.metadata
import json
import re
import runpy
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import jax
import pyarrow as pa
import pytest

from tests import documents
from tests.training import micro
from tests.training.test_conversion import export_clip
from unipt_jax.config import command_line, load
from unipt_jax.models import variants
from unipt_jax.search import app

COMMANDS = {it.words: it for page in documents.pages() for it in documents.commands(page)}
BLOCKS = [block for page in documents.pages() for block in documents.blocks(page)]
CROPS = sorted(Path("examples/pedestrians/imgs").glob("*_0*.jpg"))[::16]
CAPTIONS = ["A man in a red coat.", "A woman walks with a bag."]

# ---------------------------------------------------------------------------- small, not large

TRAINING = {
    "batch_size": "8",
    "steps": "1",
    "log_every": "1",
    "workers": "0",
    "loss.negatives": "0",
    "image.height": "16",
    "image.width": "16",
    "text.tokenizer": "examples/tokenizer",
    "text.length": "24",
    "text.buckets": "()",
    "model.embedding_dim": "16",
    "accumulate": "1",
    "mesh.fsdp": "1",
    "compute.cache": "",
    "evaluate": "False",
    # What differs in these alone need not be compiled again.
    "dtype": "float32",
    "optimizer.learning_rate": "1e-4",
    # What stands there is the name of weights on the hub.
    "init": "",
    "init_image": "",
    "init_text": "",
}
SMALL = {
    "prepare": {"tokenizer": "examples/tokenizer", "count": "4", "height": "32", "width": "16"},
    "caption": {"tokenizer": "examples/tokenizer", "device_batch_size": "4"},
    "train": TRAINING,
    "evaluate": {"batch_size": "8"},
    "convert": {},
    "export": {},
    "search": {"batch_size": "4"},
}
# What cannot run here, and why.
PARSED = {
    "--config.beam_runner=DirectRunner": "Beam has an environment of its own: make test-beam",
    "launch/local.py": "processes of their own, which start anew: tests/multihost",
}
# What else a word stands for; data sets and runs come from the commands that make them.
STANDS_FOR = {
    ("--config.data", "DIR"): "data/cuhk_pedes",
    ("--config.checkpoint", "DIR"): "runs/vit_b16",
    ("--config.init", "PRETRAINED"): "runs/vit_b16",
}


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    """Gives each name of an encoder one that is compiled in a second, for one device."""
    sizes = {"hidden_size": 16, "layers": 1, "heads": 2, "mlp_size": 16}
    one = jax.devices()[:1]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(jax, "devices", lambda: one)
        patch.setattr(jax, "local_devices", lambda: one)
        for name, spec in variants.IMAGE_VARIANTS.items():
            small = dataclasses.replace(spec, image_size=(16, 16), patch_size=8, **sizes)
            patch.setitem(variants.IMAGE_VARIANTS, name, small)
        for name, spec in variants.TEXT_VARIANTS.items():
            patch.setitem(variants.TEXT_VARIANTS, name, dataclasses.replace(spec, **sizes))
        patch.setitem(variants.PGU_VARIANTS, "paper", micro.PGU)
        # tests/search/test_app.py visits the page. And the user's cache is left alone.
        patch.setattr(app, "serve", lambda gallery, **_: None)
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        blocks = variants.CrossModalSpec(layers=1, heads=2)
        patch.setattr(variants, "CrossModalSpec", lambda: blocks)
        # What runs once need not run fast.
        jax.config.update("jax_disable_most_optimizations", True)
        yield
        jax.config.update("jax_disable_most_optimizations", False)
        jax.clear_caches()


class Shell:
    """Runs documented commands, each once."""

    def __init__(self, root):
        self.root, self.made = root, {}
        self.makers = {}
        for words in COMMANDS:
            for word in words:
                if word.startswith(("--workdir=data/", "--workdir=runs/")):
                    self.makers[word.removeprefix("--workdir=")] = words

    def run(self, words):
        """Returns the work directory of a command of launch/."""
        if words not in self.made:
            arguments = self.filled(words)
            self.made[words] = self.root / f"{len(self.made)}"
            script(words[1], [*arguments, f"--workdir={self.made[words]}"])
        return self.made[words]

    def place(self, flag, name):
        """Returns what a placeholder stands for: a path."""
        name = STANDS_FOR.get((flag, name), name)
        if name in self.makers:
            return self.run(self.makers[name])
        path = self.root / name
        assert path.exists(), f"{flag}={name} stands for nothing"
        return path

    def filled(self, words):
        """Returns a command's arguments with small data and sizes, and no work directory."""
        stage = Path(words[1]).stem
        flags, overrides = command_line.parse("", words[2:], claims=stage != "search")
        load.load(flags.config, overrides)  # As it stands there, before anything is replaced.
        path, variant = load.split_spec(flags.config)
        layout = variant[0] if stage == "prepare" else stage
        for at, word in enumerate(variant):
            if word.startswith("init=runs/"):
                variant[at] = f"init={self.place('init', word.removeprefix('init='))}"
        given = {}
        for name, value in overrides.items():
            if name == "source":
                value = self.place("--config.source", f"sources/{layout}")
            elif name == "images":
                value = self.root / "images"
            elif name in ("picture", "sheet"):
                value = CROPS[0] if name == "picture" else self.root / value
            elif name in ("data", "checkpoint", "init", "init_image", "lexicon"):
                each = value.split(",")
                value = ",".join(str(self.place(f"--config.{name}", it)) for it in each)
            given[name] = value
        started = {name for name in given if name.startswith("init")}
        started |= {"init" for word in variant if word.startswith("init=/")}
        small = {name: it for name, it in SMALL[stage].items() if name not in started}
        if stage == "caption":
            small["clip"] = self.root / "clip"
        if "demo" in variant and stage == "search":
            small["images"] = self.root / "images"
        given |= small
        fields = [f"--config.{name}={value}" for name, value in given.items()]
        return [f"--config={path}:{','.join(variant)}".rstrip(":"), *fields]


@pytest.fixture(scope="module")
def shell(tmp_path_factory, tiny):
    root = tmp_path_factory.mktemp("shell")
    make_sources(root / "sources")
    (root / "clip").mkdir()
    export_clip(root / "clip")
    (root / "sources/convert").symlink_to(root / "clip")
    (root / "images").mkdir()
    for crop in CROPS[:4]:
        shutil.copy(crop, root / "images")
    (document,) = (
        it.text for it in BLOCKS if it.page == "docs/attributes.md" and it.language == "json"
    )
    (root / "german.json").write_text(document)
    return Shell(root)


def document(page):
    """Returns the JSON of a page that shows some."""
    (block,) = (it for it in BLOCKS if (it.page, it.language) == (page, "json"))
    return block.text


def make_sources(root):
    """Writes a few crops in each data set's own layout: six persons, of which two are tested."""
    splits = ["train"] * 4 + ["val", "test"]
    records = [
        {"file_path": crop.name, "captions": CAPTIONS, "id": at % 6, "split": splits[at % 6]}
        for at, crop in enumerate(CROPS)
    ]
    files = {"cuhk_pedes": "reid_raw.json", "icfg_pedes": "ICFG-PEDES.json"}
    for name, file in (files | {"rstp_reid": "data_captions.json"}).items():
        shutil.copytree(CROPS[0].parent, root / name / "imgs")
        (root / name / file).write_text(json.dumps(records))
    (root / "luperson_t").mkdir()
    columns = {
        "image": [crop.read_bytes() for crop in CROPS],
        "caption": [CAPTIONS] * len(CROPS),
        "image_id": [crop.name for crop in CROPS],
    }
    table, path = pa.table(columns), str(root / "luperson_t/a.arrow")
    with pa.OSFile(path, "wb") as file, pa.ipc.new_file(file, table.schema) as writer:
        writer.write_table(table)
    pairs = document("docs/data.md")
    for record in json.loads(pairs):
        path = root / "pairs" / record["image"]
        path.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(CROPS[0], path)
    (root / "pairs/pairs.json").write_text(pairs)


def script(path, arguments):
    """Runs a script of launch/ in this process."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", [path, *map(str, arguments)])
        with pytest.raises(SystemExit) as ended:
            runpy.run_path(path, run_name="__main__")
    assert ended.value.code == 0


# ---------------------------------------------------------------------------- each kind


def launch(words, shell):
    """Runs it, or, if it cannot run here, checks its configuration."""
    if "--help" in words:
        script(words[1], words[2:])
        return
    if not any(word in PARSED for word in words):
        shell.run(words)
        return
    inner = words[words.index("launch/train.py") + 1 :] if "launch/local.py" in words else words[2:]
    flags, overrides = command_line.parse("", inner)
    load.load(flags.config, overrides)


class AcceptedError(Exception):
    """The arguments were parsed, and nothing was measured."""


def benchmark(words, shell):
    """Lets the script parse its arguments; what it measures takes minutes (test_benchmarks.py)."""
    pytest.importorskip("torch")
    parse = argparse.ArgumentParser.parse_args

    def parse_args(parser, *arguments):
        parse(parser, *arguments)
        raise AcceptedError

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(argparse.ArgumentParser, "parse_args", parse_args)
        patch.setattr(sys, "argv", list(words[1:]))
        with pytest.raises(AcceptedError):
            runpy.run_path(words[1], run_name="__main__")


def make(words, shell):
    """The target is there, and so are the scripts that it calls, with arguments that they know."""
    done = subprocess.run(["make", "-n", *words[1:]], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    for line in done.stdout.splitlines():
        parts = line.split()
        if len(parts) > 1 and parts[0].endswith("python") and parts[1].endswith(".py"):
            benchmark(tuple(parts), shell)


def pip(words, shell):
    """The package has the extras that are named."""
    for word in words[2:]:
        name, _, extras = word.rstrip("]").partition("[")
        if name in ("unipt-jax", "."):
            known = tomllib.loads(Path("pyproject.toml").read_text())["project"]
            known = known["optional-dependencies"]
        else:
            known = importlib.metadata.metadata(name).get_all("Provides-Extra")
        assert set(filter(None, extras.split(","))) <= set(known)


KINDS = {
    r"(\.venv/bin/)?python launch/\w+\.py": launch,
    r"python benchmarks/\w+\.py": benchmark,
    r"make [\w-]+": make,
    r"pip install": pip,
}


# The paper's trainings, each compiled for itself, wait for `make test-slow`.
SLOW = [
    words
    for words, it in COMMANDS.items()
    if (it.page == "docs/paper.md" and words[1] in ("launch/train.py", "launch/evaluate.py"))
    or (it.page, words[1]) == ("docs/devices.md", "launch/train.py")
]


@pytest.mark.parametrize(
    "command",
    [
        pytest.param(it, marks=[pytest.mark.slow] if it.words in SLOW else [])
        for it in COMMANDS.values()
    ],
    ids=lambda it: f"{it.page}:{it.line} {it.words[1]}",
)
def test_each_command_runs(command, shell):
    """Those of the first page, too, which need nobody's weights or paths (P112)."""
    kinds = [run for start, run in KINDS.items() if re.match(start, " ".join(command.words))]
    assert len(kinds) == 1, f"nothing here runs {' '.join(command.words)}"
    kinds[0](command.words, shell)


@pytest.mark.parametrize(
    "block",
    [block for block in BLOCKS if block.language == "python"],
    ids=lambda it: f"{it.page}:{it.line}",
)
def test_each_piece_of_python_runs(block, shell):
    if "transformers" in block.text:
        pytest.importorskip("torch")
    code = block.text
    for name, path in {
        "runs/demo/pretrain": lambda: shell.run(shell.makers["runs/vit_b16"]),
        "runs/demo/finetune": lambda: shell.run(shell.makers["runs/cuhk_pedes"]),
        "person.jpg": lambda: CROPS[0],
        "german.json": lambda: shell.root / "german.json",
        "DIR/model": lambda: exported(shell) / "model",
    }.items():
        if f'"{name}"' in code:
            code = code.replace(f'"{name}"', repr(str(path())))
    exec(compile(code, f"{block.page}:{block.line}", "exec"), {})


def exported(shell):
    """The work directory of the documented export."""
    return shell.run(next(words for words in COMMANDS if words[1] == "launch/export.py"))


def test_every_block_says_what_it_is():
    """Else a command could hide in it."""
    known = {"sh", "python", "json", "text"}
    assert [it for it in BLOCKS if it.language not in known and "{" not in it.language] == []


def test_the_readme_shows_the_file_that_is_prepared():
    assert document("README.md") == document("docs/data.md")


@pytest.mark.parametrize("words", SLOW, ids=lambda it: " ".join(it[2:4]))
def test_what_is_run_by_make_test_slow_has_a_valid_configuration(words):
    flags, overrides = command_line.parse("", words[2:])
    load.load(flags.config, overrides)


def test_what_is_not_run_is_still_documented():
    words = {word for found in COMMANDS for word in found}
    assert set(PARSED) <= words
