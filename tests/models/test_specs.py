"""Specifications as plain values: what comes back from JSON, and what is refused."""

import dataclasses
import json

import flax.linen as nn
import jax
import jax.numpy as jnp
import pytest
from hypothesis import given
from hypothesis import strategies as st

from unipt_jax.core.errors import CheckpointError, ConfigError
from unipt_jax.models import specs
from unipt_jax.models.bert import TextSpec
from unipt_jax.models.clip import ClipTextSpec
from unipt_jax.models.cross_modal import CrossModalSpec
from unipt_jax.models.dual_encoder import DualEncoder, DualEncoderSpec
from unipt_jax.models.pgu import PguSpec
from unipt_jax.models.token_selection import TokenSelectionSpec
from unipt_jax.models.vit import VisionSpec

sizes = st.integers(1, 4096)
depths = st.integers(1, 256)
epsilons = st.floats(1e-12, 1e-3)
activations = st.sampled_from(["gelu", "gelu_tanh", "quick_gelu"])
channels = st.tuples(*[st.floats(0.01, 1.0)] * 3)


@st.composite
def vision(draw):
    patch, heads = draw(sizes), draw(sizes)
    return VisionSpec(
        image_size=(patch * draw(sizes), patch * draw(sizes)),
        patch_size=patch,
        hidden_size=heads * draw(sizes),
        layers=draw(depths),
        heads=heads,
        mlp_size=draw(sizes),
        layer_norm_eps=draw(epsilons),
        activation=draw(activations),
        distillation_token=draw(st.booleans()),
        pre_layer_norm=draw(st.booleans()),
        patch_bias=draw(st.booleans()),
        mean=draw(channels),
        std=draw(channels),
    )


@st.composite
def bert(draw):
    heads = draw(sizes)
    return TextSpec(
        vocab_size=draw(sizes),
        hidden_size=heads * draw(sizes),
        layers=draw(depths),
        heads=heads,
        mlp_size=draw(sizes),
        max_positions=draw(sizes),
        type_vocab_size=draw(sizes),
        layer_norm_eps=draw(epsilons),
        activation=draw(activations),
        dropout=draw(st.floats(0, 0.99)),
    )


@st.composite
def clip_text(draw):
    heads, vocab_size = draw(sizes), draw(sizes)
    return ClipTextSpec(
        vocab_size=vocab_size,
        hidden_size=heads * draw(sizes),
        layers=draw(depths),
        heads=heads,
        mlp_size=draw(sizes),
        max_positions=draw(sizes),
        end_token=draw(st.integers(0, vocab_size - 1)),
        layer_norm_eps=draw(epsilons),
        activation=draw(activations),
    )


pgu = st.builds(
    PguSpec,
    **{
        field.name: depths if field.name.endswith("layers") else sizes
        for field in dataclasses.fields(PguSpec)
    },
)
selection = st.builds(TokenSelectionSpec, ratio=st.floats(0.01, 1.0), feature_dim=sizes)
cross_modal = st.builds(CrossModalSpec, layers=depths, heads=sizes)


def _fitting(text, mlm, cross_modal, selection, **values):
    """A dual encoder of the parts among these that fit together."""
    return DualEncoderSpec(
        text=text,
        mlm=mlm,
        cross_modal=cross_modal if mlm else None,
        selection=selection if isinstance(text, ClipTextSpec) else None,
        **values,
    )


dual_encoders = st.builds(
    _fitting,
    image=vision(),
    text=bert() | clip_text(),
    embedding_dim=sizes,
    pooling=st.sampled_from(["max", "class"]),
    pool_padding=st.booleans(),
    mlm=st.booleans(),
    temperature=st.sampled_from(["none", "fixed", "learned"]),
    logit_scale=st.floats(1e-3, 100.0),
    logit_bias=st.booleans(),
    cross_modal=st.none() | cross_modal,
    pgu=st.none() | pgu,
    selection=st.none() | selection,
    identities=st.integers(0, 10**6),
)

