"""Images of a folder, of a list and of a prepared data set, under numbers that never change."""

import codecs
import json
import logging
import os
import shutil

import pytest

from unipt_jax.captioning import sources
from unipt_jax.core.errors import DataError
from unipt_jax.data import builders


def everything(source):
    return {source.path(number): source.read(number) for number in range(source.size)}


@pytest.fixture
def folder(tmp_path):
    """Images at several depths, under odd names, among other files."""
    root = tmp_path / "images"
    files = {
        "b.jpg": b"1",
        "a.PNG": b"2",
        "cam 1/x y.jpeg": b"3",
        "cam 1/deep/er/z.webp": b"4",
        "ünïcode/日本.jpg": b"5",
        "new\nline.jpg": b"6",
        "notes.txt": b"no image",
        "noextension": b"no image",
    }
    for name, content in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    return root, {name: content for name, content in files.items() if content != b"no image"}


def test_a_folder_is_searched_at_any_depth(folder, tmp_path):
    root, files = folder
    source = sources.open_source(str(root), tmp_path)
    assert everything(source) == files
    again = sources.open_source(str(root), tmp_path)
    order = [source.path(number) for number in range(source.size)]
    assert order == [again.path(number) for number in range(again.size)]
    assert {source.identity(number) for number in range(source.size)} == {""}
    assert source.splits == {"train": range(len(files))}


def test_a_run_that_goes_on_sees_the_images_of_before(folder, tmp_path):
    root, files = folder
    sources.open_source(str(root), tmp_path)
    (root / "aaa.jpg").write_bytes(b"new")
    (root / "b.jpg").unlink()
    source = sources.open_source(str(root), tmp_path)
    assert source.size == len(files)
    number = next(n for n in range(source.size) if source.path(n) == "b.jpg")
    with pytest.raises(DataError, match=r"b\.jpg: cannot be read"):
        source.read(number)


def test_links_are_followed_but_not_in_circles(folder, tmp_path):
    root, files = folder
    (root / "cam 1" / "back").symlink_to(root)
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "o.jpg").write_bytes(b"7")
    (root / "linked").symlink_to(outside)
    source = sources.open_source(str(root), tmp_path)
    assert everything(source) == files | {"linked/o.jpg": b"7"}


def test_a_name_that_is_not_utf8_is_read_and_spelled_out(tmp_path):
    root = tmp_path / "images"
    root.mkdir()
    (root / os.fsdecode(b"caf\xe9.jpg")).write_bytes(b"1")
    source = sources.open_source(str(root), tmp_path)
    assert everything(source) == {"caf\\xe9.jpg": b"1"}


def test_a_list_names_paths_relative_to_itself(folder, tmp_path):
    root, files = folder
    names = root / "list.txt"
    names.write_text("b.jpg\n\n  cam 1/x y.jpeg\r\nmissing.jpg\n")
    source = sources.open_source(str(names), tmp_path)
    assert [source.path(number) for number in range(3)] == [
        "b.jpg",
        "cam 1/x y.jpeg",
        "missing.jpg",
    ]
    assert source.size == 3 and source.read(1) == files["cam 1/x y.jpeg"]
    with pytest.raises(DataError, match=r"missing\.jpg: cannot be read"):
        source.read(2)


def test_a_prepared_data_set_keeps_its_identities(data, tmp_path):
    """Every split in turn, with the bytes and names that it was prepared with."""
    source = sources.open_source(str(data), tmp_path)
    splits = [builders.open_split(data, name) for name in builders.read_manifest(data)["splits"]]
    assert source.size == sum(len(split.images) for split in splits) == 396
    assert [len(numbers) for numbers in source.splits.values()] == [len(s.images) for s in splits]
    assert [n for numbers in source.splits.values() for n in numbers] == list(range(396))
    number = 0
    for split in splits:
        for place in (0, len(split.images) - 1):
            entry = split.images[place]
            assert source.path(number + place) == entry["path"]
            assert source.read(number + place) == entry["image"]
            person = entry["path"].split("/")[-1].split("_")[0]
            assert source.identity(number + place).endswith(f"/{int(person)}")
        number += len(split.images)
    assert not (tmp_path / sources.LISTING).exists()


def test_where_nothing_is_to_caption(tmp_path):
    with pytest.raises(DataError, match="no such folder"):
        sources.open_source(str(tmp_path / "nowhere"), tmp_path)
    empty = tmp_path / "empty"
    empty.mkdir()
    with pytest.raises(DataError, match="no image is in there"):
        sources.open_source(str(empty), tmp_path / "run")
    (empty / "a.jpg").write_bytes(b"1")  # A run that goes on looks again.
    assert sources.open_source(str(empty), tmp_path / "run").size == 1
    with pytest.raises(DataError, match=r"a\.jpg is one image; name its folder"):
        sources.open_source(str(empty / "a.jpg"), tmp_path / "other")


def test_what_cannot_be_decoded_anyway_is_passed_over_and_counted(folder, tmp_path, caplog):
    """Pillow knows suffixes of films and documents too."""
    root, files = folder
    for name in ("film.mpg", "paper.pdf", "deep.h5"):
        (root / name).write_bytes(b"")
    with caplog.at_level(logging.INFO):
        assert everything(sources.open_source(str(root), tmp_path)) == files
    assert "5 other files passed over" in caplog.text and ".mpg 1" in caplog.text


def test_a_list_from_windows_is_read(folder, tmp_path):
    root, files = folder
    names = root / "list.txt"
    names.write_bytes(codecs.BOM_UTF8 + b"b.jpg\r\ncam 1\\x y.jpeg\r\n")
    source = sources.open_source(str(names), tmp_path)
    assert [source.read(number) for number in range(2)] == [files["b.jpg"], files["cam 1/x y.jpeg"]]


def test_a_folder_that_cannot_be_listed_is_named(folder, tmp_path, monkeypatch):
    root, _ = folder

    def walk(top, onerror, followlinks):
        onerror(PermissionError(13, "Permission denied", str(root / "cam 1")))
        yield from ()

    monkeypatch.setattr(sources.os, "walk", walk)
    with pytest.raises(DataError, match="cam 1: cannot be listed"):
        sources.open_source(str(root), tmp_path)


def test_storage_out_of_reach_is_not_a_missing_image(folder, tmp_path):
    root, _ = folder
    source = sources.open_source(str(root), tmp_path)
    shutil.move(root, tmp_path / "elsewhere")
    with pytest.raises(FileNotFoundError):
        source.read(0)


def test_a_long_listing_is_scanned_in_pieces(folder, tmp_path, monkeypatch):
    monkeypatch.setattr(sources, "_CHUNK", 7)
    root, files = folder
    assert everything(sources.open_source(str(root), tmp_path)) == files


def test_resized_pixels_are_not_captioned(tmp_path):
    manifest = {"name": "toy", "format": builders.FORMAT, "splits": {}, "pixels": [384, 128]}
    manifest |= {"tokenizer_fingerprint": "", "quarantined": 0, "notices": {}}
    (tmp_path / "manifest.json").write_text(json.dumps(manifest))
    for refuse in (sources.require_place, lambda images: sources.open_source(images, tmp_path)):
        with pytest.raises(DataError, match=r"stores pixels of 384x128.*name the folder"):
            refuse(str(tmp_path))
