"""Annotation layouts, their quirks, and the faults that users met."""

import json
import os
import re
from pathlib import Path

import pytest
from etils import epath

from unipt_jax.core.errors import DataError
from unipt_jax.data import annotations
from unipt_jax.data.annotations import Record, read

GOOD = {"split": "train", "captions": ["a man", "a boy"], "file_path": "cam_a/1.png", "id": 12}
PAIR = {"image": "a.png", "captions": ["a man"]}


def prepare(
    root: Path, rows: object, name: str = "reid_raw.json", files: tuple[str, ...] = ()
) -> Path:
    """Writes an annotation file and empty files for images; reading never opens those."""
    for file in ("imgs/cam_a/1.png", "imgs/cam_a/2.png", "a.png", "b.png", *files):
        (root / file).parent.mkdir(parents=True, exist_ok=True)
        (root / file).touch()
    (root / name).write_text(json.dumps(rows), encoding="utf-8")
    return root


def faults(problems: list[annotations.Problem]) -> list[tuple[int, str]]:
    return [(problem.record, problem.what) for problem in problems if problem.kind == "fault"]


def notices(problems: list[annotations.Problem]) -> list[tuple[int, str]]:
    return [(problem.record, problem.what) for problem in problems if problem.kind == "notice"]


@pytest.mark.parametrize(
    ("dataset", "name", "path_key"),
    [
        ("cuhk_pedes", "reid_raw.json", "file_path"),
        ("cuhk_pedes", "caption_all.json", "file_path"),
        ("cuhk_pedes", "captions.json", "file_path"),
        ("icfg_pedes", "ICFG-PEDES.json", "file_path"),
        ("icfg_pedes", "ICFG_PEDES.json", "file_path"),
        ("rstp_reid", "data_captions.json", "img_path"),
        ("rstp_reid", "data_captions.json", "file_path"),
    ],
)
def test_benchmarks_are_read_under_each_known_name(tmp_path, dataset, name, path_key):
    """Known file names are found, and identities carry the data set's name (P01, P09)."""
    row = {"split": "test", "captions": ["a man"], path_key: "cam_a/1.png", "id": 0}
    records, problems = read(dataset, prepare(tmp_path, [row], name))
    assert records == [Record("imgs/cam_a/1.png", ("a man",), f"{dataset}/0", "test", 0)]
    assert problems == []


def test_first_known_name_wins_and_another_can_be_given(tmp_path):
    prepare(tmp_path, [GOOD])
    prepare(tmp_path, [{**GOOD, "id": 99}], "caption_all.json")
    assert read("cuhk_pedes", tmp_path)[0][0].identity == "cuhk_pedes/12"
    assert read("cuhk_pedes", tmp_path, "caption_all.json")[0][0].identity == "cuhk_pedes/99"


def test_pairs_layout(tmp_path):
    """Own data needs images and captions alone, and names are opaque (P07, P112)."""
    rows = [
        {"image": "img.v2_x.jpg", "caption": "a man"},
        {"image": "a.png", "captions": ["x", "y"], "identity": 7, "split": "Test"},
        {"image": "b.png", "captions": "z", "identity": "7"},
    ]
    source = prepare(tmp_path, rows[:2], "pairs.json", ("img.v2_x.jpg",))
    assert read("pairs", source) == (
        [
            Record("img.v2_x.jpg", ("a man",), "pairs/image:img.v2_x.jpg", "train", 0),
            Record("a.png", ("x", "y"), "pairs/7", "test", 1),
        ],
        [],
    )
    # 7 and "7" are one person, who cannot be in train and test.
    records, problems = read("pairs", prepare(tmp_path, rows, "pairs.json"))
    assert [record.position for record in records] == [0, 1]
    assert [record for record, _ in faults(problems)] == [2]


@pytest.mark.parametrize(
    ("identity", "name"), [(12, "12"), ("0002", "0002"), ("2", "2"), (0, "0"), (" a b ", "a b")]
)
def test_identities_are_opaque_text(tmp_path, identity, name):
    """Numbers are not shifted, and "0002" is not 2 (P100)."""
    records, _ = read("cuhk_pedes", prepare(tmp_path, [{**GOOD, "id": identity}]))
    assert records[0].identity == f"cuhk_pedes/{name}"


