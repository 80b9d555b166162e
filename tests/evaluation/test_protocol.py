"""What is measured, worked out again from cosines, and what is said of a checkpoint."""

import json
import tracemalloc
import types

import numpy as np
import pytest
from PIL import Image

from tests.evaluation import toy
from unipt_jax.config import load
from unipt_jax.core.errors import ConfigError, DataError
from unipt_jax.core.files import write_json
from unipt_jax.data import builders, tokenization
from unipt_jax.data.annotations import Record
from unipt_jax.evaluation import protocol, published, report, retrieval
from unipt_jax.evaluation.features import Features
from unipt_jax.evaluation.protocol import measure, read_origin
from unipt_jax.evaluation.retrieval import evaluate_ranks

RNG = np.random.default_rng(0)
COUNTS = [2] * 30
IDENTITIES = np.arange(30) // 3
PICTURES, CAPTIONS = toy.pictures(30), toy.captions(COUNTS)
METRICS = ["R1", "R5", "R10", "mAP", "mINP"]


def clusters(identities, widths, noise):
    centres = {name: RNG.standard_normal((10, width)) for name, width in widths.items()}
    return {
        name: (at[identities] + noise * RNG.standard_normal((len(identities), at.shape[1]))).astype(
            np.float32
        )
        for name, at in centres.items()
    }


@pytest.fixture(scope="module")
def found():
    """Features of 30 images of 10 identities and two captions of each, but for one of the images.

    Texts and images share the clusters' centres; the second feature is the noisier one.
    """
    every = clusters(np.repeat(IDENTITIES, 3), {"global": 8, "pgu": 6}, 0.6)
    image = {name: rows[::3] for name, rows in every.items()}
    text = {name: np.delete(rows, np.s_[::3], axis=0) for name, rows in every.items()}
    kept, pairs = np.delete(np.arange(30), 7), np.delete(np.arange(60), [14, 15])
    return Features(
        {name: rows[kept] for name, rows in image.items()},
        {name: rows[pairs] for name, rows in text.items()},
        kept,
        pairs,
        {7: "test cam/7.png: cannot be decoded"},
    )


@pytest.fixture(scope="module")
def split(tmp_path_factory):
    directory = tmp_path_factory.mktemp("toy")
    toy.prepared(directory, quarantined=4)
    return toy.split(PICTURES, CAPTIONS, IDENTITIES, directory=directory)


@pytest.fixture(scope="module")
def result(split, found):
    return measure(split, found, "pgu")


def cosines(found, names):
    sides = []
    for side in (found.text, found.image):
        rows = [side[name].astype(np.float64) for name in names]
        sides.append([each / np.sqrt((each**2).sum(1, keepdims=True)) for each in rows])
    return sum(text @ image.T for text, image in zip(*sides, strict=True)) / len(names)


