"""Files of weights: every format, which one is read, and what is said of a damaged one."""

import json
import os
import pickle
import shutil
import sys

import huggingface_hub
import ml_dtypes
import numpy as np
import pytest
from flax import serialization
from safetensors.numpy import save_file

from unipt_jax.core.errors import ConversionError
from unipt_jax.interop import weight_files

WEIGHTS = {
    "a.weight": np.arange(6, dtype=np.float32).reshape(2, 3),
    "b.bias": np.arange(3, dtype=np.float16),
}
# The same as Flax has it: [in, out], in scopes.
FLAX = {"a": {"kernel": WEIGHTS["a.weight"].T}, "b": {"bias": WEIGHTS["b.bias"]}}


def write_torch(path, weights=None):
    torch = pytest.importorskip("torch")
    weights = WEIGHTS if weights is None else weights
    torch.save({name: torch.tensor(value) for name, value in weights.items()}, path)


WRITERS = {
    "model.safetensors": lambda path: save_file(WEIGHTS, path),
    "flax_model.msgpack": lambda path: path.write_bytes(serialization.msgpack_serialize(FLAX)),
    "pytorch_model.bin": write_torch,
}
each_format = pytest.mark.parametrize("name", WRITERS)


def load(path):
    return weight_files.read(weight_files.find(weight_files.locate(str(path))))


def assert_weights(weights, want=WEIGHTS):
    assert weights.keys() == want.keys()
    for name, weight in want.items():
        assert weights[name].dtype == weight.dtype
        np.testing.assert_array_equal(weights[name], weight)


def assert_refused(path, match):
    """One line, which names the file."""
    with pytest.raises(ConversionError, match=match) as caught:
        load(path)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


# -------------------------------------------------------------------------------- whole files


@each_format
@pytest.mark.parametrize("of", ["directory", "file"])
def test_every_format(name, of, tmp_path):
    WRITERS[name](tmp_path / name)
    assert_weights(load(tmp_path if of == "directory" else tmp_path / name))


def test_safetensors_come_before_flax_and_flax_before_torch(tmp_path):
    for name in WRITERS:
        (tmp_path / name).write_bytes(b"x")
    have = []
    for name in WRITERS:
        have.append(weight_files.find(weight_files.locate(str(tmp_path)))[0].name)
        (tmp_path / name).unlink()
    assert have == ["model.safetensors", "flax_model.msgpack", "pytorch_model.bin"]


def test_flax_names_and_layouts_become_those_of_torch(tmp_path):
    """P19: a convolution is HWIO there."""
    kernel = np.arange(24, dtype=np.float32).reshape(1, 2, 3, 4)
    tree = {
        "conv": {"kernel": kernel},
        "0": {"norm": {"scale": np.ones(2), "bias": np.zeros(2)}},
        "words": {"embedding": np.arange(6.0).reshape(2, 3)},
        "token": np.ones((1, 1, 2), ml_dtypes.bfloat16),
    }
    path = tmp_path / "flax_model.msgpack"
    path.write_bytes(serialization.msgpack_serialize(tree))
    weights = load(tmp_path)
    assert weights["conv.weight"].shape == (4, 3, 1, 2)
    assert weights["conv.weight"][3, 2, 0, 1] == kernel[0, 1, 2, 3]
    np.testing.assert_array_equal(weights["words.weight"], np.arange(6.0).reshape(2, 3))
    assert set(weights) == {"conv.weight", "0.norm.weight", "0.norm.bias", "words.weight", "token"}
    assert weights["token"].dtype == ml_dtypes.bfloat16


@pytest.mark.parametrize("suffix", [".safetensors", ".bin", ".pt"])
def test_bfloat16(suffix, tmp_path):
    """P73."""
    values = np.array([1, 0.1, 3e38], ml_dtypes.bfloat16)
    path = tmp_path / f"weights{suffix}"
    if suffix == ".safetensors":
        save_file({"a": values}, path)
    else:
        torch = pytest.importorskip("torch")
        tensor = torch.tensor(values.astype(np.float32), dtype=torch.bfloat16)
        torch.save({"a": tensor}, path)
    np.testing.assert_array_equal(load(path)["a"].astype(np.float32), values.astype(np.float32))


