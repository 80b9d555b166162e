"""Exit codes, one line for a mistake, and the configuration beside the results."""

import errno
import io
import json
import subprocess
import sys

import pytest

from unipt_jax.config import command_line, load, schema
from unipt_jax.core.errors import ConfigError, DataError, DivergenceError, WorkerError

DOC = """Does something.

  python launch/it.py --config=FILE --workdir=DIR
"""
FILE = """
from ml_collections import ConfigDict

VARIANTS = {"demo": 5}


def get_config(variant=""):
    return ConfigDict({"stage": "pretrain", "data": "DIR", "steps": VARIANTS.get(variant, 1)})
"""


@pytest.fixture
def file(tmp_path):
    """A small configuration file."""
    path = tmp_path / "small.py"
    path.write_text(FILE)
    return str(path)


@pytest.fixture
def call(capsys, file, tmp_path):
    """Runs `main`; returns the exit code, stdout, the lines of stderr and what `run` was given."""

    def call(*arguments, run=None, config=f"--config={file}", workdir=tmp_path / "run", **how):
        given = []

        def record(*seen):
            given.append(seen)
            if run is not None:
                run()

        flags = [flag for flag in (config, workdir and f"--workdir={workdir}") if flag]
        with pytest.raises(SystemExit) as caught:
            command_line.main(record, DOC, [*flags, *arguments], **how)
        out, err = capsys.readouterr()
        return caught.value.code, out, err.splitlines(), given

    return call


def test_work_of_one_process_is_refused_to_several(call, tmp_path, monkeypatch):
    assert call(workdir=tmp_path / "one", alone=True)[0] == 0
    monkeypatch.setattr(command_line.jax, "process_count", lambda: 2)
    code, _, errors, given = call(alone=True)
    assert (code, given) == (2, [])
    assert errors[-1].endswith("'pretrain', and 2 were started; start one")
    assert not (tmp_path / "run").exists()


def test_what_claims_no_directory_may_name_none_and_use_one_again(call, tmp_path):
    code, _, _, given = call(workdir=None, claims=False)
    assert code == 0 and given[0][1:] == (None, False)
    place = tmp_path / "used"
    place.mkdir()
    (place / "something").touch()
    for _ in range(2):
        code, _, _, given = call(workdir=place, claims=False)
        assert code == 0 and given[0][1] == place
    assert [child.name for child in place.iterdir()] == ["something"]
    for flag in ("--resume", "--overwrite"):
        code, _, errors, given = call(flag, workdir=place, claims=False)
        assert (code, given) == (2, []) and f"unknown argument {flag}" in errors[-1]


def test_success(call, tmp_path):
    code, _, errors, [(config, workdir, resume)] = call("--config.seed=3")
    assert (code, errors) == (0, [])
    assert (config.seed, config.steps, resume) == (3, 1, False)
    assert str(workdir) == str(tmp_path / "run")
    written = json.loads((tmp_path / "run" / "config.json").read_text())
    assert schema.build(written) == config
    assert (written["seed"], written["mesh"]) == (3, {"data": -1, "fsdp": 1, "tensor": 1})


def test_what_a_terminal_cannot_show_ends_no_run(file, tmp_path, monkeypatch):
    """A name of other bytes than UTF-8's, and letters that an ASCII terminal lacks."""
    out = io.TextIOWrapper(io.BytesIO(), "ascii")
    monkeypatch.setattr("sys.stdout", out)
    with pytest.raises(SystemExit) as caught:
        command_line.main(
            lambda *_: print("日本 \udcff.png"),
            DOC,
            [f"--config={file}", f"--workdir={tmp_path / 'run'}"],
        )
    out.flush()
    assert caught.value.code == 0
    assert out.buffer.getvalue() == b"\\u65e5\\u672c \\udcff.png\n"


def raising(error):
    """A run that fails."""

    def run():
        raise error

    return run


