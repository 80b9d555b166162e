"""Prepared data sets: written whole, read at random, refused when damaged."""

import dataclasses
import io
import json
import pickle
import shutil
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import tensorflow_datasets as tfds
from array_record.python.array_record_module import ArrayRecordReader
from PIL import Image
from tokenizers import Tokenizer, models, pre_tokenizers, processors

from unipt_jax.core.errors import DataError
from unipt_jax.data import builders
from unipt_jax.data.annotations import Problem, Record

VOCABULARY = ["[PAD]", "[CLS]", "[SEP]", "[MASK]", "[UNK]", "a", "man", "in", "red", "caf\u00e9"]

# Identities in no order; "2" sorts before "10".
RECORDS = [
    Record("x/0.jpg", ("a man", "a man in red"), "toy/10", "train", 0),
    Record("x/1.png", ("red",), "toy/2", "train", 1),
    Record("x/2.jpg", ("a caf\u00e9", "red", "in"), "toy/900000", "train", 3),
    Record("x/3.jpg", ("man in red",), "toy/10", "train", 4),
    Record("x/4.jpg", ("a",), "toy/7", "test", 5),
]


@pytest.fixture(scope="module")
def source(tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("source")
    (root / "x").mkdir()
    for number, record in enumerate(RECORDS):
        Image.new("RGB", (4 + number, 6), (50 * number, 0, 0)).save(root / record.image)
    return root


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory) -> str:
    """A directory with a tokenizer of whole words between [CLS] and [SEP]."""
    path = tmp_path_factory.mktemp("tokenizer")
    ids = {word: number for number, word in enumerate(VOCABULARY)}
    specials = [("[CLS]", ids["[CLS]"]), ("[SEP]", ids["[SEP]"])]
    backend = Tokenizer(models.WordLevel(ids, unk_token="[UNK]"))
    backend.add_special_tokens(VOCABULARY[:5])
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    backend.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=specials
    )
    backend.save(str(path / "tokenizer.json"))
    return str(path)


def write(
    source: Path, workdir: Path, tokenizer: str = "", records: list[Record] = RECORDS
) -> Path:
    builders.write(
        records,
        source=source,
        name="toy",
        workdir=workdir,
        tokenizer=tokenizer,
        quarantined=2,
        notices={"odd": 3},
    )
    return workdir


@pytest.fixture(scope="module")
def prepared(source, tokenizer, tmp_path_factory) -> Path:
    return write(source, tmp_path_factory.mktemp("prepared"), tokenizer)


def test_manifest(prepared, tokenizer):
    manifest = json.loads((prepared / "manifest.json").read_text())
    fingerprint = manifest.pop("tokenizer_fingerprint")
    assert (
        fingerprint and fingerprint == builders.open_split(prepared, "train").tokenizer_fingerprint
    )
    assert manifest == {
        "name": "toy",
        "format": builders.FORMAT,
        "splits": {
            "train": {"images": 4, "captions": 7, "identities": 3},
            "test": {"images": 1, "captions": 1, "identities": 1},
        },
        "pixels": None,
        "tokenizer": tokenizer,
        "quarantined": 2,
        "notices": {"odd": 3},
    }
    assert "left out: 2" in builders.summary(builders.read_manifest(prepared))


def test_index(prepared):
    """Labels are contiguous from 0, by the natural order of the names, and kept (P06, P100)."""
    train = builders.open_split(prepared, "train")
    assert train.caption_counts.tolist() == [2, 1, 3, 1]
    assert train.identities.tolist() == [1, 0, 2, 1]
    assert train.text_lengths.tolist() == [4, 6, 3, 4, 3, 3, 5]
    names = json.loads((prepared / "identities-train.json").read_text())
    assert names == ["toy/2", "toy/10", "toy/900000"] and train.identity_count == 3
    assert builders.read_identities(prepared, "train") == names
    image, caption = train.pairs
    assert image.tolist() == [0, 0, 1, 2, 2, 2, 3]
    assert caption.tolist() == [0, 1, 0, 0, 1, 2, 0]
    arrays = (train.caption_counts, train.identities, train.text_lengths, image, caption)
    assert {array.dtype for array in arrays} == {np.dtype(np.int32)}
    assert builders.open_split(prepared, "test").identities.tolist() == [0]


