"""The schema refuses what does not fit, all at once, and loses nothing that does."""

import dataclasses
import json
import math
import typing

import jax
import pytest
from hypothesis import given
from hypothesis import strategies as st

from unipt_jax.config import schema
from unipt_jax.core.errors import ConfigError

MINIMAL = {
    "pretrain": {"stage": "pretrain", "data": "DIR"},
    "finetune": {"stage": "finetune", "data": "DIR"},
    "prepare": {"stage": "prepare", "dataset": "pairs", "source": "DIR"},
    "caption": {"stage": "caption", "images": "DIR"},
    "evaluate": {"stage": "evaluate", "data": "DIR", "checkpoint": "DIR"},
    "convert": {"stage": "convert", "source": "DIR"},
    "export": {"stage": "export", "checkpoint": "DIR"},
    "search": {"stage": "search", "checkpoint": "DIR", "images": "DIR"},
}


def pretrain(**values):
    """A valid configuration with some fields replaced."""
    return schema.build(MINIMAL["pretrain"] | values)


def faults(stage="pretrain", **values):
    """The message about a configuration that does not fit."""
    with pytest.raises(ConfigError) as caught:
        schema.build(MINIMAL[stage] | values)
    return str(caught.value)


def leaves(cls, prefix=""):
    """`(dotted name, dataclass field)` of every field, groups opened."""
    hints = typing.get_type_hints(cls)
    for item in dataclasses.fields(cls):
        if dataclasses.is_dataclass(hints[item.name]):
            yield from leaves(hints[item.name], f"{prefix}{item.name}.")
        else:
            yield prefix + item.name, item


def nested(name, value):
    """`{"a": {"b": value}}` for `a.b`."""
    for part in reversed(name.split(".")):
        value = {part: value}
    return value


# ---------------------------------------------------------------------------- unknown and missing


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"sedd": 1}, "sedd is unknown; did you mean 'seed'?"),
        ({"log_evry": 1}, "log_evry is unknown; did you mean 'log_every'?"),
        ({"optimizer": {"learning_rat": 1.0}}, "did you mean 'optimizer.learning_rate'?"),
        ({"mlm": {"whole_words": 1}}, "mlm.whole_words is unknown; did you mean 'mlm.whole_word'?"),
        ({"loss": {"contrastiv": 1.0}}, "is unknown; did you mean 'loss.contrastive'?"),
        # Of another group, or without one.
        (
            {"learning_rate": 1.0},
            "learning_rate is unknown; did you mean 'optimizer.learning_rate'?",
        ),
        ({"weight_decy": 1.0}, "weight_decy is unknown; did you mean 'optimizer.weight_decay'?"),
        ({"model": {"height": 8}}, "model.height is unknown; did you mean 'image.height'?"),
        ({"image": {"noise": "mask"}}, "image.noise is unknown; did you mean 'text.noise'?"),
        ({"optimiser": {"name": "adam"}}, "optimiser is unknown; did you mean 'optimizer'?"),
        ({"mesh": {"batchsize": 8}}, "mesh.batchsize is unknown; did you mean 'batch_size'?"),
        ({"init": {"image": "x"}}, "init={'image': 'x'} is not of type str"),
        ({"mesh": {"zzz": 1}}, "mesh.zzz is unknown; known: data, fsdp, tensor"),
    ],
)
def test_unknown_fields_name_the_nearest(values, message):
    assert message in faults(**values)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"stage": "pretrain"}, "data is not set; pass --config.data=..."),
        ({"stage": "finetune"}, "data is not set; pass --config.data=..."),
        ({"stage": "evaluate", "data": "d"}, "checkpoint is not set; pass --config.checkpoint=..."),
        ({"stage": "export"}, "checkpoint is not set; pass --config.checkpoint=..."),
        ({"stage": "search"}, "checkpoint is not set; pass --config.checkpoint=..."),
        ({"stage": "convert"}, "source is not set; pass --config.source=..."),
        ({"stage": "prepare"}, "dataset is not set; pass --config.dataset=..."),
        ({"stage": "pretran"}, "stage='pretran'; did you mean 'pretrain'?"),
        ({}, "stage=None; known: "),
    ],
)
def test_missing_fields_are_named(values, message):
    """No stage that needs weights makes do with random ones (P10, P25)."""
    with pytest.raises(ConfigError) as caught:
        schema.build(values)
    assert message in str(caught.value)


