"""From a configuration to a finished run: the parts, put together."""

import dataclasses
import io
import itertools
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
from rich.console import Console, RenderableType

from unipt_jax.config import schema
from unipt_jax.core import distributed, trees
from unipt_jax.core.errors import CheckpointError, ConfigError, DataError
from unipt_jax.core.files import absolute, write_bytes
from unipt_jax.core.sharding import batch_rows, make_mesh, require_divisible
from unipt_jax.data import builders, pipeline, tokenization
from unipt_jax.evaluation import features, retrieval
from unipt_jax.models import specs, variants
from unipt_jax.models.compute import Compute
from unipt_jax.models.dual_encoder import DualEncoder, DualEncoderSpec
from unipt_jax.training import (
    batch_picture,
    curves,
    dry_run,
    initial,
    loop,
    metrics,
    model_file,
    objective,
    optimizer,
    state,
    step,
    summary,
    trackers,
)
from unipt_jax.training.checkpoints import Checkpoints, is_begun, step_reached

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
    schedule = optimizer.learning_rate_schedule(**_schedule(config, steps))
    transform = optimizer.make_optimizer(
        schedule,
        beta1=how.beta1,
        beta2=how.beta2,
        epsilon=how.epsilon,
        weight_decay=how.weight_decay,
        clip_norm=how.clip_norm,
        name=how.name,
        factors=_rate_factors(config),
    )
    train_step = step.make_train_step(
        objective=objective.weighted(model, config.loss, reads_masked=config.text.noise == "mask"),
        optimizer=transform,
        schedule=schedule,
        accumulate=config.accumulate,
        ema=config.ema,
    )
    return transform, train_step


def _schedule(config: schema.Train, steps: int) -> dict[str, Any]:
    """Returns the arguments of the learning rate's schedule over `steps` steps."""
    how = config.optimizer
    return {
        "peak": how.learning_rate,
        "steps": steps,
        "warmup": how.warmup,
        "decay": how.decay,
        "start": how.start,
        "end": how.end,
    }


def _rate_factors(config: schema.Train) -> dict[str, float]:
    """Returns the factors on the learning rate by group of parameters."""
    how = config.optimizer
    return {"image": how.image, "text": how.text, "new": how.new, "bias": how.bias}


def build_preprocess(config: schema.Train, spec: DualEncoderSpec) -> pipeline.Preprocess:
    """Returns how pairs become examples; what augmentation bares becomes `spec`'s mean pixel."""
    return pipeline.Preprocess(
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
    )