def test_images_keep_their_bytes_and_order(prepared, source):
    train = builders.open_split(prepared, "train")
    assert len(train.images) == 4
    for number, record in enumerate(RECORDS[:4]):
        assert train.images[np.int32(number)] == {
            "image": (source / record.image).read_bytes(),
            "captions": list(record.captions),
            "path": record.image,
        }
    for number in (-1, 4):
        with pytest.raises(IndexError):
            train.images[number]


def test_split_travels_to_processes_and_threads(prepared):
    train = pickle.loads(pickle.dumps(builders.open_split(prepared, "train")))
    with ThreadPoolExecutor(8) as pool:
        paths = list(pool.map(lambda number: train.images[number % 4]["path"], range(400)))
    assert paths == [RECORDS[number % 4].image for number in range(400)]
    assert train.name == "train" and train.directory == str(prepared)


def test_tfds_reads_it_without_tensorflow(prepared):
    data = tfds.builder_from_directory(str(prepared)).as_data_source("test")
    assert (data[0]["identity"], data[0]["record"]) == (b"toy/7", 5)
    assert data[0]["image"].shape == (6, 8, 3)
    assert "tensorflow" not in sys.modules


def test_equal_data_sets_have_equal_bytes(prepared):
    """Features are written in the order of their names: else a process's hashes decide."""
    (shard,) = prepared.glob("*-test.array_record-*")
    reader = ArrayRecordReader(str(shard))
    [record] = reader.read_all()
    reader.close()
    places = [record.index(name) for name in (b"captions", b"identity", b"image", b"path")]
    assert places == sorted(places)


def test_who_has_no_name_is_no_one_elses(source, tmp_path):
    """Labels of names first, by name; then one for each record without."""
    names = ("toy/10", "", "toy/2", "", "toy/10")
    records = [
        dataclasses.replace(record, identity=name, split="train")
        for record, name in zip(RECORDS, names, strict=True)
    ]
    train = builders.open_split(write(source, tmp_path, records=records), "train")
    assert train.identities.tolist() == [1, 2, 0, 3, 1]
    assert builders.read_identities(tmp_path, "train") == ["toy/2", "toy/10"]
    assert builders.read_manifest(tmp_path)["splits"]["train"]["identities"] == 4


def test_without_tokenizer(source, tmp_path):
    train = builders.open_split(write(source, tmp_path), "train")
    assert train.text_lengths.shape == (0,) and train.tokenizer_fingerprint == ""


def test_many_shards_keep_the_order(source, tmp_path, monkeypatch):
    monkeypatch.setattr(builders, "_EXAMPLES_PER_SHARD", 3)
    train = builders.open_split(write(source, tmp_path), "train")
    assert [train.images[number]["path"] for number in range(4)] == [
        record.image for record in RECORDS[:4]
    ]
    assert len(list(tmp_path.glob("toy-train.array_record-*"))) == 2


def test_moved_and_rewritten(source, prepared, tmp_path):
    """A data set may move; writing anew leaves nothing of the previous one."""
    moved = tmp_path / "moved"
    shutil.copytree(prepared, moved)
    assert builders.open_split(moved, "train").images[1]["captions"] == ["red"]
    write(source, moved, records=RECORDS[4:])
    assert sorted(path.name for path in moved.iterdir()) == [
        "dataset_info.json",
        "features.json",
        "identities-test.json",
        "index-test.npz",
        "manifest.json",
        "toy-test.array_record-00000",
    ]
    with pytest.raises(DataError, match=r"no split 'train'.*test"):
        builders.open_split(moved, "train")


def test_interrupted_write_is_not_taken_for_complete(source, prepared, tmp_path):
    """An image that vanishes meanwhile: the old manifest must not vouch for new files."""
    directory = tmp_path / "set"
    shutil.copytree(prepared, directory)
    records = [*RECORDS, Record("x/gone.jpg", ("a",), "toy/8", "test", 9)]
    with pytest.raises(DataError, match=r"record 9: .*gone\.jpg"):
        write(source, directory, records=records)
    with pytest.raises(DataError, match=r"launch/prepare\.py"):
        builders.open_split(directory, "train")


def test_no_record_left(source, tmp_path):
    with pytest.raises(DataError, match="no record"):
        write(source, tmp_path, records=[])


@pytest.mark.parametrize("split", ["val", "tset", "Train", ""])
def test_unknown_split_lists_those_there(prepared, split):
    """A data set without val says so (P103)."""
    with pytest.raises(DataError, match=f"no split {split!r}.*(train|test)"):
        builders.open_split(prepared, split)