@pytest.mark.parametrize(
    ("error", "code", "line"),
    [
        (DataError("a.json: record 3\n  has no id"), 2, "error: a.json: record 3 has no id"),
        (ConfigError("x=1; y=2"), 2, "error: x=1; y=2"),
        (DivergenceError("loss is nan at step 7"), 1, "error: loss is nan at step 7"),
        (WorkerError("a process was ended"), 1, "error: a process was ended"),
        (KeyboardInterrupt(), 130, "error: interrupted"),
        (
            OSError(errno.ENOSPC, "No space left on device", "run/metrics.jsonl"),
            1,
            "error: run/metrics.jsonl: No space left on device",
        ),
    ],
)
def test_failures_end_in_one_line(call, error, code, line):
    found, _, errors, _ = call(run=raising(error))
    assert (found, errors) == (code, [line])


def test_a_programmers_mistake_keeps_its_traceback(file, tmp_path):
    def run(config, workdir, resume):
        raise ZeroDivisionError("a fault of ours")

    with pytest.raises(ZeroDivisionError, match="a fault of ours"):
        command_line.main(run, DOC, [f"--config={file}", f"--workdir={tmp_path / 'run'}"])


@pytest.mark.parametrize(
    ("arguments", "part"),
    [
        (["--config.sedd=1"], "sedd is unknown; did you mean 'seed'?"),
        (["--config.seed=x"], "seed='x' is not of type int"),
        (["--config.data"], "data=True is not of type tuple of str"),
        (["--config.init"], "init=True is not of type str"),
        (["--config.seed"], "seed=True is not of type int"),
        (["--overwite"], "unknown argument --overwite; did you mean '--overwrite'?"),
        (["--workdri=x"], "unknown argument --workdri=x; did you mean '--workdir'?"),
        (["--conf.seed=1"], "unknown argument --conf.seed=1; did you mean '--config.seed'?"),
        (
            ["--batch-size=8"],
            "unknown argument --batch-size=8; did you mean '--config.batch_size'?",
        ),
        (["--warmup", "0.2"], "did you mean '--config.optimizer.warmup'?"),
        (["--optimizer.warmup=1"], "did you mean '--config.optimizer.warmup'?"),
        (["--config.dtype=float23"], "dtype='float23'; did you mean 'float32'?"),
        (["stray"], "unknown argument stray"),
        (["--config.mlm.whole_word", "--resume", "stray"], "unknown argument stray"),
        (["--resume=1"], "--resume"),
        (["--workdir"], "--workdir"),
        (["--resume", "--overwrite"], "exclude each other"),
    ],
)
def test_mistakes_on_the_command_line(call, tmp_path, arguments, part):
    code, out, errors, given = call(*arguments)
    assert (code, out, given) == (2, "", [])
    assert len(errors) == 1
    assert errors[0].startswith("error: ")
    assert part in errors[0]
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("flags", "line"),
    [
        ({"config": None}, "error: --config is not set"),
        ({"workdir": None}, "error: --workdir is not set"),
        ({"config": "--config=none.py"}, "error: --config=none.py: no such file"),
    ],
)
def test_flags_that_every_script_needs(call, flags, line):
    code, _, errors, given = call(**flags)
    assert (code, errors, given) == (2, [line], [])


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["--config.mlm.whole_word"], {"mlm.whole_word": True}),
        (["--config.mlm.whole_word", "--resume"], {"mlm.whole_word": True}),
        (["--config.seed", "3"], {"seed": "3"}),
        (["--config.mesh.data", "-1"], {"mesh.data": "-1"}),
        (["--config.data=a=b c"], {"data": "a=b c"}),
        (["--config.data", "a b"], {"data": "a b"}),
        (["--config.data="], {"data": ""}),
        (["--config.data=--x"], {"data": "--x"}),
        (["--config.seed=1", "--config.seed=2"], {"seed": "2"}),
        (["--config.text.buckets=(16, 32)"], {"text.buckets": "(16, 32)"}),
    ],
)
@pytest.mark.parametrize("last", [False, True])
def test_overrides_are_found_anywhere(arguments, expected, last):
    common = ["--config", "f.py", "--workdir", "dir"]
    order = common + arguments if last else arguments + common
    flags, overrides = command_line.parse(DOC, order)
    assert overrides == expected
    assert (flags.config, flags.workdir, flags.overwrite) == ("f.py", "dir", False)
    assert flags.resume == ("--resume" in arguments)