@pytest.mark.parametrize(
    ("feature", "names"),
    [("global", ["global"]), ("pgu", ["pgu"]), ("concatenated", ["global", "pgu"])],
)
def test_figures_of_both_directions_by_each_feature(result, found, feature, names):
    """Each by its own cosines: turned round, none would be as here (P66)."""
    both = result.summary["features"][feature]
    text, image = IDENTITIES[found.pairs // 2], IDENTITIES[found.images]
    similarity = cosines(found, names)
    for direction, matrix, query, gallery in (
        ("text_to_image", similarity, text, image),
        ("image_to_text", similarity.T, image, text),
    ):
        figures = both[direction]
        assert list(figures["metrics"]) == METRICS
        assert figures["metrics"] == pytest.approx(evaluate_ranks(matrix, query, gallery))
        assert (figures["queries"], figures["gallery"]) == matrix.shape
        assert figures["excluded_queries"] == 0
        for name, (low, high) in figures["intervals"].items():
            assert low <= figures["metrics"][name] <= high
    assert list(result.summary["features"]) == ["global", "pgu", "concatenated"]


def test_counts(result, split):
    """What was left out, now or by the preparation, stands in the report (P02)."""
    assert {name: result.summary[name] for name in ("images", "captions", "identities")} == {
        "images": 29,
        "captions": 58,
        "identities": 10,
    }
    assert result.summary["quarantined"] == 1 and result.summary["left_out_when_prepared"] == 4
    (row,) = result.left_out()
    assert (row["record"], row["image"], row["data"]) == (7, "cam/7.png", split.directory)
    json.dumps(result.summary, allow_nan=False)


def test_one_feature_is_not_concatenated_and_one_identity_has_no_interval(tmp_path):
    toy.prepared(tmp_path)
    split = toy.split(PICTURES[:2], CAPTIONS[:2], [0, 0], directory=tmp_path)
    rows = {"global": RNG.standard_normal((4, 3)).astype(np.float32)}
    images = {"global": rows["global"][:2]}
    found = Features(images, rows, np.arange(2), np.arange(4), {})
    summary = measure(split, found, "global").summary
    assert list(summary["features"]) == ["global"]
    assert summary["features"]["global"]["text_to_image"]["intervals"] is None
    assert summary["features"]["global"]["text_to_image"]["metrics"]["R1"] == 100.0


def test_queries_without_a_match_are_counted(tmp_path):
    """Identity 1 has an image and no caption: it finds none, and is counted apart (P61)."""
    toy.prepared(tmp_path)
    split = toy.split(PICTURES[:3], [["a"], [], ["b"]], [0, 1, 2], directory=tmp_path)
    rows = np.eye(3, dtype=np.float32)
    found = Features({"global": rows}, {"global": rows[[0, 2]]}, np.arange(3), np.arange(2), {})
    both = measure(split, found, "global").summary["features"]["global"]
    assert [both[way]["excluded_queries"] for way in both] == [0, 1]
    assert [both[way]["queries"] for way in both] == [2, 3]
    assert all(both[way]["metrics"]["mAP"] == 100.0 for way in both)


def test_examples_are_the_rankings_ends(result, found):
    similarity = cosines(found, ["pgu"])
    text, image = IDENTITIES[found.pairs // 2], IDENTITIES[found.images]
    precision = np.array(
        [
            evaluate_ranks(similarity[[row]], text[[row]], image)["mAP"] / 100
            for row in range(len(text))
        ]
    )
    best = {identity: precision[text == identity].max() for identity in range(10)}
    worst = {identity: precision[text == identity].min() for identity in range(10)}
    for examples, expected in (
        (result.easiest, sorted(best.values(), reverse=True)),
        (result.hardest, sorted(worst.values())),
    ):
        found_precision = [example.average_precision for example in examples]
        np.testing.assert_allclose(found_precision, expected[:4])
    captions = [text for texts in CAPTIONS for text in texts]
    for example in (*result.easiest, *result.hardest):
        rows = [
            row
            for row, pair in enumerate(found.pairs)
            if captions[pair] == example.caption
            and np.isclose(precision[row], example.average_precision)
        ]
        order = {tuple(found.images[np.argsort(-similarity[row])][:10]): row for row in rows}
        row = order[tuple(hit.image for hit in example.hits)]  # KeyError: other images
        assert [hit.rank for hit in example.hits] == list(range(1, 11))
        for hit in (*example.hits, example.first_match):
            assert hit.match == (IDENTITIES[hit.image] == text[row])
            column = found.images.tolist().index(hit.image)
            assert hit.cosine == pytest.approx(similarity[row, column], abs=1e-6)
        assert example.first_match.match
        assert not any(hit.match for hit in example.hits if hit.rank < example.first_match.rank)


def test_drawn_pairs_are_what_they_are_called(found):
    text, image = IDENTITIES[found.pairs // 2], IDENTITIES[found.images]
    matches, others = protocol._drawn_pairs(text, image)
    assert len(matches[0]) == protocol.PAIRS
    assert (text[matches[0]] == image[matches[1]]).all()
    assert (text[others[0]] != image[others[1]]).all() and len(others[0]) > 0.8 * protocol.PAIRS
    # Each match of an identity is drawn.
    assert {(text[t], i) for t, i in zip(*matches, strict=True)} == {
        (identity, row) for row, identity in enumerate(image)
    }


def test_reranking_sees_through_a_gap_between_texts_and_images(split, found):
    """A constant that keeps texts from images changes no re-ranked figure much."""
    apart = Features(
        found.image,
        {"pgu": found.text["pgu"]},
        found.images,
        found.pairs,
        {},
    )
    one = Features({"pgu": found.image["pgu"]}, apart.text, found.images, found.pairs, {})
    figures = measure(split, one, "pgu", rerank=True).summary
    plain = figures["features"]["pgu"]["text_to_image"]["metrics"]
    assert list(figures["reranked"]) == ["text_to_image", "image_to_text"]
    assert figures["reranked"]["text_to_image"]["mAP"] > plain["mAP"] + 1
    assert measure(split, one, "pgu").summary["reranked"] is None


def test_figures_of_a_single_pair_are_numbers(tmp_path):
    """One image and one caption, around whose mean nothing is left, re-ranked too (P67)."""
    toy.prepared(tmp_path)
    split = toy.split(PICTURES[:1], [["a"]], [0], directory=tmp_path)
    rows = {name: RNG.standard_normal((1, 3)).astype(np.float32) for name in ("global", "pgu")}
    found = Features(rows, rows, np.arange(1), np.arange(1), {})
    summary = measure(split, found, "concatenated", rerank=True).summary
    json.dumps(summary, allow_nan=False)
    assert summary["reranked"]["text_to_image"] == dict.fromkeys(METRICS, 100.0)


def test_no_matrix_of_all_is_held(tmp_path):
    """Captions times images would be 32 MB in float32, once for each direction (P92)."""
    toy.prepared(tmp_path)
    identities = np.arange(2000) % 500
    split = toy.split(PICTURES[:1] * 2000, [["a"] * 2] * 2000, identities, directory=tmp_path)
    text, image = (RNG.standard_normal((n, 8)).astype(np.float32) for n in (4000, 2000))
    found = Features({"global": image}, {"global": text}, np.arange(2000), np.arange(4000), {})
    tracemalloc.start()
    measure(split, found, "global")
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 22e6


def test_a_feature_that_is_not_finite_is_told(split, found):
    """Not only by the extraction, which names the image, but by the ranking too (P67)."""
    broken = {name: rows.copy() for name, rows in found.image.items()}
    broken["pgu"][3, 1] = np.nan
    damaged = Features(broken, found.text, found.images, found.pairs, {})
    with pytest.raises(DataError, match="row 3 is not finite"):
        measure(split, damaged, "pgu")


# ---------------------------------------------------------------------------- checkpoints


def origin(tmp_path, **config):
    write_json(tmp_path / "config.json", config)
    return read_origin(str(tmp_path))


def test_what_is_said_of_a_checkpoint(tmp_path):
    """Which split chose it, if any, and what a test on this or that data set shows (P101)."""
    data = tmp_path / "icfg"
    data.mkdir()
    toy.prepared(data, name="icfg_pedes")
    tuned = origin(tmp_path, stage="finetune", data=[str(data), "gone/elsewhere/"])
    assert tuned.sentence() == (
        "Fine-tuned on icfg_pedes and elsewhere. The checkpoint is the last of its training. No "
        "test split had a part in choosing it."
    )
    assert tuned.setting("icfg_pedes") == "in domain"
    assert tuned.setting("cuhk_pedes") == "cross-domain"
    best = origin(tmp_path, stage="finetune", data=str(data), evaluate=True)
    assert "is the best on the validation split. No test split" in best.sentence()
    chosen = origin(tmp_path, stage="finetune", data=str(data), evaluate=True, paper_protocol=True)
    assert "chosen on the test split" in chosen.sentence() and "unseen" in chosen.sentence()
    pre = origin(tmp_path, stage="pretrain", data=str(data), paper_protocol=False)
    assert "not fine-tuned. The checkpoint is the last of its training. No test" in pre.sentence()
    assert pre.setting("icfg_pedes") == "direct transfer"
    earlier = tmp_path / "earlier"
    earlier.mkdir()
    origin(earlier, stage="finetune", data=str(data), paper_protocol=True)
    later = origin(tmp_path, stage="finetune", data=str(data), init=str(earlier))
    assert "itself chosen on a test split" in later.sentence() and not later.paper_protocol
    latest = tmp_path / "latest"
    latest.mkdir()
    again = origin(latest, stage="finetune", data=str(data), init=str(tmp_path))
    assert "itself chosen on a test split" in again.sentence()
    foreign = read_origin("openai/clip-vit-base-patch16")
    assert (
        "not recorded" in foreign.sentence() and foreign.setting("toy") == "training not recorded"
    )


@pytest.mark.parametrize("start", ["init", "init_image", "init_text"])
def test_a_start_that_was_chosen_on_test_is_told_however_it_was_taken(tmp_path, start):
    """As a whole or one encoder of it, over another run; two runs may start from each other."""
    places = [tmp_path / name for name in ("tested", "between", "last")]
    for place in places:
        place.mkdir()
    tested, between, last = map(str, places)
    origin(places[0], stage="finetune", data="d", paper_protocol=True, init=last)
    origin(places[1], stage="pretrain", data="d", **{start: tested})
    assert origin(places[2], stage="finetune", data="d", init=between).tested_before
    origin(places[0], stage="finetune", data="d", init=last)
    assert not read_origin(last).tested_before
    # Of a whole start and of an encoder's the whole one is taken.
    origin(places[0], stage="finetune", data="d", paper_protocol=True)
    whole = origin(places[1], stage="finetune", data="d", init="a/clip", init_image=tested)
    assert not whole.tested_before


@pytest.mark.parametrize(
    "values",
    [{"stage": 1}, {"data": 5}, {"data": ["a", None]}, {"init": ["a"]}, {"paper_protocol": "no"}],
)
def test_a_configuration_that_no_run_wrote_is_named(tmp_path, values):
    ((name, value),) = values.items()
    with pytest.raises(DataError, match=rf"config\.json: {name}=") as caught:
        origin(tmp_path, **{"stage": "finetune", "data": ["a"]} | values)
    assert repr(value) in str(caught.value)


def test_fingerprints_tell_weights_apart():
    assert protocol.fingerprint({"a": np.ones(3)}) == protocol.fingerprint({"a": np.ones(3)})
    assert protocol.fingerprint({"a": np.ones(3)}) != protocol.fingerprint({"a": np.zeros(3)})


def test_published_figures_are_the_papers():
    """Some of each kind, typed here once more."""
    rows = {(row.model, row.trained, row.tested): row.figures for row in published.PUBLISHED}
    assert rows["UniPT, ViT-B/16", "icfg_pedes", "icfg_pedes"] == {
        "R1": 60.09,
        "R5": 76.19,
        "R10": 82.46,
    }
    assert rows["UniPT, DeiT-S", "icfg_pedes", "cuhk_pedes"]["R1"] == 28.48
    assert rows["CLIP as it is, ViT-B/16", "", "rstp_reid"] == {"R1": 13.45, "mAP": 10.31}
    assert len(rows) == len(published.PUBLISHED)
    of = published.of("icfg_pedes")
    assert [row.trained for row in of] == ["icfg_pedes"] * 6 + ["cuhk_pedes", "", ""]
    assert published.of("toy") == []


# ---------------------------------------------------------------------------- the whole


def configuration(*directories, **changes):
    values = {"data": ",".join(map(str, directories)), "checkpoint": "somewhere", **changes}
    return load.load("configs/evaluate.py", values)


@pytest.fixture
def opened(monkeypatch, tmp_path):
    """Two data sets that lie in memory, and the tokenizer."""
    tokenizer = tokenization.load("examples/tokenizer")
    splits = {}
    for name, size in (("one", 12), ("two", 9)):
        (tmp_path / name).mkdir()
        toy.prepared(tmp_path / name, name=name)
        splits[str(tmp_path / name)] = toy.split(
            PICTURES[:size], CAPTIONS[:size], IDENTITIES[:size], tokenizer, tmp_path / name
        )

    def open_split(directory, split):
        if directory not in splits:
            raise DataError(f"{directory} is no prepared data set")
        return splits[directory]

    monkeypatch.setattr(
        protocol, "builders", types.SimpleNamespace(**{**vars(builders), "open_split": open_split})
    )
    return list(splits), tokenizer


def test_the_first_of_several_data_sets_leads(opened):
    directories, tokenizer = opened
    config = configuration(*directories)
    evaluation, results = protocol.evaluate(config, toy.model(), toy.PARAMS, tokenizer, 100)
    assert [each["name"] for each in evaluation["data_sets"]] == ["one", "two"]
    first = evaluation["data_sets"][0]["features"]["concatenated"]
    assert evaluation["feature"] == "concatenated"
    for direction in ("text_to_image", "image_to_text"):
        assert list(evaluation[direction]) == METRICS
        assert evaluation[direction] == first[direction]["metrics"]
        assert evaluation["intervals"][direction] == first[direction]["intervals"]
    assert {name: evaluation[name] for name in ("queries", "gallery", "excluded_queries")} == {
        "queries": 24,
        "gallery": 12,
        "excluded_queries": 0,
    }
    assert (evaluation["split"], evaluation["checkpoint"]) == ("test", "somewhere")
    assert evaluation["quarantined"] == 0 and evaluation["reranked"] is None
    json.dumps(evaluation, allow_nan=False)
    assert [len(result.split.images) for result in results] == [12, 9]


def test_figures_of_validation_do_not_pass_for_those_of_the_test(tmp_path):
    """Each file tells its split, its counts, the weights and what the figures mean (P68)."""
    records = []
    for number, picture in enumerate(PICTURES[:10]):
        Image.fromarray(picture).save(tmp_path / f"{number}.png")
        name = "val" if number < 3 else "test"
        records.append(Record(f"{number}.png", ("a man", "a bag"), str(number), name, number))
    builders.write(
        records,
        source=tmp_path,
        name="cuhk_pedes",
        workdir=tmp_path / "data",
        tokenizer="examples/tokenizer",
        quarantined=0,
        notices={},
    )
    tokenizer = tokenization.load("examples/tokenizer")
    found = {}
    for name in ("val", "test"):
        made = configuration(tmp_path / "data", split=name)
        found[name], results = protocol.evaluate(made, toy.model(), toy.PARAMS, tokenizer, 100)
        path = tmp_path / f"{name}.html"
        report.write(path, found[name], results, {})
        page = path.read_text()
        for told in (f"split <code>{name}</code>", found[name]["weights"], retrieval.DEFINITION):
            assert told in page
        assert "Not comparable: this is not the published test split." in page
    for name, images in (("val", 3), ("test", 7)):
        assert (found[name]["split"], found[name]["gallery"]) == (name, images)
        assert (found[name]["queries"], found[name]["excluded_queries"]) == (2 * images, 0)
        assert found[name]["definition"] == retrieval.DEFINITION
    assert found["val"]["weights"] == found["test"]["weights"]
    other = {"scale": np.float32(3.0)}
    made = configuration(tmp_path / "data")
    evaluation, _ = protocol.evaluate(made, toy.model(), other, tokenizer, 100)
    assert evaluation["weights"] != found["test"]["weights"]


def test_mistakes_show_before_anything_is_encoded(opened):
    directories, _ = opened
    with pytest.raises(ConfigError, match="did you mean 'concatenated'"):
        protocol.check(configuration(*directories, feature="concat"), toy.model(), toy.PARAMS)
    with pytest.raises(DataError, match=r"nowhere is no .*; elsewhere is no "):
        protocol.check(configuration("nowhere", "elsewhere"), toy.model(), toy.PARAMS)
    protocol.check(configuration(*directories, feature="pgu"), toy.model(), toy.PARAMS)


def test_stored_pixels_of_another_size_show_before_anything_is_encoded(opened):
    directories, _ = opened
    split = protocol.builders.open_split(directories[1], "test")
    split.stored_sizes[directories[1]] = (384, 128)
    with pytest.raises(DataError, match=r"two stores pixels of 384x128, .* 16x8"):
        protocol.check(configuration(*directories), toy.model(), toy.PARAMS)


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ("one", ("one",)),
        ("2024", ("2024",)),
        ("one,two", ("one", "two")),
        ("one, two", ("one", "two")),
        ("('a,b', 'c')", ("a,b", "c")),
        (("one", "two"), ("one", "two")),
    ],
)
def test_data_come_with_or_without_brackets(given, expected):
    made = load.load("configs/evaluate.py", {"data": given, "checkpoint": "c"})
    assert made.data == expected


@pytest.mark.parametrize("given", ["", "one,,two", ()])
def test_no_directory_is_a_mistake(given):
    with pytest.raises(ConfigError, match="name one directory or more"):
        load.load("configs/evaluate.py", {"data": given, "checkpoint": "c"})
