"""Drawn pedestrians: what is said of them is what the picture shows."""

import collections
import dataclasses

import numpy as np
import pytest
from PIL import Image

from unipt_jax.data import synthetic
from unipt_jax.data.synthetic import people, sketch

PLAIN = synthetic.Person(
    age="young", gender="male", upper_color="red", upper_pattern="pure color",
    upper_garment="t-shirt", lower_color="blue", lower_pattern="pure color",
    lower_garment="long pants", action="standing", hair="short hair",
)  # fmt: skip
OPTIONAL = [
    *(("bag", word) for word in people.BAGS),
    *(("glasses", word) for word in people.GLASSES),
    *(("smoke", word) for word in people.SMOKES),
    *(("hat", word) for word in people.HATS),
    *(("cellphone", word) for word in people.CELLPHONES),
    *(("umbrella", word) for word in people.UMBRELLAS),
    *(("gloves", word) for word in people.GLOVES),
    *(("vehicle", word) for word in people.VEHICLES),
]
YAWS = (0.0, 40.0, 90.0, 140.0, -180.0, -130.0, -80.0, -30.0)
# Typical shades, by hand.
REFERENCE = {
    "black": (25, 25, 25), "white": (235, 235, 235), "gray": (130, 130, 130), "red": (185, 25, 25),
    "orange": (240, 130, 25), "yellow": (240, 205, 45), "green": (40, 125, 60),
    "blue": (40, 90, 165), "purple": (110, 50, 145), "pink": (240, 150, 190),
    "brown": (95, 60, 32), "khaki": (190, 170, 125),
}  # fmt: skip


def paint(person, view, gray=128):
    """The figure alone: 200 pixels tall, feet at (100, 220), before an even background."""
    image = Image.new("RGB", (200, 240), (gray,) * 3)
    shapes = synthetic.figure(person, view)
    sketch.paint(image, shapes, np.array([200.0, -200.0]), np.array([100.0, 220.0]))
    return np.asarray(image).astype(int)


def changed(a, b):
    """How many pixels differ visibly."""
    return int((np.abs(a - b).max(axis=-1) > 40).sum())


def draws(count, seed=0):
    rng = np.random.default_rng(seed)
    return [synthetic.draw_person(rng) for _ in range(count)]


# ------------------------------------------------------------------------------ from a seed


def test_an_example_depends_on_seed_and_index_alone():
    first = [synthetic.example(3, index, 64, 32) for index in range(4)]
    np.random.seed(1)
    again = [synthetic.example(3, index, 64, 32) for index in reversed(range(4))][::-1]
    for (image, person), (same, twin) in zip(first, again, strict=True):
        assert person == twin and (image == same).all()
    assert len({person for _, person in first}) == 4
    assert synthetic.example(4, 0, 64, 32)[1] != first[0][1]


def test_the_person_does_not_depend_on_the_size():
    assert synthetic.example(0, 5, 384, 128)[1] == synthetic.example(0, 5, 64, 32)[1]


def test_a_view_not_given_is_drawn_first():
    rng = np.random.default_rng(7)
    view = synthetic.draw_view(rng)
    given = synthetic.draw_image(PLAIN, rng, 64, 32, view)
    assert (synthetic.draw_image(PLAIN, np.random.default_rng(7), 64, 32) == given).all()


@pytest.mark.parametrize(
    ("height", "width"), [(128, 64), (384, 128), (256, 256), (61, 23), (48, 160), (8, 4)]
)
def test_any_size(height, width):
    for index in range(8):
        image, _ = synthetic.example(1, index, height, width)
        assert image.shape == (height, width, 3) and image.dtype == np.uint8


def test_too_small_an_image_is_refused():
    with pytest.raises(ValueError, match="7 x 4 pixels are too few"):
        synthetic.example(0, 0, 7, 4)


# ------------------------------------------------------------------------------ words


