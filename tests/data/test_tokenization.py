"""Tokenisation: ids by hand, truncation, lengths, and what cannot be loaded."""

import pickle

import numpy as np
import pytest
from tokenizers import Tokenizer as Backend
from tokenizers import models, pre_tokenizers, processors

from unipt_jax.core.errors import DataError
from unipt_jax.data import tokenization

VOCABULARY = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "man", "red", "coat", "##s", "a", "in"]


def write_tokenizer(directory, vocabulary=VOCABULARY):
    ids = {piece: number for number, piece in enumerate(vocabulary)}
    backend = Backend(models.WordPiece(ids, unk_token="[UNK]"))
    backend.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    if "[CLS]" in ids and "[SEP]" in ids:
        backend.post_processor = processors.TemplateProcessing(
            single="[CLS] $A [SEP]",
            special_tokens=[("[CLS]", ids["[CLS]"]), ("[SEP]", ids["[SEP]"])],
        )
    backend.save(str(directory / "tokenizer.json"))


@pytest.fixture
def tokenizer(tmp_path):
    write_tokenizer(tmp_path)
    return tokenization.load(str(tmp_path))


def test_ids_are_those_of_the_vocabulary(tokenizer):
    assert tokenizer.encode("a man in coats", 20).tolist() == [2, 9, 5, 10, 7, 8, 3]
    assert tokenizer.encode("", 20).tolist() == [2, 3]
    assert (tokenizer.start, tokenizer.end, tokenizer.pad, tokenizer.mask) == (2, 3, 0, 4)
    assert tokenizer.vocab_size == 11


@pytest.mark.parametrize("words", [1, 7, 8, 9, 200])
def test_truncation_keeps_the_end_token(tokenizer, words):
    """P12, P104: a caption over the limit still ends with the end token."""
    ids = tokenizer.encode("red " * words, 10)
    assert len(ids) == min(words + 2, 10)
    assert ids[0] == 2 and ids[-1] == 3 and set(ids[1:-1]) == {6}


def test_lengths_are_counted_before_truncation(tokenizer):
    assert tokenizer.lengths(["red " * 200, "", "coats"]).tolist() == [202, 2, 4]


def test_special_and_continuing_pieces_are_marked(tokenizer):
    assert np.flatnonzero(tokenizer.is_special).tolist() == [0, 2, 3, 4]
    assert np.flatnonzero(tokenizer.is_continuation).tolist() == [8]


def test_saving_and_pickling_keep_ids_and_fingerprint(tokenizer, tmp_path):
    tokenizer.save(tmp_path / "copy")
    for twin in (
        tokenization.load(str(tmp_path / "copy")),
        pickle.loads(pickle.dumps(tokenizer)),
    ):
        assert twin.fingerprint == tokenizer.fingerprint
        assert twin.encode("red coats", 9).tolist() == [2, 6, 7, 8, 3]


def test_fingerprint_follows_the_vocabulary(tokenizer, tmp_path):
    (tmp_path / "other").mkdir()
    write_tokenizer(tmp_path / "other", [*VOCABULARY[:-1], "on"])
    assert tokenization.load(str(tmp_path / "other")).fingerprint != tokenizer.fingerprint


@pytest.mark.parametrize("missing", ["[PAD]", "[CLS]", "[SEP]", "[MASK]"])
def test_a_tokenizer_without_a_needed_token_is_refused(tmp_path, missing):
    write_tokenizer(tmp_path, [piece for piece in VOCABULARY if piece != missing])
    with pytest.raises(DataError, match=missing.replace("[", r"\[")):
        tokenization.load(str(tmp_path))


@pytest.mark.parametrize("content", [None, "", "{", "<html>"])
def test_what_is_no_tokenizer_is_named(tmp_path, content):
    if content is not None:
        (tmp_path / "tokenizer.json").write_text(content)
    with pytest.raises(DataError, match=str(tmp_path)):
        tokenization.load(str(tmp_path))


def test_the_sample_tokenizer_spells_every_word_of_its_captions():
    tokenizer = tokenization.load("examples/tokenizer")
    unknown = tokenizer.backend.token_to_id("[UNK]")
    ids = tokenizer.encode("She's 23, wearing an ultramarine anorak & a t-shirt.", 90)
    assert unknown not in ids
    assert tokenizer.backend.decode(ids.tolist()).startswith("she")
