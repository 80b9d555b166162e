"""The table and the contact sheet."""

import io

import numpy as np
import pytest
from PIL import Image
from rich.console import Console

from unipt_jax.core.errors import DataError
from unipt_jax.search import terminal
from unipt_jax.search.gallery import Gallery, Hit

HITS = [
    Hit(number, f"cam[{number}]/{'long' * 20}_{number}.jpg", 1 - number / 8, "", {})
    for number in range(3)
]


def printed(table, width):
    file = io.StringIO()
    Console(file=file, width=width).print(table)
    return file.getvalue()


def test_the_table_has_ranks_scores_and_whole_paths():
    text = printed(terminal.table("a [bold] man", HITS, 1234), 200)
    assert "a [bold] man (among 1,234 images)" in text
    rows = [line.split("│")[1:-1] for line in text.splitlines() if line.startswith("│")]
    assert [[cell.strip() for cell in row] for row in rows] == [
        [str(rank), f"{hit.score:.3f}", hit.path] for rank, hit in enumerate(HITS, 1)
    ]


@pytest.mark.parametrize("name", ["a\nb.jpg", "\udcff.jpg", "\x1b[31m.jpg", "日本\u202e.jpg"])
def test_no_name_breaks_a_line_or_a_terminal(name):
    text = printed(terminal.table(name, [Hit(0, name, 0.5, "", {})], 3), 200)
    text.encode("utf-8", "strict")
    assert len([line for line in text.splitlines() if line.startswith("│")]) == 1
    assert all(each.isprintable() for line in text.splitlines() for each in line)


def test_a_narrow_terminal_loses_no_letter_of_a_path():
    text = printed(terminal.table("q", HITS, 3), 40)
    cells = "".join(line.split("│")[3].strip() for line in text.splitlines() if "│" in line)
    assert all(hit.path in cells for hit in HITS)


def test_captions_have_a_column_where_there_are_any():
    assert "caption" not in printed(terminal.table("q", HITS, 3), 200)
    told = [Hit(0, "a.jpg", 0.5, "A man [in red].", {})]
    assert "A man [in red]." in printed(terminal.table("q", told, 3), 200)


def test_a_pipe_gets_lines_that_are_not_broken(capsys):
    long = [Hit(0, "a/" * 300 + "b.jpg", 0.5, "", {})]
    terminal.show(terminal.table("q", long, 1))
    assert long[0].path in capsys.readouterr().out


SHAPES = ((10, 10), (200, 20), (20, 200), (1, 1), (4000, 2))


def picture(number):
    """One of a colour of its own, of one of many shapes."""
    return np.full((*SHAPES[number % 5], 3), 10 * number, np.uint8)


class Coloured(Gallery):
    """A gallery of such pictures."""

    def __init__(self):
        pass

    def image(self, number):
        return picture(number)


@pytest.mark.parametrize("count", [1, 4, 10, 23])
def test_the_sheet_shows_every_image_in_order(count):
    made = np.array(terminal.sheet([picture(n) for n in range(count)], [0.5] * count))
    (width, height), gap, line = terminal._CELL, terminal._GAP, terminal._LINE
    columns = min(10, count)
    lines = -(-count // 10)
    size = (lines * (height + line + gap) + gap, columns * (width + gap) + gap, 3)
    assert made.shape == size
    for number in range(count):
        left = gap + number % 10 * (width + gap)
        top = gap + number // 10 * (height + line + gap)
        cell = made[top : top + height, left : left + width]
        assert (cell == 10 * number).all(axis=2).any()


def test_pictures_keep_their_proportions():
    """And no side becomes 0 (P55)."""
    assert terminal.fitted(np.zeros((200, 100, 3), np.uint8), 96, 216).size == (96, 192)
    assert terminal.fitted(np.zeros((100, 400, 3), np.uint8), 96, 216).size == (96, 24)
    assert terminal.fitted(np.zeros((4000, 2, 3), np.uint8), 96, 216).size == (1, 216)


@pytest.mark.parametrize(
    ("name", "kind"), [("a.PNG", "PNG"), ("b.JPG", "JPEG"), ("c.jpeg", "JPEG")]
)
def test_the_sheet_is_of_the_kind_that_its_name_says(tmp_path, name, kind):
    terminal.write_sheet(Coloured(), HITS, tmp_path / "new" / name)
    assert Image.open(tmp_path / "new" / name).format == kind


def test_a_jpeg_cannot_be_of_any_height(tmp_path):
    many = [Hit(number % 5, "", 0.5, "", {}) for number in range(2730)]
    with pytest.raises(DataError, match=r"2730 images are too many for a JPEG; take \.png"):
        terminal.write_sheet(Coloured(), many, tmp_path / "a.jpg")


def test_of_nothing_there_is_no_sheet(tmp_path):
    with pytest.raises(DataError, match="nothing was found"):
        terminal.write_sheet(Coloured(), [], tmp_path / "a.png")
    assert not (tmp_path / "a.png").exists()