def test_labels_by_hand():
    person = dataclasses.replace(
        PLAIN, upper_pattern="stripe", upper_garment="shirt", lower_garment="jeans",
        bag="single-shoulder bag", vehicle="bicycle", action="riding",
    )  # fmt: skip
    assert synthetic.labels(person) == {
        "age": "young", "gender": "male", "upper_clothes": "red stripe shirt",
        "lower_clothes": "blue jeans", "action": "riding", "hair": "short hair",
        "bag": "single-shoulder bag", "glasses": "", "smoke": "", "hat": "", "cellphone": "",
        "umbrella": "", "gloves": "", "vehicle": "bicycle",
    }  # fmt: skip


def test_every_word_is_drawn_and_no_other():
    vocabulary = {
        "age": people.AGES, "gender": people.GENDERS, "upper_color": people.COLORS,
        "upper_pattern": people.PATTERNS, "upper_garment": people.UPPER_GARMENTS,
        "lower_color": people.COLORS, "lower_pattern": people.PATTERNS,
        "lower_garment": people.LOWER_GARMENTS, "action": people.ACTIONS, "hair": people.HAIRS,
        "bag": ("", *people.BAGS), "glasses": ("", *people.GLASSES),
        "smoke": ("", *people.SMOKES), "hat": ("", *people.HATS),
        "cellphone": ("", *people.CELLPHONES), "umbrella": ("", *people.UMBRELLAS),
        "gloves": ("", *people.GLOVES), "vehicle": ("", *people.VEHICLES),
    }  # fmt: skip
    persons = draws(3000)
    for name, words in vocabulary.items():
        assert {getattr(person, name) for person in persons} == set(words), name
    assert len({person.identity for person in persons}) == 3000


def test_attributes_occur_together_as_they_do_in_life():
    persons = draws(4000, seed=1)
    for person in persons:
        assert (person.action == "riding") == bool(person.vehicle)
        if person.lower_garment == "jeans":
            assert person.lower_color in ("blue", "black", "gray")
            assert person.lower_pattern == "pure color"
        if person.age == "kid":
            assert not person.smoke and not person.vehicle and person.hair != "bald head"
        if "wind coat" in person.upper_garment or person.lower_garment == "long skirt":
            assert person.action in ("standing", "walking")
        if person.upper_garment == "wind coat":
            assert person.lower_garment not in ("shorts", "short skirt")
        held = [person.cellphone, person.umbrella, person.bag == "handbag"]
        assert sum(map(bool, held)) <= (0 if person.vehicle else 2)

    def share(condition, among=lambda person: True):
        chosen = [bool(condition(person)) for person in persons if among(person)]
        return sum(chosen) / len(chosen)

    for name, word in OPTIONAL:
        rate = share(lambda person, name=name, word=word: getattr(person, name) == word)
        assert 0.1 < rate < 0.27, (name, word, rate)
    assert share(lambda p: p.gender == "female", lambda p: "skirt" in p.lower_garment) > 0.9
    assert share(lambda p: p.gender == "female", lambda p: p.hair == "long hair") > 0.85
    assert share(lambda p: p.gender == "male", lambda p: p.hair == "bald head") > 0.85
    assert share(lambda p: p.vehicle, lambda p: p.hat == "helmet") > 0.7
    assert share(lambda p: p.hat == "helmet", lambda p: p.vehicle == "motorcycle") > 0.55
    assert share(lambda p: p.lower_pattern == "pure color") > 0.75


def test_views_are_from_all_sides():
    rng = np.random.default_rng(0)
    views = [synthetic.draw_view(rng) for _ in range(1000)]
    sides = collections.Counter(round(view.yaw / 90) % 4 for view in views)
    assert len(sides) == 4 and min(sides.values()) > 120
    assert all(-180 <= view.yaw < 180 for view in views)


# ------------------------------------------------------------------------------ words and pixels