@pytest.mark.parametrize("wrapper", ["state_dict", "model"])
def test_state_dicts_are_unwrapped(wrapper, tmp_path):
    torch = pytest.importorskip("torch")
    tensors = {name: torch.tensor(value) for name, value in WEIGHTS.items()}
    torch.save({wrapper: tensors, "epoch": 3, "optimizer": {"lr": 0.1}}, tmp_path / "epoch_3.pt")
    assert_weights(load(tmp_path / "epoch_3.pt"))


# ------------------------------------------------------------------------------ weights in parts


def write_parts(directory, name):
    stem, suffix = name.rsplit(".", 1)
    parts = {key: f"{stem}-{i}-of-2.{suffix}" for i, key in enumerate(WEIGHTS, 1)}
    for key, part in parts.items():
        write = write_torch if suffix == "bin" else lambda path, weights: save_file(weights, path)
        write(directory / part, {key: WEIGHTS[key]})
    (directory / f"{name}.index.json").write_text(json.dumps({"weight_map": parts}))
    return list(parts.values())


@pytest.mark.parametrize("name", ["model.safetensors", "pytorch_model.bin"])
def test_parts(name, tmp_path):
    parts = write_parts(tmp_path, name)
    assert_weights(load(tmp_path))
    (tmp_path / parts[1]).unlink()
    assert_refused(tmp_path, rf"lacks {parts[1]} of 2 parts")
    (tmp_path / parts[0]).unlink()
    assert_refused(tmp_path, rf"lacks {parts[0]}, {parts[1]}")


@pytest.mark.parametrize(("text", "fault"), [("{", "not JSON"), ("[]", "object"), ("{}", "weight")])
def test_a_damaged_index(text, fault, tmp_path):
    (tmp_path / "model.safetensors.index.json").write_text(text)
    assert_refused(tmp_path, fault)


# ------------------------------------------------------------------------------- damaged files


@each_format
@pytest.mark.parametrize("share", [0.02, 0.5, 0.99])
def test_a_file_cut_short(name, share, tmp_path):
    path = tmp_path / name
    WRITERS[name](path)
    content = path.read_bytes()
    path.write_bytes(content[: int(share * len(content))])
    assert_refused(path, "damaged")


@each_format
@pytest.mark.parametrize("content", [b"<html>Not found</html>", b"version https://git-lfs.github"])
def test_another_file_under_the_name(name, content, tmp_path):
    (tmp_path / name).write_bytes(content)
    if name.endswith("bin"):
        pytest.importorskip("torch")
    assert_refused(tmp_path / name, "damaged")


@each_format
def test_an_empty_file(name, tmp_path):
    (tmp_path / name).touch()
    assert_refused(tmp_path / name, "is empty")


def test_a_file_without_weights(tmp_path):
    save_file({}, tmp_path / "model.safetensors")
    assert_refused(tmp_path / "model.safetensors", "no weights")


def test_types_that_numpy_has_not(tmp_path):
    torch = pytest.importorskip("torch")
    from safetensors.torch import save_file as save_tensors

    path = tmp_path / "model.safetensors"
    save_tensors({"a": torch.zeros(2).to(torch.float8_e4m3fn)}, path)
    assert_refused(path, "float8")