SPEC = DualEncoderSpec(
    image=VisionSpec((8, 4), patch_size=2, hidden_size=16, layers=2, heads=4, mlp_size=32),
    text=TextSpec(24, hidden_size=16, layers=1, heads=4, mlp_size=32, max_positions=12),
    embedding_dim=8,
    pooling="max",
    pool_padding=False,
    mlm=True,
    temperature="learned",
    logit_scale=10.0,
)


HEADS = dataclasses.replace(
    SPEC,
    text=ClipTextSpec(
        24, hidden_size=16, layers=1, heads=4, mlp_size=32, max_positions=12, end_token=3
    ),
    logit_bias=True,
    cross_modal=CrossModalSpec(layers=1, heads=2),
    pgu=PguSpec(7, 3, 4, 2, 4, 8, 1, 4, 8),
    selection=TokenSelectionSpec(feature_dim=6),
    identities=5,
)


@given(vision() | bert() | clip_text() | dual_encoders)
def test_json_gives_back_the_same_spec(spec):
    back = specs.from_dict(json.loads(json.dumps(specs.to_dict(spec))))
    assert type(back) is type(spec)
    assert back == spec
    assert specs.to_dict(back) == specs.to_dict(spec)
    assert hash(back) == hash(spec)  # Tuples are tuples again: a list cannot be hashed.


def test_kinds_by_hand():
    values = specs.to_dict(SPEC)
    assert (values["kind"], values["image"]["kind"], values["text"]["kind"]) == (
        "dual_encoder",
        "vit",
        "bert",
    )
    assert values["image"]["image_size"] == [8, 4]
    assert values["text"] == {
        "kind": "bert",
        "vocab_size": 24,
        "hidden_size": 16,
        "layers": 1,
        "heads": 4,
        "mlp_size": 32,
        "max_positions": 12,
        "type_vocab_size": 2,
        "layer_norm_eps": 1e-12,
        "activation": "gelu",
        "dropout": 0.1,
    }
    parts = {name: values[name] for name in ("cross_modal", "pgu", "selection", "identities")}
    assert parts == {"cross_modal": None, "pgu": None, "selection": None, "identities": 0}
    full = specs.to_dict(HEADS)
    assert full["selection"] == {"kind": "token_selection", "ratio": 0.3, "feature_dim": 6}
    assert full["cross_modal"] == {"kind": "cross_modal", "layers": 1, "heads": 2}
    assert (full["pgu"]["kind"], full["pgu"]["prototypes"], full["identities"]) == ("pgu", 3, 5)


@pytest.mark.parametrize("kind", ["resnet", "", None])
def test_an_unknown_kind_is_named(kind):
    with pytest.raises(CheckpointError, match=f"unknown kind of model {kind!r}"):
        specs.from_dict(specs.to_dict(SPEC) | {"kind": kind})
    without = {name: value for name, value in specs.to_dict(SPEC).items() if name != "kind"}
    with pytest.raises(CheckpointError, match="unknown kind of model None"):
        specs.from_dict(without)


def _at(values, path, change):
    if not path:
        return change(values)
    return values | {path[0]: _at(values[path[0]], path[1:], change)}


@pytest.mark.parametrize(
    ("spec", "path", "kind", "dropped"),
    [
        (SPEC, (), "dual_encoder", "mlm"),
        (SPEC, ("image",), "vit", "patch_bias"),
        (SPEC, ("text",), "bert", "dropout"),
        (SPEC, (), "dual_encoder", "pgu"),
        (HEADS, ("text",), "clip_text", "activation"),
        (HEADS, ("cross_modal",), "cross_modal", "layers"),
        (HEADS, ("pgu",), "pgu", "part_dim"),
        (HEADS, ("selection",), "token_selection", "ratio"),
    ],
)
def test_unknown_and_missing_fields_are_named(spec, path, kind, dropped):
    """Also a field with a default: the version that wrote none may have meant another value."""

    def drop(values):
        return {name: value for name, value in values.items() if name != dropped}

    missing = _at(specs.to_dict(spec), path, drop)
    with pytest.raises(CheckpointError, match=rf"kind '{kind}' .*missing \['{dropped}'\]"):
        specs.from_dict(missing)
    more = _at(specs.to_dict(spec), path, lambda values: values | {"rotary": True, "alibi": 1})
    with pytest.raises(CheckpointError, match=rf"kind '{kind}' .*unknown \['alibi', 'rotary'\]"):
        specs.from_dict(more)