@pytest.mark.parametrize("directory", ["nowhere", "."])
def test_other_directories_are_refused(tmp_path, directory):
    with pytest.raises(DataError, match=r"run: python launch/prepare\.py --config="):
        builders.open_split(tmp_path / directory, "train")


@pytest.mark.parametrize("info", [{"fileFormat": "tfrecord"}, {}, {"fileFormat": "riegeli"}])
@pytest.mark.parametrize("with_manifest", [True, False])
def test_other_file_formats_are_refused(prepared, tmp_path, info, with_manifest):
    """What was found, what is needed, and what to run (P34)."""
    if with_manifest:
        shutil.copy(prepared / "manifest.json", tmp_path)
    (tmp_path / "dataset_info.json").write_text(json.dumps(info))
    with pytest.raises(
        DataError, match=f"{info.get('fileFormat', 'tfrecord')} files.*array_record"
    ):
        builders.open_split(tmp_path, "train")


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("index-train.npz", None),
        ("index-train.npz", b""),
        ("index-train.npz", b"PK\3\4 no archive"),
        ("toy-train.array_record-00000", None),
        ("dataset_info.json", None),
        ("features.json", None),
    ],
)
def test_damaged_data_sets_are_named(prepared, tmp_path, name, content):
    directory = tmp_path / "set"
    shutil.copytree(prepared, directory)
    (directory / name).unlink()
    if content is not None:
        (directory / name).write_bytes(content)
    with pytest.raises(DataError, match="damaged"):
        builders.open_split(directory, "train")


@pytest.mark.parametrize(
    ("key", "value"), [("caption_counts", [2, 1, 3]), ("caption_counts", [2, 1, 3, 2]),
                       ("identities", [0]), ("text_lengths", [4, 6])],
)  # fmt: skip
def test_index_must_agree_with_the_manifest(prepared, tmp_path, key, value):
    directory = tmp_path / "set"
    shutil.copytree(prepared, directory)
    with np.load(prepared / "index-train.npz") as arrays:
        changed = {**arrays, key: np.asarray(value, np.int32)}
    np.savez(directory / "index-train.npz", **changed)
    with pytest.raises(DataError, match="damaged"):
        builders.open_split(directory, "train")


def test_another_format_version(prepared, tmp_path):
    manifest = json.loads((prepared / "manifest.json").read_text())
    (tmp_path / "manifest.json").write_text(json.dumps({**manifest, "format": 99}))
    with pytest.raises(DataError, match="format 99, this version reads 2"):
        builders.open_split(tmp_path, "train")


@pytest.mark.parametrize(
    ("name", "value"),
    [("name", None), ("splits", []), ("splits", {"train": 3}), ("splits", {"train": {"images": 4}}),
     ("splits", {"train": {"images": "4", "captions": 7, "identities": 3}}), ("pixels", 3),
     ("pixels", [96]), ("tokenizer_fingerprint", 1), ("quarantined", None), ("quarantined", True),
     ("quarantined", -1), ("notices", {"odd": "3"}), ("notices", None)],
)  # fmt: skip
def test_a_manifest_that_somebody_changed(prepared, tmp_path, name, value):
    manifest = json.loads((prepared / "manifest.json").read_text())
    (tmp_path / "manifest.json").write_text(json.dumps({**manifest, name: value}))
    with pytest.raises(DataError, match=f"is damaged .*manifest.json lacks a valid '{name}'"):
        builders.read_manifest(tmp_path)
    del manifest[name]
    if name != "pixels":  # None says that there are none.
        (tmp_path / "manifest.json").write_text(json.dumps(manifest))
        with pytest.raises(DataError, match=f"lacks a valid '{name}'"):
            builders.open_split(tmp_path, "train")


@pytest.mark.parametrize("content", ["{}", "[1]", "null"])
def test_names_of_identities_that_somebody_changed(tmp_path, content):
    (tmp_path / "identities-train.json").write_text(content)
    with pytest.raises(DataError, match=r"damaged .identities-train\.json is no list of names"):
        builders.read_identities(tmp_path, "train")


