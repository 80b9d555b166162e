"""The pages that people read, taken apart: blocks of code, commands, links and anchors."""

import re
import shlex
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parents[1]
FENCE = re.compile(r"^```(?P<language>\S*)[^\n]*\n(?P<text>.*?)^```$", re.DOTALL | re.MULTILINE)
# A command within a sentence, which may go over the end of a line.
SPAN = re.compile(r"`((?:python|make|pip install)\s[^`]+)`")
LINK = re.compile(r"!?\[(?:[^\[\]]|!?\[[^\]]*\]\([^)]*\))*\]\(([^()\s]+)\)")
NESTED = re.compile(r"!\[[^\]]*\]\(([^()\s]+)\)")


class Block(NamedTuple):
    """Some code of a page."""

    page: str
    line: int
    language: str
    text: str


class Command(NamedTuple):
    """A line of a shell."""

    page: str
    line: int
    words: tuple[str, ...]


def pages() -> list[Path]:
    """Returns what a user reads first and then."""
    return [
        ROOT / "README.md",
        *sorted((ROOT / "docs").glob("*.md")),
        ROOT / "benchmarks/RESULTS.md",
    ]


def blocks(page: Path) -> list[Block]:
    """Returns the fenced blocks of a page."""
    text = page.read_text()
    name = str(page.relative_to(ROOT))
    return [
        Block(name, text.count("\n", 0, found.start()) + 2, found["language"], found["text"])
        for found in FENCE.finditer(text)
    ]


def commands(page: Path) -> list[Command]:
    """Returns the commands of a page's shell blocks, and those that stand within its sentences."""
    found = []
    for block in blocks(page):
        if block.language == "sh":
            for line in block.text.replace("\\\n", " ").splitlines():
                if words := shlex.split(line, comments=True):
                    found.append(Command(block.page, block.line, tuple(words)))
    text = prose(page.read_text())
    for span in SPAN.finditer(text):
        line = text.count("\n", 0, span.start()) + 1
        found.append(Command(str(page.relative_to(ROOT)), line, tuple(shlex.split(span[1]))))
    return found


def prose(text: str) -> str:
    """Returns the text with its fenced blocks blanked, line for line."""
    return FENCE.sub(lambda found: "\n" * found[0].count("\n"), text)


def links(text: str) -> list[str]:
    """Returns where the links and pictures of Markdown point."""
    # Code may look like a link: f(x)[i](y).
    text = re.sub(r"`[^`\n]*`", lambda span: "`" + " " * (len(span[0]) - 2) + "`", prose(text))
    found = [found[1] for pattern in (LINK, NESTED) for found in pattern.finditer(text)]
    return list(dict.fromkeys(found))


def anchors(text: str) -> set[str]:
    """Returns the anchors of a page's headings, as GitHub and MyST make them."""
    titles = re.findall(r"^#+ (.+)$", prose(text), re.MULTILINE)
    plain = [re.sub(r"[`*]|\[([^\]]*)\]\([^)]*\)", r"\1", title).lower() for title in titles]
    return {re.sub(r"[^\w\- ]", "", title).strip().replace(" ", "-") for title in plain}