def test_a_flag_without_value_turns_a_field_on(call):
    code, _, _, [(config, _, _)] = call("--config.mlm.whole_word")
    assert (code, config.mlm.whole_word) == (0, True)


def test_arguments_come_from_the_process_by_default(file, tmp_path, monkeypatch):
    monkeypatch.setattr("sys.argv", ["it.py", f"--config={file}", f"--workdir={tmp_path / 'run'}"])
    with pytest.raises(SystemExit) as caught:
        command_line.main(lambda *given: None, DOC)
    assert caught.value.code == 0
    assert (tmp_path / "run" / "config.json").exists()


# ---------------------------------------------------------------------------- help


@pytest.mark.parametrize("flag", ["--help", "-h"])
def test_help_alone(call, flag):
    code, out, errors, given = call(flag, config=None, workdir=None)
    assert (code, errors, given) == (0, [], [])
    assert "  python launch/it.py --config=FILE --workdir=DIR\n" in out
    for part in ("--workdir", "--resume", "--overwrite", "Pass --config=FILE with --help"):
        assert part in out


def test_help_with_a_configuration_lists_its_fields(call, file, tmp_path):
    given = f"--config={file}:demo,text.buckets=(3,4)"
    code, out, errors, given = call("--help", "--config.seed=7", config=given)
    assert (code, errors, given) == (0, [], [])
    row = "  data  tuple of str; required; here DIR\n      directories that launch/prepare.py or "
    assert row + "launch/caption.py wrote, trained on\n      together\n" in out
    assert "  init_image  str; default empty\n      an image encoder to start from" in out
    rate = "  optimizer.warmup  float; 0 to 1; default 0.1\n      share of the steps"
    assert "\nAdamW or Adam, its schedule, and " in out and rate in out
    assert "  text.buckets  tuple of int; at least 3; default empty; here (3, 4)\n" in out
    assert "  steps  int; at least 0; default 0; here 5\n" in out
    assert "  seed  int; 0 to 4294967295; default 0; here 7\n" in out
    _, *fields = out[out.index("fields of") :].splitlines()
    assert all(len(line) <= 80 and line == line.rstrip() for line in fields)
    assert "\x1b" not in out  # No colours but in a terminal.
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("old", "new", "part"),
    [
        ('"pretrain"', '"pretran"', "stage='pretran'; did you mean 'pretrain'?"),
        ('"stage": "pretrain", ', "", "stage=None; known: "),
        ("def get_config", "def configure", "defines no get_config"),
    ],
)
def test_help_with_a_faulty_configuration(call, file, old, new, part):
    with open(file, "w") as stream:
        stream.write(FILE.replace(old, new))
    code, _, errors, _ = call("--help")
    assert (code, len(errors)) == (2, 1)
    assert part in errors[0]


# ---------------------------------------------------------------------------- work directories


def test_a_directory_in_use_is_refused(call, tmp_path):
    """P41: a second run in the same directory says so."""
    call("--config.seed=1")
    code, _, errors, given = call("--config.seed=2")
    assert (code, len(errors), given) == (2, 1, [])
    assert "pass --resume" in errors[0]
    assert json.loads((tmp_path / "run" / "config.json").read_text())["seed"] == 1


@pytest.mark.parametrize("flags", [[], ["--resume"], ["--overwrite"]])
def test_a_dry_run_neither_claims_nor_changes_a_directory(call, tmp_path, flags):
    """Missing, in use, and in use by something else; the run that it tried starts as ever."""
    call("--config.steps=3", workdir=tmp_path / "run")
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "thesis.txt").write_text("1")
    before = {path: path.read_bytes() for path in tmp_path.rglob("*.*")}
    for name in ("missing", "run", "other"):
        code, _, errors, given = call(
            "--config.steps=3", "--config.dry_run", *flags, workdir=tmp_path / name
        )
        assert (code, errors, len(given)) == (0, [], 1)
        assert given[0][0].dry_run and given[0][2] == ("--resume" in flags)
    assert {path: path.read_bytes() for path in tmp_path.rglob("*.*")} == before
    assert not (tmp_path / "missing").exists()
    assert call("--config.steps=3", workdir=tmp_path / "missing")[0] == 0


