"""The fields of a stage, as `--help` shows them: what each means, may be, and is."""

import textwrap
from collections.abc import Mapping
from typing import Any

from rich.text import Text

from unipt_jax.config import schema
from unipt_jax.core.errors import printable


def fields(stage: type, values: Mapping[str, Any], width: int) -> Text:
    """Returns the fields of a stage's schema by their groups, in lines of at most `width`.

    A field whose value among the nested `values` is not its default has that value too.
    """
    lines = []
    group = None
    for each in schema.describe(stage):
        if each.group != group:
            group = each.group
            lines += [Text(), _wrapped(group, width)]
            lines[-1].stylize("bold")
        facts = [each.kind, each.limits, _default(each.default)]
        here = _given(values, each.name)
        if here is not None and here != each.default:
            facts.append(f"here {_written(here)}")
        head = _wrapped(f"{each.name}  {'; '.join(filter(None, facts))}", width, indent=2)
        head.stylize("cyan", 2, 2 + len(each.name))
        head.highlight_regex(r"here [^;]*$", "bold")
        lines += [head, _wrapped(each.doc, width, indent=6)]
    return Text("\n").join(lines)


def _wrapped(text: str, width: int, indent: int = 0) -> Text:
    lines = textwrap.fill(text, width - indent, break_on_hyphens=False)
    return Text(textwrap.indent(lines, " " * indent))


def _given(values: Any, name: str) -> Any:
    """Returns a nested value, or None where there is none."""
    for part in name.split("."):
        values = values.get(part) if isinstance(values, Mapping) else None
    return values


def _default(value: Any) -> str:
    return value if value == "required" else f"default {_written(value)}"


def _written(value: Any) -> str:
    """Returns a value as it is written on the command line."""
    if isinstance(value, float):
        return f"{value:g}"
    if value in ("", (), []):
        return "empty"
    return printable(value) if isinstance(value, str) else schema.shown(value)
