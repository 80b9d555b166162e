"""What is measured: every feature in both directions on each data set, and what may be said of it.

A caption is a query and finds any image of its identity, by cosine in float32; an image finds any
caption of its identity likewise. No item is left out of a gallery for its camera.
"""

import dataclasses
import hashlib
import os
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np
from etils import epath
from jaxtyping import Float

from unipt_jax.config import schema
from unipt_jax.core.errors import ConfigError, DataError, nearest
from unipt_jax.core.files import CONFIG_FILE, is_run, read_json
from unipt_jax.core.random import host_generator
from unipt_jax.data import builders
from unipt_jax.data.tokenization import Tokenizer
from unipt_jax.evaluation import features as features_lib
from unipt_jax.evaluation.features import CONCATENATED, Features
from unipt_jax.evaluation.reranking import reranked_blocks
from unipt_jax.evaluation.retrieval import (
    DEFINITION,
    Ranking,
    bootstrap,
    cosine_blocks,
    cosines,
    rank_blocks,
    rank_rows,
    unit_rows,
)
from unipt_jax.models.dual_encoder import DualEncoder

TEXT_TO_IMAGE, IMAGE_TO_TEXT = "text_to_image", "image_to_text"

# Queries of the report at each end, pictures a query, and pairs whose cosines it draws.
EXAMPLES, STRIP, PAIRS = 4, 10, 4000
_SEED = 0  # Of intervals and drawn pairs.


@dataclasses.dataclass(frozen=True)
class Hit:
    """An image of a ranking: its number in the split, its cosine, whether it is a match."""

    image: int
    rank: int
    cosine: float
    match: bool


@dataclasses.dataclass(frozen=True)
class Example:
    """A text query and what it found.

    Attributes:
        caption: the query.
        average_precision: in (0, 1].
        hits: the first images of its ranking.
        first_match: the match that ranks first.
    """

    caption: str
    average_precision: float
    hits: Sequence[Hit]
    first_match: Hit


@dataclasses.dataclass(frozen=True, eq=False)
class Result:
    """What was found on a data set; all but `summary` is of the leading feature.

    Attributes:
        split: the data.
        summary: JSON-ready: counts, and each feature's figures in both directions, in percent.
        faults: why each image that was left out cannot be read, by its number.
        rankings: of each direction.
        easiest: text queries of as many identities, best first.
        hardest: the same, worst first.
        matches: cosines of some pairs of a caption and an image of its identity.
        others: the same of other pairs.
    """

    split: builders.Split
    summary: dict[str, Any]
    faults: Mapping[int, str]
    rankings: Mapping[str, Ranking]
    easiest: Sequence[Example]
    hardest: Sequence[Example]
    matches: Float[np.ndarray, "S"]
    others: Float[np.ndarray, "T"]

    def left_out(self) -> list[dict[str, Any]]:
        """Returns a row of `quarantine.jsonl` for each image that was left out."""
        return [
            {
                "data": self.split.directory,
                "record": number,
                "image": self.split.images[number]["path"],
                "faults": [fault],
            }
            for number, fault in self.faults.items()
        ]


def check(config: schema.Evaluate, model: DualEncoder, params: Any) -> None:
    """Raises what can be known to be wrong before anything is encoded.

    Raises:
        DataError: lists each data set that cannot be opened, has no such split or stores pixels of
            another size than the model takes.
        ConfigError: the model has no such feature.
    """
    leading_feature(config.feature, model, params)
    faults = []
    for directory in config.data:
        try:
            split = builders.open_split(directory, config.split)
            split.require_size(*model.spec.image.image_size)
        except DataError as error:
            faults.append(str(error))
    if faults:
        raise DataError("; ".join(faults))


def leading_feature(feature: str, model: DualEncoder, params: Any) -> str:
    """Returns `feature`, or, if it is empty, the concatenation or a model's only one.

    Raises:
        ConfigError: the model gives none of that name.
    """
    known = features_lib.names(model, params)
    if feature and feature not in known:
        raise ConfigError(f"feature={feature!r} is not one of the model's{nearest(feature, known)}")
    return feature or known[-1]


