"""Annotation files, sound, faulty and damaged: what is taken is right, and the rest is named."""

import dataclasses
import importlib.util
import io
import json
import shutil
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from etils import epath
from hypothesis import assume, given
from hypothesis import strategies as st
from PIL import Image

from tests.fuzz.outcomes import clear
from unipt_jax.config import schema
from unipt_jax.data import annotations, builders
from unipt_jax.data.annotations import Problem, Record

# ---------------------------------------------------------------------------- what is written


@dataclasses.dataclass(frozen=True)
class Format:
    """Where a data set keeps what; by hand, since the reader's own table is tested too."""

    file: str
    image: str = "image"
    captions: str = "captions"
    identity: str = ""
    required: tuple[str, ...] = ()


LISTS = {
    "cuhk_pedes": Format("reid_raw.json", "file_path", identity="id", required=("id", "split")),
    "icfg_pedes": Format("ICFG-PEDES.json", "file_path", identity="id", required=("id", "split")),
    "rstp_reid": Format("data_captions.json", "img_path", identity="id", required=("id", "split")),
    "pairs": Format("pairs.json", identity="identity"),
    "mals": Format("g_1_attrs.json", captions="caption"),
    "synth_pedes": Format("synthpedes_dataset.json", "file_path", identity="id", required=("id",)),
}
SPLITS = {
    "train": ("train", "Training", "RESTVAL"),
    "val": ("val", "Valid", "validation", " dev\n"),
    "test": ("TEST", "testing "),
}

# What UTF-8 can hold; half of them plain letters, by which encodings are hard to tell.
TEXT = st.text("ab '\n", max_size=6) | st.text(
    st.characters(exclude_categories=["Cs"]), max_size=12
)
NAMES = TEXT.map(lambda text: "".join(each for each in text if each not in "/\\\0"))
BLANK = ("", " ", "\n\t", "\u200b", "\ufeff\x00", "\ud800", "a\udfff")
PATHS = ("../x.png", "/etc/x.png", "C:\\x.png", "./c:/x", "\\\\host\\x", "a/../../x", "..", ".")
WRONG_PATHS = st.sampled_from((*PATHS, "a\0", *BLANK)) | TEXT.map(lambda text: f"absent {text}")
WRONG_CAPTIONS = st.sampled_from(
    (None, 3, True, float("nan"), {"a": "b"}, [], [["a"]], ["a", None], *BLANK)
) | st.sampled_from(BLANK).map(lambda text: ["a", text])
WRONG = {
    "image": WRONG_PATHS | st.sampled_from((None, 3, 1.5, True, ["a"], {})),
    "captions": WRONG_CAPTIONS,
    "identity": st.sampled_from((None, True, 1.5, float("inf"), [1], {}, "image:x", *BLANK)),
    "split": st.sampled_from((None, True, 0, "", "trainval", "tset", ["train"], float("nan"))),
}


@dataclasses.dataclass(frozen=True)
class Entry:
    """One entry of a file, the image that is there for it, and what it says (None: faulty)."""

    text: str
    image: str
    says: dict[str, Any] | None

    @property
    def record(self) -> Record | None:
        """What the entry should be read as."""
        return self.says and Record(**self.says)


@st.composite
def lists(draw: st.DrawFn) -> tuple[str, list[Entry]]:
    """Draws a data set's name, and the records of its file; no two share image or identity."""
    dataset, entries = draw(st.sampled_from(sorted(LISTS))), []
    for position, is_sound in enumerate(draw(st.lists(st.booleans(), min_size=1, max_size=6))):
        fields, says = draw(sound(dataset, position))
        text = as_json(fields) if is_sound else draw(faulty(LISTS[dataset], fields))
        entries.append(Entry(text, says["image"], says if is_sound else None))
    return dataset, entries


@st.composite
def sound(draw: st.DrawFn, dataset: str, position: int) -> tuple[dict[str, Any], dict[str, Any]]:
    """Draws a record's fields, and what they say."""
    form, name = LISTS[dataset], f"{position} {draw(NAMES)}"
    path = draw(st.sampled_from((f"cam/{name}", f"./cam//{name}", f"cam\\{name}")))
    captions = draw(st.lists(TEXT.map(lambda text: f"a{text}"), min_size=1, max_size=3))
    is_one = len(captions) == 1 and draw(st.booleans())
    fields = {form.image: path, form.captions: captions[0] if is_one else captions}
    identity, split = f"image:cam/{name}", "train"
    if form.identity and ("id" in form.required or draw(st.booleans())):
        fields[form.identity] = draw(st.just(position) | TEXT.map(lambda it: f" {position}:{it}"))
        identity = str(fields[form.identity]).strip()
    if "split" in form.required or draw(st.booleans()):
        split = draw(st.sampled_from(sorted(SPLITS)))
        fields["split"] = draw(st.sampled_from(SPLITS[split]))
    return fields, {
        "image": f"cam/{name}",
        "captions": tuple(captions),
        "identity": f"{dataset}/{identity}",
        "split": split,
        "position": position,
    }


