"""The English sets, and how parts make phrases."""

import itertools

import numpy as np
import pytest

from unipt_jax.captioning import lexicon, templates
from unipt_jax.captioning.attributes import AttributeReader, AttributeSet, Phrase
from unipt_jax.data import synthetic

ENGLISH = lexicon.english()

# The phrases the paper shows in its examples, or their like, and what the drawn pedestrians need.
COLORS = [
    "black", "white", "gray", "red", "orange", "yellow", "green", "blue", "purple", "pink",
    "brown", "khaki",
]  # fmt: skip
UPPER = [
    "t-shirt", "shirt", "sweater", "hoodie", "jacket", "suit jacket", "down jacket", "wind coat",
    "sleeveless tank top",
]  # fmt: skip
LOWER = ["long pants", "jeans", "shorts", "short skirt", "long skirt"]
LABELS = {
    "age": ["kid", "young", "middle-aged", "old"],
    "gender": ["male", "female"],
    "action": ["standing", "walking", "running", "squatting"],
    "hair": ["short hair", "long hair", "bald head"],
    "bag": ["backpack", "single-shoulder bag", "handbag"],
    "glasses": ["glasses", "sunglasses"],
    "smoke": ["cigarette"],
    "hat": ["ordinary hat", "helmet"],
    "cellphone": ["cellphone"],
    "umbrella": ["umbrella"],
    "gloves": ["gloves"],
    "vehicle": ["bicycle", "motorcycle"],
}
REQUIRED = {"age", "gender", "upper_clothes", "lower_clothes", "action", "hair"}


def clothes(garments):
    patterns = ["", " stripe", " plaid", " patterned"]
    return [f"{c}{p} {g}" for c, p, g in itertools.product(COLORS, patterns, garments)]


def prompts(name):
    return ENGLISH.sets[name].prompts("{}")


def test_there_are_fourteen_sets_of_which_six_are_required():
    assert set(ENGLISH.sets) == {*LABELS, "upper_clothes", "lower_clothes"}
    assert len(ENGLISH.sets) == 14
    assert {name for name, value in ENGLISH.sets.items() if value.required} == REQUIRED
    assert all(name == value.name for name, value in ENGLISH.sets.items())


@pytest.mark.parametrize("name", LABELS)
def test_labels(name):
    phrases = ENGLISH.sets[name].phrases
    assert list(phrases) == LABELS[name]
    assert all(label == phrase.label and not phrase.parts for label, phrase in phrases.items())


@pytest.mark.parametrize(("name", "garments"), [("upper_clothes", UPPER), ("lower_clothes", LOWER)])
def test_clothes_are_color_by_pattern_by_garment(name, garments):
    phrases = ENGLISH.sets[name].phrases
    assert sorted(phrases) == sorted(clothes(garments))
    assert len(phrases) == 12 * 4 * len(garments) > 200
    assert phrases[f"red stripe {garments[0]}"].parts == {
        "color": "red", "pattern": "stripe", "garment": garments[0],
    }  # fmt: skip
    assert phrases[f"blue {garments[0]}"].parts["pattern"] == "pure color"


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("age", ["a kid", "a young person", "a middle-aged person", "an old person"]),
        ("gender", ["a man", "a woman"]),
        ("action", [f"a person {action}" for action in LABELS["action"]]),
        (
            "hair",
            ["a person with short hair", "a person with long hair", "a person with a bald head"],
        ),
        (
            "bag",
            [
                "a person carrying a backpack",
                "a person carrying a single-shoulder bag",
                "a person carrying a handbag",
                "a person who does not carry a bag",
            ],
        ),
        (
            "hat",
            [
                "a person wearing an ordinary hat",
                "a person wearing a helmet",
                "a person who does not wear a hat",
            ],
        ),
        ("umbrella", ["a person holding an umbrella", "a person who does not hold an umbrella"]),
        (
            "vehicle",
            [
                "a person riding a bicycle",
                "a person riding a motorcycle",
                "a person who does not ride a bicycle or a motorcycle",
            ],
        ),
    ],
)
def test_prompts_by_hand(name, expected):
    assert list(prompts(name)) == expected


