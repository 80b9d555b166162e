"""How often each phrase was chosen, beside what the paper tells of its LUPerson-T."""

import io
from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Any

from etils import epath

from unipt_jax.captioning.attributes import AttributeSet
from unipt_jax.core.files import write_bytes

# Paper, section 3.1: texts of the 1.3 million in which an optional attribute occurs.
LUPERSON_T = {
    "bag": 221_750,
    "cellphone": 118_686,
    "glasses": 99_492,
    "hat": 97_063,
    "vehicle": 24_736,
    "gloves": 16_259,
    "umbrella": 1_578,
    "smoke": 693,
}
LUPERSON_T_TEXTS = 1_300_000


def count(sets: Mapping[str, AttributeSet], rows: Iterable[Mapping[str, Any]]) -> dict[str, Any]:
    """Counts images, words of captions, and each set's phrases in rows of `captions.jsonl`.

    An optional set's "" counts the images without any of its phrases.
    """
    counters: dict[str, Counter] = {name: Counter() for name in sets}
    total = words = 0
    for row in rows:
        total += 1
        words += len(row["caption"].split())
        for name, chosen in row["attributes"].items():
            counters[name][chosen["phrase"] or ""] += 1
    return {
        "images": total,
        "mean_words": words / total,
        "attributes": {name: dict(counter.most_common()) for name, counter in counters.items()},
    }


def plot(sets: Mapping[str, AttributeSet], counts: Mapping[str, Any], path: epath.PathLike) -> None:
    """Draws the share of images with each optional attribute, and the paper's where it has one."""
    # Slow to import, and needed once.
    from matplotlib.figure import Figure

    optional = [name for name, each in sets.items() if not each.required]
    ours = [
        100 * (1 - counts["attributes"][name].get("", 0) / counts["images"]) for name in optional
    ]
    figure = Figure(figsize=(8, 4), layout="constrained")
    axes = figure.add_subplot()
    places = range(len(optional))
    axes.bar([place - 0.2 for place in places], ours, 0.4, label="these images")
    told = {place + 0.2: name for place, name in enumerate(optional) if name in LUPERSON_T}
    theirs = [100 * LUPERSON_T[name] / LUPERSON_T_TEXTS for name in told.values()]
    axes.bar(list(told), theirs, 0.4, label="LUPerson-T (paper)")
    axes.set_xticks(places, optional)
    axes.set_ylabel("images with the attribute, %")
    axes.legend()
    content = io.BytesIO()
    figure.savefig(content, format="png", dpi=120)
    write_bytes(path, content.getvalue())
