"""Exports load strictly in torch, and compute there what the model computes here."""

import dataclasses
import functools
import json
import re
import subprocess
import sys
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.numpy
from PIL import Image

import unipt_jax
from tests.data.test_tokenization import write_byte_pairs
from unipt_jax.core import trees
from unipt_jax.core.errors import ConversionError
from unipt_jax.data import images, tokenization
from unipt_jax.interop import huggingface, pytorch
from unipt_jax.models import clip, specs
from unipt_jax.models.bert import TextSpec
from unipt_jax.models.clip import ClipTextSpec
from unipt_jax.models.cross_modal import CrossModalSpec
from unipt_jax.models.dual_encoder import DualEncoder, DualEncoderSpec
from unipt_jax.models.pgu import PguSpec
from unipt_jax.models.token_selection import TokenSelectionSpec
from unipt_jax.models.vit import VisionSpec
from unipt_jax.training.checkpoints import Checkpoints
from unipt_jax.training.model_file import ModelFile
from unipt_jax.training.state import TrainState

LENGTH, END = 12, 3

VIT = VisionSpec(image_size=(24, 16), patch_size=8, hidden_size=16, layers=2, heads=4, mlp_size=40)
CLIP_IMAGE = clip.vision_spec(
    image_size=(16, 16), patch_size=8, hidden_size=16, layers=2, heads=2, mlp_size=40
)
BERT = TextSpec(
    vocab_size=341, hidden_size=24, layers=2, heads=3, mlp_size=32, max_positions=LENGTH + 3
)
CLIP_TEXT = ClipTextSpec(
    vocab_size=341,
    hidden_size=24,
    layers=2,
    heads=3,
    mlp_size=32,
    max_positions=LENGTH + 3,
    end_token=END,
)
UNIPT = DualEncoderSpec(
    image=VIT,
    text=BERT,
    embedding_dim=20,
    pooling="max",
    pool_padding=False,
    mlm=True,
    temperature="learned",
    logit_scale=10.0,
)
CLIP = dataclasses.replace(UNIPT, image=CLIP_IMAGE, text=CLIP_TEXT, pooling="class", mlm=False)


def change(spec, image=None, text=None, **changes):
    return dataclasses.replace(
        spec,
        image=dataclasses.replace(spec.image, **(image or {})),
        text=dataclasses.replace(spec.text, **(text or {})),
        **changes,
    )


# Equal sizes hide a missing transposition; an unusual epsilon shows a default; P13, P14, P18, P19.
CASES = {
    "vit_bert": UNIPT,
    "pool_padding": change(UNIPT, pool_padding=True, temperature="none"),
    "deit_tanh": change(
        UNIPT,
        image={"distillation_token": True, "activation": "gelu_tanh", "layer_norm_eps": 0.3},
        text={"activation": "quick_gelu", "layer_norm_eps": 0.2, "type_vocab_size": 1},
        mlm=False,
        temperature="fixed",
    ),
    "equal_sizes": change(
        UNIPT,
        image={"patch_size": 3, "image_size": (9, 6), "hidden_size": 3, "heads": 1, "mlp_size": 3},
        text={"hidden_size": 3, "heads": 3, "mlp_size": 3},
        embedding_dim=3,
    ),
    "clip": CLIP,
    "clip_activations": change(
        CLIP,
        image={"activation": "gelu_tanh", "layer_norm_eps": 0.3},
        text={"activation": "gelu", "layer_norm_eps": 0.2},
        temperature="fixed",
    ),
    "clip_equal_sizes": change(
        CLIP,
        image={"hidden_size": 12, "mlp_size": 12, "patch_size": 4},
        text={"hidden_size": 12, "mlp_size": 12},
        embedding_dim=12,
        temperature="none",
    ),
    "clip_mlm": change(CLIP, mlm=True),
    "clip_not_square": change(CLIP, image={"image_size": (24, 8)}),
    "clip_end_2": change(CLIP, text={"end_token": 2}, mlm=True),
    "clip_bert": dataclasses.replace(CLIP, text=BERT, temperature="fixed"),
    "vit_clip_text": dataclasses.replace(UNIPT, text=CLIP_TEXT, mlm=False),
}
CLIP_MODELS = {"clip", "clip_activations", "clip_equal_sizes", "clip_mlm"}

