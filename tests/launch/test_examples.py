"""The cluster examples: what they run is a command of ours, with fields that exist."""

import re
import shlex
import subprocess
from pathlib import Path

import pytest
import yaml

from unipt_jax.config import command_line, load

DIRECTORY = Path("launch/examples")


def commands(path):
    """The arguments of launch/train.py in a file."""
    text = path.read_text()
    if path.suffix == ".yaml":
        for document in yaml.safe_load_all(text):
            if document["kind"] == "Job":
                (container,) = document["spec"]["template"]["spec"]["containers"]
                yield container["command"][2:]
    else:
        for found in re.findall(r"launch/train\.py ((?:.*\\\n)*.*)", text):
            yield shlex.split(found.replace("\\\n", " ").rstrip('"'))


@pytest.mark.parametrize("path", sorted(DIRECTORY.iterdir()), ids=lambda path: path.name)
def test_examples_run_a_valid_command(path, monkeypatch):
    found = list(commands(path))
    assert len(found) == 1
    arguments = [re.sub(r"\$\{?[A-Z_]+(:-)?\}?", "any", word) for word in found[0]]
    arguments = [re.sub(r"\$\(\w+\)", "3", word) for word in arguments if word != "any"]
    flags, overrides = command_line.parse("", arguments)
    made = load.load(flags.config, overrides)
    assert made.dtype == "bfloat16" and made.mesh.data == -1 and made.data
    if path.suffix == ".yaml":
        assert (flags.coordinator, flags.processes, flags.process) == ("unipt-0.unipt:1234", 4, 3)
    else:
        assert not flags.coordinator
        assert subprocess.run(["bash", "-n", path]).returncode == 0
