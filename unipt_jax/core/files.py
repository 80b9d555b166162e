"""Files that are whole or absent, and working directories that are never shared by accident."""

import contextlib
import errno
import fcntl
import json
import logging
import os
import platform
import re
import sys
import uuid
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

from etils import epath

from unipt_jax.core.errors import ConfigError, DataError

log = logging.getLogger(__name__)

CONFIG_FILE = "config.json"
LOCK_FILE = ".unipt_jax.lock"  # A name that nobody else's file has: it is emptied and removed.

_LOCK_TRIES = 100
_ASIDE = re.compile(r"\..+\.[0-9]+-[0-9a-f]{8}\.tmp")


def is_remote(path: epath.PathLike) -> bool:
    """Tells whether a path names something in an object store, as `gs://bucket/run` does."""
    return "://" in os.fspath(path)


def is_file(path: epath.PathLike) -> bool:
    """Tells whether a path names a file, with an end: what epath takes for one may be a pipe."""
    return epath.Path(path).is_file() if is_remote(path) else os.path.isfile(path)


def require_reachable(path: epath.PathLike) -> None:
    """Finds out whether a path can be asked for at all; whether it is there does not matter.

    Raises:
        DataError: the package that its object store is reached by is missing, or access to it.
    """
    try:
        epath.Path(path).exists()
    except Exception as error:  # Each store has errors of its own.
        raise DataError(
            f"{path} cannot be reached: {error}; gs:// needs pip install 'unipt-jax[gcs]', and "
            "credentials: gcloud auth application-default login"
        ) from error


def absolute(path: epath.PathLike) -> epath.Path:
    """Returns the path by which others find the same thing, in whatever directory they work."""
    path = epath.Path(path)
    # What etils makes absolute, it puts below the working directory: gs:// paths too.
    return path if path.is_absolute() else path.absolute()


def write_bytes(path: epath.PathLike, content: bytes) -> None:
    """Writes `content` aside and renames it, so that `path` never holds a part of it."""
    write_stream(path, [content])


def write_stream(path: epath.PathLike, content: Iterable[bytes]) -> None:
    """Writes pieces one after another as `write_bytes` does; they need not fit into memory."""
    path = epath.Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    aside = path.parent / f".{path.name}.{os.getpid()}-{uuid.uuid4().hex[:8]}.tmp"
    try:
        with naming(path, aside):
            with aside.open("wb") as file:
                for piece in content:
                    file.write(piece)
            aside.replace(path)
    finally:
        if aside.exists():
            aside.unlink()


@contextlib.contextmanager
def naming(path: epath.PathLike, aside: epath.PathLike | None = None) -> Iterator[None]:
    """Makes the errors of writing a file say which: a full disk does not, nor does `aside` help."""
    try:
        yield
    except OSError as error:
        if error.filename is not None and error.filename != (aside and os.fspath(aside)):
            raise
        raise OSError(error.errno, error.strerror or str(error), os.fspath(path)) from error


def is_aside(name: str) -> bool:
    """Tells whether a name is one under which `write_stream` writes a file that is not whole."""
    return _ASIDE.fullmatch(name) is not None


def remove_leftovers(directory: epath.PathLike) -> None:
    """Removes what writers that were killed have left aside; none may be at work in there."""
    directory = epath.Path(directory)
    for child in directory.iterdir() if directory.is_dir() else ():
        if is_aside(child.name):
            child.unlink()


def write_json(path: epath.PathLike, value: Any) -> None:
    """Writes strict JSON (NaN and infinity raise `ValueError`), whole or not at all."""
    write_bytes(path, _encode(value, indent=1))


def write_json_lines(path: epath.PathLike, rows: Iterable[Any]) -> None:
    """Writes one strict JSON value a line, whole or not at all."""
    write_stream(path, map(_encode, rows))


