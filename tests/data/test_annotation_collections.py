"""Collections of pseudo texts: their files, their quirks, their faults, and their size."""

import importlib.util
import json
import pickle
import random
import subprocess
import sys
from collections.abc import Callable
from io import BytesIO
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from PIL import Image

from unipt_jax.config import command_line
from unipt_jax.core.errors import DataError
from unipt_jax.data import annotations, builders
from unipt_jax.data.annotations import Problem, Record, image_reader, read

REPOSITORY = Path(__file__).parents[2]
MLLM_FILES = ("Td-qwen.json", "Td-shikra.json", "Ts-qwen.json", "Ts-shikra.json")
LABEL = [1, 0, -1] * 9


def write_json(path: Path, content: object) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content), encoding="utf-8")


def write_arrow(path: Path, columns: dict[str, Any]) -> None:
    """As the released code writes them: one table in Arrow's file format."""
    table = pa.table(columns)
    with pa.OSFile(str(path), "wb") as file, pa.ipc.new_file(file, table.schema) as writer:
        writer.write_table(table)


def touch(root: Path, *files: str) -> None:
    """Makes empty images; reading annotations never opens those."""
    for file in files:
        (root / file).parent.mkdir(parents=True, exist_ok=True)
        (root / file).touch()


def faults(problems: list[Problem]) -> list[tuple[int, str]]:
    return [(problem.record, problem.what) for problem in problems if problem.kind == "fault"]


def notices(problems: list[Problem]) -> list[tuple[int, str]]:
    return [(problem.record, problem.what) for problem in problems if problem.kind == "notice"]


# ---------------------------------------------------------------------------- one layout, one entry

# For each layout: writes entries of (image path, caption or captions), whose images are there only
# if the test puts them there; Arrow files hold theirs.
Writer = Callable[[Path, list[tuple[Any, Any]]], None]


def write_luperson_t(root: Path, entries: list[tuple[Any, Any]]) -> None:
    captions = [caption if isinstance(caption, list) else [caption] for _, caption in entries]
    columns = {"image": [b"x"] * len(entries), "caption": captions}
    columns |= {"image_id": [image for image, _ in entries]}
    write_arrow(root / "LUPerson_train.arrow", {**columns, "split": ["train"] * len(entries)})


def write_luperson_mllm(root: Path, entries: list[tuple[Any, Any]]) -> None:
    for file in MLLM_FILES:
        write_json(root / file, dict(entries))


def write_mals(root: Path, entries: list[tuple[Any, Any]]) -> None:
    rows = [
        {"image": image, "caption": caption, "image_id": "c_g_a_0_0", "label": LABEL}
        for image, caption in entries
    ]
    write_json(root / "gene_attrs/g_c_g_a_0_attrs.json", rows)


def write_synth_pedes(root: Path, entries: list[tuple[Any, Any]]) -> None:
    rows = [
        {"id": 7, "file_path": image, "captions": caption, "prompt_caption": ["A man."]}
        for image, caption in entries
    ]
    write_json(root / "synthpedes_dataset.json", rows)


WRITERS: dict[str, Writer] = {
    "luperson_t": write_luperson_t,
    "luperson_mllm": write_luperson_mllm,
    "mals": write_mals,
    "synth_pedes": write_synth_pedes,
}
each_layout = pytest.mark.parametrize("dataset", WRITERS)
each_json_layout = pytest.mark.parametrize(
    "dataset", [dataset for dataset in WRITERS if dataset != "luperson_t"]
)


@each_layout
def test_a_clean_entry_is_read(tmp_path, dataset):
    """Training is what such collections are for, unless a record says otherwise."""
    touch(tmp_path, "Part1/7/1.jpg")
    WRITERS[dataset](tmp_path, [("Part1/7/1.jpg", ["a man"] if dataset != "mals" else "a man")])
    (record,), problems = read(dataset, tmp_path)
    person = "7" if dataset == "synth_pedes" else "image:Part1/7/1.jpg"
    times = 4 if dataset == "luperson_mllm" else 1
    assert record.image == "Part1/7/1.jpg" and record.captions == ("a man",) * times
    assert (record.identity, record.split) == (f"{dataset}/{person}", "train")
    assert record.position == 0 and problems == []


@each_layout
@pytest.mark.parametrize(
    ("caption", "said"),
    [
        (" \n", "caption 0 is empty"),
        ([], "empty list of captions"),
        (["a man", ""], "caption 1 is empty"),
        (["a man", None], "caption 1 is None"),
    ],
)
def test_faults_of_captions(tmp_path, dataset, caption, said):
    touch(tmp_path, "a.jpg")
    WRITERS[dataset](tmp_path, [("a.jpg", caption)])
    records, problems = read(dataset, tmp_path)
    assert records == [] and {problem.image for problem in problems} == {"a.jpg"}
    assert faults(problems) and all(said in what for _, what in faults(problems))


