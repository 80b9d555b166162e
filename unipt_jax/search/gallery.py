"""A gallery of people who are found by a sentence or a picture."""

import dataclasses
import hashlib
import math
import os
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jaxtyping import Bool, Float, UInt8

from unipt_jax.captioning import lexicon
from unipt_jax.captioning.captioner import Captioner, Clip, require_temperature
from unipt_jax.core.errors import DataError, nearest
from unipt_jax.core.sharding import make_mesh
from unipt_jax.data import images
from unipt_jax.encoder import Encoder, ImageLike, load
from unipt_jax.search import index
from unipt_jax.search.neighbours import Neighbours

# How much of what must not be there is taken from a query: half leaves the query the word.
WITHOUT = 0.5


@dataclasses.dataclass(frozen=True)
class Hit:
    """An image that was found.

    Attributes:
        number: of the image in the gallery, from 0.
        path: of the image, relative to the gallery's folder.
        score: cosine between it and the query, -1 to 1; NaN where there is no query.
        caption: the captioner's sentence; empty without one.
        attributes: of each attribute the captioner's `phrase` (None where it sees none) and its
            `probability`; empty without a captioner.
    """

    number: int
    path: str
    score: float
    caption: str
    attributes: Mapping[str, Mapping[str, Any]]


class Gallery:
    """The images of a folder, with a model that finds people among them: see `from_images`."""

    def __init__(self, found: index.Index, encoder: Encoder, captioner: Captioner | None):
        self._index, self._encoder, self._captioner = found, encoder, captioner
        self._neighbours = Neighbours(found.features, found.numbers, found.place)
        self._columns = dict(_columns(found.phrases))

    @classmethod
    def from_images(
        cls,
        images: str | Path,
        model: Encoder | str | Path,
        *,
        clip: Encoder | str | Path | None = None,
        index_directory: str | Path | None = None,
        batch_size: int = 64,
    ) -> "Gallery":
        """Encodes the images of a folder, those that are new or changed since the last time.

        Args:
            images: a folder of crops, at any depth.
            model: gives the embeddings, or what `unipt_jax.load` takes.
            clip: writes captions and attributes as `launch/caption.py` does, or what
                `unipt_jax.load` takes; None writes neither, and nothing can be chosen by attribute.
            index_directory: where features are kept; by default in the user's cache, in a place of
                its own for each folder, model and captioner.
            batch_size: images at a time, over all local devices.

        Raises:
            DataError: the folder holds no image that can be read, or the directory is the index of
                something else.
            ConfigError: `clip` has no temperature.
            CheckpointError: as `unipt_jax.load`.
            ConversionError: as `unipt_jax.load`.
        """
        encoder = model if isinstance(model, Encoder) else load(model)
        captioner = None if clip is None else _captioner(clip, encoder, model)
        folder = Path(images)
        place = Path(index_directory or _cached(folder, encoder, captioner))
        found = index.build(folder, place, encoder, captioner, batch_size=batch_size)
        return cls(found, encoder, captioner)

    def of_other_images(self, images: str | Path, index_directory: str | Path) -> "Gallery":
        """Returns the gallery of another folder by the same models.

        Raises:
            DataError: as `from_images`.
        """
        place = Path(index_directory)
        found = index.build(Path(images), place, self._encoder, self._captioner)
        return Gallery(found, self._encoder, self._captioner)

    def __len__(self) -> int:
        return len(self._index.numbers)

    @property
    def faults(self) -> tuple[str, ...]:
        """What is wrong with each of the folder's images that could not be read."""
        return self._index.faults

    def search(
        self,
        text: str,
        k: int = 10,
        *,
        without: str = "",
        where: Mapping[str, str | Sequence[str]] | None = None,
    ) -> list[Hit]:
        """Finds the people whom a sentence describes, most similar first.

        Args:
            text: "a woman with a red bag".
            k: how many.
            without: what must not be there, "a hat": half of its embedding is taken from `text`'s.
            where: attributes that must hold, one of several phrases each, as `choices` lists them:
                `{"gender": "female", "upper_clothes.color": ["red", "pink"]}`.

        Raises:
            DataError: a text is empty or none, `k` is no positive whole number, or the captioner
                knows no such attribute or phrase.
        """
        return self.find(self.encode_text(text), k, without=without, where=where)

    def search_image(
        self,
        image: ImageLike,
        k: int = 10,
        *,
        without: str = "",
        where: Mapping[str, str | Sequence[str]] | None = None,
    ) -> list[Hit]:
        """Finds the people who look like a picture: a path, a Pillow image, or uint8[H, W, 3].

        Raises:
            DataError: as `search`, or the picture cannot be read.
        """
        return self.find(self.encode_image(image), k, without=without, where=where)

    def similar(
        self,
        number: int,
        k: int = 10,
        *,
        without: str = "",
        where: Mapping[str, str | Sequence[str]] | None = None,
    ) -> list[Hit]:
        """Finds the people who look like an image of the gallery, that one first.

        Raises:
            DataError: as `search`, or the gallery has no image of that number.
        """
        return self.find(self.embedding(number), k, without=without, where=where)

    def find(
        self,
        embedding: Float[np.ndarray, " D"],
        k: int = 10,
        *,
        without: str = "",
        where: Mapping[str, str | Sequence[str]] | None = None,
    ) -> list[Hit]:
        """Finds the people nearest to an embedding, of length 1, of a text, an image or both.

        Raises:
            DataError: as `search`, or the embedding is not one of this model's.
        """
        if not _is_whole(k) or k < 1:
            raise DataError(f"k={k!r}: ask for one image or more")
        if not isinstance(without, str):
            raise DataError(f"without={without!r}: expected what must not be there, 'a hat'")
        width = self._index.features.shape[1]
        if embedding.shape != (width,) or not np.isfinite(embedding).all():
            raise DataError(f"an embedding of this gallery has {width} finite numbers")
        if without.strip():
            embedding = embedding - WITHOUT * self.encode_text(without)
            embedding = embedding / np.linalg.norm(embedding)
        among = self._marks(where) if where else None
        rows, scores = self._neighbours.nearest(embedding, min(k, len(self)), among)
        numbers = np.searchsorted(self._index.numbers, rows)
        return [
            self.hit(number, score)
            for number, score in zip(numbers.tolist(), scores.tolist(), strict=True)
        ]

    def encode_text(self, text: str) -> Float[np.ndarray, " D"]:
        """Embeds a sentence; the result has length 1.

        Raises:
            DataError: it is empty or no text, or the model knows no word of it.
        """
        if not isinstance(text, str) or not text.strip():
            said = "empty" if isinstance(text, str) else repr(text)
            raise DataError(f"the query is {said}; describe a person: 'a woman with a red bag'")
        tokenizer, length = self._encoder.processor.tokenizer, self._encoder.processor.length
        if np.array_equal(tokenizer.encode(text, length), tokenizer.encode("", length)):
            raise DataError(f"the model knows no word of {text!r}; say it in its language")
        return self._encoder.encode_texts([text])[0]

    def encode_image(self, image: ImageLike) -> Float[np.ndarray, " D"]:
        """Embeds a picture; the result has length 1.

        Raises:
            DataError: it cannot be read.
        """
        return self._encoder.encode_images([image])[0]

    def embedding(self, number: int) -> Float[np.ndarray, " D"]:
        """Returns the embedding of an image of the gallery.

        Raises:
            DataError: there is none of that number.
        """
        self._require_number(number)
        return np.array(self._index.features[self._index.numbers[number]])

    def choices(self) -> dict[str, dict[str, int]]:
        """Returns of each attribute how many images each phrase holds of, the most frequent first.

        Attributes in parts come as these: `upper_clothes.color`. Empty without a captioner.
        """
        return {
            name: dict(Counter(labels[code] for code in codes[codes >= 0]).most_common())
            for name, (labels, codes) in self._columns.items()
        }

    def image(self, number: int) -> UInt8[np.ndarray, "H W 3"]:
        """Reads an image of the gallery.

        Raises:
            DataError: it can no longer be read, or there is none of that number.
        """
        return images.decode(self.encoded(number), self._index.rows[number]["image"])

    def encoded(self, number: int) -> bytes:
        """Reads the file of an image of the gallery.

        Raises:
            DataError: as `image`.
        """
        self._require_number(number)
        return index.read(self._index.folder, self._index.rows[number]["image"])

    def _require_number(self, number: int) -> None:
        if not _is_whole(number) or not 0 <= number < len(self):
            raise DataError(f"image {number!r}: the gallery has images 0 to {len(self) - 1}")

    def hit(self, number: int, score: float = math.nan) -> Hit:
        """Returns what is known of an image.

        Raises:
            DataError: there is none of that number.
        """
        self._require_number(number)
        row = self._index.rows[number]
        return Hit(number, row["image"], score, row.get("caption", ""), row.get("attributes", {}))

    def _marks(self, where: Mapping[str, str | Sequence[str]]) -> Bool[np.ndarray, " N"]:
        """Marks the images that `where` allows."""
        if not isinstance(where, Mapping):
            raise DataError(f"where={where!r}: expected phrases by attribute, {{'gender': 'male'}}")
        if not self._columns:
            raise DataError(
                f"where={dict(where)}: these images have no attributes; name a CLIP that finds them"
            )
        marks = np.ones(len(self), bool)
        for name, wanted in where.items():
            if name not in self._columns:
                known = nearest(str(name), self._columns)
                raise DataError(f"no attribute is called {name!r}{known}")
            labels, codes = self._columns[name]
            wanted = wanted if isinstance(wanted, list | tuple | set | frozenset) else [wanted]
            for phrase in wanted:
                if phrase not in labels:
                    raise DataError(f"{name}={phrase!r} is unknown{nearest(str(phrase), labels)}")
            marks &= np.isin(codes, [labels.index(phrase) for phrase in wanted])
        return marks


