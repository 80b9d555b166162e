"""Batches: each pair once an epoch, a function of seed and number alone, and exactly resumable."""

import collections
import dataclasses
import io
import itertools
import os
import re
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
import tokenizers
from PIL import Image

from unipt_jax.core.errors import ConfigError, DataError
from unipt_jax.data import builders, pipeline, tokenization
from unipt_jax.data.annotations import Record

HEIGHT, WIDTH, LENGTH = 32, 16, 24
WORDS = [
    "man",
    "woman",
    "red",
    "blue",
    "shirt",
    "white",
    "black",
    "shoes",
    "bag",
    "jeans",
    "jacket",
    "with",
    "and",
    "the",
    "wearing",
]
BAD = 4  # the image that some tests truncate

# Image n has 1, 2 or 3 captions: 13 images, 25 pairs. Captions are of 2 to 6 words, some of 10, and
# some of more tokens than fit; each names its pair's number, so that no two are alike.
COUNTS = [1 + number % 3 for number in range(13)]
PAIR_IMAGES = [number for number, count in enumerate(COUNTS) for _ in range(count)]
PAIRS = len(PAIR_IMAGES)


def caption(pair):
    words = {0: 40, 1: 10}.get(pair % 7, 1 + pair % 5)
    return " ".join([str(pair), *(WORDS[(pair + word) % len(WORDS)] for word in range(words))])


CAPTIONS = [caption(pair) for pair in range(PAIRS)]


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    """The images, of different sizes and full of noise."""
    root = tmp_path_factory.mktemp("source")
    rng = np.random.default_rng(0)
    for number in range(len(COUNTS)):
        noise = rng.integers(256, size=(40 + number, 20 + 2 * number, 3), dtype=np.uint8)
        Image.fromarray(noise).save(root / f"{number}.png")
    return root


def prepare(source, workdir, pixels=None):
    records, captions = [], iter(CAPTIONS)
    for number, count in enumerate(COUNTS):
        taken = tuple(itertools.islice(captions, count))
        records.append(Record(f"{number}.png", taken, f"toy/{number // 2}", "train", number))
    builders.write(
        records,
        source=source,
        name="toy",
        workdir=workdir,
        tokenizer="examples/tokenizer",
        quarantined=0,
        notices={},
        pixels=pixels,
    )
    return workdir


@pytest.fixture(scope="module")
def directory(source, tmp_path_factory):
    return prepare(source, tmp_path_factory.mktemp("prepared"))


@pytest.fixture(scope="module")
def pixels(source, tmp_path_factory):
    """The split with images stored resized to what the batches hold."""
    workdir = prepare(source, tmp_path_factory.mktemp("pixels"), (HEIGHT, WIDTH))
    return builders.open_split(workdir, "train")


@pytest.fixture(scope="module")
def split(directory):
    return builders.open_split(directory, "train")


