"""Weights to start from: in their places, resized, and refused where they do not fit."""

import dataclasses
import json

import jax
import numpy as np
import pytest
import tokenizers

from tests.training import micro
from unipt_jax.core import trees
from unipt_jax.core.errors import ConversionError
from unipt_jax.core.sharding import make_mesh
from unipt_jax.models import specs
from unipt_jax.models.vit import VisionSpec
from unipt_jax.training import initial, state
from unipt_jax.training.checkpoints import Checkpoints
from unipt_jax.training.model_file import ModelFile

SPEC = micro.model().spec
WORDS = {f"word{number}": number for number in range(micro.VOCABULARY)}


def noise(abstract, seed=0):
    rng = np.random.default_rng(seed)
    return jax.tree.map(lambda leaf: rng.normal(size=leaf.shape).astype(leaf.dtype), abstract)


def write(workdir, spec, params):
    """A directory as training and conversion leave it."""
    ModelFile(spec, "float32", 0 if isinstance(spec, VisionSpec) else 12).write(workdir)
    with Checkpoints.open(workdir, keep=1) as checkpoints:
        checkpoints.save_params(jax.tree.map(jax.numpy.asarray, params), config={})
    return str(workdir)


def give_tokenizer(workdir, words):
    """Puts a tokenizer beside a model, as training does."""
    special = dict.fromkeys(["[CLS]", "[SEP]", "[PAD]"])
    numbers = words | {token: len(words) + at for at, token in enumerate(special)}
    made = tokenizers.Tokenizer(tokenizers.models.WordLevel(numbers, unk_token="[PAD]"))
    made.post_processor = tokenizers.processors.TemplateProcessing(
        single="[CLS] $A [SEP]",
        special_tokens=[(token, numbers[token]) for token in ("[CLS]", "[SEP]")],
    )
    made.add_special_tokens(list(special))
    (workdir / "tokenizer").mkdir()
    made.save(str(workdir / "tokenizer" / "tokenizer.json"))


@pytest.fixture(scope="module")
def dual(tmp_path_factory):
    """The directory of a dual encoder of noise, and the noise."""
    params = noise(specs.abstract_params(SPEC))
    return write(tmp_path_factory.mktemp("dual"), SPEC, params), params


def same(one, other):
    one, other = trees.flatten(one), trees.flatten(other)
    assert one.keys() == other.keys()
    for path, leaf in one.items():
        np.testing.assert_array_equal(leaf, other[path], err_msg=path)


def test_both_encoders_start_from_a_run(dual):
    """Encoders and the MLM head, not the heads and the temperature of another objective."""
    source, params = dual
    spec, found = initial.start_from(SPEC, WORDS, image=source, text=source)
    assert spec == SPEC
    same(found, {name: params[name] for name in ("image_encoder", "text_encoder", "mlm_head")})


def test_one_encoder_alone_leaves_the_other_at_random(dual, tmp_path):
    params = noise(specs.abstract_params(SPEC.text), seed=1)
    source = write(tmp_path, SPEC.text, params)
    _, found = initial.start_from(SPEC, WORDS, image="", text=source)
    same(found, params)
    _, found = initial.start_from(SPEC, WORDS, image=dual[0], text="")
    assert set(found) == {"image_encoder"}
    assert initial.start_from(SPEC, WORDS, image="", text="") == (SPEC, {})


def test_what_belongs_to_the_weights_comes_with_them(tmp_path, caplog):
    """P13, P14, P04: activation and epsilon are theirs, which is told; what else is the run's."""
    theirs = dataclasses.replace(
        SPEC,
        image=dataclasses.replace(
            SPEC.image, layer_norm_eps=1e-3, activation="quick_gelu", mean=(0.1, 0.2, 0.3)
        ),
        text=dataclasses.replace(SPEC.text, layer_norm_eps=1e-5, activation="gelu_tanh"),
    )
    source = write(tmp_path, theirs, noise(specs.abstract_params(theirs)))
    wanted = dataclasses.replace(
        SPEC,
        image=dataclasses.replace(SPEC.image, image_size=(24, 12)),
        text=dataclasses.replace(SPEC.text, dropout=0.3),
    )
    with caplog.at_level("INFO"):
        spec, _ = initial.start_from(wanted, WORDS, image=source, text=source)
    assert "activation 'quick_gelu' of the weights, not 'gelu'; positions resized" in caplog.text
    assert "from image_size (16, 8) to (24, 12)" in caplog.text
    assert (spec.image.layer_norm_eps, spec.image.activation) == (1e-3, "quick_gelu")
    assert (spec.text.layer_norm_eps, spec.text.activation) == (1e-5, "gelu_tanh")
    assert spec.image.mean == SPEC.image.mean and spec.text.dropout == 0.3


