"""Commands of `launch/` as one process or as several on this machine."""

import os
import subprocess
import sys

import pytest

from tests.training.test_conversion import export_clip


@pytest.fixture(scope="session")
def start():
    """Starts a command with so many virtual devices a process."""

    def start(*arguments, processes=1, devices=1):
        several = ["launch/local.py", f"--processes={processes}"] if processes > 1 else []
        return subprocess.Popen(
            [sys.executable, *several, *arguments],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            env=os.environ
            | {
                "HF_HUB_OFFLINE": "1",
                "JAX_PLATFORMS": "cpu",
                "JAX_NUM_CPU_DEVICES": str(devices),
            },
        )

    return start


@pytest.fixture(scope="session")
def finish(start):
    """Runs a command to its end; returns its exit code and what it said."""

    def finish(*arguments, **options):
        process = start(*arguments, **options)
        try:
            said, _ = process.communicate(timeout=500)
        finally:
            process.kill()  # Nothing to one that has ended.
        return process.returncode, said

    return finish


@pytest.fixture(scope="session")
def clip(tmp_path_factory):
    """A CLIP of noise in Hugging Face's form."""
    directory = tmp_path_factory.mktemp("clip")
    export_clip(directory)
    return directory
