"""Foreign weights as a whole: what does not fit is listed, and what lies beside them is used."""

import contextlib
import json
import re

import jax
import ml_dtypes
import numpy as np
import pytest
from flax import serialization
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.numpy import load_file, save_file

from unipt_jax.core.errors import ConversionError
from unipt_jax.core.trees import flatten
from unipt_jax.interop import huggingface, names, weight_files
from unipt_jax.models import specs
from unipt_jax.models.bert import TextSpec
from unipt_jax.models.clip import ClipTextSpec, vision_spec
from unipt_jax.models.dual_encoder import DualEncoderSpec

BERT = TextSpec(19, hidden_size=8, layers=2, heads=2, mlp_size=12, max_positions=6)
BERT_CONFIG = {
    "model_type": "bert",
    "vocab_size": 19,
    "hidden_size": 8,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 12,
    "max_position_embeddings": 6,
}
CLIP = DualEncoderSpec(
    image=vision_spec(
        image_size=(6, 9), patch_size=3, hidden_size=8, layers=1, heads=2, mlp_size=12
    ),
    text=ClipTextSpec(
        19, hidden_size=8, layers=1, heads=2, mlp_size=12, max_positions=6, end_token=18
    ),
    embedding_dim=8,
    pooling="class",
    pool_padding=False,
    mlm=False,
    temperature="learned",
    logit_scale=10.0,
)


def random_params(spec):
    rng = np.random.default_rng(0)
    return jax.tree.map(
        lambda leaf: rng.normal(size=leaf.shape).astype(np.float32), specs.abstract_params(spec)
    )


def write(directory, weights, config=BERT_CONFIG):
    (directory / "config.json").write_text(json.dumps(config))
    save_file(weights, directory / "model.safetensors")
    return str(directory)


@pytest.fixture(scope="module")
def params():
    return random_params(BERT)


@pytest.fixture
def weights(params):
    return names.from_flax(params, names.BERT)


def assert_equal(have, want):
    have, want = flatten(have), flatten(want)
    assert have.keys() == want.keys()
    for path, leaf in want.items():
        assert have[path].dtype == np.float32
        np.testing.assert_array_equal(have[path], leaf)


def message(*arguments, **keywords):
    with pytest.raises(ConversionError) as caught:
        huggingface.load(*arguments, **keywords)
    assert "\n" not in str(caught.value)
    return str(caught.value)


# -------------------------------------------------------------------------------- what is read


def test_a_model(params, weights, tmp_path):
    pretrained = huggingface.load(write(tmp_path, weights))
    assert pretrained.spec == BERT
    assert (str(pretrained.directory), pretrained.text_length) == (str(tmp_path), 6)
    assert_equal(pretrained.params, params)


@pytest.mark.parametrize("dtype", [np.float16, ml_dtypes.bfloat16, np.float64])
def test_every_float_becomes_float32(dtype, weights, tmp_path):
    """P73."""
    source = {name: weight.astype(dtype) for name, weight in weights.items()}
    pretrained = huggingface.load(write(tmp_path, source))
    want = {name: weight.astype(np.float32) for name, weight in source.items()}
    assert_equal(pretrained.params, huggingface.load(write(tmp_path, want)).params)


def test_flax_weights_of_hugging_face(params, weights, tmp_path):
    tree = {}
    for name, weight in weights.items():
        *scope, last = name.split(".")
        if last == "weight":
            tables = scope[-1].endswith("embeddings")
            last = "embedding" if tables else "scale" if weight.ndim == 1 else "kernel"
        node = tree
        for part in scope:
            node = node.setdefault(part, {})
        node[last] = weight.T if last == "kernel" else weight
    (tmp_path / "config.json").write_text(json.dumps(BERT_CONFIG))
    (tmp_path / "flax_model.msgpack").write_bytes(serialization.msgpack_serialize(tree))
    assert_equal(huggingface.load(str(tmp_path)).params, params)


def test_a_file_is_read_with_the_configuration_beside_it(params, weights, tmp_path):
    write(tmp_path, {})
    save_file(weights, tmp_path / "other.safetensors")
    pretrained = huggingface.load(str(tmp_path / "other.safetensors"))
    assert_equal(pretrained.params, params)
    assert str(pretrained.directory) == str(tmp_path)


def test_a_name_on_the_hub(params, weights, tmp_path, monkeypatch):
    monkeypatch.setattr(
        weight_files.huggingface_hub, "snapshot_download", lambda *_, **__: str(tmp_path)
    )
    write(tmp_path, weights)
    pretrained = huggingface.load("someone/some-bert")
    assert_equal(pretrained.params, params)
    assert str(pretrained.directory) == str(tmp_path)


