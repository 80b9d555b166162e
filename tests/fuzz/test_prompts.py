"""Sentences as anybody may type them, and whatever else a search may be asked for."""

import dataclasses
import io
import json

import jax
import jax.numpy as jnp
import jaxtyping
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

import unipt_jax
from tests.fuzz.outcomes import clear, is_one_line
from unipt_jax.captioning import lexicon
from unipt_jax.core.errors import DataError, printable
from unipt_jax.search import index, terminal
from unipt_jax.search.gallery import Gallery, Hit

SIZE = 12
ODD = [
    *(
        "",
        " ",
        "\n",
        "日本",
        "\udcff",
        "\ud800",
        "\0",
        "\x1b[31mred\x1b[0m",
        "\u202ered",
        "a\u0301",
    ),
    *(
        "red " * 500,
        "{}",
        "%s",
        "<|endoftext|>",
        "[MASK]",
        "'; --",
        "\u200b",
        "😀",
        "a\rb",
        "\x9b2J",
    ),
]
texts = st.sampled_from(ODD) | st.text(max_size=20) | st.sampled_from(["a red jacket", "a man"])
anything = texts | st.none() | st.booleans() | st.integers() | st.floats() | st.binary(max_size=4)
CHOICES = {"gender": ["male", "female"], "upper_clothes.color": ["red", "blue"]}


@pytest.fixture(scope="module", autouse=True)
def unchecked():
    """As users run the package: without the type checks of the tests."""
    jaxtyping.config.update("jaxtyping_disable", True)
    yield
    jaxtyping.config.update("jaxtyping_disable", False)


@pytest.fixture(scope="module")
def model():
    # One at a time: a program for each length, and no more to compile.
    return dataclasses.replace(unipt_jax.load("examples/small_clip"), batch_size=1)


@pytest.fixture(scope="module")
def gallery(model, tmp_path_factory):
    """Twelve people who are no more than features and attributes; some are there twice."""
    place = tmp_path_factory.mktemp("index")
    rng = np.random.default_rng(0)
    features = rng.normal(size=(SIZE, model.model.spec.embedding_dim)).astype(np.float32)
    features[6:9] = features[:3]
    features /= np.linalg.norm(features, axis=1, keepdims=True)
    lines = [json.dumps({"image": f"{number}.jpg"}).encode() + b"\n" for number in range(SIZE)]
    (place / "rows").write_bytes(b"".join(lines))
    starts = np.cumsum([0, *map(len, lines[:-1])])
    clothes = list(lexicon.english().sets["upper_clothes"].phrases)
    colors = [
        next(label for label in clothes if label.startswith(color)) for color in ("red", "blue")
    ]
    numbers = np.arange(SIZE)
    phrases = {
        "gender": (("male", "female"), (numbers % 2).astype(np.int16)),
        "upper_clothes": (tuple(colors), (numbers % 3 - 1).astype(np.int16)),
    }
    found = index.Index(
        place, place, features, numbers, index.Rows(place / "rows", starts), phrases, ()
    )
    return Gallery(found, model, None)


@given(st.lists(texts, max_size=4), st.none() | st.tuples(st.integers(0, 4), anything))
def test_any_texts_become_unit_rows_each_as_it_is_alone(model, batch, put):
    if put:
        batch = [*batch[: put[0]], put[1], *batch[put[0] :]]
    wrong = [at for at, text in enumerate(batch) if not isinstance(text, str)]
    found = clear(lambda: model.encode_texts(batch), names=f"text {wrong[0]} is" if wrong else "")
    assert bool(found.refusal) == bool(wrong)
    if found.refusal or not batch:
        return
    assert found.value.shape == (len(batch), model.model.spec.embedding_dim)
    np.testing.assert_allclose(np.linalg.norm(found.value, axis=1), 1, atol=1e-5)
    alone = model.encode_texts(batch[-1:])
    np.testing.assert_allclose(found.value[-1:], alone, atol=1e-5)


