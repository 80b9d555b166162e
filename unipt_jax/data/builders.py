"""Prepared data sets: written once, read at random by every stage.

A prepared directory is a TFDS data set in ArrayRecord (`tfds.builder_from_directory` reads it, and
no TensorFlow is needed) with, beside it:

    index-<split>.npz        caption_counts int32[N], captions of each image;
                             identities int32[N], labels from 0 within the split;
                             text_lengths int32[P], tokens of each caption, special ones included,
                             in the order of the images (P = sum of the counts; empty: no tokenizer)
    tokens-<split>.bin       little-endian int32[T], the captions' tokens in the same order, special
                             ones included and none cut off (T = sum of text_lengths)
    identities-<split>.json  the identities' names by label
    <shard>.pixels           uint8[N, H, W, 3], the images of the shard decoded and resized, where
                             that was asked for; records have none then
    manifest.json            counts and names; written last, so that it vouches for all the rest

An example of training made of pixels is that made of the images as they came, to the byte. Tokens
and pixels are mapped into memory: of a data set with both, training reads no record. (Pixels must
lie on a disk for that; tokens in an object store are read at once.)

Checking and writing go part by part: a function is called with each part of the records, here one
after another (`map`), or wherever a `Spread` takes it (`beam.spread_on`). Each shard is one
part, so that the data set is the same to the byte whoever wrote it.
"""

import array
import bisect
import concurrent.futures
import dataclasses
import functools
import hashlib
import io
import itertools
import logging
import math
import os
from collections import ChainMap
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, SupportsIndex

import numpy as np
import tensorflow_datasets as tfds
from array_record.python import array_record_module
from etils import epath
from jaxtyping import Int32, UInt8
from tensorflow_datasets.proto import tf_example_pb2

from unipt_jax.core.errors import DataError, nearest, printable
from unipt_jax.core.files import (
    absolute,
    is_remote,
    read_json,
    require_reachable,
    write_bytes,
    write_json,
    write_json_lines,
    write_stream,
)
from unipt_jax.data import images as images_lib
from unipt_jax.data import tokenization
from unipt_jax.data.annotations import SPLITS, Problem, Record, missing_by_folder, natural_order

FORMAT = 2
MANIFEST = "manifest.json"
PROBLEMS = "problems.jsonl"
QUARANTINE = "quarantine.jsonl"
SAME_BYTES_SPLIT = "image is byte for byte one of another split"
SAME_BYTES_IDENTITY = "image is byte for byte one of another identity"

# Where a spread keeps what it passes on; removed with a preparation that did not finish.
SPREAD_FOLDER = "spread"

_EXAMPLES_PER_SHARD = 4096
# Groups of one, since examples are read at random; and no compression, which would gain nothing on
# encoded images.
_ARRAY_RECORD = "group_size:1,uncompressed"
_CHECKED_AT_ONCE = 1024
_TFDS_INFO = "dataset_info.json"
_PIXELS = ".pixels"
_COUNTED = ("images", "captions", "identities")
_TOKENS, _TOKEN = "tokens-{}.bin", np.dtype("<i4")

# The shard to write, if any, and the records that belong to it.
Part = tuple[str, Sequence[Record]]
# Calls a function, which can be pickled if its reader of images can, with each part, and yields the
# results in the parts' order.
Spread = Callable[[Callable[[Part], Any], Iterable[Part]], Iterator[Any]]


class Images:
    """The images of a split by number, each with its captions; safe to share among threads.

    `images[i]` is `{"image": encoded bytes, "captions": list[str], "path": str}`; what is stored as
    pixels is encoded when asked for (PPM).

    Args:
        source: the stored examples.
        pixels: of each image uint8[H, W, 3], or None if it is stored encoded; empty: all are.
    """

    def __init__(
        self,
        source: Sequence[Mapping[str, Any]],
        pixels: Sequence[UInt8[np.ndarray, "H W 3"] | None] = (),
    ) -> None:
        self._source = source
        self._pixels = pixels

    def __len__(self) -> int:
        return len(self._source)

    def __getitem__(self, number: SupportsIndex) -> dict[str, Any]:
        number = number.__index__()
        if not 0 <= number < len(self):
            raise IndexError(f"image {number} of {len(self)}")
        example, pixels = self._source[number], self.pixels(number)
        return {
            "image": example["image"] if pixels is None else images_lib.to_ppm(pixels),
            "captions": _decoded(example),
            "path": example["path"].decode(),
        }

    def captions(self, number: int) -> list[str]:
        """Returns an image's captions; its pixels are left where they are."""
        return _decoded(self._source[number])

    def pixels(self, number: int) -> UInt8[np.ndarray, "H W 3"] | None:
        """Returns an image's stored pixels, not to be written to; None: it is stored encoded."""
        return self._pixels[number] if self._pixels else None