# Fine-tuned models with the parameters that are left out of them, and what remains.
CLASSIFIED = {
    "pgu": PguSpec(5, 3, 4, 2, 4, 8, 1, 4, 8),
    "identities": 7,
    "logit_bias": True,
}
HEADS = {"pgu", "identity_head", "pgu_identity_head", "logit_bias"}
SELECTION = {"image_selection", "text_selection"}
CROSS_MODAL = CrossModalSpec(layers=1, heads=2)
FINE_TUNED = {
    "unipt": (change(UNIPT, **CLASSIFIED), HEADS, UNIPT),
    "irra": (
        change(UNIPT, **CLASSIFIED, cross_modal=CROSS_MODAL),
        HEADS | {"cross_modal"},
        change(UNIPT, mlm=False),
    ),
    "clip": (
        change(CLIP, **CLASSIFIED, selection=TokenSelectionSpec(feature_dim=6), mlm=True),
        HEADS | SELECTION | {"mlm_head"},
        CLIP,
    ),
    "clip_irra": (
        change(CLIP, image={"image_size": (24, 8)}, mlm=True, cross_modal=CROSS_MODAL),
        {"cross_modal"},
        change(CLIP, image={"image_size": (24, 8)}),
    ),
}

each_case = pytest.mark.parametrize("name", CASES)


def noise(spec):
    """Parameters of which none is 0 or 1, as a fresh bias or LayerNorm would be."""
    rng = np.random.default_rng(0)
    return jax.tree.map(
        lambda leaf: rng.normal(0.2, 0.3, leaf.shape).astype(np.float32),
        specs.abstract_params(spec),
    )


@pytest.fixture(scope="module")
def tokenizer():
    return tokenization.load("examples/tokenizer")


@pytest.fixture(scope="module")
def exported(tokenizer, tmp_path_factory):
    """Exports a case once: (directory, parameters, what was said)."""

    @functools.cache
    def export(name):
        directory, params = tmp_path_factory.mktemp(name), noise(CASES[name])
        said = pytorch.export(
            directory, spec=CASES[name], params=params, tokenizer=tokenizer, text_length=LENGTH
        )
        return directory, params, said

    return export


@pytest.fixture(scope="module")
def ours(exported):
    """Computes the embeddings of a case's `inputs` once: images and texts, not normalised."""

    @functools.cache
    def embed(name):
        spec, params = CASES[name], exported(name)[1]
        image, text, mask = inputs(spec)
        return (
            apply(spec, params, image, method="encode_image"),
            apply(spec, params, text, mask, method="encode_text"),
        )

    return embed


@pytest.fixture(scope="module")
def torch():
    return pytest.importorskip("torch")


@pytest.fixture(scope="module")
def load(torch, tmp_path_factory):
    """Loads a directory in torch, strictly, with copies of its code in a directory of the tests."""
    import transformers

    def load(directory, **arguments):
        model, told = transformers.AutoModel.from_pretrained(
            directory, trust_remote_code=True, output_loading_info=True, **arguments
        )
        assert not any(told.values()), told
        return model

    with pytest.MonkeyPatch.context() as patch:
        modules = tmp_path_factory.mktemp("modules")
        patch.setattr("transformers.dynamic_module_utils.HF_MODULES_CACHE", str(modules))
        yield load


def inputs(spec):
    """Images, and texts of every length, each with an end token that another may follow."""
    rng = np.random.default_rng(1)
    size = LENGTH
    image = rng.integers(0, 256, (size, *spec.image.image_size, 3), dtype=np.uint8)
    text = rng.integers(0, spec.text.vocab_size, (size, LENGTH), dtype=np.int32)
    mask = np.arange(LENGTH)[None] < np.arange(1, size + 1)[:, None]
    end = getattr(spec.text, "end_token", END)
    text[np.arange(size), np.arange(size)] = end
    return image, text, mask


def unit(rows):
    return rows / np.sqrt((rows**2).sum(1, keepdims=True))