def build_batches(
    config: schema.Train,
    split: builders.Split,
    tokenizer: tokenization.Tokenizer,
    spec: DualEncoderSpec,
    epoch: np.ndarray | None,
    mesh: Mesh,
) -> grain.MapDataset:
    """Returns the data set of batches, of which batch k is a function of data, seed and k.

    Raises:
        ConfigError: the tokenizer cannot do the masking, the identities are too few, or the batch
            does not split evenly over the mesh.
        DataError: there is one caption alone, or one identity, which a loss would tell from others.
    """
    if len(split.pairs[0]) == 1:
        raise DataError(
            f"{split.directory}: split {split.name!r} has one caption alone; there is nothing to "
            "compare it with"
        )
    idle = config.loss.idle_with_one_identity(classes=True)
    if idle and split.identity_count == 1:
        raise DataError(
            f"{split.directory}: split {split.name!r} has one identity alone, and {idle} would "
            "tell it from others; add some, or take other losses"
        )
    return pipeline.train_batches(
        split,
        tokenizer,
        build_preprocess(config, spec),
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


def steps_of(config: schema.Train, pairs: int) -> int:
    """Returns the steps of a run whose epochs have so many pairs.

    Raises:
        ConfigError: they are more than can be counted.
    """
    wanted = config.steps or config.epochs * pairs / config.batch_size
    if wanted > schema.MAX_COUNT:
        raise ConfigError(
            f"epochs={config.epochs:g} of {pairs} captions in batches of "
            f"batch_size={config.batch_size} are more than {schema.MAX_COUNT} steps; lower epochs"
        )
    return math.ceil(wanted)


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

    But for a tracker that cannot be reached: that shows when its run is opened.

    `resumed` is the work directory of a run that is to go on.
    """
    trackers.require(config.tracker)
    mesh = make_mesh(config.mesh.data, config.mesh.fsdp, config.mesh.tensor)
    require_divisible(config.batch_size, mesh)
    split, epoch = open_data(config)
    open_evaluation(config)
    tokenizer = tokenization.load(config.text.tokenizer)
    spec = _spec(config, tokenizer, split)
    build_batches(config, split, tokenizer, spec, epoch, mesh)
    steps_of(config, len(split.pairs[0] if epoch is None else epoch))
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


@dataclasses.dataclass(frozen=True)
class _Parts:
    """What a run is made of, before anything is allocated or written.

    `pairs` are those of an epoch; `reached` is the step that it goes on from, None at its start.
    """

    mesh: Mesh
    split: builders.Split
    compared: builders.Split | None
    tokenizer: tokenization.Tokenizer
    pairs: int
    steps: int
    data_identity: Mapping[str, Any]
    reached: int | None
    spec: DualEncoderSpec
    model: DualEncoder
    dataset: grain.MapDataset
    transform: optax.GradientTransformation
    train_step: step.TrainStep


def _assemble(
    config: schema.Train, workdir: epath.Path, resume: bool
) -> tuple[_Parts, Mapping[str, Any]]:
    """Returns the parts of a run, and the weights that it starts from."""
    if config.compute.cache:
        keep_compiled(config.compute.cache)
    mesh = make_mesh(config.mesh.data, config.mesh.fsdp, config.mesh.tensor)
    require_divisible(config.batch_size, mesh)
    (split, epoch), compared = open_data(config), open_evaluation(config)
    tokenizer = tokenization.load(config.text.tokenizer)
    pairs = len(split.pairs[0] if epoch is None else epoch)
    steps = steps_of(config, pairs)
    data_identity = {
        "dataset": split.fingerprint,
        "tokenizer": tokenizer.fingerprint,
        "steps": steps,
    }
    distributed.require_same("data set, tokenizer or number of steps", data_identity)
    spec = _spec(config, tokenizer, split)
    reached = step_reached(workdir) if resume else None
    if reached is None:
        spec, weights = start_from(config, spec, tokenizer)
    else:
        spec, weights = model_file.read(workdir).spec, {}
    model = build_model(config, spec)
    dataset = build_batches(config, split, tokenizer, spec, epoch, mesh)
    transform, train_step = build_step(config, model, steps)
    parts = _Parts(
        mesh=mesh,
        split=split,
        compared=compared,
        tokenizer=tokenizer,
        pairs=pairs,
        steps=steps,
        data_identity=data_identity,
        reached=reached,
        spec=spec,
        model=model,
        dataset=dataset,
        transform=transform,
        train_step=train_step,
    )
    return parts, weights


def train(config: schema.Train, workdir: epath.PathLike, resume: bool) -> None:
    """Trains in `workdir`, which then holds checkpoints, metrics, loss curve and tokenizer.

    With `resume` the run in `workdir` goes on from its latest checkpoint, if it has one. With
    `config.dry_run` it is described instead, and nothing is written in `workdir`.

    Raises:
        ConfigError: a value does not fit the data, the model or the devices, processes have other
            data, or the tracker cannot be reached.
        DataError: the data set or the tokenizer cannot be read.
        CheckpointError: the checkpoint is not one of this model.
        ConversionError: the weights to start from cannot be read or are of another shape.
        DivergenceError: a metric became NaN or infinite.
    """
    workdir = epath.Path(workdir)
    parts, weights = _assemble(config, workdir, resume)
    if config.dry_run:
        _describe(config, workdir, parts, weights)
        return
    mesh, model, steps = parts.mesh, parts.model, parts.steps
    example = specs.abstract_batch(parts.spec, config.batch_size)
    train_state, shardings = state.create(
        model, example, parts.transform, seed=config.seed, mesh=mesh, ema=config.ema
    )
    if distributed.is_first():
        told = _summary(config, parts, train_state.params, weights)
        Console(stderr=True, highlight=False).print(told)
    params = initial.put(train_state.params, weights)
    average = jax.tree.map(jnp.copy, params) if config.ema else None
    train_state = train_state.replace(params=params, average=average)
    del weights, params, average  # They would lie in memory until the run ends.
    with Checkpoints.open(workdir, keep=config.keep_checkpoints) as checkpoints:
        data: dict[str, Any] = {"next_batch": 0}
        if parts.reached is not None:
            train_state, data = checkpoints.restore(train_state, shardings)
            _require_same_data(data, parts.data_identity, workdir)
            log.info("resumed %s at step %d", workdir, int(train_state.step))
        if distributed.is_first():
            described = model_file.ModelFile(parts.spec, config.dtype, config.text.length)
            described.write(workdir, parts.tokenizer)
        with distributed.together():
            name = config.tracker if distributed.is_first() else "none"
            tracker = trackers.start(name, workdir, schema.to_dict(config))
        with (
            tracker,
            pipeline.Batches(
                parts.dataset, start=data["next_batch"], workers=config.workers
            ) as batches,
            metrics.Writer(workdir, step=int(train_state.step), send=tracker.write) as writer,
        ):
            loop.train(
                state=train_state,
                train_step=loop.jit_step(parts.train_step, shardings, mesh),
                batches=batches,
                mesh=mesh,
                steps=steps,
                log_every=config.log_every,
                checkpoint_every=config.checkpoint_every,
                checkpoints=checkpoints,
                writer=writer,
                quarantine=workdir / "quarantine.jsonl",
                image_of=lambda pair: parts.split.images[parts.split.pairs[0][pair]]["path"],
                data_identity=parts.data_identity,
                config=schema.to_dict(config),
                score=None
                if parts.compared is None
                else _scorer(config, model, parts.compared, parts.tokenizer, mesh),
            )
    if distributed.is_first():
        rows = metrics.read(workdir)
        Console().print(curves.table(rows))
        curves.plot(rows, workdir / "loss.png")
        print(f"loss curve: {workdir / 'loss.png'}")


def _describe(
    config: schema.Train, workdir: epath.Path, parts: _Parts, weights: Mapping[str, Any]
) -> None:
    """Prints what a run is about to do and what its step takes; draws its first batch.

    The picture lies beside the work directory, which may be in use, or is to be made by a run.
    """
    number = parts.reached or 0
    batch = parts.dataset[number]
    example = specs.abstract_batch(parts.spec, config.batch_size)
    shapes, shardings = state.abstract(
        parts.model, example, parts.transform, mesh=parts.mesh, ema=config.ema
    )
    longest = pipeline.longest_batch(build_preprocess(config, parts.spec), config.batch_size)
    compiled = dry_run.compile_step(
        parts.train_step,
        shapes,
        shardings,
        {name: jax.ShapeDtypeStruct(*leaf) for name, leaf in longest.items()},
        parts.mesh,
    )
    if not distributed.is_first():
        return
    console = Console(highlight=False)
    console.print(_summary(config, parts, shapes.params, weights))
    whole = {
        name: jax.ShapeDtypeStruct((config.batch_size, *array.shape[1:]), array.dtype)
        for name, array in batch.items()
    }
    console.print(dry_run.shape_table(f"batch {number}", whole), "")
    device = parts.mesh.devices.flat[0]
    memory = dry_run.memory(compiled, dry_run.bytes_limit(device))
    title = f"memory of a step on each device, texts of {config.text.length} tokens"
    console.print(dry_run.memory_table(title, memory) if memory else f"{title}: not told", "")
    picture = batch_picture.draw(
        batch,
        parts.tokenizer,
        title=f"{workdir}: of batch {number}, {config.batch_size} examples",
        masked=bool(config.loss.mlm) or config.text.noise == "mask",
    )
    buffer = io.BytesIO()
    picture.save(buffer, "PNG")
    place = absolute(workdir).parent / f"{absolute(workdir).name}.batch_{number}.png"
    write_bytes(place, buffer.getvalue())
    print(f"the batch as a picture: {place}")


def _summary(
    config: schema.Train, parts: _Parts, params: Mapping[str, Any], weights: Mapping[str, Any]
) -> RenderableType:
    """Returns what a run is about to do; `params` may be shapes, `weights` is what it starts from.

    Of several processes one alone may call it: it asks the others for nothing.
    """
    mesh, how = parts.mesh, config.optimizer
    schedule = summary.Schedule(**_schedule(config, parts.steps))
    ways = mesh.shape["data"] * mesh.shape["fsdp"]
    known = parts.split.tokenizer_fingerprint == parts.tokenizer.fingerprint
    lengths = parts.split.text_lengths
    facts = {
        "devices": summary.devices(
            mesh.size, mesh.devices.flat[0].device_kind, jax.process_count()
        ),
        "mesh": " x ".join(f"{axis} {size}" for axis, size in mesh.shape.items()),
        "batch": summary.batch(config.batch_size, ways, config.accumulate),
        "steps": summary.duration(parts.steps, config.batch_size, parts.pairs),
        "texts": summary.texts(config.text.length, lengths.tolist() if known else ()),
        "learning rate": f"{how.name}, {summary.learning_rate(schedule)}",
    }
    data, factors = [], _rate_factors(config)
    for directory, often in itertools.zip_longest(config.data, config.repeats, fillvalue=1):
        manifest = builders.read_manifest(directory)
        counts = manifest["splits"]["train"]
        data.append(
            summary.DataSet(
                directory=directory,
                images=counts["images"],
                pairs=counts["captions"],
                identities=counts["identities"],
                quarantined=manifest["quarantined"],
                repeats=often,
            )
        )
    starts = origins(config, params, weights, parts.reached)
    model = []
    for name, part in params.items():
        biases = [path for path in trees.flatten({name: part}) if path.endswith("/bias")]
        model.append(
            summary.Part(
                name=name,
                parameters=trees.count_parameters(part),
                origin=starts[name],
                factor=optimizer.rate_factor(name, factors),
                bias_factor=optimizer.rate_factor(biases[0], factors) if biases else None,
            )
        )
    return summary.summary(facts, data, model, how.learning_rate)


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


def origins(
    config: schema.Train,
    params: Mapping[str, Any],
    weights: Mapping[str, Any],
    reached: int | None,
) -> dict[str, str]:
    """Returns where each part of the model starts: other weights, at random, or a step reached."""
    if reached is not None:
        return dict.fromkeys(params, f"step {reached} of this run")
    sides = {
        part: config.init_image if part.startswith("image") else config.init_text for part in params
    }
    return {
        part: f"from {config.init or side}" if part in weights else "at random"
        for part, side in sides.items()
    }


def _require_same_data(
    stored: Mapping[str, Any], now: Mapping[str, Any], workdir: epath.Path
) -> None:
    lacking = {"next_batch", *now} - stored.keys()
    if lacking:
        raise CheckpointError(
            f"{workdir}: its checkpoint does not tell {', '.join(sorted(lacking))}, so another "
            "version of unipt_jax wrote it; resume with that version, or start anew with "
            "--overwrite"
        )
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
