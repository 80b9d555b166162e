"""A split of drawn noise, and a model whose features can be worked out by hand."""

import io

import jax.numpy as jnp
import numpy as np
from PIL import Image

from tests.training import micro
from unipt_jax.core.files import write_json
from unipt_jax.data import builders
from unipt_jax.models.dual_encoder import DualEncoder

HEIGHT, WIDTH, LENGTH = 16, 8, 100
WORDS = ["man", "woman", "red", "blue", "shirt", "white", "black", "shoes", "bag", "jeans"]
PARAMS = {"scale": np.float32(2.0)}


class Toy(DualEncoder):
    """Features that are sums: of pixels, and of token ids."""

    def setup(self):
        """Has no children."""

    def image_features(self, images):
        """The mean colour, and the means of the upper and the lower half."""
        scale = self.get_variable("params", "scale")
        pixels = scale * images.astype(jnp.float32)
        halves = pixels.reshape(len(images), 2, -1).mean(-1)
        return {"global": pixels.mean((1, 2)), "pgu": halves}

    def text_features(self, text, text_mask):
        """The number of tokens and sums of ids; the padded length changes nothing."""
        scale = self.get_variable("params", "scale")
        ids = scale * jnp.where(text_mask, text, 0).astype(jnp.float32)
        count = text_mask.sum(1).astype(jnp.float32)
        return {
            "global": jnp.stack([count, ids.sum(1), ids[:, 1]], axis=1),
            "pgu": jnp.stack([ids.sum(1), count], axis=1),
        }


def model():
    return Toy(micro.model().spec)


def pictures(count, seed=0):
    """Noise of the size that the model takes."""
    rng = np.random.default_rng(seed)
    return [rng.integers(256, size=(HEIGHT, WIDTH, 3), dtype=np.uint8) for _ in range(count)]


def captions(counts):
    """Different lengths: some fit a bucket of 32 tokens, some need one of 48 or more than fits."""
    rng = np.random.default_rng(1)
    return [
        [" ".join(rng.choice(WORDS, size=int(rng.choice([3, 9, 38, 150])))) for _ in range(count)]
        for count in counts
    ]


def split(
    images, captions, identities, tokenizer=None, directory="toy", bad=(), lengths=True
) -> builders.Split:
    """A split that lies in memory; the numbers in `bad` cannot be decoded."""
    examples = []
    for number, (image, texts) in enumerate(zip(images, captions, strict=True)):
        file = io.BytesIO()
        Image.fromarray(image).save(file, "PNG")
        content = file.getvalue()
        examples.append(
            {
                "image": content[: len(content) // 2] if number in bad else content,
                "captions": [text.encode() for text in texts],
                "path": f"cam/{number}.png".encode(),
            }
        )
    every = [text for texts in captions for text in texts]
    known = tokenizer is not None and lengths
    return builders.Split(
        images=builders.Images(examples),
        caption_counts=np.array([len(texts) for texts in captions], np.int32),
        identities=np.array(identities, np.int32),
        text_lengths=np.array(
            [len(ids) for ids in tokenizer.encode_whole(every)] if known else [], np.int32
        ),
        tokenizer_fingerprint=tokenizer.fingerprint if known else "",
        name="test",
        directory=str(directory),
    )


def prepared(directory, *, name="toy", quarantined=0):
    """Writes the manifest that a split's directory has."""
    manifest = {
        "name": name,
        "format": builders.FORMAT,
        "splits": {},
        "pixels": None,
        "tokenizer_fingerprint": "",
        "quarantined": quarantined,
        "notices": {},
    }
    write_json(directory / builders.MANIFEST, manifest)
