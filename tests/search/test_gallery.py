"""What a gallery finds, against the model's own embeddings and the captioner's own words."""

import dataclasses
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import unipt_jax
from tests.search.conftest import SAMPLE
from unipt_jax.captioning import lexicon
from unipt_jax.core.errors import ConfigError, DataError
from unipt_jax.search import gallery as module

RED = "a woman with long dark hair in a red jacket and jeans"


def person(hit):
    return hit.path.split("_")[0]


def of(hit, name):
    """What the captioner said of an image: an attribute, or a part of one."""
    name, _, part = name.partition(".")
    phrase = hit.attributes[name]["phrase"]
    if phrase is None or not part:
        return phrase
    return lexicon.english().sets[name].phrases[phrase].parts[part]


def test_the_right_person_comes_first(gallery):
    assert [person(hit) for hit in gallery.search(RED, 4)] == ["10"] * 4
    assert person(gallery.search("a woman in a white coat", 1)[0]) == "08"


def test_hits_are_a_full_sort_of_cosines(gallery, model):
    query = model.encode_texts([RED])[0]
    paths = [gallery.hit(number).path for number in range(len(gallery))]
    cosines = model.encode_images([Path(SAMPLE) / path for path in paths]) @ query
    hits = gallery.search(RED, 396)
    assert len(hits) == 396 and {hit.path for hit in hits} == set(paths)
    np.testing.assert_allclose([hit.score for hit in hits], np.sort(cosines)[::-1], atol=1e-5)
    for hit in hits[:20]:
        assert paths[hit.number] == hit.path
        np.testing.assert_allclose(hit.score, cosines[hit.number], atol=1e-5)


def test_more_than_there_are_is_all(gallery):
    assert len(gallery.search(RED, 1000)) == len(gallery) == 396


@pytest.mark.parametrize("kind", ["path", "text path", "Pillow", "array"])
def test_a_picture_of_the_gallery_finds_itself(gallery, kind):
    path = Path(SAMPLE) / gallery.hit(77).path
    pixels = np.array(Image.open(path))
    query = {
        "path": path,
        "text path": str(path),
        "Pillow": Image.fromarray(pixels),
        "array": pixels,
    }[kind]
    first = gallery.search_image(query, 1)[0]
    assert first.number == 77
    np.testing.assert_allclose(first.score, 1, atol=1e-5)


def test_the_most_similar_image_is_itself_and_then_the_same_person(gallery):
    hits = gallery.similar(350, 5)
    assert hits[0].number == 350
    np.testing.assert_allclose(hits[0].score, 1, atol=1e-5)
    assert [person(hit) for hit in hits] == [person(hits[0])] * 5


@pytest.mark.parametrize(
    "where",
    [
        {"gender": "female"},
        {"upper_clothes.color": ["red", "white"]},
        {"hair": "short hair", "lower_clothes.garment": ["jeans"], "gender": "male"},
        {"bag": "backpack"},
    ],
)
def test_attributes_that_must_hold_hold(gallery, where):
    def holds(hit):
        return all(
            of(hit, name) in ([wanted] if isinstance(wanted, str) else wanted)
            for name, wanted in where.items()
        )

    wanted = [n for n in range(len(gallery)) if holds(gallery.hit(n))]
    hits = gallery.search("a person", 396, where=where)
    assert wanted and sorted(hit.number for hit in hits) == wanted


def test_what_nobody_has_finds_nobody(gallery):
    assert gallery.search(RED, where={"umbrella": "umbrella"}) == []


def test_choices_count_what_the_captioner_saw(gallery):
    choices = gallery.choices()
    hits = [gallery.hit(number) for number in range(len(gallery))]
    for name in ("gender", "upper_clothes.color", "bag", "umbrella"):
        seen = [of(hit, name) for hit in hits]
        assert choices[name] == {phrase: seen.count(phrase) for phrase in choices[name]}
        assert sum(choices[name].values()) == len(seen) - seen.count(None)
        assert list(choices[name].values()) == sorted(choices[name].values(), reverse=True)


def test_without_moves_its_people_back(gallery):
    def mean_rank(hits):
        return np.mean([rank for rank, hit in enumerate(hits) if person(hit) == "10"])

    plain = gallery.search("a person in jeans", 396)
    less = gallery.search("a person in jeans", 396, without="a person in a red jacket")
    assert mean_rank(less) > mean_rank(plain) + 50
    again = gallery.search("a person in jeans", 396, without="  ")
    assert [hit.number for hit in again] == [hit.number for hit in plain]


