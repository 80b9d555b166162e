r"""Trains `examples/small_clip` on drawn pedestrians alone, without a download.

For each of the attributes it must find the right prompt among all of the set's. Everything follows
from the seed; on 2 CPU cores a step takes half a second, and the drawings five minutes. Attributes
that show in few pixels are learnt late: `--start=DIR` goes on from what an earlier call has made,
with a new rise and fall of the learning rate, and another `--seed` with pedestrians not seen
before. `--average` writes the mean of the weights that it started from and ended with, which is
better than either (Izmailov et al., UAI 2018). The weights in `examples/small_clip` are of four
calls: the first below, whose garments had fainter marks; an interrupted one, 2,000 steps on the way
from 0.002 to 0, then 2,500 from 0.0014 to 0; and the last two. None of them had stripes and checks
that are a tone of their cloth.

Usage: python examples/make_small_clip.py --directory=DIR
       python examples/make_small_clip.py --directory=DIR --start=DIR --seed=2 --pool=100000 \
           --rate=0.002 --steps=4500
       python examples/make_small_clip.py --directory=DIR --start=DIR --seed=3 --pool=64000 \
           --rate=0.0016 --steps=2200 --average
"""

import argparse
import concurrent.futures
import functools
import json
import math
import time
from pathlib import Path

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors, trainers

import unipt_jax
from unipt_jax.captioning import lexicon
from unipt_jax.core import trees
from unipt_jax.core.random import host_generator, stream
from unipt_jax.data import synthetic, tokenization
from unipt_jax.interop import pytorch
from unipt_jax.models import specs
from unipt_jax.models.clip import ClipTextSpec, vision_spec
from unipt_jax.models.dual_encoder import DualEncoder, DualEncoderSpec
from unipt_jax.models.heads import unit_rows
from unipt_jax.training import optimizer

SIDE, TEXT_LENGTH = 112, 32
MARGIN = 6  # pixels
UNKNOWN = -1  # Who rides neither stands nor walks: of this there is nothing to learn.
START, END = "<|startoftext|>", "<|endoftext|>"


TITLE = "# A dual encoder for text-to-image person re-identification\n"
CARD = """# A small CLIP of drawn pedestrians

Made so that UniPT-JAX's demo writes pseudo texts without a download, by its
`examples/make_small_clip.py`, from pictures that `unipt_jax.data.synthetic` draws and their known
attributes. It has never seen a photograph or read a sentence that a person wrote: it knows the
prompts of the captioner, nothing else. How often it is right, on drawings and on real crops, stands
in UniPT-JAX's docs/captions.md; of photographs it tells little more than colours. For real
collections take `openai/clip-vit-base-patch16`. What it says of people, their gender and age above
all, is a guess from pixels and no ground for any decision about them. Apache-2.0, as UniPT-JAX is.
"""


def make_tokenizer(texts: list[str], directory: Path) -> tokenization.Tokenizer:
    """Trains byte pairs on the prompts and writes them as CLIP's tokenizer is written."""
    # What no prompt holds, a comma say, is passed over: as the end token it would end the text.
    made = Tokenizer(models.BPE(end_of_word_suffix="</w>"))
    made.normalizer = normalizers.Lowercase()
    made.pre_tokenizer = pre_tokenizers.Whitespace()
    made.train_from_iterator(
        texts,
        trainers.BpeTrainer(vocab_size=1000, end_of_word_suffix="</w>", show_progress=False),
    )
    # The trainer numbers letters in an order that changes from process to process.
    state = json.loads(made.to_str())
    state["model"]["vocab"] = {
        token: number for number, token in enumerate(sorted(state["model"]["vocab"]))
    }
    made = Tokenizer.from_str(json.dumps(state))
    # As in CLIP the end token has the highest id.
    made.add_special_tokens([START, END])
    ids = [(token, made.token_to_id(token)) for token in (START, END)]
    made.post_processor = processors.TemplateProcessing(
        single=f"{START} $A {END}", special_tokens=ids
    )
    directory.mkdir(parents=True, exist_ok=True)
    made.save(str(directory / "tokenizer.json"))
    return tokenization.load(str(directory))


def make_spec(tokenizer: tokenization.Tokenizer) -> DualEncoderSpec:
    """Returns a CLIP of some two million parameters."""
    return DualEncoderSpec(
        image=vision_spec(
            image_size=(SIDE, SIDE),
            patch_size=14,
            hidden_size=128,
            layers=6,
            heads=4,
            mlp_size=512,
        ),
        text=ClipTextSpec(
            vocab_size=tokenizer.vocab_size,
            hidden_size=96,
            layers=1,
            heads=4,
            mlp_size=192,
            max_positions=TEXT_LENGTH,
            end_token=tokenizer.end,
        ),
        embedding_dim=128,
        pooling="class",
        pool_padding=False,
        mlm=False,
        temperature="learned",
        logit_scale=1 / 0.07,
    )


