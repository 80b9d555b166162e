"""Files of weights, on disk or on the Hugging Face hub, read to NumPy arrays by name.

Weights are data: nothing that a file holds is ever executed.
"""

import dataclasses
import hashlib
import os
import pickle
import re
import tarfile
import zipfile
from collections.abc import Mapping, Sequence
from typing import Any

import huggingface_hub
import ml_dtypes
import numpy as np
import safetensors.numpy
from etils import epath
from flax import serialization
from huggingface_hub import errors as hub_errors

from unipt_jax.core import files, trees
from unipt_jax.core.errors import ConversionError, DataError
from unipt_jax.interop import torchscript

# What a directory may hold, best first; beside each file may stand its index, `<file>.index.json`,
# that names the parts in which the weights come.
FORMATS = (
    "model.safetensors",
    "flax_model.msgpack",
    "pytorch_model.bin",
    "open_clip_model.safetensors",
    "open_clip_pytorch_model.bin",
)
SUFFIXES = (".safetensors", ".msgpack", ".bin", ".pt", ".pth", ".ckpt")

# In the header of what this library exports: `checksum` of the weights.
CHECKSUM = "unipt_jax_sha256"

_TORCH = (2, 6)  # The first that, told to read weights alone, never runs code (CVE-2025-32434).

# What describes weights: small files, of which each model has some.
_DESCRIPTIONS = [
    "config.json",
    "open_clip_config.json",
    "preprocessor_config.json",
    "processor_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "vocab.txt",
    "merges.txt",
]


@dataclasses.dataclass(frozen=True)
class Source:
    """Where weights lie.

    Attributes:
        directory: the local directory with what describes them.
        file: the one file to read; None: the best of the directory.
        hub: the name under which the hub has them; "" if they are local.
    """

    directory: epath.Path
    file: epath.Path | None = None
    hub: str = ""


def locate(name: str) -> Source:
    """Finds a local directory, a local file or, failing both, a model on the hub.

    Of the hub's model only what describes the weights is fetched.

    Raises:
        ConversionError: there is nothing of that name, or the hub cannot be reached; or the name
            is empty or a URL.
    """
    if not name or "://" in name:
        raise ConversionError(
            f"{name!r} is no source of weights: name a local directory or file, or a model on the "
            "Hugging Face hub, such as openai/clip-vit-base-patch16"
        )
    path = epath.Path(name)
    if path.is_dir():
        return Source(path)
    if is_present(path):
        if path.suffix not in SUFFIXES:
            raise ConversionError(
                f"{path} is no file of weights; its name ends in none of {', '.join(SUFFIXES)}"
            )
        return Source(path.parent, file=path)
    if path.suffix in SUFFIXES or not re.fullmatch(r"\w[\w.-]*(/\w[\w.-]*)?", name):
        raise ConversionError(f"{name}: no such file or directory")
    return Source(_fetch(name, _DESCRIPTIONS), hub=name)


def find(source: Source) -> list[epath.Path]:
    """Returns the files that hold the weights together; from the hub, in one format alone.

    Raises:
        ConversionError: there are no weights, or a part of them is missing.
    """
    if source.file:
        return [source.file]
    for name in FORMATS:
        if source.hub:
            stem, suffix = name.rsplit(".", 1)
            _fetch(source.hub, [name, f"{name}.index.json", f"{stem}-*.{suffix}"])
        if is_present(source.directory / name):
            return [source.directory / name]
        index = source.directory / f"{name}.index.json"
        if is_present(index):
            return _parts(index)
    raise ConversionError(
        f"{source.hub or source.directory} holds no weights: looked for {', '.join(FORMATS)}"
    )


def read(paths: Sequence[epath.Path]) -> dict[str, np.ndarray]:
    """Reads files that hold weights together, in torch's spelling and layout, whatever the format.

    Raises:
        ConversionError: a file is empty, damaged or holds something else than weights, two hold a
            weight of one name, or reading it needs PyTorch, which is not installed or too old.
    """
    weights: dict[str, np.ndarray] = {}
    for path in paths:
        length = path.stat().length
        if not length:
            raise ConversionError(f"{path} is empty; fetch it again")
        found = _read_one(path)
        _require_within(path, "weights", sum(array.nbytes for array in found.values()), length)
        both = sorted(weights.keys() & found.keys())
        if both:
            raise ConversionError(
                f"{path} holds {both[0]}, which another part holds too: they are parts of two "
                "models; fetch them again"
            )
        weights.update(found)
    if not weights:
        raise ConversionError(f"{', '.join(map(str, paths))}: no weights are in there")
    return weights


