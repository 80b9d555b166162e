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
    ("suffix", "steps"),
    [
        ("", 0),
        (":", 0),
        (":demo", 5),
        (":long", 500),
        (":demo,long", 500),
        (":long,demo", 5),
        (":long,seed=1,demo", 5),
    ],
)
def test_variants(file, suffix, steps):
    config = load.load(file + suffix)
    assert (config.steps, config.optimizer.warmup, config.data) == (steps, 0.2, ("DIR",))


def test_pairs_in_the_name_and_overrides(file):
    config = load.load(
        file + ":demo,seed=3,optimizer.warmup=0.5,text.buckets=(16,32),data=a=b",
        {"seed": "4", "optimizer.decay": "linear"},
    )
    assert (config.steps, config.seed, config.data) == (5, 4, ("a=b",))
    assert (config.optimizer.warmup, config.optimizer.decay) == (0.5, "linear")
    assert config.text.buckets == (16, 32)
    assert load.load(file + ":seed=1,demo,seed=2").seed == 2


@pytest.mark.parametrize(
    ("spec", "words"),
    [
        ("f.py:a,b", ["a", "b"]),
        ("f.py:a,x=(1,2),b,y=[3,4]", ["a", "x=(1,2)", "b", "y=[3,4]"]),
        ("f.py:x=1,x=2,a,", ["x=1", "x=2", "a"]),
        ("f.py", []),
    ],
)
def test_split_spec(spec, words):
    assert load.split_spec(spec) == ("f.py", words)


CHOICES = """
from ml_collections import ConfigDict

VARIANTS = {
    "recipe=sdm": {"loss": {"sdm": 2.0}},
    "recipe=tal": {"loss": {"tal": 3.0}},
    "init=sdm": {"init": "there"},
}


def get_config(variant=""):
    config = ConfigDict({"stage": "finetune", "data": "d", "init": "", "loss": {}})
    with config.unlocked():
        for name in filter(None, variant.split(",")):
            config.update(VARIANTS[name])
    return config
"""


@pytest.fixture
def choices(tmp_path):
    """A configuration file whose variants look like fields: `recipe` is none, `init` is one."""
    path = tmp_path / "choices.py"
    path.write_text(CHOICES)
    return str(path)


def test_variants_may_look_like_fields(choices):
    """`recipe=sdm` is a variant; `init=sdm` is one too, and any other `init` sets the field."""
    config = load.load(f"{choices}:recipe=sdm,init=sdm,seed=3")
    assert (config.loss.sdm, config.loss.tal, config.init, config.seed) == (2.0, 0.0, "there", 3)
    assert load.load(f"{choices}:init=elsewhere").init == "elsewhere"
    assert load.load(f"{choices}:init=").init == ""
    both = load.load(f"{choices}:recipe=sdm,recipe=tal").loss
    assert (both.sdm, both.tal) == (2.0, 3.0)


def test_fields_go_before_variants_wherever_they_stand(choices):
    for suffix in ("init=elsewhere,init=sdm", "init=sdm,init=elsewhere"):
        assert load.load(f"{choices}:{suffix}").init == "elsewhere"
    assert load.load(f"{choices}:init=sdm", {"init": "last"}).init == "last"


@pytest.mark.parametrize(
    ("suffix", "part"),
    [
        ("recipe=xyz", "has no variant 'recipe=xyz'; did you mean 'recipe="),
        ("recipe=sdn", "has no variant 'recipe=sdn'; did you mean 'recipe=sdm'?"),
        ("recipe=", "has no variant 'recipe='; did you mean 'recipe="),
        ("recipe=sdm,recipe=tall", "has no variant 'recipe=tall'; did you mean 'recipe=tal'?"),
        ("sdm", "has no variant 'sdm'; "),
        ("recip=sdm", "recip is unknown"),
        ("inti=sdm", "inti is unknown; did you mean 'init'?"),
        ("loss.sdn=1.0", "loss.sdn is unknown; did you mean 'loss.sdm'?"),
    ],
)
def test_what_is_neither_variant_nor_field_is_answered_with_the_nearest(choices, suffix, part):
    assert part in message(f"{choices}:{suffix}")


def test_a_variant_is_no_field_on_the_command_line(choices):
    assert "recipe is unknown" in message(choices, {"recipe": "sdm"})


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
        ("init", "007", "007"),
        ("init", "1e3", "1e3"),
        ("init", "True", "True"),
        ("init", "None", "None"),
        ("init", "(1, 2)", "(1, 2)"),
        ("init", "'quoted'", "'quoted'"),
        ("init", "a b", "a b"),
        ("init", "a,b", "a,b"),
        ("text.tokenizer", "42", "42"),
        ("data", "2024", ("2024",)),
        ("data", "1e3", ("1e3",)),
        ("data", "True", ("True",)),
        ("data", "None", ("None",)),
        ("data", "'quoted'", ("'quoted'",)),
        ("data", "a b", ("a b",)),
        ("data", "a,b", ("a", "b")),
        ("data", "a, 7", ("a", "7")),
        ("data", "('a', '7')", ("a", "7")),
        ("data", "['a,b']", ("a,b",)),
        ("data", "(odd", ("(odd",)),
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
    assert load.load(str(path), {"init": text}).init == text


@given(
    names=st.lists(
        st.text(st.characters(exclude_characters=","), min_size=1)
        .map(str.strip)
        .filter(lambda name: name and name[0] not in "(["),
        min_size=1,
    )
)
def test_names_of_data_sets_are_never_changed(names, tmp_path_factory):
    path = tmp_path_factory.getbasetemp() / "any.py"
    path.write_text(FILE)
    assert load.load(str(path), {"data": ",".join(names)}).data == tuple(names)
    assert load.load(str(path), {"data": ", ".join(names)}).data == tuple(names)
    assert load.load(str(path), {"data": repr(names)}).data == tuple(names)


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
        ("data", True, "data=True is not of type tuple of str"),
        ("data", "(1, 2)", "data=(1, 2) is not of type tuple of str"),
        ("data", "", "data=['']: name one directory or more"),
        ("data", "a,", "data=['a', '']: name one directory or more"),
        ("data", "()", "data=[]: name one directory or more"),
        ("init", True, "init=True is not of type str"),
        (
            "optimizer.warmpu",
            "0.1",
            "optimizer.warmpu is unknown; did you mean 'optimizer.warmup'?",
        ),
        ("sedd", "1", "sedd is unknown; did you mean 'seed'?"),
        ("optimizr.warmup", "1", "optimizr is unknown; did you mean 'optimizer'?"),
        ("data.x", "1", "data.x: 'data' is a value, not a group of fields"),
        ("optimizer.warmup.x", "1", "'warmup' is a value, not a group of fields"),
        ("seed.x", "1", "seed={'x': 1} is not of type int"),
        ("optimizer", "1", "optimizer is a group of fields, not 1"),
        ("optimizer", "{[]: 1}", "optimizer is a group of fields, not '{[]: 1}'"),
        ("optimizer", "{1: 1}", "optimizer.1 is unknown"),
        ("seed", "(" * 10_000, "seed='((("),
        ("seed", "-" * 100_000 + "1", "seed='---"),
        ("seed", "9" * 5000, "seed='999"),
        ("seed", "0x" + "f" * 5000, "seed=(a number too long to write) must be at most 4294967295"),
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