def apply(spec, params, *inputs, **options):
    """Returns what the model computes; not normalised embeddings, for one."""
    run = functools.partial(DualEncoder(spec).apply, **options)
    # Compiled in half the time, run once.
    run = jax.jit(run, compiler_options={"xla_backend_optimization_level": 0})
    return jax.tree.map(np.asarray, run({"params": params}, *inputs))


def in_torch(torch, spec):
    """Returns the same inputs as a torch model takes them, normalised by another formula."""
    image, text, mask = inputs(spec)
    mean, std = np.float64(spec.image.mean), np.float64(spec.image.std)
    pixels = ((image - 255 * mean) / (255 * std)).transpose(0, 3, 1, 2)
    return {
        "pixel_values": torch.tensor(pixels, dtype=torch.float32),
        "input_ids": torch.tensor(text, dtype=torch.int64),
        "attention_mask": torch.tensor(mask, dtype=torch.int64),
    }


def features(torch, model, batch):
    """Returns the embeddings of a torch model, not normalised, in float32."""
    texts = {name: batch[name] for name in ("input_ids", "attention_mask")}
    with torch.no_grad():
        image = model.get_image_features(pixel_values=batch["pixel_values"]).pooler_output
        text = model.get_text_features(**texts).pooler_output
    return image.float().numpy(), text.float().numpy()


# ---------------------------------------------------------------------------- embeddings


@each_case
def test_the_form_follows_the_towers(name, exported):
    directory, _, said = exported(name)
    form = "CLIPModel" if name in CLIP_MODELS else "UniPTModel"
    assert pytorch.form(CASES[name]) == said.form == form
    config = json.loads((directory / "config.json").read_text())
    assert config["architectures"] == [form]
    assert (directory / "modeling_unipt.py").exists() == (form == "UniPTModel")


@each_case
def test_embeddings_are_those_of_the_model(name, exported, ours, load, torch):
    """Lengths, directions and rankings; loaded without a key missing or left over (P15, P13)."""
    spec, (directory, _, said) = CASES[name], exported(name)
    model = load(directory)
    assert type(model).__name__ == said.form
    assert sum(parameter.numel() for parameter in model.parameters()) == said.parameters
    batch = in_torch(torch, spec)
    similarities = []
    for mine, theirs in zip(ours(name), features(torch, model, batch), strict=True):
        assert mine.shape == theirs.shape == (LENGTH, spec.embedding_dim)
        # Close enough to tell the two forms of GELU apart.
        np.testing.assert_allclose(theirs, mine, rtol=1e-5, atol=1e-5)
        similarities.append((unit(mine), unit(theirs)))
    (image, their_image), (text, their_text) = similarities
    similarity = text @ image.T
    gaps = np.diff(np.sort(similarity, axis=1), axis=1)
    assert np.median(gaps) > 1e-5  # Else every ranking would be a tie.
    order = np.argsort(-(their_text @ their_image.T), axis=1)
    assert np.diff(np.take_along_axis(similarity, order, axis=1), axis=1).max() < 1e-6


@each_case
def test_outputs_are_unit_rows_and_their_scaled_similarities(name, exported, ours, load, torch):
    spec, (directory, params, _) = CASES[name], exported(name)
    with torch.no_grad():
        output = load(directory)(**in_torch(torch, spec))
    image, text = map(unit, ours(name))
    np.testing.assert_allclose(output.image_embeds.numpy(), image, atol=1e-4)
    np.testing.assert_allclose(output.text_embeds.numpy(), text, atol=1e-4)
    scale = {"none": 1.0, "fixed": 10.0, "learned": np.exp(params.get("logit_scale", 0))}
    logits = scale[spec.temperature] * text @ image.T
    np.testing.assert_allclose(output.logits_per_text.numpy(), logits, atol=1e-3)
    np.testing.assert_allclose(output.logits_per_image.numpy(), logits.T, atol=1e-3)