def evaluate(
    config: schema.Evaluate,
    model: DualEncoder,
    params: Any,
    tokenizer: Tokenizer,
    text_length: int,
) -> tuple[dict[str, Any], list[Result]]:
    """Measures a model on every data set.

    Returns:
        What `evaluation.json` holds: the first data set's figures, those of all under `data_sets`,
        in percent; and the data sets' results.

    Raises:
        DataError: as `features.extract`; or a feature is not finite; or no query has a match.
        ConfigError: as `check`.
    """
    leading = leading_feature(config.feature, model, params)
    origin = read_origin(config.checkpoint)
    results = []
    for directory in config.data:
        split = builders.open_split(directory, config.split)
        found = features_lib.extract(
            model,
            params,
            split,
            tokenizer,
            text_length=text_length,
            batch_size=config.batch_size,
            quarantine=config.on_bad_record == "quarantine",
        )
        results.append(measure(split, found, leading, rerank=config.rerank))
        results[-1].summary["setting"] = origin.setting(results[-1].summary["name"])
    first = results[0].summary
    figures = first["features"][leading]
    evaluation = {
        **{direction: each["metrics"] for direction, each in figures.items()},
        **{name: figures[TEXT_TO_IMAGE][name] for name in ("queries", "gallery")},
        "excluded_queries": figures[TEXT_TO_IMAGE]["excluded_queries"],
        "split": config.split,
        "checkpoint": config.checkpoint,
        "feature": leading,
        "intervals": {direction: each["intervals"] for direction, each in figures.items()},
        **{name: first[name] for name in ("reranked", "quarantined")},
        "protocol": origin.sentence(),
        "definition": DEFINITION,
        "weights": fingerprint(params),
        "data_sets": [result.summary for result in results],
    }
    return evaluation, results


# ---------------------------------------------------------------------------- one data set


def measure(
    split: builders.Split, features: Features, leading: str, *, rerank: bool = False
) -> Result:
    """Ranks a split by each feature in both directions; see `Result`.

    Raises:
        DataError: a feature is not finite, or no query has a match.
    """
    image_identities = split.identities[features.images]
    text_identities = split.identities[split.pairs[0][features.pairs]]
    figures, rankings = {}, {}
    names = list(features.image)
    for name in [*names, CONCATENATED] if len(names) > 1 else names:
        texts, images = _rows(features, name)
        both = {
            TEXT_TO_IMAGE: rank_rows(texts, images, text_identities, image_identities),
            IMAGE_TO_TEXT: rank_rows(images, texts, image_identities, text_identities),
        }
        figures[name] = {direction: _figures(ranking) for direction, ranking in both.items()}
        if name == leading:
            rankings = both
        del texts, images  # Of large data sets only one feature's fit beside the features.
    texts, images = _rows(features, leading)
    manifest = builders.read_manifest(split.directory)
    summary = {
        "name": manifest["name"],
        "directory": split.directory,
        "split": split.name,
        "images": len(features.images),
        "captions": len(features.pairs),
        "identities": len(np.unique(image_identities)),
        "quarantined": len(features.faults),
        "left_out_when_prepared": manifest["quarantined"],
        "features": figures,
        "reranked": _reranked(texts, images, text_identities, image_identities) if rerank else None,
    }
    ranking = rankings[TEXT_TO_IMAGE]
    worst_first = np.lexsort((-ranking.first_hit, ranking.average_precision))
    best_first = np.argsort(-ranking.average_precision, kind="stable")
    easiest, hardest = (
        [
            _example(split, features, texts, images, ranking, at)
            for at in _of_different_identities(order, ranking.identity)
        ]
        for order in (best_first, worst_first)
    )
    matches, others = _drawn_pairs(text_identities, image_identities)
    return Result(
        split=split,
        summary=summary,
        faults=features.faults,
        rankings=rankings,
        easiest=easiest,
        hardest=hardest,
        matches=cosines(texts, images, *matches),
        others=cosines(texts, images, *others),
    )