def _decoded(example: Mapping[str, Any]) -> list[str]:
    return [caption.decode() for caption in example["captions"]]


@dataclasses.dataclass(frozen=True, eq=False)
class Split:
    """One split of a prepared data set: N images, P pairs of an image and a caption.

    The arrays are those of `index-<split>.npz`; `tokenizer_fingerprint` is of the tokenizer that
    counted `text_lengths`, or empty; and `tokens[pair]`, int32[L], are its tokens of that pair's
    caption, uncut, or `tokens` is empty, too. `parts` are the fingerprints of the splits that
    `join` made it of, in their order, or empty. `stored_sizes` holds, by directory, the height and
    width of images that are stored as pixels.
    """

    images: Images
    caption_counts: Int32[np.ndarray, "N"]
    identities: Int32[np.ndarray, "N"]
    text_lengths: Int32[np.ndarray, "P"]
    tokenizer_fingerprint: str
    name: str
    directory: str
    tokens: Sequence[Int32[np.ndarray, "_"]] = ()
    parts: tuple[str, ...] = ()
    stored_sizes: Mapping[str, tuple[int, int]] = dataclasses.field(default_factory=dict)

    @functools.cached_property
    def pairs(self) -> tuple[Int32[np.ndarray, "P"], Int32[np.ndarray, "P"]]:
        """Returns each pair's image, and its caption's number within that image."""
        image = np.repeat(np.arange(len(self.caption_counts)), self.caption_counts)
        first = np.cumsum(self.caption_counts) - self.caption_counts
        caption = np.arange(len(image)) - first[image]
        return image.astype(np.int32), caption.astype(np.int32)

    @property
    def identity_count(self) -> int:
        """Number of identities, whose labels are 0, 1, ... ."""
        return int(self.identities.max(initial=-1)) + 1

    @functools.cached_property
    def fingerprint(self) -> str:
        """Changes with the number or order of images, captions, identities or parts."""
        digest = hashlib.sha256()
        for values in (self.caption_counts, self.identities, self.text_lengths):
            digest.update(values.tobytes() + b"|")
        for part in self.parts:
            digest.update(part.encode())
        return digest.hexdigest()[:16]

    def require_size(self, height: int, width: int) -> None:
        """Checks that images can become of this size without being resized a second time.

        Raises:
            DataError: lists each data set that stores pixels of another size.
        """
        faults = [
            f"{directory} stores pixels of {size[0]}x{size[1]}, and the model takes "
            f"{height}x{width}; prepare it again with --config.pixels={height},{width}, or without "
            "--config.pixels, which keeps images as they came"
            for directory, size in self.stored_sizes.items()
            if size != (height, width)
        ]
        if faults:
            raise DataError("; ".join(faults))


# ---------------------------------------------------------------------------- writing


def check_images(
    records: Sequence[Record],
    source: epath.PathLike,
    read: Callable[[Record], bytes] | None = None,
    spread: Spread = map,
) -> list[Problem]:
    """Decodes every image once, a bounded number at a time.

    Args:
        records: whose images are decoded.
        source: directory that the images are relative to.
        read: returns a record's encoded image; None: it is a file below `source`.
        spread: calls what decodes a part of the records.

    Returns:
        A fault for each image that cannot be decoded; a notice for each whose bytes are those of
        an earlier record in another split or under another identity.
    """
    starts = range(0, len(records), _CHECKED_AT_ONCE)
    parts = (("", records[start : start + _CHECKED_AT_ONCE]) for start in starts)
    checked = spread(functools.partial(_check, epath.Path(source), read), parts)
    problems: list[Problem] = []
    first: dict[bytes, Record] = {}
    digests = itertools.chain.from_iterable(checked)
    for record, (digest, fault) in zip(records, digests, strict=True):
        about = functools.partial(Problem, record.position, record.image, file=record.file)
        if fault:
            problems.append(about(what=fault, kind="fault"))
            continue
        twin = first.setdefault(digest, record)
        if twin.split != record.split:
            what = SAME_BYTES_SPLIT
        elif twin.identity != record.identity:
            what = SAME_BYTES_IDENTITY
        else:
            continue
        problems.append(about(what=what, kind="notice"))
    return problems


