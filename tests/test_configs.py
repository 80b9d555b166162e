"""The configurations: every variant is valid, and the defaults are the paper's figures."""

import inspect
import itertools
import runpy
from pathlib import Path

import pytest

from unipt_jax.config import load, schema
from unipt_jax.core.errors import ConfigError
from unipt_jax.data import annotations, text_noise, transforms
from unipt_jax.models.token_selection import TokenSelectionSpec
from unipt_jax.training import run

FILES = sorted(Path("configs").glob("*.py"))
# What a user must add to the file alone.
NEEDED = {
    "pretrain": {"data": "somewhere"},
    "finetune": {"data": "somewhere"},
    "prepare": {"source": "somewhere"},
    "caption": {"images": "somewhere"},
    "evaluate": {"data": "somewhere", "checkpoint": "somewhere"},
    "convert": {"source": "somewhere"},
    "export": {"checkpoint": "somewhere"},
    "search": {"checkpoint": "somewhere", "images": "somewhere"},
}
# The demo fine-tunes on two data sets.
TWO = {"data": "sample,drawn"}
DATA = ["cuhk_pedes", "icfg_pedes", "rstp_reid"]
BACKBONES = ["backbone=deit_s", "backbone=vit_b16", "backbone=clip_b16"]
INITS = ["init=unipt", "init=imagenet", "init=clip", "init=somewhere"]
RECIPES = ["recipe=irra", "recipe=rde", "recipe=tbps_clip", "recipe=clip"]
# Number of ids, and the one that ends a text: BERT's and CLIP's, and any for the demo's.
VOCABULARIES = {
    "bert-base-uncased": (30522, 102),
    "openai/clip-vit-base-patch16": (49408, 49407),
    "examples/tokenizer": (1000, 3),
}


def variants_of(path):
    values = {"__file__": str(path)}
    exec(path.read_text(), values)
    return values["VARIANTS"]


def made_of(stage, *names):
    return load.load(f"configs/{stage}.py:{','.join(names)}", NEEDED[stage])


def pretrain(*names):
    return made_of("pretrain", *names)


def finetune(*names):
    return made_of("finetune", *names)


def spec_of(made):
    """The model that a training configuration describes."""
    vocab_size, end_token = VOCABULARIES[made.text.tokenizer]
    return run.build_spec(made, vocab_size=vocab_size, end_token=end_token, identities=10)


def weights(made):
    """The losses that have a weight, PGU's only where there is a PGU."""
    names = [name for name, kind, *_ in schema.describe(schema.Loss) if kind == "float"]
    constants = (
        "ranking_margin",
        "sdm_temperature",
        "tal_temperature",
        "tal_margin",
        "soft_labels",
    )
    found = {name: getattr(made.loss, name) for name in names if name not in constants}
    if not made.model.pgu:
        found.pop("pgu")
    return {name: weight for name, weight in found.items() if weight}


# ---------------------------------------------------------------------------- every variant


SCRIPTS = {
    "train": {"pretrain", "finetune"},
    **{name: {name} for name in sorted(set(NEEDED) - {"pretrain", "finetune"})},
}


@pytest.mark.parametrize("script", SCRIPTS)
def test_a_script_refuses_the_configurations_of_the_others(script, monkeypatch, capsys):
    """Whatever the fields, to run it or to see them; the script that it is for is named."""
    for path in FILES:
        if path.stem in SCRIPTS[script]:
            continue
        (right,) = (name for name, stages in SCRIPTS.items() if path.stem in stages)
        for flags in (["--workdir=x"], ["--workdir=x", "--config.clip=x"], ["--help"]):
            arguments = [f"launch/{script}.py", f"--config={path}", *flags]
            monkeypatch.setattr("sys.argv", arguments)
            with pytest.raises(SystemExit) as ended:
                runpy.run_path(arguments[0], run_name="__main__")
            (said,) = capsys.readouterr().err.splitlines()
            assert ended.value.code == 2
            assert said.startswith(f"error: --config={path} is for launch/{right}.py; this script")
            assert {name for name in NEEDED if repr(name) in said} == SCRIPTS[script]


def test_every_stage_has_a_file():
    assert {path.stem for path in FILES} == set(schema.STAGES) == set(NEEDED)


