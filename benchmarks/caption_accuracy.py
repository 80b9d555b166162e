"""How often a CLIP's attributes are right, on drawn pedestrians and on the real sample.

The drawn ones are of another seed than the small CLIP's, at the size of real crops.
What is right for the sample's identities was read off their captions: examples/pedestrians/
attributes.json, with every answer that the captions allow. Chance is always to say the commonest
phrase. An optional attribute's precision is the share of right ones among those that are kept
(probability above 0.9), its recall the share of those that are there. PyTorch judges the same
pixels with the same weights; its choices must be the same.

Usage: python benchmarks/caption_accuracy.py --clip=DIR [--drawn=2000]
"""

import argparse
import concurrent.futures
import json
from pathlib import Path

import jax.numpy as jnp
import numpy as np
from captioning import decide_in_torch
from PIL import Image

import unipt_jax
from unipt_jax.captioning import lexicon, scorer
from unipt_jax.core.sharding import make_mesh
from unipt_jax.data import images, synthetic

SAMPLE = Path("examples/pedestrians")
SEED = 1  # `examples/small_clip` has seen drawings of seeds 0, 2 and 3.
BATCH = 64


def draw(index: int) -> tuple[np.ndarray, dict[str, str]]:
    """Returns a drawn pedestrian and its labels; clothes in their parts."""
    image, person = synthetic.example(SEED, index, 256, 128)
    labels = synthetic.labels(person)
    parts = {
        f"{side}_{part}": getattr(person, f"{side}_{part}")
        for side in ("upper", "lower")
        for part in ("color", "pattern", "garment")
    }
    return image, labels | parts


def judge(encoder, words, pixels: np.ndarray) -> np.ndarray:
    """Returns the scorer's indices, int[N, sets]."""
    features = scorer.prompt_features(encoder.encode_texts, words.sets, words.wrappers[:1])
    mesh = make_mesh(devices=[jnp.zeros(()).device])
    score = scorer.make_scorer(encoder.model, scorer.layout(words.sets), mesh)
    padded = np.concatenate([pixels, np.zeros((-len(pixels) % BATCH, *pixels.shape[1:]), np.uint8)])
    parts = [
        np.asarray(score(encoder.params, jnp.asarray(features), padded[at : at + BATCH])[0])
        for at in range(0, len(padded), BATCH)
    ]
    return np.concatenate(parts)[: len(pixels)]


def judge_in_torch(directory: str, words, pixels: np.ndarray) -> np.ndarray:
    """Does the same with transformers' CLIPModel and its own tokenizer."""
    import torch
    from transformers import AutoTokenizer, CLIPModel

    model = CLIPModel.from_pretrained(directory, dtype=torch.float32).eval()
    tokenizer = AutoTokenizer.from_pretrained(directory)
    where, prompts = scorer.layout(words.sets), []
    for each in words.sets.values():
        prompts += each.prompts(words.wrappers[0])
    config = json.loads((Path(directory) / "preprocessor_config.json").read_text())
    mean, std = (
        torch.tensor(config[f"image_{name}"]).reshape(1, 3, 1, 1) for name in ("mean", "std")
    )
    unit = torch.nn.functional.normalize
    indices = []
    with torch.inference_mode():
        text = tokenizer(prompts, padding=True, return_tensors="pt")
        text = unit(model.get_text_features(**text).pooler_output, dim=-1)
        for at in range(0, len(pixels), BATCH):
            batch = torch.from_numpy(pixels[at : at + BATCH]).permute(0, 3, 1, 2).float() / 255
            image = model.get_image_features(pixel_values=(batch - mean) / std).pooler_output
            logits = model.logit_scale.exp() * unit(image, dim=-1) @ text.T
            indices.append(decide_in_torch(logits, where))
    return torch.cat(indices).numpy()


def read(words, indices: np.ndarray) -> list[dict[str, str]]:
    """Returns the labels that indices stand for; clothes in their parts too."""
    rows = []
    for chosen in indices:
        row = {}
        for each, index in zip(words.sets.values(), chosen, strict=True):
            phrase = list(each.phrases.values())[index] if index >= 0 else None
            row[each.name] = phrase.label if phrase else ""
            side = each.name.partition("_")[0]
            for part, label in (phrase.parts if phrase else {}).items():
                row[f"{side}_{part}"] = label
        rows.append(row)
    return rows


def measure(words, have: list[dict], want: list[dict]) -> dict[str, dict[str, float]]:
    """Returns each attribute's accuracy; of optional ones precision and recall, in percent."""
    found = {}
    names = [name for name in have[0] if name not in ("upper_clothes", "lower_clothes")]
    for name in names:
        pairs = [(h[name], w[name]) for h, w in zip(have, want, strict=True) if name in w]
        if not pairs:
            continue
        right = [h in w for h, w in pairs]
        if name in words.sets and not words.sets[name].required:
            kept = [ok for ok, (h, _) in zip(right, pairs, strict=True) if h]
            there = [ok for ok, (_, w) in zip(right, pairs, strict=True) if w != [""]]
            phrases = {value for _, answers in pairs for value in answers if value}
            found[name] = {
                "precision": 100 * np.mean(kept) if kept else None,
                "recall": 100 * np.mean(there) if there else None,
                "kept": len(kept),
                "chance": 100 * max([np.mean([p in w for _, w in pairs]) for p in phrases] or [0]),
            }
        else:
            values = {value for _, answers in pairs for value in answers}
            most = max(np.mean([value in w for _, w in pairs]) for value in values)
            found[name] = {"accuracy": 100 * np.mean(right), "chance": 100 * most}
    return found


def main() -> None:
    """Judges both collections twice and prints the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--clip", required=True, help="a CLIPModel directory")
    parser.add_argument("--drawn", type=int, default=2000)
    flags = parser.parse_args()
    words, encoder = lexicon.english(), unipt_jax.load(flags.clip)
    height, width = encoder.processor.height, encoder.processor.width

    with concurrent.futures.ProcessPoolExecutor() as pool:
        drawn = list(pool.map(draw, range(flags.drawn), chunksize=50))
    answers = json.loads((SAMPLE / "attributes.json").read_text())
    files = sorted((SAMPLE / "imgs").glob("*.jpg"))
    collections = {
        "drawn": (
            [image for image, _ in drawn],
            # Who rides neither stands nor walks.
            [{n: [v] for n, v in labels.items() if v != "riding"} for _, labels in drawn],
        ),
        "real": (
            [np.asarray(Image.open(file).convert("RGB")) for file in files],
            [answers[str(int(file.name.split("_")[0]))] for file in files],
        ),
    }
    report = {}
    for name, (pictures, want) in collections.items():
        pixels = np.stack([images.resize(picture, height, width) for picture in pictures])
        ours = judge(encoder, words, pixels)
        theirs = judge_in_torch(flags.clip, words, pixels)
        report[name] = measure(words, read(words, ours), want)
        report[f"{name}_same_as_torch"] = 100 * float((ours == theirs).mean())
    for name in ("drawn", "real"):
        print(
            f"\n{name}: {len(collections[name][0])} images, choices equal to torch's: "
            f"{report[f'{name}_same_as_torch']:.2f} %"
        )
        for attribute, figures in report[name].items():
            written = ("-" if value is None else f"{value:.1f}" for value in figures.values())
            print(f"  {attribute:14}", "  ".join(map("{} {:>6}".format, figures, written)))
    print(json.dumps(report, allow_nan=False))
    if any(report[f"{name}_same_as_torch"] < 100 for name in collections):
        raise SystemExit("choices differ from PyTorch's")


if __name__ == "__main__":
    main()
