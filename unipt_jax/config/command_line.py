"""The command line that every script in `launch/` shares, and the one place where errors end."""

import argparse
import contextlib
import errno
import gc
import io
import logging
import os
import re
import signal
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path, PurePath
from typing import Any, NoReturn

import jax
from etils import epath
from rich.console import Console

from unipt_jax.config import explain, load, schema
from unipt_jax.core import distributed
from unipt_jax.core.errors import (
    CheckpointError,
    ConfigError,
    DivergenceError,
    PreemptionError,
    SaveError,
    UserError,
    WorkerError,
    nearest,
)
from unipt_jax.core.files import (
    CONFIG_FILE,
    claim_workdir,
    is_remote,
    read_json,
    require_reachable,
    write_json,
)

Run = Callable[[Any, epath.Path | None, bool], None]

_OF_STORAGE = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EIO}


def main(
    run: Run,
    doc: str,
    arguments: Sequence[str] | None = None,
    *,
    takes: type = object,
    check: Callable[[Any, epath.Path | None], None] = lambda config, resumed: None,
    alone: bool = False,
    remote: bool = True,
    claims: bool = True,
) -> NoReturn:
    """Parses flags, joins other processes, calls `check`, claims the work directory, calls `run`.

    The configuration must be one that `takes` describes: another is that of another script. `check`
    takes the configuration and, if a run is to go on, its work directory, else None; `run`
    takes the configuration, the work directory and whether to resume. Then the process exits. Where
    `alone` is set, one process does the work, and several are refused; without `remote` a work
    directory in an object store is. Without `claims` the work directory may be left out, is None
    then, and is used as it is, again and again.

    With `config.dry_run` the work directory is not claimed: it may be in use.

    Exit code 0 is success; 2 a mistake that the user can mend, told in one line; 143 an end by
    SIGTERM, after which --resume goes on; 1 any other failure. `config.json` in the work directory
    holds the configuration; a resumed run must agree with it. Several processes must have the same
    one; all check, the first claims, and none goes on before all can.
    """
    # Tracing makes millions of objects that stay: to look for cycles among them, and among all that
    # was imported, after every few hundred new ones takes a tenth of a start.
    gc.freeze()
    gc.set_threshold(20_000)
    # Forced: absl, once imported, has put a handler of its own in the way.
    logging.basicConfig(
        level=logging.INFO, format="%(asctime)s %(message)s", datefmt="%H:%M:%S", force=True
    )
    for name in ("fsspec", "gcsfs", "httpx", "jax"):  # They tell of every file and program.
        logging.getLogger(name).setLevel(logging.WARNING)
    # Orbax warns of what it was asked for, such as a directory that is only read, and tells each
    # thread's error beside that which it raises.
    logging.getLogger("absl").setLevel(logging.CRITICAL)
    sys.unraisablehook = _complain
    if isinstance(sys.stdout, io.TextIOWrapper):  # Of any encoding, and names hold whatever bytes.
        sys.stdout.reconfigure(errors="backslashreplace")
    try:
        given = sys.argv[1:] if arguments is None else arguments
        flags, overrides = parse(doc, given, claims=claims, takes=takes)
        config = schema.build(_stage(flags.config, overrides, takes)[0])
        trains = isinstance(config, schema.Train)  # No other stage saves when it is preempted.
        dry = trains and config.dry_run
        distributed.start(flags.coordinator, flags.processes, flags.process, preemption=trains)
        if not distributed.is_first():
            logging.getLogger().setLevel(logging.WARNING)  # Once is enough.
        if alone and jax.process_count() > 1:
            raise ConfigError(
                f"one process does the work of {config.stage!r}, and {jax.process_count()} were "
                "started; start one"
            )
        given = [schema.to_dict(config), flags.resume, flags.overwrite]
        distributed.require_same("configuration or flags", given)
        workdir = epath.Path(flags.workdir) if flags.workdir else None
        # A mistake must show before --overwrite removes anything.
        with distributed.together():
            if workdir:
                _require_place(workdir, remote)
            check(config, workdir if flags.resume else None)
            if dry and flags.resume:
                _require_same_config(config, workdir)
        with contextlib.ExitStack() as held:
            with distributed.together():
                if claims and distributed.is_first() and not dry:
                    _claim(config, workdir, flags, held)
            run(config, workdir, flags.resume)
    except (CheckpointError, SaveError) as error:
        code = _fail(str(error), 2 if isinstance(error, UserError) else 1)
        sys.stdout.flush()
        os._exit(code)  # Readers or writers are still about, whose complaints would bury that line.
    except UserError as error:
        sys.exit(_fail(str(error), 2))
    except (DivergenceError, WorkerError) as error:
        sys.exit(_fail(str(error), 1))
    except PreemptionError as error:
        sys.exit(_fail(str(error), 128 + signal.SIGTERM))
    except KeyboardInterrupt:
        sys.exit(_fail("interrupted", 130))
    except Exception as error:
        # A disk that is full, read-only or gone, where it is not a checkpoint that tells so.
        if isinstance(error, OSError) and error.filename:
            sys.exit(_fail(f"{error.filename}: {error.strerror}", 1))
        if isinstance(error, OSError) and error.errno in _OF_STORAGE:  # Such as that of stdout.
            sys.exit(_fail(error.strerror, 1))
        distributed.leave_soon(1)
        raise
    sys.exit(0)