@pytest.mark.parametrize("part", ["upper", "lower"])
def test_clothes_have_the_colour_of_their_name(part):
    """Under even light; the back of a t-shirt, or a long skirt."""
    rows = slice(75, 105) if part == "upper" else slice(140, 165)
    for name in people.COLORS:
        for identity in range(6):
            person = dataclasses.replace(
                PLAIN, lower_garment="long skirt", identity=identity, **{f"{part}_color": name}
            )
            pixels = paint(person, synthetic.View(yaw=-180.0))[rows, 90:110].reshape(-1, 3)
            distance = {
                other: np.linalg.norm(pixels.mean(axis=0) - color)
                for other, color in REFERENCE.items()
            }
            assert min(distance, key=distance.get) == name, (name, identity, pixels.mean(axis=0))


@pytest.mark.parametrize("yaw", YAWS)
@pytest.mark.parametrize(("name", "word"), OPTIONAL)
def test_what_is_said_to_be_there_is_seen(name, word, yaw):
    view = synthetic.View(yaw=yaw, pitch=10.0)
    person = dataclasses.replace(PLAIN, **{name: word})
    difference = changed(paint(PLAIN, view), paint(person, view))
    hidden = name in ("glasses", "smoke") and abs(yaw) >= 100
    assert getattr(synthetic.visible(person, view), name) == ("" if hidden else word)
    assert difference == 0 if hidden else difference >= 12


def test_only_what_the_face_carries_can_be_hidden():
    person = dataclasses.replace(PLAIN, **dict(OPTIONAL))
    behind = synthetic.visible(person, synthetic.View(yaw=170.0))
    assert behind == dataclasses.replace(person, glasses="", smoke="")
    assert synthetic.visible(person, synthetic.View(yaw=-70.0)) == person


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("age", people.AGES),
        ("gender", people.GENDERS),
        ("hair", people.HAIRS),
        ("action", people.ACTIONS[:4]),
        ("upper_garment", people.UPPER_GARMENTS),
        ("upper_pattern", people.PATTERNS),
        ("lower_garment", people.LOWER_GARMENTS),
        ("lower_pattern", people.PATTERNS),
        ("glasses", people.GLASSES),
        ("hat", people.HATS),
        ("bag", people.BAGS),
        ("vehicle", people.VEHICLES),
    ],
)
def test_any_two_words_look_different(name, words):
    yaws = (0.0, 60.0) if name == "glasses" else (0.0, 90.0, -180.0)
    for yaw in yaws:
        view = synthetic.View(yaw=yaw, phase=1.0)
        images = [paint(dataclasses.replace(PLAIN, **{name: word}), view) for word in words]
        for k, image in enumerate(images):
            assert all(changed(image, other) >= 12 for other in images[:k]), (name, words[k], yaw)


@pytest.mark.parametrize("yaw", [0.0, 90.0, -180.0])
def test_a_change_stays_where_it_belongs(yaw):
    """The head ends at row 53 or above; the hips are about row 118."""
    view = synthetic.View(yaw=yaw)
    plain = paint(PLAIN, view)
    upper = paint(dataclasses.replace(PLAIN, upper_color="yellow"), view)
    assert changed(plain[:40], upper[:40]) == 0 and changed(plain[140:], upper[140:]) == 0
    assert changed(plain[60:110], upper[60:110]) > 300
    lower = paint(dataclasses.replace(PLAIN, lower_color="white"), view)
    assert changed(plain[:105], lower[:105]) == 0 and changed(plain[130:], lower[130:]) > 300
    hair = paint(dataclasses.replace(PLAIN, hair="bald head"), view)
    assert changed(plain[60:], hair[60:]) == 0 and changed(plain[:50], hair[:50]) > 50