def test_all_faults_are_listed_at_once():
    with pytest.raises(ConfigError) as caught:
        schema.build({"stage": "pretrain", "x1": 1, "seed": "0", "image": {"flip": 2.0, "y1": 1}})
    message = str(caught.value)
    for part in ("x1 is unknown", "data is not set", "seed='0'", "image.flip=2.0", "image.y1"):
        assert part in message


# ---------------------------------------------------------------------------- types


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"seed": True}, "seed=True is not of type int"),
        ({"seed": 1.0}, "seed=1.0 is not of type int"),
        ({"seed": "1"}, "seed='1' is not of type int"),
        ({"seed": None}, "seed=None is not of type int"),
        ({"epochs": "3"}, "epochs='3' is not of type float"),
        ({"epochs": True}, "epochs=True is not of type float"),
        ({"init": 7}, "init=7 is not of type str"),
        ({"init": True}, "init=True is not of type str"),
        ({"data": 7}, "data=7 is not of type tuple of str"),
        ({"data": True}, "data=True is not of type tuple of str"),
        ({"data": ("a", 2024)}, "data=('a', 2024) is not of type tuple of str"),
        ({"data": ["a", None]}, "is not of type tuple of str"),
        ({"data": {"a": "b"}}, "data={'a': 'b'} is not of type tuple of str"),
        ({"mlm": {"whole_word": 1}}, "mlm.whole_word=1 is not of type bool"),
        ({"mlm": {"whole_word": "yes"}}, "mlm.whole_word='yes' is not of type bool"),
        ({"text": {"buckets": 32}}, "text.buckets=32 is not of type tuple of int"),
        ({"text": {"buckets": "32"}}, "text.buckets='32' is not of type tuple of int"),
        ({"text": {"buckets": (32, 4.5)}}, "text.buckets=(32, 4.5) is not of type tuple of int"),
        ({"text": {"buckets": [32, True]}}, "is not of type tuple of int"),
        ({"mesh": 8}, "mesh is a group of fields, not 8; its: data, fsdp, tensor"),
        ({"mesh": None}, "mesh is a group of fields, not None"),
    ],
)
def test_wrong_types_are_refused(values, message):
    assert message in faults(**values)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"epochs": 10**400}, "epochs=1000000"),
        ({"epochs": 10**5000}, "epochs=(a number too long to write) is not of type float"),
        ({"init": 10**5000}, "init=(a number too long to write) is not of type str"),
        ({"init": ["a" * 10_000]}, "aaa... is not of type str"),
        ({"mesh": {1: 2}}, "mesh.1 is unknown"),
        ({"se\x1bed": 1}, "'se\\x1bed' is unknown"),
    ],
)
def test_values_that_no_message_can_hold_are_refused_in_one_line(values, message):
    found = faults(**values)
    assert message in found and found.isprintable() and len(found) < 1000


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ([], r"\[\] is no group of fields"),
        ("pretrain", "'pretrain' is no group of fields"),
        (None, "None is no group of fields"),
        ({"stage": ["pretrain"]}, r"stage=\['pretrain'\]; did you mean 'pretrain'"),
        ({"stage": 10**5000}, r"stage=\(a number too long to write\)"),
    ],
)
def test_what_is_of_no_stage_is_no_configuration(values, message):
    with pytest.raises(ConfigError, match=message):
        schema.build(values)


def test_values_take_exactly_the_declared_type():
    config = pretrain(epochs=3, text={"buckets": [16, 32]}, optimizer={"weight_decay": 0})
    assert type(config.epochs) is float
    assert config.epochs == 3.0
    assert config.text.buckets == (16, 32)
    assert type(config.optimizer.weight_decay) is float


