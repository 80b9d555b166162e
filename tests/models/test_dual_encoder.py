"""The dual encoder: what its outputs depend on, on one device and on eight."""

import dataclasses
import functools
import math
import re

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from unipt_jax.core.errors import ConfigError
from unipt_jax.core.sharding import make_mesh, parameter_shardings, put_batch
from unipt_jax.core.trees import flatten
from unipt_jax.models import specs
from unipt_jax.models.bert import Bert, TextSpec
from unipt_jax.models.clip import ClipText, ClipTextSpec
from unipt_jax.models.cross_modal import CrossModalSpec
from unipt_jax.models.dual_encoder import DualEncoder, DualEncoderSpec
from unipt_jax.models.pgu import PguSpec
from unipt_jax.models.token_selection import TokenSelectionSpec
from unipt_jax.models.vit import VisionSpec

B, L, M, V, D = 8, 6, 2, 24, 16
C, Q, E, F = 7, 3, 4, 6  # Identities, PGU's parts and their width, width of selected tokens.
SPEC = DualEncoderSpec(
    image=VisionSpec((8, 4), patch_size=2, hidden_size=16, layers=1, heads=4, mlp_size=32),
    text=TextSpec(V, hidden_size=16, layers=1, heads=4, mlp_size=32, max_positions=12),
    embedding_dim=D,
    pooling="max",
    pool_padding=False,
    mlm=True,
    temperature="learned",
    logit_scale=10.0,
)

END = V - 2
CLIP_TEXT = ClipTextSpec(
    V, hidden_size=16, layers=1, heads=4, mlp_size=32, max_positions=12, end_token=END
)

# What fine-tuning adds.
PGU = PguSpec(
    dictionary_size=5,
    prototypes=Q,
    part_dim=E,
    heads=2,
    dictionary_head_size=4,
    dictionary_mlp_size=8,
    prototype_layers=1,
    prototype_head_size=4,
    prototype_mlp_size=8,
)
BERT_HEADS = dataclasses.replace(
    SPEC, cross_modal=CrossModalSpec(layers=1, heads=2), pgu=PGU, identities=C, logit_bias=True
)
CLIP_HEADS = dataclasses.replace(
    BERT_HEADS,
    text=CLIP_TEXT,
    pooling="class",
    selection=TokenSelectionSpec(ratio=0.3, feature_dim=F),
)
HEADS = {"bert": BERT_HEADS, "clip": CLIP_HEADS}

each_heads = pytest.mark.parametrize("spec", HEADS.values(), ids=HEADS)


def _batch():
    rng = np.random.default_rng(0)
    lengths = rng.integers(2, L - 1, B)  # At least two places of padding in each text.
    return {
        "image": rng.integers(0, 256, (B, 8, 4, 3), np.uint8),
        "text": rng.integers(0, V, (B, L), np.int32),
        "text_mask": np.arange(L)[None] < lengths[:, None],
        "masked_text": rng.integers(0, V, (B, L), np.int32),
        "mlm_positions": rng.integers(0, 2, (B, M), np.int32),
    }


def _device(batch):
    return {name: jnp.asarray(value) for name, value in batch.items()}


@pytest.fixture(scope="module")
def start():
    """Parameters as they are initialised."""
    model, batch = DualEncoder(SPEC), _device(_batch())
    init = jax.jit(lambda k: model.init(k, batch, train=False))
    return nn.unbox(init(jax.random.key(0)))["params"]


@pytest.fixture(scope="module")
def params(start):
    """Parameters away from the start, where biases are 0 and LayerNorms do nothing."""
    rng = np.random.default_rng(1)
    return jax.tree.map(
        lambda leaf: jnp.asarray(leaf + 0.2 * rng.normal(size=leaf.shape), jnp.float32), start
    )


@functools.cache
def _compiled(spec, method="__call__"):
    model = DualEncoder(spec)
    return jax.jit(
        lambda params, *given: model.apply({"params": params}, *given, train=False, method=method)
    )


