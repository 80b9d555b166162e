"""What a work directory holds so that others can load its model: `model.json` and `tokenizer/`.

Both are small and decide what every parameter means, so `model.json` carries checksums of both: an
altered byte in one would change embeddings without a word.
"""

import dataclasses
import hashlib
import json
from collections.abc import Mapping
from importlib import metadata
from typing import Any, Literal

from etils import epath

from unipt_jax.core import trees
from unipt_jax.core.errors import CheckpointError, ConfigError, DataError
from unipt_jax.core.files import read_json, write_json
from unipt_jax.data import tokenization
from unipt_jax.models import specs
from unipt_jax.models.bert import TextSpec
from unipt_jax.models.checks import require_fields
from unipt_jax.training.checkpoints import Checkpoints

MODEL_FILE = "model.json"
TOKENIZER_DIRECTORY = "tokenizer"

_LISTED = 8  # faults in a message


@dataclasses.dataclass(frozen=True)
class ModelFile:
    """What the parameters of a work directory are.

    Attributes:
        spec: of the dual encoder, or of the one encoder that was converted.
        dtype: compute dtype, "float32" or "bfloat16".
        text_length: tokens to which texts are cut; 0 without a text encoder.

    Raises:
        ConfigError: a value is not what its field is declared to be, or `text_length` more than the
            text encoder has positions for.
    """

    spec: specs.Spec
    dtype: Literal["float32", "bfloat16"]
    text_length: int

    def __post_init__(self) -> None:
        require_fields(self, zero=("text_length",))
        text = getattr(self.spec, "text", self.spec)
        if self.text_length > getattr(text, "max_positions", 0):
            raise ConfigError(f"text_length={self.text_length} is more than the text encoder reads")

    def write(
        self, workdir: epath.PathLike, tokenizer: tokenization.Tokenizer | None = None
    ) -> None:
        """Writes `tokenizer/`, if there is one, and `model.json`, each whole or not at all."""
        workdir = epath.Path(workdir)
        if tokenizer:
            tokenizer.save(workdir / TOKENIZER_DIRECTORY)
        values = {
            "version": metadata.version("unipt-jax"),
            "spec": specs.to_dict(self.spec),
            "dtype": self.dtype,
            "text_length": self.text_length,
            "tokenizer": _tokenizer_checksum(workdir) if tokenizer else None,
        }
        write_json(workdir / MODEL_FILE, {**values, "checksum": _checksum(values)})


def exists(workdir: epath.PathLike) -> bool:
    """Tells whether a directory is one that this library's models are loaded from.

    Raises:
        CheckpointError: it is on a file system that a package is missing for (`gs://`).
    """
    try:
        return (epath.Path(workdir) / MODEL_FILE).exists()
    except ImportError as error:
        raise CheckpointError(f"{workdir} cannot be reached: {error}") from error


def read(workdir: epath.PathLike) -> ModelFile:
    """Reads what `ModelFile.write` wrote.

    Raises:
        DataError: the file is no JSON.
        CheckpointError: it is damaged, or another version of this library wrote it.
    """
    values, path = _values(workdir), epath.Path(workdir) / MODEL_FILE
    fields = {item.name: values[item.name] for item in dataclasses.fields(ModelFile)}
    try:
        return ModelFile(**{**fields, "spec": specs.from_dict(values["spec"])})
    except (CheckpointError, ConfigError, TypeError, ValueError) as error:
        raise CheckpointError(f"{path}: {error}; {_other_version(values)}") from None


def tokenizer(workdir: epath.PathLike) -> tokenization.Tokenizer:
    """Reads the tokenizer beside a model.

    Raises:
        DataError: it is missing, damaged or not the one that was written.
        CheckpointError: as `read`.
    """
    stored = _values(workdir)["tokenizer"]
    found = tokenization.load(str(epath.Path(workdir) / TOKENIZER_DIRECTORY))
    if stored not in (None, _tokenizer_checksum(workdir)):
        raise DataError(
            f"{workdir}/{TOKENIZER_DIRECTORY}/{tokenization.FILE} is not the file that was written "
            f"with {MODEL_FILE}: its checksum differs; bring it back from a copy, or train or "
            "convert anew"
        )
    return found


def params(workdir: epath.PathLike, spec: specs.Spec) -> Any:
    """Reads the parameters of the best checkpoint, or else of the latest, to the first device.

    Raises:
        CheckpointError: there is none, it is damaged, it holds other parameters than `spec` says,
            or a number that is not finite.
    """
    wanted = specs.abstract_params(spec)
    with Checkpoints.open_read_only(workdir) as checkpoints:
        found = checkpoints.restore_params()
    if isinstance(spec, TextSpec) and "mlm_head" not in found:
        del wanted["mlm_head"]  # Of a BertModel, which comes without.
    faults = trees.shape_differences(found, wanted)
    faults += [f"{name}: infinite or not a number" for name in trees.not_finite(found)]
    if faults:
        more = f"; and {len(faults) - _LISTED} more" if len(faults) > _LISTED else ""
        raise CheckpointError(
            f"{workdir} does not hold the model that {MODEL_FILE} tells of: "
            f"{'; '.join(faults[:_LISTED])}{more}; name another, or train or convert anew"
        )
    return found


def _values(workdir: epath.PathLike) -> Mapping[str, Any]:
    """Returns what `model.json` holds, of which nothing was altered and every name is known."""
    path = epath.Path(workdir) / MODEL_FILE
    values = read_json(path)
    if not isinstance(values, dict):
        raise CheckpointError(f"{path} is no JSON object; train or convert anew")
    known = {"version", "tokenizer", "checksum"}
    known |= {item.name for item in dataclasses.fields(ModelFile)}
    rest = {name: value for name, value in values.items() if name != "checksum"}
    if "checksum" in values and values["checksum"] != _checksum(rest):
        raise CheckpointError(
            f"{path} is damaged: its checksum differs; bring it back from a copy, or train or "
            "convert anew"
        )
    if set(values) != known or not isinstance(values["spec"], dict):
        raise CheckpointError(
            f"{path} does not hold {', '.join(sorted(known))}; {_other_version(values)}"
        )
    return values


def _other_version(values: Mapping[str, Any]) -> str:
    """Says who wrote a file that this code does not understand, and what to do."""
    this = metadata.version("unipt-jax")
    writer = f"{values['version']!s:.20}" if "version" in values else None
    if writer is None or writer == this:
        return f"other code than this unipt-jax {this} wrote it; train or convert anew"
    return (
        f"unipt-jax {writer} wrote it, and this is unipt-jax {this}: use that version, or train or "
        "convert anew"
    )


def _checksum(values: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()


def _tokenizer_checksum(workdir: epath.PathLike) -> str:
    file = epath.Path(workdir) / TOKENIZER_DIRECTORY / tokenization.FILE
    return hashlib.sha256(file.read_bytes()).hexdigest()