def _rows(features: Features, name: str) -> tuple[np.ndarray, np.ndarray]:
    """Returns one feature's unit rows of texts and images."""

    def of_side(named: Mapping[str, np.ndarray], side: str) -> np.ndarray:
        if name == CONCATENATED:
            return unit_rows(features_lib.concatenated(list(named.values())), side)
        return unit_rows(named[name], side)

    return of_side(features.text, "query"), of_side(features.image, "gallery")


def _figures(ranking: Ranking) -> dict[str, Any]:
    several = len(np.unique(ranking.identity)) > 1
    return {
        "metrics": ranking.metrics(),
        "intervals": bootstrap(ranking, seed=_SEED) if several else None,
        "queries": len(ranking.query) + ranking.excluded_queries,
        "gallery": ranking.gallery,
        "excluded_queries": ranking.excluded_queries,
    }


def _reranked(
    texts: np.ndarray, images: np.ndarray, text_identities: np.ndarray, image_identities: np.ndarray
) -> dict[str, Any]:
    """Ranks once more, each side around its mean.

    Where texts and images lie apart, none of one is a neighbour of the other, and re-ranking would
    change nothing.
    """
    texts, images = texts - texts.mean(axis=0), images - images.mean(axis=0)
    return {
        direction: rank_blocks(reranked_blocks(query, gallery), *identities).metrics()
        for direction, query, gallery, identities in (
            (TEXT_TO_IMAGE, texts, images, (text_identities, image_identities)),
            (IMAGE_TO_TEXT, images, texts, (image_identities, text_identities)),
        )
    }


# ---------------------------------------------------------------------------- for the report


def _of_different_identities(order: np.ndarray, identity: np.ndarray) -> list[int]:
    """Returns the first `EXAMPLES` of `order` of as many identities."""
    _, first = np.unique(identity[order], return_index=True)
    return order[np.sort(first)[:EXAMPLES]].tolist()


def _example(
    split: builders.Split,
    features: Features,
    texts: np.ndarray,
    images: np.ndarray,
    ranking: Ranking,
    at: int,
) -> Example:
    query = int(ranking.query[at])
    (cosine,) = next(cosine_blocks(texts[query : query + 1], images))
    match = split.identities[features.images] == ranking.identity[at]
    order = np.lexsort((match, -cosine))  # As in the ranks, others precede matches where equal.

    def hit(rank: int) -> Hit:
        row = order[rank - 1]
        return Hit(int(features.images[row]), rank, float(cosine[row]), bool(match[row]))

    return Example(
        caption=features_lib.caption_of(split, int(features.pairs[query])),
        average_precision=float(ranking.average_precision[at]),
        hits=[hit(rank) for rank in range(1, min(STRIP, len(order)) + 1)],
        first_match=hit(int(ranking.first_hit[at])),
    )


def _drawn_pairs(
    text_identities: np.ndarray, image_identities: np.ndarray
) -> tuple[tuple[np.ndarray, np.ndarray], tuple[np.ndarray, np.ndarray]]:
    """Draws rows of texts and of images at random: pairs of one identity, and pairs of two."""
    rng = host_generator(_SEED, "pairs", 0)
    text = rng.integers(len(text_identities), size=PAIRS)
    image = rng.integers(len(image_identities), size=PAIRS)
    other = text_identities[text] != image_identities[image]
    by_identity = np.argsort(image_identities, kind="stable")
    ranked = image_identities[by_identity]
    first = np.searchsorted(ranked, text_identities[text], "left")
    count = np.searchsorted(ranked, text_identities[text], "right") - first
    has = count > 0
    match = by_identity[first[has] + rng.integers(count[has])]
    return (text[has], match), (text[other], image[other])


# ---------------------------------------------------------------------------- the checkpoint


