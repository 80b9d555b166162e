"""The drawn benchmark: who is in which split, what is written, and that it stays the same."""

import hashlib
import io
import json
from collections import Counter

import numpy as np
import pytest
from drawn_reid import make
from drawn_reid.domains import DOMAINS, identity
from PIL import Image

from unipt_jax.data import annotations

ENDS = (0, 399, 400, 449, 450, 649)  # The first and the last of train, val and test.


def decoded(content):
    return np.asarray(Image.open(io.BytesIO(content)))


@pytest.mark.parametrize("domain", DOMAINS)
def test_an_identity_has_three_to_five_images_in_one_split(domain):
    for number, split in zip(ENDS, ("train", "train", "val", "val", "test", "test"), strict=True):
        names, contents, records = zip(*make.person(domain, number), strict=True)
        assert 3 <= len(names) <= 5 and len(set(contents)) == len(names) == len(set(names))
        assert {record["split"] for record in records} == {split}
        assert {record["id"] for record in records} == {number}
        assert all(len(record["captions"]) == 2 for record in records)
        assert decoded(contents[0]).shape == (128, 64, 3)


@pytest.mark.parametrize("part", [*DOMAINS, "pool", "more"])
def test_the_same_person_is_drawn_again(part):
    draw = make.person if part in DOMAINS else make.passer_by
    assert list(draw(part, 7)) == list(draw(part, 7)) != list(draw(part, 8))


def test_parts_show_other_people():
    """Each has a stream of random numbers of its own."""
    first = {part: next(make.passer_by(part, 0))[1] for part in ("pool", "more")}
    first |= {domain: next(make.person(domain, 0))[1] for domain in DOMAINS}
    assert len(set(first.values())) == len(first)


def test_captions_are_those_of_the_committed_benchmark():
    """They come from whole numbers alone, on any machine; pixels may be rounded otherwise."""
    hashed = hashlib.sha256()
    for domain in DOMAINS:
        for number in range(5):
            for *_, record in make.person(domain, number):
                hashed.update(json.dumps(record).encode())
    hashes = json.loads(make.HASHES.read_text())
    assert hashed.hexdigest() == hashes["captions of five"]
    assert hashes.keys() == {*DOMAINS, "pool", "more", "captions of five"}


def test_domains_differ_in_light_and_clothes():
    colors, rare = {}, {}
    for name, domain in DOMAINS.items():
        pixels = [decoded(next(make.person(name, n))[1]) for n in range(12)]
        red, _, blue = np.mean(pixels, axis=(0, 1, 2))
        colors[name] = red / blue
        rng = np.random.default_rng(0)
        worn = Counter()
        for _ in range(400):
            person = identity(domain, rng)
            worn[bool({person.upper_garment, person.lower_garment} & domain.rare)] += 1
        rare[name] = worn[True] / 400
    assert colors["station"] > 1.2 * colors["street"]
    assert max(rare.values()) < 0.1
    assert not DOMAINS["street"].rare & DOMAINS["station"].rare


@pytest.mark.parametrize("part", ["station", "pool"])
def test_what_is_written_can_be_read(part, tmp_path, capsys):
    (tmp_path / part).mkdir()
    (tmp_path / part / "leftover").touch()
    make.write(part, tmp_path / part, 3)
    assert "is not the hash" in capsys.readouterr().out
    if part == "pool":
        names = ["00000.jpg", "00001.jpg", "00002.jpg"]
        assert sorted(path.name for path in (tmp_path / part).iterdir()) == names
        return
    records, problems = annotations.read("cuhk_pedes", tmp_path / part)
    assert not [problem for problem in problems if problem.kind == "fault"]
    assert {record.split for record in records} == {"train"}
    assert len({record.identity for record in records}) == 3 < 9 <= len(records)
    assert not (tmp_path / part / "leftover").exists()
