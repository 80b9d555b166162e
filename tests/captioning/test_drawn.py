"""Drawn pedestrians as a data set: what a caption says is in its picture."""

import collections
import functools
import io
import pickle
import re

import numpy as np
import pytest
from PIL import Image

from tests.captioning import english
from unipt_jax.captioning import composer, drawn
from unipt_jax.data import builders, synthetic
from unipt_jax.data.synthetic import clothes, looks

COUNT, HEIGHT, WIDTH = 24, 48, 24
SHADE = r"\b(?:dark|deep|light|pale|bright|vivid) (?=(?:gray|grey|red|green|blue|purple)\b)"
TONES = {
    "black": "black|dark",
    "brown": "dark brown|brown",
    "blond": "blonde|blond|fair",
    "red": "red|ginger",
    "gray": "gray|grey",
}
TONE = "|".join(sorted("|".join(TONES.values()).split("|"), reverse=True))
SHOES = rf"The shoes are ({TONE}|white|blue)\.|The footwear is ({TONE}|white|blue)\."
SHOES += rf"|On the feet are ({TONE}|white|blue) shoes\.|({TONE}|white|blue) shoes\."
STRIPE = "|".join(english.COLORS)
STRIPES = rf"The stripes are ({STRIPE}|grey)\.|({STRIPE}|grey) stripes\."
HAIR = (
    (rf"(?<=\bshort )({TONE}) (?=hair)", ""),
    (rf"(?<=\blong )({TONE}) (?=hair)", ""),
    (rf"(?<=\bhair short) and ({TONE})\b|(?<=\bhair long) and ({TONE})\b", ""),
    (rf"(?<=\bhair is short) and ({TONE})\b|(?<=\bhair is long) and ({TONE})\b", ""),
    (rf"\b({TONE})-haired", "LENGTH-haired"),
    ("hair is thinning()", "head is bald"),
    ("hair thinning()", "head bald"),
    ("has thinning hair()", "is bald"),
    ("thinning hair()", "a bald head"),
    ("balding()", "bald"),
)


def records(count=COUNT, seed=0):
    return drawn.records(count=count, seed=seed)


def without_shades(caption):
    """Returns what is left if "navy" and "dark blue" are blue."""
    caption = re.sub("navy blue|navy", "blue", caption, flags=re.IGNORECASE)
    gray = "grey" if "grey" in caption else "gray"
    caption = re.sub("charcoal", gray, caption, flags=re.IGNORECASE)
    caption = re.sub(SHADE, "", caption, flags=re.IGNORECASE)
    return re.sub(r"(?:^|\. )[a-z]", lambda start: start[0].upper(), caption)


def without_details(caption, hair):
    """Returns a caption without what is said of shoes, stripes and the colour of the hair."""
    caption = re.sub(rf" (?:{SHOES}|{STRIPES})", "", caption, flags=re.IGNORECASE)
    for pattern, plain in HAIR:
        plain = plain.replace("LENGTH", hair.split()[0])
        caption = re.sub(pattern, plain, caption, flags=re.IGNORECASE)
    return caption[:1].upper() + caption[1:]


def said(pattern, caption):
    """Returns what the groups of a pattern found, in lower case."""
    found = [match.groups() for match in re.finditer(pattern, caption, re.IGNORECASE)]
    return [word.lower() for groups in found for word in groups if word]


def index_of(record):
    return int(record.image.removesuffix(".jpg"))


@functools.cache
def person(index, seed=0):
    """Whom a picture shows; its size does not matter."""
    return synthetic.example(seed, index, 8, 4)[1]


@pytest.fixture(scope="module")
def prepare(tmp_path_factory):
    """Prepares a data set of a seed, of which parts are drawn a few at a time."""

    def prepare(seed=0):
        directory = tmp_path_factory.mktemp("drawn")
        made = records(seed=seed)
        builders.write(
            made,
            source="",
            name="drawn",
            workdir=directory,
            tokenizer="examples/tokenizer",
            quarantined=0,
            notices={},
            read=drawn.reader(made, seed=seed, height=HEIGHT, width=WIDTH),
        )
        return directory

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(drawn, "_AT_ONCE", 10)
        yield prepare


@pytest.fixture(scope="module")
def prepared(prepare):
    return prepare()


# ---------------------------------------------------------------------------- records


def test_captions_say_what_is_drawn():
    """Each attribute of the picture is in its caption, and nothing else is."""
    for record in records(60):
        labels = synthetic.labels(person(index_of(record)))
        choices = {name: label or None for name, label in labels.items()}
        (caption,) = record.captions
        left_out = composer.Picker(0, record.image)(drawn.english().templates).leaves_out
        plain = without_details(without_shades(caption), labels["hair"])
        found = english.faults(plain, choices, left_out - {"shoes", "stripes"})
        assert found == [], (caption, choices)
        assert len(set(said(r"\b(gr[ae]y)\b", caption))) < 2, caption


def test_captions_tell_shoes_stripes_and_hair_as_drawn():
    """And if they do not tell them, it is for the template: half of them do."""
    told = collections.Counter()
    for record in records(400):
        one, (caption,) = person(index_of(record)), record.captions
        details = synthetic.details(one)
        words = {"black": "black|dark", "brown": "dark brown|brown", "gray": "gray|grey"}
        for name, pattern in (("shoes", SHOES), ("stripes", STRIPES)):
            for color in said(pattern, caption):
                assert re.fullmatch(words.get(details[name], details[name]), color), caption
                told[name] += 1
        for pattern, _ in HAIR:
            for tone in said(pattern, caption):
                assert re.fullmatch(TONES[details["hair"]], tone), caption
                told["hair"] += 1
        if re.search(r"\b(?:thinning|balding)\b", caption, re.IGNORECASE):
            assert details["hair"] == "balding"
            told["balding"] += 1
        assert bool(said(STRIPES, caption)) == bool(said(SHOES, caption) and details["stripes"])
    assert 150 < told["shoes"] < 250 and told["stripes"] > 5
    assert 100 < told["hair"] < 250 and told["balding"] > 1