def test_prompts_of_clothes_have_the_article_that_the_garment_asks_for():
    upper = {
        phrase.label: phrase.prompt for phrase in ENGLISH.sets["upper_clothes"].phrases.values()
    }
    assert upper["orange t-shirt"] == "a person wearing an orange t-shirt"
    assert upper["black stripe suit jacket"] == "a person wearing a black striped suit jacket"
    lower = {
        phrase.label: phrase.prompt for phrase in ENGLISH.sets["lower_clothes"].phrases.values()
    }
    assert lower["blue jeans"] == "a person wearing blue jeans"
    assert lower["gray plaid long skirt"] == "a person wearing a gray plaid long skirt"


def test_prompts_differ_within_a_set_and_hold_no_blanks():
    for name, value in ENGLISH.sets.items():
        found = value.prompts("A photo of {}.")
        assert len(set(found)) == len(found) == len(value.phrases) + len(value.negatives), name
        assert all(not set("{}[]<>|") & set(prompt) and "  " not in prompt for prompt in found)


def test_wrappers_make_an_ensemble_that_begins_with_the_papers_prompt():
    first, *others = ENGLISH.wrappers
    assert ENGLISH.sets["gender"].prompts(first) == ("A photo of a man.", "A photo of a woman.")
    assert len({first, *others}) >= 3


def test_positives_come_before_negatives():
    phrase = Phrase("hat", "a hat", {}, {})
    assert AttributeSet("x", False, {"hat": phrase}, ("no hat", "bare")).prompts("See {}!") == (
        "See a hat!", "See no hat!", "See bare!",
    )  # fmt: skip


# ------------------------------------------------------------------ parts


def read(value, parts, synonyms=None):
    """The set that the reader makes, and the faults it notes."""
    faults = []
    reader = AttributeReader(
        parts,
        synonyms or {},
        lambda node: templates.render(node, {}, lambda o: o[0], templates.Joints(*", &")),
        lambda where, what: faults.append(f"{where}: {what}"),
    )
    return reader.read_set("top", value), faults


def test_parts_multiply_and_an_empty_field_leaves_no_space():
    value = {
        "required": True,
        "parts": {"color": "colors", "garment": "garments"},
        "label": "{color} {garment}",
        "prompt": "wears {a}",
        "forms": {"a": "{garment.article} {color.word} {garment}", "be": "{garment.be}"},
    }
    parts = {
        "colors": ["red", {"label": "plain", "word": ["", "{grey}"]}],
        "garments": [
            {"label": "coat", "article": "a", "be": "is"},
            {"label": "jeans", "article": "", "be": "are"},
        ],
    }
    grey = templates.Choice(("grey", "gray"))
    found, faults = read(value, parts, {"grey": grey})
    assert faults == []
    assert {p.label: p.prompt for p in found.phrases.values()} == {
        "red coat": "wears a red coat",
        "red jeans": "wears red jeans",
        "plain coat": "wears a coat",
        "plain jeans": "wears jeans",
    }
    assert found.phrases["plain jeans"].forms["be"] == "are"
    assert found.phrases["plain jeans"].forms["a"] == templates.Choice(("jeans", (grey, " jeans")))
    assert found.phrases["red coat"].parts == {"color": "red", "garment": "coat"}


def test_a_phrases_own_form_wins_over_the_sets_which_may_be_made_of_it():
    value = {
        "required": True,
        "prompt": "{ing}",
        "forms": {"ing": "riding {a}", "a": "one"},
        "phrases": [
            {"label": "bike", "forms": {"a": "a bike"}},
            {"label": "bus", "forms": {"a": "a bus", "ing": "driving"}, "prompt": "on {a}"},
        ],
    }
    found, faults = read(value, {})
    assert faults == []
    assert {p.label: p.prompt for p in found.phrases.values()} == {
        "bike": "riding a bike",
        "bus": "on a bus",
    }
    assert found.phrases["bus"].forms == {"a": "a bus", "ing": "driving"}


def test_english_has_a_phrase_for_whatever_is_drawn():
    """All but who rides, of whom a vehicle says so: what is drawn is the captioner's truth."""
    sets, rng = lexicon.english().sets, np.random.default_rng(0)
    for _ in range(3000):
        for name, label in synthetic.labels(synthetic.draw_person(rng)).items():
            known = {*sets[name].phrases, *([] if sets[name].required else [""])}
            assert label in known or label == "riding"