def test_a_text_without_an_end_token_is_not_a_number(exported, load, torch):
    """Its start token would be a plausible and wrong answer, in torch as here (P12)."""
    spec, (directory, params, _) = CASES["clip_not_square"], exported("clip_not_square")
    text = np.array([[1, 5, 6, 7], [1, 5, spec.text.end_token, 0]], np.int32)
    mask = np.ones_like(text, bool)
    ours = apply(spec, params, text, mask, method="encode_text")
    with torch.no_grad():
        theirs = load(directory).get_text_features(
            torch.tensor(text, dtype=torch.int64), torch.tensor(mask)
        )
    for found in (np.asarray(ours), theirs.pooler_output.numpy()):
        assert np.isnan(found[0]).all() and np.isfinite(found[1]).all()


@pytest.mark.parametrize("name", ["vit_bert", "clip_end_2"])
def test_the_mlm_head_is_exported(name, exported, load, torch):
    """Its decoder is the table of words, written once and tied again as it is loaded (P72)."""
    spec, (directory, params, _) = CASES[name], exported(name)
    image, text, mask = inputs(spec)
    batch = {"image": image, "text": text, "text_mask": mask, "masked_text": text[::-1]}
    batch["mlm_positions"] = np.tile(np.arange(LENGTH), (LENGTH, 1))
    expected = apply(spec, params, batch, train=False)["mlm_logits"]
    with torch.no_grad():
        found = load(directory).get_mlm_logits(
            torch.tensor(text[::-1].copy(), dtype=torch.int64), torch.tensor(mask)
        )
    assert found.shape == (LENGTH, LENGTH, spec.text.vocab_size)
    np.testing.assert_allclose(found.numpy(), expected, rtol=1e-4, atol=1e-4)


def test_what_clip_has_no_place_for_is_told(exported):
    directory, _, said = exported("clip_mlm")
    assert said.left_out == ("mlm_head",)
    assert "was left out: mlm_head." in (directory / "README.md").read_text()
    assert exported("clip")[2].left_out == exported("vit_bert")[2].left_out == ()


def test_texts_without_a_mask_are_read_whole(exported, load, torch):
    directory, _, _ = exported("vit_bert")
    ids = in_torch(torch, UNIPT)["input_ids"]
    model = load(directory)
    with torch.no_grad():
        whole = model.get_text_features(ids, torch.ones_like(ids)).pooler_output
        assert torch.equal(model.get_text_features(ids).pooler_output, whole)


@pytest.mark.parametrize("name", ["vit_bert", "clip_not_square"])
def test_images_with_swapped_sides_are_refused(name, exported, load, torch):
    """P20: as many patches, so nothing else would notice."""
    pixels = in_torch(torch, CASES[name])["pixel_values"].transpose(2, 3)
    with pytest.raises(ValueError, match=r"\(height, width\), but the model takes"):
        load(exported(name)[0]).get_image_features(pixels)


# ---------------------------------------------------------------------------- fine-tuned models


@pytest.mark.parametrize("name", FINE_TUNED)
def test_what_stands_on_the_encoders_is_left_out(name, tokenizer, tmp_path):
    """And told. The files are those of the encoders alone, of which the tests above are."""
    spec, heads, alone = FINE_TUNED[name]
    params = noise(spec)
    kept = {part: value for part, value in params.items() if part not in heads}
    assert set(kept) == set(specs.abstract_params(alone))
    stripped, found, left_out = pytorch.encoders_alone(spec, params)
    assert (stripped, set(left_out)) == (alone, heads)
    assert found.keys() == kept.keys()

    settings = {"tokenizer": tokenizer, "text_length": LENGTH}
    said = pytorch.export(tmp_path / "whole", spec=spec, params=params, **settings)
    plain = pytorch.export(tmp_path / "alone", spec=alone, params=kept, **settings)
    assert set(said.left_out) == heads and plain.left_out == ()
    assert (said.form, said.parameters) == (plain.form, plain.parameters)
    told = f"\nOf the trained model was left out: {', '.join(said.left_out)}."
    assert told in (tmp_path / "whole" / "README.md").read_text()
    for path in (tmp_path / "alone").iterdir():
        whole = (tmp_path / "whole" / path.name).read_bytes()
        assert whole.replace(told.encode(), b"") == path.read_bytes(), path.name


