"""The command line that every script in `launch/` shares, and the one place where errors end."""

import argparse
import logging
import sys
from collections.abc import Callable, Sequence
from typing import Any, NoReturn

from etils import epath

from unipt_jax.config import load, schema
from unipt_jax.core.errors import DivergenceError, UserError
from unipt_jax.core.files import CONFIG_FILE, claim_workdir, write_json

Run = Callable[[Any, epath.Path, bool], None]


def main(run: Run, doc: str, arguments: Sequence[str] | None = None) -> NoReturn:
    """Parses flags, claims the work directory, calls `run(config, workdir, resume)` and exits.

    Exit code 0 is success; 2 a mistake that the user can mend, told in one line; 1 any other
    failure.
    """
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s", datefmt="%H:%M:%S")
    logging.getLogger("absl").setLevel(logging.WARNING)
    logging.getLogger("jax").setLevel(logging.WARNING)
    try:
        flags, overrides = parse(doc, sys.argv[1:] if arguments is None else arguments)
        config = load.load(flags.config, overrides)
        workdir = claim_workdir(flags.workdir, resume=flags.resume, overwrite=flags.overwrite)
        if not flags.resume:
            write_json(workdir / CONFIG_FILE, schema.to_dict(config))
        run(config, workdir, flags.resume)
    except UserError as error:
        sys.exit(_fail(str(error), 2))
    except DivergenceError as error:
        sys.exit(_fail(str(error), 1))
    except KeyboardInterrupt:
        sys.exit(_fail("interrupted", 130))
    sys.exit(0)


def parse(doc: str, arguments: Sequence[str]) -> tuple[argparse.Namespace, dict[str, str]]:
    """Splits the arguments into flags and `--config.field=value` overrides.

    `--config.field` without a value means True. `--help` with `--config=FILE` lists its fields.
    """
    parser = argparse.ArgumentParser(
        description=doc,
        allow_abbrev=False,
        add_help=False,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--config", help="FILE[:variant,...,key=value,...]")
    parser.add_argument("--workdir", help="directory for everything this run writes")
    parser.add_argument("--resume", action="store_true", help="go on with the run in --workdir")
    parser.add_argument("--overwrite", action="store_true", help="replace the run in --workdir")
    parser.add_argument("--help", "-h", action="store_true", help="show this, and the fields")
    flags, rest = parser.parse_known_args(arguments)
    if flags.help:
        parser.print_help()
        _print_fields(flags.config)
        sys.exit(0)
    overrides = {}
    while rest:
        flag = rest.pop(0)
        if not flag.startswith("--config."):
            parser.error(f"unknown argument {flag}")
        name, equals, value = flag.removeprefix("--config.").partition("=")
        if not equals:
            value = rest.pop(0) if rest and not rest[0].startswith("--") else "True"
        overrides[name] = value
    missing = [name for name in ("config", "workdir") if getattr(flags, name) is None]
    if missing:
        parser.error(f"--{missing[0]} is not set")
    return flags, overrides


def _print_fields(spec: str | None) -> None:
    if spec is None:
        print("\nPass --config=FILE with --help to see the fields of its stage.")
        return
    path, _, suffix = spec.partition(":")
    values = load.read_file(path, [word for word in suffix.split(",") if word and "=" not in word])
    print(f"\nfields of {path} (--config.NAME=VALUE):")
    for name, kind, default, doc in schema.describe(schema.STAGES[values["stage"]]):
        print(f"  {name} ({kind}, default {default}): {doc}")


def _fail(message: str, code: int) -> int:
    print("error: " + " ".join(message.split()), file=sys.stderr)
    return code
