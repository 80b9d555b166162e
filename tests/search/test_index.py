"""The index: equal to encoding everything anew, whatever became of the folder and of builds."""

import errno
import json
import os
import shutil
import threading
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import unipt_jax
from tests.search.conftest import SAMPLE
from unipt_jax.captioning import runner
from unipt_jax.config import schema
from unipt_jax.core.errors import DataError
from unipt_jax.search import index, neighbours

NAMES = sorted(path.name for path in Path(SAMPLE).iterdir())


@pytest.fixture
def folder(tmp_path):
    """Twenty crops, some of them in a folder of their own."""
    made = tmp_path / "crops"
    for at, name in enumerate(NAMES[::20]):
        target = made / ("deep/er" if at % 5 == 0 else "") / name
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(f"{SAMPLE}/{name}", target)
    return made


@pytest.fixture
def place(tmp_path):
    return tmp_path / "index"


def found(built):
    """What an index holds: each path's features."""
    # Copies: the file that is mapped into memory may be cut by a test.
    pairs = zip(built.rows, built.numbers, strict=True)
    return {row["image"]: np.array(built.features[number]) for row, number in pairs}


def expected(folder, model):
    paths = [path for path in sorted(folder.rglob("*")) if path.suffix == ".jpg"]
    features = model.encode_images(paths)
    return {str(path.relative_to(folder)): row for path, row in zip(paths, features, strict=True)}


def assert_same(one, two):
    assert one.keys() == two.keys()
    for path in one:
        np.testing.assert_allclose(one[path], two[path], atol=1e-5, err_msg=path)


@pytest.mark.parametrize("batch_size", [1, 7, 64])
def test_features_are_the_encoders(folder, place, model, batch_size):
    built = index.build(folder, place, model, batch_size=batch_size)
    assert_same(found(built), expected(folder, model))
    assert built.faults == () and not built.phrases


def test_a_second_look_encodes_nothing(folder, place, model, monkeypatch):
    first = index.build(folder, place, model)
    monkeypatch.setattr(index, "_add", lambda *_: pytest.fail("encoded again"))
    assert_same(found(first), found(index.build(folder, place, model)))


def test_only_what_is_new_or_changed_is_encoded(folder, place, model, monkeypatch):
    index.build(folder, place, model)
    changed, removed, added = folder / NAMES[20], folder / NAMES[40], folder / "new.jpg"
    time.sleep(0.01)
    shutil.copy(f"{SAMPLE}/{NAMES[300]}", changed)
    removed.unlink()
    shutil.copy(f"{SAMPLE}/{NAMES[301]}", added)
    encoded = []
    monkeypatch.setattr(
        index, "_Load", lambda folder, names, *_: encoded.extend(names) or real(folder, names, *_)
    )
    built = index.build(folder, place, model)
    assert sorted(encoded) == sorted([changed.name, added.name])
    assert_same(found(built), expected(folder, model))


real = index._Load


@pytest.mark.parametrize("seed", range(8))
def test_a_killed_build_goes_on(folder, place, model, seed):
    """Both files are cut wherever a kill may have cut them."""
    whole = found(index.build(folder, place, model, batch_size=4))
    random = np.random.default_rng(seed)
    for name in (index.FEATURES, index.ROWS):
        path = place / name
        content = path.read_bytes()
        path.write_bytes(content[: random.integers(len(content) + 1)])
    assert_same(found(index.build(folder, place, model, batch_size=4)), whole)


def test_two_at_once_make_one_index(folder, place, model):
    built = []
    threads = [
        threading.Thread(target=lambda: built.append(index.build(folder, place, model)))
        for _ in range(3)
    ]
    for each in threads:
        each.start()
    for each in threads:
        each.join()
    assert len(built) == 3
    assert len((place / index.ROWS).read_text().splitlines()) == len(built[0].rows)


def test_what_another_process_writes_aside_is_no_foreign_file(folder, place, model):
    """Another build is about to make the index, or was killed as it did."""
    place.mkdir(parents=True)
    (place / ".index.json.17946-5fffbf66.tmp").write_text("{")
    assert_same(found(index.build(folder, place, model)), expected(folder, model))