@each_json_layout
@pytest.mark.parametrize("caption", [None, 3, True, {"0": "a man"}, ["a man", 4], ["a", ["b"]]])
def test_captions_of_wrong_types(tmp_path, dataset, caption):
    touch(tmp_path, "a.jpg")
    WRITERS[dataset](tmp_path, [("a.jpg", caption)])
    records, problems = read(dataset, tmp_path)
    assert records == [] and faults(problems)


@each_layout
def test_odd_captions_are_noticed(tmp_path, dataset):
    touch(tmp_path, "a.jpg")
    WRITERS[dataset](tmp_path, [("a.jpg", ["a man\uff0c a bag"])])
    records, problems = read(dataset, tmp_path)
    assert len(records) == 1 and faults(problems) == []
    assert {what for _, what in notices(problems)} == {annotations.CJK_CAPTION}


@each_layout
@pytest.mark.parametrize(
    "path", ["../secret.jpg", "a/../../secret.jpg", "/etc/secret.jpg", "..\\secret.jpg",
             "C:\\secret.jpg", "..", "", " ", "a\0.jpg"],
)  # fmt: skip
def test_paths_never_leave_the_source(tmp_path, dataset, path):
    """Nor where the folder of a path does not count, as in LUPerson-MLLM (P59)."""
    touch(tmp_path, "secret.jpg", "etc/secret.jpg")
    source = tmp_path / "source"
    source.mkdir()
    WRITERS[dataset](source, [(path, ["a man"])])
    records, problems = read(dataset, source)
    assert records == [] and {record for record, _ in faults(problems)} >= {0}
    assert path != ".." or all("leaves the source" in what for _, what in faults(problems))


@each_json_layout
def test_a_missing_image_is_named_and_counted_by_folder(tmp_path, dataset):
    touch(tmp_path, "Part1/here.jpg")
    WRITERS[dataset](tmp_path, [("Part1/here.jpg", "a man"), ("Part2/gone.jpg", "a man")])
    records, problems = read(dataset, tmp_path)
    assert [record.image for record in records] == ["Part1/here.jpg"]
    assert {what for _, what in faults(problems)} == {annotations.MISSING_IMAGE}
    folder = "LUPerson-MLLM" if dataset == "luperson_mllm" else "Part2"
    times = 4 if dataset == "luperson_mllm" else 1
    assert annotations.missing_by_folder(problems) == {folder: times}


@each_json_layout
def test_backslashes_are_noticed(tmp_path, dataset):
    """Written on Windows (P88)."""
    touch(tmp_path, "Part1/a.jpg")
    WRITERS[dataset](tmp_path, [("Part1\\a.jpg", "a man")])
    (record,), problems = read(dataset, tmp_path)
    assert record.image == "Part1/a.jpg"
    assert {what for _, what in notices(problems)} == {annotations.BACKSLASHES}


@each_layout
def test_an_image_listed_again_is_joined(tmp_path, dataset):
    touch(tmp_path, "a.jpg")
    again = "./a.jpg"  # Another spelling: JSON objects do not repeat a key.
    WRITERS[dataset](tmp_path, [("a.jpg", ["x"]), (again, ["y"])])
    (record,), problems = read(dataset, tmp_path)
    times = 4 if dataset == "luperson_mllm" else 1
    assert record.captions == ("x", "y") * times
    positions = [2 * file + 1 for file in range(times)]
    assert notices(problems) == [(position, annotations.JOINED_IMAGE) for position in positions]


@each_layout
def test_files_that_are_not_there_are_named(tmp_path, dataset):
    with pytest.raises(DataError, match=r"has no .*it holds no \.(json|arrow) file.*annotations="):
        read(dataset, tmp_path)


@each_layout
def test_files_may_be_named(tmp_path, dataset):
    touch(tmp_path, "a.jpg")
    WRITERS[dataset](tmp_path, [("a.jpg", "a man")])
    for number, path in enumerate(sorted([*tmp_path.rglob("*.json"), *tmp_path.glob("*.arrow")])):
        path.rename(tmp_path / f"mine[{number}]")
    assert len(read(dataset, tmp_path, "mine[[]*")[0]) == 1
    assert len(read(dataset, tmp_path, "mine[0]")[0]) == 1
    for pattern in ("other*", "/mine*", "**mine"):
        with pytest.raises(DataError, match="has no "):
            read(dataset, tmp_path, pattern)


@each_json_layout
@pytest.mark.parametrize(
    ("content", "said"),
    [("[]", "empty list|JSON list"), ("{}", "JSON object|empty object"), ("3", "JSON int"),
     ("null", "JSON NoneType"), ("[1,]", "not JSON at line 1"), ("", "not JSON at line 1")],
)  # fmt: skip
def test_a_damaged_file_is_named(tmp_path, dataset, content, said):
    touch(tmp_path, "a.jpg")
    WRITERS[dataset](tmp_path, [("a.jpg", "a man")])
    path = sorted(tmp_path.rglob("*.json"))[-1]
    path.write_text(content)
    with pytest.raises(DataError, match=f"{path.name}.*({said})"):
        read(dataset, tmp_path)


