"""Tokenisation: ids by hand, truncation, lengths, and what cannot be loaded."""

import hashlib
import json
import os
import pickle
import re
import sys
import types
import unicodedata

import numpy as np
import pytest
from tokenizers import Tokenizer as Backend
from tokenizers import decoders, models, normalizers, pre_tokenizers, processors

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


# CLIP's kind of vocabulary, small enough to apply its merges by hand.
PIECES = ["a", "b", "c", "a</w>", "b</w>", "c</w>", "ab", "ab</w>", "abc</w>"]
MERGES = [("a", "b"), ("a", "b</w>"), ("ab", "c</w>")]
HUGGING_FACE = ("<|startoftext|>", "<|endoftext|>")
OPEN_CLIP = ("<start_of_text>", "<end_of_text>")


def write_byte_pairs(directory, around=HUGGING_FACE, more=()):
    ids = {piece: number for number, piece in enumerate([*PIECES, *around, *more])}
    backend = Backend(models.BPE(ids, MERGES, unk_token=around[1], end_of_word_suffix="</w>"))
    backend.normalizer = normalizers.Lowercase()
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    backend.add_special_tokens([*around, *more])
    backend.post_processor = processors.TemplateProcessing(
        single=f"{around[0]} $A {around[1]}", special_tokens=[(name, ids[name]) for name in around]
    )
    backend.enable_truncation(6)  # A file may carry both, which are not wanted.
    backend.enable_padding(length=6, pad_id=ids[around[1]], pad_token=around[1])
    backend.save(str(directory / "tokenizer.json"))


def write_hugging_face_files(directory, files=("vocab.json", "merges.txt")):
    contents = {
        "vocab.json": json.dumps({piece: n for n, piece in enumerate([*PIECES, *HUGGING_FACE])}),
        "merges.txt": "#version: 0.2\n" + "".join(f"{a} {b}\n" for a, b in MERGES),
    }
    (directory / "config.json").write_text('{"model_type": "clip"}')
    for file in files:
        (directory / file).write_text(contents[file])


@pytest.fixture
def tokenizer(tmp_path):
    write_tokenizer(tmp_path)
    return tokenization.load(str(tmp_path))


@pytest.fixture(params=[write_byte_pairs, write_hugging_face_files])
def clip_tokenizer(request, tmp_path):
    """CLIP's, from each kind of files."""
    request.param(tmp_path)
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
    assert list(map(len, tokenizer.encode_whole(["red " * 200, "", "coats"]))) == [202, 2, 4]


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


def test_fingerprint_follows_the_rules(tokenizer, tmp_path):
    """What was prepared while a spelt "[SEP]" was a token has other ids, by the same file."""
    tokenizer.save(tmp_path)
    of_file = hashlib.sha256((tmp_path / "tokenizer.json").read_bytes()).hexdigest()
    assert tokenizer.fingerprint != of_file[:16]


def test_byte_pairs_by_hand(clip_tokenizer):
    """A word's last letter has `</w>`; what is not in the vocabulary is the end token."""
    assert clip_tokenizer.encode("abc ab cab", 20).tolist() == [9, 8, 7, 2, 7, 10]
    assert clip_tokenizer.encode("AB\n C  ba x", 20).tolist() == [9, 7, 5, 1, 3, 10, 10]
    assert clip_tokenizer.encode("", 20).tolist() == [9, 10]
    assert clip_tokenizer.vocab_size == 11


def test_clip_pads_with_its_end_token_and_masks_with_its_last_word(clip_tokenizer):
    """IRRA and RDE overwrite "jekyll", the last byte pair of OpenAI's."""
    roles = [getattr(clip_tokenizer, role) for role in ("start", "end", "pad", "mask")]
    assert roles == [9, 10, 10, 8]
    assert np.flatnonzero(clip_tokenizer.is_special).tolist() == [8, 9, 10]
    assert clip_tokenizer.is_continuation is None


@pytest.mark.parametrize("words", [1, 5, 6, 7, 200])
def test_truncation_keeps_clips_end_token(clip_tokenizer, words):
    """P12, P104: at 6, 7 and 8 tokens of 8 places and far beyond, the last one is the end token."""
    ids = clip_tokenizer.encode("c " * words, 8)
    assert ids.tolist() == [9, *[5] * min(words, 6), 10]
    assert list(map(len, clip_tokenizer.encode_whole(["c " * words]))) == [words + 2]