@pytest.mark.parametrize(
    ("split", "meant"),
    [("Train", "train"), ("TRAINING", "train"), ("valid", "val"), ("dev", "val"),
     ("Validation", "val"), ("val", "val"), ("testing", "test"), (" test ", "test"),
     ("restval", "train")],
)  # fmt: skip
def test_split_aliases(tmp_path, split, meant):
    """Spellings of the three splits are understood (P99)."""
    records, problems = read("cuhk_pedes", prepare(tmp_path, [{**GOOD, "split": split}]))
    assert ([record.split for record in records], problems) == ([meant], [])


@pytest.mark.parametrize("split", ["", "trainval", "tset", None, 0, ["train"], {}])
@pytest.mark.parametrize("dataset", ["cuhk_pedes", "pairs"])
def test_unknown_split_is_a_fault_and_never_val(tmp_path, split, dataset):
    """A typing error does not land in val (P99)."""
    row, name = (GOOD, "reid_raw.json") if dataset == "cuhk_pedes" else (PAIR, "pairs.json")
    records, problems = read(dataset, prepare(tmp_path, [{**row, "split": split}], name))
    assert records == []
    ((record, what),) = faults(problems)
    assert record == 0 and "'split' is" in what


@pytest.mark.parametrize(
    "path",
    ["../secret.png", "cam_a/../../x.png", "/etc/x.png", "C:\\x.png", "C:/x.png", "..\\x.png",
     "\\\\host\\x.png", ".", "..", "a/..", "C:x.png", "./C:/x.png",
     "\\\\?\\C:\\x.png", "//host/x.png"],
)  # fmt: skip
def test_paths_never_leave_the_source(tmp_path, path):
    """Refused after backslashes were normalised, even where such a file exists (P59, P88)."""
    (tmp_path / "secret.png").touch()
    source = prepare(tmp_path / "set", [{**GOOD, "file_path": path}])
    records, problems = read("cuhk_pedes", source)
    assert records == []
    ((record, what),) = faults(problems)
    assert record == 0 and repr(path) in what and "relative" in what


@pytest.mark.parametrize(
    "path", ["", "  ", 3, None, ["a"], "a\0.png", "\ud800.png", "\u200b", float("nan"), {}, True]
)
def test_malformed_paths(tmp_path, path):
    records, problems = read("cuhk_pedes", prepare(tmp_path, [{**GOOD, "file_path": path}]))
    assert records == [] and [record for record, _ in faults(problems)] == [0]


@pytest.mark.parametrize("path", ["cam_a\\1.png", "./cam_a//1.png", "imgs/cam_a/1.png"])
def test_paths_are_normalised(tmp_path, path):
    """A path written on Windows is read, with a notice (P88)."""
    records, problems = read("cuhk_pedes", prepare(tmp_path, [{**GOOD, "file_path": path}]))
    assert records[0].image == "imgs/cam_a/1.png"
    assert notices(problems) == ([(0, annotations.BACKSLASHES)] if "\\" in path else [])


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"captions": []}, "empty list of captions"),
        ({"captions": ["a man", " \n"]}, "caption 1 is empty"),
        ({"captions": ""}, "caption 0 is empty"),
        ({"captions": None}, "'captions' is null"),
        ({"captions": 3}, "captions are 3"),
        ({"captions": {"0": "a"}}, "give a list of strings"),
        ({"captions": ["a man", 4]}, "caption 1 is 4"),
        ({"captions": [["a man"]]}, "caption 0 is ['a man']"),
        ({"captions": ["\ud83d"]}, "caption 0 holds half a surrogate"),
        ({"id": None}, "'id' is null"),
        ({"id": True}, "'id' is True"),
        ({"id": 1.5}, "'id' is 1.5"),
        ({"id": " "}, "'id' is ' '"),
        ({"id": "\u200b\ufeff"}, "'id' is"),
        ({"id": float("nan")}, "'id' is nan"),
        ({"id": 2.0}, "'id' is 2.0"),
        ({"id": "image:a.png"}, "'id' is 'image:a.png'; names that begin with 'image:'"),
        ({"captions": float("nan")}, "captions are nan"),
        ({"captions": ["\u200b"]}, "caption 0 is empty"),
        ({"id": [1]}, "'id' is [1]"),
        ({"img_path": "cam_a/2.png"}, "'file_path' and 'img_path' with different values"),
    ],
)
def test_wrong_values_are_named(tmp_path, change, said):
    records, problems = read("cuhk_pedes", prepare(tmp_path, [GOOD | change]))
    assert records == []
    ((record, what),) = faults(problems)
    assert record == 0 and said in what