@pytest.mark.parametrize("spec", [CLIP, BERT], ids=["dual_encoder", "bert"])
def test_our_own_export(spec, tmp_path):
    if spec is BERT:
        spec = DualEncoderSpec(CLIP.image, BERT, 8, "max", True, True, "fixed", 3.0)
    params = random_params(spec)
    config = {"model_type": "unipt", "spec": specs.to_dict(spec), "text_length": 4}
    directory = write(tmp_path, names.from_flax(params, names.UNIPT), config)
    pretrained = huggingface.load(directory)
    assert pretrained.spec == spec
    assert pretrained.text_length == 4
    assert_equal(pretrained.params, params)


@pytest.mark.parametrize("length", [None, 0, 7, "4"])
def test_an_export_with_another_text_length(length, tmp_path):
    weights = names.from_flax(random_params(CLIP), names.UNIPT)
    config = {"model_type": "unipt", "spec": specs.to_dict(CLIP), "text_length": length}
    assert "text_length=" in message(write(tmp_path, weights, config))


@pytest.mark.parametrize(
    ("spec", "fault"),
    [
        (None, "spec=None"),
        ([], r"spec=\[\]"),
        ({"kind": "gru"}, "unknown kind of model 'gru'"),
        ({"kind": "bert"}, "missing"),
        (specs.to_dict(BERT), "no dual_encoder"),
        ({**specs.to_dict(CLIP), "embedding_dim": 0}, "embedding_dim=0"),
    ],
)
def test_an_export_with_another_specification(spec, fault, weights, tmp_path):
    directory = write(tmp_path, weights, {"model_type": "unipt", "spec": spec})
    with pytest.raises(ConversionError, match=rf"{tmp_path}: .*{fault}"):
        huggingface.load(directory)


# ------------------------------------------------------------------------------ what fits not


def test_all_that_does_not_fit_is_listed_at_once(weights, tmp_path):
    """P16, P05: nothing stays as it was initialised without a word."""
    del weights["cls.predictions.bias"]
    del weights["bert.encoder.layer.1.output.LayerNorm.weight"]
    weights["adapter.weight"] = np.zeros(3, np.float32)
    weights["bert.encoder.layer.2.output.dense.bias"] = np.zeros(8, np.float32)
    weights["bert.embeddings.word_embeddings.weight"] = np.zeros((20, 8), np.float32)
    weights["bert.embeddings.LayerNorm.bias"] = np.zeros(8, np.int8)
    weights["bert.embeddings.LayerNorm.weight"] = np.zeros((8, 1), np.float32)
    told = message(write(tmp_path, weights))
    for fault in (
        "LayerNorm.weight of shape (8, 1) is no [?]",
        "weights without a place: adapter.weight, bert.encoder.layer.2.output.dense.bias;",
        "mlm_head/bias",
        "text_encoder/layers_1/layer_norm2/scale",
        "word_embeddings.weight has (20, 8) and not (19, 8), as text_encoder/word_embeddings",
        "bert.embeddings.LayerNorm.bias is int8",
    ):
        assert fault in told
    assert told.startswith(str(tmp_path))


def test_a_long_list_is_cut(weights, tmp_path):
    more = {f"adapter.{index}": np.zeros(1, np.float32) for index in range(30)}
    told = message(write(tmp_path, {**weights, **more}))
    assert told.count("adapter.") == 8
    assert "and 22 more" in told


def test_what_may_be_missing_is_named(weights, tmp_path):
    weights = {name: weight for name, weight in weights.items() if not name.startswith("cls.")}
    directory = write(tmp_path, weights)
    assert "mlm_head/bias" in message(directory)
    assert "mlm_head" in message(directory, allow_missing=("mlm",))
    assert set(huggingface.load(directory, allow_missing=("mlm_head",)).params) == {"text_encoder"}


@pytest.mark.parametrize(
    ("dtype", "value"), [(np.float32, np.nan), (ml_dtypes.bfloat16, np.inf), (np.float64, 1e300)]
)
def test_weights_that_are_no_finite_numbers(dtype, value, weights, tmp_path):
    name = "bert.encoder.layer.1.output.dense.bias"
    weights[name] = np.array([value, *np.zeros(7)], dtype)
    told = message(write(tmp_path, weights))
    assert told.endswith(f"infinite, not a number or beyond float32: {name}")


