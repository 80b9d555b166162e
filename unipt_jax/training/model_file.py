"""What a work directory holds so that others can load its model: `model.json` and `tokenizer/`."""

import dataclasses

from etils import epath

from unipt_jax.core.errors import CheckpointError, ConfigError
from unipt_jax.core.files import read_json, write_json
from unipt_jax.data import tokenization
from unipt_jax.models import specs

MODEL_FILE = "model.json"
TOKENIZER_DIRECTORY = "tokenizer"


@dataclasses.dataclass(frozen=True)
class ModelFile:
    """What the parameters of a work directory are.

    Attributes:
        spec: of the dual encoder, or of the one encoder that was converted.
        dtype: compute dtype, "float32" or "bfloat16".
        text_length: tokens to which texts are cut; 0 without a text encoder.
    """

    spec: specs.Spec
    dtype: str
    text_length: int

    def write(self, workdir: epath.PathLike) -> None:
        """Writes `model.json`, whole or not at all."""
        write_json(
            epath.Path(workdir) / MODEL_FILE,
            {
                "spec": specs.to_dict(self.spec),
                "dtype": self.dtype,
                "text_length": self.text_length,
            },
        )


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
        DataError: the file is damaged.
        CheckpointError: another version of this library wrote it.
    """
    path = epath.Path(workdir) / MODEL_FILE
    values = read_json(path)
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
        return ModelFile(**{**values, "spec": specs.from_dict(values["spec"])})
    except (CheckpointError, ConfigError, TypeError, ValueError) as error:
        raise CheckpointError(f"{path}: {error}; train or convert anew") from None


def tokenizer(workdir: epath.PathLike) -> tokenization.Tokenizer:
    """Reads the tokenizer beside a model.

    Raises:
        DataError: it is missing or damaged.
    """
    return tokenization.load(str(epath.Path(workdir) / TOKENIZER_DIRECTORY))