def append_json_lines(path: epath.PathLike, rows: Iterable[Any]) -> None:
    """Adds one strict JSON value a line to a file, which need not be there yet.

    A kill may leave the last line unfinished, but never takes an earlier one away.
    """
    path, content = epath.Path(path), b"".join(map(_encode, rows))
    if is_remote(path):
        # An object is replaced as a whole, or not at all. Nothing can be added to one: gcsfs opens
        # it for that with no more than a warning, and what it held is gone.
        path.write_bytes((path.read_bytes() if path.exists() else b"") + content)
    else:
        with naming(path), path.open("ab") as file:
            file.write(content)


def read_json(
    path: epath.PathLike, make: Callable[[list[tuple[str, Any]]], Any] | None = None
) -> Any:
    """Reads UTF-8 JSON, with or without a byte-order mark.

    Args:
        path: the file.
        make: makes each object's value of its names and values, in order; None: a dict, in which
            the last of several values of a name counts.

    Raises:
        DataError: the file cannot be read, is not UTF-8 (named with the byte offset), is not JSON
            (named with line and column), or holds what no reader should need to take.
    """
    path = epath.Path(path)
    try:
        content = _read_file(path)
        # Not "utf-8-sig", whose errors count the bytes after the mark.
        text = content.decode("utf-8").removeprefix("\ufeff")
    except FileNotFoundError:
        raise DataError(f"{path}: no such file") from None
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror or error}") from None
    except UnicodeDecodeError as error:
        raise DataError(
            f"{path}: byte {error.start} is not UTF-8; save the file as UTF-8"
        ) from None
    if (byte := content.find(0)) >= 0:  # JSON itself holds none.
        raise DataError(f"{path}: byte {byte} is NUL, as in UTF-16; save the file as UTF-8")
    try:
        return json.loads(text, object_pairs_hook=make)
    except json.JSONDecodeError as error:
        lines = "; a file holds one value, not one a line" if error.msg == "Extra data" else ""
        raise DataError(
            f"{path}: not JSON at line {error.lineno}, column {error.colno}: {error.msg}{lines}"
        ) from None
    except RecursionError:
        raise DataError(f"{path}: lists and objects are nested too deeply; mend it") from None
    except ValueError:
        limit = sys.get_int_max_str_digits()
        raise DataError(f"{path}: a number has more than {limit} digits; mend it") from None


def read_json_lines(path: epath.PathLike) -> list[Any]:
    """Reads one JSON value a line, but not a last line that a kill has left unfinished.

    A last line that is whole counts without its end, which an editor may have taken, and empty
    lines do not.

    Raises:
        DataError: a line (named) is damaged, or the file cannot be read.
    """
    path, values = epath.Path(path), []
    try:
        lines = _read_file(path).split(b"\n")
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror or error}") from None
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            values.append(json.loads(line))
        except (ValueError, RecursionError):
            if number < len(lines):
                raise DataError(f"{path}: line {number} is damaged; take that line away") from None
    return values


def _read_file(path: epath.Path) -> bytes:
    """Returns what a file holds; a pipe, which may have no end, is an `OSError`."""
    if is_file(path) or not path.exists() or path.is_dir():
        return path.read_bytes()  # Which says what else is wrong.
    raise OSError(errno.EINVAL, "not an ordinary file")


def is_run(directory: epath.PathLike) -> bool:
    """Tells whether a run of this library wrote `config.json`; Hugging Face's models have one too.

    Raises:
        DataError: the file cannot be read or is no JSON.
    """
    path = epath.Path(directory) / CONFIG_FILE
    if not path.exists():
        return False
    config = read_json(path)
    return isinstance(config, dict) and "stage" in config


@contextlib.contextmanager
def claim_workdir(
    workdir: epath.PathLike, *, resume: bool = False, overwrite: bool = False
) -> Iterator[epath.Path]:
    """Makes `workdir` ready for a run, yields it, and keeps other runs out of it meanwhile.

    An empty or missing directory is always taken. One in use is kept with `resume`, emptied with
    `overwrite` (both only if an earlier run wrote `config.json` there), and refused otherwise.

    Others are kept out by a lock on `LOCK_FILE`, which the system takes away with the process,
    however that ends. Object stores have none, nor have some file systems, which are warned of.

    Raises:
        ConfigError: the directory is in use, by a run that is still at work or else, is not a run's
            own, cannot be made or locked, or both flags were given.
    """
    path = epath.Path(workdir)
    if resume and overwrite:
        raise ConfigError("--resume and --overwrite exclude each other; pass one of them")
    _require_claimable(path, resume or overwrite)
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(f"--workdir={path} cannot be made: {error.strerror or error}") from None
    with contextlib.nullcontext() if is_remote(path) else _lock(path):
        _require_claimable(path, resume or overwrite)  # Another may have come and gone meanwhile.
        if overwrite:
            _empty(path)
        yield path