@pytest.mark.parametrize("fault", ["wrapped", "missing", "more", "nan"])
def test_a_checkpoint_of_something_else_is_refused(fault, tmp_path):
    """None of its parameters is passed over, and none of the model's stays at random (P05)."""
    image = SPEC.image
    params = noise(specs.abstract_params(image))
    encoder = params["image_encoder"]
    named = "image_encoder/class_token"
    if fault == "wrapped":
        params = {"module": params}
    elif fault == "missing":
        del encoder["class_token"]
    elif fault == "more":
        encoder["register_token"] = encoder["class_token"]
        named = "image_encoder/register_token: unexpected"
    else:
        encoder["class_token"][1] = np.nan
        named += ": infinite or not a number"
    source = write(tmp_path, image, params)
    with pytest.raises(ConversionError, match=f"init_image: {tmp_path} does not hold .*{named}"):
        initial.start_from(SPEC, WORDS, image=source)


def test_positions_are_resized_once_for_another_size(dual):
    """P20, P21: a grid of 4x2 to one of 6x3; at the same size the very table comes back."""
    source, params = dual
    wanted = dataclasses.replace(SPEC, image=dataclasses.replace(SPEC.image, image_size=(24, 12)))
    table = params["image_encoder"]["position_embedding"]
    _, found = initial.start_from(wanted, WORDS, image=source, text="")
    resized = found["image_encoder"]["position_embedding"]
    assert resized.shape == (1 + 6 * 3, 16)
    np.testing.assert_array_equal(resized[0], table[0])
    torch = pytest.importorskip("torch")
    grid = torch.tensor(table[1:]).reshape(1, 4, 2, 16).permute(0, 3, 1, 2)
    expected = torch.nn.functional.interpolate(
        grid, size=(6, 3), mode="bicubic", align_corners=False
    )
    expected = expected.permute(0, 2, 3, 1).reshape(18, 16).numpy()
    np.testing.assert_allclose(resized[1:], expected, atol=1e-5)


@pytest.mark.parametrize(
    ("side", "changes", "named"),
    [
        ("image", {"hidden_size": 32}, "hidden_size 16, not 32"),
        ("image", {"layers": 2, "heads": 4}, "layers 1, not 2; heads 2, not 4"),
        ("image", {"pre_layer_norm": True}, "pre_layer_norm False, not True"),
        ("text", {"vocab_size": 41}, "vocab_size 40, not 41"),
        ("text", {"max_positions": 20}, "max_positions 12, not 20"),
    ],
)
def test_other_shapes_are_refused(dual, side, changes, named):
    """What differs between the weights and the run is told, not trained with (P04)."""
    changed = dataclasses.replace(getattr(SPEC, side), **changes)
    wanted = dataclasses.replace(SPEC, **{side: changed})
    sources = {"image": "", "text": ""} | {side: dual[0]}
    with pytest.raises(ConversionError, match=rf"init_{side}=.*{named}"):
        initial.start_from(wanted, WORDS, **sources)


def test_the_wrong_kind_of_encoder_is_refused(tmp_path):
    source = write(tmp_path, SPEC.text, noise(specs.abstract_params(SPEC.text)))
    with pytest.raises(ConversionError, match=r"init_image=.*holds a BERT, not an image encoder"):
        initial.start_from(SPEC, WORDS, image=source, text="")


