"""Configuration files, variants, overrides, and the config.json that a run left."""

import contextlib
import copy
import dataclasses
import io
import json
import operator
import pathlib
import tempfile
import typing

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.fuzz.outcomes import clear, counts, is_one_line
from tests.test_configs import FILES, NEEDED, variants_of
from unipt_jax.config import command_line, load, schema
from unipt_jax.core.files import read_json, write_json
from unipt_jax.evaluation import protocol

STAGES = {path.stem: schema.STAGES[path.stem] for path in FILES}
VARIANTS = {path.stem: list(variants_of(path)) for path in FILES}
FIELDS = {
    name: [each.name for each in schema.describe(cls) if each.name != "stage"]
    for name, cls in STAGES.items()
}
# `prepare` names no data set of its own.
COMPLETE = NEEDED | {"prepare": NEEDED["prepare"] | {"dataset": "pairs"}}

NUMBERS = """
nan inf -inf 1e999 -1e999 1e308 1e-46 1e38 0.1 1.0 -0.0 0 1 -1 3 7 1e3 007 0x10 1_000 4294967295
4294967296 2147483648 9223372036854775808 1000000000000000000000000000000
"""
OTHERS = """
None True FALSE true () [] {} (1,2) [3,] (1,(2,)) [None] {1:2} {[]:1} {1,2} {'a':{'b':1}} 'quoted'
b'bytes' 1j ... (odd [ a,b a,,b , a=b .. ../x /dev/null ~ %s {0.__class__} $HOME demo float32
"""
ODD = [*NUMBERS.split(), *OTHERS.split(), "", " ", "\x1b[31m", "\udcff", "a\nb", "\u202e"]
LONG = [
    "9" * 5000,
    "0x" + "f" * 5000,
    "(" * 3000,
    "-" * 3000 + "1",
    "a" * 5000,
    "[" * 300 + "]" * 300,
]
RUNS = {
    name: schema.to_dict(load.load(f"configs/{name}.py", COMPLETE[name]))
    for name in ("pretrain", "finetune", "evaluate")
}
# What a command line can hold: bytes that are no UTF-8 come as halves of surrogate pairs.
letters = st.characters(exclude_characters="\0", exclude_categories=["Cs"]) | st.characters(
    min_codepoint=0xDC80, max_codepoint=0xDCFF
)
texts = (
    st.sampled_from(ODD)
    | st.integers().map(str)
    | st.floats().map(repr)
    | st.lists(st.integers(-1, 5000), max_size=3).map(str)
    | st.text(letters, max_size=20)
    | st.sampled_from(LONG)
)
values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(max_size=8)
    | st.just(10**400),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3)
    ),
    max_leaves=5,
)


def misspelt(name, at):
    """Without one of its letters."""
    at %= len(name)
    return name[:at] + name[at + 1 :]


@st.composite
def overrides(draw):
    """A stage, and a field of it, of none, or of a field, with a text for it."""
    stage = draw(st.sampled_from(sorted(STAGES)))
    name = draw(st.sampled_from(FIELDS[stage]))
    kind = draw(st.sampled_from(["known"] * 4 + ["misspelt", "group", "below", "any"]))
    key = {
        "known": name,
        "misspelt": misspelt(name, draw(st.integers(0, 20))),
        "group": name.split(".")[0],
        "below": name + ".x",
        "any": draw(st.text(letters, min_size=1, max_size=8)),
    }[kind]
    return stage, key, draw(texts)


def leaves(config, prefix=""):
    """Yields each field's name, value, declared type and bounds."""
    for item in dataclasses.fields(config):
        value = getattr(config, item.name)
        if dataclasses.is_dataclass(value):
            yield from leaves(value, f"{prefix}{item.name}.")
        else:
            yield prefix + item.name, value, item.type, item.metadata


def check_in_range(config):
    """Each value is of its type, in its range, and the same in 32 bits as far as ranges go."""
    bounds = {"at_least": "ge", "above": "gt", "at_most": "le", "below": "lt"}
    for name, value, kind, limits in leaves(config):
        several = typing.get_origin(kind) is tuple
        kind = typing.get_args(kind)[0] if several else kind
        for entry in value if several else (value,):
            assert type(entry) is kind, name
            assert not limits["choices"] or entry in limits["choices"], name
            if kind is int:
                assert -(2**31) <= entry < 2**32
            with np.errstate(over="ignore"):
                sizes = [entry, np.float32(entry)] if kind is float else [entry]
            assert kind is not float or np.isfinite(sizes).all(), name
            for bound, holds in bounds.items():
                if limits[bound] is not None:
                    assert all(getattr(operator, holds)(n, limits[bound]) for n in sizes), name


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("configs")


@given(overrides())
def test_an_override_is_taken_or_its_field_is_named(folder, made):
    stage, key, text = made
    known = key in FIELDS[stage]
    found = clear(
        lambda: load.load(f"configs/{stage}.py", COMPLETE[stage] | {key: text}),
        names=key.split(".")[-1] if known else "",
    )
    if found.refusal:
        return
    assert known or text == "{}"  # A group can be set whole, as a dict.
    check_in_range(found.value)
    write_json(folder / "config.json", schema.to_dict(found.value))
    assert schema.build(read_json(folder / "config.json")) == found.value