@pytest.fixture(scope="module")
def other(source, tokenizer, tmp_path_factory) -> Path:
    """A second data set: three images of two identities, one of them without a name."""
    records = [
        Record("x/4.jpg", ("a", "man"), "toy/5", "train", 0),
        Record("x/0.jpg", ("red",), "", "train", 1),
        Record("x/3.jpg", ("in red",), "toy/5", "train", 2),
    ]
    return write(source, tmp_path_factory.mktemp("other"), tokenizer, records)


def test_joined_splits_stand_one_after_the_other(prepared, other):
    """The 5 of one data set is not the 5 of another (P09)."""
    first, second = builders.open_split(prepared, "train"), builders.open_split(other, "train")
    both = builders.join([first, second])
    assert both.caption_counts.tolist() == [2, 1, 3, 1, 2, 1, 1]
    assert both.identities.tolist() == [1, 0, 2, 1, 3, 4, 3]
    assert both.text_lengths.tolist() == [4, 6, 3, 4, 3, 3, 5, 3, 3, 3, 4]
    assert both.tokenizer_fingerprint == first.tokenizer_fingerprint
    assert both.pairs[0].tolist() == [0, 0, 1, 2, 2, 2, 3, 4, 4, 5, 6]
    arrays = (both.caption_counts, both.identities, both.text_lengths, *both.pairs)
    assert {array.dtype for array in arrays} == {np.dtype(np.int32)}
    assert (both.name, both.directory) == ("train", f"{prepared} + {other}")
    assert len(both.images) == 7
    for number in range(7):
        part, at, where = (first, number, prepared) if number < 4 else (second, number - 4, other)
        entry = part.images[at]
        assert both.images[np.int32(number)] == entry | {"path": f"{where}/{entry['path']}"}
    for number in (-1, 7):
        with pytest.raises(IndexError):
            both.images[number]


def test_joined_splits_travel_to_processes_and_read_when_asked(prepared, other):
    parts = [builders.open_split(directory, "train") for directory in (prepared, other)]
    both = pickle.loads(pickle.dumps(builders.join(parts)))
    assert both.images[4]["captions"] == ["a", "man"]

    reads = []

    class Counting(list):
        def __getitem__(self, number):
            reads.append(number)
            return super().__getitem__(number)

    counting = [
        dataclasses.replace(part, images=builders.Images(Counting([{"path": b""}] * 100)))
        for part in parts
    ]
    reads.clear()
    builders.join(counting)
    assert len(reads) < 20  # The type checker of the tests looks at a few of the 200.


def test_one_split_joined_is_itself_and_none_is_an_error(prepared):
    split = builders.open_split(prepared, "train")
    assert builders.join([split]) is split
    with pytest.raises(DataError, match="no data set"):
        builders.join([])


def test_three_splits_of_two_names_with_an_empty_one(prepared):
    train, test = builders.open_split(prepared, "train"), builders.open_split(prepared, "test")
    nothing = np.zeros(0, np.int32)
    empty = dataclasses.replace(
        train,
        images=builders.Images([]),
        caption_counts=nothing,
        identities=nothing,
        text_lengths=nothing,
    )
    joined = builders.join([test, empty, train])
    assert joined.identities.tolist() == [0, 2, 1, 3, 2]
    assert joined.name == "test + train"
    assert [joined.images[number]["path"] for number in range(2)] == [
        f"{prepared}/x/4.jpg",
        f"{prepared}/x/0.jpg",
    ]


def test_fingerprint_tells_parts_and_their_order(prepared):
    """Also of parts whose arrays put together are the same: an image is one person's, all over."""

    def part(images):
        return builders.Split(
            images=builders.Images([{"path": b""}] * images),
            caption_counts=np.ones(images, np.int32),
            identities=np.arange(images, dtype=np.int32),
            text_lengths=np.zeros(0, np.int32),
            tokenizer_fingerprint="",
            name="train",
            directory=f"/{images}",
        )

    one, two, three = part(1), part(2), part(3)
    joins = [[one, two], [two, one], [three], [one, one, one], [one, builders.join([one, one])]]
    fingerprints = [builders.join(parts).fingerprint for parts in joins]
    assert len(set(fingerprints)) == len(joins)
    assert builders.join([one, two]).fingerprint == fingerprints[0]


@pytest.mark.parametrize("fingerprints", [("x", "y"), ("x", "")])
def test_lengths_of_two_tokenizers_are_not_mixed(prepared, fingerprints):
    split = builders.open_split(prepared, "train")
    parts = [dataclasses.replace(split, tokenizer_fingerprint=name) for name in fingerprints]
    joined = builders.join(parts)
    assert joined.text_lengths.shape == (0,)
    assert joined.tokenizer_fingerprint == f"x + {fingerprints[1] or 'none'}"


