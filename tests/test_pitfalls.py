"""`tests/PITFALLS.md` is true: its tests are there and name their case, and its figures add up."""

import ast
import re
from pathlib import Path

import pytest

TESTS = Path("tests")
PAGE = (TESTS / "PITFALLS.md").read_text(encoding="utf-8")
ROWS = re.findall(r"^\| (P\d+) \| (.+?) \| (.+) \|$", PAGE, re.MULTILINE)
CASE = re.compile(r"\bP\d{2,3}\b")


def _docstrings(path: Path) -> dict[str, str]:
    """Returns the docstring of each test of a file, after its class's if it has one."""
    found = {}
    for node in ast.parse(path.read_text(encoding="utf-8")).body:
        members = node.body if isinstance(node, ast.ClassDef) else [node]
        above = ast.get_docstring(node) or "" if isinstance(node, ast.ClassDef) else ""
        for member in members:
            if isinstance(member, ast.FunctionDef) and member.name.startswith("test_"):
                name = f"{node.name}::{member.name}" if member is not node else member.name
                found[name] = f"{above} {ast.get_docstring(member) or ''}"
    return found


DOCSTRINGS = {
    f"{path.as_posix()}::{name}": text
    for path in sorted(TESTS.rglob("test_*.py"))
    for name, text in _docstrings(path).items()
}


@pytest.mark.parametrize(("case", "closed"), [(case, closed) for case, _, closed in ROWS])
def test_a_case_names_tests_that_name_it_or_says_why_it_has_none(case, closed):
    tests = re.findall(r"`(tests/[^`]+)`", closed)
    if not tests:
        assert closed.startswith("not applicable: ")
    for test in tests:
        assert case in CASE.findall(DOCSTRINGS[test]), test


def test_each_case_that_a_test_names_is_listed_once():
    listed = [case for case, _, _ in ROWS]
    assert len(listed) == len(set(listed))
    assert {case for text in DOCSTRINGS.values() for case in CASE.findall(text)} == set(listed)


def test_the_figures_add_up():
    closed = sum("`tests/" in row[2] for row in ROWS)
    assert f"| cases | {len(ROWS)} |" in PAGE
    assert f"| closed by a test | {closed} |" in PAGE
    assert f"| not applicable | {len(ROWS) - closed} |" in PAGE
    fuzzed = r"^\| (?:inputs tried|of them refused|crashes).* \| ([\d,]+) \|$"
    found = re.findall(fuzzed, PAGE, re.MULTILINE)
    tried, refused, crashes = (int(figure.replace(",", "")) for figure in found)
    assert tried > refused > 10_000 and crashes == 0
