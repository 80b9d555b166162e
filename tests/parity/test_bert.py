"""BERT of transformers, in every spelling that its files have, against its torch model."""

import functools

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from hypothesis import example, given, settings
from safetensors.numpy import save_file

from tests.parity import references
from tests.parity.references import torch, transformers
from unipt_jax.core.errors import ConversionError
from unipt_jax.core.trees import flatten
from unipt_jax.interop import huggingface, names
from unipt_jax.models.bert import Bert
from unipt_jax.models.heads import MlmHead

VOCABULARY, POSITIONS, LENGTH = 19, 9, 7
HEAD = ("mlm_head",)


def reference(configuration, model=transformers.BertForMaskedLM):
    config = transformers.BertConfig(
        vocab_size=VOCABULARY, max_position_embeddings=POSITIONS, type_vocab_size=2, **configuration
    )
    return references.randomised(model(config))


def sentences():
    text = np.random.default_rng(0).integers(0, VOCABULARY, (3, LENGTH)).astype(np.int32)
    mask = np.arange(LENGTH)[None] < np.array([LENGTH, 4, 1])[:, None]
    return text, mask, np.array([[6, 0, 3], [2, 2, 0], [0, 0, 0]], np.int32)


@functools.partial(jax.jit, static_argnums=0)
def run(spec, params, text, mask, positions):
    encoder = params["text_encoder"]
    tokens = Bert(spec).apply({"params": encoder}, text, mask, train=False)
    head = MlmHead(spec.layer_norm_eps, spec.activation)
    logits = head.apply(
        {"params": params["mlm_head"]}, tokens, positions, encoder["word_embeddings"]
    )
    return tokens, logits


def assert_same(model, pretrained):
    text, mask, positions = sentences()
    with torch.no_grad():
        want = model(
            torch.tensor(text), attention_mask=torch.tensor(mask), output_hidden_states=True
        )
    tokens, logits = run(pretrained.spec, pretrained.params, *map(jnp.asarray, sentences()))
    want_tokens = want.hidden_states[-1].numpy()
    np.testing.assert_allclose(np.asarray(tokens)[mask], want_tokens[mask], rtol=0, atol=1e-4)
    at_positions = np.take_along_axis(want.logits.numpy(), positions[:, :, None], axis=1)
    np.testing.assert_allclose(logits, at_positions, rtol=0, atol=1e-4)


@settings(max_examples=6)
@given(references.towers())
@example(references.tower(1e-12, "gelu"))
@example(references.tower(1e-3, "gelu_new"))
def test_tokens_and_logits_equal_torch(configuration):
    model = reference(configuration)
    assert_same(model, references.reload(model))


@references.each_eps_and_activation
def test_every_eps_and_activation(eps, activation):
    """The epsilon and the activation are those of the configuration (P14)."""
    model = reference({**references.tower(eps, activation), "num_hidden_layers": 1})
    pretrained = references.reload(model)
    assert pretrained.spec.layer_norm_eps == eps
    assert_same(model, pretrained)


# --------------------------------------------------------------------------------- old spellings

SQUARE = references.tower(1e-12, "gelu")


@pytest.fixture(scope="module")
def model():
    return reference(SQUARE)


@pytest.fixture(scope="module")
def weights(model):
    return references.arrays(model)


def _gamma_and_beta(weights):
    pairs = (("LayerNorm.weight", "LayerNorm.gamma"), ("LayerNorm.bias", "LayerNorm.beta"))
    for new, old in pairs:
        weights = {name.replace(new, old): weight for name, weight in weights.items()}
    return weights


def _without_prefix(weights):
    return {name.removeprefix("bert."): weight for name, weight in weights.items()}


def _decoder(weights):
    return {
        **weights,
        "cls.predictions.decoder.weight": weights["bert.embeddings.word_embeddings.weight"],
        "cls.predictions.decoder.bias": weights["cls.predictions.bias"],
    }


def _bias_in_decoder_alone(weights):
    weights = _decoder(weights)
    del weights["cls.predictions.bias"]
    return weights


def _buffers_and_other_heads(weights):
    return {
        **weights,
        "bert.embeddings.position_ids": np.arange(POSITIONS)[None],
        "bert.pooler.dense.weight": np.zeros((16, 16), np.float32),
        "bert.pooler.dense.bias": np.zeros(16, np.float32),
        "cls.seq_relationship.weight": np.zeros((2, 16), np.float32),
        "cls.seq_relationship.bias": np.zeros(2, np.float32),
    }


def _distributed(weights):
    return {f"module.{name}": weight for name, weight in weights.items()}


SPELLINGS = [
    (_gamma_and_beta,),
    (_without_prefix,),
    (_decoder,),
    (_bias_in_decoder_alone,),
    (_buffers_and_other_heads,),
    (_distributed,),
    (_decoder, _buffers_and_other_heads, _gamma_and_beta, _without_prefix, _distributed),
]


def _load(model, weights, directory, **arguments):
    model.config.save_pretrained(directory)
    save_file(weights, directory / "model.safetensors")
    return huggingface.load(str(directory), **arguments)


@pytest.mark.parametrize("changes", SPELLINGS, ids=lambda changes: changes[-1].__name__)
def test_every_spelling_is_the_same_tree(model, weights, changes, tmp_path):
    """P15, P16."""
    for change in changes:
        weights = change(weights)
    want = flatten(references.reload(model).params)
    have = flatten(_load(model, weights, tmp_path).params)
    assert have.keys() == want.keys()
    for path, leaf in want.items():
        np.testing.assert_array_equal(have[path], leaf)


@pytest.mark.parametrize("name", ["weight", "bias"])
def test_an_untied_decoder_is_refused(model, weights, name, tmp_path):
    """A copy of the table of words is left out only where it is one (P72)."""
    weights = _decoder(weights)
    weights[f"cls.predictions.decoder.{name}"] = weights[f"cls.predictions.decoder.{name}"] + 1e-3
    with pytest.raises(ConversionError, match=rf"decoder\.{name} differs from .* tied"):
        _load(model, weights, tmp_path)


def test_an_encoder_alone_has_no_head():
    model = reference(SQUARE, transformers.BertModel)
    with pytest.raises(ConversionError, match="parameters without a weight: mlm_head/bias"):
        references.reload(model)
    pretrained = references.reload(model, allow_missing=HEAD)
    assert set(pretrained.params) == {"text_encoder"}


def test_a_head_in_part_is_refused(model, weights, tmp_path):
    part = {
        name: w for name, w in weights.items() if name != "cls.predictions.transform.dense.bias"
    }
    with pytest.raises(ConversionError, match=r"without a weight: mlm_head/dense/bias$"):
        _load(model, part, tmp_path, allow_missing=HEAD)


@pytest.mark.parametrize("dtype", [np.float32, np.float16, ml_dtypes.bfloat16])
def test_back_to_the_same_bits(model, weights, dtype, tmp_path):
    source = {name: np.asarray(weight, dtype) for name, weight in weights.items()}
    back = names.from_flax(_load(model, source, tmp_path).params, names.BERT)
    assert back.keys() == source.keys()
    for name, weight in source.items():
        np.testing.assert_array_equal(back[name].astype(dtype), weight)