@each_json_layout
def test_encodings(tmp_path, dataset):
    """UTF-8 with or without a mark; of others, the byte is named (P58)."""
    touch(tmp_path, "caf\u00e9.jpg")
    WRITERS[dataset](tmp_path, [("caf\u00e9.jpg", "a caf\u00e9 man")])
    path = sorted(tmp_path.rglob("*.json"))[-1]
    text = json.dumps(json.loads(path.read_text("utf-8")), ensure_ascii=False)
    path.write_bytes(text.encode())
    plain = read(dataset, tmp_path)
    path.write_bytes(text.encode("utf-8-sig"))
    assert read(dataset, tmp_path) == plain and len(plain[0]) == 1
    first = text.index("\u00e9")
    places = {"utf-16": 0, "utf-32": 0, "cp1252": first, "utf-16-be": 2 * first + 1}
    for encoding, byte in places.items():
        path.write_bytes(text.encode(encoding))
        with pytest.raises(DataError, match=f"{path.name}: byte {byte} is not UTF-8"):
            read(dataset, tmp_path)


# ---------------------------------------------------------------------------- LUPerson-MLLM


def write_views(root: Path, *views: dict[str, Any]) -> None:
    for file, view in zip(MLLM_FILES, views, strict=True):
        write_json(root / file, view)


@pytest.mark.parametrize("folder", ["LUPerson-MLLM/", "", "images/part1/"])
def test_captions_are_joined_by_file_name(tmp_path, folder):
    """Each file was written on another machine, and names images as that one did."""
    touch(tmp_path, f"{folder}1.jpg", f"{folder}2.jpg")
    prefixes = ("images/part1/", "/data0/someone/", "../LUPerson/", "C:\\LUPerson\\")
    if folder == "images/part1/":  # Found by the path itself, so all must have it.
        prefixes = (folder,) * 4
    views = [
        {f"{prefix}2.jpg": f"second {number}", f"{prefix}1.jpg": f"first {number}"}
        for number, prefix in enumerate(prefixes)
    ]
    write_views(tmp_path, *views)
    records, problems = read("luperson_mllm", tmp_path)
    assert [(record.image, record.captions, record.position) for record in records] == [
        (f"{folder}2.jpg", tuple(f"second {number}" for number in range(4)), 0),
        (f"{folder}1.jpg", tuple(f"first {number}" for number in range(4)), 1),
    ]
    assert {record.identity for record in records} == {
        f"luperson_mllm/image:{folder}{number}.jpg" for number in (1, 2)
    }
    assert faults(problems) == []


def test_images_in_only_some_of_the_files_are_counted(tmp_path):
    touch(tmp_path, *(f"{name}.jpg" for name in "abc"))
    write_views(
        tmp_path,
        {"a.jpg": "1", "b.jpg": "1"},
        {"a.jpg": "2", "b.jpg": "2"},
        {"a.jpg": "3", "b.jpg": "3", "c.jpg": "3"},
        {"a.jpg": "4"},
    )
    records, problems = read("luperson_mllm", tmp_path)
    assert [len(record.captions) for record in records] == [4, 3, 1]
    assert notices(problems) == [
        (1, "image has captions in 3 of 4 files"),
        (6, "image has captions in 1 of 4 files"),
    ]
    assert faults(problems) == []


def test_no_caption_of_a_path_that_stands_twice_is_lost(tmp_path):
    """JSON readers would keep the last one (P60)."""
    touch(tmp_path, "a.jpg")
    write_views(tmp_path, {"a.jpg": "1"}, {"a.jpg": "2"}, {"a.jpg": "3"}, {"a.jpg": "4"})
    (tmp_path / MLLM_FILES[1]).write_text('{"a.jpg": "2", "a.jpg": "again"}')
    (record,), problems = read("luperson_mllm", tmp_path)
    assert record.captions == ("1", "2", "again", "3", "4")
    assert notices(problems) == [(2, annotations.JOINED_IMAGE)] and faults(problems) == []


