"""Masking for the language model: which tokens, how many, and what becomes of them."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from unipt_jax.data import masking

VOCAB, MASK = 50, 4
SPECIAL = np.isin(np.arange(VOCAB), [0, 2, 3, 4])
CONTINUES = np.arange(VOCAB) >= 40


def mask_tokens(tokens, seed=0, probability=0.15, whole_word=False):
    return masking.mask_tokens(
        np.asarray(tokens, np.int32),
        is_special=SPECIAL,
        is_continuation=CONTINUES,
        mask=MASK,
        probability=probability,
        whole_word=whole_word,
        rng=np.random.default_rng(seed),
    )


def reference(tokens, seed, probability, whole_word):
    """The rule, token by token, with the same draws."""
    rng = np.random.default_rng(seed)
    candidates = [place for place, token in enumerate(tokens) if not SPECIAL[token]]
    wanted = min(len(candidates), max(1, int(probability * len(candidates) + 0.5)))
    if not probability or not candidates:
        return list(tokens), []
    words = [[candidates[0]]]
    # A caption's first word begins with the first piece that begins one.
    begun = not CONTINUES[tokens[candidates[0]]]
    for place in candidates[1:]:
        begins = not (whole_word and CONTINUES[tokens[place]])
        if begins and (begun or not whole_word):
            words.append([place])
        else:
            words[-1].append(place)
        begun |= begins
    chosen = []
    for index in rng.permutation(len(words)):
        if len(chosen) + len(words[index]) <= wanted:
            chosen += words[index]
    chosen, masked = sorted(chosen), list(tokens)
    fates = rng.random(len(chosen))
    ordinary = [token for token in range(VOCAB) if not SPECIAL[token]]
    others = rng.integers(len(ordinary), size=len(chosen))
    for place, fate, other in zip(chosen, fates, others, strict=True):
        if fate < 0.8:
            masked[place] = MASK
        elif fate < 0.9:
            masked[place] = ordinary[other]
    return masked, chosen


captions = st.lists(st.integers(5, VOCAB - 1), max_size=98).map(lambda body: [2, *body, 3])


@given(captions, st.integers(0, 1000), st.floats(0, 1), st.booleans())
def test_special_tokens_are_never_chosen_and_the_input_is_untouched(
    tokens, seed, probability, whole_word
):
    """P76, P97: special tokens survive, and the contrastive branch's tokens are not written to."""
    before = np.asarray(tokens, np.int32)
    given_tokens = before.copy()
    # The helper hands an int32 array on as it is, so sharing would show.
    masked, positions = mask_tokens(given_tokens, seed, probability, whole_word)
    assert (given_tokens == before).all() and not np.shares_memory(masked, given_tokens)
    assert not SPECIAL[before[positions]].any()
    untouched = np.setdiff1d(np.arange(len(tokens)), positions)
    assert (masked[untouched] == before[untouched]).all()
    assert (np.diff(positions) > 0).all()
    assert len(positions) <= masking.maximum_predictions(len(tokens), probability)


@given(captions, st.integers(0, 1000), st.sampled_from([0.0, 0.15, 0.4, 1.0]), st.booleans())
def test_masks_are_those_of_the_rule(tokens, seed, probability, whole_word):
    masked, positions = mask_tokens(tokens, seed, probability, whole_word)
    wanted, chosen = reference(tokens, seed, probability, whole_word)
    assert (masked.tolist(), positions.tolist()) == (wanted, chosen)
    assert positions.dtype == np.int32


@pytest.mark.parametrize(
    ("ordinary", "probability", "expected"),
    [(98, 0.15, 15), (20, 0.15, 3), (10, 0.15, 2), (1, 0.15, 1), (3, 0.15, 1), (0, 0.15, 0),
     (10, 0.0, 0), (10, 1.0, 10)],
)  # fmt: skip
def test_number_of_chosen_tokens(ordinary, probability, expected):
    """P75: one token at least is predicted, however short the caption."""
    _, positions = mask_tokens([2, *[7] * ordinary, 3], probability=probability)
    assert len(positions) == expected


def test_maximum_predictions_by_hand():
    assert masking.maximum_predictions(100, 0.15) == 15
    assert masking.maximum_predictions(77, 0.15) == 11
    assert masking.maximum_predictions(3, 0.15) == 1
    assert masking.maximum_predictions(100, 0.0) == 1  # arrays never have an empty dimension


def test_eighty_ten_ten():
    tokens = [2, *range(5, 40), 3]
    fates = np.zeros(3)
    for seed in range(2000):
        masked, positions = mask_tokens(tokens, seed)
        original = np.asarray(tokens)[positions]
        became_mask = masked[positions] == MASK
        stayed = masked[positions] == original
        fates += [became_mask.sum(), stayed.sum(), (~became_mask & ~stayed).sum()]
        assert not SPECIAL[masked[positions][~became_mask]].any()
    # A random token equals the original in 1 of 46 cases, which moves 0.2 points to "stayed".
    np.testing.assert_allclose(fates / fates.sum(), [0.8, 0.102, 0.098], atol=0.012)


def test_every_position_is_equally_likely():
    counts = np.zeros(22)
    for seed in range(3000):
        counts[mask_tokens([2, *[9] * 20, 3], seed)[1]] += 1
    assert counts[0] == counts[-1] == 0
    np.testing.assert_allclose(counts[1:-1] / 3000, 0.15, atol=0.03)


def test_whole_words_are_chosen_together():
    tokens = [2, 10, 41, 42, 11, 12, 43, 13, 14, 15, 16, 17, 3]  # words of 3, 1, 2, 1, 1, 1, 1, 1
    seen = set()
    for seed in range(200):
        _, positions = mask_tokens(tokens, seed, probability=0.3, whole_word=True)
        chosen = set(positions.tolist())
        for word in ({1, 2, 3}, {5, 6}):
            assert not word & chosen or word <= chosen
            seen |= {frozenset(word)} if word <= chosen else set()
    assert len(seen) == 2


def test_the_same_generator_gives_the_same_masks():
    tokens = [2, *range(5, 40), 3]
    first, second, other = mask_tokens(tokens, 1), mask_tokens(tokens, 1), mask_tokens(tokens, 2)
    assert all((a == b).all() for a, b in zip(first, second, strict=True))
    assert first[1].tolist() != other[1].tolist()