def test_unreadable_images_are_named_and_left_out(folder, place, model):
    """No picture, empty, a link to nowhere; and the rest is found (P52)."""
    whole = expected(folder, model)
    (folder / "notes.jpg").write_text("no picture")
    (folder / "empty.png").touch()
    (folder / "gone.png").symlink_to("nowhere")
    built = index.build(folder, place, model)
    assert_same(found(built), whole)
    assert [fault.split(":")[0] for fault in built.faults] == ["empty.png", "gone.png", "notes.jpg"]
    # One that was mended comes in; its fault is forgotten.
    time.sleep(0.01)
    shutil.copy(f"{SAMPLE}/{NAMES[3]}", folder / "notes.jpg")
    built = index.build(folder, place, model)
    assert "notes.jpg" in found(built) and len(built.faults) == 2


def test_a_change_of_equal_size_is_seen(tmp_path, place, model):
    """Two pictures of one size in bytes: the clock tells."""
    folder = tmp_path / "crops"
    folder.mkdir()
    for colour in ("red", "blue"):
        time.sleep(0.01)
        Image.new("RGB", (8, 16), colour).save(folder / "a.bmp")
        built = index.build(folder, place, model)
        assert_same(found(built), {"a.bmp": model.encode_images([folder / "a.bmp"])[0]})


def test_what_could_not_be_read_is_tried_again(folder, place, model, monkeypatch):
    """A permission, a lost mount: the file itself need not change."""
    whole, read_bytes = expected(folder, model), Path.read_bytes

    def fail(path):
        if path.name == NAMES[20]:
            raise PermissionError(13, "Permission denied")
        return read_bytes(path)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "read_bytes", fail)
        built = index.build(folder, place, model)
    assert built.faults == (f"{NAMES[20]}: cannot be read (Permission denied)",)
    built = index.build(folder, place, model)
    assert not built.faults
    assert_same(found(built), whole)


def test_a_pipe_is_not_waited_for(folder, place, model):
    """It has an image's name (P52)."""
    os.mkfifo(folder / "pipe.jpg")
    faults = index.build(folder, place, model).faults
    assert faults == ("pipe.jpg: cannot be read (not an ordinary file)",)


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EROFS])
def test_a_full_disk_is_named_and_loses_nothing(folder, place, model, monkeypatch, number):
    def full(path, rows):
        with path.open("ab") as file:
            file.write(b'{"image": "unfin')
        raise OSError(number, os.strerror(number))

    with monkeypatch.context() as patch:
        patch.setattr(index, "append_json_lines", full)
        with pytest.raises(OSError, match=os.strerror(number)) as caught:
            index.build(folder, place, model)
    assert caught.value.filename == str(place)
    assert_same(found(index.build(folder, place, model)), expected(folder, model))


def test_an_index_that_cannot_be_written_is_read(folder, place, model):
    whole = found(index.build(folder, place, model))
    (place / "lock").unlink()
    (place / "lock").mkdir()  # Even root cannot open it.
    assert_same(found(index.build(folder, place, model)), whole)


@pytest.mark.parametrize("name", ["a file", "a file/below"])
def test_a_place_that_cannot_be_is_named(folder, tmp_path, model, name):
    (tmp_path / "a file").touch()
    with pytest.raises(DataError, match=r"a file.* cannot hold an index .*; name another"):
        index.build(folder, tmp_path / name, model)


def test_a_folder_of_images_is_left_as_it_is(folder, model):
    """Named as the index's place by mistake."""
    before = sorted(folder.rglob("*"))
    with pytest.raises(DataError, match="is no index"):
        index.build(folder, folder, model)
    assert sorted(folder.rglob("*")) == before


def test_names_may_be_any_bytes(tmp_path, place, model):
    """Not UTF-8, a new line, brackets; and the folder's too."""
    folder = Path(os.fsdecode(os.fsencode(tmp_path) + b"/caf\xe9"))
    folder.mkdir()
    names = [b"\xff.jpg", b"a\nb.jpg", b"[red].jpg", "日本.jpg".encode()]
    for name in names:
        shutil.copy(f"{SAMPLE}/{NAMES[0]}", folder / os.fsdecode(name))
    for _ in range(2):
        built = index.build(folder, place, model)
        assert {os.fsencode(row["image"]) for row in built.rows} == set(names)


