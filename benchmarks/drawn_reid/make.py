"""Draws the benchmark: two data sets in CUHK-PEDES' layout, and images without captions.

    street/, station/   `reid_raw.json` and `imgs/`: identities of train, val and test with three to
                        five images each, two captions an image
    pool/, more/        images alone, one of each person: LUPerson's stand-in, and as many again

The same seed gives the same files; their hashes are in `hashes.json`. NumPy and Pillow may round
otherwise in other versions: then the hashes differ, and figures may by a little.
"""

import concurrent.futures
import functools
import hashlib
import json
import multiprocessing
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from drawn_reid import captions
from drawn_reid.domains import DOMAINS, facts, identity, photograph
from unipt_jax.captioning import drawn
from unipt_jax.core.random import host_generator
from unipt_jax.data import synthetic

SEED = 11
HEIGHT, WIDTH = 128, 64
IDENTITIES = {"train": 400, "val": 50, "test": 200}
IMAGES = (3, 5)  # Of an identity, at least and at most.
CAPTIONS = 2  # Of an image.
POOL = 12_000
HASHES = Path(__file__).parent / "hashes.json"

Made = Iterator[tuple[str, bytes, dict[str, Any]]]  # An image's name, its file, its record.


def person(domain: str, number: int) -> Made:
    """Draws an identity of a domain: its images, each with its captions."""
    place, rng = DOMAINS[domain], host_generator(SEED, f"drawn_reid {domain}", number)
    who = identity(place, rng)
    bounds = np.cumsum(list(IDENTITIES.values()))
    split = list(IDENTITIES)[int(np.searchsorted(bounds, number, side="right"))]
    for shot in range(rng.integers(IMAGES[0], IMAGES[1] + 1)):
        view = synthetic.draw_view(rng)
        pixels = photograph(place, who, view, rng, HEIGHT, WIDTH)
        known = facts(who, view)
        said = [captions.write(place.style, known, rng) for _ in range(CAPTIONS)]
        name = f"{number:04d}_{shot}.jpg"
        record = {"split": split, "captions": said, "file_path": name, "id": number}
        yield name, drawn.jpeg(pixels), record


def passer_by(part: str, number: int) -> Made:
    """Draws one image of somebody who is seen once, anywhere and in any clothes."""
    rng = host_generator(SEED, f"drawn_reid {part}", number)
    who, view = synthetic.draw_person(rng), synthetic.draw_view(rng)
    pixels = synthetic.draw_image(who, rng, HEIGHT, WIDTH, view)
    yield f"{number:05d}.jpg", drawn.jpeg(pixels), {}


def make(part: str, count: int | None = None) -> Made:
    """Draws a part of the benchmark, or its first `count` persons, in a process a core."""
    draw: Callable[[str, int], Made] = person if part in DOMAINS else passer_by
    whole = sum(IDENTITIES.values()) if part in DOMAINS else POOL
    numbers = range(whole if count is None else count)
    context = multiprocessing.get_context("spawn")  # A fork of JAX's threads may wait forever.
    with concurrent.futures.ProcessPoolExecutor(mp_context=context) as pool:
        jobs = pool.map(functools.partial(_listed, draw, part), numbers, chunksize=16)
        for made in jobs:
            yield from made


def write(part: str, place: Path, count: int | None = None) -> None:
    """Writes a part, or its first `count` persons.

    It says if this is not what the committed figures were made of.
    """
    folder = place / "imgs" if part in DOMAINS else place
    shutil.rmtree(place, ignore_errors=True)
    folder.mkdir(parents=True)
    records, hashed = [], hashlib.sha256()
    for name, content, record in make(part, count):
        (folder / name).write_bytes(content)
        records.append(record)
        _hash(hashed, content, record)
    if part in DOMAINS:
        (place / "reid_raw.json").write_text(json.dumps(records, indent=1))
    if hashed.hexdigest() != json.loads(HASHES.read_text()).get(part):
        print(
            f"{place}: {hashed.hexdigest()} is not the hash in {HASHES.name}: NumPy or Pillow "
            "draw otherwise here, and figures may differ"
        )


def _hash(hashed: Any, content: bytes, record: dict[str, Any]) -> None:
    hashed.update(content)
    hashed.update(json.dumps(record, sort_keys=True).encode())


def _listed(draw: Callable[[str, int], Made], part: str, number: int) -> list[tuple]:
    return list(draw(part, number))