@functools.cache
def _noise(spec):
    """Parameters away from the start, of any make of dual encoder."""
    rng = np.random.default_rng(1)
    return jax.tree.map(
        lambda leaf: jnp.asarray(0.3 * rng.normal(size=leaf.shape), jnp.float32),
        specs.abstract_params(spec),
    )


def _run(params, batch, spec=SPEC):
    return _compiled(spec)(params, _device(batch))


def _encode_text(params, text, mask, pool_padding):
    spec = dataclasses.replace(SPEC, pool_padding=pool_padding)
    encode = _compiled(spec, "encode_text")
    return np.asarray(encode(params, jnp.asarray(text), jnp.asarray(mask)))


def test_shapes_and_dtypes(params):
    batch = _device(_batch())
    for dtype in (jnp.float32, jnp.bfloat16):
        model = DualEncoder(SPEC, dtype)
        outputs = jax.eval_shape(
            lambda p, b, m=model: m.apply({"params": p}, b, train=False), params, batch
        )
        assert jax.tree.map(lambda value: value.shape, outputs) == {
            "image": {"global": (B, D)},
            "text": {"global": (B, D)},
            "image_identity": {},
            "text_identity": {},
            "logit_scale": (),
            "logit_bias": (),
            "mlm_logits": (B, M, V),
        }
        assert {value.dtype for value in jax.tree.leaves(outputs)} == {jnp.dtype("float32")}


def test_call_agrees_with_the_encoders_alone(params):
    batch = _batch()
    outputs, given = _run(params, batch), _device(batch)
    image = _compiled(SPEC, "encode_image")(params, given["image"])
    text = _compiled(SPEC, "encode_text")(params, given["text"], given["text_mask"])
    np.testing.assert_allclose(outputs["image"]["global"], image, atol=1e-5)
    np.testing.assert_allclose(outputs["text"]["global"], text, atol=1e-5)

    def logits(module):
        tokens = module.text_encoder(given["masked_text"], given["text_mask"], train=False)
        table = module.text_encoder.word_table()
        return module.mlm_head(tokens, given["mlm_positions"], table)

    want = jax.jit(lambda p: DualEncoder(SPEC).apply({"params": p}, method=logits))(params)
    np.testing.assert_allclose(outputs["mlm_logits"], want, atol=1e-5)


def _ended(batch):
    """The batch with an end-of-text token at each text's last place, and as its padding."""
    last = batch["text_mask"].sum(axis=1)[:, None] - 1
    words = {name: batch[name] % END for name in ("text", "masked_text")}
    return batch | {
        name: np.where(np.arange(L)[None] < last, ids, END) for name, ids in words.items()
    }


def _everything(module, batch):
    """The outputs, each encoder's embeddings and tokens."""
    pixels = batch["image"].astype(jnp.float32) / 127.5 - 1.0
    return (
        module(batch, train=False),
        {
            "image": module.encode_image(batch["image"]),
            "text": module.encode_text(batch["text"], batch["text_mask"]),
        },
        {
            "image": module.image_encoder(pixels, train=False),
            "text": module.text_encoder(batch["text"], batch["text_mask"], train=False),
        },
    )


