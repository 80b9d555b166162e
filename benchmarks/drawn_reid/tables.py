"""What the paper compares, as runs; its figures, and the order in which it found them."""

import dataclasses
from collections.abc import Mapping

PAPER = ("CUHK-PEDES", "ICFG-PEDES")


@dataclasses.dataclass(frozen=True)
class Run:
    """A model: what it was pre-trained on, and how it is fine-tuned.

    Attributes:
        texts: those of pre-training: "all" templates, "half" of them, or of "twice" the images.
        mlm: pre-train with the masked language model.
        start: what of the pre-trained model fine-tuning starts from: "both" sides, the "image"
            side, or "" for none.
        pgu: fine-tune with granularity-unified features.
    """

    texts: str = "all"
    mlm: bool = True
    start: str = "both"
    pgu: bool = True


RUNS: Mapping[str, Run] = {
    "UniPT": Run(),
    "not pre-trained": Run(start=""),
    "image side pre-trained": Run(start="image"),
    "without MLM": Run(mlm=False),
    "without PGU": Run(pgu=False),
    "not pre-trained, without PGU": Run(start="", pgu=False),
    "half of the templates": Run(texts="half"),
    "twice the images": Run(texts="twice"),
}


@dataclasses.dataclass(frozen=True)
class Table:
    """A table of the paper.

    Attributes:
        title: what it shows.
        rows: runs by name, with the paper's R1 of DeiT-S, on the data sets of `PAPER`.
        orders: pairs of runs, the better one first, as the paper has them.
        across: tested on the data set that the run was not fine-tuned on.
    """

    title: str
    rows: Mapping[str, tuple[float | None, float | None]]
    orders: tuple[tuple[str, str], ...] = ()
    across: bool = False


# "Not pre-trained" is ImageNet and BERT in the paper. Table 8's figures are from CUHK-PEDES to
# ICFG-PEDES, and back.
TABLES: Mapping[str, Table] = {
    "2": Table(
        "pre-trained on pseudo texts, or not",
        {"not pre-trained": (65.30, 57.60), "UniPT": (66.83, 59.08)},
        (("UniPT", "not pre-trained"),),
    ),
    "3": Table(
        "both sides pre-trained, or one",
        {"image side pre-trained": (65.01, 58.15), "UniPT": (66.83, 59.08)},
        (("UniPT", "image side pre-trained"),),
    ),
    "5": Table(
        "with masked language modelling, or without",
        {"without MLM": (65.77, 57.35), "UniPT": (66.83, 59.08)},
        (("UniPT", "without MLM"),),
    ),
    "6": Table(
        "with granularity-unified features, or without",
        {
            "not pre-trained, without PGU": (60.56, 51.66),
            "not pre-trained": (65.30, 57.60),
            "without PGU": (61.99, 54.41),
            "UniPT": (66.83, 59.08),
        },
        (
            ("UniPT", "without PGU"),
            ("not pre-trained", "not pre-trained, without PGU"),
            ("without PGU", "not pre-trained, without PGU"),
        ),
    ),
    "8": Table(
        "across data sets",
        {"not pre-trained": (None, None), "UniPT": (35.51, 28.48)},
        (("UniPT", "not pre-trained"),),
        across=True,
    ),
    "figure6": Table(
        "all 456 templates, half of them, or twice the images",
        {
            "half of the templates": (66.44, 58.37),
            "twice the images": (66.28, 58.57),
            "UniPT": (66.83, 59.08),
        },
        (("UniPT", "half of the templates"), ("UniPT", "twice the images")),
    ),
}
