"""The captioner's scorer against PyTorch's CLIP on the same weights: ViT-B/16, all sets, float32.

Both judge the same images by the same prompts, encoded once, in turn in one process; the ratio is
of medians. Of the last block ours computes the class token alone, all that the result depends on;
transformers computes every token. Then the captioner's input pipeline (reading, decoding and
resizing JPEG files) is timed by itself, and feeding the scorer on the same cores. Weights are
random: the time does not depend on them.

Usage: python benchmarks/captioning.py [--batch_size=16] [--rounds=7] [--images=DIR]
"""

import argparse
import json
import os
import tempfile
import time
from pathlib import Path

import compare
import jax
import jax.numpy as jnp
import numpy as np

from unipt_jax.captioning import lexicon, runner, scorer, sources
from unipt_jax.core.sharding import make_mesh
from unipt_jax.data import tokenization
from unipt_jax.interop import pytorch
from unipt_jax.models import specs
from unipt_jax.models.clip import ClipTextSpec, vision_spec
from unipt_jax.models.dual_encoder import DualEncoder, DualEncoderSpec

VIT_B16 = DualEncoderSpec(
    image=vision_spec(
        image_size=(224, 224), patch_size=16, hidden_size=768, layers=12, heads=12, mlp_size=3072
    ),
    text=ClipTextSpec(
        vocab_size=1000,
        hidden_size=512,
        layers=1,  # Prompts are encoded once, before anything is timed.
        heads=8,
        mlp_size=2048,
        max_positions=77,
        end_token=999,
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
    import torch

    indices = []
    for part, required, phrases in zip(
        logits.split(where.sizes, dim=1), where.required, where.phrases, strict=True
    ):
        surety, winner = part.softmax(dim=1).max(dim=1)
        kept = (winner < phrases) & (surety > scorer.THRESHOLD)
        indices.append(winner if required else torch.where(kept, winner, -1))
    return torch.stack(indices, dim=1)


def torch_scorer(params, features: np.ndarray, where: scorer.Layout):
    """Returns the same scorer in PyTorch, from the exported weights."""
    import torch
    from transformers import CLIPModel

    torch.set_num_threads(os.cpu_count() or 1)
    with tempfile.TemporaryDirectory() as directory:
        tokenizer = tokenization.load("examples/tokenizer")
        pytorch.export(directory, spec=VIT_B16, params=params, tokenizer=tokenizer, text_length=77)
        model = CLIPModel.from_pretrained(directory).eval()
    prompts, scale = torch.tensor(features), model.logit_scale.exp()
    mean = torch.tensor(VIT_B16.image.mean).reshape(1, 3, 1, 1)
    std = torch.tensor(VIT_B16.image.std).reshape(1, 3, 1, 1)

    @torch.inference_mode()
    def score(images: np.ndarray) -> np.ndarray:
        pixels = (torch.from_numpy(images).permute(0, 3, 1, 2).float() / 255 - mean) / std
        embedding = model.get_image_features(pixel_values=pixels).pooler_output
        logits = scale * torch.nn.functional.normalize(embedding, dim=-1) @ prompts.T
        return decide_in_torch(logits, where).numpy()

    return score


def measure(batch_size: int, rounds: int, folder: str) -> dict[str, float]:
    """Times both scorers in turn, then ours from the input pipeline."""
    rng, words = np.random.default_rng(0), lexicon.english()
    where, params = scorer.layout(words.sets), random_params(0)
    features = rng.normal(size=(sum(where.sizes), VIT_B16.embedding_dim)).astype(np.float32)
    features /= np.linalg.norm(features, axis=1, keepdims=True)
    images = rng.integers(256, size=(batch_size, 224, 224, 3), dtype=np.uint8)
    theirs = torch_scorer(params, features, where)
    mesh = make_mesh(devices=jax.devices()[:1])
    compiled = scorer.make_scorer(DualEncoder(VIT_B16), where, mesh)
    placed, prompts = jax.tree.map(jnp.asarray, params), jnp.asarray(features)

    def ours(images):
        return np.asarray(compiled(placed, prompts, images)[0])

    same = float((ours(images) == theirs(images)).mean())
    times = compare.in_turn([lambda: ours(images), lambda: theirs(images)], rounds)
    mine, peer = np.median(times, axis=0)
    with tempfile.TemporaryDirectory() as workdir:
        source = sources.open_source(folder, Path(workdir))
        load = runner.LoadImages(source, 224, 224, batch_size, stop=True)
        many, few = source.size // batch_size, max(1, rounds)
        alone = per_second(load, range(many * batch_size), lambda images: None)
        fed = per_second(load, range(min(many, few) * batch_size), ours)
    return {
        "ours_images_per_s": batch_size / mine,
        "torch_images_per_s": batch_size / peer,
        "ratio": peer / mine,
        "same_choices": same,
        "input_images_per_s": alone,
        "ours_fed_by_the_input_images_per_s": fed,
        "fed_ratio": fed * mine / batch_size,
    }


def per_second(load: runner.LoadImages, numbers: range, use) -> float:
    """Returns images a second that are read from their files and used."""
    started = time.perf_counter()
    for batch in runner.load_batches(load, [numbers]):
        use(batch["image"])
    return len(numbers) / (time.perf_counter() - started)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--batch_size", type=int, default=16)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--images", default="examples/pedestrians/imgs")
    flags = parser.parse_args()
    has_jemalloc = compare.under_jemalloc()
    result = measure(flags.batch_size, flags.rounds, flags.images)
    result["allocator"] = "jemalloc" if has_jemalloc else "the system's"
    print(json.dumps(result, indent=1))