@pytest.mark.parametrize(
    ("stage", "name"), [(path.stem, name) for path in FILES for name in ("", *variants_of(path))]
)
def test_every_variant_is_valid(stage, name):
    # `prepare` names no data set of its own: which one is the user's choice.
    needed = {("prepare", ""): {"dataset": "pairs"}, ("finetune", "demo"): TWO}
    made = load.load(f"configs/{stage}.py:{name}", NEEDED[stage] | needed.get((stage, name), {}))
    assert made.stage == stage


@pytest.mark.parametrize("names", [(), ("vit_b16",), ("deit_s", "released"), ("recipe=sdm",)])
def test_variants_of_pre_training_make_a_model(names):
    assert spec_of(pretrain(*names)).mlm == (names != ("recipe=sdm",))


@pytest.mark.parametrize("names", itertools.product(DATA, BACKBONES, INITS), ids=",".join)
def test_every_data_set_backbone_and_init_of_fine_tuning_make_a_model(names):
    """The losses stay the paper's; the model is the backbone's, or CLIP if it starts from CLIP."""
    data, backbone, init = names
    made = finetune(*names)
    is_clip = "backbone=clip_b16" in names or "init=clip" in names
    assert made.model.image == ("clip_b16" if is_clip else backbone.removeprefix("backbone="))
    assert made.model.text == ("clip_b16" if is_clip else "bert_base")
    assert made.model.pooling == ("class" if is_clip else "max")
    assert weights(made) == {"identity": 1.0, "ranking": 1.0, "pgu": 1.0}
    assert made.evaluate == (data != "icfg_pedes")
    assert (
        made.init
        == {
            "init=unipt": "runs/pretrain",
            "init=imagenet": "",
            "init=clip": "openai/clip-vit-base-patch16",
            "init=somewhere": "somewhere",
        }[init]
    )
    spec = spec_of(made)
    assert spec.pgu and spec.identities == 10 and not spec.mlm


@pytest.mark.parametrize("names", itertools.product(DATA, RECIPES), ids=",".join)
def test_every_data_set_and_recipe_of_fine_tuning_make_a_model(names):
    made = finetune(*names)
    assert (made.model.image, made.model.text) == ("clip_b16", "clip_b16")
    assert made.init == "openai/clip-vit-base-patch16"
    assert made.evaluate == (names[0] != "icfg_pedes")
    spec = spec_of(made)
    assert spec.features == (("global", "selection") if "rde" in names[1] else ("global",))
    # Only a loss that is weighed has parameters of its own.
    assert bool(spec.identities) == bool(spec.mlm) == (names[1] == "recipe=irra")


def test_backbones_start_from_their_own_imagenet_weights():
    """The paper's encoders: ViT-B/16 and DeiT-S of ImageNet, and BERT."""
    for name, weights_of_it in (
        ("deit_s", "facebook/deit-small-patch16-224"),
        ("vit_b16", "google/vit-base-patch16-224"),
    ):
        for made in (pretrain(name), finetune(f"backbone={name}", "init=imagenet")):
            assert (made.init, made.init_image) == ("", weights_of_it)
            assert made.init_text == made.text.tokenizer == "bert-base-uncased"


@pytest.mark.parametrize("devices", [1, 8, 256])
def test_a_number_of_devices_changes_how_and_not_what(devices):
    """The model, its losses and its data stay; 256 devices alone ask for a larger batch."""
    plain = schema.to_dict(pretrain("deit_s"))
    made = schema.to_dict(pretrain("deit_s", f"devices={devices}"))
    how = {"dtype", "accumulate", "compute", "mesh", "workers"}
    batch = {"batch_size", "optimizer"} if devices == 256 else set()
    assert {name for name in plain if made[name] != plain[name]} <= how | batch
    assert made["dtype"] == "bfloat16" and made["compute"]["cache"]
    # Each device has a share of each micro-batch, for each recipe.
    stages = [pretrain] if devices == 256 else [pretrain, finetune]
    for stage in stages:
        made = stage(f"devices={devices}")
        assert made.batch_size % (made.accumulate * devices) == 0


# ---------------------------------------------------------------------------- order of variants


