"""From a configuration to a finished run: the parts, put together."""

import logging
import math
from collections.abc import Mapping
from typing import Any

import grain
import jax
import jax.numpy as jnp
import optax
from etils import epath
from rich.console import Console

from unipt_jax.config import schema
from unipt_jax.core import trees
from unipt_jax.core.errors import CheckpointError, ConfigError
from unipt_jax.core.sharding import make_mesh, require_divisible
from unipt_jax.data import builders, pipeline, tokenization
from unipt_jax.models import specs, variants
from unipt_jax.models.dual_encoder import DualEncoder, DualEncoderSpec
from unipt_jax.training import (
    curves,
    initial,
    loop,
    metrics,
    model_file,
    objective,
    optimizer,
    state,
    step,
)
from unipt_jax.training.checkpoints import Checkpoints, is_begun

log = logging.getLogger(__name__)


def build_spec(config: schema.Pretrain, vocab_size: int) -> DualEncoderSpec:
    """Returns the dual encoder that a configuration describes, for `vocab_size` token ids.

    Raises:
        ConfigError: a variant is unknown, or the text is longer than the encoder's positions.
    """
    spec = variants.dual_encoder(
        config.model.image,
        config.model.text,
        image_size=(config.image.height, config.image.width),
        vocab_size=vocab_size,
        embedding_dim=config.model.embedding_dim,
        pool_padding=config.model.pool_padding,
        dropout=config.model.dropout,
        temperature=config.contrastive.temperature,
        logit_scale=config.contrastive.logit_scale,
    )
    if config.text.length > spec.text.max_positions:
        raise ConfigError(
            f"text.length={config.text.length} exceeds the {spec.text.max_positions} positions "
            f"of model.text={config.model.text!r}"
        )
    return spec


def build_step(
    config: schema.Pretrain, model: DualEncoder, steps: int
) -> tuple[optax.GradientTransformation, step.TrainStep]:
    """Returns the optimizer and the train step of a run over `steps` steps."""
    schedule = optimizer.learning_rate_schedule(
        peak=config.optimizer.learning_rate,
        steps=steps,
        warmup=config.optimizer.warmup,
        decay=config.optimizer.decay,
    )
    adamw = optimizer.make_optimizer(
        schedule,
        beta1=config.optimizer.beta1,
        beta2=config.optimizer.beta2,
        epsilon=config.optimizer.epsilon,
        weight_decay=config.optimizer.weight_decay,
        clip_norm=config.optimizer.clip_norm,
    )
    train_step = step.make_train_step(
        objective=objective.pretraining(
            model, mlm_weight=config.mlm.weight, negatives=config.contrastive.negatives
        ),
        optimizer=adamw,
        schedule=schedule,
        accumulate=config.accumulate,
    )
    return adamw, train_step


def build_batches(
    config: schema.Pretrain, split: builders.Split, tokenizer: tokenization.Tokenizer
) -> grain.MapDataset:
    """Returns the data set of batches, of which batch k is a function of data, seed and k.

    Raises:
        ConfigError: the tokenizer cannot do the masking.
    """
    return pipeline.train_batches(
        split,
        tokenizer,
        pipeline.Preprocess(
            height=config.image.height,
            width=config.image.width,
            flip=config.image.flip,
            length=config.text.length,
            buckets=config.text.buckets,
            mlm_probability=config.mlm.probability,
            whole_word=config.mlm.whole_word,
        ),
        batch_size=config.batch_size,
        seed=config.seed,
        quarantine=config.on_bad_record == "quarantine",
        process_index=jax.process_index(),
        process_count=jax.process_count(),
    )


def check(config: schema.Pretrain, resumed: epath.PathLike | None) -> None:
    """Raises whatever `pretrain` would raise before its first step, and writes nothing.

    `resumed` is the work directory of a run that is to go on.
    """
    mesh = make_mesh(config.mesh.data, config.mesh.fsdp, config.mesh.tensor)
    require_divisible(config.batch_size, mesh)
    split = builders.open_split(config.data, "train")
    tokenizer = tokenization.load(config.text.tokenizer)
    build_batches(config, split, tokenizer)
    spec = build_spec(config, tokenizer.vocab_size)
    if resumed is None or not is_begun(resumed):
        initial.start_from(
            spec, tokenizer.vocabulary, image=config.init.image, text=config.init.text
        )