@dataclasses.dataclass(frozen=True)
class Origin:
    """How a checkpoint came about.

    Attributes:
        stage: of the run, or empty for weights from elsewhere.
        trained: names of the data sets that it was trained on.
        measured: whether checkpoints were compared on a split, and the best one kept.
        paper_protocol: whether that was the test split.
        tested_before: whether a test split chose one that its training started from.
        config: the run's configuration.
    """

    stage: str
    trained: Sequence[str]
    measured: bool
    paper_protocol: bool
    tested_before: bool
    config: Mapping[str, Any]

    def setting(self, tested: str) -> str:
        """Says what a test on the data set `tested` shows."""
        if self.stage == "finetune":
            return "in domain" if tested in self.trained else "cross-domain"
        return "direct transfer" if self.stage == "pretrain" else "training not recorded"

    def sentence(self) -> str:
        """Says which data may have chosen the checkpoint, in words for the report."""
        trained = f"{'Fine-tuned' if self.stage == 'finetune' else 'Pre-trained'} on "
        trained += " and ".join(self.trained)
        if self.paper_protocol:
            return (
                f"{trained}. The checkpoint was chosen on the test split, as in the "
                "published code (paper_protocol=True): its figures there are those of the best of "
                "several tries, not of unseen data."
            )
        if self.tested_before:
            return (
                f"{trained}, from a checkpoint that was itself chosen on a test split "
                "(paper_protocol=True)."
            )
        if self.stage in ("finetune", "pretrain"):
            alone = "" if self.stage == "finetune" else " and not fine-tuned"
            which = "best on the validation split" if self.measured else "last of its training"
            return (
                f"{trained}{alone}. The checkpoint is the {which}. No test split had a part in "
                "choosing it."
            )
        return "Weights from elsewhere: how their checkpoint was chosen is not recorded."


def read_origin(checkpoint: str) -> Origin:
    """Reads what the configuration beside a checkpoint tells of it.

    Raises:
        DataError: the file cannot be read, or is none that a run wrote.
    """
    config = _config_of(checkpoint)
    if not config:
        return Origin("", (), False, False, False, {})
    data = config.get("data", [])
    return Origin(
        stage=config["stage"],
        trained=[_name_of(directory) for directory in ([data] if isinstance(data, str) else data)],
        measured=config.get("evaluate", False),
        paper_protocol=config.get("paper_protocol", False),
        tested_before=_tested_before(config),
        config=config,
    )


def _tested_before(config: Mapping[str, Any]) -> bool:
    """Tells whether a test split chose a run that this one started from, directly or not."""
    waiting, seen = _starts(config), set()
    while waiting:
        place = waiting.pop()
        if place in seen:  # Two runs can have started from each other, in turn.
            continue
        seen.add(place)
        before = _config_of(place)
        if before.get("paper_protocol"):
            return True
        waiting += _starts(before)
    return False


def _starts(config: Mapping[str, Any]) -> list[str]:
    names = ["init"] if config.get("init") else ["init_image", "init_text"]
    return [config[name] for name in names if config.get(name)]


def _config_of(checkpoint: str) -> Mapping[str, Any]:
    """Returns the configuration of a run, with what is read of it here checked; empty: no run."""
    if not is_run(checkpoint):
        return {}
    path = epath.Path(checkpoint) / CONFIG_FILE
    config = read_json(path)
    kinds = {"stage": str, "data": (str, list), "evaluate": bool, "paper_protocol": bool}
    kinds |= dict.fromkeys(("init", "init_image", "init_text"), str)
    wrong = [name for name in kinds if name in config and not isinstance(config[name], kinds[name])]
    if not wrong and not all(isinstance(each, str) for each in config.get("data", ())):
        wrong = ["data"]
    if wrong:
        raise DataError(f"{path}: {wrong[0]}={config[wrong[0]]!r} is nothing that a run wrote")
    return config


def fingerprint(params: Any) -> str:
    """Returns 16 hexadecimal digits that change with any parameter."""
    digest = hashlib.blake2b(digest_size=8)
    for leaf in jax.tree.leaves(params):
        digest.update(np.asarray(leaf).tobytes())
    return digest.hexdigest()


def _name_of(directory: str) -> str:
    """Returns a data set's name, or, where it is no longer there, the directory's."""
    try:
        return builders.read_manifest(directory)["name"]
    except DataError:
        return os.path.basename(os.path.normpath(directory))