@pytest.mark.parametrize("stage", ["pretrain", "finetune", "evaluate"])
@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ("a", ("a",)),
        ("a,b", ("a", "b")),
        (" a b , c ", ("a b", "c")),
        (["a", "b"], ("a", "b")),
        (("a,b", " c"), ("a,b", " c")),
    ],
)
def test_data_sets_are_one_or_several(stage, given, expected):
    """One text names one or, with commas, several; in a list each is taken as it is."""
    assert schema.build(MINIMAL[stage] | {"data": given}).data == expected


def test_configurations_are_frozen():
    with pytest.raises(dataclasses.FrozenInstanceError):
        pretrain().seed = 1
    with pytest.raises(dataclasses.FrozenInstanceError):
        pretrain().image.height = 1


# ---------------------------------------------------------------------------- ranges


@pytest.mark.parametrize(
    ("name", "good", "bad", "message"),
    [
        ("image.height", 1, 0, "must be at least 1"),
        ("image.flip", 0.0, -0.001, "must be at least 0"),
        ("image.flip", 1.0, 1.001, "must be at most 1"),
        ("text.length", 3, 2, "must be at least 3"),
        ("text.buckets", (3,), (3, 2), "text.buckets=2 must be at least 3"),
        ("optimizer.learning_rate", 1e-12, 0.0, "must be above 0"),
        ("optimizer.beta1", 0.999, 1.0, "must be below 1"),
        ("optimizer.beta2", 0, 1, "must be below 1"),
        ("similarity.logit_scale", 100.0, 100.5, "must be at most 100"),
        ("mesh.data", -1, -2, "must be at least -1"),
        ("model.dropout", 0.9, 0.95, "must be at most 0.9"),
        ("ema", 0.999, 1.0, "must be below 1"),
        ("instances", 0, -1, "must be at least 0"),
        ("repeats", (1,), (0,), "repeats=0 must be at least 1"),
        ("image.padding", 0, -1, "must be at least 0"),
        ("image.erase", 1.0, 1.001, "must be at most 1"),
        ("image.pool", 0, -1, "must be at least 0"),
        ("text.noise_probability", 1.0, 1.001, "must be at most 1"),
        ("loss.sdm", 0.0, -0.001, "must be at least 0"),
        ("loss.ranking_margin", 1e-12, 0.0, "must be above 0"),
        ("loss.sdm_temperature", 1e-12, 0.0, "must be above 0"),
        ("loss.tal_temperature", 1e-12, 0.0, "must be above 0"),
        ("loss.tal_margin", 0.0, -0.001, "must be at least 0"),
        ("loss.soft_labels", 1.0, 1.001, "must be at most 1"),
        ("optimizer.image", 0.0, -0.001, "must be at least 0"),
        ("optimizer.text", 0.0, -0.001, "must be at least 0"),
        ("optimizer.new", 0.0, -0.001, "must be at least 0"),
        ("optimizer.bias", 0.0, -0.001, "must be at least 0"),
        ("optimizer.start", 1.0, 1.001, "must be at most 1"),
        ("optimizer.end", 1.0, 1.001, "must be at most 1"),
        ("optimizer.learning_rate", 1e-12, 1e-46, "must be above 0, and is 0.0 in 32 bits"),
        ("optimizer.epsilon", 1e-37, 1e-39, "must be above 0, and is 0.0 in 32 bits"),
        ("optimizer.beta2", 0.9999, 1 - 1e-9, "must be below 1, and is 1.0 in 32 bits"),
        ("optimizer.learning_rate", 1e38, 1e308, "must be finite in 32 bits"),
        ("steps", 2**31 - 1, 10**30, "must be at most 2147483647"),
        ("log_every", 2**31 - 1, 2**63, "must be at most 2147483647"),
        ("batch_size", 2**20, 2**63, "must be at most 1048576"),
        ("epochs", 1e6, 1e30, "must be at most 1000000"),
        ("image.height", 4096, 10**9, "must be at most 4096"),
        ("image.width", 4096, 4097, "must be at most 4096"),
        ("text.length", 4096, 10**9, "must be at most 4096"),
        ("model.embedding_dim", 16384, 10**9, "must be at most 16384"),
        ("workers", 1000, 10**6, "must be at most 1000"),
        ("repeats", (1000,), (10**9,), "repeats=1000000000 must be at most 1000"),
        ("seed", 4294967295, 4294967296, "must be at most 4294967295"),
        ("seed", 0, -1, "must be at least 0"),
    ],
)
def test_ranges_at_their_ends(name, good, bad, message):
    pretrain(**nested(name, good))
    found = faults(**nested(name, bad))
    assert name in found
    assert message in found


