"""The paper's tables: on drawn pedestrians, or with `--data` on the data sets it used.

Each table is a set of runs, each a few commands of `launch/`; what another table has run already is
taken from `--workdir`. Figures go to `--results`, a JSON file, and a page beside it.

`--data=DIR` holds `cuhk_pedes` and `icfg_pedes` as they are published, and LUPerson's images in
`pool`; for Figure 6 as many again in `more`. Pseudo texts are written anew, since those of the
paper are of templates that it has not published. Encoders start from ImageNet's DeiT-S and BERT.

Usage: python benchmarks/reproduce.py --table=2 [--data=DIR] [--seeds 0 1 2]
           [--workdir=runs/drawn_reid] [--results=benchmarks/drawn_reid/results.json]
"""

import argparse
import dataclasses
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from drawn_reid import make, page
from drawn_reid.tables import RUNS, TABLES
from workshop import Workshop, code

from unipt_jax.captioning import lexicon
from unipt_jax.core.files import read_json, write_json

TEMPLATES = 456  # The paper's; the package has some more.
RESULTS = Path(__file__).parent / "drawn_reid" / "results.json"


@dataclasses.dataclass(frozen=True)
class Setting:
    """Data and configurations.

    Attributes:
        source: gives the directory of `datasets`' annotations and images, "pool" or "more".
        datasets: what stands for CUHK-PEDES and for ICFG-PEDES, and the variants that prepare them.
        caption: variants for the pseudo texts, and so on.
        pretrain: see there.
        finetune: for each of `datasets`.
    """

    source: Callable[[str], Path]
    datasets: Mapping[str, str]
    caption: str
    pretrain: str
    finetune: Mapping[str, str]


def drawn(workshop: Workshop) -> Setting:
    """Returns the benchmark of `drawn_reid`, which is drawn when it is wanted."""
    names = tuple(make.DOMAINS)

    def source(name: str) -> Path:
        place = f"benchmark/{name}"
        return workshop.once(place, "make.write", lambda: make.write(name, workshop.root / place))

    return Setting(
        source=source,
        datasets=dict.fromkeys(names, "prepare.py:drawn_reid"),
        caption="caption.py:drawn_reid",
        pretrain="pretrain.py:drawn_reid",
        finetune=dict.fromkeys(names, "finetune.py:drawn_reid"),
    )


def real(root: Path) -> Setting:
    """Returns the paper's data sets, which lie below `root`, and its smaller model."""
    names = ("cuhk_pedes", "icfg_pedes")
    return Setting(
        source=lambda name: root / name,
        datasets={name: f"prepare.py:{name}" for name in names},
        caption="caption.py",
        pretrain="pretrain.py:deit_s",
        finetune={name: f"finetune.py:{name},backbone=deit_s" for name in names},
    )