@pytest.mark.parametrize(
    ("caption", "leak"),
    [
        ("With [hair description], the woman walks.", "'description]'"),
        ("A [person/woman/man] in [clothing description]", "'description]'"),
        ("A woman <hair> in a coat", "'<'"),
        ("A woman in a coat.</s>", "'<'"),
        ("A woman in a [red] coat; no description", None),
        ("A woman > 30 years", None),
    ],
)
def test_leaked_templates_are_faults_of_their_caption(tmp_path, caption, leak):
    """The image keeps its other captions; the file of the faulty one is named."""
    touch(tmp_path, "a.jpg")
    write_views(tmp_path, {"a.jpg": "1"}, {"a.jpg": "2"}, {"a.jpg": caption}, {"a.jpg": "4"})
    (record,), problems = read("luperson_mllm", tmp_path)
    if leak is None:
        assert record.captions == ("1", "2", caption, "4") and problems == []
        return
    assert record.captions == ("1", "2", "4")
    ((position, what),) = faults(problems)
    assert position == 2 and leak in what and "template" in what
    assert [problem.file for problem in problems if problem.kind == "fault"] == [MLLM_FILES[2]]
    assert notices(problems) == [(0, "image has captions in 3 of 4 files")]


def test_other_collections_may_hold_such_signs(tmp_path):
    touch(tmp_path, "a.jpg")
    write_mals(tmp_path, [("a.jpg", "a man <3")])
    assert read("mals", tmp_path)[1] == []


@pytest.mark.parametrize("names", [MLLM_FILES[:3], (*MLLM_FILES, "other.json")])
def test_files_that_are_too_few_or_too_many_are_named(tmp_path, names):
    """A download with a file missing must not train on three captions in silence."""
    touch(tmp_path, "a.jpg")
    for name in names:
        write_json(tmp_path / "caption" / name, {"a.jpg": "a man"})
    with pytest.raises(DataError, match=f"4 files .* has {len(names)}: Td-qwen.*annotations="):
        read("luperson_mllm", tmp_path)
    (record,), problems = read("luperson_mllm", tmp_path, "caption/T*-qwen.json")
    assert record.captions == ("a man",) * 2 and problems == []


# ---------------------------------------------------------------------------- MALS


def write_shards(root: Path, folder: str, shards: dict[int, list[str]]) -> None:
    for number, images in shards.items():
        rows = [{"image": image, "caption": f"in {number}"} for image in images]
        write_json(root / folder / f"g_c_g_a_{number}_attrs.json", rows)


@pytest.mark.parametrize("folder", ["gene_attrs", ""])
def test_shards_are_one_list_in_natural_order(tmp_path, folder):
    images = {10: ["d.jpg"], 2: ["c.jpg", "gone.jpg"], 0: ["a.jpg", "b.jpg"]}
    touch(tmp_path, *(f"{name}.jpg" for name in "abcd"))
    write_shards(tmp_path, folder, images)
    records, problems = read("mals", tmp_path)
    shard = str(Path(folder) / "g_c_g_a_{}_attrs.json")
    assert [(record.image, record.position, record.file) for record in records] == [
        ("a.jpg", 0, shard.format(0)),
        ("b.jpg", 1, shard.format(0)),
        ("c.jpg", 2, shard.format(2)),
        ("d.jpg", 4, shard.format(10)),
    ]
    assert problems == [Problem(3, "gone.jpg", annotations.MISSING_IMAGE, "fault", shard.format(2))]


def test_an_image_of_two_shards_is_joined(tmp_path):
    touch(tmp_path, "a.jpg")
    write_shards(tmp_path, "gene_attrs", {0: ["a.jpg"], 1: ["a.jpg"]})
    (record,), (problem,) = read("mals", tmp_path)
    assert record.captions == ("in 0", "in 1")
    assert (problem.record, problem.what) == (1, annotations.JOINED_IMAGE)
    assert problem.file == "gene_attrs/g_c_g_a_1_attrs.json"


@pytest.mark.parametrize("change", [{}, {"image_id": None}, {"label": "?"}])
def test_fields_that_are_not_used_are_not_judged(tmp_path, change):
    touch(tmp_path, "a.jpg")
    write_json(tmp_path / "g_0_attrs.json", [{"image": "a.jpg", "caption": "a man", **change}])
    assert len(read("mals", tmp_path)[0]) == 1 and read("mals", tmp_path)[1] == []


@pytest.mark.parametrize(
    ("row", "said"),
    [
        ({"image": "a.jpg"}, "no field 'caption'"),
        ({"caption": "a man"}, "no field 'image'"),
        ({"image": 3, "caption": "a man"}, "image path is 3"),
        ({"image": "a.jpg", "caption": "a man", "split": "tset"}, "'split' is 'tset'"),
        ("a.jpg", "not an object"),
    ],
)
def test_faulty_rows_of_a_shard(tmp_path, row, said):
    touch(tmp_path, "a.jpg", "b.jpg")
    write_shards(tmp_path, "gene_attrs", {0: ["b.jpg"]})
    write_json(tmp_path / "gene_attrs/g_i_g_a_attrs.json", [row])
    records, problems = read("mals", tmp_path)
    assert [record.image for record in records] == ["b.jpg"]
    ((position, what),) = faults(problems)
    assert position == 1 and said in what
    assert problems[0].file == "gene_attrs/g_i_g_a_attrs.json"