def test_a_part_that_may_be_missing_is_whole_if_it_is_there(weights, tmp_path):
    del weights["cls.predictions.bias"]
    told = message(write(tmp_path, weights), allow_missing=("mlm_head",))
    assert told.endswith("parameters without a weight: mlm_head/bias")


def test_another_number_of_layers_than_the_configuration_says(weights, tmp_path):
    told = message(write(tmp_path, weights, {**BERT_CONFIG, "num_hidden_layers": 1}))
    assert "weights without a place: bert.encoder.layer.1." in told
    told = message(write(tmp_path, weights, {**BERT_CONFIG, "num_hidden_layers": 3}))
    assert "parameters without a weight: text_encoder/layers_2/" in told


# -------------------------------------------------------------------------- what lies beside them


@pytest.mark.parametrize("kind", ["roberta", "siglip", "resnet"])
def test_another_architecture_is_refused_before_its_weights_are_looked_for(kind, tmp_path):
    (tmp_path / "config.json").write_text(json.dumps({"model_type": kind}))
    assert f"{tmp_path}: '{kind}' is not supported; supported are" in message(str(tmp_path))


def test_weights_that_nothing_describes(weights, tmp_path):
    save_file(weights, tmp_path / "model.safetensors")
    assert "no config.json" in message(str(tmp_path))


def test_sizes_that_do_not_go_together(weights, tmp_path):
    told = message(write(tmp_path, weights, {**BERT_CONFIG, "num_attention_heads": 3}))
    assert told.startswith(str(tmp_path))
    assert "multiple" in told


@pytest.mark.parametrize("file", ["config.json", "preprocessor_config.json", "tokenizer.json"])
def test_a_damaged_file_beside_the_weights_is_named(file, weights, tmp_path):
    directory = write(tmp_path, weights)
    (tmp_path / file).write_text("{")
    assert str(tmp_path / file) in message(directory)


@pytest.fixture
def clip_directory(tmp_path):
    tower = {
        "hidden_size": 8,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "intermediate_size": 12,
    }
    config = {
        "model_type": "clip",
        "projection_dim": 8,
        "vision_config": {**tower, "image_size": [6, 9], "patch_size": 3},
        "text_config": {
            **tower,
            "vocab_size": 19,
            "max_position_embeddings": 6,
            "eos_token_id": 18,
        },
    }
    write(tmp_path, names.from_flax(random_params(CLIP), names.CLIP), config)
    return tmp_path


@pytest.mark.parametrize("file", ["preprocessor_config.json", "processor_config.json"])
def test_pixels_are_normalised_as_the_image_processor_says(file, clip_directory):
    values = {"image_mean": [0.1, 0.2, 0.3], "image_std": [0.4, 0.5, 0.6]}
    if file == "processor_config.json":
        values = {"image_processor": values}
    (clip_directory / file).write_text(json.dumps(values))
    image = huggingface.load(str(clip_directory)).spec.image
    assert (image.mean, image.std) == ((0.1, 0.2, 0.3), (0.4, 0.5, 0.6))


def test_the_logit_scale_is_where_the_weights_have_it(clip_directory):
    pretrained = huggingface.load(str(clip_directory))
    assert pretrained.spec.logit_scale == pytest.approx(np.exp(pretrained.params["logit_scale"]))
    assert pretrained.text_length == 6


def test_an_activation_that_the_weights_were_not_trained_with(clip_directory):
    """P13."""
    told = message(str(clip_directory), activation="gelu")
    assert "--config.activation=gelu, but these weights were trained with quick_gelu" in told
    same = huggingface.load(str(clip_directory), activation="quick_gelu")
    assert same.spec == huggingface.load(str(clip_directory)).spec


def test_old_files_carry_positions(clip_directory):
    """P15."""
    want = huggingface.load(str(clip_directory)).params
    file = clip_directory / "model.safetensors"
    weights = load_file(file)
    for side, length in (("text_model", 6), ("vision_model", 7)):
        weights[f"{side}.embeddings.position_ids"] = np.arange(length)[None]
    save_file(weights, file)
    assert_equal(huggingface.load(str(clip_directory)).params, want)


# ------------------------------------------------------------------------ what nobody would write


def edited(directory, file, keys, value):
    """Puts `value` at a path of keys in a JSON file, which need not be there."""
    path = directory / file
    content = json.loads(path.read_text()) if path.exists() else {}
    node = content
    for key in keys[:-1]:
        node = node.setdefault(key, {})
    node[keys[-1]] = value
    path.write_text(json.dumps(content))


