"""Notebooks run from top to bottom as a reader runs them; what is stored shows pictures alone."""

import base64
import importlib.util
import io
import re
from pathlib import Path

import nbformat
import pytest
from PIL import Image

ROOT = Path(__file__).parents[1]
NAMES = ["1_search", "2_caption", "3_finetune", "4_pytorch"]
REPOSITORY = "https://github.com/unipt-jax/unipt-jax"

# What a notebook's text says of what it shows, put to its own variables after its last cell; and
# how many pictures it has.
PICTURES = {"1_search": 6, "2_caption": 4, "3_finetune": 5, "4_pytorch": 2}
CLAIMS = {
    "1_search": """
def people(found):
    return [hit.path[:2] for hit in found]

assert len(gallery) == 396
assert people(hits)[0] == "10" and people(hits).count("10") >= 5  # the woman in red
# The woman in pale blue and a white hat makes way for the man in blue.
assert people(blue).count("08") > 5 > people(not_white).count("08")
assert people(not_white).count("11") > 5
assert people(dark_legs).count("11") > 5
assert like_picture[0].path == picture.name and people(like_picture).count("11") > 5
assert more[0].path == hits[1].path and people(more).count("10") > 5
assert all(a.score >= b.score for a, b in zip(more, more[1:]))
""",
    "2_caption": """
assert len(rows) == 396 and all(len(row["attributes"]) == 14 for row in rows)
# By the known attributes colours are right more often than not, and garments less often.
shares = {}
for part, name in parts.items():
    said = [(known[str(int(row["image"][:2]))], row["attributes"][name]["phrase"]) for row in rows]
    shares[part] = sum(phrase.split()[0] in answers[f"{part}_color"] for answers, phrase in said)
assert min(shares.values()) > 0.75 * len(rows), shares
assert 0.3 < right["upper", "garment"] < 0.4 < right["lower", "garment"] < 0.8, right
assert sum(image.startswith(("10_", "04_")) for _, image in surest) > 8  # who wear red
""",
    "3_finetune": """
assert {len(set(each.identities)) for each in (train, test)} == {6, 5}
assert logged[-1]["step"] == 40 and logged[-1]["loss"] < logged[0]["loss"] - 0.5
assert measured["after"]["mAP"] > measured["before"]["mAP"]
for name in names:  # of all captions by evaluate_ranks, and by launch/evaluate.py
    assert abs(ranks[name] - measured["after"][name]) < 0.5, (name, ranks)
assert right[shown[0]].sum() >= right[shown[1]].sum() >= right[shown[2]].sum()
""",
    "4_pytorch": """
assert type(torch_model).__module__.startswith("transformers.")
assert {"images", "texts"} <= set(differences) and max(differences.values()) < 1e-4
assert with_onnx == ("onnx" in differences)
assert paths[int(found[0, 0])].name.startswith("10_")
assert sum(paths[number].name.startswith("10_") for number in found[0].tolist()) > 5
""",
}