def test_a_records_own_split_counts(tmp_path):
    touch(tmp_path, "a.jpg", "b.jpg")
    rows = [
        {"image": "a.jpg", "caption": "x", "split": "Valid"},
        {"image": "b.jpg", "caption": "y"},
    ]
    write_json(tmp_path / "g_0_attrs.json", rows)
    assert [record.split for record in read("mals", tmp_path)[0]] == ["val", "train"]
    assert [record.split for record in read("mals", tmp_path, validation=1.0)[0]] == ["val", "val"]


# ---------------------------------------------------------------------------- SYNTH-PEDES


def synth(image: str, identity: Any, *captions: str) -> dict[str, Any]:
    return {
        "id": identity,
        "file_path": image,
        "attributes": ["man,black hair,black shirt,pink shorts,black shoes,unknown"],
        "captions": list(captions),
        "prompt_caption": ["A man with black hair."],
    }


def test_synth_pedes_knows_persons(tmp_path):
    """Ids are identities; the sentence made from attributes alone is no caption."""
    images = ("Part1/7/0.jpg", "Part1/7/1.jpg", "Part11/8/0.jpg")
    touch(tmp_path, *images)
    rows = [synth(images[0], 7, "x", "y"), synth(images[1], 7, "z"), synth(images[2], 8, "x")]
    write_json(tmp_path / "synthpedes_dataset.json", rows)
    records, problems = read("synth_pedes", tmp_path)
    assert records == [
        Record(images[0], ("x", "y"), "synth_pedes/7", "train", 0),
        Record(images[1], ("z",), "synth_pedes/7", "train", 1),
        Record(images[2], ("x",), "synth_pedes/8", "train", 2),
    ]
    assert problems == []  # Texts written by a model repeat themselves.


@pytest.mark.parametrize("identity", [None, True, 1.5, " ", [7], {}, ...])
def test_a_person_must_be_named(tmp_path, identity):
    touch(tmp_path, "a.jpg")
    row = synth("a.jpg", identity, "x") if identity is not ... else synth("a.jpg", 1, "x")
    if identity is ...:
        del row["id"]
    write_json(tmp_path / "synthpedes_dataset.json", [row])
    records, problems = read("synth_pedes", tmp_path)
    assert records == [] and "'id'" in faults(problems)[0][1]


@pytest.mark.parametrize(("persons", "more"), [(3, None), (7, "and 2 more")])
def test_an_image_of_several_persons_is_left_out(tmp_path, persons, more):
    touch(tmp_path, "a.jpg", "b.jpg")
    rows = [synth("a.jpg", number, "x") for number in range(persons)]
    write_json(tmp_path / "synthpedes_dataset.json", [*rows, synth("b.jpg", 0, "x")])
    records, problems = read("synth_pedes", tmp_path)
    assert [record.image for record in records] == ["b.jpg"]
    assert [record for record, _ in faults(problems)] == list(range(persons))
    assert "synth_pedes/0, synth_pedes/1, synth_pedes/2" in problems[0].what
    assert ("more" in problems[0].what) == bool(more) and (more or "") in problems[0].what


# ---------------------------------------------------------------------------- LUPerson-T

TABLE = {
    "image": [b"one", b"two"],
    "caption": [["x", "y"], ["z"]],
    "image_id": ["1.jpg", "2.jpg"],
    "split": ["train", "test"],
}


def table(**changes: Any) -> dict[str, Any]:
    """`TABLE` with other columns; None takes one away."""
    return {name: column for name, column in {**TABLE, **changes}.items() if column is not None}


def test_arrow_files_are_read_and_so_are_their_images(tmp_path):
    """`LUPerson_<split>.arrow`, with the released code's four splits."""
    write_arrow(tmp_path / "LUPerson_train.arrow", table(split=["train"] * 2))
    rest = {"image": [b"three"], "caption": [["w"]], "image_id": ["3.jpg"], "split": ["restval"]}
    write_arrow(tmp_path / "LUPerson_restval.arrow", rest)
    records, problems = read("luperson_t", tmp_path)
    assert records == [
        Record("3.jpg", ("w",), "luperson_t/image:3.jpg", "train", 0, "LUPerson_restval.arrow"),
        Record("1.jpg", ("x", "y"), "luperson_t/image:1.jpg", "train", 1, "LUPerson_train.arrow"),
        Record("2.jpg", ("z",), "luperson_t/image:2.jpg", "train", 2, "LUPerson_train.arrow"),
    ]
    assert problems == []
    image = image_reader("luperson_t", tmp_path)
    assert [image(record) for record in records[::-1]] == [b"two", b"one", b"three"]
    assert image_reader("mals", tmp_path) is None  # Its images are files.