@pytest.mark.parametrize("number", [math.nan, math.inf])
@pytest.mark.parametrize(
    "name", [name for name, item in leaves(schema.Train) if item.type is float]
)
def test_floats_are_finite(name, number):
    """P93: an infinite field could not even be written to config.json."""
    assert f"{name}={number!r}" in faults(**nested(name, number))


def test_the_largest_seed_is_the_last_that_jax_tells_apart():
    words = {
        tuple(jax.random.key_data(jax.random.key(seed)).tolist())
        for seed in (0, 1, 2**31, schema.MAX_SEED)
    }
    assert len(words) == 4
    wrapped = jax.random.key_data(jax.random.key(schema.MAX_SEED + 1))
    assert wrapped.tolist() == jax.random.key_data(jax.random.key(0)).tolist()


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("optimizer.decay", "liner", "optimizer.decay='liner'; did you mean 'linear'?"),
        ("similarity.temperature", "zzz", "known: fixed, learned, none"),
        ("dtype", "float16", "dtype='float16'; did you mean"),
        ("compute.remat", "ful", "compute.remat='ful'; did you mean"),
        ("compute.attention", "flash", "compute.attention='flash'"),
        ("on_bad_record", "skip", "known: quarantine, stop"),
        ("optimizer.name", "adamx", "optimizer.name='adamx'; did you mean 'adam"),
        ("model.pooling", "mean", "known: class, max"),
        ("text.noise", "masked", "text.noise='masked'; did you mean 'mask'?"),
    ],
)
def test_choices(name, value, message):
    assert message in faults(**nested(name, value))


@pytest.mark.parametrize("decay", ["none", "linear", "cosine"])
def test_every_choice_is_taken(decay):
    assert pretrain(optimizer={"decay": decay}).optimizer.decay == decay


def test_pre_training_and_fine_tuning_share_their_fields():
    first, second = (schema.build(MINIMAL[stage]) for stage in ("pretrain", "finetune"))
    assert (first.stage, second.stage) == ("pretrain", "finetune")
    assert dataclasses.replace(first, stage="finetune") == second


# ---------------------------------------------------------------------------- several fields


CONTRADICTIONS = [
    ({"data": ""}, "data=['']: name one directory or more"),
    ({"data": ()}, "data=[]: name one directory or more"),
    ({"data": "a,,b"}, "data=['a', '', 'b']: name one directory or more"),
    (
        {"data": "a,b", "repeats": (2,)},
        "repeats=(2,) must have a number for each of data=['a', 'b']",
    ),
    (
        {"data": "a,b", "repeats": (2, 1), "instances": 4},
        "instances draws identities, whatever repeats says; set instances=0 or repeats=()",
    ),
    ({"steps": 0, "epochs": 0.0}, "steps and epochs are both 0"),
    ({"batch_size": 64, "accumulate": 3}, "accumulate=3 does not divide batch_size=64"),
    ({"batch_size": 1}, "batch_size=1 leaves a pair no other to be compared with"),
    (
        {"batch_size": 4, "instances": 4, "loss": {"sdm": 1.0, "identity": 1.0, "sigmoid": 1.0}},
        "a batch of batch_size=4 with one identity, and loss.sdm, loss.sigmoid would tell it",
    ),
    ({"loss": {"negatives": 1}}, "loss.negatives=1 contrasts an example with no other"),
    (
        {"batch_size": 64, "loss": {"contrastive": 1.0, "negatives": 48}},
        "loss.negatives=48 does not divide batch_size=64",
    ),
    (
        {"text": {"length": 32, "buckets": (16, 32)}},
        "text.buckets=(16, 32) must be shorter than text.length=32",
    ),
    (
        {"model": {"pool_padding": True}, "text": {"buckets": (16,)}},
        "model.pool_padding makes embeddings depend on the padded length",
    ),
    ({"text": {"noise": "corrupt"}}, "text.noise='corrupt' needs text.noise_probability above 0"),
    ({"text": {"noise": "delete"}}, "text.noise='delete' needs text.noise_probability above 0"),
    ({"paper_protocol": True}, "paper_protocol says where evaluate measures"),
    ({"mlm": {"probability": 0.0}}, "loss.mlm needs masked tokens"),
    (
        {"model": {"pgu": "paper"}, "loss": {"pgu": 0.0}},
        "model.pgu adds features that loss.pgu=0 leaves untrained",
    ),
    (
        {"model": {"cross_modal": True}, "loss": {"mlm": 0.0}},
        "model.cross_modal adds blocks that loss.mlm=0 leaves untrained",
    ),
    ({"loss": {"contrastive": 0.0}}, "no loss compares images with texts"),
    ({"loss": {"contrastive": 0.0, "identity": 1.0}}, "no loss compares images with texts"),
    ({"loss": {"contrastive": 0.0, "c_itc": 1.0}}, "no loss compares images with texts"),
]