def set_aside(problems: Sequence[Problem], workdir: epath.PathLike, *, stop: bool) -> set[int]:
    """Writes all problems to `problems.jsonl`, and decides about the faulty records.

    Returns:
        The positions of the records to leave out; `quarantine.jsonl` lists them.

    Raises:
        DataError: there is a fault and `stop` is set.
    """
    workdir = epath.Path(workdir)
    workdir.mkdir(parents=True, exist_ok=True)
    for name in (PROBLEMS, QUARANTINE):
        (workdir / name).unlink(missing_ok=True)
    if problems:
        write_json_lines(workdir / PROBLEMS, map(dataclasses.asdict, problems))
    faults = [problem for problem in problems if problem.kind == "fault"]
    if not faults:
        return set()
    found = _describe(faults, workdir / PROBLEMS)
    if stop:
        raise DataError(
            f"{found}; mend them, or leave these records out with "
            "--config.on_bad_record=quarantine --overwrite"
        )
    rows: dict[int, dict[str, Any]] = {}
    for fault in faults:
        place = {"file": fault.file} if fault.file else {}
        row = {**place, "record": fault.record, "image": fault.image, "faults": []}
        rows.setdefault(fault.record, row)["faults"].append(fault.what)
    write_json_lines(workdir / QUARANTINE, rows.values())
    logging.getLogger(__name__).warning("left out: %s", found)
    return set(rows)


def write(
    records: Sequence[Record],
    *,
    source: epath.PathLike,
    name: str,
    workdir: epath.PathLike,
    tokenizer: str,
    quarantined: int,
    notices: Mapping[str, int],
    read: Callable[[Record], bytes] | None = None,
    spread: Spread = map,
    pixels: tuple[int, int] | None = None,
) -> None:
    """Writes a prepared data set to `workdir`, replacing one that is there.

    Args:
        records: at least one; the order of each split's images is theirs.
        source: directory that the records' images are relative to.
        name: the data set's name, in snake case.
        workdir: directory to write to; other files in it are left alone.
        tokenizer: whose caption lengths are stored; empty: none are.
        quarantined: number of records that were left out, for the manifest.
        notices: number of notices of each kind, for the manifest.
        read: as in `check_images`.
        spread: calls what writes a shard.
        pixels: height and width to which images are resized and stored decoded; None: they are
            stored as they came.

    Raises:
        DataError: there is no record, the tokenizer cannot be loaded, or an image cannot be read.
    """
    if not records:
        raise DataError(f"{source}: no record is left to write; mend the annotation file")
    splits = {split: [record for record in records if record.split == split] for split in SPLITS}
    write_splits(
        {split: members for split, members in splits.items() if members},
        read=read or functools.partial(read_image, source=source),
        name=name,
        workdir=workdir,
        tokenizer=tokenizer,
        quarantined=quarantined,
        notices=notices,
        spread=spread,
        pixels=pixels,
    )


def write_splits(
    splits: Mapping[str, Iterable[Record]],
    *,
    read: Callable[[Record], bytes],
    name: str,
    workdir: epath.PathLike,
    tokenizer: str,
    quarantined: int,
    notices: Mapping[str, int],
    spread: Spread = map,
    pixels: tuple[int, int] | None = None,
) -> None:
    """Writes records as they come, so that there may be more of them than fit into memory.

    Of each record only its identity, if it has one, and the lengths of its captions are kept for
    longer than its shard needs.

    Args:
        splits: the records of each split, at least one, in order; iterated once.
        read: returns a record's encoded image.
        name: as in `write`, as is all that follows.
        workdir: as in `write`.
        tokenizer: as in `write`.
        quarantined: as in `write`.
        notices: as in `write`.
        spread: as in `write`.
        pixels: as in `write`.

    Raises:
        DataError: the tokenizer cannot be loaded, or as `read`.
    """
    workdir = epath.Path(workdir)
    counter = tokenization.load(tokenizer) if tokenizer else None
    _remove_previous(workdir)
    indices = {split: _Index(split, workdir, counter) for split in splits}
    templates = {split: _template(name, split, workdir) for split in splits}
    shards: dict[str, list[tuple[int, int]]] = {split: [] for split in splits}
    parts = _shards(splits, templates, indices)
    for split, count, size in spread(functools.partial(_write_shard, read, pixels), parts):
        shards[split].append((count, size))
    _write_info(name, workdir, _features(pixels), templates, shards)
    counts = {split: index.write() for split, index in indices.items()}
    manifest = {
        "name": name,
        "format": FORMAT,
        "splits": counts,
        "pixels": pixels,
        "tokenizer": tokenizer,
        "tokenizer_fingerprint": counter.fingerprint if counter else "",
        "quarantined": quarantined,
        "notices": dict(notices),
    }
    write_json(workdir / MANIFEST, manifest)