@pytest.fixture(scope="module")
def broken(split):
    """The split with one image cut in the middle of its bytes."""
    examples = [
        entry
        | {
            "captions": [text.encode() for text in entry["captions"]],
            "path": entry["path"].encode(),
        }
        for entry in (split.images[number] for number in range(len(split.images)))
    ]
    content = io.BytesIO()
    noise = np.random.default_rng(1).integers(256, size=(64, 32, 3), dtype=np.uint8)
    Image.fromarray(noise).save(content, "JPEG")
    examples[BAD]["image"] = content.getvalue()[: len(content.getvalue()) // 2]
    return dataclasses.replace(split, images=builders.Images(examples))


@pytest.fixture(scope="module")
def tokenizer():
    return tokenization.load("examples/tokenizer")


@pytest.fixture(scope="module")
def ids():
    """Each caption's ids, not cut, by the library that is underneath."""
    backend = tokenizers.Tokenizer.from_file("examples/tokenizer/tokenizer.json")
    encoded = [backend.encode(text).ids for text in CAPTIONS]
    assert len({tuple(entry) for entry in encoded}) == PAIRS
    assert len({min(len(entry), LENGTH) for entry in encoded}) > 3
    assert max(map(len, encoded)) > LENGTH
    return encoded


def preprocess(**changes):
    values = {
        "height": HEIGHT,
        "width": WIDTH,
        "flip": 0.5,
        "length": LENGTH,
        "buckets": (),
        "mlm_probability": 0.15,
        "whole_word": False,
    }
    return pipeline.Preprocess(**(values | changes))


@pytest.fixture(scope="module")
def make(split, tokenizer):
    """Returns data sets of batches; keywords that `Preprocess` knows go there."""
    fields = {field.name for field in dataclasses.fields(pipeline.Preprocess)}

    def build(split=split, batch_size=5, seed=0, **options):
        how = {name: options.pop(name) for name in fields & options.keys()}
        return pipeline.train_batches(
            split, tokenizer, preprocess(**how), batch_size=batch_size, seed=seed, **options
        )

    return build


def records(dataset, batches):
    return np.concatenate([dataset[number]["record"] for number in range(batches)]).tolist()


def assert_same(batches, expected):
    assert len(batches) == len(expected)
    for ours, theirs in zip(batches, expected, strict=True):
        assert ours.keys() == theirs.keys()
        for name, value in ours.items():
            assert value.dtype == theirs[name].dtype, name
            np.testing.assert_array_equal(value, theirs[name], err_msg=name)


def rows(batch):
    """Returns the batch as a multiset of examples, all arrays in each."""
    names = sorted(batch)
    return collections.Counter(
        tuple(batch[name][row].tobytes() for name in names) for row in range(len(batch["record"]))
    )


def cut(entry, end):
    return entry if len(entry) <= LENGTH else [*entry[: LENGTH - 1], end]


# ---------------------------------------------------------------------------- order


@pytest.mark.parametrize("batch_size", [1, 4, 5, 7, 25, 30])
def test_each_epoch_holds_each_pair_once(make, batch_size):
    """P28: also where batches span epochs, and where one batch is more than an epoch."""
    epochs = 3
    seen = records(make(batch_size=batch_size), -(-epochs * PAIRS // batch_size))
    for epoch in range(epochs):
        assert sorted(seen[epoch * PAIRS : (epoch + 1) * PAIRS]) == list(range(PAIRS))


def test_epochs_and_seeds_differ_in_their_order(make):
    orders = [records(make(seed=seed), 15) for seed in (0, 1, 2**32 - 1)]
    epochs = [tuple(order[at : at + PAIRS]) for order in orders for at in (0, PAIRS, 2 * PAIRS)]
    assert len(set(epochs)) == len(epochs) == 9
    assert tuple(range(PAIRS)) not in epochs


def test_epochs_and_seeds_differ_in_flips_and_masks(make):
    """The second time a caption comes, other tokens are hidden and the image is flipped anew."""

    def by_record(dataset, epoch):
        found = {}
        for number in range(5 * epoch, 5 * epoch + 5):
            batch = dataset[number]
            for row, record in enumerate(batch["record"].tolist()):
                found[record] = (batch["image"][row].tobytes(), batch["masked_text"][row].tobytes())
        return found

    first, second = by_record(make(), 0), by_record(make(), 1)
    other = by_record(make(seed=1), 0)
    for examples in (second, other):
        for part in range(2):
            changed = sum(first[pair][part] != examples[pair][part] for pair in range(PAIRS))
            assert changed >= 5


@pytest.mark.parametrize("probability", [0.0, 0.15, 0.5])
def test_the_longest_batch_is_told_beforehand(make, probability):
    """Without shorter buckets every batch is one."""
    batch = make(batch_size=5, buckets=(), mlm_probability=probability)[0]
    assert pipeline.longest_batch(preprocess(mlm_probability=probability), 5) == {
        name: (array.shape, array.dtype.type) for name, array in batch.items()
    }


def test_a_batch_depends_on_its_number_alone(make):
    """Batches from fresh data sets, in any order, are equal in all arrays."""
    forwards, backwards = make(buckets=(8, 16)), make(buckets=(8, 16))
    last_first = [backwards[number] for number in reversed(range(8))][::-1]
    assert_same([forwards[number] for number in range(8)], last_first)
    assert_same([make(buckets=(8, 16))[6]], [forwards[6]])


def test_an_empty_split_is_an_error(split, make):
    nothing = np.zeros(0, np.int32)
    empty = dataclasses.replace(
        split,
        images=builders.Images([]),
        caption_counts=nothing,
        identities=nothing,
        text_lengths=nothing,
    )
    with pytest.raises(DataError, match="'train' is empty"):
        make(split=empty)


@pytest.mark.parametrize(
    ("lacking", "whole_word", "message"),
    [
        ("mask", False, r"'examples/tokenizer' has no mask token \[MASK\] .* mlm.probability=0"),
        ("is_continuation", True, r"mlm.whole_word=True: .* 'examples/tokenizer'"),
    ],
)
def test_masking_that_a_tokenizer_cannot_do_is_refused(
    split, tokenizer, lacking, whole_word, message
):
    """A CLIP tokenizer has neither; without the masked language model none is needed."""
    lesser = dataclasses.replace(tokenizer, **{lacking: None})
    with pytest.raises(ConfigError, match=message):
        how = preprocess(whole_word=whole_word)
        pipeline.train_batches(split, lesser, how, batch_size=5, seed=0)
    how = preprocess(whole_word=whole_word, mlm_probability=0.0)
    batch = pipeline.train_batches(split, lesser, how, batch_size=5, seed=0)[0]
    np.testing.assert_array_equal(batch["masked_text"], batch["text"])
    assert not batch["mlm_mask"].any()


def test_single_tokens_are_masked_without_knowing_words(split, tokenizer, make):
    lesser = dataclasses.replace(tokenizer, is_continuation=None)
    dataset = pipeline.train_batches(split, lesser, preprocess(), batch_size=5, seed=0)
    assert_same([dataset[0]], [make()[0]])


# ---------------------------------------------------------------------------- resuming


@pytest.mark.parametrize("stop", [0, 3, 5, 11])
def test_resuming_goes_on_with_the_same_batches(make, stop):
    """P26, P28: at the start, within an epoch, at its end, and in a later one."""
    expected = [make()[number] for number in range(15)]
    with pipeline.Batches(make()) as batches:
        before = list(itertools.islice(batches, stop))
        state = batches.state()
    assert state == {"next_batch": stop}
    with pipeline.Batches(make(), start=state["next_batch"]) as batches:
        after = list(itertools.islice(batches, 15 - stop))
        assert batches.state() == {"next_batch": 15}
    assert_same(before + after, expected)


@pytest.mark.parametrize("batch_size", [1, 2, 3, 25, 60])
def test_batches_of_any_size_are_read_on_for_ever(make, batch_size):
    """P29: of one pair, and of more than there are."""
    with pipeline.Batches(make(batch_size=batch_size), start=10**9) as batches:
        found = [next(batches)["record"] for _ in range(3)]
    assert [len(records) for records in found] == [batch_size] * 3


@pytest.mark.timeout(120)
@pytest.mark.parametrize(("first", "second"), [(2, 0), (0, 2)])
def test_workers_change_nothing(make, first, second):
    """P26: worker processes give the batches that threads give, also after an interruption."""
    dataset = make(buckets=(8, 16))
    expected = [dataset[number] for number in range(8)]
    with pipeline.Batches(dataset, workers=first) as batches:
        before = [next(batches) for _ in range(4)]
        state = batches.state()
    with pipeline.Batches(dataset, start=state["next_batch"], workers=second) as batches:
        after = [next(batches) for _ in range(4)]
        assert batches.state() == {"next_batch": 8}
    assert_same(before + after, expected)


def test_state_counts_what_was_given_out(make):
    """P26: batches that were read ahead and not taken come again."""
    with pipeline.Batches(make(), start=2) as batches:
        time.sleep(0.3)
        assert batches.state() == {"next_batch": 2}
        for _ in range(3):
            next(batches)
        time.sleep(0.3)
        assert batches.state() == {"next_batch": 5}
        assert_same([next(batches)], [make()[5]])


def test_closed_batches_say_so(make):
    with pipeline.Batches(make()) as batches:
        next(batches)
    batches.close()
    with pytest.raises(ValueError, match="closed"):
        next(batches)
    assert batches.state() == {"next_batch": 1}


# ---------------------------------------------------------------------------- processes


def test_processes_share_each_batch(make):
    """P35: their parts are disjoint, cover the batch, and hold the same examples to the bit."""
    whole = make(batch_size=4)
    shares = np.array([[0, 2], [1, 3]])  # As on hosts whose devices take turns in the mesh.
    parts = [make(batch_size=4, rows=share) for share in shares]
    for number in range(14):
        for share, part in zip(shares, parts, strict=True):
            expected = {name: value[share] for name, value in whole[number].items()}
            assert_same([part[number]], [expected])
    seen = [pair for number in range(7) for part in parts for pair in part[number]["record"]]
    assert len(set(seen[:24])) == 24  # six batches of four, of an epoch of 25
    assert set(seen) == set(range(PAIRS))


def test_a_process_resumes_where_another_number_of_processes_stopped(make):
    """P26, P35: the state of a run on one process is that of a run on two."""
    whole = make(batch_size=6)
    with pipeline.Batches(whole) as batches:
        for _ in range(3):
            next(batches)
        start = batches.state()["next_batch"]
    found = collections.Counter()
    for index in (0, 1):
        part = make(batch_size=6, rows=np.arange(index, 6, 2))
        with pipeline.Batches(part, start=start) as batches:
            found += rows(next(batches))
    assert found == rows(whole[3])


# ---------------------------------------------------------------------------- contents


@pytest.mark.parametrize(("size", "predictions"), [(5, 3), (4, 3)])
def test_shapes_and_types(make, size, predictions):
    """15 % of the 22 ordinary tokens that fit are 3.3, so 3 predictions at most."""
    batch = make(batch_size=size)[0]
    assert {name: (value.dtype.name, value.shape) for name, value in batch.items()} == {
        "image": ("uint8", (size, HEIGHT, WIDTH, 3)),
        "text": ("int32", (size, LENGTH)),
        "text_mask": ("bool", (size, LENGTH)),
        "masked_text": ("int32", (size, LENGTH)),
        "mlm_positions": ("int32", (size, predictions)),
        "mlm_labels": ("int32", (size, predictions)),
        "mlm_mask": ("bool", (size, predictions)),
        "identity": ("int32", (size,)),
        "record": ("int32", (size,)),
        "valid": ("bool", (size,)),
    }


@pytest.mark.parametrize("flip", [0.0, 0.5, 1.0])
def test_images_are_resized_and_flipped(source, make, flip):
    plain = []
    for number in range(len(COUNTS)):
        with Image.open(source / f"{number}.png") as image:
            resized = image.resize((WIDTH, HEIGHT), Image.Resampling.BICUBIC)
        plain.append(np.asarray(resized))
    flipped = 0
    for number in range(5):
        batch = make(flip=flip)[number]
        for image, pair in zip(batch["image"], batch["record"], strict=True):
            expected = plain[PAIR_IMAGES[pair]]
            mirrored = np.array_equal(image, expected[:, ::-1])
            assert mirrored or np.array_equal(image, expected)
            flipped += mirrored
    assert {0.0: flipped == 0, 0.5: 5 <= flipped <= 20, 1.0: flipped == 25}[flip]


def test_text_and_labels(make, ids):
    """P97: the clean text is the plain tokenisation, whatever is masked in its copy."""
    backend = tokenizers.Tokenizer.from_file("examples/tokenizer/tokenizer.json")
    pad, end = backend.token_to_id("[PAD]"), backend.token_to_id("[SEP]")
    changed = 0
    for number in range(5):
        batch = make()[number]
        assert batch["valid"].all()
        for row, pair in enumerate(batch["record"].tolist()):
            expected = cut(ids[pair], end)
            count = len(expected)
            assert batch["identity"][row] == PAIR_IMAGES[pair] // 2
            text, masked = batch["text"][row], batch["masked_text"][row]
            assert text[:count].tolist() == expected
            assert (text[count:] == pad).all() and (masked[count:] == pad).all()
            assert batch["text_mask"][row].tolist() == [True] * count + [False] * (LENGTH - count)
            chosen = batch["mlm_mask"][row]
            # 15 % of the tokens between [CLS] and [SEP], rounded; one at least.
            assert chosen.sum() == max(1, int((count - 2) * 0.15 + 0.5))
            positions = batch["mlm_positions"][row][chosen]
            assert len(set(positions)) == chosen.sum()
            assert ((positions > 0) & (positions < count - 1)).all()
            assert (batch["mlm_labels"][row][chosen] == text[positions]).all()
            assert not chosen[chosen.sum() :].any()
            assert not batch["mlm_labels"][row][~chosen].any()
            assert not batch["mlm_positions"][row][~chosen].any()
            different = np.flatnonzero(text != masked)
            assert set(different) <= set(positions)
            changed += len(different)
    assert changed >= 20


def test_masking_everything_and_nothing(make, ids):
    """P97, by its own provocation: probability 1 leaves the clean text as it is."""
    backend = tokenizers.Tokenizer.from_file("examples/tokenizer/tokenizer.json")
    end, mask = backend.token_to_id("[SEP]"), backend.token_to_id("[MASK]")
    all_of_it, none_of_it = make(mlm_probability=1.0), make(mlm_probability=0.0)
    hidden = ordinary = 0
    for number in range(5):
        full, bare = all_of_it[number], none_of_it[number]
        assert full["mlm_positions"].shape == (5, LENGTH - 2)
        assert bare["mlm_positions"].shape == (5, 1)
        assert not bare["mlm_mask"].any()
        assert (bare["masked_text"] == bare["text"]).all()
        assert (bare["text"] == full["text"]).all()
        for row, pair in enumerate(full["record"].tolist()):
            expected = cut(ids[pair], end)
            count = len(expected)
            assert full["text"][row][:count].tolist() == expected
            chosen = full["mlm_mask"][row]
            assert full["mlm_positions"][row][chosen].tolist() == list(range(1, count - 1))
            assert full["mlm_labels"][row][chosen].tolist() == expected[1:-1]
            hidden += (full["masked_text"][row] == mask).sum()
            ordinary += count - 2
    assert 0.65 < hidden / ordinary < 0.95  # 80 % in the long run


# ---------------------------------------------------------------------------- buckets


@pytest.mark.parametrize("buckets", [(8, 16), (16, 8), (8,), (16,)])
def test_text_is_trimmed_to_the_smallest_bucket(make, ids, buckets):
    """P84: no token is cut, and nothing but padding is missing."""
    trimmed, full = make(batch_size=3, buckets=buckets), make(batch_size=3)
    lengths = set()
    for number in range(17):
        ours, theirs = trimmed[number], full[number]
        longest = max(len(ids[pair]) for pair in theirs["record"])
        expected = min([size for size in buckets if size >= longest], default=LENGTH)
        # 15 % of 6, 14 and 22 ordinary tokens.
        predictions = {8: 1, 16: 2, 24: 3}[expected]
        lengths.add(expected)
        for name in ("text", "text_mask", "masked_text"):
            assert ours[name].shape == (3, expected)
            np.testing.assert_array_equal(ours[name], theirs[name][:, :expected])
        for name in ("mlm_positions", "mlm_labels", "mlm_mask"):
            assert ours[name].shape == (3, predictions)
            np.testing.assert_array_equal(ours[name], theirs[name][:, :predictions])
        assert not theirs["text_mask"][:, expected:].any()
        assert not theirs["mlm_mask"][:, predictions:].any()
        for name in ("image", "identity", "record", "valid"):
            np.testing.assert_array_equal(ours[name], theirs[name])
    assert lengths == {*buckets, LENGTH}


def test_processes_agree_on_the_bucket(make, ids):
    """P84: though the longest caption is with one of them alone."""
    shares = np.array([[0, 1], [2, 3]])
    parts = [make(batch_size=4, buckets=(8, 16), rows=share) for share in shares]
    disagree = 0
    for number in range(14):
        halves = [part[number] for part in parts]
        longest = [max(len(ids[pair]) for pair in half["record"]) for half in halves]
        sizes = [min([n for n in (8, 16) if n >= most], default=LENGTH) for most in longest]
        disagree += sizes[0] != sizes[1]
        for half in halves:
            assert half["text"].shape == half["text_mask"].shape == (2, max(sizes))
            assert half["mlm_mask"].shape == (2, {8: 1, 16: 2, 24: 3}[max(sizes)])
    assert disagree > 3


@pytest.mark.parametrize(
    ("fingerprint", "lengths"), [("another", np.full(PAIRS, 3)), ("", np.zeros(0))]
)
def test_lengths_of_another_tokenizer_are_ignored(split, make, fingerprint, lengths):
    other = dataclasses.replace(
        split, tokenizer_fingerprint=fingerprint, text_lengths=lengths.astype(np.int32)
    )
    expected = [make(batch_size=3)[number] for number in range(9)]
    dataset = make(split=other, batch_size=3, buckets=(8, 16))
    assert_same([dataset[number] for number in range(9)], expected)


# ---------------------------------------------------------------------------- stored pixels


@pytest.mark.parametrize("workers", [0, 2])
def test_stored_pixels_give_the_batches_of_the_images(split, pixels, make, workers):
    """To the byte, whatever is drawn; so that a run may go on with the other form."""
    assert pixels.fingerprint == split.fingerprint
    assert len(pixels.images[0]["image"]) == len(b"P6\n16 32\n255\n") + HEIGHT * WIDTH * 3
    how = {"padding": 2, "pool": 2, "erase": 0.5, "buckets": (8, 16)}
    expected = [make(**how)[number] for number in range(7)]
    with pipeline.Batches(make(split=pixels, **how), workers=workers) as batches:
        assert_same([next(batches) for _ in range(7)], expected)


def test_stored_pixels_of_another_size_are_refused_even_in_part(split, pixels, make):
    """Resized twice, they would be other pixels than those of the images."""
    for data in (pixels, builders.join([split, pixels])):
        with pytest.raises(DataError, match=f"{pixels.directory} stores pixels of 32x16, .* 64x16"):
            make(split=data, height=2 * HEIGHT)
    assert make(split=builders.join([split, pixels]))[0]


def test_data_sets_of_both_forms_are_trained_on_together(split, pixels, make):
    expected = [make(split=builders.join([split, split]))[number] for number in range(10)]
    for parts in ([split, pixels], [pixels, split], [pixels, pixels]):
        mixed = make(split=builders.join(parts))
        assert_same([mixed[number] for number in range(10)], expected)


def test_of_pixels_and_tokens_no_record_is_read(pixels, make):
    """But where words are deleted: that takes the caption itself."""
    read = []

    class Watched(builders.Images):
        def __getitem__(self, number):
            read.append(number)
            return super().__getitem__(number)

        def captions(self, number):
            read.append(number)
            return super().captions(number)

    watched = Watched(pixels.images._source, pixels.images._pixels)
    data = dataclasses.replace(pixels, images=watched)
    assert_same([make(split=data)[3]], [make(split=pixels)[3]])
    assert not read
    make(split=data, text_noise="delete", text_noise_probability=0.5)[3]
    assert len(read) == 5


# ---------------------------------------------------------------------------- stored tokens


@pytest.mark.parametrize("noise", ["none", "mask", "corrupt", "delete"])
def test_stored_tokens_give_the_batches_of_the_captions(split, make, noise):
    """Whether they are cut, masked or corrupted, and of records that cannot be read."""
    how = {"text_noise": noise, "text_noise_probability": 0.3 * (noise in ("corrupt", "delete"))}
    bare = make(split=dataclasses.replace(split, tokens=()), **how)
    stored = make(split=split, **how)
    assert_same([stored[number] for number in range(5)], [bare[number] for number in range(5)])


def test_stored_tokens_of_a_record_that_is_left_out_are_not_read(broken, make):
    bare = dataclasses.replace(broken, tokens=())
    have, want = (make(split=data, quarantine=True) for data in (broken, bare))
    assert_same([have[number] for number in range(5)], [want[number] for number in range(5)])


def test_stored_tokens_of_another_tokenizer_are_not_read(split, make):
    wrong = [np.arange(3, dtype=np.int32)] * PAIRS
    other = dataclasses.replace(split, tokens=wrong, tokenizer_fingerprint="another")
    assert_same([make(split=other)[1]], [make()[1]])


# ---------------------------------------------------------------------------- augmentation


def test_augmentations_come_in_the_order_of_the_field(monkeypatch, make):
    """Flip, pad and crop, the pool, erasing; each with what `Preprocess` says."""
    calls = []
    for name in ("random_flip", "pad_and_crop", "random_pool", "random_erase"):
        monkeypatch.setattr(
            pipeline.transforms,
            name,
            lambda image, *how, name=name, **out: (calls.append((name, *how[:-1])), image)[1],
        )
    make(batch_size=1, padding=3, pool=2, erase=0.5, fill=(1, 2, 3))[0]
    assert calls == [
        ("random_flip", 0.5),
        ("pad_and_crop", 3, (1, 2, 3)),
        ("random_pool", 2, (1, 2, 3)),
        ("random_erase", 0.5, (1, 2, 3)),
    ]


def test_images_are_shifted_and_erased_with_the_fill(source, make):
    """Every pixel is one of the shifted picture's, or the fill; text is as without."""
    fill = (7, 77, 177)
    augmented, bare = make(padding=4, erase=1.0, fill=fill), make()
    shifts = set()
    for number in range(5):
        ours, theirs = augmented[number], bare[number]
        for name in ours.keys() - {"image"}:
            np.testing.assert_array_equal(ours[name], theirs[name])
        for image, plain in zip(ours["image"], theirs["image"], strict=True):
            filled = (image == fill).all(-1)
            padded = np.pad(plain, ((4, 4), (4, 4), (0, 0)))
            matching = [
                (down, right)
                for down in range(9)
                for right in range(9)
                if (image == padded[down : down + HEIGHT, right : right + WIDTH])
                .all(-1)[~filled]
                .all()
            ]
            assert len(matching) == 1 and filled.any() and not filled.all()
            shifts.add(matching[0])
    assert len(shifts) > 10


def test_the_pool_changes_images_alone(make):
    augmented, bare = make(pool=2), make()
    changed = 0
    for number in range(5):
        ours, theirs = augmented[number], bare[number]
        changed += (ours.pop("image") != theirs.pop("image")).any((1, 2, 3)).sum()
        assert_same([ours], [theirs])
    assert 12 < changed <= 25


def test_the_masked_copy_may_be_the_text(make):
    """IRRA: what is masked for the language model is hidden from all objectives."""
    noisy, bare = make(text_noise="mask"), make()
    for number in range(5):
        ours, theirs = noisy[number], bare[number]
        np.testing.assert_array_equal(ours["text"], ours["masked_text"])
        assert (ours["text"] != theirs["text"]).any()
        assert_same([ours | {"text": theirs["text"]}], [theirs])


def test_corrupted_tokens_are_shortened_and_padded(make, ids):
    """RDE, at a probability that shows: the ends stay, the rest is of the vocabulary."""
    backend = tokenizers.Tokenizer.from_file("examples/tokenizer/tokenizer.json")
    roles = ("[CLS]", "[SEP]", "[PAD]", "[MASK]")
    start, end, pad, mask = (backend.token_to_id(token) for token in roles)
    shorter = masks = 0
    options = {"mlm_probability": 0.0, "buckets": (8, 16), "batch_size": 3}
    noisy = make(text_noise="corrupt", text_noise_probability=0.5, **options)
    bare = make(**options)
    for number in range(9):
        ours, theirs = noisy[number], bare[number]
        np.testing.assert_array_equal(ours["image"], theirs["image"])
        assert ours["text"].shape == theirs["text"].shape
        for row, pair in enumerate(ours["record"].tolist()):
            count = int(ours["text_mask"][row].sum())
            text = ours["text"][row]
            assert ours["text_mask"][row, :count].all() and (text[count:] == pad).all()
            assert (text[0], text[count - 1]) == (start, end)
            assert 3 <= count <= min(len(ids[pair]), LENGTH)
            shorter += count < min(len(ids[pair]), LENGTH)
            masks += (text == mask).sum()
    assert shorter > 8 and masks > 20


def test_deleted_words_are_missing_from_the_text(make, tokenizer):
    noisy = make(text_noise="delete", text_noise_probability=0.3, mlm_probability=0.0)
    shorter = 0
    for number in range(5):
        batch = noisy[number]
        for row, pair in enumerate(batch["record"].tolist()):
            found = batch["text"][row][batch["text_mask"][row]].tolist()
            rest = iter(tokenizer.encode(CAPTIONS[pair], 1000).tolist())
            assert all(token in rest for token in found)
            shorter += len(found) < len(tokenizer.encode(CAPTIONS[pair], LENGTH))
    assert shorter > 5


@pytest.mark.parametrize(
    ("noise", "lacking", "message"),
    [("corrupt", ["mask"], r"no mask token .* text.noise='corrupt'"),
     ("mask", [], r"text.noise='mask' .* mlm.probability=0")],
)  # fmt: skip
def test_noise_that_needs_what_is_not_there_is_refused(split, tokenizer, noise, lacking, message):
    lesser = dataclasses.replace(tokenizer, **dict.fromkeys(lacking))
    how = preprocess(mlm_probability=0.0, text_noise=noise, text_noise_probability=0.2)
    with pytest.raises(ConfigError, match=message):
        pipeline.train_batches(split, lesser, how, batch_size=5, seed=0)


# ---------------------------------------------------------------------------- balanced batches


def test_balanced_batches_hold_several_pairs_of_each_identity(make):
    """Three identities of seven, two pairs each; two rounds of two batches visit six or seven."""
    dataset = make(batch_size=6, instances=2)
    for number in range(8):
        batch = dataset[number]
        assert [PAIR_IMAGES[pair] // 2 for pair in batch["record"]] == batch["identity"].tolist()
        groups = batch["identity"].reshape(3, 2)
        assert (groups[:, 0] == groups[:, 1]).all() and len(set(groups[:, 0])) == 3
    assert set(records(dataset, 40)) == set(range(PAIRS))


@pytest.mark.timeout(240)
@pytest.mark.parametrize("workers", [0, 2])
def test_balanced_batches_depend_on_their_number_alone(make, workers):
    """P26, P35: read ahead, by threads or workers, resumed, and shared by processes."""
    options = {"batch_size": 6, "instances": 2, "padding": 2, "erase": 0.5, "pool": 1}
    expected = [make(**options)[number] for number in reversed(range(6))][::-1]
    with pipeline.Batches(make(**options), start=2, workers=workers) as batches:
        assert_same([next(batches) for _ in range(4)], expected[2:])
    parts = [make(**options, rows=np.arange(start, start + 2)) for start in (0, 2, 4)]
    for number in range(6):
        thirds = [part[number] for part in parts]
        stacked = {name: np.concatenate([third[name] for third in thirds]) for name in thirds[0]}
        assert_same([stacked], [expected[number]])


def test_no_two_balanced_examples_share_their_random_numbers(make):
    """Positions go on counting: an identity that comes again is flipped and masked anew."""
    dataset = make(batch_size=14, instances=2)
    seen = collections.defaultdict(set)
    for number in range(12):
        batch = dataset[number]
        for row, pair in enumerate(batch["record"].tolist()):
            seen[pair].add(batch["image"][row].tobytes())
    assert sum(len(images) == 2 for images in seen.values()) > 15


@pytest.mark.parametrize(
    ("batch_size", "instances", "message"),
    [(5, 2, "batch_size=5 .* instances=2"), (16, 2, "needs 8 identities, and the data have 7")],
)
def test_balanced_batches_that_cannot_be_are_refused(make, batch_size, instances, message):
    with pytest.raises(ConfigError, match=message):
        make(batch_size=batch_size, instances=instances)


# ---------------------------------------------------------------------------- several data sets


def test_joined_data_sets_give_the_examples_of_their_parts(split, broken, make, tokenizer):
    """Of 50 pairs the second 25 are the second part's, with labels of their own."""
    both = builders.join([split, split])
    assert len(both.pairs[0]) == 2 * PAIRS

    def load(split, pair):
        nothing, first = np.zeros(0, np.int32), np.array([0])
        rows = pipeline.LoadRows(
            split, tokenizer, preprocess(), 0, False, nothing, split.tokens, first
        )
        return rows((np.array([3]), np.array([pair])))

    for pair in range(PAIRS):
        expected = load(split, pair)
        assert_same([load(both, pair)], [expected])
        second = expected | {
            "record": expected["record"] + np.int32(PAIRS),
            "identity": expected["identity"] + np.int32(7),
        }
        assert_same([load(both, pair + PAIRS)], [second])
    bad = builders.join([split, broken])
    with pytest.raises(DataError, match=rf"train {split.directory}/{BAD}.png: cannot be decoded"):
        [make(split=bad)[number] for number in range(10)]


def test_a_text_longer_than_its_stored_length_keeps_its_end(split, make, tokenizer):
    """P12, P104: as of a data set that another release prepared, whose lengths are a bit short."""
    stale = dataclasses.replace(split, text_lengths=np.full(PAIRS, 5, np.int32), tokens=())
    for batch in map(make(split=stale, buckets=(8,), mlm_probability=1.0).__getitem__, range(5)):
        assert batch["text"].shape == (5, 8)
        count = batch["text_mask"].sum(axis=1)
        assert (batch["text"][np.arange(5), count - 1] == tokenizer.end).all() and count.max() == 8
        assert batch["mlm_positions"].max() == 6


def test_joined_lengths_of_different_tokenizers_leave_buckets_unused(split, make, caplog):
    other = dataclasses.replace(split, tokenizer_fingerprint="another", directory="/other")
    assert make(split=builders.join([split, split]), buckets=(8,), batch_size=1)[0]
    assert not caplog.records
    dataset = make(split=builders.join([split, other]), buckets=(8, 16), batch_size=1)
    assert {dataset[number]["text"].shape for number in range(20)} == {(1, LENGTH)}
    assert f"{split.directory} + /other stores caption lengths" in caplog.text
    assert f"'{split.tokenizer_fingerprint} + another'" in caplog.text


# ---------------------------------------------------------------------------- damage


@pytest.mark.timeout(90)
@pytest.mark.parametrize("workers", [0, 2])
def test_a_truncated_image_is_named(broken, make, workers):
    """Neither threads nor worker processes hang on it (P31)."""
    begin = time.monotonic()
    with (
        pipeline.Batches(make(split=broken), workers=workers) as batches,
        pytest.raises(DataError, match=f"train {BAD}.png: cannot be decoded"),
    ):
        for _ in range(5):
            next(batches)
    assert time.monotonic() - begin < 45


def test_quarantine_leaves_out_one_record_alone(broken, make):
    """The bad image's pairs are marked; every other example is what it would have been."""
    backend = tokenizers.Tokenizer.from_file("examples/tokenizer/tokenizer.json")
    bad = [pair for pair, number in enumerate(PAIR_IMAGES) if number == BAD]
    assert len(bad) == 2
    with pipeline.Batches(make(split=broken, quarantine=True)) as batches:
        found = [next(batches) for _ in range(5)]
    for number, batch in enumerate(found):
        expected = make()[number]
        np.testing.assert_array_equal(batch["record"], expected["record"])
        np.testing.assert_array_equal(batch["valid"], ~np.isin(batch["record"], bad))
        for name, value in batch.items():
            assert value.dtype == expected[name].dtype
            np.testing.assert_array_equal(value[batch["valid"]], expected[name][batch["valid"]])
        for row in np.flatnonzero(~batch["valid"]):
            assert not batch["image"][row].any() and not batch["mlm_mask"][row].any()
            ends = [backend.token_to_id("[CLS]"), backend.token_to_id("[SEP]")]
            assert batch["text"][row][batch["text_mask"][row]].tolist() == ends
    assert sum((~batch["valid"]).sum() for batch in found) == 2


# With threads about that a fork would leave without their locks: JAX's and the tokenizer's.
SCRIPT = """
import multiprocessing
import sys
import time

import jax

from unipt_jax.core.errors import WorkerError
from unipt_jax.data import builders, pipeline, tokenization

if __name__ == "__main__":
    multiprocessing.set_start_method("fork")
    tokenizer = tokenization.load("examples/tokenizer")
    tokenizer.encode_whole(["a man"] * 1000)
    dataset = pipeline.train_batches(
        builders.open_split(sys.argv[1], "train"),
        tokenizer,
        pipeline.Preprocess(32, 16, 0.5, 24, (), 0.15, False),
        batch_size=5,
        seed=0,
    )
    with pipeline.Batches(dataset, workers=2) as batches:
        while len(workers := multiprocessing.active_children()) < 2:
            time.sleep(0.01)
        print(*(worker.pid for worker in workers), flush=True)
        sys.stdin.readline()
        try:
            held = jax.device_put(next(batches))
            print([next(batches)["record"].tolist() for _ in range(9)], flush=True)
        except WorkerError as error:
            print(error, flush=True)
            sys.stdin.readline()
        raise SystemExit(3)
"""


@pytest.fixture
def reading(directory, tmp_path):
    """A program that reads batches by two worker processes, and their numbers once they exist."""
    script = tmp_path / "read.py"
    script.write_text(SCRIPT)
    with subprocess.Popen(
        [sys.executable, str(script), str(directory)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        yield process, [int(number) for number in process.stdout.readline().split()]
        process.kill()


@pytest.mark.timeout(120)
def test_workers_heed_the_first_process_alone_and_end_in_silence(reading, make):
    """P107: no word on stderr of leaked shared memory, half-destroyed modules or interruptions.

    A terminal's Ctrl-C and a cluster's SIGTERM go to all processes; a run that then saves needs its
    batches. P30, P32: whatever is said of starting processes, workers are spawned: they neither
    wait for a lock that a thread held when it was copied, nor ask for flags that none has parsed.
    """
    process, workers = reading
    for worker in workers:
        os.kill(worker, signal.SIGTERM)
        os.kill(worker, signal.SIGINT)
    out, err = process.communicate("\n", timeout=100)
    assert (process.returncode, err) == (3, "")
    dataset = make()
    assert out.strip() == str([dataset[number]["record"].tolist() for number in range(1, 10)])


@pytest.mark.timeout(120)
def test_neither_a_worker_nor_its_parent_outlives_the_other(reading):
    """P32: one that dies is not waited for. P28: a run that is killed leaves no worker behind."""
    process, workers = reading
    os.kill(workers[0], signal.SIGKILL)
    process.stdin.write("\n")
    process.stdin.flush()
    said = process.stdout.readline()
    assert re.match(r"a process that reads images ended with exit code -9 .* --resume", said)
    process.kill()
    # Each worker has stderr open too, which ends with the last of them.
    process.communicate(timeout=30)