@pytest.mark.parametrize("around", [HUGGING_FACE, OPEN_CLIP])
@pytest.mark.parametrize(
    ("more", "pad", "mask"),
    [
        ((), 10, 8),
        (("<|mask|>",), 10, 11),
        (("[PAD]", "[MASK]"), 11, 12),
        (("<|person|>",), 10, 8),  # Special by its own flag, without a role here.
    ],
)
def test_special_tokens_by_any_name(tmp_path, around, more, pad, mask):
    write_byte_pairs(tmp_path, around, more)
    loaded = tokenization.load(str(tmp_path))
    assert (loaded.start, loaded.end, loaded.pad, loaded.mask) == (9, 10, pad, mask)
    assert np.flatnonzero(loaded.is_special).tolist() == list(range(min(mask, 9), 11 + len(more)))


def test_saving_and_pickling_keep_clips_ids_and_special_tokens(clip_tokenizer, tmp_path):
    clip_tokenizer.save(tmp_path / "copy")
    for twin in (
        tokenization.load(str(tmp_path / "copy")),
        pickle.loads(pickle.dumps(clip_tokenizer)),
    ):
        assert twin.fingerprint == clip_tokenizer.fingerprint
        assert twin.encode("abc ab cab", 20).tolist() == [9, 8, 7, 2, 7, 10]
        np.testing.assert_array_equal(twin.is_special, clip_tokenizer.is_special)
        for role in ("start", "end", "pad", "mask", "is_continuation"):
            assert getattr(twin, role) == getattr(clip_tokenizer, role)


@pytest.mark.parametrize(
    "caption", ["red [SEP] coat", "red [MASK] coat", "[PAD]", "[CLS]red[SEP]", "a [UNK] man"]
)
def test_words_in_brackets_are_no_control_tokens(tokenizer, caption):
    """P11: also in worker processes, to which a tokenizer travels as a pickle."""
    for twin in (tokenizer, pickle.loads(pickle.dumps(tokenizer))):
        ids = twin.encode(caption, 30).tolist()
        assert (ids[0], ids[-1]) == (2, 3) and not {0, 2, 3, 4} & {*ids[1:-1]}
        assert [whole.tolist() for whole in twin.encode_whole([caption])] == [ids]


def test_half_a_surrogate_pair_is_a_question_mark(tokenizer):
    """Of a file name or a flag that is not UTF-8, for which the library has a TypeError."""
    assert tokenizer.encode("a \udcff man", 9).tolist() == tokenizer.encode("a ? man", 9).tolist()
    assert tokenizer.encode_whole(["\ud83d"])[0].tolist() == [2, 1, 3]


# ---------------------------------------------------------------------------- OpenAI's byte pairs


def openais_ids(text, merges, ids):
    """The tokenizer of OpenAI's CLIP by its published steps, but for ftfy and HTML entities.

    There is one other difference: Hugging Face composes characters (NFC) before.
    """
    kept = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [byte for byte in range(256) if byte not in kept]
    letters = {byte: chr(byte) for byte in kept}
    letters |= {byte: chr(256 + number) for number, byte in enumerate(others)}
    text = re.sub(r"\s+", " ", unicodedata.normalize("NFC", text)).strip().lower()
    found = []
    # No digit is a letter to it, and no two of them are one piece.
    pattern = r"'s|'t|'re|'ve|'m|'ll|'d|[^\W\d_]+|\d|(?:[^\s\w]|_)+"
    for word in re.findall(pattern, text):
        pieces = [letters[byte] for byte in word.encode()]
        pieces[-1] += "</w>"
        for pair in merges:
            at = 0
            while at < len(pieces) - 1:
                if (pieces[at], pieces[at + 1]) == pair:
                    pieces[at : at + 2] = ["".join(pair)]
                at += 1
        found += [ids[piece] for piece in pieces]
    return [ids["<|startoftext|>"], *found, ids["<|endoftext|>"]]


@pytest.mark.parametrize("ftfy", ["missing", "there"])
@pytest.mark.parametrize("files", ["vocabulary", "tokenizer.json"])
def test_clips_ids_take_openais_steps_without_ftfy_and_unescaping(
    tmp_path, monkeypatch, ftfy, files
):
    """P69: from files of either kind, and the same whether ftfy is installed or not.

    The steps are those of OpenAI's code without ftfy and HTML unescaping, written down above; the
    vocabulary is a small one of the test, not OpenAI's.
    """
    characters = sorted(pre_tokenizers.ByteLevel.alphabet())
    merges = [("m", "a"), ("ma", "n</w>"), ("w", "o"), ("wo", "man</w>"), ("'", "s</w>")]
    pieces = [*characters, *(f"{each}</w>" for each in characters), *map("".join, merges)]
    monkeypatch.setattr(f"{__name__}.PIECES", pieces)
    monkeypatch.setattr(f"{__name__}.MERGES", merges)
    ids = {piece: number for number, piece in enumerate([*pieces, *HUGGING_FACE])}
    write_hugging_face_files(tmp_path)
    # Were it asked, it would make all of a text an "x".
    fixed = types.SimpleNamespace(fix_text=lambda text: "x")
    monkeypatch.setitem(sys.modules, "ftfy", fixed if ftfy == "there" else None)
    tokenizer = tokenization.load(str(tmp_path))
    if files == "tokenizer.json":
        tokenizer.save(tmp_path / "saved")
        tokenizer = tokenization.load(str(tmp_path / "saved"))
    for text in (
        "The woman's résumé — she's wearing a t\u2011shirt",
        "you're, should've; I'll, he'd, we'm",
        "\uff21\uff22\uff23 👩🏽‍🦰 woman\n in  a\tcoat",
        "11p223 2nd &amp; <b>",
        "café e\u0301 人 אבג",
        "'sm woman--man",
        "",
    ):
        assert tokenizer.encode(text, 500).tolist() == openais_ids(text, merges, ids), text


