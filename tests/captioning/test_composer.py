"""Captions are a pure function of lexicon, choices, seed and path."""

import json
import re
import subprocess
import sys
from collections import Counter

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.captioning import english
from unipt_jax.captioning import composer, lexicon
from unipt_jax.core.errors import DataError

ENGLISH = lexicon.english()
LABELS = {name: tuple(value.phrases) for name, value in ENGLISH.sets.items()}
WOMAN = {
    "age": "young", "gender": "female", "upper_clothes": "orange shirt",
    "lower_clothes": "blue jeans", "action": "standing", "hair": "long hair", "bag": "handbag",
}  # fmt: skip
# The outside check of captions, word for word.
OUTSIDE = re.compile(r"  | ,| \.|\b[Aa] [aeioAEIO]|\b[Aa]n [^aeiouhAEIOUH]|<|>|\{|\}|\b(\w+) \1\b")


def compose(choices=WOMAN, seed=0, path="cam1/0001.jpg"):
    return composer.compose(ENGLISH, choices, seed=seed, path=path)


def choices():
    """Any label for each required set; any or none for each optional one."""
    return st.fixed_dictionaries(
        {
            name: st.sampled_from(labels)
            if ENGLISH.sets[name].required
            else st.sampled_from([None, *labels])
            for name, labels in LABELS.items()
        }
    )


@given(choices(), st.integers(0, 2**31), st.text())
def test_any_choices_give_a_clean_caption_and_the_same_one_again(chosen, seed, path):
    caption = compose(chosen, seed, path)
    assert caption == compose(dict(reversed(chosen.items())), seed, path)
    template = composer.Picker(seed, path)(ENGLISH.templates)
    assert not english.faults(caption, chosen, template.leaves_out)


def test_what_says_nothing_leaves_no_blank():
    """An empty form in the middle and at the end of a caption."""
    content = {
        "wrappers": ["{}"],
        "joints": [", ", " and "],
        "sets": {
            "who": {
                "required": True,
                "prompt": "who",
                "phrases": [{"label": "x", "forms": {"a": " ", "b": "", "c": "one "}}],
            }
        },
        "templates": ["this {who.a} is {who.c} person {who.b}"],
    }
    words = lexicon.parse(content, "own.json")
    assert composer.compose(words, {"who": "x"}, seed=0, path="a") == "This is one person"


def test_captions_vary_with_seed_path_and_choices_alone():
    assert compose() == compose()
    assert len({compose(path=str(path)) for path in range(100)}) > 90
    assert len({compose(seed=seed) for seed in range(100)}) > 90
    absent = WOMAN | {"hat": None, "umbrella": None}
    assert compose(absent) == compose()
    assert compose(WOMAN | {"upper_clothes": "red shirt"}) != compose()


def test_another_process_with_another_hash_seed_writes_the_same():
    program = (
        "import json; from unipt_jax.captioning import composer, lexicon; "
        f"choices = {WOMAN!r}; english = lexicon.english(); "
        "print(json.dumps([composer.compose(english, choices, seed=3, path=f'{i}.jpg') "
        "for i in range(50)]))"
    )
    written = [
        json.loads(
            subprocess.run(
                [sys.executable, "-c", program],
                env={"PYTHONHASHSEED": hash_seed},
                capture_output=True,
                text=True,
                check=True,
            ).stdout
        )
        for hash_seed in ("1", "2")
    ]
    assert written[0] == written[1] == [compose(seed=3, path=f"{i}.jpg") for i in range(50)]


def test_picks_are_these_on_every_machine():
    """Another number here would change the captions of every data set made so far."""
    pick = composer.Picker(0, "cam1/0001.jpg")
    assert [pick(range(1000)) for _ in range(4)] == [21, 462, 553, 497]


def test_picks_are_even_and_never_run_out():
    pick = composer.Picker(0, "a")
    counts = np.bincount([pick(range(7)) for _ in range(70_000)])
    assert abs(counts - 10_000).max() < 470  # five standard deviations
    first = np.bincount([composer.Picker(0, str(i))(range(7)) for i in range(70_000)])
    assert abs(first - 10_000).max() < 470


def test_names_that_are_not_utf8_have_captions():
    assert compose(path="caf\udce9.jpg") != compose(path="caf\udcea.jpg")


def test_every_template_and_synonym_comes_up():
    n = 20 * len(ENGLISH.templates)
    drawn = Counter(composer.Picker(0, f"{i}.jpg")(ENGLISH.templates).skeleton for i in range(n))
    assert len(drawn) == len(ENGLISH.templates)
    assert max(drawn.values()) < 50 and min(drawn.values()) > 2  # 20 expected of each
    text = " ".join(compose(path=str(i)) for i in range(400))
    for word in ("handbag", "purse", "jeans", "denim jeans", "pair of", "lady", "female", "wears",
                 "is wearing", "has on", "picture", "photo", "image"):  # fmt: skip
        assert f" {word}" in text, word


def test_the_outside_check():
    """396 images: over 300 distinct captions, and none with a fault."""
    pick = composer.Picker(0, "outside")
    captions = []
    for i in range(396):
        present = {name for name in english.OPTIONAL if pick(range(5)) == 0}
        captions.append(compose(english.draw_choices(LABELS, pick, present), path=f"{i}.jpg"))
    bad = [c for c in captions if OUTSIDE.search(c) or c[0].islower() or c[-1] != "."]
    assert bad == []
    assert len(set(captions)) > 300
    assert len({compose(path=f"{i}.jpg") for i in range(396)}) > 300  # of one and the same person


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"hats": "helmet"}, "no set is called 'hats'; did you mean 'hat'?"),
        ({"hat": "helm"}, "set 'hat' has no phrase 'helm'; did you mean 'helmet'?"),
        ({"hair": None}, "set 'hair' is required and nothing is chosen for it"),
    ],
)
def test_wrong_choices_are_named(change, message):
    with pytest.raises(DataError, match=re.escape(message)):
        compose(WOMAN | change)


def test_a_required_set_that_is_missing_is_named():
    with pytest.raises(DataError, match="set 'age' is required"):
        compose({"gender": "male"})