@st.composite
def faulty(draw: st.DrawFn, form: Format, fields: dict[str, Any]) -> str:
    """Draws the text of a record that became wrong in one of many ways."""
    how = draw(st.sampled_from(("wrong", "wrong", "wrong", "absent", "twice", "no object")))
    name = draw(st.sampled_from(sorted(fields)))
    if how == "no object":
        return as_json(draw(st.sampled_from((None, 3, "a", [], [fields], True, float("nan")))))
    if how == "twice":
        return f'{as_json(fields)[:-1]}, {as_json(name)}: "again"}}'
    if how == "absent":
        del fields[draw(st.sampled_from((form.image, form.captions, *form.required)))]
    else:
        roles = {form.image: "image", form.captions: "captions", form.identity: "identity"}
        fields[name] = draw(WRONG[roles.get(name, "split")])
    return as_json(fields)


@st.composite
def views(draw: st.DrawFn) -> list[Entry]:
    """Draws an object {image path: caption}, where only the file's name counts in a path."""
    entries = []
    for position, is_sound in enumerate(draw(st.lists(st.booleans(), min_size=1, max_size=6))):
        name, caption = f"{position} {draw(NAMES)}", f"a{draw(TEXT)}"
        path = draw(st.sampled_from(("/data/", "C:\\", "../", ""))) + name
        is_template = "<" in caption or "description]" in caption
        if not is_sound and draw(st.booleans()):
            path = draw(WRONG_PATHS)
        elif not is_sound:
            caption = draw(WRONG_CAPTIONS | st.sampled_from(("a <b>", "[hair description]")))
        says = {
            "image": name,
            "captions": (caption,),
            "identity": f"luperson_mllm/image:{name}",
            "split": "train",
            "position": position,
        }
        text = f"{as_json(path)}: {as_json(caption)}"
        entries.append(Entry(text, name, says if is_sound and not is_template else None))
    return entries


def as_json(value: Any) -> str:
    """Half a surrogate pair stays escaped, so that the text is UTF-8."""
    return json.dumps(value, ensure_ascii=False).encode("utf-8", "backslashreplace").decode()


def joined(entries: Iterable[Entry], brackets: str) -> bytes:
    return f"{brackets[0]}{', '.join(entry.text for entry in entries)}{brackets[1]}".encode()


@pytest.fixture(scope="module")
def source(tmp_path_factory) -> Callable[[str, bytes, dict[str, bytes]], Path]:
    """Makes an annotation file with images, and one image outside, where the last one was."""
    root = tmp_path_factory.mktemp("annotations").resolve() / "source"
    (root.parent / "x.png").touch()

    def make(file: str, content: bytes, images: dict[str, bytes]) -> Path:
        shutil.rmtree(root, ignore_errors=True)
        (root / "cam").mkdir(parents=True)
        for path, image in images.items():
            (root / path).write_bytes(image)
        (root / file).write_bytes(content)
        return root

    return make


# ---------------------------------------------------------------------------- what becomes of it


def faults(problems: Iterable[Problem]) -> set[int]:
    return {problem.record for problem in problems if problem.kind == "fault"}


def check(root: Path, count: int, records: list[Record], problems: list[Problem]) -> None:
    """Every entry is taken, faulty, or joined to another; what is taken can be worked with."""
    again = {problem.record for problem in problems if problem.what == annotations.JOINED_IMAGE}
    parts = ({record.position for record in records}, faults(problems), again)
    assert set().union(*parts) == set(range(count)) and sum(map(len, parts)) == count
    for record in records:
        assert (root / record.image).resolve().is_relative_to(root)
        assert (root / record.image).is_file() and record.split in SPLITS and record.captions
        assert all(text.strip().encode() for text in (record.identity, *record.captions))
    assert len({record.image for record in records}) == len(records)
    assert len({(record.identity, record.split) for record in records}) == len(
        {record.identity for record in records}
    )
    outcome = clear(lambda: builders.set_aside(problems, root.parent / "out", stop=True))
    assert bool(outcome.refusal) == bool(faults(problems))


