"""Eight virtual devices and strict array semantics for every test."""

import errno
import importlib.util
import io
import os
import shutil
import tempfile

# A program that several tests compile, or their children, is compiled once a run. JAX reads these
# variables as it is imported; workers and children inherit them.
COMPILED = None
if "JAX_COMPILATION_CACHE_DIR" not in os.environ:
    COMPILED = tempfile.mkdtemp(prefix="compiled-")
    os.environ["JAX_COMPILATION_CACHE_DIR"] = COMPILED
    os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0"

# Most of the time goes into compiling programs that run for moments: LLVM need not polish them.
os.environ.setdefault("XLA_FLAGS", "--xla_backend_optimization_level=0")

import hypothesis  # noqa: E402
import jax  # noqa: E402
import pytest  # noqa: E402

# Children (launch scripts, worker processes) must never look for a hub.
os.environ["HF_HUB_OFFLINE"] = "1"
jax.config.update("jax_platforms", "cpu")
jax.config.update("jax_num_cpu_devices", 8)
jax.config.update("jax_numpy_rank_promotion", "raise")
# A busy machine is no failure. The tests try the same inputs each time; `make fuzz` tries others.
hypothesis.settings.register_profile("tests", deadline=None, derandomize=True, max_examples=40)
hypothesis.settings.register_profile("fuzz", deadline=None, max_examples=300)
hypothesis.settings.load_profile("tests")


@pytest.fixture
def key() -> jax.Array:
    """The typed random key that tests start from."""
    return jax.random.key(0)


@pytest.fixture(scope="session")
def data(tmp_path_factory):
    """The embedded sample, prepared once; tests read it and write nothing into it."""
    from unipt_jax.data import annotations, builders

    directory = tmp_path_factory.mktemp("data")
    records, _ = annotations.read("cuhk_pedes", "examples/pedestrians")
    builders.write(
        records,
        source="examples/pedestrians",
        name="cuhk_pedes",
        workdir=directory,
        tokenizer="examples/tokenizer",
        quarantined=0,
        notices={},
    )
    return directory


def pytest_report_header() -> str:
    """Says what a run without PyTorch cannot show."""
    if importlib.util.find_spec("torch") is None:
        return "PyTorch is not installed: tests that compare with it are SKIPPED"
    return "tests that compare with PyTorch run"


def pytest_unconfigure() -> None:
    """Leaves nothing behind."""
    if COMPILED:
        shutil.rmtree(COMPILED, ignore_errors=True)


@pytest.fixture
def refuse(monkeypatch):
    """Makes storage refuse a file: a read-only one as it is opened, a full one as it grows."""
    real = io.open

    def refuse(name, number, patch=monkeypatch):
        def opened(file, mode="r", *arguments, **options):
            if name in os.path.basename(str(file)) and set(mode) & set("wa"):
                if number != errno.ENOSPC:
                    raise OSError(number, os.strerror(number), str(file))
                file = "/dev/full"
            return real(file, mode, *arguments, **options)

        patch.setattr("builtins.open", opened)
        patch.setattr("io.open", opened)

    return refuse
