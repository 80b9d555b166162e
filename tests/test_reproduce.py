"""The paper's tables: each run is what its name says, and the page is true to the figures."""

import dataclasses
import json

import pytest
import reproduce
import workshop
from drawn_reid import make, page
from drawn_reid.tables import RUNS, TABLES

from tests.workshops import note_commands
from unipt_jax.captioning import lexicon
from unipt_jax.core.files import read_json

SETTINGS = {"drawn": reproduce.drawn, "real": lambda shop: reproduce.real(shop.root / "sets")}


@pytest.fixture(params=SETTINGS)
def run(request, tmp_path, monkeypatch):
    """Gives the configurations that a run comes to, by what its directory begins with."""

    def evaluation(config):
        figures = {"text_to_image": {"metrics": {"R1": 10.0 * len(made)}}}
        rows = [{"features": {"f": figures}} for _ in config.data]
        return {"feature": "f", "data_sets": rows}

    made = note_commands(monkeypatch, tmp_path, evaluation)
    monkeypatch.setattr(make, "write", lambda part, place: None)
    shop = workshop.Workshop(tmp_path)
    reproduction = reproduce.Reproduction(SETTINGS[request.param](shop), shop)

    def start(name, trained=0, seed=3):
        made.clear()
        for note in tmp_path.rglob("*.done.json"):
            note.unlink()
        data = list(reproduction.setting.datasets)[trained]
        found = reproduction.rank1(name, data, seed)
        return found, {name.split("/")[0]: config for name, config in made.items()}, made

    return start


def flat(config, but=()):
    nested = dataclasses.asdict(config)
    return {
        f"{group}.{name}" if isinstance(value, dict) else group: inner
        for group, value in nested.items()
        for name, inner in (value.items() if isinstance(value, dict) else [("", value)])
        if group not in but
    }


def changed(one, other, but=("data", "init")):
    one, other = flat(one, but), flat(other, but)
    return {name for name in one if one[name] != other[name]}


def test_unipt_pre_trains_fine_tunes_and_is_tested_on_both(run):
    found, configs, made = run("UniPT")
    trained, other = found
    assert [name.split("/")[0] for name in made].count("captions") == 1
    pretrain, finetune, figures = (configs[name] for name in ("pretrain", "finetune", "figures"))
    assert pretrain.data[0].endswith("captions/pool-456")
    assert finetune.init.endswith("pretrain/all-3") and finetune.model.pgu and pretrain.loss.mlm
    assert finetune.data[0].endswith(f"data/{trained}")
    assert [data.split("/")[-1] for data in figures.data] == [trained, other]
    assert pretrain.seed == finetune.seed == 3 and figures.split == "test"


@pytest.mark.parametrize(
    ("name", "pretrain", "finetune"),
    [
        ("without MLM", {"loss.mlm", "mlm.probability"}, set()),
        ("without PGU", set(), {"model.pgu"}),
        ("half of the templates", set(), set()),
        ("twice the images", set(), set()),
        ("image side pre-trained", set(), {"init_image"}),
    ],
)
def test_a_run_differs_from_unipt_as_its_name_says(run, name, pretrain, finetune):
    plain = run("UniPT")[1]
    configs = run(name)[1]
    assert changed(plain["pretrain"], configs["pretrain"]) == pretrain
    assert changed(plain["finetune"], configs["finetune"]) == finetune
    data = [place.split("/")[-1] for place in configs["pretrain"].data]
    expected = {"half of the templates": ["pool-228"], "twice the images": ["pool-456", "more-456"]}
    assert data == expected.get(name, ["pool-456"])
    side = configs["finetune"].init_image if name.startswith("image") else configs["finetune"].init
    assert "pretrain/" in side


def test_what_is_not_pre_trained_starts_as_the_data_set_does(run):
    plain = run("UniPT")[1]
    for name in ("not pre-trained", "not pre-trained, without PGU"):
        configs = run(name)[1]
        assert "pretrain" not in configs and not configs["finetune"].init
        assert changed(plain["finetune"], configs["finetune"]) <= {"model.pgu"}


def test_another_data_set_is_trained_on(run):
    found, configs, _ = run("UniPT", trained=1)
    assert configs["finetune"].data[0].endswith(f"data/{next(iter(found))}")


@pytest.mark.parametrize("count", [1, 228, 456, 480])
def test_fewer_templates_are_whole_ones_from_all_over(count):
    content = read_json(lexicon.ENGLISH)
    fewer = reproduce.fewer_templates(content, count)
    assert len(fewer["templates"]) == count
    assert not any(isinstance(each, dict) for each in fewer["templates"])
    assert len({str(each) for each in fewer["templates"]}) == count
    assert {**content, "templates": 0} == {**fewer, "templates": 0}
    if count == 228:
        words = lexicon.parse(fewer, "fewer")
        assert len(words.templates) == count and not any(t.leaves_out for t in words.templates)
        of_456 = reproduce.fewer_templates(content, 456)["templates"]
        assert fewer["templates"] == of_456[::2]


