"""Runs the notebooks from top to bottom, on CPU, and stores what they show: `make notebooks`.

Each runs in a directory of its own with the repository's `configs`, `examples` and `launch`, so
that nothing but the notebooks changes. What is stored has no times, logs or warnings in it, and
small pictures: a run that shows the same changes few lines.

Usage: python notebooks/execute.py [NAME...]
"""

import argparse
import base64
import io
import os
import tempfile
import tomllib
from pathlib import Path

import nbformat
from nbclient import NotebookClient
from nbformat import NotebookNode
from PIL import Image

ROOT = Path(__file__).parents[1]
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))
NEEDED = ("configs", "examples", "launch")
REPOSITORY = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["urls"]["Repository"]

# The second cell of each.
SETUP = f"""\
import os
import sys
from pathlib import Path

if not Path("launch").is_dir():
    if "google.colab" in sys.modules:
        !git clone --quiet --depth=1 {REPOSITORY}
        %cd -q {REPOSITORY.rsplit("/", 1)[1]}
        %pip install --quiet .
    else:
        os.chdir("..")  # From notebooks/ to the repository's root, where all paths start.
# `python` in the cells that begin with %%bash is the notebook's own.
os.environ["PATH"] = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])"""

_BADGE = "[![Open in Colab]("
_ENVIRONMENT = {"JAX_PLATFORMS": "cpu", "HF_HUB_OFFLINE": "1"}
_KERNEL = {
    "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
    "language_info": {"name": "python"},
}
_COLOURS = 128  # of a stored picture: a third of the bytes


def badge(name: str) -> str:
    """Returns the line that opens a notebook in Colab."""
    image = "https://colab.research.google.com/assets/colab-badge.svg"
    place = REPOSITORY.replace("https://github.com", "https://colab.research.google.com/github")
    return f"{_BADGE}{image})]({place}/blob/main/notebooks/{name})"


def execute(notebook: NotebookNode, directory: Path, *, timeout: float) -> None:
    """Runs a notebook in `directory`, which is empty, and keeps what it shows in it.

    Args:
        notebook: is changed.
        directory: for the notebook's files; the kernel starts in its `notebooks`.
        timeout: seconds that a cell may take.

    Raises:
        CellExecutionError: a cell failed.
        CellTimeoutError: a cell took longer.
    """
    for name in NEEDED:
        (directory / name).symlink_to(ROOT / name)
    start = directory / "notebooks"
    start.mkdir()
    client = NotebookClient(
        notebook,
        timeout=timeout,
        kernel_name="python3",
        coalesce_streams=True,
        # The kernel warns of who else might listen, on a machine of several users.
        extra_arguments=["--Application.log_level=40"],
        resources={"metadata": {"path": str(start)}},
    )
    client.execute(env=os.environ | _ENVIRONMENT)


def normalise(notebook: NotebookNode, name: str) -> None:
    """Removes what changes from run to run, and writes the badge and the set-up cell anew."""
    notebook.metadata = nbformat.from_dict(_KERNEL)
    first, second = notebook.cells[:2]
    first.source = "\n".join(
        badge(name) if line.startswith(_BADGE) else line for line in first.source.split("\n")
    )
    second.source = SETUP
    for cell in notebook.cells:
        cell.metadata = nbformat.from_dict({})
        if cell.cell_type == "code":
            # Logs tell times; warnings are the machine's.
            cell.outputs = [it for it in cell.outputs if it.get("name") != "stderr"]
            for output in cell.outputs:
                data = output.get("data", {})
                if "image/png" in data:
                    data["image/png"] = smaller(data["image/png"])


def smaller(picture: str) -> str:
    """Returns a PNG picture in base64 with a palette."""
    image = Image.open(io.BytesIO(base64.b64decode(picture))).convert("RGB")
    content = io.BytesIO()
    image.quantize(_COLOURS, dither=Image.Dither.NONE).save(content, "PNG", optimize=True)
    return base64.b64encode(content.getvalue()).decode()


def main() -> None:
    """Executes all notebooks, or those that are named."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("names", nargs="*", help="1_search, say; without any, all")
    names = parser.parse_args().names
    for path in NOTEBOOKS:
        if names and path.stem not in names:
            continue
        notebook = nbformat.read(path, as_version=4)
        normalise(notebook, path.name)
        with tempfile.TemporaryDirectory() as directory:
            execute(notebook, Path(directory), timeout=600)
        normalise(notebook, path.name)
        nbformat.write(notebook, path)
        print(f"{path.relative_to(ROOT)}: {path.stat().st_size / 1000:.0f} kB")


if __name__ == "__main__":
    main()
