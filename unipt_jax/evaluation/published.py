"""Figures that others published, to stand beside one's own; all in percent."""

import dataclasses
from collections.abc import Mapping

UNIPT = "UniPT, ICCV 2023"
MLLM4TEXT_REID = "MLLM4Text-ReID, CVPR 2024"

# The test splits that all figures below are of (the data sets' own papers).
TEST_SPLITS = {
    "cuhk_pedes": {"images": 3_074, "captions": 6_156, "identities": 1_000},
    "icfg_pedes": {"images": 19_848, "captions": 19_848, "identities": 1_000},
    "rstp_reid": {"images": 1_000, "captions": 2_000, "identities": 200},
}


@dataclasses.dataclass(frozen=True)
class Published:
    """A model's figures on a test split, for text queries.

    Attributes:
        model: the model and what it was pre-trained on.
        trained: the data set that it was fine-tuned on; empty: not fine-tuned.
        tested: the data set of the test split.
        figures: R1, R5, R10 and mAP, those that the source tells.
        source: the paper.
    """

    model: str
    trained: str
    tested: str
    figures: Mapping[str, float]
    source: str


_NAMES = ("R1", "R5", "R10", "mAP")


def _rows(
    model: str, *figures: tuple[float | None, ...], source: str, fine_tuned: bool = True
) -> list[Published]:
    """Makes the rows of a model, tested (and fine-tuned) on each data set in turn."""
    return [
        Published(model, name if fine_tuned else "", name, _figures(row), source)
        for name, row in zip(TEST_SPLITS, figures, strict=False)
    ]


def _figures(row: tuple[float | None, ...]) -> dict[str, float]:
    return {name: value for name, value in zip(_NAMES, row, strict=False) if value is not None}


PUBLISHED: tuple[Published, ...] = (
    *_rows(
        "UniPT, DeiT-S",
        (66.83, 84.16, 89.42),
        (59.08, 75.92, 82.08),
        (49.45, 72.75, 80.35),
        source=UNIPT,
    ),
    *_rows(
        "UniPT, ViT-B/16",
        (68.50, 84.67, 90.38),
        (60.09, 76.19, 82.46),
        (51.85, 74.85, 82.85),
        source=UNIPT,
    ),
    *_rows("ImageNet and BERT, DeiT-S", (65.30, 83.19), (57.60, 74.53), source=UNIPT),
    *_rows("ImageNet and BERT, ViT-B/16", (66.59, 84.40), (58.62, 75.31), source=UNIPT),
    *_rows("CLIP, ViT-B/16", (66.34, 84.18), (59.01, 75.96), source=UNIPT),
    *_rows(
        "CLIP on LUPerson-T with SDM, then IRRA's losses, ViT-B/16",
        (74.37, 89.51, 93.97, 66.60),
        (64.50, 80.24, 85.74, 38.22),
        (62.20, 83.30, 89.75, 48.33),
        source=MLLM4TEXT_REID,
    ),
    Published("UniPT, DeiT-S", "cuhk_pedes", "icfg_pedes", _figures((35.51, 54.25, 62.69)), UNIPT),
    Published("UniPT, DeiT-S", "icfg_pedes", "cuhk_pedes", _figures((28.48, 48.02, 57.65)), UNIPT),
    *_rows(
        "CLIP on LUPerson-T with SDM, ViT-B/16",
        (21.88, None, None, 19.96),
        (11.46, None, None, 4.56),
        (22.40, None, None, 17.08),
        source=MLLM4TEXT_REID,
        fine_tuned=False,
    ),
    *_rows(
        "CLIP as it is, ViT-B/16",
        (12.65, None, None, 11.15),
        (6.67, None, None, 2.51),
        (13.45, None, None, 10.31),
        source=MLLM4TEXT_REID,
        fine_tuned=False,
    ),
)


def of(tested: str) -> list[Published]:
    """Returns the figures on a data set: fine-tuned on it, on another, then not at all."""
    order = lambda row: (not row.trained, row.trained != tested)  # noqa: E731
    return sorted((row for row in PUBLISHED if row.tested == tested), key=order)
