"""Rules that hold for the whole package, read from its source."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
TOOLS = Path(sys.executable).parent
PACKAGE = sorted((ROOT / "unipt_jax").rglob("*.py"))
LAUNCH = sorted((ROOT / "launch").glob("*.py"))
CONFIGS = sorted((ROOT / "configs").glob("*.py"))
DEFINITION = ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef


def each(paths):
    """One test a file, named by its path."""
    return pytest.mark.parametrize("path", [pytest.param(p, id=p.name) for p in paths])


def imported_packages(source):
    """The top-level packages that a file imports, wherever it does."""
    found = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            found |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            found.add("." if node.level else node.module.split(".")[0])
    return found


def without_docstring(source):
    """Public modules, classes, functions and methods that do not say what they do."""

    def visit(node, prefix):
        for child in node.body:
            if isinstance(child, DEFINITION) and not child.name.startswith("_"):
                if ast.get_docstring(child) is None:
                    yield prefix + child.name
                if isinstance(child, ast.ClassDef):
                    yield from visit(child, f"{prefix}{child.name}.")

    module = ast.parse(source)
    if module.body and ast.get_docstring(module) is None:
        yield "module"
    yield from visit(module, "")


def import_time_jax(source):
    """`jax.config` changes and JAX array calls that importing the file would run."""

    def visit(node):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
            # The body waits for a call; decorators and defaults do not.
            now = [*getattr(node, "decorator_list", ()), *node.args.defaults]
            now += [default for default in node.args.kw_defaults if default is not None]
        else:
            now = ast.iter_child_nodes(node)
            if isinstance(node, ast.Call):
                name = ast.unparse(node.func)
                roots = ("jnp.", "jax.numpy.", "jax.random.", "jax.config.", "jax.devices")
                if name.startswith(roots):
                    yield name
        for child in now:
            yield from visit(child)

    yield from visit(ast.parse(source))


def run_tool(*command):
    """Runs a tool of the environment at the repository's root; returns its code and output."""
    result = subprocess.run(
        [TOOLS / command[0], *command[1:]], cwd=ROOT, capture_output=True, text=True, check=False
    )
    return result.returncode, result.stdout + result.stderr


# ---------------------------------------------------------------------------- the rules


@pytest.mark.parametrize(
    "command", [("lint-imports", "--no-cache"), ("ruff", "check"), ("ruff", "format", "--check")]
)
def test_tools_find_nothing(command):
    code, output = run_tool(*command)
    assert code == 0, output


# The reader of old files imports torch where it needs it; the other is written for torch's users
# and travels with the weights: nothing here imports it.
FOR_TORCH = {"weight_files.py", "modeling_unipt.py"}


@each([path for path in [*PACKAGE, *LAUNCH, *CONFIGS] if path.name not in FOR_TORCH])
def test_torch_is_the_tests_alone(path):
    assert not imported_packages(path.read_text()) & {"torch", "torchvision", "tensorflow"}
    assert "import modeling_unipt" not in path.read_text()


def test_the_package_is_imported_without_torch():
    """All of it but the file that is written for torch; and without what extras bring."""
    modules = [
        ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")
        for path in PACKAGE
        if path.name != "modeling_unipt.py"
    ]
    code = f"import importlib, sys; [importlib.import_module(m) for m in {modules!r}]\n"
    code += "sys.exit(bool({'torch', 'apache_beam', 'wandb', 'mlflow'} & {*sys.modules}))"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=False).returncode == 0


@each(CONFIGS)
def test_configurations_are_values(path):
    """Nothing is imported but what holds them, and what reads those of `configs/common`."""
    assert imported_packages(path.read_text()) <= {"ml_collections", "pathlib", "runpy"}


@each(LAUNCH)
def test_scripts_are_wiring(path):
    assert len(path.read_text().splitlines()) < 60


@each(PACKAGE)
def test_everything_public_has_a_docstring(path):
    assert list(without_docstring(path.read_text())) == []


@each(PACKAGE)
def test_importing_runs_no_jax(path):
    assert list(import_time_jax(path.read_text())) == []


def test_every_room_is_seen():
    rooms = {path.parent.name for path in PACKAGE}
    assert {"core", "config", "data", "interop", "losses", "models", "training"} <= rooms


# What runs code as it is read. Weights of others are read without running any; Beam's workers read
# what their own run has written a moment before.
PICKLES = {"pickle", "dill", "cloudpickle", "joblib", "marshal", "shelve"}
READS = {"data/beam.py", "interop/torchscript.py", "interop/weight_files.py"}


def test_nothing_is_read_that_can_run_code():
    """Neither checkpoints nor data sets nor indices."""
    package = Path("unipt_jax")
    for path in package.rglob("*.py"):
        source = path.read_text("utf-8")
        found = imported_packages(source) & PICKLES
        assert not found or path.relative_to(package).as_posix() in READS, path
        assert "allow_pickle" not in source and "weights_only=False" not in source, path


# ---------------------------------------------------------------------------- the rules' own tests


def test_imported_packages_looks_everywhere():
    source = "import a.b as c\nfrom d.e import f\ndef g():\n    import torch\nfrom . import h\n"
    assert imported_packages(source) == {"a", "d", "torch", "."}


def test_without_docstring_looks_into_classes():
    source = "class A:\n    'doc'\n    def f(self): pass\n    def _g(self): pass\ndef h(): pass\n"
    assert list(without_docstring(source)) == ["module", "A.f", "h"]


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ("jax.config.update('x', 1)", ["jax.config.update"]),
        ("class A:\n    x = jnp.zeros(3)", ["jnp.zeros"]),
        ("def f(x=jnp.ones(2)):\n    return jnp.sin(x)", ["jnp.ones"]),
        ("f = lambda x: jnp.sin(x)", []),
        ("def f(x, *, y=None):\n    return jax.random.key(x)", []),
        ("if True:\n    KEY = [jax.random.key(0)]", ["jax.random.key"]),
        ("DTYPE = jnp.float32", []),
    ],
)
def test_import_time_jax(source, expected):
    assert list(import_time_jax(source)) == expected
