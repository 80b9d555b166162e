"""Drawn pedestrians and captions of what was drawn: a data set of any size from a seed.

A stand-in for LUPerson where nothing can be downloaded: what the captions say is true of who was
drawn, whereas a captioner's pseudo texts err. It need not all show: a crop may cut off the shoes, a
helmet hide the hair.
"""

import concurrent.futures
import functools
import io
import itertools
import multiprocessing
from collections.abc import Callable, Iterator, Sequence

import numpy as np
from jaxtyping import UInt8
from PIL import Image

from unipt_jax.captioning import composer, lexicon
from unipt_jax.core.files import read_json
from unipt_jax.core.random import host_generator
from unipt_jax.data import synthetic
from unipt_jax.data.annotations import Record

# Words for what a drawing makes known beyond the 14 attributes.
_DETAILS = lexicon.ENGLISH.parent / "details.json"
_AT_ONCE = 2048
_QUALITY = 95  # Of JPEG, as cameras write.


@functools.cache
def english() -> lexicon.Lexicon:
    """Returns the English lexicon with words for what only a drawing makes known.

    Shades and hair stand in its own sets; each whole template comes once as it is, and once with
    sentences on shoes and stripes after it.
    """
    content, more = read_json(lexicon.ENGLISH), read_json(_DETAILS)
    content["parts"]["colors"] += more["colors"]
    content["sets"]["hair"]["phrases"] += more["hair"]
    content["sets"] |= more["sets"]
    content["synonyms"] |= more["synonyms"]
    content["rewrites"] |= more["rewrites"]
    templates = []
    for entry in content["templates"]:
        if isinstance(entry, dict):
            templates.append(entry | {"leaves_out": [*entry["leaves_out"], *more["sets"]]})
        else:
            pieces = entry if isinstance(entry, list) else [entry]
            templates.append({"text": pieces, "leaves_out": [*more["sets"]]})
            templates.append([*pieces, *more["sentences"]])
    return lexicon.parse(content | {"templates": templates}, str(_DETAILS))


def choices(seed: int, index: int) -> dict[str, str | None]:
    """Returns what can be said of `synthetic.example`, by set of `english`; None: nothing is there.

    Nothing is drawn for it.
    """
    rng = host_generator(seed, "synthetic", index)
    person, view = synthetic.draw_person(rng), synthetic.draw_view(rng)
    labels, details = synthetic.labels(synthetic.visible(person, view)), synthetic.details(person)
    for name, detail in (("upper_clothes", "upper"), ("lower_clothes", "lower"), ("hair", "hair")):
        exact = f"{details[detail]} {labels[name]}"
        if exact in english().sets[name].phrases:
            labels[name] = exact
    labels |= {name: details[name] for name in ("shoes", "stripes")}
    return {name: label or None for name, label in labels.items()}


def records(*, count: int, seed: int) -> list[Record]:
    """Returns `count` records for training, each a person of its own with one caption.

    Who rides is passed over: the paper's actions, which the captions say, are those on foot.
    """
    drawn = (
        (f"{index:08d}.jpg", said)
        for index in itertools.count()
        if (said := choices(seed, index))["action"] in english().sets["action"].phrases
    )
    return [
        Record(
            image=image,
            captions=(composer.compose(english(), said, seed=seed, path=image),),
            identity=f"drawn/{image}",
            split="train",
            position=position,
        )
        for position, (image, said) in enumerate(itertools.islice(drawn, count))
    ]


def reader(
    written: Sequence[Record], *, seed: int, height: int, width: int
) -> Callable[[Record], bytes]:
    """Returns what gives each record's image, as JPEG, when asked in the order of `written`.

    The images are drawn ahead, in a process a core. Where a pickle of it is taken, each image is
    drawn when asked for, in any order.
    """
    return _Ahead(written, seed=seed, height=height, width=width)


def jpeg(pixels: UInt8[np.ndarray, "H W 3"]) -> bytes:
    """Returns RGB values 0..255 as the file that a camera would write."""
    out = io.BytesIO()
    Image.fromarray(pixels).save(out, "JPEG", quality=_QUALITY)
    return out.getvalue()


class _Ahead:
    def __init__(self, written: Sequence[Record], **how: int) -> None:
        self._draw = functools.partial(_draw, **how)
        self._drawn = _drawn([record.image for record in written], self._draw)

    def __call__(self, record: Record) -> bytes:
        image, content = next(self._drawn)
        if image != record.image:
            raise ValueError(f"{record.image} was asked for before {image}")
        return content

    def __reduce__(self) -> tuple[Callable, tuple]:
        return functools.partial, (_draw_record, self._draw)


def _drawn(names: Sequence[str], draw: Callable[[str], bytes]) -> Iterator[tuple[str, bytes]]:
    # A fork of a process that runs JAX could wait forever for a lock.
    context = multiprocessing.get_context("spawn")
    with concurrent.futures.ProcessPoolExecutor(mp_context=context) as pool:
        for start in range(0, len(names), _AT_ONCE):
            part = names[start : start + _AT_ONCE]
            yield from zip(part, pool.map(draw, part, chunksize=32), strict=True)


def _draw_record(draw: Callable[[str], bytes], record: Record) -> bytes:
    return draw(record.image)


def _draw(name: str, *, seed: int, height: int, width: int) -> bytes:
    pixels, _ = synthetic.example(seed, int(name.removesuffix(".jpg")), height, width)
    return jpeg(pixels)