def _complain(fault: Any) -> None:
    """Shows an error that no caller can catch; not those of TensorStore's threads, whose has left.

    They have no more to say than what the caller raised, and would bury the line that tells it.
    """
    if "Event loop is closed" not in str(fault.exc_value):
        sys.__unraisablehook__(fault)


def _claim(
    config: Any, workdir: epath.Path, flags: argparse.Namespace, held: contextlib.ExitStack
) -> None:
    """Makes the work directory ready, with the configuration in it; it is this run's while held."""
    if flags.overwrite:
        _require_other_inputs(config, flags.workdir)
    claim = claim_workdir(workdir, resume=flags.resume, overwrite=flags.overwrite)
    try:
        held.enter_context(claim)
        _record_config(config, workdir)
    except OSError as error:
        why = error.strerror or error
        raise ConfigError(f"--workdir={workdir} cannot be written to: {why}") from error


def _require_place(workdir: epath.Path, remote: bool) -> None:
    """Refuses a work directory in an object store that cannot be reached, or written by this."""
    if is_remote(workdir) and not remote:
        raise ConfigError(
            f"--workdir={workdir}: files of this kind are written to disks alone; name a local "
            "directory, and copy what is then in it (gcloud storage rsync -r)"
        )
    require_reachable(workdir)


class _Parser(argparse.ArgumentParser):
    """Reports a mistake as every other one is reported: in one line."""

    def error(self, message: str) -> NoReturn:
        raise ConfigError(message)


