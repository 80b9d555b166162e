"""Commands of benchmarks that are noted, and not run."""

import json
from pathlib import Path

import workshop

from unipt_jax.config import command_line, load


def note_commands(monkeypatch, root, evaluation):
    """Returns a dictionary that fills with each command's configuration, by directory below `root`.

    `evaluation` gives what a command that evaluates is to find, for its configuration.
    """
    made = {}

    def noted(command, cache):
        flags, overrides = command_line.parse("", command[2:])
        place = Path(flags.workdir)
        made[str(place.relative_to(root))] = config = load.load(flags.config, overrides)
        if config.stage == "evaluate":
            place.mkdir(parents=True)
            (place / "evaluation.json").write_text(json.dumps(evaluation(config)))

    monkeypatch.setattr(workshop, "run", noted)
    return made