def _describe(faults: Sequence[Problem], listing: epath.Path) -> str:
    """Returns one printable line on the faults."""
    first = faults[0]
    missing = missing_by_folder(faults)
    folders = ", ".join(f"{folder} {count}" for folder, count in missing.items())
    return printable(
        f"{len(faults)} fault(s) in {len({fault.record for fault in faults})} record(s)"
        + (f" (missing images: {folders})" if missing else "")
        + f"; first: record {first.record}{f' of {first.file}' if first.file else ''}"
        + f"{f' ({first.image})' if first.image else ''}: "
        + f"{first.what}; all are listed in {listing}"
    )


def _check(
    source: epath.Path, read: Callable[[Record], bytes] | None, part: Part
) -> list[tuple[bytes, str]]:
    """Returns `_digest` of each record of the part."""
    _, records = part
    with concurrent.futures.ThreadPoolExecutor(os.cpu_count()) as pool:
        return list(pool.map(lambda record: _digest(record, source, read), records))


def _digest(
    record: Record, source: epath.Path, read: Callable[[Record], bytes] | None
) -> tuple[bytes, str]:
    """Returns a digest of the image's bytes, and why it cannot be decoded or an empty string."""
    where = record.image if read else str(source / record.image)
    try:
        content = read(record) if read else (source / record.image).read_bytes()
        images_lib.decode(content, where)
    except OSError as error:
        return b"", f"{where}: cannot be read ({error.strerror or error})"
    except DataError as error:
        return b"", str(error)
    return hashlib.blake2b(content, digest_size=16).digest(), ""


def _remove_previous(workdir: epath.Path) -> None:
    workdir.mkdir(parents=True, exist_ok=True)
    # The manifest goes first: a directory that loses files must not look complete meanwhile.
    patterns = (MANIFEST, _TFDS_INFO, "features.json", "*.array_record-*")
    patterns += ("index-*.npz", "tokens-*.bin", "identities-*.json")
    for path in itertools.chain.from_iterable(map(workdir.glob, patterns)):
        path.unlink()
    if (workdir / SPREAD_FOLDER).exists():
        (workdir / SPREAD_FOLDER).rmtree()


class _Serializer(tfds.core.ExampleSerializer):
    """Gives equal examples equal bytes: else the order of their features varies with the run."""

    def serialize_example(self, example: Any) -> bytes:
        """Returns the bytes of a tf.train.Example."""
        return self.get_tf_example(example).SerializeToString(deterministic=True)


def _features(pixels: tuple[int, int] | None) -> tfds.features.FeaturesDict:
    encoded = {} if pixels else {"image": tfds.features.Image(shape=(None, None, 3))}
    return tfds.features.FeaturesDict(
        {
            **encoded,
            "captions": tfds.features.Sequence(tfds.features.Text()),
            "identity": tfds.features.Text(),
            "record": np.int64,
            "path": tfds.features.Text(),
        }
    )


def _template(name: str, split: str, workdir: epath.Path) -> tfds.core.ShardedFileTemplate:
    return tfds.core.ShardedFileTemplate(
        data_dir=workdir,
        dataset_name=name,
        split=split,
        filetype_suffix="array_record",
        # The number of shards is not known before the last record has come.
        template="{DATASET}-{SPLIT}.{FILEFORMAT}-{SHARD_INDEX}",
    )


def _shards(
    splits: Mapping[str, Iterable[Record]],
    templates: Mapping[str, tfds.core.ShardedFileTemplate],
    indices: Mapping[str, "_Index"],
) -> Iterator[Part]:
    """Yields the shards with their records, which are then in the indices too."""
    for split, records in splits.items():
        rest = iter(records)
        for number in itertools.count():
            members = list(itertools.islice(rest, _EXAMPLES_PER_SHARD))
            if not members:
                break
            indices[split].extend(members)
            path = templates[split].sharded_filepath(shard_index=number, num_shards=None)
            # Others may work in another directory.
            yield os.fspath(absolute(path)), members


