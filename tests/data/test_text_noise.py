"""Noise on captions: how often, of which kinds, and what it never does."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from unipt_jax.data import text_noise

VOCAB, MASK = 50, 4
SPECIAL = np.isin(np.arange(VOCAB), [0, 2, 3, 4])


def corrupt(tokens, seed=0, probability=0.2):
    return text_noise.corrupt_tokens(
        np.asarray(tokens, np.int32),
        is_special=SPECIAL,
        mask=MASK,
        probability=probability,
        rng=np.random.default_rng(seed),
    )


captions = st.lists(st.integers(5, VOCAB - 1), max_size=98).map(lambda body: [2, *body, 3])


@given(captions, st.integers(0, 1000), st.floats(0, 1))
def test_corrupted_text_keeps_its_ends_and_something_between(tokens, seed, probability):
    before = np.asarray(tokens, np.int32)
    handed = before.copy()
    noisy = corrupt(handed, seed, probability)
    np.testing.assert_array_equal(handed, before)
    assert noisy.dtype == np.int32 and len(noisy) <= len(tokens)
    assert (noisy[0], noisy[-1]) == (2, 3)
    assert min(len(tokens), 3) <= len(noisy)
    assert not np.isin(noisy[1:-1], [0, 2, 3]).any()
    np.testing.assert_array_equal(corrupt(handed, seed, probability), noisy)


def test_special_tokens_within_a_text_stay_where_they_are_in_order():
    tokens = [2, *[7, 3] * 30, 3]
    for seed in range(50):
        noisy = corrupt(tokens, seed, 0.9)
        assert (noisy == 3).sum() == 31


def test_nothing_happens_at_probability_0():
    tokens = [2, *range(5, 50), 3]
    for seed in range(20):
        assert corrupt(tokens, seed, 0.0).tolist() == tokens


def test_a_fifth_of_the_tokens_sixty_twenty_twenty():
    """Tokens are numbered, so that what is missing and what is wrong can be told apart."""
    tokens = [2, *range(5, 50), 3]
    texts = 400
    masked = wrong = length = 0
    for seed in range(texts):
        noisy = corrupt(tokens, seed)
        masked += (noisy == MASK).sum()
        length += len(noisy) - 2
        # A random token fits in between its neighbours' numbers where it happens to be the same.
        kept = [token for token in noisy[1:-1] if token != MASK]
        wrong += len(kept) - _longest_ascending(kept)
    ordinary = 45 * texts
    assert abs(masked / ordinary - 0.12) < 0.01
    assert abs((ordinary - length) / ordinary - 0.04) < 0.006
    # About one replacement in nine stands in ascending order by chance, and is not counted.
    assert 0.026 < wrong / ordinary < 0.044


def _longest_ascending(values):
    best = []
    for index, value in enumerate(values):
        best.append(1 + max((best[at] for at in range(index) if values[at] < value), default=0))
    return max(best, default=0)


def test_a_text_of_which_all_would_go_keeps_one_token():
    """At probability 1, one token in five is deleted: of one-word texts, none."""
    found = {tuple(corrupt([2, 9, 3], seed, 1.0)) for seed in range(200)}
    assert all(len(noisy) == 3 for noisy in found)
    assert (2, 9, 3) in found and (2, MASK, 3) in found and len(found) > 10


# ---------------------------------------------------------------------------- words

WORDS = st.lists(st.sampled_from(["a", "man", "in", "red", "caf\u00e9.", "t-shirt"]), max_size=40)


@given(WORDS, st.integers(0, 1000), st.floats(0, 1))
def test_words_that_stay_stay_in_order(words, seed, probability):
    numbered = [f"{word}{number}" for number, word in enumerate(words)]
    left = text_noise.delete_words(
        "  ".join(numbered), probability, np.random.default_rng(seed)
    ).split()
    rest = iter(numbered)
    assert all(word in rest for word in left)
    assert bool(left) == bool(words)


@pytest.mark.parametrize(("probability", "expected"), [(0.0, 40), (1.0, 1)])
def test_no_word_and_every_word_deleted(probability, expected):
    caption = " ".join(f"word{number}" for number in range(40))
    left = {
        text_noise.delete_words(caption, probability, np.random.default_rng(seed))
        for seed in range(30)
    }
    assert {len(text.split()) for text in left} == {expected}
    assert (len(left) > 10) == (expected == 1)  # Which word stays is random.


def test_words_are_deleted_as_often_as_asked():
    caption = " ".join(["word"] * 50)
    rng = np.random.default_rng(0)
    left = sum(len(text_noise.delete_words(caption, 0.05, rng).split()) for _ in range(1000))
    assert abs(left / 50_000 - 0.95) < 4 * (0.95 * 0.05 / 50_000) ** 0.5
