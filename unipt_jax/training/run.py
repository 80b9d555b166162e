"""From a configuration to a finished run: the parts, put together."""

import logging
import math
from collections.abc import Mapping
from typing import Any

import grain
import jax
import jax.numpy as jnp
import numpy as np
import optax
from etils import epath
from jax.experimental.compilation_cache import compilation_cache
from jax.sharding import Mesh
from rich.console import Console

from unipt_jax.config import schema
from unipt_jax.core import distributed, trees
from unipt_jax.core.errors import CheckpointError, ConfigError
from unipt_jax.core.sharding import batch_rows, make_mesh, require_divisible
from unipt_jax.data import builders, pipeline, tokenization
from unipt_jax.evaluation import features, retrieval
from unipt_jax.models import specs, variants
from unipt_jax.models.compute import Compute
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


def keep_compiled(directory: epath.PathLike) -> None:
    """Makes JAX look for compiled programs in a directory, and put new ones there."""
    jax.config.update("jax_compilation_cache_dir", str(epath.Path(directory).expanduser()))
    compilation_cache.reset_cache()  # One that looks elsewhere already would stay in force.
    # Hundreds of small programs make up much of a start.
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)


def build_spec(
    config: schema.Train, *, vocab_size: int, end_token: int, identities: int
) -> DualEncoderSpec:
    """Returns the dual encoder that a configuration describes.

    Args:
        config: of the run.
        vocab_size: number of token ids.
        end_token: id that ends a text.
        identities: in the training data; the model tells them apart if a loss asks for it.

    Raises:
        ConfigError: a variant is unknown, the text is longer than the encoder's positions, or its
            attention is to be both fused and dropped.
    """
    model, similarity, loss = config.model, config.similarity, config.loss
    spec = variants.dual_encoder(
        model.image,
        model.text,
        image_size=(config.image.height, config.image.width),
        vocab_size=vocab_size,
        end_token=end_token,
        embedding_dim=model.embedding_dim,
        pooling=model.pooling,
        pool_padding=model.pool_padding,
        dropout=model.dropout,
        mlm=loss.mlm > 0,
        temperature=similarity.temperature,
        logit_scale=similarity.logit_scale,
        logit_bias=loss.sigmoid > 0,
        cross_modal=model.cross_modal,
        pgu=model.pgu,
        selection=model.selection,
        identities=identities if loss.identity else 0,
    )
    if config.text.length > spec.text.max_positions:
        raise ConfigError(
            f"text.length={config.text.length} exceeds the {spec.text.max_positions} positions "
            f"of model.text={model.text!r}"
        )
    if config.compute.attention == "fused" and getattr(spec.text, "dropout", 0):
        raise ConfigError(
            "compute.attention='fused' cannot drop attention probabilities, as "
            f"model.dropout={model.dropout} asks of model.text={model.text!r}; set "
            "model.dropout=0, or compute.attention='plain'"
        )
    return spec


def build_model(config: schema.Train, spec: DualEncoderSpec) -> DualEncoder:
    """Returns the module of `spec`, computed as a configuration says."""
    how = config.compute
    compute = Compute(scan=how.scan, remat=how.remat, attention=how.attention)
    return DualEncoder(spec, dtype=jnp.dtype(config.dtype), compute=compute)


def build_step(
    config: schema.Train, model: DualEncoder, steps: int
) -> tuple[optax.GradientTransformation, step.TrainStep]:
    """Returns the optimizer and the train step of a run over `steps` steps."""
    how = config.optimizer
    schedule = optimizer.learning_rate_schedule(
        peak=how.learning_rate,
        steps=steps,
        warmup=how.warmup,
        decay=how.decay,
        start=how.start,
        end=how.end,
    )
    transform = optimizer.make_optimizer(
        schedule,
        beta1=how.beta1,
        beta2=how.beta2,
        epsilon=how.epsilon,
        weight_decay=how.weight_decay,
        clip_norm=how.clip_norm,
        name=how.name,
        factors={"image": how.image, "text": how.text, "new": how.new, "bias": how.bias},
    )
    train_step = step.make_train_step(
        objective=objective.weighted(model, config.loss, reads_masked=config.text.noise == "mask"),
        optimizer=transform,
        schedule=schedule,
        accumulate=config.accumulate,
        ema=config.ema,
    )
    return transform, train_step


