"""Weights and what lies beside them, damaged anywhere: taken as they were written, or refused."""

import json
import tempfile
import warnings
from pathlib import Path

import numpy as np
import pytest
import safetensors.numpy
from flax import serialization
from hypothesis import given
from hypothesis import strategies as st

from tests.fuzz.outcomes import clear
from unipt_jax.core.errors import ConversionError
from unipt_jax.data import tokenization
from unipt_jax.interop import foreign_specs, names, weight_files
from unipt_jax.models.bert import TextSpec
from unipt_jax.models.dual_encoder import DualEncoderSpec
from unipt_jax.models.vit import VisionSpec
from unipt_jax.training import model_file

WEIGHTS = {
    "a.weight": np.arange(6, dtype=np.float32).reshape(2, 3),
    "b.bias": np.arange(3, dtype=np.float16),
}
FLAX = {"a": {"kernel": WEIGHTS["a.weight"].T}, "b": {"bias": WEIGHTS["b.bias"]}}
FEW = {"[PAD]": 0, "[UNK]": 1, "[CLS]": 2, "[SEP]": 3, "[MASK]": 4, "a": 5, "man": 6, "##s": 7}


def _torch(write):
    """Returns the bytes that PyTorch writes, by `write(torch, path)`."""
    torch = pytest.importorskip("torch")
    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # TorchScript is old.
        write(torch, path := f"{folder}/weights.pt")
        return Path(path).read_bytes()


def _state_dict(torch):
    return {name: torch.tensor(value) for name, value in WEIGHTS.items()}


def _scripted(torch):
    module = torch.nn.Module()
    for name, value in WEIGHTS.items():
        part, last = name.split(".")
        module.add_module(part, torch.nn.Module())
        getattr(module, part).register_buffer(last, torch.tensor(value))
    return torch.jit.script(module)


FORMATS = {
    "checked.safetensors": lambda: safetensors.numpy.save(
        WEIGHTS, {weight_files.CHECKSUM: weight_files.checksum(WEIGHTS)}
    ),
    "model.safetensors": lambda: safetensors.numpy.save(WEIGHTS),
    "flax_model.msgpack": lambda: serialization.msgpack_serialize(FLAX),
    "new.pt": lambda: _torch(lambda torch, path: torch.save(_state_dict(torch), path)),
    "old.pt": lambda: _torch(
        lambda torch, path: torch.save(
            _state_dict(torch), path, _use_new_zipfile_serialization=False
        )
    ),
    "script.pt": lambda: _torch(lambda torch, path: _scripted(torch).save(path)),
}


@st.composite
def damage(draw):
    """Returns a change of bytes: some replaced, taken away, put in, or the end cut off."""
    kind = draw(st.sampled_from(["replace", "remove", "insert", "cut", "flip"]))
    share, count = draw(st.floats(0, 1, exclude_max=True)), draw(st.integers(1, 8))
    new = draw(st.binary(min_size=count, max_size=count))

    def change(content):
        at = int(share * len(content))
        if kind == "cut":
            return content[:at]
        if kind == "flip":
            one = bytes([content[at] ^ (1 << (new[0] % 8))])
            return content[:at] + one + content[at + 1 :]
        rest = content[at + count * (kind != "insert") :]
        return content[:at] + (b"" if kind == "remove" else new) + rest

    return change


@pytest.fixture(scope="module", params=FORMATS)
def written(request):
    """The name of a file and its bytes."""
    return request.param, FORMATS[request.param]()


@given(damage())
def test_a_damaged_file_of_weights(written, change):
    """Small arrays, however it claims to hold large ones; where there is a checksum, the same."""
    name, content = written
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / name
        path.write_bytes(damaged := change(content))
        found = clear(
            lambda: weight_files.read(weight_files.find(weight_files.locate(str(path)))),
            names=name,
        ).value
    if found is None:
        return
    assert sum(array.nbytes for array in found.values()) <= 2 * len(damaged)
    assert all(isinstance(each, str) for each in found)
    if name == "checked.safetensors" and weight_files.CHECKSUM.encode() in damaged:
        assert found.keys() == WEIGHTS.keys()
        for each, array in WEIGHTS.items():
            np.testing.assert_array_equal(found[each], array)


JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**70), 2**70)
    | st.sampled_from([0, 1, 2, 3, 8, 16, 10**9])
    | st.floats()
    | st.sampled_from(["", "gelu", "quick_gelu", "vit", "bert", "[CLS]", "a\nb", "\ud800"]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner),
    max_leaves=5,
)


def places(value, before=()):
    """Lists the ways to each part of a JSON value."""
    if isinstance(value, dict | list):
        for key, part in value.items() if isinstance(value, dict) else enumerate(value):
            yield (*before, key)
            yield from places(part, (*before, key))


@st.composite
def altered(draw, value):
    """A JSON value of which a part or two is another, or is taken away."""
    value = json.loads(json.dumps(value))
    for _ in range(draw(st.integers(1, 2))):
        *way, last = draw(st.sampled_from(list(places(value)) or [("more",)]))
        node = value
        for key in way:
            node = node[key]
        if draw(st.booleans()) and isinstance(node, dict):
            node.pop(last, None)
        else:
            node[last] = draw(JSON)
    return value


