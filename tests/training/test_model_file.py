"""`model.json`: what it says comes back, and what it cannot say is named."""

import dataclasses
import hashlib
import json
from importlib import metadata

import pytest

from tests.training import micro
from unipt_jax.core.errors import CheckpointError, DataError, UserError
from unipt_jax.data import tokenization
from unipt_jax.models.vit import VisionSpec
from unipt_jax.training import model_file
from unipt_jax.training.model_file import ModelFile

SPEC = micro.model().spec


@pytest.mark.parametrize("spec", [SPEC, SPEC.image, SPEC.text])
def test_what_was_written_is_read(tmp_path, spec):
    """P13: the activation and the epsilons are part of it."""
    if spec is not SPEC:
        spec = dataclasses.replace(spec, activation="gelu_tanh", layer_norm_eps=1e-3)
    written = ModelFile(spec, "bfloat16", 0 if isinstance(spec, VisionSpec) else 12)
    assert not model_file.exists(tmp_path)
    written.write(tmp_path)
    assert model_file.exists(tmp_path)
    assert model_file.read(tmp_path) == written


def rewrite(path, **changes):
    """Writes another `model.json`, whose checksum is that of what it says; `...` takes away."""
    values = json.loads(path.read_text()) | changes | {"checksum": ...}
    values = {name: value for name, value in values.items() if value is not ...}
    content = json.dumps(values, sort_keys=True).encode()
    values["checksum"] = hashlib.sha256(content).hexdigest()
    path.write_text(json.dumps(values))


def test_other_versions_are_named(tmp_path):
    """A field more or less is never guessed; the line tells the version, and what to do (P04)."""
    ModelFile(SPEC, "float32", 12).write(tmp_path)
    path = tmp_path / "model.json"
    spec = json.loads(path.read_text())["spec"]
    original = path.read_bytes()
    for changes, named in [
        ({"color": "red"}, "text_length"),
        ({"text_length": ...}, "text_length"),
        ({"text_length": "12"}, "text_length"),
        ({"text_length": 99}, "text_length=99 is more than"),
        ({"dtype": "float16"}, "dtype"),
        ({"spec": 3}, "text_length"),
        ({"spec": spec | {"pools": 1}}, "pools"),
        ({"spec": {k: v for k, v in spec.items() if k != "pooling"}}, "pooling"),
        ({"spec": spec | {"kind": "resnet"}}, "resnet"),
        ({"spec": spec | {"kind": ["vit"]}}, "kind"),
        ({"spec": spec | {"embedding_dim": 0}}, "embedding_dim=0"),
        ({"spec": spec | {"embedding_dim": 2**40}}, "embedding_dim=1099511627776"),
        (
            {"spec": spec | {"image": spec["image"] | {"layers": 10**9}}},
            "layers=1000000000 is more",
        ),
    ]:
        path.write_bytes(original)
        rewrite(path, version="0.9.7", **changes)
        this = metadata.version("unipt-jax")
        with pytest.raises(
            CheckpointError, match=rf"model\.json.*{named}.* 0\.9\.7 wrote it.*{this}.*anew"
        ):
            model_file.read(tmp_path)
    before = json.dumps({"spec": spec, "dtype": "float32", "text_length": 12})
    for content in (before, json.dumps({**json.loads(before), "version": this})):
        path.write_text(content)
        with pytest.raises(
            CheckpointError, match=rf"text_length.*; other code than this unipt-jax {this} wrote it"
        ) as caught:
            model_file.read(tmp_path)
        assert "use that version" not in str(caught.value)
    for content, named in [("[]", "no JSON object"), ("{", "not JSON"), ("[" * 10**5, "nested")]:
        path.write_text(content)
        with pytest.raises(UserError, match=rf"model\.json.*{named}"):
            model_file.read(tmp_path)


def test_an_altered_value_is_found(tmp_path):
    """A flipped bit makes an epsilon of 1e-6 one of 1e-4, and every embedding another (P13)."""
    ModelFile(SPEC, "float32", 12).write(tmp_path)
    path = tmp_path / "model.json"
    original = path.read_text()
    assert '"layer_norm_eps": 1e-06' in original
    for old, new in [("1e-06", "1e-04"), ('"activation": "gelu"', '"activation": "quick_gelu"')]:
        path.write_text(original.replace(old, new, 1))
        with pytest.raises(CheckpointError, match=r"model\.json is damaged: its checksum differs"):
            model_file.read(tmp_path)
    path.write_text(json.dumps(json.loads(original)))  # The same, written otherwise.
    assert model_file.read(tmp_path).spec == SPEC


def test_an_altered_tokenizer_is_found(tmp_path):
    """A letter of a word more, and the word's embedding is that of an unknown one."""
    ModelFile(SPEC, "float32", 12).write(tmp_path, tokenization.load("examples/tokenizer"))
    file = tmp_path / "tokenizer" / "tokenizer.json"
    content = file.read_text()
    assert model_file.tokenizer(tmp_path).encode("red", 9).size == 3
    assert '"red": ' in content or '"red":' in content
    file.write_text(content.replace('"red"', '"rad"', 1))
    with pytest.raises(DataError, match=r"tokenizer\.json is not the file .* checksum differs"):
        model_file.tokenizer(tmp_path)


def test_no_altered_value_passes(tmp_path):
    """An epsilon with another digit would be another model's embeddings."""
    ModelFile(SPEC, "float32", 12).write(tmp_path)
    path = tmp_path / "model.json"
    content, good = path.read_bytes(), model_file.read(tmp_path)
    for place in range(0, len(content), 3):
        altered = bytearray(content)
        altered[place] ^= 1 << place % 7
        path.write_bytes(altered)
        try:
            assert model_file.read(tmp_path) == good, altered[place - 20 : place + 20]
        except (CheckpointError, DataError) as error:
            assert "model.json" in str(error)


def test_a_file_system_without_its_package_is_named(monkeypatch):
    def missing(self):
        raise ImportError("install gcsfs")

    monkeypatch.setattr(type(model_file.epath.Path("x")), "exists", missing)
    with pytest.raises(CheckpointError, match="somewhere cannot be reached: install gcsfs"):
        model_file.exists("somewhere")
