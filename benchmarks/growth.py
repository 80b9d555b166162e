"""Rank-1 on the real sample by how much, and how well, drawn pedestrians were described.

Each row is the demo's pre-training and fine-tuning, with other pseudo texts alone: for other
numbers of images or of templates, or with attributes taken for others. Weights that are pre-trained
have seen drawn pedestrians and pseudo texts, and no caption that a person wrote.

Usage: python benchmarks/growth.py --vary=images|templates|noise [--seeds 0 1 2]
           [--workdir=runs/growth] [--results=benchmarks/growth.json]
"""

import argparse
import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from drawn_reid.page import mean_and_range
from reproduce import evenly
from workshop import Workshop, code

from unipt_jax.captioning import composer, drawn
from unipt_jax.captioning.lexicon import Lexicon
from unipt_jax.core.files import read_json, write_json
from unipt_jax.core.random import host_generator
from unipt_jax.data import builders

HEIGHT, WIDTH = 128, 64  # Of drawn pedestrians, as in configs/prepare.py:demo_drawn.
TOKENIZER = "examples/tokenizer"
SAMPLE = "data"
RESULTS = Path(__file__).parent / "growth.json"


@dataclasses.dataclass(frozen=True)
class Texts:
    """Pseudo texts of drawn pedestrians.

    Attributes:
        images: how many.
        templates: how many sentences there are to fill; 0: all.
        noise: probability that an attribute is taken for another, or an optional one made up.
    """

    images: int = 12_000
    templates: int = 0
    noise: float = 0.0

    @property
    def name(self) -> str:
        """Returns a directory's name."""
        return f"{self.images}-{self.templates or 'all'}-{self.noise:g}"


ROWS: Mapping[str, tuple[Texts, ...]] = {
    "images": tuple(Texts(images=count) for count in (500, 2_000, 12_000, 50_000)),
    "templates": (*(Texts(templates=count) for count in (1, 57, 228, 456)), Texts()),
    "noise": tuple(Texts(noise=share) for share in (0.0, 0.1, 0.3, 0.5)),
}


def fewer_templates(words: Lexicon, count: int) -> Lexicon:
    """Returns the lexicon with `count` templates that leave nothing out."""
    whole = [template for template in words.templates if not template.leaves_out]
    return dataclasses.replace(words, templates=tuple(evenly(whole, count)))


def mistaken(
    words: Lexicon, choices: Mapping[str, str | None], noise: float, seed: int, number: int
) -> dict[str, str | None]:
    """Returns choices of which each was, with probability `noise`, drawn from its set's others."""
    rng, made = host_generator(seed, "noise", number), {}
    for name, label in choices.items():
        others = [other for other in words.sets[name].phrases if other != label]
        if not words.sets[name].required and label is not None:
            others.append(None)
        made[name] = others[rng.integers(len(others))] if rng.random() < noise else label
    return made


def write(texts: Texts, seed: int, place: Path) -> None:
    """Writes drawn pedestrians with such texts as a data set to train on."""
    words = drawn.english()
    fewer = fewer_templates(words, texts.templates) if texts.templates else words
    records = drawn.records(count=texts.images, seed=seed)
    described = []
    for record in records:
        number = int(Path(record.image).stem)
        choices = mistaken(words, drawn.choices(seed, number), texts.noise, seed, number)
        caption = composer.compose(fewer, choices, seed=seed, path=record.image)
        described.append(dataclasses.replace(record, captions=(caption,)))
    builders.write(
        described,
        source="",
        name="drawn",
        workdir=place,
        tokenizer=TOKENIZER,
        quarantined=0,
        notices={},
        read=drawn.reader(records, seed=seed, height=HEIGHT, width=WIDTH),
    )


