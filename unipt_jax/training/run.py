"""From a configuration to a finished run: the parts, put together."""

import logging
import math
from collections.abc import Mapping
from typing import Any

import flax.linen as nn
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
from unipt_jax.models import variants
from unipt_jax.models.dual_encoder import DualEncoder
from unipt_jax.training import curves, loop, metrics, objective, optimizer, state, step
from unipt_jax.training.checkpoints import Checkpoints

log = logging.getLogger(__name__)
TOKENIZER_DIRECTORY = "tokenizer"


def build_model(config: schema.Pretrain, vocab_size: int) -> DualEncoder:
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
    return DualEncoder(spec, dtype=jnp.dtype(config.dtype))


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


def abstract_batch(model: DualEncoder, batch_size: int) -> dict[str, jax.ShapeDtypeStruct]:
    """Returns the shapes and types of the shortest batch that the model takes."""
    shapes = {
        "image": ((*model.spec.image.image_size, 3), jnp.uint8),
        "text": ((3,), jnp.int32),
        "text_mask": ((3,), jnp.bool_),
        "masked_text": ((3,), jnp.int32),
        "mlm_positions": ((1,), jnp.int32),
    }
    return {
        name: jax.ShapeDtypeStruct((batch_size, *shape), dtype)
        for name, (shape, dtype) in shapes.items()
    }


def abstract_params(model: DualEncoder) -> Any:
    """Returns the shapes and types of a model's parameters; nothing is allocated."""
    initialise = lambda key, batch: model.init(key, batch, train=False)["params"]  # noqa: E731
    abstract = jax.eval_shape(initialise, jax.random.key(0), abstract_batch(model, 1))
    return nn.meta.unbox(abstract)


def check(config: schema.Pretrain) -> None:
    """Raises whatever `pretrain` would raise before its first step, and writes nothing."""
    mesh = make_mesh(config.mesh.data, config.mesh.fsdp, config.mesh.tensor)
    require_divisible(config.batch_size, mesh)
    builders.open_split(config.data, "train")
    build_model(config, tokenization.load(config.text.tokenizer).vocab_size)


def pretrain(config: schema.Pretrain, workdir: epath.PathLike, resume: bool) -> None:
    """Pre-trains in `workdir`, which then holds checkpoints, metrics, loss curve and tokenizer.

    With `resume` the run in `workdir` goes on from its latest checkpoint, if it has one.

    Raises:
        ConfigError: a value does not fit the data, the model or the devices.
        DataError: the data set or the tokenizer cannot be read.
        CheckpointError: the checkpoint is not one of this model.
        DivergenceError: a metric became NaN or infinite.
    """
    workdir = epath.Path(workdir)
    mesh = make_mesh(config.mesh.data, config.mesh.fsdp, config.mesh.tensor)
    require_divisible(config.batch_size, mesh)
    split = builders.open_split(config.data, "train")
    tokenizer = tokenization.load(config.text.tokenizer)
    model = build_model(config, tokenizer.vocab_size)
    dataset = pipeline.train_batches(
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
    pairs = len(split.pairs[0])
    steps = config.steps or math.ceil(config.epochs * pairs / config.batch_size)
    adamw, train_step = build_step(config, model, steps)
    example = abstract_batch(model, config.batch_size)
    train_state, shardings = state.create(model, example, adamw, seed=config.seed, mesh=mesh)
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
        if resume and checkpoints.latest_step() is not None:
            train_state, data = checkpoints.restore(train_state, shardings)
            _require_same_data(data, data_identity, workdir)
            log.info("resumed %s at step %d", workdir, int(train_state.step))
        tokenizer.save(workdir / TOKENIZER_DIRECTORY)
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