def test_no_more_templates_are_taken_than_there_are():
    with pytest.raises(ValueError, match="481 are asked for, of 480"):
        reproduce.fewer_templates(read_json(lexicon.ENGLISH), 481)


# ---------------------------------------------------------------------------- the page


def made_up(**runs):
    """Figures of runs, by name, of both data sets: those on their own, those on the other."""
    return {
        "datasets": ["a", "b"],
        "minutes": {"2": 12.4},
        "runs": {
            name: {
                "code": "abc",
                "seeds": [0, 1],
                "R1": {"a": {"a": own, "b": other}, "b": {"b": other, "a": own}},
            }
            for name, (own, other) in runs.items()
        },
    }


FOUND = made_up(**{
    "UniPT": ([30.0, 40.0], [10.0, 20.0]),
    "not pre-trained": ([20.0, 45.0], [5.0, 6.0]),
    "image side pre-trained": ([50.0, 60.0], [1.0, 2.0]),
})  # fmt: skip


def test_the_page_has_means_ranges_and_the_papers_figures():
    text = page.markdown(FOUND)
    assert "| UniPT | 66.83 | 59.08 | 35.0 (30.0-40.0) | 15.0 (10.0-20.0) |" in text
    assert "| not pre-trained | 65.30 | 57.60 | 32.5 (20.0-45.0) | 5.5 (5.0-6.0) |" in text
    # Across: trained on a, tested on b.
    assert "| UniPT | 35.51 | 28.48 | 15.0 (10.0-20.0) | 35.0 (30.0-40.0) |" in text
    assert "| CUHK-PEDES to ICFG-PEDES | ICFG-PEDES to CUHK-PEDES | a to b | b to a |" in text
    assert "| UniPT | abc | 0, 1 |" in text and "12 minutes." in text


def test_the_page_says_where_seeds_or_means_disagree():
    text = page.markdown(FOUND)
    assert "UniPT > not pre-trained, a: **undecided**: 1 of 2 seeds agree (+10.0, -5.0)" in text
    assert "UniPT > not pre-trained, b: agrees (+5.0, +14.0)" in text
    assert "UniPT > image side pre-trained, a: **disagrees** (-20.0, -20.0)" in text
    assert "UniPT > not pre-trained, a to b: agrees (+5.0, +14.0)" in text


def test_the_committed_page_is_of_the_committed_figures():
    found = json.loads(reproduce.RESULTS.read_text())
    assert reproduce.RESULTS.with_suffix(".md").read_text() == page.markdown(found)


def test_a_table_whose_runs_are_missing_is_left_out():
    text = page.markdown(FOUND)
    assert "Table 3" in text and "Table 5" not in text
    assert "Table 3" not in page.markdown(FOUND, only="2")


def test_runs_of_other_seeds_are_not_compared():
    found = json.loads(json.dumps(FOUND))
    found["runs"]["UniPT"]["seeds"] = [1, 2]
    with pytest.raises(ValueError, match="other seeds"):
        page.markdown(found)


def test_every_row_is_a_run_and_every_order_one_of_the_table():
    for table in TABLES.values():
        assert table.rows.keys() <= RUNS.keys()
        assert {name for pair in table.orders for name in pair} <= table.rows.keys()
        for better, worse in table.orders:
            for high, low in zip(table.rows[better], table.rows[worse], strict=True):
                assert low is None or high > low  # The order is the paper's.


def test_a_table_is_noted_with_code_and_seeds(tmp_path, monkeypatch):
    class Made:
        setting = reproduce.Setting(None, {"a": "", "b": ""}, "", "", {})
        workshop = workshop.Workshop(tmp_path)

        def rank1(self, name, trained, seed):
            return {"a": 1.0 + seed, "b": 2.0 + bool(RUNS[name].start)}

    Made.workshop.seconds["x"] = 90.0
    results = tmp_path / "results.json"
    reproduce.reproduce("2", Made(), [4, 5], results)
    found = read_json(results)
    assert found["runs"]["UniPT"]["R1"]["a"] == {"a": [5.0, 6.0], "b": [3.0, 3.0]}
    assert found["runs"]["not pre-trained"]["seeds"] == [4, 5]
    assert found["minutes"] == {"2": 1.5} and found["runs"]["UniPT"]["code"]
    assert "Table 2" in (tmp_path / "results.md").read_text()
