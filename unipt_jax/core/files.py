"""Files that are either whole or absent, and working directories that are never shared by accident."""

import json
import os
import uuid
from collections.abc import Iterable
from typing import Any

from etils import epath

from unipt_jax.core.errors import ConfigError, DataError

CONFIG_FILE = "config.json"


def write_bytes(path: epath.PathLike, content: bytes) -> None:
    """Writes `content` aside and renames it, so that `path` never holds a part of it."""
    path = epath.Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    aside = path.parent / f".{path.name}.{os.getpid()}-{uuid.uuid4().hex[:8]}.tmp"
    try:
        aside.write_bytes(content)
        aside.replace(path)
    finally:
        if aside.exists():
            aside.unlink()


def write_json(path: epath.PathLike, value: Any) -> None:
    """Writes strict JSON (NaN and infinity raise `ValueError`), whole or not at all."""
    text = json.dumps(value, indent=1, ensure_ascii=False, allow_nan=False)
    write_bytes(path, (text + "\n").encode())


def write_json_lines(path: epath.PathLike, rows: Iterable[Any]) -> None:
    """Writes one strict JSON value a line, whole or not at all."""
    lines = (json.dumps(row, ensure_ascii=False, allow_nan=False) + "\n" for row in rows)
    write_bytes(path, "".join(lines).encode())


def read_json(path: epath.PathLike) -> Any:
    """Reads UTF-8 JSON, with or without a byte-order mark.

    Raises:
        DataError: the file is missing, is not UTF-8 (named with the byte offset) or is not JSON
            (named with line and column).
    """
    path = epath.Path(path)
    try:
        text = path.read_bytes().decode("utf-8-sig")
    except FileNotFoundError:
        raise DataError(f"{path}: no such file") from None
    except UnicodeDecodeError as error:
        raise DataError(
            f"{path}: byte {error.start} is not UTF-8; save the file as UTF-8"
        ) from None
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        raise DataError(
            f"{path}: not JSON at line {error.lineno}, column {error.colno}: {error.msg}"
        ) from None


def claim_workdir(
    workdir: epath.PathLike, *, resume: bool = False, overwrite: bool = False
) -> epath.Path:
    """Makes `workdir` ready for a run and returns it.

    An empty or missing directory is always taken. One in use is kept with `resume`, emptied with
    `overwrite` (only if an earlier run wrote `config.json` there), and refused otherwise.

    Raises:
        ConfigError: the directory is in use, or is not a run's own, or both flags were given.
    """
    path = epath.Path(workdir)
    if resume and overwrite:
        raise ConfigError("--resume and --overwrite exclude each other; pass one of them")
    if path.exists() and not path.is_dir():
        raise ConfigError(f"--workdir={path} is a file; name a directory")
    if path.exists() and any(path.iterdir()) and not resume:
        if not overwrite:
            raise ConfigError(
                f"--workdir={path} is not empty; pass --resume to go on with the run in it, "
                "--overwrite to replace it, or name another directory"
            )
        if not (path / CONFIG_FILE).exists():
            raise ConfigError(
                f"--workdir={path} holds no {CONFIG_FILE}, so it is not a run's directory; "
                "it was left untouched: empty it yourself or name another"
            )
        path.rmtree()
    path.mkdir(parents=True, exist_ok=True)
    return path