def rank1(workshop: Workshop, texts: Texts, seed: int) -> dict[str, float]:
    """Returns R1 on the sample's test identities, in percent, before and after fine-tuning."""
    data = workshop.launch(SAMPLE, "prepare", "prepare.py:demo")
    own = workshop.launch("captions", "caption", "caption.py:demo", images=data)
    name = f"{texts.name}-{seed}"
    pseudo, plain = (_texts(workshop, each, seed) for each in (texts, Texts()))
    pretrained = workshop.launch(
        f"pretrain/{name}", "train", "pretrain.py:demo", data=f"{pseudo},{own}", seed=seed
    )
    finetuned = workshop.launch(
        f"finetune/{name}",
        "train",
        "finetune.py:demo",
        data=f"{data},{plain}",
        init=pretrained,
        seed=seed,
    )
    found = {}
    for stage, checkpoint in (("pre-trained", pretrained), ("fine-tuned", finetuned)):
        place = workshop.launch(
            f"figures/{name}-{stage}",
            "evaluate",
            "evaluate.py:demo",
            data=data,
            checkpoint=checkpoint,
        )
        found[stage] = read_json(place / "evaluation.json")["text_to_image"]["R1"]
    return found


def _texts(workshop: Workshop, texts: Texts, seed: int) -> Path:
    name = f"texts/{texts.name}-{seed}"
    return workshop.once(name, repr(texts), lambda: write(texts, seed, workshop.root / name))


def measure(vary: str, workshop: Workshop, seeds: Sequence[int]) -> dict[str, Any]:
    """Returns R1 by seed of each row, and with which code and in how many minutes."""
    rows = {}
    for texts in ROWS[vary]:
        found = [rank1(workshop, texts, seed) for seed in seeds]
        rows[str(dataclasses.asdict(texts)[vary] or ("all" if vary == "templates" else 0))] = {
            stage: [each[stage] for each in found] for stage in found[0]
        }
    minutes = round(sum(workshop.seconds.values()) / 60, 1)
    return {"code": code(), "seeds": list(seeds), "minutes": minutes, "R1": rows}


def markdown(found: Mapping[str, Any]) -> str:
    """Returns a page of what was measured."""
    return "\n".join(_lines(found)) + "\n"


def _lines(found: Mapping[str, Any]) -> Iterator[str]:
    yield "<!-- Written by benchmarks/growth.py. -->"
    yield "# Real pixels: the sample's five test identities, by what was pre-trained on"
    yield ""
    yield (
        "Rank-1 of text queries in percent, mean and range over the seeds. Pre-training sees drawn "
        "pedestrians and pseudo texts alone (and the small CLIP's texts for real crops of six "
        "other people); fine-tuning, the captions that people wrote of these six. Otherwise it "
        "is the demo, with 12,000 images, all templates and no noise unless the row says so."
    )
    for vary, table in found.items():
        yield ""
        yield f"## By {vary}"
        yield ""
        yield f"| {vary} | pre-trained | fine-tuned |"
        yield "|---|---|---|"
        for row, stages in table["R1"].items():
            yield f"| {row} | {' | '.join(map(mean_and_range, stages.values()))} |"
        yield ""
        seeds = ", ".join(map(str, table["seeds"]))
        yield (
            f"`python benchmarks/growth.py --vary={vary}`: seeds {seeds}, code {table['code']}, "
            f"{table['minutes']:.0f} minutes."
        )


def main() -> None:
    """Measures what is asked for and writes the page anew."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--vary", required=True, choices=ROWS)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--workdir", type=Path, default=Path("runs/growth"))
    parser.add_argument("--results", type=Path, default=RESULTS)
    flags = parser.parse_args()
    found = read_json(flags.results) if flags.results.exists() else {}
    found[flags.vary] = measure(flags.vary, Workshop(flags.workdir), flags.seeds)
    write_json(flags.results, found)
    flags.results.with_suffix(".md").write_text(markdown(found))
    print(markdown({flags.vary: found[flags.vary]}))


if __name__ == "__main__":
    main()