TOKENIZER = {
    "version": "1.0",
    "truncation": None,
    "padding": None,
    "added_tokens": [
        {
            **dict.fromkeys(["single_word", "lstrip", "rstrip", "normalized"], False),
            **{"id": number, "content": token, "special": True},
        }
        for token, number in FEW.items()
        if number < 5
    ],
    "normalizer": {
        "type": "BertNormalizer",
        **dict.fromkeys(["clean_text", "handle_chinese_chars", "lowercase"], True),
        "strip_accents": None,
    },
    "pre_tokenizer": {"type": "BertPreTokenizer"},
    "post_processor": {"type": "BertProcessing", "sep": ["[SEP]", 3], "cls": ["[CLS]", 2]},
    "decoder": {"type": "WordPiece", "prefix": "##", "cleanup": True},
    "model": {
        "type": "WordPiece",
        "unk_token": "[UNK]",
        "continuing_subword_prefix": "##",
        "max_input_chars_per_word": 100,
        "vocab": FEW,
    },
}


def _require_usable(tokenizer):
    """Every text begins and ends as it should, in at most so many ids, each with its embedding."""
    for text in ("a man", "", "mans " * 9):
        ids = tokenizer.encode(text, 5)
        assert 2 <= len(ids) <= 5
        assert (ids[0], ids[-1]) == (tokenizer.start, tokenizer.end)
        assert 0 <= ids.min() <= ids.max() < tokenizer.vocab_size <= 2**24


@given(altered(TOKENIZER))
def test_an_altered_tokenizer(value):
    with tempfile.TemporaryDirectory() as folder:
        Path(folder, tokenization.FILE).write_text(json.dumps(value))
        found = clear(lambda: tokenization.load(folder), names=folder).value
    if found:
        _require_usable(found)


@given(damage())
def test_a_damaged_tokenizer(change):
    with tempfile.TemporaryDirectory() as folder:
        Path(folder, tokenization.FILE).write_bytes(change(json.dumps(TOKENIZER).encode()))
        found = clear(lambda: tokenization.load(folder), names=folder).value
    if found:
        _require_usable(found)


VISION = VisionSpec((8, 4), patch_size=2, hidden_size=8, layers=1, heads=2, mlp_size=16)
BERT = TextSpec(8, hidden_size=8, layers=1, heads=2, mlp_size=16, max_positions=6)
SPEC = DualEncoderSpec(VISION, BERT, 8, "max", False, True, "learned", 10.0)


@pytest.fixture(scope="module")
def described(tmp_path_factory):
    """`model.json`, as training writes it."""
    folder = tmp_path_factory.mktemp("model")
    model_file.ModelFile(SPEC, "float32", 6).write(folder)
    return (folder / model_file.MODEL_FILE).read_bytes()


@given(damage())
def test_a_damaged_model_file(described, change):
    """What is taken says the same as before: its checksum is of what it says."""
    with tempfile.TemporaryDirectory() as folder:
        Path(folder, model_file.MODEL_FILE).write_bytes(change(described))
        found = clear(lambda: model_file.read(folder), names=model_file.MODEL_FILE).value
    assert found in (None, model_file.ModelFile(SPEC, "float32", 6))


TOWER = {
    "hidden_size": 8,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "intermediate_size": 16,
    "layer_norm_eps": 1e-5,
    "hidden_act": "gelu",
}
CONFIGS = [
    {
        "model_type": "clip",
        "projection_dim": 8,
        "vision_config": {**TOWER, "image_size": 8, "patch_size": 2, "num_channels": 3},
        "text_config": {
            **TOWER,
            **{"vocab_size": 9, "max_position_embeddings": 6, "eos_token_id": 8},
        },
    },
    {"model_type": "vit", **TOWER, "image_size": [8, 4], "patch_size": 2, "num_labels": 3},
    {"model_type": "bert", **TOWER, "vocab_size": 9, "max_position_embeddings": 6},
]
PROCESSOR = {"image_mean": [0.5, 0.4, 0.3], "image_std": [0.5] * 3, "rescale_factor": 1 / 255}


@given(st.sampled_from(CONFIGS).flatmap(altered), altered(PROCESSOR))
def test_an_altered_configuration(config, processor):
    """What is taken is finite and of sizes that can be; nothing is allocated for what is not."""
    described = foreign_specs.Description(config, {}, processor, None, (), {}, "")

    def describe():
        foreign_specs.require_supported(config)
        try:
            return foreign_specs.recognise(["text_model.x"], config).spec(described)
        except (ArithmeticError, AttributeError, LookupError, TypeError, ValueError) as error:
            raise ConversionError(f"no model: {error}") from error  # As `huggingface.load` does.

    spec = clear(describe).value
    if spec:
        sides = [part for part in (spec, *vars(spec).values()) if hasattr(part, "hidden_size")]
        for side in sides:
            assert 0 < side.hidden_size < 2**31 and side.hidden_size % side.heads == 0
            assert 0 <= side.layers <= 256 and np.isfinite(side.layer_norm_eps)


@given(st.dictionaries(st.sampled_from([row.foreign for row in names.BERT.rows]), st.integers()))
def test_any_shapes_of_known_names(shapes):
    """Each weight is somewhere: a parameter, without a place, or a fault."""
    weights = {
        name.replace("{i}", "0"): np.zeros([abs(number) % 3 + 1] * (abs(number) % 4))
        for name, number in shapes.items()
    }
    found = names.to_flax(weights, names.BERT)
    told = {*found.origins.values(), *found.unused}
    assert all(name in told or any(name in fault for fault in found.faults) for name in weights)
