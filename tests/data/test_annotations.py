"""Annotation layouts, their quirks, and the faults that users met."""

import json
from pathlib import Path

import pytest

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
    """P01, P09: known file names are found, and identities carry the data set's name."""
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
    """P07, P112: own data needs images and captions alone, and names are opaque."""
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
    """P100: numbers are not shifted, and "0002" is not 2."""
    records, _ = read("cuhk_pedes", prepare(tmp_path, [{**GOOD, "id": identity}]))
    assert records[0].identity == f"cuhk_pedes/{name}"


@pytest.mark.parametrize(
    ("split", "meant"),
    [("Train", "train"), ("TRAINING", "train"), ("valid", "val"), ("dev", "val"),
     ("Validation", "val"), ("val", "val"), ("testing", "test"), (" test ", "test"),
     ("restval", "train")],
)  # fmt: skip
def test_split_aliases(tmp_path, split, meant):
    """P99: spellings of the three splits are understood."""
    records, problems = read("cuhk_pedes", prepare(tmp_path, [{**GOOD, "split": split}]))
    assert ([record.split for record in records], problems) == ([meant], [])


@pytest.mark.parametrize("split", ["", "trainval", "tset", None, 0, ["train"], {}])
@pytest.mark.parametrize("dataset", ["cuhk_pedes", "pairs"])
def test_unknown_split_is_a_fault_and_never_val(tmp_path, split, dataset):
    """P99: a typing error does not land in val."""
    row, name = (GOOD, "reid_raw.json") if dataset == "cuhk_pedes" else (PAIR, "pairs.json")
    records, problems = read(dataset, prepare(tmp_path, [{**row, "split": split}], name))
    assert records == []
    ((record, what),) = faults(problems)
    assert record == 0 and "'split' is" in what


@pytest.mark.parametrize(
    "path",
    ["../secret.png", "cam_a/../../x.png", "/etc/x.png", "C:\\x.png", "C:/x.png", "..\\x.png",
     "\\\\host\\x.png", ".", "..", "a/.."],
)  # fmt: skip
def test_paths_never_leave_the_source(tmp_path, path):
    """P59, P88: refused after backslashes were normalised, even where such a file exists."""
    (tmp_path / "secret.png").touch()
    source = prepare(tmp_path / "set", [{**GOOD, "file_path": path}])
    records, problems = read("cuhk_pedes", source)
    assert records == []
    ((record, what),) = faults(problems)
    assert record == 0 and repr(path) in what and "relative" in what


@pytest.mark.parametrize("path", ["", "  ", 3, None, ["a"], "a\0.png", "\ud800.png"])
def test_malformed_paths(tmp_path, path):
    records, problems = read("cuhk_pedes", prepare(tmp_path, [{**GOOD, "file_path": path}]))
    assert records == [] and [record for record, _ in faults(problems)] == [0]


@pytest.mark.parametrize("path", ["cam_a\\1.png", "./cam_a//1.png", "imgs/cam_a/1.png"])
def test_paths_are_normalised(tmp_path, path):
    """P88: a path written on Windows is read, with a notice."""
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
        ("a man\u2019s caf\u00e9 [red] bag", None),
    ],
)
def test_odd_captions_are_kept_and_counted(tmp_path, caption, notice):
    """P08: RSTPReid's foreign characters and pieces of code."""
    row = {**GOOD, "captions": [caption]}
    records, problems = read("rstp_reid", prepare(tmp_path, [row], "data_captions.json"))
    assert records[0].captions == (caption,)
    assert notices(problems) == ([(0, notice)] if notice else [])
    assert faults(problems) == []


def test_captions_shared_between_identities_are_noticed(tmp_path):
    """P08: the same sentence on several persons."""
    rows = [GOOD, {**GOOD, "file_path": "cam_a/2.png", "id": 13, "captions": ["a man", "other"]}]
    records, problems = read("cuhk_pedes", prepare(tmp_path, rows))
    assert len(records) == 2
    assert notices(problems) == [(0, annotations.SHARED_CAPTION), (1, annotations.SHARED_CAPTION)]


def test_identity_in_two_splits(tmp_path):
    """P60, P86: reported; what is evaluated stays whole."""
    rows = [GOOD, {**GOOD, "file_path": "cam_a/2.png", "split": "test"}]
    records, problems = read("cuhk_pedes", prepare(tmp_path, rows))
    assert [(record.position, record.split) for record in records] == [(1, "test")]
    ((record, what),) = faults(problems)
    assert record == 0
    assert "cuhk_pedes/12" in what and "'train'" in what and "'test'" in what


def test_image_under_two_identities(tmp_path):
    """P60: nobody can tell which is right, so neither stays, whatever the spelling of the path."""
    rows = [GOOD, {**GOOD, "file_path": "imgs/cam_a/1.png", "id": 13}]
    records, problems = read("cuhk_pedes", prepare(tmp_path, rows))
    assert records == []
    assert [record for record, _ in faults(problems)] == [0, 1]
    assert "cuhk_pedes/12, cuhk_pedes/13" in problems[0].what


def test_image_listed_again_is_joined(tmp_path):
    """P60: an image is once in the gallery."""
    rows = [{"image": "a.png", "caption": text} for text in ("x", "y")]
    records, problems = read("pairs", prepare(tmp_path, rows, "pairs.json"))
    assert records == [Record("a.png", ("x", "y"), "pairs/image:a.png", "train", 0)]
    assert notices(problems) == [(1, annotations.JOINED_IMAGE)]


def test_missing_images_are_counted_by_folder(tmp_path):
    """P02: a download with folders missing."""
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
    """P01: the author's file before the split."""
    row = {name: value for name, value in GOOD.items() if name != "split"}
    with pytest.raises(DataError, match=r"caption_all\.json.*'split'.*captions, file_path, id"):
        read("cuhk_pedes", prepare(tmp_path, [row], "caption_all.json"))


def test_files_of_single_splits_are_named(tmp_path):
    """P01: three files instead of one."""
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
    """P58: encodings and JSON faults are named with their place."""
    (tmp_path / "pairs.json").write_bytes(content)
    with pytest.raises(DataError, match=said):
        read("pairs", tmp_path)


def test_byte_order_mark_is_accepted(tmp_path):
    """P58: a file saved on Windows."""
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
    """P103: asking for a share of a data set that has its splits is not ignored in silence."""
    with pytest.raises(DataError, match=r"validation=0\.1.*every record"):
        read("cuhk_pedes", prepare(tmp_path, [GOOD]), validation=0.1)


def test_natural_order():
    names = ["a/10", "a/2", "a/0002", "a/b", "a/1"]
    assert sorted(names, key=annotations.natural_order) == ["a/1", "a/0002", "a/2", "a/10", "a/b"]
