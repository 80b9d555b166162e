"""Files of weights: every format, which one is read, and what is said of a damaged one."""

import importlib.util
import io
import json
import os
import pickle
import re
import shutil
import sys
import tarfile
import zipfile
from pathlib import Path

import huggingface_hub
import huggingface_hub.constants
import ml_dtypes
import msgpack
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


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        ("{", "not JSON"),
        ("[]", "object"),
        ("{}", "no weight_map"),
        ('{"weight_map": {}}', "no weight_map"),
        ('{"weight_map": ["x"]}', "no weight_map"),
        *[
            (json.dumps({"weight_map": {"a": part}}), f"{re.escape(repr(part)[:50])} in weight_map")
            for part in [
                *[["x"], None, "", ".", "..", "x\n.safetensors", "model.bin"],
                *["../other/model.safetensors", "/etc/model.safetensors", "a\\b.safetensors"],
            ]
        ],
    ],
)
def test_a_damaged_index(text, fault, tmp_path):
    """A part lies beside its index and is read as it: nothing else of a disk can be named (P17)."""
    elsewhere = tmp_path / "other"
    elsewhere.mkdir()
    save_file(WEIGHTS, elsewhere / "model.safetensors")
    write_torch(tmp_path / "model.bin")
    (tmp_path / "model.safetensors.index.json").write_text(text)
    assert_refused(tmp_path, fault)


def test_parts_of_two_models(tmp_path):
    """One would silently take the place of the other's."""
    _, second = write_parts(tmp_path, "model.safetensors")
    save_file(WEIGHTS, tmp_path / second)
    with pytest.raises(ConversionError, match=f"{second} holds a.weight, which another part holds"):
        load(tmp_path)


# ------------------------------------------------------------------------------- damaged files


@each_format
@pytest.mark.parametrize("share", [0.02, 0.5, 0.99])
def test_a_file_cut_short(name, share, tmp_path):
    path = tmp_path / name
    WRITERS[name](path)
    content = path.read_bytes()
    path.write_bytes(content[: int(share * len(content))])
    assert_refused(path, "damaged")


def test_an_archive_in_several_parts(tmp_path):
    """Asking whether a file is a zip archive raises where its end tells of other disks (P17)."""
    locator = b"PK\x06\x07" + (0).to_bytes(12, "little") + (2).to_bytes(4, "little")
    (tmp_path / "model.pt").write_bytes(locator + b"PK\x05\x06" + bytes(18))
    assert_refused(tmp_path / "model.pt", "damaged")


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


def one(dtype="F32", shape=(2,), offsets=(0, 8)):
    return {"dtype": dtype, "shape": list(shape), "data_offsets": list(offsets)}


@pytest.mark.parametrize(
    ("header", "size", "length"),
    [
        ({"a": one()}, 8, 2**60),
        ({"a": one()}, 8, 2**64 - 1),
        ({"a": one()}, 8, 3),
        ({"a": one(), "b": one(offsets=(4, 12))}, 12, None),
        ({"a": one(), "b": one(offsets=(12, 20))}, 20, None),
        ({"a": one(dtype="F64")}, 8, None),
        ({"a": one(dtype="F33")}, 8, None),
        ({"a": one(dtype=None)}, 8, None),
        ({"a": one(shape=(2**33, 2**33))}, 8, None),
        ({"a": one(shape=(0, 2**62), offsets=(0, 0))}, 0, None),
        ({"a": one(shape=[2] + 69 * [1])}, 8, None),
        ({"a": one(shape=(-2,))}, 8, None),
        ({"a": one(offsets=(8, 0))}, 8, None),
        ({"a": one()}, 7, None),
        ({"a": one()}, 9, None),
        ({"a": one(), "__metadata__": {"x": 1}}, 8, None),
        ([], 0, None),
    ],
)
def test_a_safetensors_header_that_does_not_describe_the_file(header, size, length, tmp_path):
    """Nothing is allocated for what a header claims."""
    text = json.dumps(header).encode()
    start = (len(text) if length is None else length).to_bytes(8, "little")
    (tmp_path / "model.safetensors").write_bytes(start + text + bytes(size))
    assert_refused(tmp_path / "model.safetensors", "damaged")