@pytest.mark.parametrize("stage", ["pretrain", "finetune"])
@pytest.mark.parametrize(("values", "message"), CONTRADICTIONS)
def test_fields_that_contradict_each_other(stage, values, message):
    found = faults(stage, **values)
    assert {other for _, other in CONTRADICTIONS if other in found} == {message}


def test_every_comparing_loss_that_could_be_weighed_is_named():
    """What the message proposes is what then passes, and it is all that passes."""
    names = [item.name for item in dataclasses.fields(schema.Loss) if item.type is float]
    none = {"contrastive": 0.0}
    proposed = faults(loss=none).split("weigh one of ")[1].split(", ")
    assert set(proposed) < set(names)
    for name in proposed:
        assert getattr(pretrain(loss=none | {name: 0.5}).loss, name) == 0.5
    for name in {"identity", "mlm", "pgu", "c_itc"}:
        faults(loss=none | {name: 0.5})


@pytest.mark.parametrize(
    ("stage", "values", "message"),
    [
        ("evaluate", {"data": ""}, "data=['']: name one directory or more"),
        ("evaluate", {"data": []}, "data=[]: name one directory or more"),
        ("prepare", {"source": ""}, "source is not set; pass --config.source=..."),
        (
            "prepare",
            {"dataset": "drawn", "validation": 0.1},
            "drawn pedestrians are all for training",
        ),
        ("prepare", {"beam_options": ["--a=b"]}, "pass --config.beam_runner=... too"),
        (
            "prepare",
            {"beam_runner": "DirectRunner", "beam_options": ["--a", "b=c"]},
            "beam_options='b=c': an option of Beam looks like --key=value",
        ),
        ("convert", {"height": 384}, "height=384 and width=0: set both, or neither (0)"),
        ("convert", {"width": 128}, "height=0 and width=128: set both, or neither (0)"),
    ],
)
def test_fields_of_other_stages_that_contradict_each_other(stage, values, message):
    assert message in faults(stage, **values)


def test_contradictions_are_listed_at_once():
    message = faults(batch_size=10, accumulate=3, loss={"negatives": 4}, epochs=0, zzz=1)
    assert "zzz is unknown" in message
    assert message.count("does not divide") == 2
    assert "both 0" in message


