"""Captions of the drawn benchmark: true, partial, mistaken as they say, and no templates."""

import dataclasses
import re

import numpy as np
import pytest
from drawn_reid import captions
from drawn_reid.domains import DOMAINS, facts

from unipt_jax.captioning import composer, lexicon
from unipt_jax.data import synthetic

STYLES = {name: domain.style for name, domain in DOMAINS.items()}


def known(seed):
    rng = np.random.default_rng(seed)
    person, view = synthetic.draw_person(rng), synthetic.draw_view(rng)
    return facts(person, view)


def plain(style, tells):
    return dataclasses.replace(
        style, confused=0, typo=0, sloppy=0, tells=dict.fromkeys(style.tells, tells)
    )


@pytest.fixture(params=STYLES)
def style(request):
    return STYLES[request.param]


def says(text, style, label):
    """Tells whether one of a label's wordings stands in the text."""
    return any(words.lower() in text.lower() for words in style.words.get(label, (label,)))


@pytest.mark.parametrize("seed", range(30))
def test_who_tells_all_tells_what_is_there(style, seed):
    told = known(seed)
    text = captions.write(plain(style, 1.0), told, np.random.default_rng(seed))
    names = ["upper_garment", "upper_color", "upper_pattern", "lower_garment", "lower_color", "bag"]
    for name in [*names, "hat", "glasses", "smoke", "umbrella", "cellphone", "gloves", "hair"]:
        if told[name] and told[name] != "pure color":
            assert says(text, style, told[name]), (name, told[name], text)
    assert says(text, style, f"{told['age']} {told['gender']}")


@pytest.mark.parametrize("seed", range(30))
def test_who_tells_little_tells_the_top_alone(style, seed):
    told = known(seed)
    text = captions.write(plain(style, 0.0), told, np.random.default_rng(seed))
    assert says(text, style, told["upper_garment"])
    for name in ("bag", "hat", "smoke", "umbrella", "vehicle"):
        words = style.words.get(told[name], ())
        # "in", "on" and the like stand elsewhere too.
        assert not any(len(each.split()) > 1 and each in text for each in words), (name, text)
    assert len(re.findall(r"\.", text)) == 1


def test_mistakes_are_as_frequent_as_the_style_says():
    style = dataclasses.replace(plain(STYLES["street"], 0.0), confused=0.3)
    told, wrong = known(0), 0
    others = {each for label in captions._SIMILAR[told["upper_color"]]
              for each in style.words.get(label, (label,))}  # fmt: skip
    rng = np.random.default_rng(0)
    for _ in range(600):
        text = captions.write(style, told, rng)
        wrong += not says(text, style, told["upper_color"])
        assert says(text, style, told["upper_color"]) or any(each in text for each in others)
    assert 0.25 < wrong / 600 < 0.35


@pytest.mark.parametrize("seed", range(20))
def test_a_slip_changes_no_more_than_a_letter_or_two(seed):
    text, rng = "the woman wears trousers and an old red coat", np.random.default_rng(seed)
    assert captions.slip(text, 0.0, rng) == text
    before, after = text.split(), captions.slip(text, 1.0, rng).split()
    assert len(before) == len(after)
    for word, written in zip(before, after, strict=True):
        if len(word) < 4:
            assert written == word
            continue
        assert written[0] == word[0]
        lost_or_doubled = {len(word) - 1, len(word) + 1}
        assert len(written) in lost_or_doubled or sorted(written) == sorted(word)
    assert after != before


@pytest.mark.parametrize("seed", range(10))
def test_no_sentence_is_one_of_the_templates(style, seed):
    """What the captioner would write of the same person, by any template, is written otherwise."""

    def sentences(text):
        return {re.sub(r"\W+", " ", each).strip().lower() for each in re.split(r"[.;]", text)} - {
            ""
        }

    words = lexicon.english()
    choices = {name: label or None for name, label in synthetic.labels(person(seed)).items()}
    if choices["action"] not in words.sets["action"].phrases:
        choices["action"] = "standing"  # The lexicon has no riders.
    templates = set()
    for number, template in enumerate(words.templates):
        pick = composer.Picker(seed, str(number))
        templates |= sentences(composer.write(words, template, choices, pick))
    rng = np.random.default_rng(seed)
    for _ in range(5):
        assert not sentences(captions.write(style, known(seed), rng)) & templates


def person(seed):
    return synthetic.draw_person(np.random.default_rng(seed))


def test_the_same_generator_writes_the_same_caption(style):
    def texts(seed):
        return [captions.write(style, known(n), np.random.default_rng(seed + n)) for n in range(9)]

    assert texts(1) == texts(1) != texts(2)