def test_later_variants_win():
    assert finetune("backbone=deit_s", "backbone=vit_b16") == finetune("backbone=vit_b16")
    assert finetune("init=imagenet", "init=unipt").init == "runs/pretrain"
    assert pretrain("deit_s", "vit_b16") == pretrain("vit_b16")


def test_a_recipe_replaces_the_backbone_before_it():
    for backbone in BACKBONES:
        made = finetune("cuhk_pedes", backbone, "recipe=irra")
        assert (made.model, made.text, made.init) == (
            finetune("recipe=irra").model,
            finetune("recipe=irra").text,
            finetune("recipe=irra").init,
        )


@pytest.mark.parametrize("recipe", RECIPES)
def test_an_init_after_a_recipe_changes_where_it_starts_alone(recipe):
    """Fine-tuning by IRRA's losses from a pre-training run, as in MLLM4Text-ReID."""
    plain = schema.to_dict(finetune(recipe))
    for init, start in (("unipt", "runs/pretrain"), ("DIR", "DIR"), ("clip", plain["init"])):
        assert schema.to_dict(finetune(recipe, f"init={init}")) == plain | {"init": start}


def test_data_sets_may_come_anywhere():
    for names in itertools.permutations(["icfg_pedes", "backbone=deit_s", "init=unipt"]):
        assert finetune(*names) == finetune("icfg_pedes", "backbone=deit_s", "init=unipt")


@pytest.mark.parametrize(
    ("stage", "name", "part"),
    [
        ("finetune", "recipe=xyz", "has no variant 'recipe=xyz'; did you mean 'recipe="),
        ("finetune", "recipe=ira", "did you mean 'recipe=irra'?"),
        ("finetune", "recipe=tbpsclip", "did you mean 'recipe=tbps_clip'?"),
        ("finetune", "recipe=sdm", "has no variant 'recipe=sdm'"),
        ("finetune", "backbone=vit_b61", "did you mean 'backbone=vit_b16'?"),
        ("finetune", "cuhkpedes", "did you mean 'cuhk_pedes'?"),
        ("finetune", "deit_s", "has no variant 'deit_s'"),
        ("pretrain", "recipe=irra", "did you mean 'recipe=sdm'?"),
        ("pretrain", "backbone=deit_s", "backbone is unknown"),
    ],
)
def test_unknown_variants_are_answered_with_the_nearest(stage, name, part):
    with pytest.raises(ConfigError) as caught:
        made_of(stage, name)
    assert part in str(caught.value)


# ---------------------------------------------------------------------------- the paper


def test_the_defaults_are_the_papers():
    """Paper, sections 3.3 and 4.1: the figures it states, and no temperature (Eq. 1)."""
    made = pretrain()
    assert (made.image.height, made.image.width) == (384, 128)
    assert made.text.length == 100
    assert (made.batch_size, made.epochs, made.steps) == (512, 15.0, 0)
    assert (made.optimizer.learning_rate, made.optimizer.warmup) == (1e-5, 0.1)
    assert weights(made) == {"contrastive": 1.0, "mlm": 1.0}
    assert (made.mlm.probability, made.mlm.whole_word) == (0.15, False)
    assert made.similarity.temperature == "none" and made.loss.negatives == 0
    assert not made.model.pool_padding and not made.model.cross_modal
    assert (made.model.image, made.model.text, made.model.pooling) == (
        "vit_b16",
        "bert_base",
        "max",
    )
    assert (made.optimizer.name, made.optimizer.decay) == ("adamw", "none")
    assert not made.init and not made.evaluate


def test_fine_tuning_is_the_papers():
    """Paper, sections 3.4 and 4.1: L_id + L_rk + L_pgu by Adam, 1e-4, and 1e-5 for the text."""
    for data in DATA:
        made = finetune(data)
        assert (made.image.height, made.image.width) == (384, 128)
        assert (made.image.flip, made.image.padding, made.image.pool, made.image.erase) == (
            0.5,
            0,
            0,
            0.0,
        )
        assert (made.batch_size, made.instances) == (64, 0)
        how = made.optimizer
        assert how.name == "adam"
        rates = {
            group: how.learning_rate * getattr(how, group) for group in ("image", "new", "text")
        }
        assert rates == pytest.approx({"image": 1e-4, "new": 1e-4, "text": 1e-5})
        assert how.bias == 1.0
        assert weights(made) == {"identity": 1.0, "ranking": 1.0, "pgu": 1.0}
        assert made.loss.ranking_margin == 0.2
        assert (made.model.image, made.model.text, made.model.pooling) == (
            "vit_b16",
            "bert_base",
            "max",
        )
        assert made.model.embedding_dim == 768
        assert (made.text.length, made.text.noise) == (100, "none")