def test_without_is_the_formula(gallery, model):
    query, taken = model.encode_texts(["a person in jeans"])[0], model.encode_texts(["a hat"])[0]
    wanted = query - module.WITHOUT * taken
    scores = [hit.score for hit in gallery.search("a person in jeans", 3, without="a hat")]
    cosines = [gallery.embedding(n) @ (wanted / np.linalg.norm(wanted)) for n in range(396)]
    np.testing.assert_allclose(scores, sorted(cosines)[:-4:-1], atol=1e-5)


@pytest.mark.parametrize(
    "text",
    [
        "a woman, in a red jacket; 30 years old (with jeans)!",
        "a WOMAN's red jacket",
        "an élégante woman in a red jacket",
        "a woman\nin a red\tjacket",
        "a woman in a red jacket \udcff",
        "a woman in a red jacket " * 100,
    ],
)
def test_sentences_as_people_type_them(gallery, text):
    assert "10" in [person(hit) for hit in gallery.search(text, 5)]


@pytest.mark.parametrize(
    ("ask", "message"),
    [
        (lambda g: g.search("  "), "the query is empty"),
        (lambda g: g.search("日本"), "the model knows no word of '日本'"),
        (lambda g: g.search(RED, without="日本"), "the model knows no word of '日本'"),
        (lambda g: g.search(RED, 0), "k=0"),
        (lambda g: g.search(RED, where={"gendre": "male"}), "did you mean 'gender'"),
        (lambda g: g.search(RED, where={"gender": "males"}), "did you mean 'male'"),
        (lambda g: g.search_image("nowhere.jpg"), "nowhere.jpg: cannot be read .No such file"),
        (lambda g: g.similar(396), "images 0 to 395"),
        (lambda g: g.image(-1), "images 0 to 395"),
    ],
)
def test_mistakes_are_named(gallery, ask, message):
    with pytest.raises(DataError, match=message):
        ask(gallery)


def test_without_a_captioner_nothing_is_chosen_by_attribute(model, tmp_path):
    plain = unipt_jax.Gallery.from_images(SAMPLE, model, index_directory=tmp_path)
    assert plain.choices() == {}
    assert plain.search(RED, 1)[0].caption == "" and plain.search(RED, 1)[0].attributes == {}
    with pytest.raises(DataError, match="these images have no attributes"):
        plain.search(RED, where={"gender": "male"})


def test_a_model_without_temperature_writes_no_captions(model, tmp_path):
    spec = dataclasses.replace(model.model.spec, temperature="none")
    cold = dataclasses.replace(model, model=model.model.clone(spec=spec))
    with pytest.raises(ConfigError, match="has no temperature"):
        unipt_jax.Gallery.from_images(SAMPLE, model, clip=cold, index_directory=tmp_path)


def test_the_cache_keeps_an_index_of_each_folder_and_model(model, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    folder = tmp_path / "crops"
    folder.mkdir()
    for name in ("10_0532.jpg", "08_0219.jpg"):
        (folder / name).write_bytes(next(Path(SAMPLE).glob(f"{name[:3]}*")).read_bytes())
    places = lambda: sorted((tmp_path / "cache" / "unipt_jax").iterdir())  # noqa: E731
    unipt_jax.Gallery.from_images(folder, model)
    (first,) = places()
    unipt_jax.Gallery.from_images(folder, model)
    assert places() == [first]
    unipt_jax.Gallery.from_images(folder, model, clip=model)
    assert len(places()) == 2
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setattr(Path, "home", lambda: (_ for _ in ()).throw(RuntimeError("no home")))
    with pytest.raises(DataError, match="no home directory to keep an index in"):
        unipt_jax.Gallery.from_images(folder, model)


def test_a_gallery_shows_its_images_from_wherever(model, tmp_path, monkeypatch):
    monkeypatch.chdir(Path(SAMPLE).parent)
    found = unipt_jax.Gallery.from_images("imgs", model, index_directory=tmp_path / "index")
    monkeypatch.chdir(tmp_path)
    assert found.image(0).shape[2] == 3


def test_other_images_by_the_same_models(gallery, tmp_path):
    folder = tmp_path / "crops"
    folder.mkdir()
    for path in sorted(Path(SAMPLE).glob("08_*"))[:3]:
        (folder / path.name).write_bytes(path.read_bytes())
    other = gallery.of_other_images(folder, tmp_path / "index")
    hits = other.search(RED)
    assert {person(hit) for hit in hits} == {"08"} and len(hits) == 3
    # A caption follows from the path too, the attributes from the pixels alone.
    same = {gallery.hit(n).path: gallery.hit(n).attributes for n in range(len(gallery))}
    for hit in hits:
        assert hit.attributes.keys() == same[hit.path].keys()
        for name, chosen in hit.attributes.items():
            assert chosen["phrase"] == same[hit.path][name]["phrase"]