def test_details_are_those_of_the_picture():
    """Of shoes, seen from the side, and of hair, seen from behind, most is of a shade told."""
    shoes = {name: [REFERENCE[name]] for name in ("black", "white", "gray", "red", "blue")}
    shoes["brown"] = [(65, 45, 30)]
    hair = {
        "black": [(25, 22, 20)],
        "brown": [(60, 40, 28), (95, 62, 38), (140, 92, 52)],
        "blond": [(205, 170, 110)],
        "red": [(130, 55, 28)],
        "gray": [(150, 150, 150), (190, 190, 190), (220, 220, 220)],
    }
    seen, wrong = collections.Counter(), []
    for identity in range(80):
        age = ("young", "old")[identity % 2]
        person = dataclasses.replace(
            PLAIN, age=age, hair="long hair", lower_garment="shorts", identity=identity
        )
        side = paint(person, synthetic.View(yaw=90.0))[:220]
        back = paint(person, synthetic.View(yaw=-180.0))
        for name, shades, pixels in (("shoes", shoes, side[-5:]), ("hair", hair, back[15:50])):
            pixels = pixels[(pixels != 128).any(axis=-1), None]
            words = list(shades)
            distances = [
                np.abs(pixels - np.array(values)).sum(axis=-1).min(axis=1)
                for values in shades.values()
            ]
            votes = np.bincount(np.argmin(distances, axis=0), minlength=len(words))
            most, told = words[votes.argmax()], synthetic.details(person)[name]
            seen[name, told] += 1
            if most != told:
                wrong.append((name, identity, told, most))
    assert len(seen) == len(shoes) + len(hair)
    assert len(wrong) <= 4, wrong


def test_stripes_have_the_colour_told_or_are_a_tone_of_the_cloth():
    striped = dataclasses.replace(PLAIN, upper_color="white", upper_pattern="stripe")
    told = collections.Counter()
    for identity in range(60):
        person = dataclasses.replace(striped, identity=identity)
        name = synthetic.details(person)["stripes"]
        told[bool(name)] += 1
        pixels = paint(person, synthetic.View(yaw=0.0))[80:110, 90:110].reshape(-1, 3)
        if name:
            distance = np.abs(pixels - np.array(REFERENCE[name])).sum(axis=1)
            assert (distance < 120).mean() > 0.1, (identity, name)
        else:
            gray = np.ptp(pixels, axis=1)
            assert np.percentile(gray, 90) < 40, identity
        for other in ({"lower_pattern": "stripe"}, {"upper_pattern": "pure color"}):
            assert synthetic.details(dataclasses.replace(person, **other))["stripes"] == ""
    # Two in five are a tone.
    assert 15 <= told[False] <= 35


def test_an_identity_keeps_its_colours_from_view_to_view():
    def shades(person):
        views = (synthetic.View(yaw=0.0, light=-0.1), synthetic.View(yaw=-180.0, pitch=15.0))
        pixels = [paint(person, view)[75:105, 90:110].reshape(-1, 3) for view in views]
        return [np.median(colors, axis=0) for colors in pixels]

    front, back = shades(PLAIN)
    assert np.abs(front - back).max() < 30
    others = [shades(dataclasses.replace(PLAIN, identity=k))[1] for k in range(1, 9)]
    assert max(np.abs(back - other).max() for other in others) > 30


# ------------------------------------------------------------------------------ pictures


def test_pictures_differ_in_light_contrast_and_ground():
    images = np.stack([synthetic.example(0, index, 64, 32)[0] for index in range(80)])
    means = images.mean(axis=(1, 2, 3))
    assert 80 < means.mean() < 160 and means.std() > 20
    assert images.std(axis=(1, 2, 3)).min() > 12
    corners = images[:, :4, :4].mean(axis=(1, 2))
    assert corners.std(axis=0).min() > 30
    assert (images == 255).all(axis=-1).mean() < 0.1 and (images == 0).all(axis=-1).mean() < 0.1


def test_two_pictures_of_one_view_differ_and_show_the_same_person():
    view = synthetic.View(yaw=-180.0)
    images = [
        synthetic.draw_image(PLAIN, np.random.default_rng(seed), 128, 64, view)
        for seed in range(20)
    ]
    torsos = np.stack([image[45:60, 26:38].reshape(-1, 3).mean(axis=0) for image in images])
    assert (torsos[:, 0] > 1.7 * torsos[:, 1:].max(axis=1)).all(), "not red under every light"
    assert torsos[:, 0].std() > 10