@given(
    st.sampled_from(sorted(STAGES)),
    st.dictionaries(st.text(max_size=8), values, max_size=3),
    st.data(),
)
def test_values_of_any_kind_are_taken_or_named(stage, more, data):
    """As a configuration file, or a config.json, may hold them."""
    name = data.draw(st.sampled_from(FIELDS[stage]))
    value = data.draw(values)
    nested = value
    for part in reversed(name.split(".")):
        nested = {part: nested}
    whole = {"stage": stage, **COMPLETE[stage], **more, **nested}
    found = clear(lambda: schema.build(whole), names=name.split(".")[-1] if not more else "")
    if not found.refusal:
        check_in_range(found.value)


def launched(arguments):
    """Runs what every script runs; returns exit code, what was said, and what `run` was given."""
    given, out, err = [], io.StringIO(), io.StringIO()
    streams = contextlib.redirect_stdout(out), contextlib.redirect_stderr(err)
    with streams[0], streams[1], pytest.raises(SystemExit) as caught:
        command_line.main(lambda *seen: given.append(seen), "Does it.", arguments)
    counts["refused" if caught.value.code else "taken"] += 1
    return caught.value.code, err.getvalue(), given


@st.composite
def commands(draw):
    """The words of a command line, without a work directory."""
    stage = draw(st.sampled_from(sorted(STAGES)))
    field = st.sampled_from(FIELDS[stage])
    pair = st.builds("{}={}".format, field | st.text(letters, max_size=5), texts)
    word = st.sampled_from([*VARIANTS[stage], "", "demo", "nothing"]) | pair
    words = draw(st.lists(word, max_size=3))
    arguments = [f"--config=configs/{stage}.py:{','.join(words)}"]
    arguments += [f"--config.{name}={value}" for name, value in COMPLETE[stage].items()]
    for _ in range(draw(st.integers(0, 3))):
        name, value = draw(field), draw(texts)
        shape = draw(st.integers(0, 3))
        flag = [f"--config.{name}={value}"], [f"--config.{name}", value], [f"--config.{name}"]
        arguments += [*flag, [draw(texts)]][shape]
    return draw(st.permutations(arguments))


@given(commands())
def test_a_command_line_runs_or_ends_in_one_line(arguments):
    with tempfile.TemporaryDirectory() as folder:
        workdir = pathlib.Path(folder) / "run"
        code, said, given = launched([*arguments, f"--workdir={workdir}"])
        if code == 0 and not given:  # It asked for help.
            return
        if code == 0:
            ((config, _, _),) = given
            check_in_range(config)
            if not getattr(config, "dry_run", False):
                assert schema.build(read_json(workdir / "config.json")) == config
        else:
            assert code == 2 and not given and not workdir.exists()
            (line,) = said.splitlines()
            assert line.startswith("error: ") and is_one_line(line)


@given(st.sampled_from(sorted(STAGES)), st.data())
def test_help_shows_whatever_was_given(stage, data):
    name, text = data.draw(st.sampled_from(FIELDS[stage])), data.draw(texts)
    arguments = [f"--config=configs/{stage}.py", f"--config.{name}={text}", "--help"]
    code, said, _ = launched(arguments)
    assert code == 0 or (code == 2 and len(said.splitlines()) == 1)


@st.composite
def files(draw):
    """The config.json of a run, in which something is otherwise."""
    stage = draw(st.sampled_from(sorted(RUNS)))
    node = whole = copy.deepcopy(RUNS[stage])
    key = draw(st.sampled_from(sorted(node)))
    if isinstance(node[key], dict) and draw(st.booleans()):
        node = node[key]
        key = draw(st.sampled_from(sorted(node)))
    how = draw(st.sampled_from(["other", "gone", "more", "cut", "none"]))
    if how == "other":
        node[key] = draw(values)
    elif how == "gone":
        del node[key]
    elif how == "more":
        node[draw(st.text(max_size=8))] = draw(values)
    content = json.dumps(whole).encode()
    return stage, content[: draw(st.integers(0, len(content)))] if how == "cut" else content


@given(files())
def test_a_damaged_configuration_of_a_run_is_named(made):
    """By whoever goes on with the run, and by whoever asks where a checkpoint comes from."""
    stage, content = made
    with tempfile.TemporaryDirectory() as folder:
        path = pathlib.Path(folder) / "config.json"
        path.write_bytes(content)
        origin = clear(lambda: protocol.read_origin(folder), names=str(path))
        if not origin.refusal and origin.value.stage:
            clear(origin.value.sentence)
        words = [f"--config=configs/{stage}.py", f"--workdir={folder}", "--resume"]
        words += [f"--config.{name}={value}" for name, value in COMPLETE[stage].items()]
        code, said, given = launched(words)
        if code == 0:
            ((config, _, _),) = given
            before = schema.build(read_json(path))
            assert schema.resume_differences(before, config) == []
        else:
            (line,) = said.splitlines()
            assert code == 2 and folder in line and is_one_line(line)
        assert path.read_bytes() == content