@pytest.mark.parametrize("mlm", [True, False])
@pytest.mark.parametrize("text", [SPEC.text, CLIP_TEXT], ids=["bert", "clip"])
@pytest.mark.parametrize("pooling", ["max", "class"])
def test_every_make_of_dual_encoder(pooling, text, mlm):
    """Outputs and parameters are the documented ones, embeddings the tokens pooled by hand."""
    spec = dataclasses.replace(
        SPEC,
        text=text,
        pooling=pooling,
        pool_padding=pooling == "class",  # Which ignores it.
        mlm=mlm,
    )
    model, batch = DualEncoder(spec), _ended(_batch())
    given = _device(batch)
    if not mlm:
        del given["masked_text"], given["mlm_positions"]
    abstract = jax.eval_shape(lambda: model.init(jax.random.key(0), given, train=False))
    rng = np.random.default_rng(1)
    params = jax.tree.map(
        lambda leaf: jnp.asarray(0.3 * rng.normal(size=leaf.shape), jnp.float32),
        nn.unbox(abstract)["params"],
    )
    names = {"image_encoder", "text_encoder", "image_head", "text_head", "logit_scale"}
    assert set(params) == (names | {"mlm_head"} if mlm else names)

    apply = jax.jit(lambda p, b: model.apply({"params": p}, b, method=_everything))
    outputs, embeddings, tokens = jax.tree.map(np.asarray, apply(params, given))
    assert ("mlm_logits" in outputs) == mlm

    last = batch["text_mask"].sum(axis=1) - 1
    places = {"image": 0, "text": last if text is CLIP_TEXT else 0}
    seen = {"image": np.True_, "text": batch["text_mask"][:, :, None]}
    for side in ("image", "text"):
        np.testing.assert_allclose(outputs[side]["global"], embeddings[side], atol=1e-6)
        projection = params[f"{side}_head"]["projection"]
        mapped = tokens[side] @ np.asarray(projection["kernel"])
        if pooling == "max":
            mapped = mapped + np.asarray(projection["bias"])
            want = np.where(seen[side], mapped, -np.inf).max(axis=1)
        else:
            assert set(projection) == {"kernel"}
            want = mapped[np.arange(B), places[side]]
        np.testing.assert_allclose(embeddings[side], want, atol=1e-5)


def test_masking_never_touches_the_text_embedding(params):
    batch = _batch()
    other = batch | {"masked_text": (batch["masked_text"] + 1) % V}
    have, want = _run(params, other), _run(params, batch)
    np.testing.assert_array_equal(have["text"]["global"], want["text"]["global"])
    assert not np.allclose(have["mlm_logits"], want["mlm_logits"])


def test_clean_and_masked_text_share_one_call(params):
    shapes = []

    def spy(following, args, kwargs, context):
        if isinstance(context.module, Bert) and context.method_name == "__call__":
            shapes.append(args[0].shape)
        return following(*args, **kwargs)

    with nn.intercept_methods(spy):
        jax.eval_shape(
            lambda p, b: DualEncoder(SPEC).apply({"params": p}, b, train=False),
            params,
            _device(_batch()),
        )
    assert shapes == [(2 * B, L)]


def test_image_embedding_is_the_maximum_over_all_tokens_of_normalised_pixels(params):
    spec = dataclasses.replace(
        SPEC, image=dataclasses.replace(SPEC.image, mean=(0.1, 0.2, 0.3), std=(0.4, 0.5, 0.6))
    )
    images = _batch()["image"]
    pixels = (images / 255.0 - np.array([0.1, 0.2, 0.3])) / np.array([0.4, 0.5, 0.6])
    model = DualEncoder(spec)
    encode = lambda module, x: module.image_encoder(x, train=False)  # noqa: E731
    tokens = jax.jit(lambda p, x: model.apply({"params": p}, x, method=encode))(
        params, jnp.asarray(pixels, jnp.float32)
    )
    head = params["image_head"]["projection"]
    want = (np.asarray(tokens) @ np.asarray(head["kernel"]) + np.asarray(head["bias"])).max(axis=1)
    have = _compiled(spec, "encode_image")(params, jnp.asarray(images))
    np.testing.assert_allclose(have, want, atol=1e-5)


def test_padding_counts_only_where_it_is_pooled(params):
    batch = _batch()
    text, mask = batch["text"], batch["text_mask"]
    other = np.where(mask, text, (text + 1) % V)
    for pool_padding in (False, True):
        want = _encode_text(params, text, mask, pool_padding)
        changed = _encode_text(params, other, mask, pool_padding)
        assert np.allclose(changed, want, atol=1e-6) == (not pool_padding)


