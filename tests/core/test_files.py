"""Files are whole or absent, and nobody's directory is lost."""

import errno
import json
import math
import os
import signal
import subprocess
import sys

import jax.numpy as jnp
import numpy as np
import pytest
from etils import epath
from hypothesis import given
from hypothesis import strategies as st

from tests.disks import limited
from unipt_jax.core import files
from unipt_jax.core.errors import ConfigError, DataError

JSON_VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**63)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(),
    lambda children: (
        st.lists(children, max_size=3) | st.dictionaries(st.text(), children, max_size=3)
    ),
    max_leaves=8,
)


@given(value=JSON_VALUES)
def test_json_round_trip(value, tmp_path_factory):
    path = tmp_path_factory.getbasetemp() / "round_trip.json"
    files.write_json(path, value)
    assert files.read_json(path) == value
    assert json.loads(path.read_text("utf-8")) == value


@given(rows=st.lists(JSON_VALUES, max_size=4))
def test_json_lines_round_trip(rows, tmp_path_factory):
    path = tmp_path_factory.getbasetemp() / "round_trip.jsonl"
    files.write_json_lines(path, rows)
    lines = path.read_bytes().split(b"\n")
    assert lines.pop() == b""
    assert [json.loads(line) for line in lines] == rows


def test_writing_makes_parents_and_replaces(tmp_path):
    path = tmp_path / "a" / "b" / "c.bin"
    files.write_bytes(path, b"first and longer")
    files.write_bytes(path, b"second")
    assert path.read_bytes() == b"second"
    assert os.listdir(path.parent) == ["c.bin"]


@pytest.mark.parametrize("error", [OSError("disk full"), KeyboardInterrupt()])
def test_a_crash_while_writing_leaves_the_old_content(tmp_path, error):
    """P94: nothing half-written counts."""
    path = tmp_path / "metrics.json"
    path.write_bytes(b"old")

    def content():
        yield b"half of "
        raise error

    with pytest.raises(type(error)):
        files.write_stream(path, content())
    assert path.read_bytes() == b"old"
    assert os.listdir(tmp_path) == ["metrics.json"]


@pytest.mark.parametrize("error", [OSError("disk full"), KeyboardInterrupt()])
def test_a_crash_while_renaming_leaves_the_old_content(tmp_path, monkeypatch, error):
    """P94."""
    path = tmp_path / "metrics.json"
    path.write_bytes(b"old")

    def fail(self, *arguments):
        raise error

    monkeypatch.setattr(type(epath.Path(path)), "replace", fail)
    with pytest.raises(type(error)):
        files.write_bytes(path, b"half of the new")
    monkeypatch.undo()
    assert path.read_bytes() == b"old"
    assert os.listdir(tmp_path) == ["metrics.json"]


def test_a_stream_is_written_as_it_comes(tmp_path):
    """No more than one piece at a time need exist."""
    alive = []

    def content():
        for number in range(3):
            alive.append(number)
            yield b"%d" % number

    files.write_stream(tmp_path / "numbers", content())
    assert (tmp_path / "numbers").read_bytes() == b"012" and alive == [0, 1, 2]


@pytest.mark.parametrize("write", [files.write_json, files.write_json_lines])
@pytest.mark.parametrize("number", [math.nan, math.inf, -math.inf, np.float32("nan")])
def test_numbers_that_json_lacks_are_refused(tmp_path, write, number):
    """P93: a bare NaN is not JSON."""
    path = tmp_path / "metrics.json"
    path.write_bytes(b"old")
    with pytest.raises(ValueError, match="JSON compliant"):
        write(path, [{"loss": 1.0}, {"loss": number}])
    assert path.read_bytes() == b"old"


@pytest.mark.parametrize(
    ("scalar", "expected"),
    [
        (np.float32(0.5), b"0.5"),
        (np.int64(7), b"7"),
        (np.bool_(True), b"true"),
        (np.array(3), b"3"),
        (jnp.float32(0.25), b"0.25"),
    ],
)
def test_array_scalars_are_written_as_numbers(tmp_path, scalar, expected):
    """P93: a NumPy or JAX scalar must not crash the end of a long run."""
    files.write_json_lines(tmp_path / "x.jsonl", [scalar])
    assert (tmp_path / "x.jsonl").read_bytes() == expected + b"\n"


