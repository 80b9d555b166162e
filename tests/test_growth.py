"""Other pseudo texts for the real sample: fewer templates, and attributes taken for others."""

import dataclasses

import growth
import numpy as np
import pytest
import workshop

from tests.workshops import note_commands
from unipt_jax.captioning import drawn
from unipt_jax.data import builders


@pytest.fixture(scope="module")
def words():
    return drawn.english()


@pytest.mark.parametrize("count", [1, 57, 228, 456])
def test_fewer_templates_leave_nothing_out(words, count):
    fewer = growth.fewer_templates(words, count)
    assert len({template.skeleton for template in fewer.templates}) == count
    assert not any(template.leaves_out for template in fewer.templates)
    assert fewer.sets is words.sets


def test_no_more_templates_are_taken_than_there_are(words):
    with pytest.raises(ValueError, match="481 are asked for, of 480"):
        growth.fewer_templates(words, 481)


def test_noise_takes_attributes_for_others_as_often_as_it_says(words):
    for noise in (0.0, 0.3, 1.0):
        wrong = []
        for number in range(60):
            choices = drawn.choices(5, number)
            made = growth.mistaken(words, choices, noise, 5, number)
            assert made.keys() == choices.keys()
            assert made == growth.mistaken(words, choices, noise, 5, number)
            wrong += [made[name] != label for name, label in choices.items()]
            for name, label in made.items():
                known = words.sets[name].phrases
                assert label in known or label in (None, choices[name])
                assert label is not None or not words.sets[name].required
        assert abs(np.mean(wrong) - noise) < 0.05


def test_what_is_written_has_other_texts_and_the_same_pictures(tmp_path):
    few = growth.Texts(images=6)
    made = {}
    for name, texts in {
        "plain": few,
        "one": dataclasses.replace(few, templates=1),
        "wrong": dataclasses.replace(few, noise=1.0),
    }.items():
        growth.write(texts, 2, tmp_path / name)
        split = builders.open_split(tmp_path / name, "train")
        made[name] = [(split.images.captions(n), split.images[n]) for n in range(6)]
    expected = [list(record.captions) for record in drawn.records(count=6, seed=2)]
    assert [captions for captions, _ in made["plain"]] == expected
    for name in ("one", "wrong"):
        for (text, image), (other, same) in zip(made["plain"], made[name], strict=True):
            assert text != other
            assert all(np.array_equal(image[key], same[key]) for key in image if key != "captions")


def test_rows_differ_in_one_thing():
    plain = dataclasses.asdict(growth.Texts())
    for vary, rows in growth.ROWS.items():
        assert growth.Texts() in rows and len(set(rows)) == len(rows)
        for texts in rows:
            row = dataclasses.asdict(texts)
            assert {name for name in row if row[name] != plain[name]} <= {vary}


def test_both_trainings_read_what_they_should(tmp_path, monkeypatch):
    def evaluation(config):
        return {"text_to_image": {"R1": 50.0 if "pretrain" in config.checkpoint else 60.0}}

    made = note_commands(monkeypatch, tmp_path, evaluation)
    monkeypatch.setattr(growth, "write", lambda texts, seed, place: None)
    texts = growth.Texts(images=500)
    found = growth.rank1(workshop.Workshop(tmp_path), texts, 4)
    assert found == {"pre-trained": 50.0, "fine-tuned": 60.0}
    pretrain, finetune = made["pretrain/500-all-0-4"], made["finetune/500-all-0-4"]
    texts, own = (tmp_path / name for name in ("texts/500-all-0-4", "captions"))
    assert pretrain.data == (str(texts), str(own)) and pretrain.seed == finetune.seed == 4
    assert finetune.init == str(tmp_path / "pretrain/500-all-0-4")
    assert finetune.data == (str(tmp_path / "data"), str(tmp_path / "texts/12000-all-0-4"))


def test_the_page_has_means_and_ranges():
    rows = {"500": {"pre-trained": [40.0, 50.0], "fine-tuned": [60.0, 61.0]}}
    found = {"images": {"code": "abc", "seeds": [0, 1], "minutes": 3.2, "R1": rows}}
    text = growth.markdown(found)
    assert "| 500 | 45.0 (40.0-50.0) | 60.5 (60.0-61.0) |" in text
    assert "seeds 0, 1, code abc, 3 minutes." in text