@pytest.mark.parametrize(
    ("stage", "values"),
    [
        ("pretrain", {"steps": 5, "epochs": 0.0}),
        ("pretrain", {"batch_size": 64, "accumulate": 64}),
        ("pretrain", {"batch_size": 2, "loss": {"negatives": 2}}),
        ("pretrain", {"steps": 2**31 - 1}),
        ("pretrain", {"batch_size": 64, "loss": {"contrastive": 1.0, "negatives": 0}}),
        ("pretrain", {"batch_size": 64, "loss": {"contrastive": 1.0, "negatives": 64}}),
        ("pretrain", {"text": {"length": 32, "buckets": (16, 31)}}),
        ("pretrain", {"model": {"pool_padding": True}, "text": {"buckets": ()}}),
        ("pretrain", {"text": {"noise": "corrupt", "noise_probability": 0.001}}),
        ("pretrain", {"text": {"noise": "mask"}}),
        ("finetune", {"data": "a,b", "repeats": (2, 1)}),
        ("finetune", {"data": "a,b", "instances": 4}),
        ("finetune", {"batch_size": 4, "instances": 4}),
        ("finetune", {"loss": {"contrastive": 0.0, "sdm": 1.0, "negatives": 1}}),
        ("finetune", {"evaluate": True, "paper_protocol": True}),
        ("finetune", {"mlm": {"probability": 0.0}, "loss": {"mlm": 0.0}}),
        ("finetune", {"model": {"pgu": "paper"}, "loss": {"pgu": 0.5}}),
        ("finetune", {"loss": {"pgu": 0.0}}),
        ("finetune", {"model": {"cross_modal": True}}),
        ("prepare", {"dataset": "drawn", "source": ""}),
        ("convert", {"height": 384, "width": 128}),
    ],
)
def test_fields_that_agree(stage, values):
    assert isinstance(schema.build(MINIMAL[stage] | values), schema.STAGES[stage])


# ---------------------------------------------------------------------------- round trip


@given(
    values=st.fixed_dictionaries(
        {},
        optional={
            "data": st.lists(st.text(min_size=1), min_size=1, max_size=3),
            "init": st.text(),
            "seed": st.integers(0, 2**32 - 1),
            "epochs": st.floats(0.5, 1e6) | st.integers(1, 1000),
            "dtype": st.sampled_from(["float32", "bfloat16"]),
            "image": st.fixed_dictionaries({}, optional={"flip": st.floats(0, 1)}),
            "text": st.fixed_dictionaries({"buckets": st.lists(st.integers(3, 99), max_size=3)}),
            "mlm": st.fixed_dictionaries({"whole_word": st.booleans()}),
            "optimizer": st.fixed_dictionaries(
                {}, optional={"learning_rate": st.floats(1e-9, 1), "clip_norm": st.floats(0, 10)}
            ),
        },
    )
)
def test_round_trip_through_json(values):
    config = pretrain(**values)
    plain = json.loads(json.dumps(schema.to_dict(config), allow_nan=False))
    assert schema.build(plain) == config
    for name, value in values.items():
        for key, entry in value.items() if isinstance(value, dict) else [(None, value)]:
            assert (plain[name] if key is None else plain[name][key]) == entry


@pytest.mark.parametrize("stage", sorted(schema.STAGES))
def test_a_minimal_configuration_gets_every_default(stage):
    config = schema.build(MINIMAL[stage])
    assert type(config) is schema.STAGES[stage]
    assert schema.build(schema.to_dict(config)) == config


ASKED = {"query": "a man", "clip": "DIR"}


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"query": "a man", "picture": "a.jpg"}, "query and picture are both set"),
        ({"where": ["gender=male"]}, "where is set, but neither query nor picture"),
        ({"without": "a hat"}, "without is set, but neither"),
        ({"sheet": "a.png"}, "sheet is set, but neither"),
        (ASKED | {"sheet": "a.gif"}, "sheet='a.gif': expected a name that ends in .png"),
        ({"query": "a man", "where": ["gender=male"]}, "where needs clip"),
        (ASKED | {"where": ["gender=male", "red"]}, "where='red': expected ATTRIBUTE=PHRASE"),
        (ASKED | {"where": ["gender="]}, "where='gender=': expected"),
        (ASKED | {"where": ["=male"]}, "where='=male': expected"),
    ],
)
def test_a_search_asks_for_one_thing(values, message):
    with pytest.raises(ConfigError, match=message):
        schema.build(MINIMAL["search"] | values)


def test_to_dict_holds_plain_values():
    plain = schema.to_dict(pretrain(text={"buckets": (8,), "length": 16}))
    assert plain["text"] == {
        "tokenizer": "bert-base-uncased",
        "length": 16,
        "buckets": [8],
        "noise": "none",
        "noise_probability": 0.0,
    }
    assert type(plain["text"]["buckets"]) is list
    assert plain["data"] == ["DIR"] and type(plain["data"]) is list


# ---------------------------------------------------------------------------- declarations