def test_the_papers_pgu():
    """LGUR, as the paper takes it: 400 vectors, 6 queries, 6 heads of 64, MLPs 768 and 512."""
    pgu = spec_of(finetune("cuhk_pedes")).pgu
    assert (pgu.dictionary_size, pgu.prototypes, pgu.heads) == (400, 6, 6)
    assert (pgu.dictionary_head_size, pgu.dictionary_mlp_size) == (64, 768)
    assert (pgu.prototype_layers, pgu.prototype_mlp_size, pgu.part_dim) == (2, 512, 512)


def test_released_is_the_published_code():
    """Rows of the table in docs/paper.md where the published code departs from the paper."""
    made = pretrain("released")
    assert made.model.pool_padding and made.text.buckets == ()
    assert made.loss.negatives == 64 and made.similarity.temperature == "none"
    assert made.mlm.whole_word
    assert (made.optimizer.decay, made.optimizer.beta2) == ("linear", 0.98)
    assert made.dtype == "bfloat16"


def test_pooling_over_padding_refuses_buckets():
    """Embeddings would otherwise depend on the longest caption that happens to be in the batch."""
    with pytest.raises(ConfigError, match=r"needs text\.buckets=\(\)"):
        load.load("configs/pretrain.py", {"data": "x", "model.pool_padding": True})


# ---------------------------------------------------------------------------- later recipes


def require_clip(made, height, width):
    """CLIP ViT-B/16, whose features are the class and the end-of-text token, on 77 tokens."""
    assert (made.model.image, made.model.text) == ("clip_b16", "clip_b16")
    assert (made.model.embedding_dim, made.model.pooling) == (512, "class")
    assert made.text.tokenizer == "openai/clip-vit-base-patch16" and made.text.length == 77
    assert (made.image.height, made.image.width) == (height, width)
    assert not made.model.pgu


def require_irra_training(made):
    """What RDE took over from IRRA (CVPR 2023): images, optimizer and schedule."""
    require_clip(made, 384, 128)
    assert (made.image.flip, made.image.padding, made.image.erase) == (0.5, 10, 0.5)
    assert made.image.pool == 0
    assert inspect.signature(transforms.random_erase).parameters["area"].default == (0.02, 0.4)
    how = made.optimizer
    assert (how.name, how.epsilon, how.weight_decay) == ("adam", 1e-3, 4e-5)
    assert (how.learning_rate, how.image, how.text, how.new, how.bias) == (1e-5, 1.0, 1.0, 5.0, 2.0)
    assert made.epochs == 60.0 and made.batch_size == 64 and made.steps == 0
    assert how.warmup * made.epochs == pytest.approx(5)
    assert (how.start, how.decay, how.end) == (0.1, "cosine", 0.0)


def test_irra():
    """IRRA (CVPR 2023): SDM, identities and cross-modal MLM, all reading the masked caption."""
    made = finetune("recipe=irra")
    require_irra_training(made)
    assert weights(made) == {"identity": 0.5, "sdm": 1.0, "mlm": 1.0}
    assert made.loss.sdm_temperature == 0.02
    assert made.model.cross_modal and not made.model.selection
    assert (made.text.noise, made.mlm.probability, made.mlm.whole_word) == ("mask", 0.15, False)


def test_rde():
    """RDE (CVPR 2024): TAL, summed, of the global features and of selected tokens'."""
    made = finetune("recipe=rde")
    require_irra_training(made)
    assert weights(made) == {"tal": 1.0}
    assert (made.loss.tal_temperature, made.loss.tal_margin) == (0.015, 0.1)
    assert made.model.selection and not made.model.cross_modal
    assert spec_of(made).selection == TokenSelectionSpec(ratio=0.3)
    assert (made.text.noise, made.text.noise_probability) == ("corrupt", 0.2)
    masked, replaced = text_noise.MASKED, text_noise.REPLACED
    assert (masked, replaced, 1 - masked - replaced) == pytest.approx((0.6, 0.2, 0.2))
    assert made.mlm.probability == 0.0