@pytest.mark.parametrize(
    ("path", "name", "value"),
    [
        ((), "embedding_dim", 0),
        ((), "logit_scale", 0.0),
        ((), "logit_scale", float("inf")),
        ((), "identities", -1),
        (("image",), "image_size", [0, 4]),
        (("image",), "patch_size", 0),
        (("image",), "hidden_size", -16),
        (("image",), "layers", -1),
        (("image",), "layer_norm_eps", -1e-6),
        (("image",), "std", [0.5, 0.0, 0.5]),
        (("image",), "mean", [0.5, float("nan"), 0.5]),
        (("text",), "end_token", -1),
        (("text",), "mlp_size", 0),
        (("text",), "max_positions", 0),
    ],
)
def test_a_value_that_its_field_cannot_have_is_named(path, name, value):
    values = _at(specs.to_dict(HEADS), path, lambda values: values | {name: value})
    with pytest.raises(ConfigError, match=rf"^{name}=.* is not ") as caught:
        specs.from_dict(values)
    assert "\n" not in str(caught.value)


def test_all_such_values_are_named_at_once():
    values = specs.to_dict(SPEC.image) | {"patch_size": 0, "heads": -1, "mean": [0.0, -1.0, 0.0]}
    with pytest.raises(ConfigError) as caught:
        specs.from_dict(values)
    assert str(caught.value) == (
        "patch_size=0 is not an integer above 0; heads=-1 is not an integer above 0; "
        "mean=(0.0, -1.0, 0.0) is not 3 numbers from 0 on"
    )


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (specs.to_dict(SPEC.text) | {"hidden_size": 10}, r"hidden_size=10 .* heads=4"),
        (specs.to_dict(SPEC) | {"selection": specs.to_dict(HEADS)["selection"]}, "selection reads"),
        (specs.to_dict(HEADS) | {"mlm": False}, "cross_modal is of the masked language model"),
    ],
)
def test_values_that_do_not_fit_together_are_refused(values, message):
    with pytest.raises(ConfigError, match=message):
        specs.from_dict(values)


def _shapes(tree):
    return jax.tree.map(lambda leaf: (leaf.shape, str(leaf.dtype)), tree)


@pytest.mark.parametrize(
    "spec",
    [SPEC, dataclasses.replace(SPEC, mlm=False), HEADS],
    ids=["mlm", "no_mlm", "heads"],
)
def test_abstract_parameters_are_those_of_the_model(key, spec):
    batch = {
        "image": jnp.zeros((2, 8, 4, 3), jnp.uint8),
        "text": jnp.zeros((2, 12), jnp.int32),
        "text_mask": jnp.ones((2, 12), bool),
        "masked_text": jnp.zeros((2, 12), jnp.int32),
        "mlm_positions": jnp.zeros((2, 3), jnp.int32),
    }
    variables = jax.eval_shape(lambda: DualEncoder(spec).init(key, batch, train=False))
    assert _shapes(specs.abstract_params(spec)) == _shapes(nn.unbox(variables)["params"])


def test_one_encoder_has_its_place_in_the_dual_encoder():
    whole = _shapes(specs.abstract_params(SPEC))
    image = _shapes(specs.abstract_params(SPEC.image))
    assert image == {"image_encoder": whole["image_encoder"]}
    text = _shapes(specs.abstract_params(SPEC.text))
    assert text == {name: whole[name] for name in ("text_encoder", "mlm_head")}
