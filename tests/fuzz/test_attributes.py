"""Lexicons with faults of any kind: what is taken writes clean captions, and the rest is named."""

import copy
import json
import re
import unicodedata

import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.captioning.test_lexicon import EXAMPLE
from tests.fuzz.outcomes import clear
from unipt_jax.captioning import composer, frequencies, lexicon, scorer

SMALL = json.loads(EXAMPLE)  # The documentation's, which uses every part of the format.
WORDS = lexicon.parse(SMALL, "own.json")

ODD = [
    *(
        "",
        " ",
        "  ",
        "a  b",
        " a",
        "a ",
        "{}",
        "{{}}",
        "{0}",
        "{0.__class__}",
        "{a.b.c}",
        "%s",
        "%(a)s",
    ),
    *(
        "{alter}",
        "{alter.akk}",
        "{kleidung.akk}",
        "{tasche.akk}",
        "{mensch.ein}",
        "{Bild}",
        "{nichts}",
    ),
    *(
        "{tasche.akk or hut.akk}",
        "{ or }",
        "{tasche.}",
        "{.akk}",
        "{farbe}",
        "{farbe.x}",
        "{stück.ein}",
    ),
    *(
        "[",
        "]",
        "<",
        ">",
        "|",
        "[]",
        "<>",
        "<|>",
        "<a|>",
        "[a",
        "a]",
        "{",
        "}",
        "[[a]]",
        "<a | <b | c>>",
    ),
    *(
        "a\nb",
        "a\0b",
        "\x1b[31m",
        "\ud800",
        "\u2028",
        "\u200d",
        "\u00a0",
        "日本",
        "\0alter\0",
        "(",
        "\\1",
    ),
    *(
        "[" * 2000 + "a" + "]" * 2000,
        "a{99999999999999999999}",
        "(?P<a>x)",
        "\\g<a>",
        "(" * 500,
        "x" * 999,
    ),
]
texts = st.sampled_from(ODD) | st.text(max_size=8)
values = st.recursive(
    st.none() | st.booleans() | st.integers(-2, 2) | st.floats() | texts,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(texts, inner, max_size=3),
    max_leaves=4,
)


def places(value, path=()):
    """Lists the path of everything in a JSON value."""
    items = value.items() if isinstance(value, dict) else enumerate(value)
    found = []
    for key, item in items:
        found.append((*path, key))
        if isinstance(item, dict | list):
            found += places(item, (*path, key))
    return found


PLACES = places(SMALL)


@st.composite
def lexicons(draw):
    """The documentation's lexicon, with one to three things in it otherwise."""
    content = copy.deepcopy(SMALL)
    for _ in range(draw(st.integers(1, 3))):
        *path, last = draw(st.sampled_from(PLACES))
        node = content
        try:
            for key in path:
                node = node[key]
            old = node[last]
        except (KeyError, IndexError, TypeError):
            continue  # An earlier change took it away.
        if isinstance(node, str):
            continue
        how = draw(st.sampled_from(["text", "text", "any", "gone", "twice", "key", "around"]))
        if how == "gone":
            del node[last]
        elif how == "twice" and isinstance(node, list):
            node.append(copy.deepcopy(old))
        elif how == "key" and isinstance(node, dict):
            node[draw(texts)] = node.pop(last)
        elif how == "around" and isinstance(old, str):
            node[last] = draw(texts) + old + draw(texts)
        elif how == "any":
            node[last] = draw(values)
        else:
            node[last] = draw(texts)
    return content


def is_plain(text):
    """Whether a text is one line without anything of the templates' language left in it."""
    odd = {unicodedata.category(letter) for letter in text} & {"Cc", "Cs", "Zl", "Zp"}
    return not odd and not re.search(r"  |^ | $|[{}\[\]<>|]", text)


@given(lexicons(), st.integers(0, 99), st.data())
def test_a_lexicon_writes_clean_captions_or_is_refused(content, seed, data):
    found = clear(lambda: lexicon.parse(content, "own.json"), names="own.json: ")
    if found.refusal:
        return
    words = found.value
    for each in words.sets.values():
        for wrapper in words.wrappers:
            for prompt in each.prompts(wrapper):
                assert prompt.strip() and not re.search(r"[{}\[\]<>|]", prompt)
    choices = {
        name: data.draw(st.sampled_from([*each.phrases, *([] if each.required else [None])]))
        for name, each in words.sets.items()
    }
    caption = composer.compose(words, choices, seed=seed, path="a.jpg")
    # What rewrites put in is the user's own; all else is kept clean.
    assert caption and (is_plain(caption) or content.get("rewrites") != SMALL["rewrites"])
    assert caption == composer.compose(words, choices, seed=seed, path="a.jpg")


@given(values)
def test_what_is_no_lexicon_is_refused(content):
    assert clear(lambda: lexicon.parse(content, "own.json"), names="own.json: ").refusal


@given(st.dictionaries(st.sampled_from(sorted(SMALL["sets"])) | texts, texts | st.none()))
def test_choices_that_a_lexicon_does_not_have_are_named(more):
    choices = {"alter": "jung", "geschlecht": "weiblich", "kleidung": "rot Jacke"} | more
    known = all(
        label in WORDS.sets[name].phrases or (label is None and not WORDS.sets[name].required)
        if name in WORDS.sets
        else False
        for name, label in choices.items()
    )
    found = clear(lambda: composer.compose(WORDS, choices, seed=0, path="a.jpg"))
    assert bool(found.refusal) == (not known)


@given(st.lists(st.tuples(st.sampled_from(["", "Rucksack", "Hut"]), st.integers(0, 9)), min_size=1))
def test_counts_are_those_of_the_rows(drawn):
    rows = [
        {"caption": "word " * words, "attributes": {"tasche": {"phrase": phrase or None}}}
        for phrase, words in drawn
    ]
    counts = frequencies.count(WORDS.sets, rows)
    phrases = [phrase for phrase, _ in drawn]
    assert counts["attributes"]["tasche"] == {each: phrases.count(each) for each in set(phrases)}
    assert counts["images"] == len(drawn)
    assert counts["mean_words"] == pytest.approx(np.mean([words for _, words in drawn]))


similarities = st.sampled_from([0.0, 1.0, -1.0, 0.5]) | st.floats(-1, 1, width=32)


@given(st.lists(similarities, min_size=6, max_size=6), st.floats(0, 1), st.floats(0, 100))
def test_decisions_are_probabilities_of_a_phrase_that_is_there(row, threshold, scale):
    """One required set of three phrases, and an optional one of two and a negative."""
    where = scorer.Layout(("a", "b"), (True, False), (3, 2), (3, 3))
    logits = np.float32(scale) * np.array([row], np.float32)
    (chosen,), (surety,) = map(np.asarray, scorer.decide(jnp.asarray(logits), where, threshold))
    assert 0 <= chosen[0] < 3 and -1 <= chosen[1] < 2
    for part, sure in ((logits[0, :3], surety[0]), (logits[0, 3:], surety[1])):
        odds = np.exp(part.astype(float) - part.max())
        np.testing.assert_allclose(sure, odds.max() / odds.sum(), rtol=1e-4)
    assert chosen[1] == -1 or surety[1] > np.float32(threshold)
