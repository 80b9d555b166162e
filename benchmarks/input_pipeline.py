"""The training input pipeline against a PyTorch `DataLoader` with Pillow, as published loaders do.

Both give batches of shuffled pairs: images uint8[B, 384, 128, 3], half of them mirrored, and the
tokens of their captions, by the same tokenizer, plain and masked for the language model, as IRRA's
loader has them. Pixels and tokens of both are found equal first. The peer opens and decodes JPEG
files and resizes them by Pillow's bicubic filter (T.Resize of torchvision does no more), in the
process on one core, in as many workers as cores on more, and tokenises captions as they come. Ours
reads a prepared data set that keeps the JPEG files, on more cores in as many workers, too; or, by
threads, one that stores pixels (`--config.pixels=384,128`). Tokens are stored with both.

The files are the sample's crops, enlarged to `height` since they are miniatures. Everything lies in
memory: no disk is timed. Each number of cores has a process of its own, in which all take turns:
one side's clock starts when the others have read ahead all they may, and rest, and when what the
side itself has read ahead is used up.

Usage: python benchmarks/input_pipeline.py [--height=256] [--batch_size=64] [--batches=24]
    [--rounds=5] [--json=FILE]
"""

import concurrent.futures
import dataclasses
import json
import multiprocessing
import os
import random
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import compare
import numpy as np
from PIL import Image

from unipt_jax.data import builders, pipeline, tokenization
from unipt_jax.data.annotations import Record

SAMPLE = Path("examples/pedestrians")
TOKENIZER = "examples/tokenizer"
HEIGHT, WIDTH, LENGTH = 384, 128, 77
COPIES = 8  # Of each crop: Grain shuffles a few hundred pairs more slowly than thousands.
AHEAD = 24  # Batches, more than either reads ahead.
REST = 2.0  # Seconds, more than reading ahead takes.


def write_files(directory: Path, height: int) -> list[Record]:
    """Writes the sample's crops as JPEG files of one height, several of each; returns records."""
    records = []
    for row in json.loads((SAMPLE / "reid_raw.json").read_text()):
        crop = Image.open(SAMPLE / "imgs" / row["file_path"])
        size = max(1, round(crop.width * height / crop.height)), height
        enlarged, captions = crop.resize(size, Image.Resampling.BICUBIC), tuple(row["captions"])
        for copy in range(COPIES):
            file = f"{copy}-{row['file_path']}"
            enlarged.save(directory / file)
            records.append(Record(file, captions, str(row["id"]), "train", len(records)))
    return records


def prepare(records: Sequence[Record], files: Path, workdir: Path, pixels) -> None:
    """Writes a prepared data set."""
    builders.write(
        records,
        source=files,
        name="crops",
        workdir=workdir,
        tokenizer=TOKENIZER,
        quarantined=0,
        notices={},
        pixels=pixels,
    )


def ours(directory: Path, batch_size: int, workers: int) -> pipeline.Batches:
    """Returns the batches that training reads."""
    split = builders.open_split(directory, "train")
    how = pipeline.Preprocess(
        height=HEIGHT,
        width=WIDTH,
        flip=0.5,
        length=LENGTH,
        buckets=(),
        mlm_probability=0.15,
        whole_word=False,
    )
    tokenizer = tokenization.load(TOKENIZER)
    dataset = pipeline.train_batches(split, tokenizer, how, batch_size=batch_size, seed=0)
    return pipeline.Batches(dataset, workers=workers)


class Published:
    """A data set of pairs as PyTorch code has it."""

    def __init__(self, records: Sequence[Record], files: Path):
        self._pairs = [(files / it.image, text) for it in records for text in it.captions]
        self._tokenizer = tokenization.load(TOKENIZER)

    def __len__(self) -> int:
        return len(self._pairs)

    def __getitem__(self, index: int) -> dict[str, Any]:
        """Opens, decodes, resizes and perhaps mirrors an image; tokenises and masks its caption."""
        import torch

        path, caption = self._pairs[index]
        image = Image.open(path).convert("RGB").resize((WIDTH, HEIGHT), Image.Resampling.BICUBIC)
        if random.random() < 0.5:
            image = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
        ids = self._tokenizer.encode(caption, LENGTH).tolist()
        masked, labels = ids.copy(), [0] * len(ids)
        for place in range(1, len(ids) - 1):
            chance = random.random() / 0.15
            if chance < 1:
                labels[place] = ids[place]
                if chance < 0.8:
                    masked[place] = self._tokenizer.mask
                elif chance < 0.9:
                    masked[place] = random.randrange(self._tokenizer.vocab_size)
        texts = {"text": ids, "masked_text": masked, "mlm_labels": labels}
        padding = [self._tokenizer.pad] * (LENGTH - len(ids))
        return {
            "image": torch.from_numpy(np.array(image)),
            **{name: torch.tensor(text + padding) for name, text in texts.items()},
        }