@pytest.mark.parametrize(
    ("content", "fault"),
    [
        (msgpack.packb({"a": 1, b"b": 2}), "damaged"),
        (msgpack.packb({"a": None}), "no weights"),
        (msgpack.packb({"a": {"b": 3}}), "a/b is no array but 3"),
        (b"\x81\xa1a" * 10**5, "damaged"),
        (serialization.msgpack_serialize({"a": {"b": np.ones(2)}, "a.b": np.ones(2)}), "a.b twice"),
    ],
)
def test_flax_weights_by_no_names(content, fault, tmp_path):
    (tmp_path / "flax_model.msgpack").write_bytes(content)
    assert_refused(tmp_path / "flax_model.msgpack", fault)


def test_a_file_without_weights(tmp_path):
    save_file({}, tmp_path / "model.safetensors")
    assert_refused(tmp_path / "model.safetensors", "no weights")


def test_types_that_numpy_has_not(tmp_path):
    torch = pytest.importorskip("torch")
    from safetensors.torch import save_file as save_tensors

    path = tmp_path / "model.safetensors"
    save_tensors({"a": torch.zeros(2).to(torch.float8_e4m3fn)}, path)
    assert_refused(path, "float8")


def _quantized(torch):
    return torch.quantize_per_tensor(torch.ones(2), 0.1, 0, torch.qint8)


@pytest.mark.parametrize(
    "make",
    [
        lambda torch: torch.zeros(2).to(torch.float8_e4m3fn),
        lambda torch: torch.eye(2).to_sparse(),
        lambda torch: torch.zeros(2, device="meta"),
        _quantized,
    ],
    ids=["float8", "sparse", "meta", "quantised"],
)
@pytest.mark.filterwarnings("ignore")  # torch's, about what it will drop.
def test_tensors_that_are_no_arrays(make, tmp_path):
    torch = pytest.importorskip("torch")
    path = tmp_path / "pytorch_model.bin"
    torch.save({"a": torch.ones(2), "odd.weight": make(torch)}, path)
    assert_refused(path, "odd.weight is no array of numbers|damaged|Python objects")


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


def test_what_pytorch_once_wrote_is_named(tmp_path):
    """Before 0.1.10 a tar archive of pickles, which only running them would read (P17)."""
    trace, path = tmp_path / "ran", tmp_path / "old.pth"
    with tarfile.open(path, "w") as archive:
        for name in ("storages", "tensors", "pickle"):
            content = pickle.dumps(Intruder(str(trace)), protocol=2)
            entry = tarfile.TarInfo(name)
            entry.size = len(content)
            archive.addfile(entry, io.BytesIO(content))
    assert_refused(path, r"tar archive, as PyTorch wrote them before 0\.1\.10")
    assert not trace.exists()


@pytest.mark.parametrize("save", [np.save, lambda path, array: np.savez(path, a=array)])
def test_numpys_pickles_never_run(save, tmp_path):
    """An array of objects is a pickle, whatever the file is called (P17)."""
    pytest.importorskip("torch")
    trace, path = tmp_path / "ran", tmp_path / "weights.pt"
    with path.open("wb") as file:
        save(file, np.array([Intruder(str(trace))], object))
    assert_refused(path, "damaged")
    assert not trace.exists()


def test_no_other_module_unpickles():
    """These refuse code, but `beam`, whose workers read what this very run wrote (P17)."""
    readers = r"^\s*(?:import|from) (?:pickle|cloudpickle|dill|joblib|shelve|torch)\b|allow_pickle"
    found = {
        path.name
        for folder in ("configs", "launch", "unipt_jax")
        for path in Path(folder).rglob("*.py")
        if re.search(readers, path.read_text(), re.MULTILINE)
    }
    exported = {"modeling_unipt.py", "pytorch.py"}  # Code and a card that go to PyTorch's users.
    assert found == {"beam.py", "torchscript.py", "weight_files.py"} | exported


