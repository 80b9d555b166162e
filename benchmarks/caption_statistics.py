"""Statistics of captions for random persons, beside what the paper tells of LUPerson-T.

Required attributes are drawn evenly, optional ones as often as they are kept in LUPerson-T.

The line of JSON at the end holds the share of each template besides.

Usage: python benchmarks/caption_statistics.py [--draws=1000000] [--seed=0] [--lexicon=FILE]
"""

import argparse
import json
import time
from collections import Counter

from rich.console import Console
from rich.table import Table

from unipt_jax.captioning import composer, lexicon
from unipt_jax.captioning.frequencies import LUPERSON_T, LUPERSON_T_TEXTS

TEMPLATES = 456  # the paper's
ONE_PERSON = 10_000


def draw_choices(language: lexicon.Lexicon, pick: composer.Picker) -> dict[str, str | None]:
    """Returns a person: a label, or None, for every set."""
    choices: dict[str, str | None] = {}
    for name, attributes in language.sets.items():
        kept = attributes.required or pick(range(LUPERSON_T_TEXTS)) < LUPERSON_T.get(name, 0)
        choices[name] = pick(tuple(attributes.phrases)) if kept else None
    return choices


def measure(
    language: lexicon.Lexicon, draws: int, seed: int
) -> tuple[dict[str, float], dict[str, float]]:
    """Returns the statistics of `draws` captions, each of another person, and templates' shares."""
    words: Counter[str] = Counter()
    templates: Counter[str] = Counter()
    captions: set[int] = set()  # Hashes of 64 bits: a million texts would take 250 MB.
    mentions = 0
    seconds = 0.0
    for index in range(draws):
        path = f"{index}.jpg"
        choices = draw_choices(language, composer.Picker(seed, f"person {path}"))
        start = time.process_time()
        caption = composer.compose(language, choices, seed=seed, path=path)
        seconds += time.process_time() - start
        template = composer.Picker(seed, path)(language.templates)
        templates[template.skeleton] += 1
        captions.add(hash(caption))
        words.update(caption.lower().translate(_PUNCTUATION).split())
        mentions += sum(choices[name] is not None for name in LUPERSON_T if name in choices)
    person = {
        name: label if language.sets[name].required else None for name, label in choices.items()
    }
    same = {
        composer.compose(language, person, seed=seed, path=f"{index}.jpg")
        for index in range(ONE_PERSON)
    }
    shares = {each.skeleton: templates[each.skeleton] / draws for each in language.templates}
    found = {
        "texts": draws,
        "templates": len(language.templates),
        "templates used": len(templates),
        "share of the most frequent template": max(shares.values()),
        "share of the rarest template": min(shares.values()),
        "vocabulary, words": len(words),
        "mean length, words": words.total() / draws,
        "distinct texts, share": len(captions) / draws,
        f"distinct among {ONE_PERSON:,} of one plain person": len(same) / ONE_PERSON,
        "optional attributes chosen a text": mentions / draws,
        "texts a second and core": draws / seconds,
    }
    return found, shares


PAPER = {
    "texts": LUPERSON_T_TEXTS,
    "templates": TEMPLATES,
    "optional attributes chosen a text": sum(LUPERSON_T.values()) / LUPERSON_T_TEXTS,
}
_PUNCTUATION = str.maketrans("", "", ",.;:")


def _written(value: float | None) -> str:
    if value is None:
        return "not told"
    if isinstance(value, int) or value >= 1000:
        return f"{value:,.0f}"
    return f"{value:.4g}"


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--draws", type=int, default=1_000_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--lexicon", default=str(lexicon.ENGLISH))
    flags = parser.parse_args()
    found, shares = measure(lexicon.load(flags.lexicon), flags.draws, flags.seed)
    table = Table("", "here", "paper", title="Captions of random persons")
    for name, value in found.items():
        table.add_row(name, _written(value), _written(PAPER.get(name)))
    Console().print(table)
    print(json.dumps({"here": found, "paper": PAPER, "template shares": shares}))