CONFIG, PROCESSOR = "config.json", "preprocessor_config.json"


@pytest.mark.parametrize(
    ("file", "keys", "value", "fault"),
    [
        (CONFIG, "model_type", ["clip"], r"\['clip'\] is not supported"),
        (CONFIG, "projection_dim", None, "embedding_dim"),
        (CONFIG, "projection_dim", 0, "embedding_dim=0 is not"),
        (CONFIG, "vision_config", [], "vision_config"),
        (CONFIG, "vision_config/image_size", [9], r"\[9\] is no size"),
        (CONFIG, "vision_config/image_size", [9, 9, 9], r"\[9, 9, 9\] is no size"),
        (CONFIG, "vision_config/image_size", -9, r"image_size=\(-9, -9\) is not"),
        (CONFIG, "vision_config/image_size", {"height": 9}, "is no size|image_size"),
        (CONFIG, "vision_config/patch_size", [3], r"\[3\] is no size"),
        (CONFIG, "vision_config/patch_size", 0, "patch_size=0 is not"),
        (CONFIG, "vision_config/hidden_size", 0, "hidden_size=0 is not"),
        (CONFIG, "vision_config/hidden_size", -8, "hidden_size=-8 is not"),
        (CONFIG, "vision_config/num_attention_heads", 0, "heads=0 is not|by zero"),
        (CONFIG, "vision_config/num_hidden_layers", -1, "layers=-1 is not"),
        (CONFIG, "vision_config/layer_norm_eps", -1.0, r"layer_norm_eps=-1\.0 is not"),
        (CONFIG, "vision_config/hidden_act", ["gelu"], "hidden_act"),
        (CONFIG, "vision_config/num_channels", None, "num_channels"),
        (CONFIG, "text_config/eos_token_id", [1, 2], "end_token"),
        (CONFIG, "text_config/eos_token_id", "18", "end_token|eos_token_id"),
        (CONFIG, "text_config/eos_token_id", 99, "end_token=99"),
        (CONFIG, "text_config/max_position_embeddings", 0, "max_positions=0 is not"),
        (PROCESSOR, "rescale_factor", None, "multiplies pixels by None"),
        (PROCESSOR, "rescale_factor", "x", "multiplies pixels by 'x'"),
        (PROCESSOR, "image_mean", ["a", "b", "c"], "mean=.*three numbers"),
        (PROCESSOR, "image_mean", [None] * 3, "mean=.*three numbers"),
        (PROCESSOR, "image_mean", [float("nan")] * 3, "mean=.*numbers from 0 on"),
        (PROCESSOR, "image_std", [0, 0.5, 0.5], "std=.*numbers above 0"),
        ("processor_config.json", "image_processor", [1], "image_processor=.* object"),
        ("vocab.json", "<|endoftext|>", "x", r"vocab\.json: <\|endoftext\|> has the id 'x'"),
    ],
)
def test_a_value_that_nobody_would_write(file, keys, value, fault, clip_directory):
    edited(clip_directory, file, keys.split("/"), value)
    told = message(str(clip_directory))
    assert told.startswith(str(clip_directory))
    assert re.search(fault, told), told


@pytest.mark.parametrize(
    ("file", "keys", "value"),
    [
        (CONFIG, "text_config/eos_token_id", [18]),
        (CONFIG, "text_config/eos_token_id", None),  # The highest id, as in old configurations.
        ("processor_config.json", "image_processor", None),
    ],
)
def test_values_that_mean_the_usual(file, keys, value, clip_directory):
    want = huggingface.load(str(clip_directory)).spec
    edited(clip_directory, file, keys.split("/"), value)
    assert huggingface.load(str(clip_directory)).spec == want


@pytest.mark.parametrize("keys", ["num_labels", "vision_config/num_labels", "id2label"])
def test_a_classifiers_labels_are_not_read(keys, clip_directory):
    """Transformers would make a thousand million of them."""
    want = huggingface.load(str(clip_directory)).spec
    edited(clip_directory, CONFIG, keys.split("/"), 10**9)
    assert huggingface.load(str(clip_directory)).spec == want


@pytest.mark.parametrize("size", [10**9, 2**31, 2**62, 10**400])
@pytest.mark.parametrize("key", ["hidden_size", "num_hidden_layers", "intermediate_size"])
def test_huge_sizes_are_refused_before_anything_is_allocated(key, size, clip_directory):
    for tower in ("vision_config", "text_config"):
        edited(clip_directory, CONFIG, [tower, key], size)
    told = message(str(clip_directory))
    assert re.search("is not at most|is more than|do not fit the model|config.json", told), told