def theirs(dataset: Published, batch_size: int, workers: int) -> Iterator[dict[str, Any]]:
    """Returns endless batches of the peer."""
    import torch

    torch.set_num_threads(1)
    sampler = torch.utils.data.RandomSampler(dataset, replacement=True, num_samples=1 << 40)
    loader = torch.utils.data.DataLoader(
        dataset, batch_size, sampler=sampler, num_workers=workers, drop_last=True
    )
    return iter(loader)


def require_equal(files: dict[str, Any], pixels: dict[str, Any], dataset: Published) -> None:
    """Compares a batch of the two data sets with one another and with the peer's pairs."""
    for name in files:
        np.testing.assert_array_equal(files[name], pixels[name])
    for row, pair in enumerate(files["record"].tolist()):
        wanted, image = dataset[pair], files["image"][row]
        np.testing.assert_array_equal(files["text"][row], wanted["text"])
        same = [np.array_equal(one, wanted["image"]) for one in (image, image[:, ::-1])]
        assert any(same), f"pair {pair} has other pixels"


def take(batches: Iterator[Any], count: int) -> Callable[[], None]:
    """Returns what takes batches."""

    def program() -> None:
        for _ in range(count):
            next(batches)

    return program


def times(
    directory: Path,
    records: Sequence[Record],
    cores: int,
    batch_size: int,
    batches: int,
    rounds: int,
) -> np.ndarray:
    """Returns seconds f64[rounds, 3]: ours from JPEG files, ours from pixels, the peer's."""
    os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:cores])
    workers = 0 if cores == 1 else cores
    dataset = Published(records, directory / "files")
    # Its workers are forked, which must come before there are threads.
    peer = theirs(dataset, batch_size, workers)
    with (
        ours(directory / "jpeg", batch_size, workers) as files,
        ours(directory / "pixels", batch_size, 0) as pixels,
    ):
        require_equal(next(files), next(pixels), dataset)
        measured = []
        for _ in range(rounds):
            turn = []
            for side in (files, pixels, peer):
                time.sleep(REST)
                take(side, AHEAD)()
                turn.append(compare.seconds(take(side, batches)))
            measured.append(turn)
    return np.array(measured)


def measure(height: int, batch_size: int, batches: int, rounds: int) -> list[compare.Row]:
    """Times all on one core and on two."""
    rows = []
    with tempfile.TemporaryDirectory(dir="/dev/shm" if os.path.isdir("/dev/shm") else None) as top:
        directory = Path(top)
        (directory / "files").mkdir()
        records = write_files(directory / "files", height)
        prepare(records, directory / "files", directory / "jpeg", None)
        prepare(records, directory / "files", directory / "pixels", (HEIGHT, WIDTH))
        for cores, name in ((1, "one core"), (2, "two cores")):
            spawn = multiprocessing.get_context("spawn")
            with concurrent.futures.ProcessPoolExecutor(1, spawn) as alone:
                work = directory, records, cores, batch_size, batches, rounds
                files, pixels, peer = alone.submit(times, *work).result().T
            scale = batch_size * batches / 1000
            for what, side, bar in (("JPEG crops", files, 1.0), ("stored pixels", pixels, 5.0)):
                row = compare.row(f"input pipeline, {what}, {name}", side, peer, bar, scale)
                rows.append(dataclasses.replace(row, unit="ms an image"))
    return rows


if __name__ == "__main__":
    compare.main(__doc__, measure, height=256, batch_size=64, batches=24, rounds=5)