def draw(seed: int, index: int) -> tuple[np.ndarray, dict[str, str]]:
    """Returns a drawn pedestrian and its labels."""
    image, person = synthetic.example(seed, index, SIDE, SIDE)
    return image, synthetic.labels(person)


def draw_pool(sets, seed: int, size: int) -> tuple[np.ndarray, np.ndarray]:
    """Draws `size` pedestrians: images, and each set's right prompt (its negative is the last)."""
    places = [{label: place for place, label in enumerate(each.phrases)} for each in sets.values()]
    for place, each in zip(places, sets.values(), strict=True):
        if not each.required:
            place[""] = len(place)
    places[list(sets).index("action")]["riding"] = UNKNOWN
    images, answers = np.empty((size, SIDE, SIDE, 3), np.uint8), np.empty((size, len(sets)), int)
    with concurrent.futures.ProcessPoolExecutor() as pool:
        drawn = pool.map(functools.partial(draw, seed), range(size), chunksize=64)
        for index, (image, labels) in enumerate(drawn):
            images[index] = image
            answers[index] = [place[labels[name]] for name, place in zip(sets, places, strict=True)]
    return images, answers


def augment(images: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Flips half of the images and moves each by some pixels; what is bared repeats the edge."""
    flipped = rng.random(len(images)) < 0.5
    images[flipped] = images[flipped, :, ::-1]
    padded = np.pad(images, ((0, 0), (MARGIN, MARGIN), (MARGIN, MARGIN), (0, 0)), "edge")
    corners = rng.integers(2 * MARGIN + 1, size=(len(images), 2)).tolist()
    return np.stack(
        [each[y : y + SIDE, x : x + SIDE] for each, (y, x) in zip(padded, corners, strict=True)]
    )


def tokenize(tokenizer: tokenization.Tokenizer, texts: list[str]) -> dict[str, np.ndarray]:
    """Returns the padded ids of `texts`, and where they are tokens."""
    rows = [tokenizer.encode(text, TEXT_LENGTH) for text in texts]
    ids = np.full((len(rows), max(map(len, rows))), tokenizer.pad, np.int32)
    mask = np.zeros(ids.shape, bool)
    for row, tokens in enumerate(rows):
        ids[row, : len(tokens)], mask[row, : len(tokens)] = tokens, True
    return {"text": ids, "text_mask": mask}


def positions(rows: int, columns: int, width: int) -> np.ndarray:
    """Returns sines and cosines of the rows' and columns' numbers, [rows * columns, width]."""
    rates = 100.0 ** -(np.arange(width // 4) / (width // 4))
    tables = []
    for count in (rows, columns):
        angles = np.outer(np.arange(count) + 0.5, rates)
        tables.append(np.concatenate([np.sin(angles), np.cos(angles)], axis=1))
    down, across = np.repeat(tables[0], columns, axis=0), np.tile(tables[1], (rows, 1))
    return np.concatenate([down, across], axis=1)


def enlarge(path: str, leaf: jax.Array, grid: tuple[int, int]) -> jax.Array:
    """Makes up for initial values of deviation 0.02, too small where the model is.

    Kernels get the deviation of their own width; the image's positions and class token are made
    as large as the patches beside them, or attention would not see where a patch lies.
    """
    if path.endswith("kernel"):
        return leaf * (math.prod(leaf.shape[:-1]) ** -0.5 / 0.02)
    if path.endswith("class_token"):
        return leaf * (0.5 / 0.02)
    if path.endswith("position_embedding") and len(leaf) == 1 + math.prod(grid):
        return leaf.at[1:].set(positions(*grid, leaf.shape[1]))
    return leaf


def initialise(model: DualEncoder, seed: int):
    """Returns the parameters that the first call starts from."""
    batch = jax.tree.map(
        lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), specs.abstract_batch(model.spec, 1)
    )
    key = stream(jax.random.key(seed), "params", 0)
    init = jax.jit(functools.partial(model.init, train=False))
    params = nn.meta.unbox(init(key, batch))["params"]
    grid = model.spec.image.grid
    return trees.map_with_path(lambda path, leaf: enlarge(path, leaf, grid), params)


def matrices(params):
    """Tells Muon which parameters are matrices from inputs to outputs; Adam trains the others."""

    def dimensions(path: str, leaf: jax.Array):
        if not path.endswith("kernel"):
            return None
        return optax.contrib.MuonDimensionNumbers(tuple(range(leaf.ndim - 1)), leaf.ndim - 1)

    return trees.map_with_path(dimensions, params)


def loss(params, model, sizes, images, answers, text, text_mask):
    """Cross-entropy of the right prompt among each set's, summed over the sets."""
    variables = {"params": params}
    image = unit_rows(model.apply(variables, images, method="encode_image"))
    prompts = unit_rows(model.apply(variables, text, text_mask, method="encode_text"))
    logits = model.apply(variables, method="inverse_temperature") * image @ prompts.T
    total, start = 0.0, 0
    for place, size in enumerate(sizes):
        rows = optax.softmax_cross_entropy_with_integer_labels(
            logits[:, start : start + size], jnp.maximum(answers[:, place], 0)
        )
        total += jnp.where(answers[:, place] == UNKNOWN, 0, rows).mean()
        start += size
    return total


def train(
    model, sets, wrappers, tokenizer, images, answers, *, seed, steps, batch_size, rate, start
):
    """Returns the parameters after `steps` steps from `start`, on batches drawn from the pool."""
    schedule = optimizer.learning_rate_schedule(peak=rate, steps=steps, warmup=0.03, decay="linear")
    muon = optax.contrib.muon(
        schedule,
        weight_decay=0.02,
        consistent_rms=0.2,  # Updates as large as Adam's, so that one rate serves both.
        adam_b2=0.98,
        adam_learning_rate=schedule,
        muon_weight_dimension_numbers=matrices,
    )
    params = start
    state = muon.init(params)
    sizes = tuple(len(each.prompts("{}")) for each in sets.values())
    texts = [
        tokenize(tokenizer, [text for each in sets.values() for text in each.prompts(wrapper)])
        for wrapper in wrappers
    ]
    longest = max(each["text"].shape[1] for each in texts)
    texts = [
        {
            name: np.pad(array, ((0, 0), (0, longest - array.shape[1])))
            for name, array in each.items()
        }
        for each in texts
    ]

    @functools.partial(jax.jit, donate_argnums=(0, 1))
    def step(params, state, images, answers, text, text_mask):
        value, gradients = jax.value_and_grad(loss)(
            params, model, sizes, images, answers, text, text_mask
        )
        updates, state = muon.update(gradients, state, params)
        params = optax.apply_updates(params, updates)
        # CLIP's bound on the temperature (Radford et al., 2021).
        params["logit_scale"] = jnp.minimum(params["logit_scale"], math.log(100))
        return params, state, value

    started = time.time()
    for number in range(steps):
        rng = host_generator(seed, "small_clip", number)
        chosen = rng.choice(len(images), batch_size, replace=False)
        batch = augment(images[chosen], rng)
        text = texts[rng.integers(len(texts))]
        params, state, value = step(params, state, batch, answers[chosen], **text)
        if number % 50 == 0 or number == steps - 1:
            print(f"step {number}: loss {value:.3f}, {time.time() - started:.0f} s", flush=True)
    return params


def main() -> None:
    """Draws, trains and writes."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--directory", type=Path, required=True)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--steps", type=int, default=10_000)
    parser.add_argument("--batch_size", type=int, default=64)
    parser.add_argument("--pool", type=int, default=80_000)
    parser.add_argument("--rate", type=float, default=3e-3)
    parser.add_argument("--start", type=Path, help="directory of an earlier call; else at random")
    parser.add_argument("--average", action="store_true", help="of the weights before and after")
    flags = parser.parse_args()
    words = lexicon.english()
    prompts = [
        text
        for each in words.sets.values()
        for wrapper in words.wrappers
        for text in each.prompts(wrapper)
    ]
    if flags.start:
        tokenizer = tokenization.load(str(flags.start))
    else:
        tokenizer = make_tokenizer(prompts, flags.directory)
    model = DualEncoder(make_spec(tokenizer))
    started = time.time()
    images, answers = draw_pool(words.sets, flags.seed, flags.pool)
    print(f"{flags.pool} pedestrians drawn in {time.time() - started:.0f} s", flush=True)
    start = unipt_jax.load(flags.start).params if flags.start else initialise(model, flags.seed)
    before = jax.tree.map(np.array, start)  # A copy: training overwrites its own.
    params = train(
        model,
        words.sets,
        words.wrappers,
        tokenizer,
        images,
        answers,
        seed=flags.seed,
        steps=flags.steps,
        batch_size=flags.batch_size,
        rate=flags.rate,
        start=start,
    )
    if flags.average:
        params = jax.tree.map(lambda before, after: (before + after) / 2, before, params)
    exported = pytorch.export(
        flags.directory,
        spec=model.spec,
        params=jax.device_get(params),
        tokenizer=tokenizer,
        text_length=TEXT_LENGTH,
        dtype="float16",
    )
    card = flags.directory / "README.md"
    card.write_text(card.read_text().replace(TITLE, CARD))
    print(json.dumps({"parameters": trees.count_parameters(params), "form": exported.form}))


if __name__ == "__main__":
    main()