def jpeg(red: int) -> bytes:
    content = io.BytesIO()
    Image.new("RGB", (16, 32), (red, 0, 0)).save(content, "JPEG")
    return content.getvalue()


def test_every_undecodable_image_is_a_fault(tmp_path, monkeypatch):
    """P52: all of them, with file and record, over several chunks."""
    monkeypatch.setattr(builders, "_CHECKED_AT_ONCE", 2)
    contents = [jpeg(10), jpeg(20)[:-100], b"", b"text", jpeg(30), None]
    records = []
    for number, content in enumerate(contents):
        records.append(Record(f"{number}.jpg", ("a",), f"toy/{number}", "train", number + 10))
        if content is not None:
            (tmp_path / f"{number}.jpg").write_bytes(content)
    problems = builders.check_images(records, tmp_path)
    assert [(problem.record, problem.image, problem.kind) for problem in problems] == [
        (number + 10, f"{number}.jpg", "fault") for number in (1, 2, 3, 5)
    ]
    assert all(str(tmp_path / problem.image) in problem.what for problem in problems)


def test_identical_bytes_are_noticed(tmp_path):
    """The same picture in train and test, or as two persons (P60, P87)."""
    for name in "abcd":
        (tmp_path / f"{name}.jpg").write_bytes(jpeg(10))
    records = [
        Record("a.jpg", ("x",), "toy/1", "train", 0),
        Record("b.jpg", ("x",), "toy/1", "train", 1),
        Record("c.jpg", ("x",), "toy/2", "train", 2),
        Record("d.jpg", ("x",), "toy/3", "test", 3),
    ]
    assert builders.check_images(records, tmp_path) == [
        Problem(2, "c.jpg", builders.SAME_BYTES_IDENTITY, "notice"),
        Problem(3, "d.jpg", builders.SAME_BYTES_SPLIT, "notice"),
    ]


def test_set_aside(tmp_path):
    """Every problem is written down; faulty records stop, or are left out once each."""
    problems = [
        Problem(4, "imgs/Market/b.png", "image file is missing", "fault"),
        Problem(4, "imgs/Market/b.png", "caption 0 is empty", "fault"),
        Problem(5, "a.png", "odd", "notice"),
        Problem(6, "", "is 3, not an object", "fault"),
    ]
    with pytest.raises(DataError) as caught:
        builders.set_aside(problems, tmp_path, stop=True)
    for part in ("3 fault(s) in 2 record(s)", "imgs/Market 1", "record 4 (imgs/Market/b.png)",
                 "problems.jsonl", "--config.on_bad_record=quarantine"):  # fmt: skip
        assert part in str(caught.value)
    assert not (tmp_path / "quarantine.jsonl").exists()
    assert builders.set_aside(problems, tmp_path, stop=False) == {4, 6}
    lines = (tmp_path / "problems.jsonl").read_text().splitlines()
    assert [json.loads(line)["record"] for line in lines] == [4, 4, 5, 6]
    lines = (tmp_path / "quarantine.jsonl").read_text().splitlines()
    assert [json.loads(line) for line in lines] == [
        {
            "record": 4,
            "image": "imgs/Market/b.png",
            "faults": ["image file is missing", "caption 0 is empty"],
        },
        {"record": 6, "image": "", "faults": ["is 3, not an object"]},
    ]
    assert builders.set_aside(problems[2:3], tmp_path, stop=True) == set()
    assert not (tmp_path / "quarantine.jsonl").exists()


def test_names_cannot_break_the_line(tmp_path, caplog):
    """Neither that of the refusal nor that of the log; the listing keeps them as they are (P59)."""
    name = "a\nb\x1b[2J\u2028\udce9.png"
    problems = [Problem(0, name, "image file is missing", "fault", "c\rd.json")]
    with pytest.raises(DataError) as caught:
        builders.set_aside(problems, tmp_path, stop=True)
    assert str(caught.value).isprintable() and "\\x1b[2J\\u2028\\udce9.png" in str(caught.value)
    builders.set_aside(problems, tmp_path, stop=False)
    assert all(record.getMessage().isprintable() for record in caplog.records) and caplog.records
    for file in ("problems.jsonl", "quarantine.jsonl"):
        (line,) = (tmp_path / file).read_bytes().splitlines()
        assert json.loads(line)["image"] == name