def test_a_pytorch_that_runs_code_when_told_not_to_is_refused(tmp_path, monkeypatch):
    """CVE-2025-32434: until 2.5 what `weights_only` refuses could be got around (P17)."""
    torch = pytest.importorskip("torch")
    write_torch(tmp_path / "pytorch_model.bin")
    monkeypatch.setattr(torch, "__version__", "2.5.1+cu118")
    monkeypatch.setattr(torch, "load", None)
    assert_refused(tmp_path / "pytorch_model.bin", r"2\.5\.1\+cu118 may run code .*torch 2\.6")


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("new", [True, False])
def test_one_number_seen_as_a_million_times_a_million(dtype, new, tmp_path):
    """Copying it to an array of its own would fill the memory."""
    torch = pytest.importorskip("torch")
    number = torch.ones(1, dtype=getattr(torch, dtype)).expand(10**6, 10**6)
    torch.save({"a": number}, tmp_path / "x.pt", _use_new_zipfile_serialization=new)
    assert_refused(tmp_path / "x.pt", "bytes, but claims weights of [24],000,000,000,000;")


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_tied_weight_is_no_such_thing(dtype, tmp_path):
    """One array under two names is read under both (P72)."""
    torch = pytest.importorskip("torch")
    table = torch.ones(300, 300, dtype=getattr(torch, dtype))
    torch.save({"words": table, "decoder": table}, tmp_path / "x.pt")
    assert load(tmp_path / "x.pt")["decoder"].shape == (300, 300)


def test_an_archive_of_compressed_zeros(tmp_path):
    torch = pytest.importorskip("torch")
    path = tmp_path / "bomb.pt"
    torch.save({"a": torch.zeros(10**6)}, path)
    with zipfile.ZipFile(path) as archive:
        content = {name: archive.read(name) for name in archive.namelist()}
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in content.items():
            archive.writestr(name, data)
    assert_refused(path, "bytes, but claims an archive of 4,000,")