@pytest.fixture(scope="module")
def execute():
    spec = importlib.util.spec_from_file_location("execute", ROOT / "notebooks" / "execute.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def read(name):
    return nbformat.read(ROOT / "notebooks" / f"{name}.ipynb", as_version=4)


def outputs(notebook):
    return [it for cell in notebook.cells for it in cell.get("outputs", ())]


def pictures(notebook):
    """The pictures that a notebook shows, as Pillow's."""
    found = [it.get("data", {}).get("image/png") for it in outputs(notebook)]
    return [Image.open(io.BytesIO(base64.b64decode(each))) for each in found if each]


def words(notebook):
    """All that a notebook shows besides pictures and logs."""
    found = [it for it in outputs(notebook) if it.get("name") != "stderr"]
    return "\n".join(it.get("text", "") + it.get("data", {}).get("text/plain", "") for it in found)


def test_every_notebook_is_tested():
    assert sorted(path.stem for path in (ROOT / "notebooks").glob("*.ipynb")) == NAMES


# ---------------------------------------------------------------------------- run


@pytest.mark.parametrize(
    "name",
    [it if it == "2_caption" else pytest.param(it, marks=pytest.mark.slow) for it in NAMES],
)
def test_a_notebook_runs_from_top_to_bottom(name, execute, tmp_path):
    if name == "4_pytorch":
        pytest.importorskip("torch")
    notebook, before = read(name), sorted((ROOT / "notebooks").iterdir())
    for cell in notebook.cells:
        cell.get("outputs", []).clear()
    notebook.cells.append(nbformat.v4.new_code_cell(CLAIMS[name]))
    execute.execute(notebook, tmp_path, timeout=300)
    assert len(pictures(notebook)) == PICTURES[name]
    assert all(min(picture.size) > 100 for picture in pictures(notebook))
    assert str(tmp_path) not in words(notebook)
    assert sorted((ROOT / "notebooks").iterdir()) == before
    assert {path.name for path in tmp_path.iterdir()} == {*execute.NEEDED, "notebooks", "runs"}
    assert not any((tmp_path / "notebooks").iterdir())


# ---------------------------------------------------------------------------- what is stored


@pytest.mark.parametrize("name", NAMES)
def test_what_a_notebook_shows_is_stored(name):
    notebook = read(name)
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert [cell.execution_count for cell in code] == list(range(1, len(code) + 1))
    assert len(pictures(notebook)) == PICTURES[name]
    for picture in pictures(notebook):
        assert min(picture.size) > 100 and len(picture.convert("RGB").getcolors()) > 2
    assert (ROOT / "notebooks" / f"{name}.ipynb").stat().st_size < 400_000


@pytest.mark.parametrize("name", NAMES)
def test_nothing_is_stored_but_what_a_reader_wants(name):
    """No errors, warnings and logs; nothing of the machine; nothing that the next run changes."""
    notebook = read(name)
    for cell in notebook.cells:
        assert cell.metadata == {}
    assert set(notebook.metadata) == {"kernelspec", "language_info"}
    assert notebook.metadata.language_info == {"name": "python"}
    for output in outputs(notebook):
        assert output.output_type != "error" and output.get("name") != "stderr"
        assert set(output.get("data", {})) <= {"image/png", "text/plain"}
    shown = words(notebook)
    assert shown.strip()
    assert not re.search(r"Traceback|[Ww]arning|\d\d:\d\d:\d\d|\d s left|/s\b", shown)
    assert not re.search(r"(^|[\s'\"=(])(/\w|~|[A-Z]:\\)|site-packages|\.\./", shown)


@pytest.mark.parametrize("name", NAMES)
def test_a_notebook_begins_with_its_title_and_badge_then_its_set_up(name, execute):
    notebook = read(name)
    title, badge, *text = notebook.cells[0].source.split("\n\n")
    assert re.fullmatch(r"# \w.*", title) and text
    place = f"unipt-jax/unipt-jax/blob/main/notebooks/{name}.ipynb"
    assert badge.endswith(f"](https://colab.research.google.com/github/{place})")
    assert notebook.cells[1].source == execute.SETUP
    assert f"git clone --quiet --depth=1 {REPOSITORY}\n" in execute.SETUP
    # One place tells where the project lives; `make notebooks` writes it everywhere.
    everything = "".join(cell.source for cell in notebook.cells)
    assert everything.count(REPOSITORY) == 1 and execute.REPOSITORY == REPOSITORY


def test_storing_again_changes_nothing(execute):
    for name in NAMES:
        notebook, again = read(name), read(name)
        execute.normalise(again, f"{name}.ipynb")
        for one, other in zip(pictures(notebook), pictures(again), strict=True):
            assert one.size == other.size
        for each in (notebook, again):
            for output in outputs(each):
                output.get("data", {}).pop("image/png", None)
        assert notebook == again


def test_normalising_drops_what_changes(execute):
    notebook = read(NAMES[0])
    cell = notebook.cells[1]
    cell.metadata["execution"] = {"iopub.execute_input": "2024-01-01T00:00:00Z"}
    kept = nbformat.v4.new_output("stream", name="stdout", text="396\n")
    log = nbformat.v4.new_output("stream", name="stderr", text="12:00:00 step 1\n")
    cell.outputs, cell.source = [log, kept], "print(396)"
    notebook.cells[0].source = notebook.cells[0].source.replace("unipt-jax/unipt-jax", "a/fork")
    execute.normalise(notebook, f"{NAMES[0]}.ipynb")
    assert cell.outputs == [kept] and cell.metadata == {} and cell.source == execute.SETUP
    assert notebook.cells[0].source == read(NAMES[0]).cells[0].source