def test_a_word_table_beyond_the_tokenizer_is_kept_whole(dual):
    """P78: larger is harmless, smaller (above) would lack embeddings."""
    wanted = dataclasses.replace(SPEC, text=dataclasses.replace(SPEC.text, vocab_size=37))
    spec, found = initial.start_from(wanted, WORDS, image="", text=dual[0])
    assert spec.text.vocab_size == 40 == len(found["text_encoder"]["word_embeddings"])


def test_the_second_token_of_a_distilled_deit_comes_with_it(tmp_path):
    distilled = dataclasses.replace(SPEC.image, distillation_token=True)
    params = noise(specs.abstract_params(distilled))
    source = write(tmp_path, distilled, params)
    spec, found = initial.start_from(SPEC, WORDS, image=source, text="")
    assert spec.image.distillation_token
    same(found, params)


def test_another_patch_size_is_named_as_such(dual):
    """Not as a size that its positions cannot be resized to."""
    image = dataclasses.replace(SPEC.image, patch_size=8)
    wanted = dataclasses.replace(SPEC, image=image)
    with pytest.raises(ConversionError, match=r"init_image=.*patch_size 4, not 8"):
        initial.start_from(wanted, WORDS, image=dual[0], text="")


def test_tokens_must_have_the_embeddings_of_those_very_tokens(dual, tmp_path, caplog):
    """As many tokens, numbered otherwise: every word would get another one's embedding."""
    source = tmp_path / "text"
    write(source, SPEC.text, noise(specs.abstract_params(SPEC.text)))
    with caplog.at_level("WARNING"):
        initial.start_from(SPEC, WORDS, image="", text=str(source))
    assert "comes without a tokenizer" in caplog.text

    give_tokenizer(source, WORDS)
    initial.start_from(SPEC, WORDS, image="", text=str(source))
    swapped = WORDS | {"word3": 4, "word4": 3}
    with pytest.raises(ConversionError, match=r"2 of 40 tokens differ, such as 'word3', 3 there"):
        initial.start_from(SPEC, swapped, image="", text=str(source))
    with pytest.raises(ConversionError, match=r"'red', unknown there and 39"):
        other = {**WORDS, "red": 39}
        del other["word39"]
        initial.start_from(SPEC, other, image="", text=str(source))


def test_a_source_of_both_encoders_is_read_once(dual, monkeypatch):
    read, seen = initial.read, []
    monkeypatch.setattr(initial, "read", lambda name: seen.append(name) or read(name))
    initial.start_from(SPEC, WORDS, image=dual[0], text=dual[0])
    assert seen == [dual[0]]


# ---------------------------------------------------------------------------- a whole dual encoder

FINE_TUNED = micro.model(logit_bias=True, pgu=micro.PGU, identities=5).spec
CLASSIFIERS = {"identity_head", "pgu_identity_head"}


@pytest.fixture(scope="module")
def tuned(tmp_path_factory):
    """The directory of a fine-tuned model of noise, and the noise."""
    params = noise(specs.abstract_params(FINE_TUNED), seed=2)
    return write(tmp_path_factory.mktemp("tuned"), FINE_TUNED, params), params


@pytest.mark.parametrize("identities", [5, 7])
def test_everything_but_the_classifiers_starts_from_a_whole_model(tuned, identities):
    """As many identities are other people all the same."""
    source, params = tuned
    wanted = dataclasses.replace(FINE_TUNED, identities=identities)
    spec, found = initial.start_from(wanted, WORDS, whole=source)
    assert spec == wanted
    assert set(params) > CLASSIFIERS
    same(found, {name: part for name, part in params.items() if name not in CLASSIFIERS})


def test_fine_tuning_starts_from_pretraining(dual):
    """Both encoders with their heads and the temperature; what is new starts at random."""
    source, params = dual
    wanted = dataclasses.replace(FINE_TUNED, mlm=False)
    spec, found = initial.start_from(wanted, WORDS, whole=source)
    assert spec == wanted
    parts = ("image_encoder", "text_encoder", "image_head", "text_head", "logit_scale")
    same(found, {name: params[name] for name in parts})
    _, found = initial.start_from(SPEC, WORDS, whole=source)
    same(found, params)  # The MLM head too, where there is one.


