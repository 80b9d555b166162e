"""Rules between records: one identity an image, one split an identity, one record an image."""

from collections import Counter, defaultdict
from collections.abc import Callable, Sequence

import numpy as np

from unipt_jax.data.annotations.records import (
    JOINED_IMAGE,
    OTHER_IMAGE,
    SHARED_CAPTION,
    SPLITS,
    Draft,
    Problem,
    Record,
    natural_order,
)


def without_ambiguous_images(drafts: Sequence[Draft]) -> tuple[list[Draft], list[Problem]]:
    """Removes every record of an image that is listed under several identities."""
    first: dict[str, str] = {}
    names: dict[str, set[str]] = defaultdict(set)
    for draft in drafts:
        if first.setdefault(draft.image, draft.identity) != draft.identity:
            names[draft.image] |= {first[draft.image], draft.identity}
    whats = {image: _several_identities(found) for image, found in names.items()}
    problems = [
        draft.problem(whats[draft.image], "fault") for draft in drafts if draft.image in whats
    ]
    return [draft for draft in drafts if draft.image not in whats], problems


def _several_identities(names: set[str]) -> str:
    listed = sorted(names, key=natural_order)
    more = f" and {len(listed) - 5} more" if len(listed) > 5 else ""
    return (
        f"image is listed under several identities ({', '.join(listed[:5])}{more}); keep the "
        "right one"
    )


def fill_splits(drafts: Sequence[Draft], validation: float, seed: int) -> None:
    """Gives open records a split: "val" for the drawn identities, "train" for the others."""
    drawn = _draw(drafts, validation, seed) if validation else set()
    for draft in drafts:
        if draft.split is None:
            draft.split = "val" if draft.identity in drawn else "train"


def _draw(drafts: Sequence[Draft], validation: float, seed: int) -> set[str]:
    settled = {draft.identity for draft in drafts if draft.split is not None}
    sizes = Counter(
        draft.identity for draft in drafts if draft.split is None and draft.identity not in settled
    )
    names = sorted(sizes, key=natural_order)
    wanted, drawn = validation * sum(sizes.values()), set()
    for number in np.random.default_rng(seed).permutation(len(names)):
        if wanted <= 0:
            break
        drawn.add(names[number])
        wanted -= sizes[names[number]]
    return drawn


def without_overlaps(drafts: Sequence[Draft]) -> tuple[list[Draft], list[Problem]]:
    """Keeps each identity in one split; evaluation first, so that test sets stay whole."""
    home: dict[str, str] = {}
    for draft in drafts:
        known = home.get(draft.identity, draft.split)
        home[draft.identity] = max(known, draft.split, key=SPLITS.index)
    problems = [
        draft.problem(
            f"identity {draft.identity} of split {draft.split!r} is also in split "
            f"{home[draft.identity]!r}; give each identity one split, and different persons "
            "different names",
            "fault",
        )
        for draft in drafts
        if draft.split != home[draft.identity]
    ]
    return [draft for draft in drafts if draft.split == home[draft.identity]], problems


def joined(
    drafts: Sequence[Draft], views: int, image_bytes: Callable[[int], bytes] | None
) -> tuple[list[Record], list[Problem]]:
    """Makes one record an image; in a gallery, an image listed twice would be found twice.

    Args:
        drafts: in order; where an image comes again, its captions go to its first record.
        views: number of files that caption the same images: each is expected once in each of
            them; 0: once in all.
        image_bytes: gives the image of a position, where annotation files hold them: a name alone
            does not tell that two of them are one.
    """
    first: dict[str, Draft] = {}
    files: dict[str, set[str]] = defaultdict(set)
    problems = []
    for draft in drafts:
        kept = first.setdefault(draft.image, draft)
        if kept is not draft:
            if image_bytes and image_bytes(kept.position) != image_bytes(draft.position):
                problems.append(draft.problem(OTHER_IMAGE, "fault"))
                continue
            kept.captions += draft.captions
            if not views or draft.file in files[draft.image]:
                problems.append(draft.problem(JOINED_IMAGE, "notice"))
        if views:
            files[draft.image].add(draft.file)
    for image, found in files.items():
        if len(found) < views:
            what = f"image has captions in {len(found)} of {views} files"
            problems.append(first[image].problem(what, "notice"))
    return [_record(draft) for draft in first.values()], problems


def _record(draft: Draft) -> Record:
    return Record(
        image=draft.image,
        captions=tuple(draft.captions),
        identity=draft.identity,
        split=draft.split,
        position=draft.position,
        file=draft.file,
    )


def shared_captions(records: Sequence[Record]) -> list[Problem]:
    """Returns a notice for each caption that describes several identities."""
    identities = defaultdict(set)
    for record in records:
        for caption in record.captions:
            identities[caption.strip()].add(record.identity)
    return [
        Problem(record.position, record.image, SHARED_CAPTION, "notice", record.file)
        for record in records
        for caption in record.captions
        if len(identities[caption.strip()]) > 1
    ]