def test_longer_padding_does_not_change_the_embedding(params):
    batch = _batch()
    longer = [np.pad(batch[name], ((0, 0), (0, 5))) for name in ("text", "text_mask")]
    np.testing.assert_allclose(
        _encode_text(params, *longer, False),
        _encode_text(params, batch["text"], batch["text_mask"], False),
        atol=1e-5,
    )


def test_logit_scale(params):
    """P71, P110: exp is taken once; without a temperature the cosine is bare."""
    assert _run(params, _batch())["logit_scale"] == pytest.approx(
        math.exp(params["logit_scale"]), rel=1e-6
    )
    rest = {name: value for name, value in params.items() if name != "logit_scale"}
    for temperature, want in (("none", 1.0), ("fixed", 10.0)):
        spec = dataclasses.replace(SPEC, temperature=temperature)
        assert _run(rest, _batch(), spec)["logit_scale"] == want


def test_a_learned_logit_scale_starts_at_the_given_value(start):
    """P71."""
    assert start["logit_scale"].shape == ()
    assert start["logit_scale"] == pytest.approx(math.log(10.0))


def test_images_must_be_bytes(params):
    images = jnp.zeros((1, 8, 4, 3))
    with pytest.raises(Exception, match=r"uint8|UInt8"):
        DualEncoder(SPEC).apply({"params": params}, images, method="encode_image")


@pytest.mark.parametrize("change", [{"embedding_dim": 0}, {"logit_scale": 0.0}])
def test_a_spec_out_of_range_is_refused(change):
    with pytest.raises(ConfigError, match=next(iter(change))):
        dataclasses.replace(SPEC, **change)


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_types_never_mix_by_accident(params, dtype, monkeypatch):
    attend = jax.nn.dot_product_attention

    def attend_by_the_usual_rules(*args, **kwargs):
        # JAX's own attention breaks the strict rules in bfloat16.
        with jax.numpy_dtype_promotion("standard"):
            return attend(*args, **kwargs)

    monkeypatch.setattr(jax.nn, "dot_product_attention", attend_by_the_usual_rules)

    def total(p, batch, key):
        model = DualEncoder(SPEC, dtype)
        outputs = model.apply({"params": p}, batch, train=True, rngs={"dropout": key})
        return sum(value.sum() for value in jax.tree.leaves(outputs))

    with jax.numpy_dtype_promotion("strict"):
        gradients = jax.eval_shape(jax.grad(total), params, _device(_batch()), jax.random.key(0))
    assert {leaf.dtype for leaf in jax.tree.leaves(gradients)} == {jnp.dtype("float32")}


def test_every_parameter_names_its_axes(key):
    model, batch = DualEncoder(SPEC), _device(_batch())
    boxed = jax.eval_shape(lambda k: model.init(k, batch, train=False), key)["params"]
    leaves = jax.tree.leaves(boxed, is_leaf=lambda x: isinstance(x, nn.LogicallyPartitioned))
    for leaf in leaves:
        assert isinstance(leaf, nn.LogicallyPartitioned)
        assert len(leaf.names) == leaf.value.ndim


# ---------------------------------------------------------------------------- with every head


@functools.cache
def _all_ways(spec):
    """One program of a model's outputs: by each way to get at its features."""

    def compute(module, batch):
        return {
            "call": module(batch, train=False),
            "masked": module(batch, train=False, reads_masked=True),
            "image": module.image_features(batch["image"]),
            "text": module.text_features(batch["text"], batch["text_mask"]),
            "masked_text": module.text_features(batch["masked_text"], batch["text_mask"]),
            "encode_image": module.encode_image(batch["image"]),
            "encode_text": module.encode_text(batch["text"], batch["text_mask"]),
        }

    # Compiled in half the time, run twice.
    compute = jax.jit(
        functools.partial(DualEncoder(spec).apply, method=compute),
        compiler_options={"xla_backend_optimization_level": 0},
    )
    return lambda batch: jax.tree.map(np.asarray, compute({"params": _noise(spec)}, _device(batch)))


