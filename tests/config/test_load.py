"""Files, variants and overrides become one checked configuration."""

import os

import pytest
from hypothesis import given
from hypothesis import strategies as st

from unipt_jax.config import load
from unipt_jax.core.errors import ConfigError

FILE = """
from ml_collections import ConfigDict

VARIANTS = {"demo": 5, "long": 500}


def get_config(variant=""):
    config = ConfigDict({"stage": "pretrain", "data": "DIR", "optimizer": {"warmup": 0.2}})
    for name in variant.split(","):
        if name:
            config.steps = VARIANTS[name]
    return config
"""


@pytest.fixture
def file(tmp_path):
    """A small configuration file with two variants."""
    path = tmp_path / "small.py"
    path.write_text(FILE)
    return str(path)


def message(*arguments):
    """The one message of a load that fails."""
    with pytest.raises(ConfigError) as caught:
        load.load(*arguments)
    return str(caught.value)


@pytest.mark.parametrize(
    ("suffix", "steps"), [("", 0), (":", 0), (":demo", 5), (":long", 500), (":demo,long", 500)]
)
def test_variants(file, suffix, steps):
    config = load.load(file + suffix)
    assert (config.steps, config.optimizer.warmup, config.data) == (steps, 0.2, "DIR")


def test_pairs_in_the_name_and_overrides(file):
    config = load.load(
        file + ":demo,seed=3,optimizer.warmup=0.5,text.buckets=(16,32),data=a=b",
        {"seed": "4", "optimizer.decay": "linear"},
    )
    assert (config.steps, config.seed, config.data) == (5, 4, "a=b")
    assert (config.optimizer.warmup, config.optimizer.decay) == (0.5, "linear")
    assert config.text.buckets == (16, 32)


@pytest.mark.parametrize(
    ("spec", "names", "pairs"),
    [
        ("f.py:a,b", ["a", "b"], {}),
        ("f.py:a,x=(1,2),b,y=[3,4]", ["a", "b"], {"x": "(1,2)", "y": "[3,4]"}),
        ("f.py:x=1,x=2,a,", ["a"], {"x": "2"}),
        ("f.py", [], {}),
    ],
)
def test_split_spec(spec, names, pairs):
    assert load.split_spec(spec) == ("f.py", names, pairs)


@pytest.mark.parametrize(
    ("key", "text", "expected"),
    [
        ("seed", "7", 7),
        ("epochs", "2", 2.0),
        ("epochs", "2.5", 2.5),
        ("optimizer.learning_rate", "1e-4", 1e-4),
        ("text.buckets", "(16, 32)", (16, 32)),
        ("text.buckets", "[16]", (16,)),
        ("text.buckets", "()", ()),
        ("mlm.whole_word", "True", True),
        ("mlm.whole_word", "true", True),
        ("mlm.whole_word", "false", False),
        ("mlm.whole_word", "FALSE", False),
        ("mesh.data", "-1", -1),
        ("data", "007", "007"),
        ("data", "1e3", "1e3"),
        ("data", "True", "True"),
        ("data", "None", "None"),
        ("data", "(1, 2)", "(1, 2)"),
        ("data", "'quoted'", "'quoted'"),
        ("data", "a b", "a b"),
        ("text.tokenizer", "42", "42"),
    ],
)
def test_text_is_read_as_the_field_asks(file, key, text, expected):
    value = load.load(file, {key: text})
    for part in key.split("."):
        value = getattr(value, part)
    assert value == expected
    assert type(value) is type(expected)


@given(text=st.text())
def test_text_for_a_string_is_never_changed(text, tmp_path_factory):
    path = tmp_path_factory.getbasetemp() / "any.py"
    path.write_text(FILE)
    assert load.load(str(path), {"data": text}).data == text


@pytest.mark.parametrize(
    ("key", "value", "part"),
    [
        ("seed", "007", "seed='007' is not of type int"),
        ("seed", "1e3", "seed=1000.0 is not of type int"),
        ("seed", "", "seed='' is not of type int"),
        ("seed", "one", "seed='one' is not of type int"),
        ("epochs", "1e999", "epochs=inf must be finite"),
        ("epochs", "nan", "epochs='nan' is not of type float"),
        ("mlm.whole_word", "yes", "mlm.whole_word='yes' is not of type bool"),
        ("mlm.whole_word", "1", "mlm.whole_word=1 is not of type bool"),
        ("data", True, "data=True is not of type str"),
        ("optimizer.warmpu", "0.1", "optimizer.warmpu is unknown; did you mean 'warmup'?"),
        ("sedd", "1", "sedd is unknown; did you mean 'seed'?"),
        ("optimizr.warmup", "1", "optimizr is unknown; did you mean 'optimizer'?"),
        ("data.x", "1", "data.x: 'data' is a value, not a group of fields"),
        ("optimizer.warmup.x", "1", "'warmup' is a value, not a group of fields"),
        ("seed.x", "1", "seed={'x': 1} is not of type int"),
        ("optimizer", "1", "optimizer is a group of fields, not 1"),
    ],
)
def test_overrides_that_do_not_fit(file, key, value, part):
    assert part in message(file, {key: value})


@pytest.mark.parametrize(
    ("suffix", "part"),
    [
        (":dmo", "has no variant 'dmo'; did you mean 'demo'?"),
        (":demo,zzz", "has no variant 'zzz'; known: demo, long"),
    ],
)
def test_unknown_variants_name_the_nearest(file, suffix, part):
    assert part in message(file + suffix)


def test_a_file_without_variants_takes_none(tmp_path):
    path = tmp_path / "plain.py"
    path.write_text(FILE.replace("VARIANTS", "OTHERS"))
    assert load.load(str(path)).steps == 0
    assert "has no variant 'demo'" in message(f"{path}:demo")


@pytest.mark.parametrize(
    ("content", "part"),
    [
        ("def get_config(variant):\n    return 1 +\n", "cannot be run: SyntaxError"),
        ("import no_such_module_at_all\n", "cannot be run: ModuleNotFoundError"),
        ("1 / 0\n", "cannot be run: ZeroDivisionError"),
        ("x = 1\n", "defines no get_config"),
        ("def get_config(variant):\n    return {}['x']\n", "get_config failed: KeyError('x')"),
        ("def get_config():\n    return {}\n", "get_config failed: TypeError"),
        ("def get_config(variant):\n    return None\n", "get_config failed: AttributeError"),
        ('{"seed": 1}\n', "defines no get_config"),
        ("\x00", "cannot be run"),
    ],
)
def test_files_that_fail_are_named(tmp_path, content, part):
    path = tmp_path / "faulty.py"
    path.write_text(content)
    found = message(str(path))
    assert part in found
    assert str(path) in found


@pytest.mark.parametrize("name", ["none.py", "", "folder"])
def test_files_that_are_not_there_are_named(tmp_path, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "folder").mkdir()
    assert message(name) == f"--config={name}: no such file"


def test_a_changed_file_is_read_anew(file):
    """Python's module cache goes by size and whole seconds, and would give the old values."""
    assert load.load(file + ":demo").steps == 5
    before = os.stat(file)
    with open(file, "w") as stream:
        stream.write(FILE.replace('"demo": 5', '"demo": 6'))
    os.utime(file, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert load.load(file + ":demo").steps == 6
    assert os.listdir(os.path.dirname(file)) == ["small.py"]