def build_batches(
    config: schema.Train,
    split: builders.Split,
    tokenizer: tokenization.Tokenizer,
    spec: DualEncoderSpec,
    epoch: np.ndarray | None,
    mesh: Mesh,
) -> grain.MapDataset:
    """Returns the data set of batches, of which batch k is a function of data, seed and k.

    What augmentation bares becomes the mean pixel of `spec`.

    Raises:
        ConfigError: the tokenizer cannot do the masking, the identities are too few, or the batch
            does not split evenly over the mesh.
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
            padding=config.image.padding,
            pool=config.image.pool,
            erase=config.image.erase,
            fill=tuple(round(255 * mean) for mean in spec.image.mean),
            text_noise=config.text.noise,
            text_noise_probability=config.text.noise_probability,
        ),
        batch_size=config.batch_size,
        seed=config.seed,
        instances=config.instances,
        epoch=epoch,
        quarantine=config.on_bad_record == "quarantine",
        rows=batch_rows(config.batch_size, mesh),
    )


def open_data(config: schema.Train) -> tuple[builders.Split, np.ndarray | None]:
    """Returns the training split of all of a configuration's data sets, and the pairs of an epoch.

    Raises:
        DataError: one of them cannot be read.
    """
    parts = [builders.open_split(directory, "train") for directory in config.data]
    epoch = builders.repeated(parts, config.repeats) if config.repeats else None
    return builders.join(parts), epoch


def open_evaluation(config: schema.Train) -> builders.Split | None:
    """Returns the split on which checkpoints are compared, of the first data set; None without.

    Raises:
        DataError: it is missing, cannot be read, or stores pixels of another size.
    """
    if not config.evaluate:
        return None
    split = builders.open_split(config.data[0], "test" if config.paper_protocol else "val")
    split.require_size(config.image.height, config.image.width)
    return split


def check(config: schema.Train, resumed: epath.PathLike | None) -> None:
    """Raises whatever `train` would raise before its first step, and writes nothing.

    `resumed` is the work directory of a run that is to go on.
    """
    mesh = make_mesh(config.mesh.data, config.mesh.fsdp, config.mesh.tensor)
    require_divisible(config.batch_size, mesh)
    split, epoch = open_data(config)
    open_evaluation(config)
    tokenizer = tokenization.load(config.text.tokenizer)
    spec = _spec(config, tokenizer, split)
    build_batches(config, split, tokenizer, spec, epoch, mesh)
    if resumed is None or not is_begun(resumed):
        start_from(config, spec, tokenizer)


def _spec(
    config: schema.Train, tokenizer: tokenization.Tokenizer, split: builders.Split
) -> DualEncoderSpec:
    return build_spec(
        config,
        vocab_size=tokenizer.vocab_size,
        end_token=tokenizer.end,
        identities=split.identity_count,
    )


def start_from(
    config: schema.Train, spec: DualEncoderSpec, tokenizer: tokenization.Tokenizer
) -> tuple[DualEncoderSpec, Mapping[str, Any]]:
    """Returns what `initial.start_from` returns for a configuration."""
    return initial.start_from(
        spec,
        tokenizer.vocabulary,
        whole=config.init,
        image=config.init_image,
        text=config.init_text,
    )


def train(config: schema.Train, workdir: epath.PathLike, resume: bool) -> None:
    """Trains in `workdir`, which then holds checkpoints, metrics, loss curve and tokenizer.

    With `resume` the run in `workdir` goes on from its latest checkpoint, if it has one.

    Raises:
        ConfigError: a value does not fit the data, the model or the devices, or processes have
            other data.
        DataError: the data set or the tokenizer cannot be read.
        CheckpointError: the checkpoint is not one of this model.
        ConversionError: the weights to start from cannot be read or are of another shape.
        DivergenceError: a metric became NaN or infinite.
    """
    workdir = epath.Path(workdir)
    if config.compute.cache:
        keep_compiled(config.compute.cache)
    mesh = make_mesh(config.mesh.data, config.mesh.fsdp, config.mesh.tensor)
    require_divisible(config.batch_size, mesh)
    (split, epoch), compared = open_data(config), open_evaluation(config)
    tokenizer = tokenization.load(config.text.tokenizer)
    pairs = len(split.pairs[0] if epoch is None else epoch)
    steps = config.steps or math.ceil(config.epochs * pairs / config.batch_size)
    data_identity = {
        "dataset": split.fingerprint,
        "tokenizer": tokenizer.fingerprint,
        "steps": steps,
    }
    distributed.require_same("data set, tokenizer or number of steps", data_identity)
    spec = _spec(config, tokenizer, split)
    goes_on = resume and is_begun(workdir)
    if goes_on:
        spec, weights = model_file.read(workdir).spec, {}
    else:
        spec, weights = start_from(config, spec, tokenizer)
    model = build_model(config, spec)
    dataset = build_batches(config, split, tokenizer, spec, epoch, mesh)
    transform, train_step = build_step(config, model, steps)
    example = specs.abstract_batch(spec, config.batch_size)
    train_state, shardings = state.create(
        model, example, transform, seed=config.seed, mesh=mesh, ema=config.ema
    )
    if not goes_on:
        log_origins(config, train_state.params, weights)
    params = initial.put(train_state.params, weights)
    average = jax.tree.map(jnp.copy, params) if config.ema else None
    train_state = train_state.replace(params=params, average=average)
    del weights, params, average  # They would lie in memory until the run ends.
    log.info(
        "%d devices as %s; %s parameters; %d pairs, batch %d, %d steps",
        mesh.size,
        dict(mesh.shape),
        f"{trees.count_parameters(train_state.params):,}",
        pairs,
        config.batch_size,
        steps,
    )
    with Checkpoints.open(workdir, keep=config.keep_checkpoints) as checkpoints:
        data: dict[str, Any] = {"next_batch": 0}
        if goes_on:
            train_state, data = checkpoints.restore(train_state, shardings)
            _require_same_data(data, data_identity, workdir)
            log.info("resumed %s at step %d", workdir, int(train_state.step))
        if distributed.is_first():
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
                score=None
                if compared is None
                else _scorer(config, model, compared, tokenizer, mesh),
            )
    if distributed.is_first():
        rows = metrics.read(workdir)
        Console().print(curves.table(rows))
        curves.plot(rows, workdir / "loss.png")
        print(f"loss curve: {workdir / 'loss.png'}")


def _scorer(
    config: schema.Train,
    model: DualEncoder,
    split: builders.Split,
    tokenizer: tokenization.Tokenizer,
    mesh: Mesh,
) -> loop.Score:
    """Returns what measures parameters on a split, by all of the model's features together."""

    def score(params: Any) -> metrics.Row:
        found = features.extract(
            model,
            params,
            split,
            tokenizer,
            text_length=config.text.length,
            batch_size=config.batch_size,
            quarantine=config.on_bad_record == "quarantine",
            mesh=mesh,
        )
        text, image = (
            features.concatenated(list(side.values())) for side in (found.text, found.image)
        )
        owners = split.identities[split.pairs[0][found.pairs]]
        ranking = retrieval.rank_features(text, image, owners, split.identities[found.images])
        return {f"{split.name}/{name}": value for name, value in ranking.metrics().items()}

    return score


def log_origins(
    config: schema.Train, params: Mapping[str, Any], weights: Mapping[str, Any]
) -> None:
    """Says of each part of the model whether it starts from other weights or at random."""
    for part in params:
        side = config.init_image if part.startswith("image") else config.init_text
        origin = f"from {config.init or side}" if part in weights else "at random"
        log.info("%s starts %s", part, origin)


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
