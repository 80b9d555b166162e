"""Annotation files of benchmarks, of collections of pseudo texts, and of one's own, to records.

Every fault and oddity is collected; none is mended or skipped in silence. JSON is UTF-8, with or
without a byte-order mark; fields that are not named here are not read.

    cuhk_pedes     `reid_raw.json`; images below `imgs/`
    icfg_pedes     `ICFG-PEDES.json`; images below `imgs/`
    rstp_reid      `data_captions.json`; images below `imgs/`
                   each a list of `{"file_path" or "img_path", "captions": [str, ...], "id",
                   "split"}`
    pairs          `pairs.json`: a list of `{"image": path below the source, "captions":
                   [str, ...] or "caption": str}`, and optionally "identity" (str or int; without
                   it an image is its own) and "split" ("train" if absent)
    luperson_t     `*.arrow`, with the columns "image" (the bytes of an image file), "caption" (a
                   list), "image_id" and optionally "split"
    luperson_mllm  four files, each an object {image path: caption}, here, in `caption/` or in
                   `captions/`; images here or in `LUPerson-MLLM/`. An entry is a record of its own,
                   and those of one file name are joined: paths are those of the machine on which a
                   file was written. A caption that holds "description]" or "<" is a fault.
    mals           `gene_attrs/*.json`: lists of `{"image", "caption"}`, optionally "split"
    synth_pedes    `synthpedes_dataset.json`: a list of `{"file_path", "captions": [str, ...],
                   "id"}`, optionally "split"; the sentence made from attributes alone
                   ("prompt_caption") is not read

Rules that hold for all of them:

* `split` is one of `SPLIT_ALIASES`, in any case; anything else is a fault.
* No object names a field twice, since JSON does not say which of them counts.
* An identity's name is its text: 2 and "2" are one person, "0002" is another. It does not begin
  with "image:", as the names of images without an identity do.
* An identity belongs to one split. Where it is in several, its records of the split that comes
  first among test, val, train stay and the others are faulty.
* An image belongs to one identity. Listed again with the same one, its captions are joined.
* Paths are relative to the source and never leave it by their text; backslashes count as slashes.
  Symbolic links are followed, since image folders are often linked to another disk.
* Of several files the order is the natural one, and records are counted over all of them.
"""

import dataclasses
import functools
from collections.abc import Callable

from etils import epath

from unipt_jax.core.errors import DataError
from unipt_jax.data.annotations import arrow, entries, files, relations
from unipt_jax.data.annotations.layouts import LAYOUTS, SPLIT_ALIASES, Layout
from unipt_jax.data.annotations.records import (
    BACKSLASHES,
    BROKEN_CAPTION,
    CJK_CAPTION,
    EMPTY_IMAGE,
    JOINED_IMAGE,
    LITERAL_CAPTION,
    MISSING_IMAGE,
    OTHER_IMAGE,
    SHARED_CAPTION,
    SPLITS,
    Problem,
    Record,
    missing_by_folder,
    natural_order,
)

__all__ = [
    "BACKSLASHES",
    "BROKEN_CAPTION",
    "CJK_CAPTION",
    "EMPTY_IMAGE",
    "JOINED_IMAGE",
    "LAYOUTS",
    "LITERAL_CAPTION",
    "MISSING_IMAGE",
    "OTHER_IMAGE",
    "SHARED_CAPTION",
    "SPLITS",
    "SPLIT_ALIASES",
    "Layout",
    "Problem",
    "Record",
    "image_reader",
    "missing_by_folder",
    "natural_order",
    "read",
]


def read(
    dataset: str,
    source: epath.PathLike,
    annotations: str = "",
    *,
    validation: float = 0.0,
    seed: int = 0,
) -> tuple[list[Record], list[Problem]]:
    """Reads and checks annotation files, and that each of their images is there.

    Args:
        dataset: a key of `LAYOUTS`.
        source: directory of annotation files and images.
        annotations: file inside `source`, or a pattern such as "part*.json" for several; empty:
            the layout's usual names.
        validation: share in [0, 1] of the records without a split that go to "val"; whole
            identities are drawn until the share is reached.
        seed: of that draw.

    Returns:
        The records without a fault, and all faults and notices, both in the files' order.

    Raises:
        DataError: the source or an annotation file is missing, damaged or of another form, there
            are no splits although the layout needs them, or nothing is left to draw `validation`
            from.
    """
    layout = LAYOUTS[dataset]
    source = epath.Path(source)
    found = files.find(layout, source, annotations)
    drafts, problems = [], []
    for position, row in enumerate(files.rows(layout, source, found)):
        draft, wrong = entries.parse(row, layout, dataset, position, source)
        drafts += [draft] if draft else []
        problems += wrong
    if validation and drafts and all(draft.split for draft in drafts):
        where = found[0] if len(found) == 1 else f"the {len(found)} files in {source}"
        raise DataError(
            f"validation={validation} is a share of the records without a split, but every record "
            f"of {where} has one; pass --config.validation=0"
        )
    drafts, wrong = relations.without_ambiguous_images(drafts)
    problems += wrong
    relations.fill_splits(drafts, validation, seed)
    drafts, wrong = relations.without_overlaps(drafts)
    problems += wrong
    records, wrong = relations.joined(
        drafts,
        views=len(found) if layout.views else 0,
        image_bytes=arrow.image_bytes(found) if layout.form == "arrow" else None,
    )
    problems += wrong
    if "split" in layout.required:  # Pseudo texts repeat themselves; those of benchmarks must not.
        problems += relations.shared_captions(records)
    return records, sorted(problems, key=lambda problem: problem.record)


def image_reader(
    dataset: str, source: epath.PathLike, annotations: str = ""
) -> Callable[[Record], bytes] | None:
    """Returns what reads the encoded images of `read`'s records out of the annotation files.

    None where they are files of their own. The arguments are those of `read`. It can be pickled:
    each process opens the files itself.

    Raises:
        DataError: as `read`; when the first image is read, too.
    """
    layout = LAYOUTS[dataset]
    if layout.form != "arrow":
        return None
    return _ArrowImages(tuple(files.find(layout, epath.Path(source), annotations)))


@dataclasses.dataclass(frozen=True)
class _ArrowImages:
    files: tuple[epath.Path, ...]

    def __call__(self, record: Record) -> bytes:
        return self._image_bytes(record.position)

    def __reduce__(self) -> tuple[type, tuple]:
        return type(self), (self.files,)  # Not the mapped files: they would be read whole.

    @functools.cached_property
    def _image_bytes(self) -> Callable[[int], bytes]:
        return arrow.image_bytes(self.files)