@pytest.mark.parametrize(
    ("keys", "value", "fault"),
    [
        ("type_vocab_size", 0, "type_vocab_size=0 is not"),
        ("hidden_dropout_prob", -0.5, "dropout=-0.5 is not"),
        ("hidden_dropout_prob", 1.0, "dropout=1.0 is not in"),
        ("vocab_size", 10**30, "describes no model|vocab_size"),
    ],
)
def test_a_value_that_nobody_would_write_for_bert(keys, value, fault, weights, tmp_path):
    told = message(write(tmp_path, weights, {**BERT_CONFIG, keys: value}))
    assert re.search(fault, told), told


@pytest.mark.parametrize(
    ("keys", "value", "fault"),
    [
        ("model_cfg", [1], "model_cfg=.* object"),
        ("model_cfg/vision_cfg", None, "do not fit"),  # As if it were not there.
        ("model_cfg/vision_cfg", "x", "vision_cfg='x', where an object"),
        ("model_cfg/vision_cfg/head_width", 0, "describes no model: .*by zero"),
        ("model_cfg/vision_cfg/head_width", -4, "heads=-2 is not"),
        ("model_cfg/vision_cfg/width", "8", "describes no model"),
        ("model_cfg/vision_cfg/image_size", [9], r"\[9\] is no size"),
        ("model_cfg/text_cfg/vocab_size", None, "describes no model"),
        ("model_cfg/embed_dim", None, "embedding_dim"),
        ("preprocess_cfg", [1], "preprocess_cfg=.* object"),
    ],
)
def test_a_value_that_nobody_would_write_for_open_clip(keys, value, fault, tmp_path):
    save_file(
        names.from_flax(random_params(CLIP), names.OPENAI_CLIP),
        tmp_path / "open_clip_model.safetensors",
    )
    tower = {"width": 8, "layers": 1, "mlp_ratio": 1.5}
    image = {**tower, "image_size": [6, 9], "patch_size": 3, "head_width": 4}
    text = {**tower, "vocab_size": 19, "context_length": 6, "heads": 2}
    model = {"embed_dim": 8, "vision_cfg": image, "text_cfg": text}
    config = tmp_path / "open_clip_config.json"
    config.write_text(json.dumps({"model_cfg": model}))
    assert huggingface.load(str(tmp_path)).spec.image.image_size == (6, 9)
    edited(tmp_path, config.name, keys.split("/"), value)
    told = message(str(tmp_path))
    assert re.search(fault, told), told


SMALL = st.integers(-5, 40)  # A large number of layers is slow, but no mistake.
VALUES = st.recursive(
    st.none() | st.booleans() | SMALL | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner),
    max_leaves=4,
)
KEYS = [
    *["model_type", "projection_dim", "vision_config", "text_config"],
    *[
        f"{tower}/{key}"
        for tower in ("vision_config", "text_config")
        for key in ("hidden_size", "num_hidden_layers", "num_attention_heads", "layer_norm_eps")
    ],
    *["vision_config/image_size", "vision_config/patch_size", "vision_config/hidden_act"],
    *["text_config/vocab_size", "text_config/eos_token_id", "text_config/intermediate_size"],
    *["text_config/max_position_embeddings", "vision_config/num_channels"],
]


PIXELS = ["rescale_factor", "do_rescale", "do_normalize", "image_mean", "image_std"]


@settings(max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    config=st.dictionaries(st.sampled_from(KEYS), VALUES, min_size=1, max_size=2),
    processor=st.dictionaries(st.sampled_from(PIXELS), VALUES, max_size=2),
)
def test_any_value_is_read_or_refused_in_one_line(config, processor, clip_directory):
    original = (clip_directory / CONFIG).read_text()
    for file, values in ((CONFIG, config), (PROCESSOR, processor)):
        for keys in sorted(values):  # A tower comes before what is in it.
            with contextlib.suppress(TypeError, AttributeError):  # It may be no object any more.
                edited(clip_directory, file, keys.split("/"), values[keys])
    try:
        huggingface.load(str(clip_directory))
    except ConversionError as error:
        assert "\n" not in str(error)
    (clip_directory / CONFIG).write_text(original)
    (clip_directory / PROCESSOR).unlink(missing_ok=True)