@pytest.mark.parametrize(
    "columns",
    [
        table(image=None, image_bytes=TABLE["image"]),
        table(caption=None, captions=TABLE["caption"]),
        table(image=pa.array(TABLE["image"], pa.large_binary())),
        table(caption=pa.array(TABLE["caption"], pa.large_list(pa.large_string()))),
        table(split=pa.array(TABLE["split"]).dictionary_encode()),
        table(other=[1, 2]),
        table(image=pa.chunked_array([[b"one"], [b"two"]])),
    ],
)
def test_other_names_and_types_of_columns(tmp_path, columns):
    write_arrow(tmp_path / "a.arrow", columns)
    records, problems = read("luperson_t", tmp_path)
    assert [(record.captions, record.split) for record in records] == [
        (("x", "y"), "train"),
        (("z",), "test"),
    ]
    assert problems == []
    image = image_reader("luperson_t", tmp_path)
    assert [image(record) for record in records] == [b"one", b"two"]


def test_numbers_as_ids_one_caption_and_no_split(tmp_path):
    columns = table(image_id=[4, 5], caption=["x", "z"], split=None)
    write_arrow(tmp_path / "a.arrow", columns)
    records, problems = read("luperson_t", tmp_path)
    assert records == [
        Record("4", ("x",), "luperson_t/image:4", "train", 0),
        Record("5", ("z",), "luperson_t/image:5", "train", 1),
    ]
    assert problems == []


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"image": [b"one", None]}, annotations.EMPTY_IMAGE),
        ({"image": [b"one", b""]}, annotations.EMPTY_IMAGE),
        ({"caption": [["x"], None]}, "'caption' is null"),
        ({"caption": [["x"], []]}, "empty list of captions"),
        ({"caption": [["x"], ["z", None]]}, "caption 1 is None"),
        ({"caption": [[1], [2]]}, "caption 0 is"),
        ({"image_id": ["1.jpg", None]}, "'image_id' is null"),
        ({"image_id": ["1.jpg", ""]}, "image path is ''"),
        ({"image_id": [1.5, 2.5]}, "image path is"),
        ({"split": ["train", "tset"]}, "'split' is 'tset'"),
        ({"split": ["train", None]}, "'split' is null"),
    ],
)
def test_faulty_rows_of_an_arrow_file(tmp_path, change, said):
    write_arrow(tmp_path / "a.arrow", table(**change))
    records, problems = read("luperson_t", tmp_path)
    assert 1 in dict(faults(problems)) and all(said in what for _, what in faults(problems))
    assert len(records) == 2 - len(problems)


@pytest.mark.parametrize(
    ("columns", "said"),
    [
        (table(image=None), "no column 'image' or 'image_bytes'.*caption, image_id, split"),
        (table(caption=None), "no column 'caption' or 'captions'"),
        (table(image_id=None), "no column 'image_id'"),
        (table(captions=TABLE["caption"]), "several columns 'caption' or 'captions'"),
        (table(image=["one", "two"]), "images are string, not the bytes"),
        (table(image=[[1], [2]]), "images are list<.*not the bytes"),
        ({name: column[:0] for name, column in TABLE.items()}, "holds no row"),
    ],
)
def test_arrow_files_of_another_kind(tmp_path, columns, said):
    write_arrow(tmp_path / "a.arrow", columns)
    with pytest.raises(DataError, match=f"a.arrow.*{said}") as caught:
        read("luperson_t", tmp_path)
    assert "\n" not in str(caught.value)


def test_damaged_arrow_files_end_in_one_line(tmp_path):
    """Cut anywhere it is refused; a flipped byte is refused, a fault, or none, but no crash."""
    path = tmp_path / "a.arrow"
    write_arrow(path, TABLE)
    whole = path.read_bytes()
    generator = random.Random(0)
    for cut in (0, 3, 100, len(whole) - 1):
        path.write_bytes(whole[:cut])
        with pytest.raises(DataError, match=r"a\.arrow is no Arrow file, or damaged \([^\n]*$"):
            read("luperson_t", tmp_path)
    for place in generator.sample(range(len(whole)), 200):
        path.write_bytes(whole[:place] + bytes([whole[place] ^ 255]) + whole[place + 1 :])
        try:
            read("luperson_t", tmp_path)
        except DataError as error:
            assert "a.arrow" in str(error) and "\n" not in str(error)


def test_one_id_with_two_images(tmp_path):
    """Joined if the bytes are the same; else the later one is a fault."""
    columns = table(image_id=["1.jpg", "1.jpg"], split=None)
    write_arrow(tmp_path / "a.arrow", columns)
    write_arrow(tmp_path / "b.arrow", columns)
    (record,), problems = read("luperson_t", tmp_path)
    assert record.captions == ("x", "y", "x", "y")
    assert faults(problems) == [(1, annotations.OTHER_IMAGE), (3, annotations.OTHER_IMAGE)]
    assert notices(problems) == [(2, annotations.JOINED_IMAGE)]
    assert [problem.file for problem in problems] == ["a.arrow", "b.arrow", "b.arrow"]