def test_a_dry_run_tells_that_a_run_cannot_go_on_so(call):
    call("--config.seed=1")
    code, _, errors, given = call("--config.seed=2", "--config.dry_run", "--resume")
    assert (code, given) == (2, []) and "differs from this configuration in seed" in errors[0]


def test_a_directory_that_cannot_be_written_is_refused(call, tmp_path, monkeypatch):
    """As a read-only mount answers; the tests' user may be one whom permissions do not bind."""

    def refuse(path, *arguments):
        raise OSError(errno.EROFS, "Read-only file system", str(path))

    (tmp_path / "run").mkdir()
    monkeypatch.setattr(command_line, "write_json", refuse)
    code, _, errors, given = call()
    assert (code, given) == (2, [])
    assert errors == [
        f"error: --workdir={tmp_path / 'run'} cannot be written to: Read-only file system"
    ]


def test_overwrite_writes_the_new_configuration(call, tmp_path):
    call("--config.seed=1")
    (tmp_path / "run" / "old").touch()
    code, _, _, [(config, _, resume)] = call("--config.seed=2", "--overwrite")
    assert (code, config.seed, resume) == (0, 2, False)
    assert [path.name for path in (tmp_path / "run").iterdir()] == ["config.json"]
    assert json.loads((tmp_path / "run" / "config.json").read_text())["seed"] == 2


def test_overwrite_removes_nothing_when_the_configuration_is_wrong(call, tmp_path):
    call()
    (tmp_path / "run" / "old").touch()
    code, _, _, _ = call("--config.sedd=2", "--overwrite")
    assert code == 2
    assert (tmp_path / "run" / "old").exists()


def test_resume_keeps_the_configuration_on_disk(call, tmp_path):
    call("--config.seed=1")
    before = (tmp_path / "run" / "config.json").read_bytes()
    code, _, _, [(config, _, resume)] = call("--config.seed=1", "--config.log_every=9", "--resume")
    assert (code, config.log_every, resume) == (0, 9, True)
    assert (tmp_path / "run" / "config.json").read_bytes() == before


def test_resume_with_other_values_is_refused(call):
    """What a parameter depends on must agree; both values are named."""
    call("--config.seed=1")
    code, _, errors, runs = call("--config.seed=2", "--resume")
    assert (code, runs) == (2, [])
    assert len(errors) == 1 and "seed: 1 before, 2 now" in errors[0]


@pytest.mark.parametrize("flags", [[], ["--config.dry_run"]])
def test_resume_of_another_versions_run_names_the_field_and_the_file(call, tmp_path, flags):
    call()
    path = tmp_path / "run" / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"colour": 3}))
    code, _, errors, given = call("--resume", *flags)
    assert (code, len(errors), given) == (2, 1, [])
    assert f"{path} is not of this version of unipt_jax: colour is unknown" in errors[0]
    assert "resume with the version that wrote it, or start anew with --overwrite" in errors[0]


HOLDER = """
import sys, time
from unipt_jax.core.files import claim_workdir

with claim_workdir(sys.argv[1], resume=True):
    print("held", flush=True)
    time.sleep(20)
"""


def test_a_directory_that_another_run_writes_to_is_left_alone(call, tmp_path):
    """Whatever the flags; once that run is gone, it is free."""
    call("--config.seed=1")
    (tmp_path / "run" / "precious").touch()
    with subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(tmp_path / "run")], stdout=subprocess.PIPE
    ) as holder:
        assert holder.stdout.readline() == b"held\n"
        for flag in ("--resume", "--overwrite"):
            code, _, errors, given = call("--config.seed=1", flag)
            assert (code, given) == (
                2,
                [],
            ) and f"is being written by process {holder.pid}" in errors[-1]
        holder.kill()
    assert (tmp_path / "run" / "precious").exists()
    assert call("--config.seed=1", "--overwrite")[0] == 0