counts_ = st.integers(-2, 20) | st.sampled_from([10**30, np.int64(3), True, 2.5, None, "3", np.nan])
names = st.sampled_from([*CHOICES, "gendr", "gender.", "upper_clothes", "", 5, None])
phrases = st.sampled_from(["male", "female", "red", "blue", "", "mal", 5, None])
wheres = (
    st.none()
    | st.dictionaries(names, phrases | st.lists(phrases, max_size=2), max_size=2)
    | st.sampled_from(["gender", 5, ["gender=male"]])
)


def allowed(number, where):
    """Whether somebody has one of the phrases of each attribute."""
    own = {
        "gender": CHOICES["gender"][number % 2],
        "upper_clothes.color": [None, *CHOICES["upper_clothes.color"]][number % 3],
    }
    return all(
        own[name] in (said if isinstance(said, list) else [said]) for name, said in where.items()
    )


@given(anything, counts_, st.just("") | anything, wheres)
def test_a_search_finds_or_says_why_not(gallery, text, k, without, where):
    found = clear(lambda: gallery.search(text, k, without=without, where=where))
    whole = isinstance(k, int | np.integer) and not isinstance(k, bool) and k >= 1
    if found.refusal:
        if (
            isinstance(text, str)
            and text in ("a red jacket", "a man")
            and without == ""
            and not where
        ):
            assert not whole and f"k={k!r}" in found.refusal
        return
    hits = found.value
    assert whole and isinstance(text, str) and isinstance(without, str)
    numbers, scores = [hit.number for hit in hits], [hit.score for hit in hits]
    assert len(set(numbers)) == len(numbers)
    fitting = [number for number in range(SIZE) if allowed(number, where or {})]
    assert set(numbers) <= set(fitting) and len(numbers) == min(k, len(fitting))
    assert scores == sorted(scores, reverse=True) and np.isfinite(scores).all()
    assert all(-1.001 <= score <= 1.001 for score in scores)


@given(anything | st.integers(-1, SIZE), st.integers(1, 3))
def test_likeness_to_any_number(gallery, number, k):
    found = clear(lambda: gallery.similar(number, k), names=f"image {printable(repr(number))}")
    known = isinstance(number, int) and not isinstance(number, bool) and 0 <= number < SIZE
    assert bool(found.refusal) != known
    if known:
        assert found.value[0].score == pytest.approx(1, abs=1e-5)


@given(
    st.integers(1, 3),
    st.sampled_from([np.nan, np.inf, 1.0]),
    st.sampled_from([np.float32, np.float64]),
)
def test_an_embedding_of_something_else_is_refused(gallery, width, value, dtype):
    whole = gallery.embedding(0).astype(dtype)
    whole[1] = value
    found = clear(lambda: gallery.find(whole))
    assert bool(found.refusal) == (value != 1.0)
    assert clear(lambda: gallery.find(whole[:width])).refusal


@given(texts, st.lists(st.tuples(texts, texts), max_size=3), st.sampled_from([20, 80, 1000]))
def test_a_terminal_gets_nothing_that_it_would_obey(query, found, width):
    """Not from a query, a file's name or a caption that others wrote."""
    hits = [Hit(at, path, 0.5, caption, {}) for at, (path, caption) in enumerate(found)]
    file = io.StringIO()
    Console(file=file, width=width).print(terminal.table(query, hits, SIZE))
    lines = file.getvalue().split("\n")
    assert all(map(is_one_line, lines))
    file.getvalue().encode("utf-8", "strict")
    shown = printable(query)
    assert is_one_line(shown) and (shown == query or not is_one_line(query))


@pytest.mark.parametrize("side", ["text", "image"])
def test_what_the_model_has_no_number_for_is_named(model, tmp_path, side):
    """Embeddings of damaged parameters, which an index would keep (P67)."""
    params = jax.tree.map(lambda leaf: jnp.full_like(leaf, jnp.nan), model.params)
    damaged = dataclasses.replace(model, params=params)
    if side == "text":
        with pytest.raises(DataError, match="text 0: its embedding is not finite"):
            damaged.encode_texts(["a man", "a woman"])
        return
    pixels = np.zeros((8, 4, 3), np.uint8)
    with pytest.raises(DataError, match="image 0: its embedding is not finite"):
        damaged.encode_images([pixels, pixels])