def checksum(weights: Mapping[str, np.ndarray]) -> str:
    """Returns 64 hexadecimal digits that follow from names, types, shapes and values."""
    digest = hashlib.sha256()
    for name in sorted(weights):
        array = np.ascontiguousarray(weights[name])
        digest.update(repr((name, str(array.dtype), weights[name].shape)).encode())
        digest.update(array.reshape(-1).view(np.uint8))
    return digest.hexdigest()


def is_present(path: epath.Path) -> bool:
    """Tells whether a file is there.

    Raises:
        ConversionError: its name is, but no file. A pruned cache of the hub has such links, and
            taking them for absent files would read something else in their place.
    """
    if os.path.lexists(path) and not path.is_file():
        raise ConversionError(f"{path} is a dangling link or no file; fetch it again")
    return path.is_file()


def read_json(path: epath.Path) -> dict[str, Any]:
    """Reads a JSON object.

    Raises:
        ConversionError: the file cannot be read, or holds something else.
    """
    try:
        value = files.read_json(path)
    except DataError as error:
        raise ConversionError(str(error)) from None
    if not isinstance(value, dict):
        raise ConversionError(f"{path}: a JSON object expected, found {type(value).__name__}")
    return value


def one_line(error: Exception) -> str:
    """Returns the beginning of another library's message, on one line."""
    text = " ".join(str(error).split()) or type(error).__name__
    return text if len(text) <= 200 else f"{text[:200]}..."


def _fetch(name: str, patterns: list[str]) -> epath.Path:
    try:
        return epath.Path(huggingface_hub.snapshot_download(name, allow_patterns=patterns))
    except (OSError, ValueError, hub_errors.HTTPError, hub_errors.EntryNotFoundError) as error:
        raise ConversionError(
            f"{name} is neither a local file or directory nor to be had from the Hugging Face hub: "
            f"{one_line(error)}"
        ) from error


def _parts(index: epath.Path) -> list[epath.Path]:
    suffix = epath.Path(index.name.removesuffix(".index.json")).suffix
    parts = read_json(index).get("weight_map")
    if not isinstance(parts, dict) or not parts:
        raise ConversionError(
            f"{index}: no weight_map, which says what part holds which weight; fetch it again"
        )
    # A path would lead out of the directory, another suffix to another reader.
    strange = [
        value
        for value in parts.values()
        if not (isinstance(value, str) and re.fullmatch(r"\w[\w.-]*", value))
        or not value.endswith(suffix)
    ]
    if strange:
        raise ConversionError(
            f"{index}: {strange[0]!r:.50} in weight_map names no {suffix} file beside it"
        )
    paths = [index.parent / name for name in sorted(set(parts.values()))]
    missing = [path.name for path in paths if not is_present(path)]
    if missing:
        raise ConversionError(
            f"{index.parent} lacks {', '.join(missing)} of {len(paths)} parts; fetch it again"
        )
    return paths


def _damaged(path: epath.Path, error: Exception) -> ConversionError:
    return ConversionError(f"{path} is damaged or cut short ({one_line(error)}); fetch it again")


def _read_one(path: epath.Path) -> dict[str, np.ndarray]:
    if path.suffix == ".safetensors":
        return _read_safetensors(path)
    if path.suffix == ".msgpack":
        return _read_msgpack(path)
    if _is_zip(path):
        try:
            with zipfile.ZipFile(path) as archive:
                is_torchscript = torchscript.root(archive) is not None
                stored = torchscript.stored_size(archive)
        except Exception as error:  # zipfile's own are of many types.
            raise _damaged(path, error) from error
        _require_within(path, "an archive", stored, path.stat().length)
        if is_torchscript:
            return _read_torchscript(path)
    elif tarfile.is_tarfile(path):
        raise ConversionError(
            f"{path} is a tar archive, as PyTorch wrote them before 0.1.10, and is not read; save "
            "the weights alone, as safetensors"
        )
    return _read_torch(path)


def _is_zip(path: epath.Path) -> bool:
    try:
        return zipfile.is_zipfile(path)
    except zipfile.BadZipFile as error:  # Damage to the end, in which it looks for the rest.
        raise _damaged(path, error) from error


def _require_within(path: epath.Path, what: str, size: int, length: int) -> None:
    """Refuses what would fill the memory: compressed zeros, or one number seen as millions.

    Twice the file is right where tied weights, such as a decoder's, are seen under two names.
    """
    if size > 2 * length:
        raise ConversionError(
            f"{path} has {length:,} bytes, but claims {what} of {size:,}; fetch it again"
        )


