"""Commands that run once."""

import json
import subprocess

import pytest
import workshop


@pytest.fixture
def shop(tmp_path, monkeypatch):
    """A workshop whose commands are noted and not run; those of "broken" fail."""
    made = []

    def run(command, cache):
        made.append(command)
        if "broken" in command[-2]:
            raise SystemExit(2)

    monkeypatch.setattr(workshop, "run", run)
    return workshop.Workshop(tmp_path), made


def test_a_command_runs_once_and_again_when_it_changes(shop):
    place, made = shop
    for steps in (5, 5, 6, 5):
        place.launch("a/b", "train", "pretrain.py:demo", data="x", steps=steps, model__pgu="")
    assert [command[4] for command in made] == [f"--config.steps={n}" for n in (5, 6, 5)]
    assert made[0][1:3] == ["launch/train.py", "--config=configs/pretrain.py:demo"]
    assert made[0][5:] == ["--config.model.pgu=", f"--workdir={place.root}/a/b", "--overwrite"]


def test_what_failed_runs_again(shop):
    place, made = shop
    for _ in range(2):
        with pytest.raises(SystemExit):
            place.launch("broken", "train", "pretrain.py:demo", data="x")
    assert len(made) == 2 and not list(place.root.glob("*.json"))


def test_seconds_are_of_what_was_asked_for_whoever_made_it(tmp_path):
    first = workshop.Workshop(tmp_path)
    first.once("a", "so", lambda: None)
    first.once("b", "so", lambda: None)
    note = tmp_path / "a.done.json"
    note.write_text(json.dumps(json.loads(note.read_text()) | {"seconds": 12.5}))
    second = workshop.Workshop(tmp_path)
    second.once("a", "so", lambda: pytest.fail("made again"))
    assert second.seconds == {"a": 12.5}


def test_a_command_that_fails_ends_the_script(tmp_path):
    with pytest.raises(SystemExit) as caught:
        workshop.run(["python", "-c", "raise SystemExit(7)"], tmp_path)
    assert caught.value.code == 7


def test_code_is_a_commit_and_whether_sources_differ_from_it(tmp_path):
    def git(*command):
        who = ["-c", "user.name=A", "-c", "user.email=a@example.org"]
        made = subprocess.run(["git", "-C", tmp_path, *who, *command], capture_output=True)
        return made.stdout.decode().strip()

    git("init")
    module, figures = tmp_path / "benchmarks/a.py", tmp_path / "benchmarks/a.json"
    module.parent.mkdir()
    module.write_text("1")
    figures.write_text("1")
    git("add", "-A")
    git("commit", "-m", "All")
    assert workshop.code(tmp_path) == git("rev-parse", "HEAD")[:10]
    figures.write_text("2")
    assert not workshop.code(tmp_path).endswith("+")
    module.write_text("2")
    assert workshop.code(tmp_path) == git("rev-parse", "HEAD")[:10] + "+"
