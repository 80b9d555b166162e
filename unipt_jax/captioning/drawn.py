"""Drawn pedestrians and captions of what was drawn: a data set of any size from a seed.

A stand-in for LUPerson where nothing can be downloaded: what the captions say is true by
construction, whereas a captioner's pseudo texts err.
"""

import concurrent.futures
import functools
import io
import itertools
import multiprocessing
from collections.abc import Callable, Iterator, Sequence

from PIL import Image

from unipt_jax.captioning import composer, lexicon
from unipt_jax.core.files import read_json
from unipt_jax.core.random import host_generator
from unipt_jax.data import synthetic
from unipt_jax.data.annotations import Record

# What captions call the dark and the light end of a colour, if they do not only name it.
_SHADES = lexicon.ENGLISH.parent / "shades.json"
_AT_ONCE = 2048
_QUALITY = 95  # Of JPEG, as cameras write.


@functools.cache
def english() -> lexicon.Lexicon:
    """Returns the English lexicon with shades of its colours, which a drawing makes known."""
    content = read_json(lexicon.ENGLISH)
    content["parts"]["colors"] += read_json(_SHADES)
    return lexicon.parse(content, str(_SHADES))


def records(*, count: int, seed: int) -> list[Record]:
    """Returns `count` records for training, each a person of its own with one caption.

    Who rides is passed over: the paper's actions, which the captions say, are those on foot.
    """
    drawn = (
        (f"{index:08d}.jpg", choices)
        for index in itertools.count()
        if (choices := _choices(seed, index))["action"] in english().sets["action"].phrases
    )
    return [
        Record(
            image=image,
            captions=(composer.compose(english(), choices, seed=seed, path=image),),
            identity=f"drawn/{image}",
            split="train",
            position=position,
        )
        for position, (image, choices) in enumerate(itertools.islice(drawn, count))
    ]


def reader(
    written: Sequence[Record], *, seed: int, height: int, width: int
) -> Callable[[Record], bytes]:
    """Returns what gives each record's image, as JPEG, when asked in the order of `written`.

    The images are drawn ahead, in a process a core.
    """
    drawn = _drawn([record.image for record in written], seed, height, width)

    def read(record: Record) -> bytes:
        image, content = next(drawn)
        if image != record.image:
            raise ValueError(f"{record.image} was asked for before {image}")
        return content

    return read


def _choices(seed: int, index: int) -> dict[str, str | None]:
    """Returns the labels of `synthetic.example`, without drawing it."""
    rng = host_generator(seed, "synthetic", index)
    person, view = synthetic.draw_person(rng), synthetic.draw_view(rng)
    labels = synthetic.labels(synthetic.visible(person, view))
    for part in ("upper", "lower"):
        name = f"{part}_clothes"
        shaded = f"{synthetic.lightness(person, part)} {labels[name]}"
        if shaded in english().sets[name].phrases:
            labels[name] = shaded
    return {name: label or None for name, label in labels.items()}


def _drawn(names: Sequence[str], seed: int, height: int, width: int) -> Iterator[tuple[str, bytes]]:
    draw = functools.partial(_draw, seed=seed, height=height, width=width)
    # A fork of a process that runs JAX could wait forever for a lock.
    context = multiprocessing.get_context("spawn")
    with concurrent.futures.ProcessPoolExecutor(mp_context=context) as pool:
        for start in range(0, len(names), _AT_ONCE):
            part = names[start : start + _AT_ONCE]
            yield from zip(part, pool.map(draw, part, chunksize=32), strict=True)


def _draw(name: str, *, seed: int, height: int, width: int) -> bytes:
    pixels, _ = synthetic.example(seed, int(name.removesuffix(".jpg")), height, width)
    out = io.BytesIO()
    Image.fromarray(pixels).save(out, "JPEG", quality=_QUALITY)
    return out.getvalue()
