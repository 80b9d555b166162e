"""A Sphinx extension: tables of configuration fields, docstrings as this project writes them.

And links from pages to files of the repository that lie outside `docs/`.
"""

import posixpath
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from docutils import nodes
from sphinx.application import Sphinx
from sphinx.domains.python import PyObject
from sphinx.util.docutils import SphinxDirective

from unipt_jax.config import schema

# Where a link or a picture of Markdown points to, if it is a file.
TARGET = re.compile(r"(?<=\]\()(?![a-z]+:|#)([^()\s#]+)")


class Fields(SphinxDirective):
    """`{fields} STAGE`: a table of the stage's own fields, and one of each group."""

    required_arguments = 1

    def run(self) -> list[nodes.Node]:
        """Returns what the tables' Markdown becomes."""
        return self.parse_text_to_nodes("\n".join(tables(schema.STAGES[self.arguments[0]])))


def tables(cls: type) -> Iterator[str]:
    """Yields the lines of a stage's tables, in Markdown, group by group."""
    groups: dict[str, list[str]] = {}
    for each in schema.describe(cls):
        cells = (f"`{each.name}`", each.kind, shown(each.default), each.limits, each.doc)
        line = "| " + " | ".join(cell.replace("|", r"\|") for cell in cells) + " |"
        name = each.name.rpartition(".")[0]
        title = f"**{name}**: {each.group}" if name else each.group
        groups.setdefault(title, []).append(line)
    for title, lines in groups.items():
        yield from ("", title)
        yield from ("", "| field | type | default | range | meaning |", "|---|---|---|---|---|")
        yield from lines


def shown(default: Any) -> str:
    """Returns a default as the command line takes it."""
    if default == "required":
        return "**required**"
    if isinstance(default, tuple):
        default = ",".join(map(str, default))
    return "empty" if default == "" else f"`{default}`"


def relink(text: str, folder: str, repository: str) -> str:
    """Makes links right that are relative to `folder` of the repository, wherever they point to.

    Pages link to each other; every other file is where the repository is kept.
    """

    def target(link: re.Match) -> str:
        path = posixpath.normpath(posixpath.join(folder, link[1]))
        if path.startswith("docs/"):
            return posixpath.relpath(path, "docs")
        return f"{repository}/blob/main/{path}"

    return TARGET.sub(target, text)


def link_page(app: Sphinx, page: str, source: list[str]) -> None:
    """Does so in a page."""
    source[0] = relink(source[0], "docs", app.config.repository)


def link_included(app: Sphinx, path: Path, page: str, source: list[str]) -> None:
    """Does so in a file that a page includes."""
    folder = posixpath.normpath(posixpath.join("docs", path.parent.as_posix()))
    source[0] = relink(source[0], folder, app.config.repository)


def keep_layout(
    app: Sphinx, what: str, name: str, obj: Any, options: Any, lines: list[str]
) -> None:
    """Makes an indented block of a module's docstring what it is in Markdown: preformatted."""
    for at in range(len(lines) - 1, 1, -1) if what == "module" else ():
        before, blank, line = (text[:4] for text in lines[at - 2 : at + 1])
        if line == " " * 4 and not blank and before != line:
            lines[at - 1 : at] = ["", "::", ""]


def shorten(
    app: Sphinx, what: str, name: str, obj: Any, options: Any, signature: str | None, returned: str
) -> tuple[str, str] | None:
    """Names arrays by their classes alone, and leaves out what Flax adds to each module."""
    if signature is None:
        return None
    signature = re.sub(r", parent: [^=]*= <flax.*?>, name: str \| None = None", "", signature)
    return tuple(
        re.sub(r"\b(?:jaxlib\._jax|numpy)\.(?=Array|ndarray)", "", text or "")
        for text in (signature, returned)
    )


def skip(app: Sphinx, what: str, name: str, obj: Any, skipped: bool, options: Any) -> bool | None:
    """Leaves out others' classes that are values here, such as a default dtype."""
    others = isinstance(obj, type) and not obj.__module__.startswith("unipt_jax")
    return True if others else None


def setup(app: Sphinx) -> dict[str, Any]:
    """Registers it."""
    app.add_config_value("repository", "", "env")
    app.add_directive("fields", Fields)
    app.connect("source-read", link_page)
    app.connect("include-read", link_included)
    app.connect("autodoc-process-docstring", keep_layout, priority=100)  # Before Napoleon.
    app.connect("autodoc-process-signature", shorten)
    app.connect("autodoc-skip-member", skip)
    for field in PyObject.doc_field_types:
        if field.name == "variable":
            field.label = "Fields"
    return {"parallel_read_safe": True}