def parse(
    doc: str, arguments: Sequence[str], *, claims: bool = True, takes: type = object
) -> tuple[argparse.Namespace, dict[str, str | bool]]:
    """Splits the arguments into flags and `--config.field=value` overrides.

    `--config.field` without a value means True. `--help` with `--config=FILE` lists its fields.
    Without `claims` there is nothing to resume or overwrite, and no need of a work directory.

    Raises:
        ConfigError: an argument is unknown, or a flag or its value is missing.
    """
    place = "--workdir=DIR" if claims else "[--workdir=DIR]"
    parser = _Parser(
        usage=f"%(prog)s --config=FILE {place} [--config.NAME=VALUE ...] [FLAGS]",
        description=doc,
        allow_abbrev=False,
        add_help=False,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--config", metavar="FILE", help="FILE[:variant,...,key=value,...]")
    parser.add_argument("--workdir", metavar="DIR", help="directory for what this run writes")
    if claims:
        parser.add_argument("--resume", action="store_true", help="go on with the run in --workdir")
        parser.add_argument("--overwrite", action="store_true", help="replace the run in --workdir")
    parser.add_argument(
        "--coordinator", default="", metavar="ADDRESS", help="HOST:PORT of the first of --processes"
    )
    parser.add_argument(
        "--processes", type=int, default=0, metavar="N", help="of this run, if not detected"
    )
    parser.add_argument(
        "--process", type=int, default=-1, metavar="I", help="this one's number, from 0"
    )
    parser.add_argument("--help", "-h", action="store_true", help="show this, and the fields")
    plain: list[str] = []
    overrides: dict[str, str | bool] = {}
    rest = list(arguments)
    while rest:
        word = rest.pop(0)
        if not word.startswith("--config."):
            plain.append(word)
            continue
        name, equals, value = word.removeprefix("--config.").partition("=")
        if equals:
            overrides[name] = value
        else:
            overrides[name] = rest.pop(0) if rest and not rest[0].startswith("--") else True
    flags, unknown = parser.parse_known_args(plain)
    if flags.help:
        parser.print_help()
        _print_fields(flags.config, overrides, takes)
        sys.exit(0)
    if unknown:
        parser.error(f"unknown argument {unknown[0]}{_nearest_flag(unknown[0], flags)}")
    needed = ("config", "workdir") if claims else ("config",)
    missing = [name for name in needed if getattr(flags, name) is None]
    if missing:
        parser.error(f"--{missing[0]} is not set")
    if not claims:
        flags.resume = flags.overwrite = False
    return flags, overrides


def _nearest_flag(argument: str, flags: argparse.Namespace) -> str:
    """Returns what an unknown argument might mean: a flag, or a field without `--config.`."""
    name = argument.partition("=")[0]
    fields = []
    if flags.config:
        with contextlib.suppress(ConfigError):
            fields = [each.name for each in schema.describe(_stage(flags.config, {}, object)[1])]
    meant = re.sub(r"^--(conf\w*\.)?", "", name).replace("-", "_")
    for field in fields:
        if field == meant or field.endswith(f".{meant}"):
            return f"; did you mean '--config.{field}'?"
    return nearest(name, [f"--{name}" for name in vars(flags)])


def _print_fields(spec: str | None, overrides: Mapping[str, str | bool], takes: type) -> None:
    if spec is None:
        print("\nPass --config=FILE with --help to see the fields of its stage.")
        return
    values, stage = _stage(spec, overrides, takes)
    print(f"\nfields of {load.split_spec(spec)[0]} (--config.NAME=VALUE):")
    console = Console(highlight=False)
    # No wider than reads well; rich wraps nothing that is wrapped already.
    console.print(explain.fields(stage, values, min(console.width, 100)), soft_wrap=True)


def _stage(
    spec: str, overrides: Mapping[str, str | bool], takes: type
) -> tuple[dict[str, Any], type]:
    """Returns the values of a configuration that need not be complete, and its schema.

    Raises:
        ConfigError: it is of no stage, or of one whose schema is not what the script `takes`.
    """
    values = load.read(spec, overrides)
    path, _ = load.split_spec(spec)
    try:
        described = schema.stage_of(values)
    except ConfigError as error:
        raise ConfigError(f"{path}: {error}") from None
    if not issubclass(described, takes):
        script = "train" if described is schema.Train else values["stage"]
        raise ConfigError(
            f"--config={path} is for launch/{script}.py; this script takes "
            + " or ".join(f"stage={name!r}" for name, cls in schema.STAGES.items() if cls is takes)
        )
    return values, described


def _require_other_inputs(config: Any, workdir: str) -> None:
    """Refuses to empty a work directory that is, or holds, something the configuration reads."""
    emptied = _place(workdir)
    for name, value in _texts(schema.to_dict(config), ""):
        if value and _place(value).is_relative_to(emptied) and epath.Path(value).exists():
            raise ConfigError(
                f"--overwrite would remove {name}={value}, which lies in --workdir={workdir}; "
                "name another directory"
            )


def _place(path: str) -> PurePath:
    """Returns the path with links followed, of which object stores have none."""
    return epath.Path(path) if is_remote(path) else Path(path).resolve()


def _texts(values: Any, name: str) -> Iterator[tuple[str, str]]:
    if isinstance(values, str):
        yield name, values
    elif isinstance(values, dict):
        for key, value in values.items():
            yield from _texts(value, f"{name}.{key}".lstrip("."))
    elif isinstance(values, list):
        for value in values:
            yield from _texts(value, name)


def _record_config(config: Any, workdir: epath.Path) -> None:
    """Writes the configuration, or, where a resumed run has one, checks that both agree."""
    path = workdir / CONFIG_FILE
    if path.exists():
        _require_same_config(config, workdir)
    else:
        write_json(path, schema.to_dict(config))


def _require_same_config(config: Any, workdir: epath.Path) -> None:
    """Checks that a run that goes on, if there is one, has the configuration that it began with."""
    path = workdir / CONFIG_FILE
    if not path.exists():
        return
    try:
        before = schema.build(read_json(path))
    except ConfigError as error:
        raise ConfigError(
            f"--resume: {path} is not of this version of unipt_jax: {error}; resume with the "
            "version that wrote it, or start anew with --overwrite"
        ) from None
    differences = schema.resume_differences(before, config)
    if differences:
        raise ConfigError(
            f"--resume: {path} differs from this configuration in {'; '.join(differences)}; "
            "resume with the same values, or start anew with --overwrite"
        )


def _fail(message: str, code: int) -> int:
    # Written with its end of line at once, or those of several processes share a line.
    print(f"error: {' '.join(message.split())}\n", end="", file=sys.stderr)
    distributed.leave_soon(code)
    return code