class Intruder:
    """Pickled, a call of `os.mkdir`."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (self.path,)


@pytest.mark.parametrize("how", ["zip", "legacy", "bare"])
def test_code_in_a_pickle_never_runs(how, tmp_path):
    """P17."""
    torch = pytest.importorskip("torch")
    trace, path = tmp_path / "ran", tmp_path / "pytorch_model.bin"
    content = {"a.weight": torch.ones(2), "code": Intruder(str(trace))}
    if how == "bare":
        path.write_bytes(pickle.dumps(Intruder(str(trace)), protocol=2))
    else:
        torch.save(content, path, _use_new_zipfile_serialization=how == "zip")
    assert_refused(path, "never executed")
    assert not trace.exists()
    torch.load(path, weights_only=False) if how != "bare" else pickle.loads(path.read_bytes())
    assert trace.exists()  # It would have run.


@pytest.mark.parametrize(
    ("content", "fault"),
    [
        ({"net": {"a": 1}, "epoch": 3}, "net, epoch"),
        ({"state_dict": {}}, "no weights"),
        ([1, 2], "no weights"),
    ],
)
def test_something_else_than_weights(content, fault, tmp_path):
    torch = pytest.importorskip("torch")
    torch.save(content, tmp_path / "weights.pt")
    assert_refused(tmp_path / "weights.pt", fault)


def test_reading_torch_without_torch(tmp_path, monkeypatch):
    write_torch(tmp_path / "pytorch_model.bin")
    monkeypatch.setitem(sys.modules, "torch", None)
    assert_refused(tmp_path / "pytorch_model.bin", "needs PyTorch; install torch, or save .*safete")


# -------------------------------------------------------------------------- names without files


def test_a_directory_without_weights(tmp_path):
    (tmp_path / "config.json").write_text("{}")
    assert_refused(tmp_path, r"holds no weights: looked for model\.safetensors")


@pytest.mark.parametrize(
    "name", ["/no/such/dir", "./bert", "models/bert.safetensors", "a/b/c", "../bert", "bert base"]
)
def test_a_path_that_is_not_there_is_not_looked_for_on_the_hub(name, monkeypatch):
    monkeypatch.setattr(huggingface_hub, "snapshot_download", None)
    assert_refused(name, "no such file or directory")


def test_a_file_that_holds_no_weights_by_its_name(tmp_path):
    (tmp_path / "notes.txt").write_text("x")
    assert_refused(tmp_path / "notes.txt", r"none of \.safetensors")


@pytest.mark.parametrize("name", ["bert-base-uncased", "google/no-such-model"])
def test_a_hub_that_cannot_be_reached(name, monkeypatch, tmp_path):
    """The library itself, offline, with an empty cache."""
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    assert_refused(name, "neither a local file or directory nor .* hub")


# ----------------------------------------------------------------------------------------- hub


@pytest.fixture
def hub(tmp_path, monkeypatch):
    """A directory that stands for a model on the hub, and the files fetched from it."""
    remote, cache = tmp_path / "remote", tmp_path / "cache"
    remote.mkdir()
    (remote / "config.json").write_text("{}")
    (remote / "tokenizer.json").write_text("{}")

    def snapshot_download(name, *, allow_patterns):
        assert name == "someone/some-model"
        cache.mkdir(exist_ok=True)
        kept = huggingface_hub.utils.filter_repo_objects(
            [path.name for path in remote.iterdir()], allow_patterns=allow_patterns
        )
        for file in kept:
            shutil.copy(remote / file, cache / file)
        return str(cache)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot_download)
    return remote, cache


def fetched(cache):
    return {path.name for path in cache.iterdir()}


def test_of_the_hub_only_what_is_read_is_fetched(hub):
    remote, cache = hub
    save_file(WEIGHTS, remote / "model.safetensors")
    for other in ("pytorch_model.bin", "flax_model.msgpack", "tf_model.h5", "model.onnx"):
        (remote / other).write_bytes(b"large")
    source = weight_files.locate("someone/some-model")
    assert fetched(cache) == {"config.json", "tokenizer.json"}
    assert_weights(weight_files.read(weight_files.find(source)))
    assert fetched(cache) == {"config.json", "tokenizer.json", "model.safetensors"}


def test_parts_are_fetched_from_the_hub(hub):
    remote, cache = hub
    write_parts(remote, "model.safetensors")
    assert_weights(load("someone/some-model"))
    assert "model-1-of-2.safetensors" in fetched(cache)


def test_a_model_on_the_hub_without_weights(hub):
    assert_refused("someone/some-model", "holds no weights")