def _write_shard(
    read: Callable[[Record], bytes], pixels: tuple[int, int] | None, part: Part
) -> tuple[str, int, int]:
    """Writes a shard, whole or not at all; returns its split, number of examples and of bytes.

    TFDS's builders would shuffle the examples, and its writers for Beam take each through a shuffle
    to learn where shards end, which the records' order tells here.
    """
    path, records = part
    features, sizes = _features(pixels), []
    serializer = _Serializer(features.get_serialized_info())

    def examples() -> Iterator[bytes]:
        for record in records:
            encoded = {} if pixels else {"image": io.BytesIO(read(record))}
            example = {
                **encoded,
                "captions": list(record.captions),
                "identity": record.identity,
                "record": record.position,
                "path": record.image,
            }
            content = serializer.serialize_example(features.encode_example(example))
            sizes.append(len(content))
            yield content

    if pixels:
        loaded = (images_lib.load(read(record), record.image, *pixels) for record in records)
        write_stream(f"{path}{_PIXELS}", (image.tobytes() for image in loaded))
    with tfds.core.utils.incomplete_file(epath.Path(path)) as aside:
        writer = array_record_module.ArrayRecordWriter(os.fspath(aside), _ARRAY_RECORD)
        for content in examples():
            writer.write(content)
        writer.close()
    return records[0].split, len(records), sum(sizes)


def _write_info(
    name: str,
    workdir: epath.Path,
    features: tfds.features.FeaturesDict,
    templates: Mapping[str, tfds.core.ShardedFileTemplate],
    shards: Mapping[str, Sequence[tuple[int, int]]],
) -> None:
    """Writes what TFDS reads first, of the number of examples and of bytes of each shard."""
    identity = tfds.core.dataset_info.DatasetIdentity(
        name=name,
        version=tfds.core.Version(f"{FORMAT}.0.0"),
        data_dir=os.fspath(workdir),
        module_name=__name__,
    )
    info = tfds.core.DatasetInfo(builder=identity, features=features)
    info.set_file_format(tfds.core.FileFormat.ARRAY_RECORD)
    splits = [
        tfds.core.SplitInfo(
            name=split,
            shard_lengths=[count for count, _ in sizes],
            num_bytes=sum(size for _, size in sizes),
            filename_template=templates[split],
        )
        for split, sizes in shards.items()
    ]
    info.set_splits(tfds.core.SplitDict(splits))
    info.write_to_directory(workdir)


def read_image(record: Record, source: epath.PathLike) -> bytes:
    """Returns a record's encoded image, whose path is relative to `source`.

    Raises:
        DataError: it cannot be read.
    """
    path = epath.Path(source) / record.image
    try:
        return path.read_bytes()
    except OSError as error:
        raise DataError(
            f"record {record.position}: {path} cannot be read ({error.strerror or error}); "
            "prepare again"
        ) from None


class _Index:
    """Gathers what `index-<split>.npz` and `identities-<split>.json` hold.

    Of the tokens there may be too many to gather: those are written as they come.
    """

    def __init__(self, split: str, workdir: epath.Path, tokenizer: tokenization.Tokenizer | None):
        self._split, self._workdir, self._tokenizer = split, workdir, tokenizer
        self._counts, self._identities, self._lengths = (array.array("i") for _ in range(3))
        self._names: dict[str, int] = {}  # in the order in which they come
        self._nameless = 0

    def extend(self, records: Sequence[Record]) -> None:
        """Takes the next records in."""
        for record in records:
            self._counts.append(len(record.captions))
            if record.identity:
                self._identities.append(self._names.setdefault(record.identity, len(self._names)))
            else:  # Nothing is kept of who has no name: there may be millions.
                self._nameless += 1
                self._identities.append(-self._nameless)
        if self._tokenizer:
            captions = [caption for record in records for caption in record.captions]
            tokens = self._tokenizer.encode_whole(captions)
            self._lengths.extend(map(len, tokens))
            with (self._workdir / _TOKENS.format(self._split)).open("ab") as file:
                file.write(np.concatenate(tokens).astype(_TOKEN).tobytes())

    def write(self) -> dict[str, int]:
        """Writes the files; returns the split's counts for the manifest."""
        names = sorted(self._names, key=natural_order)
        # By the name's place of arrival; nameless -1, -2, ... come after all names.
        label = np.empty(len(names) + self._nameless, np.int32)
        label[[self._names[name] for name in names]] = np.arange(len(names))
        label[len(names) :] = np.arange(len(label) - 1, len(names) - 1, -1)
        content = io.BytesIO()
        np.savez(
            content,
            caption_counts=np.asarray(self._counts, np.int32),
            identities=label[np.asarray(self._identities, np.int32)],
            text_lengths=np.asarray(self._lengths, np.int32),
        )
        write_bytes(self._workdir / f"index-{self._split}.npz", content.getvalue())
        write_json(self._workdir / f"identities-{self._split}.json", names)
        return {
            "images": len(self._counts),
            "captions": sum(self._counts),
            "identities": len(label),
        }