def test_a_part_of_another_shape_starts_at_random(tuned):
    """A dictionary of another size is another one, and its rows are no better than random."""
    source, params = tuned
    pgu = dataclasses.replace(micro.PGU, dictionary_size=7)
    _, found = initial.start_from(dataclasses.replace(FINE_TUNED, pgu=pgu), WORDS, whole=source)
    assert set(params) - set(found) == CLASSIFIERS | {"pgu"}


def test_a_whole_model_goes_before_single_encoders(tuned):
    source, params = tuned
    _, found = initial.start_from(SPEC, WORDS, whole=source, image="gone", text="gone")
    same(found["text_encoder"], params["text_encoder"])


def test_pixels_are_normalised_as_the_whole_model_was_trained(tmp_path):
    """Unlike a single encoder's: it has seen pedestrians so before, and positions are resized."""
    image = dataclasses.replace(SPEC.image, mean=(0.1, 0.2, 0.3), std=(0.4, 0.5, 0.6))
    theirs = dataclasses.replace(SPEC, image=image)
    source = write(tmp_path, theirs, noise(specs.abstract_params(theirs)))
    larger = dataclasses.replace(SPEC, image=dataclasses.replace(SPEC.image, image_size=(24, 12)))
    spec, found = initial.start_from(larger, WORDS, whole=source)
    assert (spec.image.mean, spec.image.std) == (image.mean, image.std)
    assert spec.image.image_size == (24, 12)
    assert found["image_encoder"]["position_embedding"].shape == (1 + 6 * 3, 16)


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"embedding_dim": 10}, "embedding_dim 8, not 10"),
        ({"pooling": "class"}, "pooling 'max', not 'class'"),
        ({"embedding_dim": 9, "pooling": "class"}, "embedding_dim 8, not 9; pooling 'max', not"),
        ({"image": dataclasses.replace(SPEC.image, hidden_size=32)}, "hidden_size 16, not 32"),
        ({"text": dataclasses.replace(SPEC.text, layers=3)}, "layers 1, not 3"),
    ],
)
def test_a_whole_model_of_another_make_is_refused(dual, changes, named):
    with pytest.raises(ConversionError, match=rf"^init=.*does not fit model.*{named}"):
        initial.start_from(dataclasses.replace(SPEC, **changes), WORDS, whole=dual[0])


def test_one_encoder_is_no_whole_model(tmp_path):
    source = write(tmp_path, SPEC.text, noise(specs.abstract_params(SPEC.text)))
    with pytest.raises(ConversionError, match=r"^init=.*one encoder alone; name it as init_image"):
        initial.start_from(SPEC, WORDS, whole=source)
    with pytest.raises(ConversionError, match=r"^init: nowhere.*--config\.init= starts at random"):
        initial.start_from(SPEC, WORDS, whole="nowhere")


@pytest.mark.parametrize("shape", [(8, 1, 1), (2, 2, 2)])
def test_weights_are_put_where_random_ones_were(dual, shape):
    """On any mesh, with the layout kept; what is not given stays as it was."""
    _, optimizer, _ = micro.parts()
    example = specs.abstract_batch(SPEC, 8)
    made, shardings = state.create(
        micro.model(), example, optimizer, seed=0, mesh=make_mesh(*shape)
    )
    given = {"image_encoder": dual[1]["image_encoder"]}
    put = initial.put(made.params, given)
    same(put["image_encoder"], dual[1]["image_encoder"])
    same(put["text_encoder"], made.params["text_encoder"])
    for leaf, sharding in zip(jax.tree.leaves(put), jax.tree.leaves(shardings.params), strict=True):
        assert leaf.sharding.is_equivalent_to(sharding, leaf.ndim)


def test_a_file_of_another_kind_is_named(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "resnet"}))
    with pytest.raises(ConversionError, match=r"init_image: .*resnet.*starts at random"):
        initial.start_from(SPEC, WORDS, image=str(tmp_path), text="")