@pytest.mark.parametrize("value", [np.zeros(2), {1, 2}, b"bytes"])
def test_what_json_has_no_form_for_is_refused(tmp_path, value):
    with pytest.raises(TypeError, match=f"{type(value).__name__} has no JSON form"):
        files.write_json(tmp_path / "x.json", value)
    assert os.listdir(tmp_path) == []


def test_half_a_surrogate_pair_is_written_escaped(tmp_path):
    """Captions and file names hold what UTF-8 cannot (P08)."""
    path = tmp_path / "x.jsonl"
    files.write_json_lines(path, ["人\ud83d", os.fsdecode(b"caf\xe9.jpg")])
    assert path.read_bytes() == b'"\xe4\xba\xba\\ud83d"\n"caf\\udce9.jpg"\n'
    assert json.loads(path.read_bytes().splitlines()[0]) == "人\ud83d"


@pytest.mark.parametrize(
    "content", [b'{"a": "\xe4\xba\xba"}', b'\xef\xbb\xbf{"a": "\xe4\xba\xba"}']
)
def test_a_byte_order_mark_is_accepted(tmp_path, content):
    """Windows writes UTF-8 with a mark (P58)."""
    path = tmp_path / "x.json"
    path.write_bytes(content)
    assert files.read_json(path) == {"a": "人"}


@pytest.mark.parametrize(
    ("content", "offset"),
    [
        ("[1]".encode("utf-16"), 0),
        (b'["it\x92s"]', 4),
        (b'\xef\xbb\xbf["it\x92s"]', 7),
        (b'["caf\xe9"]', 5),
        (b'["\xe4\xba', 2),
        ("[1]".encode("utf-32"), 0),
    ],
    ids=["utf-16", "cp1252", "cp1252 after a mark", "latin-1", "cut off", "utf-32"],
)
def test_other_encodings_are_named_with_the_byte(tmp_path, content, offset):
    """Never the locale's encoding; the message leads to the byte (P58)."""
    path = tmp_path / "x.json"
    path.write_bytes(content)
    with pytest.raises(DataError) as caught:
        files.read_json(path)
    assert f"x.json: byte {offset} is not UTF-8" in str(caught.value)


@pytest.mark.parametrize(
    ("content", "byte"),
    [("[1]".encode("utf-16-le"), 1), ("[1]".encode("utf-32-be"), 0), (b"\xef\xbb\xbf[1, \0]", 7)],
)
def test_bytes_that_only_other_encodings_have_are_named(tmp_path, content, byte):
    """Without a mark, UTF-16 of plain letters is UTF-8 too, with a NUL beside each (P58)."""
    path = tmp_path / "x.json"
    path.write_bytes(content)
    with pytest.raises(
        DataError, match=rf"x\.json: byte {byte} is NUL, as in UTF-16; save .*UTF-8"
    ):
        files.read_json(path)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"[" * 100_000 + b"]" * 100_000, "nested too deeply"),
        (b'{"a":' * 100_000 + b"1" + b"}" * 100_000, "nested too deeply"),
        (b"[" + b"9" * 5_000 + b"]", r"a number has more than \d+ digits"),
        (b'{"a": 1}\n{"a": 2}\n', "line 2, column 1: Extra data; .* not one a line"),
    ],
)
def test_json_that_python_does_not_take_is_named(tmp_path, content, said):
    path = tmp_path / "x.json"
    path.write_bytes(content)
    with pytest.raises(DataError, match=rf"x\.json: .*{said}"):
        files.read_json(path)


def test_objects_may_be_made_of_all_their_names(tmp_path):
    (tmp_path / "x.json").write_text('{"a": 1, "b": {"a": 2}, "a": 3}')
    assert files.read_json(tmp_path / "x.json") == {"a": 3, "b": {"a": 2}}
    assert files.read_json(tmp_path / "x.json", list) == [("a", 1), ("b", [("a", 2)]), ("a", 3)]