@pytest.mark.parametrize("name", ["unipt", "clip"])
def test_an_export_embeds_as_the_run_does(name, tokenizer, tmp_path):
    """By this library's own door, from the run's moving average to the directory for torch."""
    spec = FINE_TUNED[name][0]
    if name == "clip":
        spec = change(spec, text={"end_token": tokenizer.end})
    spec = change(spec, text={"vocab_size": tokenizer.vocab_size})
    average = jax.tree.map(jnp.asarray, noise(spec))
    made = TrainState(
        step=jnp.int32(3),
        params=jax.tree.map(lambda leaf: leaf + 1, average),
        opt_state=(),
        average=average,
        key=jax.random.key(0),
    )
    run = tmp_path / "run"
    ModelFile(spec, "float32", LENGTH).write(run, tokenizer)
    with Checkpoints.open(run, keep=1) as checkpoints:
        checkpoints.save(made, data={}, config={})
    trained = unipt_jax.load(run)
    pytorch.export(
        tmp_path / "model",
        spec=trained.model.spec,
        params=trained.params,
        tokenizer=trained.processor.tokenizer,
        text_length=trained.processor.length,
    )
    exported = unipt_jax.load(tmp_path / "model")
    rng = np.random.default_rng(0)
    pictures = list(rng.integers(0, 256, (3, 30, 20, 3), dtype=np.uint8))
    sentences = ["a man in a red shirt", "", "a woman with a bag"]
    for have, want in (
        (exported.encode_images(pictures), trained.encode_images(pictures)),
        (exported.encode_texts(sentences), trained.encode_texts(sentences)),
    ):
        # A CLIP pads texts to all its positions, the run to its length: sums are rounded otherwise.
        np.testing.assert_allclose(have, want, atol=1e-6)
        assert np.ptp(want, axis=0).max() > 1e-3
    image = jnp.asarray(trained.processor.images(pictures))
    own = apply(spec, average, image, method="encode_image")
    np.testing.assert_allclose(trained.encode_images(pictures), unit(own), atol=1e-5)


# ---------------------------------------------------------------------------- types


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
@pytest.mark.parametrize("name", ["vit_bert", "clip"])
def test_weights_of_half_precision(name, dtype, exported, ours, load, tokenizer, torch, tmp_path):
    """P73: rounded once, loaded as such, and computed with."""
    spec, (directory, params, _) = CASES[name], exported(name)
    pytorch.export(
        tmp_path, spec=spec, params=params, tokenizer=tokenizer, text_length=LENGTH, dtype=dtype
    )
    assert json.loads((tmp_path / "config.json").read_text())["dtype"] == dtype
    model = load(tmp_path)
    assert {parameter.dtype for parameter in model.parameters()} == {getattr(torch, dtype)}
    for (key, half), (other, whole) in zip(
        model.named_parameters(), load(directory).named_parameters(), strict=True
    ):
        assert key == other
        assert torch.equal(half, whole.to(half.dtype))
    tolerance = 0.01 if dtype == "float16" else 0.05
    for mine, theirs in zip(ours(name), features(torch, model, in_torch(torch, spec)), strict=True):
        np.testing.assert_allclose(unit(theirs), unit(mine), atol=tolerance)


@pytest.mark.parametrize(
    ("value", "dtype"), [(7e4, "float16"), (np.nan, "float32"), (-np.inf, "bfloat16")]
)
def test_values_that_a_type_cannot_hold_are_refused(value, dtype, tokenizer, tmp_path):
    params = noise(UNIPT)
    params["text_encoder"]["layers_1"]["mlp"]["fc1"]["kernel"][2, 3] = value
    with pytest.raises(ConversionError, match=rf"^{dtype} cannot hold text_encoder.layers.1.mlp"):
        pytorch.export(
            tmp_path,
            spec=UNIPT,
            params=params,
            tokenizer=tokenizer,
            text_length=LENGTH,
            dtype=dtype,
        )
    assert not list(tmp_path.iterdir())


# ---------------------------------------------------------------------------- tokens and pixels