def write_pixels(source, workdir):
    builders.write(
        RECORDS,
        source=source,
        name="toy",
        workdir=workdir,
        tokenizer="examples/tokenizer",
        quarantined=0,
        notices={},
        pixels=(96, 32),
    )


def test_stored_pixels_are_told_and_mapped(source, tmp_path, monkeypatch):
    """Over the bounds of shards, too; TFDS reads the rest."""
    monkeypatch.setattr(builders, "_EXAMPLES_PER_SHARD", 3)
    write_pixels(source, tmp_path)
    manifest = builders.read_manifest(tmp_path)
    assert manifest["pixels"] == [96, 32]
    assert "stored as pixels: 96x32" in builders.summary(manifest)
    data = tfds.builder_from_directory(str(tmp_path)).as_data_source("train")
    train = builders.open_split(tmp_path, "train")
    assert len(list(tmp_path.glob("toy-train*.pixels"))) == 2
    for number, record in enumerate(RECORDS[:4]):
        picture = Image.open(source / record.image)
        expected = np.asarray(picture.resize((32, 96), Image.Resampling.BICUBIC))
        np.testing.assert_array_equal(train.images.pixels(number), expected)
        encoded = train.images[number]["image"]
        np.testing.assert_array_equal(np.asarray(Image.open(io.BytesIO(encoded))), expected)
        assert data[number]["path"] == record.image.encode()
    assert train.stored_sizes == {str(tmp_path): (96, 32)}
    assert train.images[0]["captions"] == ["a man", "a man in red"]
    train.require_size(96, 32)
    with pytest.raises(DataError, match=r"96x32, .* 384x128; prepare it .*pixels=384,128"):
        train.require_size(384, 128)


@pytest.mark.parametrize("kind", ["toy-train*.pixels", "tokens-train.bin"])
@pytest.mark.parametrize("fault", ["cut", "gone"])
def test_mapped_files_that_are_damaged_are_named(source, tmp_path, kind, fault):
    """Before the first of their values is asked for."""
    write_pixels(source, tmp_path)
    (path,) = tmp_path.glob(kind)
    path.write_bytes(path.read_bytes()[:-1])
    if fault == "gone":
        path.unlink()
    found = r"\d+" if fault == "cut" else "no"
    with pytest.raises(DataError, match=rf"{path.name} has {found} bytes, not \d+\); prepare it"):
        builders.open_split(tmp_path, "train")


def test_in_an_object_store_tokens_are_read_and_pixels_refused(
    prepared, source, tmp_path, monkeypatch
):
    """There is nothing to map there."""
    write_pixels(source, tmp_path)
    want = [tokens.tolist() for tokens in builders.open_split(prepared, "train").tokens]
    monkeypatch.setattr(builders, "is_remote", lambda path: True)
    monkeypatch.setattr(np, "memmap", None)
    assert [tokens.tolist() for tokens in builders.open_split(prepared, "train").tokens] == want
    with pytest.raises(DataError, match=f"{tmp_path} stores pixels; copy it to a disk"):
        builders.open_split(tmp_path, "train")


def test_a_pickled_split_holds_no_pixels_or_tokens(source, tmp_path):
    """They are mapped where it arrives: a worker's copy of a large data set is small."""
    write_pixels(source, tmp_path)
    train = builders.open_split(tmp_path, "train")
    pixels, tokens = np.array(train.images.pixels(1)), train.tokens[1].tolist()
    content = pickle.dumps(train)
    assert len(content) < pixels.nbytes / 2
    again = pickle.loads(content)
    np.testing.assert_array_equal(again.images.pixels(1), pixels)
    assert again.tokens[1].tolist() == tokens


def test_the_tokens_of_each_caption_are_stored_whole(source, tmp_path):
    write_pixels(source, tmp_path)
    train = builders.open_split(tmp_path, "train")
    backend = Tokenizer.from_file("examples/tokenizer/tokenizer.json")
    captions = [text for record in RECORDS if record.split == "train" for text in record.captions]
    assert len(train.tokens) == len(captions)
    for tokens, caption in zip(train.tokens, captions, strict=True):
        assert tokens.tolist() == backend.encode(caption).ids