@pytest.mark.parametrize("field", ["captions", "file_path", "id", "split"])
def test_missing_fields_are_named_with_those_found(tmp_path, field):
    other = {**GOOD, "file_path": "cam_a/2.png"}
    row = {name: value for name, value in GOOD.items() if name != field}
    records, problems = read("cuhk_pedes", prepare(tmp_path, [other, row]))
    assert [record.position for record in records] == [0]
    ((record, what),) = faults(problems)
    assert record == 1 and repr(field) in what
    assert all(name in what for name in row)


@pytest.mark.parametrize("row", [3, None, "a", ["a"]])
def test_rows_that_are_no_objects(tmp_path, row):
    records, problems = read("cuhk_pedes", prepare(tmp_path, [GOOD, row]))
    assert len(records) == 1 and [record for record, _ in faults(problems)] == [1]


def test_all_faults_are_listed(tmp_path):
    bad = {"split": "?", "captions": [""], "file_path": "cam_a/9.png"}
    _, problems = read("cuhk_pedes", prepare(tmp_path, [bad, GOOD, bad]))
    assert [record for record, _ in faults(problems)] == [0] * 4 + [2] * 4


@pytest.mark.parametrize(
    ("caption", "notice"),
    [
        ("a man with \u4e00 bag", annotations.CJK_CAPTION),
        ("a man\uff0c a bag", annotations.CJK_CAPTION),
        ("['a man', 'a bag']", annotations.LITERAL_CAPTION),
        ('["a man"]', annotations.LITERAL_CAPTION),
        ("it\x92s a man", annotations.BROKEN_CAPTION),  # cp1252 that was read as Latin-1
        ("a \ufffd man", annotations.BROKEN_CAPTION),
        ("a\0 man", annotations.BROKEN_CAPTION),
        ("a man\u2019s caf\u00e9 [red] bag\n\twith two lines", None),
    ],
)
def test_odd_captions_are_kept_and_counted(tmp_path, caption, notice):
    """RSTPReid's foreign characters and pieces of code (P08)."""
    row = {**GOOD, "captions": [caption]}
    records, problems = read("rstp_reid", prepare(tmp_path, [row], "data_captions.json"))
    assert records[0].captions == (caption,)
    assert notices(problems) == ([(0, notice)] if notice else [])
    assert faults(problems) == []


def test_captions_shared_between_identities_are_noticed(tmp_path):
    """The same sentence on several persons, who stay different (P08)."""
    rows = [GOOD, {**GOOD, "file_path": "cam_a/2.png", "id": 13, "captions": ["a man", "other"]}]
    records, problems = read("cuhk_pedes", prepare(tmp_path, rows))
    assert [record.identity for record in records] == ["cuhk_pedes/12", "cuhk_pedes/13"]
    assert notices(problems) == [(0, annotations.SHARED_CAPTION), (1, annotations.SHARED_CAPTION)]


def test_identity_in_two_splits(tmp_path):
    """Reported; what is evaluated stays whole (P60, P86)."""
    rows = [GOOD, {**GOOD, "file_path": "cam_a/2.png", "split": "test"}]
    records, problems = read("cuhk_pedes", prepare(tmp_path, rows))
    assert [(record.position, record.split) for record in records] == [(1, "test")]
    ((record, what),) = faults(problems)
    assert record == 0
    assert "cuhk_pedes/12" in what and "'train'" in what and "'test'" in what