def test_fingerprint_follows_the_merges(tmp_path, monkeypatch):
    write_byte_pairs(tmp_path)
    before = tokenization.load(str(tmp_path))
    monkeypatch.setattr(f"{__name__}.MERGES", MERGES[:-1])
    write_byte_pairs(tmp_path)
    after = tokenization.load(str(tmp_path))
    assert after.encode("abc", 9).tolist() != before.encode("abc", 9).tolist()
    assert after.fingerprint != before.fingerprint


@pytest.mark.parametrize("files", [(), ("vocab.json",), ("merges.txt",)])
def test_a_directory_without_all_of_a_vocabulary_is_refused(tmp_path, files):
    """Transformers makes a vocabulary of special tokens alone of the first."""
    write_hugging_face_files(tmp_path, files)
    with pytest.raises(DataError, match=f"{tmp_path}.*tokenizer.json.*vocabulary files"):
        tokenization.load(str(tmp_path))


@pytest.mark.parametrize("missing", [*HUGGING_FACE, *OPEN_CLIP])
def test_clip_without_a_needed_token_is_refused(tmp_path, missing):
    around = HUGGING_FACE if missing in HUGGING_FACE else OPEN_CLIP
    write_byte_pairs(tmp_path, tuple("<other>" if name == missing else name for name in around))
    with pytest.raises(DataError, match=rf"no (start|end) token .*{re.escape(missing)}"):
        tokenization.load(str(tmp_path))


def test_tokens_that_are_not_put_around_a_text_are_refused(tmp_path):
    write_byte_pairs(tmp_path, HUGGING_FACE)
    content = json.loads((tmp_path / "tokenizer.json").read_text())
    (tmp_path / "tokenizer.json").write_text(json.dumps(content | {"post_processor": None}))
    with pytest.raises(DataError, match="does not put its start and end tokens around a text"):
        tokenization.load(str(tmp_path))


def test_a_tokenizer_without_a_mask_token_is_loaded(tmp_path):
    write_tokenizer(tmp_path, [piece for piece in VOCABULARY if piece != "[MASK]"])
    assert tokenization.load(str(tmp_path)).mask is None


@pytest.mark.parametrize("missing", ["[PAD]", "[CLS]", "[SEP]"])
def test_a_tokenizer_without_a_needed_token_is_refused(tmp_path, missing):
    write_tokenizer(tmp_path, [piece for piece in VOCABULARY if piece != missing])
    with pytest.raises(DataError, match=missing.replace("[", r"\[")):
        tokenization.load(str(tmp_path))


@pytest.mark.parametrize("content", [b"", b"{", b"<html>", b"\xff\xfe{", b"[" * 10**5, b"null"])
def test_what_is_no_tokenizer_is_named(tmp_path, content):
    (tmp_path / "tokenizer.json").write_bytes(content)
    refused(tmp_path, "tokenizer.json is damaged")


def test_what_is_no_file_is_named(tmp_path):
    refused(tmp_path, "neither a directory with tokenizer.json")
    (tmp_path / "tokenizer.json").symlink_to(tmp_path / "gone")
    refused(tmp_path, "tokenizer.json is damaged .a dangling link")
    (tmp_path / "tokenizer.json").unlink()
    os.mkfifo(tmp_path / "tokenizer.json")  # Nobody ever writes to it.
    refused(tmp_path, "tokenizer.json is damaged .* not an ordinary file")
    assert not tokenization.is_in(tmp_path)


def refused(directory, match):
    """One line, which names the directory."""
    with pytest.raises(DataError, match=match) as caught:
        tokenization.load(str(directory))
    assert str(directory) in str(caught.value)
    assert str(caught.value).isprintable()


