"""The captioner's scorer against PyTorch's CLIP on the same weights: CLIP B/16, all sets, float32.

Both judge the same images by the same prompts, in turn in one process. One peer encodes the prompts
once, as ours does; the other with every batch, as `CLIPModel` does when it is given images and
texts, padded to the longest. Of the last block ours computes the class token alone, all that the
result depends on; transformers computes every token. Weights are random: the time does not depend
on them. Encoding prompts takes the same time whatever the batch: the larger it is, the less that
peer loses by it.

Usage: python benchmarks/captioning.py [--batch_size=16] [--rounds=5]
"""

import tempfile
from collections.abc import Sequence

import compare
import jax
import jax.numpy as jnp
import numpy as np
import torch
from transformers import CLIPModel

from unipt_jax.captioning import lexicon, scorer
from unipt_jax.core.sharding import make_mesh
from unipt_jax.data import tokenization
from unipt_jax.interop import pytorch
from unipt_jax.models import specs
from unipt_jax.models.clip import ClipTextSpec, vision_spec
from unipt_jax.models.dual_encoder import DualEncoder, DualEncoderSpec

TOKENIZER = "examples/small_clip"
TOKENS = tokenization.load(TOKENIZER)

VIT_B16 = DualEncoderSpec(
    image=vision_spec(
        image_size=(224, 224), patch_size=16, hidden_size=768, layers=12, heads=12, mlp_size=3072
    ),
    text=ClipTextSpec(
        vocab_size=TOKENS.vocab_size,
        hidden_size=512,
        layers=12,
        heads=8,
        mlp_size=2048,
        max_positions=77,
        end_token=TOKENS.end,
    ),
    embedding_dim=512,
    pooling="class",
    pool_padding=False,
    mlm=False,
    temperature="learned",
    logit_scale=100.0,
)


def random_params(seed: int):
    """Returns parameters of the size that training gives them."""
    rng = np.random.default_rng(seed)
    return jax.tree.map(
        lambda leaf: (0.02 * rng.normal(size=leaf.shape)).astype(leaf.dtype),
        specs.abstract_params(VIT_B16),
    )


def decide_in_torch(logits, where: scorer.Layout):
    """Does what `scorer.decide` does: the indices, int64[B, sets], of logits [B, P]."""
    indices = []
    for part, required, phrases in zip(
        logits.split(where.sizes, dim=1), where.required, where.phrases, strict=True
    ):
        surety, winner = part.softmax(dim=1).max(dim=1)
        kept = (winner < phrases) & (surety > scorer.THRESHOLD)
        indices.append(winner if required else torch.where(kept, winner, -1))
    return torch.stack(indices, dim=1)


class TorchScorer:
    """The same scorer in PyTorch, from the exported weights."""

    def __init__(self, params, where: scorer.Layout, prompts: Sequence[str]):
        with tempfile.TemporaryDirectory() as directory:
            pytorch.export(directory, spec=VIT_B16, params=params, tokenizer=TOKENS, text_length=77)
            self._model = CLIPModel.from_pretrained(directory).eval()
        self._where = where
        rows = [TOKENS.encode(prompt, 77) for prompt in prompts]
        self._text = torch.full((len(rows), max(map(len, rows))), TOKENS.pad)
        for row, tokens in zip(self._text, rows, strict=True):
            row[: len(tokens)] = torch.from_numpy(tokens)
        self.prompts = self.encode_prompts()

    @torch.inference_mode()
    def encode_prompts(self):
        """Returns unit rows [P, D]."""
        features = self._model.get_text_features(input_ids=self._text).pooler_output
        return torch.nn.functional.normalize(features, dim=-1)

    @torch.inference_mode()
    def __call__(self, images: np.ndarray, prompts) -> np.ndarray:
        """Returns the indices of images by encoded prompts."""
        mean, std = (
            torch.tensor(values)[:, None, None]
            for values in (VIT_B16.image.mean, VIT_B16.image.std)
        )
        pixels = (torch.from_numpy(images).permute(0, 3, 1, 2).float() / 255 - mean) / std
        embedding = self._model.get_image_features(pixel_values=pixels).pooler_output
        cosines = torch.nn.functional.normalize(embedding, dim=-1) @ prompts.T
        return decide_in_torch(self._model.logit_scale.exp() * cosines, self._where).numpy()


def measure(batch_size: int, rounds: int) -> Sequence[compare.Row]:
    """Compares choices, then times the scorers in turn.

    Raises:
        ValueError: some choices differ.
    """
    words, params = lexicon.english(), random_params(0)
    where = scorer.layout(words.sets)
    wrapper = words.wrappers[0]
    texts = [text for each in words.sets.values() for text in each.prompts(wrapper)]
    peer = TorchScorer(params, where, texts)
    mesh = make_mesh(devices=jax.devices()[:1])
    compiled = scorer.make_scorer(DualEncoder(VIT_B16), where, mesh)
    placed, prompts = jax.tree.map(jnp.asarray, params), jnp.asarray(peer.prompts)
    shape = (batch_size, *VIT_B16.image.image_size, 3)
    batch = np.random.default_rng(0).integers(256, size=shape, dtype=np.uint8)

    def ours(images):
        return np.asarray(compiled(placed, prompts, images)[0])

    if not (ours(batch) == peer(batch, peer.prompts)).all():
        raise ValueError("ours and the peer choose otherwise")
    times = compare.in_turn(
        [
            lambda: ours(batch),
            lambda: peer(batch, peer.prompts),
            lambda: peer(batch, peer.encode_prompts()),
        ],
        rounds,
    )
    mine, cached, anew = times.T
    task = f"captioning, CLIP B/16, {len(words.sets)} sets, batch of {batch_size}, an image"
    return [
        compare.row(f"{task}: prompts cached", mine, cached, 0.95, batch_size),
        compare.row(f"{task}: prompts encoded every batch", mine, anew, 3.0, batch_size),
    ]


if __name__ == "__main__":
    compare.main(__doc__, measure, batch_size=16, rounds=5)