# ---------------------------------------------------------------------------- reading


def _is_count(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0


def _is_counts(value: Any, names: Iterable[str] = ()) -> bool:
    return (
        isinstance(value, dict) and set(names) <= set(value) and all(map(_is_count, value.values()))
    )


# Of what readers take from the manifest, what it must be.
_MANIFEST: Mapping[str, Callable[[Any], bool]] = {
    "name": lambda value: isinstance(value, str),
    "splits": lambda value: (
        isinstance(value, dict) and all(_is_counts(each, _COUNTED) for each in value.values())
    ),
    "pixels": lambda value: (
        value is None
        or (isinstance(value, list) and len(value) == 2 and all(map(_is_count, value)))
    ),
    "tokenizer_fingerprint": lambda value: isinstance(value, str),
    "quarantined": _is_count,
    "notices": _is_counts,
}


def read_manifest(directory: epath.PathLike) -> dict[str, Any]:
    """Returns the manifest of a prepared data set.

    Raises:
        DataError: the directory cannot be reached, holds none, or one of another format or damaged.
    """
    directory = epath.Path(directory)
    require_reachable(directory)
    if not (directory / MANIFEST).is_file():
        _refuse_tfrecord(directory)
        raise DataError(
            f"{directory} is no prepared data set, or a preparation that did not finish "
            f"(no {MANIFEST}); run: python launch/prepare.py --config=configs/prepare.py:DATASET "
            f"--config.source=DIR --workdir={directory}"
        )
    manifest = read_json(directory / MANIFEST)
    found = manifest.get("format") if isinstance(manifest, dict) else None
    if found != FORMAT:
        raise DataError(
            f"{directory / MANIFEST}: format {found!r}, this version reads {FORMAT}; prepare again"
        )
    wrong = [name for name, is_right in _MANIFEST.items() if not is_right(manifest.get(name))]
    if wrong:
        raise _damaged(directory, f"{MANIFEST} lacks a valid {wrong[0]!r}")
    return manifest


def summary(manifest: Mapping[str, Any]) -> str:
    """Returns the counts of a manifest as a small table."""
    lines = [f"{manifest['name']:<12} {'images':>10} {'captions':>10} {'identities':>10}"]
    lines += [
        f"{split:<12} {counts['images']:>10} {counts['captions']:>10} {counts['identities']:>10}"
        for split, counts in manifest["splits"].items()
    ]
    if manifest["pixels"]:
        lines.append("images stored as pixels: {}x{}".format(*manifest["pixels"]))
    lines.append(f"records left out: {manifest['quarantined']}")
    lines += [f"noticed {count} times: {what}" for what, count in manifest["notices"].items()]
    return "\n".join(lines)


def open_split(directory: epath.PathLike, split: str) -> Split:
    """Opens a split of a prepared data set; images are read when asked for.

    Raises:
        DataError: the directory is no prepared data set, is damaged, holds TFRecord files, or has
            no such split.
    """
    directory = epath.Path(directory)
    manifest = read_manifest(directory)
    _refuse_tfrecord(directory)
    if split not in manifest["splits"]:
        raise DataError(f"{directory} has no split {split!r}{nearest(split, manifest['splits'])}")
    counts, stored = manifest["splits"][split], manifest["pixels"]
    images = _open_images(directory, split, tuple(stored) if stored else None)
    arrays = _read_index(directory / f"index-{split}.npz")
    pairs = int(arrays["caption_counts"].sum())
    found = {
        "images": {len(images), len(arrays["caption_counts"]), len(arrays["identities"])},
        "captions": {pairs, len(arrays["text_lengths"]) or pairs},
    }
    for what, numbers in found.items():
        if numbers != {counts[what]}:
            raise _damaged(
                directory, f"split {split!r} has {sorted(numbers)} {what}, {counts[what]}"
            )
    return Split(
        images=images,
        **arrays,
        tokenizer_fingerprint=manifest["tokenizer_fingerprint"],
        name=split,
        directory=os.fspath(directory),
        tokens=_open_tokens(directory / _TOKENS.format(split), arrays["text_lengths"]),
        stored_sizes={os.fspath(directory): tuple(stored)} if stored else {},
    )


def join(splits: Sequence[Split]) -> Split:
    """Puts splits of several data sets one after the other, so that one run trains on all of them.

    Identities of different parts stay different: the labels of each part begin where those of the
    one before end. Images are read from the parts when asked for, and their paths begin with the
    part's directory. Lengths and tokens of captions are kept where one tokenizer made those of all
    parts. One split alone is returned as it is.

    Raises:
        DataError: there is no split.
    """
    if not splits:
        raise DataError("there is no data set to train on; name the directory of one at least")
    if len(splits) == 1:
        return splits[0]
    firsts = itertools.accumulate((part.identity_count for part in splits[:-1]), initial=0)
    fingerprints = [part.tokenizer_fingerprint for part in splits]
    agree = len(set(fingerprints)) == 1
    lengths = [part.text_lengths for part in splits] if agree else [np.zeros(0, np.int32)]
    examples = [_Within(part.directory, part.images._source) for part in splits]
    pixels = [part.images._pixels or _Encoded(len(part.images)) for part in splits]
    return Split(
        images=Images(_Joined(examples), _Joined(pixels)),
        caption_counts=np.concatenate([part.caption_counts for part in splits]),
        identities=np.concatenate(
            [part.identities + np.int32(first) for part, first in zip(splits, firsts, strict=True)]
        ),
        text_lengths=np.concatenate(lengths),
        tokenizer_fingerprint=fingerprints[0]
        if agree
        else " + ".join(name or "none" for name in fingerprints),
        name=" + ".join(dict.fromkeys(part.name for part in splits)),
        directory=" + ".join(part.directory for part in splits),
        tokens=_Joined([part.tokens for part in splits]) if agree else (),
        parts=tuple(part.fingerprint for part in splits),
        stored_sizes=dict(ChainMap(*(part.stored_sizes for part in splits))),
    )


def repeated(splits: Sequence[Split], times: Sequence[int]) -> Int32[np.ndarray, "E"]:
    """Returns the pairs of an epoch of `join(splits)` in which some parts come several times.

    Args:
        splits: the parts.
        times: how often each of them comes; as many.
    """
    counts = [len(part.pairs[0]) for part in splits]
    firsts = itertools.accumulate(counts[:-1], initial=0)
    parts = [
        np.tile(np.arange(first, first + count, dtype=np.int32), often)
        for first, count, often in zip(firsts, counts, times, strict=True)
    ]
    return np.concatenate(parts)


@dataclasses.dataclass(frozen=True)
class _Examples(Sequence[Mapping[str, Any]]):
    """What readers need of each serialised tf.train.Example, for a fraction of TFDS's time."""

    serialized: Sequence[bytes]

    def __len__(self) -> int:
        return len(self.serialized)

    def __getitem__(self, number: int) -> dict[str, Any]:
        example = tf_example_pb2.Example.FromString(self.serialized[number])
        values = {name: each.bytes_list.value for name, each in example.features.feature.items()}
        return {
            "image": values["image"][0] if "image" in values else b"",
            "captions": list(values["captions"]),
            "path": values["path"][0],
        }


@dataclasses.dataclass(frozen=True)
class _Within(Sequence[Mapping[str, Any]]):
    """Stored examples, whose paths begin with a directory's."""

    directory: str
    source: Sequence[Mapping[str, Any]]

    def __len__(self) -> int:
        return len(self.source)

    def __getitem__(self, number: int) -> dict[str, Any]:
        example = self.source[number]
        return {**example, "path": f"{self.directory}/".encode() + example["path"]}


@dataclasses.dataclass(frozen=True)
class _Encoded(Sequence[None]):
    """The pixels of images that are stored encoded."""

    count: int

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, number: int) -> None:
        return None