@pytest.mark.parametrize(
    ("part", "value", "fault"),
    [
        ("normalizer", {"type": "Precompiled", "precompiled_charsmap": "AAAA"}, "Precompiled"),
        ("pre_tokenizer", {"type": "FixedLength", "length": 0}, "non-zero"),
        ("pre_tokenizer", {"type": "Split", "pattern": {"Regex": "("}}, "damaged"),
        (
            "model",
            {"type": "WordLevel", "vocab": {"[CLS]": 0, "[SEP]": 1}, "unk_token": "x"},
            "damaged",
        ),
        ("model", {"type": "Unigram", "unk_id": 9, "vocab": [["a", -1.0]]}, "damaged"),
    ],
)
def test_a_tokenizer_at_which_its_library_fails(tmp_path, part, value, fault):
    """Of which some are panics, that are no exceptions to Python."""
    write_tokenizer(tmp_path)
    content = json.loads((tmp_path / "tokenizer.json").read_text())
    (tmp_path / "tokenizer.json").write_text(json.dumps(content | {part: value}))
    refused(tmp_path, fault)


def test_ids_beyond_any_table_are_refused(tmp_path):
    """Four thousand million marks of special tokens would fill the memory (P78)."""
    write_tokenizer(tmp_path)
    content = json.loads((tmp_path / "tokenizer.json").read_text())
    content["model"]["vocab"]["a"] = 2**32 - 1
    (tmp_path / "tokenizer.json").write_text(json.dumps(content))
    refused(tmp_path, "ids up to 4,294,967,295; at most 16,777,216")


def test_code_beside_a_tokenizer_never_runs(tmp_path, monkeypatch):
    """Transformers would ask at the terminal, and somebody would say yes (P17)."""
    trace = tmp_path / "ran"
    classes = {"AutoConfig": "intruder.Config", "AutoTokenizer": ["intruder.Tokenizer", None]}
    for file in ("config.json", "tokenizer_config.json"):
        (tmp_path / file).write_text(json.dumps({"auto_map": classes}))
    (tmp_path / "intruder.py").write_text(f"import os\nos.mkdir({str(trace)!r})\n")
    monkeypatch.setattr("builtins.input", lambda *_: "y")
    refused(tmp_path, "neither a directory with tokenizer.json")
    assert not trace.exists()


def test_the_sample_tokenizer_spells_every_word_of_its_captions():
    tokenizer = tokenization.load("examples/tokenizer")
    unknown = tokenizer.backend.token_to_id("[UNK]")
    ids = tokenizer.encode("She's 23, wearing an ultramarine anorak & a t-shirt.", 90)
    assert unknown not in ids
    assert tokenizer.backend.decode(ids.tolist()).startswith("she")


def test_the_small_clip_passes_over_what_its_prompts_do_not_hold():
    """Commas, digits and accents, which people type."""
    tokenizer = tokenization.load("examples/small_clip")
    plain = tokenizer.encode("a woman with a red bag", 32)
    np.testing.assert_array_equal(tokenizer.encode("A woman, with a (red) bag? 7 é", 32), plain)


# ---------------------------------------------------------------------------- back to text


def test_pieces_of_words(tmp_path):
    write_tokenizer(tmp_path)
    backend = Backend.from_file(str(tmp_path / "tokenizer.json"))
    backend.decoder = decoders.WordPiece()
    backend.save(str(tmp_path / "tokenizer.json"))
    tokenizer = tokenization.load(str(tmp_path))
    ids = np.array([9, 6, 7, 8, 4, 5], np.int32)  # a red coat ##s [MASK] man
    assert tokenizer.pieces(ids) == ["a", " red", " coat", "s", " [MASK]", " man"]
    assert tokenizer.pieces(ids[:0]) == []


def test_pieces_of_bytes(tmp_path):
    """A character of two tokens comes with the second; all of them together are the text."""
    characters = sorted(pre_tokenizers.ByteLevel.alphabet())
    ids = {piece: n for n, piece in enumerate([*characters, "<|startoftext|>", "<|endoftext|>"])}
    backend = Backend(models.BPE(ids, []))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    backend.add_special_tokens(["<|startoftext|>", "<|endoftext|>"])
    backend.post_processor = processors.TemplateProcessing(
        single="<|startoftext|> $A <|endoftext|>",
        special_tokens=[(name, ids[name]) for name in ("<|startoftext|>", "<|endoftext|>")],
    )
    backend.save(str(tmp_path / "tokenizer.json"))
    tokenizer = tokenization.load(str(tmp_path))
    pieces = tokenizer.pieces(tokenizer.encode("café 人", 20)[1:-1])
    assert pieces == ["c", "a", "f", "", "é", " ", "", "", "人"]