def test_only_what_has_an_end_is_a_file(tmp_path):
    """Reading from a pipe that nobody writes to would wait for ever."""
    (tmp_path / "file").touch()
    os.mkfifo(tmp_path / "pipe")
    targets = {"link": "file", "to_pipe": "pipe", "zeros": "/dev/zero", "loop": "loop", "gone": "x"}
    for name, target in targets.items():
        (tmp_path / name).symlink_to(target)
    names = [*os.listdir(tmp_path), ".", "file/below", "n" * 300, "a\0b", "\ud800"]
    assert sorted(filter(lambda name: files.is_file(tmp_path / name), names)) == ["file", "link"]


@pytest.mark.parametrize(
    ("content", "where"),
    [
        (b"", "line 1, column 1"),
        (b'{\n "a": 1,\n "b": }', "line 3, column 7"),
        (b"[1] [2]", "line 1, column 5"),
        (b"<html>", "line 1, column 1"),
    ],
)
def test_what_is_not_json_is_named_with_line_and_column(tmp_path, content, where):
    path = tmp_path / "x.json"
    path.write_bytes(content)
    with pytest.raises(DataError) as caught:
        files.read_json(path)
    assert f"x.json: not JSON at {where}: " in str(caught.value)


def test_lines_are_read_but_for_one_that_a_kill_has_cut(tmp_path):
    path = tmp_path / "x.jsonl"
    files.append_json_lines(path, [{"a": "\u4eba"}, 2])
    with path.open("ab") as file:
        file.write(b'{"a": ')
    assert files.read_json_lines(path) == [{"a": "\u4eba"}, 2]
    deep = b"[" * 100_000
    for content, rows in (
        (b"[1]\n[2]", [[1], [2]]),  # An editor has taken the last line's end.
        (b"[1]\n\n[3]\n  \r\n", [[1], [3]]),
        (b"[1]\n" + deep, [[1]]),
        (b"[1]\n\xff", [[1]]),
        (b"", []),
    ):
        path.write_bytes(content)
        assert files.read_json_lines(path) == rows
    for damaged in (b"[1]\n[2\n[3]\n", b'[1]\n["\xff"]\n', b"[1]\n" + deep + b"\n"):
        path.write_bytes(damaged)
        with pytest.raises(DataError, match=r"x\.jsonl: line 2 is damaged"):
            files.read_json_lines(path)
    with pytest.raises(DataError, match=r"none\.jsonl: cannot be read: No such file"):
        files.read_json_lines(tmp_path / "none.jsonl")


def test_files_that_cannot_be_read_are_named(tmp_path):
    with pytest.raises(DataError, match=r"none\.json: no such file"):
        files.read_json(tmp_path / "none.json")
    (tmp_path / "folder.json").mkdir()
    with pytest.raises(DataError, match=r"folder\.json: cannot be read: Is a directory"):
        files.read_json(tmp_path / "folder.json")
    os.mkfifo(tmp_path / "pipe.json")  # Nobody ever writes to it.
    (tmp_path / "link.json").symlink_to("pipe.json")
    for read in (files.read_json, files.read_json_lines):
        for name in ("pipe.json", "link.json"):
            with pytest.raises(DataError, match=rf"{name}: cannot be read: not an ordinary file"):
                read(tmp_path / name)


def claim(path, **flags):
    """Claims a directory, and lets go of it."""
    with files.claim_workdir(path, **flags) as claimed:
        return claimed


def make_workdir(path, state):
    """Makes one of the states a directory can be in."""
    if state != "missing":
        path.mkdir()
    if state in ("run", "foreign"):
        (path / "precious.txt").write_text("kept")
        (path / "sub").mkdir()
        (path / "sub" / "file").write_text("kept")
    if state == "run":
        (path / "config.json").write_text('{"stage": "prepare"}')


@pytest.mark.parametrize("flags", [{}, {"resume": True}, {"overwrite": True}])
@pytest.mark.parametrize("state", ["missing", "empty"])
def test_an_unused_directory_is_always_taken(tmp_path, state, flags):
    path = tmp_path / "run"
    make_workdir(path, state)
    assert os.fspath(claim(path, **flags)) == str(path)
    assert path.is_dir()
    assert os.listdir(path) == []