def test_image_under_two_identities(tmp_path):
    """Nobody can tell which is right, so neither stays, whatever the path's spelling (P60)."""
    rows = [GOOD, {**GOOD, "file_path": "imgs/cam_a/1.png", "id": 13}]
    records, problems = read("cuhk_pedes", prepare(tmp_path, rows))
    assert records == []
    assert [record for record, _ in faults(problems)] == [0, 1]
    assert "cuhk_pedes/12, cuhk_pedes/13" in problems[0].what


def test_image_listed_again_is_joined(tmp_path):
    """An image is once in the gallery (P60)."""
    rows = [{"image": "a.png", "caption": text} for text in ("x", "y")]
    records, problems = read("pairs", prepare(tmp_path, rows, "pairs.json"))
    assert records == [Record("a.png", ("x", "y"), "pairs/image:a.png", "train", 0)]
    assert notices(problems) == [(1, annotations.JOINED_IMAGE)]


def test_missing_images_are_counted_by_folder(tmp_path):
    """A download with folders missing (P02)."""
    paths = ["Market/1.png", "Market/2.png", "cam_a/1.png", "cam_b/1.png", "top.png"]
    rows = [{**GOOD, "file_path": path} for path in paths]
    records, problems = read("cuhk_pedes", prepare(tmp_path, rows))
    assert [record.image for record in records] == ["imgs/cam_a/1.png"]
    assert faults(problems) == [(n, annotations.MISSING_IMAGE) for n in (0, 1, 3, 4)]
    assert annotations.missing_by_folder(problems) == {
        "imgs": 1,
        "imgs/Market": 2,
        "imgs/cam_b": 1,
    }


def test_splitless_file_says_what_to_do(tmp_path):
    """The author's file before the split (P01)."""
    row = {name: value for name, value in GOOD.items() if name != "split"}
    with pytest.raises(DataError, match=r"caption_all\.json.*'split'.*captions, file_path, id"):
        read("cuhk_pedes", prepare(tmp_path, [row], "caption_all.json"))


def test_files_of_single_splits_are_named(tmp_path):
    """Three files instead of one (P01)."""
    for name in ("train.json", "val.json", "test.json"):
        prepare(tmp_path, [GOOD], name)
    with pytest.raises(DataError, match=r"no reid_raw\.json or .*holds test\.json, train\.json"):
        read("cuhk_pedes", tmp_path)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"\xef\xbb\xbf[]", "empty list"),
        (b"{}", "JSON object"),
        (b"3", "JSON int"),
        (b"[{]", "line 1, column 3"),
        (b"", "line 1, column 1"),
        ('["\u2019"]'.encode("utf-16"), "byte 0 is not UTF-8"),
        (b'["\x92"]', "byte 2 is not UTF-8"),
    ],
)
def test_unreadable_files(tmp_path, content, said):
    """Encodings and JSON faults are named with their place (P58)."""
    (tmp_path / "pairs.json").write_bytes(content)
    with pytest.raises(DataError, match=said):
        read("pairs", tmp_path)


def test_byte_order_mark_is_accepted(tmp_path):
    """A file saved on Windows (P58)."""
    prepare(tmp_path, [])
    content = json.dumps([PAIR]).encode("utf-8-sig")
    (tmp_path / "pairs.json").write_bytes(content)
    assert len(read("pairs", tmp_path)[0]) == 1