def _require_claimable(path: epath.Path, again: bool) -> None:
    """Refuses a directory with something in it, but, with `again`, that of an earlier run."""
    if path.exists() and not path.is_dir():
        raise ConfigError(f"--workdir={path} is a file; name a directory")
    # A kill may have left nothing but a configuration half written.
    if not path.exists() or all(
        child.name == LOCK_FILE or is_aside(child.name) for child in path.iterdir()
    ):
        return
    if not is_run(path):
        raise ConfigError(
            f"--workdir={path} is not empty and holds no {CONFIG_FILE} of a run, so it is not "
            "a run's directory; it was left untouched: empty it yourself or name another"
        )
    if not again:
        raise ConfigError(
            f"--workdir={path} is not empty; pass --resume to go on with the run in it, "
            "--overwrite to replace it, or name another directory"
        )


@contextlib.contextmanager
def _lock(directory: epath.Path) -> Iterator[None]:
    """Holds the lock of a directory; its file tells others who does, and goes away in the end."""
    path = Path(directory) / LOCK_FILE
    for _ in range(_LOCK_TRIES):
        # Not emptied as it is opened: it may be another's.
        file = os.fdopen(os.open(path, os.O_RDWR | os.O_CREAT, 0o666), "r+")
        try:
            # Not `flock`, whose lock lasts as long as any process that this one has forked.
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno in (errno.EAGAIN, errno.EACCES):
                with file:
                    holder = file.read(200).strip() or "another process"
                raise ConfigError(
                    f"--workdir={directory} is being written by {holder}; wait until it has ended "
                    "or end it, or name another directory"
                ) from None
            log.warning(
                "%s cannot be locked (%s): let no other run write there",
                directory,
                error.strerror,
            )
        with contextlib.suppress(FileNotFoundError):
            if os.path.samestat(os.fstat(file.fileno()), path.stat()):
                break
        file.close()  # Its holder has just ended, and taken it away: it keeps nobody out.
    else:
        raise ConfigError(
            f"--workdir={directory} cannot be locked: its {LOCK_FILE} was taken away "
            f"{_LOCK_TRIES} times as it was opened; try again, or name another directory"
        )
    with file:
        try:
            file.truncate(0)
            file.write(f"process {os.getpid()} on {platform.node()}\n")
            file.flush()
            yield
        finally:
            with contextlib.suppress(OSError):  # The directory may be gone.
                path.unlink()


def _encode(value: Any, indent: int | None = None) -> bytes:
    text = json.dumps(
        value, indent=indent, ensure_ascii=False, allow_nan=False, default=_plain_scalar
    )
    # UTF-8 cannot hold half a surrogate pair (a file name that is not UTF-8, a damaged caption);
    # its backslash escape is JSON's own.
    return (text + "\n").encode("utf-8", "backslashreplace")


def _plain_scalar(value: Any) -> Any:
    """Returns the Python number in a NumPy or JAX scalar."""
    if getattr(value, "shape", None) == ():
        return value.item()
    raise TypeError(f"{type(value).__name__} has no JSON form")


def _empty(path: epath.Path) -> None:
    """Removes what is in a run's directory, which may itself be a link; links are not followed."""
    # The file that marks the directory as a run's goes last: a killed removal can be repeated.
    for child in sorted(path.iterdir(), key=lambda child: child.name == CONFIG_FILE):
        if child.name == LOCK_FILE:  # A new one would be another lock.
            continue
        if child.is_dir() and not os.path.islink(child):
            child.rmtree()
        else:
            child.unlink()