@each_heads
def test_features_by_name(spec):
    widths = {"global": D, "pgu": Q * E} | ({"selection": F} if spec.selection else {})
    assert spec.features == tuple(widths)
    features = {name: (B, width) for name, width in widths.items()}
    identity = {"global": (B, 1, C), "pgu": (B, Q, C)}
    outputs = jax.eval_shape(
        lambda p, b: DualEncoder(spec, jnp.bfloat16).apply({"params": p}, b, train=False),
        _noise(spec),
        _device(_batch()),
    )
    assert jax.tree.map(lambda value: value.shape, outputs) == {
        "image": features,
        "text": features,
        "image_identity": identity,
        "text_identity": identity,
        "logit_scale": (),
        "logit_bias": (),
        "mlm_logits": (B, M, V),
    }
    assert {value.dtype for value in jax.tree.leaves(outputs)} == {jnp.dtype("float32")}
    heads = {"cross_modal", "pgu", "identity_head", "pgu_identity_head", "logit_bias"}
    if spec.selection:
        heads |= {"image_selection", "text_selection"}
    assert set(_noise(spec)) == heads | set(_noise(SPEC)) - {"mlm_head"}


@each_heads
def test_features_are_those_of_the_call_and_of_the_encoders(spec):
    found = _all_ways(spec)(_ended(_batch()))
    for side in ("image", "text"):
        assert set(found[side]) == set(spec.features)
        for name, rows in found[side].items():
            np.testing.assert_allclose(found["call"][side][name], rows, atol=1e-6, err_msg=name)
            assert np.ptp(rows, axis=0).min() > 1e-3  # No two persons alike.
        np.testing.assert_allclose(found[side]["global"], found[f"encode_{side}"], atol=1e-6)
    assert found["call"]["logit_bias"] == _noise(spec)["logit_bias"]


@each_heads
def test_logits_of_identities_are_those_of_the_features(spec):
    """One classifier for both sides; each part of PGU's features has its own."""
    found = _all_ways(spec)(_ended(_batch()))["call"]
    params = jax.tree.map(np.asarray, _noise(spec))
    for side in ("image", "text"):
        want = found[side]["global"] @ params["identity_head"]["kernel"]
        want += params["identity_head"]["bias"]
        np.testing.assert_allclose(found[f"{side}_identity"]["global"][:, 0], want, atol=1e-5)
        head = params["pgu_identity_head"]
        for part in range(Q):
            feature = found[side]["pgu"][:, part * E : (part + 1) * E]
            want = feature @ head["kernel"][part] + head["bias"][part]
            np.testing.assert_allclose(
                found[f"{side}_identity"]["pgu"][:, part], want, atol=1e-5, err_msg=f"part {part}"
            )


@each_heads
def test_a_row_depends_on_itself_alone(spec):
    """Neither on the rest of the batch nor on its padding, its ids or its length."""
    batch = _ended(_batch())
    want = _all_ways(spec)(batch)
    order = np.array([3, 0, 7, 1, 2, 6, 5, 4])
    other = {name: value[order] for name, value in batch.items()}
    other["image"][4:] = 0
    for name in ("text", "masked_text"):
        other[name][4:] = END
        other[name] = np.where(other["text_mask"], other[name], (other[name] + 5) % END)
    have = flatten(_all_ways(spec)(other))
    for path, value in flatten(want).items():
        if value.ndim:
            np.testing.assert_allclose(have[path][:4], value[order[:4]], atol=2e-5, err_msg=path)
    longer = dict(batch)
    for name in ("text", "masked_text", "text_mask"):
        longer[name] = np.pad(batch[name], ((0, 0), (0, 5)))
    have = flatten(_run(_noise(spec), longer, spec))
    for path, value in flatten(want["call"]).items():
        np.testing.assert_allclose(have[path], value, atol=2e-5, err_msg=path)


