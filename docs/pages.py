"""A Sphinx extension: tables of configuration fields, docstrings as this project writes them.

And links from pages to files of the repository that lie outside `docs/`.
"""

import dataclasses
import re
from collections.abc import Iterator
from typing import Any

from docutils import nodes
from sphinx.application import Sphinx
from sphinx.domains.python import PyObject
from sphinx.util.docutils import SphinxDirective

from unipt_jax.config import schema

# A link of Markdown to a file outside docs/.
OUTSIDE = re.compile(r"(?<=\]\()\.\./(?=[\w.])")


class Fields(SphinxDirective):
    """`{fields} STAGE`: a table of the stage's own fields, and one of each group."""

    required_arguments = 1

    def run(self) -> list[nodes.Node]:
        """Returns what the tables' Markdown becomes."""
        return self.parse_text_to_nodes("\n".join(tables(schema.STAGES[self.arguments[0]])))


def tables(cls: type) -> Iterator[str]:
    """Yields the lines of a stage's tables, in Markdown, group by group."""
    groups: dict[str, list[str]] = {}
    for name, kind, default, doc, limits in schema.describe(cls):
        cells = (f"`{name}`", kind, shown(default), limits, doc)
        line = "| " + " | ".join(cell.replace("|", r"\|") for cell in cells) + " |"
        groups.setdefault(name.rpartition(".")[0], []).append(line)
    docs = {item.name: item.metadata["doc"] for item in dataclasses.fields(cls)}
    for group, lines in groups.items():
        yield from ("", f"**{group}**: {docs[group]}" if group else docstring(cls))
        yield from ("", "| field | type | default | range | meaning |", "|---|---|---|---|---|")
        yield from lines


def docstring(cls: type) -> str:
    """Returns the first line of a class's docstring."""
    return (cls.__doc__ or "").partition("\n")[0]


def shown(default: Any) -> str:
    """Returns a default as the command line takes it."""
    if default == "required":
        return "**required**"
    if isinstance(default, tuple):
        default = ",".join(map(str, default))
    return "empty" if default == "" else f"`{default}`"


def link_outside(app: Sphinx, page: str, source: list[str]) -> None:
    """Points links to other files of the repository at the place where it is kept."""
    source[0] = OUTSIDE.sub(f"{app.config.repository}/blob/main/", source[0])


def keep_layout(app: Sphinx, what: str, name: str, obj: Any, options: Any, lines: list[str]) -> None:
    """Makes an indented block of a module's docstring what it is in Markdown: preformatted."""
    if what == "module":
        for at in range(len(lines) - 1, 0, -1):
            if lines[at].startswith("    ") and not lines[at - 1]:
                if not lines[max(at - 2, 0)].startswith("    "):
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
    app.connect("source-read", link_outside)
    app.connect("autodoc-process-docstring", keep_layout, priority=100)  # Before Napoleon.
    app.connect("autodoc-process-signature", shorten)
    app.connect("autodoc-skip-member", skip)
    for field in PyObject.doc_field_types:
        if field.name == "variable":
            field.label = "Fields"
    return {"parallel_read_safe": True}