@dataclasses.dataclass(frozen=True)
class _Mapped(Sequence[Any]):
    """A file of arrays of one shape, mapped into memory; pickled, it is a name.

    In an object store nothing can be mapped: it is read, whole.
    """

    path: str
    dtype: Any
    shape: tuple[int, ...]

    @functools.cached_property
    def array(self) -> np.ndarray:
        """The file as one array, whose first axis numbers its entries."""
        if is_remote(self.path):
            values = np.frombuffer(epath.Path(self.path).read_bytes(), self.dtype)
        else:
            values = np.asarray(np.memmap(self.path, self.dtype, "r"))
        return values.reshape(-1, *self.shape)

    def __len__(self) -> int:
        return len(self.array)

    def __getitem__(self, number: int) -> Any:
        return self.array[number]

    def __reduce__(self) -> tuple[Any, ...]:
        return _Mapped, (self.path, self.dtype, self.shape)


@dataclasses.dataclass(frozen=True, eq=False)
class _Tokens(Sequence[np.ndarray]):
    """The tokens of each caption, of which `lengths` says how many follow one another."""

    all: _Mapped
    lengths: Int32[np.ndarray, "P"]

    @functools.cached_property
    def _ends(self) -> np.ndarray:
        return np.cumsum(self.lengths, dtype=np.int64)

    def __len__(self) -> int:
        return len(self.lengths)

    def __getitem__(self, pair: int) -> np.ndarray:
        end = self._ends[pair]
        return self.all.array[end - self.lengths[pair] : end]