def test_tbps_clip():
    """TBPS-CLIP (AAAI 2024): normalised, reversed and cyclic InfoNCE on squares, AdamW."""
    made = finetune("recipe=tbps_clip")
    require_clip(made, 224, 224)
    # Its flip is one of the six augmentations of which two are drawn.
    assert (made.image.flip, made.image.padding, made.image.erase, made.image.pool) == (0, 0, 0, 2)
    assert weights(made) == {"n_itc": 1.0, "r_itc": 1.0, "c_itc": 0.1}
    assert made.loss.soft_labels == 0.5 and made.similarity.temperature == "learned"
    assert made.similarity.logit_scale == pytest.approx(1 / 0.07)
    assert (made.text.noise, made.text.noise_probability) == ("delete", 0.05)
    how = made.optimizer
    assert (how.name, how.decay, made.batch_size) == ("adamw", "cosine", 320)
    assert how.learning_rate == 1e-4 and how.end * how.learning_rate == pytest.approx(5e-6)
    assert (how.image, how.text) == (1.0, 1.0)
    assert made.epochs == 5.0 and how.warmup * made.epochs == pytest.approx(1)


def test_clip():
    """CLIP's own loss: InfoNCE with a learned temperature."""
    made = finetune("recipe=clip")
    require_clip(made, 384, 128)
    assert weights(made) == {"contrastive": 1.0} and made.loss.negatives == 0
    assert made.similarity.temperature == "learned"
    assert made.similarity.logit_scale == pytest.approx(1 / 0.07)
    how = made.optimizer
    assert (how.learning_rate, how.image, how.text) == (1e-5, 1.0, 1.0)


def test_pre_training_for_direct_transfer():
    """MLLM4Text-ReID (CVPR 2024): CLIP with SDM, 1e-5 and a cosine, 30 epochs in batches of 512."""
    made = pretrain("recipe=sdm")
    require_clip(made, 384, 128)
    assert weights(made) == {"sdm": 1.0} and made.loss.sdm_temperature == 0.02
    assert made.init == "openai/clip-vit-base-patch16"
    how = made.optimizer
    assert (how.learning_rate, how.decay, how.end) == (1e-5, "cosine", 0.0)
    assert (made.epochs, made.batch_size) == (30.0, 512)


# ---------------------------------------------------------------------------- other stages


@pytest.mark.parametrize("name", annotations.LAYOUTS)
def test_every_layout_can_be_prepared(name):
    made = load.load(f"configs/prepare.py:{name}", {"source": "somewhere"})
    assert made.dataset == name


def test_drawn_pedestrians_need_no_source():
    made = load.load("configs/prepare.py:drawn,count=3,height=64")
    assert (made.dataset, made.source, made.count) == ("drawn", "", 3)
    assert (made.height, made.width) == (64, 128)


def test_the_demo_needs_no_source():
    assert load.load("configs/prepare.py:demo").source == "examples/pedestrians"
    assert load.load("configs/caption.py:demo").images == "examples/pedestrians/imgs"
    assert load.load("configs/evaluate.py:demo").checkpoint == "runs/demo/finetune"


def test_the_demo_fine_tunes_the_model_that_it_pre_trains():
    before, after = pretrain("demo"), load.load("configs/finetune.py:demo", TWO)
    assert before.text == after.text
    assert not before.init_text and not after.init_text
    assert before.init_image == after.init_image
    one, other = spec_of(before), spec_of(after)
    for name in ("image", "text", "embedding_dim", "pooling", "temperature"):
        assert getattr(one, name) == getattr(other, name)


def test_captions_are_the_papers():
    """Paper, section 3.1: CLIP ViT-B/16, and a softmax above 0.9 for an optional attribute."""
    made = load.load("configs/caption.py", {"images": "somewhere"})
    assert made.clip == "openai/clip-vit-base-patch16"
    assert (made.threshold, made.wrappers) == (0.9, 1)
