"""Captions to token ids, by a Hugging Face tokenizer read once."""

import dataclasses
import hashlib
from collections.abc import Sequence

import numpy as np
import tokenizers
from etils import epath
from jaxtyping import Bool, Int

from unipt_jax.core.errors import DataError
from unipt_jax.core.files import write_bytes

FILE = "tokenizer.json"

# The roles that MLM and padding need, under the names that BERT-like vocabularies use.
ROLES = {"start": ("[CLS]",), "end": ("[SEP]",), "pad": ("[PAD]",), "mask": ("[MASK]",)}


@dataclasses.dataclass(frozen=True, eq=False)
class Tokenizer:
    """A tokenizer with the ids of its special tokens.

    `is_special` and `is_continuation` (a piece that goes on with the word before it) are
    `bool[vocab_size]`; `fingerprint` changes with anything that changes ids.
    """

    backend: tokenizers.Tokenizer
    start: int
    end: int
    pad: int
    mask: int
    is_special: Bool[np.ndarray, "V"]
    is_continuation: Bool[np.ndarray, "V"]
    fingerprint: str

    @property
    def vocab_size(self) -> int:
        """Number of ids: every id is below it."""
        return len(self.is_special)

    def encode(self, caption: str, length: int) -> Int[np.ndarray, "L"]:
        """Returns at most `length` ids, special ones included; the last is always the end token."""
        ids = self.backend.encode(caption).ids
        if len(ids) > length:
            ids = [*ids[: length - 1], self.end]
        return np.asarray(ids, np.int32)

    def lengths(self, captions: Sequence[str]) -> Int[np.ndarray, "N"]:
        """Returns each caption's number of tokens, special ones included, before any truncation."""
        encoded = self.backend.encode_batch(list(captions))
        return np.asarray([len(entry.ids) for entry in encoded], np.int32)

    def save(self, directory: epath.PathLike) -> None:
        """Writes `tokenizer.json`, which `load` reads back."""
        write_bytes(epath.Path(directory) / FILE, self.backend.to_str().encode())


def load(name: str) -> Tokenizer:
    """Loads a directory with `tokenizer.json`, or a Hugging Face name or directory.

    Raises:
        DataError: nothing can be loaded under that name, or a special token is missing or not put.
    """
    backend = _read(name)
    backend.no_truncation()
    backend.no_padding()
    vocabulary = backend.get_vocab(with_added_tokens=True)
    ids = {}
    for role, spellings in ROLES.items():
        found = [vocabulary[token] for token in spellings if token in vocabulary]
        if not found:
            raise DataError(f"tokenizer {name!r} has no {role} token {' or '.join(spellings)}")
        ids[role] = found[0]
    encoded = backend.encode("a").ids
    if (encoded[0], encoded[-1]) != (ids["start"], ids["end"]):
        raise DataError(f"tokenizer {name!r} does not put its start and end tokens around a text")
    size = max(vocabulary.values()) + 1
    is_special, is_continuation = np.zeros(size, bool), np.zeros(size, bool)
    for token, number in vocabulary.items():
        is_continuation[number] = token.startswith("##")
    for number, added in backend.get_added_tokens_decoder().items():
        is_special[number] = added.special
    is_special[list(ids.values())] = True
    fingerprint = hashlib.sha256(backend.to_str().encode()).hexdigest()[:16]
    return Tokenizer(
        backend=backend,
        is_special=is_special,
        is_continuation=is_continuation,
        fingerprint=fingerprint,
        **ids,
    )


def _read(name: str) -> tokenizers.Tokenizer:
    file = epath.Path(name) / FILE
    try:
        if file.is_file():
            return tokenizers.Tokenizer.from_str(file.read_text())
        # Slow to import, and needed for names and older directories alone.
        from transformers import AutoTokenizer

        return AutoTokenizer.from_pretrained(name).backend_tokenizer
    except Exception as error:
        raise DataError(
            f"tokenizer {name!r} cannot be loaded: it is neither a directory with tokenizer.json "
            f"nor a Hugging Face name that can be reached ({type(error).__name__})"
        ) from error