class _Joined(Sequence[Any]):
    """The entries of several sequences, one after the other."""

    def __init__(self, parts: Sequence[Sequence[Any]]) -> None:
        self._parts = parts
        self._ends = list(itertools.accumulate(map(len, parts)))

    def __len__(self) -> int:
        return self._ends[-1]

    def __getitem__(self, number: int) -> Any:
        part = bisect.bisect_right(self._ends, number)
        entries = self._parts[part]
        return entries[number - self._ends[part] + len(entries)]


def read_identities(directory: epath.PathLike, split: str) -> list[str]:
    """Returns the names of a split's identities by label; higher labels are nameless.

    Raises:
        DataError: the file is missing or damaged.
    """
    path = epath.Path(directory) / f"identities-{split}.json"
    names = read_json(path)
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise _damaged(path.parent, f"{path.name} is no list of names")
    return names


def _open_images(directory: epath.Path, split: str, size: tuple[int, int] | None) -> Images:
    try:
        builder = tfds.builder_from_directory(os.fspath(directory))
        shards = builder.info.splits[split]
        missing = [path for path in shards.filepaths if not path.is_file()]
        if missing:
            raise _damaged(directory, f"{missing[0].name} is missing")
        stored = builder.as_data_source(
            split, deserialize_method=tfds.decode.DeserializeMethod.RAW_BYTES
        )
        if size is None:
            return Images(_Examples(stored))
        if is_remote(directory):
            raise DataError(f"{directory} stores pixels; copy it to a disk, where they are mapped")
        counts = zip(shards.filepaths, shards.shard_lengths, strict=True)
        pixels = [_map(f"{path}{_PIXELS}", np.uint8, (*size, 3), count) for path, count in counts]
        return Images(_Examples(stored), _Joined(pixels))
    except (OSError, KeyError, ValueError) as error:
        raise _damaged(directory, str(error)) from error


def _read_index(path: epath.Path) -> dict[str, np.ndarray]:
    names = ("caption_counts", "identities", "text_lengths")
    try:
        with np.load(io.BytesIO(path.read_bytes())) as arrays:
            return {name: arrays[name] for name in names}
    except Exception as error:  # numpy raises many kinds on damaged bytes.
        raise _damaged(path.parent, f"{path.name}: {error}") from error


def _open_tokens(path: epath.Path, lengths: np.ndarray) -> Sequence[np.ndarray]:
    total = int(lengths.sum())
    return _Tokens(_map(path, _TOKEN, (), total), lengths) if total else ()


def _map(path: epath.PathLike, dtype: Any, shape: tuple[int, ...], count: int) -> _Mapped:
    """Maps a file that must hold so many entries."""
    path = epath.Path(path)
    needed = np.dtype(dtype).itemsize * math.prod(shape) * count
    found = path.stat().length if path.is_file() else "no"
    if found != needed:
        raise _damaged(path.parent, f"{path.name} has {found} bytes, not {needed}")
    return _Mapped(os.fspath(path), dtype, shape)


def _damaged(directory: epath.Path, why: str) -> DataError:
    return DataError(f"{directory} is damaged ({why}); prepare it again with --overwrite")


def _refuse_tfrecord(directory: epath.Path) -> None:
    if not (directory / _TFDS_INFO).is_file():
        return
    info = read_json(directory / _TFDS_INFO)
    # TFDS leaves the field out for its own default.
    found = info.get("fileFormat", "tfrecord") if isinstance(info, dict) else None
    if found != "array_record":
        raise DataError(
            f"{directory} holds {found} files, which cannot be read at random; write it again as "
            "array_record with launch/prepare.py"
        )