@pytest.mark.parametrize(
    ("state", "flags", "message"),
    [
        ("run", {}, "is not empty; pass --resume"),
        ("foreign", {}, "not a run's directory"),
        ("foreign", {"resume": True}, "not a run's directory"),
        ("foreign", {"overwrite": True}, "not a run's directory"),
        ("run", {"resume": True, "overwrite": True}, "exclude each other"),
    ],
)
def test_a_directory_in_use_is_refused_untouched(tmp_path, state, flags, message):
    """P41: no run starts over in another's directory; what no run wrote is never removed."""
    path = tmp_path / "run"
    make_workdir(path, state)
    before = sorted(os.listdir(path))
    with pytest.raises(ConfigError, match=message):
        claim(path, **flags)
    assert sorted(os.listdir(path)) == before
    assert (path / "precious.txt").read_text() == "kept"
    assert (path / "sub" / "file").read_text() == "kept"


def test_a_run_is_resumed_with_all_its_files(tmp_path):
    make_workdir(tmp_path / "run", "run")
    claim(tmp_path / "run", resume=True)
    assert sorted(os.listdir(tmp_path / "run")) == ["config.json", "precious.txt", "sub"]


def test_a_run_is_overwritten_with_none_of_its_files(tmp_path):
    make_workdir(tmp_path / "run", "run")
    claim(tmp_path / "run", overwrite=True)
    assert os.listdir(tmp_path / "run") == []


def test_overwriting_follows_no_link(tmp_path):
    """Runs are often linked to a larger disk, and data into runs."""
    data, disk = tmp_path / "data", tmp_path / "disk"
    make_workdir(data, "foreign")
    make_workdir(disk, "run")
    (disk / "data").symlink_to(data)
    (tmp_path / "link").symlink_to(disk)
    claim(tmp_path / "link", overwrite=True)
    assert os.listdir(disk) == []
    assert sorted(os.listdir(data)) == ["precious.txt", "sub"]
    assert (data / "sub" / "file").read_text() == "kept"


def test_an_interrupted_overwrite_can_be_repeated(tmp_path, monkeypatch):
    make_workdir(tmp_path / "run", "run")
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):

        def interrupt(self):
            raise KeyboardInterrupt

        patch.setattr(type(epath.Path(tmp_path)), "rmtree", interrupt)
        claim(tmp_path / "run", overwrite=True)
    claim(tmp_path / "run", overwrite=True)
    assert os.listdir(tmp_path / "run") == []


def test_a_file_is_no_directory(tmp_path):
    (tmp_path / "file").write_text("kept")
    with pytest.raises(ConfigError, match="is a file"):
        claim(tmp_path / "file", overwrite=True)
    with pytest.raises(ConfigError, match="cannot be made: Not a directory"):
        claim(tmp_path / "file" / "below")
    assert (tmp_path / "file").read_text() == "kept"


@pytest.mark.parametrize("content", ['{"model_type": "bert"}', "[]", "3"])
@pytest.mark.parametrize("flag", ["resume", "overwrite"])
def test_models_of_others_are_no_runs(tmp_path, content, flag):
    """Every directory of Hugging Face's has a config.json too; it must never be emptied."""
    (tmp_path / "config.json").write_text(content)
    (tmp_path / "model.safetensors").write_bytes(b"weights")
    with pytest.raises(ConfigError, match="not a run's directory; it was left untouched"):
        claim(tmp_path, **{flag: True})
    assert (tmp_path / "model.safetensors").read_bytes() == b"weights"


