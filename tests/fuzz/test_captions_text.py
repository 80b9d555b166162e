"""Captions of any characters, through each tokenizer, the masking and the buckets."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.fuzz.outcomes import clear
from unipt_jax.data import masking, text_noise, tokenization
from unipt_jax.data.buckets import BUCKETS, bucket

# Word pieces as BERT's, and byte pairs as CLIP's.
TOKENIZERS = {name: tokenization.load(f"examples/{name}") for name in ("tokenizer", "small_clip")}
each_tokenizer = pytest.mark.parametrize("tokenizer", TOKENIZERS.values(), ids=TOKENIZERS)

SPELT = [token for spellings in tokenization.ROLES.values() for token in spellings]
PARTS = st.one_of(
    st.sampled_from([*SPELT, "[UNK]", "</w>", "##ed", "a man", "red", "coat,", "&amp;"]),
    # Halves of surrogate pairs, NUL and other controls among them; right-to-left; emoji.
    st.text(st.characters(codec=None), max_size=12),
    st.text("\0\x1c\x85\u200b\u200d\u202e\u0301\ufeff\ud83d\udc68אبة👩🏽‍🦰\t\n\r ", max_size=12),
    st.integers(1, 400).map("x".__mul__),
)
CAPTIONS = st.lists(PARTS, max_size=12).flatmap(
    lambda parts: st.sampled_from(["", " "]).map(lambda between: between.join(parts))
)


@each_tokenizer
@given(CAPTIONS, st.integers(2, 128))
def test_any_caption_becomes_tokens(tokenizer, caption, length):
    """P12, P104: within the vocabulary, between the two ends, cut before the last of them."""
    (whole,) = clear(lambda: tokenizer.encode_whole([caption])).value
    cut = tokenizer.encode(caption, length)
    for ids in (whole, cut):
        assert ids.dtype == np.int32 and (ids >= 0).all() and (ids < tokenizer.vocab_size).all()
        assert (ids[0], ids[-1]) == (tokenizer.start, tokenizer.end)
    assert len(cut) == min(len(whole), length)
    assert cut[:-1].tolist() == whole[: len(cut) - 1].tolist()
    assert tokenizer.cut(whole, length).tolist() == cut.tolist()


@each_tokenizer
@given(CAPTIONS)
def test_what_a_caption_spells_is_no_control_token(tokenizer, caption):
    """P11: ends and padding are at a text's ends alone, so that it is pooled where it ends."""
    (ids,) = tokenizer.encode_whole([caption])
    assert not np.isin(ids[1:-1], [tokenizer.start, tokenizer.end, tokenizer.pad]).any()


@each_tokenizer
@given(st.lists(CAPTIONS, max_size=5))
def test_a_caption_has_the_same_tokens_in_any_company(tokenizer, captions):
    """Tokens are stored with a data set when it is prepared, and made one by one elsewhere."""
    together = tokenizer.encode_whole(captions)
    alone = [tokenizer.encode(caption, 10_000) for caption in captions]
    assert [ids.tolist() for ids in together] == [ids.tolist() for ids in alone]


@each_tokenizer
@given(CAPTIONS, st.integers(2, 77), st.floats(0, 1), st.booleans(), st.integers(0, 2**32 - 1))
def test_any_caption_is_masked(tokenizer, caption, length, probability, whole_word, seed):
    """P75, P76, P97: its ends stay, its tokens are left as they are, and the arrays have room."""
    tokens = tokenizer.encode(caption, length)
    before = tokens.copy()
    masked, positions = masking.mask_tokens(
        tokens,
        is_special=tokenizer.is_special,
        is_continuation=tokenizer.is_continuation,
        mask=tokenizer.mask,
        probability=probability,
        whole_word=whole_word and tokenizer.is_continuation is not None,
        rng=np.random.default_rng(seed),
    )
    assert (tokens == before).all() and not np.shares_memory(masked, tokens)
    assert not tokenizer.is_special[tokens[positions]].any()
    assert np.isin(np.flatnonzero(masked != tokens), positions).all()
    others = masked[masked != tokenizer.mask]
    ends = [tokenizer.start, tokenizer.end, tokenizer.pad]
    assert (masked < tokenizer.vocab_size).all() and not np.isin(others[1:-1], ends).any()
    assert len(positions) <= masking.maximum_predictions(length, probability)


@each_tokenizer
@given(CAPTIONS, st.integers(2, 100))
def test_a_bucket_holds_the_caption(tokenizer, caption, full):
    """The length counted before the text is cut chooses a bucket in which nothing more is lost."""
    (whole,) = tokenizer.encode_whole([caption])
    padded = bucket(len(whole), BUCKETS, full)
    assert padded <= full
    assert tokenizer.encode(caption, padded).tolist() == tokenizer.encode(caption, full).tolist()


@each_tokenizer
@given(CAPTIONS, st.floats(0, 1), st.integers(0, 2**32 - 1))
def test_noise_leaves_a_text(tokenizer, caption, probability, seed):
    """Words that stay are the caption's, in its order; tokens keep their ends."""
    words = caption.split()
    left = text_noise.delete_words(caption, probability, np.random.default_rng(seed)).split()
    rest = iter(words)
    assert all(word in rest for word in left) and bool(left) == bool(words)
    tokens = tokenizer.encode(caption, 64)
    noisy = text_noise.corrupt_tokens(
        tokens,
        is_special=tokenizer.is_special,
        mask=tokenizer.mask,
        probability=probability,
        rng=np.random.default_rng(seed),
    )
    assert (noisy[0], noisy[-1]) == (tokenizer.start, tokenizer.end)
    assert len(noisy) <= len(tokens) and min(len(tokens), 3) <= len(noisy)
    assert (noisy < tokenizer.vocab_size).all()
