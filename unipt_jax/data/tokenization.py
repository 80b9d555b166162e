"""Captions to token ids, by a Hugging Face tokenizer read once."""

import contextlib
import dataclasses
import hashlib
import os
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import tokenizers
from etils import epath
from jaxtyping import Bool, Int

from unipt_jax.core.errors import DataError
from unipt_jax.core.files import is_file, write_bytes

FILE = "tokenizer.json"
# Of what `Tokenizer` does to texts beyond its file: 2 reads spelt special tokens as letters. Raised
# with each change of ids, since what was prepared by another rule has other ids.
_RULES = 2
_MOST_IDS = 2**24  # Beyond any vocabulary; a table of so many embeddings would fill the memory.
_VOCABULARIES = ("vocab.txt", "vocab.json")  # Of what was saved before there was `FILE`.

# The roles of special tokens, under BERT's names and under those of CLIP, as Hugging Face and as
# open_clip write them. CLIP has no token for padding alone: its end token pads.
_CLIP_END = ("<|endoftext|>", "<end_of_text>")
ROLES = {
    "start": ("[CLS]", "<|startoftext|>", "<start_of_text>"),
    "end": ("[SEP]", *_CLIP_END),
    "pad": ("[PAD]", *_CLIP_END),
    "mask": ("[MASK]", "<|mask|>"),
}


@dataclasses.dataclass(frozen=True, eq=False)
class Tokenizer:
    """A tokenizer with the ids of its special tokens, of which it may lack `mask`.

    CLIP's has no token to mask with; as in IRRA and RDE the last of its byte pairs, a rare word,
    stands for it, so that ids and the table of embeddings stay as they are.

    `is_special` and `is_continuation` (a piece that goes on with the word before it) are
    `bool[vocab_size]`. `is_continuation` is None with byte pairs: those mark the end of a word, so
    what a piece goes on with is not told by its id. `name` is what the tokenizer was loaded by;
    `fingerprint` changes with anything that changes ids: the file, or the rules of this module.

    What a caption spells is never a special token, and half a surrogate pair is read as "?".
    """

    name: str
    backend: tokenizers.Tokenizer
    start: int
    end: int
    pad: int
    mask: int | None
    is_special: Bool[np.ndarray, "V"]
    is_continuation: Bool[np.ndarray, "V"] | None
    fingerprint: str

    def __post_init__(self) -> None:
        # A caption that holds "[SEP]" or "<|endoftext|>" says so in letters; read as the token it
        # would end there, or move the place where a text is pooled.
        self.backend.encode_special_tokens = True

    def __reduce__(self) -> tuple[Any, ...]:
        # The backend's own pickle forgets that.
        fields = dataclasses.fields(self)
        return type(self), tuple(getattr(self, field.name) for field in fields)

    @property
    def vocab_size(self) -> int:
        """Number of ids: every id is below it."""
        return len(self.is_special)

    @property
    def vocabulary(self) -> dict[str, int]:
        """Returns each token's id."""
        return self.backend.get_vocab(with_added_tokens=True)

    def encode(self, caption: str, length: int) -> Int[np.ndarray, "L"]:
        """Returns at most `length` ids, special ones included; the last is always the end token."""
        return self.cut(np.array(self.backend.encode(_utf8(caption)).ids, np.int32), length)

    def encode_whole(self, captions: Sequence[str]) -> list[Int[np.ndarray, "_"]]:
        """Returns each caption's ids, special ones included, before any truncation."""
        encoded = self.backend.encode_batch(list(map(_utf8, captions)))
        return [np.array(entry.ids, np.int32) for entry in encoded]

    def cut(self, ids: Int[np.ndarray, "L"], length: int) -> Int[np.ndarray, "M"]:
        """Returns at most `length` of a text's ids, of which the last is the end token again."""
        return ids if len(ids) <= length else np.append(ids[: length - 1], np.int32(self.end))

    def pieces(self, ids: Int[np.ndarray, "L"]) -> list[str]:
        """Returns what each token adds to the text, a space before it included.

        Of a character that several tokens make up, the last of them adds it.
        """
        pieces, before = [], ""
        for end in range(1, len(ids) + 1):
            text = self.backend.decode(ids[:end].tolist(), skip_special_tokens=False)
            whole = not text.endswith("\N{REPLACEMENT CHARACTER}")
            pieces.append(text[len(before) :] if whole else "")
            before = text if whole else before
        return pieces

    def save(self, directory: epath.PathLike) -> None:
        """Writes `tokenizer.json`, which `load` reads back."""
        write_bytes(epath.Path(directory) / FILE, self.backend.to_str().encode())


