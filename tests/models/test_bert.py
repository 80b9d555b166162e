"""BERT and its masked-language-model head against transformers' torch model."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from unipt_jax.core.errors import ConfigError
from unipt_jax.models.bert import Bert, TextSpec
from unipt_jax.models.heads import MlmHead

SPEC = TextSpec(
    vocab_size=19,
    hidden_size=16,
    layers=2,
    heads=4,
    mlp_size=16,
    max_positions=9,
    layer_norm_eps=1e-3,
    dropout=0.1,
)


@pytest.fixture(scope="module")
def reference():
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    config = transformers.BertConfig(
        vocab_size=SPEC.vocab_size,
        hidden_size=SPEC.hidden_size,
        num_hidden_layers=SPEC.layers,
        num_attention_heads=SPEC.heads,
        intermediate_size=SPEC.mlp_size,
        max_position_embeddings=SPEC.max_positions,
        layer_norm_eps=SPEC.layer_norm_eps,
    )
    model = transformers.BertForMaskedLM(config).eval()
    generator = torch.Generator().manual_seed(0)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.4, generator=generator)
    return model


def _parameters(model):
    weights = {name: value.detach().numpy() for name, value in model.state_dict().items()}

    def linear(name):
        return {"kernel": weights[f"{name}.weight"].T, "bias": weights[f"{name}.bias"]}

    def norm(name):
        return {"scale": weights[f"{name}.weight"], "bias": weights[f"{name}.bias"]}

    embeddings = "bert.embeddings"
    encoder = {
        "word_embeddings": weights[f"{embeddings}.word_embeddings.weight"],
        "position_embeddings": weights[f"{embeddings}.position_embeddings.weight"],
        "token_type_embeddings": weights[f"{embeddings}.token_type_embeddings.weight"],
        "layer_norm": norm(f"{embeddings}.LayerNorm"),
    }
    for index in range(SPEC.layers):
        layer = f"bert.encoder.layer.{index}"
        encoder[f"layers_{index}"] = {
            "self_attn": {
                "q_proj": linear(f"{layer}.attention.self.query"),
                "k_proj": linear(f"{layer}.attention.self.key"),
                "v_proj": linear(f"{layer}.attention.self.value"),
                "out_proj": linear(f"{layer}.attention.output.dense"),
            },
            "mlp": {
                "fc1": linear(f"{layer}.intermediate.dense"),
                "fc2": linear(f"{layer}.output.dense"),
            },
            "layer_norm1": norm(f"{layer}.attention.output.LayerNorm"),
            "layer_norm2": norm(f"{layer}.output.LayerNorm"),
        }
    head = {
        "dense": linear("cls.predictions.transform.dense"),
        "layer_norm": norm("cls.predictions.transform.LayerNorm"),
        "bias": weights["cls.predictions.bias"],
    }
    return jax.tree.map(jnp.asarray, (encoder, head))


@jax.jit
def _encode(params, text, mask):
    return Bert(SPEC).apply({"params": params}, text, mask, train=False)


def _text(length=7):
    text = np.random.default_rng(0).integers(0, SPEC.vocab_size, (3, length)).astype(np.int32)
    mask = np.arange(length)[None] < np.array([length, 4, 1])[:, None]
    return text, mask


def test_tokens_and_logits_equal_torch(reference):
    torch = pytest.importorskip("torch")
    text, mask = _text()
    with torch.no_grad():
        want = reference(
            torch.tensor(text), attention_mask=torch.tensor(mask), output_hidden_states=True
        )
    encoder, head = _parameters(reference)
    tokens = _encode(encoder, jnp.asarray(text), jnp.asarray(mask))
    np.testing.assert_allclose(
        np.asarray(tokens)[mask], want.hidden_states[-1].numpy()[mask], atol=1e-4
    )

    positions = np.array([[6, 0, 3], [2, 2, 0], [0, 0, 0]], np.int32)
    logits = MlmHead(SPEC.layer_norm_eps, SPEC.activation).apply(
        {"params": head}, tokens, jnp.asarray(positions), encoder["word_embeddings"]
    )
    at_positions = np.take_along_axis(want.logits.numpy(), positions[:, :, None], axis=1)
    np.testing.assert_allclose(logits, at_positions, atol=1e-4)


def test_padding_is_seen_by_no_token(reference):
    encoder, _ = _parameters(reference)
    text, mask = _text()
    other = np.where(mask, text, (text + 1) % SPEC.vocab_size)

    def run(ids, seen):
        return np.asarray(_encode(encoder, jnp.asarray(ids), jnp.asarray(seen)))

    want = run(text, mask)
    np.testing.assert_allclose(run(other, mask)[mask], want[mask], atol=1e-6)
    longer = run(np.pad(text, ((0, 0), (0, 2))), np.pad(mask, ((0, 0), (0, 2))))
    np.testing.assert_allclose(longer[:, :7][mask], want[mask], atol=1e-5)


def test_an_id_beyond_the_vocabulary_is_never_clamped(reference):
    encoder, _ = _parameters(reference)
    text, mask = jnp.array([[SPEC.vocab_size, 1]]), jnp.ones((1, 2), bool)
    assert np.isnan(_encode(encoder, text, mask)).any()


def test_dropout_is_on_in_training(reference, key):
    encoder, _ = _parameters(reference)
    text, mask = map(jnp.asarray, _text())
    train = jax.jit(
        lambda p: Bert(SPEC).apply({"params": p}, text, mask, train=True, rngs={"dropout": key})
    )
    assert not np.allclose(train(encoder), _encode(encoder, text, mask))


def test_a_text_longer_than_the_positions_is_refused(key):
    text = jnp.zeros((1, 10), jnp.int32)
    with pytest.raises(ConfigError, match=r"10 tokens .* max_positions=9"):
        Bert(SPEC).init(key, text, jnp.ones((1, 10), bool), train=False)


@pytest.mark.parametrize("dropout", [-0.1, 1.0])
def test_dropout_must_be_a_probability(dropout):
    with pytest.raises(ConfigError, match="dropout"):
        TextSpec(19, 16, 2, 4, 16, 9, dropout=dropout)