def pretrain(config: schema.Pretrain, workdir: epath.PathLike, resume: bool) -> None:
    """Pre-trains in `workdir`, which then holds checkpoints, metrics, loss curve and tokenizer.

    With `resume` the run in `workdir` goes on from its latest checkpoint, if it has one.

    Raises:
        ConfigError: a value does not fit the data, the model or the devices.
        DataError: the data set or the tokenizer cannot be read.
        CheckpointError: the checkpoint is not one of this model.
        ConversionError: the weights to start from cannot be read or are of another shape.
        DivergenceError: a metric became NaN or infinite.
    """
    workdir = epath.Path(workdir)
    mesh = make_mesh(config.mesh.data, config.mesh.fsdp, config.mesh.tensor)
    require_divisible(config.batch_size, mesh)
    split = builders.open_split(config.data, "train")
    tokenizer = tokenization.load(config.text.tokenizer)
    spec = build_spec(config, tokenizer.vocab_size)
    goes_on = resume and is_begun(workdir)
    if goes_on:
        spec, weights = model_file.read(workdir).spec, {}
    else:
        spec, weights = initial.start_from(
            spec, tokenizer.vocabulary, image=config.init.image, text=config.init.text
        )
        log_origins(spec, weights, config.init)
    model = DualEncoder(spec, dtype=jnp.dtype(config.dtype))
    dataset = build_batches(config, split, tokenizer)
    pairs = len(split.pairs[0])
    steps = config.steps or math.ceil(config.epochs * pairs / config.batch_size)
    adamw, train_step = build_step(config, model, steps)
    example = specs.abstract_batch(spec, config.batch_size)
    train_state, shardings = state.create(model, example, adamw, seed=config.seed, mesh=mesh)
    train_state = train_state.replace(params=initial.put(train_state.params, weights))
    del weights  # They would lie in memory until the run ends.
    log.info(
        "%d devices as %s; %s parameters; %d pairs, batch %d, %d steps",
        mesh.size,
        dict(mesh.shape),
        f"{trees.count_parameters(train_state.params):,}",
        pairs,
        config.batch_size,
        steps,
    )
    data_identity = {
        "dataset": split.fingerprint,
        "tokenizer": tokenizer.fingerprint,
        "steps": steps,
    }
    with Checkpoints.open(workdir, keep=config.keep_checkpoints) as checkpoints:
        data: dict[str, Any] = {"next_batch": 0}
        if goes_on:
            train_state, data = checkpoints.restore(train_state, shardings)
            _require_same_data(data, data_identity, workdir)
            log.info("resumed %s at step %d", workdir, int(train_state.step))
        tokenizer.save(workdir / model_file.TOKENIZER_DIRECTORY)
        model_file.ModelFile(spec, config.dtype, config.text.length).write(workdir)
        with (
            pipeline.Batches(dataset, start=data["next_batch"], workers=config.workers) as batches,
            metrics.Writer(workdir, step=int(train_state.step)) as writer,
        ):
            loop.train(
                state=train_state,
                train_step=loop.jit_step(train_step, shardings, mesh),
                batches=batches,
                mesh=mesh,
                steps=steps,
                log_every=config.log_every,
                checkpoint_every=config.checkpoint_every,
                checkpoints=checkpoints,
                writer=writer,
                quarantine=workdir / "quarantine.jsonl",
                image_of=lambda pair: split.images[split.pairs[0][pair]]["path"],
                data_identity=data_identity,
                config=schema.to_dict(config),
            )
    if jax.process_index() == 0:
        rows = metrics.read(workdir)
        Console().print(curves.table(rows))
        curves.plot(rows, workdir / "loss.png")
        print(f"loss curve: {workdir / 'loss.png'}")


def log_origins(spec: DualEncoderSpec, weights: Mapping[str, Any], origin: schema.Init) -> None:
    """Says of each part whether it starts from other weights or at random."""
    parts = {"image_encoder": origin.image, "text_encoder": origin.text}
    if spec.mlm:
        parts["mlm_head"] = origin.text
    for part, name in parts.items():
        log.info("%s starts %s", part, f"from {name}" if part in weights else "at random")


def _require_same_data(
    stored: Mapping[str, Any], now: Mapping[str, Any], workdir: epath.Path
) -> None:
    differences = [
        f"{name} {stored[name]!r} before, {value!r} now"
        for name, value in now.items()
        if stored[name] != value
    ]
    if differences:
        raise CheckpointError(
            f"{workdir} was trained on other data: {'; '.join(differences)}; resume with the data "
            "set and the tokenizer of before, or start anew with --overwrite"
        )