def load(name: str) -> Tokenizer:
    """Loads a directory with `tokenizer.json`, or a Hugging Face name or directory.

    Raises:
        DataError: nothing can be loaded under that name, an id is beyond what tables of embeddings
            have, or a special token other than that for masking is missing or not put.
    """
    backend = read(name)
    backend.no_truncation()
    backend.no_padding()
    with _naming(name):
        encoded = backend.encode("a").ids
    vocabulary = backend.get_vocab(with_added_tokens=True)
    size = max(vocabulary.values(), default=0) + 1
    if size > _MOST_IDS:
        raise DataError(f"tokenizer {name!r} has ids up to {size - 1:,}; at most {_MOST_IDS:,}")
    ids = {}
    for role, spellings in ROLES.items():
        ids[role] = next((vocabulary[token] for token in spellings if token in vocabulary), None)
        if ids[role] is None and role != "mask":
            raise DataError(f"tokenizer {name!r} has no {role} token {' or '.join(spellings)}")
    if ids["mask"] is None and isinstance(backend.model, tokenizers.models.BPE):
        special = {added.content for added in backend.get_added_tokens_decoder().values()}
        words = [number for token, number in vocabulary.items() if token not in special]
        ids["mask"] = max(words, default=None)
    if (encoded[:1], encoded[-1:]) != ([ids["start"]], [ids["end"]]):
        raise DataError(f"tokenizer {name!r} does not put its start and end tokens around a text")
    is_special = np.zeros(size, bool)
    for number, added in backend.get_added_tokens_decoder().items():
        is_special[number] = added.special
    is_special[[number for number in ids.values() if number is not None]] = True
    if is_special.sum() == len(vocabulary):
        # What transformers gives, without a word, for a directory that has config.json alone.
        raise DataError(
            f"tokenizer {name!r} knows special tokens alone; put its tokenizer.json or its "
            "vocabulary files there"
        )
    is_continuation = None
    if isinstance(backend.model, tokenizers.models.WordPiece | tokenizers.models.WordLevel):
        is_continuation = np.zeros(size, bool)
        for token, number in vocabulary.items():
            is_continuation[number] = token.startswith("##")
    return Tokenizer(
        name=name,
        backend=backend,
        is_special=is_special,
        is_continuation=is_continuation,
        fingerprint=_fingerprint(backend),
        **ids,
    )


def _fingerprint(backend: tokenizers.Tokenizer) -> str:
    """Returns 16 hexadecimal digits that follow from the file and from `_RULES`."""
    return hashlib.sha256(f"{_RULES} {backend.to_str()}".encode()).hexdigest()[:16]


def is_in(directory: epath.PathLike) -> bool:
    """Tells whether a directory holds a tokenizer's files."""
    return any(is_file(epath.Path(directory) / name) for name in (FILE, *_VOCABULARIES))


def _utf8(text: str) -> str:
    """Returns a text with "?" for half a surrogate pair, as a damaged file or flag leaves it."""
    return text.encode("utf-8", "replace").decode()


def read(name: str) -> tokenizers.Tokenizer:
    """Reads what `load` loads, and looks at nothing of it.

    Raises:
        DataError: nothing can be read under that name.
    """
    file = epath.Path(name) / FILE
    with _naming(name):
        if is_file(file):
            return tokenizers.Tokenizer.from_buffer(file.read_bytes())
        if os.path.lexists(file):
            raise OSError("a dangling link or not an ordinary file")
        # Slow to import, and needed for names and older directories alone.
        from transformers import AutoTokenizer

        # Of code beside a tokenizer it would otherwise ask at the terminal whether to run it.
        return AutoTokenizer.from_pretrained(name, trust_remote_code=False).backend_tokenizer


@contextlib.contextmanager
def _naming(name: str) -> Iterator[None]:
    """Says which tokenizer, and what it could be, where its library fails in whatever way."""
    try:
        yield
    except BaseException as error:
        # Where the library's Rust panics, what it raises is no `Exception`.
        if not isinstance(error, Exception) and type(error).__name__ != "PanicException":
            raise
        file = epath.Path(name) / FILE
        if os.path.lexists(file):
            what = f"{file} is damaged ({' '.join(str(error).split())[:200]})"
        else:
            what = (
                "it is neither a directory with tokenizer.json (or with config.json and the "
                f"vocabulary files) nor a Hugging Face name that can be reached "
                f"({type(error).__name__})"
            )
        raise DataError(f"tokenizer {name!r} cannot be loaded: {what}") from error