@pytest.mark.parametrize("content", ["[]", "7", '{"stage": ["pretrain"]}', '{"stage": "pretrain"}'])
def test_a_configuration_that_no_run_wrote_is_not_resumed_with(call, tmp_path, content):
    """Of any shape, for a dry run too, which claims nothing; the file is named."""
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "config.json").write_text(content)
    for flags in (["--resume"], ["--resume", "--config.dry_run"]):
        code, _, errors, given = call(*flags)
        assert (code, given) == (2, [])
        assert str(tmp_path / "run") in errors[-1] and errors[-1].startswith("error: ")


def test_resume_of_nothing_still_writes_the_configuration(call, tmp_path):
    """A cluster passes --resume always, the first time too."""
    code, _, _, _ = call("--config.seed=5", "--resume")
    assert code == 0
    assert json.loads((tmp_path / "run" / "config.json").read_text())["seed"] == 5


def test_what_is_written_can_be_read_back_as_overrides(call, file, tmp_path):
    """Every scalar of config.json, passed as text, gives the same configuration."""
    call("--config.text.buckets=(16,)", "--config.optimizer.learning_rate=3e-05")
    written = json.loads((tmp_path / "run" / "config.json").read_text())
    overrides = {}
    for name, value in written.items():
        for key, entry in value.items() if isinstance(value, dict) else [("", value)]:
            overrides[f"{name}.{key}".rstrip(".")] = str(entry)
    assert load.load(file, overrides) == schema.build(written)


def test_a_mistake_found_by_the_check_removes_nothing(tmp_path, capsys):
    """--overwrite empties a work directory only once the configuration is known to work."""
    workdir = tmp_path / "run"
    workdir.mkdir()
    (workdir / "config.json").write_text('{"stage": "prepare"}')
    (workdir / "precious").write_text("weights")

    def refuse(config, resume):
        raise DataError("no such data")

    arguments = ["--config=configs/prepare.py:demo", f"--workdir={workdir}", "--overwrite"]
    with pytest.raises(SystemExit) as stopped:
        command_line.main(lambda *_: None, "doc", arguments, check=refuse)
    assert stopped.value.code == 2 and "no such data" in capsys.readouterr().err
    assert (workdir / "precious").read_text() == "weights"


@pytest.mark.parametrize("inside", ["", "data/set", "link"])
def test_overwriting_never_removes_what_is_read(tmp_path, capsys, inside):
    """A checkpoint, a data set or a source in the very directory that would be emptied."""
    workdir = tmp_path / "run"
    (workdir / "data" / "set").mkdir(parents=True)
    (workdir / "config.json").write_text('{"stage": "prepare"}')
    (tmp_path / "link").symlink_to(workdir / "data")
    source = tmp_path / "link" if inside == "link" else workdir / inside
    arguments = [
        "--config=configs/prepare.py:pairs",
        f"--config.source={source}",
        f"--workdir={workdir}",
        "--overwrite",
    ]
    with pytest.raises(SystemExit) as stopped:
        command_line.main(lambda *_: None, "doc", arguments)
    message = capsys.readouterr().err
    assert stopped.value.code == 2 and f"source={source}" in message and "--overwrite" in message
    assert (workdir / "data" / "set").is_dir()


def test_overwriting_never_removes_one_of_several_data_sets(call, tmp_path):
    call()
    second = tmp_path / "run" / "data"
    second.mkdir()
    code, _, errors, given = call(f"--config.data={tmp_path / 'else'},{second}", "--overwrite")
    assert (code, len(errors), given) == (2, 1, [])
    assert f"data={second}" in errors[0] and "--overwrite" in errors[0]
    assert second.is_dir()