def test_an_id_in_two_splits_stays_in_the_test_set(tmp_path):
    write_arrow(tmp_path / "a.arrow", table(image_id=["1.jpg", "1.jpg"]))
    records, problems = read("luperson_t", tmp_path)
    assert [record.position for record in records] == [1]
    assert [record for record, _ in faults(problems)] == [0]


def test_without_pyarrow_it_is_named(tmp_path, monkeypatch):
    write_arrow(tmp_path / "a.arrow", TABLE)
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(DataError, match=r"needs pyarrow; run: pip install 'unipt-jax\[arrow\]'"):
        read("luperson_t", tmp_path)


def test_images_stay_on_disk(tmp_path):
    """What Arrow holds in memory does not grow with the images."""
    images = [random.Random(number).randbytes(1 << 20) for number in range(16)]
    ids = [f"{number}.jpg" for number in range(16)]
    write_arrow(
        tmp_path / "a.arrow",
        {"image": images, "caption": [["x"]] * 16, "image_id": ids, "split": ["train"] * 16},
    )
    before = pa.total_allocated_bytes()
    records, _ = read("luperson_t", tmp_path)
    image = image_reader("luperson_t", tmp_path)
    assert all(image(record) == images[record.position] for record in records)
    assert pa.total_allocated_bytes() - before < 1 << 20
    travelling = pickle.dumps(image)  # To another process, which maps the file itself.
    assert len(travelling) < 1000
    assert pickle.loads(travelling)(records[3]) == images[records[3].position]


# ---------------------------------------------------------------------------- from end to end


def picture(number: int) -> bytes:
    content = BytesIO()
    Image.new("RGB", (16, 32), (60 * number, 0, 0)).save(content, "JPEG")
    return content.getvalue()


def make_luperson_t(root: Path) -> None:
    columns = {
        "image": [picture(0), picture(1), picture(2)[:-100], picture(3)],
        "caption": [["a man", "a boy"], ["a girl"], ["cut"], []],
        "image_id": ["0.jpg", "1.jpg", "2.jpg", "3.jpg"],
    }
    for number, split in enumerate(("train", "test", "train", "train")):
        row = {name: column[number : number + 1] for name, column in columns.items()}
        write_arrow(root / f"LUPerson_{number}.arrow", {**row, "split": [split]})


def make_luperson_mllm(root: Path) -> None:
    (root / "LUPerson-MLLM").mkdir()
    for number in range(3):
        content = picture(number)
        (root / f"LUPerson-MLLM/{number}.jpg").write_bytes(content[: -100 if number == 2 else None])
    write_views(
        root,
        {"x/0.jpg": "a man"},
        {"y/0.jpg": "a boy"},
        {"z/1.jpg": "a girl"},
        {"0.jpg": "a [hair description] man", "2.jpg": "cut"},
    )


def make_mals(root: Path) -> None:
    (root / "gene_crop/c_g_a_0").mkdir(parents=True)
    for shard, numbers in enumerate([(0, 1), (2, 3)]):
        rows = []
        for number in numbers:
            image = f"gene_crop/c_g_a_0/{number}.jpg"
            if number < 3:
                cut = -100 if number == 2 else None
                (root / image).write_bytes(picture(number)[:cut])
            row = {"image": image, "caption": "a man", "image_id": number, "label": LABEL}
            rows.append({**row, "split": "test"} if number == 1 else row)
        write_json(root / f"gene_attrs/g_c_g_a_{shard}_attrs.json", rows)


def make_synth_pedes(root: Path) -> None:
    rows = [synth("Part1/0.jpg", 0, "a man", "a boy"), synth("Part1/1.jpg", 1, "a girl")]
    rows += [synth("Part1/2.jpg", 2, "cut"), synth("Part1/3.jpg", None, "who")]
    rows[1]["split"] = "test"
    (root / "Part1").mkdir()
    for number in range(4):
        cut = -100 if number == 2 else None
        (root / f"Part1/{number}.jpg").write_bytes(picture(number)[:cut])
    write_json(root / "synthpedes_dataset.json", rows)


# What is made, and then left out: a truncated image, and a record with a fault of its own.
MADE: dict[str, tuple[Callable[[Path], None], set[int], dict[str, tuple[int, int]]]] = {
    "luperson_t": (make_luperson_t, {2, 3}, {"train": (1, 2), "test": (1, 1)}),
    "luperson_mllm": (make_luperson_mllm, {3, 4}, {"train": (2, 3)}),
    "mals": (make_mals, {2, 3}, {"train": (1, 1), "test": (1, 1)}),
    "synth_pedes": (make_synth_pedes, {2, 3}, {"train": (1, 2), "test": (1, 1)}),
}


