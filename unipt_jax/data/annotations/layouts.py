"""Where each data set keeps what."""

import dataclasses
from collections.abc import Mapping
from typing import Literal

# Karpathy's "restval", the rest of a validation set, trains; LUPerson-T's files use the word too.
SPLIT_ALIASES: Mapping[str, str] = {
    "train": "train",
    "training": "train",
    "restval": "train",
    "val": "val",
    "valid": "val",
    "validation": "val",
    "dev": "val",
    "test": "test",
    "testing": "test",
}


@dataclasses.dataclass(frozen=True)
class Layout:
    """Where a data set keeps what.

    Attributes:
        files: patterns below the source; the first that matches names the annotation files.
        form: a JSON list of records, a JSON object {image path: caption}, or an Arrow table.
        folder: where image paths start, if not at the source.
        image: names that the image path's field may have.
        captions: names that the captions' field may have.
        identity: name of the identity's field; empty: each image is its own.
        required: those of the identity's field and "split" that every record must have.
        views: number of files that caption the same images, joined by file name; 0: the files hold
            different images.
        templates: whether a caption may hold a piece of the template it was to be written by.
    """

    files: tuple[str, ...]
    form: Literal["list", "object", "arrow"] = "list"
    folder: str = ""
    image: tuple[str, ...] = ("file_path", "img_path")
    captions: tuple[str, ...] = ("captions",)
    identity: str = "id"
    required: tuple[str, ...] = ()
    views: int = 0
    templates: bool = False


_BENCHMARK = Layout((), folder="imgs", required=("id", "split"))

LAYOUTS: Mapping[str, Layout] = {
    "cuhk_pedes": dataclasses.replace(
        _BENCHMARK, files=("reid_raw.json", "caption_all.json", "captions.json")
    ),
    "icfg_pedes": dataclasses.replace(_BENCHMARK, files=("ICFG-PEDES.json", "ICFG_PEDES.json")),
    "rstp_reid": dataclasses.replace(_BENCHMARK, files=("data_captions.json",)),
    "pairs": Layout(
        ("pairs.json",), image=("image",), captions=("captions", "caption"), identity="identity"
    ),
    "luperson_t": Layout(
        ("*.arrow",),
        form="arrow",
        image=("image_id",),
        captions=("caption",),
        identity="",
    ),
    "luperson_mllm": Layout(
        ("caption/*.json", "captions/*.json", "*.json"),
        form="object",
        folder="LUPerson-MLLM",
        image=("image",),
        captions=("caption",),
        identity="",
        views=4,
        templates=True,
    ),
    "mals": Layout(
        ("gene_attrs/*.json", "g_*_attrs.json"),
        image=("image",),
        captions=("caption",),
        identity="",
    ),
    "synth_pedes": Layout(("synthpedes_dataset.json",), image=("file_path",), required=("id",)),
}
