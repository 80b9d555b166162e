"""The weights in a TorchScript archive, in which form OpenAI released its models.

PyTorch's own reader runs the archive's programs, which can write files, already as it loads them.
Here only the tensors are looked at: of the pickle that ties them to names, modules become dumb
holders of their attributes, and whatever else it would call is refused.
"""

import collections
import pickle
import zipfile
from collections.abc import Callable, Iterator
from typing import Any

import ml_dtypes
import numpy as np
from etils import epath

_DTYPES = {
    "DoubleStorage": np.float64,
    "FloatStorage": np.float32,
    "HalfStorage": np.float16,
    "BFloat16Storage": ml_dtypes.bfloat16,
    "LongStorage": np.int64,
    "IntStorage": np.int32,
    "ShortStorage": np.int16,
    "CharStorage": np.int8,
    "ByteStorage": np.uint8,
    "BoolStorage": np.bool_,
}


def root(archive: zipfile.ZipFile) -> str | None:
    """Returns what names in a TorchScript archive begin with; None: `torch.save` wrote it."""
    # PyTorch finds the file in any spelling of upper and lower case.
    constants = (name for name in archive.namelist() if name.lower().endswith("/constants.pkl"))
    return next((name[: -len("constants.pkl")] for name in constants), None)


def stored_size(archive: zipfile.ZipFile) -> int:
    """Returns the bytes that reading the weights of an archive of PyTorch's would unpack."""
    return sum(
        entry.file_size
        for entry in archive.infolist()
        if "/data/" in entry.filename or entry.filename.endswith("/data.pkl")
    )


def read(path: epath.Path) -> dict[str, np.ndarray]:
    """Returns what the module's `state_dict` would.

    Raises:
        pickle.UnpicklingError: the archive holds something else than modules with attributes, such
            as a module that restores itself by a program of its own.
        Exception: of many types; the archive is damaged.
    """
    with zipfile.ZipFile(path) as archive:
        top = root(archive)
        if f"{top}byteorder" in archive.namelist() and archive.read(f"{top}byteorder") == b"big":
            raise pickle.UnpicklingError("the numbers are big-endian")
        with archive.open(f"{top}data.pkl") as stream:
            module = _Unpickler(stream, lambda key: archive.read(f"{top}data/{key}")).load()
    if not isinstance(module, _Module):
        raise pickle.UnpicklingError(f"a module expected, found {type(module).__name__}")
    return dict(_weights(module, ""))


class _Module:
    """A module without its program."""

    attributes: dict[str, Any]

    def __setstate__(self, state: Any):
        if not isinstance(state, dict):
            raise pickle.UnpicklingError("a module is restored by a program")
        self.attributes = state


class _Unpickler(pickle.Unpickler):
    def __init__(self, stream: Any, storage: Callable[[str], bytes]):
        super().__init__(stream)
        self._storage = storage

    def find_class(self, module: str, name: str) -> Any:
        """Returns the little that such a pickle may call."""
        if module.split(".")[0] == "__torch__":
            return _Module
        if module == "torch.jit._pickle":  # Lists and the like, which hold no weights.
            return lambda *_: None
        if module == "torch" and name in _DTYPES:
            return _DTYPES[name]
        known = {
            ("torch._utils", "_rebuild_tensor_v2"): _tensor,
            ("collections", "OrderedDict"): collections.OrderedDict,
        }
        if (module, name) not in known:
            raise pickle.UnpicklingError(f"{module}.{name} is not allowed")
        return known[module, name]

    def persistent_load(self, pid: Any) -> tuple[Any, bytes]:
        """Returns a storage: the type of its numbers, and their bytes."""
        _, dtype, key, *_ = pid
        return dtype, self._storage(key)


def _tensor(storage: tuple[Any, bytes], offset: int, shape: Any, strides: Any, *_: Any) -> Any:
    dtype, content = np.dtype(storage[0]), storage[1]
    # NumPy refuses what would reach beyond the buffer.
    steps = [stride * dtype.itemsize for stride in strides]
    return np.ndarray(shape, dtype, content, offset * dtype.itemsize, steps)


def _weights(module: _Module, prefix: str) -> Iterator[tuple[str, np.ndarray]]:
    for name, value in module.attributes.items():
        if isinstance(value, _Module):
            yield from _weights(value, f"{prefix}{name}.")
        elif isinstance(value, np.ndarray):
            yield f"{prefix}{name}", value
