"""Commands of `launch/`, and a place where each runs once: tables have much in common."""

import os
import shlex
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from unipt_jax.config import command_line, load, schema
from unipt_jax.core.files import read_json, write_json

# No hub; and glibc keeps the memory that each step asks for and gives back, in large pages: on CPUs
# a step is a third faster. Other C libraries do not read it.
ENVIRONMENT = {
    "HF_HUB_OFFLINE": "1",
    "GLIBC_TUNABLES": "glibc.malloc.hugetlb=1:glibc.malloc.mmap_max=0"
    ":glibc.malloc.trim_threshold=34359738368",
}


def launch(script: str, config: str, workdir: Path, /, **fields: object) -> list[str]:
    """Returns a command: `config` is a file of `configs/` and variants, `a__b` a field `a.b`."""
    values = [f"--config.{name.replace('__', '.')}={value}" for name, value in fields.items()]
    flags = [f"--config=configs/{config}", *values, f"--workdir={workdir}", "--overwrite"]
    return [sys.executable, f"launch/{script}.py", *flags]


def run(command: list[str], cache: Path) -> None:
    """Prints and runs a command; those with one `cache` share what they compile.

    Raises:
        SystemExit: it failed, and has said why.
    """
    environment = os.environ | ENVIRONMENT | {"JAX_COMPILATION_CACHE_DIR": str(cache.absolute())}
    print(f"\n$ {shlex.join(['python', *command[1:]])}", flush=True)
    code = subprocess.run(command, env=environment).returncode
    if code:
        raise SystemExit(code)


def code(root: Path = Path(__file__).parents[1]) -> str:
    """Returns the commit of `root`, with "+" where code that figures come of differs from it."""
    git = ["git", "-C", str(root)]
    commit = subprocess.run(
        [*git, "rev-parse", "--short=10", "HEAD"], capture_output=True, text=True, check=True
    ).stdout.strip()
    # Not what figures are written to, beside the benchmarks.
    sources = ["unipt_jax", "launch", "configs", "examples"]
    sources += [":(glob)benchmarks/**/*.py", "benchmarks/drawn_reid/tokenizer"]
    changed = subprocess.run([*git, "diff", "--quiet", "HEAD", "--", *sources]).returncode
    return f"{commit}{'+' if changed else ''}"


class Workshop:
    """Directories below `root`, each made once.

    Attributes:
        seconds: what those took that were asked for, even if an earlier process made them.
    """

    def __init__(self, root: Path):
        self.root = root
        self.seconds: dict[str, float] = {}

    def launch(self, name: str, script: str, config: str, /, **fields: object) -> Path:
        """Returns directory `name`, which a command of `launch/` makes.

        It runs again when its configuration comes to other values.
        """
        command = launch(script, config, self.root / name, **fields)
        flags, overrides = command_line.parse("", command[2:])
        how = schema.to_dict(load.load(flags.config, overrides))
        return self.once(name, how, lambda: run(command, self.root / "compiled"))

    def once(self, name: str, how: Any, do: Callable[[], object]) -> Path:
        """Returns directory `name`, for which `do` is called unless it was, just so, before.

        `how` is JSON of what it is made with.
        """
        done = self.root / f"{name}.done.json"
        if not done.exists() or read_json(done)["how"] != how:
            done.unlink(missing_ok=True)
            started = time.time()
            do()
            write_json(done, {"how": how, "seconds": round(time.time() - started, 1)})
        self.seconds[name] = read_json(done)["seconds"]
        return self.root / name