def test_cut_rows_are_forgotten_by_the_lists_too(folder, place, model):
    index.build(folder, place, model)
    (place / neighbours.APPROXIMATE).touch()
    index.build(folder, place, model)
    assert (place / neighbours.APPROXIMATE).exists()
    os.truncate(place / index.FEATURES, 100)
    index.build(folder, place, model)
    assert not (place / neighbours.APPROXIMATE).exists()


def test_of_nothing_there_is_no_index(tmp_path, place, model):
    with pytest.raises(DataError, match="no such folder"):
        index.build(tmp_path / "none", place, model)
    empty = tmp_path / "empty"
    empty.mkdir()
    with pytest.raises(DataError, match="no image is in there"):
        index.build(empty, place, model)
    (empty / "a.jpg").write_text("no picture")
    with pytest.raises(DataError, match=r"none of the 1 images can be read; first: a\.jpg"):
        index.build(empty, place, model)


def test_an_index_of_something_else_is_refused(folder, place, tmp_path, model):
    index.build(folder, place, model)
    other = tmp_path / "other"
    shutil.copytree(folder, other)
    with pytest.raises(DataError, match="index of another folder"):
        index.build(other, place, model)
    origin = json.loads((place / index.ORIGIN).read_text())
    (place / index.ORIGIN).write_text("[]")
    with pytest.raises(DataError, match=r"index\.json is damaged; remove"):
        index.build(folder, place, model)
    (place / index.ORIGIN).write_text(json.dumps(origin | {"model": "0"}))
    with pytest.raises(DataError, match="index of another model"):
        index.build(folder, place, model)
    with pytest.raises(DataError, match="is no index: it holds crops"):
        index.build(folder, tmp_path, model)


@pytest.mark.parametrize(
    "damaged", ["{}", "[" * 10**5, '{"image": "a", "stamp": [], "attributes": 1}']
)
def test_a_damaged_line_is_named(folder, place, model, damaged):
    index.build(folder, place, model)
    lines = (place / index.ROWS).read_text().splitlines(keepends=True)
    (place / index.ROWS).write_text("".join([*lines[:4], damaged + "\n", *lines[5:]]))
    with pytest.raises(DataError, match=r"images\.jsonl: line 5 is damaged; remove"):
        index.build(folder, place, model)


def test_captions_are_those_of_captioning(folder, tmp_path, model):
    """The same sentence of the same image, whether it is searched or captioned for training."""
    built = unipt_jax.Gallery.from_images(folder, model, clip=model, index_directory=tmp_path / "i")
    config = schema.Caption(
        stage="caption",
        images=str(folder),
        clip="examples/small_clip",
        tokenizer="examples/tokenizer",
        device_batch_size=8,
    )
    clip = runner.Clip(model.model, model.params, model.encode_texts)
    (tmp_path / "captions").mkdir()
    runner.caption(config, tmp_path / "captions", clip)
    lines = (tmp_path / "captions" / runner.CAPTIONS).read_text().splitlines()
    captions = {row["image"]: row["caption"] for row in map(json.loads, lines)}
    assert captions == {built.hit(n).path: built.hit(n).caption for n in range(len(built))}


def test_long_lines_are_read_whole(tmp_path):
    path = tmp_path / "rows"
    rows = [{"image": "x" * length} for length in (1, 5000, 20000, 3)]
    content = [json.dumps(row).encode() + b"\n" for row in rows]
    path.write_bytes(b"".join(content))
    starts = np.cumsum([0, *map(len, content)])[:-1]
    made = index.Rows(path, starts)
    assert [made[n] for n in range(len(made))] == rows


def test_images_of_any_kind_are_the_same_picture(tmp_path, place, model):
    """Formats, and suffixes in any case; and links into a circle end (P56)."""
    pixels = np.random.default_rng(0).integers(0, 255, (40, 20, 3), np.uint8)
    folder = tmp_path / "kinds"
    folder.mkdir()
    for name in ("a.PNG", "b.bmp", "c.tiff", "d.webp"):
        Image.fromarray(pixels).save(
            folder / name, **({"lossless": True} if "webp" in name else {})
        )
    (folder / "round").symlink_to(".")
    built = found(index.build(folder, place, model))
    assert sorted(built) == ["a.PNG", "b.bmp", "c.tiff", "d.webp"]
    for features in built.values():
        np.testing.assert_allclose(features, built["a.PNG"], atol=1e-5)