class Reproduction:
    """Runs of one setting in one work directory."""

    def __init__(self, setting: Setting, workshop: Workshop):
        self.setting = setting
        self.workshop = workshop

    def rank1(self, name: str, trained: str, seed: int) -> dict[str, float]:
        """Returns the R1, in percent, of a run that `trained` fine-tunes, on each data set."""
        others = [other for other in self.setting.datasets if other != trained]
        place = self.workshop.launch(
            f"figures/{_directory(name)}-{trained}-{seed}",
            "evaluate",
            "evaluate.py",
            data=",".join(str(self._prepared(each)) for each in (trained, *others)),
            checkpoint=self._finetuned(name, trained, seed),
        )
        found = read_json(place / "evaluation.json")
        return {
            tested: each["features"][found["feature"]]["text_to_image"]["metrics"]["R1"]
            for tested, each in zip((trained, *others), found["data_sets"], strict=True)
        }

    def _finetuned(self, name: str, trained: str, seed: int) -> Path:
        run = RUNS[name]
        fields: dict[str, object] = {"data": self._prepared(trained), "seed": seed}
        if run.start:
            start = {"both": "init", "image": "init_image"}[run.start]
            fields[start] = self._pretrained(run.texts, run.mlm, seed)
        if not run.pgu:
            fields["model__pgu"] = ""
        place = f"finetune/{_directory(name)}-{trained}-{seed}"
        return self.workshop.launch(place, "train", self.setting.finetune[trained], **fields)

    def _pretrained(self, texts: str, mlm: bool, seed: int) -> Path:
        parts = ("pool", "more") if texts == "twice" else ("pool",)
        count = TEMPLATES // 2 if texts == "half" else TEMPLATES
        fields = {"data": ",".join(str(self._captions(part, count)) for part in parts)}
        if not mlm:
            fields |= {"loss__mlm": 0.0, "mlm__probability": 0.0}
        name = f"pretrain/{texts}{'' if mlm else '-without_mlm'}-{seed}"
        return self.workshop.launch(name, "train", self.setting.pretrain, seed=seed, **fields)

    def _captions(self, part: str, count: int) -> Path:
        words = self.workshop.root / f"templates_{count}.json"
        if not words.exists():
            write_json(words, fewer_templates(read_json(lexicon.ENGLISH), count))
        return self.workshop.launch(
            f"captions/{part}-{count}",
            "caption",
            self.setting.caption,
            images=self.setting.source(part),
            lexicon=words,
        )

    def _prepared(self, name: str) -> Path:
        return self.workshop.launch(
            f"data/{name}",
            "prepare",
            self.setting.datasets[name],
            source=self.setting.source(name),
            name=name,
        )


def fewer_templates(content: Mapping, count: int) -> dict:
    """Returns a lexicon's content with `count` templates that leave nothing out."""
    whole = [each for each in content["templates"] if not isinstance(each, dict)]
    return {**content, "templates": evenly(whole, count)}


def evenly(options: Sequence, count: int) -> list:
    """Returns `count` of the options from all over their order.

    Raises:
        ValueError: there are not so many.
    """
    if not 1 <= count <= len(options):
        raise ValueError(f"{count} are asked for, of {len(options)}")
    return [options[k * len(options) // count] for k in range(count)]


def _directory(name: str) -> str:
    return name.replace(",", "").replace(" ", "_")


def reproduce(table: str, reproduction: Reproduction, seeds: Sequence[int], results: Path) -> None:
    """Runs a table and notes its figures, each run with the code that made it and the seeds."""
    datasets = tuple(reproduction.setting.datasets)
    found = read_json(results) if results.exists() else {"datasets": datasets, "runs": {}}
    for name in TABLES[table].rows:
        found["runs"][name] = {
            "code": code(),
            "seeds": list(seeds),
            # By what it was trained on, what it was tested on, and seed.
            "R1": {
                trained: _by_data_set([reproduction.rank1(name, trained, s) for s in seeds])
                for trained in datasets
            },
        }
        write_json(results, found)
    minutes = round(sum(reproduction.workshop.seconds.values()) / 60, 1)
    found.setdefault("minutes", {})[table] = minutes
    write_json(results, found)
    results.with_suffix(".md").write_text(page.markdown(found))
    print(page.markdown(found, only=table))
    print(f"{minutes} minutes; {results.with_suffix('.md')}")


def _by_data_set(rows: Sequence[Mapping[str, float]]) -> dict[str, list[float]]:
    return {tested: [row[tested] for row in rows] for tested in rows[0]}


def main() -> None:
    """Runs the tables that are asked for."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--table", required=True, choices=TABLES)
    parser.add_argument("--data", type=Path)
    parser.add_argument("--workdir", type=Path)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--results", type=Path)
    flags = parser.parse_args()
    workdir = flags.workdir or Path("runs", "reproduction" if flags.data else "drawn_reid")
    workshop = Workshop(workdir)
    setting = real(flags.data) if flags.data else drawn(workshop)
    results = flags.results or (workdir / "results.json" if flags.data else RESULTS)
    reproduce(flags.table, Reproduction(setting, workshop), flags.seeds, results)


if __name__ == "__main__":
    main()
