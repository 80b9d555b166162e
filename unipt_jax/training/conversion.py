"""From foreign weights to a work directory that training and encoding start from."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
from etils import epath

from unipt_jax.config import schema
from unipt_jax.core import trees
from unipt_jax.core.errors import ConversionError, DataError
from unipt_jax.data import tokenization
from unipt_jax.interop import huggingface
from unipt_jax.models import specs
from unipt_jax.models.clip import ClipTextSpec
from unipt_jax.models.dual_encoder import DualEncoderSpec
from unipt_jax.models.vit import VisionSpec
from unipt_jax.training import initial, model_file
from unipt_jax.training.checkpoints import Checkpoints, is_begun


@dataclasses.dataclass(frozen=True)
class Converted:
    """Foreign weights with all that they need.

    Attributes:
        model: what the parameters are.
        params: NumPy arrays in this library's layout, float32.
        tokenizer: of the text encoder; None without one.
    """

    model: model_file.ModelFile
    params: Any
    tokenizer: tokenization.Tokenizer | None


def read(
    source: str,
    *,
    image_size: tuple[int, int] | None = None,
    activation: str = "",
    tokenizer: str = "",
) -> Converted:
    """Reads whatever `huggingface.load` reads, and the tokenizer beside it.

    Args:
        source: a Hugging Face name, a directory or a file of weights.
        image_size: (height, width) for which position embeddings are resized; None: the source's.
        activation: see `huggingface.load`.
        tokenizer: name or directory of another tokenizer than the one beside the weights.

    Raises:
        ConversionError: the weights or the tokenizer cannot be read or do not fit each other.
        ConfigError: `image_size` is no multiple of the patch size.
    """
    foreign = huggingface.load(source, activation=activation, allow_missing=("mlm_head",))
    spec, params = foreign.spec, foreign.params
    if image_size is not None:
        spec, params = _resize(spec, params, image_size, source)
    text = spec.text if isinstance(spec, DualEncoderSpec) else spec
    words = None
    if not isinstance(text, VisionSpec):
        words = _tokenizer(tokenizer or str(foreign.directory), text, source)
    model = model_file.ModelFile(spec, "float32", foreign.text_length)
    return Converted(model, params, words)


def check(config: schema.Convert, resumed: epath.PathLike | None) -> None:
    """Raises whatever `convert` would raise, and writes nothing."""
    if resumed is None or not is_begun(resumed):
        _read(config)


def convert(config: schema.Convert, workdir: epath.PathLike, resume: bool) -> None:
    """Writes `checkpoints/0`, `model.json` and `tokenizer/` into `workdir`.

    With `resume`, only what a killed conversion left unfinished.

    Raises:
        ConversionError, ConfigError: as `read`.
    """
    workdir = epath.Path(workdir)
    with Checkpoints.open(workdir, keep=1) as checkpoints:
        if checkpoints.latest_step() is None:
            converted = _read(config)
            converted.model.write(workdir, converted.tokenizer)
            params = jax.tree.map(jnp.asarray, converted.params)
            checkpoints.save_params(params, config=schema.to_dict(config))
            print(f"{trees.count_parameters(params):,} parameters of {config.source}")
    print(f"converted: {workdir}")


def _read(config: schema.Convert) -> Converted:
    return read(
        config.source,
        image_size=(config.height, config.width) if config.height else None,
        activation=config.activation,
        tokenizer=config.tokenizer,
    )


def _resize(
    spec: specs.Spec, params: Any, image_size: tuple[int, int], source: str
) -> tuple[specs.Spec, Any]:
    image = spec.image if isinstance(spec, DualEncoderSpec) else spec
    if not isinstance(image, VisionSpec):
        raise ConversionError(f"height and width are set, but {source} has no image encoder")
    encoder = initial.resize(params["image_encoder"], image, image_size)
    image = dataclasses.replace(image, image_size=image_size)
    whole = isinstance(spec, DualEncoderSpec)
    return (
        dataclasses.replace(spec, image=image) if whole else image,
        {**params, "image_encoder": encoder},
    )


def _tokenizer(name: str, text: Any, source: str) -> tokenization.Tokenizer:
    try:
        tokenizer = tokenization.load(name)
    except DataError as error:
        raise ConversionError(
            f"{source}: {error}; name another one with --config.tokenizer of launch/convert.py"
        ) from error
    if tokenizer.vocab_size > text.vocab_size:
        raise ConversionError(
            f"tokenizer {name!r} has ids up to {tokenizer.vocab_size - 1}, but the text encoder of "
            f"{source} has embeddings for {text.vocab_size} tokens; use the tokenizer that the "
            "weights were trained with"
        )
    if isinstance(text, ClipTextSpec) and tokenizer.end != text.end_token:
        raise ConversionError(
            f"tokenizer {name!r} ends texts with id {tokenizer.end}, but the text encoder of "
            f"{source} reads its embedding at id {text.end_token}"
        )
    return tokenizer