@pytest.mark.parametrize(
    ("content", "fault"),
    [
        ({"net": {"a": 1}, "epoch": 3}, "net, epoch"),
        ({"state_dict": {}}, "no weights"),
        ({0: 1, 1: 2}, "more than weights by name: 0, 1"),
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


# ------------------------------------------------------------------------- TorchScript archives


@pytest.fixture
def scripted():
    torch = pytest.importorskip("torch")

    class Part(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.linear = torch.nn.Linear(3, 2).half()
            self.register_buffer("count", torch.tensor(9))
            self.register_buffer("mask", torch.tensor([True, False]))

    class Whole(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.parts = torch.nn.ModuleList([Part(), Part()])
            self.conv = torch.nn.Conv2d(2, 3, 2)  # With lists among its attributes.
            self.table = torch.nn.Parameter(torch.arange(12.0).reshape(3, 4).T)  # Not contiguous.
            self.short = torch.nn.Parameter(torch.ones(2, dtype=torch.bfloat16))
            self.view = torch.nn.Parameter(torch.arange(6.0)[2:4])
            self.shared = self.parts[0].linear
            self.size, self.nothing = 3, None

    return torch.jit.script(Whole())


def test_a_torchscript_archive_is_read_to_its_state_dict(scripted, tmp_path, monkeypatch):
    tensors = dict(scripted.state_dict())
    short = tensors.pop("short").float().numpy().astype(ml_dtypes.bfloat16)
    want = {name: tensor.numpy() for name, tensor in tensors.items()} | {"short": short}
    scripted.save(str(tmp_path / "model.pt"))
    monkeypatch.setitem(sys.modules, "torch", None)  # Nothing of it runs.
    assert_weights(load(tmp_path / "model.pt"), want)
    assert {"parts.1.linear.weight", "parts.0.count", "shared.bias", "table"} <= want.keys()


@pytest.mark.parametrize("share", [0.3, 0.9])
def test_a_torchscript_archive_cut_short(share, scripted, tmp_path):
    path = tmp_path / "model.pt"
    scripted.save(str(path))
    path.write_bytes(path.read_bytes()[: int(share * path.stat().st_size)])
    assert_refused(path, "damaged")


def repacked(path, old, new):
    """Replaces bytes in an archive's pickle."""
    with zipfile.ZipFile(path) as archive:
        content = {name: archive.read(name) for name in archive.namelist()}
    (pickled,) = (name for name in content if name.endswith("/data.pkl"))
    assert old in content[pickled]
    content[pickled] = content[pickled].replace(old, new)
    with zipfile.ZipFile(path, "w") as archive:
        for name, data in content.items():
            archive.writestr(name, data)


def test_a_program_in_torchscript_never_runs(tmp_path):
    """P17: reading a module with PyTorch runs its `__setstate__`, which can write files."""
    torch = pytest.importorskip("torch")
    trace, path = tmp_path / "ran", tmp_path / "ViT-B-32.pt"
    # TorchScript needs the source in a file, and takes no values from around it.
    (tmp_path / "intruder.py").write_text(
        f"""import torch
class Intruder(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.w = torch.nn.Parameter(torch.ones(2))
    @torch.jit.export
    def __getstate__(self):
        return (self.w, self.training)
    @torch.jit.export
    def __setstate__(self, state: tuple[torch.Tensor, bool]):
        self.w = state[0]
        self.training = state[1]
        x = torch.from_file({str(trace)!r}, True, 4)
        self.w = state[0] + x.sum()
"""
    )
    spec = importlib.util.spec_from_file_location("intruder", tmp_path / "intruder.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    torch.jit.script(module.Intruder()).save(str(path))
    trace.unlink(missing_ok=True)
    assert_refused(path, "restored by a program.*safetensors|never executed")
    assert not trace.exists()
    torch.jit.load(str(path))
    assert trace.exists()  # It would have run.


def test_python_in_torchscript_never_runs(scripted, tmp_path):
    path = tmp_path / "model.pt"
    scripted.save(str(path))
    repacked(path, b"ctorch._utils\n_rebuild_tensor_v2\n", b"cos\nmkdir\n")
    assert_refused(path, r"never executed \(os\.mkdir is not allowed\)")


def test_a_tensor_in_torchscript_stays_within_its_bytes(scripted, tmp_path):
    path = tmp_path / "model.pt"
    scripted.save(str(path))
    # The shape of the table, which begins its storage of 12 numbers.
    repacked(path, b"(K\x04K\x03t", b"(K\x04K\x63t")
    assert_refused(path, "damaged")


# -------------------------------------------------------------------------- names without files


@pytest.mark.parametrize("kind", ["link", "directory"])
@pytest.mark.parametrize("name", ["model.safetensors", "model.safetensors.index.json"])
def test_what_only_has_the_name_of_a_file_is_not_passed_over(kind, name, tmp_path):
    """A pruned cache of the hub: other weights lie beside the link, and are not read for it."""
    WRITERS["flax_model.msgpack"](tmp_path / "flax_model.msgpack")
    if kind == "link":
        (tmp_path / name).symlink_to(tmp_path / "blobs")
    else:
        (tmp_path / name).mkdir()
    assert_refused(tmp_path, f"{name} is a dangling link or no file; fetch it again")


def test_a_part_that_is_a_dangling_link(tmp_path):
    parts = write_parts(tmp_path, "model.safetensors")
    (tmp_path / parts[1]).unlink()
    (tmp_path / parts[1]).symlink_to(tmp_path / "blobs")
    assert_refused(tmp_path, f"{parts[1]} is a dangling link")


@pytest.mark.parametrize("name", ["", "http://host/model", "gs://bucket/model.safetensors"])
def test_a_name_of_another_kind(name):
    assert_refused(name, "is no source of weights: name a local directory")


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