def test_what_killed_writers_left_aside_goes_away(tmp_path):
    """A writer that is killed outright cannot tidy up after itself."""
    code = (
        "import os, signal, sys; from unipt_jax.core.files import write_stream\n"
        "def pieces():\n"
        "    yield b'half'\n"
        "    os.kill(os.getpid(), signal.SIGKILL)\n"
        "write_stream(sys.argv[1], pieces())"
    )
    killed = subprocess.run([sys.executable, "-c", code, str(tmp_path / "config.json")])
    assert killed.returncode == -signal.SIGKILL
    (left,) = tmp_path.iterdir()
    assert left.name.startswith(".config.json.")
    (tmp_path / ".hidden.tmp").write_bytes(b"the user's own")
    files.remove_leftovers(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == [".hidden.tmp"]


def test_a_run_killed_while_it_began_does_not_block_its_directory(tmp_path):
    (tmp_path / ".config.json.17-0a1b2c3d.tmp").write_bytes(b"{")
    assert claim(tmp_path) == tmp_path


HOLDER = """
import os, sys, time
from unipt_jax.core.files import claim_workdir

with claim_workdir(sys.argv[1], resume=True) as workdir:
    (workdir / "config.json").write_text('{"stage": "prepare"}')
    if os.fork():
        print(os.getpid(), flush=True)
    time.sleep(5)
"""


def test_a_directory_is_one_run_s_at_a_time_and_free_once_that_is_killed(tmp_path):
    """The holder is named, nothing is removed meanwhile, and no kill leaves a lock behind (P38)."""
    path = tmp_path / "run"
    with subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(path)], stdout=subprocess.PIPE, text=True
    ) as holder:
        number = holder.stdout.readline().strip()
        for flags in ({"resume": True}, {"overwrite": True}):
            with pytest.raises(ConfigError, match=rf"run is being written by process {number} on "):
                claim(path, **flags)
        with pytest.raises(ConfigError, match="is not empty"):
            claim(path)
        assert (path / "config.json").exists()
        holder.kill()
    claim(path, resume=True)
    claim(path, overwrite=True)
    assert os.listdir(path) == []


def test_a_lock_that_its_holder_has_just_taken_away_keeps_nobody_out(tmp_path, monkeypatch):
    """This one had opened the file before; it takes that which the next one would see."""
    real, opened = files.fcntl.lockf, []

    def lock(file, how):
        opened.append(os.fstat(file.fileno()).st_ino)
        if len(opened) == 1:
            (tmp_path / files.LOCK_FILE).rename(tmp_path.parent / f"{tmp_path.name}.gone")
        return real(file, how)

    monkeypatch.setattr(files.fcntl, "lockf", lock)
    with files.claim_workdir(tmp_path):
        assert (tmp_path / files.LOCK_FILE).stat().st_ino == opened[1] != opened[0]
        assert (tmp_path / files.LOCK_FILE).read_text().startswith(f"process {os.getpid()} on ")
    assert os.listdir(tmp_path) == []


def test_a_lock_that_is_always_taken_away_is_given_up(tmp_path, monkeypatch):
    real = files.fcntl.lockf

    def lock(file, how):
        (tmp_path / files.LOCK_FILE).unlink()
        return real(file, how)

    monkeypatch.setattr(files.fcntl, "lockf", lock)
    with pytest.raises(ConfigError, match=r"cannot be locked: its .* was taken away 100 times"):
        claim(tmp_path)


def test_a_lock_of_something_else_is_left_as_it_is(tmp_path):
    """Other programs have a `.lock` too."""
    (tmp_path / ".lock").write_text("another's")
    with pytest.raises(ConfigError, match="not a run's directory"):
        claim(tmp_path)
    assert (tmp_path / ".lock").read_text() == "another's"
    assert os.listdir(tmp_path) == [".lock"]


def test_of_two_that_find_a_directory_empty_one_gets_it(tmp_path, monkeypatch):
    """The other has begun and ended while this one waited for the lock."""
    real = files._lock

    def late(directory):
        with real(directory):
            files.write_json(directory / "config.json", {"stage": "prepare"})
        return real(directory)

    monkeypatch.setattr(files, "_lock", late)
    with pytest.raises(ConfigError, match="is not empty; pass --resume"):
        claim(tmp_path / "run")


def test_a_file_system_without_locks_is_warned_of(tmp_path, monkeypatch, caplog):
    def refuse(*_):
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(files.fcntl, "lockf", refuse)
    claim(tmp_path)
    assert caplog.messages == [
        f"{tmp_path} cannot be locked (No locks available): let no other run write there"
    ]


@pytest.mark.parametrize("write", [files.write_json, files.append_json_lines])
def test_a_full_disk_says_which_file(tmp_path, write):
    """The system tells it where a file is opened, and not where it grows."""
    path = tmp_path / "x.jsonl"
    path.write_bytes(b"old\n")
    with limited(16), pytest.raises(OSError, match="too large") as caught:
        write(path, ["a value that is longer than that"])
    assert caught.value.filename == str(path)
    assert path.read_bytes().startswith(b"old\n") and os.listdir(tmp_path) == ["x.jsonl"]