@pytest.mark.parametrize("kind", ["word_pieces", "byte_pairs"])
def test_token_ids_are_ours(kind, tmp_path):
    """Those of texts that spell a special token too."""
    transformers = pytest.importorskip("transformers")
    spec, source, sentences = (
        (UNIPT, "examples/tokenizer", ["A man [SEP] in red.", "", "a boy [SEP] , Bag " * 9])
        if kind == "word_pieces"
        else (CLIP, str(tmp_path), ["ab <|endoftext|> c", "", "ABC ab cab " * 9])
    )
    if kind == "byte_pairs":
        write_byte_pairs(tmp_path)
    tokenizer = tokenization.load(source)
    text = dataclasses.replace(spec.text, **({} if spec is UNIPT else {"end_token": tokenizer.end}))
    spec = dataclasses.replace(spec, text=text)
    pytorch.export(
        tmp_path / "out", spec=spec, params=noise(spec), tokenizer=tokenizer, text_length=LENGTH
    )
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path / "out", trust_remote_code=True)
    read = theirs(sentences, padding="max_length", truncation=True, return_tensors="np")
    assert set(read) == {"input_ids", "attention_mask"}
    for sentence, ids, mask in zip(
        sentences, read["input_ids"], read["attention_mask"], strict=True
    ):
        expected = tokenizer.encode(sentence, LENGTH)
        assert ids[mask == 1].tolist() == expected.tolist()
        assert ids.tolist() == [*expected, *[tokenizer.pad] * (LENGTH - len(expected))]
    assert read["input_ids"][-1, -1] == tokenizer.end
    assert theirs.mask_token_id == tokenizer.mask


@pytest.mark.parametrize("name", ["vit_bert", "clip"])
def test_pixels_are_ours(name, exported, torch):
    import transformers

    spec, directory = CASES[name], exported(name)[0]
    processor = transformers.AutoImageProcessor.from_pretrained(directory, backend="pil")
    rng = np.random.default_rng(0)
    height, width = spec.image.image_size
    for picture in (
        Image.fromarray(rng.integers(0, 256, (50, 31, 3), dtype=np.uint8)),
        Image.fromarray(rng.integers(0, 256, (5, 9, 3), dtype=np.uint8)),
        Image.open("examples/pedestrians/imgs/01_0119.jpg"),
    ):
        resized = images.resize(np.asarray(picture), height, width)
        expected = (resized / 255 - np.array(spec.image.mean)) / np.array(spec.image.std)
        found = processor([picture], return_tensors="pt")["pixel_values"].numpy()
        np.testing.assert_allclose(found[0].transpose(1, 2, 0), expected, atol=1e-5)


def test_clip_processor_does_both(exported, torch):
    import transformers

    processor = transformers.CLIPProcessor.from_pretrained(exported("clip")[0])
    picture = Image.fromarray(np.zeros((30, 20, 3), np.uint8))
    batch = processor(text=["a man"], images=[picture], return_tensors="pt")
    assert batch["pixel_values"].shape == (1, 3, 16, 16)
    assert batch["input_ids"].shape == batch["attention_mask"].shape == (1, 4)


# ---------------------------------------------------------------------------- files


@each_case
def test_parameters_come_back_bit_for_bit(name, exported):
    spec, (directory, params, _) = CASES[name], exported(name)
    back = huggingface.load(str(directory))
    params = dict(params)
    if name in CLIP_MODELS:
        params.pop("mlm_head", None)
        scale = {"none": 1.0, "fixed": 10.0, "learned": None}[spec.temperature]
        params.setdefault("logit_scale", scale and np.log(np.float32(scale)))
    assert not trees.shape_differences(back.params, params)
    jax.tree.map(np.testing.assert_array_equal, back.params, params)
    assert back.spec.image == spec.image and back.spec.text == spec.text
    if name not in CLIP_MODELS:
        assert back.spec == spec and back.text_length == LENGTH


def test_jax_arrays_are_exported_as_numpys_are(exported, tokenizer, tmp_path):
    directory, params, _ = exported("vit_bert")
    pytorch.export(
        tmp_path,
        spec=UNIPT,
        params=jax.tree.map(jnp.asarray, params),
        tokenizer=tokenizer,
        text_length=LENGTH,
    )
    files = sorted(path.name for path in directory.iterdir())
    assert files == sorted(path.name for path in tmp_path.iterdir())
    for file in files:
        assert (tmp_path / file).read_bytes() == (directory / file).read_bytes()