def check_exactly(entries: list[Entry], root: Path, dataset: str, file: str = "") -> None:
    """Taken is what is sound, as it was meant; faulty is the rest."""
    records, problems = annotations.read(dataset, root, file)
    assert records == [entry.record for entry in entries if entry.record]
    assert faults(problems) == {n for n, entry in enumerate(entries) if not entry.record}
    check(root, len(entries), records, problems)


@given(made=lists())
def test_lists_of_records(source, made):
    """Each sound record comes back as it was meant, each faulty one by its number (P59, P99)."""
    dataset, entries = made
    # Where no object has it, the file is another one: the message is on it as a whole.
    has_split = any(it.text.startswith("{") and '"split"' in it.text for it in entries)
    assume("split" not in LISTS[dataset].required or has_split)
    images = {entry.image: b"" for entry in entries}
    root = source(LISTS[dataset].file, joined(entries, "[]"), images)
    check_exactly(entries, root, dataset)


@given(entries=views())
def test_objects_of_paths_and_captions(source, entries):
    """The same of paths that lead to other machines: only their names count (P59)."""
    images = {entry.image: b"" for entry in entries}
    root = source("one.json", joined(entries, "{}"), images)
    check_exactly(entries, root, "luperson_mllm", "one.json")


@st.composite
def tables(draw: st.DrawFn) -> tuple[dict[str, list[Any]], set[int]]:
    """Draws the columns of an Arrow file, and which of its rows are faulty."""
    columns: dict[str, list[Any]] = {"image": [], "caption": [], "image_id": [], "split": []}
    wrong = set()
    for position in range(draw(st.integers(1, 5))):
        row: dict[str, Any] = {"image": b"%d" % position, "image_id": f"{position} {draw(NAMES)}"}
        row["caption"] = draw(st.lists(TEXT.map(lambda text: f"a{text}"), min_size=1, max_size=3))
        row["split"] = draw(st.sampled_from([name for names in SPLITS.values() for name in names]))
        if draw(st.booleans()):
            wrong.add(position)
            name, values = draw(
                st.sampled_from(
                    [
                        ("image", (None, b"")),
                        ("caption", (None, [], ["a", None], ["\u200b"])),
                        ("image_id", (None, "", "../x", "/x", "C:\\x")),
                        ("split", (None, "", "tset")),
                    ]
                )
            )
            row[name] = draw(st.sampled_from(values))
        for name, value in row.items():
            columns[name].append(value)
    return columns, wrong


def arrow(columns: dict[str, list[Any]]) -> bytes:
    kinds = (pa.binary(), pa.list_(pa.string()), pa.string(), pa.string())
    arrays = [pa.array(column, kind) for column, kind in zip(columns.values(), kinds, strict=True)]
    table, content = pa.table(arrays, list(columns)), io.BytesIO()
    with pa.ipc.new_file(content, table.schema) as writer:
        writer.write_table(table)
    return content.getvalue()


@given(made=tables())
def test_tables(source, made):
    """The same of images that lie in the annotation file."""
    columns, wrong = made
    root = source("one.arrow", arrow(columns), {})
    records, problems = annotations.read("luperson_t", root)
    image = annotations.image_reader("luperson_t", root)
    assert faults(problems) == wrong
    assert [record.position for record in records] == sorted(
        set(range(len(columns["image"]))) - wrong
    )
    for record in records:
        assert record.captions == tuple(columns["caption"][record.position])
        assert record.image == columns["image_id"][record.position]
        assert columns["split"][record.position] in SPLITS[record.split]
        assert image(record) == b"%d" % record.position


# ---------------------------------------------------------------------------- damage

DAMAGE = st.lists(
    st.tuples(st.integers(0, 4000), st.integers(0, 20), st.binary(max_size=4)), max_size=4
)


def damaged(content: bytes, damage: list[tuple[int, int, bytes]]) -> bytes:
    """Replaces some bytes after each place by others: flips, cuts, repeats and insertions."""
    for place, length, other in damage:
        place %= len(content) + 1
        content = content[:place] + other + content[place + length :]
    return content


def count_entries(content: bytes) -> int:
    return len(json.loads(content.decode("utf-8-sig"), object_pairs_hook=lambda pairs: pairs))