def _read_safetensors(path: epath.Path) -> dict[str, np.ndarray]:
    try:
        with safetensors.safe_open(path, "numpy") as file:
            stored = (file.metadata() or {}).get(CHECKSUM)
        weights = safetensors.numpy.load_file(path)
    except (safetensors.SafetensorError, OSError, ValueError) as error:  # NumPy's are the last.
        raise _damaged(path, error) from error
    except AttributeError as error:  # Of NumPy, which has no such type.
        raise ConversionError(
            f"{path} holds weights of a type that is not supported ({error}); save them as float32"
        ) from error
    if stored not in (None, checksum(weights)):
        raise ConversionError(
            f"{path} is damaged: its weights are not those that were exported, by their checksum; "
            f"fetch or export it again (if they were changed on purpose, save them without "
            f"{CHECKSUM!r} among the metadata)"
        )
    return weights


def _read_msgpack(path: epath.Path) -> dict[str, np.ndarray]:
    """Reads Flax weights of Hugging Face, which carry torch's names but for the last part."""
    try:
        leaves = trees.flatten(serialization.msgpack_restore(path.read_bytes()))
    except Exception as error:  # msgpack's and Flax's decoders fail in many ways.
        raise _damaged(path, error) from error
    weights = {}
    for name, array in leaves.items():
        if not isinstance(array, np.ndarray):
            raise ConversionError(
                f"{path}: {name[:80] or 'the whole'} is no array but {array!r:.50}"
            )
        *scope, last = name.split("/")
        if last == "kernel":
            array = array.transpose((3, 2, 0, 1) if array.ndim == 4 else None)
        last = "weight" if last in ("kernel", "scale", "embedding") else last
        spelled = ".".join([*scope, last])
        if spelled in weights:
            raise ConversionError(f"{path} holds {spelled} twice; fetch it again")
        weights[spelled] = array
    return weights


def _read_torchscript(path: epath.Path) -> dict[str, np.ndarray]:
    try:
        return torchscript.read(path)
    except pickle.UnpicklingError as error:
        raise ConversionError(
            f"{path} is damaged, or its weights are not to be had without its programs, which are "
            f"never executed ({one_line(error)}); save its state dict alone, as safetensors"
        ) from error
    except Exception as error:  # Of zipfile, pickle and NumPy.
        raise _damaged(path, error) from error


def _read_torch(path: epath.Path) -> dict[str, np.ndarray]:
    try:
        import torch
    except ModuleNotFoundError:
        raise ConversionError(
            f"{path}: reading it needs PyTorch; install torch, or save the weights as safetensors"
        ) from None
    if tuple(map(int, torch.__version__.split(".")[:2])) < _TORCH:
        raise ConversionError(
            f"{path}: PyTorch {torch.__version__} may run code that a file holds beside weights "
            f"(CVE-2025-32434); install torch {_TORCH[0]}.{_TORCH[1]} or newer, or save the "
            "weights as safetensors"
        )
    try:
        content = torch.load(str(path), map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise ConversionError(
            f"{path} is damaged or holds Python objects beside weights, which are never executed; "
            "save the weights alone, as safetensors"
        ) from error
    except Exception as error:  # torch's own errors are RuntimeError, EOFError, KeyError and more.
        raise _damaged(path, error) from error
    for wrapper in ("state_dict", "model"):
        if isinstance(content, dict) and isinstance(content.get(wrapper), dict):
            content = content[wrapper]
    if not isinstance(content, dict) or not content:
        raise ConversionError(f"{path} holds no weights by name but {content!r:.50}")
    others = [
        str(name)
        for name, value in content.items()
        if not (isinstance(name, str) and isinstance(value, torch.Tensor))
    ]
    if others:
        raise ConversionError(
            f"{path} holds more than weights by name: {', '.join(others[:8])}; "
            "expected a state dict, by itself or as 'state_dict' or 'model'"
        )
    arrays = {}
    for name, tensor in content.items():
        try:
            tensor = tensor.detach()
            if tensor.dtype == torch.bfloat16:  # For torch, NumPy has no such type.
                arrays[name] = tensor.view(torch.int16).numpy().view(ml_dtypes.bfloat16)
            else:
                arrays[name] = tensor.numpy()
        except (TypeError, RuntimeError) as error:
            raise ConversionError(
                f"{path}: {name} is no array of numbers that NumPy has ({one_line(error)}); "
                "save it as float32"
            ) from error
    return arrays
