"""What a work directory holds so that others can load its model: `model.json` and `tokenizer/`."""

import dataclasses
import json
import zlib
from collections.abc import Mapping
from typing import Any

from etils import epath

from unipt_jax.core.errors import CheckpointError, ConfigError, DataError
from unipt_jax.core.files import read_json, write_json
from unipt_jax.data import tokenization
from unipt_jax.models import specs

MODEL_FILE = "model.json"
TOKENIZER_DIRECTORY = "tokenizer"
_CHECKSUM = "checksum"


@dataclasses.dataclass(frozen=True)
class ModelFile:
    """What the parameters of a work directory are.

    Attributes:
        spec: of the dual encoder, or of the one encoder that was converted.
        dtype: compute dtype, "float32" or "bfloat16".
        text_length: tokens to which texts are cut; 0 without a text encoder.
        tokenizer: fingerprint of the tokenizer beside it; empty without one.
    """

    spec: specs.Spec
    dtype: str
    text_length: int
    tokenizer: str = ""

    def write(self, workdir: epath.PathLike) -> None:
        """Writes `model.json`, whole or not at all."""
        values = {
            "spec": specs.to_dict(self.spec),
            "dtype": self.dtype,
            "text_length": self.text_length,
            "tokenizer": self.tokenizer,
        }
        write_json(epath.Path(workdir) / MODEL_FILE, values | {_CHECKSUM: _checksum(values)})


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
        DataError: the file is damaged, or a value in it was changed.
        CheckpointError: another version of this library wrote it.
    """
    path = epath.Path(workdir) / MODEL_FILE
    values = read_json(path)
    checksum = values.pop(_CHECKSUM, None) if isinstance(values, dict) else None
    fields = {item.name for item in dataclasses.fields(ModelFile)}
    if (
        not isinstance(values, dict)
        or set(values) != fields
        or not isinstance(values["spec"], dict)
    ):
        raise CheckpointError(
            f"{path} does not hold {', '.join(sorted(fields))}; train or convert anew"
        )
    try:
        described = ModelFile(**{**values, "spec": specs.from_dict(values["spec"])})
    except (CheckpointError, ConfigError, TypeError, ValueError) as error:
        raise CheckpointError(f"{path}: {error}; train or convert anew") from None
    if checksum != _checksum(values):
        raise DataError(
            f"{path} holds other values than were written: storage or an editor has changed it; "
            "take it from a copy, or train or convert anew"
        )
    return described


def tokenizer(workdir: epath.PathLike) -> tokenization.Tokenizer:
    """Reads the tokenizer beside a model.

    Raises:
        DataError: it is missing or damaged, or another than `model.json` tells of.
    """
    directory = epath.Path(workdir) / TOKENIZER_DIRECTORY
    found = tokenization.load(str(directory))
    # Of the file, for what another version of `tokenizers` makes of it may be put in other words.
    if tokenization.fingerprint((directory / tokenization.FILE).read_bytes()) != (
        read(workdir).tokenizer
    ):
        raise DataError(
            f"{directory} is another tokenizer than the model was trained with, by {MODEL_FILE}: "
            "storage or an editor has changed it; take it from a copy"
        )
    return found


def _checksum(values: Mapping[str, Any]) -> int:
    return zlib.crc32(json.dumps(values, sort_keys=True).encode())