@given(made=lists() | views().map(lambda entries: ("luperson_mllm", entries)), damage=DAMAGE)
def test_damaged_files(source, made, damage):
    """Whatever was done to its bytes, nothing is lost in silence and nothing is read outside."""
    dataset, entries = made
    is_list = dataset in LISTS
    file = LISTS[dataset].file if is_list else "one.json"
    content = damaged(joined(entries, "[]" if is_list else "{}"), damage)
    images = {entry.image: b"" for entry in entries}
    root = source(file, content, images)
    outcome = clear(lambda: annotations.read(dataset, root, file), names=file)
    if not outcome.refusal:
        check(root, count_entries(content), *outcome.value)


@given(made=lists(), encoding=st.sampled_from(("utf-8-sig", "utf-16", "utf-16-le", "utf-32-be")))
def test_encodings(source, made, encoding):
    """A byte-order mark changes nothing; what is not UTF-8 is refused, never guessed (P58)."""
    dataset, entries = made
    file, content = LISTS[dataset].file, joined(entries, "[]")
    images = {entry.image: b"" for entry in entries}
    root = source(file, content, images)
    plain = clear(lambda: annotations.read(dataset, root), names=file)
    (root / file).write_bytes(content.decode().encode(encoding))
    other = clear(lambda: annotations.read(dataset, root), names=file)
    assert other == plain if encoding == "utf-8-sig" else "as UTF-8" in other.refusal


@given(made=tables(), damage=DAMAGE.filter(bool))
def test_damaged_tables(source, made, damage):
    """Refused by its name, or read with each row taken or faulty."""
    root = source("one.arrow", damaged(arrow(made[0]), damage), {})
    outcome = clear(lambda: annotations.read("luperson_t", root), names="one.arrow")
    if not outcome.refusal:
        records, problems = outcome.value
        assert not {record.position for record in records} & faults(problems)


# ---------------------------------------------------------------------------- the whole preparation


@pytest.fixture(scope="module")
def prepare() -> Callable[..., None]:
    """The launch script's own function."""
    spec = importlib.util.spec_from_file_location("launch_prepare", "launch/prepare.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)

    def run(dataset: str, root: Path, workdir: Path, on_bad_record: str) -> None:
        shutil.rmtree(workdir, ignore_errors=True)
        config = schema.Prepare(
            stage="prepare",
            dataset=dataset,
            source=str(root),
            tokenizer="",
            on_bad_record=on_bad_record,
        )
        module.run(config, epath.Path(workdir), resume=False)

    return run


def picture(number: int) -> bytes:
    content = io.BytesIO()
    Image.new("RGB", (2, 3), (40 * number, 0, 0)).save(content, "PNG")
    return content.getvalue()


@given(made=lists(), broken=st.sets(st.integers(0, 5), max_size=2), stop=st.booleans())
def test_the_whole_preparation(source, prepare, made, broken, stop):
    """It stops in one line, or takes what is sound and counts the rest (P02)."""
    dataset, entries = made
    images = {it.image: b"" if n in broken else picture(n) for n, it in enumerate(entries)}
    root = source(LISTS[dataset].file, joined(entries, "[]"), images)
    taken = [it.record for n, it in enumerate(entries) if it.record and n not in broken]
    left_out = {*range(len(entries))} - {record.position for record in taken}
    workdir = root / "out"
    outcome = clear(lambda: prepare(dataset, root, workdir, "stop" if stop else "quarantine"))
    assert bool(outcome.refusal) == (not taken or (stop and bool(left_out)))
    if outcome.refusal:
        return
    if left_out:
        rows = (workdir / builders.QUARANTINE).read_bytes().splitlines()
        assert sorted(json.loads(row)["record"] for row in rows) == sorted(left_out)
    manifest = builders.read_manifest(workdir)
    assert manifest["quarantined"] == len(left_out) == len(entries) - len(taken)
    for name in manifest["splits"]:
        members = [record for record in taken if record.split == name]
        split, names = builders.open_split(workdir, name), builders.read_identities(workdir, name)
        assert len(split.images) == len(members)
        for number, record in enumerate(members):
            example = split.images[number]
            assert example["image"] == images[record.image]
            assert (example["path"], tuple(example["captions"])) == (record.image, record.captions)
            assert names[split.identities[number]] == record.identity
    assert sum(counts["images"] for counts in manifest["splits"].values()) == len(taken)