def test_the_names_of_weights_in_unipts_file(exported):
    directory, params, _ = exported("vit_bert")
    file = safetensors.numpy.load_file(directory / "model.safetensors")
    kernel = params["image_encoder"]["patch_embedding"]["kernel"]
    np.testing.assert_array_equal(
        file["image_encoder.patch_embedding.weight"], np.einsum("hwio->oihw", kernel)
    )
    query = params["text_encoder"]["layers_1"]["self_attn"]["q_proj"]["kernel"]
    np.testing.assert_array_equal(file["text_encoder.layers.1.self_attn.q_proj.weight"], query.T)
    assert file["logit_scale"].shape == ()


def test_the_configuration_comes_last(exported, tokenizer, tmp_path, monkeypatch):
    """P94: what a killed export leaves behind is not taken for a model."""
    written = []

    def killed(path, value):
        written.append(path.name)
        if path.name == "config.json":
            raise KeyboardInterrupt

    monkeypatch.setattr(pytorch, "write_json", killed)
    with pytest.raises(KeyboardInterrupt):
        pytorch.export(
            tmp_path, spec=UNIPT, params=noise(UNIPT), tokenizer=tokenizer, text_length=LENGTH
        )
    complete = {path.name for path in exported("vit_bert")[0].iterdir()}
    assert {path.name for path in tmp_path.iterdir()} | set(written) == complete
    monkeypatch.undo()
    with pytest.raises(ConversionError):
        huggingface.load(str(tmp_path))


@pytest.mark.parametrize("name", ["vit_bert", "clip"])
def test_the_model_cards_code_runs(name, exported, load, torch, monkeypatch, capsys):
    spec, (directory, params, _) = CASES[name], exported(name)
    height, width = spec.image.image_size
    picture = np.random.default_rng(3).integers(0, 256, (height, width, 3), dtype=np.uint8)
    monkeypatch.chdir(directory)
    Image.fromarray(picture).save("person.jpg", format="PNG")
    (code,) = re.findall(r"```python\n(.*?)```", (directory / "README.md").read_text(), re.DOTALL)
    scope = {}
    exec(code, scope)
    (directory / "person.jpg").unlink()
    assert "tensor(" in capsys.readouterr().out
    image = apply(spec, params, picture[None], method="encode_image")
    np.testing.assert_allclose(scope["output"].image_embeds.numpy(), unit(image), atol=1e-4)


def test_the_code_beside_the_weights_is_enough(exported, load, torch, tmp_path):
    """Without the Auto classes: imported as a file, loaded, saved and loaded again."""
    directory, _, _ = exported("vit_bert")
    module = types.ModuleType("modeling_unipt")
    sys.modules[module.__name__] = module
    try:
        exec((directory / "modeling_unipt.py").read_text(), module.__dict__)
        model = module.UniPTModel.from_pretrained(directory)
        model.save_pretrained(tmp_path)
        again, told = module.UniPTModel.from_pretrained(tmp_path, output_loading_info=True)
    finally:
        del sys.modules[module.__name__]
    assert not any(told.values()), told
    expected = load(directory).state_dict()
    assert expected.keys() == again.state_dict().keys()
    for name, value in again.state_dict().items():
        assert torch.equal(value, expected[name])
    assert model.config.spec == again.config.spec and again.config.text_length == LENGTH


def test_export_needs_no_torch(tmp_path):
    code = f"""
import sys

class NoTorch:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] == "torch":
            raise ImportError("torch is asked for")

sys.meta_path.insert(0, NoTorch())
from tests.interop.test_pytorch import CASES, LENGTH, noise
from unipt_jax.data import tokenization
from unipt_jax.interop import pytorch
tokenizer = tokenization.load("examples/tokenizer")
for name in ("vit_bert", "clip"):
    pytorch.export(
        f"{tmp_path}/{{name}}",
        spec=CASES[name],
        params=noise(CASES[name]),
        tokenizer=tokenizer,
        text_length=LENGTH,
        dtype="bfloat16",
    )
assert "torch" not in sys.modules
"""
    result = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=False
    )
    assert result.returncode == 0, result.stderr
    assert (tmp_path / "clip" / "config.json").exists()
