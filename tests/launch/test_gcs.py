"""A bucket of Google Cloud Storage, which an emulator serves, as work directory and as data."""

import importlib.util
import json
import socket
import subprocess
import sys
import time

import pytest

from tests.launch.test_train import PRETRAIN, command, finish

PACKAGES = ("gcsfs", "gcp_storage_emulator")
pytestmark = pytest.mark.skipif(
    not all(map(importlib.util.find_spec, PACKAGES)),
    reason=f"{' or '.join(PACKAGES)} is not installed; `make test-gcs` installs them",
)

RUN, DATA = "gs://bucket/run", "gs://bucket/data"
TRAIN = [*PRETRAIN, "--config.steps=4", "--config.checkpoint_every=2", f"--workdir={RUN}"]


@pytest.fixture(scope="module")
def bucket():
    """An empty bucket, to which scripts are led by their environment."""
    from google.cloud import storage

    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    server = subprocess.Popen(
        [sys.executable, "-m", "tests.launch.storage", str(port)],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    # Of gcsfs and TensorBoard's writer, of TensorStore, and of ArrayRecord.
    names = ("STORAGE_EMULATOR_HOST", "TENSORSTORE_GCS_HTTP_URL", "CLOUD_STORAGE_EMULATOR_ENDPOINT")
    with pytest.MonkeyPatch.context() as patch:
        for name in names:
            patch.setenv(name, f"http://localhost:{port}")
        patch.setenv("GOOGLE_CLOUD_PROJECT", "none")
        patch.setenv("GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT", "false")  # Else it asks Google.
        try:
            wait_for(server, port)
            yield storage.Client().bucket("bucket")
        finally:
            server.kill()
            server.wait()


def wait_for(server, port, seconds=60):
    deadline = time.monotonic() + seconds
    while True:
        try:
            return socket.create_connection(("localhost", port)).close()
        except OSError:
            assert server.poll() is None and time.monotonic() < deadline
            time.sleep(0.1)


def succeed(script, *arguments):
    code, out, err = finish(command(script, *arguments))
    assert code == 0 and "Traceback" not in err, err
    return out + err


def fail(script, *arguments):
    """Returns the one line of a script's refusal."""
    code, _, err = finish(command(script, *arguments))
    assert code == 2 and "Traceback" not in err, err
    return err.strip().splitlines()[-1]


def names(bucket, directory):
    """Returns what is in a directory, which no object is."""
    found = bucket.list_blobs(prefix=f"{directory}/")
    return {blob.name.removeprefix(f"{directory}/").split("/")[0] for blob in found}


def losses(bucket):
    rows = map(json.loads, bucket.blob("run/metrics.jsonl").download_as_text().splitlines())
    return {row["step"]: row["loss"] for row in rows}


def test_a_run_is_trained_resumed_measured_and_replaced(bucket, tmp_path):
    demo, data = "--config=configs/prepare.py:demo", tmp_path / "data"
    assert "written to disks alone" in fail("prepare", demo, f"--workdir={DATA}")
    succeed("prepare", demo, f"--workdir={data}")
    for path in data.iterdir():
        bucket.blob(f"data/{path.name}").upload_from_filename(path)
    assert "cannot be written to" in fail(
        "train", *TRAIN, f"--config.data={DATA}", "--workdir=gs://another/run"
    )

    succeed("train", *TRAIN, f"--config.data={DATA}")
    assert names(bucket, "run") == {
        *("config.json", "model.json", "metrics.jsonl", "loss.png"),
        *("checkpoints", "tensorboard", "tokenizer"),
    }
    assert names(bucket, "run/checkpoints") == {"2", "4"}
    straight = losses(bucket)
    assert list(straight) == [1, 2, 3, 4]

    # A step is complete with this file, which a kill can forestall.
    bucket.blob("run/checkpoints/4/commit_success.txt").delete()
    assert "pass --resume" in fail("train", *TRAIN, f"--config.data={DATA}")
    assert "at step 2" in succeed("train", *TRAIN, f"--config.data={DATA}", "--resume")
    assert losses(bucket) == straight and names(bucket, "run/checkpoints") == {"2", "4"}

    where = [f"--config.checkpoint={RUN}", f"--config.data={DATA}"]
    succeed("evaluate", "--config=configs/evaluate.py:demo", *where, "--workdir=gs://bucket/found")
    assert names(bucket, "found") == {"config.json", "evaluation.json", "report.html"}

    again = [*TRAIN, f"--config.data={data}", "--overwrite"]
    assert f"would remove init={RUN}" in fail("train", *again, f"--config.init={RUN}")
    succeed("train", *again)
    assert losses(bucket) == straight