def _is_whole(number: Any) -> bool:
    """Tells whether something is a whole number, NumPy's too, and no truth value."""
    return isinstance(number, int | np.integer) and not isinstance(number, bool)


def _columns(
    phrases: Mapping[str, tuple[tuple[str, ...], np.ndarray]],
) -> Iterator[tuple[str, tuple[tuple[str, ...], np.ndarray]]]:
    """Yields of each attribute, or of each of its parts, all labels and which holds of whom."""
    for name, each in lexicon.english().sets.items():
        if name not in phrases:
            continue
        found, codes = phrases[name]
        names = next(iter(each.phrases.values())).parts or {"": ""}
        for part in names:
            said = {
                label: phrase.parts[part] if part else label
                for label, phrase in each.phrases.items()
            }
            labels = tuple(dict.fromkeys(said.values()))
            # Of no phrase, -1, it is the last entry that is taken.
            number = np.array([*(labels.index(said[label]) for label in found), -1], np.int16)
            yield f"{name}.{part}".rstrip("."), (labels, number[codes])


def _captioner(
    clip: Encoder | str | Path, encoder: Encoder, model: Encoder | str | Path
) -> Captioner:
    """Returns a captioner with the English attributes; what is the model itself is loaded once."""
    if not isinstance(clip, Encoder):
        clip = encoder if str(clip) == str(model) else load(clip)
    require_temperature(clip.model)
    return Captioner(
        Clip(clip.model, clip.params, clip.encode_texts),
        lexicon.english(),
        make_mesh(devices=jax.local_devices()),
    )


def _cached(folder: Path, encoder: Encoder, captioner: Captioner | None) -> Path:
    """Returns the place of an index in the user's cache."""
    try:
        caches = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    except RuntimeError:
        raise DataError(
            "there is no home directory to keep an index in; name a place: --workdir, "
            "index_directory or XDG_CACHE_HOME"
        ) from None
    parts = [encoder.fingerprint]
    parts += [captioner.fingerprint, lexicon.fingerprint()] if captioner else []
    named = os.fsencode(folder.resolve()) + "\n".join(parts).encode()
    key = hashlib.blake2b(named, digest_size=8).hexdigest()
    return caches / "unipt_jax" / key