@each_heads
def test_reading_masked_texts_encodes_them_alone(spec):
    """IRRA: the text's features are those of the masked copy, which one call encodes."""
    batch = _ended(_batch())
    found = _all_ways(spec)(batch)
    for name, rows in found["masked_text"].items():
        np.testing.assert_allclose(found["masked"]["text"][name], rows, atol=1e-6, err_msg=name)
        assert not np.allclose(rows, found["text"][name], atol=1e-3)
    np.testing.assert_allclose(
        found["masked"]["mlm_logits"], found["call"]["mlm_logits"], atol=1e-5
    )
    for name, rows in found["masked"]["image"].items():
        np.testing.assert_allclose(rows, found["call"]["image"][name], atol=1e-6)

    shapes = []

    def spy(following, args, kwargs, context):
        if isinstance(context.module, Bert | ClipText) and context.method_name == "__call__":
            shapes.append(args[0].shape)
        return following(*args, **kwargs)

    # The text itself is not so much as looked at.
    given = {name: value for name, value in _device(batch).items() if name != "text"}
    apply = functools.partial(DualEncoder(spec).apply, train=False, reads_masked=True)
    with nn.intercept_methods(spy):
        jax.eval_shape(lambda p, b: apply({"params": p}, b), _noise(spec), given)
    assert shapes == [(B, L)]


def test_the_image_helps_to_guess_masked_words():
    """With cross-modal blocks alone: without them it has no say."""
    batch = _ended(_batch())
    other = batch | {"image": batch["image"][::-1]}
    for spec, sees in ((BERT_HEADS, True), (SPEC, False)):
        one, two = (_run(_noise(spec), given, spec)["mlm_logits"] for given in (batch, other))
        assert np.allclose(one, two, atol=1e-5) != sees


def test_a_logit_bias_starts_as_in_siglip(key):
    spec = dataclasses.replace(SPEC, logit_bias=True, mlm=False)
    init = jax.jit(lambda k: DualEncoder(spec).init(k, _device(_batch()), train=False))
    assert nn.unbox(init(key))["params"]["logit_bias"] == -10.0


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"selection": TokenSelectionSpec()}, "selection reads the attention of CLIP's .*BERT"),
        ({"cross_modal": CrossModalSpec(), "mlm": False}, "cross_modal .* set mlm too"),
        ({"identities": -1}, "identities=-1 is not an integer from 0 on"),
    ],
)
def test_parts_that_do_not_fit_together_are_refused(changes, message):
    with pytest.raises(ConfigError, match=message):
        dataclasses.replace(SPEC, **changes)


@pytest.mark.parametrize("sizes", [(8, 1, 1), (2, 2, 2)])
@pytest.mark.parametrize("spec", [SPEC, CLIP_HEADS], ids=["plain", "heads"])
def test_eight_devices_compute_what_one_does(spec, sizes):
    batch = _ended(_batch())
    model, mesh, params = DualEncoder(spec), make_mesh(*sizes), _noise(spec)
    given = _device(batch)
    abstract = jax.eval_shape(lambda k: model.init(k, given, train=False), jax.random.key(0))
    placed = jax.device_put(params, parameter_shardings(abstract["params"], mesh))
    with jax.set_mesh(mesh):
        step = jax.jit(lambda p, b: model.apply({"params": p}, b, train=False))
        lowered = step.lower(placed, put_batch(batch, mesh))
        # One for each projection at least; under `with mesh:` there would be none.
        assert lowered.as_text().count("sharding_constraint") > 10
        compiled = lowered.compile()
        outputs = compiled(placed, put_batch(batch, mesh))
    if sizes == (8, 1, 1):  # Data parallelism alone: no device needs another's rows.
        assert not re.search(r"all-(gather|reduce|to-all)|collective-permute", compiled.as_text())
    one = flatten(_run(params, batch, spec))
    for name, value in flatten(outputs).items():
        np.testing.assert_allclose(value, one[name], atol=2e-5, err_msg=name)