@pytest.mark.parametrize("source", ["", "nowhere"])
def test_missing_source(tmp_path, source, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(DataError, match="pairs.json" if source == "" else "no such directory"):
        read("pairs", source)


def test_validation_is_drawn_by_identity(tmp_path):
    names = [f"{number}.png" for number in range(40)]
    rows = [
        {"image": name, "caption": "x", "identity": number // 4}
        for number, name in enumerate(names)
    ]
    rows.append({"image": "a.png", "caption": "x", "identity": "fixed", "split": "train"})
    source = prepare(tmp_path, rows, "pairs.json", tuple(names))

    def drawn(share: float, seed: int) -> set[str]:
        records, problems = read("pairs", source, validation=share, seed=seed)
        assert problems == [] and len(records) == 41
        val = [record.identity for record in records if record.split == "val"]
        assert all(val.count(name) == 4 for name in val)
        return set(val)

    assert drawn(0.0, 0) == set()
    assert len(drawn(0.2, 0)) == 2
    assert len(drawn(0.01, 0)) == 1
    assert len(drawn(1.0, 0)) == 10
    assert drawn(0.5, 3) == drawn(0.5, 3)
    assert len({frozenset(drawn(0.5, seed)) for seed in range(4)}) > 1


def test_validation_needs_records_without_a_split(tmp_path):
    """Asking for a share of a data set that has its splits is not ignored in silence (P103)."""
    with pytest.raises(DataError, match=r"validation=0\.1.*every record"):
        read("cuhk_pedes", prepare(tmp_path, [GOOD]), validation=0.1)


@pytest.mark.parametrize("dataset", ["cuhk_pedes", "pairs"])
@pytest.mark.parametrize("field", ["image", "captions", "id", "split", "of no interest"])
def test_a_field_that_stands_twice_is_a_fault_of_its_record(tmp_path, dataset, field):
    """JSON readers keep one of the values and say nothing (P60)."""
    row, name = (GOOD, "reid_raw.json") if dataset == "cuhk_pedes" else (PAIR, "pairs.json")
    field = "file_path" if field == "image" and dataset == "cuhk_pedes" else field
    twice = json.dumps(row)[:-1] + f', "{field}": 1, "{field}": 2}}'
    source = prepare(tmp_path, [], name)
    (source / name).write_text(f"[{json.dumps(row)}, {twice}]")
    records, problems = read(dataset, source)
    assert [record.position for record in records] == [0]
    assert (1, f"names {field!r} more than once; keep one of each") in faults(problems)
    assert {record for record, _ in faults(problems)} == {1}


def test_each_splits_numbers_may_not_begin_anew(tmp_path):
    """Three persons of each split, all numbered from 0: nobody is taken for another (P86)."""
    names = [f"{split}{number}.png" for split in ("train", "val", "test") for number in range(3)]
    rows = [
        {"image": name, "caption": name, "identity": number % 3, "split": name[:-5]}
        for number, name in enumerate(names)
    ]
    records, problems = read("pairs", prepare(tmp_path, rows, "pairs.json", tuple(names)))
    assert [record.image for record in records] == names[6:]
    assert [record for record, _ in faults(problems)] == list(range(6))
    assert all("different persons different names" in what for _, what in faults(problems))


def test_an_image_without_identity_in_two_splits(tmp_path):
    """It would be trained on and searched for (P60)."""
    rows = [PAIR, {**PAIR, "image": "./a.png", "split": "test"}]
    records, problems = read("pairs", prepare(tmp_path, rows, "pairs.json"))
    assert [record.split for record in records] == ["test"]
    assert [record for record, _ in faults(problems)] == [0]


def test_names_are_merged_by_text_alone(tmp_path):
    """2 and "2" are one person; "0002", "2.0" and "II" are others (P100)."""
    ids = (2, "2", " 2", "0002", "2.0", "\u2161", 0, 10**30)
    names = [f"{number}.png" for number in range(len(ids))]
    rows = [
        {"image": name, "caption": "x", "identity": identity}
        for name, identity in zip(names, ids, strict=True)
    ]
    records, problems = read("pairs", prepare(tmp_path, rows, "pairs.json", tuple(names)))
    found = [record.identity.removeprefix("pairs/") for record in records]
    assert found == ["2", "2", "2", "0002", "2.0", "\u2161", "0", "1" + "0" * 30]
    assert problems == []


def test_links_are_followed_and_only_files_are_images(tmp_path):
    """Folders are often linked to another disk; a pipe would be read for ever (P59)."""
    (tmp_path / "disk").mkdir()
    (tmp_path / "disk/1.png").touch()
    source = prepare(tmp_path / "set", [])
    (source / "linked").symlink_to("../disk")
    (source / "one.png").symlink_to("../disk/1.png")
    os.mkfifo(source / "pipe.png")
    (source / "zeros.png").symlink_to("/dev/zero")
    (source / "loop.png").symlink_to("loop.png")
    (source / "folder.png").mkdir()
    paths = ["linked/1.png", "one.png", "pipe.png", "zeros.png", "loop.png", "folder.png"]
    paths += ["n" * 300 + ".png", "a.png/b.png", "linked/../a.png", "~/x.png", "gs://bucket/x.png"]
    (source / "pairs.json").write_text(
        json.dumps([{"image": path, "caption": "x"} for path in paths])
    )
    records, problems = read("pairs", source)
    assert [record.image for record in records] == paths[:2]
    assert [record for record, _ in faults(problems)] == list(range(2, len(paths)))
    wrong = dict(faults(problems))
    assert "leaves the source" in wrong.pop(8)
    assert set(wrong.values()) == {annotations.MISSING_IMAGE}


def test_a_name_that_holds_a_backslash_is_no_path_here(tmp_path):
    """It is missing, and the notice says how it was read (P88)."""
    (tmp_path / "c\\d.png").touch()
    source = prepare(tmp_path, [{"image": "c\\d.png", "caption": "x"}], "pairs.json")
    records, problems = read("pairs", source)
    assert records == [] and {problem.image for problem in problems} == {"c/d.png"}
    assert faults(problems) == [(0, annotations.MISSING_IMAGE)]
    assert notices(problems) == [(0, annotations.BACKSLASHES)]


def test_names_are_neither_folded_nor_normalised(tmp_path):
    """Other letters are another file, here and wherever the data set goes (P60)."""
    names = ("Cam/1.png", "cam/1.png", "caf\u00e9.png")
    rows = [{"image": name, "caption": "x"} for name in (*names, "cafe\u0301.png", "CAM/1.png")]
    records, problems = read("pairs", prepare(tmp_path, rows, "pairs.json", names))
    assert [record.image for record in records] == list(names)
    assert faults(problems) == [(3, annotations.MISSING_IMAGE), (4, annotations.MISSING_IMAGE)]


@pytest.mark.parametrize("kind", ["folder", "pipe", "loop"])
def test_an_annotation_file_that_is_none(tmp_path, kind):
    path = tmp_path / "pairs.json"
    {"folder": path.mkdir, "pipe": lambda: os.mkfifo(path), "loop": lambda: path.symlink_to(path)}[
        kind
    ]()
    with pytest.raises(DataError, match=r"has no pairs\.json; it holds no \.json file"):
        read("pairs", tmp_path)


def test_a_file_that_may_not_be_read_is_named(tmp_path, monkeypatch):
    source = prepare(tmp_path, [PAIR], "pairs.json")

    def refuse(path):
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(type(epath.Path(source)), "read_bytes", refuse)
    with pytest.raises(DataError, match=r"pairs\.json: cannot be read: Permission denied"):
        read("pairs", source)


def test_many_and_long_names_of_fields_are_shortened(tmp_path):
    row = {f"field{number}": 1 for number in range(1000)}
    row = {"x" * 10_000: 1, "two\nlines\ud800": 2, **row}
    _, problems = read("pairs", prepare(tmp_path, [row], "pairs.json"))
    assert all("and 982 more" in what and len(what) < 500 for _, what in faults(problems))
    with pytest.raises(DataError, match=r"and 982 more\).*Take") as caught:
        read("cuhk_pedes", prepare(tmp_path, [row]))
    assert len(str(caught.value)) < 700


@pytest.mark.parametrize("page", ["README.md", "docs/data.md"])
def test_the_example_of_the_pages_is_read(tmp_path, page):
    """What users copy to begin with their own data (P07)."""
    (example,) = re.findall(r"```json\n(\[.*?)```", Path(page).read_text("utf-8"), re.DOTALL)
    rows = json.loads(example)
    source = prepare(tmp_path, rows, "pairs.json", tuple(row["image"] for row in rows))
    records, problems = read("pairs", source)
    assert [record.image for record in records] == [row["image"] for row in rows]
    assert [record.split for record in records] == ["train", "val"] and problems == []


def test_natural_order():
    names = ["a/10", "a/2", "a/0002", "a/b", "a/1"]
    assert sorted(names, key=annotations.natural_order) == ["a/1", "a/0002", "a/2", "a/10", "a/b"]
    large = ["9" * 5_000, "1" + "0" * 5_000, "0" * 5_000 + "3"]  # More digits than `int` reads.
    assert sorted(large, key=annotations.natural_order) == [large[2], large[0], large[1]]