STAGE_LEAVES = [
    pytest.param(item, id=f"{stage}-{name}")
    for cls, stage in {cls: stage for stage, cls in schema.STAGES.items()}.items()
    for name, item in leaves(cls)
]


@pytest.mark.parametrize("item", STAGE_LEAVES)
def test_every_field_tells_what_it_means(item):
    assert len(item.metadata["doc"].strip()) >= 5


@pytest.mark.parametrize("item", STAGE_LEAVES)
def test_every_default_is_of_its_type_and_in_its_range(item):
    if item.default is dataclasses.MISSING:
        return
    limits, kind = item.metadata, typing.get_origin(item.type) or item.type
    assert type(item.default) is kind
    for entry in item.default if isinstance(item.default, tuple) else [item.default]:
        assert not limits["choices"] or entry in limits["choices"]
        assert limits["at_least"] is None or entry >= limits["at_least"]
        assert limits["above"] is None or entry > limits["above"]
        assert limits["at_most"] is None or entry <= limits["at_most"]
        assert limits["below"] is None or entry < limits["below"]


@pytest.mark.parametrize("cls", dict.fromkeys(schema.STAGES.values()))
def test_the_first_field_of_a_stage_is_its_name(cls):
    first = dataclasses.fields(cls)[0]
    stages = tuple(stage for stage, used in schema.STAGES.items() if used is cls)
    assert (first.name, first.metadata["choices"]) == ("stage", stages)


def test_describe_opens_groups_in_order():
    rows = schema.describe(schema.Train)
    assert [row.name for row in rows] == [name for name, _ in leaves(schema.Train)]
    assert rows[1] == (
        "data",
        "tuple of str",
        "required",
        "directories that launch/prepare.py or launch/caption.py wrote, trained on together",
        "",
        "Training of the dual encoder: pre-training on pseudo texts, or fine-tuning.",
    )
    found = {row.name: row for row in rows}
    assert found["text.buckets"][1:3] == ("tuple of int", ())
    assert found["text.buckets"].group == "What happens to captions."


@pytest.mark.parametrize(
    ("name", "limits"),
    [
        ("seed", "0 to 4294967295"),
        ("batch_size", "1 to 1048576"),
        ("log_every", "at least 1"),
        ("ema", "at least 0, below 1"),
        ("similarity.logit_scale", "above 0, at most 100"),
        ("optimizer.warmup", "0 to 1"),
        ("optimizer.decay", "one of none, linear, cosine"),
        ("evaluate", ""),
    ],
)
def test_limits_in_words(name, limits):
    assert {row.name: row.limits for row in schema.describe(schema.Train)}[name] == limits


# ---------------------------------------------------------------------------- resuming


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ({"seed": 1}, ["seed: 0 before, 1 now"]),
        ({"optimizer": {"beta2": 0.98}}, ["optimizer.beta2: 0.999 before, 0.98 now"]),
        (
            {"dtype": "bfloat16", "text": {"length": 64}},
            ["dtype: 'float32' before, 'bfloat16' now", "text.length: 100 before, 64 now"],
        ),
        ({"log_every": 7, "checkpoint_every": 9, "keep_checkpoints": 1, "workers": 2}, []),
        ({"dry_run": True, "tracker": "wandb"}, []),
        ({"data": "elsewhere", "mesh": {"data": 2, "fsdp": 4}}, []),
        ({"compute": {"remat": "full", "attention": "fused"}}, []),
        ({"compute": {"scan": True}}, ["compute.scan: False before, True now"]),
        ({"loss": {"sdm": 1.0}}, ["loss.sdm: 0.0 before, 1.0 now"]),
        ({"init": "elsewhere"}, ["init: '' before, 'elsewhere' now"]),
        ({"stage": "finetune"}, ["stage: 'pretrain' before, 'finetune' now"]),
        ({}, []),
    ],
)
def test_resume_differences(values, expected):
    assert schema.resume_differences(pretrain(), pretrain(**values)) == expected


def test_another_stage_cannot_be_resumed():
    old, new = schema.build(MINIMAL["prepare"]), schema.build(MINIMAL["pretrain"])
    assert schema.resume_differences(old, new) == ["stage: 'prepare' before, 'pretrain' now"]