def test_dark_and_light_clothes_are_so():
    """What captions call dark is darker, in its colour, than all that they call light."""
    values = {}
    for record in records(400):
        one = person(index_of(record))
        caption = without_details(record.captions[0], one.hair)
        for part in ("upper", "lower"):
            color = getattr(one, f"{part}_color")
            other = one.lower_color if part == "upper" else one.upper_color
            if color == other:
                continue  # The caption does not say which of the two it means.
            name = {"gray": "(?:gray|grey)"}.get(color, color)
            extra = {"blue": "|navy", "gray": "|charcoal"}.get(color, "")
            brightness = max(clothes.cloth(one, looks.traits(one), part).color)
            for shade, words in (("dark", "dark|deep"), ("light", "light|pale|bright|vivid")):
                pattern = rf"\b(?:{words}) {name}\b" + (extra if shade == "dark" else "")
                if re.search(pattern, caption):
                    values.setdefault((color, shade), []).append(brightness)
    assert len(values) == 10
    for color in {color for color, _ in values}:
        assert max(values[color, "dark"]) < min(values[color, "light"]), color


def test_who_rides_is_passed_over_and_nobody_else():
    made = records(60)
    people = [person(index) for index in range(index_of(made[-1]) + 1)]
    on_foot = [f"{index:08d}.jpg" for index, p in enumerate(people) if p.action != "riding"]
    assert [record.image for record in made] == on_foot
    assert len(on_foot) < len(people)
    vehicles = re.compile(r"\b(bicycle|bike|motorcycle|motorbike|rode|rid(es|ing)|rider|cyclist)\b")
    assert not [record for record in made if vehicles.search(record.captions[0])]


def test_each_record_is_a_person_of_its_own():
    made = records(60)
    assert len({record.identity for record in made}) == 60
    assert len({record.image for record in made}) == 60
    assert len({person(index_of(record)) for record in made}) == 60
    assert len({record.captions[0] for record in made}) > 55
    assert {record.split for record in made} == {"train"}
    assert [record.position for record in made] == list(range(60))


def test_a_seed_says_it_all():
    """A smaller set is the beginning of a larger one; another seed has other people."""
    assert records() == records()
    assert records(7) == records()[:7]
    one, other = records(), records(seed=1)
    assert not {record.captions for record in one} & {record.captions for record in other}
    people = {person(index_of(record)) for record in one}
    assert not people & {person(index_of(record), 1) for record in other}


# ---------------------------------------------------------------------------- pictures


def test_a_prepared_data_set_opens(prepared):
    split = builders.open_split(prepared, "train")
    made = records()
    assert len(split.images) == split.identity_count == COUNT
    assert sorted(split.identities.tolist()) == list(range(COUNT))
    assert split.caption_counts.tolist() == [1] * COUNT and len(split.text_lengths) == COUNT
    for number, record in enumerate(made):
        entry = split.images[number]
        assert (entry["path"], entry["captions"]) == (record.image, list(record.captions))
    names = builders.read_identities(prepared, "train")
    assert [names[label] for label in split.identities] == [record.identity for record in made]


def test_pictures_are_those_of_the_captions(prepared):
    """JPEGs of the size asked for, nearer to the record's own drawing than to any other."""
    images = builders.open_split(prepared, "train").images
    drawings = np.stack(
        [synthetic.example(0, index_of(record), HEIGHT, WIDTH)[0] for record in records()]
    ).astype(float)
    for number in range(COUNT):
        image = Image.open(io.BytesIO(images[number]["image"]))
        assert (image.format, image.mode, image.size) == ("JPEG", "RGB", (WIDTH, HEIGHT))
        distances = np.abs(np.asarray(image, float) - drawings).mean(axis=(1, 2, 3))
        assert distances.argmin() == number and distances[number] < 12


def test_the_same_seed_gives_the_same_bytes(prepared, prepare):
    again = prepare()
    names = {path.name for path in prepared.iterdir()}
    assert names == {path.name for path in again.iterdir()} and len(names) > 4
    for name in names:
        if "array_record" in name or name.startswith(("index-", "identities-", "manifest")):
            assert (prepared / name).read_bytes() == (again / name).read_bytes(), name


def test_another_seed_gives_others(prepared, prepare):
    one, other = (builders.open_split(path, "train").images for path in (prepared, prepare(seed=1)))
    for part in ("image", "captions"):
        values = [{str(images[i][part]) for i in range(COUNT)} for images in (one, other)]
        assert not values[0] & values[1]


def test_out_of_order_is_said():
    first, second = records(2)
    read = drawn.reader([first, second], seed=0, height=8, width=4)
    with pytest.raises(ValueError, match=f"{second.image} was asked for before {first.image}"):
        read(second)


def test_a_reader_that_travels_draws_each_image_by_itself():
    first, second = records(2)
    read = drawn.reader([first, second], seed=0, height=8, width=4)
    elsewhere = pickle.loads(pickle.dumps(read))
    images = {record: elsewhere(record) for record in (second, first)}
    assert images[first] == read(first) != images[second] == read(second)