@pytest.mark.parametrize("dataset", MADE)
def test_prepare(tmp_path, dataset, monkeypatch, capsys):
    """The command as users give it: first it stops, then it leaves out what is bad."""
    monkeypatch.chdir(REPOSITORY)
    spec = importlib.util.spec_from_file_location("launch_prepare", "launch/prepare.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    source, workdir = tmp_path / "source", tmp_path / "out"
    source.mkdir()
    make, left_out, splits = MADE[dataset]
    make(source)

    def prepare(*flags: str) -> tuple[int, str, str]:
        arguments = [f"--config=configs/prepare.py:{dataset}", f"--config.source={source}"]
        arguments += [f"--workdir={workdir}", "--config.tokenizer=", *flags]
        with pytest.raises(SystemExit) as ended:
            command_line.main(module.run, module.__doc__, arguments, check=module.check)
        return ended.value.code, *capsys.readouterr()

    code, _, errors = prepare()
    (line,) = errors.splitlines()
    assert code == 2 and "in 2 record(s)" in line and not (workdir / builders.MANIFEST).exists()
    problems = [json.loads(row) for row in (workdir / builders.PROBLEMS).open()]
    assert {row["record"] for row in problems if row["kind"] == "fault"} == left_out
    several = dataset != "synth_pedes"
    assert all(bool(row["file"]) == several for row in problems)
    assert f"record {problems[0]['record']}" in line or problems[0]["kind"] == "notice"
    assert not several or f" of {Path(problems[-1]['file']).parent.name}" in line

    code, output, errors = prepare("--config.on_bad_record=quarantine", "--overwrite")
    assert code == 0, errors
    assert "records left out: 2" in output
    rows = [json.loads(row) for row in (workdir / builders.QUARANTINE).open()]
    assert {row["record"] for row in rows} == left_out
    assert all(("file" in row) == several for row in rows)
    manifest = builders.read_manifest(workdir)
    found = {
        name: (counts["images"], counts["captions"]) for name, counts in manifest["splits"].items()
    }
    assert found == splits
    first = builders.open_split(workdir, "train").images[0]
    assert first["image"] == picture(0) and first["captions"][0] == "a man"
    if dataset == "luperson_mllm":
        assert manifest["notices"]["image has captions in 2 of 4 files"] == 1


# ---------------------------------------------------------------------------- size


def grow_persons(root: Path, count: int) -> None:
    """A quarter each: missing images, one image again and again, many persons, two splits."""
    touch(root, "a.jpg", "b.jpg", "c.jpg", "d.jpg")
    rows = []
    for number in range(count // 4):
        rows.append(synth(f"gone/{number}.jpg", number, "a man"))
        rows.append(synth("a.jpg", "a", f"a man {number}"))
        rows.append(synth("b.jpg", f"b{number}", "a man"))
        rows.append(synth(f"{'cd'[number % 2]}.jpg", "c", "a man"))
        rows[-1]["split"] = ("train", "test")[number % 2]
    write_json(root / "synthpedes_dataset.json", rows)


def grow_views(root: Path, count: int) -> None:
    """Four files; in each, every entry has the same file name."""
    touch(root, "a.jpg")
    view = {f"{number}/a.jpg": f"a man {number}" for number in range(count // 4)}
    write_views(root, view, view, view, view)


def grow_tables(root: Path, count: int) -> None:
    """Distinct rows in fifty files, and as many that repeat one."""
    for start in range(0, count, count // 50):
        numbers = range(start, start + count // 50)
        ids = ["a.jpg" if number % 2 else f"{number}.jpg" for number in numbers]
        columns = {"image": [b"x"] * len(ids), "caption": [["a man"]] * len(ids)}
        write_arrow(root / f"{start}.arrow", {**columns, "image_id": ids})


# A process of its own, since the tests check the types of every call.
READ = """
import sys, time
from unipt_jax.data.annotations import read
for source in sys.argv[2:]:
    started = time.process_time()
    read(sys.argv[1], source, validation=0.1)
    print(time.process_time() - started)
"""


@pytest.mark.parametrize(
    ("dataset", "grow"),
    [("synth_pedes", grow_persons), ("luperson_mllm", grow_views), ("luperson_t", grow_tables)],
)
def test_time_grows_with_the_number_of_records(tmp_path, dataset, grow):
    """Eight times the records take about eight times as long, not sixty-four times."""
    sources = {count: tmp_path / str(count) for count in (1_000, 10_000, 80_000)}
    for count, source in sources.items():
        source.mkdir()
        grow(source, count)
    command = [sys.executable, "-c", READ, dataset, *map(str, sources.values())]
    done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, check=True)
    _, few, many = map(float, done.stdout.split())  # The first pays for imports.
    assert many < 24 * few, (few, many)
